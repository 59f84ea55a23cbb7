"""What some columns tell of each row on a card: how far it is from a point, and how much of a statistic it is."""

# pyright: reportInvalidTypeForm=false
# tl.constexpr is no type: Triton reads it as a word.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import plain
from ..runtime import there
from .columns import SORTED_ROWS
from .distances import in_chunks, totals
from .launching import kernel, launch, rows, tl, triton

RELATED = 2048  # columns of a row at a time: a step looks at so many, most of the time
PAIRS = 4096  # of values that are compared at a time, each with all of its column: 8 a thread
WARPS = 16  # of so many; of half as many each has more in registers than a thread should
ABREAST = 64  # columns at a time, at most, that these pairs are of
PARTS = 1024  # at most, that a sum is of


@kernel
def _nth(k, inside, starts, width, SOME: tl.constexpr):
    """The k-th of the columns that are looked at."""
    return tl.load(starts + k // width, mask=inside, other=0) + k % width if SOME else k


@kernel
def related(
    x, stride, point, starts, width, n, count, chunks, steps, parts, BLOCK: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """parts[0, i, chunk]: what one chunk of columns adds to the squared distance of x_i to a point; parts[1, i, chunk],
    to its inner product with that, and parts[2, i, chunk], to its squared norm; parts[3, i, chunk] is NaN where a
    number is none. The last row is the point itself."""
    i, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    apart, inner = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    size, odd = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    k = chunk.to(tl.int64) * steps * BLOCK + tl.arange(0, BLOCK)
    for _ in range(steps):
        inside = k < count
        column = _nth(k, inside, starts, width, SOME)
        at = tl.load(point + column, mask=inside, other=0).to(tl.float64)
        value = tl.load(x + i * tl.cast(stride, tl.int64) + column, mask=inside & (i < n), other=0).to(tl.float64)
        value = tl.where(i < n, value, at)
        apart += (value - at) * (value - at)
        inner += value * at
        size += value * value
        odd += value - value
        k += BLOCK
    place, further = parts + tl.program_id(0), tl.cast(n + 1, tl.int64) * chunks
    tl.store(place, tl.sum(apart, 0))
    tl.store(place + further, tl.sum(inner, 0))
    tl.store(place + 2 * further, tl.sum(size, 0))
    tl.store(place + 3 * further, tl.sum(odd, 0))


def _looked_at(x: Tensor, starts: np.ndarray | Tensor | None, width: int) -> tuple[Tensor | None, int]:
    """Where blocks begin, and how many columns are looked at."""
    if starts is None:
        return None, x.shape[1]
    first = there(starts, x) if isinstance(starts, np.ndarray) else starts.contiguous()
    return first, len(first) * width


def relations(x: Tensor, point: Tensor, *, starts: np.ndarray | Tensor | None = None, width: int = 0) -> Tensor:
    n, a, (first, count) = len(x), rows(x), _looked_at(x, starts, width)
    chunks, steps = in_chunks(count, RELATED, PARTS)
    parts = torch.empty(4, n + 1, chunks, dtype=torch.float64, device=x.device)
    launch(
        related, (n + 1) * chunks, a, a.stride(0), rows(point), parts if first is None else first, width, n, count,
        chunks, steps, parts, BLOCK=RELATED, SOME=first is not None, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return parts[..., 0] if chunks == 1 else totals(parts)


@kernel
def weighed(
    x, stride, starts, width, table, n, m, count, steps, low, high, window, parts,
    M: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr, SOME: tl.constexpr, MIXED: tl.constexpr,
    CLOSEST: tl.constexpr,
):  # fmt: skip
    """parts[i, program]: what the i-th values of its columns weigh in a statistic, added up.

    Each value is compared with all of its column: equal ones share the ranks that follow those of the lesser ones. Only
    what is closest takes the values in order, for which equal ones are ranked one after the other.
    """
    i, j = tl.arange(0, M), tl.arange(0, N)
    other = (i < m)[None, :, None]
    total = tl.zeros([M, COLUMNS], tl.float64)
    k = tl.program_id(0).to(tl.int64) * steps * COLUMNS + tl.arange(0, COLUMNS)
    for _ in range(steps):
        inside = k < count
        column = _nth(k, inside, starts, width, SOME)
        place = x + j[:, None] * tl.cast(stride, tl.int64) + column[None, :]
        value = tl.load(place, mask=(j < n)[:, None] & inside[None, :], other=0).to(tl.float64)
        if MIXED:
            weight = tl.load(table + i[:, None] * n + j[None, :], mask=(i < m)[:, None] & (j < n)[None, :], other=0)
            weight = weight[:, :, None]
            value = tl.sum(tl.where(weight != 0, weight * value[None, :, :], 0.0), 1)  # 0 * NaN is NaN
        value = tl.where(value != value, float("inf"), value)
        a, b = value[:, None, :], value[None, :, :]
        less = tl.sum((other & (b < a)).to(tl.int32), 1)
        equal = tl.maximum(tl.sum((other & (b == a)).to(tl.int32), 1), 1)
        if CLOSEST:
            earlier = other & (b == a) & (i[None, :, None] < i[:, None, None])
            rank = (less + tl.sum(earlier.to(tl.int32), 1))[None, :, :]
            ordered = tl.sum(tl.where(other & (rank == i[:, None, None]), b, 0.0), 1)
            beyond = tl.sum(tl.where(other & (rank == i[:, None, None] + window), b, 0.0), 1)
            middle = tl.where(((i >= low) & (i < high))[:, None], ordered, 0.0)
            center = tl.sum(middle, 0) / tl.cast(high - low, tl.float64)
            moves = (i < m - window)[:, None] & (ordered + beyond < 2 * center[None, :])
            first = tl.sum(moves.to(tl.int32), 0)[None, :]
            last = first + window
        else:
            first, last = low, high
        taken = tl.maximum(tl.minimum(less + equal, last) - tl.maximum(less, first), 0)
        total += tl.where(inside[None, :], taken.to(tl.float64) / (equal * (last - first)).to(tl.float64), 0.0)
        k += COLUMNS
    tl.store(parts + i * tl.num_programs(0) + tl.program_id(0), tl.sum(total, 1), mask=i < m)


def statistic_weights(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None,
    starts: np.ndarray | Tensor | None = None, width: int = 0,
) -> Tensor:  # fmt: skip
    n, m = len(x), len(x) if mixing is None else len(mixing)
    if max(n, m) > SORTED_ROWS:
        return plain.statistic_weights(x, low, high, window, mixing=mixing, starts=starts, width=width)
    a, (first, count) = rows(x), _looked_at(x, starts, width)
    compared, read = triton.next_power_of_2(m), triton.next_power_of_2(n)
    abreast = min(ABREAST, PAIRS // (compared * max(compared, read)))
    programs, steps = in_chunks(count, abreast, PARTS)
    parts = torch.empty(m, programs, dtype=torch.float64, device=x.device)
    launch(
        weighed, programs, a, a.stride(0), parts if first is None else first, width,
        parts if mixing is None else there(mixing.astype(np.float64), x), n, m, count, steps, low, high, window, parts,
        M=compared, N=read, COLUMNS=abreast, SOME=first is not None, MIXED=mixing is not None, CLOSEST=window > 0,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return totals(parts, divisor=float(max(count, 1)))
