"""The grid of a report: the right cells, honest numbers, and everything that lacks in sight."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from test_report import chromium, framed
from varangian import Experiment
from varangian.core.references import importing
from varangian.study.outcomes import Outcome, Point, write_failed, write_runs
from varangian.study.report import figures, maps, report
from varangian.study.report.cells import CHOSEN, FINAL, LOSS, MAXIMUM, grid_of
from varangian.study.report.page import render

BASE = Experiment(workers=11, byzantine=2, steps=40)
RULES, ATTACKS, PARTITIONS = ("median", "multi-krum"), (None, "little", "empire"), ("iid", "dirichlet(alpha=0.1)")


def ran(e: Experiment, final: float, **more: object) -> Outcome:
    curve = tuple(Point(step, final * step / 40) for step in (0, 20, 40))
    return Outcome(e, final + 0.01, final, 0.5, 40, curve=curve, **more)  # type: ignore[arg-type]


def made(seeds: tuple[int, ...] = (1, 2, 3)) -> list[Outcome]:
    """A grid of three settings; the final accuracy says rule, attack and partition, and the seed in its last digit."""
    return [
        ran(
            replace(BASE, rule=rule, attack=attack, partition=partition, seed=seed),
            0.5 + 0.2 * r + 0.05 * (2 - a) - 0.1 * p + 0.001 * seed,
        )
        for r, rule in enumerate(RULES)
        for a, attack in enumerate(ATTACKS)
        for p, partition in enumerate(PARTITIONS)
        for seed in seeds
    ]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and tables alone."""
    monkeypatch.setattr(figures, "draw", lambda group: iter(()))
    monkeypatch.setattr(figures, "draw_grid", lambda *asked: iter(()))


def page_of(outcomes: list[Outcome], **more: object) -> str:
    text = render([], {}, [], {}, [], grid=grid_of(outcomes, **more))  # type: ignore[arg-type]
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_a_map_of_many_columns_says_that_it_may_go_on_to_the_right() -> None:
    hint = "swipe the map"
    assert hint not in page_of(made())
    wide = [
        ran(replace(BASE, rule=rule, attack=attack), 0.5)
        for rule in RULES
        for attack in ("little", "empire", "mimic", "zero", "sign-flip")
    ]
    assert hint in page_of(wide)


def test_rules_go_down_attacks_across_and_the_rest_beside() -> None:
    grid = grid_of(made())
    assert [a.name for a in grid.axes] == ["rule", "attack", "partition"]
    assert grid.axes[1].values == ("none", "little", "empire")
    assert list(grid.depend) == ["attackers"]  # two of eleven, none without attack
    cell = grid.cells["median", "little", "iid"]
    spread = cell.spread(FINAL)
    assert spread is not None
    assert (spread.n, spread.mean, spread.sd) == (3, pytest.approx(55.2), pytest.approx(0.1))
    assert grid.missing() == []
    shown, left_out = maps.maps_of(grid)
    assert [(m.measure, m.title) for m in shown] == [
        ("final", "partition iid"), ("final", "partition dirichlet(alpha=0.1)"),
        ("max", "partition iid"), ("max", "partition dirichlet(alpha=0.1)"),
    ]  # fmt: skip
    assert left_out == []
    assert [name for name, _ in shown[0].rows] == ["Multi-Krum", "Median"]
    assert [t.text for t in shown[0].rows[1][1]] == ["60.2", "55.2", "50.2", "50.2"]  # the last is the worst


@pytest.mark.parametrize(
    ("settings", "axes"),
    [
        ({"rule": "median"}, ["partition", "attack"]),
        ({"attack": "little"}, ["rule", "partition"]),
        ({"attack": None, "partition": "iid"}, ["rule"]),
        ({"rule": "median", "partition": "iid"}, ["attack"]),
        ({"rule": "median", "attack": "little", "partition": "iid"}, []),
    ],
)
def test_fewer_settings_make_smaller_maps(settings: dict[str, object], axes: list[str]) -> None:
    some = [o for o in made() if all(getattr(o.experiment, k) == v for k, v in settings.items())]
    grid = grid_of(some)
    assert [a.name for a in grid.axes] == axes
    page = page_of(some)
    assert page.count('<table class="heat') == (0 if not axes else len(grid.measures) * len(grid.others)) + len(
        maps.worst_maps(grid)
    )
    assert "Every cell" in page or not axes


