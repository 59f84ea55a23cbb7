"""Steps of small models on a card: asked for in one go, as CUDA graphs.

A step of a small network is some hundred small operations. A card does them in less time than a host needs to ask for
them one by one. What is asked for in the same way each time is captured once, and then asked for again in one go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core import kernels

Answer = TypeVar("Answer")
Key = tuple[str, tuple[float, ...], tuple[int, ...]]

SEEN = 2  # times that work is done as it is, before it is captured: the first compiles, the second must be like it
KEPT = 16  # pieces of work that are known at a time

_log = logging.getLogger("varangian.simulation")


class _Work:
    """One piece of work: how often it was done, what it took from the host, and its graph once it was captured."""

    def __init__(self, places: Sequence[Tensor | None]) -> None:
        self.places = places  # kept, so that nothing else comes to lie where they are
        self.seen = 0
        self.watch: kernels.Watch | None = None
        self.graph: Any = None
        self.answer: Any = None


class Repeated:
    """Does work on a card, and captures what is the same each time.

    Work is told apart by its name, by the numbers that it takes from the host, and by where the tensors lie that it
    reads and writes. It may change what lies on the card, and must change nothing else: what it answers is, from the
    capture on, the same object each time, whose tensors hold new numbers. The bits are those that it has without a
    graph.

    Work that waits for the card, draws random numbers on the host, or sends other numbers to the card each time is
    never captured: it is done as it is.

    Args:
        device: the card.

    Attributes:
        faults: by name, why work is not captured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.faults: dict[str, str] = {}
        self._known: dict[Key, _Work] = {}
        self._begun: set[str] = set()
        self._stream: torch.cuda.Stream | None = None

    def __call__(
        self,
        name: str,
        work: Callable[[], Answer],
        *,
        numbers: tuple[float, ...] = (),
        places: Sequence[Tensor | None] = (),
    ) -> Answer:
        """What ``work()`` answers."""
        if name in self.faults:
            return work()
        key = name, numbers, tuple(0 if x is None else x.data_ptr() for x in places)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            known = self._known[key] = _Work(places)
        if known.graph is None and known.seen >= SEEN:
            self._capture(name, known, work)
        if known.graph is not None:
            known.graph.replay()
            return known.answer
        return self._done(name, known, work)

    def _done(self, name: str, known: _Work, work: Callable[[], Answer]) -> Answer:
        with kernels.watched() as watch:
            answer = work()
        if name in self._begun:  # the very first time may look at what does not change afterwards
            fault = watch.faults[0] if watch.faults else ""
            if not fault and known.watch is not None and not watch.like(known.watch):
                fault = "it sends other numbers to the card each time"
            if fault:
                self._give_up(name, fault)
        self._begun.add(name)
        known.seen, known.watch = known.seen + 1, watch
        return answer

    def _give_up(self, name: str, fault: str) -> None:
        self.faults[name] = fault
        for key in [key for key in self._known if key[0] == name]:
            del self._known[key]
        _log.info("%s of a step is asked for operation by operation: %s.", name, fault)

    def _capture(self, name: str, known: _Work, work: Callable[[], Any]) -> None:
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream(self.device)
            if self._stream is None:
                self._stream = torch.cuda.Stream(self.device)
                self._stream.wait_stream(here)
                with torch.cuda.stream(self._stream):  # libraries take memory for a stream at their first call there
                    one = torch.ones(1, 1, 1, device=self.device)
                    torch.bmm(one, one)
                    torch.mm(one[0], one[0])
                here.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with (
                    kernels.watched(known.watch),
                    torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
                ):
                    answer = work()
            except Exception as error:  # it is done as it is then, and raises what there is to raise
                self._give_up(name, f"it cannot be captured ({type(error).__name__}: {error})".split("\n")[0])
            else:
                known.graph, known.answer = graph, answer
                here.wait_stream(self._stream)
            finally:
                torch.cuda.set_stream(here)  # a capture that fails leaves the other one behind
