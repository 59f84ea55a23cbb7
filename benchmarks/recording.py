"""What it costs that every step tells of each worker, and that this is written down.

    python benchmarks/recording.py                          digits n = 15 and Fashion-MNIST n = 51
    python benchmarks/recording.py --dataset digits --steps 2000

Of each rule a simulation that does what a run with a folder does. What is told and written is timed where it is done,
in the midst of the steps: its median, and its share of the median step. Times are of the processor, in the thread that
takes the steps. Recorded figures are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from varangian.core import kernels
from varangian.core.accounts import Observed
from varangian.runs.building import build, computing, open_dataset
from varangian.runs.experiment import Experiment
from varangian.runs.results import layout_of
from varangian.runs.workers import Recorder

CASES = {
    "digits": Experiment(workers=15, byzantine=3, attack="empire"),
    "fashion-mnist": Experiment(dataset="fashion-mnist", workers=51, byzantine=12, attack="empire", batch_size=83),
}
RULES = ("multi-krum", "median", "trimmed-mean", "bulyan", "geometric-median")


def costs(e: Experiment) -> tuple[float, float]:
    """(ms a step, ms of it that telling and writing take)."""
    simulation, digest, spent = build(e, open_dataset(e))[0], hashlib.sha256(), [0.0]

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return work(*arguments)
            finally:
                spent[0] += time.thread_time() - start

        return call

    simulation._sampled = timed(simulation._sampled)  # type: ignore[method-assign]
    simulation._observed = timed(simulation._observed)  # type: ignore[method-assign]
    told = Observed.told
    taken: list[tuple[float, float]] = []
    with tempfile.TemporaryFile() as file, computing(e), kernels.exclusive_threads():

        def write(records: bytes) -> None:
            file.write(records)
            digest.update(records)

        recorder = Recorder(layout_of(e), write)
        add = timed(recorder.add)
        Observed.told = timed(told)  # type: ignore[method-assign]
        try:
            for _ in range(e.steps):
                spent[0], start = 0.0, time.thread_time()
                simulation.step()
                add(simulation.accounts[-1], simulation.weights)
                taken.append((time.thread_time() - start, spent[0]))
        finally:
            Observed.told = told  # type: ignore[method-assign]
    taken = taken[len(taken) // 10 :]  # compiled by then
    step, telling = (1e3 * statistics.median(each) for each in zip(*taken, strict=True))
    return step, telling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=CASES, action="append")
    parser.add_argument("--rule", action="append")
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads")
    print(f"{'dataset':14} {'rule':18} {'ms a step':>10} {'us of it':>9} {'share':>7} {'kB a 1,000 steps':>17}")
    for dataset in asked.dataset or CASES:
        for rule in asked.rule or RULES:
            e = replace(CASES[dataset], rule=rule, steps=asked.steps)
            step, telling = costs(e)
            kept = layout_of(e).size(1000) / 1e3
            print(
                f"{dataset:14} {rule:18} {step:10.2f} {1e3 * telling:9.0f} {telling / step:7.1%} {kept:17.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
