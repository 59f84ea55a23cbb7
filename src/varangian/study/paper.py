"""The study of the paper as data: its grid of runs, which of them are compared, and what it claims.

A *pair* is the question of the paper put once: the same run with momentum at the server and at the workers.
Its *reference* is the same run by honest workers alone, averaged.

    loss = reference - server         what the attack costs the usual formulation, in points of top-1 accuracy
    gain = worker - server            what the paper's formulation brings back

Reference: El-Mhamdi, Guerraoui, Rouault, "Distributed Momentum for Byzantine-resilient SGD", ICLR 2021.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

from ..runs.building import code_of
from ..runs.experiment import HASHES, Experiment, moved
from .grid import Grid
from .outcomes import Outcome, rule_name

Profile = Literal["described", "published"]
Measure = Literal["max", "final"]
Rates = tuple[float | tuple[tuple[int, float], ...], ...]

SEEDS = (1, 2, 3, 4, 5)
RULES = ("multi-krum", "median", "trimmed-mean", "phocas", "meamed")  # for both f
ATTACKS = ("little", "empire")  # their defaults are the paper's factors, 1.5 and 1.1
PLACES = ("server", "worker")
MEASURES: tuple[Measure, ...] = ("max", "final")


# ------------------------------------------------------------------------------------------------------------ the grid


@dataclass(frozen=True)
class Panel:
    """One data set and model of the study.

    Attributes:
        title: as the poster has it.
        network: of which kind of network the claims speak.
        base: what its runs share; seed, profile, rule and the like are filled in.
        half, quarter: the two f.
        described, published: the learning rates as the paper says, and as its code computed them.
        kinds: whether momentum is Nesterov's.
        rules: for both f; Bulyan joins them for a quarter.
        main: whether it belongs to the main study.
        ours: whether the paper has no such panel: it is run only where it is asked for by name.
    """

    name: str
    title: str
    network: Literal["fully connected", "convolutional", "wide-resnet"]
    base: Experiment
    half: int
    quarter: int
    described: Rates
    published: Rates
    kinds: tuple[bool, ...] = (False, True)
    rules: tuple[str, ...] = RULES
    main: bool = True
    ours: bool = False

    def grid(self, seeds: Sequence[int] = SEEDS, profile: Profile = "described", quick: bool = False) -> Grid:
        """Its runs, one seed after the other, the references before those that are compared with them.

        Args:
            seeds: of each combination.
            profile: as the paper says, or as its code computed.
            quick: only the first learning rate.
        """
        rates = self.described if profile == "described" else self.published
        shared = {name: value for name, value in self.base.to_dict().items() if name not in ("seed", *HASHES)}
        varied = {"profile": profile, "learning_rate": rates[:1] if quick else rates, "nesterov": self.kinds}
        cases: list[dict[str, Any]] = []
        for f in (self.half, self.quarter):
            rules = [*self.rules, *(["bulyan"] if f == self.quarter else [])]
            cases.append({"workers": self.base.workers - f} | _UNATTACKED)
            cases.append({"byzantine": f, "rule": rules, "attack": ATTACKS, "momentum_at": PLACES})
        return Grid(shared | varied, seeds, cases=cases)

    def experiments(self, seeds: Sequence[int] = SEEDS, profile: Profile = "described") -> list[Experiment]:
        """Those of its grid."""
        return self.grid(seeds, profile).experiments()


_UNATTACKED: dict[str, Any] = {"byzantine": 0, "real_byzantine": None, "rule": "average", "pre": (), "attack": None,
                               "knowledge": "omniscient", "momentum_at": "server", "quarantine": None}  # fmt: skip


def unattacked(experiment: Experiment, honest: int) -> Experiment:
    """The reference of a run: its honest workers alone, averaged. Where momentum stands then changes nothing."""
    return replace(experiment, workers=honest, **_UNATTACKED)


def _decayed(rate: float) -> tuple[tuple[int, float], ...]:
    """The published code's schedule on CIFAR: rate / (step / 167 + 1), computed anew every 1500 steps."""
    return tuple((step, rate / (step / 167 + 1)) for step in (0, 1500))


