"""What is computed column by column: weighted sums, statistics of ranks, moments. One pass over [n, d] each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from ... import numerics
from ..definitions import Statistic, as_counts, network
from ..runtime import STREAM_WIDTH, as_rows, chunks, in_threads, is_native, jit, panels

SORT_WIDTH = 128  # columns per block of a sorting network or a mixing: 51 rows of float32 are 26 KiB
LANES = 64 if get_host_cpu_features().get("avx512f") else 32  # bytes of a vector register
AHEAD = 512  # bytes: how far ahead of a sort in registers a row is asked for
REGISTER_ROWS = 128  # so many rows at most are sorted in registers, and the stack behind them: 1 to 3 s to compile
SCALE_WIDTH = 1 << 17  # columns of a row at a time where rows are only scaled
WORTH = 1 << 20  # so many numbers at least: below, compiling for this n and these ranks would not be worth it
FULL = 0.25  # the share of non-zero weights from which mixtures are made four at a time, zeros included

# ---------------------------------------------------------------------------------------------- weighted sums


@jit
def _vector(x, extra, i, start, stop):  # type: ignore[no-untyped-def]
    """Columns start..stop of the i-th vector, the extra ones coming last."""
    return x[i, start:stop] if i < x.shape[0] else extra[i - x.shape[0], start:stop]


@jit
def _weighted(x, extra, rows, weights, divisor, start, stop, total, out):  # type: ignore[no-untyped-def]
    # Four rows at a time; the last group is filled up with its own first row at weight zero.
    width = total.size
    for s in range(start, stop, width):
        t = min(stop, s + width)
        total[:] = 0
        for g in range(0, rows.size, 4):
            last = rows.size - 1
            r1, r2, r3 = min(g + 1, last), min(g + 2, last), min(g + 3, last)
            w0 = weights[g]
            w1 = weights[r1] if g + 1 <= last else 0.0
            w2 = weights[r2] if g + 2 <= last else 0.0
            w3 = weights[r3] if g + 3 <= last else 0.0
            a0, a1 = _vector(x, extra, rows[g], s, t), _vector(x, extra, rows[r1], s, t)
            a2, a3 = _vector(x, extra, rows[r2], s, t), _vector(x, extra, rows[r3], s, t)
            for k in range(t - s):
                total[k] += w0 * a0[k] + w1 * a1[k] + w2 * a2[k] + w3 * a3[k]
        for k in range(t - s):
            out[s + k] = total[k] / divisor


class _Mixture(NamedTuple):
    """Weights [m, n+e] as kernels walk over them: of most mixtures four together, of the others one by one."""

    together: np.ndarray  # mixtures,
    sources: np.ndarray  # the vectors that they are made of,
    weights: np.ndarray  # and the weights, with zeros up to multiples of four
    alone: np.ndarray  # the other mixtures
    offsets: np.ndarray  # of every mixture, where its weights begin that are not zero, [m + 1],
    places: np.ndarray  # the vectors that they belong to,
    factors: np.ndarray  # and the weights
    divisor: float  # what sums are divided by,
    factor: float  # or multiplied by, where they are rounded to float32 anyway

    @classmethod
    def made_of(cls, table: np.ndarray, dtype: torch.dtype) -> _Mixture:
        """Sums of counts, where weights are such: null where they cancel, and the same in whatever order."""
        if (np.count_nonzero(table, axis=1) <= 1).all():  # no sums
            return cls.of(table)
        counts, divisor = as_counts(table, dtype)
        return cls.of(counts, divisor) if dtype == torch.float64 else cls.of(counts, factor=1 / divisor)

    @classmethod
    def of(cls, table: np.ndarray, divisor: float = 1.0, factor: float = 1.0) -> _Mixture:
        used = table != 0
        counts = used.sum(1)
        together = np.flatnonzero(counts > 1)
        sources = np.flatnonzero(used[together].any(0))
        if counts[together].sum() < FULL * together.size * sources.size:
            together, sources = together[:0], sources[:0]
        weights = np.zeros((-(-together.size // 4) * 4, -(-sources.size // 4) * 4))
        weights[: together.size, : sources.size] = table[np.ix_(together, sources)]
        alone = np.setdiff1d(np.arange(len(table)), together)
        offsets, factors = np.append(0, np.cumsum(counts)), table[used].astype(np.float64)
        return cls(together, sources, weights, alone, offsets, np.nonzero(used)[1], factors, divisor, factor)


@jit
def _mix_four(x, extra, sources, weights, start, stop, total):  # type: ignore[no-untyped-def]
    """Columns start..stop of four mixtures, SORT_WIDTH apart in total, added up in the order of the vectors."""
    last = sources.size - 1
    total[: 4 * SORT_WIDTH] = 0
    for c in range(0, sources.size, 4):
        r1, r2, r3 = sources[min(c + 1, last)], sources[min(c + 2, last)], sources[min(c + 3, last)]
        a0, a1 = _vector(x, extra, sources[c], start, stop), _vector(x, extra, r1, start, stop)
        a2, a3 = _vector(x, extra, r2, start, stop), _vector(x, extra, r3, start, stop)
        u0, u1, u2, u3 = weights[0, c], weights[0, c + 1], weights[0, c + 2], weights[0, c + 3]
        v0, v1, v2, v3 = weights[1, c], weights[1, c + 1], weights[1, c + 2], weights[1, c + 3]
        w0, w1, w2, w3 = weights[2, c], weights[2, c + 1], weights[2, c + 2], weights[2, c + 3]
        z0, z1, z2, z3 = weights[3, c], weights[3, c + 1], weights[3, c + 2], weights[3, c + 3]
        for k in range(stop - start):
            p0, p1, p2, p3 = np.float64(a0[k]), np.float64(a1[k]), np.float64(a2[k]), np.float64(a3[k])
            total[k] = total[k] + u0 * p0 + u1 * p1 + u2 * p2 + u3 * p3
            j = k + SORT_WIDTH
            total[j] = total[j] + v0 * p0 + v1 * p1 + v2 * p2 + v3 * p3
            j = k + 2 * SORT_WIDTH
            total[j] = total[j] + w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3
            j = k + 3 * SORT_WIDTH
            total[j] = total[j] + z0 * p0 + z1 * p1 + z2 * p2 + z3 * p3


@jit
def _mix_one(x, extra, mixture, i, start, stop, total, out):  # type: ignore[no-untyped-def]
    """The same for a single mixture, vectors of weight zero never touched."""
    width = stop - start
    total[:width] = 0
    for c in range(mixture.offsets[i], mixture.offsets[i + 1]):
        weight, source = mixture.factors[c], _vector(x, extra, mixture.places[c], start, stop)
        for k in range(width):
            total[k] += weight * source[k]
    for k in range(width):
        out[k] = total[k] * mixture.factor / mixture.divisor


@jit
def _mix(x, extra, mixture, start, stop, total, out):  # type: ignore[no-untyped-def]
    """Columns start..stop, at most SORT_WIDTH, of the mixtures, to the first columns of out; total: 5 SORT_WIDTH."""
    width, spare = stop - start, total[4 * SORT_WIDTH :]
    for i in mixture.alone:
        _mix_one(x, extra, mixture, i, start, stop, spare, out[i])
    for first in range(0, mixture.together.size, 4):
        _mix_four(x, extra, mixture.sources, mixture.weights[first : first + 4], start, stop, total)
        for j in range(min(4, mixture.together.size - first)):
            i, made = mixture.together[first + j], total[j * SORT_WIDTH : j * SORT_WIDTH + width]
            target, wrong = out[i], 0
            if mixture.divisor != 1:
                for k in range(width):
                    made[k] /= mixture.divisor
            for k in range(width):
                made[k] *= mixture.factor
                target[k] = made[k]
                wrong |= not (abs(made[k]) < np.inf)
            if wrong:  # perhaps by a vector of weight zero
                _mix_one(x, extra, mixture, i, start, stop, spare, target)


@jit
def _mix_rows(x, extra, mixture, start, stop, total, out):  # type: ignore[no-untyped-def]
    for s in range(start, stop, SORT_WIDTH):
        t = min(stop, s + SORT_WIDTH)
        _mix(x, extra, mixture, s, t, total, out[:, s:t])


@jit
def _scaled(source, factor, divisor, out):  # type: ignore[no-untyped-def]
    if factor == divisor:
        out[:] = source
    elif divisor == 1:
        for k in range(source.size):
            out[k] = factor * source[k]
    else:
        for k in range(source.size):
            out[k] = factor * source[k] / divisor


def _mixed_rows(x: Tensor, extra: Tensor | None, mixture: _Mixture, out: np.ndarray) -> Tensor:
    a, b = as_rows(x), as_rows(x[:0] if extra is None else extra)
    d = x.shape[1]
    size, count = chunks(d, SORT_WIDTH, 16)
    if (np.diff(mixture.offsets) == 1).all():
        pieces = -(-d // SCALE_WIDTH)

        def scale(c: int) -> None:
            i, piece = divmod(c, pieces)
            place, part = mixture.places[i], slice(piece * SCALE_WIDTH, (piece + 1) * SCALE_WIDTH)
            source = a[place, part] if place < a.shape[0] else b[place - a.shape[0], part]
            _scaled(source, mixture.factors[i], mixture.divisor, out[i, part])

        in_threads(scale, out.shape[0] * pieces, out.size)
        return torch.from_numpy(out)

    def task(c: int) -> None:
        _mix_rows(a, b, mixture, c * size, min(d, (c + 1) * size), np.empty(5 * SORT_WIDTH), out)

    in_threads(task, count, out.size)
    return torch.from_numpy(out)


def weighted_rows(x: Tensor, weights: np.ndarray, extra: Tensor | None = None) -> Tensor:
    d = x.shape[1]
    if weights.ndim == 2:
        out = x.new_empty(weights.shape[0], d)
        if is_native(x):
            return _mixed_rows(x, extra, _Mixture.made_of(weights, x.dtype), out.numpy())
        for row, target in zip(weights, out, strict=True):
            target.copy_(weighted_rows(x, row, extra))
        return out
    used = np.flatnonzero(weights)
    if not used.size:
        return zeros_like_row(x)
    if used.size == 1 and is_native(x):
        return _mixed_rows(x, extra, _Mixture.of(weights[None]), np.empty((1, d), as_rows(x[:, :1]).dtype))[0]
    if used.size == 1 and weights[used[0]] == 1:
        source = x[used[0]] if used[0] < x.shape[0] else extra[used[0] - x.shape[0]]  # type: ignore[index]
        return source.detach().clone()
    factors, divisor = as_counts(weights[used].astype(np.float64), x.dtype)
    parts = []
    for s, t in panels(x):
        a, b = as_rows(x[:, s:t]), as_rows(x[:0, s:t] if extra is None else extra[:, s:t])
        parts.append(torch.from_numpy(_weighted_sum(a, b, used=used, factors=factors, divisor=divisor)).to(x.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weighted_sum(
    x: np.ndarray, extra: np.ndarray, *, used: np.ndarray, factors: np.ndarray, divisor: float
) -> np.ndarray:
    d = x.shape[1]
    result = np.empty(d, x.dtype)
    size, count = chunks(d, STREAM_WIDTH, 16)

    def task(c: int) -> None:
        scratch = np.empty(min(STREAM_WIDTH, d))
        _weighted(x, extra, used, factors, divisor, c * size, min(d, (c + 1) * size), scratch, result)

    in_threads(task, count, used.size * d)
    return result


def zeros_like_row(x: Tensor) -> Tensor:
    """Without torch's threads, which spin for a while after they have filled it."""
    return torch.from_numpy(np.zeros(x.shape[1], as_rows(x[:, :1]).dtype)) if is_native(x) else x.new_zeros(x.shape[1])


