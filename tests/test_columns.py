"""Ties and means of columns are exact: what comes out is what fractions say, in whatever order the vectors come."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core import kernels
from varangian.core.geometry import Geometry
from varangian.core.kernels.definitions import as_counts
from varangian.core.stages import decide

NATIVE = [torch.float32, torch.float64]
KINDS = ["grid", "gaussian"]
COLUMNS: dict[str, Callable[[int], vg.Rule]] = {
    "median": lambda f: vg.Median(f=f),
    "trimmed-mean": lambda f: vg.TrimmedMean(f=f),
    "phocas": lambda f: vg.Phocas(f=f),
    "meamed": lambda f: vg.MeaMed(f=f),
    "meamed-lower": lambda f: vg.MeaMed(f=f, even="lower"),
    "bulyan": lambda f: vg.Bulyan(f=f),
    "bulyan-multi-krum": lambda f: vg.Bulyan(f=f, base="multi-krum"),
    "mda": lambda f: vg.MinimumDiameterAveraging(f=f),
}
BEHIND: dict[str, Callable[[int], tuple[vg.Mixing, ...]]] = {
    "nothing": lambda f: (),
    "nnm": lambda f: (vg.NearestNeighborMixing(f=f),),
    "nnm, nnm": lambda f: (vg.NearestNeighborMixing(f=f),) * 2,
    "arc, nnm": lambda f: (vg.AdaptiveClipping(f=f), vg.NearestNeighborMixing(f=f)),
    "clipping, nnm": lambda f: (vg.StaticClipping(2.0), vg.NearestNeighborMixing(f=f)),
    "bucketing": lambda f: (vg.Bucketing(s=2),),
}


def vectors(kind: str, n: int, d: int, random: np.random.Generator, dtype: torch.dtype) -> Tensor:
    x = random.integers(-2, 3, size=(n, d)).astype(float) if kind == "grid" else random.normal(size=(n, d))
    return torch.from_numpy(x).to(dtype)


def exact(columns: list[list[Fraction]], low: int, high: int, window: int) -> list[Fraction]:
    """The statistic of columns of fractions."""
    answers = []
    for column in columns:
        ordered = sorted(column)
        center = sum(ordered[low:high], Fraction(0)) / (high - low)
        kept = ordered[low:high]
        if window:
            kept = sorted(ordered, key=lambda value: (abs(value - center), value))[:window]
        answers.append(sum(kept, Fraction(0)) / len(kept))
    return answers


def settings_for(n: int) -> set[tuple[int, int, int]]:
    """Medians, trimmed means, single ranks and the whole, and windows of all sizes around them."""
    ranks = {((n - 1) // 2, n // 2 + 1), (n // 2, n // 2 + 1), (0, n), (0, 1), (n - 1, n), (n // 4, n - n // 4)}
    return {(low, high, window) for low, high in ranks for window in (0, 1, n // 3, n - n // 3, n - 1, n)}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 11, 27, 129])
@pytest.mark.parametrize("dtype", NATIVE, ids=str)
def test_the_lower_of_two_values_equally_close(dtype: torch.dtype, n: int) -> None:
    """On small integers to the last bit: the sum of the values kept, divided once. Every implementation."""
    x = torch.from_numpy(np.random.default_rng(n).integers(-3, 4, size=(n, 130 if n < 20 else 20))).to(dtype)
    columns = [[Fraction(value) for value in column] for column in x.T.tolist()]
    for low, high, window in settings_for(n):
        expected = torch.tensor([float(value) for value in exact(columns, low, high, window)], dtype=torch.float64)
        found, _ = kernels.column_statistic(x, low, high, window)
        assert torch.equal(found, expected.to(dtype)), (low, high, window)
        plain, _ = kernels.plain.column_statistic(x, low, high, window)
        assert torch.equal(plain, expected.to(dtype)), (low, high, window)


@pytest.mark.parametrize(("n", "f"), [(11, 2), (15, 3), (11, 5), (65, 3)])
@pytest.mark.parametrize("dtype", NATIVE, ids=str)
def test_the_same_in_registers(dtype: torch.dtype, n: int, f: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many columns at a time, around the trimmed mean and around the median; of 65, which take seconds to compile,
    around one of them in each type."""
    x = torch.from_numpy(np.random.default_rng(n).integers(-3, 4, size=(n, 150))).to(dtype)
    columns = [[Fraction(value) for value in column] for column in x.T.tolist()]
    monkeypatch.setattr(kernels.cpu.columns, "WORTH", 0)
    around = [(f, n - f), ((n - 1) // 2, n // 2 + 1)]
    for low, high in around if n < 65 else [around[dtype == torch.float64]]:
        expected = [float(value) for value in exact(columns, low, high, n - f)]
        assert kernels.column_statistic(x, low, high, n - f)[0].tolist() == torch.tensor(expected, dtype=dtype).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", NATIVE, ids=str)
def test_ties_of_mixtures_are_ties(dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of n - f of n vectors are often exactly as far on either side of the centre: asked in fractions."""
    random = np.random.default_rng(3)
    for n, f in [(5, 1), (5, 2), (7, 2), (9, 3)] * 3:
        x = vectors(kind, n, 8, random, dtype)
        table = vg.NearestNeighborMixing(f=f).weights(Geometry.of(x))
        wide = [[Fraction(value) for value in row] for row in x.tolist()]
        columns = [
            [sum((wide[j][k] for j in np.flatnonzero(row)), Fraction(0)) / (n - f) for row in table] for k in range(8)
        ]
        for low, high, window in {(f, n - f, n - f), ((n - 1) // 2, n // 2 + 1, n - f), (n // 2, n // 2 + 1, 1)}:
            expected = torch.tensor([float(value) for value in exact(columns, low, high, window)], dtype=torch.float64)
            tolerance = 1e-13 if dtype == torch.float64 else 1e-6
            for order in (np.arange(n), random.permutation(n)):
                mixed = (x[torch.from_numpy(order)], low, high, window, table[:, order][random.permutation(n)])
                found, _ = kernels.column_statistic(*mixed[:4], mixing=mixed[4])
                torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
                plain, _ = kernels.plain.column_statistic(mixed[0].double(), *mixed[1:4], mixing=mixed[4])
                torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("name", COLUMNS)
def test_the_order_of_vectors_decides_nothing(name: str, behind: str) -> None:
    random = np.random.default_rng(1)
    for turn in range(60):
        kind, dtype = KINDS[turn % 2], NATIVE[turn // 2 % 2]
        n, d = int(random.integers(7, 16)), int(random.integers(1, 9))
        f = int(random.integers(1, (n - 3) // 4 + 1))
        pre, rule = BEHIND[behind](f), COLUMNS[name](f)
        if (pre[0].rows(n) if pre else n) < rule.min_n:
            continue
        x, order = vectors(kind, n, d, random, dtype), torch.from_numpy(random.permutation(n))
        one, other = decide(x, pre, rule).aggregate, decide(x[order], pre, rule).aggregate
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=str((turn, n, f, x)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *NATIVE], ids=str)
def test_means_are_exact_where_dividing_the_sum_is(dtype: torch.dtype) -> None:
    """Not so with weights of a third: 1/3 + 4/3 + 7/3 is less than 4 in float64."""
    x = torch.tensor([[1.0], [4.0], [7.0]], dtype=dtype).expand(3, 700)
    behind = vg.Algorithm(pre=(vg.NearestNeighborMixing(f=0),), rule=vg.MeaMed(f=1))
    for answer in (
        vg.Average(f=0)(x),
        vg.TrimmedMean(f=0)(x),
        vg.MultiKrum(f=0, m=3)(x),
        vg.Phocas(f=0)(x),
        vg.MeaMed(f=0)(x),
        vg.ComparativeGradientElimination(f=0)(x),
        vg.MoNNA(f=0)(x),
        vg.CenteredClipping(f=0, tau=1e4)(x),
        vg.NearestNeighborMixing(f=0)(x)[1],
        behind.aggregate(x, behind.init(3, 700, dtype=dtype))[0],
    ):
        assert torch.equal(answer, torch.full((700,), 4.0, dtype=dtype))
    whole = torch.from_numpy(np.random.default_rng(2).integers(-40, 41, size=(23, 300))).to(dtype)
    mean = torch.tensor([float(Fraction(sum(column), 23)) for column in whole.int().T.tolist()], dtype=torch.float64)
    assert torch.equal(vg.Average(f=0)(whole), (mean if dtype == torch.float64 else mean.float()).to(dtype))


@pytest.mark.parametrize("size", [1e300, 1.5e308, 1e-200, 1e-300])
def test_neither_sums_nor_counts_leave_the_range(size: float) -> None:
    x = torch.tensor([[1.0], [1.0], [0.5], [1.0], [0.25]], dtype=torch.float64) * size
    assert vg.Average(f=0)(x).item() == pytest.approx(0.75 * size, rel=1e-15)
    assert vg.TrimmedMean(f=1)(x).item() == pytest.approx(2.5 / 3 * size, rel=1e-15)
    assert vg.MeaMed(f=2)(x).item() == size
    assert vg.Phocas(f=1)(x).item() == pytest.approx(0.875 * size, rel=1e-15)
    mixing = np.full((2, 5), 0.2)
    assert kernels.column_statistic(x, 0, 2, 1, mixing=mixing)[0].item() == pytest.approx(0.75 * size, rel=1e-15)


def test_weights_as_counts() -> None:
    random = np.random.default_rng(4)
    for denominator in (1, 2, 3, 7, 51, 37 * 12, 51 * 39):
        counts = random.integers(0, 6, size=(4, 9)).astype(float)
        counts[0, 0] = 1
        for dtype in NATIVE:
            found, divisor = as_counts(counts / denominator, dtype)
            np.testing.assert_allclose(found / divisor, counts / denominator, rtol=1e-15)
            np.testing.assert_array_equal(found * (denominator / divisor), counts)
    for weights in (random.normal(size=9), np.array([np.nan, 0.5]), np.array([1e-20, 1.0]), np.zeros(3)):
        found, divisor = as_counts(weights, torch.float64)
        np.testing.assert_array_equal(found, weights)
        assert divisor == 1


def test_who_is_not_finite_is_counted_behind_the_mixing_in_every_type() -> None:
    """Two vectors of NaN in one bucket spoil one mixture, in half precision as in float32."""
    table = np.kron(np.eye(4), [[0.5, 0.5]])
    for dtype in (torch.float16, torch.bfloat16, *NATIVE):
        x = torch.ones(8, 300, dtype=dtype)
        x[2:4, ::7] = torch.nan
        for window in (0, 3):
            found, faulty = kernels.column_statistic(x, 1, 3, window, mixing=table)
            assert faulty == 1
            assert torch.equal(found, torch.ones(300, dtype=dtype))
