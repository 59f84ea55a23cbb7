"""What the ranks of test_quarantine_ranks.py do: this file is imported by processes that know nothing of pytest."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import varangian as vg
from ddp_ranks import RATE, batch, digest, flat, message_of, model, simulated
from ranks import has_fsdp
from varangian.engines import ddp

STEPS, HOSTILE = 11, 3
POLICY = vg.Quarantine(window=2, threshold=0.6, term=3)  # away in steps 2 to 4, and from 7 on for 6
WORKER = (vg.Momentum(0.5),)
ALGORITHMS = {
    "median": vg.Algorithm(worker=WORKER, rule=vg.Median(f=1)),
    "trimmed-mean, f lowered": vg.Algorithm(worker=WORKER, rule=vg.TrimmedMean(f=1)),
    "geometric-median": vg.Algorithm(rule=vg.GeometricMedian(f=1), server=WORKER),
    "nnm, median, f lowered": vg.Algorithm(pre=(vg.NearestNeighborMixing(f=1),), rule=vg.Median(f=1)),
    "centered-clipping": vg.Algorithm(rule=vg.CenteredClipping(f=1, tau=0.3)),
}
ALGORITHMS = {
    name: replace(algorithm, quarantine=replace(POLICY, lower_f="lowered" in name))
    for name, algorithm in ALGORITHMS.items()
}


def gradient(module: nn.Module, step: int, rank: int) -> None:
    """One rank is turned and far off; in one step while it is away it sends NaN, which nobody sees."""
    x, y = batch(step, rank)
    factor = 1.0 if rank != HOSTILE else float("nan") if step == 3 else -20.0
    (factor * cross_entropy(module(x), y)).backward()


def protected(engine: str, algorithm: vg.Algorithm) -> tuple[nn.Module, Any]:
    module = model()
    if engine == "fsdp":
        from torch.distributed.fsdp import fully_shard

        from varangian.engines import fsdp

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in module:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        whole = fully_shard(module, mesh=mesh)
        return whole, fsdp.protect(whole, algorithm)
    wrapped = DistributedDataParallel(module, bucket_cap_mb=6e-4)
    return wrapped, ddp.protect(wrapped, algorithm, replicated=engine == "replicated")


def run(engine: str, algorithm: vg.Algorithm, rank: int, until: int = STEPS, state: Any = None) -> dict[str, Any]:
    whole, protection = protected(engine, algorithm)
    optimizer = torch.optim.SGD(whole.parameters(), lr=RATE)
    first = 0
    if state is not None:
        parameters, memory, first = state
        torch.nn.utils.vector_to_parameters(parameters, whole.parameters())
        protection.load_state_dict(memory)
    for step in range(first, until):
        optimizer.zero_grad()
        gradient(whole, step, rank)
        optimizer.step()
    report = protection.report()
    return {
        "digest": digest(whole) if engine != "fsdp" else "",
        "excluded": [s.excluded for s in report.workers],
        "dropped": [s.dropped for s in report.workers],
        "weight": report.weight[:, HOSTILE].tolist(),
        "parameters": flat(whole.parameters()) if engine != "fsdp" else None,
        "state": (kept := protection.state_dict()),
        "watched": {name: x.tolist() for name, x in kept.items() if name.startswith("quarantine.")},
        "text": str(report),
    }


def everything(rank: int, size: int, folder: Path) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, algorithm in ALGORITHMS.items():
        wanted = simulated(algorithm, size, gradient, STEPS) if rank == 0 else None  # of the same digest are all
        for engine in ("pieces", "replicated"):
            got = run(engine, algorithm, rank)
            parameters = got.pop("parameters")
            got["difference"] = 0.0 if wanted is None else float((parameters - wanted).abs().max())
            del got["state"]
            found[f"{engine}: {name}"] = got
    algorithm = ALGORITHMS["median"]
    half = run("pieces", algorithm, rank, 6)
    rest = run("pieces", algorithm, rank, STEPS, (half["parameters"], half["state"], 6))
    found["resumed"] = {name: rest[name] for name in ("digest", "watched")}
    bare = {name: x for name, x in half["state"].items() if not name.startswith("quarantine.")}
    wrong = half["state"] | {"quarantine.terms": half["state"]["quarantine.terms"] - 1}
    mixed = half["state"] | {"quarantine.suspicion": torch.full((size, 2), 0.25 if rank else 0.5, dtype=torch.float64)}
    for name, state in (("bare", bare), ("wrong", wrong), ("mixed", mixed)):
        _, protection = protected("pieces", algorithm)
        found[name] = message_of(lambda p=protection, s=state: p.load_state_dict(s))
    for name in ("median", "nnm, median, f lowered") if has_fsdp() else ():
        found[f"fsdp: {name}"] = run("fsdp", ALGORITHMS[name], rank)
        del found[f"fsdp: {name}"]["state"]
    small = vg.Algorithm(rule=vg.Median(f=0), quarantine=POLICY)
    found["no room"] = message_of(lambda: ddp.protect(DistributedDataParallel(model()), small))
    return found
