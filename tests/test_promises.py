"""What the last release promised is still there: docs/project/deprecation.md says what may go, and how."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

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
