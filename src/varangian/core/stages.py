"""What rules and mixings are: the contracts, the families, and how stages become two passes over [n, d]."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from inspect import isabstract
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, overload

import numpy as np
import torch
from torch import Tensor

from . import kernels, numerics
from .checks import UNSAID, Refused, brief, is_ours, kind_of, not_dense, require, set_whole, shown, whole
from .claims import NEAR, Guarantee
from .construction import Constructed
from .geometry import Geometry, distances_from, mean_weights, squared_between, squared_from, squared_pairs
from .placement import Seen
from .randomness import BARE, Draw
from .shares import WeightBreakdown, heaviest, shares_of

Bound = Callable[[int, int], float]
"""A bound that some paper proves, as a function of n and f."""

Shares = np.ndarray | None
"""[n] what each vector counts, > 0 and n together; None where all count the same."""

WeightedStatistic = tuple[float, float, float, str]
"""(low, high, window, even) of :func:`.kernels.weighted_statistic`."""

Statistic = tuple[int, int, int]
"""(low, high, window) of :func:`.kernels.column_statistic`: the mean of the values of ranks low..high-1 of a column, or
with a window > 0 the mean of as many values closest to that."""


@dataclass(frozen=True)
class Rule(Constructed):
    """An aggregation rule F: n vectors, at most f of them arbitrary, to one vector.

    A rule is an immutable value. Subclass :class:`Selecting` (weights from distances), :class:`Coordinatewise` (ranks
    of each column) or :class:`General` (anything), and write one method. All else that is known of a rule stands on its
    class too, and has a default: nobody keeps a table of rules.

    Args:
        f: how many of the vectors may be Byzantine, >= 0; it has no default.

    Class attributes:
        title: what figures call it; the name of its class if empty.
        score_name: what :meth:`score` is, in words.
        uses_previous: it looks at the last aggregate, or at a root vector.
        needs_root: ``previous`` must be a vector that is trusted: the last aggregate will not do.
        needs_geometry: ``choose`` looks at distances.
        columnwise: given the weights, pieces of vectors will do.
        by_place: it matters which vector stands where.
        draws: of a General rule: ``combine`` takes the random numbers of the step, a Draw.
        weighs: it takes weights of workers (see :mod:`varangian.core.shares`). A class derived from one that does says
            so again where it answers in another way.
        robust: False for the average, which has an f but tolerates nothing.
        published: the fields with which it is what the code of the paper of distributed momentum computed; None where
            that code had no such rule.
        published_name: its name there, if another.
        kappa, variance: see :meth:`kappa_bound` and :meth:`variance_bound`.
        guarantee: how far f hostile vectors may move the answer (see :mod:`varangian.core.claims`).
        exempt: what of the contract it does not claim: the name of a :class:`varangian.testing.Check` to the reason.
    """

    f: int = UNSAID

    title: ClassVar[str] = ""
    score_name: ClassVar[str] = ""
    uses_previous: ClassVar[bool] = False
    needs_root: ClassVar[bool] = False
    needs_geometry: ClassVar[bool] = False
    columnwise: ClassVar[bool] = False
    by_place: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    robust: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any] | None] = None
    published_name: ClassVar[str] = ""
    kappa: ClassVar[Bound | None] = None
    variance: ClassVar[Bound | None] = None
    guarantee: ClassVar[Guarantee] = NEAR
    exempt: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        set_whole(self, "f")

    def __str__(self) -> str:
        return brief(self)

    @property
    @abstractmethod
    def needs(self) -> tuple[str, int]:
        """How many vectors it needs: the formula in f, and its value."""

    @property
    def min_n(self) -> int:
        """The least number of vectors that the rule accepts."""
        return needed(self)[1]

    def breakdown(self, n: int) -> int:
        """The greatest f that the rule, with its other settings, may declare among n vectors.

        Example:
            >>> from varangian import MultiKrum
            >>> MultiKrum(f=0).breakdown(51)
            24

        Raises:
            ValueError: not even f = 0 is possible.
        """
        if not self.robust:
            return 0
        tolerated = [f for f in range(n) if replace(self, f=f).min_n <= n]
        require(self, bool(tolerated), f"n >= {replace(self, f=0).min_n} vectors even with f = 0", n)
        return max(tolerated)

    def weight_breakdown(self, weights: Any) -> WeightBreakdown:
        """How much of the weight may be Byzantine where workers count differently.

        W_f, the weight of the f heaviest, takes the place of f in what the rule needs, ``2f + 1 <= n`` say: 2 W_f < n
        with weights that add up to n. Whoever has no more weight than that together may then be Byzantine.

        Args:
            weights: [n] as for the call: numbers >= 0.

        Example:
            >>> import varangian as vg
            >>> weights = vg.size_weights([900, 500, 200, 100, 100, 100, 100])
            >>> vg.Median(f=1).weight_breakdown(weights).workers, vg.Median(f=1).breakdown(7)
            (1, 3)
            >>> vg.Median(f=2).weight_breakdown(weights)  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ValueError: Median(f=2) tolerates less than 3.5 of a weight of 7, and the f = 2 heaviest of these 7 ...

        Raises:
            ValueError: weights that are none, or with which f is too many: the f heaviest weigh too much.
        """
        check_weighs((), self)
        shares = shares_of(self, weights)
        shares = shares[shares > 0]
        n, declared = shares.size, check_shares(self, shares)
        if not self.robust:
            return WeightBreakdown(0.0, 0.0, 0, 0.0)
        limit = _weight_limit(self, n)
        tolerated = _within(shares, limit)
        return WeightBreakdown(declared / n, heaviest(shares, tolerated) / n, tolerated, limit / n)

    def kappa_bound(self, n: int) -> float | None:
        """The robustness coefficient kappa(n, f) proved for the rule's default conventions; None where none is.

        ||F(x) - mean_S||^2 <= kappa * mean over i in S of ||x_i - mean_S||^2, for every set S of n - f vectors. No rule
        has less than f / (n - 2f).

        Reference: Allouah et al., "Fixing by Mixing", AISTATS 2023, where the bounds are collected.
        """
        return _bound(self, type(self).kappa, n)

    def variance_bound(self, n: int, d: int) -> float | None:
        """What the ratio deviation / norm of the honest vectors must stay below for the rule to be proved resilient:
        the condition that the paper of distributed momentum plots; None for rules without one.

        The bounds of that paper do not depend on d.

        Reference: El-Mhamdi, Guerraoui, Rouault, ICLR 2021.
        """
        require(self, d >= 1, "d >= 1", d)
        return _bound(self, type(self).variance, n)

    @property
    def center(self) -> int | None:
        """The one point from which it looks at distances, beside norms: the index of a vector, -1 for the origin, -2
        for the extra one (the last aggregate). Others are then not measured. None if it looks at all pairs, or none."""
        return None

    def score(self, geometry: Geometry) -> np.ndarray | None:
        """[n] what it ranks the vectors by, >= 0, the lower the better; None for a rule that ranks none.

        Explanations and histories show it (see :mod:`varangian.core.evidence`). The geometry is the one that the rule
        decides on: behind any mixings.
        """
        return None

    def statistic(self, n: int) -> Statistic | None:
        """(low, high, window) where its answer is a statistic of columns of n values; None for other rules."""
        return None

    @overload
    def __call__(
        self, x: Tensor | Sequence[Tensor], previous: Any = None, step: int = 0, *, weights: Any = None
    ) -> Tensor: ...
    @overload
    def __call__(
        self, x: np.ndarray | Sequence[np.ndarray] | Sequence[Sequence[float]], previous: Any = None, step: int = 0,
        *, weights: Any = None,
    ) -> np.ndarray: ...  # fmt: skip
    @kernels.eager
    def __call__(self, x: Any, previous: Any = None, step: int = 0, *, weights: Any = None) -> Any:
        """Aggregates [n, d] (a tensor, an array, or n vectors [d]) to [d] of the same kind, dtype and device. Lists of
        numbers are an array of float64.

        Args:
            x: the vectors; only read.
            previous: [d], for the rules that use it (``uses_previous``) the last aggregate, or the root vector
                (``needs_root``); the origin if None.
            step: which aggregation it is, for the rules that draw (``draws``): what they sample is a function of it,
                so that the same call gives the same answer. Count it up where you aggregate again and again: an
                adversary who knows what will be drawn hides where nobody looks.
            weights: [n] what each vector counts, >= 0, for the rules that weigh (``weighs``): an array, a tensor or a
                list. Only their ratios matter; equal ones are none, and a vector that weighs nothing is not there.

        Raises:
            Refused: more than f vectors are not finite; with weights, such as weigh more than the f heaviest.
            ValueError: fewer than ``min_n`` vectors, something that is not [n, d], weights for a rule that takes none,
                or weights with which f is too many (see :meth:`weight_breakdown`).
        """
        matrix, restore = as_matrix(self, x)
        previous, draw = as_previous(self, previous, matrix), Draw(0, whole(self, "step", step))
        return restore(decide(matrix, (), self, previous=previous, draw=draw, weights=weights).aggregate)

    # Where vectors count differently, rules that weigh are handed ``shares`` too, here and there.

    @abstractmethod
    def choose(self, n: int, geometry: Geometry | None) -> np.ndarray | None:
        """The rule's choice in n x n: [n+e] weights, or [m, n] for a rule that goes on in columns, or None."""

    @abstractmethod
    def apply(self, x: Tensor, table: np.ndarray | None, previous: Tensor | None) -> Tensor:
        """The aggregate, [n, d] -> [d], given the selection (behind any mixings) as weights of the rows of x."""


