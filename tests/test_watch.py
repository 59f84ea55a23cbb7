"""varangian watch: what there is to see of runs and sweeps, while others write there."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import programs
import varangian as vg
from varangian.runs import folders
from varangian.runs.live.schema import read_events
from varangian.study import outcomes
from varangian.study.sweep import sweep
from varangian.study.tune import Search, tune
from varangian.study.watching import Watcher
from varangian.study.watching.display import lines_of, shown, sparkline

pytestmark = pytest.mark.usefixtures("forked")
E = vg.Experiment(
    workers=7, byzantine=1, model="linear", rule="median", attack="little", steps=9, batch_size=1, evaluate_every=3
)
NAME = f"{E.name}-{E.digest}"
EXTREMES: list[dict[str, Any]] = [
    {"steps": 0}, {"steps": 1}, {"evaluate_every": 0}, {"evaluate_every": 10**9}, {"workers": 1, "byzantine": 0,
    "attack": None}, {"byzantine": 0, "attack": None}, {"real_byzantine": 0}, {"batch_size": 10**6, "workers": 3,
    "steps": 1}, {"momentum": 0.0},
    {"learning_rate": 0.0}, {"learning_rate": ((0, 0.1), (10**9, 0.0))}, {"l2": 0.0}, {"clip": None}, {"clip": 1e-300},
    {"seed": 0}, {"seed": 2**63 - 1}, {"validation": 0.5}, {"steps": 0, "validation": 0.1},
    {"steps": 0, "evaluate_every": 0, "metrics": ("per-class",)}, {"steps": 0, "measure": False},
    {"steps": 0, "momentum_at": "adaptive"}, {"steps": 0, "clients": 14},
]  # fmt: skip


def watch(*arguments: object, columns: int = 80) -> subprocess.CompletedProcess[str]:
    return programs.run("-m", "varangian", "watch", *arguments, env=os.environ | {"COLUMNS": str(columns)})


def drawn(folder: Path, width: int = 80, rows: int = 20) -> str:
    console = Console(file=io.StringIO(), width=width, height=40)
    console.print(shown(Watcher(folder).look(), width, rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def stop_at(step: int) -> Any:
    def listener(news: Any) -> None:
        if isinstance(news, vg.Measures) and news.step == step:
            raise KeyboardInterrupt

    return listener


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three runs, of which one fails; it wrote down what happened."""
    out = tmp_path_factory.mktemp("swept")
    bad = replace(E, dataset="synthetic(train=4, test=4)", partition="similarity(gamma=0.5)", seed=3)
    sweep([E, replace(E, seed=2), bad], out, jobs=1, events=True)
    return out


# ----------------------------------------------------------------------------------------------------------------- runs


def test_a_run_as_it_goes(tmp_path: Path) -> None:
    seen = []

    def listener(news: Any) -> None:
        if isinstance(news, vg.Measures) and news.step == 5:
            seen.append(Watcher(tmp_path).look())

    kept = vg.run(E, tmp_path, listener=listener)
    [view] = seen
    [run] = view.runs
    assert (run.state, run.steps, run.accuracy) == ("running", 9, kept.evaluations[1].accuracy)
    assert 1 <= run.step <= 6
    assert not view.over
    after = Watcher(tmp_path).look()
    [run] = after.runs
    assert (run.state, run.step, run.steps) == ("complete", 9, 9)
    assert (run.accuracy, run.best) == (kept.final_accuracy, kept.max_accuracy)
    assert run.curve == tuple(pytest.approx(e.accuracy) for e in kept.evaluations)
    assert after.over


