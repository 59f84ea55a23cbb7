"""n workers and a parameter server in one process, a step at a time.

All randomness is a function of (seed, purpose, step, worker), so that the state of a run is the step, the parameters,
the algorithm's momenta, the model's buffers and the meter's two vectors, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core import kernels, randomness
from ..core.algorithm import Algorithm, State, unspoilt
from ..core.attacks import Attack, ComposedDefence, Knowledge, parts
from ..core.checks import Refused
from ..core.transforms import Clip, Momentum
from .data import Dataset, Partition, Split, partition, prepare
from .gradients import Batch, WorkerGradients
from .identity import is_ours
from .metrics import Measures, Meter
from .scores import Score

Profile = Literal["described", "published"]
Moments = tuple[Tensor, Tensor]  # mean and standard deviation, [d] each
CHUNK = 1000  # test examples evaluated at a time


class Examples:
    """A split of a dataset as model inputs: images gathered, mirrored and normalised in one pass."""

    def __init__(self, dataset: Dataset, split: Split, device: str | torch.device, dtype: torch.dtype) -> None:
        self.dataset, self.split, self.device, self.dtype = dataset, split, device, dtype
        self.image = len(dataset.shape) == 3 and split.inputs.dtype in (torch.uint8, torch.float32)
        channels = dataset.shape[0] if self.image else 0
        mean = np.zeros(channels) if dataset.mean is None else np.array(dataset.mean)
        std = np.ones(channels) if dataset.std is None else np.array(dataset.std)
        self.scale, self.shift = 1 / (dataset.scale * std), -mean / std

    def __call__(self, index: np.ndarray, flip: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """(inputs [B, ...], labels [B, ...]) of the given examples; those with ``flip`` mirrored."""
        chosen = torch.from_numpy(index)
        if self.image:
            inputs = kernels.gather_images(self.split.inputs, index, flip=flip, scale=self.scale, shift=self.shift)
        else:
            mirrored = None if flip is None else torch.from_numpy(flip)
            inputs = prepare(self.dataset, self.split.inputs[chosen], mirrored)
        inputs, labels = inputs.to(self.device), self.split.labels[chosen].to(self.device)
        return self._typed(inputs), self._typed(labels)

    def _typed(self, values: Tensor) -> Tensor:
        """Numbers in the type of vectors; tokens and classes stay integers."""
        return values.to(self.dtype) if values.is_floating_point() else values


class Sampler:
    """What h honest workers sample at each step.

    described: worker i draws its batch independently and uniformly from its part of the data.
    published: all workers share one stream, shuffled anew each epoch; the last batch of an epoch is short.

    Args:
        dataset: where from.
        h: honest workers.
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

    def __call__(self, step: int) -> Batch:
        h, b = self.h, self.batch_size
        weights = None
        if self.profile == "published":
            index, weights = self._from_stream(step)
        elif self._parts is None:
            index = randomness.indices(self.seed, "batches", step, rows=h, columns=b, size=self.size)
        else:
            places = randomness.indices(self.seed, "batches", step, rows=h, columns=b, size=self._sizes)
            index = self._parts[self._starts + places]
        flip = None
        if self.flip:
            flip = randomness.indices(self.seed, "flips", step, rows=h, columns=b, size=2).astype(bool).reshape(-1)
        inputs, labels = self.examples(index.reshape(-1), flip)
        return Batch(inputs.unflatten(0, (h, b)), labels.unflatten(0, (h, b)), weights)

    def _from_stream(self, step: int) -> tuple[np.ndarray, Tensor | None]:
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
        if (weights > 0).all():
            return index, None
        return index, torch.from_numpy(weights).to(self.examples.device, self.examples.dtype)


