"""What the last release promised is still there: docs/project/deprecation.md says what may go, and how."""

from __future__ import annotations

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


def broken(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """What is gone, of things and of what belongs to them; that more was added breaks nothing."""
    gone = [thing for thing in before if thing not in now]
    return gone + [f"{t}: {a}" for t in before if t in now for a in before[t] if a not in now[t]]


@pytest.mark.parametrize("kind", RECORDED)
def test_nothing_is_gone(kind: str) -> None:
    promised = script()
    flower = "varangian.engines.flower"
    there = [e for e in promised.ENGINES if e != flower or importlib.util.find_spec("flwr")]
    before = {t: a for t, a in RECORDED[kind].items() if flower in there or not t.startswith(flower)}
    assert before
    assert broken(before, promised.promised(tuple(there))[kind]) == []


def test_what_is_gone_is_seen() -> None:
    before = {"run": ["out", "seed"], "read": ["folder"]}
    assert broken(before, {"run": ["seed", "out", "more"], "read": ["folder"], "new": []}) == []
    assert broken(before, {"run": ["seed"]}) == ["read", "run: out"]
