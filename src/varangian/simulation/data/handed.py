"""Data sets made of what somebody has at hand: tensors, arrays, tables, data sets of torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from ...core.checks import cut, not_dense, shown
from .dataset import IGNORED, Dataset, Split, is_float
from .partitions import set_aside

MOST_BYTES = 2**32  # that are read, item by item, of a data set of torch

_log = logging.getLogger("varangian.data")


def dataset(
    train: Any,
    test: Any = None,
    *,
    name: str = "data",
    test_fraction: float = 0.2,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    flip: bool = False,
    scale: float | None = None,
) -> Dataset:
    """A data set of what is at hand.

    What may be handed over, for training and for the test alike:

    - a pair (x, y) of tensors, NumPy arrays, tables of pandas or lists;
    - what scikit-learn's loaders answer: anything with ``data`` and ``target``;
    - a map-style ``torch.utils.data.Dataset`` whose items are such pairs. It is read once, into memory.

    Inputs x are [N, ...]: pixels in uint8, [N, C, H, W] where they are images; numbers in floats, taken as they are;
    tokens in other integers. Labels y are integers from 0, [N], or [N, T] with one for each token (-100 for tokens that
    do not count); or floats, [N] or [N, k], which are predicted (regression).

    Args:
        train: what is learned from.
        test: what is evaluated on; None takes a part of ``train``, the same each time, which is stratified.
        name: what it is called.
        test_fraction: how large that part is.
        classes: how many; by default one more than the greatest label, if all smaller ones occur.
        mean, std, flip, scale: how images are put before a model, see :class:`Dataset`.

    Raises:
        ValueError: it is something else.

    Example:
        >>> import varangian as vg
        >>> x, y = torch.randn(100, 5), torch.arange(100) % 3
        >>> data = vg.dataset((x, y), name="rows")
        >>> len(data.train), len(data.test), data.shape, data.classes
        (80, 20, (5,), 3)
        >>> vg.run(vg.Experiment(steps=3), dataset=data).experiment.dataset
        'given:rows'
    """
    kept = _split(train, "the training data")
    if test is None:
        if not isinstance(test_fraction, float) or not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be a share between 0 and 1, got {shown(test_fraction)}.")
        kept, tested = set_aside(kept, test_fraction, 0, "test")
    else:
        tested = _split(test, "the test data")
    if classes is None:
        classes = _outputs(kept, tested)
    return Dataset(
        name,
        kept,
        tested,
        classes,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        flip=flip,
        scale=scale,  # type: ignore[arg-type]
    )


def taken(value: Any, name: str = "data") -> Dataset:
    """What is handed over as the data of a run: a Dataset, training and test data in a pair, or training data alone.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, Dataset):
        return value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_whole(part) for part in value):
        return dataset(*value, name=name)  # torch's random_split answers a list
    return dataset(value, name=name)


def _is_whole(value: Any) -> bool:
    """Whether a value holds inputs and labels, and is not one of them."""
    if isinstance(value, list):
        return len(value) == 2 and all(isinstance(part, (Tensor, np.ndarray)) for part in value)
    return isinstance(value, (Split, Mapping, torch_data.Dataset, torch_data.DataLoader)) or (
        isinstance(value, tuple) and len(value) == 2
    )


