"""Why an aggregate is what it is: the weights, scores and distances behind it, as a small table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .algorithm import Algorithm
from .checks import shown
from .geometry import Geometry
from .randomness import Draw
from .rules import (
    Bulyan,
    ComparativeGradientElimination,
    Coordinatewise,
    Krum,
    Medoid,
    MoNNA,
    MultiKrum,
    Rule,
)
from .rules.central import distance_sums
from .rules.coordinatewise import median_ranks
from .rules.selecting import krum_scores
from .stages import as_matrix, as_previous, decide

COORDINATES = 1 << 17  # of a coordinate-wise rule, that are looked at: evenly spaced ones where there are more
BLOCK = 4096  # columns sorted at a time

Score = tuple[str, Callable[[Any, Geometry], np.ndarray]]

SCORES: dict[type[Rule], Score] = {
    Krum: ("Krum's score", lambda r, g: krum_scores(g, r.f, r.neighbours, r.distance)),
    MultiKrum: ("Krum's score", lambda r, g: krum_scores(g, r.f, r.neighbours, r.distance)),
    Bulyan: ("Krum's score, of the first round", lambda r, g: krum_scores(g, r.f, distance=r.distance)),
    Medoid: ("sum of distances, but for a constant", lambda r, g: distance_sums(g)),
    ComparativeGradientElimination: ("norm", lambda r, g: np.sqrt(g.norms)),
    MoNNA: ("distance to the pivot", lambda r, g: np.sqrt(g.distances[r.pivot])),
}
"""Rules that order the vectors by a score of their own, lower being better: what it is, and how to get it."""


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
        norm: [n]; NaN for vectors that are not finite.
        finite: [n] whether a vector holds neither NaN nor infinity.
        suspicion: [n] ranks, 1 for the most suspicious: not finite first, then least weight, then highest score, then
            greatest distance; vectors that agree in all share a rank.
        coordinates: how many coordinates the weights of a coordinate-wise rule were counted on; 0 for other rules.
    """

    algorithm: str
    aggregate: Any
    weight: np.ndarray | None
    score: np.ndarray | None
    score_name: str
    distance: np.ndarray
    norm: np.ndarray
    finite: np.ndarray
    suspicion: np.ndarray
    coordinates: int

    @property
    def selected(self) -> np.ndarray | None:
        """[n] whether a vector has any weight; None for rules that do not tell."""
        return None if self.weight is None else self.weight > 0

    def __str__(self) -> str:
        n = self.finite.size
        kept = "" if self.selected is None else f", {int(self.selected.sum())} with weight"
        lines = [f"{self.algorithm}: {n} vectors{kept}"]
        if self.coordinates:
            lines.append(f"weight: mean over {self.coordinates:,} coordinates")
        if self.score_name:
            lines.append(f"score: {self.score_name}")
        columns: dict[str, list[str]] = {"index": [str(i) for i in range(n)]}
        if self.weight is not None:
            columns["weight"] = [f"{w:.4f}" if w else "-" for w in self.weight]
        if self.score is not None:
            columns["score"] = [_number(s) for s in self.score]
        columns["distance"] = [_number(v) for v in self.distance]
        columns["norm"] = [_number(v) for v in self.norm]
        columns["finite"] = ["yes" if f else "NO" for f in self.finite]
        columns["suspicion"] = [str(r) for r in self.suspicion]
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
    coordinates: int = COORDINATES,
    step: int = 0,
    seed: int = 0,
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

    Raises:
        ValueError: as the algorithm would.

    Example:
        >>> import torch, varangian as vg
        >>> x = torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.9, 0.1], [1.0, 0.1], [9.0, 9.0]])
        >>> print(explain(x, vg.Median(f=1)))
        Median(f=1): 5 vectors, 3 with weight
        weight: mean over 2 coordinates
        index  weight  distance    norm  finite  suspicion
            0  0.2500       0.1       1     yes          4
            1       -    0.1414     1.1     yes          2
            2  0.2500       0.1  0.9055     yes          3
            3  0.5000         0   1.005     yes          5
            4       -     11.97   12.73     yes          1
    """
    if not isinstance(algorithm, (Algorithm, Rule)):
        raise ValueError(f"explain needs an algorithm or a rule, got {shown(algorithm)}.")
    pre, rule = (algorithm.pre, algorithm.rule) if isinstance(algorithm, Algorithm) else ((), algorithm)
    matrix, restore = as_matrix(rule, x)
    previous = as_previous(rule, previous, matrix)
    decision = decide(matrix, pre, rule, previous, Draw(seed, step))
    n, looked_at, weight = matrix.shape[0], 0, None
    statistic = statistic_of(rule, n if decision.table is None else decision.table.shape[0])
    if statistic is not None:
        columns = _sample(matrix.shape[1], coordinates)
        looked_at = columns.size
        weight = shares_of(matrix, decision.table, statistic, columns)
    elif decision.table is not None and decision.table.ndim == 1:
        weight = decision.table[:n]

    norm = kernels.squared_norms(matrix).sqrt().cpu().numpy()
    finite = np.isfinite(norm)
    distance = np.sqrt(kernels.squared_distances_to(matrix, decision.aggregate))
    score, score_name = None, ""
    stays = all(mixing.aligned for mixing in pre)  # mixed vector i is still vector i
    if type(rule) in SCORES and decision.geometry is not None and stays:
        score_name, measure = SCORES[type(rule)]
        if pre:
            score_name += ", after mixing"
        score = np.where(decision.geometry.finite, measure(rule, decision.geometry), np.inf)
    return Explanation(
        algorithm=" > ".join(map(str, (*pre, rule))),
        aggregate=restore(decision.aggregate),
        weight=weight,
        score=score,
        score_name=score_name,
        distance=np.where(finite, distance, np.nan),
        norm=np.where(finite, norm, np.nan),
        finite=finite,
        suspicion=_ranks(finite, weight, score, distance),
        coordinates=looked_at,
    )


def statistic_of(rule: Rule, m: int) -> tuple[int, int, int] | None:
    """(low, high, window) of rules that end in columns of m values."""
    if isinstance(rule, Coordinatewise):
        return rule.statistic(m)
    if isinstance(rule, Bulyan):
        return (*median_ranks(m, rule.even), max(m - 2 * rule.f, 1))
    return None


def _sample(d: int, most: int) -> np.ndarray:
    return np.arange(d) if d <= most else np.linspace(0, d - 1, most).astype(np.int64)


def shares_of(x: Tensor, table: np.ndarray | None, statistic: tuple[int, int, int], columns: np.ndarray) -> np.ndarray:
    """[n] mean weights of the vectors over some columns."""
    n = x.shape[0]
    total = np.zeros(n if table is None else table.shape[0])
    for start in range(0, columns.size, BLOCK):
        chosen = torch.from_numpy(columns[start : start + BLOCK]).to(x.device)
        block = x[:, chosen].double()
        if table is not None:
            block = kernels.weighted_rows(block, table[:, :n])
        total += column_weights(block.cpu().numpy(), *statistic).sum(1)
    shares = total / max(columns.size, 1)
    return shares if table is None else shares @ table[:, :n]


def column_weights(values: np.ndarray, low: int, high: int, window: int) -> np.ndarray:
    """[m, d] the weight of each value in the statistic of its column (see :func:`.kernels.column_statistic`).

    Equal values share their weight. Values that are not numbers count as infinite.
    """
    m, d = values.shape
    values = np.where(np.isnan(values), np.inf, values)
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    weights = np.zeros((m, d))
    weights[low:high] = 1 / (high - low)
    if window:
        center = ordered[low:high].mean(0)
        first = np.zeros(d, np.int64)
        for s in range(m - window):
            first += ordered[s] + ordered[s + window] < 2 * center
        ranks = np.arange(m)[:, None]
        weights = ((ranks >= first) & (ranks < first + window)) / window
    group = np.zeros((m, d), np.int64)
    group[1:] = np.cumsum(ordered[1:] != ordered[:-1], axis=0)
    group = (group + np.arange(d) * m).reshape(-1)
    sizes = np.bincount(group, minlength=m * d)
    means = np.bincount(group, weights.reshape(-1), m * d) / np.maximum(sizes, 1)
    result = np.empty((m, d))
    np.put_along_axis(result, order, means[group].reshape(m, d), axis=0)
    return result


def _ranks(finite: np.ndarray, weight: np.ndarray | None, score: np.ndarray | None, distance: np.ndarray) -> np.ndarray:
    """1 for the most suspicious; equal ones share the better rank."""
    zeros = np.zeros(finite.size)
    with np.errstate(over="ignore"):
        keys = np.stack(
            [
                finite,
                zeros if weight is None else weight,
                zeros if score is None else -np.where(finite, score, 0),
                -np.where(finite, distance, 0),
            ]
        ).astype(np.float32)  # what differs by rounding alone is equal
    order = np.lexsort(keys[::-1])
    fresh = np.append(True, (keys[:, order[1:]] != keys[:, order[:-1]]).any(0))
    ranks = np.empty(finite.size, np.int64)
    ranks[order] = np.maximum.accumulate(np.where(fresh, np.arange(1, finite.size + 1), 0))
    return ranks


__all__ = ["Explanation", "explain"]
