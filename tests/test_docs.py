"""What docs/howto/extending.md tells to write runs as it stands, and prints what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import programs

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "extending.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PROGRAMS = [i for i, (kind, _) in enumerate(BLOCKS) if kind == "python"]
FILE = BLOCKS[0][1]  # my_rule.py
MARK = "-- next --\n"


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run(*arguments, cwd=folder, env=os.environ | {"COLUMNS": "120"})


@pytest.mark.slow
def test_all_of_the_page_runs_in_order_and_prints_what_it_shows(tmp_path: Path) -> None:
    (tmp_path / "my_rule.py").write_text(FILE, "utf-8")
    (tmp_path / "page.py").write_text(f"print({MARK!r}, end='')\n".join(BLOCKS[i][1] for i in PROGRAMS), "utf-8")
    done = python(tmp_path, "page.py")
    assert done.returncode == 0, done.stderr
    for i, printed in zip(PROGRAMS, done.stdout.split(MARK), strict=True):
        kind, text = BLOCKS[i + 1] if i + 1 < len(BLOCKS) else ("", "")
        assert printed == (text if kind == "" else "")


@pytest.mark.slow
def test_its_commands(tmp_path: Path) -> None:
    (tmp_path / "my_rule.py").write_text(FILE, "utf-8")
    [commands] = [text for kind, text in BLOCKS if kind == "sh"]
    for line in commands.splitlines():
        done = python(tmp_path, "-m", *shlex.split(line))
        assert done.returncode == 0, (line, done.stderr)


def test_the_rule_is_short() -> None:
    assert len(FILE.splitlines()) <= 20
