"""Rules around a centre: a median of one kind or another, or a vector that is trusted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .. import kernels, numerics
from ..checks import require, set_real, set_whole
from ..claims import Guarantee
from ..geometry import Geometry, Held, in_unit, mean_weights, unit_of, upper_medians
from ..kernels.definitions import as_counts
from ..kernels.runtime import jit
from ..stages import Bound, General, Nearest, Selecting, refuse_faulty
from .coordinatewise import Even, median_ranks
from .selecting import sure_scores

SEARCHES = 200  # Newton's steps; 5 to 10 are usual

Pulls = tuple[float, float, np.ndarray, np.ndarray, float, float, float]


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

    title: ClassVar[str] = "Aksel"
    published: ClassVar[Mapping[str, Any] | None] = {"even": "lower"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.mode in ("mid", "n-f"), 'mode "mid" or "n-f"', self.mode)
        require(self, self.even in ("mid", "lower", "upper"), 'even "mid", "lower" or "upper"', self.even)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        n = x.shape[0]
        median, faulty = kernels.column_statistic(x, *median_ranks(n, self.even))
        squared, count = kernels.host(kernels.squared_distances_to(x, median), faulty)
        refuse_faulty(self, self.f, int(count))
        if (unit := unit_of(x, squared)) is not None:
            squared = kernels.host(kernels.squared_distances_to(in_unit(x, unit), in_unit(median, unit)))
        del median  # before the answer takes as much
        count = (n + 1) // 2 if self.mode == "mid" else n - self.f
        return kernels.weighted_rows(x, mean_weights(ranked(x, squared)[:count], n))


def ranked(x: Tensor, scores: np.ndarray) -> np.ndarray:
    """The rows that have a finite score, by score; ties by value."""
    finite = np.isfinite(scores)
    return unplaced(x, finite).smallest(scores, scores.size)[: int(finite.sum())]


def unplaced(x: Tensor, finite: np.ndarray) -> Geometry:
    """The rows as points whose distances nobody knows: all may differ."""
    return Geometry(np.pad(1.0 - np.eye(finite.size), (0, 1)), finite, Held(x), None)


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

    title: ClassVar[str] = "MoNNA"
    score_name: ClassVar[str] = "distance to the pivot"
    by_place: ClassVar[bool] = True
    exempt: ClassVar[Mapping[str, str]] = {"PERMUTATION": "trusts the vector at the pivot's place"}

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

    def score(self, geometry: Geometry) -> np.ndarray:
        return np.sqrt(geometry.distances[self.pivot])


@dataclass(frozen=True)
class Medoid(Selecting):
    """The one vector with the least sum of distances to all others.

    F = x_k for the least sum over j of ||x_k - x_j||, with weights of w_j ||x_k - x_j||

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances; the result is a copy of one row.
    Convention: vectors that are not finite are left out. Ties go to the lexicographically smaller vector.

    Example:
        >>> import torch
        >>> Medoid(f=1)(torch.tensor([[0.0], [1.0], [100.0]]))
        tensor([1.])
    """

    title: ClassVar[str] = "Medoid"
    weighs: ClassVar[bool] = True
    score_name: ClassVar[str] = "sum of distances"

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        geometry, scores = sure_scores(geometry, distance_sums, [1])  # which far vectors do not drown
        return mean_weights(geometry.smallest(scores, 1), geometry.n)

    def score(self, geometry: Geometry) -> np.ndarray:
        return plain_sums(_by_share(np.sqrt(geometry.distances), geometry), geometry.finite)


def distance_sums(geometry: Geometry, positions: np.ndarray | None = None) -> np.ndarray:
    """[n] sums of the distances from each point to all finite ones, less a constant where some are very far.

    A point y at 1e30 adds 1e30 to every sum and drowns what tells them apart: of it ||x - y|| - ||y|| is added instead,
    written so that nothing cancels.
    """
    good = geometry.finite
    plain = np.sqrt(geometry.distances)
    known = plain[np.ix_(good, good)]
    usual = upper_medians(upper_medians(known)[None])[0]
    if not (known > numerics.FAR * usual).any():
        return plain_sums(_by_share(plain, geometry), good)
    at = (geometry.positions() if positions is None else positions)[: geometry.n]
    at = np.where(good[:, None], at, 0)
    squares = (at * at).sum(1)
    with np.errstate(invalid="ignore"):
        less = (squares[:, None] - 2 * at @ at.T) / (plain + np.sqrt(squares)[None, :])
    near = np.sqrt(squares) <= numerics.FAR * usual
    np.fill_diagonal(less, -np.sqrt(squares))
    less[:, near] = plain[:, near]
    return plain_sums(_by_share(less, geometry), good)


def _by_share(terms: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Terms [n, n], those of a column times what its point counts."""
    return terms if geometry.shares is None else np.where(geometry.finite, terms, 0) * geometry.shares


