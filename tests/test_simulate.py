"""The simulator against other people's trajectories, and against torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import golden_conventions
import oracles
import varangian as vg
from varangian.core import kernels
from varangian.core.attacks import ComposedDefence
from varangian.simulation.gradients import Batch, WorkerGradients
from varangian.simulation.simulate import Simulation

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
        gradients, 1e-2, point, scale=None if clip is None else clip.scales,
        keep=0.7 if stages[:1] == (momentum,) else 1.0, beta=0.9, memory=memory, out=out, moments=True,
    )  # fmt: skip
    assert torch.equal(out, sent)
    for got, wanted in zip(found, (sampled, sent), strict=True):
        assert got is not None
        for a, b in zip(got, kernels.mean_and_std(wanted), strict=True):
            assert torch.equal(a, b) or (h == 1 and torch.isnan(a).all() and torch.isnan(b).all())


def small_simulation(algorithm: vg.Algorithm, attack: vg.Attack | None, f: int, measure: bool = True) -> Simulation:
    data = golden_conventions.batches()
    x, y = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"]).long()
    active = 11 if attack is not None and attack.poisons else 11 - f
    gradients = WorkerGradients(nn.Sequential(nn.Linear(12, 5)))
    gradients.adopt(torch.linspace(-1, 1, 65))

    def batches(t: int) -> Batch:
        rows = slice(t * active, (t + 1) * active)
        return Batch(x[rows], y[rows].clone())

    return Simulation(
        gradients, batches, algorithm, 11, real_byzantine=f, attack=attack, l2=0.1, measure=measure, task=vg.Task(5)
    )


@dataclass(frozen=True)
class Opposite(vg.LabelFlip):
    """What the published protocol would have sent, turned round and made longer."""

    in_place: bool = False

    def craft(self, seen: vg.Knowledge) -> Tensor:
        assert seen.poisoned is not None
        return seen.poisoned.mul_(-10) if self.in_place else seen.poisoned * -10


def test_what_is_crafted_is_not_what_the_workers_remember() -> None:
    """The momenta of workers of a data attack are those of gradients, whatever they send."""
    algorithm = vg.Algorithm((vg.Momentum(0.9),), rule=vg.Median(f=3))
    crafting, plain = (small_simulation(algorithm, attack, 3) for attack in (Opposite(), vg.LabelFlip()))
    for _ in range(3):
        at = plain.parameters.clone()
        crafting.parameters.copy_(at)  # gradients at the same points
        crafting.step()
        plain.step()
        assert torch.equal(crafting.state.worker[0], plain.state.worker[0])  # type: ignore[arg-type]
        assert torch.equal(crafting.vectors[8:], plain.vectors[8:] * -10)
        assert torch.equal(crafting.vectors[:8], plain.vectors[:8])


@dataclass(frozen=True)
class Vandal(vg.Attack):
    """Writes into what it is shown."""

    def craft(self, seen: vg.Knowledge) -> Tensor:
        row = seen.honest[0]
        row *= -1
        return row


@dataclass(frozen=True)
class QuietVandal(vg.Attack):
    """The same through NumPy, of which torch knows nothing."""

    def craft(self, seen: vg.Knowledge) -> Tensor:
        seen.honest.numpy()[:] = 0
        return seen.mean * -1


@pytest.mark.parametrize(
    "attack", [Vandal(), Opposite(in_place=True), QuietVandal(), vg.WorstCase(directions=("little", QuietVandal()))]
)
def test_an_attack_that_writes_into_what_it_is_shown(attack: vg.Attack) -> None:
    algorithm = vg.Algorithm((vg.Momentum(0.9),), rule=vg.Median(f=3))
    simulation, untouched = small_simulation(algorithm, attack, 3), small_simulation(algorithm, vg.SignFlip(), 3)
    untouched.step()
    with pytest.raises(ValueError, match="wrote into the vectors that it was shown"):
        simulation.step()
    assert torch.equal(simulation.sent[:8], untouched.sent[:8])  # momenta


@dataclass(frozen=True)
class Meddler(vg.Attack):
    """Writes into all the rest that it is shown, and sends what sign-flip does."""

    uses_previous = True

    def craft(self, seen: vg.Knowledge) -> Tensor:
        crafted = -seen.mean
        shown = [seen.previous, *seen.moments]
        assert isinstance(seen.defence, ComposedDefence)
        for tensor in (*shown, seen.defence.previous):
            if tensor is not None:
                tensor.numpy()[:] = 1e9
        return crafted


def test_what_an_attack_writes_elsewhere_reaches_nobody() -> None:
    algorithm = vg.Algorithm((vg.Momentum(0.9),), rule=vg.CenteredClipping(f=3))
    own, plain = (small_simulation(algorithm, attack, 3) for attack in (Meddler(), vg.SignFlip()))
    for _ in range(3):
        assert own.step() == plain.step()
        assert torch.equal(own.parameters, plain.parameters)


@dataclass(frozen=True)
class Refusing(vg.Attack):
    """Tries the defence on what any server refuses, or refuses by itself."""

    itself: bool = False

    def craft(self, seen: vg.Knowledge) -> Tensor:
        if self.itself:
            raise vg.Refused("no.")
        assert seen.defence is not None
        return seen.defence(seen.honest * float("nan"))


@pytest.mark.parametrize("itself", [False, True])
def test_only_the_server_refuses(itself: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused to an attack that tries the defence is an error of the attack's, and no end of a run."""
    simulation = small_simulation(vg.Algorithm(rule=vg.Median(f=3)), Refusing(itself), 3)
    with pytest.raises(vg.Refused):
        simulation.step()
    assert simulation.refused is None
    monkeypatch.setitem(vg.ATTACKS, "refusing", Refusing)
    with pytest.raises(vg.Refused):
        vg.run(vg.Experiment(model="linear", steps=2, byzantine=2, attack=f"refusing(itself={itself})"))


