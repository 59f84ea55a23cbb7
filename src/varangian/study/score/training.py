"""Accuracies: under every attack that is about them, and without any; what protection costs; what an attack breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import Any

from ...core.attacks import ATTACKS
from ...core.checks import cut
from ...core.references import said_of
from ...core.rules import RULES
from ...runs.building import open_dataset
from ...runs.experiment import ConfigurationError, Experiment
from ...runs.running import run
from ...simulation.data import Dataset
from ..grid import Grid
from .card import Accuracy, Breaks, Card, Settings
from .subject import Subject

LAST = 5  # evaluations whose mean is the accuracy of a training
CLASSES = 10  # of the digits
CHANCE = 1 / CLASSES
RAISED = "raised"  # as the reason why a training ended begins, where it was an error

# Attacks of the table that are not trained under, and why; and how often the search tries.
APART: Mapping[str, str] = {
    "backdoor": "aims at what is answered to a trigger, not at the accuracy",
    "hidden": "aims at what is answered to a trigger, not at the accuracy",
    "inf": "like nan to whoever looks whether vectors are finite, which the contract tries of every kind",
    "scattered": "little, with noise about it that adds up to nothing",
}
OPTIONS: Mapping[str, str] = {"worst-case": "worst-case(evaluations=8)"}
_QUICK = ("little", "empire", "sign-flip", "nan", "mimic")


def settings(quick: bool = False) -> Settings:
    """What trainings have in common: those of ``varangian demo``, with as many workers as let every built-in rule
    expect two attackers, and batches of 4."""
    every = tuple(OPTIONS.get(name, name) for name in ATTACKS if name not in APART)
    return Settings(
        dataset="digits", model="fully-connected", n=11, f=2, steps=60, batch_size=4, learning_rate=0.1, momentum=0.9,
        clip=2.0, partitions=("iid", "dirichlet(alpha=0.1)"), places=("server", "worker"),
        seeds=(1,) if quick else (1, 2, 3), attacks=_QUICK if quick else every,
    )  # fmt: skip


def grid(asked: Settings, subject: Subject, **other: Any) -> Grid:
    """The trainings of a subject: all partitions, places of momentum and seeds, unless said otherwise."""
    values: dict[str, Any] = {
        "dataset": asked.dataset, "model": asked.model, "workers": asked.n, "byzantine": asked.f,
        "steps": asked.steps, "batch_size": asked.batch_size, "learning_rate": asked.learning_rate,
        "momentum": asked.momentum, "clip": asked.clip, "evaluate_every": asked.steps // 12, "measure": False,
        "rule": subject.rule, "pre": [list(subject.pre)], "partition": list(asked.partitions),
        "momentum_at": list(asked.places),
    }  # fmt: skip
    return Grid(values | other, asked.seeds)


@dataclass(eq=False)
class Box:
    """Seconds that may be spent, and what a training takes, as far as one knows: what does not fit is not begun."""

    seconds: float
    pace: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)


@dataclass(frozen=True)
class Ended:
    """What one training came to, and why it learnt nothing, if so."""

    experiment: Experiment
    accuracy: float
    why: str
    seconds: float


@lru_cache(maxsize=2)
def _data(name: str) -> Dataset:
    return open_dataset(Experiment(dataset=name))


def train(e: Experiment) -> Ended:
    """One training. What it raises, as code of somebody's own may, is told and not raised."""
    began = time.perf_counter()
    try:
        result = run(e, dataset=_data(e.dataset))
    except Exception as error:
        return Ended(e, CHANCE, f"{RAISED} {said_of(error)}", time.perf_counter() - began)
    seconds = time.perf_counter() - began
    if result.stopped is not None:
        return Ended(e, CHANCE, result.stopped, seconds)
    return Ended(e, fmean(evaluation.accuracy for evaluation in result.evaluations[-LAST:]), "", seconds)


