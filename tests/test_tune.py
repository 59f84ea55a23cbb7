"""Tuning: what is tried, which is chosen, and that the test set has no part in it."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import varangian as vg
from varangian import ConfigurationError, Experiment, Search, Tuning
from varangian.study import tune as module
from varangian.study.outcomes import Outcome, gather
from varangian.study.sweep import Sweep

pytestmark = pytest.mark.usefixtures("forked")
QUESTION = {"rule": "median", "attack": ["little", "empire"], "workers": 11, "byzantine": 2, "batch_size": 2,
            "steps": 8, "evaluate_every": 4}  # fmt: skip
CHOICE: dict[str, Any] = {"learning_rate": [0.001, 0.2], "momentum": [0.0, 0.9]}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuning]:
    out = tmp_path_factory.mktemp("tuned")
    return out, vg.tune(Search(QUESTION, CHOICE, seeds="1-2"), out, jobs=1)


def test_the_best_in_the_worst_case(tuned: tuple[Path, Tuning]) -> None:
    """The plain definition, from the runs as they are kept."""
    out, tuning = tuned
    runs = gather(out)
    assert len(runs) == 2 * 2 * 2 * 2
    assert {o.experiment.validation for o in runs} == {0.1}

    def accuracies(rate: float, momentum: float, attack: str, column: str) -> list[float]:
        cell = rate, momentum, attack
        found = [(o, o.experiment) for o in runs]
        return [getattr(o, column) for o, e in found if (e.learning_rate, e.momentum, e.attack) == cell]

    def worst_of(rate: float, momentum: float) -> float:
        each = [accuracies(rate, momentum, attack, "max_validation") for attack in ("little", "empire")]
        return min(map(statistics.fmean, each))

    worst = {choice: worst_of(*choice) for choice in ((r, m) for r in (0.001, 0.2) for m in (0.0, 0.9))}
    assert tuning.chosen is not None
    assert tuning.experiment is not None
    chosen = tuning.chosen.settings["learning_rate"], tuning.chosen.settings["momentum"]
    assert worst[chosen] == max(worst.values()) == tuning.chosen.objective
    assert [t.objective for t in tuning.trials] == sorted(worst.values(), reverse=True)
    assert tuning.incomplete == ()
    assert {attack: list(values) for attack, values in tuning.test.items()} == {
        attack: accuracies(*chosen, attack, "chosen_accuracy") for attack in ("little", "empire")
    }
    assert (tuning.experiment.attack, tuning.experiment.seed) == (tuning.chosen.worst, 1)
    said = "\n".join(tuning.summary())
    words = ("tried: 4 settings, each under 2 conditions with 2 seeds", "10% of the training data", "the best of 4, ",
             "an optimistic estimate", "a standard deviation", "looked at once, for the chosen one alone")  # fmt: skip
    assert all(word in said for word in words), said


def test_what_it_leaves(tuned: tuple[Path, Tuning]) -> None:
    out, tuning = tuned
    with open(out / "tuning.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["worst_validation"]) for row in rows] == [t.objective for t in tuning.trials]
    assert not [name for name in rows[0] if "test" in name or "accuracy" in name]
    e = Experiment.from_toml((out / "chosen.toml").read_text())
    assert e == tuning.experiment
    assert vg.run(e, out / "runs").from_disk  # it is one of the runs
    before = {path: path.read_bytes() for path in (out / "tuning.csv", out / "chosen.toml", out / "runs.csv")}
    again = vg.tune(Search(QUESTION, CHOICE, seeds="1-2"), out, jobs=1)
    assert (again.sweep.done, again.sweep.skipped) == (0, 16)
    assert {path: path.read_bytes() for path in before} == before


def swept(monkeypatch: pytest.MonkeyPatch, accuracy: Callable[[Experiment], float | None]) -> None:
    """Instead of training: accuracies on the data set aside by a function, None for a run that failed."""

    def instead(grid: vg.Grid, *_: object, **__: object) -> Sweep:
        found, failed = [], []
        for e in grid.experiments():
            value = accuracy(e)
            if value is None:
                failed.append((e, "it failed"))
            else:
                found.append(Outcome(e, 0.5, 0.5, max_validation=value, chosen_accuracy=1 - value))
        return Sweep(tuple(found), len(found), 0, tuple(failed), len(failed), 1.0)

    monkeypatch.setattr(module, "sweep", instead)


def test_the_test_set_has_no_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    swept(monkeypatch, lambda e: float(e.momentum))
    tuning = vg.tune(Search(QUESTION, {"momentum": [0.1, 0.7, 0.3]}), tmp_path)
    assert tuning.chosen is not None
    assert tuning.chosen.settings == {"momentum": 0.7}
    assert tuning.test == {"little": (pytest.approx(0.3),), "empire": (pytest.approx(0.3),)}  # the worst of all there
    assert "near: with one seed nobody knows how far chance decided" in tuning.summary()


def test_ties_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    swept(monkeypatch, lambda e: 0.5 if e.attack == "little" else 0.6 + 0.1 * (e.momentum == 0.3))
    tuning = vg.tune(Search(QUESTION, {"momentum": [0.1, 0.7, 0.3]}, seeds="1-3"), tmp_path)
    assert tuning.chosen is not None
    assert (tuning.chosen.settings, tuning.chosen.worst) == ({"momentum": 0.3}, "little")
    assert "ties: 2 other settings as good; the mean over conditions decided" in tuning.summary()


def test_runs_that_failed_or_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    swept(monkeypatch, lambda e: None if e.momentum == 0.7 and e.seed == 2 else float(e.momentum))
    search = Search(QUESTION, {"momentum": [0.1, 0.7, 0.3]}, seeds="1-2")
    tuning = vg.tune(search, tmp_path)
    assert tuning.chosen is not None
    assert tuning.chosen.settings == {"momentum": 0.3}
    assert [(t.settings, t.missing) for t in tuning.incomplete] == [({"momentum": 0.7}, 2)]
    assert tuning.summary()[1].endswith("; 1 setting more has runs that failed, and was not judged")
    assert (tmp_path / "chosen.toml").exists()
    monkeypatch.setattr(module, "sweep", lambda *_, **__: Sweep((), 0, 0, (), 12, 1.0))  # in another shard, say
    tuning = vg.tune(search, tmp_path)
    assert (tuning.chosen, tuning.experiment, tuning.test, tuning.trials) == (None, None, {}, ())
    assert tuning.summary() == ["nothing is chosen yet: 12 runs are not complete."]
    assert not (tmp_path / "chosen.toml").exists()


def test_choices_that_are_the_same_run_have_all_its_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    swept(monkeypatch, lambda e: 0.5)
    tuning = vg.tune(Search(QUESTION, {"momentum": [0.0], "momentum_at": ["server", "worker"]}), tmp_path)
    assert (len(tuning.trials), tuning.incomplete, tuning.sweep.done) == (2, (), 2)


def test_draws() -> None:
    choice = {"learning_rate": {"log": [0.01, 1.0]}, "momentum": {"uniform": [0.5, 0.99]}, "clip": ["none", 2.0],
              "batch_size": {"log": [1, 64]}, "steps": {"uniform": [3, 5]}}  # fmt: skip
    question = {name: value for name, value in QUESTION.items() if name not in choice}
    search = Search(question, choice, trials=200, draw_seed=3)
    assert search.tried == Search(question, choice, trials=200, draw_seed=3).tried
    assert search.tried != Search(question, choice, trials=200, draw_seed=4).tried
    assert search.tried[:10] == Search(question, choice, trials=10, draw_seed=3).tried  # more trials keep the runs
    rates = sorted(t["learning_rate"] for t in search.tried)
    assert rates[0] >= 0.01
    assert rates[-1] <= 1
    assert 0.05 < rates[100] < 0.2  # the middle of a logarithmic scale
    assert {t["steps"] for t in search.tried} == {3, 4, 5}
    assert {t["clip"] for t in search.tried} == {"none", 2.0}
    assert all(isinstance(t["batch_size"], int) and 1 <= t["batch_size"] <= 64 for t in search.tried)
    assert len(Search(question, {"momentum": [0.0, 0.9]}, trials=100).tried) == 2  # there are no more


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "search: it names no setting, so there is nothing to choose."),
        ({"search": {"lr": [1]}}, "search: unknown setting 'lr'."),
        ({"search": {"learning_rat": [1]}}, "Did you mean 'learning_rate'?"),
        ({"search": {"attack": ["little"]}}, "search: attack is part of what is asked, and is not chosen"),
        ({"search": {"steps": [1, 2]}}, "search: steps is to be chosen, and is set as well."),
        ({"search": {"momentum": 0.9}}, "search: momentum needs a list of values, or a range such as"),
        ({"search": {"momentum": []}}, "search: momentum has a list without values."),
        ({"search": {"momentum": {"lg": [0, 1]}}}, "search: momentum needs a list of values, or a range such as"),
        ({"search": {"momentum": {"log": [0, 1]}}, "trials": 3}, "needs a range above 0 on a logarithmic scale"),
        ({"search": {"momentum": {"uniform": [1, 0]}}, "trials": 3}, "needs two numbers that go up"),
        ({"search": {"momentum": {"uniform": [0, 0.9]}}}, "trials: how many are drawn from the range of momentum"),
        ({"search": {"momentum": [0.1]}, "trials": 0}, "trials: must be a whole number from 1 to 10,000, got 0."),
        ({"search": {"momentum": [0.1]}, "draw_seed": "x"}, "draw_seed: must be a whole number"),
        ({"search": {"momentum": [0.1]}, "rule": ["median", "krum"]}, "rule: a tuning is of one of them"),
        ({"search": {"momentum": [0.1]}, "validation": 0}, "validation: a choice needs training data set aside, got 0"),
        ({"search": {"momentum": [0.1]}, "validation": "0"}, "validation: a choice needs training data set aside"),
        ({"search": {"momentum": [0.1]}, "validation": [0.0, 0.1]}, "validation: a choice needs training data set"),
        ({"search": {"momentum": [0.1]}, "exclude": [{"steps": 1}]}, "exclude is no setting"),
        ({"search": {"l2": {"uniform": [1, 2**70]}}, "trials": 3}, "search: l2 needs two numbers that go up"),
        ({"search": {"l2": {"log": [1, 10**400]}}, "trials": 3}, "search: l2 needs two numbers that go up"),
        ({"search": {"momentum": [0.1]}, "ruls": "krum"}, "unknown setting 'ruls'. Did you mean 'rule'?"),
        (
            {"search": {"momentum": [0.1, 1.5]}},
            "case = 2, momentum = 1.5 (2 of 4 runs): momentum: must be less than 1, got 1.5.",
        ),
        ({"search": [0.1]}, "search: must be a table of settings by name, got [0.1]."),
    ],
)
def test_mistakes(content: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Search.from_dict(QUESTION | content)
    assert any(said in fault for fault in caught.value.faults), caught.value.faults


def test_numbers_of_numpy_search_as_those_of_python() -> None:
    arrays = {"learning_rate": {"log": np.array([0.01, 1.0])}, "l2": np.array([0.0, 0.1]), "clip": range(1, 3)}
    lists = {"learning_rate": {"log": [0.01, 1.0]}, "l2": [0.0, 0.1], "clip": [1, 2]}
    assert Search(QUESTION, arrays, trials=np.int64(3)) == Search(QUESTION, lists, trials=3)  # type: ignore[arg-type]


def test_attacks_are_named() -> None:
    question = {name: value for name, value in QUESTION.items() if name != "attack"}
    with pytest.raises(ConfigurationError, match="attack: name those whose worst case counts"):
        Search(question, CHOICE)
    assert len(Search(question | {"attack": "none"}, CHOICE).tried) == 4


def test_numbers_to_predict_have_no_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom varangian import Dataset, Split\n\n\ndef numbers():\n"
        "    split = Split(torch.ones(20, 3), torch.ones(20, 1))\n"
        '    return Dataset("numbers", split, split, 1)\n'
    )
    monkeypatch.chdir(tmp_path)
    search = Search(QUESTION | {"dataset": "mine.py:numbers", "model": "linear"}, CHOICE)
    with pytest.raises(ValueError, match=r"a tuning chooses by accuracy, and mine\.py:numbers has numbers to predict"):
        vg.tune(search, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(varangian: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "tune.toml").write_text(
        'rule = "median"\nattack = ["little", "empire"]\nworkers = 11\nbyzantine = 2\nbatch_size = 2\nsteps = 40\n'
        "[search]\nlearning_rate = { log = [0.001, 0.5] }\n"
    )
    end = varangian("tune", "tune.toml")
    assert (end.status, end.err) == (
        2, "varangian: tune.toml: trials: how many are drawn from the range of learning_rate has to be said.\n"
    )  # fmt: skip
    end = varangian("tune", "tune.toml", "--trials", "2", "--set", "steps=2", "--jobs", "1")
    assert end.status == 0, end.err
    for words in ("chosen: learning_rate = ", "tried: 2 settings", "looked at once", "Table: tune/tuning.csv",
                  "varangian run --config tune/chosen.toml"):  # fmt: skip
        assert words in end.out
    end = varangian("run", "--config", "tune/chosen.toml", "--quiet", "--out", "tune/runs")
    assert (end.status, "complete before: nothing was trained" in end.out) == (0, True)
    assert varangian("tune", "tune.toml", "--trials", "2", "--set", "stepps=2").status == 2
