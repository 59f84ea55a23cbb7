"""Signals that end a program: they wait for the end of a step, so that nothing is cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
Handler = Callable[[int, FrameType | None], Any]


class Interrupts:
    """Inside, Ctrl-C, SIGTERM and SIGHUP are kept until :meth:`deliver`, which does what they would have done.

    A second Ctrl-C is delivered at once: whoever presses it does not want to wait. Signals that are ignored stay
    ignored. Outside the main thread Python allows no handlers, and nothing is kept.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._former: dict[int, Handler | int] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                former = signal.getsignal(number)
                if former is not None and former is not signal.SIG_IGN:
                    self._former[number] = former
                    signal.signal(number, self._keep)
        return self

    def __exit__(self, *error: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self.deliver()

    def _keep(self, number: int, frame: FrameType | None) -> None:
        impatient = self.pending is not None and number == signal.SIGINT
        self.pending = number if self.pending is None or impatient else self.pending
        if impatient:  # not for SIGTERM: schedulers send it to parent and child, and the parent passes it on
            self.deliver()

    @property
    def deadly(self) -> bool:
        """Whether the signal that came ends the process as it is delivered, and nothing after it is done."""
        return self.pending is not None and self._former[self.pending] == signal.SIG_DFL

    def deliver(self) -> None:
        """The signal that came, if one did, to whoever handled it before."""
        number, self.pending = self.pending, None
        if number is None:
            return
        former = self._former[number]
        if isinstance(former, int):  # the system's own way: the process ends here
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        else:
            former(number, None)


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP are what Ctrl-C is: batch schedulers send the one some time before they kill."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = {number: signal.getsignal(number) for number in ENDING if number != signal.SIGINT}
    for number, handler in former.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in former.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, handler)
