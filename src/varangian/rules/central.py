"""Rules around a centre: a median of one kind or another, or a vector that is trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from .. import kernels
from ..checks import require, set_real, set_whole
from ..geometry import FAR, Geometry, Held, mean_weights, middle
from .coordinatewise import Even, median_ranks
from .core import Bound, General, Nearest, Selecting, column_statistic

SETTLED = 1e-9  # relative to a usual distance: a walk whose remaining way is shorter has arrived
CLOSE = 0.03  # so near to a point, float32 distances would show in the answer: they are measured again in float64
TOGETHER = 1e-4  # relative to a usual distance: points so close pull as one on whatever is not among them
OPTIMAL = 1e-6  # the unit vectors at a point may add up to so much more than its own weight, by rounding


@dataclass(frozen=True)
class Aksel(General):
    """The mean of the vectors closest to the coordinate-wise median.

    F = mean of x_i over the q least ||x_i - median||,  q = (n + 1) // 2 ("mid") or n - f ("n-f")

    Args:
        f: Byzantine vectors tolerated.
        mode: how many to average.
        even: which median, for even n.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: three passes: the median's columns, the distances to it, the selected rows.
    Convention: the paper of distributed momentum ran even="lower". Ties go to the lexicographically smaller vector.

    Example:
        >>> import torch
        >>> Aksel(f=2)(torch.tensor([[0.0], [1.0], [2.0], [10.0], [100.0]]))
        tensor([1.])

    Reference: Boussetta, El-Mhamdi, Guerraoui, Maurer, Rouault, "AKSEL: Fast Byzantine SGD", OPODIS 2020.
    """

    mode: Literal["mid", "n-f"] = "mid"
    even: Even = "mid"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.mode in ("mid", "n-f"), 'mode "mid" or "n-f"', self.mode)
        require(self, self.even in ("mid", "lower", "upper"), 'even "mid", "lower" or "upper"', self.even)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        n = x.shape[0]
        median = column_statistic(self, x, (*median_ranks(n, self.even), 0), None)
        squared = kernels.squared_distances_to(x, median)
        del median  # before the answer takes as much
        count = (n + 1) // 2 if self.mode == "mid" else n - self.f
        return kernels.weighted_rows(x, mean_weights(ranked(x, squared)[:count], n))


def ranked(x: Tensor, scores: np.ndarray) -> np.ndarray:
    """The rows that have a finite score, by score; ties by value."""
    finite = np.isfinite(scores)
    apart = 1.0 - np.eye(scores.size)  # distances unknown: all rows may differ
    points = Geometry(np.pad(apart, (0, 1)), finite, Held(x), None)
    return points.smallest(scores, scores.size)[: int(finite.sum())]


@dataclass(frozen=True)
class MoNNA(Nearest):
    """The mean of the n - f vectors nearest to a trusted one.

    F = mean of x_i over the n - f least ||x_i - pivot||

    Args:
        f: Byzantine vectors tolerated.
        pivot: the index of the trusted vector: in the paper's decentralised setting, one's own.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2, provided that the pivot is honest: with a Byzantine pivot it tolerates nothing.
    Cost: two passes for norms and for distances to the pivot, one over the selected rows.
    Convention: follows the pivot's position, so only permutations that leave it in place leave the answer. Ties go to
        the lexicographically smaller vector.

    Example:
        >>> import torch
        >>> MoNNA(f=1)(torch.tensor([[0.0], [1.0], [5.0]]))
        tensor([0.5000])

    Reference: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning with Linear Gradient
    Overhead", ICML 2023.
    """

    pivot: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_whole(self, "pivot")

    @property
    def needs(self) -> tuple[str, int]:
        least = 2 * self.f + 1
        return ("2f + 1", least) if self.pivot < least else ("pivot + 1", self.pivot + 1)

    @property
    def center(self) -> int:
        return self.pivot


@dataclass(frozen=True)
class Medoid(Selecting):
    """The one vector with the least sum of distances to all others.

    F = x_k for the least sum over j of ||x_k - x_j||

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances; the result is a copy of one row.
    Convention: vectors that are not finite are left out. Ties go to the lexicographically smaller vector.

    Example:
        >>> import torch
        >>> Medoid(f=1)(torch.tensor([[0.0], [1.0], [100.0]]))
        tensor([1.])
    """

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        return mean_weights(geometry.smallest(distance_sums(geometry), 1), geometry.n)


def distance_sums(geometry: Geometry, positions: np.ndarray | None = None) -> np.ndarray:
    """[n] sums of the distances from each point to all finite ones, less a constant where some are very far.

    A point at 1e30 adds 1e30 to every sum and drowns what tells them apart: there ||x - y|| - ||y|| is summed instead,
    written so that nothing cancels.
    """
    good = geometry.finite
    plain = np.sqrt(geometry.distances)
    known = plain[np.ix_(good, good)]
    usual = middle(middle(known)[None])[0]
    if not (known > FAR * usual).any():
        return np.where(good, np.sort(np.where(good, plain, 0), axis=1).sum(1), np.inf)
    at = (geometry.positions() if positions is None else positions)[: geometry.n]
    at = np.where(good[:, None], at, 0)
    squares = (at * at).sum(1)
    with np.errstate(invalid="ignore"):
        less = (squares[:, None] - 2 * at @ at.T) / (plain + np.sqrt(squares)[None, :])
    near = np.sqrt(squares) <= FAR * usual
    less[:, near] = plain[:, near] - np.sqrt(squares)[near]
    np.fill_diagonal(less, -np.sqrt(squares))
    return np.where(good, np.where(good, less, 0).sum(1), np.inf)


@dataclass(frozen=True)
class GeometricMedian(Selecting):
    """The point with the least sum of distances to all vectors: not squared, so that none weighs more for being far.

    F = argmin over y of sum of ||x_i - y||

    Found by Weiszfeld's iteration, with Newton's where that is slow, until what remains is below 1e-8 of a usual
    distance. A vector that is itself the answer is recognised (the unit vectors towards the others add up to no more
    than its own weight), so the iteration is never caught by its poles.

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances, one over all rows; one more where some vectors are far from the others.
    Convention: vectors that are not finite are left out. Where the answer is not unique (an even number of vectors on
        one line) the mean of the vectors that are optimal, which is the middle of the segment.

    Example:
        >>> import torch
        >>> GeometricMedian(f=1)(torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0], [1.0, 7.0]]))
        tensor([1., 0.])

    Reference: Weiszfeld, 1937; Vardi, Zhang, "The multivariate L1-median and associated data depth", PNAS 2000; in
    distributed learning: Chen, Su, Xu, 2017; Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning",
    IEEE Transactions on Signal Processing 2022.
    """

    kappa: ClassVar[Bound | None] = staticmethod(lambda n, f: 4 * (1 + f / (n - 2 * f)) ** 2)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        good = np.flatnonzero(geometry.finite)
        weights, nearest = _geometric_median(geometry.measured() if geometry.is_small else geometry, good)
        if nearest < CLOSE and not geometry.is_small:
            weights, _ = _geometric_median(geometry.measured(), good)
        result = np.zeros(geometry.n)
        result[good] = weights
        return result


def _geometric_median(geometry: Geometry, good: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of the finite points, and how near the nearest is, relative to a usual distance."""
    positions = geometry.positions()
    x, sums = positions[good], distance_sums(geometry, positions)[good]
    medoid = int(np.argmin(sums))
    size, pull, multiplicity, target = _pull(x, medoid, TOGETHER)
    if pull <= multiplicity + OPTIMAL:
        # The answer is among the points that are together with the medoid: which, their own pulls tell.
        size, pull, multiplicity, target = _pull(x, medoid, SETTLED)
    if pull <= multiplicity + OPTIMAL:
        # The medoid is optimal, and perhaps others that differ: average one of each.
        chosen = [medoid]
        for k in np.flatnonzero(sums <= sums[medoid] + OPTIMAL * size).tolist():
            _, other_pull, other_multiplicity, _ = _pull(x, k, SETTLED)
            apart = np.sqrt(np.square(x[k] - x[chosen]).sum(1)).min()
            if apart > SETTLED * size and other_pull <= other_multiplicity + OPTIMAL:
                chosen.append(k)
        lengths = np.sqrt(np.square(x - x[medoid]).sum(1))
        nearest = lengths[lengths > 0].min(initial=np.inf)
        return mean_weights(chosen, good.size), nearest / size if size > 0 else np.inf
    at = x[medoid] + (1 - multiplicity / pull) * (target - x[medoid])
    before, weights = np.inf, np.ones(good.size)
    for iteration in range(1000):
        away = x - at
        lengths = np.sqrt((away * away).sum(1))
        size = np.median(lengths)
        weights = 1 / np.maximum(lengths, 1e-15 * size)
        step = weights @ away / weights.sum()
        length = float(np.sqrt(step @ step))
        rate = min(length / before, 0.999)  # of a convergence that is linear; unknown at first
        if length <= 1e-15 * size or (before < np.inf and length * rate / (1 - rate) <= SETTLED * size):
            break
        before, goal = length, at + step
        if iteration >= 10:
            goal, arrived = _newton(x, at, away, weights, goal)
            before = np.inf
            if arrived:
                break
        at = goal
    return weights / weights.sum(), 1 / (weights.max() * size)


