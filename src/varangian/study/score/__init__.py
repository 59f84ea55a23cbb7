"""The score card of a rule, a mixing or an attack, ours or anybody's: measured in minutes, offline, the same each time.

What is measured: the contract (:mod:`varangian.testing`), how many attackers undo it (:mod:`.breaking`), the empirical
kappa (:mod:`varangian.core.theory`), accuracies under every attack and what protection costs (:mod:`.training`), time
and memory (:mod:`.timing`). :class:`Card` holds it; :mod:`.verdict` says it in sentences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...core.attacks import Knowledge, WorstCase
from ...core.attacks.search import LINES
from ...core.checks import cut
from ...core.randomness import generator
from ...core.references import importing, said_of
from ...core.rules import RULES
from ...core.specs import make
from ...core.theory import empirical_kappa
from ...runs.environment import processor, versions
from ...runs.experiment import Experiment
from ...testing import ContractError, check_attack, check_mixing, check_rule
from . import training
from .breaking import breakdown
from .card import (
    Accuracy,
    Breakdown,
    Breaks,
    Card,
    Conformance,
    Cost,
    Failed,
    Kappa,
    Kind,
    Noise,
    Place,
    Settings,
    Trained,
    Untried,
    Worst,
    cards_of,
    place,
    stored,
    text_of,
)  # fmt: skip
from .subject import BEHIND, KINDS, Subject, subject_of
from .timing import cost
from .training import Box
from .verdict import verdict

BUDGET = 240.0
"""Seconds after which no training is begun any more: a card of a rule of sane speed takes a quarter of that."""
SLOW = 0.05
"""Seconds of one aggregation of small vectors from which a rule is too slow for what asks it thousands of times."""
ASKED = 300  # times that a search for kappa asks

Progress = Callable[[str, int, int], object]
"""Called with what is going on, how many steps of the card are done, and how many there are."""


def score(
    subject: Any,
    *,
    pre: Any = (),
    behind: Any = None,
    kind: Kind | None = None,
    quick: bool = False,
    budget: float = BUDGET,
    progress: Progress | None = None,
    cards: Iterable[Card] | None = None,
) -> Card:
    """The score card of a rule, of a mixing with a rule behind it, or of an attack.

    Args:
        subject: its name or reference as text, as ``--rule`` takes it: "krum", "my_rule.py:MyRule(m=3)"; or a class
            or an object, whose f does not matter. Code of somebody's own is imported.
        pre: mixings before a rule, given likewise.
        behind: the rule behind a mixing; the median by default.
        kind: "rule", "mixing" or "attack", where a name is of several; a rule is looked for first.
        quick: five attacks and one seed: some seconds, and not ranked.
        budget: seconds after which no training is begun any more; what is left out so is among ``untried``.
        progress: called as it goes on.
        cards: of rules, from which the card of an attack takes what they come to without attack; those that come with
            the package by default.

    All but ``cost`` is the same each time on one machine, as long as the budget leaves nothing out. What code of
    somebody's own raises where it must answer is written on the card; the rest is measured all the same.

    Raises:
        ValueError: no such rule, mixing or attack; options that are none.

    Example:
        >>> card = score("average", quick=True)
        >>> card.verdict[0]
        'not robust: it may be told of no attacker, and claims nothing.'
        >>> Card.from_json(card.to_json()) == card
        True
    """
    about = subject if isinstance(subject, Subject) else subject_of(subject, pre=pre, behind=behind, kind=kind)
    if not budget > 0:
        raise ValueError(f"budget must be a number of seconds > 0, got {budget}.")
    measured = _Measuring(about, training.settings(quick), Box(budget), progress)
    with importing(True), _one_thread():
        return (
            measured.attack_card(stored() if cards is None else cards)
            if about.kind == "attack"
            else measured.rule_card()
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """The number of threads decides the last bits of some sums."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)


