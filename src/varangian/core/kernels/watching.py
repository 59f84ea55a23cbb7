"""Whether work on a card could be asked for again as it was: what it takes from the host is looked at.

A CUDA graph does the same again, with the numbers that the host had when it was captured. Whoever wants to capture some
work has it done under a watch first: waiting for the card, random numbers of the host and arrays that are others each
time say that it cannot be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class Watch:
    """What work on a card takes from the host: whether the next time it would be the same.

    Attributes:
        faults: why it would not; empty where nothing says so.
        sent: the arrays that went there, in their order, and where they lie now.
    """

    def __init__(self, former: Watch | None = None) -> None:
        self.faults: list[str] = []
        self.sent: list[tuple[Tensor, Tensor]] = []
        self._former = former

    def there(self, values: Tensor, device: torch.device) -> Tensor:
        """Copied, or while former work is asked for again what was copied then, which must be the same."""
        if self._former is None:
            lies = values.pin_memory().to(device, non_blocking=True)
        else:
            place = len(self.sent)
            same = place < len(self._former.sent) and alike(self._former.sent[place][0], values)
            if not same:
                raise Varies("it sends other numbers to the card each time")
            lies = self._former.sent[place][1]
        self.sent.append((values, lies))
        return lies

    def varies(self, why: str) -> None:
        self.faults.append(why)
        if self._former is not None:
            raise Varies(why)

    def like(self, other: Watch) -> bool:
        """Whether both times the same was sent."""
        return len(self.sent) == len(other.sent) and all(
            alike(a, b) for (a, _), (b, _) in zip(self.sent, other.sent, strict=True)
        )


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors in main memory are the same to the bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


class Varies(RuntimeError):
    """Work that was to be asked for again as it was is other work this time."""


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(former: Watch | None = None) -> Iterator[Watch]:
    """Inside, what goes from the host to a card is noted; with a former watch, held to what was noted then.

    Raises:
        Varies: inside, where it is not the same.
    """
    watch = Watch(former)
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)


def watching() -> Watch | None:
    """The watch that is kept here, if any."""
    return _watch.get()


def varies(why: str) -> None:
    """Says that what is done here depends on more than numbers that lie on the device."""
    watch = _watch.get()
    if watch is not None:
        watch.varies(why)
