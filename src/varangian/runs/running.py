"""One training run, and the folder that it leaves."""

from __future__ import annotations

import math
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.checks import Refused, cut, printable
from ..core.references import importing
from ..simulation.data import Dataset
from ..simulation.gradients import WorkerGradients
from ..simulation.metrics import Measures, Rows
from ..simulation.metrics import columns_of as measured
from ..simulation.simulate import Simulation
from . import folders
from .building import NOTHING, Given, build, computing, handed, identified, open_dataset
from .cards import asked as asked_device
from .cards import usable
from .experiment import Experiment, differences, moved
from .folders import Journal
from .interrupts import Interrupts
from .live import Listener, Outlet, check_installed, outlets_of
from .results import Evaluation, Result, columns_of, layout_of, read, read_measures, settings_of
from .workers import Recorder

CHECKPOINT_EVERY = 60.0  # seconds


Progress = Callable[[int, Evaluation | None], None]


class Evaluate(Protocol):
    """As Evaluators do."""

    def __call__(self, gradients: WorkerGradients, parameters: Tensor, step: int) -> tuple[float, ...]: ...

    def by_class(self, gradients: WorkerGradients, parameters: Tensor, step: int) -> tuple[float, ...]: ...


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    dataset: Any = None,
    *,
    model: Any = None,
    loss: Any = None,
    metrics: Any = None,
    data_folder: str | Path | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    checkpoint_every: float = CHECKPOINT_EVERY,
    listener: Listener | None = None,
    events: bool = False,
    tensorboard: bool = False,
) -> Result:
    """One training run. The same call again goes on with one that was interrupted, and reads one that is complete.

    A run that is kept writes checkpoints while it goes, and one when it is interrupted: Ctrl-C, SIGTERM and SIGHUP wait
    for the end of the step, a second Ctrl-C does not. So does a KeyboardInterrupt or SystemExit that ``progress``
    raises, which is the way to end a run in another thread than the main one. What an interrupted run comes to
    is what an uninterrupted one does, to the last byte (docs/explanation/reliability.md says under which conditions).

    Args:
        experiment: what to run.
        out: the folder in which to keep it, as ``<out>/<name>-<digest>/``; None keeps nothing.
        dataset: the data, if at hand; else it is opened. A Dataset, or what :func:`varangian.dataset` takes: (x, y) or
            ((x, y), (x_test, y_test)) of tensors or arrays, or data sets of torch. Data that are not those of the
            experiment's name make another run, whose experiment calls them "given:NAME" and has their hash.
        model: what learns, instead of the experiment's: a ``torch.nn.Module``, which is copied and whose parameters are
            the start, whatever the seed; a class or function that makes one, called with what it takes of ``shape`` (of
            one example) and ``classes`` (how many outputs) by name; or what Experiment takes. Where no text can name
            it, the setting says "given:Name" and code_hash says which, parameters included; go on with such a run, and
            load its model, by handing it over again.
        loss: what is learned, instead of the experiment's: a function of outputs [B, ...] and labels [B, ...] that
            answers the mean, a number; or what Experiment takes.
        metrics: what else is measured, instead of the experiment's: a function of all outputs [N, ...] and labels
            [N, ...] that answers a number, or a list of functions and of what Experiment takes.
        data_folder: where its files are.
        progress: called after each step, and once more at the end, with the steps done and the newest evaluation: so
            it hears of all evaluations that this call makes.
        fresh: start over, whatever is there.
        checkpoint_every: seconds between two checkpoints; more where they would cost over 1 % of the time. 0 is after
            every step, infinity only when interrupted.
        listener: called with each :class:`Measures` and each :class:`Evaluation` that this call makes, as soon as it is
            known, in the order of the run: an evaluation before the measures of its step, and the last one at the end.
            What it raises ends the run, at whose state a checkpoint is then written (docs/howto/live.md).
        events: also write events.jsonl, a line for each of these and for what becomes of the run (docs/howto/live.md).
            Goes on where the folder has one.
        tensorboard: also write for TensorBoard: ``tensorboard --logdir OUT``. Goes on likewise.

    Raises:
        DataError: a data file is missing or corrupt.
        FolderInUse: another process is at this run.
        OSError: the folder cannot be written; a checkpoint is kept, and without one nothing is left behind.
        ValueError: the folder holds another run, or one of a newer version; or the device cannot be used; or events or
            tensorboard without a folder, or without that package.

    What code of one's own raises is raised here as it is, and the next call goes on from the last checkpoint.

    Example:
        >>> result = run(Experiment(rule="median", attack="empire", steps=20, workers=11, byzantine=2))
        >>> len(result.measures), result.stopped
        (20, None)
    """
    _check_interval(checkpoint_every)
    _check_outlets(out is not None, events, tensorboard)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"run takes an Experiment, got a {type(experiment).__name__}.")
    experiment, given = handed(experiment, model, loss, metrics)
    experiment, dataset = identified(experiment, dataset, data_folder, given)
    _warn_of_nobody(experiment)
    _warn_of_many(experiment)
    if out is not None:
        folder = Path(out).expanduser() / f"{experiment.name}-{experiment.digest}"
        if folder.is_symlink():
            raise ValueError(f"{folder} is a symbolic link, and not written through.")
        return _run_in(
            folder, experiment, dataset, data_folder,
            given=given, progress=progress, fresh=fresh, checkpoint_every=checkpoint_every, listener=listener,
            events=events, tensorboard=tensorboard,
        )  # fmt: skip
    dataset = open_dataset(experiment, data_folder) if dataset is None else dataset
    with computing(experiment), memory_errors():
        simulation, evaluator = build(experiment, dataset, given)
        return train(
            experiment, simulation, evaluator, journal=None, interrupts=Interrupts(), progress=progress,
            listener=listener,
        )  # fmt: skip


