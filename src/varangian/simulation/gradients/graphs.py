"""The loop over workers on a card, as one CUDA graph: captured once for a shape, then asked for again in one go.

A loop of h workers launches thousands of small kernels, one after the other, and the host is what it waits for. The
graph holds them all, with the workers dealt to a few streams side by side. What it reads and writes must lie where it
lay when it was captured: inputs, labels, weights and the point are copied there before each replay; the model's buffers
and frozen parameters are read where the model has them.

Random numbers stay those of the loop: each worker draws from a generator of its own, registered with the graph and
seeded anew before each replay, and a graph reads seed and place in the stream when it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...core import randomness
from .layouts import aligned
from .twins import FlatBuffers, Twin

# What the host waits for, which a capture refuses; some of it is seen only in what it is a part of.
_WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "histc", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "_linalg_check_errors", "_linalg_eigh", "_linalg_eigvals", "linalg_eig",
    "_linalg_svd", "_ctc_loss", "multinomial",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Sees what is computed inside, whoever asks for it.

    Attributes:
        convolved: whether anything was.
        draws: whether anything may have drawn random numbers.
        largest: bytes that one operation has made, at most.
        made: bytes that all of them have made.
        fault: why a graph would not do the same, on a card; None where nothing says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolved = self.draws = False
        self.largest = self.made = 0
        self.fault: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as Drawn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        self.convolved |= "convolution" in name
        draws = torch.Tag.nondeterministic_seeded in func.tags
        self.draws |= draws
        if not any(answer.alias_info for answer in func._schema.returns):  # no view, and not in place
            made = [t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, Tensor)]
            self.largest, self.made = max(self.largest, *made, 0), self.made + sum(made)
        if self.fault is None:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            there, here = (any(t.is_cuda is on_card for t in tensors) for on_card in (True, False))
            indices = [i for i in args[1] if i is not None] if name in ("index", "index_put", "index_put_") else []
            if draws and here and not there:
                self.fault = "it draws random numbers on the host"
            elif there and (
                name in _WAITING
                or (
                    name == "repeat_interleave" and func._overloadname == "Tensor" and kwargs.get("output_size") is None
                )
                or any(i.dtype == torch.bool for i in indices)
            ):
                self.fault = f"it reads numbers on the host ({name})"
            elif (there and here and name in ("_to_copy", "copy_")) or any(not i.is_cuda for i in indices if there):
                self.fault = f"it copies between the host and the card ({name})"
        return out


def captures(device: torch.device) -> bool:
    """Whether there are graphs there."""
    return device.type == "cuda"


def room(device: torch.device) -> int:
    """Bytes of a card that nobody uses, or that torch keeps for whoever asks next."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Inside, what is drawn on the generator's card without saying from what is drawn from it: allowed in a capture."""
    index = torch.cuda.current_device() if generator.device.index is None else generator.device.index
    default = torch.cuda.default_generators[index]
    with randomness.GLOBALS:
        former = default.graphsafe_get_state()
        default.graphsafe_set_state(generator)
        try:
            yield
        finally:
            default.graphsafe_set_state(former)


class Graph:
    """Work on a card, captured.

    Args:
        work: asks for it. Called twice: once to run, which also makes what libraries make at their first call, and once
            to be captured, when nothing is computed.
        device: the card.
        generators: from which it may draw.

    Raises:
        RuntimeError: it cannot be captured; the message says why.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, generators: Sequence[torch.Generator]) -> None:
        with torch.cuda.device(device):
            here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
            side.wait_stream(here)
            try:
                with torch.cuda.stream(side), Operations() as seen:
                    work()
            except BaseException:
                torch.cuda.synchronize(device)  # what was asked for on other streams uses memory that goes now
                raise
            here.wait_stream(side)
            if seen.fault is not None:
                raise RuntimeError(seen.fault)
            self._graph = torch.cuda.CUDAGraph()
            self._generators = list(generators) if seen.draws else []
            for generator in self._generators:
                self._graph.register_generator_state(generator)
            try:
                # Other threads may go on: only what this one does must be such that it can be captured.
                with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                    work()
            finally:
                torch.cuda.set_stream(here)  # a capture that fails leaves the other one behind

    def replay(self, seed_of: Callable[[int], int]) -> None:
        """Asks for all of it again, its i-th generator seeded by ``seed_of(i)``."""
        for i, generator in enumerate(self._generators):
            generator.manual_seed(seed_of(i))
        self._graph.replay()


OneWorker = Callable[[Twin, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of a twin, inputs [b, ...], labels [b, ...], weights [b] and the row [d] that the gradient is for: the loss, []."""


class LoopGraph:
    """The gradients of h workers one by one, as a graph.

    Args:
        one: computes one of them.
        twins: of the model, one for each stream; nobody else may use them.
        values: [d] as the parameters that the model computes with.
        buffers: the model's own, where they stay.
        like: memory for inputs, in the layout that the model computes in.
        point, inputs, labels, weights: as they are to be copied in, for their shapes and to begin with.
        out: [h, d], where the gradients are written.

    Attributes:
        made: what each worker makes of the buffers.
    """

    def __init__(
        self,
        one: OneWorker,
        twins: Sequence[Twin],
        values: Callable[[Tensor], list[Tensor]],
        buffers: dict[str, Tensor],
        *,
        like: Callable[[Tensor], Tensor],
        point: Tensor,
        inputs: Tensor,
        labels: Tensor,
        weights: Tensor,
        out: Tensor,
    ) -> None:
        self.out, self._buffers = out, buffers  # kept: the graph knows no more than where they lie
        empty = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (point, labels, weights)]
        self._given = [empty[0], like(inputs), *empty[1:]]
        self._fill(point, inputs, labels, weights)
        h, device = len(labels), out.device
        self._losses = out.new_empty(h)
        self.made = [FlatBuffers(buffers) for _ in range(h)]
        generators = [torch.Generator(device) for _ in range(h)]
        streams = [torch.cuda.Stream(device) for _ in twins]
        static_point, static_inputs, static_labels, static_weights = self._given
        self._twins = twins

        def worker(i: int, twin: Twin, shared: list[Tensor] | None) -> None:
            twin.hold(values(static_point[i]) if shared is None else shared)
            twin.take(self.made[i].begin(buffers), copied=False)
            with drawing_from(generators[i]):
                loss = one(twin, aligned(static_inputs[i]), static_labels[i], static_weights[i], out[i])
            self._losses[i].copy_(loss)
            self.made[i].keep(twin.values(buffers))

        def work() -> None:
            here = torch.cuda.current_stream(device)
            shared = values(static_point) if static_point.ndim == 1 else None
            for stream in streams:
                stream.wait_stream(here)
            for s, (stream, twin) in enumerate(zip(streams, twins, strict=True)):
                with torch.cuda.stream(stream):
                    for i in range(s, h, len(streams)):
                        worker(i, twin, shared)
            for stream in streams:
                here.wait_stream(stream)

        self._graph = Graph(work, device, generators)

    def _fill(self, *given: Tensor) -> None:
        for place, values in zip(self._given, given, strict=True):
            place.copy_(values)

    def __call__(
        self, point: Tensor, inputs: Tensor, labels: Tensor, weights: Tensor, *, seed_of: Callable[[int], int]
    ) -> Tensor:
        """The losses, [h]; the gradients are in ``out``."""
        self._fill(point, inputs, labels, weights)
        self._graph.replay(seed_of)
        return self._losses.clone()
