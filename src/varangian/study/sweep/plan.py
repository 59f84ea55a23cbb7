"""What a sweep has to do, what became of it, how long the rest takes, and the record that it leaves."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from ...core.checks import cut, printable
from ...core.references import said_of
from ...runs.cards import device_of
from ...runs.environment import processor, versions
from ...runs.experiment import Experiment
from ...runs.files import number, read_json, write_whole
from ...runs.folders import RESULT
from ...runs.live.events import VERSION, EventLog, one_line
from ...runs.results import settings_of
from .places import Place

TOLD = 20  # of those that failed, in the record
RETRIES = 2  # of a run whose process died


@dataclass(frozen=True)
class Estimate:
    """How long what is left will take.

    Attributes:
        seconds: of wall-clock time; None where nothing could be measured.
        basis: what that was measured on.
    """

    seconds: float | None
    basis: str


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@dataclass(eq=False)
class Plan:
    """What is to do, what became of it, and how long a run takes."""

    out: Path
    jobs: int
    threads: int
    time_budget: float | None
    data_folder: str | Path | None
    todo: list[Experiment]
    skipped: int
    elsewhere: int
    places: tuple[Place, ...] = ()  # the card of each job; none where no run is on one
    events: bool = False  # whether runs, and this sweep, write down what happens
    tensorboard: bool = False
    start: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: list[tuple[Experiment, str]] = field(default_factory=list)
    retried: int = 0
    attempts: dict[Experiment, int] = field(default_factory=dict)
    measured: dict[tuple[object, ...], list[float]] = field(default_factory=dict)
    calibrated: dict[tuple[object, ...], list[float]] = field(default_factory=dict)
    before: int = 0
    foretold: float | None = None
    left: float | None = None  # seconds that the rest takes, as it was last thought

    def __post_init__(self) -> None:
        self.runs = self.skipped + len(self.todo) + self.elsewhere
        self.todo.reverse()  # pop() then takes the first

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def cards(self) -> list[tuple[int, str, int]]:
        """Those in use: number, name, and how many processes it has."""
        counted = Counter((place.number, place.name) for place in self.places)
        return [(number, name, jobs) for (number, name), jobs in sorted(counted.items())]

    def learn(self, folders: Iterator[Path]) -> None:
        """The times of complete runs."""
        for folder in folders:
            try:
                settings = settings_of(folder)
                seconds = number(read_json(folder / RESULT)["seconds"], "seconds", 0)
            except (OSError, ValueError, KeyError):
                continue  # collecting the outcomes will say so
            self.measured.setdefault(kind_of_run(settings), []).append(seconds)
            self.before += 1

    def cost(self, experiment: Experiment) -> float | None:
        """Seconds that a run takes, as far as runs of its kind were timed: those of the same rule, or else of any."""
        for times in (self.measured, self.calibrated):
            kind = kind_of_run(experiment)
            same = times.get(kind) or [t for k, found in times.items() if k[:-1] == kind[:-1] for t in found]
            if same:
                return statistics.mean(same)
        return None

    def estimate(self, running: Sequence[float] = ()) -> Estimate:
        """Of what is to do, and of the running runs, of which these parts are left."""
        costs = [self.cost(e) for e in self.todo]
        known = [c for c in costs if c is not None]
        if costs and not known:
            return Estimate(None, "nothing measured yet")
        mean = statistics.mean(known) if known else 0.0
        total = sum(mean if c is None else c for c in costs) + sum(running)
        basis = []
        if self.done + self.before:
            basis.append(f"{self.done + self.before} completed runs")
        if self.calibrated and any(kind_of_run(e) not in self.measured for e in self.todo):
            basis.append("a short calibration")
        return Estimate(total / self.jobs, " and ".join(basis) or "nothing left")

    def samples(self) -> list[Experiment]:
        """Which runs to time a few steps of: two of each kind that no completed run tells about, the second ones last,
        for which there may be no time."""
        kinds: dict[tuple[object, ...], list[Experiment]] = {}
        for e in reversed(self.todo):
            if self.cost(e) is None:
                kinds.setdefault(kind_of_run(e)[:-1], []).append(e)
        places = [(len(found) // 3, 2 * len(found) // 3) for found in kinds.values()]
        chosen = [found[i] for found, (i, _) in zip(kinds.values(), places, strict=True)]
        return chosen + [found[j] for found, (i, j) in zip(kinds.values(), places, strict=True) if j != i]

    def next(self) -> Experiment | None:
        """The next run, if there is one and time for it."""
        return self.todo.pop() if self.more else None

    @property
    def more(self) -> bool:
        """Whether there is another run, and time for it."""
        if not self.todo or self.time_budget is None:
            return bool(self.todo)
        return self.elapsed + (self.cost(self.todo[-1]) or 0.0) <= self.time_budget

    def died(self, experiment: Experiment, how: str) -> bool:
        """Whether the run of a process that died is to be tried again; it is then next."""
        self.attempts[experiment] = attempts = self.attempts.get(experiment, 0) + 1
        if attempts > RETRIES:
            self.failed.append((experiment, f"its process died {attempts} times; last: {how}"))
            return False
        self.retried += 1
        self.todo.append(experiment)
        return True


def kind_of_run(e: Experiment) -> tuple[object, ...]:
    return (
        e.dataset,
        e.model,
        e.workers,
        e.honest,
        e.batch_size,
        e.steps,
        e.local_steps,
        e.evaluate_every,
        device_of(e.device).type,
        e.precision,
        e.measure,
        e.rule,
    )


class Record:
    """<out>/sweeps/<time>-<pid>.json: what ran this sweep, and how long it took so far."""

    def __init__(self, out: Path, command: str, plan: Plan) -> None:
        self.plan, self.command, self.written = plan, command, -60.0
        self.started = datetime.now(timezone.utc)
        stamp = self.started.strftime("%Y%m%dT%H%M%SZ")
        self.path = out / "sweeps" / f"{stamp}-{platform.node() or 'host'}-{os.getpid()}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.log: EventLog | None = None
        if plan.events:
            self.log = EventLog(self.path.with_suffix(".jsonl"))
            self.log.write(
                "begun", version=VERSION, what="sweep", command=one_line(command), runs=plan.runs,
                complete=plan.skipped, todo=len(plan.todo), jobs=plan.jobs, threads=plan.threads, pid=os.getpid(),
            )  # fmt: skip

    def tell(self, state: str, experiment: Experiment, **values: object) -> None:
        """What became of a run, where events are asked for."""
        if self.log is not None:
            self.log.write("run", state=state, folder=f"runs/{experiment.name}-{experiment.digest}", **values)

    def close(self, error: BaseException | None) -> None:
        """The last words."""
        self.write(ended=True)
        if self.log is None:
            return
        plan = self.plan
        if isinstance(error, KeyboardInterrupt):
            self.log.write("interrupted")
        elif error is not None:
            self.log.write("failed", why=one_line(said_of(error)))
        else:
            self.log.write(
                "complete", what="sweep", done=plan.done, failed=len(plan.failed),
                left=plan.runs - plan.skipped - plan.done - len(plan.failed), seconds=round(plan.elapsed, 1),
            )  # fmt: skip
        self.log.close()

    def write(self, ended: bool = False) -> None:
        """At most each ten seconds, but for the end."""
        if not ended and self.plan.elapsed - self.written < 10:
            return
        self.written = self.plan.elapsed
        plan = self.plan
        content = {
            "command": self.command,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(plan.elapsed, 1),
            "jobs": plan.jobs,
            "threads": plan.threads,
            "cores": cores(),
            "runs": plan.runs,
            "done": plan.done,
            "complete_before": plan.skipped,
            "failed": len(plan.failed),
            "retried": plan.retried,
            "failures": [cut(printable(f"{e.name}: {why}")) for e, why in plan.failed[-TOLD:]],
            "left": None if plan.left is None else round(plan.left, 1),
            "ended": ended,
            "versions": versions(),
            "processor": processor(),
        }
        if plan.places:
            content["cards"] = [{"device": f"cuda:{i}", "name": name, "jobs": jobs} for i, name, jobs in plan.cards]
        text = json.dumps(content, indent=2) + "\n"
        write_whole(self.path, lambda file: file.write(text.encode()))
