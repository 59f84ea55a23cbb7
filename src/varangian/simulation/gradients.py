"""From a torch model to flat vectors: parameters [d], and the gradients of h workers as one matrix [h, d].

The only file that knows nn.Module. Three ways to the same numbers:

    "chain"  batched matrix products, for models that are linear layers with ReLU between them, on the CPU;
    "vmap"   torch.func over workers, for other models without per-batch state or randomness;
    "loop"   one worker after the other through autograd: the oracle, and the way for batch normalisation and dropout in
             training mode, and for convolutions, which are faster one by one than grouped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from ..core import kernels, randomness
from ..core.randomness import Drawn

Method = Literal["auto", "chain", "vmap", "loop"]


@dataclass(frozen=True, eq=False)
class Batch:
    """What h workers sampled at one step.

    Attributes:
        inputs: [h, b, ...] float.
        labels: [h, b] int64.
        weights: [h, b], each row summing to 1, where some samples are padding (weight 0); None for plain means.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor | None = None

    def points(self, h: int) -> int:
        """How many training points the first h workers sampled."""
        return self.labels[:h].numel() if self.weights is None else int((self.weights[:h] > 0).sum())


Compute = Callable[[Tensor, Batch, Tensor, int], Tensor]


class WorkerGradients:
    """The gradients of the mean cross entropy, for h workers that share a model.

    d counts the parameters that require gradients; frozen ones stay what they are, and parameters that stand in several
    layers count once.

    Args:
        model: answers logits [b, classes]. It is not changed by calls, except for its buffers through :meth:`adopt`.
        training: whether dropout drops and batch normalisation uses the batch's statistics.
        method: how; "auto" chooses.
        seed: of the dropout masks.
    """

    def __init__(self, model: nn.Module, training: bool = True, method: Method = "auto", seed: int = 0) -> None:
        self.model = model.train(training)
        self.seed = seed
        learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not learning:
            raise ValueError(
                f"{type(model).__name__} has no parameters that require gradients: nothing can be learned."
            )
        self.names = [name for name, _ in learning]
        self._parameters = [p for _, p in learning]
        self._shapes = [p.shape for p in self._parameters]
        self._ends = np.cumsum([p.numel() for p in self._parameters]).tolist()
        self.d: int = self._ends[-1]
        self._chain = _linear_chain(model) if all(p.device.type == "cpu" for p in self._parameters) else None
        self._stochastic = training and any(isinstance(m, _DROPOUTS) and m.p > 0 for m in model.modules())
        self._normalizes = training and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        self._seen: dict[int, dict[str, Tensor]] = {}  # worker -> buffers after its batch, within one call
        self._idle: list[nn.Module] = []  # twins of the model, one for each thread that has needed one
        # Modules of somebody else may draw or normalise by themselves: the first batch will tell.
        known = ("torch.nn.", "varangian.")
        self._unknown = not all((type(m).__module__ + ".").startswith(known) for m in model.modules())
        self._automatic = method == "auto"
        self.method: Method = self._choose() if method == "auto" else method
        if self.method == "chain" and self._chain is None:
            raise ValueError("method 'chain' needs linear layers with ReLU between them, on the CPU; use 'auto'.")
        if self.method == "vmap" and (self._stochastic or self._normalizes):
            raise ValueError("method 'vmap' cannot train with dropout or batch normalisation; use 'auto'.")

    def _choose(self) -> Method:
        if self._chain is not None:
            return "chain"
        convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in self.model.modules())
        return "loop" if self._stochastic or self._normalizes or convolves else "vmap"

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
            step: names the dropout masks.

        In the loop, batch normalisation's running statistics become the mean over the workers of what each made of the
        step's initial ones, so that their order does not matter.
        """
        assert out.shape == (batch.labels.shape[0], self.d)
        self._seen.clear()
        if self._unknown and not self._stochastic:
            self._look(point, batch)
        losses = self._compute(point, batch, out, step)
        self._adopt_mean_buffers()
        return losses

    def _look(self, point: Tensor, batch: Batch) -> None:
        """Whether modules of somebody else draw random numbers; then one worker comes after the other."""
        self._unknown = False
        state = dict(zip(self.names, self._split(point if point.ndim == 1 else point[0]), strict=True))
        state |= self.buffers()
        with self._module() as module, torch.no_grad(), Drawn(0) as drawn:
            functional_call(module, state, (batch.inputs[0],))
        if drawn.drew:
            if not self._automatic and self.method != "loop":
                raise ValueError(f"method {self.method!r} cannot train with random numbers in the model; use 'auto'.")
            self._stochastic, self.method = True, "loop"

    def _compute(self, point: Tensor, batch: Batch, out: Tensor, step: int) -> Tensor:
        if self.method == "chain":
            return self._in_groups(self._by_chain, point, batch, out)
        if self.method == "vmap":
            return self._in_groups(self._by_vmap, point, batch, out)
        if not self._stochastic:
            return self._in_groups(self._by_loop, point, batch, out)
        with kernels.torch_threads():  # one worker at a time, on all threads
            return self._by_loop(point, batch, out, 0, step)

    def _in_groups(self, compute: Compute, point: Tensor, batch: Batch, out: Tensor) -> Tensor:
        """The workers in as many groups as there are threads of our own."""
        h = batch.labels.shape[0]
        losses = out.new_empty(h)
        bounds = np.linspace(0, h, min(h, kernels.own_threads()) + 1).astype(int)

        def task(c: int) -> None:
            rows = slice(bounds[c], bounds[c + 1])
            weights = None if batch.weights is None else batch.weights[rows]
            part = Batch(batch.inputs[rows], batch.labels[rows], weights)
            losses[rows] = compute(point if point.ndim == 1 else point[rows], part, out[rows], int(bounds[c]))

        kernels.share(task, len(bounds) - 1, out.numel())
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
        weights = _weights(batch)
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
    def _module(self) -> Iterator[nn.Module]:
        """A twin of the model, with the same tensors: functional_call moves tensors in and out of a module, so that no
        two threads may share one."""
        try:
            module = self._idle.pop()
        except IndexError:
            module = copy.deepcopy(self.model, {id(t): t for t in (*self._parameters, *self.model.buffers())})
        if module.training != self.model.training:
            module.train(self.model.training)
        try:
            yield module
        finally:
            self._idle.append(module)

    def _by_vmap(self, point: Tensor, batch: Batch, out: Tensor, first: int) -> Tensor:
        parameters = dict(zip(self.names, self._split(point), strict=True))
        shared = None if point.ndim == 1 else 0
        with self._module() as module:
            gradients, losses = vmap(grad_and_value(partial(_loss, module)), in_dims=(shared, 0, 0, 0))(
                parameters, batch.inputs, batch.labels, _weights(batch)
            )
        for name, target in zip(self.names, self._split(out), strict=True):
            target.copy_(gradients[name])
        return losses.detach()

    def _by_loop(self, point: Tensor, batch: Batch, out: Tensor, first: int, step: int = 0) -> Tensor:
        weights, targets = _weights(batch), self._split(out)
        buffers = self.buffers() if self._normalizes else {}
        losses = []
        for i in range(batch.labels.shape[0]):
            leaves = [v.detach().requires_grad_() for v in self._split(point if point.ndim == 1 else point[i])]
            mine = {name: b.clone() for name, b in buffers.items()}
            state = dict(zip(self.names, leaves, strict=True)) | mine
            with self._module() as module, torch.enable_grad(), self._drawn("dropout", step, first + i):
                loss = _loss(module, state, batch.inputs[i], batch.labels[i], weights[i])
            for target, gradient in zip(targets, torch.autograd.grad(loss, leaves), strict=True):
                target[i] = gradient
            losses.append(loss.detach())
            self._seen[first + i] = mine
        return torch.stack(losses)

    def _drawn(self, purpose: str, step: int, worker: int) -> AbstractContextManager[object]:
        """Where the model may draw random numbers."""
        return Drawn(randomness.integer(self.seed, purpose, step, worker)) if self._stochastic else nullcontext()

    def _adopt_mean_buffers(self) -> None:
        """The model's buffers become the mean of what the workers made of them, in the order of workers."""
        if not self._normalizes:
            return
        for name, b in self.model.named_buffers():
            values = torch.stack([self._seen[i][name] for i in sorted(self._seen)])
            b.copy_(values.mean(0) if b.is_floating_point() else values[0])

    def evaluate(self, parameters: Tensor, inputs: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[float, float]:
        """(accuracy, mean loss) in evaluation mode over chunks of prepared inputs and labels."""
        was_training = self.model.training
        self.model.eval()
        values = self._split(parameters)
        state = dict(zip(self.names, values, strict=True))
        found = np.zeros((len(inputs), 2))

        def task(c: int) -> None:
            with torch.no_grad():
                if self.method == "chain":
                    logits = self._chain_logits(inputs[c], values)
                else:
                    with self._module() as module, self._drawn("evaluation", 0, c):
                        logits = functional_call(module, state, (inputs[c],))
                found[c, 0] = float((logits.argmax(1) == labels[c]).sum())
                found[c, 1] = float(functional.cross_entropy(logits, labels[c], reduction="sum"))

        if kernels.own_threads() > 1:
            kernels.share(task, len(inputs), sum(x.numel() for x in inputs))
        else:
            for c in range(len(inputs)):
                task(c)
        self.model.train(was_training)
        correct, loss = found.sum(0) / sum(len(y) for y in labels)
        return float(correct), float(loss)

    def _chain_logits(self, inputs: Tensor, values: list[Tensor]) -> Tensor:
        assert self._chain is not None
        arrays = _arrays(values)
        z = inputs.reshape(len(inputs), -1).numpy()
        for place, (weight, bias) in enumerate(self._chain):
            if place:
                np.maximum(z, 0, out=z)
            z = _affine(z, arrays[weight], None if bias is None else arrays[bias])
        return torch.from_numpy(z)


def _loss(module: nn.Module, parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    logits = functional_call(module, parameters, (inputs,))
    return (functional.cross_entropy(logits, labels, reduction="none") * weights).sum()


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


_DROPOUTS = (nn.modules.dropout._DropoutNd,)


def _weights(batch: Batch) -> Tensor:
    if batch.weights is not None:
        return batch.weights
    return torch.full(
        batch.labels.shape, 1 / batch.labels.shape[1], dtype=batch.inputs.dtype, device=batch.inputs.device
    )


def _linear_chain(model: nn.Module) -> list[tuple[int, int | None]] | None:
    """For Flatten, Linear, ReLU, ..., Linear, each with parameters of its own that are all learned: where each layer's
    weight and bias stand among the parameters."""
    every = [p for _, p in model.named_parameters(remove_duplicate=False)]
    if type(model) is not nn.Sequential or len(set(every)) < len(every) or not all(p.requires_grad for p in every):
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
