"""Stateless randomness: every random number is a function of (seed, purpose, step, worker).

A Philox generator is keyed by the seed and the purpose and its counter starts at (worker, step), so a number depends
neither on what was drawn before it nor on which process draws it. Results therefore do not change with study flags,
with the order of workers, with parallelism, or with an interruption: there is no generator state to save.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GLOBALS = threading.RLock()  # for what torch has but one of in a process: default generators, the default type


@lru_cache(maxsize=64)
def _purpose(purpose: str) -> int:
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    # From 2^63 on as the nearest number that a float64 holds: so the first release had it, whose numbers these are.
    return key if key < 2**63 else min(int(float(key)), 2**64 - 2**11)


def _key(seed: int, purpose: str) -> np.ndarray:
    """Both in full: a list of integers below and beyond 2^63 would become floating-point numbers."""
    return np.array([seed, _purpose(purpose)], np.uint64)


def generator(seed: int, purpose: str, step: int = 0, worker: int = 0) -> np.random.Generator:
    """The generator of one purpose ("batches", "flips", ...) at one step, for one worker.

    Streams never overlap: each has 2^128 numbers of its own.

    Example:
        >>> generator(1, "batches", step=3).integers(10, size=4).tolist()
        [7, 9, 0, 8]
        >>> generator(1, "batches", step=3).integers(10, size=4).tolist()
        [7, 9, 0, 8]
    """
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=[0, 0, worker, step]))


@dataclass(frozen=True)
class Draw:
    """What rules and mixings draw at one step: a function of (seed, purpose, step).

    A value: drawn from twice, it gives the same numbers, so a step can be explained, replayed and resumed, and all
    ranks of a group draw alike.

    Args:
        seed: of the run. Whoever knows it knows all that will be drawn.
        step: how many aggregations came before.

    Example:
        >>> Draw(seed=1, step=3).generator("bucketing").permutation(5).tolist()
        [1, 3, 0, 4, 2]
        >>> Draw(seed=1, step=4).generator("bucketing").permutation(5).tolist()
        [3, 2, 0, 4, 1]
    """

    seed: int = 0
    step: int = 0

    def generator(self, purpose: str, worker: int = 0) -> np.random.Generator:
        """The generator of one purpose; ``worker`` counts what has its own numbers, as the rounds of a rule."""
        return generator(self.seed, purpose, self.step, worker)

    def seeded(self, seed: int) -> Draw:
        """With the seed of a stage of its own beside that of the run; 0 changes nothing."""
        return Draw(self.seed ^ seed, self.step)

    def fork(self) -> Draw:
        """Other numbers of the same step: those of an adversary who tries the defence and does not know the seed."""
        return Draw(integer(self.seed, "fork", self.step), self.step)


BARE = Draw()
"""What a bare call of a rule or a mixing draws, when nobody says the step."""


def indices(seed: int, purpose: str, step: int, *, rows: int, columns: int, size: int | np.ndarray) -> np.ndarray:
    """[rows, columns] uniform integers in [0, size): row i is the same whatever the number of rows.

    One multiplication per number and no rejection, so that row i always starts at word i * columns of the stream; the
    bias is at most size / 2^32. ``size`` may differ from row to row, [rows, 1].
    """
    words = np.random.Philox(key=_key(seed, purpose), counter=[0, 0, 0, step]).random_raw(rows * columns)
    fractions = words.reshape(rows, columns) >> np.uint64(32)
    return (fractions * np.asarray(size, np.uint64) >> np.uint64(32)).astype(np.int64)


def _drawn_there(random: np.random.Generator, device: torch.device) -> torch.Generator:
    """A device's own generator, a function of the numbers that come next."""
    return torch.Generator(device).manual_seed(int(random.integers(2**63 - 1)))


def standard_normal(random: np.random.Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Numbers of N(0, 1) where ``like`` is, of its type: in main memory those of the generator, in single precision. On
    a device they are drawn there, which is faster than to copy them, from the same seed but by another generator."""
    if like.device.type == "cpu":
        return torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(like)
    return torch.randn(shape, generator=_drawn_there(random, like.device), device=like.device).to(like.dtype)


def uniform(random: np.random.Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), likewise."""
    if like.device.type == "cpu":
        return torch.from_numpy(random.random(shape, dtype=np.float32)).to(like)
    return torch.rand(shape, generator=_drawn_there(random, like.device), device=like.device).to(like.dtype)


def integer(seed: int, purpose: str, step: int = 0, worker: int = 0) -> int:
    """A 63-bit integer, to seed a generator of another library (torch's, for instance)."""
    return int(generator(seed, purpose, step, worker).integers(2**63 - 1))


class Drawn(TorchDispatchMode):
    """Inside, and in this thread, whatever torch draws is a function of the seed: its global generators are neither
    used nor moved, whatever other threads draw meanwhile.

    The numbers are those that ``torch.manual_seed(seed)`` would give.

    Args:
        seed: from 0 to 2^63 - 1.

    Attributes:
        drew: whether anything was drawn so far.

    Example:
        >>> with Drawn(3):
        ...     ours = torch.rand(2)
        >>> torch.equal(ours, torch.rand(2, generator=torch.Generator().manual_seed(3)))
        True
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.drew = False
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler at the first operation: a second, of a run that compiles nothing."""
        return False

    @property
    def counts(self) -> bool:
        """Whether any number was taken from the seed: what may draw does not always, as dropout with probability 0."""
        return any(
            not torch.equal(generator.get_state(), torch.Generator(device).manual_seed(self._seed).get_state())
            for device, generator in self._generators.items()
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.drew = True
        tensor = next((value for value in args if isinstance(value, Tensor)), None)
        device = torch.device(kwargs.get("device") or ("cpu" if tensor is None else tensor.device))
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        generator = self._generators[device]
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)  # the caller's own
        for overload in (func, *_with_generator(func)):
            if any(argument.name == "generator" for argument in overload._schema.arguments):
                return overload(*args, **(kwargs | {"generator": generator}))
        with _as_default(generator):
            return func(*args, **kwargs)


def _with_generator(func: Any) -> Iterator[Any]:
    """rand.default -> rand.generator, randint.low -> randint.low_generator."""
    packet, name = func.overloadpacket, func._overloadname
    wanted = "generator" if name == "default" else f"{name}_generator"
    if wanted in packet.overloads():
        yield getattr(packet, wanted)


@contextmanager
def _as_default(generator: torch.Generator) -> Iterator[None]:
    """For what torch lets draw from a device's default generator only: that has this one's state inside."""
    device = generator.device
    if device.type == "cpu":
        default = torch.default_generator
    else:
        index = torch.cuda.current_device() if device.index is None else device.index
        default = torch.cuda.default_generators[index]
    with GLOBALS:
        former = default.get_state()
        default.set_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(default.get_state())
            default.set_state(former)
