"""Options of rules, mixings, transforms and attacks: what counts as a number, and that f is said."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import numpy as np
import pytest

import varangian as vg

TRANSFORMS = {"clip": vg.Clip, "momentum": vg.Momentum, "shared-momentum": vg.SharedMomentum}
KINDS: list[Callable[..., Any]] = [
    *vg.RULES.values(), *vg.MIXINGS.values(), *vg.ATTACKS.values(), *TRANSFORMS.values(),
]  # fmt: skip
NEEDED = {"f": 1, "max_norm": 1.0, "beta": 0.5}
NO_NUMBERS: list[Any] = [True, np.True_, "1", "0.5", float("nan"), [1]]


def options(kind: Any) -> dict[str, Any]:
    return {o.name: NEEDED[o.name] for o in fields(kind) if o.name in NEEDED}


def numbers_of(kind: Any) -> list[tuple[str, bool]]:
    """(name, whether it is an integer) of the options that are numbers."""
    hints = {name: str(hint).removeprefix("<class '").removesuffix("'>") for name, hint in get_type_hints(kind).items()}
    wanted = {"int": True, "int | None": True, "float": False, "float | None": False}
    wanted |= {"typing.Optional[int]": True, "typing.Optional[float]": False}
    return [(o.name, wanted[hints[o.name]]) for o in fields(kind) if hints[o.name] in wanted]


NUMBERS = [(kind, name, integer) for kind in KINDS for name, integer in numbers_of(kind)]


@pytest.mark.parametrize("kind", [k for k in [*vg.RULES.values(), *vg.MIXINGS.values()] if "f" in options(k)])
def test_f_is_said(kind: Any) -> None:
    if kind is vg.Average:
        assert kind() == kind(0)
        return
    with pytest.raises(
        ValueError, match=rf"^{kind.__name__} needs f, how many .*: {kind.__name__}\(f=...\); 0 must be said.$"
    ):
        kind()
    assert kind(f=0).f == 0


def test_own_rules_need_it_too() -> None:
    class Own(vg.Median):
        pass

    with pytest.raises(ValueError, match="Own needs f"):
        Own()


@pytest.mark.parametrize(("kind", "name", "integer"), NUMBERS)
def test_what_is_no_number_is_refused_in_one_line(kind: Any, name: str, integer: bool) -> None:
    for value in NO_NUMBERS + ([1.0, 0.2, np.float64(1), -2] if integer else [10**400, -(10**400)]):
        with pytest.raises(ValueError, match=f"^{kind.__name__} needs ") as refused:
            kind(**(options(kind) | {name: value}))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("kind", "name", "integer"), NUMBERS)
def test_numbers_of_numpy_are_numbers(kind: Any, name: str, integer: bool) -> None:
    """They become Python's own, so that the object is the same, prints the same, and goes where the other goes."""
    default = next(o.default for o in fields(kind) if o.name == name)
    value = NEEDED.get(name, 1 if default in (None, MISSING) else default)
    if kind is vg.Bulyan and name == "m":
        one: Any = np.int64(1)
        plain, given = kind(f=1, base="multi-krum", m=1), kind(f=1, base="multi-krum", m=one)
    else:
        convert = np.int64 if integer else np.float64
        values: list[dict[str, Any]] = [options(kind) | {name: value}, options(kind) | {name: convert(value)}]
        plain, given = (kind(**v) for v in values)
    assert given == plain
    assert repr(given) == repr(plain)
    assert type(getattr(given, name)) is type(getattr(plain, name))
    assert copy.deepcopy(given) == pickle.loads(pickle.dumps(given)) == plain


def test_layers_of_lasa() -> None:
    layers: Any = [2, np.int64(5)]
    assert vg.LASA(f=1, layers=layers) == vg.LASA(f=1, layers=(2, 5))
    for layers in (5, "25", (2.0,), (0, 3), (3, 3), (True,)):
        with pytest.raises(ValueError, match=r"^LASA needs "):
            vg.LASA(f=1, layers=layers)  # type: ignore[arg-type]