def test_nothing_is_written_and_nobody_is_kept_out(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path, listener=stop_at(4))
    vg.run(replace(E, seed=2), tmp_path)
    before = state(tmp_path)
    ended = threading.Event()
    errors = []

    def look() -> None:
        watcher = Watcher(tmp_path)
        while not ended.is_set():
            try:
                watcher.look()
            except Exception as error:
                errors.append(error)

    Watcher(tmp_path).look()
    assert state(tmp_path) == before
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for seed in range(3, 8):
            vg.run(replace(E, seed=seed), tmp_path)
            shutil.rmtree(tmp_path / f"{E.name[:-1]}{seed}-{replace(E, seed=seed).digest}")
    finally:
        ended.set()
        thread.join()
    assert errors == []


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux says who holds a lock")
def test_a_run_whose_process_died_is_quiet(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path, listener=stop_at(4))
    past = time.time() - 600
    for path in (tmp_path / NAME).iterdir():
        os.utime(path, (past, past))
    [run] = Watcher(tmp_path).look().runs
    assert (run.state, run.step) == ("quiet", 5)
    assert run.age == pytest.approx(600, abs=60)
    with folders.held(tmp_path / NAME):  # somebody is at it, and has not written for ten minutes
        assert Watcher(tmp_path).look().runs[0].state == "running"
    assert "10 min ago" in drawn(tmp_path)


def test_a_run_that_stopped_says_why(tmp_path: Path) -> None:
    result = vg.run(replace(E, attack="nan", real_byzantine=3), tmp_path)
    [run] = Watcher(tmp_path).look().runs
    assert run.state == "stopped"
    assert run.why == result.stopped
    assert result.folder is not None
    assert "NaN or infinity" in drawn(result.folder)


def test_no_accuracy_is_no_accuracy(tmp_path: Path) -> None:
    x, y = torch.randn(80, 3), torch.randn(80)
    vg.run(replace(E, loss="mse", attack=None, byzantine=0), tmp_path, (x, y))
    [run] = Watcher(tmp_path).look().runs
    assert run.accuracy is None
    assert run.loss is not None
    assert f"loss {run.loss:.3g}" in drawn(tmp_path)


DAMAGED = [
    ("result.json", b"{"),
    ("result.json", b'{"stopped": null}'),
    ("result.json", b'{"stopped": null, "steps": "9", "seconds": 1}'),
    ("experiment.json", b"[]"),
    ("experiment.json", b'{"steps": -1}'),
    ("evaluations.csv", b"\xff\xfe,,\n" * 100),
    ("evaluations.csv", b"step,accuracy\n1,\x1b[2J\n"),
    ("metrics.csv", b"step\n" + b"9" * 100_000),
    ("environment.json", b'{"sessions": []}'),
]  # fmt: skip


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_what_is_damaged_is_said_and_the_rest_is_seen(
    tmp_path: Path, name: str, content: bytes, complete: bool
) -> None:
    vg.run(replace(E, seed=2), tmp_path)
    with suppress(KeyboardInterrupt):
        vg.run(E, tmp_path, listener=None if complete else stop_at(4))
    if not complete and name == "result.json":
        return
    (tmp_path / NAME / name).write_bytes(content)
    view = Watcher(tmp_path).look()
    assert len(view.runs) == 2
    assert view.counts["complete"] >= 1
    text = drawn(tmp_path)
    assert "\x1b[2J" not in text
    assert json.loads(json.dumps(view.to_dict(), allow_nan=False))


def test_links_are_not_followed(tmp_path: Path) -> None:
    vg.run(E, tmp_path / "elsewhere")
    place = tmp_path / "out"
    place.mkdir()
    (place / "linked").symlink_to(tmp_path / "elsewhere" / NAME)
    (place / "runs").symlink_to(tmp_path / "elsewhere")
    assert Watcher(place).look().runs == ()
    shutil.copytree(tmp_path / "elsewhere" / NAME, place / NAME)
    (place / NAME / "result.json").unlink()
    (place / NAME / "result.json").symlink_to(tmp_path / "elsewhere" / NAME / "result.json")
    assert [run.state for run in Watcher(place).look().runs] == ["unreadable"]


def test_a_thousand_runs(tmp_path: Path) -> None:
    vg.run(E, tmp_path)
    for i in range(999):
        shutil.copytree(tmp_path / NAME, tmp_path / f"{NAME}x{i}")
    watcher = Watcher(tmp_path)
    assert watcher.look().counts == {"complete": 1000}
    start = time.perf_counter()
    view = watcher.look()
    again = time.perf_counter() - start
    assert view.over
    assert again < 5  # most of which is nothing: what is complete is read once
    text = drawn(tmp_path, rows=10)
    assert "1,000 of 1,000 complete" in text
    assert "and 990 more" in text
    assert len(text.splitlines()) <= 14


