"""Data of one's own: any kind of inputs, in any of the ways to hand them over, is the same run."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import data as torch_data

import programs
import varangian as vg
from varangian.simulation.data import handed
from varangian.simulation.data.handed import taken
from varangian.study import outcomes

SMALL = vg.Experiment(
    model="linear", workers=5, byzantine=1, rule="median", attack="little", steps=4, batch_size=3, evaluate_every=2
)
Pairs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(shape: tuple[int, ...], below: int, seed: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def pairs(make: Callable[[int, int], Tensor], classes: int = 3) -> Pairs:
    """Training and test examples of inputs that are made of how many and a seed."""
    return (make(40, 1), torch.arange(40) % classes), (make(12, 2), torch.arange(12) % classes)


def with_labels(make: Callable[[int, int], Tensor], label: Callable[[Tensor], Tensor]) -> Pairs:
    return tuple((make(n, seed), label(make(n, seed))) for n, seed in ((40, 1), (12, 2)))  # type: ignore[return-value]


def some_ignored(tokens: Tensor) -> Tensor:
    labels = tokens % 3
    labels[:, ::4] = -100
    return labels


KINDS: dict[str, Pairs] = {
    "images of two channels": pairs(lambda n, seed: integers((n, 2, 5, 7), 256, seed).to(torch.uint8)),
    "images without channels": pairs(lambda n, seed: integers((n, 5, 7), 256, seed).to(torch.uint8)),
    "images in floats": pairs(lambda n, seed: numbers((n, 3, 4, 4), seed)),
    "images in doubles": pairs(lambda n, seed: numbers((n, 3, 4, 4), seed).double()),
    "rows of a table": pairs(lambda n, seed: numbers((n, 6), seed).double()),
    "volumes": pairs(lambda n, seed: numbers((n, 1, 3, 4, 5), seed)),
    "voxels": pairs(lambda n, seed: integers((n, 1, 3, 4, 5), 256, seed).to(torch.uint8)),
    "tokens": pairs(lambda n, seed: integers((n, 9), 11, seed)),
    "a class for each token": with_labels(lambda n, seed: integers((n, 9), 11, seed), some_ignored),
    "a number to predict": with_labels(lambda n, seed: numbers((n, 6), seed), lambda x: x.sum(1)),
    "numbers to predict": with_labels(lambda n, seed: numbers((n, 6), seed), lambda x: x[:, :4].double()),
}


class Items(torch_data.Dataset[Any]):
    """A data set as people write them."""

    def __init__(self, pair: tuple[Tensor, Tensor]) -> None:
        self.pair = pair

    def __len__(self) -> int:
        return len(self.pair[0])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        label = self.pair[1][index]
        return self.pair[0][index], label if label.ndim or label.is_floating_point() else int(label)


def bunch(pair: tuple[Tensor, Tensor]) -> dict[str, Any]:
    return {"data": pair[0].numpy(), "target": pair[1].numpy(), "DESCR": "as scikit-learn's loaders answer"}


WAYS: dict[str, Callable[[Pairs], Any]] = {
    "tensors": lambda both: both,
    "arrays": lambda both: tuple((x.numpy(), y.numpy()) for x, y in both),
    "arrays that lie otherwise": lambda both: tuple((np.asfortranarray(x.numpy()), narrow(y).numpy()) for x, y in both),
    "arrays that may not be written": lambda both: tuple(
        (read_only(x.numpy()), y.tolist() if y.dtype == torch.int64 else read_only(y.numpy())) for x, y in both
    ),
    "data sets of tensors": lambda both: tuple(torch_data.TensorDataset(*pair) for pair in both),
    "data sets of items": lambda both: tuple(Items(pair) for pair in both),
    "what loaders answer": lambda both: tuple(bunch(pair) for pair in both),
    "splits": lambda both: tuple(vg.Split(*pair) for pair in both),
    "a list, as random_split answers": lambda both: [torch_data.TensorDataset(*pair) for pair in both],
    "pairs in lists": lambda both: tuple([x.numpy(), y] for x, y in both),
    "a data set of ours": lambda both: vg.dataset(*both),
}


def narrow(labels: Tensor) -> Tensor:
    return labels.int() if labels.dtype == torch.int64 else labels


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


class Reader(nn.Module):
    """Of tokens."""

    def __init__(self, classes: int, everywhere: bool) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.embed, self.answer = nn.Embedding(11, 4), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.embed(x)
        return self.answer(seen if self.everywhere else seen.mean(1))


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vg.MODELS, "reader", lambda shape, classes, everywhere=False: Reader(classes, everywhere))


def tables(result: vg.Result) -> list[bytes]:
    assert result.folder is not None
    return [(result.folder / name).read_bytes() for name in ("metrics.csv", "evaluations.csv")]


FILE = """
import numpy as np, varangian as vg

