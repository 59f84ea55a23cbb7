"""Other libraries beside ours: the same vectors, the same threads, one process; kept in benchmarks/peers.json.

    make peers PYTHON=python3.12               an environment of its own (.venv-peers), then all that follows
    python benchmarks/peers.py                 all sections: ten minutes on two processors with nothing beside them
    python benchmarks/peers.py --section time-51 --section step
    python benchmarks/peers.py --missing       only sections that peers.json has none of, after an interruption
    python benchmarks/peers.py --large         also (11, 36,489,290), which needs 16 GiB and ten more minutes
    python benchmarks/peers.py --pages         only writes tables and the figure anew from peers.json

Sections: time-15 (where all subsets can be listed), time-51 and time-25 (the study's shapes), memory, hostile, step.
Each is written when it ends, with its date, machine and versions. Calls are those of peers_entries.py: each library as
it documents itself, in each variant that it offers, of which tables take the fastest. Before each timed call the same
entry is called once, its input is made anew (some calls overwrite it), and 128 MB of other data pass through caches.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers_entries import OURS, Entry, as_list, entries, missing
from threadpoolctl import threadpool_limits
from torch import Tensor

from varangian.runs.environment import processor

HERE = Path(__file__).parent
KEPT = HERE / "peers.json"
SHAPES = {"time-15": (15, 5, 3, 10_000), "time-51": (51, 24, 12, 79_510), "time-25": (25, 11, 5, 1_310_922)}
LARGE = {"time-11": (11, 4, 2, 36_489_290)}
SECTIONS = (*SHAPES, "memory", "hostile", "step")
OTHER = 1 << 27  # bytes that pass between two calls
SECONDS, LEAST, MOST, PATIENCE = 1.0, 3, 15, 20.0  # of one entry: time for its calls, their number, when one is enough
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}
PACKAGES = ("varangian", "byzfl", "byzpy", "krum", "flwr", "numpy", "torch", "numba", "scipy", "torchvision")


# What each section measures


def vectors(n: int, d: int) -> Tensor:
    """Independent normal vectors about a common one, of norm 1 and spread 1, so that distances say something."""
    generator, x = torch.Generator().manual_seed(n), torch.empty(n, d)
    centre = torch.randn(d, generator=generator) / d**0.5
    for row in x:
        row.normal_(generator=generator)
        row.div_(d**0.5).add_(centre)
    return x


def differs(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    found, expected = found.double().flatten(), expected.double().flatten()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


@contextmanager
def threads_kept() -> Iterator[None]:
    """A pool of ByzPy's actors may set the number of torch's threads for good."""
    number = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(number)


def timed(n: int, f: int, q: int, d: int, least: int = LEAST, clock: Clock = time.perf_counter) -> list[dict[str, Any]]:
    """ms of each entry, a median of calls, and how far its answer is from ours under the same definition."""
    x, other, rows = vectors(n, d), np.zeros(OTHER // 8), []
    for entry in entries(n, f, q):
        if clock is time.process_time and entry.code.endswith("process"):
            continue  # what other processes do is not on this clock
        row: dict[str, Any] = {"rule": entry.rule, "library": entry.library, "code": entry.code, "note": entry.note}
        rows.append(row)
        seconds: list[float] = []
        try:
            with threads_kept():
                while len(seconds) < least or (len(seconds) < MOST and sum(seconds) < SECONDS):
                    if not seconds:
                        start = clock()
                        found = entry.read(entry.call(entry.prepare(x)))
                        first = clock() - start
                        if entry.ours is not None:
                            row["differs"] = differs(found, entry.ours(x))
                        del found
                    elif first < PATIENCE / least:
                        entry.call(entry.prepare(x))
                    given = entry.prepare(x)
                    other += 1
                    start = clock()
                    entry.call(given)
                    seconds.append(clock() - start)
                    del given
                    if sum(seconds) > PATIENCE:
                        break
        except Exception as error:  # another library's: what it is is a finding, not the end
            row["raises"] = said(error)
        finally:
            getattr(entry.call, "close", lambda: None)()
        if seconds:
            row |= {"ms": 1e3 * statistics.median(seconds), "least": 1e3 * min(seconds), "calls": len(seconds)}
        print(f"  {entry.rule:24} {entry.library:17} {row.get('ms', float('nan')):10.2f} ms  {entry.code}", flush=True)
        gc.collect()
    return rows


def said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def resident(what: str) -> int:
    """VmRSS (now) or VmHWM (the highest since it was reset) of this process, in bytes; Linux only."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def extra_memory(place: int, shape: tuple[int, int, int, int], threads: int, queue: Any) -> None:
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    n, f, q, d = shape
    entry = entries(n, f, q)[place]
    gc.freeze()
    entry.call(entry.prepare(vectors(n, 20_000)))  # compiles, starts threads
    given = entry.prepare(vectors(n, d))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the highest is counted from here on
    before = resident("VmRSS")
    entry.call(given)
    queue.put(resident("VmHWM") - before)


