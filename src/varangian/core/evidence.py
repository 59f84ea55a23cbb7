"""What speaks against each vector: its weight, the rule's score, whether it was rejected, and how suspicious it is.

One vocabulary for explanations and for every engine's report:

- *weight*: how much of the aggregate a vector is, see :func:`weights_of_table` and :func:`weights_in_columns`.
- *rejected*: not finite, or of next to no weight, see :func:`rejected`.
- *score*: what the rule ranks vectors by, >= 0 and the lower the better, for rules that have one
  (:meth:`varangian.Rule.score`), see :func:`scores`.
- *distance*, *cosine*: to the aggregate, see :func:`cosines`.
- *suspicion*: a number from 0 to 1 for each vector and step, of its distance and cosine, whatever the rule, see
  :func:`suspicion`; and of a worker over its last steps, see :func:`recent_suspicion`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import kernels, numerics
from .checks import kind_of
from .geometry import Geometry
from .randomness import Draw
from .shares import portions
from .stages import Coordinatewise, Mixing, Rule, Statistic, WeightedStatistic

NEGLIGIBLE = 0.1  # of an equal share: whose weight is less is rejected
BLOCK = 4096  # columns sorted at a time


def suspicion(distance: np.ndarray, finite: np.ndarray, cosine: np.ndarray | None = None) -> np.ndarray:
    """[n], or [steps, n], how suspicious each vector is: 0 is usual, 1 the most suspicious that there is.

    s_i = max(0, 1 - D / D_i, -c_i),  D_i the distance to the aggregate, c_i the cosine to it,
    D the median of the distances of the vectors that are finite and known

    A vector twice as far as is usual has 0.5, and so has one that points away at 120 degrees; at ten times the usual
    distance it has 0.9, and turned right round 1. Where more than half of the vectors point away, it is the aggregate
    that is turned: then c_i counts for nobody. A vector that is not finite has 1; one of which nothing is known NaN.

    What is usual depends on no rule: scores of different rules are no measure, since some add up squares and others
    never leave a narrow range. What a value means for an honest worker is measured in docs/howto/suspicion.md.

    Args:
        distance: [n] or [steps, n] to the aggregate, >= 0; NaN where nothing is known.
        finite: likewise, whether a vector holds neither NaN nor infinity.
        cosine: likewise, to the aggregate; NaN where it is not known, or one of the two is zero. None for all.

    Example:
        >>> distance, finite = np.array([1.0, 1.0, 2.0, 0.5, 7.0, np.nan]), np.array([True] * 4 + [False, True])
        >>> suspicion(distance, finite)
        array([0. , 0. , 0.5, 0. , 1. , nan])
        >>> suspicion(distance, finite, np.array([0.9, 0.9, 0.1, -0.8, np.nan, np.nan]))
        array([0. , 0. , 0.5, 0.8, 1. , nan])
    """
    known = finite & ~np.isnan(distance)
    usual = _median(distance, known)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.where(known & (distance > usual), 1 - usual / distance, 0.0)
        if cosine is not None:
            told = known & ~np.isnan(cosine)
            counts = told & (_median(cosine, told) >= 0)
            result = np.where(counts, np.maximum(result, np.clip(-cosine, 0, 1)), result)
    return np.where(finite, np.where(known, result, np.nan), 1.0)


def _median(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """[..., 1] of the last axis, of some values; NaN of none."""
    ordered = np.sort(np.where(among, values, np.inf), axis=-1)
    count = among.sum(-1, keepdims=True)
    middle = [np.take_along_axis(ordered, np.maximum(k, 0), -1) for k in ((count - 1) // 2, count // 2)]
    return np.where(count > 0, (middle[0] + middle[1]) / 2, np.nan)


def recent_suspicion(suspicion: np.ndarray, window: int) -> np.ndarray:
    """[steps, W] how suspicious each worker was of late: the sum of its last ``window`` suspicions over ``window``.

    0.5 over 20 steps is as if 10 of the last 20 vectors had been as suspicious as there is. Steps before the first
    count as 0, so that nobody is accused of a window that is not yet full; steps in which a worker took no part (NaN)
    do not count, and leave its number as it was: NaN until it first took part.

    Args:
        suspicion: [steps, W] see :func:`suspicion`.
        window: how many steps, >= 1.

    Example:
        >>> over_time = np.array([[0.0, 1.0], [0.0, 1.0], [0.8, np.nan], [0.0, 0.0]])
        >>> recent_suspicion(over_time, 2)
        array([[0. , 0.5],
               [0. , 1. ],
               [0.4, 1. ],
               [0.4, 0.5]])
    """
    known = ~np.isnan(suspicion)
    if known.all():
        total = np.concatenate([np.zeros((1, suspicion.shape[1])), suspicion.cumsum(0)])
        total = total[1:] - total[np.maximum(np.arange(len(suspicion)) + 1 - window, 0)]
        return np.clip(total / window, 0, 1).round(12)  # ten times 0.8 of twenty is 0.4
    result = np.full(suspicion.shape, np.nan)
    for worker, there in enumerate(known.T):
        if there.any():
            own = recent_suspicion(suspicion[there, worker][:, None], window)[:, 0]
            so_far = there.cumsum()
            result[so_far > 0, worker] = own[so_far[so_far > 0] - 1]
    return result


def cosines(
    squared_norm: np.ndarray, squared_distance: np.ndarray, squared: float | np.ndarray,
    product: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """[n] the cosines of vectors to the aggregate, of which the squared norm is ``squared``; NaN where a norm is 0 or
    not finite.

    cos(x, F) = <x, F> / (||x|| ||F||),  <x, F> = (||x||^2 + ||F||^2 - ||x - F||^2) / 2

    Args:
        squared_norm: [n] of the vectors.
        squared_distance: [n] to the aggregate.
        product: [n] inner products with the aggregate. Without them the formula is taken, of which nothing is right
            where one length is some 10^8 times the other.

    Example:
        >>> cosines(np.array([4.0, 1.0, 0.0]), np.array([1.0, 4.0, 1.0]), 1.0)
        array([ 1., -1., nan])
    """
    with np.errstate(all="ignore"):
        lengths = np.sqrt(squared_norm) * np.sqrt(squared)
        inner = (squared_norm + squared - squared_distance) / 2 if product is None else product
        return np.clip(np.where(lengths > 0, inner / lengths, np.nan), -1, 1)


def distances_and_norms(x: Tensor, point: Tensor) -> Tensor:
    """[4, n] float64 on x's device: squared norms of the rows [n, d], their squared distances to a vector [d], n times
    its squared norm, and their inner products with it: what :func:`cosines` takes. Of pieces of vectors they add up.
    One pass over the data."""
    norms, distances, products = kernels.compared(x, point.to(x.dtype))
    return torch.stack([norms, distances, kernels.squared_norms(point).expand_as(norms), products])


def rejected(weight: np.ndarray | None, finite: np.ndarray) -> np.ndarray:
    """[n] whether a vector was rejected: it is not finite, or has under a tenth of an equal share of all weights.

    Not at 0 alone: rules that weigh down never come to 0, and weights in columns are a sample's.

    Args:
        weight: [n] how much of the aggregate each vector is; NaN, or None for all, where the rule does not tell.
        finite: [n] whether a vector holds neither NaN nor infinity.
    """
    if weight is None:
        return ~finite
    size = np.abs(weight)
    return ~finite | (size < NEGLIGIBLE / finite.size * size.sum()) | (size == 0)


def scores(pre: Sequence[Mixing], rule: Rule, geometry: Geometry | None) -> np.ndarray | None:
    """[n] the rule's scores of the vectors, infinite for those that are not finite; None where it has none.

    None too behind a mixing that is not ``aligned``: what is scored then is not a vector that somebody sent.

    Args:
        pre: the mixings before the rule.
        rule: it may be anybody's.
        geometry: what the rule saw, the geometry of a :class:`varangian.core.stages.Decision`.

    Raises:
        ValueError: a rule that answers something else than n numbers >= 0.
    """
    if geometry is None or not all(mixing.aligned for mixing in pre):
        return None
    found = rule.score(geometry)
    if found is None:
        return None
    n, good = geometry.n, geometry.finite
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or found.shape != (n,):
        raise ValueError(f"{type(rule).__name__}.score must answer an array of {n} numbers, got {kind_of(found)}.")
    if not (found[good] >= 0).all():
        raise ValueError(
            f"{type(rule).__name__}.score must answer numbers >= 0, the lower the better, got {found[good].min():.4g}."
        )
    return np.where(good, found, np.inf)


def scores_of(
    x: Tensor, pre: Sequence[Mixing], rule: Rule, geometry: Geometry | None, *, draw: Draw
) -> np.ndarray | None:
    """As :func:`scores`, where the vectors are at hand: for a rule that decides without distances and yet scores by
    them, they are measured."""
    if geometry is None and type(rule).score is not Rule.score:
        geometry = Geometry.of(x)
        for mixing in pre:
            geometry = mixing.mix(geometry, draw)
    return scores(pre, rule, geometry)


def weights_of_table(table: np.ndarray | None, n: int) -> np.ndarray:
    """[n] the share of the weights of a decision that lies on each vector; NaN where nobody can tell."""
    if table is None:
        return np.full(n, np.nan)
    weights = np.abs(np.atleast_2d(table)[:, :n]).sum(0)
    return weights / max(weights.sum(), np.finfo(float).tiny)


def weights_in_columns(x: Tensor, table: np.ndarray | None, statistic: Statistic, columns: np.ndarray) -> np.ndarray:
    """[n] mean weights of the vectors over some columns, for a rule that ends in a statistic of columns.

    Args:
        x: [n, d] the vectors.
        table: [m, n] the weights that made the m values of a column; None where they are the vectors' own.
        statistic: see :meth:`varangian.Rule.statistic`.
        columns: the indices of the columns to look at; without any the weights are 0.
    """
    if kernels.on_device(x):
        return kernels.host(mean_weights_in(x.index_select(1, kernels.there(columns, x)), table, statistic))
    n = x.shape[0]
    total = np.zeros(n if table is None else table.shape[0])
    for start in range(0, columns.size, BLOCK):
        block = x[:, torch.from_numpy(columns[start : start + BLOCK])].double()
        if table is not None:
            block = kernels.weighted_rows(block, table[:, :n])
        total += column_weights(block.numpy(), *statistic).sum(1)
    mean = total / max(columns.size, 1)
    return mean if table is None else mean @ table[:, :n]


def mean_weights_in(block: Tensor, table: np.ndarray | None, statistic: Statistic) -> Tensor:
    """As :func:`weights_in_columns`, of all columns of the block [n, k]: [n] float64 on its device, where nobody waits
    for it."""
    n, k = block.shape
    if block.device.type == "cpu":
        return torch.from_numpy(weights_in_columns(block, table, statistic, np.arange(k)))
    values = block.double()
    if table is not None:
        values = kernels.weighted_rows(values, table[:, :n])
    mean = kernels.statistic_weights(values, *statistic)
    return mean if table is None else mean @ kernels.there(table[:, :n], mean)


def weights_by_share(values: np.ndarray, shares: np.ndarray, asked: WeightedStatistic) -> np.ndarray:
    """[m] the mean weights of rows [m, k] over their columns, in a statistic of values that count differently (see
    :func:`.kernels.weighted_statistic`). Equal values share their weight, each by its own."""
    low, high, window, even = asked
    m, slack = shares.size, numerics.NOTHING * shares.sum()
    values = np.where(np.isnan(values), np.inf, values)
    order = np.argsort(values, axis=0, kind="stable")
    ordered, laid = np.take_along_axis(values, order, axis=0), shares[order]
    ends = laid.cumsum(0)
    if low == high:
        places = np.stack([(ends < low - slack).sum(0), (ends <= low + slack).sum(0)]).clip(max=m - 1)
        places = places[{"mid": [0, 1], "lower": [0], "upper": [1]}[even]]
        weights = (np.arange(m)[:, None] == places[:, None]).mean(0)
    else:
        weights = portions(laid.T, low, high).T / (high - low)
    if window:
        center = np.where(weights > 0, weights * np.where(weights > 0, ordered, 0), 0).sum(0)
        with np.errstate(invalid="ignore"):
            apart = np.nan_to_num(np.abs(ordered - center), nan=np.inf)
        nearest = np.argsort(apart, axis=0, kind="stable")
        weights = np.empty((m, values.shape[1]))
        taken = portions(np.take_along_axis(laid, nearest, axis=0).T, 0, window).T
        np.put_along_axis(weights, nearest, taken / window, axis=0)
    equal = np.zeros(values.shape, np.int64)
    equal[1:] = np.cumsum(ordered[1:] != ordered[:-1], axis=0)
    equal = (equal + np.arange(values.shape[1]) * m).reshape(-1)
    rates = np.bincount(equal, weights.reshape(-1)) / np.maximum(np.bincount(equal, laid.reshape(-1)), slack)
    result = np.empty(values.shape)
    np.put_along_axis(result, order, rates[equal].reshape(values.shape) * laid, axis=0)
    return result.mean(1)


def weight_by_share(rule: Rule, values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """[n] the mean weights of rows [n, k] in the statistic of a rule, those that count nothing left out."""
    assert isinstance(rule, Coordinatewise)
    places, weight = np.flatnonzero(shares), np.zeros(shares.size)
    weight[places] = weights_by_share(values[places], shares[places], rule.weighted(shares[places]))
    return weight


def column_weights(values: np.ndarray, low: int, high: int, window: int) -> np.ndarray:
    """[m, d] the weight of each value in the statistic of its column (see :func:`.kernels.column_statistic`).

    Equal values share their weight. Values that are not numbers count as infinite.
    """
    m, d = values.shape
    values = np.where(np.isnan(values), np.inf, values)
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    weights = np.zeros((m, d))
    weights[low:high] = 1 / (high - low)
    if window:
        center = ordered[low:high].mean(0)
        first = np.zeros(d, np.int64)
        for s in range(m - window):
            first += ordered[s] + ordered[s + window] < 2 * center
        ranks = np.arange(m)[:, None]
        weights = ((ranks >= first) & (ranks < first + window)) / window
    group = np.zeros((m, d), np.int64)
    group[1:] = np.cumsum(ordered[1:] != ordered[:-1], axis=0)
    group = (group + np.arange(d) * m).reshape(-1)
    sizes = np.bincount(group, minlength=m * d)
    means = np.bincount(group, weights.reshape(-1), m * d) / np.maximum(sizes, 1)
    result = np.empty((m, d))
    np.put_along_axis(result, order, means[group].reshape(m, d), axis=0)
    return result
