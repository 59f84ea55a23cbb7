"""Streams, events, generators and CUDA graphs of the pretended card.

What a capture is held to, as on a card:

- nothing is computed while it lasts: memory from outside is as before at its end, and what was made inside is NaN;
- a wait, a read of a generator's state, a draw from a generator that is not registered, and an operation on a stream
  that is not a part of it raise; an error leaves the current stream behind, and so does not the caller;
- every stream that joined it must be joined again at its end;
- a replay runs the same operations on the same memory: what the host knew at the capture is baked in, and memory that
  was freed since raises.

Of streams, always: an access to memory that another stream writes, or a write to what it reads, without a wait between
them raises; so does, at the end of a capture and of the card, memory that was freed while another stream than the one
that it was made on may use it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

CARD = torch.device("cuda", 0)


class Operation(NamedTuple):
    """What the schema of one of torch's operations says, which takes a while to ask."""

    name: str
    arguments: tuple[str, ...]
    written: tuple[str, ...]
    draws: bool
    views_in_place: bool


@cache
def operation(func: Any) -> Operation:
    places = func._schema.arguments
    return Operation(
        func._schema.name.split("::")[1],
        tuple(a.name for a in places),
        tuple(a.name for a in places if a.alias_info is not None and a.alias_info.is_write),
        torch.Tag.nondeterministic_seeded in func.tags,
        torch.Tag.inplace_view in func.tags,
    )


def tensors_in(x: Any) -> list[Tensor]:
    """In what an operation is given, or answers."""
    if isinstance(x, Tensor):
        return [x]
    found = []
    for part in x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else ():
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (tuple, list, dict)):
            found += tensors_in(part)
    return found


def mapped(change: Callable[[Any], Any], x: Any) -> Any:
    """The same, each tensor or other value in it changed."""
    if isinstance(x, dict):
        return {key: mapped(change, value) for key, value in x.items()}
    if not isinstance(x, (tuple, list)):
        return change(x)
    return type(x)([mapped(change, part) if isinstance(part, (tuple, list, dict)) else change(part) for part in x])


class Stream:
    """Stands for torch.cuda.Stream: knows how far each other stream was when it last waited for it."""

    streams: Streams

    def __init__(self, *_: Any, **__: Any) -> None:
        self.done = 0
        self.seen: dict[Stream, int] = {}
        self.capture: Capture | None = None

    def knows(self, other: Stream, moment: int) -> bool:
        return other is self or self.seen.get(other, 0) >= moment

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def wait_event(self, event: Event) -> None:
        if event.capture is not self.capture:
            if event.capture is None:
                raise RuntimeError("CUDA error: dependency created on uncaptured work in another stream")
            self.capture = event.capture
            self.capture.joined.append(self)
        for stream, moment in event.seen.items():
            self.seen[stream] = max(moment, self.seen.get(stream, 0))

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.streams.waited("synchronize")

    def query(self) -> bool:
        self.streams.refuse("a query of a stream")
        return True


class Event:
    """Stands for torch.cuda.Event: what was asked for before it is there at once."""

    streams: Streams

    def __init__(self, **_: Any) -> None:
        self.seen: dict[Stream, int] = {}
        self.capture: Capture | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = self.streams.current if stream is None else stream
        self.seen, self.capture = {**stream.seen, stream: stream.done}, stream.capture

    def wait(self, stream: Stream | None = None) -> None:
        (self.streams.current if stream is None else stream).wait_event(self)

    def synchronize(self) -> None:
        self.streams.refuse("synchronize of an event")
        self.streams.late()

    def query(self) -> bool:
        self.streams.refuse("a query of an event")
        return True


Span = tuple[int, int]


