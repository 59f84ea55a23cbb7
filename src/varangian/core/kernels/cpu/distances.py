"""Norms, distances and inner products: one pass over [n, d] each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ... import numerics
from ..runtime import STREAM_WIDTH, as_rows, chunks, in_threads, jit, jit_sum, panels
from .columns import weighted_panel

ANEW_WIDTH = 8192  # columns of mixtures at a time whose distances are measured
DISTANCE_WIDTH = 1024  # columns per tile of distances: 8 rows of float32 are 32 KiB


@jit_sum
def _tile(a0, a1, a2, a3, b0, b1, b2, b3, zero, out):  # type: ignore[no-untyped-def]
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
    for k in range(a0.size):
        p0, p1, p2, p3 = a0[k], a1[k], a2[k], a3[k]
        q0, q1, q2, q3 = b0[k], b1[k], b2[k], b3[k]
        s00 += (p0 - q0) * (p0 - q0)
        s01 += (p0 - q1) * (p0 - q1)
        s02 += (p0 - q2) * (p0 - q2)
        s03 += (p0 - q3) * (p0 - q3)
        s10 += (p1 - q0) * (p1 - q0)
        s11 += (p1 - q1) * (p1 - q1)
        s12 += (p1 - q2) * (p1 - q2)
        s13 += (p1 - q3) * (p1 - q3)
        s20 += (p2 - q0) * (p2 - q0)
        s21 += (p2 - q1) * (p2 - q1)
        s22 += (p2 - q2) * (p2 - q2)
        s23 += (p2 - q3) * (p2 - q3)
        s30 += (p3 - q0) * (p3 - q0)
        s31 += (p3 - q1) * (p3 - q1)
        s32 += (p3 - q2) * (p3 - q2)
        s33 += (p3 - q3) * (p3 - q3)
    out[0, 0] += s00
    out[0, 1] += s01
    out[0, 2] += s02
    out[0, 3] += s03
    out[1, 0] += s10
    out[1, 1] += s11
    out[1, 2] += s12
    out[1, 3] += s13
    out[2, 0] += s20
    out[2, 1] += s21
    out[2, 2] += s22
    out[2, 3] += s23
    out[3, 0] += s30
    out[3, 1] += s31
    out[3, 2] += s32
    out[3, 3] += s33


@jit
def _point(x, extra, zeros, i, start, stop):  # type: ignore[no-untyped-def]
    """Columns start..stop of the i-th point: the vectors, then the extra ones, then (however far) the origin."""
    n = x.shape[0]
    if i < n:
        return x[i, start:stop]
    if i < n + extra.shape[0]:
        return extra[i - n, start:stop]
    return zeros[: stop - start]


@jit
def _distances(x, extra, zeros, start, stop, out):  # type: ignore[no-untyped-def]
    # Every pair goes through the same tile, so its distance does not depend on where its rows stand.
    points, width = out.shape[0], zeros.size
    for s in range(start, stop, width):
        t = min(stop, s + width)
        for i in range(0, points, 4):
            a0, a1 = _point(x, extra, zeros, i, s, t), _point(x, extra, zeros, i + 1, s, t)
            a2, a3 = _point(x, extra, zeros, i + 2, s, t), _point(x, extra, zeros, i + 3, s, t)
            for j in range(i, points, 4):
                b0, b1 = _point(x, extra, zeros, j, s, t), _point(x, extra, zeros, j + 1, s, t)
                b2, b3 = _point(x, extra, zeros, j + 2, s, t), _point(x, extra, zeros, j + 3, s, t)
                _tile(a0, a1, a2, a3, b0, b1, b2, b3, zeros[0], out[i : i + 4, j : j + 4])


@jit_sum
def _wide_distance(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(a.size):
        e = np.float64(a[k]) - np.float64(b[k])
        total += e * e
    return total


@jit
def _wide_distances(x, extra, zeros, start, stop, left, right, out):  # type: ignore[no-untyped-def]
    width = zeros.size
    for s in range(start, stop, width):
        t = min(stop, s + width)
        for c in range(left.size):
            a, b = _point(x, extra, zeros, left[c], s, t), _point(x, extra, zeros, right[c], s, t)
            out[c] += _wide_distance(a, b)


@jit_sum
def _wide_square(a):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(a.size):
        total += np.float64(a[k]) * np.float64(a[k])
    return total


@jit
def _squares(x, start, stop, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        out[i] += _wide_square(x[i, start:stop])


def squared_norms(x: Tensor) -> Tensor:
    matrix = x.reshape(-1, x.shape[-1])
    total = np.zeros(matrix.shape[0])
    for start, stop in panels(matrix):
        total += _sum_of_squares(as_rows(matrix[:, start:stop]))
    return torch.from_numpy(total).reshape(x.shape[:-1])


def _sum_of_squares(rows: np.ndarray) -> np.ndarray:
    n, d = rows.shape
    size, count = chunks(d, STREAM_WIDTH, 8)
    parts = np.zeros((count, n))
    in_threads(lambda c: _squares(rows, c * size, min(d, (c + 1) * size), parts[c]), count, rows.size)
    return parts.sum(0)


def norms(x: Tensor) -> Tensor:
    squared = squared_norms(x)
    result = squared.sqrt()
    if x.dtype == torch.float64:
        odd = ~((squared > numerics.VANISHING) & (squared < np.inf))
        if bool(odd.any()):
            rows = x.detach()[odd]
            size = rows.abs().amax(-1)
            scale = torch.where((size > 0) & (size < np.inf), size, torch.ones_like(size))
            result[odd] = squared_norms(rows / scale.unsqueeze(-1)).sqrt() * scale
    return result


def _sum_of_distances(x: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Squared distances between rows, extra rows and the origin, for float32 or float64 arrays."""
    (n, d), e = x.shape, extra.shape[0]
    points = n + e + 1
    padded = -(-points // 4) * 4
    zeros = np.zeros(min(DISTANCE_WIDTH, d), x.dtype)
    size, count = chunks(d, zeros.size, 8)
    parts = np.zeros((count, padded, padded))

    def ends(c: int) -> tuple[int, int]:
        return c * size, min(d, (c + 1) * size)

    in_threads(lambda c: _distances(x, extra, zeros, *ends(c), parts[c]), count, points * d)
    squared = np.triu(parts.sum(0)[:points, :points], 1)
    squared += squared.T
    if x.dtype == np.float64:
        return squared
    # float32 squares overflow beyond 1e19 and vanish below 1e-19: such pairs are summed again in float64, norms first,
    # since a row whose norm is still not finite has no distances to find.

    def sum_again(left: np.ndarray, right: np.ndarray) -> None:
        wide = np.zeros((count, left.size))
        in_threads(lambda c: _wide_distances(x, extra, zeros, *ends(c), left, right, wide[c]), count, left.size * d)
        squared[left, right] = squared[right, left] = wide.sum(0)

    overflowed = np.flatnonzero(~np.isfinite(squared[-1]))
    if overflowed.size:
        sum_again(overflowed, np.full_like(overflowed, points - 1))
    finite = np.isfinite(squared[-1])
    tiny = squared[-1] < numerics.FAINT * d
    again = ~np.isfinite(squared) | (squared < numerics.LOST * d) & tiny[:, None] & tiny[None, :]
    left, right = np.nonzero(np.triu(again & finite[:, None] & finite[None, :], 1))
    if left.size:
        sum_again(left, right)
    return squared


def squared_distances(x: Tensor, extra: Tensor | None = None) -> Tensor:
    extra = x[:0] if extra is None else extra
    total = np.zeros((x.shape[0] + extra.shape[0] + 1,) * 2)
    for s, t in panels(x):
        total += _sum_of_distances(as_rows(x[:, s:t]), as_rows(extra[:, s:t]))
    return torch.from_numpy(total)


def mixed_distances(x: Tensor, table: np.ndarray, extra: Tensor | None, *, others: bool) -> Tensor:
    total = np.zeros((table.shape[0] + (0 if extra is None or not others else extra.shape[0]) + 1,) * 2)
    for start in range(0, x.shape[1], ANEW_WIDTH):
        stop = min(start + ANEW_WIDTH, x.shape[1])
        mixed = weighted_panel(x, table, extra, start=start, stop=stop)
        beside = mixed[:0] if extra is None or not others else extra[:, start:stop].double()
        total += _sum_of_distances(as_rows(mixed), as_rows(beside))
    return torch.from_numpy(total)


@jit_sum
def _wide_product(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(a.size):
        total += np.float64(a[k]) * np.float64(b[k])
    return total


def inner_products(vectors: list[Tensor]) -> Tensor:
    lower = np.zeros((len(vectors), len(vectors)))
    for start, stop in panels(vectors[0].unsqueeze(0)):
        lower += _sum_of_products([as_rows(v[start:stop].unsqueeze(0))[0] for v in vectors])
    return torch.from_numpy(np.tril(lower) + np.tril(lower, -1).T)


def _sum_of_products(arrays: list[np.ndarray]) -> np.ndarray:
    k, d = len(arrays), arrays[0].size
    size, count = chunks(d, STREAM_WIDTH, 8)
    parts = np.zeros((count, k, k))

    def task(c: int) -> None:
        start, stop = c * size, min(d, (c + 1) * size)
        for s in range(start, stop, 1 << 14):
            pieces = [a[s : min(stop, s + (1 << 14))] for a in arrays]
            for i in range(k):
                for j in range(i + 1):
                    parts[c, i, j] += _wide_product(pieces[i], pieces[j])

    in_threads(task, count, k * d)
    return parts.sum(0)


def squared_distances_to(x: Tensor, point: Tensor) -> Tensor:
    total = np.zeros(x.shape[0])
    for s, t in panels(x):
        total += _sum_of_distances_to(as_rows(x[:, s:t]), as_rows(point[s:t].unsqueeze(0)))
    return torch.from_numpy(total)


@jit_sum
def _wide_comparison(a, b):  # type: ignore[no-untyped-def]
    square, distance, product = 0.0, 0.0, 0.0
    for k in range(a.size):
        u, v = np.float64(a[k]), np.float64(b[k])
        square += u * u
        distance += (u - v) * (u - v)
        product += u * v
    return square, distance, product


@jit
def _comparisons(x, point, width, start, stop, out):  # type: ignore[no-untyped-def]
    for s in range(start, stop, width):
        t = min(stop, s + width)
        for i in range(x.shape[0]):
            square, distance, product = _wide_comparison(x[i, s:t], point[0, s:t])
            out[0, i] += square
            out[1, i] += distance
            out[2, i] += product


def compared(x: Tensor, point: Tensor) -> Tensor:
    total = np.zeros((3, x.shape[0]))
    for s, t in panels(x):
        total += _sum_of_comparisons(as_rows(x[:, s:t]), as_rows(point[s:t].unsqueeze(0)))
    return torch.from_numpy(total)


def _sum_of_comparisons(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    n, d = rows.shape
    width = min(STREAM_WIDTH, d)
    size, count = chunks(d, STREAM_WIDTH, 8)
    parts = np.zeros((count, 3, n))
    in_threads(lambda c: _comparisons(rows, point, width, c * size, min(d, (c + 1) * size), parts[c]), count, rows.size)
    return parts.sum(0)


def _sum_of_distances_to(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    n, d = rows.shape
    zeros = np.zeros(min(STREAM_WIDTH, d), rows.dtype)
    left, right = np.arange(n), np.full(n, n)
    size, count = chunks(d, STREAM_WIDTH, 8)
    parts = np.zeros((count, n))
    in_threads(
        lambda c: _wide_distances(rows, point, zeros, c * size, min(d, (c + 1) * size), left, right, parts[c]),
        count,
        rows.size,
    )
    return parts.sum(0)


@jit_sum
def _wide_around(a, at):  # type: ignore[no-untyped-def]
    square, distance = 0.0, 0.0
    for k in range(a.size):
        value = np.float64(a[k])
        e = value - at[k]
        square += value * value
        distance += e * e
    return square, distance


@jit_sum
def _wide_around_scaled(a, scale, at):  # type: ignore[no-untyped-def]
    square, distance = 0.0, 0.0
    for k in range(a.size):  # half as fast as without a scale
        value = scale * np.float64(a[k])
        e = value - at[k]
        square += value * value
        distance += e * e
    return square, distance


@jit
def _around(x, extra, scales, places, factors, start, stop, at, out):  # type: ignore[no-untyped-def]
    """Adds what columns start..stop have of the squared norms of scaled rows and of their distances to a mixture."""
    n, width = x.shape[0], at.size
    for s in range(start, stop, width):
        t = min(stop, s + width)
        point = at[: t - s]
        point[:] = 0
        for c in range(places.size):
            i, factor = places[c], factors[c]
            source = x[i, s:t] if i < n else extra[i - n, s:t]
            for k in range(t - s):
                point[k] += factor * source[k]
        for i in range(n):
            if scales[i] == 1:
                square, distance = _wide_around(x[i, s:t], point)
            else:
                square, distance = _wide_around_scaled(x[i, s:t], scales[i], point)
            out[0, i] += square
            out[1, i] += distance


def squared_around(
    x: Tensor, weights: np.ndarray, extra: Tensor | None = None, scales: np.ndarray | None = None
) -> Tensor:
    used, n = np.flatnonzero(weights), x.shape[0]
    factors, by = weights[used].astype(np.float64), np.ones(n) if scales is None else scales.astype(np.float64)
    total = np.zeros((2, n))
    for start, stop in panels(x):
        rows, others = as_rows(x[:, start:stop]), as_rows((x[:0] if extra is None else extra)[:, start:stop])
        width = min(STREAM_WIDTH, stop - start)
        size, count = chunks(stop - start, width, 8)
        total += _sum_around(rows, others, by, used, factors, width=width, size=size, count=count)
    return torch.from_numpy(total)


def _sum_around(
    rows: np.ndarray, others: np.ndarray, by: np.ndarray, used: np.ndarray, factors: np.ndarray, *,
    width: int, size: int, count: int,
) -> np.ndarray:  # fmt: skip
    n, d = rows.shape
    parts = np.zeros((count, 2, n))

    def task(c: int) -> None:
        first, last = c * size, min(d, (c + 1) * size)
        _around(rows, others, by, used, factors, first, last, np.empty(width), parts[c])

    in_threads(task, count, rows.size)
    return parts.sum(0)
