"""What the engines of torch.distributed share: an algorithm whose vectors lie in pieces on the ranks.

Each of W ranks sends every other rank a piece of its vector, and so holds all ranks' values of its own coordinates,
[W, L]: all that a coordinate-wise rule looks at. What looks at whole vectors looks at their squared distances, and
those of long vectors are the sums of those of their pieces: (W + 1)^2 numbers cross the network, all decide alike, and
each rank applies the weights to the coordinates that it holds.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace

import numba
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .. import kernels
from ..algorithm import Algorithm, State, finite_rows
from ..checks import brief
from ..explanation import shares_of, statistic_of
from ..geometry import Geometry, Held, Vectors
from ..randomness import Draw
from ..rules.core import Decision, check_rows, measure, weigh
from .history import History

try:
    from torch.distributed import all_gather_single  # torch >= 2.13, which warns about the old name
except ImportError:
    from torch.distributed import all_gather_into_tensor as all_gather_single

SAMPLE = 256  # columns a rank and step on which the weights of a coordinate-wise rule are counted, for the report


class TooManyFaulty(ValueError):
    """More than f ranks sent NaN or infinity."""


class Ranks:
    """The process group and what is done with it. Every method is a collective: all ranks call it, in one order."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group, self.device = group, device
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def exchange(self, vector: Tensor, matrix: Tensor) -> dist.Work | None:
        """Starts to send everybody a piece of one's vector [W L]; all ranks' pieces will be in the matrix [W, L]."""
        return dist.all_to_all_single(_bytes(matrix.view(-1)), _bytes(vector), group=self.group, async_op=True)

    def gather(self, part: Tensor, whole: Tensor) -> dist.Work | None:
        """Starts to send everybody one's part [L]; all ranks' parts will be in the whole [W L]."""
        return all_gather_single(_bytes(whole), _bytes(part), group=self.group, async_op=True)

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over ranks, in float64, the same on all of them."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(self.device)
        self.add(tensor)
        return tensor.cpu().numpy()

    def add(self, block: Tensor) -> None:
        """Replaces it by the sum over ranks."""
        dist.all_reduce(block, group=self.group)

    def agree(self, owner: str, told: dict[str, str]) -> tuple[str, ...]:
        """The host names of all ranks, once they agree on some texts.

        Raises:
            ValueError: on every rank, where one was told something else.
        """
        digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in told.values())
        name = socket.gethostname().encode()[:64].ljust(64, b"\0")
        mine = torch.frombuffer(bytearray(digests + name), dtype=torch.uint8).to(self.device)
        everyone = mine.new_empty(self.size * mine.numel())
        work = self.gather(mine, everyone)
        if work is not None:
            work.wait()
        rows = [bytes(row) for row in everyone.cpu().view(self.size, -1).numpy()]
        for i, what in enumerate(told):
            odd = [r for r, row in enumerate(rows) if row[8 * i : 8 * i + 8] != rows[0][8 * i : 8 * i + 8]]
            if odd:
                raise ValueError(f"{owner} needs the same {what} on all ranks, got others on {odd} than on rank 0.")
        return tuple(row[-64:].rstrip(b"\0").decode(errors="replace") for row in rows)


def _bytes(x: Tensor) -> Tensor:
    """The same memory as a type that every backend moves: not all of them know the half types."""
    return x.view(torch.uint8) if x.element_size() < 4 else x


def versions() -> str:
    """What must agree for ranks to decide alike, to the last bit."""
    parts = (torch.__version__, np.__version__, numba.__version__, torch.backends.cpu.get_cpu_capability())
    return " ".join(map(str, parts))


@dataclass(frozen=True)
class Span:
    """Neighbouring coordinates of a chunk that are neighbours in the whole vector too: those of one parameter."""

    name: str
    size: int
    first: int  # in the whole vector


