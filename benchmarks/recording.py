"""What it costs that every step tells of each worker, and that this is written down.

    python benchmarks/recording.py                          digits n = 15 and Fashion-MNIST n = 51, by turns
    python benchmarks/recording.py --dataset digits --steps 2000

For each rule one simulation that tells and writes workers.bin, as a run with a folder does, and one that does neither
take a step in turn, whichever is first changing; everything else is measured in both. Times are of the processor, which
say the same on a machine that is busy. The cost is the difference of the medians over all steps, and its share of the
step without. Recorded figures are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import statistics
import tempfile
import time
from dataclasses import replace

import torch

from varangian.core import kernels
from varangian.core.accounts import Observed
from varangian.core.stages import Decision
from varangian.runs.building import build, computing, open_dataset
from varangian.runs.experiment import Experiment
from varangian.runs.results import layout_of
from varangian.runs.workers import Recorder
from varangian.simulation.simulate import Simulation

CASES = {
    "digits": Experiment(workers=15, byzantine=3, attack="empire"),
    "fashion-mnist": Experiment(dataset="fashion-mnist", workers=51, byzantine=12, attack="empire", batch_size=83),
}
RULES = ("multi-krum", "median", "trimmed-mean", "bulyan", "geometric-median")


def silent(simulation: Simulation) -> Simulation:
    """The same, in which nothing is told of workers."""

    def nothing(decision: Decision) -> Observed:
        return Observed([])

    simulation._observed = nothing  # type: ignore[method-assign]
    return simulation


def costs(e: Experiment) -> tuple[float, float]:
    """(ms a step without, ms that telling and writing add)."""
    dataset = open_dataset(e)
    telling, silenced = build(e, dataset)[0], silent(build(e, dataset)[0])
    digest = hashlib.sha256()
    taken: list[tuple[float, float]] = []
    with tempfile.TemporaryFile() as file, computing(e), kernels.exclusive_threads():

        def write(records: bytes) -> None:
            file.write(records)
            digest.update(records)

        recorder = Recorder(layout_of(e), write)

        def tell() -> None:
            telling.step()
            recorder.add(telling.accounts[-1], telling.weights)

        for turn in range(e.steps):
            times = {}
            for step in (tell, silenced.step) if turn % 2 else (silenced.step, tell):
                start = time.process_time()
                step()
                times[step == tell] = time.process_time() - start
            taken.append((times[False], times[True]))
    taken = taken[len(taken) // 10 :]  # compiled by then
    without, told = (1e3 * statistics.median(each) for each in zip(*taken, strict=True))
    return without, told - without


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=CASES, action="append")
    parser.add_argument("--rule", action="append")
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads")
    print(f"{'dataset':14} {'rule':18} {'ms a step':>10} {'us more':>9} {'share':>7} {'kB a 1,000 steps':>17}")
    for dataset in asked.dataset or CASES:
        for rule in asked.rule or RULES:
            e = replace(CASES[dataset], rule=rule, steps=asked.steps)
            step, more = costs(e)
            kept = layout_of(e).size(1000) / 1e3
            print(f"{dataset:14} {rule:18} {step:10.2f} {1e3 * more:9.0f} {more / step:7.1%} {kept:17.0f}", flush=True)


if __name__ == "__main__":
    main()
