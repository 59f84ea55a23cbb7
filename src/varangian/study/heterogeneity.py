"""Where momentum should stand when data differ from worker to worker: the grids, their cells, and others' logs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..runs.experiment import Experiment
from .grid import Grid
from .outcomes import Outcome, attack_name, rule_name

Part = Literal["placement", "logs"]

DATASETS = ("digits", "fashion-mnist")
PARTS: tuple[Part, ...] = ("placement", "logs")
SEEDS = (1, 2, 3)
PLACES = ("server", "worker", "adaptive")
PARTITIONS = ("iid", "dirichlet(alpha=1)", "dirichlet(alpha=0.1)", "extreme")
RULES = ("median", "trimmed-mean", "multi-krum", "geometric-median")
ATTACKS = ("little", "empire", "sign-flip", "mimic")
NO_ATTACK = "none"
NEAR = 1.0  # points within which one accuracy is as good as another

_PLACEMENT: dict[str, Any] = {
    "workers": 15, "byzantine": 3, "batch_size": 10, "steps": 200, "evaluate_every": 20, "learning_rate": 0.1,
    "momentum": 0.9, "measure": False, "partition": PARTITIONS, "pre": ["none", "nnm"], "rule": RULES,
    "attack": [NO_ATTACK, *ATTACKS], "momentum_at": PLACES,
}  # fmt: skip
_LOGS: dict[str, Any] = {
    "workers": 25, "byzantine": 5, "batch_size": 32, "steps": 400, "evaluate_every": 40, "learning_rate": 0.1,
    "clip": None, "l2": 0.0, "measure": False, "partition": "extreme", "pre": ["none", "bucketing(s=2)"],
    "attack": "little(factor=None)", "momentum_at": "worker",
}  # fmt: skip


def _logged(momentum: float, dampening: float) -> dict[str, Any]:
    """One momentum and the rules of the logs; vectors are 1 / (1 - mu) times as long without dampening, and so is what
    centered clipping lets pass."""
    tau = 10 * (1 - dampening) / (1 - momentum)
    clipping = f"centered-clipping(tau={tau:g})"
    return {
        "momentum": momentum,
        "dampening": dampening,
        "rule": ["median", "krum", "geometric-median", clipping],
    }


def placement(dataset: str, seeds: Sequence[int] = SEEDS) -> Grid:
    """Every place of momentum for every partition, rule, mixing and attack, all places of one of these together."""
    return Grid({"dataset": dataset} | _PLACEMENT, seeds)


def logs(dataset: str, seeds: Sequence[int] = SEEDS) -> Grid:
    """Momentum 0, 0.9, and 0.9 with dampening, which leaves the learning rate what it is, as in the published logs."""
    cases = [_logged(0.0, 0.0), _logged(0.9, 0.0), _logged(0.9, 0.9)]
    return Grid({"dataset": dataset} | _LOGS, seeds, cases=cases)


OF_THE_LOGS = ("momentum", "dampening", "momentum_at")  # settings that are what the logs compare, and stay
GRIDS: Mapping[Part, Callable[[str, Sequence[int]], Grid]] = {"placement": placement, "logs": logs}


# ----------------------------------------------------------------------------------------------------------- the cells


@dataclass(frozen=True)
class Spread:
    """Accuracies of several seeds in per cent, under one attack: their mean, and deviation if there are several."""

    attack: str
    mean: float
    sd: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One partition and rule: what each place of momentum comes to under each attack.

    Attributes:
        rule: mixings before it: "nnm + median".
        places: for each place of momentum the accuracies under each attack; a place of which no seed is complete under
            all of them is not there.
        seeds: over which it is read: those that are complete at all these places.
    """

    dataset: str
    partition: str
    rule: str
    seeds: tuple[int, ...]
    places: Mapping[str, Mapping[str, Spread]]

    def worst(self, place: str) -> Spread | None:
        """The attack under which the mean over the seeds is lowest; None of a place that was not run."""
        attacked = [s for attack, s in self.places.get(place, {}).items() if attack != NO_ATTACK]
        return min(attacked, key=lambda s: s.mean) if attacked else None

    def calm(self, place: str) -> Spread | None:
        """Without attack."""
        return self.places.get(place, {}).get(NO_ATTACK)

    @property
    def gain(self) -> float | None:
        """What the workers' place brings over the server's, under the worst attack of either, in points."""
        server, worker = self.worst("server"), self.worst("worker")
        return None if server is None or worker is None else worker.mean - server.mean

    @property
    def lost(self) -> float | None:
        """What adaptive placement lacks to the better of the two, in points; below 0 it is better than both."""
        server, worker, adaptive = (self.worst(place) for place in PLACES)
        if server is None or worker is None or adaptive is None:
            return None
        return max(server.mean, worker.mean) - adaptive.mean


