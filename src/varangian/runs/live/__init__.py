"""What others can follow of a run while it goes: a file of events, TensorBoard, and who listens in Python."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ...simulation.metrics import Measures
from ..experiment import Experiment
from ..folders import BOARD, EVENTS
from ..results import Evaluation, Result

Listener = Callable[[Measures | Evaluation], object]


class Outlet(Protocol):
    """Where a run is written to for whoever follows it. Rows come in the order of the run, an evaluation before the
    measures of its step; numbers have the 9 digits of the tables."""

    def begin(self, began: int, measures: Sequence[Measures], evaluations: Sequence[Evaluation]) -> None:
        """The run goes on from a step, and this is what it had come to."""
        ...

    def measure(self, row: Measures, cells: Sequence[str]) -> None:
        """The measures of a step, and the same as text."""
        ...

    def evaluate(self, newest: Evaluation) -> None: ...

    def interrupt(self, error: BaseException | None) -> None:
        """The run ends before its end, by an error or by a signal."""
        ...

    def complete(self, result: Result) -> None: ...


def outlets_of(folder: Path, experiment: Experiment, events: bool, tensorboard: bool) -> list[Outlet]:
    """Those that are asked for, and those that the run already has."""
    found: list[Outlet] = []
    if events or (folder / EVENTS).exists():
        from .events import RunEvents

        found.append(RunEvents(folder, experiment))
    if tensorboard or (installed() and any(folder.glob(BOARD))):
        from .board import Board  # takes a second to import

        found.append(Board(folder, experiment))
    return found


def installed() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


def check_installed() -> None:
    """
    Raises:
        ValueError: tensorboard is not installed.
    """
    if not installed():
        raise ValueError("tensorboard: the package of that name is missing: pip install 'varangian[tensorboard]'.")
