"""The kernels in torch's own operations: the oracle of the others, and what every other device runs.

Nothing here waits for the device: answers are tensors there, and no operation depends on the value of another. All is
right on any layout, since torch's operations are. Numbers that are widened to float64 are so a panel of columns at a
time, of a width that follows from the shape alone: one panel up to some million columns, so that there are few
launches, and beyond a few GB at once.

What the CPU's kernels do only where it is needed, since they see what they read, happens here always, in a way that
changes no other bit: rows and columns are divided by powers of two before they are squared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .definitions import EVEN, Kept, Statistic, Weighted, as_counts
from .runtime import there

Moments = tuple[Tensor, Tensor]
Panel = Callable[[int, int], Tensor]  # what there is to say of columns start..stop

NUMBERS = 1 << 26  # that a panel has, at most: 0.5 GB of float64, and an operation holds a few of them
PIECE = 1 << 13  # columns of a distance that are added up by one block of threads


def _panels(d: int, rows: int) -> list[tuple[int, int]]:
    """The columns start..stop that are at hand at a time, where so many rows are widened together."""
    width = max(1, NUMBERS // max(1, rows))
    return [(start, min(d, start + width)) for start in range(0, max(1, d), width)]


def _side_by_side(d: int, rows: int, panel: Panel, dtype: torch.dtype) -> Tensor:
    """[..., d]"""
    panels = _panels(d, rows)
    first = panel(*panels[0])
    if len(panels) == 1:
        return first.to(dtype)
    out = first.new_empty(*first.shape[:-1], d, dtype=dtype)
    out[..., slice(*panels[0])] = first
    for start, stop in panels[1:]:
        out[..., start:stop] = panel(start, stop)
    return out


def _added_up(d: int, rows: int, panel: Panel) -> Tensor:
    first, *others = _panels(d, rows)
    total = panel(*first)
    for ends in others:
        total += panel(*ends)
    return total


def _power(size: Tensor) -> Tensor:
    """The greatest power of two that is not more than a size of float64: what is divided by it loses nothing. In the
    range of numbers also where the size is not; NaN stays NaN."""
    within = size.clamp(torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).max)
    return within / (2 * torch.frexp(within).mantissa)


# ---------------------------------------------------------------------------------------------- weighted sums


def _picked(x: Tensor, extra: Tensor | None, index: np.ndarray) -> Panel:
    """Some of the rows and extra rows."""
    n = x.shape[0]
    beside = extra if extra is not None and (index >= n).any() else None
    every = n + (0 if beside is None else beside.shape[0])
    chosen = None if np.array_equal(index, np.arange(every)) else there(index.astype(np.int64), x)

    def panel(start: int, stop: int) -> Tensor:
        rows = x[:, start:stop]
        if beside is not None:
            rows = torch.cat([rows, beside[:, start:stop]])
        return rows if chosen is None else rows.index_select(0, chosen)

    return panel


def _mixtures(x: Tensor, table: np.ndarray, extra: Tensor | None) -> Panel:
    """table [m, n+e] times rows and extra rows, in float64; what has no weight is left out: 0 * NaN is NaN."""
    weighed = table != 0
    if (weighed.sum(1) <= 1).all():  # no sums
        places = weighed.argmax(1)
        rows, factors = _picked(x, extra, places), table[np.arange(len(table)), places]
        scales = there(factors[:, None], x)
        if factors.all():
            return lambda start, stop: rows(start, stop) * scales
        unused = scales == 0
        return lambda start, stop: (rows(start, stop) * scales).masked_fill_(unused, 0.0)
    used = np.flatnonzero(weighed.any(0))
    rows, weights = _picked(x, extra, used), there(table[:, used], x)
    if weighed[:, used].all():
        return lambda start, stop: weights @ rows(start, stop).double()
    up, down = table[:, used] > 0, table[:, used] < 0
    turns = there(np.block([[up, down], [down, up]]).astype(np.float32), x)

    def panel(start: int, stop: int) -> Tensor:
        wide = rows(start, stop).double()
        # Which mixtures have an infinity of either sign, or a NaN, which is both: inf - inf is NaN.
        odd = torch.cat([wide < np.inf, wide > -np.inf]).logical_not()
        above, below = (turns @ odd.float() > 0).chunk(2)
        total = (weights @ wide.nan_to_num(0.0, 0.0, 0.0)).masked_fill_(above, np.inf)
        return total.add_(torch.zeros_like(total).masked_fill_(below, -np.inf))

    return panel


@torch.no_grad()
def weighted_rows(x: Tensor, weights: np.ndarray, extra: Tensor | None = None) -> Tensor:
    table, single = np.atleast_2d(weights).astype(np.float64), weights.ndim == 1
    if single and not table.any():
        return zeros_like_row(x)
    if single and np.count_nonzero(table) == 1 and table.max() == 1:
        place = int(table[0].argmax())
        source = x[place] if extra is None or place < x.shape[0] else extra[place - x.shape[0]]
        return source.clone(memory_format=torch.contiguous_format)
    counts, divisor = (table, 1.0) if (np.count_nonzero(table, axis=1) <= 1).all() else as_counts(table, x.dtype)
    mixtures = _mixtures(x, counts, extra)

    def panel(start: int, stop: int) -> Tensor:
        rows = mixtures(start, stop)
        return rows if divisor == 1 else rows / divisor

    rows = _side_by_side(x.shape[1], sum(table.shape), panel, x.dtype)
    return rows[0] if single else rows


@torch.no_grad()
def zeros_like_row(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[1])


@torch.no_grad()
def weighted_panel(x: Tensor, table: np.ndarray, extra: Tensor | None, *, start: int, stop: int) -> Tensor:
    mixtures = _mixtures(x, table.astype(np.float64), extra)
    shifted: Panel = lambda first, last: mixtures(start + first, start + last)  # noqa: E731
    return _side_by_side(stop - start, sum(table.shape), shifted, torch.float64)


# ----------------------------------------------------------------------------------------------------- ranks


@torch.no_grad()
def column_statistic(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    (n, d), (m, _) = x.shape, x.shape if mixing is None else mixing.shape
    values, statistic = _values(x, mixing, low=low, high=high, window=window)
    faulty: list[Tensor] = []

    def panel(start: int, stop: int) -> Tensor:
        rows = values(start, stop)
        faulty.append(~(torch.linalg.vector_norm(rows, np.inf, dim=1) < np.inf))
        return _statistic(rows, statistic)

    result = _side_by_side(d, n + m, panel, x.dtype)
    return result, (faulty[0] if len(faulty) == 1 else torch.stack(faulty).any(0)).sum()


def _values(x: Tensor, mixing: np.ndarray | None, *, low: int, high: int, window: int) -> tuple[Panel, Statistic]:
    """What is to be sorted, and what is asked of it: rows as they are; of mixtures float32 where the rows are no more,
    but where it is asked who is closest float64, as sums of counts."""
    n = x.shape[0]
    wide = x.dtype == torch.float64
    if mixing is None:
        rule = Statistic.of(n, low=low, high=high, window=window, wide=wide, terms=0, divisor=1.0)
        return lambda start, stop: x[:, start:stop], rule
    m, weighed = len(mixing), mixing != 0
    if (weighed.sum(1) == 1).all() and (mixing[weighed] == 1).all():
        rule = Statistic.of(m, low=low, high=high, window=window, wide=wide, terms=0, divisor=1.0)
        return _picked(x, None, weighed.argmax(1)), rule
    if wide or window:
        table, divisor = as_counts(mixing.astype(np.float64), torch.float64)
        rule = Statistic.of(m, low=low, high=high, window=window, wide=True, terms=n, divisor=divisor)
        return _mixtures(x, table, None), rule
    table, divisor = as_counts(mixing.astype(np.float64), torch.float32)
    mixtures = _mixtures(x, table, None)
    rule = Statistic.of(m, low=low, high=high, window=window, wide=False, terms=n, divisor=1.0)
    return lambda start, stop: (mixtures(start, stop) / divisor).float(), rule


def _in_order(values: Tensor) -> Tensor:
    """Columns from the least value to the greatest, NaN behind +inf. A card sorts many values by their bits, where a
    NaN with a sign is less than -inf: x86 makes such ones of inf - inf, and of every NaN that it rounds to bfloat16."""
    return values.nan_to_num(np.nan, np.inf, -np.inf).sort(dim=0).values


def _statistic(values: Tensor, statistic: Statistic) -> Tensor:
    low, high, window = statistic.low, statistic.high, statistic.window
    ordered = _in_order(values)
    if high - low == 1 and not window and statistic.total == statistic.scale:
        return ordered[low]
    ordered = (ordered if window else ordered[low:high]).double() * statistic.scale
    center = (ordered[low:high] if window else ordered).sum(0)
    if window:
        drop, lifted, twice = values.shape[0] - window, ordered, 2 * center
        if statistic.up != 1:
            lifted = torch.maximum(ordered * statistic.up, ordered * statistic.down)
            twice = torch.minimum(twice * statistic.up, twice * statistic.down)
        slid = ((lifted[:drop] + lifted[window:]).mul_(high - low) < twice).sum(0)
        place = torch.arange(window, device=values.device).unsqueeze(1)
        center = ordered.gather(0, slid + place).sum(0)
    return center / statistic.total


@torch.no_grad()
def weighted_statistic(
    x: Tensor, weights: np.ndarray, low: float, high: float, window: float = 0.0, *, even: str = "mid"
) -> tuple[Tensor, Tensor]:
    n, d = x.shape
    asked = Weighted.of(weights, low=low, high=high, window=window, even=even)
    shares, below = there(weights.astype(np.float64), x), there(np.tril(np.ones((n, n))), x)
    faulty: list[Tensor] = []

    def panel(start: int, stop: int) -> Tensor:
        rows = x[:, start:stop]
        faulty.append(~(torch.linalg.vector_norm(rows, np.inf, dim=1) < np.inf))
        values, order = rows.nan_to_num(np.nan, np.inf, -np.inf).sort(dim=0)
        parts = shares.index_select(0, order.flatten()).view(order.shape)
        ends = below @ parts  # a product is added up in one order, as sums along columns are not everywhere
        center = (
            _quantile(values, ends, asked)
            if low == high
            else _between(values, parts, ends, asked.low, asked.high, asked.slack)
        )
        if not window:
            return center
        first = _nearest(values, ends, center, asked)
        return _between(values, parts, ends, first, first + asked.window, asked.slack)

    result = _side_by_side(d, (24 if window else 6) * n, panel, x.dtype)
    return result, faulty[0] if len(faulty) == 1 else torch.stack(faulty).any(0)


def _quantile(values: Tensor, ends: Tensor, asked: Weighted) -> Tensor:
    """Where the weight so far comes to an amount."""
    places = torch.stack([(ends < asked.low - asked.slack).sum(0), (ends <= asked.low + asked.slack).sum(0)])
    lower, upper = values.gather(0, places.clamp_(max=len(values) - 1)).double()
    if EVEN[asked.even] == "mid":
        return torch.where(lower == upper, lower, 0.5 * lower + 0.5 * upper)
    return lower if EVEN[asked.even] == "lower" else upper


def _between(
    values: Tensor, parts: Tensor, ends: Tensor, low: float | Tensor, high: float | Tensor, slack: float
) -> Tensor:
    """The mean of the weight between two amounts, of values that have none of it none: 0 * inf is NaN."""
    inside = ends.clamp(max=high) - (ends - parts).clamp(min=low)
    counts = inside > slack
    inside = torch.where(counts, inside, 0.0)
    return (inside / inside.sum(0) * torch.where(counts, values, 0.0).double()).sum(0)


def _nearest(values: Tensor, ends: Tensor, center: Tensor, asked: Weighted) -> Tensor:
    """Where the weight nearest to a centre begins. It moves up by each stretch of weight whose value is further from
    the centre than the one that enters for it, at the same distance in weight above."""
    drop = (ends[-1:] - asked.window).clamp(min=0.0)
    edges = (
        torch.cat([torch.zeros_like(drop), drop, ends, ends - asked.window]).clamp(min=0.0).minimum(drop).sort(dim=0)
    )
    steps = edges.values.diff(dim=0)
    middle, columns = edges.values[:-1] + 0.5 * steps, ends.T.contiguous()
    both = torch.cat([middle, middle + asked.window]).T.contiguous()
    places = torch.searchsorted(columns, both).clamp_(max=len(values) - 1).T
    a, b = (values.gather(0, places).double() * 0.25).chunk(2)
    away = 0.25 * center
    further = away - a - (b - away) > asked.ties * (a.abs() + b.abs())
    moves = b.isfinite() & (a.isfinite().logical_not() | further)
    return torch.where(moves, steps, 0.0).sum(0)


# --------------------------------------------------------------------------------------------------- moments


@torch.no_grad()
def mean_and_std(x: Tensor, ddof: int = 1) -> Moments:
    found = x.new_empty(2, x.shape[1])
    for start, stop in _panels(x.shape[1], x.shape[0]):
        _moments(x[:, start:stop], ddof, found[:, start:stop])
    return found[0], found[1]


def _moments(x: Tensor, ddof: int, out: Tensor) -> None:
    """The moments [2, w] of rows [n, w], to out. Squares of float64 are those of numbers in a unit of their column."""
    n, wide = x.shape[0], x.double()
    if x.dtype != torch.float64:
        mean = wide.sum(0) / n
        out[0] = mean
        out[1] = ((wide - mean).square_().sum(0) / (n - ddof)).sqrt_()
        return
    unit = _power(torch.linalg.vector_norm(wide, np.inf, dim=0))
    wide = wide / unit
    mean = wide.sum(0) / n
    wide -= mean
    reach = _power(torch.linalg.vector_norm(wide, np.inf, dim=0))
    out[0] = mean * unit
    out[1] = ((wide / reach).square_().sum(0) / (n - ddof)).sqrt_() * reach * unit


# -------------------------------------------------------------------------------------------- norms and distances


def _rows_of(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


@torch.no_grad()
def squared_norms(x: Tensor) -> Tensor:
    return _added_up(x.shape[-1], _rows_of(x), lambda s, t: x[..., s:t].double().square().sum(-1))


@torch.no_grad()
def norms(x: Tensor) -> Tensor:
    if x.dtype != torch.float64:
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)  # widened as it is read: one launch
    unit = _power(torch.linalg.vector_norm(x, np.inf, dim=-1))
    inverse = unit.unsqueeze(-1)
    squared = _added_up(x.shape[-1], _rows_of(x), lambda s, t: (x[..., s:t] / inverse).square_().sum(-1))
    return squared.sqrt() * unit


def _squared(parts: Sequence[Tensor]) -> Tensor:
    """Squared distances between the rows of all parts and the origin, from differences: those of pieces, added up, so
    that many blocks of threads share a distance and all that look at some columns do so at once."""
    count, width = sum(part.shape[0] for part in parts) + 1, parts[0].shape[1]
    pieces = -(-width // PIECE)
    points = parts[0].new_zeros(count, pieces * -(-width // pieces), dtype=torch.float64)
    at = 0
    for part in parts:
        points[at : at + part.shape[0], :width] = part
        at += part.shape[0]
    points = points.view(count, pieces, -1).transpose(0, 1)
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.square_().sum(0)


@torch.no_grad()
def squared_distances(x: Tensor, extra: Tensor | None = None) -> Tensor:
    parts = [x] if extra is None else [x, extra]
    points = sum(part.shape[0] for part in parts) + 1
    total = _added_up(x.shape[1], points, lambda start, stop: _squared([part[:, start:stop] for part in parts]))
    return total.fill_diagonal_(0)


@torch.no_grad()
def mixed_distances(x: Tensor, table: np.ndarray, extra: Tensor | None, *, others: bool) -> Tensor:
    mixtures = _mixtures(x, table.astype(np.float64), extra)

    def panel(start: int, stop: int) -> Tensor:
        beside = [] if extra is None or not others else [extra[:, start:stop]]
        return _squared([mixtures(start, stop), *beside])

    return _added_up(x.shape[1], sum(table.shape), panel).fill_diagonal_(0)


@torch.no_grad()
def squared_distances_to(x: Tensor, point: Tensor) -> Tensor:
    n, d = x.shape
    return _added_up(d, n, lambda s, t: (x[:, s:t] - point[s:t].double()).square_().sum(1))


@torch.no_grad()
def compared(x: Tensor, point: Tensor) -> Tensor:
    n, d = x.shape

    def panel(start: int, stop: int) -> Tensor:
        rows, at = x[:, start:stop].double(), point[start:stop].double()
        return torch.stack([rows.square().sum(1), (rows - at).square_().sum(1), (rows * at).sum(1)])

    return _added_up(d, 2 * n, panel)


@torch.no_grad()
def squared_around(
    x: Tensor, weights: np.ndarray, extra: Tensor | None = None, scales: np.ndarray | None = None
) -> Tensor:
    mixture = _mixtures(x, np.atleast_2d(weights).astype(np.float64), extra)
    factors = None if scales is None else there(scales.astype(np.float64)[:, None], x)

    def panel(start: int, stop: int) -> Tensor:
        rows = x[:, start:stop].double() if factors is None else x[:, start:stop] * factors
        return torch.stack([rows.square().sum(1), (rows - mixture(start, stop)).square_().sum(1)])

    return _added_up(x.shape[1], x.shape[0] + weights.size, panel)


@torch.no_grad()
def inner_products(vectors: list[Tensor]) -> Tensor:
    def panel(start: int, stop: int) -> Tensor:
        wide = torch.stack([v[start:stop] for v in vectors]).double()
        return wide @ wide.T

    products = _added_up(vectors[0].shape[0], len(vectors), panel)
    return products.tril() + products.tril(-1).T


# ------------------------------------------------------------------------------------------------- the worker half


def _sum(scale: float | Tensor, x: Tensor, factor: float, y: Tensor, out: Tensor) -> None:
    """scale x + factor y, three roundings and none of them in one operation: a fused one, or torch's own ``alpha``,
    rounds in another way on each device and in each layout. Half types are rounded once."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x, y = x.float(), y.float()
    left, right = x if isinstance(scale, float) and scale == 1 else x * scale, y * factor
    if out.dtype == left.dtype:
        torch.add(left, right, out=out)
    else:
        out.copy_(left + right)


