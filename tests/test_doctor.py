"""What doctor finds, what it calls broken, and what it keeps to itself."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import programs
import varangian as vg
from pretended import PretendedCard
from varangian.core import kernels
from varangian.runs import cards, doctor
from varangian.simulation.data.readers import _SHA256


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "WIDTH", 60_000)
    monkeypatch.setenv("VARANGIAN_DATA", str(tmp_path / "data"))


def test_a_sound_installation() -> None:
    found = vg.doctor()
    assert found.sound, str(found)
    assert list(found.facts) == [
        "versions", "machine", "threads", "compiled kernels", "data", "GPU", "engines", "extras", "plug-ins",
        "terminal", "self-test",
    ]  # fmt: skip
    assert found.facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert found.facts["self-test"]["rules"] == "as their definitions"
    assert found.facts["self-test"]["a run, twice"] == "the same bytes"
    assert found.facts["data"]["mnist"] == found.facts["data"]["cifar-100"] == "not found"
    assert {"flower", "ray", "tensorboard"} <= found.facts["extras"].keys()
    assert "dev" not in found.facts["extras"]
    assert "gloo" in found.facts["engines"]["torch.distributed"]
    assert str(found).splitlines()[-1] == "sound"
    assert all(len(line) <= 80 or " " not in line.strip() for line in str(found).splitlines())
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


def test_it_changes_no_number_of_threads() -> None:
    """In a process of its own: pools are started once."""
    code = "import torch, varangian as vg; torch.set_num_threads(3); vg.doctor(); print(torch.get_num_threads())"
    end = programs.run("-c", code)
    assert end.stdout == "3\n", end.stderr


def test_the_home_folder_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home" / "somebody"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("VARANGIAN_DATA", str(home / "data"))
    found = vg.doctor()
    assert found.facts["data"]["folder"] == f"~{os.sep}data (VARANGIAN_DATA)"
    assert "somebody" not in json.dumps(found.as_dict())
    assert doctor._without_home(f"{home}-else/x and {home}") == f"{home}-else/x and ~"


def test_the_text_is_folded_between_words_and_paths_stay_whole() -> None:
    path = "/data/" + "long" * 25
    told = vg.Diagnosis({"data": {"folder": f"{path} (VARANGIAN_DATA)"}}, ("word " * 40,), ())
    lines = str(told).splitlines()
    assert f"    {path}" in lines
    assert any(line.startswith("note: word") for line in lines)
    assert all(len(line) <= 80 for line in lines if path not in line)


def test_the_user_is_not_told_in_paths_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "somebody")
    assert doctor._without_home("/scratch/somebody/cache and /scratch/somebody-else") == (
        "/scratch/USER/cache and /scratch/somebody-else"
    )


@pytest.mark.parametrize(("package", "error"), [("torch", "OSError"), ("numba", "ImportError")])
def test_what_cannot_be_imported_is_a_line_and_not_the_end(tmp_path: Path, package: str, error: str) -> None:
    (tmp_path / "stub" / package).mkdir(parents=True)
    (tmp_path / "stub" / package / "__init__.py").write_text(f"raise {error}('no library of that name')")
    path = os.pathsep.join([str(tmp_path / "stub"), str(Path(vg.__file__).parents[1])])
    ended = subprocess.run(
        [sys.executable, "-m", "varangian", "doctor", "--json"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    found = json.loads(ended.stdout)
    fault = f"{package} cannot be imported ({error}: no library of that name): pip install --force-reinstall {package}"
    assert fault in found["broken"]
    assert {"versions", "machine", "extras", "plug-ins", "terminal", "self-test"} <= set(found["facts"])
    assert found["facts"]["self-test"]["rules"] == "FAILED"


def test_data_that_cannot_be_read_are_broken(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in _SHA256["mnist"]:
        (raw / name).write_bytes(gzip.compress(b"no images"))
    found = vg.doctor()
    assert not found.sound
    assert found.facts["data"]["mnist"] == "CANNOT BE READ"
    [fault] = found.broken
    assert "Delete it to get a good one" in fault
    assert " ".join(str(found).split()).endswith(f"BROKEN: {fault} 1 broken")


def test_a_rule_that_computes_something_else_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vg.TrimmedMean, "__call__", lambda rule, x: np.asarray(x).mean(0))
    found = vg.doctor()
    assert "TrimmedMean (float64, case 0)" in found.facts["self-test"]["rules"]
    assert any(fault.startswith("TrimmedMean (float64, case 0)") for fault in found.broken)


def test_a_run_of_other_bytes_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, runs = iter((1, 2)), vg.run

    def run(experiment: vg.Experiment, out: Path) -> vg.Result:
        return runs(vg.Experiment(steps=2, seed=next(seeds)), out)

    monkeypatch.setattr("varangian.runs.running.run", run)
    assert vg.doctor().broken == ("a short run gave other bytes the second time: report it, with all of this",)


def test_versions_that_are_too_old_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=99.1", "nothing-of-that-name>=1", "flwr>=9999; extra == 'flower'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    case = doctor._Case([], [])
    assert doctor._versions(case)["nothing-of-that-name"] == "not installed"
    assert case.broken == [
        f"torch {importlib.metadata.version('torch')} is older than 99.1: pip install --upgrade torch",
        "nothing-of-that-name is needed and not installed: pip install nothing-of-that-name",
    ]
    assert [doctor._release(v) for v in ("2.13.0+cpu", "1.26.4rc1", "3")] == [(2, 13, 0), (1, 26, 4), (3,)]


def test_code_that_is_not_what_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone in front of an installed package, or one that went on without being installed again."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == "varangian" else "99")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    case = doctor._Case([], [])
    told = doctor._versions(case)["varangian"]
    assert told.startswith(f"{vg.__version__}, ")
    assert told.endswith(", though 0.0.1 is what was installed")
    assert "install it again" in case.notes[0]
    assert not case.broken


def test_extras_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (
        'a>=2; extra == "x"',
        "b>=1.5 ; python_version > '3' and extra == 'x'",
        "c[d]>=1; extra == 'y'",
        "e; extra == 'dev'",
    )
    there = {"a": "1.9", "c": "3.0"}

    def version(name: str) -> str:
        if name in there:
            return there[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.4", *asked])
    monkeypatch.setattr(importlib.metadata, "version", version)
    case = doctor._Case([], [])
    assert doctor._extras(case) == {"x": "a 1.9, b not installed (pip install 'varangian[x]')", "y": "c 3.0"}
    assert case.notes == ["a 1.9 is older than the 2 that is asked for: pip install 'varangian[x]'"]


def test_a_package_that_only_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    case = doctor._Case([], [])
    assert "python" in doctor._versions(case)
    assert (len(case.notes), case.broken) == (1, [])


def test_kernels_that_cannot_be_kept_are_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "cache_folders", lambda: [None, str(tmp_path / "new" / "folder")])
    case = doctor._Case([], [])
    assert doctor._kernels(case) == {"kept": "nowhere", str(tmp_path / "new" / "folder"): "cold, 0 kernels, writable"}
    assert "set NUMBA_CACHE_DIR" in case.notes[0]
    assert not case.broken


def test_what_fails_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr("threadpoolctl.threadpool_info", fails)
    found = vg.doctor()
    assert found.broken == ("threads cannot be told: OSError: no such thing",)
    assert "self-test" in found.facts


@pytest.mark.parametrize("broken", [False, True])
def test_the_command(varangian, monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:  # type: ignore[no-untyped-def]
    told = vg.Diagnosis({"versions": {"python": "3"}}, ("slow",), ("wrong",) if broken else ())
    monkeypatch.setattr("varangian.cli.doctor.doctor", lambda: told)
    ended = varangian("doctor")
    assert ended.status == int(broken)
    assert ended.out.startswith("versions\n  python: 3\nnote: slow\n")
    ended = varangian("doctor", "--json")
    assert ended.status == int(broken)
    assert json.loads(ended.out) == {
        "sound": not broken, "broken": ["wrong"] * broken, "notes": ["slow"], "facts": {"versions": {"python": "3"}}
    }  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_cards_are_told_and_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    case = doctor._Case([], [])
    if torch.version.cuda is None and torch.version.hip is None:
        assert doctor._gpu(case) == {"none": "torch is built for processors only"}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor._gpu(case)["none"].endswith("finds no GPU or driver that it can use; CUDA_VISIBLE_DEVICES is ''")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(cards, "version_of", lambda _: None)
    monkeypatch.setattr(cards, "driver", lambda: "580.65.06")
    card = SimpleNamespace(name="H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    with PretendedCard():
        found = doctor._gpu(case)
        assert found["driver"] == "580.65.06"
        assert (found["Triton"], found["visible"]) == ("none", "3")
        assert found["cuda:0"] == "H100, 8.0 of 16.0 GiB free, compute capability 9.0"
        assert case.broken == []
        assert len(case.notes) == 1
        assert "Triton is not installed" in case.notes[0]
        monkeypatch.setattr(cards, "usable", lambda name: 1 // 0)
        assert doctor._gpu(case)["cuda:0"].startswith("H100")
    assert case.broken == [
        "cuda:0 cannot be used (ZeroDivisionError: integer division or modulo by zero): use --device cpu"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_other_devices_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = doctor._gpu(doctor._Case([], []))
    assert list(found) == ["none", "mps"]
    assert found["mps"].startswith("cannot be used")
