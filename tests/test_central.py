"""The walk to the geometric median: its sums beside plain loops, and its derivatives beside differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import varangian as vg
from varangian.core.geometry import Geometry
from varangian.core.rules import central

N = 7


def cloud(seed: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points, a place, what each point counts)."""
    random = np.random.default_rng(seed)
    return random.normal(size=(N, r)), random.normal(size=r), random.integers(1, 4, size=N).astype(float)


def objective(x: np.ndarray, at: np.ndarray, shares: np.ndarray) -> float:
    return float(shares @ np.linalg.norm(x - at, axis=1))


@pytest.mark.parametrize("r", [1, 2, 4])
@pytest.mark.parametrize("at_a_point", [False, True])
def test_the_pulls_of_points(r: int, at_a_point: bool) -> None:
    for seed in range(8):
        x, at, shares = cloud(seed, r)
        x[5, 0] = at[0]  # looks neither up nor down the first axis
        if at_a_point:
            x[2] = x[4] = at
        lengths = np.linalg.norm(x - at, axis=1)
        there = lengths > 0
        units = (x - at)[there] / lengths[there, None]
        number, lack, total, weights, place, size, across = central._pulls(x, at, shares)
        signs = np.where(units[:, 0] >= 0, 1, -1)
        missing = 1 - np.abs(units[:, 0])
        assert number == signs @ shares[there]
        assert lack == pytest.approx((signs * missing) @ shares[there], abs=1e-12)
        assert size == pytest.approx(missing @ shares[there], abs=1e-12)
        assert across == pytest.approx(np.linalg.norm(units[:, 1:], axis=1) @ shares[there], abs=1e-12)
        np.testing.assert_allclose(total[1:], (shares[there] @ units)[1:], atol=1e-12)
        assert total[0] == 0
        assert place == shares[~there].sum()
        np.testing.assert_allclose(weights[there], (shares / np.where(there, lengths, 1))[there])
        assert not weights[~there].any()
        slope = central._slope((number, lack, total, weights, place, size, across))
        np.testing.assert_allclose(slope, shares[there] @ units, atol=1e-12)
        excess, rounding = central._excess(central._pulls(x, at, shares), 1e-3)
        assert excess == pytest.approx(slope @ slope - place**2, abs=1e-11)
        beside = np.linalg.norm(slope[1:])
        assert rounding == pytest.approx(1e-3 * ((abs(slope[0]) + place) * size + beside * across), abs=1e-12)


@pytest.mark.parametrize("r", [1, 2, 4])
def test_the_curvature_is_how_the_slope_changes(r: int) -> None:
    for seed in range(5):
        x, at, shares = cloud(seed, r)
        found = central._curvature(x, at, shares, central._pulls(x, at, shares))
        step = 1e-6
        for axis in range(r):
            moved = np.eye(r)[axis] * step
            up, down = (central._slope(central._pulls(x, at + s * moved, shares)) for s in (1, -1))
            np.testing.assert_allclose(found[:, axis], (down - up) / (2 * step), atol=1e-6)


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("at_a_point", [False, True])
def test_a_descent_halves_the_slope_along_its_direction(length: float, at_a_point: bool) -> None:
    for seed in range(8):
        x, at, shares = cloud(seed, 3)
        if at_a_point:
            at = x[np.argmax(np.linalg.norm(x, axis=1))]
        pulls = central._pulls(x, at, shares)
        slope = central._slope(pulls)
        step = length * slope / np.linalg.norm(slope)
        least = 0.5 * max(slope @ step - pulls[4] * np.linalg.norm(step), 0)
        found = central._descended(x, shares, at, step)
        along = found - at
        assert np.linalg.norm(np.cross(along, step)) <= 1e-9 * np.linalg.norm(along) * np.linalg.norm(step)
        assert along @ step > 0
        assert abs(central._slope(central._pulls(x, found, shares)) @ step) <= least * (1 + 1e-9)
        assert objective(x, found, shares) < objective(x, at, shares)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_sums_of_distances_rank_points_whoever_is_far(far: bool, faulty: bool, weighed: bool) -> None:
    """Of far points each sum has the same constant less, so that what tells near points apart does not drown."""
    for seed in range(4):
        x, _, shares = cloud(seed, 3)
        x[6] *= 1e9 if far else 1
        if faulty:
            x[1] = np.nan
        geometry = Geometry.of(torch.from_numpy(x))
        if weighed:
            geometry = Geometry(geometry.squared, geometry.finite, geometry.vectors, None, True, shares)
        found = central.distance_sums(geometry)
        good = [i for i in range(N) if np.isfinite(x[i]).all()]
        counts = shares if weighed else np.ones(N)
        assert (np.isinf(found) == ~np.isin(np.arange(N), good)).all()
        # Plain sums in twice the digits, less the one constant.
        wide = x.astype(np.longdouble)
        wanted = {i: sum(counts[j] * np.sqrt(((wide[i] - wide[j]) ** 2).sum()) for j in good) for i in good}
        first = good[0]
        for i in good[1:]:
            exact = float(wanted[i] - wanted[first])
            if i != 6 or not far:
                assert found[i] - found[first] == pytest.approx(exact, rel=1e-6, abs=1e-6)
        plain = central.plain_sums(np.where(np.isinf(geometry.distances), 0, geometry.distances), geometry.finite)
        np.testing.assert_allclose(plain[good], geometry.distances[np.ix_(good, good)].sum(1))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("d", [1, 3])
def test_on_a_line_it_is_the_median_or_the_middle_of_what_is_optimal(n: int, d: int) -> None:
    direction = 2.0 ** np.arange(d)  # so that products are exact, and the points on one line
    for seed in range(5):
        places = np.random.default_rng(seed).normal(size=n)
        ranked = np.sort(places)
        middle = (ranked[(n - 1) // 2] + ranked[n // 2]) / 2
        found = vg.GeometricMedian(0)(np.outer(places, direction))
        np.testing.assert_allclose(found, middle * direction, rtol=1e-12, atol=1e-12)
