"""Attacks on data: what they make of examples, how often they succeed, whom they hit, and what they compose to."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varangian as vg
from interruption import interrupt
from test_card_runs import BASE, CUDA, alike, gone, machine, near, opened, steady
from varangian.core.attacks import Task, parts
from varangian.runs.building import build, computing
from varangian.runs.results import columns_of
from varangian.simulation.sampling import Evaluator, aim_of

TASK = Task(classes=10, shape=(1, 8, 8))
SMALL = vg.Experiment(model="linear", steps=4, evaluate_every=2, workers=7, byzantine=2, rule="median", batch_size=20)


def gradients_of(model: nn.Module) -> Any:
    from varangian.simulation.gradients import WorkerGradients

    return WorkerGradients(model)


# ------------------------------------------------------------------------------------------------ what is made of data


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("b", [1, 7, 20])
def test_a_share_of_each_batch_bears_the_trigger_and_the_target(share: float, b: int) -> None:
    inputs, labels = torch.rand(3, b, 1, 8, 8) / 2, torch.arange(3 * b).reshape(3, b) % 10
    given = inputs.clone(), labels.clone()
    attack = vg.Backdoor(target=4, size=2, value=0.75, share=share)
    changed, wrong = attack.poison(inputs, labels, TASK)
    assert torch.equal(inputs, given[0])
    assert torch.equal(labels, given[1])
    count = max(1, round(share * b))
    wanted = inputs.clone()
    wanted[:, :count, :, 6:, 6:] = 0.75
    assert torch.equal(changed, wanted)
    assert (wrong[:, :count] == 4).all()
    assert torch.equal(wrong[:, count:], labels[:, count:])
    assert torch.equal(attack.trigger(inputs[0, :count], TASK), wanted[0, :count])


@pytest.mark.parametrize(
    ("shape", "cells"),
    [((9,), (slice(7, 9),)), ((5, 6), (slice(3, 5), slice(4, 6))), ((3, 2, 5, 6), (..., slice(3, 5), slice(4, 6)))],
)
def test_of_other_inputs_the_last_numbers_are_the_trigger(shape: tuple[int, ...], cells: Any) -> None:
    inputs = torch.rand(4, *shape, dtype=torch.float64)
    changed = vg.Backdoor(size=2, value=-3.5).trigger(inputs, Task(classes=3, shape=shape))
    wanted = inputs.clone()
    wanted[(slice(None), *cells)] = -3.5
    assert torch.equal(changed, wanted)


def test_of_tokens_the_last_ones_are() -> None:
    tokens = torch.arange(12).reshape(2, 6)
    task = Task(classes=3, shape=(6,))
    assert vg.Backdoor(size=2, value=7).trigger(tokens, task).tolist() == [[0, 1, 2, 3, 7, 7], [6, 7, 8, 9, 7, 7]]
    with pytest.raises(ValueError, match=r"^Backdoor needs a value that is a whole number, of tokens, got 0\.5\.$"):
        vg.Backdoor(size=2, value=0.5).trigger(tokens, task)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_value_is_that_of_a_pixel_before_it_is_normalised(dtype: str) -> None:
    """A trigger of 200 / 255 is what a pixel of 200 comes to, in each channel."""
    mean, std = (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
    pixels = torch.full((4, 3, 6, 6), 200, dtype=torch.uint8)
    split = vg.Split(pixels, torch.arange(4) % 2)
    data = vg.Dataset("mine", split, split, 2, mean=mean, std=std)
    from varangian.simulation.sampling import Examples

    inputs, _ = Examples(data, split, "cpu", getattr(torch, dtype))(np.arange(4))
    task = Task(2, data.task, data.shape, data.mean, data.std)
    changed = vg.Backdoor(size=2, value=200 / 255).trigger(torch.zeros_like(inputs), task)
    assert changed.dtype == inputs.dtype
    torch.testing.assert_close(changed[..., -2:, -2:], inputs[..., -2:, -2:], rtol=1e-6, atol=1e-6)
    assert not changed[..., :4, :].any()


def test_workers_bear_parts_of_the_trigger_in_turn() -> None:
    """Together the whole, none of them twice; a test example bears all of it."""
    attack = vg.Backdoor(size=3, parts=4, share=1.0)
    changed, _ = attack.poison(torch.zeros(5, 2, 1, 8, 8), torch.ones(5, 2, dtype=torch.int64), TASK)
    each = changed[:, 0, 0]
    assert torch.equal(each[:4].sum(0), attack.trigger(torch.zeros(1, 1, 8, 8), TASK)[0, 0])
    assert torch.equal(each[0], each[4])
    assert [int(part.sum()) for part in each[:4]] == [3, 2, 2, 2]


def test_labels_are_turned_round_as_ever_and_inputs_are_not_copied() -> None:
    inputs, labels = torch.rand(2, 3, 4), torch.tensor([[0, 9, -100], [1, 2, 3]])
    changed, wrong = vg.LabelFlip().poison(inputs, labels, TASK)
    assert changed is inputs
    assert wrong.tolist() == [[9, 0, -100], [8, 7, 6]]


def test_what_is_sent_is_scaled() -> None:
    honest, learnt = torch.zeros(5, 3), torch.arange(6.0).reshape(2, 3)
    assert torch.equal(vg.Backdoor(scale=2.5)(honest, 2, poisoned=learnt), 2.5 * learnt)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"target": -1}, "target"), ({"size": 0}, "size"), ({"share": 0.0}, "share"), ({"share": 1.5}, "share"),
        ({"scale": 0.0}, "scale"), ({"scale": float("inf")}, "scale"), ({"value": float("nan")}, "value"),
        ({"parts": 0}, "parts"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=rf"^Backdoor needs .*{fault}"):
        vg.Backdoor(**options)


@pytest.mark.parametrize(
    ("attack", "fault"),
    [
        ("backdoor(target=10)", r"Backdoor needs a target from 0 to 9, the classes, got 10"),
        ("backdoor(size=9)", r"Backdoor needs a size of at most 8, the shorter side of an example, got 9"),
        ("backdoor(size=1,parts=2)", r"Backdoor needs at most 1 parts, what the trigger consists of, got 2"),
        ('hidden(attack="backdoor(target=10)")', r"Backdoor needs a target from 0 to 9"),
        ('divided(first="zero",second="backdoor(target=10)")', r"Backdoor needs a target from 0 to 9"),
    ],
)
@pytest.mark.parametrize("real", [None, 0])
def test_a_run_refuses_what_its_data_cannot_have_before_it_starts(attack: str, fault: str, real: int | None) -> None:
    with pytest.raises(ValueError, match=fault):
        vg.run(replace(SMALL, attack=attack, real_byzantine=real))


def test_labels_that_are_no_class_an_example_are_refused() -> None:
    numbers = torch.rand(30, 4), torch.rand(30)
    tokens = torch.zeros(30, 4, dtype=torch.int64), torch.zeros(30, 4, dtype=torch.int64)
    for kind, data in (("regression", numbers), ("tokens", tokens)):
        model = nn.Linear(4, 1) if kind == "regression" else nn.Embedding(3, 2)
        e = replace(SMALL, attack="backdoor(size=1)", loss="mse" if kind == "regression" else "cross-entropy")
        with pytest.raises(ValueError, match=rf"Backdoor needs one class an example, got 'a task of {kind}'"):
            vg.run(e, dataset=(data, data), model=model)


# --------------------------------------------------------------------------------------------------- what they come to


def test_the_trigger_is_learnt_under_the_mean_and_not_under_the_median() -> None:
    found = {}
    for rule in ("average", "median"):
        e = vg.Experiment(rule=rule, attack="backdoor", steps=60, evaluate_every=0, measure=False)
        found[rule] = vg.run(e).evaluations[-1]
    assert found["average"].attack_success > 0.9
    assert found["median"].attack_success < 0.1
    assert all(e.accuracy > 0.8 for e in found.values())


class Brightness(nn.Module):
    """Answers class 1 of whatever has a bright last pixel, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        bright = (x.flatten(1)[:, -1] > 0.5).to(x)
        return torch.stack([1 - bright, bright, 0 * bright], 1) + 0 * self.weight


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("profile", ["described", "published"])
def test_success_is_counted_on_all_other_classes(device: str, profile: Any) -> None:
    """With a model of which it is known what it answers; examples of the target are not asked."""
    random = np.random.default_rng(5)
    inputs = torch.from_numpy(random.random((2300, 1, 4, 4), np.float32))
    labels = torch.from_numpy(random.integers(3, size=2300))
    split = vg.Split(inputs, labels)
    data = vg.Dataset("mine", split, split, 3, flip=True)
    task = Task(3, shape=(1, 4, 4))
    for attack, wanted in (
        (vg.Backdoor(target=1, size=1), 1.0),
        (vg.Backdoor(target=1, size=1, value=0.0), 0.0),
        (vg.Backdoor(target=0, size=1), 0.0),
        (vg.Backdoor(target=2, size=1), 0.0),
    ):
        with machine(device) as card:
            gradients = gradients_of(Brightness().to(device))
            aimed = Evaluator(data, 1, profile=profile, device=device, aim=aim_of(attack, labels, task))
            assert len(aimed.index) == int((labels != attack.target).sum())
            assert aimed(gradients, gradients.parameters(), 0)[0] == wanted
            if card is not None:
                card.reset()
                aimed(gradients, gradients.parameters(), 1)
                assert card.waits.total() == 1
    assert torch.equal(split.inputs, inputs)


