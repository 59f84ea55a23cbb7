"""What is measured, recomputed in plain float64 from the vectors of a recorded run; and the paper's theory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache, partial

import numpy as np
import pytest
import torch

import oracles
import varangian as vg
from varangian.core import kernels
from varangian.simulation import models
from varangian.simulation.gradients import Batch, WorkerGradients
from varangian.simulation.metrics import (
    COLUMNS,
    EVERY_COLUMN,
    PLACEMENT,
    QUARANTINE,
    ROUND,
    WEIGHT,
    Measures,
    Meter,
    Rows,
)
from varangian.simulation.simulate import Simulation

N, F, B, MU, STEPS = 11, 2, 4, 0.9, 7
L2, CLIP = 1e-2, 0.8
H = N - F


@dataclass(frozen=True)
class Recorded:
    """One step: the row, and the vectors that it is about."""

    row: Measures
    parameters: np.ndarray  # before the update
    sampled: np.ndarray
    vectors: np.ndarray
    loss: float


RULES = {
    "average": (vg.Average(F), oracles.average),
    "multi-krum": (vg.MultiKrum(F), oracles.multi_krum),
    "bulyan": (vg.Bulyan(F), oracles.bulyan),
    "median": (vg.Median(F), oracles.median),
}
ATTACKS: dict[str, vg.Attack | None] = {
    "none": None,
    "little": vg.Little(0.3),
    "gaussian": vg.Gaussian(0.05),  # f different vectors
    "zero": vg.Zero(),
}
PLACES = {
    "worker": ((vg.Clip(CLIP), vg.Momentum(MU)), ()),
    "server": ((vg.Clip(CLIP),), (vg.Momentum(MU),)),
    "off": ((), ()),
}


@lru_cache
def recorded(rule: str, attack: str, place: str, dtype: torch.dtype = torch.float64) -> list[Recorded]:
    """A small run on made-up data, seen in the simulator's own buffers."""
    model = models.build(partial(models.fully_connected, hidden=5), (1, 4, 4), 3, seed=1).to(dtype)
    generator = torch.Generator().manual_seed(2)
    h = N if attack == "none" else H
    inputs = torch.randn(STEPS, h, B, 16, generator=generator, dtype=dtype)
    labels = torch.randint(3, (STEPS, h, B), generator=generator)
    worker, server = PLACES[place]
    simulation = Simulation(
        WorkerGradients(model),
        lambda step: Batch(inputs[step], labels[step]),
        vg.Algorithm(worker, rule=RULES[rule][0], server=server),
        workers=N,
        real_byzantine=N - h,
        attack=ATTACKS[attack],
        learning_rate=lambda step: 0.5 / (1 + step),
        momentum=MU,
        l2=L2,
        seed=3,
    )
    found = []
    for step in range(STEPS):
        parameters = simulation.parameters.numpy().copy()
        simulation.gradients.adopt(simulation.parameters)
        logits = model(inputs[step].reshape(h * B, 1, 4, 4))
        loss = torch.nn.functional.cross_entropy(logits, labels[step].reshape(-1)).item()
        row = simulation.step()
        sampled, vectors = simulation.sampled.numpy().copy(), simulation.vectors.numpy().copy()
        if place == "worker":  # then that buffer holds the gradients as they came: l2 and clipping are still to do
            sampled = oracles.clipped(sampled + L2 * parameters, CLIP)
        found.append(Recorded(row, parameters, sampled, vectors, loss))
    return found


def deviation(x: np.ndarray) -> float:
    return float(np.sqrt(((x - x.mean(0)) ** 2).sum() / (len(x) - 1)))


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else None


def share(rule: str, x: np.ndarray) -> float | None:
    """The Byzantine share of what the rule selects, from Krum's definition."""
    if rule == "median":
        return None
    if rule == "average":
        return F / N
    if rule == "multi-krum":
        scores = oracles.krum_scores(x, N - F - 2)
        return float((oracles.ranked(scores, x)[: N - F - 2] >= H).mean())
    left, picked = np.arange(N), []
    for _ in range(N - 2 * F):
        scores = oracles.krum_scores(x[left], max(len(left) - F - 2, 1))
        best = oracles.ranked(scores, x[left])[0]
        picked.append(left[best])
        left = np.delete(left, best)
    return float((np.array(picked) >= H).mean())


