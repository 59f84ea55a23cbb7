"""What all kernels stand on: how they are compiled, how they are spread over threads, what they take."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from itertools import groupby
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np
import torch
from numba import njit
from numba.core import event
from numba.core.caching import FunctionCache
from threadpoolctl import ThreadpoolController
from torch import Tensor

from .watching import varies, watching

logger = logging.getLogger("varangian.core.kernels")

STREAM_WIDTH = 2048  # columns per block of a pass that streams
SMALL = 1 << 15  # up to so many numbers a second thread costs more than it saves; torch starts none either
HALF_WIDTH = SMALL // 2  # columns upcast at a time for half types

# -------------------------------------------------------------------------------------------------- compilation

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def eager(function: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """The function, run as it is where torch.compile meets it: of what is decided in n x n, and of kernels that are
    compiled already, its compiler makes nothing."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        return function(*args, **kwargs)

    return call


class _Cache:
    """Numba's cache on disk, whose failures are none of the caller's: what cannot be read or kept is compiled.

    Numba itself raises at the definition of a function where no folder can be written, and at its call where a file
    of the cache is cut off or may not be read, or where the disk is full.
    """

    said = False
    made: ClassVar[list[_Cache]] = []

    def __init__(self, function: Callable[..., object]) -> None:
        _Cache.made.append(self)
        try:
            self._kept: FunctionCache | None = FunctionCache(function)
        except (RuntimeError, OSError):
            self._kept = None

    @property
    def cache_path(self) -> str | None:
        return None if self._kept is None else self._kept.cache_path

    def load_overload(self, signature: Any, context: Any) -> Any:
        if self._kept is None:
            return self._say("no folder for them can be written; NUMBA_CACHE_DIR may name one")
        try:
            return self._kept.load_overload(signature, context)
        except Exception as error:  # a file that was cut off may raise anything
            self._say(f"{self.cache_path} cannot be read ({type(error).__name__})")
        try:
            self._kept.flush()  # so that the next process finds what this one compiles
        except Exception as error:
            self._say(f"{self.cache_path} cannot be written ({type(error).__name__})")

    def save_overload(self, signature: Any, compiled: Any) -> None:
        if self._kept is None:
            return
        try:
            self._kept.save_overload(signature, compiled)
        except Exception as error:
            self._say(f"{self.cache_path} cannot be written ({type(error).__name__})")

    def _say(self, why: str) -> None:
        if not _Cache.said:
            _Cache.said = True
            logger.warning("compiling kernels that are not kept on disk: %s.", why)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the function as machine code, without the interpreter's lock, kept on disk where that is possible.

    It calls no compiled function of another file: the cache on disk looks at the file of the one that is called.
    """

    def compile_with(function: Callable[..., Any]) -> Any:
        dispatcher: Any = njit(nogil=True, boundscheck=False, error_model="numpy", **options)(function)
        dispatcher._cache = _Cache(function)
        return dispatcher

    return compile_with


jit = compiled()
# Sums may be reordered to fill vector lanes, but NaN and infinity keep their meaning.
jit_sum = compiled(fastmath={"reassoc", "contract", "nsz"})


def cache_folders() -> list[str | None]:
    """Where compiled functions are kept on disk, each folder once; None for those that no folder could be found for."""
    return list(dict.fromkeys(cache.cache_path for cache in _Cache.made))


class _Patience(event.Listener):
    """Says once why nothing happens, where compiling a kernel takes over a second. The result is cached on disk."""

    def __init__(self) -> None:
        self.said = False
        self.depth = 0
        self.timer: threading.Timer | None = None
        self.seconds = 0.0  # of all kernels that this process has compiled
        self.start = 0.0

    def on_start(self, event: event.Event) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        self.start = time.perf_counter()
        dispatcher = (event.data or {}).get("dispatcher")
        module = getattr(getattr(dispatcher, "py_func", None), "__module__", None)
        if not self.said and str(module).startswith("varangian."):  # other people's functions are compiled too
            self.timer = threading.Timer(1.0, self._say)
            self.timer.daemon = True
            self.timer.start()

    def on_end(self, event: event.Event) -> None:
        if not self.depth:
            return  # it began before anybody listened
        self.depth -= 1
        if self.depth:
            return
        self.seconds += time.perf_counter() - self.start
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _say(self) -> None:
        self.said = True
        if not _Cache.said:
            logger.warning("compiling kernels for this processor, once; later runs find them on disk.")


_patience = _Patience()
event.register("numba:compile", _patience)


def compiling_seconds() -> float:
    """How long this process has been compiling kernels, which those after it find on disk."""
    return _patience.seconds


# ---------------------------------------------------------------------------------------------------- threads


_own: ContextVar[int | None] = ContextVar("threads", default=None)  # what in_threads() uses inside exclusive_threads()


def threads() -> int:
    """How many threads a pass uses: torch's number."""
    return _own.get() or torch.get_num_threads()


