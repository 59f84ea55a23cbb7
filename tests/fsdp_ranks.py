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
from torch.nn.functional import cross_entropy, linear
from torch.nn.parallel import DistributedDataParallel

import varangian as vg
from ddp_ranks import (
    FAILING,
    FAULTS,
    OWN,
    RATE,
    accuracy,
    allowed,
    batch,
    counted,
    error_of,
    message_of,
    model,
    others,
    simulated_step,
)
from varangian.engines.fsdp import protect

STEPS, FAULTY_STEPS = 7, 15
FAULTY = ("nan", "zeros", "1e30", "upside down")
WORKER = (vg.Momentum(0.9),)
UNITS = ("0", "2", "4")  # the linear layers of the model, each a unit
EQUAL = {
    "median": vg.Algorithm(rule=vg.Median(1)),
    "phocas": vg.Algorithm(worker=WORKER, rule=vg.Phocas(1), server=(vg.Momentum(0.5),)),
    "meamed": vg.Algorithm(rule=vg.MeaMed(1)),
    "trimmed-mean": vg.Algorithm(worker=WORKER, rule=vg.TrimmedMean(1)),
    "krum": vg.Algorithm(rule=vg.Krum(0)),
    "multi-krum": vg.Algorithm(worker=(vg.Clip(0.5), *WORKER), rule=vg.MultiKrum(0)),
    "bulyan": vg.Algorithm(rule=vg.Bulyan(0)),
    "nnm, geometric-median": vg.Algorithm(pre=(vg.NearestNeighborMixing(1),), rule=vg.GeometricMedian(1)),
    "centered-clipping": vg.Algorithm(rule=vg.CenteredClipping(1, tau=0.3)),
}
BITWISE = {"median", "phocas", "meamed", "trimmed-mean"}


