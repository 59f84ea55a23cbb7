"""Whole runs on a pretended card: they come to what they come to on the CPU, and no step waits for the card more often
than it may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varangian as vg
from pretended import PretendedCard
from varangian import Experiment, Measures, run
from varangian.core import kernels
from varangian.core.attacks import Knowledge
from varangian.runs import building
from varangian.runs.building import build, computing, handed, open_dataset
from varangian.runs.live.schema import read_events
from varangian.runs.replaying import replay
from varangian.simulation import models
from varangian.simulation.data import Dataset, Dirichlet, Split
from varangian.simulation.gradients import Batch, WorkerGradients, workers
from varangian.simulation.metrics import COLUMNS
from varangian.simulation.sampling import AHEAD, DRAWN, Evaluator, Examples, Sampler
from varangian.simulation.simulate import Simulation, Snapshot

CUDA = "cuda:0"
NEAR = 2e-5  # relative to the largest number of a tensor; of float32, whose sums come in another order
BASE = Experiment(
    dataset="synthetic(shape=(1,8,8),classes=4,train=203,test=40)", model="fully-connected(hidden=16)", workers=11,
    byzantine=3, rule="median", attack="little", batch_size=5, steps=5, evaluate_every=2, momentum=0.9, clip=2.0,
    l2=1e-3, learning_rate=0.1,
)  # fmt: skip
IMAGES = "synthetic(shape=(3,8,8),classes=4,train=60,test=12)"
SMALL: dict[str, Any] = {"dataset": IMAGES, "workers": 5, "byzantine": 1, "batch_size": 3, "steps": 3}
POLICY = "quarantine(window=2, term=3, longest=6)"
CASES: dict[str, dict[str, Any]] = {
    "median": {},
    "multi-krum": {"rule": "multi-krum"},
    "trimmed mean": {"rule": "trimmed-mean"},
    "phocas": {"rule": "phocas"},
    "krum": {"rule": "krum"},
    "mixed": {"rule": "median", "pre": ["nnm"]},
    "published": {"profile": "published", "dataset": "digits", "steps": 4},
    "published multi-krum": {"profile": "published", "rule": "multi-krum"},
    "no momentum": {"momentum": 0.0},
    "nothing at workers": {"momentum": 0.0, "clip": None},
    "dampened": {"dampening": 0.5},
    "server": {"momentum_at": "server"},
    "shared": {"momentum_at": "shared"},
    "nesterov": {"nesterov": True},
    "nesterov at the server": {"nesterov": True, "momentum_at": "server"},
    "nesterov, published": {"nesterov": True, "profile": "published"},
    "label flip": {"attack": "label-flip"},
    "label flip, nesterov": {"attack": "label-flip", "nesterov": True, "rule": "multi-krum"},
    "a remembered aggregate": {"rule": "centered-clipping"},
    "an attack that looks at it": {"attack": "rop"},
    "an attack that warms up": {"attack": "mimic(warmup=3)"},
    "an attack that remembers": {"attack": 'rop(history="own")'},
    "attackers divided": {"attack": 'divided(first="label-flip",second="mimic(warmup=2)")'},
    "decoys": {"attack": "decoys", "rule": "krum"},
    "own data known": {"knowledge": "own"},
    "own data known, nesterov": {"knowledge": "own", "nesterov": True, "partition": "dirichlet(alpha=0.5)"},
    "some spied on": {"knowledge": "spied(k=3)"},
    "the last round known": {"knowledge": "last-round"},
    "no attack": {"attack": None},
    "non-iid": {"partition": "dirichlet(alpha=0.5)"},
    "double precision": {"dtype": "float64"},
    "nothing measured": {"measure": False},
    "metrics and validation": {"metrics": ["top(k=2)", "macro-f1"], "validation": 0.2},
    "rounds, kept": {"clients": 25, "real_byzantine": 2, "steps": 8},
    "rounds, on disk": {"clients": 25, "real_byzantine": 2, "steps": 8, "absent": "kept-on-disk"},
    "rounds, decayed": {"clients": 25, "real_byzantine": 2, "steps": 8, "absent": "decayed"},
    "rounds, dropped": {"clients": 25, "real_byzantine": 2, "steps": 8, "absent": "dropped", "local_steps": 2},
    "rounds, label flip": {"clients": 25, "real_byzantine": 2, "steps": 8, "attack": "label-flip"},
    "rounds, the last one known": {"clients": 25, "real_byzantine": 2, "steps": 8, "knowledge": "last-round"},
    "other attackers": {"attackers_change": 2, "momentum_at": "server"},
    "local steps": {"local_steps": 3},
    "weights": {"weighting": "size", "cap": 1.5, "partition": "dirichlet(alpha=0.5)"},
    "weights in rounds": {"weighting": "size", "cap": 1.5, "partition": "dirichlet(alpha=0.5)", "clients": 25},
    "quarantine": {"quarantine": POLICY, "attack": "sign-flip", "steps": 8},
    "quarantine of a selecting rule": {"quarantine": POLICY, "attack": "sign-flip", "steps": 8, "rule": "multi-krum"},
    "quarantine in rounds": {
        "quarantine": POLICY,
        "attack": "sign-flip",
        "steps": 8,
        "clients": 13,
        "real_byzantine": 2,
    },
    "linear": {"model": "linear"},
    "fully-connected": {"model": "fully-connected"},
    "cnn": {**SMALL, "model": "cnn", "dataset": "synthetic(shape=(3,16,16),classes=4,train=60,test=12)", "steps": 2},
    "cnn-small": {**SMALL, "model": "cnn-small", "dataset": "synthetic(shape=(1,28,28),classes=4,train=60,test=12)"},
    "resnet-18": {
        **SMALL,
        "model": "resnet-18",
        "workers": 2,
        "byzantine": 0,
        "attack": None,
        "rule": "average",
        "steps": 1,
        "measure": False,
        "dtype": "float64",  # three numbers are normalised by their own variance, which enlarges what is rounded
    },
    "resnet-20": {**SMALL, "model": "resnet-20", "steps": 2},
    "wide-resnet": {**SMALL, "model": "wide-resnet(depth=10,width=1)", "steps": 2},
}
DATA: dict[str, Dataset] = {}


def opened(e: Experiment) -> Dataset:
    if e.dataset not in DATA:
        DATA[e.dataset] = open_dataset(e)
    return DATA[e.dataset]


@contextmanager
def machine(device: str) -> Iterator[PretendedCard | None]:
    if device == "cpu":
        yield None
    else:
        with PretendedCard() as card:
            yield card


def hosted(x: Any) -> Any:
    """With all tensors on the CPU, whatever holds them."""
    if isinstance(x, Tensor):
        return getattr(x, "held", x).detach().clone()
    if isinstance(x, dict):
        return {key: hosted(value) for key, value in x.items()}
    return tuple(map(hosted, x)) if isinstance(x, (tuple, list)) else x


def state_of(simulation: Simulation) -> dict[str, Any]:
    snapshot = simulation.snapshot()
    return {name: hosted(getattr(snapshot, name)) for name in Snapshot.__dataclass_fields__}


def gone(e: Experiment, device: str, model: Any = None) -> tuple[list[Measures], str | None, dict[str, Any]]:
    """All rows, what was refused, and the state at the end, of steps that nobody waits for."""
    dataset = opened(e)
    e, given = handed(e, model, None, None)
    e = replace(e, device=device)
    # Masks are drawn in the order of memory: to be the card's on the CPU, too, images have to lie alike.
    masked = device == "cpu" and str(e.model).split("(")[0] in ("cnn", "wide-resnet")
    made = partial(WorkerGradients, layout="channels-last" if masked else "auto")
    with machine(device), computing(e), patch.object(building, "WorkerGradients", made):
        simulation, _ = build(e, dataset, given)
        rows: list[Measures] = []
        refused = None
        try:
            while simulation.steps_done < e.steps and not (rows and simulation.diverged):
                rows += simulation.advance()
            rows += simulation.settle()
        except vg.Refused as error:
            refused = str(error) if error is simulation.refused else "by somebody else"
            rows += simulation.settle()
        return rows, refused, state_of(simulation)


def near(found: Any, wanted: Any, name: str = "") -> None:
    """Equal but for rounding: everything that a state, or a row, is made of."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), name
        for key in wanted:
            near(found[key], wanted[key], f"{name} {key}")
    elif isinstance(wanted, tuple):
        assert len(found) == len(wanted), name
        for one, other in zip(found, wanted, strict=True):
            near(one, other, name)
    elif isinstance(wanted, Tensor):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), name
        finite = wanted.isfinite()  # what has overflowed may be NaN in one order of sums, and infinite in another
        assert torch.equal(found.isfinite(), finite), name
        found, wanted = found[finite], wanted[finite]
        size = float(wanted.abs().max()) if wanted.numel() else 0.0
        rough = wanted.dtype == torch.float32 or name in (" memory", " watched")  # in double precision, of single
        near_by = NEAR if rough else 1e-9
        torch.testing.assert_close(found, wanted, rtol=near_by, atol=near_by * size, msg=lambda said: f"{name}: {said}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5, nan_ok=True), name
    else:
        assert found == wanted, name


def alike(found: list[Measures], wanted: list[Measures]) -> None:
    assert [row.step for row in found] == [row.step for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        for name in COLUMNS:
            near(getattr(one, name), getattr(other, name), f"{name} of step {other.step}")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_comes_to_what_it_comes_to_on_the_cpu(name: str) -> None:
    e = replace(BASE, **CASES[name])
    wanted, found = gone(e, "cpu"), gone(e, CUDA)
    assert len(wanted[0]) == e.steps
    assert found[1] == wanted[1]
    alike(found[0], wanted[0])
    near(found[2], wanted[2])


@pytest.mark.parametrize("profile", ["described", "published"])
@pytest.mark.parametrize("model", ["fully-connected", "cnn"])
def test_a_card_evaluates_as_many_examples_at_a_time_as_there_is_room_for(
    model: str, profile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, or in seven chunks; mirrored ones too; and for one that has seen no batch."""
    e = replace(BASE, dataset="synthetic(shape=(3,16,16),classes=4,train=60,test=70)", model=model, dtype="float64")
    data = replace(opened(e), flip=True)
    found: dict[tuple[str, int], tuple[float, ...]] = {}
    asked = []
    scores = [vg.simulation.scores.macro_f1]
    for device, chunks in (("cpu", 0), (CUDA, 1), (CUDA, 7)):
        with machine(device) as card, computing(e):
            gradients = WorkerGradients(models.build(model, data.shape, 4, seed=1).double().to(device))
            evaluator = Evaluator(data, 1, profile=profile, device=device, dtype=torch.float64)
            some = Examples(data, data.test, device, torch.float64)
            if chunks > 1:
                inputs, labels = some(np.arange(5))
                gradients.look(Batch(inputs.unsqueeze(0), labels.unsqueeze(0)))
                monkeypatch.setattr(workers, "LARGEST", 10 * gradients._largest)
            evaluator(gradients, gradients.parameters(), 3, scores)
            if card is not None:
                card.reset()
            found[device, chunks] = evaluator(gradients, gradients.parameters(), 3, scores)
            if card is not None:
                assert card.waits.total() == 1
                asked.append(sum(count for (name, _), count in card.launches.items() if name == "argmax"))
    assert asked == [1, 7]
    for values in found.values():
        assert values == pytest.approx(found["cpu", 0], rel=1e-9)


def normalised() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).float()


# ------------------------------------------------------------------------------------------------ refused, diverged


@contextmanager
def nan_at(last: int) -> Iterator[None]:
    """The attack "nan" sends the mean, but NaN at one step."""
    steps = 0

    def craft(self: vg.NaN, seen: Knowledge) -> Tensor:
        nonlocal steps
        steps += 1
        return seen.mean * float("nan") if steps > last else seen.mean

    with patch.object(vg.NaN, "craft", craft):
        yield


REFUSED: dict[str, dict[str, Any]] = {
    "worker": {},
    "server": {"momentum_at": "server"},
    "shared": {"momentum_at": "shared"},
    "nesterov": {"nesterov": True},
    "phocas": {"rule": "phocas"},
    "distances": {"rule": "multi-krum"},
    "a remembered aggregate": {"rule": "centered-clipping"},
    "nothing remembered": {"momentum": 0.0},
    "published": {"profile": "published"},
    "nothing measured": {"measure": False},
}


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_leaves_what_it_leaves_on_the_cpu(name: str, at: int) -> None:
    """It is found late on a card: the rows before it, what is said, and all that is remembered are the same."""
    e = replace(BASE, attack="nan", real_byzantine=4, **REFUSED[name])
    found = []
    for device in ("cpu", CUDA):
        with nan_at(at):
            found.append(gone(e, device, model=normalised()))
    (wanted, refused, state), (rows, said, left) = found
    assert refused is not None
    assert "got 4" in refused
    assert (said, left["step"], len(rows)) == (refused, at, at)
    alike(rows, wanted)
    near(left, state)


@pytest.mark.parametrize("name", ["worker", "server", "nesterov", "nothing measured"])
def test_a_divergence_is_the_last_step(name: str) -> None:
    settings = {"rule": "average", "attack": "empire(factor=1e30)", "clip": None, **REFUSED[name]}
    e = replace(BASE, **settings)
    wanted, found = gone(e, "cpu", model=normalised()), gone(e, CUDA, model=normalised())
    assert 0 < len(wanted[0]) < e.steps
    assert not wanted[2]["parameters"].isfinite().all()
    alike(found[0], wanted[0])
    near(found[2], wanted[2])


class Delicate(nn.Module):
    """A model that raises where its parameters are not finite."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        answer = self.inner(x)
        if not bool(answer.isfinite().all()):
            raise RuntimeError("this is no number")
        return answer


def test_what_a_model_raises_after_the_last_step_is_not_raised() -> None:
    """On the CPU nobody computes with parameters that diverged; on a card somebody has begun to."""
    e = replace(BASE, rule="average", attack="inf", real_byzantine=1, clip=None)
    found = [gone(e, device, model=Delicate()) for device in ("cpu", CUDA)]
    assert len(found[0][0]) == len(found[1][0]) == 1
    near(found[1][2], found[0][2])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("labels", ["honest", "flipped"])
def test_a_worker_that_sends_nan_does_not_remember_it(nesterov: bool, labels: Literal["honest", "flipped"]) -> None:
    """Two of eight workers overflow at step 1: the server tolerates that, and at step 2 their momenta are those of step
    0. A card that finds it late begins the gradients of step 2 again, where they were taken at points of NaN."""

    def simulation(device: str) -> Simulation:
        model = nn.Linear(4, 3)
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-1, 1, 12).reshape(3, 4))
            model.bias.zero_()
        gradients = WorkerGradients(model.to(device))
        generator = torch.Generator().manual_seed(5)
        inputs = torch.randn(5, 8, 2, 4, generator=generator)
        inputs[1, 2], inputs[1, 5] = 3e38, float("inf")
        classes = torch.randint(0, 3, (5, 8, 2), generator=generator)
        gradients.look(Batch(inputs[0].to(device), classes[0].to(device)))
        return Simulation(
            gradients,
            lambda t: Batch(inputs[t].to(device), classes[t].to(device)),
            vg.Algorithm((vg.Clip(1.0), vg.Momentum(0.9, nesterov=nesterov)), rule=vg.Median(f=3)),
            workers=8,
            real_byzantine=1 if labels == "flipped" else 0,
            attack=vg.LabelFlip() if labels == "flipped" else None,
            task=vg.Task(3),
        )

    states = []
    for device in ("cpu", CUDA):
        with machine(device):
            s = simulation(device)
            rows = []
            for _ in range(4):
                rows += s.advance()
            rows += s.settle()
            states.append((rows, state_of(s)))
    assert states[0][1]["worker"][-1].isfinite().all()
    alike(states[1][0], states[0][0])
    near(states[1][1], states[0][1])


# ------------------------------------------------------------------------------------------------------- whole runs


def both(e: Experiment, *, out: Path | None = None, **options: Any) -> list[Any]:
    """What run() answers on the CPU and on a card, with all calls of progress."""
    found = []
    for device in ("cpu", CUDA):
        told: list[tuple[int, int | None]] = []

        def progress(step: int, newest: Any, told: list[tuple[int, int | None]] = told) -> None:
            told.append((step, None if newest is None else newest.step))

        with machine(device):
            result = run(
                replace(e, device=device), None if out is None else out / device[:3], opened(e), progress=progress,
                **options,
            )  # fmt: skip
            parameters = [hosted(p) for p in result.model().parameters()]
        found.append((result, told, parameters))
    return found


@pytest.mark.parametrize("name", ["median", "multi-krum", "published", "metrics and validation"])
def test_results_and_progress_are_those_of_the_cpu(name: str) -> None:
    (wanted, told, parameters), (found, said, learned) = both(replace(BASE, **CASES[name]))
    assert said == told
    assert found.stopped is None
    alike(list(found.measures), list(wanted.measures))
    near(tuple(learned), tuple(parameters))
    assert [x.step for x in found.evaluations] == [x.step for x in wanted.evaluations]
    for one, other in zip(found.evaluations, wanted.evaluations, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-4)


def test_listeners_and_events_hear_what_they_hear_on_the_cpu(tmp_path: Path) -> None:
    heard: list[Any] = []
    wanted, found = both(replace(BASE, **CASES["median"]), out=tmp_path, events=True, listener=heard.append)
    half = len(heard) // 2
    assert [(type(x), x.step) for x in heard[:half]] == [(type(x), x.step) for x in heard[half:]]
    assert half == len(wanted[0].measures) + len(wanted[0].evaluations)
    told = [[(line["event"], line.get("step")) for line in read_events(r[0].folder)] for r in (wanted, found)]
    assert told[0] == told[1]


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize("rule", ["median", "multi-krum"])
def test_a_refused_run_is_told_as_on_the_cpu(rule: str, at: int, tmp_path: Path) -> None:
    """Before, at and behind an evaluation."""
    e = replace(BASE, attack="nan", real_byzantine=4, rule=rule)
    found = []
    for device in ("cpu", CUDA):
        with nan_at(at), machine(device):
            told: list[int] = []
            result = run(
                replace(e, device=device), tmp_path, opened(e), progress=lambda step, _, told=told: told.append(step)
            )
            found.append((result.stopped, told, [x.step for x in result.evaluations], len(result.measures)))
            assert result.folder is not None
            assert len((result.folder / "metrics.csv").read_text().splitlines()) == at + 1
    assert found[1] == found[0]
    assert found[0][0].startswith(f"step {at}: ")


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_diverged_run_is_told_as_on_the_cpu() -> None:
    e = replace(BASE, rule="average", attack="empire(factor=1e30)", clip=None)
    (wanted, told, _), (found, said, _) = both(e)
    assert (found.stopped, said) == (wanted.stopped, told)
    assert "no longer finite" in found.stopped
    alike(list(found.measures), list(wanted.measures))


@pytest.mark.parametrize("every", [0, 60])
@pytest.mark.parametrize(
    "name",
    [
        "median",
        "multi-krum",
        "nesterov",
        "label flip",
        "an attack that warms up",
        "own data known",
        "the last round known",
        "quarantine",
    ],
)
def test_an_interrupted_run_goes_on_and_is_replayed(name: str, every: float, tmp_path: Path) -> None:
    """Resumed it comes to the same bytes; and so does each step that is replayed."""
    e = replace(BASE, **CASES[name], device=CUDA)
    with PretendedCard():
        whole = run(e, tmp_path / "whole", opened(e))

        def stop(step: int, _: object) -> None:
            if step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(e, tmp_path / "parts", opened(e), progress=stop, checkpoint_every=every)
        parts = run(e, tmp_path / "parts", opened(e))
        assert parts.began in (3, 4)  # a card may be a step ahead of what was told
        assert parts.folder is not None
        assert whole.folder is not None
        for file in ("metrics.csv", "evaluations.csv"):
            assert (parts.folder / file).read_bytes() == (whole.folder / file).read_bytes()
        for one, other in zip(parts.model().parameters(), whole.model().parameters(), strict=True):
            assert torch.equal(hosted(one), hosted(other))
        again = replay(whole.folder, 2, opened(e))
        assert again.agrees
        assert hosted(again.vectors).shape == (11, sum(p.numel() for p in whole.model().parameters()))


# ------------------------------------------------------------------------------------------------------------ budgets

COLUMNS_ONLY = ["median", "trimmed-mean", "phocas"]


def steady(e: Experiment, steps: int = 4) -> PretendedCard:
    """What steps in the middle of a run ask of a card."""
    e = replace(e, device=CUDA)
    dataset = opened(e)
    with PretendedCard() as card, computing(e):
        simulation, _ = build(e, dataset)
        for _ in range(24):  # until what is asked for in one go is captured
            simulation.advance()
        card.reset()
        for _ in range(steps):
            simulation.advance()
        return card


LAUNCHES = 100  # of a fully connected step with all that is measured; what Triton fuses is fewer


BUDGETS: dict[str, tuple[dict[str, Any], int]] = {
    **{rule: ({"rule": rule}, 0) for rule in COLUMNS_ONLY},
    "multi-krum": ({"rule": "multi-krum"}, 1),
    "krum": ({"rule": "krum"}, 1),
    "mixed": ({"pre": ["nnm"]}, 1),
    "server": ({"momentum_at": "server"}, 0),
    "nesterov": ({"nesterov": True}, 0),
    "nesterov at the server": ({"nesterov": True, "momentum_at": "server"}, 0),
    "published": ({"profile": "published", "dataset": "digits"}, 0),
    "label flip": ({"attack": "label-flip"}, 0),
    "double precision": ({"dtype": "float64"}, 0),
    "nothing measured": ({"measure": False}, 0),
    "no attack": ({"attack": None}, 0),
    "an attack that has warmed up": ({"attack": "mimic(warmup=3)"}, 0),
    "an attack that remembers": ({"attack": 'rop(history="own")'}, 0),
    "quarantine": ({"quarantine": POLICY, "attack": "sign-flip"}, 0),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_waits_no_more_often_than_it_may(name: str) -> None:
    """Not at all for rules on columns, once for those on distances; a few kilobytes come over, and no image."""
    settings, waits = BUDGETS[name]
    steps = 4
    card = steady(replace(BASE, **settings), steps)
    assert card.waits.total() == waits * steps, card
    assert card.late.total() == steps, card  # the row of the step before
    n = BASE.workers
    told = 8 * 5 * (n + 1)  # what is recorded of each worker, by a sample of columns: 32 blocks
    assert card.to_host <= steps * (8 * 120 + told + waits * 8 * (n + 2) ** 2), card
    shown = 8 * n if "quarantine" in settings else 0  # which rows
    assert card.to_card <= steps * (64 + 8 * 32 + shown + waits * 6 * 8 * n**2), card


# ------------------------------------------------------------------------------------------------------- the examples


@pytest.mark.parametrize("profile", ["described", "published"])
@pytest.mark.parametrize("deal", ["iid", "dirichlet(alpha=0.5)"])
def test_batches_on_a_card_are_those_of_the_cpu(profile: Literal["described", "published"], deal: str) -> None:
    """In order, out of order, across the block that is drawn at once, and with the short batch of an epoch."""
    dataset = replace(opened(BASE), flip=True, mean=(0.3,), std=(0.2,))
    deal = deal if profile == "described" else "iid"
    there, short = {}, 0
    for device in ("cpu", CUDA):
        with machine(device) as card:
            given = "iid" if deal == "iid" else Dirichlet(0.5)
            sampler = Sampler(dataset, 7, 5, 11, deal=given, profile=profile, device=device)
            for step in (0, 1, 5, 6, AHEAD - 1, AHEAD, AHEAD + 1, 3, 1000, 2):
                batch = sampler(step)
                there.setdefault(step, []).append(
                    (hosted(batch.inputs), hosted(batch.labels), hosted(batch.weights), batch.points(6))
                )
                short += batch.weights is not None
            if card is not None:
                card.reset()
                sampler(2 * AHEAD + 3)
                drawn = AHEAD * 7 * 5 * (4 + 1)
                assert 0 < card.to_card <= drawn + 200, card
                assert card.waits.total() == 0, card
    assert (short > 0) == (profile == "published")
    for one, other in there.values():
        near(other, one)


def test_many_numbers_are_not_drawn_far_ahead() -> None:
    with PretendedCard() as card:
        sampler = Sampler(opened(BASE), 64, 1024, 0, device=CUDA)
        card.reset()
        sampler(0)
        assert card.to_card <= 4 * DRAWN + 200


def kinds() -> dict[str, Dataset]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (9, 3, 4, 5), generator=generator, dtype=torch.uint8)
    classes = torch.arange(9) % 3
    table, tokens = torch.randn(9, 4, generator=generator), torch.randint(0, 7, (9, 6), generator=generator)

    def made(name: str, x: Tensor, y: Tensor, **options: Any) -> Dataset:
        return Dataset(name, Split(x, y), Split(x, y), **options)

    normalised = {"classes": 3, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    return {
        "pixels": made("pixels", images, classes, **normalised),
        "floats": made("floats", images.float(), classes, **normalised),
        "doubles": made("doubles", images.double(), classes, **normalised),
        "video": made("video", images.unsqueeze(2).repeat(1, 1, 2, 1, 1), classes, classes=3),
        "table": made("table", table, classes, classes=3),
        "numbers": made("numbers", table.double(), table[:, :2].clone(), classes=2),
        "tokens": made("tokens", tokens, tokens, classes=7),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", list(kinds()))
def test_examples_of_all_kinds_live_on_a_card(kind: str, dtype: torch.dtype) -> None:
    dataset = kinds()[kind]
    index = torch.tensor([3, 0, 8, 3])
    flip = torch.tensor([True, False, True, False]) if len(dataset.shape) == 3 else None
    wanted = Examples(dataset, dataset.train, "cpu", dtype)(index.numpy(), None if flip is None else flip.numpy())
    with PretendedCard() as card:
        examples = Examples(dataset, dataset.train, CUDA, dtype)
        assert (examples.inputs.dtype, examples.inputs.is_cuda) == (dataset.train.inputs.dtype, True)
        there, mirrored = index.to(CUDA), None if flip is None else flip.to(CUDA)
        card.reset()
        found = examples(there, mirrored)
        assert card.waits.total() == 0, card
        near(hosted(found), wanted)
        near(hosted(examples(index.numpy(), None if flip is None else flip.numpy())), wanted)


def test_images_are_moved_once_for_all_runs_on_them() -> None:
    dataset = kinds()["pixels"]
    with PretendedCard() as card:
        first = Examples(dataset, dataset.train, CUDA, torch.float32)
        card.reset()
        second = Examples(dataset, dataset.train, CUDA, torch.float64)
        assert card.to_card == 0
        assert second.inputs is first.inputs
        dataset.train.inputs.add_(1)  # whoever writes into his data has another run
        third = Examples(dataset, dataset.train, CUDA, torch.float32)
        assert card.to_card > 0
        assert torch.equal(hosted(third.inputs), dataset.train.inputs)


@pytest.mark.parametrize("name", ["median", "multi-krum", "server"])
def test_a_fully_connected_step_takes_few_launches(name: str) -> None:
    card = steady(replace(BASE, **CASES[name], model="fully-connected"))
    assert card.launches.total() < 4 * LAUNCHES, card


@pytest.mark.parametrize("name", ["median", "multi-krum"])
def test_launches_do_not_grow_with_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    e = replace(BASE, **CASES[name], model="fully-connected")
    one = steady(e)
    for module in (kernels, kernels.runtime):
        monkeypatch.setattr(module, "own_threads", lambda: 16)
        monkeypatch.setattr(module, "threads", lambda: 16)
    assert steady(e).launches.total() == one.launches.total()


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "graph"),
        ({"local_steps": 2}, "graph"),
        ({"clients": 9}, "loop"),
        ({"clients": 9, "attack": None, "real_byzantine": None}, "graph"),
    ],
    ids=str,
)
def test_no_graph_is_captured_where_the_number_of_honest_workers_differs(settings: dict[str, Any], method: str) -> None:
    e = replace(
        BASE, **{**SMALL, "model": "resnet-20(depth=8)", "steps": 1, "device": CUDA, "real_byzantine": 1, **settings}
    )
    dataset = opened(e)
    with machine(CUDA), computing(e):
        simulation, _ = build(e, dataset)
        simulation.step()
        assert simulation.gradients.method == method
