"""What there is to see: a run, a sweep, a folder of them, each as of now."""

from __future__ import annotations

import io
import json
import math
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ...core.checks import cut, printable
from ...runs.files import MAX_ENTRIES, no_follow, number, number_of, read_json, whole, whole_of
from ...runs.folders import EVALUATIONS, EVENTS, LOCK, MAX_JSON, METRICS, RESULT, SETTINGS, sessions_of

State = Literal["running", "quiet", "complete", "stopped", "unreadable"]
RECENT = 15.0  # seconds after which a run that no process of this machine holds is no longer taken for running
SILENT = 60.0  # seconds after which a sweep is not, that writes each 10
TAIL = 2**16  # bytes at the end of a table that are looked at
MAX_SWEEPS, MAX_RECORD = 1000, 2**16  # files, and bytes of each
FAILURES = 20  # that are told of a sweep


@dataclass(frozen=True)
class RunSeen:
    """A run, as its folder shows it.

    Attributes:
        folder: of it.
        state: "running"; "quiet": not complete, and no process of this machine is at it, so that it was interrupted or
            goes on elsewhere; "complete"; "stopped": complete before its last step; or "unreadable".
        step, steps: how many steps are done, as far as they are written down, of how many.
        accuracy, best, loss: the newest and the greatest accuracy on the test set, and the newest loss there.
        curve: the accuracies of the evaluations, at most the last hundreds.
        seconds: how long a complete run took.
        rate: steps a second of a running one, since it was begun or resumed.
        left: seconds until it ends, at this rate.
        age: seconds since it last wrote.
        why: it stopped, or cannot be read.
    """

    folder: Path
    state: State
    step: int = 0
    steps: int = 0
    accuracy: float | None = None
    best: float | None = None
    loss: float | None = None
    curve: tuple[float, ...] = ()
    seconds: float | None = None
    rate: float | None = None
    left: float | None = None
    age: float | None = None
    why: str | None = None

    @property
    def name(self) -> str:
        return printable(self.folder.name)


