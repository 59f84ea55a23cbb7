"""docs/howto/federated.md: its commands run, its programs print what it shows, its table is what populations say."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

import programs

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "federated.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_page_runs_and_prints_what_it_shows(tmp_path: Path) -> None:
    code, printed = [t for kind, t in BLOCKS if kind == "python"], [t for kind, t in BLOCKS if not kind]
    (tmp_path / "page.py").write_text("\n".join(code), "utf-8")
    done = programs.run("page.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(printed)


@pytest.mark.slow
def test_its_commands(tmp_path: Path) -> None:
    [commands] = [text for kind, text in BLOCKS if kind == "sh"]
    for line in commands.splitlines():
        done = programs.run("-m", *shlex.split(line), cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)


def test_its_table_is_what_populations_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PAGE.parent))
    assert import_module("federated").table() in PAGE.read_text("utf-8")
