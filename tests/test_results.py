"""results/README.md says what the runs beside it say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
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
    made = profiles.tables()
    assert profiles.filled(page, made) == page
    for name, text in made.items():  # a table of other runs would be noticed
        assert profiles.filled(page, made | {name: text.replace("| 24 of 51", "| 23 of 51", 1) + " "}) != page


def test_the_study_is_whole(profiles: ModuleType) -> None:
    for name, path in profiles.TABLES.items():
        found = profiles.read_runs(path)
        assert len({o.experiment.digest for o in found}) == 920, name
        assert {o.study for o in found} == {name}
        assert {o.experiment.seed for o in found} == {1, 2, 3, 4, 5}
