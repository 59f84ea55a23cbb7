"""A pretended card: real numbers on the CPU, under the discipline of a CUDA device.

    with PretendedCard() as card:
        x = torch.randn(11, 100, device="cuda:0")
        card.reset()
        vg.Median(f=2)(x)
    print(card)      # launches, waits and where they stand, bytes copied

Tensors made on, or moved to, "cuda:0" are wrappers: they say device cuda:0, hold a tensor of the CPU, and run each
operation of torch on it. What a card refuses is refused: operands on two devices, .numpy(), np.asarray(). What it makes
the host wait for is counted: reading a value (.item(), bool(), float(), nonzero, boolean indices), copies to the host,
copies from pageable memory (indexing with a list is one), eigh and svd. Pinned memory and non_blocking=True are not
waited for; events are counted apart, as ``late``: what they stand behind was asked for before. Sorts put a NaN with a
sign where a card does.

How: for C++ a wrapper lies on the meta device, which needs no CUDA; Python sees cuda:0. The mode takes the key of
FakeTensorMode, so that torch does not start CUDA where it parses a device. FakeTensorMode itself knows no values, so
nothing would get past its first n x n decision.

Streams, generators and graphs: pretended_graphs.py.

Not seen by it: threads other than the one that entered (factories there make tensors of the CPU), how much memory there
is, what cuDNN computes. Launches are a lower bound: a sort, say, is several.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.utils._mode_utils
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretended_graphs import (
    CARD,
    CUDAGraph,
    Event,
    Generators,
    Memory,
    Operation,
    Streams,
    graph,
    mapped,
    operation,
    span_of,
    tensors_in,
)
from varangian.core import kernels
from varangian.core.kernels import plain

PACKAGE = "/varangian/"  # whose lines are told
COPIES = {"_to_copy", "copy_"}
GATHERS = {"index", "index_select", "gather"}
WAITING = {"nonzero", "_linalg_eigh", "_linalg_svd", "linalg_solve_ex", "masked_select", "_unique2", "equal"}
FREE = {  # no launch: views, and memory that is only taken
    "view", "_unsafe_view", "slice", "select", "expand", "unsqueeze", "squeeze", "t", "transpose", "permute", "detach",
    "alias", "as_strided", "split", "split_with_sizes", "unbind", "diagonal", "unfold", "lift_fresh", "narrow",
    "reshape", "resize_", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_",
    "_local_scalar_dense",
}  # fmt: skip


class OnTwoDevices(RuntimeError):
    """Operands on two devices."""


class CardTensor(Tensor):
    """What lies on the pretended card."""

    held: Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, held: Tensor, memory: Memory | None = None) -> CardTensor:
        out = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        out.held = held
        out.memory = Memory(_card().streams) if memory is None else memory
        return out

    device = property(lambda self: CARD if PretendedCard.entered is None else _card().device)  # type: ignore[assignment]
    is_cuda = property(lambda self: self.device.type == "cuda")  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return CardTensor(self.held, self.memory)  # with a count of writes of its own

    @data.setter
    def data(self, value: Tensor) -> None:
        """``p.data = view`` gives a parameter other memory: here, what it holds."""
        assert isinstance(value, CardTensor)
        Tensor.data.__set__(self, value)  # pyright: ignore[reportAttributeAccessIssue]
        self.held, self.memory = value.held, value.memory

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        _card().waited("tolist")
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: Any) -> CardTensor:
        return CardTensor(self.held.clone())

    def _index(self, index: Any) -> Any:
        """Lists and tensors of the host that index one of the card are copied over first."""
        if isinstance(index, tuple):
            return tuple(self._index(i) for i in index)
        if isinstance(index, list) or (isinstance(index, Tensor) and not isinstance(index, CardTensor) and index.ndim):
            held = torch.as_tensor(index)
            _card().arrived(held, waits=True)
            return CardTensor(held)
        return index

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(self._index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(self._index(index), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendedCard(TorchDispatchMode):
    """What a card would have been asked to do since the last reset.

    Attributes:
        device: what its tensors say; one of another type than cuda has no float64.
        triton: whether its kernels are Triton's, interpreted, or torch's own operations.
        launches, waits, late, traffic: how many, and bytes moved on the card, by (what, where in the package).
        to_card, to_host: bytes copied.
        replays: of graphs, each of which is a launch too.
        streams: and what is captured on them.
    """

    entered: PretendedCard | None = None

    def __init__(self, device: torch.device = CARD, *, triton: bool = False) -> None:
        super().__init__()
        self.device, self.triton = device, triton
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # pyright: ignore[reportAttributeAccessIssue]
        self._patches = ExitStack()
        self.streams = Streams(self._count, self._count_late, self._count_replay)
        self.reset()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and to ask so at each operation takes as long as some

    def reset(self) -> None:
        self.launches: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.late: Counter[tuple[str, str]] = Counter()
        self.traffic: Counter[tuple[str, str]] = Counter()
        self.to_card = self.to_host = self.replays = 0

    def waited(self, what: str) -> None:
        self.streams.waited(what)

    def _count(self, what: str) -> None:
        self.waits[what, _where()] += 1

    def _count_late(self) -> None:
        self.late["event", _where()] += 1

    def _count_replay(self) -> None:
        self.launches["a graph", _where()] += 1
        self.replays += 1

    def arrived(self, x: Tensor, waits: bool) -> None:
        self.to_card += _size(x)
        if waits:
            self.waited("copy from pageable memory")

    def __str__(self) -> str:
        return (
            f"{self.launches.total():,} launches, {self.waits.total():,} waits {dict(self.waits)}, "
            f"{self.to_card:,} bytes to the card, {self.to_host:,} to the host, {self.traffic.total():,} moved there"
        )

    def __enter__(self) -> PretendedCard:
        assert PretendedCard.entered is None
        PretendedCard.entered = self
        streams = self.streams
        for name, stand_in in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "current_stream": lambda device=None: streams.current,
            "default_stream": lambda device=None: streams.main,
            "stream": streams.on,
            "set_stream": streams.set_current,
            "device": lambda device: nullcontext(),
            "graph": graph,
            "CUDAGraph": CUDAGraph,
            "default_generators": (streams.default,),
            "get_device_name": lambda device=None: "a pretended card",
            "get_device_capability": lambda device=None: (9, 0),
            "mem_get_info": lambda device=None: (2**33, 2**34),
            "empty_cache": lambda: None,
            "get_rng_state": lambda device="cuda": streams.default.get_state(),
            "set_rng_state": lambda state, device="cuda": streams.default.set_state(state),
            "synchronize": lambda device=None: streams.synchronized(),
            "Event": Event,
            "Stream": streams.stream,
        }.items():
            self._patches.enter_context(patch.object(torch.cuda, name, stand_in))
        self._patches.enter_context(patch.object(torch, "Generator", Generators))
        self._patches.enter_context(patch.object(torch.backends.cudnn, "is_acceptable", lambda tensor: False))
        self._patches.enter_context(patch.object(kernels, "for_card", lambda device: plain))
        if self.triton:
            from varangian.core.kernels import cuda

            self._patches.enter_context(patch.object(kernels, "for_card", lambda device: cuda))
            self._patches.enter_context(patch.object(cuda.launching, "run", self._interpret))
        self._patches.callback(
            torch.__future__.set_swap_module_params_on_conversion,
            torch.__future__.get_swap_module_params_on_conversion(),
        )
        torch.__future__.set_swap_module_params_on_conversion(True)  # so that nn.Module.to("cuda:0") works
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        PretendedCard.entered = None
        self._patches.close()
        super().__exit__(*error)
        if error[0] is None:
            self.streams.check()

    def _interpret(self, kernel: Any, grid: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A launch of a kernel of Triton's, whose interpreter takes tensors of the CPU."""
        assert all(isinstance(a, CardTensor) for a in arguments if isinstance(a, Tensor))
        self.launches[kernel.__name__, _where()] += 1
        operands = [(a.held, a.memory) for a in arguments if isinstance(a, CardTensor)]
        self.streams.launched(partial(kernel[(grid,)], *(_unwrap(a) for a in arguments), **options), operands)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type in (self.device.type, "meta")
        if there or any(isinstance(t, CardTensor) for t in tensors_in((args, kwargs))):
            return _run(func, args, kwargs)
        if operation(func).name == "_pin_memory":
            return _pinned(args[0].clone())
        if kwargs.get("pin_memory"):
            return _pinned(func(*args, **(kwargs | {"pin_memory": False})))
        return func(*args, **kwargs)