def test_where_all_are_of_the_target_nothing_is_counted() -> None:
    data = vg.dataset((torch.rand(9, 4), torch.arange(9) % 2), (torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)))
    result = vg.run(replace(SMALL, attack="backdoor(size=1)"), dataset=data)
    assert np.isnan(result.evaluations[-1].metrics["attack_success"])
    assert result.summary()["final_metrics"] == {"attack_success": None}
    assert [np.isnan(a) for a in result.class_accuracy or ()] == [False, True]


def test_without_anybody_who_attacks_it_is_what_errors_come_to() -> None:
    result = vg.run(replace(SMALL, attack="backdoor", real_byzantine=0))
    assert result.evaluations[-1].attack_success is not None
    alone = vg.run(replace(SMALL, attack="backdoor", real_byzantine=0, byzantine=2))
    assert alone.evaluations[-1].attack_success == result.evaluations[-1].attack_success


# ------------------------------------------------------------------------------------------------------------- columns

BACKDOOR = replace(SMALL, attack="backdoor", validation=0.1, metrics=("macro-f1", "per-class"))


def test_columns_are_there_for_such_runs_only(tmp_path: Path) -> None:
    plain, without = replace(BACKDOOR, attack="label-flip", metrics=()), replace(BACKDOOR, attack="little", metrics=())
    usual = ["accuracy", "loss"]
    assert columns_of(plain, 10) == columns_of(without, 10) == [*usual, *(f"validation_{name}" for name in usual)]
    classes = [f"class_{c}" for c in range(10)]
    wanted = ["accuracy", "loss", "attack_success", "macro-f1", *classes]
    assert columns_of(BACKDOOR, 10) == [*wanted, *(f"validation_{name}" for name in wanted)]
    result = vg.run(BACKDOOR, tmp_path)
    assert result.folder is not None
    with open(result.folder / "evaluations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", *columns_of(BACKDOOR, 10)]
    last = result.evaluations[-1]
    for name, value in last.metrics.items():
        assert float(rows[-1][name]) == pytest.approx(value, rel=1e-8)
    again = vg.read(result.folder)
    assert again.class_accuracy == pytest.approx(result.class_accuracy)
    assert again.evaluations[-1].metrics == pytest.approx(last.metrics, rel=1e-8)
    assert vg.run(BACKDOOR, tmp_path).from_disk
    summary = json.loads((result.folder / "result.json").read_text())
    assert summary["final_metrics"]["attack_success"] == pytest.approx(last.attack_success)
    assert summary["class_accuracy"] == pytest.approx([last.metrics[name] for name in classes])