def shard(module: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in module:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


SPOILT: set[str] = set()  # layers whose parameters get NaN on this rank


class Spoil(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (torch.full_like(gradient, NAN) if ctx.name in SPOILT else gradient), None


def spoilable(module: nn.Module) -> nn.Module:
    for name, layer in module.named_children():
        if isinstance(layer, nn.Linear):
            layer.forward = lambda x, layer=layer, name=name: linear(
                x, Spoil.apply(layer.weight, name), Spoil.apply(layer.bias, name)
            )
    return module


def full(module: nn.Module) -> Tensor:
    return torch.cat([p.full_tensor().detach().reshape(-1) for p in module.parameters()])


def digest(vector: Tensor) -> str:
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


NAN = float("nan")
BAD = {  # who sends NaN in which unit at which step; of f = 1
    "one, once": {2: ("2", (1,))},
    "first step refused": {0: ("0", (1, 2))},
    "the first unit reduced": {3: ("4", (0, 1))},
    "the last unit reduced": {3: ("0", (0, 1)), 4: ("0", (1, 2))},
    "in between, running": {2: ("2", (0, 1, 2)), 3: ("2", (0, 2)), 5: ("4", (2,))},
}
BAD_UNDER = ("phocas", "trimmed-mean", "nnm, geometric-median", "centered-clipping")
Bad = dict[int, tuple[str, tuple[int, ...]]]


def simulated(algorithm: vg.Algorithm, size: int, halves: bool = False, bad: Bad | None = None) -> Tensor:
    """The same training in one process, each unit being aggregated by itself; of batches in two halves, perhaps, or
    with NaN in a unit's gradients. A step that is refused in one unit is none in any."""
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
        name, spoils = (bad or {}).get(step, ("", ()))
        for rank in spoils:
            rows[UNITS.index(name)][rank][:] = NAN
        try:
            done = [
                simulated_step(algorithm, torch.stack(collected), state)
                for collected, state in zip(rows, states, strict=True)
            ]
        except vg.Refused:
            continue
        states = [state for _, state in done]
        for unit, (update, _) in zip(units, done, strict=True):
            at = 0
            for p in unit:
                p.grad = update[at : at + p.numel()].view_as(p).clone()
                at += p.numel()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def train(
    rank: int, algorithm: vg.Algorithm, steps: int = STEPS, fault: Callable[[Tensor], Tensor] | None = None,
    faulty: tuple[int, ...] = (), accumulate: bool = False, bad: Bad | None = None, **options: Any,
) -> tuple[nn.Module, Any]:  # fmt: skip
    module = shard(spoilable(model()))
    with allowed(algorithm.rule):
        protection = protect(module, algorithm, **options)
    go_on(rank, module, 0, steps, fault if rank in faulty else None, accumulate, bad)
    return module, protection


def go_on(
    rank: int, module: nn.Module, start: int, stop: int, fault: Callable[[Tensor], Tensor] | None = None,
    accumulate: bool = False, bad: Bad | None = None,
) -> None:  # fmt: skip
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for step in range(start, stop):
        optimizer.zero_grad()
        name, spoils = (bad or {}).get(step, ("", ()))
        SPOILT.clear()
        SPOILT.update({name} if rank in spoils else ())
        x, y = batch(step, rank)
        if accumulate:
            module.set_requires_gradient_sync(False)
            cross_entropy(module(x[:4]), y[:4]).backward()
            module.set_requires_gradient_sync(True)
            x, y = x[4:], y[4:]
        loss = cross_entropy(module(x), y)
        if fault is not None:
            loss = Corrupted.apply(loss, fault)
        try:
            loss.backward()
        except vg.Refused:
            assert all(p.grad is None for p in module.parameters())
            if bad is None:
                raise
            continue
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


BOTH = ("left", "right"), ("a", "b")


class Fork(nn.Module):
    """Two units, and two layers in the unit around them, of which a forward pass takes some."""

    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.left, self.right = nn.Linear(10, 8), nn.Linear(10, wide)
        self.a, self.b = nn.Linear(8, 3, bias=False), nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor, layers: tuple[str, ...], head: tuple[str, ...]) -> Tensor:
        h = torch.stack([self.get_submodule(name)(x)[:, :8] for name in layers]).sum(0)
        return torch.stack([self.get_submodule(name)(h) for name in head]).sum(0)


def no_steps(rank: int, size: int) -> dict[str, Any]:
    """What is no step of the algorithm: said on every rank, with nothing moved and nothing remembered."""
    found: dict[str, Any] = {}
    x, y = batch(0, rank)
    x.requires_grad_()  # a unit is reduced as soon as its input's gradient is there: twice if it is called twice
    mesh = init_device_mesh("cpu", (size,))

    def plain(wide: int = 8) -> nn.Module:
        module = Fork(wide)
        for unit in (module.left, module.right, module):
            fully_shard(unit, mesh=mesh)
        return module

    def fresh(wide: int = 8) -> tuple[nn.Module, Any]:
        module = plain(wide)
        return module, protect(module, EQUAL["trimmed-mean"])

    def tried(key: str, *passes: tuple[tuple[str, ...], tuple[str, ...]], wide: int = 8, zero: bool = False) -> None:
        module, protection = fresh(wide)

        def work() -> None:
            for layers, head in passes:
                if zero:
                    module.zero_grad()
                cross_entropy(module(x, layers, head), y).backward()

        found[f"none: {key}"] = message_of(work)
        found[f"none: {key}, moved"] = any(p.grad is not None for p in module.parameters())
        found[f"none: {key}, steps"] = protection.report().steps
        if "unit" not in key:  # and the next is a step again; where a forward pass failed, it is none
            module.zero_grad()
            found[f"none: {key}, next"] = message_of(lambda: cross_entropy(module(x, *BOTH), y).backward())

    one = ("left",) if rank == 1 else ("right",)
    tried("two backward passes", BOTH, BOTH)
    tried("units by rank", (one, ("a", "b")))
    tried("units by rank, unequal", (one, ("a", "b")), wide=20)
    tried("a unit that one rank lacks", (("left",) if rank == 1 else ("left", "right"), ("a", "b")))
    tried("parameters by rank", (("left", "right"), ("a",) if rank == 1 else ("b",)))
    tried("fewer parameters on one rank", (("left", "right"), ("a",) if rank == 1 else ("a", "b")))
    tried("others than before", BOTH, (("left", "right"), ("a",)), zero=True)

    # A unit that is called twice is one unit still: of equal gradients the rule makes the gradient.
    alike, label = batch(0, 0)
    alike.requires_grad_()
    module, alone = fresh()[0], Fork()
    for each in (module, alone):
        cross_entropy(each(alike, ("left", "left", "right"), ("a", "b")), label).backward()
    pairs = zip(module.parameters(), alone.parameters(), strict=True)
    found["called twice"] = max(float((p.grad.full_tensor() - q.grad).abs().max()) for p, q in pairs)

    used = ("left", "right"), ("a",)
    module, protection = fresh()
    cross_entropy(module(x, *used), y).backward()
    saved = protection.state_dict()
    expected = [m.clone() for k, m in saved.items() if k.startswith("worker")]
    found["partial keys"] = sorted(k for k in saved if k.startswith("used"))
    module, protection = fresh()
    protection.load_state_dict(saved)
    found["partial, all"] = message_of(lambda: cross_entropy(module(x, *BOTH), y).backward())
    kept = protection.state_dict()
    found["partial, kept"] = all(torch.equal(kept[k], saved[k]) for k in saved)
    module.zero_grad()
    cross_entropy(module(x, *used), y).backward()
    after = [m for k, m in protection.state_dict().items() if k.startswith("worker")]
    found["partial, resumed"] = max(float((a - 1.9 * b).abs().max()) for a, b in zip(after, expected, strict=True))

    module, protection = fresh()
    cross_entropy(module(x, ("left",), ("a", "b")), y).backward()
    saved = protection.state_dict()
    found["unused unit, keys"] = sorted(k for k in saved if k.startswith("used"))
    module, protection = fresh()
    protection.load_state_dict(saved)
    kept = protection.state_dict()
    found["unused unit, kept"] = kept.keys() == saved.keys() and all(torch.equal(kept[k], saved[k]) for k in saved)
    found["unused unit, next"] = message_of(lambda: cross_entropy(module(x, *BOTH), y).backward())
    saved = protection.state_dict()
    without = {k: v for k, v in saved.items() if not k.endswith(".right")} | {"used.right": torch.empty(0).byte()}
    found["unused unit, by rank"] = message_of(lambda: protection.load_state_dict(without if rank == 1 else saved))

    module, _ = fresh()
    module.set_reduce_scatter_unused_params(True)
    cross_entropy(module(x, *BOTH), y).backward()
    module.zero_grad()
    used = (("left", "right"), ("a",) if rank == 1 else ("b",))
    found["zeros"] = message_of(lambda: cross_entropy(module(x, *used), y).backward())

    module, protection = fresh()
    protection.remove()
    cross_entropy(module(x, *BOTH), y).backward()
    other = plain()
    cross_entropy(other(x, *BOTH), y).backward()
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    found["removed"] = max(float((p.grad.to_local() - q.grad.to_local()).abs().max()) for p, q in pairs if p.numel())
    return found


def own_errors(rank: int) -> dict[str, Any]:
    """A stage of the user's own that fails on one rank at one step: no rank takes it, and training is that without."""
    found: dict[str, Any] = {}
    for name in ("worker", "server", "apply"):
        where, algorithm, _ = OWN[name]
        module = shard(model())
        with allowed(algorithm.rule):
            protection = protect(module, algorithm)
        go_on(rank, module, 0, 2)
        module.zero_grad()
        before = protection.state_dict()
        FAILING.update({where} if rank == 1 else ())
        x, y = batch(7, rank)
        found[f"own: {name}"] = error_of(lambda m=module, x=x, y=y: cross_entropy(m(x), y).backward())
        FAILING.clear()
        after = protection.state_dict()
        found[f"own: {name}, moved"] = any(p.grad is not None for p in module.parameters()) or any(
            not torch.equal(memory, after[k]) for k, memory in before.items()
        )
        go_on(rank, module, 2, STEPS)
        found[f"own: {name}, difference"] = float((full(module) - simulated(algorithm, 3)).abs().max())
    return found


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
    module = shard(model())
    go_on(rank, module, 0, FAULTY_STEPS, FAULTS["nan"] if rank == 2 else None)
    found["unprotected"] = gathered(module)
    for k, (name, bad) in enumerate(BAD.items()):
        for i, algorithm in enumerate(BAD_UNDER):
            on_refusal = "skip" if (k + i) % 2 else "raise"
            module, protection = train(rank, EQUAL[algorithm], bad=bad, on_refusal=on_refusal)
            report, got = protection.report(), full(module)
            found[f"bad: {name}, {algorithm}"] = digest(got), (report.steps, report.skipped)
            if rank == 0:
                expected = simulated(EQUAL[algorithm], size, bad=bad)
                found[f"bad: {name}, {algorithm}, difference"] = float((got - expected).abs().max())
    bad = BAD["in between, running"]
    module, _ = train(rank, EQUAL["phocas"], accumulate=True, bad=bad)
    expected = simulated(EQUAL["phocas"], size, halves=True, bad=bad)
    found["bad: accumulated"] = float((full(module) - expected).abs().max())
    said: list[str] = []
    train(rank, EQUAL["median"], bad=bad, on_refusal="skip", warn=said.append)
    found["skipped"] = said
    found |= no_steps(rank, size)
    found |= own_errors(rank)
    lines: list[str] = []
    train(rank, EQUAL["median"], 6, FAULTS["nan"], (2,), window=5, warn=lines.append)
    found["lines"] = lines
    for name in ("median", "nnm, geometric-median"):
        found[f"too many: {name}"] = message_of(lambda a=EQUAL[name]: train(rank, a, 3, FAULTS["nan"], (1, 2)))

    def refused(algorithm: vg.Algorithm) -> str:
        return message_of(lambda: protect(shard(model()), algorithm))

    protected = shard(model())
    protection = protect(protected, EQUAL["median"])
    found["refused"] = [
        refused(vg.Algorithm(rule=vg.MultiKrum(1))),
        refused(vg.Algorithm(rule=vg.DivideAndConquer(1))),
        refused(vg.Algorithm(worker=(vg.Momentum(0.9, nesterov=True),), rule=vg.Median(1))),
        refused(vg.Algorithm(worker=(vg.SharedMomentum(0.9),), rule=vg.Median(1))),
        refused(vg.Algorithm(server=(vg.Clip(1.0),), rule=vg.Median(1))),
        message_of(lambda: protect(model(), EQUAL["median"])),
        message_of(lambda: protect(DistributedDataParallel(model()), EQUAL["median"])),
        refused(vg.Algorithm(worker=WORKER)),
        refused(vg.Algorithm(rule=vg.Median(1 if rank else 0))),
        message_of(lambda: protect(protected, EQUAL["median"])),
        message_of(lambda: protect(protected[0], EQUAL["median"])),
    ]
    protection.remove()
    found["refused"].append(message_of(lambda: protect(protected, EQUAL["median"])))
    found["heard"] = [
        refused(vg.Algorithm(rule=vg.Median(2 if rank == 1 else 1))),
        message_of(lambda: protect(model() if rank == 1 else shard(model()), EQUAL["median"])),
        message_of(lambda: protect(shard(model()), EQUAL["median"], window=0 if rank == 1 else 5)),
    ]
    for name in ("phocas", "centered-clipping"):
        module, protection = train(rank, EQUAL[name], 3)
        torch.save({"protection": protection.state_dict()}, folder / f"{rank}.pt")
        saved = torch.load(folder / f"{rank}.pt", weights_only=True)["protection"]
        found[f"keys: {name}"] = sorted(saved)
        resumed = shard(model())
        again = protect(resumed, EQUAL[name])
        for target, source in zip(resumed.parameters(), module.parameters(), strict=True):
            target.data.copy_(source.data)
        again.load_state_dict(saved)
        found[f"kept: {name}"] = all(torch.equal(again.state_dict()[k], saved[k]) for k in saved)
        go_on(rank, resumed, 3, 6)
        once, _ = train(rank, EQUAL[name], 6)
        found[f"resumed: {name}"] = torch.equal(full(resumed), full(once))
        key = next(k for k in saved if "." in k)
        states = others(rank, saved) | {
            "unit": saved | {"worker.0.nothing": saved[key]},
            "without a unit": {k: v for k, v in saved.items() if not k.endswith(".2")},
            "without any": {k: v for k, v in saved.items() if "." not in k},
        }
        before = again.state_dict()
        for which, state in states.items():
            found[f"state: {which}"] = message_of(lambda p=again, s=state: p.load_state_dict(s))
        kept = again.state_dict()
        found[f"still: {name}"] = before.keys() == kept.keys() and all(torch.equal(before[k], kept[k]) for k in kept)
        first = protect(shard(model()), EQUAL[name])
        found[f"fresh: {name}"] = message_of(lambda p=first: p.load_state_dict(p.state_dict()))
    for name in ("median", "nnm, geometric-median"):
        torch.manual_seed(0)
        module = shard(nn.Sequential(nn.Linear(10, 1500), nn.Linear(1500, 40), nn.Linear(40, 3)))
        protect(module, EQUAL[name])
        for step in range(2):
            module.zero_grad()
            x, y = batch(step, rank)
            loss = cross_entropy(module(x), y)
            with counted() as sent:
                loss.backward()
        d = sum(-(-p.shape[0] // size) * size * (p.numel() // p.shape[0]) for p in module.parameters())  # as padded
        found[f"traffic: {name}"] = sent[0] / (4 * d * (size - 1) / size)
    return found
