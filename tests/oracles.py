"""Slow float64 oracles: every rule, mixing, attack and momentum recursion written from its published definition.

Nothing here imports the package or torch, and nothing here is fast: an oracle is there to be compared with a paper,
line by line. Vectors are rows: ``x`` is [n, d], ``honest`` is [h, d]; ``f`` is the number of Byzantine vectors
declared (rules) or sent (attacks). Inputs are finite: what a rule does with NaN is the package's contract, not the
papers'.

Two conventions hold everywhere, since the papers are silent and a rule should not depend on the order of its inputs:
- between *vectors* of equal score, the lexicographically least vector comes first (``ranked``); where other people's
  figures must be redone, ``ties="position"`` takes the first in the input instead, as nearly every library does;
- between *values* at equal distance from a centre, the lower value comes first (``mean_of_closest``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import cos, floor, radians, sin, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Rule = Callable[[Array, int], Array]
Attack = Callable[[Array, int], Array]

# ---------------------------------------------------------------------------------------------------------------------
# Shared vocabulary
# ---------------------------------------------------------------------------------------------------------------------


def matrix(x: ArrayLike) -> Array:
    """The vectors as a float64 copy [n, d]."""
    out = np.array(x, dtype=np.float64)
    assert out.ndim == 2, out.shape
    return out


def squared_distances(x: Array) -> Array:
    """All ||x_i - x_j||^2, [n, n], from differences (never from a Gram matrix, which cancels)."""
    return np.stack([((x - row) ** 2).sum(axis=1) for row in x])


def ranked(scores: Array, x: Array, ties: str = "value") -> NDArray[np.intp]:
    """Indices by ascending score; equal scores by lexicographic "value" of the vectors, or by "position"."""
    if ties == "position":
        return np.argsort(scores, kind="stable")
    return np.lexsort((*x.T[::-1], scores))


def closest(x: Array, centre: Array, count: int) -> NDArray[np.intp]:
    """Indices of the ``count`` vectors nearest to ``centre``."""
    return ranked(((x - centre) ** 2).sum(axis=1), x)[:count]


def mean_of_closest(x: Array, centre: Array, count: int) -> Array:
    """Per coordinate, the mean of the ``count`` values closest to ``centre``; the lower first if equally close."""
    out = np.empty(x.shape[1])
    for j in range(x.shape[1]):
        column = x[:, j]
        order = np.lexsort((column, np.abs(column - centre[j])))
        out[j] = column[order[:count]].mean()
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Rules: selection by distances
# ---------------------------------------------------------------------------------------------------------------------


def average(x: ArrayLike, f: int = 0) -> Array:
    """The arithmetic mean; tolerates no Byzantine vector, f is ignored."""
    return matrix(x).mean(axis=0)


def krum_scores(x: Array, neighbours: int, distance: str = "squared") -> Array:
    """Krum's scores (Blanchard et al. 2017): sum of (squared) distances to the ``neighbours`` nearest others."""
    between = squared_distances(x)
    if distance == "plain":
        between = np.sqrt(between)
    scores = np.empty(len(x))
    for i in range(len(x)):
        others = np.sort(np.delete(between[i], i))
        scores[i] = others[:neighbours].sum()
    return scores


def neighbour_count(n: int, f: int, neighbours: str) -> int:
    """How many nearest others Krum counts: n-f-2 (the paper) or n-f-1 (several libraries, which count one too many)."""
    return max({"n-f-2": n - f - 2, "n-f-1": n - f - 1}[neighbours], 1)


def krum(x: ArrayLike, f: int, neighbours: str = "n-f-2", distance: str = "squared", ties: str = "value") -> Array:
    """Krum (Blanchard et al., NeurIPS 2017): the vector of least score, squared distances to its n-f-2 nearest others.

    Exact ties are not rare: with one neighbour (n = f+3) two mutual neighbours always tie, and so do, in one
    dimension with plain distances, two adjacent values whose other neighbours are the same, as many below as above.
    """
    return multi_krum(x, f, m=1, neighbours=neighbours, distance=distance, ties=ties)


def multi_krum(
    x: ArrayLike,
    f: int,
    m: int | None = None,
    neighbours: str = "n-f-2",
    distance: str = "squared",
    ties: str = "value",
) -> Array:
    """Multi-Krum (Blanchard et al., NeurIPS 2017): mean of the m best Krum scores; m = n-f-2 when not given."""
    x = matrix(x)
    n = len(x)
    if m is None:
        m = max(n - f - 2, 1)
    scores = krum_scores(x, neighbour_count(n, f, neighbours), distance)
    return x[ranked(scores, x, ties)[:m]].mean(axis=0)


def bulyan(
    x: ArrayLike,
    f: int,
    base: str = "krum",
    selection: str = "rescored",
    m: int | None = None,
    distance: str = "squared",
    even: str = "mid",
    ties: str = "value",
) -> Array:
    """Bulyan (El-Mhamdi et al., ICML 2018): a selection by repeated Krum, then the values closest to the median.

    base="krum": n-2f rounds, each moves the vector of least score from the remaining to the selected ones; then, per
    coordinate, the mean of the n-4f values closest to the median of the selected.
    base="multi-krum": n-2f-2 rounds, each selects the *mean* of the min(m, r-f-2) best of the r that remain (m =
    n-f-2 when not given) and removes the best one; then the mean of the n-4f-2 values closest to the median.

    selection="rescored" (the paper): scores are recomputed on the r remaining vectors with r-f-2 neighbours, at least 1
    (and 0 when the vector is alone). At r = f+3 only the nearest other counts, so two mutual neighbours tie exactly:
    the lexicographically least wins. selection="frozen" (the authors' code): scores computed once on all n with n-f-2
    neighbours, so round i looks at ranks i, i+1, ... of one fixed ranking. The authors' code is base="multi-krum",
    selection="frozen", distance="plain", even="lower", ties="position".
    """
    x = matrix(x)
    n = len(x)
    rounds = n - 2 * f if base == "krum" else n - 2 * f - 2
    most = n - f - 2 if m is None else m
    frozen = list(ranked(krum_scores(x, max(n - f - 2, 1), distance), x, ties))
    remaining = list(range(n))
    selected = []
    for _ in range(rounds):
        r = len(remaining)
        if selection == "rescored":
            vectors = x[remaining]
            scores = krum_scores(vectors, max(r - f - 2, 1), distance)
            order = [remaining[k] for k in ranked(scores, vectors, ties)]
        else:
            order = [k for k in frozen if k in remaining]
        count = 1 if base == "krum" else max(min(most, r - f - 2), 1)
        selected.append(x[order[:count]].mean(axis=0))
        remaining.remove(order[0])
    chosen = np.stack(selected)
    return mean_of_closest(chosen, median(chosen, f, even=even), rounds - 2 * f)


def mda(x: ArrayLike, f: int, ties: str = "value") -> Array:
    """Minimum diameter averaging (Rousseeuw 1985; El-Mhamdi 2018): mean of the least-diameter (n-f)-subset.

    Several subsets often share the least diameter: the pair that realises it does not fix the others. ties="value":
    the one whose squared pairwise distances have the least sum, then the one of lexicographically least mean.
    ties="position": the first in lexicographic order of the indices, which is what enumerating combinations finds
    first.
    """
    x = matrix(x)
    n = len(x)
    between = squared_distances(x)
    best: tuple[float, float, tuple[float, ...]] | None = None
    for subset in combinations(range(n), n - f):
        within = between[np.ix_(subset, subset)]
        spread = float(within.sum()) if ties == "value" else 0.0
        mean = tuple(x[list(subset)].mean(axis=0)) if ties == "value" else ()
        candidate = (float(within.max()), spread, mean)
        if best is None or candidate < best:
            best, winner = candidate, list(subset)
    return x[winner].mean(axis=0)


