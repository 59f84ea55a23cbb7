"""Bulyan: a selection in n x n, followed by a rule in columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from ..checks import require, set_whole
from ..geometry import Geometry, Ties, mean_weights
from ..stages import Bound, Rule, Statistic, column_statistic
from .coordinatewise import Even, median_ranks
from .selecting import krum_scores, krum_variance, sure_scores


@dataclass(frozen=True)
class Bulyan(Rule):
    """Selects repeatedly with Krum, then per coordinate averages the selected values closest to their median.

    base="krum": Krum on what remains, n - 2f times, each winner removed; then per coordinate the mean of the n - 4f of
    them closest to their median.
    base="multi-krum" (the poster's "Bulyan of Multi-Krum"): n - 2f - 2 rounds, each giving the mean of the m best of
    what remains and removing the best; then the mean of the n - 4f - 2 closest to the median.

    Args:
        f: Byzantine vectors tolerated.
        base: the rule that selects.
        selection: "rescored" computes scores anew on what remains, "frozen" keeps those of all n vectors.
        m: with base="multi-krum", how many a round averages, of n' that remain n' - f at most; by default n' - f - 2.
        distance: what the scores sum.
        even: which median, for an even number of selected vectors.
        ties: of equal scores the lexicographically smaller vector's is taken ("value"), or that of the one that stands
            first ("position", which does not follow the vectors when they are permuted).

    Shape: [n, d] -> [d].
    Tolerates: f <= (n - 3) / 4.
    Cost: one pass for n x n distances, one that mixes and sorts columns; the selected vectors are never stored.
    Convention: the scores of n' remaining vectors sum their n' - f - 2 nearest, and one at least. The paper of
        distributed momentum ran base="multi-krum", selection="frozen", distance="plain", even="lower",
        ties="position" (``published("bulyan", f)``). Of two values equally close the lower is taken.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [1e30]])
        >>> Bulyan(f=1)(x)
        tensor([3.])

    Reference: El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML
    2018.
    """

    base: Literal["krum", "multi-krum"] = "krum"
    selection: Literal["rescored", "frozen"] = "rescored"
    m: int | None = None
    distance: Literal["squared", "plain"] = "squared"
    even: Even = "mid"
    ties: Ties = "value"

    title: ClassVar[str] = "Bulyan"
    published: ClassVar[Mapping[str, Any] | None] = {
        "base": "multi-krum",
        "selection": "frozen",
        "distance": "plain",
        "even": "lower",
        "ties": "position",
    }
    score_name: ClassVar[str] = "Krum's score, of the first round"
    needs_geometry: ClassVar[bool] = True
    columnwise: ClassVar[bool] = True
    variance: ClassVar[Bound | None] = staticmethod(krum_variance)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.base in ("krum", "multi-krum"), 'base "krum" or "multi-krum"', self.base)
        require(self, self.selection in ("rescored", "frozen"), 'selection "rescored" or "frozen"', self.selection)
        set_whole(self, "m", least=1, optional=True)
        require(self, self.m is None or self.base == "multi-krum", 'base="multi-krum" for m to mean anything', self.m)
        require(self, self.distance in ("squared", "plain"), 'distance "squared" or "plain"', self.distance)
        require(self, self.even in ("mid", "lower", "upper"), 'even "mid", "lower" or "upper"', self.even)
        require(self, self.ties in ("value", "position"), 'ties "value" or "position"', self.ties)

    @property
    def needs(self) -> tuple[str, int]:
        least = 4 * self.f + 3
        # As for MultiKrum; later rounds, of fewer vectors, average all but f of them.
        return ("4f + 3", least) if self.m is None or self.m + self.f <= least else ("m + f", self.m + self.f)

    def choose(self, n: int, geometry: Geometry | None) -> np.ndarray:
        """[rounds, n]: what each round selects."""
        assert geometry is not None
        f = self.f
        rounds = n - 2 * f if self.base == "krum" else n - 2 * f - 2
        remaining = ranking = np.arange(n)

        def score(among: np.ndarray) -> Callable[[Geometry], np.ndarray]:
            return lambda points: krum_scores(points, f, distance=self.distance, among=among)

        if self.selection == "frozen":
            geometry, scores = sure_scores(geometry, score(remaining), range(1, n), ties=self.ties)
            ranking = geometry.smallest(scores, n, ties=self.ties)
        rows = []
        for _ in range(rounds):
            left = remaining.size
            if self.base == "krum":
                count = 1
            elif self.m is not None:
                count = max(min(self.m, left - f), 1)
            else:
                count = max(left - f - 2, 1)
            if self.selection == "rescored":
                geometry, scores = sure_scores(geometry, score(remaining), [1, count], ties=self.ties, among=remaining)
                ranking = geometry.smallest(scores, left, remaining, self.ties)
            rows.append(mean_weights(ranking[:count], n))
            best, ranking = ranking[0], ranking[1:]
            remaining = remaining[remaining != best]
        return np.stack(rows)

    def apply(self, x: Tensor, table: np.ndarray | None, previous: Tensor | None) -> Tensor:
        assert table is not None
        return column_statistic(self, x, self.statistic(table.shape[0]), table)

    def statistic(self, n: int) -> Statistic:
        return (*median_ranks(n, self.even), max(n - 2 * self.f, 1))

    def score(self, geometry: Geometry) -> np.ndarray:
        return krum_scores(geometry, self.f, distance=self.distance)
