"""The paper's two equations: the four stages against plain float64 recursions, torch.optim, and each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
import varangian as vg

D, HONEST, F = 6, 5, 2
RATES = [0.1, 0.1, 0.05, 0.2, 0.1, 0.02, 0.1, 0.1]
_RANDOM = np.random.default_rng(5)
START = _RANDOM.normal(size=D)
TARGETS = _RANDOM.normal(size=(HONEST, D))
NOISE = _RANDOM.normal(size=(len(RATES), HONEST, D))

RULES = {
    "average": (vg.Average(F), oracles.average),
    "median": (vg.Median(F), oracles.median),
    "multi-krum": (vg.MultiKrum(F), oracles.multi_krum),
    "trimmed-mean": (vg.TrimmedMean(F), oracles.trimmed_mean),
}
ATTACKS = {"none": (None, None), "little": (vg.Little(1.5), oracles.little), "empire": (vg.Empire(1.1), oracles.empire)}


def gradient(step: int, worker: int, point: np.ndarray) -> np.ndarray:
    """A noisy quadratic per worker: nonlinear in nothing, but it does depend on where it is taken."""
    return 1.3 * (point - TARGETS[worker]) + NOISE[step, worker]


def trajectory(
    algorithm: vg.Algorithm, attack: vg.Attack | None = None, rates: Sequence[float] = RATES
) -> tuple[np.ndarray, list[Tensor]]:
    """Parameters before each step and after the last, and the points where gradients were taken."""
    state = algorithm.init(HONEST, D, dtype=torch.float64)
    parameters = torch.from_numpy(START.copy())
    rows, points = [parameters.numpy()], []
    for t, lr in enumerate(rates):
        point = algorithm.point(parameters, state, lr)
        points.append(point)
        sampled = np.stack([gradient(t, i, point.expand(HONEST, D)[i].numpy()) for i in range(HONEST)])
        vectors, state = algorithm.send(torch.from_numpy(sampled), state)
        if attack is not None:
            vectors = torch.cat([vectors, attack(vectors, F)])
        update, state = algorithm.aggregate(vectors, state)
        parameters = parameters - lr * update
        rows.append(parameters.numpy())
    return np.stack(rows), points


def of_torch(steps: int = len(RATES), **options: float | bool) -> np.ndarray:
    """torch.optim.SGD on the mean gradient at a constant rate of 0.1."""
    parameters = torch.from_numpy(START.copy()).requires_grad_()
    optimizer = torch.optim.SGD([parameters], lr=0.1, **options)  # type: ignore[arg-type]
    rows = [START.copy()]
    for t in range(steps):
        point = parameters.detach().numpy()
        parameters.grad = torch.from_numpy(np.mean([gradient(t, i, point) for i in range(HONEST)], axis=0))
        optimizer.step()
        rows.append(parameters.detach().numpy().copy())
    return np.stack(rows)


CONSTANT = [0.1] * len(RATES)


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------------------------------- the laws


def test_everything_off_is_plain_sgd() -> None:
    close(trajectory(vg.Algorithm(), rates=CONSTANT)[0], of_torch())


def test_without_attack_the_average_does_not_care_where_momentum_stands() -> None:
    expected = of_torch(momentum=0.9)
    for algorithm in (
        vg.Algorithm(worker=(vg.Momentum(0.9),)),
        vg.Algorithm(server=(vg.Momentum(0.9),)),
        vg.Algorithm(worker=(vg.SharedMomentum(0.9),)),
    ):
        close(trajectory(algorithm, rates=CONSTANT)[0], expected)


def test_the_look_ahead_points_are_those_of_torch() -> None:
    """torch rewrites Nesterov's momentum so that its parameters are our look-ahead points."""
    expected = of_torch(momentum=0.9, nesterov=True)
    points = trajectory(vg.Algorithm(server=(vg.Momentum(0.9, nesterov=True),)), rates=CONSTANT)[1]
    close(torch.stack(points).numpy(), expected[:-1])


