"""One training run: its configuration, what is refused, and the folder that it leaves."""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import varangian as vg
from varangian.core import kernels
from varangian.runs import building
from varangian.runs import experiment as module
from varangian.simulation import data
from varangian.simulation.data import readers
from varangian.simulation.metrics import COLUMNS

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FIRST_ROW = f"{Path(__file__).parents[1] / 'examples' / 'first_row.py'}:FirstRow"
SMALL = vg.Experiment(workers=11, byzantine=2, steps=3, batch_size=2, evaluate_every=2)


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.digits()


def files(folder: Path) -> dict[str, bytes]:
    """All that lies below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def faults_of(**settings: Any) -> list[str]:
    with pytest.raises(vg.ConfigurationError) as error:
        vg.Experiment(**settings)
    return error.value.faults


# ------------------------------------------------------------------------------------------------ configuration

SEEDS = [0, 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1]
rates = st.floats(0, 10, allow_nan=False)
hashes = st.none() | st.text("0123456789abcdef", min_size=16, max_size=16)


def whatever(profile: Any, partition: str, **settings: Any) -> vg.Experiment:
    """The published profile knows no parts."""
    return vg.Experiment(profile=profile, partition="iid" if profile == "published" else partition, **settings)


experiments = st.builds(
    whatever,
    dataset=st.sampled_from(["digits", "fashion-mnist", "synthetic(shape=(3, 32, 32), classes=10)"]),
    model=st.sampled_from(["linear", "fully-connected", "cnn", "wide-resnet(depth=10, width=1)"]),
    workers=st.integers(11, 60),
    byzantine=st.integers(0, 2),
    real_byzantine=st.none() | st.integers(0, 5),
    rule=st.sampled_from(
        ["average", "median", "bulyan", "multi-krum(m=5)", vg.MultiKrum(f=0, m=4), vg.Median(f=0, even="upper")]
    ),
    pre=st.sampled_from([(), ("nnm",), ("clipping(c=2.0)", "nnm"), (vg.NearestNeighborMixing(f=0),), "nnm,arc"]),
    attack=st.sampled_from(["little", "empire(factor=2.5)", vg.Gaussian(3.0), vg.Inf("mixed")]),
    momentum=st.floats(0, 1, exclude_max=True),
    dampening=st.floats(0, 1, exclude_max=True),
    nesterov=st.booleans(),
    momentum_at=st.sampled_from(["worker", "server", "shared"]),
    clip=st.none() | st.floats(1e-6, 1e6),
    clip_mode=st.sampled_from([None, "norm", "unit"]),
    batch_size=st.integers(1, 1000),
    steps=st.integers(0, 10**6),
    learning_rate=rates
    | st.lists(st.tuples(st.integers(1, 9999), rates), max_size=3, unique_by=lambda piece: piece[0]).map(
        lambda pieces: ((0, 0.5), *sorted(pieces))
    ),
    l2=rates,
    evaluate_every=st.integers(0, 100),
    seed=st.integers(0, 2**63 - 1) | st.sampled_from(SEEDS),
    device=st.sampled_from(["cpu", "cuda", "cuda:1", "mps"]),
    data_hash=hashes,
    code_hash=hashes,
    partition=st.sampled_from(
        [
            "iid",
            "extreme",
            "dirichlet(alpha=0.1)",
            "similarity",
            "long-tail(imbalance=9, alpha=0.5)",
            "shards",
            "quantity",
        ]
    ),
    profile=st.sampled_from(["described", "published"]),
    dtype=st.sampled_from(["float32", "float64"]),
    measure=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(experiments)
def test_round_trips(e: vg.Experiment) -> None:
    for again in (
        vg.Experiment.from_json(e.to_json()),
        vg.Experiment.from_toml(e.to_toml()),
        vg.Experiment.from_dict(e.to_dict()),
        replace(e),
    ):
        assert again == e
        assert hash(again) == hash(e)
        assert (again.digest, again.name) == (e.digest, e.name)
        assert again.make_algorithm() == e.make_algorithm()
        assert again.make_attack() == e.make_attack()
    assert json.loads(e.to_json()) == e.to_dict()  # plain values only
    assert len(e.digest) == 10
    assert "/" not in e.name
    assert len(os.fsencode(f"{e.name}-{e.digest}")) < 255


def test_the_digest_of_the_first_release() -> None:
    """Folders of runs go by it: where it changes, nobody's runs are found again."""
    assert vg.Experiment(rule="average", byzantine=0, momentum=0).digest == "eebda57db7"
    assert vg.Experiment().name == "digits-fully-connected-multi-krum-no-attack-n15-f3-worker0.9-lr0.1-seed1"


NNM_AND_MORE = vg.Experiment(rule="median", pre=("nnm",), attack="little", partition="extreme", momentum=0.5)


