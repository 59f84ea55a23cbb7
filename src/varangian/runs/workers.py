"""workers.bin: what every step told of each worker's vector, 12 bytes a worker and step.

A line of text says what follows, for whoever reads it with other tools:

    {"format": 1, "workers": 51, "step": ["columns <u4"], "worker": ["weight <f2", "score <f4", ...]}

then one record a step, as long as metrics.csv has rows: a number of columns and, for each worker in the order of its
rows, its weight, score, distance and cosine to the aggregate, all little-endian and without gaps. An infinite distance
is of a vector that is not finite, one of minus infinity of one that a quarantine kept from the rule; NaN is what is not
known. Where workers count differently a fifth number says how
much each counted.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.accounts import Account
from .files import no_follow

FIELDS = (("weight", "<f2"), ("score", "<f4"), ("distance", "<f4"), ("cosine", "<f2"))
COUNTS = ("counts", "<f4")
TOGETHER = 64  # steps that are packed at a time
MAX_BYTES = 2**32  # that are read
GREATEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Layout:
    """How the records of a run lie in the file.

    Args:
        workers: n, how many vectors there are in a step.
        weighted: whether they count differently.
    """

    workers: int
    weighted: bool = False

    @property
    def dtype(self) -> np.dtype:
        """Of one step."""
        fields = [*FIELDS, COUNTS] if self.weighted else [*FIELDS]
        return np.dtype([("columns", "<u4"), ("worker", fields, (self.workers,))])

    @property
    def header(self) -> bytes:
        """The line of text that the file begins with."""
        of_step = self.dtype
        found = {
            "format": 1,
            "workers": self.workers,
            "step": ["columns <u4"],
            "worker": [f"{name} {of_step['worker'].base[name].str}" for name in of_step["worker"].base.names or ()],
        }
        return (json.dumps(found) + "\n").encode()

    def size(self, steps: int) -> int:
        """Of a file of so many steps, in bytes."""
        return len(self.header) + steps * self.dtype.itemsize


class Recorder:
    """Makes the records of a run: one a step, packed some steps at a time, since each by itself takes several times as
    long.

    Args:
        layout: of the records.
        write: is handed them, as bytes.
    """

    def __init__(self, layout: Layout, write: Callable[[bytes], object]) -> None:
        self.layout, self._write = layout, write
        self._waiting: list[tuple[Account, np.ndarray | None]] = []

    def add(self, account: Account, counts: np.ndarray | None = None) -> None:
        """What a step told, and how much each worker counted where that is recorded."""
        self._waiting.append((account, counts))
        if len(self._waiting) == TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Hands over what waits."""
        told, self._waiting = self._waiting, []
        if not told:
            return
        steps = np.zeros(len(told), self.layout.dtype)
        worker = steps["worker"]
        finite, shown = np.array([a.finite for a, _ in told]), np.array([a.shown for a, _ in told])
        with np.errstate(over="ignore", invalid="ignore"):
            worker["weight"] = [a.weight for a, _ in told]
            worker["score"] = np.minimum([a.score for a, _ in told], GREATEST)
            distance = np.where(finite, np.minimum([a.distance for a, _ in told], GREATEST), np.inf)
            worker["distance"] = np.where(shown, distance, -np.inf)
            worker["cosine"] = [a.cosine for a, _ in told]
        if self.layout.weighted:
            worker["counts"] = [counts for _, counts in told]
        steps["columns"] = [a.columns for a, _ in told]
        self._write(steps.tobytes())


@dataclass(frozen=True, eq=False)
class Recorded:
    """What all steps told of the n workers of each.

    Attributes:
        weight, score, distance, cosine: [steps, n] see :class:`.Account`; NaN where they are not known.
        finite, excluded: [steps, n].
        counts: [steps, n] what each counted; None where all count the same.
        columns: [steps] how many columns these were told by; 0 where they are exact.
    """

    weight: np.ndarray
    score: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    finite: np.ndarray
    excluded: np.ndarray
    counts: np.ndarray | None
    columns: np.ndarray


def recorded(records: bytes, layout: Layout) -> Recorded:
    """The records of a run as arrays.

    Raises:
        ValueError: they hold what no step tells.
    """
    steps = np.frombuffer(records, layout.dtype)
    worker = steps["worker"]
    weight, score, distance, cosine = (worker[name].astype(np.float64) for name, _ in FIELDS)
    counts = worker["counts"].astype(np.float64) if layout.weighted else None
    with np.errstate(invalid="ignore"):
        for name, values, wrong in (
            ("weight", weight, np.isinf(weight)),
            ("score", score, (score < 0) | np.isinf(score)),
            ("distance", distance, (distance < 0) & ~np.isneginf(distance)),
            ("cosine", cosine, np.abs(cosine) > 1.01),
            *((("counts", counts, ~((counts >= 0) & (counts < np.inf))),) if counts is not None else ()),
        ):
            if wrong.any():
                step, place = np.argwhere(wrong)[0]
                raise ValueError(f"step {step}: the {name} of worker {place} is {values[step, place]:.4g}")
    finite, excluded = ~np.isposinf(distance), np.isneginf(distance)
    distance[np.isinf(distance)] = np.nan
    return Recorded(weight, score, distance, cosine, finite, excluded, counts, steps["columns"].astype(np.int64))


def read_records(path: Path, layout: Layout, steps: int) -> bytes:
    """The records in a file of a run of so many steps. No more is read than that has.

    Raises:
        ValueError: it is something else.
        OSError: it cannot be opened.
    """
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {'a link, and not followed' if stat.S_ISLNK(mode) else 'not a plain file'}.")
    size, header = layout.size(steps), layout.header
    if size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes.")
    there = path.stat().st_size
    if there != size:
        raise ValueError(f"{path} has {there:,} bytes, and {steps:,} steps of {layout.workers} workers have {size:,}.")
    with open(path, "rb", opener=no_follow) as file:
        content = file.read(size)
    if not content.startswith(header):
        raise ValueError(f"{path} does not begin with the line that such a file begins with: {header.decode().strip()}")
    return content[len(header) :]
