"""Statistics of columns whose values have weights: sorted with the places of their weights beside them.

A network of min and max sorts integers that sort like the floats, as in :mod:`.columns`; what moves with each is the
number of its row, by which its weight is looked up once all are in order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..definitions import Weighted, network
from ..runtime import as_rows, chunks, in_threads, jit, panels

WIDTH = 256  # bytes of a row in a block: 51 rows, and their numbers, are 26 KiB


@jit
def _loaded(bits, start, width, keys, order, shift, mask, infinity, bad):  # type: ignore[no-untyped-def]
    """Float bits to integers that sort alike, every NaN above +inf; which rows are not finite; and their numbers."""
    for i in range(keys.shape[0]):
        source, target, numbers = bits[i, start : start + width], keys[i], order[i]
        most = infinity - infinity
        for k in range(width):
            magnitude = source[k] & mask
            most = max(most, magnitude)
            key = source[k] ^ ((source[k] >> shift) & mask)
            target[k] = mask if magnitude > infinity else key
        numbers[:] = i
        bad[i] |= most >= infinity


@jit
def _sorted(keys, order, left, right):  # type: ignore[no-untyped-def]
    for c in range(left.size):
        low, high = keys[left[c]], keys[right[c]]
        lower, higher = order[left[c]], order[right[c]]
        for k in range(low.size):
            a, b, i, j = low[k], high[k], lower[k], higher[k]
            moves = a > b
            low[k] = b if moves else a
            high[k] = a if moves else b
            lower[k] = j if moves else i
            higher[k] = i if moves else j


@jit
def _quantile(values, order, weights, goal, slack, even, width, scratch, out):  # type: ignore[no-untyped-def]
    """Where the weight of the values so far comes to a goal: the middle of the values at which it does, or an end."""
    below, lower, upper = scratch[0], scratch[1], scratch[2]
    below[:] = 0
    least, most = goal - slack, goal + slack
    for r in range(values.shape[0]):
        row, numbers = values[r], order[r]
        for k in range(row.size):
            before, value = below[k], np.float64(row[k])
            lower[k] = value if before < least else lower[k]  # the last that begins below the goal
            upper[k] = value if before <= most else upper[k]
            below[k] = before + weights[numbers[k]]
    for k in range(width):
        if even == 1 or lower[k] == upper[k]:
            out[k] = lower[k]
        elif even == 2:
            out[k] = upper[k]
        else:
            out[k] = 0.5 * lower[k] + 0.5 * upper[k]


@jit
def _between(values, order, weights, low, high, slack, scratch, out):  # type: ignore[no-untyped-def]
    """The mean of the weight between two amounts. Weights are such that no sum leaves the range of numbers."""
    below, total, unit = scratch[0], scratch[1], 0.5 / (high - low)
    below[:] = 0
    total[:] = 0
    out[:] = 0
    for r in range(values.shape[0]):
        row, numbers = values[r], order[r]
        for k in range(row.size):
            before = below[k]
            after = before + weights[numbers[k]]
            part = min(after, high) - max(before, low)
            inside = part > slack
            part *= unit
            total[k] += part if inside else 0.0
            out[k] += part * row[k] if inside else 0.0  # 0 * inf is NaN
            below[k] = after
    for k in range(out.size):
        out[k] /= total[k]


@jit
def _nearest(values, order, weights, window, drop, slack, ties, width, ends, scratch, out):  # type: ignore[no-untyped-def]
    """The mean of what is left without so much weight furthest from the centre, which comes in ``out``: of two equally
    far the higher is left out."""
    n, first, last, unit = values.shape[0], ends[0], ends[1], 0.5 / window
    low, high, total = scratch[0], scratch[1], scratch[2]
    for k in range(width):
        center, i, j, rest = 0.25 * out[k], 0, n - 1, drop
        a, b = 0.25 * np.float64(values[0, k]), 0.25 * np.float64(values[j, k])
        under, over = weights[order[0, k]], weights[order[j, k]]
        while rest > slack and i < j:
            if not abs(b) < np.inf:
                lower = False
            elif not abs(a) < np.inf:
                lower = True
            else:
                lower = center - a - (b - center) > ties * (abs(a) + abs(b))
            part = min(under if lower else over, rest)
            rest -= part
            if lower:
                under -= part
                if under <= slack:
                    i += 1
                    a, under = 0.25 * np.float64(values[i, k]), weights[order[i, k]]
            else:
                over -= part
                if over <= slack:
                    j -= 1
                    b, over = 0.25 * np.float64(values[j, k]), weights[order[j, k]]
        first[k], last[k], low[k], high[k] = i, j, under, over
    total[:] = 0
    out[:] = 0
    for r in range(n):
        row, numbers = values[r], order[r]
        for k in range(row.size):
            part = weights[numbers[k]]
            part = high[k] if r == last[k] else part
            part = low[k] if (r == first[k]) & (first[k] < last[k]) else part
            inside = (r >= first[k]) & (r <= last[k])
            part *= unit
            total[k] += part if inside else 0.0
            out[k] += part * row[k] if inside else 0.0
    for k in range(width):
        out[k] /= total[k]


@jit
def _columns(
    bits, left, right, weights, asked, shift, mask, infinity, start, stop, keys, order, values, ends, scratch, bad, out
):  # type: ignore[no-untyped-def]
    """Columns start..stop of the statistic."""
    found = scratch[3]
    size = keys.shape[1]
    for s in range(start, stop, size):
        width = min(size, stop - s)
        _loaded(bits, s, width, keys, order, shift, mask, infinity, bad)
        _sorted(keys, order, left, right)
        for r in range(keys.shape[0]):
            row = keys[r]
            for k in range(width):
                row[k] = row[k] ^ ((row[k] >> shift) & mask)
        if asked.low == asked.high:
            _quantile(values, order, weights, asked.low, asked.slack, asked.even, width, scratch, found)
        else:
            _between(values, order, weights, asked.low, asked.high, asked.slack, scratch, found)
        if asked.window > 0:
            drop = weights.sum() - asked.window
            _nearest(
                values, order, weights, asked.window, drop, asked.slack, asked.ties, width, ends, scratch, found
            )  # fmt: skip
        for k in range(width):
            out[s + k] = found[k]


_INTEGERS: dict[Any, tuple[Any, int, int, int]] = {
    np.dtype(np.float32): (np.int32, 31, 0x7FFFFFFF, 0x7F800000),
    np.dtype(np.float64): (np.int64, 63, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


@lru_cache(maxsize=64)
def _sides(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The network's left and right ends."""
    left, right = np.array(network(n, 0, n), np.int64).reshape(-1, 2).T.copy()
    return left, right


