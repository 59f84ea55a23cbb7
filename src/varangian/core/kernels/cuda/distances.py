"""Norms, distances and inner products on a card. Sums go to float64 early, and are added up in an order of their own:
each program leaves its part, and the parts are added in the order of the columns."""

# pyright: reportInvalidTypeForm=false
# tl.constexpr is no type: Triton reads it as a word.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ... import numerics
from .. import plain
from ..runtime import there
from .columns import panels, weighted_panel
from .launching import bits, float_of, kernel, launch, rows, tl, triton

TILE = 16  # rows to a side of a tile of pairs: with twice as many columns in flight registers would not do
LANES = 16  # columns of it at a time
SHORT = 16  # squares that are added one to the next in float32,
RUN = 8  # and so many such sums in float32: right to 7e-7 even where each rounding goes the same way
SPAN = LANES * SHORT * RUN  # columns that go to float64 together
PARTS = 4096  # so many parts at most of what is summed over columns,
SUMMED = 1 << 23  # and of so many pairs in all
STREAM = 1024  # columns at a time of a row that is only read,
STRETCH = 8 * STREAM  # and of a part
PRODUCTS = 8  # vectors whose products are taken without stacking them

# ----------------------------------------------------------------------------------------------------- pairs


@kernel
def _points(x, extra, stride, estride, n, e, i, k, stop, KIND: tl.constexpr, EXTRA: tl.constexpr):
    """Columns k < stop of the points i: the rows, then the extra rows, then (however far) the origin."""
    inside = (k < stop)[None, :]
    place = x + i[:, None] * tl.cast(stride, tl.int64) + k[None, :]
    a = tl.load(place, mask=inside & (i < n)[:, None], other=0).to(KIND)
    if EXTRA:
        j = i - n
        place = extra + j[:, None] * tl.cast(estride, tl.int64) + k[None, :]
        a += tl.load(place, mask=inside & ((j >= 0) & (j < e))[:, None], other=0).to(KIND)
    return a


