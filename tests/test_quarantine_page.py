"""What docs/howto/quarantine.md says can be run, and prints what it shows."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

import programs

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "quarantine.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_its_program_prints_what_it_shows() -> None:
    [program] = [text for kind, text in BLOCKS if kind == "python"]
    [shown] = [text for kind, text in BLOCKS if kind == ""]
    done = programs.run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


@pytest.mark.slow
def test_its_commands(tmp_path: Path) -> None:
    [commands] = [text for kind, text in BLOCKS if kind == "sh"]
    for line in commands.splitlines():
        words = shlex.split(line)
        assert words[0] == "varangian"
        done = programs.run("-m", *words, cwd=tmp_path, env=os.environ | {"COLUMNS": "120"})
        assert done.returncode == 0, (line, done.stderr)


def test_its_settings_are_those_that_there_are() -> None:
    import varangian as vg

    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", PAGE, re.MULTILINE)
    assert {name: repr(value) for name, value in vars(vg.Quarantine()).items()} == dict(rows)
