"""Searches over subsets, beside going through them all."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from varangian.core import numerics
from varangian.core.rules import search


def graph(n: int, share: float, seed: int) -> np.ndarray:
    """[n, n] which points are in conflict: symmetric, nobody with itself."""
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < share, 1)
    return upper | upper.T


def between(x: np.ndarray) -> np.ndarray:
    return ((x[:, None] - x[None]) ** 2).sum(2)


def cover(conflict: np.ndarray) -> int:
    """The least number of points without which no two are in conflict."""
    n = conflict.shape[0]
    for size in range(n + 1):
        for gone in combinations(range(n), size):
            kept = np.setdiff1d(np.arange(n), gone)
            if not conflict[np.ix_(kept, kept)].any():
                return size
    raise AssertionError


def subsets(n: int, size: int) -> list[tuple[int, ...]]:
    return list(combinations(range(n), size))


def grid(n: int, d: int, seed: int) -> np.ndarray:
    """Points of whole coordinates, many of them equally far apart."""
    return np.random.default_rng(seed).integers(0, 4, size=(n, d)).astype(float)


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_whether_so_many_removed_leave_no_conflict(n: int, share: float) -> None:
    for seed in range(12):
        conflict = graph(n, share, seed)
        least = cover(conflict)
        found = [search._coverable(conflict, budget, 10_000) for budget in range(n + 1)]
        assert found == [int(budget >= least) for budget in range(n + 1)], (seed, least)
        assert search._coverable(conflict, -1, 10_000) == 0


def tries(conflict: np.ndarray, budget: int) -> int:
    """How many branches a search takes."""
    return next(k for k in range(10_000) if search._coverable(conflict, budget, k) >= 0)


def test_where_the_far_points_are_plain_there_is_no_branch() -> None:
    """f far points in conflict with all, a path, pairs, stars: forced moves and bounds decide these by themselves."""
    far = np.zeros((20, 20), bool)
    far[-8:] = far[:, -8:] = True
    np.fill_diagonal(far, False)
    path, pairs, stars = (np.zeros((20, 20), bool) for _ in range(3))
    for i in range(19):
        path[i, i + 1] = path[i + 1, i] = True
    for i in range(0, 20, 2):
        pairs[i, i + 1] = pairs[i + 1, i] = True
    for i in range(20):
        if i % 5:
            stars[i, i - i % 5] = stars[i - i % 5, i] = True
    for conflict, least in ((far, 8), (path, 10), (pairs, 10), (stars, 4)):
        for budget in range(20):
            spare = 0 if budget <= least else 20  # where more may go than must, points are tried
            assert search._coverable(conflict, budget, spare) == (budget >= least), budget


def test_bounds_spare_branches() -> None:
    """What the search takes altogether on conflicts of every density, which is what decides whether it is refused."""
    taken = {share: sum(tries(graph(16, share, seed), b) for seed in range(10) for b in range(16)) for share in SHARES}
    assert all(taken[share] <= most for share, most in SHARES.items()), taken


SHARES = {0.2: 83, 0.4: 398, 0.6: 396, 0.8: 287}


def test_disjoint_conflicts_cost_a_point_each() -> None:
    """A ring of eight with one chord, where no move is forced: four disjoint pairs, so three points do not do."""
    ring = np.zeros((8, 8), bool)
    for i, j in [*((i, (i + 1) % 8) for i in range(8)), (0, 4)]:
        ring[i, j] = ring[j, i] = True
    assert [search._coverable(ring, 3, 0), search._coverable(ring, 4, 1)] == [0, 1]


@pytest.mark.parametrize("seed", range(8))
def test_the_least_sum_where_nothing_forces_a_choice(seed: int) -> None:
    n = 9
    squared = between(grid(n, 2, seed) if seed % 2 else np.random.default_rng(seed).normal(size=(n, 2)))
    for size in range(1, n):
        sums = {s: squared[np.ix_(s, s)].sum() / 2 for s in subsets(n, size)}
        wanted = {s for s, total in sums.items() if total <= min(sums.values()) * (1 + numerics.TIE)}
        found = np.zeros((len(sums), n), bool)
        count = search._tightest(squared, squared < 0, n - size, 20_000, np.inf, found, numerics.TIE)
        assert {tuple(map(int, np.flatnonzero(mask))) for mask in found[:count]} == wanted


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("d", [1, 2])
def test_the_least_diameter(n: int, d: int) -> None:
    for seed in range(6):
        squared = between(grid(n, d, seed))
        for size in range(1, n + 1):
            diameters = {s: squared[np.ix_(s, s)].max() for s in subsets(n, size)}
            least = min(diameters.values())
            best = [s for s, diameter in diameters.items() if diameter == least]
            assert search._threshold(squared, size) == least
            assert search.first_of_least_diameter(squared, size).tolist() == list(best[0])
            sums = {s: squared[np.ix_(s, s)].sum() for s in best}
            wanted = {s for s in best if sums[s] == min(sums.values())}
            found = search.least_diameter(squared, size)
            assert (found.dtype, found.shape[1]) == (bool, n)
            assert {tuple(map(int, np.flatnonzero(mask))) for mask in found} == wanted
            assert len(found) == len(wanted)


def test_distances_that_differ_by_rounding_are_one_diameter() -> None:
    squared = between(np.array([[0.0], [1.0], [2.0], [3.0]]))
    for slack, many in ((numerics.TIE / 10, 3), (10 * numerics.TIE, 2)):
        near = squared.copy()
        near[0, 1] = near[1, 0] = 1 + slack
        assert len(search.least_diameter(near, 2)) == many


def test_so_many_equally_good_subsets_are_kept() -> None:
    found = search.least_diameter(np.zeros((12, 12)), 6)
    assert len(found) == search.TIES < len(subsets(12, 6))
    assert (found.sum(1) == 6).all()
    assert len({mask.tobytes() for mask in found}) == search.TIES


def test_a_search_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "NODES", 0)
    squared = between(np.random.default_rng(0).normal(size=(24, 2)))
    message = r"the least diameter of 12 among 24 vectors takes more than 0 steps to find\."
    for find in (search.least_diameter, search.first_of_least_diameter):
        with pytest.raises(ValueError, match=message):
            find(squared, 12)


def test_a_search_for_the_least_sum_that_is_stopped_has_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "TIE_NODES", 0)
    squared = between(grid(9, 1, 1))
    found = search.least_diameter(squared, 5)
    assert len(found) >= 1
    least = min(squared[np.ix_(s, s)].max() for s in subsets(9, 5))
    for mask in found:
        assert mask.sum() == 5
        assert squared[np.ix_(mask, mask)].max() == least


def scatter(x: np.ndarray) -> float:
    """The top eigenvalue of the scatter matrix of some points."""
    moved = x - x.mean(0)
    return float(np.linalg.eigvalsh(moved @ moved.T)[-1])


@pytest.mark.parametrize("n", [1, 2, 4, 7])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_the_top_eigenvalue_of_some_points(n: int, d: int) -> None:
    for seed in range(5):
        x = np.random.default_rng(seed).normal(loc=3, size=(n + 2, d))
        inner, work = x @ x.T, np.zeros((n + 2, n + 2))
        chosen = np.random.default_rng(seed).permutation(n + 2)[:n]
        top = scatter(x[chosen])
        assert search._top(inner, chosen, n, work) == pytest.approx(top, rel=1e-8, abs=1e-12)
        assert search._below(inner, chosen, n, top * (1 + 1e-9) + 1e-12, work)
        assert not search._below(inner, chosen, n, top * (1 - 1e-9) - 1e-12, work)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_least_top_eigenvalue(n: int, d: int) -> None:
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=(n, d)) if seed % 2 else grid(n, d, seed)
        for size in range(1, n + 1):
            tops = {s: scatter(x[list(s)]) for s in subsets(n, size)}
            least = min(tops.values())
            wanted = {s for s, top in tops.items() if top <= least + 1e-9 * max(least, 1e-6)}
            found = search.least_top_eigenvalue(x @ x.T, size)
            assert found.shape[1] == n
            chosen = {tuple(map(int, np.flatnonzero(mask))) for mask in found}
            assert len(chosen) == len(found)
            if least > 1e-9:
                assert chosen == wanted
            else:  # subsets of one point
                assert chosen <= {s for s, top in tops.items() if top < 1e-6}


def test_equally_flat_subsets_are_kept_up_to_a_number() -> None:
    found = search.least_top_eigenvalue(np.eye(12), 6)
    assert len(found) == search.TIES
    assert (found.sum(1) == 6).all()
