"""The comparison with other libraries: its pages say what was measured, and its calls are what they are said to be."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
HERE = ("varangian", "numpy", "torch")  # what every environment has
KEPT = json.loads((ROOT / "benchmarks" / "peers.json").read_text("utf-8"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("peers")
    for name in ("peers", "peers_entries", "peers_pages"):
        sys.modules.pop(name, None)


@pytest.fixture
def pages(script: ModuleType) -> ModuleType:
    return importlib.import_module("peers_pages")


def test_the_pages_say_what_was_measured(script: ModuleType, pages: ModuleType) -> None:
    made = pages.blocks(KEPT)
    asked: set[str] = set()
    for page in (pages.README, pages.PAGE, pages.FRONT):
        text = page.read_text("utf-8")
        assert pages.filled(text, made) == text, f"{page.name}: python benchmarks/peers.py --pages"
        asked |= set(re.findall(r"<!-- peers: (\S+) -->", text))
    assert made.keys() - asked <= {"time-11"}
    assert asked - made.keys() <= set(script.SECTIONS)  # not measured, and said


def test_every_section_says_when_where_and_with_what(script: ModuleType) -> None:
    assert KEPT.keys() <= {*script.SECTIONS, *script.LARGE}
    for section in KEPT.values():
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", section["date"])
        assert section["processor"]
        assert section["threads"] >= 1
        assert {"varangian", "byzfl", "byzpy", "krum", "flwr", "numpy", "torch"} <= section["versions"].keys()


def test_a_mark_without_a_measurement_says_so(pages: ModuleType) -> None:
    text = "a\n<!-- peers: time-51 -->old<!-- end -->\nb <!-- peers: step --> x\ny <!-- end --> c"
    once = pages.filled(text, {"step": "new"})
    assert "Not measured yet: `make peers ARGS='--section time-51' PYTHON=python3.12`." in once
    assert "b <!-- peers: step -->\n\nnew\n\n<!-- end --> c" in once
    assert "old" not in once
    assert pages.filled(once, {"step": "new"}) == once


def test_the_fastest_variant_is_taken_and_failures_are_no_time(pages: ModuleType) -> None:
    rows = [
        {"rule": "median", "library": "varangian", "least": 2.0},
        {"rule": "median", "library": "byzfl", "least": 9.0},
        {"rule": "median", "library": "byzfl", "least": 5.0},
        {"rule": "median", "library": "krum", "raises": "ValueError: no"},
    ]
    assert pages.times(rows).splitlines()[-1] == "| median | 2 | 5 (2.5) |"


def test_our_calls_compute_what_they_stand_for(script: ModuleType) -> None:
    x = script.vectors(15, 1000)
    found = script.entries(15, 5, 3, HERE)
    assert {e.rule for e in found} >= {"median", "trimmed mean", "MeaMed", "Multi-Krum", "Bulyan", "MDA"}
    for entry in found:
        assert entry.ours is not None
        assert script.differs(entry.read(entry.call(entry.prepare(x))), entry.ours(x)) < 1e-6


@pytest.mark.parametrize("library", ["byzfl", "byzpy", "krum", "flwr"])
def test_what_is_compared_was_the_same_definition(script: ModuleType, library: str) -> None:
    few = "3 Weiszfeld steps"  # not run to the end, which its note says
    rows = [
        r
        for s in script.SHAPES.keys() & KEPT
        for r in KEPT[s]["rows"]
        if r["library"] == library and few not in r["note"]
    ]
    assert rows
    neighbours = {id(r) for r in KEPT.get("time-25", {}).get("rows", ()) if library == "byzfl" and "NNM" in r["rule"]}
    for row in rows:  # ByzFL takes other neighbours there, as the page says: distances differ by 1e-5 at most
        assert row.get("differs", 0.0) < (2e-2 if id(row) in neighbours else 2e-5), row


def test_ours_withstand_every_case(script: ModuleType) -> None:
    """But for centered clipping, which the page says cannot reach a common part from zero."""
    for case in script.HOSTILE:
        for entry in script.entries(11, 4, 2, ["varangian"]):
            if (case, entry.rule) == ("offset", "centered clipping"):
                continue
            x, honest = script.attacked(case, 11, 2 if entry.rule == "Bulyan" else 4, 1000)
            assert script.verdict(entry.read(entry.call(x)), x, honest) == "right", (case, entry.rule)


def test_the_verdict_can_be_any(script: ModuleType) -> None:
    x, honest = script.attacked("same", 11, 4, 1000)
    mean = x[honest].mean(0)
    assert int(honest.sum()) == 7
    assert script.verdict(mean, x, honest) == "right"
    assert script.verdict(mean * float("nan"), x, honest) == "not finite"
    assert re.fullmatch(r"off by [\d.e+]+ spreads", script.verdict(x.mean(0), x, honest))
    equal, all_ = script.attacked("equal", 11, 4, 1000)
    assert script.verdict(equal[0], equal, all_) == "right"
    assert script.verdict(equal[0] + 0.1, equal, all_).startswith("off by")


def test_an_error_of_another_library_is_a_finding(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("first line\nsecond")

    entry = script.Entry("median", "other", "broken(x)", broken, None)
    monkeypatch.setattr(script, "entries", lambda *_: [entry])
    [row] = script.timed(5, 2, 0, 10)
    assert row["raises"] == "RuntimeError: first line"
    assert "ms" not in row


def test_without_the_libraries_it_says_how_to_get_them(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "missing", lambda: ["byzfl", "krum"])
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    with pytest.raises(SystemExit, match=r"^peers.py needs byzfl, krum: make peers PYTHON=python3.12 sets up"):
        script.main()
