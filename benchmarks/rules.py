"""What each rule costs beside torch's own operations on the same data, in one run, and how cost grows with n and d.

    python benchmarks/rules.py                    all shapes; (11, 36,489,290) needs 6 GiB
    python benchmarks/rules.py --shape 51x79510 --repeats 15
    python benchmarks/rules.py --targets          only what the targets compare
    python benchmarks/rules.py --single           rules that read the vectors once, beside the passes they need
    python benchmarks/rules.py --fresh            vectors come from memory and not from a cache
    python benchmarks/rules.py --growth FIGURE    cost against n and against d, as a plot

Each round times every entry once, so that a drift of the machine's speed hits all alike; printed are the median over
the rounds and the median of the round-by-round ratio to mean(0). Memory is the peak beyond input and output, measured
in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch
from matplotlib.lines import Line2D
from torch import Tensor

import varangian as vg
from varangian.core import kernels
from varangian.runs.environment import processor
from varangian.study.report import style

SHAPES = ((51, 79_510), (25, 1_310_922), (11, 36_489_290), (200, 1_000_000))
WARM = 0.02  # seconds
OTHER = 1 << 27  # bytes that pass between two calls with --fresh, so that nothing of the vectors is left in a cache
Call = Callable[[Tensor], object]


def entries(n: int, targets: bool) -> dict[str, Call]:
    """What is timed at n vectors: torch's operations, then rules at their largest f, then usual compositions."""
    f, quarter = (n - 3) // 2, (n - 3) // 4
    half = n // 2
    compositions = {
        "nnm, multi-krum": vg.Algorithm(pre=(vg.NearestNeighborMixing(f),), rule=vg.MultiKrum(f)),
        "arc, nnm, multi-krum": vg.Algorithm(
            pre=(vg.AdaptiveClipping(f), vg.NearestNeighborMixing(f)), rule=vg.MultiKrum(f)
        ),
        "nnm, median": vg.Algorithm(pre=(vg.NearestNeighborMixing(f),), rule=vg.Median(f)),
        "nnm, trimmed-mean": vg.Algorithm(pre=(vg.NearestNeighborMixing(f),), rule=vg.TrimmedMean(f)),
    }
    result: dict[str, Call] = {
        "torch mean(0)": lambda x: x.mean(0),
        "torch x @ x.T + mean of half": lambda x: (x @ x.T, x[:half].mean(0)),
        "median": vg.Median(f),
        "median, f quarter": vg.Median(quarter),
        "trimmed-mean": vg.TrimmedMean(f),
        "phocas": vg.Phocas(f),
        "meamed": vg.MeaMed(f),
        "multi-krum": vg.MultiKrum(f),
        "multi-krum, f quarter": vg.MultiKrum(quarter),
        "bulyan": vg.Bulyan(quarter),
        "geometric-median": vg.GeometricMedian(f),
    }
    for name, algorithm in compositions.items():
        if targets and "multi-krum" not in name:
            continue
        result[name] = lambda x, a=algorithm: a.aggregate(x, a.init(1, 1))
    if targets:
        return result
    result |= {
        "torch median(0)": lambda x: x.median(0),
        "torch sort(0)": lambda x: x.sort(0),
        "bulyan of multi-krum": vg.Bulyan(quarter, base="multi-krum"),
    }
    weights = vg.size_weights(np.arange(n) + n, cap=1.3)
    for name in ("median", "trimmed-mean", "phocas", "multi-krum"):
        rule = vg.RULES[name](quarter)
        result[f"{name}, f quarter, weighted"] = lambda x, rule=rule: rule(x, weights=weights)
    done = {type(rule) for rule in result.values()}
    for name, kind in vg.RULES.items():
        if kind not in done and name not in ("smea", "mda"):
            rule = kind(f) if kind is not vg.CenteredClipping else vg.CenteredClipping(f=f, tau=1.0)
            if rule.min_n <= n:
                result[name] = rule
    result["nnm (as a matrix)"] = vg.NearestNeighborMixing(f)
    return result