class Memory:
    """What tensors of one storage share: who wrote and read which bytes of it last, and where it was made."""

    def __init__(self, streams: Streams) -> None:
        self.streams, self.home, self.capture = streams, streams.current, streams.capture
        self.written: dict[tuple[Span, Stream], int] = {}
        self.read: dict[tuple[Span, Stream], int] = {}

    def used(self, stream: Stream, span: Span, writes: bool) -> None:
        for accesses in (self.written, self.read) if writes else (self.written,):
            for ((start, stop), other), moment in accesses.items():
                if other is not stream and start < span[1] and span[0] < stop and not stream.knows(other, moment):
                    raise RuntimeError("a race: two streams use the same memory, and neither waits for the other")
        (self.written if writes else self.read)[span, stream] = stream.done

    def __del__(self) -> None:
        if self.capture is not None and self.capture is not self.streams.capture:
            return  # a graph's own pool: nobody gets it before the graph is gone, and giving it back waits for the card
        every = [*self.read.items(), *self.written.items()]
        if any(not self.home.knows(other, moment) for (_, other), moment in every):
            self.streams.hazards.append("memory was freed while another stream may use it")


class CardGenerator(torch.Generator):
    """Stands for a generator of a card. Operators are handed a copy of what torch knows of it, whose seed is its
    number; the numbers come from ``inner``, which generators share by graphsafe_set_state."""

    all: ClassVar[weakref.WeakValueDictionary[int, CardGenerator]] = weakref.WeakValueDictionary()
    streams: Streams
    device = property(lambda self: CARD)  # type: ignore[assignment]

    def __new__(cls, inner: torch.Generator | None = None) -> CardGenerator:
        return super().__new__(cls)

    def __init__(self, inner: torch.Generator | None = None) -> None:
        number = max(CardGenerator.all, default=0) + 1
        super().manual_seed(number)
        CardGenerator.all[number] = self
        self.inner = _Generator() if inner is None else inner

    def manual_seed(self, seed: int) -> CardGenerator:
        self.streams.refuse("manual_seed")
        self.inner.manual_seed(seed)
        return self

    def get_state(self) -> Tensor:
        self.streams.refuse("get_state")
        return self.inner.get_state()

    def set_state(self, state: Tensor) -> CardGenerator:
        self.streams.refuse("set_state")
        self.inner.set_state(state)
        return self

    def graphsafe_get_state(self) -> CardGenerator:
        return CardGenerator(self.inner)

    def graphsafe_set_state(self, _new_state: torch.Generator) -> CardGenerator:
        assert isinstance(_new_state, CardGenerator)
        self.inner = _new_state.inner
        return self


_Generator = torch.Generator


class _Either(type):
    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, _Generator)


