"""Which run stands in which panel of which figure: the poster's layout, for any runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property

from ..experiment import Experiment
from ..outcomes import Outcome, attack_name, order, rate_text, rule_name
from ..paper import Measure, Pair, accuracy, pairs, panel_of

SERVER, WORKER = "#D55E00", "#0072B2"  # Okabe and Ito's colours, told apart by colour-blind readers
COLOURS = {"server": SERVER, "worker": WORKER, "shared": "#009E73"}
PLACES = {"server": "at the server (usual)", "worker": "at the workers (the paper)"}
ATTACKS = {"little": "Little", "empire": "Empire"}
RULES = {
    "multi-krum": "Multi-Krum",
    "trimmed-mean": "Trimmed mean",
    "median": "Median",
    "phocas": "Phocas",
    "meamed": "MeaMed",
    "bulyan": "Bulyan",
    "krum": "Krum",
}
_VARIES = ("rule", "pre", "attack", "momentum_at", "workers", "byzantine", "real_byzantine", "learning_rate",
           "nesterov", "seed", "device", "measure", "clip_mode")  # fmt: skip


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
    """Runs that differ in rule, adversary, place and kind of momentum, learning rate and seed only: a figure a rate."""

    title: str
    study: str
    outcomes: tuple[Outcome, ...]

    @cached_property
    def attacked(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.experiment.attack is not None]

    @cached_property
    def pairs(self) -> list[Pair]:
        return pairs(self.outcomes)

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
        known = list(RULES)
        return sorted(found, key=lambda name: (known.index(name) if name in known else len(known), name))

    @property
    def columns(self) -> list[Column]:
        """Most Byzantine first, Little before Empire, as on the poster."""
        known = list(ATTACKS)
        return sorted(
            {column_of(o.experiment) for o in self.attacked},
            key=lambda c: (
                -c.attackers / c.workers,
                c.workers,
                known.index(c.attack) if c.attack in known else 9,
                c.attack,
            ),
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
        """The unattacked runs of a box, a seed each."""
        return [
            o
            for o in self.outcomes
            if o.experiment.attack is None
            and rule_name(o.experiment) == "average"
            and o.experiment.workers == column.workers - column.attackers
            and (o.experiment.nesterov, rate_text(o.experiment)) == (nesterov, rate)
        ]


def column_of(e: Experiment) -> Column:
    return Column(e.workers, e.byzantine, e.attackers, attack_name(e))


def rule_title(name: str) -> str:
    return RULES.get(name, name)


def attack_title(name: str) -> str:
    return ATTACKS.get(name, name)


def kind_title(nesterov: bool) -> str:
    return "Nesterov momentum" if nesterov else "Classical momentum"


def groups(outcomes: Iterable[Outcome]) -> list[Group]:
    """The figures that these runs make, each with a title of its own."""
    found: dict[tuple[object, ...], list[Outcome]] = {}
    for o in sorted(outcomes, key=order):
        settings = asdict(o.experiment)
        key = (o.source, *(settings[f.name] for f in fields(Experiment) if f.name not in _VARIES))
        found.setdefault(key, []).append(o)
    titled: dict[str, int] = {}
    result = []
    for members in found.values():
        panel = next((p for o in members if (p := panel_of(o.experiment)) is not None), None)
        e = members[0].experiment
        title = panel.title if panel is not None else f"{e.dataset}, {e.model}"
        again = titled[title + members[0].study] = titled.get(title + members[0].study, 0) + 1
        name = title if again == 1 else f"{title} ({again}: {e.steps} steps, momentum {e.momentum:g}, {e.partition})"
        group = Group(name, members[0].study, tuple(members))
        if group.attacked:
            result.append(group)
    return result


def middle(outcomes: Sequence[Outcome], measure: Measure) -> float | None:
    """The median accuracy in per cent."""
    return 100 * statistics.median(accuracy(o, measure) for o in outcomes) if outcomes else None
