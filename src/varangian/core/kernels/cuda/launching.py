"""How kernels for cards are written down, started, and fed: every launch passes through :func:`launch`."""

from __future__ import annotations

import linecache
import struct
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

triton: Any
tl: Any
try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:  # nobody calls what follows then, but tools import whatever modules there are
    triton = tl = None


SETTINGS = ["factor", "keep", "beta", "divisor", "up", "down", "total", "lost", "faint", "low", "high", "window"]
"""Names of arguments that are numbers of the caller. Triton would compile a kernel anew for some of their values."""


def kernel(function: Any) -> Any:
    """A decorator: the function as a kernel of Triton's, or as what kernels call."""
    return function if triton is None else triton.jit(function, do_not_specialize=SETTINGS)


def launch(kernel: Any, grid: int, *arguments: Any, **options: Any) -> None:
    """Starts ``grid`` programs of a kernel where its tensors are, and does not wait for them.

    The grid has one axis: of the three only the first takes more than 65,535. A kernel that is to round as main memory
    does is launched with ``enable_fp_fusion=False``: a fused multiply-add rounds once where two operations round twice.
    """
    if grid:
        run(kernel, grid, arguments, options)


def run(kernel: Any, grid: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A launch itself, which tests record and replace. Triton takes the device that is current for that of the tensors,
    and helper threads start on the first one."""
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(grid,)](*arguments, **options)


def emitted(name: str, source: str, function: str = "kernel", *called: Any) -> Any:
    """A kernel from its source, which defines a function of that name and calls others: for code that is straight only
    once sizes are known. Triton wants to read the source of what it compiles, so the source is left where Python looks
    for it."""
    file = f"<{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space: dict[str, Any] = {"tl": tl, "float_of": float_of, "__name__": __name__}
    space |= {other.__name__: other for other in called}
    exec(compile(source, file, "exec"), space)
    return kernel(space[function])


def bits(value: float) -> int:
    """A number as a kernel takes it, for :func:`float_of`: Triton passes floats in single precision."""
    return struct.unpack("q", struct.pack("d", value))[0]


@kernel
def float_of(bits):
    """The number, in float64. (An argument that Triton knows the value of has no method ``to``.)"""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


def rows(x: Tensor) -> Tensor:
    """[n, d] as kernels take it: neighbours of a row are neighbours in memory, and signs are where they seem to be. A
    copy where it is not so."""
    x = x.detach().resolve_neg()
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
