"""Passes over [n, d] at the speed of memory: the only code that knows how numbers lie in it.

One contract, here, and an implementation for each kind of device: :mod:`.cpu` (Numba) for main memory, :mod:`.cuda`
(Triton) for cards, :mod:`.plain` (torch's own operations) for every other device and as the oracle of the others. Which
one runs is chosen by where the first tensor lies; whoever calls does not know.

Answers are tensors on the device of the input, and no kernel waits for its device. Weights, tables and everything else
that is decided in n x n are NumPy's, on the host. What the host must see is fetched by :func:`host`, in one copy, and
nowhere else.

Loops over n x n numbers (``core/geometry.py``, ``core/rules/search.py``, ``core/rules/central.py``) are compiled by the
same ``runtime.jit``, with the same options, but stand beside the rule that they are a part of: they are its definition,
and Numba's cache on disk looks at the file of a function only, so that one compiled function calls no other file's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from . import cpu, plain
from .definitions import EVEN, Kept, network
from .runtime import (
    Packed,
    cache_folders,
    contiguous,
    eager,
    exclusive_threads,
    has_float64,
    host,
    in_threads,
    is_native,
    on_device,
    own_threads,
    there,
    threads,
    torch_threads,
    where_float64_is,
)
from .watching import Varies, Watch, varies, watched

TRITON = (3, 5)  # the oldest that compiles the kernels for cards
CAPABILITY = (8, 0)  # of the oldest cards that they are compiled for

logger = logging.getLogger("varangian.core.kernels")

Moments = tuple[Tensor, Tensor]
"""Mean and standard deviation of each column, [d] each."""


def _of(x: Tensor, wide: bool = True) -> ModuleType:
    """The implementation for the device of a tensor, and for whether double precision is needed."""
    return cpu if x.device.type == "cpu" else _elsewhere(x.device, wide)


def _elsewhere(device: torch.device, wide: bool) -> ModuleType:
    if wide and not has_float64(device):
        raise ValueError(f"vectors on {device.type} cannot be added up there: it has no float64; move them to the CPU.")
    return for_card(device) if device.type == "cuda" else plain


@lru_cache(maxsize=64)
def for_card(device: torch.device) -> ModuleType:
    """The implementation for a card: Triton's kernels, or torch's own operations, and a notice why."""
    try:
        import triton  # pyright: ignore[reportMissingImports]
    except ImportError:
        return _without("Triton is not installed")
    if tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2]) < TRITON:
        return _without(f"Triton is {triton.__version__}, older than {TRITON[0]}.{TRITON[1]}")
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < CAPABILITY:
        return _without(f"{torch.cuda.get_device_name(device)} is not of NVIDIA's Ampere generation or later")
    from . import cuda

    return cuda


@lru_cache(maxsize=8)
def _without(why: str) -> ModuleType:
    logger.warning("kernels run as torch's own operations, which is several times slower: %s.", why)
    return plain


# ------------------------------------------------------------------------------------------------- column by column


def column_statistic(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Per column of [n, d], or of mixing @ x for a mixing [m, n]: the mean of the values of ranks low..high-1, and with
    a ``window`` the mean of the ``window`` values closest to that (ties to the lower value).

    Median, trimmed mean, MeaMed and Phocas are four settings of it. Returns [d] and the number of rows that hold a NaN
    or an infinity, a tensor []. Each number is read once; a mixing is applied block by block and never stored.
    """
    return _of(x).column_statistic(x, low, high, window, mixing=mixing)


def weighted_statistic(
    x: Tensor, weights: np.ndarray, low: float, high: float, window: float = 0.0, *, even: str = "mid"
) -> tuple[Tensor, Tensor]:
    """Per column of [n, d], whose values have weights [n] > 0 and are laid end to end from the least to the greatest,
    each as long as its weight: the mean of what lies between the amounts ``low`` and ``high``; and with a ``window``
    the mean of so much weight closest to that, the last value in part (ties to the lower value).

    Where low = high the value there; where two values meet there their middle, or the lower or the upper one
    (``even``). Returns [d] and, a tensor [n], which rows hold a NaN or an infinity.

    In main memory one pass, in which values are sorted with the numbers of their rows: 15 to 20 times what
    :func:`column_statistic` takes, which sorts values alone and in registers, and twice that with a window. Everywhere
    else, cards included, torch's operations: a sort, and a product of n x n with n columns.
    """
    return _of(x).weighted_statistic(x, weights, low, high, window, even=even)


