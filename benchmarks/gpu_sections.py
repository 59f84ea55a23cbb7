"""What benchmarks/gpu.py measures, section by section. Every finding is noted as soon as it is there."""

from __future__ import annotations

import argparse
import cProfile
import csv
import json
import math
import multiprocessing
import os
import platform
import pstats
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import varangian as vg
from varangian.core import kernels, specs
from varangian.core.kernels import plain
from varangian.runs.building import build, computing
from varangian.runs.cards import facts, numerics
from varangian.simulation.data import DataError, Dataset, load
from varangian.simulation.gradients import Batch, WorkerGradients
from varangian.simulation.models import build as build_model
from varangian.simulation.simulate import Simulation
from varangian.study.paper import OF_THE_PAPER, PANELS, SEEDS

if TYPE_CHECKING:
    from gpu import Report

L2_BYTES = 50 * 2**20  # of an H100's cache, past which inputs are rotated
TYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


# ------------------------------------------------------------------------------------------------ what a card can do


class Card:
    """The device, and what only a card can do: on any other, and on a pretended one, the host's clock and no more.

    Args:
        name: of the device.
        quick: times are of no interest, and taken of three calls.
    """

    def __init__(self, name: str, quick: bool = False) -> None:
        self.device, self.quick = torch.device(name), quick
        # What lies on a pretended card is of a class of its own.
        self.real = self.device.type == "cuda" and type(torch.empty(0, device=self.device)) is Tensor

    def settle(self) -> None:
        if self.real:
            torch.cuda.synchronize(self.device)

    def broken(self) -> bool:
        """Whether it no longer answers this process, as after an access to memory that is not there."""
        try:
            self.settle()
        except RuntimeError:
            return True
        return False

    def seconds(self, call: Callable[[], object]) -> float:
        """From the call to the end of what it started."""
        self.settle()
        start = time.perf_counter()
        call()
        self.settle()
        return time.perf_counter() - start

    def median_ms(self, call: Callable[[int], object], most: int = 50, limit: float = 0.5) -> float:
        """Median time of call(i) on the device, i telling which of several inputs to take; of ``most`` calls, or as
        many as fit in ``limit`` seconds.

        The host runs ahead while the card sleeps, so that what launches cost is not in it.
        """
        call(0)
        once = max(self.seconds(partial(call, 1)), 1e-7)
        rounds = 3 if self.quick else max(3, min(most, int(limit / once)))
        if not self.real:
            return 1e3 * statistics.median(self.seconds(partial(call, i)) for i in range(rounds))
        start = time.perf_counter()
        call(0)
        ahead = (time.perf_counter() - start) * rounds * 1.5
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        self.settle()
        torch.cuda._sleep(int(min(ahead, 0.2) * 1.8e9))  # cycles; the only way to keep a card busy with nothing
        for i, (before, after) in enumerate(marks):
            before.record()
            call(i)
            after.record()
        self.settle()
        return statistics.median(before.elapsed_time(after) for before, after in marks)

    def waits(self, call: Callable[[], object]) -> list[str]:
        """Where the host waited for the card, as torch says it: file and line of each time."""
        if not self.real:
            call()
            return []
        self.settle()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return [f"{Path(w.filename).name}:{w.lineno}" for w in said if "called a synchronizing" in str(w.message)]

    def traced(self, call: Callable[[], object], steps: int) -> dict[str, Any]:
        """A step as torch's profiler sees it: what the host asks for, ms that the card is busy, the longest kernels."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if self.real else []
        self.settle()
        with torch.profiler.profile(activities=kinds) as profiler:
            for _ in range(steps):
                call()
            self.settle()
        events = list(profiler.key_averages())
        there = [e for e in events if "CUDA" in str(e.device_type)] if self.real else events
        # Of the host's calls into CUDA; kernels may have such names too.
        calls = {e.key: e.count / steps for e in events if e not in there and e.key.startswith(("cuda", "cu"))}
        spent = {e.key: e.self_device_time_total if self.real else e.self_cpu_time_total for e in there}
        counts = {e.key: e.count / steps for e in there}
        return {
            "launches": sum(n for name, n in calls.items() if "Launch" in name and "Host" not in name),
            "kernels": sum(counts.values()),
            "busy_ms": sum(spent.values()) / steps / 1e3,
            "calls": calls,
            "longest": [
                {"kernel": name[:120], "ms": spent[name] / steps / 1e3, "times": counts[name]}
                for name in sorted(spent, key=lambda name: -spent[name])[:10]
            ],
        }

    def clear_peak(self) -> None:
        if self.real:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.real else 0.0

    def generator(self) -> Tensor:
        """The state of the user's generator on the device."""
        return torch.cuda.get_rng_state(self.device) if self.real else torch.get_rng_state()


@dataclass(frozen=True)
class Bench:
    """What sections share: where findings go, the device, whether sizes are tiny, where data may lie."""

    report: Report
    card: Card
    small: bool
    data: Path | None

    @property
    def device(self) -> torch.device:
        return self.card.device

    def missed(self, what: str) -> None:
        """A figure short of its aim; without a card none is."""
        if self.card.real:
            self.report.found.setdefault("missed", []).append(what)

    def on_device(self, e: vg.Experiment, tf32: bool = False) -> vg.Experiment:
        """The experiment there; without a real card in the precision that all have."""
        return replace(e, device=str(self.device), **({"precision": "tf32"} if tf32 and self.card.real else {}))


# ------------------------------------------------------------------------------------------------ setup, rates


def setup(bench: Bench) -> None:
    """What ran, and on what."""
    note, card = bench.report.note, bench.card
    modules = {name: _version(name) for name in ("numpy", "numba", "triton")}
    note("versions", {
        "varangian": vg.__version__, "python": platform.python_version(), "torch": torch.__version__, **modules,
    })  # fmt: skip
    if card.real:
        with numerics(str(card.device)):
            note("card", facts(str(card.device)))
    note("machine", {
        "memory_gib": torch.cuda.get_device_properties(card.device).total_memory / 2**30 if card.real else None,
        "cores": len(os.sched_getaffinity(0)), "system": platform.platform(),
    })  # fmt: skip
    x = torch.ones(3, 1000, device=bench.device)
    chosen = kernels._of(x).__name__.rpartition(".")[2]
    note("kernels", chosen)
    if card.real and chosen != "cuda":
        bench.report.wrong(f"kernels of a card are {chosen}, not Triton's")
    for name in ("fashion-mnist", "cifar-10"):
        note(name, _dataset(name, bench.small, bench.data).name)
        print(f"  {name}: {bench.report.found['sections']['setup'][name]}", flush=True)


