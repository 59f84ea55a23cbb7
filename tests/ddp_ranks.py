"""What the ranks of test_ddp.py do: this file is imported by processes that know nothing of pytest."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import varangian as vg
from varangian.core.algorithm import State
from varangian.core.stages import General
from varangian.engines import sharded
from varangian.engines.ddp import Protection, protect
from varangian.engines.sharded import OnRefusal

STEPS, FAULTY_STEPS, RATE = 6, 15, 0.2
NAN = float("nan")
CAP = 6e-4  # MB a bucket: the model below takes two, once DistributedDataParallel has rebuilt them


def model(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(step: int, rank: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Three classes that a linear map tells apart, different points for each rank."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(size, 10, generator=generator)
    truth = torch.randn(10, 3, generator=torch.Generator().manual_seed(7))
    return x, (x @ truth).argmax(1)


def flat(tensors: Iterator[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def digest(module: nn.Module) -> str:
    return hashlib.sha256(flat(module.parameters()).double().numpy().tobytes()).hexdigest()


def accuracy(module: nn.Module) -> float:
    x, y = batch(10**6, 0, 500)
    return float((module(x).argmax(1) == y).float().mean())


Gradient = Callable[[nn.Module, int, int], None]  # (module, step, rank): leaves .grad


def plain_gradient(module: nn.Module, step: int, rank: int) -> None:
    x, y = batch(step, rank)
    cross_entropy(module(x), y).backward()


def simulated(
    algorithm: vg.Algorithm, size: int, gradient: Gradient = plain_gradient, steps: int = STEPS, lr: float = RATE,
    make: Callable[[], nn.Module] = model,
) -> Tensor:  # fmt: skip
    """The same training by the algorithm's own two halves, in one process: [d] the last parameters."""
    module = make()
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=lr)
    state = algorithm.init(size, sum(p.numel() for p in parameters))
    for step in range(steps):
        rows = []
        for rank in range(size):
            optimizer.zero_grad()
            gradient(module, step, rank)
            rows.append(
                torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in parameters])
            )
        try:
            update, state = simulated_step(algorithm, torch.stack(rows), state)
        except vg.Refused:
            continue
        at = 0
        for p in parameters:
            p.grad = update[at : at + p.numel()].view_as(p).clone()
            at += p.numel()
        optimizer.step()
    return flat(module.parameters())


def simulated_step(algorithm: vg.Algorithm, gradients: Tensor, state: State) -> tuple[Tensor, State]:
    vectors, state = algorithm.send(gradients, state)
    return algorithm.aggregate(vectors, state)


@dataclass
class Trained:
    """One protected training: was it the simulator's, and did all ranks end alike?"""

    digest: str
    difference: float  # greatest, from the simulator's parameters; NaN where nobody compared
    same_bits: bool
    accuracy: float
    report: Any
    traffic: float = 0.0


def train(
    rank: int, size: int, algorithm: vg.Algorithm, gradient: Gradient = plain_gradient, steps: int = STEPS,
    compare: bool = True, make: Callable[[], nn.Module] = model, options: dict[str, Any] | None = None,
    fault: Callable[[Tensor], Tensor] | None = None, faulty: tuple[int, ...] = (), replicated: bool = False,
    window: int = 100, warn: Callable[[str], None] | None = None, cap: float = CAP, goes_on: bool = False,
    on_refusal: OnRefusal = "raise",
) -> Trained:  # fmt: skip
    module = make()
    ddp = DistributedDataParallel(module, bucket_cap_mb=cap, **(options or {}))
    with allowed(algorithm.rule):
        protection = protect(ddp, algorithm, replicated=replicated, on_refusal=on_refusal, window=window, warn=warn)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=RATE)
    if fault is not None and rank in faulty:
        for parameter in module.parameters():
            parameter.register_hook(fault)
    for step in range(steps):
        optimizer.zero_grad()
        try:
            gradient(ddp, step, rank)
        except vg.Refused:
            assert all(p.grad is None for p in ddp.parameters())
            if not goes_on:
                raise
            continue
        optimizer.step()
    difference, same = NAN, False
    if compare and rank == 0:
        expected = simulated(algorithm, size, gradient, steps, make=make)
        got = flat(module.parameters())
        difference, same = float((got - expected).abs().max()), torch.equal(got, expected)
    return Trained(digest(module), difference, same, accuracy(module) if make is model else NAN, protection.report())


