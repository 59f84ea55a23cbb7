"""What an algorithm is made of and handed: stages in their places, states that fit, results that are one's own, and a
bad gradient that is not remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core import kernels
from varangian.simulation.gradients import Batch
from varangian.simulation.simulate import Simulation

H, D = 4, 7
STAGES = {
    "clip": vg.Clip(1.0),
    "unit": vg.Clip(0.5, "unit"),
    "momentum": vg.Momentum(0.9),
    "averaging": vg.Momentum(0.5, 0.5),
    "shared": vg.SharedMomentum(0.7),
}
ORDERS = [order for length in range(4) for order in product(STAGES, repeat=length)]
SHORT = [order for order in ORDERS if 0 < len(order) < 3]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def made(order: tuple[str, ...], server: tuple[Any, ...] = ()) -> vg.Algorithm:
    return vg.Algorithm(worker=tuple(STAGES[name] for name in order), rule=vg.Median(f=1), server=server)


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    text = str(error.value)
    assert "\n" not in text
    assert not isinstance(error.value, vg.Refused)
    assert all(word in text for word in words), text


# ------------------------------------------------------------------------------------------------ stages

WRONG: list[Any] = [
    vg.Median, vg.Momentum, "median", None, 3, lambda x: x, [None], ["momentum"], {"a": 1}, np.zeros(2),
    vg.Little(1.0), (vg.Median, vg.Median),
]  # fmt: skip


@pytest.mark.parametrize("place", ["worker", "pre", "rule", "server"])
def test_what_is_no_stage_of_its_place_is_refused_when_it_is_made(place: str) -> None:
    right = {"worker": vg.Momentum(0.9), "pre": vg.NearestNeighborMixing(f=1), "rule": vg.Median(f=1)}
    right["server"] = right["worker"]
    beside: list[Any] = [stage for stage in right.values() if type(stage) is not type(right[place])]
    beside += [kind(f=1) for kind in vg.RULES.values() if place != "rule" and not kind.needs_root]
    for wrong in WRONG + beside:
        refused(lambda wrong=wrong: vg.Algorithm(**{place: wrong}), "Algorithm needs", f"in {place}=")
    refused(lambda: vg.Algorithm(rule=vg.Median), "the class Median", "Median(...)")  # type: ignore[arg-type]
    refused(lambda: vg.Algorithm(vg.Median(f=1)), "rule=")  # type: ignore[arg-type]


def test_one_stage_and_a_list_of_stages_are_as_good_as_a_tuple() -> None:
    stage, mixing = vg.Momentum(0.9), vg.NearestNeighborMixing(f=1)
    one = vg.Algorithm(worker=(stage,), pre=(mixing,), rule=vg.Median(f=1), server=(stage,))
    given: Any
    for given in (lambda s: s, lambda s: [s]):
        other = vg.Algorithm(worker=given(stage), pre=given(mixing), rule=vg.Median(f=1), server=given(stage))
        assert other == one
        assert hash(other) == hash(one)
    assert replace(one, worker=[]) == replace(one, worker=())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ states


def others(state: vg.State, place: str, h: int, d: int) -> list[vg.State]:
    """States that differ in one memory: of more or fewer workers, coordinates, dimensions, of another type, or none."""

    def changed(m: Tensor) -> list[Any]:
        rows = [h - 1, h + 1, 1] if m.ndim == 2 else []
        found = [torch.zeros(r, d, dtype=m.dtype) for r in rows]
        found += [torch.zeros(*m.shape[:-1], other, dtype=m.dtype) for other in (d - 1, d + 1, 1, 4096)]
        return [*found, torch.zeros(d, 1), m.double() if m.dtype != torch.float64 else m.float(), m.numpy(), None,
                torch.zeros(d) if m.ndim == 2 else torch.zeros(1, d), torch.empty_like(m, device="meta")]  # fmt: skip

    if place == "previous":
        return [] if state.previous is None else [replace(state, previous=m) for m in changed(state.previous)]
    memories = getattr(state, place)
    result = (
        [replace(state, **{place: (*memories, None)}), replace(state, **{place: memories[:-1]})] if memories else []
    )
    for i, m in enumerate(memories):
        wrong = [torch.zeros(h, d)] if m is None else changed(m)
        result += [replace(state, **{place: (*memories[:i], w, *memories[i + 1 :])}) for w in wrong]
    return result


@pytest.mark.parametrize("order", [o for o in ORDERS if len(o) < 3], ids="-".join)
def test_a_state_that_does_not_fit_is_refused(order: tuple[str, ...]) -> None:
    a = made(order, server=(vg.Clip(1.0), vg.Momentum(0.9)))
    state, x, out = a.init(H, D), torch.ones(H, D), torch.empty(H, D)
    sent, good = a.send(x, state)
    decision = a.decide(sent, good)
    for place in ("worker", "server", "previous"):
        for wrong in others(state, place, H, D):
            if place != "server":
                refused(lambda w=wrong: a.send(x, w), "Algorithm")
                refused(lambda w=wrong: a.send(x.clone(), w, out=out), "Algorithm")
            if place != "worker":
                refused(lambda w=wrong: a.aggregate(sent, w), "Algorithm")
                refused(lambda w=wrong: a.decide(sent, w), "Algorithm")
            if place == "server":
                refused(lambda w=wrong: a.finish(decision, w), "Algorithm")
    for h, d in ((H + 4, D), (H - 1, D), (1, D), (H, D + 1), (H, 4096), (H, 1)):
        if any(stage.remembers or (stage.uses_previous and d != D) for stage in a.worker):
            refused(lambda h=h, d=d: a.send(torch.zeros(h, d), state), "Algorithm needs")
        if d != D:
            refused(lambda h=h, d=d: a.aggregate(torch.zeros(h, d), state), "Algorithm needs")
            refused(lambda d=d: a.point(torch.zeros(d), state, 0.1), "Algorithm needs")
    refused(lambda: a.point(torch.zeros(D, dtype=torch.float64), state, 0.1), "Algorithm needs")


def test_what_is_no_tensor_of_vectors_is_refused_in_one_line() -> None:
    a = made(("momentum",))
    state = a.init(H, D)
    wrong: list[Any] = [
        torch.ones(D), torch.ones(H, D, dtype=torch.int64), torch.ones(1, H, D), None, "vectors",
    ]  # fmt: skip
    refused(lambda: a.aggregate(torch.ones(H, 0), made(()).init(H, 0)), "Algorithm needs vectors")
    for no_state in (None, {}, state.worker, "state"):
        given: Any = no_state
        refused(lambda s=given: a.send(torch.ones(H, D), s), "Algorithm needs a state")
        refused(lambda s=given: a.aggregate(torch.ones(H, D), s), "Algorithm needs a state")
        refused(lambda s=given: a.point(torch.ones(D), s, 0.1), "Algorithm needs a state")
    for x in wrong:
        refused(lambda x=x: a.send(x, state), "Algorithm needs gradients as a floating-point tensor [h, d]")
        refused(lambda x=x: a.aggregate(x, state), "Algorithm needs vectors as a floating-point tensor [n, d]")
    wrong = [np.ones((H, D), np.float32), torch.ones(H, D), None, torch.ones(D).long()]
    for x in wrong:
        refused(lambda x=x: a.point(x, state, 0.1), "Algorithm needs parameters")
    wrong = [torch.empty(H, D + 1), torch.empty(H, D, dtype=torch.float64), np.empty((H, D))]
    for out in wrong:
        refused(lambda out=out: a.send(torch.ones(H, D), state, out=out), "Algorithm needs out")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transforms_called_by_hand_check_their_memory(dtype: torch.dtype) -> None:
    for x in (torch.ones(H, D, dtype=dtype), torch.ones(D, dtype=dtype)):
        wrong: list[Any] = [
            None, torch.zeros(H + 1, D, dtype=dtype), torch.zeros(1, D, dtype=dtype),
            torch.zeros(*x.shape[:-1], D + 9, dtype=dtype), torch.zeros(x.shape, dtype=torch.int32),
        ]  # fmt: skip
        for memory in wrong:
            refused(lambda x=x, m=memory: vg.Momentum(0.9)(x, m), "Momentum needs its memory")
        wrong = [None, torch.zeros(D + 1, dtype=dtype), torch.zeros(1, D, dtype=dtype), np.zeros(D)]
        for previous in wrong:
            refused(lambda x=x, p=previous: vg.SharedMomentum(0.9)(x, previous=p), "SharedMomentum needs the last")


# ------------------------------------------------------------------------------------------------ ownership


@pytest.mark.parametrize("order", [o for o in ORDERS if len(o) < 3], ids="-".join)
def test_what_comes_back_may_be_written_into(order: tuple[str, ...]) -> None:
    """Two users of one algorithm, one of whom writes into all that is handed out, see the same."""
    for server in ((), (vg.Momentum(0.9),), (vg.Clip(1.0), vg.Momentum(0.5), vg.Momentum(0.5)), (vg.Clip(9.0),)):
        a = made(order, server)
        one = other = a.init(H, D)
        for step in range(4):
            x = torch.full((H, D), 1.0 + step)
            sent, one = a.send(x, one)
            update, one = a.aggregate(sent, one)
            again, other = a.send(x.clone(), other)
            assert torch.equal(sent, again)
            decision = a.decide(again, other)
            again.fill_(float("nan"))
            shown, other = a.finish(decision, other)
            assert torch.equal(shown, update)
            shown.mul_(-1e3)
            decision.aggregate.fill_(float("nan"))


# ------------------------------------------------------------------------------------------------ a bad gradient

BAD = [float("nan"), float("inf"), -float("inf")]


def steps_of(dtype: torch.dtype) -> list[Tensor]:
    """Gradients of which some are not finite, in one coordinate, in all, in several workers at once."""
    random = torch.Generator().manual_seed(2)
    found = [torch.randn(H, D, generator=random, dtype=torch.float64).to(dtype) for _ in range(8)]
    found[1][2, 0] = BAD[0]
    found[2][2] = BAD[1]
    found[4][0, 3], found[4][3, 6] = BAD[2], BAD[1]
    found[5] = torch.full_like(found[5], BAD[0])
    found[6][1] = torch.finfo(dtype).max  # finite: what it adds up to may not be
    found[7][1] = torch.finfo(dtype).max
    return found


def alone(a: vg.Algorithm, gradients: list[Tensor], i: int, dtype: torch.dtype) -> list[Tensor]:
    """What worker i sends, by the definition: a step at which it sends something that is not finite never was."""
    state, result = a.init(1, D, dtype), []
    for g in gradients:
        vectors, memories = g[i : i + 1].clone(), []
        for stage, memory in zip(a.worker, state.worker, strict=True):
            vectors, memory = stage(vectors, None if memory is None else memory.clone(), state.previous)
            memories.append(memory)
        result.append(vectors)
        if vectors.isfinite().all():
            state = replace(state, worker=tuple(memories))
    return result


def equal(x: Tensor, y: Tensor) -> bool:
    return torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("in_place", [False, True])
def test_a_bad_gradient_is_sent_and_not_remembered(order: tuple[str, ...], dtype: torch.dtype, in_place: bool) -> None:
    a, gradients = made(order), steps_of(dtype)
    expected = [torch.cat(rows) for rows in zip(*(alone(a, gradients, i, dtype) for i in range(H)), strict=True)]
    state, out = a.init(H, D, dtype), torch.empty(H, D, dtype=dtype)
    shared = not any(stage.remembers for stage in a.worker)
    for g, wanted in zip(gradients, expected, strict=True):
        if not in_place:
            kept = g.clone()
            sent, state = a.send(g, state)
            assert equal(g, kept)
        else:
            sent, state = a.send(out.copy_(g) if shared else g.clone(), state, out=out)
            assert sent is out
        assert equal(sent, wanted)
        assert all(m is None or m.isfinite().all() for m in state.worker)


@pytest.mark.parametrize("order", [o for o in SHORT if sum(STAGES[s].remembers for s in o) < 2], ids="-".join)
def test_gradients_may_be_sent_in_their_own_place(order: tuple[str, ...]) -> None:
    a, buffer = made(order), torch.empty(H, D)
    state = other = a.init(H, D)
    for g in steps_of(torch.float32):
        wanted, other = a.send(g, other)
        sent, state = a.send(buffer.copy_(g), state, out=buffer)
        assert sent is buffer
        assert equal(sent, wanted)


class Given:
    """A model whose gradients are given."""

    def __init__(self, steps: list[Tensor]) -> None:
        self.steps, self.d = steps, steps[0].shape[1]

    def parameters(self) -> Tensor:
        return torch.zeros(self.d, dtype=self.steps[0].dtype)

    def begin(self, point: Tensor, batch: Batch, out: Tensor, step: int) -> Tensor:
        out.copy_(self.steps[step])
        return torch.zeros(out.shape[0])

    def adopt_buffers(self) -> None:
        pass

    def buffers(self) -> dict[str, Tensor]:
        return {}

    def adopt(self, parameters: Tensor, buffers: dict[str, Tensor] | None = None) -> None:
        pass


@dataclass(frozen=True)
class Null(vg.General):
    """No step, whatever comes: parameters stay finite."""

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return torch.zeros_like(x[0])


def simulation(a: vg.Algorithm, gradients: list[Tensor], measure: bool) -> Simulation:
    h = gradients[0].shape[0]
    batch = Batch(torch.zeros(h, 1, 1), torch.zeros(h, 1, dtype=torch.int64))
    return Simulation(Given(gradients), lambda step: batch, a, workers=h, measure=measure)  # type: ignore[arg-type]


ONE_GO: list[tuple[str, ...]] = [(), ("clip",), ("unit",), ("momentum",), ("averaging",), ("clip", "momentum"),
          ("unit", "averaging")]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", [*ONE_GO, ("momentum", "clip"), ("momentum", "averaging")], ids="-".join)
@pytest.mark.parametrize("measure", [False, True])
def test_the_simulator_sends_what_the_algorithm_sends(
    order: tuple[str, ...], dtype: torch.dtype, measure: bool
) -> None:
    """In one go or stage by stage, on steps with bad gradients too; and so it does when it goes on from a snapshot."""
    a, gradients = replace(made(order), rule=Null(f=0)), steps_of(dtype)
    state, s = a.init(H, D, dtype), simulation(a, gradients, measure)
    for step, g in enumerate(gradients):
        sent, state = a.send(g.clone(), state)
        if step in (3, 5):
            fresh = simulation(a, gradients, measure)
            fresh.restore(s.snapshot())
            s = fresh
        s.step()
        assert equal(s.vectors, sent)


def test_a_derived_stage_is_called_in_the_simulator() -> None:
    @dataclass(frozen=True)
    class Zeroed(vg.Momentum):
        def __call__(
            self, x: Tensor, memory: Any = None, previous: Any = None, out: Any = None
        ) -> tuple[Tensor, Tensor]:
            y, memory = super().__call__(x, memory, previous, out)
            return y.mul_(0), memory

    @dataclass(frozen=True)
    class Doubled(vg.Clip):
        def __call__(self, x: Tensor, memory: Any = None, previous: Any = None, out: Any = None) -> tuple[Tensor, None]:
            y, _ = super().__call__(x, memory, previous, out)
            return y.mul_(2), None

    g = [torch.ones(H, D) for _ in range(3)]
    for worker, wanted in (((Zeroed(0.9),), 0.0), ((Doubled(1.0),), 2 / D**0.5), ((Doubled(1.0), Zeroed(0.9)), 0.0)):
        s = simulation(vg.Algorithm(worker=worker), g, measure=True)
        for _ in range(3):
            s.step()
            torch.testing.assert_close(s.vectors, torch.full((H, D), wanted))


def test_kernels_are_never_reached_with_other_shapes() -> None:
    x = torch.ones(H, D)
    for y in (torch.ones(H - 1, D), torch.ones(H, D - 1), torch.ones(D + 1), torch.ones(2, D)):
        with pytest.raises(ValueError, match="go with"):
            kernels.blend(1.0, x, 1.0, y)


@pytest.mark.parametrize(("dtype", "huge"), [(torch.float16, 6e4), (torch.float32, 3e38), (torch.float64, 1.7e308)])
def test_two_momenta_recover_from_what_makes_them_overflow(dtype: torch.dtype, huge: float) -> None:
    """Finite memories whose next sum overflows would be kept for ever: that worker begins anew."""
    a = vg.Algorithm(worker=(vg.Momentum(0.5), vg.Momentum(0.9)), rule=vg.TrimmedMean(f=1))
    state = a.init(5, 3, dtype=dtype)
    for step in range(40):
        g = torch.ones(5, 3, dtype=dtype)
        if step == 1:
            g[2, 0] = huge
        sent, state = a.send(g, state)
        _, state = a.aggregate(sent, state)
    assert sent.isfinite().all()
    assert float((sent[2] - sent[1]).abs().max()) < 25


OUTS = [torch.zeros(8, 4), torch.zeros(8, 3, dtype=torch.float64), torch.zeros(7, 3), torch.zeros(3), "out"]


@pytest.mark.parametrize("out", OUTS, ids=lambda out: out if isinstance(out, str) else f"{list(out.shape)} {out.dtype}")
@pytest.mark.parametrize("stage", [vg.Clip(0.9), vg.Momentum(0.9), vg.SharedMomentum(0.9)], ids=str)
def test_what_is_written_to_is_like_what_is_read(stage: Any, out: Any) -> None:
    x = torch.ones(8, 3)
    with pytest.raises(ValueError, match=rf"{type(stage).__name__} needs out as .* got"):
        stage(x, torch.zeros(8, 3) if stage.remembers else None, torch.zeros(3), out)


@pytest.mark.parametrize(
    "x", [torch.ones(8, 3, dtype=torch.int64), np.ones((8, 3)), [[1.0]], None], ids=lambda x: str(type(x))
)
@pytest.mark.parametrize("stage", [vg.Clip(0.9), vg.Momentum(0.9), vg.SharedMomentum(0.9)], ids=str)
def test_transforms_take_tensors_of_numbers(stage: Any, x: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(stage).__name__} needs vectors as a floating-point tensor"):
        stage(x, torch.zeros(8, 3), torch.zeros(3))


def test_arrays_and_lists_give_what_tensors_give() -> None:
    """And in kind: arrays for arrays, and for lists of numbers, which have no type and get that of the momenta."""
    stages: dict[str, Any] = {"worker": vg.Momentum(0.9, nesterov=True), "pre": [vg.NearestNeighborMixing(f=1)]}
    a = vg.Algorithm(**stages, rule=vg.Median(f=np.int64(1)), server=[vg.Clip(1.0)])
    x = torch.randn(H, D, generator=torch.Generator().manual_seed(3))
    for given in (x.numpy(), list(x.numpy()), x.tolist(), [tuple(row) for row in x.tolist()], list(x)):
        state, other = a.init(np.int64(H), np.int32(D)), a.init(H, D)
        for _ in range(2):
            wanted, state = a.send(x, state)
            sent, other = a.send(given, other)
            assert isinstance(sent, torch.Tensor if isinstance(given[0], torch.Tensor) else np.ndarray)
            np.testing.assert_array_equal(sent, wanted)
            assert torch.equal(a.decide(sent, other).aggregate, a.decide(wanted, state).aggregate)
            update, state = a.aggregate(wanted, state)
            answer, other = a.aggregate(sent, other)
            assert type(answer) is type(sent)
            np.testing.assert_array_equal(answer, update)
        points = a.point(given[0], other, 0.1)
        np.testing.assert_array_equal(points, a.point(x[0], state, 0.1))
        np.testing.assert_allclose(vg.Median(f=1)(given), vg.Median(f=1)(x), rtol=1e-6)


def test_a_state_of_other_workers_says_how_many_and_what_would_do() -> None:
    a = made(("momentum",))
    for given in (torch.zeros(8, 3), np.zeros((8, 3), np.float32), [[0.0] * 3] * 8):
        refused(lambda given=given: a.send(given, a.init(11, 3)), "got 8 vectors of length 3, and the memory of",
                "is for 11 vectors of length 3; init(8, 3) makes one")  # fmt: skip
    refused(lambda: a.send(torch.zeros(8, 3), a.init(8, 4)), "got 8 vectors of length 3", "init(8, 3)")
    server = vg.Algorithm(rule=vg.Median(f=1), server=vg.Momentum(0.9))
    refused(lambda: server.aggregate(torch.zeros(8, 3), server.init(8, 4)), "got length 3", "is for length 4")


def test_an_array_of_another_type_than_the_momenta_is_told() -> None:
    a = made(("momentum",))
    refused(lambda: a.send(np.ones((H, D)), a.init(H, D)), "Algorithm needs the memory of Momentum")
    ragged: Any = [[1.0] * D, [1.0]]
    refused(lambda: a.send(ragged, a.init(H, D)), f"Algorithm needs vectors of one length, got 1, {D}.")
    words: Any = [["a"] * D] * H
    refused(lambda: a.aggregate(words, a.init(H, D)), "Algorithm needs vectors of numbers, got 'a' among them.")
