"""As far from the honest mean as honest vectors are from each other: min-max and min-sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..checks import require
from ..geometry import squared_between
from .base import ALONE, Attack, Knowledge

AWAY_WIDTH = 8192  # columns at a time where float64 copies are made
Direction = Literal["std", "sign", "unit"]
DIRECTIONS_OF_SHIFT = ("std", "sign", "unit")


def perturbation(seen: Knowledge, direction: Direction) -> Tensor:
    """[d] the p of Shejwalkar and Houmansadr: std, sign(mean) or mean / ||mean|| (null where the mean is)."""
    if direction == "std":
        return seen.moments[1]
    if direction == "sign":
        return seen.mean.sign()
    norm = float(kernels.norms(seen.mean))
    return seen.mean / norm if norm else seen.mean


def check_direction(attack: MinMax | MinSum, h: int) -> None:
    require(attack, h > 1 or attack.direction != "std", 'at least 2 honest vectors with direction="std"', h)


def along(honest: Tensor, start: Tensor, p: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """(||start - x_i||^2, <start - x_i, p>, ||p||^2), in float64: all that the distances from start - t p depend on."""
    a, b, c = np.zeros(len(honest)), np.zeros(len(honest)), 0.0
    for s in range(0, honest.shape[1], AWAY_WIDTH):
        away = (start[s : s + AWAY_WIDTH].double() - honest[:, s : s + AWAY_WIDTH].double()).cpu()
        part = p[s : s + AWAY_WIDTH].double().cpu()
        a += away.square().sum(1).numpy()
        b += (away @ part).numpy()
        c += float(part @ part)
    return a, b, c


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
        a, b, c = along(seen.honest, seen.mean, p)
        if not c > 0:
            return seen.mean * unit
        bound = squared_between(seen.honest, None)[:-1, :-1].max()
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
        a, _, c = along(seen.honest, seen.mean, p)
        if not c > 0:
            return seen.mean * unit
        sums = squared_between(seen.honest, None)[:-1, :-1].sum(1)
        bound = sums.max() if self.bound == "max" else sums.min()
        gamma = np.sqrt(np.maximum(bound - a.sum(), 0) / (a.size * c))
        return torch.add(seen.mean, p, alpha=-float(gamma)) * unit
