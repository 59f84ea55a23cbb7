"""Steps that a card is asked for in one go: the same bits as operation by operation, and all that may happen late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varangian as vg
from pretended import PretendedCard
from test_card_runs import BASE, CASES, CUDA, alike, gone, hosted, machine, near, opened, state_of
from varangian import run
from varangian.core import kernels
from varangian.core.attacks.base import Knowledge
from varangian.runs.building import build, computing, handed
from varangian.simulation import captured
from varangian.simulation.captured import Repeated
from varangian.simulation.data import Dataset, Split
from varangian.simulation.simulate import Simulation

LONG = replace(BASE, steps=34, learning_rate="0.1,20:0.02")
IN_ONE_GO = (
    "median", "phocas", "multi-krum", "mixed", "published", "published multi-krum", "no momentum", "nothing at workers",
    "dampened", "server", "nesterov", "nesterov at the server", "no attack", "double precision", "nothing measured",
)  # fmt: skip
ONE_BY_ONE = ("shared", "label flip", "a remembered aggregate", "an attack that looks at it")


def on_card(e: vg.Experiment, seen: float = captured.SEEN) -> tuple[Any, PretendedCard]:
    """Rows and the state of steps on a card, and what the card counted; captured after so many."""
    with patch.object(captured, "SEEN", seen):
        dataset, card = opened(e), PretendedCard()
        with card, computing(replace(e, device=CUDA)):
            simulation, _ = build(replace(e, device=CUDA), dataset)
            rows = []
            for _ in range(e.steps):
                rows += simulation.advance()
            rows += simulation.settle()
            return (rows, state_of(simulation)), card


@pytest.mark.slow
@pytest.mark.parametrize("name", [*IN_ONE_GO, *ONE_BY_ONE])
def test_the_bits_are_those_of_operation_by_operation(name: str) -> None:
    """Over a change of the learning rate, too."""
    settings = {**CASES[name], "steps": LONG.steps}
    e = replace(LONG, **settings)
    (rows, state), card = on_card(e)
    (wanted, expected), slow = on_card(e, seen=10**9)
    assert rows == wanted
    assert repr(state) == repr(expected)
    for key in ("parameters", "decayed", "sampled"):
        assert state[key] is None or torch.equal(state[key], expected[key])
    alike(rows, gone(e, "cpu")[0])
    assert slow.replays == 0
    assert (card.replays > 10) == (name in IN_ONE_GO), card.replays  # where short batches come often, fewer


@pytest.mark.parametrize("name", ["median", "nesterov", "multi-krum"])
def test_models_that_are_batched_over_workers_are_captured_too(name: str) -> None:
    e = replace(LONG, **{**CASES[name], "steps": LONG.steps})
    found = []
    for seen in (captured.SEEN, 10**9):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
        there, given = handed(replace(e, device=CUDA), model, None, None)
        with patch.object(captured, "SEEN", seen), PretendedCard() as card, computing(there):
            simulation, _ = build(there, opened(e), given)
            rows: list[Any] = []
            for _ in range(e.steps):
                rows += simulation.advance()
            found.append(([*rows, *simulation.settle()], state_of(simulation)))
            assert simulation.gradients.method == "vmap"
            assert (card.replays > 30) == (seen < 9)
    (rows, state), (wanted, expected) = found
    assert rows == wanted
    assert torch.equal(state["parameters"], expected["parameters"])


@pytest.mark.parametrize("name", ["median", "server", "nesterov", "multi-krum", "nothing measured"])
def test_a_refusal_among_replays_leaves_what_it_leaves_on_the_cpu(name: str) -> None:
    """More vectors than declared are NaN from step 21 on."""
    e = replace(LONG, attack="nan", real_byzantine=4, **CASES[name])
    found = []
    for device in ("cpu", CUDA):
        with machine(device) as card, computing(replace(e, device=device)):
            switch = torch.ones(1, device=device)

            def craft(self: vg.NaN, seen: Knowledge, switch: Tensor = switch) -> Tensor:
                return seen.mean * switch

            with patch.object(vg.NaN, "craft", craft):
                simulation, _ = build(replace(e, device=device), opened(e))
                rows: list[Any] = []
                for _ in range(21):
                    rows += simulation.advance()
                rows += simulation.settle()
                switch.fill_(float("nan"))
                with pytest.raises(vg.Refused, match="got 4"):
                    rows += [*simulation.advance(), *simulation.settle()]
                assert simulation.refused is not None
                found.append((rows, state_of(simulation)))
                # And it goes on from there as if nothing had been.
                switch.fill_(1)
                simulation.refused = None
                for _ in range(6):
                    found[-1][0].extend(simulation.advance())
                found[-1][0].extend(simulation.settle())
                found[-1] = *found[-1], state_of(simulation)
                assert card is None or card.replays > 21
    (wanted, state, after), (rows, left, later) = found
    assert left["step"] == 21
    alike(rows, wanted)
    near(left, state)
    near(later, after)


def floats() -> Dataset:
    generator = torch.Generator().manual_seed(2)
    images, classes = torch.rand(203, 1, 8, 8, generator=generator), torch.arange(203) % 4
    return Dataset("floats", Split(images, classes), Split(images, classes), classes=4)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", ["median", "nesterov", "multi-krum"])
def test_workers_that_send_nan_among_replays_do_not_remember_it(name: str) -> None:
    """At step 21 up to f workers sample an image that overflows; the steps behind it are those of the CPU."""
    e = replace(LONG, attack=None, **{**CASES[name], "clip": None})
    states = []
    for device in ("cpu", CUDA):
        dataset = floats()
        with machine(device) as card, computing(replace(e, device=device)):
            simulation, _ = build(replace(e, device=device), dataset)
            drawn: Any = simulation.batches._drawn(21)[0]  # type: ignore[attr-defined]
            count = [(len({i for i, row in enumerate(drawn) if k in row}), k) for k in np.unique(drawn)]
            chosen = next(int(k) for workers, k in count if workers <= e.byzantine)
            images, rows = simulation.batches.examples.inputs, []  # type: ignore[attr-defined]
            for step in range(30):
                if step in (21, 22):  # what is begun for step 22 is begun behind step 21
                    images[chosen].copy_(images[chosen] * 0 + (float("inf") if step == 21 else 0.5))
                rows += simulation.advance()
            rows += simulation.settle()
            assert card is None or card.replays > 30
            states.append((rows, state_of(simulation)))
    assert states[0][1]["parameters"].isfinite().all()
    alike(states[1][0], states[0][0])
    near(states[1][1], states[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 5, 8, 22])
@pytest.mark.parametrize("name", ["median", "multi-krum", "nesterov"])
def test_a_run_that_is_resumed_comes_to_the_same_bytes(name: str, at: int, tmp_path: Path) -> None:
    """Wherever it stops, some steps before are captured that are not behind it."""
    e = replace(LONG, **CASES[name], device=CUDA)
    with PretendedCard():
        whole = run(e, tmp_path / "whole", opened(e))

        def stop(step: int, _: object) -> None:
            if step == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(e, tmp_path / "parts", opened(e), progress=stop)
        parts = run(e, tmp_path / "parts", opened(e))
        assert parts.folder is not None
        assert whole.folder is not None
        for file in ("metrics.csv", "evaluations.csv"):
            assert (parts.folder / file).read_bytes() == (whole.folder / file).read_bytes()
        for one, other in zip(parts.model().parameters(), whole.model().parameters(), strict=True):
            assert torch.equal(hosted(one), hosted(other))


def test_a_restored_simulation_goes_on_from_there() -> None:
    e = replace(LONG, device=CUDA)
    with PretendedCard() as card, computing(e):
        one, other = (build(e, opened(e))[0] for _ in range(2))
        rows: list[Any] = [[], []]
        for simulation, into in ((one, rows[0]), (other, rows[1])):
            for _ in range(15):
                simulation.step()
            into.append(state_of(simulation))
        other.restore(one.snapshot())
        for _ in range(15):
            assert one.step() == other.step()
        near(state_of(one), state_of(other))
        assert card.replays > 60


# ------------------------------------------------------------------------------------------------ what is not captured


def repeated(work: Callable[[], Any], times: int = 6) -> tuple[Repeated, list[Any], PretendedCard]:
    with PretendedCard() as card:
        again = Repeated(torch.device(CUDA))
        return again, [again("it", work) for _ in range(times)], card


def test_work_is_captured_at_the_third_time() -> None:
    with PretendedCard() as card:
        x, again = torch.zeros(3, device=CUDA), Repeated(torch.device(CUDA))
        for k in range(1, 7):
            found = again("it", lambda: x.add_(1).clone(), places=[x])
            assert hosted(found).tolist() == [k] * 3
            assert card.replays == max(0, k - captured.SEEN)


@pytest.mark.parametrize(
    ("name", "work", "why"),
    [
        ("waits", lambda x: kernels.host(x), "it waits for the device"),
        ("sends", lambda x: x + kernels.there(np.random.default_rng().random(3), x), "other numbers"),
        ("sends more", lambda x: [kernels.there(np.ones(k), x) for k in range(2 + next(COUNT))], "other numbers"),
        ("draws", lambda x: kernels.varies("it draws random numbers"), "it draws"),
        ("reads", lambda x: float(x[0]), "cannot be captured"),
    ],
)  # fmt: skip
def test_work_that_is_other_work_each_time_is_done_as_it_is(name: str, work: Callable[[Tensor], Any], why: str) -> None:
    with PretendedCard() as card:
        x, again = torch.ones(3, device=CUDA), Repeated(torch.device(CUDA))
        for _ in range(6):
            again("it", lambda: work(x), places=[x])
        assert why in again.faults["it"]
        assert card.replays == 0
        again("another", lambda: x.add_(1))
        assert "another" not in again.faults


COUNT = iter(range(100))


def test_what_changes_once_it_is_captured_is_found_at_the_capture() -> None:
    """The third time other numbers are sent than the first two times: they count."""
    with PretendedCard():
        x, again = torch.zeros(2, device=CUDA), Repeated(torch.device(CUDA))
        for value in (1.0, 1.0, 5.0, 7.0):
            found = again("it", lambda value=value: x + kernels.there(np.full(2, value), x))
            assert hosted(found).tolist() == [value] * 2
        assert "other numbers" in again.faults["it"]


def test_errors_of_the_work_itself_are_raised() -> None:
    with PretendedCard():
        x, again, times = torch.zeros(2, device=CUDA), Repeated(torch.device(CUDA)), iter(range(9))

        def work() -> Tensor:
            if next(times) >= 2:
                raise ZeroDivisionError("mine")
            return x + 1

        for _ in range(2):
            again("it", work)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="mine"):
                again("it", work)


def test_work_elsewhere_in_memory_or_with_other_numbers_is_other_work() -> None:
    with PretendedCard():
        again, xs = Repeated(torch.device(CUDA)), [torch.full((2,), float(k), device=CUDA) for k in range(3)]
        for _ in range(4):
            for k, x in enumerate(xs):
                for number in (1.0, 2.0):
                    found = again("it", lambda x=x, n=number: x * n, numbers=(number,), places=[x])
                    assert hosted(found).tolist() == [k * number] * 2


def test_few_graphs_are_kept() -> None:
    """Learning rates that change at every step make none, and fill no memory."""
    with PretendedCard() as card:
        again, x = Repeated(torch.device(CUDA)), torch.ones(2, device=CUDA)
        for k in range(100):
            again("it", lambda: x * 2, numbers=(float(k),), places=[x])
        assert len(again._known) <= captured.KEPT
        assert card.replays == 0


def test_own_attacks_and_rules_are_called_at_every_step() -> None:
    """Who may look at what they like: their attack is asked each time; a rule of theirs, too."""
    calls: list[str] = []

    class Own(vg.Attack):
        def craft(self, seen: Knowledge) -> Tensor:
            calls.append("attack")
            return seen.mean

    class Mine(vg.Coordinatewise):
        @property
        def needs(self) -> tuple[str, int]:
            return "2f + 1", 2 * self.f + 1

        def statistic(self, n: int) -> tuple[int, int, int]:
            calls.append("rule")
            return self.f, n - self.f, 0

    for attack, rule, wanted in ((Own(), vg.Median(3), "attack"), (vg.Little(), Mine(3), "rule")):
        with PretendedCard(), computing(replace(LONG, device=CUDA)):
            built, _ = build(replace(LONG, device=CUDA), opened(LONG))
            simulation = Simulation(
                built.gradients, built.batches, vg.Algorithm((vg.Momentum(0.9),), rule=rule), workers=11,
                real_byzantine=3, attack=attack, task=vg.Task(4), learning_rate=lambda step: 0.1,
            )  # fmt: skip
            calls.clear()
            for _ in range(20):
                simulation.advance()
            assert calls.count(wanted) >= 20
