"""Files and text of anybody: an error of ours or a correct result, at once, in little memory, and nothing elsewhere."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzzing
import varangian as vg
from fuzzing import Reader, outcome, put, readers
from test_report import chromium, made, old_run
from varangian import Experiment
from varangian.cli.study import import_command, reproduce
from varangian.core.checks import printable
from varangian.core.specs import make, parse
from varangian.runs import folders
from varangian.runs.experiment import ConfigurationError
from varangian.runs.files import folders_in, parse_json, read_columns, read_rows, read_text, write_whole
from varangian.runs.results import read
from varangian.runs.running import resume, run
from varangian.simulation import data
from varangian.simulation.data import readers as files
from varangian.study.outcomes import from_result, gather, read_outcome, write_runs
from varangian.study.report import figures, report, style
from varangian.study.report.layout import Group
from varangian.study.report.legacy import import_runs, read_study

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------------------- nothing that runs what it reads

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml",
                     "xml", "tarfile"}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "input", "breakpoint"}
FORBIDDEN_METHODS = (".extract", ".extractall", ".unpack_archive", ".exec_module", ".load_module", ".run_path")
# A file that somebody names is a program of theirs, and executed where references.importing says that they handed it
# over; from its bytes, whose hash is the run's, and which may have come from another machine. tests/test_references.py
# holds what reads folders to that.
# A kernel of a card that is straight-line code for its number of rows is written from integers alone.
ARGUED = {name: ["exec", "compile"] for name in ("core/references.py", "core/kernels/cuda/launching.py")}


def dangers(source: str) -> list[str]:
    """Whatever in a source could execute what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"import {name}" for name in names if {name, name.split(".")[0]} & FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in FORBIDDEN_CALLS or called.endswith(FORBIDDEN_METHODS):
            found.append(called)
        if called.endswith("torch.load") or (called == "load" and "map_location" in options):
            found += [] if options.get("weights_only") == "True" else [f"{called} without weights_only=True"]
        if called in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
            found.append(f"{called} without allow_pickle=False")
        found += [f"{key}={value}" for key, value in options.items() if (key, value) in _UNSAFE]
        if called.startswith("yaml.") or called in (
            "pd.read_pickle",
            "torch.jit.load",
            "torch.package.PackageImporter",
        ):
            found.append(called)
    return found


_UNSAFE = {("allow_pickle", "True"), ("weights_only", "False"), ("shell", "True")}


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_is_unpickled_or_executed(path: Path) -> None:
    place = path.relative_to(ROOT / "src" / "varangian").as_posix()
    assert dangers(path.read_text()) == ARGUED.get(place, [])


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "import torch\ntorch.load(p)", "torch.load(p, weights_only=False)",
     "np.load(p)", "np.load(p, allow_pickle=True)", "eval(text)", "exec(text)", "import yaml", "run(c, shell=True)",
     "os.system(c)", "from xml.etree import ElementTree", "import tarfile", "spec.loader.exec_module(m)"],
)  # fmt: skip
def test_that_test_can_fail(source: str) -> None:
    assert dangers(source)


# ------------------------------------------------------------------------------------------ every reader, mutated


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return readers(tmp_path_factory.mktemp("valid"))


NAMES = ["experiment.json", "experiment.toml", "run folder", "run folder, whole", "interrupted run", "workers.bin",
         "events.jsonl", "watched", "watched, under way", "runs.csv", "sweep record", "imported",
         "idx", "idx.gz", "cifar .bin", "cifar .tar.gz"]  # fmt: skip
TEXTS = ["rule", "rule 2", "mixing", "attack", "attack 2", "partition", "model", "dataset", "schedule", "mixings",
         "device", "seeds", "shard", "duration"]  # fmt: skip
ALL = [*NAMES, *(f"text: {name}" for name in TEXTS)]


def test_all_readers_are_here_and_read_what_is_valid(everything: dict[str, Reader], tmp_path: Path) -> None:
    assert list(everything) == ALL
    for number, reader in enumerate(everything.values()):
        put(tmp_path / str(number), reader.files)
        assert outcome(reader, tmp_path / str(number)) == "read"


