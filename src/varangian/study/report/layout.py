"""Which run stands in which panel of which figure: the poster's layout, for any runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from ...core.attacks import ATTACKS, Attack
from ...core.rules import RULES, Rule
from ...runs.experiment import Experiment
from ..outcomes import Outcome, attack_name, order, rate_text, rule_name
from ..paper import Account, Measure, Pair, account, accuracy, panel_of

PLACES = {"server": "at the server", "worker": "at the workers"}
POSTER = ("multi-krum", "trimmed-mean", "median", "phocas", "meamed", "bulyan", "krum", "little", "empire")  # its order
# What may differ within a group, and any value of it: a group is what is alike once these are.
_VARIES: dict[str, Any] = {
    **{"rule": "average", "pre": (), "attack": None, "workers": 1, "byzantine": 0, "real_byzantine": None},
    **{"momentum_at": "server", "nesterov": False, "learning_rate": 0.1, "seed": 0, "measure": True},
}


@dataclass(frozen=True)
class Column:
    """One adversary: so many of so many workers, and what they send."""

    workers: int
    byzantine: int
    attackers: int
    attack: str

    @property
    def share(self) -> str:
        tolerated = "" if self.attackers == self.byzantine else f" (f = {self.byzantine})"
        return f"{self.attackers} of {self.workers} Byzantine{tolerated}"

    @property
    def title(self) -> str:
        return f"{self.share}, {attack_title(self.attack)}"


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in rule, adversary, place and kind of momentum, learning rate and seed only: a figure a rate.

    Attributes:
        title: its name, and what tells it from others of the same name.
        study: what it may be compared with, see ``Outcome.study``.
        name: without what tells it apart; the title where nothing does.
    """

    title: str
    study: str
    outcomes: tuple[Outcome, ...]
    name: str = ""

    @property
    def example(self) -> Experiment:
        """One of its experiments: what does not vary within a group is the same in all."""
        return (self.attacked or self.outcomes)[0].experiment

    @property
    def settings(self) -> list[tuple[str, str]]:
        """What its runs were given, for a table: names and values, what varies as a list."""
        e = self.example
        columns = self.columns
        clip = "none" if e.clip is None else f"{e.clip:g}"
        found = [
            ("data set", e.dataset),
            ("model", e.model),
            ("workers n", _listed(c.workers for c in columns)),
            ("Byzantine, f tolerated", _listed(c.byzantine for c in columns)),
            ("batch size", f"{e.batch_size}"),
            ("steps", f"{e.steps:,}"),
            ("learning rate", "; ".join(self.rates)),
            ("momentum μ", f"{e.momentum:g}" + (f", dampening {e.dampening:g}" if e.dampening else "")),
            ("clip", clip),
            ("l2", f"{e.l2:g}"),
            ("partition", str(e.partition)),
            ("evaluated", f"every {e.evaluate_every} steps" if e.evaluate_every else "at the end"),
            ("seeds", _listed(o.experiment.seed for o in self.outcomes)),
            ("profile", e.profile),
        ]
        attackers = _listed(c.attackers for c in columns)
        if attackers != _listed(c.byzantine for c in columns):
            found.insert(4, ("attackers", attackers))
        if e.knowledge != "omniscient":
            found.append(("attackers know", e.knowledge))
        if e.quarantine is not None:
            found.append(("quarantine", e.quarantine))
        return found

    @property
    def shares(self) -> list[str]:
        """Each once: "3 of 15 Byzantine"."""
        return list(dict.fromkeys(c.share for c in self.columns))

    @property
    def origin(self) -> str:
        """What its runs may be compared with."""
        return "run by the paper's code" if self.study == "imported" else f"profile {self.study}"

    def line(self, batch: bool = True) -> str:
        """The settings in a line, without what figures say elsewhere; the batch size if wanted."""
        e = self.example
        clip = "" if e.clip is None else f", clip {e.clip:g}"
        where = "" if str(e.partition) == "iid" else f", {e.partition}"
        size = f"batch size {e.batch_size}, " if batch else ""
        return f"{size}{e.steps:,} steps, momentum {e.momentum:g}{clip}, l2 {e.l2:g}{where}"

    @cached_property
    def attacked(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.experiment.attack is not None]

    @cached_property
    def account(self) -> Account:
        return account(self.outcomes)

    @property
    def pairs(self) -> list[Pair]:
        return self.account.pairs

    @property
    def rates(self) -> list[str]:
        """Of the attacked runs, in the order of the first step's rate, greatest first."""
        found = {rate_text(o.experiment): o.experiment.rate(0) for o in self.attacked}
        return sorted(found, key=lambda text: -found[text])

    @property
    def kinds(self) -> list[bool]:
        """Nesterov first, as on the poster."""
        return sorted({o.experiment.nesterov for o in self.attacked}, reverse=True)

    @property
    def rules(self) -> list[str]:
        found = {rule_name(o.experiment) for o in self.attacked}
        return sorted(found, key=lambda name: (_place(name), name))

    @property
    def columns(self) -> list[Column]:
        """Most Byzantine first, Little before Empire, as on the poster."""
        return sorted(
            {column_of(o.experiment) for o in self.attacked},
            key=lambda c: (-c.attackers / c.workers, c.workers, _place(c.attack), c.attack),
        )

    def cell(self, column: Column, nesterov: bool, rate: str, place: str) -> list[Outcome]:
        """All rules and seeds of one box."""
        return [
            o
            for o in self.attacked
            if (o.experiment.nesterov, rate_text(o.experiment), o.experiment.momentum_at) == (nesterov, rate, place)
            and column_of(o.experiment) == column
        ]

    def reference(self, column: Column, nesterov: bool, rate: str) -> list[Outcome]:
        """The runs of a box without attack: of the honest workers alone, averaged; else of the group's rules."""
        calm = [
            o
            for o in self.outcomes
            if o.experiment.attack is None and (o.experiment.nesterov, rate_text(o.experiment)) == (nesterov, rate)
        ]
        honest = column.workers - column.attackers
        averaged = [o for o in calm if rule_name(o.experiment) == "average" and o.experiment.workers == honest]
        return averaged or [o for o in calm if o.experiment.workers in (honest, column.workers)]