def expected(rule: str, attack: str, run: list[Recorded], t: int) -> dict[str, float | None]:
    """Every column of row t, from its definition."""
    now, h = run[t], N if attack == "none" else H
    f = 0 if attack == "none" else F
    averages = [r.sampled.astype(np.float64).mean(0) for r in run[: t + 1]]
    wide = now.vectors.astype(np.float64)
    vectors = {
        "sampled": averages[t],
        "honest": wide[:h].mean(0),
        "attack": wide[h:].mean(0) if f else None,
        "aggregate": RULES[rule][1](wide, F),
    }
    values: dict[str, float | None] = dict.fromkeys(COLUMNS)
    values |= {
        "step": t,
        "points": t * h * B,
        "learning_rate": 0.5 / (1 + t),
        "loss": now.loss,
        "distance": float(np.linalg.norm(now.parameters - run[0].parameters)),
        "sampled_deviation": deviation(now.sampled.astype(np.float64)),
        "honest_deviation": deviation(wide[:h]),
        "byzantine_share": share(rule, wide) if f else None,
    }
    if f:
        values["attack_deviation"] = deviation(wide[h:])
    names = list(vectors)
    for i, name in enumerate(names):
        vector = vectors[name]
        if vector is not None:
            values[f"{name}_norm"] = float(np.linalg.norm(vector))
            values[f"{name}_max"] = float(np.abs(vector).max())
            for before in names[:i]:
                other = vectors[before]
                if other is not None:
                    values[f"cosine_{before}_{name}"] = cosine(other, vector)
    values["ratio"] = (deviation(wide[:h]) / np.linalg.norm(wide[:h].mean(0))) ** 2
    if t:
        values["cosine_previous"] = cosine(averages[t], averages[t - 1])
        # s_t = mu sum over i of mu^i <g_t, g_(t-1-i)>, as published
        values["curvature"] = MU * sum(MU**i * float(averages[t] @ averages[t - 1 - i]) for i in range(t))
    return values


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", RULES)
def test_every_column_is_its_definition(rule: str, attack: str, place: str) -> None:
    run = recorded(rule, attack, place)
    for t, step in enumerate(run):
        values = expected(rule, attack, run, t)
        for name in COLUMNS:
            found, wanted = getattr(step.row, name), values[name]
            context = f"{name} at step {t}"
            if wanted is None or found is None:
                assert found is None, context
                assert wanted is None, context
            else:
                assert found == pytest.approx(wanted, rel=1e-7, abs=1e-12), context


def test_these_runs_exercise_what_they_should() -> None:
    """Momentum moves honest away from sampled; both rules select Byzantine vectors sometimes; clipping clips."""
    worker = recorded("multi-krum", "little", "worker")
    assert all(r.row.honest_norm != r.row.sampled_norm for r in worker[1:])
    assert any(np.linalg.norm(r.sampled, axis=1).max() == pytest.approx(0.8) for r in worker)
    for rule in ("multi-krum", "bulyan"):
        shares = {r.row.byzantine_share for attack in ("little", "zero") for r in recorded(rule, attack, "worker")}
        assert max(s for s in shares if s is not None) > 0
    off = recorded("multi-krum", "little", "off")
    assert all(r.row.honest_norm == r.row.sampled_norm for r in off)
    assert all((r.sampled == r.vectors[:H]).all() for r in off)


def test_float32_is_measured_as_well() -> None:
    run = recorded("multi-krum", "little", "worker", torch.float32)
    for t, step in enumerate(run):
        for name, wanted in expected("multi-krum", "little", run, t).items():
            if wanted is not None and name not in ("loss", "byzantine_share"):
                assert getattr(step.row, name) == pytest.approx(wanted, rel=2e-5, abs=1e-6), name


# ------------------------------------------------------------------------------------------------------ corners


def measured(meter: Meter, honest: torch.Tensor, attack: torch.Tensor | None = None) -> Measures:
    moments = kernels.mean_and_std(honest)
    base = Measures(0, 0, 0.1, 1.0)
    return meter.measure(base, torch.zeros(honest.shape[1]), moments, moments, attack, moments[0], None, len(honest))


def test_what_means_nothing_is_left_out() -> None:
    meter = Meter(torch.zeros(3), 0.9)
    single = measured(meter, torch.tensor([[3.0, 4.0, 0.0]]))
    assert single.sampled_norm == 5.0
    assert (single.sampled_deviation, single.honest_deviation, single.ratio) == (None, None, None)
    assert (single.cosine_previous, single.curvature, single.attack_norm) == (None, None, None)
    zero = measured(Meter(torch.zeros(3), 0.9), torch.zeros(2, 3), torch.zeros(3))
    assert (zero.honest_norm, zero.honest_deviation, zero.attack_norm, zero.attack_deviation) == (0, 0, 0, 0)
    assert (zero.ratio, zero.cosine_sampled_honest, zero.cosine_honest_attack) == (None, None, None)


