"""Who is named a suspect over time, and, where it is known who attacked, how often that is right and how soon."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from .checks import kind_of, shown
from .evidence import recent_suspicion
from .history import SUSPICIOUS, Noun, Report

THRESHOLD = SUSPICIOUS
WINDOW = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class Detection:
    """Whom a threshold on recent suspicion names, and how right it is. ``str()`` of it is a line.

    A worker is *named* in a step where it takes part and its suspicion over its last ``window`` vectors comes to the
    threshold, see :func:`varangian.core.evidence.recent_suspicion`.

    Attributes:
        threshold, window: what names.
        noun: what a worker is.
        workers: [W] their numbers.
        recent: [steps, W] suspicion over the last ``window`` vectors; NaN where the worker takes no part.
        byzantine: [steps, W] who attacks.
    """

    threshold: float
    window: int
    noun: Noun
    workers: tuple[int, ...]
    recent: np.ndarray
    byzantine: np.ndarray

    @property
    def there(self) -> np.ndarray:
        """[steps, W] who takes part."""
        return ~np.isnan(self.recent)

    @property
    def named(self) -> np.ndarray:
        """[steps, W] who is named."""
        return np.where(self.there, self.recent, -1.0) >= self.threshold

    @property
    def precision(self) -> float:
        """Of all namings the share that names an attacker; NaN where nobody is ever named, or nobody attacks."""
        return _share(self.byzantine, self.named) if (self.byzantine & self.there).any() else math.nan

    @property
    def recall(self) -> float:
        """Of all vectors of attackers the share of which the sender is named; NaN without any."""
        return _share(self.named, self.byzantine & self.there)

    @property
    def false_alarms(self) -> float:
        """Of all vectors of honest workers the share of which the sender is named; NaN without any."""
        return _share(self.named, ~self.byzantine & self.there)

    @property
    def delays(self) -> np.ndarray:
        """[W] with how manieth of its attacking vectors an attacker is first named, 1 at the soonest: infinity where it
        never is, NaN of those that never attack."""
        attacking = self.byzantine & self.there
        first = np.where(attacking & self.named, attacking.cumsum(0), np.inf).min(0, initial=np.inf)
        return np.where(attacking.any(0), first, np.nan)

    @property
    def delay(self) -> float:
        """The median of ``delays`` over the attackers; infinity where half of them are never named, NaN without any."""
        known = np.sort(self.delays[~np.isnan(self.delays)])
        return float(known[known.size // 2]) if known.size else math.nan

    @property
    def caught(self) -> tuple[int, ...]:
        """The numbers of the attackers that are named at some time."""
        return self._of(self.named & self.byzantine)

    @property
    def blamed(self) -> tuple[int, ...]:
        """The numbers of the workers that are named at some time while they are honest."""
        return self._of(self.named & ~self.byzantine)

    def at(self, threshold: float) -> Detection:
        """The same with another threshold: ``[found.at(t).recall for t in np.linspace(0.1, 1, 10)]`` is a curve.

        Raises:
            ValueError: the threshold is not > 0 and <= 1.
        """
        return replace(self, threshold=_threshold(threshold))

    def _of(self, marks: np.ndarray) -> tuple[int, ...]:
        return tuple(self.workers[k] for k in np.flatnonzero(marks.any(0)))

    def __str__(self) -> str:
        attackers = int((self.byzantine & self.there).any(0).sum())
        line = f"suspicion >= {self.threshold:g} over {self.window} steps: "
        if attackers:
            soon = "" if math.isinf(self.delay) else f", at half of them with vector {self.delay:g}"
            line += f"names {len(self.caught)} of {attackers} attackers{soon}; recall {self.recall:.0%}, precision "
            line += "- (nobody is named)" if math.isnan(self.precision) else f"{self.precision:.0%}"
            line += ", "
        blamed = f"{len(self.blamed)} honest {self.noun}{'' if len(self.blamed) == 1 else 's'}"
        return (
            f"{line}{blamed} named in {0.0 if math.isnan(self.false_alarms) else self.false_alarms:.1%} of their steps"
        )


def detection(
    report: Report, byzantine: Any = None, *, threshold: float = THRESHOLD, window: int = WINDOW
) -> Detection:
    """Whom a threshold on suspicion names, and, as it is known who attacked, its precision, recall and delay.

    Args:
        report: of any engine, or ``result.workers()`` of a simulated run.
        byzantine: who attacks: numbers of workers, or truth values [W] or [steps, W]; none by default but those that
            the report knows of, as that of a simulated run does.
        threshold: > 0 and <= 1.
        window: over how many of its last vectors a worker's suspicion is taken, >= 1.

    Raises:
        ValueError: something that is none of these.

    Example:
        >>> from varangian.core.history import Evidence, History
        >>> history = History("Median(f=1)", ["here"] * 4)
        >>> for _ in range(30):
        ...     history.step([Evidence(np.full(4, 0.25), np.array([0.1, 0.0, 0.0, 0.8]), np.ones(4, bool), 2)], f=1)
        >>> found = detection(history.report(), byzantine=[3])
        >>> found.precision, round(found.recall, 2), found.delay
        (1.0, 0.6, 13.0)
        >>> print(found)
        suspicion >= 0.5 over 20 steps: names 1 of 1 attackers, at half of them with vector 13; recall 60%, precision \
