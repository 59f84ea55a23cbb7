"""The commands of many runs: what they train, what they say, and what they refuse."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import programs
import varangian as vg
from varangian import Grid
from varangian.cli import study

pytestmark = pytest.mark.usefixtures("forked")
ROOT = Path(__file__).parents[1]
SMALL = """
rule = ["median", "multi-krum"]
attack = ["little", "empire"]
workers = 11
byzantine = 2
batch_size = 2
steps = 4
"""
Program = Callable[..., Any]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_from_its_file_to_its_table(varangian: Program, grid: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    end = varangian("sweep", "small.toml", "--dry-run", "--jobs", "1")
    assert end.status == 0
    assert end.out.splitlines()[0] == "4 runs: rule (2) x attack (2)"
    assert "\n  digits-fully-connected-median-little-n11-f2-worker0.9-lr0.1-seed1\n" in end.out
    assert end.out.splitlines()[-1] == "0 runs complete, 4 to do"
    assert re.search(
        r"4 runs: 0 complete, 4 to do; about \d+ s, until .* \(estimated from a short calibration\)", end.err
    )
    assert sorted(tmp_path.iterdir()) == before  # nothing was written
    end = varangian("sweep", "small.toml", "--jobs", "1")
    assert end.status == 0
    assert end.out.strip() == "Table: small/runs.csv; now: varangian report small"
    assert "4 of 4 complete" in end.err
    assert {(row["rule"], row["attack"]) for row in rows(tmp_path / "small" / "runs.csv")} == {
        (rule, attack) for rule in ("median", "multi-krum") for attack in ("little", "empire")
    }
    [kept] = (tmp_path / "small" / "grids").iterdir()
    assert Grid.from_file(kept) == Grid.from_file(grid)
    record = next((tmp_path / "small" / "sweeps").iterdir()).read_text()
    assert "varangian sweep small.toml --jobs 1" in record
    table = (tmp_path / "small" / "runs.csv").read_bytes()
    end = varangian("sweep", "small.toml", "--jobs", "1")
    assert (end.status, "0 runs in" in end.err) == (0, True)
    assert (tmp_path / "small" / "runs.csv").read_bytes() == table
    end = varangian("sweep", "small.toml", "--dry-run")
    assert end.out.splitlines()[-1] == "4 runs complete, 0 to do"
    assert not (tmp_path / "small" / "failed.csv").exists()


def test_another_grid_in_the_same_folder_adds_its_runs(varangian: Program, grid: Path, tmp_path: Path) -> None:
    one = ["--out", "out", "--jobs", "1", "--set", "rule=median", "--set", "attack=little"]
    assert varangian("sweep", "small.toml", *one).status == 0
    assert varangian("sweep", "small.toml", *one, "--set", "seeds=2-3").status == 0
    assert sorted(row["seed"] for row in rows(tmp_path / "out" / "runs.csv")) == ["1", "2", "3"]
    assert len(list((tmp_path / "out" / "grids").iterdir())) == 2
    both = tmp_path / "out" / "runs.csv"
    text = both.read_bytes()
    assert varangian("sweep", "small.toml", *one, "--set", "seeds=1-3", "--out", "whole").status == 0
    assert (tmp_path / "whole" / "runs.csv").read_bytes() == text  # whichever grids the runs came by


def test_what_the_command_line_says_stands_in_place_of_the_file(varangian: Program, grid: Path) -> None:
    first = "digits-fully-connected-krum-little-n11-f2-worker0.9-lr0.1-seed1"
    said = ["--set", 'rule=["krum", "median"]', "--set", "steps=2", "--set", "momentum-at=worker"]
    end = varangian("sweep", "small.toml", "--dry-run", "--jobs", "1", *said)
    assert end.out.splitlines()[:2] == ["4 runs: rule (2) x attack (2)", f"  {first}"]
    grid.write_text(SMALL.replace("steps = 4", 'steps = "many"'))
    assert "steps" in varangian("sweep", "small.toml", "--dry-run").err
    assert varangian("sweep", "small.toml", "--dry-run", "--jobs", "1", *said).status == 0


def test_a_run_that_fails_is_listed_and_the_status_is_1(varangian: Program, grid: Path, tmp_path: Path) -> None:
    said = ["--jobs", "1", "--out", "out", "--set", "attack=little"]
    end = varangian("sweep", "small.toml", *said, "--set", "model=cnn-small")
    assert end.status == 1
    assert end.err.count("failed: digits-cnn-small-median-little") >= 1
    found = rows(tmp_path / "out" / "failed.csv")
    assert {row["rule"] for row in found} == {"median", "multi-krum"}
    assert all(row["model"] == "cnn-small" and "needs images of at least" in row["reason"] for row in found)
    assert varangian("sweep", "small.toml", *said).status == 0
    assert len(rows(tmp_path / "out" / "failed.csv")) == 2  # they are of another grid


def test_a_device_that_is_not_here_is_one_line(varangian: Program, grid: Path, tmp_path: Path) -> None:
    for device in ("cuda:77", "xpu"):
        end = varangian("sweep", "small.toml", "--device", device)
        assert (end.status, end.out) == (2, "")
        assert f"device: '{device}' cannot be used here" in end.err
        assert end.err.count("\n") == 1
    assert not (tmp_path / "small").exists()
    end = varangian("sweep", "small.toml", "--device", "cuda:77", "--dry-run")
    assert end.status == 2
    assert end.err.startswith("device: 'cuda:77' cannot be used here")
    assert "4 runs" in end.out  # which there are is said all the same
    end = varangian("sweep", "small.toml", "--precision", "tf32")
    assert (end.status, end.err.count("\n")) == (2, 1)
    assert "precision: tf32 is of cards (device cuda), and device is cpu; use float32." in end.err
    end = varangian("sweep", "small.toml", "--precision", "tf32", "--device", "cuda:77", "--dry-run")
    assert (end.status, end.out.splitlines()[-1]) == (2, "0 runs complete, 4 to do")


TUNED = 'rule = "median"\nattack = "little"\nbyzantine = 2\nvalidation = 0.1\n[search]\nlearning_rate = [0.1, 0.2]\n'


@pytest.mark.parametrize("command", ["sweep small.toml", "tune tune.toml", "reproduce --quick"])
def test_a_device_that_is_not_here_is_said_before_data_are_looked_for(
    command: str, varangian: Program, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tune.toml").write_text(TUNED)
    before, looked = sorted(tmp_path.iterdir()), []
    monkeypatch.setattr(study, "open_dataset", lambda *given: looked.append(given))
    end = varangian(*command.split(), "--device", "cuda:77")
    assert (end.status, end.out, end.err.count("\n")) == (2, "", 1)
    assert "device: 'cuda:77' cannot be used here: " in end.err
    end = varangian(*command.split(), "--device", "cuda:77", "--dry-run")
    assert end.status == 2
    assert end.err.startswith("device: 'cuda:77' cannot be used here: ")
    assert end.out.splitlines()[-1].startswith("0 runs complete, ")
    assert (looked, sorted(tmp_path.iterdir())) == ([], before)


def test_errors_of_ones_own_code_keep_their_place(varangian: Program, grid: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport varangian as vg\n\n\n@dataclass(frozen=True)\n"
        "class Mine(vg.General):\n    @property\n    def needs(self):\n        return 'n >= 1', 1\n\n"
        "    def combine(self, x, previous):\n        return {}[len(x)]\n"
    )
    end = varangian("sweep", "small.toml", "--jobs", "1", "--set", "rule=mine.py:Mine", "--set", "attack=little")
    assert end.status == 1
    assert "-seed1: KeyError at mine.py, line 12: 11\n" in end.err
    assert rows(tmp_path / "small" / "failed.csv")[0]["reason"] == "KeyError at mine.py, line 12: 11"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ('rul = "median"', [], "small.toml: unknown setting 'rul'. Did you mean 'rule'?"),
        ("rule = [", [], "small.toml: not TOML: "),
        (f"seeds = '1-1000'\nsteps = {list(range(1000))}\nbatch_size = {list(range(1, 1001))}", [], "1,000,000,000 "),
        (SMALL, ["--set", "steps"], "'steps' is not of the form NAME=VALUE, such as steps=20."),
        (SMALL, ["--set", "rule=[median"], "'[median' is no list, such as [\"median\", \"krum\"]."),
        (SMALL, ["--set", "stepps=3"], "unknown setting 'stepps'. Did you mean 'steps'?"),
        (SMALL, ["--set", "rule=medain"], "rule: unknown rule 'medain'. Did you mean 'median'?"),
        (SMALL, ["--device", "gpu"], "device: 'gpu' is no device, such as cpu, cuda or cuda:1."),
        (SMALL, ["--jobs", "0"], "0 is not in the range x>=1"),
        (SMALL, ["--shard", "3/2"], "'3/2' is not of the form i/N with 1 <= i <= N."),
        (SMALL, ["--time-budget", "soon"], "'soon' is not a time such as 90s, 30m or 2h."),
        (SMALL, ["--sets", "steps=3"], "no such option '--sets'. Did you mean '--set'?"),
        (SMALL, ["--out", "small.toml"], "is a file"),
    ],
)  # fmt: skip
def test_mistakes(varangian: Program, grid: Path, tmp_path: Path, text: str, options: list[str], said: str) -> None:
    grid.write_text(text)
    end = varangian("sweep", "small.toml", *options)
    assert end.status == 2
    assert said in end.err
    assert len(end.err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_data_that_is_not_there(
    varangian: Program, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, and not by every run."""

    def lacking(*_: object) -> None:
        raise vg.DataError("its files are not there.")

    monkeypatch.setattr(study, "open_dataset", lacking)
    end = varangian("sweep", "small.toml")
    assert (end.status, end.err) == (2, "varangian: digits: its files are not there.\n")
    assert not (tmp_path / "small").exists()


