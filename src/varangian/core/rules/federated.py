"""Defences of federated learning that filter by signs, cosines or trust.

Their papers test them against particular attacks; none proves (f, kappa)-robustness. Parts of a paper that ours leaves
out or had to settle are named under "Convention".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import floor
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import kernels, numerics
from ..checks import require, set_real, set_whole, whole
from ..claims import BY_NORMS, FINITE, NO_LONGER, Guarantee
from ..geometry import Geometry, in_unit, mean_weights, unit_of
from ..randomness import BARE, Draw
from ..stages import General, Selecting, refuse_faulty

KEPT_WIDTH = 1 << 14  # columns looked at together
KEPT_WIDTH_THERE = 1 << 22  # the same, on a device


@dataclass(frozen=True)
class FLTrust(Selecting):
    """The mean of the vectors scaled to the norm of a trusted one, and weighted by how well they agree with it.

    F = sum of t_i (||g|| / ||x_i||) x_i / sum of t_i,  t_i = max(0, cos(x_i, g)), g the server's own vector

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.

    Shape: [n, d] -> [d], with ``previous`` [d]: the root vector g, which the server computes on data it trusts.
    Tolerates: any f < n, as far as the root vector can be trusted.
    Cost: one pass for norms and for distances to the root vector, one over the trusted rows.
    Convention: where the paper divides by zero (nobody is trusted) the null vector: no step. Without a root vector the
        call is refused. Null vectors and those that are not finite are not trusted. An Algorithm keeps the last
        aggregate, which is no root vector, and refuses this rule.

    Example:
        >>> import torch
        >>> FLTrust(f=1)(torch.tensor([[5.0], [-3.0], [1.0]]), previous=torch.tensor([2.0]))
        tensor([2.])

    Reference: Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021.
    """

    title: ClassVar[str] = "FLTrust"
    uses_previous: ClassVar[bool] = True
    needs_root: ClassVar[bool] = True
    guarantee: ClassVar[Guarantee] = NO_LONGER
    exempt: ClassVar[Mapping[str, str]] = {"TRANSLATION": BY_NORMS}

    @property
    def center(self) -> int:
        return -2

    @property
    def needs(self) -> tuple[str, int]:
        return "f + 1", self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        n, norms, root = geometry.n, np.sqrt(geometry.norms), np.sqrt(geometry.squared[geometry.n, -1])
        scales = np.divide(root, norms, out=np.zeros(n), where=geometry.finite & (norms > 0))
        # Brought to the root's norm, where a distance tells the angle exactly.
        alike = geometry.sharp().mix(scales)
        apart = np.divide(alike.squared[-2, :n], root * root, out=np.full(n, 2.0), where=scales > 0)
        trust = np.maximum(1 - 0.5 * apart, 0)
        trust[trust < numerics.ANGLE] = 0  # rounding of an orthogonal vector
        return np.append(scales * trust / trust.sum() if trust.any() else np.zeros(n), 0)


@dataclass(frozen=True)
class FoolsGold(Selecting):
    """Weighs vectors down for resembling another: Sybils act alike, honest workers do not.

    cs_ij = cos(x_i, x_j);  v_i = max over j of cs_ij;  cs_ij <- cs_ij v_i / v_j where v_j > v_i;
    a_i = 1 - max over j of cs_ij, divided by the greatest;  weight_i = ln(a_i / (1 - a_i)) + 1/2, within [0, 1]

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.

    Shape: [n, d] -> [d].
    Tolerates: Sybils in any number, if honest data differ; a single attacker not at all, nor a vector's size.
    Cost: one pass for n x n distances, one over the rows of positive weight.
    Convention: similarities are those of the vectors at hand; the paper compares the sums of all that each worker has
        sent, which worker momentum stands in for. Weights are normalised to sum 1, where the paper adds the weighted
        vectors up. Where all weights are 0 (all vectors alike) the null vector: F(x, ..., x) = 0. Certain: the formula;
        kept within [0, 1] before the logarithm too, which the paper leaves open.

    Example:
        >>> import torch
        >>> FoolsGold(f=1)(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, -2.0], [-2.0, -2.0]]))
        tensor([0.5000, 0.5000])

    Reference: Fung, Yoon, Beschastnikh, "Mitigating Sybils in Federated Learning Poisoning", 2018.
    """

    title: ClassVar[str] = "FoolsGold"
    guarantee: ClassVar[Guarantee] = FINITE
    exempt: ClassVar[Mapping[str, str]] = {
        "TRANSLATION": BY_NORMS,
        "UNANIMITY": "vectors that are alike are Sybils to it: the answer is null",
        "SIGHT": "does not mind how long a single vector is",
    }

    @property
    def needs(self) -> tuple[str, int]:
        return "f + 1", self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        good = np.flatnonzero(geometry.finite)
        similar = geometry.cosines()[np.ix_(good, good)]
        np.fill_diagonal(similar, -np.inf)
        most = similar.max(1, initial=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            pardon = np.where((most[None, :] > most[:, None]) & (most != 0)[None, :], most[:, None] / most[None, :], 1)
            odd = np.clip(1 - np.where(np.isinf(similar), similar, similar * pardon).max(1, initial=-1), 0, 1)
            odd[odd < numerics.ANGLE] = 0  # rounding of a cosine of 1
            odd = odd / odd.max() if odd.any() else odd
            share = np.clip(np.log(odd) - np.log(1 - odd) + 0.5, 0, 1)
        result = np.zeros(geometry.n)
        result[good] = share / share.sum() if share.any() else 0
        return result


def clip_scales(geometry: Geometry) -> np.ndarray:
    """[n] scales that clip to the median norm of the finite points; 0 for the others."""
    norms = np.sqrt(geometry.norms)
    radius = np.median(norms[geometry.finite])
    return np.divide(radius, norms, out=geometry.finite.astype(float), where=geometry.finite & (norms > radius))


@dataclass(frozen=True)
class ClippedClustering(Selecting):
    """Clips to the median norm, splits the vectors in two clusters by direction, averages the larger.

    y_i = x_i min(1, median norm / ||x_i||);  clusters by average linkage of 1 - cos;  F = mean of the larger's y_i

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances, one over the selected rows.
    Convention: the median is of the norms at hand; the paper takes that of all norms seen so far. Of two equally large
        clusters the one whose mean is shorter. Vectors that are not finite are left out; a null vector is as far from
        all others as an orthogonal one.

    Example:
        >>> import torch
        >>> ClippedClustering(f=1)(torch.tensor([[1.0], [2.0], [3.0], [-2.0]]))
        tensor([1.6667])

    Reference: Li, Ngai, Voigt, "An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated Learning",
    IEEE Transactions on Big Data 2023.
    """

    title: ClassVar[str] = "Clipped clustering"
    guarantee: ClassVar[Guarantee] = NO_LONGER
    exempt: ClassVar[Mapping[str, str]] = {"TRANSLATION": BY_NORMS}

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        order, scales = geometry.by_centrality(), clip_scales(geometry)
        cosines = geometry.cosines()[np.ix_(order, order)]
        np.fill_diagonal(cosines, 1)
        lengths = (scales * np.sqrt(np.where(geometry.finite, geometry.norms, 0)))[order]

        def rank(members: np.ndarray) -> tuple[int, float]:
            """Larger first, then shorter mean."""
            means = lengths[members] / members.size
            return -members.size, float(means @ cosines[np.ix_(members, members)] @ means)

        chosen = order[min(two_clusters(1 - cosines), key=rank)]
        return mean_weights(chosen, geometry.n) * scales


def two_clusters(apart: np.ndarray) -> list[np.ndarray]:
    """Indices of the (at most) two clusters that average linkage leaves; of equally near pairs the first merge."""
    clusters = [np.array([i]) for i in range(apart.shape[0])]
    between, sizes = apart.copy(), np.ones(len(clusters))
    np.fill_diagonal(between, np.inf)
    while len(clusters) > 2:
        a, b = sorted(np.unravel_index(np.argmin(between), between.shape))
        merged = (sizes[a] * between[a] + sizes[b] * between[b]) / (sizes[a] + sizes[b])
        between[a] = between[:, a] = merged
        between[a, a] = np.inf
        between = np.delete(np.delete(between, b, 0), b, 1)
        clusters[a], sizes[a] = np.append(clusters[a], clusters[b]), sizes[a] + sizes[b]
        clusters.pop(int(b))
        sizes = np.delete(sizes, b)
    return clusters


@dataclass(frozen=True)
class FLAME(Selecting):
    """Keeps the first majority that gathers by direction, clips it to the median norm, averages.

    S = the first component of more than n / 2 vectors that single linkage of 1 - cos forms;
    F = mean over S of x_i min(1, median norm / ||x_i||)

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for n x n distances, one over the selected rows.
    Convention: the paper clusters with HDBSCAN of more than n / 2 points a cluster and one sample, whose only cluster
        is this component (fairly certain). The noise that the paper adds at the end against backdoors is left out.
        Vectors that are not finite are left out. Of edges equally long all are added at once.

    Example:
        >>> import torch
        >>> FLAME(f=1)(torch.tensor([[1.0], [2.0], [3.0], [-2.0]]))
        tensor([1.6667])

    Reference: Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022.
    """

    title: ClassVar[str] = "FLAME"
    guarantee: ClassVar[Guarantee] = NO_LONGER
    exempt: ClassVar[Mapping[str, str]] = {"TRANSLATION": BY_NORMS}

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        order = geometry.by_centrality()
        apart = 1 - geometry.cosines()[np.ix_(order, order)]
        admitted = order[first_majority(apart, geometry.n // 2 + 1)]
        return mean_weights(admitted, geometry.n) * clip_scales(geometry)


def first_majority(apart: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first component of at least ``count`` points as edges are added from the shortest up."""
    n = apart.shape[0]
    # Prim: the edges of a minimum spanning tree, which connect what all edges up to a length connect.
    nearest, parent, outside = apart[0].copy(), np.zeros(n, int), np.arange(n) > 0
    edges = []
    for _ in range(n - 1):
        j = int(np.argmin(np.where(outside, nearest, np.inf)))
        edges.append((nearest[j], parent[j], j))
        outside[j] = False
        closer = outside & (apart[j] < nearest)
        nearest[closer], parent[closer] = apart[j, closer], j
    label, length = np.arange(n), -np.inf
    for longer, i, j in sorted(edges, key=lambda edge: edge[0]):
        if longer > length + numerics.ANGLE and np.bincount(label).max() >= count:
            break
        label[label == label[j]], length = label[i], longer
    return np.flatnonzero(label == np.argmax(np.bincount(label)))


