"""Attackers who do not all send the same: about one vector, by two plans, or some so that another is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import kernels, randomness
from ..checks import require, set_real
from ..references import NotImported
from .base import ALONE, Attack, Knowledge
from .memory import Memory
from .task import Task


@dataclass(frozen=True)
class Made(Attack):
    """An attack made of others, which its options name: it asks whoever runs it for what they ask for."""

    options: ClassVar[tuple[str, ...]] = ()  # those that name attacks
    table: ClassVar[Mapping[str, type[Attack]]] = {}  # of all attacks by name

    def __post_init__(self) -> None:
        for name in self.options:
            object.__setattr__(self, name, self._as_text(getattr(self, name)))
        assert self.others  # all that they name can be made

    @cached_property
    def others(self) -> tuple[Attack, ...]:
        """Those that it is made of."""
        return tuple(self._named(name) for name in self.options)

    def _as_text(self, value: Any) -> Any:
        """An attack as the text that names it, where one does, so that an experiment can; all else as it is."""
        from ..specs import describe

        try:
            return describe(value, (self.table,)) if isinstance(value, Attack) else value
        except ValueError:  # a class without a name
            return value

    def _named(self, option: str) -> Attack:
        """The attack that an option names: one by name with its options, as text, or an attack itself."""
        from ..specs import make

        owner, value = type(self).__name__, getattr(self, option)
        if isinstance(value, str):
            try:
                value = make("attack", value, self.table)
            except NotImported:
                raise
            except ValueError as error:
                raise ValueError(f"{owner}: {option}: {error}") from None
        wanted = f"{option} as the name of an attack, with its options, or as an attack"
        require(self, isinstance(value, Attack), wanted, value)
        return value

    @property
    def uses_previous(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  the others say it
        return any(one.uses_previous for one in self.others)

    @property
    def uses_defence(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(one.uses_defence for one in self.others)

    @property
    def poisons(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(one.poisons for one in self.others)

    @property
    def aims(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(one.aims for one in self.others)

    @property
    def remembers(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(one.remembers for one in self.others)

    @property
    def steady(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(one.steady for one in self.others)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        for one in self.others:
            one.check(h, f, d)

    def check_knowing(self, known: int, h: int, f: int, d: int | None = None) -> None:
        for one in self.others:
            one.check_knowing(known, h, f, d)

    def check_task(self, task: Task) -> None:
        for one in self.others:
            one.check_task(task)

    def poison(self, inputs: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        return next((one for one in self.others if one.poisons), self.others[0]).poison(inputs, labels, task)

    def trigger(self, inputs: Tensor, task: Task) -> Tensor:
        return self._aiming.trigger(inputs, task)

    def wanted(self, labels: Tensor, task: Task) -> Tensor:
        return self._aiming.wanted(labels, task)

    @property
    def _aiming(self) -> Attack:
        """Whose success evaluations count: of the first that aims."""
        return next((one for one in self.others if one.aims), self.others[0])


@dataclass(frozen=True)
class Scattered(Made):
    """Each attacker sends what another attack crafts and noise of its own, which adds up to nothing: together they push
    as that attack does, and no two of them look alike.

    a_j + size * std * (z_j - mean of the z),  z_j ~ N(0, 1) in each coordinate, j = 1..f

    Args:
        attack: whose vectors a_j these are: a name, with its options as text, or an attack.
        size: of the noise, in standard deviations of honest vectors, > 0; at 1 the attackers are as far apart as honest
            workers are.

    Shape: [h, d] -> [f, d], all different; their mean is that of the attack. A single attacker sends what it crafts.
    Cost: that of the attack, f d random numbers, and two passes over [f, d].
    Convention: against defences that look for vectors that resemble each other. The paper sends pairs, one with the
        noise and one against it (fairly certain); here the noise of all f adds up to zero, so that f may be odd.
        Rounding is all that is left of the sum. As for ``gaussian``, numbers drawn on a device are others.

    Example:
        >>> import torch, varangian as vg
        >>> honest = torch.tensor([[0.0, 1.0], [2.0, 1.5], [4.0, 2.0]])
        >>> sent = vg.Scattered("empire")(honest, f=4)
        >>> bool((sent[0] != sent[1]).all()), sent.mean(0)
        (True, tensor([-0.2000, -0.1500]))

    Reference: Fung, Yoon, Beschastnikh, "Mitigating Sybils in Federated Learning Poisoning", 2018, where Sybils add
    noise that adds up to zero.
    """

    attack: str | Attack = "little"
    size: float = 1.0

    options: ClassVar[tuple[str, ...]] = ("attack",)

    def __post_init__(self) -> None:
        Made.__post_init__(self)
        set_real(self, "size", "a finite size > 0", lambda size: 0 < size < inf)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return self.others[0].idle(h, f, classes)

    def craft(self, seen: Knowledge) -> Tensor | tuple[Tensor, Memory]:
        crafted, memory = self.others[0].crafted(seen)
        if seen.f > 1 and seen.honest.shape[0] > 1:  # one attacker alone has nobody to make up for its noise
            noise = randomness.standard_normal(seen.random, (seen.f, seen.honest.shape[1]), seen.honest)
            noise -= noise.mean(0)
            crafted = noise.mul_(seen.moments[1] * self.size).add_(crafted)
        return (crafted, memory) if self.remembers else crafted


@dataclass(frozen=True)
class Divided(Made):
    """Some attackers follow one attack, the rest another: half push one way, half another, or some learn from wrong
    labels while the others craft gradients.

    the first round(share * f) of them send what the one crafts, the others what the other does

    Args:
        first, second: the two attacks: names, with their options as text, or attacks.
        share: of those that follow the first, in [0, 1]; halves are rounded up, so that a single attacker follows it.

    Shape: [h, d] -> [f, d].
    Cost: that of both.
    Convention: all f know of each other: both attacks craft for f attackers, and each gives the vectors of its own.
        Each remembers for itself. Of attacks on data each poisons those of its own workers; where both aim at certain
        examples, evaluations count the success of the first.

    Example:
        >>> import torch, varangian as vg
        >>> vg.Divided("sign-flip", "zero")(torch.tensor([[1.0], [3.0]]), f=3).flatten()
        tensor([-2., -2.,  0.])
    """

    first: str | Attack = "little"
    second: str | Attack = "empire"
    share: float = 0.5

    options: ClassVar[tuple[str, ...]] = ("first", "second")

    def __post_init__(self) -> None:
        Made.__post_init__(self)
        set_real(self, "share", "a share in [0, 1]", lambda share: 0 <= share <= 1)

    def followers(self, f: int) -> int:
        """How many of f follow the first attack.

        Example:
            >>> import varangian as vg
            >>> [vg.Divided().followers(f) for f in range(5)]
            [0, 1, 1, 2, 2]
        """
        return int(self.share * f + 0.5)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        reasons = [one.idle(h, f, classes) for one in self.others]
        first = self.followers(f)
        asked = [reason for reason, many in zip(reasons, (first, f - first), strict=True) if many]
        return None if None in asked else asked[0]

    def poison(self, inputs: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        first = self.followers(labels.shape[0])
        made = [
            one.poison(inputs[rows], labels[rows], task)
            for one, rows in zip(self.others, (slice(first), slice(first, None)), strict=True)
            if labels[rows].shape[0]
        ]
        return torch.cat([one for one, _ in made]), torch.cat([one for _, one in made])

    def craft(self, seen: Knowledge) -> Tensor | tuple[Tensor, Memory]:
        memories = seen.memory if isinstance(seen.memory, tuple) else (None, None)
        rows, kept = [], []
        for one, memory in zip(self.others, memories, strict=True):
            crafted, memory = one.crafted(replace(seen, memory=memory, known=seen.moments))
            rows.append(crafted.expand(seen.f, -1))
            kept.append(memory)
        first = self.followers(seen.f)
        sent = torch.cat([rows[0][:first], rows[1][first:]])
        return (sent, tuple(kept)) if self.remembers else sent


@dataclass(frozen=True)
class Decoys(Attack):
    """All attackers but one send a vector far away, which nobody takes, but which moves the middle of all vectors; the
    last one stands in that middle.

    b = mean - reach * s * mean / ||mean||,  s = ||std||, f - 1 times;  (h mean + (f - 1) b) / (n - 1), once

    Args:
        reach: how far the decoys are, in deviations s of honest vectors; any distance will do.

    Shape: [h, d] -> [f, d], of which f - 1 are equal; a single attacker is a decoy.
    Cost: one pass for the moments.
    Convention: against rules that choose the vector with the least sum of squared distances to all others, which is the
        one nearest to the barycentre of all n: there the last attacker stands. Krum, which looks at the nearest
        n - f - 2 of each, was made to resist it, and so does ``medoid``, whose distances are not squared. "Far away"
        has a direction here: against the mean.

    Example:
        >>> import torch
        >>> Decoys(reach=10.0)(torch.tensor([[1.0], [2.0], [3.0]]), f=2).flatten()
        tensor([-8.0000, -0.5000])

    Reference: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017.
    """

    reach: float = 100.0

    def __post_init__(self) -> None:
        set_real(self, "reach", "a finite reach > 0", lambda reach: 0 < reach < inf)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return ALONE if h == 1 else None

    def craft(self, seen: Knowledge) -> Tensor:
        h, f, mean = seen.h, seen.f, seen.mean
        spread = kernels.norms(seen.moments[1]) if seen.honest.shape[0] > 1 else torch.zeros_like(kernels.norms(mean))
        length = kernels.norms(mean)
        against = -mean / torch.where(length > 0, length, torch.ones_like(length))
        away = against * (spread * self.reach).to(mean.dtype)
        sent = torch.add(mean, away).expand(f, -1).clone()
        if f > 1:
            sent[-1] = torch.add(mean, away, alpha=(f - 1) / (h + f - 1))
        return sent
