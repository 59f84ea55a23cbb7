"""Run folders: what survives a crash, and what two processes must not do at once.

While a run is under way its folder holds its tables so far and two checkpoints, the newest and the one before:

    experiment.json  environment.json  metrics.csv  evaluations.csv  workers.bin  checkpoint.pt  checkpoint-former.pt
    .lock

beside events.jsonl and files for TensorBoard where they are asked for, on which nothing relies; and once it is
complete the model's final state and, written last, the result:

    experiment.json  environment.json  metrics.csv  evaluations.csv  workers.bin  state.pt  result.json

A file that is replaced is first written beside its place and brought to the disk, then renamed. A checkpoint names how
long the tables were, and their digests, and is written after they have reached the disk: what they hold beyond that is
cut off when the run goes on. So at every moment, whatever the machine loses, there is on the disk either nothing of
worth or a checkpoint with all that it refers to.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..core.accounts import Account
from ..core.checks import cut
from ..simulation.simulate import Simulation, Snapshot
from .environment import environment
from .files import line_of_text, no_follow, number, read_json, sync, whole, write_partial, write_whole
from .workers import Layout, Recorder

FORMAT = 1  # of run folders
SETTINGS, ENVIRONMENT, METRICS, EVALUATIONS = "experiment.json", "environment.json", "metrics.csv", "evaluations.csv"
EVENTS, BOARD = "events.jsonl", "events.out.tfevents.*"  # where they are asked for; no run relies on them
# Of a state, what came after the first folders were written: left out where it is nothing.
LATER = ("memory", "last", "clients", "watched")
WORKERS = "workers.bin"  # see :mod:`.workers`; of runs that measure nothing, and of older ones, there is none
CHECKPOINT, FORMER, STATE, RESULT, LOCK = "checkpoint.pt", "checkpoint-former.pt", "state.pt", "result.json", ".lock"
FILES = (SETTINGS, ENVIRONMENT, METRICS, EVALUATIONS, WORKERS, EVENTS, CHECKPOINT, FORMER, STATE, RESULT)
PARTIAL = ".partial"
MAX_JSON = 2**20  # bytes of a JSON file that is read
LATEST = 0.5  # seconds after which others can read a row of metrics.csv, if another one follows
MOST_DIMENSIONS = 64  # of an example, as torch and NumPy have it
SHARE = 0.01  # of the time, at most, goes into checkpoints

T = TypeVar("T")


class FolderInUse(OSError):
    """Another process is at this run."""


class OtherSettings(ValueError):
    """A checkpoint belongs to a run of other settings, which ``settings`` holds as text."""

    def __init__(self, settings: str) -> None:
        self.settings = settings
        super().__init__("a checkpoint of other settings")


class _Unusable(Exception):
    """Why a checkpoint cannot be gone on from."""


# --------------------------------------------------------------------------------------------------- files that survive


def _is_json(path: Path) -> bool:
    try:
        read_json(path, MAX_JSON)
    except (OSError, ValueError):
        return False
    return True


def _write_plainly(path: Path, text: str) -> None:
    with open(path, "wb", opener=no_follow) as file:
        file.write(text.encode())


def check_format(path: Path, values: Any) -> None:
    """Refuses what a newer version wrote.

    Raises:
        ValueError: ``values["format"]`` is later than :data:`FORMAT`.
    """
    found = values.get("format", FORMAT) if isinstance(values, dict) else FORMAT
    if isinstance(found, int) and found > FORMAT:
        raise ValueError(
            f"{path} was written by a newer version of Varangian (format {found}, this one reads up to {FORMAT}): "
            "use that version, or another folder."
        )


def check_folder(folder: Path) -> None:
    """Refuses folders that must not be written into: those of a newer version, and those with links among their files.

    Raises:
        ValueError: it is one.
    """
    for name in (*FILES, LOCK):
        if (folder / name).is_symlink():
            raise ValueError(f"{folder / name} is a symbolic link; a run folder holds plain files only.")
    for name in (ENVIRONMENT, RESULT):
        try:
            values = read_json(folder / name, MAX_JSON)
        except (OSError, ValueError):
            continue  # missing, or damaged: whoever needs it will say so
        check_format(folder / name, values)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder if need be and keeps other processes out of it.

    An error removes what was written, unless there is a checkpoint or a result. An interruption removes nothing.

    Raises:
        FolderInUse: another process has it, or another thread of this one.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)  # of the operating system: it ends with the process, however that ends
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(f"{folder} is in use by another process: wait until that has ended, or end it.") from None
    try:
        yield
        if (folder / RESULT).exists():  # nobody needs the lock of a complete run
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
    except Exception:
        if not any((folder / name).exists() for name in (CHECKPOINT, FORMER, RESULT)):
            with suppress(OSError):
                clear(folder)
                (folder / LOCK).unlink(missing_ok=True)
                for place in made:
                    place.rmdir()
        raise
    finally:
        lock.release()


def clear(folder: Path) -> None:
    """Removes what a run wrote; the result first, so that what is left is never taken for a complete run."""
    for name in reversed(FILES):
        (folder / name).unlink(missing_ok=True)
        (folder / (name + PARTIAL)).unlink(missing_ok=True)
    for path in folder.glob(BOARD):
        path.unlink(missing_ok=True)
    sync(folder)


# ---------------------------------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Mark:
    """How far a table had come: bytes, and the SHA-256 of them."""

    size: int
    sha256: str


class _Table:
    """A file that only grows, and knows its size and digest."""

    def __init__(self, path: Path, header: bytes, kept: bytes | None) -> None:
        self.size, self._hash = 0, hashlib.sha256()
        mode = "wb" if kept is None else "r+b"
        self.file = open(path, mode, opener=no_follow)  # noqa: SIM115 (the journal closes it)
        if kept is None:
            self.append(header)
        else:
            self.file.truncate(len(kept))
            self.file.seek(len(kept))
            self.size, self._hash = len(kept), hashlib.sha256(kept)

    def append(self, line: bytes) -> None:
        self.file.write(line)
        self._hash.update(line)
        self.size += len(line)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    @property
    def mark(self) -> Mark:
        return Mark(self.size, self._hash.hexdigest())


def _line(cells: Sequence[str]) -> bytes:
    """Of a CSV file. Cells hold neither commas nor quotes."""
    return (",".join(cells) + "\n").encode()


def _beginning(path: Path, mark: Mark) -> bytes:
    """What a table held when the checkpoint was written.

    Raises:
        _Unusable: it does not hold that any more.
    """
    try:
        with open(path, "rb", opener=no_follow) as file:
            content = file.read(min(mark.size, path.stat().st_size))  # never memory for what is only claimed
    except FileNotFoundError:
        content = b""
    if len(content) != mark.size or hashlib.sha256(content).hexdigest() != mark.sha256:
        raise _Unusable(f"{path.name} no longer holds what it refers to")
    return content


@dataclass(frozen=True, eq=False)
class Past:
    """What a run had come to when its checkpoint was written.

    Attributes:
        evaluations: the step and what was found there, exactly: (step, accuracy, loss, ...).
        stopped: why it is to end here, or None.
        seconds: spent on training.
        snapshot: the state.
        metrics, evaluated: how far the tables had come.
        told: how far workers.bin had come; None where there is none.
    """

    evaluations: list[tuple[float, ...]]
    stopped: str | None
    seconds: float
    snapshot: Snapshot
    metrics: Mark
    evaluated: Mark
    told: Mark | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """What a complete run came to: state.pt. Shape and classes are those of its data; None in older folders."""

    step: int
    parameters: Tensor
    buffers: dict[str, Tensor]
    shape: tuple[int, ...] | None
    classes: int | None


def read_state(path: Path) -> Trained:
    """state.pt of a complete run. Nothing in it is executed.

    Raises:
        ValueError: it is missing, or not what it should be.
    """
    try:
        content = _unpickled(path)
        shape, classes = content.get("shape"), content.get("classes")
        if shape is not None:
            shape = tuple(whole(size, "shape", 1) for size in _typed(shape, list)[:MOST_DIMENSIONS])
            classes = whole(classes, "classes", 1)
        buffers = {
            _typed(name, str): _typed(buffer, Tensor) for name, buffer in _typed(content["buffers"], dict).items()
        }
        parameters = _typed(content["parameters"], Tensor)
        return Trained(whole(content["step"], "step"), parameters, buffers, shape, classes)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except (_Unusable, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {cut(str(error)) or type(error).__name__}.") from None


def _pack(past: Past, settings: str, digest: str) -> dict[str, Any]:
    """As plain values and tensors, with a checksum over all of them."""
    state = {f.name: _plain(getattr(past.snapshot, f.name)) for f in fields(Snapshot)}
    state = {name: value for name, value in state.items() if name not in LATER or value is not None}
    content = {
        "format": FORMAT,
        "digest": digest,
        "experiment": settings,
        "seconds": past.seconds,
        "stopped": past.stopped,
        "evaluations": _matrix(past.evaluations),
        "metrics": [past.metrics.size, past.metrics.sha256],
        "evaluated": [past.evaluated.size, past.evaluated.sha256],
        **({} if past.told is None else {"workers": [past.told.size, past.told.sha256]}),
        "state": state,
    }
    return content | {"checksum": _checksum(content)}


def _matrix(rows: list[tuple[float, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(rows[0]) if rows else 3)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        # On the processor, and with no more memory behind it than it shows: torch.save writes all that is there.
        dense = value.detach().cpu().contiguous()
        return dense.clone() if dense.dtype == torch.bfloat16 else torch.from_numpy(dense.numpy())  # which NumPy lacks
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    """Tuples for the lists that they were packed as."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _checksum(content: dict[str, Any]) -> str:
    """SHA-256 of the values in their order: torch does not look for flipped bits."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            if value.numel():  # torch has no bytes of nothing
                found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, (dict, list)):
            found.update(f"{type(value).__name__}{len(value)}".encode())
            for item in value.items() if isinstance(value, dict) else enumerate(value):
                add(str(item[0]))
                add(item[1])
        else:
            found.update(repr(value).encode() + b"\0")

    add(content)
    return found.hexdigest()


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint as it was packed.

    Raises:
        ValueError: of a newer version.
        _Unusable: torn, changed, or something else.
    """
    content = _unpickled(path)
    try:
        if content.pop("checksum") != _checksum(content):
            raise _Unusable("its checksum is wrong")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _Unusable(f"it is no checkpoint ({type(error).__name__})") from None
    return content


