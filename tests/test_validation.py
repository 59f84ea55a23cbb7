"""Training data set aside: who gets it, what is found on it, and what is chosen by it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import programs
import varangian as vg
from varangian.runs.building import build
from varangian.simulation import data
from varangian.simulation.data import Dataset, Split, prepare, set_aside
from varangian.study import outcomes

E = vg.Experiment(model="linear", workers=5, byzantine=1, rule="median", steps=12, evaluate_every=3, validation=0.2)


def numbered(count: int = 200, classes: int = 4) -> Split:
    """Examples that say which they are."""
    return Split(torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1), torch.arange(count) ** 2 % classes)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.33, 0.5, 0.99])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_set_aside_is_a_stratified_part(share: float, seed: int) -> None:
    split = numbered()
    kept, aside = set_aside(split, share, seed)
    members = [part.inputs.flatten().long() for part in (kept, aside)]
    assert torch.cat(members).sort().values.tolist() == list(range(len(split)))
    assert len(aside) == max(1, round(share * len(split)))
    for part, which in zip((kept, aside), members, strict=True):
        assert torch.equal(part.labels, split.labels[which])
        assert which.tolist() == sorted(which.tolist())
    there = np.bincount(split.labels, minlength=4)
    assert np.abs(np.bincount(aside.labels, minlength=4) - len(aside) / len(split) * there).max() <= 1
    again = set_aside(split, share, seed)[1]
    assert torch.equal(again.inputs, aside.inputs)
    if 0.01 < share < 0.9:
        assert not torch.equal(set_aside(split, share, seed + 10)[1].inputs, aside.inputs)


def test_every_example_is_as_likely_as_another() -> None:
    split = numbered(40, classes=3)
    counts = torch.zeros(40)
    for seed in range(2000):
        counts[set_aside(split, 0.25, seed)[1].inputs.flatten().long()] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05  # five standard deviations


def test_nothing_would_be_left() -> None:
    with pytest.raises(ValueError, match=r"^validation: of 2 training examples 0\.9 would be set aside, none left"):
        set_aside(Split(torch.zeros(2, 1, 1, 1), torch.arange(2)), 0.9, seed=1)


@pytest.mark.parametrize("partition", ["iid", "extreme", "dirichlet(alpha=0.5)"])
@pytest.mark.parametrize("profile", ["described", "published"])
def test_no_worker_gets_what_is_set_aside_and_all_of_the_rest_is_dealt(partition: str, profile: Any) -> None:
    if profile == "published" and partition != "iid":
        return
    split = numbered(100)
    dataset = Dataset("numbered", split, numbered(20), 4, scale=1)
    e = replace(E, partition=partition, profile=profile, batch_size=20)
    simulation, evaluators = build(e, dataset)
    _, aside = set_aside(split, e.validation, e.seed)
    drawn = torch.cat([simulation.batches(step).inputs.flatten() for step in range(40)]).unique()
    assert set(drawn.tolist()) == set(range(100)) - set(aside.inputs.flatten().tolist())
    assert evaluators.validation is not None
    assert evaluators.validation.examples.split.inputs.flatten().tolist() == aside.inputs.flatten().tolist()


def test_what_is_found_is_what_the_model_does_there(tmp_path: Path) -> None:
    result = vg.run(E, tmp_path)
    dataset = data.digits()
    for split, accuracy, loss in (
        (dataset.test, result.evaluations[-1].accuracy, result.evaluations[-1].loss),
        (
            set_aside(dataset.train, 0.2, E.seed)[1],
            result.evaluations[-1].validation_accuracy,
            result.evaluations[-1].validation_loss,
        ),
    ):
        with torch.no_grad():
            logits = result.model()(prepare(dataset, split.inputs))
        assert accuracy == pytest.approx(float((logits.argmax(1) == split.labels).float().mean()))
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, split.labels)), rel=1e-5)


def test_what_is_chosen(tmp_path: Path) -> None:
    """The first of the best on what was set aside; never by the test set."""
    result = vg.run(E, tmp_path)
    assert result.chosen is not None
    best = max(e.validation_accuracy or 0 for e in result.evaluations)
    first = next(e for e in result.evaluations if e.validation_accuracy == best)
    assert result.chosen is first
    assert result.max_validation == best
    assert vg.run(replace(E, validation=0)).chosen is None
    assert vg.run(replace(E, validation=0)).max_validation is None


def test_it_is_kept_read_tabled_and_gone_on_with(tmp_path: Path) -> None:
    whole = vg.run(E, tmp_path / "whole")

    def stop(done: int, newest: Any) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path / "parts", progress=stop)
    (folder,) = (tmp_path / "parts").iterdir()
    again = vg.resume(folder)
    assert again.began == 7
    assert vg.replay(folder, 9).agrees
    assert whole.folder is not None
    for name in ("metrics.csv", "evaluations.csv"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()
    header, *rows = csv.reader((folder / "evaluations.csv").read_text().splitlines())
    assert header == ["step", "accuracy", "loss", "validation_accuracy", "validation_loss"]
    assert len(rows) == 5
    read = vg.read(folder)
    assert read.max_validation == pytest.approx(whole.max_validation)
    summary = json.loads((folder / "result.json").read_text())
    assert summary["max_validation"] == whole.max_validation
    assert whole.chosen is not None
    assert summary["chosen_accuracy"] == whole.chosen.accuracy
    (row,) = outcomes.gather(tmp_path / "parts")
    assert (row.max_validation, row.chosen_accuracy) == (whole.max_validation, whole.chosen.accuracy)
    outcomes.write_runs(tmp_path, [row])
    assert outcomes.read_runs(tmp_path / "runs.csv")[0].chosen_accuracy == row.chosen_accuracy
    summary["chosen_accuracy"] = 1.0
    (folder / "result.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="its validation accuracy"):
        outcomes.read_outcome(folder)


def test_without_it_nothing_is_written_of_it(tmp_path: Path) -> None:
    plain = vg.run(replace(E, validation=0), tmp_path)
    assert plain.folder is not None
    for path in plain.folder.iterdir():
        assert b"validation" not in path.read_bytes()
    outcomes.write_runs(tmp_path, outcomes.gather(tmp_path))
    assert "validation" not in (tmp_path / "runs.csv").read_text()


def test_two_shares_are_two_runs() -> None:
    found = {replace(E, validation=share).digest for share in (0, 0.1, 0.2)}
    assert len(found) == 3


@pytest.mark.parametrize("share", [-0.1, 1, float("nan"), "much"])
def test_shares_that_are_none(share: Any) -> None:
    with pytest.raises(vg.ConfigurationError, match=r"^validation: must be"):
        vg.Experiment(validation=share)


def test_a_share_of_next_to_nothing_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"^validation: 0.001 of 1,297 examples is 1, fewer than there are classes"):
        vg.run(replace(E, validation=0.001, dataset="digits", steps=1))


def test_on_the_command_line(tmp_path: Path) -> None:
    options = ["-m", "varangian", "run", "--quiet", "--model", "linear", "--steps", "4"]
    options += ["--validation", "0.25", "--out", str(tmp_path)]
    found = json.loads(programs.run(*options, "--json").stdout)
    assert found["experiment"]["validation"] == 0.25
    assert 0 <= found["max_validation"] <= 1
    assert "max validation" in programs.run(*options).stdout
