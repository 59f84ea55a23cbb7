"""What an adversary knows: what its attack sees then, and that it never gets at the rest."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import programs
import varangian as vg
from interruption import interrupt
from test_card_runs import BASE, CUDA, alike, gone, near, normalised, opened
from varangian.core.attacks import ComposedDefence, Knowledge, Memory
from varangian.core.randomness import generator
from varangian.core.stages import decide
from varangian.runs.building import build, computing
from varangian.runs.replaying import replay
from varangian.simulation.simulate import Simulation

KNOWING = ["own", "spied(k=3)", "last-round"]


@dataclass(frozen=True)
class Echo(vg.Attack):
    """Sends what it knows, over and over; keeps what it was shown."""

    uses_previous: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    shown: ClassVar[list[Knowledge]] = []

    def craft(self, seen: Knowledge) -> tuple[Tensor, Memory]:
        self.shown.append(seen)
        return seen.honest[torch.arange(seen.f) % seen.honest.shape[0]], seen.mean


def made(**settings: Any) -> Simulation:
    e = replace(BASE, **{"attack": Echo(), **settings})
    Echo.shown.clear()
    with computing(e):
        return build(e, opened(e))[0]


@pytest.mark.parametrize("place", ["worker", "server", "shared"])
@pytest.mark.parametrize("partition", ["iid", "dirichlet(alpha=0.5)"])
def test_own_data_are_what_honest_workers_would_send(place: Any, partition: str) -> None:
    """An adversary that sends what it knows of its own is no adversary: the run is that of n honest workers."""
    settings: dict[str, Any] = {"momentum_at": place, "partition": partition}
    ours, honest = made(knowledge="own", **settings), made(attack=None, **settings)
    for _ in range(4):
        ours.step(), honest.step()
        assert torch.equal(ours.vectors, honest.vectors)
        assert torch.equal(ours.parameters, honest.parameters)
    for seen in Echo.shown:
        assert (seen.honest.shape[0], seen.f, seen.h, seen.workers) == (3, 3, 8, 11)


def test_spied_workers_stay_the_same_and_are_drawn_by_the_seed() -> None:
    found = set()
    for seed in range(1, 9):
        simulation, rows = made(knowledge="spied(k=3)", seed=seed), []
        for _ in range(3):
            simulation.step()
            honest = simulation.vectors[:8]
            rows.append([int((honest == one).all(1).nonzero()[0]) for one in Echo.shown[-1].honest])
        assert rows[0] == rows[1] == rows[2] == sorted(set(rows[0]))
        assert len(rows[0]) == 3
        found.add(tuple(rows[0]))
    assert len(found) > 3


def test_the_last_round_is_that_of_the_step_before() -> None:
    simulation = made(knowledge="last-round")
    simulation.step()
    assert not Echo.shown  # nothing is known in the first step, and zeros are sent
    assert not simulation.vectors[8:].any()
    assert simulation.adversary.memory is None
    for _ in range(3):
        before = simulation.vectors[:8].clone()
        simulation.step()
        assert torch.equal(Echo.shown[-1].honest, before)
        assert torch.equal(simulation.vectors[8:], before[:3])


@pytest.mark.parametrize("attack", ["little", "empire", "min-max", "mimic", "sign-flip", "fang", "worst-case"])
def test_attacks_craft_from_what_is_known(attack: str) -> None:
    """The mean and the deviation are those of the vectors known; how many there are of n and f alone."""
    simulation = made(knowledge="spied(k=7)" if attack == "fang" else "spied(k=3)", attack=attack)
    for _ in range(2):
        previous = simulation.state.previous
        attacked = simulation.adversary.previous
        simulation.step()
    assert isinstance(simulation.adversary.attack, vg.Attack)
    k = 7 if attack == "fang" else 3
    rows = np.sort(generator(1, "spied").permutation(8)[:k])
    known = simulation.vectors[:8][rows]
    defence = ComposedDefence((), simulation.algorithm.rule, previous)
    seen = Knowledge(known, 3, defence, attacked, generator(0, "attack"), workers=11)
    assert torch.equal(simulation.vectors[8:], simulation.adversary.attack.send(seen).expand(3, -1))


def test_littles_own_factor_is_of_n_and_f_whatever_is_known() -> None:
    simulation = made(knowledge="spied(k=2)", attack="little(factor=None)", real_byzantine=4)
    simulation.step()
    known = simulation.vectors[:7][np.sort(generator(1, "spied").permutation(7)[:2])]
    z = vg.core.attacks.simple.original_factor(11, 4)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(simulation.vectors[7], known.mean(0) - z * known.std(0))


@pytest.mark.parametrize("real", [1, 2, 5])
@pytest.mark.parametrize("knowledge", KNOWING)
def test_fewer_or_more_attack_than_is_tolerated(knowledge: str, real: int) -> None:
    simulation = made(knowledge=knowledge, real_byzantine=real, rule="median")
    for _ in range(3):
        simulation.step()
    seen = Echo.shown[-1]
    assert (seen.f, seen.h) == (real, 11 - real)
    assert seen.honest.shape[0] == {"own": real, "spied(k=3)": 3, "last-round": 11 - real}[knowledge]


@pytest.mark.parametrize("rule", [vg.Krum(f=2), vg.Median(f=2)])
def test_a_search_lets_what_is_known_stand_for_all(rule: vg.Rule) -> None:
    """On distances as on vectors: the damage is that to n vectors, of which the known ones stand for h in turn."""
    known = torch.from_numpy(np.random.default_rng(3).normal(size=(3, 6)))
    seen = Knowledge(known, 2, ComposedDefence((), rule), None, generator(0, "attack"), workers=10)
    attack = vg.WorstCase(directions=("little", "empire"), evaluations=12)
    found = attack.find(seen)
    vectors = torch.cat([known[torch.arange(8) % 3], found.vector.expand(2, -1)])
    moved = decide(vectors, (), rule).aggregate - known.mean(0)
    assert found.damage == pytest.approx(float(moved.norm()), rel=1e-9)
    plain = attack.find(replace(seen, defence=lambda x: rule(x)))
    torch.testing.assert_close(plain.vector, found.vector)


# ----------------------------------------------------------------------------------------------------------- never more


def reachable(value: Any, seen: set[int]) -> Iterator[Any]:
    """All objects that attributes, bases, storages, containers and closures of what is handed over lead to."""
    if id(value) in seen or isinstance(value, (type, str, bytes, int, float, bool, torch.dtype, torch.device)):
        return
    seen.add(id(value))
    yield value
    inside: list[Any] = []
    if isinstance(value, Tensor):
        inside += [value._base, value.grad, value.grad_fn]
    elif isinstance(value, np.ndarray):
        inside += [value.base]
    elif isinstance(value, dict):
        inside += [*value.values()]
    elif isinstance(value, (tuple, list, set)):
        inside += [*value]
    elif is_dataclass(value):
        inside += [getattr(value, field.name) for field in fields(value)]
    for name in ("__dict__", "__closure__", "__self__", "cell_contents", "bit_generator"):
        try:
            inside.append(getattr(value, name, None))
        except ValueError:  # an empty cell
            continue
    for item in inside:
        if not isinstance(item, type(torch)):
            yield from reachable(item, seen)


def numbers(value: Any) -> np.ndarray:
    """All that lies in the memory of a tensor or an array, shown or not."""
    if isinstance(value, Tensor):
        whole = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
        return whole.detach().numpy().astype(np.float64)
    return np.asarray(value if value.base is None else value.base).reshape(-1).astype(np.float64)


@pytest.mark.parametrize("place", ["worker", "server", "shared"])
@pytest.mark.parametrize("knowledge", KNOWING)
def test_an_attack_never_gets_at_what_it_does_not_know(knowledge: str, place: Any) -> None:
    """Whatever it is handed, and whatever lies in the same memory, holds no honest vector that is not known, and what
    it draws is not keyed by the seed of the run, which says what others draw."""
    simulation = made(knowledge=knowledge, momentum_at=place, seed=12345, rule="centered-clipping")
    for _ in range(3):
        before = simulation.vectors[:8].clone()
        simulation.step()
    seen = Echo.shown[-1]
    allowed = {row.numpy().tobytes() for row in seen.honest}
    if knowledge == "last-round":
        assert allowed == {row.numpy().tobytes() for row in before}
    hidden = [row.double().numpy() for row in simulation.vectors[:8] if row.numpy().tobytes() not in allowed]
    assert len(hidden) == {"own": 8, "spied(k=3)": 5, "last-round": 8}[knowledge]
    found, tensors = list(reachable(seen, set())), 0
    for value in found:
        if isinstance(value, (Tensor, np.ndarray)) and (not isinstance(value, Tensor) or value.is_floating_point()):
            held, tensors = numbers(value), tensors + 1
            for row in hidden:
                assert np.isin(row[np.abs(row) > 1e-9][:20], held).mean() < 0.3
    assert tensors >= 4  # the vectors known, their moments, the last aggregate, the memory
    assert not any(value is simulation for value in found)
    state = seen.random.bit_generator.state
    assert 12345 not in np.asarray(state["state"]["key"]).tolist()
    assert isinstance(seen.defence, ComposedDefence)
    assert seen.defence.draw.seed != 12345


def test_a_view_of_all_vectors_would_have_been_found() -> None:
    """The search of the test above finds what it looks for."""
    whole = torch.arange(12.0).reshape(4, 3)
    found = list(reachable(Knowledge(whole[:1], 1, None, None, generator(0, "attack")), set()))
    held = [numbers(x) for x in found if isinstance(x, Tensor)]
    assert any(np.isin([9.0, 10.0, 11.0], one).all() for one in held)


@dataclass(frozen=True)
class Writes(vg.Attack):
    """Sends the mean, and writes into all that it is handed."""

    writes: bool = True

    def craft(self, seen: Knowledge) -> Tensor:
        mean = seen.mean.clone()
        if not self.writes:
            return mean
        for x in (seen.previous, getattr(seen.defence, "previous", None)):
            if x is not None:
                x.fill_(7)
        for x in seen.moments:
            x.fill_(7)
        return mean


@pytest.mark.parametrize("knowledge", KNOWING)
def test_what_it_writes_reaches_nobody(knowledge: str) -> None:
    settings: dict[str, Any] = {"knowledge": knowledge, "rule": "centered-clipping"}
    one, other = made(attack=Writes(), **settings), made(attack=Writes(writes=False), **settings)
    for _ in range(3):
        assert one.step() == other.step()
    assert torch.equal(one.parameters, other.parameters)


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("knowledge", KNOWING)
def test_an_interrupted_run_goes_on_and_is_replayed_exactly(knowledge: str, tmp_path: Path) -> None:
    e = replace(BASE, knowledge=knowledge, attack="mimic(warmup=3)", steps=6)
    whole = vg.run(e, tmp_path / "whole", opened(e))
    folder = interrupt(e, tmp_path / "parts", 3, opened(e))
    again = replay(folder, 3, opened(e))
    assert vg.resume(folder, opened(e)).began == 3
    for file in ("metrics.csv", "evaluations.csv", "state.pt"):
        assert (folder / file).read_bytes() == (whole.folder / file).read_bytes()  # pyright: ignore
    done = replay(whole.folder, 3, opened(e))  # pyright: ignore[reportArgumentType]
    assert done.agrees
    assert torch.equal(done.vectors, again.vectors)
    assert list(vg.run(replace(e, knowledge="omniscient"), dataset=opened(e)).measures) != list(whole.measures)


def test_snapshots_hold_the_last_round() -> None:
    whole, parts, other = (made(knowledge=k) for k in ("last-round", "last-round", "omniscient"))
    whole.step()
    with pytest.raises(ValueError, match=r"last: nothing is needed, got float32 \[8, "):
        other.restore(replace(whole.snapshot(), attacked=whole.parameters))
    with pytest.raises(ValueError, match=r"last: float32 \[8, .*\] is needed, got nothing"):
        parts.restore(replace(whole.snapshot(), last=None))
    parts.restore(whole.snapshot())
    for _ in range(2):
        whole.step(), parts.step()
        assert torch.equal(whole.vectors, parts.vectors)


@pytest.mark.parametrize("at", [1, 3])
def test_a_step_that_is_taken_back_takes_back_the_last_round(at: int) -> None:
    def craft(self: vg.NaN, seen: Knowledge) -> Tensor:
        nonlocal steps
        steps += 1
        return seen.mean * (float("nan") if steps >= at else 1.0)  # it is not asked in step 0

    e, found = replace(BASE, attack="nan", real_byzantine=4, knowledge="last-round"), []
    for device in ("cpu", CUDA):
        steps = 0
        with patch.object(vg.NaN, "craft", craft):
            found.append(gone(e, device, model=normalised()))
    (wanted, refused, state), (rows, said, left) = found
    assert refused is not None
    assert (said, left["step"], len(rows)) == (refused, at, at)
    alike(rows, wanted)
    assert state["last"] is not None
    near(left, state)


# ------------------------------------------------------------------------------------------------------------- settings


def test_the_default_is_written_and_named_as_before() -> None:
    e = replace(BASE, knowledge="omniscient")
    assert e == BASE
    assert "knowledge" not in e.to_json()
    assert replace(BASE, knowledge=vg.Omniscient) == BASE
    other = replace(BASE, knowledge=vg.Spied(k=3))
    assert other.knowledge == "spied(k=3)"
    assert other.digest != BASE.digest
    assert "spied_k=3" in other.name
    assert vg.Experiment.from_toml(other.to_toml()) == other
    assert replace(BASE, knowledge=" spied( k=1 )", attack="empire").knowledge == "spied"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"knowledge": "spied(k=9)"}, "knowledge: Spied needs k of at most h = 8, the honest workers, got 9."),
        ({"knowledge": "spied(k=0)"}, "knowledge: Spied needs an integer k >= 1, got 0."),
        ({"knowledge": "spyed"}, "Did you mean 'spied'"),
        ({"knowledge": "own", "attack": "label-flip"}, "knowledge: OwnData and LabelFlip both ask what"),
        ({"knowledge": "spied(k=1)"},
         "at least 2 honest vectors, got 1 (all that is known with knowledge spied(k=1))."),
        ({"knowledge": "own", "attack": "anti-cge"}, "got 3 (all that is known with knowledge own)."),
        ({"knowledge": "own", "attack": "fang"}, "got 6 (all that is known with knowledge own)."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_starts(settings: dict[str, str], said: str) -> None:
    with pytest.raises(vg.ConfigurationError) as raised:
        replace(BASE, **settings)
    assert said in str(raised.value)
    assert len(raised.value.faults) == 1


def test_nobody_attacks_and_nothing_is_known() -> None:
    for settings in ({"attack": None}, {"real_byzantine": 0}):
        with_it, without = made(knowledge="own", **settings), made(**settings)
        for simulation in (with_it, without):
            simulation.step()
        assert torch.equal(with_it.parameters, without.parameters)
        assert with_it.active == 11


# ------------------------------------------------------------------------------------------------------------ own kinds


class Answers(vg.ThreatModel):
    answer: ClassVar[Any]

    def known(self, h: int, f: int) -> int:
        return 2

    def vectors(self, honest: Tensor, own: Tensor | None, last: Tensor | None, seed: int) -> Any:
        found = self.answer(honest)
        honest.fill_(9)
        return found


def test_one_of_ones_own_and_what_it_must_answer() -> None:
    simulation = made(attack="little")
    simulation.adversary.knowledge = Answers()
    with patch.object(Answers, "answer", staticmethod(lambda honest: honest[1:3].clone()), create=True):
        simulation.step()
        assert not (simulation.vectors == 9).any()
        mean, std = simulation.vectors[1:3].mean(0), simulation.vectors[1:3].std(0)
        torch.testing.assert_close(simulation.vectors[8], mean - 1.5 * std, rtol=1e-4, atol=1e-6)
    for wrong, came in (
        (lambda honest: honest[:3], r"float32 \[3, "),
        (lambda honest: honest[:2].double(), "float64"),
        (lambda honest: [1], "a list"),
    ):
        with (
            patch.object(Answers, "answer", staticmethod(wrong), create=True),
            pytest.raises(ValueError, match=rf"Answers.vectors must answer \[k, d\] = \[2, .*, or None, got {came}"),
        ):
            simulation.step()


@pytest.mark.slow
def test_what_the_page_tells_to_write_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "explanation" / "threat-models.md").read_text("utf-8")
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    commands = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    (tmp_path / "neighbours.py").write_text(program, "utf-8")
    own = "varangian run --rule median --attack little --knowledge neighbours.py:OwnAndOne --steps 3"
    for line in [*commands.splitlines(), own]:
        done = programs.run("-m", *shlex.split(line), cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
