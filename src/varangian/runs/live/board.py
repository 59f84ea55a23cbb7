"""Measures and evaluations for TensorBoard, by torch's own writer, in the folder of the run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard.writer import SummaryWriter

from ...simulation.metrics import Measures
from ..experiment import Experiment
from ..folders import BOARD
from ..results import Evaluation, Result

BETWEEN = 0.2  # seconds, at least, between two rows of measures: a row takes half a millisecond, most of it in a thread
FLUSHED = 2  # seconds until they are in the file
MOST = 1000  # rows of what came before; TensorBoard shows no more of a curve


class Board:
    """Every evaluation, and up to five rows of measures a second, the first and the last among them."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        self._writer: Any = None
        self._folder, self._experiment = folder, experiment
        self._last = 0.0
        self._waiting: Measures | None = None

    def begin(self, began: int, measures: Sequence[Measures], evaluations: Sequence[Evaluation]) -> None:
        present = list(self._folder.glob(BOARD))
        if not began:  # no checkpoint knows anything of what they hold
            for path in present:
                path.unlink(missing_ok=True)
            present = []
        known = bool(evaluations) and evaluations[-1].step == began
        # What an earlier session wrote and no checkpoint knows, TensorBoard then forgets.
        purged = began + known if present else None
        self._writer = SummaryWriter(str(self._folder), purge_step=purged, flush_secs=FLUSHED)
        if not present:
            settings = json.dumps(self._experiment.to_dict(), indent=4)
            self._writer.add_text("settings", "".join(f"    {line}\n" for line in settings.splitlines()))
            for newest in evaluations:
                self.evaluate(newest)
            for i in range(0, len(measures), max(1, len(measures) // MOST)):
                self._measure(measures[i])

    def measure(self, row: Measures, cells: Sequence[str]) -> None:
        now = time.monotonic()
        if now - self._last < BETWEEN:
            self._waiting = row
        else:
            self._last, self._waiting = now, None
            self._measure(row)

    def _measure(self, row: Measures) -> None:
        self._add(row.step, {f"measures/{name}": getattr(row, name) for name in row.columns[2:]})

    def evaluate(self, newest: Evaluation) -> None:
        found = {"accuracy": newest.accuracy, "loss": newest.loss, "validation_accuracy": newest.validation_accuracy}
        found |= {"validation_loss": newest.validation_loss} | dict(newest.metrics)
        self._add(newest.step, {f"evaluation/{name}": value for name, value in found.items()})

    def _add(self, step: int, values: dict[str, float | None]) -> None:
        """One record for all of them, which takes a seventh of the time that one for each takes."""
        told = [Summary.Value(tag=tag, simple_value=v) for tag, v in values.items() if v is not None]
        self._writer.file_writer.add_summary(Summary(value=told), step)

    def interrupt(self, error: BaseException | None) -> None:
        if self._writer is not None:
            writer, waiting = self._writer, self._waiting
            if waiting is not None:
                self._measure(waiting)
            self._writer = None
            writer.close()

    def complete(self, result: Result) -> None:
        if result.stopped is not None:
            self._writer.add_text("stopped", result.stopped, len(result.measures))
        self.interrupt(None)
