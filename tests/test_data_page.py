"""What docs/howto/data.md tells to write runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch

import programs
import varangian as vg
from varangian.core.specs import make

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "data.md").read_text("utf-8")
FOUND = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PROGRAMS = [text for kind, text in FOUND if kind == "python"]
COMMANDS = [line for kind, text in FOUND if kind == "sh" for line in text.splitlines()]


def test_programs_and_commands(tmp_path: Path) -> None:
    handed, made, waves, dealt, recall = PROGRAMS
    (tmp_path / "waves.py").write_text(waves)
    (tmp_path / "my_file.py").write_text(recall)
    for program, words in (
        (handed, "given:data"),
        (made, "(3, 12, 12) 4 150 50"),
        (dealt, "(15, 10) 1297 5 True"),
    ):
        done = programs.run("-c", program, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    runs = [line for line in COMMANDS if line.startswith("varangian run")]
    for line, words in zip(runs, ("r2", "validation worst-class"), strict=True):
        words_of = ["-m", *shlex.split(line), "--quiet", "--metrics", "my_file.py:recall"]
        words_of = words_of if "r2" not in line else words_of[:-2]
        done = programs.run(*words_of, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (words if "r2" in line else "recall") in done.stdout


def test_who_holds_what(tmp_path: Path) -> None:
    one, other = [line for line in COMMANDS if line.startswith("varangian data")]
    for line, words in ((one, "One point does not tell G from B"), (other, "by least squares of")):
        done = programs.run("-m", *shlex.split(line), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert words in " ".join(done.stdout.split())
    for folder, figures in (("holdings", ["holdings"]), ("along", ["gradients", "holdings"])):
        written = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert written == ["data.html", "figures", "gradients.csv", "holdings.csv"]
        drawn = sorted(path.name for path in (tmp_path / folder / "figures").iterdir())
        assert drawn == [f"{name}.{kind}" for name in figures for kind in ("pdf", "png")]


def test_all_partitions_are_in_the_table() -> None:
    table = re.findall(r"^\| `([a-z-]+)(\(.*?\))?` \|", PAGE, re.MULTILINE)
    assert [name for name, _ in table] == list(vg.PARTITIONS)
    for name, options in table:
        assert make("partition", name + options, vg.PARTITIONS) == vg.PARTITIONS[name]()  # what is shown is the default


def test_names_in_the_text() -> None:
    names = re.search(r"in each evaluation: (.*?) \(`varangian list", PAGE, re.DOTALL)
    assert names is not None
    assert {name.partition("(")[0] for name in re.findall(r"`([a-z0-9-]+(?:\(.*?\))?)`", names[1])} == set(vg.METRICS)
    assert vg.dataset((torch.zeros(10, 2), torch.arange(10) % 2)).scale == 1
    assert "at most 4 GiB" in PAGE
