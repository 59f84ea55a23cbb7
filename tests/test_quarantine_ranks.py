"""Quarantine under DistributedDataParallel and FSDP2: all ranks leave out the same one, as the simulator does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quarantine_ranks
import ranks

pytestmark = pytest.mark.slow
RANKS = 4
AWAY = [2, 3, 4, 7, 8, 9, 10]  # steps: after two with the window full, and after the return again


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return ranks.start(RANKS, tmp_path_factory.mktemp("ranks"), quarantine_ranks.everything)


@pytest.mark.parametrize("engine", ["pieces", "replicated"])
@pytest.mark.parametrize("name", quarantine_ranks.ALGORITHMS)
def test_ranks_train_as_the_simulator_does(found: list[dict[str, Any]], name: str, engine: str) -> None:
    each = [answer[f"{engine}: {name}"] for answer in found]
    assert len({answer["digest"] for answer in each}) == 1
    for answer in each:
        assert answer["difference"] < 1e-5
        wanted = [0] * RANKS
        wanted[quarantine_ranks.HOSTILE] = len(AWAY)
        assert answer["excluded"] == wanted
        assert answer["dropped"] == [0] * RANKS  # what it sent while it was away, nobody saw
        assert np.flatnonzero(np.isnan(answer["weight"])).tolist() == AWAY or "centered" in name
        assert "excluded" in answer["text"]


def test_training_goes_on_from_a_state(found: list[dict[str, Any]]) -> None:
    for answer in found:
        assert answer["resumed"]["digest"] == answer["pieces: median"]["digest"]
        assert answer["resumed"]["watched"] == answer["pieces: median"]["watched"]


def test_states_that_cannot_be_are_refused_on_all_ranks(found: list[dict[str, Any]]) -> None:
    for answer in found:
        assert "needs what a quarantine remembers" in answer["bare"]
        assert "memory of a quarantine" in answer["wrong"]
        assert "needs the same quarantine on all ranks" in answer["mixed"]
        assert "excludes at most f workers at a time" in answer["no room"]


@pytest.mark.parametrize("name", ["median", "nnm, median, f lowered"])
def test_units_of_fsdp_leave_out_the_same_rank(found: list[dict[str, Any]], name: str) -> None:
    if not ranks.has_fsdp():
        pytest.skip("this torch has nothing that the engine for FSDP2 could hook into")
    for answer in found:
        got = answer[f"fsdp: {name}"]
        wanted = [0] * RANKS
        wanted[quarantine_ranks.HOSTILE] = len(AWAY)
        assert got["excluded"] == wanted
        assert got["dropped"] == [0] * RANKS
        assert np.flatnonzero(np.isnan(got["weight"])).tolist() == AWAY
        assert got["watched"] == found[0][f"fsdp: {name}"]["watched"]