def _unpickled(path: Path) -> dict[str, Any]:
    """What torch.save wrote. Nothing in it is executed, and it takes no more memory than its file's size.

    Raises:
        ValueError: of a newer version.
        _Unusable: torn, changed, or something else.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb", opener=no_follow) as file:
            if file.read(4) != b"PK\x03\x04":  # torch would take it for a file of its older format
                raise _Unusable("it is torn or no checkpoint")
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise _Unusable("it says that it holds more than its file does")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _Unusable:
        raise
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever zipfile, torch and its unpickler say about bytes that are no checkpoint
        raise _Unusable(f"it is torn or no checkpoint ({type(error).__name__})") from None
    check_format(path, content)
    try:
        if sum(t.numel() * t.element_size() for t in _tensors(content)) > size:
            raise _Unusable("it says that it holds more than its file does")
        return _typed(content, dict)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _Unusable(f"it is no checkpoint ({type(error).__name__})") from None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _unpack(content: dict[str, Any]) -> Past:
    """Whoever can write a checkpoint can write its checksum: types and ranges are looked at all the same."""
    try:
        state = _typed(content["state"], dict)
        values = {f.name: state[f.name] for f in fields(Snapshot) if f.name not in LATER}
        values |= {name: _tuples(state.get(name)) for name in LATER}
        for name in ("step", "points"):
            whole(values[name], name)
        for name in ("worker", "server"):
            values[name] = tuple(_typed(values[name], list))
        _typed(values["buffers"], dict)
        rows = _typed(content["evaluations"], Tensor)
        if rows.dtype != torch.float64 or rows.ndim != 2 or rows.shape[1] < 3:
            raise ValueError("evaluations are [k, 3 or more] in float64")
        marks = []
        for name in ("metrics", "evaluated", *(("workers",) if "workers" in content else ())):
            size, digest = _typed(content[name], list)
            marks.append(Mark(whole(size, name), _typed(digest, str)))
        stopped = content["stopped"]
        return Past(
            [(int(step), *values) for step, *values in rows.tolist()],
            None if stopped is None else line_of_text(stopped, "stopped"),
            number(content["seconds"], "seconds", 0),
            Snapshot(**values),
            *marks,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _Unusable(f"it is no checkpoint ({type(error).__name__})") from None


def _typed(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _check_length(past: Past, metrics: bytes, evaluations: bytes, records: bytes | None, layout: Layout | None) -> None:
    """A row of metrics a step, a record of workers where there are any, and of evaluations what the checkpoint holds of
    them."""
    rows = metrics.count(b"\n") - 1, evaluations.count(b"\n") - 1
    if rows != (past.snapshot.step, len(past.evaluations)):
        raise _Unusable(f"the tables have {rows[0]} and {rows[1]} rows, it has others")
    if records is not None and (layout is None or len(records) != layout.size(past.snapshot.step)):
        raise _Unusable(f"{WORKERS} does not have a record for each step")


def sessions_of(folder: Path) -> list[dict[str, Any]]:
    """Where a run was computed, from which step on: environment.json; nothing where that is missing or damaged."""
    try:
        return [dict(session) for session in read_json(folder / ENVIRONMENT, MAX_JSON)["sessions"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two environments differ, as far as both say it."""
    return [f"{k} {before[k]} then, {v} now" for k, v in now.items() if k in before and before[k] != v]