def plain_sums(terms: np.ndarray, good: np.ndarray) -> np.ndarray:
    """[n] sums of the rows of [n, n] terms over the good columns, from the least up; infinite for rows not good."""
    return np.where(good, np.sort(np.where(good, terms, 0), axis=1).sum(1), np.inf)


@dataclass(frozen=True)
class GeometricMedian(Selecting):
    """The point with the least sum of distances to all vectors: not squared, so that none weighs more for being far.

    F = argmin over y of sum of ||x_i - y||, with weights of w_i ||x_i - y||

    Found by Weiszfeld's iteration, then by Newton's with a search along its direction, until what remains is below 1e-9
    of a usual distance. What decides is the condition of optimality, that the unit vectors towards the vectors cancel
    (or, at a vector, add up to no more than its own weight), and not the sum of distances, which near a line is too
    flat to tell.

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances, one over all rows; one more where some vectors are far from the others.
    Convention: vectors that are not finite are left out. Where the answer is not unique (an even number of vectors on
        one line, but for the rounding of their type) the middle of the segment that is optimal.

    Warns:
        RuntimeWarning: the search ended before it arrived, which no input is known to bring about.

    Example:
        >>> import torch
        >>> GeometricMedian(f=1)(torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0], [1.0, 7.0]]))
        tensor([1., 0.])

    Reference: Weiszfeld, 1937; Vardi, Zhang, "The multivariate L1-median and associated data depth", PNAS 2000; in
    distributed learning: Chen, Su, Xu, 2017; Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning",
    IEEE Transactions on Signal Processing 2022.
    """

    title: ClassVar[str] = "Geometric median"
    weighs: ClassVar[bool] = True
    kappa: ClassVar[Bound | None] = staticmethod(lambda n, f: 4 * (1 + f / (n - 2 * f)) ** 2)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        geometry = geometry.sharp()
        order, weights, sure = _geometric_median(geometry)
        if not sure and not geometry.exact:
            order, weights, _ = _geometric_median(geometry.measured())
        result = np.zeros(geometry.n)
        result[order] = weights
        return result