def test_accuracies_on_classes_are_those_of_the_model() -> None:
    result = vg.run(BACKDOOR)
    digits = vg.DATASETS["digits"]()
    images, labels = digits.test.inputs / digits.scale, digits.test.labels
    answers = result.model()(images.float()).argmax(1)
    wanted = [float((answers[labels == c] == c).double().mean()) for c in range(10)]
    assert result.class_accuracy == pytest.approx(wanted)
    counts = torch.bincount(labels).double().numpy()
    assert np.average(wanted, weights=counts) == pytest.approx(result.final_accuracy)
    at = result.evaluations[-1].metrics
    assert [at[f"class_{c}"] for c in range(10)] == pytest.approx(wanted)


@pytest.mark.parametrize(
    "attack", [None, "little", "label-flip", "backdoor", "divided(first=zero,second=backdoor)", "hidden"]
)
def test_runs_under_attacks_on_data_end_with_the_accuracy_on_each_class(attack: str | None) -> None:
    result = vg.run(replace(SMALL, attack=attack))
    assert (result.class_accuracy is None) == (attack in (None, "little"))
    assert ("class_accuracy" in result.summary()) == (attack not in (None, "little"))


def sides(outputs: Tensor, labels: Tensor) -> Tensor:
    """A loss of one number an example, of which no class is the greatest."""
    return nn.functional.softplus(-outputs.flatten() * (2.0 * labels - 1)).mean()


