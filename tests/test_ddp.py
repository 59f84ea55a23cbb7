"""DistributedDataParallel under an algorithm, on real processes: the simulator's training, whatever a rank sends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ddp_ranks
import programs
import ranks

pytestmark = pytest.mark.slow
RANKS = 5


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found. All checks share one group of processes: starting it takes longer than most of them."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VARANGIAN_TEST_FOLDER", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        return ranks.start(RANKS, folder, ddp_ranks.everything)


def alike(found: list[dict[str, Any]], key: str) -> ddp_ranks.Trained:
    """All ranks ended with the same parameters and the same report; rank 0's result."""
    results = [each[key] for each in found]
    assert len({result.digest for result in results}) == 1
    assert len({str(result.report) for result in results}) == 1
    return results[0]


@pytest.mark.parametrize("name", ddp_ranks.EQUAL)
def test_training_is_the_simulators(found: list[dict[str, Any]], name: str) -> None:
    result = alike(found, f"equal: {name}")
    assert result.difference < 3e-7
    if name in ddp_ranks.BITWISE:
        assert result.same_bits
    assert result.report.steps == ddp_ranks.STEPS


@pytest.mark.parametrize("name", ddp_ranks.REPLICATED)
def test_replicated_is_the_simulator_to_the_last_bit(found: list[dict[str, Any]], name: str) -> None:
    assert alike(found, f"replicated: {name}").same_bits


@pytest.mark.parametrize(("fault", "defence"), [(f, d) for f in ddp_ranks.FAULTS for d in ddp_ranks.defences(f)])
def test_a_faulty_rank_does_not_stop_training(found: list[dict[str, Any]], fault: str, defence: str) -> None:
    result, healthy = alike(found, f"fault: {fault}, {defence}"), alike(found, "healthy")
    assert healthy.accuracy > 0.8
    assert result.accuracy > healthy.accuracy - 0.1
    if fault in ("nan", "inf", "one nan"):
        assert [r.nonfinite for r in result.report.ranks] == [0, 0, 0, ddp_ranks.FAULTY_STEPS, 0]
    if fault in ("nan", "inf", "1e30"):
        assert result.report.ranks[3].rejected == ddp_ranks.FAULTY_STEPS
        assert max((r.suspicion, r.rank) for r in result.report.ranks)[1] == 3


def test_without_protection_it_does(found: list[dict[str, Any]]) -> None:
    for fault in ("nan", "1e30", "upside down"):
        assert found[0][f"unprotected: {fault}"] < 0.6


def test_the_rejected_rank_is_named(found: list[dict[str, Any]]) -> None:
    (line,) = found[0]["lines"]
    assert line.startswith("rank 3 rejected in 5 of the last 5 steps, with NaN or infinity in 5 (host ")
    assert all(each["lines"] == [] for each in found[1:])
    assert "   6           6" in str(alike(found, "warned").report)


@pytest.mark.parametrize("name", ["multi-krum", "median"])
def test_too_many_faulty_ranks_stop_all_of_them(found: list[dict[str, Any]], name: str) -> None:
    for replicated in (False, True):
        messages = {each[f"too many: {name}, {replicated}"] for each in found}
        assert len(messages) == 1
        assert "tolerates 1 vectors with NaN or infinity, got 2, of rank 1 (" in messages.pop()
    alike(found, "after errors")


@pytest.mark.parametrize("algorithm", ddp_ranks.BAD_UNDER)
@pytest.mark.parametrize("name", ddp_ranks.BAD)
def test_among_bad_gradients_training_is_the_simulators(found: list[dict[str, Any]], name: str, algorithm: str) -> None:
    """Refused steps, left out: by whoever catches the error, or by on_refusal="skip", in turn."""
    refused = sum(len(ranks) > 1 for ranks in ddp_ranks.BAD[name].values())
    result = alike(found, f"bad: {name}, {algorithm}")
    assert result.difference < 1e-6
    assert result.same_bits or algorithm not in ddp_ranks.BITWISE
    assert (result.report.steps, result.report.skipped) == (ddp_ranks.STEPS, refused)


@pytest.mark.parametrize(
    "how",
    ["last bucket", "replicated", "no_sync", "gradient_as_bucket_view", "static_graph", "find_unused_parameters"],
)
def test_refused_steps_in_other_ways(found: list[dict[str, Any]], how: str) -> None:
    result = alike(found, f"bad: {how}")
    assert result.same_bits or (how == "no_sync" and result.difference < 1e-6)
    assert result.report.skipped == 2


def test_a_skipped_step_is_said(found: list[dict[str, Any]]) -> None:
    first, second = found[0]["skipped"]
    assert first.startswith("step 3 is skipped: Median(f=1) tolerates 1 vectors with NaN or infinity, got 2")
    assert second.startswith("step 4 is skipped")
    assert all(each["skipped"] == [] for each in found[1:])


