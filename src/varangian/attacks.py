"""What the adversary sends, knowing everything: the vectors of the honest workers, the defence, the last aggregate.

mean and std are those of the vectors that honest workers send (momentum included), per coordinate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from . import kernels, randomness
from .checks import require
from .rules.core import as_matrix

Defence = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the adversary knows when it crafts its f vectors.

    Attributes:
        honest: [h, d] what honest workers send; only read.
        f: how many vectors the adversary controls.
        defence: the composed defence, [n, d] -> [d], its state forked; or None.
        previous: [d], the last aggregate; or None.
        random: the random numbers of this step.
    """

    honest: Tensor
    f: int
    defence: Defence | None
    previous: Tensor | None
    random: np.random.Generator

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased standard deviation of the honest vectors, [d] and [d]; computed once, for all who ask."""
        return kernels.mean_and_std(self.honest)

    @property
    def mean(self) -> Tensor:
        return self.moments[0]


@dataclass(frozen=True)
class Attack(ABC):
    """An attack: the honest vectors to f Byzantine ones. An immutable value; subclasses write :meth:`craft`."""

    def __call__(
        self,
        honest: Any,
        f: int,
        defence: Defence | None = None,
        previous: Any = None,
        random: np.random.Generator | None = None,
    ) -> Any:
        """[h, d] -> [f, d], of the same kind, dtype and device; a new array, and the honest vectors are only read.

        Args:
            honest: the vectors of the h honest workers.
            f: how many vectors to craft, >= 0.
            defence: what the server does, [n, d] -> [d], for attacks that try it.
            previous: [d], the last aggregate, for attacks that use it.
            random: the source of random numbers; a fixed one by default, so that the call is reproducible.
        """
        matrix, restore = as_matrix(self, honest)
        require(self, isinstance(f, int) and f >= 0, "an integer f >= 0", f)
        if f == 0:
            return restore(matrix.new_empty(0, matrix.shape[1]))
        if previous is not None:
            previous = torch.as_tensor(previous, dtype=matrix.dtype, device=matrix.device)
        random = randomness.generator(0, "attack") if random is None else random
        crafted = self.craft(Knowledge(matrix, f, defence, previous, random))
        return restore(crafted.expand(f, -1).clone() if crafted.ndim == 1 else crafted)

    @abstractmethod
    def craft(self, seen: Knowledge) -> Tensor:
        """A new [d] that all f workers send, or a new [f, d]; f >= 1."""


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

    Example:
        >>> import torch
        >>> Little(factor=1.0)(torch.tensor([[0.0], [2.0]]), f=1)
        tensor([[-0.4142]])

    Reference: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning",
    NeurIPS 2019.
    """

    factor: float | None = 1.5
    sign: int = -1
    ddof: int = 1

    def __post_init__(self) -> None:
        require(self, self.factor is None or np.isfinite(self.factor), "a finite factor (or None)", self.factor)
        require(self, self.sign in (-1, 1), "sign -1 or 1", self.sign)
        require(self, self.ddof in (0, 1), "ddof 0 or 1", self.ddof)

    def craft(self, seen: Knowledge) -> Tensor:
        h = seen.honest.shape[0]
        require(self, h > self.ddof, f"at least {self.ddof + 1} honest vectors", h)
        mean, std = seen.moments if h > 1 else (seen.mean, torch.zeros_like(seen.mean))
        factor = original_factor(h + seen.f, seen.f) if self.factor is None else self.factor
        return torch.add(mean, std, alpha=self.sign * factor * (1.0 if self.ddof else ((h - 1) / h) ** 0.5))


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

    factor: float = 1.1

    def __post_init__(self) -> None:
        require(self, np.isfinite(self.factor), "a finite factor", self.factor)

    def craft(self, seen: Knowledge) -> Tensor:
        return torch.add(seen.mean, seen.mean, alpha=-self.factor)


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

    Example:
        >>> import torch
        >>> Gaussian()(torch.zeros(3, 2), f=4).shape
        torch.Size([4, 2])

    Reference: Blanchard et al., NeurIPS 2017.
    """

    std: float = 200.0

    def __post_init__(self) -> None:
        require(self, 0 < self.std < np.inf, "a finite std > 0", self.std)

    def craft(self, seen: Knowledge) -> Tensor:
        noise = seen.random.standard_normal((seen.f, seen.honest.shape[1]), dtype=np.float32)
        return torch.from_numpy(noise).to(seen.honest) * self.std


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

    def __post_init__(self) -> None:
        require(self, self.sign in ("+", "-", "mixed"), 'sign "+", "-" or "mixed"', self.sign)

    def craft(self, seen: Knowledge) -> Tensor:
        vector = seen.honest.new_full((seen.honest.shape[1],), float("-inf" if self.sign == "-" else "inf"))
        if self.sign == "mixed":
            vector[1::2] = float("-inf")
        return vector


ATTACKS: dict[str, type[Attack]] = {
    "little": Little,
    "empire": Empire,
    "sign-flip": SignFlip,
    "gaussian": Gaussian,
    "zero": Zero,
    "nan": NaN,
    "inf": Inf,
}
