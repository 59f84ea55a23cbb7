"""Momentum that moves: the theory on gradients of known course, what hostile workers can do, and its recursions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core.placement import SPAN, WIDTH, Placed, persistence, sketch, spread_and_signal
from varangian.runs import folders
from varangian.runs.building import build, open_dataset
from varangian.runs.experiment import ConfigurationError
from varangian.simulation.metrics import COLUMNS, PLACEMENT, Rows

H, D, MU = 9, 3000, 0.9
Q = (1 - MU) / (1 + MU)
ANYTHING: Any = 0.9
Course = Callable[[int], Tensor]


def along(t: int) -> Tensor:
    return torch.ones(D) / math.sqrt(D)


def across(t: int) -> Tensor:
    return torch.zeros(D).index_fill(0, torch.tensor(t), 1.0)


def back(t: int) -> Tensor:
    return (-1.0) ** t * along(t)


COURSES: dict[str, Course] = {"aligned": along, "orthogonal": across, "alternating": back}


def trained(
    course: Course,
    placement: vg.Adaptive,
    *,
    steps: int = 400,
    noise: float = 1.0,
    hostile: Callable[[Tensor], Tensor] | None = None,
    f: int = 0,
    h: int = H,
    apart: Callable[[int], float] = lambda t: 0.0,
) -> list[Placed]:
    """What was remembered after each step, on a mean gradient of norm 1, noise of each worker and step, and what a
    worker's data add, the same at each step but for its size."""
    a = vg.Algorithm(rule=vg.Median(f=f), placement=placement)
    state, random, kept = a.init(h, D), torch.Generator().manual_seed(7), []
    own = torch.randn(h, D, generator=torch.Generator().manual_seed(8)) / math.sqrt(D)
    for t in range(steps):
        drawn = torch.randn(h, D, generator=random) * noise / math.sqrt(D)
        vectors, state = a.send(course(t) + drawn + apart(t) * own, state)
        if hostile is not None:
            vectors = torch.cat([vectors, hostile(vectors).expand(f, -1)])
        _, state = a.aggregate(vectors, state)
        assert state.placement is not None
        kept.append(state.placement)
    return kept


@pytest.mark.parametrize(
    ("course", "factor", "at_workers"),
    [("aligned", (1 - MU) / (1 + MU), True), ("orthogonal", 1.0, True), ("alternating", (1 + MU) / (1 - MU), False)],
)
def test_the_place_follows_the_theory(course: str, factor: float, at_workers: bool) -> None:
    placed = trained(COURSES[course], vg.Adaptive(MU, curvature=0.0))
    gradients, momenta = np.mean([p.ratios for p in placed[300:]], axis=0)
    assert gradients == pytest.approx(1, rel=0.1)
    assert momenta / gradients == pytest.approx(factor, rel=0.15)
    assert placed[-1].at_workers is at_workers
    assert all(p.mu == MU for p in placed)


@pytest.mark.parametrize(
    ("course", "lowest", "highest"), [("aligned", 0.9, 0.9), ("orthogonal", 0.75, 0.9), ("alternating", 0.45, 0.46)]
)
def test_mu_is_lowered_where_gradients_turn_back(course: str, lowest: float, highest: float) -> None:
    mus = [p.mu for p in trained(COURSES[course], vg.Adaptive(MU), noise=0.2)[50:]]
    assert lowest - 1e-9 <= min(mus)
    assert max(mus) <= highest


def test_where_momentum_changes_nothing_it_stands_at_the_workers() -> None:
    placed = trained(lambda t: back(t) if t < 100 else across(t), vg.Adaptive(MU, curvature=0.0), steps=300)
    assert (placed[99].at_workers, placed[-1].at_workers, placed[-1].switches) == (False, True, 2)


