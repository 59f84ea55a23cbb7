"""Options of rules, mixings, attacks and transforms: what a refusal asks for is what is taken, to the bound."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from math import inf, nan, nextafter
from pathlib import Path
from typing import Any

import pytest

import catalog

WRONG: tuple[Any, ...] = (nan, 7, -(10**9), "nonsense", 0.25, None, ())
NUMBER = r"-?[\d.]+"
OBJECTS = {"layers", "attack", "first", "second", "directions"}  # options that are no number and no word
OWNERS: dict[str, Any] = {**catalog.RULES, **catalog.MIXINGS, **catalog.ATTACKS, **catalog.TRANSFORMS}
CASES = [(name, field.name) for name, owner in OWNERS.items() for field in fields(owner) if field.name not in OBJECTS]


def refusal(owner: Any, option: str, value: Any) -> str | None:
    """What a value is refused with, without what came; None where it is accepted."""
    try:
        found = getattr(replace(owner, **{option: value}), option)
    except ValueError as error:
        return str(error).rsplit(", got ", 1)[0]
    assert found == value
    return None


def allowed(option: str, rule: str) -> tuple[list[Any], list[Any]]:
    """(values that a rule accepts, values that it refuses), as near to its bounds as there are numbers."""
    rule = rule.removesuffix(" (or None)")
    if found := re.fullmatch(rf"an integer {option} >= ({NUMBER})", rule):
        least = int(found[1])
        return [least, least + 1, least + 10**6], [least - 1, least + 0.5, True, "1", inf]
    if found := re.fullmatch(rf'{option} (".*")', rule):
        words = re.findall(r'"([^"]*)"', found[1])
        quoted = [f'"{word}"' for word in words]
        assert found[1] == f"{', '.join(quoted[:-1])} or {quoted[-1]}"
        return words, [words[0] + "x", "", 1, "or"]
    if found := re.fullmatch(rf"{option} (\S+) or (\S+)", rule):
        values = {"True": True, "False": False}
        return [values.get(f, f) if f in values else int(f) for f in found.groups()], [2, "1", 7.5]
    beyond: list[Any] = ["1", True, nan]
    if found := re.fullmatch(rf"(?:a )?{option} in ([\[(])({NUMBER}), ({NUMBER})([\])])", rule):
        low, high = float(found[2]), float(found[3])
        at = [(low, found[1] == "["), (high, found[4] == "]")]
        within = [nextafter(low, high), nextafter(high, low), (low + high) / 2] + [end for end, closed in at if closed]
        beyond += [nextafter(low, -inf), nextafter(high, inf), -inf, inf] + [end for end, closed in at if not closed]
        return within, beyond
    finite = rf"a finite {option}" in rule
    ends: list[Any] = [1e300] if finite else [1e300, inf]
    beyond += [inf, -inf] if finite else [-inf]
    if found := re.fullmatch(rf"(?:a finite )?{option} > ({NUMBER})", rule):
        return [nextafter(float(found[1]), inf), *ends], [float(found[1]), *beyond]
    if found := re.fullmatch(rf"(?:a finite )?{option} >= ({NUMBER})", rule):
        return [float(found[1]), *ends], [nextafter(float(found[1]), -inf), *beyond]
    assert rule == f"a finite {option}", rule
    return [0.0, -1e300, *ends], beyond


@pytest.mark.parametrize(("name", "option"), CASES, ids=[f"{name}.{option}" for name, option in CASES])
def test_what_is_refused_is_what_the_refusal_says(name: str, option: str) -> None:
    owner = OWNERS[name]
    kind = type(owner).__name__
    said = {refusal(owner, option, value) for value in WRONG} - {None}
    if name == "bulyan" and option == "m":
        assert f'{kind} needs base="multi-krum" for m to mean anything' in said
        return
    if option in ("sign", "ddof") and len(said) == 2:  # a whole number first, then one of two
        said = {text for text in said if text and " or " in text}
    assert len(said) == 1, said
    text = said.pop()
    assert text is not None
    assert text.startswith(f"{kind} needs ")
    rule = text.removeprefix(f"{kind} needs ")
    good, bad = allowed(option, rule)
    assert good
    for value in good:
        assert refusal(owner, option, value) is None, value
    for value in bad:
        assert refusal(owner, option, value) is not None, value
    assert (refusal(owner, option, None) is None) == rule.endswith(" (or None)")


def test_what_each_option_asks() -> None:
    """A bound that is another one, as its refusal then is, would pass above."""
    asked: dict[str, dict[str, set[str]]] = {}
    for name, option in CASES:
        owner = OWNERS[name]
        kind = type(owner).__name__
        said = {refusal(owner, option, value) for value in WRONG} - {None}
        asked.setdefault(kind, {}).setdefault(option, set()).update(str(s).removeprefix(f"{kind} needs ") for s in said)
    recorded = json.loads((Path(__file__).parent / "golden/options.json").read_text("utf-8"))
    assert {kind: {o: sorted(said) for o, said in options.items()} for kind, options in asked.items()} == recorded
