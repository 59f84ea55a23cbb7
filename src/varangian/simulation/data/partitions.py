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
from .dataset import Split, is_whole


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
        return _nobody_without([np.sort(np.concatenate(share)) for share in shares])


@dataclass(frozen=True)
class DirichletMixture:
    """Every worker has equally many examples, in a mixture of classes of its own, q_i ~ Dirichlet(alpha p).

    p is the share of each class in the data, so alpha is the sum of what the draw is made with: 0.1 is far more uneven
    here than ``Dirichlet(alpha=0.1)``, which draws for each class over the workers and leaves them unequal amounts. The
    parts are disjoint and cover the data: examples are not drawn twice, and where a class is used up a worker goes on
    with the others, so that the last workers get what is left. Sizes differ by one at most. Time O(N + workers C).

    Args:
        alpha: the concentration, positive and finite.

    Raises:
        ValueError: another alpha; called with fewer examples than workers.

    Reference: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019.

    Example:
        >>> parts = DirichletMixture(alpha=0.5)(np.arange(100) % 4, 4, 3, 1)
        >>> [len(part) for part in parts]
        [34, 33, 33]
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        require(self, 0 < self.alpha < math.inf, "a finite alpha > 0", self.alpha)

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        _check_enough(self, labels, workers)
        generator = randomness.generator(seed, "partition dirichlet-mixture")
        order = _by_class(labels, generator)
        counts = np.bincount(labels, minlength=classes)
        counts = counts[counts > 0]
        concentrations = np.maximum(min(self.alpha, 1e6) * (counts / counts.sum()), 1e-300)
        starts, taken = np.cumsum(counts) - counts, np.zeros_like(counts)
        parts = []
        for size in (len(part) for part in np.array_split(order, workers)):
            mixture, before = generator.dirichlet(concentrations), taken.copy()
            while (needed := size - int((taken - before).sum())) > 0:
                weights = np.where(taken < counts, mixture, 0.0)
                if weights.sum() < 1e-300:  # all that it would have is used up
                    weights = (counts - taken).astype(np.float64)
                taken += np.minimum(generator.multinomial(needed, weights / weights.sum()), counts - taken)
            ranges = zip(starts + before, starts + taken, strict=True)
            parts.append(np.sort(np.concatenate([order[a:b] for a, b in ranges])))
        return parts


@dataclass(frozen=True)
class Similarity:
    """A random fraction gamma of the data is dealt evenly; the rest is sorted by label and dealt in contiguous shards.

    gamma = 1 gives parts of the same distribution, gamma = 0 is as uneven as ``Extreme``. The parts are disjoint and
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


@dataclass(frozen=True)
class Shards:
    """The data sorted by class, cut into workers x per_worker shards of equal size, of which every worker draws some.

    The split called pathological: with two shards a worker most workers see two classes. Within a class the order is
    drawn, and so is who has which shards. The parts are disjoint and cover the data; shards differ by one example at
    most. Time O(N log N).

    Args:
        per_worker: shards of each worker.

    Raises:
        ValueError: per_worker below 1; called with fewer examples than shards.

    Reference: H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017 (200 shards of 300 digits for 100 clients).

    Example:
        >>> labels = np.arange(60) % 6
        >>> parts = Shards(per_worker=2)(labels, 6, 3, 1)
        >>> [len(part) for part in parts], max(len(set(labels[part])) for part in parts)
        ([20, 20, 20], 2)
    """

    per_worker: int = 2

    def __post_init__(self) -> None:
        require(self, is_whole(self.per_worker) and self.per_worker >= 1, "per_worker >= 1", self.per_worker)

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        count = workers * self.per_worker
        if len(labels) < count:
            raise ValueError(
                f"{self} needs at least one example per shard: {workers} workers have {count} shards, got "
                f"{len(labels)} examples."
            )
        generator = randomness.generator(seed, "partition shards")
        shards = np.array_split(_by_class(labels, generator), count)
        drawn = generator.permutation(count).reshape(workers, self.per_worker)
        return [np.sort(np.concatenate([shards[shard] for shard in mine])) for mine in drawn]


