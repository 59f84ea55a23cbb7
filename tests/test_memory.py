"""Attacks that remember: what their papers define, whose memory it is, and that a run goes on with it exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from interruption import interrupt
from test_card_runs import BASE, CUDA, alike, gone, near, normalised, opened
from test_simulate import small_simulation
from varangian.core.attacks import Knowledge, Memory, check_memory, same
from varangian.core.attacks.memory import MOST_DEEP
from varangian.runs import folders
from varangian.runs.replaying import replay

H, F, D = 7, 3, 12


def steps_of(seed: int, steps: int, d: int = D) -> list[np.ndarray]:
    """Honest vectors of some steps, which differ most along one direction, and more by worker than by step."""
    random = np.random.default_rng(seed)
    who, axis = random.normal(size=(H, 1)) * 3, random.normal(size=(1, d))
    return [who * axis + random.normal(size=(H, d)) + 0.5 * t for t in range(steps)]


def mimic(steps: list[np.ndarray], warmup: int) -> list[np.ndarray]:
    """The definition, with C written out."""
    sent = []
    z, mu, s, chosen = np.zeros(0), np.zeros(steps[0].shape[1]), np.zeros(len(steps[0])), 0
    for t, x in enumerate(steps):
        if t < warmup:
            mu = (t * mu + x.mean(0)) / (t + 1)
            if t == 0:
                away = x - x.mean(0)
                z = np.linalg.eigh(away.T @ away)[1][:, -1]
            else:
                away = x - mu
                turned = away.T @ away @ z
                z = t * z + turned / np.linalg.norm(turned)
                z /= np.linalg.norm(z)
            s = (t * s + x @ z) / (t + 1)
            chosen = int(np.abs(s).argmax())
        sent.append(x[chosen])
    return sent


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("warmup", [1, 2, 5, 9])
def test_mimic_warms_up_as_defined(seed: int, warmup: int) -> None:
    steps, memory = steps_of(seed, 8), None
    for x, wanted in zip(steps, mimic(steps, warmup), strict=True):
        sent, memory = vg.Mimic(warmup=warmup)(x, F, memory=memory)
        assert np.array_equal(sent, np.tile(wanted, (F, 1)))
    assert isinstance(memory, tuple)
    assert len(memory) == (1 if warmup <= 8 else 4)


def test_mimic_that_warms_up_keeps_to_its_worker() -> None:
    """Where without a warm-up it follows whoever stands out."""
    steps = steps_of(3, 6)
    first = np.abs(steps[0] @ np.linalg.svd(steps[0] - steps[0].mean(0))[2][0]).argmax()
    steps[5][(first + 1) % H] *= 50
    memory = None
    for x in steps:
        sent, memory = vg.Mimic(warmup=3)(x, 1, memory=memory)
    assert np.array_equal(sent[0], steps[5][first])
    assert not np.array_equal(vg.Mimic()(steps[5], 1)[0], steps[5][first])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_mimic_never_copies_what_is_not_finite_as_it_warms_up(bad: float) -> None:
    memory = None
    for t, x in enumerate(steps_of(1, 4)):
        x[t, 0] = bad
        sent, memory = vg.Mimic(warmup=9)(x, 2, memory=memory)
        assert np.isfinite(sent).all()
    sent, memory = vg.Mimic(warmup=9)(np.full((H, D), bad), 2, memory=memory)
    assert sent.shape == (2, D)
    assert isinstance(memory, tuple)
    assert all(isinstance(part, Tensor) and part.isfinite().all() for part in memory)
    with pytest.warns(UserWarning, match="one honest vector"):
        sent, _ = vg.Mimic(warmup=9)(np.full((1, D), bad), 2)  # all there is to copy
    assert not np.isfinite(sent).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_who_never_sends_numbers_turns_nothing_as_mimic_warms_up(bad: float) -> None:
    memory, others = None, None
    for x in steps_of(2, 5):
        _, memory = vg.Mimic(warmup=9)(np.insert(x, 1, bad, axis=0), 2, memory=memory)
        _, others = vg.Mimic(warmup=9)(x, 2, memory=others)
    assert isinstance(memory, tuple)
    assert isinstance(others, tuple)
    for found, wanted in zip(memory[:2], others[:2], strict=True):
        torch.testing.assert_close(found, wanted)


def test_rop_remembers_its_own_direction() -> None:
    attack, memory, u = vg.ROP(z=2.0, pi=0.3, decay=0.8, history="own"), None, np.zeros(D)
    for t, x in enumerate(steps_of(4, 5)):
        last = np.linspace(-1, 1, D) * t
        sent, memory = attack(x, F, previous=last, memory=memory)
        u = 0.8 * u + 0.2 * x.mean(0)
        unit = u / np.linalg.norm(u)
        p = 1 - unit * unit.sum()
        wanted = 0.3 * last + 0.7 * x.mean(0) - 2 * p / np.linalg.norm(p)
        assert np.allclose(sent, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        vg.Mimic(warmup=2),
        vg.ROP(history="own"),
        vg.WorstCase(directions=("mimic(warmup=2)", 'rop(history="own")', "little")),
    ],
    ids=["mimic", "rop", "worst-case"],
)
def test_attacks_that_remember_keep_the_contract(attack: vg.Attack) -> None:
    assert attack.remembers
    assert len(vg.testing.check_attack(attack).passed) == 9


def test_without_the_option_nothing_is_remembered() -> None:
    for attack in (vg.Mimic(), vg.ROP(), vg.WorstCase(), vg.Little()):
        assert not attack.remembers
        sent, memory = attack(steps_of(0, 1)[0], F, vg.Median(f=F), memory=None)
        assert memory is None
        assert np.array_equal(sent, attack(steps_of(0, 1)[0], F, vg.Median(f=F)))


def test_a_search_through_attacks_that_remember_lets_each_go_on_alone() -> None:
    """As if it alone attacked, and the search itself, which tries many factors, is one step."""
    lines, memory, alone = ("mimic(warmup=3)", 'rop(history="own")'), None, [None, None]
    attack = vg.WorstCase(directions=lines, evaluations=8)
    for x in steps_of(5, 5):
        _, memory = attack(x, F, vg.Median(f=F), previous=x[0], memory=memory)
        for i, one in enumerate((vg.Mimic(warmup=3), vg.ROP(history="own"))):
            _, alone[i] = one(x, F, previous=x[0], memory=alone[i])
        assert same(memory, tuple(alone))


# ---------------------------------------------------------------------------------------------------------- own classes


@dataclass(frozen=True)
class Growing(vg.Attack):
    """Sends the mean of all honest means so far, negated; remembers their sum, how many, and a view of honest rows."""

    spoils: bool = False
    remembers: ClassVar[bool] = True

    def craft(self, seen: Knowledge) -> tuple[Tensor, Memory]:
        if seen.memory is None:
            total, count, rows = torch.zeros_like(seen.mean), torch.zeros((), dtype=torch.int64), None
        else:
            total, count, rows = seen.memory  # pyright: ignore[reportGeneralTypeIssues]
            assert rows[0].dtype == torch.bool
        total, count = total + seen.mean, count + 1
        if self.spoils and isinstance(seen.memory, tuple):
            seen.memory[0].fill_(99)  # pyright: ignore
        kept = (seen.honest[:2] > 0, seen.honest[1], None, seen.mean.to(torch.bfloat16))
        return -total / count, (total, count.to(seen.honest.device), kept)


def test_memory_is_shared_with_nobody() -> None:
    """Neither with the honest vectors, which lie where momenta live, nor with an attack that writes into it."""
    algorithm = vg.Algorithm(worker=[vg.Momentum(0.9)], rule=vg.Median(f=3))
    good, bad = (small_simulation(algorithm, Growing(spoils=s), 3) for s in (False, True))
    for _ in range(3):
        good.step()
        kept = good.adversary.memory
        bad.step()
        assert same(bad.adversary.memory, kept)
        assert isinstance(kept, tuple)
        assert isinstance(kept[2], tuple)
        row = kept[2][1]
        assert isinstance(row, Tensor)
        assert torch.equal(row, good.vectors[1])
        assert row.untyped_storage().data_ptr() != good.vectors.untyped_storage().data_ptr()
    assert torch.equal(good.parameters, bad.parameters)


def test_a_snapshot_holds_what_is_remembered() -> None:
    algorithm = vg.Algorithm(worker=[vg.Momentum(0.9)], rule=vg.Median(f=3))
    whole, parts = (small_simulation(algorithm, Growing(), 3) for _ in range(2))
    for _ in range(2):
        whole.step()
    parts.restore(whole.snapshot())
    assert same(parts.adversary.memory, whole.adversary.memory)
    for _ in range(2):
        whole.step(), parts.step()
    assert torch.equal(whole.parameters, parts.parameters)
    assert same(whole.adversary.memory, parts.adversary.memory)

    forgets = small_simulation(algorithm, Growing(), 3)
    forgets.restore(replace(whole.snapshot(), memory=None))  # as the first step: nothing says how much is remembered
    other = small_simulation(algorithm, vg.Little(), 3)
    before = other.parameters.clone()
    with pytest.raises(ValueError, match="memory: nothing is needed, got what an attack remembers"):
        other.restore(whole.snapshot())
    with pytest.raises(ValueError, match="Growing must remember a tensor of numbers, a tuple of tensors, or None, got"):
        parts.restore(replace(whole.snapshot(), memory=("text",)))  # pyright: ignore[reportArgumentType]
    assert torch.equal(other.parameters, before)
    assert same(parts.adversary.memory, whole.adversary.memory)


class Says(vg.Attack):
    answer: ClassVar[Callable[[Knowledge], Any]]
    remembers: ClassVar[bool] = True

    def craft(self, seen: Knowledge) -> Any:
        return type(self).answer(seen)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda seen: seen.mean,
            r"Says remembers \(remembers = True\): it must answer \(vectors, memory\), got float64",
        ),
        (lambda seen: (seen.mean,), r"must answer \(vectors, memory\), got a tuple of 1"),
        (lambda seen: None, r"must answer \(vectors, memory\), got nothing"),
        (
            lambda seen: (seen.mean, [1.0]),
            "Says must remember a tensor of numbers, a tuple of tensors, or None, got a list",
        ),
        (lambda seen: (seen.mean, (seen.mean, 3)), "a tuple of tensors, or None, got a int"),
        (lambda seen: (seen.mean, seen.mean.to_sparse()), "got float64 .* sparse"),
        (lambda seen: (seen.mean, seen.mean.to("meta")), "or None, got float64"),
        (lambda seen: (seen.mean, seen.mean.to(torch.complex64)), "got complex64"),
        (lambda seen: (seen.mean[:1], None), r"Says must send \[d\]"),
    ],
)
def test_what_is_no_memory_is_refused_in_one_line(answer: Callable[[Knowledge], Any], said: str) -> None:
    with patch.object(Says, "answer", staticmethod(answer), create=True):
        with pytest.raises(ValueError, match=said) as raised:
            Says()(steps_of(0, 1)[0], 1)
        assert "\n" not in str(raised.value)


def test_who_remembers_nothing_is_handed_no_memory_and_answers_none() -> None:
    x = steps_of(0, 1)[0]
    with pytest.raises(ValueError, match="Little needs no memory, since it remembers nothing, got"):
        vg.Little()(x, 1, memory=torch.zeros(3))
    with (
        patch.object(Says, "remembers", False),
        patch.object(Says, "answer", staticmethod(lambda seen: (seen.mean, None)), create=True),
        pytest.raises(ValueError, match="Says must send vectors, got a tuple; to remember something it must say"),
    ):
        Says()(x, 1)


def test_nobody_attacks_and_the_memory_stays() -> None:
    kept = torch.ones(3)
    sent, memory = vg.Mimic(warmup=3)(steps_of(0, 1)[0], 0, memory=(kept,))
    assert sent.shape == (0, D)
    assert memory == (kept,)


@pytest.mark.parametrize("deep", [1, MOST_DEEP, MOST_DEEP + 1])
def test_tuples_may_be_nested_so_deep(deep: int) -> None:
    memory: Any = torch.zeros(1)
    for _ in range(deep):
        memory = (memory,)
    if deep <= MOST_DEEP:
        check_memory(Says(), memory, torch.device("cpu"))
    else:
        with pytest.raises(ValueError, match="got a tuple"):
            check_memory(Says(), memory, torch.device("cpu"))


@dataclass(frozen=True)
class Writes(vg.Attack):
    """Grows its memory in place."""

    remembers: ClassVar[bool] = True

    def craft(self, seen: Knowledge) -> tuple[Tensor, Memory]:
        memory = seen.memory if isinstance(seen.memory, Tensor) else seen.mean.clone()
        memory += 1
        return memory, memory


@dataclass(frozen=True)
class Hides(vg.Attack):
    """Sends what it remembers itself, and keeps a list."""

    remembers: ClassVar[bool] = True
    seen: ClassVar[list[Tensor]] = []

    def craft(self, seen: Knowledge) -> tuple[Tensor, Memory]:
        self.seen.append(seen.mean)
        return sum(self.seen, torch.zeros_like(seen.mean, dtype=seen.mean.dtype)).mean() * seen.mean, seen.mean


def test_check_attack_looks_at_memories() -> None:
    with pytest.raises(vg.testing.ContractError, match="the memory that it found in step 1 was written to"):
        vg.testing.check_attack(Writes)
    Hides.seen.clear()
    with pytest.raises(vg.testing.ContractError):
        vg.testing.check_attack(Hides)


# ----------------------------------------------------------------------------------------------------------------- runs

REMEMBER = {
    "mimic, warming up": "mimic(warmup=20)",
    "mimic, warm": "mimic(warmup=2)",
    "rop": 'rop(history="own")',
    "worst case": "worst-case(directions=('mimic(warmup=4)','little'),evaluations=6)",
    "own": f"{__name__}:Growing",
}


@pytest.mark.parametrize("name", REMEMBER)
def test_an_interrupted_run_goes_on_and_is_replayed_exactly(name: str, tmp_path: Path) -> None:
    e = replace(BASE, attack=REMEMBER[name], steps=6)
    whole = vg.run(e, tmp_path / "whole", opened(e))
    interrupt(e, tmp_path / "parts", 3, opened(e))
    [folder] = (tmp_path / "parts").iterdir()
    again = replay(folder, 3, opened(e))
    parts = vg.resume(folder, opened(e))
    assert parts.began == 3
    for file in ("metrics.csv", "evaluations.csv", "state.pt"):
        assert (folder / file).read_bytes() == (whole.folder / file).read_bytes()  # pyright: ignore
    for step in (3, 5):
        done = replay(whole.folder, step, opened(e))  # pyright: ignore[reportArgumentType]
        assert done.agrees
        if step == 3:
            assert torch.equal(done.vectors, again.vectors)
    without = vg.run(replace(e, attack="mimic" if "mimic" in name else "little"), dataset=opened(e))
    assert list(without.measures) != list(whole.measures)


def test_a_checkpoint_without_memory_is_what_it_was(tmp_path: Path) -> None:
    for attack, held in (("little", False), ("mimic(warmup=9)", True)):
        folder = interrupt(replace(BASE, attack=attack), tmp_path, 2, opened(BASE))
        content = torch.load(folder / folders.CHECKPOINT, weights_only=True)
        assert ("memory" in content["state"]) == held


def test_a_checkpoint_of_somebody_elses_memory_is_not_used(tmp_path: Path) -> None:
    e = replace(BASE, attack="mimic(warmup=9)")
    whole = vg.run(e, tmp_path / "whole", opened(e))
    folder = interrupt(e, tmp_path / "parts", 3, opened(e))
    content = torch.load(folder / folders.CHECKPOINT, weights_only=True)
    del content["checksum"]
    content["state"]["memory"] = ["text", 3]
    torch.save(content | {"checksum": folders._checksum(content)}, folder / folders.CHECKPOINT)
    with pytest.warns(UserWarning, match="starting over|does not fit|no checkpoint"):
        vg.resume(folder, opened(e))
    assert (folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()  # pyright: ignore


@pytest.mark.parametrize("at", [0, 2])
def test_a_step_that_is_taken_back_takes_back_what_is_remembered(at: int) -> None:
    """A refusal is found late on a card: the memory is then that of the step before, as on the CPU."""

    def craft(self: vg.NaN, seen: Knowledge) -> tuple[Tensor, Memory]:
        memory = torch.zeros_like(seen.mean) if seen.memory is None else seen.memory
        assert isinstance(memory, Tensor)
        nonlocal steps
        steps += 1
        return seen.mean * (float("nan") if steps > at else 1.0), memory + seen.mean + 1

    e, found = replace(BASE, attack="nan", real_byzantine=4), []
    for device in ("cpu", CUDA):
        steps = 0
        with patch.object(vg.NaN, "craft", craft), patch.object(vg.NaN, "remembers", True):
            found.append(gone(e, device, model=normalised()))
    (wanted, refused, state), (rows, said, left) = found
    assert refused is not None
    assert (said, left["step"], len(rows)) == (refused, at, at)
    alike(rows, wanted)
    assert (state["memory"] is None) == (at == 0)
    near(left, state)
