"""The worst vector that a search finds for one defence; and all attacks by name, since it searches what is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import inf, isfinite
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import kernels, randomness
from ..checks import require, set_whole, shown, whole
from ..mixing import Mixing
from ..references import NotImported, known
from ..rules import Rule
from ..stages import as_matrix
from .base import Attack, Knowledge, as_defence
from .colluding import Decoys, Divided, Made, Scattered
from .memory import Memory
from .poison import Backdoor, Hidden, LabelFlip
from .simple import Empire, Gaussian, Inf, Little, Mimic, NaN, SignFlip, Zero
from .spread import MinMax, MinSum, along
from .targeted import ROP, AntiCGE, Fang, HiddenVulnerability
from .trials import STEP, Trials, next_place


@dataclass(frozen=True, eq=False)
class Found:
    """What a search for the worst attack found.

    Attributes:
        direction: whose line it is on.
        factor: where on it: 0 is the honest mean, 1 what that attack sends.
        damage: ||F(pre(honest and f copies)) - mean||.
        vector: [d], what to send.
    """

    direction: str
    factor: float
    damage: float
    vector: Tensor


LINES: dict[str, Attack] = {
    "little": Little(factor=1.0),
    "empire": Empire(factor=1.0),
    "min-max": MinMax(direction="sign"),
    "mimic": Mimic(),
    "bulyan": HiddenVulnerability(),
}
"""Lines through the honest mean to search, each through what an attack sends; so factor z of "little" is Little(z),
of "empire" Empire(z), and one of "min-max" is min-max with p = sign(mean)."""


def line(direction: Any) -> Attack:
    """The attack through whose vectors a line goes: one of ``LINES``, an attack, or an attack as text.

    Raises:
        ValueError: neither.
    """
    from ..specs import make, parse

    if isinstance(direction, Attack):
        return direction
    if not isinstance(direction, str):
        raise ValueError(f"a direction is a name or an attack, got {shown(direction)}.")
    if direction in LINES:
        return LINES[direction]
    parse("direction", direction, LINES | ATTACKS)
    attack = make("direction", direction, ATTACKS)
    if not isinstance(attack, Attack):
        raise ValueError(f"a direction is a name or an attack, got {shown(attack)}.")
    return attack


def _spelt(attack: Attack) -> str | Attack:
    """The text for which :func:`line` gives an equal attack; the attack itself where none does."""
    from ..specs import describe

    try:
        text = describe(attack, (ATTACKS,))
    except ValueError:  # a class without a name
        return attack
    options = fields(attack)
    if text in LINES and LINES[text] != attack:  # the options of a line of that name are others
        text = f"{text}({options[0].name}={getattr(attack, options[0].name)!r})"
    return text


@dataclass(frozen=True)
class WorstCase(Made):
    """The worst factor there is, for one defence: lines are searched for what moves the aggregate most.

    m = mean + factor p, maximising ||F(pre(honest and f copies of m)) - mean||

    Half of the budget goes to coarse factors of both signs on all lines, starting where a vector is about as far from
    the mean as honest ones are; the rest refines the best line, halving the wider gap beside the best factor.

    Args:
        directions: lines through the honest mean, by name (see ``LINES``: "little", "empire", "min-max", "mimic",
            "bulyan"), or any attack, as text with its options or as an object: the line through what it sends.
        evaluations: how many vectors to try, >= 2.

    Shape: [h, d] -> f equal rows [f, d].
    Cost: for a selecting rule (behind any mixings) one pass for distances, then each trial in n x n; for other rules
        a run of the defence each. A device is waited for once for the lines, once for the coarse half, and once for
        each trial that refines.
    Convention: needs a defence: a rule, an algorithm, or any callable. A defence is a value, so trying it advances
        nothing. Of attacks that remember, named in ``directions``, each remembers as if it alone attacked; a bare
        ``search`` is their first step. The search is deterministic. Its answer is a lower bound of the damage that is
        possible.

    Example:
        >>> import torch, varangian as vg
        >>> honest = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
        >>> found = WorstCase(directions=("little",)).search(honest, f=1, defence=vg.Median(f=1))
        >>> found.direction, round(found.damage, 2)
        ('little', 0.5)

    Reference: in the spirit of Shejwalkar, Houmansadr, NDSS 2021, whose attacks know the rule.
    """

    directions: tuple[str | Attack, ...] = ("little", "empire", "min-max")
    evaluations: int = 24

    uses_defence: ClassVar[bool] = True  # pyright: ignore[reportIncompatibleMethodOverride]
    uses_previous: ClassVar[bool] = True  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        listed = isinstance(self.directions, (tuple, list)) and len(self.directions) > 0
        require(self, listed, "a tuple of names of directions, or of attacks", self.directions)
        object.__setattr__(self, "directions", tuple(self._as_text(direction) for direction in self.directions))
        set_whole(self, "evaluations", least=2)

    @cached_property
    def others(self) -> tuple[Attack, ...]:
        """The attacks whose lines are searched."""
        return tuple(line(direction) for direction in self.directions)

    def _as_text(self, value: Any) -> str | Attack:
        """A direction as text wherever text can say it, so that an experiment can."""
        if isinstance(value, Attack):
            return _spelt(value)
        if not (isinstance(value, str) and value in LINES):
            try:
                line(value)
            except NotImported:
                raise
            except ValueError as error:
                raise ValueError(f"WorstCase: {error}") from None
        return value

    def check_knowing(self, known: int, h: int, f: int, d: int | None = None) -> None:
        self.check(known, f, d)

    @kernels.eager
    def search(self, honest: Any, f: int, defence: Any, previous: Any = None) -> Found:
        """The worst vector found for f >= 1 copies of it, where it lies, and the damage that it does."""
        matrix, _ = as_matrix(self, honest)
        f = whole(self, "f", f, least=1)
        if previous is not None:
            previous = torch.as_tensor(previous, dtype=matrix.dtype, device=matrix.device)
        random = randomness.generator(0, "attack")
        return self.find(Knowledge(matrix, f, as_defence(defence, previous), previous, random))

    def craft(self, seen: Knowledge) -> Tensor | tuple[Tensor, Memory]:
        found, memory = self._found(seen)
        return (found.vector, memory) if self.remembers else found.vector

    def find(self, seen: Knowledge) -> Found:
        """:meth:`search`, from what the adversary knows."""
        return self._found(seen)[0]

    def _found(self, seen: Knowledge) -> tuple[Found, Memory]:
        """And what the attacks named remember."""
        require(self, seen.defence is not None, "a defence to try: defence=rule, an algorithm or a callable", None)
        each = [seen] * len(self.others)
        if isinstance(seen.memory, tuple):
            each = [replace(seen, memory=memory, known=seen.moments) for memory in seen.memory]
        crafted = [attack.crafted(one) for attack, one in zip(self.others, each, strict=True)]
        return self._searched(seen, [sent for sent, _ in crafted]), tuple(memory for _, memory in crafted)

    def _searched(self, seen: Knowledge, sent: Sequence[Tensor]) -> Found:
        lines = list(self._lines(seen, sent))
        if not lines:  # honest vectors that all agree, or that are not finite, show no direction
            return Found("none", 0.0, 0.0, seen.mean.clone())
        trials = Trials(seen, [unit for _, _, unit in lines])
        sides = [(line, sign) for line in range(len(lines)) for sign in (1, -1)]
        tried: dict[tuple[int, int], dict[int | float, float]] = {side: {} for side in sides}

        def attempt(*places: tuple[tuple[int, int], float]) -> None:
            damages = trials.damages([(side[0], side[1] * STEP**place) for side, place in places])
            for (side, place), damage in zip(places, damages, strict=True):
                tried[side][place] = damage

        coarse = [(side, place) for place in (0, 1, -1, 2) for side in sides]
        coarse = coarse[: max(self.evaluations // 2, min(len(sides), self.evaluations))]
        attempt(*coarse)
        for _ in range(self.evaluations - len(coarse)):
            side = max(sides, key=lambda one: max(tried[one].values(), default=-inf))
            attempt((side, next_place(tried[side])))
        side = max(sides, key=lambda one: max(tried[one].values(), default=-inf))
        place, damage = max(tried[side].items(), key=lambda item: item[1])
        name, length, _ = lines[side[0]]
        scale = side[1] * STEP**place
        return Found(name, scale * length, damage, trials.vector(side[0], scale))

    def _lines(self, seen: Knowledge, sent: Sequence[Tensor]) -> Any:
        """(name, factor of the unit point, unit point - mean [d]) of each line that is one."""
        within = seen.in_unit()
        a, _, _ = along(within.honest, within.mean, torch.zeros_like(seen.mean))
        moved = [(rows[0] if rows.ndim == 2 else rows) - seen.mean for rows in sent]
        squared, *lengths = kernels.host(a, *(kernels.norms(p) for p in moved))
        spread = float(np.sqrt(squared.mean())) * seen.unit
        for direction, p, length in zip(self.directions, moved, map(float, lengths), strict=True):
            if length > 0 and isfinite(length):
                # Where honest vectors agree nothing tells how far to go: the attack's own length.
                factor = spread / length if spread > 0 else 1.0
                yield str(direction), factor, p * factor


ATTACKS: dict[str, type[Attack]] = {
    "little": Little,
    "empire": Empire,
    "sign-flip": SignFlip,
    "gaussian": Gaussian,
    "zero": Zero,
    "nan": NaN,
    "inf": Inf,
    "mimic": Mimic,
    "min-max": MinMax,
    "min-sum": MinSum,
    "label-flip": LabelFlip,
    "backdoor": Backdoor,
    "hidden": Hidden,
    "anti-cge": AntiCGE,
    "bulyan": HiddenVulnerability,
    "rop": ROP,
    "fang": Fang,
    "worst-case": WorstCase,
    "scattered": Scattered,
    "divided": Divided,
    "decoys": Decoys,
}
"""Attacks by name."""

Made.table = ATTACKS


def parts(stage: Rule | Mixing | Attack) -> Iterator[type]:
    """The classes of a rule, a mixing or an attack, of what stands in its options, and of the attacks named there."""
    yield type(stage)
    for option in fields(stage):
        value = getattr(stage, option.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (Rule, Mixing, Attack)):
                yield from parts(item)
            elif isinstance(item, str):
                yield from _named(item)


def _named(text: str) -> Iterator[type]:
    """The classes of the attack that a text names, and of those that are named in it."""
    from ..specs import parse

    name = text.partition("(")[0].strip()
    named = ATTACKS.get(name) or known("attack", name)
    if isinstance(named, type):
        yield named
        try:
            options = parse("attack", text, ATTACKS)[1]
        except ValueError:  # a text that begins like one
            return
        for value in options.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, str):
                    yield from _named(item)