def mean_and_std(x: Tensor, ddof: int = 1) -> Moments:
    """Mean and standard deviation of each column, [n, d] -> [d], [d]: one pass, two-pass accuracy, in float64.

    The deviation of a single row (n = ddof) is 0 / 0 = NaN, as everywhere.
    """
    return _of(x).mean_and_std(x, ddof)


def weighted_rows(x: Tensor, weights: np.ndarray, extra: Tensor | None = None) -> Tensor:
    """sum_i w_i x_i, rows of weight zero never touched (0 * NaN is NaN): weights [n+e] -> [d], or [m, n+e] -> [m, d].

    Accumulated in float64, rounded once. One pass over the rows of non-zero weight.
    """
    return _of(x).weighted_rows(x, weights, extra)


def weighted_panel(x: Tensor, table: np.ndarray, extra: Tensor | None, *, start: int, stop: int) -> Tensor:
    """Columns start..stop of weighted_rows for weights [m, n+e], not rounded: [m, stop - start] in float64."""
    return _of(x).weighted_panel(x, table, extra, start=start, stop=stop)


def zeros_like_row(x: Tensor) -> Tensor:
    """[d] zeros, of the type of the rows and where they are."""
    return _of(x, wide=False).zeros_like_row(x)


# -------------------------------------------------------------------------------------------- norms and distances


def squared_norms(x: Tensor) -> Tensor:
    """||x_i||^2 of each row, [..., d] -> [...] in float64."""
    return _of(x).squared_norms(x)


def norms(x: Tensor) -> Tensor:
    """||x_i|| of each row, [..., d] -> [...] in float64, also where squares of float64 leave its range.

    One pass; a second one over rows of float64 whose squares overflow or vanish.
    """
    return _of(x).norms(x)


