"""The gradients of h workers that share a model: which way, computing, and evaluation.

The only files that know how an nn.Module computes are those of this folder. Four ways to the same numbers:

    "loop"   one worker after the other, as plain torch does it: right for any module, and the oracle of the others;
    "vmap"   torch.func over workers, for models without randomness and without buffers that change;
    "chain"  batched matrix products, for models that are linear layers with ReLU between them;
    "graph"  the loop as one CUDA graph, on a card, for models that read nothing on the host.

Which one is chosen by what the model does with its first batch, and not by what its layers are called: whatever draws
random numbers, changes buffers or convolves (which is faster one by one than grouped) is for the loop, and so is what
the faster ways cannot do, or do not do alike. On a card what is for the loop is for the graph where that can be.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from ...core import kernels, randomness
from ...core.checks import cut, kind_of, printable
from ...core.randomness import Drawn
from ..captured import Repeated
from ..losses import CrossEntropy, Loss, OwnLoss
from .chain import chain_of
from .checks import alike, check_finite, check_module, check_outputs, explained, type_of
from .graphs import LoopGraph, Operations, captures, room
from .layouts import Layout, aligned, channels_last, empty_channels_last, write_row
from .twins import FlatBuffers, Twin

Method = Literal["auto", "chain", "vmap", "loop", "graph"]
Metric = Callable[[Tensor, Tensor], Any]

STREAMS = 5  # on which a graph has workers side by side, at most, and where half of a card's free memory holds them
KEPT = 4  # graphs of a model: one for each shape, of which a run has one or two
LARGEST = 2**28  # bytes of what one operation makes in an evaluation on a device
KEPT_FOR_BACKWARD = 2**30  # bytes of what all operations of forward make where a gradient is taken of a whole part
TF32 = 2**-10  # what products on a card may be right to

_log = logging.getLogger("varangian.simulation")


@dataclass(frozen=True, eq=False)
class Batch:
    """What h workers sampled at one step.

    Attributes:
        inputs: [h, b, ...], of the model's type, or int64 where they are tokens.
        labels: [h, b] or, where every place of a sequence has one, [h, b, T] int64; real numbers [h, b] or [h, b, k].
        weights: [h, b], each row summing to 1, where some samples are padding (weight 0); None for plain means.
        sizes: [h] how many samples of each worker, the first ones, are no padding, if that is known; else weights are
            looked at, which on a device has to be waited for.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor | None = None
    sizes: np.ndarray | None = None

    def points(self, h: int) -> int:
        """How many training points the first h workers sampled."""
        if self.weights is None:
            return h * self.labels.shape[1]
        sizes = kernels.host((self.weights > 0).sum(1)) if self.sizes is None else self.sizes
        return int(sizes[:h].sum())

    def kept(self, worker: int, loss: Loss) -> slice | Tensor | None:
        """Which samples of a worker a loss is of that knows no weights; None where it is of all, as they are."""
        if self.weights is None or loss.weighs:
            return None
        return self.weights[worker] > 0 if self.sizes is None else slice(int(self.sizes[worker]))

    def rows(self, rows: slice) -> Batch:
        """Those of some of the workers."""
        weights = None if self.weights is None else self.weights[rows]
        return Batch(self.inputs[rows], self.labels[rows], weights, None if self.sizes is None else self.sizes[rows])


Compute = Callable[[Tensor, Batch, Tensor, int], Tensor]


