"""What evaluations measure beside accuracy and loss."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

import programs
import varangian as vg
from varangian.runs.fields import column_of
from varangian.simulation.data import set_aside
from varangian.study import outcomes

E = vg.Experiment(model="linear", workers=5, byzantine=1, rule="median", steps=6, batch_size=4, evaluate_every=3)
GENERATOR = torch.Generator().manual_seed(1)
LOGITS, CLASSES = torch.randn(200, 6, generator=GENERATOR), torch.randint(5, (200,), generator=GENERATOR)
ANSWERS, NUMBERS = torch.randn(50, 3, generator=GENERATOR), torch.randn(50, 3, generator=GENERATOR)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("balanced-accuracy", lambda y, z: sklearn.balanced_accuracy_score(y, z.argmax(1))),
        ("macro-f1", lambda y, z: sklearn.f1_score(y, z.argmax(1), average="macro")),
        ("worst-class", lambda y, z: sklearn.recall_score(y, z.argmax(1), average=None, labels=range(5)).min()),
    ],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_scores_of_classes_are_those_of_scikit_learn(name: str, expected: Any) -> None:
    assert vg.METRICS[name](LOGITS, CLASSES) == pytest.approx(expected(CLASSES.numpy(), LOGITS.numpy()))
    # Of tokens, those that do not count are left out.
    labels = CLASSES.reshape(20, 10).clone()
    labels[:, 3:] = -100
    few = vg.METRICS[name](LOGITS.reshape(20, 10, 6), labels)
    kept = LOGITS.reshape(20, 10, 6)[:, :3].reshape(-1, 6)
    assert few == pytest.approx(vg.METRICS[name](kept, labels[:, :3].reshape(-1)))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_is_that_of_scikit_learn(k: int) -> None:
    expected = sklearn.top_k_accuracy_score(CLASSES, LOGITS.numpy(), k=k, labels=range(6))
    assert vg.METRICS["top"](LOGITS, CLASSES, k=k) == pytest.approx(expected)


def test_scores_of_numbers_are_those_of_scikit_learn() -> None:
    true, said = NUMBERS.numpy(), ANSWERS.numpy()
    assert vg.METRICS["mae"](ANSWERS, NUMBERS) == pytest.approx(sklearn.mean_absolute_error(true, said))
    assert vg.METRICS["r2"](ANSWERS, NUMBERS) == pytest.approx(sklearn.r2_score(true, said))
    assert vg.METRICS["r2"](ANSWERS[:, :1], NUMBERS[:, 0]) == pytest.approx(sklearn.r2_score(true[:, 0], said[:, 0]))


@pytest.mark.parametrize("name", vg.METRICS)
def test_what_they_are_not_of_is_refused(name: str) -> None:
    wrong = (ANSWERS[:, 0], NUMBERS) if name in ("mae", "r2") else (LOGITS, CLASSES.double())
    with pytest.raises(ValueError, match=rf"^metrics: {name} is of ") as error:
        vg.METRICS[name](*wrong)
    assert "\n" not in str(error.value)


MINE = """
def recall(outputs, labels, of=0):
    "Share of a class that is found."
    mine = labels == of
    return (outputs.argmax(1)[mine] == of).float().mean()

def two(outputs, labels):
    return outputs

class Mine:
    pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_they_are_called_once_with_a_whole_split_and_kept(mine: Path) -> None:
    e = replace(E, metrics=("mine.py:recall(of=3)", "macro-f1"), validation=0.2)
    plain = vg.run(replace(E, validation=0.2))
    result = vg.run(e, mine / "runs")
    assert [x.loss for x in result.evaluations] == [x.loss for x in plain.evaluations]  # nothing else changes
    dataset = vg.DATASETS["digits"]()
    aside = set_aside(dataset.train, 0.2, e.seed)[1]
    names = ["recall_of=3", "macro-f1", "validation_recall_of=3", "validation_macro-f1"]
    last = result.evaluations[-1].metrics
    assert list(last) == names
    for split, prefix in ((dataset.test, ""), (aside, "validation_")):
        with torch.no_grad():
            answers = result.model()(split.inputs / dataset.scale).argmax(1)
        found = float((answers[split.labels == 3] == 3).float().mean())
        assert last[prefix + "recall_of=3"] == pytest.approx(found)
        assert last[prefix + "macro-f1"] == pytest.approx(sklearn.f1_score(split.labels, answers, average="macro"))
    assert result.folder is not None
    header, *rows = csv.reader((result.folder / "evaluations.csv").read_text().splitlines())
    assert header == ["step", "accuracy", "loss", *names[:2], "validation_accuracy", "validation_loss", *names[2:]]
    assert len(rows) == 3
    assert vg.read(result.folder).evaluations[-1].metrics == pytest.approx(last)
    assert json.loads((result.folder / "result.json").read_text())["final_metrics"] == last
    assert vg.read(result.folder).experiment == result.experiment
    assert outcomes.gather(mine / "runs")[0].chosen_accuracy is not None


