"""From a torch model to flat vectors: parameters [d], and the gradients of h workers as one matrix [h, d].

The only file that knows how an nn.Module computes. Three ways to the same numbers:

    "loop"   one worker after the other, as plain torch does it: right for any module, and the oracle of the others;
    "vmap"   torch.func over workers, for models without randomness and without buffers that change;
    "chain"  batched matrix products, for models that are linear layers with ReLU between them, on the CPU.

Which one is chosen by what the model does with its first batch, and not by what its layers are called: whatever draws
random numbers, changes buffers or convolves (which is faster one by one than grouped) is for the loop, and so is what
the faster ways cannot do, or do not do alike.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ..core import kernels, randomness
from ..core.checks import cut, kind_of, printable, shown
from ..core.randomness import Drawn
from .identity import is_somebodys
from .losses import CrossEntropy, Loss, OwnLoss

Method = Literal["auto", "chain", "vmap", "loop"]
Metric = Callable[[Tensor, Tensor], Any]

_log = logging.getLogger("varangian.simulation")


@dataclass(frozen=True, eq=False)
class Batch:
    """What h workers sampled at one step.

    Attributes:
        inputs: [h, b, ...], of the model's type, or int64 where they are tokens.
        labels: [h, b] or, where every place of a sequence has one, [h, b, T] int64; real numbers [h, b] or [h, b, k].
        weights: [h, b], each row summing to 1, where some samples are padding (weight 0); None for plain means.
        sizes: [h] how many samples of each worker are no padding, if that is known; else weights are counted, which on
            a device has to be waited for.
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
        self._chain = _linear_chain(model) if method in ("auto", "chain") and self.loss == CrossEntropy() else None
        if method == "chain" and self._chain is None:
            raise ValueError("method 'chain' needs linear layers with ReLU between them, on the CPU; use 'auto'.")
        self.method: Method = method
        self._looked = False
        self._stochastic = False
        self._writes = False  # whether forward writes into its inputs, as a first layer with inplace=True does
        self._changing: set[str] = set()  # buffers that forward changes
        self._seen: dict[int, dict[str, Tensor]] = {}  # worker -> buffers that its batch changed, within one call
        # Twins of the model, for each thread that has needed one; functional_call may leave its own tensors in them.
        self._idle: dict[str, list[_Twin]] = {"plain": [], "functional": []}

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
        assert out.shape == (batch.labels.shape[0], self.d)
        self.look(batch)
        self._seen.clear()
        return self._compute(point, batch, out, step)

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
            batch = Batch(*(x if isinstance(x, Tensor) else torch.stack(list(x)) for x in (inputs, labels)))
            return out, self(point, batch, out, step)
        self.look(Batch(inputs[0].unsqueeze(0), labels[0].unsqueeze(0)))
        self._seen.clear()
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
        row, convolves = self._try(one, classes)
        reason = "it draws random numbers" if self._stochastic else ""
        reason = "its buffers change in forward" if self._changing else reason
        if self.method == "auto":
            self.method = self._fastest(one, row, reason or ("it convolves" if convolves else ""))
        elif self.method != "loop":
            fault = reason or self._disagreement(self.method, one, row)
            if fault:
                raise ValueError(f"method {self.method!r} cannot compute {name}: {fault}; use 'auto'.")
        self._looked = True

    def _try(self, one: Batch, classes: int | None) -> tuple[Tensor, bool]:
        """The gradient [1, d] of one worker by the loop, and whether anything is convolved for it."""
        name, inputs, labels = type(self.model).__name__, one.inputs[0], one.labels[0]
        point = self.parameters()
        kept, buffers = point.clone(), self.buffers()
        seed, answers = randomness.integer(self.seed, "dropout", 0, 0), []
        with self._twin() as twin, _Operations() as operations:
            twin.hold(self._split(point))
            for _ in range(2):
                twin.take(buffers)
                given = inputs.clone()
                with torch.enable_grad(), Drawn(seed) as drawn, _explained(self.model, inputs):
                    outputs = twin.module(given)
                self._stochastic |= drawn.counts
                self._writes |= given._version > 0
                self._changing |= twin.changing(buffers)
                answers.append((outputs, twin.values(self._changing), twin.numbers()))
            outputs, changed, numbers = answers[1]
            _check_outputs(name, outputs, point)
            fault = self.loss.fault(outputs, labels, classes)
            if fault is not None:
                raise ValueError(f"{name} and these data do not fit: {fault}.")
            _check_finite(f"the outputs of {name}", outputs)
            twin.check(name)
            if not torch.equal(point, kept):
                raise ValueError(f"{name} changes its parameters in forward, as max_norm of an embedding does.")
            moved = [key for key, value in numbers.items() if answers[0][2].get(key) != value]
            if moved or not _alike({"": outputs, **changed}, {"": answers[0][0], **answers[0][1]}):
                raise ValueError(
                    f"{name} answers otherwise when it is called again with the same inputs"
                    f"{f' ({moved[0]} has changed)' if moved else ''}: what it keeps from call to call must be a "
                    "buffer, and what it draws must come from torch's own generators."
                )
            with torch.enable_grad(), Drawn(seed):
                loss = self._loss(outputs, labels, _weights(one, point)[0], one.weights is not None)
            if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.dtype == point.dtype):
                raise ValueError(f"loss: it must answer one number of {_type(point)}, got {kind_of(loss)}.")
            _check_finite("the loss", loss)
            if not loss.requires_grad:
                raise ValueError(f"{name}: the loss depends on none of the parameters: nothing can be learned.")
            with Drawn(seed) as drawn:
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
        return row, operations.convolved

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
        if (name, fault) not in _told:
            _told.add((name, fault))
            _log.warning("%s: one worker after the other, since it cannot be batched: %s", name, printable(fault))
        return "loop"

    def _disagreement(self, method: Method, one: Batch, row: Tensor) -> str | None:
        """Why a fast way does not compute the gradient that the loop has found; None where it does."""
        point, out = self.parameters(), row.new_empty(2, self.d)
        twice = Batch(*(torch.cat([x, x]) for x in (one.inputs, one.labels, _weights(one, point))))
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

    def _compute(self, point: Tensor, batch: Batch, out: Tensor, step: int) -> Tensor:
        if self.method == "chain":
            return self._in_groups(self._by_chain, point, batch, out)
        if self.method == "vmap" and (batch.weights is None or self.loss.weighs):
            return self._in_groups(self._by_vmap, point, batch, out)
        if not self._stochastic:
            before = _generator_state(out.device)
            losses = self._in_groups(self._by_loop, point, batch, out)
            if torch.equal(_generator_state(out.device), before):
                return losses
            self._stochastic = True  # in a branch that the first batch did not take: once more, from the seed
        with kernels.torch_threads():  # one worker at a time, on all threads
            return self._by_loop(point, batch, out, 0, step)

    def _in_groups(self, compute: Compute, point: Tensor, batch: Batch, out: Tensor) -> Tensor:
        """The workers in as many groups as there are threads of our own."""
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
        # In numpy, whose BLAS runs these products two to three times faster than torch's on some processors.
        assert self._chain is not None
        h, b = batch.labels.shape
        values, targets = _arrays(self._split(point)), _arrays(self._split(out))
        activations = [batch.inputs.detach().reshape(h, b, -1).numpy()]
        for weight, bias in self._chain:
            z = _affine(activations[-1], values[weight], None if bias is None else values[bias])
            activations.append(z)
            if len(activations) <= len(self._chain):
                np.maximum(z, 0, out=z)
        log_p = functional.log_softmax(torch.from_numpy(activations.pop()), dim=-1)
        answers = batch.labels.unsqueeze(2)
        picked = log_p.gather(2, answers).squeeze(2)
        weights = _weights(batch, out)
        error = log_p.exp_().scatter_add_(2, answers, log_p.new_tensor(-1.0).expand(h, b, 1))
        error *= weights.unsqueeze(2)
        delta = error.numpy()
        for (weight, bias), source in zip(reversed(self._chain), reversed(activations), strict=True):
            np.matmul(delta.transpose(0, 2, 1), source, out=targets[weight])
            if bias is not None:
                np.sum(delta, axis=1, out=targets[bias])
            if weight:
                delta = _times(delta, values[weight])
                delta *= source > 0
        return -(picked * weights).sum(1)

    @contextmanager
    def _twin(self, use: str = "plain") -> Iterator[_Twin]:
        """A twin of the model, for this thread alone."""
        try:
            twin = self._idle[use].pop()
        except IndexError:
            twin = _Twin(self.model, self._parameters)
        if twin.module.training != self.model.training:
            twin.module.train(self.model.training)
        try:
            yield twin
        finally:
            self._idle[use].append(twin)

    def _loss(self, outputs: Tensor, labels: Tensor, weights: Tensor, padded: bool) -> Tensor:
        if padded and not self.loss.weighs:
            outputs, labels = outputs[weights > 0], labels[weights > 0]
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
        weights, targets = _weights(batch, out), self._split(out)
        buffers = dict(self.model.named_buffers())
        losses = []
        with self._twin() as twin:
            for i in range(batch.labels.shape[0]):
                if i == 0 or point.ndim > 1:
                    twin.hold(self._split(point if point.ndim == 1 else point[i]))
                twin.take(buffers)
                with torch.enable_grad(), self._drawn("dropout", step, first + i):
                    outputs = twin.module(batch.inputs[i])
                    loss = self._loss(outputs, batch.labels[i], weights[i], batch.weights is not None)
                gradients = torch.autograd.grad(loss, twin.learned, allow_unused=True)
                for target, gradient in zip(targets, gradients, strict=True):
                    target[i] = 0 if gradient is None else gradient
                losses.append(loss.detach())
                if self.model.training:
                    self._seen[first + i] = twin.values(self._changing)
        return torch.stack(losses)

    def _drawn(self, purpose: str, step: int, worker: int) -> AbstractContextManager[object]:
        """Where the model may draw random numbers."""
        return Drawn(randomness.integer(self.seed, purpose, step, worker)) if self._stochastic else nullcontext()

    def adopt_buffers(self) -> None:
        """The model's buffers become the mean of what the workers made of them at the last call, in their order."""
        for name, b in self.model.named_buffers():
            if name in self._changing and self._seen:
                values = torch.stack([self._seen[i][name] for i in sorted(self._seen)])
                if not bool((values == b).all()):  # else rounding the mean would move what nobody moved
                    b.copy_(values.mean(0) if b.is_floating_point() or b.is_complex() else values[0])

    # ----------------------------------------------------------------------------------------------- evaluating

    def evaluate(
        self, parameters: Tensor, inputs: Sequence[Tensor], labels: Sequence[Tensor], metrics: Sequence[Metric] = ()
    ) -> tuple[float, ...]:
        """(accuracy, mean loss, metrics ...) in evaluation mode over chunks of prepared inputs and labels.

        The accuracy is that of the greatest output, over all labels that count; NaN where labels are no classes. Each
        metric is called once with all outputs and labels.
        """
        self.look(Batch(inputs[0][:2].unsqueeze(0), labels[0][:2].unsqueeze(0)))
        was_training = self.model.training
        self.model.eval()
        values, buffers = self._split(parameters), dict(self.model.named_buffers())
        found = np.zeros((len(inputs), 4))
        answers: list[Tensor | None] = [None] * len(inputs)

        def task(c: int) -> None:
            with torch.no_grad():
                if self.method == "chain":
                    outputs = self._chain_logits(inputs[c], values)
                else:
                    with self._twin() as twin, self._drawn("evaluation", 0, c):
                        twin.hold(values)
                        twin.take(buffers)
                        # What was prepared serves other evaluations too, also those of other models.
                        outputs = twin.module(inputs[c].clone() if self._writes else inputs[c])
                found[c, :2] = self._correct(outputs, labels[c])
                found[c, 2:] = self.loss.total(outputs, labels[c])
                if metrics:
                    answers[c] = outputs

        def all_tasks() -> None:
            if kernels.own_threads() > 1:
                kernels.in_threads(task, len(inputs), sum(x.numel() for x in inputs))
            else:
                for c in range(len(inputs)):
                    task(c)

        before = _generator_state(parameters.device)
        all_tasks()
        if not self._stochastic and not torch.equal(_generator_state(parameters.device), before):
            self._stochastic = True  # in evaluation alone: once more, from the seed
            all_tasks()
        self.model.train(was_training)
        correct, counted, loss, weight = found.sum(0)
        measured = []
        if metrics:
            every, truth = torch.cat([x for x in answers if x is not None]), torch.cat(list(labels))
            measured = [float(metric(every.clone(), truth.clone())) for metric in metrics]  # which may write there
        return float(correct / counted) if counted else nan, float(loss / weight) if weight else nan, *measured

    def _correct(self, outputs: Tensor, labels: Tensor) -> tuple[float, float]:
        """How many of the labels that count have the greatest output, and how many there are."""
        if labels.is_floating_point() or outputs.ndim != labels.ndim + 1:
            return 0, 0
        counted = self.loss.counted(labels)
        return float(((outputs.argmax(-1) == labels) & counted).sum()), float(counted.sum())

    def _chain_logits(self, inputs: Tensor, values: list[Tensor]) -> Tensor:
        assert self._chain is not None
        arrays = _arrays(values)
        z = inputs.reshape(len(inputs), -1).numpy()
        for place, (weight, bias) in enumerate(self._chain):
            if place:
                np.maximum(z, 0, out=z)
            z = _affine(z, arrays[weight], None if bias is None else arrays[bias])
        return torch.from_numpy(z)


