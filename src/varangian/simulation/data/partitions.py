"""Who has which examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...core import randomness
from ...core.checks import is_ours, require, shown
from ...core.specs import make
from .dataset import Split


class Partition(Protocol):
    """Deals examples to workers: (labels [N, ...], classes, workers, seed) -> one array of indices per worker.

    Of numbers to predict, classes is 0.
    """

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
        labels: [N] or [N, ...], of the training split. The partitions of this package other than "iid" deal by classes,
            int [N].
        workers: how many workers share the data: the honest ones, as a rule.
        how: as an experiment has it, "dirichlet(alpha=0.1)", or an object such as `Dirichlet(alpha=0.1)`.
        seed: the same seed gives the same parts.

    Returns: one ascending int64 array per worker, none of them empty.

    Raises:
        ValueError: unknown name, no worker, fewer examples than workers where parts are disjoint, or what somebody's
            own partition answers is not one array of indices for each worker; or labels that are no classes.

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
    integers = labels.dtype.kind in "iu"
    if is_ours(type(deal)) and type(deal) is not IID and not (integers and labels.ndim == 1):
        what = "a class for each token" if integers else "numbers to predict"
        raise ValueError(f"{deal} deals examples by their class, and these have {what}: use iid, or one of your own.")
    parts = deal(labels, int(labels.max()) + 1 if integers else 0, workers, seed)
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


def set_aside(split: Split, share: float, seed: int, purpose: str = "validation") -> tuple[Split, Split]:
    """(what is kept, what is set aside): a share of the examples, at least one, drawn by the seed and the labels.

    The draw is stratified: of every class, or every range of a number that is to be predicted, the same share is set
    aside, to the nearest example. Labels of several numbers an example are not looked at.

    Raises:
        ValueError: nothing would be left.

    Example:
        >>> kept, aside = set_aside(Split(torch.zeros(100, 1, 1, 1), torch.arange(100) % 4), 0.2, seed=1)
        >>> len(kept), aside.labels.bincount().tolist()
        (80, [5, 5, 5, 5])
    """
    count = max(1, round(share * len(split)))
    if count >= len(split):
        raise ValueError(f"{purpose}: of {len(split):,} training examples {share:g} would be set aside, none left.")
    generator = randomness.generator(seed, purpose)
    order = generator.permutation(len(split))
    if split.labels.ndim == 1:
        order = order[np.argsort(split.labels.numpy()[order], kind="stable")]
    # One of each of `count` runs of equal length.
    places = np.floor((np.arange(count) + generator.random()) * (len(split) / count)).astype(np.int64)
    chosen = np.zeros(len(split), dtype=bool)
    chosen[order[np.minimum(places, len(split) - 1)]] = True
    kept, aside = (torch.from_numpy(np.flatnonzero(of)) for of in (~chosen, chosen))
    return Split(split.inputs[kept], split.labels[kept]), Split(split.inputs[aside], split.labels[aside])


def _check_enough(deal: Partition, labels: np.ndarray, workers: int) -> None:
    if len(labels) < workers:
        raise ValueError(
            f"{deal} needs at least one example per worker: {workers} workers, got {len(labels)} examples."
        )
