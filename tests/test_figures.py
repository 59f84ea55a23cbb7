"""Figures that a paper can take: every text within the canvas and none over another, fonts that publishers accept."""

from __future__ import annotations

import gc
import importlib.util
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from test_report import made
from varangian import Experiment
from varangian.study.outcomes import Outcome
from varangian.study.report import cells, figures, style
from varangian.study.report.cells import grid_of
from varangian.study.report.layout import Group, by_batch_size, groups

RULES = ("centered-clipping", "median", "trimmed-mean", "phocas", "meamed", "bulyan", "krum", "multi-krum", "cge",
         "aksel", "monna", "geometric-median", "medoid", "caf")  # fmt: skip
LONG = "nnm + centered-clipping(iterations=5, tau=0.123456)"


def texts(figure: Figure) -> list[tuple[str, matplotlib.transforms.Bbox]]:
    """All that can be read, and where."""
    with style.house():
        drawn = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()  # places all, and fills no pixels
        found = []
        for panel in [figure, *figure.axes]:
            for text in _shown(panel):
                if text.get_visible() and text.get_text().strip():
                    found.append((text.get_text(), text.get_window_extent(drawn)))  # noqa: PERF401
        return found


def _shown(place: object) -> Iterator[Text]:
    """Ticks outside the limits exist and are not drawn, so they are not asked for by findobj."""
    if isinstance(place, Figure):
        yield from place.texts
        for legend in place.legends:
            yield from legend.get_texts()
        return
    assert isinstance(place, matplotlib.axes.Axes)
    if not place.axison:
        yield place.title
        return
    yield from place.texts
    yield from (place.title, place.xaxis.label, place.yaxis.label)
    for axis in (place.xaxis, place.yaxis):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * abs(high - low)
        for tick in axis.get_major_ticks():
            if low - slack <= tick.get_loc() <= high + slack:
                yield from (label for label in (tick.label1, tick.label2) if label.get_visible())
        yield axis.offsetText


def check(figure: Figure) -> None:
    found = texts(figure)
    width, height = figure.bbox.width, figure.bbox.height
    assert found
    for text, box in found:
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= width + 0.5, text
        assert box.y1 <= height + 0.5, text
        assert "$" not in text or "$" in LONG or "cost" in text, text
        assert "\\math" not in text
    for (a, one), (b, other) in combinations(found, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        along = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across <= 0.5 or along <= 0.5, f"{a!r} lies over {b!r}"


def small(batch_size: int = 2, **settings: object) -> Experiment:
    return Experiment(workers=15, byzantine=3, batch_size=batch_size, steps=300, learning_rate=0.1, **settings)  # type: ignore[arg-type]


def grid(rules: int, attacks: int, places: tuple[str, ...] = ("worker",), seeds: int = 1) -> list[Outcome]:
    """Runs of one group, with as many rules and adversaries as asked."""
    like = made(rules=("median",), seeds=(1,))[1]
    return [
        replace(
            like,
            experiment=small(
                rule=RULES[number],
                attack=f"little(factor={1 + attack})",
                momentum_at=place,
                seed=seed,
                pre=() if number % 3 else ("nnm",),
            ),
            max_accuracy=(5 + number + attack) / 50,
        )
        for number in range(rules)
        for attack in range(attacks)
        for place in places
        for seed in range(1, seeds + 1)
    ]


CASES: dict[str, list[Outcome]] = {
    "of the study": made() + made(f=24, rules=("median",)),
    "one adversary": [o for o in made() if o.experiment.attack != "empire"],
    "one run": made(rules=("median",), seeds=(1,))[1:2],
    "batch sizes": [
        o for size in (2, 16, 83) for o in made(base=replace(small(size), workers=15), f=3, rules=("median", "krum"))
    ],
    "many rules, twins": grid(11, 3, ("server", "worker"), 2),
    "many adversaries": grid(3, 11, ("server", "worker")),
    "a wide grid": grid(14, 24),
}


@pytest.fixture(autouse=True, scope="module")
def rare_collections() -> Iterator[None]:
    """Figures are made of much that dies, and a collection of garbage looks at all that was imported."""
    usual = gc.get_threshold()
    gc.set_threshold(20_000, *usual[1:])
    yield
    gc.set_threshold(*usual)
    gc.collect()


@cache
def figures_of(case: str) -> list[tuple[str, Figure]]:
    return list(drawn(CASES[case]))


def drawn(outcomes: list[Outcome]) -> Iterator[tuple[str, Figure]]:
    for group in groups(outcomes):
        yield from figures.draw(group)
    yield from across(outcomes)


def across(outcomes: list[Outcome]) -> Iterator[tuple[str, Figure]]:
    """Of all groups together."""
    for same in by_batch_size(groups(outcomes)):
        yield "noise", figures.by_noise(same)
    for name, figure in figures.draw_grid(grid_of(outcomes), "digits, fully-connected"):
        yield f"grid {name}", figure


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_text_has_its_room(case: str) -> None:
    names = set()
    for name, figure in figures_of(case):
        assert name not in names
        names.add(name)
        check(figure)
        assert figure.get_figwidth() in (style.NARROW, style.WIDE)
        assert figure.get_figheight() < 12, name
    assert names


@pytest.mark.parametrize("dpi", [72, 110, 220, 300])
def test_there_is_room_at_any_resolution(dpi: int) -> None:
    """The page holds pictures of fewer dots than the files have."""
    seen = []
    for case in ("batch sizes", "a wide grid"):
        for name, figure in figures_of(case):
            if name.startswith(("noise", "grid heat-max")):
                given = figure.get_dpi()
                figure.set_dpi(dpi)
                check(figure)
                figure.set_dpi(given)
                seen.append(name)
    assert {"noise", "grid heat-max"} <= set(seen)


def test_titles_of_any_length_have_room() -> None:
    [group] = groups(made(rules=("median",)))
    long = Group(" ".join(["a title that says everything there is to say"] * 9), "described", group.outcomes, "name")
    endless = Group("x" * 500, "described", group.outcomes, "name")
    for strange in (long, endless):
        for _, figure in figures.draw(strange):
            check(figure)


@pytest.mark.slow
def test_names_of_any_length_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (figures.common, figures.learning, figures.pairing, figures.poster, cells):
        for name in ("rule_title", "attack_title"):
            monkeypatch.setattr(module, name, lambda name: LONG * 2, raising=False)
    for case, of in (("of the study", drawn), ("batch sizes", across), ("a wide grid", drawn)):
        for _, figure in of(CASES[case]):
            check(figure)


def test_a_user_s_own_style_changes_nothing(tmp_path: Path) -> None:
    [group] = groups(made())
    style.save(figures.gains(group), tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "pdf.fonttype": 3, "savefig.dpi": 50,
                                "figure.facecolor": "black", "savefig.bbox": "tight"}):  # fmt: skip
        style.save(figures.gains(group), tmp_path / "own")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "own.png").read_bytes()
    assert (tmp_path / "plain.pdf").read_bytes() == (tmp_path / "own.pdf").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["of the study", "batch sizes", "a wide grid"])
