"""What the ranks of test_fsdp.py do: this file is imported by processes that know nothing of pytest."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import varangian as vg
from ddp_ranks import FAULTS, RATE, accuracy, batch, counted, message_of, model
from varangian.engines.fsdp import protect

STEPS, FAULTY_STEPS = 10, 25
FAULTY = ("nan", "zeros", "1e30", "upside down")
WORKER = (vg.Momentum(0.9),)
UNITS = ("0", "2", "4")  # the linear layers of the model, each a unit
EQUAL = {
    "median": vg.Algorithm(rule=vg.Median(1)),
    "phocas": vg.Algorithm(worker=WORKER, rule=vg.Phocas(1), server=(vg.Momentum(0.5),)),
    "meamed": vg.Algorithm(rule=vg.MeaMed(1)),
    "trimmed-mean": vg.Algorithm(worker=WORKER, rule=vg.TrimmedMean(1)),
    "average": vg.Algorithm(),
    "krum": vg.Algorithm(rule=vg.Krum(0)),
    "multi-krum": vg.Algorithm(worker=(vg.Clip(0.5), *WORKER), rule=vg.MultiKrum(0)),
    "bulyan": vg.Algorithm(rule=vg.Bulyan(0)),
    "nnm, geometric-median": vg.Algorithm(pre=(vg.NearestNeighborMixing(1),), rule=vg.GeometricMedian(1)),
    "centered-clipping": vg.Algorithm(rule=vg.CenteredClipping(1, tau=0.3)),
}
BITWISE = {"median", "phocas", "meamed", "trimmed-mean", "average"}


def shard(module: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in module:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def full(module: nn.Module) -> Tensor:
    return torch.cat([p.full_tensor().detach().reshape(-1) for p in module.parameters()])


def digest(vector: Tensor) -> str:
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


def simulated(algorithm: vg.Algorithm, size: int, halves: bool = False) -> Tensor:
    """The same training in one process, each unit being aggregated by itself; of batches in two halves, perhaps."""
    module = model()
    units = [list(layer.parameters()) for layer in module if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    states = [algorithm.init(size, sum(p.numel() for p in unit)) for unit in units]
    for step in range(STEPS):
        rows: list[list[Tensor]] = [[] for _ in units]
        for rank in range(size):
            optimizer.zero_grad()
            x, y = batch(step, rank)
            if halves:
                cross_entropy(module(x[:4]), y[:4]).backward()
                x, y = x[4:], y[4:]
            cross_entropy(module(x), y).backward()
            for collected, unit in zip(rows, units, strict=True):
                collected.append(torch.cat([p.grad.reshape(-1) for p in unit]))
        for k, unit in enumerate(units):
            vectors, states[k] = algorithm.send(torch.stack(rows[k]), states[k])
            update, states[k] = algorithm.aggregate(vectors, states[k])
            at = 0
            for p in unit:
                p.grad = update[at : at + p.numel()].view_as(p).clone()
                at += p.numel()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def train(
    rank: int, algorithm: vg.Algorithm, steps: int = STEPS, fault: Callable[[Tensor], Tensor] | None = None,
    faulty: tuple[int, ...] = (), accumulate: bool = False, **options: Any,
) -> tuple[nn.Module, Any]:  # fmt: skip
    module = shard(model())
    protection = protect(module, algorithm, **options)
    go_on(rank, module, 0, steps, fault if rank in faulty else None, accumulate)
    return module, protection


def go_on(
    rank: int, module: nn.Module, start: int, stop: int, fault: Callable[[Tensor], Tensor] | None = None,
    accumulate: bool = False,
) -> None:  # fmt: skip
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for step in range(start, stop):
        optimizer.zero_grad()
        x, y = batch(step, rank)
        if accumulate:
            module.set_requires_gradient_sync(False)
            cross_entropy(module(x[:4]), y[:4]).backward()
            module.set_requires_gradient_sync(True)
            x, y = x[4:], y[4:]
        loss = cross_entropy(module(x), y)
        if fault is not None:
            loss = Corrupted.apply(loss, fault)
        loss.backward()
        optimizer.step()


class Corrupted(torch.autograd.Function):
    """The gradient of everything before, multiplied by what the fault makes of one."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, fault: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.fault = fault
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.fault(gradient), None


