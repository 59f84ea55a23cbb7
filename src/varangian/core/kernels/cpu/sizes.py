"""Passes over the sizes of values: which of a row are the greatest, and sums of those that are kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..runtime import is_native, jit, jit_sum


def stretch_of(x: Tensor, start: int, stop: int) -> tuple[np.ndarray, int, int]:
    """(a, s, t): columns s..t of an array, float64 or float32, that are columns start..stop of x."""
    if is_native(x) and x.is_contiguous():
        return x.numpy(), start, stop
    panel = x[:, start:stop]
    return (panel if x.dtype == torch.float64 else panel.float()).cpu().contiguous().numpy(), 0, stop - start


@jit_sum
def kept_sums(x, start, stop, rows, least, cuts, out):  # type: ignore[no-untyped-def]
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
def kept_mean(x, start, stop, rows, least, cuts, weights, total):  # type: ignore[no-untyped-def]
    """The weighted sum of the rows, of each the values that it keeps."""
    for i in range(rows.size):
        row, limit, cut, weight = x[rows[i], start:stop], least[i], cuts[i], weights[i]
        if weight != 0:
            for k in range(row.size):
                size = abs(row[k])
                total[k] += weight * (np.float64(row[k]) if size > limit or (size == limit and k < cut) else 0.0)


def order_statistic(values: Tensor, k: int) -> tuple[float, int, int]:
    """Of the sizes of values the (k + 1)-th least, how many are less, and how many are equal."""
    if values.device.type != "cpu":
        sizes = values.abs()
        value = sizes.kthvalue(k + 1).values
        return float(value), int((sizes < value).sum()), int((sizes == value).sum())
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
