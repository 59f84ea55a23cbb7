"""The simulator against other people's trajectories, and against torch.optim."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

import golden_conventions
import oracles
import varangian as vg
from varangian import kernels
from varangian.gradients import Batch, WorkerGradients
from varangian.simulate import Simulation

NAMES = {"average": "average", "krum": "multi-krum", "trmean": "trimmed-mean"}
PLACES = {"update": "server", "server": "shared", "worker": "worker"}


def algorithm_of(case: dict) -> vg.Algorithm:
    rule = vg.published(NAMES.get(case["rule"], case["rule"]), case["f"])
    worker = [] if case["clip"] is None else [vg.Clip(case["clip"], case["clip_mode"])]
    options = {"beta": 0.9, "nesterov": case["nesterov"]}
    place = PLACES[case["momentum_at"]]
    if place == "worker":
        worker.append(vg.Momentum(**options))
    if place == "shared":
        worker.append(vg.SharedMomentum(**options))
    return vg.Algorithm(tuple(worker), rule=rule, server=(vg.Momentum(**options),) if place == "server" else ())


@pytest.mark.parametrize(
    ("case", "expected"),
    list(golden_conventions.trajectories()),
    ids=lambda v: v["name"] if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("method", ["chain", "vmap", "loop"])
def test_golden_trajectories(case: dict, expected: np.ndarray, method: str) -> None:
    data = golden_conventions.batches()
    x, y = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"]).long()
    h = case["n"] - case["f"]
    model = nn.Sequential(nn.Linear(12, 5))
    gradients = WorkerGradients(model, method=method)
    gradients.adopt(torch.from_numpy(expected[0]).float())
    attack = {"none": None, "little": vg.Little(1.5), "empire": vg.Empire(1.1)}[case["attack"]]
    simulation = Simulation(
        gradients,
        lambda t: Batch(x[t * h : (t + 1) * h], y[t * h : (t + 1) * h]),
        algorithm_of(case),
        workers=case["n"],
        real_byzantine=0 if attack is None else case["f"],
        attack=attack,
        learning_rate=lambda t: 0.05 / (t // 10 * 10 / 20 + 1),
        momentum=0.9,
        l2=case.get("l2", 0.0),
        profile="published",
    )
    for t in range(30):
        np.testing.assert_allclose(simulation.parameters.numpy(), expected[t], rtol=0, atol=1e-5)
        simulation.step()
    np.testing.assert_allclose(simulation.parameters.numpy(), expected[30], rtol=0, atol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("profile", "l2_mode", "clip_mode"), [("described", "squared", "norm"), ("published", "norm", "unit")]
)
def test_l2_and_clip_and_the_look_ahead_together(
    profile: Literal["described", "published"],
    l2_mode: str,
    clip_mode: Literal["norm", "unit"],
    place: str,
    nesterov: bool,
) -> None:
    """No golden case has them all: the l2 term is taken where the gradient is, and clipped with it."""
    case = {"n": 11, "f": 4, "rule": "median", "attack": "little", "momentum_at": place, "nesterov": nesterov,
            "clip": 1.2, "clip_mode": clip_mode, "l2": 0.4}  # fmt: skip
    data = golden_conventions.batches()
    x, y = torch.from_numpy(data["x"]).double(), torch.from_numpy(data["y"]).long()
    gradients = WorkerGradients(nn.Sequential(nn.Linear(12, 5)).double())
    start = torch.linspace(-1, 1, 65, dtype=torch.float64)
    gradients.adopt(start)
    simulation = Simulation(
        gradients,
        lambda t: Batch(x[t * 7 : (t + 1) * 7], y[t * 7 : (t + 1) * 7]),
        algorithm_of(case),
        workers=11,
        real_byzantine=4,
        attack=vg.Little(1.5),
        learning_rate=lambda t: 0.05 / (t // 10 * 10 / 20 + 1),
        l2=0.4,
        profile=profile,
    )
    expected = oracles.trajectory(case, data, start.numpy(), steps=12, l2_mode=l2_mode)
    for t in range(12):
        np.testing.assert_allclose(simulation.parameters.numpy(), expected[t], rtol=1e-9, atol=1e-9)
        simulation.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("h", [1, 4])
@pytest.mark.parametrize(
    "stages", [(), (vg.Clip(0.8),), (vg.Momentum(0.9, 0.3),), (vg.Clip(0.8, "unit"), vg.Momentum(0.9))]
)
def test_the_worker_half_in_one_go_gives_the_same_bits(
    stages: tuple, h: int, nesterov: bool, dtype: torch.dtype
) -> None:
    d, random = 2500, torch.Generator().manual_seed(3)
    gradients, out = torch.randn(h, d, generator=random, dtype=dtype) / 50, torch.empty(h, d, dtype=dtype)
    gradients[0] *= 3  # longer than the bound
    point = torch.randn((h, d) if nesterov else (d,), generator=random, dtype=dtype)
    clip = next((stage for stage in stages if isinstance(stage, vg.Clip)), None)
    momentum = next((stage for stage in stages if isinstance(stage, vg.Momentum)), None)
    memory = None if momentum is None else torch.randn(h, d, generator=random, dtype=dtype)

    sampled = kernels.blend(1.0, gradients, 1e-2, point)
    if clip is not None:
        sampled, _ = clip(sampled)
    sent = sampled if momentum is None else momentum(sampled, memory)[0]
    if memory is not None:
        out = memory  # as in the simulator
    found = kernels.send_rows(
        gradients, 1e-2, point, None if clip is None else clip.scales, 0.7 if stages[:1] == (momentum,) else 1.0,
        0.9, memory, out, True,
    )  # fmt: skip
    assert torch.equal(out, sent)
    for got, wanted in zip(found, (sampled, sent), strict=True):
        assert got is not None
        for a, b in zip(got, kernels.mean_and_std(wanted), strict=True):
            assert torch.equal(a, b) or (h == 1 and torch.isnan(a).all() and torch.isnan(b).all())