100%, 0 honest ranks named in 0.0% of their steps
    """
    if not isinstance(report, Report):
        raise ValueError(f"detection needs a report, as of result.workers(), got {kind_of(report)}.")
    if not isinstance(window, Integral) or isinstance(window, bool) or window < 1:
        raise ValueError(f"detection needs an integer window >= 1, got {shown(window)}.")
    there = ~np.isnan(report.suspicion)
    numbers = tuple(standing.worker for standing in report.workers)
    return Detection(
        threshold=_threshold(threshold),
        window=int(window),
        noun=report.noun,
        workers=numbers,
        recent=np.where(there, recent_suspicion(report.suspicion, int(window)), np.nan),
        byzantine=_attackers(report, numbers, byzantine),
    )


def _threshold(value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) <= 1:
        raise ValueError(f"detection needs a threshold > 0 and <= 1, got {shown(value)}.")
    return float(value)


def _attackers(report: Report, numbers: tuple[int, ...], byzantine: Any) -> np.ndarray:
    """[steps, W] of whatever says who attacks."""
    shape = report.suspicion.shape
    if byzantine is None:
        return np.zeros(shape, bool) if report.byzantine is None else report.byzantine
    if not isinstance(byzantine, (np.ndarray, Collection)) or isinstance(byzantine, (str, bytes, dict)):
        raise ValueError(
            f"detection needs byzantine, numbers of {report.noun}s or truth values, got {shown(byzantine)}."
        )
    try:
        found = byzantine if isinstance(byzantine, np.ndarray) else np.array(list(byzantine))
    except ValueError:  # rows of different lengths
        found = np.array([math.nan])
    if found.dtype == bool:
        if found.shape not in (shape, shape[1:]):
            raise ValueError(
                f"detection needs byzantine as truth values of shape {list(shape[1:])} or {list(shape)}, "
                f"got {list(found.shape)}."
            )
        return np.array(np.broadcast_to(found, shape))
    if found.size and (found.dtype.kind not in "iu" or found.ndim != 1):
        raise ValueError(
            f"detection needs byzantine, numbers of {report.noun}s or truth values, got {shown(byzantine)}."
        )
    unknown = sorted(set(found.tolist()) - set(numbers))
    if unknown:
        raise ValueError(
            f"detection needs byzantine among the {len(numbers)} {report.noun}s of the report, got {unknown}."
        )
    return np.array(np.broadcast_to(np.isin(numbers, found), shape))


def _share(of: np.ndarray, among: np.ndarray) -> float:
    return float(of[among].mean()) if among.any() else math.nan


__all__ = ["Detection", "detection"]
