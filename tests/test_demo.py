"""The page's table and figure of the demo are what its recorded runs give, and what it gives today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest

from varangian import run
from varangian.study import demo
from varangian.study.paper import pairs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """docs/demo.py."""
    place = importlib.util.spec_from_file_location("made_by", ROOT / "docs" / "demo.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_the_page_has_the_table_of_the_recorded_runs(made: ModuleType) -> None:
    assert made.PAGE.read_text(encoding="utf-8") == made.written(made.recorded())


def test_the_page_has_the_figure_of_the_recorded_runs(made: ModuleType, tmp_path: Path) -> None:
    there = ROOT / "docs" / "demo.png"
    assert made.digest().encode() in there.read_bytes()  # which table it was drawn from
    again = made.draw(made.recorded(), tmp_path / "demo")
    one, other = (matplotlib.image.imread(picture)[..., :3] for picture in (there, again))
    assert one.shape == other.shape
    if f"matplotlib=={matplotlib.__version__}" not in (ROOT / "constraints.txt").read_text(encoding="utf-8"):
        pytest.skip("another version of matplotlib drew it, and places letters otherwise")
    assert float(np.abs(one - other).mean()) < 0.001


def test_the_recorded_runs_are_those_of_the_demo(made: ModuleType) -> None:
    assert [o.experiment for o in made.recorded()] == demo.experiments()


def test_a_record_comes_back(made: ModuleType, tmp_path: Path) -> None:
    made.record(made.recorded(), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == made.TABLE.read_bytes()


@pytest.mark.slow
def test_one_gain_in_the_table_and_the_report(made: ModuleType) -> None:
    outcomes = made.recorded()
    for cell in demo.cells(outcomes):
        mine = [
            p.gain()
            for p in pairs(outcomes)
            if (p.experiment.batch_size, p.experiment.attack, p.experiment.rule)
            == (cell.batch_size, cell.attack, cell.rule)
        ]
        assert len(mine) == cell.pairs == len(demo.SEEDS)
        assert cell.gain == pytest.approx(sum(mine) / len(mine))
        assert cell.gain == pytest.approx(cell.workers - cell.server)


def test_what_the_table_says_is_so(made: ModuleType) -> None:
    """The gain grows with the noise: its last line, and the page's paragraph."""
    outcomes = made.recorded()
    noise = [n.ratio for n in demo.noises(outcomes)]
    gains = [float(np.mean([c.gain for c in demo.cells(outcomes) if c.batch_size == size])) for size in demo.BATCHES]
    assert noise == sorted(noise, reverse=True)
    assert gains == sorted(gains, reverse=True)
    assert [round(g) for g in gains] == [21, 2, 1]
    assert all(len(line) <= 80 and line.isascii() for line in demo.table(outcomes).splitlines())


@pytest.mark.slow
def test_the_demo_gives_today_what_was_recorded(made: ModuleType) -> None:
    """A run of each rule, attack and batch size; another processor may round otherwise, and a run then go elsewhere."""
    chosen = [o for i, o in enumerate(made.recorded()) if o.experiment.seed == 1 and i % 5 == 0]
    assert len(chosen) >= 12
    away = [abs(run(o.experiment).max_accuracy - o.max_accuracy) for o in chosen]
    assert float(np.median(away)) < 0.01
    assert max(away) < 0.1
