"""Choosing settings honestly: by the worst attack, on training data set aside, and the test set looked at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..core.checks import MOST_SEED, shown, unknown
from ..core.specs import describe
from ..runs.building import open_dataset
from ..runs.experiment import HASHES, ConfigurationError, Experiment
from ..runs.fields import NAMED
from ..runs.files import write_whole
from ..runs.live.events import EventLog, one_line
from .grid import SETTINGS, Grid, plain, read_content, replaced, values_of
from .outcomes import Outcome, write_csv
from .sweep import Sweep, sweep

SHARE = 0.1  # of the training data that is set aside where nobody says
MOST_TRIALS = 10_000
MOST_WHOLE = 2**53  # to which whole numbers are drawn
NOTHING_ASIDE = "validation: a choice needs training data set aside, got 0; the test set is not for choosing."
PARTS = ("search", "seeds", "trials", "draw_seed")  # of a file, beside the settings
# What somebody asks about; searching it would answer another question.
QUESTION = ("dataset", "workers", "byzantine", "real_byzantine", "attack", "knowledge", "partition", "seed", "device",
            "precision", "autotune", "measure", "validation", "profile", *HASHES)  # fmt: skip


@dataclass(frozen=True)
class Search:
    """Which settings a tuning tries, and under which conditions.

    Args:
        settings: those of all runs, by name. Those whose values are lists are the conditions of which the worst counts:
            ``attack``, and others that belong to the question (``partition``, ``byzantine``). Without ``validation``,
            a tenth of the training data is set aside.
        search: the settings to choose: for each a list of values, ``{"log": [low, high]}`` or
            ``{"uniform": [low, high]}``; numbers that are drawn have three digits.
        seeds: of each run, as those of a :class:`Grid`; what counts is their mean.
        trials: how many to draw at random; None for all combinations of the lists.
        draw_seed: of these draws.

    Raises:
        ConfigurationError: with one line per fault, those of all trials' runs among them.
    """

    settings: Mapping[str, Any]
    search: Mapping[str, Any]
    seeds: str | Sequence[int] | None = None
    trials: int | None = None
    draw_seed: int = 1
    tried: tuple[dict[str, Any], ...] = field(init=False, compare=False)
    grid: Grid = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.search, Mapping):
            object.__setattr__(self, "search", {name: _listed(value) for name, value in self.search.items()})
        for name in ("trials", "draw_seed"):
            value = getattr(self, name)
            if isinstance(value, np.integer):
                object.__setattr__(self, name, int(value))
        faults = list(self._faults())
        if faults:
            raise ConfigurationError(faults)
        object.__setattr__(self, "settings", {"validation": SHARE} | dict(self.settings))
        tried = tuple(self._drawn() if self.trials is not None else self._all())
        object.__setattr__(self, "tried", tried)
        object.__setattr__(self, "grid", Grid(self.settings, self.seeds, cases=tried))
        if not all(e.validation for e in self.grid.experiments()):
            raise ConfigurationError([NOTHING_ASIDE])

    def _faults(self) -> Iterator[str]:
        for part, table in (("settings", self.settings), ("search", self.search)):
            if not isinstance(table, Mapping):
                yield f"{part}: must be a table of settings by name, got {shown(table)}."
                return
        if not self.search:
            yield "search: it names no setting, so there is nothing to choose."
        free = [name for name in SETTINGS if name not in QUESTION]
        for name, value in self.search.items():
            if name in QUESTION:
                yield f"search: {name} is part of what is asked, and is not chosen; give it among the settings."
            elif name not in SETTINGS:
                yield f"search: {unknown('setting', str(name), free)}"
            elif name in self.settings:
                yield f"search: {name} is to be chosen, and is set as well."
            else:
                try:
                    _drawer(name, value)
                except ValueError as error:
                    yield f"search: {name} {error}"
        for name in ("rule", "pre"):
            if name in self.settings and len(values_of(name, self.settings[name])) > 1:
                yield f"{name}: a tuning is of one of them: tune each by itself, or let the search choose ([search])."
        if "attack" not in self.settings:
            yield 'attack: name those whose worst case counts, such as ["little", "empire"], or "none".'
        if not self.settings.get("validation", SHARE):
            yield NOTHING_ASIDE
        if self.trials is None:
            ranges = [name for name, value in self.search.items() if isinstance(value, Mapping)]
            if ranges:
                yield f"trials: how many are drawn from the range of {', '.join(ranges)} has to be said."
            number = math.prod(len(v) for v in self.search.values() if isinstance(v, (list, tuple)))
            if number > MOST_TRIALS:
                yield f"search: {number:,} combinations, over {MOST_TRIALS:,}; draw some of them: trials=100."
        for name, most in (("trials", MOST_TRIALS), ("draw_seed", MOST_SEED)):
            value, least = getattr(self, name), int(name == "trials")
            if not (name == "trials" and value is None) and (
                not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most
            ):
                yield f"{name}: must be a whole number from {least} to {most:,}, got {shown(value)}."

    def _all(self) -> Iterator[dict[str, Any]]:
        values = {name: values_of(name, value) for name, value in self.search.items()}
        found = (dict(zip(values, combination, strict=True)) for combination in product(*values.values()))
        yield from {repr(trial): trial for trial in found}.values()

    def _drawn(self) -> list[dict[str, Any]]:
        """Distinct ones, fewer than asked for where there are no more."""
        assert self.trials is not None
        random = np.random.default_rng(self.draw_seed)
        drawers = {name: _drawer(name, value) for name, value in self.search.items()}
        found: dict[str, dict[str, Any]] = {}
        for _ in range(100 * self.trials):
            if len(found) == self.trials:
                break
            trial = {name: draw(random) for name, draw in drawers.items()}
            found.setdefault(repr(trial), trial)
        return list(found.values())

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Search:
        """From plain values: settings by name, and search, seeds, trials and draw_seed."""
        settings = {name: value for name, value in content.items() if name not in PARTS}
        given = {name: content[name] for name in ("seeds", "trials", "draw_seed") if name in content}
        return cls(settings, content.get("search", {}), **given)

    @classmethod
    def from_toml(cls, text: str) -> Search:
        """From settings as TOML."""
        return cls.from_dict(Experiment.values_from_text(text, toml=True))

    @classmethod
    def from_file(cls, path: str | Path, settings: Mapping[str, Any] | None = None) -> Search:
        """From a JSON file, or TOML where its name ends in .toml; ``settings`` stand in place of those of the file.

        Raises:
            ConfigurationError: as at construction; each fault names the file.
            OSError: it cannot be opened.
        """
        path = Path(path).expanduser()
        content = read_content(path)
        try:
            return cls.from_dict(replaced(content, settings or {}))
        except ConfigurationError as error:
            raise ConfigurationError([f"{path}: {fault}" for fault in error.faults]) from None


def _listed(value: Any) -> Any:
    """Arrays and ranges as lists, as grids take them."""
    if isinstance(value, Mapping):
        return {scale: _listed(bounds) for scale, bounds in value.items()}
    return plain(value) if isinstance(value, (np.generic, np.ndarray, range)) else value


def _drawer(name: str, value: Any) -> Any:
    """A function of a generator that draws one value.

    Raises:
        ValueError: it is neither a list nor a range; the message goes on after the name.
    """
    if isinstance(value, (list, tuple)):
        values = values_of(name, list(value))
        if not values:
            raise ValueError("has a list without values.")
        return lambda random: values[int(random.integers(len(values)))]
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("log", "uniform"):
        [(scale, bounds)] = value.items()
        numbers = isinstance(bounds, (list, tuple)) and len(bounds) == 2
        numbers = numbers and all(isinstance(b, (int, float)) and not isinstance(b, bool) for b in bounds)
        if not numbers or not -MOST_WHOLE <= bounds[0] < bounds[1] <= MOST_WHOLE:
            raise ValueError(f"needs two numbers that go up, such as [0.01, 1.0], got {shown(bounds)}.")
        low, high = bounds
        whole = isinstance(low, int) and isinstance(high, int)
        if scale == "log" and not low > 0:
            raise ValueError(f"needs a range above 0 on a logarithmic scale, got {shown(bounds)}.")

        def draw(random: np.random.Generator) -> float:
            if scale == "uniform":
                return int(random.integers(low, high + 1)) if whole else float(f"{random.uniform(low, high):.3g}")
            drawn = math.exp(random.uniform(math.log(low), math.log(high)))
            return round(drawn) if whole else float(f"{drawn:.3g}")

        return draw
    raise ValueError(
        f'needs a list of values, or a range such as {{log = [0.01, 1.0]}} or {{uniform = [0.5, 0.99]}}, got '
        f"{shown(value)}."
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trial:
    """One choice of the searched settings, and what came of it on the data set aside.

    Attributes:
        settings: those that were searched.
        validation: for each condition the accuracies of its seeds, each the best of a run's evaluations.
        missing: how many of its runs failed or were not come to.
    """

    settings: Mapping[str, Any]
    validation: Mapping[str, tuple[float, ...]]
    missing: int

    @property
    def worst(self) -> str:
        """The condition with the lowest mean."""
        return min(self.validation, key=lambda condition: statistics.fmean(self.validation[condition]))

    @property
    def objective(self) -> float:
        """The mean over the seeds under the worst condition."""
        return statistics.fmean(self.validation[self.worst])

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds there; None of one seed."""
        found = self.validation[self.worst]
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def mean(self) -> float:
        """Over all conditions, which decides between equals."""
        return statistics.fmean(statistics.fmean(found) for found in self.validation.values())


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a search came to.

    Attributes:
        trials: those all of whose runs are complete, the best first.
        incomplete: the others.
        chosen: the best one; None as long as any run is still to do.
        experiment: the chosen settings under their worst condition, with the first seed.
        test: of the chosen settings alone, for each condition the accuracies on the test set, seed by seed, each at the
            evaluation that is best on the data set aside.
        sweep: what trained them.
    """

    trials: tuple[Trial, ...]
    incomplete: tuple[Trial, ...]
    chosen: Trial | None
    experiment: Experiment | None
    test: Mapping[str, tuple[float, ...]]
    sweep: Sweep

    def summary(self) -> list[str]:
        """What was tried and chosen, and how far that can be believed, a line each."""
        if self.chosen is None or self.experiment is None:
            why = f"{self.sweep.left:,} runs are not complete" if self.sweep.left else "no setting has all of its runs"
            return [f"nothing is chosen yet: {why}."]
        best, share, left = self.chosen, self.experiment.validation, len(self.incomplete)
        seeds = len(best.validation[best.worst])
        lines = [
            f"chosen: {_said(best.settings)}",
            f"tried: {len(self.trials)} settings, each under {_counted(len(best.validation), 'condition')} with "
            f"{_counted(seeds, 'seed')}; judged on {share:.0%} of the training data, set aside"
            + (
                f"; {_counted(left, 'setting')} more {'have' if left > 1 else 'has'} runs that failed, and "
                f"{'were' if left > 1 else 'was'} not judged"
                if left
                else ""
            ),
            f"validation: {_accuracy(best.validation[best.worst])} under the worst, {best.worst}; the best of "
            f"{len(self.trials)}, and so an optimistic estimate",
        ]
        equals = sum(t.objective == best.objective for t in self.trials) - 1
        if equals:
            lines.append(f"ties: {_counted(equals, 'other setting')} as good; the mean over conditions decided")
        if best.spread is not None:
            near = sum(best.objective - t.objective <= best.spread for t in self.trials) - 1 - equals
            lines.append(f"near: {_counted(near, 'other setting')} within a standard deviation over the seeds")
        else:
            lines.append("near: with one seed nobody knows how far chance decided")
        worst = min(self.test, key=lambda condition: statistics.fmean(self.test[condition]))
        lines.append(
            f"test: {_accuracy(self.test[worst])} under the worst, {worst}; looked at once, for the chosen one alone"
        )
        return lines


def tune(
    search: Search,
    out: str | Path,
    *,
    jobs: int | None = None,
    threads: int = 1,
    shard: tuple[int, int] = (1, 1),
    time_budget: float | None = None,
    ray: str | None = None,
    data_folder: str | Path | None = None,
    notices: Console | None = None,
    command: str = "varangian.tune(...)",
    events: bool = False,
    tensorboard: bool = False,
) -> Tuning:
    """The settings that are best in the worst case, after training all that were to be tried and are not complete yet.

    Beside what a sweep leaves, ``<out>/tuning.csv`` has a row a trial, and ``<out>/chosen.toml`` the chosen settings
    as ``varangian run --config`` takes them. The trials' runs measure accuracies on the test set as all runs do; those
    of the chosen settings alone are looked at, once all runs are complete.

    Args:
        search: what to try, and under which conditions.
        out: as all others, see :func:`sweep`.

    Raises:
        ValueError: the data holds numbers to predict, which have no accuracy; and as :func:`sweep`.
        DataError, KeyboardInterrupt: as :func:`sweep`; the same call goes on.

    Example:
        >>> import tempfile
        >>> question = {"rule": "median", "attack": ["little", "empire"], "workers": 11, "byzantine": 2, "steps": 5}
        >>> search = Search(question, {"learning_rate": [0.001, 0.2]})
        >>> tune(search, tempfile.mkdtemp(), jobs=1).chosen.settings
        {'learning_rate': 0.2}
    """
    out = Path(out).expanduser()
    for name, e in {e.dataset: e for e in search.grid.experiments()}.items():
        if open_dataset(e, data_folder).task == "regression":
            raise ValueError(
                f"dataset: a tuning chooses by accuracy, and {name} has numbers to predict, which have none."
            )
    swept = sweep(
        search.grid, out, jobs=jobs, threads=threads, shard=shard, time_budget=time_budget, ray=ray,
        data_folder=data_folder, notices=notices, command=command, events=events, tensorboard=tensorboard,
    )  # fmt: skip
    found = {replace(o.experiment, **dict.fromkeys(HASHES)).digest: o for o in swept.outcomes}
    axes = [name for name in Grid({**search.settings, **search.tried[0]}, search.seeds).axes if name != "seed"]
    trials, runs = [], {}
    for settings in search.tried:
        experiments = Grid({**search.settings, **settings}, search.seeds).experiments()
        outcomes = [found[e.digest] for e in experiments if e.digest in found]
        trial = Trial(settings, _by_condition(outcomes, axes, "max_validation"), len(experiments) - len(outcomes))
        trials.append(trial)
        runs[id(trial)] = outcomes
    whole = [trial for trial in trials if not trial.missing]
    whole.sort(key=lambda trial: (-trial.objective, -trial.mean))  # which keeps the order of equals
    incomplete = tuple(trial for trial in trials if trial.missing)
    chosen, experiment, test = None, None, {}
    if whole and swept.left <= len(swept.failed):
        chosen = whole[0]
        outcomes = runs[id(chosen)]
        experiment = next(o.experiment for o in outcomes if _condition(o.experiment, axes) == chosen.worst)
        test = _by_condition(outcomes, axes, "chosen_accuracy")
    tuning = Tuning(tuple(whole), incomplete, chosen, experiment, test, swept)
    _write(out, tuning, list(search.search))
    if swept.events is not None and chosen is not None:
        log = EventLog(swept.events, keep=swept.events.stat().st_size)
        said = {name: written(value) for name, value in chosen.settings.items()}
        log.write("chosen", settings=said, validation=chosen.objective, under=one_line(chosen.worst))
        log.close()
    return tuning


def _condition(e: Experiment, axes: Sequence[str]) -> str:
    parts = [f"{name} {getattr(e, name)}" for name in axes if name != "attack"]
    return ", ".join([e.attack or "no attack", *parts])


def _by_condition(outcomes: Sequence[Outcome], axes: Sequence[str], column: str) -> dict[str, tuple[float, ...]]:
    found: dict[str, list[float]] = {}
    for o in outcomes:
        value = getattr(o, column)
        if math.isnan(value):
            raise ValueError(
                "tune chooses by accuracy, and runs that predict numbers have none; their losses are in runs.csv."
            )
        found.setdefault(_condition(o.experiment, axes), []).append(value)
    return {condition: tuple(values) for condition, values in found.items()}


def _write(out: Path, tuning: Tuning, names: Sequence[str]) -> None:
    """tuning.csv, and chosen.toml once there is one."""
    header = [*names, "worst_condition", "worst_validation", "deviation_over_seeds", "mean_validation", "missing_runs"]
    rows = [
        [*(written(t.settings[name]) for name in names), t.worst, repr(t.objective),
         "" if t.spread is None else repr(t.spread), repr(t.mean), "0"]
        for t in tuning.trials
    ]  # fmt: skip
    rows += [
        [*(written(t.settings[name]) for name in names), "", "", "", "", str(t.missing)] for t in tuning.incomplete
    ]
    write_csv(out / "tuning.csv", header, rows)
    path = out / "chosen.toml"
    if tuning.experiment is None:
        path.unlink(missing_ok=True)
        return
    text = "".join(f"# {line}\n" for line in tuning.summary())
    text += "# Below: the chosen settings under their worst condition, with the first seed.\n\n"
    text += tuning.experiment.to_toml()
    write_whole(path, lambda file: file.write(text.encode()))


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {written(value)}" for name, value in settings.items())


def written(value: Any) -> str:
    """A searched value as text, as the command line takes it."""
    if isinstance(value, list):
        return ",".join(written(item) for item in value) or "none"
    if value is None:
        return "none"
    return str(value) if isinstance(value, (bool, int, float, str)) else describe(value, NAMED)


def _accuracy(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread} %"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
