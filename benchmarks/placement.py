"""What a step does more where momentum stands at the workers: the paper's claim C7, apart from everything else.

    python benchmarks/placement.py                      the paper's Fashion-MNIST panel, 24 of 51 Byzantine
    python benchmarks/placement.py --rule median --measure off --steps 400

Of each rule three simulations that differ in nothing but momentum (none, at the server, at the workers) take steps by
turns, ten at a time, on one thread. Reported are medians of the thread's own time, in ms a step; the ratio is workers
over server. Gradients, messages and aggregation are the same three times; what differs is that h momenta of d numbers
are read and written, or one, or none. The floor is that traffic alone: h * d * 8 bytes more a step than at the server,
at the rate at which this machine copies. Recorded figures are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace

import torch

from varangian.core import kernels
from varangian.runs.building import build, computing, open_dataset
from varangian.runs.experiment import Experiment
from varangian.simulation.simulate import Simulation

PANEL = Experiment(dataset="fashion-mnist", workers=51, byzantine=24, attack="little", batch_size=83, learning_rate=0.5)
RULES = ("multi-krum", "median", "trimmed-mean", "phocas", "meamed")
TURN = 10


def variants(e: Experiment) -> dict[str, Simulation]:
    """Simulations that differ in their momentum alone."""
    data = open_dataset(e)
    found = {"none": replace(e, momentum=0.0), "server": replace(e, momentum_at="server"), "workers": e}
    return {name: build(each, data)[0] for name, each in found.items()}


def times(e: Experiment, steps: int) -> dict[str, float]:
    """Median ms of a step of each variant, taken by turns; the first turn compiles and warms, and is left out."""
    with computing(e), kernels.exclusive_threads():
        simulations = variants(e)
        taken: dict[str, list[float]] = {name: [] for name in simulations}
        for turn in range(steps // TURN + 1):
            for name, simulation in simulations.items():
                for _ in range(TURN):
                    start = time.thread_time()
                    simulation.step()
                    if turn:
                        taken[name].append(time.thread_time() - start)
    return {name: 1e3 * statistics.median(each) for name, each in taken.items()}


def copying(numbers: int) -> float:
    """ms to read and write as many float32 numbers once, the least of twenty."""
    source, target = torch.ones(numbers), torch.empty(numbers)
    least = float("inf")
    for _ in range(20):
        start = time.thread_time()
        target.copy_(source)
        least = min(least, time.thread_time() - start)
    return 1e3 * least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default=PANEL.dataset)
    parser.add_argument("--rule", action="append")
    parser.add_argument("--byzantine", type=int, default=PANEL.byzantine)
    parser.add_argument("--measure", choices=("on", "off"), action="append")
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    e = replace(PANEL, dataset=asked.dataset, byzantine=asked.byzantine, steps=10 * asked.steps, momentum_at="worker")
    h, d = e.workers - e.byzantine, next(iter(variants(e).values())).parameters.numel()
    print(f"{platform.machine()}, torch {torch.__version__}, one thread; n = {e.workers}, f = {e.byzantine}, d = {d:,}")
    print(f"h momenta read and written, at the rate of a copy: {copying(h * d):.2f} ms")
    print(f"{'measures':9} {'rule':14} {'none':>8} {'server':>8} {'workers':>8} {'more, ms':>9} {'ratio':>6}")
    for measure in asked.measure or ("on", "off"):
        for rule in asked.rule or RULES:
            found = times(replace(e, rule=rule, measure=measure == "on"), asked.steps)
            none, server, workers = (found[name] for name in ("none", "server", "workers"))
            print(
                f"{measure:9} {rule:14} {none:8.2f} {server:8.2f} {workers:8.2f} {workers - server:9.2f} "
                f"{workers / server:6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