def test_no_mean_is_over_unequal_seeds_without_a_word() -> None:
    lacking = [
        o for o in made() if (o.experiment.rule, o.experiment.attack, o.experiment.seed) != ("median", "little", 2)
    ]
    grid = grid_of(lacking)
    assert grid.cells["median", "little", "iid"].lacking == (2,)
    tiles = [t for m in maps.maps_of(grid)[0] if m.measure == "final" for _, row in m.rows for t in row]
    assert sum(t.mark == "2/3" for t in tiles) == 2
    page = page_of(lacking)
    assert "2 cells with fewer seeds than others; their means are over those that are there" in page
    assert page.count("2 of 3</td>") == 2
    assert "Median, Little, partition iid: seed 2" in page


def test_what_was_not_run_is_in_sight_and_what_nobody_wanted_is_not() -> None:
    there = [o for o in made() if (o.experiment.rule, o.experiment.attack) != ("median", "empire")]
    unknown = grid_of(there)
    assert unknown.missing() == [("median", "empire", p) for p in PARTITIONS]
    assert "2 cells not run" in page_of(there)
    excluded = grid_of(there, planned=[o.experiment for o in there])
    assert excluded.missing() == []
    assert "not run" not in [t.text for m in maps.maps_of(excluded)[0] for _, row in m.rows for t in row]
    never = [o.experiment for o in made()] + [replace(BASE, rule="krum", attack="little", seed=1)]
    grid = grid_of(there, planned=never)  # a rule of which no run is complete has its row all the same
    assert "krum" in grid.axes[0].values
    assert ("krum", "little", "iid") in grid.missing()


def test_the_worst_attack_says_over_how_many() -> None:
    there = [o for o in made() if (o.experiment.rule, o.experiment.attack) != ("median", "empire")]
    grid = grid_of(there)
    full, part = grid.worst("multi-krum", ("iid",), FINAL), grid.worst("median", ("iid",), FINAL)
    assert full is not None
    assert part is not None
    assert (full.attack, full.over, full.of, full.mean) == ("empire", 2, 2, pytest.approx(70.2))
    assert (part.attack, part.over, part.of) == ("little", 1, 2)
    best = maps.best_of_worst(grid)
    assert best is not None
    assert (best.rule, best.attack, best.over, best.apart) == ("Multi-Krum", "Empire", 4, 1)
    assert best.value == pytest.approx(60.2)
    assert "1 rule that lacks cells is not asked" in page_of(there)
    assert maps.best_of_worst(grid_of([o for o in made() if o.experiment.attack is None])) is None


def test_runs_that_failed_or_ended_early_say_why(undrawn: None, tmp_path: Path) -> None:
    outcomes = made()
    lost, last = outcomes[4].experiment, outcomes[-1]
    outcomes[-1] = replace(last, stopped="step 3: the parameters are not finite")
    write_runs(tmp_path, [o for o in outcomes if o.experiment != lost])
    write_failed(tmp_path, [(lost, "ValueError: no luck")], [])
    page = report(tmp_path).read_text()
    assert "1 run without a result" in page
    assert f"seed {lost.seed}: failed: ValueError: no luck" in page
    assert "1 run ended early (†)" in page
    assert "step 3: the parameters are not finite" in page
    assert "<sup>2/3</sup>" in page
    assert "<sup>†</sup>" in page


def test_tables_hold_all_cells(undrawn: None, tmp_path: Path) -> None:
    there = [o for o in made() if (o.experiment.rule, o.experiment.attack) != ("median", "empire")]
    report(there[1:], tmp_path)
    rows = list(csv.DictReader((tmp_path / "cells.csv").read_text().splitlines()))
    assert len(rows) == 2 * 12  # two measures
    first = rows[0]
    assert (first["rule"], first["attack"], first["measure"], first["n"]) == ("multi-krum", "none", "final", "3")
    by = {(r["rule"], r["attack"], r["partition"]): r for r in rows if r["measure"] == "final"}
    assert by["median", "empire", "iid"]["n"] == "0"
    assert by["median", "none", "iid"]["seeds_lacking"] == "1"
    assert float(by["multi-krum", "little", "iid"]["sd"]) == pytest.approx(0.1)
    worst = list(csv.DictReader((tmp_path / "worst.csv").read_text().splitlines()))
    assert {(w["rule"], w["attack"]) for w in worst} == {("median", "little"), ("multi-krum", "empire")}