def _version(module: str) -> str | None:
    try:
        return __import__(module).__version__
    except ImportError:
        return None


@lru_cache
def _dataset(name: str, small: bool, folder: Path | None) -> Dataset:
    """The real data where its files are at hand, else made-up images of the true shape and number."""
    channels, side, train = (1, 28, 60_000) if name.endswith("mnist") else (3, 32, 50_000)
    if small:
        return vg.DATASETS["synthetic"](shape=(channels, 8, 8), classes=10, train=200, test=50)
    try:
        return load(name, folder, download=False)
    except DataError:
        classes = 100 if name == "cifar-100" else 10
        return vg.DATASETS["synthetic"](shape=(channels, side, side), classes=classes, train=train, test=10_000)


def rates(bench: Bench) -> None:
    """What estimates stand on: copying, launching, waiting, and each panel's gradients in TF32 and float32."""
    note, card = bench.report.note, bench.card
    note("copy_tb_per_s", _copy_rate(bench) / 1e9)
    one = torch.zeros(1, device=bench.device)
    for name, call in (("launch_us", lambda: one.add_(1)), ("wait_us", one.cpu)):
        card.seconds(call)  # loads the kernel
        note(name, 1e6 * card.seconds(lambda call=call: [call() for _ in range(1000)]) / 1000)
    bench.report.each(
        [
            (panel, images, way)
            for panel, images in (("cifar-10", 50), ("wide-resnet", 20), ("cifar-10", 14 * 50), ("wide-resnet", 7 * 20))
            for way in ("tf32", "float32", "tf32, channels last", "float32, channels last", "tf32, autotuned",
                        "tf32, channels last, autotuned")
        ],
        lambda item: f"{item[0]}, {item[1]} images, {item[2]}",
        lambda item: _gradient_rate(bench, item[0], 4 if bench.small else item[1], item[2].split(", ")),
    )  # fmt: skip


def _copy_rate(bench: Bench) -> float:
    """Bytes a ms, read and written, of a large copy."""
    x = torch.zeros(2**16 if bench.small else 2**28, device=bench.device)
    y = torch.zeros_like(x)
    return 2 * x.nbytes / bench.card.median_ms(lambda i: y.copy_(x), most=20)


def _gradient_rate(bench: Bench, panel: str, batch: int, way: Sequence[str]) -> dict[str, float]:
    """Forward and backward of plain torch on one batch: ms, and the rate of its products."""
    layout = torch.channels_last if "channels last" in way else torch.contiguous_format
    shape = (3, 8, 8) if bench.small else (3, 32, 32)
    model = build_model(partial(_factory, _model(panel, bench.small)), shape, 10, seed=1)
    model = model.to(bench.device, memory_format=layout)
    x = torch.rand(batch, *shape, device=bench.device).to(memory_format=layout)
    y = torch.zeros(batch, dtype=torch.int64, device=bench.device)

    def gradient(i: int) -> None:
        loss = nn.functional.cross_entropy(model(x), y)
        torch.autograd.grad(loss, list(model.parameters()))

    with numerics(str(bench.device), way[0], autotune="autotuned" in way):
        with FlopCounterMode(display=False) as counter:
            gradient(0)
        ms = bench.card.median_ms(gradient, most=20)
    return {"ms": ms, "tflop_per_s": counter.get_total_flops() / ms / 1e9}


