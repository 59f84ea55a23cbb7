"""What many runs gave: a row a run, its learning curve, and the CSV files that hold both."""

from __future__ import annotations

import csv
import io
import math
import shlex
import statistics
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from ..core.attacks import ATTACKS
from ..core.checks import cut, printable, shown
from ..core.mixing import MIXINGS
from ..core.references import NotImported, importing
from ..core.rules import RULES
from ..core.specs import canonical
from ..runs.experiment import HASHES, LATER, SUCCESS, Experiment
from ..runs.fields import column_of
from ..runs.files import (
    folders_in,
    line_of_text,
    number,
    number_of,
    read_columns,
    read_json,
    read_rows,
    read_text,
    whole_of,
    write_whole,
)
from ..runs.folders import ENVIRONMENT, FORMAT, check_format
from ..runs.folders import SETTINGS as SETTINGS_FILE
from ..runs.results import Result, check_summary, shares
from ..simulation.metrics import COLUMNS
from .moves import COLUMNS as MOVES
from .moves import Move, move, moves_of, read_moves

Source = Literal["varangian", "imported"]
SETTINGS = [field.name for field in fields(Experiment)]
IDENTITY = ["name", "digest", "source", "format"]
RESULTS = ["steps_done", "max_accuracy", "final_accuracy", "final_loss", "ratio", "ratio_within", "stopped"]
VALIDATED = ["max_validation", "chosen_accuracy"]  # of runs with validation, and columns where there are any
APART = "attackers_apart"  # of runs whose attackers do not all send the same, likewise
ATTACKED = [SUCCESS, "class_accuracy"]  # of runs under attacks on data, likewise
MAX_CLASSES = 10**4  # in one cell
_FOUND = (*IDENTITY, *RESULTS, *VALIDATED, APART, *ATTACKED)  # what is no setting
MAX_RUNS = 10**5  # in one table
MAX_FAILED = 1000  # runs of which a report says why


@dataclass(frozen=True)
class Point:
    """One evaluation: the accuracy in [0, 1] (NaN where numbers are predicted), the variance-norm ratio of the step
    that follows, if measured, and the loss, where that is known and finite."""

    step: int
    accuracy: float
    ratio: float | None = None
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """One complete run.

    Attributes:
        experiment: what was run.
        max_accuracy, final_accuracy: on the test set, in [0, 1]; NaN where numbers are predicted.
        final_loss: None where it is not finite.
        steps: how many were done.
        stopped: why it ended early, or None.
        ratio: median over the steps of the variance-norm ratio of what honest workers sent; None if not measured.
        ratio_within: share of the steps at which that ratio satisfies the rule's condition; None for rules without one.
        seconds: how long it took, or None where nobody knows.
        curve: its evaluations, in the order of steps; empty where only the row is known.
        source: "imported" for runs of the paper's own code.
        max_validation, chosen_accuracy: the greatest accuracy on the training data set aside, and that on the test set
            at the same step; None without ``validation``.
        machine: processor, threads and versions, where one machine did all of it and is known; see :func:`machine_of`.
        attack_success: how often the attack succeeds after the last step, where it has such an aim, as a backdoor; NaN
            where no test example could say.
        class_accuracy: the accuracy on each class of the test set after the last step, where that is known.
        moves: where momentum stood, at up to a hundred steps; empty where it does not move, or only the row is known.
        attackers_apart: median over the steps of the deviation of what attackers send, in deviations of what honest
            workers send; None where all attackers send the same in every step, and if not measured.
    """

    experiment: Experiment
    max_accuracy: float
    final_accuracy: float
    final_loss: float | None = None
    steps: int = 0
    stopped: str | None = None
    ratio: float | None = None
    ratio_within: float | None = None
    seconds: float | None = None
    curve: tuple[Point, ...] = ()
    source: Source = "varangian"
    machine: str | None = None
    max_validation: float | None = None
    chosen_accuracy: float | None = None
    moves: tuple[Move, ...] = ()
    attackers_apart: float | None = None
    attack_success: float | None = None
    class_accuracy: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        neither = _missing(self.max_accuracy) and _missing(self.final_accuracy)
        for name in ("max_accuracy", "final_accuracy", *VALIDATED):
            value = getattr(self, name)
            if not (value is None and name in VALIDATED) and not (neither and _missing(value)):
                number(value, name, 0, 1)
        for value in (self.attack_success, *(self.class_accuracy or ())):
            if value is not None and not _missing(value):
                number(value, "attack_success or class_accuracy", 0, 1)

    @property
    def key(self) -> tuple[str, str]:
        """What no two runs of a table have in common."""
        return self.experiment.digest, self.source

    @property
    def study(self) -> str:
        """The kind of run that it may be compared with: its profile, or "imported"."""
        return "imported" if self.source == "imported" else self.experiment.profile


