"""What a data set is: tensors in memory, their labels, and how they are put before a model.

A data set is never read lazily: the largest one here takes 184 MB, and a batch is then one gather and a few operations.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...core import kernels
from ...core.checks import shown
from ..identity import LENGTH


class DataError(ValueError):
    """A data file is missing or is not what it should be; the message says which, where, and how to get a good one."""


@dataclass(frozen=True, eq=False)
class Split:
    """Examples and their labels.

    Shape: images [N, ...], also read as ``inputs``: pixels in uint8, [N, C, H, W] where they are images; or numbers in
        float32 or float64; or tokens in int64. labels: classes in int64 [N]; or in int64 [N, ...] a class for each
        token; or in float32 or float64, [N] or [N, k], numbers to predict. N at least 1, all finite and in main memory.

    Raises:
        ValueError: they are something else, or not as many.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, wanted, least in (
            ("inputs", "[N, ...] of pixels (uint8, 3 dimensions or more), floats or tokens (int64)", _LEAST),
            ("labels", "int64 [N] (classes) or [N, T] (of tokens), or floats [N] or [N, k]", _LEAST_OF_LABELS),
        ):
            value = getattr(self, name)
            holds = isinstance(value, Tensor) and value.ndim >= least.get(value.dtype, math.inf)
            holds = holds and not value.requires_grad and (name != "labels" or value.ndim <= 2 or not is_float(value))
            if not (holds and value.numel() and value.device.type == "cpu" and value.layout == torch.strided):
                raise ValueError(f"Split needs {name} {wanted} in main memory, not empty, got {kind_of_value(value)}.")
            if is_float(value) and not bool(torch.isfinite(value).all()):
                raise ValueError(f"Split needs finite {name}, got some with NaN or infinity.")
        if len(self.inputs) != len(self.labels):
            raise ValueError(
                f"Split needs a label for each input, got {len(self.inputs):,} inputs and {len(self.labels):,} labels."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Tensor:
        """The images, by the name that fits whatever they are."""
        return self.images


# The types of values, and how many dimensions they have at least. Text in bytes and pixels in rows look alike.
_LEAST: dict[torch.dtype, float] = {torch.uint8: 3, torch.float32: 2, torch.float64: 2, torch.int64: 2}
_LEAST_OF_LABELS: dict[torch.dtype, float] = {torch.int64: 1, torch.float32: 1, torch.float64: 1}
IGNORED = -100  # the label of a token that counts neither in the loss nor in the accuracy, as torch has it

Task = Literal["classes", "tokens", "regression"]


def is_float(value: Tensor) -> bool:
    return value.dtype in (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, and how raw inputs become those of a model (see ``prepare``).

    :func:`varangian.dataset` makes one of arrays, tensors, tables and data sets of torch.

    Args:
        name: what it is; a synthetic dataset says so here.
        train, test: the two splits.
        classes: labels are 0 to classes - 1, or -100 for tokens that do not count; of numbers to predict, how many
            there are to an example.
        mean, std: of images, per channel, of pixels already divided by ``scale``; None where they are not normalised.
        flip: whether training images are mirrored left to right at random, one time in two.
        scale: the largest raw value; by default 255 of pixels, and 1 of floats, which are taken as they are.
        synthetic: True where the images were made up, so that nobody takes the figures for those of real data.

    Raises:
        ValueError: labels that are none of the classes, splits of different shapes or kinds, or a mean, deviation,
            scale or flip that such inputs cannot have.
    """

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool = False
    scale: float = None  # type: ignore[assignment]  # filled in at construction
    synthetic: bool = False
    _opened: tuple[object, ...] | None = field(default=None, init=False, repr=False)  # the seal, if the package made it
    _origin: str | None = field(default=None, init=False, repr=False)  # the setting by which it was opened

    def __post_init__(self) -> None:
        def refuse(rule: str, got: object) -> None:
            raise ValueError(f"Dataset {shown(self.name)} needs {rule}, got {got}.")

        if not isinstance(self.name, str):
            refuse("a name that is text", shown(self.name))
        for name in ("train", "test"):
            if not isinstance(getattr(self, name), Split):
                refuse(f"{name} to be a Split", kind_of_value(getattr(self, name)))
        if not is_whole(self.classes) or self.classes < 1:
            refuse("classes >= 1", shown(self.classes))
        for name in ("inputs", "labels"):
            one, other = getattr(self.train, name), getattr(self.test, name)
            if one.shape[1:] != other.shape[1:]:
                refuse(f"{name} of one shape", f"{list(one.shape[1:])} in train and {list(other.shape[1:])} in test")
            if one.dtype != other.dtype:
                refuse(f"{name} of one type", f"{_type(one)} in train and {_type(other)} in test")
        for name in ("train", "test"):
            labels: Tensor = getattr(self, name).labels
            if self.task == "regression":
                numbers = labels[0].numel()
                if numbers != self.classes:
                    refuse("classes to be how many numbers are to be predicted", f"{self.classes} of {numbers}")
                continue
            counted = labels if self.task == "classes" else labels[labels != IGNORED]
            if not counted.numel():
                refuse(f"tokens that count in {name}", f"labels {IGNORED} only")
            low, high = int(counted.min()), int(counted.max())
            if low < 0 or high >= self.classes:
                refuse(f"labels from 0 to {self.classes - 1}", f"{low} to {high} in {name}")
        if not isinstance(self.flip, bool):
            refuse("flip to be True or False", shown(self.flip))
        pixels = self.train.inputs.dtype == torch.uint8
        if self.scale is None:
            object.__setattr__(self, "scale", 255 if pixels else 1)
        tokens = self.train.inputs.dtype == torch.int64
        if tokens and self.scale != 1:
            refuse("no scale: its inputs are tokens", shown(self.scale))
        if (tokens or len(self.shape) != 3) and (self.flip or self.mean is not None or self.std is not None):
            refuse("images [N, C, H, W] for mean, std and flip", f"{_type(self.train.inputs)} [N, {self._sizes}]")
        if not isinstance(self.scale, Real) or not 0 < self.scale < math.inf:
            refuse("a finite scale > 0", shown(self.scale))
        if (self.mean is None) != (self.std is None):
            refuse("both mean and std, or neither", "one")
        for name, least in (("mean", -math.inf), ("std", 0)):
            values = getattr(self, name)
            if values is None:
                continue
            numbers = isinstance(values, (tuple, list)) and all(isinstance(v, Real) for v in values)
            if not numbers or len(values) != self.shape[0] or not all(least < v < math.inf for v in values):
                rule = "a finite number" if name == "mean" else "a finite number > 0"
                refuse(f"{name} to be {rule} for each of {self.shape[0]} channels", shown(values))

    @property
    def fingerprint(self) -> str:
        """A hash of all that a model gets to see: images, labels, and how they are normalised and mirrored.

        Example:
            >>> import varangian as vg
            >>> vg.DATASETS["digits"]().fingerprint
            '954b9b1a6bced3e7'
        """
        found = hashlib.sha256()
        plain = self.classes, self.mean, self.std, self.flip, self.scale
        found.update(
            repr([tuple(map(float, v)) if isinstance(v, (tuple, list)) else float(v or 0) for v in plain]).encode()
        )
        for tensor in self._tensors:
            found.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()[:LENGTH]

    @property
    def seal(self) -> tuple[object, ...]:
        """What changes when the tensors are written into: the fingerprint, but for large data how often torch did."""
        if sum(tensor.nbytes for tensor in self._tensors) <= _SMALL:
            return (self.fingerprint,)
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in self._tensors)

    @property
    def intact(self) -> bool:
        """Whether this is a dataset of the package, as it was opened."""
        return self._opened is not None and self._opened == self.seal

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.train.inputs, self.train.labels, self.test.inputs, self.test.labels

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example: (C, H, W) of an image, (p,) of a row, (T,) of a sequence."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def _sizes(self) -> str:
        return ", ".join(map(str, self.shape))

    @property
    def task(self) -> Task:
        """What is to be learned: a class, a class for each token, or numbers."""
        if is_float(self.train.labels):
            return "regression"
        return "classes" if self.train.labels.ndim == 1 else "tokens"


_SMALL = 2**22  # bytes that are hashed in a moment


def sealed(dataset: Dataset) -> Dataset:
    object.__setattr__(dataset, "_opened", dataset.seal)
    return dataset


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def kind_of_value(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = f"{_type(value)} {list(value.shape)}"
    kind += " that requires grad" if value.requires_grad else ""
    return kind if value.device.type == "cpu" and value.layout == torch.strided else f"{kind} on {value.device}"


def is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def prepare(dataset: Dataset, images: Tensor, flip: Tensor | None = None) -> Tensor:
    """Raw inputs to those of a model: (flipped / scale - mean) / std of pixels; tokens stay what they are.

    Args:
        images: [B, ...], rows of a split of ``dataset``.
        flip: bool [B], the images to mirror left to right; None mirrors none. ``dataset.flip`` says whether training
            should draw it; test images are not mirrored.

    Shape: [B, ...] -> [B, ...], on the device of ``images``; float32 of pixels and float32, else of the same type.

    Example:
        >>> import varangian as vg
        >>> data = vg.DATASETS["digits"]()
        >>> x = prepare(data, data.train.inputs[:2], flip=torch.tensor([False, True]))
        >>> x.dtype, x.shape, x[0, 0, 0].tolist()
        (torch.float32, torch.Size([2, 1, 8, 8]), [0.0, 0.0, 0.3125, 0.8125, 0.5625, 0.0625, 0.0, 0.0])
    """
    if images.dtype == torch.int64:
        return images
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    pixels = images.to(torch.promote_types(images.dtype, torch.float32)) / dataset.scale
    if dataset.mean is None or dataset.std is None:
        return pixels
    mean, std = (
        kernels.there(np.array(values, str(pixels.dtype).removeprefix("torch.")), images)[:, None, None]
        for values in (dataset.mean, dataset.std)
    )
    return (pixels - mean) / std
