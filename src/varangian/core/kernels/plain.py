"""The kernels in torch's own operations: the oracle of the others, and what every other device runs.

Nothing here waits for the device: answers are tensors there, and no operation depends on the value of another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import numerics
from .definitions import Statistic, as_counts
from .runtime import there

Moments = tuple[Tensor, Tensor]


def column_statistic(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    wide, statistic = _mixed(x.double(), mixing, low=low, high=high, window=window)
    return _statistic(wide, statistic).to(x.dtype), (~wide.isfinite().all(1)).sum()


def _mixed(x: Tensor, mixing: np.ndarray | None, *, low: int, high: int, window: int) -> tuple[Tensor, Statistic]:
    """What is to be sorted, in float64, and what is asked of it."""
    n = x.shape[0]
    if mixing is None:
        return x, Statistic.of(n, low=low, high=high, window=window, wide=True, terms=0, divisor=1.0)
    table, divisor = as_counts(mixing, torch.float64)
    return _products(table, x), Statistic.of(
        len(table), low=low, high=high, window=window, wide=True, terms=n, divisor=divisor
    )


def _products(table: np.ndarray, x: Tensor) -> Tensor:
    """table @ x in float64, what has no weight left out: 0 * NaN is NaN."""
    used = np.flatnonzero((table != 0).any(0))
    if not used.size:
        return torch.zeros(len(table), x.shape[1], dtype=torch.float64, device=x.device)
    weights, rows = there(table[:, used], x), x.index_select(0, there(used, x)).double()
    positive, negative = (weights > 0).double(), (weights < 0).double()
    up, down, lost = (rows == np.inf).double(), (rows == -np.inf).double(), rows.isnan().double()
    beyond, below = positive @ up + negative @ down, positive @ down + negative @ up
    total = weights @ rows.nan_to_num(0, 0, 0)
    total += torch.where(beyond > 0, np.inf, 0.0) - torch.where(below > 0, np.inf, 0.0)
    return total + torch.where((positive + negative) @ lost > 0, np.nan, 0.0)


def _statistic(x: Tensor, statistic: Statistic) -> Tensor:
    low, high, window = statistic.low, statistic.high, statistic.window
    ordered = x.sort(dim=0).values
    if high - low == 1 and not window and statistic.divisor == 1:
        return ordered[low]
    ordered = ordered * statistic.scale
    center = ordered[low:high].sum(0)
    if window:
        lifted, drop = torch.maximum(ordered * statistic.up, ordered * statistic.down), x.shape[0] - window
        twice = torch.minimum(2 * center * statistic.up, 2 * center * statistic.down)
        slid = ((lifted[:drop] + lifted[window:]) * (high - low) < twice).sum(0)
        center = ordered.gather(0, slid + torch.arange(window, device=x.device).unsqueeze(1)).sum(0)
    return center / statistic.total


def mean_and_std(x: Tensor, ddof: int = 1) -> Moments:
    wide = x.double()
    mean = wide.mean(0)
    spread = (wide - mean).square().sum(0)
    return mean.to(x.dtype), (spread / (x.shape[0] - ddof)).sqrt().to(x.dtype)


def weighted_rows(x: Tensor, weights: np.ndarray, extra: Tensor | None = None) -> Tensor:
    table = np.atleast_2d(weights).astype(np.float64)
    if weights.ndim == 1:
        used = np.flatnonzero(weights)
        if not used.size:
            return zeros_like_row(x)
        if used.size == 1 and weights[used[0]] == 1:
            source = x[used[0]] if used[0] < x.shape[0] else extra[used[0] - x.shape[0]]  # type: ignore[index]
            return source.detach().clone()
    counts, divisor = as_counts(table, x.dtype)
    rows = _products(counts, x if extra is None else torch.cat([x, extra])) / divisor
    return (rows[0] if weights.ndim == 1 else rows).to(x.dtype)


def zeros_like_row(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[1])


def weighted_panel(x: Tensor, table: np.ndarray, extra: Tensor | None, *, start: int, stop: int) -> Tensor:
    panel = x[:, start:stop]
    return _products(table, panel if extra is None else torch.cat([panel, extra[:, start:stop]]))


def squared_norms(x: Tensor) -> Tensor:
    return x.double().square().sum(-1)


def norms(x: Tensor) -> Tensor:
    if x.dtype != torch.float64:
        return squared_norms(x).sqrt()
    size = x.abs().amax(-1)
    scale = torch.where((size > 0) & (size < np.inf), size, torch.ones_like(size))
    squared = squared_norms(x)
    odd = ~((squared > numerics.VANISHING) & (squared < np.inf))
    return torch.where(odd, squared_norms(x / scale.unsqueeze(-1)).sqrt() * scale, squared.sqrt())


def squared_distances(x: Tensor, extra: Tensor | None = None) -> Tensor:
    return _pairs(torch.cat([x, *([] if extra is None else [extra]), x.new_zeros(1, x.shape[1])]).double())


def _pairs(points: Tensor) -> Tensor:
    """Squared distances, from differences; of a point to itself 0, whatever it holds."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square().fill_diagonal_(0)