def single(n: int, x: Tensor) -> dict[str, Call]:
    """Rules that need norms or distances to one point alone, and what they cannot do without: a pass for these and one
    that writes the result, of as many rows."""
    f = (n - 3) // 2
    kept, every = np.where(np.arange(n) < n - f, 1 / (n - f), 0), np.full(n, 1 / n)
    scales, point, column = np.diag(np.linspace(0.5, 0.9, n)), x[0].clone(), torch.full((n, 1), 0.5)
    clipped = vg.Algorithm(pre=(vg.AdaptiveClipping(f),), rule=vg.Median(f))
    return {
        "torch mean(0)": lambda x: x.mean(0),
        "torch norms, scaled rows": lambda x: (x.norm(dim=1), x * column),
        "torch distances to one, mean": lambda x: ((x - point).norm(dim=1), x.mean(0)),
        "norms": kernels.squared_norms,
        "norms, scaled rows": lambda x: (kernels.squared_norms(x), kernels.weighted_rows(x, scales)),
        "norms, mean of n - f": lambda x: (kernels.squared_norms(x), kernels.weighted_rows(x, kept)),
        "distances to one, mean": lambda x: (kernels.squared_distances_to(x, point), kernels.weighted_rows(x, every)),
        "distances to one, mean of n - f": lambda x: (
            kernels.squared_distances_to(x, point),
            kernels.weighted_rows(x, kept),
        ),
        "arc (as a matrix)": vg.AdaptiveClipping(f),
        "clipping (as a matrix)": vg.StaticClipping(0.7 * x.shape[1] ** 0.5),
        "centered-clipping": vg.CenteredClipping(f, tau=1.0),
        "centered-clipping, 3 iterations": vg.CenteredClipping(f, tau=1.0, iterations=3),
        "cge": vg.ComparativeGradientElimination(f),
        "monna": vg.MoNNA(f),
        "fltrust": lambda x: vg.FLTrust(f)(x, previous=point),
        "median": vg.Median(f),
        "arc, median": lambda x: clipped.aggregate(x, clipped.init(1, x.shape[1])),
        "multi-krum": vg.MultiKrum(f),
        "krum": vg.Krum(f),
    }


def data(n: int, d: int) -> Tensor:
    """Independent normal vectors."""
    generator, x = torch.Generator().manual_seed(n), torch.empty(n, d)
    for row in x:
        row.normal_(generator=generator)
    return x