_SMALL = Experiment(
    model="fully-connected",
    workers=51,
    momentum=0.9,
    clip=2.0,
    batch_size=83,
    steps=300,
    evaluate_every=5,
    l2=1e-4,
)
_CIFAR = Experiment(
    model="cnn",
    workers=25,
    momentum=0.99,
    clip=5.0,
    batch_size=50,
    steps=3000,
    evaluate_every=100,
    l2=1e-2,
)
_WIDE = Experiment(
    dataset="cifar-10",
    model="wide-resnet",
    workers=11,
    momentum=0.99,
    clip=5.0,
    batch_size=20,
    steps=20000,
    evaluate_every=100,
    l2=5e-4,
)
_SMALL_RATES: Rates = (0.5, 0.02)
_CIFAR_RATES: Rates = (((0, 0.01), (1500, 0.001)), 0.001)
_CIFAR_PUBLISHED: Rates = (_decayed(0.01), 0.001)
_WIDE_RATES: Rates = (((0, 0.02), (8000, 0.004), (16000, 0.0008)),)

PANELS: dict[str, Panel] = {
    panel.name: panel
    for panel in (
        Panel("mnist", "Fully connected, MNIST", "fully connected", replace(_SMALL, dataset="mnist"),
              24, 12, _SMALL_RATES, _SMALL_RATES),
        Panel("fashion-mnist", "Fully connected, Fashion-MNIST", "fully connected",
              replace(_SMALL, dataset="fashion-mnist"), 24, 12, _SMALL_RATES, _SMALL_RATES),
        Panel("cifar-10", "Convolutional, CIFAR-10", "convolutional", replace(_CIFAR, dataset="cifar-10"),
              11, 5, _CIFAR_RATES, _CIFAR_PUBLISHED),
        Panel("cifar-100", "Convolutional, CIFAR-100", "convolutional", replace(_CIFAR, dataset="cifar-100"),
              11, 5, _CIFAR_RATES, _CIFAR_PUBLISHED),
        Panel("wide-resnet", "Wide-ResNet-28-10, CIFAR-10", "wide-resnet", _WIDE,
              4, 2, _WIDE_RATES, _WIDE_RATES, (True,), ("multi-krum", "median"), main=False),
        Panel("cnn-fashion-mnist", "Convolutional, Fashion-MNIST padded to 32 x 32", "convolutional",
              replace(_CIFAR, dataset="fashion-mnist", model="cnn(pad=2)"),
              11, 5, _CIFAR_RATES, _CIFAR_PUBLISHED, main=False, ours=True),
    )
}  # fmt: skip
OF_THE_PAPER = tuple(name for name, panel in PANELS.items() if not panel.ours)


def grids(
    panels: Iterable[str] = OF_THE_PAPER,
    seeds: Sequence[int] = SEEDS,
    profile: Profile = "described",
    quick: bool = False,
) -> list[Grid]:
    """All runs of some panels, by default the paper's.

    quick: every cell of the poster once, with the first learning rate and the first seed.

    Example:
        >>> [len(grid) for grid in grids(["fashion-mnist", "wide-resnet"], seeds=[1])]
        [184, 22]
        >>> [len(grid) for grid in grids(["fashion-mnist"], quick=True)]
        [92]
    """
    return [PANELS[name].grid(seeds[:1] if quick else seeds, profile, quick) for name in panels]


@lru_cache(maxsize=2**14)
def panel_of(experiment: Experiment) -> Panel | None:
    """The panel that a run belongs to: of which it is one of the experiments, whatever seed, place and device."""
    members = _members(experiment.dataset)
    return members.get(_cell(experiment).digest) if members and experiment.momentum_at in PLACES else None


