"""What rules and mixings draw: new at each step, the same for the same (seed, step), and other than an adversary's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core.algorithm import Algorithm
from varangian.core.attacks import Knowledge
from varangian.core.geometry import Geometry
from varangian.core.rules import federated
from varangian.runs import building

N, D, F = 12, 400, 2
DRAWN = {
    "dnc": vg.Algorithm(rule=vg.DivideAndConquer(f=F, rounds=2, sample=40)),
    "signguard": vg.Algorithm(rule=vg.SignGuard(f=F, share=0.05)),
    "bucketing": vg.Algorithm(pre=(vg.Bucketing(s=2),), rule=vg.Median(f=F)),
}


def hidden(step: int = 0) -> Tensor:
    """Attackers who resemble the honest vectors nearly everywhere, so that the answer hangs on what is looked at."""
    random = np.random.default_rng(1)
    x = torch.from_numpy(random.standard_normal((N, D)))
    x[:F] = x[F:].mean(0)
    x[:F, step::9] += torch.from_numpy(random.standard_normal(x[:F, step::9].shape)) * 3
    return x


def choices(algorithm: Algorithm, seed: int, steps: int = 12) -> list[Tensor]:
    state = algorithm.init(N, D, torch.float64, seed=seed)
    result = []
    for _ in range(steps):
        update, state = algorithm.aggregate(hidden(), state)
        result.append(update)
    assert (state.step, state.seed) == (steps, seed)
    return result


def test_every_stage_that_draws_is_known() -> None:
    drawing = [name for name, kind in (vg.RULES | vg.MIXINGS).items() if kind.draws]  # type: ignore[attr-defined]
    assert sorted(drawing) == sorted(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_is_a_function_of_seed_and_step(name: str) -> None:
    algorithm = DRAWN[name]
    one, again, other = choices(algorithm, 1), choices(algorithm, 1), choices(algorithm, 2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert len({tuple(u.tolist()) for u in one}) > 1, "the same at each step"
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", DRAWN)
def test_a_refused_step_draws_again_what_it_drew(name: str) -> None:
    algorithm = DRAWN[name]
    state = algorithm.init(N, D, torch.float64, seed=3)
    bad = hidden()
    bad[: 2 * F + 1, 0] = float("nan")
    with pytest.raises(vg.Refused):
        algorithm.aggregate(bad, state)
    assert torch.equal(algorithm.aggregate(hidden(), state)[0], choices(algorithm, 3, 1)[0])


def test_a_bare_call_is_that_of_step_0_and_may_name_another() -> None:
    zero: Any = np.int64(0)
    for algorithm in DRAWN.values():
        call = algorithm.pre[0] if algorithm.pre else algorithm.rule
        x = hidden()
        assert torch.equal(call(x), call(x))
        assert torch.equal(call(x), call(x, step=zero))
        assert any(not torch.equal(call(x), call(x, step=step)) for step in range(1, 12))
        wrong: list[Any] = [-1, 1.0, True]
        for step in wrong:
            with pytest.raises(ValueError, match="needs an integer step >= 0"):
                call(x, step=step)
    x = hidden()
    assert torch.equal(vg.Median(f=1)(x), vg.Median(f=1)(x, step=7))


def test_the_option_seed_still_chooses() -> None:
    x = hidden()
    for one, other in ((vg.DivideAndConquer(f=F, sample=20), vg.DivideAndConquer(f=F, sample=20, seed=1)),
                       (vg.SignGuard(f=F, share=0.05), vg.SignGuard(f=F, share=0.05, seed=1)),
                       (vg.Bucketing(2), vg.Bucketing(2, seed=1))):  # fmt: skip
        assert any(not torch.equal(one(x, step=step), other(x, step=step)) for step in range(12))


def test_no_coordinate_is_out_of_sight_for_ever() -> None:
    for rule in (vg.DivideAndConquer(f=F, rounds=1, sample=40), vg.SignGuard(f=F, share=0.1)):
        seen = np.zeros(D, bool)
        for step in range(200):
            draw = vg.Draw(5, step)
            seen[
                rule.coordinates(D, 0, draw) if isinstance(rule, vg.DivideAndConquer) else rule.coordinates(D, draw)
            ] = 1
        assert seen.all()


@dataclass(frozen=True)
class OwnDrawing(vg.General):
    """A random vector of the n; its bare signature, with draws."""

    draws = True

    @property
    def needs(self) -> tuple[str, int]:
        return "f + 1", self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None, draw: vg.Draw = vg.Draw()) -> Tensor:  # noqa: B008
        return x[int(draw.generator("own").integers(x.shape[0]))].clone()


@dataclass(frozen=True)
class OwnMixing(vg.Mixing):
    """Vectors in another order at each step."""

    draws = True

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def rows(self, n: int) -> int:
        return n

    def rows_for(self, m: int) -> int:
        return m

    def weights(self, geometry: Geometry, draw: vg.Draw = vg.Draw()) -> np.ndarray:  # noqa: B008
        return np.eye(geometry.n)[draw.generator("own").permutation(geometry.n)]


@dataclass(frozen=True)
class First(vg.General):
    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return x[0].clone()


def test_own_classes_may_draw() -> None:
    x = torch.arange(8.0)[:, None]
    for algorithm in (vg.Algorithm(rule=OwnDrawing(f=0)), vg.Algorithm(pre=(OwnMixing(),), rule=First(f=0))):
        state = algorithm.init(8, 1, seed=4)
        answers = []
        for _ in range(20):
            update, state = algorithm.aggregate(x, state)
            answers.append(float(update))
        assert len(set(answers)) > 1
    assert not torch.equal(OwnMixing()(x, step=1), OwnMixing()(x, step=2))


# ------------------------------------------------------------------------------------------------- in a run

SPECS: dict[str, dict[str, Any]] = {
    "dnc": {"rule": "dnc(rounds=1, sample=30)"},
    "signguard": {"rule": "signguard(share=0.02)"},
    "bucketing": {"rule": "median", "pre": ("bucketing(s=2)",)},
}


def settings(name: str, **changes: Any) -> vg.Experiment:
    base: dict[str, Any] = {
        "workers": 13, "byzantine": 3, "model": "linear", "attack": "little", "steps": 8, "batch_size": 4,
        "evaluate_every": 0,
    }  # fmt: skip
    return vg.Experiment(**(base | SPECS[name] | changes))


@pytest.mark.parametrize("name", SPECS)
def test_a_simulation_goes_on_where_it_was(name: str) -> None:
    """The step and the seed are all that there is to what will be drawn."""
    e = settings(name)
    dataset = building.open_dataset(e)
    whole, _ = building.build(e, dataset)
    expected = [whole.step().row() for _ in range(8)]
    first, _ = building.build(e, dataset)
    assert [first.step().row() for _ in range(3)] == expected[:3]
    second, _ = building.build(e, dataset)
    second.restore(first.snapshot())
    assert (second.state.step, second.state.seed) == (3, e.seed)
    assert [second.step().row() for _ in range(5)] == expected[3:]


@pytest.mark.parametrize("name", SPECS)
def test_a_replay_draws_what_was_drawn(name: str, tmp_path: Path) -> None:
    e = settings(name)
    simulation, _ = building.build(e, building.open_dataset(e))
    state = simulation.state
    for _ in range(6):
        state = simulation.state
        simulation.step()
    aggregate = simulation.algorithm.decide(simulation.vectors, state).aggregate
    kept = vg.run(e, tmp_path)
    assert kept.folder is not None
    again = vg.replay(kept.folder, step=5)
    assert again.agrees
    assert again.explanation is not None
    assert torch.equal(again.explanation.aggregate, aggregate)


def test_the_adversary_tries_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy of the defence draws as the server does, not what the server does; anew at each step, always alike."""
    drawn: list[vg.Draw] = []

    @dataclass(frozen=True)
    class Spy(vg.Attack):
        def craft(self, seen: Knowledge) -> Tensor:
            assert isinstance(seen.defence, vg.ComposedDefence)
            drawn.append(seen.defence.draw)
            return seen.honest.mean(0)

    monkeypatch.setitem(vg.ATTACKS, "spy", Spy)
    e = settings("bucketing", attack="spy", steps=4)
    simulation, _ = building.build(e, building.open_dataset(e))
    for _ in range(4):
        simulation.step()
    assert len(set(drawn)) == 4
    assert not {draw.seed for draw in drawn} & {e.seed, 0}
    x = hidden()
    order = [vg.Draw(e.seed, step).generator("bucketing").permutation(N).tolist() for step in range(4)]
    tried = [draw.generator("bucketing").permutation(N).tolist() for draw in drawn]
    assert all(a != b for a, b in zip(order, tried, strict=True))
    defence = vg.ComposedDefence((), vg.DivideAndConquer(f=F, sample=30))
    assert torch.equal(defence(x), defence(x))


