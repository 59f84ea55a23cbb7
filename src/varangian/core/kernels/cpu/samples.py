"""What some columns tell of each row: how far it is from a point, and how much of a statistic of columns it is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..definitions import network
from ..runtime import as_rows, is_native, jit, jit_sum

WIDTH = 64  # columns that are sorted at a time
SUMMED = 1024  # that are added up at a time, where all are looked at
LEAST = 1e-30  # squares of float32 that add up to less may have vanished


@jit_sum
def _against(a, b, zero):  # type: ignore[no-untyped-def]
    apart = inner = size = zero
    for k in range(b.size):
        apart += (a[k] - b[k]) * (a[k] - b[k])
        inner += a[k] * b[k]
        size += a[k] * a[k]
    return np.float64(apart), np.float64(inner), np.float64(size)


@jit_sum
def _wide_against(a, b):  # type: ignore[no-untyped-def]
    apart = inner = size = 0.0
    for k in range(b.size):
        p, q = np.float64(a[k]), np.float64(b[k])
        apart += (p - q) * (p - q)
        inner += p * q
        size += p * p
    return apart, inner, size


@jit
def _odd(a):  # type: ignore[no-untyped-def]
    # 0, or NaN where a number is none. In sums that may be reordered LLVM 14 takes 0 * NaN for 0.
    odd = 0.0
    for k in range(a.size):
        odd += 0.0 * np.float64(a[k])
    return odd


@jit
def _relations(x, point, starts, width, zero, out):  # type: ignore[no-untyped-def]
    # Blocks are added up in the type of the rows and their sums in float64, and so are blocks whose squares leave it.
    n = x.shape[0]
    for start in starts:
        b = point[start : start + width]
        length = _against(b, b, zero)[2]
        ordinary = LEAST < length < np.inf
        for i in range(n + 1):
            a = x[i, start : start + width] if i < n else b
            apart, inner, size = _against(a, b, zero)
            if not (ordinary and LEAST < size < np.inf and apart < np.inf):
                apart, inner, size = _wide_against(a, b)
                out[3, i] += _odd(a)
            out[0, i] += apart
            out[1, i] += inner
            out[2, i] += size


def relations(x: Tensor, point: Tensor, *, starts: np.ndarray | None = None, width: int = 0) -> Tensor:
    out = np.zeros((4, x.shape[0] + 1))
    for rows, firsts, size in _blocks(x, starts, width or SUMMED):
        beside = point.unsqueeze(0) if is_native(x) else _picked(point.unsqueeze(0), starts, width)
        _relations(rows, as_rows(beside)[0], firsts, size, rows.dtype.type(0), out)
    return torch.from_numpy(out)


def _blocks(x: Tensor, starts: np.ndarray | None, width: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """(rows, where blocks begin, how wide they are): rows as kernels take them, of half types, which are copied, only
    the blocks. All columns where nobody says which: blocks, and what is left."""
    d = x.shape[1]
    if starts is None:
        firsts = np.arange(0, d - width + 1, width)
        rows, rest = as_rows(x), d % width
        return [(rows, firsts, width)] * bool(firsts.size) + [(rows, np.array([d - rest]), rest)] * bool(rest)
    if is_native(x):
        return [(as_rows(x), starts, width)]
    return [(as_rows(_picked(x, starts, width)), np.arange(starts.size) * width, width)]


def _picked(x: Tensor, starts: np.ndarray | None, width: int) -> Tensor:
    return x if starts is None else x[:, torch.from_numpy((starts[:, None] + np.arange(width)).reshape(-1))]


@lru_cache(maxsize=64)
def _comparators(n: int) -> np.ndarray:
    return np.array(network(n, 0, n), np.int64).reshape(-1, 2)


@jit
def _weights(x, starts, width, low, high, window, comparators, out):  # type: ignore[no-untyped-def]
    # Blocks are sorted side by side, as many as fit in a width at which the processor sorts well.
    n, wide, together = x.shape[0], width, max(1, WIDTH // width)
    width = wide * together
    block, ordered = np.empty((n, width), x.dtype), np.empty((n, width), x.dtype)
    least, most = np.empty(width, x.dtype), np.empty(width, x.dtype)
    at_least, at_most, among = np.empty(width), np.empty(width), 1.0 / (window if window else high - low)
    for group in range(0, starts.size, together):
        size = 0
        for start in starts[group : group + together]:
            for i in range(n):
                a = x[i, start : start + wide]
                b, c = block[i, size : size + wide], ordered[i, size : size + wide]
                for k in range(wide):
                    b[k] = a[k] if a[k] == a[k] else np.inf
                    c[k] = b[k]
            size += wide
        for pair in range(comparators.shape[0]):
            a, b = ordered[comparators[pair, 0], :size], ordered[comparators[pair, 1], :size]
            for k in range(size):
                p, q = a[k], b[k]
                a[k] = p if p < q else q
                b[k] = q if p < q else p
        for k in range(size):
            first, last = low, high
            if window:
                center = 0.0
                for place in range(low, high):
                    center += np.float64(ordered[place, k])
                center /= high - low
                first = 0
                for place in range(n - window):
                    first += np.float64(ordered[place, k]) + np.float64(ordered[place + window, k]) < 2 * center
                last = first + window
            least[k], most[k] = ordered[first, k], ordered[last - 1, k]
            # Equal values share their weight: at both ends some of them may be within and some not.
            begin, end = first, first + 1
            while begin > 0 and ordered[begin - 1, k] == least[k]:
                begin -= 1
            while end < n and ordered[end, k] == least[k]:
                end += 1
            at_least[k] = (min(end, last) - first) / ((end - begin) * (last - first))
            begin, end = last - 1, last
            while begin > 0 and ordered[begin - 1, k] == most[k]:
                begin -= 1
            while end < n and ordered[end, k] == most[k]:
                end += 1
            at_most[k] = (last - max(begin, first)) / ((end - begin) * (last - first))
        for i in range(n):
            a, total = block[i], 0.0
            for k in range(size):
                between = among if least[k] < a[k] and a[k] < most[k] else 0.0
                share = at_least[k] if a[k] == least[k] else between
                total += at_most[k] if a[k] == most[k] else share
            out[i] += total


@jit
def _mixtures(x, starts, width, table, out):  # type: ignore[no-untyped-def]
    """Columns of table @ x side by side; rows of weight zero are never touched."""
    for i in range(table.shape[0]):
        for block in range(starts.size):
            c = out[i, block * width : (block + 1) * width]
            for j in range(table.shape[1]):
                weight = table[i, j]
                if weight != 0:
                    a = x[j, starts[block] : starts[block] + width]
                    for k in range(width):
                        c[k] += weight * a[k]


def statistic_weights(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None,
    starts: np.ndarray | None = None, width: int = 0,
) -> Tensor:  # fmt: skip
    m, columns = x.shape[0] if mixing is None else mixing.shape[0], 0
    table, out = None if mixing is None else np.ascontiguousarray(mixing, np.float64), np.zeros(m)
    for rows, firsts, size in _blocks(x, starts, width or WIDTH):
        if table is not None:
            mixed = np.zeros((m, firsts.size * size))
            _mixtures(rows, firsts, size, table, mixed)
            rows, firsts = mixed, np.arange(firsts.size) * size
        _weights(rows, firsts, size, low, high, window, _comparators(m), out)
        columns += firsts.size * size
    return torch.from_numpy(out / columns)
