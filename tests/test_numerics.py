"""Each tolerance of core/numerics.py: a property that holds, and fails where the constant is a hundred times off.

Where only one side is tried, the other one costs time at most, or nothing at all: said beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core import kernels, numerics
from varangian.core.geometry import Geometry, Held, in_unit, unit_of
from varangian.core.rules.federated import largest_cluster
from varangian.core.rules.search import least_top_eigenvalue

NEAR = 1e-6  # of a usual distance: how far off an answer for float32 vectors may be
D = 10_000  # more than one panel: distances are not measured again for nothing


def normal(n: int, d: int = D, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def placed(points: np.ndarray, d: int = D, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """[n, d] vectors whose distances are those of [n, r] points: turned at random within 20 coordinates, so that
    rounding is as great as it gets; over many it averages out."""
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(20, points.shape[1])))[0]
    return torch.nn.functional.pad(torch.from_numpy(points @ axes.T), (0, d - 20)).to(dtype)


def true_distances(x: Tensor) -> np.ndarray:
    wide = x.double()
    return torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()


class Counted(Held):
    """Vectors that count how often they are measured again."""

    def measured(self, table: np.ndarray, extra: bool) -> np.ndarray:
        COUNTS.append("all")
        return super().measured(table, extra)

    def around(self, weights: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        COUNTS.append("one")
        return super().around(weights, scales)


COUNTS: list[str] = []


def geometry(x: Tensor) -> Geometry:
    COUNTS.clear()
    return Geometry.measured_as(kernels.host(kernels.squared_distances(x)), Counted(x))


def again() -> int:
    """How often vectors were measured again since the geometry was made."""
    return len(COUNTS)


# ------------------------------------------------------------------------------------ the range of numbers, in float64


def lengths_at_the_edge_of_the_range() -> None:
    """Lengths whose squares vanish are right all the same."""
    for size in (1e-170, 1e-160, 1e-150, 1e-140):
        x = torch.full((1, 4), size, dtype=torch.float64)
        assert float(kernels.norms(x)[0]) == pytest.approx(2 * size, rel=1e-9, abs=0)


def fitting(x: Tensor) -> float | None:
    with np.errstate(over="ignore"):
        return unit_of(x, np.square(kernels.norms(x).numpy()))


def units_are_for_extreme_vectors_only() -> None:
    x = normal(5, 4, dtype=torch.float64)
    for size in (1e90, 1e-90):
        assert fitting(size * x) is None


def distances_of_extreme_vectors_are_finite() -> None:
    x = 1e149 * normal(5, 4, dtype=torch.float64)
    x[4] *= 1e5
    assert np.isfinite(vg.Krum(1)(x).numpy()).all()
    unit = fitting(x)
    assert unit is not None
    squared = Geometry.of(in_unit(x, unit)).squared
    assert np.isfinite(squared).all()
    np.testing.assert_allclose(squared[:4, :4] * unit**2 / 1e300, true_distances(x[:4] / 1e150), rtol=1e-9)


def sums_of_squares_of_extreme_vectors_are_finite() -> None:
    x = normal(5, 4, dtype=torch.float64)
    x[4] *= 1e200
    x[:4] *= 1e-140
    unit = fitting(x)
    assert unit is not None
    assert np.isfinite(Geometry.of(in_unit(x, unit)).squared).all()


def float32_squares_that_vanish_are_summed_again() -> None:
    for size in (1e-22, 1e-19, 1e-17, 1e-15):
        x = (size * normal(4, 300)).float()
        found = kernels.host(kernels.squared_distances(x))[:4, :4]
        np.testing.assert_allclose(found, true_distances(x), rtol=1e-5)


# -------------------------------------------------------------------------------------------------- equal, in float64


def one_mixture_added_up_in_two_orders() -> None:
    """Two mixtures equal in their first coordinate, but for rounding: the second tells them apart."""
    random = np.random.default_rng(0)
    for _ in range(50):
        values, weights = random.normal(size=6), random.random(6)
        x = torch.tensor(np.stack([np.tile(values, 2), np.repeat([1.0, 0.0], 6)], 1))
        order = random.permutation(6)
        x[6:, 0] = x[:6, 0][order]
        table = np.zeros((2, 12))
        table[0, :6] = weights / weights.sum()
        table[1, 6:] = table[0, :6][order]
        assert Geometry.of(x).mix(table).smallest(np.zeros(2), 2).tolist() == [1, 0]


def mixtures_a_little_apart_are_told_apart() -> None:
    x = torch.tensor([[1.0 + 1e-13, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert Geometry.of(x).mix(np.eye(2)[[0, 1]]).smallest(np.zeros(2), 2).tolist() == [1, 0]


def parallel_vectors_have_cosine_one() -> None:
    for seed in range(10):
        scales = torch.linspace(0.1, 3, 30, dtype=torch.float64)
        assert (Geometry.of(scales[:, None] * normal(1, D, seed, torch.float64)).cosines() == 1).all(), seed


def vectors_a_little_off_have_not() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 5e-7]], dtype=torch.float64)
    assert Geometry.of(x).cosines()[0, 1] < 1


def points_in_a_plane_span_two_axes() -> None:
    for seed in range(20):
        x = placed(np.random.default_rng(seed).normal(size=(9, 2)), 30, seed, torch.float64)
        assert (np.abs(Geometry.of(x).positions()).max(0) > 0).sum() == 2


def a_third_axis_is_seen() -> None:
    points = np.random.default_rng(0).normal(size=(9, 3)) * [1, 1, 2e-7]
    assert (np.abs(Geometry.of(placed(points, 30, 0, torch.float64)).positions()).max(0) > 0).sum() >= 3


def a_small_weight_is_a_weight() -> None:
    x = torch.tensor([[1e6, 0.0], [0.0, 1.0]], dtype=torch.float64)
    table = np.array([[1 - 1e-11, 0.0], [1.0, 0.0]])
    mixed = Geometry.of(x).mix(table)
    assert mixed.squared[0, 1] == pytest.approx(1e-10, rel=1e-3)


def scores_equal_but_for_rounding_are_tied() -> None:
    """Of vectors and their mirror images, mixed, two have each score: the answer follows the vectors when permuted."""
    algorithm = vg.Algorithm(pre=(vg.NearestNeighborMixing(2),), rule=vg.Krum(2))
    state = algorithm.init(60, 3, torch.float64)
    for seed in range(20):
        half = normal(30, 3, seed, torch.float64)
        x = torch.cat([half, half * torch.tensor([-1.0, 1.0, 1.0])])
        answer = algorithm.decide(x, state).aggregate
        for order in (torch.arange(59, -1, -1), torch.arange(60).roll(30)):
            assert float((algorithm.decide(x[order], state).aggregate - answer).abs().max()) < 1e-9, seed


def scores_a_little_apart_are_not() -> None:
    points = Geometry.of(torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    assert points.smallest(np.array([1 + 2e-11, 1.0]), 1).tolist() == [1]


def orthogonal_vectors_are_not_trusted() -> None:
    for seed in range(50):
        x = placed(np.eye(3), 200, seed, torch.float64)
        assert not vg.FLTrust(0)(x[:2], previous=x[2]).any(), seed


def a_small_angle_is_trusted() -> None:
    x = torch.tensor([[2e-11, 1.0]], dtype=torch.float64)
    assert vg.FLTrust(0)(x, previous=torch.tensor([1.0, 0.0], dtype=torch.float64)).any()


def equal_eigenvalues_are_tied() -> None:
    """Mirrored triples have equal spectra: both are found, however space is turned."""
    for seed in range(20):
        half = np.random.default_rng(seed).normal([4, 0], size=(3, 2))
        turn = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(6, 6)))[0]
        x = np.pad(np.concatenate([half, half * [-1, 1]]), ((0, 0), (0, 4))) @ turn + 50
        assert len(least_top_eigenvalue(x @ x.T, 3)) == 2, seed


def unequal_eigenvalues_are_not() -> None:
    half = np.random.default_rng(0).normal([4, 0], size=(3, 2))
    x = np.concatenate([half, half * [-1, 1] * (1 + 1e-9)])
    assert len(least_top_eigenvalue(x @ x.T, 3)) == 1


def points_a_bandwidth_apart_are_together() -> None:
    """Two pairs as far apart as the bandwidth, but for rounding: each is a cluster, and the first is taken."""
    for step in np.linspace(0.01, 0.2, 100):
        assert largest_cluster(np.array([[0.0], [step], [0.5], [0.5 + step]])).tolist() == [True, True, False, False]


def crowds_a_thousandth_apart_are_two() -> None:
    points = np.repeat([[0.1], [0.101]], [4, 3], axis=0)
    assert largest_cluster(points).sum() == 4


def no_rule_is_better_than_any_can_be() -> None:
    """kappa >= f / (n - 2f): small errors beside far attackers are errors."""
    for rule in (vg.TrimmedMean(1), vg.Krum(1)):
        assert vg.empirical_kappa(rule, 5, evaluations=50) >= 1 / 3 - 1e-9


# -------------------------------------------------------------------------------- squared distances, and derived ones


def float64_distances_are_that_exact() -> None:
    """What is derived from distances of float64 vectors is right to BLUR, clipped from however far."""
    for size in np.logspace(4, 14, 60):
        x = normal(6, 20, 1, torch.float64)
        x[5] *= size
        scales = np.append(np.ones(5), 1 / size)
        found = geometry(x).mix(scales)
        wanted = true_distances(x * torch.from_numpy(scales)[:, None])
        assert np.abs(found.distances - wanted).max() < 1e-6 * wanted[0, 1], size


def float64_distances_are_not_measured_again_for_nothing() -> None:
    x = normal(6, dtype=torch.float64)
    x[5] *= 1e7
    geometry_ = geometry(x)
    geometry_.mix(np.append(np.ones(5), 1e-7))
    assert not again()


def float32_distances_are_that_exact() -> None:
    for seed in range(10):
        x = normal(12, 100_000, seed)
        found, wanted = kernels.host(kernels.squared_distances(x))[:12, :12], true_distances(x)
        assert (np.abs(found - wanted) <= numerics.ROUNDING * wanted).all()
    for seed in range(60):  # the worst there is: short vectors whose spread is nearly lost in what they have in common
        x = normal(1, 1000, seed) + 3e-5 * normal(12, 1000, 1000 + seed)
        found, wanted = kernels.host(kernels.squared_distances(x))[:12, :12], true_distances(x)
        assert (np.abs(found - wanted) <= numerics.ROUNDING * wanted).all()


def ordinary_mixtures_are_not_measured_again() -> None:
    points = geometry(normal(60))
    vg.NearestNeighborMixing(2).mix(points)
    vg.AdaptiveClipping(3).mix(points)
    vg.Bucketing(2).mix(points)
    assert not again()


def derived_distances_are_right_beside_usual_ones() -> None:
    for seed, size in enumerate(np.logspace(1, 5, 40)):
        x = normal(6, 20, seed)
        x[5] *= size
        scales = np.append(np.ones(5), 1 / size)
        found = geometry(x).mix(scales)
        wanted = true_distances(x.double() * torch.from_numpy(scales)[:, None])
        assert np.abs(found.distances - wanted).max() < 1e-5 * wanted[0, 1], size


def far_mixtures_are_right_beside_themselves() -> None:
    """A thousandth, or less, of a far vector in two mixtures: both are far from the others, and near each other."""
    for seed, size in enumerate(np.logspace(4, 8, 40)):
        share = 1e3 / size
        x = normal(6, seed=seed)
        x[5] *= size
        table = np.zeros((8, 6))
        table[:6, :5] = 0.2
        table[:5] += 0.1 * np.eye(6)[:5] - 0.1 * np.roll(np.eye(6)[:5, :5], 1, axis=0) @ np.eye(5, 6)
        table[6:, 5] = share
        table[6, 0] = table[7, 1] = 1 - share
        found = geometry(x).mix(table)
        wanted = true_distances(torch.from_numpy(table) @ x.double())
        assert (np.abs(found.distances - wanted)[6, :6] <= 1e-4 * wanted[6, :6]).all(), size


def far_vectors_scaled_are_right_beside_themselves() -> None:
    for seed, size in enumerate(np.logspace(3, 7, 30)):
        x = normal(8, 20, seed)
        x[5:] *= size
        x[6:] += 30 * normal(2, 20, seed + 1)
        scales = np.append(np.ones(5), np.full(3, 1e-2 * 1000 / size))
        found = geometry(x).mix(scales)
        wanted = true_distances(x.double() * torch.from_numpy(scales)[:, None])
        assert (np.abs(found.distances - wanted)[5:, :5] <= 2e-5 * wanted[5:, :5]).all(), size


def mixtures_of_far_vectors_are_not_measured_again_for_nothing() -> None:
    x = normal(60)
    x[59] *= 1e3
    vg.Bucketing(20).mix(geometry(x))
    assert not again()


def scaled_far_vectors_are_not_measured_again_for_nothing() -> None:
    x = normal(12)
    x[9:] *= 1e3
    geometry(x).mix(np.append(np.ones(9), np.full(3, 0.5)))
    assert not again()


def distances_to_a_point_that_cancelled_are_measured_again() -> None:
    """Far from the origin, clipped together: MoNNA's distances to its pivot, behind clipping."""
    for size in np.logspace(1, 6, 40):
        x = (normal(6, 50, dtype=torch.float64) + size) * torch.arange(1, 7)[:, None]
        algorithm = vg.Algorithm(pre=(vg.StaticClipping(float(size)),), rule=vg.MoNNA(1))
        decision = algorithm.decide(x, algorithm.init(6, 50, torch.float64))
        assert decision.geometry is not None
        clipped = vg.StaticClipping(float(size))(x)
        wanted = (clipped - clipped[0]).square().sum(1).numpy()
        np.testing.assert_allclose(decision.geometry.distances[0, 1:], wanted[1:], rtol=5e-12)  # where both round


