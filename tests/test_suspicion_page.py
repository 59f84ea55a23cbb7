"""docs/howto/suspicion.md: its program prints what it shows, its commands run, its pictures and tables are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
from varangian import Grid

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "howto" / "suspicion.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_program_prints_what_the_page_shows(tmp_path: Path) -> None:
    [program], [printed] = [t for kind, t in BLOCKS if kind == "python"], [t for kind, t in BLOCKS if not kind]
    (tmp_path / "page.py").write_text(program, "utf-8")
    done = programs.run("page.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_its_commands_run_in_an_empty_folder(varangian: Callable[..., Any], tmp_path: Path) -> None:
    [commands] = [text for kind, text in BLOCKS if kind == "sh"]
    for line in commands.splitlines():
        end = varangian(*shlex.split(line)[1:])
        assert end.status == 0, (line, end.err)
    assert (tmp_path / "suspects" / "suspects.html").is_file()
    assert (tmp_path / "suspects" / "figures" / "suspicion.png").is_file()


def test_what_pages_show_is_there() -> None:
    for page in (PAGE, ROOT / "results" / "suspicion" / "README.md"):
        for place in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text("utf-8")):
            assert (page.parent / place).exists(), (page.name, place)


def test_the_grids_are_those_of_the_results() -> None:
    table = (ROOT / "results" / "suspicion" / "suspects.csv").read_text("utf-8").splitlines()[1:]
    assert {line.split(",")[1] for line in table} == {
        e.digest for e in Grid.from_file(ROOT / "examples" / "suspicion.toml").experiments()
    }
    both = (ROOT / "results" / "suspicion" / "shut-out" / "suspects.csv").read_text("utf-8").splitlines()[1:]
    assert {line.split(",")[1] for line in both} == {
        e.digest for e in Grid.from_file(ROOT / "examples" / "shut_out.toml").experiments()
    }
