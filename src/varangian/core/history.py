"""Who was rejected, how often, and how suspicious each worker is: one record for ranks, nodes and simulated workers."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from .checks import whole
from .evidence import cosines, suspicion
from .evidence import rejected as rejected_by

logger = logging.getLogger("varangian.engines")

Noun = Literal["rank", "node", "worker"]

OFTEN = 0.9  # of the steps: whoever is rejected so often is named, if the rule does not reject everybody as often
SUSPICIOUS = (
    0.5  # twice the usual distance, or turned away: whoever has more so often is named too, whatever its weight
)
NOT_FINITE = "NaN or infinity"
MEASURED = ("score", "distance", "cosine")
SERIES = ("weight", "suspicion", "rejected", *MEASURED)
COUNTS = ("asked", "used", "dropped", "silent", "rejected", "suspicious", "excluded")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a step told of each of W vectors, or of some of their coordinates.

    Attributes:
        weight: [W] shares of the aggregate; NaN where the rule does not tell.
        suspicion: [W], see :func:`varangian.core.evidence.suspicion`.
        finite: [W].
        size: how many coordinates.
        score: [W] the rule's scores; None where it has none.
        measured: [4, W] how these coordinates compare with the aggregate's, see
            :func:`varangian.core.evidence.distances_and_norms`; None where nobody has looked.
        excluded: [W] bool, whom a quarantine left out, of whom nothing else is told; None for nobody.
    """

    weight: np.ndarray
    suspicion: np.ndarray
    finite: np.ndarray
    size: int
    score: np.ndarray | None = None
    measured: np.ndarray | None = None
    excluded: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Round:
    """What became of one step of ranks, or of one round of nodes.

    Attributes:
        number: of the step or round, from 1.
        asked: whose vectors were asked for, by number: all ranks, or the nodes that the model was sent to.
        f: how many Byzantine vectors the rule was told to expect (or would have been).
        used: those whose vectors the rule saw.
        dropped: those whose vector was not finite, or whose reply not what was asked for, and why.
        silent: those without a reply, and why where that is known.
        weight: how much of the aggregate is each of ``used``; None for rules that do not tell, and without one.
        suspicion: of each of ``used``, from 0, usual, to 1; None without an aggregate.
        rejected: whether each of ``used`` had less than a tenth of an equal share; None without an aggregate.
        kept: why the model was kept as it was; "" where it was not.
        score, distance, cosine: of each of ``used``; None where they are not known.
        excluded: those that a quarantine left out, whatever they sent.
    """

    number: int
    asked: tuple[int, ...]
    f: int
    used: tuple[int, ...]
    dropped: Mapping[int, str] = field(default_factory=dict)
    silent: Mapping[int, str] = field(default_factory=dict)
    weight: np.ndarray | None = None
    suspicion: np.ndarray | None = None
    rejected: np.ndarray | None = None
    kept: str = ""
    score: np.ndarray | None = None
    distance: np.ndarray | None = None
    cosine: np.ndarray | None = None
    excluded: tuple[int, ...] = ()

    def __str__(self) -> str:
        parts = [f"round {self.number}: {len(self.used)} of {len(self.asked)} updates, f = {self.f}"]
        if self.rejected is not None and self.rejected.any():
            parts.append(f"rejected {', '.join(str(self.used[i]) for i in np.flatnonzero(self.rejected))}")
        parts += [f"in quarantine {', '.join(map(str, self.excluded))}"] if self.excluded else []
        parts += [f"dropped {node} ({why})" for node, why in self.dropped.items()]
        parts += [f"nothing from {node} ({why})" for node, why in self.silent.items()]
        parts += [f"the model is kept: {self.kept}"] if self.kept else []
        return "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What became of one worker's vectors.

    Attributes:
        worker: its number, as a rank of the process group or as a node.
        host: the machine that it runs on, where that is known.
        asked, used, silent: in how many of all steps or rounds, see :class:`Round`.
        dropped: in how many its vector was not finite or, from a node, not what was asked for.
        rejected: in how many it was dropped, or its weight was under a tenth of an equal share.
        recently_dropped, recently_rejected: likewise, of the last ones.
        weight: its mean share of the aggregate over the last ones that it was used or dropped in; NaN where no rule
            told.
        share: the same in equal shares: 1 is as much as everybody else's.
        suspicion: mean over the last ones that it was used in, or dropped in, which counts 1; NaN without any. Of one
            step see :func:`varangian.core.evidence.suspicion`.
        reason: why it was last dropped or silent; "" where it never was.
        excluded: in how many a quarantine left it out.
    """

    worker: int
    host: str
    asked: int
    used: int
    dropped: int
    silent: int
    rejected: int
    recently_dropped: int
    recently_rejected: int
    weight: float
    share: float
    suspicion: float
    reason: str
    excluded: int = 0

    @property
    def rank(self) -> int:
        """``worker``, of a rank."""
        return self.worker

    @property
    def node(self) -> int:
        """``worker``, of a node."""
        return self.worker

    @property
    def nonfinite(self) -> int:
        """``dropped``, of a rank: there is nothing else to drop it for."""
        return self.dropped

    @property
    def recently_nonfinite(self) -> int:
        """``recently_dropped``, of a rank."""
        return self.recently_dropped

    @property
    def weightless(self) -> int:
        """In how many rounds it was used and yet rejected."""
        return self.rejected - self.dropped


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """What became of all workers' vectors. ``str()`` of it is a table, the most suspicious first.

    Attributes:
        algorithm: what decided, as text.
        noun: what a worker is.
        steps: steps or rounds so far, skipped ones included.
        skipped: those without an update.
        recent: how many the last ones are.
        workers: a standing each, by number.
        weight: [recent, W] over time, the latest last; NaN where the worker was neither used nor dropped, or no rule
            told.
        suspicion: [recent, W] over time; NaN where the worker was neither used nor dropped.
        rejected: [recent, W] over time.
        score: [recent, W] the rule's scores, the lower the better; NaN where it has none.
        distance, cosine: [recent, W] to the aggregate; NaN where they are not known.
        byzantine: [recent, W] who attacked, where that is known: in simulated runs; else None.
    """

    algorithm: str
    noun: Noun
    steps: int
    skipped: int
    recent: int
    workers: tuple[Standing, ...]
    weight: np.ndarray
    suspicion: np.ndarray
    rejected: np.ndarray
    score: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    byzantine: np.ndarray | None = None

    @property
    def rank(self) -> np.ndarray:
        """[recent, W] the place of each worker in its step, 0 the best, by score, or by distance where a step has no
        score; NaN where neither is known. Equals share the least of their places.

        Example:
            >>> history = History("Krum(f=1)", ["here"] * 4)
            >>> finite = np.ones(4, bool)
            >>> evidence = Evidence(np.ones(4) / 4, np.zeros(4), finite, 2, score=np.array([3.0, 1.0, 1.0, 9.0]))
            >>> history.step([evidence], f=1)
            >>> history.report().rank
            array([[2., 0., 0., 3.]])
        """
        measure = np.where(np.isnan(self.score).all(1, keepdims=True), self.distance, self.score)
        ordered = np.sort(measure, axis=1)  # NaN last
        places = np.array([np.searchsorted(row, values) for row, values in zip(ordered, measure, strict=True)])
        return np.where(np.isnan(measure), np.nan, places.reshape(measure.shape))

    @property
    def ranks(self) -> tuple[Standing, ...]:
        """``workers``, by rank."""
        return self.workers

    @property
    def nodes(self) -> tuple[Standing, ...]:
        """``workers``, the most suspicious first."""

        def key(standing: Standing) -> tuple[float, int, int]:
            suspicion = -1.0 if math.isnan(standing.suspicion) else standing.suspicion
            return -suspicion, -standing.rejected, standing.worker

        return tuple(sorted(self.workers, key=key))

    @property
    def rounds(self) -> int:
        """``steps``, of nodes."""
        return self.steps

    @property
    def kept(self) -> int:
        """``skipped``, of nodes: in how many rounds the model was kept as it was."""
        return self.skipped

    def as_dict(self) -> dict[str, Any]:
        """The same in plain numbers, lists and text, as JSON and tables take them; None for NaN."""
        standings = [
            {self.noun: s.worker} | {k: _plain(v) for k, v in asdict(s).items() if k != "worker"} for s in self.workers
        ]
        named = SERIES if self.byzantine is None else (*SERIES, "byzantine")
        series = {name: getattr(self, name).tolist() for name in named}
        return {
            "algorithm": self.algorithm,
            "steps": self.steps,
            "skipped": self.skipped,
            "recent": self.recent,
            f"{self.noun}s": standings,
        } | {name: [[_plain(value) for value in row] for row in rows] for name, rows in series.items()}

    def __str__(self) -> str:
        what = "rounds" if self.noun == "node" else "steps"
        rows = self.nodes
        columns = {self.noun: [str(s.worker) for s in rows]}
        if self.byzantine is not None and self.byzantine.any():
            attacked = dict(zip((s.worker for s in self.workers), self.byzantine.sum(0).tolist(), strict=True))
            columns["attacked"] = [str(attacked[s.worker] or "-") for s in rows]
        if any(s.asked < self.steps for s in rows):
            columns["asked"] = [str(s.asked) for s in rows]
        silent = any(s.silent for s in rows)
        if silent:
            columns["used"] = [str(s.used) for s in rows]
        columns["rejected"] = [str(s.rejected or "-") for s in rows]
        columns["dropped" if self.noun == "node" else "not finite"] = [str(s.dropped or "-") for s in rows]
        if silent:
            columns["silent"] = [str(s.silent or "-") for s in rows]
        if self.recent < self.steps:
            columns[f"last {self.recent}: rejected"] = [str(s.recently_rejected or "-") for s in rows]
        if any(s.excluded for s in rows):
            columns["excluded"] = [str(s.excluded or "-") for s in rows]
        columns["share"] = [_short(s.share) for s in rows]
        columns["suspicion"] = [_short(s.suspicion) for s in rows]
        widths = {name: max(len(name), *map(len, cells), 0) for name, cells in columns.items()}
        ends = {"host": [s.host for s in rows], "last reason": [s.reason for s in rows]}
        if self.noun != "node":  # the only reason stands in a column already
            del ends["last reason"]
        for name in [name for name, cells in ends.items() if any(cells)]:
            columns[name], widths[name] = ends[name], -max(len(name), *map(len, ends[name]))
        lines = [f"{self.algorithm}: {len(rows)} {self.noun}s, {self.steps} {what}, {self.skipped} skipped"]
        for cells in (list(columns), *zip(*columns.values(), strict=True)):
            line = (c.rjust(w) if w >= 0 else c.ljust(-w) for c, w in zip(cells, widths.values(), strict=True))
            lines.append("  ".join(line).rstrip())
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


class History:
    """Collects steps of ranks, or rounds of nodes.

    Args:
        title: what decides.
        hosts: the machine of each rank; empty for nodes, which come and go.
        window: how many steps "recently" is, >= 1; None for all of them.
        warn: called with a line about a worker that was rejected, or that was twice as far as usual or turned away, in
            nearly all of the last ``window`` steps, once a window; None for no warning.
        first: whether this is the rank that speaks.
        noun: what a worker is.
    """

    def __init__(
        self,
        title: str,
        hosts: Sequence[str] = (),
        *,
        window: int | None = None,
        warn: Callable[[str], None] | None = None,
        first: bool = True,
        noun: Noun = "rank",
    ) -> None:
        self.title, self.hosts = title, tuple(hosts)
        self.noun: Noun = noun
        self.window = None if window is None else whole(self, "window", window, least=1)
        self.warn, self.first = warn if first else None, first
        self.workers = tuple(range(len(hosts)))
        self.steps = self.skipped = 0
        self.rounds: deque[Round] = deque(maxlen=self.window)
        self._marks: deque[np.ndarray] = deque()  # of these rounds: [7, W] of COUNTS
        self._places = {worker: worker for worker in self.workers}  # of the workers, in what follows
        self._total = np.zeros((len(COUNTS), len(hosts)), int)
        self._recent = np.zeros_like(self._total)
        self._warned = np.zeros(len(hosts), int)  # the step after which it was last said
        self._reasons: dict[int, str] = {}

    def name_of(self, rank: int) -> str:
        return f"rank {rank} ({self.hosts[rank]})"

    def step(self, parts: Sequence[Evidence], f: int) -> None:
        """All ranks' vectors came to something. Of parts of them the means by size are taken, and distance and cosine
        are those of the whole; a score is one of all that was decided together."""
        size = sum(part.size for part in parts)
        finite = np.all([part.finite for part in parts], axis=0)
        away = np.zeros(finite.size, bool) if parts[0].excluded is None else parts[0].excluded
        finite |= away
        weight = np.sum([part.size * part.weight for part in parts], axis=0) / size
        suspicion = np.sum([part.size * part.suspicion for part in parts], axis=0) / size
        used = np.flatnonzero(finite & ~away)
        known = [part.measured[:, used] for part in parts if part.measured is not None]
        distance = cosine = None
        if len(known) == len(parts):
            measured = np.sum(known, axis=0)
            distance, cosine = np.sqrt(measured[1]), cosines(*measured)
        score = parts[0].score
        self.record(
            Round(
                self.steps + 1,
                self.workers,
                f,
                self.workers if used.size == finite.size else tuple(used.tolist()),
                {int(rank): NOT_FINITE for rank in np.flatnonzero(~finite)},
                weight=None if np.isnan(weight[~away]).all() else weight[used],
                suspicion=suspicion[used],
                rejected=rejected_by(weight[~away], finite[~away])[finite[~away]],
                score=score[used] if len(parts) == 1 and score is not None else None,
                distance=distance,
                cosine=cosine,
                excluded=tuple(np.flatnonzero(away).tolist()),
            )
        )

    def skip(self, finite: np.ndarray, f: int, why: str, excluded: np.ndarray | None = None) -> None:
        """All ranks' vectors came to nothing."""
        away = np.zeros(finite.size, bool) if excluded is None else excluded
        used, gone = (tuple(np.flatnonzero(x).tolist()) for x in (finite & ~away, away))
        dropped = {int(rank): NOT_FINITE for rank in np.flatnonzero(~finite & ~away)}
        self.record(Round(self.steps + 1, self.workers, f, used, dropped, kept=why, excluded=gone))

    def record(self, r: Round) -> None:
        """One more step or round: counts, and warnings."""
        self._make_room([*r.asked, *r.dropped])
        place = self._places
        marks = np.zeros_like(self._total)
        dropped = [place[worker] for worker in r.dropped]
        marks[0, [place[worker] for worker in r.asked]] = 1
        marks[1, used := [place[worker] for worker in r.used]] = 1
        marks[2, dropped] = marks[4, dropped] = marks[5, dropped] = 1
        marks[3, [place[worker] for worker in r.silent]] = 1
        marks[6, [place[worker] for worker in r.excluded]] = 1
        if r.rejected is not None:
            marks[4, used] = r.rejected
        if r.suspicion is not None:
            marks[5, used] = r.suspicion > SUSPICIOUS
        self._reasons.update({**r.silent, **r.dropped})
        self.steps += 1
        self.skipped += bool(r.kept)
        self._total += marks
        if len(self._marks) == self.window:
            old = self._marks.popleft()
            self._recent[:, : old.shape[1]] -= old
        self._recent += marks
        self._marks.append(marks)
        self.rounds.append(r)
        if self.warn is not None and len(self.rounds) == self.window:
            self._warn(len(self.rounds))

    def _make_room(self, workers: Sequence[int]) -> None:
        for worker in workers:
            self._places.setdefault(worker, len(self._places))
        more = len(self._places) - self._warned.size
        if more:
            self._total = np.pad(self._total, ((0, 0), (0, more)))
            self._recent = np.pad(self._recent, ((0, 0), (0, more)))
            self._warned = np.pad(self._warned, (0, more))

    def say(self, line: str) -> None:
        """Calls ``warn``, or logs the line. What ``warn`` raises is logged: one rank alone must not stop."""
        if self.warn is None:
            if self.first:
                logger.warning("%s", line)
            return
        try:
            self.warn(line)
        except Exception:
            logger.exception("warn failed on the line: %s", line)

    def _warn(self, window: int) -> None:
        dropped, counts, far = self._recent[2], self._recent[4], self._recent[5]
        usual = counts.mean() / window  # Krum rejects all but one at each step
        often = max(OFTEN, 1 - (1 - usual) / 4) * window
        due = (self._warned == 0) | (self._warned + window <= self.steps)
        for worker, k in self._places.items():
            if not (due[k] and (counts[k] >= often or far[k] >= OFTEN * window)):
                continue
            self._warned[k] = self.steps
            what = f"rejected in {counts[k]}" if counts[k] >= often else f"far from the others in {far[k]}"
            kind = f", with {NOT_FINITE} in {dropped[k]}" if dropped[k] else ""
            host = f"host {self.hosts[worker]}, " if self.hosts else ""
            self.say(f"{self.noun} {worker} {what} of the last {window} steps{kind} ({host}step {self.steps})")

    def report(self) -> Report:
        """What became of each worker so far."""
        order = sorted(self._places)
        column = {worker: k for k, worker in enumerate(order)}
        shape = len(self.rounds), len(order)
        weight, share, suspicion = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
        measured = {name: np.full(shape, np.nan) for name in MEASURED}
        rejected = np.zeros(shape, bool)
        for i, r in enumerate(self.rounds):
            used, dropped = [column[worker] for worker in r.used], [column[worker] for worker in r.dropped]
            suspicion[i, dropped], rejected[i, dropped] = 1.0, True
            if r.weight is not None:
                weight[i, used], share[i, used] = r.weight, r.weight * len(used)
                weight[i, dropped] = share[i, dropped] = 0.0
            if r.suspicion is not None:
                suspicion[i, used] = r.suspicion
            if r.rejected is not None:
                rejected[i, used] = r.rejected
            for name, series in measured.items():
                values = getattr(r, name)
                if values is not None:
                    series[i, used] = values
        means = [_mean(weight), _mean(share), _mean(suspicion)]
        return Report(
            algorithm=self.title,
            noun=self.noun,
            steps=self.steps,
            skipped=self.skipped,
            recent=len(self.rounds),
            workers=tuple(self._standing(worker, *(float(mean[column[worker]]) for mean in means)) for worker in order),
            weight=weight,
            suspicion=suspicion,
            rejected=rejected,
            **measured,
        )

    def _standing(self, worker: int, weight: float, share: float, suspicion: float) -> Standing:
        place = self._places[worker]
        asked, used, dropped, silent, rejected, _, excluded = map(int, self._total[:, place])
        return Standing(
            worker=worker,
            host=self.hosts[worker] if self.hosts else "",
            asked=asked,
            used=used,
            dropped=dropped,
            silent=silent,
            rejected=rejected,
            recently_dropped=int(self._recent[2, place]),
            recently_rejected=int(self._recent[4, place]),
            weight=weight,
            share=share,
            suspicion=suspicion,
            reason=self._reasons.get(worker, ""),
            excluded=excluded,
        )