def _cell(experiment: Experiment) -> Experiment:
    """All runs of one box of the poster, at either place, as one."""
    return replace(moved(experiment, "cpu"), momentum_at="server", seed=0, measure=True)


@lru_cache
def _members(dataset: str) -> dict[str, Panel]:
    """The panel of each cell of the study on a data set, by the cell's digest."""
    profiles: tuple[Profile, ...] = ("described", "published")
    return {
        _cell(e).digest: panel
        for panel in PANELS.values()
        if panel.base.dataset == dataset
        for profile in profiles
        for e in panel.experiments((0,), profile)
    }


# ----------------------------------------------------------------------------------------------------------- the pairs


@dataclass(frozen=True, eq=False)
class Pair:
    """The same run with momentum at the server and at the workers, and its reference if there is one."""

    server: Outcome
    worker: Outcome
    reference: Outcome | None = None

    @property
    def experiment(self) -> Experiment:
        return self.server.experiment

    def loss(self, measure: Measure = "max") -> float | None:
        """What the attack costs the usual formulation, in points."""
        return (
            None
            if self.reference is None
            else _points(accuracy(self.reference, measure), accuracy(self.server, measure))
        )

    def gain(self, measure: Measure = "max") -> float:
        """What momentum at the workers brings, in points."""
        return _points(accuracy(self.worker, measure), accuracy(self.server, measure))


def mean_gain(pairs: Sequence[Pair], measure: Measure = "max") -> float:
    """The gain of several pairs, in points: the mean of their gains, which is the difference of their mean accuracies.

    Everything that speaks of the gain of more than one pair means this.
    """
    return statistics.fmean(pair.gain(measure) for pair in pairs)


def accuracy(outcome: Outcome, measure: Measure) -> float:
    """In [0, 1]."""
    return outcome.max_accuracy if measure == "max" else outcome.final_accuracy


def _points(a: float, b: float) -> float:
    return round(100 * (a - b), 9)  # so that 0.8 - 0.6 is 20 points and not a little less


@dataclass(frozen=True, eq=False)
class Account:
    """What became of some runs: each is in one of these lists, or in a pair.

    Attributes:
        pairs: an attacked run at the server beside its twin at the workers.
        alone: attacked runs without their twin.
        elsewhere: attacked runs that have none: without momentum, or with the shared one.
        unused: runs without attack that are no pair's reference.
        again: runs that are there already, but for whether they were measured.
    """

    pairs: list[Pair]
    alone: list[Outcome]
    elsewhere: list[Outcome]
    unused: list[Outcome]
    again: list[Outcome]

    def notes(self) -> list[str]:
        """A line on all runs that are in no pair, and on what pairs lack."""
        unknown = [pair.server for pair in self.pairs if pair.reference is None]
        lists = (
            (self.alone, "attacked run", "without a twin, the same run with momentum at the other place"),
            (self.elsewhere, "attacked run", "with momentum at neither the server nor the workers"),
            (self.unused, "run", "without attack that no pair is compared with"),
            (self.again, "run", "kept already"),
            (unknown, "pair", "without a reference, so what the attack cost is not known"),
        )
        return [f"{counted(len(runs), noun)} {what}: {_first(runs)}" for runs, noun, what in lists if runs]


