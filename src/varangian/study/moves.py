"""Where momentum stood along a run in which the server moves it, as reports keep and draw it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runs.files import number_of, read_columns, whole_of
from ..simulation.metrics import PLACEMENT, Measures

MOST = 100  # steps that are kept of a run
COLUMNS = ("step", *PLACEMENT[:4])


@dataclass(frozen=True)
class Move:
    """A step of such a run: what stands in the columns of metrics.csv of these names.

    Attributes:
        step: of the run.
        place: 1 at the workers, 0 at the server.
        mu: in [0, 1).
        persistent: None before it is seen.
        turning: in [0, 1].
    """

    step: int
    place: float
    mu: float
    persistent: float | None
    turning: float

    def row(self) -> list[str]:
        """Its cells, in the order of ``COLUMNS``."""
        persistent = "" if self.persistent is None else repr(self.persistent)
        return [str(self.step), f"{self.place:g}", repr(self.mu), persistent, repr(self.turning)]


def moves_of(measures: Sequence[Measures]) -> tuple[Move, ...]:
    """Of a run that is at hand; none where momentum does not move."""
    if not len(measures) or measures[0].momentum_place is None:
        return ()
    kept = (measures[i] for i in _kept(len(measures)))
    rows = (
        [str(m.step), *("" if (v := getattr(m, name)) is None else f"{v:.9g}" for name in COLUMNS[1:])] for m in kept
    )
    return tuple(move(row) for row in rows)


def read_moves(path: Path) -> tuple[Move, ...]:
    """Of a metrics.csv of a run in which momentum moves.

    Raises:
        ValueError: it cannot be read as that.
    """
    rows = list(read_columns(path, COLUMNS, COLUMNS))
    return tuple(move(rows[i]) for i in _kept(len(rows)))


def move(cells: Sequence[str]) -> Move:
    """Of a row of cells, in the order of ``COLUMNS``.

    Raises:
        ValueError: one is none of its column.
    """
    step, place, mu, persistent, turning = cells
    if place not in ("0", "1"):
        raise ValueError(f"momentum_place: must be 0 or 1, got {place}.")
    seen = persistent not in ("", "nan") and math.isfinite(float(persistent))
    return Move(
        whole_of(step, "step"),
        float(place),
        number_of(mu, "momentum_mu", 0, 1),
        number_of(persistent, "momentum_persistent") if seen else None,
        number_of(turning, "momentum_turning", 0, 1),
    )


def mean_moves(runs: Iterable[Sequence[Move]]) -> list[Move]:
    """The means over runs, at the steps that all have; the place is the share of them at the workers."""
    found = [{m.step: m for m in run} for run in runs if run]
    steps = sorted(set(found[0]).intersection(*found[1:])) if found else []
    return [_mean_move(step, [run[step] for run in found]) for step in steps]


def _mean_move(step: int, here: Sequence[Move]) -> Move:
    seen = [m.persistent for m in here if m.persistent is not None]
    place, mu, turning = (_mean(values) for values in zip(*((m.place, m.mu, m.turning) for m in here), strict=True))
    return Move(step, place, mu, _mean(seen) if seen else None, turning)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _kept(n: int) -> list[int]:
    """At most MOST of n rows, with the last one."""
    every = max(1, -(-n // MOST))
    return sorted({*range(0, n, every), n - 1} if n else ())
