"""What an adversary remembers from step to step: a tensor, several of them, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, Union

import torch
from torch import Tensor

from ..checks import kind_of, not_dense

Memory: TypeAlias = Union[Tensor, tuple["Memory", ...], None]  # noqa: UP007  its own name in it is text
"""A dense tensor of any shape, a tuple of such (which may hold tuples and None too), or None: nothing."""

KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64,
         torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # fmt: skip
MOST_DEEP = 20  # tuples in tuples


def check_memory(owner: object, memory: object, device: torch.device | None, depth: int = 0) -> None:
    """
    Raises:
        ValueError: it is no memory, or is not on the device of the vectors, where that is named.
    """
    if memory is None:
        return
    wanted = f"{type(owner).__name__} must remember a tensor of numbers, a tuple of tensors, or None"
    if isinstance(memory, tuple) and depth < MOST_DEEP:
        for part in memory:
            check_memory(owner, part, device, depth + 1)
    elif not isinstance(memory, Tensor) or not_dense(memory) or memory.dtype not in KINDS:
        raise ValueError(f"{wanted}, got {kind_of(memory)}.")
    elif device is not None and memory.device != device:
        raise ValueError(f"{wanted}, on {device} as the vectors are, got a tensor on {memory.device}.")


def each(memory: Memory, change: Callable[[Tensor], Tensor]) -> Memory:
    """The memory with each of its tensors changed."""
    if isinstance(memory, tuple):
        return tuple(each(part, change) for part in memory)
    return None if memory is None else change(memory)


def own(memory: Memory, device: torch.device | None = None) -> Memory:
    """The same numbers in memory that nobody else has, on that device where one is named."""
    return each(memory, lambda x: _own(x) if device is None else _own(x).to(device))


def _own(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.contiguous_format)


def same(one: Memory, other: Memory) -> bool:
    """Whether both hold the same numbers to the bit, NaN included."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(_bytes(one), _bytes(other))
    return one is None and other is None


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)
