"""benchmarks/gpu.py, which is to give everything in one call on a borrowed card: tried to the end without one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
SMALL = ("--device", "cpu", "--small")


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=pipe, stderr=pipe)


def sections(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "gpu" / "gpu.json").read_text("utf-8"))["sections"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_section_runs_to_its_end_and_finds_nothing_wrong(tmp_path: Path) -> None:
    process = start(*SMALL, cwd=tmp_path)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    found = sections(tmp_path)
    assert {name: section["status"] for name, section in found.items()} == dict.fromkeys(found, "done")
    assert set(found) >= {"setup", "compile", "rates", "correct", "times", "steps", "determinism", "runs", "estimate"}
    assert "| panel | ms a step |" in out
    for panel in ("fashion-mnist", "cifar-10", "cnn-fashion-mnist", "wide-resnet"):
        assert re.search(rf"^\| {panel}, .* \| [\d.,]+ \|", out, re.MULTILINE), panel


def test_what_was_found_outlives_a_termination(tmp_path: Path) -> None:
    process = start(*SMALL, "--only", "setup,rates,steps,determinism,runs", cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("rates"):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    found = sections(tmp_path)
    assert (found["setup"]["status"], found["rates"]["status"]) == ("done", "interrupted"), err
    assert "steps" not in found
    assert process.returncode == 1
    assert "ended before the end" in out


def test_an_unknown_section_or_a_card_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    for arguments, said in (
        ((*SMALL, "--only", "setup,kernel"), "no section kernel; there are setup, compile,"),
        (("--only", "setup"), "no card here for cuda:0; --device cpu --small tries the script."),
        ((*SMALL, "--wheels", "."), "holds no wheels; --fetch . downloads them."),
    ):
        process = start(*arguments, cwd=tmp_path)
        _, err = process.communicate(timeout=120)
        assert process.returncode != 0
        assert said in err
        assert "Traceback" not in err


def test_a_section_that_fails_is_recorded_and_the_next_one_goes_on(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "GRACE", 0.0)
    report = script.Report(tmp_path / "gpu.json", 60.0, time.monotonic())

    def breaks() -> None:
        report.note("before", 1)
        raise RuntimeError("CUDA error: an illegal memory access")

    def hangs() -> None:
        report.note("left", list(report.in_time(range(3))))
        time.sleep(60)

    report.run("breaks", 5, breaks)
    report.run("is wrong", 5, lambda: report.wrong("two and two are five"))
    report.run("works", 5, lambda: report.note("ms", 0.25))
    report.run("hangs", 0.2, hangs)
    report.run("too late", 0, breaks)
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["sections"]
    assert {name: section["status"] for name, section in found.items()} == {
        "breaks": "failed", "is wrong": "wrong", "works": "done", "hangs": "out of time",
        "too late": "left out for lack of time",
    }  # fmt: skip
    assert found["breaks"]["before"] == 1
    assert "illegal memory access" in found["breaks"]["error"]
    assert found["works"]["ms"] == 0.25
    assert report.failed == ["breaks", "is wrong", "hangs", "too late"]


def test_what_does_not_fit_is_named(script: ModuleType, tmp_path: Path) -> None:
    report = script.Report(tmp_path / "gpu.json", 60.0, time.monotonic())

    def slow() -> None:
        for _ in report.in_time(["one", "two", "three"]):
            time.sleep(0.3)

    report.run("slow", 0.2, slow)
    assert report.found["sections"]["slow"]["left out for lack of time"] == ["two", "three"]


def test_wheels_come_before_what_is_installed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_for_a_test.py", "HERE = True\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert script.unpack(tmp_path / "wheels", tmp_path / "there") == ["carried-1-py3-none-any.whl"]
    assert importlib.util.find_spec("carried_for_a_test") is not None


def test_what_is_lacking_is_said_with_the_reason(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.lacking() == []
    (tmp_path / "numba_of_a_test.py").write_text("raise ImportError('Numba needs NumPy 2.4 or less')\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(script, "NEEDED", ("json", "nowhere_to_be_found", "numba_of_a_test"))
    assert script.lacking() == [
        "nowhere_to_be_found: not installed",
        "numba_of_a_test: ImportError: Numba needs NumPy 2.4 or less",
    ]


def test_all_that_the_package_imports_is_asked_for(script: ModuleType) -> None:
    """Every dependency that pyproject.toml names, and those that a machine set up for torch usually lacks."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    [listed] = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r'^    "([a-z0-9]+)', listed, re.MULTILINE)) <= set(script.NEEDED)
    pinned = (ROOT / "constraints.txt").read_text("utf-8")
    assert all(re.search(rf"^{name}==", pinned, re.MULTILINE) for name in script.CARRIED)