def _missing(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _share(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _accuracy(text: str, name: str) -> float:
    """Of a cell: empty, or the word of evaluations.csv, where numbers are predicted."""
    return math.nan if text in ("", "nan") else number_of(text, name, 0, 1)


def rule_name(experiment: Experiment) -> str:
    """The rule, mixings before it, with options where they are not the defaults: "nnm + multi-krum(m=5)"."""
    f = experiment.byzantine
    return " + ".join([*(_short("mixing", spec, f) for spec in experiment.pre), _short("rule", experiment.rule, f)])


def attack_name(experiment: Experiment) -> str:
    """The attack, with options where they are not the defaults; "none" without."""
    return "none" if experiment.attack is None else _short("attack", experiment.attack)


_TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {"rule": RULES, "mixing": MIXINGS, "attack": ATTACKS}


@lru_cache(maxsize=2**12)
def _short(kind: str, spec: str, f: int | None = None) -> str:
    """However it was written: runs of one rule or attack have one name."""
    return canonical(kind, spec, _TABLES[kind], f)


def rate_text(experiment: Experiment) -> str:
    """The learning rate as the command line takes it.

    Example:
        >>> rate_text(Experiment(learning_rate=((0, 0.01), (150, 0.001))))
        '0.01,150:0.001'
    """
    rate = experiment.learning_rate
    if not isinstance(rate, tuple):
        return f"{rate!r}"
    if len(rate) == 1:  # a schedule of one piece is not the number alone
        return f"{rate[0][0]}:{rate[0][1]!r}"
    return ",".join(f"{start}:{value!r}" if start else f"{value!r}" for start, value in rate)


def command(experiment: Experiment) -> str:
    """The command that redoes a run.

    Example:
        >>> command(Experiment(rule="median", nesterov=True))
        'varangian run --rule median --nesterov --threads 1'
    """
    words = ["varangian", "run"]
    for field in fields(Experiment):
        value = getattr(experiment, field.name)
        if value == field.default or field.name in HASHES:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, setting_text(experiment, field.name)]
    return shlex.join([*words, "--threads", "1"])


def setting_text(experiment: Experiment, name: str) -> str:
    """A setting as one cell; empty for None. Experiment reads it back."""
    value = getattr(experiment, name)
    if name == "learning_rate":
        return rate_text(experiment)
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


def columns_of(experiments: Sequence[Experiment]) -> list[str]:
    """The settings that a table of these experiments holds: later ones where one of them says something else than the
    default, which is what a table without that column means."""
    defaults = {field.name: field.default for field in fields(Experiment)}
    said = {name for name in LATER if any(getattr(e, name) != defaults[name] for e in experiments)}
    return [name for name in SETTINGS if name not in LATER or name in said]


def condition(experiment: Experiment) -> float | None:
    """What the variance-norm ratio must stay below for the rule to be proved resilient; None where nothing is proved,
    or nobody has imported the rule.

    Example:
        >>> round(condition(Experiment(rule="median", workers=51, byzantine=24)), 4)
        0.037
    """
    if experiment.pre:
        return None
    try:
        bound = experiment.make_rule().variance_bound(experiment.workers, 1)
    except NotImported:
        return None
    return None if bound is None else bound**2


def least_n(experiment: Experiment) -> int | None:
    """How many vectors the rule needs; None where that is code of somebody's own which was not imported."""
    try:
        return experiment.make_rule().min_n
    except NotImported:
        return None


# ------------------------------------------------------------------------------------------------ run folders -> rows


def from_result(result: Result) -> Outcome:
    """The outcome of a run that is at hand."""
    ratios = [(m.step, m.ratio) for m in result.measures if m.ratio is not None and math.isfinite(m.ratio)]
    evaluations = [(e.step, e.accuracy, e.loss if math.isfinite(e.loss) else None) for e in result.evaluations]
    summary = result.summary()
    apart = []
    for m in result.measures:
        attack, honest = m.attack_deviation, m.honest_deviation
        if attack == 0:
            apart.append(0.0)
        elif attack and honest and math.isfinite(attack / honest):
            apart.append(attack / honest)
    outcome = _outcome(result.experiment, summary, evaluations, ratios, apart=apart)
    return replace(outcome, moves=moves_of(result.measures))


def _outcome(
    experiment: Experiment,
    summary: dict[str, Any],
    evaluations: Sequence[tuple[int, float, float | None]],
    ratios: Sequence[tuple[int, float]],
    source: Source = "varangian",
    machine: str | None = None,
    *,
    apart: Sequence[float] = (),
) -> Outcome:
    at, limit = dict(ratios), condition(experiment) if experiment.attack else None
    within = None if limit is None or not ratios else sum(r < limit for _, r in ratios) / len(ratios)
    seconds, loss = summary.get("seconds"), summary.get("final_loss")
    return Outcome(
        experiment,
        _share(summary["max_accuracy"]),
        _share(summary["final_accuracy"]),
        None if loss is None else float(loss),
        int(summary["steps"]),
        None if summary.get("stopped") is None else str(summary["stopped"]),
        statistics.median(r for _, r in ratios) if ratios else None,
        within,
        None if seconds is None else float(seconds),
        tuple(Point(step, accuracy, at.get(step), loss) for step, accuracy, loss in evaluations),
        source,
        machine,
        _share(summary["max_validation"]) if experiment.validation else None,
        _share(summary["chosen_accuracy"]) if experiment.validation else None,
        attackers_apart=statistics.median(apart) if any(apart) else None,
        attack_success=_success(experiment, summary),
        class_accuracy=shares(summary, "class_accuracy"),
    )


def _success(experiment: Experiment, summary: dict[str, Any]) -> float | None:
    """How often the attack succeeds at the end; what a metric of somebody's own bears that name is no such thing."""
    metrics = summary.get("final_metrics") or {}
    own = SUCCESS in map(column_of, experiment.metrics)
    return None if experiment.attack is None or own or SUCCESS not in metrics else _share(metrics[SUCCESS])


@importing(False)
def read_outcome(folder: Path, source: Source = "varangian") -> Outcome:
    """The complete run in a folder.

    Raises:
        ValueError: it cannot be read as one; nothing of it is taken on trust.
    """
    try:
        summary = read_json(folder / "result.json")
        experiment = Experiment.from_folder(read_text(folder / "experiment.json"))
        if experiment.device.startswith("cuda:"):  # on which of several cards, tells no runs apart
            experiment = replace(experiment, device="cuda")
        check_format(folder / "result.json", summary)
        check_summary(summary, experiment)
        if summary["seconds"] is not None:
            number(summary["seconds"], "seconds", 0)
        evaluations = list(_evaluations(folder / "evaluations.csv"))
        ratios, apart = _measured(folder / "metrics.csv") if (folder / "metrics.csv").exists() else ([], [])
        outcome = _outcome(experiment, summary, evaluations, ratios, source, machine_of(folder), apart=apart)
        if experiment.momentum_at == "adaptive" and experiment.momentum:
            outcome = replace(outcome, moves=read_moves(folder / "metrics.csv"))
        _check_curve(outcome)
        _check_accuracies(outcome)
        _check_chosen(outcome, folder / "evaluations.csv")
        _check_success(outcome, folder / "evaluations.csv")
        return outcome
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no complete run: {Path(error.filename).name} is missing.") from None
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} cannot be read as a run: {_first_line(error)}") from None


