"""Where momentum stood along runs: through folders and tables, and as a figure of the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import varangian as vg
from varangian.study.moves import COLUMNS, MOST, Move, mean_moves, moves_of
from varangian.study.outcomes import Outcome, from_result, read_outcome, read_runs, write_runs
from varangian.study.report import figures, report
from varangian.study.report.cells import grid_of
from varangian.study.report.style import house

E = vg.Experiment(
    rule="median", attack="little", momentum_at="adaptive", partition="extreme", workers=9, byzantine=2, steps=30,
    batch_size=4, evaluate_every=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        for place in ("adaptive", "worker"):
            vg.run(replace(E, momentum_at=place, seed=seed), out)
    return out


def outcomes(folder: Path) -> list[Outcome]:
    return [read_outcome(p) for p in sorted(folder.iterdir()) if (p / "result.json").exists()]


def test_they_come_back_from_folders_and_tables(folder: Path, tmp_path: Path) -> None:
    found = outcomes(folder)
    assert [len(o.moves) for o in found] == [30 if o.experiment.momentum_at == "adaptive" else 0 for o in found]
    result = vg.run(found[0].experiment)
    assert from_result(result).moves == found[0].moves
    first, *_, last = found[0].moves
    assert (first.step, first.place, first.mu, first.persistent) == (0, 1.0, 0.9, None)
    assert last.step == 29
    assert last.persistent is not None
    assert last.persistent > 0.8
    write_runs(tmp_path, found)
    assert (tmp_path / "moves.csv").read_text().split("\n")[0] == ",".join(["digest", "source", *COLUMNS])
    by = {o.experiment.digest: o.moves for o in found}
    assert {o.experiment.digest: o.moves for o in read_runs(tmp_path / "runs.csv")} == by


def test_where_nothing_moves_there_is_no_table_of_it(folder: Path, tmp_path: Path) -> None:
    found = outcomes(folder)
    write_runs(tmp_path, found)
    write_runs(tmp_path, [o for o in found if not o.moves])
    assert not (tmp_path / "moves.csv").exists()
    assert not figures.moving(grid_of([o for o in found if not o.moves]))


@pytest.mark.parametrize(
    ("column", "text"), [("momentum_place", "0.5"), ("momentum_mu", "7"), ("momentum_turning", "-1"), ("step", "x")]
)
def test_a_table_that_was_changed_is_refused_by_its_line(folder: Path, tmp_path: Path, column: str, text: str) -> None:
    write_runs(tmp_path, outcomes(folder))
    lines = (tmp_path / "moves.csv").read_text().split("\n")
    cells = lines[3].split(",")
    cells[lines[0].split(",").index(column)] = text
    (tmp_path / "moves.csv").write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]))
    with pytest.raises(ValueError, match=rf"moves\.csv, line 4: .*{column}"):
        read_runs(tmp_path / "runs.csv")


def test_long_runs_are_thinned_and_keep_their_last_step() -> None:
    rows = [
        vg.Measures(t, t, 0.1, 2.0, momentum_place=1.0, momentum_mu=0.9, momentum_turning=0.0)
        for t in range(3 * MOST + 5)
    ]
    found = moves_of(rows)
    assert len(found) <= MOST + 1
    assert (found[0].step, found[-1].step) == (0, 3 * MOST + 4)
    assert moves_of([]) == moves_of([vg.Measures(0, 0, 0.1, 2.0)]) == ()


def test_means_are_over_the_steps_that_all_have() -> None:
    one = [Move(0, 1.0, 0.9, None, 0.0), Move(1, 1.0, 0.9, 0.5, 0.25), Move(2, 0.0, 0.7, 0.5, 0.25)]
    two = [Move(0, 1.0, 0.9, None, 0.0), Move(1, 0.0, 0.5, 1.0, 0.75)]
    assert mean_moves([one, two, []]) == [Move(0, 1.0, 0.9, None, 0.0), Move(1, 0.5, 0.7, 0.75, 0.5)]
    assert mean_moves([]) == []


@pytest.mark.slow
def test_the_report_draws_them(folder: Path, tmp_path: Path) -> None:
    page = report(folder, tmp_path).read_text()
    assert (tmp_path / "figures" / "moves.png").exists()
    assert (tmp_path / "figures" / "moves.pdf").exists()
    assert page.count('alt="digits, fully-connected: where momentum stood"') == 2  # the broad one, and a narrow part
    assert not list(report([o for o in outcomes(folder) if not o.moves], tmp_path / "other").parent.glob("*/moves*"))


@house()
def test_its_panels_are_the_cells_in_which_it_moves(folder: Path) -> None:
    found = outcomes(folder)
    other = [replace(o, experiment=replace(o.experiment, attack="empire")) for o in found]
    cells = figures.moving(grid_of([*found, *other]))
    assert sorted(name for name, _ in cells) == ["Empire", "Little"]
    assert [name for name, _ in figures.moving(grid_of(found))] == ["all runs"]
    whole = figures.moves(cells, "digits")
    assert sum(panel.get_visible() for panel in whole.axes) == 2
    mu = whole.axes[0].lines[-1]
    assert np.asarray(mu.get_ydata()) == pytest.approx(
        [m.mu for m in mean_moves(o.moves for o in cells[0][1].outcomes)]
    )
    assert len(figures.moves(cells, "digits", 1).axes) == 1
    many = figures.moves([cells[0]] * (figures.MOST_MOVED + 3), "digits")
    assert any("3 more cells are not drawn" in text.get_text() for text in many.texts)