def _factory(spec: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    return specs.make("model", spec, vg.MODELS, shape=shape, classes=classes)


def _model(panel: str, small: bool) -> str:
    spec = PANELS[panel].base.model
    tiny = {"fully-connected": "fully-connected(hidden=4)", "wide-resnet": "wide-resnet(depth=10, width=1)"}
    return tiny.get(spec, "cnn(hidden=4)") if small else spec


# ------------------------------------------------------------------------------------------------ compiling


def compile_all(bench: Bench) -> None:
    """What the sections need of Triton's and Numba's kernels, compiled by many processes at once, kept on disk."""
    tasks = [
        ("rules", n, d, f, kind, name)
        for n, d, f in _sizes(bench.small)
        for kind in _types(bench.small)
        for name in STAGES
        if re.search(bench.report.items, f"{name} ({n}, {d}) {kind}")
    ]
    tasks += [("kernels", n, 1003, f, "float32", "") for n, _, f in _shapes(bench.small).values()]
    tasks.sort(key=lambda task: -task[1])  # what takes longest first
    os.environ["OMP_NUM_THREADS"] = "1"
    processes = 1 if bench.small else max(1, min(14, len(os.sched_getaffinity(0)) - 1))
    failed = {}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        answers = pool.imap_unordered(partial(_compiled, str(bench.device)), tasks)
        for number in range(len(tasks)):
            try:
                task, error = answers.next(timeout=max(1.0, bench.report.left))
            except multiprocessing.TimeoutError:
                bench.report.note("not compiled in time", len(tasks) - number)
                break
            if error:
                failed[str(task)] = error
                bench.report.note("failed", failed)
    bench.report.note("tasks", len(tasks))
    bench.report.note("processes", processes)


def _compiled(device: str, task: tuple[str, int, int, int, str, str]) -> tuple[object, str]:
    """Runs what is to be compiled, in a process of its own; the error as text."""
    what, n, d, f, kind, name = task
    try:
        x = hostile(n, d, f, TYPES[kind])
        if what == "rules":
            for y in (x, x.to(device)):
                _or_refusal(name, y, f)
        else:
            for entry in timed_kernels(torch.ones_like(x, device=device), f).values():
                entry.ours(0)
    except Exception as error:
        return task, f"{type(error).__name__}: {error}"
    return task, ""


# ------------------------------------------------------------------------------------------------ correctness


def _sizes(small: bool) -> list[tuple[int, int, int]]:
    """(n, d, f)"""
    return [(15, 70, 3)] if small else [(15, 70_001, 3), (51, 79_510, 12)]


def _types(small: bool) -> list[str]:
    return ["float32", "float64"] if small else list(TYPES)


@lru_cache(maxsize=16)
def hostile(n: int, d: int, f: int, dtype: torch.dtype) -> Tensor:
    """[n, d] on the host, about a point that is not the origin; the last f rows are NaN of
    either sign, infinite, huge, null."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n, d)) + generator.standard_normal(d)
    for i, row in enumerate(range(n - f, n)):
        value = (np.nan, np.inf, 1e30, 0.0)[i % 4]
        x[row, :: (1, 3, 1, 1)[i % 4]] = value
        if i % 4 == 0:
            x[row, 1::2] = -np.nan
    return torch.from_numpy(x).to(dtype)


def _decided(kind: type[Any], x: Tensor, f: int) -> Tensor:
    """The answer of a rule or a mixing."""
    stage = kind(f=f) if "f" in [option.name for option in fields(kind)] else kind()
    if isinstance(stage, vg.Rule) and stage.uses_previous:
        return stage(x, previous=torch.zeros_like(x[0]))
    return stage(x)


def _crafted(kind: type[Any], x: Tensor, f: int) -> Tensor:
    """The vectors of an attack, for the other rows."""
    h = x.shape[0] - f
    return kind()(
        x[:h], f, vg.Median(f), previous=x[:h].mean(0), random=np.random.default_rng(3), poisoned=-x[:f].clone()
    )


STAGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    **{f"rule {name}": partial(_decided, kind) for name, kind in vg.RULES.items()},
    **{f"mixing {name}": partial(_decided, kind) for name, kind in vg.MIXINGS.items()},
    **{f"attack {name}": partial(_crafted, kind) for name, kind in vg.ATTACKS.items()},
}

DRAWN = ("attack gaussian", "attack scattered")  # by the million, and therefore on the card

# Relative difference of a column at which card and CPU are apart, and the share of columns that may be: those where two
# values are equally close to a mean but for its last bit, and either is right.
BOUNDS = {"float32": (1e-5, 1e-4), "float64": (1e-11, 1e-4), "bfloat16": (1e-2, 1e-2)}


def correct(bench: Bench) -> None:
    """Whole trajectories; every rule, mixing and attack on the device against the CPU, and kernels against plain torch,
    in all types, twice the same bits. What is used most comes first."""
    bench.report.each(TRAJECTORIES, str, partial(_trajectory, bench), "trajectories")
    at: Callable[[Any], str] = lambda c: f"{c[0]} ({c[1]}, {c[2]}) {c[4]}"  # noqa: E731
    for kind in _types(bench.small):
        sizes = [(*size, kind) for size in (*_sizes(bench.small), (15, 1, 3))]
        stages = [(name, *size) for size in sizes for name in STAGES]
        passes = [(name, *size) for size in sizes for name in contract(*size[:1])]
        bench.report.each(passes, at, partial(_against_plain, bench), "kernels against plain")
        bench.report.each(stages, at, partial(_against_cpu, bench), "stages against the CPU")


def _against_cpu(bench: Bench, case: tuple[str, int, int, int, str]) -> tuple[float, float]:
    """(largest relative difference, share of columns apart) of what a stage answers, on the device and on the CPU."""
    name, n, d, f, kind = case
    x = hostile(n, d, f, TYPES[kind])
    there = x.to(bench.device)
    expected = _or_refusal(name, x, f)
    ours, again = (_or_refusal(name, there, f) for _ in range(2))
    if isinstance(expected, str) or isinstance(ours, str) or isinstance(again, str):
        if ours != expected:
            raise Wrong(f"{ours} on the device, {expected} on the CPU")
        return 0.0, 0.0
    if name in DRAWN:  # of a card's own numbers the spread is what can be compared
        ours, again, expected = ((y.cpu() - x[: n - f].mean(0)).double().std() for y in (ours, again, expected))
        if not same_bits(ours, again) or (d > 100 and abs(float(ours / expected) - 1) > 0.05):
            raise Wrong(
                f"noise of deviation {float(ours):.4g}, {float(again):.4g} again, {float(expected):.4g} expected"
            )
        return abs(float(ours / expected) - 1), 0.0
    return _compared([ours.cpu()], [again.cpu()], [expected], kind)


class Wrong(Exception):
    """Something else came out than should."""


def _compared(
    ours: Sequence[Tensor], again: Sequence[Tensor], expected: Sequence[Tensor], kind: str
) -> tuple[float, float]:
    """(largest relative difference, share of numbers apart), if they are in bounds and two calls gave one answer."""
    if not all(same_bits(a, b) for a, b in zip(ours, again, strict=True)):
        raise Wrong("two calls answer different bits")
    bound, allowed = BOUNDS[kind]
    found = [differences(a, b, bound) for a, b in zip(ours, expected, strict=True)]
    largest, share = max(a for a, _ in found), max(b for _, b in found)
    if share > (allowed if expected[0].numel() > 1000 else 0):
        raise Wrong(f"{share:.3%} of the numbers are apart, by up to {largest:.1e}")
    return largest, share


def _or_refusal(name: str, x: Tensor, f: int) -> Tensor | str:
    try:
        return STAGES[name](x, f)
    except ValueError as refusal:  # Refused is one
        return f"{type(refusal).__name__}: {refusal}"


def differences(ours: Tensor, expected: Tensor, bound: float) -> tuple[float, float]:
    """(largest difference relative to its column's size and to the mean one's, share of numbers above the bound)."""
    a, b = ours.double(), expected.double()
    same = (a == b) | (a.isnan() & b.isnan())
    finite = b[b.isfinite()].abs()
    size = b.abs().clamp_min(float(finite.mean()) if finite.numel() else 1.0)
    relative = torch.where(same, 0.0, (a - b).abs() / size).nan_to_num(math.inf, math.inf)
    return float(relative.max()), float((relative > bound).double().mean())


def same_bits(a: Tensor, b: Tensor) -> bool:
    a, b = (t.detach().cpu().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def contract(n: int) -> dict[str, Callable[[Any, Tensor, int], Any]]:
    """Each kernel, as a call of the module that has it, for n rows of which f are Byzantine."""
    half, low, high = np.where(np.arange(n) % 2, 0.0, 2 / n), (n - 1) // 2, n // 2 + 1
    return {
        "median": lambda k, x, f: k.column_statistic(x, low, high),
        "trimmed mean": lambda k, x, f: k.column_statistic(x, f, n - f),
        "phocas": lambda k, x, f: k.column_statistic(x, f, n - f, n - f),
        "meamed": lambda k, x, f: k.column_statistic(x, low, high, n - f),
        "median of mixtures": lambda k, x, f: k.column_statistic(x, low, high, mixing=_nearest(n, f)),
        "mean and std": lambda k, x, f: k.mean_and_std(x),
        "weighted rows": lambda k, x, f: k.weighted_rows(x, half),
        "weighted rows, extra": lambda k, x, f: k.weighted_rows(x, np.append(half, 0.5), x[:1].clone()),
        "mixtures": lambda k, x, f: k.weighted_rows(x, _nearest(n, f)),
        "panel of mixtures": lambda k, x, f: k.weighted_panel(
            x, _nearest(n, f), None, start=0, stop=min(x.shape[1], 1000)
        ),
        "squared distances": lambda k, x, f: k.squared_distances(x),
        "squared distances, extra": lambda k, x, f: k.squared_distances(x, x[:1].clone()),
        "distances of mixtures": lambda k, x, f: k.mixed_distances(x, _nearest(n, f), None, others=False),
        "squared norms": lambda k, x, f: k.squared_norms(x),
        "norms": lambda k, x, f: k.norms(x),
        "inner products": lambda k, x, f: k.inner_products(list(x[:7])),
        "distances to a point": lambda k, x, f: k.squared_distances_to(x, x[0].clone()),
        "squared around": lambda k, x, f: k.squared_around(x, half),
        "relations": lambda k, x, f: k.relations(x, x[0].clone()),
        "relations over blocks": lambda k, x, f: k.relations(x[: n - f], x[0].clone(), **_blocks(x, 64)),
        "weights in a median": lambda k, x, f: k.statistic_weights(x, low, high, **_blocks(x, 16)),
        "weights in trimmed mean": lambda k, x, f: k.statistic_weights(x, f, n - f),
        "weights in meamed": lambda k, x, f: k.statistic_weights(x, low, high, n - f, **_blocks(x, 16)),
        "weights of mixtures": lambda k, x, f: k.statistic_weights(
            x, low, high, mixing=_nearest(n, f), **_blocks(x, 16)
        ),
        "blend": lambda k, x, f: k.blend(0.5, x, 0.25, x[0].clone()),
        "blend, beyond the type": lambda k, x, f: k.blend(1e300, x, -1e-300, x[0].clone()),
        "send rows": lambda k, x, f: _sent(k, x),
        "kept values": lambda k, x, f: _kept(k, x, np.arange(n - f)),
    }


def _sent(module: Any, x: Tensor) -> tuple[Any, ...]:
    """The worker half: out, and the moments of what was sampled and of what is sent."""
    rows = x.clone() if x.dtype in (torch.float32, torch.float64) else x.float()
    memory = rows.clone()
    sampled, sent = module.send_rows(
        rows, 1e-4, rows[0].clone(), scale=lambda norm: (2.0 / norm).clamp(max=1.0), keep=1.0, beta=0.9,
        memory=memory, out=memory, moments=True,
    )  # fmt: skip
    return memory, *(sampled or ()), *(sent or ())


def _kept(module: Any, x: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """What LASA asks of the values that are left when each row drops a third of them, the least."""
    ends, weights = (0, x.shape[1]), np.full((1, len(rows)), 1 / len(rows))
    kept = module.kept_of(x, rows, x.shape[1] // 3)
    return module.kept_sums(x, kept, ends), module.kept_mean(x, kept, weights, ends)


def _blocks(x: Tensor, width: int) -> dict[str, Any]:
    """32 blocks of columns at most, as a step looks at: on a device it is told there which."""
    d = x.shape[1]
    width = min(width, d)
    starts = np.arange(0, d - width + 1, max(width, (d - width) // 31))
    return {"starts": kernels.there(starts, x) if kernels.on_device(x) else starts, "width": width}


def _nearest(n: int, f: int) -> np.ndarray:
    """[n, n] weights as those of nearest-neighbour mixing: n - f of a row are 1 / (n - f)."""
    return np.stack([np.roll(np.where(np.arange(n) < n - f, 1 / (n - f), 0.0), i) for i in range(n)])


def _against_plain(bench: Bench, case: tuple[str, int, int, int, str]) -> tuple[float, float]:
    """(largest relative difference, share of numbers apart) of a kernel from plain torch, on the device."""
    name, n, d, f, kind = case
    x = hostile(n, d, f, TYPES[kind]).to(bench.device)
    ours, again, expected = (_tensors(contract(n)[name](k, x, f)) for k in (kernels, kernels, plain))
    return _compared(*([_numbers(x) for x in answers] for answers in (ours, again, expected)), kind)


def _numbers(x: Tensor) -> Tensor:
    """On the host, infinities as NaN: of sums over rows that are not finite either may come out."""
    return torch.where(x.isfinite(), x, math.nan).cpu()


def _tensors(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else list(answer)


TRAJECTORIES = {
    "median, momentum at workers": {"rule": "median", "clip": 2.0, "l2": 1e-4},
    "multi-krum, momentum at the server": {"rule": "multi-krum", "momentum_at": "server"},
    "nnm, trimmed mean, published": {"rule": "trimmed-mean", "pre": ("nnm",), "profile": "published", "clip": 2.0},
    "bulyan, nesterov": {"rule": "bulyan", "nesterov": True},
    "median, labels flipped": {"rule": "median", "attack": "label-flip"},
    "median, float64": {"rule": "median", "dtype": "float64"},
}


def _trajectory(bench: Bench, name: str) -> float:
    """Relative difference of the parameters after ten steps on digits, from those on the CPU."""
    base = vg.Experiment(workers=15, byzantine=3, attack="little", momentum=0.9, momentum_at="worker", steps=10)
    e = replace(base, **TRAJECTORIES[name])
    ours, expected = (_parameters(vg.run(x)) for x in (bench.on_device(e), e))
    apart = float((ours - expected).norm() / expected.norm())
    if not apart <= 1e-4:
        raise Wrong(f"parameters {apart:.1e} from the CPU's after ten steps")
    return apart


def _parameters(result: vg.Result) -> Tensor:
    return torch.cat([p.detach().double().cpu().reshape(-1) for p in result.model().parameters()])


# ------------------------------------------------------------------------------------------------ times of kernels


def _shapes(small: bool) -> dict[str, tuple[int, int, int]]:
    """(n, d, f)"""
    if small:
        return {"A": (11, 70, 2)}
    return {"A": (51, 79_510, 24), "B": (25, 1_310_922, 11), "C": (11, 36_489_290, 4)}


@dataclass(frozen=True)
class Timed:
    """A kernel, what torch has for it, and the bytes that must cross memory."""

    ours: Callable[[int], object]
    torchs: Callable[[int], object]
    bytes: int
    limit: float | None = None  # times the reading of the data, as the issue has it


def timed_kernels(x: Tensor, f: int, copies: int = 1) -> dict[str, Timed]:
    """Of [n, d] finite rows; call i takes the i-th of so many copies, so that none comes from the cache."""
    n, d = x.shape
    xs = [x, *(x.clone() for _ in range(copies - 1))]
    outs = [torch.empty_like(x) for _ in xs]
    low, high, h, row = (n - 1) // 2, n // 2 + 1, n - f, d * x.element_size()
    half, table = np.where(np.arange(n) % 2, 0.0, 1 / ((n + 1) // 2)), _nearest(n, f)
    halves, tables = (torch.from_numpy(a).to(x) for a in (half, table))

    def of(call: Callable[[Tensor], object]) -> Callable[[int], object]:
        return lambda i: call(xs[i % copies])

    def send(i: int) -> object:
        out = outs[i % copies][:h]
        return kernels.send_rows(
            xs[i % copies][:h], 1e-4, x[0], scale=lambda norm: (2.0 / norm).clamp(max=1.0), keep=1.0, beta=0.9,
            memory=out, out=out, moments=True,
        )  # fmt: skip

    def torchs_send(i: int) -> object:
        g = xs[i % copies][:h].add(x[0], alpha=1e-4)
        g.mul_((2.0 / g.norm(dim=1, keepdim=True)).clamp(max=1.0))
        sent = outs[i % copies][:h].mul_(0.9).add_(g)
        return torch.std_mean(g, 0), torch.std_mean(sent, 0)

    statistic, every = kernels.column_statistic, n * row
    sort, square = of(lambda x: x.sort(0)), of(lambda x: torch.cdist(x, x))
    return {
        "median": Timed(of(lambda x: statistic(x, low, high)), of(lambda x: x.median(0)), every + row, 1.5),
        "trimmed mean": Timed(of(lambda x: statistic(x, f, n - f)), sort, every + row, 1.5),
        "Phocas": Timed(of(lambda x: statistic(x, f, n - f, n - f)), sort, every + row, 1.5),
        "MeaMed": Timed(of(lambda x: statistic(x, low, high, n - f)), sort, every + row, 1.5),
        "mean and deviation": Timed(of(kernels.mean_and_std), of(lambda x: torch.std_mean(x, 0)), every + 2 * row),
        "squared distances": Timed(of(kernels.squared_distances), square, every, 3.0),
        "mean of half the rows": Timed(
            of(lambda x: kernels.weighted_rows(x, half)), of(lambda x: halves @ x), (n + 1) // 2 * row + row, 1.5
        ),
        "NNM as a matrix": Timed(of(lambda x: kernels.weighted_rows(x, table)), of(lambda x: tables @ x), 2 * every),
        "NNM, median": Timed(
            of(lambda x: statistic(x, low, high, mixing=table)), of(lambda x: (tables @ x).median(0)), every + row
        ),
        "distances after NNM": Timed(
            of(lambda x: kernels.mixed_distances(x, table, None, others=False)),
            of(lambda x: torch.cdist(mixed := tables @ x, mixed)), every,
        ),
        "norms": Timed(of(kernels.norms), of(lambda x: x.norm(dim=1)), every),
        "products of 7 vectors": Timed(
            of(lambda x: kernels.inner_products(list(x[:7]))), of(lambda x: x[:7] @ x[:7].T), 7 * row
        ),
        "worker half": Timed(send, torchs_send, 4 * h * row),
    }  # fmt: skip


def times(bench: Bench) -> None:
    """Each kernel beside torch's operation, and beside the time that its bytes take at the measured rate of copies."""
    rate = _copy_rate(bench)  # bytes a ms, read and written
    bench.report.note("copy_tb_per_s", rate / 1e9)
    for shape, (n, d, f) in _shapes(bench.small).items():
        x = torch.randn(n, d, device=bench.device)
        entries = timed_kernels(x, f, 2 if bench.small else 1 + max(1, 2 * L2_BYTES // x.nbytes))
        bench.report.each(
            entries, lambda name, shape=shape: f"{name}, {shape}",
            lambda name, shape=shape, entries=entries: _timed(bench, f"{name}, {shape}", entries[name], rate),
        )  # fmt: skip
        del x, entries
        bench.card.clear_peak()


def _timed(bench: Bench, name: str, entry: Timed, rate: float) -> dict[str, float]:
    ours, torchs = (bench.card.median_ms(call, limit=0.25) for call in (entry.ours, entry.torchs))
    reading = entry.bytes / rate
    if entry.limit is not None and not name.endswith("A") and ours > entry.limit * reading:
        bench.missed(f"{name}: {ours / reading:.2f} times the reading, aim {entry.limit:g}")
    if name.startswith("median") and torchs < 20 * ours:
        bench.missed(f"{name}: {torchs / ours:.1f} times as fast as torch.median, aim 20")
    return {
        "ms": ours, "torch_ms": torchs, "reading_ms": reading, "times_reading": ours / reading,
        "times_faster": torchs / ours,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ gradients


def gradients(bench: Bench) -> None:
    """All workers' gradients in the way that is chosen, beside the plain loop, with images in the other layout, and
    with more or fewer workers side by side: the same numbers, and ms."""
    names = ("cifar-10", "wide-resnet", "fashion-mnist")
    panels = [(name, tf32) for name in names for tf32 in ((False,) if bench.small else (True, False))]
    bench.report.each(panels, lambda item: f"{item[0]}, {'tf32' if item[1] else 'float32'}", partial(_gradients, bench))


WAYS: dict[str, dict[str, Any]] = {
    "loop": {"method": "loop"},
    "chosen": {},
    "loop, images as they are": {"method": "loop", "layout": "contiguous"},
    "images as they are": {"layout": "contiguous"},
    **{f"{count} at a time": {"streams": count} for count in (1, 3, 7)},
}


def _gradients(bench: Bench, item: tuple[str, bool]) -> dict[str, Any]:
    name, tf32 = item
    panel, tiny = PANELS[name], bench.small
    dataset = _dataset(panel.base.dataset, bench.small, bench.data)
    h, b = (2, 2) if tiny else (panel.base.workers - panel.half, panel.base.batch_size)
    found: dict[str, Any] = {}
    with numerics(str(bench.device), "tf32" if tf32 else "float32"):
        inputs = torch.rand(h, b, *dataset.shape, device=bench.device)
        labels = torch.randint(dataset.classes, (h, b), device=bench.device)
        rows, bits = [], []
        graphs = panel.network != "fully connected"  # and workers side by side on streams
        for way, options in WAYS.items() if graphs else [(way, WAYS[way]) for way in ("loop", "chosen")]:
            model = build_model(partial(_factory, _model(name, tiny)), dataset.shape, dataset.classes, seed=1)
            of_workers = WorkerGradients(model.to(bench.device), **options, seed=1)
            point, out = of_workers.parameters(), torch.empty(h, of_workers.d, device=bench.device)
            of_workers(point, Batch(inputs, labels), out, 3)  # captures, where there is something to capture
            of_workers(point, Batch(inputs, labels), out, 5)
            rows.append(out.clone())
            of_workers(point, Batch(inputs, labels), out, 5)
            bits.append(same_bits(rows[-1], out))
            ms = bench.card.median_ms(
                lambda i, of_workers=of_workers, point=point, out=out: of_workers(point, Batch(inputs, labels), out, i),
                most=10, limit=0.6,
            )  # fmt: skip
            found[way] = {"ms": ms, "method": of_workers.method, "layout": of_workers.layout}
            del of_workers, model, out
            bench.card.clear_peak()
    for way, row, same in zip(found, rows, bits, strict=True):
        # Dropout draws in the order of memory: other masks in another layout.
        loop = rows[list(found).index("loop, images as they are" if "images" in way else "loop")]
        apart = float((row - loop).norm() / loop.norm())
        found[way]["apart"] = apart
        if not apart <= (1e-2 if tf32 and bench.card.real else 1e-4):
            raise Wrong(f"{way}: gradients {apart:.1e} from those of the loop")
        if not same and found[way]["method"] != "loop":
            raise Wrong(f"{way}: two calls of one step give different bits")
    return found


# ------------------------------------------------------------------------------------------------ steps


@dataclass(frozen=True)
class Case:
    """A step to measure.

    Attributes:
        steps: timed ones.
        waits: how many times the host may wait.
        aim: ms a step, evaluation included.
    """

    panel: str
    f: int
    rule: str
    pre: tuple[str, ...] = ()
    tf32: bool = False
    steps: int = 20
    waits: int = 0
    aim: float | None = None

    @property
    def name(self) -> str:
        rule = ", ".join((*self.pre, self.rule))
        kind = "" if PANELS[self.panel].network == "fully connected" else ", tf32" if self.tf32 else ", float32"
        return f"{self.panel}, {rule}, f = {self.f}{kind}"

    def experiment(self, bench: Bench) -> vg.Experiment:
        panel = PANELS[self.panel]
        e = replace(
            panel.base, byzantine=self.f, rule=self.rule, pre=self.pre, attack="little", momentum_at="worker",
            learning_rate=panel.described[0], nesterov=panel.kinds == (True,), seed=1,
        )  # fmt: skip
        if bench.small:
            e = replace(e, model=_model(self.panel, True), batch_size=2, workers=11, byzantine=2)
        return bench.on_device(replace(e, dataset=self.data(bench).name), self.tf32)

    def data(self, bench: Bench) -> Dataset:
        return _dataset(PANELS[self.panel].base.dataset, bench.small, bench.data)


CASES = (
    Case("fashion-mnist", 24, "median", steps=300, aim=0.4),
    Case("fashion-mnist", 24, "multi-krum", steps=300, waits=1, aim=0.4),
    Case("fashion-mnist", 12, "bulyan", steps=200, waits=1),
    Case("fashion-mnist", 24, "median", ("nnm",), steps=200, waits=1),
    Case("cifar-10", 11, "median", tf32=True, aim=10),
    Case("cifar-10", 5, "multi-krum", tf32=True, waits=1),
    Case("cifar-10", 11, "median", aim=20),
    Case("cifar-10", 5, "multi-krum", waits=1),
    Case("cnn-fashion-mnist", 11, "median", tf32=True),
    Case("wide-resnet", 4, "median", tf32=True, steps=8, aim=50),
    Case("wide-resnet", 2, "multi-krum", tf32=True, steps=8, waits=1, aim=50),
    Case("wide-resnet", 4, "median", steps=4),
)


def _cases(bench: Bench) -> list[Case]:
    """All of them; of tiny sizes one a panel."""
    return list({case.panel: case for case in CASES}.values()) if bench.small else list(CASES)


def steps(bench: Bench) -> None:
    """ms a step of each panel, measures and its share of evaluations included; waits, launches, memory."""
    bench.report.each(_cases(bench), lambda case: case.name, partial(_step, bench))


def _step(bench: Bench, case: Case) -> dict[str, Any]:
    e, card, count = case.experiment(bench), bench.card, 2 if bench.small else case.steps
    card.clear_peak()
    with computing(e):
        simulation, evaluator = build(e, case.data(bench))
        first = card.seconds(simulation.step)
        captured = PANELS[case.panel].network == "fully connected"  # which takes its time
        _advance(simulation, 30 if captured else 1 if bench.small else 4)
        evaluate = partial(evaluator, simulation.gradients, simulation.parameters, 0)
        for _ in range(4 if captured else 1):
            evaluate()
        each = card.seconds(partial(_advance, simulation, count)) / count
        evaluation = card.seconds(evaluate)
        host = _host_profile(partial(_advance, simulation, count))
        simulation.advance()  # so that the one below has one to look back at, as in the middle of a run
        ms, waits = 1e3 * (each + evaluation / e.evaluate_every), card.waits(simulation.advance)
        if len(waits) > case.waits:
            bench.report.wrong(f"{case.name}: waits at {', '.join(waits)}, {case.waits} may be")
        if case.aim is not None and ms > case.aim:
            bench.missed(f"{case.name}: {ms:.2f} ms a step, aim {case.aim:g}")
        return {
            "ms": ms,
            "step_ms": 1e3 * each,
            "evaluation_ms": 1e3 * evaluation,
            "first_ms": 1e3 * first,
            "workers": e.honest,
            "method": simulation.gradients.method,
            "waits": waits,
            "peak_gib": card.peak_gib(),
            "host": host,
            "profile": card.traced(simulation.advance, 1 if bench.small else 3),
        }


def _host_profile(call: Callable[[], object]) -> list[str]:
    """Where the host's time goes, the longest first: ms in the function itself, calls, which."""
    profile = cProfile.Profile()
    profile.runcall(call)
    entries = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    longest = sorted(((own, calls, *place) for place, (_, calls, own, *_) in entries), reverse=True)[:30]
    return [f"{1e3 * own:.1f} ms, {calls}: {Path(file).name}:{line} {name}" for own, calls, file, line, name in longest]


def _advance(simulation: Simulation, count: int) -> None:
    """So many steps, as a run makes them, and the end of the last one."""
    for _ in range(count):
        simulation.advance()
    simulation.settle()


# ------------------------------------------------------------------------------------------------ whole runs


def determinism(bench: Bench) -> None:
    """Thirty steps, and the same with a stop at fifteen: the same bytes. Nobody else's generator has moved."""
    torch.manual_seed(7)
    before = torch.get_rng_state(), bench.card.generator()
    chosen = [c for c in CASES if (c.panel, c.f, c.pre) in (("fashion-mnist", 24, ()), ("cifar-10", 11, ()))]
    bench.report.each(chosen[::2] if bench.small else chosen, lambda case: case.name, partial(_repeated, bench))
    after = torch.get_rng_state(), bench.card.generator()
    if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        bench.report.wrong("the user's random generators have moved")


def _repeated(bench: Bench, case: Case) -> str:
    """Whether a run that was stopped and went on, and another one, write what a whole run writes."""
    e = replace(case.experiment(bench), steps=4 if bench.small else 30, evaluate_every=10)
    with tempfile.TemporaryDirectory() as folder:
        one, other, again = (Path(folder) / name for name in ("whole", "stopped", "again"))
        run = partial(vg.run, e, dataset=case.data(bench))
        whole = run(out=one)
        with suppress(KeyboardInterrupt):
            run(out=other, progress=partial(_stop_at, e.steps // 2))
            raise Wrong(f"the run did not stop at step {e.steps // 2}")
        for said, result in (("resumed", run(out=other)), ("run again", run(out=again))):
            apart = [name for name in ("metrics.csv", "evaluations.csv") if _text(whole, name) != _text(result, name)]
            apart += [] if same_bits(_parameters(whole), _parameters(result)) else ["parameters"]
            if apart:
                raise Wrong(f"{said}: other {', '.join(apart)}")
    return "the same bytes"


def _stop_at(stop: int, step: int, newest: object) -> None:
    if step == stop:
        raise KeyboardInterrupt


def _text(result: vg.Result, name: str) -> bytes:
    assert result.folder is not None
    return (result.folder / name).read_bytes()


LENGTHS = {"fashion-mnist": 300, "cifar-10": 60, "cnn-fashion-mnist": 200, "wide-resnet": 15}


def runs(bench: Bench) -> None:
    """Short real runs of each panel, as users run it: seconds, accuracy, and on real data the CPU's beside it."""
    cases = [c for c in _cases(bench) if not c.pre]
    seeds = [(c, seed) for seed in SEEDS for c in cases if seed == 1 or (c.panel == "fashion-mnist" and c.steps > 20)]
    bench.report.each(seeds, lambda item: f"{item[0].name}, seed {item[1]}", partial(_whole, bench))


def _whole(bench: Bench, item: tuple[Case, int]) -> dict[str, Any]:
    case, seed = item
    e = replace(case.experiment(bench), seed=seed, steps=3 if bench.small else LENGTHS[case.panel])
    e = e if case.panel == "fashion-mnist" else replace(e, evaluate_every=e.steps)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = vg.run(e, folder, case.data(bench))
        seconds = time.perf_counter() - start
    there = _accuracy_on_cpu(e)
    if result.stopped is not None:
        raise Wrong(result.stopped)
    if there is not None and abs(result.max_accuracy - there) > 0.06:  # another processor is 0.03 away at times
        bench.report.wrong(f"{case.name}, seed {seed}: accuracy {result.max_accuracy:.4f}, on the CPU {there:.4f}")
    losses = [row.loss for row in result.measures]
    return {
        "steps": e.steps, "seconds": seconds, "of_steps": result.seconds, "first_loss": losses[0],
        "last_loss": losses[-1], "max_accuracy": result.max_accuracy, "on_cpu": there,
    }  # fmt: skip


def _accuracy_on_cpu(e: vg.Experiment) -> float | None:
    """The maximum accuracy of the same run on two cores, where results/ has it."""
    table = Path(__file__).parents[1] / "results" / e.dataset / "runs.csv"
    if not table.exists():
        return None
    with table.open(encoding="utf-8", newline="") as file:
        return next((float(row["max_accuracy"]) for row in csv.DictReader(file) if row["name"] == e.name), None)


def together(bench: Bench) -> None:
    """Steps a second of all, where several processes share the card, as runs of a sweep do."""
    counts = (1, 2) if bench.small else (1, 2, 4, 8)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(counts[-1] + 1), context.Queue()
    cases = [c for c in _cases(bench) if c.panel in ("fashion-mnist", "cifar-10")][:: 1 if bench.small else 4]
    handed = str(bench.device), bench.small, bench.data
    others = [
        context.Process(target=_stepping, args=(i, handed, cases, counts, barrier, answers), daemon=True)
        for i in range(counts[-1])
    ]
    for process in others:
        process.start()
    try:
        for case in cases:
            found = {}
            for count in counts:
                barrier.wait(max(1.0, bench.report.left))
                found[count] = sum(answers.get(timeout=max(1.0, bench.report.left)) for _ in range(count))
            bench.report.note(case.name, found)
    finally:
        barrier.abort()
        for process in others:
            process.join(5)
            if process.is_alive():
                process.terminate()


def _stepping(
    number: int, handed: tuple[str, bool, Path | None], cases: Sequence[Case], counts: Sequence[int], barrier: Any,
    answers: Any,
) -> None:  # fmt: skip
    """In a process of its own: steps of each case while so many processes do the same."""
    device, small, data = handed
    seconds = 0.3 if small else 2.0
    bench = Bench(None, Card(device, small), small, data)  # type: ignore[arg-type]  # it notes nothing
    for case in cases:
        e = case.experiment(bench)
        with computing(e):
            simulation, _ = build(e, case.data(bench))
            _advance(simulation, 3)
            for count in counts:
                with suppress(threading.BrokenBarrierError):
                    barrier.wait()
                if barrier.broken:
                    return
                if number < count:
                    done, start = 0, time.perf_counter()
                    while time.perf_counter() < start + seconds:
                        simulation.advance()
                        done += 1
                    simulation.settle()
                    answers.put(done / (time.perf_counter() - start))


def engines(bench: Bench) -> None:
    """The engines over NCCL with a rank a card, or over gloo without one: gpu_engines.py."""
    script = Path(__file__).with_name("gpu_engines.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engines.json"
        command = [sys.executable, str(script), "--device", str(bench.device), "--json", str(path)]
        command += ["--seconds", f"{max(5.0, bench.report.left - 5):.0f}", *(["--small"] if bench.small else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=bench.report.left, check=False)
        finally:  # what it found before it ran out of time, too
            if path.exists():
                bench.report.note("found", json.loads(path.read_text("utf-8")))
        if done.returncode:
            bench.report.note("said", done.stderr[-4000:])
            bench.report.wrong(f"{script.name} ended with status {done.returncode}")


def estimate(bench: Bench) -> None:
    """Hours of the paper's study on this card, one run after the other, from the measured steps."""
    measured = bench.report.found["sections"].get("steps", {})
    at: dict[tuple[str, bool], dict[int, float]] = {}
    for case in CASES:
        if not case.pre and case.rule != "bulyan" and "ms" in measured.get(case.name, {}):
            found = measured[case.name]
            at.setdefault((case.panel, case.tf32), {})[found["workers"]] = found["ms"]
    sums = {"main study, tf32": 0.0, "main study, float32": 0.0, "wide-resnet, tf32": 0.0, "wide-resnet, float32": 0.0}
    for tf32 in (True, False):
        for name in OF_THE_PAPER:
            panel = PANELS[name]
            like = {"fully connected": "fashion-mnist", "convolutional": "cifar-10"}.get(panel.network, "wide-resnet")
            known = at.get((like, tf32 and like != "fashion-mnist"))
            if not known:
                bench.report.note(f"{name}, {'tf32' if tf32 else 'float32'}", "no step was measured")
                continue
            one_seed = sum(e.steps * _ms_of(known, e.honest) for e in panel.experiments((1,))) / 3.6e6
            hours = len(SEEDS) * one_seed
            bench.report.note(f"{name}, {'tf32' if tf32 else 'float32'}", hours)
            sums[f"{'main study' if panel.main else 'wide-resnet'}, {'tf32' if tf32 else 'float32'}"] += hours
    bench.report.note("hours", sums)


def _ms_of(known: dict[int, float], workers: int) -> float:
    """Of a step of so many honest workers, from those measured: a line through two, or in proportion to one."""
    (h, ms), *more = sorted(known.items())
    if not more:
        return ms * workers / h
    other, slower = more[-1]
    return max(ms + (slower - ms) * (workers - h) / (other - h), 0.1 * ms)


SECTIONS: dict[str, tuple[float, Callable[[Bench], None]]] = {  # and seconds
    "setup": (10, setup),
    "compile": (60, compile_all),
    "rates": (25, rates),
    "correct": (70, correct),
    "times": (45, times),
    "gradients": (40, gradients),
    "steps": (70, steps),
    "estimate": (5, estimate),
    "determinism": (30, determinism),
    "runs": (50, runs),
    "engines": (100, engines),
    "together": (40, together),
}


def everything(report: Report, options: argparse.Namespace) -> None:
    """All sections that are not done yet, or those asked for, in their order."""
    names = list(SECTIONS) if options.only is None else [name.strip() for name in options.only.split(",")]
    bench = Bench(report, Card(options.device, options.small), options.small, options.data)
    if bench.card.real:
        torch.cuda.set_device(bench.device)
    report.broken = bench.card.broken
    for name, (seconds, section) in SECTIONS.items():
        if name in names and report.found["sections"].get(name, {}).get("status", "to do") == "to do":
            report.run(name, seconds, partial(section, bench))
