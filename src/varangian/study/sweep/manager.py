"""Who gives runs to workers, and hears what became of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

from ...runs.experiment import Experiment
from ...runs.live.events import one_line
from .display import Display
from .plan import Plan, Record, kind_of_run

CALIBRATION = 60.0  # seconds after which no further run is timed; a dry run waits as long again for those under way
SPOKEN = 10.0  # seconds between two lines that say how far the timing is
STARTS = 3  # worker processes in a row that die before they can work: then something is wrong with all of them


@dataclass(frozen=True)
class Event:
    """What a worker says. ``kind`` is step, done, failed, elsewhere, died or calibrated; ``value`` goes with it."""

    worker: int
    kind: str
    experiment: Experiment
    value: Any = None


class Workers(Protocol):
    """Whoever does the runs, numbered 0 to jobs - 1."""

    def __enter__(self) -> Workers: ...
    def __exit__(self, *error: object) -> None: ...
    def idle(self) -> list[int]: ...
    def give(self, worker: int, task: str, experiment: Experiment) -> None: ...
    def events(self) -> list[Event]: ...

    calibrates: bool


def foretell(plan: Plan, workers: Workers, display: Display, patient: bool = True) -> None:
    """Says how long it will take, from complete runs and from a few steps of runs of each other kind.

    Args:
        patient: whether what is being timed when the time for it is over is waited for, since the same workers are
            needed then.
    """
    samples = plan.samples() if workers.calibrates else []
    busy: dict[int, Experiment] = {}
    count, answered, passed = len(samples), 0, 0.0
    begun: float | None = None  # when a worker was ready
    spoken = time.monotonic()
    if samples:
        display.say(f"timing a few steps of {count} runs ...")
    while samples or busy:
        passed = 0.0 if begun is None else time.monotonic() - begun
        if passed >= CALIBRATION:
            samples.clear()
            if not patient and passed >= 2 * CALIBRATION:
                break
        for worker in workers.idle()[: len(samples)]:
            busy[worker] = samples.pop(0)
            workers.give(worker, "calibrate", busy[worker])
            begun = time.monotonic() if begun is None else begun
        for event in workers.events():  # what fails says nothing here: the run will
            del busy[event.worker]
            answered += 1
            if event.kind == "calibrated":
                plan.calibrated.setdefault(kind_of_run(event.experiment), []).append(event.value)
        if (samples or busy) and time.monotonic() - spoken >= SPOKEN:
            spoken = time.monotonic()
            display.say(f"timed {answered} of {count} ...")
    if answered < count:
        rest = "the others are taken to last as long" if answered else "it is not known how long they last"
        display.say(f"timed {answered} of {count} in {passed:.0f} s, which is all the time for it: {rest}.")
    estimate = plan.estimate()
    plan.foretold = estimate.seconds
    display.announce(estimate)


def manage(plan: Plan, workers: Workers, display: Display, record: Record) -> None:
    foretell(plan, workers, display)
    busy: dict[int, Experiment] = {}
    parts: dict[int, float] = {}
    while busy or plan.more:
        for worker in workers.idle():
            experiment = plan.next()
            if experiment is None:
                break
            busy[worker], parts[worker] = experiment, 1.0
            workers.give(worker, "run", experiment)
            display.started(worker, experiment)
            record.tell("started", experiment)
        for event in workers.events():
            if event.kind == "step":
                step, newest = event.value
                parts[event.worker] = 1 - step / max(1, event.experiment.steps)
                display.step(event.worker, event.experiment, step, newest)
                continue
            del busy[event.worker], parts[event.worker]
            display.ended(event.worker)
            if event.kind == "done":
                plan.done += 1
                plan.measured.setdefault(kind_of_run(event.experiment), []).append(event.value)
                record.tell("complete", event.experiment, seconds=round(event.value, 3))
                continue
            record.tell(event.kind, event.experiment, why=one_line(event.value))
            if event.kind == "failed":
                plan.failed.append((event.experiment, event.value))
                display.say(f"failed: {event.experiment.name}: {event.value}")
            elif event.kind == "elsewhere":  # in the hands of another sweep, which will complete it
                display.say(f"left to another process: {event.value}")
            else:
                again = "it is tried again" if plan.died(event.experiment, event.value) else "given up"
                display.say(f"a worker process died ({event.value}) in {event.experiment.name}; {again}")
        left = [parts[w] * (plan.cost(e) or 0.0) for w, e in busy.items()]
        estimate = plan.estimate(left)
        plan.left = estimate.seconds
        display.refresh(len(busy), estimate)
        record.write()