def _bound(rule: Rule, bound: Bound | None, n: int) -> float | None:
    check_rows((), rule, n)
    return None if bound is None else bound(n, rule.f)


class Selecting(Rule):
    """A rule that looks at distances alone and answers weights: it lives in n x n.

    Write ``needs`` and ``weights(self, geometry)``. With ``weighs = True`` it finds in ``geometry.shares`` what each
    point counts, [n] and n together; or None, where all count the same.

    Example:
        >>> import varangian as vg
        >>> class Outmost(vg.Selecting):
        ...     '''The mean without the f vectors that are furthest from the others.'''
        ...
        ...     @property
        ...     def needs(self):
        ...         return "2f + 1", 2 * self.f + 1
        ...
        ...     def weights(self, geometry):  # distances are squared
        ...         sums = np.sort(geometry.distances, axis=1)[:, : geometry.n - self.f].sum(1)
        ...         return vg.mean_weights(geometry.smallest(sums, geometry.n - self.f), geometry.n)
        >>> len(vg.testing.check_rule(Outmost).passed)
        17
    """

    needs_geometry: ClassVar[bool] = True
    columnwise: ClassVar[bool] = True

    @abstractmethod
    def weights(self, geometry: Geometry) -> np.ndarray:
        """[n+e] weights of the points (and of the extra ones, if any); what is missing to 1 goes to the origin."""

    def choose(self, n: int, geometry: Geometry | None, shares: Shares = None) -> np.ndarray:
        assert geometry is not None
        return checked_weights(self, self.weights(geometry), (geometry.n,), (geometry.n + geometry.vectors.e,))

    def apply(
        self, x: Tensor, table: np.ndarray | None, previous: Tensor | None, *draw: Draw, shares: Shares = None
    ) -> Tensor:
        assert table is not None
        return kernels.weighted_rows(x, table, None if previous is None else previous.unsqueeze(0))