def _geometric_median(geometry: Geometry) -> tuple[np.ndarray, np.ndarray, bool]:
    """The finite points, their weights, and whether distances in float32 would do."""
    exact = geometry.exact
    order = geometry.by_centrality()  # sums run in an order that follows the vectors, to the last bit
    positions = geometry.positions()
    x, sums = positions[order], distance_sums(geometry, positions)[order]
    shares = np.ones(order.size)
    if geometry.shares is not None:
        shares, _ = as_counts(geometry.shares[order], torch.float32)  # whole numbers, where they may be, cancel exactly
    lengths = np.sqrt(np.square(x).sum(1))
    usual = float(np.median(lengths))
    usual = usual if usual > 0 else float(lengths.max())
    if usual == 0:
        return order, mean_weights([0], order.size), True
    across = np.sqrt(np.square(x[:, 1:]).sum(1))
    thin = max(numerics.LINE * torch.finfo(geometry.vectors.dtype).eps, numerics.AGREED)
    if (across <= thin * np.maximum(lengths, usual)).all():  # on one line
        along = np.argsort(x[:, 0], kind="stable")
        ends, slack = shares[along].cumsum(), numerics.NOTHING * shares.sum()
        half = [int((ends < shares.sum() / 2 - slack).sum()), int((ends <= shares.sum() / 2 + slack).sum())]
        return order, mean_weights(along[sorted(set(half))], order.size), exact
    x = x / usual
    best = int(np.argmin(sums))
    optimal, sure = [], True
    for k in np.flatnonzero(sums <= sums[best] + numerics.UNSURE * usual).tolist():
        excess, blur = _excess(_pulls(x, x[k], shares), numerics.OPTIMAL if exact else numerics.UNSURE)
        sure &= abs(excess) > blur
        if excess <= blur and all((x[k] != x[other]).any() for other in optimal):
            optimal.append(k)
    if optimal:  # one of them, unless rounding cannot tell
        lengths = np.sqrt(np.square(x - x[optimal[0]]).sum(1))
        near = lengths[lengths > 0].min(initial=np.inf) < numerics.CLOSE * np.median(lengths)
        return order, mean_weights(optimal, order.size), sure and not near
    at = _descended(x, shares, x[best], _slope(_pulls(x, x[best], shares)))
    for _ in range(10):
        weights = _pulls(x, at, shares)[3]
        goal = weights @ x / weights.sum()
        step = goal - at
        at = goal
        if step @ step <= numerics.SETTLED**2:
            break
    curvature = np.eye(1)
    for _ in range(SEARCHES):
        pulls = _pulls(x, at, shares)
        curvature = _curvature(x, at, shares, pulls)
        units = 1 / np.sqrt(np.maximum(np.diag(curvature), np.finfo(float).tiny))  # across a line and along it, alike
        step = units * np.linalg.lstsq(units[:, None] * curvature * units, units * _slope(pulls), rcond=None)[0]
        if step @ step <= numerics.SETTLED**2:
            break
        at = _descended(x, shares, at, step)
    else:
        warnings.warn("GeometricMedian ended its search before it arrived; the answer is near.", RuntimeWarning, 2)
    weights = _pulls(x, at, shares)[3]
    steep = np.linalg.eigvalsh(curvature)[0] > numerics.FLAT * weights.sum()
    sure = sure and (weights / shares).max() < 1 / numerics.CLOSE and steep
    return order, weights / weights.sum(), sure


@jit
def _pulls(x, at, shares):  # type: ignore[no-untyped-def]
    """Of the unit vectors from a place towards the points, each as often as its share says: how many more look up the
    first axis than down, what their sum along it lacks to that number, their sum along the other axes, the inverse
    distances (0 of points at the place), the number of points at the place, and the sizes of what was added up along
    the first axis and across.

    Near a line the first sum is a small difference of large numbers: taken apart, whole numbers cancel exactly.
    """
    n, r = x.shape
    number, place = 0.0, 0.0
    lack, size, across = 0.0, 0.0, 0.0
    total, weights = np.zeros(r), np.zeros(n)
    for i in range(n):
        first, rest = x[i, 0] - at[0], 0.0
        for k in range(1, r):
            rest += (x[i, k] - at[k]) ** 2
        length = np.sqrt(first * first + rest)
        if length == 0:
            place += shares[i]
            continue
        share = shares[i]
        sign = share if first >= 0 else -share
        number += sign
        missing = rest / (length * (length + abs(first)))  # 1 - |first| / length
        lack += sign * missing
        size += share * missing
        across += share * (np.sqrt(rest) / length)
        weights[i] = share * (1 / length)
        for k in range(1, r):
            total[k] += share * ((x[i, k] - at[k]) / length)
    return number, lack, total, weights, place, size, across


def _slope(pulls: Pulls) -> np.ndarray:
    """The sum of the unit vectors: the way down, for the sum of distances."""
    number, lack, total = pulls[:3]
    slope = total.copy()
    slope[0] = number - lack
    return slope


def _excess(pulls: Pulls, rounding: float) -> tuple[float, float]:
    """By how much the square of the sum of unit vectors at a point is over that of its own weight (it is optimal where
    it is not), and how much of that may be rounding."""
    number, lack, total, _, place, size, across = pulls
    sign = 1 if number >= 0 else -1
    along, beside = abs(number) - sign * lack, float(np.sqrt(total @ total))
    excess = (abs(number) - place - sign * lack) * (along + place) + beside * beside
    return excess, rounding * ((abs(along) + place) * size + beside * across)