@contextmanager
def allowed(rule: vg.Rule) -> Iterator[None]:
    """A rule with f = 0 is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [str(w.message) for w in caught] == [
        f"protect: {rule} protects from nobody; f is how many may be faulty."
    ] * (rule.f == 0)


def unprotected(rank: int, fault: Callable[[Tensor], Tensor]) -> float:
    """The accuracy of plain DistributedDataParallel with a faulty rank."""
    module = model()
    ddp = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=RATE)
    for parameter in module.parameters() if rank == 3 else ():
        parameter.register_hook(fault)
    for step in range(FAULTY_STEPS):
        optimizer.zero_grad()
        plain_gradient(ddp, step, rank)
        optimizer.step()
    return accuracy(module)


WORKER, SERVER, CLIP = (vg.Momentum(0.9),), (vg.Momentum(0.9),), vg.Clip(0.5)
EQUAL = {
    "krum": vg.Algorithm(rule=vg.Krum(1)),
    "multi-krum": vg.Algorithm(worker=WORKER, rule=vg.MultiKrum(1)),
    "median": vg.Algorithm(rule=vg.Median(1)),
    "trimmed-mean": vg.Algorithm(worker=WORKER, rule=vg.TrimmedMean(1)),
    "phocas": vg.Algorithm(rule=vg.Phocas(2), server=SERVER),
    "meamed": vg.Algorithm(worker=(vg.Momentum(0.9, dampening=0.9),), rule=vg.MeaMed(2)),
    "bulyan": vg.Algorithm(worker=WORKER, rule=vg.Bulyan(0)),
    "median, both momenta": vg.Algorithm(worker=(vg.Momentum(0.5),), rule=vg.Median(2), server=(vg.Momentum(0.5),)),
    "clip, multi-krum": vg.Algorithm(worker=(CLIP, *WORKER), rule=vg.MultiKrum(1)),
    "clip, median, server": vg.Algorithm(worker=(CLIP,), rule=vg.Median(2), server=SERVER),
    "nnm, trimmed-mean": vg.Algorithm(worker=WORKER, pre=(vg.NearestNeighborMixing(1),), rule=vg.TrimmedMean(1)),
    "arc, multi-krum": vg.Algorithm(pre=(vg.AdaptiveClipping(1),), rule=vg.MultiKrum(1)),
    "centered-clipping": vg.Algorithm(worker=WORKER, rule=vg.CenteredClipping(1, tau=0.5)),
    "geometric-median": vg.Algorithm(rule=vg.GeometricMedian(2)),
    "bucketing, median": vg.Algorithm(worker=WORKER, pre=(vg.Bucketing(2),), rule=vg.Median(1)),
    "shared momentum": vg.Algorithm(worker=(vg.SharedMomentum(0.5),), rule=vg.Median(1)),
}
BITWISE = {"median", "trimmed-mean", "phocas", "meamed", "median, both momenta", "shared momentum"}
REPLICATED = {
    "dnc": vg.Algorithm(rule=vg.DivideAndConquer(1, sample=50)),
    "signguard": vg.Algorithm(worker=WORKER, rule=vg.SignGuard(1)),
    "aksel": vg.Algorithm(worker=(CLIP,), rule=vg.Aksel(1), server=SERVER),
    "multi-krum": EQUAL["multi-krum"],
    "median": EQUAL["median"],
}
STALE: dict[int, Tensor] = {}


def stale(gradient: Tensor) -> Tensor:
    """The gradient of the first step, for ever, ten times as large."""
    return STALE.setdefault(gradient.numel(), 10 * gradient.clone())


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda g: torch.full_like(g, NAN),
    "inf": lambda g: torch.full_like(g, -float("inf")),
    "zeros": torch.zeros_like,
    "1e30": lambda g: torch.full_like(g, 1e30),
    "upside down": lambda g: -100 * g,
    "stale": stale,
    "one nan": lambda g: g.view(-1).index_fill(0, torch.tensor([0]), NAN).view_as(g),
}
DEFENCES = {
    "multi-krum": vg.Algorithm(worker=WORKER, rule=vg.MultiKrum(1)),
    "median": vg.Algorithm(worker=(vg.Clip(5.0),), rule=vg.Median(1), server=SERVER),
    "nnm, geometric-median": vg.Algorithm(
        worker=WORKER, pre=(vg.NearestNeighborMixing(1),), rule=vg.GeometricMedian(1)
    ),
}


def defences(fault: str) -> list[str]:
    """All of them for the faults that differ most, two for the others."""
    return list(DEFENCES)[: 3 if fault in ("nan", "1e30") else 2]


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


@contextmanager
def counted() -> Iterator[list[float]]:
    """[bytes] that this rank hands to others, at the collective calls."""
    size, sent = dist.get_world_size(), [0.0]
    exchange, add, gather = dist.all_to_all_single, dist.all_reduce, sharded.all_gather_single

    def numbers(tensor: Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    def counting_exchange(out: Tensor, x: Tensor, **options: Any) -> Any:
        sent[0] += numbers(x) * (size - 1) / size
        return exchange(out, x, **options)

    def counting_gather(out: Tensor, x: Tensor, **options: Any) -> Any:
        sent[0] += numbers(x) * (size - 1)
        return gather(out, x, **options)

    def counting_add(x: Tensor, **options: Any) -> Any:
        sent[0] += 2 * numbers(x) * (size - 1) / size
        return add(x, **options)

    dist.all_to_all_single, dist.all_reduce, sharded.all_gather_single = (
        counting_exchange,
        counting_add,
        counting_gather,
    )
    try:
        yield sent
    finally:
        dist.all_to_all_single, dist.all_reduce = exchange, add
        sharded.all_gather_single = gather


def everything(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """All checks that need five ranks, in one group of processes."""
    warnings.simplefilter("error")
    found: dict[str, Any] = {}
    for name, algorithm in EQUAL.items():
        found[f"equal: {name}"] = train(rank, size, algorithm)
    for name, algorithm in REPLICATED.items():
        found[f"replicated: {name}"] = train(rank, size, algorithm, replicated=True)
    for name, fault in FAULTS.items():
        for defence in defences(name):
            STALE.clear()
            found[f"fault: {name}, {defence}"] = train(
                rank, size, DEFENCES[defence], steps=FAULTY_STEPS, compare=False, fault=fault, faulty=(3,), cap=25
            )
    for name in ("nan", "1e30", "upside down"):
        found[f"unprotected: {name}"] = unprotected(rank, FAULTS[name])
    found["healthy"] = train(rank, size, EQUAL["trimmed-mean"], steps=FAULTY_STEPS, compare=False)
    lines: list[str] = []
    found["warned"] = train(
        rank, size, DEFENCES["median"], steps=6, compare=False, fault=FAULTS["nan"], faulty=(3,), window=5,
        warn=lines.append,
    )  # fmt: skip
    found["lines"] = lines
    for name in ("multi-krum", "median"):
        for replicated in (False, True):
            found[f"too many: {name}, {replicated}"] = message_of(
                lambda a=DEFENCES[name], r=replicated: train(
                    rank, size, a, steps=2, fault=FAULTS["one nan"], faulty=(1, 4), replicated=r
                )
            )
    found["after errors"] = train(rank, size, EQUAL["multi-krum"], steps=3)
    for part in (situations, bad_gradients, refused_steps, own_errors, refusals, memories, traffic):
        found |= part(rank, size)
    return found


# ------------------------------------------------------------------------------------------------- situations


def accumulated(module: nn.Module, step: int, rank: int) -> None:
    """Three batches a step, two of them under no_sync."""
    quiet = module.no_sync if isinstance(module, DistributedDataParallel) else nullcontext
    for k in range(3):
        with nullcontext() if k == 2 else quiet():
            x, y = batch(3 * step + k, rank)
            (cross_entropy(module(x), y) / 3).backward()


def uneven(module: nn.Module, step: int, rank: int) -> None:
    """The last batch of every third step is short, by rank."""
    x, y = batch(step, rank, 8 if step % 3 else 1 + rank)
    cross_entropy(module(x), y).backward()


class Branches(nn.Module):
    """Each rank may leave out a branch; nobody uses the last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.left, self.right = nn.Linear(10, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.never = nn.Linear(2, 2)

    def forward(self, x: Tensor, left: bool, right: bool) -> Tensor:
        h = torch.tanh(self.first(x))
        return (self.left(h) if left else 0) + (self.right(h) if right else 0)


def branching(module: nn.Module, step: int, rank: int) -> None:
    x, y = batch(step, rank)
    right = (step + rank) % 2 == 0
    cross_entropy(module(x, not right or rank == 0, right), y).backward()


class Mixed(nn.Module):
    """Single and double precision in one model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.last = nn.Linear(10, 8), nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).double())


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.last = nn.Linear(10, 8), nn.Linear(8, 3).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).bfloat16()).float()


def under_autocast(module: nn.Module, step: int, rank: int) -> None:
    x, y = batch(step, rank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(module(x), y)
    loss.backward()


def situations(rank: int, size: int) -> dict[str, Any]:
    krum, median = EQUAL["multi-krum"], EQUAL["trimmed-mean"]
    unused, clipped = {"find_unused_parameters": True}, EQUAL["clip, multi-krum"]
    found: dict[str, Any] = {
        "no_sync": train(rank, size, krum, accumulated),
        "uneven": train(rank, size, median, uneven),
        "unused": train(rank, size, median, branching, make=Branches, options=unused),
        "unused, clip": train(rank, size, clipped, branching, make=Branches, options=unused),
        "autocast": train(rank, size, median, under_autocast),
        "static graph": train(rank, size, krum, options={"static_graph": True}),
        "bucket view": train(rank, size, EQUAL["phocas"], options={"gradient_as_bucket_view": True}),
        "mixed": train(rank, size, EQUAL["median"], make=Mixed, compare=False),
        "half": train(rank, size, krum, make=Half, compare=False),
        "half, clip": train(rank, size, clipped, make=Half, compare=False),
    }
    found["mixed step"] = mixed_step(rank, size, EQUAL["phocas"])
    found["mixed step, clip"] = mixed_step(rank, size, clipped)
    found |= scaled(rank, size) | joined(rank, size)
    return found


def mixed_step(rank: int, size: int, algorithm: vg.Algorithm) -> float:
    """How far the first update of a model of two precisions is from the rule on the whole vectors in double."""
    module = Mixed()
    rows = []
    for k in range(size):
        module.zero_grad()
        plain_gradient(module, 0, k)
        rows.append(torch.cat([p.grad.double().reshape(-1) for p in module.parameters()]))
    module.zero_grad()
    ddp = DistributedDataParallel(module, bucket_cap_mb=CAP)
    protect(ddp, algorithm)
    plain_gradient(ddp, 0, rank)
    state = algorithm.init(size, rows[0].numel(), torch.float64)
    vectors, state = algorithm.send(torch.stack(rows), state)
    got = torch.cat([p.grad.double().reshape(-1) for p in module.parameters()])
    return float((got - algorithm.aggregate(vectors, state)[0]).abs().max())


def scaled(rank: int, size: int) -> dict[str, Any]:
    """GradScaler: the same training as without; one overflowing rank is rejected; of two the step is skipped."""
    algorithm = EQUAL["clip, multi-krum"]
    module = model()
    ddp = DistributedDataParallel(module, bucket_cap_mb=CAP)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=STEPS // 3)
    protection = protect(ddp, algorithm, scaler=scaler)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=RATE)
    overflowing: set[int] = set()
    for parameter in module.parameters():
        parameter.register_hook(lambda g: torch.full_like(g, float("inf")) if rank in overflowing else g)
    found: dict[str, Any] = {}
    before, scales = flat(module.parameters()), []
    for step in range(STEPS + 3):
        if step == STEPS:
            found["scaled"] = flat(module.parameters())
        overflowing |= {STEPS: {2}, STEPS + 1: {2, 3}}.get(step, set())
        if step == STEPS + 2:
            overflowing.clear()
        before = flat(module.parameters())
        memory = protection.state_dict()
        optimizer.zero_grad()
        x, y = batch(step, rank)
        scaler.scale(cross_entropy(ddp(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if step >= STEPS:
            found[f"moved {step - STEPS}"] = not torch.equal(before, flat(module.parameters()))
        if step == STEPS + 1:
            after = protection.state_dict()
            found["memory kept"] = all(torch.equal(memory[k], after[k]) for k in memory)
    found["scales"], found["scaled report"] = scales, protection.report()
    found["scaled digest"] = digest(module)
    expected = simulated(algorithm, size)
    found["scaled"] = float((found["scaled"] - expected).abs().max())
    return found


def joined(rank: int, size: int) -> dict[str, Any]:
    """Ranks with fewer batches, under join(): those that are out send zeros, which count among the f."""
    module = model()
    ddp = DistributedDataParallel(module, bucket_cap_mb=CAP)
    protection = protect(ddp, EQUAL["median"])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=RATE)
    with ddp.join():
        for step in range(20 if rank == 1 else 30):
            optimizer.zero_grad()
            plain_gradient(ddp, step, rank)
            optimizer.step()
    return {"joined": Trained(digest(module), NAN, False, accuracy(module), protection.report())}


# ------------------------------------------------------------------- bad gradients, and steps that come to nothing

BAD = {  # who sends NaN at which step; of f = 1
    "one, once": {2: (3,)},
    "first step refused": {0: (1, 2)},
    "two refused running": {2: (1, 2), 3: (0, 4), 5: (2,)},
    "all refused, then one": {3: (0, 1, 2, 3, 4), 5: (3,)},
}
BAD_UNDER = ("clip, multi-krum", "trimmed-mean", "bucketing, median", "shared momentum")


def spoilt(bad: dict[int, tuple[int, ...]], last_only: bool = False, accumulates: bool = False) -> Gradient:
    """The gradients of ranks that send NaN now and then: in all parameters or in the last one, perhaps on the way."""

    def gradient(module: nn.Module, step: int, rank: int) -> None:
        parameters = list(module.parameters())
        spoils = rank in bad.get(step, ())
        hooks = [
            p.register_hook(lambda g: torch.full_like(g, NAN))
            for p in (parameters[:1] if last_only else parameters)  # the first parameter's gradient comes last
            if spoils
        ]
        try:
            (accumulated if accumulates else plain_gradient)(module, step, rank)
        finally:
            for hook in hooks:
                hook.remove()

    return gradient


def bad_gradients(rank: int, size: int) -> dict[str, Any]:
    """Training among NaN, with refused steps left out, is the simulator's."""
    found: dict[str, Any] = {}
    for k, (name, bad) in enumerate(BAD.items()):
        for i, algorithm in enumerate(BAD_UNDER):
            found[f"bad: {name}, {algorithm}"] = train(
                rank, size, EQUAL[algorithm], spoilt(bad), goes_on=True, on_refusal="skip" if (k + i) % 2 else "raise"
            )
    bad = BAD["two refused running"]
    found["bad: last bucket"] = train(rank, size, EQUAL["trimmed-mean"], spoilt(bad, last_only=True), goes_on=True)
    found["bad: replicated"] = train(rank, size, EQUAL["trimmed-mean"], spoilt(bad), goes_on=True, replicated=True)
    found["bad: no_sync"] = train(rank, size, EQUAL["trimmed-mean"], spoilt(bad, accumulates=True), goes_on=True)
    for option in ({"gradient_as_bucket_view": True}, {"static_graph": True}, {"find_unused_parameters": True}):
        found[f"bad: {next(iter(option))}"] = train(
            rank, size, EQUAL["trimmed-mean"], spoilt(bad), goes_on=True, options=option
        )
    lines: list[str] = []
    train(rank, size, EQUAL["median"], spoilt(bad), on_refusal="skip", warn=lines.append)
    found["skipped"] = lines
    return found


FAILING: set[str] = set()  # what fails on this rank


def may_fail(where: str) -> None:
    if where in FAILING:
        raise KeyError("mine")


class OwnTransform(vg.Momentum):
    def __call__(self, *args: Any) -> tuple[Tensor, Tensor | None]:
        may_fail("transform")
        return super().__call__(*args)


class OwnMedian(vg.Median):
    def apply(self, *args: Any) -> Tensor:
        may_fail("apply")
        return super().apply(*args)


class OwnKrum(vg.Krum):
    def weights(self, *args: Any) -> np.ndarray:
        may_fail("weights")
        return super().weights(*args)


@dataclass(frozen=True)
class OwnGeneral(General):
    f: int
    columnwise = False

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        may_fail("combine")
        return x.median(0).values


OWN = {  # what fails, and whether every rank has to gather all vectors
    "worker": ("transform", vg.Algorithm(worker=(OwnTransform(0.9),), rule=vg.Median(1)), (False, True)),
    "server": ("transform", vg.Algorithm(rule=vg.Median(1), server=(OwnTransform(0.9),)), (False, True)),
    "apply": ("apply", vg.Algorithm(worker=WORKER, rule=OwnMedian(1)), (False, True)),
    "weights": ("weights", vg.Algorithm(worker=WORKER, rule=OwnKrum(1)), (False, True)),
    "combine": ("combine", vg.Algorithm(rule=OwnGeneral(1), server=SERVER), (True,)),
}


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def own_errors(rank: int, size: int) -> dict[str, Any]:
    """A stage of the user's own that fails on one rank at one step: no rank takes it, and training is that without."""
    found: dict[str, Any] = {}
    for name, (where, algorithm, ways) in OWN.items():
        for replicated in ways:
            ddp = DistributedDataParallel(model(), bucket_cap_mb=CAP)
            protection = protect(ddp, algorithm, replicated=replicated)
            optimizer = torch.optim.SGD(ddp.parameters(), lr=RATE)
            key = f"own: {name}, {replicated}"
            for step in range(4):
                optimizer.zero_grad()
                if step != 2:
                    plain_gradient(ddp, step if step < 2 else 2, rank)
                    optimizer.step()
                    continue
                before = protection.state_dict()
                FAILING.update({where} if rank == 1 else ())
                found[key] = error_of(lambda d=ddp: plain_gradient(d, 7, rank))
                FAILING.clear()
                after = protection.state_dict()
                found[f"{key}, moved"] = any(p.grad is not None for p in ddp.parameters()) or any(
                    not torch.equal(memory, after[k]) for k, memory in before.items()
                )
            found[f"{key}, steps"], found[f"{key}, digest"] = protection.report().steps, digest(ddp)
            expected = simulated(algorithm, size, steps=3)
            found[f"{key}, difference"] = float((flat(ddp.parameters()) - expected).abs().max())
    return found


@dataclass
class Answer:
    answer: Tensor


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Answer:
        return Answer(self.first(x))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.never = nn.Linear(10, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, deep: bool = False) -> Tensor:
        h = self.first(x)
        return self.never(h) if deep else h


def refused_steps(rank: int, size: int) -> dict[str, Any]:
    """What is no step of the algorithm: said on every rank, with nothing moved and nothing remembered."""
    found: dict[str, Any] = {}

    def tried(key: str, work: Callable[[DistributedDataParallel, Protection], object], cap: float = CAP) -> None:
        ddp = DistributedDataParallel(Twice(), bucket_cap_mb=cap)
        protection = protect(ddp, EQUAL["trimmed-mean"])
        found[f"none: {key}"] = message_of(lambda: work(ddp, protection))
        found[f"none: {key}, moved"] = any(p.grad is not None for p in ddp.parameters())

    x, y = batch(0, rank)

    def loss(ddp: nn.Module, deep: bool = True) -> Tensor:
        return cross_entropy(ddp(x, deep), y)

    def twice(ddp: DistributedDataParallel, protection: Protection) -> None:
        loss(ddp).backward()
        loss(ddp).backward()

    def again(ddp: DistributedDataParallel, protection: Protection) -> None:
        once = loss(ddp)
        once.backward(retain_graph=True)
        once.backward()

    def on_one_rank(ddp: DistributedDataParallel, protection: Protection) -> None:
        loss(ddp).backward()
        if rank != 1:
            ddp.zero_grad()
        loss(ddp).backward()

    tried("two backward passes", twice)
    tried("two of one graph", again)
    tried("not zeroed on one rank", on_one_rank)
    for cap in (1e-6, 25):
        tried(f"a layer that nobody used, {cap}", lambda ddp, _: loss(ddp, False).backward(), cap)
        tried(f"a layer that one rank did not use, {cap}", lambda ddp, _: loss(ddp, rank != 1).backward(), cap)

    # After a refusal a step is a step again, and zeros are as good as None.
    ddp = DistributedDataParallel(Twice())
    protection = protect(ddp, EQUAL["trimmed-mean"])
    message_of(lambda: twice(ddp, protection))
    before = protection.state_dict()
    ddp.zero_grad(set_to_none=False)
    loss(ddp).backward()
    found["none: and the next"] = any(not torch.equal(before[k], v) for k, v in protection.state_dict().items())
    ddp.zero_grad(set_to_none=False)
    torch.autograd.grad(loss(ddp), list(ddp.parameters()))  # no step
    loss(ddp).backward()
    found["none: steps"] = protection.report().steps

    # What a static graph cannot see in its outputs it does not reduce.
    hidden = DistributedDataParallel(Hidden(), static_graph=True)
    protect(hidden, EQUAL["trimmed-mean"])
    found["none: hidden outputs"] = message_of(lambda: cross_entropy(hidden(x).answer, y).backward())
    found["none: hidden outputs, moved"] = any(p.grad is not None for p in hidden.parameters())

    # Taken away, the mean is back.
    protection.remove()
    ddp.zero_grad()
    twice(ddp, protection)
    plain = DistributedDataParallel(Twice())
    loss(plain).backward()
    loss(plain).backward()
    pairs = zip(ddp.parameters(), plain.parameters(), strict=True)
    found["removed"] = max(float((p.grad - q.grad).abs().max()) for p, q in pairs)

    # A scaler that is switched off is none.
    ddp = DistributedDataParallel(Twice())
    protect(ddp, EQUAL["trimmed-mean"], scaler=torch.amp.GradScaler("cpu", enabled=False))
    found["scaler off"] = message_of(lambda: (loss(ddp) * NAN).backward())
    return found


# --------------------------------------------------------------------------------------- refusals and memories


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3, sparse=True)