@dataclass(frozen=True)
class SweepSeen:
    """A sweep, as it says of itself each ten seconds.

    Attributes:
        command: that started it.
        state: "running"; "ended", and whoever called it has heard of it; "quiet": it says nothing any more, and was
            interrupted or killed.
        runs: of how many it is, of which ``complete`` were complete when it last wrote, and ``failed`` failed here.
        jobs: how many runs at a time.
        left: seconds that it then thought the rest takes; None where that is not known.
        failures: the last of those that failed, each in a line.
    """

    command: str
    state: Literal["running", "ended", "quiet"]
    runs: int
    complete: int
    failed: int
    jobs: int
    seconds: float
    left: float | None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """A folder at a moment.

    Attributes:
        folder: what is looked at.
        runs: those that are there: the running ones first, then the ones that ended badly, then the newest.
        sweeps: those that wrote there, the newest last.
        notes: what could not be read, a line each.
    """

    folder: Path
    runs: tuple[RunSeen, ...]
    sweeps: tuple[SweepSeen, ...]
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many runs are in which state."""
        return dict(Counter(run.state for run in self.runs))

    @property
    def expected(self) -> int:
        """How many runs there are to be, as far as a sweep that is under way says so."""
        return max([len(self.runs), *(s.runs for s in self.sweeps if s.state == "running")])

    @property
    def left(self) -> float | None:
        """Seconds until all that is under way ends, where all of it says so."""
        sweeps = [s.left for s in self.sweeps if s.state == "running"]
        known = sweeps or [run.left for run in self.runs if run.state == "running"]
        found = [left for left in known if left is not None]
        return max(found) if found and len(found) == len(known) else None

    @property
    def over(self) -> bool:
        """Whether there is something, and nothing of it goes on or could; what cannot be read, is not waited for."""
        running = any(s.state == "running" for s in self.sweeps)
        return bool(self.runs) and not running and not {"running", "quiet"} & self.counts.keys()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of curves only the newest and the best."""
        runs = [
            {"folder": str(run.folder)}
            | {name: _plain(v) for name, v in asdict(replace(run, curve=())).items() if name not in ("folder", "curve")}
            for run in self.runs
        ]
        return {
            "folder": str(self.folder),
            "counts": self.counts,
            "expected": self.expected,
            "left": _plain(self.left),
            "over": self.over,
            "runs": runs,
            "sweeps": [{name: _plain(value) for name, value in asdict(s).items()} for s in self.sweeps],
            "notes": list(self.notes),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


class Watcher:
    """Looks at a folder again and again: of a run, of runs, or of a sweep.

    Args:
        folder: what to look at; it may be empty, and become one of these.

    Example:
        >>> import tempfile
        >>> import varangian as vg
        >>> with tempfile.TemporaryDirectory() as out:
        ...     watcher = Watcher(out)
        ...     before = watcher.look().counts
        ...     kept = vg.run(vg.Experiment(model="linear", steps=2), out)
        ...     after = watcher.look()
        >>> before, after.counts, after.over, after.runs[0].accuracy == kept.final_accuracy
        ({}, {'complete': 1}, True, True)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._complete: dict[Path, tuple[tuple[int, int], RunSeen]] = {}

    def look(self) -> View:
        """
        Raises:
            OSError: the folder is not there, or may not be read.
            ValueError: it holds too much.
        """
        notes: list[str] = []
        held, now = _held(), time.time()
        runs = []
        for folder in self._folders(notes):
            try:
                runs.append(self._run(folder, held, now))
            except FileNotFoundError:
                continue  # removed in between
            except (OSError, ValueError, KeyError, TypeError) as error:
                runs.append(RunSeen(folder, "unreadable", why=_line(error)))
        order = {"running": 0, "unreadable": 1, "quiet": 2, "stopped": 3, "complete": 4}
        runs.sort(key=lambda run: (order[run.state], run.age or 0.0, run.folder.name))
        return View(self.folder, tuple(runs), tuple(_sweeps(self.folder / "sweeps", now, notes)), tuple(notes))

    def _folders(self, notes: list[str]) -> Iterator[Path]:
        if (self.folder / SETTINGS).exists() or (self.folder / LOCK).exists():
            yield self.folder
            return
        inside = self.folder.resolve()
        for place in (self.folder / "runs", self.folder):
            if place.is_symlink() and not place.resolve().is_relative_to(inside) and place != self.folder:
                notes.append(f"{printable(str(place))} leads out of the folder, and is not followed.")
                continue
            try:
                entries = sorted(os.scandir(place), key=lambda entry: entry.name)
            except FileNotFoundError:
                if place == self.folder:
                    raise
                continue
            except NotADirectoryError:
                continue
            if len(entries) > MAX_ENTRIES:
                raise ValueError(f"{place} holds more than {MAX_ENTRIES:,} entries.")
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and any(
                    os.path.lexists(os.path.join(entry.path, name)) for name in (SETTINGS, RESULT, LOCK)
                ):
                    yield Path(entry.path)

    def _run(self, folder: Path, held: frozenset[tuple[int, int, int]] | None, now: float) -> RunSeen:
        try:
            found = os.lstat(folder / RESULT)
        except FileNotFoundError:
            return _under_way(folder, held, now)
        mark = found.st_mtime_ns, found.st_size
        cached = self._complete.get(folder)
        if cached is None or cached[0] != mark:
            cached = self._complete[folder] = mark, _completed(folder)
        return replace(cached[1], age=max(0.0, now - found.st_mtime))


def _completed(folder: Path) -> RunSeen:
    result, settings = read_json(folder / RESULT, MAX_JSON), read_json(folder / SETTINGS, MAX_JSON)
    why = result["stopped"]
    _, rows = _tail(folder / EVALUATIONS)
    accuracy, best, loss = (
        None if result[name] is None else number(result[name], name)
        for name in ("final_accuracy", "max_accuracy", "final_loss")
    )
    return RunSeen(
        folder, "complete" if why is None else "stopped", whole(result["steps"], "steps"),
        whole(settings["steps"], "steps"), accuracy, best, loss, _curve(rows),
        seconds=number(result["seconds"], "seconds", 0), why=None if why is None else cut(printable(str(why))),
    )  # fmt: skip


def _under_way(folder: Path, held: frozenset[tuple[int, int, int]] | None, now: float) -> RunSeen:
    times = [_time(folder / name) for name in (METRICS, EVALUATIONS, EVENTS, SETTINGS)]
    age = max(0.0, now - max(times)) if any(times) else None
    here = _identity(folder / LOCK)
    running = (held is not None and here in held) or (age is not None and age <= RECENT)
    state: State = "running" if running else "quiet"
    if not (folder / SETTINGS).exists():  # it is only just being made
        return RunSeen(folder, state, age=age)
    steps = whole(read_json(folder / SETTINGS, MAX_JSON)["steps"], "steps")
    _, rows = _tail(folder / METRICS)
    step = 1 + whole_of(rows[-1]["step"], "step") if rows else 0
    _, evaluations = _tail(folder / EVALUATIONS)
    curve = _curve(evaluations)
    rate = left = None
    sessions = sessions_of(folder)
    if running and step and sessions:
        began, started = whole(sessions[-1]["from_step"], "from_step"), str(sessions[-1]["started"])
        took = now - (age or 0.0) - datetime.fromisoformat(started).timestamp()
        if step > began and took > 0:
            rate = (step - began) / took
            left = (steps - step) / rate
    loss = _value(evaluations[-1].get("loss", "")) if evaluations else None
    return RunSeen(
        folder, state, min(step, steps), steps, curve[-1] if curve else None, max(curve, default=None), loss, curve,
        rate=rate, left=left, age=age,
    )  # fmt: skip


def _curve(rows: Sequence[dict[str, str]]) -> tuple[float, ...]:
    values = [_value(row.get("accuracy", "")) for row in rows]
    return tuple(value for value in values if value is not None)


def _value(text: str) -> float | None:
    """A finite number, or None."""
    try:
        return number_of(text, "a cell")
    except ValueError:
        return None


def _tail(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The header of a table that somebody may be writing, and the last of its rows that are whole."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise ValueError(f"{path} is not a plain file.")
        with open(path, "rb", opener=no_follow) as file:
            header = file.readline(TAIL).decode("ascii", "replace").rstrip("\n").split(",")
            start = file.tell()
            size = file.seek(0, io.SEEK_END)
            file.seek(max(start, size - TAIL))
            if size - TAIL > start:
                file.readline(TAIL)  # the rest of a row
            body = file.read(TAIL).decode("ascii", "replace")
    except FileNotFoundError:
        return [], []
    rows = [line.split(",") for line in body.split("\n")[:-1]]
    return header, [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


def _sweeps(folder: Path, now: float, notes: list[str]) -> Iterator[SweepSeen]:
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.glob("*.json"))[-MAX_SWEEPS:]:
        try:
            values = read_json(path, MAX_RECORD)
            if "runs" not in values:  # of a version that did not say how far it had come
                continue
            silent = now - os.lstat(path).st_mtime > SILENT
            counts = {name: whole(values[name], name) for name in ("runs", "complete_before", "done", "failed", "jobs")}
            left = values["left"]
            state = "ended" if values["ended"] is True else "quiet" if silent else "running"
            yield SweepSeen(
                cut(printable(str(values["command"]))), state, counts["runs"],
                counts["complete_before"] + counts["done"], counts["failed"], counts["jobs"],
                number(values["seconds"], "seconds", 0), None if left is None else number(left, "left", 0),
                tuple(cut(printable(str(line))) for line in list(values["failures"])[-FAILURES:]),
            )  # fmt: skip
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{printable(path.name)}: {_line(error)}")


def _line(error: Exception) -> str:
    said = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return cut(printable(said))


def _time(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return os.major(found.st_dev), os.minor(found.st_dev), found.st_ino


def _held() -> frozenset[tuple[int, int, int]] | None:
    """Which files are locked by processes of this machine, as (major, minor, inode); None where nobody says.

    Asking for a lock, even to give it back at once, would keep out a run that begins at that moment.
    """
    try:
        with open("/proc/locks", encoding="ascii") as file:
            places = [line.split()[5].split(":") for line in file if "->" not in line]
        return frozenset((int(major, 16), int(minor, 16), int(inode)) for major, minor, inode in places)
    except (OSError, ValueError, IndexError):
        return None


def to_json(view: View) -> str:
    return json.dumps(view.to_dict())