def _curvature(x: np.ndarray, at: np.ndarray, shares: np.ndarray, pulls: Pulls) -> np.ndarray:
    """The second derivative of the sum of distances."""
    weights = pulls[3]
    units = (weights / shares)[:, None] * (x - at)
    result = weights.sum() * np.eye(x.shape[1]) - (units.T * weights) @ units
    result[0, 0] = weights @ np.square(units[:, 1:]).sum(1)  # the same, without the difference of large numbers
    return result


def _descended(x: np.ndarray, shares: np.ndarray, at: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Where the sum of distances, a convex function, has lost half of its slope along a direction at least."""

    def slope(t: float) -> float:
        return float(_slope(_pulls(x, at + t * step, shares)) @ step)

    low, high, t = 0.0, np.inf, 1.0
    pulls = _pulls(x, at, shares)
    least = 0.5 * max(float(_slope(pulls) @ step) - pulls[4] * float(np.sqrt(step @ step)), 0.0)
    for _ in range(80):
        left = slope(t)
        if abs(left) <= least:
            return at + t * step
        if left > 0:
            low = t
            t = 2 * t if high == np.inf else 0.5 * (low + high)
        else:
            high = t
            t = 0.5 * (low + high)
    return at + low * step


@dataclass(frozen=True)
class CenteredClipping(Selecting):
    """Steps from the last aggregate towards the vectors, each of which pulls no harder than tau.

    v <- v + mean over i of (x_i - v) min(1, tau / ||x_i - v||),  repeated; v starts at the last aggregate

    With weights the mean is weighted.

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.
        tau: the most that a vector may pull, > 0.
        iterations: how many steps, >= 1.

    Shape: [n, d] -> [d], with ``previous`` [d]: the last aggregate, the origin when there is none.
    Tolerates: f < n / 2, and less the further the last aggregate is from the honest vectors in units of tau.
    Cost: one pass an iteration for distances to where it is, one over all rows; behind a mixing that makes sums of
        vectors one pass for n x n distances, whatever the number of iterations.
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

    title: ClassVar[str] = "Centered clipping"
    uses_previous: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    guarantee: ClassVar[Guarantee] = Guarantee(
        "within tau a step of the last aggregate",
        lambda rule, honest, previous: (previous, rule.tau * rule.iterations),
    )
    exempt: ClassVar[Mapping[str, str]] = {"SCALE": "tau is a length"}

    def __post_init__(self) -> None:
        super().__post_init__()
        set_real(self, "tau", "tau > 0", lambda tau: tau > 0)
        set_whole(self, "iterations", least=1)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    @property
    def center(self) -> int:
        return -2

    def weights(self, geometry: Geometry) -> np.ndarray:
        n, good, scales, tau = geometry.n, geometry.finite, geometry.scales, self.tau / geometry.unit
        if scales is None:
            return self._walk_between(geometry)
        squared = geometry.squared[-2, :n]
        if not geometry.exact:
            squared = geometry.vectors.around(geometry.through(np.eye(n + 1)[-1]), scales)[1]
        result = np.eye(n + 1)[-1]
        for iteration in range(self.iterations):
            if iteration:
                squared = geometry.vectors.around(geometry.through(result), scales)[1]
            lengths = np.sqrt(squared[good])
            pulls = np.minimum(1, tau / np.where(lengths > 0, lengths, 1)) / n
            pulls = pulls if geometry.shares is None else pulls * geometry.shares[good]
            result *= 1 - pulls.sum()
            result[:n][good] += pulls
        return result

    def _walk_between(self, geometry: Geometry) -> np.ndarray:
        """The same for mixtures, in n x n."""
        geometry = geometry.sharp()
        n, positions, tau = geometry.n, geometry.positions(), self.tau / geometry.unit
        good, v = np.append(geometry.finite, False), positions[-1]
        x, result = positions[good], np.eye(n + 1)[-1]
        for _ in range(self.iterations):
            away = x - v
            lengths = np.sqrt((away * away).sum(1))
            pulls = np.minimum(1, tau / np.where(lengths > 0, lengths, 1)) / n
            pulls = pulls if geometry.shares is None else pulls * geometry.shares[geometry.finite]
            v = v + pulls @ away
            result *= 1 - pulls.sum()
            result[good] += pulls
        return result