def refusals(rank: int, size: int) -> dict[str, Any]:
    def refused(module: nn.Module, algorithm: vg.Algorithm, **options: Any) -> str:
        return message_of(lambda: protect(DistributedDataParallel(module), algorithm, **options))

    median = vg.Algorithm(rule=vg.Median(1))
    twice = DistributedDataParallel(model())
    protect(twice, median)
    hooked = DistributedDataParallel(model())
    hooked.register_comm_hook(None, allreduce_hook)
    synchronised = DistributedDataParallel(model())
    synchronised.module.add_module("norm", nn.SyncBatchNorm(3))  # late: torch itself wants GPUs for it
    other = DistributedDataParallel(model())
    shapes = model() if rank == 2 else nn.Sequential(*model(), nn.Tanh())
    return {
        "refused: f": refused(model(), vg.Algorithm(rule=vg.MultiKrum(2))),
        "refused: bulyan": refused(model(), vg.Algorithm(rule=vg.Bulyan(1))),
        "refused: nesterov": refused(
            model(), vg.Algorithm(worker=(vg.Momentum(0.9, nesterov=True),), rule=vg.Median(1))
        ),
        "refused: dnc": refused(model(), vg.Algorithm(rule=vg.DivideAndConquer(1))),
        "refused: f, replicated": refused(model(), vg.Algorithm(rule=vg.DivideAndConquer(3)), replicated=True),
        "refused: sync": message_of(lambda: protect(synchronised, median)),
        "refused: sparse": refused(Sparse(), median),
        "refused: hook": message_of(lambda: protect(hooked, median)),
        "refused: twice": message_of(lambda: protect(twice, median)),
        "refused: module": message_of(lambda: protect(model(), median)),  # type: ignore[arg-type]
        "refused: others": refused(model(), vg.Algorithm(rule=vg.Median(1 if rank else 2))),
        "heard: f": refused(model(), vg.Algorithm(rule=vg.Median(3 if rank == 1 else 1))),
        "heard: sparse": refused(Sparse() if rank == 1 else nn.Embedding(4, 3), median),
        "heard: module": message_of(lambda: protect(other.module if rank == 1 else other, median)),
        "heard: window": refused(model(), median, window=0 if rank == 1 else 3),
        "heard: twice": message_of(lambda: protect(twice if rank == 1 else other, median)),
        "refused: on_refusal": refused(model(), median, on_refusal="skip" if rank == 1 else "raise"),
        "refused: scale": refused(
            model(), median, scaler=torch.amp.GradScaler("cpu", init_scale=4.0 if rank == 1 else 2.0)
        ),
        "refused: average": refused(model(), vg.Algorithm(worker=WORKER)),
        "refused: rule": refused(model(), vg.Median(1)),  # type: ignore[arg-type]
        "not refused: layers without parameters": refused(shapes, median),
        "refused: window": refused(model(), median, window=0),
    }


