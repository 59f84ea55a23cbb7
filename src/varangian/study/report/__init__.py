"""The report: what many runs say together, as one page, figures, and tables."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ...core.checks import cut
from ...core.references import importing
from ...runs.experiment import Experiment
from ...runs.files import make_folder, write_whole
from ...runs.results import Result
from ..grid import grids_of
from ..outcomes import Outcome, collect, each_once, from_result, read_failed, unfinished, write_csv
from ..paper import Verdict, counted, main_study, missing, of_the_paper, verdicts
from . import figures, maps, style
from .cells import Cells, grid_of
from .layout import Group, by_batch_size, groups
from .page import CURVES, Picture, render
from .records import SweepRecord, of_runs, of_sweeps
from .statistics import Summary, summarize

PAGE_DPI = 110  # of pictures within the page
MAX_SIDE, MAX_PANELS, MAX_LINES = 100, 20_000, 3000  # of figures that can be drawn, and looked at
SILENCE = 3.0  # seconds between two words on how far it is
__all__ = ["Summary", "SweepRecord", "judge", "report", "report_results", "summarize"]


@importing(False)
def report(
    source: str | Path | Sequence[Outcome],
    out: str | Path | None = None,
    command: str | None = None,
    *,
    say: Callable[[str], object] | None = None,
    record: SweepRecord | None = None,
) -> Path:
    """Returns the page, one file that needs no network, which shows some runs as the grid that their settings make.

    Beside it are written ``cells.csv`` (a row a cell: mean, deviation, n), ``worst.csv`` (the worst attack of each
    rule) where attacks vary, ``classes.csv`` (the accuracy on each class) where runs know it, ``claims.csv`` where
    momentum stands at both places in some of them, and ``figures/*.png, *.pdf``.

    Args:
        source: a folder of runs or of a sweep, a runs.csv, or the outcomes themselves.
        out: where to write; by default the folder of the runs.
        command: what made the runs, if their folder does not say.
        say: is told, in a line each, how far it is, and what is left out; without it, warnings say the latter. The page
            says it too.
        record: the same with versions, processor and date.

    Raises:
        ValueError: there are no runs.

    Example:
        >>> import tempfile
        >>> import varangian as vg
        >>> with tempfile.TemporaryDirectory() as out:
        ...     kept = vg.run(vg.Experiment(model="linear", steps=2), out)
        ...     page = report(out)
        ...     page.name, page.read_text()[:15]
        ('report.html', '<!doctype html>')
    """
    told = _Told(say)
    records: list[SweepRecord] = []
    trouble: list[tuple[Experiment, str]] = []
    planned: list[Experiment] = []
    if isinstance(source, (str, Path)):
        source = Path(source).expanduser()
        folder = source if source.is_dir() else source.parent
        told.now(f"reading the runs of {source} ...")
        outcomes, left_out = collect(source)
        records = of_sweeps(folder / "sweeps") or of_runs(folder)
        if source.is_dir():
            trouble, planned = _trouble(source, outcomes), _planned(source)
        out = folder if out is None else out
    else:
        outcomes, left_out = each_once(source)
        if not outcomes:
            raise ValueError("there are no runs to report.")
    if command is not None or record is not None:
        records.insert(0, record or SweepRecord(command or ""))
    out = Path("." if out is None else out).expanduser()
    for line in left_out:
        say(f"left out: {line}") if say is not None else warnings.warn(f"left out: {line}", stacklevel=2)
    grid = grid_of(outcomes, trouble, planned)
    found = groups(o for o in outcomes if not math.isnan(o.final_accuracy))  # the paper asks of accuracies
    asked = any(g.pairs for g in found)
    told.soon(f"{counted(len(outcomes), 'run')} read: {maps.counts(grid) or 'one cell'}")
    make_folder(out, "figures")
    notes, drawn = [*left_out, *_notes(outcomes, found, asked), *_doubles(grid)], found if asked else []
    if asked and (too_large := _too_large(found)):
        notes.append(too_large)
        drawn = []
    title = _title(grid)
    pictures = _draw(drawn, grid, title, out / "figures", told)
    if isinstance(source, Path) and source.is_dir():
        pictures += _workers(source, len(outcomes), out / "figures")
    notes += [line for group in drawn for line in figures.not_drawn(group)]
    files = ["cells.csv, a row a cell"]
    write_csv(out / "cells.csv", *maps.cell_rows(grid))
    if grid.attack_column:
        write_csv(out / "worst.csv", *maps.worst_rows(grid))
        files.append("worst.csv, the worst attack of each")
    if maps.class_accuracies(grid):
        write_csv(out / "classes.csv", *maps.class_rows(grid))
        files.append("classes.csv, the accuracy on each class")
    judged = judge(found) if asked else {}
    if asked:
        _write_claims(out / "claims.csv", judged)
        files.append("claims.csv")
    told.soon("writing the page ...")
    page = render(
        found, judged, records, missing(outcomes), pictures, notes, grid=grid,
        files=", ".join([*files, "and figures/, the same as PNG and PDF"]),
    )  # fmt: skip
    path = out / "report.html"
    write_whole(path, lambda file: file.write(page.encode()))
    return path


def _title(grid: Cells) -> str:
    """Of the figures of a grid: data set and model, where all runs share them."""
    names = [axis.name for axis in grid.axes]
    e = next(o for cell in grid.cells.values() for o in cell.outcomes).experiment
    shared = [str(getattr(e, name)) for name in ("dataset", "model") if name not in (*names, *grid.depend)]
    return cut(", ".join(shared)) or "All runs"


@style.house()
def _draw(found: Sequence[Group], grid: Cells, title: str, folder: Path, told: _Told) -> list[Picture]:
    """Saves all figures, and answers those that the page holds."""
    pictures, names = [], set[str]()

    def save(made: Iterator[tuple[str, Figure]], of: str) -> Iterator[tuple[str, Figure]]:
        for name, figure in made:
            told.one(of)
            style.save(figure, folder / _unused(name, names))
            yield name, figure

    for group in found:
        for name, figure in save(figures.draw(group), f"{group.title} ({group.study})"):
            if name.startswith("boxes-max"):
                pictures.append(Picture(group.title, style.png(figure, PAGE_DPI)))
    for same in by_batch_size(found):
        figure = figures.by_noise(same)
        name = f"noise-{figures.slug(f'{same[0].name}-{same[0].study}')}"
        style.save(figure, folder / _unused(name, names))
        span = figure.axes[0].get_xlim()
        parts = tuple(style.png(figures.by_noise(same, only, span), 2 * PAGE_DPI) for only in range(len(same)))
        title_of = f"{same[0].name}: accuracies at several batch sizes"
        pictures.append(Picture(title_of, style.png(figure, 2 * PAGE_DPI), always=True, narrow=parts))
    for name, figure in save(figures.draw_grid(grid, title, bool(found)), "the grid"):
        if name == "curves":
            pictures.append(Picture(f"{CURVES}{title}", style.png(figure, PAGE_DPI)))
    if cells := figures.moving(grid):
        figure = figures.moves(cells, title)
        style.save(figure, folder / _unused("moves", names))
        shown = range(min(len(cells), figures.MOST_MOVED))
        parts = tuple(style.png(figures.moves(cells, title, only), 2 * PAGE_DPI) for only in shown)
        pictures.append(Picture(f"{title}: where momentum stood", style.png(figure, 2 * PAGE_DPI), True, parts))
    return pictures


def _workers(folder: Path, runs: int, figures: Path) -> list[Picture]:
    """Of a few runs, workers over steps, where that was recorded; of more ``varangian suspects`` has them."""
    from .. import suspects  # which draws in this style itself

    pictures = []
    for name, title, figure in suspects.pictures(folder) if runs <= suspects.TOGETHER else ():
        style.save(figure, figures / name)
        pictures.append(Picture(title, style.png(figure, 2 * PAGE_DPI), always=True))
    return pictures


def _unused(name: str, used: set[str]) -> str:
    """A file name that no other figure has: names are cut, and what tells long titles apart may be cut off."""
    number, found = 1, name
    while found in used:
        number += 1
        found = f"{name}-no{number}"
    used.add(found)
    return found


class _Told:
    """Says from time to time how far it is."""

    def __init__(self, say: Callable[[str], object] | None) -> None:
        self.say, self.count, self.last = say, 0, time.monotonic()

    def now(self, text: str) -> None:
        if self.say is not None:
            self.say(text)
            self.last = time.monotonic()

    def soon(self, text: str) -> None:
        if time.monotonic() - self.last > SILENCE:
            self.now(text)

    def one(self, of: str) -> None:
        self.soon(f"{counted(self.count, 'figure')} drawn; now those of {of} ...")
        self.count += 1


def judge(found: Sequence[Group]) -> dict[str, list[Verdict]]:
    """The claims put to the paper's runs, all data sets of a study together as in the paper; to others by group."""
    judged: dict[str, list[Verdict]] = {}
    for study in dict.fromkeys(g.study for g in found):
        groups = [g for g in found if g.study == study]
        members = [p for g in groups for p in g.pairs]
        if of_the_paper(members):
            judged[study] = verdicts(members)
        else:
            judged |= {f"{g.title} ({study})": verdicts(g.pairs) for g in groups if g.pairs}
    return judged


def _trouble(folder: Path, outcomes: Sequence[Outcome]) -> list[tuple[Experiment, str]]:
    """Runs of the folder that have no result: those that failed, as sweeps noted, and those that are not complete."""
    there = {o.experiment.digest for o in outcomes}
    reasons = {e.digest: (e, f"failed: {reason}") for e, reason in read_failed(folder)}
    for e in unfinished(folder):
        reasons.setdefault(e.digest, (e, "begun, and not complete"))
    return [told for digest, told in reasons.items() if digest not in there]


def _planned(folder: Path) -> list[Experiment]:
    """What was to be run there, where only sweeps of grids ran."""
    return [e for grid in grids_of(folder) for e in grid.experiments()]


def _doubles(grid: Cells) -> list[str]:
    names = ", ".join(o.experiment.name for o in grid.doubles[:3])
    return [f"{counted(len(grid.doubles), 'run')} kept already, but for whether it was measured: {names}"] * bool(
        grid.doubles
    )


def _notes(outcomes: Sequence[Outcome], found: Sequence[Group], asked: bool) -> list[str]:
    """Where the paper's question is asked: a line on all runs that are in no comparison, and on pairs in no verdict."""
    if not asked:
        return []
    notes = []
    grouped = {o.key for g in found for o in g.outcomes}
    apart = [o.experiment.name for o in outcomes if o.key not in grouped]
    if apart:
        more = f" and {len(apart) - 3:,} more" if len(apart) > 3 else ""
        notes.append(
            f"{counted(len(apart), 'run')} without attack, beside which none was attacked: {', '.join(apart[:3])}{more}"
        )
    for g in found:
        notes += [f"{g.title} ({g.study}): {line}" if len(found) > 1 else line for line in g.account.notes()]
    for study in dict.fromkeys(g.study for g in found):
        members = [p for g in found if g.study == study for p in g.pairs]
        others = sum(not main_study(p) for p in members)
        if 0 < others < len(members):
            notes.append(
                f"{others:,} of {counted(len(members), 'pair')} ({study}) are not of the paper's main study: "
                "no claim asks them"
            )
    return notes


def _too_large(found: Sequence[Group]) -> str:
    """Why figures of the paper's question are not drawn: larger than matplotlib draws, or more than anybody reads."""
    panels = 0
    for g in found:
        cells = len(g.columns) * len(g.rules) * len(g.kinds) * len(g.rates)
        panels += 4 * cells
        if max(len(g.columns), len(g.rules)) > MAX_SIDE or cells > MAX_LINES:
            return (
                f"figures of pairs: {g.title} has {len(g.columns)} adversaries, {len(g.rules)} rules and "
                f"{len(g.rates)} learning rates, too much for one figure (at most {MAX_SIDE} of each, {MAX_LINES:,} "
                "together)"
            )
    return f"figures of pairs: they would need {panels:,} panels, over {MAX_PANELS:,}" if panels > MAX_PANELS else ""


def report_results(results: Sequence[Result], out: str | Path, command: str = "varangian demo") -> Path:
    """The same for runs that are at hand and were kept nowhere: what ``varangian demo`` ends with."""
    return report([from_result(result) for result in results], out, command)


def _write_claims(path: Path, judged: dict[str, list[Verdict]]) -> None:
    rows = [
        [
            *(v.claim.id, study, v.claim.text, v.finding.ours if v.finding else "", v.claim.theirs),
            *(v.claim.criterion, v.word, str(v.pairs), str(v.claim.total)),
        ]
        for study, found in judged.items()
        for v in found
    ]
    write_csv(path, ["claim", "study", "text", "ours", "theirs", "criterion", "verdict", "pairs", "their_pairs"], rows)
