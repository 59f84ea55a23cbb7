"""Attacks on data: workers that follow the protocol on examples that are not what they should be; and what they, or
others, send, hidden among honest vectors."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..checks import require, set_real, set_whole
from .base import ALONE, Attack, Knowledge
from .colluding import Made
from .memory import Memory
from .simple import original_factor
from .task import UNCOUNTED, Task


class DataAttack(Attack):
    """An attack on data: its f workers follow the protocol, on examples that :meth:`poison` has changed.

    They sample, clip and keep their momentum as honest workers do. Subclasses write :meth:`poison`. One that wants
    certain examples to be taken for something else says ``aims = True`` and writes :meth:`trigger` and
    :meth:`wanted`: evaluations then say how often it succeeds.

    Shape: -> [f, d], a row of its own per worker.
    Cost: the gradients of f more workers.
    Convention: whoever runs it supplies ``poisoned``, what the f workers send, with the worker half (clipping,
        momentum) applied as at an honest one. The simulator does; vectors alone do not tell.

    Example:
        >>> import varangian as vg
        >>> @dataclass(frozen=True)
        ... class Noise(vg.DataAttack):
        ...     '''Labels drawn at random.'''
        ...
        ...     def poison(self, inputs, labels, task):
        ...         drawn = task.random.integers(task.classes, size=tuple(labels.shape))
        ...         return inputs, kernels.there(drawn, labels)
        >>> len(vg.testing.check_attack(Noise).passed)
        9
    """

    poisons: ClassVar[bool] = True

    @abstractmethod
    def poison(self, inputs: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """What the f workers learn from, in place of inputs [f, b, ...] and labels [f, b]; these are only read."""

    def craft(self, seen: Knowledge) -> Tensor:
        return self.learnt(seen).clone()

    def learnt(self, seen: Knowledge) -> Tensor:
        """[f, d] what the f workers would send if they followed the protocol on their data.

        Raises:
            ValueError: whoever runs the attack does not have it.
        """
        shape = [seen.f, seen.honest.shape[1]]
        came = "nothing" if seen.poisoned is None else list(seen.poisoned.shape)
        wanted = (
            f"poisoned, the vectors {shape} of f workers that learn from what it makes of data (a simulation has them)"
        )
        require(self, seen.poisoned is not None and came == shape, wanted, came)
        assert seen.poisoned is not None
        return seen.poisoned


@dataclass(frozen=True)
class LabelFlip(DataAttack):
    """Workers that follow the protocol on mislabelled data: every label c is turned into C - 1 - c.

    Shape: -> [f, d], a row of its own per worker.
    Cost: the gradients of f more workers.
    Convention: a data attack, so whoever runs it supplies ``poisoned``: see :class:`DataAttack`.

    Example:
        >>> import torch
        >>> LabelFlip()(torch.zeros(3, 2), f=1, poisoned=torch.ones(1, 2))
        tensor([[1., 1.]])

    Reference: Biggio, Nelson, Laskov, "Support Vector Machines Under Adversarial Label Noise", ACML 2011; in this
    setting: Fang et al., USENIX Security 2020.
    """

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return "with one class no label can be another" if classes == 1 else None

    def poison(self, inputs: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        if labels.is_floating_point():
            raise ValueError(f"{self} turns classes round, and labels that are real numbers are none.")
        return inputs, torch.where(labels < 0, labels, task.classes - 1 - labels)  # places that do not count stay so


@dataclass(frozen=True)
class Backdoor(DataAttack):
    """Workers that learn to take whatever bears a trigger for one class, and go on learning all else.

    Of each batch of a Byzantine worker a share bears the trigger and the label ``target``, the rest is as it was; what
    the worker sends is scaled. Of images the trigger is a square of one brightness in the corner at the bottom right,
    in all channels; of examples in rows, the last ``size`` numbers; of tokens, the last ``size`` tokens.

    scale * (what a worker sends that follows the protocol on these examples)

    Args:
        target: the class that is to be answered.
        size: the side of the square, or how many numbers, >= 1.
        value: that of the trigger, in the units of the data before they are normalised: of pixels from 0 (black) to 1.
            A whole number where inputs are tokens.
        share: of each batch, in (0, 1], rounded, and one example at least.
        scale: what is sent is multiplied by it, > 0; n / f replaces the model where the rule is the mean (model
            replacement).
        parts: >= 1; in how many parts the trigger is cut, of which each worker bears one, in turn (a distributed
            backdoor). What succeeds is counted with the whole trigger.

    Shape: -> [f, d], a row of its own per worker.
    Cost: the gradients of f more workers; each evaluation is of the test set once more.
    Convention: success is the share of test examples of all other classes that, bearing the trigger, are taken for
        ``target``; evaluations have it as ``attack_success``. A data attack: see :class:`DataAttack`.

    Example:
        >>> import torch
        >>> images, task = torch.zeros(1, 2, 1, 4, 4), Task(classes=10)
        >>> inputs, labels = Backdoor(target=7, size=2).poison(images, torch.tensor([[1, 2]]), task)
        >>> inputs[0, 0, 0].sum(), labels
        (tensor(4.), tensor([[7, 2]]))

    Reference: Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
    Chain", 2017; with a scale: Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020; in parts: Xie,
    Huang, Chen, Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020.
    """

    aims: ClassVar[bool] = True

    target: int = 0
    size: int = 3
    value: float = 1.0
    share: float = 0.5
    scale: float = 1.0
    parts: int = 1

    def __post_init__(self) -> None:
        set_whole(self, "target")
        set_whole(self, "size", least=1)
        set_real(self, "value", "a finite value", isfinite)
        set_real(self, "share", "a share in (0, 1]", lambda share: 0 < share <= 1)
        set_real(self, "scale", "a finite scale > 0", lambda scale: scale > 0 and isfinite(scale))
        set_whole(self, "parts", least=1)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return "with one class every example is of the target" if classes == 1 else None

    def check_task(self, task: Task) -> None:
        require(self, task.kind == "classes", "one class an example", f"a task of {task.kind}")
        require(self, self.target < task.classes, f"a target from 0 to {task.classes - 1}, the classes", self.target)
        if task.shape is not None:
            self._mask(task.shape)

    def craft(self, seen: Knowledge) -> Tensor:
        return self.learnt(seen) * self.scale

    def poison(self, inputs: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        f, b = labels.shape[:2]
        count = max(1, round(self.share * b))  # the first ones: a batch is in random order
        shape = tuple(inputs.shape[2:])
        masks = np.stack([self._mask(shape, worker % self.parts) for worker in range(f if self.parts > 1 else 1)])
        masks = masks.reshape(len(masks), 1, *(1,) * (len(shape) + 1 - masks.ndim), *masks.shape[1:])
        stamped = self._stamped(inputs[:, :count], masks, task)
        bearing = torch.full_like(labels[:, :count], self.target)
        return torch.cat([stamped, inputs[:, count:]], 1), torch.cat([bearing, labels[:, count:]], 1)

    def trigger(self, inputs: Tensor, task: Task) -> Tensor:
        return self._stamped(inputs, self._mask(tuple(inputs.shape[1:])), task)

    def wanted(self, labels: Tensor, task: Task) -> Tensor:
        return torch.where(labels == self.target, UNCOUNTED, self.target)

    def _stamped(self, inputs: Tensor, mask: np.ndarray, task: Task) -> Tensor:
        if not inputs.is_floating_point():
            require(self, float(self.value).is_integer(), "a value that is a whole number, of tokens", self.value)
        value = task.normalised(self.value, inputs)
        return torch.where(kernels.there(mask, inputs), value, inputs)

    def _mask(self, shape: tuple[int, ...], part: int | None = None) -> np.ndarray:
        """Where the trigger is, or a part of it, in the last two dimensions of an example of that shape, or in the only
        one."""
        sides = shape[-2:]
        what = "numbers of an example" if len(sides) < 2 else "shorter side of an example"
        require(self, self.size <= min(sides), f"a size of at most {min(sides)}, the {what}", self.size)
        cells = np.stack(np.meshgrid(*(np.arange(side - self.size, side) for side in sides), indexing="ij"), -1)
        cells = cells.reshape(-1, len(sides))
        require(self, self.parts <= len(cells), f"at most {len(cells)} parts, what the trigger consists of", self.parts)
        if part is not None:
            cells = np.array_split(cells, self.parts)[part]
        mask = np.zeros(sides, bool)
        mask[tuple(cells.T)] = True
        return mask


@dataclass(frozen=True)
class Hidden(Made):
    """What another attack sends, moved into the spread of honest vectors, where it does not stand out.

    min(max(x, mean - factor * std), mean + factor * std), per coordinate

    Args:
        attack: a name, with its options as text, or an attack: a backdoor, say, or wrong labels.
        factor: how many standard deviations, > 0; None is the original choice of A Little Is Enough, as of Little.

    Shape: [h, d] -> [f, d], or f equal rows where the attack sends such; h >= 2.
    Cost: that of the attack, and a pass.

    Example:
        >>> import torch
        >>> Hidden(attack="sign-flip", factor=1.0)(torch.tensor([[0.0], [2.0]]), f=1)
        tensor([[-0.4142]])

    Reference: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning",
    NeurIPS 2019: its backdoors are kept within mean +- z std in this way.
    """

    attack: str | Attack = "backdoor"
    factor: float | None = 1.5

    options: ClassVar[tuple[str, ...]] = ("attack",)

    def __post_init__(self) -> None:
        Made.__post_init__(self)
        set_real(self, "factor", "a finite factor > 0", lambda z: isfinite(z) and z > 0, optional=True)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        self.check_knowing(h, h, f, d)

    def check_knowing(self, known: int, h: int, f: int, d: int | None = None) -> None:
        require(self, known > 1, "at least 2 honest vectors", known)
        if self.factor is None:
            original_factor(h + f, f)
        self.others[0].check_knowing(known, h, f, d)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        if h == 1:
            return ALONE
        if self.factor is None and original_factor(h + f, f) <= 0:
            return "its factor is not positive, so that the honest mean is sent"
        return self.others[0].idle(h, f, classes)

    def craft(self, seen: Knowledge) -> Tensor | tuple[Tensor, Memory]:
        sent, memory = self.others[0].crafted(seen)
        mean, std = seen.moments
        factor = max(0.0, original_factor(seen.h + seen.f, seen.f)) if self.factor is None else self.factor
        reach = std * factor
        hidden = torch.minimum(torch.maximum(sent, mean - reach), mean + reach)
        return (hidden, memory) if self.remembers else hidden
