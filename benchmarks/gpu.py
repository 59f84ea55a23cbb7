"""All that only a card can show, in one command of under six minutes on a bare machine without a network.

    python benchmarks/gpu.py --fetch wheels                  elsewhere: what that machine lacks, as wheels to carry
    python benchmarks/gpu.py --wheels wheels --data data     there: everything, into gpu/gpu.json and a table
    python benchmarks/gpu.py --only times,steps              some sections
    python benchmarks/gpu.py --only steps --items median     of those the items with this in their names
    python benchmarks/gpu.py --device cpu --small            the same lines without a card, in seconds: no figures

--wheels is a folder of wheels, unpacked and put before what is installed; --data a folder with the four files of
Fashion-MNIST, and of CIFAR if at hand. Where files are absent, images of the true shapes are made up: gpu.json says so.

Nothing that was found is ever lost. Each section has its seconds, and what does not fit is left out; what fails is
recorded with its traceback, and the next thing is tried; gpu.json is written before and after whatever is tried, and
that of an earlier call is kept under another name. Sections run in a process of their own: where a kernel breaks the
card for its process, crashes it or never ends, what was tried then is named, and another process goes on behind it.
SIGTERM and Ctrl-C end the script in order. Exit status 1 where anything failed or was found wrong; 2 where the command
line or the machine forbids the whole, which is said in a line for each fault, and then nothing is left behind.

What the sections measure is in gpu_sections.py; this file needs the standard library alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 345.0  # in all
GRACE = 5.0  # that a section has beyond its seconds and half as many
RESTARTS = 8  # of the process that measures
REFUSED = 2  # exit status where nothing can be measured
BROKEN, HUNG = 3, 4  # its exit status where the card no longer answers it, and where it had to be killed
SECTIONS = (  # of gpu_sections.py, which cannot be imported before what it needs is there
    "setup", "compile", "rates", "correct", "times", "gradients", "steps", "estimate", "determinism", "runs", "engines",
    "together",
)  # fmt: skip
CARRIED = (  # what a machine that is set up for torch usually lacks
    "pydantic", "pydantic-core", "typing-inspection", "annotated-types", "tomlkit", "pooch", "platformdirs",
)  # fmt: skip
NEEDED = (  # what the package and this script import; commands and figures need more
    "numpy", "torch", "numba", "filelock", "threadpoolctl", "pydantic", "pydantic_core", "annotated_types", "tomlkit",
    "pooch", "platformdirs", "rich",
)  # fmt: skip


class OutOfTime(BaseException):
    """A section went far beyond its seconds: nothing that it catches."""


class Ended(BaseException):
    """Somebody asked for the end."""


class Broken(BaseException):
    """The card no longer answers this process."""


# ------------------------------------------------------------------------------------------------ what was found


class Report:
    """What was found so far, always on disk.

    Args:
        path: of the JSON file, with which it goes on where it is there.
        end: of the whole script, as time.time() has it.
        broken: whether the card no longer answers.
        items: what the names of items are to match; a regular expression.
    """

    def __init__(self, path: Path, end: float, broken: Callable[[], bool] = lambda: False, items: str = "") -> None:
        self.path, self.end, self.broken, self.items = path, end, broken, items
        self.found = read(path)
        self._section: dict[str, Any] = {}
        self._name, self._section_end = "", end

    def write(self) -> None:
        """Whole or not at all: what was there before stays until then."""
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(self.found, indent=1, default=str) + "\n", "utf-8")
        os.replace(beside, self.path)

    def note(self, name: str, value: object) -> None:
        """A finding of the section that runs."""
        self._section[name] = value
        self.write()

    def wrong(self, what: str) -> None:
        """A finding that should not be."""
        self._section.setdefault("wrong", []).append(what)
        print(f"  WRONG: {what}", flush=True)
        self.write()

    @property
    def left(self) -> float:
        """Seconds of the section that runs."""
        return self._section_end - time.time()

    def each(
        self, items: Iterable[Item], name: Callable[[Item], str], work: Callable[[Item], object], at: str = ""
    ) -> None:
        """Works on each item as long as there is time, and notes what comes out under its name, unless it is None.

        An item that fails is recorded as wrong with its traceback. What is noted already, or ended a process, is not
        tried again.

        Args:
            at: where findings are noted; by default beside each other in the section.
        """
        noted = self._section.setdefault(at, {}) if at else self._section
        late = []
        for item in items:
            this = name(item)
            if this in noted or f"{self._name}: {this}" in self.found["killed"]:
                continue  # of a process before this one
            if not re.search(self.items, this):
                continue
            if self.left <= 0:
                late.append(this)
                continue
            self.note("at", this)
            try:
                value = work(item)
            except Exception as error:
                self._section.setdefault("errors", {})[this] = traceback.format_exc()
                self.wrong(f"{this}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
                if self.broken():
                    raise Broken from error
            else:
                if value is not None:
                    noted[this] = value
        self._section.pop("at", None)
        if late:
            print(f"  {len(late)} left out for lack of time", flush=True)
            left = self._section.setdefault("left out for lack of time", {"first": late[:10], "how many": 0})
            left["how many"] += len(late)
        self.write()

    def run(self, name: str, seconds: float, section: Callable[[], object]) -> None:
        """One section: its findings, what went wrong, and how long it took.

        It is to stop by itself after its seconds, and is stopped half as many later.
        """
        begun = time.time()
        seconds = min(seconds, self.end - begun)
        self._name, self._section_end = name, begun + seconds
        self._section = self.found["sections"].setdefault(name, {})
        self._section["status"] = "running"
        if seconds <= 0:
            self.note("status", "left out for lack of time")
            return
        self.found["deadline"] = begun + 1.5 * seconds + 2 * GRACE
        self.write()
        status = "failed"
        try:
            print(f"{name} ...", flush=True)
            with _alarm(1.5 * seconds + GRACE):
                section()
            status = "done in part" if "left out for lack of time" in self._section else "done"
            status = "wrong" if "wrong" in self._section else status
        except (Ended, KeyboardInterrupt):
            status = "interrupted"
            raise
        except Broken:
            status = "running"  # and whoever goes on sees where
            raise
        except OutOfTime:
            status = "out of time"
        except Exception as error:
            self._section["error"] = traceback.format_exc()
            print(f"  {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", flush=True)
        finally:
            self._section["status"] = status
            self._section["seconds"] = round(time.time() - begun, 2)
            self.write()
            print(f"  {status}, {self._section['seconds']:.1f} s", flush=True)


def read(path: Path) -> dict[str, Any]:
    """What the file holds, or the beginning of it."""
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    return {"made": datetime.now(timezone.utc).isoformat(timespec="seconds"), "sections": {}, "killed": []}


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """OutOfTime in the block after so many seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended


