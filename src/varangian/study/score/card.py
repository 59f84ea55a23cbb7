"""What is measured of a rule, of a mixing with a rule behind it, or of an attack: one frozen value, and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ...core.checks import cut
from ...core.specs import reason
from ...runs.files import check_depth, parse_json

Kind = Literal["rule", "mixing", "attack"]
FORMAT = 1
STORED = "cards.json"  # of the package: one card of each built-in rule, of the usual compositions and of each attack
DIGITS = 4  # significant ones that a card keeps

# What a card that somebody else wrote may hold: pages and advice count with these.
Number = Annotated[int, Field(ge=0, le=10_000)]  # of workers
Some = Annotated[int, Field(ge=1, le=10_000)]
Part = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[int, Field(ge=1, le=10**12)]
Amount = Annotated[float, Field(ge=0)]
Seeds = Annotated[tuple[Part, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Settings:
    """What all cards that are ranked together were measured with.

    Attributes:
        dataset, model: what was learnt, by what.
        n, f: workers, and how many of them attack, of all trainings.
        steps, batch_size, learning_rate, momentum, clip: of each training.
        partitions, places: how data were dealt, and where momentum stood.
        seeds: of each training.
        attacks: under which they went on, as text.
    """

    dataset: str
    model: str
    n: Some
    f: Number
    steps: int
    batch_size: int
    learning_rate: float
    momentum: float
    clip: float
    partitions: tuple[str, ...]
    places: tuple[str, ...]
    seeds: tuple[int, ...]
    attacks: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """A point of the contract that does not hold: its name, what it promises, and what happened."""

    check: str
    promise: str
    message: str


@dataclass(frozen=True)
class Conformance:
    """What the conformance suite (``varangian check``) says of one stage.

    Attributes:
        subject: the stage, as text.
        passed: names of points that hold.
        failed: points that do not.
        left_out: points that were not tried, and why.
        guarantee: what hostile vectors cannot do, as the stage claims; empty where a point failed.
    """

    subject: str
    passed: tuple[str, ...]
    failed: tuple[Failed, ...]
    left_out: Mapping[str, str]
    guarantee: str = ""

    @property
    def holds(self) -> bool:
        return not self.failed


@dataclass(frozen=True)
class Breakdown:
    """How many attackers a rule that declares f withstands, of n vectors, as far as a search finds.

    Attributes:
        n, f: how many vectors there are, and what the rule says that it tolerates.
        moved: the least number of attackers by whom the answer was moved without bound, or became infinite; None where
            no number of them did.
        refused: the least number of attackers that made the rule refuse to answer, or raise an error; None likewise.
        how: what these attackers sent, and from where.
    """

    n: Some
    f: Number
    moved: Number | None
    refused: Number | None
    how: str = ""

    @property
    def point(self) -> int | None:
        """The least number of attackers by whom the answer was moved without bound, or was none."""
        found = [b for b in (self.moved, self.refused) if b is not None]
        return min(found, default=None)

    @property
    def holds(self) -> bool:
        """Whether no f attackers did so."""
        return self.point is None or self.point > self.f


@dataclass(frozen=True)
class Kappa:
    """The greatest ||F(x) - mean_S||^2 / spread_S that a search found (see :func:`varangian.empirical_kappa`).

    Attributes:
        n, f: of how many vectors, and how many may be hostile.
        found: a lower bound of the rule's kappa; infinite where n - f vectors that agree are not followed.
        least: f / (n - 2f), below which no rule can be.
        proved: an upper bound that a paper proves; None where none is known, and behind mixings.
    """

    n: Some
    f: Number
    found: Amount
    least: Amount
    proved: Amount | None


@dataclass(frozen=True)
class Worst:
    """What a search for the worst vector found, in one step on vectors drawn from a normal distribution.

    Attributes:
        n, f: of how many vectors, f of them copies of the one that was found.
        direction: the attack on whose line it lies.
        damage: how far it moves the answer from the honest mean, in spreads (root mean square distances of honest
            vectors to their mean).
        distance: how far from the honest mean it lies itself, in the same unit.
    """

    n: Some
    f: Number
    direction: str
    damage: float
    distance: float


@dataclass(frozen=True)
class Accuracy:
    """What trainings of one kind came to, over the seeds.

    Attributes:
        attack: what attackers sent; None where nobody attacked.
        partition, momentum_at: how data were dealt, and where momentum stood.
        f: how many attackers the rule was told to expect.
        seeds: of each seed the accuracy on the test set, in [0, 1]: the mean of the last five evaluations. A training
            that diverged, was refused or raised an error has learnt nothing, and counts as chance.
        stopped: how many of the trainings ended so; why: the first of them, in words.
    """

    attack: str | None
    partition: str
    momentum_at: str
    f: int
    seeds: tuple[float, ...]
    stopped: int = 0
    why: str = ""

    @property
    def mean(self) -> float:
        return fmean(self.seeds)

    @property
    def low(self) -> float | None:
        """Lower end of a 95 % interval of the mean over the seeds; None where one seed, or equal ones, give none."""
        return _interval(self.seeds)[0]

    @property
    def high(self) -> float | None:
        """The upper end."""
        return _interval(self.seeds)[1]


@lru_cache(maxsize=10_000)
def _interval(seeds: tuple[float, ...]) -> tuple[float | None, float | None]:
    from ..report.statistics import bootstrap  # the package of which brings matplotlib: where an interval is asked for

    return bootstrap([seeds])


NONE = "none"


@dataclass(frozen=True)
class Trained:
    """The trainings of one partition and place of momentum, with a rule that was told to expect f attackers.

    Attributes:
        accuracies: by attack, "none" for none, of each seed; see :class:`Accuracy`.
        stopped: by attack, of how many trainings that ended early, and why the first of them did.
    """

    partition: str
    momentum_at: str
    f: Number
    accuracies: Mapping[str, Seeds]
    stopped: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def each(self) -> Iterator[Accuracy]:
        for attack, seeds in self.accuracies.items():
            name = None if attack == NONE else attack
            stopped, why = self.stopped.get(attack, (0, ""))
            yield Accuracy(name, self.partition, self.momentum_at, self.f, seeds, stopped, why)

    @classmethod
    def of(cls, accuracies: Iterable[Accuracy]) -> tuple[Trained, ...]:
        """Some accuracies, together where they belong together."""
        found: dict[tuple[str, str, int], list[Accuracy]] = {}
        for a in accuracies:
            found.setdefault((a.partition, a.momentum_at, a.f), []).append(a)
        return tuple(
            cls(
                *cell,
                {a.attack or NONE: a.seeds for a in each},
                {a.attack or NONE: (a.stopped, a.why) for a in each if a.stopped},
            )
            for cell, each in found.items()
        )


@dataclass(frozen=True)
class Noise:
    """What a rule that expects f attackers loses where there is none, in one step: the mean squared error on vectors
    drawn from a normal distribution about zero, relative to that of their mean."""

    n: Some
    f: Number
    error: float


@dataclass(frozen=True)
class Breaks:
    """From which f on an attack breaks a rule.

    Attributes:
        rule: the rule, with the mixings before it.
        partition: how data were dealt.
        f: the least number of attackers, known to the rule, with whom the mean accuracy was less than half way from
            chance to what the rule comes to without attack; None where no number that the rule may declare did.
        most: the greatest number that the rule may declare, of those that were tried.
        accuracy: with that f, or with the most; calm: without attack. Means over the seeds.
    """

    rule: str
    partition: str
    f: Number | None
    most: Number
    accuracy: Part
    calm: Part


@dataclass(frozen=True)
class Untried:
    """What was not measured, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Time:
    """Seconds of one aggregation of n vectors of length d (float32, one thread), and how often as many as their plain
    mean takes, in the same process."""

    n: Some
    d: Length
    seconds: Amount
    relative: Amount


