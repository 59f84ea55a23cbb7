"""FSDP2 under an algorithm, on real processes: each unit is what the simulator makes of it."""

from __future__ import annotations

from typing import Any

import pytest

import fsdp_ranks
import ranks

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
    assert difference < 1e-6
    assert same or name not in fsdp_ranks.BITWISE


def test_accumulation(found: list[dict[str, Any]]) -> None:
    assert max(each["accumulated"] for each in found) < 1e-6


@pytest.mark.parametrize("fault", fsdp_ranks.FAULTY)
def test_a_faulty_rank_does_not_stop_training(found: list[dict[str, Any]], fault: str) -> None:
    accuracy, report = found[0][f"fault: {fault}"]
    assert accuracy > 0.7
    assert report.steps == fsdp_ranks.FAULTY_STEPS
    assert {str(each[f"fault: {fault}"][1]) for each in found} == {str(report)}
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
    )
    for each in found:
        for message, part in zip(each["refused"], wanted, strict=True):
            assert part in message


@pytest.mark.parametrize("name", ["phocas", "centered-clipping"])
def test_checkpoints(found: list[dict[str, Any]], name: str) -> None:
    places = ["server.0", "worker.0"] if name == "phocas" else ["previous"]
    for each in found:
        assert each[f"keys: {name}"] == [f"{place}.{unit}" for place in places for unit in fsdp_ranks.UNITS]
        assert each[f"kept: {name}"]
        assert each[f"resumed: {name}"]
        assert "needs the units of this model, got worker.0.nothing" in each["bad state"]


def test_traffic_is_that_of_a_reduce_scatter(found: list[dict[str, Any]]) -> None:
    for each in found:
        for name in ("median", "nnm, geometric-median"):
            assert 1 <= each[f"traffic: {name}"] < 1.05