def memory(n: int, f: int, q: int, d: int) -> list[dict[str, Any]]:
    """MB that one call adds at its peak, its answer included, each in a process of its own; pools of actors apart."""
    context, rows = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload([
        "byzfl", "krum.primitives.aggregators.bulyan", "byzpy.aggregators.geometric_wise", "flwr.serverapp.strategy",
        "varangian.engines.flower", "varangian.study.report.style", "varangian.core.kernels",
    ])  # fmt: skip
    for place, entry in enumerate(entries(n, f, q)):
        if "OperatorExecutor" in entry.code:
            continue
        if OURS in entry.library:
            entry.call(entry.prepare(vectors(n, d)))  # kernels are compiled here, and only loaded there
        queue = context.Queue()
        process = context.Process(target=extra_memory, args=(place, (n, f, q, d), torch.get_num_threads(), queue))
        process.start()
        process.join()
        row: dict[str, Any] = {"rule": entry.rule, "library": entry.library, "code": entry.code}
        row |= {"raises": f"exit status {process.exitcode}"} if process.exitcode else {"mb": queue.get() / 1e6}
        rows.append(row)
        print(f"  {entry.rule:24} {entry.library:17} {row.get('mb', float('nan')):10.1f} MB  {entry.code}", flush=True)
    return rows


HOSTILE = {
    "NaN": "f vectors of NaN",
    "one NaN": "one NaN in one vector",
    "inf": "f vectors of infinity, of either sign",
    "1e38": "f vectors of 1e38, of either sign",
    "same": "f equal vectors, 100 times as far as honest ones",
    "offset": "all shifted by 10,000 times their spread, f of them by twice as much",
    "equal": "n equal vectors",
}