class _Twin:
    """A copy of a model that computes with other values, which are put into it: no two threads may share one."""

    def __init__(self, model: nn.Module, learned: Sequence[nn.Parameter]) -> None:
        memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
        memo |= {id(p): nn.Parameter(p.detach()) for p in learned}
        self.module = copied(model, memo)
        self.learned = [p for p in self.module.parameters() if p.requires_grad]
        names = {id(b): name for name, b in self.module.named_buffers()}
        self._places = [
            (names[id(b)], *self._place(name)) for name, b in self.module.named_buffers(remove_duplicate=False)
        ]
        self._taken: dict[str, tuple[Tensor, int]] = {}

    def _place(self, name: str) -> tuple[nn.Module, str]:
        owner, _, key = name.rpartition(".")
        return self.module.get_submodule(owner), key

    def hold(self, values: Sequence[Tensor]) -> None:
        """Computes with these parameters, in the order of ``learned``, whose memory it uses."""
        for p, value in zip(self.learned, values, strict=True):
            p.data = value

    def take(self, buffers: dict[str, Tensor], copied: bool = True) -> None:
        """Computes with these buffers, by name."""
        values = {name: b.detach().clone() if copied else b for name, b in buffers.items()}
        for name, owner, key in self._places:
            setattr(owner, key, values[name])
        self._taken = {name: (b, b._version) for name, b in values.items()}

    def values(self, names: Container[str]) -> dict[str, Tensor]:
        """Those of the buffers that have these names, as they are now."""
        return {name: getattr(owner, key).detach() for name, owner, key in self._places if name in names}

    def changing(self, before: dict[str, Tensor]) -> set[str]:
        """The buffers of modules of which one has changed, by its value or because it was written to."""
        now = {name: (owner, getattr(owner, key)) for name, owner, key in self._places}
        moved = {
            owner
            for name, (owner, b) in now.items()
            if b is not self._taken[name][0]
            or b._version != self._taken[name][1]
            or not _alike({"": b}, {"": before[name]})
        }
        return {name for name, (owner, _) in now.items() if owner in moved}

    def check(self, name: str) -> None:
        """Raises ValueError where forward makes buffers, or makes them others than they were."""
        known = {key for key, _, _ in self._places}
        for key, b in self.module.named_buffers():
            was = self._taken[key][0] if key in known else None
            if was is None or (b.shape, b.dtype) != (was.shape, was.dtype):
                raise ValueError(f"{name}: forward makes the buffer {key} {kind_of(b)}, which was {kind_of(was)}.")

    def numbers(self) -> dict[str, object]:
        """The numbers that its modules keep as plain attributes."""
        return {
            f"{name}.{key}" if name else key: value
            for name, module in self.module.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (int, float))
        }


