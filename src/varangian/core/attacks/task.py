"""What an adversary knows of the data that its workers learn from, and what is asked of an attack on data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import kernels, randomness
from ..checks import kind_of

UNCOUNTED = -100  # the label of what counts neither in a loss nor in an accuracy, as torch has it


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned, as far as an attack on data needs it.

    Attributes:
        classes: C; labels are 0 to C - 1. 0 where nobody knows.
        kind: whether labels are a class an example, a class a token, or real numbers.
        shape: of one example, (C, H, W) of an image; None where nobody knows.
        mean, std: of images, per channel, where inputs are normalised to (pixel - mean) / std; else None.
        random: the adversary's random numbers of this step.
    """

    classes: int = 0
    kind: Literal["classes", "tokens", "regression"] = "classes"
    shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    random: np.random.Generator = field(default_factory=lambda: randomness.generator(0, "poison"))

    def normalised(self, value: float, like: Tensor) -> float | int | Tensor:
        """What a raw value (of pixels from 0 to 1) is to the model: a number, or [C, 1, 1] by channel where ``like``
        is, of its type.

        Example:
            >>> Task(mean=(0.5,), std=(0.25,)).normalised(1.0, torch.zeros(1, 8, 8)).shape
            torch.Size([1, 1, 1])
        """
        if not like.is_floating_point():
            return int(value)
        if self.mean is None or self.std is None:
            return value
        channels = (value - np.array(self.mean, float)) / np.array(self.std, float)
        return kernels.there(channels[:, None, None], like).to(like.dtype)


def poisoned(attack: Any, inputs: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """What an attack makes of the examples of its f workers.

    Raises:
        ValueError: of its own, or it answers something else than inputs and labels like those that it was given.
    """
    made = attack.poison(inputs, labels, task)
    pair = isinstance(made, tuple) and len(made) == 2
    for name, came, given in zip(("inputs", "labels"), made if pair else (None, None), (inputs, labels), strict=True):
        if not isinstance(came, Tensor) or _kind(came) != _kind(given):
            got = kind_of(came) if pair else "no pair of them"
            raise ValueError(f"{type(attack).__name__}.poison must answer {name} {kind_of(given)}, got {got}.")
    return made


def _kind(x: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return x.shape, x.dtype, x.device


def as_wanted(attack: Any, labels: Tensor, task: Task) -> Tensor:
    """Which class each example of a test set is to be taken for, as an attack has it; -100 where it does not count.

    Raises:
        ValueError: of its own, or it answers something else than classes.
    """
    wanted = attack.wanted(labels.clone(), task)
    fits = isinstance(wanted, Tensor) and wanted.shape == labels.shape and wanted.dtype == torch.int64
    counted = wanted[wanted != UNCOUNTED] if fits else labels
    if not fits or (counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < task.classes):
        got = "others" if fits else kind_of(wanted)
        raise ValueError(
            f"{type(attack).__name__}.wanted must answer int64 {list(labels.shape)} of classes from 0 to "
            f"{task.classes - 1}, or {UNCOUNTED} where an example does not count, got {got}."
        )
    return wanted
