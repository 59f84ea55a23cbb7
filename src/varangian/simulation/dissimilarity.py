"""How uneven the data of honest workers are, in what decides over resilience: the gradients of their own losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..core import kernels, randomness
from .data import Dataset
from .gradients import WorkerGradients
from .losses import Loss
from .sampling import CHUNK, Examples


@dataclass(frozen=True)
class Dissimilarity:
    """How far apart the gradients g_i of the losses of h workers are, at one point.

    Attributes:
        step: how many steps of a run had been done there.
        squared_norm: ||mean||^2, mean = (1/h) sum_i g_i.
        spread: (1/h) sum_i ||g_i - mean||^2.
    """

    step: int
    squared_norm: float
    spread: float

    @property
    def ratio(self) -> float:
        """spread / squared_norm; infinite where the mean vanishes."""
        if self.squared_norm == 0:
            return 0.0 if self.spread == 0 else math.inf
        return self.spread / self.squared_norm


@dataclass(frozen=True)
class Fit:
    """G and B of (1/h) sum_i ||g_i - mean||^2 <= G^2 + B^2 ||mean||^2, as some points have them.

    Attributes:
        G, B: of the line spread = G^2 + B^2 squared_norm that is nearest to the points by least squares, G^2 and B^2
            not negative. It runs through the points, so about half of them lie above it.
        G_above: the least G with which the inequality, with this B, holds at every one of the points.
        points: how many there are. Of one point nothing tells G from B: all of it is put down to G.
    """

    G: float
    B: float
    G_above: float
    points: int

    @property
    def breakdown(self) -> float:
        """1 / (2 + B^2): from this share of Byzantine workers on no rule can guarantee anything on such losses.

        Reference: Y. Allouah, R. Guerraoui, N. Gupta, R. Pinot, G. Rizk, "Robust Distributed Learning: Tight Error
        Bounds and Breakdown Point under Data Heterogeneity", NeurIPS 2023.
        """
        return 1 / (2 + self.B**2)


def fit(points: Sequence[Dissimilarity]) -> Fit | None:
    """G and B by least squares over the points; those that are not finite are left out, and of none there is no fit.

    Minimises sum_t (spread_t - a - b squared_norm_t)^2 over a = G^2 >= 0 and b = B^2 >= 0.

    Example:
        >>> found = fit([Dissimilarity(t, n, 4 + 0.25 * n) for t, n in enumerate((1.0, 2.0, 8.0))])
        >>> found.points, round(found.G, 6), round(found.B, 6), round(found.breakdown, 6)
        (3, 2.0, 0.5, 0.444444)
    """
    usable = [p for p in points if math.isfinite(p.spread) and math.isfinite(p.squared_norm)]
    if not usable:
        return None
    # In units of the largest of each: squares of what is measured stay in the range of float64.
    wide = max(p.squared_norm for p in usable) or 1.0
    high = max(p.spread for p in usable) or 1.0
    n = np.array([p.squared_norm / wide for p in usable])
    s = np.array([p.spread / high for p in usable])
    candidates = [(float(s.mean()), 0.0)]
    around = n - n.mean()
    if around @ around > 1e-24 * (n @ n):  # else all points have the same norm, and nothing tells G from B
        b = float(around @ (s - s.mean()) / (around @ around))
        candidates.append((float(s.mean()) - b * float(n.mean()), b))
        candidates.append((0.0, float(n @ s / (n @ n))))
    a, b = min(
        (pair for pair in candidates if min(pair) >= 0),
        key=lambda pair: float(((s - pair[0] - pair[1] * n) ** 2).sum()),
    )
    above = max(a, float((s - b * n).max()))
    return Fit(math.sqrt(a * high), math.sqrt(b * high / wide), math.sqrt(above * high), len(usable))


class LocalGradients:
    """The gradients of the losses of h workers on all the data that each holds, or on a sample of them.

    f_i is the mean loss over the part of worker i, by the model in evaluation mode: without dropout, with the running
    statistics of batch normalisation, on images as they are, without l2 and without clipping. Time: a pass forward and
    back over all parts; a part that several workers have, as of iid data, is computed once. Memory: three vectors.

    Args:
        model: computes them, and is no other's: its parameters and buffers are written over.
        loss: what its loss is.
        dataset: whose training split the parts are of.
        parts: of each worker, indices into that.
        examples: at most so many of each part, drawn once by the seed; None takes all. The noise of the sample then
            counts as spread.

    Example:
        >>> import varangian as vg
        >>> from varangian.simulation.losses import CrossEntropy
        >>> digits, parts = vg.DATASETS["digits"](), [np.arange(500), np.arange(500, 900)]
        >>> local = LocalGradients(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), CrossEntropy(), digits, parts)
        >>> found = local(local.gradients.parameters())
        >>> found.squared_norm > found.spread > 0
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        dataset: Dataset,
        parts: Sequence[np.ndarray],
        *,
        examples: int | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(parts) == 0:
            raise ValueError("LocalGradients needs a part of at least one worker, got none.")
        if examples is not None and examples < 1:
            raise ValueError(f"LocalGradients needs at least one example of a worker, got examples={examples}.")
        self.loss = loss
        self.gradients = WorkerGradients(model, training=False, method="loop", loss=loss, seed=seed)
        self.examples = Examples(dataset, dataset.train, device, dtype)
        self.chunk = min(
            CHUNK, self.gradients.chunk_backward(lambda: self.examples(np.arange(min(2, len(dataset.train)))))
        )
        self.parts = [_sample(part, examples, seed, worker) for worker, part in enumerate(parts)]

    def __call__(self, parameters: Tensor, buffers: dict[str, Tensor] | None = None, step: int = 0) -> Dissimilarity:
        """
        Args:
            parameters: [d], where.
            buffers: of the model there, by name; without, they stay what they are.
            step: for the answer.
        """
        self.gradients.adopt(parameters, buffers)
        mean = torch.zeros(self.gradients.d, dtype=torch.float64, device=parameters.device)
        spread = torch.zeros((), dtype=torch.float64, device=parameters.device)
        gradient, last = mean, None
        for count, part in enumerate(self.parts, 1):
            if part is not last:
                gradient, last = self._of(part), part
            apart = gradient - mean
            mean = mean + apart / count
            spread = spread + apart @ (gradient - mean)
        squared_norm, total = kernels.host(torch.stack([mean @ mean, spread])).tolist()
        return Dissimilarity(step, squared_norm, total / len(self.parts))

    def _of(self, part: np.ndarray) -> Tensor:
        """The gradient of the mean loss over a part, [d] in float64: that of each chunk by what counts in it, which is
        tokens where a loss tells those that do."""
        total = torch.zeros(self.gradients.d, dtype=torch.float64, device=self.gradients.device)
        counted = torch.zeros((), dtype=torch.float64, device=self.gradients.device)
        for chunk in np.array_split(part, -(-len(part) // self.chunk)):
            inputs, labels = self.examples(chunk)
            row, _ = self.gradients.rows(inputs[None], labels[None], 0)
            weight = self.loss.counted(labels).sum().double() if self.loss.weighs else float(len(labels))
            total += row[0].double() * weight
            counted += weight
        return total / counted.clamp_min(1.0)


def _sample(part: np.ndarray, examples: int | None, seed: int, worker: int) -> np.ndarray:
    if examples is None or len(part) <= examples:
        return part
    generator = randomness.generator(seed, "local gradients", worker=worker)
    return np.sort(generator.choice(part, examples, replace=False))