class Nearest(Selecting):
    """The mean of the n - f vectors nearest to one point: no other distances are needed, and alone none is measured."""

    @property
    @abstractmethod
    def center(self) -> int:
        """The index of that vector; -1 is the origin."""

    def weights(self, geometry: Geometry) -> np.ndarray:
        n, center = geometry.n, self.center
        if center >= 0 and not geometry.finite[center]:
            raise Refused(f"{self} needs a finite pivot, got one with NaN or infinity.")
        return mean_weights(geometry.smallest(geometry.squared[center, :n], n - self.f), n)


class Coordinatewise(Rule):
    """A rule that looks at each column alone: the mean of some ranks, or of the values closest to that mean.

    Write ``needs`` and ``statistic(self, n)``; with ``weighs = True`` also ``weighted(self, shares)``.

    Example:
        >>> import varangian as vg
        >>> class Quartiles(vg.Coordinatewise):
        ...     '''The mean of the middle half of the values of each coordinate.'''
        ...
        ...     @property
        ...     def needs(self):
        ...         return "4f + 1", 4 * self.f + 1
        ...
        ...     def statistic(self, n):
        ...         return n // 4, n - n // 4, 0
        >>> len(vg.testing.check_rule(Quartiles).passed)
        17
    """

    columnwise: ClassVar[bool] = True

    @abstractmethod
    def statistic(self, n: int) -> Statistic:
        """(low, high, window) for columns of n values: the mean of the values of ranks low to high - 1, or with a
        window > 0 the mean of as many values closest to that."""

    def weighted(self, shares: np.ndarray) -> WeightedStatistic:
        """(low, high, window, even) of :func:`.kernels.weighted_statistic`, in shares, which are n together: the mean
        of what lies between two amounts, or with a window > 0 the mean of so much of the weight closest to that.

        It is asked where values count differently, and should come to :meth:`statistic` where they do not.
        """
        raise ValueError(f"{type(self).__name__} says weighs = True, and must write weighted(self, shares).")

    def choose(self, n: int, geometry: Geometry | None, shares: Shares = None) -> None:
        return None

    def apply(
        self, x: Tensor, table: np.ndarray | None, previous: Tensor | None, *draw: Draw, shares: Shares = None
    ) -> Tensor:
        n = x.shape[0] if table is None else table.shape[0]
        if shares is None:
            return column_statistic(self, x, self.statistic(n), table)
        return weighted_statistic(self, x if table is None else kernels.weighted_rows(x, table), shares)


class General(Rule):
    """A rule that is neither: it sees the vectors themselves.

    Write ``needs`` and ``combine(self, x, previous)``. It counts itself what is not finite (see :func:`refuse_faulty`).

    Example:
        >>> import varangian as vg
        >>> class Middle(vg.General):
        ...     '''The middle of what is left of each coordinate without the f least and the f greatest values.'''
        ...
        ...     @property
        ...     def needs(self):
        ...         return "2f + 1", 2 * self.f + 1
        ...
        ...     def combine(self, x, previous):
        ...         vg.refuse_faulty(self, self.f, int((~x.isfinite().all(1)).sum()))
        ...         ranked = x.double().sort(0).values
        ...         return (ranked[self.f] / 2 + ranked[-1 - self.f] / 2).to(x.dtype)
        >>> len(vg.testing.check_rule(Middle).passed)
        17
    """

    @abstractmethod
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """[n, d] -> [d]; must not write into x nor return a view of it.

        A class with ``draws = True`` takes ``combine(self, x, previous, draw=Draw())``, and nothing else may be random.
        One with ``weighs = True`` takes ``shares=None`` last: [n] what each vector counts, n together, or None where
        all count the same; where there are shares it refuses with :func:`refuse_overweight`.
        """

    def choose(self, n: int, geometry: Geometry | None, shares: Shares = None) -> None:
        return None

    def apply(
        self, x: Tensor, table: np.ndarray | None, previous: Tensor | None, *draw: Draw, shares: Shares = None
    ) -> Tensor:
        rows = x if table is None else kernels.weighted_rows(x, table)
        return checked_answer(self, self.combine(rows, previous, *draw, **_weighing(shares)), x)


