"""The report: what many runs say together, as one page, figures, and a table of the paper's claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..experiment import Result
from ..outcomes import Outcome, from_result, gather, write_csv
from ..paper import Verdict, missing, verdicts
from . import figures
from .layout import groups
from .page import SweepRecord, render
from .statistics import Summary, summarize

__all__ = ["Summary", "report", "report_results", "summarize"]


def report(source: str | Path | Sequence[Outcome], out: str | Path | None = None, command: str | None = None) -> Path:
    """Writes ``report.html``, ``claims.csv`` and ``figures/*.png, *.pdf`` for some runs.

    Args:
        source: a folder of runs or of a sweep, a runs.csv, or the outcomes themselves.
        out: where to write; by default the folder of the runs.
        command: what made the runs, if their folder does not say.

    Returns:
        The page: one file that needs no network.

    Raises:
        ValueError: there are no runs, or none of them was attacked.
    """
    records: list[SweepRecord] = []
    if isinstance(source, (str, Path)):
        source = Path(source)
        folder = source if source.is_dir() else source.parent
        outcomes = gather(source)
        records = _records(folder / "sweeps")
        out = folder if out is None else out
    else:
        outcomes = list(source)
    if command is not None:
        records.insert(0, SweepRecord(command))
    out = Path("." if out is None else out)
    found = groups(outcomes)
    if not found:
        raise ValueError("none of these runs was attacked: there is nothing to compare.")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    pictures = []
    for group in found:
        for name, figure in figures.draw(group):
            png, _ = figures.save(figure, out / "figures" / name)
            if name.startswith("boxes-max"):
                pictures.append((group.title, png.read_bytes()))
    studies = {
        study: [p for g in found if g.study == study for p in g.pairs]
        for study in dict.fromkeys(g.study for g in found)
    }
    judged = {study: verdicts(members) for study, members in studies.items()}
    _write_claims(out / "claims.csv", judged)
    page = render(found, judged, records, missing(outcomes), pictures)
    path = out / "report.html"
    temporary = path.with_suffix(".partial")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


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
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            values = json.loads(path.read_text())
            versions = {str(k): str(v) for k, v in dict(values["versions"]).items()}
            made = int(values["jobs"]), int(values["threads"]), int(values["cores"]), int(values["done"])
            found.append(
                SweepRecord(str(values["command"]), str(values["started"]), float(values["seconds"]), *made, versions)
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
