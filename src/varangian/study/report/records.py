"""What computed the runs of a folder, as sweeps and runs noted it themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...runs.environment import versions
from ...runs.files import folders_in, line_of_text, number, read_json, whole
from ...runs.folders import ENVIRONMENT
from ..outcomes import complete

MAX_RECORDS, MAX_RECORD = 1000, 2**16  # of sweeps: files, and bytes of each
MAX_SHOWN = 10  # machines and versions of plain runs on the page


@dataclass(frozen=True)
class SweepRecord:
    """What made some of the runs."""

    command: str
    started: str = ""
    seconds: float = 0.0
    jobs: int = 0
    threads: int = 0
    cores: int = 0
    done: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    processor: str = ""


def of_sweeps(folder: Path) -> list[SweepRecord]:
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


def of_runs(folder: Path) -> list[SweepRecord]:
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
