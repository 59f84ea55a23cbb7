"""What can be followed of a run while it goes: events.jsonl, TensorBoard, listeners."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import varangian as vg
from varangian.runs.live import schema
from varangian.runs.live.schema import read_events
from varangian.simulation import data

E = vg.Experiment(
    workers=7, byzantine=1, model="linear", rule="median", attack="little", steps=9, batch_size=1, evaluate_every=3
)
KEPT = ('{"event": "step"', '{"event": "evaluation"')


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.digits()


def kinds(folder: Path | None) -> list[str]:
    assert folder is not None
    return [line["event"] for line in read_events(folder)]


def numbers(folder: Path | None) -> list[str]:
    """The lines that are the same however often a run was interrupted."""
    assert folder is not None
    return [line for line in (folder / "events.jsonl").read_text().splitlines() if line.startswith(KEPT)]


def stopping(when: Callable[[Any], bool], error: BaseException) -> Callable[[Any], None]:
    def listener(news: Any) -> None:
        if when(news):
            raise error

    return listener


def at(step: int) -> Callable[[Any], bool]:
    return lambda news: isinstance(news, vg.Measures) and news.step == step


# --------------------------------------------------------------------------------------------------------------- events


def test_a_run_tells_what_happens(tmp_path: Path, digits: data.Dataset) -> None:
    result = vg.run(E, tmp_path, digits, events=True)
    told = read_events(tmp_path / f"{E.name}-{E.digest}")
    assert [line["event"] for line in told] == [
        "begun", *(["evaluation", *["step"] * 3] * 3), "evaluation", "complete",
    ]  # fmt: skip
    assert (told[0]["what"], told[0]["version"], told[0]["step"], told[0]["steps"]) == ("run", 1, 0, 9)
    assert vg.Experiment.from_dict(told[0]["settings"]) == result.experiment
    steps = [line for line in told if line["event"] == "step"]
    for line, row in zip(steps, result.measures, strict=True):
        cells = dict(zip(row.columns, row.row(), strict=True))
        assert {k: f"{v:.9g}" for k, v in line.items() if k != "event"} == {k: v for k, v in cells.items() if v}
    found = [line for line in told if line["event"] == "evaluation"]
    assert [(line["step"], line["accuracy"]) for line in found] == [(e.step, e.accuracy) for e in result.evaluations]
    assert told[-1]["result"] == json.loads((tmp_path / f"{E.name}-{E.digest}" / "result.json").read_text())


@pytest.mark.parametrize(
    ("settings", "stopped"),
    [
        ({"attack": "nan", "real_byzantine": 3}, "step 0: "),
        ({"attack": "nan", "rule": "average"}, "no longer finite"),
        ({"validation": 0.2, "metrics": "macro-f1"}, None),
        ({"attack": "label-flip", "metrics": "per-class"}, None),
        ({"measure": False, "byzantine": 0, "attack": None}, None),
        ({"evaluate_every": 0, "steps": 1}, None),
        ({"momentum_at": "adaptive", "momentum": 0.9}, None),
    ],
)
def test_every_line_of_every_run_keeps_the_schema(
    tmp_path: Path, digits: data.Dataset, settings: dict[str, Any], stopped: str | None
) -> None:
    result = vg.run(replace(E, **settings), tmp_path, digits, events=True)
    told = read_events(result.folder)  # type: ignore[arg-type]
    assert len([line for line in told if line["event"] == "step"]) == len(result.measures)
    found = [line["why"] for line in told if line["event"] == "stopped"]
    assert len(found) == (stopped is not None)
    assert stopped is None or stopped in found[0] == result.stopped
    for line, evaluation in zip([x for x in told if x["event"] == "evaluation"], result.evaluations, strict=True):
        assert line.get("metrics", {}).keys() == evaluation.metrics.keys()


def test_the_schema_is_a_json_schema_that_says_the_same(tmp_path: Path, digits: data.Dataset) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(schema.schema())
    result = vg.run(replace(E, validation=0.1), tmp_path, digits, events=True)
    for line in read_events(result.folder):  # type: ignore[arg-type]
        check.validate(line)
    assert not check.is_valid({"event": "step", "step": 1})
    assert not check.is_valid({"event": "other"})


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 8])
def test_a_run_that_was_interrupted_has_each_line_once(tmp_path: Path, digits: data.Dataset, step: int) -> None:
    whole = vg.run(E, tmp_path / "whole", digits, events=True)
    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path / "parts", digits, events=True, listener=stopping(at(step), KeyboardInterrupt()))
    parts = vg.run(E, tmp_path / "parts", digits)  # which goes on with them
    assert numbers(whole.folder) == numbers(parts.folder)
    assert [kind for kind in kinds(parts.folder) if kind not in ("step", "evaluation")] == [
        "begun", "interrupted", "begun", "complete",
    ]  # fmt: skip
    begun = [line["step"] for line in read_events(parts.folder) if line["event"] == "begun"]  # type: ignore[arg-type]
    assert begun == [0, step + 1]
    for name in ("metrics.csv", "evaluations.csv"):
        assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()  # type: ignore[operator]


def test_what_no_checkpoint_knows_is_cut_off(tmp_path: Path, digits: data.Dataset) -> None:
    whole = vg.run(E, tmp_path / "whole", digits, events=True)
    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path, digits, events=True, listener=stopping(at(4), KeyboardInterrupt()))
    path = tmp_path / f"{E.name}-{E.digest}" / "events.jsonl"
    begin = path.read_text().splitlines(keepends=True)[:-1]  # without "interrupted": it was killed
    path.write_text("".join([*begin, numbers(whole.folder)[8] + "\n", '{"event": "step", "st']))
    parts = vg.run(E, tmp_path, digits)
    assert numbers(whole.folder) == numbers(parts.folder)


@pytest.mark.parametrize("damage", ["missing", "torn", "other", "not asked for"])
def test_lines_that_are_lacking_are_written_anew(tmp_path: Path, digits: data.Dataset, damage: str) -> None:
    whole = vg.run(E, tmp_path / "whole", digits, events=True)
    asked = damage != "not asked for"
    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path, digits, events=asked, listener=stopping(at(4), KeyboardInterrupt()))
    path = tmp_path / f"{E.name}-{E.digest}" / "events.jsonl"
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:1500])
    elif damage == "other":
        path.write_text(path.read_text().replace('"loss": 2', '"loss": 3'))
    parts = vg.run(E, tmp_path, digits, events=True)
    assert numbers(whole.folder) == numbers(parts.folder)
    assert kinds(parts.folder)[0] == "begun"


def test_they_are_only_where_they_are_asked_for(tmp_path: Path, digits: data.Dataset) -> None:
    result = vg.run(E, tmp_path, digits)
    assert result.folder is not None
    assert not (result.folder / "events.jsonl").exists()
    assert not list(result.folder.glob("*tfevents*"))
    again = vg.run(E, tmp_path, digits, events=True, fresh=True)
    assert kinds(again.folder)[-1] == "complete"
    third = vg.run(E, tmp_path, digits, fresh=True)
    assert not (third.folder / "events.jsonl").exists()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["events", "tensorboard"])
def test_without_a_folder_there_is_no_place_for_them(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: without a folder"):
        vg.run(E, events=name == "events", tensorboard=name == "tensorboard")


def test_an_error_is_told_where_a_checkpoint_keeps_the_run(tmp_path: Path, digits: data.Dataset) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        vg.run(E, tmp_path, digits, events=True, listener=stopping(at(4), RuntimeError("mine\nof two lines")))
    told = read_events(tmp_path / f"{E.name}-{E.digest}")
    assert told[-1]["event"] == "failed"
    assert told[-1]["step"] == 5
    assert "RuntimeError" in told[-1]["why"]
    assert "mine" in told[-1]["why"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_lines_can_be_read_while_it_runs_and_survive_its_end(tmp_path: Path, number: int) -> None:
    code = (
        "import varangian as vg\n"
        "vg.run(vg.Experiment(model='linear', workers=7, byzantine=1, rule='median', attack='little', steps=100000,"
        f"evaluate_every=100, batch_size=1), {str(tmp_path)!r}, events=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        limit = time.monotonic() + 100
        lines: list[dict[str, Any]] = []
        while len(lines) < 50 and time.monotonic() < limit:
            time.sleep(0.1)
            for path in tmp_path.glob("*/events.jsonl"):
                lines = read_events(path)
        assert len(lines) >= 50
    finally:
        process.send_signal(number)
        process.wait()
    last = read_events(next(tmp_path.iterdir()))[-1]["event"]
    # A killed run says no last word: whichever of its lines stands last is one of the loop's.
    assert last in ({"interrupted"} if number == signal.SIGTERM else {"step", "evaluation"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1 is not JSON"),
        ('{"event": "step", "step": 0}\n', "line 1: "),
        ('{"event": "interrupted", "time": "2026-01-01T00:00:00Z"}\n', "line 1: the first event is not begun"),
        ('{"event": "other"}\n', "line 1: "),
        ('{"event": "failed", "time": "yesterday", "why": ""}\n', "line 1: failed.time|line 1: time"),
        ("[" * 100_000 + "\n", "line 1 is not JSON"),
        ("[]\n", "line 1: "),
    ],
)
def test_what_is_no_file_of_events_is_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "events.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_events(tmp_path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ listeners


def test_a_listener_hears_everything_in_order(digits: data.Dataset) -> None:
    heard: list[Any] = []
    result = vg.run(E, dataset=digits, listener=heard.append)
    assert [news for news in heard if isinstance(news, vg.Measures)] == list(result.measures)
    assert [news for news in heard if isinstance(news, vg.Evaluation)] == result.evaluations
    order = [(news.step, isinstance(news, vg.Measures)) for news in heard]
    assert order == sorted(order)


def test_after_an_interruption_a_listener_hears_the_rest(tmp_path: Path, digits: data.Dataset) -> None:
    whole: list[Any] = []
    vg.run(E, dataset=digits, listener=whole.append)
    parts: list[Any] = []

    def listener(news: Any) -> None:
        parts.append(news)
        if isinstance(news, vg.Evaluation) and news.step == 6:
            raise SystemExit

    with pytest.raises(SystemExit):
        vg.run(E, tmp_path, digits, listener=listener)
    result = vg.resume(tmp_path / f"{E.name}-{E.digest}", digits, listener=parts.append)
    assert [(type(n), n.step) for n in parts] == [(type(n), n.step) for n in whole]
    assert [e.step for e in result.evaluations] == [0, 3, 6, 9]
    assert (result.folder / "evaluations.csv").read_text().count("\n") == 5  # type: ignore[operator]


@pytest.mark.parametrize("when", ["first evaluation", "step", "evaluation", "last evaluation"])
def test_what_a_listener_raises_is_raised_and_the_run_goes_on(tmp_path: Path, digits: data.Dataset, when: str) -> None:
    whole = vg.run(E, tmp_path / "whole", digits)
    step = {"first evaluation": 0, "step": 4, "evaluation": 3, "last evaluation": 9}[when]

    def listener(news: Any) -> None:
        if news.step == step and isinstance(news, vg.Measures) == (when == "step"):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        vg.run(E, tmp_path, digits, listener=listener)
    parts = vg.run(E, tmp_path, digits)
    assert parts.began == {"first evaluation": 0, "step": 5, "evaluation": 3, "last evaluation": 9}[when]
    for name in ("metrics.csv", "evaluations.csv", "state.pt"):
        if name != "state.pt":
            assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()  # type: ignore[operator]
    for ours, theirs in zip(whole.model().parameters(), parts.model().parameters(), strict=True):
        assert torch.equal(ours, theirs)


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def curves(folder: Path | None) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.fixture
def all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from varangian.runs.live import board

    monkeypatch.setattr(board, "BETWEEN", 0.0)


@pytest.mark.usefixtures("all_rows")
@pytest.mark.parametrize("step", [None, 2, 4, 8])
def test_tensorboard_reads_all_of_a_run(tmp_path: Path, digits: data.Dataset, step: int | None) -> None:
    e = replace(E, validation=0.1, metrics="macro-f1")
    if step is not None:
        with pytest.raises(KeyboardInterrupt):
            vg.run(e, tmp_path, digits, tensorboard=True, listener=stopping(at(step), KeyboardInterrupt()))
    result = vg.run(e, tmp_path, digits, tensorboard=step is None)
    found = curves(result.folder)
    for tag, name in (("evaluation/accuracy", "accuracy"), ("evaluation/validation_loss", "validation_loss")):
        assert found[tag] == [(e.step, pytest.approx(getattr(e, name))) for e in result.evaluations]
    assert [step for step, _ in found["evaluation/macro-f1"]] == [0, 3, 6, 9]
    for name in ("loss", "honest_norm", "cosine_honest_attack"):
        expected = [(row.step, pytest.approx(getattr(row, name))) for row in result.measures]
        assert found[f"measures/{name}"] == expected


@pytest.mark.usefixtures("all_rows")
def test_what_came_before_tensorboard_was_asked_for_is_there_too(tmp_path: Path, digits: data.Dataset) -> None:
    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path, digits, listener=stopping(at(4), KeyboardInterrupt()))
    result = vg.run(E, tmp_path, digits, tensorboard=True)
    found = curves(result.folder)
    assert [step for step, _ in found["measures/loss"]] == list(range(9))
    assert [step for step, _ in found["evaluation/loss"]] == [0, 3, 6, 9]


def test_rows_are_left_out_where_steps_are_short(tmp_path: Path, digits: data.Dataset) -> None:
    pytest.importorskip("tensorboard")
    result = vg.run(replace(E, steps=60), tmp_path, digits, tensorboard=True)
    steps = [step for step, _ in curves(result.folder)["measures/loss"]]
    assert steps[0] == 0
    assert steps[-1] == 59
    assert [step for step, _ in curves(result.folder)["evaluation/loss"]] == list(range(0, 61, 3))
    again = vg.run(replace(E, steps=60), tmp_path, digits, fresh=True)
    assert not list(again.folder.glob("*tfevents*"))  # type: ignore[union-attr]
