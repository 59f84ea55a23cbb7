"""Norms, distances and inner products on a card. Sums go to float64 early, and are added up in an order of their own:
each program leaves its part, and the parts are added in the order of the columns.

How many columns go to a part follows from the sizes alone: few where there are few, so that the whole card is at work,
and many where there are many, so that parts stay few. Where all pairs are wanted the code is straight, written for so
many points: a thread has columns of its own, their numbers in registers, and a sum for each pair.
"""

# pyright: reportInvalidTypeForm=false
# tl.constexpr is no type: Triton reads it as a word.

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, combinations_with_replacement, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import numerics
from .. import plain
from ..runtime import there
from .columns import panels, weighted_panel
from .launching import bits, emitted, float_of, kernel, launch, rows, tl, triton

ALONE = 12  # so many points at most are in registers together: 66 pairs;
GROUP = 7  # of more of them two groups of so many at most: 49 pairs,
WIDE_GROUP = 6  # and in float64 36
WARPS = 4  # to a program: each has two groups of its own, and finds in the cache what another has read of its columns
LANES = 32  # columns of a warp at a time,
AHEAD = 4  # and so many times as many asked for together: in float32 so many squares are added one to the next,
RUN = 16  # and so many such sums, right to 6e-7 even where each rounding goes the same way
SPAN = LANES * AHEAD * RUN  # columns that go to float64 together
SUMMED = 1 << 23  # parts at a time
AGAIN = 4096  # warps of a second look at most: mostly there is nothing to see
PROGRAMS = 4096  # about so many for what is only read,
STREAM = 2048  # columns of a row at a time,
BESIDE = 256  # fewer of several rows beside a point
PRODUCTS = 8  # vectors whose products are taken without stacking them,
PRODUCT_PARTS = 2048  # in so many programs at most, of one warp each

# ------------------------------------------------------------------------------------------------------------- parts


@kernel
def total(parts, count, divisor, out, BLOCK: tl.constexpr, ROOT: tl.constexpr):
    """out[i]: the sum of parts[i, :count], divided; or its root."""
    place, c = parts + tl.program_id(0).to(tl.int64) * count, tl.arange(0, BLOCK)
    found = tl.zeros([BLOCK], tl.float64)
    for s in range(0, count, BLOCK):
        found += tl.load(place + s + c, mask=s + c < count, other=0)
    answer = tl.sum(found, 0) / float_of(divisor)
    tl.store(out + tl.program_id(0), tl.sqrt(answer) if ROOT else answer)


def _together(count: int) -> int:
    """How many parts are asked for at a time."""
    return 64 if count <= 64 else 1024


def totals(parts: Tensor, *, root: bool = False, divisor: float = 1.0) -> Tensor:
    """The sums of parts [..., count], divided by a number; or their roots."""
    out, count = torch.empty(parts.shape[:-1], dtype=torch.float64, device=parts.device), parts.shape[-1]
    launch(total, out.numel(), parts, count, bits(divisor), out, BLOCK=_together(count), ROOT=root)
    return out


# ------------------------------------------------------------------------------------------------------------- pairs


@kernel
def blurred(seen, i, j, points, inside, lost, faint):
    """Whether float32 was not enough for a pair: as seen, its squares overflowed, or may have vanished."""
    between = tl.load(seen + i * points + j, mask=inside, other=0)
    first = tl.load(seen + i * points + points - 1, mask=inside, other=0) < float_of(faint)
    second = tl.load(seen + j * points + points - 1, mask=inside, other=0) < float_of(faint)
    return inside & (i != j) & (~(between < float("inf")) | ((between < float_of(lost)) & first & second))


@kernel
def unclear(seen, left, right, points, lost, faint, SIDE: tl.constexpr, T: tl.constexpr):
    """Whether that is so of any pair of SIDE points from left[w] on and as many from right[w] on."""
    r = tl.arange(0, T)
    i, j = left[:, None, None] + r[None, :, None], right[:, None, None] + r[None, None, :]
    inside = (r < SIDE)[None, :, None] & (r < SIDE)[None, None, :] & (i < points) & (j < points)
    found = blurred(seen, i, j, points, inside, lost, faint).to(tl.int32)
    return tl.max(tl.max(tl.max(found, 2), 1), 0) > 0


