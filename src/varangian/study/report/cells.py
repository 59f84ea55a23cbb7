"""Which settings vary in some runs, and which runs stand in which cell of the grid that they make."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import product

from ...core.attacks import ATTACKS
from ...core.rules import RULES
from ...runs.experiment import HASHES, Experiment
from ..outcomes import Outcome, attack_name, rate_text, rule_name
from .layout import attack_title, bare, rule_title

NO_ATTACK = "none"
# What is no setting of a cell: the seed is what a cell has several of, and measuring changes no number. The mixings are
# part of the rule's name, and how many attack is told by "attackers".
_NOT = ("seed", "measure", "pre", "real_byzantine", "rule", "attack")
_FIRST = (
    "dataset",
    "model",
    "partition",
    "byzantine",
    "workers",
    "attackers",
    "momentum_at",
    "nesterov",
    "learning_rate",
)
_LAST = (
    "source",
    "device",
    "precision",
    "autotune",
    "dtype",
    "data_hash",
    "code_hash",
)  # settings of these names tell apart what nothing else does
_TITLES = {
    **{"dataset": "data set", "byzantine": "f", "workers": "n", "momentum_at": "momentum at", "l2": "l2"},
    **{"data_hash": "data", "code_hash": "code", "nesterov": "momentum"},
}
_PLACES = {
    "server": "the server",
    "worker": "the workers",
    "shared": "the workers, one for all",
    "adaptive": "where the server moves it",
}


_USUAL = {f.name: f.default for f in fields(Experiment)}


@dataclass(frozen=True)
class Measure:
    """What a cell is the mean of.

    Attributes:
        key: as in file names and tables.
        title: in a sentence.
        note: what one must know of it.
        digits: behind the point.
        high: whether a greater value is better.
    """

    key: str
    title: str
    note: str
    digits: int = 1
    high: bool = True

    def of(self, o: Outcome) -> float | None:
        """Its value for a run, accuracies in per cent; None where the run has none."""
        if self.key == "loss":
            return o.final_loss
        value = {
            "final": o.final_accuracy,
            "max": o.max_accuracy,
            "chosen": o.chosen_accuracy,
            "success": o.attack_success,
        }[self.key]
        return None if value is None or math.isnan(value) else 100 * value

    def asks(self, o: Outcome) -> bool:
        """Whether a run of this kind has such a value: only an attack that aims succeeds."""
        return self.key != "success" or o.attack_success is not None

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}".replace("-", "−") if abs(value) < 1e5 else f"{value:.1e}"

    def worst(self, values: Iterable[float]) -> float:
        return min(values) if self.high else max(values)


FINAL = Measure("final", "final accuracy, %", "after the last step; nothing was selected on the test set")
MAXIMUM = Measure("max", "maximum accuracy, %", "the best of all evaluations of a run: it selects on the test set")
CHOSEN = Measure(
    "chosen",
    "chosen accuracy, %",
    "on the test set, at the step that was best on the training data set aside; nothing was selected on the test set",
)
SUCCESS = Measure(
    "success",
    "attack success, %",
    "of the test examples of other classes than an attack's target, the share that is taken for it where they bear the "
    "trigger, after the last step; less is better",
    high=False,
)
BY_CLASS = Measure("class", "accuracy on each class, %", "on the test set after the last step")
LOSS = Measure("loss", "final loss", "on the test set after the last step; less is better", 4, False)


@dataclass(frozen=True)
class Axis:
    """A setting that varies: its values as text, in order, and what they are called."""

    name: str
    title: str
    values: tuple[str, ...]
    titles: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Spread:
    """Some values of one cell: n, mean, standard deviation (None of one value), least and greatest."""

    n: int
    mean: float
    sd: float | None
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Cell:
    """Runs that differ in their seed only.

    Attributes:
        place: a value for each axis of the grid.
        outcomes: by seed.
        lacking: seeds that other cells have and this one has not.
        trouble: of runs of this cell that are not there: seed, and what became of it.
    """

    place: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    lacking: tuple[int, ...]
    trouble: tuple[tuple[int, str], ...] = ()

    def values(self, measure: Measure) -> list[tuple[int, float]]:
        """Seed and value of each run that has one."""
        found = [(o.experiment.seed, measure.of(o)) for o in self.outcomes]
        return [(seed, value) for seed, value in found if value is not None]

    def spread(self, measure: Measure) -> Spread | None:
        values = [value for _, value in self.values(measure)]
        if not values:
            return None
        sd = statistics.stdev(values) if len(values) > 1 else None
        return Spread(len(values), statistics.fmean(values), sd, min(values), max(values))

    @property
    def stopped(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.stopped]


@dataclass(frozen=True)
class Worst:
    """The worst of some attacks: the mean, under which it was, and over how many of how many attacks."""

    mean: float
    attack: str
    over: int
    of: int


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells, and the axes along which they lie.

    Attributes:
        axes: of rows, of columns, then the others; fewer where fewer settings vary.
        cells: by place. Places in the product of rows and columns that are not here were not run.
        seeds: of all cells.
        others: the combinations of the other axes' values that occur.
        depend: settings that vary too, but follow from the axes: their values by place.
        references: runs without attack that stand beside no attacked one, such as the honest workers alone.
        doubles: runs that are in their cell already, but for settings that change no number.
        planned: places that were to be run, or None where nobody knows; others are left out on purpose.
    """

    axes: tuple[Axis, ...]
    cells: Mapping[tuple[str, ...], Cell]
    seeds: tuple[int, ...]
    depend: Mapping[str, Mapping[tuple[str, ...], str]]
    references: tuple[Outcome, ...]
    doubles: tuple[Outcome, ...]
    planned: frozenset[tuple[str, ...]] | None = None

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """Those that its runs have, the one to look at first in front."""
        outcomes = [o for cell in self.cells.values() for o in cell.outcomes]
        usual = tuple(m for m in (CHOSEN, FINAL, MAXIMUM) if any(m.of(o) is not None for o in outcomes)) or (LOSS,)
        return (*usual, SUCCESS) if any(SUCCESS.of(o) is not None for o in outcomes) else usual

    @property
    def rows(self) -> Axis | None:
        return self.axes[0] if self.axes else None

    @property
    def columns(self) -> Axis | None:
        return self.axes[1] if len(self.axes) > 1 else None

    @cached_property
    def others(self) -> list[tuple[str, ...]]:
        found = {place[2:] for place in (*self.cells, *(self.planned or ()))}
        order = [{value: i for i, value in enumerate(axis.values)} for axis in self.axes[2:]]
        return sorted(found, key=lambda place: [o[v] for o, v in zip(order, place, strict=True)])

    @property
    def attack_column(self) -> bool:
        return self.columns is not None and self.columns.name == "attack"

    def missing(self) -> list[tuple[str, ...]]:
        """Places without a complete run: of those planned, or, where no plan is known, of all."""
        places = (first + rest for first in self._shown() for rest in self.others)
        return [
            place
            for place in places
            if (place not in self.cells or not self.cells[place].outcomes) and not self.left_out(place)
        ]

    def left_out(self, place: tuple[str, ...]) -> bool:
        """Whether it is known that nobody wanted it run."""
        return self.planned is not None and place not in self.planned

    def _shown(self) -> Iterator[tuple[str, ...]]:
        return product(*(axis.values for axis in self.axes[:2]))

    def worst(self, row: str, rest: tuple[str, ...], measure: Measure) -> Worst | None:
        """Over the attacks, where they are the columns; without attack is none of them."""
        assert self.columns is not None
        attacks = [a for a in self.columns.values if a != NO_ATTACK and self._asks(a, measure)]
        means = {}
        for attack in attacks:
            cell = self.cells.get((row, attack, *rest))
            spread = cell.spread(measure) if cell is not None else None
            if spread is not None:
                means[attack] = spread.mean
        if not means:
            return None
        value = measure.worst(means.values())
        return Worst(value, next(a for a, v in means.items() if v == value), len(means), len(attacks))

    def _asks(self, attack: str, measure: Measure) -> bool:
        """Whether runs under that attack have such a value."""
        members = [o for place, cell in self.cells.items() if place[1] == attack for o in cell.outcomes]
        return not members or any(map(measure.asks, members))

    def title(self, place: Sequence[str], start: int = 0) -> str:
        """The place in words: from the axis of that number on."""
        return ", ".join(
            f"{axis.title} {axis.titles[v]}" if axis.name not in ("rule", "attack") else axis.titles[v]
            for axis, v in zip(self.axes[start:], place, strict=True)
        )