def _warn_of_nobody(e: Experiment) -> None:
    if e.attack is not None and e.attackers == 0 and e.real_byzantine is None:
        warnings.warn(
            f"attack {e.attack} is named and nobody attacks: byzantine is 0, and so is real_byzantine by default. The "
            "run is named by the attack all the same.",
            stacklevel=3,
        )


def _warn_of_many(e: Experiment) -> None:
    people = e.population()
    if people is None or e.attack is None:
        return
    share = people.exceeding(e.byzantine)
    if share * e.steps >= 1:
        warnings.warn(
            f"of {people.clients:,} clients {people.byzantine:,} attack, so that in {share:.1%} of the steps more than "
            f"byzantine = {e.byzantine} of the {e.workers} workers do, the most that the rule tolerates; a greater "
            "byzantine, more workers or a smaller real_byzantine makes that rarer.",
            stacklevel=3,
        )


def resume(
    folder: str | Path,
    dataset: Any = None,
    *,
    model: Any = None,
    loss: Any = None,
    metrics: Any = None,
    data_folder: str | Path | None = None,
    progress: Progress | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
    trust: bool = False,
    device: str | torch.device | None = None,
    listener: Listener | None = None,
    events: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Goes on with the run in a folder, whatever the folder is called now; one that is complete is read.

    Args: as for :func:`run`, and

        trust: whether code of somebody's own that the folder names may be imported. What this process has imported
            before is known.
        device: where to go on, if not where the settings say: what was begun on a card is so completed without one, or
            on another. The run keeps its settings and its name; its numbers are then not quite those of an
            uninterrupted run, which a warning says and environment.json keeps.

    Raises:
        ValueError: the folder holds no run, or its settings were changed, or the data or code of somebody's own that it
            was made with, or that code may not be imported; or its device is not here and no other is named.
        DataError, FolderInUse, OSError: as for :func:`run`.
    """
    _check_interval(checkpoint_every)
    _check_outlets(True, events, tensorboard)
    folder = Path(folder).expanduser()
    experiment = settings_of(folder, trust)
    place = None if device is None else str(asked_device(str(device)))
    if not (folder / folders.RESULT).exists():
        check_place(folder, experiment, place)
    with importing(trust):
        asked, given = handed(experiment, model, loss, metrics)
    if dataset is not None or asked != experiment or given is not NOTHING or not (folder / folders.RESULT).exists():
        dataset = same_data(folder, experiment, dataset, data_folder, asked, given)
    return _run_in(
        folder, experiment, dataset, data_folder, given=given, progress=progress, fresh=False,
        checkpoint_every=checkpoint_every, device=place, listener=listener, events=events, tensorboard=tensorboard,
    )  # fmt: skip


def check_place(folder: Path, experiment: Experiment, device: str | None) -> None:
    """
    Raises:
        ValueError: the device of the run, or the one that is named in its place, is not here.
    """
    try:
        usable(experiment.device if device is None else device)
    except ValueError as error:
        if device is not None:
            raise
        raise ValueError(
            f'{folder}: {error} With --device cpu (in Python device="cpu"), or whatever is here, it goes on all the '
            "same; its numbers are then not quite those of where it began."
        ) from None


def same_data(
    folder: Path, experiment: Experiment, dataset: Any, data_folder: str | Path | None,
    asked: Experiment, given: Given,
) -> Dataset | None:  # fmt: skip
    """The data, if they had to be looked at, for the run in a folder.

    Raises:
        ValueError: they, or code of somebody's own, are not what the run was made with.
    """
    if asked != experiment:
        raise ValueError(f"{folder} is of something else: {'; '.join(differences(experiment, asked))}.")
    try:
        found, dataset = identified(asked, dataset, data_folder, given)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if found != experiment:
        lines = "; ".join(differences(experiment, found))
        raise ValueError(f"{folder} was made with other data or other code of somebody's own: {lines}.")
    return dataset


def _check_interval(seconds: float) -> None:
    if not seconds >= 0:
        raise ValueError(f"checkpoint_every: must be a number of seconds >= 0, got {seconds}.")


def _check_outlets(kept: bool, events: bool, tensorboard: bool) -> None:
    if not kept and (events or tensorboard):
        raise ValueError(
            f"{'events' if events else 'tensorboard'}: without a folder there is no place for them; name one as out, "
            "or take a listener."
        )
    if tensorboard:
        check_installed()


def _check_same(folder: Path, there: Experiment, asked: Experiment) -> None:
    if there.digest != asked.digest:
        lines = "\n  - ".join(differences(there, asked))
        raise ValueError(
            f"{folder} holds a run of other settings; start over there (--fresh) or choose another folder:\n  - {lines}"
        )


def _run_in(
    folder: Path, experiment: Experiment, dataset: Dataset | None, data_folder: str | Path | None, *, given: Given,
    progress: Progress | None, fresh: bool, checkpoint_every: float, device: str | None = None,
    listener: Listener | None, events: bool, tensorboard: bool,
) -> Result:  # fmt: skip
    """The run in its folder; on another device than its own where one is named, which changes no setting of it."""
    folders.check_folder(folder)
    if not fresh:
        found = _complete_run(folder, experiment)
        if found is not None:
            return replace(found, _given=given)
    here = experiment if device is None else moved(experiment, device)
    check_writable(folder)
    with folders.held(folder):
        found = None if fresh else _complete_run(folder, experiment)  # another process may just have completed it
        if found is not None:
            return replace(found, _given=given)
        if fresh:
            folders.clear(folder)
        dataset = open_dataset(experiment, data_folder) if dataset is None else dataset
        with computing(here), memory_errors():
            simulation, evaluator = build(here, dataset, given)
            try:
                journal = Journal(
                    folder, simulation, settings=experiment.to_json(), digest=experiment.digest,
                    columns=measured(
                        simulation.algorithm.placement is not None, simulation.population is not None,
                        simulation.sizes is not None, simulation.algorithm.quarantine is not None,
                    ),
                    evaluated=("step", *columns_of(experiment, dataset.classes)), device=here.device,
                    every=checkpoint_every, origins=experiment.origins(),
                    layout=layout_of(experiment) if experiment.measure else None,
                )  # fmt: skip
            except folders.OtherSettings as other:
                with importing(False):
                    _check_same(folder, Experiment.from_folder(other.settings), experiment)
                raise
            with journal, Interrupts() as interrupts:
                outlets = outlets_of(folder, experiment, events, tensorboard)
                try:
                    result = train(
                        experiment, simulation, evaluator, journal=journal, interrupts=interrupts, progress=progress,
                        listener=listener, outlets=outlets,
                    )  # fmt: skip
                    result = replace(result, folder=folder)
                    journal.complete(result.summary(), dataset.shape, dataset.classes)
                except BaseException as error:
                    for outlet in outlets:
                        with suppress(OSError):  # of a full disk: the first one is raised
                            outlet.interrupt(error)
                    raise
                for outlet in outlets:
                    outlet.complete(result)
                return result


@contextmanager
def memory_errors() -> Iterator[None]:
    """What torch says where memory is short, as the MemoryError that everybody else raises."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "allocate memory" not in text:
            raise
        asked = re.search(r"tried to allocate ([\d.]+ ?\w*)", text, re.IGNORECASE)
        raise MemoryError(f"unable to allocate {asked[1]}." if asked else text.splitlines()[0]) from None


def _complete_run(folder: Path, experiment: Experiment) -> Result | None:
    """The run in a folder if it is complete; an incomplete one of other settings is refused as well."""
    complete = (folder / folders.RESULT).exists()
    if complete or (folder / folders.SETTINGS).exists():
        try:
            there = settings_of(folder)
        except ValueError:
            if complete:
                raise
            return None  # torn before the first checkpoint: it is written anew
        _check_same(folder, there, experiment)
    return read(folder) if complete else None


def train(
    e: Experiment, simulation: Simulation, evaluator: Evaluate, *, journal: Journal | None, interrupts: Interrupts,
    progress: Progress | None, listener: Listener | None = None, outlets: Sequence[Outlet] = (),
) -> Result:  # fmt: skip
    evaluations: list[Evaluation] = []
    columns = columns_of(e, simulation.adversary.task.classes)
    measures, records = Rows(), bytearray()
    recorder = Recorder(layout_of(e), records.extend) if e.measure and journal is None else None
    stopped, start, began = None, time.perf_counter(), simulation.steps_done
    if journal is not None:
        evaluations = [Evaluation.of(step, values, columns) for step, *values in journal.evaluations]
        stopped, start = journal.stopped, start - journal.seconds
        if began:
            measures = read_measures(journal.folder / folders.METRICS)
    for outlet in outlets:
        outlet.begin(began, measures, evaluations)

    def evaluate() -> None:
        step = simulation.steps_done
        newest = Evaluation.of(step, evaluator(simulation.gradients, simulation.parameters, step), columns)
        evaluations.append(newest)
        if journal is not None:
            journal.evaluate([str(step), *(f"{value:.9g}" for value in newest.values)])
        for outlet in outlets:
            outlet.evaluate(newest)
        hear(newest)

    def receive(take: Callable[[], list[Measures]]) -> list[Measures]:
        """The rows that are known by now, written down; and whether that is how the run ends."""
        nonlocal stopped
        try:
            rows = take()
        except Refused as error:  # anything else is an error, of the user's code or ours, and no result
            if error is not simulation.refused:
                raise
            stopped = cut(printable(f"step {simulation.steps_done}: {error}"))
            rows = simulation.settle()  # of the step before, on a device
        for row, account in zip(rows, simulation.accounts or [None] * len(rows), strict=True):
            measures.append(row)
            if journal is not None:
                cells = row.row()
                journal.measure(cells, account, simulation.weights)
                for outlet in outlets:
                    outlet.measure(row, cells)
            elif recorder is not None and account is not None:
                recorder.add(account, simulation.weights)
        if rows and stopped is None and simulation.diverged:
            stopped = f"step {rows[-1].step}: the parameters are no longer finite."
        return rows

    def save() -> None:
        receive(simulation.settle)
        if journal is not None and journal.saved < simulation.steps_done:
            rows = [(float(evaluation.step), *evaluation.values) for evaluation in evaluations]
            journal.save(rows, stopped, time.perf_counter() - start)

    def hear(news: Measures | Evaluation) -> None:
        if listener is not None:
            try:
                listener(news)
            except BaseException:
                save()
                raise

    def tell(step: int) -> None:
        if progress is not None:
            try:
                progress(step, evaluations[-1])
            except (KeyboardInterrupt, SystemExit):
                save()
                raise

    def go_on(take: Callable[[], list[Measures]]) -> None:
        for row in receive(take):
            hear(row)
            tell(row.step + 1)

    while stopped is None and simulation.steps_done < e.steps:
        step = simulation.steps_done
        evaluating = step == 0 or (e.evaluate_every and step % e.evaluate_every == 0)
        evaluating = evaluating and not (evaluations and evaluations[-1].step == step)  # by a checkpoint that knows it
        if evaluating or interrupts.pending is not None:
            go_on(simulation.settle)  # a device may be a step ahead of what is known
            if stopped is not None:
                break
        if interrupts.pending is not None:
            save()
            for outlet in outlets if interrupts.deadly else ():
                outlet.interrupt(None)
            interrupts.deliver()
        if evaluating:
            evaluate()
        go_on(simulation.advance)
        if journal is not None and journal.due and simulation.refused is None:
            go_on(simulation.settle)
            save()
    go_on(simulation.settle)
    if not evaluations or evaluations[-1].step < simulation.steps_done:  # else the step that failed was evaluated
        evaluate()
    found = evaluations[-1].metrics
    by_class = [found[f"class_{c}"] for c in range(simulation.adversary.task.classes)] if e.per_class else None
    # Whoever attacks through data may hit one class and no other. Where no output is a class there is no accuracy.
    if by_class is None and simulation.adversary.poisons and not math.isnan(evaluations[-1].accuracy):
        by_class = evaluator.by_class(simulation.gradients, simulation.parameters, simulation.steps_done)
    if recorder is not None:
        recorder.flush()
    seconds = time.perf_counter() - start
    tell(simulation.steps_done)
    trained = simulation.gradients.adopt(simulation.parameters)
    return Result(
        e,
        evaluations,
        measures,
        seconds,
        stopped,
        began=began,
        _trained=trained,
        class_accuracy=None if by_class is None else tuple(by_class),
        _records=bytes(records) if recorder is not None else None,
    )


def check_writable(folder: Path) -> None:
    """Fails before the data is read and the training starts, and leaves nothing behind."""
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{folder}: {parent} is not a folder.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise PermissionError(f"{folder} cannot be written: {error.strerror}; choose another --out.") from None
