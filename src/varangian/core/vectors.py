"""Models as vectors: a list of state dicts, or of lists of tensors, to [n, d] and back.

Rules work on vectors of what is trained. What else a model holds (the running statistics and the batch counter of a
normalisation, a mask, an index) would decide who is near whom without being trained, or has no mean at all, so it never
enters a vector in silence: ``buffers`` says what becomes of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import shown

Buffers = Literal["refuse", "keep", "aggregate"]
BUFFERS = ("refuse", "keep", "aggregate")
BUFFER_NAMES = ("running_mean", "running_var", "num_batches_tracked")
"""What torch calls the buffers of its normalisations: all that it has which are floating-point and not trained."""
Model = Mapping[str, Tensor] | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class ModelShape:
    """How to make models of vectors again.

    Attributes:
        names: of the tensors, in order; "0", "1", ... for models that are lists.
        shapes: of the tensors.
        dtypes: of the tensors.
        in_vector: whether a tensor is part of the vector.
        kept: the tensors that are not, of the first model; None for those that are.
        is_list: whether models were lists of tensors.
        d: the length of the vector.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    in_vector: tuple[bool, ...]
    kept: tuple[Tensor | None, ...]
    is_list: bool
    d: int


def flatten(
    models: Sequence[Model],
    buffers: Buffers = "refuse",
    dtype: torch.dtype | None = None,
    buffer_names: Collection[str] = BUFFER_NAMES,
) -> tuple[Tensor, ModelShape]:
    """[n, d] of n models, each a state dict or a list of tensors; and what :func:`unflatten` needs.

    Buffers are the tensors that are not floating-point, and those of the given names: a state dict does not say what is
    trained.

    Args:
        models: all with the same names (in any order), shapes and data types; only read.
        buffers: what becomes of buffers: "refuse" raises; "keep" leaves them out and ``unflatten`` gives back those of
            the first model; "aggregate" takes them along as numbers, which then count in distances as weights do, and
            which ``unflatten`` rounds to the nearest where they are integers (true from 1/2 up): meaningful for
            counters, not for indices.
        dtype: of the vectors; by default the widest of the tensors that are taken along.
        buffer_names: of floating-point tensors that are buffers, whole or their last part. By default what torch calls
            the running statistics of its normalisations; for a module with others
            ``[name for name, _ in module.named_buffers()]``. () for none.

    Raises:
        ValueError: no models, models that differ in names, shapes or data types, buffers under "refuse", names of
            buffers that no tensor has, complex tensors, or integers that the vectors' data type cannot hold exactly.

    Example:
        >>> import torch, varangian as vg
        >>> models = [torch.nn.BatchNorm1d(2).state_dict() for _ in range(5)]
        >>> x, shape = flatten(models, buffers="keep")
        >>> x.shape
        torch.Size([5, 4])
        >>> list(unflatten(vg.Median(f=2)(x), shape))
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    if buffers not in BUFFERS:
        raise ValueError(f'flatten needs buffers "refuse", "keep" or "aggregate", got {buffers!r}.')
    listed = isinstance(buffer_names, Collection) and not isinstance(buffer_names, str)
    if not listed or not all(isinstance(name, str) for name in buffer_names):
        raise ValueError(f"flatten needs buffer_names as a list of names, got {shown(buffer_names)}.")
    models = list(models)
    if not models:
        raise ValueError("flatten needs n >= 1 models, got none.")
    is_list = not isinstance(models[0], Mapping)
    named = [_named(model, i, is_list) for i, model in enumerate(models)]
    first = named[0]
    if not first:
        raise ValueError("flatten needs models with at least one tensor, got an empty one.")
    for i, model in enumerate(named[1:], 1):
        _check_alike(first, model, i)
    if buffer_names is not BUFFER_NAMES:
        absent = [one for one in buffer_names if not any(one in (name, _last(name)) for name in first)]
        if absent:
            raise ValueError(f"flatten needs buffer_names of the models, got {absent}, which no tensor has.")
    in_vector, odd = [], []
    for name, tensor in first.items():
        if tensor.is_complex():
            raise ValueError(f"flatten needs real tensors, got {tensor.dtype} in {name!r}.")
        trained = tensor.is_floating_point() and name not in buffer_names and _last(name) not in buffer_names
        if not trained:
            odd.append(f"{name!r} ({tensor.dtype})")
        in_vector.append(trained or buffers == "aggregate")
    if odd and buffers == "refuse":
        raise ValueError(
            f"flatten needs tensors that are trained, or buffers= to say what becomes of others "
            f'("keep" the first model\'s, or "aggregate" and round), got {", ".join(odd)}.'
        )
    taken = [name for name, takes in zip(first, in_vector, strict=True) if takes]
    if not taken:
        raise ValueError("flatten needs at least one floating-point tensor that is trained, got none.")
    if dtype is None:
        floating = [first[name].dtype for name in taken if first[name].is_floating_point()]
        dtype = torch.float32 if not floating else floating[0]
        for other in floating[1:]:
            dtype = torch.promote_types(dtype, other)
    if not dtype.is_floating_point:
        raise ValueError(f"flatten needs a floating-point dtype, got {dtype}.")
    _check_exact(named, [name for name in taken if not first[name].is_floating_point()], dtype)
    d = sum(first[name].numel() for name in taken)
    x = torch.empty(len(named), d, dtype=dtype, device=first[taken[0]].device)
    for row, model in zip(x, named, strict=True):
        start = 0
        for name in taken:
            tensor = model[name].detach()
            row[start : start + tensor.numel()].copy_(tensor.reshape(-1))
            start += tensor.numel()
    return x, ModelShape(
        names=tuple(first),
        shapes=tuple(t.shape for t in first.values()),
        dtypes=tuple(t.dtype for t in first.values()),
        in_vector=tuple(in_vector),
        kept=tuple(None if t else v.detach().clone() for t, v in zip(in_vector, first.values(), strict=True)),
        is_list=is_list,
        d=d,
    )


def unflatten(vector: Tensor, shape: ModelShape) -> Any:
    """A model of one vector [d], or a list of models of [n, d]; tensors of their own, in their first data types.

    Raises:
        ValueError: a vector of another length, or a number that an integer tensor cannot hold.

    Example:
        >>> import torch
        >>> x, shape = flatten([[torch.ones(2, 2), torch.zeros(1)]])
        >>> [tensor.shape for tensor in unflatten(x[0], shape)]
        [torch.Size([2, 2]), torch.Size([1])]
    """
    if vector.ndim == 2:
        return [unflatten(row, shape) for row in vector]
    if vector.ndim != 1 or vector.numel() != shape.d:
        raise ValueError(f"unflatten needs a vector of length d = {shape.d}, got shape {list(vector.shape)}.")
    tensors: dict[str, Tensor] = {}
    start = 0
    for i, name in enumerate(shape.names):
        kept = shape.kept[i]
        if kept is not None:
            tensors[name] = kept.clone()
            continue
        size = shape.shapes[i].numel()
        part = vector[start : start + size].detach().reshape(shape.shapes[i])
        start += size
        tensors[name] = _of_type(part, shape.dtypes[i], name)
    return list(tensors.values()) if shape.is_list else tensors


def _of_type(part: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if dtype.is_floating_point:
        return part.to(dtype, copy=True)
    if dtype == torch.bool:
        return part >= 0.5
    whole = part.double().round()
    limits = torch.iinfo(dtype)
    # 2^63 - 1 is no double: the greatest is compared from below.
    if not bool(((whole >= limits.min) & (whole < float(limits.max) + 1)).all()):
        raise ValueError(
            f"unflatten needs numbers within the range of {dtype} for {name!r}, got {part.double().tolist()}."
        )
    return whole.to(dtype)


def _last(name: str) -> str:
    """The last part of a name: "running_mean" of "encoder.norm.running_mean"."""
    return name.rsplit(".", 1)[-1]


def _named(model: Model, i: int, is_list: bool) -> dict[str, Tensor]:
    if isinstance(model, (str, Tensor)) or not isinstance(model, (Mapping, Sequence)):
        raise ValueError(f"flatten needs state dicts or lists of tensors, got {type(model).__name__} at {i}.")
    if isinstance(model, Mapping) == is_list:
        raise ValueError(f"flatten needs models of one kind, got {type(model).__name__} at {i} after another kind.")
    items = model.items() if isinstance(model, Mapping) else ((str(k), tensor) for k, tensor in enumerate(model))
    named = dict(items)
    for name, tensor in named.items():
        if not isinstance(name, str):
            raise ValueError(f"flatten needs names that are text, got {shown(name)} in model {i}.")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"flatten needs tensors, got {type(tensor).__name__} in {name!r} of model {i}.")
    return named


def _check_alike(first: dict[str, Tensor], model: dict[str, Tensor], i: int) -> None:
    if model.keys() != first.keys():
        lacks, has = sorted(first.keys() - model.keys()), sorted(model.keys() - first.keys())
        raise ValueError(f"flatten needs models with the same tensors, got model {i} that lacks {lacks} and has {has}.")
    for name, tensor in first.items():
        if model[name].shape != tensor.shape:
            came, wanted = list(model[name].shape), list(tensor.shape)
            raise ValueError(f"flatten needs {name!r} of one shape, {wanted} in model 0, got {came} in model {i}.")
        if model[name].dtype != tensor.dtype:
            came = model[name].dtype
            raise ValueError(f"flatten needs {name!r} of one type, {tensor.dtype} in model 0, got {came} in model {i}.")


def _check_exact(named: list[dict[str, Tensor]], names: list[str], dtype: torch.dtype) -> None:
    limit = 2 / torch.finfo(dtype).eps
    for name in names:
        for i, model in enumerate(named):
            if model[name].numel() and float(model[name].double().abs().max()) > limit:
                raise ValueError(
                    f"flatten needs integers that {dtype} holds exactly (to {limit:.0f}), got more in {name!r} "
                    f"of model {i}; give dtype=torch.float64."
                )


__all__ = ["ModelShape", "flatten", "unflatten"]