def _pull(x: np.ndarray, k: int, near: float) -> tuple[float, float, int, np.ndarray]:
    """Seen from point k: the median distance, the length of the sum of unit vectors to the points further than ``near``
    median distances, how many are not, and the inverse-distance mean of those that are."""
    away = x - x[k]
    lengths = np.sqrt((away * away).sum(1))
    size = float(np.median(lengths))
    apart = lengths > near * size
    weights = np.divide(1, lengths, out=np.zeros_like(lengths), where=apart)
    total = weights @ away
    target = x[k] + total / max(weights.sum(), np.finfo(float).tiny)
    return size, float(np.sqrt(total @ total)), int((~apart).sum()), target


def _newton(
    x: np.ndarray, at: np.ndarray, away: np.ndarray, weights: np.ndarray, fallback: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Newton's step where it leaves less slope than the fallback does; and whether it was too short to matter."""
    units = weights[:, None] * away
    hessian = weights.sum() * np.eye(x.shape[1]) - (units.T * weights) @ units
    try:
        step = np.linalg.solve(hessian, units.sum(0))
    except np.linalg.LinAlgError:
        return fallback, False

    def slope(place: np.ndarray) -> float:
        towards = x - place
        lengths = np.sqrt((towards * towards).sum(1))
        return float(np.linalg.norm((towards / lengths[:, None]).sum(0))) if lengths.all() else np.inf

    if not slope(at + step) <= slope(fallback):
        return fallback, False
    return at + step, float(np.sqrt(step @ step)) <= SETTLED / np.median(weights)


@dataclass(frozen=True)
class CenteredClipping(Selecting):
    """Steps from the last aggregate towards the vectors, each of which pulls no harder than tau.

    v <- v + mean over i of (x_i - v) min(1, tau / ||x_i - v||),  repeated; v starts at the last aggregate

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.
        tau: the most that a vector may pull, > 0.
        iterations: how many steps, >= 1.

    Shape: [n, d] -> [d], with ``previous`` [d]: the last aggregate, the origin when there is none.
    Tolerates: f < n / 2, and less the further the last aggregate is from the honest vectors in units of tau.
    Cost: one pass for distances, one over all rows, whatever the number of iterations; one more where some vectors are
        far from the others.
    Convention: vectors that are not finite do not pull (the mean still divides by n). Not scale
        equivariant: tau is a length.

    Example:
        >>> import torch
        >>> CenteredClipping(f=0, tau=1.0)(torch.tensor([[10.0], [0.0]]))
        tensor([0.5000])

    Reference: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021.
    """

    tau: float = 10.0
    iterations: int = 1

    uses_previous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_real(self, "tau", "tau > 0", lambda tau: tau > 0)
        set_whole(self, "iterations", least=1)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        n, positions = geometry.n, geometry.positions()
        good, v = np.append(geometry.finite, False), positions[-1]
        x, result = positions[good], np.zeros(n + 1)
        result[-1] = 1
        for _ in range(self.iterations):
            away = x - v
            lengths = np.sqrt((away * away).sum(1))
            pulls = np.minimum(1, self.tau / np.where(lengths > 0, lengths, 1)) / n
            v = v + pulls @ away
            result *= 1 - pulls.sum()
            result[good] += pulls
        return result
