"""Why an aggregate is what it is: the weights, scores and distances behind it, as a small table.

Every rule is explained, a user's own too, from what its class says: its weights or its statistic of columns, and its
``score`` if it has one. What suspicion and rejection are is said in :mod:`varangian.core.evidence`, once for
explanations, replays and the reports of all engines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import kernels
from .algorithm import Algorithm
from .checks import shown
from .evidence import (
    cosines,
    distances_and_norms,
    mean_weights_in,
    rejected,
    scores_of,
    suspicion,
    weight_by_share,
)
from .randomness import Draw
from .shares import shares_of
from .stages import Rule, as_matrix, as_previous, decide

COORDINATES = 1 << 17  # of a coordinate-wise rule, that are looked at: evenly spaced ones where there are more


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a server decided about n vectors, vector by vector. ``str()`` of it is a table.

    Attributes:
        algorithm: what decided, as text.
        aggregate: [d], what came out, of the kind that went in.
        weight: [n] how much of the answer is each vector: its weight, or for coordinate-wise rules its mean weight over
            coordinates; None for rules that do not tell.
        score: [n] the rule's own score, lower is better (of the vectors behind any mixings); None where it has none.
        score_name: what the score is; "" without one.
        distance: [n] to the aggregate; NaN for vectors that are not finite.
        cosine: [n] to the aggregate; NaN for vectors that are not finite, and where one of the two is zero.
        norm: [n]; NaN for vectors that are not finite.
        finite: [n] whether a vector holds neither NaN nor infinity.
        rejected: [n] whether a vector is not finite, or of less than a tenth of an equal share of the weights.
        suspicion: [n] from 0, usual, to 1, see :func:`varangian.core.evidence.suspicion`: of distance and cosine.
        coordinates: how many coordinates the weights of a coordinate-wise rule were counted on; 0 for other rules.
        shown: [n] whether a vector was shown to the stages. Of others the weight is 0, and nothing else is known.
    """

    algorithm: str
    aggregate: Any
    weight: np.ndarray | None
    score: np.ndarray | None
    score_name: str
    distance: np.ndarray
    cosine: np.ndarray
    norm: np.ndarray
    finite: np.ndarray
    rejected: np.ndarray
    suspicion: np.ndarray
    coordinates: int
    shown: np.ndarray

    @property
    def selected(self) -> np.ndarray | None:
        """[n] whether a vector has any weight; None for rules that do not tell."""
        return None if self.weight is None else self.weight > 0

    def __str__(self) -> str:
        n = self.finite.size
        kept = "" if self.selected is None else f", {int(self.selected.sum())} with weight"
        hidden = "" if self.shown.all() else f", {int((~self.shown).sum())} not shown"
        lines = [f"{self.algorithm}: {n} vectors{hidden}{kept}"]
        if self.coordinates:
            lines.append(f"weight: mean over {self.coordinates:,} coordinates")
        if self.score_name:
            lines.append(f"score: {self.score_name}")
        lines.append("suspicion: the greater of 1 - median distance / distance and -cosine, from 0")
        columns: dict[str, list[str]] = {"index": [str(i) for i in range(n)]}
        if self.weight is not None:
            columns["weight"] = [f"{w:.4f}" if w else "-" for w in self.weight]
        if self.score is not None:
            columns["score"] = [_number(s) for s in self.score]
        columns["distance"] = [_number(v) for v in self.distance]
        columns["cosine"] = [f"{c:.3f}" if np.isfinite(c) else "-" for c in self.cosine]
        columns["norm"] = [_number(v) for v in self.norm]
        columns["finite"] = [
            "-" if not s else "yes" if f else "NO" for f, s in zip(self.finite, self.shown, strict=True)
        ]
        columns["suspicion"] = ["-" if np.isnan(s) else f"{s:.2f}" for s in self.suspicion]
        if hidden:
            columns["shown"] = ["yes" if shown else "NO" for shown in self.shown]
        widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
        lines.append("  ".join(name.rjust(width) for name, width in widths.items()))
        lines += ["  ".join(cells[i].rjust(widths[name]) for name, cells in columns.items()) for i in range(n)]
        return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "-"


