"""Passes over the sizes of values: which of a row are the greatest, and sums of those that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..definitions import Kept
from ..runtime import in_threads, is_native, jit, jit_sum

KEPT_WIDTH = 1 << 14  # columns looked at together


def _stretch_of(x: Tensor, start: int, stop: int) -> tuple[np.ndarray, int, int]:
    """(a, s, t): columns s..t of an array, float64 or float32, that are columns start..stop of x."""
    if is_native(x) and x.is_contiguous():
        return x.numpy(), start, stop
    panel = x[:, start:stop]
    return (panel if x.dtype == torch.float64 else panel.float()).contiguous().numpy(), 0, stop - start


@jit_sum
def _sums(x, start, stop, rows, least, cuts, out):  # type: ignore[no-untyped-def]
    """Of the values that the rows keep the sum of squares, of signs, and how many are not zero: out [3, rows]."""
    for i in range(rows.size):
        row, limit, cut = x[rows[i], start:stop], least[i], cuts[i]
        squares, signs, count = 0.0, 0.0, 0.0
        for k in range(row.size):
            value, size = np.float64(row[k]), abs(row[k])
            value = value if size > limit or (size == limit and k < cut) else 0.0
            squares += value * value
            signs += (1.0 if value > 0 else 0.0) - (1.0 if value < 0 else 0.0)
            count += 1.0 if value != 0 else 0.0
        out[0, i], out[1, i], out[2, i] = squares, signs, count


@jit
def _mean(x, start, stop, rows, least, cuts, weights, total):  # type: ignore[no-untyped-def]
    """The weighted sum of the rows, of each the values that it keeps."""
    for i in range(rows.size):
        row, limit, cut, weight = x[rows[i], start:stop], least[i], cuts[i], weights[i]
        if weight != 0:
            for k in range(row.size):
                size = abs(row[k])
                total[k] += weight * (np.float64(row[k]) if size > limit or (size == limit and k < cut) else 0.0)


def _order_statistic(values: Tensor, k: int) -> tuple[float, int, int]:
    """Of the sizes of values the (k + 1)-th least, how many are less, and how many are equal."""
    wide = (values if values.dtype == torch.float64 else values.float()).contiguous().numpy()
    bits, below, equal = _select(wide.view(np.uint64 if wide.itemsize == 8 else np.uint32), k)
    return float(np.array([bits]).astype(f"u{wide.itemsize}").view(wide.dtype)[0]), below, equal


@jit
def _select(bits, k):  # type: ignore[no-untyped-def]
    """The same for the floats' bits, which sort like the sizes without their sign: digit after digit, by counting."""
    counts = np.zeros(1 << 16, np.int64)
    mask = (np.uint64(1) << np.uint64(8 * bits.itemsize - 1)) - np.uint64(1)
    prefix, below, equal = np.uint64(0), 0, bits.size
    for shift in range(8 * bits.itemsize - 16, -1, -16):
        counts[:] = 0
        for i in range(bits.size):
            digits = (np.uint64(bits[i]) & mask) >> np.uint64(shift)
            if digits >> np.uint64(16) == prefix:
                counts[digits & np.uint64(0xFFFF)] += 1
        digit = 0
        while below + counts[digit] <= k:
            below += counts[digit]
            digit += 1
        prefix, equal = (prefix << np.uint64(16)) | np.uint64(digit), counts[digit]
    return prefix, below, equal


def kept_of(x: Tensor, rows: np.ndarray, dropped: int) -> Kept:
    x = x.detach()
    d, least = x.shape[1], np.zeros(rows.size, np.float64 if x.dtype == torch.float64 else np.float32)
    cuts = np.full(rows.size, d)

    def rank(i: int) -> None:
        row = x[rows[i]]
        value, below, equal = _order_statistic(row, dropped)
        least[i] = value
        if below < dropped:
            cuts[i] = int(((row == value) | (row == -value)).nonzero()[below + equal - dropped, 0])

    in_threads(rank, rows.size, rows.size * d)
    return Kept(rows, torch.from_numpy(least), torch.from_numpy(cuts))


def _panels(ends: Sequence[int]) -> list[tuple[int, int, int]]:
    """(layer, start, stop) of the columns looked at together."""
    return [
        (layer, start, min(start + KEPT_WIDTH, last))
        for layer, (first, last) in enumerate(pairwise(ends))
        for start in range(first, last, KEPT_WIDTH)
    ]


def kept_sums(x: Tensor, kept: Kept, ends: Sequence[int]) -> Tensor:
    x, panels = x.detach(), _panels(ends)
    least, cuts, sums = kept.least.numpy(), kept.cuts.numpy(), np.zeros((len(panels), 3, kept.rows.size))

    def measure(p: int) -> None:
        _, start, stop = panels[p]
        _sums(*_stretch_of(x, start, stop), kept.rows, least, cuts - start, sums[p])

    in_threads(measure, len(panels), x.numel())
    total = np.zeros((3, len(ends) - 1, kept.rows.size))
    for (layer, _, _), found in zip(panels, sums, strict=True):
        total[:, layer] += found
    return torch.from_numpy(total)


def kept_mean(x: Tensor, kept: Kept, weights: np.ndarray, ends: Sequence[int]) -> Tensor:
    x, panels = x.detach(), _panels(ends)
    least, cuts, result = kept.least.numpy(), kept.cuts.numpy(), x.new_zeros(x.shape[1])

    def combine(p: int) -> None:
        layer, start, stop = panels[p]
        total = np.zeros(stop - start)
        _mean(*_stretch_of(x, start, stop), kept.rows, least, cuts - start, weights[layer], total)
        result[start:stop] = torch.from_numpy(total).to(x.dtype)

    in_threads(combine, len(panels), x.numel())
    return result