class WorkerGradients:
    """The gradients of a mean loss, for h workers that share a model.

    d counts the parameters that require gradients; frozen ones stay what they are, and parameters that stand in several
    layers count once. What a loss does not reach has gradient zero.

    Args:
        model: answers outputs [b, ...]. It is not changed by calls, except for its buffers through :meth:`adopt`.
        training: whether dropout drops and batch normalisation uses the batch's statistics.
        method: how; "auto" chooses, at the first batch that it sees.
        seed: of what the model draws, such as dropout masks.
        loss: of a batch's outputs and labels: a :class:`varangian.simulation.losses.Loss` or a function of both that
            answers their mean; the cross entropy by default.
        streams: how many workers a graph has side by side, at most.
        captured: whether "auto" may take graphs, of which there is one for each number of workers: not where that
            differs from step to step.
        layout: how images and the weights of convolutions lie where workers are computed one after the other; "auto" is
            channels last on a card, where the model can be computed so.

    Buffers that change in forward, such as running statistics: every worker starts from those of before the step, and
    the model's become the mean over the workers of what each made of them, so that their order does not matter; those
    of integers become what the first worker made of them.

    Raises:
        ValueError: a model that has nothing to learn, or parameters other than float32 or float64 on one device, or one
            that only torch itself can run: scripted, compiled or in a DataParallel.
    """

    def __init__(
        self,
        model: nn.Module,
        training: bool = True,
        method: Method = "auto",
        *,
        seed: int = 0,
        loss: Loss | Metric | None = None,
        streams: int = STREAMS,
        captured: bool = True,
        layout: Layout = "auto",
    ) -> None:
        check_module(model)
        self.model = model.train(training)
        self.loss = CrossEntropy() if loss is None else loss if isinstance(loss, Loss) else OwnLoss(loss)
        self.seed = seed
        learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in learning]
        self._parameters = [p for _, p in learning]
        self._shapes = [p.shape for p in self._parameters]
        self._ends = np.cumsum([p.numel() for p in self._parameters]).tolist()
        self.d: int = self._ends[-1]
        self.device = self._parameters[0].device
        self._chain = chain_of(model) if method in ("auto", "chain") and self.loss == CrossEntropy() else None
        if method == "chain" and self._chain is None:
            raise ValueError("method 'chain' needs linear layers with ReLU between them; use 'auto'.")
        if method == "graph" and not captures(self.device):
            raise ValueError(f"method 'graph' needs a model on a card, and this one is on {self.device}; use 'auto'.")
        self.method: Method = method
        self.layout: Layout = layout
        self._chooses_layout = layout == "auto"
        self._looked = False
        self._stochastic = False
        self._writes = False  # whether forward writes into its inputs, as a first layer with inplace=True does
        self._changing: set[str] = set()  # buffers that forward changes
        self._largest = 0.0  # bytes that one operation of forward makes, at most, of one example,
        self._forward = 0.0  # and that all of them make
        # worker -> buffers that its batch changed, at the last call: by name, or on a device all of them, flat
        self._seen: dict[int, dict[str, Tensor]] = {}
        self._made: dict[int, FlatBuffers] = {}
        self._flat: dict[int, FlatBuffers] = {}  # worker -> memory for them
        self.streams, self._captured = streams, captured
        self._graphs: dict[tuple[object, ...], LoopGraph] = {}
        # Twins of the model, for each thread that has needed one; functional_call may leave its own tensors in them.
        self._idle: dict[str, list[Twin]] = {"plain": [], "functional": []}

    def parameters(self) -> Tensor:
        """A copy of what is learned, [d], in the order of ``model.parameters()``."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters])

    def buffers(self) -> dict[str, Tensor]:
        """A copy of the model's buffers (running means and variances of batch normalisation)."""
        return {name: b.detach().clone() for name, b in self.model.named_buffers()}

    def adopt(self, parameters: Tensor, buffers: dict[str, Tensor] | None = None) -> nn.Module:
        """The model itself, now holding these parameters and buffers."""
        with torch.no_grad():
            for p, value in zip(self._parameters, self._split(parameters), strict=True):
                p.copy_(value)
            for name, b in self.model.named_buffers():
                if buffers is not None:
                    b.copy_(buffers[name])
        return self.model

    def _split(self, flat: Tensor) -> list[Tensor]:
        """[..., d] as views of the parameters' shapes."""
        starts = [0, *self._ends[:-1]]
        return [
            flat[..., a:b].unflatten(-1, shape) if len(shape) else flat[..., a]
            for a, b, shape in zip(starts, self._ends, self._shapes, strict=True)
        ]

    def __call__(self, point: Tensor, batch: Batch, out: Tensor, step: int = 0) -> Tensor:
        """Writes the gradients of h workers into out, [h, d]; returns their losses, [h].

        Args:
            point: [d], where all workers take their gradient; or [h, d], one point each.
            batch: what they sampled.
            out: [h, d], rows contiguous; overwritten.
            step: names what the model draws.
        """
        losses = self.begin(point, batch, out, step)
        self.adopt_buffers()
        return losses

    def begin(self, point: Tensor, batch: Batch, out: Tensor, step: int = 0) -> Tensor:
        """The same, but the model's buffers stay what they were until :meth:`adopt_buffers`: nothing has changed for
        whoever does without these gradients after all, or computes them again."""
        return self._begin(point, batch, out, step)

    def _begin(self, point: Tensor, batch: Batch, out: Tensor, step: int, stays: bool = True) -> Tensor:
        """``stays``: whether ``out`` may be the same memory at the next call."""
        assert out.shape == (batch.labels.shape[0], self.d)
        self.look(batch)
        self._forget()
        return self._compute(point, batch, out, step, stays)

    def _forget(self) -> None:
        self._seen.clear()
        self._made.clear()

    def adopt_buffers(self) -> None:
        """The model's buffers become the mean of what the workers made of them at the last call, in their order."""
        if self._made:
            made = [self._made[i] for i in sorted(self._made)]
            FlatBuffers.mean_into(dict(self.model.named_buffers()), made, self._changing)
            return
        for name, b in self.model.named_buffers() if self._seen else ():
            if name in self._changing:
                values = torch.stack([self._seen[i][name] for i in sorted(self._seen)])
                if not bool((values == b).all()):  # else rounding the mean would move what nobody moved
                    b.copy_(values.mean(0) if b.is_floating_point() or b.is_complex() else values[0])

    def rows(
        self, inputs: Tensor | Sequence[Tensor], labels: Tensor | Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """(the gradients [h, d], the losses [h]) of h workers at the model's own parameters: for a loop of one's own.

        Args:
            inputs: of each worker, [b, ...]; batches need not be of one size.
            labels: of each worker.
            step: names what the model draws, such as dropout masks: another one each time.

        Example:
            >>> model = nn.Linear(3, 2)
            >>> workers = WorkerGradients(model)
            >>> gradients, losses = workers.rows(torch.ones(5, 4, 3), torch.zeros(5, 4, dtype=torch.int64), step=0)
            >>> gradients.shape, losses.shape
            (torch.Size([5, 8]), torch.Size([5]))
        """
        if len(inputs) != len(labels) or len(inputs) == 0:
            raise ValueError(f"rows needs inputs and labels of each worker, got {len(inputs)} and {len(labels)}.")
        point = self.parameters()
        out = point.new_empty(len(inputs), self.d)
        if len({x.shape for x in inputs}) == 1:
            stacked, truth = (x if isinstance(x, Tensor) else torch.stack(list(x)) for x in (inputs, labels))
            losses = self._begin(point, Batch(stacked, truth), out, step, stays=False)
            self.adopt_buffers()
            return out, losses
        self.look(Batch(inputs[0].unsqueeze(0), labels[0].unsqueeze(0)))
        self._forget()
        losses = [
            self._by_loop(point, Batch(x.unsqueeze(0), y.unsqueeze(0)), out[i : i + 1], i, step)
            for i, (x, y) in enumerate(zip(inputs, labels, strict=True))
        ]
        self.adopt_buffers()
        return out, torch.cat(losses)

    def set_grad(self, update: Tensor) -> None:
        """Puts an update, [d], where optimizers of torch look for gradients: into ``.grad`` of what is learned."""
        if update.shape != (self.d,):
            raise ValueError(f"set_grad needs an update of shape [{self.d}], got {kind_of(update)}.")
        for p, value in zip(self._parameters, self._split(update), strict=True):
            p.grad = value.detach().to(p.dtype).clone()

    # ------------------------------------------------------------------------------------------------- choosing

    def look(self, batch: Batch, classes: int | None = None) -> None:
        """Finds out, at the first call, how the model can be computed, from what it does with the first worker's batch;
        changes nothing else.

        Args:
            batch: of one worker or more.
            classes: how many outputs there are to be, where that is known.

        Raises:
            ValueError: outputs that are none for the labels, or not finite; a model whose answers depend on more than
                its parameters, buffers, inputs and what torch draws; a method that cannot do it. What code of
                somebody's own raises is raised as it is.
        """
        if self._looked:
            return
        one, name = batch.rows(slice(1)), type(self.model).__name__
        row, seen = self._try(one, classes)
        reason = "it draws random numbers" if self._stochastic else ""
        reason = "its buffers change in forward" if self._changing else reason
        if self.method == "auto":
            self.method = self._fastest(one, row, reason or ("it convolves" if seen.convolved else ""))
            if self.method == "loop" and self._captured and captures(self.device):
                self.method = "graph"
                if seen.fault is not None:
                    self._give_up_graphs(seen.fault)
        elif self.method != "loop":
            fault = seen.fault if self.method == "graph" else reason or self._disagreement(self.method, one, row)
            if fault:
                raise ValueError(f"method {self.method!r} cannot compute {name}: {fault}; use 'auto'.")
        self._look_at_layouts(one, row, seen.convolved)
        self._looked = True

    def _look_at_layouts(self, one: Batch, row: Tensor, convolved: bool) -> None:
        turns = convolved and any(len(shape) == 4 for shape in self._shapes) and self.method in ("loop", "graph")
        if not turns or (self.layout == "auto" and not captures(self.device)):
            self.layout = "contiguous"
        if self.layout != "contiguous":
            fault = self._fault_of_channels_last(one, row)
            self.layout = "channels-last"
            if fault is not None:
                self._give_up_channels_last(fault)

    def _fault_of_channels_last(self, one: Batch, row: Tensor) -> str | None:
        """Why a worker cannot be computed with channels last, or not alike; None where it can."""
        point, out = self.parameters(), torch.empty_like(row)
        self.layout = "channels-last"
        try:
            self._by_loop(point, Batch(one.inputs.clone(), one.labels, one.weights, one.sizes), out, 0)
            found, expected = out, row
            if self._stochastic:  # masks are drawn in the order of memory: compare what needs none
                found = self._in_evaluation(point, one.inputs[0])
                self.layout = "contiguous"
                expected = self._in_evaluation(point, one.inputs[0])
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
            return cut(str(error)).rstrip(".") or type(error).__name__
        finally:
            self._forget()
        error = (found - expected).norm()
        bound = TF32 if found.dtype == torch.float32 else torch.finfo(found.dtype).eps
        return None if error <= bound**0.5 * expected.norm() else "its numbers come out otherwise"

    def _in_evaluation(self, point: Tensor, inputs: Tensor) -> Tensor:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self._twin() as twin:
                twin.hold(self._values(point))
                twin.take(dict(self.model.named_buffers()))
                return twin.module(self._inputs(inputs.clone()))
        finally:
            self.model.train(was_training)

    def _give_up_channels_last(self, fault: str) -> None:
        name = type(self.model).__name__
        if not self._chooses_layout:
            raise ValueError(f"layout 'channels-last' cannot serve {name}: {fault}; use 'auto'.")
        self.layout = "contiguous"
        self._graphs.clear()
        _tell_once(name, "images as they are, which takes longer, since channels last cannot serve", fault)

    def _values(self, point: Tensor) -> list[Tensor]:
        """[d] as the parameters that a twin computes with."""
        values = self._split(point)
        if self.layout != "channels-last":
            return values
        return [aligned(channels_last(value) if value.ndim == 4 else value) for value in values]

    def _inputs(self, inputs: Tensor, images: int = 4) -> Tensor:
        """Inputs as the model computes with them, if there are ``images`` dimensions where they are images."""
        return channels_last(inputs) if self.layout == "channels-last" and inputs.ndim == images else inputs

    def _give_up_graphs(self, fault: str) -> None:
        self.method = "loop"
        self._graphs.clear()
        _tell_once(type(self.model).__name__, "one worker after the other, since it cannot be a CUDA graph", fault)

    def _try(self, one: Batch, classes: int | None) -> tuple[Tensor, Operations]:
        """The gradient [1, d] of one worker by the loop, and what was seen of how it is computed."""
        name, inputs, labels = type(self.model).__name__, one.inputs[0], one.labels[0]
        point = self.parameters()
        kept, buffers = point.clone(), self.buffers()
        seed, answers = randomness.integer(self.seed, "dropout", 0, 0), []
        operations = Operations()
        with self._twin() as twin:
            twin.hold(self._split(point))
            for _ in range(2):
                twin.take(buffers)
                given = inputs.clone()
                with operations, torch.enable_grad(), Drawn(seed) as drawn, explained(self.model, inputs):
                    outputs = twin.module(given)
                self._stochastic |= drawn.counts
                self._writes |= given._version > 0
                self._changing |= twin.changing(buffers)
                answers.append((outputs, twin.values(self._changing), twin.numbers()))
            largest = max(operations.largest, inputs.numel() * inputs.element_size())
            self._largest, self._forward = largest / len(inputs), operations.made / 2 / len(inputs)
            outputs, changed, numbers = answers[1]
            check_outputs(name, outputs, point)
            fault = self.loss.fault(outputs, labels, classes)
            if fault is not None:
                raise ValueError(f"{name} and these data do not fit: {fault}.")
            check_finite(f"the outputs of {name}", outputs)
            twin.check(name)
            if not torch.equal(point, kept):
                raise ValueError(f"{name} changes its parameters in forward, as max_norm of an embedding does.")
            moved = [key for key, value in numbers.items() if answers[0][2].get(key) != value]
            if moved or not alike({"": outputs, **changed}, {"": answers[0][0], **answers[0][1]}):
                raise ValueError(
                    f"{name} answers otherwise when it is called again with the same inputs"
                    f"{f' ({moved[0]} has changed)' if moved else ''}: what it keeps from call to call must be a "
                    "buffer, and what it draws must come from torch's own generators."
                )
            weights, kept_samples = _weights(one, point), one.kept(0, self.loss)
            with operations, torch.enable_grad(), Drawn(seed):
                loss = self._loss(outputs, labels, weights[0], kept_samples)
            if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.dtype == point.dtype):
                raise ValueError(f"loss: it must answer one number of {type_of(point)}, got {kind_of(loss)}.")
            check_finite("the loss", loss)
            if not loss.requires_grad:
                raise ValueError(f"{name}: the loss depends on none of the parameters: nothing can be learned.")
            with operations, Drawn(seed) as drawn:
                gradients = torch.autograd.grad(loss, twin.learned, allow_unused=True)
            if drawn.counts:
                raise ValueError(
                    f"{name} draws random numbers in its backward pass, which recomputes what it drew: use no "
                    "checkpointing where there is dropout."
                )
        row = point.new_zeros(1, self.d)
        for key, target, gradient in zip(self.names, self._split(row), gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                raise ValueError(f"{name}: the gradient of {key} is sparse; say sparse=False.")
            if gradient is not None:
                target[0] = gradient
        return row, operations

    def _fastest(self, one: Batch, row: Tensor, reason: str) -> Method:
        if self._chain is not None and self._disagreement("chain", one, row) is None:
            return "chain"
        name = type(self.model).__name__
        if reason:
            _log.info("%s: one worker after the other, since %s.", name, reason)
            return "loop"
        fault = self._disagreement("vmap", one, row)
        if fault is None:
            return "vmap"
        _tell_once(name, "one worker after the other, since it cannot be batched", fault)
        return "loop"

    def _disagreement(self, method: Method, one: Batch, row: Tensor) -> str | None:
        """Why a fast way does not compute the gradient that the loop has found; None where it does."""
        point, out = self.parameters(), row.new_empty(2, self.d)
        inputs, labels, weights = (torch.cat([x, x]) for x in (one.inputs, one.labels, _weights(one, point)))
        twice = Batch(inputs, labels, weights)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                (self._by_chain if method == "chain" else self._by_vmap)(point, twice, out, 0)
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
                values = "control flow" in str(error)
                return "its control flow depends on values." if values else cut(str(error)) or type(error).__name__
        slow = next((str(w.message) for w in said if "performance drop" in str(w.message)), None)
        if slow is not None:
            operation = re.search(r"batching rule for (\S+?)\.? ", slow + " ")
            return f"{operation[1]} has no batched form." if operation else cut(slow)
        error, size = (out - row).norm(dim=1).max(), row.norm()
        return None if error <= torch.finfo(row.dtype).eps ** 0.5 * size else "its gradients come out otherwise."

    # ------------------------------------------------------------------------------------------------ computing

    def _compute(self, point: Tensor, batch: Batch, out: Tensor, step: int, stays: bool) -> Tensor:
        method = self.method
        try:
            return self._computed(point, batch, out, step, stays)
        except RuntimeError as error:
            self._without_channels_last(error)
        self.method = method
        return self._computed(point, batch, out, step, stays)

    def _without_channels_last(self, error: RuntimeError) -> None:
        """Raises the error where the layout cannot be its reason; else from now on images lie as they come."""
        if self.layout != "channels-last" or isinstance(error, torch.OutOfMemoryError) or not self._chooses_layout:
            raise error
        self._give_up_channels_last(cut(str(error)).rstrip("."))

    def _computed(self, point: Tensor, batch: Batch, out: Tensor, step: int, stays: bool) -> Tensor:
        if self.method == "graph" and (batch.weights is None or self.loss.weighs):
            losses = self._by_graph(point, batch, out, step, stays)
            if losses is not None:
                return losses
        if self.method == "chain":
            return self._in_groups(self._by_chain, point, batch, out)
        if self.method == "vmap" and (batch.weights is None or self.loss.weighs):
            return self._in_groups(self._by_vmap, point, batch, out)
        if not self._stochastic:
            before = _generator_state(out.device)
            losses = self._in_groups(self._by_loop, point, batch, out)
            if torch.equal(_generator_state(out.device), before):
                return losses
            _put_back(out.device, before)
            self._stochastic = True  # in a branch that the first batch did not take: once more, from the seed
        with kernels.torch_threads():  # one worker at a time, on all threads
            return self._by_loop(point, batch, out, 0, step)

    def _in_groups(self, compute: Compute, point: Tensor, batch: Batch, out: Tensor) -> Tensor:
        """The workers in as many groups as there are threads of our own; on a device in one."""
        if out.device.type != "cpu":
            return compute(point, batch, out, 0)
        h = batch.labels.shape[0]
        losses = out.new_empty(h)
        bounds = np.linspace(0, h, min(h, kernels.own_threads()) + 1).astype(int)

        def task(c: int) -> None:
            rows = slice(bounds[c], bounds[c + 1])
            shared = point if point.ndim == 1 else point[rows]
            losses[rows] = compute(shared, batch.rows(rows), out[rows], int(bounds[c]))

        kernels.in_threads(task, len(bounds) - 1, out.numel())
        return losses

    def _by_chain(self, point: Tensor, batch: Batch, out: Tensor, first: int) -> Tensor:
        assert self._chain is not None
        return self._chain.gradients(
            self._split(point), self._split(out), batch.inputs, labels=batch.labels, weights=_weights(batch, out)
        )

    @contextmanager
    def _twin(self, use: str = "plain") -> Iterator[Twin]:
        """A twin of the model, for this thread alone."""
        try:
            twin = self._idle[use].pop()
        except IndexError:
            twin = Twin(self.model, self._parameters)
        if twin.module.training != self.model.training:
            twin.module.train(self.model.training)
        try:
            yield twin
        finally:
            self._idle[use].append(twin)

    def _flat_of(self, worker: int, buffers: dict[str, Tensor]) -> FlatBuffers:
        if worker not in self._flat:
            self._flat[worker] = FlatBuffers(buffers)
        return self._flat[worker]

    def _loss(self, outputs: Tensor, labels: Tensor, weights: Tensor, kept: slice | Tensor | None) -> Tensor:
        if kept is not None:
            outputs, labels = outputs[kept], labels[kept]
        return self.loss.mean(outputs, labels, weights)

    def _by_vmap(self, point: Tensor, batch: Batch, out: Tensor, first: int) -> Tensor:
        parameters = dict(zip(self.names, self._split(point), strict=True))
        shared = None if point.ndim == 1 else 0
        with self._twin("functional") as twin:
            twin.take(dict(self.model.named_buffers()), copied=False)

            def loss(values: dict[str, Tensor], inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
                return self.loss.mean(functional_call(twin.module, values, (inputs,)), labels, weights)

            gradients, losses = vmap(grad_and_value(loss), in_dims=(shared, 0, 0, 0))(
                parameters, batch.inputs, batch.labels, _weights(batch, out)
            )
        for name, target in zip(self.names, self._split(out), strict=True):
            target.copy_(gradients[name])
        return losses.detach()

    def _by_loop(self, point: Tensor, batch: Batch, out: Tensor, first: int, step: int = 0) -> Tensor:
        weights, buffers = _weights(batch, out), dict(self.model.named_buffers())
        on_device, losses, inputs = out.device.type != "cpu", [], self._inputs(batch.inputs, images=5)
        with self._twin() as twin:
            for i in range(batch.labels.shape[0]):
                if i == 0 or point.ndim > 1:
                    twin.hold(self._values(point if point.ndim == 1 else point[i]))
                made = self._flat_of(first + i, buffers) if on_device else None
                twin.take(buffers if made is None else made.begin(buffers), copied=made is None)
                drawn, kept = self._drawn("dropout", step, first + i), batch.kept(i, self.loss)
                given = aligned(inputs[i]) if on_device else inputs[i]
                losses.append(self._one(twin, given, batch.labels[i], weights[i], out[i], drawn, kept))
                if self.model.training and made is not None:
                    made.keep(twin.values(buffers))
                    self._made[first + i] = made
                elif self.model.training:
                    self._seen[first + i] = twin.values(self._changing)
        return torch.stack(losses)

    def _one(
        self, twin: Twin, inputs: Tensor, labels: Tensor, weights: Tensor, row: Tensor,
        drawn: AbstractContextManager[object] | None = None, kept: slice | Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss of one worker, whose gradient is written into the row."""
        with torch.enable_grad(), drawn or nullcontext():
            loss = self._loss(twin.module(inputs), labels, weights, kept)
        gradients = torch.autograd.grad(loss, twin.learned, allow_unused=True)
        if self.layout == "channels-last":
            write_row(row, list(gradients), self._split(row))
            return loss.detach()
        parts = [
            p.new_zeros(p.numel()) if gradient is None else gradient.reshape(-1)
            for p, gradient in zip(twin.learned, gradients, strict=True)
        ]
        torch.cat(parts, out=row)
        return loss.detach()

    def _by_graph(self, point: Tensor, batch: Batch, out: Tensor, step: int, stays: bool) -> Tensor | None:
        """None where it cannot be captured after all; then the loop is the method."""
        buffers, weights = dict(self.model.named_buffers()), _weights(batch, out)
        read = [*buffers.values(), *(p for p in self.model.parameters() if not p.requires_grad)]
        given = {"point": point, "inputs": batch.inputs, "labels": batch.labels, "weights": weights}
        key = (
            *((x.shape, x.dtype) for x in given.values()), self.model.training, *(x.data_ptr() for x in read),
        )  # fmt: skip
        place = out.data_ptr() if stays else None
        known = [where for kind, where in self._graphs if kind == key]
        # Into what is handed over, if that is always the same; else into memory of its own, and copied from there.
        where = place if place in known or (stays and not known) else None
        graph = self._graphs.pop((key, where), None)
        if graph is None:
            twins = [Twin(self.model, self._parameters) for _ in range(self._side_by_side(batch, out))]
            for twin in twins:
                twin.module.train(self.model.training)
            try:
                turned = self.layout == "channels-last" and batch.inputs.ndim == 5
                graph = LoopGraph(
                    self._one,
                    twins,
                    self._values,
                    buffers,
                    like=empty_channels_last if turned else torch.empty_like,
                    **given,
                    out=torch.empty_like(out) if where is None else out,
                )
            except RuntimeError as error:
                self._give_up_graphs(cut(str(error)).rstrip("."))
                return None
        self._graphs[key, where] = graph  # the one used last
        while len(self._graphs) > KEPT:
            del self._graphs[next(iter(self._graphs))]
        losses = graph(**given, seed_of=lambda i: randomness.integer(self.seed, "dropout", step, i))
        if where is None:
            out.copy_(graph.out)
        if self.model.training:
            self._made = dict(enumerate(graph.made))
        return losses

    def _side_by_side(self, batch: Batch, out: Tensor) -> int:
        """How many workers a graph has side by side: each makes activations, their gradients, and two vectors."""
        each = 2 * self._forward * batch.labels.shape[1] + 2 * out.shape[1] * out.element_size()
        return max(1, min(self.streams, len(out), int(room(out.device) / 2 / each)))

    def _drawn(self, purpose: str, step: int, worker: int) -> AbstractContextManager[object]:
        """Where the model may draw random numbers."""
        return Drawn(randomness.integer(self.seed, purpose, step, worker)) if self._stochastic else nullcontext()

    # ----------------------------------------------------------------------------------------------- evaluating

    def evaluate(
        self, parameters: Tensor, inputs: Sequence[Tensor], labels: Sequence[Tensor], metrics: Sequence[Metric] = ()
    ) -> tuple[float, ...]:
        """(accuracy, mean loss, metrics ...) in evaluation mode over chunks of prepared inputs and labels.

        The accuracy is that of the greatest output, over all labels that count; NaN where labels are no classes. Each
        metric is called once with all outputs and labels, which are in main memory, wherever the model is; one that
        answers a tuple is several.
        """
        numbers = sum(x.numel() for x in inputs)
        return self.evaluate_chunks(parameters, lambda c: (inputs[c], labels[c]), len(inputs), metrics, numbers=numbers)

    def chunk(self, some: Callable[[], tuple[Tensor, Tensor]]) -> int:
        """How many examples are to be evaluated at a time on a device: as many as make no operation's result larger
        than 256 MiB, of which two or three are there at a time.

        Args:
            some: answers examples [B, ...] and labels, to be looked at where no batch has been.
        """
        self._look_at(some)
        return max(1, int(LARGEST / self._largest))

    def chunk_backward(self, some: Callable[[], tuple[Tensor, Tensor]]) -> int:
        """How many examples a gradient is to be taken of at a time: as many as keep all that forward makes, which
        backward needs, within 1 GiB. ``some`` as for :meth:`chunk`."""
        self._look_at(some)
        return max(1, int(KEPT_FOR_BACKWARD / max(self._forward, 1)))

    def _look_at(self, some: Callable[[], tuple[Tensor, Tensor]]) -> None:
        if not self._looked:
            inputs, labels = some()
            self.look(Batch(inputs[:2].unsqueeze(0), labels[:2].unsqueeze(0)))

    def evaluate_chunks(
        self,
        parameters: Tensor,
        prepared: Callable[[int], tuple[Tensor, Tensor]],
        count: int,
        metrics: Sequence[Metric] = (),
        *,
        numbers: int = 0,
        again: Repeated | None = None,
    ) -> tuple[float, ...]:
        """The same, of so many chunks (inputs, labels) that are prepared when it is their turn.

        Args:
            numbers: how many there are in all inputs, where they are to be shared out over threads.
            again: on a card, where chunks are prepared in the same way at each call, what does this in one go.
        """
        self._look_at(lambda: prepared(0))
        if again is not None and self._chain is not None and self.method == "chain" and not metrics:
            chain = self._chain

            def totals() -> tuple[Totals, kernels.Packed]:
                found: Totals = []
                for c in range(count):
                    inputs, labels = prepared(c)
                    outputs = chain.logits(inputs, self._split(parameters))
                    found.append((*self._correct(outputs, labels), *self.loss.total(outputs, labels)))
                return found, kernels.Packed(*_tensors(found))

            with torch.no_grad():
                found, packed = again("an evaluation", totals, places=[parameters])
            return _scores(_numbers(found, packed.later()()))
        was_training, device, values = self.model.training, parameters.device, self._split(parameters)
        self.model.eval()
        buffers = dict(self.model.named_buffers())
        found: list[tuple[Tensor | float, ...]] = [()] * count
        answers: list[tuple[Tensor, Tensor] | None] = [None] * count

        def task(c: int, twin: Twin | None) -> None:
            inputs, labels = prepared(c)
            with torch.no_grad():
                if twin is None:
                    assert self._chain is not None
                    outputs = self._chain.logits(inputs, values)
                else:
                    with self._drawn("evaluation", 0, c):
                        if device.type == "cpu":
                            twin.take(buffers)
                        else:
                            twin.take(self._flat_of(-1, buffers).begin(buffers), copied=False)
                        # What was prepared serves other evaluations too, also those of other models.
                        outputs = twin.module(self._inputs(inputs.clone() if self._writes else inputs))
                found[c] = *self._correct(outputs, labels), *self.loss.total(outputs, labels)
                if metrics:
                    answers[c] = outputs, labels

        def tasks(chunks: Sequence[int]) -> None:
            if self.method == "chain":
                for c in chunks:
                    task(c, None)
                return
            with self._twin() as twin:
                twin.hold(self._values(parameters))
                for c in chunks:
                    task(c, twin)

        def all_tasks() -> None:
            if kernels.own_threads() > 1 and device.type == "cpu":
                kernels.in_threads(lambda c: tasks([c]), count, numbers)
            else:
                tasks(range(count))

        before = _generator_state(device)
        try:
            all_tasks()
        except RuntimeError as error:
            self._without_channels_last(error)
            all_tasks()
        if not self._stochastic and not torch.equal(_generator_state(device), before):
            _put_back(device, before)
            self._stochastic = True  # in evaluation alone: once more, from the seed
            all_tasks()
        self.model.train(was_training)
        every = [torch.cat(parts) for parts in zip(*(x for x in answers if x is not None), strict=True)]
        sums, every = _fetched(found, every)
        measured = [metric(*(x.clone() for x in every)) for metric in metrics]  # which may write there
        return *_scores(sums), *(float(x) for m in measured for x in (m if isinstance(m, tuple) else (m,)))

    def _correct(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """How many of the labels that count have the greatest output, and how many there are."""
        if labels.is_floating_point() or outputs.ndim != labels.ndim + 1:
            return 0, 0
        counted = self.loss.counted(labels)
        return ((outputs.argmax(-1) == labels) & counted).sum(), counted.sum()


def _generator_state(device: torch.device) -> Tensor:
    """Of what a module draws from that says no generator."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _put_back(device: torch.device, state: Tensor) -> None:
    """What a user's own code draws from is left as it was."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


_told: set[tuple[str, str, str]] = set()  # what was said once


def _tell_once(name: str, what: str, fault: str) -> None:
    if (name, what, fault) not in _told:
        _told.add((name, what, fault))
        _log.warning("%s: %s: %s", name, what, printable(fault))


Totals = list[tuple[Tensor | float, ...]]  # of each chunk: correct, counted, loss, weight


def _tensors(found: Totals) -> list[Tensor]:
    return [x for chunk in found for x in chunk if isinstance(x, Tensor)]


def _numbers(found: Totals, fetched: Any) -> np.ndarray:
    """[chunks, 4] in float64, of what was fetched of the tensors among them."""
    arrays = iter(fetched if isinstance(fetched, tuple) else [fetched])
    return np.array([[float(next(arrays)) if isinstance(x, Tensor) else x for x in chunk] for chunk in found])


def _scores(totals: np.ndarray) -> tuple[float, float]:
    """Accuracy and loss."""
    correct, counted, loss, weight = totals.sum(0)
    return float(correct / counted) if counted else nan, float(loss / weight) if weight else nan


def _fetched(found: Totals, others: list[Tensor]) -> tuple[np.ndarray, list[Tensor]]:
    """The numbers of each chunk as [chunks, 4] in float64, and other tensors, in main memory: all in one copy."""
    tensors = _tensors(found)
    there = tensors + others
    if not there or there[0].device.type == "cpu":
        return np.array([[float(x) for x in chunk] for chunk in found]), others
    fetched = kernels.host(*there) if len(there) > 1 else (kernels.host(*there),)
    rest = [torch.from_numpy(array).to(x.dtype) for array, x in zip(fetched[len(tensors) :], others, strict=True)]
    return _numbers(found, fetched[: len(tensors)]), rest


def _weights(batch: Batch, like: Tensor) -> Tensor:
    """[h, b], of that tensor's type and on its device."""
    if batch.weights is not None:
        return batch.weights
    return torch.full(batch.labels.shape[:2], 1 / batch.labels.shape[1], dtype=like.dtype, device=like.device)