# ---------------------------------------------------------------------------------------- places, and walks among them


def far_points_leave_near_ones_in_place() -> None:
    for size in (20.0, 100.0, 500.0, 5e3):
        points = np.random.default_rng(0).normal(size=(9, 3))
        points[7:] *= size
        x = placed(points, seed=int(size))
        at = geometry(x).positions()
        wanted = true_distances(x)[:7, :7]
        found = np.square(at[:7, None] - at[None, :7]).sum(-1)
        assert np.abs(found - wanted).max() < 2e-5, size


def ordinary_points_are_placed_without_another_pass() -> None:
    geometry(normal(9)).positions()
    geometry(placed(np.random.default_rng(0).normal(size=(9, 3)))).positions()
    assert not again()


def what_lies_across_a_line_is_exact() -> None:
    for thin in (3e-2, 1e-2, 1e-3):
        points = np.random.default_rng(0).normal(size=(9, 3)) * [1, thin, thin]
        x = placed(points)
        at = geometry(x).positions()
        wanted = true_distances(x)
        found = np.square(at[:, None] - at[None]).sum(-1)
        center = np.argmin(np.square(at).sum(1))
        across = at[:, 1:]
        line = x.double() - x[center].double()
        end = int(line.norm(dim=1).argmax())
        rest = line - (line @ line[end] / line[end].square().sum())[:, None] * line[end]
        np.testing.assert_allclose(np.linalg.norm(across, axis=1), rest.norm(dim=1).numpy(), atol=2e-5 * thin)
        assert np.abs(found - wanted).max() < 1e-5