class Chunk:
    """A part of the whole vector that is sent at once: a bucket of DDP, a unit of FSDP, or all of it.

    Attributes:
        spans: what it is made of.
        length: how many coordinates.
        width: L, of the piece that each rank holds.
        state: the algorithm's memory of it: of this one worker, and of the server.
    """

    def __init__(self, spans: Sequence[Span], size: int, state: State) -> None:
        self.spans, self.state = tuple(spans), state
        self.length = sum(span.size for span in spans)
        self.width = -(-self.length // size)
        # Of the step under way:
        self.after = state
        self.sent = self.matrix = self.whole = self.part = torch.empty(0)
        self.previous: Tensor | None = None
        self.work: dist.Work | None = None
        self.faulty = self.shares = self.squared = np.zeros(size)
        self.distances: np.ndarray | None = None
        self.counted = 0

    def make_room(self, like: Tensor, size: int, gathers: bool) -> None:
        """Buffers for vectors of this type, which are kept from step to step."""
        if self.matrix.dtype != like.dtype or self.matrix.shape != (size, self.width):
            self.matrix = like.new_empty(size, self.width)
            self.sent = like.new_zeros(0 if self.length % size == 0 else size * self.width)
            self.whole = like.new_empty(size * self.width if gathers else 0)

    def padded(self, vector: Tensor) -> Tensor:
        """[W L]: with zeros at the end where W does not divide the length."""
        if not self.sent.numel():
            return vector.contiguous()
        self.sent[: self.length] = vector
        return self.sent


class Sharded(Vectors):
    """Vectors in pieces: rank r holds coordinates r L to (r + 1) L of each chunk. Its methods are collectives."""

    def __init__(self, ranks: Ranks, chunks: Sequence[Chunk]) -> None:
        self.ranks, self.chunks = ranks, chunks

    @property
    def d(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    @property
    def e(self) -> int:
        return int(self.chunks[0].previous is not None)

    @property
    def dtype(self) -> torch.dtype:
        dtype = torch.float32
        for chunk in self.chunks:
            dtype = torch.promote_types(dtype, chunk.matrix.dtype)
        return dtype

    def columns(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Each rank fills in what it holds; the others add nothing to it."""
        n, rank = self.ranks.size, self.ranks.rank
        block = torch.zeros(n + self.e, stop - start, dtype=self.dtype, device=self.ranks.device)
        for chunk in self.chunks:
            low, at = rank * chunk.width, 0
            high = min(low + chunk.width, chunk.length)
            for span in chunk.spans:
                shift = at - span.first
                first, last = max(at, low, start + shift), min(at + span.size, high, stop + shift)
                if first < last:
                    here, there = slice(first - low, last - low), slice(first - shift - start, last - shift - start)
                    block[:n, there] = chunk.matrix[:, here].to(self.dtype)
                    if chunk.previous is not None:
                        block[n, there] = chunk.previous[here].to(self.dtype)
                at += span.size
        self.ranks.add(block)
        return block[:n], block[n:] if self.e else None

    def _held(self) -> list[Held]:
        return [Held(c.matrix, None if c.previous is None else c.previous.unsqueeze(0)) for c in self.chunks]

    def measured(self, table: np.ndarray, extra: bool) -> np.ndarray:
        return self.ranks.total(sum(held.measured(table, extra) for held in self._held()))  # type: ignore[arg-type]

    def around(self, weights: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        return self.ranks.total(sum(held.around(weights, scales) for held in self._held()))  # type: ignore[arg-type]


class Aggregation:
    """An algorithm over ranks, step by step: begin each chunk, settle each, finish all.

    Args:
        algorithm: its worker half runs on each rank's own gradient, its server half on all ranks' pieces.
        ranks: who takes part.
        d: coordinates in all.
        gathers: whether every rank gets the whole update, or keeps to its piece.
    """

    def __init__(self, algorithm: Algorithm, ranks: Ranks, d: int, gathers: bool) -> None:
        self.algorithm, self.ranks, self.gathers = algorithm, ranks, gathers
        self.measures = bool(algorithm.pre) or algorithm.rule.needs_geometry
        self.table = None if self.measures else weigh(ranks.size, (), algorithm.rule, None)[0]
        self.stride = max(1, d // (ranks.size * SAMPLE))

    def begin(self, chunk: Chunk, gradient: Tensor) -> None:
        """The worker half, and the exchange starts. [length] is what this rank sampled; it may be sent as it is."""
        wide = gradient if gradient.element_size() >= 4 else gradient.float()  # momentum needs more digits than a half
        sent, chunk.after = send(self.algorithm, wide, chunk.state)
        chunk.make_room(gradient, self.ranks.size, self.gathers)
        chunk.work = self.ranks.exchange(chunk.padded(sent.to(gradient.dtype)), chunk.matrix)
        if chunk.state.previous is not None and self.algorithm.rule.uses_previous:
            piece = chunk.state.previous
            if self.gathers:
                low = self.ranks.rank * chunk.width
                own = piece[low : low + chunk.width]
                piece = own.new_zeros(chunk.width)
                piece[: own.numel()] = own
            chunk.previous = piece.to(gradient.dtype)

    def settle(self, chunk: Chunk) -> None:
        """The pieces are here: what can be done without those of other chunks, and of other ranks."""
        if chunk.work is not None:
            chunk.work.wait()
        algorithm, x = self.algorithm, chunk.matrix
        chunk.faulty = ~finite_rows(x)
        if self.measures:
            extra = None if chunk.previous is None else chunk.previous.unsqueeze(0)
            chunk.distances = measure(x, algorithm.pre, algorithm.rule, extra)
        elif algorithm.rule.robust and chunk.faulty.sum() > algorithm.rule.f:
            self._decided(chunk, x.new_zeros(chunk.width), self.table)  # all ranks will hear of it when the step ends
        else:
            self._decided(chunk, algorithm.rule.apply(x, self.table, chunk.previous), self.table)

    def _decided(self, chunk: Chunk, part: Tensor, table: np.ndarray | None) -> None:
        """The aggregate's piece is known: off it goes; then what the report wants to know of it."""
        chunk.part = part
        if self.gathers:
            chunk.work = self.ranks.gather(part, chunk.whole)
        chunk.squared = kernels.squared_distances_to(chunk.matrix, part)
        statistic = statistic_of(self.algorithm.rule, chunk.matrix.shape[0] if table is None else table.shape[0])
        if statistic is not None:
            held = min(chunk.width, chunk.length - self.ranks.rank * chunk.width)
            columns = np.arange(0, max(held, 0), self.stride)
            chunk.counted = columns.size
            chunk.shares = shares_of(chunk.matrix, table, statistic, columns) * columns.size

    def finish(self, chunks: Sequence[Chunk], history: History) -> list[Tensor]:
        """The update of each chunk, [length], or [L] where ranks keep to their pieces; and the step is recorded.

        Raises:
            TooManyFaulty: on all ranks, if more than f sent NaN or infinity. Nothing is remembered of the step then.
        """
        size, table, geometry = self.ranks.size, self.table, None
        faulty = sum(chunk.faulty.astype(float) for chunk in chunks)
        if self.measures:
            parts = [chunk.distances for chunk in chunks]
            squared = sum(part for part in parts if part is not None)
            assert isinstance(squared, np.ndarray)
            numbers = self.ranks.total(np.concatenate([faulty, squared.ravel()]))
            refuse(self.algorithm, numbers[:size] > 0, history)
            geometry = Geometry.measured_as(numbers[size:].reshape(squared.shape), Sharded(self.ranks, chunks))
            draw = Draw(chunks[0].state.seed, chunks[0].state.step)
            table, geometry = weigh(size, self.algorithm.pre, self.algorithm.rule, geometry, draw)
            for chunk in chunks:
                self._decided(chunk, self.algorithm.rule.apply(chunk.matrix, table, chunk.previous), table)
        numbers = self.ranks.total(
            np.concatenate(
                [
                    faulty,
                    sum(chunk.squared for chunk in chunks),
                    sum(chunk.shares for chunk in chunks),
                    [sum(chunk.counted for chunk in chunks)],
                ]
            )
        )
        known, squared, shares, counted = np.split(numbers, [size, 2 * size, 3 * size])
        refuse(self.algorithm, known > 0, history)
        weight = shares / counted if counted[0] else share_of_table(table, size)
        history.add(weight, squared, known == 0, sum(chunk.length for chunk in chunks))
        updates = []
        for chunk in chunks:
            aggregate = chunk.part
            if self.gathers:
                if chunk.work is not None:
                    chunk.work.wait()
                aggregate = chunk.whole[: chunk.length]
            update, chunk.state = finished(self.algorithm, Decision(aggregate, table, geometry), chunk.after)
            updates.append(update)
        return updates


def refuse(algorithm: Algorithm, faulty: np.ndarray, history: History) -> None:
    """Raises TooManyFaulty, which names the ranks, where more than f vectors are not finite."""
    if algorithm.rule.robust and faulty.sum() > algorithm.rule.f:
        names = ", ".join(history.name_of(int(rank)) for rank in np.flatnonzero(faulty))
        history.skip(~faulty)
        raise TooManyFaulty(
            f"{algorithm.rule} tolerates {algorithm.rule.f} vectors with NaN or infinity, got {int(faulty.sum())}, "
            f"of {names}."
        )


def send(algorithm: Algorithm, gradient: Tensor, state: State) -> tuple[Tensor, State]:
    """The worker half for one rank, [d] -> [d]."""
    vectors, after = algorithm.send(gradient.unsqueeze(0), state)
    return vectors[0], after


def finished(algorithm: Algorithm, decision: Decision, state: State) -> tuple[Tensor, State]:
    """The server's transforms; in float32 for the half types."""
    if decision.aggregate.element_size() >= 4:
        return algorithm.finish(decision, state)
    update, state = algorithm.finish(replace(decision, aggregate=decision.aggregate.float()), state)
    return update.to(decision.aggregate.dtype), state


def share_of_table(table: np.ndarray | None, n: int) -> np.ndarray:
    """[n] the share of the weights that lies on each vector; NaN where nobody can tell."""
    if table is None:
        return np.full(n, np.nan)
    weights = np.abs(np.atleast_2d(table)[:, :n]).sum(0)
    return weights / max(weights.sum(), np.finfo(float).tiny)


def check_algorithm(owner: str, algorithm: Algorithm, size: int, columnwise: bool, advice: str) -> None:
    """Raises ValueError for an algorithm that these ranks cannot run, or that protects nobody among them."""
    rule = algorithm.rule
    probe = torch.zeros(1)
    if algorithm.point(probe, algorithm.init(1, 1), 1.0) is not probe:
        raise ValueError(
            f"{owner} needs gradients taken at the parameters themselves, got momentum with nesterov=True, which takes "
            "them ahead of it; classical momentum will do."
        )
    if not rule.robust and rule.f:
        raise ValueError(f"{owner} needs a rule that tolerates f = {rule.f} vectors, got {rule}, which tolerates none.")
    try:
        check_rows(algorithm.pre, rule, size)
    except ValueError as error:
        raise ValueError(f"{owner}: {error} A vector is a rank's: start more ranks, or lower f.") from None
    if columnwise and not rule.columnwise:
        raise ValueError(f"{owner} needs a rule that works on pieces of vectors, got {rule}; {advice}")


def title_of(algorithm: Algorithm) -> str:
    """The stages in order, as text."""
    stages = (*algorithm.worker, *algorithm.pre, algorithm.rule, *algorithm.server)
    return " > ".join(brief(stage) if is_dataclass(stage) else str(stage) for stage in stages)


def tensors_of(state: State) -> dict[str, Tensor]:
    """The memories of one worker and of the server, flat: {"worker.0": [d], "server.0": [d], "previous": [d]}."""
    found = {f"worker.{i}": m[0] for i, m in enumerate(state.worker) if m is not None}
    found |= {f"server.{i}": m for i, m in enumerate(state.server) if m is not None}
    return found if state.previous is None else found | {"previous": state.previous}


def check_state(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a saved state has other names or sizes than what it is loaded into."""
    if targets.keys() != state.keys():
        lacks, has = sorted(targets.keys() - state.keys())[:3], sorted(state.keys() - targets.keys())[:3]
        raise ValueError(
            "load_state_dict needs the memory of this algorithm on this model, got a state that lacks "
            f"{lacks or 'nothing'} and has {has or 'nothing'} beside it."
        )
    for key, target in targets.items():
        if state[key].shape != target.shape:
            raise ValueError(
                f"load_state_dict needs {key!r} of shape {list(target.shape)}, got {list(state[key].shape)}."
            )


__all__ = ["TooManyFaulty"]
