"""Who holds which data in a run, and how far that puts the gradients of honest workers apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core.checks import shown
from ..simulation.data import Dataset
from ..simulation.dissimilarity import Dissimilarity, Fit, LocalGradients, fit
from ..simulation.gradients import WorkerGradients
from .building import Evaluators, build, computing, handed, identified, make_model, open_dataset, sampler_of
from .experiment import Experiment
from .interrupts import Interrupts
from .results import Evaluation
from .running import Progress, memory_errors, train

RANGES = 10  # of numbers to predict, as many examples in each
When = Literal["no", "start", "run"]


@dataclass(frozen=True, eq=False)
class Heterogeneity:
    """What :func:`heterogeneity` answers.

    Attributes:
        experiment: of which run.
        columns: what the examples are told apart by: classes, or ranges of a number to predict.
        what: what these are, in a word.
        counts: [workers, columns] how many each worker holds of each: examples, or tokens where each has a class.
        sizes: [workers] how many examples each holds. Honest workers come first; further ones are those Byzantine
            workers that learn from data too. Where only some of all clients are in a step, each client has a row.
        held, total: how many examples somebody holds, of how many that there are for training.
        points: the gradients, where they were measured.
        sampled: the most examples of a worker that these are of; None where they are of all.
        evaluations: of the run, at the same steps; none where it was not trained.
        stopped: why the run ended early, if it did.
    """

    experiment: Experiment
    columns: tuple[str, ...]
    what: str
    counts: np.ndarray
    sizes: np.ndarray
    held: int
    total: int
    points: tuple[Dissimilarity, ...] = ()
    sampled: int | None = None
    evaluations: tuple[Evaluation, ...] = ()
    stopped: str | None = None

    @cached_property
    def attacks(self) -> np.ndarray:
        """[workers] which of them are Byzantine: of clients those that always attack, and nobody where that changes."""
        return _attacking(self.experiment, len(self.sizes))

    @property
    def honest(self) -> int:
        """How many of those that hold data do not attack."""
        return int((~self.attacks).sum())

    @property
    def who(self) -> str:
        """What those are called that hold data."""
        return "worker" if self.experiment.population() is None else "client"

    @cached_property
    def fit(self) -> Fit | None:
        """G and B over the points, see :func:`varangian.simulation.dissimilarity.fit`; None where there are none."""
        return fit(self.points)

    def __str__(self) -> str:
        sizes = self.sizes[~self.attacks]
        told = f"{self.experiment.partition}: {self.honest} honest {self.who}s with {sizes.min():,} to "
        told += f"{sizes.max():,} examples"
        return told if self.fit is None else f"{told}; G = {self.fit.G:.4g}, B = {self.fit.B:.4g}"


def heterogeneity(
    experiment: Experiment,
    dataset: Any = None,
    *,
    gradients: When = "start",
    examples: int | None = None,
    model: Any = None,
    loss: Any = None,
    data_folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Heterogeneity:
    """Who holds which training data in a run, and G and B of the honest workers' gradients.

    (1/h) sum_i ||g_i - mean||^2 <= G^2 + B^2 ||mean||^2, where g_i is the gradient of worker i's own loss: on all the
    data that it holds, by the model in evaluation mode, without l2 and clipping. Parts are those that the run itself
    deals. Along a run both sides are measured at its evaluation steps, and G and B fitted by least squares.

    Args:
        experiment: which run.
        dataset, model, loss, data_folder: as for :func:`varangian.run`.
        gradients: where they are measured: "start", at the first parameters; "run", at step 0, every ``evaluate_every``
            steps and at the end of the run, which is trained for it; or "no", nowhere.
        examples: measure on at most so many of each worker, drawn once, whose noise counts as spread; None takes all.
        progress: as for :func:`varangian.run`.

    Raises:
        DataError, ValueError: as for :func:`varangian.run`; or the partition refuses.

    Example:
        >>> found = heterogeneity(Experiment(workers=13, partition="extreme", model="linear"))
        >>> found.counts.shape, found.points[0].ratio > 1
        ((13, 10), True)
    """
    if gradients not in ("no", "start", "run"):
        raise ValueError(f'gradients must be "no", "start" or "run", got {shown(gradients)}.')
    if examples is not None and not (isinstance(examples, int) and examples >= 1):
        raise ValueError(f"examples must be a whole number >= 1 or None, got {shown(examples)}.")
    e, given = handed(experiment, model, loss)
    e, dataset = identified(e, dataset, data_folder, given)
    data = open_dataset(e, data_folder) if dataset is None else dataset
    with computing(e), memory_errors():
        if gradients == "no":
            return _held(e, *_sampled(sampler_of(e, data)[0]))
        quiet = replace(e, measure=False)  # which changes nothing of the training
        simulation, evaluators = build(quiet, data, given)
        learned, parts = _sampled(simulation.batches)
        found, points = _held(e, learned, parts), list[Dissimilarity]()
        of, device = simulation.gradients, simulation.parameters.device
        local = LocalGradients(
            make_model(e, data.shape, data.classes, given, device), of.loss, learned,
            [part for part, attacks in zip(parts, found.attacks, strict=True) if not attacks],
            examples=examples, seed=e.seed, device=device, dtype=getattr(torch, e.dtype),
        )  # fmt: skip
        if gradients == "start":
            return replace(found, points=(local(simulation.parameters, of.buffers()),), sampled=examples)
        result = train(
            quiet, simulation, _Measuring(evaluators, local, points), journal=None, interrupts=Interrupts(),
            progress=progress,
        )  # fmt: skip
    return replace(
        found, points=tuple(points), sampled=examples, evaluations=tuple(result.evaluations), stopped=result.stopped
    )


@dataclass(frozen=True, eq=False)
class _Measuring:
    """The evaluators of a run, which on the way measure the gradients there."""

    evaluators: Evaluators
    local: LocalGradients
    points: list[Dissimilarity]

    def __call__(self, gradients: WorkerGradients, parameters: Tensor, step: int) -> tuple[float, ...]:
        self.points.append(self.local(parameters, gradients.buffers(), step))
        return self.evaluators(gradients, parameters, step)

    def by_class(self, gradients: WorkerGradients, parameters: Tensor, step: int) -> tuple[float, ...]:
        return self.evaluators.by_class(gradients, parameters, step)


def _sampled(sampler: Any) -> tuple[Dataset, list[np.ndarray]]:
    return sampler.examples.dataset, sampler.parts


def _attacking(e: Experiment, learners: int) -> np.ndarray:
    """Which of those that hold data are Byzantine."""
    people, found = e.population(), np.arange(learners) >= e.honest
    if people is not None:
        found = np.zeros(learners, bool)
        found[[] if people.changes else people.pool(e.seed, 0)] = True
    return found


def _held(e: Experiment, learned: Dataset, parts: list[np.ndarray]) -> Heterogeneity:
    """Without gradients."""
    labels = learned.train.labels.numpy()
    held = np.zeros(len(labels), bool)
    for part in parts:
        held[part] = True
    columns, what, count = _columns(learned)
    counts: dict[int, np.ndarray] = {}  # a part that several workers have is counted once
    for part in parts:
        if id(part) not in counts:
            counts[id(part)] = count(labels[part])
    table, sizes = np.stack([counts[id(part)] for part in parts]), np.array([len(part) for part in parts])
    return Heterogeneity(e, columns, what, table, sizes, int(held.sum()), len(labels))


def _columns(data: Dataset) -> tuple[tuple[str, ...], str, Callable[[np.ndarray], np.ndarray]]:
    """What examples are told apart by, what these are, and what counts labels [k, ...] by them."""
    labels = data.train.labels.numpy()
    if data.task != "regression":
        classes = tuple(str(c) for c in range(data.classes))
        what = "class" if data.task == "classes" else "class of tokens"
        return classes, what, lambda some: np.bincount(some[some >= 0].reshape(-1), minlength=data.classes)
    if labels.ndim > 1 and labels.shape[1] > 1:
        return ("all",), "examples", lambda some: np.array([len(some)])
    edges = np.unique(np.quantile(labels, np.arange(1, RANGES) / RANGES))
    texts = [f"{edge:.3g}" for edge in edges]
    names = [f"to {texts[0]}", *(f"{a} to {b}" for a, b in pairwise(texts)), f"from {texts[-1]}"]
    places = len(edges) + 1
    return tuple(names), "range", lambda some: np.bincount(np.searchsorted(edges, some.ravel()), minlength=places)