def own_threads() -> int:
    """How many tasks that call torch may run side by side: 1 outside :func:`exclusive_threads`."""
    return _own.get() or 1


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


class _Guests:
    """Who is inside :func:`exclusive_threads` just now, and what to give back when the last one leaves.

    Torch keeps a number of threads for each thread that has used it, one for those that have not, and one for its BLAS;
    other BLAS libraries keep one for all. The latter two are of the process, so they are restored by whoever is last.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.known = threading.local()  # threads whose number was their own before anybody came
        self.inside = 0
        self.outside = 1  # torch's number before the first one came
        self.blas: Any = None

    def enter(self) -> int:
        """The number of torch's threads that this thread had, which now is 1."""
        with self.lock:
            number = torch.get_num_threads()
            if not self.inside:
                self.outside = number
                self.blas = _blas().limit(limits=1, user_api="blas")
            elif number == 1 and not getattr(
                self.known, "before", False
            ):  # a new thread's number is that of those inside
                number = self.outside
            self.inside += 1
            self.known.before = True
            torch.set_num_threads(1)
        return number

    def leave(self, number: int) -> None:
        with self.lock:
            self.inside -= 1
            torch.set_num_threads(number)
            if not self.inside:
                self.blas.restore_original_limits()
            of_process = 1 if self.inside else self.outside
            if number != of_process:  # set by a thread whose own number does not matter
                other = threading.Thread(target=torch.set_num_threads, args=(of_process,))
                other.start()
                other.join()


_guests = _Guests()


@contextmanager
def exclusive_threads() -> Iterator[None]:
    """Inside, torch operations run on one thread each; ``in_threads`` spreads tasks over torch's former number.

    One division of labour instead of two: no thread of torch's pool spins on a core that a kernel needs, and no barrier
    stands behind every small operation. At the end all numbers are as before, however many threads are inside at once
    and whoever leaves first. A number that is set by ``torch.set_num_threads`` inside is forgotten at the end.
    """
    if _own.get() is not None:  # nested: nothing more to give
        yield
        return
    number = _guests.enter()
    token = _own.set(number)
    try:
        yield
    finally:
        _own.reset(token)
        _guests.leave(number)


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


def in_threads(task: Callable[[int], object], count: int, numbers: int) -> None:
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

    alone = _own.get() is not None

    def help_out() -> None:
        if alone and torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # torch's number is per thread once a thread has used it
        work()

    helpers = [_pool(os.getpid()).submit(help_out) for _ in range(workers - 1)]
    work()
    for helper in helpers:
        helper.result()


