"""Code of one's own, by reference: found from everywhere, part of what a run is, and imported for its owner only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import varangian as vg
from varangian.core import references
from varangian.core.references import importing
from varangian.study.outcomes import collect
from varangian.study.sweep import sweep

RULE = '''
from dataclasses import dataclass

import varangian as vg


@dataclass(frozen=True)
class MyRule(vg.General):
    """The mean of the m vectors nearest to the median of each coordinate."""

    m: int = 5
    share: float = 1.0

    @property
    def needs(self):
        return "2f + 1", 2 * self.f + 1

    def combine(self, x, previous):
        distances = (x - x.median(dim=0).values).norm(dim=1)
        return x[distances.topk(min(self.m, len(x)), largest=False).indices].mean(dim=0)


tuned = MyRule(f=3, m=2)
ours = vg.Median(f=2, even="lower")


def made(f, m=2):
    return MyRule(f=f, m=m)


class Outer:
    Inner = MyRule


class NoRule:
    pass


class Unfinished(vg.General):
    pass


def plain(x):
    return x.mean(dim=0)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds my_rule.py, and is the current one; what is known of references is forgotten afterwards."""
    monkeypatch.setattr(references, "_known", references._Known())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rule.py").write_text(RULE)
    modules, path = set(sys.modules), sys.path[:]
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def experiment(**settings: object) -> vg.Experiment:
    return vg.Experiment.from_dict({"rule": "my_rule.py:MyRule", "attack": "little", "steps": 3} | settings)


@pytest.mark.parametrize(
    ("text", "kept", "made"),
    [
        ("my_rule.py:MyRule", "my_rule.py:MyRule", "MyRule(f=3)"),
        ("./my_rule.py:MyRule( share = 0.5, m=7 )", "my_rule.py:MyRule(m=7, share=0.5)", "MyRule(f=3, m=7, share=0.5)"),
        ("my_rule.py:MyRule(m=5, f=3)", "my_rule.py:MyRule", "MyRule(f=3)"),
        ("my_rule.py:MyRule(f=2)", "my_rule.py:MyRule(f=2)", "MyRule(f=2)"),
        ("my_rule:MyRule(m=4)", "my_rule:MyRule(m=4)", "MyRule(f=3, m=4)"),
        ("my_rule.py:Outer.Inner", "my_rule.py:Outer.Inner", "MyRule(f=3)"),
        ("my_rule.py:made(m=2)", "my_rule.py:made", "MyRule(f=3, m=2)"),
        ("my_rule.py:tuned", "my_rule.py:MyRule(m=2)", "MyRule(f=3, m=2)"),
        ("my_rule.py:ours", "median(f=2, even='lower')", "Median(f=2, even='lower')"),
    ],
)
def test_a_rule_by_reference(here: Path, text: str, kept: str, made: str) -> None:
    e = experiment(rule=text)
    assert e.rule == kept
    assert str(e.make_rule()) == made
    again = vg.Experiment.from_json(e.to_json())
    assert (again, again.digest, again.name) == (e, e.digest, e.name)


def test_whoever_has_not_imported_it_sees_the_same_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment(rule="my_rule.py:MyRule(m=4)", attack="worst-case(directions=('my_attack.py:Mine(z = 2)',))")
    monkeypatch.setattr(references, "_known", references._Known())
    with importing(False):
        read = vg.Experiment.from_json(e.to_json())
    assert (read, read.digest, read.name) == (e, e.digest, e.name)
    assert "-my_rule.MyRule_m=4-" in e.name
    with pytest.raises(references.NotImported, match="--trust"):
        read.make_rule()


@pytest.fixture(autouse=True)
def _attack(here: Path) -> None:
    (here / "my_attack.py").write_text(
        "from dataclasses import dataclass\nimport varangian as vg\n\n\n@dataclass(frozen=True)\n"
        "class Mine(vg.Attack):\n    z: float = 1.0\n\n    def craft(self, seen):\n        return -self.z * seen.mean\n"
    )


def test_a_run_goes_on_and_is_read(here: Path) -> None:
    result = vg.run(experiment(attack="my_attack.py:Mine(z=2)"), "runs")
    assert result.folder is not None
    [name] = os.listdir("runs")
    assert name.startswith("digits-fully-connected-my_rule.MyRule-my_attack.Mine_z=2.0-n15-f3")
    [session] = json.loads((result.folder / "environment.json").read_text())["sessions"]
    assert [(c["name"], c["file"]) for c in session["code"]] == [
        ("my_rule.py:MyRule", "my_rule.py"), ("my_attack.py:Mine", "my_attack.py"),
    ]  # fmt: skip
    assert result.experiment.code_hash is not None
    assert vg.run(experiment(attack="my_attack.py:Mine(z=2)"), "runs").from_disk
    (here / "my_rule.py").write_text(RULE.replace("distances.topk", "(2 * distances).topk"))
    program = "import varangian as vg; import sys; e = vg.Experiment.from_json(open(sys.argv[1]).read()); vg.run(e)"
    end = python("-c", program, result.folder / "experiment.json")
    assert "the code of this experiment is no longer what it was" in end.stderr


def python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300)


def test_in_the_processes_of_a_sweep(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [experiment(attack=attack, seed=seed) for attack in ("my_attack.py:Mine", "little") for seed in (1, 2)]
    monkeypatch.chdir("/")  # they know what was found, not where this process is now
    result = sweep(grid, here / "study", jobs=2)
    assert (result.done, result.failed) == (4, ())
    assert len(collect(here / "study")[0]) == 4
