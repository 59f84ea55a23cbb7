"""What a step tells of each vector: exact for rules that answer weights, and of a sample of columns for others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core import kernels
from varangian.core.accounts import Account, observe, sampled_columns
from varangian.core.evidence import column_weights
from varangian.core.mixing import Mixing
from varangian.core.randomness import Draw
from varangian.core.stages import Rule, decide

N, F = 11, 2


def vectors(d: int, n: int = N, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    random = np.random.default_rng([seed, n, d])
    x = random.normal(size=(n, d)) + 0.3 * random.normal(size=d)
    x[n - F :] = -2 * x[: n - F].mean(0)
    return torch.from_numpy(x).to(dtype)


def told(x: Tensor, rule: Rule, pre: tuple[Mixing, ...] = (), **settings: object) -> tuple[Account, Tensor]:
    starts = sampled_columns(*x.shape, seed=3, step=5)
    rows = settings.get("rows")
    decision = decide(x, pre, rule, draw=Draw(3, 5), **settings)  # type: ignore[arg-type]
    found = observe(x, decision, pre, rule, starts=starts, rows=rows)  # type: ignore[arg-type]
    return found.told([kernels.host(t) for t in found.tensors]), decision.aggregate


def by_definition(x: Tensor, aggregate: Tensor) -> tuple[np.ndarray, np.ndarray]:
    wide, point = x.double(), aggregate.double()
    return (wide - point).norm(dim=1).numpy(), torch.cosine_similarity(wide, point.unsqueeze(0), eps=0.0).numpy()


SELECTING = {
    "krum": (vg.Krum(f=F), ()),
    "multi-krum": (vg.MultiKrum(f=F), ()),
    "mda": (vg.MinimumDiameterAveraging(f=F), ()),
    "medoid": (vg.Medoid(f=F), ()),
    "geometric median": (vg.GeometricMedian(f=F), ()),
    "mixed before": (vg.MultiKrum(f=F), (vg.NearestNeighborMixing(f=F),)),
    "in buckets": (vg.Krum(f=1), (vg.Bucketing(s=2),)),
}


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("d", [40, 30_000])
def test_of_rules_that_answer_weights_everything_is_exact_however_long_vectors_are(name: str, d: int) -> None:
    rule, pre = SELECTING[name]
    x = vectors(d)
    found, aggregate = told(x, rule, pre)
    distance, cosine = by_definition(x, aggregate)
    assert found.columns == 0
    np.testing.assert_allclose(found.distance, distance, rtol=1e-5, atol=1e-5 * distance.max())
    np.testing.assert_allclose(found.cosine, cosine, atol=1e-5)
    assert found.weight.sum() == pytest.approx(1)
    if not pre:
        mixture = torch.from_numpy(found.weight) @ x.double()
        np.testing.assert_allclose(mixture, aggregate.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [vg.Median(f=F), vg.Average(), vg.Bulyan(f=F), vg.Aksel(f=F)], ids=str)
def test_of_short_vectors_all_columns_are_looked_at(rule: Rule) -> None:
    x = vectors(600)
    found, aggregate = told(x, rule)
    distance, cosine = by_definition(x, aggregate)
    assert found.columns == 0
    np.testing.assert_allclose(found.distance, distance, rtol=1e-5)
    np.testing.assert_allclose(found.cosine, cosine, atol=1e-6)


@pytest.mark.parametrize("rule", [vg.Median(f=F), vg.TrimmedMean(f=F), vg.Phocas(f=F), vg.Bulyan(f=F)], ids=str)
def test_of_long_ones_a_sample_tells(rule: Rule) -> None:
    x = vectors(50_000)
    found, aggregate = told(x, rule)
    distance, cosine = by_definition(x, aggregate)
    assert found.columns == 2048
    np.testing.assert_allclose(found.distance, distance, rtol=0.1)  # 1 / sqrt(2 * 2048) is 1.6 %
    np.testing.assert_allclose(found.cosine, cosine, atol=0.1)
    decision = decide(x, (), rule)
    statistic = rule.statistic(N if decision.table is None else len(decision.table))
    assert statistic is not None
    mixtures = x.double().numpy() if decision.table is None else decision.table @ x.double().numpy()
    weight = column_weights(mixtures, *statistic).mean(1)
    weight = weight if decision.table is None else weight @ decision.table
    np.testing.assert_allclose(found.weight, weight, atol=0.03)
    assert found.weight.sum() == pytest.approx(1)


def test_blocks_lie_within_and_apart_and_others_in_each_step() -> None:
    for n, d in [(51, 700), (51, 2500), (51, 3001), (51, 79_510), (3, 10**6), (1000, 2300)]:
        seen = [sampled_columns(n, d, seed=1, step=step) for step in range(20)]
        width = 64 if n * d > 1 << 16 and d > 2048 else 16
        for starts in seen:
            assert starts is not None
            assert starts.shape == (32,)
            assert starts[0] >= 0
            assert (np.diff(starts) >= width).all()
            assert starts[-1] + width <= d
        assert len({starts.tobytes() for starts in seen if starts is not None}) == 20
        again, other = sampled_columns(n, d, seed=1, step=7), sampled_columns(n, d, seed=2, step=7)
        assert again is not None
        assert other is not None
        assert again.tolist() == seen[7].tolist() != other.tolist()  # type: ignore[union-attr]
    assert sampled_columns(51, 512, seed=1, step=0) is None
    covered = np.zeros(3001, bool)
    for step in range(2000):
        starts = sampled_columns(51, 3001, seed=1, step=step)
        assert starts is not None
        covered[(starts[:, None] + np.arange(64)).reshape(-1)] = True
    assert covered.all()  # nobody can hide where nobody looks


@pytest.mark.parametrize("rule", [vg.MultiKrum(f=F), vg.Median(f=F), vg.GeometricMedian(f=F)], ids=str)
def test_who_is_not_finite_is_told_and_spoils_no_other(rule: Rule) -> None:
    x = vectors(700)
    x[4], x[9, 3] = torch.nan, torch.inf
    found, aggregate = told(x, rule)
    sound = np.array([i not in (4, 9) for i in range(N)])
    assert found.finite.tolist() == sound.tolist()
    distance, cosine = by_definition(x, aggregate)
    np.testing.assert_allclose(found.distance[sound], distance[sound], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.cosine[sound], cosine[sound], atol=1e-5)
    assert np.isnan(found.distance[~sound]).all()
    assert np.isnan(found.cosine[~sound]).all()
    assert np.isnan(found.score[~sound]).all()


@pytest.mark.parametrize("size", [1e6, 1e15, 1e30])
@pytest.mark.parametrize("rule", [vg.GeometricMedian(f=F), vg.MultiKrum(f=F), vg.Median(f=F), vg.Average()], ids=str)
def test_far_vectors_leave_the_digits_of_near_ones(rule: Rule, size: float) -> None:
    x = vectors(900)
    x[N - F :] *= size
    found, aggregate = told(x, rule)
    distance, cosine = by_definition(x, aggregate)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-3)
    np.testing.assert_allclose(found.cosine, cosine, atol=1e-3)
    assert found.finite.all()


@pytest.mark.parametrize("size", [1e-200, 1e200])
@pytest.mark.parametrize("rule", [vg.Krum(f=F), vg.Median(f=F)], ids=str)
def test_lengths_whose_squares_leave_the_range(rule: Rule, size: float) -> None:
    x = vectors(60, dtype=torch.float64) * size
    found, aggregate = told(x, rule)
    distance, _ = by_definition(x / size, aggregate / size)
    assert found.finite.all()
    if isinstance(rule, vg.Krum):  # whose geometry is in a unit of its own
        np.testing.assert_allclose(found.distance / size, distance, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", [vg.MultiKrum(f=F), vg.Median(f=F), vg.Bulyan(f=1), vg.Average()], ids=str)
@pytest.mark.parametrize("d", [300, 30_000])
def test_whoever_is_not_shown_is_told_of_as_little(rule: Rule, d: int) -> None:
    x, rows = vectors(d), np.array([0, 1, 2, 4, 5, 6, 7, 8, 9])
    found, _ = told(x, rule, rows=rows)
    alone, _ = told(x[rows], rule)
    away = np.setdiff1d(np.arange(N), rows)
    assert found.shown.tolist() == [i in rows for i in range(N)]
    for name in ("weight", "score", "distance", "cosine"):
        values = getattr(found, name)
        assert np.isnan(values[away]).all()
        loose = d > 20_000 and not isinstance(rule, vg.MultiKrum)  # of n d numbers so many are looked at
        np.testing.assert_allclose(values[rows], getattr(alone, name), rtol=0.2 if loose else 1e-5, atol=0.05 * loose)


def test_an_order_of_rows_moves_nothing() -> None:
    x, order = vectors(300), np.random.default_rng(0).permutation(N)
    for rule in (vg.MultiKrum(f=F), vg.Median(f=F), vg.Krum(f=F)):
        plain, shuffled = told(x, rule)[0], told(x, rule, rows=order)[0]
        for name in ("weight", "score", "distance", "cosine"):
            np.testing.assert_allclose(getattr(shuffled, name), getattr(plain, name), rtol=1e-6, atol=1e-7)


def test_vectors_that_count_differently() -> None:
    x, weights = vectors(400), np.array([3.0, *[1.0] * 9, 2.0])
    for rule in (vg.Median(f=1), vg.MultiKrum(f=1)):
        decision = decide(x, (), rule, weights=weights)
        seen = observe(x, decision, (), rule, starts=None, weights=weights)
        found = seen.told([kernels.host(t) for t in seen.tensors])
        explained = vg.explain(x, rule, weights=weights)
        assert explained.weight is not None
        np.testing.assert_allclose(found.weight, explained.weight, atol=1e-9)
        np.testing.assert_allclose(found.distance, explained.distance, rtol=1e-5)


def test_a_single_vector() -> None:
    found, _ = told(vectors(30, n=3)[:1], vg.Average())
    assert found.distance.tolist() == [0]
    assert found.weight.tolist() == [1]
    assert found.cosine[0] == pytest.approx(1)


def test_a_null_aggregate_has_no_direction() -> None:
    found, _ = told(torch.zeros(5, 40), vg.Median(f=1))
    assert np.isnan(found.cosine).all()
    assert (found.distance == 0).all()
    assert found.finite.all()
