"""What all implementations of the kernels agree on, so that they answer the same: networks, ties, sums of counts."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import numerics

DENOMINATORS = np.arange(1, 1 << 13)  # that weights are looked for as fractions of


def as_counts(weights: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, float]:
    """Weights that are fractions of a small common denominator, as multiples of one number, and what their sums are to
    be divided by: so that the mean of 1, 4 and 7 is 4. Others as they are, and 1.

    Multiples are whole numbers; of float64 so small a power of two that no sum overflows where the mean does not.
    """
    values = np.unique(weights[weights != 0])
    denominator = 1
    while values.size and np.isfinite(values).all():
        counts = values * denominator
        wrong = np.abs(counts - np.rint(counts)) > 2e-14 * np.abs(counts)
        if not wrong.any():
            unit = 1.0
            if dtype == torch.float64:
                unit = 2.0 ** -np.ceil(np.log2(max(1.0, denominator * np.abs(weights).sum(-1).max())))
            return np.rint(weights * denominator) * unit, denominator * unit
        several = counts[np.argmax(wrong)] * DENOMINATORS[: DENOMINATORS.size // denominator]
        found = np.flatnonzero(np.abs(several - np.rint(several)) <= 2e-14 * np.abs(several))
        if not found.size:
            break
        denominator *= int(found[0]) + 1
    return weights, 1.0


def _batcher(n: int) -> list[tuple[int, int]]:
    """The comparators (i, j) of Batcher's odd-even merge sort, depth first: a few values for long, then the next few.

    Reference: Batcher, "Sorting networks and their applications", 1968.
    """
    comparators: list[tuple[int, int]] = []

    def sort(first: int, size: int) -> None:
        if size > 1:
            sort(first, size // 2)
            sort(first + size // 2, size // 2)
            merge(first, size, 1)

    def merge(first: int, size: int, gap: int) -> None:
        pairs = [first]
        if 2 * gap < size:
            merge(first, size, 2 * gap)
            merge(first + gap, size, 2 * gap)
            pairs = list(range(first + gap, first + size - gap, 2 * gap))
        comparators.extend((i, i + gap) for i in pairs if i + gap < n)  # beyond n stand values above all others

    sort(0, 1 << max(0, n - 1).bit_length())
    return comparators


@lru_cache(maxsize=256)
def network(n: int, low: int, high: int) -> tuple[tuple[int, int], ...]:
    """Comparators that sort n values as far as ranks low..high-1 need it.

    Example:
        >>> network(3, 0, 3)
        ((0, 1), (0, 2), (1, 2))
    """
    wanted, kept = set(range(low, high)), []
    for a, b in reversed(_batcher(n)):
        if a in wanted or b in wanted:
            wanted |= {a, b}
            kept.append((a, b))
    return tuple(kept[::-1])


class Statistic(NamedTuple):
    """What is asked of a sorted column: the mean of ranks low..high-1, or of the ``window`` values closest to that.

    Of two values equally close the lower one is kept, so what decides is asked without a quotient, and of values as
    they are: a window moves up past a, for b, while (a + b) (high - low) < 2 (the sum of the ranks). Mixtures are sums
    of products, each rounded; so close to equality theirs count as equal.
    """

    low: int
    high: int
    window: int  # 0: none
    scale: float  # of the values before they are added: of float64 so small a power of two that nothing overflows
    up: float  # what decides counts as equal where these factors
    down: float  # make it so
    divisor: float  # what the values are to be divided by
    total: float  # what the sum of scaled values that is the answer is to be divided by

    @classmethod
    def of(cls, m: int, *, low: int, high: int, window: int, wide: bool, terms: int, divisor: float) -> Statistic:
        """Of m values, float64 ones or not, each a sum of so many terms."""
        scale = 2.0 ** -int(2 * m).bit_length() if wide else 1.0
        slack = 16 * terms * 2.0**-53
        return cls(low, high, window, scale, 1 + slack, 1 - slack, divisor, (window or high - low) * scale * divisor)


EVEN = ("mid", "lower", "upper")


class Weighted(NamedTuple):
    """What is asked of a column whose sorted values are laid end to end, each as long as its weight: the mean of what
    lies between two amounts, or, where these are one, the value there; then the mean of the ``window`` nearest to that.

    Sums of weights in any order differ by rounding: amounts as near as that are the same.
    """

    low: float
    high: float
    window: float  # 0: none
    slack: float  # of amounts
    ties: float  # of distances to the centre, relative
    even: int  # which value, where two meet at the amount: EVEN

    @classmethod
    def of(cls, weights: np.ndarray, *, low: float, high: float, window: float, even: str) -> Weighted:
        """For weights [n] > 0."""
        slack = numerics.NOTHING * float(weights.sum())
        return cls(float(low), float(high), float(window), slack, 16 * weights.size * 2.0**-53, EVEN.index(even))


class Kept(NamedTuple):
    """Of k rows the values that count: those of a size above the least, and of that very size those of the first
    columns."""

    rows: np.ndarray  # [k]: which rows
    least: Tensor  # [k], where the rows are
    cuts: Tensor  # [k] int64: from which column on none of the least size count
