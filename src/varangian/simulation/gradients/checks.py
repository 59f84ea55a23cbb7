"""What is no model here, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...core.checks import cut, kind_of, shown
from ..identity import is_somebodys


def check_module(model: nn.Module) -> None:
    """Raises ValueError for a model whose gradients are no vector here."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is a torch.nn.Module, got {shown(model)}.")
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name} is scripted, and cannot be computed with other parameters: hand in the module.")
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ValueError(f"{name} holds a {type(module).__name__}: hand in the module inside, its .module.")
        if isinstance(module, torch._dynamo.OptimizedModule if "torch._dynamo" in sys.modules else ()):
            raise ValueError(f"{name} is compiled: hand in the module that was.")
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if not learned:
        raise ValueError(f"{name} has no parameters that require gradients: nothing can be learned.")
    for key, p in learned.items():
        if nn.parameter.is_lazy(p):
            raise ValueError(f"{name}: {key} has no shape before a first batch; call the module with one.")
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: parameters must be float32 or float64, got {key}: {kind_of(p)}.")
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise ValueError(f"{name}: {key} has a hook on its gradient; a transform of the worker half does that.")
    if len({(p.dtype, p.device) for p in learned.values()}) > 1:
        kinds = ", ".join(dict.fromkeys(f"{type_of(p)} on {p.device}" for p in learned.values()))
        raise ValueError(f"{name}: parameters must be of one type and on one device, got {kinds}.")


def check_outputs(name: str, outputs: object, point: Tensor) -> None:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"{name} must answer a tensor, got {kind_of(outputs)}.")
    if outputs.dtype != point.dtype or outputs.layout != torch.strided or outputs.device != point.device:
        raise ValueError(
            f"{name} must answer a tensor of {type_of(point)} on {point.device}, as its parameters are, "
            f"got {kind_of(outputs)}."
        )


def check_finite(what: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{what} must be finite at the start, got {_first_infinite(value)}.")


def _first_infinite(value: Tensor) -> str:
    bad = value.detach()[~torch.isfinite(value.detach())]
    return f"{float(bad.flatten()[0])} in {bad.numel():,} of {value.numel():,} numbers"


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all are the same; on a GPU, whose sums may come in any order, nearly so."""
    if one.keys() != other.keys():
        return False
    pairs = [(value.detach(), other[name].detach()) for name, value in one.items()]
    return all(
        torch.allclose(a, b, rtol=1e-3 if a.is_cuda else 0, atol=1e-5 if a.is_cuda else 0, equal_nan=True)
        if a.is_floating_point() or a.is_complex()
        else torch.equal(a, b)
        for a, b in pairs
    )


@contextmanager
def explained(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """What a model raises: in a line where none of its code is somebody's own, else as it is."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        what = f"{type(model).__name__} cannot compute a batch of {kind_of(inputs)}"
        if any(is_somebodys(type(module).__module__) for module in model.modules()):
            if sys.version_info >= (3, 11):
                error.add_note(f"({what}: that is one worker's.)")
            raise
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        raise ValueError(f"{what}: {cut(str(error)).rstrip('.')}.") from None


def type_of(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
