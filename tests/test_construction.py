"""What is wrong with a class, or with the options given to it, is said in one line before anything runs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import varangian as vg
from varangian.testing import check_attack, check_mixing, check_rule


def said(call: Callable[[], object]) -> str:
    """In one line, whether one expects Python's kind of error or a wrong value."""
    with pytest.raises(TypeError) as error:
        call()
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vg.MultiKrum(ff=3), "MultiKrum has no option 'ff'. Did you mean 'f'? It has: f, m, neighbours, "),  # type: ignore[call-arg]
        (lambda: vg.Median(f=2, eve="mid"), "Median has no option 'eve'. Did you mean 'even'? It has: f, even."),  # type: ignore[call-arg]
        (lambda: vg.Median(f=2, title="x"), "Median has no option 'title'. It has: f, even."),  # type: ignore[call-arg]
        (lambda: vg.Clip(maxnorm=2), "Clip has no option 'maxnorm'. Did you mean 'max_norm'? It has: max_norm, mode."),  # type: ignore[call-arg]
        (lambda: vg.Little(faktor=1), "Little has no option 'faktor'. Did you mean 'factor'? It has: factor, sign, "),  # type: ignore[call-arg]
        (lambda: vg.NearestNeighborMixing(1, m=3), "NearestNeighborMixing has no option 'm'. It has: f."),  # type: ignore[call-arg]
        (lambda: vg.Zero(factor=1), "Zero has no options, got 'factor'."),  # type: ignore[call-arg]
        (lambda: vg.General(f=1), "General is what others are derived from: a class of your own that has combine and "),  # type: ignore[abstract]
    ],
)  # fmt: skip
def test_an_option_that_is_none(make: Callable[[], object], message: str) -> None:
    assert said(make).startswith(message)


def test_values_are_still_checked_and_copied() -> None:
    with pytest.raises(ValueError, match="Median needs f, how many vectors may be Byzantine"):
        vg.Median()
    with pytest.raises(TypeError, match="positional arguments"):
        vg.Median(1, "mid", 3)  # type: ignore[call-arg]
    for stage in (vg.Median(f=2), vg.Zero(), vg.Clip(1.0), vg.Bucketing(2)):
        assert copy.deepcopy(stage) == copy.copy(stage) == stage
    assert list(inspect.signature(vg.Median).parameters) == ["f", "even"]
    assert list(inspect.signature(vg.Zero).parameters) == []


class Needing(vg.General):
    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1


class Empty(vg.General):
    pass


class TakesLess(Needing):
    def combine(self, x: Any) -> Any:  # type: ignore[override]
        return x.mean(0)


class TakesMore(Needing):
    def combine(self, x: Any, previous: Any, f: int) -> Any:  # type: ignore[override]
        return x.mean(0)


class DrawsNothing(Needing):
    draws = True

    def combine(self, x: Any, previous: Any) -> Any:
        return x.mean(0)


class NoProperty(vg.General):
    def needs(self) -> Any:  # type: ignore[override]
        return "1", 1

    def combine(self, x: Any, previous: Any) -> Any:
        return x.mean(0)


class OfNoFamily(vg.Rule):  # type: ignore[misc]
    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1


class EmptyRanks(vg.Coordinatewise):
    pass


class Undecorated(Needing):
    factor: float = 2.0

    def combine(self, x: Any, previous: Any) -> Any:
        return self.factor * x.mean(0)


RULES: list[tuple[Any, str]] = [
    (Empty, "Empty cannot be made: it lacks combine(self, x, previous) ([n, d] -> [d]; must not write into x"),
    (Empty, "and the property needs (how many vectors it needs: the formula in f, and its value)."),
    (EmptyRanks, "EmptyRanks cannot be made: it lacks statistic(self, n) ((low, high, window) for columns of n values"),
    (TakesLess, "TakesLess.combine must be combine(self, x, previous), got combine(self, x: 'Any')"),
    (TakesMore, "TakesMore.combine must be combine(self, x, previous), got combine(self, x: 'Any', previous: 'Any', f"),
    (DrawsNothing, "DrawsNothing.combine must be combine(self, x, previous, draw), got combine(self, x: 'Any', previ"),
    (NoProperty, "NoProperty.needs must be a property: write @property above def needs(self)."),
    (OfNoFamily, "OfNoFamily cannot be made: derive it from vg.General, vg.Selecting or vg.Coordinatewise."),
]