def grid_of(
    outcomes: Sequence[Outcome],
    trouble: Sequence[tuple[Experiment, str]] = (),
    planned: Sequence[Experiment] = (),
) -> Cells:
    """The grid that some runs make.

    Args:
        outcomes: complete runs, at least one.
        trouble: runs that are not complete, with what became of them.
        planned: what was to be run, where that is known: other places of the grid are left out on purpose then.
    """
    there = {o.experiment.digest for o in outcomes}
    lost = [_unrun(e) for e in [*(e for e, _ in trouble), *planned] if e.digest not in there]
    placed, references = _placed([*outcomes, *lost])
    chosen: list[str] = []
    depend: list[str] = []
    said: dict[str, list[str]] = {name: [_value(o, name) for o in placed] for name in _settings()}
    runs = {id(o) for o in outcomes}
    _identify(said, [id(o) in runs for o in placed])
    for name in said:
        if len(set(said[name])) > 1:
            keys = zip(*(said[c] for c in chosen), strict=True) if chosen else iter([()] * len(placed))
            (depend if _follows(keys, said[name]) else chosen).append(name)
    axes = _in_order([_axis(name, said[name]) for name in chosen])
    places = list(zip(*(said[a.name] for a in axes), strict=True)) if axes else [()] * len(placed)
    members: dict[tuple[str, ...], dict[int, Outcome]] = {}
    doubles = []
    for o, place in zip(placed, places, strict=True):
        if id(o) in runs and members.setdefault(place, {}).setdefault(o.experiment.seed, o) is not o:
            doubles.append(o)
    seeds = tuple(sorted({o.experiment.seed for o in placed}))
    bad: dict[tuple[str, ...], dict[int, str]] = {}
    for e, reason in trouble:
        bad.setdefault(tuple(_value(_unrun(e), a.name) for a in axes), {})[e.seed] = reason
    cells = {
        place: Cell(
            place,
            tuple(o for _, o in sorted(members.get(place, {}).items())),
            tuple(s for s in seeds if s not in members.get(place, {})),
            tuple(sorted(bad.get(place, {}).items())),
        )
        for place in _sorted({*members, *(p for p in bad if p in set(places))}, axes)
    }
    by_place = {name: dict(zip(places, said[name], strict=True)) for name in depend}
    asked = frozenset(places) if planned else None
    calm = tuple(o for o in references if id(o) in runs)
    return Cells(axes, cells, seeds, by_place, calm, tuple(doubles), asked)


