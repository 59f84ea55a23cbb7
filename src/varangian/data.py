"""Datasets as uint8 tensors in memory, and how their examples are dealt to the workers.

A dataset is never read lazily: the largest one here takes 184 MB, and a batch is then one gather and a few operations.
Files are treated as hostile. Nothing is unpickled or extracted, no more is read than the format allows, and whatever is
wrong with a file comes out as one `DataError` of one line.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from . import randomness
from .checks import MOST_SEED, require, shown, unknown
from .identity import LENGTH
from .specs import check, make


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
                raise ValueError(f"Split needs {name} {wanted} in main memory, not empty, got {_kind(value)}.")
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
                refuse(f"{name} to be a Split", _kind(getattr(self, name)))
        if not _whole(self.classes) or self.classes < 1:
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


def _sealed(dataset: Dataset) -> Dataset:
    object.__setattr__(dataset, "_opened", dataset.seal)
    return dataset


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    kind += " that requires grad" if value.requires_grad else ""
    return kind if value.device.type == "cpu" and value.layout == torch.strided else f"{kind} on {value.device}"


def _whole(value: object) -> bool:
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


# ---------------------------------------------------------------------------------------------------------------------
# The datasets


def digits() -> Dataset:
    """1,797 images of handwritten digits, 8 x 8 pixels of 0 to 16: real data that comes with the package.

    The first 1,297 train and the last 500 test. Images stand in the order in which people wrote them, so most of the
    test digits come from hands that the training images do not show. Pixels are divided by 16; no flips.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998 (its test set, as scikit-learn's `load_digits` has it), https://doi.org/10.24432/C50P49, under the licence
    CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); stored here as uint8, otherwise unchanged.

    Example:
        >>> data = digits()
        >>> data.shape, len(data.train), len(data.test), data.train.labels[:5].tolist()
        ((1, 8, 8), 1297, 500, [0, 1, 2, 3, 4])
    """
    with (resources.files("varangian") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["images"])[:, None]
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    train, test = Split(images[:-500], labels[:-500]), Split(images[-500:], labels[-500:])
    return _sealed(Dataset("digits", train, test, 10, scale=16))


def mnist(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """MNIST: 70,000 handwritten digits, 28 x 28, normalised with mean 0.1307 and deviation 0.3081.

    Args: as `load`.
    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998.
    """
    train, test = _load_idx("mnist", "MNIST", _root(folder), download)
    return _sealed(Dataset("mnist", train, test, 10, mean=(0.1307,), std=(0.3081,)))


def fashion_mnist(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """Fashion-MNIST: 70,000 images of clothes, 28 x 28, mirrored at random in training, not normalised.

    Args: as `load`; Debian's package dataset-fashion-mnist is found where it installs.
    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset", arXiv 1708.07747, 2017.
    """
    train, test = _load_idx("fashion-mnist", "FashionMNIST", _root(folder), download)
    return _sealed(Dataset("fashion-mnist", train, test, 10, flip=True))


_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def cifar_10(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """CIFAR-10: 60,000 colour photographs, 32 x 32, of 10 classes, normalised and mirrored at random in training.

    Args: as `load`; only the binary version is read, as .bin files or as cifar-10-binary.tar.gz.
    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    batches = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    train, test = _load_cifar("cifar-10", "cifar-10-batches-bin", batches, 10_000, (10,), _root(folder), download)
    return _sealed(Dataset("cifar-10", train, test, 10, mean=_CIFAR_MEAN, std=_CIFAR_STD, flip=True))


