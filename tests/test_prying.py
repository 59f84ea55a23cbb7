"""An attack that takes down all that it can get at: it never learns what the server draws, nor vectors that it is not
to know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from interruption import interrupt
from test_card_runs import BASE, opened
from varangian.core import randomness
from varangian.core.attacks import ComposedDefence, Knowledge, Memory
from varangian.core.randomness import Draw
from varangian.core.stages import decide
from varangian.runs.building import build, computing
from varangian.runs.replaying import replay
from varangian.simulation.adversary import Adversary
from varangian.simulation.simulate import Simulation

SEED = 0x5EED_0F_7E57
KNOWLEDGE = ["omniscient", "own", "spied(k=3)", "last-round"]
RANDOM: dict[str, dict[str, Any]] = {
    "bucketing": {"rule": "median", "pre": ["bucketing"], "byzantine": 2, "real_byzantine": 2},
    "bucketing with a seed of its own": {
        "rule": "median", "pre": ["bucketing(seed=7)"], "byzantine": 2, "real_byzantine": 2,
    },
    "dnc": {"rule": "dnc(sample=40)"},
    "signguard": {"rule": "signguard"},
    "momentum that moves": {"rule": "centered-clipping", "momentum_at": "adaptive"},
    "rounds": {"rule": "median", "clients": 60, "byzantine": 1, "attackers_change": 2},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Taken:
    """What an attack took down in a step.

    Attributes:
        held: all that it came upon, as bytes: whole storages of tensors and arrays, states of generators, values.
        arrays: the numbers among it.
        integers: those that may be a seed.
        defence: to be tried later, as often as one likes.
    """

    held: list[bytes]
    arrays: list[np.ndarray]
    integers: set[int]
    defence: Any


def pry(thing: Any) -> Taken:
    """Follows all attributes, bases, storages, histories, containers, closures and generators."""
    held: list[bytes] = []
    arrays: list[np.ndarray] = []
    integers: set[int] = set()
    for found in reached(thing, set()):
        if isinstance(found, Tensor):
            whole = torch.empty(0, dtype=torch.uint8, device=found.device).set_(found.untyped_storage())
            numbers = torch.empty(0, dtype=found.dtype, device=found.device).set_(found.untyped_storage())
            held.append(whole.numpy().tobytes())
            arrays.append(numbers.numpy().astype(np.float64))
        elif isinstance(found, np.ndarray):
            held.append(found.tobytes())
            arrays.append(found.reshape(-1).astype(np.float64))
        elif isinstance(found, (int, np.integer)):
            held.append(b"%d" % int(found))
        elif isinstance(found, (str, float)):
            held.append(repr(found).encode())
        if isinstance(found, (int, np.integer)):
            integers.add(int(found))
        elif isinstance(found, np.ndarray) and found.dtype.kind in "iu":
            integers |= {int(x) for x in found.reshape(-1)[:64]}
    return Taken(held, arrays, integers, getattr(thing, "defence", None))


def reached(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, (type, bytes, torch.dtype, torch.device, type(torch))) or id(value) in seen:
        return
    if isinstance(value, (str, int, float, np.integer)):
        yield value
        return
    seen.add(id(value))
    yield value
    inside: list[Any] = []
    if isinstance(value, Tensor):
        inside += [value._base, value.grad, value.grad_fn, value._version]
    elif isinstance(value, np.ndarray):
        inside += [value.base]
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator
        inside += [bits.state, bits.lock and None, getattr(bits, "seed_seq", None), getattr(bits, "_seed_seq", None)]
    elif isinstance(value, np.random.SeedSequence):
        inside += [value.entropy, value.spawn_key, value.pool]
    elif isinstance(value, dict):
        inside += [item for pair in value.items() for item in pair]
    elif isinstance(value, (tuple, list, set)):
        inside += [*value]
    else:
        if is_dataclass(value):
            inside += [getattr(value, field.name) for field in fields(value)]
        inside += [v for _, v in sorted(getattr(value, "__dict__", {}).items())]
        for name in ("__closure__", "__defaults__", "__kwdefaults__", "__self__", "__wrapped__", "cell_contents"):
            try:
                inside.append(getattr(value, name, None))
            except ValueError:  # an empty cell
                continue
        for name in dir(type(value)):
            if not name.startswith("_") and isinstance(getattr(type(value), name), property):
                try:
                    inside.append(getattr(value, name))
                except ValueError:
                    continue
    for item in inside:
        yield from reached(item, seen)


@dataclass(frozen=True)
class Pries(vg.Attack):
    """Sends the mean, and takes down all that it can get at."""

    tries: bool = True

    uses_previous: ClassVar[bool] = True
    uses_defence: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    taken: ClassVar[list[Taken]] = []

    def craft(self, seen: Knowledge) -> tuple[Tensor, Memory]:
        mean = seen.mean.clone()
        if self.tries:
            defence = seen.defence
            assert isinstance(defence, ComposedDefence)
            for _ in range(3):
                defence(probe(seen.h + seen.f, mean))
            defence.draw.generator("bucketing").permutation(9)
            self.taken.append(pry(seen))
        return mean, mean.clone()


def probe(n: int, like: Tensor) -> Tensor:
    """n vectors that tell apart whatever a rule does with them."""
    return torch.from_numpy(np.random.default_rng(1).normal(size=(n, like.numel()))).to(like)


def made(**settings: Any) -> Simulation:
    e = replace(BASE, **{"attack": Pries(), "seed": SEED, **settings})
    Pries.taken.clear()
    with computing(e):
        return build(e, opened(e))[0]


@contextmanager
def drawing() -> Iterator[list[tuple[int, str, int, int]]]:
    """Whose numbers are drawn inside: (seed, purpose, step, worker)."""
    asked: list[tuple[int, str, int, int]] = []
    generator = randomness.generator

    def noted(seed: int, purpose: str, step: int = 0, worker: int = 0) -> np.random.Generator:
        asked.append((seed, purpose, step, worker))
        return generator(seed, purpose, step, worker)

    with patch.object(randomness, "generator", noted):
        yield asked


def seeds(taken: Taken) -> set[int]:
    """What may be the seed of another, from all integers taken down: each of them, and what stages make of two."""
    found = taken.integers | {0, 7}
    return found | {a ^ b for a, b in combinations(found, 2) if a >= 0 and b >= 0}


# ---------------------------------------------------------------------------------------------- what the server draws


@pytest.mark.parametrize("case", RANDOM)
@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_what_it_gathers_does_not_tell_what_the_server_draws(knowledge: str, case: str) -> None:
    simulation = made(knowledge=knowledge, **RANDOM[case])
    found = 0
    for _ in range(12 if case == "rounds" else 4):
        state, step = simulation.state, simulation.steps_done
        Pries.taken.clear()
        with drawing() as asked:
            simulation.step()
        if not Pries.taken:  # nothing is known yet, or nobody attacks in this round
            assert (knowledge == "last-round" and not step) or case == "rounds"
            continue
        [taken] = Pries.taken
        secret = [one for one in asked if one[0] in (SEED, SEED ^ 7) and one[1] != "fork"]
        if case == "momentum that moves":  # drawn once, and kept in the process
            secret.append((SEED, "placement", 0, 0))
        drawn = {purpose for _, purpose, _, _ in secret}
        assert {"bucketing", "dnc", "signguard", "placement", "round"} & drawn
        guesses = seeds(taken)
        assert not guesses & {seed for seed, *_ in secret}
        for seed, purpose, at, worker in secret:
            numbers = randomness.generator(seed, purpose, at, worker).bit_generator.random_raw(4)
            assert int(numbers[0]) not in guesses
            assert not any(numbers.tobytes() in held for held in taken.held)
        if case not in ("momentum that moves", "rounds"):
            x, algorithm = probe(simulation.workers, simulation.parameters), simulation.algorithm
            mine = decide(x, algorithm.pre, algorithm.rule, previous=state.previous, draw=Draw(SEED, step)).aggregate
            tried = taken.defence(x)
            assert torch.equal(tried, taken.defence(x))
            assert not torch.equal(tried, mine)
        found += 1
    assert found


def test_a_generator_keyed_by_the_seed_of_the_run_would_have_been_found() -> None:
    simulation = made(**RANDOM["bucketing"])
    keyed = partial(randomness.generator, SEED, "attack", 0)
    with patch.object(Adversary, "_random", lambda self, draw, lazily: keyed()):
        simulation.step()
    assert SEED in seeds(Pries.taken[-1])
    defence = ComposedDefence((), vg.Median(f=1), None, Draw(SEED ^ 7, 3))
    assert SEED in seeds(pry(Knowledge(torch.ones(3, 2), 1, defence, None, keyed())))


@pytest.mark.parametrize("case", RANDOM)
@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_trying_the_defence_moves_nothing(knowledge: str, case: str) -> None:
    settings = {"knowledge": knowledge, **RANDOM[case]}
    one, other = made(**settings), made(attack=Pries(tries=False), **settings)
    for _ in range(3):
        assert one.step().row() == other.step().row()  # NaN too
    assert torch.equal(one.parameters, other.parameters)


@pytest.mark.parametrize("attack", ["gaussian", 'fang(target="trimmed-mean")'])
def test_what_attacks_draw_is_the_same_whatever_they_know_and_other_in_each_step(attack: str) -> None:
    """And in each run, and not what an attack with that seed of its own would draw."""
    drawn: dict[tuple[str, int], list[np.ndarray]] = {}
    for knowledge in ("omniscient", "spied(k=7)"):
        for seed in (SEED, SEED + 1):
            simulation = made(attack=attack, knowledge=knowledge, seed=seed)
            kept = drawn[knowledge, seed] = []
            made_by = Adversary._random

            def random(self: Adversary, draw: Draw, lazily: bool, kept: Any = kept, made_by: Any = made_by) -> Any:
                kept.append(made_by(self, draw, lazily).random(8))
                return made_by(self, draw, lazily)

            with patch.object(Adversary, "_random", random):
                simulation.step()
                simulation.step()
    every = [tuple(numbers) for kept in drawn.values() for numbers in kept]
    assert np.array_equal(drawn["omniscient", SEED], drawn["spied(k=7)", SEED])
    assert len(set(every)) == 4  # two seeds, two steps
    assert tuple(randomness.generator(SEED, "attack").random(8)) not in every


# -------------------------------------------------------------------------------------- vectors that it is not to know


PLACES: list[dict[str, Any]] = [
    *({"momentum_at": place} for place in ("worker", "server", "shared", "adaptive")),
    {"momentum_at": "worker", "nesterov": True, "partition": "dirichlet(alpha=0.5)"},
    {"clip": None, "momentum": 0.0},
]


def altered(simulation: Simulation, hidden: list[int]) -> None:
    """Changes all that the adversary is not to know in the step to come: gradients of some workers, what stands in the
    rows of its own, what the server and the meter remember, and what the server will draw."""
    begin, h = simulation.gradients.begin, simulation.h

    def changed(point: Any, batch: Any, out: Tensor, step: int) -> Any:
        losses = begin(point, batch, out, step)
        for i in hidden:
            out[i] = out[i] * 3 + 1
        return losses

    simulation.gradients.begin = changed  # type: ignore[method-assign]
    simulation.vectors[h:] = 77.0
    for x in [*simulation.state.server, *simulation._moving()[1:2]]:
        if x is not None:
            x.add_(0.5)
    assert simulation.meter is not None
    for x in (simulation.meter.previous, simulation.meter.decayed):
        if x is not None:
            x.add_(0.5)
    simulation.state = replace(simulation.state, seed=99)


@pytest.mark.parametrize("settings", PLACES, ids=str)
@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_what_it_gathers_does_not_depend_on_the_rest(knowledge: str, settings: dict[str, Any]) -> None:
    """Two runs that differ in nothing else: all that is reached is the same to the byte."""
    found: list[list[bytes]] = []
    sent: list[Tensor] = []
    for alters in (False, True):
        simulation = made(knowledge=knowledge, rule="centered-clipping", **settings)
        for _ in range(2):
            simulation.step()
        spied = np.sort(randomness.generator(SEED, "spied").permutation(8)[:3]).tolist()
        known = {"omniscient": list(range(8)), "spied(k=3)": spied}.get(knowledge, [])
        if alters:
            altered(simulation, [i for i in range(8) if i not in known])
        simulation.step()
        found.append(Pries.taken[-1].held)
        sent.append(simulation.vectors[:8].clone())
    assert len(found[0]) > 20
    assert found[0] == found[1]
    moved = [i for i in range(8) if not torch.equal(sent[0][i], sent[1][i])]
    assert moved == [i for i in range(8) if i not in known]  # so there was something to see


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_what_it_is_to_know_would_have_been_noticed(knowledge: str) -> None:
    """Of the same two runs an honest worker of those known is changed: what is gathered differs."""
    found: list[list[bytes]] = []
    for alters in (False, True):
        simulation = made(knowledge=knowledge)
        simulation.step()
        if alters:
            simulation.vectors[:8].add_(1)  # momenta, and in the last round what was sent
            if simulation.adversary.last is not None:
                simulation.adversary.last.add_(1)
            if simulation.sent.data_ptr() != simulation.vectors.data_ptr():
                simulation.sent.add_(1)
        simulation.step()
        found.append(Pries.taken[-1].held)
    assert found[0] != found[1]


def test_omniscient_attacks_reach_the_honest_vectors_and_no_other_row() -> None:
    """The matrix of all n vectors, where momenta live and the server reads, is never shown."""
    for settings in PLACES:
        simulation = made(**settings)
        for _ in range(3):
            simulation.step()
            honest = [row.numpy().tobytes() for row in simulation.vectors[:8]]
            whole = simulation.vectors.numpy().tobytes()
            taken = Pries.taken[-1]
            assert b"".join(honest) in taken.held
            assert not any(held != b"".join(honest) and row in held for row in honest for held in taken.held)
            assert not any(len(held) >= len(whole) for held in taken.held)


@dataclass(frozen=True)
class Flips(Pries):
    """Of workers that learn from poisoned data."""

    poisons: ClassVar[bool] = True


def test_label_flippers_reach_their_own_workers_vectors_and_no_other() -> None:
    simulation = made(attack=Flips())
    simulation.step()
    d = simulation.parameters.numel()
    assert max(len(held) for held in Pries.taken[-1].held) == 8 * d * 4
    sizes = {a.size // d for a in Pries.taken[-1].arrays if a.size >= d}
    assert {3, 8} <= sizes <= {1, 2, 3, 8}  # its own, the honest ones, and what is computed of these


@dataclass(frozen=True)
class PriesIntoData(vg.DataAttack):
    """Takes down all that it can get at of the data that its workers learn from, and writes there."""

    taken: ClassVar[list[Taken]] = []
    shapes: ClassVar[list[tuple[int, ...]]] = []

    def poison(self, inputs: Tensor, labels: Tensor, task: vg.Task) -> tuple[Tensor, Tensor]:
        self.taken.append(pry((inputs, labels, task)))
        self.shapes.append(tuple(inputs.shape[:2]))
        changed = inputs.clone(), labels.clone()
        inputs.fill_(7)
        labels.fill_(0)
        return changed


@pytest.mark.parametrize("settings", [{}, {"clients": 60}, {"local_steps": 2}], ids=str)
def test_attacks_on_data_reach_what_their_own_workers_learn_from(settings: dict[str, Any]) -> None:
    """Neither the batches of honest workers nor the seed that draws them; and what they write there reaches nobody."""
    PriesIntoData.taken.clear(), PriesIntoData.shapes.clear()
    simulation, plain = made(attack=PriesIntoData(), **settings), made(attack=vg.LabelFlip(), **settings)
    for _ in range(3):
        simulation.step(), plain.step()
    for taken, (f, b) in zip(PriesIntoData.taken, PriesIntoData.shapes, strict=True):
        assert b == 5
        assert max(len(held) for held in taken.held) == f * b * 64 * 4
        assert SEED not in seeds(taken)
    if not settings:  # whose model would differ after a step
        simulation, plain = made(attack=PriesIntoData(), **settings), made(attack=vg.LabelFlip(), **settings)
        simulation.step(), plain.step()
        assert torch.equal(simulation.vectors[:8], plain.vectors[:8])


@dataclass(frozen=True)
class WritesMemory(vg.Attack):
    """Counts steps, and writes over what it is shown of that and over what it answered."""

    remembers: ClassVar[bool] = True
    answered: ClassVar[list[Tensor]] = []

    def craft(self, seen: Knowledge) -> tuple[Tensor, Memory]:
        assert seen.memory is None or isinstance(seen.memory, Tensor)
        count = 0.0 if seen.memory is None else float(seen.memory[0])
        for kept in [*self.answered, *([] if seen.memory is None else [seen.memory])]:
            kept.fill_(-1)
        self.answered.append(seen.mean.new_full((3,), count + 1))
        return seen.mean.clone(), self.answered[-1]


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_its_memory_is_kept_for_it(knowledge: str) -> None:
    """What it is shown is a copy, and what is kept is one too."""
    WritesMemory.answered.clear()
    simulation, late = made(attack=WritesMemory(), knowledge=knowledge), knowledge == "last-round"
    for step in range(4):
        simulation.step()
        if step >= late:
            assert isinstance(simulation.adversary.memory, Tensor)
            assert simulation.adversary.memory.tolist() == [step + 1.0 - late] * 3


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("attack", ["mimic(warmup=3)", 'rop(history="own")', "gaussian(std=0.1)"])
@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_attacks_that_know_less_and_remember_go_on_where_momentum_moves(
    knowledge: str, attack: str, tmp_path: Path
) -> None:
    e = replace(BASE, knowledge=knowledge, attack=attack, momentum_at="adaptive", steps=6)
    whole = vg.run(e, tmp_path / "whole", opened(e))
    assert whole.folder is not None
    folder = interrupt(e, tmp_path / "parts", 3, opened(e))
    again = replay(folder, 3, opened(e))
    assert vg.resume(folder, opened(e)).began == 3
    for file in ("metrics.csv", "evaluations.csv", "state.pt"):
        assert (folder / file).read_bytes() == (whole.folder / file).read_bytes()
    done = replay(whole.folder, 3, opened(e))
    assert done.agrees
    assert torch.equal(done.vectors, again.vectors)
