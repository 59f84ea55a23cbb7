"""A model's arrays as Flower sends them, and the way from them to vectors and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from ...core.checks import Refused, shown
from ...core.rules import Median
from ...core.vectors import flatten, unflatten

Buffers = Literal["median", "keep"]
BUFFERS = ("median", "keep")

WHOLE = 2**53  # integers up to this are exact in float64
SLACK = 1 << 16  # bytes that an array may be longer than the one sent: headers differ
WORDS = 120  # characters of somebody else's text in a log


class MalformedError(Exception):
    """What is wrong with a reply."""


class Model:
    """A model that was sent: what replies must look like, and the way from them to vectors and back."""

    def __init__(self, record: ArrayRecord, buffers: Buffers, buffer_names: Sequence[str]) -> None:
        self.record, self.buffers = record, buffers
        trained: dict[str, Tensor] = {}
        for name, array in record.items():
            if np.dtype(array.dtype).kind == "f" and name.rsplit(".", 1)[-1] not in buffer_names:
                try:
                    trained[name] = tensor_of(array)
                except MalformedError as error:
                    raise ValueError(
                        f"RobustStrategy needs arrays that torch has too, got {name!r}, which {error}."
                    ) from None
                if not is_finite(trained[name]):
                    raise ValueError(f"RobustStrategy needs a finite model, got NaN or infinity in {name!r}.")
        if not trained:
            raise ValueError(f"RobustStrategy needs floating-point arrays that are trained, got {list(record)}.")
        self.trained = tuple(trained)
        dtype = torch.float32
        for tensor in trained.values():
            dtype = torch.promote_types(dtype, tensor.dtype)
        x, self.shape = flatten([trained], dtype=dtype, buffer_names=())
        self.vector = x[0]
        self.untrained = tuple(name for name in record if name not in trained)
        for name in self.untrained if buffers == "median" else ():
            try:
                check_countable(tensor_of(record[name]))
            except MalformedError as error:
                raise ValueError(f'RobustStrategy has no median of {name!r}, which {error}: buffers="keep".') from None

    def read(self, content: RecordDict) -> tuple[Tensor, dict[str, Tensor]]:
        """The update [d] in a reply, and the buffers there.

        Raises:
            MalformedError: anything but the arrays that were sent, with other numbers in them.
        """
        records = list(content.array_records.values())
        if len(records) != 1:
            raise MalformedError(f"{len(records)} array records, not 1")
        record = records[0]
        if record.keys() != self.record.keys():
            lacks, has = self.record.keys() - record.keys(), record.keys() - self.record.keys()
            raise MalformedError(f"lacks {_some(lacks)} and has {_some(has)}")
        trained = {name: self._received(name, record) for name in self.trained}
        buffers: dict[str, Tensor] = {}
        if self.buffers == "median":
            buffers = {name: self._received(name, record) for name in self.untrained}
        x, _ = flatten([trained], dtype=self.vector.dtype, buffer_names=())
        update = x[0].sub_(self.vector)
        overflows = not is_finite(update)
        for name, tensor in (trained | buffers if overflows else buffers).items():
            try:
                check_countable(tensor)
            except MalformedError as error:
                raise MalformedError(f"{name!r} {error}") from None
        if overflows:
            raise MalformedError("an update that overflows")
        return update, buffers

    def _received(self, name: str, record: ArrayRecord) -> Tensor:
        sent, came = self.record[name], record[name]
        if len(came.data) > len(sent.data) + SLACK:
            raise MalformedError(f"{name!r} has {len(came.data):,} bytes instead of about {len(sent.data):,}")
        try:
            tensor, wanted = tensor_of(came), np.dtype(sent.dtype)
        except MalformedError as error:
            raise MalformedError(f"{name!r} {error}") from None
        if tuple(tensor.shape) != tuple(sent.shape):
            raise MalformedError(f"{name!r} has shape {list(tensor.shape)} instead of {list(sent.shape)}")
        if tensor.numpy().dtype != wanted:
            raise MalformedError(f"{name!r} is {tensor.numpy().dtype} instead of {wanted}")
        return tensor

    def moved(self, step: Tensor, buffers: list[dict[str, Tensor]], f: int) -> ArrayRecord:
        """The next model.

        Raises:
            Refused: it would not be finite.
        """
        new: dict[str, Tensor] = unflatten(self.vector + step, self.shape)
        for name, tensor in new.items():
            if not is_finite(tensor):
                raise Refused(f"the next model would not be finite, in {name!r}.")
        if self.untrained and self.buffers == "median":
            x, shape = flatten(buffers, buffers="aggregate", dtype=torch.float64)
            new |= unflatten(Median(f=f)(x), shape)
        return ArrayRecord(
            {name: Array(new[name].numpy()) if name in new else array for name, array in self.record.items()}
        )


def tensor_of(array: Array) -> Tensor:
    try:
        values = array.numpy()
        if not isinstance(values, np.ndarray):
            raise TypeError("not an array")
        return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=False))
    except Exception as error:  # bytes from anybody: whatever they make numpy raise, they are no array
        raise MalformedError(f"cannot be read ({type(error).__name__})") from None


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite: NaN and infinities are among the extremes, in one pass that allocates nothing."""
    return not tensor.numel() or all(math.isfinite(extreme) for extreme in torch.aminmax(tensor))


def check_countable(tensor: Tensor) -> None:
    """Raises unless all numbers are finite and exact in float64."""
    if tensor.is_floating_point():
        if not is_finite(tensor):
            raise MalformedError("holds NaN or infinity")
    elif tensor.is_complex():
        raise MalformedError("holds complex numbers")
    elif tensor.numel() and float(tensor.double().abs().max()) > WHOLE:
        raise MalformedError("holds integers beyond 2^53")


def buffer_names_of(owner: str, names: Sequence[str]) -> tuple[str, ...]:
    listed = tuple(names) if isinstance(names, Iterable) else ()  # once: it may be a generator
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{owner} needs buffer_names as a list of names, got {shown(names)}.")
    return listed


def brief_of(text: str) -> str:
    """Somebody else's words, made fit for one line of a log: the last line, where a traceback has its cause."""
    last = (text.strip().splitlines() or [""])[-1].strip()
    return repr(last if len(last) <= WORDS else last[: WORDS - 1] + "…")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    first = ", ".join(brief_of(name) for name in names[:3]) or "nothing else"
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