class Generators(metaclass=_Either):
    """Stands for torch.Generator, which makes generators of each device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return CardGenerator() if torch.device(device).type == "cuda" else _Generator()


class Capture:
    """What is recorded between the beginning and the end of a capture."""

    def __init__(self, streams: Streams, stream: Stream, registered: list[torch.Generator]) -> None:
        self.streams, self.origin, self.joined = streams, stream, [stream]
        self.registered = registered
        self.steps: list[tuple[Callable[[], Any], list[tuple[Tensor, Any]]]] = []
        self.outside: set[tuple[weakref.ref[Memory], Span, bool]] = set()  # what is used, and whether written
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # all of a storage, and what was there
        self.touched: dict[int, tuple[Memory, dict[Any, int], dict[Any, int]]] = {}
        self.made: list[Tensor] = []
        self.failed = False

    def end(self) -> None:
        for stream in self.joined:
            stream.capture = None
        for whole, before in self.kept.values():
            whole.copy_(before)
        for made in self.made:
            made.fill_(float("nan") if made.is_floating_point() or made.is_complex() else 1)
        unjoined = not all(self.origin.knows(stream, stream.done) for stream in self.joined)
        for memory, written, read in self.touched.values():  # nobody has used it yet
            memory.written, memory.read = written, read
        self.touched.clear()
        if self.failed:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        if unjoined:
            raise RuntimeError("CUDA error: capturing stream has unjoined work")
        self.streams.check()


class CUDAGraph:
    """Stands for torch.cuda.CUDAGraph."""

    streams: Streams

    def __init__(self) -> None:
        self.registered: list[torch.Generator] = []
        self.captured: Capture | None = None

    def register_generator_state(self, generator: CardGenerator) -> None:
        self.registered.append(generator.inner)

    def replay(self) -> None:
        streams, captured = self.streams, self.captured
        assert captured is not None, "nothing was captured"
        streams.refuse("a replay")
        streams.replayed()
        stream = streams.current
        stream.done += 1
        for memory, span, writes in captured.outside:
            lives = memory()
            if lives is None:
                raise RuntimeError("CUDA error: an illegal memory access: a graph uses memory that was freed")
            lives.used(stream, span, writes)
        for run, outs in captured.steps:
            for place, value in zip(outs, tensors_in(run()), strict=True):
                if place[1] and place[0] is not value:
                    place[0].copy_(value)

    def reset(self) -> None:
        self.captured = None


class graph:
    """Stands for torch.cuda.graph."""

    streams: Streams

    def __init__(
        self, cuda_graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> None:
        self.graph, self.stream = cuda_graph, Stream() if stream is None else stream
        assert capture_error_mode in ("global", "thread_local", "relaxed")

    def __enter__(self) -> None:
        streams = self.streams
        streams.synchronized()
        self.before, streams.current = streams.current, self.stream
        streams.capture = self.stream.capture = Capture(streams, self.stream, self.graph.registered)

    def __exit__(self, kind: object, *_: object) -> None:
        capture, self.streams.capture = self.streams.capture, None
        assert capture is not None
        capture.failed |= kind is not None
        capture.end()  # as torch does: where that raises, the stream stays
        self.graph.captured = capture
        self.streams.current = self.before


class Streams:
    """All streams of a card, and the capture that is going on, if any."""

    def __init__(self, waited: Callable[[str], None], late: Callable[[], None], replayed: Callable[[], None]) -> None:
        self._waited, self.late, self.replayed = waited, late, replayed
        self.capture: Capture | None = None
        self.hazards: list[str] = []
        for kind in (Stream, Event, CardGenerator, CUDAGraph, graph):
            kind.streams = self
        self.main = self.current = Stream()
        self.every: weakref.WeakSet[Stream] = weakref.WeakSet([self.main])
        self.default = CardGenerator()

    def stream(self, *_: Any, **__: Any) -> Stream:
        made = Stream()
        self.every.add(made)
        return made

    def refuse(self, what: str) -> None:
        if self.capture is not None:
            self.capture.failed = True
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def waited(self, what: str) -> None:
        self.refuse(what)
        self._waited(what)

    def synchronized(self) -> None:
        self.waited("synchronize")
        for one in self.every:
            one.seen |= {other: other.done for other in self.every}

    def check(self) -> None:
        if self.hazards:
            raise RuntimeError(self.hazards.pop())

    @contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        """Stands for torch.cuda.stream."""
        before = self.current
        self.current = before if stream is None else stream
        try:
            yield
        finally:
            self.current = before

    def set_current(self, stream: Stream) -> None:
        self.current = stream

    def _recording(self) -> Capture | None:
        """What records the current stream."""
        if self.capture is not None and self.current.capture is not self.capture:
            self.capture.failed = True
            raise RuntimeError("CUDA error: an operation on a stream that is no part of the capture")
        return self.capture

    def _used(self, operands: list[tuple[Tensor, Memory]], written: list[Tensor], may: bool = False) -> None:
        """What an operation uses of the memory of its operands; ``may`` is whether it may write to the others too, of
        which nobody knows when."""
        stream, capture = self.current, self.capture
        stream.done += 1
        for x, memory in operands:
            writes = any(x is one for one in written)
            if capture not in (None, memory.capture) and id(memory) not in capture.touched:
                capture.touched[id(memory)] = memory, dict(memory.written), dict(memory.read)
            memory.used(stream, span_of(x), writes)
            if capture not in (None, memory.capture):
                capture.outside.add((weakref.ref(memory), span_of(x), writes))
                if (writes or may) and id(memory) not in capture.kept:  # put back at the end
                    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())  # pyright: ignore
                    capture.kept[id(memory)] = whole, whole.clone()

    def launched(self, kernel: Callable[[], object], operands: list[tuple[Tensor, Memory]]) -> None:
        """A launch of a kernel that is no operation of torch's, and may write to any operand: run and recorded."""
        capture = self._recording()
        self._used(operands, [], may=True)
        kernel()
        if capture is not None:
            capture.steps.append((lambda: (kernel(), ())[1], []))

    def run(
        self, func: Any, args: Any, kwargs: Any, *, operands: list[tuple[Tensor, Memory]], free: bool,
        written: list[Tensor],
    ) -> Any:  # fmt: skip
        """An operation on tensors that are held: run and, in a capture, recorded.

        Args:
            operands: on the card, and their memory.
            free: whether it only looks at memory in another way.
            written: the operands that it writes to.
        """
        capture = self._recording()
        draws = operation(func).draws
        generator = kwargs.get("generator")
        if generator is None and "generator" in operation(func).arguments:
            generator = next((a for a in args if isinstance(a, torch.Generator)), None)
        card = self.default if generator is None else CardGenerator.all[generator.initial_seed()]
        inner = card.inner
        if draws and capture is not None and not any(inner is one for one in (*capture.registered, self.default.inner)):
            capture.failed = True
            raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")

        def run(args: Any, kwargs: Any) -> Any:
            if not draws:
                return OTHERWISE.get(func, func)(*args, **kwargs)
            before = torch.default_generator.get_state()  # some operators draw from no other
            torch.default_generator.set_state(inner.get_state())
            try:
                mine = [None if isinstance(a, _Generator) else a for a in args]
                return func(*mine, **{k: None if k == "generator" else v for k, v in kwargs.items()})
            finally:
                inner.set_state(torch.default_generator.get_state())
                torch.default_generator.set_state(before)

        if not free:
            self._used(operands, written)
        # To be run again with tensors of the shape that they have now, whatever squeeze_() and the like make of them.
        again = mapped(_as_now, (args, kwargs)) if capture is not None else None
        out = run(args, kwargs)
        if capture is not None:
            outs = tensors_in(out)
            places = {_place(x) for x, _ in operands}
            fresh = [_place(x) not in places for x in outs]
            capture.made += [x for x, new in zip(outs, fresh, strict=True) if new]
            if not free:
                capture.steps.append(
                    (partial(run, *again), [(_as_now(x), new) for x, new in zip(outs, fresh, strict=True)])
                )
        return out


def sorted_there(
    x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> tuple[Tensor, Tensor]:
    """A card sorts many floats by their bits, and a NaN with a sign for less than -inf: torch 2.11 does so with 51 of
    them on an H100, and not with 15."""
    if not x.is_floating_point() or x.ndim == 0 or x.shape[dim] <= 32:
        values, order = torch.sort(x, dim=dim, descending=descending, stable=bool(stable))
        return values, order
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    bits = torch.where(x == 0, 0.0, x).view(kind)
    keys = torch.where(bits < 0, bits ^ torch.iinfo(kind).max, bits)
    order = keys.sort(dim=dim, descending=descending, stable=True).indices
    return x.gather(dim, order), order


OTHERWISE: dict[Any, Any] = {torch.ops.aten.sort.default: sorted_there, torch.ops.aten.sort.stable: sorted_there}
"""What a card answers otherwise than main memory."""


def span_of(x: Tensor) -> Span:
    """The bytes from its first to its last number."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    start = x.data_ptr()
    return start, start + (last + 1) * x.element_size() if x.numel() else start


def _as_now(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
