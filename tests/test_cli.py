"""The command line: exit status, one clear message, output that a machine may read."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import varangian as vg
from interruption import interrupt, left_by
from varangian import cli
from varangian.cli import runs
from varangian.cli.catalogue import KINDS, catalogue
from varangian.core.checks import summary_of
from varangian.runs.experiment import HASHES
from varangian.study import demo

ROOT = Path(__file__).parents[1]
SMALL = ["run", "--workers", "11", "--byzantine", "2", "--steps", "2", "--batch-size", "2", "--quiet"]


def left(folder: Path) -> list[str]:
    """What lies below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -------------------------------------------------------------------------------------------------- the plain uses


def test_run(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    end = varangian(*SMALL, "--rule", "median", "--attack", "little", "--momentum-at", "server", "--nesterov")
    # The first test of a fresh clone compiles, which takes more than a second, and says so.
    assert (end.status, re.sub("varangian: compiling kernels .*\\n", "", end.err)) == (0, "")
    [folder] = (tmp_path / "runs").iterdir()
    result = vg.read(folder)
    assert result.experiment == vg.Experiment(
        workers=11,
        byzantine=2,
        steps=2,
        batch_size=2,
        rule="median",
        attack="little",
        momentum_at="server",
        nesterov=True,
    )
    assert f"{result.max_accuracy:.2%}" in end.out
    assert str(Path("runs") / folder.name) in end.out
    again = varangian(*SMALL, "--rule", "median", "--attack", "little", "--momentum-at", "server", "--nesterov")
    assert again.status == 0


def test_every_setting_has_an_option(varangian) -> None:  # type: ignore[no-untyped-def]
    text = varangian("run", "--help").out
    for knob in fields(vg.Experiment):
        if knob.name in HASHES:  # found, not chosen
            assert f"--{knob.name.replace('_', '-')}" not in text
            continue
        assert f"--{knob.name.replace('_', '-')}" in text
        assert knob.metadata["help"].split()[0] in text


def test_run_as_json(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    end = varangian(*SMALL, "--json", "--out", "here", "--no-measure", "--learning-rate", "0.1,1:0.05", "--pre", "nnm")
    assert end.status == 0
    found = json.loads(end.out)
    assert Path(found["folder"]).parts[0] == "here"
    e = vg.Experiment.from_dict(found["experiment"])
    assert (e.measure, e.learning_rate, e.pre, e.steps) == (False, ((0, 0.1), (1, 0.05)), ("nnm",), 2)
    assert (found["digest"], found["steps"], found["stopped"]) == (e.digest, 2, None)


def test_a_run_that_stops_says_why_and_is_still_a_result(varangian) -> None:  # type: ignore[no-untyped-def]
    end = varangian(*SMALL, "--rule", "average", "--attack", "nan")
    assert end.status == 0
    assert "no longer finite" in " ".join(end.out.split())
    found = json.loads(
        varangian(*SMALL, "--rule", "average", "--attack", "nan", "--json").out, parse_constant=pytest.fail
    )
    assert found["stopped"] == "step 0: the parameters are no longer finite."


@pytest.mark.parametrize("model", ["linear", "fully-connected"])
def test_a_run_that_diverges_says_so_and_nothing_else(varangian, model: str) -> None:  # type: ignore[no-untyped-def]
    """No warning of overflow with a place in our code, whatever the rule and the attack."""
    asked = [*SMALL, "--model", model, "--learning-rate", "1e30", "--evaluate-every", "1", "--steps", "4"]
    for rule, attack in (("median", "little"), ("average", "none"), ("geometric-median", "empire"), ("krum", "little")):
        end = varangian(*asked, "--rule", rule, "--attack", attack)
        said = [line for line in end.err.splitlines() if "compiling kernels" not in line]
        assert (end.status, said) == (0, [])
    for attack in ("nan", "label-flip"):  # numbers that are too large for float32 to begin with
        end = varangian(*asked, "--rule", "median", "--attack", attack, "--learning-rate", "1e308", "--l2", "1e300")
        assert (end.status, end.err) == (0, "")


def test_the_result_says_who_defended_and_who_lied(varangian) -> None:  # type: ignore[no-untyped-def]
    def told(*arguments: str) -> str:
        return " ".join(varangian(*SMALL, *arguments).out.split())

    assert "rule median, against 2 of 11 workers attack none: nobody lies max accuracy" in told("--rule", "median")
    assert "attack none: nobody lies" in told("--attack", "little", "--real-byzantine", "0")
    text = told("--attack", "little", "--real-byzantine", "1")
    assert "attack little, by 1 of 11 workers" in text
    assert re.search(r"max accuracy [\d.]+% on the test set final", text)
    assert "attack little, by 4 of 22 clients" in told("--attack", "little", "--clients", "22")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("words", [["list"], ["--help"], ["list", "--json"], ["run", "--help"]])
def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    end = subprocess.run(
        [sys.executable, "-m", "varangian", *words], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, timeout=120,
    )  # fmt: skip
    os.close(writer)
    assert (end.returncode, end.stderr) == (141, "")


def test_a_progress_bar_goes_to_stderr_alone(varangian) -> None:  # type: ignore[no-untyped-def]
    loud = [argument for argument in SMALL if argument != "--quiet"]
    assert json.loads(varangian(*loud, "--json").out)["steps"] == 2


def test_without_a_terminal_there_is_no_bar_and_no_empty_line(varangian) -> None:  # type: ignore[no-untyped-def]
    loud = [argument for argument in SMALL if argument != "--quiet"]
    assert varangian(*loud, "--out", "one").err == ""
    refused = varangian(*loud, "--loss", "mse", "--out", "two")
    assert refused.status == 2
    assert refused.err.startswith("varangian: ")
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_configuration_files_and_what_overrides_them(varangian, tmp_path: Path, suffix: str) -> None:  # type: ignore[no-untyped-def]
    e = vg.Experiment(workers=11, byzantine=2, steps=2, batch_size=2, rule="median", attack="empire", clip=2.0)
    file = tmp_path / f"e.{suffix}"
    file.write_text(e.to_json() if suffix == "json" else e.to_toml())
    plain = json.loads(varangian("run", "--config", str(file), "--quiet", "--json").out)
    assert vg.Experiment.from_dict(plain["experiment"]) == e
    other = varangian(
        "run", "--config", str(file), "--quiet", "--json", "--rule", "krum", "--clip", "none", "--steps", "1"
    )
    found = vg.Experiment.from_dict(json.loads(other.out)["experiment"])
    assert (found.rule, found.clip, found.steps, found.attack) == ("krum", None, 1, "empire")


def test_what_is_overridden_need_not_be_right_in_the_file(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "e.json").write_text('{"rule": "medain", "steps": 1}')
    assert varangian("run", "--config", "e.json", "--quiet").status == 2
    assert varangian("run", "--config", "e.json", "--quiet", "--rule", "median").status == 0


def test_threads(varangian) -> None:  # type: ignore[no-untyped-def]
    one = json.loads(varangian(*SMALL, "--json", "--threads", "1", "--out", "one").out)
    assert torch.get_num_threads() == 1
    two = json.loads(varangian(*SMALL, "--json", "--threads", "2", "--out", "two").out)
    assert torch.get_num_threads() == 2
    assert two["final_loss"] == pytest.approx(one["final_loss"], rel=1e-5)


def test_a_fault_of_the_command_line_is_not_the_files(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "e.json").write_text('{"rule": "median", "momentum": 2}')
    end = varangian("run", "--config", "e.json", "--rule", "medain", "--quiet")
    assert end.status == 2
    assert "- e.json: momentum: " in end.err
    assert "- rule: unknown rule 'medain'" in end.err


def test_help_shows_the_words_that_a_setting_takes(varangian) -> None:  # type: ignore[no-untyped-def]
    text = varangian("run", "--help").out
    for option, words in {
        "momentum-at": "worker|server|shared|adaptive",
        "clip-mode": "norm|unit",
        "profile": "described|published",
        "dtype": "float32|float64",
    }.items():
        assert f"--{option} [{words}]" in text


@pytest.mark.parametrize("command", [["demo"], ["run", "--steps", "2"], ["reproduce", "--quick"]])
def test_where_nothing_can_be_written_is_said_in_one_line(varangian, tmp_path: Path, command: list[str]) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    end = varangian(*command, "--out", "file/there")
    assert end.status == 2
    assert re.fullmatch(r"varangian: file/there\S*: file is not a folder\.", end.err.strip())


def test_list(varangian) -> None:  # type: ignore[no-untyped-def]
    end = varangian("list")
    assert end.status == 0
    everything = json.loads(varangian("list", "--json").out)
    assert {*vg.RULES} - {*everything["rules"]} == {
        "fltrust"
    }  # which no run can use: its server has a vector of its own
    assert {*everything} >= {"rules", "mixings", "attacks", "datasets", "models", "partitions"}
    for names in everything.values():
        for name, summary in names.items():
            assert name in end.out
            assert summary
            assert not summary.endswith(".")
    assert json.loads(varangian("list", "attacks", "--json").out) == {"attacks": everything["attacks"]}
    assert "multi-krum" not in varangian("list", "attacks").out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "-h"], ["list", "--help"], ["demo", "--help"]])
