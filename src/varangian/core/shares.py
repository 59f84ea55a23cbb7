"""What each worker counts: weights by size with a cap, weights as rules take them, and what they cost.

Weights count in *shares*: multiples of an equal share, so that n vectors weigh n together and weights of 1 are none.
A vector that weighs nothing is not there: it is neither looked at nor counted, whatever it holds.

W_f, the weight of the f heaviest vectors, takes the place of f: any vectors may be Byzantine that weigh no more than
that together, be they few heavy ones or many light ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from . import kernels, numerics
from .checks import kind_of, shown


@dataclass(frozen=True)
class WeightBreakdown:
    """How much of the weight may be Byzantine, of n vectors that weigh n together.

    Attributes:
        declared: the share of all weight that the rule tolerates with the f that it declares: that of the f heaviest.
        share: the greatest that it could declare with these weights,
        workers: and how many of the heaviest vectors that is. So many and one more break it, if they are the heaviest.
        limit: the share that hostile vectors must stay below, whatever f is.
    """

    declared: float
    share: float
    workers: int
    limit: float


def size_weights(sizes: Sequence[float] | np.ndarray | Tensor, cap: float | None = None) -> np.ndarray:
    """[n] weights in proportion to sizes, n together, of which none is greater than a cap.

    w_i = min(cap, c s_i), with the c for which they add up to n: what the cap takes from some is dealt to the others in
    proportion to their sizes, until none is above it. Computed exactly, not by repetition: the capped are the k
    largest, for the least k that leaves the others at or below the cap.

    Args:
        sizes: [n] how many examples each worker holds, or how much else it is to count; >= 0, and not all 0.
        cap: the most that a worker may weigh, in equal shares, >= 1: 1 makes all weights equal. None: no cap.

    Raises:
        ValueError: sizes that are none, a cap below 1, or one that cannot be kept, since too few workers have a size.

    Example:
        >>> size_weights([100, 100, 200, 400])
        array([0.5, 0.5, 1. , 2. ])
        >>> size_weights([100, 100, 200, 400], cap=1.5)
        array([0.625, 0.625, 1.25 , 1.5  ])
    """
    given = _numbers("size_weights", "sizes", sizes, None)
    n, having = given.size, int(np.count_nonzero(given))
    parts = given / given.max()
    weights = parts * (n / parts.sum())
    if (parts == 1).all():
        weights = np.ones(n)
    if cap is None:
        return weights
    if not isinstance(cap, Real) or isinstance(cap, bool) or not cap >= 1:
        raise ValueError(f"size_weights needs cap >= 1 (or None), in equal shares, got {shown(cap)}.")
    if having * cap < n * (1 - numerics.NOTHING):
        raise ValueError(
            f"size_weights cannot keep cap = {float(cap):g}: only {having} of {n} sizes are > 0, so that the greatest "
            f"weight is {n / having:.4g} at least; leave the others out, or raise the cap to that."
        )
    if cap >= n:  # nobody weighs more than all
        return weights
    order = np.argsort(-parts, kind="stable")
    ordered = parts[order]
    rest = np.cumsum(ordered[::-1])[::-1]  # what the k-th largest and those below have, added from the least up
    for k in range(n):
        if not rest[k] or ordered[k] * (n - cap * k) <= cap * rest[k]:
            break
    else:
        k = n
    weights[order[:k]] = cap
    if 0 < k < n and rest[k]:
        weights[order[k:]] = np.minimum(ordered[k:] * ((n - cap * k) / rest[k]), cap)
    return weights


def shares_of(owner: object, weights: Any, n: int | None = None) -> np.ndarray:
    """[n] float64 weights of vectors in equal shares: those that are not 0 add up to their number.

    Raises:
        ValueError: what is not one number >= 0 a vector, or weights that are all 0.
    """
    given = _numbers(type(owner).__name__, "weights", weights, n)
    weighing = np.count_nonzero(given)
    parts = given / given.max()
    if (parts[given > 0] == 1).all():
        return (given > 0).astype(np.float64)
    return parts * (weighing / parts.sum())


def _numbers(who: str, name: str, given: Any, n: int | None) -> np.ndarray:
    """[n] finite numbers >= 0, not all of them 0."""
    wanted = f"{name} [n]" if n is None else f"{name} [{n}], one a vector"
    if isinstance(given, Tensor):
        given = kernels.host(given)
    if isinstance(given, np.ma.MaskedArray):
        raise ValueError(f"{who} needs {name} as an array without a mask, got a masked one.")
    try:
        array = np.asarray(given)
    except ValueError:  # numpy's own, of lists of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or array.ndim != 1 or not array.size or (n is not None and array.size != n):
        came = kind_of(array) if array.dtype.kind in "fiub" else shown(given)
        raise ValueError(f"{who} needs {wanted}, as numbers, got {came}.")
    numbers = array.astype(np.float64)
    wrong = ~(np.isfinite(numbers) & (numbers >= 0))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(f"{who} needs {name} that are finite and >= 0, got {array[place]:g} at place {place}.")
    if not numbers.any():
        raise ValueError(f"{who} needs {name} that are not all 0.")
    return numbers


def heaviest(shares: np.ndarray, f: int) -> float:
    """W_f, the weight of the f heaviest."""
    return float(np.sort(shares)[::-1][:f].sum())


def portions(shares: np.ndarray, low: float, high: float) -> np.ndarray:
    """[..., n] how much of each weight lies between two amounts, where the weights [..., n] are laid end to end.

    What is left by rounding alone is nothing: 0 of an infinite value is 0, and 1e-16 of it is not.
    """
    ends = shares.cumsum(-1)
    found = np.minimum(ends, high) - np.maximum(ends - shares, low)
    return np.where(found > numerics.NOTHING * shares.shape[-1], found, 0.0)