@kernel
def _tile(
    x, extra, stride, estride, n, e, left, right, start, stop, spans,
    T: tl.constexpr, LANES: tl.constexpr, SHORT: tl.constexpr, RUN: tl.constexpr,
    KIND: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """[T, T] squared distances over columns start..stop, which are so many spans. The next columns are asked for before
    those at hand are worked on."""
    total = tl.zeros([T, T], tl.float64)
    k = start + tl.arange(0, LANES)
    a = _points(x, extra, stride, estride, n, e, left, k, stop, KIND, EXTRA)
    b = _points(x, extra, stride, estride, n, e, right, k, stop, KIND, EXTRA)
    for _ in range(spans):
        part = tl.zeros([T, T, LANES], KIND)
        for _ in range(RUN):
            short = tl.zeros([T, T, LANES], KIND)
            for _ in range(SHORT):
                away, k = a[:, None, :] - b[None, :, :], k + LANES
                a = _points(x, extra, stride, estride, n, e, left, k, stop, KIND, EXTRA)
                b = _points(x, extra, stride, estride, n, e, right, k, stop, KIND, EXTRA)
                short += away * away
            part += short
        total += tl.sum(part.to(tl.float64), 2)
    return total


@kernel
def pairs(
    x, extra, stride, estride, n, e, d, points, spans, seen, lost, faint, parts,
    T: tl.constexpr, LANES: tl.constexpr, SHORT: tl.constexpr, RUN: tl.constexpr,
    KIND: tl.constexpr, EXTRA: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    """parts[chunk, i, j] in float64: of one tile of pairs what one chunk of columns adds to their squared distances.

    Differences, not a Gram matrix: nothing cancels. AGAIN: only of pairs whose squares, as seen, overflowed, or may
    have vanished; the parts of the others stay.
    """
    tiles = tl.cdiv(points, T)
    chunk, tile = tl.program_id(0) // (tiles * tiles), tl.program_id(0) % (tiles * tiles)
    if tile % tiles >= tile // tiles:  # the upper triangle; tiles of one chunk run side by side and share the cache
        left, right = (tile // tiles) * T + tl.arange(0, T), (tile % tiles) * T + tl.arange(0, T)
        wanted = (left < points)[:, None] & (right < points)[None, :]
        if AGAIN:
            between = tl.load(seen + left[:, None] * points + right[None, :], mask=wanted, other=0)
            first = tl.load(seen + left * points + points - 1, mask=left < points, other=0) < float_of(faint)
            second = tl.load(seen + right * points + points - 1, mask=right < points, other=0) < float_of(faint)
            vanished = (between < float_of(lost)) & first[:, None] & second[None, :]
            wanted &= (~(between < float("inf")) | vanished) & (left[:, None] != right[None, :])
        if tl.max(tl.max(wanted.to(tl.int32), 1), 0) > 0:
            start = chunk.to(tl.int64) * spans * (LANES * SHORT * RUN)
            stop = tl.minimum(start + spans * (LANES * SHORT * RUN), d)
            total = _tile(
                x, extra, stride, estride, n, e, left, right, start, stop, spans, T, LANES, SHORT, RUN, KIND, EXTRA
            )
            place = parts + chunk.to(tl.int64) * points * points + left[:, None] * points + right[None, :]
            tl.store(place, total, mask=wanted)


@kernel
def fold(parts, count, points, out, BLOCK: tl.constexpr, AHEAD: tl.constexpr):
    """out[i, j]: the sum of all parts, of pairs i < j and their mirror images; nothing on the diagonal."""
    pair, c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, AHEAD)
    i, j = pair // points, pair % points
    upper = tl.where(i < j, pair, j * points + i)
    wanted = (pair < points * points) & (i != j)
    total = tl.zeros([AHEAD, BLOCK], tl.float64)
    for s in range(0, count, AHEAD):
        place = parts + (s + c).to(tl.int64)[:, None] * points * points + upper[None, :]
        total += tl.load(place, mask=(s + c < count)[:, None] & wanted[None, :], other=0)
    tl.store(out + pair, tl.sum(total, 0), mask=pair < points * points)


class _Pairs:
    """Squared distances between rows, extra rows and the origin, over d columns that may come in panels."""

    def __init__(self, points: int, widths: list[int], x: Tensor) -> None:
        self.points = points
        parts = max(1, min(PARTS, SUMMED // points**2))
        self.spans = max(1, triton.cdiv(sum(widths), SPAN * parts))  # to a part
        self.counts = [triton.cdiv(width, SPAN * self.spans) for width in widths]
        self.parts = torch.empty(sum(self.counts), points, points, dtype=torch.float64, device=x.device)

    def measure(
        self, x: Tensor, extra: Tensor | None, *, panel: int = 0, wide: bool, seen: Tensor | None = None
    ) -> None:
        """Leaves the parts of a panel of columns; of those already seen only where float32 was not enough."""
        a, b = rows(x), rows(x if extra is None else extra)
        (n, d), e, first, count = (
            x.shape,
            0 if extra is None else len(extra),
            sum(self.counts[:panel]),
            self.counts[panel],
        )
        launch(
            pairs, triton.cdiv(self.points, TILE) ** 2 * count, a, b, a.stride(0), b.stride(0), n, e, d, self.points,
            self.spans, self.parts if seen is None else seen, bits(numerics.LOST * d), bits(numerics.FAINT * d),
            self.parts[first : first + count], T=TILE, LANES=LANES, SHORT=SHORT * RUN if wide else SHORT,
            RUN=1 if wide else RUN, KIND=tl.float64 if wide else tl.float32, EXTRA=e > 0, AGAIN=seen is not None,
        )  # fmt: skip

    def folded(self) -> Tensor:
        out = torch.empty(self.points, self.points, dtype=torch.float64, device=self.parts.device)
        launch(fold, triton.cdiv(self.points**2, 32), self.parts, len(self.parts), self.points, out, BLOCK=32, AHEAD=32)
        return out


def squared_distances(x: Tensor, extra: Tensor | None = None) -> Tensor:
    between = _Pairs(len(x) + (0 if extra is None else len(extra)) + 1, [x.shape[1]], x)
    wide = x.dtype == torch.float64
    between.measure(x, extra, wide=wide)
    if not wide:  # squares of float32 overflow beyond 1e19 and vanish below 1e-19: the card sees for itself where
        between.measure(x, extra, wide=True, seen=between.folded())
    return between.folded()


def mixed_distances(x: Tensor, table: np.ndarray, extra: Tensor | None, *, others: bool) -> Tensor:
    beside = extra if others else None
    pieces = panels(len(table), x.shape[1])
    between = _Pairs(
        len(table) + (0 if beside is None else len(beside)) + 1, [stop - start for start, stop in pieces], x
    )
    for panel, (start, stop) in enumerate(pieces):
        mixed = weighted_panel(x, table, extra, start=start, stop=stop)
        between.measure(mixed, None if beside is None else beside[:, start:stop], panel=panel, wide=True)
    return between.folded()


# ----------------------------------------------------------------------------------------------------- norms


@kernel
def squares(
    x, stride, factor, y, ystride, unit, n, d, parts,
    BLOCK: tl.constexpr, STRETCH: tl.constexpr, SHIFTED: tl.constexpr, SCALED: tl.constexpr, PEAK: tl.constexpr,
):  # fmt: skip
    """parts[chunk, i]: of one chunk of columns the sum of the squares of (x_i + factor y_i) / unit_i, or the greatest
    of the sizes, which the square of is not."""
    i, chunk = tl.program_id(0) % n, tl.program_id(0) // n
    found = tl.zeros([BLOCK], tl.float64)
    for s in range(0, STRETCH, BLOCK):
        k = chunk.to(tl.int64) * STRETCH + s + tl.arange(0, BLOCK)
        value = tl.load(x + i * tl.cast(stride, tl.int64) + k, mask=k < d, other=0)
        if SHIFTED:
            beside = tl.load(y + i * tl.cast(ystride, tl.int64) + k, mask=k < d, other=0)
            value = value + float_of(factor).to(value.dtype) * beside
        value = value.to(tl.float64)
        if SCALED:
            value = value / tl.load(unit + i)
        found = tl.maximum(found, tl.abs(value)) if PEAK else found + value * value
    tl.store(parts + chunk.to(tl.int64) * n + i, tl.max(found, 0) if PEAK else tl.sum(found, 0))


def _row_parts(
    x: Tensor, shift: tuple[float, Tensor] | None, *, unit: Tensor | None = None, peak: bool = False
) -> Tensor:
    """[parts, n] of rows [n, d]."""
    (n, d), a = x.shape, rows(x)
    factor, y = (0.0, a) if shift is None else shift
    parts = torch.empty(max(1, triton.cdiv(d, STRETCH)), n, dtype=torch.float64, device=x.device)
    launch(
        squares, len(parts) * n, a, a.stride(0), bits(factor), y, y.stride(0) if len(y) == n else 0,
        parts if unit is None else unit, n, d, parts, BLOCK=STREAM, STRETCH=STRETCH, SHIFTED=shift is not None,
        SCALED=unit is not None, PEAK=peak, enable_fp_fusion=False,
    )  # fmt: skip
    return parts


def squared_norms(x: Tensor) -> Tensor:
    matrix = x.reshape(-1, x.shape[-1])
    return _row_parts(matrix, None).sum(0).reshape(x.shape[:-1])


def lengths(x: Tensor, shift: tuple[float, Tensor] | None) -> Tensor:
    """[n] norms of x_i + factor y_i, for rows [n, d] and a shift (factor, y [n or 1, d]), in float64: those of float64
    in units of their own where squares leave its range."""
    squared = _row_parts(x, shift).sum(0)
    if x.dtype != torch.float64:
        return squared.sqrt_()
    peak = _row_parts(x, shift, peak=True).amax(0)
    unit = torch.where((peak > 0) & (peak < np.inf), peak, 1.0)
    again = _row_parts(x, shift, unit=unit).sum(0).sqrt_() * unit
    return torch.where((squared > numerics.VANISHING) & (squared < np.inf), squared.sqrt(), again)


def norms(x: Tensor) -> Tensor:
    return lengths(x.reshape(-1, x.shape[-1]), None).reshape(x.shape[:-1])


# ------------------------------------------------------------------------------------------- products, and one point


@kernel
def products(v0, v1, v2, v3, v4, v5, v6, v7, k, d, parts, K: tl.constexpr, BLOCK: tl.constexpr, STRETCH: tl.constexpr):
    """parts[chunk, i, j]: what one chunk of columns adds to the inner products of k vectors, each somewhere else."""
    i, chunk = tl.arange(0, K), tl.program_id(0)
    base = tl.where(i == 0, v0, tl.where(i == 1, v1, tl.where(i == 2, v2, v3)))
    base = tl.where(i < 4, base, tl.where(i == 4, v4, tl.where(i == 5, v5, tl.where(i == 6, v6, v7))))
    part = tl.zeros([K, K, BLOCK], tl.float64)
    for s in range(0, STRETCH, BLOCK):
        column = chunk.to(tl.int64) * STRETCH + s + tl.arange(0, BLOCK)
        inside = (i < k)[:, None] & (column < d)[None, :]
        a = tl.load(base[:, None] + column[None, :], mask=inside, other=0).to(tl.float64)
        part += a[:, None, :] * a[None, :, :]
    place = parts + (chunk * k + i[:, None]) * k + i[None, :]
    tl.store(place, tl.sum(part, 2), mask=(i < k)[:, None] & (i < k)[None, :])


def inner_products(vectors: list[Tensor]) -> Tensor:
    k, d = len(vectors), vectors[0].numel()
    if k > PRODUCTS:
        return plain.inner_products(vectors)
    kind = vectors[0].dtype
    for v in vectors:
        kind = torch.promote_types(kind, v.dtype)
    held = [rows(v.to(kind)) for v in vectors]
    parts = torch.empty(triton.cdiv(d, STRETCH), k, k, dtype=torch.float64, device=held[0].device)
    launch(products, len(parts), *held, *[held[0]] * (PRODUCTS - k), k, d, parts, K=PRODUCTS, BLOCK=32, STRETCH=STRETCH)
    return parts.sum(0)


@kernel
def around(
    x, stride, point, scales, n, d, parts,
    R: tl.constexpr, BLOCK: tl.constexpr, STRETCH: tl.constexpr, SCALED: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """parts[chunk, 0, i]: of one chunk of columns what it adds to the squared distance of scale_i x_i to a point; and
    parts[chunk, 1, i], to its squared norm."""
    tiles = tl.cdiv(n, R)
    chunk, i = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * R + tl.arange(0, R)
    norm, distance = tl.zeros([R, BLOCK], tl.float64), tl.zeros([R, BLOCK], tl.float64)
    for s in range(0, STRETCH, BLOCK):
        k = chunk.to(tl.int64) * STRETCH + s + tl.arange(0, BLOCK)
        inside = (i < n)[:, None] & (k < d)[None, :]
        value = tl.load(x + i[:, None] * tl.cast(stride, tl.int64) + k[None, :], mask=inside, other=0).to(tl.float64)
        if SCALED:
            value = value * tl.load(scales + i, mask=i < n, other=1)[:, None]
        away = value - tl.load(point + k, mask=k < d, other=0).to(tl.float64)[None, :]
        distance += away * away
        if NORMS:
            norm += value * value
    place = parts + chunk.to(tl.int64) * n * (2 if NORMS else 1) + i
    tl.store(place, tl.sum(distance, 1), mask=i < n)
    if NORMS:
        tl.store(place + n, tl.sum(norm, 1), mask=i < n)


def _around(x: Tensor, point: Tensor, *, scales: Tensor | None, squares: bool) -> Tensor:
    """[1, n] squared distances to a point, or [2, n], squared norms behind them."""
    (n, d), a = x.shape, rows(x)
    parts = torch.empty(triton.cdiv(d, STRETCH), 1 + squares, n, dtype=torch.float64, device=x.device)
    launch(
        around, len(parts) * triton.cdiv(n, 4), a, a.stride(0), rows(point), parts if scales is None else scales, n, d,
        parts, R=4, BLOCK=512, STRETCH=STRETCH, SCALED=scales is not None, NORMS=squares,
    )  # fmt: skip
    return parts.sum(0)


def squared_distances_to(x: Tensor, point: Tensor) -> Tensor:
    return _around(x, point, scales=None, squares=False)[0]


def squared_around(
    x: Tensor, weights: np.ndarray, extra: Tensor | None = None, scales: np.ndarray | None = None
) -> Tensor:
    point = weighted_panel(x, np.atleast_2d(weights), extra, start=0, stop=x.shape[1])[0]
    by = None if scales is None else there(scales.astype(np.float64), x)
    return _around(x, point, scales=by, squares=True).flip(0)