def test_fonts_that_publishers_take(case: str, tmp_path: Path) -> None:
    """TrueType (Type 42 in PostScript's words), and a picture of 300 dots an inch."""
    kinds = set()
    for name, figure in figures_of(case):
        kind = name.split("-")[0]
        if kind in kinds:
            continue
        kinds.add(kind)
        picture, document = style.save(figure, tmp_path / name)
        content = _inflated(document.read_bytes())
        assert b"/Subtype /Type3" not in content
        assert b"/FontType 3" not in content
        assert b"/FontFile2" in content  # a TrueType font within
        width = int.from_bytes(picture.read_bytes()[16:20], "big")
        assert width == round(300 * figure.get_figwidth())
        assert picture.stat().st_size < 2 * 2**20


def _inflated(document: bytes) -> bytes:
    """Dictionaries may stand in compressed streams."""
    parts = [document]
    for match in re.finditer(rb"stream\r?\n(.*?)endstream", document, re.DOTALL):
        try:
            parts.append(zlib.decompress(match[1]))
        except zlib.error:
            continue
    return b"".join(parts)


def test_a_grid_makes_maps_and_no_stamps() -> None:
    """24 rules against 17 adversaries once made a picture of 4235 x 4812 points, and five minutes."""
    found = figures_of("a wide grid")
    assert {name.split("-")[0] for name, _ in found} == {"grid heat", "grid curves"}
    for _, figure in found:
        assert max(figure.get_size_inches()) * style.DPI < 3000


def test_axes_of_ratios_can_be_read() -> None:
    [group] = groups(made())
    figure = figures.curves(group, "0.5", False, ratios=True)
    found = [text for text, _ in texts(figure)]
    assert "Bulyan" in found  # which rule it is
    assert {"Median", "10⁻²", "1"} <= set(found)


def test_boxes_say_which_rule_a_point_is_and_what_whiskers_are() -> None:
    [group] = groups(made())
    found = " ".join(text for text, _ in texts(figures.boxes(group, "0.5")))
    assert "Median" in found
    assert "Bulyan" in found
    assert "whiskers" in found


def test_reference_lines_where_only_other_rules_ran_without_attack() -> None:
    e = small(rule="median", attack="little", momentum_at="worker")
    like = made(rules=("median",), seeds=(1,))[1]
    calm = replace(like, experiment=replace(e, attack=None), max_accuracy=0.9)
    [group] = groups([replace(like, experiment=e), calm])
    assert group.reference(group.columns[0], False, "0.1") == [calm]


def test_groups_are_named_by_what_differs() -> None:
    found = groups(CASES["batch sizes"])
    assert [g.title for g in found] == [f"digits, fully-connected, batch size {size}" for size in (2, 16, 83)]
    [same] = by_batch_size(found)
    assert same == found
    assert by_batch_size(groups(made())) == []


def test_the_benchmark_draws_in_the_same_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = importlib.util.spec_from_file_location("rules", Path(__file__).parents[1] / "benchmarks" / "rules.py")
    assert place is not None
    assert place.loader is not None
    rules = importlib.util.module_from_spec(place)
    place.loader.exec_module(rules)
    rows = [f"{n},{d},{name},{n * d * 1e-6}" for name in ("torch mean(0)", "median") for n, d in
            ((7, 100_000), (400, 100_000), (25, 100), (25, 10_000_000))]  # fmt: skip
    (tmp_path / "growth.csv").write_text("\n".join(["n,d,rule,ms", *rows]))
    drawn: list[Figure] = []
    monkeypatch.setattr(rules.style, "save", lambda figure, stem: drawn.append(figure) or [])
    rules.draw_growth(tmp_path / "growth.csv", "a machine with a name")
    check(drawn[0])