def weighted_panel(x: Tensor, table: np.ndarray, extra: Tensor | None, *, start: int, stop: int) -> Tensor:
    panel = x[:, start:stop]
    others = panel[:0] if extra is None else extra[:, start:stop]
    return _mixed_rows(panel, others, _Mixture.of(table), np.empty((table.shape[0], stop - start)))


# ----------------------------------------------------------------------------------------------------- ranks


def fetch(builder, pointer) -> None:  # type: ignore[no-untyped-def]
    """Emits the request for a cache line: the hardware does not follow n streams of short pieces."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0"
    )
    read, keep, data = word(0), word(3), word(1)
    builder.call(function, [builder.bitcast(pointer, byte), read, keep, data])


@intrinsic
def _prefetch(typingctx, array, row, column):  # type: ignore[no-untyped-def]
    """Asks for the cache line of array[row, column]."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = signature.args[0]
        view = context.make_array(kind)(context, builder, arguments[0])
        fetch(builder, cgutils.get_item_pointer(context, builder, kind, view, list(arguments[1:]), wraparound=False))
        return context.get_dummy_value()

    return types.void(array, row, column), generate


@intrinsic
def _sort_lanes(typingctx, bases, plan, column, most, place, out, up, down, total):  # type: ignore[no-untyped-def]
    """The statistic of LANES bytes' worth of columns from ``column`` on, without leaving the registers, to out[place].

    ``bases`` are the addresses of the rows; ``plan`` five tuples of nothing whose lengths are n, low, high, window and
    whether the values are mixtures, so that the compiler knows them; ``most`` keeps the largest magnitudes seen, and
    has the type of the values' bits. Lines needed soon are asked for.
    """
    n, low, high, window, mixed = (part.count for part in plan.types)
    width, narrow = most.dtype.bitwidth, out.dtype.bitwidth == 32

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number, size = ir.IntType(64), width // 8
        lanes = LANES // size
        vector, double = ir.VectorType(ir.IntType(width), lanes), ir.DoubleType()
        floats = ir.VectorType(ir.FloatType() if width == 32 else double, lanes)
        word, pointer = ir.IntType(32), vector.as_pointer()
        parts = [range(lanes)] if width == 64 else [range(lanes // 2), range(lanes // 2, lanes)]
        part = ir.VectorType(double, len(parts[0]))
        given = ir.VectorType(ir.IntType(32 if narrow else 64), lanes)

        def constant(value: float, kind: ir.VectorType = vector) -> ir.Constant:
            return ir.Constant(kind, [value] * kind.count)

        def everywhere(value: ir.Value) -> ir.Value:
            one = builder.insert_element(ir.Constant(part, ir.Undefined), value, word(0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(word, part.count), [0] * part.count))

        def operation(name: str):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(vector, [vector, vector])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{lanes}i{width}")
            return lambda a, b: builder.call(function, [a, b])

        def data(k: int) -> ir.Value:
            return context.make_array(signature.args[k])(context, builder, arguments[k]).data

        def key(bits: ir.Value) -> ir.Value:  # its own inverse
            return builder.xor(bits, builder.and_(builder.ashr(bits, shift), mask))

        def shuffled(a: ir.Value, b: ir.Value, order: Sequence[int]) -> ir.Value:
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(word, len(order)), list(order)))

        def wide(r: int) -> list[ir.Value]:  # the values of a rank in float64, scaled
            if r not in widened:
                value = builder.bitcast(key(ranked(r)), floats)
                widened[r] = (
                    [builder.fmul(value, constant(scale, part))]
                    if width == 64
                    else [builder.fpext(shuffled(value, value, order), part) for order in parts]
                )
            return widened[r]

        def added(start: Sequence[ir.Value], terms: Sequence[ir.Value]) -> list[ir.Value]:
            return [builder.fadd(a, b) for a, b in zip(start, terms, strict=True)]

        def select(chosen: list[ir.Value], first: list[ir.Value], second: list[ir.Value]) -> list[ir.Value]:
            return [builder.select(c, a, b) for c, a, b in zip(chosen, first, second, strict=True)]

        def lifted(value: ir.Value, over: ir.Value, under: ir.Value) -> ir.Value:  # the greater of the products
            a, b = builder.fmul(value, over), builder.fmul(value, under)
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def lowered(value: ir.Value, over: ir.Value, under: ir.Value) -> ir.Value:
            a, b = builder.fmul(value, over), builder.fmul(value, under)
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        scale = Statistic.of(n, low=low, high=high, window=window, wide=width == 64, terms=0, divisor=1.0).scale
        least, greatest, unsigned = operation("smin"), operation("smax"), operation("umax")
        shift, mask = constant(width - 1), constant((1 << (width - 1)) - 1)
        rows, largest = data(0), builder.bitcast(data(3), pointer)
        offset = builder.mul(arguments[2], ir.Constant(number, size))
        over, under, divisor = (everywhere(argument) for argument in arguments[6:])
        magnitude = builder.load(largest, align=size)
        values: dict[int, ir.Value] = {}
        widened: dict[int, list[ir.Value]] = {}

        def ranked(i: int) -> ir.Value:
            nonlocal magnitude
            if i not in values:
                address = builder.add(builder.load(builder.gep(rows, [ir.Constant(number, i)])), offset)
                bits = builder.load(builder.inttoptr(address, pointer), align=size)
                fetch(builder, builder.inttoptr(builder.add(address, ir.Constant(number, AHEAD)), pointer))
                magnitude = unsigned(magnitude, builder.and_(bits, mask))
                values[i] = key(bits)
            return values[i]

        for i, j in network(n, *((0, n) if window else (low, high))):
            a, b = ranked(i), ranked(j)
            values[i], values[j] = least(a, b), greatest(a, b)
        if high - low == 1 and not window and not mixed:
            answer = key(ranked(low))
        else:
            center = [constant(0.0, part) for _ in parts]
            for r in range(low, high):
                center = added(center, wide(r))
            if window:  # as in _closest
                twice, drop = [builder.fadd(c, c) for c in center], n - window
                if mixed:
                    twice = [lowered(c, over, under) for c in twice]
                ranks = constant(float(high - low), part)
                center, kept = [constant(0.0, part) for _ in parts], []
                if window < drop:
                    kept = [wide(r) for r in range(window)]
                for s in range(drop):
                    nearer = []
                    for a, b, c in zip(wide(s), wide(s + window), twice, strict=True):
                        if mixed:
                            a, b = lifted(a, over, under), lifted(b, over, under)
                        both = builder.fadd(a, b)
                        if high - low > 1:
                            both = builder.fmul(both, ranks)
                        nearer.append(builder.fcmp_ordered("<", both, c))
                    if window < drop:  # the window as a whole moves up, where it does
                        kept = [select(nearer, wide(s + 1 + k), kept[k]) for k in range(window)]
                    else:  # then one of the two is in the window, and what lies between them too
                        center = added(center, select(nearer, wide(s + window), wide(s)))
                for terms in kept or [wide(r) for r in range(drop, window)]:
                    center = added(center, terms)
            result = [builder.fdiv(c, divisor) for c in center]
            if narrow:
                kind = ir.VectorType(ir.FloatType(), part.count)
                result = [builder.fptrunc(c, kind) for c in result]
                if width == 32:
                    result = [shuffled(result[0], result[1], range(lanes))]
            answer = builder.bitcast(result[0], given)
        into = builder.bitcast(builder.gep(data(5), [arguments[4]]), given.as_pointer())
        builder.store(answer, into, align=4 if narrow else 8)
        builder.store(magnitude, largest, align=size)
        return context.get_dummy_value()

    return types.void(bases, plan, column, most, place, out, up, down, total), generate