@torch.no_grad()
def blend(scale: float | Tensor, x: Tensor, factor: float, y: Tensor, *, out: Tensor | None = None) -> Tensor:
    result = x.new_empty(x.shape) if out is None else out
    scales = scale.to(x.device, x.dtype).unsqueeze(-1) if isinstance(scale, Tensor) else scale
    for start, stop in _panels(x.shape[-1], _rows_of(x)):
        _sum(scales, x[..., start:stop], factor, y[..., start:stop], result[..., start:stop])
    return result


@torch.no_grad()
def send_rows(
    x: Tensor, factor: float, y: Tensor, *, scale: Callable[[Tensor], Tensor] | None, keep: float, beta: float,
    memory: Tensor | None, out: Tensor, moments: bool,
) -> tuple[Moments | None, Moments | None]:  # fmt: skip
    sampled = blend(1.0, x, factor, y, out=out if memory is None else None)
    if scale is not None:
        sampled *= scale(norms(sampled)).to(x.dtype).unsqueeze(-1)
    first = mean_and_std(sampled) if moments else None
    if memory is None:
        return first, first
    blend(keep, sampled, beta, memory, out=out)
    return first, mean_and_std(out) if moments else None


@torch.no_grad()
def gather_images(
    images: Tensor, index: Tensor, *, flip: Tensor | None, scale: np.ndarray, shift: np.ndarray
) -> Tensor:
    picked = images.index_select(0, index)
    if flip is not None:
        picked = torch.where(flip.bool()[:, None, None, None], picked.flip(-1), picked)
    factors = there(np.stack([scale, shift]).astype(np.float32)[:, :, None, None], images)
    return picked.float().mul_(factors[0]).add_(factors[1])