def memories(rank: int, size: int) -> dict[str, Any]:
    """Six steps at once, or three, a checkpoint, and three more in a new model whose buckets are not rebuilt yet."""
    found: dict[str, Any] = {}
    for name in ("multi-krum", "clip, median, server", "centered-clipping", "both"):
        algorithm = EQUAL["median, both momenta"] if name == "both" else EQUAL[name]

        def fresh(algorithm: vg.Algorithm = algorithm) -> tuple[DistributedDataParallel, Protection]:
            ddp = DistributedDataParallel(model(), bucket_cap_mb=CAP)
            return ddp, protect(ddp, algorithm)

        def steps(ddp: DistributedDataParallel, start: int, stop: int) -> None:
            optimizer = torch.optim.SGD(ddp.parameters(), lr=RATE)
            for step in range(start, stop):
                optimizer.zero_grad()
                plain_gradient(ddp, step, rank)
                optimizer.step()

        ddp, protection = fresh()
        steps(ddp, 0, 6)
        expected = flat(ddp.parameters())
        ddp, protection = fresh()
        steps(ddp, 0, 3)
        path = Path(os.environ["VARANGIAN_TEST_FOLDER"]) / f"{rank}.pt"
        torch.save({"model": ddp.module.state_dict(), "protection": protection.state_dict()}, path)
        saved = torch.load(path, weights_only=True)
        ddp, protection = fresh()
        ddp.module.load_state_dict(saved["model"])
        steps_before = {k: v.clone() for k, v in saved["protection"].items()}
        protection.load_state_dict(saved["protection"])
        steps(ddp, 3, 6)
        found[f"resumed: {name}"] = float((flat(ddp.parameters()) - expected).abs().max())
        before = protection.state_dict()
        found[f"untouched: {name}"] = all(torch.equal(v, saved["protection"][k]) for k, v in steps_before.items())
        found[f"keys: {name}"] = sorted(saved["protection"])
        found["bad state"] = message_of(lambda p=protection: p.load_state_dict({"worker.0.nothing": torch.zeros(1)}))
        for key, change in others(rank, saved["protection"]).items():
            found[f"state: {key}"] = message_of(lambda p=protection, c=change: p.load_state_dict(c))
        kept = protection.state_dict()
        found[f"state kept: {name}"] = all(torch.equal(memory, kept[k]) for k, memory in before.items())
    return found