@pytest.mark.parametrize("course", ["aligned", "orthogonal"])
@pytest.mark.parametrize("apart", [0.0, 0.5, 1.0, 3.0, 10.0])
def test_momentum_leaves_workers_whose_data_differ(course: str, apart: float) -> None:
    placed = trained(COURSES[course], vg.Adaptive(MU, curvature=0.0), steps=200, apart=lambda t: apart)
    share = apart**2 / (apart**2 + 1)  # noise has norm 1
    assert np.mean([p.persistent for p in placed[50:]]) == pytest.approx(share, abs=0.02)
    assert placed[-1].at_workers is (apart < 10)
    assert apart < 10 or not placed[6].at_workers  # as soon as it can be known
    if course == "aligned" and apart < 10:
        gradients, momenta = np.mean([p.ratios for p in placed[100:]], axis=0)
        assert momenta / gradients == pytest.approx(Q + (1 - Q) * share, rel=0.1)


def test_it_comes_back_when_their_gradients_differ_no_more() -> None:
    placed = trained(along, vg.Adaptive(MU), steps=200, apart=lambda t: 10.0 if t < 30 else 0.5)
    assert [placed[t].at_workers for t in (2, 20, 199)] == [True, False, True]
    held = trained(along, vg.Adaptive(MU), steps=200, apart=lambda t: 10.0 if t < 30 else 2.0)  # 4/5 persists
    assert not held[-1].at_workers