@dataclass(frozen=True)
class SignGuard(General):
    """Keeps vectors of usual norm and usual shares of signs, and averages them clipped to the median norm.

    1. lower <= ||x_i|| / median norm <= upper;  2. the largest cluster (mean shift) of the shares of positive, null and
    negative values among sampled coordinates;  F = mean of x_i min(1, median norm / ||x_i||) over those that pass both

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.
        lower: the least norm that passes, in median norms.
        upper: the greatest.
        share: of the coordinates that are looked at, in (0, 1].
        seed: what the sample depends on, beside the seed of the run and the step.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for norms, the sampled columns, one pass over the rows kept.
    Convention: one coordinate at random out of every 1 / share, anew at each step. The sample is a function of
        (seed, step): a bare call is that of step 0, and whoever knows the seed knows where nobody will look. The
        bandwidth of the clustering, which the paper leaves to a library, is the mean distance of a point to its
        floor(n / 2)-th nearest, itself counted. Where nobody passes both filters, those that pass the first. Vectors
        that are not finite are left out. This is the paper's plain variant, without its similarity features.

    Example:
        >>> import torch
        >>> SignGuard(f=1)(torch.tensor([[1.0], [2.0], [2.0], [100.0]]))
        tensor([1.6667])

    Reference: Xu, Huang, Song, Lan, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient
    Filtering", ICDCS 2022.
    """

    lower: float = 0.1
    upper: float = 3.0
    share: float = 0.1
    seed: int = 0

    title: ClassVar[str] = "SignGuard"
    draws: ClassVar[bool] = True
    guarantee: ClassVar[Guarantee] = NO_LONGER
    exempt: ClassVar[Mapping[str, str]] = {"TRANSLATION": BY_NORMS}

    def __post_init__(self) -> None:
        super().__post_init__()
        set_real(self, "lower", "lower in [0, 1]", lambda lower: 0 <= lower <= 1)
        set_real(self, "upper", "upper >= 2", lambda upper: upper >= 2)
        set_real(self, "share", "share in (0, 1]", lambda share: 0 < share <= 1)
        set_whole(self, "seed")

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def coordinates(self, d: int, draw: Draw = BARE) -> np.ndarray:
        """The coordinates whose signs are counted at one step, in order."""
        if self.share == 1:
            return np.arange(d)
        edges = np.linspace(0, d, max(floor(self.share * d), 1) + 1).astype(np.int64)
        return draw.seeded(self.seed).generator("signguard").integers(edges[:-1], edges[1:])

    def combine(self, x: Tensor, previous: Tensor | None, draw: Draw = BARE) -> Tensor:
        n, columns = x.shape[0], self.coordinates(x.shape[1], draw)
        counts = torch.zeros(n, 2, dtype=torch.int64, device=x.device)
        width = KEPT_WIDTH_THERE if kernels.on_device(x) else KEPT_WIDTH
        for start in range(0, columns.size, width):
            panel = x.index_select(1, kernels.there(columns[start : start + width], x))
            counts += torch.stack([(panel > 0).sum(1), (panel < 0).sum(1)], 1)
        norms, signs = kernels.host(kernels.norms(x), counts)
        good = np.flatnonzero(np.isfinite(norms))
        refuse_faulty(self, self.f, n - good.size)
        radius = np.median(norms[good])
        passes = (self.lower * radius <= norms[good]) & (norms[good] / self.upper <= radius)
        shares = signs[good].astype(float) / columns.size
        usual = largest_cluster(np.column_stack([shares, 1 - shares.sum(1)]))

        kept = good[passes & usual] if (passes & usual).any() else good[passes]
        scales = np.divide(radius, norms, out=np.ones(n), where=norms > radius)
        return kernels.weighted_rows(x, mean_weights(kept, n) * scales)