@pytest.mark.parametrize(("kind", "message"), RULES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_rule_that_is_not_whole(kind: Any, message: str) -> None:
    for call in (lambda: kind(f=1), lambda: check_rule(kind), lambda: check_rule(lambda f: kind(f))):
        assert message in said(call)


def test_options_without_dataclass() -> None:
    told = said(lambda: Undecorated(f=1, factor=3.0))  # type: ignore[call-arg]
    assert told == "Undecorated has no option 'factor' yet: write @dataclass(frozen=True) above the class."
    assert Undecorated(f=1)(torch.ones(3, 1)).item() == 2
    assert dataclass(frozen=True)(Undecorated)(f=1, factor=3.0)(torch.ones(3, 1)).item() == 3


def test_mixings_attacks_and_transforms_that_are_not_whole() -> None:
    class Mixes(vg.Mixing):
        pass

    class Attacks(vg.Attack):
        def craft(self, honest: Any, f: int) -> Any:  # type: ignore[override]
            return honest.mean(0)

    class Moves(vg.Transform):
        def __call__(self, x: Any) -> Any:  # type: ignore[override]
            return x

    assert "Mixes cannot be made: it lacks the property needs" in said(Mixes)  # type: ignore[abstract]
    assert "weights(self, geometry) ([m, n] weights; or [n] scales" in said(lambda: check_mixing(Mixes))
    for call in (Attacks, lambda: check_attack(Attacks)):
        assert "Attacks.craft must be craft(self, seen), got craft(self, honest" in said(call)
    assert "Moves.__call__ must be __call__(self, x, memory), got __call__(self, x" in said(Moves)


def test_a_class_that_was_mended_in_place_is_asked_again() -> None:
    class Mended(Needing):
        def combine(self, x: Any) -> Any:  # type: ignore[override]
            return x.mean(0)

    said(lambda: Mended(f=1))
    Mended.combine = lambda self, x, previous: x.mean(0)  # type: ignore[assignment,method-assign]
    assert Mended(f=1)(torch.ones(3, 1)).item() == 1


def test_needs_says_a_formula_and_its_value() -> None:
    class Counts(vg.General):
        @property
        def needs(self) -> Any:
            return 2 * self.f + 1

        def combine(self, x: Any, previous: Any) -> Any:
            return x.mean(0)

    for call in (lambda: Counts(f=1)(torch.ones(3, 2)), lambda: check_rule(Counts)):
        with pytest.raises(ValueError, match=r'^Counts.needs must answer a formula and its value, such as \("2f \+ 1"'):
            call()


class AnswersArray(Needing):
    def combine(self, x: Any, previous: Any) -> Any:
        return x.numpy().mean(0)


@dataclass(frozen=True)
class Counting(Needing):
    def combine(self, x: Any, previous: Any) -> Any:
        self.count = 1  # type: ignore[misc]
        return x.mean(0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            AnswersArray,
            "AnswersArray must answer float64 [3], got an array; torch.from_numpy makes a tensor of float64",
        ),
        (Counting, "cannot assign to field 'count' (a stage is a value: its options are fields of a dataclass"),
    ],
)
def test_what_answers_no_plain_vectors_is_told_once(kind: Any, message: str) -> None:
    with pytest.raises(vg.testing.ContractError) as error:
        check_rule(kind)
    assert len(error.value.failures) == 1
    assert message in str(error.value)
    assert "nothing else was tried" in str(error.value)
