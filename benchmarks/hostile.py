"""Random hostile inputs over all rules, mixings and usual compositions, with a count of failures.

    python benchmarks/hostile.py --count 100000 [--seed 0] [--only median,krum] [--show 5]
    python benchmarks/hostile.py --registers --count 10000     wide enough for columns to be sorted in registers

An input is [n, d] of honest vectors (clouds, ties, duplicates, null, tiny, huge, half to double precision) and up to f
rows of any value: NaN, infinities, +-1e38, the greatest numbers, denormals, mixtures, copies. A failure is an
exception, an answer that is not finite, one outside what the definition allows (its class's guarantee), or an
input that was written to. Every case is a function of (seed, case), so a failure is repeated with --seed and --case.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone

import numpy as np
import torch
from torch import Tensor

import varangian as vg
from varangian.core import kernels
from varangian.core.claims import FINITE, Guarantee, spread
from varangian.core.randomness import generator
from varangian.core.stages import decide, required_rows
from varangian.testing.examples import HOSTILE, hostile
from varangian.testing.stages import broken_promise

DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
Stages = tuple[tuple[vg.Mixing, ...], vg.Rule | None]


def subjects() -> dict[str, Callable[[int], Stages]]:
    """By name: f to (mixings, rule); rule None for a mixing by itself."""
    table: dict[str, Callable[[int], Stages]] = {}
    for name, kind in vg.RULES.items():
        if "ROBUST" not in kind.exempt:
            table[name] = lambda f, kind=kind: ((), kind(f))
    for name in ("median", "krum", "multi-krum", "bulyan", "trimmed-mean", "mda", "cge", "aksel"):
        table[f"published {name}"] = lambda f, name=name: ((), vg.published(name, f))
    for name, kind in vg.MIXINGS.items():
        table[name] = lambda f, kind=kind: ((kind(f=f) if name_has_f(kind) else kind(),), None)  # type: ignore[call-arg]
    for name in (
        "multi-krum",
        "median",
        "trimmed-mean",
        "geometric-median",
        "mda",
        "bulyan",
        "centered-clipping",
        "caf",
    ):
        rule = vg.RULES[name]
        table[f"nnm > {name}"] = lambda f, rule=rule: ((vg.NearestNeighborMixing(f),), rule(f))
        table[f"arc > {name}"] = lambda f, rule=rule: ((vg.AdaptiveClipping(f),), rule(f))
        table[f"arc > nnm > {name}"] = lambda f, rule=rule: (
            (vg.AdaptiveClipping(f), vg.NearestNeighborMixing(f)),
            rule(f),
        )
        table[f"bucketing > {name}"] = lambda f, rule=rule: ((vg.Bucketing(2),), rule(f))
    return table


def name_has_f(kind: type[vg.Mixing]) -> bool:
    return kind in (vg.NearestNeighborMixing, vg.AdaptiveClipping)


def _behind_mixing(rule: vg.Rule, honest: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, float]:
    n = honest.shape[0] + rule.f
    return honest.mean(0), 8 * (1 + rule.f / max(n - 2 * rule.f, 1)) * np.sqrt(n) * spread(honest)


BEHIND_MIXING = Guarantee("within a generous 8 sqrt(n) (n - f) / (n - 2f) spreads of the honest mean", _behind_mixing)


def honest_vectors(case: int, h: int, d: int, dtype: torch.dtype, seed: int) -> Tensor:
    random = generator(seed, "hostile honest", case)
    kind = random.integers(7)
    x = random.standard_normal((h, d))
    if kind == 0:
        x = random.integers(-1, 2, (h, d)).astype(float)
    elif kind == 1:
        x = x[random.integers(0, h, h)]  # duplicates
    elif kind == 2:
        x = 0 * x + random.standard_normal(d)  # all agree
    elif kind == 3:
        x = 0 * x
    elif kind == 4:
        x += 1e4 * random.standard_normal(d)  # an offset that dwarfs the spread
    limit = torch.finfo(dtype)
    exponents = [0, 0, 0, -4, 3] if dtype == torch.float16 else [0, 0, 0, -6, 6, -20, 18, -38, 30]
    x *= 10.0 ** random.choice(exponents)
    return torch.from_numpy(x.clip(limit.min / 4, limit.max / 4)).to(dtype)


NARROW, WIDE = (1, 1, 2, 3, 5, 17, 64), (128, 131, 256, 300)


def attempt(
    stages: Callable[[int], Stages], case: int, seed: int, widths: tuple[int, ...] = NARROW
) -> tuple[str | None, Tensor, Stages, int]:
    """What went wrong, or None; with the input."""
    random = generator(seed, "hostile case", case)
    f, d = int(random.integers(0, 5)), int(random.choice(widths))
    dtype = DTYPES[int(random.integers(len(DTYPES)))]
    pre, rule = stages(f)
    least = required_rows(pre, rule) if rule is not None else max(pre[0].min_n, 2 * f + 1)
    n = least + int(random.choice([0, 0, 1, 2, 7]))
    rows = min(int(random.integers(0, f + 1)), n - 1)
    honest = honest_vectors(case, n - rows, d, dtype, seed)
    kind = int(random.integers(len(HOSTILE)))
    x = torch.cat([honest, hostile(kind, rows, d, dtype, case, honest)])
    kept, previous = x.clone(), None
    if rule is not None and rule.uses_previous:
        previous = (0.75 * honest.double().mean(0)).to(dtype)
    try:
        out = pre[0](x) if rule is None else decide(x, pre, rule, previous=previous).aggregate
    except Exception as error:
        return f"{HOSTILE[kind]}: {type(error).__name__}: {error}", x, (pre, rule), f
    if not torch.equal(x.view(torch.uint8), kept.view(torch.uint8)):
        return f"{HOSTILE[kind]}: the input was written to", kept, (pre, rule), f
    problem = broken_promise(
        pre[0] if rule is None else rule,
        honest,
        out,
        previous,
        promise(pre, rule),
        x,
    )
    return (None if problem is None else f"{HOSTILE[kind]}: {problem}"), x, (pre, rule), f


def promise(pre: tuple[vg.Mixing, ...], rule: vg.Rule | None) -> Guarantee:
    """Of compositions it is known that nearest-neighbour mixing keeps what moves little near; else, being finite."""
    if rule is None:
        return pre[0].guarantee
    if not pre:
        return rule.guarantee
    only_nnm = len(pre) == 1 and isinstance(pre[0], vg.NearestNeighborMixing)
    return BEHIND_MIXING if only_nnm and not isinstance(rule, vg.CenteredClipping) else FINITE


def cases(arguments: argparse.Namespace, names: list[str]) -> Iterator[tuple[int, str]]:
    numbers = range(arguments.count) if arguments.case is None else [arguments.case]
    for case in numbers:
        yield case, names[case % len(names)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="how many inputs, spread evenly over the objects")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, default=None, help="a single case, by its number")
    parser.add_argument("--only", default="", help="names of objects, with commas (numbers of cases then differ)")
    parser.add_argument("--registers", action="store_true", help="wide inputs, sorted in registers (which compiles)")
    parser.add_argument("--show", type=int, default=3, help="failures to show in full, for each object")
    arguments = parser.parse_args()
    if arguments.registers:
        kernels.cpu.columns.WORTH = 0
    table = subjects()
    names = [name for name in table if not arguments.only or name in arguments.only.split(",")]
    failures: Counter[str] = Counter()
    start = time.perf_counter()
    done = 0
    for case, name in cases(arguments, names):
        problem, x, stages, f = attempt(table[name], case, arguments.seed, WIDE if arguments.registers else NARROW)
        done += 1
        if problem is not None:
            failures[name] += 1
            if failures[name] <= arguments.show:
                print(f"case {case}: {name} (f = {f}), {list(x.shape)} {x.dtype}: {problem}")
                print(f"    {stages}\n    x = {x.tolist() if x.numel() <= 60 else '...'}")
    elapsed = time.perf_counter() - start
    print(f"{done:,} inputs over {len(names)} objects, seed {arguments.seed}: {failures.total()} failures")
    for name, count in failures.most_common():
        print(f"    {name}: {count}")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} CPU, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(f"{datetime.now(timezone.utc):%Y-%m-%d}, {elapsed:.0f} s, {machine}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