def counted(number: int, noun: str) -> str:
    """So many of them.

    Example:
        >>> counted(1, "run"), counted(1760, "pair")
        ('1 run', '1,760 pairs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _first(runs: Sequence[Outcome]) -> str:
    names = ", ".join(o.experiment.name for o in runs[:3])
    return names + (f" and {len(runs) - 3:,} more" if len(runs) > 3 else "")


def account(outcomes: Iterable[Outcome]) -> Account:
    """Which runs are compared with which, and which are not."""
    found: dict[tuple[str, str], Outcome] = {}
    again = [o for o in outcomes if found.setdefault(_key(o), o) is not o]
    references: dict[tuple[object, ...], Outcome | None] = {}
    made, alone, elsewhere = [], [], []
    paired, used = set(), set()
    for key, server in found.items():
        e = server.experiment
        if e.attack is None or not e.momentum or e.momentum_at != "server":
            continue
        twin = _key(server, replace(e, momentum_at="worker"))
        if twin in found:
            kept = (getattr(e, name) for name in _KEPT)
            honest = (server.source, e.honest, *kept)  # many runs have one reference
            if honest not in references:
                references[honest] = _reference_of(server, found)
            reference = references[honest]
            made.append(Pair(server, found[twin], reference))
            paired |= {key, twin}
            used |= set() if reference is None else {_key(reference)}
    for key, o in found.items():
        if o.experiment.attack is not None and key not in paired:
            (alone if o.experiment.momentum and o.experiment.momentum_at in PLACES else elsewhere).append(o)
    unused = [o for key, o in found.items() if o.experiment.attack is None and key not in used]
    return Account(made, alone, elsewhere, unused, again)


def pairs(outcomes: Iterable[Outcome]) -> list[Pair]:
    """Every attacked run at the server beside its twin at the workers; of the others, see :func:`account`."""
    return account(outcomes).pairs


_KEPT = [field.name for field in fields(Experiment) if field.name not in ("workers", *_UNATTACKED)]  # by its reference


def _key(outcome: Outcome, experiment: Experiment | None = None) -> tuple[str, str]:
    """Of a run, or of another experiment that stands beside it: all that changes a number, which is all but measure."""
    e = outcome.experiment if experiment is None else experiment
    return outcome.source, (e if e.measure else replace(e, measure=True)).digest


def _reference_of(server: Outcome, found: Mapping[tuple[str, str], Outcome]) -> Outcome | None:
    """The honest workers of a run alone; where momentum stands changes nothing then, but for Nesterov's points.

    Of code of somebody's own it shares the model with the run, and not the rule and the attack.
    """
    e = server.experiment
    alone = unattacked(e, e.honest)
    codes = {e.code_hash, None}
    if e.code_hash is not None and code_of(e) == e.code_hash:  # that code is at hand, and can be asked
        codes = {code_of(alone)}
    places = ("server",) if alone.nesterov else ("server", "worker", "shared")
    candidates = (replace(alone, momentum_at=place, code_hash=code) for place in places for code in codes)
    keys = (_key(server, candidate) for candidate in candidates)
    return next((found[key] for key in keys if key in found), None)


# ---------------------------------------------------------------------------------------------------------- the claims


@dataclass(frozen=True)
class Finding:
    """Our number for a claim, and what follows from it."""

    ours: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        theirs: the paper's number.
        criterion: when we say that it holds.
        total: of how many pairs the paper's number speaks.
        where: on which part of the study.
        of: of which pairs there it speaks: these are what its share is a share of.
        judge: our number and verdict from at least one such pair.
        everywhere: whether it can be asked of any pairs, the paper's or not.
    """

    id: str
    text: str
    theirs: str
    criterion: str
    total: int
    where: Callable[[Pair], bool]
    of: Callable[[Pair], bool]
    judge: Callable[[list[Pair]], Finding]
    everywhere: bool = False


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs at hand say: ``pairs`` is of how many of them it speaks."""

    claim: Claim
    pairs: int
    finding: Finding | None

    @property
    def word(self) -> str:
        if self.finding is None:
            return "not tested"
        if self.pairs < FEW:
            return "too few runs"
        return "holds" if self.finding.holds else "does not hold"


FEW = 5  # pairs: a share of fewer is no evidence
COSTLY = 20.0  # points that an attack must cost for C1 and C2 to speak of it
AGREEMENT = 10.0  # percentage points that our share may lie away from the paper's where it claims a number
SLOWER = 1.10  # how many times as long a run may take for "no additional cost" still to hold


def _any(pair: Pair) -> bool:
    return True


def _known(pair: Pair) -> bool:
    return pair.reference is not None


def _costly(pair: Pair) -> bool:
    loss = pair.loss()
    return loss is not None and loss >= COSTLY


def _timed(pair: Pair) -> bool:
    """Both runs went to the end, on one machine and with the same versions."""
    a, b = pair.server, pair.worker
    whole = all(o.seconds and o.steps and o.steps == o.experiment.steps for o in (a, b))
    return whole and a.machine is not None and a.machine == b.machine


def _share(some: Sequence[object], of: Sequence[object]) -> float:
    return 100 * len(some) / len(of)


def _ratio(some: Sequence[object], of: Sequence[object]) -> str:
    return f"{_share(some, of):.2f} % ({len(some)} of {len(of)})"


def _always_raised(pairs: list[Pair]) -> Finding:
    raised = [p for p in pairs if p.gain() > 0]
    return Finding(_ratio(raised, pairs), len(raised) == len(pairs))


def _mostly_recovered(pairs: list[Pair]) -> Finding:
    recovered = [p for p in pairs if p.gain() >= COSTLY]
    return Finding(_ratio(recovered, pairs), _share(recovered, pairs) > 60)


def _rarely_lower(pairs: list[Pair]) -> Finding:
    lower = [p for p in pairs if p.gain() < 0]
    foreign = [p for p in lower if not _krum_under_empire(p)]
    text = _ratio(lower, pairs) + (f", {len(foreign)} of another kind" if lower else "")
    return Finding(text, len(lower) / len(pairs) <= 4 / 1760 and not foreign)


def _krum_under_empire(pair: Pair) -> bool:
    e = pair.experiment
    model, rule, attack = (text.split("(")[0] for text in (e.model, rule_name(e), e.attack or ""))
    return model == "fully-connected" and rule in ("krum", "multi-krum") and attack == "empire"


def _costly_share(theirs: float) -> Callable[[list[Pair]], Finding]:
    def judge(pairs: list[Pair]) -> Finding:
        costly = [p for p in pairs if _costly(p)]
        return Finding(_ratio(costly, pairs), abs(_share(costly, pairs) - theirs) <= AGREEMENT)

    return judge


def _gain_share(points: float, theirs: float) -> Callable[[list[Pair]], Finding]:
    def judge(pairs: list[Pair]) -> Finding:
        gained = [p for p in pairs if p.gain() >= points]
        return Finding(_ratio(gained, pairs), abs(_share(gained, pairs) - theirs) <= AGREEMENT)

    return judge


def _not_slower(pairs: list[Pair]) -> Finding:
    middle = statistics.median((p.worker.seconds or 0.0) / (p.server.seconds or math.inf) for p in pairs)
    return Finding(f"{middle:.3f} × the time of a step (median)", middle <= SLOWER)


def main_study(pair: Pair) -> bool:
    """Whether a pair belongs to the main study."""
    panel = panel_of(pair.experiment)
    return panel is not None and panel.main


def _of(*names: str, f: Literal["half", "quarter"] | None = None) -> Callable[[Pair], bool]:
    def concerns(pair: Pair) -> bool:
        panel = panel_of(pair.experiment)
        if panel is None or panel.name not in names:
            return False
        return f is None or pair.experiment.byzantine == (panel.half if f == "half" else panel.quarter)

    return concerns


_FULLY, _CONVOLUTIONAL = ("mnist", "fashion-mnist"), ("cifar-10", "cifar-100")
_NEAR = f"within {AGREEMENT:g} percentage points"

# The paper counts 880 fully connected and 880 convolutional pairs. Its shares give how many of them were costly:
# 227 + 623 = 850 of all, 400 of 400 with half Byzantine, and 223 of 480 with a quarter.
CLAIMS: tuple[Claim, ...] = (
    Claim("C1", "Where an attack costs at least 20 points, momentum at the workers always raises the maximum accuracy",
          "always: 100 %", "100 %", 850, main_study, _costly, _always_raised, everywhere=True),
    Claim("C2", "… and brings back at least 20 points in more than 60 % of those cases",
          "more than 60 %", "more than 60 %", 850, main_study, _costly, _mostly_recovered, everywhere=True),
    Claim("C3", "Momentum at the workers lowers the maximum accuracy in 4 of 1,760 pairs only, "
          "all fully connected, Krum, Fall of Empires",
          "0.23 % (4 of 1760)", "at most that share, none of another kind", 1760, main_study, _any, _rarely_lower,
          everywhere=True),
    Claim("C4a", "Fully connected: attacks cost at least 20 points in the usual formulation",
          "25.80 %", _NEAR, 880, _of(*_FULLY), _known, _costly_share(25.80)),
    Claim("C4b", "Convolutional: attacks cost at least 20 points in the usual formulation",
          "70.80 %", _NEAR, 880, _of(*_CONVOLUTIONAL), _known, _costly_share(70.80)),
    Claim("C5a", "Convolutional, half Byzantine: attacks cost at least 20 points",
          "100 %", _NEAR, 400, _of(*_CONVOLUTIONAL, f="half"), _known, _costly_share(100)),
    Claim("C5b", "… of these, momentum at the workers brings back at least 10 points",
          "79.75 %", _NEAR, 400, _of(*_CONVOLUTIONAL, f="half"), _costly, _gain_share(10, 79.75)),
    Claim("C5c", "… and at least 20 points",
          "49.25 %", _NEAR, 400, _of(*_CONVOLUTIONAL, f="half"), _costly, _gain_share(20, 49.25)),
    Claim("C6a", "Convolutional, a quarter Byzantine: attacks cost at least 20 points",
          "46.46 %", _NEAR, 480, _of(*_CONVOLUTIONAL, f="quarter"), _known, _costly_share(46.46)),
    Claim("C6b", "… of these, momentum at the workers brings back at least 20 points",
          "95.07 %", _NEAR, 223, _of(*_CONVOLUTIONAL, f="quarter"), _costly, _gain_share(20, 95.07)),
    Claim("C7", "Momentum at the workers costs no additional computation", "none",
          f"at most {SLOWER:g} × the time of a step, both runs on one machine", 1760, main_study, _timed, _not_slower),
)  # fmt: skip


def verdicts(pairs: Sequence[Pair]) -> list[Verdict]:
    """Every claim, tested on those of the pairs that it speaks of.

    Where none of the pairs belongs to the paper's main study, the general claims are asked of all of them: what comes
    out then says nothing about the paper, see ``of_the_paper``.
    """
    elsewhere = not of_the_paper(pairs)
    result = []
    for claim in CLAIMS:
        there = [p for p in pairs if (claim.everywhere if elsewhere else claim.where(p))]
        domain = [p for p in there if claim.of(p)]
        result.append(Verdict(claim, len(domain), claim.judge(domain) if domain else None))
    return result


def of_the_paper(pairs: Sequence[Pair]) -> bool:
    """Whether any of the pairs belongs to the main study."""
    return any(main_study(p) for p in pairs)


def missing(outcomes: Iterable[Outcome], seeds: Sequence[int] = SEEDS) -> dict[str, tuple[int, int]]:
    """For each panel and profile of which there is any run: how many of its runs are there, and how many it has."""
    done: dict[tuple[str, str], set[str]] = {}
    for o in outcomes:
        e = o.experiment
        panel = panel_of(e)
        if panel is not None and e.seed in seeds:
            place = "server" if e.attack is None else e.momentum_at
            cell = replace(moved(e, "cpu"), measure=True, momentum_at=place)
            done.setdefault((panel.name, o.study), set()).add(cell.digest)
    return {
        f"{name}, {study}": (len(cells), len(PANELS[name].experiments(seeds[:1])) * len(seeds))
        for (name, study), cells in done.items()
    }