_TIMES = ("processor", "device", "threads", "platform", "python", "torch", "numpy", "numba", "varangian", "commit")


def machine_of(folder: Path) -> str | None:
    """What the time of a run depends on beside its settings, in one line; None where that changed or is not known."""
    try:
        sessions = read_json(folder / ENVIRONMENT)["sessions"]
        found = {", ".join(f"{name} {session[name]}" for name in _TIMES if session.get(name)) for session in sessions}
        return line_of_text(found.pop(), "machine") if len(found) == 1 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it says nothing, and decides nothing else
        return None


def _evaluations(path: Path) -> Iterator[tuple[int, float, float | None]]:
    names = ("step", "accuracy", "loss")
    for step, accuracy, loss in read_columns(path, names, names):
        yield whole_of(step, "step"), _accuracy(accuracy, "accuracy"), _finite(loss)


def _finite(text: str) -> float | None:
    return None if text in ("", "nan", "inf", "-inf") else number_of(text, "loss")


def _measured(path: Path) -> tuple[list[tuple[int, float]], list[float]]:
    """Of the steps at which they were measured, and are finite: the step and the variance-norm ratio; and how far
    attackers are apart, in deviations of honest workers."""
    ratios, apart = [], []
    names = ("step", "ratio", "attack_deviation", "honest_deviation")
    for step, ratio, attack, honest in read_columns(path, COLUMNS, names):
        if ratio and math.isfinite(value := float(ratio)):
            ratios.append((whole_of(step, "step"), value))
        if attack == "0":  # of most attacks, in every step
            apart.append(0.0)
        elif attack and honest and (usual := float(honest)):
            value = float(attack) / usual
            if math.isfinite(value):
                apart.append(number(value, "attack_deviation", 0))
    return ratios, apart


