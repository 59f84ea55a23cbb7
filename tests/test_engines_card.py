"""A step of the engines on a pretended card: how often the host waits, and that it comes to what the processor makes.

One rank is here, and what the others send is made up: whatever the host does in a step it does on each rank alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from pretended import PretendedCard
from varangian.core.evidence import column_weights, mean_weights_in, weights_in_columns
from varangian.core.geometry import Geometry
from varangian.core.history import Evidence
from varangian.engines.ddp import Protection
from varangian.engines.sharded import Aggregation, Chunk, Ranks, Refused, Span, Step, arithmetic

W, D = 7, 9000  # more than is measured twice for the sake of precision
SIZES = {1: (D,), 2: (4501, 4499), 12: (750,) * 12}  # of the buckets
COLUMNS = [
    vg.Algorithm(rule=vg.Median(2)),
    vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.Phocas(2), server=(vg.Momentum(0.5),)),
    vg.Algorithm(worker=(vg.Clip(0.5), vg.Momentum(0.9)), rule=vg.TrimmedMean(2)),
]
DISTANCES = [
    vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.MultiKrum(1)),
    vg.Algorithm(pre=(vg.NearestNeighborMixing(2),), rule=vg.Median(2)),
    vg.Algorithm(rule=vg.CenteredClipping(2, tau=0.3)),
    vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.MoNNA(2)),
    vg.Algorithm(rule=vg.GeometricMedian(2), server=(vg.Clip(1.0),)),
]


@dataclass
class Alone:
    """The first of W ranks. The others send the rest of x [W, D]; of sums over ranks this one's part is taken."""

    x: Tensor
    at: int = 0
    rank = 0
    size = W

    tell, total, swap, share = Ranks.tell, Ranks.total, Ranks.swap, Ranks.share
    vector, waits, _there = Ranks.vector, Ranks.waits, Ranks._there

    @property
    def device(self) -> torch.device:
        return self.x.device

    def exchange(self, vector: Tensor, matrix: Tensor) -> None:
        width = matrix.shape[1]
        others = self.x[1:, self.at : self.at + min(width, D - self.at)]
        matrix.zero_()
        matrix[0].copy_(vector[:width])
        matrix[1:, : others.shape[1]].copy_(others)

    def gather(self, part: Tensor, whole: Tensor) -> None:
        whole.view(self.size, -1).copy_(part.expand(self.size, -1))
        if whole.numel() == self.x.numel():  # all vectors, where they are replicated
            whole.view(self.size, -1)[1:].copy_(self.x[1:])

    def add(self, block: Tensor) -> None:
        if block.numel() == 9 * W + 1:  # the end of a step: the others have decided alike
            block[3 * W : 4 * W].copy_(block[3 * W : 3 * W + 1].expand(W))