def accuracies(
    experiments: Sequence[Experiment], done: Callable[[int], object], box: Box, known: dict[str, Ended] | None = None
) -> list[Accuracy] | None:
    """What these came to, seeds together, in the order of the grid; None where they do not fit into the time left, by
    what the last training took."""
    found: dict[tuple[str | None, str, str, int], list[Ended]] = {}
    known = {} if known is None else known
    todo = sum(e.digest not in known for e in experiments)
    for e in experiments:
        if e.digest not in known:
            if box.left < todo * box.pace or box.left <= 0:
                return None
            known[e.digest] = train(e)
            box.pace, todo = known[e.digest].seconds, todo - 1
        found.setdefault((e.attack, e.partition, e.momentum_at, e.byzantine), []).append(known[e.digest])
        done(1)
    return [
        Accuracy(
            attack, partition, place, f, tuple(end.accuracy for end in ends),
            sum(bool(end.why) for end in ends), next((cut(end.why) for end in ends if end.why), ""),
        )
        for (attack, partition, place, f), ends in found.items()
    ]  # fmt: skip


def by_attack(asked: Settings, subject: Subject) -> Iterator[tuple[str | None, list[Experiment]]]:
    """The trainings without attack, then those under each, the dearest last."""
    yield None, grid(asked, subject, real_byzantine=0).experiments()
    for attack in sorted(asked.attacks, key=lambda attack: attack in OPTIONS.values()):
        yield attack, grid(asked, subject, attack=attack).experiments()


def price(asked: Settings, subject: Subject, told: Iterable[int]) -> list[Experiment]:
    """Trainings without attack for every f that the subject may be told, momentum at the workers."""
    each = [grid(asked, subject, byzantine=f, real_byzantine=0, momentum_at="worker") for f in told]
    return [e for one in each for e in one.experiments()]


def victims() -> list[Subject]:
    """The built-in rules that an attack is tried against: those that claim to tolerate some."""
    return [Subject("rule", name) for name, rule in RULES.items() if rule.robust and not rule.needs_root]


def breaks(
    asked: Settings, attack: str, victim: Subject, card: Card | None, done: Callable[[int], object], box: Box
) -> tuple[list[Breaks], str]:
    """From which f on an attack breaks a rule, for each partition, momentum at the workers; and why not for all.

    What is not broken with as many attackers as rule and attack allow, fewer than half, is not tried with fewer.
    Accuracies without attack are those of the rule's card, where it has these seeds, else they are trained here.
    """
    most, found = min(victim.greatest(asked.n), (asked.n - 1) // 2), []
    refused = ""
    while most and (refused := _refused(asked, attack, victim, most)):  # as of an attack that needs more honest vectors
        most -= 1
    if not most and refused:
        return found, refused
    for partition in asked.partitions if most else ():
        answer = None
        for f in (most, *range(1, most)):
            at = {"partition": partition, "momentum_at": "worker", "byzantine": f}
            calm = _calm(asked, card, partition, f)
            if calm is None:
                without = accuracies(grid(asked, victim, real_byzantine=0, **at).experiments(), lambda _: None, box)
                calm = without[0].mean if without is not None else None
            attacked = accuracies(grid(asked, victim, attack=attack, **at).experiments(), lambda _: None, box)
            if attacked is None or calm is None:
                return found, f"it would not end within {box.seconds:.0f} s"
            if attacked[0].why.startswith(RAISED):
                return found, attacked[0].why
            broken = attacked[0].mean < (calm + CHANCE) / 2
            if f == most or broken:
                answer = Breaks(victim.name, partition, f if broken else None, most, attacked[0].mean, calm)
            if broken is (f != most):  # not by the most, or by the fewest
                break
        found += [] if answer is None else [answer]
        done(1)
    return found, ""


def _refused(asked: Settings, attack: str, victim: Subject, f: int) -> str:
    """Why there can be no training with f attackers; empty where there can."""
    try:
        grid(asked, victim, attack=attack, byzantine=f)
    except ConfigurationError as error:
        return str(error)
    return ""


def _calm(asked: Settings, card: Card | None, partition: str, f: int) -> float | None:
    """What a rule that is told of f comes to without attack, by its card; None where that does not know."""
    for a in card.price if card is not None else ():
        seeds = dict(zip(card.settings.seeds, a.seeds, strict=False)) if card is not None else {}
        if (a.partition, a.f) == (partition, f) and set(asked.seeds) <= set(seeds):
            return fmean(seeds[seed] for seed in asked.seeds)
    return None
