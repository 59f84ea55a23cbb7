"""The study of the paper as data: its grid of runs, which of them are compared, and what it claims.

A *pair* is the question of the paper put once: the same run with momentum at the server and at the workers.
Its *reference* is the same run by honest workers alone, averaged.

    loss = reference - server         what the attack costs the usual formulation, in points of top-1 accuracy
    gain = worker - server            what the paper's formulation brings back

Reference: El-Mhamdi, Guerraoui, Rouault, "Distributed Momentum for Byzantine-resilient SGD", ICLR 2021.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

from .experiment import Experiment
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

    def experiments(self, seeds: Sequence[int] = SEEDS, profile: Profile = "described") -> list[Experiment]:
        """Its runs, one seed after the other, each reference before those that it is compared with."""
        found = []
        for seed in seeds:
            for rate in self.described if profile == "described" else self.published:
                for nesterov in self.kinds:
                    base = replace(self.base, seed=seed, profile=profile, learning_rate=rate, nesterov=nesterov)
                    for f in (self.half, self.quarter):
                        found.append(unattacked(base, self.base.workers - f))
                        for rule in (*self.rules, *(["bulyan"] if f == self.quarter else [])):
                            attacked = [replace(base, rule=rule, byzantine=f, attack=attack) for attack in ATTACKS]
                            found += [replace(e, momentum_at=place) for e in attacked for place in PLACES]
        return found


def unattacked(experiment: Experiment, honest: int) -> Experiment:
    """The reference of a run: its honest workers alone, averaged. Where momentum stands then changes nothing."""
    return replace(
        experiment,
        **{"workers": honest, "byzantine": 0, "real_byzantine": None, "rule": "average", "pre": (), "attack": None},
        momentum_at="server",
    )


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
    )
}  # fmt: skip


def grid(
    panels: Iterable[str] = tuple(PANELS), seeds: Sequence[int] = SEEDS, profile: Profile = "described"
) -> list[Experiment]:
    """All runs of some panels.

    Example:
        >>> len(grid(["fashion-mnist"], seeds=[1])), len(grid(seeds=[1]))
        (184, 758)
    """
    return [experiment for name in panels for experiment in PANELS[name].experiments(seeds, profile)]


def quick(
    panels: Iterable[str] = ("fashion-mnist",), seeds: Sequence[int] = (1,), profile: Profile = "described"
) -> list[Experiment]:
    """Every cell of the poster once: the first learning rate and the first seed, all else, and full length.

    Example:
        >>> len(quick())
        92
    """
    return [
        experiment
        for panel in (PANELS[name] for name in panels)
        for experiment in panel.experiments(seeds[:1], profile)
        if experiment.learning_rate == (panel.described if profile == "described" else panel.published)[0]
    ]


_FREE = ("rule", "pre", "attack", "momentum_at", "byzantine", "real_byzantine", "learning_rate", "nesterov", "seed",
         "profile", "device", "measure", "workers", "clip_mode")  # fmt: skip


@lru_cache(maxsize=2**14)
def panel_of(experiment: Experiment) -> Panel | None:
    """The panel that a run belongs to: None unless all that its panel fixes is as in the paper."""
    settings = asdict(experiment)
    for panel in PANELS.values():
        base = asdict(panel.base)
        if any(settings[name] != value for name, value in base.items() if name not in _FREE):
            continue
        if experiment.attack is None:
            if experiment.rule == "average" and panel.base.workers - experiment.workers in (panel.half, panel.quarter):
                return panel
        elif experiment.workers == panel.base.workers and experiment.byzantine in (panel.half, panel.quarter):
            return panel
    return None


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


def pairs(outcomes: Iterable[Outcome]) -> list[Pair]:
    """Every attacked run at the server beside its twin at the workers; those without a twin are left out."""
    found = {_key(o): o for o in outcomes}
    result = []
    for server in found.values():
        e = server.experiment
        if e.attack is None or not e.momentum or e.momentum_at != "server":
            continue
        worker = found.get(_key(server, momentum_at="worker"))
        if worker is not None:
            result.append(Pair(server, worker, found.get(_reference_key(server))))
    return result


def _key(outcome: Outcome, **changed: object) -> tuple[object, ...]:
    e = outcome.experiment
    settings = asdict(e) | {"real_byzantine": e.attackers, "clip_mode": None, "device": None, "measure": None} | changed
    if e.attack is None and rule_name(e) == "average":
        settings["momentum_at"] = None  # the place changes nothing
    return outcome.source, *settings.values()


def _reference_key(outcome: Outcome) -> tuple[object, ...]:
    honest = outcome.experiment.honest
    return _key(
        outcome, workers=honest, byzantine=0, real_byzantine=0, rule="average", pre=(), attack=None, momentum_at=None
    )


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
        total: on how many pairs the paper's number stands.
        concerns: which pairs it speaks of.
        judge: our number and verdict from those pairs; None where they cannot tell.
        everywhere: whether it can be asked of any pairs, the paper's or not.
    """

    id: str
    text: str
    theirs: str
    criterion: str
    total: int
    concerns: Callable[[Pair], bool]
    judge: Callable[[list[Pair]], Finding | None]
    everywhere: bool = False


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs at hand say: ``pairs`` is how many of them it could be tested on."""

    claim: Claim
    pairs: int
    finding: Finding | None

    @property
    def word(self) -> str:
        return "not tested" if self.finding is None else "holds" if self.finding.holds else "does not hold"


COSTLY = 20.0  # points that an attack must cost for C1 and C2 to speak of it
AGREEMENT = 10.0  # percentage points that our share may lie away from the paper's where it claims a number
SLOWER = 1.10  # how many times as long a run may take for "no additional cost" still to hold


def _costly(pairs: list[Pair]) -> list[Pair]:
    return [p for p in pairs if (loss := p.loss()) is not None and loss >= COSTLY]


def _share(some: Sequence[object], of: Sequence[object]) -> float:
    return 100 * len(some) / len(of)


def _ratio(some: Sequence[object], of: Sequence[object]) -> str:
    return f"{_share(some, of):.2f} % ({len(some)} of {len(of)})"


def _always_raised(pairs: list[Pair]) -> Finding | None:
    costly = _costly(pairs)
    raised = [p for p in costly if p.gain() > 0]
    return Finding(_ratio(raised, costly), len(raised) == len(costly)) if costly else None


def _mostly_recovered(pairs: list[Pair]) -> Finding | None:
    costly = _costly(pairs)
    recovered = [p for p in costly if p.gain() >= COSTLY]
    return Finding(_ratio(recovered, costly), _share(recovered, costly) > 60) if costly else None


def _rarely_lower(pairs: list[Pair]) -> Finding | None:
    if not pairs:
        return None
    lower = [p for p in pairs if p.gain() < 0]
    foreign = [p for p in lower if not _krum_under_empire(p)]
    text = _ratio(lower, pairs) + (f", {len(foreign)} of another kind" if lower else "")
    return Finding(text, len(lower) / len(pairs) <= 4 / 1760 and not foreign)


def _krum_under_empire(pair: Pair) -> bool:
    e = pair.experiment
    connected = e.model.split("(")[0] == "fully-connected"
    return connected and rule_name(e) in ("krum", "multi-krum") and (e.attack or "").split("(")[0] == "empire"


def _costly_share(theirs: float) -> Callable[[list[Pair]], Finding | None]:
    def judge(pairs: list[Pair]) -> Finding | None:
        known = [p for p in pairs if p.reference is not None]
        costly = _costly(known)
        return Finding(_ratio(costly, known), abs(_share(costly, known) - theirs) <= AGREEMENT) if known else None

    return judge


def _gain_share(points: float, theirs: float, of_costly: bool = False) -> Callable[[list[Pair]], Finding | None]:
    def judge(pairs: list[Pair]) -> Finding | None:
        domain = _costly(pairs) if of_costly else pairs
        gained = [p for p in domain if p.gain() >= points]
        return Finding(_ratio(gained, domain), abs(_share(gained, domain) - theirs) <= AGREEMENT) if domain else None

    return judge


def _not_slower(pairs: list[Pair]) -> Finding | None:
    ratios = [
        (p.worker.seconds / p.worker.steps) / (p.server.seconds / p.server.steps)
        for p in pairs
        if p.worker.seconds and p.server.seconds and p.worker.steps and p.server.steps
    ]
    if not ratios:
        return None
    middle = statistics.median(ratios)
    return Finding(f"{middle:.3f} × the time of a step (median)", middle <= SLOWER)


def _of(*names: str, f: Literal["half", "quarter"] | None = None) -> Callable[[Pair], bool]:
    def concerns(pair: Pair) -> bool:
        panel = panel_of(pair.experiment)
        if panel is None or panel.name not in names:
            return False
        return f is None or pair.experiment.byzantine == (panel.half if f == "half" else panel.quarter)

    return concerns


_FULLY, _CONVOLUTIONAL = ("mnist", "fashion-mnist"), ("cifar-10", "cifar-100")
_STUDY = _of(*_FULLY, *_CONVOLUTIONAL)
_NEAR = f"within {AGREEMENT:g} percentage points"

CLAIMS: tuple[Claim, ...] = (
    Claim("C1", "Where an attack costs at least 20 points, momentum at the workers always raises the maximum accuracy",
          "always: 100 %", "100 %", 1760, _STUDY, _always_raised, everywhere=True),
    Claim("C2", "… and brings back at least 20 points in more than 60 % of those cases",
          "more than 60 %", "more than 60 %", 1760, _STUDY, _mostly_recovered, everywhere=True),
    Claim("C3", "Momentum at the workers lowers the maximum accuracy in 4 of 1,760 pairs only, "
          "all fully connected, Krum, Fall of Empires",
          "0.23 % (4 of 1760)", "at most that share, none of another kind", 1760, _STUDY, _rarely_lower,
          everywhere=True),
    Claim("C4a", "Fully connected: attacks cost at least 20 points in the usual formulation",
          "25.80 %", _NEAR, 880, _of(*_FULLY), _costly_share(25.80)),
    Claim("C4b", "Convolutional: attacks cost at least 20 points in the usual formulation",
          "70.80 %", _NEAR, 880, _of(*_CONVOLUTIONAL), _costly_share(70.80)),
    Claim("C5a", "Convolutional, half Byzantine: attacks cost at least 20 points",
          "100 %", _NEAR, 400, _of(*_CONVOLUTIONAL, f="half"), _costly_share(100)),
    Claim("C5b", "… of these, momentum at the workers brings back at least 10 points",
          "79.75 %", _NEAR, 400, _of(*_CONVOLUTIONAL, f="half"), _gain_share(10, 79.75)),
    Claim("C5c", "… and at least 20 points",
          "49.25 %", _NEAR, 400, _of(*_CONVOLUTIONAL, f="half"), _gain_share(20, 49.25)),
    Claim("C6a", "Convolutional, a quarter Byzantine: attacks cost at least 20 points",
          "46.46 %", _NEAR, 480, _of(*_CONVOLUTIONAL, f="quarter"), _costly_share(46.46)),
    Claim("C6b", "… of these, momentum at the workers brings back at least 20 points",
          "95.07 %", _NEAR, 480, _of(*_CONVOLUTIONAL, f="quarter"), _gain_share(20, 95.07, of_costly=True)),
    Claim("C7", "Momentum at the workers costs no additional computation", "none",
          f"at most {SLOWER:g} × the time of a step", 1760, _STUDY, _not_slower, everywhere=True),
)  # fmt: skip


def verdicts(pairs: Sequence[Pair]) -> list[Verdict]:
    """Every claim, tested on those of the pairs that it speaks of.

    Where none of the pairs belongs to the paper's main study, the general claims are asked of all of them: what comes
    out then says nothing about the paper, see ``of_the_paper``.
    """
    elsewhere = not of_the_paper(pairs)
    result = []
    for claim in CLAIMS:
        domain = [p for p in pairs if claim.concerns(p)] if not elsewhere else list(pairs) if claim.everywhere else []
        result.append(Verdict(claim, len(domain), claim.judge(domain) if domain else None))
    return result


def of_the_paper(pairs: Sequence[Pair]) -> bool:
    """Whether any of the pairs belongs to the main study."""
    return any(_STUDY(p) for p in pairs)


def missing(outcomes: Iterable[Outcome], seeds: Sequence[int] = SEEDS) -> dict[str, tuple[int, int]]:
    """For each panel and profile of which there is any run: how many of its runs are there, and how many it has."""
    done: dict[str, int] = {}
    panels: dict[str, Panel] = {}
    for o in outcomes:
        panel = panel_of(o.experiment)
        if panel is not None and o.experiment.seed in seeds:
            key = f"{panel.name}, {o.study}"
            done[key], panels[key] = done.get(key, 0) + 1, panel
    return {key: (done[key], len(panel.experiments(seeds[:1])) * len(seeds)) for key, panel in panels.items()}
