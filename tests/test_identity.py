"""Data and code of somebody's own are part of a run: another one of either is another run."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import textwrap
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varangian as vg
from varangian.runs.building import identified
from varangian.simulation import data
from varangian.simulation.data import Dataset, Split
from varangian.simulation.identity import code_hash
from varangian.study import outcomes

SMALL = vg.Experiment(workers=5, byzantine=1, rule="median", steps=4, batch_size=2, evaluate_every=2, model="linear")


def changed(dataset: Dataset, place: str, change: Any) -> Dataset:
    """The same data with one thing changed."""
    if "." not in place:
        return replace(dataset, **{place: change})
    split, part = place.split(".")
    old: Split = getattr(dataset, split)
    return replace(dataset, **{split: replace(old, **{part: change(getattr(old, part).clone())})})


def other_pixel(images: Tensor) -> Tensor:
    images[-1, 0, 0, 0] += 1
    return images


def other_label(labels: Tensor) -> Tensor:
    labels[0] = (labels[0] + 1) % 10
    return labels


CHANGES: dict[str, Any] = {
    "train.images": other_pixel,
    "train.labels": other_label,
    "test.images": other_pixel,
    "test.labels": other_label,
    "flip": True,
    "scale": 15,
    "classes": 11,
}


@pytest.mark.parametrize("place", CHANGES)
def test_another_data_set_is_another_run(tmp_path: Path, place: str) -> None:
    """Whatever differs: it has its own folder, and the named data keep theirs."""
    named = data.digits()
    mine = changed(named, place, CHANGES[place])
    assert mine.fingerprint != named.fingerprint
    plain = vg.run(SMALL, tmp_path, dataset=named)
    assert plain.experiment == SMALL
    own = vg.run(SMALL, tmp_path, dataset=mine)
    assert own.experiment == replace(SMALL, dataset="given:digits", data_hash=mine.fingerprint)
    assert own.folder != plain.folder
    assert f"-data{mine.fingerprint[:8]}-" in str(own.folder)
    for dataset, first in ((named, plain), (None, plain), (mine, own)):
        again = vg.run(SMALL, tmp_path, dataset=dataset)
        assert (again.folder, again.from_disk) == (first.folder, True)
        assert [e.loss for e in again.evaluations] == pytest.approx([e.loss for e in first.evaluations], rel=1e-8)


def test_equal_data_are_one_run_whoever_made_them(tmp_path: Path) -> None:
    one = changed(data.digits(), "train.images", other_pixel)
    other = changed(data.digits(), "train.images", other_pixel)
    assert vg.run(SMALL, tmp_path, dataset=one).folder == vg.run(SMALL, tmp_path, dataset=other).folder


@pytest.mark.parametrize("through", ["torch", "numpy"])
def test_data_that_were_written_into_are_others(tmp_path: Path, through: str) -> None:
    """Also what an evaluation has prepared of them."""
    dataset = data.digits()
    before = vg.run(SMALL, tmp_path, dataset=dataset)
    for images in (dataset.train.images, dataset.test.images):
        if through == "torch":
            images.zero_()
        else:
            images.numpy()[:] = 0
    after = vg.run(SMALL, tmp_path, dataset=dataset)
    black = replace(
        dataset,
        train=replace(dataset.train, images=dataset.train.images * 0),
        test=replace(dataset.test, images=dataset.test.images * 0),
    )
    assert after.folder != before.folder
    assert not after.from_disk
    truth = vg.run(SMALL, dataset=black)
    assert [e.loss for e in after.evaluations] == [e.loss for e in truth.evaluations]


def interrupted(experiment: vg.Experiment, out: Path, dataset: Dataset | None = None, step: int = 2) -> Path:
    """The folder of a run that ended in the middle, with a checkpoint."""

    def stop(done: int, newest: Any) -> None:
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(experiment, out, dataset=dataset, progress=stop)
    (folder,) = out.iterdir()
    return folder


def test_folders_of_ones_own_data_are_read_resumed_replayed_and_tabled(tmp_path: Path) -> None:
    mine = changed(data.digits(), "train.images", other_pixel)
    whole = vg.run(SMALL, dataset=mine)
    folder = interrupted(SMALL, tmp_path / "runs", mine)
    for refused in (None, data.digits(), changed(data.digits(), "test.labels", other_label)):
        for call in (vg.resume, functools.partial(vg.replay, step=1)):
            with pytest.raises(ValueError, match="data") as error:
                call(folder, dataset=refused)
            assert "\n" not in str(error.value)
    result = vg.resume(folder, dataset=mine)
    assert result.began == 2
    assert [e.loss for e in result.evaluations] == [e.loss for e in whole.evaluations]
    assert vg.replay(folder, 3, dataset=mine).agrees
    assert vg.read(folder).experiment == result.experiment
    assert vg.resume(folder).from_disk  # complete: nothing is to be done with the data
    with pytest.raises(ValueError, match="data"):
        vg.resume(folder, dataset=data.digits())
    (row,) = outcomes.gather(tmp_path / "runs")
    assert row.experiment == result.experiment
    outcomes.write_runs(tmp_path, [row])
    assert outcomes.gather(tmp_path / "runs.csv")[0].experiment == result.experiment
    with pytest.raises(ValueError, match=r"data of somebody's own.*hand its data in"):
        vg.run(result.experiment, tmp_path / "runs")
    assert vg.run(result.experiment, tmp_path / "runs", dataset=mine).from_disk


def test_named_data_with_a_folder_of_others(tmp_path: Path) -> None:
    folder = interrupted(SMALL, tmp_path)
    mine = changed(data.digits(), "test.images", other_pixel)
    with pytest.raises(ValueError, match="other data"):
        vg.resume(folder, dataset=mine)
    assert vg.resume(folder, dataset=data.digits()).began == 2


def test_a_registered_data_set_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is the same, and so may be its function."""
    now = data.digits()
    monkeypatch.setitem(vg.DATASETS, "mine", lambda: now)
    e = replace(SMALL, dataset="mine")
    one = vg.run(e, tmp_path)
    assert one.experiment.data_hash == now.fingerprint
    assert vg.run(e, tmp_path).from_disk
    now = changed(now, "train.images", other_pixel)
    other = vg.run(e, tmp_path)
    assert not other.from_disk
    assert other.folder != one.folder
    assert one.folder is not None
    with pytest.raises(ValueError, match="data"):
        vg.replay(one.folder, 1)