def test_a_file_without_suffix_needs_out(varangian: Program, tmp_path: Path) -> None:
    (tmp_path / "grid").write_text("{}")
    end = varangian("sweep", "grid")
    assert (end.status, "--out is needed" in end.err) == (2, True)
    assert varangian("sweep", "nothing.toml").status == 2


def test_commands_of_many_runs_take_the_same_options(varangian: Program) -> None:
    options = {
        name: {word for line in varangian(name, "--help").out.splitlines() for word in re.findall(r"--[a-z-]+", line)}
        for name in ("sweep", "reproduce", "heterogeneity")
    }
    shared = {
        "--out",
        "--data",
        "--jobs",
        "--threads",
        "--device",
        "--precision",
        "--shard",
        "--time-budget",
        "--ray",
        "--dry-run",
    }
    assert all(shared <= found for found in options.values())


def start(folder: Path, *options: str) -> programs.Started | subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    words = "-m", "varangian", "sweep", "grid.toml", *options
    return programs.start(*words, cwd=folder, env=environment, workers=True)


def interrupt_after(folder: Path, count: int, *options: str) -> str:
    process, limit = start(folder, *options), time.monotonic() + 180
    while len(list(folder.glob("*/runs/*/result.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 130
    return errors


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_ctrl_c_says_how_far_it_came(grid: Path, tmp_path: Path) -> None:
    grid.rename(tmp_path / "grid.toml")
    errors = interrupt_after(tmp_path, 1, "--jobs", "1", "--set", "seeds=1-20")
    assert re.search(r"varangian: interrupted; \d+ of 80 runs are complete; the same call goes on\.\n$", errors), errors


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_the_example_interrupted_twice_comes_to_the_same_bytes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "grid.toml", tmp_path)
    assert len(Grid.from_file(tmp_path / "grid.toml")) == 54
    shorter = "--jobs", "2", "--set", "steps=40", "--set", "evaluate_every=20"
    for count in (5, 25):
        errors = interrupt_after(tmp_path, count, "--out", "cut", *shorter)
        said = re.search(r"varangian: interrupted; (\d+) of 54 runs are complete; the same call goes on\.\n$", errors)
        assert said is not None, errors
        assert count <= int(said[1]) < 54
        assert "Traceback" not in errors
    out, errors = start(tmp_path, "--out", "cut", *shorter).communicate(timeout=300)
    assert out.strip() == "Table: cut/runs.csv; now: varangian report cut", errors
    start(tmp_path, "--out", "whole", *shorter).communicate(timeout=300)
    files = [*(Path(f"{name}.csv") for name in ("runs", "curves"))]
    files += [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("runs/*/*.csv")]
    files += [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("grids/*")]
    assert len(files) == 2 + 2 * 54 + 1
    for file in files:
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.slow
def test_a_script_without_guard_is_told_so_in_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import varangian as vg\n"
        "grid = vg.Grid({'rule': ['median', 'krum'], 'workers': 11, 'byzantine': 2, 'steps': 2})\n"
        "print(vg.sweep(grid, 'out', jobs=2).done)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    end = programs.run(script, cwd=tmp_path, env=environment)
    assert end.stderr.count("Traceback") == 1
    assert end.stderr.strip().splitlines()[-1].startswith("RuntimeError: worker processes import the script that calls")
    assert end.stderr.strip().endswith('put the call under if __name__ == "__main__":')
    script.write_text(script.read_text().replace("print(", "if __name__ == '__main__':\n    print("))
    end = programs.run(script, cwd=tmp_path, env=environment, workers=True)
    assert end.stdout == "2\n"


def test_a_program_that_is_no_file(tmp_path: Path) -> None:
    program = (
        "import varangian as vg\nvg.sweep(vg.Experiment(rule='median', workers=11, byzantine=2, steps=1), 'out')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    end = subprocess.run([sys.executable, "-"], input=program, **options)
    assert end.stderr.strip().endswith("sweep(), and <stdin> is no file: write one.")


def test_what_was_handed_over_in_python_has_no_name_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = vg.Experiment(rule="median", workers=11, byzantine=2)
    object.__setattr__(e, "model", "given:Net")
    with pytest.raises(ValueError, match=r"^model: a sweep's processes make everything from its name, and given:Net"):
        vg.sweep([e], tmp_path)