def test_help(varangian, arguments: list[str]) -> None:  # type: ignore[no-untyped-def]
    end = varangian(*arguments)
    assert (end.status, end.err) == (0, "")
    assert end.out.startswith("Usage: varangian")


def test_what_is_read_from_the_source_is_what_there_is() -> None:
    tables = {kind: getattr(vg, table) for kind, (table, _) in KINDS.items()}
    found = catalogue()
    assert {kind: list(entries) for kind, entries in found.items()} == {k: list(table) for k, table in tables.items()}
    for kind, entries in found.items():
        for name, entry in entries.items():
            item = tables[kind][name]
            assert entry.text == inspect.getdoc(item)
            assert entry.summary == summary_of(item)
            options = {option.split("=")[0] for option in entry.options}
            assert options <= set(inspect.signature(item).parameters)
            if kind == "rules":
                assert entry.in_runs == (not item.needs_root)


def test_one_thing_described(varangian) -> None:  # type: ignore[no-untyped-def]
    end = varangian("list", "bulyan")  # a rule and an attack
    assert end.status == 0
    assert "bulyan, of the rules: " in end.out
    assert "bulyan, of the attacks: " in end.out
    assert "Options: " in varangian("list", "multi-krum").out
    assert json.loads(varangian("list", "median", "--json").out)["rules"]["options"] == ["even='mid'"]