def test_a_name_of_the_package_that_somebody_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = changed(data.digits(), "train.images", other_pixel)
    monkeypatch.setitem(vg.DATASETS, "digits", lambda: mine)
    assert vg.run(SMALL).experiment.data_hash == mine.fingerprint


@pytest.mark.parametrize("spec", ["synthetic(train=50, test=20)", "synthetic(test=20,train=50,seed=0)"])
def test_data_of_the_package_need_no_hash(spec: str) -> None:
    e = replace(SMALL, dataset=spec)
    assert identified(e)[0] == e
    assert identified(e, data.synthetic(train=50, test=20))[0] == e
    assert identified(e, data.synthetic(train=51, test=20))[0].data_hash is not None
    assert identified(e, data.digits())[0].data_hash is not None


# ----------------------------------------------------------------------------------------------------------- code

RULE = """
    from dataclasses import dataclass
    import varangian as vg
    FACTOR = {factor}

    def helper(x):
        return x.mean(0) * FACTOR {comment}

    @dataclass(frozen=True)
    class Mine(vg.General):
        f: int = 0

        @property
        def needs(self):
            return "1", 1

        def combine(self, x, previous, draw=None):
            return {answer}
"""


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, **parts: object) -> Any:
    """A module of somebody's own, as a fresh process would import it."""
    text = RULE.format(**({"factor": 1.0, "comment": "", "answer": "helper(x)"} | parts))
    (folder / "my_rule.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "my_rule", sys)  # so that what stood there before, or nothing, does so again
    del sys.modules["my_rule"]
    importlib.invalidate_caches()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("my_rule")
    monkeypatch.setitem(vg.RULES, "mine", module.Mine)
    return module


@pytest.mark.parametrize("parts", [{"answer": "-helper(x)"}, {"factor": -1.0}, {"answer": "x[0].clone()"}])
def test_a_rule_that_was_edited_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any]
) -> None:
    """Its method, or a number or function that it refers to."""
    load(tmp_path, monkeypatch)
    e = replace(SMALL, rule="mine")
    first = vg.run(e, tmp_path / "runs")
    assert first.experiment.code_hash is not None
    assert vg.run(e, tmp_path / "runs").from_disk
    load(tmp_path, monkeypatch, comment="# the same, said")
    assert vg.run(e, tmp_path / "runs").from_disk
    load(tmp_path, monkeypatch, **parts)
    second = vg.run(e, tmp_path / "runs")
    assert not second.from_disk
    assert second.folder != first.folder
    assert [x.loss for x in second.evaluations] != [x.loss for x in first.evaluations]
    assert first.folder is not None
    assert vg.read(first.folder).experiment == first.experiment  # reading needs no code
    with pytest.raises(ValueError, match="code of this experiment is no longer what it was"):
        vg.replay(first.folder, 1)
    with pytest.raises(ValueError, match="code of this experiment is no longer what it was"):
        vg.run(first.experiment, tmp_path / "runs")


