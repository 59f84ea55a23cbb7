"""As far from the honest mean as honest vectors are from each other: min-max and min-sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..checks import require
from ..geometry import squared_pairs
from .base import ALONE, Attack, Knowledge

AWAY_WIDTH = 8192  # columns at a time where float64 copies are made
AWAY_WIDTH_THERE = 1 << 22  # the same, on a device
Direction = Literal["std", "sign", "unit"]
DIRECTIONS_OF_SHIFT = ("std", "sign", "unit")


def perturbation(seen: Knowledge, direction: Direction) -> Tensor:
    """[d] the p of Shejwalkar and Houmansadr: std, sign(mean) or mean / ||mean|| (null where the mean is)."""
    if direction == "std":
        return seen.moments[1]
    if direction == "sign":
        return seen.mean.sign()
    norm = kernels.norms(seen.mean)
    return seen.mean / torch.where(norm == 0, torch.ones_like(norm), norm)


def check_direction(attack: MinMax | MinSum, h: int) -> None:
    require(attack, h > 1 or attack.direction != "std", 'at least 2 honest vectors with direction="std"', h)


def along(honest: Tensor, start: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(||start - x_i||^2, <start - x_i, p>, ||p||^2), in float64: all that the distances from start - t p depend on."""
    width = AWAY_WIDTH_THERE if kernels.on_device(honest) else AWAY_WIDTH
    a, b, c = torch.zeros(2 * len(honest) + 1, dtype=torch.float64, device=honest.device).tensor_split(
        (len(honest), 2 * len(honest))
    )
    for s in range(0, honest.shape[1], width):
        away = start[s : s + width].double() - honest[:, s : s + width].double()
        part = p[s : s + width].double()
        a += away.square().sum(1)
        b += away @ part
        c += part @ part
    return a, b, c[0]


@dataclass(frozen=True)
class MinMax(Attack):
    """The mean, shifted as far as no honest vector is further from it than two honest vectors are from each other.

    mean - gamma p, for the greatest gamma with max over i of ||m - x_i|| <= max over i, j of ||x_i - x_j||

    Args:
        direction: p is the standard deviation ("std"), the sign of the mean ("sign"), or its direction ("unit").

    Shape: [h, d] -> f equal rows [f, d]; h >= 2 with direction "std".
    Cost: one pass for the moments, one for h x h distances, one along p.
    Convention: gamma in closed form, where the paper bisects to a tolerance: each honest vector bounds it by a root of
        a quadratic. The standard deviation is the unbiased one.

    Example:
        >>> import torch
        >>> MinMax()(torch.tensor([[0.0], [2.0], [4.0]]), f=1).round(decimals=4).abs()
        tensor([[0.]])

    Reference: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
    Federated Learning", NDSS 2021.
    """

    direction: Direction = "std"

    def __post_init__(self) -> None:
        require(self, self.direction in DIRECTIONS_OF_SHIFT, 'direction "std", "sign" or "unit"', self.direction)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        check_direction(self, h)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return ALONE if h == 1 else None

    def craft(self, seen: Knowledge) -> Tensor:
        unit, seen = seen.unit, seen.in_unit()
        p = perturbation(seen, self.direction)
        squared, a, b, c = kernels.host(squared_pairs(seen.honest), *along(seen.honest, seen.mean, p))
        if not c > 0:
            return seen.mean * unit
        bound = squared[:-1, :-1].max()
        # ||m - x_i||^2 = a_i - 2 b_i gamma + c gamma^2; the mean itself is within the bound, but for rounding.
        gamma = ((b + np.sqrt(np.maximum(b * b - c * (a - bound), 0))) / c).min()
        return torch.add(seen.mean, p, alpha=-float(gamma)) * unit


@dataclass(frozen=True)
class MinSum(Attack):
    """The mean, shifted as far as it is no further from all honest vectors together than one of them is.

    mean - gamma p, for the greatest gamma with
    sum over i of ||m - x_i||^2 <= max over i of the sum over j of ||x_i - x_j||^2

    Args:
        direction: as for :class:`MinMax`.
        bound: "max" as the paper writes it; "min", the least of these sums, as the code published with it computes
            (fairly certain).

    Shape, Cost: as for :class:`MinMax`.
    Convention: gamma in closed form, where the paper bisects: the left side is the sum of ||mean - x_i||^2 plus
        h gamma^2 ||p||^2.

    Example:
        >>> import torch
        >>> MinSum()(torch.tensor([[0.0], [2.0], [4.0]]), f=1).round(decimals=4).abs()
        tensor([[0.]])

    Reference: Shejwalkar, Houmansadr, NDSS 2021.
    """

    direction: Direction = "std"
    bound: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        require(self, self.direction in DIRECTIONS_OF_SHIFT, 'direction "std", "sign" or "unit"', self.direction)
        require(self, self.bound in ("max", "min"), 'bound "max" or "min"', self.bound)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        check_direction(self, h)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return ALONE if h == 1 else None

    def craft(self, seen: Knowledge) -> Tensor:
        unit, seen = seen.unit, seen.in_unit()
        p = perturbation(seen, self.direction)
        squared, a, _, c = kernels.host(squared_pairs(seen.honest), *along(seen.honest, seen.mean, p))
        if not c > 0:
            return seen.mean * unit
        sums = squared[:-1, :-1].sum(1)
        bound = sums.max() if self.bound == "max" else sums.min()
        gamma = np.sqrt(np.maximum(bound - a.sum(), 0) / (a.size * c))
        return torch.add(seen.mean, p, alpha=-float(gamma)) * unit
