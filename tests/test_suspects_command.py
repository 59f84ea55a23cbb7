"""The command suspects: what it says of runs that are kept, what it writes, and what it refuses; and its pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import programs
import varangian as vg
from test_figures import check
from test_suspects import report_of
from varangian.core.history import Report
from varangian.study import suspects
from varangian.study.report.figures.suspects import ACROSS, Rates, curves, over_time, rates

Program = Callable[..., Any]
SMALL = vg.Experiment(model="linear", workers=11, byzantine=2, batch_size=8, steps=40, evaluate_every=40)
GRID = """
rule = ["median", "multi-krum"]
attack = ["none", "gaussian", "empire"]
seeds = "1-2"
model = "linear"
workers = 11
byzantine = 2
batch_size = 8
steps = 40
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two rules, two attacks and none, twice each."""
    out = tmp_path_factory.mktemp("study")
    (out / "grid.toml").write_text(GRID)
    for e in vg.Grid.from_file(out / "grid.toml").experiments():
        vg.run(e, out / "runs")
    return out


@pytest.fixture(scope="module")
def told(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the command prints of them, from a process of its own, and the folder that it writes."""
    folder = tmp_path_factory.mktemp("told")
    end = programs.run("-m", "varangian", "suspects", study, "--out", "found", cwd=folder)
    assert end.returncode == 0, end.stderr
    return end.stdout, folder / "found"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_of_a_grid_there_is_a_line_for_each_rule_and_attack(told: tuple[str, Path]) -> None:
    out, found = told
    lines = [line for line in out.splitlines() if line.startswith(("Median", "Multi-Krum"))]
    assert len(lines) == 6
    assert [line.split()[1] for line in lines if "gaussian" in line] == ["gaussian", "gaussian"]
    for line in lines:
        if "gaussian" in line:
            assert line.split()[2:4] == ["100.0", "%"]
            assert "4 of 4" in line
            assert line.split()[6] == "11"  # the window is 20 steps, and the suspicion nearly 1
    assert out.splitlines()[-2:] == ["Page: found/suspects.html", "Pictures: found/figures"]
    table = rows(found / "suspects.csv")
    assert len(table) == 12
    assert {row["rule"] for row in table} == {"median", "multi-krum"}
    noise = [row for row in table if row["attack"] == "gaussian"]
    assert [row["precision"] for row in noise] == ["1.0"] * 4
    assert {row["recall"] for row in table if row["attack"] == "none"} == {""}
    assert len(rows(found / "thresholds.csv")) == 12 * 20
    page = (found / "suspects.html").read_text()
    assert "varangian suspects" in page
    assert "Who is suspected" in page
    drawn = sorted(path.name for path in (found / "figures").glob("*.png"))
    assert drawn == sorted(
        [f"{what}-{rule}.png" for what in ("suspicion", "weight") for rule in ("median", "multi-krum")]
        + ["rates.png", "thresholds.png"]
    )


@pytest.mark.slow
def test_the_same_again_is_the_same_bytes(varangian: Program, study: Path, told: tuple[str, Path]) -> None:
    end = varangian("suspects", str(study), "--out", "found")
    assert (end.status, end.out) == (0, told[0])
    files = [path.relative_to(told[1]) for path in sorted(told[1].rglob("*.*"))]
    assert files == [path.relative_to("found") for path in sorted(Path("found").rglob("*.*"))]
    for file in files:
        assert (told[1] / file).read_bytes() == (Path("found") / file).read_bytes(), file


def test_of_one_run_there_is_a_table_of_its_workers(varangian: Program, study: Path) -> None:
    run = next(path for path in sorted((study / "runs").iterdir()) if "gaussian" in path.name)
    end = varangian("suspects", str(run))
    assert end.status == 0
    lines = end.out.splitlines()
    assert {lines[2].split()[0], lines[3].split()[0]} == {"9", "10"}
    assert lines[-1].startswith(
        "suspicion >= 0.5 over 20 steps: names 2 of 2 attackers, at half of them with vector 11"
    )


def test_two_runs_stand_in_one_picture(varangian: Program, study: Path) -> None:
    two = [str(path) for path in sorted((study / "runs").iterdir()) if "gaussian" in path.name and "seed1" in path.name]
    end = varangian("suspects", *two, "--out", "found")
    assert end.status == 0
    assert Path("found/figures/weight.png").is_file()
    assert Path("found/figures/suspicion.pdf").is_file()


def test_as_json_there_is_a_row_a_run(varangian: Program, study: Path) -> None:
    found = json.loads(varangian("suspects", str(study), "--json", "--window", "5", "--threshold", "0.9").out)
    assert len(found) == 12
    median = {row["attack"]: row for row in found if row["rule"] == "median"}
    assert (median["none"]["delay"], median["none"]["recall"], median["none"]["attackers"]) == (None, None, 0)
    assert (median["gaussian"]["delay"], median["gaussian"]["precision"]) == (5.0, 1.0)
    assert set(median["empire"]) == {"folder", "name", "digest", "rule", "attack", "seed", *suspects.NUMBERS}


