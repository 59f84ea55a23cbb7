"""What docs/howto/live.md tells to write runs as it stands, and its table of events is the schema."""

from __future__ import annotations

import os
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import programs
from varangian.runs.live.schema import schema

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "live.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def python(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = programs.run(*arguments, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_runs_in_order_and_prints_what_it_shows(tmp_path: Path) -> None:
    ran = 0
    for (kind, text), (other, printed) in pairwise(BLOCKS):
        if kind == "sh":
            found = [python(tmp_path, "-m", *shlex.split(line)) for line in text.splitlines()][-1]
            found, printed = (re.sub(r" +\d+ s  ", "  n s  ", said) for said in (found, printed))
            assert [line.rstrip() for line in found.splitlines()] == printed.splitlines()
        elif kind == "python":
            assert other == ""
            found = python(tmp_path, "-c", text)
            assert found == printed
        ran += kind != ""
    assert ran == 4


def test_the_table_names_every_event_and_field() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
    told: dict[str, set[str]] = {}
    for event, _, fields in rows:
        told.setdefault(event, set()).update(re.findall(r"`(\w+)`", fields))
    found: dict[str, set[str]] = {}
    for definition in schema()["$defs"].values():
        fields = set(definition["properties"])
        event = definition["properties"]["event"]["const"]
        found.setdefault(event, set()).update(fields - {"event", "time"})
    assert told.keys() == found.keys()
    assert told.pop("step") <= found.pop("step")  # whose measures are in conventions.md
    assert told == found


def test_the_picture_loads_nothing() -> None:
    text = (ROOT / "docs" / "howto" / "live.svg").read_text("utf-8")
    assert not re.findall(r"https?://(?!www\.w3\.org|www\.textualize\.io|www\.rich)", text)
    assert "](live.svg)" in PAGE