@dataclass(frozen=True)
class Mixing(Constructed):
    """n vectors to m vectors, each a combination of those that came: m x n weights, found in n x n.

    Class attributes:
        aligned: vector i becomes vector i, so what a place means stays what it was (a trusted vector, say).
        draws: its weights are random, and take the numbers of the step, a Draw.
        norms_only: it looks at norms, and at no other distances, which are then not measured for its sake.
        scales: its weights are [n] scales.
        weighs: weights of workers may stand behind it: vector i becomes vector i, whatever the others are or count.
        guarantee, exempt: as of a rule; a mixing that has no f claims to be finite, where it says nothing else.

    Example:
        >>> import varangian as vg
        >>> @dataclass(frozen=True)
        ... class Gathered(vg.Mixing):
        ...     '''Each vector becomes the mean of itself and the one nearest to it.'''
        ...
        ...     f: int = 0
        ...     aligned = True
        ...
        ...     @property
        ...     def needs(self):
        ...         return "2f + 1", 2 * self.f + 1
        ...
        ...     def weights(self, geometry):
        ...         vg.refuse_faulty(self, self.f, geometry.faulty)
        ...         table = np.eye(geometry.n)
        ...         for i in np.flatnonzero(geometry.finite):
        ...             others = np.delete(np.arange(geometry.n), i)
        ...             nearest = geometry.smallest(geometry.distances[i, others], 1, among=others)
        ...             table[i] = vg.mean_weights([i, *nearest], geometry.n)
        ...         return table
        >>> len(vg.testing.check_mixing(Gathered).passed)
        18
    """

    aligned: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    norms_only: ClassVar[bool] = False
    scales: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    guarantee: ClassVar[Guarantee] = NEAR
    exempt: ClassVar[Mapping[str, str]] = {}

    def __str__(self) -> str:
        return brief(self)

    @property
    @abstractmethod
    def needs(self) -> tuple[str, int]:
        """How many vectors it needs: the formula in f, and its value."""

    @property
    def min_n(self) -> int:
        """The least number of vectors that it accepts."""
        return needed(self)[1]

    def rows(self, n: int) -> int:
        """How many vectors n become: as many, unless a mixing says otherwise."""
        return n

    def rows_for(self, m: int) -> int:
        """The least n that become m."""
        return m

    @abstractmethod
    def weights(self, geometry: Geometry) -> np.ndarray:
        """[m, n] weights; or [n] scales for a mixing that only shortens vectors.

        A mixture that a point which is not finite enters is not finite; only points that are not finite themselves, or
        no more than f mixtures, may become so. A class with ``draws = True`` takes
        ``weights(self, geometry, draw=Draw())``, and nothing else may be random.
        """

    def mix(self, geometry: Geometry, draw: Draw = BARE, seen: bool = True) -> Geometry:
        """The geometry of the mixtures; without their distances where nobody looks at them."""
        weights = self.weights(geometry, *([draw] if self.draws else []))
        n, m = geometry.n, self.rows(geometry.n)
        weights = checked_weights(self, weights, *([(n,)] if m == n else []), (m, n))
        return geometry.mix(weights, seen=seen)

    @overload
    def __call__(self, x: Tensor | Sequence[Tensor], step: int = 0) -> Tensor: ...
    @overload
    def __call__(
        self, x: np.ndarray | Sequence[np.ndarray] | Sequence[Sequence[float]], step: int = 0
    ) -> np.ndarray: ...
    @kernels.eager
    def __call__(self, x: Any, step: int = 0) -> Any:
        """[n, d] -> [m, d], of the same kind, dtype and device; the input is only read.

        Rows that are not finite make those not finite that they are mixed into: only Bucketing mixes them into others.

        Args:
            x: the vectors.
            step: as for a rule: what a mixing draws is a function of it.
        """
        matrix, restore = as_matrix(self, x)
        formula, least = needed(self)
        if matrix.shape[0] < least:
            wanted = formula if formula == str(least) else f"{formula} = {least}"
            raise ValueError(f"{self} needs n >= {wanted} vectors, got {matrix.shape[0]}.")
        measure = partial(squared_from, center=-1) if self.norms_only else squared_between
        geometry, seen = Geometry.seen(matrix, None, measure)
        table = self.mix(geometry, Draw(0, whole(self, "step", step)), seen=False).table
        assert table is not None
        if self.scales and seen.x is not matrix:  # of lengths as they were measured
            return restore(kernels.weighted_rows(seen.x, table) * seen.unit)
        return restore(kernels.weighted_rows(matrix, table))


@dataclass(frozen=True, eq=False)
class Heard:
    """What a step told a quarantine of the workers that it admitted.

    Attributes:
        workers: [n] the numbers of those whose vectors came.
        rows: which of them were shown, and in which order; None for all, as they came.
        measured: [4, m] of those that were shown, where the vectors are: what
            :func:`varangian.core.evidence.distances_and_norms` finds around the aggregate.
        most: how many of the n may be excluded at once.
    """

    workers: np.ndarray
    rows: np.ndarray | None
    measured: Tensor
    most: int


@dataclass(frozen=True, eq=False)
class Decision:
    """What a server decided about n vectors, and on what grounds.

    Attributes:
        aggregate: [d], the output of F.
        table: [n+e] or [m, n+e] weights of the vectors; None where F looks at coordinates only and nothing was mixed.
        geometry: the distances that the rule saw, or None where it looks at none.
        placing: what momentum that moves makes of the vectors; None in algorithms without.
        heard: what a quarantine hears of them; None in algorithms without.
        came: the distances between the vectors as they came, before any mixing; None where no stage looks at them.
    """

    aggregate: Tensor
    table: np.ndarray | None
    geometry: Geometry | None
    placing: Seen | None = None
    heard: Heard | None = None
    came: Geometry | None = None

    def weight_of(self, rows: slice) -> float | None:
        """The share of the selection that lies on some rows (the Byzantine ones, say); None without a selection."""
        if self.table is None:
            return None
        weights = np.atleast_2d(np.abs(self.table)).sum(0)
        total = weights.sum()
        return float(weights[rows].sum() / total) if total else 0.0

    def among(self, places: np.ndarray, n: int) -> Decision:
        """The same about n vectors, of which those at other places were not there: they have no weight, and a geometry
        knows nothing of them."""
        m, table, geometry = places.size, self.table, self.geometry
        if table is not None:
            spread = np.zeros((*table.shape[:-1], n + table.shape[-1] - m))
            spread[..., places], spread[..., n:] = table[..., :m], table[..., m:]
            table = spread
        return replace(
            self,
            table=table,
            # Mixtures, of which there may be another number, are nobody's vectors.
            geometry=geometry if geometry is None or geometry.n != m else geometry.among(places, n),
            came=None if self.came is None else self.came.among(places, n),
        )