class _Operations(TorchDispatchMode):
    """Sees what is computed inside, whoever asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolved = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.convolved |= "convolution" in func.name()
        return func(*args, **(kwargs or {}))


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a module, without gradients; ``memo``: identity of a tensor -> what stands for it in the copy.

    Raises:
        ValueError: it holds what cannot be copied.
    """
    try:
        module = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:  # of tensors that are computed, and of what cannot be pickled
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {cut(str(error)).rstrip('.')}. What is computed from parameters "
            "is for torch.nn.utils.parametrizations, or for forward."
        ) from None
    if memo is None:
        module.zero_grad(set_to_none=True)
    return module


def check_module(model: nn.Module) -> None:
    """Raises ValueError for a model whose gradients are no vector here."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is a torch.nn.Module, got {shown(model)}.")
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name} is scripted, and cannot be computed with other parameters: hand in the module.")
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ValueError(f"{name} holds a {type(module).__name__}: hand in the module inside, its .module.")
        if isinstance(module, torch._dynamo.OptimizedModule if "torch._dynamo" in sys.modules else ()):
            raise ValueError(f"{name} is compiled: hand in the module that was.")
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if not learned:
        raise ValueError(f"{name} has no parameters that require gradients: nothing can be learned.")
    for key, p in learned.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name}: {key} has no shape before a first batch; call the module with one.")
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: parameters must be float32 or float64, got {key}: {kind_of(p)}.")
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise ValueError(f"{name}: {key} has a hook on its gradient; a transform of the worker half does that.")
    if len({(p.dtype, p.device) for p in learned.values()}) > 1:
        kinds = ", ".join(dict.fromkeys(f"{_type(p)} on {p.device}" for p in learned.values()))
        raise ValueError(f"{name}: parameters must be of one type and on one device, got {kinds}.")


def _check_outputs(name: str, outputs: object, point: Tensor) -> None:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"{name} must answer a tensor, got {kind_of(outputs)}.")
    if outputs.dtype != point.dtype or outputs.layout != torch.strided or outputs.device != point.device:
        raise ValueError(
            f"{name} must answer a tensor of {_type(point)} on {point.device}, as its parameters are, "
            f"got {kind_of(outputs)}."
        )


def _check_finite(what: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{what} must be finite at the start, got {_first_infinite(value)}.")


def _first_infinite(value: Tensor) -> str:
    bad = value.detach()[~torch.isfinite(value.detach())]
    return f"{float(bad.flatten()[0])} in {bad.numel():,} of {value.numel():,} numbers"


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all are the same; on a GPU, whose sums may come in any order, nearly so."""
    if one.keys() != other.keys():
        return False
    pairs = [(value.detach(), other[name].detach()) for name, value in one.items()]
    return all(
        torch.allclose(a, b, rtol=1e-3 if a.is_cuda else 0, atol=1e-5 if a.is_cuda else 0, equal_nan=True)
        if a.is_floating_point() or a.is_complex()
        else torch.equal(a, b)
        for a, b in pairs
    )