def _card() -> PretendedCard:
    assert PretendedCard.entered is not None
    return PretendedCard.entered


def _pinned(x: Tensor) -> Tensor:
    x.pinned = True  # pyright: ignore[reportAttributeAccessIssue]
    return x


def _where() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if PACKAGE in code.co_filename and "site-packages" not in code.co_filename:
            return f"{code.co_filename.rsplit(PACKAGE, 1)[1]}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _unwrap(x: Any) -> Any:
    return x.held if isinstance(x, CardTensor) else x


def _written(of: Operation, args: Any, kwargs: Any) -> list[Tensor]:
    """The operands that it writes to."""
    given = dict(zip(of.arguments, args, strict=False)) | kwargs if of.written else {}
    return tensors_in([given.get(name) for name in of.written])


def _check_aligned(operands: list[Tensor]) -> None:
    """Where channels are last, kernels of a card read sixteen bytes at a time."""
    images = [x for x in operands if x.ndim == 4]
    turned = any(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in images)
    if turned and any(x.data_ptr() % 16 for x in operands):
        raise RuntimeError("CUDA error: misaligned address")


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    card, name, tensors = _card(), operation(func).name, tensors_in((args, kwargs))
    mine = [t for t in tensors if isinstance(t, CardTensor)]
    others = [t for t in tensors if not isinstance(t, CardTensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    to_card = device in (card.device.type, "meta")
    if name == "_local_scalar_dense":
        card.waited("value read")
        return func(*mapped(_unwrap, args))
    if name in WAITING:
        card.waited(name)
    if name in ("index", "index_put", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1]):
        card.waited("boolean index")
    if name in COPIES:
        source = args[0] if name == "_to_copy" else args[1]
        on_card = isinstance(args[0], CardTensor) if name == "copy_" or device is None else to_card
        alone = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if isinstance(source, CardTensor) and not on_card:
            card.to_host += _size(source)
            if not (alone and getattr(args[0], "pinned", False)):
                card.waited("copy to the host")
        elif not isinstance(source, CardTensor) and on_card:
            if source.ndim or name == "_to_copy":
                card.arrived(source, waits=not (alone and getattr(source, "pinned", False)))
        elif name == "_to_copy" and on_card and kwargs.get("dtype") in (None, source.dtype):
            return source  # it is there already
    else:
        on_card = bool(mine) or to_card
        if mine and any(t.ndim for t in others) and name != "lift_fresh":
            raise OnTwoDevices(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")
    options = mapped(_unwrap, kwargs)
    if to_card:
        options["device"] = torch.device("cpu")
    held = mapped(_unwrap, args)
    if not on_card:
        for t in mine:
            t.memory.used(card.streams.current, span_of(t.held), writes=False)
        return func(*held, **options)
    if "convolution" in name or "batch_norm" in name:
        _check_aligned([t.held for t in mine])
    memories = {t.held.untyped_storage().data_ptr(): t.memory for t in mine}
    operands, written = [(t.held, t.memory) for t in mine], _written(operation(func), held, options)
    out = card.streams.run(func, held, options, operands=operands, free=name in FREE, written=written)
    if card.device.type != "cuda" and any(t.dtype == torch.float64 for t in tensors_in(out)):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    if name not in FREE:
        made = sum(map(_size, tensors_in(out)))
        read = 0 if name in GATHERS else sum(_size(t) for t in mine)
        moved = 2 * made if name in GATHERS else 0 if name.endswith("_") or "out" in kwargs else made
        where = _where()
        card.launches[name, where] += 1
        card.traffic[name, where] += read + moved
    if operation(func).views_in_place:  # squeeze_() and the like change the wrapper's own shape too
        with torch.utils._mode_utils.no_dispatch():
            func(*args, **kwargs)
        return args[0]
    known = {id(t.held): t for t in mine}  # what was written in place stays the same tensor

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return known[id(x)] if id(x) in known else CardTensor(x, memories.get(x.untyped_storage().data_ptr()))

    return mapped(wrap, out)