def test_what_is_not_finite_shows() -> None:
    meter = Meter(torch.zeros(3), 0.9)
    row = measured(meter, torch.ones(2, 3), torch.full((3,), float("nan")))
    assert row.attack_norm is not None
    assert np.isnan(row.attack_norm)
    assert row.honest_norm == pytest.approx(3**0.5)  # the others are untouched
    assert row.cosine_sampled_honest == pytest.approx(1)


def test_the_meter_keeps_copies() -> None:
    meter, gradients = Meter(torch.zeros(3), 0.9), torch.ones(2, 3)
    measured(meter, gradients)
    gradients.fill_(-7.0)
    row = measured(meter, torch.ones(2, 3))
    assert row.cosine_previous == pytest.approx(1)
    assert row.curvature == pytest.approx(0.9 * 3)


def test_a_row_as_text() -> None:
    row = Measures(3, 120, 0.1, 1 / 3, sampled_norm=1e-30, curvature=float("nan"))
    cells = dict(zip(COLUMNS, row.row(), strict=True))
    assert (
        [field.name for field in fields(Measures)]
        == EVERY_COLUMN
        == [*COLUMNS, *PLACEMENT, *ROUND, *WEIGHT, *QUARANTINE]
    )
    assert (cells["step"], cells["points"], cells["loss"]) == ("3", "120", "0.333333333")
    assert (cells["sampled_norm"], cells["curvature"], cells["ratio"]) == ("1e-30", "nan", "")


# ------------------------------------------------------------------------------------- the paper's theory


@pytest.mark.parametrize("mu", [0.9, 0.99])
@pytest.mark.parametrize(
    ("in_time", "factor", "sign"),
    [
        ("aligned", lambda mu: (1 - mu) / (1 + mu), 1),
        ("orthogonal", lambda mu: 1.0, 0),
        ("alternating", lambda mu: (1 + mu) / (1 - mu), -1),
    ],
)
def test_what_momentum_does_to_the_variance_norm_ratio(
    in_time: str, factor: Callable[[float], float], sign: int, mu: float
) -> None:
    """In the steady state. Expected gradients of norm 1; noise of each step in a direction of its own and summing to
    zero over the workers, so that the theory's expectations hold exactly."""
    steps = round(np.log(1e-4) / np.log(mu))
    d = 2 * steps + 1
    noise = torch.tensor([3.0, -3.0, 1.0, -1.0], dtype=torch.float64)
    algorithm = vg.Algorithm(worker=(vg.Momentum(mu),))
    state = algorithm.init(4, d, dtype=torch.float64)
    meter = Meter(torch.zeros(d, dtype=torch.float64), mu)
    row = Measures(0, 0, 0.1, 1.0)
    for t in range(steps):
        gradients = torch.zeros(4, d, dtype=torch.float64)
        gradients[:, t] = noise
        gradients[:, steps + (t if in_time == "orthogonal" else 0)] = (-1.0) ** t if in_time == "alternating" else 1.0
        sent, state = algorithm.send(gradients, state)
        sampled, honest = kernels.mean_and_std(gradients), kernels.mean_and_std(sent)
        row = meter.measure(row, torch.zeros(d), sampled, honest, None, honest[0], None, 4)
    assert row.ratio is not None
    assert row.sampled_deviation is not None
    assert row.sampled_norm is not None
    assert row.curvature is not None
    before = (row.sampled_deviation / row.sampled_norm) ** 2
    assert before == pytest.approx(20 / 3)
    assert row.ratio / before == pytest.approx(factor(mu), rel=1e-3)
    # The composite curvature tells the cases apart: mu / (1 - mu), 0 and -mu / (1 + mu).
    assert row.curvature == pytest.approx({1: mu / (1 - mu), 0: 0.0, -1: -mu / (1 + mu)}[sign], rel=1e-3, abs=1e-12)


def test_rows_are_kept_exactly() -> None:
    """What is missing is not what is no number."""
    rows = [
        Measures(0, 0, 0.1, float("nan"), distance=None, ratio=float("inf")),
        Measures(2**50, 2**52 + 1, 1 / 3, -0.0, byzantine_share=5e-324),
    ]
    kept = Rows(rows)
    assert [row.row() for row in kept] == [row.row() for row in rows]
    assert kept[1] == kept[-1] == rows[1]
    assert kept[:1][0].loss != kept[0].loss  # NaN
    assert (kept == [], kept[1:] == rows[1:], len(kept), Rows() == []) == (False, True, 2, True)
    with pytest.raises(IndexError):
        kept[2]
