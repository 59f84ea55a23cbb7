"""What all kernels stand on: how they are compiled, how they are spread over threads, what they take."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numba import njit
from numba.core import event
from threadpoolctl import ThreadpoolController
from torch import Tensor

STREAM_WIDTH = 2048  # columns per block of a pass that streams
PANEL = 1 << 16  # columns upcast at a time for half types
SMALL = 1 << 15  # below so many numbers a second thread costs more than it saves

# A kernel calls no kernel of another file: the cache on disk looks at the file of the one that is called.
jit = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
# Sums may be reordered to fill vector lanes, but NaN and infinity keep their meaning.
jit_sum = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

# -------------------------------------------------------------------------------------------------- compilation


class _Patience(event.Listener):
    """Says once why nothing happens, where compiling a kernel takes over a second. The result is cached on disk."""

    def __init__(self) -> None:
        self.said = False
        self.depth = 0
        self.timer: threading.Timer | None = None

    def on_start(self, event: event.Event) -> None:
        dispatcher = (event.data or {}).get("dispatcher")
        module = getattr(getattr(dispatcher, "py_func", None), "__module__", None)
        if self.said or not str(module).startswith("varangian."):  # other people's functions are compiled too
            return
        self.depth += 1
        if self.depth == 1:
            self.timer = threading.Timer(1.0, self._say)
            self.timer.daemon = True
            self.timer.start()

    def on_end(self, event: event.Event) -> None:
        self.depth = max(0, self.depth - 1)
        if self.depth == 0 and self.timer is not None:
            self.timer.cancel()

    def _say(self) -> None:
        self.said = True
        print("varangian: compiling kernels for this processor, once; later runs find them on disk.", file=sys.stderr)


event.register("numba:compile", _Patience())

# ---------------------------------------------------------------------------------------------------- threads


_own: int | None = None  # threads that share() uses instead of torch's number, inside exclusive_threads()


def threads() -> int:
    """How many threads a pass uses: torch's number."""
    return torch.get_num_threads() if _own is None else _own


def own_threads() -> int:
    """How many tasks that call torch may run side by side: 1 outside :func:`exclusive_threads`."""
    return 1 if _own is None else _own


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def exclusive_threads() -> Iterator[None]:
    """Inside, torch operations run on one thread each and ``share`` spreads whole tasks over torch's former number.

    One division of labour instead of two: no thread of torch's pool spins on a core that a kernel needs, and no barrier
    stands behind every small operation. The former number is restored at the end.
    """
    global _own
    former, own = torch.get_num_threads(), _own
    _own = threads()
    torch.set_num_threads(1)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        _own = own
        torch.set_num_threads(former)


@contextmanager
def torch_threads() -> Iterator[None]:
    """Inside, torch operations run on all threads again, for work that cannot be shared out."""
    former = torch.get_num_threads()
    torch.set_num_threads(threads())
    try:
        yield
    finally:
        torch.set_num_threads(former)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Helper threads of this process (a forked child has another number and makes its own)."""
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="varangian")


def share(task: Callable[[int], object], count: int, numbers: int) -> None:
    """Runs task(0), ..., task(count - 1), this thread taking part; alone when there are few numbers to work on."""
    workers = min(threads(), count) if numbers > SMALL else 1
    if workers == 1:
        for item in range(count):
            task(item)
        return
    items = itertools.count()

    def work() -> None:
        while (item := next(items)) < count:
            task(item)

    def help_out() -> None:
        if _own is not None and torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # torch's number is per thread once a thread has used it
        work()

    helpers = [_pool(os.getpid()).submit(help_out) for _ in range(workers - 1)]
    work()
    for helper in helpers:
        helper.result()


def chunks(d: int, width: int, most: int) -> tuple[int, int]:
    """(columns per chunk, chunks): at most ``most`` chunks of whole blocks; a function of d alone."""
    blocks = -(-d // width)
    size = -(-blocks // min(most, blocks)) * width
    return size, -(-d // size)


def is_native(x: Tensor) -> bool:
    """Whether Numba kernels take it as it is."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def is_half(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)


def as_rows(x: Tensor) -> np.ndarray:
    """[n, d] in numpy, contiguous: a copy where it is not, since kernels vectorise over neighbours in memory only."""
    return x.detach().contiguous().numpy()