def _place(name: str) -> int:
    """Of a rule or attack in the order of the poster; those that it does not have come last."""
    return POSTER.index(name) if name in POSTER else len(POSTER)


def column_of(e: Experiment) -> Column:
    return Column(e.workers, e.byzantine, e.attackers, attack_name(e))


def rule_title(name: str) -> str:
    """What a rule is called, mixings before it.

    Example:
        >>> rule_title("multi-krum(m=5)"), rule_title("nnm + median"), rule_title("mine/my_rule.py:MyRule(k=2)")
        ('Multi-Krum(m=5)', 'nnm + Median', 'MyRule(k=2)')
    """
    return " + ".join(_titled(part, RULES, Rule) for part in name.split(" + "))


def attack_title(name: str) -> str:
    return _titled(name, ATTACKS, Attack)


def _titled(name: str, table: Mapping[str, Any], base: type) -> str:
    head, bracket, options = name.partition("(")
    known = table.get(head)
    title = known.title if isinstance(known, type) and issubclass(known, base) else ""
    return f"{title or bare(head)}{bracket}{options}"


def bare(name: str) -> str:
    """A name without the file or module that it is from; nothing is imported to know it."""
    head, bracket, options = name.partition("(")
    return f"{head.rpartition(':')[2].strip() or head}{bracket}{options}"


def kind_title(nesterov: bool) -> str:
    return "Nesterov momentum" if nesterov else "Classical momentum"