def chunks(d: int, width: int, most: int) -> tuple[int, int]:
    """(columns per chunk, chunks): at most ``most`` chunks of whole blocks; a function of d alone."""
    blocks = max(1, -(-d // width))
    size = -(-blocks // min(most, blocks)) * width
    return size, -(-d // size)


def is_native(x: Tensor) -> bool:
    """Whether Numba kernels take it as it is."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def is_half(x: Tensor) -> bool:
    """Whether Numba kernels take it upcast."""
    return x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)


def on_device(x: Tensor) -> bool:
    """Whether it lies elsewhere than in main memory: whoever looks at a number of it waits, and looks once at most."""
    return x.device.type != "cpu"


@lru_cache(maxsize=64)
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in double precision, as cards and main memory do, and Apple's do not."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.ones(1, device=device).double().add_(1)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True


def where_float64_is(x: Tensor) -> Tensor:
    """The tensor itself; of a device without double precision a copy in main memory, and a notice, once."""
    if has_float64(x.device):
        return x
    _say_slow(x.device.type)
    return x.cpu()


@lru_cache(maxsize=8)
def _say_slow(kind: str) -> None:
    logger.warning("vectors on %s pass through main memory: it has no float64, in which sums are added up.", kind)


def host(*tensors: Tensor) -> Any:
    """The numbers of tensors, as arrays: the only place that waits for a device. One array for one tensor, else a tuple
    of them.

    In main memory an array shares the memory of its tensor. Several tensors of a device come over in one copy, as
    float64. bfloat16 becomes float32.
    """
    held = _storable(tensors)
    if all(t.is_cpu for t in held):
        return _one_or_all([t.numpy() for t in held])
    varies("it waits for the device")
    if len(held) == 1:
        return held[0].cpu().numpy()
    flat, apart = _in_one(held)
    return apart(flat.cpu().numpy())


def _storable(tensors: Sequence[Tensor]) -> list[Tensor]:
    held = [t.detach() for t in tensors]
    return [t.float() if t.dtype == torch.bfloat16 else t for t in held]  # which arrays do not have


def _one_or_all(arrays: list[np.ndarray]) -> Any:
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _in_one(tensors: Sequence[Tensor]) -> tuple[Tensor, Callable[[np.ndarray], Any]]:
    """Tensors of a device as one vector of float64, and the way back to arrays of their shapes. Those of one type are
    put together before they become float64, and not one by one."""
    order = sorted(range(len(tensors)), key=lambda i: str(tensors[i].dtype))
    groups = [[tensors[i].reshape(-1) for i in same] for _, same in groupby(order, lambda i: tensors[i].dtype)]
    joined = [(torch.cat(group) if len(group) > 1 else group[0]).double() for group in groups]
    places: list[tuple[slice, torch.Size]] = [(slice(0), torch.Size())] * len(tensors)
    end = 0
    for i in order:
        start, end = end, end + tensors[i].numel()
        places[i] = slice(start, end), tensors[i].shape

    def apart(flat: np.ndarray) -> Any:
        return _one_or_all([flat[place].reshape(shape) for place, shape in places])

    return torch.cat(joined) if len(joined) > 1 else joined[0], apart


def there(values: np.ndarray, x: Tensor) -> Tensor:
    """An array as a tensor where x is. To a card it is copied from pinned memory, so that nobody waits for it."""
    made, watch = torch.from_numpy(np.ascontiguousarray(values)), watching()
    if x.device.type != "cuda":
        return made.to(x.device)
    if watch is None:
        return made.pin_memory().to(x.device, non_blocking=True)
    return watch.there(made, x.device)


class Packed:
    """The numbers of tensors in one vector where they lie, to be fetched in one copy."""

    def __init__(self, *tensors: Tensor) -> None:
        self.held = _storable(tensors)
        self.on_card = all(t.device.type == "cuda" for t in self.held)
        self._apart: Callable[[np.ndarray], Any] = lambda array: array
        if self.on_card and len(self.held) > 1:
            flat, self._apart = _in_one(self.held)
            self.held = [flat]

    def later(self) -> Callable[[], Any]:
        """A function that answers the numbers that are there now, as :func:`host` does. They are fetched at once, and
        on a card nobody waits for them before it is called."""
        if not self.on_card:
            native = all(t.device.type == "cpu" for t in self.held)
            found = host(*(t.clone() for t in self.held)) if native else host(*self.held)
            return lambda: found
        flat, apart = self.held[0], self._apart
        landed = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        landed.copy_(flat, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(flat.device))

        def read() -> Any:
            arrived.synchronize()
            return apart(landed.numpy())

        return read


def panels(x: Tensor) -> list[tuple[int, int]]:
    """The columns start..stop of [n, d] that are at hand at a time: all; of half types, which are copied, some."""
    d = x.shape[1]
    return [(s, min(d, s + HALF_WIDTH)) for s in range(0, d, HALF_WIDTH)] if is_half(x) else [(0, d)]


def contiguous(x: Tensor) -> Tensor:
    """[n, d] row after row in memory: x itself where it is so, else a copy."""
    if x.is_contiguous() and not x.is_neg():
        return x
    return _copied(x, x.dtype) if x.device.type == "cpu" else x.contiguous()


def as_rows(x: Tensor) -> np.ndarray:
    """[n, d] of any layout as kernels take it: contiguous, since they vectorise over neighbours in memory only, and in
    float32 or float64. A copy where it is not so."""
    x = x.detach()
    return (contiguous(x) if is_native(x) else _copied(x, torch.float32)).numpy()


def _copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In pieces for which torch needs none of its own threads: a forked child does not have them."""
    with torch.inference_mode(False):  # helpers write to it
        rows = torch.empty(x.shape, dtype=dtype)
    (n, d), x = x.shape, x.detach()
    width = max(1, SMALL // max(1, n))

    def task(c: int) -> None:
        piece = slice(c * width, min(d, (c + 1) * width))
        rows[:, piece].copy_(x[:, piece])

    in_threads(task, -(-d // width), n * d)
    return rows