@pytest.mark.parametrize("dampening", [0.5, 0.9])
def test_with_dampening_it_sees_the_same(dampening: float) -> None:
    for course, apart in ((along, 0.0), (along, 10.0), (back, 0.0)):
        plain, damped = (
            [
                (p.at_workers, p.persistent, p.turning, *p.ratios)
                for p in trained(course, a, steps=60, apart=lambda t, apart=apart: apart)
            ]
            for a in (vg.Adaptive(MU), vg.Adaptive(MU, dampening))
        )
        assert np.asarray(damped[1:]) == pytest.approx(np.asarray(plain[1:]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("beta", [5e-324, 1e-9, 1 - 2**-53])
def test_any_beta_can_be_told_to_decide(beta: float) -> None:
    placed = trained(back, vg.Adaptive(beta), steps=5)
    assert all(math.isfinite(p.mu) and 0 <= p.turning <= 1 for p in placed)


@pytest.mark.parametrize("persistent", [0.5, 0.7, 1.0])
def test_how_much_must_persist_is_a_setting(persistent: float) -> None:
    placed = trained(along, vg.Adaptive(MU, persistent=persistent), steps=60, apart=lambda t: 1.25)  # 0.61 persists
    assert placed[-1].at_workers is (persistent > 0.61)


def test_it_comes_back_to_the_workers_when_gradients_go_on_in_one_direction() -> None:
    placed = trained(lambda t: back(t) if t < 100 else along(t), vg.Adaptive(MU))
    places = [p.at_workers for p in placed]
    assert (places[0], places[90], places[-1], placed[-1].switches) == (True, False, True, 2)


ATTACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": lambda x: torch.zeros(D),
    "little": lambda x: x.mean(0) - 1.5 * x.std(0),
    "empire": lambda x: -0.1 * x.mean(0),
    "huge": lambda x: torch.full((D,), 1e15),
    "overflowing": lambda x: torch.full((D,), 3e38),
    "nan": lambda x: torch.full((D,), math.nan),
    "one of them": lambda x: x[0],
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("course", ["aligned", "alternating"])
def test_workers_who_lie_do_not_move_it_where_the_signal_is_clear(course: str, attack: str) -> None:
    placed = trained(
        COURSES[course], vg.Adaptive(MU, curvature=0.0), steps=150, noise=0.5, hostile=ATTACKS[attack], f=10, h=13
    )
    assert placed[-1].at_workers is (course == "aligned")
    assert all(math.isfinite(r) for r in placed[-1].ratios)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("apart", [0.5, 10.0])
def test_workers_who_lie_do_not_move_it_where_data_are_clear(apart: float, attack: str) -> None:
    placed = trained(
        along, vg.Adaptive(MU), steps=60, hostile=ATTACKS[attack], f=10, h=13, apart=lambda t: apart, noise=0.5
    )
    assert placed[-1].at_workers is (apart < 1)


def test_where_noise_drowns_the_signal_it_stays() -> None:
    placed = trained(along, vg.Adaptive(MU), steps=300, noise=100.0, hostile=ATTACKS["empire"], f=4)
    assert all(p.at_workers for p in placed)


@pytest.mark.parametrize("f", [1, 4, 10])
def test_each_estimate_lies_between_values_of_honest_vectors(f: int) -> None:
    random = np.random.default_rng(f)
    h = f + 2  # n = 2f + 2
    for trial in range(30):
        honest = random.normal(size=(h, 8)) + random.normal(size=8)
        hostile = random.normal(size=(f, 8)) * 10.0 ** random.integers(-3, 7) + honest[random.integers(h)]
        a = vg.Algorithm(rule=vg.Median(f=f), placement=vg.Adaptive(MU))
        x = torch.from_numpy(np.concatenate([honest, hostile]))
        _, state = a.aggregate(x, a.init(h, 8, torch.float64))
        assert state.placement is not None
        assert not state.placement.products.any()  # the first step has no past
        _, state = a.aggregate(MU * x + torch.from_numpy(np.concatenate([honest[::-1], hostile])), state)
        assert state.placement is not None
        seen = state.placement.products.numpy() * SPAN / (1 - MU)  # of the second step
        (spread, *_), (signal, *_) = spread_and_signal(seen)
        newest = honest[::-1]
        products = newest @ newest.T
        apart = np.square(newest[:, None] - newest[None]).sum(2) / 2
        pairs = ~np.eye(h, dtype=bool)
        common = ((newest[:, None] - newest[None]) * (honest[:, None] - honest[None])).sum(2) / 2
        persists = persistence(seen) * spread
        assert common[pairs].min() - 1e-9 <= persists <= common[pairs].max() + 1e-9, trial
        assert apart[pairs].min() - 1e-9 <= spread <= apart[pairs].max() + 1e-9, trial
        assert products[pairs].min() - 1e-9 <= signal <= products[pairs].max() + 1e-9, trial


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.97])
def test_whoever_plays_with_the_place_changes_it_rarely(beta: float) -> None:
    """Even one who decides at each step what the server sees."""
    placement, steps = vg.Adaptive(beta), 500
    placed, switches = placement.init(3, 4, torch.float32, torch.device("cpu")).of(3), []
    for t in range(steps):
        products = torch.eye(3, dtype=torch.float64) + torch.ones(3, 3, 3, dtype=torch.float64)
        if not placed.at_workers:
            products[2] = 0  # nothing persists
        numbers = placement._decided(replace(placed, products=products), (1.0, 1.0))
        if numbers[3] > placed.numbers[3]:
            switches.append(t)
        placed = replace(placed, numbers=numbers)
    assert 2 <= len(switches) <= math.log2(1 + 2 * steps * (1 - beta))
    assert switches[0] + 1 == placement.patience
    gaps = np.diff(switches)
    assert (gaps >= placement.patience * 2.0 ** np.arange(1, len(switches))).all()


def test_where_no_signal_is_seen_it_stays() -> None:
    placed = trained(lambda t: torch.zeros(D), vg.Adaptive(MU), steps=40, noise=0.0)[-1]
    assert placed.at_workers
    assert placed.mu == MU
    assert all(math.isnan(r) for r in placed.ratios)


def oracle(
    gradients: np.ndarray, places: list[bool], mus: list[float], dampening: float
) -> tuple[np.ndarray, np.ndarray]:
    """What workers send and the updates of the median, step by step, at given places and mus."""
    momenta, update, sent, updates = np.zeros(gradients.shape[1:]), np.zeros(gradients.shape[2]), [], []
    for g, at_workers, mu in zip(gradients, places, mus, strict=True):
        momenta = mu * momenta + (1 - dampening) * g
        x = momenta if at_workers else g
        aggregate = np.median(x, axis=0)
        update = aggregate if at_workers else mu * update + (1 - dampening) * aggregate
        sent.append(x)
        updates.append(update)
    return np.stack(sent), np.stack(updates)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