def groups(outcomes: Iterable[Outcome]) -> list[Group]:
    """The figures that these runs make, each with a title of its own."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for o in sorted(outcomes, key=order):
        kept = {} if o.experiment.quarantine is None else {"workers": 2, "byzantine": 1}  # so that it may exclude one
        rest = replace(
            o.experiment, code_hash=None, **_VARIES | kept
        )  # rules and attacks of one's own stand beside others
        found.setdefault((o.source, rest.digest), []).append(o)
    named: dict[tuple[str, str], list[Group]] = {}
    for members in (versions for together in found.values() for versions in _by_code(together)):
        panel = next((p for o in members if (p := panel_of(o.experiment)) is not None), None)
        e = members[0].experiment
        name = panel.title if panel is not None else f"{e.dataset}, {e.model}"
        group = Group(name, members[0].study, tuple(members), name)
        if group.attacked:
            named.setdefault((name, group.study), []).append(group)
    return [group for same in named.values() for group in _told_apart(same)]


def _by_code(members: list[Outcome]) -> list[list[Outcome]]:
    """All of them, unless code of somebody's own changed between runs that are otherwise the same: then by the code."""
    codes = list(dict.fromkeys(o.experiment.code_hash for o in members))
    if len(codes) == 1 or len({replace(o.experiment, code_hash=None).digest for o in members}) == len(members):
        return [members]
    versions = []
    for code in codes:
        # What no own code has part in may be the reference of any.
        shared = (o for o in members if o.experiment.attack is None and o.experiment.code_hash is None and code)
        versions.append([*shared, *(o for o in members if o.experiment.code_hash == code)])
    return versions


def _told_apart(same: Sequence[Group]) -> list[Group]:
    """Groups of one name, in the order of the settings that differ, which their titles say."""
    settings = [asdict(g.example) for g in same]
    fixed = [f.name for f in fields(Experiment) if f.name not in _VARIES]
    differ = [name for name in fixed if len({str(s[name]) for s in settings}) > 1]
    said = [", ".join(_words(name, s[name]) for name in differ) for s in settings]
    titled = [
        replace(group, title=f"{group.name}, {words}" if words else group.title)
        for group, words in zip(same, said, strict=True)
    ]
    return sorted(titled, key=lambda g: [_order(asdict(g.example)[name]) for name in differ])


def _words(name: str, value: object) -> str:
    shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return f"{shown} steps" if name == "steps" else f"{name.replace('_', ' ')} {shown}"


def _order(value: object) -> tuple[float, str]:
    return (float(value), "") if isinstance(value, (int, float)) else (0.0, str(value))


def _listed(values: Iterable[int]) -> str:
    """Each once, in order; the first and the last of many."""
    found = sorted(set(values))
    if len(found) > 6:
        return f"{found[0]} to {found[-1]} ({len(found)} of them)"
    return ", ".join(f"{v:,}" for v in found)


def noise(group: Group) -> float | None:
    """The mean variance-norm ratio of honest gradients at the first step, over the runs without attack."""
    first = [o.curve[0].ratio for o in group.outcomes if o.experiment.attack is None and o.curve]
    known = [ratio for ratio in first if ratio is not None]
    return statistics.fmean(known) if known else None


def by_batch_size(found: Sequence[Group]) -> list[list[Group]]:
    """Groups that differ in the batch size and nothing else: at least two of them, each with pairs."""
    alike: dict[tuple[object, ...], list[Group]] = {}
    for g in found:
        settings = asdict(g.example)
        fixed = (settings[f.name] for f in fields(Experiment) if f.name not in (*_VARIES, "batch_size"))
        if g.pairs:
            alike.setdefault((g.study, *fixed, *g.rates[:1], *g.kinds[:1], *g.columns), []).append(g)
    return [members for members in alike.values() if len(members) > 1]


def middle(outcomes: Sequence[Outcome], measure: Measure) -> float | None:
    """The median accuracy in per cent."""
    return 100 * statistics.median(accuracy(o, measure) for o in outcomes) if outcomes else None
