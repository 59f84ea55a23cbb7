"""What the ranks of test_waits.py do: the engines as on devices, where the host would wait for every number that it
reads, so that reads are counted. This file is imported by processes that know nothing of pytest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fsdp_ranks
import varangian as vg
from ddp_ranks import CAP, FAILING, FAULTS, OWN, allowed, batch, digest, error_of, message_of, model
from fsdp_ranks import BAD, BOTH, Fork, full, go_on, shard, simulated, spoilable
from varangian.core import kernels, stages
from varangian.engines import ddp, fsdp
from varangian.engines.sharded import Ranks

STEPS, RATE = 3, 0.2
WORKER = (vg.Momentum(0.9),)
COLUMNS = {
    "median": vg.Algorithm(rule=vg.Median(1)),
    "momentum, phocas, momentum": vg.Algorithm(worker=WORKER, rule=vg.Phocas(1), server=(vg.Momentum(0.5),)),
    "clip, trimmed-mean": vg.Algorithm(worker=(vg.Clip(0.5), *WORKER), rule=vg.TrimmedMean(1)),
}
DISTANCES = {
    "momentum, monna": vg.Algorithm(worker=WORKER, rule=vg.MoNNA(1)),
    "nnm, median": vg.Algorithm(pre=(vg.NearestNeighborMixing(1),), rule=vg.Median(1)),
    "centered-clipping": vg.Algorithm(rule=vg.CenteredClipping(1, tau=0.3)),
}
ALGORITHMS = COLUMNS | DISTANCES
CAPS = {1: 25.0, 2: CAP, 6: 1e-6}  # MB a bucket, to how many of them


@contextmanager
def devices(waits: bool = True) -> Iterator[list[int]]:
    """[reads] of the host; tensors are taken to be on devices, where refusals can be deferred."""
    reads, host, property_, refuse = [0], kernels.host, Ranks.waits, stages.refuse_faulty

    def counting(*tensors: Tensor) -> Any:
        reads[0] += 1
        return host(*tensors)

    def refusing(stage: Any, f: int, faulty: int | Tensor) -> None:
        if not (waits and isinstance(faulty, Tensor) and stages._pending.get() is not None):
            refuse(stage, f, faulty)

    kernels.host, Ranks.waits = counting, waits  # type: ignore[method-assign, assignment]
    stages.refuse_faulty = refusing
    try:
        yield reads
    finally:
        kernels.host, Ranks.waits = host, property_  # type: ignore[method-assign]
        stages.refuse_faulty = refuse


def ddp_steps(rank: int, algorithm: vg.Algorithm, cap: float, replicated: bool = False) -> dict[str, Any]:
    """Reads of each step and of all of it but its last bucket, and what became of the parameters."""
    module = model()
    wrapped = DistributedDataParallel(module, bucket_cap_mb=cap)
    with allowed(algorithm.rule):
        protection = ddp.protect(wrapped, algorithm, replicated=replicated)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=RATE)
    found: dict[str, Any] = {"reads": [], "before the last": [], "buckets": []}
    complete = protection._complete
    with devices() as reads:

        def completing(buckets: Any) -> list[Tensor]:
            found["before the last"].append(reads[0] - found["began"])
            found["buckets"].append(len(buckets))
            return complete(buckets)

        protection._complete = completing  # type: ignore[method-assign]
        for step in range(STEPS):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            x, y = batch(step, rank)
            loss = cross_entropy(wrapped(x), y)
            found["began"] = reads[0]
            loss.backward()
            found["reads"].append(reads[0] - found["began"])
            optimizer.step()
        before = reads[0]
        found["report"] = str(protection.report())
        found["reads of the report"] = reads[0] - before
    return found | {"digest": digest(module)}


def scaler_reads(rank: int) -> list[int]:
    """With a gradient scaler: its own reads are its own."""
    wrapped = DistributedDataParallel(model(), bucket_cap_mb=CAP)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ddp.protect(wrapped, COLUMNS["median"], scaler=scaler)
    asked = [0]
    get_scale = scaler.get_scale
    scaler.get_scale = lambda: (asked.__setitem__(0, asked[0] + 1), get_scale())[1]  # type: ignore[method-assign]
    with devices() as reads:
        x, y = batch(0, rank)
        scaler.scale(cross_entropy(wrapped(x), y)).backward()
    return [reads[0], asked[0]]


def fsdp_steps(
    rank: int, algorithm: vg.Algorithm, waits: bool, policy: MixedPrecisionPolicy | None = None, zeros: bool = False
) -> dict[str, Any]:
    """Reads of each step, and of all of it but its end."""
    mesh = init_device_mesh("cpu", (3,))
    module = model()
    for part in (*[layer for layer in module if isinstance(layer, nn.Linear)], module):
        fully_shard(part, mesh=mesh, **({} if policy is None else {"mp_policy": policy}))
    with allowed(algorithm.rule):
        protection = fsdp.protect(module, algorithm)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    found: dict[str, Any] = {"reads": [], "before the end": []}
    end = protection._ending._ended
    with devices(waits) as reads:

        def ending() -> None:
            found["before the end"].append(reads[0] - found["began"])
            end()

        protection._ending._ended = ending
        for step in range(STEPS):
            optimizer.zero_grad(set_to_none=not zeros)
            x, y = batch(step, rank)
            loss = cross_entropy(module(x).float(), y)
            found["began"] = reads[0]
            loss.backward()
            found["reads"].append(reads[0] - found["began"])
            optimizer.step()
    return found | {"bytes": full(module).numpy().tobytes(), "report": str(protection.report())}


def fsdp_trained(rank: int, algorithm: vg.Algorithm, **options: Any) -> tuple[bytes, float, tuple[int, int]]:
    """What training among bad gradients comes to, how far that is from the simulator's, and its steps and skipped
    ones."""
    bad = options["bad"]
    with devices():
        module = shard(spoilable(model()))
        with allowed(algorithm.rule):
            protection = fsdp.protect(module, algorithm)
        go_on(rank, module, 0, fsdp_ranks.STEPS, bad=bad)
        report, got = protection.report(), full(module)
    difference = 0.0 if rank else float((got - simulated(algorithm, 3, bad=bad)).abs().max())  # one asks for all
    return got.numpy().tobytes(), difference, (report.steps, report.skipped)


def no_steps(rank: int) -> dict[str, Any]:
    """What is no step: found at its end, on every rank, with nothing moved and nothing remembered."""
    found: dict[str, Any] = {}
    x, y = batch(0, rank)
    x.requires_grad_()

    def tried(
        key: str, algorithm: vg.Algorithm, *passes: tuple[tuple[str, ...], tuple[str, ...]], fails: str = ""
    ) -> None:
        mesh = init_device_mesh("cpu", (3,))
        module = Fork()
        for unit in (module.left, module.right, module):
            fully_shard(unit, mesh=mesh)
        protection = fsdp.protect(module, algorithm)
        before = protection.state_dict()

        def work() -> None:
            for layers, head in passes:
                cross_entropy(module(x, layers, head), y).backward()

        FAILING.update({fails} if rank == 1 else ())
        found[key] = error_of(work)
        FAILING.clear()
        found[f"{key}, moved"] = any(p.grad is not None for p in module.parameters())
        found[f"{key}, steps"] = protection.report().steps
        after = protection.state_dict()
        found[f"{key}, kept"] = len(passes) > 1 or all(torch.equal(before[k], after[k]) for k in before)
        found[f"{key}, next"] = message_of(lambda: cross_entropy(module(x, *BOTH), y).backward())

    one = ("left",) if rank == 1 else ("right",)
    for name in ("momentum, phocas, momentum", "centered-clipping"):
        algorithm = ALGORITHMS[name]
        tried(f"two backward passes, {name}", algorithm, BOTH, BOTH)
        tried(f"units by rank, {name}", algorithm, (one, ("a", "b")))
        tried(f"parameters by rank, {name}", algorithm, (("left", "right"), ("a",) if rank == 1 else ("b",)))
    for name in ("worker", "server", "apply"):
        where, algorithm, _ = OWN[name]
        tried(f"own {name}", algorithm, BOTH, fails=where)
    return found


def too_many(rank: int, algorithm: vg.Algorithm, protect: Callable[..., Any], wrap: Callable[[], nn.Module]) -> str:
    """What a step says in which two of three ranks send NaN, of f = 1."""
    module = wrap()
    with allowed(algorithm.rule):
        protect(module, algorithm)
    x, y = batch(0, rank)
    loss = cross_entropy(module(x), y)
    spoilt = FAULTS["nan"](loss.detach()) if rank else torch.ones_like(loss)
    said = message_of(lambda: loss.backward(spoilt))
    assert all(p.grad is None for p in module.parameters())
    return said


def everything(rank: int, size: int, folder: Path) -> dict[str, Any]:
    warnings.simplefilter("error")
    found: dict[str, Any] = {"scaler": scaler_reads(rank)}
    for name, algorithm in ALGORITHMS.items():
        for buckets, cap in CAPS.items():
            found[f"ddp: {name}, {buckets}"] = ddp_steps(rank, algorithm, cap)
        for waits in (True, False):
            found[f"fsdp: {name}, {waits}"] = fsdp_steps(rank, algorithm, waits)
        found[f"replicated: {name}"] = ddp_steps(rank, algorithm, CAP, replicated=True)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    halves = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for name in ("median", "centered-clipping"):
        for key, options in (("half", {"policy": half}), ("halves", {"policy": halves}), ("zeros", {"zeros": True})):
            for waits in (True, False):
                found[f"fsdp, {key}: {name}, {waits}"] = fsdp_steps(rank, ALGORITHMS[name], waits, **options)
        with devices():
            found[f"too many: {name}, ddp"] = too_many(
                rank, ALGORITHMS[name], ddp.protect, lambda: DistributedDataParallel(model(), bucket_cap_mb=CAP)
            )
            found[f"too many: {name}, fsdp"] = too_many(rank, ALGORITHMS[name], fsdp.protect, lambda: shard(model()))
    for name, bad in BAD.items():
        for algorithm in ("momentum, phocas, momentum", "centered-clipping"):
            found[f"bad: {name}, {algorithm}"] = fsdp_trained(rank, ALGORITHMS[algorithm], bad=bad)
    with devices():
        found |= no_steps(rank)
    return found