@pytest.mark.parametrize("in_place", [False, True])
def test_both_halves_are_the_recursions(in_place: bool, dampening: float) -> None:
    random = np.random.default_rng(3)
    steps, n, d = 120, 5, 40
    signs = np.where(np.arange(steps) < 60, (-1.0) ** np.arange(steps), 1.0)
    gradients = signs[:, None, None] + random.normal(size=(steps, n, d))
    a = vg.Algorithm(rule=vg.Median(f=1), placement=vg.Adaptive(0.8, dampening))
    state, out = a.init(n, d, torch.float64), torch.zeros(n, d, dtype=torch.float64)
    places, mus, sent, updates, own = [], [], [], [], []
    for g in torch.from_numpy(gradients):
        assert state.placement is not None
        places.append(state.placement.at_workers)
        mus.append(state.placement.mu)
        vectors, state = a.send(g.clone(), state, out if in_place else None)
        sent.append(vectors.numpy().copy())
        update, state = a.finish(a.decide(vectors, state), state, in_place)
        updates.append(update.numpy().copy())
        assert state.placement is not None
        own.append(float((state.placement.sketches - state.placement.momenta).abs().max()))
    vectors, moved = oracle(gradients, places, mus, dampening)
    assert set(places) == {True, False}
    assert len(set(mus)) > 10
    np.testing.assert_allclose(np.stack(sent), vectors, atol=1e-12)
    np.testing.assert_allclose(np.stack(updates), moved, atol=1e-12)
    assert max(own) < 1e-12  # what the server keeps of them is what workers remember


def test_what_is_handed_back_is_the_callers_own() -> None:
    a = vg.Algorithm(rule=vg.Median(f=1), placement=vg.Adaptive(MU))
    state, g = a.init(3, 4), torch.ones(3, 4)
    for _ in range(30):
        vectors, after = a.send(g, state)
        update, after = a.aggregate(vectors, after)
        assert after.placement is not None
        kept = [x.clone() for x in (after.placement.momenta, after.placement.update, after.placement.sketches)]
        vectors.fill_(7)
        update.fill_(7)
        assert torch.equal(g, torch.ones(3, 4))
        now = (after.placement.momenta, after.placement.update, after.placement.sketches)
        assert all(map(torch.equal, kept, now))
        state = after


def test_a_worker_that_sends_nan_remembers_nothing_of_it() -> None:
    a = vg.Algorithm(rule=vg.Median(f=1), placement=vg.Adaptive(MU))
    state, g = a.init(5, 4), torch.ones(5, 4)
    for t in range(3):
        broken = g.clone()
        broken[4] = math.nan if t == 1 else 1.0
        vectors, state = a.send(broken, state)
        assert vectors[4].isnan().all() == (t == 1)
        update, state = a.aggregate(vectors, state)
        assert update.isfinite().all()
    assert state.placement is not None
    np.testing.assert_allclose(state.placement.momenta[:, 0].numpy(), [2.71, 2.71, 2.71, 2.71, 1.9], rtol=1e-6)
    np.testing.assert_allclose(state.placement.sketches[:, 0].numpy(), [2.71, 2.71, 2.71, 2.71, 1.9], rtol=1e-6)


def test_with_nesterov_gradients_are_taken_ahead() -> None:
    a = vg.Algorithm(rule=vg.Median(f=1), placement=vg.Adaptive(MU, nesterov=True))
    state, theta = a.init(3, 4), torch.zeros(4)
    for t in range(40):
        assert state.placement is not None
        ahead = state.placement.momenta if state.placement.at_workers else state.placement.update
        assert torch.equal(a.point(theta, state, 0.1), theta - state.placement.mu * 0.1 * ahead)
        vectors, state = a.send((-1.0) ** t * torch.ones(3, 4) + 0.1 * torch.eye(3, 4), state)
        _, state = a.aggregate(vectors, state)
    assert state.placement is not None
    assert not state.placement.at_workers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [WIDTH, WIDTH + 1, 3 * WIDTH - 5])
