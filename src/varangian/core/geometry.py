"""What a selecting rule sees: squared distances between the vectors and the origin, n x n numbers in float64.

Every selecting rule and every mixing answers an affine combination of the n vectors: weights, the rest being at the
origin. So rules compose on n x n numbers: one pass over [n, d] to get the distances, one to apply the final weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import kernels, numerics
from .kernels.runtime import jit

ANEW_WIDTH = 8192  # columns at a time where distances are measured anew
FIRST_WIDTH = 1024  # columns of a device's vectors that are compared first: few agree in more
PAIRS = 1 << 23  # numbers at a time, where pairs of vectors are compared on a device

Ties = Literal["value", "position"]
"""Who wins among equals: the lexicographically smaller vector, or the one that stands first."""


class Vectors(ABC):
    """The N vectors and e extra ones that points are made of, wherever they are: what distances alone do not tell.

    Attributes:
        unit: the length that counts as 1, in distances and in what is told here (see :func:`unit_of`).
        remote: whether whoever asks waits for a device: then little is asked, and all of it at once.
    """

    unit: float = 1.0
    remote: bool = False

    @property
    @abstractmethod
    def d(self) -> int:
        """How many coordinates they have."""

    @property
    @abstractmethod
    def e(self) -> int:
        """How many extra ones there are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Their numbers' type."""

    @abstractmethod
    def columns(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Some columns of the vectors, [N, stop - start], and of the extra ones, [e, stop - start] or None."""

    @abstractmethod
    def measured(self, table: np.ndarray, extra: bool) -> np.ndarray:
        """Squared distances, in float64, between the mixtures table @ vectors (and the extra ones) and the origin."""

    @abstractmethod
    def around(self, weights: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        """[2, N], in float64: squared norms of the scaled vectors, and their squared distances to one mixture, of
        weights [N+e] of vectors and extra ones as they are."""

    def places(self, rows: np.ndarray, table: np.ndarray | None, apart: np.ndarray) -> np.ndarray:
        """[k] the places of some points, from 0, in lexicographic order of their values; equal points share one.

        Args:
            rows: the indices of k vectors; not looked at where there is a table.
            table: [k, N+e] the points as mixtures. Sums in another order differ by rounding, which tells nobody apart.
            apart: [k, k] whether two of them may differ.
        """
        ranks = np.zeros(rows.size, int)
        start, d = 0, self.d
        while start < d and ranks.max() + 1 < rows.size:
            # A few columns tell vectors apart, unless they are equal.
            stop = min(2 * start + 256, start + 8 * ANEW_WIDTH, d)
            panel, extra = self.columns(start, stop)
            slack = None
            if table is None:
                block = panel.index_select(0, kernels.there(rows, panel))
            else:
                block = kernels.weighted_panel(panel, table, extra, start=0, stop=stop - start)
                every = (panel if extra is None else torch.cat([panel, extra])).double().abs()
                sizes = kernels.host(torch.where(every.isfinite(), every, 0))
                slack = numerics.AGREED * (np.abs(table) @ sizes)
            ranks = _refined(ranks, kernels.host(block if block.dtype == torch.float32 else block.double()), slack)
            start = stop
        return ranks


@dataclass(frozen=True, eq=False)
class Held(Vectors):
    """Vectors that are here: [N, d], and [e, d] extra ones or None."""

    x: Tensor
    extra: Tensor | None = None
    unit: float = 1.0

    @property
    def d(self) -> int:
        return self.x.shape[1]

    @property
    def e(self) -> int:
        return 0 if self.extra is None else self.extra.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def columns(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        return self.x[:, start:stop], None if self.extra is None else self.extra[:, start:stop]

    def measured(self, table: np.ndarray, extra: bool) -> np.ndarray:
        """From the mixtures themselves: one pass."""
        return kernels.host(kernels.mixed_distances(self.x, table, self.extra, others=extra))

    def around(self, weights: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        """In one pass."""
        return kernels.host(kernels.squared_around(self.x, weights, self.extra, scales))

    @property
    def remote(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return kernels.on_device(self.x)

    def places(self, rows: np.ndarray, table: np.ndarray | None, apart: np.ndarray) -> np.ndarray:
        """On a device all pairs are compared there: k x k signs come over, once, or twice where many columns agree."""
        if not self.remote:
            return super().places(rows, table, apart)
        few = min(self.d, FIRST_WIDTH)
        signs = kernels.host(self._compared(rows, table, 0, few))
        if few < self.d and (apart & (signs == 0)).any():
            signs = np.where(signs == 0, kernels.host(self._compared(rows, table, few, self.d)), signs)
        return (signs > 0).sum(1)  # how many come before

    def _compared(self, rows: np.ndarray, table: np.ndarray | None, first: int, last: int) -> Tensor:
        """[k, k] the sign of the first difference of each pair in some columns, 0 where there is none."""
        width = max(1, PAIRS // rows.size**2)
        result = torch.zeros(rows.size, rows.size, dtype=torch.float64, device=self.x.device)
        for start in range(first, last, width):
            stop = min(start + width, last)
            panel, extra = self.columns(start, stop)
            slack: Tensor | float = 0.0
            if table is None:
                block = panel.index_select(0, kernels.there(rows, panel)).double()
            else:
                block = kernels.weighted_panel(panel, table, extra, start=0, stop=stop - start)
                every = (panel if extra is None else torch.cat([panel, extra])).double().abs()
                sizes = kernels.there(np.abs(table), panel) @ torch.where(every.isfinite(), every, 0)
                slack = numerics.AGREED * torch.maximum(sizes.unsqueeze(1), sizes.unsqueeze(0))
            apart = block.unsqueeze(1) - block.unsqueeze(0)
            differ = apart.abs() > slack
            places = torch.arange(stop - start, device=panel.device)
            place = torch.where(differ, places, stop - start - 1).amin(2, keepdim=True)
            sign = torch.where(differ, apart.sign(), 0).gather(2, place).squeeze(2)
            result = torch.where(result == 0, sign, result)
        return result


@dataclass(frozen=True, eq=False)
class Geometry:
    """n points (vectors, or mixtures of vectors), perhaps the last aggregate, and the origin.

    Attributes:
        squared: [n+e+1, n+e+1] squared distances, in float64; the origin comes last, before it the e extra points.
            NaN where nobody measured them, since nobody looks at them: known are then norms, and at most the distances
            to one point.
        finite: [n] whether a point is finite; the distances of one that is not are infinite.
        vectors: what the points are made of: N vectors and e extra ones (the last aggregate, for rules that use it).
        table: [n, N+e] the points as weights over the vectors and the extra ones; None when they are the vectors.
        exact: whether what was measured was added up in float64: else it is right to float32's rounding.
        shares: [n] what each point counts, in equal shares; None where all count the same. Those of mixtures are their
            own: a mixing asks for none.
    """

    squared: np.ndarray
    finite: np.ndarray
    vectors: Vectors
    table: np.ndarray | None
    exact: bool = False
    shares: np.ndarray | None = None

    @classmethod
    def of(cls, x: Tensor, extra: Tensor | None = None) -> Geometry:
        """The geometry of the rows of [n, d]; one pass over the data."""
        return cls.seen(x, extra, squared_between)[0]

    @classmethod
    def seen(
        cls, x: Tensor, extra: Tensor | None, measure: Callable[[Tensor, Tensor | None], np.ndarray]
    ) -> tuple[Geometry, Held]:
        """The geometry of vectors whose squared distances a function measures, and the vectors as they were measured:
        as they are, or in double precision in another unit, where squares would leave its range."""
        squared, unit = measure(x, extra), 1.0
        fitting = unit_of(x, squared[-1, : x.shape[0]])
        if fitting is not None:
            x, extra, unit = in_unit(x, fitting), None if extra is None else in_unit(extra, fitting), fitting
            squared = measure(x, extra)
        held = Held(x, extra, unit)
        return cls.measured_as(squared, held), held

    @classmethod
    def measured_as(cls, squared: np.ndarray, vectors: Vectors) -> Geometry:
        """The geometry of vectors whose squared distances, [N+e+1, N+e+1], somebody measured; they are written to.

        Those of long vectors are the sums of those of their pieces.
        """
        finite = np.isfinite(squared[-1])
        squared[~finite] = squared[:, ~finite] = np.inf
        np.fill_diagonal(squared, 0)
        found = cls(squared, finite[: squared.shape[0] - vectors.e - 1], vectors, None)
        wide = vectors.dtype == torch.float64 or (isinstance(vectors, Held) and measured_wide(vectors.x))
        return replace(found, exact=wide or found.center is not None)

    @property
    def unit(self) -> float:
        """The length that counts as 1: for rules that compare distances with a length of their own."""
        return self.vectors.unit

    @property
    def n(self) -> int:
        """How many points there are, extra ones and the origin not counted."""
        return self.finite.size

    @property
    def distances(self) -> np.ndarray:
        """[n, n] squared distances between the points."""
        return self.squared[: self.n, : self.n]

    @property
    def norms(self) -> np.ndarray:
        """[n] squared norms."""
        return self.squared[: self.n, -1]

    @cached_property
    def usual(self) -> np.ndarray:
        """Of each finite point the median squared distance to them all."""
        return upper_medians(self.distances if self.finite.all() else self.distances[np.ix_(self.finite, self.finite)])

    @property
    def faulty(self) -> int:
        """How many points are not finite."""
        return self.n - int(self.finite.sum())

    @cached_property
    def center(self) -> int | None:
        """The one point from which distances are known, as an index of ``squared`` (-1: norms alone are); None where
        those of all pairs are."""
        points = np.append(self.finite, np.ones(self.squared.shape[0] - self.n, bool))
        looked_at = points.copy()
        looked_at[self.n : -1] = False  # from a vector to the extra ones nobody measures
        known = ~np.isnan(self.squared[:, looked_at][points]).any(1)
        if known.all():
            return None
        centers = np.flatnonzero(points)[known] - points.size
        return int(centers[0])

    @property
    def scales(self) -> np.ndarray | None:
        """[n] by how much each vector was scaled to become a point; None where points are made of several."""
        if self.table is None:
            return np.ones(self.n)
        square = self.table[:, : self.n]
        diagonal = np.diag(square)
        alone = self.table.shape == (self.n, self.n + self.vectors.e) and not (self.table[:, self.n :]).any()
        return diagonal if alone and np.count_nonzero(square) == np.count_nonzero(diagonal) else None

    def among(self, places: np.ndarray, n: int) -> Geometry:
        """The same of n points, of which nothing is known of those at other places: they are as if not finite, and
        count nothing."""
        m = self.n
        every = np.append(places, n + np.arange(self.squared.shape[0] - m))
        size = n + self.squared.shape[0] - m
        squared = np.full((size, size), np.inf)
        squared[np.ix_(every, every)] = self.squared
        np.fill_diagonal(squared, 0)
        through = self.through(np.eye(m))
        finite, shares, made = np.zeros(n, bool), np.zeros(n), np.zeros((n, through.shape[1]))
        finite[places], made[places] = self.finite, through
        shares[places] = 1.0 if self.shares is None else self.shares
        return replace(self, squared=squared, finite=finite, table=made, shares=shares)

    def only(self, places: np.ndarray) -> Geometry:
        """The same of some of the points: what :meth:`among` was made of."""
        every = np.append(places, np.arange(self.n, self.squared.shape[0]))
        made = self.through(np.eye(self.n))[places]
        shares = None if self.shares is None or (self.shares[places] == 1).all() else self.shares[places]
        squared, finite = self.squared[np.ix_(every, every)], self.finite[places]
        return replace(self, squared=squared, finite=finite, table=made, shares=shares)

    def mix(self, weights: np.ndarray, anew: bool = False, seen: bool = True) -> Geometry:
        """The geometry of mixtures: weights [m, n], or [n] scales of each point.

        Distances are derived from those that are known, unless rounding could spoil them (a vector of 1e30 clipped to
        size 1, say) or ``anew`` asks for it: then one more pass over the data measures them, in float64. Where nobody
        looks at them any more (``seen`` is False), they are unknown.
        """
        scaling = weights.ndim == 1
        matrix = np.diag(weights) if scaling else weights
        table = self.through(matrix)
        finite = ~(matrix[:, ~self.finite] != 0).any(1)
        if not seen:
            unknown = np.full((table.shape[0] + self.squared.shape[0] - self.n,) * 2, np.nan)
            return Geometry(unknown, finite, self.vectors, table)
        if self.center is not None and scaling and not anew:
            return self._scaled_around(weights, finite, table)
        if self.center is not None:
            anew = True
        squared, terms = _scaled(self._known, weights) if scaling else self._mixed(weights)
        anew = anew or self._blurred(squared, terms, finite, scaling)
        if anew:
            squared = self.vectors.measured(np.where(finite[:, None], table, 0), self.squared.shape[0] > self.n + 1)
            squared = 0.5 * (squared + squared.T)  # exactly symmetric, as sums of panels are not
            np.fill_diagonal(squared, 0)
        if not scaling:
            squared = _alike(squared, table)
        if not finite.all():
            faulty = np.append(~finite, np.zeros(squared.shape[0] - finite.size, bool))
            squared[faulty] = squared[:, faulty] = np.inf
            np.fill_diagonal(squared, 0)
        return Geometry(squared, finite, self.vectors, table, self.exact or anew)

    def _scaled_around(self, scales: np.ndarray, finite: np.ndarray, table: np.ndarray) -> Geometry:
        """:meth:`mix` of scales, where only norms and distances to one point are known: afterwards too."""
        center, n, before = self.center, self.n, self.scales
        assert center is not None
        squared, terms = _scaled(np.where(np.isinf(self.squared), 0, self.squared), scales)
        known = squared[:n, center]
        usual = np.median(known[finite]) if finite.any() else 0.0
        cancelled = terms[:n, center] > numerics.CANCELLED * np.maximum(known, usual)  # digits were lost
        if center != -1 and cancelled[finite].any():
            assert before is not None
            whole = np.append(before * scales, np.ones(self.vectors.e))
            point = np.where(np.arange(whole.size) == center % (whole.size + 1), whole, 0)
            squared[:n, center] = squared[center, :n] = self.vectors.around(point, before * scales)[1]
        faulty = np.append(~finite, np.zeros(squared.shape[0] - n, bool))
        squared[faulty] = squared[:, faulty] = np.inf
        np.fill_diagonal(squared, 0)
        return Geometry(squared, finite, self.vectors, table, True)

    @property
    def _known(self) -> np.ndarray:
        """The squared distances, 0 where they are not finite: such points have no weight in any mixture."""
        known = np.isfinite(self.squared)
        return np.ascontiguousarray(self.squared if known.all() else np.where(known, self.squared, 0))

    def _mixed(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances between affine combinations a, b of points, and the size of the terms that were added.

        ||a - b||^2 = a D b - (a D a + b D b) / 2
        """
        known, combined, signed = self._known, *_over_all(weights, self.squared.shape[0], numerics.NOTHING)
        product = combined @ known @ combined.T
        if not signed:
            return _distances(product, product)
        sizes = np.abs(combined)
        return _distances(product, sizes @ known @ sizes.T)

    def _blurred(self, squared: np.ndarray, terms: np.ndarray, finite: np.ndarray, scaling: bool) -> bool:
        """Whether a derived distance may be wrong by an amount that matters, given the size of the terms it sums.

        It matters beside a usual distance, unless both its ends are far from most points anyway.
        """
        if not finite.any():
            return False
        if not finite.all():
            good = np.append(finite, np.ones(squared.shape[0] - finite.size, bool))
            squared, terms = squared[np.ix_(good, good)], terms[np.ix_(good, good)]
        # Mixing draws points together, all into one perhaps: what they were before tells what matters.
        count = int(finite.sum())
        before = upper_medians((upper_medians(squared[:, :count]) if scaling else self.usual)[None])[0]
        errors = (numerics.MEASURED if self.exact else numerics.ROUNDING) * terms
        if not (errors > numerics.BLUR * before).any():
            return False
        usual = upper_medians(squared[:, :count])
        certain = np.maximum(squared, np.minimum(usual[:, None], usual[None, :]))
        far = numerics.BLUR_SCALED if scaling else numerics.BLUR_MIXED
        return bool((errors > np.maximum(numerics.BLUR * before, far * certain)).any())

    def cosines(self) -> np.ndarray:
        """[n+e, n+e] cosines between the points, the extra ones included; 0 for null points and those not finite."""
        points = self._with_extra()
        norms = np.sqrt(points.norms)
        seen = points.finite & (norms > 0)
        scales = np.divide(1, norms, out=np.zeros_like(norms), where=seen)
        anew = self.is_small  # exact where that costs little
        if anew and self.vectors.remote and self.exact:  # and where waiting for it would show
            anew = bool((numerics.MEASURED * _scaled(points._known, scales)[1] > numerics.ANGLE).any())
        directions = points.mix(scales, anew=anew)
        squared, lengths = directions.distances, np.where(seen, directions.norms, 1)  # lengths: 1, but for rounding
        result = 0.5 * (lengths[:, None] + lengths[None, :] - squared) / np.sqrt(np.outer(lengths, lengths))
        result[~seen] = result[:, ~seen] = 0
        return np.where(np.abs(result) > 1 - numerics.STRAIGHT, np.sign(result), result)

    @property
    def is_small(self) -> bool:
        """Whether to measure distances again costs little: one panel."""
        return self.vectors.d <= ANEW_WIDTH

    def measured(self) -> Geometry:
        """The same, its distances measured again, in float64: one more pass, which costs little for one panel."""
        e = self.squared.shape[0] - self.n - 1
        table = np.where(self.finite[:, None], self.through(np.eye(self.n)), 0)
        squared = self.vectors.measured(table, e > 0)
        squared = _alike(0.5 * (squared + squared.T), table)  # exactly symmetric, as sums of panels are not
        faulty = np.append(~self.finite, np.zeros(e + 1, bool))
        squared[faulty] = squared[:, faulty] = np.inf
        np.fill_diagonal(squared, 0)
        return replace(self, squared=squared, exact=True)

    def sharp(self) -> Geometry:
        """The same, its distances measured again in float64 where they were not and that costs little."""
        return self if self.exact or not self.is_small else self.measured()

    def sharpened(self, index: np.ndarray) -> Geometry:
        """The same, distances from some points measured again in float64: a pass over the data for each, or one for
        all where the vectors are on a device.

        Of mixtures all are measured again where that costs little, none where it does not.
        """
        scales = self.scales
        if self.exact or scales is None:
            return self.sharp()
        if self.vectors.remote or 4 * index.size > self.n:
            return self.measured()
        squared, done = self.squared.copy(), np.zeros(self.n, bool)
        for i in index:
            if done[i]:
                continue
            point = np.where(np.arange(self.n + self.vectors.e) == i, scales[i], 0.0)
            distances = self.vectors.around(point, scales)[1]
            twins = squared[i, : self.n] == 0  # equal points stay equal
            others = np.flatnonzero(self.finite & ~twins)
            for k in np.flatnonzero(twins):
                squared[k, others] = squared[others, k] = distances[others]
            done |= twins
        return replace(self, squared=squared)

    def positions(self) -> np.ndarray:
        """[n+e, r] Cartesian coordinates of the points and the extra ones, as if space were turned so that r suffice.

        The origin of these coordinates is a point near the middle of the nearest majority; points that are not finite
        come as NaN. Iterations that walk between the points do so here: differences are taken of what is at hand,
        however far some points are.

        Far points are first drawn near, along their direction, then put back at their distance: among them D alone
        would leave nothing of the digits that tell near points apart.
        """
        points = self._with_extra()
        order = points.by_centrality()
        result = np.full((points.n, max(order.size, 1)), np.nan)
        if not order.size:
            return result
        squared = points.distances[np.ix_(order, order)]
        same = squared == 0
        radii = upper_medians(squared)
        center = int(np.argmin(radii))
        radius, lengths = np.sqrt(radii[center]), np.sqrt(squared[center])
        least = numerics.AGREED * np.sqrt(points.norms[order[center]])
        if radius <= least:  # a majority agrees, but for rounding
            same[center] |= lengths <= least
            same[same[center]] = same[center]
            radius = lengths[lengths > least].min(initial=np.inf)
        far = lengths > numerics.FAR * radius
        stretch = np.where(far, lengths / radius, 1.0)
        drawn = np.diag(1 / stretch)
        drawn[:, center] += 1 - 1 / stretch
        if far.any():
            weights = np.zeros((order.size, points.n))
            weights[:, order] = drawn
            squared = points.mix(weights).distances
        inner = 0.5 * (squared[:, center, None] + squared[None, center, :] - squared)
        at = _coordinates(inner, numerics.REST)
        end = int(np.argmax(np.diag(inner)))
        if (np.square(at[:, 1:]).sum(1) <= numerics.NARROW * inner[end, end]).all() and inner[end, end] > 0:
            # Near a line the squares of what lies across drown in those along it: what lies across is measured itself.
            along = inner[:, end] / inner[end, end]
            rest = drawn - drawn[center] - along[:, None] * (drawn[end] - drawn[center])
            weights = np.zeros((order.size, points.n))
            weights[:, order] = rest
            across = np.zeros_like(inner)
            if self.vectors.d > 1:
                squared = self.vectors.measured(points.through(weights), False)
                across = 0.5 * (squared[:-1, -1, None] + squared[None, -1, :-1] - squared[:-1, :-1])
            beside = _coordinates(across, numerics.REST)
            at = np.concatenate([along[:, None] * np.sqrt(inner[end, end]), beside], axis=1)
            result = np.full((points.n, at.shape[1]), np.nan)
        result[order] = at * stretch[:, None]
        result[order] = result[order[np.argmax(same, axis=1)]]  # equal points stay equal, to the last bit
        return result

    def by_centrality(self) -> np.ndarray:
        """The finite points in an order that follows the vectors when they are permuted: the most central first."""
        good = np.flatnonzero(self.finite)
        scores = np.sqrt(np.sort(self.distances[np.ix_(good, good)], axis=1)).sum(1)
        return self.smallest(scores, good.size, among=good)

    def _with_extra(self) -> Geometry:
        """The same, with the extra points counted among the points."""
        e = self.squared.shape[0] - self.n - 1
        if not e:
            return self
        over = self.through(np.eye(self.n))
        table = np.zeros((self.n + e, over.shape[1]))
        table[: self.n] = over
        table[self.n :, -e:] = np.eye(e)
        return Geometry(self.squared, np.append(self.finite, np.ones(e, bool)), self.vectors, table, self.exact)

    def through(self, weights: np.ndarray) -> np.ndarray:
        """Weights [..., n] or [..., n+e] over the points (and extra points) as weights [..., N+e] over what they are
        made of."""
        e = self.vectors.e
        over_extra = weights[..., self.n :]
        if over_extra.shape[-1] < e:
            over_extra = np.zeros((*weights.shape[:-1], e))
        if self.table is None:
            return np.concatenate([weights[..., : self.n], over_extra], axis=-1) if e else weights
        result = weights[..., : self.n] @ self.table
        if e:
            result[..., -e:] += over_extra
        return result

    def smallest(
        self, scores: np.ndarray, count: int, among: np.ndarray | None = None, ties: Ties = "value"
    ) -> np.ndarray:
        """Indices of the ``count`` smallest scores, in order; points that are not finite come last.

        Ties go to the lexicographically smaller vector: the answer follows the vectors when they are permuted. A tie is
        what differs by rounding in float64, so scores whose distances were added up in float32 are to be made sure of
        first (see :meth:`unsure`). With ties="position", scores that are exactly equal stay in the order of the points.
        ``among`` restricts the choice to some (ascending) indices.
        """
        index = np.arange(self.n) if among is None else among
        values = np.where(self.finite[index] & ~np.isnan(scores), scores, np.inf)
        order = np.argsort(values, kind="stable")
        index, values = index[order], values[order]
        if ties == "position":
            return index[:count]
        known = values[np.isfinite(values)]
        starts = np.flatnonzero(np.append(True, np.diff(known) > numerics.TIE * np.abs(known[1:])))
        for first, last in zip(starts, np.append(starts[1:], known.size), strict=True):
            if last - first > 1 and first < count:
                index[first:last] = self._by_value(index[first:last])
        return index[:count]

    def unsure(self, scores: np.ndarray, places: Sequence[int], among: np.ndarray | None = None) -> np.ndarray:
        """Points whose distances float32 may have rounded over some places in the order of scores; none where equal."""
        if self.exact:
            return np.empty(0, int)
        index = np.arange(self.n) if among is None else among
        values = np.where(self.finite[index] & ~np.isnan(scores), scores, np.inf)
        order = np.argsort(values, kind="stable")
        index, values = index[order], values[order]
        known = int(np.isfinite(values).sum())
        near = np.zeros(index.size, bool)  # as near to the next that rounding may have changed their order
        near[: max(known - 1, 0)] = np.diff(values[:known]) <= 4 * numerics.ROUNDING * np.abs(values[1:known])
        found = np.zeros(self.n, bool)
        for place in places:
            if 0 < place < index.size and near[place - 1] and not found[index[place]]:
                first, last = place - 1, place
                while first > 0 and near[first - 1]:
                    first -= 1
                while near[last]:
                    last += 1
                group = index[first : last + 1]
                found[group] = self.squared[group[0], group].any()
        return np.flatnonzero(found)

    def _by_value(self, index: np.ndarray) -> np.ndarray:
        """The given points in lexicographic order; equal points keep any order."""
        apart = self.squared[np.ix_(index, index)] != 0
        if not apart.any():
            return index
        if self.vectors.remote:
            ranks = self._places[index]
        else:
            ranks = self.vectors.places(index, None if self.table is None else self.table[index], apart)
        return index[np.argsort(ranks, kind="stable")]

    @cached_property
    def _places(self) -> np.ndarray:
        """[n] the places of all finite points: asked for once, where whoever asks waits. Later ties ask for nothing."""
        good, result = np.flatnonzero(self.finite), np.zeros(self.n, int)
        table = None if self.table is None else self.table[good]
        result[good] = self.vectors.places(good, table, self.squared[np.ix_(good, good)] != 0)
        return result


def unit_of(x: Tensor, squared: np.ndarray) -> float | None:
    """The unit, a power of two, in which rows [n, d] are to be measured; None where any will do.

    In double precision squares overflow beyond 1e154 and vanish below 1e-162. What is usual then counts as 1, and the
    few vectors that are far beyond that even so as no longer than ``MOST``. ``squared`` [n] are the squared norms of
    the rows (or distances of that size) as they came out: the rows are looked at again only where those that are out
    of range may matter.
    """
    if x.dtype != torch.float64:
        return None
    odd = ~((squared > numerics.VANISHING) & (squared < np.inf))
    lengths = np.sqrt(squared)
    if odd.any() and not (kernels.on_device(x) and _ordinary(lengths, odd)):
        lengths[odd] = _norms_of(x, odd)
    known = lengths[(lengths > 0) & (lengths < np.inf)]
    usual = upper_medians(known[None])[0] if known.size else 1.0
    if not 1 / numerics.ORDINARY < usual < numerics.ORDINARY:
        return power_below(usual)
    return 1.0 if (np.isfinite(lengths) & ~np.isfinite(squared)).any() else None


def _norms_of(x: Tensor, odd: np.ndarray) -> np.ndarray:
    """The norms of some rows, however their squares came out."""
    if kernels.on_device(x):
        return kernels.host(kernels.norms(x))[odd]
    return kernels.norms(x[torch.from_numpy(odd)]).numpy()


def _ordinary(lengths: np.ndarray, odd: np.ndarray) -> bool:
    """Whether what is usual is in range and no finite vector too long, whatever rows are whose squares are not."""
    if np.isinf(lengths).any():  # or too long
        return False
    known, vanished = lengths[~odd], lengths[odd & (lengths >= 0)]  # or null
    usual = [upper_medians(rows[None])[0] for rows in (known, np.append(known, vanished)) if known.size]
    return known.size > 0 and all(1 / numerics.ORDINARY < size < numerics.ORDINARY for size in usual)


def power_below(length: float) -> float:
    """The greatest power of two that is not more: in range for every number, as one rounded from a logarithm is not."""
    return float(np.ldexp(1.0, int(np.frexp(length)[1]) - 1))


def in_unit(x: Tensor, unit: float) -> Tensor:
    """The vectors [..., d] divided by a unit, and those longer than ``MOST`` units brought to that length."""
    lengths = kernels.norms(x)
    return x / torch.where(lengths / unit > numerics.MOST, lengths / numerics.MOST, unit).unsqueeze(-1)


def measured_wide(x: Tensor) -> bool:
    """Whether :func:`squared_pairs` adds up in float64 from the start: on a device, where that costs little and to
    measure again would be waited for."""
    return kernels.on_device(x) and x.shape[1] <= ANEW_WIDTH


def squared_pairs(x: Tensor, extra: Tensor | None = None) -> Tensor:
    """[n+e+1, n+e+1] squared distances between all rows, extra rows and the origin, where they are."""
    if measured_wide(x):
        x, extra = x.double(), None if extra is None else extra.double()
    return kernels.squared_distances(x, extra)


def squared_between(x: Tensor, extra: Tensor | None) -> np.ndarray:
    """The same on the host."""
    return kernels.host(squared_pairs(x, extra))


def squared_from(x: Tensor, extra: Tensor | None, center: int) -> np.ndarray:
    """[n+e+1, n+e+1] squared norms, and squared distances to one point (-1: the origin); the rest is NaN."""
    return kernels.host(distances_from(x, extra, center))


def distances_from(x: Tensor, extra: Tensor | None, center: int) -> Tensor:
    """:func:`squared_from` on the device of the vectors."""
    n, e = x.shape[0], 0 if extra is None else extra.shape[0]
    squared = torch.full((n + e + 1, n + e + 1), torch.nan, dtype=torch.float64, device=x.device)
    if center == -1:
        norms = kernels.squared_norms(x)
    else:
        norms, distances = kernels.squared_around(x, np.eye(n + e + 1)[center, :-1], extra)
        squared[center, :n] = squared[:n, center] = distances
    squared[-1, :n] = squared[:n, -1] = norms
    if extra is not None:
        squared[-1, n:-1] = squared[n:-1, -1] = kernels.squared_norms(extra)
    return squared.fill_diagonal_(0)


def _alike(squared: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The same, but that equal mixtures are equal points, whatever a matrix product makes of them."""
    first: dict[bytes, int] = {}
    whole, size = table.tobytes(), table.shape[1] * table.itemsize
    like = [first.setdefault(whole[i * size : (i + 1) * size], i) for i in range(table.shape[0])]
    if len(first) == len(like):
        return squared
    like.extend(range(len(like), squared.shape[0]))
    return squared[np.ix_(like, like)]


def _refined(ranks: np.ndarray, rows: np.ndarray, slack: np.ndarray | None = None) -> np.ndarray:
    """Ranks 0, 1, ... of rows [k, d], where those of equal rank are told apart by lexicographic order.

    Values are equal that differ by no more than the slack [k, d].
    """
    column = -1
    while ranks.max() + 1 < ranks.size:
        first = np.unique(ranks, return_index=True)[1][ranks]
        behind, places = rows[:, column + 1 :], slice(column + 1, None)
        if slack is None:
            differ = behind != behind[first]
        else:
            differ = np.abs(behind - behind[first]) > np.maximum(slack[:, places], slack[first, places])
        seen = differ.any(0)
        if not seen.any():
            break
        column += 1 + int(np.argmax(seen))
        values = rows[:, column]
        if slack is not None:
            order = np.argsort(values, kind="stable")
            steps = np.diff(values[order]) > np.maximum(slack[order[1:], column], slack[order[:-1], column])
            values = np.empty(values.size, int)
            values[order] = np.append(0, np.cumsum(steps))
        ranks = np.unique(np.stack([ranks, values]), axis=1, return_inverse=True)[1].reshape(-1)
    return ranks


@jit
def _over_all(weights, points, nothing):  # type: ignore[no-untyped-def]
    """Weights [m, n] of points as [m+e+1, n+e+1], the extra ones and the origin included, and whether one is < 0."""
    m, n = weights.shape
    combined, signed = np.zeros((m + points - n, points)), False
    for i in range(m):
        rest = 1 - weights[i].sum()
        for j in range(n):
            combined[i, j] = weights[i, j]
            signed |= weights[i, j] < 0
        if abs(rest) >= nothing:  # else rounding of 1 / n summed, no share of the origin
            combined[i, points - 1] = rest
            signed |= rest < 0
    for j in range(n, points):
        combined[m + j - n, j] = 1
    return combined, signed


@jit
def _distances(product, sizes):  # type: ignore[no-untyped-def]
    """a D b - (a D a + b D b) / 2 of all a, b, and the same with sizes and plus signs; symmetric to the last bit."""
    p = product.shape[0]
    squared, terms = np.zeros((p, p)), np.empty((p, p))
    for i in range(p):
        for j in range(p):
            terms[i, j] = sizes[i, j] + 0.5 * sizes[i, i] + 0.5 * sizes[j, j]
        for j in range(i):
            left, right = 0.5 * product[i, i], 0.5 * product[j, j]
            one, other = product[i, j] - left - right, product[j, i] - right - left
            squared[i, j] = squared[j, i] = 0.5 * (max(one, 0.0) + max(other, 0.0))
    return squared, terms


@jit
def _scaled(known, scales):  # type: ignore[no-untyped-def]
    """As _mixed, for scaled points: ||s x - t y||^2 = s t ||x - y||^2 + (s - t) (s ||x||^2 - t ||y||^2)."""
    p, n = known.shape[0], scales.size
    squared, terms, s = np.empty((p, p)), np.empty((p, p)), np.ones(p)
    s[:n] = scales
    weighted = s * known[-1]
    for i in range(p):
        for j in range(p):
            near, across = s[i] * s[j] * known[i, j], s[i] - s[j]
            value = near + across * (weighted[i] - weighted[j])
            squared[i, j] = 0.0 if value < 0 else value  # NaN stays
            terms[i, j] = near + abs(across) * (weighted[i] + weighted[j])
    for i in range(p):  # distances to the origin need no difference
        squared[i, i] = 0
        squared[i, -1] = squared[-1, i] = terms[i, -1] = terms[-1, i] = s[i] * weighted[i]
    return squared, terms


@jit
def _coordinates(inner, least):  # type: ignore[no-untyped-def]
    """[n, n] positions of points with the given inner products: Cholesky's factor, the longest rest first.

    Rounding may leave a rest that no vectors have; no product is let exceed what the lengths allow, so it stays small.
    """
    n = inner.shape[0]
    result, rest, left = np.zeros((n, n)), np.diag(inner).copy(), np.ones(n, np.bool_)
    least *= rest.max()
    for axis in range(n):
        pivot = -1
        for i in range(n):
            if left[i] and (pivot < 0 or rest[i] > rest[pivot]):
                pivot = i
        if rest[pivot] <= least:
            break
        left[pivot] = False
        length = np.sqrt(rest[pivot])
        result[pivot, axis] = length
        for i in range(n):
            if left[i]:
                value = inner[i, pivot]
                for k in range(axis):
                    value -= result[i, k] * result[pivot, k]
                bound = np.sqrt(max(rest[i], 0.0))
                result[i, axis] = min(max(value / length, -bound), bound)
                rest[i] -= result[i, axis] * result[i, axis]
    return result


def upper_medians(values: np.ndarray) -> np.ndarray:
    """The (upper) median of each row."""
    half = values.shape[1] // 2
    return np.partition(values, half, axis=1)[:, half]


def sum_of_smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Sum of the ``count`` smallest values of each row, added from the smallest up."""
    return np.sort(values, axis=-1)[..., :count].sum(-1)


def mean_weights(selected: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """[n] weights of the mean of the selected points."""
    weights = np.zeros(n)
    weights[selected] = 1 / len(selected)
    return weights