def test_the_commands_say_what_the_table_says() -> None:
    import click

    context = click.Context(cli.commands)
    for name, (_, _, text) in cli.COMMANDS.items():
        command = cli.commands.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert (command.help or "").split()[:2] == text.split()[:2]


@pytest.mark.parametrize("words", [["--debug", "run"], ["run", "--debug"]])
def test_a_bug_of_the_users_own(varangian, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    """One line that says where, and the traceback on demand."""

    def own(*arguments: object, **options: object) -> None:
        raise ValueError("my own bug")

    monkeypatch.setattr(runs, "run_experiment", own)
    end = varangian(*SMALL)
    assert (end.status, end.out) == (1, "")
    assert re.fullmatch(
        r"varangian: ValueError at test_cli.py, line \d+: my own bug \(--debug shows the traceback\)\n", end.err
    )
    monkeypatch.setattr(sys, "argv", ["varangian", *words, *SMALL[1:]])
    with pytest.raises(ValueError, match="my own bug"):
        cli.main()


@pytest.mark.slow
def test_a_terminal_of_another_encoding(tmp_path: Path) -> None:
    """What it cannot write is written otherwise: a run that is complete has not failed."""
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "varangian", *SMALL, "--out", "läufe"]
    end = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert end.returncode == 0, end.stderr
    assert "l\\xe4ufe" in end.stdout


def test_version(varangian) -> None:  # type: ignore[no-untyped-def]
    end = varangian("--version")
    assert end.status == 0
    assert vg.__version__ in end.out