class _Measuring:
    """One card in the making."""

    def __init__(self, subject: Subject, settings: Settings, box: Box, progress: Progress | None) -> None:
        self.subject, self.settings, self.box, self.progress = subject, settings, box, progress
        self.untried: list[Untried] = []
        self.done, self.total, self.what = 0, 1, ""

    def tell(self, what: str | None = None, steps: int = 0) -> None:
        self.what = self.what if what is None else what
        self.done += steps
        if self.progress is not None:
            self.progress(self.what, self.done, max(self.total, self.done))

    def lacks(self, what: str, why: str) -> None:
        self.untried.append(Untried(what, cut(why)))

    @property
    def left_out(self) -> tuple[Untried, ...]:
        """What was not measured, together what lacks for one reason."""
        found: dict[str, list[str]] = {}
        for untried in self.untried:
            found.setdefault(untried.why, []).append(untried.what)
        return tuple(Untried(", ".join(what), why) for why, what in found.items())

    def rule_card(self) -> Card:
        s, asked = self.subject, self.settings
        told = s.told(asked.n)
        most = max(told, default=0)
        if 0 < most < asked.f:
            self.lacks(f"trainings with {asked.f} attackers", f"it may be told of {most} among {asked.n} at most")
            asked = self.settings = replace(asked, f=most)
        cells = len(asked.partitions) * len(asked.places) * len(asked.seeds)
        prices = len(told) * len(asked.partitions) * len(asked.seeds)
        self.total = 40 + cells * (1 + len(asked.attacks)) + prices
        slow = self.speed(most) if told else f"it needs more than {asked.n} vectors"
        self.tell("contract")
        conformance = list(self.conformance(slow if told else ""))
        self.tell("breakdown", 20)
        each = told + [asked.f] * (asked.f not in told and s.allows(asked.n, asked.f))
        found: list[Breakdown] = []
        if slow:
            self.lacks("breakdown, kappa, worst vector and noise", slow)
        else:
            found = [breakdown(s, asked.n, f) for f in each]
        self.tell("kappa", 5)
        kappas = [] if slow else list(self.kappas([f for f in each if f > 0 and 2 * f < asked.n]))
        worst = None if slow else self.worst(asked.f if s.allows(asked.n, asked.f) else most)
        noise = [] if slow else list(self.noise(told))
        self.tell("time and memory", 10)
        times, memories, left_out = cost(s, lambda n: min(n // 5, s.greatest(n)))
        self.untried += left_out
        self.tell("training", 5)
        accuracies, prices_found = self.trainings(told)
        machine = f"{processor()}, torch {versions()['torch']}, numpy {versions()['numpy']}"
        for name, why in training.APART.items():
            self.lacks(f"trainings under {name}", why)
        card = Card(
            kind=s.kind, rule=s.rule, pre=s.pre, title=s.title, ours=s.ours, declared=most, settings=asked,
            conformance=tuple(conformance), breakdown=tuple(found), kappa=tuple(kappas), worst=worst,
            trained=Trained.of(accuracies), untroubled=Trained.of(prices_found), noise=tuple(noise),
            untried=self.left_out,
        )  # fmt: skip
        return self.whole(card, Cost(machine, self.spent, tuple(times), tuple(memories)))

    def whole(self, card: Card, cost: Cost) -> Card:
        self.tell("", self.total - self.done)
        card = card.rounded()
        return replace(card, verdict=verdict(card), cost=cost).rounded()

    @property
    def spent(self) -> float:
        return self.box.seconds - self.box.left

    def speed(self, most: int) -> str:
        """Why the rule is too slow for what asks it thousands of times; empty where it is not."""
        x = torch.from_numpy(generator(0, "speed").standard_normal((self.settings.n, 3)))
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            try:
                self.subject.answer(x, most, x.mean(0))
            except Exception:
                return ""  # which the contract will say
            taken.append(time.perf_counter() - began)
        self.box.pace = min(taken) * self.settings.steps
        return f"one aggregation takes {min(taken):.2g} s, and thousands are asked for" if min(taken) > SLOW else ""

    def conformance(self, slow: str) -> Iterator[Conformance]:
        s = self.subject
        stages: list[tuple[Any, str, str]] = [(check_mixing, "mixing", text) for text in s.pre]
        stages += [(check_rule, "rule", s.rule)] if s.kind != "attack" else [(check_attack, "attack", s.attack)]
        for check, kind, text in stages:
            if slow:
                self.lacks(f"contract of {text}", slow)
                continue
            yield _conformance(check, kind, text)

    def kappas(self, each: Sequence[int]) -> Iterator[Kappa]:
        n = self.settings.n
        for f in each:
            pre, rule = self.subject.stages(f)
            if rule.needs_root:
                self.lacks("kappa", "it trusts a root vector, which the definition of kappa lacks")
                return
            try:
                found = empirical_kappa(rule, n, evaluations=ASKED, pre=pre)
                proved = None if pre else rule.kappa_bound(n)
            except Exception as error:
                self.lacks(f"kappa at f = {f}", said_of(error))
                continue
            yield Kappa(n, f, found, f / (n - 2 * f), proved)

    def worst(self, f: int) -> Worst | None:
        """The worst vector in one step, as the adversary who knows all searches it."""
        n, d = self.settings.n, 50
        honest = torch.from_numpy(generator(0, "worst").standard_normal((n - f, d)) + 1.0)
        mean = honest.mean(0)
        spread = float((honest - mean).square().sum(1).mean().sqrt())
        search = WorstCase(tuple(LINES), evaluations=48)
        seen = Knowledge(honest, f, lambda x: self.subject.answer(x, f, mean), None, generator(0, "attack"))
        try:
            found = search.find(seen)
        except Exception as error:
            self.lacks("worst vector", said_of(error))
            return None
        distance = float((found.vector - mean).norm())
        return Worst(n, f, found.direction, found.damage / spread, distance / spread)

    def noise(self, each: Sequence[int]) -> Iterator[Noise]:
        """What is lost without attack in one step."""
        n, d, draws = self.settings.n, 50, 40
        random = generator(0, "noise")
        x = [torch.from_numpy(random.standard_normal((n, d))) for _ in range(draws)]
        mean = np.mean([float(v.mean(0).square().sum()) for v in x])
        for f in each:
            try:
                error = np.mean([float(self.subject.answer(v, f, v.mean(0)).square().sum()) for v in x])
            except Exception as problem:
                self.lacks(f"noise at f = {f}", said_of(problem))
                continue
            yield Noise(n, f, float(error / mean))

    def trainings(self, told: Sequence[int]) -> tuple[list[Accuracy], list[Accuracy]]:
        s, asked = self.subject, self.settings
        if s.example[1].needs_root:
            self.lacks("trainings", "it trusts a root vector, which the server of a run has not")
            return [], []
        if not s.allows(asked.n, asked.f):
            self.lacks("trainings", f"it cannot be told to expect {asked.f} of {asked.n} workers")
            return [], []
        known: dict[str, training.Ended] = {}
        found, late = [], []
        for attack, experiments in training.by_attack(asked, s):
            self.tell("no attack" if attack is None else attack)
            cells = training.accuracies(experiments, lambda i: self.tell(steps=i), self.box, known)
            if cells is None:
                late.append("without attack" if attack is None else f"under {attack}")
            else:
                found += cells
        self.tell("price")
        prices = training.accuracies(
            training.price(asked, s, told), lambda i: self.tell(steps=i), self.box, known
        )  # fmt: skip
        if prices is None:
            late.append("without attack for every f")
        for what in late:
            self.lacks(f"trainings {what}", f"they would not end within {self.box.seconds:.0f} s")
        return found, prices or []

    def attack_card(self, cards: Iterable[Card]) -> Card:
        s, asked = self.subject, self.settings
        victims = training.victims()
        self.total = 20 + len(victims) * len(asked.partitions)
        self.tell("contract")
        conformance = list(self.conformance(""))
        known = {card.name: card for card in cards if card.kind == "rule" and card.settings == training.settings()}
        found: list[Breaks] = []
        self.tell("", 20)
        for victim in victims:
            self.tell(f"against {victim.name}")
            card = known.get(victim.name)
            broken, why = training.breaks(asked, s.attack, victim, card, lambda i: self.tell(steps=i), self.box)
            found += broken
            if why:
                self.lacks(f"against {victim.name}", why)
        if Experiment(attack=s.attack).aims:
            self.lacks("how often its own aim is reached", "a card is about accuracies")
        self.lacks("against mixings before a rule", "the rules are tried alone")
        self.lacks(
            "momentum at the server", "the rules are tried with momentum at the workers, where they are strongest"
        )
        card = Card(
            kind="attack", rule="", pre=(), attack=s.attack, title=s.title, ours=s.ours, settings=asked,
            conformance=tuple(conformance), breaks=tuple(found), untried=self.left_out,
        )  # fmt: skip
        machine = f"{processor()}, torch {versions()['torch']}, numpy {versions()['numpy']}"
        return self.whole(card, Cost(machine, self.spent))


def _conformance(check: Callable[..., Any], kind: Any, text: str) -> Conformance:
    table = KINDS[kind][1]

    def made(*f: int) -> Any:
        return make(kind, text, table, **dict(zip(("f",), f, strict=False)))

    made.__name__ = text
    try:
        report = check(made)
    except ContractError as error:
        failed = tuple(Failed(f.check.name, f.check.value, cut(f.message)) for f in error.failures)
        return Conformance(text, (), failed, {})
    except ValueError as error:
        return Conformance(text, (), (Failed("KIND", "it can be made, for some f", cut(str(error))),), {})
    passed = tuple(point.name for point in report.passed)
    return Conformance(text, passed, (), {p.name: why for p, why in report.left_out.items()}, report.guarantee)


def usual() -> list[Subject]:
    """What ``varangian score --all`` scores: every built-in rule, the usual compositions, and every attack."""
    rules = [Subject("rule", name) for name in RULES]
    mixed = [
        Subject("rule", rule, pre)
        for pre, each in COMPOSITIONS.items()
        for rule in each
    ]  # fmt: skip
    return [*rules, *mixed, *(Subject("attack", "", (), text) for text in training.settings().attacks)]


_BEFORE = ("krum", "multi-krum", "median", "trimmed-mean", "geometric-median")
COMPOSITIONS = {
    ("nnm",): (*_BEFORE, "centered-clipping", "average", "meamed"),
    ("bucketing",): ("median", "geometric-median", "centered-clipping"),  # six vectors of 11, too few for krum
    ("arc",): ("median", "geometric-median", "trimmed-mean"),
    ("clipping",): ("median",),
}

__all__ = [
    "BEHIND", "BUDGET", "COMPOSITIONS", "Accuracy", "Breakdown", "Breaks", "Card", "Conformance", "Cost",
    "Kappa", "Kind", "Noise", "Place", "Settings", "Subject", "Trained", "Untried", "Worst", "cards_of", "place",
    "score", "stored", "subject_of", "text_of", "usual",
]  # fmt: skip