def explain(
    x: Any,
    algorithm: Algorithm | Rule,
    previous: Any = None,
    *,
    coordinates: int = COORDINATES,
    step: int = 0,
    seed: int = 0,
    weights: Any = None,
    rows: np.ndarray | None = None,
) -> Explanation:
    """Who was selected or weighed down by an algorithm's mixings and rule, with scores, distances and norms.

    Args:
        x: [n, d] the vectors, as for a rule; only read.
        algorithm: an algorithm, or just a rule.
        previous: [d] the last aggregate, for rules that use it.
        coordinates: the most that a coordinate-wise rule's weights are counted on. All where d is no more, otherwise
            so many evenly spaced ones: shares are then a sample's, everything else is exact.
        step: as in the state of the algorithm, which says what rules and mixings that draw have drawn.
        seed: likewise.
        weights: [n] what each vector counts, as for the algorithm.
        rows: which vectors the stages are shown, and in which order, as for :meth:`Algorithm.decide`; all, as they
            come, by default. A quarantine that the algorithm has excludes nobody here: whom it would, its state knows.

    Raises:
        ValueError: as the algorithm would.

    Example:
        >>> import torch, varangian as vg
        >>> x = torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.9, 0.1], [1.0, 0.1], [9.0, 9.0]])
        >>> print(explain(x, vg.Median(f=1)))
        Median(f=1): 5 vectors, 3 with weight
        weight: mean over 2 coordinates
        suspicion: the greater of 1 - median distance / distance and -cosine, from 0
        index  weight  distance  cosine    norm  finite  suspicion
            0  0.2500       0.1   0.995       1     yes       0.00
            1       -    0.1414   0.995     1.1     yes       0.29
            2  0.2500       0.1   1.000  0.9055     yes       0.00
            3  0.5000         0   1.000   1.005     yes       0.00
            4       -     11.97   0.774   12.73     yes       0.99
    """
    if not isinstance(algorithm, (Algorithm, Rule)):
        raise ValueError(f"explain needs an algorithm or a rule, got {shown(algorithm)}.")
    pre, rule = (algorithm.pre, algorithm.rule) if isinstance(algorithm, Algorithm) else ((), algorithm)
    matrix, restore = as_matrix(rule, x)
    previous = as_previous(rule, previous, matrix)
    if rows is not None:
        n, heard = len(matrix), None if weights is None else shares_of(rule, weights, len(matrix))[rows]
        some = matrix.index_select(0, kernels.there(rows, matrix))
        found = explain(
            some, algorithm, previous, coordinates=coordinates, step=step, seed=seed, weights=heard
        )  # fmt: skip
        return _among(replace(found, aggregate=restore(found.aggregate)), rows, n)
    draw = Draw(seed, step)
    decision = decide(matrix, pre, rule, previous=previous, draw=draw, weights=weights)
    n, looked_at, weight = matrix.shape[0], 0, None
    shares = np.ones(n) if weights is None else shares_of(rule, weights, n)
    measured = distances_and_norms(matrix, decision.aggregate)
    statistic = rule.statistic(n if decision.table is None else decision.table.shape[0])
    if statistic is not None:
        columns = _sample(matrix.shape[1], coordinates)
        looked_at = columns.size
        block = matrix.index_select(1, kernels.there(columns, matrix))
        if (shares == 1).all():
            measured, weight = kernels.host(measured, mean_weights_in(block, decision.table, statistic))
        else:
            mixed = block if decision.table is None else kernels.weighted_rows(block, decision.table)
            measured, values = kernels.host(measured, mixed.double())
            weight = weight_by_share(rule, values, shares)
    else:
        measured = kernels.host(measured)
        if decision.table is not None and decision.table.ndim == 1:
            weight = decision.table[:n]
    norm, distance = np.sqrt(measured[:2])
    finite, cosine = np.isfinite(norm), cosines(*measured)
    score, score_name = scores_of(matrix, pre, rule, decision.geometry, draw=draw), ""
    if score is not None:
        score_name = (rule.score_name or f"score of {type(rule).__name__}") + (", after mixing" if pre else "")
    return Explanation(
        algorithm=" > ".join(map(str, (*pre, rule))),
        aggregate=restore(decision.aggregate),
        weight=weight,
        score=score,
        score_name=score_name,
        distance=np.where(finite, distance, np.nan),
        cosine=np.where(finite, cosine, np.nan),
        norm=np.where(finite, norm, np.nan),
        finite=finite,
        rejected=rejected(None if weight is None else weight / np.where(shares > 0, shares, 1), finite),
        suspicion=suspicion(distance, finite, cosine),
        coordinates=looked_at,
        shown=np.ones(n, bool),
    )


def _among(found: Explanation, rows: np.ndarray, n: int) -> Explanation:
    """The same about n vectors, of which those at other places were not shown."""

    def spread(values: np.ndarray | None, otherwise: Any) -> Any:
        if values is None:
            return None
        every = np.full(n, otherwise, values.dtype)
        every[rows] = values
        return every

    known = ("score", "distance", "cosine", "norm", "suspicion")
    return replace(
        found,
        weight=spread(found.weight, 0.0),
        finite=spread(found.finite, True),
        rejected=spread(found.rejected, False),
        shown=spread(found.shown, False),
        **{name: spread(getattr(found, name), np.nan) for name in known},
    )


def _sample(d: int, most: int) -> np.ndarray:
    return np.arange(d) if d <= most else np.linspace(0, d - 1, most).astype(np.int64)


__all__ = ["Explanation", "explain"]
