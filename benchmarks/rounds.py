"""What it costs that of many clients some are in a step: time and memory, by what becomes of the momenta of the absent.

    python benchmarks/rounds.py                          1,000 clients, 20 a round, digits and Fashion-MNIST
    python benchmarks/rounds.py --clients 10000 --steps 400 --dataset digits

20 workers who are in every step, and each policy, take a step in turn; times are medians over the second half of the
steps, when nearly all have been in a round, with their ratio to the 20 workers' in the same turn. Nobody attacks, so
that all have 20 gradients to compute. Memory is that of a process of its own for each. Recorded figures are in
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

from varangian.core import kernels
from varangian.runs.building import build, computing, open_dataset
from varangian.runs.experiment import Experiment
from varangian.simulation.simulate import Simulation

POLICIES = ("kept", "kept-on-disk", "decayed", "dropped")


def cases(e: Experiment, clients: int) -> dict[str, Experiment]:
    return {"all workers": e} | {policy: replace(e, clients=clients, absent=policy) for policy in POLICIES}


def simulation_of(e: Experiment) -> Simulation:
    return build(e, open_dataset(e))[0]


def times(e: Experiment, clients: int) -> dict[str, tuple[float, ...]]:
    """Of each case (ms a step, its ratio to all workers', ms of processor time, its ratio), after the first half; and
    how much a step of the first half takes, ms."""
    simulations = {name: simulation_of(case) for name, case in cases(e, clients).items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in simulations}
    with computing(e), kernels.exclusive_threads():
        for _ in range(e.steps):
            for name, simulation in simulations.items():
                start = time.perf_counter(), time.process_time()
                simulation.step()
                taken[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    found = {}
    half = e.steps // 2
    for name, each in taken.items():
        row = []
        for k in range(2):
            late = [t[k] for t in each[half:]]
            ratios = [t[k] / base[k] for t, base in zip(each[half:], taken["all workers"][half:], strict=True)]
            row += [1e3 * statistics.median(late), statistics.median(ratios)]
        found[name] = (*row, 1e3 * statistics.median(t[0] for t in each[:half]))
    return found


def resident() -> tuple[float, float]:
    """MiB that this process holds: of its own, and of files and shared memory, which the system may take back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return held["RssAnon"], held["RssFile"] + held["RssShmem"]


def memory(e: Experiment) -> tuple[float, float, float]:
    """MiB (own, of files) more at the end than after the first steps; and how many are remembered at the end."""
    with computing(e):
        simulation = simulation_of(e)
        last = simulation.step()
        for _ in range(4):
            last = simulation.step()
        before = resident()
        for _ in range(e.steps - 5):
            last = simulation.step()
        after = resident()
        return after[0] - before[0], after[1] - before[1], last.remembering or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", default=["digits", "fashion-mnist"])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {kernels.threads()} threads")
    for name in args.dataset:
        e = Experiment(
            dataset=name, workers=args.workers, byzantine=args.workers // 5, rule="median", steps=args.steps,
            batch_size=83,
        )  # fmt: skip
        d = simulation_of(e).gradients.d
        print(f"\n{name}, d = {d:,}: {args.workers} workers; {args.clients:,} clients, {args.workers} a round")
        print(f"{'':14}{'ms':>8}{'ratio':>8}{'CPU ms':>8}{'ratio':>8}{'first':>8}{'MiB':>8}{'files':>8}{'held':>7}")
        timed = times(e, args.clients)
        for case, settings in cases(e, args.clients).items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                own, files, held = pool.apply(memory, (settings,))
            ms, ratio, cpu, cpu_ratio, first = timed[case]
            print(
                f"{case:14}{ms:8.2f}{ratio:8.3f}{cpu:8.2f}{cpu_ratio:8.3f}{first:8.2f}{own:8.0f}{files:8.0f}{held:7.0f}"
            )


if __name__ == "__main__":
    main()
