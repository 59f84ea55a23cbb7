"""What stands before F at the workers or after F at the server: one class each, whatever the side.

A transform maps vectors to vectors row by row and is a value: its memory is handed in and handed back,
``(out, memory) = transform(x, memory)``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from . import kernels
from .checks import kind_of, not_dense, require, set_real
from .construction import Constructed


def check_like(owner: object, what: str, value: object, x: Tensor, *, rows: bool = True) -> None:
    """Raises ValueError unless the value is a tensor of x's shape (its last dimension alone without ``rows``), type and
    device. Kernels index what they are given: nothing of another shape may come near them."""
    shape = x.shape if rows else x.shape[-1:]
    if not (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.shape == shape
        and value.dtype == x.dtype
        and value.device == x.device
        and value.layout == x.layout
    ):
        name = owner if isinstance(owner, str) else type(owner).__name__
        wanted = kind_of(x if rows or x.ndim == 1 else x[0])
        raise ValueError(f"{name} needs {what} as {wanted}, got {kind_of(value)}.")


def _check_call(stage: Transform, x: Tensor, out: Tensor | None) -> None:
    """Raises ValueError for vectors that are none, and for an ``out`` that is not like them."""
    if not (isinstance(x, Tensor) and x.is_floating_point() and not not_dense(x)):
        raise ValueError(f"{type(stage).__name__} needs vectors as a floating-point tensor [..., d], got {kind_of(x)}.")
    if out is not None:
        check_like(stage, "out", out, x)


class Transform(Constructed):
    """Row by row, [..., d] -> [..., d], with explicit memory.

    Write ``__call__``, which answers the transformed vectors and the new memory. It also gets the last aggregate where
    the class says ``uses_previous = True``.

    Class attributes:
        remembers: it keeps one vector per row: its memory is a tensor shaped like its input, zero at first; else None.
        uses_previous: ``__call__(self, x, memory, previous)`` looks at the last aggregate, [d].
        worker_only: it has no meaning after F.
        columnwise: it looks at each coordinate alone, so pieces of vectors will do.

    Example:
        >>> import torch, varangian as vg
        >>> @dataclass(frozen=True)
        ... class Averaged(vg.Transform):
        ...     '''The mean of all vectors so far, the older ones decaying.'''
        ...
        ...     decay: float = 0.9
        ...     remembers = True
        ...     columnwise = True
        ...
        ...     def __call__(self, x, memory=None):
        ...         moved = self.decay * memory + (1 - self.decay) * x
        ...         return moved, moved
        >>> a = vg.Algorithm(worker=[Averaged(0.5)], rule=vg.Median(f=1))
        >>> a.send(torch.ones(3, 2), a.init(h=3, d=2))[0][0]
        tensor([0.5000, 0.5000])
    """

    remembers: ClassVar[bool] = False
    uses_previous: ClassVar[bool] = False
    worker_only: ClassVar[bool] = False
    columnwise: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The transformed vectors and the new memory; x and the old memory are only read."""

    def look_ahead(self, parameters: Tensor, memory: Tensor | None, previous: Tensor | None, lr: float) -> Tensor:
        """Where the gradient is to be taken: ``parameters`` themselves unless this is Nesterov's momentum."""
        return parameters


@dataclass(frozen=True)
class Clip(Transform):
    """Bounds the Euclidean norm of each vector.

    x min(1, max_norm / ||x||) with mode "norm"; with mode "unit" a vector longer than max_norm is brought to norm 1.

    Args:
        max_norm: the greatest norm that passes unchanged, > 0.
        mode: "norm" as the paper describes it, "unit" as its published code computed it.

    Convention: the published code of the paper used "unit" (see docs/explanation/conventions.md).

    Example:
        >>> import torch
        >>> Clip(2.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))[0]
        tensor([[1.2000, 1.6000],
                [0.3000, 0.4000]])
    """

    max_norm: float
    mode: Literal["norm", "unit"] = "norm"

    def __post_init__(self) -> None:
        set_real(self, "max_norm", "max_norm > 0", lambda bound: bound > 0)
        require(self, self.mode in ("norm", "unit"), 'mode "norm" or "unit"', self.mode)

    @kernels.eager
    def __call__(
        self, x: Tensor, memory: Tensor | None = None, previous: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, None]:
        _check_call(self, x, out)
        given, x = x, x.detach()  # no gradient goes through: the norm has none
        norm = kernels.norms(x)
        if kernels.on_device(x):
            return self._clipped_there(x, self.scales(norm), out), None
        if out is given and not (norm > self.max_norm).any():
            return given, None
        scales, least = self.scales(norm), torch.finfo(x.dtype).tiny
        small = (scales < least) & (scales > 0)
        if not small.any():
            return torch.mul(x, scales.to(x.dtype).unsqueeze(-1), out=out), None
        # A scale that the type holds roughly or not at all: in two factors that it does.
        first = torch.where(small, least, scales)
        clipped = torch.mul(x, first.to(x.dtype).unsqueeze(-1), out=out)
        return clipped.mul_((scales / first).to(x.dtype).unsqueeze(-1)), None

    def _clipped_there(self, x: Tensor, scales: Tensor, out: Tensor | None) -> Tensor:
        """The same on a device, whose numbers nobody looks at: a product in double precision holds any scale of the
        other types, and rounds as theirs does."""
        least, out = torch.finfo(x.dtype).tiny, torch.empty_like(x) if out is None else out
        small = (scales < least) & (scales > 0)
        if x.dtype == torch.float64:
            first = torch.where(small, least, scales)
            second = torch.where(small, scales / least, torch.ones_like(scales))
            return torch.mul(x, first.unsqueeze(-1), out=out).mul_(second.unsqueeze(-1))
        rounded = torch.where(small, scales, scales.to(x.dtype).to(scales.dtype))
        return torch.mul(x, rounded.unsqueeze(-1), out=out)

    def scales(self, norm: Tensor) -> Tensor:
        """What vectors of these norms are multiplied by."""
        target = self.max_norm if self.mode == "norm" else 1.0
        return torch.where(norm > self.max_norm, target / norm, 1.0)


