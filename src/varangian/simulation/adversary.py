"""The workers that attack: what they learn from, what they know and remember, and what they send."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..core import kernels, randomness
from ..core.attacks import (
    Attack,
    ComposedDefence,
    Knowledge,
    Memory,
    Omniscient,
    Task,
    ThreatModel,
    learns_twice,
    own,
    parts,
    poisoned,
)
from ..core.checks import kind_of
from .clients import Population
from .gradients import Batch
from .identity import is_ours


class Adversary:
    """Whoever controls the Byzantine workers of a simulation, with all that it carries from step to step.

    Args:
        attack: what they send; None where nobody attacks.
        knowledge: what they know of what honest workers send.
        workers: n.
        d: how many coordinates a vector has.
        attackers: how many of the n attack in every step; None where it is other workers in each.
        task: what is to be learned.

    Attributes:
        knowledge: None where it is everything, or nobody attacks.
        learns: whether attackers compute gradients too.
        own: whether somebody else's code is among its parts.
        memory: what the attack remembers.
        previous: [d], the last aggregate, where the attack looks at it.
        last: [h, d], what honest workers sent in the step before, where the threat model knows that.
    """

    def __init__(
        self, attack: Attack | None, knowledge: ThreatModel, *, workers: int, d: int, attackers: int | None, task: Task
    ) -> None:
        if attack is not None and type(attack).__call__ is not Attack.__call__:
            raise ValueError(f"{type(attack).__name__} has a __call__ of its own, which no run calls; override craft.")
        self.attack, self.workers, self.d, self.task = attack, workers, d, task
        self.changing = attackers is None
        attacks = attack is not None and attackers != 0
        self.poisons = attack is not None and attack.poisons
        self.knowledge = None if type(knowledge) is Omniscient or not attacks else knowledge
        learns = self.knowledge is not None and self.knowledge.learns
        if learns and self.poisons:
            raise ValueError(learns_twice(knowledge, attack))
        self.learns = self.poisons or learns
        self.uses_previous = attack is not None and attack.uses_previous
        self.remembers = attack is not None and attack.remembers
        self.looks_back = self.knowledge is not None and self.knowledge.looks_back
        self.own = attack is not None and not all(is_ours(part) for part in parts(attack))
        self.memory: Memory = None
        self.previous: Tensor | None = None
        self.last: Tensor | None = None
        self.older: Tensor | None = None  # what honest workers sent before that, to be written over
        self._unable: dict[int, str | None] = {}
        if attack is not None and attackers:
            attack.warn_if_idle(workers - attackers, attackers, task.classes or None, self.check(attackers))

    @property
    def steady(self) -> bool:
        """Whether each of its steps asks for the same work: it looks at nothing that lies elsewhere each time."""
        other = self.own or self.uses_previous or self.poisons or self.remembers
        return not other and self.knowledge is None

    def check(self, f: int) -> int:
        """How many vectors are known to f >= 1 attackers; raises ValueError where they cannot attack."""
        assert self.attack is not None
        h = known = self.workers - f
        if self.knowledge is not None:
            self.knowledge.check(h, f)
            known = self.knowledge.known(h, f)
        self.attack.check_knowing(known, h, f, self.d)
        if self.task.classes:
            self.attack.check_task(self.task)
        return known

    def fault(self, f: int) -> str | None:
        """Why f attackers cannot attack in a round; None where they can."""
        if f not in self._unable:
            self._unable[f] = None
            try:
                self.check(f)
            except ValueError as error:
                self._unable[f] = str(error)
        return self._unable[f]

    def check_rounds(self, population: Population) -> None:
        """Warns of rounds in which the attack is not defined; raises ValueError where it is in none."""
        assert self.attack is not None
        chances = {f: p for f, p in population.chances().items() if f}
        faults = {f: self.fault(f) for f in chances}
        able = [f for f, fault in faults.items() if fault is None]
        if faults and not able:
            raise ValueError(faults[max(chances, key=lambda f: chances[f])])
        if len(able) < len(faults):
            f = max((f for f, fault in faults.items() if fault is not None), key=lambda f: chances[f])
            share = sum(p for k, p in chances.items() if k not in able)
            warnings.warn(
                f"in {share:.2g} of the rounds, as with {f} attackers among {self.workers}, there is no attack, and "
                f"zeros are sent: {faults[f]}",
                stacklevel=4,
            )
        if able:
            self.attack.warn_if_idle(self.workers - able[-1], able[-1], self.task.classes or None, self.check(able[-1]))

    def poison(self, batch: Batch, h: int, seed: int, draw: int) -> Batch:
        """The batch with what the workers from h on learn from in place of what they sampled."""
        # Numbers of its own, of which none leads to the seed of the run; and memory of its own, for code of others.
        random = randomness.generator(randomness.Draw(seed, draw).fork().seed, "poison")
        inputs, labels = (x[h:].clone() if self.own else x[h:] for x in (batch.inputs, batch.labels))
        changed, wrong = poisoned(self.attack, inputs, labels, replace(self.task, random=random))
        same = changed is inputs and not self.own
        return replace(
            batch,
            inputs=batch.inputs if same else torch.cat([batch.inputs[:h], changed]),
            labels=torch.cat([batch.labels[:h], wrong]),
        )

    def knows(
        self, vectors: Tensor, h: int, defence: ComposedDefence, draw: randomness.Draw, *, lazily: bool,
        moments: tuple[Tensor, Tensor] | None,
    ) -> Knowledge:  # fmt: skip
        """All that there is to know in a step.

        Args:
            vectors: [n, d], the honest ones first, and behind them those of workers of a data attack.
            h: how many are honest.
            defence: what the server will do.
            draw: its own numbers of this step, from which none of the server's follow.
            lazily: whether a generator is made only if it is used.
            moments: mean and standard deviation of the honest vectors, where somebody has them.
        """
        f = vectors.shape[0] - h
        random = self._random(draw, lazily)
        poisons = vectors[h:] if self.poisons and f else None
        return Knowledge(vectors[:h], f, defence, self.previous, random, poisons, moments, self.memory)

    def _random(self, draw: randomness.Draw, lazily: bool) -> np.random.Generator:
        """Keyed by what does not lead to the seed of the run: the key can be read off the generator."""
        made = partial(randomness.generator, draw.seed, "attack")
        return cast(np.random.Generator, _WhenAsked(made)) if lazily else made()

    def craft(self, seen: Knowledge, vectors: Tensor, *, apart: bool, seed: int) -> tuple[Tensor | None, Memory]:
        """[d] or [f, d], what the f attackers send, and what they remember then; None where nobody attacks.

        Args:
            seen: all that there is to know.
            vectors: [n, d] of the step.
            apart: whether the rows of the attackers hold vectors that they learned.
            seed: of the run.
        """
        if self.attack is None or not seen.f:
            return None, self.memory
        able = not self.changing or self.fault(seen.f) is None
        known = None if not able else seen if self.knowledge is None else self._known_of(seen, vectors, apart, seed)
        if known is None:
            return vectors.new_zeros(vectors.shape[1]), self.memory
        # Momenta live in what is shown, and whoever writes there through NumPy leaves no trace.
        shown = known.copied() if self.own else known
        crafted, memory = self.attack.crafted(shown)
        memory = own(memory)
        if self.own and not shown.same_vectors(known):
            raise ValueError(f"{self.attack} wrote into the vectors that it was shown; it must craft others.")
        return crafted, memory

    def _known_of(self, seen: Knowledge, vectors: Tensor, apart: bool, seed: int) -> Knowledge | None:
        """What an adversary that knows less sees, in memory of its own: none that it is handed leads to the rest. None
        where it knows nothing."""
        assert self.knowledge is not None
        now = len(seen.honest)
        others = vectors[now:] if apart and not self.poisons else None
        given = (seen.honest, others, self.last)
        if not is_ours(type(self.knowledge)):  # momenta live there
            given = [None if x is None else x.clone() for x in given]
        honest, others, last = given
        assert honest is not None
        answer = self.knowledge.vectors(honest, others, last, seed)
        if answer is None:
            return None
        h = now if last is None or not self.changing or not self.looks_back else len(last)
        wanted = [self.knowledge.known(h, seen.f), honest.shape[1]]
        if not isinstance(answer, Tensor) or list(answer.shape) != wanted or answer.dtype != honest.dtype:
            raise ValueError(
                f"{type(self.knowledge).__name__}.vectors must answer [k, d] = {wanted} of {honest.dtype}, or None, "
                f"got {kind_of(answer)}."
            )
        return replace(seen, honest=answer, known=None, workers=self.workers).copied()

    def learned(self, aggregate: Tensor, honest: Tensor, memory: Memory) -> None:
        """The step is over: what it remembers of it."""
        self.memory = memory
        if self.uses_previous:
            self.previous = aggregate.clone()
        if self.looks_back:
            older = self.older
            older = older if older is not None and older.shape == honest.shape else honest.new_empty(honest.shape)
            self.last, self.older = older.copy_(honest), self.last

    def restorer(self) -> Callable[[], None]:
        """What makes it forget the step that comes."""
        memory, previous, last = self.memory, self.previous, self.last

        def restore() -> None:
            self.memory, self.previous, self.last, self.older = memory, previous, last, None

        return restore


class _WhenAsked:
    """A generator of random numbers that is made at its first use; work that uses one is other work each time."""

    def __init__(self, make: Callable[[], np.random.Generator]) -> None:
        self._made = lru_cache(make)

    def __getattr__(self, name: str) -> Any:
        kernels.varies("it draws random numbers")
        return getattr(self._made(), name)