# ------------------------------------------------------------------------------------------------ what it needs


def fetch(folder: Path) -> int:
    """Downloads the wheels that a machine with torch alone lacks, for CPython 3.12 on Linux; pip's exit status."""
    platforms = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")
    return subprocess.call([
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--python-version", "3.12", "--implementation", "cp", *(x for p in platforms for x in ("--platform", p)),
        "--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder), *CARRIED,
    ])  # fmt: skip


def unpack(wheels: Path, into: Path) -> list[str]:
    """The wheels of a folder, unpacked; their names."""
    found = sorted(wheels.glob("*.whl"))
    for wheel in found:
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(into)
    return [wheel.name for wheel in found]


def lacking() -> list[str]:
    """What varangian imports and this machine does not have, or cannot import, with the reason."""
    reasons = []
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            reasons.append(f"{name}: not installed")
            continue
        try:
            __import__(name)
        except Exception as error:  # such as numba where numpy is too new for it
            reasons.append(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return reasons


def absent(device: str) -> list[str]:
    """Why this machine does not have the device, in a line; none where it has."""
    if device == "cpu":
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.removeprefix("cuda:")) < count:
        return []
    there = f" ({count} there: the last is cuda:{count - 1})" if count else ""
    return [f"--device: no card here for {device}{there}; --device cpu --small tries the script."]


