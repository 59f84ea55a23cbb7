"""What the engines of torch.distributed share: an algorithm whose vectors lie in pieces on the ranks.

Each of W ranks sends every other rank a piece of its vector, and so holds all ranks' values of its own coordinates,
[W, L]: all that a coordinate-wise rule looks at. What looks at whole vectors looks at their squared distances, and
those of long vectors are the sums of those of their pieces: (W + 1)^2 numbers cross the network, all decide alike, and
each rank applies the weights to the coordinates that it holds.

On a device the host runs ahead: it queues what a chunk needs and reads nothing of it. It waits where a step ends: once
for the distances, where the rule looks at them, and once for what tells whether the step holds, with the report.
"""

from __future__ import annotations

import hashlib
import platform
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import accumulate
from numbers import Integral
from typing import Literal

import numba
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves

from ..core import kernels
from ..core.algorithm import Algorithm, State, finite_rows, unspoilt
from ..core.checks import Refused, brief, kind_of, not_dense, shown
from ..core.evidence import (
    cosines,
    distances_and_norms,
    mean_weights_in,
    scores,
    scores_of,
    suspicion,
    weights_of_table,
)
from ..core.geometry import Geometry, Vectors
from ..core.history import Evidence
from ..core.quarantine import Admitted, Watched
from ..core.randomness import Draw
from ..core.stages import Decision, Rule, check_rows, checked_answer, deferred_refusals, measure, weigh

try:
    from torch.distributed import all_gather_single  # torch >= 2.13, which warns about the old name
except ImportError:
    from torch.distributed import all_gather_into_tensor as all_gather_single

SAMPLE = 256  # columns a rank and step on which the weights of a coordinate-wise rule are counted, for the report


OnRefusal = Literal["raise", "skip"]
WORDS = 500  # bytes of another rank's error


KINDS = (Refused, ValueError, RuntimeError)  # of errors, as other ranks raise them


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

    @property
    def waits(self) -> bool:
        """Whether the host waits for a device wherever it reads a number."""
        return self.device.type != "cpu"

    def add(self, block: Tensor) -> None:
        """Replaces it by the sum over ranks."""
        dist.all_reduce(block, group=self.group)

    def total(self, *parts: Tensor | np.ndarray) -> np.ndarray:
        """The sum over ranks of the numbers, one after the other, in float64: the same on all of them."""
        vector = self.vector(*parts)
        self.add(vector)
        return kernels.host(vector)

    def vector(self, *parts: Tensor | np.ndarray) -> Tensor:
        """The numbers one after the other, in float64, on the device; those of the host in one copy."""
        arrays = [np.ravel(part) for part in parts if isinstance(part, np.ndarray)]
        there = iter(self._there(np.concatenate(arrays)).split([a.size for a in arrays]) if arrays else ())
        return torch.cat([next(there) if isinstance(p, np.ndarray) else p.reshape(-1).double() for p in parts])

    def _there(self, values: np.ndarray) -> Tensor:
        return kernels.there(values, torch.empty(0, device=self.device))

    def tell(self, mine: bytes) -> Tensor:
        """The bytes of all ranks, as many as mine, [W, bytes] on the device."""
        sent = self._there(np.frombuffer(bytearray(mine), np.uint8))
        everyone = sent.new_empty(self.size, sent.numel())
        work = self.gather(sent, everyone.view(-1))
        if work is not None:
            work.wait()
        return everyone

    def swap(self, mine: bytes) -> list[bytes]:
        """The bytes of all ranks, as many as mine."""
        return [row.tobytes() for row in kernels.host(self.tell(mine))]

    def share(self, error: Exception | None) -> None:
        """Raises on every rank, if any brings an error: its own where there is one, else the first of the others'."""
        kind = 0 if error is None else next((k for k, c in enumerate(KINDS, 1) if isinstance(error, c)), len(KINDS))
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        rows = self.swap(bytes([kind]) + text.encode()[:WORDS].ljust(WORDS, b"\0"))
        if error is not None:
            raise error
        for rank, row in enumerate(rows):
            if row[0]:
                text = " ".join(row[1:].rstrip(b"\0").decode(errors="replace").split())
                raise KINDS[row[0] - 1](f"rank {rank}: {text}")

    def agree(self, owner: str, told: Callable[[], Mapping[str, str]]) -> tuple[str, ...]:
        """The host names of all ranks, once each has found nothing wrong and all were told the same texts.

        Raises:
            ValueError: on every rank, where one was told something else, or has an error of its own.
        """
        error, texts = None, {}
        try:
            texts = told()
        except Exception as own:  # whatever it is: the others wait, and must hear of it
            error = own
        self.share(error)
        digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in (owner, *texts.values()))
        rows = self.swap(digests + socket.gethostname().encode()[:64].ljust(64, b"\0"))
        for i, what in enumerate(("call", *texts)):
            odd = [r for r, row in enumerate(rows) if row[8 * i : 8 * i + 8] != rows[0][8 * i : 8 * i + 8]]
            if odd:
                raise ValueError(f"{owner} needs the same {what} on all ranks, got others on {odd} than on rank 0.")
        return tuple(row[-64:].rstrip(b"\0").decode(errors="replace") for row in rows)