def attacked(case: str, n: int, f: int, d: int) -> tuple[Tensor, Tensor]:
    """n vectors of which f, in the places 1, 3, 5, ..., are what the case says; and which are honest."""
    x, honest = vectors(n, d), torch.ones(n, dtype=torch.bool)
    places = torch.arange(1, 2 * f, 2)
    signs = torch.tensor([1.0, -1.0]).repeat(f)[:f, None]
    if case == "offset":
        x += 1e4 / d**0.5
    if case == "equal":
        return x[:1].repeat(n, 1), honest
    if case == "one NaN":
        places = places[:1]
        x[places, d // 2] = float("nan")
    elif case == "offset":
        x[places] += 1e4 / d**0.5
    else:
        x[places] = {"NaN": torch.tensor(float("nan")), "inf": signs * float("inf"), "1e38": signs * 1e38,
                     "same": x.mean(0) + 100 / d**0.5}[case]  # fmt: skip
    honest[places] = False
    return x, honest


def verdict(found: Tensor, x: Tensor, honest: Tensor) -> str:
    """right: finite, and no further from the honest mean than twice the furthest honest vector."""
    if not found.isfinite().all():
        return "not finite"
    mean = x[honest].double().mean(0)
    radius = float((x[honest].double() - mean).norm(dim=1).max())
    off = float((found.double().flatten() - mean).norm())
    if off <= max(2 * radius, 1e-6 * float(mean.norm())):
        return "right"
    return f"off by {off / radius:.1g} spreads" if radius else f"off by {off:.1g}"


def hostile(n: int = 11, f: int = 4, q: int = 2, d: int = 1000) -> list[dict[str, Any]]:
    """What each call makes of faulty and odd vectors; whether it overwrites its input, and heeds the order."""
    rows = []
    for entry in entries(n, f, q):
        if "OperatorExecutor" in entry.code or entry.rule == "mean":
            continue
        row: dict[str, Any] = {"rule": entry.rule, "library": entry.library, "code": entry.code, "cases": {}}
        for case in HOSTILE:
            tolerated = q if entry.rule == "Bulyan" else f
            x, honest = attacked(case, n, tolerated, d)
            try:
                row["cases"][case] = verdict(entry.read(entry.call(entry.prepare(x))), x, honest)
            except Exception as error:  # as above
                row["cases"][case] = f"raises {said(error)}"
        x = vectors(n, d) * 10
        given = entry.prepare(x)
        answer = entry.read(entry.call(given)).clone()
        if not isinstance(given, list) or isinstance(given[0], Tensor):
            now = torch.stack(given) if isinstance(given, list) else torch.as_tensor(given)
            row["overwrites"] = not torch.equal(now, x)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
        row["heeds order"] = differs(entry.read(entry.call(entry.prepare(x[order]))), answer) > 1e-5
        rows.append(row)
    laws = {(row["rule"], row["library"], row["code"]): row for row in rows}
    for entry in entries(31, 13, 7):  # above 25 vectors torch measures distances by a product of matrices
        if (row := laws.get((entry.rule, entry.library, entry.code))) is not None:
            row["shifted"] = moved(entry, 31, d)
            row |= kinds(entry, 31, d)
    return rows


def moved(entry: Entry, n: int, d: int) -> float | str:
    """||F(x + c) - c - F(x)|| in spreads of x, for c of 10,000 spreads: 0 but for rounding, whatever is selected."""
    x = vectors(n, d)
    c = 1e4 * torch.randn(d, generator=torch.Generator().manual_seed(4)) / d**0.5
    try:
        first, second = (entry.read(entry.call(entry.prepare(y))).double().flatten() for y in (x, x + c))
    except Exception as error:  # as above
        return f"raises {said(error)}"
    return float((second - c.double() - first).norm())


def kinds(entry: Entry, n: int, d: int) -> dict[str, bool]:
    """Of a call on tensors: whether float64 stays float64, and whether torch can differentiate through it."""
    x = vectors(n, d)
    if entry.prepare not in (Tensor.clone, as_list):
        return {}
    found: dict[str, bool] = {}
    for name, given in (("keeps float64", x.double()), ("differentiable", x.clone().requires_grad_())):
        try:
            answer = entry.call(entry.prepare(given))
            found[name] = answer.dtype == torch.float64 if name == "keeps float64" else bool(answer.requires_grad)
        except Exception:  # another library's, or ours, that takes no such vectors
            found[name] = False
    return found


# A training step, by the loop that each library documents


def step(clock: Clock = time.perf_counter, rounds: int = 12, block: int = 3) -> list[dict[str, Any]]:
    """ms a step: Fashion-MNIST, 784-100-10, n = 51, f = 24, batch 83, median, mean +- 1.5 deviations; no evaluation."""
    import peers_steps

    made = peers_steps.steppers()
    rows: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = {}
    for stepper in made:
        rows.append({"library": stepper.library, "code": stepper.code, "note": stepper.note})
        try:
            with threads_kept():
                stepper.step(3)
            seconds[stepper.code] = []
        except Exception as error:  # as above
            rows[-1]["raises"] = said(error)
    for _ in range(rounds):
        for stepper in made:
            taken = seconds.get(stepper.code)
            if taken is not None and (len(taken) < LEAST or sum(taken) < 12):
                with threads_kept():
                    start = clock()
                    stepper.step(block)
                    taken.append((clock() - start) / block)
    for stepper, row in zip(made, rows, strict=True):
        stepper.close()
        if taken := seconds.get(stepper.code):
            row |= {"ms": 1e3 * statistics.median(taken), "least": 1e3 * min(taken), "calls": len(taken) * block}
        print(f"  {row['library']:12} {row.get('ms', float('nan')):10.1f} ms  {row['code']}", flush=True)
    return rows


# What is kept


def about() -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": round(load(), 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def load() -> float:
    """How many threads wanted a processor during the last minute; 0 where the system does not say."""
    try:
        return float(Path("/proc/loadavg").read_text("utf-8").split()[0])
    except OSError:
        return 0.0


def measured(section: str, least: int, clock: Clock) -> list[dict[str, Any]]:
    if section in SHAPES | LARGE:
        return timed(*(SHAPES | LARGE)[section], least, clock)
    if section == "memory":
        return memory(*SHAPES["time-51"])
    return step(clock) if section == "step" else hostile()


def kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=[*SECTIONS, *LARGE])
    parser.add_argument("--missing", action="store_true", help="only sections of which nothing is kept")
    parser.add_argument("--large", action="store_true", help="(11, 36,489,290) too")
    parser.add_argument("--pages", action="store_true", help="measure nothing: write tables and figure")
    parser.add_argument(
        "--threads", type=int, default=0, help="of torch, NumPy and ours; by default torch's own number"
    )
    parser.add_argument("--least", type=int, default=LEAST, help="timed calls of each entry that there are at least")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: where other work runs, with 1 thread"
    )
    asked = parser.parse_args()
    if not asked.pages:
        if absent := missing():
            sys.exit(
                f"peers.py needs {', '.join(absent)}: make peers PYTHON=python3.12 sets up an environment with all."
            )
        if asked.threads:
            torch.set_num_threads(asked.threads)
        threadpool_limits(torch.get_num_threads())
        warnings.simplefilter("ignore")
        entries(*SHAPES["time-15"][:3])  # imports all, that Flower, which collects garbage in a round, may not go
        gc.freeze()  # through what all libraries together hold
        sections = asked.section or [*SECTIONS, *(LARGE if asked.large else ())]
        for section in sections:
            if asked.missing and section in kept():
                continue
            print(f"{section}, {torch.get_num_threads()} threads", flush=True)
            start, found = time.perf_counter(), {**about(), "rows": measured(section, asked.least, CLOCKS[asked.clock])}
            found["clock"] = asked.clock
            found["seconds"] = round(time.perf_counter() - start)
            KEPT.write_text(json.dumps(kept() | {section: found}, indent=1) + "\n", "utf-8")
    import peers_pages

    peers_pages.write(kept())


if __name__ == "__main__":
    main()
