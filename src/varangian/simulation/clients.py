"""The federated regime: who is in a round, and what those remember who are not.

Of N clients n take part in a round. Who they are, and who attacks, is a function of (seed, step); what a client keeps
from round to round is its momentum.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import kernels, randomness
from ..core.checks import require, set_whole

Absent = Literal["kept", "kept-on-disk", "decayed", "dropped"]
BLOCK = 2**24  # bytes asked for at a time: of so many most lie in large pages
IMPROBABLE = 1e-9  # rounds rarer than this are not asked about before a run


class Round(NamedTuple):
    """Who takes part in a round: the numbers of the clients, honest ones [h] and then those that attack [f], each in
    ascending order."""

    honest: np.ndarray
    byzantine: np.ndarray

    @property
    def clients(self) -> np.ndarray:
        return np.concatenate(self)


@dataclass(frozen=True)
class Population:
    """N clients, of whom n are drawn for each round, uniformly and without replacement, and B are Byzantine.

    How many attack in a round varies: hypergeometric, B n / N on average. The rule tolerates f of n in every round, and
    that there are more of them in some rounds is what sampling costs: see :meth:`exceeding`.

    Args:
        clients: N.
        workers: n, those in a round; 1 <= n <= N.
        byzantine: B, less than N.
        changes: after how many rounds B other clients attack, drawn anew; 0 for never.

    Convention: a round in which nobody is honest, or of n > 1 workers only one is, is drawn again: no spread is defined
        there.

    Example:
        >>> people = Population(clients=1000, workers=20, byzantine=100)
        >>> people.round(seed=1, step=0).byzantine.tolist(), people.round(seed=1, step=1).byzantine.tolist()
        ([66, 109, 219, 766], [840])
        >>> round(people.exceeding(4), 3)
        0.041
    """

    clients: int
    workers: int
    byzantine: int = 0
    changes: int = 0

    def __post_init__(self) -> None:
        for name, least in (("clients", 1), ("workers", 1), ("byzantine", 0), ("changes", 0)):
            set_whole(self, name, least=least)
        require(self, self.workers <= self.clients, f"workers of at most clients = {self.clients}", self.workers)
        honest = self.clients - self.byzantine
        least = min(2, self.workers)
        require(self, honest >= least, f"at least {least} clients that are honest", honest)

    def pool(self, seed: int, step: int) -> np.ndarray:
        """[B] the clients that attack at a step, whether they are in the round or not, in ascending order."""
        return _pool(self, seed, step // self.changes if self.changes else 0)

    def round(self, seed: int, step: int) -> Round:
        """Who takes part at a step."""
        return _round(self, seed, step)

    def chances(self) -> dict[int, float]:
        """Of each number of attackers that a round may have, the probability; those under 1e-9 are left out."""
        most = min(self.byzantine, self.workers - min(2, self.workers))
        least = max(0, self.workers - (self.clients - self.byzantine))
        counts = range(least, most + 1)
        logs = [
            _log_comb(self.byzantine, k) + _log_comb(self.clients - self.byzantine, self.workers - k) for k in counts
        ]
        weights = np.exp(np.array(logs) - max(logs))
        shares = weights / weights.sum()
        return {k: float(p) for k, p in zip(counts, shares, strict=True) if p >= IMPROBABLE}

    def exceeding(self, f: int) -> float:
        """The probability that more than f of those in a round attack.

        P[K > f],  K ~ hypergeometric(N, B, n)

        Reference: Allouah et al., "Byzantine-Robust Federated Learning: Impact of Client Subsampling and Local
        Updates", ICML 2024.
        """
        return sum(p for k, p in self.chances().items() if k > f)


@lru_cache(maxsize=16)
def _pool(people: Population, seed: int, turn: int) -> np.ndarray:
    """Drawn once for all the rounds that it attacks in."""
    drawn = randomness.generator(seed, "pool", turn).choice(people.clients, people.byzantine, replace=False)
    drawn.sort()
    drawn.flags.writeable = False
    return drawn


@lru_cache(maxsize=4)
def _round(people: Population, seed: int, step: int) -> Round:
    random, pool = randomness.generator(seed, "round", step), people.pool(seed, step)
    while True:
        drawn = np.sort(random.choice(people.clients, people.workers, replace=False))
        attacks = among(drawn, pool)
        if np.count_nonzero(~attacks) >= min(2, people.workers):
            found = Round(drawn[~attacks], drawn[attacks])
            for numbers in found:
                numbers.flags.writeable = False
            return found


def among(some: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Which of them are in the pool, that is in ascending order."""
    if not len(pool):
        return np.zeros(len(some), bool)
    places = np.searchsorted(pool, some)
    return pool[np.minimum(places, len(pool) - 1)] == some


