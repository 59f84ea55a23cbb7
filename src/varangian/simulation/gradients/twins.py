"""Copies of a model that compute with other values."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import cut, kind_of
from .checks import alike
from .layouts import ALIGNED


class Twin:
    """A copy of a model that computes with other values, which are put into it: no two threads may share one."""

    def __init__(self, model: nn.Module, learned: Sequence[nn.Parameter]) -> None:
        memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
        memo |= {id(p): nn.Parameter(p.detach()) for p in learned}
        self.module = copied(model, memo)
        self.learned = [p for p in self.module.parameters() if p.requires_grad]
        names = {id(b): name for name, b in self.module.named_buffers()}
        self._places = [
            (names[id(b)], *self._place(name)) for name, b in self.module.named_buffers(remove_duplicate=False)
        ]
        self._taken: dict[str, tuple[Tensor, int]] = {}

    def _place(self, name: str) -> tuple[nn.Module, str]:
        owner, _, key = name.rpartition(".")
        return self.module.get_submodule(owner), key

    def hold(self, values: Sequence[Tensor]) -> None:
        """Computes with these parameters, in the order of ``learned``, whose memory it uses."""
        for p, value in zip(self.learned, values, strict=True):
            p.data = value

    def take(self, buffers: dict[str, Tensor], copied: bool = True) -> None:
        """Computes with these buffers, by name."""
        values = {name: b.detach().clone() if copied else b for name, b in buffers.items()}
        for name, owner, key in self._places:
            setattr(owner, key, values[name])
        self._taken = {name: (b, b._version) for name, b in values.items()}

    def values(self, names: Container[str]) -> dict[str, Tensor]:
        """Those of the buffers that have these names, as they are now."""
        return {name: getattr(owner, key).detach() for name, owner, key in self._places if name in names}

    def changing(self, before: dict[str, Tensor]) -> set[str]:
        """The buffers of modules of which one has changed, by its value or because it was written to."""
        now = {name: (owner, getattr(owner, key)) for name, owner, key in self._places}
        moved = {
            owner
            for name, (owner, b) in now.items()
            if b is not self._taken[name][0]
            or b._version != self._taken[name][1]
            or not alike({"": b}, {"": before[name]})
        }
        return {name for name, (owner, _) in now.items() if owner in moved}

    def check(self, name: str) -> None:
        """Raises ValueError where forward makes buffers, or makes them others than they were."""
        known = {key for key, _, _ in self._places}
        for key, b in self.module.named_buffers():
            was = self._taken[key][0] if key in known else None
            if was is None or (b.shape, b.dtype) != (was.shape, was.dtype):
                raise ValueError(f"{name}: forward makes the buffer {key} {kind_of(b)}, which was {kind_of(was)}.")

    def numbers(self) -> dict[str, object]:
        """The numbers that its modules keep as plain attributes."""
        return {
            f"{name}.{key}" if name else key: value
            for name, module in self.module.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (int, float))
        }


class FlatBuffers:
    """What one worker makes of a model's buffers, on a device: one vector for each type, of which the buffers are
    pieces, so that one copy there and one mean over the workers do for all of them."""

    def __init__(self, buffers: dict[str, Tensor]) -> None:
        self._names: dict[torch.dtype, list[str]] = {}
        for name, b in buffers.items():
            self._names.setdefault(b.dtype, []).append(name)
        self.flat = {
            dtype: buffers[names[0]].new_empty(sum(_room(buffers[name]) for name in names))
            for dtype, names in self._names.items()
        }
        # Behind each piece as much as the next one needs to lie as cards read it.
        gaps = {name: _room(b) - b.numel() for name, b in buffers.items()}
        self._gaps = {name: [buffers[name].new_zeros(gap)] if gap else [] for name, gap in gaps.items()}
        # .data: a count of writes of their own, or a write to one would spoil what autograd keeps of another.
        self._pieces = {name: piece.data for name, piece in self.pieces(self.flat, buffers).items()}

    def pieces(self, flat: dict[torch.dtype, Tensor], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Such vectors as buffers of these shapes."""
        found = {}
        for dtype, names in self._names.items():
            parts = flat[dtype].split([_room(buffers[name]) for name in names])
            found |= {
                name: part[: buffers[name].numel()].view(buffers[name].shape)
                for name, part in zip(names, parts, strict=True)
            }
        return found

    def begin(self, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The worker's buffers, which start as these."""
        for dtype, names in self._names.items():
            parts = [x for name in names for x in (buffers[name].detach().reshape(-1), *self._gaps[name])]
            torch.cat(parts, out=self.flat[dtype])
        return self._pieces

    def keep(self, found: dict[str, Tensor]) -> None:
        """What forward has left where it did not write into what it was given."""
        for name, value in found.items():
            if value.data_ptr() != self._pieces[name].data_ptr():
                self._pieces[name].copy_(value)

    @staticmethod
    def mean_into(buffers: dict[str, Tensor], made: Sequence[FlatBuffers], names: Container[str]) -> None:
        """Buffers of these names become the mean of what workers made of them; integers, what the first one did."""
        start, flat = FlatBuffers(buffers), {}
        start.begin(buffers)
        for dtype, before in start.flat.items():
            rows = torch.stack([worker.flat[dtype] for worker in made])
            real = dtype.is_floating_point or dtype.is_complex
            # Where nobody moved it, rounding the mean must not either.
            flat[dtype] = torch.where((rows == before).all(0), before, rows.mean(0)) if real else rows[0]
        after = start.pieces(flat, buffers)
        for among in start._names.values():
            moved = [name for name in among if name in names]
            if moved:
                places, values = ([held[name] for name in moved] for held in (buffers, after))
                torch._foreach_copy_(places, values)  # pyright: ignore[reportPrivateImportUsage]


def _room(x: Tensor) -> int:
    """How many numbers of its type it takes, so that what lies behind it is aligned."""
    each = max(1, ALIGNED // x.element_size())
    return -(-x.numel() // each) * each


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a module, without gradients; ``memo``: identity of a tensor -> what stands for it in the copy.

    Raises:
        ValueError: it holds what cannot be copied.
    """
    try:
        module = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:  # of tensors that are computed, and of what cannot be pickled
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {cut(str(error)).rstrip('.')}. What is computed from parameters "
            "is for torch.nn.utils.parametrizations, or for forward."
        ) from None
    if memo is None:
        module.zero_grad(set_to_none=True)
    return module
