"""Linear layers with ReLU between them, for h workers at once: products of matrices, and no autograd."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Layers = tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class Chain:
    """Flatten, Linear, ReLU, ..., Linear.

    In main memory NumPy computes it, whose BLAS runs these products two to three times faster than torch's on some
    processors; on a device torch does, in about ten launches a layer, of which none waits.

    Attributes:
        layers: where the weight and the bias of each stand among the parameters.
    """

    layers: Layers

    @np.errstate(over="ignore", invalid="ignore")  # of a run that diverges, infinity and NaN are the answers
    def gradients(
        self, values: list[Tensor], targets: list[Tensor], inputs: Tensor, *, labels: Tensor, weights: Tensor
    ) -> Tensor:
        """The losses [h] of h workers; their gradients are written into the targets.

        Args:
            values: the parameters, each of its shape, or [h, ...] where workers have their own.
            targets: of the gradients, [h, ...] each.
            inputs: [h, b, ...].
            labels: [h, b].
            weights: [h, b].
        """
        h, b = labels.shape
        compute = self._in_numpy if inputs.device.type == "cpu" else self._in_torch
        return compute(values, targets, inputs.detach().reshape(h, b, -1), labels, weights)

    @np.errstate(over="ignore", invalid="ignore")
    def logits(self, inputs: Tensor, values: list[Tensor]) -> Tensor:
        """[B, C] of inputs [B, ...]."""
        x = inputs.detach().reshape(len(inputs), -1)
        if x.device.type != "cpu":
            for place, (weight, bias) in enumerate(self.layers):
                x = functional.linear(x.relu_() if place else x, values[weight], None if bias is None else values[bias])
            return x
        arrays, z = _arrays(values), x.numpy()
        for place, (weight, bias) in enumerate(self.layers):
            if place:
                np.maximum(z, 0, out=z)
            z = _affine(z, arrays[weight], None if bias is None else arrays[bias])
        return torch.from_numpy(z)

    def _in_numpy(
        self, values: list[Tensor], targets: list[Tensor], inputs: Tensor, labels: Tensor, weights: Tensor
    ) -> Tensor:
        points, rows = _arrays(values), _arrays(targets)
        activations = [inputs.numpy()]
        for weight, bias in self.layers:
            z = _affine(activations[-1], points[weight], None if bias is None else points[bias])
            activations.append(z)
            if len(activations) <= len(self.layers):
                np.maximum(z, 0, out=z)
        log_p = functional.log_softmax(torch.from_numpy(activations.pop()), dim=-1)
        answers = labels.unsqueeze(2)
        picked = log_p.gather(2, answers).squeeze(2)
        error = log_p.exp_().scatter_add_(2, answers, log_p.new_tensor(-1.0).expand(*labels.shape, 1))
        error *= weights.unsqueeze(2)
        delta = error.numpy()
        for (weight, bias), source in zip(reversed(self.layers), reversed(activations), strict=True):
            np.matmul(delta.transpose(0, 2, 1), source, out=rows[weight])
            if bias is not None:
                np.sum(delta, axis=1, out=rows[bias])
            if weight:
                delta = _times(delta, points[weight])
                delta *= source > 0
        return -(picked * weights).sum(1)

    def _in_torch(
        self, values: list[Tensor], targets: list[Tensor], inputs: Tensor, labels: Tensor, weights: Tensor
    ) -> Tensor:
        """Products of all workers' examples at once where the point is shared, else one product a worker."""
        activations = [inputs]
        for weight, bias in self.layers:
            z = _affine_there(activations[-1], values[weight], None if bias is None else values[bias])
            activations.append(z.relu_() if len(activations) < len(self.layers) else z)
        log_p = functional.log_softmax(activations.pop(), dim=-1)
        answers = labels.unsqueeze(2)
        losses = (log_p.gather(2, answers).squeeze(2) * weights).sum(1).neg_()
        # The one-hot labels by comparison: a scatter would add with atomics on a card.
        classes = torch.arange(log_p.shape[2], device=log_p.device)
        delta = log_p.exp_().sub_((answers == classes).to(log_p.dtype)).mul_(weights.unsqueeze(2))
        for (weight, bias), source in zip(reversed(self.layers), reversed(activations), strict=True):
            torch.bmm(delta.transpose(1, 2), source, out=targets[weight])
            if bias is not None:
                torch.sum(delta, 1, out=targets[bias])
            if weight:
                delta = _times_there(delta, values[weight]).mul_(source > 0)
        return losses


def chain_of(model: nn.Module) -> Chain | None:
    """The chain that a model is: each layer with parameters of its own that are all learned."""
    every = [p for _, p in model.named_parameters(remove_duplicate=False)]
    if type(model) is not nn.Sequential or len(set(every)) < len(every) or not all(p.requires_grad for p in every):
        return None
    layers = list(model)
    if layers and type(layers[0]) is nn.Flatten:
        layers = layers[1:]
    if len(layers) % 2 == 0 or any(type(m) is not (nn.ReLU if k % 2 else nn.Linear) for k, m in enumerate(layers)):
        return None
    places: list[tuple[int, int | None]] = []
    place = 0
    for layer in layers[::2]:
        has_bias = layer.bias is not None
        places.append((place, place + 1 if has_bias else None))
        place += 1 + has_bias
    return Chain(tuple(places))


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


def _affine_there(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.ndim == 2:
        return functional.linear(x.flatten(0, 1), weight, bias).unflatten(0, x.shape[:2])
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def _times_there(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.mm(x.flatten(0, 1), matrix).unflatten(0, x.shape[:2]) if matrix.ndim == 2 else torch.bmm(x, matrix)
