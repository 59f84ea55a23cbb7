"""What a run gave, and reading it from the folder where it is kept."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.checks import cut, shown
from ..core.history import Report, report_of_steps
from ..core.references import importing
from ..simulation.gradients import WorkerGradients
from ..simulation.metrics import COLUMNS, EVERY_COLUMN, Measures, Rows
from ..simulation.scores import PER_CLASS
from . import folders
from .building import NOTHING, Given, code_of, handed, make_model, open_dataset
from .experiment import SUCCESS, Experiment
from .fields import column_of
from .files import (
    line_of_text,
    number,
    number_of,
    read_json,
    read_rows,
    read_text,
    whole,
    whole_of,
)
from .folders import FORMAT
from .workers import Layout, read_records, recorded


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Accuracy (in [0, 1]) and loss on the test set before the update of that step.

    The accuracy is over all tokens where each has a class, and NaN where numbers are predicted: there the loss counts.
    ``validation_accuracy`` and ``validation_loss`` are those on the training data set aside; None without any.
    ``metrics`` are those that the experiment asks for by the names of their columns: "macro-f1" on the test set,
    "validation_macro-f1" on what was set aside; of "per-class" "class_0", "class_1", ... Under an attack that aims,
    such as a backdoor, "attack_success" is among them: how often what it wants is answered.
    """

    step: int
    accuracy: float
    loss: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, step: float, values: Sequence[float], columns: Sequence[str]) -> Evaluation:
        """From what was found, which :func:`columns_of` names."""
        found = dict(zip(columns, values, strict=True))
        return cls(
            int(step),
            found["accuracy"],
            found["loss"],
            found.get("validation_accuracy"),
            found.get("validation_loss"),
            {name: found[name] for name in columns if name.removeprefix("validation_") not in _ALWAYS},
        )

    @property
    def attack_success(self) -> float | None:
        """How often the attack succeeds on the test set; None where it has no such aim."""
        return self.metrics.get(SUCCESS)

    @property
    def values(self) -> tuple[float, ...]:
        """All that was found, in the order of the columns of evaluations.csv after the step."""
        measured, tested = list(self.metrics.values()), len(self.metrics)
        held: list[float | None] = [self.accuracy, self.loss]
        if self.validation_accuracy is None:
            held += measured
        else:
            tested //= 2
            held += [*measured[:tested], self.validation_accuracy, self.validation_loss, *measured[tested:]]
        return tuple(value for value in held if value is not None)


def columns_of(experiment: Experiment, classes: int, aims: bool | None = None) -> list[str]:
    """What evaluations.csv holds of each evaluation beside its step, of so many classes; ``aims`` where it is known."""
    aims = experiment.aims if aims is None else aims
    found = [*_ALWAYS, *([SUCCESS] if aims else [])]
    for column in map(column_of, experiment.metrics):
        found += [f"class_{c}" for c in range(classes)] if column == PER_CLASS else [column]
    return found + [f"validation_{name}" for name in found] if experiment.validation else found


def _columns_in(path: Path, experiment: Experiment) -> list[str]:
    """The same, of what the file begins with: it knows the number of classes, and code that was not imported."""
    if experiment.attack is None and not experiment.per_class:
        return columns_of(experiment, 0)
    there = next(iter(read_rows(path, ("step", *_ALWAYS))), {})
    classes = sum(re.fullmatch(r"class_\d+", name, flags=re.ASCII) is not None for name in there)
    return columns_of(experiment, classes if experiment.per_class else 0, experiment.aims or SUCCESS in there)