@pytest.mark.parametrize("name", ALL)
def test_mutated_files(everything: dict[str, Reader], name: str, tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    @settings(max_examples=40, deadline=5_000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(drawn: st.DataObject) -> None:
        def choose(below: int) -> int:
            return drawn.draw(st.integers(0, below - 1))

        fuzzing.case(everything[name], tmp_path / "case", choose)
        how = outcome(everything[name], tmp_path / "case")
        seen[how] = seen.get(how, 0) + 1

    check()
    assert seen["refused"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda folder: [][0], "IndexError"),
        (lambda folder: float("1" + "0" * 400) / 0, "ZeroDivisionError"),
        (lambda folder: "é".encode("ascii"), "UnicodeEncodeError"),
        (lambda folder: int("9" * 5000), "not a message of ours"),
        (lambda folder: (_ for _ in ()).throw(ValueError("")), "does not say what is wrong"),
        (lambda folder: (_ for _ in ()).throw(ValueError("x" * 10**5)), "does not say what is wrong"),
        (lambda folder: fuzzing.must(False, "garbage"), "garbage"),
    ],
)
def test_that_surprises_are_seen(answer, message: str, tmp_path: Path) -> None:
    with pytest.raises(fuzzing.Surprise, match=message):
        outcome(Reader({}, answer), tmp_path)


# ------------------------------------------------------------------------------------------ found, and mended


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested"),
        ('{"a": ' * 20 + "1" + "}" * 20, "nested"),
        ("9" * 100_000, "100,000 digits"),
        ("-" + "9" * 5000, "5,001 digits"),
        ("1e999", "beyond all floating-point numbers"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "Infinity is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' occurs twice"),
        ("\ufeff{}", "BOM"),
        ("", "Expecting value"),
    ],
)
def test_json_of_others(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    with pytest.raises(ConfigurationError, match=message):
        Experiment.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 1\nsteps = 2", 'Key "steps" already exists'),
        ("[a]\n[a]\n", "already exists"),
        ("a = " + "[" * 5000, "not TOML"),
        ("a = " + "[" * 20 + "]" * 20, "nested more than 16 deep"),
        ("#" * 200_000, "more than 131,072 characters"),
        ("steps = " + "9" * 5000, "not TOML|steps: must be a (finite number|valid integer)"),  # tomlkit 0.12
    ],
    ids=lambda text: text[:20],
)
def test_toml_of_others(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Experiment.from_toml(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": [0, 0.1]}, "learning_rate: "),
        ({"learning_rate": [[0, 0.1]] * 20_000}, "learning_rate: "),
        ({"learning_rate": [[step, 0.1] for step in range(9000, 0, -1)]}, "must start at step 0"),
        ({"pre": ["nnm"] * 17}, "pre: "),
        ({"pre": "nnm," * 100_000}, "pre: at most 16 mixings"),
        ({"workers": 10**9}, "workers: must be less than or equal to 10000"),
        ({"byzantine": 10**30}, "byzantine: must be less than or equal to 10000"),
        ({"batch_size": 10**9}, "batch_size: must be less than or equal to 1000000"),
        ({"steps": 10**12}, "steps: must be less than or equal to 1000000000"),
        ({"rule": "multi-krum(m=bulyan)"}, "m must be a valid integer, got 'bulyan'"),
        ({"rule": "median" + " " * 2000}, "at most 1,000 characters"),
        ({"attack": "rop(z=x)"}, "z must be a valid number, got 'x'"),
        ({"attack": "fang(target=median)"}, "target must be 'krum' or 'trimmed-mean'"),
        ({"dataset": "synthetic(shape=1)"}, "shape must be a valid tuple"),
        ({"dataset": "synthetic(seed='\u202e')"}, "options are written"),
        ({"device": "x" * 100_000}, "characters"),
        ({"x" * 100_000: 1}, "unknown setting"),
        ({f"a{number}": 1 for number in range(100_000)}, "and 99,980 more unknown settings"),
    ],
)
def test_settings_of_others(settings: dict, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        Experiment.from_dict(settings)
    assert len(str(caught.value)) < 9000  # all settings are named once in each of some twenty faults
    assert time.perf_counter() - start < 20  # they took minutes, or did not end


@pytest.mark.parametrize(
    "text", ["f({})", "median(a={[]: 1})", "median(f=" + "(" * 900, "median(f=" + "-" * 900 + "1)"]
)
def test_specs_that_python_itself_stumbles_over(text: str) -> None:
    with pytest.raises(ValueError, match=r"median|unknown"):
        parse("rule", text, vg.RULES)


def test_a_number_too_large_for_a_float() -> None:
    with pytest.raises(ValueError, match="little"):
        make("attack", f"little(factor={'9' * 400})", vg.ATTACKS)


def test_specs_are_plain_words() -> None:
    for text in ("median(even=\u2028)", "median(even='\x1b[2J')", "median(even='é')"):
        with pytest.raises(ValueError, match="options are written"):
            parse("rule", text, vg.RULES)


def test_names_of_folders_are_plain() -> None:
    e = Experiment(dataset="synthetic(shape=(1,8,8),seed=3)", rule="bulyan(base='multi-krum')", workers=23, byzantine=2)
    assert re.fullmatch(r"[A-Za-z0-9][\w.=+-]*", e.name, re.ASCII)


# ---- run folders


SMALL = Experiment(workers=5, byzantine=1, rule="median", attack="little", steps=3, batch_size=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = run(SMALL, tmp_path / "study" / "runs").folder
    assert found is not None
    return found


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_accuracy": 2}, "max_accuracy must be a number from 0 to 1, got 2"),
        ({"max_accuracy": True}, "max_accuracy must be a number"),
        ({"final_accuracy": "0.5"}, "final_accuracy must be a number"),
        ({"seconds": -1}, "seconds must be a number of at least 0"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"steps": 10**30}, "steps must be a whole number"),
        ({"stopped": "=cmd()"}, "stopped must be one line of plain text"),
        ({"stopped": "step 3: \x1b[2J"}, "stopped must be one line of plain text"),
        ({"stopped": ["x"]}, "stopped must be one line of plain text"),
        ({"digest": "0123456789"}, "of another experiment: its digest is '0123456789'"),
        ({"format": 99}, "was written by a newer version of Varangian (format 99"),
        ({"format": None}, "format must be a whole number"),
    ],
)
def test_results_of_others(folder: Path, values: dict, message: str) -> None:
    change(folder / "result.json", **values)
    for reads in (read, read_outcome):
        with pytest.raises(ValueError, match=re.escape(message)):
            reads(folder)