def _check_curve(outcome: Outcome) -> None:
    """A function of the step."""
    steps = [p.step for p in outcome.curve]
    if any(after <= before for before, after in pairwise(steps)):
        raise ValueError("the steps of its evaluations do not go up.")
    if any(p.ratio is not None and p.ratio < 0 for p in outcome.curve):
        raise ValueError("a ratio is negative.")


def _check_accuracies(outcome: Outcome) -> None:
    """The best and the last evaluation are those that result.json says."""
    if outcome.curve and not math.isnan(outcome.max_accuracy):
        best, last = max(p.accuracy for p in outcome.curve), outcome.curve[-1].accuracy
        if abs(best - outcome.max_accuracy) > 1e-6 or abs(last - outcome.final_accuracy) > 1e-6:
            raise ValueError(
                f"its accuracies ({outcome.max_accuracy:g}, at the end {outcome.final_accuracy:g}) are not those of "
                f"its evaluations ({best:g}, {last:g})."
            )


def _check_chosen(outcome: Outcome, path: Path) -> None:
    """Those of the evaluation that was best on the data set aside."""
    if outcome.max_validation is None or outcome.chosen_accuracy is None or _missing(outcome.max_validation):
        return
    columns = ("accuracy", "validation_accuracy")
    rows = [(number_of(a, columns[0]), number_of(v, columns[1])) for a, v in read_columns(path, columns, columns)]
    accuracy, best = max(rows, key=lambda row: row[1])
    if abs(best - outcome.max_validation) > 1e-6 or abs(accuracy - outcome.chosen_accuracy) > 1e-6:
        raise ValueError(
            f"its validation accuracy ({outcome.max_validation:g}, and {outcome.chosen_accuracy:g} on the test set) is "
            f"not that of its evaluations ({best:g}, {accuracy:g})."
        )


def _check_success(outcome: Outcome, path: Path) -> None:
    """That of the last evaluation."""
    said = outcome.attack_success
    if said is None or _missing(said):
        return
    *_, (last,) = read_columns(path, (SUCCESS,), (SUCCESS,))
    if not abs(float(last) - said) <= 1e-6:
        raise ValueError(f"its attack_success ({said:g}) is not that of its last evaluation ({shown(last)}).")


def _first_line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing."
    return (str(error).splitlines() or [type(error).__name__])[0]


def complete(folder: Path) -> bool:
    """Whether a run folder holds a complete run."""
    return (folder / "result.json").is_file()


