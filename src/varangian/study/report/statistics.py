"""What pairs of runs say together: an interval and a test that count no more evidence than there is.

The runs of a study are not independent of each other in two ways. Those of one configuration resemble each other, and
so do those of one seed, since all configurations start from the same parameters and see the same batches there. So the
gains stand in a table, a row a configuration and a column a seed, and their mean is as uncertain as rows, columns and
cells make it:

    gain = mean + effect of the configuration + effect of the seed + rest
    V    = variance of the mean = V_configuration + V_seed - V_rest

each estimated by its mean square. A few seeds leave such estimates uncertain themselves, so true variances that may
have given them are drawn, and then errors of the mean: a parametric bootstrap. With a single configuration this is
Student's t; with few of both it promises less than it could, never more.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..paper import Measure, Pair, mean_gain

DRAWS = 100_000
CONFIDENCE = 0.95
RANGE = 200.0  # points between the least and the greatest gain


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far it can be trusted.

    Attributes:
        low, high: 95 % interval; None where the data cannot tell: one seed only, or no two values that differ.
        p: how often a mean as far from zero would come up were the true one zero; None where there is no interval.
        configurations, seeds: how many of each there are. With one configuration, interval and p are about that one.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    configurations: int
    seeds: int


@dataclass(frozen=True)
class Summary:
    """The gains of some pairs, in points.

    Attributes:
        pairs, raised, lowered: how many there are, and with a positive and a negative gain.
        mean: of the gains: :func:`varangian.study.paper.mean_gain`.
        median: of the gains.
        low, high, p, configurations, seeds: see :class:`Estimate`.
    """

    pairs: int
    raised: int
    lowered: int
    mean: float
    median: float
    low: float | None
    high: float | None
    p: float | None
    configurations: int
    seeds: int

    @property
    def says(self) -> bool:
        """Whether there is an interval that leaves out some gain that accuracies could have, from -100 to 100."""
        return self.low is not None and self.high is not None and self.high - self.low < RANGE


def summarize(pairs: Sequence[Pair], measure: Measure = "max") -> Summary:
    """The summary of at least one pair."""
    gains = [pair.gain(measure) for pair in pairs]
    configurations: dict[tuple[object, ...], dict[int, float]] = {}
    for pair, gain in zip(pairs, gains, strict=True):
        e = pair.experiment
        configuration = (pair.server.source, replace(e, seed=0, measure=True).digest)
        configurations.setdefault(configuration, {})[e.seed] = gain
    found = estimate(list(configurations.values()))
    raised, lowered = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
    return Summary(
        *(len(gains), raised, lowered, mean_gain(pairs, measure), statistics.median(gains)),
        *(found.low, found.high, found.p, found.configurations, found.seeds),
    )


def bootstrap(groups: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """The interval of the mean of all values: a group a configuration, its values those of the first, second ... seed.

    Always the same for the same data; (None, None) where they cannot tell.

    Example:
        >>> [round(end, 1) for end in bootstrap([[1.0, 5.0, 9.0, -3.0, 20.0]])]
        [-4.5, 17.3]
        >>> bootstrap([[2.0, 2.0, 2.0]]), bootstrap([[1.0], [4.0]])
        ((None, None), (None, None))
    """
    found = estimate([dict(enumerate(group)) for group in groups], confidence)
    return found.low, found.high


def estimate(configurations: Sequence[Mapping[int, float]], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of all values, with interval and test.

    Args:
        configurations: of each its values by seed; a seed is the same in all of them, and need not be in each.
        confidence: how often the interval is to hold the true mean.

    Raises:
        ValueError: there is no value, or one that is not finite.
    """
    rows = np.repeat(np.arange(len(configurations)), [len(c) for c in configurations])
    seeds, columns = np.unique([s for c in configurations for s in c], return_inverse=True)
    values = np.array([v for c in configurations for v in c.values()], dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("an estimate needs at least one value, all of them finite.")
    mean, count = float(values.mean()), len(np.unique(rows))
    parts = _variances(values - mean, rows, columns)
    if not any(v > (1e-12 * np.abs(values).max()) ** 2 for v, _ in parts):  # all the same but for rounding
        return Estimate(mean, None, None, None, count, len(seeds))
    drawn = np.abs(_errors(parts))
    reach = float(np.quantile(drawn, confidence))
    p = float((1 + np.count_nonzero(drawn >= abs(mean))) / (1 + len(drawn)))
    return Estimate(mean, mean - reach, mean + reach, p, count, len(seeds))


def _errors(parts: Sequence[tuple[float, int]]) -> np.ndarray:
    """How far the mean may lie from the true one, drawn, were these its estimated variances with their degrees."""
    true = [v / _drawn(number, degrees) for number, (v, degrees) in enumerate(parts)]  # what may have given them
    variance = true[0]
    if len(true) > 1:
        by_row, by_column, rest = true
        variance = np.maximum(by_row + by_column - rest, np.maximum(by_row, by_column))
    return _drawn(len(parts), 0) * np.sqrt(variance)


@lru_cache(maxsize=32)
def _drawn(stream: int, degrees: int) -> np.ndarray:
    """Variances of so many degrees of freedom, as shares of the true one; with none, normal numbers."""
    random = np.random.default_rng([2021, stream])
    return random.chisquare(degrees, DRAWS) / degrees if degrees else random.standard_normal(DRAWS)


def _variances(rest: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[tuple[float, int]]:
    """The variance of the mean by rows, by columns, and by cells alone, each with its degrees of freedom.

    Only one where rows and columns cannot be told apart, and none where there is a single column.
    """
    n, r, c = len(rest), len(np.unique(rows)), len(np.unique(columns))
    if c == 1:
        return []  # how much another seed would change is unknown
    if r in (1, n):
        return [(_of(rest, columns), c - 1)]
    if c == n:
        return [(_of(rest, rows), r - 1)]
    return [(_of(rest, rows), r - 1), (_of(rest, columns), c - 1), _of_cells(rest, rows, columns)]


def _of(rest: np.ndarray, clusters: np.ndarray) -> float:
    """The variance of a mean whose terms vary by whole clusters."""
    sums = np.bincount(clusters, rest)
    k = np.count_nonzero(np.bincount(clusters))
    return float(k / (k - 1) * (sums**2).sum() / len(rest) ** 2)


def _of_cells(rest: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[float, int]:
    """The variance of the mean were all cells independent, from what neither rows nor columns explain."""
    n = len(rest)
    design = np.zeros((n, rows.max() + columns.max() + 2))
    design[np.arange(n), rows] = design[np.arange(n), rows.max() + 1 + columns] = 1
    solution, _, rank, _ = np.linalg.lstsq(design, rest, rcond=None)
    if rank == n:  # they explain everything, as where no two configurations share two seeds
        return float((rest**2).sum() / (n - 1) / n), n - 1
    return float(((rest - design @ solution) ** 2).sum() / (n - rank) / n), int(n - rank)