def test_accuracies_that_nobody_measured(folder: Path) -> None:
    change(folder / "result.json", max_accuracy=0.999)
    with pytest.raises(ValueError, match="are not those of its evaluations"):
        read_outcome(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"^0,", "9" * 5000 + ",", "step must be a whole number"),
        (r"^0,", "-1,", "step must be a whole number"),
        (r"^0,", "1_0,", "something else than numbers|step must be a whole number"),
        (r"^0,0\.\d+", "0,inf", "accuracy must be a number"),
        (r"^0,0\.\d+", "0,1.5", "accuracy must be a number"),
        (r"^0,", "7,", "do not go up"),
        (r"accuracy", "accuracies", "lacks the columns accuracy"),
        (r"^0,", '"0,', "not a CSV file|something else than numbers"),
        (r"\n", "\r", "lacks the columns|new-line character"),
    ],
)
def test_tables_of_others(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "evaluations.csv"
    text = re.sub(old, new, path.read_text(), count=0 if old == r"\n" else 1, flags=re.MULTILINE)
    path.write_text(text, newline="")
    with pytest.raises(ValueError, match=message):
        read_outcome(folder)


@pytest.mark.parametrize("name", ["result.json", "experiment.json", "metrics.csv", "evaluations.csv"])
def test_sizes_are_bounded_before_anything_is_read(folder: Path, name: str) -> None:
    os.truncate(folder / name, 2**40)  # a terabyte, of which nothing is on the disk
    for reads in (read, read_outcome):
        with pytest.raises(ValueError, match=r"has more than [\d,]+ bytes"):
            reads(folder)


@pytest.mark.parametrize("name", ["result.json", "experiment.json", "metrics.csv", "evaluations.csv"])
def test_links_and_pipes_are_not_followed(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    for reads in (read, read_outcome):
        with pytest.raises(ValueError, match="a link, and not followed"):
            reads(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)  # opening it would wait for ever
    for reads in (read, read_outcome):
        with pytest.raises(ValueError, match="not a plain file"):
            reads(folder)


def test_runs_outside_of_the_folder_are_left_out(folder: Path, tmp_path: Path) -> None:
    inside, outside = tmp_path / "study", tmp_path / "other"
    outside.mkdir()
    (outside / "runs").symlink_to(folder.parent)
    with pytest.raises(ValueError, match=r"holds no complete runs.*leads out of"):
        gather(outside)
    (inside / "runs" / "again").symlink_to(folder)  # within the study: as good as a folder
    with pytest.warns(UserWarning, match="a run that another folder holds too"):
        assert len(gather(inside)) == 1


def test_tables_of_a_study(tmp_path: Path) -> None:
    write_runs(tmp_path, made(rules=("median",), seeds=(1,)))
    text = (tmp_path / "runs.csv").read_text()
    for changed, message in (
        (text + text.splitlines()[1] + "\n", "occurs twice"),
        (text.replace("0.71,", "nan,"), "max_accuracy must be a number"),
        (text.replace("0.71,", "1_0,"), "max_accuracy must be a number"),
        (text.replace(",0.71,", ",0.71,,"), "cells, the header has"),
        (text.replace("name,", "digest,", 1), "lacks the columns name"),
        (text.replace("0.5,0.1,0.25,", "0.5,0.1,0.25,=1+1"), "stopped must be one line of plain text"),
    ):
        assert changed != text
        (tmp_path / "runs.csv").write_text(changed)
        with pytest.raises(ValueError, match=message):
            gather(tmp_path)
    (tmp_path / "runs.csv").write_text(text)
    (tmp_path / "curves.csv").write_text("digest,source,step,accuracy,ratio\na,varangian,1,0.5,inf\n")
    with pytest.raises(ValueError, match=r"curves.csv, line 2: ratio must be a number"):
        gather(tmp_path)


def test_one_name_for_two_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match="two columns of one name"):
        list(read_rows(tmp_path / "t.csv"))


def test_rows_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n" + "1\n" * 11)
    for rows in (read_rows(tmp_path / "t.csv", most=10), read_columns(tmp_path / "t.csv", ("a",), ("a",), most=10)):
        with pytest.raises(ValueError, match="more than 10 rows"):
            list(rows)


def test_cells_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n" + "1" * 2**21 + "\n")
    with pytest.raises(ValueError, match="not a CSV file: field larger than"):
        list(read_rows(tmp_path / "t.csv"))


# ---- checkpoints whose checksum is right


CRAFTED = [
    *((("metrics",), value) for value in ([], [1], torch.zeros(0), [10**30, "x"], [2**62, "x"])),
    *((("state", "points"), value) for value in (None, "x", [], -1, 10**30, torch.zeros(3, dtype=torch.bool))),
    *((("state", "step"), value) for value in (10**30, 2, True)),
    *((("state",), value) for value in (torch.tensor(5.0), [], "x")),
    *((("state", "parameters"), value) for value in (None, torch.zeros(3), torch.zeros(3).to_sparse())),
    *((("state", "worker"), value) for value in (None, [], [torch.zeros(2, 2)], {})),
    *((("evaluations",), value) for value in (torch.zeros(3), torch.zeros(1, 3), [[0, 0.5, 1.0]])),
    *((("seconds",), value) for value in (float("nan"), -1.0, "x")),
    (("stopped",), "=cmd()"),
]


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch 2.15 says so
@pytest.mark.parametrize(("place", "value"), CRAFTED, ids=lambda item: str(item)[:30].replace("\n", " "))
def test_crafted_checkpoints(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    """Anybody can compute a checksum: what is crafted is not gone on from, and the run starts over."""
    put(tmp_path / "run", fuzzing.interrupted(replace(SMALL, steps=6), tmp_path / "first"))
    folder = tmp_path / "run"
    (folder / "checkpoint-former.pt").unlink()
    content = inner = torch.load(folder / "checkpoint.pt", weights_only=True)
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    del content["checksum"]
    with suppress(RuntimeError):  # of sparse tensors there is none
        content["checksum"] = folders._checksum(content)
    torch.save(content, folder / "checkpoint.pt")
    with pytest.warns(UserWarning, match=r"checkpoint.pt cannot be used: .*; starting over"):
        result = resume(folder)
    assert (result.began, len(result.measures)) == (0, 6)


def test_checkpoints_of_the_older_format_are_not_for_torch(tmp_path: Path) -> None:
    """A file that torch reads in one way and zipfile in another."""
    put(tmp_path / "run", fuzzing.interrupted(replace(SMALL, steps=6), tmp_path / "first"))
    folder = tmp_path / "run"
    (folder / "checkpoint-former.pt").unlink()
    old = io.BytesIO()
    torch.save({"a": 1}, old, _use_new_zipfile_serialization=False)
    (folder / "checkpoint.pt").write_bytes(old.getvalue() + (folder / "checkpoint.pt").read_bytes())
    with pytest.warns(UserWarning, match="torn or no checkpoint"):
        assert resume(folder).began == 0


def test_resuming_writes_through_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    put(tmp_path / "run", fuzzing.interrupted(replace(SMALL, steps=6), tmp_path / "first"))
    for name in ("checkpoint.pt", "state.pt", "result.json", "environment.json"):
        (tmp_path / "run" / f"{name}.partial").symlink_to(victim)
    assert resume(tmp_path / "run", checkpoint_every=0).began == 3
    assert victim.read_text() == "precious"
    e = replace(SMALL, steps=6)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{e.name}-{e.digest}").symlink_to(tmp_path / "run")
    with pytest.raises(ValueError, match="a symbolic link, and not written through"):
        run(e, tmp_path / "out")


# ---- results of the paper's code


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nb_workers": 10**400}, "401 digits"),
        ({"batch_size": "1e999"}, "batch-size must be a number"),
        ({"attack_args": ["factor:inf"]}, "factor must be a number"),
        ({"attack": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}, "nested"),
        ({"gar": "x" * 10**5}, "characters"),
        ({"study": "# step\thonest deviation\thonest norm\n0\t1_0\t1\n"}, "line 2: not numbers"),
        ({"study": "# step\n" + "1" * 10**5 + "\n"}, "line 2: not numbers"),
        ({"evaluations": "# step\t" + "x" * 10**5 + "\n0\t1\n"}, "lacks a column"),
    ],
)
def test_old_results_of_others(tmp_path: Path, changed: dict, message: str) -> None:
    place = old_run(tmp_path / "old", **changed)
    [(refused, reason)] = import_runs(place.parent, tmp_path / "out")[1]
    assert refused == place
    assert message in reason
    assert len(reason) < 2000


