"""FSDP2 under an algorithm, on real processes: each unit is what the simulator makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ddp_ranks
import ranks

if not ranks.has_fsdp():
    pytest.skip("this torch has nothing that the engine for FSDP2 could hook into", allow_module_level=True)

import fsdp_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return ranks.start(3, tmp_path_factory.mktemp("ranks"), fsdp_ranks.everything)


@pytest.mark.parametrize("name", fsdp_ranks.EQUAL)
def test_each_unit_is_the_simulators(found: list[dict[str, Any]], name: str) -> None:
    assert len({each[f"digest: {name}"] for each in found}) == 1
    difference, same = found[0][f"equal: {name}"]
    assert difference < 5e-7
    assert same or name not in fsdp_ranks.BITWISE


def test_accumulation(found: list[dict[str, Any]]) -> None:
    assert max(each["accumulated"] for each in found) < 1e-6


@pytest.mark.parametrize("algorithm", fsdp_ranks.BAD_UNDER)
@pytest.mark.parametrize("name", fsdp_ranks.BAD)
def test_among_bad_gradients_each_unit_is_the_simulators(
    found: list[dict[str, Any]], name: str, algorithm: str
) -> None:
    """A step that is refused in one unit is none in any, those reduced before and after it included."""
    refused = sum(len(ranks) > 1 for _, ranks in fsdp_ranks.BAD[name].values())
    for each in found:
        digest, counts = each[f"bad: {name}, {algorithm}"]
        assert digest == found[0][f"bad: {name}, {algorithm}"][0]
        assert counts == (fsdp_ranks.STEPS, refused)
    assert found[0][f"bad: {name}, {algorithm}, difference"] < 1e-6


def test_accumulation_among_bad_gradients(found: list[dict[str, Any]]) -> None:
    assert max(each["bad: accumulated"] for each in found) < 1e-6


def test_a_skipped_step_is_said(found: list[dict[str, Any]]) -> None:
    first, second = found[0]["skipped"]
    assert first.startswith("step 3 is skipped: Median(f=1) tolerates 1 vectors with NaN or infinity, got 3")
    assert second.startswith("step 4 is skipped")
    assert all(each["skipped"] == [] for each in found[1:])


NO_STEP = {
    "two backward passes": "one synchronised backward pass a step, got a gradient of '",
    "units by rank": "on rank 1 unit 'left' where rank 0 has unit 'right'",
    "units by rank, unequal": "on rank 1 unit 'left' where rank 0 has unit 'right'",
    "a unit that one rank lacks": "on rank 1 the end of the forward pass where rank 0 has unit 'right'",
    "parameters by rank": "on rank 1 others than rank 0 in gradients of unit '(root)'",
    "fewer parameters on one rank": "on rank 1 others than rank 0 in gradients of unit '(root)'",
    "others than before": "parameters of unit '(root)' in each step, for their momentum, got a.weight after all",
}


@pytest.mark.parametrize("key", NO_STEP)
def test_what_is_no_step_is_refused_on_every_rank_before_anything_moves(found: list[dict[str, Any]], key: str) -> None:
    for each in found:
        assert NO_STEP[key] in each[f"none: {key}"]
        assert not each[f"none: {key}, moved"]
        assert each[f"none: {key}, steps"] == (key in ("two backward passes", "others than before"))
        assert each.get(f"none: {key}, next", "no error") == "no error"


@pytest.mark.parametrize("name", ["worker", "server", "apply"])
def test_a_stage_of_ones_own_that_fails_on_one_rank_stops_all_of_them(found: list[dict[str, Any]], name: str) -> None:
    for rank, each in enumerate(found):
        assert each[f"own: {name}"] == ("KeyError: 'mine'" if rank == 1 else "RuntimeError: rank 1: KeyError: 'mine'")
        assert not each[f"own: {name}, moved"]
        assert each[f"own: {name}, difference"] < 1e-6  # as without that step


def test_a_unit_that_is_called_twice(found: list[dict[str, Any]]) -> None:
    assert max(each["called twice"] for each in found) < 1e-6


def test_a_memory_of_some_parameters(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["partial keys"] == ["used.(root)"]
        assert "the same parameters of unit '(root)' in each step, for their momentum, got all" in each["partial, all"]
        assert each["partial, kept"]
        assert each["partial, resumed"] < 1e-6


def test_a_unit_that_no_step_used_is_said_in_the_state(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["unused unit, keys"] == ["used.right"]
        assert each["unused unit, kept"]
        assert each["unused unit, next"] == "no error"
        assert "same parameters in the state on all ranks, got others on [1] than on" in each["unused unit, by rank"]


def test_unused_parameters_may_be_zeros(found: list[dict[str, Any]]) -> None:
    assert {each["zeros"] for each in found} == {"no error"}


def test_taken_away_the_mean_is_back(found: list[dict[str, Any]]) -> None:
    assert max(each["removed"] for each in found) < 1e-7


@pytest.mark.parametrize("fault", fsdp_ranks.FAULTY)
def test_a_faulty_rank_does_not_stop_training(found: list[dict[str, Any]], fault: str) -> None:
    accuracy, report = found[0][f"fault: {fault}"]
    assert accuracy > 0.7
    assert report.steps == fsdp_ranks.FAULTY_STEPS
    assert {str(each[f"fault: {fault}"][1]) for each in found} == {str(report)}
    assert np.isnan(report.score).all()  # of units by themselves, and of none together
    assert np.isnan(report.distance[:, 2]).all() == (fault == "nan")
    assert np.isnan(report.cosine[:, 2]).all() == (fault in ("nan", "zeros"))
    assert not np.isnan(report.distance[:, :2]).any()
    assert (np.abs(report.cosine[:, :2]) <= 1).all()
    if fault == "upside down":
        assert (report.cosine[:, 2] < report.cosine[:, :2].max(1)).all()
    if fault == "nan":
        assert [r.nonfinite for r in report.ranks] == [0, 0, fsdp_ranks.FAULTY_STEPS]
    if fault != "zeros":
        assert max((r.suspicion, r.rank) for r in report.ranks)[1] == 2


def test_without_protection_it_does(found: list[dict[str, Any]]) -> None:
    assert found[0]["unprotected"] < 0.6


def test_the_rejected_rank_is_named(found: list[dict[str, Any]]) -> None:
    (line,) = found[0]["lines"]
    assert line.startswith("rank 2 rejected in 5 of the last 5 steps, with NaN or infinity in 5 (host ")
    assert found[1]["lines"] == []


@pytest.mark.parametrize("name", ["median", "nnm, geometric-median"])
def test_too_many_faulty_ranks_stop_all_of_them(found: list[dict[str, Any]], name: str) -> None:
    messages = {each[f"too many: {name}"] for each in found}
    assert len(messages) == 1
    assert "tolerates 1 vectors with NaN or infinity, got 2, of rank 1 (" in messages.pop()


def test_refusals_on_every_rank(found: list[dict[str, Any]]) -> None:
    wanted = (
        "MultiKrum(f=1) needs n >= 2f + 3 = 5 vectors, got 3.",
        "got DivideAndConquer(f=1); no rank ever has whole ones here",
        "nesterov=True",
        "the last aggregate, which is sharded, got SharedMomentum",
        "pieces of the update, got Clip",
        "needs a model after fully_shard, got Sequential",
        "needs a model after fully_shard, got DistributedDataParallel",
        "a rule that protects from somebody, got Average(f=0)",
        "the same algorithm on all ranks, got others on [1, 2] than on rank 0",
        "needs a model that is not protected, got one that is already",
        "needs a model that is not protected, got one that is already",
        "no error",
    )
    for each in found:
        for message, part in zip(each["refused"], wanted, strict=True):
            assert part in message


def test_what_one_rank_is_refused_all_hear_at_once(found: list[dict[str, Any]]) -> None:
    wanted = (
        "Median(f=2) needs n >= 2f + 1 = 5 vectors, got 3",
        "needs a model after fully_shard, got Sequential",
        "an integer window >= 1, got 0",
    )
    for rank, each in enumerate(found):
        for message, part in zip(each["heard"], wanted, strict=True):
            assert part in message
            assert message.startswith("rank 1: ") == (rank != 1)


@pytest.mark.parametrize("name", ["phocas", "centered-clipping"])
def test_checkpoints(found: list[dict[str, Any]], name: str) -> None:
    places = ["server.0", "worker.0"] if name == "phocas" else ["previous"]
    for each in found:
        memories = [f"{place}.{unit}" for place in places for unit in fsdp_ranks.UNITS]
        assert each[f"keys: {name}"] == sorted([*memories, "algorithm", "rank", "ranks", "step"])
        assert each[f"kept: {name}"]
        assert each[f"resumed: {name}"]
        assert each[f"still: {name}"]
        assert each[f"fresh: {name}"] == "no error"


STATES = {
    "a neighbour's": "the state of rank 1 here, got that of rank 2",
    "rank 0's": "got that of rank 0",
    "more ranks'": "a state of 3 ranks, got one of 4",
    "another algorithm's": "got one of M",
    "unit": "needs the units of this model, got worker.0.nothing",
    "without a unit": "got a state that lacks ['",
    "without any": "got a state that lacks ['",
} | ddp_ranks.OTHERS


@pytest.mark.parametrize("key", STATES)
def test_a_state_that_is_not_ones_own_is_refused_on_every_rank(found: list[dict[str, Any]], key: str) -> None:
    for each in found:
        assert STATES[key] in each[f"state: {key}"]


def test_traffic_is_that_of_a_reduce_scatter(found: list[dict[str, Any]]) -> None:
    for each in found:
        for name in ("median", "nnm, geometric-median"):
            assert 1 <= each[f"traffic: {name}"] < 1.05