@dataclass(frozen=True)
class Memory:
    """The most that one aggregation needs beside the vectors, in bytes, and relative to what the vectors take."""

    n: int
    d: int
    bytes: int
    relative: float


@dataclass(frozen=True)
class Cost:
    """All that another machine, or another hour, would give otherwise.

    Attributes:
        machine: processor, and versions.
        seconds: how long the whole card took.
        time, memory: of the rule.
    """

    machine: str = ""
    seconds: float = 0.0
    time: tuple[Time, ...] = ()
    memory: tuple[Memory, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """The score card of a rule, of a mixing or of an attack.

    Attributes:
        kind: what it is of: a rule (mixings before it belong to it), a mixing (with a rule behind it that was chosen
            for the purpose), or an attack.
        rule: the rule as text, as ``--rule`` takes it; of an attack empty.
        pre: the mixings before it, as text.
        attack: of an attack's card, the attack as text.
        title: what figures call it.
        ours: whether all of it comes with this package.
        declared: of the n vectors of the trainings, how many the rule may declare to be hostile, at most.
        settings: what the trainings had in common.
        conformance: one entry for each stage.
        breakdown: for every f that the rule may declare.
        kappa: for some f.
        worst: of one step; None where it was not measured.
        trained: under each attack and without, for each partition and place of momentum: see ``accuracies``.
        untroubled: without attack, for each f that the rule may be told: see ``price``.
        noise: the same in one step.
        breaks: of an attack: which rules it breaks, and from which f on.
        untried: what was not measured, and why.
        verdict: what it comes to in sentences, by the thresholds of :mod:`varangian.study.score.verdict`; the first
            begins with a word in capitals, or with "not robust".
        cost: what is measured in seconds and bytes. All else is the same each time.
    """

    kind: Kind
    rule: str
    pre: tuple[str, ...]
    attack: str = ""
    title: str = ""
    ours: bool = False
    declared: int = 0
    settings: Settings
    conformance: tuple[Conformance, ...] = ()
    breakdown: tuple[Breakdown, ...] = ()
    kappa: tuple[Kappa, ...] = ()
    worst: Worst | None = None
    trained: tuple[Trained, ...] = ()
    untroubled: tuple[Trained, ...] = ()
    noise: tuple[Noise, ...] = ()
    breaks: tuple[Breaks, ...] = ()
    untried: tuple[Untried, ...] = ()
    verdict: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)

    @property
    def name(self) -> str:
        """ "nnm + krum", "little"."""
        return self.attack or " + ".join([*self.pre, self.rule])

    @cached_property
    def accuracies(self) -> list[Accuracy]:
        """Under each attack and without, for each partition and place of momentum."""
        return [a for trained in self.trained for a in trained.each()]

    @property
    def price(self) -> list[Accuracy]:
        """Without attack, for each f that the rule may be told: what protection costs where nobody attacks."""
        return [a for trained in self.untroubled for a in trained.each()]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """The partitions and places of momentum that there are trainings of."""
        return list(dict.fromkeys((a.partition, a.momentum_at) for a in self.accuracies))

    def calm(self, partition: str, momentum_at: str) -> Accuracy | None:
        """What trainings without attack came to."""
        return next((a for a in self.accuracies if a.attack is None and _at(a, partition, momentum_at)), None)

    def lowest(self, partition: str, momentum_at: str) -> Accuracy | None:
        """The attack under which the mean over the seeds is lowest; None where nothing was attacked."""
        found = [a for a in self.accuracies if a.attack is not None and _at(a, partition, momentum_at)]
        return min(found, key=lambda a: a.mean, default=None)

    @property
    def worst_attack(self) -> Accuracy | None:
        """The attack that takes most from what the same trainings come to without any, wherever that is."""
        found = [a for cell in self.cells if (a := self.lowest(*cell)) is not None]
        return max(found, key=self.loss, default=None)

    def loss(self, accuracy: Accuracy) -> float:
        """What an attack takes: the accuracy without attack less that, both in [0, 1]."""
        calm = self.calm(accuracy.partition, accuracy.momentum_at)
        return (1.0 if calm is None else calm.mean) - accuracy.mean

    @cached_property
    def score(self) -> float | None:
        """The number by which rules are ranked: the accuracy under the attack that is worst for it, in per cent, the
        mean over the four settings of equal and unequal data and of momentum at the server and at the workers.

        None where a setting or an attack was not tried, and of attacks.
        """
        asked = self.settings
        wanted = {(a, p, m) for a in asked.attacks for p in asked.partitions for m in asked.places}
        tried = {(a.attack, a.partition, a.momentum_at) for a in self.accuracies if len(a.seeds) == len(asked.seeds)}
        if self.kind == "attack" or not wanted or wanted - tried:
            return None
        found = [self.lowest(p, place) for p in asked.partitions for place in asked.places]
        return 100 * fmean(a.mean for a in found if a is not None)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, floats with four digits; what is derived of them (name, score) is among them for whoever
        reads it without this package."""
        derived = {"name": self.name, "score": self.score}
        return _plain(asdict(self) | derived | {"format": FORMAT})

    def to_json(self) -> str:
        """As JSON, the same bytes for the same card. Infinity is "inf"."""
        return json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, content: Any) -> Card:
        """From plain values.

        Raises:
            ValueError: they are no card, or one of a newer version.
        """
        if not isinstance(content, Mapping) or not isinstance(content.get("format"), int):
            raise ValueError("this is no score card: a JSON object with a format, kind, rule ...")
        if content["format"] > FORMAT:
            raise ValueError(f"this score card has format {content['format']}, of a newer version; known is {FORMAT}.")
        values = {name: value for name, value in content.items() if name not in ("format", "name", "score")}
        try:
            return _adapter().validate_python(check_depth(values))
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise ValueError(f"this is no score card: {cut(place)} {reason(error).split(' or ')[0]}.") from None

    @classmethod
    def from_json(cls, text: str) -> Card:
        """From JSON, which anybody may have written.

        Raises:
            ValueError: it is no card.
        """
        return cls.from_dict(parse_json(text))

    def rounded(self) -> Card:
        """As it comes back from its JSON."""
        return Card.from_dict(self.to_dict())


def _at(a: Accuracy, partition: str, momentum_at: str) -> bool:
    return (a.partition, a.momentum_at) == (partition, momentum_at)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Card]:
    return TypeAdapter(Card)


def _plain(value: Any) -> Any:
    """Lists, dicts, text and numbers of four digits; infinity, which JSON lacks, as text that reads as a number."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    return value