# --------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_tells_what_happens(swept: Path) -> None:
    [path] = (swept / "sweeps").glob("*.jsonl")
    told = read_events(path)
    assert [(line["event"], line.get("state")) for line in told] == [
        ("begun", None),
        ("run", "started"), ("run", "complete"), ("run", "started"), ("run", "complete"),
        ("run", "started"), ("run", "failed"),
        ("complete", None),
    ]  # fmt: skip
    assert (told[0]["runs"], told[0]["todo"], told[-1]["done"], told[-1]["failed"], told[-1]["left"]) == (3, 3, 2, 1, 0)
    assert told[1]["folder"] == f"runs/{NAME}"
    assert read_events(swept / told[1]["folder"])[-1]["event"] == "complete"


def test_a_sweep_as_it_is_seen(swept: Path) -> None:
    view = Watcher(swept).look()
    assert view.counts == {"complete": 2}
    [seen] = view.sweeps
    assert (seen.state, seen.runs, seen.complete, seen.failed) == ("ended", 3, 2, 1)
    assert "similarity" in seen.failures[0] or "Error" in seen.failures[0]
    text = lines_of(view)
    assert text[0] == "2 of 2 complete, 1 failed"
    assert text[1].startswith("failed: ")


def test_a_sweep_under_way(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept, tmp_path / "out")
    [path] = (tmp_path / "out" / "sweeps").glob("*.json")
    values = json.loads(path.read_text()) | {"ended": False, "left": 120.0, "failures": [], "failed": 0, "runs": 40}
    path.write_text(json.dumps(values))
    view = Watcher(tmp_path / "out").look()
    assert (view.sweeps[0].state, view.expected, view.left, view.over) == ("running", 40, 120.0, False)
    assert lines_of(view)[0] == "2 of 40 complete, ends in 2 min"
    past = time.time() - 600
    os.utime(path, (past, past))
    view = Watcher(tmp_path / "out").look()
    assert view.sweeps[0].state == "quiet"
    for content in ("{", '{"runs": 1}', '{"runs": "many", "command": 3}', json.dumps(values | {"left": -1})):
        path.write_text(content)
        view = Watcher(tmp_path / "out").look()
        assert view.sweeps == ()
        assert len(view.notes) == 1


def test_a_sweep_that_is_repeated_has_a_file_of_its_own_and_runs_stay(swept: Path, tmp_path: Path) -> None:
    swept = Path(shutil.copytree(swept, tmp_path / "out"))
    before = state(swept / "runs")
    again = sweep([E], swept, jobs=1, events=True)
    assert again.events is not None
    assert [line["event"] for line in read_events(again.events)] == ["begun", "complete"]
    assert state(swept / "runs") == before


def test_a_tuning_tells_what_it_chose(tmp_path: Path) -> None:
    question = {"rule": "median", "attack": "little", "workers": 7, "byzantine": 1, "steps": 3, "model": "linear"}
    tuning = tune(Search(question, {"learning_rate": [0.001, 0.2]}), tmp_path, jobs=1, events=True)
    assert tuning.sweep.events is not None
    told = read_events(tuning.sweep.events)
    assert [line["event"] for line in told][-2:] == ["complete", "chosen"]
    assert told[-1]["settings"] == {"learning_rate": "0.2"}


# ---------------------------------------------------------------------------------------------------------- the command


