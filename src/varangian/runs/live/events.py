"""events.jsonl: what happens in a run, a sweep or a tuning, a JSON object a line, written as it happens.

What a line holds, says ``schema.py``. Lines of steps and of evaluations are the same bytes however often a run was
interrupted: when it goes on, those that its checkpoint does not know are cut off, and where they are not all there,
they are written anew from the tables. Times stand in the other lines only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...core.checks import cut, printable
from ...core.references import said_of
from ...simulation.metrics import Measures
from ..experiment import Experiment
from ..files import no_follow
from ..folders import EVENTS
from ..results import Evaluation, Result

VERSION = 1
LATEST = 0.25  # seconds after which others can read what was written, if anything is written after it


class EventLog:
    """A file of events that only grows.

    Args:
        path: of it.
        keep: how many bytes of it stay, if it is there already.

    Raises:
        OSError: it cannot be written, here and in what it does.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        with self._explained():
            self._file = open(path, "r+b" if keep else "wb", opener=no_follow)  # noqa: SIM115 (close() does)
            self._file.truncate(keep)
            self._file.seek(keep)
        self._flushed = time.monotonic()

    def write(self, event: str, **values: Any) -> None:
        """An event with its time, which others can read at once."""
        self.line(json.dumps({"event": event, "time": now()} | values).encode() + b"\n", at_once=True)

    def line(self, line: bytes, at_once: bool = False) -> None:
        with self._explained():
            self._file.write(line)
            if at_once or time.monotonic() - self._flushed >= LATEST:
                self._file.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        with self._explained():
            self._file.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror or error}, while writing to {self.path}.") from error


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RunEvents:
    """Those of a run, in its folder."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        self._path, self._experiment = folder / EVENTS, experiment
        self._log: EventLog | None = None
        self._step = 0

    def begin(self, began: int, measures: Sequence[Measures], evaluations: Sequence[Evaluation]) -> None:
        before = list(_lines(measures, evaluations))
        kept = _kept(self._path, before) if before else 0
        self._log, self._step = EventLog(self._path, kept or 0), began
        if kept is None:
            self._begun(0)
            for line in before:
                self._log.line(line)
        self._begun(began)

    def _begun(self, step: int) -> None:
        e = self._experiment
        assert self._log is not None
        self._log.write(
            "begun", version=VERSION, what="run", name=e.name, digest=e.digest, step=step, steps=e.steps,
            pid=os.getpid(), settings=e.to_dict(),
        )  # fmt: skip

    def measure(self, row: Measures, cells: Sequence[str]) -> None:
        assert self._log is not None
        self._log.line(_step_line(row.columns, cells))
        self._step = row.step + 1

    def evaluate(self, newest: Evaluation) -> None:
        assert self._log is not None
        self._log.line(_evaluation_line(newest), at_once=True)

    def interrupt(self, error: BaseException | None) -> None:
        if self._log is None:
            return
        log, self._log = self._log, None
        if error is None or isinstance(error, (KeyboardInterrupt, SystemExit)):
            log.write("interrupted", step=self._step)
        else:
            log.write("failed", step=self._step, why=one_line(said_of(error)))
        log.close()

    def complete(self, result: Result) -> None:
        assert self._log is not None
        log, self._log = self._log, None
        if result.stopped is not None:
            log.write("stopped", step=self._step, why=one_line(result.stopped))
        log.write("complete", what="run", result=result.summary())
        log.close()


def one_line(text: str) -> str:
    return cut(printable(" ".join(text.split())))


def _lines(measures: Sequence[Measures], evaluations: Sequence[Evaluation]) -> Iterator[bytes]:
    """Those of the steps and evaluations so far, in their order."""
    rest = list(evaluations)
    for row in measures:
        while rest and rest[0].step <= row.step:
            yield _evaluation_line(rest.pop(0))
        yield _step_line(row.columns, row.row())
    yield from map(_evaluation_line, rest)


def _step_line(columns: Sequence[str], cells: Sequence[str]) -> bytes:
    values = [f'"{name}": {_value(cell)}' for name, cell in zip(columns, cells, strict=True) if cell]
    return f'{{"event": "step", {", ".join(values)}}}\n'.encode()


def _evaluation_line(e: Evaluation) -> bytes:
    found = {"accuracy": e.accuracy, "loss": e.loss, "validation_accuracy": e.validation_accuracy}
    values = _named(found | {"validation_loss": e.validation_loss})
    metrics = f', "metrics": {{{_named(e.metrics)}}}' if e.metrics else ""
    return f'{{"event": "evaluation", "step": {e.step}, {values}{metrics}}}\n'.encode()


def _named(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{json.dumps(name)}: {_value(f'{v:.9g}')}" for name, v in values.items() if v is not None)


def _value(cell: str) -> str:
    """JSON has numbers for all but NaN and the infinities, which are text here."""
    return f'"{cell}"' if cell[-1] in "nf" else cell


_BETWEEN = tuple(b'{"event": "%b"' % name for name in (b"begun", b"interrupted", b"failed"))


def _kept(path: Path, before: Sequence[bytes]) -> int | None:
    """How many bytes of a file hold exactly what came before, and who began and interrupted it; None if none do."""
    found, size, place = 0, 0, 0
    longest = 2 * max(map(len, before)) + 2**20  # settings are a line too
    try:
        with open(path, "rb", opener=no_follow) as file:
            for line in iter(lambda: file.readline(longest), b""):
                place += len(line)
                if line.startswith((b'{"event": "step"', b'{"event": "evaluation"')):
                    if found == len(before):
                        break
                    if line != before[found]:
                        return None
                    found += 1
                elif not line.startswith(_BETWEEN) or not line.endswith(b"}\n"):
                    break
                size = place
    except OSError:
        return None
    return size if found == len(before) else None