def _identify(said: dict[str, list[str]], complete: Sequence[bool]) -> None:
    """Gives runs that were never begun the code and data of those like them: what a plan names was not read for it."""
    keys = list(zip(*(values for name, values in said.items() if name not in HASHES), strict=True))
    for name in HASHES:
        known = {key: value for key, value, ran in zip(keys, said[name], complete, strict=True) if ran}
        said[name] = [
            value if ran or value != "none" else known.get(key, value)
            for key, value, ran in zip(keys, said[name], complete, strict=True)
        ]


def _unrun(e: Experiment) -> Outcome:
    """A run without a result, which has its place all the same."""
    return Outcome(e, 0.0, 0.0)


def _sorted(places: Iterable[tuple[str, ...]], axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    order = [{value: i for i, value in enumerate(axis.values)} for axis in axes]
    return sorted(places, key=lambda place: [o[v] for o, v in zip(order, place, strict=True)])


def _placed(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Runs of the grid, and runs without attack that share their other settings with no attacked one."""

    def rest(o: Outcome) -> tuple[str, ...]:
        return tuple(
            _value(o, name)
            for name in _settings()
            if name not in ("rule", "attack", "attackers", "knowledge", "code_hash")
        )

    attacked = {rest(o) for o in outcomes if o.experiment.attack is not None}
    if not attacked:
        return list(outcomes), []
    placed = [o for o in outcomes if o.experiment.attack is not None or rest(o) in attacked]
    there = {id(o) for o in placed}
    return placed, [o for o in outcomes if id(o) not in there]


def _settings() -> list[str]:
    """In the order in which they are asked: a setting that follows from those before it is no axis."""
    rest = [f.name for f in fields(Experiment) if f.name not in (*_NOT, *_FIRST, *_LAST)]
    return ["rule", "attack", *_FIRST, *rest, *_LAST]


def _follows(keys: Iterable[tuple[str, ...]], values: Sequence[str]) -> bool:
    found: dict[tuple[str, ...], str] = {}
    return all(found.setdefault(key, value) == value for key, value in zip(keys, values, strict=True))


def _in_order(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Rules down and attacks across where they vary; else the settings with the most values."""
    left = {axis.name: axis for axis in axes}
    most = sorted((a for a in axes if a.name not in ("rule", "attack")), key=lambda a: -len(a.values))
    rows = left.get("rule") or (most.pop(0) if most else left.get("attack"))
    columns = left.get("attack") or (most.pop(0) if most else None)
    shown = [a for a in (rows, columns if columns is not rows else None) if a is not None]
    return (*shown, *(a for a in axes if a not in shown))


def _axis(name: str, values: Sequence[str]) -> Axis:
    ordered = tuple(sorted(set(values), key=lambda v: _rank(name, v)))
    titles = {v: _title(name, v) for v in ordered}
    twice = [v for v in ordered if sum(t == titles[v] for t in titles.values()) > 1]
    return Axis(name, _TITLES.get(name, name.replace("_", " ")), ordered, titles | {v: v for v in twice})


def _rank(name: str, value: str) -> tuple[object, ...]:
    """Own rules before ours, ours in the order of their table, no attack first; numbers by size, the usual first."""
    if name in ("rule", "attack"):
        known = list(RULES if name == "rule" else ATTACKS)
        last = value.rpartition(" + ")[2].partition("(")[0]
        rank = -1 if ":" in value or value == NO_ATTACK else known.index(last) if last in known else len(known)
        return (rank, value.count(" + "), value)
    try:
        return (0, float(value.partition(",")[0]), value)
    except ValueError:
        return (1, float(value != str(_USUAL.get(name))), value)


def _title(name: str, value: str) -> str:
    if name == "rule":
        return rule_title(value)
    if name == "nesterov":
        return "Nesterov's" if value == "yes" else "classical"
    if name == "attack":
        return "no attack" if value == NO_ATTACK else attack_title(value)
    return _PLACES.get(value, value) if name == "momentum_at" else bare(value)


def _value(o: Outcome, name: str) -> str:
    e = o.experiment
    if name in ("rule", "attack"):
        return rule_name(e) if name == "rule" else attack_name(e)
    if name == "learning_rate":
        return rate_text(e)
    if name == "source":
        return o.source
    if name == "momentum_at" and not e.momentum:
        return "none"
    value = e.attackers if name == "attackers" else getattr(e, name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def fixed(e: Experiment) -> list[tuple[str, str, str]]:
    """Name, title and text of the settings of a run that a reader asks for, and of all that are not the default."""
    lost = _unrun(e)
    always = {"dataset", "model", "workers", "byzantine", "rule", "attack", "batch_size", "steps", "learning_rate"}
    always |= {"momentum", "momentum_at", "partition"}
    found = []
    for name in _settings():
        own = name in _USUAL and getattr(e, name) != _USUAL[name]
        if name in always or own or (name == "attackers" and e.attackers not in (0, e.byzantine)):
            found.append((name, _TITLES.get(name, name.replace("_", " ")), _title(name, _value(lost, name))))
    return found
