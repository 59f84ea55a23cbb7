"""Pre-aggregation: what the server does to the vectors before the rule sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import numerics
from .checks import UNSAID, set_real, set_whole
from .claims import BY_NORMS, FINITE, NO_LONGER, Guarantee
from .geometry import Geometry, mean_weights
from .randomness import BARE, Draw
from .stages import Mixing, refuse_faulty


@dataclass(frozen=True)
class NearestNeighborMixing(Mixing):
    """Each vector becomes the mean of the n - f vectors nearest to it, itself included.

    y_i = mean of x_j over the n - f least ||x_i - x_j||

    Args:
        f: Byzantine vectors tolerated, >= 0.

    Shape: [n, d] -> [n, d].
    Tolerates: f < n / 2; improves the bound of any rule for small f / n only, though it helps in practice.
    Cost: one pass for n x n distances, one that applies n x n weights; nothing more in front of a selecting rule.
    Convention: of two vectors equally near, the lexicographically smaller.

    Example:
        >>> import torch
        >>> NearestNeighborMixing(f=1)(torch.tensor([[0.0], [1.0], [5.0]])).flatten()
        tensor([0.5000, 0.5000, 3.0000])

    Reference: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal
    Byzantine ML under Heterogeneity", AISTATS 2023.
    """

    f: int = UNSAID

    aligned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_whole(self, "f")

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        refuse_faulty(self, self.f, geometry.faulty)
        n = geometry.n
        count, finite = n - self.f, geometry.finite
        if not geometry.exact and count < n:
            ordered = np.sort(geometry.distances, axis=1)
            near = finite & (ordered[:, count] <= ordered[:, count - 1] * (1 + 4 * numerics.ROUNDING))
            unsure = [i for i in np.flatnonzero(near) if geometry.unsure(geometry.distances[i], [count]).size]
            geometry = geometry.sharpened(np.array(unsure)) if unsure else geometry
        ordered = np.sort(geometry.distances, axis=1)
        last, next_ = ordered[:, count - 1], ordered[:, min(count, n - 1)]
        table = np.where(finite[:, None], (geometry.distances <= last[:, None]) / count, np.eye(n))
        if count < n:
            for i in np.flatnonzero(finite & (next_ <= last * (1 + numerics.TIE))):
                table[i] = mean_weights(geometry.smallest(geometry.distances[i], count), n)
        return table


@dataclass(frozen=True)
class Bucketing(Mixing):
    """The means of random groups of s vectors.

    y_b = mean of the vectors in bucket b of ceil(n / s); the last bucket may be smaller

    Args:
        s: vectors in a bucket, >= 1; 1 leaves the vectors as they are, in another order.
        seed: what the shuffle depends on, beside the seed of the run and the step.

    Shape: [n, d] -> [ceil(n / s), d].
    Tolerates: nothing by itself: f Byzantine vectors spoil up to f buckets, which the rule behind must tolerate.
    Cost: one pass for n x n distances, one over all rows; nothing more in front of a selecting rule.
    Convention: the vectors are put in order of norm (ties by value), then shuffled, anew at each step; so the buckets
        do not depend on the order in which vectors came. The shuffle is a function of (seed, step): a bare call is that
        of step 0, and whoever knows the seed knows who will share a bucket with whom.

    Example:
        >>> import torch
        >>> Bucketing(s=2)(torch.tensor([[1.0], [2.0], [3.0]])).shape
        torch.Size([2, 1])

    Reference: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022.
    """

    s: int = 2
    seed: int = 0

    draws: ClassVar[bool] = True
    norms_only: ClassVar[bool] = True
    guarantee: ClassVar[Guarantee] = FINITE
    exempt: ClassVar[Mapping[str, str]] = {"TRANSLATION": "shuffles by norms"}

    def __post_init__(self) -> None:
        set_whole(self, "s", least=1)
        set_whole(self, "seed")

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def rows(self, n: int) -> int:
        return -(-n // self.s)

    def rows_for(self, m: int) -> int:
        return (m - 1) * self.s + 1

    def weights(self, geometry: Geometry, draw: Draw = BARE) -> np.ndarray:
        n = geometry.n
        order = draw.seeded(self.seed).generator("bucketing").permutation(n)
        shuffled = geometry.smallest(geometry.norms, n)[order]
        table = np.zeros((self.rows(n), n))
        for bucket, first in enumerate(range(0, n, self.s)):
            members = shuffled[first : first + self.s]
            table[bucket, members] = 1 / members.size
        return table


@dataclass(frozen=True)
class AdaptiveClipping(Mixing):
    """The longest vectors are shortened to the norm of the longest of the others ("ARC").

    k = floor(2 f / n (n - f)) vectors of greatest norm are clipped to the (k + 1)-th greatest norm

    Args:
        f: Byzantine vectors tolerated, >= 0.

    Shape: [n, d] -> [n, d].
    Tolerates: f < n / 2; adds at most 2f / (n - 2f) to the robustness coefficient of the rule behind.
    Cost: one pass for norms, one that applies n scales; nothing more in front of a selecting rule, unless vectors are
        shortened so much that their distances must be measured again.
    Convention: vectors that are not finite count as the longest, and stay as they are.

    Example:
        >>> import torch
        >>> AdaptiveClipping(f=1)(torch.tensor([[1.0], [2.0], [-1e30]])).flatten()
        tensor([ 1.,  2., -2.])

    Reference: Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "Adaptive Gradient Clipping for Robust Federated
    Learning", ICLR 2025.
    """

    f: int = UNSAID

    aligned: ClassVar[bool] = True
    norms_only: ClassVar[bool] = True
    scales: ClassVar[bool] = True
    guarantee: ClassVar[Guarantee] = NO_LONGER
    exempt: ClassVar[Mapping[str, str]] = {"TRANSLATION": BY_NORMS}

    def __post_init__(self) -> None:
        set_whole(self, "f")

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        refuse_faulty(self, self.f, geometry.faulty)
        n = geometry.n
        clipped = 2 * self.f * (n - self.f) // n  # in integers: no rounding of f / n decides
        return _clip(geometry, np.sqrt(np.sort(geometry.norms)[n - 1 - clipped]))


@dataclass(frozen=True)
class StaticClipping(Mixing):
    """Every vector longer than c is shortened to norm c.

    y_i = x_i min(1, c / ||x_i||)

    Args:
        c: the greatest norm allowed, > 0.

    Shape: [n, d] -> [n, d].
    Tolerates: nothing by itself. Whatever c, the rule behind is no longer (f, kappa)-robust, as where all honest
        vectors are one vector longer than c: AdaptiveClipping keeps that property.
    Cost: as AdaptiveClipping.
    Convention: vectors that are not finite stay as they are.

    Example:
        >>> import torch
        >>> StaticClipping(2.0)(torch.tensor([[1.0], [-4.0]])).flatten()
        tensor([ 1., -2.])

    Reference: Allouah et al., ICLR 2025, which shows what it breaks.
    """

    c: float = 1.0

    aligned: ClassVar[bool] = True
    norms_only: ClassVar[bool] = True
    scales: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    guarantee: ClassVar[Guarantee] = FINITE
    exempt: ClassVar[Mapping[str, str]] = {
        "TRANSLATION": BY_NORMS,
        "SCALE": "c is a length",
        "UNANIMITY": "shortens long vectors even where they agree",
    }

    def __post_init__(self) -> None:
        set_real(self, "c", "c > 0", lambda c: c > 0)

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        return _clip(geometry, self.c / geometry.unit)


def _clip(geometry: Geometry, radius: float) -> np.ndarray:
    """[n] scales that bring every finite point within a radius of the origin."""
    norms = np.sqrt(geometry.norms)
    return np.divide(radius, norms, out=np.ones_like(norms), where=geometry.finite & (norms > radius))


MIXINGS: dict[str, type[Mixing]] = {
    "nnm": NearestNeighborMixing,
    "bucketing": Bucketing,
    "arc": AdaptiveClipping,
    "clipping": StaticClipping,
}