def squared_distances(x: Tensor, extra: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances between the n rows, e extra rows and, last, the origin: [n+e+1, n+e+1] float64.

    Exact to about 1e-6 relative for float32, whatever the rows' common offset; entries of rows that are not finite are
    not finite, but for the diagonal, which is 0. One pass over the data.
    """
    return _of(x).squared_distances(x, extra)


def mixed_distances(x: Tensor, table: np.ndarray, extra: Tensor | None, *, others: bool) -> Tensor:
    """The same of the mixtures that a table [m, n+e] makes of rows and extra rows, of the extra rows where ``others``
    asks for them, and of the origin: in float64 throughout. One pass, in which no mixture is stored."""
    return _of(x).mixed_distances(x, table, extra, others=others)


def squared_distances_to(x: Tensor, point: Tensor) -> Tensor:
    """Squared distances of the n rows to one vector [d]: [n] float64, summed in float64. One pass over the data."""
    return _of(x).squared_distances_to(x, point)


def compared(x: Tensor, point: Tensor) -> Tensor:
    """Squared norms of the n rows, their squared distances to one vector [d] and their inner products with it: [3, n]
    float64, summed in float64. One pass over the data."""
    return _of(x).compared(x, point)


def squared_around(
    x: Tensor, weights: np.ndarray, extra: Tensor | None = None, scales: np.ndarray | None = None
) -> Tensor:
    """Squared norms of scaled rows, and their squared distances to a mixture: [2, n].

    ``weights`` [n+e] are those of the mixture, of rows and extra rows as they are; ``scales`` [n]. In float64, in one
    pass over the data.
    """
    return _of(x).squared_around(x, weights, extra, scales)


def inner_products(vectors: list[Tensor]) -> Tensor:
    """<v_i, v_j> of k vectors [d]: [k, k], summed in float64 without stacking them. Meant for a handful of vectors."""
    return _of(vectors[0]).inner_products(vectors)


def relations(x: Tensor, point: Tensor, *, starts: np.ndarray | Tensor | None = None, width: int = 0) -> Tensor:
    """Over some columns, of each of the n rows and, last, of a point [d]: its squared distance to the point, its inner
    product with that, its squared norm, and 0 where it is finite there, else NaN: [4, n+1], summed in float64.

    The columns are blocks of a ``width`` from ``starts`` [b] on, an array for rows in main memory and a tensor on the
    device for those on a device; all columns where there are none.
    """
    return _of(x).relations(x, point, starts=starts, width=width)


def statistic_weights(
    x: Tensor, low: int, high: int, window: int = 0, *, mixing: np.ndarray | None = None,
    starts: np.ndarray | Tensor | None = None, width: int = 0,
) -> Tensor:  # fmt: skip
    """[n] the mean weights that the rows' values have in a statistic of columns (see :func:`column_statistic`), over
    the columns of :func:`relations`; for a ``mixing`` [m, n] those of the mixtures, [m]. Equal values share their
    weight, and a NaN counts as infinite."""
    return _of(x).statistic_weights(x, low, high, window, mixing=mixing, starts=starts, width=width)


# ------------------------------------------------------------------------------------------------- the worker half


def blend(scale: float | Tensor, x: Tensor, factor: float, y: Tensor, *, out: Tensor | None = None) -> Tensor:
    """scale_i x_i + factor y_i for each row, [..., d]: scale may be one number a row, y may be a single row.

    ``out`` may be x or y. One pass.
    """
    return _of(x, wide=False).blend(scale, x, factor, y, out=out)


def moved(x: Tensor, y: Tensor, scale: float, *, out: Tensor | None = None) -> Tensor:
    """x + scale y. Torch takes no scale beyond the numbers of the type: then in float64, rounded once."""
    if abs(scale) <= torch.finfo(x.dtype).max:
        return torch.add(x, y, alpha=scale, out=out)
    found = (x.double() + scale * y.double()).to(x.dtype)
    return found if out is None else out.copy_(found)


def send_rows(
    x: Tensor, factor: float, y: Tensor, *, scale: Callable[[Tensor], Tensor] | None, keep: float, beta: float,
    memory: Tensor | None, out: Tensor, moments: bool,
) -> tuple[Moments | None, Moments | None]:  # fmt: skip
    """What workers do to their gradients, without writing anything in between: l2, clipping, momentum.

    With s_i = (x_i + factor y_i) scale_i, ``out_i`` = keep s_i + beta memory_i, or s_i without a memory. y and memory
    may be single rows, and ``out`` the memory or x. ``scale`` maps the norms of x_i + factor y_i to the scales.

    Returns (mean, standard deviation) of the s_i and of the rows of ``out``, where asked for. Two passes over x where
    there is a scale, else one; the same bits as the operations one by one. For float32 and float64.
    """
    return _of(x).send_rows(
        x, factor, y, scale=scale, keep=keep, beta=beta, memory=memory, out=out, moments=moments
    )  # fmt: skip


def gather_images(
    images: Tensor, index: np.ndarray | Tensor, *, flip: np.ndarray | Tensor | None, scale: np.ndarray,
    shift: np.ndarray,
) -> Tensor:  # fmt: skip
    """Picks images [N, C, H, W] by index [B], mirrors those with flip, and maps channel c to scale_c p + shift_c:
    [B, C, H, W] float32, in one pass. Index and flip are arrays for images in main memory, and tensors where the images
    are for those on a device."""
    return _of(images, wide=False).gather_images(images, index, flip=flip, scale=scale, shift=shift)


# ------------------------------------------------------------------------------------------- the greatest of a row


def kept_of(x: Tensor, rows: np.ndarray, dropped: int) -> Kept:
    """What is left of some rows [k] of [n, d] when each drops so many values, the least in size, of equal ones the
    last: which they are, told by a size and a column a row. For rows that are finite."""
    return _of(x).kept_of(x, rows, dropped)


def kept_sums(x: Tensor, kept: Kept, ends: Sequence[int]) -> Tensor:
    """Of the values that k rows keep, layer by layer, the sum of squares, that of signs, and how many are not zero:
    [3, layers, k] in float64. Layers begin and end at ``ends``, from 0 to d. One pass."""
    return _of(x).kept_sums(x, kept, ends)


def kept_mean(x: Tensor, kept: Kept, weights: np.ndarray, ends: Sequence[int]) -> Tensor:
    """The weighted sum of the rows, [d], of each the values that it keeps, in each layer with weights [layers, k] of
    its own. One pass."""
    return _of(x).kept_mean(x, kept, weights, ends)


__all__ = [
    "EVEN",
    "Kept",
    "Packed",
    "Varies",
    "Watch",
    "blend",
    "cache_folders",
    "column_statistic",
    "compared",
    "contiguous",
    "eager",
    "exclusive_threads",
    "gather_images",
    "host",
    "in_threads",
    "inner_products",
    "is_native",
    "kept_mean",
    "kept_of",
    "kept_sums",
    "mean_and_std",
    "mixed_distances",
    "moved",
    "network",
    "norms",
    "on_device",
    "own_threads",
    "relations",
    "send_rows",
    "squared_around",
    "squared_distances",
    "squared_distances_to",
    "squared_norms",
    "statistic_weights",
    "there",
    "threads",
    "torch_threads",
    "varies",
    "watched",
    "weighted_panel",
    "weighted_rows",
    "weighted_statistic",
    "where_float64_is",
    "zeros_like_row",
]
