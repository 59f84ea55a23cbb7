"""The commands of many runs: sweep, tune, reproduce, report, import."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.checks import printable, shown
from ..runs.building import open_dataset
from ..runs.experiment import Experiment
from ..runs.running import check_writable
from ..simulation.data import DataError
from ..study import heterogeneity, paper
from ..study.grid import Grid, numbers
from ..study.outcomes import read_runs
from ..study.paper import OF_THE_PAPER, PANELS, Verdict, counted
from ..study.report import judge, report
from ..study.report.heterogeneity import CELLS, report_heterogeneity
from ..study.report.layout import groups
from ..study.report.legacy import import_runs
from ..study.sweep import Sweep, find_devices, sweep
from ..study.tune import Search, Tuning, tune, written
from .runs import OUTLETS

output = Console()
notices = Console(stderr=True)
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


class _Numbers(click.ParamType):
    """1-5, or 1,3,7: whole numbers, in this order, each once."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            return numbers(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Setting(click.ParamType):
    """NAME=VALUE, where a value in brackets is a list as TOML has it."""

    name = "NAME=VALUE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, object]:
        if isinstance(value, tuple):
            return value
        name, equals, text = (piece.strip() for piece in str(value).partition("="))
        if not (name and equals):
            self.fail(f"{shown(value)} is not of the form NAME=VALUE, such as steps=20.", param, ctx)
        name = name.replace("-", "_")
        if not text.startswith("["):
            return name, text
        try:
            return name, Experiment.values_from_text(f"value = {text}", toml=True)["value"]
        except ValueError:
            self.fail(f'{shown(text)} is no list, such as ["median", "krum"].', param, ctx)


class _Shard(click.ParamType):
    name = "i/N"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", str(value))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{shown(value)} is not of the form i/N with 1 <= i <= N.", param, ctx)
        return int(match[1]), int(match[2])


class _Duration(click.ParamType):
    """90, 90s, 30m, 2h: seconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([smh]?)", str(value))
        if match is None:
            self.fail(f"{shown(value)} is not a time such as 90s, 30m or 2h.", param, ctx)
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@dataclass(frozen=True)
class _Asked:
    """What commands of many runs are asked for beside the runs."""

    out: Path | None
    data: Path | None
    jobs: int | None
    threads: int
    device: str | None
    precision: str | None
    shard: tuple[int, int]
    time_budget: float | None
    ray: str | None
    dry_run: bool
    events: bool
    tensorboard: bool

    def how(self) -> dict[str, Any]:
        """For the functions of the library that the commands call."""
        return {
            "jobs": self.jobs,
            "threads": self.threads,
            "shard": self.shard,
            "time_budget": self.time_budget,
            "ray": self.ray,
            "data_folder": self.data,
            "notices": notices,
            "events": self.events,
            "tensorboard": self.tensorboard,
            "command": shlex.join(["varangian", *sys.argv[1:]]),
        }

    def settings(self, said: Sequence[tuple[str, object]]) -> dict[str, object]:
        """What stands in place of what a file says."""
        return dict(said) | self.where()

    def lacking(self, grids: Sequence[Grid], out: Path) -> bool:
        """Whether a device that these need is not here, of which a dry run says what else there is to say.

        Raises:
            ValueError: it is not, and this is no dry run.
        """
        if self.ray is not None:  # whose machines have it
            return False
        try:
            find_devices(grids, out, shard=self.shard, data_folder=self.data)
        except ValueError:
            if not self.dry_run:
                raise
            return True
        return False

    def where(self) -> dict[str, object]:
        """What is said of the device."""
        asked = {"device": self.device, "precision": self.precision}
        return {name: value for name, value in asked.items() if value is not None}


def _sweeping(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, which now takes these options, and gets them as one value: ``asked``."""
    options = (
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            help="where runs and tables go; the same again resumes  [of a file: its name; else study, heterogeneity]",
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            help="folder of data files  [$VARANGIAN_DATA or the user's data folder]",
        ),
        click.option("--jobs", type=click.IntRange(1), help="runs at a time  [as many as cores; some to each GPU]"),
        click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of each run"),
        click.option("--device", help="cpu; cuda for all GPUs; cuda:1 ...  [cpu, unless the file says another]"),
        click.option("--precision", help="on a GPU: float32 or tf32  [float32, unless the file says another]"),
        click.option(
            "--shard",
            type=_Shard(),
            default="1/1",
            show_default=True,
            help="only every N-th run, from the i-th on: for batch schedulers that share --out",
        ),
        click.option("--time-budget", type=_Duration(), help="start no run that would not end within 90s, 30m, 2h"),
        click.option("--ray", metavar="ADDRESS", help="run on a Ray cluster: auto, local, or ray://host:port"),
        click.option(
            "--dry-run", is_flag=True, help="say which runs there are and how long they should take; 2 min at most"
        ),
        *OUTLETS,
    )

    @wraps(command)
    def collected(*context: Any, **values: Any) -> Any:
        asked = _Asked(**{field.name: values.pop(field.name) for field in fields(_Asked)})
        return command(*context, asked=asked, **values)

    for option in reversed(options):
        collected = option(collected)
    return collected