def cifar_100(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """CIFAR-100: 60,000 colour photographs, 32 x 32, of 100 (fine) classes, transformed like CIFAR-10.

    Args: as `load`; only the binary version is read, as .bin files or as cifar-100-binary.tar.gz.
    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    train, test = _load_cifar(
        "cifar-100", "cifar-100-binary", ("train.bin",), 50_000, (20, 100), _root(folder), download
    )
    return _sealed(Dataset("cifar-100", train, test, 100, mean=_CIFAR_MEAN, std=_CIFAR_STD, flip=True))


def synthetic(
    shape: tuple[int, int, int] = (1, 8, 8),
    classes: int = 10,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Made-up images of any shape and number of classes, which a linear model can learn.

    Image i of class y is prototype[y] + noise, both uniform on 0 to 127 and noise drawn per pixel. A prototype is a
    pattern of at most 8 x 8 patches per channel, its own mirror image, so that flips would leave the task as it is.
    Image i has label i mod classes, and does not depend on how many images there are.

    Args:
        shape: (C, H, W) of one image.
        classes: the number of classes.
        train, test: how many images; by default 4,000 and 1,000, fewer where images are large (64 MB in all).
        seed: of the prototypes and of the noise.

    Raises:
        ValueError: a size below 1, a seed that is none, or a dataset of more than 4 GiB.

    Example:
        >>> data = synthetic(shape=(3, 32, 32), classes=100, train=200, test=100)
        >>> data.name, data.synthetic, data.shape
        ('synthetic(shape=(3, 32, 32), classes=100, train=200, test=100, seed=0)', True, (3, 32, 32))
    """
    train, test = _sizes(shape, classes, train, test, seed)
    pixels = math.prod(shape)
    channels, height, width = shape
    patches = _patches(shape, classes)
    prototypes = _half_range(randomness.generator(seed, "synthetic prototypes"), patches)
    rows = np.arange(height) * patches[2] // height
    columns = np.arange(width) * 2 * patches[3] // width
    columns = np.minimum(columns, columns[::-1])
    block = max(1, 2**20 // pixels)  # depends on the shape alone, so that image i does too

    def split(purpose: str, count: int) -> Split:
        labels = np.arange(count) % classes
        images = np.empty((count, *shape), np.uint8)
        for step, start in enumerate(range(0, count, block)):
            noise = _half_range(randomness.generator(seed, purpose, step), (block, *shape))
            part = labels[start : start + block]
            pattern = prototypes[part].take(columns, axis=3).take(rows, axis=2)
            np.add(pattern, noise[: len(part)], out=images[start : start + block])
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    dataset = Dataset(
        _synthetic_name(shape, classes, train, test, seed),
        split("synthetic train", train),
        split("synthetic test", test),
        classes,
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
        synthetic=True,
    )
    return _sealed(dataset)


def _patches(shape: tuple[int, int, int], classes: int) -> tuple[int, int, int, int]:
    channels, height, width = shape
    return classes, channels, min(height, 8), min((width + 1) // 2, 4)


def _sizes(
    shape: tuple[int, int, int], classes: int, train: int | None, test: int | None, seed: int
) -> tuple[int, int]:
    """How many training and test images; ValueError for options of which no dataset can be made."""
    if not isinstance(shape, tuple) or len(shape) != 3 or any(not _whole(s) or s < 1 for s in shape):
        raise ValueError(f"synthetic: shape must be three positive integers (C, H, W), got {shown(shape)}.")
    for option, value, least in (("classes", classes, 1), ("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        if value is None and option in ("train", "test"):
            continue
        if value is None or not _whole(value) or value < least:
            raise ValueError(f"synthetic: {option} must be an integer of at least {least}, got {shown(value)}.")
    if seed > MOST_SEED:
        raise ValueError(f"synthetic: seed must be less than 2^63, got {shown(seed)}.")
    train = max(40, min(4_000, 2**26 // math.prod(shape))) if train is None else train
    test = max(10, train // 4) if test is None else test
    size = (train + test) * math.prod(shape) + math.prod(_patches(shape, classes))
    if size > 2**32:
        raise ValueError(
            f"synthetic: {train:,} + {test:,} images of shape {shape} take {size // 2**30:,} GiB or more, at most 4 "
            "are possible."
            if size < 2**100
            else f"synthetic: images of shape {shown(shape)} in such numbers take more than 4 GiB."
        )
    return train, test


def _synthetic_name(
    shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10, train: int | None = None, test: int | None = None,
    seed: int = 0,
) -> str:  # fmt: skip
    train, test = _sizes(shape, classes, train, test, seed)
    return f"synthetic(shape={shape}, classes={classes}, train={train}, test={test}, seed={seed})"


def _half_range(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform on 0 to 127: two of them add up without overflow."""
    return (np.frombuffer(generator.bytes(math.prod(shape)), np.uint8) >> 1).reshape(shape)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar-10": cifar_10,
    "cifar-100": cifar_100,
    "synthetic": synthetic,
}


_OURS = dict(DATASETS)


def name_of(spec: str) -> str | None:
    """The name of the dataset that the package opens for a spec; None where that is somebody else's to open.

    Example:
        >>> name_of("synthetic(classes=3, test=9)")
        'synthetic(shape=(1, 8, 8), classes=3, train=4000, test=9, seed=0)'
    """
    name, options = check("dataset", spec, DATASETS, "folder", "download")
    if DATASETS[name] is not _OURS.get(name):
        return None
    return _synthetic_name(**options) if name == "synthetic" else name


def load(name: str, folder: str | Path | None = None, download: bool = True) -> Dataset:
    """The dataset of that name, whole, in memory.

    Args:
        name: a key of DATASETS. `digits` and `synthetic` need no files and do not look at the other arguments.
        folder: where the files are, in torchvision's layout or flat; by default $VARANGIAN_DATA, or else the user's
            data folder. What has to be downloaded goes there too, in torchvision's layout.
        download: whether files that are not found may be downloaded; what comes must have the known SHA-256.

    Raises:
        ValueError: unknown name; the message suggests a close one.
        DataError: a file is missing, truncated, corrupt, or not what its name says.

    Example:
        >>> load("digits").shape
        (1, 8, 8)
    """
    if name not in DATASETS:
        raise ValueError(unknown("dataset", name, DATASETS))
    factory = DATASETS[name]
    if factory in (digits, synthetic):
        return factory()
    return factory(folder, download)


# ---------------------------------------------------------------------------------------------------------------------
# Who has which examples


class Partition(Protocol):
    """Deals examples to workers: (labels [N], classes, workers, seed) -> one array of indices per worker."""

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class IID:
    """Every worker draws from all the data, as in the paper: D_i = D."""

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        everything = np.arange(len(labels))
        everything.flags.writeable = False  # one array serves all workers
        return [everything] * workers


@dataclass(frozen=True)
class Dirichlet:
    """Each class is shared out in proportions p_k ~ Dirichlet(alpha, ..., alpha) over the workers.

    Small alpha: most of a class is with one worker. Large alpha: every worker has nearly the same mixture of classes.
    The parts are disjoint and cover the data; a worker whom the draw leaves with nothing takes one example from the
    one who has most.

    Args:
        alpha: the concentration, positive and finite.

    Reference: M. Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        require(self, 0 < self.alpha < math.inf, "a finite alpha > 0", self.alpha)

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        _check_enough(self, labels, workers)
        generator = randomness.generator(seed, "partition dirichlet")
        order = generator.permutation(len(labels))
        shares: list[list[np.ndarray]] = [[] for _ in range(workers)]
        for label in range(classes):
            members = order[labels[order] == label]
            # Beyond 1e6 the proportions are equal to single examples, and numpy's draw overflows at some point.
            proportions = generator.dirichlet(np.full(workers, min(self.alpha, 1e6)))
            cuts = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
            for share, part in zip(shares, np.split(members, cuts), strict=True):
                share.append(part)
        parts = [np.sort(np.concatenate(share)) for share in shares]
        for index, part in enumerate(parts):
            if len(part) == 0:
                donor = max(range(workers), key=lambda worker: len(parts[worker]))
                parts[index], parts[donor] = parts[donor][-1:], parts[donor][:-1]
        return parts


@dataclass(frozen=True)
class Similarity:
    """A random fraction gamma of the data is dealt evenly; the rest is sorted by label and dealt in contiguous shards.

    gamma = 1 gives parts of the same distribution, gamma = 0 is as uneven as `Extreme`. The parts are disjoint and
    cover the data.

    Args:
        gamma: between 0 and 1.

    Reference: S. P. Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        require(self, 0 <= self.gamma <= 1, "gamma from 0 to 1", self.gamma)

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        _check_enough(self, labels, workers)
        order = randomness.generator(seed, "partition similarity").permutation(len(labels))
        mixed, rest = np.split(order, [round(self.gamma * len(labels))])
        rest = rest[np.argsort(labels[rest], kind="stable")]
        # Remainders go to the last workers in one part and to the first in the other: so nobody is left with nothing.
        shards = zip(reversed(np.array_split(mixed, workers)), np.array_split(rest, workers), strict=True)
        return [np.sort(np.concatenate(pair)) for pair in shards]


@dataclass(frozen=True)
class Extreme:
    """The data sorted by label, cut into contiguous blocks of equal size: most workers see one class or two.

    Reference: Y. Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", AISTATS
    2023.
    """

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        _check_enough(self, labels, workers)
        return [np.sort(block) for block in np.array_split(np.argsort(labels, kind="stable"), workers)]


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "iid": IID,
    "dirichlet": Dirichlet,
    "similarity": Similarity,
    "extreme": Extreme,
}


def partition(labels: Tensor | np.ndarray, workers: int, how: str | Partition, seed: int) -> list[np.ndarray]:
    """The examples of each worker, as indices into the training split.

    Args:
        labels: int [N], of the training split.
        workers: how many workers share the data: the honest ones, as a rule.
        how: as an experiment has it, "dirichlet(alpha=0.1)", or an object such as `Dirichlet(alpha=0.1)`.
        seed: the same seed gives the same parts.

    Returns: one ascending int64 array per worker, none of them empty.

    Raises:
        ValueError: unknown name, no worker, fewer examples than workers where parts are disjoint, or what somebody's
            own partition answers is not one array of indices for each worker.

    Example:
        >>> [part.tolist() for part in partition(np.array([1, 0, 1, 0]), 2, "extreme", seed=1)]
        [[1, 3], [0, 2]]
    """
    deal = make("partition", how, PARTITIONS) if isinstance(how, str) else how
    labels = np.asarray(labels)
    if workers < 1 or len(labels) == 0:
        raise ValueError(f"{deal} needs at least one worker and one example, got {workers} and {len(labels)}.")
    if not callable(deal):
        raise ValueError(f"how must be a partition, such as 'iid' or Dirichlet(alpha=0.1), got {shown(how)}.")
    parts = deal(labels, int(labels.max()) + 1, workers, seed)
    if not isinstance(parts, (list, tuple)) or len(parts) != workers:
        raise ValueError(f"{deal} must answer a list of {workers} arrays of indices, one a worker.")
    for worker, part in enumerate(parts):
        holds = isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind in "iu" and part.size > 0
        if not holds or part.min() < 0 or part.max() >= len(labels):
            raise ValueError(
                f"{deal} must answer an array [k] of indices from 0 to {len(labels) - 1}, not empty, for each worker; "
                f"that of worker {worker} is none."
            )
    return [part.astype(np.int64, copy=False) for part in parts]


def _check_enough(deal: Partition, labels: np.ndarray, workers: int) -> None:
    if len(labels) < workers:
        raise ValueError(
            f"{deal} needs at least one example per worker: {workers} workers, got {len(labels)} examples."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Where files are, and where they come from

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar-10": "https://www.cs.toronto.edu/~kriz/",
    "cifar-100": "https://www.cs.toronto.edu/~kriz/",
}

# The same sums as in the checksum lists of TensorFlow Datasets 4.9.10. Fashion-MNIST's were also computed here: Debian
# ships the published files without the names and dates in their gzip headers, and with these put back they have the MD5
# sums that the authors publish. For the others that check was not possible offline.
_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "cifar-10": {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    "cifar-100": {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
}


_LARGEST = 2**28  # bytes of a download; the largest of these files has 170 million


def _root(folder: str | Path | None) -> Path:
    chosen = folder or os.environ.get("VARANGIAN_DATA")
    if chosen:
        return Path(os.path.expanduser(chosen))
    import platformdirs  # only who leaves the choice to us pays for it

    return platformdirs.user_data_path("varangian", appauthor=False)


def _first_file(places: Sequence[Path], names: Sequence[str]) -> Path | None:
    # os.path.isfile, unlike Path.is_file, answers False in a folder that may not be entered.
    return next((place / name for place in places for name in names if os.path.isfile(place / name)), None)


class _MissingError(DataError):
    """There is no file at all, so none to delete."""


def _explained(name: str, target: Path, error: DataError) -> DataError:
    """The error that the user sees: what is wrong, in which dataset, and what to do now."""
    verb = "To get it" if isinstance(error, _MissingError) else "Delete it to get a good one"
    package = '"apt-get install dataset-fashion-mnist" (Debian, Ubuntu), or ' if name == "fashion-mnist" else ""
    return DataError(
        f"{name}: {error}. {verb}: {package}download {', '.join(_SHA256[name])} from {_URLS[name]} into {target} "
        "(done for you where downloads are allowed), or set VARANGIAN_DATA to the folder that has it."
    )


def _download(name: str, file: str, target: Path, searched: str, allowed: bool) -> Path:
    """Fetch one file of a dataset into `target`; it appears there only once its SHA-256 has been checked.

    `searched` says where the file was looked for: the start of the message where it cannot be fetched either.
    """
    if not allowed:
        raise _MissingError(searched)
    import pooch  # who downloads nothing does not pay for these
    import requests
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    url = _URLS[name] + file
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())

    def fetch(url: str, output: str, _: object) -> None:
        with (
            requests.get(url, stream=True, timeout=20) as response,
            open(output, "wb") as copy,
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            response.raise_for_status()
            length = response.headers.get("content-length", "")
            task = progress.add_task(file, total=int(length) if re.fullmatch("[0-9]{1,12}", length) else None)
            left = _LARGEST
            for chunk in response.iter_content(2**16):
                if (left := left - len(chunk)) < 0:
                    raise ValueError(f"more than {_LARGEST:,} bytes")  # it cannot have the right checksum
                progress.advance(task, copy.write(chunk))

    missing = [place for place in (target, *target.parents) if not os.path.exists(place)]
    done = False
    try:
        # pooch annotates the downloader with other arguments than those it calls it with.
        known = f"sha256:{_SHA256[name][file]}"
        pooch.retrieve(url, known, file, target, downloader=fetch)  # pyright: ignore[reportArgumentType]
        done = True
    except requests.RequestException as error:
        reason = f"HTTP status {error.response.status_code}" if error.response is not None else type(error).__name__
        raise _MissingError(f"{searched}; could not download {url} ({reason})") from None
    except OSError as error:
        raise _MissingError(
            f"{searched}; could not download it to {target / file} ({error.strerror or error})"
        ) from None
    except ValueError:
        raise _MissingError(
            f"{searched}; what {url} gave does not have the known SHA-256, so it was thrown away"
        ) from None
    finally:
        if not done:  # leave the disk as it was, also on Ctrl-C
            for place in missing:
                with suppress(OSError):
                    place.rmdir()
    return target / file


# ---------------------------------------------------------------------------------------------------------------------
# Reading hostile files


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _take(stream: _Readable, count: int) -> bytearray:
    """Up to `count` bytes. In pieces, since a read of `count` would set aside memory for a size nobody has checked."""
    data = bytearray()
    while piece := stream.read(min(2**20, count - len(data))):
        data += piece
    return data


@contextmanager
def _open(path: Path) -> Iterator[_Readable]:
    """A file as a stream of bytes, decompressed if need be; what goes wrong in the block is a DataError on `path`."""
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                with gzip.open(file) as stream:
                    yield stream
            else:
                file.seek(0)
                yield file
    except EOFError:
        raise DataError(f"{path} is truncated: the compressed data stop before their end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is corrupt ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def _check_labels(where: str, labels: np.ndarray, classes: int) -> None:
    if labels.max() >= classes:
        position = int(np.argmax(labels >= classes))
        raise DataError(f"{where} is corrupt: label {labels[position]} at position {position}, over {classes - 1}")


# MNIST and Fashion-MNIST: the same file names, magic numbers and sizes. Only the content tells which is which.
_FIRST_LABELS = {
    ("mnist", "train"): (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    ("mnist", "t10k"): (7, 2, 1, 0, 4, 1, 4, 9, 5, 9),
    ("fashion-mnist", "train"): (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
    ("fashion-mnist", "t10k"): (9, 2, 1, 1, 6, 1, 4, 6, 5, 7),
}


def _load_idx(name: str, torchvision: str, root: Path, download: bool) -> tuple[Split, Split]:
    """The two splits of a dataset in the four files of MNIST."""
    target = root / torchvision / "raw"
    places = [target, root / name, root / "raw", root] + [_DEBIAN] * (name == "fashion-mnist")
    try:
        paths: dict[str, Path] = {}
        for file in _SHA256[name]:
            plain = file.removesuffix(".gz")
            dotted = plain.replace("-idx", ".idx")
            path = _first_file(places, (plain, file, dotted, dotted + ".gz"))
            paths[file] = path or _download(
                name, file, target, f"found no {plain}[.gz] in {', '.join(map(str, places))}", download
            )

        def split(part: str, most: int) -> Split:
            images_at, labels_at = paths[f"{part}-images-idx3-ubyte.gz"], paths[f"{part}-labels-idx1-ubyte.gz"]
            images = _read_idx(images_at, (28, 28), most)
            labels = _read_idx(labels_at, (), most)
            if len(images) != len(labels):
                raise DataError(f"{images_at} has {len(images):,} images, but {labels_at} {len(labels):,} labels")
            _check_labels(str(labels_at), labels, 10)
            for (other, which), first in _FIRST_LABELS.items():
                if other != name and which == part and tuple(labels[:10].tolist()) == first:
                    raise DataError(f"{labels_at} is {other}'s, not {name}'s")
            return Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))

        return split("train", 60_000), split("t10k", 10_000)
    except DataError as error:
        raise _explained(name, target, error) from None


def _read_idx(path: Path, sides: tuple[int, ...], most: int) -> np.ndarray:
    """The array in an IDX file: a magic number, one size per dimension (big-endian, 32 bits), the bytes.

    Shape: uint8 [N, *sides], with N from 1 to `most`; header and file must agree on it exactly.
    """
    with _open(path) as stream:
        header = _take(stream, 4 * (2 + len(sides)))
        if len(header) < 4 * (2 + len(sides)):
            raise DataError(f"{path} is truncated: {len(header)} bytes, less than its header")
        magic, count, *found = struct.unpack(f">{2 + len(sides)}I", header)
        if magic != 0x801 + len(sides):
            raise DataError(f"{path} is not IDX data: magic number {magic:#010x}, expected {0x801 + len(sides):#010x}")
        if tuple(found) != sides or not 1 <= count <= most:
            came, due = (" x ".join(map(str, shape)) for shape in ((count, *found), (f"(1 to {most})", *sides)))
            raise DataError(f"{path} has a wrong header: it says {came} bytes, expected {due}")
        size = count * math.prod(sides)
        body = _take(stream, size + 1)  # one more, to see the end: gzip's checksum is compared there
    if len(body) < size:
        raise DataError(f"{path} is truncated: its header says {size:,} bytes of data, it has {len(body):,}")
    if len(body) > size:
        raise DataError(f"{path} is corrupt: more data than the {size:,} bytes that its header says")
    return np.frombuffer(body, np.uint8).reshape(count, *sides)


def _load_cifar(
    name: str,
    directory: str,
    train: tuple[str, ...],
    most: int,
    label_limits: tuple[int, ...],
    root: Path,
    download: bool,
) -> tuple[Split, Split]:
    """The two splits of a CIFAR dataset: records of one label per limit (the last one counts) and a 3 x 32 x 32 image.

    Args:
        directory: the folder of the .bin files, on disk or in the archive.
        train: the files of the training split, with at most `most` records each.
    """
    (archive,) = _SHA256[name]
    test = "test_batch.bin" if name == "cifar-10" else "test.bin"
    files = (*train, test)
    sizes = {file: (10_000 if file == test else most) * (len(label_limits) + 3072) for file in files}
    try:
        path, contents = _cifar_contents(name, root, directory, archive, sizes, download)
        parts = {file: _parse_cifar(f"{path / file}", contents.pop(file), label_limits) for file in files}
        images, labels = (np.concatenate([parts[file][which] for file in train]) for which in (0, 1))
        splits = [Split(torch.from_numpy(x), torch.from_numpy(y)) for x, y in ((images, labels), parts[test])]
        return splits[0], splits[1]
    except DataError as error:
        raise _explained(name, root, error) from None


# What torchvision reads, so what people have.
_PICKLED = {
    "cifar-10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar-100": ("cifar-100-python", "cifar-100-python.tar.gz"),
}


def _cifar_contents(
    name: str, root: Path, directory: str, archive: str, sizes: dict[str, int], download: bool
) -> tuple[Path, dict[str, bytearray]]:
    """Where the .bin files were found, and the content of each: in a folder, in the archive, or downloaded."""
    folders = [root / directory, root / name / directory, root]
    for folder in folders:
        if all(os.path.isfile(folder / file) for file in sizes):
            contents = {}
            for file, size in sizes.items():
                with _open(folder / file) as stream:
                    contents[file] = _take(stream, size + 1)
                if len(contents[file]) > size:
                    raise DataError(f"{folder / file} is corrupt: more than {size:,} bytes")
            return folder, contents
    path = _first_file([root, root / name], [archive])
    if path is None:
        clues = "".join(
            [f"; {place} is the Python version, a pickle, which is never read; get the binary version, {archive}"
             for place in (root / pickled for pickled in _PICKLED[name]) if place.exists()]
            + [f"; {folder} has no {file}" for folder in folders for file in sizes
               if not os.path.isfile(folder / file) and any(os.path.isfile(folder / other) for other in sizes)]
        )  # fmt: skip
        searched = f"found neither the folder {directory} nor {archive} in {root}{clues}"
        path = _download(name, archive, root, searched, download)
    return path / directory, _read_members(path, {f"{directory}/{file}": size for file, size in sizes.items()})


def _parse_cifar(where: str, data: bytearray, label_limits: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one .bin file."""
    width = len(label_limits) + 3072
    if not data or len(data) % width:
        raise DataError(f"{where} is truncated or corrupt: {len(data):,} bytes, not a multiple of {width:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, width)
    for column, limit in enumerate(label_limits):
        _check_labels(where, records[:, column], limit)
    images = records[:, len(label_limits) :].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(images), records[:, len(label_limits) - 1].astype(np.int64)


def _read_members(path: Path, sizes: dict[str, int]) -> dict[str, bytearray]:
    """The content of the named members of a tar archive, by the last part of their names; nothing goes to disk.

    The format is a header of 512 bytes and the content, padded to a multiple of 512, for each member; then zeros. The
    standard library's tarfile knows all its extensions, but a header that claims an exabyte keeps it busy for ever.

    Args:
        sizes: the full name of each member and how many bytes it may have.
    """
    contents: dict[str, bytearray] = {}
    left = sum(sizes.values()) + 2**20  # a small file can hold any amount of zeros
    position = 0
    with _open(path) as stream:
        while any(header := _take(stream, 512)):
            size = _octal(header[124:136])
            blank = 8 * ord(" ")  # what the checksum's own field counts for
            if len(header) < 512 or _octal(header[148:156]) != sum(header) - sum(header[148:156]) + blank or size < 0:
                raise DataError(f"{path} is corrupt or no tar archive: no header at byte {position:,}")
            prefix = header[345:500] if header[257:263] == b"ustar\0" else b""
            name = "/".join(part.split(b"\0")[0].decode("latin-1") for part in (prefix, header[:100]) if any(part))
            wanted = name in sizes and header[156] in b"0\0"  # a plain file
            if size > (sizes[name] if wanted else left):
                raise DataError(f"{path} is corrupt: {name!r} claims {size:,} bytes")
            content = _take(stream, size) if wanted else bytearray()
            skipped = _skip(stream, -(-size // 512) * 512 - len(content))
            if len(content) + skipped < size:
                raise DataError(f"{path} is truncated: it stops in {name!r}")
            if wanted:
                contents[name.rpartition("/")[2]] = content
            position += 512 + len(content) + skipped
            left -= 512 + len(content) + skipped
            if left < 0:
                break
        if _skip(stream, left + 1) > left:  # to the end, where gzip's checksum is compared
            raise DataError(f"{path} is corrupt: more data than the dataset has")
    lacking = [name for name in sizes if name.rpartition("/")[2] not in contents]
    if lacking:
        raise DataError(f"{path} lacks {', '.join(lacking)}")
    return contents


def _octal(field: bytearray) -> int:
    """A number of a tar header; -1 where it is none."""
    digits = bytes(field).strip(b"\0 ")
    return int(digits or b"0", 8) if re.fullmatch(b"[0-7]*", digits) else -1


def _skip(stream: _Readable, count: int) -> int:
    """Read past up to `count` bytes; how many there were."""
    done = 0
    while done < count and (piece := stream.read(min(2**20, count - done))):
        done += len(piece)
    return done
