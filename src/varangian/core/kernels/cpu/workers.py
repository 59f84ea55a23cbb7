"""What workers do to images and gradients, without writing anything in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import numerics
from ..runtime import STREAM_WIDTH, as_rows, chunks, in_threads, is_half, is_native, jit, jit_sum
from .distances import norms as row_norms

SEND_WIDTH = 1024  # columns per block of what workers do: the rows it keeps stay in the second cache


@jit
def _blend(scales, x, factor, y, start, stop, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        # Slices, so that the compiler sees that no index is negative: else it does not vectorise.
        a, b, c = x[i, start:stop], y[min(i, y.shape[0] - 1), start:stop], out[i, start:stop]
        scale = scales[i]
        for k in range(a.size):
            c[k] = scale * a[k] + factor * b[k]


def _beside(x: Tensor, y: Tensor) -> np.ndarray:
    """y as rows for those of x: one for each, or one for all."""
    rows = y if y.ndim == 2 else y.unsqueeze(0)
    if rows.ndim != 2 or rows.shape[1] != x.shape[1] or rows.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"rows {list(x.shape)} go with {list(x.shape)} or with one of them, got {list(y.shape)}.")
    return as_rows(rows)


def blend(scale: float | Tensor, x: Tensor, factor: float, y: Tensor, *, out: Tensor | None = None) -> Tensor:
    if not (is_native(x) and x.ndim == 2 and (out is None or out.stride(-1) == 1)):
        scales = scale.to(x.dtype).unsqueeze(-1) if isinstance(scale, Tensor) else scale
        if x.is_contiguous() and y.is_contiguous() and (out is None or out.is_contiguous()):
            return torch.add(x * scales, y, alpha=factor, out=out)
        moved = torch.add(x.contiguous() * scales, y.contiguous(), alpha=factor)  # else torch rounds in another way
        return moved if out is None else out.copy_(moved)
    result = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    a, b, c = as_rows(x), _beside(x, y), result.numpy()
    n, d = a.shape
    scales = (scale.numpy() if isinstance(scale, Tensor) else np.full(n, scale)).astype(a.dtype)
    size, count = chunks(d, STREAM_WIDTH, 16)
    times = _cast(a, factor)
    in_threads(lambda k: _blend(scales, a, times, b, k * size, min(d, (k + 1) * size), c), count, n * d)
    return result


@jit_sum
def _wide_square(a):  # type: ignore[no-untyped-def]
    # As in distances.py, whose machine code must not be called from here: see runtime.py.
    total = 0.0
    for k in range(a.size):
        total += np.float64(a[k]) * np.float64(a[k])
    return total


@jit
def _shifted_squares(x, factor, y, start, stop, scratch, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        a, b = x[i, start:stop], y[min(i, y.shape[0] - 1), start:stop]
        for k in range(a.size):
            scratch[k] = a[k] + factor * b[k]
        out[i] += _wide_square(scratch[: a.size])


@jit
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


def _cast(like: np.ndarray, value: float) -> Any:
    """A number of the array's type; what is too large for it is infinity, as the compiled loops have it."""
    with np.errstate(over="ignore"):
        return like.dtype.type(value)


def send_rows(
    x: Tensor, factor: float, y: Tensor, *, scale: Callable[[Tensor], Tensor] | None, keep: float, beta: float,
    memory: Tensor | None, out: Tensor, moments: bool,
) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:  # fmt: skip
    a, b, c = as_rows(x), _beside(x, y), out.numpy()
    n, d = a.shape
    times, kept, new = _cast(a, factor), _cast(a, keep), _cast(a, beta)
    scales = np.ones(n, a.dtype)
    if scale is not None:
        size, count = chunks(d, STREAM_WIDTH, 8)
        parts = np.zeros((count, n))

        def norms(k: int) -> None:
            _shifted_squares(
                a, times, b, k * size, min(d, (k + 1) * size), np.empty(size, a.dtype), parts[k]
            )  # fmt: skip

        in_threads(norms, count, n * d)
        squared = parts.sum(0)
        lengths = np.sqrt(squared)
        odd = ~((squared > numerics.VANISHING) & (squared < np.inf))
        if a.dtype == np.float64 and odd.any():  # squares that left the range of float64
            shift = b[odd] if b.shape[0] == n else b
            with np.errstate(over="ignore", invalid="ignore"):  # as the compiled loops, which say nothing either
                lengths[odd] = row_norms(torch.from_numpy(a[odd] + factor * shift)).numpy()
        scales = scale(torch.from_numpy(lengths)).to(x.dtype).numpy()
    held = np.empty((0, d), a.dtype) if memory is None else _beside(x, memory)
    found = np.empty((0 if not moments else 2 if memory is None else 4, d), a.dtype)
    width, blocks = chunks(d, SEND_WIDTH, 16)

    def task(k: int) -> None:
        _send(
            a, times, b, scales, kept, new, held, k * width, min(d, (k + 1) * width),
            np.empty((n + 1, SEND_WIDTH), a.dtype), np.empty((4, SEND_WIDTH)), found, c,
        )  # fmt: skip

    in_threads(task, blocks, n * d)
    if not moments:
        return None, None
    mean, std, *sent = torch.from_numpy(found)
    return (mean, std), (sent[0], sent[1]) if sent else (mean, std)


@jit
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
    images: Tensor, index: np.ndarray, *, flip: np.ndarray | None, scale: np.ndarray, shift: np.ndarray
) -> Tensor:
    """Images that lie otherwise in memory, or are of half a type, are copied first."""
    kept = images.detach()
    if is_half(kept) or kept.is_neg() or not kept.is_contiguous():
        kept = kept[torch.from_numpy(index)].contiguous()
        kept, index = kept.float() if is_half(kept) else kept.resolve_neg(), np.arange(index.size)
    source = kept.numpy()
    out = np.empty((index.size, *source.shape[1:]), np.float32)
    flags = np.zeros(index.size, np.bool_) if flip is None else flip
    height, width = source.shape[2:]
    mirror = np.arange(height * width, dtype=np.int32).reshape(height, width)[:, ::-1].ravel()
    size, count = chunks(index.size, 1, 16)
    a, b = scale.astype(np.float32), shift.astype(np.float32)

    def task(c: int) -> None:
        plane = np.empty(height * width, np.float32)
        _gather(source, index, flags, mirror, a, b, c * size, min(index.size, (c + 1) * size), plane, out)

    in_threads(task, count, out.size)
    return torch.from_numpy(out)