@pytest.mark.parametrize("side", ["worker", "server"])
def test_dampening_is_that_of_torch_but_for_the_first_step(side: str) -> None:
    """torch takes the first gradient undamped; here m starts at zero and every gradient is damped alike."""
    stages = (vg.Momentum(0.9, dampening=0.4),)
    algorithm = vg.Algorithm(worker=stages) if side == "worker" else vg.Algorithm(server=stages)
    ours = trajectory(algorithm, rates=CONSTANT)[0]
    theirs = of_torch(momentum=0.9, dampening=0.4, steps=1)
    close(ours[1] - ours[0], 0.6 * (theirs[1] - theirs[0]))

    m = np.zeros(D)
    for t in range(len(CONSTANT)):  # the definition, with the mean gradient at our own points
        m = 0.9 * m + 0.6 * np.mean([gradient(t, i, ours[t]) for i in range(HONEST)], axis=0)
        close(ours[t + 1], ours[t] - 0.1 * m)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.3])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", RULES)
def test_every_place_against_its_recursion(rule: str, attack: str, dampening: float, nesterov: bool) -> None:
    ours, plain_rule = RULES[rule]
    crafted, plain_attack = ATTACKS[attack]
    if attack == "none" and rule == "multi-krum":
        ours = vg.MultiKrum(1)  # five vectors only
    f = ours.f if attack == "none" else F
    options = (0.9, dampening, nesterov)
    places: list[tuple[vg.Algorithm, Callable[..., np.ndarray]]] = [
        (vg.Algorithm(worker=(vg.Momentum(*options),), rule=ours), oracles.sgd_worker_momentum),
        (vg.Algorithm(rule=ours, server=(vg.Momentum(*options),)), oracles.sgd_server_momentum),
        (vg.Algorithm(worker=(vg.SharedMomentum(*options),), rule=ours), oracles.sgd_shared_momentum),
    ]
    for algorithm, oracle in places:
        expected = oracle(
            *(gradient, HONEST, f, START, RATES, 0.9),
            *(plain_rule, plain_attack, dampening, nesterov),
        )
        close(trajectory(algorithm, crafted)[0], expected)


@pytest.mark.parametrize("attack", ["little", "empire"])
@pytest.mark.parametrize("rule", ["median", "multi-krum"])
def test_under_attack_the_place_matters(rule: str, attack: str) -> None:
    ours, crafted = RULES[rule][0], ATTACKS[attack][0]
    worker = trajectory(vg.Algorithm(worker=(vg.Momentum(0.9),), rule=ours), crafted)[0]
    server = trajectory(vg.Algorithm(rule=ours, server=(vg.Momentum(0.9),)), crafted)[0]
    close(worker[:2], server[:2])  # one step in, all momenta are the gradients themselves
    assert np.abs(worker[-1] - server[-1]).max() > 1e-2


def test_the_shared_variant_is_neither_of_the_two() -> None:
    """F(g_i + mu G) = F(g_i) + mu G for rules that follow translations; Empire's vectors do not, Little's do."""
    rule = vg.Median(F)
    shared = vg.Algorithm(worker=(vg.SharedMomentum(0.9),), rule=rule)
    server = vg.Algorithm(rule=rule, server=(vg.Momentum(0.9),))
    close(trajectory(shared, vg.Little(1.5))[0], trajectory(server, vg.Little(1.5))[0])
    assert np.abs(trajectory(shared, vg.Empire(1.1))[0] - trajectory(server, vg.Empire(1.1))[0]).max() > 1e-2


def test_clip_stands_before_momentum_at_the_worker() -> None:
    def clipped(step: int, worker: int, point: np.ndarray) -> np.ndarray:
        return oracles.clip(gradient(step, worker, point), 1.5)

    algorithm = vg.Algorithm(worker=(vg.Clip(1.5), vg.Momentum(0.9)), rule=vg.Median(F))
    expected = oracles.sgd_worker_momentum(clipped, HONEST, F, START, RATES, 0.9, oracles.median, oracles.little)
    close(trajectory(algorithm, vg.Little(1.5))[0], expected)


def test_mixings_stand_before_the_rule() -> None:
    x = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    algorithm = vg.Algorithm(pre=(vg.NearestNeighborMixing(2),), rule=vg.Median(2))
    update, _ = algorithm.aggregate(x, algorithm.init(7, 4, dtype=torch.float64))
    close(update.numpy(), oracles.median(oracles.nnm(x.numpy(), 2), 2))