def test_what_cannot_be_read_is_left_out_with_the_reason(varangian: Program, study: Path, tmp_path: Path) -> None:
    vg.run(SMALL, tmp_path / "runs")
    vg.run(replace(SMALL, measure=False, seed=2), tmp_path / "runs")
    (tmp_path / "runs" / "begun").mkdir()
    (tmp_path / "runs" / "begun" / "experiment.json").write_text(SMALL.to_json())
    kept = vg.run(replace(SMALL, seed=3), tmp_path / "runs").folder
    assert kept is not None
    file = kept / "workers.bin"
    file.write_bytes(file.read_bytes()[:-1])
    end = varangian("suspects", "runs")
    assert end.status == 0
    assert end.err.count("left out: ") == 3
    assert "begun is not complete." in end.err
    assert "holds no workers.bin: it measured nothing" in end.err
    assert "workers.bin has " in end.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["empty"], "varangian: empty: no complete run that told of its workers."),
        (["nowhere"], "'nowhere' does not exist"),
        (["runs", "--threshold", "0"], "varangian: detection needs a threshold > 0 and <= 1, got 0.0."),
        (["runs", "--window", "0"], "varangian: detection needs an integer window >= 1, got 0."),
        (["runs", "--threshold", "much"], "must be a number, got 'much'"),
        ([], "missing argument 'FOLDERS...'"),
        (["runs", "--out", "file"], "file"),
    ],
)
def test_mistakes_are_one_line(varangian: Program, arguments: list[str], line: str) -> None:
    Path("empty").mkdir()
    Path("file").write_text("")
    vg.run(SMALL, "runs")
    end = varangian("suspects", *arguments)
    assert end.status == 2
    assert line in end.err
    assert len(end.err.strip().splitlines()) == 1


# ------------------------------------------------------------------------------------------------------ pictures


def made(steps: int, workers: int, *, known: bool = True) -> Report:
    random = np.random.default_rng(1)
    series = random.random((steps, workers))
    series[random.random(series.shape) < 0.05] = math.nan
    report = report_of(series, "worker")
    weight = np.where(np.isnan(series), math.nan, random.random(series.shape) / workers)
    attacks = np.zeros(series.shape, bool)
    attacks[:, workers - workers // 4 :] = True
    return replace(report, weight=weight, byzantine=attacks if known else None)


@pytest.mark.parametrize(("steps", "workers"), [(1, 1), (7, 3), (300, 15), (3000, 51), (20, 200)])
@pytest.mark.parametrize("what", ["suspicion", "weight"])
def test_workers_over_steps_of_any_size(steps: int, workers: int, what: Any) -> None:
    report = made(steps, workers)
    figure = over_time([("Multi-Krum", report)], what, "digits, linear, dirichlet(alpha=0.3)")
    check(figure)
    [image] = figure.axes[0].images
    assert image.get_array().shape == (workers, min(steps, -(-steps // -(-steps // ACROSS))))
    text = " ".join(t.get_text() for t in figure.texts)
    assert ("mean of 3 steps" in " ".join(text.split())) == (steps == 3000)


def test_several_reports_stand_one_above_the_other_and_attackers_are_marked() -> None:
    figure = over_time([("one", made(50, 8)), ("two", made(40, 8)), ("three", made(50, 8, known=False))])
    check(figure)
    bars = [axes for axes in figure.axes if axes.patches]
    colours = [len({patch.get_facecolor() for patch in axes.patches}) for axes in bars]
    assert colours == [2, 2, 1]


def test_many_steps_are_means_of_what_is_known() -> None:
    series = np.zeros((4000, 2))
    series[::4, 0] = 1.0
    series[:, 1] = math.nan
    series[8, 1] = 0.5
    figure = over_time([("", report_of(series))])
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (2, 1000)
    assert shown[0].tolist() == [0.25] * 1000
    assert np.flatnonzero(~np.ma.getmaskarray(shown[1])).tolist() == [2]
    assert shown[1, 2] == 0.5


def test_maps_and_curves_of_rules_and_attacks() -> None:
    rules, attacks = ["Multi-Krum", "nnm + Geometric median", "Median"], ["no attack", "Little", "Sign flip", "Empire"]
    values = {(r, a): i / 3 for i, r in enumerate(rules) for a in attacks[1:]}
    values["Median", "Little"] = math.inf
    maps = [Rates("precision, %", values, lambda v: f"{100 * v:.0f}", 1.0), Rates("delay", values, str, 60, less=True)]
    check(rates(maps, rules, attacks, title="Named", detail="digits", foot="What is what."))
    lines = {(r, a): [[(math.nan, 0.5, 0.0)] * 20] * 2 for r in rules for a in attacks}
    check(curves(suspects.THRESHOLDS, lines, rules, attacks, detail="digits"))
    check(curves(suspects.THRESHOLDS, lines, rules[:1], attacks[:1], detail="digits"))
