"""Named things with options, as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import varangian as vg
from varangian.core.specs import canonical, describe, make, parse
from varangian.runs.fields import NAMED


@dataclass(frozen=True)
class Thing:
    """With a required option."""

    size: int
    f: int = 0
    name: str = "plain"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"Thing needs size >= 0, got {self.size}.")


TABLE: dict[str, Any] = {"thing": Thing, "other-thing": dict}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thing", ("thing", {})),
        ("  thing ( ) ", ("thing", {})),
        ("other-thing(a=1)", ("other-thing", {"a": 1})),
        ("thing(size=-3, name='a b')", ("thing", {"size": -3, "name": "a b"})),
        ("thing(shape=(3, 32, 32), x=1e-3, flag=True, none=None)",
         ("thing", {"shape": (3, 32, 32), "x": 1e-3, "flag": True, "none": None})),
        ("thing(name=multi-krum)", ("thing", {"name": "multi-krum"})),
        ("thing(name=lower)", ("thing", {"name": "lower"})),
        ('thing(name="x)(,=")', ("thing", {"name": "x)(,="})),
    ],
)  # fmt: skip
def test_parse(text: str, expected: tuple[str, dict[str, Any]]) -> None:
    assert parse("kind", text, TABLE) == expected


FORM = "{!r} is not of the form name or name(option=value, ...)."
OPTIONS = "{!r}: options are written thing(f=0, name='plain'), values as in Python."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thin", "unknown kind 'thin'. Did you mean 'thing'? Known: thing, other-thing."),
        ("zzz(size=1)", "unknown kind 'zzz'. Known: thing, other-thing."),
        ("", FORM),
        ("thing(size=1", FORM),
        ("thing)", FORM),
        ("a b", FORM),
        ("thing,other-thing", FORM + " A run has one kind; 2 are 2 runs."),
        ("thing.py/Mine", FORM + " A kind of your own is path/to/file.py:Name, or package.module:Name."),
        ("a.b", FORM + " A kind of your own is path/to/file.py:Name, or package.module:Name."),
        ("other-thing(3)", "{!r}: options are written other-thing(option=value, ...), values as in Python."),
        ("thing(3)", OPTIONS),
        ("thing(size=)", OPTIONS),
        ("thing(size=1)(x=2)", OPTIONS),
        ("thing(**{})", OPTIONS),
        ("thing(size=1, size=2)", OPTIONS),
        ("thing(size=\x00)", "kind 'thing(size=\\x00)': names and options are written in ASCII, without line breaks."),
        ("thing(size=print(1))", OPTIONS),  # literals only: nothing is run
        ("thing(size=[x for x in y])", OPTIONS),
        ("thing(size=a.b)", OPTIONS),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        parse("kind", text, TABLE)
    assert str(error.value) == message.format(text)


def test_sets_are_written_in_one_order_in_every_process() -> None:
    """Python's own order of text in a set is drawn anew in each process, and the text is what a run is known by."""
    names = {"h", "g", "f", "e", "d", "c", "b", "a"}
    written = "{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}"
    assert describe(Thing(1, name=frozenset(names)), [TABLE], 0) == f"thing(size=1, name={written})"  # type: ignore[arg-type]
    text = f"options(a=[{names}, 1.5, (2,)], b={{'x': {names}}})"
    expected = f"options(a=[{written}, 1.5, (2,)], b={{'x': {written}}})"
    assert canonical("kind", text, {"options": lambda a=None, b=None: None}) == expected


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("thing(size=2)", {}, Thing(2)),
        ("thing(size=2)", {"f": 3}, Thing(2, f=3)),
        ("thing(size=2, f=1)", {"f": 3}, Thing(2, f=1)),  # what is written wins
        ("thing", {"size": 5, "unheard_of": 1}, Thing(5)),
    ],
)
def test_make(text: str, given: dict[str, Any], expected: Thing) -> None:
    assert make("kind", text, {"thing": Thing}, **given) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thing", "thing needs size: write thing(size=...)."),
        ("thing(sise=2)", "thing: unknown option 'sise'. Did you mean 'size'? Known: size, f, name."),
        ("thing(size=-1)", "Thing needs size >= 0, got -1."),
        ("thing(size='a')", "thing: size must be a valid integer, got 'a'."),
    ],
)
def test_make_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make("kind", text, {"thing": Thing})
    assert str(error.value) == message


VALUES = [
    vg.Median(3),
    vg.Median(3, even="lower"),
    vg.MultiKrum(2, m=3, neighbours="n-f-1", distance="plain"),
    vg.Bulyan(1, base="multi-krum", selection="frozen", even="upper"),
    vg.NearestNeighborMixing(2),
    vg.Bucketing(s=3),
    vg.Little(),
    vg.Little(None, sign=1),
    vg.Empire(2.5),
    vg.Gaussian(1e-3),
    vg.Inf("mixed"),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_describe_is_undone_by_make(value: Any) -> None:
    f = getattr(value, "f", 0)
    text = describe(value, NAMED, f)
    assert "f=" not in text.replace("self=", "")  # f is a setting of its own
    assert not f or f"f={f}" in describe(value, NAMED)
    kinds: list[dict[str, Any]] = [vg.RULES, vg.MIXINGS, vg.ATTACKS]
    [table] = [kind for kind in kinds if type(value) in kind.values()]  # "bulyan" is a rule, and an attack
    assert make("thing", text, table, f=f) == value
    assert make("thing", describe(value, NAMED), table, f=99) == value


@settings(deadline=None, max_examples=50)
@given(st.floats(-1e6, 1e6), st.sampled_from([-1, 1]), st.sampled_from([0, 1]))
def test_describe_is_undone_whatever_the_numbers(factor: float, sign: int, ddof: int) -> None:
    value = vg.Little(factor, sign, ddof)
    assert make("attack", describe(value, NAMED), vg.ATTACKS) == value


def test_describe_needs_a_name() -> None:
    class Mine(vg.Attack):
        def craft(self, seen: vg.Knowledge) -> Any:
            return seen.mean

    with pytest.raises(ValueError, match=r"Mine has no name, .* or into RULES, MIXINGS, ATTACKS or PARTITIONS first"):
        describe(Mine(), NAMED)


def test_no_error_offers_a_rule_that_no_run_can_use() -> None:
    with pytest.raises(ValueError, match=r"unknown rule 'x'\. Known: average, ") as error:
        parse("rule", "x", vg.RULES)
    assert "lasa" in str(error.value)
    assert "fltrust" not in str(error.value)
