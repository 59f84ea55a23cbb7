"""Attacks that look at no rule: a shift of the honest mean, noise, values that are no numbers, a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from statistics import NormalDist
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from .. import kernels, randomness
from ..checks import require, set_real, set_whole
from ..geometry import Geometry, mean_weights
from .base import ALONE, MEAN, Attack, Knowledge
from .memory import Memory
from .spread import along


@dataclass(frozen=True)
class Little(Attack):
    """A Little Is Enough: a shift within the spread of honest vectors, too small to stand out, always the same way.

    mean + sign * factor * std

    Args:
        factor: how many standard deviations; None is the original choice Phi^-1((n - f - s) / (n - f)),
            s = floor(n / 2 + 1) - f, the largest shift that still finds enough honest supporters beyond it.
        sign: -1 or 1.
        ddof: 1 for the unbiased standard deviation, 0 for the biased one.

    Shape: [h, d] -> f equal rows [f, d]; h >= 2 with ddof 1.
    Cost: one pass.
    Convention: the paper of distributed momentum uses factor 1.5, sign -1, ddof 1.

    Warns:
        UserWarning: nobody is attacked: factor 0, or None where so few attack that the original one is not positive.

    Example:
        >>> import torch
        >>> Little(factor=1.0)(torch.tensor([[0.0], [2.0]]), f=1)
        tensor([[-0.4142]])

    Reference: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning",
    NeurIPS 2019.
    """

    title: ClassVar[str] = "Little"

    factor: float | None = 1.5
    sign: int = -1
    ddof: int = 1

    def __post_init__(self) -> None:
        set_real(self, "factor", "a finite factor", isfinite, optional=True)
        set_whole(self, "sign", least=-1)
        require(self, self.sign in (-1, 1), "sign -1 or 1", self.sign)
        set_whole(self, "ddof")
        require(self, self.ddof in (0, 1), "ddof 0 or 1", self.ddof)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        self.check_knowing(h, h, f, d)

    def check_knowing(self, known: int, h: int, f: int, d: int | None = None) -> None:
        require(self, known > self.ddof, f"at least {self.ddof + 1} honest vectors", known)
        if self.factor is None:
            original_factor(h + f, f)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        if h == 1:
            return ALONE
        if self.factor is not None:
            return None if self.factor else MEAN
        factor = original_factor(h + f, f)
        if factor > 0:
            return None
        return f"its factor is {factor:.3g}, so that the honest mean is sent, or a vector on its other side"

    def craft(self, seen: Knowledge) -> Tensor:
        h = seen.honest.shape[0]
        mean, std = seen.moments if h > 1 else (seen.mean, torch.zeros_like(seen.mean))
        factor = original_factor(seen.h + seen.f, seen.f) if self.factor is None else self.factor
        return kernels.moved(mean, std, self.sign * factor * (1.0 if self.ddof else ((h - 1) / h) ** 0.5))


def original_factor(n: int, f: int) -> float:
    """The factor of A Little Is Enough for n workers, f of them Byzantine (Baruch et al., 2019, algorithm 3).

    Example:
        >>> round(original_factor(50, 24), 2)
        1.43
    """
    supporters = n // 2 + 1 - f
    share = (n - f - supporters) / (n - f)
    if not 0 < share < 1:
        raise ValueError(f"Little(factor=None) needs 0 < s < n - f for s = floor(n/2 + 1) - f, got n = {n}, f = {f}.")
    return NormalDist().inv_cdf(share)


@dataclass(frozen=True)
class Empire(Attack):
    """Fall of Empires: the mean of honest vectors, turned around and scaled, to make inner products negative.

    mean + factor * (-mean) = (1 - factor) mean

    Args:
        factor: 1.1 in the paper of distributed momentum, so that -0.1 mean is sent.

    Shape: [h, d] -> f equal rows [f, d].
    Cost: one pass.
    Convention: elsewhere -epsilon * mean, epsilon = factor - 1 ("inner product manipulation").

    Example:
        >>> import torch
        >>> Empire(factor=1.5)(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), f=1)
        tensor([[-1., -2.]])

    Reference: Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation",
    UAI 2019.
    """

    title: ClassVar[str] = "Empire"

    factor: float = 1.1

    def __post_init__(self) -> None:
        set_real(self, "factor", "a finite factor", isfinite)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return None if self.factor else MEAN  # below 0 the mean is sent, but made longer, which some rules follow

    def craft(self, seen: Knowledge) -> Tensor:
        return kernels.moved(seen.mean, seen.mean, -self.factor)


@dataclass(frozen=True)
class SignFlip(Attack):
    """The opposite of the mean of honest vectors: -mean.

    Example:
        >>> import torch
        >>> SignFlip()(torch.tensor([[1.0], [3.0]]), f=1)
        tensor([[-2.]])
    """

    def craft(self, seen: Knowledge) -> Tensor:
        return -seen.mean


@dataclass(frozen=True)
class Gaussian(Attack):
    """Noise: f independent vectors of N(0, std^2) coordinates.

    Args:
        std: standard deviation, > 0; 200 where the attack was introduced.

    Convention: on a device the numbers are drawn there, and are others than in main memory; both are a function of
        (seed, step) alone.

    Example:
        >>> import torch
        >>> Gaussian()(torch.zeros(3, 2), f=4).shape
        torch.Size([4, 2])

    Reference: Blanchard et al., NeurIPS 2017.
    """

    std: float = 200.0

    exempt: ClassVar[Mapping[str, str]] = {"FINITE": "its noise exceeds the range of half precision where std is large"}

    def __post_init__(self) -> None:
        set_real(self, "std", "a finite std > 0", lambda std: 0 < std < inf)

    def craft(self, seen: Knowledge) -> Tensor:
        return randomness.standard_normal(seen.random, (seen.f, seen.honest.shape[1]), seen.honest) * self.std


@dataclass(frozen=True)
class Zero(Attack):
    """Nothing: zero vectors, as from a worker that stopped computing.

    Example:
        >>> import torch
        >>> Zero()(torch.ones(3, 2), f=1)
        tensor([[0., 0.]])
    """

    def craft(self, seen: Knowledge) -> Tensor:
        return seen.honest.new_zeros(seen.honest.shape[1])


@dataclass(frozen=True)
class NaN(Attack):
    """Not a number in every coordinate: one such vector destroys an average for ever.

    Example:
        >>> import torch
        >>> NaN()(torch.ones(3, 2), f=1)
        tensor([[nan, nan]])
    """

    exempt: ClassVar[Mapping[str, str]] = {"FINITE": "not finite on purpose"}

    def craft(self, seen: Knowledge) -> Tensor:
        return seen.honest.new_full((seen.honest.shape[1],), float("nan"))


@dataclass(frozen=True)
class Inf(Attack):
    """Infinity in every coordinate.

    Args:
        sign: "+", "-", or "mixed", which alternates from coordinate to coordinate.

    Example:
        >>> import torch
        >>> Inf(sign="mixed")(torch.ones(3, 2), f=1)
        tensor([[inf, -inf]])
    """

    sign: Literal["+", "-", "mixed"] = "+"

    exempt: ClassVar[Mapping[str, str]] = {"FINITE": "not finite on purpose"}

    def __post_init__(self) -> None:
        require(self, self.sign in ("+", "-", "mixed"), 'sign "+", "-" or "mixed"', self.sign)

    def craft(self, seen: Knowledge) -> Tensor:
        vector = seen.honest.new_full((seen.honest.shape[1],), float("-inf" if self.sign == "-" else "inf"))
        if self.sign == "mixed":
            vector[1::2] = float("-inf")
        return vector


@dataclass(frozen=True)
class Mimic(Attack):
    """All f copy one honest worker, the one furthest along the direction in which honest vectors differ most.

    Nothing that is sent looks wrong; one worker's data is only counted f times more than it should be.

    z = the top principal direction of the centred honest vectors;  x_i of greatest |<z, x_i>|

    With a warm-up z is the direction of greatest variance over steps, learnt by Oja's iteration, and i is kept behind
    it. At step t = 0, 1, ..., with s_i the mean so far of <z, x_i>:

    mu <- (t mu + mean) / (t + 1);  C = sum over i of (x_i - mu) (x_i - mu)^T
    z <- (t z + C z / ||C z||) / (t + 1), brought to norm 1;  x_i of greatest |s_i|

    Args:
        warmup: over how many steps z and i are learnt, >= 0; 0 looks at each step alone, and remembers nothing.

    Shape: [h, d] -> f equal rows [f, d].
    Cost: one pass for h x h distances; the eigenvectors are found between them. In a warm-up three passes and 2 d
        numbers to remember; behind it next to nothing.
    Convention: without a warm-up this is the form of one step, on honest vectors that carry the past in their momenta.
        Ties go to the lexicographically smaller vector; honest vectors that are not finite are never copied. In a
        warm-up z begins as the top principal direction, where the paper draws it; C z counts by its direction, so
        that lengths do not matter (not certain: the paper's step); i is the best so far; ties go to the first; behind
        it whatever worker i sends is copied.

    Example:
        >>> import torch
        >>> Mimic()(torch.tensor([[0.0, 1.0], [1.0, 1.0], [5.0, 1.0]]), f=1)
        tensor([[5., 1.]])

    Reference: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        set_whole(self, "warmup")

    @property
    def remembers(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  an option says it
        return self.warmup > 0

    @property
    def steady(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.warmup > 0

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return ALONE if h == 1 else None

    def craft(self, seen: Knowledge) -> Tensor | tuple[Tensor, Memory]:
        if self.warmup:
            return self._warming(seen)
        geometry = Geometry.of(seen.honest)
        good, axis = _principal(geometry)
        if not good.size:
            return seen.honest[0].clone()
        squared, norms = geometry.distances[np.ix_(good, good)], geometry.norms[good]
        inner = 0.5 * (norms[:, None] + norms[None, :] - squared)
        scores = np.full(geometry.n, inf)
        scores[good] = -np.abs((axis - axis.mean()) @ inner)
        return seen.honest[int(geometry.smallest(scores, 1)[0])].clone()

    def _warming(self, seen: Knowledge) -> tuple[Tensor, Memory]:
        honest, memory = seen.honest, seen.memory
        h = honest.shape[0]
        if isinstance(memory, tuple) and len(memory) == 1:  # whom to copy
            [chosen] = memory
            assert isinstance(chosen, Tensor)
            return honest.index_select(0, chosen)[0], memory
        origin = torch.zeros(honest.shape[1], dtype=torch.float64, device=honest.device)
        z, mu, scores, t = origin, origin, np.zeros(h), 0
        if memory is not None:
            z, mu, *numbers = cast(tuple[Tensor, ...], memory)
            scores, count = kernels.host(*numbers)
            t = int(count[0])
        _, toward, length = kernels.host(*along(honest, origin, z))  # -<x_i, z>, which is no number where x_i is none
        good = np.isfinite(toward)
        if not good.any():
            return honest[0].clone(), memory
        mean = seen.mean if good.all() else kernels.weighted_rows(honest, mean_weights(np.flatnonzero(good), h))
        mu = torch.lerp(mu, mean.double(), 1 / (t + 1))
        if length > 0:
            turned = _weighted(honest, -toward - float(kernels.host((mu * z).sum())), mu)
        else:
            found, axis = _principal(Geometry.of(honest))
            weights = np.zeros(h)
            weights[found] = axis - axis.mean() if found.size else 0.0
            turned = _weighted(honest, weights, origin)
        z = _unit(torch.lerp(z, turned, 1 / (t + 1)))
        _, projected, _ = kernels.host(*along(honest, origin, z))
        scores = (t * scores - np.where(good, projected, 0.0)) / (t + 1)
        best = int(np.argmax(np.where(good, np.abs(scores), -1.0)))
        if t + 1 < self.warmup:
            kept = (z, mu, kernels.there(scores, honest), kernels.there(np.array([t + 1]), honest))
        else:
            kept = (kernels.there(np.array([best]), honest),)
        return honest[best].clone(), kept


def _principal(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Which vectors are finite, and up to a constant the share of each in the direction in which they differ most."""
    good = np.flatnonzero(geometry.finite)
    if not good.size:
        return good, np.zeros(0)
    squared = geometry.distances[np.ix_(good, good)]
    # About the first honest vector rather than about their mean: nothing cancels, and one more centring follows.
    about = 0.5 * (squared[:, :1] + squared[:1] - squared)
    centred = about - about.mean(0) - about.mean(1)[:, None] + about.mean()
    return good, np.linalg.eigh(centred)[1][:, -1]


def _weighted(honest: Tensor, weights: np.ndarray, about: Tensor) -> Tensor:
    """The direction of the sum of w_i (x_i - about), in float64; those of no finite weight are left out."""
    weights = np.where(np.isfinite(weights), weights, 0.0)
    size = np.abs(weights).max(initial=0.0)
    weights = weights / size if size > 0 else weights
    return _unit(kernels.weighted_rows(honest, weights).double() - weights.sum() * about)


def _unit(x: Tensor) -> Tensor:
    """x / ||x||, and 0 of 0."""
    length = kernels.norms(x)
    return torch.where(length > 0, x / length, torch.zeros_like(x))
