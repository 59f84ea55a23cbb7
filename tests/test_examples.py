"""The example files, each run as a user would: from an empty folder, by the installed command."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

import programs
import varangian as vg

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
    "patient_attack.py": [
        "varangian check patient_attack.py:Patient",
        "varangian run --rule median --attack patient_attack.py:Patient(wait=2) --steps 5",
    ],
    "my_attack.py": [
        "varangian check my_attack.py:MyAttack",
        "varangian run --rule median --attack my_attack.py:MyAttack(factor=4.0) --steps 5",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_example(name: str, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / name, tmp_path)
    for line in COMMANDS[name]:
        words = ["-m", *line.split()] if line.startswith("varangian") else line.split()
        end = programs.run(*words, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert end.returncode == 0, (line, end.stderr)


@pytest.mark.slow
def test_an_own_rule_against_all_others(tmp_path: Path) -> None:
    """Swept under four attacks with three seeds, and in the report's heat map."""
    for name in ("my_rule.py", "my_rule.toml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    assert set(re.findall(r'"([\w-]+)"', (EXAMPLES / "my_rule.toml").read_text())) >= {
        name for name, kind in vg.RULES.items() if not kind.needs_root
    }
    for line in ("sweep my_rule.toml --out study --jobs 2", "report study"):
        end = programs.run("-m", "varangian", *line.split(), cwd=tmp_path, timeout=900, workers=True)
        assert end.returncode == 0, (line, end.stderr)
    assert len(list((tmp_path / "study" / "runs").iterdir())) == 24 * 4 * 3
    assert (tmp_path / "study" / "figures" / "heat-max.png").exists()
    assert "my_rule.py:MyRule" in (tmp_path / "study" / "cells.csv").read_text()


def test_an_own_rule_takes_twenty_lines() -> None:
    assert len((EXAMPLES / "my_rule.py").read_text().splitlines()) <= 20