def time_all(calls: dict[str, Call], x: Tensor, repeats: int, fresh: bool = False) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(x)
    # OpenMP's threads spin on for some milliseconds after the entry before: each entry starts after its own kind.
    other = np.zeros(OTHER // 8 if fresh else 0)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            while time.perf_counter() - start < WARM:
                call(x)
            other += 1
            start = time.perf_counter()
            call(x)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def ratio(times: dict[str, list[float]], above: list[str], below: list[str]) -> float:
    """Median over rounds of the sum of some entries over the sum of others."""
    rounds = zip(*(times[name] for name in above), strict=True), zip(*(times[name] for name in below), strict=True)
    return statistics.median(sum(a) / sum(b) for a, b in zip(*rounds, strict=True))


TARGETS = (
    ("median / torch mean(0)", ["median"], ["torch mean(0)"], (2.2, 1.0, 0.8)),
    ("trimmed-mean / median", ["trimmed-mean"], ["median"], (1.6, 1.6, 1.6)),
    ("phocas / median", ["phocas"], ["median"], (1.6, 1.6, 1.6)),
    ("meamed / median", ["meamed"], ["median"], (1.6, 1.6, 1.6)),
    ("multi-krum / (x @ x.T + mean of half)", ["multi-krum"], ["torch x @ x.T + mean of half"], (1.3, 1.0, 0.5)),
    ("nnm, multi-krum / multi-krum", ["nnm, multi-krum"], ["multi-krum"], (1.15, 1.25, 1.3)),
    ("arc, nnm, multi-krum / multi-krum", ["arc, nnm, multi-krum"], ["multi-krum"], (1.15, 1.25, 1.3)),
    ("geometric-median / multi-krum", ["geometric-median"], ["multi-krum"], (1.5, 1.5, 1.5)),
    ("bulyan / (multi-krum + median), f quarter", ["bulyan"], ["multi-krum, f quarter", "median, f quarter"],
     (1.6, 1.6, 1.6)),
)  # fmt: skip

SINGLE = (
    ("arc / (norms, scaled rows)", ["arc (as a matrix)"], ["norms, scaled rows"], 1.3),
    ("clipping / (norms, scaled rows)", ["clipping (as a matrix)"], ["norms, scaled rows"], 1.3),
    ("centered-clipping / (distances to one, mean)", ["centered-clipping"], ["distances to one, mean"], 1.3),
    ("cge / (norms, mean of n - f)", ["cge"], ["norms, mean of n - f"], 1.3),
    ("monna / (distances to one, mean of n - f)", ["monna"], ["distances to one, mean of n - f"], 1.3),
    ("fltrust / (distances to one, mean of n - f)", ["fltrust"], ["distances to one, mean of n - f"], 1.3),
    ("krum / multi-krum", ["krum"], ["multi-krum"], 1.0),
)


def resident(what: str) -> int:
    """VmRSS (now) or VmHWM (the highest since it was reset) of this process, in bytes; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def extra_memory(n: int, d: int, name: str, queue: multiprocessing.Queue) -> None:
    """Peak resident memory that a call adds to input and output."""
    calls = entries(n, targets=False)
    calls[name](data(n, 50_000))  # compiles, starts threads
    x = data(n, d)
    Path("/proc/self/clear_refs").write_text("5")  # the highest is counted from here on
    before = resident("VmRSS")
    calls[name](x)
    queue.put(resident("VmHWM") - before - 4 * d)


def measured_memory(n: int, d: int, name: str) -> float | None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=extra_memory, args=(n, d, name, queue))
    process.start()
    process.join()
    return None if process.exitcode else queue.get() / (4 * n * d)


def table(n: int, d: int, repeats: int, targets: bool, memory: bool, fresh: bool) -> None:
    x = data(n, d)
    times = time_all(entries(n, targets), x, repeats, fresh)
    del x
    print(f"\n({n}, {d:,}): {4e-6 * n * d:,.0f} MB", flush=True)
    for name, values in times.items():
        ms, relative = statistics.median(values), ratio(times, [name], ["torch mean(0)"])
        line = f"  {name:32} {ms:10.2f} ms {relative:8.2f} x mean(0) {4e-6 * n * d / ms:8.1f} GB/s"
        if memory and not name.startswith("torch"):
            share = measured_memory(n, d, name)
            line += "" if share is None else f"   + {100 * share:5.1f} % memory"
        print(line, flush=True)
    place = SHAPES.index((n, d)) if (n, d) in SHAPES[:3] else None
    if place is not None:
        for title, above, below, limits in TARGETS:
            value = ratio(times, above, below)
            verdict = "met" if value <= limits[place] else "MISSED"
            print(f"  {title:46} {value:6.2f}   target {limits[place]:4.2f}  {verdict}", flush=True)


def table_of_single(n: int, d: int, repeats: int, fresh: bool) -> None:
    x = data(n, d)
    times = time_all(single(n, x), x, repeats, fresh)
    print(f"\n({n}, {d:,}): {4e-6 * n * d:,.0f} MB", flush=True)
    for name, values in times.items():
        print(f"  {name:32} {statistics.median(values):10.2f} ms, least {min(values):10.2f}", flush=True)
    for title, above, below, limit in SINGLE:
        value = ratio(times, above, below)
        print(f"  {title:46} {value:6.2f}   target {limit:4.2f}  {'met' if value <= limit else 'MISSED'}", flush=True)


def growth(path: Path) -> None:
    """Milliseconds against n at d = 100,000 and against d at n = 25: measured, written into a table, and drawn."""
    names = ("torch mean(0)", "median", "trimmed-mean", "phocas", "multi-krum", "bulyan", "nnm, multi-krum")
    grid = [*((n, 100_000) for n in (7, 11, 25, 51, 100, 200, 400)), *((25, 10**k) for k in (2, 3, 4, 5, 6, 7))]
    rows = []
    for n, d in dict.fromkeys(grid):  # one of them is on both lines
        calls = {k: v for k, v in entries(n, targets=True).items() if k in names}
        times = time_all(calls, data(n, d), 15)
        rows += [[str(n), str(d), name, f"{statistics.median(times[name]):.4g}"] for name in names]
    table = path.with_suffix(".csv")
    with table.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["n", "d", "rule", "ms"], *rows])
    machine = f"{processor()}, threads: {torch.get_num_threads()}, torch {torch.__version__}"
    draw_growth(table, machine)
    print(f"Table: {table}")


def draw_growth(table: Path, machine: str) -> None:
    """The figure of such a table, beside it, in the style of all others."""
    with table.open(newline="") as file:
        rows = [(int(r["n"]), int(r["d"]), r["rule"], float(r["ms"])) for r in csv.DictReader(file)]
    names = list(dict.fromkeys(name for _, _, name, _ in rows))
    looks = {
        name: Line2D([], [], color=style.PALETTE[i % 8], marker="osD^vP*X"[i % 8], markersize=3.5, linewidth=1.1,
                     linestyle="--" if name.startswith("torch") else "-")
        for i, name in enumerate(names)
    }  # fmt: skip
    found = style.sheet(
        1,
        2,
        2.6,
        title="Cost of a rule against the number of vectors and of parameters",
        detail=f"milliseconds, medians of 15 calls; {machine}",
        heads=["d = 100,000", "n = 25"],
        names=["milliseconds"],
        legend=[(line, name) for name, line in looks.items()],
        left=0.4,
        below=0.36,
        gap=0.55,
        share=False,
    )
    [panels] = found.panels
    for panel, along in zip(panels, (0, 1), strict=True):
        for name, line in looks.items():
            mine = sorted((r[along], r[3]) for r in rows if r[2] == name and r[1 - along] == (100_000, 25)[along])
            panel.plot(*zip(*mine, strict=True), color=line.get_color(), marker=line.get_marker(), markersize=3.5,
                       linewidth=1.1, linestyle=line.get_linestyle())  # fmt: skip
        style.logarithmic(panel, "x", 6)
        style.logarithmic(panel, "y", 6)
        panel.grid(axis="both")
        panel.set_xlabel("nd"[along], labelpad=1)
    for made in style.save(found.figure, table.with_suffix("")):
        print(f"Figure: {made}")


def numpy_partition(n: int, d: int, repeats: int) -> None:
    """Above the sizes of the study: our median beside numpy's partition."""
    x = data(n, d)
    array = x.numpy()
    times = time_all(
        {"median": vg.Median((n - 1) // 2), "numpy partition": lambda _: np.partition(array, n // 2, axis=0)},
        x,
        repeats,
    )
    print(f"({n}, {d:,}): median / numpy.partition {ratio(times, ['median'], ['numpy partition']):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="as 51x79510; several times for several")
    parser.add_argument("--repeats", type=int, default=0, help="rounds; by default as many as the size suggests")
    parser.add_argument("--targets", action="store_true", help="only what the targets compare")
    parser.add_argument("--single", action="store_true", help="rules that read the vectors once, and nothing else")
    parser.add_argument("--fresh", action="store_true", help="let other data pass through the caches before each call")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument(
        "--growth", type=Path, help="measure cost against n and d, and draw it: its .csv, .png and .pdf"
    )
    parser.add_argument("--partition", action="store_true", help="compare with numpy's partition for large n")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}, "
        f"numba {numba.__version__}"
    )
    if options.growth:
        growth(options.growth)
        return
    if options.partition:
        for n in (64, 128, 200, 400, 1000):
            numpy_partition(n, 20_000, options.repeats or 5)
        return
    shapes = SHAPES[:3] if options.single else SHAPES
    if options.shape:
        shapes = tuple((int(n), int(d)) for n, d in (s.split("x") for s in options.shape))
    for n, d in shapes:
        repeats = options.repeats or max(7, min(21, math.ceil(3e8 / (n * d))))
        if options.single:
            table_of_single(n, d, repeats, options.fresh)
        else:
            table(n, d, repeats, options.targets, options.memory, options.fresh)


if __name__ == "__main__":
    main()