def vectors_on_one_line_have_the_middle() -> None:
    for seed in range(20):
        direction = normal(1, 60, seed)[0]
        x = torch.tensor([-1.0, 0.1, 0.7, 3.0])[:, None] * direction
        wanted = 0.4 * direction
        assert float((vg.GeometricMedian(1)(x) - wanted).norm() / direction.norm()) < 1e-5


def vectors_beside_a_line_have_not() -> None:
    x = torch.tensor([[0.0, 1e-5], [2.0, 1e-5], [8.0, 0.0], [9.0, 0.0]])
    np.testing.assert_allclose(vg.GeometricMedian(1)(x).numpy(), [6, 1e-5 / 3], rtol=1e-2)  # where the diagonals meet


def walks_arrive() -> None:
    for seed in range(60):
        points = np.random.default_rng(seed).normal(size=(7, 2))
        answer = vg.GeometricMedian(1)(torch.from_numpy(points)).numpy()
        away = points - answer
        lengths = np.linalg.norm(away, axis=1)
        if lengths.min() > 1e-6:
            assert np.linalg.norm((away / lengths[:, None]).sum(0)) < 2e-9 * (1 / lengths).sum(), seed


def walks_end() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(40):
            points = np.random.default_rng(seed).normal(size=(8, 3)) * [1, 1, 10.0 ** -(seed % 8)]
            vg.GeometricMedian(1)(torch.from_numpy(points))