# ------------------------------------------------------------------------------------------------------- many of them


@dataclass(frozen=True)
class Place:
    """Where a card stands among others: place 1 is the best, of so many, itself included."""

    place: int
    of: int


def place(card: Card, cards: Iterable[Card]) -> Place | None:
    """Where the card of a rule stands among those that were measured with the same settings, by :attr:`Card.score`.

    None where it has no score. A card of the same name among the others is not counted.
    """
    mine = card.score
    if mine is None:
        return None
    scores = [
        score
        for other in cards
        if other.settings == card.settings and other.name != card.name and (score := other.score) is not None
    ]
    return Place(1 + sum(score > mine for score in scores), 1 + len(scores))


def stored() -> tuple[Card, ...]:
    """The cards that come with the package: built-in rules, the usual compositions, attacks. Read once a process."""
    return _stored()


@lru_cache(maxsize=1)
def _stored() -> tuple[Card, ...]:
    text = files("varangian.study.score").joinpath(STORED).read_text("utf-8")
    return cards_of(text)


def cards_of(text: str) -> tuple[Card, ...]:
    """Cards from the JSON of several.

    Raises:
        ValueError: it is none.
    """
    content = json.loads(text)
    if not isinstance(content, Mapping) or not isinstance(content.get("cards"), list):
        raise ValueError('these are no score cards: {"cards": [...]}.')
    return tuple(Card.from_dict(card) for card in content["cards"])


def text_of(cards: Iterable[Card]) -> str:
    """The JSON of several cards, by kind and name, a line a card: what stands in the package. All but what is in
    ``cost`` is the same bytes each time."""
    ordered = sorted(cards, key=lambda card: (card.kind == "attack", card.name))
    lines = [json.dumps(card.to_dict(), sort_keys=True, allow_nan=False, separators=(",", ":")) for card in ordered]
    return '{"cards": [\n' + ",\n".join(lines) + "\n]}\n"


__all__ = [
    "NONE", "Accuracy", "Breakdown", "Breaks", "Card", "Conformance", "Cost", "Failed", "Kappa", "Kind", "Memory",
    "Noise", "Place", "Settings", "Time", "Trained", "Untried", "Worst", "cards_of", "place", "stored", "text_of",
]  # fmt: skip
