"""What vectors on a line through the honest mean do to a defence."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, sqrt

import numpy as np
import torch
from torch import Tensor

from .. import kernels, numerics
from ..geometry import Geometry
from ..rules import Rule, Selecting
from ..stages import check_rows, deferred_refusals, refuse_faulty
from .base import ComposedDefence, Knowledge

STEP = 3.0  # between the first factors tried on a line


def next_place(tried: dict[int | float, float]) -> float:
    """Where to try next, given the damage at the places tried: the middle of the wider gap beside the best, or a step
    beyond an end."""
    best = max(tried, key=lambda place: tried[place])
    below = max((place for place in tried if place < best), default=None)
    above = min((place for place in tried if place > best), default=None)
    if above is None:
        return best + 1
    if below is None:
        return best - 1
    return (best + above) / 2 if above - best >= best - below else (best + below) / 2


def _by_weights(rule: Rule) -> bool:
    """Whether its weights say it all; one that somebody derived may do more with the vectors."""
    return type(rule).apply is Selecting.apply


class Trials:
    """The damage of vectors mean + scale * p for some lines p; on distances alone where the defence allows it.

    Where not all honest vectors are known, those that are stand for all, in turn.

    Args:
        seen: what the adversary knows.
        units: [d] each, the p of each line.
    """

    def __init__(self, seen: Knowledge, units: list[Tensor]) -> None:
        assert seen.defence is not None
        self.seen, self.units, self.defence = seen, units, seen.defence
        self.known, self.h, self.f = seen.honest.shape[0], seen.h, seen.f
        self.standing = np.arange(self.h) % self.known
        self.geometry: Geometry | None = None
        d = seen.honest.shape[1]
        if (
            isinstance(self.defence, ComposedDefence)
            and self.defence.weights is None
            and _by_weights(self.defence.rule)
        ):
            rows = self.defence.rows
            check_rows(self.defence.pre, self.defence.rule, self.h + self.f if rows is None else rows.size)
            points = torch.stack([seen.mean + unit for unit in units])
            extra = None
            if self.defence.rule.uses_previous:
                extra = points.new_zeros(1, d) if self.defence.previous is None else self.defence.previous.unsqueeze(0)
            self.geometry = Geometry.of(torch.cat([seen.honest, points]), extra)
        else:
            honest = seen.honest
            if self.known != self.h:
                honest = honest.index_select(0, kernels.there(self.standing, honest))
            self.vectors = torch.cat([honest, honest.new_empty(self.f, d)])

    def vector(self, line: int, scale: float) -> Tensor:
        """[d] the point of a line at a scale."""
        return torch.add(self.seen.mean, self.units[line], alpha=scale)

    def damages(self, places: Sequence[tuple[int, float]]) -> list[float]:
        """How far F moves from the honest mean for a line and a scale each; infinitely where it is not finite any more.

        A device is waited for once.
        """
        if self.geometry is not None:
            unit = self.geometry.unit
            found = [sqrt(self._by_distances(self.geometry, line, scale)) * unit for line, scale in places]
        elif kernels.on_device(self.vectors):
            found = self._tried_there(places)
        else:
            found = [self._tried(line, scale) for line, scale in places]
        return [moved if isfinite(moved) else inf for moved in found]

    def _answer(self, line: int, scale: float) -> Tensor:
        self.vectors[self.h :] = self.vector(line, scale)
        return self.defence(self.vectors)

    def _tried(self, line: int, scale: float) -> float:
        answer = self._answer(line, scale)
        squared = float(kernels.host(kernels.squared_distances_to(answer.unsqueeze(0), self.seen.mean))[0])
        in_range = numerics.VANISHING < squared < inf
        return sqrt(squared) if in_range else float(kernels.norms(answer - self.seen.mean))

    def _tried_there(self, places: Sequence[tuple[int, float]]) -> list[float]:
        """The same of several, which a device is asked for before anything is looked at: refusals too."""
        asked, mean = [], self.seen.mean
        with deferred_refusals() as pending:
            for line, scale in places:
                answer = self._answer(line, scale)
                asked += [kernels.squared_distances_to(answer.unsqueeze(0), mean)[0], kernels.norms(answer - mean)]
        numbers = kernels.host(torch.stack([value.double() for value in (*asked, *(one.faulty for one in pending))]))
        for one, faulty in zip(pending, numbers[len(asked) :], strict=True):
            refuse_faulty(one.stage, one.f, int(faulty))
        squared, lengths = numbers[: len(asked)].reshape(-1, 2).T
        in_range = (squared > numerics.VANISHING) & (squared < inf)
        return np.where(in_range, np.sqrt(squared), lengths).tolist()

    def _by_distances(self, base: Geometry, line: int, scale: float) -> float:
        assert isinstance(self.defence, ComposedDefence)
        weights = np.zeros((self.h + self.f, base.n))
        weights[np.arange(self.h), self.standing] = 1
        weights[self.h :, : self.known] = (1 - scale) / self.known
        weights[self.h :, self.known + line] = scale
        geometry = base.mix(weights if self.defence.rows is None else weights[self.defence.rows])
        for mixing in self.defence.pre:
            geometry = mixing.mix(geometry, self.defence.draw)
        selection = self.defence.rule.choose(geometry.n, geometry)
        assert selection is not None
        moved = geometry.through(selection)
        moved[: self.known] -= 1 / self.known
        # ||sum of c_i x_i||^2 = -1/2 sum of c_i c_j ||x_i - x_j||^2 once the c add up to 0, with the origin's share.
        moved = np.append(moved, -moved.sum())
        return max(float(-0.5 * moved @ base.squared @ moved), 0.0)
