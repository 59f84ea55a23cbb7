"""Many experiments: in parallel, resumable, and none lost when a process dies.

The parent hands out runs and writes nothing but the final tables; each worker process trains one run at a time into
that run's own folder. Whatever dies, and whenever: a folder with result.json is complete, another one is not, and
that is all the state that there is. A run that was cut short goes on from its last checkpoint.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from . import kernels
from .checks import shown
from .data import Dataset
from .environment import processor, versions
from .experiment import Evaluation, Experiment, build, check_writable, identified, open_dataset, run, settings_of
from .files import number, read_json, write_whole
from .folders import RESULT, FolderInUse
from .interrupts import termination_interrupts
from .outcomes import Outcome, complete, read_outcome, write_runs

RETRIES = 2  # of a run whose process died
STARTS = 3  # worker processes in a row that die before they can work: then something is wrong with all of them
PATIENCE = 30.0  # seconds that processes have to write their checkpoints when a sweep is interrupted
HEARTBEAT = 0.5  # seconds between two reports of a run
PER_GPU = 2  # runs at a time on a GPU: while one waits for the host, the other computes


@dataclass(frozen=True)
class Estimate:
    """How long what is left will take.

    Attributes:
        seconds: of wall-clock time; None where nothing could be measured.
        basis: what that was measured on.
    """

    seconds: float | None
    basis: str


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to.

    Attributes:
        outcomes: of all complete runs of the list, those of earlier sweeps included.
        done, skipped: how many runs this sweep trained, and found complete.
        failed: the runs that raised an error or whose process kept dying, and why.
        left: how many it did not come to, for lack of time or because another shard has them.
        seconds: of wall-clock time.
    """

    outcomes: tuple[Outcome, ...]
    done: int
    skipped: int
    failed: tuple[tuple[Experiment, str], ...]
    left: int
    seconds: float