def others(rank: int, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """States that are not this rank's own, or not whole; most of them on one rank only."""
    key = next(k for k in state if "." in k)
    lacks = {k: v for k, v in state.items() if k != "rank"}
    return {
        "a neighbour's": state | {"rank": state["rank"] + (1 if rank == 1 else 0)},
        "rank 0's": state | {"rank": torch.tensor(0)},
        "more ranks'": state | {"ranks": state["ranks"] + 1},
        "another algorithm's": state | {"algorithm": torch.tensor([77], dtype=torch.uint8)},
        "nan": state | ({key: state[key] * NAN} if rank == 1 else {}),
        "short": state | ({key: state[key][:1]} if rank == 1 else {}),
        "lacks": lacks if rank == 1 else state,
        "lacks a memory": {k: v for k, v in state.items() if k != key} if rank == 1 else state,
        "before the first step": state | {"step": torch.tensor(-5)},
        "half a step": state | ({"step": torch.tensor(1.7)} if rank == 1 else {}),
        "two ranks": state | ({"rank": torch.tensor([1, 1])} if rank == 1 else {}),
        "no text": state | ({"algorithm": state["algorithm"].float()} if rank == 1 else {}),
        "integers": state | ({key: state[key].long()} if rank == 1 else {}),
        "double": state | ({key: state[key].double()} if rank == 1 else {}),
        "sparse": state | ({key: state[key].to_sparse()} if rank == 1 else {}),
        "nothing": None if rank == 1 else state,  # type: ignore[dict-item]
    }


OTHERS = {  # what is said of them
    "nan": "finite numbers, got NaN or infinity in '",
    "short": "of shape [",
    "lacks": "says whose it is, got one without rank",
    "lacks a memory": "got a state that lacks ['",
    "before the first step": "needs 'step' >= 0, got -5",
    "half a step": "needs 'step' as one number of int64, got float32 []",
    "two ranks": "needs 'rank' as one number of int64, got int64 [2]",
    "no text": "needs 'algorithm' as a text in bytes, uint8 [length], got float32 [",
    "integers": " of torch.float32, got torch.int64",
    "double": " of torch.float32, got torch.float64",
    "sparse": "needs dense tensors, got torch.sparse_coo in '",
    "nothing": "needs what state_dict gave, a dictionary of tensors, got nothing",
}


def traffic(rank: int, size: int) -> dict[str, Any]:
    """Bytes sent in a step beside those of a ring all-reduce of the same gradients."""

    def wide() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 1500), nn.Tanh(), nn.Linear(1500, 40), nn.Tanh(), nn.Linear(40, 3))

    found: dict[str, Any] = {}
    for name in ("median", "multi-krum", "clip, multi-krum", "nnm, trimmed-mean", "bulyan"):
        ddp = DistributedDataParallel(wide(), bucket_cap_mb=0.05)
        protect(ddp, EQUAL[name])
        for step in range(2):  # in the second the buckets are as they stay
            ddp.zero_grad()
            with counted() as sent:
                plain_gradient(ddp, step, rank)
        d = sum(p.numel() for p in ddp.parameters())
        found[f"traffic: {name}"] = sent[0] / (4 * 2 * d * (size - 1) / size)
    return found


# ------------------------------------------------------------------------------------------------------- death


def death(rank: int, size: int, folder: Path) -> str:
    """The last rank dies at step 3: what the others hear."""
    ddp = DistributedDataParallel(model(), bucket_cap_mb=CAP)
    protect(ddp, vg.Algorithm(worker=WORKER, rule=vg.Median(1)))
    for step in range(10):
        if rank == size - 1 and step == 3:
            os._exit(3)
        ddp.zero_grad()
        try:
            plain_gradient(ddp, step, rank)
        except RuntimeError as error:
            return f"step {step}: {type(error).__name__}"
    return "nothing"


__all__ = ["death", "everything", "np"]
