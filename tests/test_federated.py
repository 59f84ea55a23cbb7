"""What federated rules cluster by, beside plain loops over the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from varangian.core import numerics
from varangian.core.rules import federated


def component(apart: np.ndarray, length: float, start: int) -> set[int]:
    """Everybody who is connected with somebody by edges up to a length."""
    found, open_ = {start}, [start]
    while open_:
        i = open_.pop()
        for j in range(len(apart)):
            if j not in found and apart[i, j] <= length:
                found.add(j)
                open_.append(j)
    return found


@pytest.mark.parametrize("n", range(1, 10))
@pytest.mark.parametrize("tied", [False, True])
def test_the_first_majority_that_gathers(n: int, tied: bool) -> None:
    for seed in range(15):
        random = np.random.default_rng(seed)
        apart = random.integers(1, 4, size=(n, n)).astype(float) if tied else random.random((n, n)) + 0.1
        apart = np.triu(apart, 1) + np.triu(apart, 1).T
        count = n // 2 + 1
        wanted: set[int] = {0} if n == 1 else set()
        for length in np.unique(apart):
            for start in range(n):
                reached = component(apart, length, start)
                if not wanted and len(reached) >= count:
                    wanted = reached
        assert set(federated.first_majority(apart, count).tolist()) == wanted


def test_edges_that_rounding_tells_apart_are_added_at_once() -> None:
    for slack, many in ((numerics.ANGLE / 4, 4), (4 * numerics.ANGLE, 3)):
        apart = np.full((4, 4), 1.0)
        apart[0, 1] = apart[1, 0] = apart[1, 2] = apart[2, 1] = 0.1
        apart[2, 3] = apart[3, 2] = 0.1 + slack
        assert len(federated.first_majority(apart, 3)) == many


def climbed(points: list[np.ndarray], bandwidth: float) -> list[np.ndarray]:
    modes = [p.copy() for p in points]
    for _ in range(1000):
        moved = [np.mean([p for p in points if np.linalg.norm(p - mode) <= bandwidth], axis=0) for mode in modes]
        done = max(np.abs(a - b).max() for a, b in zip(moved, modes, strict=True)) <= numerics.STILL
        modes = moved
        if done:
            break
    return modes


def cluster(points: np.ndarray) -> list[bool]:
    rows, n = list(points), len(points)
    reaches = [sorted(float(np.linalg.norm(p - q)) for q in rows)[max(n // 2, 1) - 1] for p in rows]
    bandwidth = max(float(np.mean(reaches)), numerics.STILL) * (1 + numerics.WITHIN)
    modes = climbed(rows, bandwidth)
    crowds = [sum(np.linalg.norm(p - mode) <= bandwidth for p in rows) for mode in modes]
    ranked = sorted((-crowd, *np.round(mode, 9)) for crowd, mode in zip(crowds, modes, strict=True))
    taken: list[np.ndarray] = []
    for _, *mode in ranked:
        if all(np.linalg.norm(np.array(mode) - other) > bandwidth for other in taken):
            taken.append(np.array(mode))
    labels = [int(np.argmin([np.linalg.norm(p - mode) for mode in taken])) for p in rows]
    sizes = [labels.count(k) for k in range(len(taken))]
    return [label == sizes.index(max(sizes)) for label in labels]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("d", [1, 3])
def test_the_largest_cluster(n: int, d: int) -> None:
    sizes = set()
    for seed in range(12):
        random = np.random.default_rng(seed)
        points = random.normal(size=(n, d)) + 6 * random.integers(0, 1 + seed % 3, size=(n, 1))
        if seed % 4 == 0:
            points = np.round(points)  # points that agree, and clusters as large as each other
        found = federated.largest_cluster(points)
        assert found.tolist() == cluster(points)
        sizes.add(int(found.sum()))
    assert len(sizes) > 1 or n < 4


def test_how_odd_a_value_is() -> None:
    values = np.array([[1.0, 2.0, 6.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    spread = np.sqrt(np.mean((values[0] - 3) ** 2))
    np.testing.assert_allclose(federated._oddness(values), [np.abs(values[0] - 2.5) / spread, np.zeros(4)])