def test_divide_and_conquer_looks_at_so_many_different_coordinates() -> None:
    for seed in range(40):
        rule = vg.DivideAndConquer(1, sample=5, seed=seed)
        for d in (3, 5, 6, 30):
            seen = rule.coordinates(d, 0).tolist()
            assert len(seen) == min(d, 5)
            assert seen == sorted(set(seen))
            assert set(seen) <= set(range(d))


def test_signguard_looks_at_one_coordinate_of_each_stretch() -> None:
    for seed in range(40):
        for share, d in ((0.1, 5), (0.1, 30), (0.5, 7), (0.99, 10)):
            seen = vg.SignGuard(2, share=share, seed=seed).coordinates(d)
            many = max(int(share * d), 1)
            assert [place * many // d for place in seen] == pytest.approx(range(many), abs=1)
            assert len(seen) == len(set(seen.tolist())) == many
            assert (np.diff(seen) > 0).all()
    assert vg.SignGuard(2, share=1.0).coordinates(4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_signs_are_counted_once_whatever_the_width_of_a_panel(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for width in (1, 3, 7, 1000):
        monkeypatch.setattr(federated, "KEPT_WIDTH", width)
        answers.append(
            [vg.SignGuard(2, share=share, seed=s)(np.random.default_rng(s).normal(0.2, 1, (9, 23))) for s in range(40)]
        )
    for other in answers[:-1]:
        np.testing.assert_array_equal(other, answers[-1])