def make_data(test=True):
    found = np.load("data.npz")
    parts = [(found[f"x{i}"], found[f"y{i}"]) for i in (0, 1)]
    return tuple(parts) if test else parts[0]

DATA = make_data()
WHOLE = vg.dataset(*DATA, name="whole")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_any_inputs_in_any_way_are_one_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"tokens": "reader", "a class for each token": "reader(everywhere=True)"}
    loss = "mse" if kind.endswith("to predict") else "cross-entropy"
    e = replace(SMALL, model=models.get(kind, "linear"), loss=loss)
    both = KINDS[kind]
    first = vg.run(e, tmp_path / "first", dataset=both)
    assert len(first.measures) == 4
    assert math.isnan(first.max_accuracy) == kind.endswith("to predict")
    assert all(math.isfinite(x.loss) for x in first.evaluations)
    assert first.experiment == replace(
        e, dataset="given:data", data_hash=first.experiment.data_hash, code_hash=first.experiment.code_hash
    )
    for way, hand in WAYS.items():
        again = vg.run(e, tmp_path / way.replace(" ", "-"), dataset=hand(both))
        assert again.experiment == first.experiment, way
        assert tables(again) == tables(first), way
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data.py").write_text(FILE)
    np.savez(
        "data.npz",
        **{f"{n}{i}": part.numpy() for i, pair in enumerate(both) for n, part in zip("xy", pair, strict=True)},
    )
    for name in ("make_data", "make_data(test=True)", "DATA", "WHOLE"):
        again = vg.run(replace(e, dataset=f"my_data.py:{name}"), tmp_path / "referred")
        assert again.experiment.data_hash == first.experiment.data_hash
        assert again.experiment.dataset.startswith("my_data.py:")
        assert tables(again) == tables(first), name
        assert vg.resume(again.folder).from_disk  # type: ignore[arg-type]
    once = vg.run(replace(e, dataset="my_data.py:make_data(test=False)"), tmp_path)
    assert tables(once) == tables(vg.run(e, tmp_path / "once", dataset=both[0]))


def test_floats_are_taken_as_they_are_and_pixels_divided() -> None:
    (x, y), test = KINDS["images of two channels"]
    plain = vg.run(SMALL, dataset=((x / 255, y), (test[0] / 255, test[1])))
    pixels = vg.run(SMALL, dataset=((x, y), test))
    assert [e.loss for e in plain.evaluations] == pytest.approx([e.loss for e in pixels.evaluations], rel=1e-4)
    assert vg.dataset((x / 255, y)).scale == 1
    assert vg.dataset((x, y)).scale == 255


def test_images_without_channels_are_pixels_as_with_one() -> None:
    (x, y), (x_test, y_test) = KINDS["images without channels"]
    one = vg.run(SMALL, dataset=((x, y), (x_test, y_test)))
    other = vg.run(SMALL, dataset=((x[:, None], y), (x_test[:, None], y_test)))
    assert [e.accuracy for e in one.evaluations] == [e.accuracy for e in other.evaluations]