@importing(False)
def collect(folder: str | Path) -> tuple[list[Outcome], list[str]]:
    """All complete runs of a folder in a fixed order, each once; and a line on each that is left out, and why.

    Args:
        folder: of run folders (``varangian run --out``), of a sweep, or holding runs.csv only; or such a file itself.

    Raises:
        ValueError: there is nothing of the kind, or a table of runs that cannot be read.
    """
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise ValueError(f"{folder} does not exist.")
    if folder.is_file():
        return read_runs(folder), []
    found: dict[tuple[str, str], Outcome] = {}
    left_out: list[str] = []
    places: list[tuple[Path, Source]] = [(folder, "varangian"), (folder / "runs", "varangian")]
    places.append((folder / "imported", "imported"))
    for place, source in places:
        for run in folders_in(place, folder, _begun, left_out.append):
            if not complete(run):
                left_out.append(f"{run} is not complete.")
                continue
            try:
                outcome = read_outcome(run, source)
            except ValueError as error:
                left_out.append(str(error))
                continue
            there = found.setdefault(outcome.key, outcome)
            if there is not outcome:
                left_out.append(f"{run} is a run that another folder holds too{_unequal(there, outcome)}.")
    table = folder / "runs.csv"
    if table.is_file():
        if all(source == "imported" for _, source in found):
            found = {o.key: o for o in read_runs(table)} | found
        else:
            left_out += _only_in(table, found)
    if not found:
        more = f" ({len(left_out)} left out, the first: {left_out[0].rstrip('.')})" if left_out else ""
        raise ValueError(f"{folder} holds no complete runs and no runs.csv{more}.")
    return sorted(found.values(), key=order), left_out


def gather(folder: str | Path) -> list[Outcome]:
    """The runs that :func:`collect` finds; of what it leaves out, a warning each."""
    outcomes, left_out = collect(folder)
    for line in left_out:
        warnings.warn(f"left out: {line}", stacklevel=2)
    return outcomes


def _begun(folder: Path) -> bool:
    return (folder / SETTINGS_FILE).is_file() or complete(folder)


@importing(False)
def unfinished(folder: str | Path) -> list[Experiment]:
    """Of the run folders of a folder that hold no complete run, the settings of those that can be read."""
    folder = Path(folder).expanduser()
    found = []
    for place in (folder, folder / "runs"):
        for run in folders_in(place, folder, lambda f: _begun(f) and not complete(f), lambda _: None):
            try:
                found.append(Experiment.from_folder(read_text(run / SETTINGS_FILE)))
            except (OSError, ValueError):
                continue
    return found


def _only_in(table: Path, found: Container[tuple[str, str]]) -> list[str]:
    """The rows of a table beside run folders that are of none of these."""
    try:
        rows = [(row["digest"], row["source"]) for row in read_rows(table, ("digest", "source"), MAX_RUNS)]
    except (OSError, ValueError) as error:
        return [str(error)]
    alone = sum(key not in found for key in rows)
    return [f"{table}: {alone} of its {len(rows)} rows are of runs whose folders were not read."] if alone else []


def _unequal(a: Outcome, b: Outcome) -> str:
    same = (a.max_accuracy, a.final_accuracy, a.steps) == (b.max_accuracy, b.final_accuracy, b.steps)
    return "" if same else f", with other numbers ({b.max_accuracy:.4g} for {a.max_accuracy:.4g} at most)"


def each_once(outcomes: Iterable[Outcome]) -> tuple[list[Outcome], list[str]]:
    """The runs in order, each once, and a line on each that was there again."""
    found: dict[tuple[str, str], Outcome] = {}
    again = []
    for o in sorted(outcomes, key=order):
        there = found.setdefault(o.key, o)
        if there is not o:
            again.append(f"{o.experiment.name} ({o.experiment.digest}) is there more than once{_unequal(there, o)}.")
    return list(found.values()), again


def order(outcome: Outcome) -> tuple[object, ...]:
    """The order of rows: by configuration, so that it depends on nothing that happened."""
    e = outcome.experiment
    return (
        *(
            outcome.source == "imported",
            e.dataset,
            e.model,
            e.profile,
            e.workers,
            e.byzantine,
            rate_text(e),
            e.nesterov,
        ),
        *(rule_name(e), attack_name(e), e.momentum_at, e.seed, e.digest),
    )


# ------------------------------------------------------------------------------------------------------ rows <-> files


