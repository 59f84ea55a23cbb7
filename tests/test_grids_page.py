"""What docs/howto/grids.md tells to write is what there is, and runs as it stands."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import programs
from varangian import Grid, Search

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "grids.md").read_text("utf-8")
FOUND = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
BLOCKS = {kind: [text for other, text in FOUND if other == kind] for kind in ("toml", "sh", "python", "")}
GRID, CASES, TUNE, DRAWN = BLOCKS["toml"]


def test_files() -> None:
    assert len(Grid.from_toml(GRID)) == 54
    assert Grid.from_toml(GRID) == Grid.from_file(ROOT / "examples" / "grid.toml")
    assert Grid.from_toml(CASES).notes == ()
    assert len(Grid.from_toml(CASES)) == 2 * (3 * 4 + 3 * 4 + 2)
    assert Search.from_toml(TUNE) == Search.from_file(ROOT / "examples" / "tune.toml")
    assert len(Search.from_toml(DRAWN).tried) == 20


def test_momentum_compared_at_equal_effective_rates() -> None:
    found = Grid.from_file(ROOT / "examples" / "placement.toml").experiments()
    assert len(found) == 24
    assert {(e.learning_rate, e.momentum, e.dampening) for e in found} == {(0.5, 0.0, 0.9), (0.5, 0.9, 0.9)}
    assert {e.momentum_at for e in found if e.momentum} == {"server", "worker", "adaptive"}


def test_values_in_the_text() -> None:
    found = re.findall(r"`((?:rule|pre|learning_rate|seed) = \[.*?\])`(?=[: ;.])", PAGE, re.DOTALL)
    assert len(found) >= 5
    question = "workers = 11\nbyzantine = 2\n"
    for text in found:
        if ".py:" not in text:
            assert (
                len(Grid.from_toml(f"{question}{text}" if "rule" in text else f"{question}rule = 'median'\n{text}")) > 1
            )


def test_the_message(varangian: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text('rule = ["median", "bulyan"]\nworkers = 11\nbyzantine = [2, 4]\n')
    message = next(block for block in BLOCKS[""] if "Bulyan(f=4)" in block)
    assert varangian("sweep", "grid.toml").err == message


def test_options_in_the_table(varangian: Callable[..., Any]) -> None:
    known = set(re.findall(r"--[a-z-]+", varangian("sweep", "--help").out))
    rows = re.findall(r"^\| `(--.*?)` \|", PAGE, re.MULTILINE)
    assert len(rows) == 7
    assert {word for row in rows for word in shlex.split(row) if word.startswith("--")} <= known


@pytest.mark.slow
def test_commands(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    (tmp_path / "tune.toml").write_text(TUNE)
    lines = [shlex.split(line, comments=True) for block in BLOCKS["sh"] for line in block.splitlines()]
    said = [run(tmp_path, [*line, *(["--set", "steps=4"] if line[1] == "sweep" else [])]) for line in lines]
    assert said[0].startswith("54 runs: ")
    assert next(block for block in BLOCKS[""] if block.startswith("chosen: ")) in said[3]


@pytest.mark.slow
@pytest.mark.parametrize("code", BLOCKS["python"], ids=["sweep", "tune"])
def test_programs(code: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(code, "utf-8")
    assert run(tmp_path, ["program.py"]).count("\n") > 4


def run(folder: Path, words: list[str]) -> str:
    command = ["-m", "varangian", *words[1:]] if words[0] == "varangian" else words
    done = programs.run(*command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, workers=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