def column_statistic(rule: Rule, x: Tensor, statistic: Statistic, table: np.ndarray | None) -> Tensor:
    """The statistic of the columns of table @ x, refused where more than f rows are not finite."""
    n = x.shape[0] if table is None else table.shape[0]
    three = isinstance(statistic, (tuple, list)) and len(statistic) == 3
    whole_ones = three and all(isinstance(s, Integral) and not isinstance(s, bool) for s in statistic)
    if not (whole_ones and 0 <= statistic[0] < statistic[1] <= n and 0 <= statistic[2] <= n):
        raise ValueError(
            f"{type(rule).__name__} must answer ranks 0 <= low < high <= n and a window from 0 to n, of columns of "
            f"n = {n} values, got {shown(statistic)}."
        )
    result, faulty = kernels.column_statistic(x, *statistic, mixing=table)
    refuse_faulty(rule, rule.f, faulty)
    return result


def weighted_statistic(rule: Coordinatewise, x: Tensor, shares: np.ndarray) -> Tensor:
    """The statistic of the columns of x, whose values count differently; refused where rows that are not finite weigh
    too much."""
    asked, n = rule.weighted(shares), shares.size
    if not (
        isinstance(asked, (tuple, list)) and len(asked) == 4 and asked[3] in kernels.EVEN
        and all(isinstance(a, Real) and not isinstance(a, bool) for a in asked[:3])
        and 0 <= asked[0] <= asked[1] <= n * (1 + numerics.NOTHING) and 0 <= asked[2] <= n * (1 + numerics.NOTHING)
    ):  # fmt: skip
        raise ValueError(
            f"{type(rule).__name__}.weighted must answer amounts 0 <= low <= high <= n, a window from 0 to n, of "
            f"values that weigh n = {n} together, and one of {', '.join(kernels.EVEN)}, got {shown(asked)}."
        )
    low, high, window, even = asked
    result, faulty = kernels.weighted_statistic(x, shares, low, high, window, even=even)
    refuse_overweight(rule, shares, faulty)
    return result


def checked_weights(stage: Rule | Mixing, weights: Any, *shapes: tuple[int, ...]) -> np.ndarray:
    """The weights, held to the contract: finite numbers in one of these shapes. Anybody may have written them."""
    name = f"{type(stage).__name__} must answer"
    if not isinstance(weights, np.ndarray) or weights.dtype.kind not in "fiu":
        raise ValueError(f"{name} weights as an array of numbers, got {kind_of(weights)}.")
    if weights.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise ValueError(f"{name} weights of shape {wanted}, got {list(weights.shape)}.")
    if not np.isfinite(weights).all():
        raise ValueError(f"{name} finite weights, got NaN or infinity.")
    return weights


def checked_answer(rule: Rule, answer: Any, x: Tensor) -> Tensor:
    """The aggregate, held to the contract."""
    good = isinstance(answer, Tensor) and not answer.is_nested and answer.shape == x.shape[1:]
    if not (good and answer.dtype == x.dtype and answer.device == x.device and answer.layout == x.layout):
        array = isinstance(answer, np.ndarray)
        came = f"an array; torch.from_numpy makes a tensor of {kind_of(answer)}" if array else kind_of(answer)
        raise ValueError(f"{type(rule).__name__} must answer {kind_of(x[0])}, got {came}.")
    if answer.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        raise ValueError(f"{type(rule).__name__} must answer a vector of its own, got a view of the vectors; clone it.")
    return answer.detach()


def needed(stage: Rule | Mixing) -> tuple[str, int]:
    """How many vectors a stage needs, held to the contract: the formula, and its value."""
    needs: Any = stage.needs
    if not (
        isinstance(needs, tuple) and len(needs) == 2 and isinstance(needs[0], str) and isinstance(needs[1], Integral)
    ):
        name = type(stage).__name__
        raise ValueError(
            f'{name}.needs must answer a formula and its value, such as ("2f + 1", 5), got {shown(needs)}.'
        )
    return needs


@dataclass(frozen=True, eq=False)
class Pending:
    """A refusal that nobody has waited for: what will be refused where more than ``f`` vectors prove to be faulty.

    Attributes:
        stage, f: as for :func:`refuse_faulty`.
        faulty: a number on a device, [].
    """

    stage: Rule | Mixing
    f: int
    faulty: Tensor


_pending: ContextVar[list[Pending] | None] = ContextVar("pending", default=None)


@contextmanager
def deferred_refusals() -> Iterator[list[Pending]]:
    """Inside, what is refused for numbers on a device is noted here and not waited for: whoever asked for this looks at
    them, and undoes what was done meanwhile. What lies in main memory is refused at once, as everywhere."""
    noted: list[Pending] = []
    token = _pending.set(noted)
    try:
        yield noted
    finally:
        _pending.reset(token)