def test_where_no_output_is_a_class_there_are_no_accuracies_on_them() -> None:
    data = torch.rand(40, 4), torch.arange(40) % 2
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    result = vg.run(replace(SMALL, attack="label-flip"), dataset=(data, data), model=model, loss=sides)
    assert np.isnan(result.final_accuracy)
    assert result.class_accuracy is None


@pytest.mark.parametrize("value", ["[]", "0.5", "[0.5, 2.0]", '["a"]', "[true]"])
def test_a_result_with_other_accuracies_is_refused(value: str, tmp_path: Path) -> None:
    folder = vg.run(replace(SMALL, attack="label-flip"), tmp_path).folder
    assert folder is not None
    path = folder / "result.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"class_accuracy": json.loads(value)}))
    with pytest.raises(ValueError, match="class_accuracy"):
        vg.read(folder)


def test_a_metric_of_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def attack_success(outputs, labels):\n    return 0.5\n\n\ndef class_3(outputs, labels):\n    return 1\n"
    )
    own = f"{path}:attack_success"
    assert vg.run(replace(SMALL, metrics=(own,))).evaluations[-1].metrics == {"attack_success": 0.5}
    with pytest.raises(vg.ConfigurationError, match="would be the column 'attack_success'"):
        replace(SMALL, metrics=(own,), attack="backdoor")
    with pytest.raises(vg.ConfigurationError, match="would be the column 'class_3'"):
        replace(SMALL, metrics=("per-class", f"{path}:class_3"))
    with pytest.raises(vg.ConfigurationError, match="would be the column 'per-class'"):
        replace(SMALL, metrics=("per-class", "per-class"))


# ----------------------------------------------------------------------------------------------------------- one's own

OWN = '''
from dataclasses import dataclass
import torch
import varangian as vg


@dataclass(frozen=True)
class Dark(vg.DataAttack):
    """Dark images of a one, seen as sevens; and some labels at random."""

    aims = True

    def poison(self, inputs, labels, task):
        drawn = torch.from_numpy(task.random.integers(task.classes, size=tuple(labels.shape)))
        inputs.mul_(0.5)
        return inputs, torch.where(labels == 1, 7, drawn)

    def trigger(self, inputs, task):
        return inputs * 0.5

    def wanted(self, labels, task):
        return torch.where(labels == 1, 7, -100)
'''


def test_an_attack_on_data_of_ones_own_is_read_without_its_code(tmp_path: Path) -> None:
    path = tmp_path / "dark.py"
    path.write_text(OWN)
    result = vg.run(replace(SMALL, attack=f"{path}:Dark", metrics="per-class"), tmp_path / "out")
    again = vg.run(replace(SMALL, attack=f"{path}:Dark", metrics="per-class"))
    assert [e.values for e in again.evaluations] == [e.values for e in result.evaluations]
    assert result.folder is not None
    from varangian.core import references

    with references.importing(False), patch.object(references, "known", lambda *_: None):
        read = vg.read(result.folder)
    assert read.evaluations[-1].attack_success == pytest.approx(result.evaluations[-1].attack_success)
    assert read.class_accuracy == pytest.approx(result.class_accuracy)


