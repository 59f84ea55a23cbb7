"""Geometry, n x n numbers of points, beside plain loops over the points themselves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from varangian.core import numerics
from varangian.core.geometry import (
    Geometry,
    Held,
    _alike,
    _coordinates,
    _refined,
    in_unit,
    mean_weights,
    power_below,
    squared_from,
    sum_of_smallest,
    unit_of,
    upper_medians,
)  # fmt: skip

N, D, E = 7, 5, 2
FAULTY = 4
extras = pytest.mark.parametrize("e", [0, 1, E])
both = pytest.mark.parametrize("faulty", [False, True], ids=["finite", "one is not"])


def points(seed: int = 0, n: int = N, d: int = D) -> np.ndarray:
    return np.random.default_rng(seed).normal(loc=0.5, size=(n, d))


def made(e: int, faulty: bool = False, seed: int = 0) -> tuple[Geometry, np.ndarray, np.ndarray]:
    """(geometry, [n, d] points, [e, d] extra ones)."""
    x, extra = points(seed), points(seed + 100, e)
    if faulty:
        x[FAULTY] = np.nan
    return Geometry.of(torch.from_numpy(x), torch.from_numpy(extra) if e else None), x, extra


def between(rows: np.ndarray) -> np.ndarray:
    """Squared distances between points, the origin last; infinite where a point is not finite, but 0 to itself."""
    every = np.append(rows, np.zeros((1, rows.shape[1])), axis=0)
    squared = np.array([[((a - b) ** 2).sum() for b in every] for a in every])
    squared[~np.isfinite(squared)] = np.inf
    np.fill_diagonal(squared, 0)
    return squared


def combined(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weights @ x, where what is not finite has a weight that is not 0 or none."""
    rows = np.zeros((weights.shape[0], x.shape[1]))
    for i, j in zip(*np.nonzero(weights), strict=True):
        rows[i] += weights[i, j] * x[j]
    return rows


# --------------------------------------------------------------------------------------------------- what is measured


