"""The command heterogeneity: its grids, what it reads from rows, what it leaves, and what it refuses."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from varangian.cli import study
from varangian.runs.experiment import Experiment
from varangian.simulation.data import DataError
from varangian.study import heterogeneity
from varangian.study.grid import Grid
from varangian.study.heterogeneity import cells, direction, logged, logs, placement
from varangian.study.outcomes import Outcome, read_runs
from varangian.study.report.heterogeneity import report_heterogeneity

pytestmark = pytest.mark.usefixtures("forked")
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "heterogeneity"
Program = Callable[..., Any]
TINY = ("--dataset", "digits", "--seeds", "1", "--jobs", "1", "--set", "steps=2", "--set", 'rule=["median"]')
TINY += ("--set", 'partition=["iid", "extreme"]', "--set", 'attack=["none", "little", "empire"]')
PLACEMENT = ("--part", "placement", *TINY)
READ = ("reading.md", "cells.csv", "attacks.csv")


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def given(grid: Grid, accuracy: Callable[[Experiment], float]) -> list[Outcome]:
    """Its runs with accuracies in per cent that somebody says."""
    return [Outcome(e, accuracy(e) / 100, accuracy(e) / 100) for e in grid.experiments()]


@pytest.fixture
def small() -> Grid:
    return placement("digits").replaced({"rule": "median", "partition": "iid", "pre": ["none", "nnm"]})


def test_the_grids_are_what_they_are_said_to_be() -> None:
    grid = placement("fashion-mnist")
    assert len(grid) == 3 * 4 * 8 * 5 * 3
    assert {e.momentum_at for e in grid.experiments()} == set(heterogeneity.PLACES)
    assert len(logs("digits")) == 3 * 2 * 4 * 3
    for e in logs("digits").experiments():  # what a vector may pull is in proportion to its length
        if e.rule.startswith("centered-clipping"):
            assert e.rule == f"centered-clipping(tau={100 if e.momentum and not e.dampening else 10})"


def test_a_cell_is_the_attack_whose_mean_over_the_seeds_is_lowest(small: Grid) -> None:
    def accuracy(e: Experiment) -> float:
        if e.attack is None:
            return 99.0
        single = 5.0 if (e.attack, e.seed) == ("mimic", 2) else 50.0  # the lowest run is not of the lowest mean
        worst = {"server": 30.0, "worker": 20.0, "adaptive": 28.5}[e.momentum_at] + e.seed
        return worst if e.attack == "empire" else single

    plain, mixed = cells([small], given(small, accuracy))
    assert (plain.rule, mixed.rule) == ("median", "nnm + median")
    worst = plain.worst("server")
    assert worst is not None
    assert (worst.attack, worst.mean, worst.sd) == ("empire", pytest.approx(32), pytest.approx(1))
    assert worst.seeds == pytest.approx((31, 32, 33))
    assert plain.gain == pytest.approx(-10)
    assert plain.lost == pytest.approx(1.5)
    assert plain.calm("worker") is not None
    assert plain.calm("worker").mean == pytest.approx(99)  # type: ignore[union-attr]


def test_seeds_that_lack_a_run_are_not_read_and_a_place_that_was_not_run_hinders_nothing(small: Grid) -> None:
    outcomes = given(small, lambda e: 10.0 * e.seed)
    without = [o for o in outcomes if o.experiment.momentum_at != "adaptive"]
    [plain, _] = cells([small], without)
    assert (plain.seeds, plain.lost, plain.worst("adaptive")) == ((1, 2, 3), None, None)
    assert plain.gain == 0
    e = next(o.experiment for o in outcomes if o.experiment.seed == 3 and o.experiment.attack == "mimic")
    [plain, _] = cells([small], [o for o in outcomes if o.experiment != e])
    assert plain.seeds == (1, 2)
    assert plain.worst("server").mean == pytest.approx(15)  # type: ignore[union-attr]
    assert cells([small], outcomes[:1]) == []
    begun = [o for o in outcomes if o.experiment.momentum_at != "adaptive" or o.experiment.attack == "little"]
    assert cells([small], begun) == cells([small], without)
    assert [cell.seeds for cell in cells([small], [*without, *outcomes[: len(outcomes) // 3]])] == [(1,), (1,)]
    strangers = [replace(o, experiment=replace(o.experiment, batch_size=99)) for o in outcomes]
    assert cells([small], strangers) == []


def test_directions_need_every_seed() -> None:
    assert direction([(50, 60), (50, 52)]) == "gains"
    assert direction([(50, 40), (50, 48)]) == "falls"
    assert direction([(50, 40), (50, 52)]) == "unclear"
    assert direction([(50, 40), (50, 49.5)]) == "unclear"


def test_the_logs_are_read_by_rule_and_mixing() -> None:
    grid = logs("digits", (1, 2))

    def accuracy(e: Experiment) -> float:
        if not e.momentum:
            return 60.0
        if e.dampening:
            return 60.5
        return 70.0 if e.rule.startswith("centered") or e.pre else 20.0 + e.seed

    found = {(line.rule, line.mixing): line for line in logged([grid], given(grid, accuracy))}
    assert len(found) == 8
    median, clipping = found["median", "none"], found["centered-clipping", "none"]
    assert (median.published, median.ours, median.at_equal_rate) == ("falls", "falls", "unclear")
    assert (clipping.published, clipping.ours) == ("gains", "gains")
    assert (found["krum", "bucketing(s=2)"].published, found["krum", "bucketing(s=2)"].ours) == (None, "gains")
    assert median.momentum == pytest.approx((21, 22))
    assert median.seeds == (1, 2)
    some = [o for o in given(grid, accuracy) if not (o.experiment.dampening and o.experiment.seed == 2)]
    assert {line.seeds for line in logged([grid], some)} == {(1,)}


def page(folder: Path, grids: Sequence[Grid], outcomes: Sequence[Outcome]) -> str:
    path = report_heterogeneity(grids, [], outcomes, folder)
    assert path is not None
    return path.read_text("utf-8")


def test_the_page_says_where_adaptive_placement_fails(small: Grid, tmp_path: Path) -> None:
    def accuracy(e: Experiment) -> float:
        lost = 12.3 if e.momentum_at == "adaptive" and e.pre else 0.0
        return 80.0 - 20.0 * (e.attack == "little") - lost

    text = page(tmp_path, [small], given(small, accuracy))
    assert "in 1 of 2 cells (50 %; the aim is 95 %: not met)" in text
    assert "What it lacks most is 12.3 points." in text
    assert "Always at the workers would be so in 2, and would lack 0.0 points at most." in text
    assert "| data | mixing | none | little | empire | sign-flip | mimic |" in text
    assert "| iid | none |" + " +0.0, +0.0 |" * 5 in text
    assert "Of the 2 cells in which the better place keeps 50 % or more it is so in 1." in text
    assert "| iid | nnm + median | 47.7 ± 0.0 (little) | 60.0 ± 0.0 (little), at the server | 12.3 |" in text
    assert "- digits: 90 of 90 runs." in text
    text = page(tmp_path, [small], [o for o in given(small, accuracy) if o.experiment.momentum_at != "adaptive"])
    assert "Adaptive placement was not run." in text
    assert "60 of 90 runs, those of seeds 1, 2, 3 not all." in text


def test_gains_under_each_attack_are_of_all_rules(tmp_path: Path) -> None:
    grid = placement("digits", [1]).replaced({"rule": ["median", "krum", "medoid"], "partition": "iid", "pre": "none"})

    def accuracy(e: Experiment) -> float:
        gain = {"median": 9.0, "krum": -3.0, "medoid": 0.0}[e.rule] if e.attack == "mimic" else 1.0
        return 50.0 + (gain if e.momentum_at == "worker" else 0.0)

    text = page(tmp_path, [grid], given(grid, accuracy))
    assert "| iid | none | +1.0, +1.0 | +1.0, +1.0 | +1.0, +1.0 | +1.0, +1.0 | +2.0, −3.0 |" in text


def test_what_an_earlier_call_left_does_not_pass_for_this_one(small: Grid, tmp_path: Path) -> None:
    page(tmp_path, [small], given(small, lambda e: 50.0))
    other = placement("fashion-mnist", [1]).replaced({"rule": "median", "partition": "iid", "pre": "none"})
    page(tmp_path, [other], given(other, lambda e: 50.0))
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "placement-fashion-mnist.pdf",
        "placement-fashion-mnist.png",
    ]
    grid = logs("digits", [1])
    assert report_heterogeneity([], [grid], given(grid, lambda e: 50.0), tmp_path) is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "logs.csv", "reading.md"]
    assert report_heterogeneity([small], [], [], tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_the_command_from_runs_to_reading_and_again(varangian: Program, tmp_path: Path) -> None:
    end = varangian("heterogeneity", *PLACEMENT)
    assert end.status == 0
    assert "Reading: heterogeneity/reading.md" in end.out
    out = tmp_path / "heterogeneity"
    table = rows(out / "runs.csv")
    assert len(table) == 2 * 2 * 3 * 3
    found = {(row["partition"], row["rule"]): row for row in rows(out / "cells.csv")}
    assert len(found) == 4
    for place in ("server", "worker", "adaptive"):  # by hand, from the rows
        mine = {
            row["attack"]: 100 * float(row["max_accuracy"])
            for row in table
            if (row["partition"], row["pre"], row["momentum_at"]) == ("extreme", "nnm", place)
        }
        worst = min((a for a in mine if a), key=lambda a: mine[a])
        row = found["extreme", "nnm + median"]
        assert float(row[place]) == pytest.approx(mine[worst], abs=0.006)
        assert mine[row[f"{place}_attack"]] == mine[worst]
        assert float(row[f"{place}_without_attack"]) == pytest.approx(mine[""], abs=0.006)
    before = {name: (out / name).read_bytes() for name in (*READ, "runs.csv")}
    png = (out / "figures" / "placement-digits.png").read_bytes()

    (out / "reading.md").unlink()
    end = varangian("heterogeneity", *PLACEMENT)
    assert (end.status, "0 runs in" in end.err) == (0, True)
    assert {name: (out / name).read_bytes() for name in before} == before

    end = varangian("heterogeneity", *PLACEMENT, "--rows", str(out / "runs.csv"), "--out", "again/here")
    assert end.status == 0
    again = tmp_path / "again" / "here"
    assert {name: (again / name).read_bytes() for name in READ} == {name: before[name] for name in READ}
    assert (again / "figures" / "placement-digits.png").read_bytes() == png
    assert not (again / "runs").exists()


@pytest.mark.slow
def test_what_is_cut_short_goes_on(varangian: Program, tmp_path: Path) -> None:
    end = varangian("heterogeneity", *TINY, "--time-budget", "0s")
    assert end.status == 0
    assert "nothing to read" in end.err
    assert not (tmp_path / "heterogeneity" / "reading.md").exists()
    end = varangian("heterogeneity", *TINY, "--shard", "1/2")
    assert end.status == 0
    some = len(rows(tmp_path / "heterogeneity" / "runs.csv"))
    end = varangian("heterogeneity", *TINY)
    assert end.status == 0
    assert re.search(rf"{some} complete, {len(rows(tmp_path / 'heterogeneity' / 'runs.csv')) - some} to do", end.err)
    text = (tmp_path / "heterogeneity" / "reading.md").read_text("utf-8")
    assert "## The published logs" in text
    assert "- digits: 36 of 36 runs." in text


def test_what_the_logs_compare_stays(varangian: Program) -> None:
    end = varangian("heterogeneity", *TINY, "--dry-run", "--set", "momentum=0.5", "--set", "momentum_at=server")
    assert end.status == 0
    assert [line for line in end.out.splitlines() if line.endswith(" to do")] == ["0 runs complete, 48 to do"]


def test_a_dry_run_writes_nothing(varangian: Program, tmp_path: Path) -> None:
    end = varangian("heterogeneity", "--dry-run", *TINY)
    assert end.status == 0
    assert "to do" in end.out
    assert not (tmp_path / "heterogeneity").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dataset", "cifar-10"], "'cifar-10' is not one of 'digits', 'fashion-mnist'"),
        (["--part", "all"], "'all' is not one of 'placement', 'logs'"),
        (["--seeds", "3-1"], "goes down"),
        (["--set", "seeds=1-2"], "said by --dataset and --seeds, not by --set"),
        (["--set", "dataset=mnist"], "said by --dataset and --seeds, not by --set"),
        (["--set", "rule=medium"], "medium"),
        (["--part", "logs", "--set", "momentum=0.99"], "momentum is not to be set for them"),
        (["--set", "stepz=3"], "Did you mean 'steps'?"),
        (["--rows", "nothing.csv"], "nothing.csv"),
        (["--jobs", "0"], "0 is not in the range"),
    ],
)
def test_mistakes(varangian: Program, tmp_path: Path, options: list[str], said: str) -> None:
    end = varangian("heterogeneity", "--dataset", "digits", *options)
    assert end.status == 2
    assert said in end.err
    assert not list(tmp_path.iterdir())


def test_rows_that_are_none(varangian: Program, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    end = varangian("heterogeneity", "--rows", "runs.csv")
    assert end.status == 2
    assert "runs.csv" in end.err


@pytest.mark.slow
def test_rows_of_other_runs_and_a_folder_that_cannot_be(varangian: Program, tmp_path: Path) -> None:
    rows = str(ROOT / "results" / "fashion-mnist" / "runs.csv")
    end = varangian("heterogeneity", "--rows", rows)
    assert end.status == 2
    assert "its rows complete no seed of any cell" in end.err
    (tmp_path / "file").write_text("")
    end = varangian("heterogeneity", "--rows", rows, "--out", "file/there")
    assert (end.status, end.err.count("\n")) == (2, 1)
    assert "file/there" in end.err
    end = varangian("heterogeneity", "--dataset", "digits", "--out", "file/there")
    assert (end.status, end.err.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_data_that_are_not_here_are_left_out(
    varangian: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(experiment: Experiment, *_: object) -> None:
        if experiment.dataset == "fashion-mnist":
            raise DataError("its files are not there.")

    monkeypatch.setattr(study, "open_dataset", lacking)
    end = varangian("heterogeneity", "--dataset", "fashion-mnist")
    assert end.status == 2
    assert "left out: fashion-mnist: its files are not there." in end.err
    assert end.err.endswith("varangian: none of the data sets is there.\n")
    assert not list(tmp_path.iterdir())
    end = varangian("heterogeneity", "--dry-run", *PLACEMENT, "--dataset", "fashion-mnist")
    assert (end.status, "36 to do" in end.out) == (0, True)


@pytest.mark.skipif(not (RESULTS / "runs.csv").exists(), reason="a package without the results")
def test_the_published_reading_is_that_of_the_published_rows(tmp_path: Path) -> None:
    grids = [[make(dataset) for dataset in heterogeneity.DATASETS] for make in (placement, logs)]
    report_heterogeneity(grids[0], grids[1], read_runs(RESULTS / "runs.csv"), tmp_path)
    for path in tmp_path.iterdir():
        if path.is_file():
            assert path.read_bytes() == (RESULTS / path.name).read_bytes(), path.name
