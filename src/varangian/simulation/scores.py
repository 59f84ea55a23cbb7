"""What may be measured of a model beside its loss and its accuracy: functions of all outputs and labels of a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.checks import kind_of, shown
from .data.dataset import IGNORED

Score = Callable[[Tensor, Tensor], Any]


def balanced_accuracy(outputs: Tensor, labels: Tensor) -> float:
    """The mean over the classes that occur of the share of their examples that is found: 1 / C for a constant answer.

    Example:
        >>> balanced_accuracy(torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1]))
        0.5
    """
    return float(_of_those_there(_found("balanced-accuracy", outputs, labels)).mean())


def worst_class(outputs: Tensor, labels: Tensor) -> float:
    """The least share, over the classes that occur, of their examples that is found: what poisoning of one class hits.

    Example:
        >>> worst_class(torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1]))
        0.0
    """
    return float(_of_those_there(_found("worst-class", outputs, labels)).min())


def macro_f1(outputs: Tensor, labels: Tensor) -> float:
    """The mean over the classes, of those that occur or are answered, of 2 tp / (2 tp + fp + fn).

    Example:
        >>> round(macro_f1(torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1])), 4)
        0.4286
    """
    scores, truth = _classes("macro-f1", outputs, labels)
    answers = scores.argmax(-1)
    both, classes = answers[answers == truth], scores.shape[-1]
    hits, answered, there = (torch.bincount(x, minlength=classes).double() for x in (both, answers, truth))
    known = answered + there > 0
    return float((2 * hits / (answered + there))[known].mean())


def top(outputs: Tensor, labels: Tensor, k: int = 5) -> float:
    """The share of examples whose class is among those of the k greatest outputs.

    Example:
        >>> top(torch.tensor([[3.0, 2.0, 1.0]]).repeat(3, 1), torch.arange(3), k=2)
        0.6666666666666666
    """
    scores, truth = _classes("top", outputs, labels)
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"top needs k from 1 to the {scores.shape[-1]} classes, got {shown(k)}.")
    return float((scores.topk(k).indices == truth[:, None]).any(1).double().mean())


def mean_absolute_error(outputs: Tensor, labels: Tensor) -> float:
    """The mean of |output - label|.

    Example:
        >>> mean_absolute_error(torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 4.0]))
        1.5
    """
    answers, truth = _numbers("mae", outputs, labels)
    return float((answers - truth).abs().mean())


def determination(outputs: Tensor, labels: Tensor) -> float:
    """R^2, the share of the labels' variance that is explained: 1 - sum (output - label)^2 / sum (label - mean)^2.

    Of several numbers an example, the mean of theirs. 0 is what the mean of the labels would get.

    Example:
        >>> determination(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 3.0]))
        1.0
    """
    answers, truth = _numbers("r2", outputs, labels)
    left = (answers - truth).square().sum(0)
    return float((1 - left / (truth - truth.mean(0)).square().sum(0)).mean())


def per_class(outputs: Tensor, labels: Tensor) -> tuple[float, ...]:
    """The accuracy on each class, a column each: the share of its examples that is found; NaN of a class without any.

    Example:
        >>> per_class(torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1]))
        (1.0, 0.0)
    """
    return tuple(_found("per-class", outputs, labels).tolist())


METRICS: dict[str, Callable[..., Any]] = {
    "balanced-accuracy": balanced_accuracy,
    "worst-class": worst_class,
    "per-class": per_class,
    "macro-f1": macro_f1,
    "top": top,
    "mae": mean_absolute_error,
    "r2": determination,
}


PER_CLASS = "per-class"  # the one metric that answers several numbers


def number_of(name: str, score: Score) -> Score:
    """The same score, whose answer is one number.

    Raises:
        ValueError: when called, another answer. What the function raises is raised as it is.
    """

    def measured(outputs: Tensor, labels: Tensor) -> float:
        answer = score(outputs, labels)
        try:
            return float(answer)
        except (TypeError, ValueError, RuntimeError):
            got = kind_of(answer) if isinstance(answer, Tensor) else shown(answer)
            raise ValueError(f"metrics: {name} must answer one number, got {got}.") from None

    return measured


def _classes(name: str, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [M, C] and classes [M] of all that counts."""
    if labels.is_floating_point() or outputs.ndim != labels.ndim + 1:
        raise ValueError(f"metrics: {name} is of classes, and these are outputs {kind_of(outputs)}, {kind_of(labels)}.")
    counted = labels != IGNORED
    return outputs[counted], labels[counted]


def _found(name: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """Of each class, the share of its examples that is found; NaN where it has none."""
    scores, truth = _classes(name, outputs, labels)
    hits = truth[scores.argmax(-1) == truth]
    there = torch.bincount(truth, minlength=scores.shape[-1]).double()
    return torch.bincount(hits, minlength=scores.shape[-1]) / there


def _of_those_there(found: Tensor) -> Tensor:
    """Without the classes that do not occur."""
    return found[~found.isnan()]


def _numbers(name: str, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and labels of one shape [N, k], in float64."""
    if not labels.is_floating_point() or outputs.numel() != labels.numel():
        raise ValueError(f"metrics: {name} is of numbers, and these are outputs {kind_of(outputs)}, {kind_of(labels)}.")
    return outputs.double().reshape(len(labels), -1), labels.double().reshape(len(labels), -1)