def test_a_run_of_edited_code_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path, monkeypatch)
    folder = interrupted(replace(SMALL, rule="mine"), tmp_path / "runs")
    load(tmp_path, monkeypatch, factor=2.0)
    with pytest.raises(ValueError, match="no longer what it was"):
        vg.resume(folder)
    load(tmp_path, monkeypatch)
    assert vg.resume(folder).began == 2


def made(text: str, name: str, **names: Any) -> Any:
    """What exec leaves under a name: code without a file."""
    space: dict[str, Any] = {"__name__": "__main__", "vg": vg, "nn": nn, "torch": torch, **names}
    exec(textwrap.dedent(text), space)
    return space[name]


MODEL = """
    def model(shape, classes, width={width}):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes{bias}))
"""


def test_code_without_a_file() -> None:
    """As from a notebook, `python -c`, or a class defined twice in one file."""
    first, same = (made(MODEL.format(width=3, bias=""), "model") for _ in range(2))
    assert code_hash([first]) == code_hash([same])
    assert (
        len({code_hash([made(MODEL.format(width=w, bias=b), "model")]) for w in (3, 4) for b in ("", ", False")}) == 4
    )


def counted() -> Any:
    return made(
        """
        calls = 0
        def f(x):
            global calls
            calls += 1
            return x
        """,
        "f",
    )


def test_what_a_program_counts_is_not_its_code() -> None:
    f = counted()
    before = code_hash([f])
    f(1)
    assert f.__globals__["calls"] == 1
    assert code_hash([f]) == before


def closure(value: Any) -> Any:
    return lambda shape, classes: (value, shape)


def test_what_a_function_closes_over() -> None:
    hashes = [code_hash([closure(value)]) for value in (1, 2, 2.0, "2", (2,), None, np.ones(2), np.zeros(2))]
    hashes += [code_hash([closure(torch.ones(2))]), code_hash([closure(torch.zeros(2))])]
    hashes += [code_hash([functools.partial(closure(1), classes=c)]) for c in (1, 2)]
    assert len(set(hashes)) == len(hashes)
    assert code_hash([closure((1, frozenset("abc")))]) == code_hash([closure((1, frozenset("cab")))])


