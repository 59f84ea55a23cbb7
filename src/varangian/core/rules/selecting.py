"""Rules that live in n x n: they look at distances, and answer weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, ClassVar, Literal

import numpy as np

from ..checks import require, set_whole
from ..claims import BY_NORMS, NO_LONGER, Guarantee
from ..geometry import Geometry, Ties, mean_weights, sum_of_smallest
from ..shares import heaviest, portions
from ..stages import Bound, Nearest, Rule, Selecting, Shares
from .search import first_of_least_diameter, least_diameter


@dataclass(frozen=True)
class Average(Rule):
    """The mean of all vectors: optimal without attackers, and no defence against any.

    F(x) = (x_1 + ... + x_n) / n, with weights (w_1 x_1 + ... + w_n x_n) / (w_1 + ... + w_n)

    Shape: [n, d] -> [d].
    Tolerates: nothing; ``f`` is kept so that it can stand where another rule does. NaN in, NaN out.
    Cost: one pass.

    Example:
        >>> import torch
        >>> Average()(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        tensor([2., 4.])
    """

    f: int = 0

    title: ClassVar[str] = "Average"
    published: ClassVar[Mapping[str, Any] | None] = {}
    columnwise: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    robust: ClassVar[bool] = False
    exempt: ClassVar[Mapping[str, str]] = {
        "ROBUST": "tolerates nothing",
        "REFUSAL": "NaN in, NaN out: there is no defence to fail closed",
        "SIGHT": "looks at nobody",
    }

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def choose(self, n: int, geometry: Geometry | None, shares: Shares = None) -> np.ndarray:
        return np.full(n, 1 / n) if shares is None else shares / n

    apply = Selecting.apply


def krum_scores(
    geometry: Geometry,
    f: int,
    neighbours: Literal["n-f-2", "n-f-1"] = "n-f-2",
    distance: Literal["squared", "plain"] = "squared",
    *,
    among: np.ndarray | None = None,
) -> np.ndarray:
    """Krum's score of each point: the sum of the (squared) distances to its nearest others; lower is better.

    ``among`` restricts both points and neighbours; at least one neighbour is looked at. Where points count differently,
    neighbours are counted by weight, the point's own included: until n - W_f - 1, or n - W_f.
    """
    if geometry.shares is not None and among is None:
        limit = geometry.n - heaviest(geometry.shares, f) - (1 if neighbours == "n-f-2" else 0)
        near = np.argsort(geometry.distances, axis=1, kind="stable")
        values = np.take_along_axis(geometry.distances, near, axis=1)
        parts = portions(geometry.shares[near], 0, limit)
        values = np.where(parts > 0, values, 0)
        return (parts * (values if distance == "squared" else np.sqrt(values))).sum(1)
    index = np.arange(geometry.n) if among is None else among
    squared = geometry.distances[np.ix_(index, index)].copy()
    np.fill_diagonal(squared, np.inf)
    values = squared if distance == "squared" else np.sqrt(squared)
    count = index.size - f - (2 if neighbours == "n-f-2" else 1)
    return sum_of_smallest(values, max(count, 1))


def sure_scores(
    geometry: Geometry,
    score: Callable[[Geometry], np.ndarray],
    places: Sequence[int],
    *,
    ties: Ties = "value",
    among: np.ndarray | None = None,
) -> tuple[Geometry, np.ndarray]:
    """Scores, and the distances behind them, exact where float32 distances leave open on which side of some places in
    their order a point stands: those of these points are then measured again."""
    scores = score(geometry)
    unsure = geometry.unsure(scores, places, among) if ties == "value" else np.empty(0, int)
    if not unsure.size:
        return geometry, scores
    geometry = geometry.sharpened(unsure)
    return geometry, score(geometry)


def krum_variance(n: int, f: int) -> float:
    """The greatest deviation / norm under which Krum and what is built on it are proved resilient: 1 / eta(n, f)."""
    return 1 / sqrt(2 * (n - f + f * (n + f * (n - f - 2) - 2) / (n - 2 * f - 2)))


@dataclass(frozen=True)
class MultiKrum(Selecting):
    """The mean of the m vectors whose neighbourhoods are tightest.

    score_i = sum of ||x_i - x_j||^2 over the n - f - 2 nearest j != i;  F = mean of the m least scores.

    With weights w, which count n together, and W_f for the f heaviest: score_i = sum of w_j ||x_i - x_j||^2 over the
    nearest j != i until they weigh n - W_f - 1 - w_i, the last in part; F = the mean by weight of the vectors of least
    score until they weigh m, the last in part. By weight and not by number, since as much weight as W_f may be
    Byzantine in many light vectors.

    Args:
        f: Byzantine vectors tolerated.
        m: how many to average, 1 <= m <= n - f; n - f - 2 by default, Krum is m = 1. With weights how much weight,
            n - W_f at most, and n - W_f - 2 by default.
        neighbours: how many neighbours a score sums.
        distance: what it sums, squared distances or plain ones.
        ties: of equal scores the lexicographically smaller vector's is taken ("value"), or that of the one that stands
            first ("position", which does not follow the vectors when they are permuted).

    Shape: [n, d] -> [d].
    Tolerates: f < (n - 2) / 2.
    Cost: one pass for n x n distances, one over the selected rows.
    Convention: the paper of distributed momentum ran neighbours="n-f-1", distance="plain",
        ties="position" (``published("multi-krum", f)``).

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [1e30]])
        >>> MultiKrum(f=1)(x)
        tensor([2.5000])

    Reference: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent", NeurIPS 2017.
    """

    m: int | None = None
    neighbours: Literal["n-f-2", "n-f-1"] = "n-f-2"
    distance: Literal["squared", "plain"] = "squared"
    ties: Ties = "value"

    title: ClassVar[str] = "Multi-Krum"
    weighs: ClassVar[bool] = True
    score_name: ClassVar[str] = "Krum's score"
    published: ClassVar[Mapping[str, Any] | None] = {"neighbours": "n-f-1", "distance": "plain", "ties": "position"}
    published_name: ClassVar[str] = "krum"
    variance: ClassVar[Bound | None] = staticmethod(krum_variance)

    def __post_init__(self) -> None:
        super().__post_init__()
        set_whole(self, "m", least=1, optional=True)
        check_conventions(self)

    @property
    def needs(self) -> tuple[str, int]:
        least = 2 * self.f + 3
        # Only finite vectors may be averaged, and f of the n may not be.
        return ("2f + 3", least) if self.m is None or self.m + self.f <= least else ("m + f", self.m + self.f)

    def score(self, geometry: Geometry) -> np.ndarray:
        return krum_scores(geometry, self.f, self.neighbours, self.distance)

    def weights(self, geometry: Geometry) -> np.ndarray:
        if geometry.shares is not None:
            return self._by_weight(geometry, geometry.shares)
        m = geometry.n - self.f - 2 if self.m is None else self.m
        geometry, scores = sure_scores(geometry, self.score, [m], ties=self.ties)
        return mean_weights(geometry.smallest(scores, m, ties=self.ties), geometry.n)

    def _by_weight(self, geometry: Geometry, shares: np.ndarray) -> np.ndarray:
        heavy, n = heaviest(shares, self.f), geometry.n
        m = n - heavy - 2 if self.m is None else min(self.m, n - heavy)
        order = geometry.smallest(self.score(geometry), n, ties=self.ties)
        last = int((portions(shares[order], 0, m) > 0).sum())
        geometry, scores = sure_scores(geometry, self.score, [last - 1, last], ties=self.ties)
        order = geometry.smallest(scores, n, ties=self.ties)
        weights = np.zeros(n)
        weights[order] = portions(shares[order], 0, m)
        return weights / weights.sum()


@dataclass(frozen=True)
class Krum(Selecting):
    """The one vector whose neighbourhood is tightest.

    F = x_k for the least score_k = sum of ||x_k - x_j||^2 over the n - f - 2 nearest j != k.

    With weights the score is that of :class:`MultiKrum` with weights; the answer is still one vector.

    Args, Convention: as for :class:`MultiKrum`, of which this is m = 1.

    Shape: [n, d] -> [d].
    Tolerates: f < (n - 2) / 2.
    Cost: one pass for n x n distances; the result is a copy of one row.

    Example:
        >>> import torch
        >>> Krum(f=1)(torch.tensor([[1.0], [2.0], [2.5], [4.0], [1e30]]))
        tensor([2.])

    Reference: Blanchard et al., NeurIPS 2017.
    """

    neighbours: Literal["n-f-2", "n-f-1"] = "n-f-2"
    distance: Literal["squared", "plain"] = "squared"
    ties: Ties = "value"

    title: ClassVar[str] = "Krum"
    weighs: ClassVar[bool] = True
    score_name: ClassVar[str] = "Krum's score"
    kappa: ClassVar[Bound | None] = staticmethod(lambda n, f: 6 * (1 + f / (n - 2 * f)))
    variance: ClassVar[Bound | None] = staticmethod(krum_variance)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_conventions(self)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 3", 2 * self.f + 3

    def score(self, geometry: Geometry) -> np.ndarray:
        return krum_scores(geometry, self.f, self.neighbours, self.distance)

    def weights(self, geometry: Geometry) -> np.ndarray:
        geometry, scores = sure_scores(geometry, self.score, [1], ties=self.ties)
        return mean_weights(geometry.smallest(scores, 1, ties=self.ties), geometry.n)


def check_conventions(rule: Krum | MultiKrum) -> None:
    require(rule, rule.neighbours in ("n-f-2", "n-f-1"), 'neighbours "n-f-2" or "n-f-1"', rule.neighbours)
    require(rule, rule.distance in ("squared", "plain"), 'distance "squared" or "plain"', rule.distance)
    require(rule, rule.ties in ("value", "position"), 'ties "value" or "position"', rule.ties)


@dataclass(frozen=True)
class MinimumDiameterAveraging(Selecting):
    """The mean of the n - f vectors that lie closest together.

    F = mean of S, the subset of n - f vectors with the least max over i, j in S of ||x_i - x_j||

    Args:
        f: Byzantine vectors tolerated.
        ties: of subsets that share the least diameter, which they often do, the most compact ("value", see below), or
            the one that comes first in the lexicographic order of indices ("position", which does not follow the
            vectors when they are permuted).

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances, one over the selected rows; the exact search between them takes well under a
        millisecond where Byzantine vectors stand out and milliseconds for random vectors at (30, 10). It is
        exponential in f at worst, and refuses rather than run for ever.
    Convention: several subsets may share the least diameter. Of these the one whose squared distances have the least
        sum (the least that a bounded search finds, where there are very many), then the one of lexicographically
        least mean. Other libraries take the first in the order of the vectors.

    Example:
        >>> import torch
        >>> MinimumDiameterAveraging(f=1)(torch.tensor([[0.0], [1.0], [2.0], [10.0]]))
        tensor([1.])

    Reference: Rousseeuw, "Multivariate estimation with high breakdown point", 1985; El Mhamdi, Guerraoui, Rouault,
    "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018.
    """

    ties: Ties = "value"

    title: ClassVar[str] = "MDA"
    published: ClassVar[Mapping[str, Any] | None] = {"ties": "position"}
    published_name: ClassVar[str] = "brute"
    variance: ClassVar[Bound | None] = staticmethod(lambda n, f: (n - f) / (sqrt(8) * f) if f else inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.ties in ("value", "position"), 'ties "value" or "position"', self.ties)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        if self.ties == "position":
            order = np.flatnonzero(geometry.finite)
            squared = geometry.distances[np.ix_(order, order)]
            return mean_weights(order[first_of_least_diameter(squared, geometry.n - self.f)], geometry.n)
        geometry = geometry.sharp()
        order = geometry.by_centrality()
        squared = geometry.distances[np.ix_(order, order)]
        return subset_weights(geometry, order, least_diameter(squared, geometry.n - self.f))


def subset_weights(geometry: Geometry, order: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """[n] weights of the mean of a subset; of several [k, n'] masks over ``order`` the lexicographically least mean."""
    table = np.zeros((masks.shape[0], geometry.n))
    table[:, order] = masks / masks.sum(1, keepdims=True)
    return table[geometry.mix(table).smallest(np.zeros(len(table)), 1)[0]] if len(table) > 1 else table[0]


@dataclass(frozen=True)
class ComparativeGradientElimination(Nearest):
    """The mean of the n - f vectors of least norm.

    F = mean of x_i over the n - f least ||x_i||

    Args:
        f: Byzantine vectors tolerated.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2, under the assumptions of its paper; a Byzantine vector shorter than the honest ones is kept.
    Cost: one pass for norms, one over the selected rows.
    Convention: the mean, where the paper writes the sum. Ties go to the lexicographically smaller vector.

    Example:
        >>> import torch
        >>> ComparativeGradientElimination(f=1)(torch.tensor([[3.0], [-1.0], [2.0]]))
        tensor([0.5000])

    Reference: Gupta, Liu, Vaidya, "Byzantine Fault-Tolerant Distributed Machine Learning using Stochastic Gradient
    Descent (SGD) and Norm-Based Comparative Gradient Elimination (CGE)", 2020.
    """

    title: ClassVar[str] = "CGE"
    score_name: ClassVar[str] = "norm"
    published: ClassVar[Mapping[str, Any] | None] = {}
    guarantee: ClassVar[Guarantee] = NO_LONGER
    exempt: ClassVar[Mapping[str, str]] = {"TRANSLATION": BY_NORMS}

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    @property
    def center(self) -> int:
        return -1

    def score(self, geometry: Geometry) -> np.ndarray:
        return np.sqrt(geometry.norms)