def _split(value: Any, what: str) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, torch_data.DataLoader):
        raise ValueError(f"{what}: a DataLoader draws batches by itself; hand over its .dataset.")
    if isinstance(value, torch_data.TensorDataset):
        value = value.tensors
    elif isinstance(value, torch_data.Dataset):
        value = _read(value, what)
    elif isinstance(value, Mapping):
        lacking = [key for key in ("data", "target") if key not in value]
        if lacking:
            raise ValueError(f"{what}: of what a loader answers, data and target are taken; there is no {lacking[0]}.")
        value = value["data"], value["target"]
    if isinstance(value, list) and all(isinstance(part, (Tensor, np.ndarray)) for part in value):
        value = tuple(value)
    if not isinstance(value, tuple) or len(value) != 2:
        got = f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
        raise ValueError(
            f"{what}: must be a pair (x, y), a torch Dataset of such pairs, or both for training and test in a pair, "
            f"got {got}."
        )
    inputs, labels = (
        _tensor(part, f"{what}: {which}") for part, which in zip(value, ("inputs", "labels"), strict=True)
    )
    if inputs.dtype not in (torch.uint8, torch.float32, torch.float64, torch.int64):
        inputs = inputs.to(torch.int64 if _is_integer(inputs) else torch.float32)
    if labels.dtype not in (torch.float32, torch.float64):
        labels = labels.to(torch.int64 if _is_integer(labels) or labels.dtype == torch.bool else torch.float32)
    if labels.dtype == torch.int64 and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # a column of a table
    try:
        return Split(inputs.contiguous(), labels.contiguous())
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _is_integer(values: Tensor) -> bool:
    return not values.is_floating_point() and values.dtype != torch.bool


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{what}: a tensor that requires grad is no data; detach() it.")
        if value.is_complex() or value.is_quantized:
            raise ValueError(f"{what}: must be real numbers, got {_kind(value)}.")
        if came := not_dense(value):
            advice = "" if value.is_nested or value.is_meta else "; use to_dense()"
            raise ValueError(f"{what}: must be a dense tensor, got {came}{advice}.")
        return value.cpu()
    if np.ma.is_masked(value):
        raise ValueError(f"{what}: an array with masked values is not whole; fill them, or leave these examples out.")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: cannot be read as an array: {cut(str(error)).rstrip('.')}.") from None
    if array.dtype.kind in "OSUMmVc":
        raise ValueError(f"{what}: {_strange(array)}")
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        if array.size and array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{what}: integers must be less than 2^63.")
        array = array.astype(np.int64)
    array = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")  # a single number stays one
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _strange(array: np.ndarray) -> str:
    words = array.dtype.kind in "SU" or (array.dtype.kind == "O" and any(isinstance(v, str) for v in array.flat[:100]))
    if words:
        return (
            "must be numbers, got text; classes are integers from 0, which "
            "np.unique(labels, return_inverse=True)[1] makes of any labels."
        )
    if array.dtype.kind == "O":
        return "must be an array of numbers, got one of objects: rows of different lengths, or missing values."
    return f"must be real numbers, got {array.dtype}."


def _read(items: Any, what: str) -> tuple[Tensor, Tensor]:
    """A data set of torch, item by item."""
    if isinstance(items, torch_data.IterableDataset):
        raise ValueError(
            f"{what}: an IterableDataset has neither length nor order; hand over a map-style one, or tensors."
        )
    try:
        count = len(items)
    except (TypeError, NotImplementedError):
        raise ValueError(f"{what}: a {type(items).__name__} has no length; a map-style Dataset has.") from None
    if count == 0:
        raise ValueError(f"{what}: the {type(items).__name__} is empty.")
    first = _item(items, 0, what)
    size = sum(part.nbytes for part in first)
    if count * size > MOST_BYTES:
        raise ValueError(
            f"{what}: {count:,} items of {size:,} bytes take {count * size / 2**30:,.1f} GiB, and at most "
            f"{MOST_BYTES / 2**30:g} are read into memory; hand over fewer, or smaller ones."
        )
    _log.info("%s: reading %s items, %.1f MB.", what, f"{count:,}", count * size / 1e6)
    held = [torch.empty((count, *part.shape), dtype=part.dtype) for part in first]
    for index in range(count):
        for place, part, example in zip(held, _item(items, index, what), first, strict=True):
            if part.shape != example.shape or part.dtype != example.dtype:
                raise ValueError(
                    f"{what}: all items must be alike; that of index 0 has {_kind(example)}, that of {index} "
                    f"{_kind(part)}."
                )
            place[index] = part
    return held[0], held[1]


def _item(items: Any, index: int, what: str) -> tuple[Tensor, Tensor]:
    item = items[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        got = f"{len(item)} values" if isinstance(item, (tuple, list)) else f"a {type(item).__name__}"
        raise ValueError(f"{what}: items must be pairs (input, label), that of index {index} is {got}.")
    if type(item[0]).__module__.startswith("PIL."):
        raise ValueError(
            f"{what}: items are pictures of PIL; give the data set transform=torchvision.transforms.PILToTensor()."
        )
    inputs, label = _tensor(item[0], f"{what}: inputs"), _tensor(item[1], f"{what}: labels")
    return inputs if inputs.ndim else inputs.reshape(1), label


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _outputs(train: Split, test: Split) -> int:
    """How many classes there are, or numbers to predict.

    Raises:
        ValueError: the labels are not 0, 1, 2, ...
    """
    if is_float(train.labels):
        return train.labels[0].numel()
    found = torch.cat([train.labels.unique(), test.labels.unique()]).unique()
    found = found[found != IGNORED] if train.labels.ndim > 1 else found
    if not found.numel() or int(found[0]) < 0 or (train.labels.ndim == 1 and int(found[-1]) + 1 != found.numel()):
        listed = ", ".join(str(int(label)) for label in found[:6]) + (", ..." if len(found) > 6 else "")
        raise ValueError(
            f"labels must be classes 0, 1, 2, ..., got {listed or IGNORED}; say classes=... where some do not occur, "
            "or map them: np.unique(labels, return_inverse=True)[1]."
        )
    return int(found[-1]) + 1
