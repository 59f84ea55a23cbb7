"""Rules that look at the directions along which the vectors vary most."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, floor, inf
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..checks import require, set_real, set_whole
from ..claims import FINITE, Guarantee
from ..geometry import Geometry, in_unit, mean_weights, unit_of
from ..randomness import BARE, Draw
from ..stages import General, Selecting, refuse_faulty
from .central import ranked, unplaced
from .search import least_top_eigenvalue
from .selecting import subset_weights

ROUNDS = 1000  # of CAF; n are enough where each takes a vector's weight
SUBSETS = 2_000_000  # the most that SMEA looks at: some seconds


@dataclass(frozen=True)
class SMEA(Selecting):
    """The mean of the n - f vectors whose covariance has the least top eigenvalue ("smallest maximum eigenvalue").

    F = mean of S, the subset of n - f vectors with the least top eigenvalue of the covariance of S

    Args:
        f: Byzantine vectors tolerated.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances, one over the selected rows, and an exact search between them that is exponential
        in f: more than two million subsets are refused, not approximated.
    Convention: of several subsets with the same eigenvalue, the one of lexicographically least mean.

    Example:
        >>> import torch
        >>> SMEA(f=1)(torch.tensor([[0.0], [4.0], [5.0], [6.0]]))
        tensor([5.])

    Reference: Allouah, Guerraoui, Gupta, Pinot, Stephan, "On the Privacy-Robustness-Utility Trilemma in Distributed
    Learning", ICML 2023.
    """

    title: ClassVar[str] = "SMEA"

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        geometry = geometry.sharp()
        order, size = geometry.by_centrality(), geometry.n - self.f
        subsets = comb(order.size, size)
        require(self, subsets <= SUBSETS, f"at most {SUBSETS:,} subsets of n - f = {size} vectors to look at", subsets)
        squared = geometry.distances[np.ix_(order, order)]
        inner = 0.5 * (squared[:, :1] + squared[:1] - squared)
        return subset_weights(geometry, order, least_top_eigenvalue(inner, size))


@dataclass(frozen=True)
class CAF(Selecting):
    """Filters by weight along the direction of greatest variance, and keeps the mean where the variance was least.

    c = 1; while sum c > n - 2f:  mean and covariance weighted by c, its top eigenvector v;
    tau_i = <v, x_i - mean>^2;  c_i <- c_i (1 - tau_i / tau_max);  F = the mean whose top eigenvalue was least

    Args:
        f: Byzantine vectors tolerated; f = 0 is the average.
        largest: tau_max is the greatest tau of the vectors that have weight ("weighted"), or of all ("all").

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances, one over the rows left; a singular value decomposition in n x n a round, of
        which there are n at most; one pass more where some vectors are far from the others.
    Convention: as a filter is usually written, tau_max is over the vectors of positive weight, so that each round takes
        the weight of one vector at least. Libraries take it over all: a vector that has lost its weight and is far away
        then keeps the others' from falling, and the answer is the best of what was seen until no weight changes any
        more, or for 1,000 rounds. Vectors that are not finite have weight zero throughout.

    Example:
        >>> import torch
        >>> CAF(f=1)(torch.tensor([[0.0], [1.0], [2.0], [1e30]]))
        tensor([1.])

    Reference: Allouah, Guerraoui, Stephan, "Towards Trustworthy Federated Learning with Untrusted Participants" (the
    covariance bound-agnostic filter), ICML 2025.
    """

    largest: Literal["weighted", "all"] = "weighted"

    title: ClassVar[str] = "CAF"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.largest in ("weighted", "all"), 'largest "weighted" or "all"', self.largest)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        n, good = geometry.n, np.flatnonzero(geometry.finite)
        geometry = geometry.sharp()
        x, c = geometry.positions()[good], np.ones(good.size)
        answer, least = c / c.size, np.inf
        for _ in range(ROUNDS):
            if not c.sum() > n - 2 * self.f:
                break
            shares = c / c.sum()
            centred = x - shares @ x
            used = c > 0
            values, axes = np.linalg.svd(np.sqrt(shares[used, None]) * centred[used], full_matrices=False)[1:]
            if values[0] < least:
                least, answer = values[0], shares
            tau = np.square(centred @ axes[0])
            most = tau[used].max() if self.largest == "weighted" else tau.max()
            before = c
            c = c * np.clip(1 - tau / most, 0, None) if most > 0 else c
            if (c == before).all():
                break
        result = np.zeros(n)
        result[good] = answer
        return result


@dataclass(frozen=True)
class DivideAndConquer(General):
    """Drops, on samples of coordinates, the vectors that stick out most along the main direction of variation ("DnC").

    ``rounds`` times: sample coordinates, centre, take the top right singular vector v, drop the floor(c f) vectors of
    greatest <v, x_i>^2;  F = mean of the vectors kept in all rounds

    Args:
        f: Byzantine vectors tolerated.
        rounds: how many samples.
        c: how many to drop a round, in units of f, > 0.
        sample: coordinates in a sample; all where there are no more.
        seed: what the samples depend on, beside the seed of the run and the step.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2, of vectors that stick out alike. The definition drops floor(c f) a round by one direction: of
        attackers of very different huge sizes the greatest sets the mean and the direction, and others may survive all
        rounds.
    Cost: one pass for norms (who is finite), the sampled columns, one pass over the rows kept; a device is waited for
        once.
    Convention: samples are drawn anew at each step, as a function of (seed, step): a bare call is that of step 0, and
        whoever knows the seed knows in which coordinates nobody will look. Vectors that are not finite are dropped
        first. Where no vector is kept in all rounds, which the paper leaves open, those kept in most. Ties go to the
        lexicographically smaller vector.

    Example:
        >>> import torch
        >>> DivideAndConquer(f=1)(torch.tensor([[0.0], [1.0], [2.0], [100.0]]))
        tensor([1.])

    Reference: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
    Federated Learning", NDSS 2021.
    """

    rounds: int = 5
    c: float = 1.0
    sample: int = 10_000
    seed: int = 0

    title: ClassVar[str] = "DnC"
    draws: ClassVar[bool] = True
    guarantee: ClassVar[Guarantee] = FINITE

    def __post_init__(self) -> None:
        super().__post_init__()
        set_whole(self, "rounds", least=1)
        set_real(self, "c", "a finite c > 0", lambda c: 0 < c < inf)
        set_whole(self, "sample", least=1)
        set_whole(self, "seed")

    @property
    def needs(self) -> tuple[str, int]:
        least, dropped = 2 * self.f + 1, max(floor(self.c * self.f), self.f) + 1
        return ("2f + 1", least) if dropped <= least else ("c f + 1", dropped)

    def coordinates(self, d: int, round_: int, draw: Draw = BARE) -> np.ndarray:
        """The coordinates that a round of one step looks at, in order."""
        if d <= self.sample:
            return np.arange(d)
        chosen = draw.seeded(self.seed).generator("dnc", round_).choice(d, self.sample, replace=False, shuffle=False)
        return np.sort(chosen)

    def combine(self, x: Tensor, previous: Tensor | None, draw: Draw = BARE) -> Tensor:
        n, squared = x.shape[0], kernels.squared_norms(x)
        # In order of norm, so that what rounding does follows the vectors when they are permuted.
        if kernels.on_device(x):
            known = squared.isfinite()
            rows = torch.where(known, squared, inf).argsort(stable=True)
            norms, products = kernels.host(squared, self._products(x, rows, known, draw))
            order = np.argsort(np.where(np.isfinite(norms), norms, inf), kind="stable")[: np.isfinite(norms).sum()]
        else:
            norms, products = kernels.host(squared), None
            order = ranked(x, norms)
        if (unit := unit_of(x, norms)) is not None:
            return self.combine(in_unit(x, unit), previous, draw) * unit
        refuse_faulty(self, self.f, n - order.size)
        if products is None:
            products = kernels.host(self._products(x, kernels.there(order, x), None, draw))
        times_kept, points = np.zeros(n, int), unplaced(x, np.isfinite(norms))
        for inner in torch.from_numpy(products)[:, : order.size, : order.size]:
            axis = torch.linalg.eigh(inner).eigenvectors[:, -1]
            along = inner @ axis
            scores = np.full(n, np.inf)
            scores[order] = (along / (axis @ along).clamp_min(torch.finfo(torch.float64).tiny).sqrt()).square().numpy()
            times_kept[points.smallest(scores, order.size)[: n - floor(self.c * self.f)]] += 1
        return kernels.weighted_rows(x, mean_weights(np.flatnonzero(times_kept == times_kept.max()), n))

    def _products(self, x: Tensor, rows: Tensor, known: Tensor | None, draw: Draw) -> Tensor:
        """[rounds, k, k] inner products of k rows, centred, on the sample of each round; of all coordinates once.

        On a device, where nobody has looked yet which rows are finite, ``known`` [n] tells, and the others are null.
        """
        d, found = x.shape[1], []
        for round_ in range(self.rounds if d > self.sample else 1):
            part = x if d <= self.sample else x.index_select(1, kernels.there(self.coordinates(d, round_, draw), x))
            part = part.index_select(0, rows).double()
            if known is None:
                centred = part - part.mean(0)
            else:
                finite = known.index_select(0, rows).unsqueeze(1)
                part = torch.where(finite, part, 0)
                centred = torch.where(finite, part - part.sum(0) / known.sum(), 0)
            found.append(centred @ centred.T)
        return torch.stack(found)