def pairs_source(side: int, *, alone: bool, wide: bool, extra: bool, refines: bool) -> str:
    """The kernel that leaves parts[tile, pair, chunk] in float64: what a chunk of columns adds to squared distances.

    Alone: between ``side`` points, of which the last is the origin. Otherwise each warp has two groups of so many: the
    second is the first, or follows it so many places later, round in a circle, until every two groups have met.
    Differences, not a Gram matrix: nothing cancels. Refines: no part where, as seen, float32 was enough.
    """
    ahead, kind = (1, "tl.float64") if wide else (AHEAD, "tl.float32")
    if alone:
        points, chosen = {f"a{i}": f"{i}" for i in range(side - 1)}, list(combinations(range(side), 2))
    else:
        points = {
            f"{name}{i}": f"({group} + {i})" for name, group in (("a", "left"), ("b", "right")) for i in range(side)
        }
        chosen = list(product(range(side), range(side)))
    looked = f"unclear(seen, left, right, points, lost, faint, {side}, {triton.next_power_of_2(side)})"
    lines = [
        "def pairs(",
        "    x, extra, stride, estride, n, vectors, d, points, groups, tiles, chunks, step, rounds, run,",
        "    seen, lost, faint, parts, WARPS: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr,",
        "):",
        "    item = tl.program_id(0) * WARPS + tl.arange(0, WARPS)",
        "    tile, first = item % tiles, item // tiles",
        f"    left = (tile % groups) * {side}",
        f"    right = ((tile % groups + tile // groups) % groups) * {side}",
        f"    work = {looked if refines else 'True'}",
        "    if work:",
        "        for s in range(rounds):",
        "            chunk = first + s * step",
        "            busy = (first < step) & (chunk < chunks)",
        "            start = chunk.to(tl.int64) * SPAN",
        "            stop = tl.where(busy, tl.minimum(start + SPAN, d), 0)[:, None]",
        "            column = start[:, None] + tl.arange(0, LANES)[None, :]",
    ]
    for name, point in points.items():
        place = f"x + tl.cast({point}, tl.int64) * stride"
        if extra:
            place = f"tl.where({point} < n, {place}, extra + tl.cast({point} - n, tl.int64) * estride)"
        lines.append(f"            at_{name} = ({place})" + ("" if alone else "[:, None]") + " + column")
    sums = {f"sum_{i}_{j}": (f"a{i}", f"a{j}" if alone else f"b{j}") for i, j in chosen}
    lines += [f"            {name} = tl.zeros([WARPS, LANES], {kind})" for name in sums]
    lines.append("            for _ in range(run):")
    for u in range(ahead):
        lines.append(f"                inside = column + {u * LANES} < stop")
        for name, point in points.items():
            mask = "inside" if alone else f"inside & ({point} < vectors)[:, None]"
            value = f"tl.load(at_{name} + {u * LANES}, mask={mask}, other=0).to({kind})"
            lines.append(f"                {name}_{u} = {value}")
    for name, (one, other) in sums.items():
        for u in range(ahead):
            lines.append(f"                away{u} = {one}_{u}" + (f" - {other}_{u}" if other in points else ""))
        lines.append(f"                {name} += " + " + ".join(f"away{u} * away{u}" for u in range(ahead)))
    lines.append(f"                column += {ahead * LANES}")
    lines += [f"                at_{name} += {ahead * LANES}" for name in points]
    lines.append("            lane = tl.arange(0, LANES)[None, :] + tl.zeros([WARPS, LANES], tl.int32)")
    for q in range(0, len(sums), LANES):  # each lane has one sum to leave
        some = list(sums)[q : q + LANES]
        lines.append("            found = tl.zeros([WARPS, LANES], tl.float64)")
        for p, name in enumerate(some):
            lines.append(f"            found = tl.where(lane == {p}, tl.sum({name}.to(tl.float64), 1)[:, None], found)")
        lines += [
            f"            place = (tile[:, None] * {len(sums)} + {q} + lane).to(tl.int64) * chunks + chunk[:, None]",
            f"            tl.store(parts + place, found, mask=busy[:, None] & (lane < {len(some)}))",
        ]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=64)
