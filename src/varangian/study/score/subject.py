"""What a card is of: the stages that a text names, made for every f that they may be told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ...core.attacks import ATTACKS, Attack, ComposedDefence
from ...core.checks import is_ours, shown, unknown
from ...core.mixing import MIXINGS, Mixing
from ...core.randomness import BARE
from ...core.references import importing, label, reference_of
from ...core.rules import RULES, Rule
from ...core.specs import describe, find, make, parameters, parse, shortest
from ...core.stages import check_rows
from .card import Kind

KINDS: Mapping[Kind, tuple[type[Any], Mapping[str, Callable[..., Any]]]] = {
    "rule": (Rule, RULES),
    "mixing": (Mixing, MIXINGS),
    "attack": (Attack, ATTACKS),
}
BEHIND = "median"
"""The rule that a mixing is scored before: it tolerates as many attackers as any rule can, with any mixing, and where
data differ it is far from the mean, which is what mixings are to mend."""


@dataclass(frozen=True)
class Subject:
    """A rule, with the mixings before it; a mixing, with a rule behind it; or an attack. All as text."""

    kind: Kind
    rule: str
    pre: tuple[str, ...] = ()
    attack: str = ""

    @property
    def name(self) -> str:
        return self.attack or " + ".join([*self.pre, self.rule])

    @property
    def title(self) -> str:
        """What figures call it."""
        if self.kind == "attack":
            return label(self.attack)
        _, rule = self.example
        return " + ".join([*(label(p) for p in self.pre), rule.title or type(rule).__name__])

    @property
    def ours(self) -> bool:
        """Whether all of it comes with this package."""
        if self.kind == "attack":
            return is_ours(type(self.make_attack()))
        pre, rule = self.example
        return all(is_ours(type(stage)) for stage in (*pre, rule))

    def stages(self, f: int) -> tuple[tuple[Mixing, ...], Rule]:
        """The mixings and the rule that are told to expect f attackers.

        Raises:
            ValueError: they refuse that f.
        """
        return _stages(self.rule, self.pre, f)

    def make_attack(self) -> Attack:
        with importing(True):
            return make("attack", self.attack, ATTACKS)

    def allows(self, n: int, f: int) -> bool:
        """Whether n vectors are enough for it with that f."""
        try:
            pre, rule = self.stages(f)
            check_rows(pre, rule, n)
        except ValueError:
            return False
        return True

    @property
    def example(self) -> tuple[tuple[Mixing, ...], Rule]:
        """The stages for some f.

        Raises:
            ValueError: they refuse every f that was tried, in the words of the first.
        """
        faults = []
        for f in (1, 2, 0):
            try:
                return self.stages(f)
            except ValueError as error:
                faults.append(error)
        raise faults[0]

    def told(self, n: int) -> list[int]:
        """Every f that it may be told among n vectors; of what is not robust 0 alone."""
        return [f for f in range(n if self.example[1].robust else 1) if self.allows(n, f)]

    def greatest(self, n: int) -> int:
        """The greatest f that it may be told among n vectors; 0 where there is none."""
        return max(self.told(n), default=0)

    def answer(self, x: torch.Tensor, f: int, root: torch.Tensor | None = None) -> torch.Tensor:
        """F(pre(x)), told to expect f attackers; what it looks at of the last step is the origin, or a root vector."""
        pre, rule = self.stages(f)
        return ComposedDefence(pre, rule, root if rule.needs_root else None, BARE)(x)


@lru_cache(maxsize=500)
def _stages(rule: str, pre: tuple[str, ...], f: int) -> tuple[tuple[Mixing, ...], Rule]:
    with importing(True):
        mixings = tuple(make("mixing", text, MIXINGS, f=f) for text in pre)
        return mixings, make("rule", rule, RULES, f=f)


def subject_of(about: Any, *, pre: Any = (), behind: Any = None, kind: Kind | None = None) -> Subject:
    """A rule, a mixing or an attack, of this package or of anybody; code that a text names is imported.

    Args:
        about: a name of ``varangian list`` or a reference, with options, without f; or a class or an object, whose f
            does not matter.
        pre: mixings before a rule.
        behind: the rule behind a mixing; :data:`BEHIND` by default.
        kind: which of the three, where a name is of several, as "bulyan" is of a rule and an attack; a rule is what is
            looked for first.

    Raises:
        ValueError: it names none; options that are none; an f, which a card varies itself; ``pre`` for what is no rule,
            ``behind`` for what is no mixing.

    Example:
        >>> subject_of("krum", pre=["nnm"]).name, subject_of("nnm").name, subject_of("little").kind
        ('nnm + krum', 'nnm + median', 'attack')
    """
    text = _text(about)
    with importing(True):
        found, short = _kind_of(text, kind)
        if found != "rule" and pre:
            raise ValueError(f"pre: mixings stand before a rule, and {shown(text)} is {_a(found)}.")
        if found != "mixing" and behind is not None:
            raise ValueError(f"a rule behind it is for a mixing, and {shown(text)} is {_a(found)}.")
        if found == "attack":
            return Subject("attack", "", (), short)
        if found == "mixing":
            subject = Subject("mixing", _of("rule", BEHIND if behind is None else _text(behind)), (short,))
        else:
            listed = [pre] if isinstance(pre, (str, type, Mixing)) else pre
            subject = Subject("rule", short, tuple(_of("mixing", _text(mixing)) for mixing in listed))
        _ = subject.example  # or its own words about f
        return subject


def _text(about: Any) -> str:
    """What names a class or an object of a rule, a mixing or an attack; a text as it is."""
    if isinstance(about, str):
        return about
    tables = [table for _, table in KINDS.values()]
    if isinstance(about, tuple(base for base, _ in KINDS.values())):
        return describe(about, tables, getattr(about, "f", None))
    if not isinstance(about, type):
        raise ValueError(f"score needs a rule, mixing or attack: a text, a class or an object, got {shown(about)}.")
    names = {known: name for table in tables for name, known in table.items()}
    return names.get(about) or reference_of(about)


def _kind_of(text: str, wanted: Kind | None) -> tuple[Kind, str]:
    faults: list[str] = []
    for kind in KINDS if wanted is None else (wanted,):
        try:
            parse(kind, text, KINDS[kind][1])
        except ValueError as error:
            faults.append(str(error))
            continue
        try:
            return kind, _of(kind, text)
        except _Other:
            continue
    if len(faults) < (len(KINDS) if wanted is None else 1):
        what = "no rule, no mixing and no attack, which derive" if wanted is None else f"no {wanted}, which derives"
        raise ValueError(f"{shown(text)} is {what} from vg.General, vg.Selecting, vg.Mixing, vg.Attack ...")
    if wanted is None and "unknown rule" in faults[0]:
        name = text.partition("(")[0].strip()
        raise ValueError(unknown("rule, mixing or attack", name, dict.fromkeys([*RULES, *MIXINGS, *ATTACKS])))
    raise ValueError(faults[0])


class _Other(ValueError):
    """It is of another kind."""


def _of(kind: Kind, text: str) -> str:
    """The text in its shortest form, of something that is of this kind."""
    base, table = KINDS[kind]
    name, options = parse(kind, text, table)
    if "f" in options:
        raise ValueError(f"{shown(text)}: a score card varies f itself; leave f={options['f']} out.")
    maker: Any = find(kind, name, table)
    if isinstance(maker, type) and not issubclass(maker, base):
        raise _Other(f"{shown(text)} is no {kind}.")
    if inspect.isroutine(maker):
        needed = [p.name for p in parameters(maker).values() if p.default is p.empty and p.name not in ("f", *options)]
        if needed:
            raise _Other(f"{shown(text)} is no {kind}, but a function of {', '.join(needed)}.")
    if not isinstance(maker, type):
        made = make(kind, text, table, f=1) if kind != "attack" else make(kind, text, table)
        if not isinstance(made, base):
            raise _Other(f"{shown(text)} is no {kind}.")
    return shortest(kind, text, table)


def _a(kind: Kind) -> str:
    return f"an {kind}" if kind == "attack" else f"a {kind}"
