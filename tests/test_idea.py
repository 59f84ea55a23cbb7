"""The picture of the start page is what docs/idea.py computes, stands on any page, and says in words what it shows."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = (DOCS / "idea.svg").read_text("utf-8")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def idea() -> Any:
    sys.path.insert(0, str(DOCS))
    try:
        return import_module("idea")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def sides(idea: Any) -> tuple[Any, Any]:
    return idea.compute()


def test_it_is_what_its_script_draws(idea: Any, sides: tuple[Any, Any]) -> None:
    """But for what another processor's last bits make of a place: half a dot, or one in the last digit."""
    drawn = idea.drawn(*sides)
    assert NUMBER.sub("#", drawn) == NUMBER.sub("#", PICTURE)
    apart = [abs(float(a) - float(b)) for a, b in zip(NUMBER.findall(drawn), NUMBER.findall(PICTURE), strict=True)]
    assert max(apart) <= 0.5


def test_momenta_are_closer_together_and_F_of_them_is_closer_to_their_mean(sides: tuple[Any, Any]) -> None:
    gradients, momenta = sides
    assert momenta.spread < gradients.spread / 4
    assert momenta.error < gradients.error / 4
    assert momenta.cosine > gradients.cosine + 0.1


def test_the_two_weights_are_as_noisy_as_the_whole(idea: Any, sides: tuple[Any, Any]) -> None:
    pair = idea.shown(*sides)
    for side in sides:
        noise = side.honest[:, pair].std(0, ddof=1) / np.abs(side.mean[pair])
        assert (np.abs(np.log(noise / np.sqrt(side.ratio))) < 0.3).all()
        assert np.sign(side.mean[pair]).tolist() == [1, -1]


def test_it_stands_on_its_own() -> None:
    assert "prefers-color-scheme:dark" in PICTURE
    assert re.search(r"<title[^>]*>\w.*</title>", PICTURE)
    assert not re.search(r"<script|href=|url\(|@import", PICTURE)
    sizes = [int(size) for size in re.findall(r"font-size:(\d+)px", PICTURE)]
    assert min(sizes) * 400 / 800 >= 12  # at 400 pixels


@pytest.mark.parametrize("page", [0, 1])
def test_its_colours_stand_out_from_its_card(idea: Any, page: int) -> None:
    """4.5 to 1 for text and 3 to 1 for shapes, as WCAG 2.1 has it."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(a: str, b: str) -> float:
        low, high = sorted((light(a), light(b)))
        return (high + 0.05) / (low + 0.05)

    colours = {name: pair[page] for name, pair in idea.COLOURS.items()}
    assert all(contrast(colours[name], colours["card"]) >= 4.5 for name in ("ink", "soft"))
    assert all(contrast(colours[name], colours["field"]) >= 3 for name in ("honest", "hostile"))
    assert all(a != b for a, b in pairwise(colours.values()))