def report_of_steps(
    title: str, *, weight: np.ndarray, score: np.ndarray, distance: np.ndarray, cosine: np.ndarray, finite: np.ndarray,
    byzantine: np.ndarray, workers: np.ndarray | None = None, counts: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> Report:  # fmt: skip
    """The report of steps that are all known, of n vectors each.

    Args:
        title: what decided.
        weight, score, distance, cosine: [steps, n], NaN where they are not known.
        finite: [steps, n].
        byzantine: [steps, n] who attacked.
        workers: [steps, n] whose vectors these are; by default vector i is of worker i.
        counts: [steps, n] what each counts; by default all count the same.
        excluded: [steps, n] whom a quarantine kept from the rule; by default nobody.

    Example:
        >>> known = {"weight": np.full((2, 3), 1 / 3), "score": np.full((2, 3), np.nan), "cosine": np.ones((2, 3))}
        >>> distance, everybody = np.array([[1.0, 1.0, 4.0], [1.0, 1.0, 4.0]]), np.ones((2, 3), bool)
        >>> print(report_of_steps("Average", distance=distance, finite=everybody, byzantine=~everybody, **known))
        Average: 3 workers, 2 steps, 0 skipped
        worker  rejected  not finite  share  suspicion
             2         -           -  1.000      0.750
             0         -           -  1.000      0.000
             1         -           -  1.000      0.000
    """
    steps, n = weight.shape
    away = np.zeros((steps, n), bool) if excluded is None else excluded
    suspicions, rejected = suspicion(distance, finite, cosine), np.zeros((steps, n), bool)
    for i in range(steps):
        there = ~away[i]
        told = None if np.isnan(weight[i]).all() else weight[i, there]
        each = told if told is None or counts is None else told / np.where(counts[i] > 0, counts[i], 1)[there]
        rejected[i, there] = rejected_by(each, finite[i, there])
    share = weight * (n - away.sum(1, keepdims=True))
    weight, share = (np.where(finite | np.isnan(values), values, 0.0) for values in (weight, share))
    series = {"weight": weight, "share": share, "suspicion": suspicions, "score": score}
    series |= {"distance": distance, "cosine": cosine}
    marks = {"rejected": rejected, "dropped": ~finite, "byzantine": byzantine, "asked": np.ones((steps, n), bool)}
    marks["excluded"] = away
    numbers = np.arange(n)
    if workers is not None:
        numbers, places = np.unique(workers, return_inverse=True)
        places = places.reshape(steps, n), np.arange(steps)[:, None]
        series = {name: _spread(values, *places, numbers.size, np.nan) for name, values in series.items()}
        marks = {name: _spread(values, *places, numbers.size, False) for name, values in marks.items()}
    means = {name: _mean(series[name]) for name in ("weight", "share", "suspicion")}
    counted = {name: values.sum(0) for name, values in marks.items()}
    standings = tuple(
        Standing(
            worker=int(worker),
            host="",
            asked=int(counted["asked"][k]),
            used=int(counted["asked"][k] - counted["dropped"][k] - counted["excluded"][k]),
            excluded=int(counted["excluded"][k]),
            silent=0,
            reason=NOT_FINITE if counted["dropped"][k] else "",
            dropped=int(counted["dropped"][k]),
            recently_dropped=int(counted["dropped"][k]),
            rejected=int(counted["rejected"][k]),
            recently_rejected=int(counted["rejected"][k]),
            weight=float(means["weight"][k]),
            share=float(means["share"][k]),
            suspicion=float(means["suspicion"][k]),
        )
        for k, worker in enumerate(numbers)
    )
    return Report(
        algorithm=title,
        noun="worker",
        steps=steps,
        skipped=0,
        recent=steps,
        workers=standings,
        rejected=marks["rejected"],
        byzantine=marks["byzantine"],
        **{name: values for name, values in series.items() if name != "share"},
    )


def _spread(values: np.ndarray, places: np.ndarray, steps: np.ndarray, size: int, missing: Any) -> np.ndarray:
    """[steps, size] of values [steps, n], each in the column of its worker."""
    result = np.full((values.shape[0], size), missing, values.dtype)
    result[steps, places] = values
    return result


def _mean(series: np.ndarray) -> np.ndarray:
    """Of each column, over what is known; NaN without any."""
    known = ~np.isnan(series)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, series, 0.0).sum(0) / np.maximum(count, 1), np.nan)


__all__ = ["Report", "Round", "Standing"]