def test_old_ratios_beyond_all_numbers(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("# step\thonest deviation\thonest norm\n0\t1e200\t1\n1\t1e300\t1e-300\n")
    ratios = [m.ratio for m in read_study(tmp_path / "study")]
    assert all(r is None or r > 1e300 for r in ratios)
    place = old_run(tmp_path / "old", study=(tmp_path / "study").read_text())
    made_folders, refused = import_runs(place, tmp_path / "out")
    assert refused == []
    assert read_outcome(made_folders[0], "imported").ratio is None


def test_old_tables_of_many_columns(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("# step" + "\tx" * 100_000 + "\n" * 100)
    with pytest.raises(ValueError, match="cells"):
        read_study(tmp_path / "study")


def test_import_writes_where_it_should(tmp_path: Path) -> None:
    old_run(tmp_path / "old")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "imported").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link, and not written through"):
        import_runs(tmp_path / "old", tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_folders_of_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varangian.runs.files.MAX_ENTRIES", 3)
    for number in range(4):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(ValueError, match="more than 3 entries"):
        folders_in(tmp_path, tmp_path, Path.exists)


# ---- reports


def test_reports_write_through_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    study = tmp_path / "study"
    study.mkdir()
    write_runs(study, made(rules=("median",), seeds=(1,)))
    for name in ("report.html", "claims.csv", "report.partial", f"report.html.{os.getpid()}.partial"):
        (study / name).symlink_to(victim)
    (study / "figures").mkdir()
    (study / "figures" / "gains-fully-connected-fashion-mnist-described.png").symlink_to(victim)
    page = report(study)
    assert victim.read_text() == "precious"
    assert page.read_text().startswith("<!doctype html>")
    assert not page.is_symlink()
    assert not (study / "figures" / "gains-fully-connected-fashion-mnist-described.png").is_symlink()


def test_reports_draw_into_no_other_folder(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (tmp_path / "elsewhere").mkdir()
    write_runs(study, made(rules=("median",), seeds=(1,)))
    (study / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link, and not written through"):
        report(study)


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []


def test_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    group = Group(r"$\frac{$ and $x^$", "described", tuple(made(rules=("median",), seeds=(1,))))
    for name, figure in figures.draw(group):
        style.save(figure, tmp_path / name)
        break
    assert len(list(tmp_path.iterdir())) == 2


def test_figures_that_nobody_could_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = made(rules=("median",), seeds=(1,))[1]
    many = [
        replace(base, experiment=replace(base.experiment, attack=f"little(factor={factor})"))
        for factor in range(2, 103)
    ]
    twins = [replace(o, experiment=replace(o.experiment, momentum_at="worker")) for o in many]
    page = report([*many, *twins], tmp_path / "wide").read_text()
    assert "too much for one figure" in page
    assert "101 across: that makes no map that anybody reads" in page
    monkeypatch.setattr("varangian.study.report.MAX_PANELS", 20)
    kinds = [replace(base, experiment=replace(base.experiment, l2=0.001 * number)) for number in range(1, 10)]
    kinds += [replace(o, experiment=replace(o.experiment, momentum_at="worker")) for o in kinds]
    assert "panels, over 20" in report(kinds, tmp_path / "many").read_text()
    for folder in ("wide", "many"):
        names = {p.name.split("-")[0].split(".")[0] for p in (tmp_path / folder / "figures").iterdir()}
        assert names <= {"heat", "worst", "seeds", "curves"}


def test_ratios_that_are_not_finite_stay_out_of_the_page(tmp_path: Path) -> None:
    e = replace(SMALL, momentum_at="server")
    result = run(e)
    result = replace(result, measures=[replace(m, ratio=float("inf")) for m in result.measures])
    o = from_result(result)
    assert all(p.ratio is None or p.ratio < float("inf") for p in o.curve)
    assert "Infinity" not in report([o, replace(o, experiment=SMALL)], tmp_path).read_text()


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"\xff", b"{}", b'{"versions": 1}', b"x" * 2**17, b'{"jobs": 1e999}'],
)
def test_records_that_say_nothing(tmp_path: Path, content: bytes) -> None:
    write_runs(tmp_path, made(rules=("median",), seeds=(1,)))
    put(tmp_path / "sweeps", {"a.json": content})
    assert fuzzing.of_sweeps(tmp_path / "sweeps") == []


# ---- names on pages, in terminals and in spreadsheets

NASTY = (
    *("</script><img src=x onerror=\"document.title='hit'\">", "'\"><svg onload=document.title='hit'>", "__proto__"),
    *("\u2028\u2029document.title='hit'//", "${document.title='hit'}", "`'\"&amp;<!--", "constructor"),
)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("reported")
    outcomes = made()
    outcomes[0] = replace(outcomes[0], stopped="step 3: =cmd()")
    write_runs(study, outcomes)
    report(study)
    return study


@pytest.mark.slow
@pytest.mark.browser
def test_a_page_full_of_hostile_names(reported: Path, tmp_path: Path) -> None:
    """Experiment refuses such names; the page must not depend on that."""
    text = (reported / "report.html").read_text()
    opening, closing = '<script type="application/json" id="data">', "</script>\n<script>"
    before, rest = text.split(opening)
    content, after = rest.split(closing, 1)
    found = json.loads(content)
    middle, rest = after.split(opening.replace("data", "cells"))
    content, after = rest.split(closing, 1)
    cells = json.loads(content)
    fresh = count()
    names: dict[str, str] = {}

    def nasty(name: str) -> str:
        return names.setdefault(name, f"{NASTY[next(fresh) % len(NASTY)]} {len(names)}" if name else "")

    for rows in (found["runs"], found["curves"]):
        for row in rows:
            for field in (1, 2, 7):  # rule, attack, rate; "average" without attack marks the references
                if row[field] not in ("", "average"):
                    row[field] = nasty(row[field])
    for group in found["groups"]:
        group["title"], group["study"] = NASTY[0], NASTY[1]
        group["rules"], group["rates"] = [nasty(r) for r in group["rules"]], [nasty(r) for r in group["rates"]]
        group["columns"] = [[*column[:3], nasty(column[3])] for column in group["columns"]]
    found["conditions"] = {
        "/".join([nasty(key.split("/")[0]), *key.split("/")[1:]]): value for key, value in found["conditions"].items()
    }
    assert len(names) >= 5
    for number, cell in enumerate(cells["cells"]):
        cell[0] = NASTY[number % len(NASTY)]
    cells["unit"] = NASTY[0]
    cells["measures"] = [[key, NASTY[1], digits] for key, _, digits in cells["measures"]]
    hostile, others = (
        json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
        for content in (found, cells)
    )
    page = before + opening + hostile + closing + middle + opening.replace("data", "cells") + others + closing + after
    (tmp_path / "hostile.html").write_text(page, encoding="utf-8")
    dom = chromium(tmp_path / "hostile.html", tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in dom
    assert 'data-cells="ready"' in dom
    assert "<title>Where should momentum stand? A report</title>" in dom
    drawn = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    drawn = re.sub(r"<noscript>.*?</noscript>", "", drawn, flags=re.DOTALL)
    assert "<img" not in drawn
    assert not re.search(r"<svg[^>]*onload", drawn)
    assert drawn.count("<figure>") == 4 + 8 + 8  # as many as without such names: boxes, curves, ratios
    chromium(tmp_path / "hostile.html", tmp_path, "--window-size=1280,2400", f"--screenshot={tmp_path / 'page.png'}")


def test_terminals_are_told_nothing_but_text(tmp_path: Path) -> None:
    assert printable("a\x1b]0;x\x07\u202eb\r\udcff\n") == "a\\x1b]0;x\\x07\\u202eb\\r\\udcff\n"
    old_run(tmp_path / "old", "good")
    old_run(tmp_path / "old", "\x1b[2Jbad\udcff", gar="?")
    result = CliRunner().invoke(import_command, [str(tmp_path / "old"), "--out", str(tmp_path / "study")])
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "\\x1b[2Jbad\\udcff" in result.output


def test_no_cell_begins_like_a_formula(reported: Path) -> None:
    tables = list(reported.glob("*.csv"))
    assert len(tables) == 6
    for table in tables:
        for row in read_rows(table):
            for name, cell in row.items():
                number = name in ("ours", "theirs") or re.fullmatch(r"[-+]?[\d.]+(e[-+]\d+)?", cell)
                assert number or cell[:1] not in ("=", "+", "-", "@", "\t"), (table.name, name, cell)


# ---- the command line


@pytest.mark.parametrize(
    "arguments",
    [["--seeds", ",".join(["1-9999"] * 3000)], ["--seeds", "\u0663"], ["--seeds", "1" * 100_000], ["--seeds", "1-"],
     ["--shard", "\u0661/\u0662"], ["--shard", "0/0"], ["--shard", "1/" + "9" * 5000], ["--time-budget", "1e999"],
     ["--time-budget", "-1"], ["--time-budget", "9" * 5000 + "h"], ["--time-budget", "nan"]],
)  # fmt: skip
def test_arguments_of_others(arguments: list[str]) -> None:
    result = CliRunner().invoke(reproduce, arguments)
    assert result.exit_code == 2
    assert len(result.output) < 2000


def test_configurations_may_be_links_but_not_endless(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    assert read_text(tmp_path / "link.json", follow=True) == "{}"
    with pytest.raises(ValueError, match="more than 4,194,304 bytes"):
        read_text(Path("/dev/zero"), follow=True)


# ---- downloads


class _Endless(BaseHTTPRequestHandler):
    """Sends a file that does not end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "9" * 30)
        self.end_headers()
        with suppress(OSError):  # the other side hangs up
            while True:
                self.wfile.write(b"0" * 2**16)

    def log_message(self, *arguments: object) -> None:
        pass


def test_downloads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(files, "_LARGEST", 2**20)
        monkeypatch.setattr(files, "_URLS", dict.fromkeys(files._URLS, f"http://127.0.0.1:{server.server_port}/"))
        with pytest.raises(data.DataError, match="does not have the known SHA-256, so it was thrown away"):
            data.load("cifar-10", tmp_path / "new", download=True)
        assert not (tmp_path / "new").exists()
    finally:
        server.shutdown()
        server.server_close()


def test_every_download_has_a_checksum() -> None:
    assert files._URLS.keys() == files._SHA256.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", known) for files in files._SHA256.values() for known in files.values())