def write_runs(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """runs.csv (a row a run) and curves.csv (a row an evaluation), the same bytes for the same runs; timings.csv; where
    momentum moves in some run, moves.csv.

    Settings that are None and lists without items are empty cells. A run that is there twice is written once, with a
    warning.
    """
    outcomes, again = each_once(outcomes)
    for line in again:
        warnings.warn(f"left out: {line}", stacklevel=2)
    settings = columns_of([o.experiment for o in outcomes])
    more = VALIDATED if "validation" in settings else []
    more = [*more, APART] if any(o.attackers_apart is not None for o in outcomes) else more
    more = [*more, *(name for name in ATTACKED if any(getattr(o, name) is not None for o in outcomes))]
    runs = [
        [o.experiment.name, o.experiment.digest, o.source, str(FORMAT)]
        + [setting_text(o.experiment, name) for name in settings]
        + [_cell(v) for v in (o.steps, o.max_accuracy, o.final_accuracy, o.final_loss)]
        + [_cell(v) for v in (o.ratio, o.ratio_within, o.stopped)]
        + [_cell(getattr(o, name)) for name in more]
        for o in outcomes
    ]
    curves = [
        [o.experiment.digest, o.source, _cell(p.step), _cell(p.accuracy), _cell(p.ratio)]
        for o in outcomes
        for p in o.curve
    ]
    timings = [
        [o.experiment.digest, o.source, _cell(o.seconds), o.machine or ""] for o in outcomes if o.seconds is not None
    ]
    write_csv(folder / "runs.csv", [*IDENTITY, *settings, *RESULTS, *more], runs)
    write_csv(folder / "curves.csv", ["digest", "source", "step", "accuracy", "ratio"], curves)
    write_csv(folder / "timings.csv", ["digest", "source", "seconds", "machine"], timings)
    moves = [[o.experiment.digest, o.source, *m.row()] for o in outcomes for m in o.moves]
    if moves:
        write_csv(folder / "moves.csv", ["digest", "source", *MOVES], moves)
    else:
        (folder / "moves.csv").unlink(missing_ok=True)


def write_failed(folder: Path, failed: Iterable[tuple[Experiment, str]], tried: Iterable[str]) -> None:
    """failed.csv: a row a run that failed, with its settings and the reason; no file where none did.

    Args:
        folder: of the sweep.
        failed: what failed now.
        tried: digests of all runs that the sweep was about: of others, what the file says already stays.
    """
    path, header = folder / "failed.csv", ["name", "digest", *SETTINGS, "reason"]
    known, rows = set(tried), {}
    with suppress(OSError, ValueError):  # of a newer version, or nobody's: it is written anew
        rows = {row["digest"]: list(row.values()) for row in read_rows(path, header, MAX_RUNS)}
    rows = {digest: row for digest, row in rows.items() if digest not in known and len(row) == len(header)}
    for e, reason in failed:
        texts = [setting_text(e, name) for name in SETTINGS]
        rows[e.digest] = [e.name, e.digest, *texts, printable(cut(reason))]
    if rows:
        write_csv(path, header, [rows[digest] for digest in sorted(rows)])
    else:
        path.unlink(missing_ok=True)


@importing(False)
def read_failed(folder: Path) -> list[tuple[Experiment, str]]:
    """What failed.csv says of the first thousand runs; rows that cannot be read say nothing."""
    found = []
    with suppress(OSError, ValueError):
        for row in islice(read_rows(folder / "failed.csv", ["digest", "reason"], MAX_RUNS), MAX_FAILED):
            settings = {k: v for k, v in row.items() if k not in ("name", "digest", "reason")}
            with suppress(ValueError):
                found.append((Experiment.from_dict(settings), line_of_text(row["reason"], "reason")))
    return found


def _cell(value: float | str | tuple[float, ...] | None) -> str:
    if isinstance(value, tuple):
        return " ".join(map(repr, value))
    return "" if value is None or _missing(value) else repr(value) if isinstance(value, float) else str(value)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The file appears whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


@importing(False)
def read_runs(path: Path) -> list[Outcome]:
    """The rows of runs.csv, with the curves, timings and moves beside it if they are there.

    Raises:
        ValueError: it is no such file, or a row is of another run than its digest says; the message names the line.
    """
    curves: dict[tuple[str, str], list[Point]] = {}
    beside = path.with_name("curves.csv")
    for line, row in _rows(beside, ("digest", "source", "step", "accuracy", "ratio")):
        with _naming(beside, line):
            ratio = number_of(row["ratio"], "ratio", 0) if row["ratio"] else None
            point = Point(whole_of(row["step"], "step"), _accuracy(row["accuracy"], "accuracy"), ratio)
        curves.setdefault((row["digest"], row["source"]), []).append(point)
    timings: dict[tuple[str, str], tuple[float, str | None]] = {}
    beside = path.with_name("timings.csv")
    for line, row in _rows(beside, ("digest", "source", "seconds")):
        with _naming(beside, line):
            if (row["digest"], row["source"]) in timings:
                raise ValueError(f"digest {shown(row['digest'])} occurs twice.")
            machine = line_of_text(row["machine"], "machine") if row.get("machine") else None
            timings[row["digest"], row["source"]] = number_of(row["seconds"], "seconds", 0), machine
    moves: dict[tuple[str, str], list[Move]] = {}
    beside = path.with_name("moves.csv")
    for line, row in _rows(beside, ("digest", "source", *MOVES)):
        with _naming(beside, line):
            moves.setdefault((row["digest"], row["source"]), []).append(move([row[name] for name in MOVES]))
    found: dict[tuple[str, str], Outcome] = {}
    needed = ("name", "digest", "source", "max_accuracy", "final_accuracy")
    for line, row in enumerate(read_rows(path, needed, MAX_RUNS), start=2):
        with _naming(path, line):
            key = row["digest"], row["source"]
            if key in found:
                raise ValueError(f"digest {shown(key[0])} occurs twice.")
            outcome = _from_row(row, curves.get(key, ()), *timings.get(key, (None, None)))
            found[key] = replace(outcome, moves=tuple(moves.get(key, ())))
            _check_curve(found[key])
    if not found:
        raise ValueError(f"{path} holds no runs.")
    return sorted(found.values(), key=order)


def _from_row(row: dict[str, str], curve: Sequence[Point], seconds: float | None, machine: str | None) -> Outcome:
    if row["source"] not in ("varangian", "imported"):
        raise ValueError(f"source: must be varangian or imported, got {shown(row['source'])}")
    written = whole_of(row.get("format", "1"), "format", 1)  # the first tables did not say
    if written > FORMAT:
        raise ValueError(f"it is of a newer version of Varangian (format {written}, this one reads up to {FORMAT}).")
    # Columns that Experiment does not know would be settings of a later version.
    experiment = Experiment.from_dict({k: v for k, v in row.items() if k not in _FOUND})
    # What cannot be measured is empty, and so is what a table of another kind does not have.
    optional = ("final_loss", "ratio", "ratio_within", *VALIDATED)
    loss, ratio, within, validated, chosen = (
        number_of(row[name], name) if row.get(name) else None for name in optional
    )
    outcome = Outcome(
        experiment,
        _accuracy(row["max_accuracy"], "max_accuracy"),
        _accuracy(row["final_accuracy"], "final_accuracy"),
        loss,
        whole_of(row.get("steps_done") or "0", "steps_done"),
        line_of_text(row["stopped"], "stopped") if row.get("stopped") else None,
        ratio,
        within,
        seconds,
        tuple(curve),
        "imported" if row["source"] == "imported" else "varangian",
        machine,
        validated,
        chosen,
        attackers_apart=number_of(row[APART], APART, 0) if row.get(APART) else None,
        attack_success=_accuracy(row[SUCCESS], SUCCESS) if row.get(SUCCESS) else None,
        class_accuracy=_accuracies(row.get("class_accuracy")),
    )
    if written == FORMAT and row["digest"] != experiment.digest:
        raise ValueError(
            f"its settings are those of the run {experiment.digest}, its digest is {shown(row['digest'])}: "
            "one of them was changed."
        )
    return outcome


def _accuracies(text: str | None) -> tuple[float, ...] | None:
    """Of a cell that holds one for each class."""
    each = (text or "").split(" ", MAX_CLASSES)
    return tuple(_accuracy(one or "none", "class_accuracy") for one in each) if text else None


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Of a file that need not be there."""
    return enumerate(read_rows(path, needed), start=2) if path.exists() else iter(())


@contextmanager
def _naming(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from None