def pairs(side: int, *, alone: bool, wide: bool, extra: bool, refines: bool) -> Any:
    """That kernel: compiled at its first launch, and kept on disk by Triton."""
    source = pairs_source(side, alone=alone, wide=wide, extra=extra, refines=refines)
    return emitted(f"pairs of {side}: {alone} {wide} {extra} {refines}", source, "pairs", unclear)


@kernel
def fold(
    parts, count, points, side, groups, seen, lost, faint, before, out,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr, ALONE: tl.constexpr, REFINES: tl.constexpr, CONTINUES: tl.constexpr,
):  # fmt: skip
    """out[i, j]: the sum of a pair's parts, on top of what was before; nothing on the diagonal. What is refined has
    parts only where float32 was not enough, and elsewhere is as it was seen."""
    pair, c = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS), tl.arange(0, BLOCK)
    i, j, inside = pair // points, pair % points, pair < points * points
    wanted, answer = inside & (i != j), tl.zeros([PAIRS], tl.float64)
    if REFINES:
        wanted, answer = blurred(seen, i, j, points, wanted, lost, faint), tl.load(seen + pair, mask=inside, other=0)
    if tl.max(wanted.to(tl.int32), 0) > 0:
        if ALONE:
            low, high = tl.minimum(i, j), tl.maximum(i, j)
            place = low * (2 * points - low - 1) // 2 + high - low - 1
        else:
            further = (j // side - i // side + groups) % groups
            turned = (2 * further > groups) | ((2 * further == groups) & (i > j))
            left, right = tl.where(turned, j, i), tl.where(turned, i, j)
            tile = left // side + groups * tl.where(turned, groups - further, further)
            place = (tile * side + left % side) * side + right % side
        place = parts + place.to(tl.int64)[:, None] * count + c[None, :]
        found = tl.zeros([PAIRS, BLOCK], tl.float64)
        for s in range(0, count, BLOCK):
            found += tl.load(place + s, mask=wanted[:, None] & (s + c < count)[None, :], other=0)
        found = tl.sum(found, 1)
        if CONTINUES:
            found += tl.load(before + pair, mask=wanted, other=0)
        answer = tl.where(wanted, found, answer)
    tl.store(out + pair, answer, mask=inside)


def _tiling(points: int, *, wide: bool) -> tuple[int, int]:
    """How many points are in a group, and how many groups there are: those that cost the least, a load being worth two
    squares."""
    if points <= ALONE:
        return points, 1
    found = [(side, triton.cdiv(points, side)) for side in range(4, (WIDE_GROUP if wide else GROUP) + 1)]
    return min(found, key=lambda f: f[1] * (f[1] + 1) * f[0] * (f[0] + 4))


def _between(
    x: Tensor, extra: Tensor | None, *, d: int, wide: bool, seen: Tensor | None = None, before: Tensor | None = None
) -> Tensor:
    """[points, points] squared distances between rows, extra rows and the origin, over some of d columns, on top of
    what others gave before; where they have been seen, only of those for which float32 was not enough."""
    if extra is not None and extra.dtype != x.dtype:
        kind = torch.promote_types(x.dtype, extra.dtype)
        x, extra = x.to(kind), extra.to(kind)
    (n, width), a, b = x.shape, rows(x), rows(x if extra is None else extra)
    vectors = n + (0 if extra is None else len(extra))
    points, alone = vectors + 1, vectors < ALONE
    side, groups = _tiling(points, wide=wide)
    tiles, chunks = groups * (groups + 1) // 2, triton.cdiv(width, SPAN)
    step = chunks if seen is None else min(chunks, max(1, AGAIN // tiles))
    parts = torch.empty(
        points * vectors // 2 if alone else tiles * side**2, chunks, dtype=torch.float64, device=x.device
    )
    found = torch.empty(points, points, dtype=torch.float64, device=x.device)
    look = parts if seen is None else seen, bits(numerics.LOST * d), bits(numerics.FAINT * d)
    launch(
        pairs(side, alone=alone, wide=wide, extra=extra is not None, refines=seen is not None),
        triton.cdiv(tiles * step, WARPS), a, b, a.stride(0), b.stride(0), n, vectors, width, points, groups, tiles,
        chunks, step, triton.cdiv(chunks, step), triton.cdiv(min(width, SPAN), LANES * (1 if wide else AHEAD)), *look,
        parts, WARPS=WARPS, LANES=LANES, SPAN=SPAN, num_warps=WARPS,
    )  # fmt: skip
    together = _together(chunks)
    launch(
        fold, triton.cdiv(points**2 * together, 1024), parts, chunks, points, side, groups, *look,
        parts if before is None else before, found, PAIRS=1024 // together, BLOCK=together, ALONE=alone,
        REFINES=seen is not None, CONTINUES=before is not None,
    )  # fmt: skip
    return found


def squared_distances(x: Tensor, extra: Tensor | None = None) -> Tensor:
    d, vectors = x.shape[1], len(x) + (0 if extra is None else len(extra))
    width = max(1, SUMMED // (vectors * (vectors + 1) // 2)) * SPAN

    def measured(*, wide: bool, seen: Tensor | None) -> Tensor:
        found = None
        for s in range(0, max(1, d), width):
            beside = None if extra is None else extra[:, s : s + width]
            found = _between(x[:, s : s + width], beside, d=d, wide=wide, seen=seen, before=found)
        assert found is not None
        return found

    if x.dtype == torch.float64:
        return measured(wide=True, seen=None)
    # Squares of float32 overflow beyond 1e19 and vanish below 1e-19: the card sees for itself where.
    return measured(wide=True, seen=measured(wide=False, seen=None))


def mixed_distances(x: Tensor, table: np.ndarray, extra: Tensor | None, *, others: bool) -> Tensor:
    d, found = x.shape[1], None
    for start, stop in panels(len(table), d) or [(0, 0)]:
        mixed = weighted_panel(x, table, extra, start=start, stop=stop)
        beside = extra[:, start:stop].double() if others and extra is not None else None
        found = _between(mixed, beside, d=d, wide=True, before=found)
    assert found is not None
    return found


# ----------------------------------------------------------------------------------------------------- norms


@kernel
def squares(
    x, stride, factor, y, ystride, unit, d, chunks, steps, parts,
    BLOCK: tl.constexpr, SHIFTED: tl.constexpr, SCALED: tl.constexpr, PEAK: tl.constexpr,
):  # fmt: skip
    """parts[i, chunk]: of one chunk of columns the sum of the squares of (x_i + factor y_i) / unit_i, or the greatest
    of the sizes, which the square of is not."""
    i, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    found = tl.zeros([BLOCK], tl.float64)
    k = (chunk.to(tl.int64) * steps) * BLOCK + tl.arange(0, BLOCK)
    for _ in range(steps):
        value = tl.load(x + i * tl.cast(stride, tl.int64) + k, mask=k < d, other=0)
        if SHIFTED:
            beside = tl.load(y + i * tl.cast(ystride, tl.int64) + k, mask=k < d, other=0)
            value = value + float_of(factor).to(value.dtype) * beside
        value = value.to(tl.float64)
        if SCALED:
            value = value / tl.load(unit + i)
        found = tl.maximum(found, tl.abs(value)) if PEAK else found + value * value
        k += BLOCK
    tl.store(parts + tl.program_id(0), tl.max(found, 0) if PEAK else tl.sum(found, 0))


def in_chunks(d: int, block: int, at_most: int) -> tuple[int, int]:
    """Into how many chunks columns are cut, and how many blocks of them are in each."""
    steps = max(1, triton.cdiv(d, block * max(1, at_most)))
    return max(1, triton.cdiv(d, block * steps)), steps


def _row_parts(
    x: Tensor, shift: tuple[float, Tensor] | None, *, unit: Tensor | None = None, peak: bool = False
) -> Tensor:
    """[n, parts] of rows [n, d]."""
    (n, d), a = x.shape, rows(x)
    factor, y = (0.0, a) if shift is None else shift
    chunks, steps = in_chunks(d, STREAM, PROGRAMS // max(1, n))
    parts = torch.empty(n, chunks, dtype=torch.float64, device=x.device)
    launch(
        squares, n * chunks, a, a.stride(0), bits(factor), y, y.stride(0) if len(y) == n else 0,
        parts if unit is None else unit, d, chunks, steps, parts, BLOCK=STREAM, SHIFTED=shift is not None,
        SCALED=unit is not None, PEAK=peak, enable_fp_fusion=False,
    )  # fmt: skip
    return parts


def squared_norms(x: Tensor) -> Tensor:
    matrix = x.reshape(-1, x.shape[-1])
    return totals(_row_parts(matrix, None)).reshape(x.shape[:-1])


def lengths(x: Tensor, shift: tuple[float, Tensor] | None) -> Tensor:
    """[n] norms of x_i + factor y_i, for rows [n, d] and a shift (factor, y [n or 1, d]), in float64: those of float64
    in units of their own where squares leave its range."""
    if x.dtype != torch.float64:
        return totals(_row_parts(x, shift), root=True)
    squared, peak = totals(_row_parts(x, shift)), _row_parts(x, shift, peak=True).amax(1)
    unit = torch.where((peak > 0) & (peak < np.inf), peak, 1.0)
    again = totals(_row_parts(x, shift, unit=unit), root=True) * unit
    return torch.where((squared > numerics.VANISHING) & (squared < np.inf), squared.sqrt(), again)


def norms(x: Tensor) -> Tensor:
    return lengths(x.reshape(-1, x.shape[-1]), None).reshape(x.shape[:-1])


# ------------------------------------------------------------------------------------------- products, and one point


def products_source(k: int) -> str:
    """The kernel that leaves parts[i k + j, chunk]: what one chunk of columns adds to the inner products of k vectors,
    each somewhere else. One warp to a program, and a sum for each pair in each thread."""
    chosen = list(combinations_with_replacement(range(k), 2))
    lines = [
        f"def products({', '.join(f'v{i}' for i in range(k))}, d, steps, parts, LANES: tl.constexpr):",
        "    chunk, chunks = tl.program_id(0), tl.num_programs(0)",
        f"    column = chunk.to(tl.int64) * steps * {AHEAD * LANES} + tl.arange(0, LANES)",
        *(f"    sum_{i}_{j} = tl.zeros([LANES], tl.float64)" for i, j in chosen),
        "    for _ in range(steps):",
    ]
    for u in range(AHEAD):
        place = f"column + {u * LANES}"
        lines += [f"        a{i}_{u} = tl.load(v{i} + {place}, mask={place} < d, other=0)" for i in range(k)]
    for u in range(AHEAD):
        lines += [f"        b{i} = a{i}_{u}.to(tl.float64)" for i in range(k)]
        lines += [f"        sum_{i}_{j} += b{i} * b{j}" for i, j in chosen]
    lines.append(f"        column += {AHEAD * LANES}")
    for i, j in chosen:
        lines.append(f"    found = tl.sum(sum_{i}_{j}, 0)")
        for place in sorted({i * k + j, j * k + i}):
            lines.append(f"    tl.store(parts + {place} * tl.cast(chunks, tl.int64) + chunk, found)")
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=PRODUCTS)
def products(k: int) -> Any:
    """That kernel: compiled at its first launch, and kept on disk by Triton."""
    return emitted(f"products of {k}", products_source(k), "products")


def inner_products(vectors: list[Tensor]) -> Tensor:
    k, d = len(vectors), vectors[0].numel()
    if k > PRODUCTS:
        return plain.inner_products(vectors)
    kind = vectors[0].dtype
    for v in vectors:
        kind = torch.promote_types(kind, v.dtype)
    held = [rows(v.to(kind)) for v in vectors]
    chunks, steps = in_chunks(d, AHEAD * LANES, PRODUCT_PARTS)
    parts = torch.empty(k, k, chunks, dtype=torch.float64, device=held[0].device)
    launch(products(k), chunks, *held, d, steps, parts, LANES=LANES, num_warps=1)
    return totals(parts)


@kernel
def around(
    x, stride, point, scales, n, d, chunks, steps, parts,
    R: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, NORMS: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """parts[0, i, chunk]: of one chunk of columns what it adds to the squared distance of scale_i x_i to a point; and
    parts[1, i, chunk], to its squared norm; and parts[2, i, chunk], to its inner product with the point."""
    tiles = tl.cdiv(n, R)
    chunk, i = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * R + tl.arange(0, R)
    norm, distance = tl.zeros([R, BLOCK], tl.float64), tl.zeros([R, BLOCK], tl.float64)
    product = tl.zeros([R, BLOCK], tl.float64)
    k = chunk.to(tl.int64) * steps * BLOCK + tl.arange(0, BLOCK)
    for _ in range(steps):
        inside = (i < n)[:, None] & (k < d)[None, :]
        value = tl.load(x + i[:, None] * tl.cast(stride, tl.int64) + k[None, :], mask=inside, other=0).to(tl.float64)
        if SCALED:
            value = value * tl.load(scales + i, mask=i < n, other=1)[:, None]
        at = tl.load(point + k, mask=k < d, other=0).to(tl.float64)[None, :]
        away = value - at
        distance += away * away
        if NORMS:
            norm += value * value
        if PRODUCTS:
            product += value * at
        k += BLOCK
    place = parts + i * tl.cast(chunks, tl.int64) + chunk
    tl.store(place, tl.sum(distance, 1), mask=i < n)
    if NORMS:
        tl.store(place + n * tl.cast(chunks, tl.int64), tl.sum(norm, 1), mask=i < n)
    if PRODUCTS:
        tl.store(place + 2 * n * tl.cast(chunks, tl.int64), tl.sum(product, 1), mask=i < n)


def _around(x: Tensor, point: Tensor, *, scales: Tensor | None, squares: bool, products: bool = False) -> Tensor:
    """[1, n] squared distances to a point, or [2, n], squared norms behind them, or [3, n], and inner products."""
    (n, d), a = x.shape, rows(x)
    tiles = triton.cdiv(n, 4)
    chunks, steps = in_chunks(d, BESIDE, PROGRAMS // max(1, tiles))
    parts = torch.empty(1 + squares + products, n, chunks, dtype=torch.float64, device=x.device)
    launch(
        around, chunks * tiles, a, a.stride(0), rows(point), parts if scales is None else scales, n, d, chunks, steps,
        parts, R=4, BLOCK=BESIDE, SCALED=scales is not None, NORMS=squares, PRODUCTS=products,
    )  # fmt: skip
    return totals(parts)


def squared_distances_to(x: Tensor, point: Tensor) -> Tensor:
    return _around(x, point, scales=None, squares=False)[0]


def compared(x: Tensor, point: Tensor) -> Tensor:
    distances, squares, products = _around(x, point, scales=None, squares=True, products=True)
    return torch.stack([squares, distances, products])


def squared_around(
    x: Tensor, weights: np.ndarray, extra: Tensor | None = None, scales: np.ndarray | None = None
) -> Tensor:
    point = weighted_panel(x, np.atleast_2d(weights), extra, start=0, stop=x.shape[1])[0]
    by = None if scales is None else there(scales.astype(np.float64), x)
    return _around(x, point, scales=by, squares=True).flip(0)