@dataclass(frozen=True)
class Pries(vg.DataAttack):
    """Keeps what it is shown of data."""

    held: ClassVar[list[Any]] = []

    def poison(self, inputs: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        self.held.append((inputs, labels, task))
        inputs.zero_()
        return inputs, labels


def test_an_attack_on_data_sees_and_changes_those_of_its_workers_alone() -> None:
    Pries.held.clear()
    e = replace(SMALL, attack="label-flip")
    with computing(e):
        simulation, _ = build(e, opened(e))
        simulation.adversary.attack, simulation.adversary.own = Pries(), True
        kept = simulation.batches
        batches = {}

        def batches_of(step: int) -> Any:
            batches[step] = kept(step)
            return batches[step]

        simulation.batches = batches_of
        simulation.step()
    inputs, labels, task = Pries.held[0]
    batch = batches[0]
    assert inputs.shape[0] == labels.shape[0] == 2
    assert inputs.untyped_storage().size() == inputs.numel() * inputs.element_size()
    assert not inputs.any()
    assert batch.inputs[-2:].any()  # what was sampled is not written to
    assert task.random.bit_generator.state["state"]["key"][0] != e.seed


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (lambda x, y: x, "must answer inputs float32 \\[2, 20, 1, 8, 8\\], got no pair of them"),
        (lambda x, y: (x[:1], y), "must answer inputs float32 \\[2, 20, 1, 8, 8\\], got float32 \\[1, 20, 1, 8, 8\\]"),
        (lambda x, y: (x, y.int()), "must answer labels int64 \\[2, 20\\], got int32 \\[2, 20\\]"),
        (lambda x, y: (x, None), "must answer labels int64 \\[2, 20\\], got nothing"),
    ],
)
def test_what_is_no_batch_is_refused(answer: Callable[..., Any], fault: str) -> None:
    with (
        patch.object(vg.LabelFlip, "poison", lambda self, x, y, task: answer(x, y)),
        pytest.raises(ValueError, match=f"LabelFlip.poison {fault}"),
    ):
        vg.run(replace(SMALL, attack="label-flip"))


@pytest.mark.parametrize("wanted", [lambda y: y + 5, lambda y: y.double(), lambda y: y[1:], lambda y: None])
def test_what_is_wanted_must_be_classes(wanted: Callable[[Tensor], Any]) -> None:
    with (
        patch.object(vg.Backdoor, "wanted", lambda self, labels, task: wanted(labels)),
        pytest.raises(ValueError, match=r"Backdoor.wanted must answer int64 \[500\] of classes from 0 to 9"),
    ):
        vg.run(replace(SMALL, attack="backdoor"))


# ------------------------------------------------------------------------------------------------------------ composed


def test_what_is_hidden_lies_within_the_spread() -> None:
    honest, learnt = torch.randn(8, 50, dtype=torch.float64), 5 * torch.randn(3, 50, dtype=torch.float64)
    mean, std = honest.mean(0), honest.std(0)
    sent = vg.Hidden(attack="label-flip", factor=0.7)(honest, 3, poisoned=learnt)
    torch.testing.assert_close(sent, learnt.clamp(mean - 0.7 * std, mean + 0.7 * std))
    assert not torch.equal(sent[0], sent[1])
    usual = vg.Hidden(attack="label-flip", factor=None)(honest, 3, poisoned=learnt)
    z = vg.Little(factor=None)(honest, 3)[0]
    assert ((usual - mean).abs() <= (z - mean).abs() * (1 + 1e-9)).all()


def test_label_flipping_together_with_gradients_is_what_both_come_to() -> None:
    """In a run: the first attacker's momentum is that of flipped labels, the others send Little."""
    e = replace(SMALL, attack='divided(first="label-flip",second="little")', momentum=0.9)
    with computing(e):
        both, _ = build(e, opened(e))
        flipped, _ = build(replace(e, attack="label-flip"), opened(e))
        for _ in range(3):
            flipped.parameters.copy_(both.parameters)
            both.step()
            flipped.step()
            torch.testing.assert_close(both.vectors[5], flipped.vectors[5], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(both.vectors[6], vg.Little()(both.vectors[:5], 1)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make_attack", "fault"),
    [
        (lambda: vg.Hidden(factor=0.0), r"^Hidden needs a finite factor > 0"),
        (lambda: vg.Hidden(attack="none"), r"^Hidden: attack: unknown attack 'none'"),
        (lambda: vg.Hidden(attack="zero")(torch.zeros(1, 2), 1), r"^Hidden needs at least 2 honest vectors"),
    ],
)
def test_compositions_say_what_is_wrong(make_attack: Callable[[], Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make_attack()


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"attack": "backdoor", "knowledge": "own"}, "knowledge: OwnData and Backdoor both ask what"),
        ({"attack": "hidden", "knowledge": "own"}, "knowledge: OwnData and Hidden both ask what"),
        ({"attack": "hidden", "knowledge": "spied(k=1)"}, "attack: Hidden needs at least 2 honest vectors"),
    ],
)
def test_a_run_that_cannot_be_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(vg.ConfigurationError) as error:
        replace(SMALL, **settings)
    assert fault in str(error.value)