def mixed_distances(x: Tensor, table: np.ndarray, extra: Tensor | None, *, others: bool) -> Tensor:
    mixed = weighted_panel(x, table, extra, start=0, stop=x.shape[1])
    beside = [] if extra is None or not others else [extra.double()]
    return _pairs(torch.cat([mixed, *beside, mixed.new_zeros(1, x.shape[1])]))


def inner_products(vectors: list[Tensor]) -> Tensor:
    wide = torch.stack([v.double() for v in vectors])
    return wide @ wide.T


def squared_distances_to(x: Tensor, point: Tensor) -> Tensor:
    return (x.double() - point.double()).square().sum(1)


def squared_around(
    x: Tensor, weights: np.ndarray, extra: Tensor | None = None, scales: np.ndarray | None = None
) -> Tensor:
    point = weighted_panel(x, np.atleast_2d(weights), extra, start=0, stop=x.shape[1])
    scaled = x.double() if scales is None else there(scales, x).unsqueeze(1) * x.double()
    return torch.stack([scaled.square().sum(1), (scaled - point).square().sum(1)])


def blend(scale: float | Tensor, x: Tensor, factor: float, y: Tensor, *, out: Tensor | None = None) -> Tensor:
    scales = scale.to(x.dtype).unsqueeze(-1) if isinstance(scale, Tensor) else scale
    if x.is_contiguous() and y.is_contiguous() and (out is None or out.is_contiguous()):
        return torch.add(x * scales, y, alpha=factor, out=out)
    moved = torch.add(x.contiguous() * scales, y.contiguous(), alpha=factor)  # else torch rounds in another way
    return moved if out is None else out.copy_(moved)


def send_rows(
    x: Tensor, factor: float, y: Tensor, *, scale: Callable[[Tensor], Tensor] | None, keep: float, beta: float,
    memory: Tensor | None, out: Tensor, moments: bool,
) -> tuple[Moments | None, Moments | None]:  # fmt: skip
    sampled = torch.add(x, y, alpha=factor)
    if scale is not None:
        sampled.mul_(scale(norms(sampled)).to(x.dtype).unsqueeze(-1))
    if memory is None:
        out.copy_(sampled)
    else:
        blend(keep, sampled, beta, memory.expand_as(sampled), out=out)
    if not moments:
        return None, None
    first = mean_and_std(sampled)
    return first, first if memory is None else mean_and_std(out)


def gather_images(
    images: Tensor, index: Tensor, *, flip: Tensor | None, scale: np.ndarray, shift: np.ndarray
) -> Tensor:
    picked = images.index_select(0, index).float()
    if flip is not None:
        picked = torch.where(flip.bool()[:, None, None, None], picked.flip(-1), picked)
    a, b = (there(v.astype(np.float32), images)[:, None, None] for v in (scale, shift))
    return picked * a + b