def refuse_faulty(stage: Rule | Mixing, f: int, faulty: int | Tensor) -> None:
    """Fails closed: what declares f cannot vouch for anything when more than f vectors are not finite. A number on a
    device is waited for, unless refusals are deferred."""
    noted = _pending.get()
    if isinstance(faulty, Tensor):
        if noted is not None and faulty.device.type != "cpu":
            noted.append(Pending(stage, f, faulty))
            return
        faulty = int(kernels.host(faulty))
    if faulty > f:
        raise Refused(f"{stage} tolerates {f} vectors with NaN or infinity, got {faulty}.")


def refuse_overweight(rule: Rule, shares: np.ndarray, faulty: np.ndarray | Tensor) -> None:
    """:func:`refuse_faulty` where vectors count differently: those that are not finite, [n] bool, may weigh no more
    than the f heaviest. A tensor on a device is waited for, unless refusals are deferred."""
    limit = heaviest(shares, rule.f)
    if isinstance(faulty, Tensor) and faulty.device.type != "cpu" and _pending.get() is not None:
        # Who weighs more than the f heaviest is more than f.
        over = (faulty * kernels.there(shares, faulty)).sum() > limit * (1 + numerics.NOTHING)
        refuse_faulty(rule, rule.f, torch.where(over, faulty.sum(), 0))
        return
    spoilt = kernels.host(faulty).astype(bool) if isinstance(faulty, Tensor) else faulty
    weight = shares[spoilt].sum()
    if weight > limit * (1 + numerics.NOTHING):
        raise Refused(
            f"{rule} tolerates vectors with NaN or infinity that weigh {limit:.4g} of {shares.size}, as the "
            f"f = {rule.f} heaviest do, got {int(spoilt.sum())} that weigh {weight:.4g}."
        )


def _weight_limit(rule: Rule, n: int) -> float:
    """What the weight of hostile vectors must stay below, of n vectors that weigh n together: where a weight in the
    place of f, on a line between whole numbers, would need n + 1 vectors."""

    def least(f: int) -> int:
        return replace(rule, f=f).min_n

    f = bisect_right(range(n), n, key=least) - 1
    return f + (n + 1 - least(f)) / (least(f + 1) - least(f)) if least(f + 1) > n else float(n)


def _within(shares: np.ndarray, limit: float) -> int:
    """How many of the heaviest weigh less than a limit."""
    return int((np.sort(shares)[::-1].cumsum() < limit * (1 - numerics.NOTHING)).sum())


def check_shares(rule: Rule, shares: np.ndarray) -> float:
    """W_f, the weight of the f heaviest of shares > 0; ValueError where it is more than a rule can tolerate."""
    n, (formula, least), weight = shares.size, needed(rule), heaviest(shares, rule.f)
    if n < least:
        wanted = formula if formula == str(least) else f"{formula} = {least}"
        raise ValueError(f"{rule} needs n >= {wanted} vectors that weigh more than 0, got {n}.")
    limit = _weight_limit(rule, n) if rule.robust else np.inf
    if weight >= limit * (1 - numerics.NOTHING):
        possible = _within(shares, limit)
        advice = f"f = {possible} would do" if possible else "none of these may be Byzantine"
        raise ValueError(
            f"{rule} tolerates less than {limit:.4g} of a weight of {n}, and the f = {rule.f} heaviest of these {n} "
            f"vectors weigh {weight:.4g}; {advice}, or weights with a lower cap."
        )
    return weight


def check_weighs(pre: Sequence[Mixing], rule: Rule) -> None:
    """Raises ValueError for a stage that takes no weights of workers."""
    for stage, kind in (*((mixing, Mixing) for mixing in pre), (rule, Rule)):
        if not takes_weights(type(stage)):
            others = sorted(c.__name__ for c in _derived(kind) if is_ours(c) and not isabstract(c) and takes_weights(c))
            hint = f" ({type(stage).__name__} itself must say weighs = True, and heed them)" if stage.weighs else ""
            raise ValueError(f"{stage} takes no weights of workers{hint}; those that do: {', '.join(others)}.")


@lru_cache(maxsize=500)
def takes_weights(cls: type[Rule] | type[Mixing]) -> bool:
    """Whether a class takes weights of workers: it says so, and what it was derived from and answers otherwise did not
    say it for it."""
    lines = cls.__mro__
    said = next(i for i, base in enumerate(lines) if "weighs" in vars(base))
    return cls.weighs and not any(name in vars(base) for base in lines[:said] for name in ANSWERING)


ANSWERING = ("choose", "apply", "weights", "statistic", "weighted", "combine", "score")


def _derived(kind: type[Any]) -> Iterator[type[Any]]:
    for derived in kind.__subclasses__():
        yield derived
        yield from _derived(derived)


def _weighing(shares: np.ndarray | None) -> dict[str, Any]:
    """What a rule that weighs is handed, and no other."""
    return {} if shares is None else {"shares": shares}


def refuse_previous(rule: Rule, extra: Tensor, squared: np.ndarray | None) -> None:
    """Fails closed where the last aggregate [1, d] is not finite. Its squared norm [1], where somebody has it, tells:
    it is looked at only where that overflowed, perhaps."""
    known = squared is not None and np.isfinite(squared).all()
    if not known and not np.isfinite(kernels.host(kernels.norms(extra))).all():
        raise Refused(f"{rule} needs a finite previous, got one with NaN or infinity.")


def required_rows(pre: Sequence[Mixing], rule: Rule) -> int:
    """The least number of vectors that every stage accepts."""
    n = rule.min_n
    for mixing in reversed(pre):
        n = max(mixing.min_n, mixing.rows_for(n))
    return n