# ------------------------------------------------------------------------------------------------ what it is asked


def parser() -> argparse.ArgumentParser:
    """Takes everything as text: what is wrong with it is said by :func:`asked`, all at once."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", default="gpu", help="folder of gpu.json  [gpu]")
    made.add_argument("--wheels", help="folder of wheels of what this machine lacks")
    made.add_argument("--fetch", metavar="FOLDER", help="download these wheels, and nothing else")
    made.add_argument("--data", help="folder of data files")
    made.add_argument("--device", default="cuda:0", help="cuda:0, or cpu to try the script  [cuda:0]")
    made.add_argument("--small", action="store_true", help="tiny sizes, so that every line runs in seconds")
    made.add_argument("--only", metavar="NAMES", help="these sections, comma-separated")
    made.add_argument("--items", default="", metavar="PATTERN", help="of sections, what matches this")
    made.add_argument("--seconds", default=f"{SECONDS:g}", help=f"for everything  [{SECONDS:g}]")
    made.add_argument("--end", type=float, help=argparse.SUPPRESS)  # of the process that measures
    made.add_argument("--seek", action="store_true", help=argparse.SUPPRESS)  # of the process that looks for the card
    return made


def asked(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the command line asks for, and its faults, a line each. All that can be known without torch."""
    options, rest = parser().parse_known_args(arguments)
    faults = [f"nothing here is called {' '.join(rest)}; --help says what is."] if rest else []
    for name in ("out", "wheels", "fetch", "data"):
        text = getattr(options, name)
        if text == "":
            faults.append(f"--{name}: must be the name of a folder, got none.")
        setattr(options, name, Path(text) if text else None)
    for name in ("out", "fetch"):
        folder = getattr(options, name)
        why = "" if folder is None or (name == "out" and options.fetch) else unwritable(folder)
        if why:
            faults.append(f"--{name}: {folder} cannot be written: {why}; choose another --{name}.")
    if options.wheels is not None:
        faults += [f"--wheels: {fault}" for fault in torn(options.wheels)]
    if options.data is not None and not options.data.is_dir():
        faults.append(f"--data: {options.data} is no folder; without --data, images of the true shapes are made up.")
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]{0,2}))?", options.device):
        faults.append(f"--device: must be cpu, cuda or cuda:N, got {options.device!r}.")
    elif options.device == "cuda":
        options.device = "cuda:0"
    names = [] if options.only is None else [name.strip() for name in options.only.split(",")]
    unknown = [name or "''" for name in names if name not in SECTIONS]
    if unknown:
        faults.append(f"--only: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}.")
    try:
        re.compile(options.items)
    except re.error as error:
        faults.append(f"--items: {options.items!r} is no regular expression: {error}.")
    try:
        seconds = float(options.seconds)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        faults.append(f"--seconds: must be a number above 0, got {options.seconds!r}.")
    options.seconds = seconds
    return options, faults


def unwritable(folder: Path) -> str:
    """Why nothing can be written there, "" where something can: tried, and taken back."""
    made = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)
    finally:
        _remove(made)


def _missing(folder: Path) -> list[Path]:
    """Of the folder and those that it is in, what is not there, from the inside."""
    return [place for place in (folder, *folder.parents) if not os.path.exists(place)]


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # somebody else has put something there, or it was never made
            folder.rmdir()