@dataclass(frozen=True)
class Classes:
    """Every worker holds examples of so many classes and of no other; a class is shared evenly by those who hold it.

    Worker after worker takes the classes that fewest hold so far, by lot where as many do: so the numbers of holders
    differ by one at most, unlike in the reference, where all but the first class of a worker are drawn. The parts are
    disjoint and cover the data. What does not divide goes to whoever has least. Of a class with fewer examples than
    holders some of these get none. Time O(N log N + workers C).

    Args:
        per_worker: classes of each worker.

    Raises:
        ValueError: per_worker below 1; called with fewer classes than that, with classes that nobody would hold, or
            where somebody would be left with nothing.

    Reference: Q. Li, Y. Diao, Q. Chen, B. He, "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE
    2022 (there #C = k).

    Example:
        >>> labels = np.arange(60) % 6
        >>> parts = Classes(per_worker=2)(labels, 6, 3, 1)
        >>> [sorted(set(labels[part].tolist())) for part in parts]
        [[2, 4], [0, 3], [1, 5]]
    """

    per_worker: int = 2

    def __post_init__(self) -> None:
        require(self, is_whole(self.per_worker) and self.per_worker >= 1, "per_worker >= 1", self.per_worker)

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        _check_enough(self, labels, workers)
        present, counts = np.unique(labels, return_counts=True)
        if self.per_worker > len(present):
            raise ValueError(f"{self} needs as many classes as each worker is to hold, got {len(present)}.")
        if workers * self.per_worker < len(present):
            raise ValueError(
                f"{self} needs workers to hold all classes: {workers} hold {workers * self.per_worker} of "
                f"{len(present)}, and the examples of the others would be with nobody."
            )
        generator = randomness.generator(seed, "partition classes")
        order = np.split(_by_class(labels, generator), np.cumsum(counts)[:-1])
        holders: list[list[int]] = [[] for _ in present]
        held = np.zeros(len(present), np.int64)
        for worker in range(workers):
            chosen = np.lexsort((generator.random(len(present)), held))[: self.per_worker]
            held[chosen] += 1
            for place in chosen:
                holders[place].append(worker)
        shares: list[list[np.ndarray]] = [[] for _ in range(workers)]
        sizes = np.zeros(workers, np.int64)
        for members, owners in sorted(zip(order, holders, strict=True), key=lambda pair: -len(pair[0])):
            owners = sorted(owners, key=lambda worker: sizes[worker])  # those who have least are the first served
            for worker, share in zip(owners, np.array_split(members, len(owners)), strict=True):
                shares[worker].append(share)
                sizes[worker] += len(share)
        if not sizes.all():
            raise ValueError(
                f"{self} leaves worker {int(sizes.argmin())} with nothing: its classes have fewer examples than "
                "workers that hold them; use fewer workers or more classes a worker."
            )
        return [np.sort(np.concatenate(share)) for share in shares]


@dataclass(frozen=True)
class LongTail:
    """Of class k a share imbalance^(-k / (C - 1)) is kept, so the last class is that much rarer than the first.

    Classes are ranked by their number, class 0 being the head. Of each at least one example is kept, to the nearest
    number; the others are with nobody. What is kept is dealt evenly at random or, with an alpha, by ``Dirichlet``: the
    parts are disjoint and cover what is kept, and alike in their tails without an alpha. Test data are not touched.
    Time O(N log N).

    Args:
        imbalance: how many times rarer the last class becomes, 1 or more; 1 keeps everything.
        alpha: of ``Dirichlet``; None deals evenly.

    Raises:
        ValueError: imbalance below 1, or alpha that is none; called with fewer kept examples than workers.

    Reference: K. Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019;
    with a Dirichlet deal X. Shang et al., "Federated Learning on Heterogeneous and Long-Tailed Data via Classifier
    Re-Training with Federated Features", IJCAI 2022.

    Example:
        >>> labels = np.arange(300) % 3
        >>> parts = LongTail(imbalance=100)(labels, 3, 4, 1)
        >>> np.bincount(labels[np.concatenate(parts)]).tolist(), [len(part) for part in parts]
        ([100, 10, 1], [28, 28, 28, 27])
    """

    imbalance: float = 100.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        require(self, 1 <= self.imbalance < math.inf, "a finite imbalance >= 1", self.imbalance)
        require(self, self.alpha is None or 0 < self.alpha < math.inf, "a finite alpha > 0 or None", self.alpha)

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        generator = randomness.generator(seed, "partition long-tail")
        order = _by_class(labels, generator)
        _, counts = np.unique(labels, return_counts=True)
        ranks = np.arange(len(counts)) / max(len(counts) - 1, 1)
        sizes = np.maximum(np.rint(counts * self.imbalance**-ranks).astype(np.int64), 1)
        starts = np.cumsum(counts) - counts
        kept = np.sort(np.concatenate([order[a : a + size] for a, size in zip(starts, sizes, strict=True)]))
        if len(kept) < workers:
            raise ValueError(
                f"{self} needs at least one example per worker: {workers} workers, and keeps {len(kept)} of "
                f"{len(labels)} examples."
            )
        if self.alpha is not None:
            return [kept[part] for part in Dirichlet(self.alpha)(labels[kept], classes, workers, seed)]
        return [np.sort(part) for part in np.array_split(generator.permutation(kept), workers)]


