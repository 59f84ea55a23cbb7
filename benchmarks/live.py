"""What it costs that a run can be followed: events.jsonl and TensorBoard, as a share of the run's own time.

    python benchmarks/live.py                     digits, n = 15, and images of Fashion-MNIST's size, n = 51; one thread

Counted is the processor time of what writes, in the run itself and in TensorBoard's thread, against that of all of the
run: of seconds that others take from the processor nothing is counted. Recorded figures are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

from varangian import Experiment, run
from varangian.runs.live.board import Board
from varangian.runs.live.events import RunEvents

RUNS = {
    "digits, n = 15": Experiment(rule="median", attack="little", workers=15, byzantine=3, steps=3000),
    "28 x 28 images, n = 51": Experiment(
        dataset="synthetic(shape=(1, 28, 28), train=10_000, test=1000)", rule="median", attack="little", workers=51,
        byzantine=24, steps=150, evaluate_every=25,
    ),
}  # fmt: skip


def cost(e: Experiment, kind: type[RunEvents] | type[Board]) -> tuple[float, float, int]:
    """Seconds of the processor for writing and for the rest, and how many bytes were written."""
    taken = [0.0]

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return method(*arguments)
            finally:
                taken[0] += time.thread_time() - start

        return call

    with tempfile.TemporaryDirectory() as out, ExitStack() as stack:
        for name in ("measure", "evaluate"):
            stack.enter_context(mock.patch.object(kind, name, timed(getattr(kind, name))))
        started, ours = time.process_time(), time.thread_time()
        result = run(e, out, events=kind is RunEvents, tensorboard=kind is Board)
        everything, ours = time.process_time() - started, time.thread_time() - ours
        assert threading.active_count() == 1 or kind is Board
        writing = taken[0] + (everything - ours if kind is Board else 0.0)
        assert result.folder is not None
        size = sum(path.stat().st_size for path in result.folder.glob("events.*"))
    return writing, everything - writing, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    for e in RUNS.values():  # kernels are loaded
        run(Experiment.from_dict(e.to_dict() | {"steps": 2}))
    print(f"{'':24} {'':12} {'ms a step':>9} {'µs written':>10} {'share':>7} {'bytes a step':>12}")
    for name, e in RUNS.items():
        for kind in (RunEvents, Board):
            writing, rest, size = cost(e, kind)
            what = "events" if kind is RunEvents else "TensorBoard"
            print(
                f"{name:24} {what:12} {1e3 * rest / e.steps:9.2f} {1e6 * writing / e.steps:10.1f} "
                f"{writing / rest:7.2%} {size / e.steps:12.0f}"
            )


if __name__ == "__main__":
    main()