def torn(wheels: Path) -> list[str]:
    """What is wrong with a folder of wheels, a line each: every wheel is read to its end."""
    if not wheels.is_dir():
        return [f"{wheels} is no folder; --fetch {wheels} downloads what belongs there."]
    found = sorted(wheels.glob("*.whl"))
    faults = [] if found else [f"{wheels} holds no wheels; --fetch {wheels} downloads them."]
    for wheel in found:
        try:
            with zipfile.ZipFile(wheel) as packed:
                bad = packed.testzip()
            why = "" if bad is None else f"{bad} in it is damaged"
        except Exception as error:  # whatever zipfile and zlib have to say of bytes that are none of theirs
            why = str(error) or type(error).__name__
        if why:
            faults.append(f"{wheel} cannot be unpacked: {why.rstrip('.')}; copy it again.")
    return faults


# ------------------------------------------------------------------------------------------------ two processes


def measure(options: argparse.Namespace) -> int:
    """In a process of its own: the sections that are not done yet. Its exit status, BROKEN where the card is."""
    missing = lacking()
    if missing:
        print("This machine lacks:\n  " + "\n  ".join(missing), file=sys.stderr)
        print(f"Carry them: --fetch FOLDER downloads {', '.join(CARRIED)}; then --wheels FOLDER.", file=sys.stderr)
        return REFUSED
    faults = absent(options.device)
    if faults:
        return refuse(faults)
    import gpu_sections  # only now can what it imports be found

    report = Report(options.out / "gpu.json", options.end, items=options.items)
    signal.signal(signal.SIGTERM, _end)
    try:
        gpu_sections.everything(report, options)
    except Broken:
        return BROKEN
    except (Ended, KeyboardInterrupt):
        return 130
    return 0


def supervise(command: list[str], path: Path, end: float) -> int:
    """Runs the process that measures, and another one behind what has ended it; the last one's exit status.

    Whatever it was that ended a process is not tried again: an item of a section, or the section where there was none.
    """
    for _ in range(RESTARTS + 1):
        child = subprocess.Popen(command)
        try:
            status = _wait(child, path)
        except (Ended, KeyboardInterrupt):
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
            print("ended before the end; what was found is kept.", flush=True)
            return 130
        if status in (0, REFUSED, 130) or time.time() > end:
            return status
        found = read(path)
        running = [name for name, section in found["sections"].items() if section["status"] == "running"]
        if not running:
            return status
        section = found["sections"][running[0]]
        why = {BROKEN: "broke the card", HUNG: "never ended"}.get(status, f"ended its process ({status})")
        at = section.get("at")
        found["killed"].append(running[0] if at is None else f"{running[0]}: {at}")
        found.setdefault("why", {})[found["killed"][-1]] = why
        print(f"  {found['killed'][-1]} {why}; going on behind it.", flush=True)
        section.pop("at", None)
        section["status"] = "failed" if at is None else "to do"
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 1


def _wait(child: subprocess.Popen[bytes], path: Path) -> int:
    """For its end, which comes from here where a section is far behind its time."""
    while True:
        try:
            return child.wait(0.5)
        except subprocess.TimeoutExpired:
            if time.time() > read(path).get("deadline", math.inf):
                child.kill()
                child.wait()
                return HUNG


def _keep(path: Path) -> Path | None:
    """What an earlier call has found, under the name of its day and time; where that is."""
    if not path.exists():
        return None
    try:
        made = str(read(path)["made"])
    except (OSError, ValueError, KeyError, TypeError):  # no report, or one that was torn: kept, too
        made = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat()
    made = "".join(c for c in made if c.isalnum())[:15]
    return path.replace(path.with_name(f"{path.stem}-{made}{path.suffix}"))


def refuse(faults: list[str]) -> int:
    """Says them, and gives the exit status for it."""
    print("\n".join(faults), file=sys.stderr)
    return REFUSED


def sought(device: str) -> list[str]:
    """What is wrong with the device, as far as torch can say: in a process of its own, which may fail."""
    command = [sys.executable, str(Path(__file__)), "--device", device, "--seek"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line]