def cge(x: ArrayLike, f: int) -> Array:
    """Comparative gradient elimination (Gupta, Liu, Vaidya 2020): mean of the n-f vectors of least Euclidean norm.

    Convention: the mean, not the sum that the authors write (it differs by the constant n-f, absorbed by the step
    size).
    """
    x = matrix(x)
    return x[closest(x, np.zeros(x.shape[1]), len(x) - f)].mean(axis=0)


def aksel(x: ArrayLike, f: int, mode: str = "mid", even: str = "mid") -> Array:
    """Aksel (Boussetta et al., OPODIS 2021): mean of the (n+1)//2 or n-f closest to the median."""
    x = matrix(x)
    count = (len(x) + 1) // 2 if mode == "mid" else len(x) - f
    return x[closest(x, median(x, f, even=even), count)].mean(axis=0)


def medoid(x: ArrayLike, f: int = 0) -> Array:
    """Medoid: the vector of least sum of (plain) distances to all others."""
    x = matrix(x)
    return x[ranked(np.sqrt(squared_distances(x)).sum(axis=1), x)[0]]


def monna(x: ArrayLike, f: int, pivot: int | ArrayLike = 0) -> Array:
    """MoNNA (Farhadkhani et al., ICML 2023): mean of the n-f nearest to a trusted pivot (index or vector)."""
    x = matrix(x)
    centre = x[pivot] if isinstance(pivot, int) else np.asarray(pivot, dtype=np.float64)
    return x[closest(x, centre, len(x) - f)].mean(axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# Rules: coordinate by coordinate
# ---------------------------------------------------------------------------------------------------------------------


def median(x: ArrayLike, f: int = 0, even: str = "mid") -> Array:
    """Coordinate-wise median (Yin et al., ICML 2018); for even n the mean of the two middle values, or one of them."""
    x = np.sort(matrix(x), axis=0)
    n = len(x)
    lower, upper = x[(n - 1) // 2], x[n // 2]
    return {"mid": (lower + upper) / 2, "lower": lower, "upper": upper}[even]


def trimmed_mean(x: ArrayLike, f: int) -> Array:
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018): mean without the f least and f greatest."""
    x = np.sort(matrix(x), axis=0)
    return x[f : len(x) - f].mean(axis=0)


def phocas(x: ArrayLike, f: int) -> Array:
    """Phocas (Xie et al., arXiv 1805.09682): per coordinate, the mean of the n-f values closest to the trimmed mean."""
    x = matrix(x)
    return mean_of_closest(x, trimmed_mean(x, f), len(x) - f)


def meamed(x: ArrayLike, f: int, even: str = "mid") -> Array:
    """Mean around median (Xie et al. 2018): per coordinate, the mean of the n-f values closest to the median."""
    x = matrix(x)
    return mean_of_closest(x, median(x, f, even=even), len(x) - f)


# ---------------------------------------------------------------------------------------------------------------------
# Rules whose workers count differently: w is [n] > 0 and n together
# ---------------------------------------------------------------------------------------------------------------------

BORDER = 1e-12  # of all weight: amounts of it so close are the same, whatever the order in which they were added up


def mean_one(w: ArrayLike) -> Array:
    """The weights, n together."""
    out = np.array(w, dtype=np.float64)
    return out * (len(out) / out.sum())


def heaviest(w: Array, f: int) -> float:
    """W_f: the weight of the f heaviest."""
    return float(np.sort(w)[::-1][:f].sum())


def first_of_weight(order: Sequence[int] | NDArray[np.intp], w: Array, amount: float) -> Array:
    """[n] how much of each weight is among the first so much in an order; of the last one in part."""
    taken, rest = np.zeros(len(w)), amount
    for i in order:
        if rest <= BORDER * len(w):
            break
        taken[i] = min(w[i], rest)
        rest -= taken[i]
    return taken


def mean_by(parts: Array, x: Array) -> Array:
    """The mean of rows, or of numbers, each of so much weight."""
    used = parts > 0
    return (parts[used] @ x[used]) / parts[used].sum()


def weighted_average(x: ArrayLike, w: ArrayLike, f: int = 0) -> Array:
    """sum w_i x_i / sum w_i."""
    return mean_by(mean_one(w), matrix(x))


def weighted_median(x: ArrayLike, w: ArrayLike, f: int = 0, even: str = "mid") -> Array:
    """Per coordinate all y that minimise sum of w_i |x_i - y|, which have no more than half of the weight on either
    side, are the values from one of the x_i to another, perhaps the same: their middle, or one of the ends."""
    x, w = matrix(x), mean_one(w)
    out = np.empty(x.shape[1])
    for j in range(x.shape[1]):
        column, half = x[:, j], (0.5 + BORDER) * len(w)
        best = np.array([y for y in column if w[column < y].sum() <= half and w[column > y].sum() <= half])
        out[j] = {"mid": (best.min() + best.max()) / 2, "lower": best.min(), "upper": best.max()}[even]
    return out


def weighted_trimmed_mean(x: ArrayLike, w: ArrayLike, f: int) -> Array:
    """Per coordinate, what is left without the weight W_f of the least and without that of the greatest values."""
    x, w = matrix(x), mean_one(w)
    out = np.empty(x.shape[1])
    for j in range(x.shape[1]):
        order = np.argsort(x[:, j], kind="stable")
        below, above = (first_of_weight(o, w, heaviest(w, f)) for o in (order, order[::-1]))
        left = w - below - above
        out[j] = mean_by(np.where(left > BORDER * len(w), left, 0), x[:, j])
    return out


def weighted_mean_of_closest(x: Array, w: Array, centre: Array, amount: float) -> Array:
    """Per coordinate, the mean of so much weight closest to ``centre``; the lower value first if equally close."""
    out = np.empty(x.shape[1])
    for j in range(x.shape[1]):
        order = np.lexsort((x[:, j], np.abs(x[:, j] - centre[j]).round(12)))  # else rounding breaks ties
        out[j] = mean_by(first_of_weight(order, w, amount), x[:, j])
    return out


def weighted_phocas(x: ArrayLike, w: ArrayLike, f: int) -> Array:
    """Per coordinate, the mean of the weight n - W_f closest to the weighted trimmed mean."""
    x, w = matrix(x), mean_one(w)
    return weighted_mean_of_closest(x, w, weighted_trimmed_mean(x, w, f), len(w) - heaviest(w, f))


def weighted_meamed(x: ArrayLike, w: ArrayLike, f: int, even: str = "mid") -> Array:
    """Per coordinate, the mean of the weight n - W_f closest to the weighted median."""
    x, w = matrix(x), mean_one(w)
    return weighted_mean_of_closest(x, w, weighted_median(x, w, f, even), len(w) - heaviest(w, f))


def weighted_krum_scores(x: Array, w: Array, amount: float, distance: str = "squared") -> Array:
    """For each i the sum of w_j ||x_i - x_j||^2 over its nearest others until they weigh ``amount`` - w_i, the last in
    part."""
    between = squared_distances(x)
    if distance == "plain":
        between = np.sqrt(between)
    scores = np.empty(len(x))
    for i in range(len(x)):
        others = np.array([j for j in np.argsort(between[i], kind="stable") if j != i])
        scores[i] = first_of_weight(others, w, amount - w[i]) @ between[i]
    return scores.round(12)  # else rounding breaks ties


def weighted_krum(x: ArrayLike, w: ArrayLike, f: int, neighbours: str = "n-f-2", distance: str = "squared") -> Array:
    """The vector of least score, whose neighbours weigh n - W_f - 1 - w_i (or n - W_f - w_i)."""
    x, w = matrix(x), mean_one(w)
    amount = len(w) - heaviest(w, f) - (1 if neighbours == "n-f-2" else 0)
    return x[ranked(weighted_krum_scores(x, w, amount, distance), x)[0]]


def weighted_multi_krum(
    x: ArrayLike, w: ArrayLike, f: int, m: float | None = None, neighbours: str = "n-f-2", distance: str = "squared"
) -> Array:
    """The mean by weight of the vectors of least score until they weigh m, by default n - W_f - 2, the last in part."""
    x, w = matrix(x), mean_one(w)
    heavy = heaviest(w, f)
    amount = len(w) - heavy - (1 if neighbours == "n-f-2" else 0)
    order = ranked(weighted_krum_scores(x, w, amount, distance), x)
    return mean_by(first_of_weight(order, w, len(w) - heavy - 2 if m is None else min(m, len(w) - heavy)), x)


def weighted_medoid(x: ArrayLike, w: ArrayLike, f: int = 0) -> Array:
    """The vector of least sum of w_j ||x_k - x_j||."""
    x = matrix(x)
    return x[ranked((np.sqrt(squared_distances(x)) * mean_one(w)).sum(axis=1).round(12), x)[0]]


def weighted_geometric_median(x: ArrayLike, w: ArrayLike, f: int = 0, iterations: int = 100_000) -> Array:
    """The y of least sum w_i ||x_i - y||. A data point is the answer where the pull of the others, sum of w_i times the
    unit vector to x_i, is no more than the weight that lies there; all such points are averaged (Vardi and Zhang 2000).
    Otherwise the y where pulls cancel, by Weiszfeld's iteration."""
    x, w = matrix(x), mean_one(w)
    optimal = []
    for point in x:
        there = np.linalg.norm(x - point, axis=1) == 0
        towards = x[~there] - point
        pull = (w[~there] / np.linalg.norm(towards, axis=1)) @ towards
        if np.linalg.norm(pull) <= w[there].sum() + BORDER * len(w):
            optimal.append(point)
    if optimal:
        return np.unique(np.stack(optimal), axis=0).mean(axis=0)
    y = mean_by(w, x)
    for _ in range(iterations):
        target = mean_by(w / np.linalg.norm(x - y, axis=1), x)
        step, y = float(np.linalg.norm(target - y)), target
        if step <= 1e-15 * float(np.abs(x).max()):
            break
    return y


def weighted_centered_clipping(
    x: ArrayLike, w: ArrayLike, f: int = 0, tau: float = 10.0, iterations: int = 1, previous: ArrayLike | None = None
) -> Array:
    """v <- v + (1 / n) sum of w_i (x_i - v) min(1, tau / ||x_i - v||)."""
    x, w = matrix(x), mean_one(w)
    v = np.zeros(x.shape[1]) if previous is None else np.array(previous, dtype=np.float64)
    for _ in range(iterations):
        steps = [
            w[i] * (row - v) * min(1.0, tau / max(sqrt(((row - v) ** 2).sum()), 1e-300)) for i, row in enumerate(x)
        ]
        v = v + sum(steps) / len(x)
    return v


def capped(sizes: ArrayLike, cap: float, rounds: int = 10_000) -> Array:
    """Weights in proportion to sizes, what is above the cap dealt to those below it, again and again."""
    w = mean_one(sizes)
    for _ in range(rounds):
        excess = np.maximum(w - cap, 0).sum()
        w = np.minimum(w, cap)
        below = w < cap
        if excess <= 0 or not w[below].any():
            break
        w[below] *= 1 + excess / w[below].sum()
    return w


# ---------------------------------------------------------------------------------------------------------------------
# Rules: iterative, clipping
# ---------------------------------------------------------------------------------------------------------------------


def geometric_median(x: ArrayLike, f: int = 0, iterations: int = 100_000) -> Array:
    """Geometric median (Weber; Pillutla et al., TSP 2022): the y of least sum ||x_i - y||, to machine precision.

    A data point x_k is the answer when ||sum of unit vectors from x_k to the others|| <= the multiplicity of x_k (Vardi
    and Zhang 2000); otherwise Weiszfeld's iteration, with their correction at data points. Where the answer is not
    unique (even n on a line) every optimal data point is averaged: the middle of the segment.
    """
    x = matrix(x)
    optimal = []
    for k in range(len(x)):
        pull, multiplicity = pull_at(x, x[k])
        if np.linalg.norm(pull) <= multiplicity * (1 + 1e-12):
            optimal.append(x[k])
    if optimal:
        return np.unique(np.stack(optimal), axis=0).mean(axis=0)

    y = x.mean(axis=0)
    for _ in range(iterations):
        distances = np.linalg.norm(x - y, axis=1)
        far = distances > 0
        weights = 1 / distances[far]
        target = (weights[:, None] * x[far]).sum(axis=0) / weights.sum()
        if not far.all():
            pull, multiplicity = pull_at(x, y)
            kept = min(1.0, multiplicity / float(np.linalg.norm(pull)))
            target = (1 - kept) * target + kept * y
        step = float(np.linalg.norm(target - y))
        y = target
        if step <= 1e-14 * float(np.abs(x).max()):
            break
    return y


def pull_at(x: Array, y: Array) -> tuple[Array, int]:
    """Sum of the unit vectors from y to the vectors that differ from it, and how many vectors equal it."""
    towards = x - y
    distances = np.linalg.norm(towards, axis=1)
    far = distances > 0
    return (towards[far] / distances[far, None]).sum(axis=0), int((~far).sum())


def centered_clipping(
    x: ArrayLike, f: int = 0, tau: float = 10.0, iterations: int = 1, previous: ArrayLike | None = None
) -> Array:
    """Centered clipping (Karimireddy et al., ICML 2021): v <- v + mean((x_i - v) min(1, tau/||x_i - v||))."""
    x = matrix(x)
    v = np.zeros(x.shape[1]) if previous is None else np.array(previous, dtype=np.float64)
    for _ in range(iterations):
        v = v + clipped(x - v, tau).mean(axis=0)
    return v


# ---------------------------------------------------------------------------------------------------------------------
# Rules: spectral
# ---------------------------------------------------------------------------------------------------------------------


def smea(x: ArrayLike, f: int) -> Array:
    """SMEA (Allouah et al., ICML 2023): mean of the (n-f)-subset of least top covariance eigenvalue.

    The top eigenvalue is the squared spectral norm of the centred subset over its size. Of several subsets with the
    same value, the one of lexicographically least mean.
    """
    x = matrix(x)
    size = len(x) - f
    best: tuple[float, tuple[float, ...]] | None = None
    for subset in combinations(range(len(x)), size):
        vectors = x[list(subset)]
        mean = vectors.mean(axis=0)
        candidate = (float(np.linalg.norm(vectors - mean, 2)) ** 2 / size, tuple(mean))
        if best is None or candidate < best:
            best = candidate
    assert best is not None
    return np.array(best[1])


def caf(x: ArrayLike, f: int, largest: str = "weighted") -> Array:
    """CAF, the covariance-bound-agnostic filter (Allouah et al., ICML 2025): least-eigenvalue mean.

    c = 1; while sum c > n - 2f: mean and covariance weighted by c, top eigenvalue and eigenvector v; remember the
    mean of least eigenvalue; tau_i = <v, x_i - mean>^2; c_i <- c_i (1 - tau_i / tau_max). With f = 0 the loop never
    runs: average. tau_max is over the vectors of positive weight: over all of them, a vector already rejected (c_i =
    0) far away would stall the filter; largest="all" takes it over all, as libraries do, for 1,000 rounds at most.
    Filtering stops when nothing is left to filter (tau_max = 0) or no weight changes.
    """
    x = matrix(x)
    n = len(x)
    c = np.ones(n)
    best, answer = np.inf, x.mean(axis=0)
    rounds = 0
    while c.sum() > n - 2 * f and rounds < 1000:
        rounds += 1
        mean = (c[:, None] * x).sum(axis=0) / c.sum()
        weighted = np.sqrt(c / c.sum())[:, None] * (x - mean)
        _, singular, directions = np.linalg.svd(weighted, full_matrices=False)
        if singular[0] ** 2 < best:
            best, answer = singular[0] ** 2, mean
        tau = ((x - mean) @ directions[0]) ** 2
        tau_max = tau[c > 0].max() if largest == "weighted" else tau.max()
        if tau_max == 0 or (tau[c > 0] / tau_max < 1e-16).all():
            break
        c = c * np.clip(1 - tau / tau_max, 0, None)
    return answer


def dnc(x: ArrayLike, f: int, coordinates: Sequence[ArrayLike], c: float = 1.0) -> Array:
    """Divide-and-conquer (Shejwalkar, Houmansadr, NDSS 2021): mean of those that all spectral filters keep.

    ``coordinates`` holds the sampled coordinates of each round. A round restricts the vectors to them, centres, takes
    the top right singular vector v, and drops the floor(c f) of greatest <v, x_i>^2.
    """
    x = matrix(x)
    n = len(x)
    good = set(range(n))
    for sampled in coordinates:
        part = x[:, np.asarray(sampled, dtype=int)]
        centred = part - part.mean(axis=0)
        v = np.linalg.svd(centred, full_matrices=False)[2][0]
        order = ranked((centred @ v) ** 2, x)
        good &= {int(i) for i in order[: n - floor(c * f)]}
    assert good, "no vector was kept in every round: the paper leaves this undefined"
    return x[sorted(good)].mean(axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# Rules: defences of federated learning, by signs, cosines and trust
# ---------------------------------------------------------------------------------------------------------------------


def cosines(x: Array) -> Array:
    """Cosine similarities [n, n]; a null vector has cosine 0 with every vector (and 1 with itself)."""
    norms = np.linalg.norm(x, axis=1)
    unit = x / np.where(norms > 0, norms, 1)[:, None]
    out = unit @ unit.T
    np.fill_diagonal(out, 1)
    return np.clip(out, -1, 1)


def fltrust(x: ArrayLike, f: int, root: ArrayLike) -> Array:
    """FLTrust (Cao et al., NDSS 2021): mean of ||g0||/||x_i|| x_i weighted by ReLU(cos(x_i, g0)); g0 = root.

    Convention where the paper divides by zero: when no vector is trusted, the null vector (no step is made).
    """
    x, g0 = matrix(x), np.asarray(root, dtype=np.float64)
    total, trust = np.zeros(x.shape[1]), 0.0
    for row in x:
        norms = float(np.linalg.norm(row)) * float(np.linalg.norm(g0))
        if norms == 0:
            continue
        score = max(float(row @ g0) / norms, 0.0)
        total += score * np.linalg.norm(g0) / np.linalg.norm(row) * row
        trust += score
    return total / trust if trust > 0 else total


def clipped_clustering(x: ArrayLike, f: int = 0, history: Sequence[float] = ()) -> Array:
    """ClippedClustering (Li, Ngai, Voigt, TBD 2023): clip to the median norm, mean of the larger cluster.

    Agglomerative clustering with average linkage on cosine distances; ``history`` holds the norms of earlier rounds.
    Fairly sure of: the clipping, cosine, average linkage, two clusters. Convention of ours: clusters of equal size,
    the one whose mean has the least norm.
    """
    x = matrix(x)
    norms = np.linalg.norm(x, axis=1)
    x = clipped(x, float(np.median([*history, *norms])))
    apart = 1 - cosines(x)
    clusters = [[i] for i in range(len(x))]
    while len(clusters) > 2:
        pairs = combinations(range(len(clusters)), 2)
        a, b = min(pairs, key=lambda p: apart[np.ix_(clusters[p[0]], clusters[p[1]])].mean())
        clusters[a] += clusters.pop(b)
    means = [x[members].mean(axis=0) for members in clusters]
    best = min(range(len(clusters)), key=lambda k: (-len(clusters[k]), float(np.linalg.norm(means[k]))))
    return means[best]


def foolsgold_weights(x: ArrayLike, kappa: float = 1.0) -> Array:
    """FoolsGold's learning-rate factors (Fung et al. 2018, algorithm 1); x holds what similarities are computed on.

    cs_ij = cosine; v_i = max_j cs_ij; pardoning: cs_ij *= v_i/v_j when v_j > v_i; a_i = 1 - max_j cs_ij; a /= max a;
    a_i <- kappa (ln(a_i/(1-a_i)) + 0.5), within [0, 1]. In the paper x is the *sum* of each worker's past updates.
    Uncertain: the paper's text clips only after the logit; a is also kept within [0, 1] before the rescaling here,
    since 1 - cs passes 1 for opposite vectors. The logit of 1 is infinite, and clips to 1. All equal vectors: all
    weights 0.
    """
    x = matrix(x)
    similar = cosines(x)
    np.fill_diagonal(similar, -np.inf)
    v = similar.max(axis=1)
    pardoned = similar.copy()
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j and v[j] > v[i] and v[j] != 0:
                pardoned[i, j] *= v[i] / v[j]
    a = np.clip(1 - pardoned.max(axis=1), 0, 1)
    # Cosines of equal vectors are 1 up to rounding; without this, dust would be rescaled to weight 1.
    a[a < 1e-12] = 0
    if a.max() == 0:
        return a
    a = a / a.max()
    with np.errstate(divide="ignore"):
        return np.clip(kappa * (np.log(a) - np.log(1 - a) + 0.5), 0, 1)


def foolsgold(x: ArrayLike, f: int = 0, memory: ArrayLike | None = None, kappa: float = 1.0) -> Array:
    """FoolsGold (Fung, Yoon, Beschastnikh 2018): average by ``foolsgold_weights``.

    Convention: weights are normalised to sum 1, so that this is an average (the paper adds sum a_i x_i to the model,
    and implementations differ). With all weights 0 (Sybils only, or all vectors equal) the answer is the null vector.
    FoolsGold ignores f, and F(x, ..., x) = 0: it is made for workers whose data differ.
    """
    x = matrix(x)
    weights = foolsgold_weights(x if memory is None else memory, kappa)
    if weights.sum() == 0:
        return np.zeros(x.shape[1])
    return (weights[:, None] * x).sum(axis=0) / weights.sum()


def flame(x: ArrayLike, f: int = 0, noise: ArrayLike | None = None) -> Array:
    """FLAME (Nguyen et al., USENIX Security 2022): cosine HDBSCAN, clip to the median norm, average, add noise.

    The paper's HDBSCAN has min_cluster_size = n//2 + 1, min_samples = 1 and one cluster allowed. Two such clusters
    cannot coexist, and min_samples = 1 leaves distances as they are, so its only cluster is the first component of
    more than half the vectors that single linkage forms: that is what is computed here. Fairly sure of this reading
    of the clustering. The median norm is over all n vectors; the mean is over those admitted. ``noise`` [d] is the
    drawn noise (paper: normal, of standard deviation lambda times the median norm), nothing when not given. Vectors
    are updates: the model is at 0.
    """
    x = matrix(x)
    apart = 1 - cosines(x)
    component = list(range(len(x)))
    edges = sorted(combinations(range(len(x)), 2), key=lambda p: apart[p])
    admitted: list[int] = [0] if len(x) == 1 else []
    for i, j in edges:
        merged, gone = component[i], component[j]
        component = [merged if label == gone else label for label in component]
        members = [k for k, label in enumerate(component) if label == merged]
        if len(members) >= len(x) // 2 + 1:
            admitted = members
            break
    radius = float(np.median(np.linalg.norm(x, axis=1)))
    out = clipped(x, radius)[admitted].mean(axis=0)
    return out if noise is None else out + np.asarray(noise, dtype=np.float64)


def mean_shift(points: Array, bandwidth: float) -> list[int]:
    """Labels by mean shift with a flat kernel: points climb to modes; modes within one bandwidth are one cluster.

    Modes are taken by descending number of points around them (then by value); a point belongs to its nearest mode.
    """
    if bandwidth <= 0:
        bandwidth = 1e-12
    modes = []
    for point in points:
        centre = point
        for _ in range(1000):
            near = np.linalg.norm(points - centre, axis=1) <= bandwidth * (1 + 1e-9)
            moved = points[near].mean(axis=0)
            if np.linalg.norm(moved - centre) <= 1e-12:
                break
            centre = moved
        crowd = int((np.linalg.norm(points - centre, axis=1) <= bandwidth * (1 + 1e-9)).sum())
        modes.append((-crowd, tuple(np.round(centre, 9))))
    kept: list[Array] = []
    for _, mode in sorted(set(modes)):
        if all(np.linalg.norm(np.array(mode) - other) > bandwidth for other in kept):
            kept.append(np.array(mode))
    return [int(np.argmin([np.linalg.norm(point - mode) for mode in kept])) for point in points]


def signguard(
    x: ArrayLike,
    f: int = 0,
    coordinates: ArrayLike | None = None,
    lower: float = 0.1,
    upper: float = 3.0,
    quantile: float = 0.5,
) -> Array:
    """SignGuard (Xu et al., ICDCS 2022), the plain variant: norm filter, sign filter, clipped mean.

    1. Keep i with lower <= ||x_i|| / median norm <= upper (0.1 and 3.0).
    2. On sampled ``coordinates`` (the paper draws 10 %; all when not given), the shares of positive, null and negative
       values are the features of i; mean shift clusters them; keep the largest cluster.
    3. Mean over those kept twice of x_i min(1, median norm / ||x_i||).
    Uncertain: the bandwidth, which the paper leaves to a library; here the mean distance of a point to its
    floor(quantile n)-th nearest point, itself counted. Of clusters of equal size, the one met first in order of mode
    density.
    """
    x = matrix(x)
    norms = np.linalg.norm(x, axis=1)
    middle = float(np.median(norms))
    by_norm = {i for i in range(len(x)) if lower * middle <= norms[i] <= upper * middle}

    part = x if coordinates is None else x[:, np.asarray(coordinates, dtype=int)]
    features = np.stack([(part > 0).mean(axis=1), (part == 0).mean(axis=1), (part < 0).mean(axis=1)], axis=1)
    apart = np.sort(np.sqrt(squared_distances(features)), axis=1)
    labels = mean_shift(features, float(apart[:, max(int(quantile * len(x)), 1) - 1].mean()))
    largest = min(set(labels), key=lambda label: (-labels.count(label), label))
    by_sign = {i for i in range(len(x)) if labels[i] == largest}

    kept = sorted(by_norm & by_sign)
    assert kept, "no vector passed both filters: the paper leaves this undefined"
    return clipped(x[kept], middle).mean(axis=0)


def lasa(
    x: ArrayLike,
    f: int = 0,
    layers: Sequence[slice] | None = None,
    sparsity: float = 0.3,
    lambda_norm: float = 2.0,
    lambda_sign: float = 1.0,
) -> Array:
    """LASA (Xu et al., WACV 2025): clip, sparsify, filter each layer by norm and by sign purity.

    1. Norms clipped to their median. 2. Each vector keeps its (1 - sparsity) share of coordinates greatest in size.
    3. Per layer, of the sparsified vectors: the norms, and the purities rho = (1 + sum sgn / sum |sgn|) / 2; a worker
    passes when both median-based scores |value - median| / std are within lambda_norm and lambda_sign. 4. Mean over
    those passing. Uncertain in our memory of the paper: whether the mean is over sparsified (as here) or merely
    clipped layers, the exact thresholds, and the median score's scale (here the population standard deviation).
    A layer that nobody passes is null.
    """
    x = matrix(x)
    n, d = x.shape
    x = clipped(x, float(np.median(np.linalg.norm(x, axis=1))))
    sparse = np.zeros_like(x)
    for i in range(n):
        kept = np.argsort(-np.abs(x[i]), kind="stable")[: d - floor(sparsity * d)]
        sparse[i, kept] = x[i, kept]

    def scores(values: Array) -> Array:
        spread = values.std()
        return np.abs(values - np.median(values)) / (spread if spread > 0 else 1.0)

    out = np.zeros(d)
    for layer in layers or [slice(0, d)]:
        part = sparse[:, layer]
        signs = np.sign(part)
        purity = 0.5 * (1 + signs.sum(axis=1) / np.maximum(np.abs(signs).sum(axis=1), 1))
        passing = (scores(np.linalg.norm(part, axis=1)) <= lambda_norm) & (scores(purity) <= lambda_sign)
        if passing.any():
            out[layer] = part[passing].mean(axis=0)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Mixings: [n, d] -> [m, d]
# ---------------------------------------------------------------------------------------------------------------------


def nnm(x: ArrayLike, f: int) -> Array:
    """Nearest-neighbour mixing (Allouah et al., AISTATS 2023): y_i = mean of the n-f nearest to x_i, itself too."""
    x = matrix(x)
    return np.stack([x[closest(x, row, len(x) - f)].mean(axis=0) for row in x])


def bucketing(x: ArrayLike, s: int, permutation: Sequence[int]) -> Array:
    """Bucketing (Karimireddy et al., ICLR 2022): permute, then means of groups of s; the last may be short."""
    x = matrix(x)[list(permutation)]
    return np.stack([x[k : k + s].mean(axis=0) for k in range(0, len(x), s)])


def clipped(x: Array, radius: float) -> Array:
    """Each vector scaled to norm ``radius`` when its norm exceeds it."""
    out = x.copy()
    for i, norm in enumerate(np.linalg.norm(x, axis=1)):
        if norm > radius:
            out[i] = x[i] * (radius / norm)
    return out


def static_clipping(x: ArrayLike, c: float) -> Array:
    """Static clipping: norms clipped to c; no c makes it keep (f, kappa)-robustness (Allouah et al., ICLR 2025)."""
    return clipped(matrix(x), c)


def arc(x: ArrayLike, f: int) -> Array:
    """Adaptive robust clipping (Allouah et al., ICLR 2025): clip the k = floor(2 f/n (n-f)) greatest norms.

    The product is taken in integers, 2 f (n-f) // n, so that no rounding of f/n decides k.
    """
    x = matrix(x)
    k = 2 * f * (len(x) - f) // len(x)
    norms = np.sort(np.linalg.norm(x, axis=1))[::-1]
    return clipped(x, float(norms[k]))


# ---------------------------------------------------------------------------------------------------------------------
# Attacks: honest [h, d], f -> [f, d]
# ---------------------------------------------------------------------------------------------------------------------


def copies(vector: Array, f: int) -> Array:
    """f equal rows."""
    return np.repeat(vector[None, :], f, axis=0)


def little_factor(n: int, f: int) -> float:
    """z of A Little Is Enough: Phi^-1((n-f-s)/(n-f)), s = floor(n/2 + 1) - f supporters needed for a majority."""
    s = floor(n / 2 + 1) - f
    return NormalDist().inv_cdf((n - f - s) / (n - f))


def little(honest: ArrayLike, f: int, factor: float | None = 1.5, sign: int = -1, ddof: int = 1) -> Array:
    """A Little Is Enough (Baruch et al., NeurIPS 2019): mean + sign factor std; factor None = their z."""
    honest = matrix(honest)
    if factor is None:
        factor = little_factor(len(honest) + f, f)
    return copies(honest.mean(axis=0) + sign * factor * honest.std(axis=0, ddof=ddof), f)


def empire(honest: ArrayLike, f: int, factor: float = 1.1) -> Array:
    """Fall of Empires (Xie et al., UAI 2019), as the paper of this project writes it: mean + factor (-mean)."""
    mean = matrix(honest).mean(axis=0)
    return copies(mean + factor * -mean, f)


def sign_flip(honest: ArrayLike, f: int) -> Array:
    """Sign flipping: minus the mean of the honest vectors."""
    return copies(-matrix(honest).mean(axis=0), f)


def zero(honest: ArrayLike, f: int) -> Array:
    """Zero: f null vectors."""
    return np.zeros((f, matrix(honest).shape[1]))


def hidden_vulnerability(honest: ArrayLike, f: int, coordinate: int = 0, factor: float = 1.0) -> Array:
    """The attack of "The hidden vulnerability" (El-Mhamdi et al., ICML 2018): mean + factor e_k.

    The paper takes the greatest factor that the attacked rule still selects, of order d^(1/p); here it is given.
    """
    out = matrix(honest).mean(axis=0)
    out[coordinate] += factor
    return copies(out, f)


def anti_cge(honest: ArrayLike, f: int, margin: float = 1e-6) -> Array:
    """Anti-CGE: minus the sum of the h-f least honest vectors, its norm just under the next one.

    CGE then keeps the f attack vectors and those h-f. "Just under" is a factor 1 - margin. Needs h > f > 0.
    """
    honest = matrix(honest)
    if f == 0:
        return np.zeros((0, honest.shape[1]))
    h = len(honest)
    order = ranked((honest**2).sum(axis=1), honest)
    direction = -honest[order[: h - f]].sum(axis=0)
    norm = float(np.linalg.norm(direction))
    radius = (1 - margin) * float(np.linalg.norm(honest[order[h - f]]))
    return copies(direction * (radius / norm) if norm > 0 else direction, f)


def mimic(honest: ArrayLike, f: int) -> Array:
    """Mimic (Karimireddy et al., ICLR 2022): all copy the honest worker i of greatest |<z, x_i>|.

    z is the top principal direction of the honest vectors, centred. The paper learns z and i over a warm-up of many
    steps; this is its one-step form. Fairly sure that the inner product itself is not centred.
    """
    honest = matrix(honest)
    z = np.linalg.svd(honest - honest.mean(axis=0), full_matrices=False)[2][0]
    return copies(honest[ranked(-np.abs(honest @ z), honest)[0]], f)


def perturbation(honest: Array, direction: str, ddof: int = 1) -> Array:
    """p of Shejwalkar and Houmansadr (NDSS 2021): "std", "sign" (of the mean) or "unit" (the mean's direction)."""
    mean = honest.mean(axis=0)
    if direction == "std":
        return honest.std(axis=0, ddof=ddof)
    return np.sign(mean) if direction == "sign" else mean / np.linalg.norm(mean)


def min_max(honest: ArrayLike, f: int, direction: str = "std", ddof: int = 1) -> Array:
    """Min-max (NDSS 2021): mean - gamma p, the greatest gamma with max_i ||m - x_i|| <= max_ij ||x_i - x_j||.

    The paper bisects; the greatest gamma is the least root of the quadratics a_i - 2 b_i gamma + c gamma^2 = D^2.
    """
    honest = matrix(honest)
    mean, p = honest.mean(axis=0), perturbation(honest, direction, ddof)
    a, b, c = ((mean - honest) ** 2).sum(axis=1), (mean - honest) @ p, float(p @ p)
    if c == 0:
        return copies(mean, f)
    bound = squared_distances(honest).max()
    gamma = ((b + np.sqrt(b**2 - c * (a - bound))) / c).min()
    return copies(mean - gamma * p, f)


def min_sum(honest: ArrayLike, f: int, direction: str = "std", ddof: int = 1, bound: str = "max") -> Array:
    """Min-sum (NDSS 2021): mean - gamma p, greatest gamma with sum_i ||m - x_i||^2 <= max_i sum_j ||x_i - x_j||^2.

    The left side is sum_i ||mean - x_i||^2 + h gamma^2 ||p||^2, since deviations from the mean cancel: gamma is
    explicit. bound="min" takes the least of the sums on the right.
    """
    honest = matrix(honest)
    mean, p = honest.mean(axis=0), perturbation(honest, direction, ddof)
    if not p.any():
        return copies(mean, f)
    sums = squared_distances(honest).sum(axis=1)
    room = (sums.max() if bound == "max" else sums.min()) - ((honest - mean) ** 2).sum()
    return copies(mean - sqrt(max(room, 0.0) / (len(honest) * float(p @ p))) * p, f)


def rop(
    honest: ArrayLike,
    f: int,
    z: float = 1.0,
    reference: ArrayLike | None = None,
    previous: ArrayLike | None = None,
    pi: float = 1.0,
    decay: float = 0.9,
    angle: float = 270.0,
) -> Array:
    """ROP (Ozfatura et al., TIFS 2024), against centered clipping: pi G_prev + (1-pi) mean + z rotated p.

    u = decay u_prev + (1 - decay) mean (``reference`` = u_prev), p = ones minus their projection on u, normalised, then
    rotated in the plane of p and u: cos(angle) u/||u|| + sin(angle) p; at 270 degrees, -p. ``previous`` = G_prev.
    Uncertain: the sense of the rotation and the angle's origin (read from the facts sheet, not from memory of the
    paper).
    """
    honest = matrix(honest)
    mean = honest.mean(axis=0)
    u = rop_reference(honest, reference, decay)
    g = np.zeros_like(mean) if previous is None else np.asarray(previous, dtype=np.float64)
    ones = np.ones_like(mean)
    square = float(u @ u)
    p = ones - (float(ones @ u) / square) * u if square > 0 else ones
    size = float(np.linalg.norm(p))
    p = p / size if size > 1e-12 * sqrt(p.size) else np.zeros_like(p)
    along = u / sqrt(square) if square > 0 else u
    turned = cos(radians(angle)) * along + sin(radians(angle)) * p
    return copies(pi * g + (1 - pi) * mean + z * turned, f)


def rop_reference(honest: ArrayLike, reference: ArrayLike | None = None, decay: float = 0.9) -> Array:
    """ROP's running direction after this step: u = decay u_prev + (1 - decay) mean, from u_prev = 0."""
    mean = matrix(honest).mean(axis=0)
    before = np.zeros_like(mean) if reference is None else np.asarray(reference, dtype=np.float64)
    return decay * before + (1 - decay) * mean


def fang_krum(honest: ArrayLike, f: int, threshold: float = 1e-5, distance: str = "plain") -> Array:
    """Fang et al. (USENIX Security 2020), against Krum: -lambda sign(mean), the first Krum selects.

    Written for gradients: the paper's w_Re (the model received) is the null vector, s = sign of the honest change.
    lambda starts at its Theorem 1 bound, min_i sum of distances to the n-f-2 nearest honest / ((n-2f-1) sqrt(d)) +
    max_i ||x_i|| / sqrt(d), and is halved until Krum selects the attack or lambda < threshold. Copies are equal
    (epsilon 0). With distance="squared" the first part is sqrt(min_i sum of squared distances / ((n-2f-1) d)).
    """
    honest = matrix(honest)
    h, d = honest.shape
    n = h + f
    s = np.sign(honest.mean(axis=0))
    if f == 0:
        return np.zeros((0, d))
    nearest = krum_scores(honest, n - f - 2, distance).min()
    bound = nearest / ((n - 2 * f - 1) * sqrt(d)) if distance == "plain" else sqrt(nearest / ((n - 2 * f - 1) * d))
    bound += np.linalg.norm(honest, axis=1).max() / sqrt(d)
    while True:
        crafted = copies(-bound * s, f)
        chosen = krum(np.concatenate([honest, crafted]), f)
        if np.array_equal(chosen, crafted[0]) or bound < threshold:
            return crafted
        bound /= 2


def fang_trimmed_mean(honest: ArrayLike, f: int, uniform: ArrayLike | float = 0.5, b: float = 2.0) -> Array:
    """Fang et al. (USENIX Security 2020), against trimmed mean: just past the honest extremes.

    Where the honest mean is positive: uniform in [min/b, min] if min > 0, else [b min, min]; where it is negative: in
    [max, b max] if max > 0, else [max, max/b]. b = 2. ``uniform`` in [0, 1] ([f, d] or a number) stands for the draw:
    0 is the honest extreme, 1 the far end. Fairly sure; a coordinate whose mean is 0 is attacked as a negative one
    here.
    """
    honest = matrix(honest)
    least, greatest, s = honest.min(axis=0), honest.max(axis=0), np.sign(honest.mean(axis=0))
    below = np.where(least > 0, least / b, least * b)
    above = np.where(greatest > 0, greatest * b, greatest / b)
    extreme, end = np.where(s > 0, least, greatest), np.where(s > 0, below, above)
    u = np.broadcast_to(np.asarray(uniform, dtype=np.float64), (f, honest.shape[1]))
    return extreme + u * (end - extreme)


# ---------------------------------------------------------------------------------------------------------------------
# Bounds
# ---------------------------------------------------------------------------------------------------------------------


def variance_bound(rule: str, n: int, f: int) -> float:
    """Greatest deviation/norm ratio under which a rule is proved resilient (El-Mhamdi, Guerraoui, Rouault, ICLR 2021).

    The paper's condition is r < bound^2, r = (deviation / norm of the average)^2. Krum's is 1/eta(n, f) of Blanchard
    et al. (NeurIPS 2017), whose eta^2 = 2 (n-f + (f (n-f-2) + f^2 (n-f-1)) / (n-2f-2)): the same number, written
    otherwise.
    """
    if rule in ("krum", "multi-krum", "bulyan"):
        return 1 / sqrt(2 * (n - f + f * (n + f * (n - f - 2) - 2) / (n - 2 * f - 2)))
    if rule == "median":
        return 1 / sqrt(n - f)
    if rule == "mda":
        return (n - f) / (sqrt(8) * f) if f else np.inf
    raise KeyError(rule)


def kappa_lower_bound(n: int, f: int) -> float:
    """No rule is (f, kappa)-robust with kappa < f/(n-2f) (Allouah et al., AISTATS 2023)."""
    return f / (n - 2 * f)


def price_of_f(n: int, f: int) -> float:
    """With nobody Byzantine: ||F - mean||^2 >= f/(n-f) times the variance of all n vectors, in the worst case.

    The case: n-f zeros, f ones. The zeros alone have no variance, so F must answer 0; the mean is f/n.
    """
    return f / (n - f)


def kappa_bound(rule: str, n: int, f: int) -> float:
    """kappa proved for a rule (Allouah et al., AISTATS 2023, the table of rules)."""
    ratio = f / (n - 2 * f)
    if rule == "trimmed-mean":
        return 6 * ratio * (1 + ratio)
    if rule == "krum":
        return 6 * (1 + ratio)
    if rule in ("geometric-median", "median"):
        return 4 * (1 + ratio) ** 2
    raise KeyError(rule)


def kappa_after_nnm(kappa: float, n: int, f: int) -> float:
    """kappa proved after NNM, 8 f/(n-f) (kappa + 1) (AISTATS 2023): lower than kappa for small f only."""
    return 8 * f / (n - f) * (kappa + 1)


def kappa_after_arc(kappa: float, n: int, f: int) -> float:
    """kappa proved after adaptive clipping, kappa + 2 f/(n-2f) (Allouah et al., ICLR 2025)."""
    return kappa + 2 * f / (n - 2 * f)


def kappa_of(out: ArrayLike, x: ArrayLike, f: int) -> float:
    """The definition: greatest ||F - mean_S||^2 / mean_S ||x_i - mean_S||^2 over the (n-f)-subsets S."""
    x, out = matrix(x), np.asarray(out, dtype=np.float64)
    worst = 0.0
    for subset in combinations(range(len(x)), len(x) - f):
        vectors = x[list(subset)]
        mean = vectors.mean(axis=0)
        error, spread = float(((out - mean) ** 2).sum()), float(((vectors - mean) ** 2).sum(axis=1).mean())
        if error > 0:
            worst = max(worst, error / spread if spread > 0 else np.inf)
    return worst


# ---------------------------------------------------------------------------------------------------------------------
# Momentum: where it stands
# ---------------------------------------------------------------------------------------------------------------------

Gradient = Callable[[int, int, Array], Array]
"""(step, honest worker, point) -> the gradient this worker samples at this point, already clipped."""


def sgd_server_momentum(
    gradient: Gradient,
    h: int,
    f: int,
    start: ArrayLike,
    rates: Sequence[float],
    beta: float,
    rule: Rule,
    attack: Attack | None = None,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Array:
    """Momentum at the server: m <- beta m + (1 - dampening) F(g_1..g_n); theta <- theta - lr m; rows = thetas."""
    theta = np.array(start, dtype=np.float64)
    m = np.zeros_like(theta)
    rows = [theta.copy()]
    for t, lr in enumerate(rates):
        point = theta - beta * lr * m if nesterov else theta
        sent = np.stack([gradient(t, i, point) for i in range(h)])
        m = beta * m + (1 - dampening) * rule(with_attack(sent, f, attack), f)
        theta = theta - lr * m
        rows.append(theta.copy())
    return np.stack(rows)


def sgd_worker_momentum(
    gradient: Gradient,
    h: int,
    f: int,
    start: ArrayLike,
    rates: Sequence[float],
    beta: float,
    rule: Rule,
    attack: Attack | None = None,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Array:
    """Momentum at the workers (ICLR 2021): m_i <- beta m_i + (1 - dampening) g_i; theta <- theta - lr F(m_1..m_n).

    Nesterov: worker i takes its gradient at its own look-ahead point theta - beta lr m_i.
    """
    theta = np.array(start, dtype=np.float64)
    m = np.zeros((h, theta.size))
    rows = [theta.copy()]
    for t, lr in enumerate(rates):
        for i in range(h):
            point = theta - beta * lr * m[i] if nesterov else theta
            m[i] = beta * m[i] + (1 - dampening) * gradient(t, i, point)
        theta = theta - lr * rule(with_attack(m, f, attack), f)
        rows.append(theta.copy())
    return np.stack(rows)


def sgd_shared_momentum(
    gradient: Gradient,
    h: int,
    f: int,
    start: ArrayLike,
    rates: Sequence[float],
    beta: float,
    rule: Rule,
    attack: Attack | None = None,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Array:
    """Shared momentum (the authors' third variant): G <- F((1 - dampening) g_i + beta G); theta <- theta - lr G.

    Where rule and attack follow translations this is momentum at the server: F(g_i + beta G) = F(g_i) + beta G.
    """
    theta = np.array(start, dtype=np.float64)
    last = np.zeros_like(theta)
    rows = [theta.copy()]
    for t, lr in enumerate(rates):
        point = theta - beta * lr * last if nesterov else theta
        sent = np.stack([(1 - dampening) * gradient(t, i, point) + beta * last for i in range(h)])
        last = rule(with_attack(sent, f, attack), f)
        theta = theta - lr * last
        rows.append(theta.copy())
    return np.stack(rows)


def with_attack(sent: Array, f: int, attack: Attack | None) -> Array:
    """Honest vectors first, then the f vectors the adversary crafts from what honest workers send."""
    if attack is None or f == 0:
        return sent
    return np.concatenate([sent, attack(sent, f)])


def clip(gradient: Array, c: float | None, mode: str = "norm") -> Array:
    """Scale a gradient of norm above c to norm c (mode "norm", the paper) or 1 (mode "unit", the authors' code)."""
    if c is None:
        return gradient
    norm = float(np.linalg.norm(gradient))
    if norm <= c:
        return gradient
    return gradient * ((c if mode == "norm" else 1.0) / norm)


# ---------------------------------------------------------------------------------------------------------------------
# The golden task: softmax regression 12 -> 5
# ---------------------------------------------------------------------------------------------------------------------

FEATURES, CLASSES = 12, 5


def softmax_gradient(theta: Array, x: ArrayLike, y: ArrayLike) -> Array:
    """Gradient of the mean cross entropy of the linear model; theta = weight [5, 12] row-major, then bias [5]."""
    x, labels = np.asarray(x, dtype=np.float64), np.asarray(y)
    weight, bias = theta[: CLASSES * FEATURES].reshape(CLASSES, FEATURES), theta[CLASSES * FEATURES :]
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    p /= len(labels)
    return np.concatenate([(p.T @ x).ravel(), p.sum(axis=0)])


def l2_gradient(theta: Array, c: float, mode: str) -> Array:
    """What l2 adds to a gradient: c theta (mode "squared", the paper) or c^2 theta/||theta|| ("norm", their code)."""
    if mode == "squared":
        return c * theta
    norm = float(np.linalg.norm(theta))
    return c**2 * theta / norm if norm > 0 else np.zeros_like(theta)


PUBLISHED_RULES: dict[str, Rule] = {
    "average": average,
    "krum": lambda x, f: multi_krum(x, f, neighbours="n-f-1", distance="plain", ties="position"),
    "median": lambda x, f: median(x, f, even="lower"),
    "trmean": trimmed_mean,
    "phocas": phocas,
    "meamed": lambda x, f: meamed(x, f, even="lower"),
    "bulyan": lambda x, f: bulyan(
        x, f, base="multi-krum", selection="frozen", distance="plain", even="lower", ties="position"
    ),
}
"""The rules of the authors' code under the names the golden trajectories use."""

GOLDEN_ATTACKS: dict[str, Attack | None] = {"none": None, "little": little, "empire": empire}


def golden_rates(steps: int) -> list[float]:
    """Learning rates of the golden trajectories: 0.05 / (floor(t/10) 10/20 + 1)."""
    return [0.05 / ((t // 10) * 10 / 20 + 1) for t in range(steps)]


def trajectory(
    case: Mapping[str, object],
    batches: Mapping[str, np.ndarray],
    start: ArrayLike,
    steps: int = 30,
    beta: float = 0.9,
    rules: Mapping[str, Rule] = PUBLISHED_RULES,
    l2_mode: str = "norm",
) -> Array:
    """A golden trajectory [steps + 1, 65]: row t = parameters before step t, from ``start`` (the golden's row 0).

    At step t honest worker i takes batch number t h + i. The l2 term is taken as part of the sampled gradient, before
    the clip; no golden case has both. Shared momentum takes its look-ahead at theta - beta lr G, as the golden shows.
    """
    n, f = int(str(case["n"])), int(str(case["f"]))
    h = n - f
    limit = case["clip"]
    c = None if limit is None else float(str(limit))
    mode = str(case["clip_mode"])
    factor = float(str(case.get("l2", 0.0)))

    def gradient(t: int, i: int, point: Array) -> Array:
        k = t * h + i
        sampled = softmax_gradient(point, batches["x"][k], batches["y"][k])
        if factor:
            sampled = sampled + l2_gradient(point, factor, l2_mode)
        return clip(sampled, c, mode)

    simulate = {"update": sgd_server_momentum, "worker": sgd_worker_momentum, "server": sgd_shared_momentum}
    return simulate[str(case["momentum_at"])](
        gradient,
        h,
        f,
        start,
        golden_rates(steps),
        beta,
        rules[str(case["rule"])],
        GOLDEN_ATTACKS[str(case["attack"])],
        nesterov=bool(case["nesterov"]),
    )