def sweep(
    experiments: Experiment | Iterable[Experiment],
    out: str | Path,
    jobs: int | None = None,
    threads: int = 1,
    shard: tuple[int, int] = (1, 1),
    time_budget: float | None = None,
    ray: str | None = None,
    data_folder: str | Path | None = None,
    notices: Console | None = None,
    command: str = "varangian.sweep(...)",
) -> Sweep:
    """Runs all experiments that are not complete yet, and writes their table.

    ``<out>/runs/`` holds the run folders, ``<out>/runs.csv`` a row a run and ``curves.csv`` a row an evaluation (both
    the same bytes however often the sweep was interrupted), ``timings.csv`` the seconds, and ``sweeps/`` a file on
    each sweep: command, versions, machine, time.

    Args:
        experiments: what to run, in this order; those of one digest once, however they are written.
        out: where everything is kept.
        jobs: worker processes, or tasks at a time on Ray; by default as many as there are cores for their threads, and
            where runs are on "cuda", "cuda:1" ..., no more than two for each GPU that they name, or that Ray has.
        threads: of torch and the kernels, per process. Results of different numbers of threads may differ.
        shard: (i, N): only every N-th run, from the i-th on.
        time_budget: seconds after which no run should still be going: one that would not end in time is not started.
        ray: address of a Ray cluster ("auto", "local", "ray://host:port") that runs them instead; ``out`` must then
            be a folder that all of its machines see. Runs on "cuda" share its GPUs evenly.
        data_folder: where data files are.
        notices: where progress is shown; None for nowhere.
        command: what the record says it was started by.

    Raises:
        ValueError: an impossible shard, number of jobs or time, ``ray`` where Ray is not installed or no cluster
            answers, or one without GPUs for runs that need them.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what is complete is kept and in the table, and runs that were under
            way go on from where they were when the sweep is started again.

    A script that calls this does so under ``if __name__ == "__main__":``, since worker processes import it too.
    """
    for name, value in (("jobs", 1 if jobs is None else jobs), ("threads", threads)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"a sweep needs {name} >= 1, a whole number, got {shown(value)}.")
    if time_budget is not None and not time_budget >= 0:
        raise ValueError(f"time_budget: must be a number of seconds >= 0, got {time_budget}.")
    experiments = [experiments] if isinstance(experiments, Experiment) else list(experiments)
    for e in experiments:
        if not isinstance(e, Experiment):
            raise ValueError(f"a sweep is of experiments, got {shown(e)}: write Experiment(...).")
    number, shards = shard
    if not 1 <= number <= shards:
        raise ValueError(f"a shard i/N needs 1 <= i <= N, got {number}/{shards}.")
    out = Path(out).expanduser()
    check_writable(out)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    first: dict[str, Experiment] = {}
    opened: dict[str, Dataset | None] = {}  # data of somebody's own, whose content tells runs apart
    for asked in experiments:
        e, opened[asked.dataset] = identified(asked, opened.get(asked.dataset), data_folder)
        first.setdefault(e.digest, e)
    everything = list(first.values())
    mine = everything[number - 1 :: shards]
    folders = {e: out / "runs" / f"{e.name}-{e.digest}" for e in mine}
    todo = [e for e in mine if not complete(folders[e])]
    wanted, jobs = jobs, _default_jobs(todo, threads) if jobs is None else jobs
    jobs = min(jobs, max(1, len(todo)))
    plan = _Plan(out, jobs, threads, time_budget, data_folder, todo, len(mine) - len(todo), len(everything) - len(mine))
    plan.learn(folders[e] for e in mine if complete(folders[e]))
    record = _Record(out, command, plan)
    workers = _ray_workers(ray, plan, wanted) if ray is not None else _LocalWorkers(plan)
    try:
        with termination_interrupts(), workers, _Display(plan, notices) as display:
            _manage(plan, workers, display, record)
    except KeyboardInterrupt:  # from here, not from whatever line it was waiting in
        complete_now = plan.skipped + plan.done
        raise KeyboardInterrupt(f"{complete_now} of {len(mine)} runs are complete; the same call goes on.") from None
    finally:
        outcomes = tuple(_collect(out, everything, plan.failed))
        write_runs(out, outcomes)
        record.write(force=True)
    return Sweep(outcomes, plan.done, plan.skipped, tuple(plan.failed), len(everything) - len(outcomes), plan.elapsed)