@pytest.mark.slow
def test_hashes_are_those_of_another_process(tmp_path: Path) -> None:
    """Sets, addresses and the seed of Python's hashes do not count."""
    import subprocess

    program = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        import varangian as vg, my_rule
        from varangian.simulation.identity import code_hash
        print(code_hash([my_rule.Mine]))
    """
    text = RULE.format(factor=1.0, comment="", answer="helper(x) if x.shape[0] in {1, 2, 3, 'a', 'b'} else x[0]")
    (tmp_path / "my_rule.py").write_text(textwrap.dedent(text))
    found = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_the_package_has_no_hash() -> None:
    things = [*vg.RULES.values(), *vg.MIXINGS.values(), *vg.ATTACKS.values(), *vg.MODELS.values()]
    assert code_hash([*things, *vg.DATASETS.values(), *vg.PARTITIONS.values()]) is None


@pytest.mark.parametrize("every", [0.0, 60.0])
@pytest.mark.parametrize("error", [ZeroDivisionError, ValueError, RuntimeError, AssertionError])
def test_an_error_of_ones_own_is_no_result_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], every: float
) -> None:
    """It keeps its traceback, and what is left is as of a run that was cut."""
    broken = tmp_path / "broken"

    @dataclass(frozen=True)
    class Mine(vg.Attack):
        path: str = ""

        def craft(self, seen: vg.Knowledge) -> Tensor:
            if seen.previous is not None and os.path.exists(self.path):
                raise error("my own bug")
            return -seen.mean

    Mine.uses_previous = True
    monkeypatch.setitem(vg.ATTACKS, "mine", Mine)
    e = replace(SMALL, attack=f"mine(path={str(broken)!r})")
    whole = vg.run(e)
    broken.touch()
    with pytest.raises(error, match="my own bug") as raised:
        vg.run(e, tmp_path / "runs", checkpoint_every=every)
    assert any(entry.name == "craft" for entry in raised.traceback)
    left = [path.name for path in (tmp_path / "runs").rglob("*")] if (tmp_path / "runs").exists() else []
    assert "result.json" not in left
    assert ("checkpoint.pt" in left) == (every == 0)
    broken.unlink()
    result = vg.run(e, tmp_path / "runs")
    assert result.began == (1 if every == 0 else 0)
    assert result.stopped is None
    assert [x.loss for x in result.evaluations] == [x.loss for x in whole.evaluations]


def test_a_result_read_from_disk_says_so(tmp_path: Path) -> None:
    first = vg.run(SMALL, tmp_path)
    assert not first.from_disk
    assert "read from" not in str(first)
    again = vg.run(SMALL, tmp_path)
    assert again.from_disk
    assert str(again).endswith(f"; read from {again.folder}, nothing was trained")


# ------------------------------------------------------------------------------------------------ the trained model


@pytest.mark.parametrize(
    "settings",
    [{"model": "linear"}, {"model": "fully-connected(hidden=3)", "dtype": "float64"},
     {"model": "wide-resnet(depth=10, width=1)", "steps": 1}],
)  # fmt: skip
def test_the_trained_model(tmp_path: Path, settings: dict[str, Any]) -> None:
    """As it was evaluated, in memory and from the folder, whose own copy it is."""
    dataset = data.digits()
    result = vg.run(replace(SMALL, **settings), tmp_path, dataset=dataset)
    assert result.folder is not None
    inputs = data.prepare(dataset, dataset.test.images).to(getattr(torch, result.experiment.dtype))
    for model in (result.model(), vg.read(result.folder).model(), vg.load_model(result.folder)):
        assert not model.training
        with torch.no_grad():
            accuracy = (model(inputs).argmax(1) == dataset.test.labels).double().mean().item()
        assert accuracy == pytest.approx(result.final_accuracy, abs=1 / 500)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
    with torch.no_grad():
        assert (result.model()(inputs) != 0).any()


def test_states_that_do_not_fit(tmp_path: Path) -> None:
    folder = vg.run(SMALL, tmp_path).folder
    assert folder is not None
    state = torch.load(folder / "state.pt", weights_only=True)
    assert all(tensor.device.type == "cpu" for tensor in (state["parameters"], *state["buffers"].values()))
    older = {name: state[name] for name in ("step", "parameters", "buffers")}
    torch.save(older, folder / "state.pt")  # of a version that did not note the shape
    assert vg.load_model(folder).training is False
    for wrong in (
        state | {"parameters": state["parameters"][:-1]}, state | {"parameters": state["parameters"].double()},
        state | {"buffers": {"more": torch.zeros(1)}}, state | {"shape": [1, 0, 3]}, state | {"shape": [1, 9, 9]},
        {"step": 1}, [1, 2],
    ):  # fmt: skip
        torch.save(wrong, folder / "state.pt")
        with pytest.raises(ValueError, match=r"state\.pt") as error:
            vg.load_model(folder)
        assert "\n" not in str(error.value)
    (folder / "state.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
        vg.load_model(folder)
    (folder / "state.pt").unlink()
    with pytest.raises(ValueError, match=r"state\.pt is missing"):
        vg.load_model(folder)


def test_a_module_of_somebodys_own_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its function may answer the same one each time: each run starts from it as it is."""
    mine = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    monkeypatch.setitem(vg.MODELS, "mine", lambda shape, classes: mine)
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    one, other = (vg.run(replace(SMALL, model="mine")) for _ in range(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())
    assert [e.loss for e in one.evaluations] == [e.loss for e in other.evaluations]
    with torch.no_grad():
        mine[1].weight.add_(1)  # type: ignore[operator]
    assert vg.run(replace(SMALL, model="mine")).experiment.code_hash != one.experiment.code_hash


# --------------------------------------------------------------------------------------------------- the small things


def test_an_attack_of_nobody_is_warned_of() -> None:
    e = replace(SMALL, attack="little", byzantine=0, rule="average")
    with pytest.warns(UserWarning, match="attack little is named and nobody attacks"):
        vg.run(e)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vg.run(replace(e, real_byzantine=0))  # said


def test_out_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = vg.run(SMALL, "~/runs").folder
    assert folder is not None
    assert folder.parent == tmp_path / "runs"
    at_home = f"~/runs/{folder.name}"
    assert vg.read(at_home).experiment == SMALL
    assert vg.resume(at_home).from_disk
    assert vg.replay(at_home, 1).agrees
    assert not vg.load_model(at_home).training
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("device", ["mps", "cuda:99"])
def test_a_device_that_is_not_here(tmp_path: Path, device: str) -> None:
    """Experiments of it are read; they are refused in one line when they are to run, and nothing is left behind."""
    e = replace(SMALL, device=device)
    assert vg.Experiment.from_json(e.to_json()) == e
    with pytest.raises(ValueError, match=f"device: '{device}' cannot be used") as error:
        vg.run(e, tmp_path / "runs")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()
    kept = vg.run(SMALL, tmp_path).folder
    assert kept is not None
    other = tmp_path / f"{e.name}-{e.digest}"
    kept.rename(other)
    (other / "experiment.json").write_text(e.to_json())
    result = (other / "result.json").read_text()
    (other / "result.json").write_text(result.replace(SMALL.digest, e.digest))
    assert vg.read(other).experiment == e
    assert vg.run(e, tmp_path).from_disk
    with pytest.raises(ValueError, match=f"device: '{device}' cannot be used"):
        vg.replay(other, 1)


def test_progress_hears_of_every_evaluation(tmp_path: Path) -> None:
    diverges, refused = replace(SMALL, rule="average", attack="nan"), replace(SMALL, attack="nan", real_byzantine=2)
    others = [{"steps": 5}, {"steps": 0}, {"evaluate_every": 0}]
    for e in (SMALL, *(replace(SMALL, **other) for other in others), diverges, refused):
        heard: list[Any] = []
        result = vg.run(e, progress=lambda *told, heard=heard: heard.append(told))  # type: ignore[misc]
        assert list(dict.fromkeys(newest for _, newest in heard)) == result.evaluations
        assert heard[-1][0] == len(result.measures)
    steps: list[Any] = []
    result = vg.resume(interrupted(SMALL, tmp_path, step=3), progress=lambda *told: steps.append(told[1]))
    assert steps[-1] == result.evaluations[-1]
    assert steps[-1].step == 4