def test_once(swept: Path, tmp_path: Path) -> None:
    done = watch(swept, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 of 2 complete, 1 failed\n")
    empty = watch(tmp_path, "--once")
    assert (empty.returncode, empty.stdout) == (0, f"no run in {tmp_path} yet\n")
    found = json.loads(watch(swept, "--once", "--json").stdout)
    assert (found["counts"], found["over"], len(found["runs"])) == ({"complete": 2}, True, 2)


def test_it_ends_where_everything_is_complete(swept: Path) -> None:
    done = watch(swept / "runs")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 of 2 complete\n", "")
    lines = watch(swept / "runs", "--json").stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["over"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_it_follows_until_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "varangian", "watch", str(tmp_path), "--interval", "0.1"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == f"no run in {tmp_path} yet\n"
    assert process.stdout.readline() == "waiting for a run to begin there; Ctrl-C ends\n"
    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path, listener=stop_at(4))
    assert "0 of 1 complete, 1 " in process.stdout.readline()
    process.send_signal(2)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_it_fits(swept: Path, tmp_path: Path, width: int) -> None:
    for folder in (swept, swept / "runs" / NAME, tmp_path):
        assert max(map(len, drawn(folder, width).splitlines())) <= width
    text = drawn(swept / "runs", width)
    assert "100" in text or "%" in text
    if width >= 60:
        assert "seed1" in text
        assert "seed2" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "does not exist"),
        (("--interval", "0", "."), "0"),
        (("--interval", "abc", "."), "'--interval': must be a number from 0.1 to 86400, got 'abc'"),
        ((__file__,), r"test_watch.py' is a file, not a folder"),
        ((), "Missing argument|missing argument"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = watch(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr)


def test_sparklines() -> None:
    assert sparkline([], 5) == ""
    assert sparkline([0.5], 5) == "▅"
    assert sparkline([0.0, 1.0, 0.3], 5) == "▁█▃"
    assert sparkline([1.0, *[0.0] * 5, 1.0], 3) == "█▁█"


@pytest.mark.slow
@pytest.mark.parametrize("changed", EXTREMES, ids=str)
def test_what_a_run_takes_its_readers_take(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Settings at the ends of what is allowed: whatever a run writes, all that read runs and events can read."""
    e = replace(E, **({"steps": 2} | changed))
    kept = vg.run(e, tmp_path, events=True)
    assert kept.folder is not None
    view = Watcher(tmp_path).look()
    assert [(run.state, run.step, run.steps, run.why) for run in view.runs] == [("complete", e.steps, e.steps, None)]
    assert view.over
    assert "complete" in drawn(tmp_path)
    assert f"{e.steps} of {e.steps}" in drawn(kept.folder)
    assert json.loads(json.dumps(view.to_dict(), allow_nan=False))
    again = vg.read(kept.folder)
    assert (again.experiment, len(again.measures), len(again.evaluations)) == (e, e.steps, len(kept.evaluations))
    events = read_events(kept.folder)
    assert events[0]["steps"] == e.steps
    assert [outcome.experiment for outcome in outcomes.gather(tmp_path)] == [e]


def test_one_that_goes_on_may_have_no_step_to_do(tmp_path: Path) -> None:
    seen = []

    def listener(news: Any) -> None:
        seen.extend(Watcher(tmp_path).look().runs)

    vg.run(replace(E, steps=0), tmp_path, listener=listener)
    assert seen
    assert {(run.state, run.steps, run.why) for run in seen} <= {("running", 0, None), ("complete", 0, None)}


def test_what_cannot_be_read_is_told_and_not_waited_for(tmp_path: Path) -> None:
    for seed in range(6):
        vg.run(replace(E, seed=seed), tmp_path)
    for folder in sorted(tmp_path.iterdir())[1:]:
        (folder / "result.json").write_text("{}")
    view = Watcher(tmp_path).look()
    assert view.counts == {"complete": 1, "unreadable": 5}
    assert view.over
    done = watch(tmp_path, "--interval", "0.1")
    first, *rest = done.stdout.splitlines()
    assert (done.returncode, done.stderr, first) == (0, "", "1 of 6 complete, 5 unreadable")
    assert len(rest) == 4
    assert all(line.endswith("'stopped' is missing") for line in rest[:3])
    assert rest[3] == "and 2 more that cannot be read"
    below = drawn(tmp_path, 300).split("accuracy")[1]
    assert below.count("is missing") == 3
    assert "and 2 more that cannot be read" in below
    assert "is missing" in watch(tmp_path, "--once", columns=300).stdout
