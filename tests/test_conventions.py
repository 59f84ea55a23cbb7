"""Other libraries' computations, from their descriptions, beside our calls of docs/explanation/conventions.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

import oracles
import varangian as vg
from varangian.core.randomness import generator

Array = np.ndarray
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "conventions.md"


def scores(x: Array, f: int, power: int) -> Array:
    """Of each row the sum of distances, to this power, to the n - f - 2 nearest others."""
    apart = np.linalg.norm(x[:, None] - x[None, :], axis=2) ** power
    return np.sort(apart, axis=1)[:, 1 : len(x) - f - 1].sum(1)


def first_of(values: Array, count: int) -> Array:
    return np.argsort(values, kind="stable")[:count]


def flower_bulyan(x: Array, f: int) -> Array:
    chosen = x[first_of(scores(x, f, 2), len(x) - 2 * f)]
    nearest = np.argsort(np.abs(chosen - np.median(chosen, axis=0)), axis=0, kind="stable")[: len(x) - 4 * f]
    return np.take_along_axis(chosen, nearest, axis=0).mean(0)


def trimmed(x: Array, beta: float) -> Array:
    cut = int(beta * len(x))
    return np.sort(x, axis=0)[cut : len(x) - cut].mean(0)


def lower_median(x: Array) -> Array:
    return np.sort(x, axis=0)[(len(x) - 1) // 2]


def mean_of_medians(x: Array, f: int) -> Array:
    nearest = np.argsort(np.abs(x - lower_median(x)), axis=0, kind="stable")[: len(x) - f]
    return np.take_along_axis(x, nearest, axis=0).mean(0)


ROWS: dict[str, tuple[Callable[[Array, int], Array], Callable[[int, int], vg.Rule]]] = {
    'MultiKrum(f, m, ties="position")': (
        lambda x, f: x[first_of(scores(x, f, 2), 3)].mean(0),
        lambda n, f: vg.MultiKrum(f, 3, ties="position"),
    ),
    'Bulyan(f, selection="frozen", ties="position")': (
        flower_bulyan,
        lambda n, f: vg.Bulyan(f, selection="frozen", ties="position"),
    ),
    "TrimmedMean(int(beta * n))": (lambda x, f: trimmed(x, 0.2), lambda n, f: vg.TrimmedMean(int(0.2 * n))),
    'MultiKrum(f, m, distance="plain", ties="position")': (
        lambda x, f: x[first_of(scores(x, f, 1), 2)].mean(0),
        lambda n, f: vg.MultiKrum(f, 2, distance="plain", ties="position"),
    ),
    'Median(f, even="lower")': (lambda x, f: lower_median(x), lambda n, f: vg.Median(f, even="lower")),
    'MeaMed(f, even="lower")': (mean_of_medians, lambda n, f: vg.MeaMed(f, even="lower")),
    'CAF(f, largest="all")': (
        lambda x, f: oracles.caf(x, f, largest="all"),
        lambda n, f: vg.CAF(f, largest="all"),
    ),
    "MultiKrum(f)": (
        lambda x, f: x[first_of(scores(x, f, 2), len(x) - f - 2)].mean(0),
        lambda n, f: vg.MultiKrum(f),
    ),
    'Median(f, even="upper")': (
        lambda x, f: np.sort(x, axis=0)[len(x) // 2],
        lambda n, f: vg.Median(f, even="upper"),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_page(row: str) -> None:
    assert f"`{row}`" in PAGE.read_text()
    definition, make = ROWS[row]
    for seed in range(60):
        random = generator(seed, "conventions")
        f = int(random.integers(0, 3))
        n, d = 4 * f + 5 + seed % 4, 1 + seed % 7
        x = random.standard_normal((n, d)) + (5 * random.standard_normal((n, 1)) if seed % 3 else 0)
        np.testing.assert_allclose(make(n, f)(x), definition(x, f), rtol=1e-9, atol=1e-12, err_msg=str((seed, n, f)))


def test_rows_of_little() -> None:
    n, f = 12, 3
    s = n // 2 + 1 - f
    honest = generator(0, "conventions").standard_normal((n - f, 5))
    mean = honest.mean(0)
    z = NormalDist().inv_cdf((n - s) / n)
    sent = vg.Little(factor=z, sign=1, ddof=0)(torch.from_numpy(honest), f=f)
    np.testing.assert_allclose(sent[0], mean + z * honest.std(0), rtol=1e-12)
    z = NormalDist().inv_cdf((n - f - s) / (n - f))
    sent = vg.Little(factor=None)(torch.from_numpy(honest), f=f)
    np.testing.assert_allclose(sent[0], mean - z * honest.std(0, ddof=1), rtol=1e-9)


def test_ties_of_the_page() -> None:
    x = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    np.testing.assert_array_equal(vg.MoNNA(f=1)(x), [0, 5])
    with_ties = {name for name, rule in vg.RULES.items() if "ties" in getattr(rule, "__dataclass_fields__", {})}
    assert with_ties == {"krum", "multi-krum", "bulyan", "mda"}


def test_caf_over_all_vectors_is_another_answer_and_ends() -> None:
    differ = 0
    for seed in range(40):
        x = generator(seed, "caf").standard_normal((9, 4))
        x[7:] += 6
        one, other = vg.CAF(3)(x), vg.CAF(3, largest="all")(x)
        np.testing.assert_allclose(one, oracles.caf(x, 3), rtol=1e-9)
        differ += not np.allclose(one, other)
    assert differ
    far = np.concatenate([np.eye(5), np.full((2, 5), 1e20)])
    assert np.isfinite(vg.CAF(2, largest="all")(far)).all()
    with pytest.raises(ValueError, match='CAF needs largest "weighted" or "all", got \'some\''):
        vg.CAF(2, largest="some")  # type: ignore[arg-type]
