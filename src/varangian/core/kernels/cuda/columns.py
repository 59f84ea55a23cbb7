"""What is computed column by column on a card: weighted sums, statistics of ranks, moments."""

# pyright: reportInvalidTypeForm=false
# tl.constexpr is no type: Triton reads it as a word.

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import numerics
from .. import plain
from ..definitions import Statistic, as_counts, network
from ..runtime import there
from .launching import bits, emitted, float_of, kernel, launch, rows, tl, triton

SORTED_ROWS = 64  # so many rows at most are sorted in registers: for 128 of them compiling takes minutes
SORT_BLOCK = 128  # columns per program of a statistic: one a thread
MIX_BLOCK = 128  # columns per program of weighted sums: of so many in registers
MIX_ROWS = 16  # at a time
MIX_WARPS = 2  # of a program for several mixtures, each thread of which has
MIX_COLUMNS = 2  # columns, and float64 sums of up to MIX_SUMS mixtures for each,
MIX_SUMS = 13  # which 51, 39, 25 and 11 fill;
MIX_AHEAD = 4  # of so many vectors asked for together
MOMENT_BLOCK = 256  # columns per program of moments
PANEL = 1 << 23  # numbers of mixtures that are held at a time: what a card's cache keeps
KINDS = {  # of keys: the integer, the float, the shift to the sign, the bits without it, those of infinity
    32: ("tl.int32", "tl.float32", 31, 0x7FFFFFFF, 0x7F800000),
    64: ("tl.int64", "tl.float64", 63, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}

# ---------------------------------------------------------------------------------------------- weighted sums


@kernel
def _term(x, extra, stride, estride, n, weights, used, width, rank, c, count, column, inside, EXTRA: tl.constexpr):
    """[M, BLOCK] what the c-th of the used vectors adds to the mixtures: nothing where its weight is zero."""
    i = tl.load(used + c, mask=c < count, other=0)
    weight = tl.load(weights + c * tl.cast(width, tl.int64) + rank, mask=c < count, other=0)
    if EXTRA:
        value = tl.load(x + i * tl.cast(stride, tl.int64) + column, mask=inside & (i < n), other=0).to(tl.float64)
        place = extra + (i - n) * tl.cast(estride, tl.int64) + column
        value += tl.load(place, mask=inside & (i >= n), other=0).to(tl.float64)
    else:
        value = tl.load(x + i * tl.cast(stride, tl.int64) + column, mask=inside, other=0).to(tl.float64)
    return tl.where(weight[:, None] != 0, weight[:, None] * value[None, :], 0.0)


@kernel
def mixed(
    x, extra, stride, estride, n, d, weights, used, count, m, width, factor, divisor, out, ostride,
    M: tl.constexpr, BLOCK: tl.constexpr, EXTRA: tl.constexpr, FOURS: tl.constexpr, DIVIDES: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of M mixtures, added up in the order of the vectors; by fours where main memory does so too.

    The weights are [count, width], those of the used vectors alone: four of these are asked for at a time.
    """
    groups = tl.cdiv(m, M)
    rank = (tl.program_id(0) % groups) * M + tl.arange(0, M)
    column = (tl.program_id(0) // groups).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < d
    total = tl.zeros([M, BLOCK], tl.float64)
    for c in range(0, count, 4):
        if FOURS:
            t0 = _term(x, extra, stride, estride, n, weights, used, width, rank, c, count, column, inside, EXTRA)
            t1 = _term(x, extra, stride, estride, n, weights, used, width, rank, c + 1, count, column, inside, EXTRA)
            t2 = _term(x, extra, stride, estride, n, weights, used, width, rank, c + 2, count, column, inside, EXTRA)
            t3 = _term(x, extra, stride, estride, n, weights, used, width, rank, c + 3, count, column, inside, EXTRA)
            total += ((t0 + t1) + t2) + t3
        else:
            for k in tl.static_range(4):
                total += _term(
                    x, extra, stride, estride, n, weights, used, width, rank, c + k, count, column, inside, EXTRA
                )
    total = total * float_of(factor)
    if DIVIDES:
        total = total / float_of(divisor)
    place = out + rank[:, None] * tl.cast(ostride, tl.int64) + column[None, :]
    if out.dtype.element_ty != tl.float64:
        total = total.to(tl.float32)  # half types by way of it, as in main memory
    tl.store(place, total.to(out.dtype.element_ty), mask=(rank < m)[:, None] & inside[None, :])


def mixtures_source(rows: int, *, extra: bool, divides: bool) -> str:
    """The kernel for so many mixtures at a time, added up in the order of the vectors: straight code, a thread has
    columns of its own and a float64 sum for each mixture.

    What a weight is zero for adds nothing, not even NaN. So products are taken without looking, zeros leaving sums as
    they are; only where a sum came out as NaN is everything added up again, looking.
    """
    lines = [
        "def mixtures(",
        "    x, extra, stride, estride, n, d, weights, used, count, m, width, factor, divisor, out, ostride,",
        "    BLOCK: tl.constexpr,",
        "):",
        f"    groups = width // {rows}",
        f"    rank = (tl.program_id(0) % groups) * {rows}",
        f"    column = (tl.program_id(0) // groups).to(tl.int64) * (BLOCK * {MIX_COLUMNS}) + tl.arange(0, BLOCK)",
        "    weights += rank",
    ]
    sums = list(product(range(rows), range(MIX_COLUMNS)))
    lines += [f"    inside{u} = column + {u} * BLOCK < d" for u in range(MIX_COLUMNS)]

    def added(indent: str, *, looks: bool) -> None:
        body = [f"total{j}_{u} = tl.zeros([BLOCK], tl.float64)" for j, u in sums]
        ahead = 1 if looks else MIX_AHEAD  # what is rare is to be short, since compiling takes its time
        body.append(f"for c in range(0, count, {ahead}):")
        for k in range(ahead):
            body.append(f"    i = tl.load(used + c + {k})")
            place = "x + i * tl.cast(stride, tl.int64)"
            if extra:
                place = f"tl.where(i < n, {place}, extra + (i - n) * tl.cast(estride, tl.int64))"
            body.append(f"    at = {place} + column")
            for u in range(MIX_COLUMNS):
                mask = f"inside{u} & (c + {k} < count)"
                body.append(f"    value{k}_{u} = tl.load(at + {u} * BLOCK, mask={mask}, other=0)")
        for k in range(ahead):
            place = f"weights + (c + {k}) * tl.cast(width, tl.int64)"
            body += [f"    weight{j} = tl.load({place} + {j})" for j in range(rows)]
            body += [f"    wide{u} = value{k}_{u}.to(tl.float64)" for u in range(MIX_COLUMNS)]
            for j, u in sums:
                term = f"weight{j} * wide{u}"
                body.append(f"    total{j}_{u} += " + (f"tl.where(weight{j} != 0, {term}, 0.0)" if looks else term))
        lines.extend(indent + line for line in body)

    added("    ", looks=False)
    lines += [f"    seen{u} = " + " + ".join(f"total{j}_{u}" for j in range(rows)) for u in range(MIX_COLUMNS)]
    lost = " | ".join(f"(inside{u} & (seen{u} != seen{u}))" for u in range(MIX_COLUMNS))
    lines.append(f"    if tl.max(({lost}).to(tl.int32), 0) > 0:")
    added("        ", looks=True)
    for j, u in sums:
        lines.append(f"    answer = total{j}_{u} * float_of(factor)" + (" / float_of(divisor)" if divides else ""))
        lines += [
            "    if out.dtype.element_ty != tl.float64:",
            "        answer = answer.to(tl.float32)",  # half types by way of it, as in main memory
            f"    place = out + (rank + {j}) * tl.cast(ostride, tl.int64) + column + {u} * BLOCK",
            f"    tl.store(place, answer.to(out.dtype.element_ty), mask=inside{u} & (rank + {j} < m))",
        ]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=64)
def mixtures(rows: int, *, extra: bool, divides: bool) -> Any:
    """That kernel: compiled at its first launch, and kept on disk by Triton."""
    source = mixtures_source(rows, extra=extra, divides=divides)
    return emitted(f"mixtures, {rows} at a time: {extra} {divides}", source, "mixtures")


def _mix(
    x: Tensor, table: np.ndarray, extra: Tensor | None = None, *,
    out: Tensor, factor: float = 1.0, divisor: float = 1.0, fours: bool = False,
) -> Tensor:  # fmt: skip
    """The mixtures that a table [m, n+e] makes of rows and extra rows, to ``out``. The table is one small copy."""
    m, used = len(table), np.flatnonzero((table != 0).any(0))
    straight = m > 1 and not fours and (extra is None or extra.dtype == x.dtype)
    groups = triton.cdiv(m, MIX_SUMS if straight else MIX_ROWS)
    together = triton.cdiv(m, groups) if straight else 1 if m == 1 else MIX_ROWS
    width = groups * together
    padded = triton.cdiv(used.size, MIX_AHEAD) * MIX_AHEAD
    weights, places = np.zeros((padded, width)), np.zeros(padded, dtype=np.int64)
    weights[: used.size, :m], places[: used.size] = table[:, used].T, used
    sent = there(np.concatenate([weights.ravel(), places.view(np.float64)]), x)
    (n, d), a, b = x.shape, rows(x), rows(x if extra is None else extra)
    arguments = (
        a, b, a.stride(0), b.stride(0), n, d, sent, sent[weights.size :].view(torch.int64), used.size, m, width,
        bits(factor), bits(divisor), out, out.stride(0),
    )  # fmt: skip
    divides = bool(divisor != 1)
    if straight:
        block = 32 * MIX_WARPS
        launch(
            mixtures(together, extra=extra is not None, divides=divides), triton.cdiv(d, block * MIX_COLUMNS) * groups,
            *arguments, BLOCK=block, num_warps=MIX_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    else:
        launch(
            mixed, triton.cdiv(d, MIX_BLOCK) * groups, *arguments, M=together, BLOCK=MIX_BLOCK, EXTRA=extra is not None,
            FOURS=fours, DIVIDES=divides, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def weighted_rows(x: Tensor, weights: np.ndarray, extra: Tensor | None = None) -> Tensor:
    table, used = np.atleast_2d(weights), np.flatnonzero(weights)
    if weights.ndim == 1 and used.size == 1 and weights[used[0]] == 1:
        row = x[used[0]] if used[0] < len(x) or extra is None else extra[used[0] - len(x)]
        return row.detach().clone()
    out = torch.empty(len(table), x.shape[1], dtype=x.dtype, device=x.device)
    factor, divisor = 1.0, 1.0
    if weights.ndim == 1:
        if used.size > 1:
            table, divisor = as_counts(table.astype(np.float64), x.dtype)
        return _mix(x, table, extra, out=out, divisor=divisor, fours=True)[0]
    if (np.count_nonzero(table, axis=1) > 1).any():
        table, divisor = as_counts(table, x.dtype)
        if x.dtype != torch.float64:
            factor, divisor = 1 / divisor, 1.0
    return _mix(x, table, extra, out=out, factor=factor, divisor=divisor)


def weighted_panel(x: Tensor, table: np.ndarray, extra: Tensor | None, *, start: int, stop: int) -> Tensor:
    out = torch.empty(len(table), stop - start, dtype=torch.float64, device=x.device)
    return _mix(x[:, start:stop], table, None if extra is None else extra[:, start:stop], out=out)


def panels(m: int, d: int) -> list[tuple[int, int]]:
    """Columns start..stop for which m mixtures are held at a time."""
    width = max(1, PANEL // (m * MIX_BLOCK)) * MIX_BLOCK
    return [(s, min(d, s + width)) for s in range(0, d, width)]


def zeros_like_row(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)


# ----------------------------------------------------------------------------------------------------- ranks


def statistic_source(n: int, low: int, high: int, window: int, *, size: int, mixed: bool) -> str:
    """The kernel for n rows whose keys have so many bits.

    Straight-line code: a value of a column stays in one register from its load to the end. Keys are integers that sort
    like the floats, every NaN above +inf, since the least of two floats drops a NaN. What decides, and the order in
    which is added up, are those of main memory (``_closest`` there).
    """
    integer, floating, shift, mask, infinity = KINDS[size]
    address = "tl.cast(stride, tl.int64) + column, mask=inside, other=0"
    lines = [
        "def kernel(x, stride, d, up, down, total, faulty, out, BLOCK: tl.constexpr):",
        "    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "    inside = column < d",
        f"    most = tl.zeros([BLOCK], {integer})",
    ]
    for i in range(n):
        lines += [
            f"    b = tl.load(x + {i} * {address}).to({floating}).to({integer}, bitcast=True)",
            f"    m = b & {mask}",
            "    most = tl.maximum(most, m)",
            f"    v{i} = tl.where(m > {infinity}, {mask}, b ^ ((b >> {shift}) & {mask}))",
        ]
    for i, j in network(n, *((0, n) if window else (low, high))):
        lines += [f"    t = tl.minimum(v{i}, v{j})", f"    v{j} = tl.maximum(v{i}, v{j})", f"    v{i} = t"]

    def value(r: int) -> str:
        return f"(v{r} ^ ((v{r} >> {shift}) & {mask})).to({floating}, bitcast=True)"

    if high - low == 1 and not window and not mixed:
        lines.append(f"    r = {value(low)}")
    else:
        scale = Statistic.of(n, low=low, high=high, window=window, wide=size == 64, terms=0, divisor=1.0).scale
        ranks = range(n) if window else range(low, high)
        lines += [f"    w{r} = {value(r)}.to(tl.float64)" + f" * {scale!r}" * (scale != 1) for r in ranks]
        lines.append("    r = 0.0" + "".join(f" + w{r}" for r in range(low, high)))
        if window:
            lines += _closest(n, high - low, window, mixed)
        lines.append("    r = r / float_of(total)")
    half = "" if size == 32 else "    if out.dtype.element_ty != tl.float64:\n        r = r.to(tl.float32)\n"
    lines += [
        f"    r = r.to({floating})",
        f"{half}    tl.store(out + column, r.to(out.dtype.element_ty), mask=inside)",
        f"    if tl.max(most, 0) >= {infinity}:  # rare: whose it was",
        f"        for i in range({n}):",
        f"            b = tl.load(x + i * {address}).to({floating}).to({integer}, bitcast=True)",
        f"            if tl.max(b & {mask}, 0) >= {infinity}:",
        "                tl.store(faulty + i, 1)",  # whoever else finds it stores the same
    ]
    return "\n".join(lines) + "\n"


def _closest(n: int, ranks: int, window: int, mixed: bool) -> list[str]:
    """From the sum of the ranks the sum of the ``window`` values closest to their mean."""
    drop, lines = n - window, ["    twice = r + r"]
    if mixed:
        lines += [
            "    twice = tl.minimum(twice * float_of(up), twice * float_of(down))",
            *(f"    u{r} = tl.maximum(w{r} * float_of(up), w{r} * float_of(down))" for r in range(n)),
        ]
    name, times = "u" if mixed else "w", f" * {ranks}.0" if ranks > 1 else ""
    moves = [f"({name}{s} + {name}{s + window}){times} < twice" for s in range(drop)]
    if window >= drop:  # one of the two ends is in the window, and all between them
        chosen = [f"tl.where({moves[s]}, w{s + window}, w{s})" for s in range(drop)]
        return [*lines, "    r = 0.0" + "".join(f" + {c}" for c in [*chosen, *(f"w{r}" for r in range(drop, window))])]
    lines.append("    slid = " + " + ".join(f"({c}).to(tl.int32)" for c in moves))
    kept = [f"tl.where((slid <= {r}) & ({r} < slid + {window}), w{r}, 0.0)" for r in range(n)]
    return [*lines, "    r = 0.0" + "".join(f" + {k}" for k in kept)]


@lru_cache(maxsize=256)
def statistic(n: int, low: int, high: int, window: int, *, size: int, mixed: bool) -> Any:
    """That kernel: compiled at its first launch, and kept on disk by Triton."""
    source = statistic_source(n, low, high, window, size=size, mixed=mixed)
    return emitted(f"statistic of {n} rows: {low} {high} {window} {size} {mixed}", source)


def column_statistic(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    (n, d), m = x.shape, x.shape[0] if mixing is None else len(mixing)
    if m > SORTED_ROWS:
        return plain.column_statistic(x, low, high, window, mixing=mixing)
    if mixing is not None and (mixing[mixing != 0] == 1).all() and (np.count_nonzero(mixing, axis=1) == 1).all():
        x, mixing = x.index_select(0, there(mixing.argmax(1), x)), None
    out = torch.empty(d, dtype=x.dtype, device=x.device)
    faulty = torch.zeros(m, dtype=torch.int32, device=x.device)
    wide = x.dtype == torch.float64 or (mixing is not None and window > 0)
    terms, table, divisor, factor = 0 if mixing is None else n, mixing, 1.0, 1.0
    # What is rounded to float32 must not decide who is closest: there mixtures stay in float64, as sums of counts.
    if mixing is not None and wide:
        table, divisor = as_counts(mixing, torch.float64)
    elif mixing is not None and (np.count_nonzero(mixing, axis=1) > 1).any():
        table, whole = as_counts(mixing, torch.float32)
        factor = 1 / whole
    asked = Statistic.of(m, low=low, high=high, window=window, wide=wide, terms=terms, divisor=divisor)
    if table is None:
        _rank(x, asked, faulty=faulty, out=out, mixed=False)
        return out, faulty.sum()
    kind = torch.float64 if wide else torch.float32
    for start, stop in panels(m, d):
        held = torch.empty(m, stop - start, dtype=kind, device=x.device)
        _mix(x[:, start:stop], table, out=held, factor=factor)
        _rank(held, asked, faulty=faulty, out=out[start:stop], mixed=True)
    return out, faulty.sum()


def _rank(x: Tensor, asked: Statistic, *, faulty: Tensor, out: Tensor, mixed: bool) -> None:
    (n, d), a, size = x.shape, rows(x), 64 if x.dtype == torch.float64 else 32
    sorting = statistic(n, asked.low, asked.high, asked.window, size=size, mixed=mixed)
    launch(
        sorting, triton.cdiv(d, SORT_BLOCK), a, a.stride(0), d, bits(asked.up), bits(asked.down), bits(asked.total),
        faulty, out, BLOCK=SORT_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- moments


@kernel
def _entry(x, stride, n, i, column, inside):
    """Row i in float64, zero beyond the last one."""
    return tl.load(x + i * tl.cast(stride, tl.int64) + column, mask=inside & (i < n), other=0).to(tl.float64)


@kernel
def column_moments(x, stride, n, d, ddof, mean, std, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """Rows are added up one after the other, as in main memory; four of them are asked for at a time.

    Where squares may have left the range of float64, the column is measured again in units of its own.
    """
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < d
    center, spread = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for s in range(0, n, 4):
        for i in tl.static_range(4):
            center += _entry(x, stride, n, s + i, column, inside)
    center = center / n
    for s in range(0, n, 4):
        for i in tl.static_range(4):
            away = tl.where(s + i < n, _entry(x, stride, n, s + i, column, inside) - center, 0.0)
            spread += away * away
    deviation = tl.sqrt(spread / tl.cast(n - ddof, tl.float64))
    odd = inside & ~((spread >= LEAST) & (spread < float("inf")))
    if tl.max(odd.to(tl.int32), 0) > 0:
        unit, furthest = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        scaled, again = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        for i in range(n):
            unit = tl.maximum(unit, tl.abs(_entry(x, stride, n, i, column, inside)))
        unit = tl.where((unit > 0) & (unit < float("inf")), unit, 1.0)
        for i in range(n):
            scaled += _entry(x, stride, n, i, column, inside) / unit
        scaled = scaled / n
        for i in range(n):
            furthest = tl.maximum(furthest, tl.abs(_entry(x, stride, n, i, column, inside) / unit - scaled))
        furthest = tl.where((furthest > 0) & (furthest < float("inf")), furthest, 1.0)
        for i in range(n):
            away = (_entry(x, stride, n, i, column, inside) / unit - scaled) / furthest
            again += away * away
        center = tl.where(odd, scaled * unit, center)
        deviation = tl.where(odd, tl.sqrt(again / tl.cast(n - ddof, tl.float64)) * furthest * unit, deviation)
    if mean.dtype.element_ty != tl.float64:
        center, deviation = center.to(tl.float32), deviation.to(tl.float32)
    tl.store(mean + column, center.to(mean.dtype.element_ty), mask=inside)
    tl.store(std + column, deviation.to(mean.dtype.element_ty), mask=inside)


def mean_and_std(x: Tensor, ddof: int = 1) -> tuple[Tensor, Tensor]:
    (n, d), a = x.shape, rows(x)
    mean, std = torch.empty(2, d, dtype=x.dtype, device=x.device)
    least = numerics.VANISHING if x.dtype == torch.float64 else 0.0
    launch(
        column_moments, triton.cdiv(d, MOMENT_BLOCK), a, a.stride(0), n, d, ddof, mean, std, LEAST=least,
        BLOCK=MOMENT_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    return mean, std