def a_vector_that_is_optimal_is_the_answer() -> None:
    """The apex of a triangle of just under, and of 120 degrees is its median."""
    for seed in range(40):
        turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0][:, :2]
        a, b = np.random.default_rng(seed).uniform(0.5, 3, 2)
        apex = np.array([[0.0, 0.0], [a, 0.0], [b * np.cos(2 * np.pi / 3), b * np.sin(2 * np.pi / 3)]])
        x = torch.from_numpy(apex @ turn.T + 10_000 * seed)
        assert torch.equal(vg.GeometricMedian(1)(x), x[0]), seed


def a_vector_that_is_nearly_optimal_is_not() -> None:
    angle = 2 * np.pi / 3 - 3e-9
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [np.cos(angle), np.sin(angle)]], dtype=torch.float64)
    assert not torch.equal(vg.GeometricMedian(1)(x), x[0])


def error_of_float32(points: np.ndarray, seed: int) -> float:
    """How far the answer for float32 vectors is from the median of these very vectors."""
    x = placed(points, seed=seed)
    wide = x[:, :20].double().numpy()
    answer = vg.GeometricMedian(1)(x)[:20].double().numpy()
    return float(np.linalg.norm(answer - vg.GeometricMedian(1)(wide)))


def medians_among_near_vectors_are_exact() -> None:
    """Of two vectors near each other, which way the one lies from the other drowns in the distances to the others."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        points = random.normal(size=(8, 3))
        points[0], points[1] = 0, 0.006 * random.normal(size=3)
        assert error_of_float32(points, seed) < NEAR, seed


def medians_in_flat_places_are_exact() -> None:
    for seed in range(20):
        points = np.array([[-2.0, 0.1], [-1.0, -0.11], [1.1, 0.09], [2.0, -0.1]]) * [1, 1.5 + 0.1 * (seed % 6)]
        assert error_of_float32(points, seed) < NEAR, seed


def apex(angle: float, seed: int) -> Tensor:
    return placed(np.array([[0.0, 0.0], [1.0, 0.0], [1.3 * np.cos(angle), 1.3 * np.sin(angle)]]), seed=seed)


def whether_a_vector_is_the_median_is_certain() -> None:
    for seed in range(60):
        x = apex(2 * np.pi / 3 + 3e-7 * (seed % 3 - 1), seed)
        away = x[1:].double() - x[0].double()
        excess = float((away / away.norm(dim=1, keepdim=True)).sum(0).norm()) - 1
        assert abs(excess) < 1e-9 or torch.equal(vg.GeometricMedian(1)(x), x[0]) == (excess < 0), seed


def clear_cases_are_not_measured_again() -> None:
    for seed in range(5):
        vg.GeometricMedian(1).weights(geometry(apex(2 * np.pi / 3 + 3e-5, seed)))
        assert not again(), seed


def ordinary_medians_are_not_measured_again() -> None:
    for seed in range(3):
        x = normal(15, seed=seed)
        vg.GeometricMedian(3).weights(geometry(x))
        assert not again(), seed


# constant: by how much it is wrong, and what then fails
WRONG: list[tuple[str, float, Callable[[], None]]] = [
    # The range of numbers is wide: these have many powers of ten to spare on either side.
    ("VANISHING", 1e-45, lengths_at_the_edge_of_the_range),  # larger: only time, two passes for one
    ("ORDINARY", 1e-20, units_are_for_extreme_vectors_only),
    ("ORDINARY", 1e60, distances_of_extreme_vectors_are_finite),
    ("MOST", 1e-140, distances_of_extreme_vectors_are_finite),  # larger: see the next
    ("MOST", 1e20, sums_of_squares_of_extreme_vectors_are_finite),
    ("FAINT", 1e-20, float32_squares_that_vanish_are_summed_again),  # larger: only time
    ("LOST", 1e-16, float32_squares_that_vanish_are_summed_again),  # larger: only time
    ("AGREED", 0.01, one_mixture_added_up_in_two_orders),
    ("AGREED", 100, mixtures_a_little_apart_are_told_apart),
    ("STRAIGHT", 100, vectors_a_little_off_have_not),  # smaller: cosines are right to 1e-16, as far as is known
    ("REST", 0.01, points_in_a_plane_span_two_axes),
    ("REST", 100, a_third_axis_is_seen),
    ("NOTHING", 100, a_small_weight_is_a_weight),  # smaller: only time, since all terms are then sized up
    ("TIE", 0.01, scores_equal_but_for_rounding_are_tied),
    ("TIE", 100, scores_a_little_apart_are_not),
    ("ANGLE", 1e-4, orthogonal_vectors_are_not_trusted),  # 1e-2 would still do: distances measured anew are exact
    ("ANGLE", 100, a_small_angle_is_trusted),
    ("SPECTRUM", 0.01, equal_eigenvalues_are_tied),
    ("SPECTRUM", 100, unequal_eigenvalues_are_not),
    ("WITHIN", 1e-9, points_a_bandwidth_apart_are_together),  # larger: nobody's answer is known to change
    ("STILL", 1e10, crowds_a_thousandth_apart_are_two),  # smaller: a shift ends where it was, to the last bit
    ("NO_SPREAD", 1e20, no_rule_is_better_than_any_can_be),  # smaller: down to 1e-32 nothing changes
    ("MEASURED", 0.01, float64_distances_are_that_exact),
    ("MEASURED", 100, float64_distances_are_not_measured_again_for_nothing),
    ("ROUNDING", 0.01, float32_distances_are_that_exact),
    ("ROUNDING", 100, ordinary_mixtures_are_not_measured_again),
    ("BLUR", 0.01, ordinary_mixtures_are_not_measured_again),
    ("BLUR", 100, derived_distances_are_right_beside_usual_ones),
    ("BLUR_MIXED", 0.01, mixtures_of_far_vectors_are_not_measured_again_for_nothing),
    ("BLUR_MIXED", 100, far_mixtures_are_right_beside_themselves),
    ("BLUR_SCALED", 0.01, scaled_far_vectors_are_not_measured_again_for_nothing),
    ("BLUR_SCALED", 100, far_vectors_scaled_are_right_beside_themselves),
    ("CANCELLED", 100, distances_to_a_point_that_cancelled_are_measured_again),  # smaller: only time
    ("FAR", 100, far_points_leave_near_ones_in_place),  # smaller: the same places, by another way
    ("NARROW", 0.01, what_lies_across_a_line_is_exact),
    ("NARROW", 100, ordinary_points_are_placed_without_another_pass),
    ("LINE", 0.01, vectors_on_one_line_have_the_middle),
    ("LINE", 100, vectors_beside_a_line_have_not),
    ("SETTLED", 100, walks_arrive),  # smaller: a step or two more
    ("OPTIMAL", 0.01, a_vector_that_is_optimal_is_the_answer),
    ("OPTIMAL", 100, a_vector_that_is_nearly_optimal_is_not),
    ("UNSURE", 0.01, whether_a_vector_is_the_median_is_certain),
    ("UNSURE", 100, clear_cases_are_not_measured_again),
    ("CLOSE", 0.01, medians_among_near_vectors_are_exact),
    ("CLOSE", 100, ordinary_medians_are_not_measured_again),
    ("FLAT", 0.01, medians_in_flat_places_are_exact),
    ("FLAT", 100, ordinary_medians_are_not_measured_again),
]


PROPERTIES = dict.fromkeys([*(holds for _, _, holds in WRONG), walks_end])


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_a_property_holds(holds: Callable[[], None]) -> None:
    holds()


@pytest.mark.parametrize(("name", "factor", "holds"), WRONG, ids=[f"{n}-{f:g}" for n, f, _ in WRONG])
def test_it_fails_where_the_constant_is_wrong(
    name: str, factor: float, holds: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, name, factor * getattr(numerics, name))
    with np.errstate(all="ignore"), pytest.raises((AssertionError, ValueError)):
        holds()


def test_every_constant_has_a_property_and_is_used() -> None:
    constants = {name for name in vars(numerics) if name.isupper()}
    assert constants == {name for name, _, _ in WRONG}
    source = "".join(path.read_text("utf-8") for path in Path(numerics.__file__).parent.rglob("*.py"))
    assert all(f"numerics.{name}" in source for name in constants)


def test_the_budget_is_in_order() -> None:
    """Each line of the table allows what the lines above it leave."""
    n = numerics
    eps = {kind: float(torch.finfo(kind).eps) for kind in (torch.float32, torch.float64)}
    assert eps[torch.float64] < n.REST < n.AGREED < n.MEASURED <= n.STRAIGHT < n.TIE
    assert n.TIE == n.ANGLE == n.NOTHING < n.SPECTRUM == n.OPTIMAL < n.SETTLED == n.WITHIN < eps[torch.float32]
    assert eps[torch.float32] < n.ROUNDING < n.UNSURE < n.BLUR < n.BLUR_SCALED < n.BLUR_MIXED < n.NARROW
    assert n.VANISHING < 1 / n.ORDINARY**2 < n.ORDINARY**2 < n.MOST**2 * 1e8 < torch.finfo(torch.float64).max
    assert n.LOST < n.FAINT < 1e-20