def trusts_a_place(rule: Rule) -> bool:
    """Whether a rule takes the vector at some index for something else than those at others."""
    center = rule.center
    return rule.by_place or (isinstance(center, int) and center >= 0)


def check_rows(pre: Sequence[Mixing], rule: Rule, n: int) -> None:
    """Raises ValueError where n vectors are too few for a stage."""
    for stage in (*pre, rule):
        formula, least = needed(stage)
        if n < least:
            came = f"got {n}" if stage is (pre[0] if pre else rule) else f"got {n} after the mixings"
            wanted = formula if formula == str(least) else f"{formula} = {least}"
            raise ValueError(f"{stage} needs n >= {wanted} vectors, {came}.")
        if stage is not rule:
            n = stage.rows(n)  # type: ignore[union-attr]
    center = rule.center
    least = -2 if rule.uses_previous else -1
    if center is not None and not (isinstance(center, int) and least <= center < n):
        places = (
            f"one of {n} vectors, from 0 on, -1 for the origin{' or -2 for the last aggregate' if least == -2 else ''}"
        )
        raise ValueError(f"{type(rule).__name__} must have a center that is {places}, got {shown(center)}.")


def decide(
    x: Tensor, pre: Sequence[Mixing], rule: Rule, *, previous: Tensor | None = None, draw: Draw = BARE,
    seen: Tensor | None = None, weights: Any = None, rows: np.ndarray | None = None,
) -> Decision:  # fmt: skip
    """F(pre(x)) for [n, d]: one pass for the geometry where a stage needs it, one that makes the result.

    ``seen``: what :func:`look` answers, where somebody has it. ``weights``: [n] what each vector counts. ``rows``:
    which vectors the stages are shown, each at most once, and in which order; all, as they come, by default. What is
    decided is about all n.
    """
    x, n = kernels.contiguous(x.detach()), x.shape[0]
    if rows is not None:
        moved = x.index_select(0, kernels.there(rows, x))
        shares = None if weights is None else shares_of(rule, weights, n)[rows]
        decision = decide(moved, pre, rule, previous=previous, draw=draw, weights=shares)
        if not moved.is_inference() and moved._version:  # where nobody moves them, others see it
            raise ValueError(f"{rule} wrote into the vectors that it was shown; it must clone what it changes.")
        return decision.among(rows, n)
    first, shares = x, None
    check_rows(pre, rule, n)
    if weights is not None:
        check_weighs(pre, rule)
        shares = shares_of(rule, weights, n)
        places = np.flatnonzero(shares)
        check_shares(rule, shares[places])
        if places.size < n:
            weighing = x.index_select(0, kernels.there(places, x))
            return decide(weighing, pre, rule, previous=previous, draw=draw, weights=shares[places]).among(places, n)
        shares = None if (shares == 1).all() else shares
    if rule.needs_root and previous is None:
        raise ValueError(
            f"{rule} needs previous=root, the vector that the server computes on data it trusts, got none."
        )
    previous = None if not rule.uses_previous else kernels.zeros_like_row(x) if previous is None else previous
    if previous is not None:
        require(rule, previous.shape == x.shape[1:], f"previous of shape [{x.shape[1]}]", list(previous.shape))
    extra = None if previous is None else previous.unsqueeze(0)
    geometry, came, unit, sight = None, None, 1.0, sights(pre, rule)[0]

    def measured(x: Tensor, extra: Tensor | None) -> np.ndarray:
        found = kernels.host(_seen(sight, x, extra) if seen is None or x is not first else seen)
        if extra is not None:
            refuse_previous(rule, extra, found[-1, n:-1])
        return found

    if sight != "nothing":
        geometry, held = Geometry.seen(x, extra, measured)
        x, unit, previous, came = held.x, held.unit, None if held.extra is None else held.extra[0], geometry
    elif extra is not None:
        refuse_previous(rule, extra, None)
    table, geometry = weigh(n, pre, rule, geometry, draw=draw, shares=shares)
    answer = rule.apply(x, table, previous, *([draw] if rule.draws else []), **_weighing(shares))
    answer = checked_answer(rule, answer, x)
    return Decision(answer if unit == 1 else answer * unit, table, geometry, came=came)


Sight = Literal["nothing", "pairs"] | int
"""Squared distances that somebody looks at: none, those of all pairs and norms, or norms and those to one point, which
is given by its index (see :attr:`Rule.center`)."""


def sights(pre: Sequence[Mixing], rule: Rule) -> list[Sight]:
    """What is looked at, of the vectors that come to each mixing and, last, to the rule: by it or by what follows."""
    center = rule.center
    found: list[Sight] = [("pairs" if center is None else center) if rule.needs_geometry else "nothing"]
    for mixing in reversed(pre):
        after = found[0]
        if mixing.norms_only and after == "nothing":
            found.insert(0, -1)
        else:  # scaled norms, and scaled distances to one point, need no others; norms of sums do
            found.insert(0, after if mixing.norms_only and mixing.scales else "pairs")
    return found


def measure(x: Tensor, pre: Sequence[Mixing], rule: Rule, extra: Tensor | None) -> Tensor | None:
    """The squared distances that the stages look at, for :meth:`Geometry.measured_as`, on the device of the vectors;
    None where no stage does."""
    sight = sights(pre, rule)[0]
    if sight == "nothing":
        return None
    return kernels.squared_distances(x, extra) if sight == "pairs" else distances_from(x, extra, sight)