def test_sketches_are_linear_and_keep_inner_products(d: int, dtype: torch.dtype) -> None:
    x = torch.randn(4, d, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = x.clone()
    found = sketch(x, 3)
    assert found.shape == (4, WIDTH)
    assert torch.equal(x, before)
    exact = (x.double() @ x.double().T).numpy()
    np.testing.assert_allclose(found @ found.T, exact, atol=(0 if d == WIDTH else 0.08) * d, rtol=1e-12)
    halves = sketch(x[:2].double() / 2 + x[2:].double() / 2, 3)
    np.testing.assert_allclose(halves, (found[:2] + found[2:]) / 2, atol=1e-4)
    if d > WIDTH:
        assert not np.array_equal(found, sketch(x, 4))


def test_weights_that_repeat_in_step_are_seen_as_they_are() -> None:
    """A layout whose rows are a power of two long puts nothing on nothing."""
    x = torch.zeros(2, 64 * 4096)
    x[:, ::4096] = 1.0
    found = sketch(x, 0)
    np.testing.assert_allclose(np.square(found).sum(1), 64)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: vg.Adaptive(0.0), r"^Adaptive needs beta in \(0, 1\), got 0"),
        (lambda: vg.Adaptive(1.0), r"^Adaptive needs beta in \(0, 1\), got 1"),
        (lambda: vg.Adaptive(0.9, persistent=0.4), r"^Adaptive needs persistent in \[1/2, 1\], got 0\.4"),
        (lambda: vg.Adaptive(0.9, curvature=-1.0), r"^Adaptive needs curvature >= 0, got -1"),
        (lambda: vg.Algorithm(placement=ANYTHING), r"^Algorithm needs Adaptive or None in placement=, got 0\.9\.$"),
        (
            lambda: vg.Algorithm((vg.Momentum(0.9),), placement=vg.Adaptive(0.9)),
            r"^Algorithm: Adaptive\(.*\) is the momentum; leave Momentum\(.*\) out\.$",
        ),
        (
            lambda: vg.Algorithm(placement=vg.Adaptive(0.9)).init(3, 4, device="meta"),
            r"^Adaptive decides in main memory, got device meta; use device cpu, or one place\.$",
        ),
        (
            lambda: vg.Algorithm(placement=vg.Adaptive(0.9)).aggregate(torch.ones(3, 4), vg.Algorithm().init(3, 4)),
            r"^Algorithm: the state is one of another algorithm",
        ),
        (
            lambda: vg.Algorithm().send(torch.ones(3, 4), vg.Algorithm(placement=vg.Adaptive(0.9)).init(3, 4)),
            r"^Algorithm: the state is one of another algorithm",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_workers_that_come_and_go_are_refused() -> None:
    a = vg.Algorithm(rule=vg.Median(f=1), placement=vg.Adaptive(MU))
    _, state = a.aggregate(torch.ones(5, 4), a.init(5, 4))
    with pytest.raises(ValueError, match=r"^Adaptive follows each worker's momentum: it needs 5 vectors, got 4\.$"):
        a.aggregate(torch.ones(4, 4), state)


def test_engines_refuse_it_in_one_line() -> None:
    from varangian.engines.sharded import check_algorithm

    with pytest.raises(
        ValueError, match=r"^protect has momentum at one place, got Adaptive\(.*\); use Momentum\(0\.9\)"
    ):
        check_algorithm(
            "protect", vg.Algorithm(rule=vg.Median(f=1), placement=vg.Adaptive(0.9)), 5, columnwise=True, advice=""
        )


# ----------------------------------------------------------------------------------------------------------------- runs

SETTINGS = {"momentum_at": "adaptive", "steps": 30, "workers": 9, "byzantine": 2, "evaluate_every": 10, "batch_size": 4}


def test_a_run_has_its_columns_and_others_have_not(tmp_path: Path) -> None:
    e = vg.Experiment(rule="median", attack="little", **SETTINGS)
    result = vg.run(e, tmp_path)
    folder = result.folder
    assert folder is not None
    header = (folder / folders.METRICS).read_text().split("\n")[0]
    assert header.split(",") == [*COLUMNS, *PLACEMENT]
    again = vg.read(folder).measures
    assert [m.row() for m in again] == [m.row() for m in result.measures]
    assert isinstance(again, Rows)
    assert all(m.momentum_mu is not None and 0.45 <= m.momentum_mu <= 0.9 for m in again)
    assert result.measures[0].momentum_place == 1.0
    assert "adaptive0.9" in e.name
    other = vg.run(replace(e, momentum_at="worker"), tmp_path)
    assert other.folder is not None
    assert (other.folder / folders.METRICS).read_text().split("\n")[0].split(",") == COLUMNS
    assert other.measures[0].momentum_place is None
    assert len({replace(e, momentum_at=place).digest for place in ("adaptive", "worker", "server", "shared")}) == 4
    assert len({replace(e, momentum_at="adaptive", momentum=m).digest for m in (0.8, 0.9)}) == 2
    assert vg.Experiment.from_json(e.to_json()) == e


def test_rows_of_two_kinds_do_not_mix() -> None:
    plain = vg.Measures(0, 0, 0.1, 2.3)
    moving = replace(plain, momentum_place=1.0, momentum_mu=0.9)
    assert list(Rows([moving, moving])) == [moving, moving]
    with pytest.raises(ValueError, match="same columns"):
        Rows([plain, moving])


@pytest.mark.parametrize("attack", ["little", "label-flip", "nan"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_it_goes_on_and_is_replayed_byte_for_byte(attack: str, nesterov: bool, tmp_path: Path) -> None:
    e = vg.Experiment(rule="median", pre=("nnm",), attack=attack, nesterov=nesterov, **SETTINGS)
    whole = vg.run(e, tmp_path / "whole")
    assert whole.folder is not None

    def stop(step: int, evaluation: object) -> None:
        if step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(e, tmp_path / "cut", progress=stop)
    (cut,) = (tmp_path / "cut").iterdir()
    resumed = vg.resume(cut)
    assert resumed.began == 17
    for name in (folders.METRICS, folders.EVALUATIONS):
        assert (whole.folder / name).read_bytes() == (cut / name).read_bytes()
    assert vg.replay(whole.folder, step=29).agrees
    assert whole.max_accuracy == resumed.max_accuracy


@pytest.mark.parametrize(
    "numbers",
    [
        [0.5, 0.9, 0, 0, 1, 1, 0, 0],
        [1, 1.0, 0, 0, 1, 1, 0, 0],
        [1, math.nan, 0, 0, 1, 1, 0, 0],
        [1, 0.9, 0, 1e300, 1, 1, 0, 0],
        [1, 0.9, 0, 0, math.inf, 1, 0, 0],
        [1, 0.9, 0, 0, 1, -1, 0, 0],
        [1, 0.9, 0, 0, 1, 1, 0, 2],
    ],
)
def test_a_state_that_cannot_be_is_not_gone_on_from(numbers: list[float]) -> None:
    e = vg.Experiment(rule="median", **SETTINGS)
    simulation, _ = build(e, open_dataset(e))
    simulation.step()
    before = simulation.parameters.clone()
    snapshot = simulation.snapshot()
    bad = (*snapshot.server[:-1], torch.tensor(numbers, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^numbers of momentum that moves: "):
        simulation.restore(replace(snapshot, server=bad, parameters=snapshot.parameters + 1))
    assert torch.equal(simulation.parameters, before)


def test_on_a_card_it_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"^momentum_at: adaptive decides in main memory \(device cpu\), and"):
        vg.Experiment(momentum_at="adaptive", device="cuda")


def test_without_momentum_there_is_nothing_to_place() -> None:
    e = vg.Experiment(momentum_at="adaptive", momentum=0.0)
    assert e.make_algorithm().placement is None
    assert e.digest == vg.Experiment(momentum_at="worker", momentum=0.0).digest
