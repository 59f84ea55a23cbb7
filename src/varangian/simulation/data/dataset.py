"""What a data set is: uint8 tensors in memory, their labels, and how they are put before a model.

A data set is never read lazily: the largest one here takes 184 MB, and a batch is then one gather and a few operations.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import Tensor

from ...core.checks import shown
from ..identity import LENGTH


class DataError(ValueError):
    """A data file is missing or is not what it should be; the message says which, where, and how to get a good one."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Shape: images uint8 (or float32, finite) [N, C, H, W], raw values; labels int64 [N]; N at least 1, both in main
        memory.

    Raises:
        ValueError: they are something else, or not as many.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, wanted, kinds, dimensions in (
            ("images", "uint8 or float32 [N, C, H, W]", (torch.uint8, torch.float32), 4),
            ("labels", "int64 [N]", (torch.int64,), 1),
        ):
            value = getattr(self, name)
            holds = isinstance(value, Tensor) and value.dtype in kinds and value.ndim == dimensions
            holds = holds and not value.requires_grad
            if not (holds and value.numel() and value.device.type == "cpu" and value.layout == torch.strided):
                raise ValueError(f"Split needs {name} {wanted} in main memory, not empty, got {kind_of_value(value)}.")
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"Split needs a label for each image, got {len(self.images):,} images and {len(self.labels):,} labels."
            )
        if self.images.is_floating_point() and not bool(torch.isfinite(self.images).all()):
            raise ValueError("Split needs finite images, got some with NaN or infinity.")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, and how raw images become the input of a model (see `prepare`).

    Args:
        name: what it is; a synthetic dataset says so here.
        train, test: the two splits.
        classes: labels are 0 to classes - 1.
        mean, std: per channel, of pixels already divided by `scale`; None where the images are not normalised.
        flip: whether training images are mirrored left to right at random, one time in two.
        scale: the largest raw value.
        synthetic: True where the images were made up, so that nobody takes the figures for those of real data.

    Raises:
        ValueError: labels that are none of the classes, splits of different shapes, or a mean, deviation or scale that
            images of this shape cannot be normalised with.
    """

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool = False
    scale: int = 255
    synthetic: bool = False
    _opened: tuple[object, ...] | None = field(default=None, init=False, repr=False)  # the seal, if the package made it

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
        for name in ("train", "test"):
            labels: Tensor = getattr(self, name).labels
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.classes:
                refuse(f"labels from 0 to {self.classes - 1}", f"{low} to {high} in {name}")
        if self.test.images.shape[1:] != self.train.images.shape[1:]:
            refuse("images of one shape", f"{list(self.shape)} in train and {list(self.test.images.shape[1:])} in test")
        if not isinstance(self.flip, bool):
            refuse("flip to be True or False", shown(self.flip))
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
            >>> digits().fingerprint
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
        return self.train.images, self.train.labels, self.test.images, self.test.labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


_SMALL = 2**22  # bytes that are hashed in a moment


def sealed(dataset: Dataset) -> Dataset:
    object.__setattr__(dataset, "_opened", dataset.seal)
    return dataset


def kind_of_value(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    kind += " that requires grad" if value.requires_grad else ""
    return kind if value.device.type == "cpu" and value.layout == torch.strided else f"{kind} on {value.device}"


def is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def prepare(dataset: Dataset, images: Tensor, flip: Tensor | None = None) -> Tensor:
    """Raw images to model inputs: (flipped / scale - mean) / std.

    Args:
        images: uint8 [B, C, H, W], rows of a split of `dataset`.
        flip: bool [B], the images to mirror left to right; None mirrors none. `dataset.flip` says whether training
            should draw it; test images are not mirrored.

    Shape: [B, C, H, W] uint8 -> [B, C, H, W] float32, on the device of `images`.

    Example:
        >>> data = digits()
        >>> x = prepare(data, data.train.images[:2], flip=torch.tensor([False, True]))
        >>> x.dtype, x.shape, x[0, 0, 0].tolist()
        (torch.float32, torch.Size([2, 1, 8, 8]), [0.0, 0.0, 0.3125, 0.8125, 0.5625, 0.0625, 0.0, 0.0])
    """
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    pixels = images.to(torch.float32) / dataset.scale
    if dataset.mean is None or dataset.std is None:
        return pixels
    mean = torch.tensor(dataset.mean, device=images.device)[:, None, None]
    std = torch.tensor(dataset.std, device=images.device)[:, None, None]
    return (pixels - mean) / std