def _bytes(x: Tensor) -> Tensor:
    """The same memory as a type that every backend moves: not all of them know the half types."""
    return x.view(torch.uint8) if x.element_size() < 4 else x


def arithmetic(device: torch.device | None = None) -> str:
    """What must agree for ranks to decide alike, to the last bit: versions, and what this machine makes of some sums,
    and a device of it, where each rank makes its own.

    Libraries choose their kernels by the very model of a processor, which no version tells: so they are asked.
    """
    x = np.random.default_rng(0).standard_normal((67, 129))
    y = torch.from_numpy(x)
    results = [x @ x.T, np.linalg.eigh(x @ x.T)[0], np.exp(x), x.sum(0), (y @ y.T).numpy(), y.sum(1).numpy()]
    results += [(y.float() @ y.float().T).numpy(), kernels.host(kernels.squared_distances(y.float()))]
    if device is not None and device.type != "cpu":
        z = y.float().to(device)
        results += [kernels.host(made) for made in (z @ z.T, z.sum(1), kernels.squared_distances(z))]
    found = hashlib.sha256(b"".join(np.ascontiguousarray(r).tobytes() for r in results)).hexdigest()
    parts = (torch.__version__, np.__version__, numba.__version__, torch.backends.cpu.get_cpu_capability())
    return " ".join(map(str, (platform.machine(), *parts, found)))


def fetched(vectors: Sequence[Tensor]) -> list[np.ndarray]:
    """The vectors of float64 on the host, in one copy."""
    ends = accumulate(vector.numel() for vector in vectors)
    return np.split(kernels.host(torch.cat(list(vectors))), list(ends)[:-1])


class Ending:
    """Calls something at the end of a backward pass, behind what torch itself does there.

    Callbacks run in the order in which they were queued, and one may queue another: torch's are done after three turns.
    """

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended, self._turn = ended, 0

    def wanted(self) -> None:
        """To be called during a backward pass, once; a pass that was interrupted is forgotten."""
        self._turn += 1
        self._queue(self._turn, 3)

    def _queue(self, turn: int, left: int) -> None:
        def callback() -> None:
            if turn != self._turn:
                return
            if left:
                self._queue(turn, left - 1)
            else:
                self._ended()

        Variable._execution_engine.queue_callback(callback)  # pyright: ignore[reportAttributeAccessIssue]


def at_backward(outputs: object, begins: Callable[[], None]) -> None:
    """Calls it at the beginning of each backward pass through what a module answered: tensors, and lists, dictionaries
    and dataclasses of them."""
    seen = -1

    def hook(_: Tensor) -> None:
        nonlocal seen
        if seen != (seen := backward_number()):
            begins()

    for tensor in _tensors_in(outputs):
        if tensor.requires_grad:
            tensor.register_hook(hook)


def _tensors_in(outputs: object) -> Iterator[Tensor]:
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf):
            yield from _tensors_in([getattr(leaf, field.name) for field in fields(leaf)])


def device_of(model: object) -> torch.device:
    """Where a model's gradients are; a processor's, for what is no model."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.device for p in parameters if p.requires_grad), torch.device("cpu"))


def backward_number() -> int:
    """Of the backward pass that this code runs in, -1 outside."""
    return torch._C._current_graph_task_id()


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
        matrix: [W, L] all ranks' values of this rank's piece, in the last step.
        whole: [W L] the last update, where every rank gets it whole.
    """

    def __init__(self, spans: Sequence[Span], size: int, state: State) -> None:
        self.spans, self.state = tuple(spans), state
        self.length = sum(span.size for span in spans)
        self.width = -(-self.length // size)
        self.matrix = self.whole = self._padded = torch.empty(0)  # until they are made of the first gradient's type

    def make_room(self, like: Tensor, size: int, gathers: bool) -> None:
        """Buffers for vectors of this type, which are kept from step to step."""
        if self.matrix.dtype != like.dtype or self.matrix.shape != (size, self.width):
            self.matrix = like.new_empty(size, self.width)
            self._padded = like.new_zeros(0 if self.length % size == 0 else size * self.width)
            self.whole = like.new_empty(size * self.width if gathers else 0)

    def padded(self, vector: Tensor) -> Tensor:
        """[W L]: with zeros at the end where W does not divide the length."""
        if not self._padded.numel():
            return vector.contiguous()
        self._padded[: self.length] = vector
        return self._padded


@dataclass(eq=False)
class _Sent:
    """A chunk on its way through a step.

    Attributes:
        after: the algorithm's memory of it behind the worker half, and once the step is finished behind all of it.
        previous: [L] the last aggregate's piece, for rules that look at it.
        work: the exchange, and later the gathering of what was decided.
        shown: [m, L] the rows of the chunk's matrix that the stages look at, once they have arrived.
    """

    chunk: Chunk
    after: State
    previous: Tensor | None
    work: dist.Work | None
    shown: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, eq=False)
class _Told:
    """What this rank's piece of a decided chunk says: the aggregate's piece [L], what
    :func:`varangian.core.evidence.distances_and_norms` finds of it [4, W], and of each vector [W] the sum of its
    weights over so many columns."""

    piece: Tensor
    measured: Tensor
    weights: Tensor
    counted: int


class ElsewhereError(Exception):
    """Another rank has an error."""


