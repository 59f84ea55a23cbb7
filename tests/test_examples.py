"""The example files, each run as a user would: from an empty folder, by the installed command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# What a user types beside the files, a line a command.
COMMANDS = {
    "own_loop.py": ["own_loop.py"],
    "resnet.py": [
        "resnet.py",
        "varangian run --model resnet.py:ResNet(blocks=1) --loss resnet.py:focal(gamma=2.0) --rule median "
        "--dataset synthetic(shape=(3,16,16),classes=4) --attack empire --workers 5 --byzantine 1 --batch-size 16 "
        "--steps 5 --evaluate-every 0",
    ],
    "table.py": [
        "table.py",
        "varangian run --dataset table.py:cancer --model linear --rule median --attack little --steps 20",
        "varangian run --dataset table.py:diabetes --model linear --loss mse --metrics r2 --rule median --steps 20",
    ],
    "tokens.py": [
        "tokens.py",
        "varangian run --dataset tokens.py:marked --model tokens.py:Transformer --rule median --steps 5",
    ],
    "my_rule.py": [
        "varangian check my_rule.py:MyRule",
        "varangian check my_rule.py:MyRule(m=3)",
        "varangian list my_rule.py:MyRule",
        "varangian run --rule my_rule.py:MyRule(m=3) --pre nnm --attack little --steps 5",
    ],
    "my_attack.py": [
        "varangian check my_attack.py:MyAttack",
        "varangian run --rule median --attack my_attack.py:MyAttack(factor=4.0) --steps 5",
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_example(name: str, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / name, tmp_path)
    for line in COMMANDS[name]:
        words = (
            [sys.executable, "-m", *line.split()] if line.startswith("varangian") else [sys.executable, *line.split()]
        )
        end = subprocess.run(
            words, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
        )
        assert end.returncode == 0, (line, end.stderr)


def test_an_own_rule_takes_twenty_lines() -> None:
    assert len((EXAMPLES / "my_rule.py").read_text().splitlines()) <= 20