class Evaluator:
    """Top-1 accuracy and loss on the test split; prepared once, except where the published profile mirrors it anew."""

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        *,
        profile: Profile = "described",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.examples = Examples(dataset, dataset.test, device, dtype)
        self.seed, self.mirrors = seed, profile == "published" and dataset.flip
        self.chunks = np.array_split(np.arange(len(dataset.test)), -(-len(dataset.test) // CHUNK))
        self._prepared = None if self.mirrors else [self.examples(chunk) for chunk in self.chunks]

    def __call__(
        self, gradients: WorkerGradients, parameters: Tensor, step: int, metrics: Sequence[Score] = ()
    ) -> tuple[float, ...]:
        prepared = self._prepared
        if prepared is None:
            count = len(self.examples.split)
            flip = randomness.indices(self.seed, "test-flips", step, rows=1, columns=count, size=2)[0].astype(bool)
            prepared = [self.examples(chunk, flip[chunk]) for chunk in self.chunks]
        return gradients.evaluate(parameters, [x for x, _ in prepared], [y for _, y in prepared], metrics)


@dataclass(frozen=True, eq=False, kw_only=True)
class Snapshot:
    """The state of a run between two steps: all that the steps to come depend on.

    Attributes:
        step: how many are done.
        points: training points consumed so far.
        parameters: [d].
        worker, server, aggregate: the algorithm's :class:`varangian.State`, ``aggregate`` being its ``previous``.
        attacked: [d], the last aggregate where the attack looks at it.
        sampled, decayed: [d] each, the meter's memory; None where nothing is measured, or nothing was yet.
        buffers: of the model, by name.
    """

    step: int
    points: int
    parameters: Tensor
    worker: tuple[Tensor | None, ...]
    server: tuple[Tensor | None, ...]
    aggregate: Tensor | None
    attacked: Tensor | None
    sampled: Tensor | None
    decayed: Tensor | None
    buffers: dict[str, Tensor]


class Simulation:
    """n workers, the last of them Byzantine, and a server that runs an algorithm.

    Args:
        gradients: the model.
        batches: what the h honest workers sample at a step.
        algorithm: both halves.
        workers: n.
        real_byzantine: how many of them attack; 0 without an attack.
        classes: C, for attacks whose workers learn from labels C - 1 - c; ``batches`` then samples for all n workers.
        attack: what these send.
        learning_rate: a function of the step.
        momentum: mu of the composite curvature, for the measures only.
        l2: factor c; adds the gradient of c/2 ||theta||^2 ("described") or of c^2 ||theta|| ("published").
        profile: which l2.
        seed: of what attack, rule and mixings draw.
        measure: whether to fill the measures that cost time. The training does not depend on it.

    The matrix of all n vectors and that of the sampled gradients are allocated once. Momenta at the workers live in the
    former, except those of workers of a data attack: what is crafted is written there, and they keep their own.
    """

    def __init__(
        self,
        gradients: WorkerGradients,
        batches: Callable[[int], Batch],
        algorithm: Algorithm,
        workers: int,
        *,
        real_byzantine: int = 0,
        attack: Attack | None = None,
        learning_rate: Callable[[int], float] = lambda step: 0.1,
        momentum: float = 0.0,
        l2: float = 0.0,
        profile: Profile = "described",
        seed: int = 0,
        measure: bool = True,
        classes: int = 0,
    ) -> None:
        self.gradients, self.batches, self.algorithm, self.attack = gradients, batches, algorithm, attack
        self.workers, self.real_byzantine, self.h = workers, real_byzantine, workers - real_byzantine
        self.learning_rate, self.l2, self.profile, self.seed = learning_rate, l2, profile, seed
        self.classes = classes
        # Workers that compute gradients: the honest ones, and those of a data attack.
        self.active = workers if attack is not None and attack.uses_flipped else self.h
        if attack is not None and type(attack).__call__ is not Attack.__call__:
            raise ValueError(f"{type(attack).__name__} has a __call__ of its own, which no run calls; override craft.")
        if attack is not None and real_byzantine:
            attack.check(self.h, real_byzantine, gradients.d)
            attack.warn_if_idle(self.h, real_byzantine, classes or None)
        self.parameters = gradients.parameters()
        options = {"dtype": self.parameters.dtype, "device": self.parameters.device}
        self.state = algorithm.init(self.active, gradients.d, **options, seed=seed)
        self.meter = Meter(self.parameters, momentum) if measure else None
        self.previous: Tensor | None = None  # the last aggregate, where the attack looks at it
        self.steps_done = 0
        self.points = 0
        # What the server refused: an attack that tries the defence may be refused too, which ends no run.
        self.refused: Refused | None = None
        self.own_attack = attack is not None and not all(is_ours(part) for part in parts(attack))
        self.vectors = torch.zeros(workers, gradients.d, **options)
        # What workers send: rows of that matrix, unless what is crafted is to stand in some of these rows.
        self.sent = self.vectors[: self.h] if self.active == self.h else torch.zeros(workers, gradients.d, **options)
        if algorithm.worker and algorithm.worker[-1].remembers:
            # What the last stage sends is what it remembers: it lives where that is sent from, from the start.
            self.state = replace(self.state, worker=(*self.state.worker[:-1], self.sent))
        # Clipped gradients are still what was sampled; whatever else a stage makes of them is not.
        self.separate = any(type(stage) is not Clip for stage in algorithm.worker)
        self.sampled = torch.empty_like(self.sent) if self.separate else self.sent

    def step(self) -> Measures:
        """One step of every worker and of the server; the measures are those of before the update.

        Raises:
            Refused: by the server, if the error is ``refused`` too; else by whoever tried its rule out, which is a
                mistake there.
        """
        step, h, f = self.steps_done, self.h, self.real_byzantine
        lr = self.learning_rate(step)
        batch = self.batches(step)
        if self.active > h:
            if batch.labels.is_floating_point():
                raise ValueError(f"{self.attack} turns classes round, and labels that are real numbers are none.")
            labels = batch.labels.clone()
            flipped = self.classes - 1 - labels[h:]
            labels[h:] = torch.where(labels[h:] < 0, labels[h:], flipped)  # places that do not count stay so
            batch = replace(batch, labels=labels)
        point = self.algorithm.point(self.parameters, self.state, lr)
        losses = self.gradients.begin(point, batch, self.sampled, step)
        self.gradients.adopt_buffers()
        state, sampled_moments, honest_moments = self._send(point)
        if self.active > h:
            self.vectors.copy_(self.sent)
        honest = self.vectors[:h]
        seen = Knowledge(
            honest,
            f,
            ComposedDefence(
                self.algorithm.pre, self.algorithm.rule, state.previous, randomness.Draw(self.seed, step).fork()
            ),
            self.previous,
            randomness.generator(self.seed, "attack", step),
            self.vectors[h:] if self.active > h else None,
            honest_moments,
        )
        crafted = None
        if self.attack is not None and f:
            # Momenta live in what is shown, and whoever writes there through NumPy leaves no trace.
            shown = seen.copied() if self.own_attack else seen
            crafted = self.attack.send(shown)
            if self.own_attack and not shown.same_vectors(seen):
                raise ValueError(f"{self.attack} wrote into the vectors that it was shown; it must craft others.")
            byzantine, rows = self.vectors[h:], crafted.expand(f, -1)
            kernels.in_threads(lambda i: byzantine[i].copy_(rows[i]), f, byzantine.numel())
        held = [self.vectors] if state.previous is None else [self.vectors, state.previous]
        before = [x._version for x in held]
        try:
            decision = self.algorithm.decide(self.vectors, state)
        except Refused as error:
            self.refused = error
            raise
        if [x._version for x in held] != before:  # what workers remember lives there
            rule = self.algorithm.rule
            raise ValueError(f"{rule} wrote into the vectors that it was shown; it must clone what it changes.")
        update, self.state = self.algorithm.finish(decision, state, in_place=True)
        if self.attack is not None and self.attack.uses_previous:
            self.previous = decision.aggregate.clone()
        row = Measures(step, self.points, lr, float(losses[:h].mean()))
        if self.meter is not None:
            if sampled_moments is None:
                sampled_moments = kernels.mean_and_std(self.sampled[:h]) if self.separate else seen.moments
            share = decision.weight_of(slice(h, self.workers)) if f else None
            row = self.meter.measure(
                row, self.parameters, sampled_moments, seen.moments, crafted, decision.aggregate, share, h
            )
        self.parameters.add_(update, alpha=-lr)
        self.points += batch.points(h)
        self.steps_done += 1
        return row

    def snapshot(self) -> Snapshot:
        """The state, to go on from elsewhere. Its tensors are the living ones: the next step changes them."""
        meter, state = self.meter, self.state
        return Snapshot(
            step=self.steps_done,
            points=self.points,
            parameters=self.parameters,
            worker=state.worker,
            server=state.server,
            aggregate=state.previous,
            attacked=self.previous,
            sampled=None if meter is None else meter.previous,
            decayed=None if meter is None else meter.decayed,
            buffers=self.gradients.buffers(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot of the same experiment; the snapshot is copied.

        Raises:
            ValueError: it is of something else; nothing has changed then.
        """
        begun = snapshot.step > 0
        attacked = self.parameters if begun and self.attack is not None and self.attack.uses_previous else None
        sampled = self.parameters if begun and self.meter is not None else None
        pairs: list[tuple[str, Tensor | None, Tensor | None]] = [
            ("parameters", self.parameters, snapshot.parameters),
            ("aggregate", self.state.previous, snapshot.aggregate),
            ("decayed", None if self.meter is None else self.meter.decayed, snapshot.decayed),
        ]
        made = [("attacked", attacked, snapshot.attacked), ("sampled", sampled, snapshot.sampled)]
        for name, mine, theirs in (("worker", self.state.worker, snapshot.worker),
                                   ("server", self.state.server, snapshot.server)):  # fmt: skip
            if len(mine) != len(theirs):
                raise ValueError(f"{name}: {len(mine)} momenta are needed, got {len(theirs)}.")
            pairs += [(name, a, b) for a, b in zip(mine, theirs, strict=True)]
        buffers = self.gradients.buffers()
        if buffers.keys() != snapshot.buffers.keys():
            raise ValueError(f"buffers: {sorted(buffers)} are needed, got {sorted(snapshot.buffers)}.")
        pairs += [(name, buffer, snapshot.buffers[name]) for name, buffer in buffers.items()]
        for name, mine, theirs in pairs + made:
            if _kind(mine) != _kind(theirs):
                raise ValueError(f"{name}: {_kind(mine)} is needed, got {_kind(theirs)}.")
        for _, mine, theirs in pairs:
            if mine is not None and theirs is not None:
                mine.copy_(theirs)  # in place: momenta may live in the matrix of all vectors
        device = self.parameters.device
        self.previous = None if snapshot.attacked is None else snapshot.attacked.clone().to(device)
        if self.meter is not None:
            self.meter.previous = None if snapshot.sampled is None else snapshot.sampled.clone().to(device)
        self.gradients.adopt(self.parameters, buffers)
        self.state = replace(self.state, step=snapshot.step)
        self.steps_done, self.points = snapshot.step, snapshot.points

    def _send(self, point: Tensor) -> tuple[State, Moments | None, Moments | None]:
        """l2 and the worker half, into ``sent``: the new state, and where they came along with it the moments of what
        honest workers sampled and of what they send.

        The stages that experiments have, at most one clipping and then at most one momentum, in one go; others, those
        that somebody derived from them, and other kinds of tensors, one by one. Both give the same bits.
        """
        out, stages, state = self.sent, self.algorithm.worker, self.state
        factor, direction = self._regularizer(point)
        clip = next((stage for stage in stages if type(stage) is Clip), None)
        momentum = next((stage for stage in stages if type(stage) is Momentum), None)
        plain = stages == tuple(stage for stage in (clip, momentum) if stage is not None)
        if plain and self.active == self.h and kernels.is_native(out):
            memory = None if momentum is None else state.worker[-1]
            kept: list[Tensor | None] = []

            def scales(norm: Tensor) -> Tensor:
                if memory is not None and momentum is not None and not (norm < momentum.overflow(out.dtype)).all():
                    kept.append(memory.clone())  # some worker may send NaN, and is not to remember it
                return torch.ones_like(norm) if clip is None else clip.scales(norm)

            sampled, sent = kernels.send_rows(
                self.sampled, factor, direction, scale=None if stages == () else scales,
                keep=1.0 if momentum is None else 1 - momentum.dampening,
                beta=0.0 if momentum is None else momentum.beta,
                memory=memory, out=out, moments=self.meter is not None or self.attack is not None,
            )  # fmt: skip
            remembered = unspoilt(out, [out], kept)[0] if kept else out
            memories = tuple(remembered if stage is momentum else None for stage in stages)
            return replace(state, worker=memories), sampled, sent
        if factor:
            kernels.blend(1.0, self.sampled, factor, direction, out=self.sampled)
        _, state = self.algorithm.send(self.sampled, state, out=out)
        return state, None, None

    def _regularizer(self, point: Tensor) -> tuple[float, Tensor]:
        """(factor, [d] or [h, d]) whose product is the gradient of the l2 term."""
        if self.profile == "described" or not self.l2:
            return self.l2, point
        norm = kernels.squared_norms(point).sqrt_().unsqueeze(-1).to(point.dtype)
        return self.l2**2, point / norm.clamp_min(torch.finfo(point.dtype).tiny)

    @property
    def diverged(self) -> bool:
        """Whether the parameters hold a NaN or an infinity."""
        return not bool(torch.isfinite(kernels.squared_norms(self.parameters)))


def _kind(x: Tensor | None) -> str:
    return "nothing" if x is None else f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