@pytest.mark.parametrize("rule", [vg.MultiKrum(f=3), vg.Median(f=3), vg.CenteredClipping(f=3)])
@pytest.mark.parametrize("name", vg.ATTACKS)
def test_honest_vectors_that_are_not_finite_are_the_servers_to_refuse(name: str, rule: vg.Rule) -> None:
    simulation = small_simulation(vg.Algorithm(rule=rule), vg.ATTACKS[name](), 3)
    simulation.parameters.fill_(float("nan"))
    with pytest.raises(vg.Refused) as error:
        simulation.step()
    assert error.value is simulation.refused


STAGES: dict[str, tuple[vg.Transform, ...]] = {
    "none": (),
    "clip": (vg.Clip(0.3),),
    "momentum": (vg.Momentum(0.9),),
    "shared": (vg.SharedMomentum(0.9),),
    "clip, momentum": (vg.Clip(0.3), vg.Momentum(0.9)),
    "clip, shared": (vg.Clip(0.3), vg.SharedMomentum(0.9)),
}


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_sampled_is_before_momentum_wherever_that_stands(name: str, flips: bool) -> None:
    """Against the algorithm by hand: gradients with l2, clipped; and what is sent."""
    stages = STAGES[name]
    algorithm = vg.Algorithm(stages, rule=vg.Median(f=3))
    simulation = small_simulation(algorithm, vg.LabelFlip() if flips else None, 3 if flips else 0)
    h = simulation.h
    state = algorithm.init(simulation.active, 65)
    clips = tuple(stage for stage in stages if isinstance(stage, vg.Clip))
    for t in range(4):
        parameters = simulation.parameters.clone()
        batch = simulation.batches(t)
        if flips:
            batch.labels[h:] = 4 - batch.labels[h:]
        raw = torch.empty(simulation.active, 65)
        simulation.gradients(parameters, batch, raw, t)
        raw += 0.1 * parameters
        sampled = vg.Algorithm(clips).send(raw, vg.Algorithm(clips).init(simulation.active, 65))[0]
        sent, state = algorithm.send(raw, state)
        row = simulation.step()
        assert row.sampled_norm == pytest.approx(float(sampled[:h].mean(0).norm()), rel=1e-5)
        assert row.honest_norm == pytest.approx(float(sent[:h].mean(0).norm()), rel=1e-5)
        if "momentum" in name or "shared" in name:
            assert (row.sampled_norm == row.honest_norm) == (t == 0)
        _, state = algorithm.aggregate(sent, state)


def subclass_of(kind: type) -> Any:
    """Does what its parent does, and then halves it."""

    def call(self: Any, x: Tensor, memory: Any = None, previous: Any = None, out: Any = None) -> tuple[Tensor, Any]:
        y, memory = kind.__call__(self, x, memory, previous, out)
        return y.mul_(0.5), memory

    return type(f"Halved{kind.__name__}", (kind,), {"__call__": call})


@pytest.mark.parametrize("kind", [vg.Clip, vg.Momentum, vg.SharedMomentum])
def test_subclasses_are_called(kind: Callable[..., vg.Transform]) -> None:
    stage, halved = kind(0.5), subclass_of(kind)(0.5)  # type: ignore[arg-type]
    plain, own = (small_simulation(vg.Algorithm((s,), rule=vg.Average()), None, 0) for s in (stage, halved))
    plain.step()
    own.step()
    torch.testing.assert_close(own.vectors, plain.vectors / 2)
