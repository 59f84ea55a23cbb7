"""What an attack is, and what the adversary knows: the vectors of the honest workers, the defence, the last aggregate.

mean and std are those of the vectors that honest workers send (momentum included), per coordinate.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor

from .. import kernels, randomness
from ..algorithm import Algorithm
from ..checks import brief, kind_of, require, whole
from ..construction import Constructed
from ..geometry import power_below
from ..mixing import Mixing
from ..randomness import BARE, Draw
from ..rules import Rule
from ..stages import as_matrix, decide
from .memory import Memory, check_memory, own
from .task import Task

Defence = Callable[[Any], Any]
TRIED = BARE.fork()  # what an adversary tries a defence with
_NOT_ASKED: Any = object()  # for its memory


@dataclass(frozen=True, eq=False)
class ComposedDefence:
    """What the server does to n vectors, as an adversary may try it out: mixings, a rule, and the last aggregate.

    A value, so that trying it out advances nothing. Any callable [n, d] -> [d] may be a defence; this one shows its
    parts, which lets :class:`WorstCase` work on distances.

    Attributes:
        pre: mixings.
        rule: the rule behind them.
        previous: [d], the last aggregate, for rules that use it; or None.
        draw: what its rules and mixings draw: numbers like the server's, but others. An adversary knows how the server
            draws, not what.
        weights: [n] what each vector counts, for rules that weigh; or None.
        rows: which vectors its stages are shown, and in which order; None for all, as they come. Where fewer vectors
            are tried, those that are there.
    """

    pre: tuple[Mixing, ...]
    rule: Rule
    previous: Tensor | None = None
    draw: Draw = TRIED
    weights: np.ndarray | None = None
    rows: np.ndarray | None = None

    @kernels.eager
    def __call__(self, x: Tensor) -> Tensor:
        rows = self.rows
        if rows is not None:
            kernels.varies("vectors are shown in another order each time")
            rows = rows[rows < len(x)]
        return decide(
            x, self.pre, self.rule, previous=self.previous, draw=self.draw, weights=self.weights, rows=rows
        ).aggregate


def as_defence(defence: Any, previous: Tensor | None = None) -> Defence | None:
    """A defence an attack can try: algorithms and rules with their parts in sight, other callables as they are."""
    if isinstance(defence, Algorithm):
        return ComposedDefence(defence.pre, defence.rule, previous)
    if isinstance(defence, Rule):
        return ComposedDefence((), defence, previous)
    return defence


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the adversary knows when it crafts its f vectors.

    Attributes:
        honest: [h, d] what honest workers send, as far as the threat model lets it be known: [k, d] where these are
            not all, or not those of the step; only read.
        f: how many vectors the adversary controls.
        defence: the composed defence, [n, d] -> [d], its state forked; or None.
        previous: [d], the last aggregate, for attacks that say so (``uses_previous``); None in the first step.
        random: the random numbers of this step.
        poisoned: [f, d] what the f workers would send if they followed the protocol on what the attack makes of their
            data (``poison``); or None. Only for attacks that say so (``poisons``).
        known: the moments of the honest vectors, where somebody has computed them already.
        memory: what the attack remembers of the step before, for attacks that say so (``remembers``); None in the first
            step.
        workers: n; None where the honest vectors are all there are.
    """

    honest: Tensor
    f: int
    defence: Defence | None
    previous: Tensor | None
    random: np.random.Generator
    poisoned: Tensor | None = None
    known: tuple[Tensor, Tensor] | None = None
    memory: Memory = None
    workers: int | None = None

    @property
    def h(self) -> int:
        """How many honest workers there are, of whom not all need be known."""
        return self.honest.shape[0] if self.workers is None else self.workers - self.f

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased standard deviation of the honest vectors, [d] and [d]; computed once, for all who ask."""
        return kernels.mean_and_std(self.honest) if self.known is None else self.known

    @property
    def mean(self) -> Tensor:
        """[d] the mean of the honest vectors."""
        return self.moments[0]

    @cached_property
    def unit(self) -> float:
        """1, or in double precision the power of two in which what honest vectors measure has squares in its range."""
        if self.honest.dtype != torch.float64:
            return 1.0
        # No coordinate is further from its mean than h - 1 standard deviations.
        size = float(kernels.host(torch.maximum(self.mean.abs(), self.moments[1].nan_to_num(0, inf)).max()))
        return 1.0 if not 0 < size < inf or 1e-60 < size < 1e60 else power_below(size)

    def copied(self) -> Knowledge:
        """The same, with tensors of its own: whatever is written there, nobody else sees."""
        defence = self.defence
        if isinstance(defence, ComposedDefence):
            held = (defence.previous, defence.weights, defence.rows)
            previous, weights, rows = (
                None if x is None else x.clone() if isinstance(x, Tensor) else x.copy() for x in held
            )
            defence = replace(defence, previous=previous, weights=weights, rows=rows)
        return replace(
            self,
            honest=self.honest.clone(),
            defence=defence,
            previous=None if self.previous is None else self.previous.clone(),
            poisoned=None if self.poisoned is None else self.poisoned.clone(),
            known=None if self.known is None else (self.known[0].clone(), self.known[1].clone()),
            memory=own(self.memory),
        )

    def same_vectors(self, other: Knowledge) -> bool:
        """Whether the vectors of workers are the same to the bit, NaN included."""
        pairs = [(self.honest, other.honest), (self.poisoned, other.poisoned)]
        return all(
            torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
            for mine, theirs in pairs
            if mine is not None and theirs is not None
        )

    def in_unit(self) -> Knowledge:
        """The same, with all vectors divided by ``unit``; without the defence, which knows lengths."""
        if self.unit == 1:
            return self
        return replace(
            self,
            honest=self.honest / self.unit,
            defence=None,
            previous=None if self.previous is None else self.previous / self.unit,
            poisoned=None if self.poisoned is None else self.poisoned / self.unit,
            known=None,
        )


@dataclass(frozen=True)
class Attack(Constructed):
    """An attack: the honest vectors to f Byzantine ones. An immutable value; subclasses write :meth:`craft`, and
    :meth:`check` where they cannot do with any h, f and d.

    An attack is a value, and keeps nothing in itself. One that says ``remembers = True`` answers (vectors, memory), and
    finds its memory of the step before in ``seen.memory``, None at first: a tensor, or a tuple of tensors, on the
    device of the vectors. Whoever runs it keeps that for it, and a run saves it, so that it goes on exactly. Others
    take what their papers carry from step to step from what an omniscient adversary sees anyway (the last aggregate,
    the momenta inside honest vectors), under "Convention" in each docstring.

    Example:
        >>> import varangian as vg
        >>> @dataclass(frozen=True)
        ... class Against(vg.Attack):
        ...     '''Against what honest vectors agree on, within their spread.'''
        ...
        ...     factor: float = 2.0
        ...
        ...     def craft(self, seen):
        ...         mean, deviation = seen.moments
        ...         return mean - self.factor * deviation * mean.sign()
        >>> len(vg.testing.check_attack(Against).passed)
        9
    """

    title: ClassVar[str] = ""  # what figures call it; its name if empty
    uses_previous: ClassVar[bool] = False  # whoever runs it must keep the last aggregate
    uses_defence: ClassVar[bool] = False
    poisons: ClassVar[bool] = False  # whoever runs it must have the f workers learn from what :meth:`poison` answers
    aims: ClassVar[bool] = False  # whoever evaluates must say how often what it wants is answered
    remembers: ClassVar[bool] = False  # craft answers (vectors, memory): whoever runs it must keep the latter
    steady: ClassVar[bool] = False  # what it remembers is of single workers, who must be the same in every step
    exempt: ClassVar[Mapping[str, str]] = {}  # what it does not claim: the name of a varangian.testing.Check, and why

    @overload
    def __call__(
        self, honest: Tensor | Sequence[Tensor], f: int, defence: Defence | Algorithm | None = None, *,
        previous: Any = None, random: np.random.Generator | None = None, poisoned: Any = None,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def __call__(
        self, honest: np.ndarray | Sequence[np.ndarray] | Sequence[Sequence[float]], f: int,
        defence: Defence | Algorithm | None = None, *,
        previous: Any = None, random: np.random.Generator | None = None, poisoned: Any = None,
    ) -> np.ndarray: ...  # fmt: skip
    @overload
    def __call__(
        self, honest: Tensor | Sequence[Tensor], f: int, defence: Defence | Algorithm | None = None, *,
        previous: Any = None, random: np.random.Generator | None = None, poisoned: Any = None, memory: Memory,
    ) -> tuple[Tensor, Memory]: ...  # fmt: skip
    @overload
    def __call__(
        self, honest: np.ndarray | Sequence[np.ndarray] | Sequence[Sequence[float]], f: int,
        defence: Defence | Algorithm | None = None, *,
        previous: Any = None, random: np.random.Generator | None = None, poisoned: Any = None, memory: Memory,
    ) -> tuple[np.ndarray, Memory]: ...  # fmt: skip
    @kernels.eager
    def __call__(
        self,
        honest: Any,
        f: int,
        defence: Defence | Algorithm | None = None,
        *,
        previous: Any = None,
        random: np.random.Generator | None = None,
        poisoned: Any = None,
        memory: Any = _NOT_ASKED,
    ) -> Any:
        """[h, d] -> [f, d], of the same kind, dtype and device; a new array, and the honest vectors are only read.
        With ``memory`` a pair: that, and what the attack remembers for the next step.

        Args:
            honest: the vectors of the h honest workers.
            f: how many vectors to craft, >= 0.
            defence: what the server does, for attacks that try it: a rule, an algorithm, or any [n, d] -> [d].
            previous: [d], the last aggregate, for attacks that use it.
            random: the source of random numbers; a fixed one by default, so that the call is reproducible.
            poisoned: [f, d], what the f workers would send had they learnt from poisoned data, for attacks on data.
            memory: what the call for the step before answered, None in the first step; only read. Left out, this is the
                first step, and what is remembered of it is not asked for.

        Example:
            >>> import torch, varangian as vg
            >>> attack, memory = vg.Mimic(warmup=2), None
            >>> for step in range(3):
            ...     sent, memory = attack(torch.tensor([[0.0], [1.0], [5.0 - 3 * step]]), f=1, memory=memory)
            >>> sent  # of the worker who stood out in the first two steps
            tensor([[-1.]])
        """
        matrix, restore = as_matrix(self, honest)
        f = whole(self, "f", f)
        asked = memory is not _NOT_ASKED
        memory = memory if asked else None
        if f == 0:
            nobody = restore(matrix.new_empty(0, matrix.shape[1]))
            return (nobody, memory) if asked else nobody
        if memory is not None:
            require(self, self.remembers, "no memory, since it remembers nothing", memory)
            check_memory(self, memory, matrix.device)
        if previous is not None:
            previous = torch.as_tensor(previous, dtype=matrix.dtype, device=matrix.device).detach()
        if poisoned is not None:
            poisoned = as_matrix(self, poisoned)[0].to(matrix)
        random = randomness.generator(0, "attack") if random is None else random
        seen = Knowledge(matrix, f, as_defence(defence, previous), previous, random, poisoned, memory=memory)
        crafted, memory = self.crafted(seen)
        self.warn_if_idle(matrix.shape[0], f)
        # Rows may be copies of one in one memory, as those that expand makes.
        sent = restore(crafted.expand(f, -1).clone() if crafted.ndim == 1 else crafted.contiguous())
        return (sent, own(memory)) if asked else sent

    @abstractmethod
    def craft(self, seen: Knowledge) -> Tensor | tuple[Tensor, Memory]:
        """A new [d] that all f workers send, or a new [f, d]; f >= 1. With ``remembers`` that and the memory for the
        next step."""

    def check(self, h: int, f: int, d: int | None = None) -> None:
        """Raises ValueError where the attack is not defined for h honest vectors and f >= 1 of its own, of d
        coordinates where these are known already. A run asks before it starts."""
        require(self, h >= 1, "at least 1 honest vector", h)

    def check_knowing(self, known: int, h: int, f: int, d: int | None = None) -> None:
        """The same where only so many vectors are known, which the attack takes for all."""
        self.check(known, f, d)

    def check_task(self, task: Task) -> None:
        """Raises ValueError where the attack is not defined for what is to be learned. A run asks before it starts."""

    def poison(self, inputs: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """What its f workers learn from, in place of inputs [f, b, ...] and labels [f, b], which are only read; asked
        of attacks that say so (``poisons``)."""
        return inputs, labels

    def trigger(self, inputs: Tensor, task: Task) -> Tensor:
        """Inputs [B, ...] as the attack would have them at a test; asked of attacks that say so (``aims``)."""
        return inputs

    def wanted(self, labels: Tensor, task: Task) -> Tensor:
        """The classes [N] that it wants answered then, -100 for examples that do not count; asked likewise."""
        raise NotImplementedError(f"{type(self).__name__} aims (aims = True): it must have wanted(labels, task).")

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        """Why nobody is attacked with these options, for h honest vectors, f >= 1 of its own and labels of so many
        classes, where these are known; None where somebody is."""
        return None

    def warn_if_idle(self, h: int, f: int, classes: int | None = None, known: int | None = None) -> None:
        """Says once why nobody is attacked; for whoever runs the attack, before the first step. ``known``: how many
        honest vectors it sees, where these are not all."""
        reason = self.idle(h, f, classes) or (self.idle(1, f, classes) if known == 1 else None)
        if reason is not None:
            warnings.warn(f"{brief(self)} attacks nobody with n = {h + f}, f = {f}: {reason}.", stacklevel=4)

    def send(self, seen: Knowledge) -> Tensor:
        """What :meth:`crafted` says is sent."""
        return self.crafted(seen)[0]

    def crafted(self, seen: Knowledge) -> tuple[Tensor, Memory]:
        """:meth:`craft` as whoever runs an attack calls it: asked what is possible, what is sent and what is to be
        remembered looked at; the latter is None of attacks that remember nothing, and may be memory of others.

        Half precision is crafted in single precision and rounded once, since deviations and squares soon leave its
        range; what is too large for it is sent as its greatest number.

        Raises:
            ValueError: sizes that the attack cannot do with, or an attack that does not send what it must.
        """
        (h, d), f, dtype = seen.honest.shape, seen.f, seen.honest.dtype
        require(self, h >= 1, "at least 1 honest vector", h)
        self.check_knowing(h, seen.h, f, d)
        half = dtype in (torch.float16, torch.bfloat16)
        came = self.craft(_widened(seen) if half else seen)
        memory = None
        if self.remembers:
            if not (isinstance(came, tuple) and len(came) == 2):
                kind = f"a tuple of {len(came)}" if isinstance(came, tuple) else kind_of(came)
                raise ValueError(
                    f"{type(self).__name__} remembers (remembers = True): it must answer (vectors, memory), got {kind}."
                )
            crafted, memory = came
            check_memory(self, memory, seen.honest.device)
        elif isinstance(came, tuple):
            raise ValueError(
                f"{type(self).__name__} must send vectors, got a tuple; to remember something it must say remembers = "
                "True."
            )
        else:
            crafted = came
        wanted = f"{type(self).__name__} must send [d] = [{d}] or [f, d] = [{f}, {d}] of {dtype}"
        if not isinstance(crafted, Tensor):
            raise ValueError(f"{wanted}, got {type(crafted).__name__}.")
        if list(crafted.shape) not in ([d], [f, d]):
            raise ValueError(f"{wanted}, got shape {list(crafted.shape)}.")
        if half and crafted.dtype == torch.float32:
            limit = torch.finfo(dtype).max
            crafted = torch.where(crafted.isfinite(), crafted.clamp(-limit, limit), crafted).to(dtype)
        if crafted.dtype != dtype or crafted.device != seen.honest.device:
            raise ValueError(f"{wanted} on {seen.honest.device}, got {crafted.dtype} on {crafted.device}.")
        return crafted, memory


def _widened(seen: Knowledge) -> Knowledge:
    """The same in single precision."""
    defence, dtype = seen.defence, seen.honest.dtype

    def asked(x: Any) -> Any:
        assert defence is not None
        return defence(x.to(dtype)).float()

    return replace(
        seen,
        honest=seen.honest.float(),
        defence=defence if defence is None or isinstance(defence, ComposedDefence) else asked,
        previous=None if seen.previous is None else seen.previous.float(),
        poisoned=None if seen.poisoned is None else seen.poisoned.float(),
        known=None,
    )


MEAN = "the honest mean itself is sent"
ALONE = "one honest vector has no spread, and is sent again"
