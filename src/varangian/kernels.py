"""The only low-level code: passes over [n, d] at the speed of memory.

Every function takes torch tensors and chooses by device and dtype: Numba kernels for float32 and float64 in main
memory, the same kernels on exactly upcast panels of columns for the half types, plain torch operations elsewhere.

Three ideas carry the CPU kernels:
  - distances are summed from differences, never from a Gram matrix: nothing cancels, no centre is needed, and one
    subtraction more per product still beats a matrix product, since each tile of 4 x 4 rows stays in registers;
  - a column of n values is sorted by a network of min and max, on integers that sort like the floats (no NaN semantics
    stand in the way), a register's width of columns at a time: the network is emitted for this n and these ranks, depth
    first, so that values stay in registers. Where that is not worth compiling, the network walks over blocks that fit
    in cache;
  - sums run in float64 and are rounded once.

Threads are torch's: ``torch.set_num_threads`` governs both. Kernels hold no lock and share no pool with Numba, so they
may be called from any number of threads. What is summed over columns is summed in an order that does not depend on
them.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils, event
from numba.extending import intrinsic
from threadpoolctl import ThreadpoolController
from torch import Tensor

DISTANCE_WIDTH = 1024  # columns per tile of distances: 8 rows of float32 are 32 KiB
SORT_WIDTH = 128  # columns per block of a sorting network: 51 rows of float32 are 26 KiB
SEND_WIDTH = 1024  # columns per block of what workers do: the rows it keeps stay in the second cache
LANES = 64 if get_host_cpu_features().get("avx512f") else 32  # bytes of a vector register
AHEAD = 512  # bytes: how far ahead of a sort in registers a row is asked for
REGISTER_ROWS = 128  # so many rows at most are sorted in registers, and the stack behind them: 1 to 3 s to compile
WORTH = 1 << 20  # so many numbers at least: below, compiling for this n and these ranks would not be worth it
STREAM_WIDTH = 2048  # columns per block of a weighted sum
PANEL = 1 << 16  # columns upcast at a time for half types
SMALL = 1 << 15  # below so many numbers a second thread costs more than it saves

# ------------------------------------------------------------------------------------------------ compilation


class _Patience(event.Listener):
    """Says once why nothing happens, where compiling a kernel takes over a second. The result is cached on disk."""

    def __init__(self) -> None:
        self.said = False
        self.depth = 0
        self.timer: threading.Timer | None = None

    def on_start(self, event: event.Event) -> None:
        dispatcher = (event.data or {}).get("dispatcher")
        module = getattr(getattr(dispatcher, "py_func", None), "__module__", None)
        if self.said or not str(module).startswith("varangian."):  # other people's functions are compiled too
            return
        self.depth += 1
        if self.depth == 1:
            self.timer = threading.Timer(1.0, self._say)
            self.timer.daemon = True
            self.timer.start()

    def on_end(self, event: event.Event) -> None:
        self.depth = max(0, self.depth - 1)
        if self.depth == 0 and self.timer is not None:
            self.timer.cancel()

    def _say(self) -> None:
        self.said = True
        print("varangian: compiling kernels for this processor, once; later runs find them on disk.", file=sys.stderr)


event.register("numba:compile", _Patience())

# ---------------------------------------------------------------------------------------------------- threads


_own: int | None = None  # threads that share() uses instead of torch's number, inside exclusive_threads()


def threads() -> int:
    """How many threads a pass uses: torch's number."""
    return torch.get_num_threads() if _own is None else _own


def own_threads() -> int:
    """How many tasks that call torch may run side by side: 1 outside :func:`exclusive_threads`."""
    return 1 if _own is None else _own


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def exclusive_threads() -> Iterator[None]:
    """Inside, torch operations run on one thread each and ``share`` spreads whole tasks over torch's former number.

    One division of labour instead of two: no thread of torch's pool spins on a core that a kernel needs, and no barrier
    stands behind every small operation. The former number is restored at the end.
    """
    global _own
    former, own = torch.get_num_threads(), _own
    _own = threads()
    torch.set_num_threads(1)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        _own = own
        torch.set_num_threads(former)


@contextmanager
def torch_threads() -> Iterator[None]:
    """Inside, torch operations run on all threads again, for work that cannot be shared out."""
    former = torch.get_num_threads()
    torch.set_num_threads(threads())
    try:
        yield
    finally:
        torch.set_num_threads(former)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Helper threads of this process (a forked child has another number and makes its own)."""
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="varangian")


def share(task: Callable[[int], object], count: int, numbers: int) -> None:
    """Runs task(0), ..., task(count - 1), this thread taking part; alone when there are few numbers to work on."""
    workers = min(threads(), count) if numbers > SMALL else 1
    if workers == 1:
        for item in range(count):
            task(item)
        return
    items = itertools.count()

    def work() -> None:
        while (item := next(items)) < count:
            task(item)

    def help_out() -> None:
        if _own is not None and torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # torch's number is per thread once a thread has used it
        work()

    helpers = [_pool(os.getpid()).submit(help_out) for _ in range(workers - 1)]
    work()
    for helper in helpers:
        helper.result()


def _chunks(d: int, width: int, most: int) -> tuple[int, int]:
    """(columns per chunk, chunks): at most ``most`` chunks of whole blocks; a function of d alone."""
    blocks = -(-d // width)
    size = -(-blocks // min(most, blocks)) * width
    return size, -(-d // size)


def is_native(x: Tensor) -> bool:
    """Whether Numba kernels take it as it is."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _half(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)


