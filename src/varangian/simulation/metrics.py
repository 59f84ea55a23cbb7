"""What the paper measures at each step, from a few d-vectors and moments that the step computed anyway."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from operator import eq
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ..core import kernels, numerics


@dataclass(frozen=True)
class Measures:
    """One row of metrics.csv. "sampled" are the honest gradients after clipping, "honest" what honest workers send
    (momentum included), "attack" what Byzantine workers send, "aggregate" the output of F.

    norm is that of the average vector; deviation is sqrt(1 / (m - 1) sum ||x_i - mean||^2); max is the largest absolute
    coordinate of the average. Empty (None) where it means nothing: no attack, a single vector, measuring off.
    Attackers that do not all send the same are measured likewise: norm, max and cosines are of the mean of their f
    vectors, the deviation says how far these are apart, and is 0 where all are equal.
    """

    step: int
    points: int  # training points consumed before this step
    learning_rate: float
    loss: float  # mean over the honest workers
    distance: float | None = None  # ||theta - theta_0||, before the update
    sampled_norm: float | None = None
    sampled_deviation: float | None = None
    sampled_max: float | None = None
    honest_norm: float | None = None
    honest_deviation: float | None = None
    honest_max: float | None = None
    attack_norm: float | None = None
    attack_deviation: float | None = None
    attack_max: float | None = None
    aggregate_norm: float | None = None
    aggregate_max: float | None = None
    cosine_sampled_honest: float | None = None
    cosine_sampled_attack: float | None = None
    cosine_sampled_aggregate: float | None = None
    cosine_honest_attack: float | None = None
    cosine_honest_aggregate: float | None = None
    cosine_attack_aggregate: float | None = None
    cosine_previous: float | None = None  # this and the last step's sampled average
    curvature: float | None = None  # s_t = sum over u < t of mu^(t-u) <g_t, g_u>, g the sampled average
    ratio: float | None = None  # variance-norm ratio of what honest workers send: (deviation / norm)^2
    byzantine_share: float | None = None  # share of the rule's selection that is Byzantine, for selecting rules
    # Of momentum that moves, and in no other run: where it stands (1 at the workers, 0 at the server) and mu, in this
    # step; and what the server makes of it: which share of the differences of gradients persists, how far gradients
    # turn back, and the variance-norm ratios of gradients and of momenta.
    momentum_place: float | None = None
    momentum_mu: float | None = None
    momentum_persistent: float | None = None
    momentum_turning: float | None = None
    ratio_gradients: float | None = None
    ratio_momenta: float | None = None
    # Where not every client is in every round, and in no other run: how many attack in this round, and how many clients
    # have a momentum as it begins.
    attackers: float | None = None
    remembering: float | None = None
    # Where workers count by how much data they hold, and in no other run: the share of all weight that attackers have.
    byzantine_weight: float | None = None
    # Where a quarantine excludes workers, and in no other run: how many are away in this step, and how many of these
    # attack.
    excluded: float | None = None
    excluded_byzantine: float | None = None

    @property
    def columns(self) -> list[str]:
        """The names of the fields that runs of its kind have."""
        return columns_of(
            placement=self.momentum_place is not None,
            rounds=self.attackers is not None,
            weights=self.byzantine_weight is not None,
            quarantine=self.excluded is not None,
        )

    def row(self) -> list[str]:
        """The fields as text: 9 significant digits, nothing for None."""
        values = (getattr(self, name) for name in self.columns)
        return ["" if v is None else f"{v:.9g}" if isinstance(v, float) else str(v) for v in values]


EVERY_COLUMN = [field.name for field in fields(Measures)]
COLUMNS, PLACEMENT, ROUND = EVERY_COLUMN[:-11], EVERY_COLUMN[-11:-5], EVERY_COLUMN[-5:-3]
WEIGHT, QUARANTINE = EVERY_COLUMN[-3:-2], EVERY_COLUMN[-2:]


@cache
def columns_of(placement: bool, rounds: bool, weights: bool = False, quarantine: bool = False) -> list[str]:
    """The columns of runs whose momentum moves, of those that not everybody is in at every step, of those whose workers
    count differently, and of those with a quarantine."""
    more = ((PLACEMENT, placement), (ROUND, rounds), (WEIGHT, weights), (QUARANTINE, quarantine))
    return [*COLUMNS, *(name for names, there in more if there for name in names)]


class Rows(Sequence[Measures]):
    """Measures, kept as plain numbers: 216 bytes a row where objects would take over a thousand.

    Example:
        >>> rows = Rows([Measures(0, 0, 0.1, 2.3), Measures(1, 83, 0.1, 2.2)])
        >>> len(rows), rows[-1].points, rows[1:] == [Measures(1, 83, 0.1, 2.2)]
        (2, 83, True)
    """

    def __init__(self, rows: Iterable[Measures] = ()) -> None:
        self._values, self._missing = array("d"), array("Q")  # a bit for each None, which NaN is not
        self._columns = COLUMNS
        for row in rows:
            self.append(row)

    def append(self, row: Measures) -> None:
        if not self._missing:
            self._columns = row.columns
        elif row.columns != self._columns:
            raise ValueError(
                "the rows of one run have the same columns: of momentum that moves, of rounds, of weights, of a "
                "quarantine, or none."
            )
        values = [getattr(row, name) for name in self._columns]
        self._values.extend(0.0 if v is None else v for v in values)
        self._missing.append(sum(1 << i for i, v in enumerate(values) if v is None))

    def __len__(self) -> int:
        return len(self._missing)

    @overload
    def __getitem__(self, index: int) -> Measures: ...
    @overload
    def __getitem__(self, index: slice) -> list[Measures]: ...
    def __getitem__(self, index: int | slice) -> Measures | list[Measures]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        missing, width = self._missing[place], len(self._columns)
        values = self._values[place * width : (place + 1) * width]
        step, points, *rest = (None if missing >> i & 1 else v for i, v in enumerate(values))
        assert step is not None
        assert points is not None
        named: dict[str, Any] = dict(zip(self._columns[2:], rest, strict=True))
        return Measures(int(step), int(points), **named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Rows, list)) and len(self) == len(other) and all(map(eq, self, other))

    def __repr__(self) -> str:
        return f"{len(self)} rows of measures"


class Meter:
    """Measures one run. Its memory is two d-vectors: the last sampled average and its decaying sum.

    Args:
        initial: [d], the parameters at step 0.
        momentum: mu of the composite curvature.
    """

    def __init__(self, initial: Tensor, momentum: float) -> None:
        self.initial = initial.clone()
        self.momentum = momentum
        self.previous: Tensor | None = None
        self.decayed = torch.zeros_like(initial)

    def measure(
        self,
        base: Measures,
        parameters: Tensor,
        sampled: tuple[Tensor, Tensor],
        honest: tuple[Tensor, Tensor],
        attack: Tensor | None,
        aggregate: Tensor,
        byzantine_share: float | None,
        h: int,
    ) -> Measures:
        """The completed row; waits for it.

        Args:
            base: step, points, learning rate and loss.
            byzantine_share: see :class:`Measures`.
            parameters, sampled, honest, attack, aggregate, h: as for :meth:`read`.
        """
        readings = self.read(
            parameters=parameters, sampled=sampled, honest=honest, attack=attack, aggregate=aggregate, h=h
        )
        return readings.row(replace(base, byzantine_share=byzantine_share), kernels.host(*readings.tensors.values()))

    def read(
        self, *, parameters: Tensor, sampled: tuple[Tensor, Tensor], honest: tuple[Tensor, Tensor],
        attack: Tensor | None, aggregate: Tensor, h: int,
    ) -> Readings:  # fmt: skip
        """What makes a row, still where it was computed: nothing waits for a device.

        Args:
            parameters: [d] before the update.
            sampled, honest: (mean, standard deviation) of the h honest vectors, [d] each.
            attack: [d] or [f, d], what Byzantine workers send; None without an attack.
            aggregate: [d], the output of F.
            h: how many honest workers.
        """
        crafted, spread = None, None
        if attack is not None:
            single = attack.ndim == 1 or attack.shape[0] == 1
            crafted, spread = (
                (attack.reshape(-1, attack.shape[-1])[0], None) if single else kernels.mean_and_std(attack)
            )
        vectors = [sampled[0], honest[0], crafted, aggregate, self.previous, self.decayed, parameters - self.initial]
        tensors = _inner_products([v for v in vectors if v is not None])
        sent = {name: vector for name, vector in zip(NAMES, vectors, strict=False) if vector is not None}
        for name, largest in zip(sent, _largest(list(sent.values())), strict=True):
            tensors[f"{name}_max"] = largest
        if h > 1:
            tensors |= {
                "sampled_deviation": kernels.norms(sampled[1]),
                "honest_deviation": kernels.norms(honest[1]),
            }
        if spread is not None:
            tensors["attack_deviation"] = kernels.norms(spread)
        self.previous = sampled[0].clone() if self.previous is None else self.previous.copy_(sampled[0])
        self.decayed.add_(sampled[0]).mul_(self.momentum)
        return Readings(tensors, [v is not None for v in vectors])


NAMES = ("sampled", "honest", "attack", "aggregate")


@dataclass(frozen=True, eq=False)
class Readings:
    """What a step was measured to be: a few numbers, still where they were computed.

    Attributes:
        tensors: by name: ``products`` of the vectors that there are, the ``units`` that these are in where they are not
            1, and the columns of a row that are no inner products.
        present: which of the vectors there are: sampled, honest, attack, aggregate, the last sampled average, the
            decaying sum, and the way from the start.
    """

    tensors: dict[str, Tensor]
    present: list[bool]

    @np.errstate(invalid="ignore", over="ignore")  # NaN and infinity are answers here
    def row(self, base: Measures, numbers: Sequence[np.ndarray], loss: float | None = None) -> Measures:
        """The completed row, of the numbers of ``tensors`` on the host, and of the loss if the base lacks it."""
        found, k = dict(zip(self.tensors, numbers, strict=True)), len(self.present)
        products, units = np.zeros((k, k)), np.ones(k)
        products[np.ix_(self.present, self.present)] = found.pop("products")
        if "units" in found:
            units[self.present] = found.pop("units")
        sizes = np.sqrt(np.diag(products))
        values: dict[str, float | None] = {name: float(value) for name, value in found.items()}
        values["distance"] = float(sizes[6] * units[6])
        if loss is not None:
            values["loss"] = loss
        for i, name in enumerate(NAMES):
            if self.present[i]:
                values[f"{name}_norm"] = float(sizes[i] * units[i])
                for j in range(i):
                    if self.present[j]:
                        values[f"cosine_{NAMES[j]}_{name}"] = _cosine(products, j, i)
        deviation = values.get("honest_deviation")
        if deviation is not None:
            squared = (deviation / units[1]) ** 2
            values["ratio"] = float(np.divide(squared, products[1, 1])) if products[1, 1] else None
        if self.present[2]:
            values.setdefault("attack_deviation", 0.0)
        if self.present[4]:
            values["cosine_previous"] = _cosine(products, 0, 4)
            values["curvature"] = float(products[0, 5] * units[0] * units[5])
        return replace(base, **values)


def _largest(vectors: list[Tensor]) -> Sequence[Tensor]:
    """The largest absolute coordinate of each: in one launch on a device, in the way that is ten times faster on the
    CPU."""
    if vectors[0].device.type == "cpu":
        return [x.abs().max() for x in vectors]
    return torch._foreach_norm(vectors, torch.inf)  # pyright: ignore[reportPrivateImportUsage]


def _cosine(products: np.ndarray, i: int, j: int) -> float | None:
    norms = np.sqrt(products[i, i]) * np.sqrt(products[j, j])
    return float(products[i, j] / norms) if norms > 0 or np.isnan(norms) else None


def _inner_products(vectors: list[Tensor]) -> dict[str, Tensor]:
    """``products`` [k, k] in float64, and ``units`` [k] where each vector has one of its own in them: 1, unless the
    squares of vectors of float64 leave its range. In main memory that is looked at first; a device computes both."""
    products = kernels.inner_products(vectors)
    if vectors[0].dtype != torch.float64:
        return {"products": products}
    squares, native = products.diagonal(), products.device.type == "cpu"
    held = ((squares > numerics.VANISHING) & (squares < torch.inf)).all()
    if native and held:
        return {"products": products}
    sizes = torch.stack([kernels.norms(v) for v in vectors])
    units = torch.where((sizes > 0) & sizes.isfinite(), sizes, torch.ones_like(sizes))
    scaled = kernels.inner_products([v / unit for v, unit in zip(vectors, units, strict=True)])
    if native:
        return {"products": scaled, "units": units}
    return {
        "products": torch.where(held, products, scaled),
        "units": torch.where(held, torch.ones_like(units), units),
    }
