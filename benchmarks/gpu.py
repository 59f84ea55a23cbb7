"""All that only a card can show, in one command of under six minutes on a bare machine without a network.

    python benchmarks/gpu.py --fetch wheels                  elsewhere: what that machine lacks, as wheels to carry
    python benchmarks/gpu.py --wheels wheels --data data     there: everything, into gpu/gpu.json and a table
    python benchmarks/gpu.py --only kernels,steps            some sections
    python benchmarks/gpu.py --device cpu --small            the same lines without a card, in seconds: no figures

--wheels is a folder of wheels, unpacked and put before what is installed; --data a folder with the four files of
Fashion-MNIST, and of CIFAR if at hand. Where files are absent, images of the true shapes are made up: gpu.json says so.

Each section has its seconds: what does not fit is left out, a section that fails is recorded with its traceback, and
the next one goes on. gpu.json is written anew after every finding, so that nothing is lost whatever ends the script;
SIGTERM and Ctrl-C end it in order. Exit status 1 where anything failed or was found wrong.

What the sections measure is in gpu_sections.py; this file needs the standard library alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 345.0  # in all
GRACE = 5.0  # that a section has beyond its seconds and half as many
CARRIED = (  # what a machine that is set up for torch usually lacks
    "pydantic", "pydantic-core", "typing-inspection", "annotated-types", "tomlkit", "pooch", "platformdirs",
)  # fmt: skip
NEEDED = (  # what varangian imports
    "numpy", "torch", "numba", "filelock", "threadpoolctl", "rich", "click", "pooch", "requests", "platformdirs",
    "pydantic", "pydantic_core", "typing_inspection", "annotated_types", "tomlkit", "matplotlib", "jinja2",
)  # fmt: skip


class OutOfTime(BaseException):
    """A section went far beyond its seconds: nothing that it catches."""


class Ended(BaseException):
    """Somebody asked for the end."""


class Report:
    """What was found so far, on disk after every finding.

    Args:
        path: of the JSON file.
        seconds: of the whole script, from ``start``.
        start: of time.monotonic().
    """

    def __init__(self, path: Path, seconds: float, start: float) -> None:
        self.path, self.end = path, start + seconds
        self.found: dict[str, Any] = {"made": datetime.now(timezone.utc).isoformat(timespec="seconds"), "sections": {}}
        self._section: dict[str, Any] = {}
        self._section_end = self.end
        path.parent.mkdir(parents=True, exist_ok=True)

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
        return self._section_end - time.monotonic()

    def in_time(self, items: Iterable[Any], name: Callable[[Any], str] = str) -> Iterable[Any]:
        """Items as long as there is time; the others are recorded as left out."""
        skipped = []
        for item in items:
            if self.left > 0:
                yield item
            else:
                skipped.append(name(item))
        if skipped:
            self.note("left out for lack of time", skipped)

    def run(self, name: str, seconds: float, section: Callable[[], None]) -> None:
        """One section: its findings, what went wrong, and how long it took.

        It is to stop by itself after its seconds, and is stopped half as many later.
        """
        begun = time.monotonic()
        seconds = min(seconds, self.end - begun)
        self._section = self.found["sections"][name] = {"status": "running"}
        self._section_end = begun + seconds
        self.write()
        if seconds <= 0:
            self.note("status", "left out for lack of time")
            return
        status = "failed"
        try:
            print(f"{name} ...", flush=True)
            with _alarm(1.5 * seconds + GRACE):
                section()
            status = "wrong" if "wrong" in self._section else "done"
        except (Ended, KeyboardInterrupt):
            status = "interrupted"
            raise
        except OutOfTime:
            status = "out of time"
        except Exception as error:  # whatever it is, the sections after it are to run
            self._section["error"] = traceback.format_exc()
            print(f"  {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)
        finally:
            self._section["status"] = status
            self._section["seconds"] = round(time.monotonic() - begun, 2)
            self.write()
            print(f"  {status}, {self._section['seconds']:.1f} s", flush=True)

    @property
    def failed(self) -> list[str]:
        """Sections that are not done, or found something wrong."""
        return [name for name, section in self.found["sections"].items() if section["status"] != "done"]


@contextmanager
def _alarm(seconds: float):
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


def fetch(folder: Path) -> int:
    """Downloads the wheels that a machine with torch alone lacks, for CPython 3.12 on Linux; pip's exit status."""
    platforms = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")
    return subprocess.call([
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--python-version", "3.12", "--implementation", "cp", *(x for p in platforms for x in ("--platform", p)),
        "--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder), *CARRIED,
    ])  # fmt: skip


def unpack(wheels: Path, into: Path) -> list[str]:
    """The wheels of a folder, unpacked and first on sys.path, also in processes to come; their names."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise SystemExit(f"{wheels} holds no wheels; --fetch {wheels} downloads them.")
    for wheel in found:
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(into)
    sys.path.insert(0, str(into))
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
            reasons.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return reasons


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path("gpu"), help="folder of gpu.json  [gpu]")
    made.add_argument("--wheels", type=Path, help="folder of wheels of what this machine lacks")
    made.add_argument("--fetch", type=Path, metavar="FOLDER", help="download these wheels, and nothing else")
    made.add_argument("--data", type=Path, help="folder of data files")
    made.add_argument("--device", default="cuda:0", help="cuda:0, or cpu to try the script  [cuda:0]")
    made.add_argument("--small", action="store_true", help="tiny sizes, so that every line runs in seconds")
    made.add_argument("--only", metavar="NAMES", help="these sections, comma-separated")
    made.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything  [{SECONDS:g}]")
    return made


def main(arguments: list[str] | None = None) -> int:
    start = time.monotonic()
    options = parser().parse_args(arguments)
    if options.fetch is not None:
        return fetch(options.fetch)
    with tempfile.TemporaryDirectory() as folder:
        carried = [] if options.wheels is None else unpack(options.wheels, Path(folder))
        sys.path[:0] = [path for path in (str(ROOT / "src"), str(Path(__file__).parent)) if path not in sys.path]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        missing = lacking()
        if missing:
            print("This machine lacks:\n  " + "\n  ".join(missing), file=sys.stderr)
            print(f"Carry them: --fetch FOLDER downloads {', '.join(CARRIED)}; then --wheels FOLDER.", file=sys.stderr)
            return 2
        import gpu_sections  # only now can what it imports be found

        report = Report(options.out / "gpu.json", options.seconds, start)
        report.found |= {"carried": carried, "argv": sys.argv if arguments is None else arguments}
        signal.signal(signal.SIGTERM, _end)
        try:
            gpu_sections.everything(report, options)
        except (Ended, KeyboardInterrupt):
            print("ended before the end; what was found is kept.", flush=True)
        report.found["seconds"] = round(time.monotonic() - start, 1)
        report.write()
        print(gpu_sections.table(report.found))
        print(f"\n{report.path}: {report.found['seconds']} s; " + (", ".join(report.failed) or "all done"))
        return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
