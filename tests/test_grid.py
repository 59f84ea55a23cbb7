"""Grids: which runs a text means, and what is wrong with one that means none."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import varangian as vg
from varangian import ConfigurationError, Experiment, Grid
from varangian.study.grid import MOST, grids_of, record_grid
from varangian.study.paper import PANELS

TEXT = """
# everything at once
workers = 11
rule = ["median", "bulyan"]
attack = ["little", "empire"]
seeds = "1-2,5"
steps = 30

[[exclude]]
rule = "bulyan"
byzantine = [3, 4]

[[case]]
byzantine = 2

[[case]]
byzantine = [3, 4]
momentum_at = "server"
"""


def test_lists_multiply_one_seed_after_the_other() -> None:
    grid = Grid.from_toml(TEXT)
    found = [(e.seed, e.byzantine, e.momentum_at, e.rule, e.attack) for e in grid.experiments()]
    expected = [
        (seed, f, place, rule, attack)
        for seed in (1, 2, 5)
        for place, fs in (("worker", (2,)), ("server", (3, 4)))
        for rule in ("median", "bulyan")
        for attack in ("little", "empire")
        for f in fs
        if not (rule == "bulyan" and f > 2)
    ]
    assert found == expected
    assert len(grid) == len(expected) == len(set(grid.experiments())) == 24
    assert {e.steps for e in grid.experiments()} == {30}
    assert grid.axes["byzantine"] == [2, 3, 4]
    assert set(grid.axes) == {"seed", "byzantine", "rule", "attack"}
    assert grid.notes == ()


def test_a_grid_is_the_same_from_every_kind_of_text(tmp_path: Path) -> None:
    grid = Grid.from_toml(TEXT)
    assert Grid.from_json(json.dumps(grid.to_dict())) == Grid.from_toml(grid.to_toml()) == grid
    (tmp_path / "grid.toml").write_text(TEXT)
    (tmp_path / "grid.json").write_text(json.dumps(grid.to_dict()))
    assert Grid.from_file(tmp_path / "grid.toml") == Grid.from_file(str(tmp_path / "grid.json")) == grid
    again = Grid(
        {"workers": 11, "rule": ("median", "bulyan"), "attack": ["little", "empire"], "steps": 30},
        seeds=[1, 2, 5],
        exclude=[{"rule": "bulyan", "byzantine": [3, 4]}],
        cases=[{"byzantine": 2}, {"byzantine": [3, 4], "momentum_at": "server"}],
    )
    assert again.experiments() == grid.experiments()
    assert record_grid(tmp_path, grid) == record_grid(tmp_path, again).with_name(f"{grid.digest}.toml")
    (tmp_path / "grids" / "other.toml").write_text("nothing")
    assert grids_of(tmp_path) == [grid]


def test_grids_of_a_stranger_import_nothing(tmp_path: Path) -> None:
    (tmp_path / "grids").mkdir()
    code = tmp_path / "theirs.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "grids" / "a.toml").write_text(f'rule = ["median", "{code}:Theirs"]\nworkers = 11\nbyzantine = 2\n')
    [grid] = grids_of(tmp_path)
    assert [e.rule for e in grid.experiments()] == ["median", f"{code}:Theirs"]
    assert not (tmp_path / "ran").exists()
    for i in range(9):
        (tmp_path / "grids" / f"{i}.toml").write_text("rul = 1")
    assert grids_of(tmp_path) == []  # no more of it is read


def test_an_experiment_is_a_grid_of_one() -> None:
    for e in (Experiment(), Experiment(learning_rate="0.1,20:0.01", pre="nnm", clip=None, seed=7, attack="little")):
        assert Grid.from_toml(e.to_toml()).experiments() == [e]
        assert Grid(e.to_dict()).experiments() == [e]


def test_what_is_a_list_itself() -> None:
    e = Experiment(workers=11, byzantine=2, rule="median")
    rates: list[Any] = [0.1, "0.1,20:0.01", [[0, 0.1], [20, 0.02]], ((0, 0.3),)]
    grid = Grid({"workers": 11, "byzantine": 2, "rule": "median", "learning_rate": rates})
    assert grid.experiments() == [replace(e, learning_rate=rate) for rate in rates]
    mixings: list[Any] = [[], "none", "nnm", "nnm,clipping(c=2.0)", ["nnm"], [vg.NearestNeighborMixing(f=2)]]
    grid = Grid({"workers": 11, "byzantine": 2, "rule": "median", "pre": mixings})
    assert [e.pre for e in grid.experiments()] == [(), ("nnm",), ("nnm", "clipping(c=2.0)")]
    assert grid.notes == (
        f"3 combinations are runs that others are too, and are run once: the first is {e.name} again.",
    )


def test_values_of_python() -> None:
    grid = Grid(
        {"rule": [vg.Median(f=2), vg.Krum(f=2)], "attack": vg.Little(factor=2.0), "workers": np.int64(11),
         "byzantine": 2, "momentum": np.linspace(0, 0.5, 2), "clip": [None, 1]},
        seeds=range(3),
    )  # fmt: skip
    assert len(grid) == 24
    assert {(e.rule, e.attack, e.momentum, e.clip) for e in grid.experiments()} == {
        (rule, "little(factor=2.0)", momentum, clip)
        for rule in ("median", "krum")
        for momentum in (0.0, 0.5)
        for clip in (None, 1.0)
    }
    written = Grid.from_toml(grid.to_toml()).experiments()
    assert [e.digest for e in written] == [e.digest for e in grid.experiments()]
    assert len(Grid(grid.settings, exclude=[{"rule": vg.Median(f=2)}])) == 4


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [("1-3", (1, 2, 3)), ("7", (7,)), ("1-2, 5", (1, 2, 5)), ([3, 3, 1], (3, 1)), (1, (1,)), (range(2), (0, 1))],
)
def test_seeds(seeds: Any, expected: tuple[int, ...]) -> None:
    assert tuple(e.seed for e in Grid({}, seeds).experiments()) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"rul": "median"}, "unknown setting 'rul'. Did you mean 'rule'?"),
        ({"lr": [0.1, 0.2]}, "unknown setting 'lr'. Did you mean 'learning_rate'?"),
        ({"exlude": []}, "unknown setting 'exlude'. Did you mean 'exclude'?"),
        ({"exclude": [{"rul": "median"}]}, "exclude 1: unknown setting 'rul'. Did you mean 'rule'?"),
        ({"exclude": [{}]}, "exclude: an exclusion that names no setting leaves nothing to run."),
        ({"exclude": "median"}, "exclude: must be a list of tables of settings, got 'median'."),
        ({"exclude": ["median"]}, "exclude 1: must be a table of settings by name, got 'median'."),
        ({"exclude": {"seed": 1}}, "exclude: the exclusions leave nothing to run."),
        ({"case": [{"seeds": "1-2"}]}, "case 1: unknown setting 'seeds'."),
        ({"rule": []}, "rule: a list without values leaves nothing to run."),
        ({"rule": {"a": 1}}, "rule: must be a value or a list of values, got {'a': 1}."),
        ({"rule": {"median"}}, "rule: must be a value or a list of values, got {'median'}."),
        ({"rule": [object]}, "rule: must be a value or a list of values, got <class 'object'>."),
        ({"seeds": []}, "seeds: a list without seeds leaves nothing to run."),
        ({"seeds": 3}, "seeds: 3 may be so many seeds, or one: write \"1-3\" or [3]."),
        ({"seeds": "3-1"}, "seeds: '3-1' goes down, or holds more than 10,000 seeds."),
        ({"seeds": "1-1000000000"}, "goes down, or holds more than 10,000 seeds."),
        ({"seeds": ["a"]}, "seeds: a seed is a whole number from 0 to 2^63 - 1, got 'a'."),
        ({"seeds": True}, "seeds: must be a list, or text such as \"1-5\", got True."),
        ({"seeds": "1-2", "seed": 3}, "seeds: seed says the same; name one of the two."),
        ({"steps": [1, "x"]}, "steps = 'x' (1 of 2 runs): steps: must be a valid integer"),
        ({"rule": ["median", "medin"]}, "rule = 'medin' (1 of 2 runs): rule: unknown rule 'medin'. Did you mean"),
        (
            {"rule": ["median", "bulyan"], "workers": [11, 15], "byzantine": [2, 3], "seeds": "1-2"},
            "rule = 'bulyan', workers = 11, byzantine = 3 (2 of 16 runs): workers: Bulyan(f=3) needs n >= 4f + 3 = 15 "
            "vectors, got 11. Combinations that cannot be run are left out by an exclusion",
        ),
        ({"workers": 3, "byzantine": 2, "rule": "krum", "steps": [1, 2]}, "workers: Krum(f=2) needs n >= 2f + 3"),
    ],
)  # fmt: skip
def test_mistakes(content: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Grid.from_dict(content)
    [fault] = caught.value.faults
    assert said in fault


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Grid.from_toml('rul = 1\nseeds = 3\nattack = []\n[[exclude]]\nrulle = "x"')
    assert len(caught.value.faults) == 4
    with pytest.raises(ConfigurationError) as caught:
        Grid({"rule": ["median", "medin"], "attack": ["little", "litle"], "batch_size": [0, 1]})
    found = {fault.split(" (")[0] for fault in caught.value.faults}
    assert found == {"batch_size = 0", "attack = 'litle'", "rule = 'medin'"}


def test_too_many_runs_are_refused_before_any_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was made")

    monkeypatch.setattr(Experiment, "__post_init__", never)
    numbers = list(range(1, 1001))
    with pytest.raises(ConfigurationError) as caught:
        Grid({"steps": numbers, "batch_size": numbers}, seeds="1-1000")
    [fault] = caught.value.faults
    assert fault.startswith(
        f"this grid has 1,000,000,000 runs before its exclusions, over {MOST:,}: seed (1,000) x steps (1,000) x "
        "batch_size (1,000). Shorten a list"
    )


def test_exclusions_say_the_same_in_other_words() -> None:
    settings = {"rule": "median", "workers": 11, "byzantine": 2, "clip": [None, 1.0], "pre": [[], ["nnm"]],
                "momentum": [0.0, 0.9]}  # fmt: skip
    for partial, left in (
        ({"clip": "none"}, 4),
        ({"clip": "1"}, 4),
        ({"pre": "nnm"}, 4),
        ({"pre": []}, 4),
        ({"pre": [["nnm"], "none"], "clip": 1}, 4),
        ({"momentum": [0, "0.9"], "clip": 1, "pre": "nnm"}, 6),
        ({"steps": 300, "clip": 1}, 4),  # a default
    ):
        assert len(Grid(settings, exclude=[partial])) == left, partial
    grid = Grid(settings, exclude=[{"rule": "krum"}])
    assert (len(grid), grid.notes) == (8, ("exclude 1 (rule = 'krum') leaves out nothing.",))


def test_an_exclusion_leaves_out_what_it_names_and_no_namesake(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import varangian as vg\n\n\nclass Mine(vg.Median):\n    pass\n\n\nclass mine(Mine):\n    pass\n")
    grid = Grid({"rule": [f"{file}:Mine", f"{file}:mine"]}, exclude=[{"rule": f"{file}:mine"}])
    assert [e.rule for e in grid.experiments()] == [f"{file}:Mine"]
    with pytest.raises(ConfigurationError, match=r"^exclude is no setting, and is handed over beside them"):
        Grid({"rule": "median", "exclude": [{"steps": 1}]})


def test_code_is_written_as_its_runs_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report imports nothing, and would take another spelling for runs that are missing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport varangian as vg\n\n\n"
        "@dataclass(frozen=True)\nclass Mine(vg.Median):\n"
        "    size: int = 5\n\n\n@dataclass(frozen=True)\nclass Mix(vg.NearestNeighborMixing):\n    size: int = 5\n"
    )
    rules = ["median", "./mine.py:Mine(size=5)", "mine.py:Mine( size = 7 )"]
    grid = Grid({"rule": rules, "byzantine": 3}, exclude=[{"rule": rules[1], "pre": rules[0]}],
                cases=[{"pre": "./mine.py:Mix,nnm"}, {"pre": ["none", ["./mine.py:Mix(size=4)"]]}])  # fmt: skip
    assert grid.settings["rule"] == ["median", "mine.py:Mine", "mine.py:Mine(size=7)"]
    assert grid.exclude[0]["rule"] == "mine.py:Mine"
    assert [case["pre"] for case in grid.cases] == ["mine.py:Mix,nnm", ["none", ["mine.py:Mix(size=4)"]]]
    assert Grid.from_toml(grid.to_toml()) == grid


def small(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def test_models_of_ones_own_are_values_too() -> None:
    grid = Grid({"rule": "median", "model": [small, "cnn"]})
    first, second = (e.model for e in grid.experiments())
    assert re.fullmatch(r".*test_grid(\.py)?:small", first)
    assert second == "cnn"
    with pytest.raises(ConfigurationError, match=r"^model: must have a name in a file"):
        Grid({"rule": "median", "model": lambda: None})


def test_thousands_of_exclusions_take_no_longer_than_the_runs() -> None:
    start = time.monotonic()
    grid = Grid({"rule": "median", "nesterov": [True, False]}, seeds="1-3000",
                exclude=[{"seed": seed, "nesterov": [1, "false"]} for seed in range(4, 3004)])  # fmt: skip
    assert [(e.seed, e.nesterov) for e in grid.experiments()] == [(s, n) for s in (1, 2, 3) for n in (True, False)]
    assert grid.notes == tuple(
        f"exclude {i} (seed = {i + 3}, nesterov = 1 or 'false') leaves out nothing." for i in (2998, 2999, 3000)
    )
    assert time.monotonic() - start < 10  # 18 million comparisons are minutes


def test_a_grid_longer_than_a_toml_text_is_kept_and_read(tmp_path: Path) -> None:
    cases = [{"l2": i / 1e6, "learning_rate": f"0.{i:0300}1"} for i in range(1, 500)]
    grid = Grid({"rule": "median", "clip": [None, 2.0]}, cases=cases, seeds=[1])
    assert record_grid(tmp_path, grid).suffix == ".json"
    [found] = grids_of(tmp_path)
    assert found.experiments() == grid.experiments()


def test_combinations_that_are_one_run_are_run_once_and_said() -> None:
    grid = Grid({"rule": "median", "momentum": [0.0, 0.9], "momentum_at": ["server", "worker"]})
    assert len(grid) == 3
    [note] = grid.notes
    assert note.startswith("1 combination is a run that another one is too, and is run once: ")
    assert note.endswith(", but for momentum_at, which changes nothing there.")


def test_settings_said_anew() -> None:
    grid = Grid.from_toml(TEXT)
    assert {e.byzantine for e in grid.replaced({"byzantine": 2}).experiments()} == {2}
    assert {e.seed for e in grid.replaced({"seed": 9}).experiments()} == {9}
    assert {e.seed for e in grid.replaced({"seeds": "8-9"}).experiments()} == {8, 9}
    assert list(grid.replaced({"rule": ["krum"]}).settings) == list(grid.settings)
    with pytest.raises(ConfigurationError, match="unknown setting 'rul'"):
        grid.replaced({"rul": "krum"})


def test_panels_of_the_paper_are_grids_that_files_can_hold() -> None:
    for panel in PANELS.values():
        grid = panel.grid([3], "published")
        assert Grid.from_toml(grid.to_toml()).experiments() == grid.experiments()
