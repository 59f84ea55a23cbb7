"""What docs/data.md tells to write runs as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

import varangian as vg

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
FOUND = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PROGRAMS = [text for kind, text in FOUND if kind == "python"]
COMMANDS = [text for kind, text in FOUND if kind == "sh"]


def test_programs_and_commands(tmp_path: Path) -> None:
    handed, made, waves, recall = PROGRAMS
    (tmp_path / "waves.py").write_text(waves)
    (tmp_path / "my_file.py").write_text(recall)
    for program, words in ((handed, "given:data"), (made, "(3, 12, 12) 4 150 50")):
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    for line, words in zip(COMMANDS, ("r2", "validation worst-class"), strict=True):
        command = [sys.executable, "-m", *shlex.split(line), "--quiet", "--metrics", "my_file.py:recall"]
        command = command if "r2" not in line else command[:-2]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (words if "r2" in line else "recall") in done.stdout


def test_names_in_the_text() -> None:
    names = re.search(r"in each evaluation: (.*?) \(`varangian list", PAGE, re.DOTALL)
    assert names is not None
    assert {name.partition("(")[0] for name in re.findall(r"`([a-z0-9-]+(?:\(.*?\))?)`", names[1])} == set(vg.METRICS)
    assert vg.dataset((torch.zeros(10, 2), torch.arange(10) % 2)).scale == 1
    assert "at most 4 GiB" in PAGE