# ------------------------------------------------------------------------------------------- the greatest of a row


@torch.no_grad()
def kept_of(x: Tensor, rows: np.ndarray, dropped: int) -> Kept:
    d, chosen = x.shape[1], there(rows.astype(np.int64), x)
    least, cuts = [], []
    for part in chosen.split(max(1, NUMBERS // d)):
        sizes = x.index_select(0, part).abs()  # without signs, those of NaN too: see _in_order
        value = sizes.sort(dim=1).values[:, dropped : dropped + 1].clone()
        equal = sizes == value
        remain = (sizes <= value).sum(1, keepdim=True) - dropped  # of the equal ones
        least.append(value[:, 0].to(torch.promote_types(x.dtype, torch.float32)))
        cuts.append((equal.cumsum(1, dtype=torch.int32) <= remain).sum(1))
    return Kept(rows, torch.cat(least), torch.cat(cuts))


def _kept_values(x: Tensor, kept: Kept) -> Panel:
    """[k, stop - start] in float64: the values that rows keep, and zeros."""
    rows = _picked(x, None, kept.rows)
    least, cuts = kept.least.unsqueeze(1), kept.cuts.unsqueeze(1)

    def panel(start: int, stop: int) -> Tensor:
        values = rows(start, stop)
        sizes, columns = values.abs(), torch.arange(start, stop, device=x.device)
        keeps = (sizes > least) | (sizes == least) & (columns < cuts)
        return values.double().masked_fill(keeps.logical_not_(), 0.0)

    return panel


@torch.no_grad()
def kept_sums(x: Tensor, kept: Kept, ends: Sequence[int]) -> Tensor:
    values, layers = _kept_values(x, kept), list(pairwise(ends))
    found = torch.zeros(3, len(layers), kept.rows.size, dtype=torch.float64, device=x.device)
    for start, stop in _panels(x.shape[1], 5 * kept.rows.size):
        panel = values(start, stop)
        terms = torch.stack([panel.square(), panel.sign(), (panel != 0).double()])
        for layer, (first, last) in enumerate(layers):
            if first < stop and last > start:
                found[:, layer] += terms[:, :, max(first, start) - start : min(last, stop) - start].sum(-1)
    return found


@torch.no_grad()
def kept_mean(x: Tensor, kept: Kept, weights: np.ndarray, ends: Sequence[int]) -> Tensor:
    values, by_layer = _kept_values(x, kept), there(np.ascontiguousarray(weights.T), x)
    inner = there(np.array(ends[1:-1], np.int64), x)

    def panel(start: int, stop: int) -> Tensor:
        layers = torch.bucketize(torch.arange(start, stop, device=x.device), inner, right=True)
        return (values(start, stop) * by_layer.index_select(1, layers)).sum(0)

    return _side_by_side(x.shape[1], 4 * kept.rows.size, panel, x.dtype)


# ------------------------------------------------------------------------------- what some columns tell of each row


def _columns(x: Tensor, starts: np.ndarray | Tensor | None, width: int) -> Tensor:
    """[n, k] the columns of blocks; all columns without."""
    if starts is None:
        return x
    first = there(starts, x) if isinstance(starts, np.ndarray) else starts
    columns = first.unsqueeze(1) + torch.arange(width, device=x.device)
    return x.index_select(1, columns.reshape(-1))


@torch.no_grad()
def relations(x: Tensor, point: Tensor, *, starts: Any = None, width: int = 0) -> Tensor:
    sample, at = _columns(x, starts, width), _columns(point.unsqueeze(0), starts, width)

    def panel(start: int, stop: int) -> Tensor:
        rows = torch.cat([sample[:, start:stop], at[:, start:stop]]).double()
        apart = (rows - rows[-1]).square().sum(1)
        return torch.stack([apart, rows @ rows[-1], rows.square().sum(1), (rows - rows).sum(1)])

    return _added_up(sample.shape[1], len(x) + 1, panel)


@torch.no_grad()
def statistic_weights(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None, starts: Any = None,
    width: int = 0,
) -> Tensor:  # fmt: skip
    sample = _columns(x, starts, width)
    mixture = None if mixing is None else _mixtures(sample, mixing, None)
    d, n = sample.shape[1], len(x) if mixing is None else len(mixing)

    def panel(start: int, stop: int) -> Tensor:
        values = sample[:, start:stop].double() if mixture is None else mixture(start, stop)
        return _weights_in(values, low, high, window).sum(1)

    return _added_up(d, n, panel) / max(d, 1)


def _weights_in(values: Tensor, low: int, high: int, window: int) -> Tensor:
    """[m, k] what each value weighs in the statistic of its column; equal ones share."""
    m = len(values)
    ordered, order = torch.where(values.isnan(), torch.inf, values).sort(dim=0, stable=True)
    ranks = torch.arange(m, device=values.device).unsqueeze(1).expand_as(ordered)
    first, last = low, high
    if window:
        center = ordered[low:high].mean(0)
        first = (ordered[: m - window] + ordered[window:] < 2 * center).sum(0)
        last = first + window
    chosen = (ranks >= first) & (ranks < last)
    differs = torch.ones_like(ordered[:1], dtype=torch.bool)
    begins = torch.cat([differs, ordered[1:] != ordered[:-1]])
    ends = torch.cat([begins[1:], differs])
    start = torch.where(begins, ranks, 0).cummax(0).values
    stop = torch.where(ends, ranks, m - 1).flip(0).cummin(0).values.flip(0)
    before = chosen.cumsum(0) - chosen.long()
    count = before.gather(0, stop) + chosen.gather(0, stop) - before.gather(0, start)
    weight = count.double() / ((last - first) * (stop - start + 1))
    return weight.gather(0, order.argsort(dim=0))