def _temporary() -> str:
    """The folder for temporary files, that can be written."""
    try:
        with tempfile.TemporaryFile():
            return tempfile.gettempdir()
    except OSError as error:
        raise OSError(
            error.errno,
            f"momenta of absent clients are to be kept on disk, and there is no folder for temporary files "
            f"({error.strerror}); name one in TMPDIR, or take absent kept, decayed or dropped",
        ) from None


def _log_comb(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


class Bank:
    """The momenta of clients between the rounds that they take part in.

    kept, kept-on-disk: a client finds its momentum as it left it. In main memory, or in files without names in the
        folder for temporary files, of which the system holds in memory what it has room for.
    decayed: it is multiplied by mu for each round missed, as if the client had sampled gradients of zero; forgotten
        once that makes less of it than a rounding error.
    dropped: who misses a round begins anew, at zero.

    Args:
        d: numbers in a momentum.
        block: rows to allocate at a time.
        absent: which of the four.
        decay: mu.
        stages: how many momenta a client has.
        dtype: of them.
    """

    def __init__(self, d: int, block: int, absent: Absent, *, decay: float, stages: int, dtype: torch.dtype) -> None:
        self.d, self.block, self.absent, self.decay, self.dtype = d, block, absent, decay, dtype
        self.stages = stages
        # Of disks no more than can be held: what is written to memory that a full disk does not back ends the process.
        self.folder = _temporary() if stages and absent == "kept-on-disk" else None
        self.rows: dict[int, list[Tensor]] = {}  # client -> its momenta, [d] each, in main memory
        self.since: dict[int, int] = {}  # client -> the last round that it was in, those of the earliest first
        self._free: list[Tensor] = []
        self._fresh: Iterator[Tensor] = iter(())  # rows that nobody has used yet

    @property
    def forgets_after(self) -> float:
        """After how many rounds missed a momentum is gone."""
        if self.absent == "dropped":
            return 0
        if self.absent != "decayed":
            return math.inf
        return math.ceil(math.log(torch.finfo(self.dtype).eps) / math.log(self.decay)) if self.decay else 0

    def take(self, clients: np.ndarray, step: int, out: list[Tensor]) -> None:
        """Writes what these clients remember as a round begins into the first rows of ``out``: [k, d] a stage."""

        def one(i: int) -> None:
            client = int(clients[i])
            kept = self.rows.get(client)
            missed = 0 if kept is None else max(0, step - self.since[client] - 1)  # a step may be done again
            for stage, target in enumerate(out):
                row = target[i]
                if kept is None or missed > self.forgets_after:
                    row.zero_()
                elif missed and self.absent == "decayed":
                    torch.mul(kept[stage].to(row.device), self.decay**missed, out=row)
                else:
                    row.copy_(kept[stage])

        kernels.in_threads(one, len(clients), len(clients) * self.d)

    def keep(self, clients: np.ndarray, step: int, momenta: list[Tensor], following: np.ndarray | None = None) -> None:
        """Keeps what these clients remember as a round ends: the first rows of ``momenta``; if it is dropped by all who
        are not among the following, sorted, where those are known, only of these."""
        if not self.stages:
            return
        places = np.arange(len(clients))
        if self.absent == "dropped" and following is not None:
            places = places[among(clients, following)]
            clients = clients[places]
        while self.since and step - self.since[client := next(iter(self.since))] > self.forgets_after:
            del self.since[client]
            self._free += self.rows.pop(client)
        for client in map(int, clients):
            self.since.pop(client, None)
            self.since[client] = step
            if client not in self.rows:
                self.rows[client] = [self._row() for _ in range(self.stages)]

        def one(i: int) -> None:
            for row, momentum in zip(self.rows[int(clients[i])], momenta, strict=True):
                row.copy_(momentum[places[i]])

        kernels.in_threads(one, len(clients), len(clients) * self.d)

    def _row(self) -> Tensor:
        """[d] of memory that nobody uses."""
        if self._free:
            return self._free.pop()
        row = next(self._fresh, None)
        if row is None:
            block = self._block()
            self._fresh = (block[i] for i in range(len(block)))  # one by one: of small models there are millions
            row = next(self._fresh)
        return row

    def _block(self) -> Tensor:
        kind = np.dtype(str(self.dtype).removeprefix("torch."))
        rows = self.block if self.absent == "dropped" else max(self.block, BLOCK // (self.d * kind.itemsize))
        shape = rows, self.d
        if self.folder is None:
            return torch.from_numpy(np.empty(shape, kind))  # which asks the system for large pages, torch does not
        size = math.prod(shape) * kind.itemsize
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:  # lasts for as long as somebody has its memory
                if sys.platform == "linux":
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    for start in range(0, size, BLOCK):
                        file.write(bytes(min(BLOCK, size - start)))
                    file.flush()
                return torch.from_numpy(np.memmap(file, kind, "r+", shape=shape))
        except OSError as error:
            held = len(self.rows) * self.stages * self.d * kind.itemsize
            raise OSError(
                error.errno,
                f"momenta of {len(self.rows):,} clients ({held / 2**20:,.0f} MiB) are in {self.folder}, and no more "
                f"fit there ({error.strerror}); name another folder in TMPDIR, or take absent decayed or dropped",
            ) from None

    def state(self) -> tuple[Tensor, ...]:
        """What is remembered, as tensors: the clients [k], the last round of each [k], and momenta [d], stage by stage
        of each client. They are the living ones."""
        clients = sorted(self.rows)
        numbers = torch.tensor(clients, dtype=torch.int64), torch.tensor([self.since[c] for c in clients])
        return (*(x.to(torch.int64) for x in numbers), *(row for c in clients for row in self.rows[c]))

    def restore(self, state: tuple[Tensor, ...], clients: int, step: int) -> None:
        """Goes on from what :meth:`state` answered before the round ``step``; copied.

        Raises:
            ValueError: it is of something else; nothing has changed then.
        """
        fault = self._fault(state, clients, step)
        if fault is not None:
            raise ValueError(f"clients: {fault}.")
        self._free += [row for rows in self.rows.values() for row in rows]
        known = zip(*(x.tolist() for x in state[:2]), strict=True)
        self.rows, self.since = {}, dict(sorted(known, key=lambda one: one[1]))
        momenta = iter(state[2:])
        for client in sorted(self.since):
            self.rows[client] = [self._row().copy_(next(momenta)) for _ in range(self.stages)]

    def _fault(self, state: object, clients: int, step: int) -> str | None:
        if not (isinstance(state, tuple) and len(state) >= 2 and all(isinstance(x, Tensor) for x in state)):
            return "their numbers and their momenta are needed"
        numbers, since, *momenta = state
        if any(x.dtype != torch.int64 or x.ndim != 1 or len(x) != len(numbers) for x in (numbers, since)):
            return "a number and a round of each is needed"
        known, last = numbers.tolist(), since.tolist()
        if known != sorted(set(known)) or not all(0 <= c < clients for c in known):
            return f"numbers of {clients:,} clients are needed, each once"
        if not all(0 <= s <= step and step - 1 - s <= self.forgets_after for s in last):
            return f"rounds until {step} that are not forgotten are needed"
        if len(momenta) != len(known) * self.stages or any(
            m.shape != (self.d,) or m.dtype != self.dtype for m in momenta
        ):
            return f"{self.stages} momenta [{self.d}] of each of {self.dtype} are needed"
        return None
