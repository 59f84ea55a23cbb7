"""Many experiments: in parallel, resumable, and none lost when a process dies.

The parent hands out runs and writes nothing but the final tables; each worker process trains one run at a time into
that run's own folder. Whatever dies, and whenever: a folder with result.json is complete, another one is not, and
that is all the state that there is. A run that was cut short goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

from rich.console import Console

from ...core.checks import shown
from ...runs.building import identified
from ...runs.experiment import Experiment
from ...runs.files import folders_in
from ...runs.interrupts import termination_interrupts
from ...runs.live import check_installed
from ...runs.running import check_writable
from ...simulation.data import Dataset
from ..grid import Grid, record_grid
from ..outcomes import Outcome, complete, read_outcome, write_failed, write_runs
from .cluster import ray_workers
from .display import Display
from .local import LocalWorkers, end_worker_that_imports_its_script
from .manager import foretell, manage
from .places import deal, find
from .plan import Plan, Record, cores


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to.

    Attributes:
        outcomes: of all complete runs of the list, those of earlier sweeps included.
        done, skipped: how many runs this sweep trained, and found complete.
        failed: the runs that raised an error or whose process kept dying, and why.
        left: how many it did not come to, for lack of time or because another shard has them.
        seconds: of wall-clock time.
        estimate: how long the runs that were to do were thought to take; None where nobody asked, or knows.
        events: the file of its events; None where nobody asked for them.
    """

    outcomes: tuple[Outcome, ...]
    done: int
    skipped: int
    failed: tuple[tuple[Experiment, str], ...]
    left: int
    seconds: float
    estimate: float | None = None
    events: Path | None = None