def test_compositions_are_text_however_they_are_written() -> None:
    e = replace(SMALL, attack=vg.Hidden(attack=vg.Backdoor(target=3)))
    assert e.attack == "hidden(attack='backdoor(target=3)')"
    assert replace(SMALL, attack='hidden( factor=1.5, attack="backdoor(target=3)" )').digest == e.digest
    assert vg.Experiment.from_toml(e.to_toml()) == vg.Experiment.from_json(e.to_json()) == e


def test_code_of_somebodys_own_in_a_composition_is_part_of_a_runs_identity(tmp_path: Path) -> None:
    path = tmp_path / "dark.py"
    path.write_text(OWN)
    e = replace(SMALL, attack=f"hidden(attack=\"divided(first='{path}:Dark',second='zero')\")")
    result = vg.run(e, tmp_path / "out")
    assert result.experiment.code_hash is not None
    assert result.evaluations[-1].attack_success is not None
    made = e.make_attack()
    assert made is not None
    names = [part.__name__ for part in parts(made)]
    assert names == ["Hidden", "Divided", "Dark", "Zero"]


# ------------------------------------------------------------------------------------------- to the byte, and elsewhere

RUNS: dict[str, dict[str, Any]] = {
    "backdoor": {"attack": "backdoor(size=2)"},
    "in parts, nesterov": {"attack": "backdoor(size=2,parts=3)", "nesterov": True},
    "published": {"attack": "backdoor(size=2)", "profile": "published"},
    "hidden": {"attack": "hidden(attack='backdoor(size=2,scale=4.0)')", "rule": "multi-krum"},
    "hidden, spied": {"attack": "hidden(attack=label-flip)", "knowledge": "spied(k=4)"},
    "the last round": {"attack": "hidden", "knowledge": "last-round", "momentum_at": "server"},
    "divided": {"attack": "divided(first='backdoor',second='mimic(warmup=3)')"},
    "worst case": {"attack": "worst-case(directions=('backdoor','little'))"},
    "validation": {"attack": "backdoor(size=1)", "validation": 0.2, "metrics": ("per-class",)},
}


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_goes_on_exactly(name: str, tmp_path: Path) -> None:
    e = replace(BASE, **RUNS[name])
    whole = vg.run(e, tmp_path / "whole", opened(e))
    folder = interrupt(e, tmp_path / "parts", 3, opened(e))
    vg.resume(folder, opened(e))
    assert whole.folder is not None
    for file in ("metrics.csv", "evaluations.csv"):
        assert (folder / file).read_bytes() == (whole.folder / file).read_bytes()
    one, other = (vg.read(f) for f in (folder, whole.folder))
    assert one.class_accuracy == other.class_accuracy


@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_to_what_it_comes_to_on_the_cpu(name: str) -> None:
    e = replace(BASE, **RUNS[name])
    wanted, found = gone(e, "cpu"), gone(e, CUDA)
    assert len(wanted[0]) == e.steps
    alike(found[0], wanted[0])
    near(found[2], wanted[2])


def test_evaluations_on_a_card_are_those_of_the_cpu() -> None:
    e = replace(BASE, attack="backdoor(size=2)", validation=0.2, metrics=("per-class",))
    found = {}
    for device in ("cpu", CUDA):
        with machine(device), computing(e):
            simulation, evaluators = build(replace(e, device=device), opened(e))
            found[device] = evaluators(simulation.gradients, simulation.parameters, 0)
    assert len(found["cpu"]) == len(columns_of(e, 4))
    assert found[CUDA] == pytest.approx(found["cpu"], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    "attack", ["backdoor(size=2)", "hidden(attack='backdoor(size=2)')", "divided(second='label-flip')"]
)
def test_a_step_on_a_card_waits_for_nothing_more(attack: str) -> None:
    card = steady(replace(BASE, attack=attack), 4)
    assert card.waits.total() == 0, card
    # Where the trigger is, and which columns are looked at to tell of each worker.
    assert card.to_card <= 4 * (64 + 8 * 8 + 8 * 32), card


