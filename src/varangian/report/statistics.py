"""What pairs of runs say together: intervals and tests that respect what was paired."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..outcomes import rate_text
from ..paper import Measure, Pair

DRAWS = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """The gains of some pairs, in points.

    Attributes:
        pairs, raised, lowered: how many there are, and with a positive and a negative gain.
        mean, median: of the gains.
        low, high: 95 % bootstrap interval of the mean. Whole configurations are drawn, with all their seeds: runs of
            one configuration resemble each other, and to count them one by one would promise too much.
        p: of the two-sided sign test: how often fair coins would fall as unevenly as the signs; pairs without a
            difference are left out.
    """

    pairs: int
    raised: int
    lowered: int
    mean: float
    median: float
    low: float
    high: float
    p: float


def summarize(pairs: Sequence[Pair], measure: Measure = "max") -> Summary:
    """The summary of at least one pair."""
    gains = [pair.gain(measure) for pair in pairs]
    raised, lowered = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
    groups: dict[tuple[object, ...], list[float]] = {}
    for pair, gain in zip(pairs, gains, strict=True):
        groups.setdefault(_configuration(pair), []).append(gain)
    low, high = bootstrap(list(groups.values()))
    middle = statistics.median(gains)
    return Summary(len(gains), raised, lowered, statistics.fmean(gains), middle, low, high, sign_test(raised, lowered))


def _configuration(pair: Pair) -> tuple[object, ...]:
    e = pair.experiment
    where = e.dataset, e.model, e.profile, pair.server.source, e.workers, e.byzantine
    return *where, rate_text(e), e.nesterov, e.rule, e.pre, e.attack


def bootstrap(groups: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of the mean of all values, groups drawn with replacement; always the same for the same data.

    Example:
        >>> bootstrap([[1.0, 1.0], [1.0]])
        (1.0, 1.0)
    """
    sums = np.array([sum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    drawn = np.random.default_rng(2021).integers(len(groups), size=(DRAWS, len(groups)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def sign_test(raised: int, lowered: int) -> float:
    """Two-sided probability of a split at least this uneven, were both signs equally likely.

    Example:
        >>> sign_test(10, 0), sign_test(3, 3), sign_test(0, 0)
        (0.001953125, 1.0, 1.0)
    """
    n, k = raised + lowered, min(raised, lowered)
    total = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * (total / 2**n if n < 1000 else math.exp(math.log(total) - n * math.log(2))))
