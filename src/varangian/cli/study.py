"""The commands of the study: reproduce, report, import."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..core.checks import printable, shown
from ..runs.building import open_dataset
from ..runs.experiment import Experiment
from ..simulation.data import DataError
from ..study import paper
from ..study.paper import PANELS, Verdict
from ..study.report import judge, report
from ..study.report.layout import groups
from ..study.report.legacy import import_runs
from ..study.sweep import Sweep, sweep

output = Console()
notices = Console(stderr=True)


class _Numbers(click.ParamType):
    """1-5, or 1,3,7: whole numbers, in this order, each once."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found: list[int] = []
        for piece in str(value).split(","):
            match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", piece)
            if match is None:
                self.fail(f"{shown(value)} is not of the form 1-5 or 1,3,7.", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or len(found) + last - first >= 10_000:
                self.fail(f"{shown(value)} goes down, or holds more than 10,000 seeds.", param, ctx)
            found += range(first, last + 1)
        return tuple(dict.fromkeys(found))


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


@click.command("reproduce")
@click.option(
    "--panel",
    "panels",
    multiple=True,
    type=click.Choice(list(PANELS)),
    help="which part of the study; may be given several times  [all; with --quick fashion-mnist]",
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
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("study"),
    show_default=True,
    help="where runs, tables, figures and the report go; the same again resumes",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="folder of data files  [$VARANGIAN_DATA or the user's data folder]"
)
@click.option("--jobs", type=click.IntRange(1), help="runs at a time  [as many as cores; two to a GPU]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of each run")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option(
    "--shard",
    type=_Shard(),
    default="1/1",
    show_default=True,
    help="only every N-th run, from the i-th on: for batch schedulers that share --out",
)
@click.option("--time-budget", type=_Duration(), help="start no run that would not end within 90s, 30m, 2h")
@click.option("--ray", metavar="ADDRESS", help="run on a Ray cluster: auto, local, or ray://host:port")
@click.pass_context
def reproduce(
    context: click.Context, panels: tuple[str, ...], profile: paper.Profile, seeds: tuple[int, ...], quick: bool,
    out: Path, data: Path | None, jobs: int | None, threads: int, device: str, shard: tuple[int, int],
    time_budget: float | None, ray: str | None,
) -> int:  # fmt: skip
    """The paper's study: all its runs, its figures, and its claims put to the test.

    \b
    Example: varangian reproduce --quick
             varangian reproduce --panel fashion-mnist --seeds 1-5
    What is complete is not run again: the same command resumes. Exit status 1 where a run failed.
    """
    chosen = panels or (("fashion-mnist",) if quick else tuple(PANELS))
    present = _with_data(chosen, data)
    if not present:
        raise click.ClickException("none of the chosen panels has its data.")
    experiments = (paper.quick if quick else paper.grid)(present, seeds, profile)
    if device != "cpu":
        experiments = [Experiment.from_dict(e.to_dict() | {"device": device}) for e in experiments]
    words = shlex.join(["varangian", *sys.argv[1:]])
    result = sweep(experiments, out, jobs, threads, shard, time_budget, ray, data, notices, words)
    if not result.outcomes:
        _say("no run is complete yet, so there is no report.")
    elif any(o.experiment.attack for o in result.outcomes):
        page = report(out, say=_say)
        for study, found in judge(groups(result.outcomes)).items():
            _show_claims(found, study)
        output.print(
            f"Report: {page}\nFigures: {out / 'figures'}\nTable: {out / 'runs.csv'}", highlight=False, soft_wrap=True
        )
    _show_rest(result)
    context.exit(1 if result.failed else 0)


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
    if result.left > len(result.failed):
        _say(f"{result.left - len(result.failed)} runs are left; the same command goes on with them.")


@click.command("report")
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="where it goes  [FOLDER]")
def report_command(folder: Path, out: Path | None) -> None:
    """A page, figures and the claims table of runs: of a folder of runs, a study, or a runs.csv."""
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
