"""Workers that are processes of this machine."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from ...core.kernels.runtime import compiling_seconds
from ...core.references import Luggage, packed, said_of, unpack
from ...runs.building import build, computing, open_dataset
from ...runs.cards import usable
from ...runs.experiment import Experiment
from ...runs.folders import FolderInUse
from ...runs.results import Evaluation
from ...runs.running import run
from ...simulation.data import Dataset, Split
from ...simulation.sampling import Evaluator
from .manager import STARTS, Event
from .places import anywhere, seeing
from .plan import Plan

PATIENCE = 30.0  # seconds that processes have to write their checkpoints when a sweep is interrupted


TELLING = 3.0  # seconds of steps that tell how long a run takes
SOME = 1000  # examples on which an evaluation tells how long it takes


HEARTBEAT = 0.5  # seconds between two reports of a run


NO_GUARD = 117  # exit status of a worker process whose script sweeps as it is imported


def end_worker_that_imports_its_script() -> None:
    """Ends this process, without a word, if it is a worker that is only just importing its parent's script."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(NO_GUARD)


@dataclass(eq=False)
class _Process:
    process: SpawnProcess
    pipe: Connection
    experiment: Experiment | None = None
    ready: bool = False


class LocalWorkers:
    """Worker processes of this machine."""

    calibrates = True

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.processes: list[_Process] = []
        self.stillborn = 0

    def __enter__(self) -> LocalWorkers:
        script = getattr(sys.modules["__main__"], "__file__", None)
        if self.plan.todo and script is not None and not os.path.exists(script):
            raise ValueError(
                f"worker processes import the script that calls sweep(), and {script} is no file: write one."
            )
        for i in range(self.plan.jobs if self.plan.todo else 0):
            self.processes.append(self._start(i))
        return self

    def __exit__(self, *error: object) -> None:
        """On an error, also Ctrl-C, the processes are told to end, given time for a checkpoint, and then killed."""
        for p in self.processes:
            p.pipe.close()  # an idle one ends by itself
            if p.experiment is not None:
                p.process.terminate()
        limit = time.monotonic() + PATIENCE
        for p in self.processes:
            p.process.join(max(0.1, limit - time.monotonic()))
            if p.process.is_alive():
                p.process.kill()
                p.process.join()

    def _start(self, number: int) -> _Process:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        place = self.plan.places[number] if self.plan.places else None
        arguments = (
            theirs, str(self.plan.out / "runs"), self.plan.threads, self.plan.data_folder, packed(), place is not None,
            self.plan.events, self.plan.tensorboard,
        )  # fmt: skip
        process = context.Process(target=_work, args=arguments, daemon=True)
        with seeing(place):
            process.start()
        theirs.close()
        return _Process(process, pipe)

    def idle(self) -> list[int]:
        return [i for i, p in enumerate(self.processes) if p.ready and p.experiment is None]

    def give(self, worker: int, task: str, experiment: Experiment) -> None:
        p = self.processes[worker]
        p.experiment = experiment
        with suppress(OSError):  # it died: events() will see that
            p.pipe.send((task, anywhere(experiment) if self.plan.places else experiment))

    def events(self) -> list[Event]:
        found: list[Event] = []
        handles = [handle for p in self.processes for handle in (p.pipe, p.process.sentinel)]
        wait(handles, timeout=HEARTBEAT)
        for i, p in enumerate(self.processes):
            dead = not p.process.is_alive()  # asked first: what it said before is then in the pipe
            try:
                while p.pipe.poll():
                    kind, value = p.pipe.recv()
                    if kind == "ready":
                        p.ready, self.stillborn = True, 0
                        continue
                    assert p.experiment is not None
                    found.append(Event(i, kind, p.experiment, value))
                    if kind != "step":
                        p.experiment = None
            except (EOFError, OSError):
                p.process.join(HEARTBEAT)  # its end of the pipe goes a moment before itself
                dead = not p.process.is_alive()
            if dead:
                self._replace(i, p, found)
        return found

    def _replace(self, i: int, p: _Process, found: list[Event]) -> None:
        p.process.join()
        if p.process.exitcode == NO_GUARD:
            raise RuntimeError(
                "worker processes import the script that calls sweep(), and it calls it again as they do: put the call "
                'under if __name__ == "__main__":'
            )
        if not p.ready:
            self.stillborn += 1
            if self.stillborn >= STARTS:
                raise RuntimeError("worker processes die as they start; their own message is above.")
        if p.experiment is not None:
            found.append(Event(i, "died", p.experiment, _how(p.process.exitcode)))
        p.pipe.close()
        self.processes[i] = self._start(i)


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        try:
            name = signal.Signals(-status).name
            return f"{name}, as from a system short of memory" if name == "SIGKILL" else name
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"