@dataclass(frozen=True)
class Momentum(Transform):
    """Momentum, the object that the paper moves across F.

    m <- beta m + (1 - dampening) g; what leaves is m. Before F every worker keeps its own m_i; after F the server
    keeps one m. With ``nesterov`` the gradient is taken at the point ahead, theta - beta lr m (a true look-ahead,
    evaluated there, not the algebraic rewriting of torch.optim.SGD).

    Args:
        beta: the decay mu, in [0, 1).
        dampening: in [0, 1); 0 accumulates (steady state 1 / (1 - beta) times the gradient), beta averages.
        nesterov: take gradients at the look-ahead point.

    Example:
        >>> import torch
        >>> m, memory = Momentum(0.9)(torch.ones(2), torch.zeros(2))
        >>> m, memory = Momentum(0.9)(torch.ones(2), memory)
        >>> m
        tensor([1.9000, 1.9000])
    """

    beta: float
    dampening: float = 0.0
    nesterov: bool = False

    remembers: ClassVar[bool] = True
    columnwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_real(self, "beta", "beta in [0, 1)", lambda beta: 0 <= beta < 1)
        set_real(self, "dampening", "dampening in [0, 1)", lambda dampening: 0 <= dampening < 1)
        require(self, isinstance(self.nesterov, bool), "nesterov True or False", self.nesterov)

    @kernels.eager
    def __call__(
        self, x: Tensor, memory: Tensor | None = None, previous: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        _check_call(self, x, out)
        check_like(self, "its memory, which Algorithm.init makes,", memory, x)
        assert memory is not None
        moved = kernels.blend(1 - self.dampening, x, self.beta, memory, out=memory if out is x else out)
        return moved, moved.clone() if out is None else moved

    def overflow(self, dtype: torch.dtype) -> float:
        """Whatever is remembered, vectors of a lesser norm make nothing overflow."""
        return 0.25 * torch.finfo(dtype).max * min(1.0, (1 - self.beta) / (1 - self.dampening))

    def look_ahead(self, parameters: Tensor, memory: Tensor | None, previous: Tensor | None, lr: float) -> Tensor:
        if not self.nesterov:
            return parameters
        assert memory is not None
        return kernels.moved(parameters, memory, -self.beta * lr)


@dataclass(frozen=True)
class SharedMomentum(Transform):
    """Every worker adds the same momentum, the last aggregate, to its gradient before sending it.

    Workers send (1 - dampening) g_i + beta G and G <- F(...). Neither of the paper's two formulations: its published
    code offers it as "server" momentum and the paper's grid does not use it.

    Args: as for :class:`Momentum`; with ``nesterov`` gradients are taken at theta - beta lr G.

    Example:
        >>> import torch
        >>> SharedMomentum(0.5)(torch.ones(2, 3), previous=torch.full((3,), 4.0))[0]
        tensor([[3., 3., 3.],
                [3., 3., 3.]])
    """

    beta: float
    dampening: float = 0.0
    nesterov: bool = False

    uses_previous: ClassVar[bool] = True
    worker_only: ClassVar[bool] = True
    columnwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_real(self, "beta", "beta in [0, 1)", lambda beta: 0 <= beta < 1)
        set_real(self, "dampening", "dampening in [0, 1)", lambda dampening: 0 <= dampening < 1)
        require(self, isinstance(self.nesterov, bool), "nesterov True or False", self.nesterov)

    @kernels.eager
    def __call__(
        self, x: Tensor, memory: Tensor | None = None, previous: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, None]:
        _check_call(self, x, out)
        check_like(self, "the last aggregate", previous, x, rows=False)
        assert previous is not None
        return kernels.blend(1 - self.dampening, x, self.beta, previous, out=out), None

    def look_ahead(self, parameters: Tensor, memory: Tensor | None, previous: Tensor | None, lr: float) -> Tensor:
        if not self.nesterov:
            return parameters
        assert previous is not None
        return kernels.moved(parameters, previous, -self.beta * lr)