def test_a_run_of_data_that_were_handed_over_is_gone_on_with_by_handing_them_over(tmp_path: Path) -> None:
    (x, y), test = KINDS["rows of a table"]
    mine = vg.dataset((x, y), test, name="my rows, v2")

    def stop(done: int, newest: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(SMALL, tmp_path, dataset=mine, progress=stop)
    (folder,) = tmp_path.iterdir()
    assert "digits" not in folder.name
    assert folder.name.startswith("given.my_rows_v2-data")
    for call in (lambda: vg.resume(folder), lambda: vg.replay(folder, 1)):
        with pytest.raises(ValueError, match=r"hand its data in as dataset="):
            call()
    with pytest.raises(ValueError, match="these are others"):
        vg.resume(folder, dataset=(x + 1, y))
    assert vg.resume(folder, dataset=((x, y), test)).began == 2
    assert vg.replay(folder, 3, dataset=mine).agrees
    assert vg.load_model(folder)(torch.zeros(2, 6)).shape == (2, 3)
    assert tables(vg.run(SMALL, tmp_path / "whole", dataset=mine)) == tables(vg.read(folder))


def test_named_data_do_not_get_the_run_of_others(tmp_path: Path) -> None:
    """A folder named digits is of digits."""
    mine = replace(vg.DATASETS["digits"](), flip=True)
    vg.run(SMALL, tmp_path, dataset=mine)
    assert vg.run(SMALL, tmp_path).experiment == SMALL
    assert sorted(p.name.partition("-")[0] for p in tmp_path.iterdir()) == ["digits", "given.digits"]


def test_a_part_for_the_test_is_the_same_each_time_and_stratified() -> None:
    x, y = numbers((100, 3), 1), torch.arange(100) % 4
    one, other = vg.dataset((x, y)), vg.dataset((x.numpy(), y.numpy()), test_fraction=0.2)
    assert one.fingerprint == other.fingerprint
    assert one.test.labels.bincount().tolist() == [5, 5, 5, 5]
    assert len(vg.dataset((x, y), test_fraction=0.5).test) == 50
    rows = {tuple(row) for part in (one.train, one.test) for row in part.inputs.tolist()}
    assert len(rows) == 100


@pytest.mark.parametrize("kind", ["a number to predict", "numbers to predict"])
def test_runs_that_predict_numbers_have_no_accuracy_anywhere(kind: str, tmp_path: Path) -> None:
    e = replace(SMALL, loss="mse", validation=0.2)
    result = vg.run(e, tmp_path / "runs", dataset=KINDS[kind])
    assert result.folder is not None
    least = min(x.validation_loss or math.inf for x in result.evaluations)
    assert result.chosen is not None
    assert result.chosen.validation_loss == least
    assert "nan" not in str(result)
    assert "final loss" in str(result)
    summary = json.loads((result.folder / "result.json").read_text())
    names = ("max_accuracy", "final_accuracy", "max_validation", "chosen_accuracy")
    assert [summary[name] for name in names] == [None] * 4
    assert "nan" in (result.folder / "evaluations.csv").read_text()
    again = vg.read(result.folder)
    assert math.isnan(again.max_accuracy)
    assert again.evaluations[-1].loss == pytest.approx(result.evaluations[-1].loss)
    (row,) = outcomes.gather(tmp_path / "runs")
    outcomes.write_runs(tmp_path, [row])
    (kept,) = outcomes.read_runs(tmp_path / "runs.csv")
    assert math.isnan(row.max_accuracy)
    assert math.isnan(kept.max_accuracy)
    assert kept.final_loss == row.final_loss
    assert "nan" not in (tmp_path / "runs.csv").read_text().replace("nan-", "")


def test_a_row_that_lacks_one_of_its_accuracies_is_no_row(tmp_path: Path) -> None:
    outcomes.write_runs(tmp_path, [outcomes.Outcome(SMALL, 0.5, 0.25)])
    path = tmp_path / "runs.csv"
    path.write_text(path.read_text().replace(",0.5,0.25,", ",0.5,,"))
    with pytest.raises(ValueError, match="final_accuracy must be a number"):
        outcomes.read_runs(path)


def test_partitions_deal_rows_and_refuse_numbers_to_predict() -> None:
    pair = KINDS["rows of a table"][0]
    assert len(vg.run(replace(SMALL, partition="extreme"), dataset=pair).measures) == 4
    from varangian.simulation.data import partition

    for labels, what in ((torch.rand(20), "numbers to predict"), (torch.zeros(20, 3, dtype=torch.int64), "each token")):
        with pytest.raises(ValueError, match=rf"Extreme\(\) deals examples by their class, and these have .*{what}"):
            partition(labels, 4, "extreme", 1)
        assert len(partition(labels, 4, "iid", 1)) == 4
        own = partition(labels, 2, lambda labels, classes, workers, seed: [np.arange(2), np.arange(classes, 9)], 1)
        assert own[1].tolist()[-1] == 8
    with pytest.raises(ValueError, match="at least one example per worker: 5 workers, got 2"):
        vg.run(replace(SMALL, partition="extreme", attack=None), dataset=(pair[0][:3], pair[1][:3]))


class Endless(torch_data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.zeros(2), 0)])