_ALWAYS = ("accuracy", "loss")


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gave.

    Attributes:
        experiment: what was run.
        evaluations: at step 0, every ``evaluate_every`` steps, and at the end.
        measures: one row a step.
        seconds: how long it took, reading the data not included.
        stopped: why it ended early (the parameters diverged, the rule refused its input), or None.
        folder: where it is kept, or None.
        began: the step of the checkpoint that this call went on from; 0 where it started at the start. Measures of
            before have the 9 digits of metrics.csv.
        from_disk: whether nothing was trained, since the folder held the complete run.
        class_accuracy: the accuracy on each class of the test set after the last step, NaN of classes that do not
            occur there: of runs under an attack on data (label-flip, backdoor), and where it is asked for
            (``metrics="per-class"``); else None.
    """

    experiment: Experiment
    evaluations: list[Evaluation] = field(repr=False)
    measures: Sequence[Measures] = field(repr=False)
    seconds: float
    stopped: str | None = None
    folder: Path | None = None
    began: int = 0
    from_disk: bool = False
    class_accuracy: tuple[float, ...] | None = None
    _trained: nn.Module | None = field(default=None, repr=False)
    _given: Given = field(default=NOTHING, repr=False)
    _records: bytes | None = field(default=None, repr=False)

    @property
    def max_accuracy(self) -> float:
        """The greatest accuracy of all evaluations: what the paper reports. NaN where numbers are predicted."""
        return max(e.accuracy for e in self.evaluations)

    @property
    def final_accuracy(self) -> float:
        """The accuracy after the last step."""
        return self.evaluations[-1].accuracy

    @property
    def max_validation(self) -> float | None:
        """The greatest accuracy on the training data set aside; None where there are none (``validation=0``), NaN where
        numbers are predicted."""
        return None if self.chosen is None else self.chosen.validation_accuracy

    @property
    def chosen(self) -> Evaluation | None:
        """The evaluation with the greatest accuracy on the training data set aside, or the least loss there where
        numbers are predicted; the first of equals.

        Its ``accuracy`` is that on the test set of a model that was chosen without looking at it. None without
        ``validation``.

        Example:
            >>> import varangian as vg
            >>> result = vg.run(vg.Experiment(model="linear", steps=20, validation=0.1))
            >>> result.chosen.validation_accuracy == result.max_validation >= result.evaluations[0].validation_accuracy
            True
        """
        if not self.experiment.validation:
            return None
        return max(self.evaluations, key=_worth)

    def model(self) -> nn.Module:
        """A copy of the trained model, in evaluation mode, on the device where it was trained or, from a folder, on the
        CPU.

        Raises:
            ValueError: this result is of a folder that does not hold it any more.

        Example:
            >>> import varangian as vg
            >>> result = vg.run(vg.Experiment(model="linear", steps=2))
            >>> result.model()(torch.zeros(5, 1, 8, 8)).shape
            torch.Size([5, 10])
        """
        if self._trained is not None:
            return copy.deepcopy(self._trained).eval()
        assert self.folder is not None
        given = self._given
        metrics = [given.metrics.get(text, text) for text in self.experiment.metrics] if given.metrics else None
        return load_model(self.folder, model=given.model, loss=given.loss, metrics=metrics)

    def workers(self) -> Report:
        """What every step told of every worker: weight, score, distance and cosine to the aggregate, and how suspicious
        it was; and who attacked, which a simulation knows. ``str()`` of it is a table, the most suspicious first.

        Arrays are [steps, workers], honest workers first. Where not everybody is in every step, a column is a client's,
        of whoever took part at all, and NaN where it did not. What was told by a sample of the columns is said in
        docs/howto/suspicion.md.

        Raises:
            ValueError: nothing was recorded (``measure=False``, or a folder of an older version), or the file is not
                what it should be.

        Example:
            >>> import varangian as vg
            >>> attacked = vg.Experiment(rule="multi-krum", attack="empire", steps=20, workers=11, byzantine=2)
            >>> report = vg.run(attacked).workers()
            >>> report.weight.shape, report.byzantine[0].nonzero()[0].tolist()
            ((20, 11), [9, 10])
            >>> [standing.worker for standing in report.nodes[:2]]  # the most suspicious
            [10, 9]
        """
        e, steps = self.experiment, len(self.measures)
        if self.folder is None and self._records is None:
            raise ValueError("nothing was recorded of workers: the run has measure=False.")
        layout, records = layout_of(e), self._records
        if self.folder is not None:
            path = self.folder / folders.WORKERS
            try:
                records = read_records(path, layout, steps)
            except FileNotFoundError:
                why = "it measured nothing" if not e.measure else "it was begun by a version that recorded none"
                raise ValueError(f"{self.folder} holds no {path.name}: {why}; run it again to have it.") from None
        assert records is not None
        try:
            found = recorded(records, layout)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {folders.WORKERS}: {error}.") from None
        who, byzantine = None, np.zeros((steps, e.workers), bool)
        people = e.population()
        if people is not None:
            rounds = [people.round(e.seed, step) for step in range(steps)]
            who = np.array([round.clients for round in rounds], np.int64).reshape(steps, e.workers)
            for step, round in enumerate(rounds):
                byzantine[step, len(round.honest) :] = e.attack is not None
        elif e.attack is not None:
            byzantine[:, e.honest :] = True
        return report_of_steps(
            " > ".join((*e.pre, e.rule)), weight=found.weight, score=found.score, distance=found.distance,
            cosine=found.cosine, finite=found.finite, byzantine=byzantine, workers=who, counts=found.counts,
            excluded=found.excluded,
        )  # fmt: skip

    def __str__(self) -> str:
        ending = f", stopped: {self.stopped}" if self.stopped else ""
        ending += f"; read from {self.folder}, nothing was trained" if self.from_disk else ""
        found = f"maximum accuracy {self.max_accuracy:.2%}, final {self.final_accuracy:.2%}"
        if math.isnan(self.max_accuracy):
            found = f"final loss {self.evaluations[-1].loss:.4g}"
        return f"{self.experiment.name}: {found}, {len(self.measures)} steps in {self.seconds:.1f} s{ending}"

    def summary(self) -> dict[str, Any]:
        """What result.json holds."""
        chosen = self.chosen
        asked: dict[str, Any] = {}
        if self.evaluations[-1].metrics:
            asked["final_metrics"] = {k: _finite(v) for k, v in self.evaluations[-1].metrics.items()}
        if self.class_accuracy is not None:
            asked["class_accuracy"] = [_finite(v) for v in self.class_accuracy]
        if chosen is not None:
            asked["max_validation"] = _finite(chosen.validation_accuracy)
            asked["chosen_accuracy"] = _finite(chosen.accuracy)
        return {
            "format": FORMAT,
            "name": self.experiment.name,
            "digest": self.experiment.digest,
            "max_accuracy": _finite(self.max_accuracy),
            "final_accuracy": _finite(self.final_accuracy),
            "final_loss": _finite(self.evaluations[-1].loss),
            "steps": len(self.measures),
            "stopped": self.stopped,
            "seconds": round(self.seconds, 3),
        } | asked


def layout_of(e: Experiment) -> Layout:
    """How records of its workers lie in the file."""
    return Layout(e.workers, weighted=e.weighting != "equal")


def load_model(
    folder: str | Path, data_folder: str | Path | None = None, trust: bool = False, model: Any = None, *,
    loss: Any = None, metrics: Any = None,
) -> nn.Module:  # fmt: skip
    """The trained model of a complete run, in evaluation mode, on the CPU.

    Args:
        folder: of the run.
        data_folder: where data files are, for runs of a version that did not note the shape of images.
        trust: whether a model of somebody's own that the folder names may be imported.
        model: what was handed over to :func:`run`, where no text can name it. Of a module, which is copied, only
            parameters that are frozen need be those of then: the folder holds all others.
        loss, metrics: what else was handed over, needed where parameters of a module are frozen.

    Raises:
        ValueError: the folder holds no complete run, the model is not what it was, or it was not imported before in
            this process and may not be.

    Example:
        >>> import tempfile
        >>> import varangian as vg
        >>> with tempfile.TemporaryDirectory() as out:
        ...     kept = vg.run(vg.Experiment(model="linear", steps=2), out)
        ...     model = load_model(kept.folder)
        >>> torch.equal(model[1].weight, kept.model()[1].weight), model.training
        (True, False)
    """
    folder = Path(folder).expanduser()
    e = read(folder).experiment
    if trust:
        e.import_code("model", "dataset")
    state = folders.read_state(folder / folders.STATE)
    shape, classes = state.shape, state.classes
    if shape is None or classes is None:
        dataset = open_dataset(e, data_folder)
        shape, classes = dataset.shape, dataset.classes
    with importing(trust):
        asked, given = handed(e, model, loss, metrics)
    if asked.model != e.model:
        raise ValueError(f"{folder} is of the model {e.model}, and {asked.model} was handed over.")
    made = make_model(e, shape, classes, given, device="cpu")
    frozen = isinstance(model, nn.Module) and not all(p.requires_grad for p in model.parameters())
    if frozen and code_of(asked, given) != e.code_hash:
        raise ValueError(f"{folder}: {e.model} is not what it was: its frozen parameters or its code are others.")
    gradients = WorkerGradients(made)
    found = {name: _kind(buffer) for name, buffer in gradients.buffers().items()}
    if _kind(gradients.parameters()) != _kind(state.parameters) or found != {
        name: _kind(buffer) for name, buffer in state.buffers.items()
    }:
        raise ValueError(f"{folder}: {e.model} is not what it was: {folders.STATE} does not fit.")
    return gradients.adopt(state.parameters, state.buffers).eval()


def settings_of(folder: str | Path, trust: bool = False) -> Experiment:
    """The experiment that a run folder is of, complete or not.

    Args:
        folder: of the run.
        trust: whether code that it names is imported; otherwise such names are text.

    Raises:
        ValueError: there is none that can be read, or code that it names is not what it should be.
    """
    folder = Path(folder).expanduser()
    folders.check_folder(folder)
    experiment = _settings(folder)
    return experiment.import_code() if trust else experiment


@importing(False)
def _settings(folder: Path) -> Experiment:
    try:
        return Experiment.from_folder(read_text(folder / folders.SETTINGS, folders.MAX_JSON))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} holds no run: {folders.SETTINGS} is missing.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read as a run: {folders.SETTINGS}: {error}") from None


def read(folder: str | Path, trust: bool = False) -> Result:
    """The complete run in a folder.

    Args:
        folder: of the run.
        trust: whether code that its settings name is imported, so that its experiment can be run again and its model
            be made; otherwise such names are text.

    Raises:
        ValueError: the folder holds no complete run, or one that cannot be read.
    """
    result = _read(Path(folder).expanduser())
    if trust:
        result.experiment.import_code()
    return result


@importing(False)
def _read(folder: Path) -> Result:
    try:
        summary = read_json(folder / folders.RESULT, folders.MAX_JSON)
        experiment = Experiment.from_folder(read_text(folder / folders.SETTINGS, folders.MAX_JSON))
        folders.check_format(folder / folders.RESULT, summary)
        check_summary(summary, experiment)
        seconds = number(summary["seconds"], "seconds", 0)
        columns = _columns_in(folder / folders.EVALUATIONS, experiment)
        rows = read_rows(folder / folders.EVALUATIONS, ("step", *columns))
        evaluations = [_evaluation(row, columns) for row in rows]
        measures = read_measures(folder / folders.METRICS)
        if not evaluations or len(measures) != summary["steps"]:
            raise ValueError("rows are missing from its tables.")
        return Result(
            experiment, evaluations, measures, seconds, summary["stopped"], folder, from_disk=True,
            class_accuracy=shares(summary, "class_accuracy"),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no complete run: {Path(error.filename).name} is missing.") from None
    except KeyError as error:
        raise ValueError(f"{folder} cannot be read as a run: {error} is missing.") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read as a run: {cut(str(error))}") from None


def _worth(evaluation: Evaluation) -> float:
    """How good it is by what was set aside; of losses, those that are not finite are the worst."""
    accuracy, loss = evaluation.validation_accuracy, evaluation.validation_loss
    if accuracy is not None and not math.isnan(accuracy):
        return accuracy
    return -loss if loss is not None and math.isfinite(loss) else -math.inf


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


ACCURACIES = ("max_accuracy", "final_accuracy", "max_validation", "chosen_accuracy")


def check_summary(summary: dict[str, Any], experiment: Experiment) -> None:
    """Refuses a result.json that is of another experiment or a later version, or does not hold what it should.

    Raises:
        ValueError: the first fault.
        KeyError: something is missing.
    """
    if whole(summary["format"], "format", 1) == FORMAT and summary["digest"] != experiment.digest:
        raise ValueError(
            f"result.json is of another experiment: its digest is {shown(summary['digest'])}, that of "
            f"experiment.json is {experiment.digest}."
        )
    for name in ACCURACIES if experiment.validation else ACCURACIES[:2]:
        if summary[name] is not None:  # of numbers that are predicted there is none
            number(summary[name], name, 0, 1)
    if summary["final_loss"] is not None:
        number(summary["final_loss"], "final_loss")
    whole(summary["steps"], "steps")
    if summary["stopped"] is not None:
        line_of_text(summary["stopped"], "stopped")


def shares(summary: dict[str, Any], name: str) -> tuple[float, ...] | None:
    """A list of shares in result.json, None where it says nothing of them; NaN for null.

    Raises:
        ValueError: it holds something else.
    """
    found = summary.get(name)
    if found is None:
        return None
    if not isinstance(found, list) or not found:
        raise ValueError(f"{name}: must be a list of numbers from 0 to 1, got {shown(found)}.")
    return tuple(math.nan if value is None else float(number(value, name, 0, 1)) for value in found)


def _evaluation(row: dict[str, str], columns: Sequence[str]) -> Evaluation:
    values = [
        number_of(row[name], name, 0, 1)
        if name.removeprefix("validation_") in ("accuracy", SUCCESS) and row[name] != "nan"
        else _any_number(row[name], name)
        for name in columns
    ]
    return Evaluation.of(whole_of(row["step"], "step"), values, columns)


def read_measures(path: Path) -> Rows:
    return Rows(_measures(row) for row in read_rows(path, COLUMNS))


def _measures(row: dict[str, str]) -> Measures:
    values: dict[str, Any] = {name: _any_number(row[name], name) for name in EVERY_COLUMN if row.get(name)}
    return Measures(**(values | {name: whole_of(row[name], name) for name in ("step", "points")}))


def _kind(x: Tensor) -> tuple[torch.dtype, torch.Size]:
    return x.dtype, x.shape


def _any_number(text: str, what: str) -> float:
    """What diverges may be a NaN or an infinity."""
    return float(text) if text in ("nan", "inf", "-inf") else number_of(text, what)
