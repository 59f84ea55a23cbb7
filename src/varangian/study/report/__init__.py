"""The report: what many runs say together, as one page, figures, and a table of the paper's claims."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from ...core.references import importing
from ...runs.environment import versions
from ...runs.files import folders_in, line_of_text, make_folder, number, read_json, whole, write_whole
from ...runs.folders import ENVIRONMENT
from ...runs.results import Result
from ..outcomes import Outcome, collect, complete, each_once, from_result, write_csv
from ..paper import Verdict, counted, main_study, missing, of_the_paper, verdicts
from . import figures, style
from .layout import Group, by_batch_size, groups
from .page import Picture, SweepRecord, render
from .statistics import Summary, summarize

MAX_RECORDS, MAX_RECORD = 1000, 2**16  # of sweeps: files, and bytes of each
MAX_SHOWN = 10  # machines and versions of plain runs on the page
PAGE_DPI = 110  # of pictures within the page
MAX_SIDE, MAX_PANELS, MAX_LINES = 100, 20_000, 3000  # of figures that can be drawn, and looked at
SILENCE = 5.0  # seconds between two words on how far the figures are
__all__ = ["Summary", "SweepRecord", "judge", "report", "report_results", "summarize"]


@importing(False)
def report(
    source: str | Path | Sequence[Outcome],
    out: str | Path | None = None,
    command: str | None = None,
    say: Callable[[str], object] | None = None,
    record: SweepRecord | None = None,
) -> Path:
    """Writes ``report.html``, ``claims.csv`` and ``figures/*.png, *.pdf`` for some runs.

    Args:
        source: a folder of runs or of a sweep, a runs.csv, or the outcomes themselves.
        out: where to write; by default the folder of the runs.
        command: what made the runs, if their folder does not say.
        say: is told, in a line each, how far it is, and what is left out; without it, warnings say the latter. The page
            says it too.
        record: the same with versions, processor and date.

    Returns:
        The page: one file that needs no network.

    Raises:
        ValueError: there are no runs, or none of them was attacked.
    """
    records: list[SweepRecord] = []
    if isinstance(source, (str, Path)):
        source = Path(source).expanduser()
        folder = source if source.is_dir() else source.parent
        outcomes, left_out = collect(source)
        records = _records(folder / "sweeps") or _environments(folder)
        out = folder if out is None else out
    else:
        outcomes, left_out = each_once(source)
    unshown = [o for o in outcomes if math.isnan(o.max_accuracy)]
    if unshown:
        left_out.append(
            f"{len(unshown)} runs that predict numbers: what is shown here is accuracy, and they have none."
        )
        outcomes = [o for o in outcomes if not math.isnan(o.max_accuracy)]
    if command is not None or record is not None:
        records.insert(0, record or SweepRecord(command or ""))
    out = Path("." if out is None else out).expanduser()
    found = groups(outcomes)
    if not found:
        raise ValueError("none of these runs was attacked: there is nothing to compare.")
    _check_size(found)
    for line in left_out:
        say(f"left out: {line}") if say is not None else warnings.warn(f"left out: {line}", stacklevel=2)
    drawn = make_folder(out, "figures")
    pictures = []
    told, names = _Told(say), set[str]()
    for group in found:
        for name, figure in figures.draw(group):
            told.one(group)
            style.save(figure, drawn / _unused(name, names))
            if name.startswith(("boxes-max", "heat-max")):
                pictures.append(Picture(group.title, style.png(figure, PAGE_DPI), name.startswith("heat")))
    for same in by_batch_size(found):
        figure = figures.by_noise(same)
        name = f"noise-{figures.slug(f'{same[0].name}-{same[0].study}')}"
        style.save(figure, drawn / _unused(name, names))
        title = f"{same[0].name}: accuracies at several batch sizes"
        span = figure.axes[0].get_xlim()
        parts = tuple(style.png(figures.by_noise(same, only, span), 2 * PAGE_DPI) for only in range(len(same)))
        pictures.append(Picture(title, style.png(figure, 2 * PAGE_DPI), always=True, narrow=parts))
    judged = judge(found)
    _write_claims(out / "claims.csv", judged)
    page = render(found, judged, records, missing(outcomes), pictures, [*left_out, *_notes(outcomes, found)])
    path = out / "report.html"
    write_whole(path, lambda file: file.write(page.encode()))
    return path


def _unused(name: str, used: set[str]) -> str:
    """A file name that no other figure has: names are cut, and what tells long titles apart may be cut off."""
    number, found = 1, name
    while found in used:
        number += 1
        found = f"{name}-no{number}"
    used.add(found)
    return found


class _Told:
    """Says from time to time how many figures are drawn."""

    def __init__(self, say: Callable[[str], object] | None) -> None:
        self.say, self.count, self.last = say, 0, time.monotonic()

    def one(self, group: Group) -> None:
        if self.say is not None and time.monotonic() - self.last > SILENCE:
            self.say(f"{self.count} figures drawn; now those of {group.title} ({group.study}) ...")
            self.last = time.monotonic()
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


def _notes(outcomes: Sequence[Outcome], found: Sequence[Group]) -> list[str]:
    """A line on all runs that are in no comparison, and on pairs that are in no verdict."""
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


def _check_size(found: Sequence[Group]) -> None:
    """Refuses figures larger than matplotlib draws, or more of them than anybody waits for."""
    panels = 0
    for g in found:
        cells = len(g.columns) * len(g.rules) * len(g.kinds) * len(g.rates)
        panels += 4 * cells
        if max(len(g.columns), len(g.rules)) > MAX_SIDE or cells > MAX_LINES:
            raise ValueError(
                f"{g.title}: {len(g.columns)} adversaries, {len(g.rules)} rules and {len(g.rates)} learning rates are "
                f"too much for one figure (at most {MAX_SIDE} of each, {MAX_LINES:,} together): report fewer at a time."
            )
    if panels > MAX_PANELS:
        raise ValueError(f"these runs need {panels:,} panels, over {MAX_PANELS:,}: report fewer at a time.")


def report_results(results: Sequence[Result], out: str | Path, command: str = "varangian demo") -> Path:
    """The same for runs that are at hand and were kept nowhere: what `varangian demo` ends with."""
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


def _records(folder: Path) -> list[SweepRecord]:
    """What sweep() noted; a file that cannot be read says nothing."""
    found = []
    for path in sorted(folder.glob("*.json"))[-MAX_RECORDS:] if folder.is_dir() else ():
        try:
            values = read_json(path, MAX_RECORD)
            made = {str(k): str(v) for k, v in dict(values["versions"]).items()}
            jobs, threads, cores, done = (whole(values[name], name) for name in ("jobs", "threads", "cores", "done"))
            seconds = number(values["seconds"], "seconds", 0)
            texts = str(values["command"]), str(values["started"])
            processor = str(values.get("processor", ""))
            found.append(SweepRecord(*texts, seconds, jobs, threads, cores, done, made, processor))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _environments(folder: Path) -> list[SweepRecord]:
    """What complete run folders noted themselves: a record for each machine and its versions."""
    started: dict[tuple[tuple[tuple[str, str], ...], str], list[str]] = {}
    for place in (folder, folder / "runs"):
        for run in folders_in(place, folder, complete, lambda _: None):
            try:
                sessions = read_json(run / ENVIRONMENT)["sessions"]
                for session in sessions[:MAX_RECORDS]:
                    texts = {name: line_of_text(session[name], name) for name in (*versions(), "processor", "started")}
                    made = tuple((name, texts[name]) for name in versions())
                    started.setdefault((made, texts["processor"]), []).append(texts["started"])
            except (OSError, ValueError, KeyError, TypeError):  # it says nothing, and decides nothing else
                continue
    return [
        SweepRecord("", " to ".join(dict.fromkeys((min(dates), max(dates)))), versions=dict(made), processor=processor)
        for (made, processor), dates in list(started.items())[:MAX_SHOWN]
    ]
