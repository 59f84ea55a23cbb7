"""Rules that live in columns: each coordinate of the answer depends on that coordinate of the vectors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

from ..checks import require
from ..claims import WITHIN, Guarantee
from ..stages import Bound, Coordinatewise, Statistic

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


@dataclass(frozen=True)
class TrimmedMean(Coordinatewise):
    """Per coordinate, the mean of what is left without the f least and the f greatest values.

    F_k = mean of the sorted x_(f+1)k, ..., x_(n-f)k

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
    published: ClassVar[Mapping[str, Any] | None] = {}
    published_name: ClassVar[str] = "trmean"
    kappa: ClassVar[Bound | None] = staticmethod(lambda n, f: 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f)))
    guarantee: ClassVar[Guarantee] = WITHIN

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n: int) -> Statistic:
        return self.f, n - self.f, 0


@dataclass(frozen=True)
class Phocas(Coordinatewise):
    """Per coordinate, the mean of the n - f values closest to the trimmed mean.

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
    published: ClassVar[Mapping[str, Any] | None] = {}

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n: int) -> Statistic:
        return self.f, n - self.f, n - self.f


@dataclass(frozen=True)
class MeaMed(Coordinatewise):
    """Per coordinate, the mean of the n - f values closest to the median ("mean around median").

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
    published: ClassVar[Mapping[str, Any] | None] = {"even": "lower"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.even in ("mid", "lower", "upper"), 'even "mid", "lower" or "upper"', self.even)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n: int) -> Statistic:
        return (*median_ranks(n, self.even), n - self.f)