def sweep(
    experiments: Experiment | Grid | Iterable[Experiment | Grid],
    out: str | Path,
    *,
    jobs: int | None = None,
    threads: int = 1,
    shard: tuple[int, int] = (1, 1),
    time_budget: float | None = None,
    ray: str | None = None,
    data_folder: str | Path | None = None,
    dry_run: bool = False,
    notices: Console | None = None,
    command: str = "varangian.sweep(...)",
    events: bool = False,
    tensorboard: bool = False,
) -> Sweep:
    """What all experiments came to, after running those that are not complete yet; and their table.

    ``<out>/runs/`` holds the run folders, ``<out>/runs.csv`` a row a run and ``curves.csv`` a row an evaluation (both
    the same bytes however often the sweep was interrupted), ``timings.csv`` the seconds, ``failed.csv`` what failed and
    why, ``grids/`` the grids, and ``sweeps/`` a file on each sweep: command, versions, machine, time. Other experiments
    may be swept into the same folder later: the tables then hold all of them.

    Args:
        experiments: what to run, in this order; those of one digest once, however they are written.
        out: where everything is kept.
        jobs: worker processes, or tasks at a time on Ray, in all; by default as many as there are cores for their
            threads. Runs on "cuda" are dealt to all cards that CUDA_VISIBLE_DEVICES leaves, or that Ray has, those on
            "cuda:1" to that one: by default as many to each as fit into its memory, by an estimate, and are worth their
            while: two where there are convolutions, else four. All are written down as runs on "cuda".
        threads: of torch and the kernels, per process. Results of different numbers of threads may differ.
        shard: (i, N): only every N-th run, from the i-th on.
        time_budget: seconds after which no run should still be going: one that would not end in time is not started.
        ray: address of a Ray cluster ("auto", "local", "ray://host:port") that runs them instead; ``out`` must then
            be a folder that all of its machines see. Runs on "cuda" share its GPUs evenly.
        data_folder: where data files are.
        dry_run: only time a few steps of some runs, for the estimate, in two minutes at most; nothing is written.
        notices: where progress is shown; None for nowhere but the log, ``logging.getLogger("varangian.study.sweep")``.
        command: what the record says it was started by.
        events: each run writes events.jsonl in its folder, and the sweep one beside its record in ``sweeps/``
            (docs/howto/live.md). What is complete stays as it is.
        tensorboard: each run also writes for TensorBoard: ``tensorboard --logdir OUT``.

    Raises:
        ValueError: an impossible shard, number of jobs or time; a device that is not here; an experiment with a model,
            data set or the like that was handed over in Python and has no name; ``ray`` where Ray is not installed or
            no cluster answers, or one without GPUs for runs that need them; ``tensorboard`` without that package.
        DataError: data of one's own cannot be opened.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what is complete is kept and in the table, and runs that were under
            way go on from where they were when the sweep is started again.

    A script that calls this does so under ``if __name__ == "__main__":``, since worker processes import it too.
    """
    end_worker_that_imports_its_script()
    for name, value in (("jobs", 1 if jobs is None else jobs), ("threads", threads)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"a sweep needs {name} >= 1, a whole number, got {shown(value)}.")
    if time_budget is not None and not time_budget >= 0:
        raise ValueError(f"time_budget: must be a number of seconds >= 0, got {time_budget}.")
    number, shards = shard
    if not 1 <= number <= shards:
        raise ValueError(f"a shard i/N needs 1 <= i <= N, got {number}/{shards}.")
    if tensorboard:
        check_installed()
    asked = _listed(experiments)
    grids = [item for item in asked if isinstance(item, Grid)]
    out = Path(out).expanduser()
    check_writable(out)
    everything = _distinct(_each(asked), data_folder)
    mine = everything[number - 1 :: shards]
    folders = {e: out / "runs" / f"{e.name}-{e.digest}" for e in mine}
    todo = [e for e in mine if not complete(folders[e])]
    wanted, most = jobs, max(1, cores() // threads)
    dealt, lacking = (), ""
    if ray is None:
        try:
            dealt = deal(todo, jobs, most, data_folder)
        except ValueError as error:
            if not dry_run:
                raise
            lacking = str(error)
    jobs = len(dealt) or (most if jobs is None else jobs)
    jobs = min(jobs, max(1, len(todo)))
    plan = Plan(
        out, jobs, threads, time_budget, data_folder, todo, len(mine) - len(todo), len(everything) - len(mine),
        dealt[:jobs], events, tensorboard,
    )  # fmt: skip
    plan.learn(folders[e] for e in mine if complete(folders[e]))
    if dry_run:
        return _dry(plan, everything, notices, lacking)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    for grid in grids:
        record_grid(out, grid)
    record = Record(out, command, plan)
    workers = ray_workers(ray, plan, wanted) if ray is not None else LocalWorkers(plan)
    failure: BaseException | None = None
    try:
        with termination_interrupts(), workers, Display(plan, notices) as display:
            for note in chain.from_iterable(grid.notes for grid in grids):
                display.say(note)
            manage(plan, workers, display, record)
    except KeyboardInterrupt as error:  # from here, not from whatever line it was waiting in
        failure = error
        complete_now = sum(complete(folder) for folder in folders.values())
        raise KeyboardInterrupt(f"{complete_now} of {len(mine)} runs are complete; the same call goes on.") from None
    except BaseException as error:
        failure = error
        raise
    finally:
        outcomes = tuple(_collect(out, everything, plan.failed))
        write_runs(out, [*outcomes, *_others(out, everything)])
        write_failed(out, plan.failed, [e.digest for e in mine])
        record.close(failure)
    return Sweep(
        outcomes, plan.done, plan.skipped, tuple(plan.failed), len(everything) - len(outcomes), plan.elapsed,
        plan.foretold, None if record.log is None else record.log.path,
    )  # fmt: skip


def find_devices(
    experiments: Experiment | Grid | Iterable[Experiment | Grid],
    out: str | Path,
    *,
    shard: tuple[int, int] = (1, 1),
    data_folder: str | Path | None = None,
) -> None:
    """Nothing, if all devices of what such a sweep has to do are here: for whoever looks for data before it, and may
    download them. What is complete needs no device, and runs on the CPU are not looked at.

    Raises:
        ValueError: a device that is not here.
    """
    asked = _listed(experiments)
    if all(e.device == "cpu" for e in _each(asked)):
        return
    number, shards = shard
    mine = _distinct(_each(asked), data_folder)[number - 1 :: shards]
    find(e for e in mine if not complete(Path(out).expanduser() / "runs" / f"{e.name}-{e.digest}"))


def _listed(experiments: Experiment | Grid | Iterable[Experiment | Grid]) -> list[Experiment | Grid]:
    asked = [experiments] if isinstance(experiments, (Experiment, Grid)) else list(experiments)
    for item in asked:
        if not isinstance(item, (Experiment, Grid)):
            raise ValueError(f"a sweep is of experiments, got {shown(item)}: write Experiment(...) or Grid(...).")
    return asked


def _each(asked: Iterable[Experiment | Grid]) -> Iterator[Experiment]:
    return chain.from_iterable([e] if isinstance(e, Experiment) else e.experiments() for e in asked)


def _distinct(experiments: Iterable[Experiment], data_folder: str | Path | None) -> list[Experiment]:
    """The runs with the hashes of code and data of somebody's own, each once."""
    first: dict[str, Experiment] = {}
    opened: dict[str, Dataset | None] = {}  # data of somebody's own, whose content tells runs apart
    for asked in experiments:
        for field in fields(asked):
            value = getattr(asked, field.name)
            if isinstance(value, str) and value.startswith("given:"):
                raise ValueError(
                    f"{field.name}: a sweep's processes make everything from its name, and {value} has none: write "
                    "file.py:Name, or call run(...) for each experiment."
                )
        e, opened[asked.dataset] = identified(asked, opened.get(asked.dataset), data_folder)
        first.setdefault(e.digest, e)
    return list(first.values())


def _dry(plan: Plan, everything: Sequence[Experiment], notices: Console | None, lacking: str) -> Sweep:
    """What there is to do, and how long it should take; nothing is timed where a device is lacking."""
    folders = [plan.out / "runs" / f"{e.name}-{e.digest}" for e in everything]
    present = sum(complete(folder) for folder in folders)
    with termination_interrupts(), Display(plan, notices, silent_end=True) as display:
        if lacking:
            display.say(lacking)
            estimate = plan.estimate()
            plan.foretold = estimate.seconds
            display.announce(estimate)
        else:
            with LocalWorkers(plan) as workers:
                foretell(plan, workers, display, patient=False)
    return Sweep((), 0, present, (), len(everything) - present, plan.elapsed, plan.foretold)


def _collect(out: Path, experiments: Sequence[Experiment], failed: list[tuple[Experiment, str]]) -> Iterator[Outcome]:
    for e in experiments:
        folder = out / "runs" / f"{e.name}-{e.digest}"
        if complete(folder):
            try:
                yield read_outcome(folder)
            except ValueError as error:
                failed.append((e, f"{error} Remove that folder to run it again."))


def _others(out: Path, experiments: Sequence[Experiment]) -> Iterator[Outcome]:
    """The complete runs of the folder that other sweeps made there; what cannot be read is for the report to say."""
    ours = {f"{e.name}-{e.digest}" for e in experiments}
    for folder in folders_in(out / "runs", out, complete, lambda _: None):
        if folder.name not in ours:
            with suppress(ValueError):
                yield read_outcome(folder)
