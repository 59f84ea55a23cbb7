"""The data sets that have a name."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from ...core import randomness
from ...core.checks import MOST_SEED, shown, unknown
from ...core.specs import check
from .dataset import Dataset, Split, is_whole, sealed
from .readers import data_root, load_cifar, load_idx


def digits() -> Dataset:
    """1,797 images of handwritten digits, 8 x 8 pixels of 0 to 16: real data that comes with the package.

    The first 1,297 train and the last 500 test. Images stand in the order in which people wrote them, so most of the
    test digits come from hands that the training images do not show. Pixels are divided by 16; no flips.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998 (its test set, as scikit-learn's ``load_digits`` has it), https://doi.org/10.24432/C50P49, under the licence
    CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); stored here as uint8, otherwise unchanged.

    Example:
        >>> data = digits()
        >>> data.shape, len(data.train), len(data.test), data.train.labels[:5].tolist()
        ((1, 8, 8), 1297, 500, [0, 1, 2, 3, 4])
    """
    packed = resources.files("varangian.simulation") / "digits.npz"
    with packed.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["images"])[:, None]
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    train, test = Split(images[:-500], labels[:-500]), Split(images[-500:], labels[-500:])
    return sealed(Dataset("digits", train, test, 10, scale=16))


def mnist(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """MNIST: 70,000 handwritten digits, 28 x 28, normalised with mean 0.1307 and deviation 0.3081.

    Args: as ``load``.
    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998.
    """
    train, test = load_idx("mnist", "MNIST", data_root(folder), download)
    return sealed(Dataset("mnist", train, test, 10, mean=(0.1307,), std=(0.3081,)))


def fashion_mnist(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """Fashion-MNIST: 70,000 images of clothes, 28 x 28, mirrored at random in training, not normalised.

    Args: as ``load``; Debian's package dataset-fashion-mnist is found where it installs.
    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset", arXiv 1708.07747, 2017.
    """
    train, test = load_idx("fashion-mnist", "FashionMNIST", data_root(folder), download)
    return sealed(Dataset("fashion-mnist", train, test, 10, flip=True))


_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def cifar_10(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """CIFAR-10: 60,000 colour photographs, 32 x 32, of 10 classes, normalised and mirrored at random in training.

    Args: as ``load``; only the binary version is read, as .bin files or as cifar-10-binary.tar.gz.
    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    batches = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    train, test = load_cifar("cifar-10", "cifar-10-batches-bin", batches, 10_000, (10,), data_root(folder), download)
    return sealed(Dataset("cifar-10", train, test, 10, mean=_CIFAR_MEAN, std=_CIFAR_STD, flip=True))


def cifar_100(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """CIFAR-100: 60,000 colour photographs, 32 x 32, of 100 (fine) classes, transformed like CIFAR-10.

    Args: as ``load``; only the binary version is read, as .bin files or as cifar-100-binary.tar.gz.
    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    train, test = load_cifar(
        "cifar-100", "cifar-100-binary", ("train.bin",), 50_000, (20, 100), data_root(folder), download
    )
    return sealed(Dataset("cifar-100", train, test, 100, mean=_CIFAR_MEAN, std=_CIFAR_STD, flip=True))


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
    return sealed(dataset)


def _patches(shape: tuple[int, int, int], classes: int) -> tuple[int, int, int, int]:
    channels, height, width = shape
    return classes, channels, min(height, 8), min((width + 1) // 2, 4)


def _sizes(
    shape: tuple[int, int, int], classes: int, train: int | None, test: int | None, seed: int
) -> tuple[int, int]:
    """How many training and test images; ValueError for options of which no dataset can be made."""
    if not isinstance(shape, tuple) or len(shape) != 3 or any(not is_whole(s) or s < 1 for s in shape):
        raise ValueError(f"synthetic: shape must be three positive integers (C, H, W), got {shown(shape)}.")
    for option, value, least in (("classes", classes, 1), ("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        if value is None and option in ("train", "test"):
            continue
        if value is None or not is_whole(value) or value < least:
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
    if name not in DATASETS or DATASETS[name] is not _OURS.get(name):
        return None
    return _synthetic_name(**options) if name == "synthetic" else name


def load(name: str, folder: str | Path | None = None, download: bool = True) -> Dataset:
    """The dataset of that name, whole, in memory.

    Args:
        name: a key of DATASETS. ``digits`` and ``synthetic`` need no files and do not look at the other arguments.
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