_with_settings = click.option(
    "--set",
    "settings",
    type=_Setting(),
    multiple=True,
    help='in place of what the file says; may be given several times: steps=20, seeds=1-3, rule=["median", "krum"]',
)


@click.command("sweep")
@click.argument("grid", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_with_settings
@_sweeping
@click.pass_context
def sweep_command(context: click.Context, grid: Path, settings: Sequence[tuple[str, object]], asked: _Asked) -> int:
    """All runs of a grid: a file of settings, TOML or JSON, in which those whose values are lists multiply.

    \b
    Example: varangian sweep grid.toml
    where grid.toml holds
             rule = ["median", "multi-krum"]
             attack = ["little", "empire"]
             workers = 11
             byzantine = 4
             seeds = "1-3"
    What is complete is not run again: the same command resumes, and another grid with the same --out adds its runs.
    Exit status 1 where a run failed.
    """
    found = Grid.from_file(grid, asked.settings(settings))
    out = _folder_of(grid) if asked.out is None else asked.out
    lacking = asked.lacking([found], out)
    if not lacking:
        _open_all(found, asked.data)
    result = sweep(found, out, dry_run=asked.dry_run, **asked.how())
    if asked.dry_run:
        _show_plan([found], result)
    elif result.outcomes:
        output.print(f"Table: {out / 'runs.csv'}; now: varangian report {shlex.quote(str(out))}", **PLAIN)
    _show_rest(result)
    context.exit(2 if lacking else 1 if result.failed else 0)


@click.command("tune")
@click.argument("search", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--trials", type=click.IntRange(1), help="how many choices to draw at random  [all, if they are lists]")
@click.option("--draw-seed", type=click.IntRange(0), help="of these draws  [1]")
@_with_settings
@_sweeping
@click.pass_context
def tune_command(
    context: click.Context, search: Path, trials: int | None, draw_seed: int | None,
    settings: Sequence[tuple[str, object]], asked: _Asked,
) -> int:  # fmt: skip
    """The learning rate, momentum, clip ... that are best under the worst attack, chosen without the test set.

    \b
    Example: varangian tune tune.toml --trials 20
    where tune.toml holds
             rule = "median"
             attack = ["little", "empire"]
             workers = 11
             byzantine = 4
             validation = 0.1
             seeds = "1-3"
    \b
             [search]
             learning_rate = { log = [0.01, 1.0] }
             momentum = [0.0, 0.9]
    What counts is the mean over the seeds of the accuracy on training data set aside, under the attack where that is
    lowest. The test accuracy of the chosen settings alone is looked at, once. The same command resumes.
    """
    drawn = {name: value for name, value in (("trials", trials), ("draw_seed", draw_seed)) if value is not None}
    found = Search.from_file(search, asked.settings(settings) | drawn)
    out = _folder_of(search) if asked.out is None else asked.out
    lacking = asked.lacking([found.grid], out)
    if not lacking:
        _open_all(found.grid, asked.data)
    if asked.dry_run:
        output.print(f"{counted(len(found.tried), 'choice')} of {', '.join(found.search)}", **PLAIN)
        _show_plan([found.grid], sweep(found.grid, out, dry_run=True, **asked.how()))
        context.exit(2 if lacking else 0)
    tuning = tune(found, out, **asked.how())
    _show_trials(tuning)
    output.print("\n".join(tuning.summary()), **PLAIN)
    output.print(f"Table: {out / 'tuning.csv'}", **PLAIN)
    if tuning.chosen is not None:
        output.print(f"Settings: {out / 'chosen.toml'}; now: varangian run --config {out / 'chosen.toml'}", **PLAIN)
    _show_rest(tuning.sweep)
    context.exit(1 if tuning.sweep.failed else 0)


def _show_trials(tuning: Tuning) -> None:
    """The best ten."""
    if not tuning.trials:
        return
    names = list(tuning.trials[0].settings)
    table = Table(title="On the data set aside", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in (*names, "worst case", "under", "mean of all"):
        table.add_column(heading)
    for t in tuning.trials[:10]:
        spread = "" if t.spread is None else f" ± {100 * t.spread:.2f}"
        cells = (f"{100 * t.objective:.2f}{spread} %", t.worst, f"{100 * t.mean:.2f} %")
        table.add_row(*(escape(text) for text in (*(written(t.settings[name]) for name in names), *cells)))
    output.print(table)
    if len(tuning.trials) > 10:
        output.print(f"and {len(tuning.trials) - 10:,} more", **PLAIN)


def _open_all(grid: Grid, data: Path | None) -> None:
    """Data that is not there is said once, and not by every run."""
    for dataset, base in {e.dataset: e for e in grid.experiments()}.items():
        try:
            open_dataset(base, data)
        except DataError as error:
            raise click.ClickException(f"{dataset}: {error}") from None


def _folder_of(file: Path) -> Path:
    """Beside one, and named as it."""
    if file.stem == file.name:
        raise click.UsageError(f"--out is needed: {file} has no suffix to leave out for the name of a folder.")
    return Path(file.stem)


@click.command("reproduce")
@click.option(
    "--panel",
    "panels",
    multiple=True,
    type=click.Choice(list(PANELS)),
    help="which part of the study; may be given several times; cnn-fashion-mnist is none of the paper's  "
    "[all of the paper's; with --quick fashion-mnist]",
)
@click.option(
    "--profile",
    type=click.Choice(["described", "published"]),
    default="described",
    show_default=True,
    help="as the paper says, or as its code computed",
)
@click.option("--seeds", type=_Numbers(), default="1-5", show_default=True, help="1-5, or 1,3,7")
@click.option(
    "--quick",
    is_flag=True,
    help="every cell of the poster once: the first learning rate and seed; about ten minutes on two cores",
)
@_sweeping
@click.pass_context
def reproduce(
    context: click.Context, panels: tuple[str, ...], profile: paper.Profile, seeds: tuple[int, ...], quick: bool,
    asked: _Asked,
) -> int:  # fmt: skip
    """The paper's study: all its runs, its figures, and its claims put to the test.

    \b
    Example: varangian reproduce --quick
             varangian reproduce --panel fashion-mnist --seeds 1-5
    What is complete is not run again: the same command resumes. Exit status 1 where a run failed.
    """
    chosen = panels or (("fashion-mnist",) if quick else OF_THE_PAPER)
    out = Path("study") if asked.out is None else asked.out
    where = asked.where()
    replace(PANELS[chosen[0]].base, **where)  # what is wrong with these is said once
    grids = [grid.replaced(where) if where else grid for grid in paper.grids(chosen, seeds, profile, quick)]
    lacking = asked.lacking(grids, out)
    if not lacking:  # a device that is not here is said before data are looked for
        present = _with_data(chosen, asked.data)
        if not present:
            raise click.ClickException("none of the chosen panels has its data.")
        grids = [grid for name, grid in zip(chosen, grids, strict=True) if name in present]
    result = sweep(grids, out, dry_run=asked.dry_run, **asked.how())
    if asked.dry_run:
        _show_plan(grids, result)
    elif not result.outcomes:
        _say("no run is complete yet, so there is no report.")
    elif any(o.experiment.attack for o in result.outcomes):
        page = report(out, say=_say)
        for study, found in judge(groups(result.outcomes)).items():
            _show_claims(found, study)
        output.print(f"Report: {page}\nFigures: {out / 'figures'}\nTable: {out / 'runs.csv'}", **PLAIN)
    _show_rest(result)
    context.exit(2 if lacking else 1 if result.failed else 0)


@click.command("heterogeneity")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    type=click.Choice(list(heterogeneity.DATASETS)),
    help="on which data; may be given several times  [all]",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(list(heterogeneity.PARTS)),
    help="placement: momentum at server, workers, adaptive; logs: published logs done again  [both]",
)
@click.option("--seeds", type=_Numbers(), default="1-3", show_default=True, help="1-5, or 1,3,7")
@click.option(
    "--rows",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="train nothing: read the rows of this runs.csv",
)
@_with_settings
@_sweeping
@click.pass_context
def heterogeneity_command(
    context: click.Context, datasets: tuple[str, ...], parts: tuple[heterogeneity.Part, ...], seeds: tuple[int, ...],
    rows: Path | None, settings: Sequence[tuple[str, object]], asked: _Asked,
) -> None:  # fmt: skip
    """When momentum should stand at the workers: place against how data are dealt, rule and worst attack.

    \b
    Example: varangian heterogeneity --dataset digits
             varangian heterogeneity --rows results/heterogeneity/runs.csv
    It leaves reading.md, whose numbers are computed from the runs, their tables and pictures. What is complete is not
    run again: the same command resumes. Exit status 1 where a run failed.
    """
    out = Path("heterogeneity") if asked.out is None else asked.out
    said = asked.settings(settings)
    if {"dataset", "seed", "seeds"} & said.keys():
        raise click.UsageError("data sets and seeds are said by --dataset and --seeds, not by --set.")
    chosen = list(dict.fromkeys(datasets)) or list(heterogeneity.DATASETS)
    grids = _heterogeneous(parts, chosen, seeds, said)
    if rows is not None:
        check_writable(out)
        page = report_heterogeneity(*grids, read_runs(rows), out)
        if page is None:
            raise click.ClickException(f"{rows}: its rows complete no seed of any cell of what is asked for.")
        _show_reading(page, out)
        return
    lacking = asked.lacking([*chain(*grids)], out)
    if not lacking:
        grids = _heterogeneous(parts, _opened(chosen, asked.data), seeds, said)
    everything = [*chain(*grids)]
    result = sweep(everything, out, dry_run=asked.dry_run, **asked.how())
    if asked.dry_run:
        _show_plan(everything, result)
    elif result.outcomes:
        _show_reading(report_heterogeneity(*grids, result.outcomes, out), out)
    else:
        _say("no run is complete yet, so there is nothing to read.")
    _show_rest(result)
    context.exit(2 if lacking else 1 if result.failed else 0)


def _heterogeneous(
    parts: Sequence[heterogeneity.Part], datasets: Sequence[str], seeds: Sequence[int], settings: Mapping[str, object]
) -> tuple[list[Grid], list[Grid]]:
    """The grids of placements and of logs, those of a part that is not wanted left out."""

    fixed = [name for name in heterogeneity.OF_THE_LOGS if name in settings]
    if fixed and set(parts) == {"logs"}:
        raise click.UsageError(f"the logs compare momenta of their own: {fixed[0]} is not to be set for them.")

    def of(part: heterogeneity.Part) -> list[Grid]:
        wanted = datasets if not parts or part in parts else ()
        said = {name: value for name, value in settings.items() if part == "placement" or name not in fixed}
        return [heterogeneity.GRIDS[part](dataset, seeds).replaced(said) for dataset in wanted]

    return of("placement"), of("logs")


def _opened(datasets: Sequence[str], data: Path | None) -> list[str]:
    """Those that open; of the others, what to do."""
    found = []
    for name in datasets:
        try:
            open_dataset(Experiment(dataset=name), data)
            found.append(name)
        except DataError as error:
            _say(f"left out: {name}: {error}")
    if not found:
        raise click.ClickException("none of the data sets is there.")
    return found


def _show_reading(page: Path | None, out: Path) -> None:
    if page is None:
        _say("no seed of any cell is complete yet, so there is nothing to read.")
    else:
        output.print(f"Reading: {page}\nFigures: {out / 'figures'}\nTable: {out / CELLS}", **PLAIN)


def _show_plan(grids: Sequence[Grid], result: Sweep) -> None:
    """What a sweep would do."""
    names = [e.name for grid in grids for e in grid.experiments()]
    for grid in grids:
        axes = [f"{name} ({len(values)})" for name, values in grid.axes.items()]
        whole = len(grid) == math.prod(map(len, grid.axes.values()))  # not in several cases, or with exclusions
        said = (" x " if whole else ", ").join(axes)
        output.print(f"{counted(len(grid), 'run')}{': ' if axes else ''}{said}", **PLAIN)
        for note in grid.notes:
            _say(note)
    output.print("\n".join(f"  {name}" for name in names[:5]), **PLAIN)
    if len(names) > 5:
        output.print(f"  and {len(names) - 5:,} more", **PLAIN)
    output.print(f"{counted(result.skipped, 'run')} complete, {result.left:,} to do", **PLAIN)


def _say(text: str) -> None:
    notices.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _with_data(panels: Sequence[str], data: Path | None) -> list[str]:
    """Those whose data opens; of the others, what to do."""
    lacking: dict[str, str] = {}
    present = []
    seen: set[str] = set()
    for name in panels:
        base = PANELS[name].base
        if base.dataset not in seen:
            seen.add(base.dataset)
            try:
                open_dataset(base, data)
            except DataError as error:
                lacking[base.dataset] = str(error)
                _say(f"left out: {base.dataset}: {error}")
        if base.dataset not in lacking:
            present.append(name)
    return present


def _show_claims(found: Sequence[Verdict], study: str) -> None:
    table = Table(title=f"The paper's claims ({study})", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "claim", "ours", "the paper's", "verdict"):
        table.add_column(heading)
    for v in found:
        if v.finding is not None:
            colour = {"holds": "green", "does not hold": "red"}.get(v.word, "yellow")
            table.add_row(v.claim.id, v.claim.text, v.finding.ours, v.claim.theirs, f"[{colour}]{v.word}[/{colour}]")
    if table.row_count:
        output.print(table)
    untested = [v.claim.id for v in found if v.finding is None]
    if untested:
        output.print(f"Not tested on these runs: {', '.join(untested)}.", highlight=False)


def _show_rest(result: Sweep) -> None:
    for experiment, reason in result.failed[:10]:
        _say(f"failed: {experiment.name}: {reason}")
    if len(result.failed) > 10:
        _say(f"and {len(result.failed) - 10} more failed.")
    if result.left > len(result.failed) and result.outcomes:
        _say(f"{result.left - len(result.failed)} runs are left; the same command goes on with them.")


@click.command("report")
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="where it goes  [FOLDER]")
def report_command(folder: Path, out: Path | None) -> None:
    """A page, figures and tables of runs: of a folder of runs, a sweep, a study, or a runs.csv.

    \b
    Example: varangian report grid
    It shows any grid: maps of the settings that vary, the worst attack, curves, each seed, and what is not there;
    where momentum stands at both places in some runs, the paper's comparison and claims too.
    """
    page = report(folder, out, say=_say)
    output.print(f"Report: {page}\nFigures: {page.parent / 'figures'}", highlight=False, soft_wrap=True)


@click.command("import")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("study"),
    show_default=True,
    help="the study beside whose runs they are to stand",
)
@click.pass_context
def import_command(context: click.Context, folder: Path, out: Path) -> int:
    """Result folders of the paper's own code (config.json, eval, study) as runs, for the report.

    FOLDER is one of them, or holds them. Exit status 1 where some of them could not be read.
    """
    made, refused = import_runs(folder, out)
    for path, reason in refused:
        _say(f"left out: {path}: {reason}")
    if not made:
        raise click.ClickException(f"none of the {len(refused)} folders could be read.")
    output.print(
        f"{len(made)} runs imported into {out / 'imported'}; now: varangian report {out}",
        highlight=False,
        soft_wrap=True,
    )
    context.exit(1 if refused else 0)