class Sharded(Vectors):
    """Vectors in pieces: rank r holds coordinates r L to (r + 1) L of each chunk. Its methods are collectives.

    With ``watched``, which is for stages that may fail on one rank alone, each of them finds out before whether all
    ranks have come to it.
    """

    def __init__(self, ranks: Ranks, sent: Sequence[_Sent], watched: bool = False) -> None:
        self.ranks, self.sent, self.watched = ranks, sent, watched

    def meet(self, failed: bool = False) -> None:
        """Raises ElsewhereError where a rank has failed."""
        if self.watched and self.ranks.total(np.array(float(failed))).any():
            raise ElsewhereError

    @property
    def d(self) -> int:
        return sum(part.chunk.length for part in self.sent)

    @property
    def e(self) -> int:
        return int(self.sent[0].previous is not None)

    @property
    def remote(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.ranks.waits

    @property
    def dtype(self) -> torch.dtype:
        dtype = torch.float32
        for part in self.sent:
            dtype = torch.promote_types(dtype, part.chunk.matrix.dtype)
        return dtype

    def columns(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Each rank fills in what it holds; the others add nothing to it."""
        self.meet()
        n, rank = len(self.sent[0].shown), self.ranks.rank
        block = torch.zeros(n + self.e, stop - start, dtype=self.dtype, device=self.ranks.device)
        for part in self.sent:
            chunk, (low, at) = part.chunk, (rank * part.chunk.width, 0)
            high = min(low + chunk.width, chunk.length)
            for span in chunk.spans:
                shift = at - span.first
                first, last = max(at, low, start + shift), min(at + span.size, high, stop + shift)
                if first < last:
                    here, there = slice(first - low, last - low), slice(first - shift - start, last - shift - start)
                    block[:n, there] = part.shown[:, here].to(self.dtype)
                    if part.previous is not None:
                        block[n, there] = part.previous[here].to(self.dtype)
                at += span.size
        self.ranks.add(block)
        return block[:n], block[n:] if self.e else None

    def measured(self, table: np.ndarray, extra: bool) -> np.ndarray:
        return self._total([kernels.mixed_distances(s.shown, table, _row(s.previous), others=extra) for s in self.sent])

    def around(self, weights: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        return self._total([kernels.squared_around(s.shown, weights, _row(s.previous), scales) for s in self.sent])

    def _total(self, parts: Sequence[Tensor]) -> np.ndarray:
        """The sum over chunks and ranks."""
        self.meet()
        return self.ranks.total(sum(parts[1:], parts[0])).reshape(parts[0].shape)


class Aggregation:
    """An algorithm over ranks; each :meth:`begin` is a step.

    Args:
        algorithm: its worker half runs on each rank's own gradient, its server half on all ranks' pieces.
        ranks: who takes part.
        d: coordinates in all.
        gathers: whether every rank gets the whole update, or keeps to its piece.
        seed: of what is drawn.
    """

    def __init__(self, algorithm: Algorithm, ranks: Ranks, *, d: int, gathers: bool, seed: int = 0) -> None:
        self.algorithm, self.ranks, self.gathers, self.seed = algorithm, ranks, gathers, seed
        self.measures = looks_at_distances(algorithm)
        self.table = None if self.measures else weigh(ranks.size, (), algorithm.rule, None)[0]
        # Stages of this package decide alike on all ranks, and fail alike; those of others need not.
        stages = (*algorithm.pre, algorithm.rule)
        self.watched = any(type(stage).__module__.split(".")[0] != "varangian" for stage in stages)
        self.stride = max(1, d // (ranks.size * SAMPLE))

    def begin(self, number: int, admitted: Admitted | None = None) -> Step:
        """The step of this number, counted without those that were refused: what is drawn depends on it.

        ``admitted``: whom a quarantine shows to the stages, and which these are; all, and the algorithm's, without."""
        return Step(self, number, admitted)


class Step:
    """One step: :meth:`add` each chunk, then :meth:`finish` once, and :meth:`adopt` what it is to leave behind.

    What goes wrong on one rank goes wrong on all: its error waits while the rank takes part in what the others wait
    for, and :meth:`finish` raises on every rank. A step that is given up leaves nothing.

    Attributes:
        finite: [W] whose vectors are finite, once the step is finished or refused.
        excluded: [W] whose vectors nobody looks at.
        evidence: what it told of each rank's vector, once it is finished.
        numbers: summed over ranks, on the device: what :meth:`decide` or :meth:`conclude` takes next.
        updates: of each chunk, once it is decided; good for nothing before the step is concluded.
    """

    def __init__(self, aggregation: Aggregation, number: int, admitted: Admitted | None = None) -> None:
        self._of, self._draw = aggregation, Draw(aggregation.seed, number)
        self._ranks, self._algorithm = aggregation.ranks, aggregation.algorithm
        self._rows = None if admitted is None else admitted.rows
        self.excluded = np.zeros(self._ranks.size, bool) if admitted is None else admitted.excluded
        self._error: Exception | None = None  # of this rank
        self._doubt: tuple[Tensor, Callable[[], Exception | None]] | None = None
        self._sent: list[_Sent] = []
        self._faulty: list[Tensor] = []  # [W] of each chunk that has arrived, as far as this rank's pieces show
        self._distances: list[Tensor] = []  # of each, where the rule looks at them
        self._told: list[_Told] = []  # of each, once it is decided
        self._table, self._score = aggregation.table, None
        if admitted is not None and admitted.rows is not None:
            self._algorithm = replace(self._algorithm, pre=admitted.pre, rule=admitted.rule)
            if not self.measures:
                self._table = weigh(admitted.rows.size, (), admitted.rule, None)[0]
        self.updates: list[Tensor] = []
        self.numbers: Tensor
        self._late: Exception | None = None  # of a server transform; of less weight than what went wrong before it
        self.finite = np.ones(self._ranks.size, bool)
        self.evidence: Evidence

    @property
    def f(self) -> int:
        """How many of the vectors that are shown may be Byzantine."""
        return self._algorithm.rule.f

    @property
    def measures(self) -> bool:
        """Whether the distances of whole vectors decide, and so nothing is decided before they are known."""
        return self._of.measures

    def fail(self, error: Exception | None) -> None:
        """This rank has an error, unless it had one before."""
        self._error = self._error or error

    def doubt(self, flag: Tensor, error: Callable[[], Exception | None]) -> None:
        """This rank has an error where the flag, on the device, is not 0. It is asked for once that is known."""
        self._doubt = flag, error

    def add(self, chunk: Chunk, gradient: Tensor) -> None:
        """The worker half, and the exchange starts. [length] is what this rank sampled; it may be sent as it is. The
        chunk before, which had the time in between to arrive, is worked on while this one is under way."""
        of, size, before = self._of, self._ranks.size, self._before(chunk)
        wide = gradient if gradient.element_size() >= 4 else gradient.float()  # momentum needs more digits than a half
        sent, after = self._send(wide, before)
        chunk.make_room(gradient, size, of.gathers)
        work = self._ranks.exchange(chunk.padded(sent.to(gradient.dtype)), chunk.matrix)
        previous = before.previous if self._algorithm.rule.uses_previous else None
        if previous is not None and of.gathers:
            low = self._ranks.rank * chunk.width
            own = previous[low : low + chunk.width]
            previous = own.new_zeros(chunk.width)
            previous[: own.numel()] = own
        self._arrived()
        self._sent.append(_Sent(chunk, after, None if previous is None else previous.to(gradient.dtype), work))

    def _before(self, chunk: Chunk) -> State:
        return replace(chunk.state, step=self._draw.step, seed=self._draw.seed)

    def _send(self, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """The worker half, [d] -> [d]; zeros where a stage fails."""
        try:
            return send(self._algorithm, gradient, state)
        except Exception as error:  # of a stage of the user's own, whatever it is
            self.fail(error)
            return torch.zeros_like(gradient), state

    def _arrived(self) -> None:
        """The last chunk's pieces are here: what can be done without those of other chunks, and of other ranks."""
        if len(self._faulty) == len(self._sent):
            return
        part = self._sent[-1]
        if part.work is not None:
            part.work.wait()
        part.shown = x = self._shown(part.chunk.matrix)
        self._faulty.append((~finite_rows(part.chunk.matrix)).double())
        if self.measures:
            distances = measure(x, self._algorithm.pre, self._algorithm.rule, _row(part.previous))
            assert distances is not None
            self._distances.append(distances)
        else:
            self._told.append(self._decided(part, self._table, self._faulty[-1]))

    def _shown(self, x: Tensor) -> Tensor:
        """The rows that the stages look at."""
        return x if self._rows is None else x.index_select(0, kernels.there(self._rows, x))

    def _spread(self, values: Tensor) -> Tensor:
        """[m] of them as [W], 0 for the others."""
        if self._rows is None:
            return values
        every = values.new_zeros(self._ranks.size)
        return every.index_copy(0, kernels.there(self._rows, values), values)

    def _decided(self, part: _Sent, table: np.ndarray | None, faulty: Tensor | None = None) -> _Told:
        """The aggregate's piece is known: off it goes; then what the report wants to know of it."""
        piece, statistic, rule, chunk, x = None, None, self._algorithm.rule, part.chunk, part.shown
        if self._error is None:
            try:
                with deferred_refusals():  # all ranks will hear of those that are not finite when the step ends
                    answer = rule.apply(x, table, part.previous, *([self._draw] if rule.draws else []))
                piece = checked_answer(rule, answer, x)
                statistic = rule.statistic(x.shape[0] if table is None else table.shape[0])
            except Exception as error:  # of a rule of the user's own; or more than f are not finite
                if faulty is None or not rule.robust or kernels.host(faulty)[~self.excluded].sum() <= rule.f:
                    self.fail(error)
        piece = chunk.matrix.new_zeros(chunk.width) if piece is None else piece
        if self._of.gathers:
            part.work = self._ranks.gather(piece, chunk.whole)
        measured, counted = distances_and_norms(chunk.matrix, piece), 0
        weights = measured.new_zeros(len(chunk.matrix))
        if statistic is not None:
            held = max(0, min(chunk.width, chunk.length - self._ranks.rank * chunk.width))
            columns = x[:, : held : self._of.stride]
            counted = columns.shape[1]
            weights = self._spread(mean_weights_in(columns, table, statistic) * counted)
        return _Told(piece, measured, weights, counted)

    def _mine(self, value: float) -> np.ndarray:
        """[W] with a value in this rank's place: their sum over ranks shows everybody what each has."""
        values = np.zeros(self._ranks.size)
        values[self._ranks.rank] = value
        return values

    def _failed(self) -> np.ndarray | Tensor:
        """[W] whether this rank has an error, in its place."""
        mine = self._mine(1.0)
        if self._error is not None or self._doubt is None:
            return mine * (self._error is not None)
        return self._ranks.vector(mine) * (self._doubt[0] != 0)

    def _refuse(self, errors: np.ndarray, faulty: np.ndarray, name_of: Callable[[int], str]) -> None:
        self.finite = faulty == 0
        if errors.any():
            if self._error is None and self._doubt is not None:
                self._error = self._doubt[1]()
            self._ranks.share(self._error)
        refuse(self._algorithm, ~self.finite & ~self.excluded, name_of)

    def finish(self, name_of: Callable[[int], str]) -> list[Tensor]:
        """The update of each chunk, [length], or [L] where ranks keep to their pieces.

        Args:
            name_of: what a rank is called in an error.

        Raises:
            Refused: on all ranks, if more than f sent NaN or infinity.
            Exception: on all ranks, an error that one of them met in a stage of the algorithm.
        """
        self.close()
        if self.measures:
            self.decide(kernels.host(self.numbers), name_of)
        self.conclude(kernels.host(self.numbers), name_of)
        return self.updates

    def close(self) -> None:
        """There are no more chunks. What comes next is :meth:`decide`, or where no distances do :meth:`conclude`."""
        self._arrived()
        if self.measures:
            self._sum(self._failed(), self._any_faulty(), sum(self._distances[1:], self._distances[0]))
        else:
            self._finish()

    def _sum(self, *parts: Tensor | np.ndarray) -> None:
        self.numbers = self._ranks.vector(*parts)
        self._ranks.add(self.numbers)

    def _any_faulty(self) -> Tensor:
        return torch.stack(self._faulty).amax(0)

    def decide(self, numbers: np.ndarray, name_of: Callable[[int], str]) -> None:
        """The distances are known."""
        size, pre, rule = self._ranks.size, self._algorithm.pre, self._algorithm.rule
        shown = size if self._rows is None else self._rows.size
        self._refuse(numbers[:size], numbers[size : 2 * size], name_of)
        vectors = Sharded(self._ranks, self._sent, self._of.watched)
        geometry = Geometry.measured_as(numbers[2 * size :].reshape(self._distances[0].shape), vectors)
        try:
            self._table, geometry = weigh(shown, pre, rule, geometry, draw=self._draw)
            self._score = scores(pre, rule, geometry)
            vectors.meet()
        except ElsewhereError:
            self._ranks.share(None)
        except Exception as own:
            self.fail(own)
            if self._of.watched:
                with suppress(ElsewhereError):
                    vectors.meet(failed=True)
                self._ranks.share(own)
        self._told = [self._decided(part, self._table) for part in self._sent]
        self._finish(geometry)

    def _finish(self, geometry: Geometry | None = None) -> None:
        """The server's transforms; and all that is to be known of the step."""
        for part in self._sent:
            if self._of.gathers and part.work is not None:
                part.work.wait()
        try:
            for part, told in zip(self._sent, self._told, strict=True) if self._error is None else ():
                aggregate = part.chunk.whole[: part.chunk.length] if self._of.gathers else told.piece
                decision = Decision(aggregate, self._table, geometry)
                update, part.after = finished(self._algorithm, decision, part.after)
                self.updates.append(update)
        except Exception as own:
            self._late = own
        self._sum(
            self._failed(),
            self._mine(float(self._late is not None)),
            self._any_faulty(),
            self._mine(_number(self._table, self._rows)),
            sum((told.measured for told in self._told[1:]), self._told[0].measured),
            sum((told.weights for told in self._told[1:]), self._told[0].weights),
            np.array(float(sum(told.counted for told in self._told))),
        )

    def conclude(self, numbers: np.ndarray, name_of: Callable[[int], str]) -> None:
        """The step holds on all ranks, or this raises; see :meth:`finish`."""
        size = self._ranks.size
        errors, lates, faulty, decisions, *measured, weights, counted = np.split(
            numbers, [k * size for k in range(1, 10)]
        )
        self._refuse(errors, faulty, name_of)
        odd = np.flatnonzero(decisions != decisions[0]).tolist()
        if odd:
            raise RuntimeError(f"{self._algorithm.rule} was decided otherwise on ranks {odd} than on rank 0.")
        if lates.any():
            self._ranks.share(self._late)
        weight = weights / counted if counted[0] else self._among(weights_of_table(self._table, self._many))
        self._tell(weight, measured, self._score, sum(part.chunk.length for part in self._sent))

    def _tell(
        self, weight: np.ndarray, measured: Sequence[np.ndarray], score: np.ndarray | None, coordinates: int
    ) -> None:
        away, told = self.excluded, np.where(self.excluded, np.nan, np.stack(measured))
        distance, cosine = np.sqrt(told[1]), np.where(self.finite, cosines(*told), np.nan)
        self.evidence = Evidence(
            weight=np.where(away, np.nan, weight),
            suspicion=suspicion(distance, self.finite | away, cosine),
            finite=self.finite,
            size=coordinates,
            score=None if score is None else self._among(score),
            measured=told,
            excluded=away if away.any() else None,
        )

    @property
    def _many(self) -> int:
        """How many vectors the stages are shown."""
        return self._ranks.size if self._rows is None else self._rows.size

    def _among(self, values: np.ndarray) -> np.ndarray:
        """[m] of them as [W], NaN for the others."""
        if self._rows is None:
            return values
        every = np.full(self._ranks.size, np.nan)
        every[self._rows] = values
        return every

    def replicate(self, chunk: Chunk, gradient: Tensor, name_of: Callable[[int], str]) -> Tensor:
        """In the place of adding and finishing: the update of the only chunk, every rank gathering all vectors."""
        algorithm, n = self._algorithm, self._ranks.size
        before = self._before(chunk)
        sent, after = self._send(gradient if gradient.element_size() >= 4 else gradient.float(), before)
        x = gradient.new_empty(n, gradient.numel())
        work = self._ranks.gather(sent.to(gradient.dtype).contiguous(), x.view(-1))
        if work is not None:
            work.wait()
        table = score = error = None
        update, known = gradient, np.zeros((5, n))  # weights, and what distances_and_norms answers
        try:
            with deferred_refusals():  # of those that are not finite all ranks hear below, by name
                shown = self._shown(x)
                decision = algorithm.decide(shown, _as(after, gradient.dtype))
            table = decision.table
            statistic = algorithm.rule.statistic(len(shown) if table is None else table.shape[0])
            weight = self._among(weights_of_table(table, len(shown)))
            if statistic is not None:
                weight = self._spread(mean_weights_in(shown[:, :: self._of.stride], table, statistic))
            score = scores_of(shown, algorithm.pre, algorithm.rule, decision.geometry, draw=self._draw)
            known = self._ranks.vector(weight, distances_and_norms(x, decision.aggregate))
            update, after = finished(algorithm, decision, after)
        except Exception as own:  # of a stage of the user's own: the others must not take the step either
            error = own
        errors = self._ranks.vector(self._failed(), self._mine(float(error is not None)))
        self._ranks.add(errors)
        numbers = kernels.host(self._ranks.vector(errors, ~finite_rows(x), known))
        errors, lates, faulty, weight, *measured = np.split(numbers, [k * n for k in range(1, 8)])
        self._refuse(errors, faulty, name_of)
        if lates.any():
            self._ranks.share(error)
        self._tell(weight, measured, score, x.shape[1])
        self._sent.append(_Sent(chunk, after, None, None))
        return update

    def adopt(self) -> None:
        """The chunks' memories are as after the step; of a worker that sent NaN or infinity in one of them as before,
        in all."""
        for part in self._sent:
            after, before = part.after, part.chunk.state
            some = next((memory for memory in after.worker if memory is not None), None)
            if some is not None and not self.finite[self._ranks.rank]:
                spoilt = some.new_full((1, 1), torch.nan)
                worker = unspoilt(spoilt, after.worker, before.worker, self._algorithm.worker)
                after = replace(after, worker=tuple(worker))
            part.chunk.state = after


def _row(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.unsqueeze(0)


def _number(*tables: np.ndarray | None) -> float:
    """A number that tells tables apart, exact in float64."""
    held = b"".join(table.tobytes() for table in tables if table is not None)
    return float(int.from_bytes(hashlib.sha256(held).digest()[:6], "big")) if held else 0.0


def refuse(algorithm: Algorithm, faulty: np.ndarray, name_of: Callable[[int], str]) -> None:
    """Raises Refused, which names the ranks, where more than f vectors are not finite."""
    if algorithm.rule.robust and faulty.sum() > algorithm.rule.f:
        names = ", ".join(name_of(int(rank)) for rank in np.flatnonzero(faulty))
        raise Refused(
            f"{algorithm.rule} tolerates {algorithm.rule.f} vectors with NaN or infinity, got {int(faulty.sum())}, "
            f"of {names}."
        )


def send(algorithm: Algorithm, gradient: Tensor, state: State) -> tuple[Tensor, State]:
    """The worker half for one rank, [d] -> [d]. Where the last aggregate lies in pieces, no worker looks at it."""
    previous = state.previous
    if previous is not None and previous.shape != gradient.shape:
        state = replace(state, previous=gradient)
    vectors, after = algorithm.send(gradient.unsqueeze(0), state)
    return vectors[0], replace(after, previous=previous)


def _as(state: State, dtype: torch.dtype) -> State:
    """The server's memories in another precision."""
    previous = None if state.previous is None else state.previous.to(dtype)
    return replace(state, previous=previous, server=tuple(None if m is None else m.to(dtype) for m in state.server))


def finished(algorithm: Algorithm, decision: Decision, state: State) -> tuple[Tensor, State]:
    """The server's transforms; in float32 for the half types."""
    if decision.aggregate.element_size() >= 4:
        return algorithm.finish(decision, state)
    update, state = algorithm.finish(replace(decision, aggregate=decision.aggregate.float()), state)
    return update.to(decision.aggregate.dtype), state


def check_algorithm(owner: str, algorithm: Algorithm, size: int, *, columnwise: bool, advice: str) -> None:
    """Raises ValueError for an algorithm that these ranks cannot run, or that protects nobody among them."""
    if not isinstance(algorithm, Algorithm):
        raise ValueError(f"{owner} needs a varangian.Algorithm, got {shown(algorithm)}.")
    rule = algorithm.rule
    refuse_placement(owner, algorithm)
    probe = torch.zeros(1)
    if algorithm.point(probe, algorithm.init(1, 1), 1.0) is not probe:
        raise ValueError(
            f"{owner} needs gradients taken at the parameters themselves, got momentum with nesterov=True, which takes "
            "them ahead of it; classical momentum will do."
        )
    check_protects(owner, rule)
    try:
        check_rows(algorithm.pre, rule, size)
    except ValueError as error:
        raise ValueError(f"{owner}: {error} A vector is a rank's: start more ranks, or lower f.") from None
    if algorithm.quarantine is not None:
        try:
            algorithm.quarantine.check(algorithm.pre, rule, size)
        except ValueError as error:
            raise ValueError(f"{owner}: {error}") from None
    if columnwise and not rule.columnwise:
        raise ValueError(f"{owner} needs a rule that works on pieces of vectors, got {rule}; {advice}")


def looks_at_distances(algorithm: Algorithm) -> bool:
    """Whether some stage does: then nothing is decided before all of the vectors are there."""
    return bool(algorithm.pre) or algorithm.rule.needs_geometry


def check_options(
    owner: str, *, on_refusal: OnRefusal, window: int, warn: Callable[[str], None] | None, seed: int
) -> None:
    """Raises ValueError for settings that mean nothing."""
    if on_refusal not in ("raise", "skip"):
        raise ValueError(f'{owner} needs on_refusal "raise" or "skip", got {on_refusal!r}.')
    for name, value, least in (("window", window, 1), ("seed", seed, 0)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{owner} needs an integer {name} >= {least}, got {value!r}.")
    if warn is not None and not callable(warn):
        raise ValueError(f"{owner} needs a function of one line as warn, got {warn!r}.")


def refuse_placement(owner: str, algorithm: Algorithm) -> None:
    """Raises ValueError for momentum that the server moves, which needs a server that workers listen to."""
    if algorithm.placement is not None:
        raise ValueError(
            f"{owner} has momentum at one place, got {algorithm.placement}; use Momentum({algorithm.placement.beta:g}) "
            "in worker= or in server=."
        )


def check_protects(owner: str, rule: Rule) -> None:
    """Raises ValueError for a rule that protects from nobody, whatever its f."""
    if not rule.robust:
        raise ValueError(
            f"{owner} needs a rule that protects from somebody, got {rule}, which follows any vector anywhere; "
            "a robust one says how many it tolerates, as Median(f=1) does."
        )


def warn_of_none(owner: str, rule: Rule) -> None:
    """Says aloud that f = 0 was asked for."""
    if rule.f == 0:
        warnings.warn(f"{owner}: {rule} protects from nobody; f is how many may be faulty.", stacklevel=4)


def refused_step(model: nn.Module, others: Sequence[nn.Parameter] = ()) -> None:
    """Leaves no gradient, so that no optimizer moves anything, by decay or momentum of its own either."""
    for parameter in (*model.parameters(), *others):
        parameter.grad = None


def title_of(algorithm: Algorithm) -> str:
    """The stages in order, as text."""
    stages = (*algorithm.worker, *algorithm.pre, algorithm.rule, *algorithm.server)
    return " > ".join(brief(stage) if is_dataclass(stage) else str(stage) for stage in stages)


def tensors_of(state: State) -> dict[str, Tensor]:
    """The memories of one worker and of the server, flat: {"worker.0": [d], "server.0": [d], "previous": [d]}."""
    found = {f"worker.{i}": m[0] for i, m in enumerate(state.worker) if m is not None}
    found |= {f"server.{i}": m for i, m in enumerate(state.server) if m is not None}
    return found if state.previous is None else found | {"previous": state.previous}


WATCHED = tuple(f"quarantine.{f.name}" for f in fields(Watched))  # in a state: what a quarantine remembers


class Watch:
    """An engine's quarantine: who is left out of each step, the same on all ranks, since all judge by the same numbers.

    Attributes:
        watched: what it remembers; None without a quarantine.
    """

    def __init__(self, algorithm: Algorithm, size: int) -> None:
        self.algorithm, self.size = algorithm, size
        quarantine = algorithm.quarantine
        self.watched = None if quarantine is None else quarantine.init()

    def admit(self, number: int) -> Admitted | None:
        """Whom it shows in the step of this number; None where there is no quarantine."""
        a = self.algorithm
        if a.quarantine is None or self.watched is None:
            return None
        return a.quarantine.admit(self.watched, a.pre, a.rule, workers=np.arange(self.size), step=number)

    def hear(self, parts: Sequence[Evidence], number: int) -> None:
        """The step holds: what its parts, by size, told of each rank."""
        a = self.algorithm
        if a.quarantine is None or self.watched is None:
            return
        size = sum(part.size for part in parts)
        suspicion = np.sum([part.size * part.suspicion for part in parts], axis=0) / size
        faulty = ~np.all([part.finite for part in parts], axis=0)
        suspicion[faulty & ~np.isnan(suspicion)] = 1.0
        most = a.quarantine.most(a.pre, a.rule, self.size)
        self.watched = a.quarantine.after(self.watched, np.arange(self.size), suspicion, most=most, step=number)

    def told(self) -> dict[str, Tensor]:
        """As a state holds it."""
        return watched_in(self.watched)

    def taken(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Watched | None]:
        """The rest of a state, and what it remembers; ValueError where that cannot be."""
        rest, watched = watched_from(state, self.algorithm)
        if (watched is None) != (self.watched is None):
            raise ValueError("load_state_dict needs what a quarantine remembers, got a state without it.")
        return rest, watched


def digest_of(watched: Watched | None) -> str:
    """A text that is the same for the same memory."""
    held = b"" if watched is None else b"".join(x.numpy().tobytes() for x in vars(watched).values())
    return hashlib.sha256(held).hexdigest()


def watched_in(watched: Watched | None) -> dict[str, Tensor]:
    """What a quarantine remembers, as a state holds it."""
    return {} if watched is None else {f"quarantine.{name}": x.clone() for name, x in vars(watched).items()}


def watched_from(state: Mapping[str, Tensor], algorithm: Algorithm) -> tuple[dict[str, Tensor], Watched | None]:
    """The rest of a state, and what the algorithm's quarantine remembers, which a state of no step may leave out.

    Raises:
        ValueError: it is of something else, or cannot be.
    """
    rest = {name: tensor for name, tensor in state.items() if name not in WATCHED}
    if algorithm.quarantine is None or len(rest) == len(state):
        return dict(state), None
    if len(rest) + len(WATCHED) != len(state):
        lacks = [name for name in WATCHED if name not in state]
        raise ValueError(f"load_state_dict needs all that a quarantine remembers, got a state without {lacks[0]}.")
    watched = Watched(*(state[name].cpu().clone() for name in WATCHED))
    try:
        watched.check(algorithm.quarantine.window)
    except ValueError as error:
        raise ValueError(f"load_state_dict: {error}") from None
    return rest, watched


class Owner:
    """Whose a state is, and of when: which rank's, of how many, under which algorithm, after how many steps that were
    not refused. A state carries it as tensors beside it."""

    def __init__(self, algorithm: Algorithm, seed: int, ranks: Ranks) -> None:
        self.text, self.rank, self.size = f"{algorithm!r}, seed={seed}", ranks.rank, ranks.size

    def named(self, step: int) -> dict[str, Tensor]:
        text = torch.frombuffer(bytearray(self.text.encode()), dtype=torch.uint8)
        numbers = {"rank": self.rank, "ranks": self.size, "step": step}
        return {name: torch.tensor(number) for name, number in numbers.items()} | {"algorithm": text}

    def check(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rest of a state, if it is this owner's.

        Raises:
            ValueError: another owner's, one that does not say whose it is, or NaN or infinity in it.
        """
        check_tensors(state)
        names = self.named(0).keys()
        if not names <= state.keys():
            raise ValueError(
                "load_state_dict needs a state that says whose it is, got one without "
                f"{', '.join(sorted(names - state.keys()))}."
            )
        size, rank, _ = (number_in(state, name) for name in ("ranks", "rank", "step"))
        if size != self.size:
            raise ValueError(f"load_state_dict needs a state of {self.size} ranks, got one of {size}.")
        if rank != self.rank:
            raise ValueError(f"load_state_dict needs the state of rank {self.rank} here, got that of rank {rank}.")
        text = text_in(state, "algorithm")
        if text != self.text:
            raise ValueError(f"load_state_dict needs a state of {self.text}, got one of {text}.")
        rest = {key: tensor for key, tensor in state.items() if key not in names}
        for key, tensor in rest.items():
            if not tensor.isfinite().all():
                raise ValueError(f"load_state_dict needs finite numbers, got NaN or infinity in {key!r}.")
        return rest


def check_tensors(state: object) -> None:
    """Raises ValueError for what is no dictionary of plain tensors by name."""
    if not isinstance(state, Mapping):
        raise ValueError(f"load_state_dict needs what state_dict gave, a dictionary of tensors, got {kind_of(state)}.")
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise ValueError(f"load_state_dict needs names of tensors, got {shown(key)}.")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"load_state_dict needs tensors, got {type(tensor).__name__} in {key!r}.")
        if kind := not_dense(tensor):
            raise ValueError(f"load_state_dict needs dense tensors, got {kind} in {key!r}.")


def number_in(state: Mapping[str, Tensor], name: str) -> int:
    """A number in a saved state, as it was saved: whole and not negative."""
    number = state[name]
    if number.dtype != torch.int64 or number.ndim:
        raise ValueError(f"load_state_dict needs {name!r} as one number of int64, got {kind_of(number)}.")
    if number < 0:
        raise ValueError(f"load_state_dict needs {name!r} >= 0, got {int(number)}.")
    return int(number)


def text_in(state: Mapping[str, Tensor], name: str) -> str:
    """A text in a saved state."""
    text = state[name]
    if text.dtype != torch.uint8 or text.ndim != 1:
        raise ValueError(f"load_state_dict needs {name!r} as a text in bytes, uint8 [length], got {kind_of(text)}.")
    return bytes(text.tolist()).decode(errors="replace")


def check_state(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a saved state has other names, sizes or types than what it is loaded into."""
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
        if state[key].dtype != target.dtype:
            raise ValueError(f"load_state_dict needs {key!r} of {target.dtype}, got {state[key].dtype}.")


__all__ = ["Refused"]