def _default_jobs(experiments: Sequence[Experiment], threads: int) -> int:
    jobs, gpus = max(1, _cores() // threads), {e.device for e in experiments if e.device.startswith("cuda")}
    return min(jobs, PER_GPU * len(gpus)) if gpus else jobs


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _collect(out: Path, experiments: Sequence[Experiment], failed: list[tuple[Experiment, str]]) -> Iterator[Outcome]:
    for e in experiments:
        folder = out / "runs" / f"{e.name}-{e.digest}"
        if complete(folder):
            try:
                yield read_outcome(folder)
            except ValueError as error:
                failed.append((e, f"{error} Remove that folder to run it again."))


# ------------------------------------------------------------------------------------------------------------ the plan


@dataclass(eq=False)
class _Plan:
    """What is to do, what became of it, and how long a run takes."""

    out: Path
    jobs: int
    threads: int
    time_budget: float | None
    data_folder: str | Path | None
    todo: list[Experiment]
    skipped: int
    elsewhere: int
    start: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: list[tuple[Experiment, str]] = field(default_factory=list)
    retried: int = 0
    attempts: dict[Experiment, int] = field(default_factory=dict)
    measured: dict[tuple[object, ...], list[float]] = field(default_factory=dict)
    calibrated: dict[tuple[object, ...], list[float]] = field(default_factory=dict)
    before: int = 0

    def __post_init__(self) -> None:
        self.todo.reverse()  # pop() then takes the first

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def learn(self, folders: Iterator[Path]) -> None:
        """The times of complete runs."""
        for folder in folders:
            try:
                settings = settings_of(folder)
                seconds = number(read_json(folder / RESULT)["seconds"], "seconds", 0)
            except (OSError, ValueError, KeyError):
                continue  # collecting the outcomes will say so
            self.measured.setdefault(_kind(settings), []).append(seconds)
            self.before += 1

    def cost(self, experiment: Experiment) -> float | None:
        """Seconds that a run takes, as far as runs of its kind were timed: those of the same rule, or else of any."""
        for times in (self.measured, self.calibrated):
            kind = _kind(experiment)
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
        if self.calibrated and any(_kind(e) not in self.measured for e in self.todo):
            basis.append("a short calibration")
        return Estimate(total / self.jobs, " and ".join(basis) or "nothing left")

    def samples(self) -> list[Experiment]:
        """Which runs to time a few steps of: two of each kind that no completed run tells about."""
        kinds: dict[tuple[object, ...], list[Experiment]] = {}
        for e in reversed(self.todo):
            if self.cost(e) is None:
                kinds.setdefault(_kind(e)[:-1], []).append(e)
        return [
            e for found in kinds.values() for e in dict.fromkeys((found[len(found) // 3], found[2 * len(found) // 3]))
        ]

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


def _kind(e: Experiment) -> tuple[object, ...]:
    return e.dataset, e.model, e.workers, e.honest, e.batch_size, e.steps, e.evaluate_every, e.device, e.measure, e.rule


class _Record:
    """<out>/sweeps/<time>-<pid>.json: what ran this sweep, and how long it took so far."""

    def __init__(self, out: Path, command: str, plan: _Plan) -> None:
        self.plan, self.command, self.written = plan, command, -60.0
        self.started = datetime.now(timezone.utc)
        stamp = self.started.strftime("%Y%m%dT%H%M%SZ")
        self.path = out / "sweeps" / f"{stamp}-{platform.node() or 'host'}-{os.getpid()}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, force: bool = False) -> None:
        if not force and self.plan.elapsed - self.written < 10:
            return
        self.written = self.plan.elapsed
        plan = self.plan
        content = {
            "command": self.command,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(plan.elapsed, 1),
            "jobs": plan.jobs,
            "threads": plan.threads,
            "cores": _cores(),
            "done": plan.done,
            "complete_before": plan.skipped,
            "failed": len(plan.failed),
            "retried": plan.retried,
            "versions": versions(),
            "processor": processor(),
        }
        text = json.dumps(content, indent=2) + "\n"
        write_whole(self.path, lambda file: file.write(text.encode()))


# --------------------------------------------------------------------------------------------------------- the manager


@dataclass(frozen=True)
class _Event:
    """What a worker says. ``kind`` is step, done, failed, elsewhere, died or calibrated; ``value`` goes with it."""

    worker: int
    kind: str
    experiment: Experiment
    value: Any = None


class _Workers(Protocol):
    """Whoever does the runs, numbered 0 to jobs - 1."""

    def __enter__(self) -> _Workers: ...
    def __exit__(self, *error: object) -> None: ...
    def idle(self) -> list[int]: ...
    def give(self, worker: int, task: str, experiment: Experiment) -> None: ...
    def events(self) -> list[_Event]: ...

    calibrates: bool


def _manage(plan: _Plan, workers: _Workers, display: _Display, record: _Record) -> None:
    samples = plan.samples() if workers.calibrates else []
    if samples:
        display.say(f"timing a few steps of {len(samples)} runs ...")
    busy: dict[int, Experiment] = {}
    parts: dict[int, float] = {}
    announced = False
    while True:
        if not announced and not samples and not busy:
            display.announce(plan.estimate())
            announced = True
        for worker in workers.idle():
            if samples:
                task, experiment = "calibrate", samples.pop()
            elif announced:
                task, experiment = "run", plan.next()
            else:
                break
            if experiment is None:
                break
            busy[worker], parts[worker] = experiment, 1.0
            workers.give(worker, task, experiment)
            if task == "run":
                display.started(worker, experiment)
        if not busy and announced and not plan.more:
            return
        for event in workers.events():
            if event.kind == "step":
                step, newest = event.value
                parts[event.worker] = 1 - step / max(1, event.experiment.steps)
                display.step(event.worker, event.experiment, step, newest)
                continue
            del busy[event.worker], parts[event.worker]
            display.ended(event.worker)
            if event.kind == "calibrated":
                plan.calibrated.setdefault(_kind(event.experiment), []).append(event.value)
            elif event.kind == "done":
                plan.done += 1
                plan.measured.setdefault(_kind(event.experiment), []).append(event.value)
            elif event.kind == "failed":
                if announced:  # a calibration that fails says nothing: the run will
                    plan.failed.append((event.experiment, event.value))
                    display.say(f"failed: {event.experiment.name}: {event.value}")
            elif event.kind == "elsewhere":  # in the hands of another sweep, which will complete it
                display.say(f"left to another process: {event.value}")
            elif announced:
                again = "it is tried again" if plan.died(event.experiment, event.value) else "given up"
                display.say(f"a worker process died ({event.value}) in {event.experiment.name}; {again}")
            record.write()
        left = [parts[w] * (plan.cost(e) or 0.0) for w, e in busy.items()]
        display.refresh(len(busy) if announced else 0, plan.estimate(left))


# ----------------------------------------------------------------------------------------------------- local processes


@dataclass(eq=False)
class _Process:
    process: SpawnProcess
    pipe: Connection
    experiment: Experiment | None = None
    ready: bool = False


class _LocalWorkers:
    """Worker processes of this machine."""

    calibrates = True

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.processes: list[_Process] = []
        self.stillborn = 0

    def __enter__(self) -> _LocalWorkers:
        for _ in range(self.plan.jobs if self.plan.todo else 0):
            self.processes.append(self._start())
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

    def _start(self) -> _Process:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        arguments = (theirs, str(self.plan.out / "runs"), self.plan.threads, self.plan.data_folder)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Process(process, pipe)

    def idle(self) -> list[int]:
        return [i for i, p in enumerate(self.processes) if p.ready and p.experiment is None]

    def give(self, worker: int, task: str, experiment: Experiment) -> None:
        p = self.processes[worker]
        p.experiment = experiment
        with suppress(OSError):  # it died: events() will see that
            p.pipe.send((task, experiment))

    def events(self) -> list[_Event]:
        found: list[_Event] = []
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
                    found.append(_Event(i, kind, p.experiment, value))
                    if kind != "step":
                        p.experiment = None
            except (EOFError, OSError):
                p.process.join(HEARTBEAT)  # its end of the pipe goes a moment before itself
                dead = not p.process.is_alive()
            if dead:
                self._replace(i, p, found)
        return found

    def _replace(self, i: int, p: _Process, found: list[_Event]) -> None:
        p.process.join()
        if not p.ready:
            self.stillborn += 1
            if self.stillborn >= STARTS:
                raise RuntimeError(
                    "worker processes die as they start; their own message is above. A script calls sweep() "
                    'under if __name__ == "__main__": only.'
                )
        if p.experiment is not None:
            found.append(_Event(i, "died", p.experiment, _how(p.process.exitcode)))
        p.pipe.close()
        self.processes[i] = self._start()


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        try:
            name = signal.Signals(-status).name
            return f"{name}, as from a system short of memory" if name == "SIGKILL" else name
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"


def _work(pipe: Connection, out: str, threads: int, data_folder: str | None) -> None:
    """A worker process: does what comes through the pipe until nobody holds its other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    opened: tuple[str, Dataset] | None = None
    with suppress(OSError):
        pipe.send(("ready", None))
    while True:
        try:
            task, experiment = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if opened is None or opened[0] != experiment.dataset:
                opened = experiment.dataset, open_dataset(experiment, data_folder)
            if task == "calibrate":
                pipe.send(("calibrated", _time(experiment, opened[1])))
            else:
                result = run(experiment, out, dataset=opened[1], progress=_reporter(pipe))
                pipe.send(("done", result.seconds))
        except (KeyboardInterrupt, BrokenPipeError):
            return
        except FolderInUse as error:
            with suppress(OSError):
                pipe.send(("elsewhere", str(error)))
        except Exception as error:
            with suppress(OSError):
                pipe.send(("failed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))


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
            pipe.send(("step", (step, None if newest is None else newest.accuracy)))

    return report


def _time(experiment: Experiment, dataset: Dataset) -> float:
    """Seconds that a run should take, from a few of its steps and one evaluation."""
    with kernels.exclusive_threads():
        simulation, evaluator = build(experiment, dataset)
        simulation.step()  # the first one loads kernels
        start, steps = time.perf_counter(), 0
        while steps < 8 and time.perf_counter() - start < 3:
            simulation.step()
            steps += 1
        middle = time.perf_counter()
        evaluator(simulation.gradients, simulation.parameters, 0)
        end = time.perf_counter()
    evaluations = 1 + (-(-experiment.steps // experiment.evaluate_every) if experiment.evaluate_every else 1)
    return experiment.steps * (middle - start) / steps + evaluations * (end - middle)


# -------------------------------------------------------------------------------------------------------------- on Ray


def _ray_workers(address: str, plan: _Plan, jobs: int | None) -> _Workers:
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ValueError("--ray needs Ray: pip install 'varangian[ray]'.") from None
    return _RayWorkers(ray, address, plan, jobs)


class _RayWorkers:
    """Tasks of a Ray cluster; Ray itself chooses the machine, and runs a task again whose process died."""

    calibrates = False

    def __init__(self, ray: Any, address: str, plan: _Plan, jobs: int | None) -> None:
        self.ray, self.address, self.plan, self.jobs = ray, address, plan, jobs
        self.running: dict[Any, tuple[int, Experiment]] = {}

    def __enter__(self) -> _RayWorkers:
        self.ours = not self.ray.is_initialized()
        if self.ours:
            options: dict[str, Any] = {"num_cpus": self.plan.jobs} if self.address == "local" else {}
            try:
                self.ray.init(address=self.address, log_to_driver=False, include_dashboard=None, **options)
            except (ConnectionError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"--ray needs a Ray cluster that answers at {self.address!r}: {reason}") from None
        resources = self.ray.cluster_resources()
        slots = max(1, int(resources.get("CPU", 1)) // self.plan.threads)
        self.plan.jobs = slots if self.jobs is None else min(self.jobs, slots)
        gpus, share = int(resources.get("GPU", 0)), 0.0
        if any(e.device.startswith("cuda") for e in self.plan.todo):
            if not gpus:
                if self.ours:
                    self.ray.shutdown()
                raise ValueError("--ray needs a cluster with GPUs for runs on cuda, and this one has none.")
            if self.jobs is None:
                self.plan.jobs = min(slots, PER_GPU * gpus)
            share = 1 / max(1, -(-self.plan.jobs // gpus))  # as many runs to each GPU
        self.task = self.ray.remote(num_cpus=self.plan.threads, num_gpus=share, max_retries=RETRIES)(_ray_run)
        return self

    def __exit__(self, *error: object) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        if self.ours:
            self.ray.shutdown()

    def idle(self) -> list[int]:
        taken = {worker for worker, _ in self.running.values()}
        return [worker for worker in range(self.plan.jobs) if worker not in taken]

    def give(self, worker: int, task: str, experiment: Experiment) -> None:
        out = str((self.plan.out / "runs").resolve())
        reference = self.task.remote(experiment.to_json(), out, self.plan.threads, self.plan.data_folder)
        self.running[reference] = worker, experiment

    def events(self) -> list[_Event]:
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=HEARTBEAT)
        found = []
        for reference in ready:
            worker, experiment = self.running.pop(reference)
            try:
                found.append(_Event(worker, "done", experiment, self.ray.get(reference)))
            except self.ray.exceptions.RayTaskError as error:
                cause = error.cause or error
                if isinstance(cause, FolderInUse):
                    found.append(_Event(worker, "elsewhere", experiment, str(cause)))
                    continue
                text = (str(cause).splitlines() or [""])[0]
                found.append(_Event(worker, "failed", experiment, f"{type(cause).__name__}: {text}"))
            except self.ray.exceptions.RayError as error:
                found.append(_Event(worker, "died", experiment, type(error).__name__))
        return found


_OPENED: dict[str, Dataset] = {}  # of this process, when Ray runs tasks in it


def _ray_run(text: str, out: str, threads: int, data_folder: str | None) -> float:
    torch.set_num_threads(threads)
    experiment = Experiment.from_json(text)
    if experiment.dataset not in _OPENED:
        _OPENED.clear()
        _OPENED[experiment.dataset] = open_dataset(experiment, data_folder)
    return run(experiment, out, dataset=_OPENED[experiment.dataset]).seconds


# ------------------------------------------------------------------------------------------------------------- display


class _Display:
    """On a terminal, bars; elsewhere, a line now and then."""

    def __init__(self, plan: _Plan, notices: Console | None) -> None:
        self.plan, self.console = plan, notices
        self.bars: Progress | None = None
        self.tasks: dict[int, TaskID] = {}
        self.total = plan.skipped + len(plan.todo)
        self.spoken = 0.0

    def __enter__(self) -> _Display:
        if self.console is not None and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bars = Progress(*columns, console=self.console, transient=True)
            self.bars.start()
            self.overall = self.bars.add_task("runs", total=self.total, completed=self.plan.skipped, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars is not None:
            self.bars.stop()
        failed = f", {len(self.plan.failed)} failed" if self.plan.failed else ""
        self.say(
            f"{self.plan.done} runs in {duration(self.plan.elapsed)}{failed}; {self._complete} of {self.total} "
            "complete."
        )

    @property
    def _complete(self) -> int:
        return self.plan.skipped + self.plan.done

    def say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def announce(self, estimate: Estimate) -> None:
        if not self.plan.todo:
            return
        parts = [f"{self.total} runs: {self.plan.skipped} complete, {len(self.plan.todo)} to do"]
        parts += [f"{self.plan.elsewhere} of other shards"] if self.plan.elsewhere else []
        processes = f"{self.plan.jobs} process{'es' if self.plan.jobs > 1 else ''} of {self.plan.threads} thread(s)"
        when = "unknown time"
        if estimate.seconds is not None:
            end = (datetime.now().astimezone() + timedelta(seconds=estimate.seconds)).strftime("%a %H:%M")
            when = f"about {duration(estimate.seconds)}, until {end}"
        self.say(f"{', '.join(parts)}; {when} with {processes} (estimated from {estimate.basis}).")

    def started(self, worker: int, experiment: Experiment) -> None:
        if self.bars is not None:
            name = experiment.name if len(experiment.name) <= 64 else "…" + experiment.name[-63:]
            self.tasks[worker] = self.bars.add_task(f"  {name}", total=experiment.steps, note="")

    def step(self, worker: int, experiment: Experiment, step: int, newest: float | None) -> None:
        if self.bars is not None and worker in self.tasks:
            note = "" if newest is None else f"accuracy {newest:.1%}"
            self.bars.update(self.tasks[worker], completed=step, note=note)

    def ended(self, worker: int) -> None:
        if self.bars is not None and worker in self.tasks:
            self.bars.remove_task(self.tasks.pop(worker))

    def refresh(self, running: int, estimate: Estimate) -> None:
        if estimate.seconds is None:
            left = ""
        else:
            end = (datetime.now().astimezone() + timedelta(seconds=estimate.seconds)).strftime("%H:%M")
            left = f", ends in {duration(estimate.seconds)}, at {end}"
        note = f"{running} running, {len(self.plan.todo)} to come{left}"
        if self.bars is not None:
            self.bars.update(self.overall, completed=self._complete, note=note)
        elif running and self.plan.elapsed - self.spoken > 30:
            self.spoken = self.plan.elapsed
            self.say(f"{self._complete} of {self.total} complete, {note}")


def duration(seconds: float) -> str:
    """Read aloud.

    Example:
        >>> duration(42), duration(642), duration(7300)
        ('42 s', '11 min', '2 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