@dataclass(frozen=True)
class Quantity:
    """Worker i has a share q_i of the examples, q ~ Dirichlet(alpha, ..., alpha), whatever their classes.

    Unequal amounts of the same mixture: small alpha leaves most of the data with one worker. Every worker still samples
    batches of the same size from its part, so those of a worker with little data repeat themselves. The parts are
    disjoint and cover the data, whose labels may be of any kind; a worker whom the draw leaves with nothing takes one
    example from the one who has most. Time O(N log N).

    Args:
        alpha: the concentration, positive and finite.

    Raises:
        ValueError: another alpha; called with fewer examples than workers.

    Reference: Q. Li, Y. Diao, Q. Chen, B. He, "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE
    2022 (there quantity skew).

    Example:
        >>> [len(part) for part in Quantity(alpha=0.5)(np.zeros(100), 0, 4, 1)]
        [17, 6, 65, 12]
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        require(self, 0 < self.alpha < math.inf, "a finite alpha > 0", self.alpha)

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        _check_enough(self, labels, workers)
        generator = randomness.generator(seed, "partition quantity")
        proportions = generator.dirichlet(np.full(workers, min(self.alpha, 1e6)))
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(labels)).astype(np.int64)
        return _nobody_without([np.sort(part) for part in np.split(generator.permutation(len(labels)), cuts)])


ANY_LABELS = (IID, Quantity)  # what deals examples without looking at their labels


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "iid": IID,
    "dirichlet": Dirichlet,
    "dirichlet-mixture": DirichletMixture,
    "similarity": Similarity,
    "shards": Shards,
    "classes": Classes,
    "extreme": Extreme,
    "long-tail": LongTail,
    "quantity": Quantity,
}


def partition(labels: Tensor | np.ndarray, workers: int, how: str | Partition, seed: int) -> list[np.ndarray]:
    """The examples of each worker, as indices into the training split.

    Args:
        labels: [N] or [N, ...], of the training split. The partitions of this package other than "iid" and "quantity"
            deal by classes, int [N].
        workers: how many workers share the data: the honest ones, as a rule.
        how: as an experiment has it, "dirichlet(alpha=0.1)", or an object such as ``Dirichlet(alpha=0.1)``.
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
    if is_ours(type(deal)) and type(deal) not in ANY_LABELS and not (integers and labels.ndim == 1):
        what = "a class for each token" if integers else "numbers to predict"
        raise ValueError(
            f"{deal} deals examples by their class, and these have {what}: use iid or quantity, or one of your own."
        )
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


def _by_class(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """All examples, those of a class together, the order within a class drawn."""
    order = generator.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def _nobody_without(parts: list[np.ndarray]) -> list[np.ndarray]:
    """The parts, where whoever has nothing has taken the last example of the one who has most."""
    for index, part in enumerate(parts):
        if len(part) == 0:
            donor = max(range(len(parts)), key=lambda worker: len(parts[worker]))
            parts[index], parts[donor] = parts[donor][-1:], parts[donor][:-1]
    return parts


def _check_enough(deal: Partition, labels: np.ndarray, workers: int) -> None:
    if len(labels) < workers:
        raise ValueError(
            f"{deal} needs at least one example per worker: {workers} workers, got {len(labels)} examples."
        )
