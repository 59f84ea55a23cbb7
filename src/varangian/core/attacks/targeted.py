"""Attacks made for one rule, or for one kind of rules."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, isfinite, radians, sin, sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .. import kernels, randomness
from ..checks import require, set_real, set_whole
from ..geometry import Geometry, mean_weights, squared_pairs, sum_of_smallest
from ..rules import Krum
from .base import MEAN, Attack, Knowledge
from .memory import Memory


@dataclass(frozen=True)
class AntiCGE(Attack):
    """Against the elimination of the longest vectors (CGE): opposite to what it keeps, and just short enough to stay.

    -(sum of the h - f shortest honest vectors), its norm just under that of the next honest one

    Shape: [h, d] -> f equal rows [f, d]; h > f.
    Cost: one pass for norms, one over the rows summed.
    Convention: "just under" is by 1e-6 of the norm, or by the rounding of the data type where that is coarser. Ties go
        to the lexicographically smaller vector.

    Example:
        >>> import torch
        >>> AntiCGE()(torch.tensor([[1.0], [2.0], [4.0]]), f=1)
        tensor([[-4.0000]])
    """

    def check(self, h: int, f: int, d: int | None = None) -> None:
        require(self, h > f, f"more honest vectors than the f = {f} that attack", h)

    def craft(self, seen: Knowledge) -> Tensor:
        h, f = seen.honest.shape[0], seen.f
        geometry = Geometry.of(seen.honest)
        order = geometry.smallest(geometry.norms, h)
        margin = max(1e-6, torch.finfo(seen.honest.dtype).eps)
        radius = (1 - margin) * float(np.sqrt(geometry.norms[order[h - f]])) * geometry.unit
        direction = kernels.weighted_rows(seen.honest, mean_weights(order[: h - f], h))
        norm = kernels.norms(direction)
        return direction * torch.where(norm > 0, norm.new_full((), -radius) / norm, torch.ones_like(norm))


@dataclass(frozen=True)
class HiddenVulnerability(Attack):
    """The mean of honest vectors but for one coordinate: in high dimension that is hardly further away.

    mean + factor e_k

    Args:
        coordinate: k, >= 0.
        factor: how much is added; what a rule still takes grows like the honest vectors' distance to each other, that
            is like the square root of d.

    Shape: [h, d] -> f equal rows [f, d]; d > coordinate.
    Cost: one pass.
    Convention: the paper looks for the greatest factor that the rule accepts: ``WorstCase(directions=("bulyan",))``
        does.

    Example:
        >>> import torch
        >>> HiddenVulnerability(coordinate=1, factor=5.0)(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), f=1)
        tensor([[2., 7.]])

    Reference: El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML
    2018.
    """

    coordinate: int = 0
    factor: float = 1.0

    def __post_init__(self) -> None:
        set_whole(self, "coordinate")
        set_real(self, "factor", "a finite factor", isfinite)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        require(self, d is None or self.coordinate < d, f"a coordinate below d = {d}", self.coordinate)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return None if self.factor else MEAN

    def craft(self, seen: Knowledge) -> Tensor:
        vector = seen.mean.clone()
        vector[self.coordinate] += self.factor
        return vector


@dataclass(frozen=True)
class ROP(Attack):
    """Relocated orthogonal perturbation, against centred clipping with momentum at the workers.

    Clipping about the last aggregate sees lengths only, so the attack starts there and moves across the direction in
    which honest vectors agree.

    u = decay u_prev + (1 - decay) mean;  p = ones minus their projection on u, normalised;
    pi G_prev + (1 - pi) mean + z (cos(angle) u / ||u|| + sin(angle) p)

    Args:
        z: how far to move.
        pi: where to start: 1 at the last aggregate G_prev, 0 at the mean of honest vectors.
        decay: the lambda of u.
        angle: in degrees, from u towards p; at 270, the opposite of p.
        history: what u_prev is: "aggregate", the last aggregate; "own", the u of the step before, as the paper has it,
            which the attack remembers.

    Shape: [h, d] -> f equal rows [f, d], with ``previous`` [d]: the last aggregate, the origin when there is none.
    Cost: one pass for the mean.
    Convention: with history "aggregate" stateless: the last aggregate stands for u_prev, the running mean of what
        honest workers sent, which it is up to what the rule does. u begins at 0. Not certain: the origin and the sense
        of the angle.

    Example:
        >>> import torch
        >>> ROP(z=1.0)(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), f=1, previous=torch.tensor([2.0, 0.0]))
        tensor([[ 2., -1.]])

    Reference: Ozfatura, Ozfatura, Kupcu, Gunduz, "Byzantines Can Also Learn From History: Fall of Centered Clipping in
    Federated Learning", IEEE Transactions on Information Forensics and Security 2024.
    """

    z: float = 1.0
    pi: float = 1.0
    decay: float = 0.9
    angle: float = 270.0
    history: Literal["aggregate", "own"] = "aggregate"

    uses_previous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_real(self, "z", "a finite z", isfinite)
        set_real(self, "pi", "pi in [0, 1]", lambda pi: 0 <= pi <= 1)
        set_real(self, "decay", "decay in [0, 1)", lambda decay: 0 <= decay < 1)
        set_real(self, "angle", "a finite angle", isfinite)
        require(self, self.history in ("aggregate", "own"), 'history "aggregate" or "own"', self.history)

    @property
    def remembers(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  an option says it
        return self.history == "own"

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return MEAN if self.z == 0 and self.pi == 0 else None

    def craft(self, seen: Knowledge) -> Tensor | tuple[Tensor, Memory]:
        mean = seen.mean.double()
        last = torch.zeros_like(mean) if seen.previous is None else seen.previous.double()
        before = last
        if self.remembers:
            before = seen.memory if isinstance(seen.memory, Tensor) else torch.zeros_like(mean)
        u = remembered = torch.add(self.decay * before, mean, alpha=1 - self.decay)
        length = kernels.norms(u)
        u = torch.where(length > 0, u / length, u)
        p = 1 - u * u.sum()
        size = torch.linalg.vector_norm(p)
        # Where u points along the ones nothing is left but rounding.
        p = torch.where(size > 1e-12 * sqrt(p.numel()), p / size, torch.zeros_like(p))
        turned = cos(radians(self.angle)) * u + sin(radians(self.angle)) * p
        vector = (self.pi * last + (1 - self.pi) * mean + self.z * turned).to(seen.honest.dtype)
        return (vector, remembered) if self.remembers else vector


@dataclass(frozen=True)
class Fang(Attack):
    """Directed deviation: against the sign of the honest mean, as far as one given rule lets it.

    target="krum": -lambda sign(mean), for the first lambda, halved from the bound of the paper's Theorem 1, at which
    Krum(f) selects the attack (or that falls under ``threshold``). The bound is, over the n - f - 2 nearest honest
    vectors, min over i of sum ||x_i - x_j|| / ((n - 2f - 1) sqrt(d)) + max over i of ||x_i|| / sqrt(d).
    target="trimmed-mean": just beyond the honest values: where the mean is positive between min / b and min (b min and
    min if min < 0), where it is not between max and b max (max / b if max < 0), each value drawn uniformly.

    Args:
        target: the rule attacked.
        threshold: of lambda, > 0; target "krum" only.
        b: how far beyond, > 1; target "trimmed-mean" only.
        distance: in the bound: "plain", the sum of distances, as the paper's equation 3 and its account of Krum have
            it; "squared", sqrt(sum ||x_i - x_j||^2 / ((n - 2f - 1) d)), which goes with the scores of Krum itself;
            target "krum" only.

    Shape: [h, d] -> [f, d]; equal rows against Krum, f independent ones against the trimmed mean.
    Cost: against Krum one pass for distances, each trial in n x n; against the trimmed mean one pass.
    Convention: for gradients, so the model that the paper starts from is the null vector. The adversary tries Krum(f)
        with the f that it controls, whatever defends, so n >= 2f + 3; copies are equal (the paper's epsilon is 0).
        lambda depends on the bound through halvings only. On a device the trimmed mean's uniform numbers are drawn
        there, and are others than in main memory.

    Example:
        >>> import torch
        >>> Fang(b=2.0, target="trimmed-mean")(torch.tensor([[1.0], [3.0]]), f=1) <= 1.0
        tensor([[True]])

    Reference: Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
    Security 2020.
    """

    target: Literal["krum", "trimmed-mean"] = "krum"
    threshold: float = 1e-5
    b: float = 2.0
    distance: Literal["plain", "squared"] = "plain"

    def __post_init__(self) -> None:
        require(self, self.target in ("krum", "trimmed-mean"), 'target "krum" or "trimmed-mean"', self.target)
        set_real(self, "threshold", "a finite threshold > 0", lambda threshold: 0 < threshold < inf)
        set_real(self, "b", "a finite b > 1", lambda b: 1 < b < inf)
        require(self, self.distance in ("plain", "squared"), 'distance "plain" or "squared"', self.distance)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        least = f"n >= 2f + 3 = {2 * f + 3} vectors, of which f = {f} attack, to try Krum"
        require(self, self.target != "krum" or h + f >= 2 * f + 3, least, h + f)

    def craft(self, seen: Knowledge) -> Tensor:
        return self._past_extremes(seen) if self.target == "trimmed-mean" else self._selected_by_krum(seen)

    def _selected_by_krum(self, seen: Knowledge) -> Tensor:
        (h, d), f = seen.honest.shape, seen.f
        n, unit, seen = h + f, seen.unit, seen.in_unit()
        signs = seen.mean.sign()
        squared, directed = kernels.host(squared_pairs(seen.honest), signs.any())
        between = squared[:h, :h] + np.diag(np.full(h, inf))
        if self.distance == "plain":
            near = sum_of_smallest(np.sqrt(between), n - f - 2).min() / ((n - 2 * f - 1) * sqrt(d))
        else:
            near = sqrt(sum_of_smallest(between, n - f - 2).min() / ((n - 2 * f - 1) * d))
        size = near + sqrt(squared[:h, -1].max() / d)
        if not (isfinite(size) and directed):  # honest vectors that are not finite, or no direction to deviate from
            return -signs
        geometry = Geometry.of(torch.cat([seen.honest, (-size * signs).unsqueeze(0)]))
        rows, scale = np.append(np.arange(h), np.full(f, h)), 1.0
        while True:
            trial = geometry.mix(np.eye(h + 1)[rows] * np.append(np.ones(h), np.full(f, scale))[:, None])
            if Krum(f).weights(trial)[h:].any() or scale * size * unit < self.threshold:
                return signs * (-scale * size * unit)
            scale /= 2

    def _past_extremes(self, seen: Knowledge) -> Tensor:
        least, greatest = seen.honest.amin(0), seen.honest.amax(0)
        positive = seen.mean > 0
        extreme = torch.where(positive, least, greatest)
        end = torch.where((extreme > 0) == positive, extreme / self.b, extreme * self.b)
        share = randomness.uniform(seen.random, (seen.f, extreme.numel()), extreme)
        return extreme + share * (end - extreme)
