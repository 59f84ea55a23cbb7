"""benchmarks/gpu.py, which is to give everything in one call on a borrowed card: tried to the end without one."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch

import programs
from pretended import PretendedCard
from varangian import Experiment
from varangian.cli import commands
from varangian.core import kernels
from varangian.runs.building import build, computing, open_dataset
from varangian.study.sweep import places

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


@pytest.fixture(scope="module")
def sections_of(script: ModuleType) -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return importlib.import_module("gpu_sections")
    finally:
        sys.path.remove(str(SCRIPT.parent))


def report_in(script: ModuleType, folder: Path, seconds: float = 60.0, **options: object) -> Any:
    return script.Report(folder / "gpu.json", time.time() + seconds, **options)


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


@pytest.mark.slow
def test_its_sections_obey_a_pretended_card(script: ModuleType, sections_of: ModuleType, tmp_path: Path) -> None:
    """As they would a card: nothing is handed to the host that has to be asked for, or found on another device."""
    only = "setup,rates,times,gradients,steps,estimate,determinism,runs"
    with PretendedCard():
        report = report_in(script, tmp_path, seconds=345)
        sections_of.everything(report, argparse.Namespace(device="cuda:0", small=True, data=None, only=only))
    assert {name: section["status"] for name, section in report.found["sections"].items()} == dict.fromkeys(
        only.split(","), "done"
    ), report.found


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
    assert process.returncode == 130
    assert "ended before the end" in out


NO_CARD = "--device: no card here for cuda:0; --device cpu --small tries the script."
CPU = ("--device", "cpu")


def said(arguments: tuple[str, ...], cwd: Path) -> tuple[int, list[str]]:
    """Exit status and lines of what is refused."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = programs.run(SCRIPT, *arguments, cwd=cwd, env=environment, timeout=120)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--device", "CUDA"), "--device: must be cpu, cuda or cuda:N, got 'CUDA'."),
        (("--device", "cuda:-1"), "--device: must be cpu, cuda or cuda:N, got 'cuda:-1'."),
        (("--device", "cuda:01"), "--device: must be cpu, cuda or cuda:N, got 'cuda:01'."),
        (("--device", "cpu:1"), "--device: must be cpu, cuda or cuda:N, got 'cpu:1'."),
        (("--device", ""), "--device: must be cpu, cuda or cuda:N, got ''."),
        (("--device", "mps", "--small"), "--device: must be cpu, cuda or cuda:N, got 'mps'."),
        (("--only", "setup"), NO_CARD),
        (("--device", "cuda", "--out", "some/where"), NO_CARD),
        ((*CPU, "--wheels", "torn"), "--wheels: torn/a-1-py3-none-any.whl cannot be unpacked: File is not a zip file; "
         "copy it again."),
        ((*CPU, "--wheels", "damaged"), "--wheels: damaged/a-1-py3-none-any.whl cannot be unpacked: a.py in it is "
         "damaged; copy it again."),
        ((*CPU, "--wheels", "."), "--wheels: . holds no wheels; --fetch . downloads them."),
        ((*CPU, "--wheels", "none"), "--wheels: none is no folder; --fetch none downloads what belongs there."),
        ((*CPU, "--wheels", ""), "--wheels: must be the name of a folder, got none."),
        (("--fetch", "file/wheels"), "--fetch: file/wheels cannot be written: Not a directory; choose another "
         "--fetch."),
        (("--fetch", ""), "--fetch: must be the name of a folder, got none."),
        ((*CPU, "--out", ""), "--out: must be the name of a folder, got none."),
        ((*CPU, "--out", "file"), "--out: file cannot be written: File exists; choose another --out."),
        ((*CPU, "--data", "nowhere"), "--data: nowhere is no folder; without --data, images of the true shapes are "
         "made up."),
        ((*CPU, "--data", ""), "--data: must be the name of a folder, got none."),
        ((*CPU, "--seconds", "nan"), "--seconds: must be a number above 0, got 'nan'."),
        ((*CPU, "--seconds", "-3"), "--seconds: must be a number above 0, got '-3'."),
        ((*CPU, "--seconds", "0"), "--seconds: must be a number above 0, got '0'."),
        ((*CPU, "--seconds", "inf"), "--seconds: must be a number above 0, got 'inf'."),
        ((*CPU, "--seconds", "soon"), "--seconds: must be a number above 0, got 'soon'."),
        ((*CPU, "--only", "setup,,kernel"), "--only: no section '', kernel; there are setup, compile, rates, correct, "
         "times, gradients, steps, estimate, determinism, runs, engines, together."),
        ((*CPU, "--items", "("), "--items: '(' is no regular expression: missing ), unterminated subpattern at "
         "position 0."),
        ((*CPU, "--tiny"), "nothing here is called --tiny; --help says what is."),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line_and_leaves_nothing_behind(
    arguments: tuple[str, ...], line: str, script: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("", "utf-8")
    wheel = "a-1-py3-none-any.whl"
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / wheel).write_bytes(b"")
    (tmp_path / "damaged").mkdir()
    with zipfile.ZipFile(tmp_path / "damaged" / wheel, "w") as packed:
        packed.writestr("a.py", "HERE = True\n")
    whole = (tmp_path / "damaged" / wheel).read_bytes()
    (tmp_path / "damaged" / wheel).write_bytes(whole.replace(b"True", b"Trux"))
    before = sorted(tmp_path.rglob("*"))
    if line == NO_CARD:  # which another process is asked
        assert said(arguments, tmp_path) == (2, [line])
    else:
        monkeypatch.chdir(tmp_path)
        assert script.main(list(arguments)) == 2
        assert capsys.readouterr() == ("", line + "\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_all_faults_are_said_at_once(tmp_path: Path) -> None:
    arguments = shlex.split("--out '' --data nowhere --only kernel --items '(' --seconds 0 --wheels w")
    status, lines = said(tuple(arguments), tmp_path)
    assert status == 2
    assert [line.partition(":")[0] for line in lines] == [
        "--out", "--wheels", "--data", "--only", "--items", "--seconds", "--device",
    ]  # fmt: skip
    assert lines[-1] == NO_CARD
    assert list(tmp_path.iterdir()) == []


def test_what_was_found_before_stays_where_it_was_when_a_call_is_refused(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "gpu" / "gpu.json"
    path.parent.mkdir()
    path.write_text(json.dumps(script.read(path) | {"sections": {"setup": {"status": "done"}}}), "utf-8")
    before = path.read_bytes()
    assert said(("--only", "setup"), tmp_path) == (2, [NO_CARD])
    assert [*path.parent.iterdir()] == [path]
    assert path.read_bytes() == before


def test_cuda_alone_is_the_first_card(script: ModuleType) -> None:
    options, faults = script.asked(["--device", "cuda"])
    assert (options.device, faults) == ("cuda:0", [])


@pytest.mark.parametrize(("count", "device", "words"), [
    (1, "cuda:0", []), (2, "cuda:1", []), (1, "cuda:1", ["(1 there: the last is cuda:0)"]),
    (2, "cuda:257", ["(2 there: the last is cuda:1)"]), (0, "cpu", []),
])  # fmt: skip
def test_a_card_is_there_or_not_by_its_number(
    count: int, device: str, words: list[str], script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    faults = script.absent(device)
    assert len(faults) == len(words)
    assert all(word in fault for word, fault in zip(words, faults, strict=True))


def test_a_card_that_is_gone_for_the_process_behind_another_is_a_failure_and_no_refusal(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supervise(command: list[str], path: Path, end: float) -> int:
        path.write_text(json.dumps(script.read(path) | {"sections": {"setup": {"status": "done"}}}), "utf-8")
        return 2

    monkeypatch.setattr(script, "supervise", supervise)
    monkeypatch.setattr(script.signal, "signal", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", "")
    assert script.main(["--device", "cpu", "--out", str(tmp_path / "out")]) == 1
    assert json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8"))["sections"] == {"setup": {"status": "done"}}


def test_what_fails_is_recorded_and_the_next_thing_is_tried(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_in(script, tmp_path)
    monkeypatch.setattr(script, "GRACE", 0.0)

    def halves(x: int) -> float:
        return 6 / x

    def breaks() -> None:
        report.note("before", 1)
        raise RuntimeError("CUDA error: an illegal memory access")

    report.run("breaks", 5, breaks)
    report.run("some", 5, lambda: report.each([3, 0, 2], lambda x: f"by {x}", halves))
    report.run("noted apart", 5, lambda: report.each([3], lambda x: f"by {x}", halves, "halves"))
    report.run("hangs", 0.2, lambda: time.sleep(60))
    report.run("too late", 0, breaks)
    found = script.read(tmp_path / "gpu.json")["sections"]
    assert {name: section["status"] for name, section in found.items()} == {
        "breaks": "failed", "some": "wrong", "noted apart": "done", "hangs": "out of time",
        "too late": "left out for lack of time",
    }  # fmt: skip
    assert found["breaks"]["before"] == 1
    assert "illegal memory access" in found["breaks"]["error"]
    assert (found["some"]["by 3"], found["some"]["by 2"]) == (2, 3)
    assert found["some"]["wrong"] == ["by 0: ZeroDivisionError: division by zero"]
    assert "in halves" in found["some"]["errors"]["by 0"]
    assert found["noted apart"]["halves"] == {"by 3": 2}


def test_items_are_chosen_by_their_names(script: ModuleType, tmp_path: Path) -> None:
    report = report_in(script, tmp_path, items="^median|B$")
    report.run("some", 5, lambda: report.each(["median, A", "norms, A", "norms, B", "a median"], str, len))
    found = report.found["sections"]["some"]
    assert [name for name in found if name not in ("status", "seconds")] == ["median, A", "norms, B"]


def test_what_does_not_fit_is_named(script: ModuleType, tmp_path: Path) -> None:
    report = report_in(script, tmp_path)
    report.run("slow", 0.2, lambda: report.each(["one", "two", "three"], str, lambda _: time.sleep(0.25)))
    assert report.found["sections"]["slow"]["status"] == "done in part"
    assert report.found["sections"]["slow"]["left out for lack of time"] == {"first": ["two", "three"], "how many": 2}


def test_a_broken_card_ends_the_process_and_what_broke_it_is_not_tried_again(
    script: ModuleType, tmp_path: Path
) -> None:
    tried: list[str] = []

    def work(item: str) -> int:
        tried.append(item)
        if item == "bad":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return len(item)

    report = report_in(script, tmp_path, broken=lambda: tried[-1] == "bad")
    section = lambda: report.each(["first", "bad", "last"], str, work)  # noqa: E731
    with pytest.raises(script.Broken):
        report.run("kernels", 5, section)
    left = script.read(tmp_path / "gpu.json")
    assert (left["sections"]["kernels"]["status"], left["sections"]["kernels"]["at"]) == ("running", "bad")
    left["killed"].append("kernels: bad")
    left["sections"]["kernels"]["status"] = "to do"
    (tmp_path / "gpu.json").write_text(json.dumps(left), "utf-8")
    report = report_in(script, tmp_path)
    report.run("kernels", 5, section)
    assert tried == ["first", "bad", "last"]
    found = report.found["sections"]["kernels"]
    assert (found["status"], found["first"], found["last"]) == ("wrong", 5, 4)
    assert found["wrong"] == ["bad: RuntimeError: CUDA error: an illegal memory access was encountered"]


DIES = """
import json, os, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
found = json.loads(path.read_text())
killed = found["killed"]
if len(killed) < 3:
    end = [lambda: os._exit(3), lambda: os.kill(os.getpid(), 11), lambda: time.sleep(60)][len(killed)]
    at = {} if len(killed) == 2 else {"at": f"item {len(killed)}"}
    found["sections"]["kernels"] = {"status": "running", **at}
    found["deadline"] = time.time() + (1 if len(killed) == 2 else 60)
    path.write_text(json.dumps(found))
    end()
"""


def test_another_process_goes_on_behind_what_broke_crashed_or_never_ended(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dies.py").write_text(DIES, "utf-8")
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(script.read(path)), "utf-8")
    command = [sys.executable, str(tmp_path / "dies.py"), str(path)]
    assert script.supervise(command, path, time.time() + 60) == 0
    found = script.read(path)
    assert found["why"] == {
        "kernels: item 0": "broke the card", "kernels: item 1": "ended its process (-11)", "kernels": "never ended",
    }  # fmt: skip
    assert found["sections"]["kernels"]["status"] == "failed"
    assert "kernels: item 1 ended its process (-11); going on behind it." in capsys.readouterr().out


def test_what_an_earlier_call_found_is_kept(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    script._keep(path)
    path.write_text(json.dumps(script.read(path) | {"made": "2026-11-27T04:50:09+00:00"}), "utf-8")
    script._keep(path)
    assert [p.name for p in tmp_path.iterdir()] == ["gpu-20261127T045009.json"]


@pytest.mark.parametrize("text", ['{"made": "2026-11', "[]", "{}"])
def test_what_an_earlier_call_has_left_half_written_is_kept(script: ModuleType, tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text, "utf-8")
    os.utime(path, (0, 0))
    script._keep(path)
    assert [(p.name, p.read_text("utf-8")) for p in tmp_path.iterdir()] == [("gpu-19700101T000000.json", text)]


def test_wheels_are_unpacked(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_for_a_test.py", "HERE = True\n")
    assert script.unpack(tmp_path / "wheels", tmp_path / "there") == ["carried-1-py3-none-any.whl"]
    monkeypatch.syspath_prepend(tmp_path / "there")
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
    """Every dependency that pyproject.toml names but those of commands and figures."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    [listed] = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    dependencies = set(re.findall(r'^    "([a-z0-9]+)', listed, re.MULTILINE))
    assert dependencies - {"click", "matplotlib", "jinja2", "requests"} <= set(script.NEEDED)
    pinned = (ROOT / "constraints.txt").read_text("utf-8")
    assert all(re.search(rf"^{name}==", pinned, re.MULTILINE) for name in script.CARRIED)


# ------------------------------------------------------------------------------------------------ its page

PAGE = (ROOT / "docs" / "howto" / "gpu.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_the_programs_of_the_page_run(text: str) -> None:
    exec(text, {})


@pytest.mark.parametrize("line", LINES)
def test_the_commands_of_the_page_are_understood(
    line: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text('rule = ["median", "krum"]\n', "utf-8")
    program, name, *arguments = shlex.split(line)
    if program == "python":
        assert (ROOT / name) == SCRIPT
        faults = script.asked(arguments)[1]
        assert not [line for line in faults if " is no folder; " not in line]  # which are the reader's
        return
    assert program == "varangian"
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    command.make_context(name, arguments)


def test_the_page_lists_all_sections(sections_of: ModuleType) -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(sections_of.SECTIONS)


def test_the_command_line_knows_all_sections(script: ModuleType, sections_of: ModuleType) -> None:
    assert tuple(sections_of.SECTIONS) == script.SECTIONS


def test_the_page_says_how_many_runs_share_a_card() -> None:
    assert (places.CONVOLUTIONS, places.OTHERS) == (1, 4)
    assert "at most four, one where there are convolutions" in PAGE


@pytest.mark.parametrize(
    ("rule", "pre", "most"),
    [("median", (), 0), ("meamed", (), 0), ("multi-krum", (), 1), ("bulyan", (), 1), ("median", ("nnm",), 1),
     ("geometric-median", (), 1), ("dnc", (), 3), ("aksel", (), 3), ("lasa", (), 2)],
)  # fmt: skip
def test_a_step_waits_as_often_as_the_page_says(rule: str, pre: tuple[str, ...], most: int) -> None:
    e = Experiment(workers=15, byzantine=3, attack="little", rule=rule, pre=pre, momentum=0.9, momentum_at="worker")
    dataset = open_dataset(e)
    with PretendedCard() as card, computing(replace(e, device="cuda:0")):
        simulation, _ = build(replace(e, device="cuda:0"), dataset)
        for _ in range(3):
            simulation.advance()
        card.reset()
        simulation.advance()
        assert card.waits.total() <= most, card
        assert card.late.total() == 1  # the step before


def test_the_page_says_what_the_kernels_need() -> None:
    assert (kernels.TRITON, kernels.CAPABILITY) == ((3, 5), (8, 0))
    assert "Triton 3.5 or later" in PAGE
    assert "cards since Ampere" in PAGE
