"""Who gives runs to workers, and hears what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ...runs.experiment import Experiment
from .display import Display
from .plan import Plan, Record, kind_of_run

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


def foretell(plan: Plan, workers: Workers, display: Display) -> None:
    """Says how long it will take, from complete runs and from a few steps of runs of each other kind."""
    samples = plan.samples() if workers.calibrates else []
    if samples:
        display.say(f"timing a few steps of {len(samples)} runs ...")
    busy: dict[int, Experiment] = {}
    while samples or busy:
        for worker in workers.idle()[: len(samples)]:
            busy[worker] = samples.pop()
            workers.give(worker, "calibrate", busy[worker])
        for event in workers.events():  # what fails says nothing here: the run will
            del busy[event.worker]
            if event.kind == "calibrated":
                plan.calibrated.setdefault(kind_of_run(event.experiment), []).append(event.value)
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
            elif event.kind == "failed":
                plan.failed.append((event.experiment, event.value))
                display.say(f"failed: {event.experiment.name}: {event.value}")
            elif event.kind == "elsewhere":  # in the hands of another sweep, which will complete it
                display.say(f"left to another process: {event.value}")
            else:
                again = "it is tried again" if plan.died(event.experiment, event.value) else "given up"
                display.say(f"a worker process died ({event.value}) in {event.experiment.name}; {again}")
            record.write()
        left = [parts[w] * (plan.cost(e) or 0.0) for w, e in busy.items()]
        display.refresh(len(busy), plan.estimate(left))