def main(arguments: list[str] | None = None) -> int:
    start = time.time()
    arguments = sys.argv[1:] if arguments is None else arguments
    options, faults = asked(arguments)
    if options.seek:
        print(*absent(options.device), sep="\n")
        return 0
    if faults:
        known = options.fetch or options.device == "cpu" or any(f.startswith(("--device", "--fetch")) for f in faults)
        return refuse(faults if known else faults + sought(options.device))
    if options.fetch is not None:
        return fetch(options.fetch)
    if options.end is not None:
        return measure(options)
    with tempfile.TemporaryDirectory() as folder:
        return _measured(options, arguments, start, Path(folder))


def _measured(options: argparse.Namespace, arguments: list[str], start: float, folder: Path) -> int:
    """The whole, with a folder for what is unpacked; the exit status."""
    end, path = start + options.seconds, options.out / "gpu.json"
    carried: list[str] = []
    if options.wheels is not None:
        try:
            carried = unpack(options.wheels, folder)
        except OSError as error:
            return refuse([f"--wheels: {options.wheels} cannot be unpacked into {folder}: {error.strerror}."])
    places = [str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
    made = _missing(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    earlier = _keep(path)
    signal.signal(signal.SIGTERM, _end)
    path.write_text(json.dumps(read(path) | {"asked": arguments, "carried": carried}), "utf-8")
    status = supervise([sys.executable, str(Path(__file__)), *arguments, "--end", str(end)], path, end)
    found = read(path)
    if status == REFUSED and not found["sections"]:
        path.unlink()
        if earlier is not None:
            earlier.replace(path)
        _remove(made)
        return REFUSED
    found["seconds"] = round(time.time() - start, 1)
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if not found["sections"]:
        return status
    print(table(found))
    failed = [name for name, section in found["sections"].items() if section["status"] != "done"]
    print(f"\n{path}: {found['seconds']} s; {', '.join(failed + found['killed']) or 'all done'}")
    status = 1 if status == REFUSED else status  # by a process that goes on behind another: the card is gone
    return status or bool(failed or found["killed"])


# ------------------------------------------------------------------------------------------------ the table


def table(found: dict[str, Any]) -> str:
    """What benchmarks/README.md shows of gpu.json."""
    sections = found["sections"]
    versions, card, machine = (sections.get("setup", {}).get(name, {}) for name in ("versions", "card", "machine"))
    lines = [
        f"{found['made'][:10]}, {card.get('device', 'no card')}, driver {card.get('driver')}, CUDA {card.get('cuda')}, "
        f"cuDNN {card.get('cudnn')}, torch {versions.get('torch')}, Triton {versions.get('triton')}, "
        f"{machine.get('cores')} cores. Copies at {_number(sections.get('rates', {}).get('copy_tb_per_s'))} TB/s.",
        "",
        "| kernel | ms | reading the data | torch | times faster |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, entry in sections.get("times", {}).items():
        if isinstance(entry, dict):
            cells = (entry["ms"], entry["reading_ms"], entry["torch_ms"], entry["times_faster"])
            lines.append(f"| {name} | " + " | ".join(map(_number, cells)) + " |")
    lines += ["", "| panel | ms a step | evaluation | launches | waits | GiB |", "|---|---|---|---|---|---|"]
    for name, entry in sections.get("steps", {}).items():
        if isinstance(entry, dict) and "ms" in entry:
            cells = (
                entry["ms"],
                entry["evaluation_ms"],
                entry["profile"]["launches"],
                len(entry["waits"]),
                entry["peak_gib"],
            )
            lines.append(f"| {name} | " + " | ".join(map(_number, cells)) + " |")
    hours = sections.get("estimate", {}).get("hours", {})
    lines += ["", *(f"{name}: {_number(value)} hours." for name, value in hours.items())]
    lines += [f"missed: {text}." for text in found.get("missed", [])]
    lines += [f"{name}: {why}." for name, why in found.get("why", {}).items()]
    for name, section in sections.items():
        lines += [f"{name}: {section['status']}." for _ in range(section["status"] != "done")]
        lines += [f"{name}: WRONG: {text}." for text in section.get("wrong", [])]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