def _weighted_statistic(x: np.ndarray, weights: np.ndarray, asked: Weighted) -> tuple[np.ndarray, np.ndarray]:
    n, d = x.shape
    integer, shift, mask, infinity = _INTEGERS[x.dtype]
    size, count = chunks(d, WIDTH, 8)
    bad, out, bits = np.zeros((count, n), np.bool_), np.empty(d, x.dtype), x.view(integer)
    left, right = _sides(n)

    def task(c: int) -> None:
        keys, order = np.zeros((2, n, WIDTH // x.itemsize), integer)
        _columns(
            bits, left, right, weights, asked, integer(shift), integer(mask), integer(infinity), c * size,
            min(d, (c + 1) * size), keys, order, keys.view(x.dtype), np.zeros((2, keys.shape[1]), np.int64),
            np.zeros((4, keys.shape[1])), bad[c], out,
        )  # fmt: skip

    in_threads(task, count, n * d)
    return out, np.logical_or.reduce(bad)


def weighted_statistic(
    x: Tensor, weights: np.ndarray, low: float, high: float, window: float = 0.0, *, even: str = "mid"
) -> tuple[Tensor, Tensor]:
    parts, bad = [], np.zeros(x.shape[0], bool)
    asked = Weighted.of(weights, low=low, high=high, window=window, even=even)
    for s, t in panels(x):
        part, faulty = _weighted_statistic(as_rows(x[:, s:t]), weights.astype(np.float64), asked)
        parts.append(torch.from_numpy(part).to(x.dtype))
        bad |= faulty
    return parts[0] if len(parts) == 1 else torch.cat(parts), torch.from_numpy(bad)