NO_STEP = {
    "two backward passes": "one synchronised backward pass a step, got a gradient of 'first.bias'",
    "two of one graph": "one synchronised backward pass a step, got a gradient of 'first.bias'",
    "not zeroed on one rank": "one synchronised backward pass a step, got a gradient of 'first.bias'",
    "hidden outputs": "got a backward pass that it took no part",
    "a layer that nobody used, 1e-06": "got none of 'never.weight', 'never.bias'; use DistributedDataParallel",
    "a layer that nobody used, 25": "got none of 'never.weight', 'never.bias'; use DistributedDataParallel",
    "a layer that one rank did not use, 1e-06": "got none of 'never.weight', 'never.bias'; use Distributed",
    "a layer that one rank did not use, 25": "got none of 'never.weight', 'never.bias'; use Distributed",
}


@pytest.mark.parametrize("key", NO_STEP)
def test_what_is_no_step_is_refused_on_every_rank_before_anything_moves(found: list[dict[str, Any]], key: str) -> None:
    for rank, each in enumerate(found):
        assert NO_STEP[key] in each[f"none: {key}"]
        if "one rank" in key:
            assert each[f"none: {key}"].startswith("protect needs" if rank == 1 else "rank 1: protect needs")
        assert not each[f"none: {key}, moved"]


@pytest.mark.parametrize("name", ddp_ranks.OWN)
def test_a_stage_of_ones_own_that_fails_on_one_rank_stops_all_of_them(found: list[dict[str, Any]], name: str) -> None:
    for replicated in ddp_ranks.OWN[name][2]:
        key = f"own: {name}, {replicated}"
        for rank, each in enumerate(found):
            assert each[key] == ("KeyError: 'mine'" if rank == 1 else "RuntimeError: rank 1: KeyError: 'mine'")
            assert not each[f"{key}, moved"]
            assert each[f"{key}, steps"] == 3
            assert each[f"{key}, difference"] < 1e-6  # as without that step
        assert len({each[f"{key}, digest"] for each in found}) == 1