def steps(
    algorithm: vg.Algorithm, x: Tensor, sizes: tuple[int, ...], count: int = 2, replicated: bool = False
) -> list[tuple[list[Tensor], Evidence]]:
    ranks = Alone(x)
    aggregation = Aggregation(algorithm, ranks, d=D, gathers=True)  # type: ignore[arg-type]
    ends = np.cumsum(sizes)
    chunks = [
        Chunk([Span(f"p{k}", size, int(end - size))], W, algorithm.init(1, size, device=x.device))
        for k, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    found = []
    for number in range(count):
        step: Step = aggregation.begin(number)
        if replicated:
            updates = [step.replicate(chunks[0], x[0], str)]
        else:
            for chunk, end in zip(chunks, ends, strict=True):
                ranks.at = int(end) - chunk.length
                step.add(chunk, x[0, ranks.at : ranks.at + chunk.length])
            updates = step.finish(str)
        step.adopt()
        found.append((updates, step.evidence))
    return found


def vectors() -> Tensor:
    return torch.randn(W, D, generator=torch.Generator().manual_seed(3)) + 0.5


def check(card: PretendedCard, algorithm: vg.Algorithm, waits: int, sizes: tuple[int, ...], replicated: bool) -> None:
    x = vectors()
    there = x.to("cuda:0")
    card.reset()
    found = steps(algorithm, there, sizes, 2, replicated)
    assert card.waits.total() == 2 * waits, card
    assert not card.late
    assert card.to_host < 2 * 8 * (2 * (W + 2) ** 2 + 12 * W + 1)
    for (updates, evidence), (wanted, told) in zip(found, steps(algorithm, x, sizes, 2, replicated), strict=True):
        for update, expected in zip(updates, wanted, strict=True):
            torch.testing.assert_close(update.held, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(evidence.weight, told.weight, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(evidence.suspicion, told.suspicion, rtol=1e-4, atol=1e-6)
        assert evidence.measured is not None
        assert told.measured is not None
        np.testing.assert_allclose(evidence.measured, told.measured, rtol=1e-5, atol=1e-5)
        assert (evidence.score is None) == (told.score is None)
        if evidence.score is not None and told.score is not None:
            np.testing.assert_allclose(evidence.score, told.score, rtol=1e-5)
        assert evidence.finite.tolist() == told.finite.tolist()


@pytest.mark.parametrize("buckets", SIZES)
@pytest.mark.parametrize("algorithm", COLUMNS, ids=lambda a: str(a.rule))
def test_a_step_that_looks_at_columns_waits_once(algorithm: vg.Algorithm, buckets: int) -> None:
    with PretendedCard() as card:
        check(card, algorithm, 1, SIZES[buckets], replicated=False)


@pytest.mark.parametrize("buckets", SIZES)
@pytest.mark.parametrize("algorithm", DISTANCES, ids=lambda a: str(a.rule))
def test_a_step_that_looks_at_distances_waits_twice(algorithm: vg.Algorithm, buckets: int) -> None:
    """Once for them, once for what the report says and whether all ranks have come to the same."""
    with PretendedCard() as card:
        check(card, algorithm, 2, SIZES[buckets], replicated=False)


@pytest.mark.parametrize("algorithm", [*COLUMNS, *DISTANCES], ids=lambda a: str(a.rule))
def test_replicated_steps_wait_as_often(algorithm: vg.Algorithm) -> None:
    with PretendedCard() as card:
        check(card, algorithm, 1 if algorithm in COLUMNS else 2, SIZES[1], replicated=True)


@pytest.mark.parametrize("algorithm", [COLUMNS[1], DISTANCES[0], DISTANCES[1]], ids=lambda a: str(a.rule))
def test_more_than_f_are_refused_where_the_step_ends(algorithm: vg.Algorithm) -> None:
    x = vectors()
    x[2:5, :40] = torch.nan
    wanted = r"tolerates \d vectors with NaN or infinity, got 3, of 2, 3, 4\."
    with PretendedCard() as card:
        there = x.to("cuda:0")
        card.reset()
        with pytest.raises(Refused, match=wanted):
            steps(algorithm, there, SIZES[2])
        assert card.waits.total() == 1, card  # of the first step, which is given up
        with pytest.raises(Refused, match=wanted):
            steps(algorithm, there, SIZES[1], replicated=True)


@pytest.mark.parametrize("table", [None, np.random.default_rng(1).random((5, 9)) / 4])
@pytest.mark.parametrize("statistic", [(4, 5, 0), (1, 4, 0), (2, 5, 0), (1, 4, 3), (0, 5, 2), (0, 5, 5)])
def test_weights_in_columns_on_a_card(table: np.ndarray | None, statistic: tuple[int, int, int]) -> None:
    """Also of equal values, which share their weight, and of NaN and infinities."""
    if table is not None and statistic[1] > 5:
        return
    x = (3 * torch.randn(9, 400, generator=torch.Generator().manual_seed(1))).round()
    x[3, ::7], x[4, ::5], x[5, ::11] = torch.nan, torch.inf, -torch.inf
    expected = weights_in_columns(x, table, statistic, np.arange(400))
    with PretendedCard() as card:
        there = x.to("cuda:0")
        card.reset()
        found = mean_weights_in(there, table, statistic)
        assert card.waits.total() == 0, card
        if table is None:
            np.testing.assert_allclose(found.held.numpy(), expected, rtol=1e-12, atol=1e-15)
        else:
            good = mean_weights_in(torch.nan_to_num(there, 0.0, 9.0, -9.0), table, statistic)
            x = torch.nan_to_num(x, 0.0, 9.0, -9.0)
            expected = weights_in_columns(x, table, statistic, np.arange(400))
            np.testing.assert_allclose(good.held.numpy(), expected, rtol=1e-12, atol=1e-15)
    assert column_weights(x.double().numpy()[: 5 if table is not None else 9], *statistic).sum() > 0


@pytest.mark.parametrize("replicated", [False, True])
@pytest.mark.parametrize("rule", [vg.Bulyan(1), vg.Krum(1)], ids=str)
def test_equal_scores_cost_two_looks_more(rule: vg.Rule, replicated: bool) -> None:
    """At distances in double precision, and at the values. Bulyan's last rounds always tie, and Krum does among
    these."""
    with PretendedCard() as card:
        x = vectors().round()
        x[1] = x[0].roll(1)
        x[2] = x[0].roll(2)
        there = x.to("cuda:0")
        card.reset()
        steps(vg.Algorithm(rule=rule), there, SIZES[1 if replicated else 2], 1, replicated)
        assert card.waits.total() <= 4, card


class Own(vg.Krum):
    """Somebody's own: it may fail on one rank alone, so ranks watch each other."""

    def weights(self, geometry: Geometry) -> np.ndarray:
        if geometry.norms.min() < 0.5:
            raise KeyError("mine")
        return super().weights(geometry)


def test_a_stage_of_ones_own_costs_one_wait_more() -> None:
    with PretendedCard() as card:
        x = vectors()
        there = x.to("cuda:0")
        card.reset()
        steps(vg.Algorithm(rule=Own(1)), there, SIZES[2], 1)
        assert card.waits.total() == 3, card
        with pytest.raises(KeyError, match="mine"):
            steps(vg.Algorithm(rule=Own(1)), there * 1e-6, SIZES[2], 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_scale_beyond_a_half_type_is_applied_without_a_look(dtype: torch.dtype) -> None:
    scale = 2.0**18
    gradient = torch.tensor([3.0, -0.25, 60000.0, 0.0]).to(dtype)
    with PretendedCard() as card:
        one = SimpleNamespace(_scale=torch.full((), scale).to("cuda:0"))
        there = gradient.to("cuda:0")
        card.reset()
        down = Protection._unscaled(one, there)  # type: ignore[arg-type]
        up = Protection._scaled(one, down)  # type: ignore[arg-type]
        assert card.waits.total() == 0
        assert down.dtype == up.dtype == dtype
        assert torch.equal(down.held, gradient / scale)  # type: ignore[attr-defined]
        assert torch.equal(up.held, (gradient / scale) * scale)  # type: ignore[attr-defined]


def test_replicated_ranks_ask_their_cards_too() -> None:
    with PretendedCard():
        assert arithmetic(torch.device("cuda:0")) not in (arithmetic(), "")
        assert arithmetic(torch.device("cuda:0")) == arithmetic(torch.device("cuda:0"))
    assert arithmetic(torch.device("cpu")) == arithmetic()
