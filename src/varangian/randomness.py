"""Stateless randomness: every random number is a function of (seed, purpose, step, worker).

A Philox generator is keyed by the seed and the purpose and its counter starts at (worker, step), so a number depends
neither on what was drawn before it nor on which process draws it. Results therefore do not change with study flags,
with the order of workers, with parallelism, or with an interruption: there is no generator state to save.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)
def _key(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")


def generator(seed: int, purpose: str, step: int = 0, worker: int = 0) -> np.random.Generator:
    """The generator of one purpose ("batches", "flips", ...) at one step, for one worker.

    Streams never overlap: each has 2^128 numbers of its own.

    Example:
        >>> generator(1, "batches", step=3).integers(10, size=4).tolist()
        [7, 9, 0, 8]
        >>> generator(1, "batches", step=3).integers(10, size=4).tolist()
        [7, 9, 0, 8]
    """
    return np.random.Generator(np.random.Philox(key=[seed, _key(purpose)], counter=[0, 0, worker, step]))


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


def indices(seed: int, purpose: str, step: int, rows: int, columns: int, size: int | np.ndarray) -> np.ndarray:
    """[rows, columns] uniform integers in [0, size): row i is the same whatever the number of rows.

    One multiplication per number and no rejection, so that row i always starts at word i * columns of the stream; the
    bias is at most size / 2^32. ``size`` may differ from row to row, [rows, 1].
    """
    words = np.random.Philox(key=[seed, _key(purpose)], counter=[0, 0, 0, step]).random_raw(rows * columns)
    fractions = words.reshape(rows, columns) >> np.uint64(32)
    return (fractions * np.asarray(size, np.uint64) >> np.uint64(32)).astype(np.int64)


def integer(seed: int, purpose: str, step: int = 0, worker: int = 0) -> int:
    """A 63-bit integer, to seed a generator of another library (torch's, for instance)."""
    return int(generator(seed, purpose, step, worker).integers(2**63 - 1))