@extras
@both
def test_distances_are_those_of_the_points(e: int, faulty: bool) -> None:
    g, x, extra = made(e, faulty)
    np.testing.assert_allclose(g.squared, between(np.append(x, extra, axis=0)), rtol=1e-12)
    assert g.finite.tolist() == np.isfinite(x).all(1).tolist()
    assert (g.n, g.faulty, g.exact, g.center, g.shares, g.table) == (N, int(faulty), True, None, None, None)
    np.testing.assert_array_equal(g.distances, g.squared[:N, :N])
    np.testing.assert_array_equal(g.norms, g.squared[:N, N + e])
    good = g.distances[np.ix_(g.finite, g.finite)]
    np.testing.assert_array_equal(g.usual, np.sort(good, axis=1)[:, len(good) // 2])
    assert not Geometry.of(torch.from_numpy(x).float()).exact


@extras
@pytest.mark.parametrize("at", [*range(N), -1])
def test_distances_from_one_point_say_which(e: int, at: int) -> None:
    _, x, extra = made(e)
    vectors = Held(torch.from_numpy(x), torch.from_numpy(extra) if e else None)
    g = Geometry.measured_as(squared_from(vectors.x, vectors.extra, at), vectors)
    wanted = between(np.append(x, extra, axis=0))
    size = N + e + 1
    assert g.center == (at if at == -1 else at - size)
    assert g.exact
    known = ~np.isnan(g.squared)
    np.testing.assert_allclose(g.squared[known], wanted[known], rtol=1e-12)
    assert known[:N, at].all()
    assert known[:, -1].all()
    assert not known[(at + 1) % N, (at + 2) % N]
    scales = np.linspace(0.5, 1.5, N)
    scaled = g.mix(scales)
    wanted = between(np.append(scales[:, None] * x, extra, axis=0))
    np.testing.assert_allclose(scaled.norms, wanted[:N, -1], rtol=1e-10)
    np.testing.assert_allclose(scaled.squared[:N, at], wanted[:N, at], rtol=1e-10)
    far = g.mix(np.full(N, 1e7)).mix(np.full(N, 1e-7) * scales)
    np.testing.assert_allclose(far.squared[:N, at], wanted[:N, at], rtol=1e-10)
    weights = np.random.default_rng(1).dirichlet(np.ones(N), N)
    np.testing.assert_allclose(
        g.mix(weights).squared, between(np.append(weights @ x, extra, axis=0)), rtol=1e-9, atol=1e-12
    )


@extras
@pytest.mark.parametrize("at", [0, N - 1])
def test_digits_that_scaled_distances_lose_are_measured_again(e: int, at: int) -> None:
    """Far points of nearly one direction, brought near each other by their scales."""
    lengths = 10.0 ** np.arange(N)
    x = lengths[:, None] * (1 + 1e-6 * points())
    extra = points(1, e)
    vectors = Held(torch.from_numpy(x), torch.from_numpy(extra) if e else None)
    g = Geometry.measured_as(squared_from(vectors.x, vectors.extra, at), vectors).mix(1 / lengths)
    np.testing.assert_allclose(g.squared[:N, at], between(x / lengths[:, None])[:N, at], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_unit_brings_lengths_into_range(scale: float) -> None:
    x, extra = points() * scale, points(1, 1) * scale
    g = Geometry.of(torch.from_numpy(x), torch.from_numpy(extra))
    np.testing.assert_allclose(np.sqrt(g.squared) * g.unit, scale * np.sqrt(between(np.append(x, extra, 0) / scale)))
    assert np.frexp(g.unit)[0] == 0.5
    assert (g.unit == 1) == (scale == 1)


def test_a_far_vector_among_ordinary_ones_is_no_longer_than_the_most() -> None:
    x = torch.from_numpy(points())
    x[2] *= 1e300
    g = Geometry.of(x)
    assert g.finite.all()
    assert g.unit == 1
    assert np.sqrt(g.norms[2]) == pytest.approx(numerics.MOST)
    assert unit_of(x.float(), np.full(N, np.inf)) is None
    short = in_unit(x, 4.0)
    torch.testing.assert_close(short[:2], x[:2] / 4)
    torch.testing.assert_close(short[2] / short[2].norm(), x[2] / 1e300 / (x[2] / 1e300).norm())


@pytest.mark.parametrize("length", [1.0, 1.5, 2.0, 3.999, 5e-324, 1e308, 0.1])
def test_a_power_of_two_below(length: float) -> None:
    power = power_below(length)
    assert np.frexp(power)[0] == 0.5
    assert power <= length < 2 * power


# ----------------------------------------------------------------------------------------------------------- mixtures


def mixings(n: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    some = random.dirichlet(np.ones(n), n)
    some[:, FAULTY] = 0
    return {
        "scales": np.linspace(0.5, 2, n),
        "scales of both signs": np.linspace(-1, 2, n),
        "as they are": np.eye(n),
        "means": random.dirichlet(np.ones(n), n),
        "means of some": some / some.sum(1, keepdims=True),
        "pairs": np.kron(np.eye(n // 2), [0.5, 0.5]) @ np.eye(n)[: n // 2 * 2],
        "shares of the origin": 0.7 * some,
        "beyond": 2 * np.eye(n) - 1 / n,
        "one point": np.full((3, n), 1 / n),
    }


@extras
@both
@pytest.mark.parametrize("name", mixings(N))
def test_distances_of_mixtures_are_those_of_the_mixed_points(e: int, faulty: bool, name: str) -> None:
    g, x, extra = made(e, faulty)
    weights = mixings(N)[name]
    matrix = np.diag(weights) if weights.ndim == 1 else weights
    rows = combined(matrix, x)
    wanted = between(np.append(rows, extra, axis=0))
    tolerance = 1e-11 * np.nanmax(np.where(np.isfinite(wanted), wanted, 0))
    unseen = g.mix(weights, seen=False)
    for found in (g.mix(weights), g.mix(weights, anew=True), g.mix(np.eye(N)).mix(weights)):
        np.testing.assert_allclose(found.squared, wanted, rtol=1e-9, atol=tolerance)
        np.testing.assert_array_equal(found.squared, found.squared.T)
        assert found.finite.tolist() == unseen.finite.tolist() == np.isfinite(rows).all(1).tolist()
        assert found.exact
        assert unseen.squared.shape == found.squared.shape
        assert unseen.table is not None
        np.testing.assert_allclose(found.table, unseen.table, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(combined(unseen.table[:, :N], x), rows, rtol=1e-12)
    assert np.isnan(unseen.squared).all()
    same = g.mix(np.full((2, N), 1 / N)).distances
    assert faulty or same[0, 1] == 0


def test_a_mixture_of_far_vectors_is_measured_again() -> None:
    """Clipped to one length: of what distances of 1e30 leave nothing would be right."""
    x = points()
    x[1] *= 1e12
    x[3] *= -1e12
    g = Geometry.of(torch.from_numpy(x))
    scales = 1 / np.sqrt(g.norms)
    wanted = between(scales[:, None] * x)
    np.testing.assert_allclose(g.mix(scales).squared, wanted, rtol=1e-5, atol=1e-12)
    weights = np.eye(N)
    weights[1] = weights[3] = 0
    weights[1, :2], weights[3, 2:4] = (1, 1e-12), (1, 1e-12)
    np.testing.assert_allclose(g.mix(weights).squared, between(weights @ x), rtol=1e-4, atol=1e-6)


@extras
def test_weights_of_mixtures_are_weights_of_vectors(e: int) -> None:
    g, x, extra = made(e)
    every = np.append(x, extra, axis=0)
    random = np.random.default_rng(5)
    weights = random.normal(size=(4, N))
    more = random.normal(size=(4, N + e))
    np.testing.assert_allclose(g.through(weights) @ every, weights @ x)
    np.testing.assert_allclose(g.through(more) @ every, more @ every)
    mixed = g.mix(random.dirichlet(np.ones(N), 3))
    assert mixed.table is not None
    rows = mixed.table @ every
    np.testing.assert_allclose(mixed.through(weights[:, :3]) @ every, weights[:, :3] @ rows)
    np.testing.assert_allclose(
        mixed.through(more[:, : 3 + e]) @ every, more[:, : 3 + e] @ np.append(rows, extra, axis=0)
    )
    np.testing.assert_allclose(
        mixed.through(more[0, : 3 + e]) @ every, more[0, : 3 + e] @ np.append(rows, extra, axis=0)
    )


@extras
def test_scales_are_those_that_made_a_point(e: int) -> None:
    g, *_ = made(e)
    scales = np.linspace(0.5, 2, N)
    np.testing.assert_array_equal(g.scales, np.ones(N))
    np.testing.assert_allclose(g.mix(scales).mix(scales).scales, scales**2)  # type: ignore[arg-type]
    assert g.mix(mixings(N)["means"]).scales is None
    assert g.mix(np.eye(N)[: N - 1]).scales is None
    assert g.mix(np.eye(N)[::-1]).scales is None


@extras
@both
def test_among_others_and_only_those_again(e: int, faulty: bool) -> None:
    g, *_ = made(e, faulty)
    places, many = np.array([1, 2, 4, 5, 8, 9, 10]), 12
    others = np.setdiff1d(np.arange(many), places)
    wide = g.among(places, many)
    assert (wide.n, wide.squared.shape) == (many, (many + e + 1,) * 2)
    assert wide.finite[places].tolist() == g.finite.tolist()
    assert not wide.finite[others].any()
    assert np.isinf(wide.squared[others][:, places]).all()
    assert np.isinf(wide.norms[others]).all()
    assert not np.diag(wide.squared).any()
    np.testing.assert_array_equal(wide.distances[np.ix_(places, places)], g.distances)
    np.testing.assert_array_equal(wide.squared[many:, many:], g.squared[N:, N:])
    assert wide.shares is not None
    assert wide.shares[places].tolist() == [1] * N
    assert not wide.shares[others].any()
    assert wide.table is not None
    np.testing.assert_array_equal(wide.table[places], g.through(np.eye(N)))
    assert not wide.table[others].any()
    back = wide.only(places)
    np.testing.assert_array_equal(back.squared, g.squared)
    assert back.finite.tolist() == g.finite.tolist()
    assert back.shares is None
    np.testing.assert_array_equal(back.table, g.through(np.eye(N)))
    weighed = g.only(np.array([0, 3]))
    np.testing.assert_array_equal(weighed.distances, g.distances[np.ix_([0, 3], [0, 3])])
    np.testing.assert_array_equal(weighed.squared[2:, 2:], g.squared[N:, N:])


# ------------------------------------------------------------------------------------------------- angles and places


@extras
@both
def test_cosines_are_those_of_the_points(e: int, faulty: bool) -> None:
    _, x, extra = made(e, faulty)
    x[1], x[2] = 0, -3 * x[0]
    g = Geometry.of(torch.from_numpy(x), torch.from_numpy(extra) if e else None)
    every = np.append(x, extra, axis=0)
    norms = np.sqrt((every**2).sum(1))
    seen = np.isfinite(norms) & (norms > 0)
    units = np.where(seen[:, None], np.nan_to_num(every) / np.where(seen, norms, 1)[:, None], 0)
    found = g.cosines()
    np.testing.assert_allclose(found, units @ units.T, atol=1e-11)
    assert found[0, 2] == found[2, 0] == -1
    assert (np.diag(found) == seen).all()


def shapes() -> dict[str, np.ndarray]:
    random, line = np.random.default_rng(8), np.linspace(-1, 2, N)[:, None]
    direction = random.normal(size=(1, D))
    cloud, twins, far, farther = points(1), points(2), points(3), points(4)
    twins[3] = twins[5] = twins[0]
    far[6] *= 1e3
    farther[2], farther[3] = 1e6 * farther[2], farther[2] * 1e9
    return {
        "a cloud": cloud,
        "a cloud far from the origin": cloud + 1e3,
        "twins": twins,
        "one is far": far,
        "two are far": farther,
        "a line": line * direction,
        "near a line": line * direction + 1e-4 * points(5),
        "half near a line": np.where(np.arange(N)[:, None] < 4, line * direction, points(6)),
        "a majority agrees": np.where(np.arange(N)[:, None] < 5, direction, points(7)),
        "all agree": np.repeat(direction, N, axis=0),
        "one coordinate": points(9, d=1),
    }


@pytest.mark.parametrize("name", shapes())
@pytest.mark.parametrize("e", [0, 1])
@both
def test_places_are_as_far_apart_as_the_points(name: str, e: int, faulty: bool) -> None:
    x = shapes()[name]
    extra = points(11, e, x.shape[1]) * np.abs(x).max()
    if faulty:
        x[FAULTY] = np.inf
    at = Geometry.of(torch.from_numpy(x), torch.from_numpy(extra) if e else None).positions()
    every = np.append(x, extra, axis=0)
    assert at.shape[0] == N + e
    assert (np.isnan(at).all(1) == ~np.isfinite(every).all(1)).all()
    good = np.flatnonzero(np.isfinite(every).all(1))
    for i in good:
        for j in good:
            wanted, found = np.linalg.norm(every[i] - every[j]), np.linalg.norm(at[i] - at[j])
            near = np.sort(np.linalg.norm(every[good] - every[i], axis=1))[1] + np.linalg.norm(every[good].mean(0))
            assert found == pytest.approx(wanted, rel=1e-6, abs=1e-7 * near)
            if (every[i] == every[j]).all():
                assert (at[i] == at[j]).all()


@pytest.mark.parametrize("name", shapes())
def test_what_lies_across_a_line_alone_is_measured_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    measured = Held.measured
    monkeypatch.setattr(Held, "measured", lambda *given: passes.append(1) or measured(*given))
    Geometry.of(torch.from_numpy(shapes()[name])).positions()
    near_a_line = name in ("a line", "near a line")
    assert len(passes) == near_a_line or "far" in name or "agree" in name


def test_no_finite_point_has_no_place() -> None:
    at = Geometry.of(torch.full((3, 2), torch.nan)).positions()
    assert at.shape == (3, 1)
    assert np.isnan(at).all()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_coordinates_have_the_inner_products(rank: int) -> None:
    x = points(rank, 6, rank)
    at = _coordinates(x @ x.T, numerics.REST)
    np.testing.assert_allclose(at @ at.T, x @ x.T, atol=1e-12)
    assert (np.abs(at).max(0) > 0).sum() == rank
    assert (np.square(at[:, 0]).argmax(), True) == ((x**2).sum(1).argmax(), True)


# --------------------------------------------------------------------------------------------------- order, and ties


def by_score_and_value(scores: np.ndarray, rows: np.ndarray, index: list[int]) -> list[int]:
    return sorted(index, key=lambda i: (scores[i], tuple(rows[i])))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mixed", [False, True], ids=["vectors", "mixtures"])
def test_the_smallest_scores_and_of_equal_ones_the_lesser_vectors(seed: int, mixed: bool) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, 3, size=(9, 400)).astype(float)
    x[:, :380] = 1.0  # told apart late
    x[4] = x[1]
    scores = random.integers(0, 3, size=9).astype(float) * (1 + 1e-14 * random.random(9))
    if seed % 3 == 1:
        x[2] = np.nan
    if seed % 3 == 2:
        scores[5] = np.nan
    g = Geometry.of(torch.from_numpy(x))
    g = g.mix(np.eye(9)) if mixed else g
    good = [i for i in range(9) if np.isfinite(x[i]).all() and not np.isnan(scores[i])]
    wanted = by_score_and_value(np.round(scores), x, good)
    for count in range(10):
        found = g.smallest(scores, count).tolist()
        assert len(found) == count
        inside = found[: len(good)]
        assert [(round(scores[i]), tuple(x[i])) for i in inside[:-1]] == [
            (round(scores[i]), tuple(x[i])) for i in wanted[: len(inside)][:-1]
        ]
        if inside:  # of the last group the least are taken, whatever their order
            assert {tuple(x[i]) for i in inside} == {tuple(x[i]) for i in wanted[:count]}
    some = np.array(sorted(good)[::2])
    assert {tuple(x[i]) for i in g.smallest(scores[some], 2, among=some)} == {
        tuple(x[i]) for i in by_score_and_value(np.round(scores), x, some.tolist())[:2]
    }
    stable = g.smallest(np.round(scores), 9, ties="position").tolist()
    assert stable[: len(good)] == sorted(good, key=lambda i: (round(scores[i]), i))


def test_scores_that_differ_by_more_than_a_tie_are_no_tie() -> None:
    x = torch.tensor([[2.0], [1.0], [3.0]])
    g = Geometry.of(x)
    scores = np.array([1.0, 1 + 3 * numerics.TIE, 1 - 3 * numerics.TIE])
    assert g.smallest(scores, 3).tolist() == [2, 0, 1]
    assert g.smallest(np.array([1.0, 1 + numerics.TIE / 3, 1.0]), 3).tolist() == [1, 0, 2]


def test_the_most_central_come_first() -> None:
    x = points(2)
    x[FAULTY] = np.inf
    sums = {i: sum(np.linalg.norm(x[i] - x[j]) for j in range(N) if j != FAULTY) for i in range(N) if i != FAULTY}
    assert Geometry.of(torch.from_numpy(x)).by_centrality().tolist() == sorted(sums, key=lambda i: sums[i])


@pytest.mark.parametrize("seed", range(60))
def test_unsure_is_who_float32_may_have_put_over_a_place(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 9))
    x = torch.from_numpy(random.integers(0, 2, size=(n, 2)).astype(np.float32))
    scores = 1 + random.integers(0, 4, size=n) * 0.5 + random.integers(0, 5, size=n) * numerics.ROUNDING * 2
    if seed % 3 == 0:
        scores[random.integers(n)] = np.nan
    if seed % 3 == 1:
        x[int(random.integers(n))] = np.nan
    places = sorted({int(p) for p in random.integers(0, n + 2, size=2)})
    g = Geometry.of(x)
    known = [i for i in range(n) if g.finite[i] and not np.isnan(scores[i])]
    order = sorted(known, key=lambda i: scores[i])
    groups: list[list[int]] = [order[:1]]
    for before, after in pairwise(order):
        near = scores[after] - scores[before] <= 4 * numerics.ROUNDING * scores[after]
        groups[-1].append(after) if near else groups.append([after])
    wanted: set[int] = set()
    for place in places:
        for group in groups:
            over = group and order.index(group[0]) < place <= order.index(group[-1])
            if over and any((x[i] != x[group[0]]).any() for i in group):
                wanted |= set(group)
    assert set(g.unsure(scores, places).tolist()) == wanted
    assert not Geometry.of(x.double()).unsure(scores, places).size
    some = np.array([i for i in range(n) if i % 2 == 0])
    among = g.unsure(scores[some], places, some)
    assert set(among.tolist()) <= set(some.tolist())


@pytest.mark.parametrize("index", [[2], [0, 2], list(range(N))])
def test_sharpened_distances_are_exact_and_others_as_they_were(index: list[int]) -> None:
    x = (1e3 + points()).astype(np.float32)
    x[5] = x[2]
    g, wanted = Geometry.of(torch.from_numpy(x)), between(x.astype(np.float64))[:N, :N]
    sharp = g.sharpened(np.array(index))
    np.testing.assert_allclose(sharp.distances[index], wanted[index], rtol=1e-12)
    np.testing.assert_array_equal(sharp.distances, sharp.distances.T)
    assert sharp.distances[2, 5] == 0
    np.testing.assert_array_equal(sharp.distances[5], sharp.distances[2])
    others = [i for i in range(N) if i not in (*index, 2, 5)]
    if 4 * len(index) <= N:
        np.testing.assert_array_equal(sharp.distances[np.ix_(others, others)], g.distances[np.ix_(others, others)])
        assert not sharp.exact
    else:
        assert sharp.exact
    for found in (g.measured(), g.sharp()):
        np.testing.assert_allclose(found.distances, wanted, rtol=1e-12)
        assert found.exact
    assert sharp.sharp().exact
    assert g.measured().sharp().sharpened(np.array([0])).exact


@extras
def test_measured_again_is_the_same(e: int) -> None:
    for faulty in (False, True):
        g, *_ = made(e, faulty)
        np.testing.assert_allclose(g.measured().squared, g.squared, rtol=1e-12)
        mixed = g.mix(mixings(N)["means of some"])
        np.testing.assert_allclose(mixed.measured().squared, mixed.squared, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("with_slack", [False, True])
def test_ranks_are_those_of_the_lexicographic_order(seed: int, with_slack: bool) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(0, 3, size=(7, 4)).astype(float)
    slack = np.full(rows.shape, 1e-9) if with_slack else None
    blurred = rows + 1e-10 * random.random(rows.shape) if with_slack else rows
    before = random.integers(0, 2, size=7) if seed % 2 else np.zeros(7, int)
    before = np.unique(before, return_inverse=True)[1]
    keys = [(before[i], *rows[i]) for i in range(7)]
    assert _refined(before, blurred, slack).tolist() == [sorted(set(keys)).index(key) for key in keys]


# ------------------------------------------------------------------------------------------------------ small helpers


def test_equal_mixtures_are_equal_points() -> None:
    table = np.array([[1.0, 0], [0, 1], [1, 0]])
    squared = between(points(0, 3))
    found = _alike(squared, table)
    assert found[0, 2] == 0
    np.testing.assert_array_equal(found, squared[np.ix_([0, 1, 0, 3], [0, 1, 0, 3])])
    assert _alike(squared, np.eye(3)) is squared


@pytest.mark.parametrize("n", range(1, 8))
def test_statistics_of_rows(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(4, n))
    ranked: Callable[[int], np.ndarray] = lambda i: np.sort(values, axis=1)[:, i]  # noqa: E731
    np.testing.assert_array_equal(upper_medians(values), ranked(n // 2))
    for count in range(n + 1):
        np.testing.assert_allclose(sum_of_smallest(values, count), sum((ranked(i) for i in range(count)), np.zeros(4)))
    weights = mean_weights([0, n - 1] if n > 1 else [0], n)
    assert weights.sum() == 1
    assert weights[0] == weights[n - 1] == (0.5 if n > 1 else 1)