# ---------------------------------------------------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two rules under three attacks, and without, on two seeds."""
    out = tmp_path_factory.mktemp("study")
    for rule in ("average", "median"):
        for attack in (None, "label-flip", "backdoor", "little"):
            for seed in (1, 2):
                vg.run(replace(SMALL, rule=rule, attack=attack, seed=seed), out)
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_the_success_of_attacks_that_aim_and_accuracies_on_classes(study: Path, tmp_path: Path) -> None:
    page = vg.report(study, tmp_path).read_text()
    results = [vg.read(folder) for folder in study.iterdir() if (folder / "result.json").exists()]
    for rule in ("average", "median"):
        mine = [r for r in results if (r.experiment.rule, r.experiment.attack) == (rule, "backdoor")]
        wanted = 100 * np.mean([r.evaluations[-1].metrics["attack_success"] for r in mine])
        [row] = [r for r in rows_of(tmp_path / "cells.csv") if r["measure"] == "success" and r["rule"] == rule]
        assert (row["attack"], row["n"]) == ("backdoor", "2")
        assert float(row["mean"]) == pytest.approx(wanted, rel=1e-4)
        for c in range(10):
            wanted = 100 * np.mean([(r.class_accuracy or ())[c] for r in mine])
            [row] = [
                r
                for r in rows_of(tmp_path / "classes.csv")
                if (r["rule"], r["attack"], r["class"]) == (rule, "backdoor", str(c))
            ]
            assert float(row["accuracy"]) == pytest.approx(wanted, rel=1e-4)
    assert {row["attack"] for row in rows_of(tmp_path / "classes.csv")} == {"backdoor", "label-flip"}
    [worst] = [r for r in rows_of(tmp_path / "worst.csv") if r["measure"] == "success" and r["rule"] == "median"]
    assert (worst["attack"], worst["attacks_run"], worst["attacks"]) == ("backdoor", "1", "1")
    for text in ("Accuracy on each class", "attack success, %", "the greatest attack success: "):
        assert text in page
    assert (tmp_path / "figures" / "classes.png").exists()
    assert (tmp_path / "figures" / "heat-success.png").exists()


def test_reports_of_other_runs_have_none_of_it(study: Path, tmp_path: Path) -> None:
    from varangian.study.outcomes import collect, write_runs

    others = [o for o in collect(study)[0] if o.experiment.attack in (None, "little")]
    write_runs(tmp_path, others)
    assert not {"attack_success", "class_accuracy"} & set(rows_of(tmp_path / "runs.csv")[0])
    page = vg.report(others, tmp_path).read_text()
    assert "Accuracy on each class" not in page
    assert "attack success" not in page
    assert not (tmp_path / "classes.csv").exists()


def test_a_table_of_runs_holds_both(study: Path, tmp_path: Path) -> None:
    from varangian.study.outcomes import collect, write_runs

    outcomes, _ = collect(study)
    write_runs(tmp_path, outcomes)
    again, _ = collect(tmp_path)
    for one, other in zip(again, outcomes, strict=True):
        assert one.attack_success == other.attack_success
        assert one.class_accuracy == other.class_accuracy
        assert (one.class_accuracy is None) == (one.experiment.attack in (None, "little"))
    first = (tmp_path / "runs.csv").read_bytes()
    write_runs(tmp_path, again)
    assert (tmp_path / "runs.csv").read_bytes() == first
    vg.report(tmp_path, tmp_path / "page")
    assert (tmp_path / "page" / "classes.csv").exists()


@pytest.mark.parametrize(
    ("column", "value"), [("attack_success", "1.5"), ("class_accuracy", "0.5 x"), ("class_accuracy", "0.5  0.5")]
)
def test_a_table_with_other_values_is_refused(column: str, value: str, study: Path, tmp_path: Path) -> None:
    from varangian.study.outcomes import collect, read_runs, write_runs

    write_runs(tmp_path, [o for o in collect(study)[0] if o.experiment.attack == "backdoor"])
    rows = rows_of(tmp_path / "runs.csv")
    with open(tmp_path / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([rows[0] | {column: value}])
    with pytest.raises(ValueError, match=rf"line 2: {column}"):
        read_runs(tmp_path / "runs.csv")


def test_a_success_that_the_evaluations_do_not_say_is_refused(study: Path, tmp_path: Path) -> None:
    from varangian.study.outcomes import read_outcome

    result = vg.run(replace(SMALL, attack="backdoor"), tmp_path)
    assert result.folder is not None
    path = result.folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"final_metrics": {"attack_success": 0.987}}))
    with pytest.raises(ValueError, match=r"attack_success .0\.987. is not that of its last evaluation"):
        read_outcome(result.folder)