def look(x: Tensor, pre: Sequence[Mixing], rule: Rule) -> Tensor | None:
    """The squared distances that :func:`decide` begins with, on the device of the vectors; None where it begins with
    none, or where the rule looks at the last aggregate too."""
    sight = sights(pre, rule)[0]
    return None if sight == "nothing" or rule.uses_previous else _seen(sight, x, None)


def _seen(sight: Sight, x: Tensor, extra: Tensor | None) -> Tensor:
    assert sight != "nothing"
    return squared_pairs(x, extra) if sight == "pairs" else distances_from(x, extra, sight)


def weigh(
    n: int, pre: Sequence[Mixing], rule: Rule, geometry: Geometry | None, *, draw: Draw = BARE,
    shares: np.ndarray | None = None,
) -> tuple[np.ndarray | None, Geometry | None]:  # fmt: skip
    """What is decided in n x n: the weights for :meth:`Rule.apply`, and the geometry that the rule saw."""
    table = None
    if geometry is not None:
        if shares is None:
            refuse_faulty(rule, rule.f, geometry.faulty)
        else:
            refuse_overweight(rule, shares, ~geometry.finite)
        for mixing, after in zip(pre, sights(pre, rule)[1:], strict=True):
            geometry = mixing.mix(geometry, draw, seen=after != "nothing")
        geometry = geometry if shares is None else replace(geometry, shares=shares)
        n, table = geometry.n, geometry.table
    selection = rule.choose(n, geometry, **_weighing(shares))
    if selection is not None:
        widths, rows = (n, n + (0 if geometry is None else geometry.vectors.e)), np.shape(selection)[:1]
        selection = checked_weights(rule, selection, *((w,) for w in widths), *((*rows, w) for w in widths))
        table = selection if geometry is None else geometry.through(selection)
    return table, geometry if rule.needs_geometry else None


def _plain(x: np.ndarray) -> bool:
    """Whether torch can share the memory: writable, and no step backwards (numpy may call that contiguous)."""
    return x.flags.c_contiguous and x.flags.writeable and min(x.strides, default=0) >= 0


def as_previous(owner: object, previous: Any, matrix: Tensor) -> Tensor | None:
    """[d], the last aggregate or the root, as a tensor like the vectors; None if there is none."""
    if previous is None:
        return None
    try:
        vector = torch.as_tensor(previous, dtype=matrix.dtype, device=matrix.device).detach()
    except (TypeError, ValueError, RuntimeError):  # torch's and numpy's words about what is no vector
        vector = None
    if vector is None or not_dense(vector) or vector.shape != matrix.shape[1:]:
        came = kind_of(previous) if vector is None or not_dense(vector) else list(vector.shape)
        raise ValueError(f"{type(owner).__name__} needs previous of shape [{matrix.shape[1]}], got {came}.")
    return vector


def _numbers(name: str, rows: Sequence[Any]) -> np.ndarray:
    """[n, d] float64 of lists of numbers."""
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(f"{name} needs vectors of one length, got {', '.join(map(str, lengths))}.")
    for value in (value for row in rows for value in row):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"{name} needs vectors of numbers, got {shown(value)} among them.")
    return np.array(rows, np.float64)


def as_matrix(owner: object, x: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """[n, d] as a tensor, row after row (sharing memory where it can), and the way back to the kind that came."""
    name = type(owner).__name__
    if isinstance(x, (list, tuple)):
        if not x:
            raise ValueError(f"{name} needs n >= 1 vectors, got an empty {type(x).__name__}.")
        if all(isinstance(v, (list, tuple)) for v in x):
            return as_matrix(owner, _numbers(name, x))
        kinds = {Tensor if isinstance(v, Tensor) else type(v) for v in x}
        if kinds not in ({Tensor}, {np.ndarray}) or len({(v.dtype, str(getattr(v, "device", ""))) for v in x}) > 1:
            names = sorted({kind_of(v) for v in x})
            raise ValueError(
                f"{name} needs vectors that are all tensors or all arrays, of one type, got {shown(names)}."
            )
        arrays = kinds == {np.ndarray}
        shapes = {tuple(np.shape(v)) for v in x}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"{name} needs vectors of one shape [d], got shapes {sorted(shapes)}.")
        x = np.stack(x) if arrays else torch.stack(list(x))
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(f"{name} needs an array without a mask, got a masked one: fill it first, x.filled(value).")
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f" or x.dtype.itemsize > 8:
            raise ValueError(f"{name} needs floating-point vectors (float16, float32, float64), got {x.dtype}.")
        native = x.astype(x.dtype.newbyteorder("="), copy=False)
        matrix = torch.from_numpy(native if _plain(native) else native.copy())
        kind = x.dtype

        def restore(y: Tensor) -> Any:
            return y.numpy().astype(kind, copy=False)
    elif isinstance(x, Tensor):
        if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(
                f"{name} needs floating-point vectors (float16, bfloat16, float32, float64), got {x.dtype}."
            )
        if came := not_dense(x):
            raise ValueError(f"{name} needs a dense tensor, got {came}.")
        matrix, device = kernels.where_float64_is(x.detach()), x.device
        restore = (lambda y: y) if matrix.device == device else (lambda y: y.to(device))
    else:
        raise ValueError(f"{name} needs a tensor, an array or a list of vectors, got {type(x).__name__}.")
    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise ValueError(f"{name} needs [n, d] with d >= 1, got shape {list(matrix.shape)}.")
    return kernels.contiguous(matrix), restore