@jit
def _load_keys(source, target, shift, mask, infinity):  # type: ignore[no-untyped-def]
    """Float bits to integers that sort alike, every NaN above +inf; the largest magnitude, to see who is not finite."""
    most = infinity - infinity
    for k in range(source.size):
        bits = source[k]
        magnitude = bits & mask
        most = max(most, magnitude)
        key = bits ^ ((bits >> shift) & mask)
        target[k] = mask if magnitude > infinity else key
    return most


@jit
def _to_bits(keys, shift, mask):  # type: ignore[no-untyped-def]
    for k in range(keys.size):
        keys[k] = keys[k] ^ ((keys[k] >> shift) & mask)


@jit
def _walk(block, left, right, bits, start, stop):  # type: ignore[no-untyped-def]
    """Runs the network over a block while asking for the source of the next one, start..stop."""
    n = bits.shape[0]
    step = 64 // bits.itemsize
    lines = n * ((stop - start + step - 1) // step) if stop > start else 0
    each = (lines + left.size - 1) // left.size if left.size else 0
    row, column = 0, start
    for c in range(left.size):
        low, high = block[left[c]], block[right[c]]
        for k in range(SORT_WIDTH):
            a, b = low[k], high[k]
            low[k] = min(a, b)
            high[k] = max(a, b)
        for _ in range(each):
            if row < n:
                _prefetch(bits, row, column)  # pyright: ignore[reportCallIssue]
                column += step
                if column >= stop:
                    row, column = row + 1, start


@jit
def _closest(values, statistic, width, center, chosen):  # type: ignore[no-untyped-def]
    """Per column the scaled sum of the ``window`` sorted values nearest to the centre: they are contiguous.

    Starting at rank 0 the window slides up past s while the value that enters is strictly nearer than the one that
    leaves, so ties keep the lower value. ``center`` comes as the scaled sum of the ranks.
    """
    m, window, scale, up, down = values.shape[0], statistic.window, statistic.scale, statistic.up, statistic.down
    drop, ranks = m - window, float(statistic.high - statistic.low)
    slid, total = chosen[0], chosen[1]
    slid[:width] = 0
    total[:width] = 0
    for k in range(width):
        twice = 2 * center[k]
        center[k] = twice * down if twice > 0 else twice * up
    for s in range(drop):
        low, high = values[s], values[s + window]
        for k in range(width):
            a, b = scale * low[k], scale * high[k]
            both = (a * up if a > 0 else a * down) + (b * up if b > 0 else b * down)
            moves = both * ranks < center[k]
            slid[k] += 1.0 if moves else 0.0
            total[k] += b if moves else a  # of use only where one of the two is in the window
    if window >= drop:  # then what lies between them is in the window too
        for r in range(drop, window):
            row = values[r]
            for k in range(width):
                total[k] += scale * row[k]
    else:
        total[:width] = 0
        for r in range(m):
            row = values[r]
            for k in range(width):
                total[k] += scale * row[k] if slid[k] <= r and r < slid[k] + window else 0.0
    for k in range(width):  # copying a slice would compile the message of a shape error, for seconds
        center[k] = total[k]


@jit
def _columns(
    x, bits, mixture, mixes, left, right, statistic, shift, mask, infinity,
    start, stop, block, values, scratch, bad, out,
):  # fmt: skip  # type: ignore[no-untyped-def]
    """Columns start..stop of the statistic."""
    m, size = block.shape
    low, high, window = statistic.low, statistic.high, statistic.window
    center = scratch[0]
    for s in range(start, stop, size):
        width = min(size, stop - s)
        if mixes:
            _mix(x, x[:0], mixture, s, s + width, scratch.reshape(-1), values)
        for i in range(m):
            source = block[i, :width] if mixes else bits[mixture.places[i], s : s + width]
            most = _load_keys(source, block[i], shift, mask, infinity)
            if most >= infinity:
                bad[i] = 1
        _walk(block, left, right, bits, s + size, min(stop, s + 2 * size))
        first_row, last_row = (0, m) if window > 0 else (low, high)
        for r in range(first_row, last_row):
            _to_bits(block[r], shift, mask)
        if high - low == 1 and window == 0 and not mixes:
            for k in range(width):
                out[s + k] = values[low, k]
            continue
        center[:width] = 0
        for r in range(low, high):
            row = values[r]
            for k in range(width):
                center[k] += statistic.scale * row[k]
        if window > 0:
            _closest(values, statistic, width, center, scratch[1:])
        for k in range(width):
            out[s + k] = center[k] / statistic.total


@jit
def _fast_columns(x, bases, plan, mixture, mixes, statistic, infinity, start, stop, mixed, scratch, most, bits):  # type: ignore[no-untyped-def]
    """The same in registers, for whole blocks of columns without NaN or infinity: the first column not done."""
    size, lanes = SORT_WIDTH, most.size
    for s in range(start, stop - size + 1, size):
        if mixes:
            _mix(x, x[:0], mixture, s, s + size, scratch.reshape(-1), mixed)
        most[:] = 0
        for k in range(0, size, lanes):
            _sort_lanes(  # pyright: ignore
                bases, plan, k if mixes else s + k, most, s + k, bits, statistic.up, statistic.down, statistic.total
            )
        for k in range(lanes):
            if most[k] >= infinity:
                return s
    return start + (stop - start) // size * size


_INTEGERS = {
    np.dtype(np.float32): (np.int32, 31, 0x7FFFFFFF, 0x7F800000),
    np.dtype(np.float64): (np.int64, 63, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


@lru_cache(maxsize=64)
def _each_row(n: int) -> _Mixture:
    """No mixing."""
    return _Mixture.of(np.eye(n))


@lru_cache(maxsize=256)
def _sides(n: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """The network's left and right ends."""
    left, right = np.array(network(n, low, high), np.int64).reshape(-1, 2).T.copy()
    return left, right


def _column_statistic(
    x: np.ndarray, mixing: np.ndarray | None, *, low: int, high: int, window: int
) -> tuple[np.ndarray, np.ndarray]:
    n, d = x.shape
    m = n if mixing is None else mixing.shape[0]
    mixture, divisor = _each_row(n) if mixing is None else _Mixture.of(mixing), 1.0
    mixes = bool((np.diff(mixture.offsets) != 1).any() or (mixture.factors != 1).any())
    # What is rounded to float32 must not decide who is closest: there mixtures stay in float64, as sums of counts.
    kind = np.dtype(np.float64) if mixes and window else x.dtype
    if mixes and mixing is not None and kind == np.float64:
        table, divisor = as_counts(mixing, torch.float64)
        mixture = _Mixture.of(table)
    elif mixes and mixing is not None:
        mixture = _Mixture.made_of(mixing, torch.float32)
    statistic = Statistic.of(
        m, low=low, high=high, window=window, wide=kind == np.float64, terms=n * mixes, divisor=divisor
    )
    integer, shift, mask, infinity = _INTEGERS[kind]
    size, count = chunks(d, SORT_WIDTH, 8)
    bad, out = np.zeros((count, m), np.uint8), np.empty(d, x.dtype)
    out_bits = out.view(_INTEGERS[x.dtype][0])
    bits = x.view(integer) if kind == x.dtype else np.empty((0, 0), integer)  # not looked at where mixtures are sorted
    plan = tuple((None,) * length for length in (m, low, high, window, int(mixes)))
    fast = m <= REGISTER_ROWS and n * d >= WORTH
    bases = x.ctypes.data + mixture.places * x.strides[0]

    def task(c: int) -> None:
        start, stop = c * size, min(d, (c + 1) * size)
        scratch = np.empty((5, SORT_WIDTH))
        if fast:
            mixed = np.empty((m if mixes else 0, SORT_WIDTH), kind)
            start = _fast_columns(
                x, mixed.ctypes.data + np.arange(m) * mixed.strides[0] if mixes else bases, plan, mixture,
                mixes, statistic, integer(infinity), start, stop, mixed, scratch,
                np.zeros(LANES // kind.itemsize, integer), out_bits,
            )  # fmt: skip
        if start < stop:
            block = np.zeros((m, SORT_WIDTH), integer)
            left, right = _sides(m, *((0, m) if window else (low, high)))
            _columns(
                x, bits, mixture, mixes, left, right, statistic, integer(shift), integer(mask), integer(infinity),
                start, stop, block, block.view(kind), scratch, bad[c], out,
            )  # fmt: skip

    in_threads(task, count, n * d)
    return out, np.logical_or.reduce(bad)


def column_statistic(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    parts, bad = [], np.zeros(x.shape[0] if mixing is None else mixing.shape[0], bool)
    for s, t in panels(x):
        part, faulty = _column_statistic(as_rows(x[:, s:t]), mixing, low=low, high=high, window=window)
        parts.append(torch.from_numpy(part).to(x.dtype))
        bad |= faulty
    return parts[0] if len(parts) == 1 else torch.cat(parts), torch.tensor(int(bad.sum()))


# --------------------------------------------------------------------------------------------------- moments


@jit
def _odd_moments(column, ddof):  # type: ignore[no-untyped-def]
    """Of one column whose sum or squares may have left the range of float64."""
    n, greatest, total, furthest, spread = column.size, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        greatest = max(greatest, abs(np.float64(column[i])))
    if not 0 < greatest < np.inf:
        greatest = 1.0
    for i in range(n):
        total += np.float64(column[i]) / greatest
    mean = total / n
    for i in range(n):
        furthest = max(furthest, abs(np.float64(column[i]) / greatest - mean))
    if not 0 < furthest < np.inf:
        furthest = 1.0
    for i in range(n):
        spread += ((np.float64(column[i]) / greatest - mean) / furthest) ** 2
    return mean * greatest, np.sqrt(spread / (n - ddof)) * furthest * greatest


@jit
def _moments(x, ddof, least, start, stop, scratch, mean, std):  # type: ignore[no-untyped-def]
    n, size = x.shape[0], scratch.shape[1]
    total, spread = scratch[0], scratch[1]
    for s in range(start, stop, size):
        width = min(size, stop - s)
        total[:width] = 0
        spread[:width] = 0
        for i in range(n):
            row = x[i, s : s + width]
            for k in range(width):
                total[k] += row[k]
        for k in range(width):
            total[k] /= n
        for i in range(n):
            row = x[i, s : s + width]
            for k in range(width):
                e = row[k] - total[k]
                spread[k] += e * e
        odd = 0
        for k in range(width):
            mean[s + k] = total[k]
            std[s + k] = np.sqrt(spread[k] / (n - ddof))
            odd |= not (least <= spread[k] < np.inf)
        if odd:
            for k in range(width):
                if not least <= spread[k] < np.inf:
                    mean[s + k], std[s + k] = _odd_moments(x[:, s + k], ddof)


def mean_and_std(x: Tensor, ddof: int = 1) -> tuple[Tensor, Tensor]:
    moments = [_mean_and_std(as_rows(x[:, s:t]), ddof).to(x.dtype) for s, t in panels(x)]
    mean, std = moments[0] if len(moments) == 1 else torch.cat(moments, dim=1)
    return mean, std


def _mean_and_std(a: np.ndarray, ddof: int) -> Tensor:
    n, d = a.shape
    found = np.empty((2, d), a.dtype)
    size, count = chunks(d, SORT_WIDTH, 16)
    least = 0.0 if a.dtype == np.float32 else numerics.VANISHING  # whose squares never vanish in float64

    def task(c: int) -> None:
        _moments(a, ddof, least, c * size, min(d, (c + 1) * size), np.empty((2, SORT_WIDTH)), found[0], found[1])

    in_threads(task, count, n * d)
    return torch.from_numpy(found)