def test_a_run_with_metrics_is_gone_on_with(mine: Path) -> None:
    e = replace(E, metrics="mine.py:recall,worst-class")
    whole = vg.run(e, mine / "whole")

    def stop(done: int, newest: Any) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(e, mine / "parts", progress=stop)
    (folder,) = (mine / "parts").iterdir()
    assert vg.resume(folder).began == 4
    assert whole.folder is not None
    assert (folder / "evaluations.csv").read_bytes() == (whole.folder / "evaluations.csv").read_bytes()


def test_their_code_is_part_of_the_run(mine: Path) -> None:
    one = vg.run(replace(E, metrics="mine.py:recall"))
    assert one.experiment.code_hash is not None
    assert vg.run(replace(E, metrics="macro-f1")).experiment.code_hash is None
    assert len({E.digest, replace(E, metrics="macro-f1").digest, replace(E, metrics="top").digest}) == 3


def test_functions_are_taken_too() -> None:
    e = replace(E, metrics=(vg.METRICS["macro-f1"], accuracy_by_hand))  # type: ignore[arg-type]
    assert e.metrics[0] == "macro-f1"
    assert e.metrics[1].endswith(":accuracy_by_hand")
    for x in vg.run(e).evaluations:
        assert x.metrics["accuracy_by_hand"] == pytest.approx(x.accuracy)


def accuracy_by_hand(outputs: torch.Tensor, labels: torch.Tensor) -> Any:
    return np.mean(outputs.numpy().argmax(1) == labels.numpy())


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("makro-f1", "unknown metric 'makro-f1'. Did you mean 'macro-f1'?"),
        ("top(q=2)", "top: unknown option 'q'"),
        ("top(k='two')", "top: k must be a valid integer"),
        ("top,top", "'top' would be the column 'top' of evaluations.csv, which there is"),
        ("mine.py:nothing", "mine.py has no nothing"),
        ("mine.py:MINE", "mine.py has no MINE. Did you mean 'Mine'?"),
        (3, "metrics: must be a valid tuple"),
    ],
)
def test_what_is_no_metric(metrics: Any, message: str, mine: Path) -> None:
    with pytest.raises(vg.ConfigurationError) as error:
        vg.Experiment(metrics=metrics)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_answer_that_is_no_number(mine: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics: mine\.py:two must answer one number, got float32 \[500, 10\]"):
        vg.run(replace(E, metrics="mine.py:two"), mine / "runs")
    with pytest.raises(ValueError, match="top needs k from 1 to the 10 classes, got 11"):
        vg.run(replace(E, metrics="top(k=11)"), mine / "runs")
    with pytest.raises(ValueError, match=r"metrics: r2 is of numbers, and these are outputs float32 \[500, 10\]"):
        vg.run(replace(E, metrics="r2"), mine / "runs")


def test_names_of_columns() -> None:
    assert column_of("a/b.py:Outer.f(k=2, name='x, y')") == "Outer.f_k=2_name=_x_y"


def test_on_the_command_line(mine: Path) -> None:
    command = ["-m", "varangian", "run", "--model", "linear", "--steps", "3", "--quiet"]
    done = programs.run(*command, "--metrics", "mine.py:recall(of=2),worst-class")
    assert done.returncode == 0, done.stderr
    assert "recall" in done.stdout
    assert "worst-class" in done.stdout
    failed = programs.run(*command, "--metrics", "f1")
    assert failed.returncode == 2
    assert "unknown metric 'f1'" in failed.stderr