def nearest(folder: Path, digest: str, step: int, simulation: Simulation) -> None:
    """Brings the simulation to the last usable checkpoint at or before a step, if there is one."""
    for name in (CHECKPOINT, FORMER):
        path = folder / name
        try:
            content = _load(path) if path.is_file() and not path.is_symlink() else {}
            if content.get("digest") == digest and _unpack(content).snapshot.step <= step:
                _bring(simulation, _unpack(content).snapshot)
                return
        except (_Unusable, ValueError, OSError):
            continue  # from further back, then


def _bring(simulation: Simulation, snapshot: Snapshot) -> None:
    try:
        simulation.restore(snapshot)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _Unusable(f"it does not fit: {cut(str(error))}") from None


# ------------------------------------------------------------------------------------------------------ a run under way


class Journal:
    """Writes a run down while it goes, and knows what an interrupted one had come to. For use inside :func:`held`.

    Args:
        folder: of the run.
        simulation: at step 0; brought to the newest checkpoint that is whole.
        settings, digest: of its experiment.
        columns, evaluated: of metrics.csv and of evaluations.csv.
        layout: of workers.bin; None where there is to be none.
        device: where it runs.
        every: seconds between two checkpoints, more where they would cost over 1 % of the time; 0 for every step.
        origins: where code of somebody's own came from, for environment.json.

    Attributes:
        began: the step of the checkpoint that it goes on from; 0 from the start.
        evaluations, stopped, seconds: what it had come to there, see :class:`Past`.
        saved: the step of the newest checkpoint; 0 without one.

    Raises:
        OtherSettings: the checkpoint is of another run.
        ValueError: it is of a newer version.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, simulation: Simulation, *, settings: str, digest: str, columns: Sequence[str],
        evaluated: Sequence[str], device: str, every: float, origins: Sequence[dict[str, str]] = (),
        layout: Layout | None = None,
    ) -> None:  # fmt: skip
        self.folder, self._settings, self._digest, self._every = folder, settings, digest, every
        self._simulation, self._width, self._layout = simulation, len(evaluated), layout
        self.evaluations: list[tuple[float, ...]] = []
        self.stopped: str | None = None
        self.seconds = 0.0
        metrics, evaluations, records = self._recover()
        self.began = self.saved = simulation.steps_done
        self._tables: list[_Table] = []
        with self._explained():
            # Nothing relies on these two before the first checkpoint, or the result: they reach the disk with it.
            self._fresh = metrics is None
            if self._fresh:
                _write_plainly(folder / SETTINGS, settings)
            elif not _is_json(folder / SETTINGS):
                write_whole(folder / SETTINGS, lambda file: file.write(settings.encode()), PARTIAL)
            self._note_environment(environment(device), origins)
            for name, header, kept in ((METRICS, _line(columns), metrics),
                                       (EVALUATIONS, _line(evaluated), evaluations)):  # fmt: skip
                self._tables.append(_Table(folder / name, header, kept))
            # What was begun by a version that told nothing of workers is completed so.
            self._recorder = None
            if layout is not None and (self._fresh or records is not None):
                self._tables.append(_Table(folder / WORKERS, layout.header, records))
                self._recorder = Recorder(layout, self._tables[-1].append)
        self._last, self._wait = time.monotonic(), every
        self._flushed = self._last

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        for table in self._tables:
            with suppress(OSError):  # of a full disk: it was raised where the rows were to be written
                table.file.close()

    def _recover(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The beginnings of all tables; None for a run from the start, and for workers.bin where there was none."""
        reasons: list[str] = []
        for name in (CHECKPOINT, FORMER):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                content = _load(path)
                if content.get("digest") != self._digest:
                    raise OtherSettings(str(content.get("experiment")))
                past = _unpack(content)
                metrics = _beginning(self.folder / METRICS, past.metrics)
                evaluations = _beginning(self.folder / EVALUATIONS, past.evaluated)
                records = None if past.told is None else _beginning(self.folder / WORKERS, past.told)
                _check_length(past, metrics, evaluations, records, self._layout)
                if any(len(row) != self._width for row in past.evaluations):
                    raise _Unusable(f"its evaluations are not of {self._width} numbers each")
                _bring(self._simulation, past.snapshot)
            except _Unusable as error:
                reasons.append(f"{name} cannot be used: {error}")
                continue
            if name == FORMER:  # the next checkpoint must not put a useless one in its place
                os.replace(path, self.folder / CHECKPOINT)
                sync(self.folder)
            if reasons:
                self._warn(f"{reasons[0]}; going on from the checkpoint before it, of step {past.snapshot.step}.")
            self.evaluations, self.stopped, self.seconds = past.evaluations, past.stopped, past.seconds
            return metrics, evaluations, records
        for name in (CHECKPOINT, FORMER):
            (self.folder / name).unlink(missing_ok=True)
        if reasons:
            self._warn(f"{'; '.join(reasons)}; starting over.")
        return None, None, None

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self.folder}: {text}", stacklevel=2)

    def _note_environment(self, now: dict[str, str | int | None], origins: Sequence[dict[str, str]]) -> None:
        path = self.folder / ENVIRONMENT
        sessions = [] if self._fresh else sessions_of(self.folder)
        if sessions:
            changed = changes(sessions[-1], now)
            if changed:
                self._warn(
                    f"going on from step {self.began} in another environment, where numbers may differ from those of "
                    f"an uninterrupted run: {'; '.join(changed)}."
                )
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        code = {"code": list(origins)} if origins else {}
        sessions.append({"from_step": self.began, "started": started, **now, **code})
        text = json.dumps({"format": FORMAT, "sessions": sessions}, indent=2) + "\n"
        if self._fresh:
            _write_plainly(path, text)
        else:
            write_whole(path, lambda file: file.write(text.encode()), PARTIAL)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """An OSError, with what became of the run."""
        try:
            yield
        except OSError as error:
            kept = ""
            if self.saved:
                kept = f" The checkpoint of step {self.saved} is kept: the same command goes on from there."
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"{reason}, while writing to {self.folder}.{kept}") from error

    def measure(self, cells: Sequence[str], account: Account | None = None, counts: np.ndarray | None = None) -> None:
        """A row of metrics.csv, and what the step told of each worker, where that is recorded."""
        with self._explained():
            self._tables[0].append(_line(cells))
            if self._recorder is not None and account is not None:
                self._recorder.add(account, counts)
            if time.monotonic() - self._flushed >= LATEST:
                self._tables[0].file.flush()
                self._flushed = time.monotonic()

    def evaluate(self, cells: Sequence[str]) -> None:
        """A row of evaluations.csv; both tables can then be read up to here by others."""
        with self._explained():
            self._tables[1].append(_line(cells))
            self._pack()
            for table in self._tables:
                table.file.flush()

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._last >= self._wait

    def save(self, evaluations: list[tuple[float, ...]], stopped: str | None, seconds: float) -> None:
        """A checkpoint, between two steps; the one before is kept until this one is safe."""
        began = time.monotonic()
        newest = self.folder / CHECKPOINT
        with self._explained():
            self._sync()
            marks = [table.mark for table in self._tables]
            past = Past(evaluations, stopped, seconds, self._simulation.snapshot(), *marks)
            content = _pack(past, self._settings, self._digest)
            partial = write_partial(newest, lambda file: torch.save(content, file), PARTIAL)
            if newest.exists():
                os.replace(newest, self.folder / FORMER)
            os.replace(partial, newest)
            sync(self.folder)
        self.saved = past.snapshot.step
        self._last = time.monotonic()
        self._wait = max(self._every, (self._last - began) / SHARE) if self._every else 0.0

    def _pack(self) -> None:
        if self._recorder is not None:
            self._recorder.flush()

    def _sync(self) -> None:
        self._pack()
        for table in self._tables:
            table.sync()
        if self._fresh:
            for name in (SETTINGS, ENVIRONMENT):
                with open(self.folder / name, "rb+", opener=no_follow) as file:
                    os.fsync(file.fileno())
            sync(self.folder)
            sync(self.folder.parent)
            self._fresh = False

    def complete(self, result: dict[str, Any], shape: tuple[int, ...], classes: int) -> None:
        """The model's final state, then the result, each on the disk before the next; then checkpoints go.

        Shape and number of classes of the data are noted with the state: whoever makes the model again needs them.
        """
        snapshot = self._simulation.snapshot()
        tensors = {"parameters": snapshot.parameters, "buffers": snapshot.buffers}
        state = {"step": snapshot.step, **_plain(tensors), "shape": list(shape), "classes": classes}
        text = json.dumps(result, indent=2) + "\n"
        with self._explained():
            self._sync()
            write_whole(self.folder / STATE, lambda file: torch.save(state, file), PARTIAL)
            write_whole(self.folder / RESULT, lambda file: file.write(text.encode()), PARTIAL)
            for name in (CHECKPOINT, FORMER):
                (self.folder / name).unlink(missing_ok=True)