def largest_cluster(points: np.ndarray) -> np.ndarray:
    """[n] whether a point belongs to the largest cluster of mean shift with a flat kernel.

    Each point climbs to the mean of what lies within one bandwidth until it stays; modes are taken by descending number
    of points around them (then by value), those within one bandwidth of a taken one are the same; a point belongs to
    the mode nearest to it. Of equally large clusters the first.
    """
    n = points.shape[0]

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(a[:, None] - b[None]).sum(-1))

    reach = np.sort(distances(points, points), axis=1)[:, max(n // 2, 1) - 1].mean()
    bandwidth = max(reach, numerics.STILL) * (1 + numerics.WITHIN)
    modes = points
    for _ in range(1000):
        near = distances(modes, points) <= bandwidth
        moved = (near @ points) / near.sum(1, keepdims=True)
        if np.abs(moved - modes).max() <= numerics.STILL:
            break
        modes = moved
    crowds = (distances(modes, points) <= bandwidth).sum(1)
    taken: list[np.ndarray] = []
    for _, *mode in sorted({(-int(crowd), *np.round(mode, 9)) for crowd, mode in zip(crowds, modes, strict=True)}):
        if all(np.linalg.norm(np.array(mode) - other) > bandwidth for other in taken):
            taken.append(np.array(mode))
    labels = np.argmin(distances(points, np.stack(taken)), axis=1)
    return labels == np.argmax(np.bincount(labels))


@dataclass(frozen=True)
class LASA(General):
    """Sparsifies each vector, then filters layer by layer by norm and by how pure the signs are.

    1. clip to the median norm;  2. keep the greatest (1 - sparsity) of each vector's values;  3. per layer a vector
    passes when its norm and its sign purity (1 + sum sgn / sum |sgn|) / 2 lie within lambda_norm and lambda_sign
    standard deviations of the median;  F = per layer, the mean of the sparsified vectors that pass

    Args:
        f: Byzantine vectors tolerated; the definition does not depend on it.
        layers: where layers end in the flat vector, ascending; a last layer takes the rest. () is a single layer.
        sparsity: the share of values set to zero, in [0, 1).
        lambda_norm: how far norms may lie, in standard deviations.
        lambda_sign: how far sign purities may lie.

    Shape: [n, d] -> [d].
    Tolerates: f < n / 2.
    Cost: one pass for norms, one that ranks each vector's values, two over the layers.
    Convention: less certain than the others in this file: from memory of the paper, the mean is of sparsified (not
        merely clipped) vectors and the deviation is the population's. Of equal values the first coordinates are kept.
        A layer that nobody passes is null. Vectors that are not finite are left out.

    Example:
        >>> import torch
        >>> LASA(f=1, sparsity=0.0)(torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]]))
        tensor([1., 1.])

    Reference: Xu, Zhang, Hu, "Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified Model
    Aggregation", WACV 2025.
    """

    layers: tuple[int, ...] = ()
    sparsity: float = 0.3
    lambda_norm: float = 2.0
    lambda_sign: float = 1.0

    title: ClassVar[str] = "LASA"
    guarantee: ClassVar[Guarantee] = NO_LONGER
    exempt: ClassVar[Mapping[str, str]] = {"TRANSLATION": BY_NORMS, "UNANIMITY": "sparsifies what it averages"}

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = isinstance(self.layers, (tuple, list))
        require(self, listed, "layers as a tuple of the places where they end", self.layers)
        object.__setattr__(self, "layers", tuple(whole(self, "end of a layer", end, least=1) for end in self.layers))
        ascending = all(a < b for a, b in pairwise(self.layers))
        require(self, ascending, "layers that end at ascending places", self.layers)
        set_real(self, "sparsity", "sparsity in [0, 1)", lambda sparsity: 0 <= sparsity < 1)
        set_real(self, "lambda_norm", "lambda_norm > 0", lambda bound: bound > 0)
        set_real(self, "lambda_sign", "lambda_sign > 0", lambda bound: bound > 0)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        n, d = x.shape
        require(self, max(self.layers, default=0) < d, f"layers within d = {d}", self.layers)
        dropped, ends, kept, sums = floor(self.sparsity * d), (0, *self.layers, d), None, None
        if kernels.on_device(x):  # asked of all rows at once, before anybody knows which are finite
            kept = kernels.kept_of(x, np.arange(n), dropped)
            norms, sums = kernels.host(kernels.norms(x), kernels.kept_sums(x, kept, ends))
        else:
            norms = kernels.host(kernels.norms(x))
        good = np.flatnonzero(np.isfinite(norms))
        refuse_faulty(self, self.f, n - good.size)
        with np.errstate(over="ignore", under="ignore"):
            unit = unit_of(x, np.square(norms))
        if unit is not None:
            return self.combine(in_unit(x, unit), previous) * unit
        radius = np.median(norms[good])
        scales = np.divide(radius, norms[good], out=np.ones(good.size), where=norms[good] > radius)
        if kept is None or sums is None:
            kept = kernels.kept_of(x, good, dropped)
            squares, signs, counts = kernels.host(kernels.kept_sums(x, kept, ends))
        else:
            chosen = kernels.there(good, x)
            kept = kernels.Kept(good, kept.least.index_select(0, chosen), kept.cuts.index_select(0, chosen))
            squares, signs, counts = sums[:, :, good]
        lengths, purities = scales * np.sqrt(squares), 0.5 * (1 + signs / np.maximum(counts, 1))
        within = 1 + numerics.TIE  # a value exactly at the bound passes, whatever rounding makes of it
        passing = (_oddness(lengths) <= self.lambda_norm * within) & (_oddness(purities) <= self.lambda_sign * within)

        weights = passing * scales / np.maximum(passing.sum(1, keepdims=True), 1)
        return kernels.kept_mean(x, kept, weights, ends)


def _oddness(values: np.ndarray) -> np.ndarray:
    """How far from the median of its row a value lies, in standard deviations."""
    ordered = np.sort(values, axis=1)  # so that what rounding does follows the vectors when they are permuted
    spread = ordered.std(1, keepdims=True)
    return np.abs(values - np.median(ordered, axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
