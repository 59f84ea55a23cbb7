"""The engines as on devices: how often a step's host would wait, and that nothing else is different there.

Real ranks over gloo go through the same code; only that numbers lie on a device is pretended. What gloo on processors
cannot show, streams and what overlaps with what, is in benchmarks/gpu_engines.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import programs
import ranks

if not ranks.has_fsdp():
    pytest.skip("this torch has nothing that the engine for FSDP2 could hook into", allow_module_level=True)

import fsdp_ranks
import waiting_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return ranks.start(3, tmp_path_factory.mktemp("ranks"), waiting_ranks.everything)


def most(name: str) -> int:
    """Reads of a step: one that tells whether it holds, with the report; and one where distances decide."""
    return 1 if name in waiting_ranks.COLUMNS else 2


@pytest.mark.parametrize("name", waiting_ranks.ALGORITHMS)
@pytest.mark.parametrize("buckets", waiting_ranks.CAPS)
def test_a_step_of_ddp_waits_at_its_last_bucket_alone(found: list[dict[str, Any]], name: str, buckets: int) -> None:
    for each in found:
        steps = each[f"ddp: {name}, {buckets}"]
        assert steps["reads"] == [most(name)] * waiting_ranks.STEPS
        assert steps["before the last"] == [0] * waiting_ranks.STEPS
        assert steps["buckets"][-1] == buckets
        assert steps["reads of the report"] == 0
        assert steps["digest"] == found[0][f"ddp: {name}, {buckets}"]["digest"]


@pytest.mark.parametrize("name", waiting_ranks.ALGORITHMS)
def test_replicated_steps_wait_as_often(found: list[dict[str, Any]], name: str) -> None:
    for each in found:
        assert each[f"replicated: {name}"]["reads"] == [most(name)] * waiting_ranks.STEPS
        assert each[f"replicated: {name}"]["digest"] == found[0][f"replicated: {name}"]["digest"]


def test_the_scale_of_gradients_is_not_read(found: list[dict[str, Any]]) -> None:
    assert [each["scaler"] for each in found] == [[1, 0]] * 3


@pytest.mark.parametrize("name", waiting_ranks.ALGORITHMS)
def test_a_step_of_fsdp_waits_at_its_end_alone(found: list[dict[str, Any]], name: str) -> None:
    for each in found:
        steps = each[f"fsdp: {name}, True"]
        assert steps["reads"] == [most(name)] * waiting_ranks.STEPS
        assert steps["before the end"] == [0] * waiting_ranks.STEPS


@pytest.mark.parametrize(
    "key",
    [f"fsdp: {name}" for name in waiting_ranks.ALGORITHMS]
    + [f"fsdp, {how}: {name}" for how in ("half", "halves", "zeros") for name in ("median", "centered-clipping")],
)
def test_what_is_decided_at_the_end_is_what_is_decided_at_once(found: list[dict[str, Any]], key: str) -> None:
    for each in found:
        later, once = each[f"{key}, True"], each[f"{key}, False"]
        assert later["bytes"] == once["bytes"]
        assert later["report"] == once["report"]


@pytest.mark.parametrize("algorithm", ["momentum, phocas, momentum", "centered-clipping"])
@pytest.mark.parametrize("name", waiting_ranks.BAD)
def test_among_bad_gradients_each_unit_is_the_simulators(
    found: list[dict[str, Any]], name: str, algorithm: str
) -> None:
    refused = sum(len(who) > 1 for _, who in waiting_ranks.BAD[name].values())
    for each in found:
        parameters, difference, counts = each[f"bad: {name}, {algorithm}"]
        assert parameters == found[0][f"bad: {name}, {algorithm}"][0]
        assert difference < 1e-6
        assert counts == (fsdp_ranks.STEPS, refused)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["median", "centered-clipping"])
def test_too_many_faulty_ranks_are_named_at_the_end(found: list[dict[str, Any]], name: str, engine: str) -> None:
    said = {each[f"too many: {name}, {engine}"] for each in found}
    assert len(said) == 1
    assert "tolerates 1 vectors with NaN or infinity, got 2, of rank 1 (" in said.pop()


NO_STEP = {
    "two backward passes": "one synchronised backward pass a step, got a gradient of '",
    "units by rank": "on rank 1 gradients of unit 'left' where rank 0 has gradients of unit 'right'",
    "parameters by rank": "on rank 1 others than rank 0 in gradients of unit '(root)'",
}


@pytest.mark.parametrize("name", ["momentum, phocas, momentum", "centered-clipping"])
@pytest.mark.parametrize("key", NO_STEP)
def test_what_is_no_step_is_refused_at_its_end(found: list[dict[str, Any]], key: str, name: str) -> None:
    for each in found:
        assert NO_STEP[key] in each[f"{key}, {name}"]
        assert not each[f"{key}, {name}, moved"]
        assert each[f"{key}, {name}, kept"]
        assert each[f"{key}, {name}, steps"] == (key == "two backward passes")
        assert each[f"{key}, {name}, next"] == "no error"


@pytest.mark.parametrize("name", ["worker", "server", "apply"])
def test_a_stage_of_ones_own_that_fails_on_one_rank(found: list[dict[str, Any]], name: str) -> None:
    for rank, each in enumerate(found):
        assert each[f"own {name}"] == ("KeyError: 'mine'" if rank == 1 else "RuntimeError: rank 1: KeyError: 'mine'")
        assert not each[f"own {name}, moved"]
        assert each[f"own {name}, kept"]


def test_the_measurement_on_cards_goes_through_without_one(tmp_path: Path) -> None:
    """Its lines, so that no minute of a card goes into them."""
    script = Path(__file__).parents[1] / "benchmarks" / "gpu_engines.py"
    words = [script, "--device", "cpu", "--small", "--ranks", "3", "--seconds", "230"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = programs.run(*words, "--json", tmp_path / "found.json", env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    alone, together = json.loads((tmp_path / "found.json").read_text("utf-8"))["worlds"]
    assert (alone["ranks"], together["ranks"]) == (1, 3)
    assert together["found"]["momentum, median"]["difference"] < 1e-5
    assert together["found"]["fsdp: momentum, median"]["difference"] < 1e-5
    assert "tolerates 1 vectors with NaN or infinity, got 3" in together["found"]["refused"]