def test_after_what_was_no_step(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["none: and the next"]
        assert each["none: steps"] == 3
        assert each["removed"] < 1e-6
        assert "tolerates 1 vectors with NaN or infinity, got 5" in each["scaler off"]


def test_accumulation_uneven_batches_unused_parameters_and_options(found: list[dict[str, Any]]) -> None:
    for key in ("no_sync", "unused, clip", "static graph"):
        assert alike(found, key).difference < 1e-6, key
    for key in ("uneven", "unused", "autocast", "bucket view"):
        assert alike(found, key).same_bits, key


def test_mixed_precisions(found: list[dict[str, Any]]) -> None:
    for key in ("mixed", "half", "half, clip"):
        alike(found, key)
    assert max(each["mixed step"] for each in found) < 1e-7
    assert max(each["mixed step, clip"] for each in found) < 1e-7


def test_gradient_scaler(found: list[dict[str, Any]]) -> None:
    assert len({each["scaled digest"] for each in found}) == 1
    for each in found:
        assert each["scaled"] < 1e-6  # as without a scaler: scales are powers of two
        assert each["scales"][0] == 1024.0
        assert each["scales"][5] == 8192.0  # grew three times
        assert each["moved 0"]  # one rank overflowed
        assert not each["moved 1"]  # two did, of f = 1
        assert each["memory kept"]
        assert each["moved 2"]
        assert each["scales"][7] == 4096.0
        assert each["scaled report"].skipped == 1


def test_join(found: list[dict[str, Any]]) -> None:
    result = alike(found, "joined")
    assert result.accuracy > 0.75
    assert result.report.steps == 30


REFUSED = {
    "f": "MultiKrum(f=2) needs n >= 2f + 3 = 7 vectors, got 5. A vector is a rank's: start more ranks, or lower f.",
    "bulyan": "Bulyan(f=1) needs n >= 4f + 3 = 7 vectors, got 5.",
    "nesterov": "nesterov=True",
    "dnc": "replicated=True, where each rank gathers all vectors, works for every rule.",
    "f, replicated": "needs n >= 2f + 1 = 7 vectors, got 5.",
    "sync": "got SyncBatchNorm in 'norm'",
    "sparse": "got sparse=True in 'table'",
    "hook": "a communication hook of its own, got register_comm_hook's",
    "twice": "needs a model that is not protected, got one that is already",
    "module": "needs a DistributedDataParallel, got Sequential",
    "others": "the same algorithm on all ranks, got others on [1, 2, 3, 4] than on rank 0",
    "window": "window >= 1, got 0",
    "on_refusal": "the same gradient scale and on_refusal on all ranks, got others on [1] than on rank 0",
    "scale": "the same gradient scale and on_refusal on all ranks, got others on [1] than on rank 0",
    "average": "a rule that protects from somebody, got Average(f=0)",
    "rule": "a varangian.Algorithm, got Median(f=1",
}
HEARD = {
    "f": "Median(f=3) needs n >= 2f + 1 = 7 vectors, got 5",
    "sparse": "got sparse=True in 'table'",
    "module": "needs a DistributedDataParallel, got Sequential",
    "window": "window >= 1, got 0",
    "twice": "needs a model that is not protected, got one that is already",
}


@pytest.mark.parametrize("key", HEARD)
def test_what_one_rank_is_refused_all_hear_at_once(found: list[dict[str, Any]], key: str) -> None:
    for rank, each in enumerate(found):
        assert HEARD[key] in each[f"heard: {key}"]
        assert each[f"heard: {key}"].startswith("rank 1: ") == (rank != 1)


@pytest.mark.parametrize("key", REFUSED)
def test_refusals_on_every_rank(found: list[dict[str, Any]], key: str) -> None:
    for each in found:
        assert REFUSED[key] in each[f"refused: {key}"]


def test_what_is_not_refused(found: list[dict[str, Any]]) -> None:
    assert {each["not refused: layers without parameters"] for each in found} == {"no error"}


@pytest.mark.parametrize("name", ["multi-krum", "clip, median, server", "centered-clipping", "both"])
def test_checkpoints(found: list[dict[str, Any]], name: str) -> None:
    for each in found:
        # Buckets differ before and after the checkpoint, so distances are added up in another order.
        assert each[f"resumed: {name}"] <= (1e-6 if name == "centered-clipping" else 0)
        assert each[f"untouched: {name}"]
        assert "says whose it is" in each["bad state"]
        assert each[f"state kept: {name}"]
    keys = {"multi-krum": {"worker.0"}, "both": {"worker.0", "server.0"}}
    if name in keys:
        wanted = {f"{place}.{k}.{part}" for place in keys[name] for k in (0, 2, 4) for part in ("weight", "bias")}
        assert set(found[0][f"keys: {name}"]) == wanted | {"rank", "ranks", "algorithm", "step"}


STATES = {
    "a neighbour's": "the state of rank 1 here, got that of rank 2",
    "rank 0's": "got that of rank 0",
    "more ranks'": "a state of 5 ranks, got one of 6",
    "another algorithm's": "got one of M",
} | ddp_ranks.OTHERS


@pytest.mark.parametrize("key", STATES)
def test_a_state_that_is_not_ones_own_is_refused_on_every_rank(found: list[dict[str, Any]], key: str) -> None:
    for each in found:
        assert STATES[key] in each[f"state: {key}"]


@pytest.mark.parametrize("name", ["median", "multi-krum", "clip, multi-krum", "nnm, trimmed-mean", "bulyan"])
def test_traffic_is_that_of_a_ring_all_reduce(found: list[dict[str, Any]], name: str) -> None:
    for each in found:
        assert 1 <= each[f"traffic: {name}"] < 1.05


def test_a_dying_rank_fails_the_job(tmp_path: Path) -> None:
    heard = ranks.start(3, tmp_path, ddp_ranks.death, may_die=True)
    assert heard[2] is None
    for line in heard[:2]:
        assert line.startswith("step 3:"), line


def torchrun(folder: Path, *arguments: str) -> str:
    example = Path(__file__).parents[1] / "examples" / "ddp_faulty_rank.py"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", *arguments]
    command[command.index("EXAMPLE")] = str(example)
    done = programs.run(*command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example(tmp_path: Path) -> None:
    lines = torchrun(tmp_path, "EXAMPLE", "--steps", "70").splitlines()
    table = lines[lines.index("training                 accuracy after 70 steps") + 1 :]
    found = {line[:25].strip(): float(line[25:].strip("%")) for line in table if "%" in line}
    assert found["plain, no fault"] > 80
    for fault in ("NaN", "flipped bits"):
        assert found[f"plain, {fault}"] < 15
        assert found[f"protected, {fault}"] > 75
    assert (tmp_path / "ddp_faulty_rank.png").stat().st_size > 10_000
    assert sum(line.startswith("  suspicion >= 0.5 over 20 steps: names 1 of 1 attackers") for line in lines) == 2


def test_a_restart_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    text = torchrun(tmp_path, "--max-restarts", "1", "EXAMPLE", "--steps", "40", "--crash-at", "30")
    steps = ["started at step 0", "rank 1 dies at step 30", "started again at step 20", "done at step 40"]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)


def test_engines_are_imported_when_they_are_named() -> None:
    script = (
        "import sys, varangian as vg\n"
        "assert not any(m.startswith('varangian.engines.') for m in sys.modules)\n"
        "assert 'flwr' not in sys.modules and 'ray' not in sys.modules\n"
        "assert callable(vg.engines.ddp.protect)\n"
        "try: vg.engines.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "no attribute 'nothing'; engines: ddp, flower, fsdp" in done.stdout