def _work(
    pipe: Connection, out: str, threads: int, data_folder: str | None, luggage: Luggage, on_card: bool,
    events: bool, tensorboard: bool,
) -> None:  # fmt: skip
    """A worker process: does what comes through the pipe until nobody holds its other end, or its card fails it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    unpack(luggage)
    opened: tuple[str, Dataset] | None = None
    if on_card:
        try:
            usable("cuda")
        except ValueError as error:
            sys.exit(str(error))
    with suppress(OSError):
        pipe.send(("ready", None))
    while True:
        try:
            task, experiment = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            experiment.import_code()
            if opened is None or opened[0] != experiment.dataset:
                opened = experiment.dataset, open_dataset(experiment, data_folder)
            if task == "calibrate":
                pipe.send(("calibrated", time_of(experiment, opened[1])))
            else:
                result = run(
                    experiment, out, dataset=opened[1], progress=_reporter(pipe), events=events, tensorboard=tensorboard
                )
                pipe.send(("done", result.seconds))
        except (KeyboardInterrupt, BrokenPipeError):
            return
        except FolderInUse as error:
            with suppress(OSError):
                pipe.send(("elsewhere", str(error)))
        except Exception as error:
            with suppress(OSError):
                pipe.send(("failed", said_of(error)))
        if on_card and not _card_works():
            return


def _card_works() -> bool:
    """Whether no error on the card has spoilt it for this process; and gives back memory that others may want."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _end_with_parent() -> None:
    """Ends this process, whatever it is at, when its parent is gone: the same command may then start at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _reporter(pipe: Connection) -> Callable[[int, Evaluation | None], None]:
    last = time.monotonic()

    def report(step: int, newest: Evaluation | None) -> None:
        nonlocal last
        if time.monotonic() - last >= HEARTBEAT:
            last = time.monotonic()
            accuracy = None if newest is None or math.isnan(newest.accuracy) else newest.accuracy
            try:
                pipe.send(("step", (step, accuracy)))
            except OSError:  # the sweep is being ended, and its signal comes only now: a checkpoint first
                raise KeyboardInterrupt from None

    return report


def time_of(experiment: Experiment, dataset: Dataset) -> float:
    """Seconds that a run should take, from a few of its steps and an evaluation; of a run that takes long from one step
    and an evaluation on some of the examples. What compiling kernels takes is not of the run."""
    e = experiment

    def clock() -> float:
        return time.perf_counter() - compiling_seconds()

    with computing(e):
        simulation, evaluators = build(e, dataset)
        start, steps = clock(), 1
        simulation.step()
        if clock() - start < TELLING:  # the first one loads kernels, which counts here
            start, steps = clock(), 0
            while steps < 8 and clock() - start < TELLING:
                simulation.step()
                steps += 1
        stepping, times = clock() - start, 1.0
        if stepping >= TELLING and len(dataset.test) > SOME:
            some = replace(dataset, test=Split(dataset.test.inputs[:SOME], dataset.test.labels[:SOME]))
            device, dtype = simulation.parameters.device, simulation.parameters.dtype
            test = Evaluator(some, e.seed, profile=e.profile, device=device, dtype=dtype)
            aside = 0 if evaluators.validation is None else len(evaluators.validation.examples.split)
            times = (len(dataset.test) + aside) / SOME
            evaluators = replace(evaluators, test=test, validation=None)
        start = clock()
        evaluators(simulation.gradients, simulation.parameters, 0)
        evaluating = times * (clock() - start)
    evaluations = 1 + (-(-e.steps // e.evaluate_every) if e.evaluate_every else 1)
    return e.steps * stepping / steps + evaluations * evaluating