def test_runs_without_accuracy_show_their_loss(undrawn: None, tmp_path: Path) -> None:
    runs = [replace(o, max_accuracy=math.nan, final_accuracy=math.nan, curve=()) for o in made()]
    runs = [replace(o, final_loss=10.0 ** (i // 3 % 5)) for i, o in enumerate(runs)]
    assert grid_of(runs).measures == (LOSS,)
    page = report(runs, tmp_path).read_text()
    assert "final loss, logarithmic" in page
    assert "accuracy, %" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    losses = [replace(o, curve=tuple(Point(s, math.nan, None, 2.0 - s / 40) for s in (0, 20, 40))) for o in runs]
    drawn = json.loads(maps.json_of(maps.data(grid_of(losses), maps.curves_of(grid_of(losses)))))
    assert drawn["unit"] == "loss"
    assert drawn["cells"][0][3] == [[0, 20, 40], *([[2.0, 1.5, 1.0]] * 3)]
    scale = maps.scale_of(grid_of(runs), LOSS)
    assert scale.level(scale.low) == maps.LEVELS - 1 > scale.level(scale.high) == 0  # less is better


def test_what_was_chosen_on_data_set_aside_stands_first() -> None:
    chosen = [replace(o, experiment=replace(o.experiment, validation=0.1), chosen_accuracy=0.4) for o in made()]
    assert grid_of(chosen).measures == (CHOSEN, FINAL, MAXIMUM)
    assert grid_of(made()).measures == (FINAL, MAXIMUM)


def test_own_rules_have_a_title_and_are_not_imported(undrawn: None, tmp_path: Path) -> None:
    (tmp_path / "my_rule.py").write_text("raise SystemExit('imported')")
    with importing(False):
        own = replace(BASE, rule=f"{tmp_path}/my_rule.py:MyRule", attack="little", code_hash="0" * 16)
        edited = replace(own, code_hash="1" * 16)
    grid = grid_of([*(o for o in made() if o.experiment.attack == "little"), ran(own, 0.9)])
    assert list(grid.axes[0].titles.values()) == ["MyRule", "Multi-Krum", "Median"]  # it comes first
    assert [a.name for a in grid.axes] == ["rule", "partition"]  # and its code is no setting of its own
    assert [a.name for a in grid_of([ran(own, 0.9), ran(edited, 0.8)]).axes] == ["code_hash"]
    with importing(False):
        planned = [replace(own, code_hash=None, attack=attack, seed=seed) for attack in ATTACKS for seed in (1, 2)]
    grid = grid_of([ran(own, 0.9), *made()], planned=[*planned, *(o.experiment for o in made())])
    assert [a.name for a in grid.axes] == ["rule", "attack", "partition"]  # what was never begun has no code yet
    page = report([ran(own, 0.9), *made()], tmp_path / "out").read_text()
    assert "MyRule" in page


def test_settings_that_follow_from_others_are_told_and_no_axis() -> None:
    tuned = [
        replace(o, experiment=replace(o.experiment, learning_rate=0.1 if o.experiment.rule == "median" else 0.5))
        for o in made()
    ]
    grid = grid_of(tuned)
    assert [a.name for a in grid.axes] == ["rule", "attack", "partition"]
    assert maps.told_apart(grid) == ["learning_rate"]
    assert "0.1, 0.5 (follows from the above)" in page_of(tuned)


def test_references_of_fewer_workers_stand_apart() -> None:
    alone = ran(replace(BASE, workers=9, byzantine=0, rule="average", attack=None), 0.95)
    grid = grid_of([*made(), alone])
    assert grid.references == (alone,)
    assert [a.name for a in grid.axes] == ["rule", "attack", "partition"]
    assert "Average, n = 9" in page_of([*made(), alone])


def test_curves_are_means_where_all_seeds_are() -> None:
    a, b = made((1,))[0], made((2,))[0]
    short = replace(b, curve=b.curve[:2])
    points = maps.curve([a, short])
    assert [p[0] for p in points] == [0, 20]
    assert points[1][1] == pytest.approx(50 * (a.curve[1].accuracy + b.curve[1].accuracy))
    assert points[1][2] < points[1][1] < points[1][3]


def test_pages_are_bounded_and_say_what_they_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "MAX_ROWS", 5)
    monkeypatch.setattr(maps, "MAX_TILES", 20)
    page = page_of(made())
    assert "7 cells of 12 in no table here: cells.csv has them" in page
    assert "maps of 1 of 2 combinations are left out: cells.csv has them" in page
    monkeypatch.setattr(maps, "MAX_ACROSS", 2)
    assert "3 across: that makes no map that anybody reads" in page_of(made())


def test_without_a_script_all_tables_are_there() -> None:
    page = page_of(made())
    assert not re.search(r"<(figure|table|tr|td|section)[^>]*\bhidden\b", page)
    assert page.count("<noscript>") == 0  # nothing of the grid is a picture, but for curves
    assert len(re.findall(r"<td class=\"d\d", page)) == 2 * 2 * 2 * 4 + 2 * 2 * 2


def test_cells_of_names_that_begin_like_formulas() -> None:
    with importing(False):
        own = replace(BASE, rule="@evil/x.py:MyRule", attack="little", code_hash="0" * 16)
    _, rows = maps.cell_rows(grid_of([ran(own, 0.9), *made()]))
    assert {r[0] for r in rows} == {"'@evil/x.py:MyRule", *RULES}


def test_it_says_what_it_does(undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varangian.study.report.SILENCE", 0.0)
    write_runs(tmp_path, made())
    said: list[str] = []
    report(tmp_path, say=said.append)
    assert said[0] == f"reading the runs of {tmp_path} ..."
    assert said[1] == "36 runs read: 2 rules × 2 attacks and none × 2 partitions"


@pytest.mark.browser
def test_choosing_sorting_and_filtering(undrawn: None, tmp_path: Path) -> None:
    page = report(made(), tmp_path / "out")
    assert "</b>" in page.read_text()
    script = """
    const shown = () => [...document.querySelectorAll('.map')].filter((m) => !m.hidden).length;
    const press = (e, key) => e.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
    const chosen = () => document.querySelectorAll('.map:not([hidden]) td[aria-pressed=true]').length;
    const said = [shown()];
    const axis = document.querySelector('[data-axis]');
    axis.value = '0'; axis.dispatchEvent(new Event('change', {bubbles: true})); said.push(shown());
    axis.value = ''; axis.dispatchEvent(new Event('change', {bubbles: true}));
    said.push(chosen());
    const tile = document.querySelector('td[data-c]');
    tile.focus(); press(tile, 'ArrowRight'); press(document.activeElement, 'Enter'); said.push(chosen());
    said.push(document.querySelectorAll('#lines polyline').length);
    const table = document.getElementById('every'), body = table.tBodies[0];
    const head = table.tHead.rows[0].cells[3]; head.click();
    said.push(parseFloat(body.rows[0].cells[3].textContent)); head.click();
    said.push(parseFloat(body.rows[0].cells[3].textContent));
    const wanted = document.getElementById('wanted');
    wanted.value = 'median little'; wanted.dispatchEvent(new Event('input'));
    said.push([...body.rows].filter((r) => !r.hidden).length, document.documentElement.scrollWidth);
    parent.postMessage(JSON.stringify(said), '*')
    """
    dom = framed(page, tmp_path, 400, script)
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found is not None
    shown, one, before, after, lines, least, most, rows, wide = json.loads(found[1])
    assert (shown, one) == (3, 2)  # two partitions, and the worst by partition
    assert (before, after, lines) == (2, 3, 3)
    assert (least, most) == (40.2, 80.2)
    assert rows == 2
    assert wide <= 400


@pytest.mark.browser
def test_a_page_of_a_grid_comes_to_its_end(undrawn: None, tmp_path: Path) -> None:
    for name, outcomes in (("grid", made()), ("one", made((1,))[:1])):
        dom = chromium(report(outcomes, tmp_path / name), tmp_path, "--dump-dom")
        assert 'data-cells="ready"' in dom
        assert "NaN" not in re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
