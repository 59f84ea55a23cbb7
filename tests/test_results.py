"""results/README.md says what the runs beside it say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture(scope="module")
def profiles() -> ModuleType:
    place = importlib.util.spec_from_file_location("profiles", RESULTS / "profiles.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_the_tables_are_of_the_runs(profiles: ModuleType) -> None:
    page = (RESULTS / "README.md").read_text("utf-8")
    assert profiles.filled(page, profiles.tables()) == page


def test_what_is_said_in_short_is_of_the_runs(profiles: ModuleType) -> None:
    said = " ".join((RESULTS / "README.md").read_text("utf-8").split())
    pairs = {name: profiles.account(profiles.read_runs(path)).pairs for name, path in profiles.TABLES.items()}
    raised = [sum(pair.gain() > 0 for pair in found) for found in pairs.values()]
    assert "It is better in {} pairs and in {}.".format(*raised) in said
    excepted = {("empire", "multi-krum"), ("empire", "bulyan")}
    others = [
        [p for p in found if (p.experiment.attack, p.experiment.rule) not in excepted] for found in pairs.values()
    ]
    assert [len(found) for found in others] == [380, 380]
    assert "In the other 380 pairs of either profile it is better in every one, by 0.7 points at least." in said
    assert min(pair.gain() for found in others for pair in found) >= 0.7
    answered = [sum(map(profiles.costly, found)) for found in others]
    assert "{0} of {0} such pairs are raised when described, {1} of {1} when published".format(*answered) in said
    for nesterov, text in ((False, "1.09 and 1.05 times"), (True, "1.28 and 1.26")):
        ratios = [
            median(p.worker.seconds / p.server.seconds for p in found if p.experiment.nesterov == nesterov)
            for found in pairs.values()
        ]
        assert text.startswith("{:.2f} and {:.2f}".format(*ratios))
        assert text in said


def test_the_study_is_whole(profiles: ModuleType) -> None:
    for name, path in profiles.TABLES.items():
        found = profiles.read_runs(path)
        assert len({o.experiment.digest for o in found}) == 920, name
        assert {o.study for o in found} == {name}
        assert {o.experiment.seed for o in found} == {1, 2, 3, 4, 5}