def everything(rank: int, size: int, folder: Path) -> dict[str, Any]:
    warnings.simplefilter("error")
    found: dict[str, Any] = {}
    for name, algorithm in EQUAL.items():
        module, _ = train(rank, algorithm)
        got = full(module)
        found[f"digest: {name}"] = digest(got)
        if rank == 0:
            expected = simulated(algorithm, size)
            found[f"equal: {name}"] = float((got - expected).abs().max()), torch.equal(got, expected)
    module, _ = train(rank, EQUAL["trimmed-mean"], accumulate=True)
    found["accumulated"] = float((full(module) - simulated(EQUAL["trimmed-mean"], size, halves=True)).abs().max())

    def gathered(module: nn.Module) -> float:
        plain = model()
        at, vector = 0, full(module)
        for p in plain.parameters():
            p.data.copy_(vector[at : at + p.numel()].view_as(p))
            at += p.numel()
        return accuracy(plain)

    for name in FAULTY:
        module, protection = train(rank, EQUAL["trimmed-mean"], FAULTY_STEPS, FAULTS[name], (2,))
        found[f"fault: {name}"] = gathered(module), protection.report()
    module, _ = train(rank, EQUAL["average"], FAULTY_STEPS, FAULTS["nan"], (2,))
    found["unprotected"] = gathered(module)
    lines: list[str] = []
    train(rank, EQUAL["median"], 6, FAULTS["nan"], (2,), window=5, warn=lines.append)
    found["lines"] = lines
    for name in ("median", "nnm, geometric-median"):
        found[f"too many: {name}"] = message_of(lambda a=EQUAL[name]: train(rank, a, 3, FAULTS["nan"], (1, 2)))

    def refused(algorithm: vg.Algorithm) -> str:
        return message_of(lambda: protect(shard(model()), algorithm))

    found["refused"] = [
        refused(vg.Algorithm(rule=vg.MultiKrum(1))),
        refused(vg.Algorithm(rule=vg.DivideAndConquer(1))),
        refused(vg.Algorithm(worker=(vg.Momentum(0.9, nesterov=True),))),
        refused(vg.Algorithm(worker=(vg.SharedMomentum(0.9),))),
        refused(vg.Algorithm(server=(vg.Clip(1.0),))),
        message_of(lambda: protect(model(), EQUAL["median"])),
        message_of(lambda: protect(DistributedDataParallel(model()), EQUAL["median"])),
    ]
    for name in ("phocas", "centered-clipping"):
        module, protection = train(rank, EQUAL[name], 6)
        torch.save({"protection": protection.state_dict()}, folder / f"{rank}.pt")
        saved = torch.load(folder / f"{rank}.pt", weights_only=True)["protection"]
        found[f"keys: {name}"] = sorted(saved)
        resumed = shard(model())
        again = protect(resumed, EQUAL[name])
        for target, source in zip(resumed.parameters(), module.parameters(), strict=True):
            target.data.copy_(source.data)
        again.load_state_dict(saved)
        found[f"kept: {name}"] = all(torch.equal(again.state_dict()[k], saved[k]) for k in saved)
        go_on(rank, resumed, 6, 12)
        once, _ = train(rank, EQUAL[name], 12)
        found[f"resumed: {name}"] = torch.equal(full(resumed), full(once))
        found["bad state"] = message_of(lambda p=again: p.load_state_dict({"worker.0.nothing": torch.zeros(1)}))
    for name in ("median", "nnm, geometric-median"):
        torch.manual_seed(0)
        module = shard(nn.Sequential(nn.Linear(10, 1500), nn.Linear(1500, 40), nn.Linear(40, 3)))
        protect(module, EQUAL[name])
        for step in range(2):
            x, y = batch(step, rank)
            loss = cross_entropy(module(x), y)
            with counted() as sent:
                loss.backward()
        d = sum(p.numel() for p in module.parameters())
        found[f"traffic: {name}"] = sent[0] / (4 * d * (size - 1) / size)
    return found
