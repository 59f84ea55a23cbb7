"""What an adversary knows of the vectors of a step: everything, its own workers', some workers', those of the past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from .. import kernels, randomness
from ..checks import require, set_whole
from ..construction import Constructed


@dataclass(frozen=True)
class ThreatModel(Constructed):
    """Whose vectors an adversary knows as it crafts its own: all those of the honest workers of the step.

    An attack crafts from what is known: ``seen.honest``, its mean and standard deviation are of these vectors, and
    nothing that it is handed holds any other. It takes the vectors known for all that there are, but for what n and
    f alone say. Of every kind an adversary knows the protocol: n, how many attack, the rule, which it may try, and the
    last aggregate, which every worker can tell from two models.

    Example:
        >>> import varangian as vg
        >>> vg.Spied(k=3).known(h=8, f=3)
        3
    """

    learns: ClassVar[bool] = False  # whoever runs it must have the f workers learn as if they were honest
    looks_back: ClassVar[bool] = False  # whoever runs it must keep the honest vectors of the step before

    def check(self, h: int, f: int) -> None:
        """Raises ValueError where it is not defined for h honest workers and f >= 1 that attack."""

    def known(self, h: int, f: int) -> int:
        """How many vectors are known."""
        return h

    def vectors(self, honest: Tensor, own: Tensor | None, last: Tensor | None, seed: int) -> Tensor | None:
        """[k, d] those known, of which whoever runs the attack hands on a copy; None where none are.

        Args:
            honest: [h, d] what honest workers send in this step.
            own: [f, d] what the f workers would send if they were honest, where it ``learns``.
            last: [h, d] what honest workers sent in the step before, where it ``looks_back``; None in the first step.
            seed: of the run.
        """
        return honest


@dataclass(frozen=True)
class Omniscient(ThreatModel):
    """All that honest workers send in this step: the adversary of the paper, and of most.

    Example:
        >>> Omniscient().known(h=8, f=3)
        8
    """


@dataclass(frozen=True)
class OwnData(ThreatModel):
    """What its own f workers would send if they followed the protocol, on their share of the data: nobody is spied on.

    They sample, clip and keep their momentum as honest ones do, whatever they send.

    Shape: attacks see [f, d].
    Cost: the gradients of f more workers.

    Example:
        >>> OwnData().known(h=8, f=3)
        3
    """

    learns: ClassVar[bool] = True

    def known(self, h: int, f: int) -> int:
        return f

    def vectors(self, honest: Tensor, own: Tensor | None, last: Tensor | None, seed: int) -> Tensor | None:
        assert own is not None
        return own


@dataclass(frozen=True)
class Spied(ThreatModel):
    """What k of the honest workers send in this step: always the same ones, drawn by the seed of the run.

    Args:
        k: how many, >= 1 and at most as many as are honest.

    Shape: attacks see [k, d].

    Example:
        >>> import torch
        >>> Spied(k=2).vectors(torch.arange(8.0).reshape(4, 2), None, None, seed=1).shape
        torch.Size([2, 2])
    """

    k: int = 1

    def __post_init__(self) -> None:
        set_whole(self, "k", least=1)

    def check(self, h: int, f: int) -> None:
        require(self, self.k <= h, f"k of at most h = {h}, the honest workers", self.k)

    def known(self, h: int, f: int) -> int:
        return self.k

    def vectors(self, honest: Tensor, own: Tensor | None, last: Tensor | None, seed: int) -> Tensor | None:
        drawn = randomness.generator(seed, "spied").permutation(honest.shape[0])[: self.k]
        return honest.index_select(0, kernels.there(np.sort(drawn), honest))


@dataclass(frozen=True)
class LastRound(ThreatModel):
    """What honest workers sent in the step before; of this step nothing.

    In the first step nothing is known, no attack is asked, and the f workers send zeros.

    Shape: attacks see [h, d].
    Cost: a copy of the honest vectors in each step.

    Example:
        >>> LastRound().known(h=8, f=3)
        8
    """

    looks_back: ClassVar[bool] = True

    def vectors(self, honest: Tensor, own: Tensor | None, last: Tensor | None, seed: int) -> Tensor | None:
        return last


def learns_twice(knowledge: ThreatModel, attack: object) -> str:
    """Why the two cannot go together, where the attack needs what its workers learn from poisoned data."""
    return (
        f"{type(knowledge).__name__} and {type(attack).__name__} both ask what the attackers' workers learn, from "
        "data as they are and from poisoned ones; use another knowledge with this attack."
    )


KNOWLEDGE: dict[str, type[ThreatModel]] = {
    "omniscient": Omniscient,
    "own": OwnData,
    "spied": Spied,
    "last-round": LastRound,
}
"""What adversaries know, by name."""
