"""Rules that live in columns: each coordinate of the answer depends on that coordinate of the vectors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

import numpy as np

from ..checks import require
from ..claims import WITHIN, Guarantee
from ..shares import heaviest
from ..stages import Bound, Coordinatewise, Statistic, WeightedStatistic

Even = Literal["mid", "lower", "upper"]


def median_ranks(n: int, even: Even) -> tuple[int, int]:
    """Ranks low..high-1 whose mean is the median of n values."""
    if n % 2 or even == "upper":
        return n // 2, n // 2 + 1
    return n // 2 - 1, n // 2 + (even == "mid")


@dataclass(frozen=True)
class Median(Coordinatewise):
    """The coordinate-wise median.

    F_k = median(x_1k, ..., x_nk)

    With weights w the weighted median: the middle of all y with the least sum of w_i |x_ik - y|, which is where the
    weight below comes to half. Hostile vectors that weigh less than half leave it between honest values.

    Args:
        f: Byzantine vectors tolerated.
        even: for even n the mean of the two middle values ("mid"), or one of them.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass, n log^2 n / 2 comparisons a column at the most.
    Convention: the paper of distributed momentum ran even="lower" (so does torch.median).

    Example:
        >>> import torch
        >>> Median(f=1)(torch.tensor([[1.0, 5.0], [2.0, float("nan")], [3.0, 4.0], [4.0, 6.0]]))
        tensor([2.5000, 5.5000])

    Reference: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", ICML 2018.
    """

    even: Even = "mid"

    title: ClassVar[str] = "Median"
    weighs: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any] | None] = {"even": "lower"}
    kappa: ClassVar[Bound | None] = staticmethod(lambda n, f: 4 * (1 + f / (n - 2 * f)) ** 2)
    variance: ClassVar[Bound | None] = staticmethod(lambda n, f: 1 / sqrt(n - f))
    guarantee: ClassVar[Guarantee] = WITHIN

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.even in ("mid", "lower", "upper"), 'even "mid", "lower" or "upper"', self.even)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n: int) -> Statistic:
        return (*median_ranks(n, self.even), 0)

    def weighted(self, shares: np.ndarray) -> WeightedStatistic:
        return shares.size / 2, shares.size / 2, 0.0, self.even


@dataclass(frozen=True)
class TrimmedMean(Coordinatewise):
    """Per coordinate, the mean of what is left without the f least and the f greatest values.

    F_k = mean of the sorted x_(f+1)k, ..., x_(n-f)k

    With weights W_f, the weight of the f heaviest vectors, is cut from each end of every coordinate, if need be through
    a value, and the mean is of the weight that is left.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass, a sorting network a column.

    Example:
        >>> import torch
        >>> TrimmedMean(f=1)(torch.tensor([[1.0], [2.0], [6.0], [1e30]]))
        tensor([4.])

    Reference: Yin et al., ICML 2018.
    """

    title: ClassVar[str] = "Trimmed mean"
    weighs: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any] | None] = {}
    published_name: ClassVar[str] = "trmean"
    kappa: ClassVar[Bound | None] = staticmethod(lambda n, f: 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f)))
    guarantee: ClassVar[Guarantee] = WITHIN

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n: int) -> Statistic:
        return self.f, n - self.f, 0

    def weighted(self, shares: np.ndarray) -> WeightedStatistic:
        cut = heaviest(shares, self.f)
        return cut, shares.size - cut, 0.0, "mid"


@dataclass(frozen=True)
class Phocas(Coordinatewise):
    """Per coordinate, the mean of the n - f values closest to the trimmed mean.

    With weights, of the weight n - W_f closest to it, the last value in part; W_f is the weight of the f heaviest.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass, a sorting network a column: the closest values are neighbours once sorted.
    Convention: of two values equally close the lower one is taken.

    Example:
        >>> import torch
        >>> Phocas(f=1)(torch.tensor([[1.0], [2.0], [6.0], [1e30]]))
        tensor([3.])

    Reference: Xie, Koyejo, Gupta, "Phocas: dimensional Byzantine-resilient stochastic gradient descent", 2018.
    """

    title: ClassVar[str] = "Phocas"
    weighs: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any] | None] = {}

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n: int) -> Statistic:
        return self.f, n - self.f, n - self.f

    def weighted(self, shares: np.ndarray) -> WeightedStatistic:
        cut = heaviest(shares, self.f)
        return cut, shares.size - cut, shares.size - cut, "mid"


@dataclass(frozen=True)
class MeaMed(Coordinatewise):
    """Per coordinate, the mean of the n - f values closest to the median ("mean around median").

    With weights, of the weight n - W_f closest to the weighted median, as Phocas.

    Args:
        f: Byzantine vectors tolerated.
        even: which median, for even n.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: as Phocas.
    Convention: the paper of distributed momentum ran even="lower". Of two values equally close the lower is taken.

    Example:
        >>> import torch
        >>> MeaMed(f=1)(torch.tensor([[1.0], [2.0], [7.0]]))
        tensor([1.5000])

    Reference: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018.
    """

    even: Even = "mid"

    title: ClassVar[str] = "MeaMed"
    weighs: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any] | None] = {"even": "lower"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.even in ("mid", "lower", "upper"), 'even "mid", "lower" or "upper"', self.even)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n: int) -> Statistic:
        return (*median_ranks(n, self.even), n - self.f)

    def weighted(self, shares: np.ndarray) -> WeightedStatistic:
        return shares.size / 2, shares.size / 2, shares.size - heaviest(shares, self.f), self.even
