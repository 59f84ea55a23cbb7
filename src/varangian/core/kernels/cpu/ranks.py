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
def _between(values, order, weights, low, high, slack, width, scratch, out):  # type: ignore[no-untyped-def]
    """The mean of the weight between two amounts."""
    below, total, size = scratch[0], scratch[1], high - low
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
            total[k] += part if inside else 0.0
            out[k] += part / size * row[k] if inside else 0.0
            below[k] = after
    for k in range(width):
        out[k] *= size / total[k]


@jit
def _nearest(values, order, weights, window, slack, ties, width, out):  # type: ignore[no-untyped-def]
    """The mean of as much weight nearest to the centre, which comes in ``out``: the furthest is left out first, of two
    equally far the higher."""
    n = values.shape[0]
    for k in range(width):
        center, first, last = out[k], 0, n - 1
        drop = -window
        for r in range(n):
            drop += weights[order[r, k]]
        low, high = weights[order[0, k]], weights[order[n - 1, k]]
        while drop > slack and first < last:
            a, b = np.float64(values[first, k]), np.float64(values[last, k])
            if not abs(b) < np.inf:
                lower = False
            elif not abs(a) < np.inf:
                lower = True
            else:
                lower = 0.25 * center - 0.25 * a - (0.25 * b - 0.25 * center) > ties * (0.25 * abs(a) + 0.25 * abs(b))
            if lower:
                part = min(low, drop)
                low -= part
                drop -= part
                if low <= slack:
                    first += 1
                    low = weights[order[first, k]]
            else:
                part = min(high, drop)
                high -= part
                drop -= part
                if high <= slack:
                    last -= 1
                    high = weights[order[last, k]]
        if first == last:
            out[k] = values[first, k]
            continue
        whole = low + high
        for r in range(first + 1, last):
            whole += weights[order[r, k]]
        total = low / whole * values[first, k] + high / whole * values[last, k]
        for r in range(first + 1, last):
            total += weights[order[r, k]] / whole * values[r, k]
        out[k] = total


@jit
def _columns(
    bits, left, right, weights, asked, shift, mask, infinity, start, stop, keys, order, values, scratch, bad, out
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
            _between(values, order, weights, asked.low, asked.high, asked.slack, width, scratch, found)
        if asked.window > 0:
            _nearest(values, order, weights, asked.window, asked.slack, asked.ties, width, found)
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
            min(d, (c + 1) * size), keys, order, keys.view(x.dtype), np.zeros((4, WIDTH)), bad[c], out,
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