@contextmanager
def _explained(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """What a model raises: in a line where none of its code is somebody's own, else as it is."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        what = f"{type(model).__name__} cannot compute a batch of {kind_of(inputs)}"
        if any(is_somebodys(type(module).__module__) for module in model.modules()):
            if sys.version_info >= (3, 11):
                error.add_note(f"({what}: that is one worker's.)")
            raise
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        raise ValueError(f"{what}: {cut(str(error)).rstrip('.')}.") from None


def _generator_state(device: torch.device) -> Tensor:
    """Of what a module draws from that says no generator."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _arrays(tensors: list[Tensor]) -> list[np.ndarray]:
    return [t.detach().numpy() for t in tensors]


def _affine(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x W^T + b, for one weight or one per worker."""
    z = _times(x, np.swapaxes(weight, -1, -2))
    if bias is not None:
        z += bias if bias.ndim == 1 else bias[:, None]
    return z


def _times(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """x @ matrix, one product a worker: so that no number depends on how many workers a thread has."""
    return np.matmul(x, np.ascontiguousarray(matrix) if x.ndim == 3 else matrix)


_told: set[tuple[str, str]] = set()  # what was said once


def _weights(batch: Batch, like: Tensor) -> Tensor:
    """[h, b], of that tensor's type and on its device."""
    if batch.weights is not None:
        return batch.weights
    return torch.full(batch.labels.shape[:2], 1 / batch.labels.shape[1], dtype=like.dtype, device=like.device)


def _linear_chain(model: nn.Module) -> list[tuple[int, int | None]] | None:
    """For Flatten, Linear, ReLU, ..., Linear, each with parameters of its own that are all learned: where each layer's
    weight and bias stand among the parameters."""
    every = [p for _, p in model.named_parameters(remove_duplicate=False)]
    if any(p.device.type != "cpu" or not p.requires_grad for p in every):
        return None
    if type(model) is not nn.Sequential or len(set(every)) < len(every):
        return None
    layers = list(model)
    if layers and type(layers[0]) is nn.Flatten:
        layers = layers[1:]
    if len(layers) % 2 == 0 or any(type(m) is not (nn.ReLU if k % 2 else nn.Linear) for k, m in enumerate(layers)):
        return None
    places, place = [], 0
    for layer in layers[::2]:
        has_bias = layer.bias is not None
        places.append((place, place + 1 if has_bias else None))
        place += 1 + has_bias
    return places
