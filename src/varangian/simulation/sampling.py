"""What workers sample at a step, and what a run is evaluated on.

All randomness is a function of (seed, purpose, step, worker).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..core import kernels, randomness
from ..core.attacks import UNCOUNTED, Attack, Task, as_wanted
from ..core.checks import kind_of
from .captured import Repeated
from .data import Dataset, Partition, Split, partition, prepare
from .gradients import Batch, WorkerGradients
from .scores import Score

Profile = Literal["described", "published"]
CHUNK = 1000  # test examples evaluated at a time
AHEAD = 64  # steps whose draws go to a device in one copy,
DRAWN = 2**18  # but no more numbers than this


class Examples:
    """A split of a dataset as model inputs: images gathered, mirrored and normalised in one pass.

    On a device the images lie as they are in the split, in uint8 say, and are moved there once: no batch is.
    """

    def __init__(self, dataset: Dataset, split: Split, device: str | torch.device, dtype: torch.dtype) -> None:
        self.dataset, self.split, self.device, self.dtype = dataset, split, torch.device(device), dtype
        self.image = len(dataset.shape) == 3 and split.inputs.dtype in (torch.uint8, torch.float32)
        channels = dataset.shape[0] if self.image else 0
        mean = np.zeros(channels) if dataset.mean is None else np.array(dataset.mean)
        std = np.ones(channels) if dataset.std is None else np.array(dataset.std)
        self.scale, self.shift = 1 / (dataset.scale * std), -mean / std
        self.native = self.device.type == "cpu"
        self.inputs, self.labels = split.inputs, split.labels
        if not self.native:
            self.inputs, self.labels = _moved(split, dataset.seal, self.device)

    def __call__(self, index: np.ndarray | Tensor, flip: np.ndarray | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(inputs [B, ...], labels [B, ...]) of the given examples; those with ``flip`` mirrored.

        Both are arrays or, for whoever has them on the device already, tensors there.
        """
        if not self.native:
            index, flip = self._there(index), None if flip is None else self._there(flip)
        chosen, mirrored = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in (index, flip))
        assert chosen is not None
        if self.image:
            inputs = kernels.gather_images(self.inputs, index, flip=flip, scale=self.scale, shift=self.shift)
        else:
            inputs = prepare(self.dataset, self.inputs.index_select(0, chosen), mirrored)
        return self._typed(inputs), self._typed(self.labels.index_select(0, chosen))

    def _there(self, values: np.ndarray | Tensor) -> Tensor:
        return kernels.there(values, self.labels) if isinstance(values, np.ndarray) else values

    def _typed(self, values: Tensor) -> Tensor:
        """Numbers in the type of vectors; tokens and classes stay integers."""
        return values.to(self.dtype) if values.is_floating_point() else values


_on_devices: WeakKeyDictionary[Split, dict[torch.device, tuple[tuple[object, ...], Tensor, Tensor]]]
_on_devices = WeakKeyDictionary()  # shared by the runs of a process, for as long as somebody has the split


