"""What a model is trained for: losses of outputs and labels, as means over a batch."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..core.checks import kind_of, require, set_real, set_whole


class Loss(ABC):
    """The loss of a batch: outputs [B, ...] of the model and labels [B, ...] make one number."""

    weighs = True  # whether single examples can be given weights

    @abstractmethod
    def mean(self, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The mean over the batch, a number; ``weights``, [B], sum to 1."""

    @abstractmethod
    def total(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """The sum over a part of a data set, and what to divide such sums by for the mean: numbers, or tensors [] that
        nobody has waited for."""

    @abstractmethod
    def fault(self, outputs: Tensor, labels: Tensor, classes: int | None) -> str | None:
        """Why these outputs are none for these labels; None where they are. ``classes``: how many outputs there are to
        be, None where nobody says."""

    def counted(self, labels: Tensor) -> Tensor:
        """Which labels count, as truth values of the same shape."""
        return torch.ones_like(labels, dtype=torch.bool)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """The cross entropy of logits [B, C] and classes [B]; of [B, T, C] and [B, T] where every place of a sequence has
    one.

    The mean over a batch of sequences is one over all places that count. Logarithms of probabilities are logits too.

    Args:
        label_smoothing: s of the target (1 - s) e_y + s / C.
        ignore_index: the label of places that do not count.

    Example:
        >>> CrossEntropy().mean(torch.zeros(2, 10), torch.tensor([3, 7]), torch.tensor([0.5, 0.5]))
        tensor(2.3026)
    """

    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        set_real(self, "label_smoothing", "0 <= label_smoothing < 1", lambda s: 0 <= s < 1)
        set_whole(self, "ignore_index", least=-(2**63))

    def _of(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        return functional.cross_entropy(
            outputs.flatten(0, -2),
            labels.flatten(),
            reduction=reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )

    def mean(self, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        each = self._of(outputs, labels, "none")
        if labels.ndim == 1 and self.ignore_index < 0:
            return (each * weights).sum()
        shares = weights.reshape(-1, *[1] * (labels.ndim - 1)) * self.counted(labels)
        least = torch.finfo(shares.dtype).tiny
        return (each.reshape(labels.shape) * shares).sum() / shares.sum().clamp_min(least)

    def total(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._of(outputs, labels, "sum"), self.counted(labels).sum()

    def counted(self, labels: Tensor) -> Tensor:
        return labels != self.ignore_index

    def fault(self, outputs: Tensor, labels: Tensor, classes: int | None) -> str | None:
        if labels.is_floating_point():
            return f"cross-entropy needs labels that are whole numbers, got {kind_of(labels)}; {_classes_of(labels)}"
        shape = [*labels.shape, "classes" if classes is None else classes]
        if outputs.ndim == labels.ndim + 1 and list(outputs.shape) == [*labels.shape, classes or outputs.shape[-1]]:
            return None
        if labels.ndim == 2 and outputs.ndim == 2 and _one_hot(labels):
            return f"labels {kind_of(labels)} are one-hot: hand over labels.argmax(1)"
        turned = outputs.ndim == 3 and labels.ndim == 2 and outputs.shape[2] == labels.shape[1]
        hint = "; transpose(1, 2) puts the classes last" if turned and outputs.shape[1] == classes else ""
        return f"{_shown(labels)} need outputs [{', '.join(map(str, shape))}], got {kind_of(outputs)}{hint}"


class _OfNumbers(Loss):
    """Of outputs and labels of the same shape, the mean over all numbers of an example."""

    @staticmethod
    @abstractmethod
    def _each(outputs: Tensor, labels: Tensor) -> Tensor: ...

    def _examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """[B]; outputs [B, 1] are as good as [B] for labels [B]."""
        each = self._each(outputs.reshape(labels.shape), labels.to(outputs.dtype))
        return each.flatten(1).mean(1) if each.ndim > 1 else each

    def mean(self, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return (self._examples(outputs, labels) * weights).sum()

    def total(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        return self._examples(outputs, labels).sum(), len(labels)

    def fault(self, outputs: Tensor, labels: Tensor, classes: int | None) -> str | None:
        name = _NAMES[type(self)]
        if not labels.is_floating_point():
            return f"{name} needs labels that are real numbers, got {kind_of(labels)}; hand them over as floats"
        shapes = [list(labels.shape)] + ([[len(labels), 1]] if labels.ndim == 1 else [])
        if list(outputs.shape) in shapes:
            return None
        return f"{_shown(labels)} need outputs {' or '.join(map(str, shapes))}, got {kind_of(outputs)}"


@dataclass(frozen=True)
class SquaredError(_OfNumbers):
    """The mean of (outputs - labels)^2, for labels [B] or [B, k] that are real numbers.

    Example:
        >>> SquaredError().mean(torch.zeros(2, 1), torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]))
        tensor(5.)
    """

    @staticmethod
    def _each(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs - labels).square()


@dataclass(frozen=True)
class BinaryCrossEntropy(_OfNumbers):
    """The cross entropy of each of k logits [B, k] for itself, and labels [B, k] of 0 and 1 as real numbers: examples
    of several classes at once.

    Example:
        >>> BinaryCrossEntropy().mean(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 1.0]]), torch.ones(1))
        tensor(0.6931)
    """

    @staticmethod
    def _each(outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")


@dataclass(frozen=True)
class OwnLoss(Loss):
    """A function of somebody's own, of a batch's outputs and labels, that answers their mean.

    Over a data set, the mean of parts counts as often as they have examples.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    weighs = False

    def __post_init__(self) -> None:
        require(self, callable(self.function), "a function of outputs and labels", self.function)
        try:
            inspect.signature(self.function).bind(None, None)
        except TypeError as error:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise ValueError(f"{name} must take outputs and labels: {error}.") from None
        except ValueError:  # what is built in need not say what it takes
            pass

    def mean(self, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return self.function(outputs, labels)

    def total(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor | float, float]:
        # Copies: it may write there, and others go on with both.
        mean = self.function(outputs.clone(), labels.clone())
        return (mean.double().reshape(()) if isinstance(mean, Tensor) else float(mean)) * len(labels), len(labels)

    def fault(self, outputs: Tensor, labels: Tensor, classes: int | None) -> str | None:
        if outputs.ndim == 0 or len(outputs) != len(labels):
            return f"{len(labels)} examples need as many outputs, got {kind_of(outputs)}"
        return None

    def counted(self, labels: Tensor) -> Tensor:
        return labels >= 0


LOSSES: dict[str, Callable[..., Loss]] = {
    "cross-entropy": CrossEntropy,
    "mse": SquaredError,
    "bce": BinaryCrossEntropy,
}
_NAMES = {kind: name for name, kind in LOSSES.items()}


def _one_hot(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(-1) == 1).all())


def _classes_of(labels: Tensor) -> str:
    """What to do with labels that are real numbers, by what they seem to be."""
    if labels.ndim == 2 and labels.shape[1] > 1 and _one_hot(labels):
        return "they are one-hot: hand over labels.argmax(1)"
    if bool((labels == labels.round()).all()):
        return "hand classes over as integers, or say loss=mse (or bce) if they are numbers"
    return "say loss=mse"


def _shown(labels: Tensor) -> str:
    return f"labels {kind_of(labels)}"