def cells(grids: Iterable[Grid], outcomes: Iterable[Outcome]) -> list[Cell]:
    """The cells of some grids of placements of which there are runs, in the grids' order.

    Accuracies are the greatest of each run's evaluations, as in the paper's study.

    Example:
        >>> [grid] = [placement("digits", [1]).replaced({"rule": "median", "partition": "iid", "pre": "none"})]
        >>> accuracy = {"server": 0.5, "worker": 0.8, "adaptive": 0.75}
        >>> outcomes = [Outcome(e, accuracy[e.momentum_at], 0.5) for e in grid.experiments()]
        >>> [cell] = cells([grid], outcomes)
        >>> round(cell.gain), round(cell.lost), cell.worst("server").attack
        (30, 5, 'little')
    """
    known = _by_digest(outcomes)
    found: dict[tuple[str, str, str], list[Experiment]] = {}
    for e in (e for grid in grids for e in grid.experiments()):
        found.setdefault((e.dataset, str(e.partition), rule_name(e)), []).append(e)
    made = []
    for (dataset, partition, rule), members in found.items():
        whole: dict[str, list[int]] = {}
        for place in dict.fromkeys(e.momentum_at for e in members):
            mine = [e for e in members if e.momentum_at == place]
            lacking = {e.seed for e in mine if e.digest not in known}
            if there := [seed for seed in dict.fromkeys(e.seed for e in mine) if seed not in lacking]:
                whole[place] = there
        if not whole:
            continue
        first, *rest = whole.values()
        seeds = tuple(seed for seed in first if all(seed in others for others in rest))
        if not seeds:
            continue
        values: dict[str, dict[str, list[float]]] = {}
        for e in members:
            if e.momentum_at in whole and e.seed in seeds:
                accuracy = 100 * known[e.digest].max_accuracy
                values.setdefault(e.momentum_at, {}).setdefault(attack_name(e), []).append(accuracy)
        places = {
            place: {attack: _spread(attack, found) for attack, found in attacks.items()}
            for place, attacks in values.items()
        }
        made.append(Cell(dataset, partition, rule, seeds, places))
    return made


def _by_digest(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    return {o.experiment.digest: o for o in outcomes if o.source == "varangian"}


def _spread(attack: str, values: Sequence[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(attack, statistics.fmean(values), deviation, tuple(values))


# ---------------------------------------------------------------------------------------------------- published logs


PUBLISHED: Mapping[str, tuple[float, float]] = {  # MNIST split by class, A Little Is Enough: momentum 0, and 0.9
    "median": (75.3, 9.9),
    "krum": (77.3, 11.4),
    "geometric-median": (63.1, 11.4),
    "centered-clipping": (91.5, 98.2),
}


@dataclass(frozen=True)
class Logged:
    """A rule of the published logs, on data that is here.

    Attributes:
        rule: without its options.
        mixing: what stands before it, or "none".
        attack: what the attackers send.
        seeds: of which all three runs are complete.
        without, momentum, dampened: accuracy after the last step, in per cent and seed by seed: without momentum, with
            0.9, and with 0.9 at the same effective learning rate.
    """

    dataset: str
    rule: str
    mixing: str
    attack: str
    seeds: tuple[int, ...]
    without: tuple[float, ...]
    momentum: tuple[float, ...]
    dampened: tuple[float, ...]

    @property
    def published(self) -> str | None:
        """What momentum did there; None behind a mixing, of which the logs have no numbers."""
        return direction([PUBLISHED[self.rule]]) if self.mixing == "none" else None

    @property
    def ours(self) -> str:
        """What momentum does here."""
        return direction(list(zip(self.without, self.momentum, strict=True)))

    @property
    def at_equal_rate(self) -> str:
        """What it does where the learning rate stays the same in effect."""
        return direction(list(zip(self.without, self.dampened, strict=True)))


def direction(pairs: Sequence[tuple[float, float]]) -> str:
    """ "gains" or "falls" where every seed does so by more than a point, else "unclear".

    Example:
        >>> direction([(75.3, 9.9)]), direction([(50.0, 60.0), (50.0, 50.5)])
        ('falls', 'unclear')
    """
    differences = [after - before for before, after in pairs]
    if all(d > NEAR for d in differences):
        return "gains"
    return "falls" if all(d < -NEAR for d in differences) else "unclear"


def logged(grids: Iterable[Grid], outcomes: Iterable[Outcome]) -> list[Logged]:
    """The rules of some grids of logs, in their order, of which any seed is complete."""
    known = _by_digest(outcomes)
    found: dict[tuple[str, str, str, str], dict[int, dict[tuple[float, float], Outcome]]] = {}
    for e in (e for grid in grids for e in grid.experiments()):
        if e.digest in known:
            key = (e.dataset, e.rule.split("(")[0], ",".join(e.pre) or "none", attack_name(e))
            found.setdefault(key, {}).setdefault(e.seed, {})[e.momentum, e.dampening] = known[e.digest]
    made = []
    for (dataset, rule, mixing, attack), by_seed in found.items():
        whole = {seed: runs for seed, runs in by_seed.items() if len(runs) == 3}
        if whole and rule in PUBLISHED:
            columns = (
                tuple(100 * runs[how].final_accuracy for runs in whole.values())
                for how in ((0.0, 0.0), (0.9, 0.0), (0.9, 0.9))
            )
            made.append(Logged(dataset, rule, mixing, attack, tuple(whole), *columns))
    return made