def _moved(split: Split, seal: tuple[object, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """A split's tensors on a device, moved there once, unless somebody has written into them since."""
    held = _on_devices.setdefault(split, {})
    if device not in held or held[device][0] != seal:
        held[device] = seal, split.inputs.to(device), split.labels.to(device)
    return held[device][1:]


class Sampler:
    """What h honest workers sample at each step.

    described: worker i draws its batch independently and uniformly from its part of the data.
    published: all workers share one stream, shuffled anew each epoch; the last batch of an epoch is short.

    The numbers are drawn on the host, the same for all devices; for a device those of some steps at once.

    Called with ``clients``, numbers from 0 to h - 1, it samples for these alone, each from its part.

    Args:
        dataset: where from.
        h: honest workers, or clients of whom only some are in a round (described only).
        batch_size: b, per worker.
        seed: of the draws.
        deal: how the data is dealt to workers (described only).
        profile: which of the two.
    """

    def __init__(
        self,
        dataset: Dataset,
        h: int,
        batch_size: int,
        seed: int,
        *,
        deal: str | Partition = "iid",
        profile: Profile = "described",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.h, self.batch_size, self.seed, self.flip = h, batch_size, seed, dataset.flip
        self.examples = Examples(dataset, dataset.train, device, dtype)
        self.size = len(dataset.train)
        self.profile = profile
        self._parts: np.ndarray | None = None
        if profile == "described" and deal != "iid":
            parts = partition(dataset.train.labels, h, deal, seed)
            self._sizes = np.array([[len(p)] for p in parts])
            self._starts = np.cumsum(self._sizes, axis=0) - self._sizes
            self._parts = np.concatenate(parts)
        self._epoch: tuple[int, np.ndarray] | None = None
        self._ahead: _Ahead | None = None

    @property
    def parts(self) -> list[np.ndarray]:
        """Of each worker, which examples of the training split it draws from; one array where all draw from all."""
        if self._parts is None:
            return [np.arange(self.size)] * self.h
        return np.split(self._parts, self._starts[1:, 0])

    @property
    def sizes(self) -> np.ndarray:
        """[h] how many examples each worker holds: its part, or all where all draw from all."""
        return np.full(self.h, self.size) if self._parts is None else self._sizes[:, 0]

    def __call__(self, step: int, clients: np.ndarray | None = None) -> Batch:
        if clients is None:
            return self.batch(*self.drawn(step))
        index, flip, weights = self._drawn(step, clients)
        return self.batch(index.reshape(-1), None if flip is None else flip.reshape(-1), weights)

    def drawn(self, step: int) -> tuple[Any, Any, np.ndarray | None]:
        """What a step samples, for :meth:`batch`: examples [h b] and which are mirrored [h b], if any, as arrays or
        where they are on the device; and weights [h, b] on the host where some batch is short."""
        if self.examples.native:
            index, flip, weights = self._drawn(step)
            return index.reshape(-1), None if flip is None else flip.reshape(-1), weights
        if self._ahead is None or not 0 <= step - self._ahead.first < len(self._ahead.index):
            self._ahead = self._drawn_ahead(step)
        place, ahead = step - self._ahead.first, self._ahead
        return ahead.index[place], None if ahead.flip is None else ahead.flip[place], ahead.weights[place]

    def batch(self, index: Any, flip: Any, weights: np.ndarray | None) -> Batch:
        """The examples of what was drawn."""
        shape = -1, self.batch_size
        inputs, labels = self.examples(index, flip)
        numbers = None if weights is None else self._weights(weights)
        sizes = None if weights is None else (weights > 0).sum(1)
        return Batch(inputs.unflatten(0, shape), labels.unflatten(0, shape), numbers, sizes)

    def _weights(self, weights: np.ndarray) -> Tensor:
        return kernels.there(weights, self.examples.labels).to(self.examples.dtype)

    def _drawn(
        self, step: int, clients: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Of a step, [h, b] each: which examples; which are mirrored; their weights, where some batch is short."""
        h, b = self.h if clients is None else len(clients), self.batch_size
        weights = flip = None
        if self.profile == "published":
            index, weights = self._from_stream(step)
        elif self._parts is None:
            index = randomness.indices(self.seed, "batches", step, rows=h, columns=b, size=self.size)
        else:
            sizes, starts = (x if clients is None else x[clients] for x in (self._sizes, self._starts))
            places = randomness.indices(self.seed, "batches", step, rows=h, columns=b, size=sizes)
            index = self._parts[starts + places]
        if self.flip:
            flip = randomness.indices(self.seed, "flips", step, rows=h, columns=b, size=2).astype(bool)
        return index, flip, weights

    def _drawn_ahead(self, step: int) -> _Ahead:
        count = max(1, min(AHEAD, DRAWN // (self.h * self.batch_size)))
        drawn = [self._drawn(step + k) for k in range(count)]
        index = np.stack([index.reshape(-1) for index, _, _ in drawn])
        narrow = np.int32 if self.size < 2**31 else np.int64
        flips = [flip.reshape(-1) for _, flip, _ in drawn if flip is not None]
        labels = self.examples.labels
        return _Ahead(
            first=step,
            index=kernels.there(index.astype(narrow), labels).long(),
            flip=kernels.there(np.stack(flips), labels) if flips else None,
            weights=[weights for _, _, weights in drawn],
        )

    def _from_stream(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Worker i takes batch number step * h + i of the shared stream; a short batch is padded at weight 0."""
        h, b = self.h, self.batch_size
        per_epoch = -(-self.size // b)
        index, weights = np.zeros((h, b), np.int64), np.zeros((h, b))
        for i in range(h):
            epoch, place = divmod(step * h + i, per_epoch)
            if self._epoch is None or self._epoch[0] != epoch:
                self._epoch = epoch, randomness.generator(self.seed, "shuffle", epoch).permutation(self.size)
            drawn = self._epoch[1][place * b : (place + 1) * b]
            index[i, : drawn.size] = drawn
            weights[i, : drawn.size] = 1 / drawn.size
        return index, None if (weights > 0).all() else weights


@dataclass(frozen=True, eq=False)
class _Ahead:
    """What was drawn for some steps, on a device: [k, h b] each, the weights still on the host and rarely any."""

    first: int
    index: Tensor
    flip: Tensor | None
    weights: list[np.ndarray | None]


@dataclass(frozen=True, eq=False)
class Aim:
    """Examples of a test split as an attack would have them: which, changed in what way, and taken for what.

    Attributes:
        index: [k] which.
        labels: [k] what they are to be taken for.
        change: model inputs [B, ...] to others.
    """

    index: np.ndarray
    labels: Tensor
    change: Callable[[Tensor], Tensor]


def aim_of(attack: Attack, labels: Tensor, task: Task) -> Aim:
    """What an attack wants on a split with these labels.

    Raises:
        ValueError: what it answers is not what it should be.
    """
    wanted = as_wanted(attack, labels, task)
    index = np.flatnonzero((wanted != UNCOUNTED).numpy())

    def change(inputs: Tensor) -> Tensor:
        changed = attack.trigger(inputs, replace(task, random=randomness.generator(0, "trigger")))
        if not isinstance(changed, Tensor) or (changed.shape, changed.dtype) != (inputs.shape, inputs.dtype):
            name = type(attack).__name__
            raise ValueError(f"{name}.trigger must answer inputs {kind_of(inputs)}, got {kind_of(changed)}.")
        return changed

    return Aim(index, wanted[index], change)


class Evaluator:
    """Top-1 accuracy and loss on the test split; with an ``aim`` on examples as an attack would have them, where the
    accuracy is how often it succeeds.

    In main memory the inputs are prepared once, except where the published profile mirrors them anew. A device gathers
    them each time: that costs it next to nothing, and the images are there once.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        *,
        profile: Profile = "described",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        aim: Aim | None = None,
    ) -> None:
        self.examples, self.aim = Examples(dataset, dataset.test, device, dtype), aim
        self.seed, self.mirrors = seed, profile == "published" and dataset.flip
        self.index = np.arange(len(dataset.test)) if aim is None else aim.index
        self.labels = None if aim is None else aim.labels.to(device)
        self.every = None
        if not self.examples.native:
            there = self.examples.labels
            self.every = (
                torch.arange(len(self.index), device=device) if aim is None else kernels.there(self.index, there)
            )
        on_card = self.every is not None and self.every.is_cuda and aim is None
        self._again = Repeated(self.every.device) if on_card and self.every is not None and not self.mirrors else None
        self.chunks = _chunks(len(self.index), CHUNK)
        once = self.examples.native and not self.mirrors
        self._prepared = [self._taken(self.index[c], None, c) for c in self.chunks] if once else None

    def __call__(
        self, gradients: WorkerGradients, parameters: Tensor, step: int, metrics: Sequence[Score] = ()
    ) -> tuple[float, ...]:
        if not len(self.index):  # no example is of another class than is wanted
            return nan, nan
        prepared, flip = self._prepared, None
        if self.mirrors:
            count = len(self.examples.split)
            flip = randomness.indices(self.seed, "test-flips", step, rows=1, columns=count, size=2)[0].astype(bool)
            flip = flip if self.aim is None else flip[self.index]
        if self.every is not None:
            return self._on_device(gradients, parameters, flip, metrics)
        if prepared is None:
            prepared = [self._taken(self.index[c], None if flip is None else flip[c], c) for c in self.chunks]
        return gradients.evaluate(parameters, [x for x, _ in prepared], [y for _, y in prepared], metrics)

    def _taken(self, index: Any, flip: Any, chunk: slice) -> tuple[Tensor, Tensor]:
        """Examples of the split and their labels, or those of the aim."""
        inputs, labels = self.examples(index, flip)
        if self.aim is None or self.labels is None:
            return inputs, labels
        return self.aim.change(inputs), self.labels[chunk]

    def _on_device(
        self, gradients: WorkerGradients, parameters: Tensor, flip: np.ndarray | None, metrics: Sequence[Score]
    ) -> tuple[float, ...]:
        """As many examples at a time as the model leaves room for, each chunk gathered when it is its turn."""
        every, examples = self.every, self.examples
        assert every is not None
        chunks = _chunks(len(every), gradients.chunk(lambda: examples(every[:2])))
        mirrored = None if flip is None else kernels.there(flip, examples.labels)

        def prepared(c: int) -> tuple[Tensor, Tensor]:
            return self._taken(every[chunks[c]], None if mirrored is None else mirrored[chunks[c]], chunks[c])

        return gradients.evaluate_chunks(parameters, prepared, len(chunks), metrics, again=self._again)


def _chunks(count: int, size: int) -> list[slice]:
    """As few parts as have no more examples than that, of nearly equal sizes."""
    parts = np.array_split(np.arange(count), -(-count // size)) if count else []
    return [slice(part[0], part[-1] + 1) for part in parts]
