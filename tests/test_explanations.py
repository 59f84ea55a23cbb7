"""The explanations: numbers, tables and figures are what docs/explanation/figures.py computes, and their code runs."""

from __future__ import annotations

import io
import re
import struct
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXPLANATION = Path(__file__).parents[1] / "docs" / "explanation"
PAGES = ("geometry", "numerics", "paper", "resilience", "sorting-networks")
TEXT = {page: (EXPLANATION / f"{page}.md").read_text("utf-8") for page in PAGES}

# Numbers that are nobody's result: what the paper says of itself, settings of what was computed, facts of formats.
GIVEN = {
    "geometry": {"10,000", "79,510", "36"},
    "numerics": {"36,489,290", "1,000"},
    "paper": {"736", "3,680", "1,760", "0.9", "0.99", "199", "200", "400", "2021", "100"},
    "resilience": {"10,000", "100"},
    "sorting-networks": {"1968"},
}


@pytest.fixture(scope="module")
def figures() -> Any:
    sys.path.insert(0, str(EXPLANATION))
    try:
        return import_module("figures")
    finally:
        sys.path.remove(str(EXPLANATION))


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("**", ""))


def prose(page: str) -> str:
    """The page without code, formulas set apart, tables, pictures and places of links."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->|\$\$.*?\$\$", "", TEXT[page], flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\|.*$|!\[.*?\]\(.*?\)|\]\(.*?\)|`[^`]*`", "", text, flags=re.MULTILINE)
    return flat(text)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_its_numbers_are_computed(figures: Any, page: str) -> None:
    for phrase in figures.PHRASES[page]():
        assert phrase in flat(TEXT[page])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_no_number_of_its_text_is_anybodys_guess(figures: Any, page: str) -> None:
    """What has a point, a comma, or three digits belongs to a phrase that is computed, or is given."""
    text = prose(page)
    for phrase in figures.PHRASES[page]():
        text = text.replace(phrase, "")
    found = set(
        re.findall(
            r"(?<![\w^{.])\d[\d,]*\.\d+|(?<![\w^{.])\d+(?:,\d{3})+|(?<![\w^{.])\d{3,}", re.sub(r"\$[^$]*\$", "", text)
        )
    )
    assert found <= GIVEN[page]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["paper", "resilience", "sorting-networks"])
def test_its_tables_are_computed(figures: Any, page: str) -> None:
    assert figures.written(page) == TEXT[page]


@pytest.mark.parametrize("page", PAGES)
def test_its_figures_are_there_and_are_told_in_words(figures: Any, page: str) -> None:
    shown = re.findall(r"!\[(.*?)\]\(figures/(.*?)\.png\)", TEXT[page])
    assert shown
    for words, name in shown:
        assert name in figures.DRAWN
        assert len(words.split()) > 8


def test_each_figure_stands_on_one_page_and_is_drawn(figures: Any) -> None:
    named = re.findall(r"\(figures/(.*?)\.png\)", "".join(TEXT.values()))
    assert sorted(named) == sorted(figures.DRAWN) == sorted(p.stem for p in (EXPLANATION / "figures").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ratio", "steps", "geometry", "network", "reach", "cancelling"])
def test_it_is_the_figure_that_its_script_draws(figures: Any, name: str) -> None:
    """As large, and the same picture but for what a last bit makes of it."""
    import matplotlib.image

    old = (EXPLANATION / "figures" / f"{name}.png").read_bytes()
    found = re.search(rb"Software\0matplotlib ([\d.]+)", old)
    assert found is not None
    new = figures.draw(name)  # on every version
    if found[1].decode() != matplotlib.__version__:
        pytest.skip(f"matplotlib {found[1].decode()} drew it: {matplotlib.__version__} puts letters elsewhere")
    assert struct.unpack(">II", old[16:24]) == struct.unpack(">II", new[16:24])
    one, other = (np.asarray(matplotlib.image.imread(io.BytesIO(data)), float)[..., :3] for data in (old, new))
    assert (np.abs(one - other).max(2) > 0.3).mean() < 0.01


@pytest.mark.parametrize("page", ["geometry", "numerics", "paper"])
def test_its_code_runs_and_prints_what_it_shows(page: str) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT[page], re.DOTALL | re.MULTILINE)
    assert blocks
    for (kind, code), (after, shown) in zip(blocks, [*blocks[1:], ("python", "")], strict=True):
        if kind == "python":
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(code, names)
            assert printed.getvalue() == (shown if after == "text" else "")


def test_what_the_page_on_geometry_composes_is_what_the_algorithm_does() -> None:
    import torch

    import varangian as vg

    x = torch.randn(9, 1000, generator=torch.Generator().manual_seed(1))
    weights = vg.NearestNeighborMixing(f=2).weights(vg.Geometry.of(x))
    chosen = vg.Krum(f=2).weights(vg.Geometry.of(x).mix(weights)) @ weights
    algorithm = vg.Algorithm(pre=(vg.NearestNeighborMixing(f=2),), rule=vg.Krum(f=2))
    torch.testing.assert_close(torch.from_numpy(chosen).float() @ x, algorithm.aggregate(x, algorithm.init(9, 1000))[0])


@pytest.mark.parametrize("n", range(2, 13))
def test_networks_are_right_on_all_zeros_and_ones(figures: Any, n: int) -> None:
    for low, high in ((0, n), ((n - 1) // 2, n // 2 + 1), (n // 4, n - n // 4)):
        assert figures.sorts(n, low, high) == 2**n


def test_momentum_multiplies_the_ratio_as_the_formulas_say(figures: Any) -> None:
    for kind, law in enumerate(figures.KINDS.values()):
        for mu, factor in figures.averaged(kind).items():
            assert factor == pytest.approx(law(mu), rel=0.08)