# ------------------------------------------------------------------------------------------------------- state


def same(a: vg.State, b: vg.State) -> bool:
    """Bit for bit."""

    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y is None or (x is not None and y is not None and torch.equal(x, y))

    return (
        all(equal(x, y) for x, y in zip(a.worker + a.server, b.worker + b.server, strict=True))
        and len(a.worker) == len(b.worker)
        and equal(a.previous, b.previous)
    )


def copied(state: vg.State) -> vg.State:
    def copy(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.clone()

    return vg.State(tuple(map(copy, state.worker)), tuple(map(copy, state.server)), copy(state.previous))


STAGES = {
    "clip": vg.Clip(1.0),
    "momentum": vg.Momentum(0.9),
    "other": vg.Momentum(0.5, 0.2),
    "shared": vg.SharedMomentum(0.7),
}
ORDERS = [order for length in range(4) for order in product(STAGES, repeat=length)]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_send_into_out_equals_send(order: tuple[str, ...]) -> None:
    """In two buffers that live as long as the run, as in the simulator, and whatever the order of the stages."""
    algorithm = vg.Algorithm(worker=tuple(STAGES[name] for name in order), rule=vg.Median(1))
    plain, lean = algorithm.init(3, D), algorithm.init(3, D)
    vectors, sampled = torch.empty(5, D), torch.empty(3, D)
    if not any(stage.remembers for stage in algorithm.worker):
        sampled = vectors[:3]  # the simulator has one buffer where nothing is remembered
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        gradients = torch.randn(3, D, generator=generator)
        expected, plain = algorithm.send(gradients, plain)
        sampled.copy_(gradients)
        sent, lean = algorithm.send(sampled, lean, out=vectors[:3])
        assert sent.data_ptr() == vectors.data_ptr()
        assert torch.equal(sent, expected)
        vectors[3:] = 7.0  # the adversary's rows
        update, lean = algorithm.aggregate(vectors, lean)
        again, plain = algorithm.aggregate(torch.cat([expected, vectors[3:]]), plain)
        assert torch.equal(update, again)
        assert same(lean, plain)
        if sampled.data_ptr() != vectors.data_ptr():
            sampled.fill_(float("nan"))  # what the next step overwrites must not be remembered


@pytest.mark.parametrize("order", [o for o in ORDERS if len(o) < 3], ids="-".join)
def test_state_is_functional_and_inputs_are_only_read(order: tuple[str, ...]) -> None:
    """Without out, an old state is as good as new: going on from it twice gives the same twice."""
    algorithm = vg.Algorithm(
        worker=tuple(STAGES[name] for name in order), rule=vg.Median(1), server=(vg.Clip(1.0), vg.Momentum(0.8))
    )
    state = algorithm.init(3, D)
    for _ in range(2):  # away from zero
        sent, state = algorithm.send(torch.randn(3, D), state)
        _, state = algorithm.aggregate(sent, state)
    before, gradients = copied(state), torch.randn(3, D)
    kept = gradients.clone()
    first, sent_state = algorithm.send(gradients, state)
    vectors = first.clone()
    update, next_state = algorithm.aggregate(vectors, sent_state)
    assert torch.equal(gradients, kept)
    assert torch.equal(vectors, first)
    assert same(state, before)
    again, again_state = algorithm.send(gradients, before)
    second, second_state = algorithm.aggregate(again, again_state)
    assert torch.equal(update, second)
    assert same(next_state, second_state)


def test_point_reads_only_and_is_the_parameters_themselves_without_nesterov() -> None:
    parameters, algorithm = torch.randn(D), vg.Algorithm(worker=(vg.Clip(1.0), vg.Momentum(0.9)))
    assert algorithm.point(parameters, algorithm.init(2, D), 0.1) is parameters
    ahead = vg.Algorithm(worker=(vg.Momentum(0.9, nesterov=True),))
    _, state = ahead.send(torch.ones(2, D), ahead.init(2, D))
    kept, momenta = parameters.clone(), copied(state)
    point = ahead.point(parameters, state, 0.1)
    assert point.shape == (2, D)
    torch.testing.assert_close(point, parameters.expand(2, D) - 0.09)
    assert torch.equal(parameters, kept)
    assert same(state, momenta)


def test_init_has_a_momentum_where_a_stage_remembers_and_nothing_else() -> None:
    algorithm = vg.Algorithm(
        worker=(vg.Clip(1.0), vg.Momentum(0.9), vg.SharedMomentum(0.9)), server=(vg.Clip(1.0), vg.Momentum(0.9))
    )
    state = algorithm.init(4, 3, dtype=torch.float64)
    assert [None if m is None else tuple(m.shape) for m in state.worker] == [None, (4, 3), None]
    assert [None if m is None else tuple(m.shape) for m in state.server] == [None, (3,)]
    assert state.previous is not None
    assert tuple(state.previous.shape) == (3,)
    assert {m.dtype for m in (*state.worker, *state.server, state.previous) if m is not None} == {torch.float64}
    assert vg.Algorithm(worker=(vg.Momentum(0.9),)).init(4, 3).previous is None


def test_the_previous_aggregate_is_the_output_of_f_before_the_server_moves_it() -> None:
    algorithm = vg.Algorithm(worker=(vg.SharedMomentum(0.5),), server=(vg.Momentum(0.9),))
    state = algorithm.init(2, 3)
    for expected in (1.0, 1.5, 1.75):
        sent, state = algorithm.send(torch.ones(2, 3), state)
        update, state = algorithm.aggregate(sent, state)
        assert state.previous is not None
        torch.testing.assert_close(state.previous, torch.full((3,), expected))
        update.zero_()  # what is remembered is not what was handed out
        torch.testing.assert_close(state.previous, torch.full((3,), expected))
        _, state = algorithm.aggregate(sent, state)


# ---------------------------------------------------------------------------------------------------- wrong use


def test_shared_momentum_cannot_stand_at_the_server() -> None:
    message = r"^Algorithm: SharedMomentum\(beta=0\.9.*\) acts at the workers, got it in server=; move it to worker=\.$"
    with pytest.raises(ValueError, match=message):
        vg.Algorithm(server=(vg.Clip(1.0), vg.SharedMomentum(0.9)))


def test_too_few_vectors() -> None:
    algorithm = vg.Algorithm(rule=vg.MultiKrum(f=4))
    with pytest.raises(ValueError, match=r"^MultiKrum\(f=4.*\) needs n >= 2f \+ 3 = 11 vectors, got 10\.$"):
        algorithm.aggregate(torch.ones(10, 3), algorithm.init(6, 3))


def test_more_faulty_vectors_than_tolerated_are_refused() -> None:
    vectors = torch.ones(7, 3)
    vectors[4:] = float("nan")
    for rule in (vg.Median(2), vg.MultiKrum(2)):
        algorithm = vg.Algorithm(rule=rule)
        with pytest.raises(ValueError, match="tolerates 2 vectors with NaN or infinity, got 3"):
            algorithm.aggregate(vectors, algorithm.init(4, 3))


@pytest.mark.parametrize(
    ("pre", "rule", "least"),
    [
        ((), vg.Average(), 1),
        ((), vg.MultiKrum(4), 11),
        ((vg.NearestNeighborMixing(3),), vg.Median(1), 7),
        ((vg.Bucketing(s=3),), vg.MultiKrum(1), 13),  # 13 vectors are 5 buckets, 12 are 4
    ],
)
def test_min_n_is_the_least_that_every_stage_accepts(pre: tuple, rule: vg.Rule, least: int) -> None:
    algorithm = vg.Algorithm(pre=pre, rule=rule)
    assert algorithm.min_n == least
    algorithm.aggregate(torch.randn(least, 4), algorithm.init(least, 4))
    if least > 1:
        with pytest.raises(ValueError, match="needs n >="):
            algorithm.aggregate(torch.randn(least - 1, 4), algorithm.init(least - 1, 4))


def test_an_algorithm_is_a_value() -> None:
    one, two = (vg.Algorithm(worker=(vg.Clip(2.0), vg.Momentum(0.9)), rule=vg.MultiKrum(f=24)) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert [field.name for field in fields(one)] == [
        "worker",
        "pre",
        "rule",
        "server",
        "placement",
        "quarantine",
    ]  # Algorithm(worker, pre, rule, server, placement, quarantine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nope"}, "Algorithm needs a device, such as cpu, cuda or cuda:1, got 'nope'."),
        ({"device": []}, "Algorithm needs a device, such as cpu, cuda or cuda:1, got []."),
        ({"device": "mtia"}, "Algorithm: torch cannot compute on 'mtia' here."),
        ({"dtype": "float32"}, "Algorithm needs a floating-point dtype, such as torch.float32, got 'float32'."),
        ({"dtype": torch.int64}, "Algorithm needs a floating-point dtype, such as torch.float32, got torch.int64."),
    ],
)
def test_devices_and_types_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        vg.Algorithm((vg.Momentum(0.9),), rule=vg.Average()).init(3, 2, **options)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("change", "came"),
    [
        (lambda x: x.to_sparse(), "sparse_coo"),
        (lambda x: x.to("meta"), "on meta"),
        (
            lambda x: torch.nested.as_nested_tensor(list(x)) if x.ndim == 2 else x.to_sparse(),
            "(a nested tensor|sparse)",
        ),
    ],
    ids=["sparse", "meta", "nested"],
)
def test_tensors_without_numbers_at_regular_places_are_refused_in_one_line(
    change: Callable[[torch.Tensor], torch.Tensor], came: str
) -> None:
    x = torch.ones(5, 3)
    algorithm = vg.Algorithm((vg.Clip(2.0), vg.Momentum(0.9)), rule=vg.CenteredClipping(f=1))
    state = algorithm.init(5, 3)
    spoilt = replace(state, previous=change(x[0]))
    for call in (
        lambda: algorithm.send(change(x), state),
        lambda: algorithm.aggregate(change(x), state),
        lambda: algorithm.aggregate(x, spoilt),
        lambda: vg.Clip(2.0)(change(x), None),
        lambda: vg.Momentum(0.9)(x, change(x)),
        lambda: vg.CenteredClipping(f=1)(x, previous=change(x[0])),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*, got [^\n]*{came}[^\n]*\.$"):
            call()


@pytest.mark.parametrize("change", [lambda x: x.to_sparse(), lambda x: x.to("meta")], ids=["sparse", "meta"])
def test_an_answer_without_numbers_at_regular_places_is_refused_in_one_line(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    class Elsewhere(vg.General):
        needs = "1", 1  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

        def combine(self, x, previous):
            return change(x.mean(0))

    with pytest.raises(ValueError, match=r"^Elsewhere must answer float32 \[3\], got float32 \[3\] [a-z_ ]+\.$"):
        Elsewhere(f=0)(torch.ones(5, 3))


@pytest.mark.parametrize("rule", [vg.MultiKrum(f=2), vg.Median(f=2), vg.CenteredClipping(f=2), vg.Bulyan(f=1)], ids=str)
@pytest.mark.parametrize("pre", [(), (vg.NearestNeighborMixing(f=2),)], ids=["plain", "mixed"])
def test_stages_may_be_shown_some_vectors_in_an_order_of_their_own(rule: vg.Rule, pre: tuple[vg.Mixing, ...]) -> None:
    """What is decided is about all vectors, as if those that were shown had come alone."""
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((12, 40)))
    rows = np.array([11, 0, 7, 3, 9, 2, 5, 8, 1])
    algorithm = vg.Algorithm(pre=pre, rule=rule)
    alone, among = (
        algorithm.decide(x[rows], algorithm.init(9, 40, torch.float64)),
        algorithm.decide(x, algorithm.init(12, 40, torch.float64), rows=rows),
    )
    assert torch.equal(alone.aggregate, among.aggregate)
    assert (alone.table is None) == (among.table is None)
    if alone.table is not None and among.table is not None:
        assert np.array_equal(among.table[..., rows], alone.table[..., :9])
        assert not among.table[..., [4, 6, 10]].any()
