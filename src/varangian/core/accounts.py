"""What a step tells of each vector, without a pass over all of them: its weight, score, distance and cosine to F.

No pass over [n, d] is made for it. Of rules that answer weights, distances and cosines follow from the n x n distances
that the rule looked at, exactly:

    ||x_i - a||^2 = sum_j w_j ||x_i - x_j||^2 - 1/2 sum_jk w_j w_k ||x_j - x_k||^2,    a = sum_j w_j x_j

where the origin is a point too, and has the rest of the weight. Of all others, and where these numbers would cancel, a
sample of the columns tells: blocks of neighbours, one at a random place in each of as many equal parts of the vector,
others in every step. Where vectors are short the sample is all columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import kernels, numerics, randomness
from .evidence import scores, weight_by_share, weights_of_table
from .geometry import Geometry
from .kernels.runtime import jit
from .shares import shares_of
from .stages import Decision, Mixing, Rule, Selecting

NUMBERS = 1 << 16  # of which all are looked at; where there are more, at
BLOCKS = 32  # blocks
WIDTH = 64  # of so many columns
RANKED = 16  # columns of each, whose values are sorted for weights in a statistic of columns
WEIGHTED = 4  # the same where vectors count differently: sorting then takes many times as long
AHEAD = 64  # steps whose blocks are drawn together
BLURRED = 1e-3  # of a usual squared distance: where a derived one may be further off, a sample is looked at


@dataclass(frozen=True, eq=False)
class Account:
    """What a step tells of each of n vectors.

    Attributes:
        weight: [n] shares of the aggregate; NaN where the rule does not tell.
        score: [n] the rule's scores, the lower the better; NaN where it has none, or a vector is not finite.
        distance, cosine: [n] to the aggregate; NaN of vectors that are not finite.
        finite: [n] whether a vector holds neither NaN nor infinity, as far as it was looked at.
        shown: [n] whether a vector was shown to the stages; of others nothing is told.
        columns: how many columns distances, cosines and who is finite were told by; 0 where all were. Weights in the
            statistic of a column are told by 512 at most, or 128 where vectors count differently and there are more.
    """

    weight: np.ndarray
    score: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    finite: np.ndarray
    shown: np.ndarray
    columns: int

    def masked(self) -> Account:
        """Without what is not to be told: of vectors that are not finite, or were not shown."""
        told, shown = self.finite & self.shown, self.shown
        if told.all():
            return self
        weight = np.where(shown, self.weight, np.nan)
        score, distance, cosine = (np.where(told, v, np.nan) for v in (self.score, self.distance, self.cosine))
        return Account(weight, score, distance, cosine, self.finite | ~shown, shown, self.columns)


def sampled_columns(n: int, d: int, *, seed: int, step: int) -> np.ndarray | None:
    """[32] where the blocks begin that a step looks at in [n, d], in order; None where it looks at everything.

    Example:
        >>> sampled_columns(51, 500, seed=1, step=0)
        >>> sampled_columns(51, 80_000, seed=1, step=0)[:3].tolist()
        [1224, 4496, 6950]
        >>> sampled_columns(51, 80_000, seed=1, step=1)[:3].tolist()
        [2202, 4152, 6249]
    """
    if d <= BLOCKS * RANKED:
        return None
    return _drawn(d, WIDTH if _is_sample(n, d) else RANKED, seed, step // AHEAD)[step % AHEAD]


@lru_cache(maxsize=16)
def _drawn(d: int, width: int, seed: int, block: int) -> np.ndarray:
    """[64, 32] those of so many steps, which are drawn together."""
    ends = np.arange(BLOCKS + 1) * d // BLOCKS
    room = ends[1:] - ends[:-1] - width + 1
    drawn = randomness.indices(seed, "columns", block, rows=AHEAD, columns=BLOCKS, size=room[None])
    return ends[:-1] + drawn


def _is_sample(n: int, d: int) -> bool:
    """Whether distances are those of some columns."""
    return n * d > NUMBERS and d > BLOCKS * WIDTH


_NOBODY = np.empty(0)
_NONE = np.empty(0, bool)
UNKNOWN = Account(_NOBODY, _NOBODY, _NOBODY, _NOBODY, _NONE, _NONE, 0)  # of a step that is not measured


@dataclass(frozen=True, eq=False)
class Observed:
    """What is to be told of a step: a few numbers that may still be where they were computed.

    Attributes:
        tensors: these numbers; none where everything is known.
        account: what is known by now.
        scale: of squared distances, from the columns that were looked at to all.
        table: [m, n] the weights that made the m values of a column; None where they are the vectors' own.
        exact: whether all is known but some cosines.
    """

    tensors: list[Tensor]
    account: Account = UNKNOWN
    scale: float = 1.0
    table: np.ndarray | None = None
    exact: bool = False

    def told(self, numbers: Sequence[np.ndarray]) -> Account:
        """The whole of it, of the numbers of ``tensors`` on the host."""
        if not self.tensors:
            return self.account
        known, (relations, *ranked) = self.account, numbers
        distance, cosine, finite = _by_columns(relations, self.scale)
        if self.exact:
            return replace(known, cosine=np.where(np.isnan(known.cosine), cosine, known.cosine)).masked()
        weight = known.weight
        if ranked:
            weight = ranked[0] if self.table is None else ranked[0] @ self.table
        return Account(weight, known.score, distance, cosine, finite, known.shown, known.columns).masked()


def observe(
    x: Tensor, decision: Decision, pre: Sequence[Mixing], rule: Rule, *, starts: np.ndarray | Tensor | None,
    weights: np.ndarray | None = None, rows: np.ndarray | None = None,
) -> Observed:  # fmt: skip
    """What a decision about [n, d] tells of each vector. Nothing waits for a device.

    Args:
        x: the vectors that were decided about.
        decision: of :func:`varangian.core.stages.decide`.
        pre, rule: what decided.
        starts: [b] see :func:`sampled_columns`; on a device a tensor.
        weights: [n] what each vector counts.
        rows: which vectors the stages were shown, see :func:`varangian.core.stages.decide`; all by default.

    Raises:
        ValueError: a score that breaks the contract, see :func:`varangian.core.evidence.scores`.
    """
    n, d = x.shape
    shown = np.ones(n, bool)
    if rows is not None:
        shown[:] = False
        shown[rows] = True
    score = _scores(pre, rule, decision, rows, n)
    weight, table, exact, known = np.full(n, np.nan), decision.table, None, False
    if table is not None and table.ndim == 1:
        if type(rule).apply is Selecting.apply and decision.came is not None:
            exact, known = _exact(decision.came, table, score, shown)
            if exact is not None and known:
                return Observed([], exact.masked())
        weight = weights_of_table(table, n)
    some = _is_sample(n, d)
    looked_at = BLOCKS * WIDTH if some else d
    columns: dict[str, Any] = {"starts": starts, "width": WIDTH} if some else {}
    tensors = [kernels.relations(x, decision.aggregate, **columns)]
    if exact is not None:
        return Observed(tensors, exact, exact=True)
    if table is None and rows is not None and not shown.all():
        table = np.eye(n)[rows]
    statistic = rule.statistic(n if table is None else table.shape[0])
    mixed = None
    if statistic is not None:
        columns = {} if starts is None else {"starts": starts, "width": RANKED}
        if weights is not None and (weights != weights[0]).any():
            weight = _by_share(x, rule, table, weights, starts)
        else:
            mixed = None if table is None else table[:, :n]
            tensors.append(kernels.statistic_weights(x, *statistic, mixing=mixed, **columns))
    known = Account(weight, score, score, score, shown, shown, looked_at if some else 0)
    return Observed(tensors, known, d / looked_at, mixed)


def _by_share(
    x: Tensor, rule: Rule, table: np.ndarray | None, weights: np.ndarray, starts: np.ndarray | Tensor | None
) -> np.ndarray:
    """[n] mean weights in a statistic of values that count differently; waits for a device."""
    block = x
    if starts is not None:
        first = kernels.there(starts, x) if isinstance(starts, np.ndarray) else starts
        columns = first.unsqueeze(1) + torch.arange(WEIGHTED, device=x.device)
        block = x.index_select(1, columns.reshape(-1))
    rows = block if table is None else kernels.weighted_rows(block, table)
    return weight_by_share(rule, kernels.host(rows.double()), shares_of(rule, weights, x.shape[0]))


def _scores(pre: Sequence[Mixing], rule: Rule, decision: Decision, rows: np.ndarray | None, n: int) -> np.ndarray:
    """[n], of those that were shown, in the order in which they were."""
    geometry, result = decision.geometry, np.full(n, np.nan)
    if rows is not None and geometry is not None and geometry.n == n:
        geometry = geometry.only(rows)
    found = scores(pre, rule, geometry)
    if found is not None:
        result[slice(None) if rows is None else rows] = found
    return result


def _exact(came: Geometry, table: np.ndarray, score: np.ndarray, shown: np.ndarray) -> tuple[Account | None, bool]:
    """Of the distances between vectors; None where these are not known, or cancel. And whether all cosines are known:
    those of vectors that are so much longer than the aggregate, or shorter, that they cancel are NaN."""
    if came.shares is not None and shown.all() and not came.shares.all():  # some count nothing
        return None, False
    rounding = numerics.MEASURED if came.exact else numerics.ROUNDING
    weight, distance, cosine, sure, known = _by_distances(came.squared, table, came.finite, rounding, came.unit)
    return Account(weight, score, distance, cosine, came.finite, shown, 0) if sure else None, known


@jit
def _by_distances(squared, weights, finite, rounding, unit):  # type: ignore[no-untyped-def]
    """[n] each: weights, distances and cosines to the mixture; and whether they are right, and all cosines known."""
    points, n = squared.shape[0], finite.size
    used, parts, count, rest = np.empty(points, np.int64), np.empty(points), 0, 1.0
    for j in range(weights.size):
        rest -= weights[j]
        if weights[j] != 0:
            used[count], parts[count] = j, weights[j]
            count += 1
    if abs(rest) > 1e-12:  # else rounding, no share of the origin
        used[count], parts[count] = points - 1, rest
        count += 1
    apart, terms = np.empty(points), np.empty(points)
    for i in range(points):
        total, size = 0.0, 0.0
        for k in range(count):
            term = parts[k] * squared[i, used[k]]
            total += term
            size += abs(term)
        apart[i], terms[i] = total, size
    own, sizes = 0.0, 0.0
    for k in range(count):
        own += 0.5 * parts[k] * apart[used[k]]
        sizes += 0.5 * abs(parts[k]) * terms[used[k]]
    sure, known, seen, near = own == own, True, 0, np.empty(n)
    for i in range(points):
        sure &= apart[i] == apart[i]
        apart[i] = max(apart[i] - own, 0.0)
        terms[i] = rounding * (terms[i] + sizes)
        if i < n and finite[i]:
            near[seen] = apart[i]
            seen += 1
    usual, length = 0.0, apart[points - 1]
    if seen > 0:
        usual = np.sort(near[:seen])[seen // 2]
    weight, distance, cosine, total = np.empty(n), np.empty(n), np.empty(n), 0.0
    for i in range(n):
        weight[i], distance[i], cosine[i] = abs(weights[i]), np.nan, np.nan
        total += weight[i]
        if finite[i]:
            sure &= not terms[i] > BLURRED * max(apart[i], usual)
            distance[i] = np.sqrt(apart[i]) * unit
            lengths = np.sqrt(squared[i, points - 1] * length)
            if terms[i] + rounding * (squared[i, points - 1] + length) > BLURRED * lengths:
                known &= lengths == 0
            else:
                inner = 0.5 * (squared[i, points - 1] + length - apart[i])
                cosine[i] = max(-1.0, min(1.0, inner / lengths)) if lengths > 0 else np.nan
    if total > 0:
        weight /= total
    return weight, distance, cosine, sure, known


@jit
def _by_columns(relations, scale):  # type: ignore[no-untyped-def]
    """[n] each: distances and cosines, and who is finite."""
    n = relations.shape[1] - 1
    distance, cosine, finite = np.empty(n), np.empty(n), np.empty(n, np.bool_)
    for i in range(n):
        distance[i], finite[i] = np.sqrt(scale * relations[0, i]), relations[3, i] == 0
        lengths = np.sqrt(relations[2, i]) * np.sqrt(relations[2, n])
        cosine[i] = max(-1.0, min(1.0, relations[1, i] / lengths)) if lengths > 0 else np.nan
    return distance, cosine, finite


__all__ = ["Account", "observe", "sampled_columns"]
