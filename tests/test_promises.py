"""What the last release promised is still there: docs/project/deprecation.md says what may go, and how."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECORDED = json.loads((ROOT / "tests/golden/promised.json").read_text("utf-8"))["promised"]


def script() -> ModuleType:
    """docs/project/promised.py."""
    place = importlib.util.spec_from_file_location("promised", ROOT / "docs/project/promised.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def importable(engine: str) -> bool:
    """Not where Flower is not installed, or torch is older than what the engine for FSDP2 hooks into."""
    try:
        importlib.import_module(engine)
    except ImportError:
        return False
    return True


def broken(before: list[str], now: list[str], ordered: bool) -> list[str]:
    """What is gone of arguments or options; more breaks nothing, if it is not put between those that have a place."""
    gone = [name for name in before if name not in now and name != "*"]
    if ordered and not gone:
        placed = before[: before.index("*")] if "*" in before else before
        gone += [f"{name} in its place" for name, other in zip(placed, now, strict=False) if name != other]
    return gone


@pytest.mark.parametrize("kind", RECORDED)
def test_nothing_is_gone(kind: str) -> None:
    promised = script()
    there = [engine for engine in promised.ENGINES if importable(engine)]
    assert "varangian.engines.ddp" in there
    lacking = tuple(set(promised.ENGINES) - set(there))
    before = {thing: names for thing, names in RECORDED[kind].items() if not thing.startswith(lacking)}
    now = promised.promised(tuple(there))[kind]
    assert before
    assert [thing for thing in before if thing not in now] == []
    gone = {thing: broken(before[thing], now[thing], kind == "names") for thing in before}
    assert {thing: names for thing, names in gone.items() if names} == {}


def test_what_is_gone_is_seen() -> None:
    before = ["folder", "out", "*", "seed"]
    assert broken(before, before, True) == []
    assert broken(before, ["folder", "out", "new", "*", "other", "seed"], True) == []
    assert broken(before, ["folder", "out", "seed"], True) == []
    assert broken(before, ["folder", "*", "seed"], True) == ["out"]
    assert broken(before, ["out", "folder", "*", "seed"], True) == ["folder in its place", "out in its place"]
    assert broken(before, ["folder", "*", "out", "seed"], True) == ["out in its place"]
    assert broken(["--a", "--b"], ["--b", "--new", "--a"], False) == []
    assert broken(["--a", "--b"], ["--b"], False) == ["--a"]


def test_folders_of_the_first_version_are_read(varangian: Callable[..., Any], tmp_path: Path) -> None:
    """``run-0.1.0`` is a folder that the sources of 0.1.0 wrote, without its last parameters."""
    shutil.copytree(ROOT / "tests/golden/run-0.1.0", tmp_path / "runs")
    [folder] = (tmp_path / "runs").iterdir()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    settings = ("--dataset", "digits", "--workers", "11", "--byzantine", "2", "--rule", "median", "--attack", "little")
    again = varangian("run", *settings, "--steps", "10", "--nesterov", "--out", "runs")
    assert (again.status, "nothing was trained" in again.out) == (0, True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    replayed = varangian("replay", str(folder), "--step", "7")
    assert (replayed.status, "step 7" in replayed.out) == (0, True)
    reported = varangian("report", "runs", "--out", "page")
    assert reported.status == 0
    assert "67.0" in (tmp_path / "page/report.html").read_text("utf-8")