def test_later_settings_are_written_where_they_say_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the bytes of folders and tables of before there were any stay what they are."""
    assert {name for name in module.LATER if name in json.loads(vg.Experiment().to_json())} == set()
    for e, text, digest in (
        (vg.Experiment(), "7a7127551e", "e3ac50dc02"),
        (NNM_AND_MORE, "862ecba3f8", "bd3d00377b"),
        (vg.Experiment(profile="published", attack="empire", learning_rate="0.1,50:0.01"), "dd9a0bfba2", "612963e55b"),
    ):
        assert (hashlib.sha256(e.to_json().encode()).hexdigest()[:10], e.digest) == (text, digest)
    # Any setting that is not resolved otherwise may be one.
    plain = vg.Experiment().digest
    monkeypatch.setattr(module, "LATER", ("l2",))
    unsaid, said = vg.Experiment(), vg.Experiment(l2=0.5)
    assert len({plain, unsaid.digest, said.digest}) == 3
    assert "l2" not in unsaid.to_dict()
    assert "l2" not in unsaid.to_toml()
    assert "l2" in said.to_json()
    assert "l2" in said.to_toml()
    for e in (unsaid, said):
        assert vg.Experiment.from_json(e.to_json()) == vg.Experiment.from_toml(e.to_toml()) == e
    assert module.differences(unsaid, said) == ["l2: 0.0001 there, 0.5 asked for"]


BASE = vg.Experiment(workers=11, byzantine=2, attack="little", clip=2.0)
CHANGES: dict[str, Any] = {
    "dataset": "synthetic",
    "model": "linear",
    "workers": 12,
    "byzantine": 1,
    "real_byzantine": 1,
    "rule": "median",
    "pre": ("nnm",),
    "attack": "empire",
    "momentum": 0.8,
    "dampening": 0.1,
    "nesterov": True,
    "momentum_at": "server",
    "clip": 3.0,
    "clip_mode": "unit",
    "batch_size": 31,
    "steps": 299,
    "learning_rate": 0.2,
    "l2": 0.1,
    "evaluate_every": 9,
    "seed": 2,
    "device": "cuda:1",
    "partition": "extreme",
    "profile": "published",
    "dtype": "float64",
    "measure": False,
    "validation": 0.1,
    "loss": "mse",
    "metrics": ("macro-f1",),
    "precision": "tf32",
    "autotune": True,
    "knowledge": "spied(k=3)",
    "clients": 50,
    "attackers_change": 10,
    "absent": "dropped",
    "local_steps": 2,
    "weighting": "size",
    "cap": 1.5,
    "quarantine": "quarantine(window=5)",
    "order": "honest-first",
    "data_hash": "0123456789abcdef",
    "code_hash": "fedcba9876543210",
}


@pytest.mark.parametrize("name", [field.name for field in fields(vg.Experiment)])
def test_every_setting_changes_the_digest(name: str) -> None:
    base = replace(BASE, device="cuda") if name in ("precision", "autotune") else BASE
    base = replace(BASE, clients=50) if name == "absent" else base
    base = replace(BASE, weighting="size") if name == "cap" else base
    base = replace(BASE, rule=FIRST_ROW) if name == "order" else base  # to whose own it may matter
    changed = replace(base, **{name: CHANGES[name]})
    assert changed.digest != base.digest
    assert (changed.name, changed.digest) != (BASE.name, changed.digest) or name not in ("data_hash", "seed", "model")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (replace(BASE, clip=None), {"clip_mode": "unit"}),  # nothing is clipped
        (replace(BASE, momentum=0), {"nesterov": True, "dampening": 0.5, "momentum_at": "server"}),  # nothing moves
        (BASE, {"clip_mode": "norm"}),  # the default, said
        (BASE, {"real_byzantine": 2}),
        (BASE, {"attack": "little(factor=1.5, sign=-1)"}),
        (BASE, {"rule": "multi-krum(m=None)"}),
        (BASE, {"rule": vg.MultiKrum(f=BASE.byzantine)}),
        (replace(BASE, rule="median(even=lower)"), {"profile": "described", "rule": "median(even='lower')"}),
        (BASE, {"learning_rate": ((0, 0.1),)}),
        (BASE, {"absent": "dropped"}),  # nobody is
        (BASE, {"clients": BASE.workers}),
        (BASE, {"order": "honest-first"}),  # it matters to none of this package's own
        (BASE, {"learning_rate": "0.1,50:0.1"}),  # a piece that changes nothing
        (BASE, {"attack": " little( factor = 1.5 )"}),
        (replace(BASE, attack="little(factor=2.0)"), {"attack": "little(factor=2)"}),
        (replace(BASE, attack=None), {"real_byzantine": 0}),
        (BASE, {"rule": "multi-krum(f=2)", "pre": ()}),
        (replace(BASE, pre="nnm"), {"pre": "nnm(f=2)"}),
        (BASE, {"model": "fully-connected(hidden=100)"}),
        (replace(BASE, dataset="synthetic"), {"dataset": "synthetic(classes=10, shape=(1,8,8))"}),
        (replace(BASE, partition="dirichlet"), {"partition": "dirichlet(alpha=0.5)"}),
        (replace(BASE, partition="similarity(gamma=1.0)"), {"partition": data.Similarity(1)}),
    ],
)
def test_settings_that_mean_the_same_run_have_the_same_digest_and_name(
    one: vg.Experiment, other: dict[str, Any]
) -> None:
    """So they have the same folder."""
    assert replace(one, **other).digest == one.digest
    assert replace(one, **other).name == one.name


def test_the_name_says_what_it_is() -> None:
    e = vg.Experiment(
        dataset="fashion-mnist", workers=51, byzantine=24, real_byzantine=10, rule="median(even='lower')", pre="nnm",
        attack="empire(factor=2.5)", momentum=0.99, momentum_at="server", nesterov=True, seed=7, profile="published",
        learning_rate=((0, 0.02), (8000, 0.004)),
    )  # fmt: skip
    assert e.name == (
        "fashion-mnist-fully-connected-nnm-median_even=_lower-empire_factor=2.5-n51-f24-real10-server0.99-nesterov-"
        "lr0.02...-published-seed7"
    )
    own = vg.Experiment(partition="dirichlet(alpha=0.1)", data_hash="0123456789abcdef")
    assert own.name == (
        "digits-data01234567-fully-connected-multi-krum-no-attack-n15-f3-worker0.9-lr0.1-dirichlet_alpha=0.1-seed1"
    )
    assert "no-momentum" in vg.Experiment(momentum=0).name


def test_the_algorithm_of_the_settings() -> None:
    base: dict[str, Any] = {"workers": 11, "byzantine": 2, "clip": 2.0, "momentum": 0.9, "rule": "median"}
    clip, momentum = vg.Clip(2.0), vg.Momentum(0.9)
    assert vg.Experiment(**base).make_algorithm() == vg.Algorithm((clip, momentum), rule=vg.Median(2))
    assert vg.Experiment(**base, momentum_at="server").make_algorithm() == vg.Algorithm(
        (clip,), rule=vg.Median(2), server=(momentum,)
    )
    assert vg.Experiment(**base, momentum_at="shared", nesterov=True, pre="nnm").make_algorithm() == vg.Algorithm(
        (clip, vg.SharedMomentum(0.9, nesterov=True)), (vg.NearestNeighborMixing(2),), vg.Median(2)
    )
    assert vg.Experiment(**base, profile="published").make_algorithm() == vg.Algorithm(
        (vg.Clip(2.0, "unit"), momentum), rule=vg.published("median", 2)
    )
    assert vg.Experiment(**base | {"clip": None, "momentum": 0}).make_algorithm() == vg.Algorithm(rule=vg.Median(2))


def test_attackers() -> None:
    assert vg.Experiment(byzantine=3).attackers == 0  # nobody attacks without an attack
    assert vg.Experiment(byzantine=3, attack="little").attackers == 3
    assert vg.Experiment(byzantine=3, attack="little", real_byzantine=5).attackers == 5
    assert vg.Experiment(byzantine=3, attack="little", real_byzantine=0).honest == 15


def test_piecewise_learning_rates() -> None:
    e = vg.Experiment(learning_rate="0.02,8000:0.004, 16000:0.0008")  # type: ignore[arg-type]
    assert e.learning_rate == ((0, 0.02), (8000, 0.004), (16000, 0.0008))
    assert [e.rate(step) for step in (0, 7999, 8000, 15999, 16000, 10**9)] == [0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    assert vg.Experiment(learning_rate=0.5).rate(10**9) == 0.5


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"rule": "medain"}, "rule: unknown rule 'medain'. Did you mean 'median'? Known: average, "),
        ({"pre": ("nmn",)}, "pre: unknown mixing 'nmn'. Did you mean 'nnm'? "),
        ({"attack": "litle"}, "attack: unknown attack 'litle'. Did you mean 'little'? "),
        ({"attack": 3}, "attack: must be a valid string, got 3."),
        ({"model": "cnnn"}, "model: unknown model 'cnnn'. Did you mean 'cnn'? "),
        ({"dataset": "fashion_mnist"}, "dataset: unknown dataset 'fashion_mnist'. Did you mean 'fashion-mnist'? "),
        ({"partition": "dirichelt"}, "partition: unknown partition 'dirichelt'. Did you mean 'dirichlet'? "),
        ({"rule": "median(evn='mid')"}, "rule: median: unknown option 'evn'. Did you mean 'even'? "),
        ({"model": "linear(x=1)"}, "model: linear takes no options."),
        ({"dataset": "synthetic(clases=3)"}, "dataset: synthetic: unknown option 'clases'. Did you mean 'classes'? "),
        ({"workers": 6, "byzantine": 3, "rule": "median"},
         "workers: Median(f=3) needs n >= 2f + 1 = 7 vectors, got 6."),
        ({"workers": 8, "byzantine": 3, "rule": "average", "pre": ("nnm",), "attack": "little", "real_byzantine": 8},
         "real_byzantine: at least one of the 8 workers must be honest, got 8 that attack."),
        ({"real_byzantine": 3}, "attack: 3 workers are to attack (real_byzantine) and no attack is named."),
        ({"steps": -1}, "steps: must be greater than or equal to 0, got -1."),
        ({"steps": 1.5}, "steps: must be a valid integer"),
        ({"workers": 0}, "workers: must be greater than or equal to 1, got 0."),
        ({"workers": "many"}, "workers: must be a valid integer"),
        ({"byzantine": -1}, "byzantine: must be greater than or equal to 0, got -1."),
        ({"learning_rate": float("nan")}, "learning_rate: must be a number >= 0, or pieces"),
        ({"learning_rate": float("inf")}, "learning_rate: must be a number >= 0, or pieces"),
        ({"learning_rate": -0.1}, "learning_rate: must be a number >= 0, or pieces"),
        ({"learning_rate": "5:0.1"},
         "learning_rate: pieces must start at step 0 and go up, as in 0.02,8000:0.004, got steps [5]."),
        ({"learning_rate": ((0, 0.1), (9, 0.2), (3, 0.1))},
         "learning_rate: pieces must start at step 0 and go up, as in 0.02,8000:0.004, got steps [0, 9, 3]."),
        ({"learning_rate": ()},
         "learning_rate: pieces must start at step 0 and go up, as in 0.02,8000:0.004, got steps []."),
        ({"momentum": 1.0}, "momentum: must be less than 1, got 1.0."),
        ({"momentum": float("nan")}, "momentum: must be"),
        ({"dampening": 1.0}, "dampening: must be less than 1, got 1.0."),
        ({"momentum_at": "workers"}, "momentum_at: must be 'worker', 'server', 'shared' or 'adaptive', got 'workers'."),
        ({"clip": 0}, "clip: must be greater than 0, got 0."),
        ({"clip": float("inf")}, "clip: must be a finite number, got inf."),
        ({"l2": float("nan")}, "l2: must be"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, got -1."),
        ({"seed": 2**63}, "seed: must be less than 9223372036854775808, got 9223372036854775808."),
        ({"device": "cup"}, "device: 'cup' is no device, such as cpu, cuda or cuda:1."),
        ({"device": "cuda:300"}, "device: 'cuda:300' is no device, such as cpu, cuda or cuda:1."),
        ({"device": "cpu:1"}, "device: 'cpu:1' is no device: there is one, cpu, without a number."),
        ({"device": torch.device("cpu", 0)}, "device: 'cpu:0' is no device: there is one, cpu, without a number."),
        ({"device": "cuda:x"}, "device: 'cuda:x' is no device, such as cpu, cuda or cuda:1."),
        ({"device": ""}, "device: '' is no device, such as cpu, cuda or cuda:1."),
        ({"device": "meta"}, "device: 'meta' is no device, such as cpu, cuda or cuda:1."),
        ({"profile": "published", "partition": "extreme"},
         "partition: in the published profile all workers draw from one stream of the data, got 'extreme'; use iid, "),
        ({"workers": 5, "byzantine": 5, "rule": "average", "attack": "little"},
         "byzantine: at least one of the 5 workers must be honest, got 5 that attack"),
        ({"workers": 5, "byzantine": 6, "rule": "average", "attack": "little"},
         "byzantine: at least one of the 5 workers must be honest, got 6 that attack"),
        ({"dataset": "mnist(folder='/somewhere')"}, "dataset: mnist takes no options."),
        ({"dataset": "cifar-10(download=False)"}, "dataset: cifar-10 takes no options."),
        ({"model": "linear(classes=3)"}, "model: linear takes no options."),
        ({"model": "fully-connected(shape=(1,2,3))"}, "model: fully-connected: unknown option 'shape'."),
        ({"data_hash": "xyz"}, "data_hash: must "),
        ({"profile": "publish"}, "profile: must be 'described' or 'published', got 'publish'."),
        ({"profile": "published", "rule": "medoid"}, "rule: unknown rule with published conventions 'medoid'."),
        ({"dtype": "float16"}, "dtype: must be 'float32' or 'float64', got 'float16'."),
        ({"attack": "little(sign=2)"}, "attack: Little needs sign -1 or 1, got 2."),
        ({"partition": "dirichlet(alpha=0)"}, "partition: Dirichlet needs a finite alpha > 0, got 0."),
        ({"rule": 3}, "rule: must be a valid string, got 3."),
    ],
)  # fmt: skip
def test_each_fault_in_one_line(settings: dict[str, Any], start: str) -> None:
    faults = faults_of(**settings)
    assert len(faults) == 1, faults
    assert faults[0].startswith(start)
    assert "\n" not in faults[0]


WHOLE = (
    "workers", "byzantine", "real_byzantine", "batch_size", "steps", "evaluate_every", "seed", "clients",
    "attackers_change", "local_steps",
)  # fmt: skip
REAL = ("momentum", "dampening", "clip", "learning_rate", "l2", "validation", "cap")
TRUTHS = ("nesterov", "measure", "autotune")


def test_every_number_and_truth_value_is_among_them() -> None:
    plain = [f.name for f in fields(vg.Experiment) if type(f.default) in (int, float, bool)] + [
        "real_byzantine",
        "clients",
        "cap",
    ]
    assert sorted(plain) == sorted(WHOLE + REAL + TRUTHS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in WHOLE + REAL for value in (True, False, np.True_, torch.tensor(True), [1], b"1")),
        *((name, value) for name in WHOLE for value in (1.0, np.float64(1), torch.tensor(1.0), "1.5", "true")),
        *((name, value) for name in TRUTHS for value in (1, 0, 1.0, np.int64(1), None, "2", b"true")),
        *(("learning_rate", value) for value in ([(True, 0.1)], [(False, 0.1)], [(0, True)], [(0.0, 0.1)])),
    ],
)  # fmt: skip
def test_truth_values_are_no_numbers_and_numbers_no_truth_values(name: str, value: Any) -> None:
    faults = faults_of(**{name: value})
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"{name}: must ")
    assert "\n" not in faults[0]


@pytest.mark.parametrize("name", WHOLE + REAL)
@pytest.mark.parametrize("value", ["true", "false"])
def test_truth_values_in_files_are_no_numbers(name: str, value: str) -> None:
    for read, text in ((vg.Experiment.from_json, f'{{"{name}": {value}}}'),
                       (vg.Experiment.from_toml, f"{name} = {value}")):  # fmt: skip
        with pytest.raises(vg.ConfigurationError) as error:
            read(text)
        assert len(error.value.faults) == 1
        assert error.value.faults[0].startswith(f"{name}: must ")


@pytest.mark.parametrize("name", WHOLE + REAL + TRUTHS)
def test_settings_may_be_text(name: str) -> None:
    e = vg.Experiment(attack="little")
    value = getattr(e, name) if name != "real_byzantine" else 2
    read = vg.Experiment(attack="little", **{name: str(value)})
    assert (getattr(read, name), type(getattr(read, name))) == (value, type(value))


def test_numbers_of_numpy_are_numbers() -> None:
    e = vg.Experiment(workers=np.int64(11), byzantine=np.int32(2), clip=np.float32(0.5), measure=np.False_)  # type: ignore[arg-type]
    assert e == vg.Experiment(workers=11, byzantine=2, clip=0.5, measure=False)
    assert [type(value) for value in (e.workers, e.clip, e.measure)] == [int, float, bool]


@pytest.mark.parametrize(
    "options",
    ["shape=(0,8,8)", "shape=(1,-8,8)", "shape=(1,8,0)", "classes=0", "classes=-1", "train=0", "test=0", "test=-5",
     "seed=-1", "seed=2**70", "train=99999999999", "classes=99999999999"],
)  # fmt: skip
def test_sizes_of_made_up_data_that_are_none(options: str) -> None:
    faults = faults_of(dataset=f"synthetic({options.replace('2**70', str(2**70))})")
    assert len(faults) == 1
    assert faults[0].startswith("dataset: synthetic: ")
    assert "\n" not in faults[0]


@pytest.mark.parametrize("name", ["fully-connected", "cnn"])
@pytest.mark.parametrize("hidden", [0, -1])
def test_a_hidden_layer_of_no_width(name: str, hidden: int, digits: data.Dataset) -> None:
    with pytest.raises(ValueError, match=f"hidden must be at least 1, got {hidden}"):
        vg.run(vg.Experiment(model=f"{name}(hidden={hidden})", steps=1), dataset=digits)


def test_all_faults_at_once() -> None:
    faults = faults_of(
        dataset="digit", model="cnnn", workers=0, byzantine=-1, rule="medain", pre=("nmn",), attack="litle", momentum=2,
        steps=-1, learning_rate=float("nan"), device="cup", partition="idd", profile="x", seed=-1,
    )  # fmt: skip
    named = [fault.split(":")[0] for fault in faults]
    assert sorted(named) == sorted(
        ["dataset", "model", "workers", "byzantine", "rule", "pre", "attack", "momentum", "steps", "learning_rate",
         "device", "partition", "profile", "seed"]
    )  # fmt: skip
    with pytest.raises(vg.ConfigurationError) as error:
        vg.Experiment(steps=-1, workers=0)
    assert str(error.value).splitlines()[0] == "2 faults:"
    assert all(line.startswith("  - ") for line in str(error.value).splitlines()[1:])
    back = copy.copy(error.value)  # as it comes from another process
    assert (str(back), back.faults) == (str(error.value), error.value.faults)


def test_unknown_settings_are_faults_like_any_other() -> None:
    with pytest.raises(vg.ConfigurationError) as error:
        vg.Experiment.from_dict({"worker": 3, "zzz": 1, "steps": -1})
    assert [fault.split("?")[0] for fault in error.value.faults[:1]] == [
        "unknown setting 'worker'. Did you mean 'workers'"
    ]
    assert error.value.faults[1].startswith("unknown setting 'zzz'. Known: dataset, model, workers")
    assert error.value.faults[2].startswith("steps: ")


@pytest.mark.parametrize(
    ("text", "toml", "message"),
    [
        ("{", False, "^not JSON: "),
        ("[1]", False, "^an experiment is a JSON object, got list.$"),
        ("steps = ", True, "^not TOML: it ends within a value"),
        ('pre = ["nnm"', True, "^not TOML: it ends within a value"),
        ('rule = "median', True, "^not TOML: it ends within a value"),
        ("steps = 1\nsteps = 2", True, "^not TOML: "),
    ],
)
def test_texts_that_hold_no_experiment(text: str, toml: bool, message: str) -> None:
    with pytest.raises(vg.ConfigurationError, match=message):
        (vg.Experiment.from_toml if toml else vg.Experiment.from_json)(text)


def test_an_experiment_is_frozen() -> None:
    with pytest.raises(AttributeError):
        BASE.steps = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        vg.Experiment("digits")  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------- run folders


def test_the_files_of_a_run(tmp_path: Path, digits: data.Dataset) -> None:
    calls: list[tuple[int, Any]] = []

    def progress(done: int, newest: Any) -> None:
        calls.append((done, newest.step))

    result = vg.run(SMALL, out=tmp_path, dataset=digits, progress=progress)
    folder = tmp_path / f"{SMALL.name}-{SMALL.digest}"
    assert result.folder == folder
    assert sorted(files(tmp_path)) == sorted(
        f"{folder.name}/{name}"
        for name in (
            "environment.json", "evaluations.csv", "experiment.json", "metrics.csv", "result.json", "state.pt",
            "workers.bin",
        )
    )  # fmt: skip
    assert vg.Experiment.from_json((folder / "experiment.json").read_text()) == SMALL
    metrics = (folder / "metrics.csv").read_text().splitlines()
    assert metrics[0] == ",".join(COLUMNS)
    assert [line.split(",")[0] for line in metrics[1:]] == ["0", "1", "2"]
    evaluations = (folder / "evaluations.csv").read_text().splitlines()
    assert evaluations[0] == "step,accuracy,loss"
    assert [line.split(",")[0] for line in evaluations[1:]] == ["0", "2", "3"]  # the first, every second, the last
    assert calls == [(1, 0), (2, 0), (3, 2), (3, 3)]

    summary = json.loads((folder / "result.json").read_text())
    assert summary["max_accuracy"] == max(e.accuracy for e in result.evaluations)
    assert summary["final_accuracy"] == result.evaluations[-1].accuracy == result.final_accuracy
    assert (summary["steps"], summary["stopped"], summary["digest"]) == (3, None, SMALL.digest)

    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["step"] == 3
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    torch.nn.utils.vector_to_parameters(state["parameters"], model.parameters())
    inputs = data.prepare(digits, digits.test.images)
    accuracy = (model(inputs).argmax(1) == digits.test.labels).double().mean().item()
    assert accuracy == pytest.approx(result.final_accuracy, abs=2 / len(digits.test))


def test_a_complete_run_is_answered_without_running_again(tmp_path: Path, digits: data.Dataset) -> None:
    first = vg.run(SMALL, out=tmp_path, dataset=digits)
    kept = files(tmp_path)

    def never(done: int, newest: Any) -> None:
        raise AssertionError("it ran again")

    again = vg.run(SMALL, out=tmp_path, dataset=digits, progress=never)
    assert files(tmp_path) == kept
    assert again.experiment == SMALL
    assert again.folder == first.folder
    assert [m.row() for m in again.measures] == [m.row() for m in first.measures]
    assert [(e.step, round(e.accuracy, 8)) for e in again.evaluations] == [
        (e.step, round(e.accuracy, 8)) for e in first.evaluations
    ]
    assert again.max_accuracy == pytest.approx(first.max_accuracy, abs=1e-8)


def test_an_incomplete_run_is_run_again(tmp_path: Path, digits: data.Dataset) -> None:
    folder = vg.run(SMALL, out=tmp_path, dataset=digits).folder
    assert folder is not None
    kept = files(folder)
    (folder / "result.json").unlink()
    (folder / "metrics.csv").write_text("half a li")
    with pytest.raises(ValueError, match=r"holds no complete run: result\.json is missing"):
        vg.read(folder)
    vg.run(SMALL, out=tmp_path, dataset=digits)
    again = files(folder)
    assert {k: v for k, v in again.items() if k.endswith(".csv")} == {
        k: v for k, v in kept.items() if k.endswith(".csv")
    }


@pytest.mark.parametrize("name", ["result.json", "experiment.json", "metrics.csv", "evaluations.csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"step,accuracy,loss\n1,a,b\n"])
def test_a_damaged_folder_is_one_clear_error(tmp_path: Path, digits: data.Dataset, name: str, content: bytes) -> None:
    folder = vg.run(replace(SMALL, steps=1), out=tmp_path, dataset=digits).folder
    assert folder is not None
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder))} cannot be read as a run: "):
        vg.read(folder)


def test_result_json_comes_last(tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run is cut off at any moment before, there is none."""
    order: list[str] = []
    plain = os.replace

    def spy(source: Any, target: Any) -> None:
        assert not Path(target).exists()
        order.append(Path(target).name)
        plain(source, target)

    monkeypatch.setattr(os, "replace", spy)
    vg.run(SMALL, out=tmp_path, dataset=digits)
    assert order[-1] == "result.json"

    def interrupt(done: int, newest: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(replace(SMALL, seed=2), out=tmp_path, dataset=digits, progress=interrupt)
    assert len(list(tmp_path.rglob("result.json"))) == 1


def test_the_same_command_twice_gives_the_same_bytes(tmp_path: Path, digits: data.Dataset) -> None:
    """In two folders, on two threads, after other runs, with and without measures."""
    e = replace(SMALL, attack="gaussian", rule="median", nesterov=True, clip=2.0, l2=1e-3)
    former = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        one = vg.run(e, out=tmp_path / "one", dataset=digits).folder
        vg.run(replace(e, seed=9), dataset=digits)
        torch.manual_seed(123)
        two = vg.run(e, out=tmp_path / "two", dataset=digits).folder
        unmeasured = vg.run(replace(e, measure=False), out=tmp_path / "three", dataset=digits)
    finally:
        torch.set_num_threads(former)
    assert one is not None
    assert two is not None
    assert unmeasured.folder is not None
    for name in ("metrics.csv", "evaluations.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert (one / "evaluations.csv").read_bytes() == (unmeasured.folder / "evaluations.csv").read_bytes()
    assert all(row.honest_norm is None for row in unmeasured.measures)
    assert kernels.own_threads() == 1  # and the threads were given back


def test_evaluations_do_not_depend_on_how_often_there_are_some(digits: data.Dataset) -> None:
    often = {e.step: e.accuracy for e in vg.run(replace(SMALL, evaluate_every=1), dataset=digits).evaluations}
    rare = {e.step: e.accuracy for e in vg.run(replace(SMALL, evaluate_every=0), dataset=digits).evaluations}
    assert list(often) == [0, 1, 2, 3]
    assert rare == {step: often[step] for step in (0, 3)}


def test_no_steps_is_one_evaluation(tmp_path: Path, digits: data.Dataset) -> None:
    result = vg.run(replace(SMALL, steps=0), out=tmp_path, dataset=digits)
    assert [e.step for e in result.evaluations] == [0]
    assert result.measures == []
    assert result.folder is not None
    assert vg.read(result.folder).measures == []


# --------------------------------------------------------------------------------------------- what training does

PLACES = ("worker", "server", "shared")


FIRST_RULES = ("average", "krum", "multi-krum", "median", "trimmed-mean", "phocas", "meamed", "bulyan")
FIRST_ATTACKS = ("little", "empire", "sign-flip", "gaussian", "zero", "nan", "inf")


@pytest.mark.parametrize("rule", [name for name, rule in vg.RULES.items() if not rule.needs_root])
def test_every_rule_under_attack_and_momentum_anywhere(rule: str, digits: data.Dataset) -> None:
    """The rules and attacks of the core in all combinations; those that came later with two attacks."""
    e = vg.Experiment(rule=rule, workers=11, byzantine=2, steps=3, batch_size=1, evaluate_every=0, model="linear")
    for attack in FIRST_ATTACKS if rule in FIRST_RULES else ("little", "nan"):
        if rule == "average" and attack in ("nan", "inf"):
            continue  # tolerates nothing; has a test of its own
        for place in PLACES:
            result = vg.run(replace(e, attack=attack, momentum_at=place), dataset=digits)
            assert result.stopped is None, (attack, place)
            assert len(result.measures) == 3
            assert all(m.aggregate_norm is not None and m.aggregate_norm >= 0 for m in result.measures)


@pytest.mark.parametrize("mixing", vg.MIXINGS)
def test_every_mixing(mixing: str, digits: data.Dataset) -> None:
    spec = {"clipping": "clipping(c=1.0)"}.get(mixing, mixing)
    e = vg.Experiment(pre=spec, rule="median", workers=15, byzantine=2, steps=2, batch_size=1, attack="little")  # type: ignore[arg-type]
    assert vg.run(e, dataset=digits).stopped is None


def test_nan_with_the_average_stops_with_a_reason(tmp_path: Path, digits: data.Dataset) -> None:
    e = replace(SMALL, rule="average", attack="nan")
    result = vg.run(e, out=tmp_path, dataset=digits)
    assert result.stopped == "step 0: the parameters are no longer finite."
    assert result.folder is not None
    summary = json.loads((result.folder / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert summary["stopped"] == result.stopped
    assert summary["final_loss"] is None  # NaN is no JSON
    again = vg.read(result.folder)
    assert again.stopped == result.stopped
    assert [e.step for e in again.evaluations] == [0, 1]
    assert again.max_accuracy == pytest.approx(result.max_accuracy, abs=1e-8)
    assert len(again.measures) == 1


@pytest.mark.parametrize("attack", ["nan", "inf"])
@pytest.mark.parametrize("rule", ["multi-krum", "median", "bulyan"])
def test_more_faulty_vectors_than_tolerated_stop_with_a_reason(
    tmp_path: Path, digits: data.Dataset, rule: str, attack: str
) -> None:
    result = vg.run(replace(SMALL, rule=rule, attack=attack, real_byzantine=3), out=tmp_path, dataset=digits)
    assert result.stopped is not None
    assert result.stopped.startswith("step 0: ")
    assert "tolerates 2 vectors with NaN or infinity, got 3" in result.stopped
    assert result.folder is not None
    assert vg.read(result.folder).stopped == result.stopped
    assert (result.folder / "state.pt").exists()
    within = vg.run(replace(SMALL, rule=rule, attack=attack), dataset=digits)
    assert within.stopped is None


def test_training_learns_and_momentum_at_the_worker_helps(digits: data.Dataset) -> None:
    """The paper in one assertion: under A Little Is Enough the place of momentum decides."""
    e = vg.Experiment(
        workers=15, byzantine=3, rule="median", attack="little", steps=100, batch_size=2, clip=2.0, measure=False
    )
    worker, server = (
        vg.run(replace(e, momentum_at=place), dataset=digits).max_accuracy for place in ("worker", "server")
    )
    assert worker > server + 0.1
    assert vg.run(replace(e, attack=None, rule="average"), dataset=digits).max_accuracy > 0.85


@pytest.mark.parametrize(
    "spec",
    ["iid", "extreme", "dirichlet(alpha=0.1)", "similarity(gamma=0.5)", "dirichlet-mixture(alpha=0.3)", "shards",
     "classes(per_worker=3)", "long-tail(imbalance=20)", "long-tail(alpha=0.5)", "quantity(alpha=0.3)"],
)  # fmt: skip
def test_partitions(spec: str, digits: data.Dataset) -> None:
    """Each worker draws from its own part, at every step."""
    e = replace(SMALL, partition=spec, batch_size=40)
    simulation, _ = building.build(e, digits)
    labels = torch.cat([simulation.batches(step).labels for step in range(4)], dim=1)
    seen = [set(row.tolist()) for row in labels]
    if spec == "extreme":
        assert max(len(s) for s in seen) <= 3
    if spec == "classes(per_worker=3)":
        assert {len(s) for s in seen} == {3}
    if spec == "iid":
        assert min(len(s) for s in seen) >= 9
    assert len({tuple(row.tolist()) for row in labels}) == e.honest
    assert vg.run(e, dataset=digits).stopped is None


def test_worker_gradients_do_not_depend_on_how_many_workers_there_are(digits: data.Dataset) -> None:
    """iid draws of worker i are those of worker i, with more beside it."""
    few, many = (building.build(replace(SMALL, workers=n, rule="average"), digits)[0] for n in (7, 11))
    assert torch.equal(few.batches(5).inputs, many.batches(5).inputs[:7])


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is missing")
def test_both_profiles_on_fashion_mnist(tmp_path: Path) -> None:
    """Real data, the paper's network; the published profile draws from one stream and mirrors test images."""
    dataset = data.fashion_mnist(download=False)
    found = {}
    for profile in ("described", "published"):
        e = vg.Experiment(
            dataset="fashion-mnist", workers=11, byzantine=2, rule="bulyan", attack="empire", momentum_at="worker",
            clip=2.0, l2=1e-4, batch_size=83, steps=3, learning_rate=0.5, evaluate_every=2, profile=profile,  # type: ignore[arg-type]
        )  # fmt: skip
        result = vg.run(e, out=tmp_path, dataset=dataset)
        assert result.stopped is None
        assert result.final_accuracy > result.evaluations[0].accuracy
        assert [m.points for m in result.measures] == [0, 9 * 83, 2 * 9 * 83]
        found[profile] = [e.accuracy for e in result.evaluations]
    assert found["described"] != found["published"]

    published = building.build(vg.Experiment(workers=8, byzantine=2, profile="published", batch_size=7000), dataset)[0]
    first, second = published.batches(0), published.batches(1)
    # 60,000 images are 8 batches of 7,000 and one of 4,000: at step 1 worker 0 has the short one.
    assert first.weights is None
    assert second.weights is not None
    assert (second.weights > 0).sum(1).tolist() == [4000] + [7000] * 7
    assert second.points(len(second.labels)) == 53_000
    torch.testing.assert_close(second.weights.sum(1), torch.ones(8))
    counts = torch.bincount(torch.cat([first.labels.reshape(-1), second.labels[0, :4000]]))
    assert counts.tolist() == [6000] * 10  # an epoch holds every image once


# ------------------------------------------------------------------------------------------ nothing left behind


def test_a_folder_that_cannot_be_written(tmp_path: Path, digits: data.Dataset) -> None:
    """Root may write nearly anywhere, so: below a file, and in /proc."""
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "runs", tmp_path / "file"):
        with pytest.raises(OSError, match="is not a folder"):
            vg.run(SMALL, out=out, dataset=digits)
    if Path("/proc").is_dir():
        with pytest.raises(OSError, match="cannot be written"):
            vg.run(SMALL, out="/proc/runs", dataset=digits)
    assert files(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("moment", ["training", "checkpoint", "result"])
@pytest.mark.parametrize("out", ["runs", "new/deep/runs"])
def test_an_error_on_the_way_leaves_nothing_behind(
    tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch, moment: str, out: str
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    def fail(done: int, newest: Any) -> None:
        full()

    (tmp_path / "runs").mkdir()
    if moment == "checkpoint":
        monkeypatch.setattr(torch, "save", full)
    if moment == "result":
        plain = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: full() if Path(b).name == "result.json" else plain(a, b))
    with pytest.raises(OSError, match="No space left"):
        vg.run(SMALL, out=tmp_path / out, dataset=digits, progress=fail if moment == "training" else None)
    assert [p.name for p in tmp_path.rglob("*")] == ["runs"]  # which was there before
    assert kernels.own_threads() == 1


def test_missing_data_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_URLS", dict.fromkeys(readers._URLS, "http://127.0.0.1:9/"))
    (tmp_path / "data").mkdir()
    with pytest.raises(vg.DataError, match=r"^mnist: "):
        vg.run(replace(SMALL, dataset="mnist"), out=tmp_path / "runs", data_folder=tmp_path / "data")
    assert not (tmp_path / "runs").exists()
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "fully-connected(hidden=-5)"},  # torch's own complaint
        {"model": "cnn", "dataset": "synthetic(shape=(1, 3, 3))"},  # too small to be halved twice
        {"model": "wide-resnet(depth=27)"},
        {"partition": "similarity(gamma=0.5)", "dataset": "synthetic(train=4, test=4)", "rule": "average"},
    ],
)
def test_what_only_the_data_shows_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"hidden|depth|4 x 4|example per worker"):
        vg.run(replace(SMALL, **settings), out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert kernels.own_threads() == 1


def test_the_data_folder_is_the_callers_to_choose(tmp_path: Path) -> None:
    with pytest.raises(vg.DataError, match=re.escape(str(tmp_path))):
        building.open_dataset(replace(SMALL, dataset="cifar-10"), tmp_path, download=False)


@pytest.mark.parametrize(
    ("settings", "meant"), [({"lr": 0.1}, "learning_rate"), ({"n": 5}, "workers"), ({"rul": "krum"}, "rule")]
)
def test_settings_that_there_are_not(settings: dict[str, Any], meant: str) -> None:
    with pytest.raises(TypeError, match=f"unknown setting '{next(iter(settings))}'. Did you mean '{meant}'"):
        vg.Experiment(**settings)
    with pytest.raises(vg.ConfigurationError, match=f"Did you mean '{meant}'"):
        vg.Experiment.from_dict(settings)


def test_settings_have_names() -> None:
    with pytest.raises(TypeError, match="takes its settings by name"):
        vg.Experiment("digits")  # pyright: ignore[reportCallIssue]


def test_type_checkers_know_every_setting() -> None:
    """The constructor that they see is written out, since it takes more than fields keep."""
    tree = ast.parse(Path(module.__file__).read_text())
    made = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    seen = next(node for node in made if any(argument.arg == "dataset" for argument in node.args.kwonlyargs))
    assert [argument.arg for argument in seen.args.kwonlyargs] == [field.name for field in fields(vg.Experiment)]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"pre": vg.NearestNeighborMixing(f=3)}, {"pre": ("nnm",)}),
        ({"pre": None}, {"pre": ()}),
        ({"pre": ["nnm", vg.AdaptiveClipping(f=3)]}, {"pre": ("nnm", "arc")}),
        ({"rule": vg.Median(f=3)}, {"rule": "median"}),
        ({"rule": vg.Median(f=2)}, {"rule": "median(f=2)"}),
        ({"attack": vg.Little(2.0)}, {"attack": "little(factor=2.0)"}),
        ({"attack": vg.WorstCase(directions=(vg.Little(2.0), "mimic"))}, None),
        ({"partition": data.Dirichlet(alpha=0.1)}, {"partition": "dirichlet(alpha=0.1)"}),
        ({"partition": data.IID()}, {"partition": "iid"}),
        ({"learning_rate": [(0, 0.1), (50, 0.01)]}, {"learning_rate": ((0, 0.1), (50, 0.01))}),
    ],
)
def test_settings_as_they_may_be_given(given: dict[str, Any], kept: dict[str, Any] | None) -> None:
    e = vg.Experiment(**given)
    if kept is not None:
        assert e == vg.Experiment(**kept)
    assert vg.Experiment.from_json(e.to_json()) == e
    if "attack" in given:
        assert e.make_attack() == given["attack"]


