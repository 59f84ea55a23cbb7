"""Time and memory of one aggregation, beside those of a plain mean of the same vectors."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ...core.randomness import generator
from .card import Memory, Time, Untried
from .subject import Subject

SIZES = ((11, 1_000), (11, 100_000), (51, 1_000), (51, 100_000), (11, 1_000_000))
LONGEST = 2.0  # seconds that one aggregation may take for the next size to be tried
REPEATED = 0.1  # seconds over which a time is the least of several
LEAST = 2**20  # bytes below which memory tells nothing: what the process had freed before is used again


def cost(subject: Subject, f_of: Callable[[int], int]) -> tuple[list[Time], list[Memory], list[Untried]]:
    """For several n and d, with f attackers expected among n as ``f_of`` says."""
    times: list[Time] = []
    memories: list[Memory] = []
    untried: list[Untried] = []
    slowest = 0.0
    for n, d in SIZES:
        f = f_of(n)
        if slowest > LONGEST:
            untried.append(Untried(f"time and memory at n = {n}, d = {d:,}", f"a smaller one took {slowest:.1f} s"))
            continue
        x = torch.from_numpy(generator(n, "cost").standard_normal((n, d), dtype="float32"))
        root = x.mean(0)

        def ask(x: torch.Tensor = x, f: int = f, root: torch.Tensor = root) -> torch.Tensor:
            return subject.answer(x, f, root)

        try:
            began = time.perf_counter()
            ask()
            slowest = max(slowest, time.perf_counter() - began)
            seconds = _least(ask)
        except Exception as error:
            untried.append(Untried(f"time and memory at n = {n}, d = {d:,}", f"{type(error).__name__}: {error}"))
            continue
        times.append(Time(n, d, seconds, seconds / _least(lambda x=x: x.mean(0))))
        slowest = seconds
        taken = 4 * n * d
        if taken >= 4 * LEAST and (peak := _peak(ask)) is not None:
            memories.append(Memory(n, d, peak, peak / taken))
    return times, memories, untried


def _least(call: Callable[[], object]) -> float:
    """Seconds of a call: the least of several, once it is warm."""
    call()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - began < REPEATED and len(found) < 1000):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def _peak(call: Callable[[], object]) -> int | None:
    """Bytes that this process grows by during a call, at most; None where the system does not say. Linux does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest is counted from here on
        before = _resident("VmRSS")
        call()
        return max(_resident("VmHWM") - before, 0)
    except (OSError, StopIteration, ValueError):
        return None


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))