def _rows(x: Tensor) -> np.ndarray:
    """[n, d] in numpy, contiguous: a copy where it is not, since kernels vectorise over neighbours in memory only."""
    return x.detach().contiguous().numpy()


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


_jit = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
# Sums may be reordered to fill vector lanes, but NaN and infinity keep their meaning.
_jit_sum = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

# -------------------------------------------------------------------------------------------------- distances


@_jit_sum
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


@_jit
def _point(x, extra, zeros, i, start, stop):  # type: ignore[no-untyped-def]
    """Columns start..stop of the i-th point: the vectors, then the extra ones, then (however far) the origin."""
    n = x.shape[0]
    if i < n:
        return x[i, start:stop]
    if i < n + extra.shape[0]:
        return extra[i - n, start:stop]
    return zeros[: stop - start]


@_jit
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


@_jit_sum
def _wide_distance(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(a.size):
        e = np.float64(a[k]) - np.float64(b[k])
        total += e * e
    return total


@_jit
def _wide_distances(x, extra, zeros, start, stop, left, right, out):  # type: ignore[no-untyped-def]
    width = zeros.size
    for s in range(start, stop, width):
        t = min(stop, s + width)
        for c in range(left.size):
            a, b = _point(x, extra, zeros, left[c], s, t), _point(x, extra, zeros, right[c], s, t)
            out[c] += _wide_distance(a, b)


@_jit_sum
def _wide_square(a):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(a.size):
        total += np.float64(a[k]) * np.float64(a[k])
    return total


@_jit
def _squares(x, start, stop, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        out[i] += _wide_square(x[i, start:stop])


def squared_norms(x: Tensor) -> Tensor:
    """||x_i||^2 of each row, [..., d] -> [...] in float64."""
    if not is_native(x):
        return torch.linalg.vector_norm(x.double(), dim=-1).square()
    rows = _rows(x.reshape(-1, x.shape[-1]))
    n, d = rows.shape
    size, count = _chunks(d, STREAM_WIDTH, 8)
    parts = np.zeros((count, n))
    share(lambda c: _squares(rows, c * size, min(d, (c + 1) * size), parts[c]), count, rows.size)
    return torch.from_numpy(parts.sum(0)).reshape(x.shape[:-1])


def _sum_of_distances(x: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Squared distances between rows, extra rows and the origin, for float32 or float64 arrays."""
    (n, d), e = x.shape, extra.shape[0]
    points = n + e + 1
    padded = -(-points // 4) * 4
    zeros = np.zeros(min(DISTANCE_WIDTH, d), x.dtype)
    size, count = _chunks(d, zeros.size, 8)
    parts = np.zeros((count, padded, padded))

    def ends(c: int) -> tuple[int, int]:
        return c * size, min(d, (c + 1) * size)

    share(lambda c: _distances(x, extra, zeros, *ends(c), parts[c]), count, points * d)
    squared = np.triu(parts.sum(0)[:points, :points], 1)
    squared += squared.T
    if x.dtype == np.float64:
        return squared
    # float32 squares overflow beyond 1e19 and vanish below 1e-19: such pairs are summed again in float64, norms first,
    # since a row whose norm is still not finite has no distances to find.

    def sum_again(left: np.ndarray, right: np.ndarray) -> None:
        wide = np.zeros((count, left.size))
        share(lambda c: _wide_distances(x, extra, zeros, *ends(c), left, right, wide[c]), count, left.size * d)
        squared[left, right] = squared[right, left] = wide.sum(0)

    overflowed = np.flatnonzero(~np.isfinite(squared[-1]))
    if overflowed.size:
        sum_again(overflowed, np.full_like(overflowed, points - 1))
    finite = np.isfinite(squared[-1])
    tiny = squared[-1] < 1e-24 * d
    again = ~np.isfinite(squared) | (squared < 1e-30 * d) & tiny[:, None] & tiny[None, :]
    left, right = np.nonzero(np.triu(again & finite[:, None] & finite[None, :], 1))
    if left.size:
        sum_again(left, right)
    return squared


def squared_distances(x: Tensor, extra: Tensor | None = None) -> np.ndarray:
    """Squared Euclidean distances between the n rows, e extra rows and, last, the origin: [n+e+1, n+e+1] float64.

    Exact to about 1e-6 relative for float32, whatever the rows' common offset; entries of rows that are not finite are
    not finite. One pass over the data.
    """
    e = 0 if extra is None else extra.shape[0]
    if is_native(x):
        return _sum_of_distances(
            _rows(x), np.empty((0, x.shape[1]), _rows(x[:, :1]).dtype) if extra is None else _rows(extra)
        )
    total = np.zeros((x.shape[0] + e + 1,) * 2)
    for s in range(0, x.shape[1], PANEL):
        panel = x[:, s : s + PANEL] if extra is None else torch.cat([x[:, s : s + PANEL], extra[:, s : s + PANEL]])
        if _half(x):
            total += _sum_of_distances(panel.float().numpy(), np.empty((0, panel.shape[1]), np.float32))
        else:
            points = torch.cat([panel, panel.new_zeros(1, panel.shape[1])]).double()
            total += torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square().cpu().numpy()
    return total


@_jit_sum
def _wide_product(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(a.size):
        total += np.float64(a[k]) * np.float64(b[k])
    return total


def inner_products(vectors: list[Tensor]) -> np.ndarray:
    """<v_i, v_j> of k vectors [d]: [k, k], summed in float64 without stacking them. Meant for a handful of vectors."""
    k, d = len(vectors), vectors[0].numel()
    if not all(is_native(v) for v in vectors):
        wide = torch.stack([v.double() for v in vectors])
        return (wide @ wide.T).cpu().numpy()
    arrays = [np.ascontiguousarray(v.detach().numpy()) for v in vectors]
    size, count = _chunks(d, STREAM_WIDTH, 8)
    parts = np.zeros((count, k, k))

    def task(c: int) -> None:
        start, stop = c * size, min(d, (c + 1) * size)
        for s in range(start, stop, 1 << 14):
            pieces = [a[s : min(stop, s + (1 << 14))] for a in arrays]
            for i in range(k):
                for j in range(i + 1):
                    parts[c, i, j] += _wide_product(pieces[i], pieces[j])

    share(task, count, k * d)
    lower = parts.sum(0)
    return np.tril(lower) + np.tril(lower, -1).T


def squared_distances_to(x: Tensor, point: Tensor) -> np.ndarray:
    """Squared distances of the n rows to one vector [d]: [n] float64, summed in float64. One pass over the data."""
    (n, d), total = x.shape, np.zeros(x.shape[0])
    if is_native(x):
        rows, extra = _rows(x), _rows(point.unsqueeze(0))
        zeros = np.zeros(min(STREAM_WIDTH, d), rows.dtype)
        left, right = np.arange(n), np.full(n, n)
        size, count = _chunks(d, zeros.size, 8)
        parts = np.zeros((count, n))
        share(
            lambda c: _wide_distances(rows, extra, zeros, c * size, min(d, (c + 1) * size), left, right, parts[c]),
            count,
            rows.size,
        )
        return parts.sum(0)
    for s in range(0, d, PANEL):
        total += (x[:, s : s + PANEL].double() - point[s : s + PANEL].double()).square().sum(1).cpu().numpy()
    return total


# ----------------------------------------------------------------------------------------------- weighted sums


@_jit
def _weighted(x, extra, zeros, rows, weights, start, stop, total, out):  # type: ignore[no-untyped-def]
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
            a0, a1 = _point(x, extra, zeros, rows[g], s, t), _point(x, extra, zeros, rows[r1], s, t)
            a2, a3 = _point(x, extra, zeros, rows[r2], s, t), _point(x, extra, zeros, rows[r3], s, t)
            for k in range(t - s):
                total[k] += w0 * a0[k] + w1 * a1[k] + w2 * a2[k] + w3 * a3[k]
        for k in range(t - s):
            out[s + k] = total[k]


def weighted_rows(x: Tensor, weights: np.ndarray, extra: Tensor | None = None) -> Tensor:
    """sum_i w_i x_i, rows of weight zero never touched (0 * NaN is NaN): weights [n+e] -> [d], or [m, n+e] -> [m, d].

    Accumulated in float64, rounded once. One pass over the rows of non-zero weight.
    """
    if weights.ndim == 2:
        out = x.new_empty(weights.shape[0], x.shape[1])
        for row, target in zip(weights, out, strict=True):
            target.copy_(weighted_rows(x, row, extra))
        return out
    used = np.flatnonzero(weights)
    if not used.size:
        return x.new_zeros(x.shape[1])
    if used.size == 1 and weights[used[0]] == 1:
        source = x[used[0]] if used[0] < x.shape[0] else extra[used[0] - x.shape[0]]  # type: ignore[index]
        return source.detach().clone()
    d, factors = x.shape[1], weights[used].astype(np.float64)
    if is_native(x):
        a = _rows(x)
        b = np.empty((0, d), a.dtype) if extra is None else _rows(extra)
        zeros, result = np.zeros(1, a.dtype), np.empty(d, a.dtype)
        size, count = _chunks(d, STREAM_WIDTH, 16)

        def task(c: int) -> None:
            scratch = np.empty(min(STREAM_WIDTH, d))
            _weighted(a, b, zeros, used, factors, c * size, min(d, (c + 1) * size), scratch, result)

        share(task, count, used.size * d)
        return torch.from_numpy(result)
    out = x.new_empty(d)
    device_weights = torch.from_numpy(factors).to(x.device)
    index = torch.from_numpy(used).to(x.device)
    for s in range(0, d, PANEL):
        panel = x[:, s : s + PANEL] if extra is None else torch.cat([x[:, s : s + PANEL], extra[:, s : s + PANEL]])
        out[s : s + PANEL] = (device_weights @ panel[index].double()).to(x.dtype)
    return out


def weighted_panel(x: Tensor, table: np.ndarray, extra: Tensor | None, start: int, stop: int) -> Tensor:
    """Columns start..stop of weighted_rows for weights [m, n+e], not rounded: [m, stop - start] in float64."""
    panel = x[:, start:stop]
    others = panel[:0] if extra is None else extra[:, start:stop]
    if not is_native(x):
        used = np.flatnonzero((table != 0).any(0))
        sources = torch.cat([panel, others])[torch.from_numpy(used).to(x.device)].double()
        return torch.from_numpy(np.ascontiguousarray(table[:, used])).to(x.device) @ sources
    a, b, out = _rows(panel), _rows(others), np.zeros((table.shape[0], stop - start))
    zeros, scratch = np.zeros(1, a.dtype), np.empty(min(STREAM_WIDTH, stop - start))
    for row, target in zip(table, out, strict=True):
        used = np.flatnonzero(row)
        if used.size:
            _weighted(a, b, zeros, used, row[used], 0, stop - start, scratch, target)
    return torch.from_numpy(out)


@_jit
def _blend(scales, x, factor, y, start, stop, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        # Slices, so that the compiler sees that no index is negative: else it does not vectorise.
        a, b, c = x[i, start:stop], y[min(i, y.shape[0] - 1), start:stop], out[i, start:stop]
        scale = scales[i]
        for k in range(a.size):
            c[k] = scale * a[k] + factor * b[k]


def blend(scale: float | Tensor, x: Tensor, factor: float, y: Tensor, out: Tensor | None = None) -> Tensor:
    """scale_i x_i + factor y_i for each row, [..., d]: scale may be one number a row, y may be a single row.

    ``out`` may be x or y. One pass.
    """
    if not (is_native(x) and x.ndim == 2 and (out is None or out.stride(-1) == 1)):
        scales = scale.to(x.dtype).unsqueeze(-1) if isinstance(scale, Tensor) else scale
        return torch.add(x * scales, y, alpha=factor, out=out)
    result = torch.empty_like(x) if out is None else out
    a, b, c = _rows(x), _rows(y if y.ndim == 2 else y.unsqueeze(0)), result.numpy()
    n, d = a.shape
    scales = (scale.numpy() if isinstance(scale, Tensor) else np.full(n, scale)).astype(a.dtype)
    size, count = _chunks(d, STREAM_WIDTH, 16)
    share(lambda k: _blend(scales, a, a.dtype.type(factor), b, k * size, min(d, (k + 1) * size), c), count, n * d)
    return result


# -------------------------------------------------------------------------------- what workers do, in one go


@_jit
def _shifted_squares(x, factor, y, start, stop, scratch, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        a, b = x[i, start:stop], y[min(i, y.shape[0] - 1), start:stop]
        for k in range(a.size):
            scratch[k] = a[k] + factor * b[k]
        out[i] += _wide_square(scratch[: a.size])


@_jit
def _send(x, factor, y, scales, keep, beta, memory, start, stop, held, sums, moments, out):  # type: ignore[no-untyped-def]
    """Columns start..stop of what is sent, and the moments of what is sampled and of what is sent."""
    n, size = held.shape[0] - 1, held.shape[1]
    blended, remembers = held[n], memory.shape[0] > 0
    for s in range(start, stop, size):
        t = min(stop, s + size)
        width = t - s
        sums[:, :width] = 0
        sampled, sent = sums[0], sums[1]
        for i in range(n):
            a, b, c = x[i, s:t], y[min(i, y.shape[0] - 1), s:t], out[i, s:t]
            row, scale = held[i], scales[i]
            for k in range(width):
                row[k] = (a[k] + factor * b[k]) * scale
            for k in range(width):
                sampled[k] += row[k]
            if remembers:
                m = memory[min(i, memory.shape[0] - 1), s:t]
                for k in range(width):  # not into c, which may be m: the compiler then takes the slow way
                    blended[k] = keep * row[k] + beta * m[k]
                for k in range(width):
                    c[k] = blended[k]
                    sent[k] += blended[k]
            else:
                for k in range(width):
                    c[k] = row[k]
        if moments.shape[0] == 0:
            continue
        for j in range(2 if remembers else 1):
            total, spread, mean, std = sums[j], sums[2 + j], moments[2 * j, s:t], moments[2 * j + 1, s:t]
            for k in range(width):
                total[k] /= n
            for i in range(n):
                row = out[i, s:t] if j == 1 else held[i, :width]
                for k in range(width):
                    e = row[k] - total[k]
                    spread[k] += e * e
            for k in range(width):
                mean[k] = total[k]
                std[k] = np.sqrt(spread[k] / (n - 1))


def send_rows(
    x: Tensor, factor: float, y: Tensor, scale: Callable[[Tensor], Tensor] | None, keep: float, beta: float,
    memory: Tensor | None, out: Tensor, moments: bool,
) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:  # fmt: skip
    """What workers do to their gradients, without writing anything in between: l2, clipping, momentum.

    With s_i = (x_i + factor y_i) scale_i, ``out_i`` = keep s_i + beta memory_i, or s_i without a memory. y and memory
    may be single rows, and ``out`` the memory or x. ``scale`` maps the norms of x_i + factor y_i to the scales.

    Returns (mean, standard deviation) of the s_i and of the rows of ``out``, where asked for. Two passes over x where
    there is a scale, else one; the same bits as the operations one by one. For float32 and float64 in main memory.
    """
    a, b, c = _rows(x), _rows(y if y.ndim == 2 else y.unsqueeze(0)), out.numpy()
    n, d = a.shape
    kind = a.dtype.type
    scales = np.ones(n, a.dtype)
    if scale is not None:
        size, count = _chunks(d, STREAM_WIDTH, 8)
        parts = np.zeros((count, n))

        def norms(k: int) -> None:
            _shifted_squares(
                a, kind(factor), b, k * size, min(d, (k + 1) * size), np.empty(size, a.dtype), parts[k]
            )  # fmt: skip

        share(norms, count, n * d)
        scales = scale(torch.from_numpy(parts.sum(0)).sqrt_()).to(x.dtype).numpy()
    held = np.empty((0, d), a.dtype) if memory is None else _rows(memory if memory.ndim == 2 else memory.unsqueeze(0))
    found = np.empty((0 if not moments else 2 if memory is None else 4, d), a.dtype)
    width, blocks = _chunks(d, SEND_WIDTH, 16)

    def task(k: int) -> None:
        _send(
            a, kind(factor), b, scales, kind(keep), kind(beta), held, k * width, min(d, (k + 1) * width),
            np.empty((n + 1, SEND_WIDTH), a.dtype), np.empty((4, SEND_WIDTH)), found, c,
        )  # fmt: skip

    share(task, blocks, n * d)
    if not moments:
        return None, None
    mean, std, *sent = torch.from_numpy(found)
    return (mean, std), (sent[0], sent[1]) if sent else (mean, std)


# ------------------------------------------------------------------------------------------- columns: ranks


def _batcher(n: int) -> list[tuple[int, int]]:
    """The comparators (i, j) of Batcher's odd-even merge sort, depth first: a few values for long, then the next few.

    Reference: Batcher, "Sorting networks and their applications", 1968.
    """
    comparators: list[tuple[int, int]] = []

    def sort(first: int, size: int) -> None:
        if size > 1:
            sort(first, size // 2)
            sort(first + size // 2, size // 2)
            merge(first, size, 1)

    def merge(first: int, size: int, gap: int) -> None:
        pairs = [first]
        if 2 * gap < size:
            merge(first, size, 2 * gap)
            merge(first + gap, size, 2 * gap)
            pairs = list(range(first + gap, first + size - gap, 2 * gap))
        comparators.extend((i, i + gap) for i in pairs if i + gap < n)  # beyond n stand values above all others

    sort(0, 1 << max(0, n - 1).bit_length())
    return comparators


@lru_cache(maxsize=256)
def network(n: int, low: int, high: int) -> tuple[tuple[int, int], ...]:
    """Comparators that sort n values as far as ranks low..high-1 need it.

    Example:
        >>> network(3, 0, 3)
        ((0, 1), (0, 2), (1, 2))
    """
    wanted, kept = set(range(low, high)), []
    for a, b in reversed(_batcher(n)):
        if a in wanted or b in wanted:
            wanted |= {a, b}
            kept.append((a, b))
    return tuple(kept[::-1])


@intrinsic
def _sort_lanes(typingctx, bases, plan, column, most, place, out):  # type: ignore[no-untyped-def]
    """The statistic of LANES bytes' worth of columns from ``column`` on, without leaving the registers, to out[place].

    ``bases`` are the addresses of the rows; ``plan`` four tuples of nothing whose lengths are n, low, high and window,
    so that the compiler knows them; ``most`` keeps the largest magnitudes seen. Lines needed soon are asked for.
    """
    n, low, high, window = (part.count for part in plan.types)
    width = out.dtype.bitwidth

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number, size = ir.IntType(64), width // 8
        lanes = LANES // size
        vector, double = ir.VectorType(ir.IntType(width), lanes), ir.DoubleType()
        floats = ir.VectorType(ir.FloatType() if width == 32 else double, lanes)
        word, pointer = ir.IntType(32), vector.as_pointer()
        parts = [range(lanes)] if width == 64 else [range(lanes // 2), range(lanes // 2, lanes)]

        def constant(value: float, kind: ir.VectorType = vector) -> ir.Constant:
            return ir.Constant(kind, [value] * kind.count)

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

        def wide(r: int) -> list[ir.Value]:  # the values of a rank in float64
            if r not in widened:
                value = builder.bitcast(key(ranked(r)), floats)
                kinds = [ir.VectorType(double, len(order)) for order in parts]
                widened[r] = [value] if width == 64 else [
                    builder.fpext(shuffled(value, value, order), kind) for order, kind in zip(parts, kinds, strict=True)
                ]  # fmt: skip
            return widened[r]

        def scaled_sum(start: Sequence[ir.Value], scale: float, terms: Sequence[ir.Value]) -> list[ir.Value]:
            kinds = [ir.VectorType(double, len(order)) for order in parts]
            scaled = [builder.fmul(constant(scale, kind), b) for kind, b in zip(kinds, terms, strict=True)]
            return [builder.fadd(a, b) for a, b in zip(start, scaled, strict=True)]

        def select(chosen: list[ir.Value], first: list[ir.Value], second: list[ir.Value]) -> list[ir.Value]:
            return [builder.select(c, a, b) for c, a, b in zip(chosen, first, second, strict=True)]

        least, greatest, unsigned = operation("smin"), operation("smax"), operation("umax")
        shift, mask = constant(width - 1), constant((1 << (width - 1)) - 1)
        rows, largest = data(0), builder.bitcast(data(3), pointer)
        offset = builder.mul(arguments[2], ir.Constant(number, size))
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
        if high - low == 1 and not window:
            result = key(ranked(low))
        else:
            zero = [constant(0.0, ir.VectorType(double, len(order))) for order in parts]
            center = zero
            for r in range(low, high):
                center = scaled_sum(center, 1 / (high - low), wide(r))
            if window:  # as in _closest
                twice, drop = [builder.fadd(c, c) for c in center], n - window
                center, kept = zero, [wide(r) for r in range(window)] if window < drop else []
                for s in range(drop):
                    pairs = list(zip(wide(s), wide(s + window), strict=True))
                    nearer = [
                        builder.fcmp_ordered("<", builder.fadd(*pair), c) for pair, c in zip(pairs, twice, strict=True)
                    ]
                    if window < drop:  # the window as a whole moves up, where it does
                        kept = [select(nearer, wide(s + 1 + k), kept[k]) for k in range(window)]
                    else:  # then one of the two is in the window, and what lies between them too
                        center = scaled_sum(center, 1 / window, select(nearer, wide(s + window), wide(s)))
                for terms in kept or [wide(r) for r in range(drop, window)]:
                    center = scaled_sum(center, 1 / window, terms)
            if width == 32:
                kind = ir.VectorType(ir.FloatType(), lanes // 2)
                center = [shuffled(*(builder.fptrunc(c, kind) for c in center), range(lanes))]
            result = builder.bitcast(center[0], vector)
        into = builder.gep(data(5), [arguments[4]])
        builder.store(result, builder.bitcast(into, pointer), align=size)
        builder.store(magnitude, largest, align=size)
        return context.get_dummy_value()

    return types.void(bases, plan, column, most, place, out), generate


@_jit
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


@_jit
def _to_bits(keys, shift, mask):  # type: ignore[no-untyped-def]
    for k in range(keys.size):
        keys[k] = keys[k] ^ ((keys[k] >> shift) & mask)


@_jit
def _mix_row(x, columns, weights, start, width, total, target):  # type: ignore[no-untyped-def]
    total[:width] = 0
    for c in range(columns.size):
        w, source = weights[c], x[columns[c]]
        for k in range(width):
            total[k] += w * source[start + k]
    for k in range(width):
        target[k] = total[k]


@_jit
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


@_jit
def _closest(values, window, width, center, chosen):  # type: ignore[no-untyped-def]
    """Per column the mean of the ``window`` sorted values nearest to the centre: they are contiguous.

    Starting at rank 0 the window slides up past s while the value that enters is strictly nearer than the one that
    leaves, so ties keep the lower value: while their sum is less than twice the centre.
    """
    m = values.shape[0]
    drop, share = m - window, 1.0 / window
    slid, total = chosen[0], chosen[1]
    slid[:width] = 0
    total[:width] = 0
    for s in range(drop):
        low, high = values[s], values[s + window]
        if window >= drop:  # then one of the two is in the window, and what lies between them too
            for k in range(width):
                a, b = np.float64(low[k]), np.float64(high[k])
                total[k] += share * (b if a + b < center[k] + center[k] else a)
        else:
            for k in range(width):
                slid[k] += 1.0 if np.float64(low[k]) + np.float64(high[k]) < center[k] + center[k] else 0.0
    if window >= drop:
        for r in range(drop, window):
            row = values[r]
            for k in range(width):
                total[k] += share * row[k]
    else:
        for r in range(m):
            row = values[r]
            for k in range(width):
                total[k] += share * row[k] if slid[k] <= r and r < slid[k] + window else 0.0
    for k in range(width):  # copying a slice would compile the message of a shape error, for seconds
        center[k] = total[k]


@_jit
def _columns(
    x, bits, offsets, rows, weights, left, right, low, high, window, shift, mask, infinity,
    start, stop, block, values, scratch, bad, out,
):  # fmt: skip  # type: ignore[no-untyped-def]
    """Columns start..stop of the statistic: rank mean, then perhaps the mean of the values closest to it."""
    m, size = block.shape
    center = scratch[0]
    for s in range(start, stop, size):
        width = min(size, stop - s)
        for i in range(m):
            first, last = offsets[i], offsets[i + 1]
            if last - first == 1 and weights[first] == 1.0:
                most = _load_keys(bits[rows[first], s : s + width], block[i], shift, mask, infinity)
            else:
                _mix_row(x, rows[first:last], weights[first:last], s, width, center, values[i])
                most = _load_keys(block[i, :width], block[i], shift, mask, infinity)
            if most >= infinity:
                bad[i] = 1
        _walk(block, left, right, bits, s + size, min(stop, s + 2 * size))
        first_row, last_row = (0, m) if window > 0 else (low, high)
        for r in range(first_row, last_row):
            _to_bits(block[r], shift, mask)
        if high - low == 1 and window == 0:
            for k in range(width):
                out[s + k] = values[low, k]
            continue
        scale = 1.0 / (high - low)
        center[:width] = 0
        for r in range(low, high):
            row = values[r]
            for k in range(width):
                center[k] += scale * row[k]
        if window > 0:
            _closest(values, window, width, center, scratch[1:])
        for k in range(width):
            out[s + k] = center[k]


@_jit
def _fast_columns(x, bases, plan, mixes, offsets, rows, weights, infinity, start, stop, mixed, scratch, most, bits):  # type: ignore[no-untyped-def]
    """The same in registers, for whole blocks of columns without NaN or infinity: the first column not done."""
    size, lanes = SORT_WIDTH, most.size
    for s in range(start, stop - size + 1, size):
        if mixes:
            for i in range(mixed.shape[0]):
                a, b = offsets[i], offsets[i + 1]
                _mix_row(x, rows[a:b], weights[a:b], s, size, scratch, mixed[i])
        most[:] = 0
        for k in range(0, size, lanes):
            _sort_lanes(bases, plan, k if mixes else s + k, most, s + k, bits)  # pyright: ignore
        for k in range(lanes):
            if most[k] >= infinity:
                return s
    return start + (stop - start) // size * size


_INTEGERS = {
    np.dtype(np.float32): (np.int32, 31, 0x7FFFFFFF, 0x7F800000),
    np.dtype(np.float64): (np.int64, 63, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


@lru_cache(maxsize=64)
def _each_row(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, rows and weights of no mixing."""
    return np.arange(n + 1), np.arange(n), np.ones(n)


@lru_cache(maxsize=256)
def _sides(n: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """The network's left and right ends."""
    left, right = np.array(network(n, low, high), np.int64).reshape(-1, 2).T.copy()
    return left, right


def _column_statistic(
    x: np.ndarray, mixing: np.ndarray | None, low: int, high: int, window: int
) -> tuple[np.ndarray, int]:
    n, d = x.shape
    m = n if mixing is None else mixing.shape[0]
    integer, shift, mask, infinity = _INTEGERS[x.dtype]
    if mixing is None:
        offsets, rows, weights, mixes = *_each_row(n), False
    else:
        used = mixing != 0
        offsets = np.concatenate([[0], np.cumsum(used.sum(1))]).astype(np.int64)
        rows, weights = np.nonzero(used)[1], mixing[used].astype(np.float64)
        mixes = bool((used.sum(1) != 1).any() or (weights != 1).any())
    size, count = _chunks(d, SORT_WIDTH, 8)
    bad, out, bits = np.zeros((count, m), np.uint8), np.empty(d, x.dtype), x.view(integer)
    plan = tuple((None,) * length for length in (m, low, high, window))
    fast = m <= REGISTER_ROWS and n * d >= WORTH
    bases = x.ctypes.data + rows * x.strides[0]

    def task(c: int) -> None:
        start, stop = c * size, min(d, (c + 1) * size)
        scratch = np.empty((3, SORT_WIDTH))
        if fast:
            mixed = np.empty((m if mixes else 0, SORT_WIDTH), x.dtype)
            start = _fast_columns(
                x, mixed.ctypes.data + np.arange(m) * mixed.strides[0] if mixes else bases, plan, mixes, offsets, rows,
                weights, integer(infinity), start, stop, mixed, scratch[0], np.zeros(LANES // x.itemsize, integer),
                out.view(integer),
            )  # fmt: skip
        if start < stop:
            block = np.zeros((m, SORT_WIDTH), integer)
            left, right = _sides(m, *((0, m) if window else (low, high)))
            _columns(
                x, bits, offsets, rows, weights, left, right, low, high, window, integer(shift), integer(mask),
                integer(infinity), start, stop, block, block.view(x.dtype), scratch, bad[c], out,
            )  # fmt: skip

    share(task, count, n * d)
    return out, int(bad.any(0).sum())


def column_statistic(
    x: Tensor, low: int, high: int, window: int = 0, mixing: np.ndarray | None = None
) -> tuple[Tensor, int]:
    """Per column of [n, d], or of mixing @ x for a mixing [m, n]: the mean of the values of ranks low..high-1, and with
    a ``window`` the mean of the ``window`` values closest to that (ties to the lower value).

    Median, trimmed mean, MeaMed and Phocas are four settings of it. Returns [d] and the number of rows that hold a NaN
    or an infinity. Each number is read once; a mixing is applied block by block and never stored.
    """
    if is_native(x):
        out, bad = _column_statistic(_rows(x), mixing, low, high, window)
        return torch.from_numpy(out), bad
    out, bad_rows = x.new_empty(x.shape[1]), None
    for s in range(0, x.shape[1], PANEL):
        panel = x[:, s : s + PANEL]
        if _half(x):
            part, _ = _column_statistic(panel.float().numpy(), mixing, low, high, window)
            out[s : s + PANEL] = torch.from_numpy(part).to(x.dtype)
            faulty = ~panel.isfinite().all(1)
        else:
            wide = panel.double()
            if mixing is not None:
                wide = torch.stack([_torch_mix(wide, row) for row in mixing])
            faulty = ~wide.isfinite().all(1)
            out[s : s + PANEL] = _torch_statistic(wide, low, high, window).to(x.dtype)
        bad_rows = faulty if bad_rows is None else bad_rows | faulty
    return out, 0 if bad_rows is None else int(bad_rows.sum())


def _torch_mix(x: Tensor, row: np.ndarray) -> Tensor:
    used = np.flatnonzero(row)
    return torch.from_numpy(row[used]).to(x.device) @ x[torch.from_numpy(used).to(x.device)]


def _torch_statistic(x: Tensor, low: int, high: int, window: int) -> Tensor:
    ordered = x.sort(dim=0).values
    center = ordered[low:high].mean(0)
    if not window:
        return center
    drop = x.shape[0] - window
    slid = (ordered[:drop] + ordered[window:] < 2 * center).sum(0)
    ranks = slid + torch.arange(window, device=x.device).unsqueeze(1)
    return ordered.gather(0, ranks).mean(0)


# ---------------------------------------------------------------------------------------- columns: moments


@_jit
def _moments(x, ddof, start, stop, scratch, mean, std):  # type: ignore[no-untyped-def]
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
        for k in range(width):
            mean[s + k] = total[k]
            std[s + k] = np.sqrt(spread[k] / (n - ddof))


def mean_and_std(x: Tensor, ddof: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, [n, d] -> [d], [d]: one pass, two-pass accuracy, in float64.

    The deviation of a single row (n = ddof) is 0 / 0 = NaN, as everywhere.
    """
    if not is_native(x):
        wide = x.float() if _half(x) else x
        return wide.mean(0).to(x.dtype), wide.std(0, correction=ddof).to(x.dtype)
    a = _rows(x)
    n, d = a.shape
    mean, std = np.empty(d, a.dtype), np.empty(d, a.dtype)
    size, count = _chunks(d, SORT_WIDTH, 16)

    def task(c: int) -> None:
        _moments(a, ddof, c * size, min(d, (c + 1) * size), np.empty((2, SORT_WIDTH)), mean, std)

    share(task, count, n * d)
    return torch.from_numpy(mean), torch.from_numpy(std)


# ------------------------------------------------------------------------------------------------------- images


@_jit
def _gather(images, index, flip, mirror, scale, shift, start, stop, plane, out):  # type: ignore[no-untyped-def]
    for b in range(start, stop):
        for c in range(images.shape[1]):
            source, target = images[index[b], c].reshape(-1), out[b, c].reshape(-1)
            direct = plane if flip[b] else target
            for k in range(source.size):
                direct[k] = source[k] * scale[c] + shift[c]
            if flip[b]:
                for k in range(source.size):
                    target[k] = plane[mirror[k]]


def gather_images(
    images: Tensor, index: np.ndarray, flip: np.ndarray | None, scale: np.ndarray, shift: np.ndarray
) -> Tensor:
    """Picks images [N, C, H, W] uint8 by index [B], mirrors those with flip, and maps channel c to scale_c p + shift_c:
    [B, C, H, W] float32, in one pass."""
    source = images.numpy()
    out = np.empty((index.size, *source.shape[1:]), np.float32)
    flags = np.zeros(index.size, np.bool_) if flip is None else flip
    height, width = source.shape[2:]
    mirror = np.arange(height * width, dtype=np.int32).reshape(height, width)[:, ::-1].ravel()
    size, count = _chunks(index.size, 1, 16)
    a, b = scale.astype(np.float32), shift.astype(np.float32)

    def task(c: int) -> None:
        plane = np.empty(height * width, np.float32)
        _gather(source, index, flags, mirror, a, b, c * size, min(index.size, (c + 1) * size), plane, out)

    share(task, count, out.size)
    return torch.from_numpy(out)