class Unlike(Items):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.pair[0][index][: 1 + index % 2], 0


class Single(Items):
    def __getitem__(self, index: int) -> Any:
        return self.pair[0][index]


X, Y = numbers((20, 4), 1), torch.arange(20) % 2
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says of each that its interface is young
    NESTED = torch.nested.as_nested_tensor(list(X))
FAULTS: dict[str, tuple[Any, str]] = {
    "labels that start at 1": ((X, Y + 1), "labels must be classes 0, 1, 2, ..., got 1, 2; say classes="),
    "labels of signs": ((X, 2 * Y - 1), "labels must be classes 0, 1, 2, ..., got -1, 1; say classes="),
    "labels with gaps": ((X, 7 * Y), "labels must be classes 0, 1, 2, ..., got 0, 7; say classes="),
    "text": ((X, np.array(["cat", "dog"] * 10)), "labels: must be numbers, got text; classes are integers from 0"),
    "text in objects": ((X, np.array(["cat", 1] * 10, object)), "labels: must be numbers, got text"),
    "objects": ((np.array([None] * 20), Y), "inputs: must be an array of numbers, got one of objects"),
    "ragged rows": (([[1.0], [1.0, 2.0]], [0, 1]), "inputs: cannot be read as an array"),
    "times": ((np.zeros((20, 2), "M8[s]"), Y), "inputs: must be real numbers, got datetime64[s]"),
    "complex": ((X.to(torch.complex64), Y), "inputs: must be real numbers, got complex64 [20, 4]"),
    "NaN": ((X / 0, Y), "Split needs finite inputs, got some with NaN or infinity"),
    "masked": ((np.ma.array(X.numpy(), mask=X.numpy() > 1), Y), "inputs: an array with masked values is not whole"),
    "one example": ((X[:1], Y[:1]), "test: of 1 training examples 0.2 would be set aside, none left"),
    "nothing": ((X[:0], Y[:0]), "Split needs inputs"),
    "no pair": (X, "must be a pair (x, y)"),
    "four": ((X, Y, X, Y), "must be a pair (x, y), a torch Dataset of such pairs, or both for training and test in a"),
    "a name": ("breast-cancer", "must be a pair (x, y)"),
    "more labels": ((X, Y[:9]), "Split needs a label for each input, got 20 inputs and 9 labels"),
    "other shapes": (((X, Y), (X[:, :2], Y)), "needs inputs of one shape, got [4] in train and [2] in test"),
    "other types": (((X, Y), (X.double(), Y)), "needs inputs of one type, got float32 in train and float64 in test"),
    "a scalar each": ((X[:, 0], Y), "Split needs inputs [N, ...]"),
    "bytes in rows": ((X.to(torch.uint8), Y), "Split needs inputs [N, ...] of pixels (uint8, 3 dimensions or more)"),
    "that learns": ((X.clone().requires_grad_(), Y), "a tensor that requires grad is no data; detach() it"),
    "sparse": ((X.to_sparse(), Y), "must be a dense tensor, got torch.sparse_coo; use to_dense()"),
    "meta": ((X.to("meta"), Y), "must be a dense tensor, got one without numbers (meta)."),
    "labels on meta": ((X, Y.to("meta")), "must be a dense tensor, got one without numbers (meta)."),
    "nested": ((NESTED, Y), "must be a dense tensor, got a nested one."),
    "a loader": (torch_data.DataLoader(Items((X, Y))), "a DataLoader draws batches by itself; hand over its .dataset"),
    "no end": (Endless(), "an IterableDataset has neither length nor order"),
    "no pairs": (Single((X, Y)), "items must be pairs (input, label), that of index 0 is a Tensor"),
    "unlike items": (Unlike((X, Y)), "all items must be alike; that of index 0 has float32 [1], that of 1 float32 [2]"),
    "no items": (Items((X[:0], Y[:0])), "the Items is empty"),
    "a dictionary": ({"x": X, "y": Y}, "of what a loader answers, data and target are taken; there is no data"),
    "numbers for cross-entropy": ((X, X[:, 0]), "cross-entropy needs labels that are whole numbers, got float32"),
    "tokens for a linear model": ((X.long(), Y), "linear computes with numbers, and the inputs of data are tokens"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_data_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    value, message = FAULTS[fault]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        vg.run(SMALL, tmp_path, dataset=value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("dataset: ", "model: ", "Sequential and these data do not fit: "))
    assert list(tmp_path.iterdir()) == []
    assert len(vg.run(SMALL, tmp_path, dataset=(X, Y)).measures) == 4  # and the next call is none the worse


def test_classes_that_do_not_occur_are_said() -> None:
    assert vg.dataset((X, Y * 7), classes=9).classes == 9
    with pytest.raises(ValueError, match="needs labels from 0 to 6, got 0 to 7 in train"):
        vg.dataset((X, Y * 7), classes=7)


def test_what_is_read_is_bounded_and_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "varangian.data"):
        taken(Items((X, Y)))
    assert "reading 20 items, 0.0 MB" in caplog.text
    monkeypatch.setattr(handed, "MOST_BYTES", 20 * 24 - 1)
    with pytest.raises(ValueError, match=r"20 items of 24 bytes take 0\.0 GiB, and at most"):
        taken(Items((X, Y)))


@pytest.mark.parametrize("fraction", [0, 1, -0.5, "half", True])
def test_fractions_that_are_none(fraction: Any) -> None:
    with pytest.raises(ValueError, match="test_fraction must be a share between 0 and 1"):
        vg.dataset((X, Y), test_fraction=fraction)


def test_columns_of_labels_truth_values_and_half_precision() -> None:
    found = vg.dataset((X.half() > 0, Y[:, None]))
    assert (found.train.inputs.dtype, found.train.labels.ndim, found.task) == (torch.float32, 1, "classes")
    assert vg.dataset((X.half(), Y > 0)).train.inputs.dtype == torch.float32
    assert vg.dataset((X, X[:, :2])).classes == 2
    assert vg.dataset((X, X[:, 0])).task == "regression"
    assert vg.dataset((X.long().abs(), (X > 0).long())).task == "tokens"


def test_models_of_images_refuse_other_shapes() -> None:
    for model in ("cnn", "wide-resnet"):
        with pytest.raises(ValueError, match=r"needs images \[C, H, W\], got examples of shape \[4\]"):
            vg.run(replace(SMALL, model=model), dataset=(X, Y))


def test_from_an_empty_folder_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(
        "import torch\n\ndef make(shift=0, classes=2):\n    y = torch.arange(40) % classes + shift\n"
        "    return torch.randn(40, 3) + 3 * y[:, None], y\n"
    )
    command = ["-m", "varangian", "run", "--model", "linear", "--steps", "5", "--quiet", "--dataset"]
    done = programs.run(*command, "rows.py:make(classes=3)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "max accuracy" in done.stdout
    for data, message in (("rows.py:make(shift=2)", "got 2, 3"), ("rows.py:nothing", "has no nothing"),
                          ("given:rows", "hand its data in as dataset=")):  # fmt: skip
        failed = programs.run(*command, data, cwd=tmp_path)
        assert failed.returncode == 2, failed
        assert message in failed.stderr
        assert "Traceback" not in failed.stderr


def test_single_numbers_of_items_are_one_number_an_example_whoever_makes_them() -> None:
    class Curve(torch.utils.data.Dataset[Any]):
        def __init__(self, make: Any) -> None:
            self.make = make

        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Any:
            return self.make(index / 20), self.make(index * 0.5)

    made = [vg.dataset(Curve(make)) for make in (float, np.float64, lambda v: torch.tensor(v, dtype=torch.float64))]
    assert {(data.shape, data.train.labels.ndim, data.fingerprint) for data in made} == {((1,), 1, made[0].fingerprint)}


def test_what_numpy_writes_into_large_data_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varangian.simulation.data.dataset._SMALL", 0)
    x, y = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32), np.arange(40) % 2
    data, settings = vg.dataset((x, y), (x, y)), vg.Experiment(steps=0)
    before = vg.run(settings, dataset=data).evaluations[-1].loss
    x *= 5
    after = vg.run(settings, dataset=data).evaluations[-1].loss
    assert before != after == vg.run(settings, dataset=vg.dataset((x, y), (x, y))).evaluations[-1].loss