def test_a_mistake_in_somebodys_own_function_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be told from its signature is one line."""

    def broken(shape: tuple[int, int, int], classes: int, width: int = 4) -> torch.nn.Module:
        return torch.nn.Linear("wide")  # type: ignore[arg-type, call-arg]

    def plain(shape, classes, width=4):  # type: ignore[no-untyped-def]
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, classes))

    def none(shape: Any, classes: Any) -> None:
        return None

    for name, function in (("broken", broken), ("plain", plain), ("none", none)):
        monkeypatch.setitem(vg.MODELS, name, function)
    monkeypatch.setitem(vg.DATASETS, "broken", lambda: [][1])
    with pytest.raises(TypeError, match="missing 1 required positional") as error:
        vg.run(replace(SMALL, model="broken"))
    assert error.traceback[-1].name == "broken"
    with pytest.raises(IndexError):
        vg.run(replace(SMALL, dataset="broken"))
    assert faults_of(model="broken(width='x')") == ["model: broken: width must be a valid integer, got 'x'."]
    assert faults_of(model="broken(with=3)")[0].startswith("model: ")
    assert faults_of(model="plain(wide=3)") == [
        "model: plain: unknown option 'wide'. Did you mean 'width'? Known: width."
    ]
    assert vg.run(replace(SMALL, model="plain(width=2)")).model()[1].out_features == 2  # type: ignore[index]
    with pytest.raises(ValueError, match=r"model: none must make a torch\.nn\.Module, got nothing"):
        vg.run(replace(SMALL, model="none"))


def test_neither_torchs_globals_nor_pythons_count_or_move(digits: data.Dataset) -> None:
    """Generators, default type, gradient mode and threads; for models with and without dropout."""
    import random

    import numpy as np

    for e in (replace(SMALL, attack="gaussian", rule="dnc", pre="bucketing"),
              replace(SMALL, model="cnn(hidden=3)", steps=1)):  # fmt: skip
        expected = [(x.accuracy, x.loss) for x in vg.run(e, dataset=digits).evaluations]
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        for change, undo in (
            (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
            (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
        ):
            change()
            try:
                found = vg.run(e, dataset=digits)
            finally:
                undo()
            assert [(x.accuracy, x.loss) for x in found.evaluations] == expected
        for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
            with mode:
                found = vg.run(e)
            assert [(x.accuracy, x.loss) for x in found.evaluations] == expected
        assert torch.equal(states[0], torch.get_rng_state())
        assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        assert states[2] == random.getstate()


@pytest.mark.slow
def test_runs_in_threads_are_runs_one_after_the_other(digits: data.Dataset) -> None:
    """While others draw from torch's generator; data of one's own in some of them."""
    other = replace(digits, train=replace(digits.train, images=digits.train.images.flip(-1)))
    tasks = [(replace(SMALL, seed=s, model=model), data) for s in (1, 2) for data in (digits, other, None)
             for model in ("fully-connected", "cnn(hidden=2)")]  # fmt: skip
    alone = [vg.run(e, dataset=dataset) for e, dataset in tasks]
    threads, stop = torch.get_num_threads(), threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(10)

    noise = threading.Thread(target=draw)
    noise.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda task: vg.run(task[0], dataset=task[1]), tasks))
    finally:
        stop.set()
        noise.join()
    for one, same in zip(alone, together, strict=True):
        assert [(x.accuracy, x.loss) for x in one.evaluations] == [(x.accuracy, x.loss) for x in same.evaluations]
        assert one.measures == same.measures
    assert torch.get_num_threads() == threads


def test_settings_that_nobody_chooses_are_not_offered() -> None:
    with pytest.raises(vg.ConfigurationError) as error:
        vg.Experiment.from_dict({"zzz": 1})
    with pytest.raises(TypeError) as keyword:
        vg.Experiment(zzz=1)  # type: ignore[call-arg]
    for message in (str(error.value), str(keyword.value)):
        assert ", measure, " in message
        assert "_hash" not in message


@pytest.mark.parametrize(
    ("table", "setting", "words"),
    [
        (vg.RULES, "rule", "rule, which is a class derived from General, Selecting or Coordinatewise"),
        (vg.MIXINGS, "pre", "mixing, which is a class derived from Mixing"),
        (vg.ATTACKS, "attack", "attack, which is a class derived from Attack"),
    ],
    ids=["rule", "mixing", "attack"],
)
def test_a_plain_function_in_a_table_is_refused(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, object], setting: str, words: str
) -> None:
    monkeypatch.setitem(table, "mine", lambda x: x.mean(0))
    with pytest.raises(vg.ConfigurationError, match=rf"^{setting}: mine is no {words}, got <function .*>\.$"):
        vg.Experiment.from_dict({setting: "mine"})


def test_classes_and_types_of_torch_are_names_too() -> None:
    said = vg.Experiment(
        rule=vg.Median,
        pre=[vg.NearestNeighborMixing],
        attack=vg.Empire,
        partition=vg.PARTITIONS["dirichlet"],  # type: ignore[arg-type]
        dtype=torch.float64,
        device=torch.device("cpu"),
        workers=11,
    )
    assert said == vg.Experiment(
        rule="median", pre="nnm", attack="empire", partition="dirichlet", dtype="float64", device="cpu", workers=11
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": lambda x: x.mean(0)}, "rule: must be a name or an object whose class derives from General"),
        ({"pre": lambda x: x}, "pre: must be a name or an object whose class derives from"),
        ({"attack": lambda x: x}, "attack: must be a name or an object whose class derives from"),
        ({"partition": lambda *given: []}, "partition: .* put it into a file"),
        ({"dataset": (torch.zeros(3, 2), [0, 1, 1])}, r"dataset: must be a name; hand data over to run\(\), as data"),
        ({"metrics": lambda outputs, labels: 0}, r"metrics: .* hand what has none over to run\(\), as metrics="),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_handed_to_the_wrong_place_is_told_where_to_go(settings: dict[str, object], words: str) -> None:
    with pytest.raises(vg.ConfigurationError, match=rf"^{words}") as error:
        vg.Experiment(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert "., got" not in str(error.value)