# ------------------------------------------------------------------------------------------------- the user's mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "medain"], "varangian: rule: unknown rule 'medain'. Did you mean 'median'?"),
        (["--attack", "litle"], "varangian: attack: unknown attack 'litle'. Did you mean 'little'?"),
        (["--dataset", "digit"], "varangian: dataset: unknown dataset 'digit'. Did you mean 'digits'?"),
        (["--model", "cnnn"], "varangian: model: unknown model 'cnnn'. Did you mean 'cnn'?"),
        (["--byzantine", "5"], "varangian: workers: MultiKrum(f=5"),
        (["--attack", "little", "--real-byzantine", "12"], "varangian: real_byzantine: at least one of the 11 workers"),
        (["--steps", "-1"], "varangian: steps: must be greater than or equal to 0, got '-1'."),
        (["--learning-rate", "nan"], "varangian: learning_rate: must be a number >= 0, or pieces"),
        (["--learning-rate", "fast"], "varangian: learning_rate: must be a number >= 0, or pieces"),
        (["--learning-rate", "-1"], "varangian: learning_rate: must be a number >= 0, or pieces from a step on as in"),
        (["--dataset", "MNIST"], "varangian: dataset: unknown dataset 'MNIST'. Did you mean 'mnist'?"),
        (["--pre", "NNM"], "varangian: pre: unknown mixing 'NNM'. Did you mean 'nnm'?"),
        (["--rule", "multi_krum"], "varangian: rule: unknown rule 'multi_krum'. Did you mean 'multi-krum'?"),
        (["--rule", "median,krum"], "varangian: rule: 'median,krum' is not of the form name"),
        (["--rule", "my.py:Mine"], "varangian: rule: rule 'my.py:Mine': there is no file "),
        (["--partition", "dirichlet(0.1)"], "varangian: partition: 'dirichlet(0.1)': options are written dirichlet("),
        (["--seed", "one"], "varangian: seed: must be a valid integer, got 'one'."),
        (["--workers", "eleven"], "varangian: workers: must be a valid integer, got 'eleven'."),
        (["--momentum", "much"], "varangian: momentum: must be a valid number, got 'much'."),
        (["--device", "cup"], "varangian: device: 'cup' is no device, such as cpu, cuda or cuda:1."),
        (["--model", "fully-connected(hidden=-5)"], "varangian: fully_connected: hidden must be at least 1, got -5."),
        (["--model", "wide-resnet(depth=27)"], "varangian: wide_resnet: depth must be 6k + 4"),
        (["--batch-size", "100000000000"], "varangian: batch_size: must be less than or equal to 1000000"),
    ],
)  # fmt: skip
def test_wrong_settings(varangian, tmp_path: Path, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    """Status 2, one line on stderr, nothing on stdout, no folder."""
    end = varangian(*SMALL, *arguments)
    assert (end.status, end.out) == (2, "")
    assert end.err.startswith(message)
    assert end.err.count("\n") == 1
    assert left(tmp_path) == []


def test_all_that_is_wrong_at_once(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "e.toml").write_text('rules = "median"\nl2 = -1\n')
    end = varangian(
        "run", "--config", "e.toml", "--rule", "medain", "--steps", "-1", "--learning-rate", "nan", "--quiet"
    )
    assert (end.status, end.out) == (2, "")
    lines = end.err.splitlines()
    assert lines[0] == "varangian: 5 faults:"
    starts = [
        "e.toml: unknown setting 'rules'. Did you mean 'rule'?",
        "steps: ",
        "learning_rate: ",
        "e.toml: l2: ",
        "rule: unknown rule",
    ]
    assert [line.removeprefix("  - ").startswith(start) for line, start in zip(lines[1:], starts, strict=True)] == [
        True
    ] * 5
    assert left(tmp_path) == ["e.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--rul", "median", "--rool", "x"],
            "no such option '--rul'. Did you mean '--rule'? See varangian run",
        ),
        (["run", "--lr", "1"], "no such option '--lr'. Did you mean '--learning-rate'?"),
        (["run", "--n", "1"], "no such option '--n'. Did you mean '--workers'?"),
        (["run", "--seeds", "1-3"], "a run has one --seed; several seeds are several runs."),
        (["run", "--rule"], "requires an argument"),
        (["run", "--threads", "0"], "0 is not in the range"),
        (
            ["run", "--threads", "two"],
            "invalid value for '--threads': must be a whole number of at least 1, got 'two'.",
        ),
        (["run", "--config", "."], "invalid value for '--config': '.' is a folder, not a file."),
        (["run", "--config", "nowhere.json"], "'nowhere.json' does not exist"),
        (["run", "surplus"], "unexpected extra argument"),
        (["list", "rulez"], "unknown kind or name 'rulez'. Did you mean 'rules'?"),
        (["trian"], "unknown command 'trian'. Did you mean 'run'?"),
        (["reprduce"], "unknown command 'reprduce'. Did you mean 'reproduce'?"),
    ],
)
def test_wrong_use(varangian, tmp_path: Path, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    end = varangian(*arguments)
    assert (end.status, end.out) == (2, "")
    assert message.lower() in end.err.lower()
    assert end.err.startswith("varangian: ")
    assert end.err.count("\n") == 1
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.json", b"{", "e.json: not JSON: "),
        ("e.json", b"[]", "e.json: an experiment is a JSON object, got list."),
        ("e.toml", b"steps = ", "e.toml: not TOML: "),
        ("e.yaml", b"steps: 3", "(char 0). Settings are read as JSON, or as TOML from a file named .toml."),
        ("e.json", b"\xff\xfe\x00", "is not a text file."),
        ("e.json", b'{"steps": null}', "e.json: steps: must be a valid integer, got None."),
        ("e.json", b'{"stepps": 3}', "e.json: unknown setting 'stepps'. Did you mean 'steps'? Known: dataset, "),
    ],
)
def test_wrong_configuration_files(varangian, tmp_path: Path, name: str, content: bytes, message: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(content)
    end = varangian("run", "--config", name, "--quiet")
    assert (end.status, end.out) == (2, "")
    assert message in end.err
    assert end.err.startswith("varangian: ")
    assert end.err.count("\n") == 1
    assert left(tmp_path) == [name]


def test_a_folder_that_cannot_be_written(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("mine")
    places = [str(tmp_path / "file"), str(tmp_path / "file" / "deeper")] + ["/proc/runs"] * Path("/proc").is_dir()
    for place in places:
        end = varangian(*SMALL, "--out", place)
        assert (end.status, end.out) == (2, "")
        assert end.err.startswith(f"varangian: {place}")
        assert end.err.count("\n") == 1
    assert left(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["truncated", "empty", "garbage", "missing"])
def test_a_bad_data_file(varangian, tmp_path: Path, kind: str) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "data"
    folder.mkdir()
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    content = {
        "truncated": b"\0\0\x08\x03\0\0\0\x0a\0\0\0\x1c\0\0\0\x1c" + bytes(100),
        "empty": b"",
        "garbage": b"no images at all" * 9,
    }
    if kind != "missing":
        for name in names:
            (folder / name).write_bytes(content[kind])
    before = left(tmp_path)
    end = varangian(*SMALL, "--dataset", "mnist", "--data", str(folder))
    assert (end.status, end.out) == (2, "")
    lines = [line for line in end.err.splitlines() if line.startswith("varangian: ")]
    assert len(lines) == 1
    assert lines[0].startswith("varangian: mnist: ")
    assert "train-images-idx3-ubyte" in lines[0]
    assert str(folder) in lines[0]
    assert left(tmp_path) == before


def test_too_little_memory_ends_with_a_message(varangian, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def exhaust(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 8.00 EiB")

    monkeypatch.setattr(runs, "run_experiment", exhaust)
    end = varangian(*SMALL)
    assert (end.status, end.out) == (2, "")
    assert end.err.strip() == "varangian: not enough memory: Unable to allocate 8.00 EiB"


def test_an_interrupt_ends_with_a_message(varangian, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_experiment", interrupt)
    end = varangian(*SMALL)
    assert (end.status, end.out) == (130, "")
    assert (
        end.err.strip()
        == "varangian: interrupted; what runs and sweeps have done is kept, and the same command goes on from there."
    )


def cut_short(out: Path) -> tuple[vg.Experiment, Path]:
    """A run of SMALL's settings and 6 steps, interrupted after 2."""
    e = vg.Experiment(workers=11, byzantine=2, steps=6, batch_size=2)
    return e, interrupt(e, out, 2)


def test_an_interrupted_run_goes_on(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    e, folder = cut_short(tmp_path / "runs")
    whole = vg.run(e, tmp_path / "whole")
    end = varangian(*SMALL, "--steps", "6")
    assert (end.status, end.err) == (0, "")
    assert "from the checkpoint of step 2" in end.out
    assert left_by(folder) == left_by(whole.folder)
    again = varangian(*SMALL, "--steps", "6")
    assert (again.status, "resumed" in again.out) == (0, False)
    before = (folder / "environment.json").read_bytes()
    assert varangian(*SMALL, "--steps", "6", "--fresh").status == 0
    assert (folder / "environment.json").read_bytes() != before
    assert left_by(folder) == left_by(whole.folder)


def test_a_folder_is_resumed_by_its_name(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    e, folder = cut_short(tmp_path)
    whole = vg.run(e, tmp_path / "whole")
    folder = folder.rename(tmp_path / "mine")
    changed = varangian("run", "--resume", "mine", "--steps", "7", "--rule", "krum", "--quiet")
    assert (changed.status, changed.out) == (2, "")
    assert changed.err.splitlines() == [
        "varangian: mine can only be resumed with its own settings:",
        "  - rule: 'multi-krum' there, 'krum' asked for",
        "  - steps: 6 there, 7 asked for",
    ]
    for others in (["--fresh"], ["--out", "elsewhere"]):
        end = varangian("run", "--resume", "mine", *others)
        assert (end.status, end.out) == (2, "")
        assert "leave out --fresh, --config and --out" in end.err
    end = varangian("run", "--resume", "mine", "--steps", "6", "--quiet", "--json")
    assert (end.status, end.err) == (0, "")
    assert json.loads(end.out)["folder"] == "mine"
    assert left_by(folder) == left_by(whole.folder)
    assert varangian("run", "--resume", "whole").err == ("varangian: whole holds no run: experiment.json is missing.\n")


def test_a_torn_checkpoint_is_one_line(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, folder = cut_short(tmp_path / "runs")
    os.truncate(folder / "checkpoint.pt", 1000)
    end = varangian(*SMALL, "--steps", "6")
    assert end.status == 0
    assert end.err.startswith(f"varangian: {Path('runs') / folder.name}: checkpoint.pt cannot be used: it is torn")
    assert end.err.endswith("; starting over.\n")
    assert end.err.count("\n") == 1


def test_intervals_that_are_none(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for value, message in (("-1", "checkpoint_every: must be a number"), ("soon", "must be a number, got 'soon'")):
        end = varangian(*SMALL, "--checkpoint-every", value)
        assert (end.status, end.out) == (2, "")
        assert message in end.err
    assert left(tmp_path) == []


def test_replay(varangian, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = vg.run(vg.Experiment(workers=11, byzantine=2, steps=6, batch_size=2, attack="little"), tmp_path).folder
    end = varangian("replay", str(folder), "--step", "4", "--save", "vectors.npy")
    assert (end.status, end.err) == (0, "")
    assert end.out.startswith(
        "step 4: vectors 0 to 8 are honest, 9 to 10 are of little; its measures are those of the folder\n"
        "MultiKrum(f=2): 11 vectors, 7 with weight\n"
    )
    vectors = np.load("vectors.npy", allow_pickle=False)
    assert np.array_equal(vectors, vg.replay(str(folder), 4).vectors.numpy())
    for step, message in (("6", "step must lie between 0 and 5, got 6."), ("-1", "-1 is not in the range")):
        wrong = varangian("replay", str(folder), "--step", step)
        assert (wrong.status, wrong.out) == (2, "")
        assert message in wrong.err


def test_as_a_program_of_its_own(tmp_path: Path) -> None:
    """Once for real: `python -m varangian`, warnings on, nothing but the message on stderr."""
    command = [sys.executable, "-W", "error", "-m", "varangian", *SMALL, "--rule", "medain"]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "OMP_NUM_THREADS": "1"}
    end = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr.startswith("varangian: rule: unknown rule 'medain'. Did you mean 'median'?")
    assert end.stderr.count("\n") == 1
    assert left(tmp_path) == []


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ATTACKED", replace(demo.ATTACKED, steps=3))
    monkeypatch.setattr(demo, "SEEDS", (1,))
    monkeypatch.setattr(demo, "BATCHES", (2, 16))


@pytest.mark.slow
def test_the_demo_ends_with_the_report(varangian, short_demo: None, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = varangian("demo", "--out", "here")
    assert ended.status == 0, ended.err
    assert all(rule in ended.out for rule in demo.RULES)
    assert "50 runs" in ended.out
    table, _ = ended.out.split("\n50 runs")
    assert table.isascii()
    assert all(len(line) <= 80 and line == line.rstrip() for line in table.splitlines())
    assert (tmp_path / "here" / "report.html").read_text().replace("</b><span>", " ").count(">12 pairs") == 2
    assert (tmp_path / "here" / "claims.csv").exists()
    assert len(list((tmp_path / "here" / "figures").glob("boxes-max-*.png"))) == 2
    assert len(list((tmp_path / "here" / "figures").glob("noise-*.png"))) == 1


@pytest.mark.slow
def test_the_demo_for_machines(varangian, short_demo: None) -> None:  # type: ignore[no-untyped-def]
    ended = varangian("demo", "--json")
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert found["settings"]["steps"] == 3
    assert len(found["cells"]) == 2 * 2 * 6
    assert {n["batch_size"] for n in found["without_attack"]} == {2, 16}
    assert Path(found["report"]).name == "report.html"
    for cell in found["cells"]:
        assert cell["gain"] == pytest.approx(cell["workers"] - cell["server"])
