"""The low-level passes against float64 numpy: what they compute, whatever the layout, the numbers, and the threads."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from varangian.core import kernels
from varangian.core.kernels.cpu import columns
from varangian.simulation import data
from varangian.simulation.sampling import Examples

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NATIVE = [torch.float32, torch.float64]
# Around the widths of blocks and tiles, and of their multiples of four rows.
WIDTHS = [1, 2, 3, 31, 127, 128, 129, 1000, 1023, 1024, 1025, 2047, 2049, 5000]
COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 51, 130]


@contextmanager
def threads(count: int) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def normal(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).to(dtype)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers, otherwise in memory."""
    n, d = x.shape
    padded = torch.full((2 * n + 1, d + 3), float("nan"), dtype=x.dtype)
    padded[1::2, 2:-1] = x
    strided = torch.full((n, 2 * d), float("nan"), dtype=x.dtype)
    strided[:, ::2] = x
    return {
        "contiguous": x.contiguous(),
        "transposed": x.T.contiguous().T,
        "part of a larger one": padded[1::2, 2:-1],
        "every other column": strided[:, ::2],
        "requires grad": x.clone().requires_grad_(),
    }


# -------------------------------------------------------------------------------------------------- distances


def distances(x: np.ndarray) -> np.ndarray:
    """Between the rows and the origin, in float64 (or wider), from differences."""
    points = np.concatenate([x, np.zeros_like(x[:1])])
    return np.stack([((points - p) ** 2).sum(1) for p in points])


@pytest.mark.parametrize("d", WIDTHS)
@by_dtype
def test_squared_distances(dtype: torch.dtype, d: int) -> None:
    for n in (1, 5, 8):
        x = normal(n, d, seed=n, dtype=dtype)
        found = kernels.host(kernels.squared_distances(x))
        assert found.shape == (n + 1, n + 1)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, distances(x.double().numpy()), rtol=1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("dtype", NATIVE, ids=str)
def test_squared_distances_whatever_n(dtype: torch.dtype, n: int) -> None:
    x = normal(n, 70, dtype=dtype)
    found = kernels.host(kernels.squared_distances(x))
    np.testing.assert_allclose(found, distances(x.double().numpy()), rtol=2e-6)
    assert (found == found.T).all()
    assert (np.diagonal(found) == 0).all()


@by_dtype
def test_extra_rows_stand_before_the_origin(dtype: torch.dtype) -> None:
    x, extra = normal(5, 1500, dtype=dtype), normal(2, 1500, seed=1, dtype=dtype)
    found = kernels.host(kernels.squared_distances(x, extra))
    assert found.shape == (8, 8)
    np.testing.assert_allclose(found, kernels.host(kernels.squared_distances(torch.cat([x, extra]))), rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from(NATIVE))
def test_a_distance_does_not_depend_on_where_its_rows_stand(n: int, d: int, seed: int, dtype: torch.dtype) -> None:
    """Bit for bit: or ties would be broken by position."""
    x, order = normal(n, d, seed, dtype), np.random.default_rng(seed).permutation(n)
    there = np.append(order, n)
    assert (
        kernels.host(kernels.squared_distances(x[torch.from_numpy(order)]))
        == kernels.host(kernels.squared_distances(x))[np.ix_(there, there)]
    ).all()


@pytest.mark.parametrize("layout", layouts(torch.zeros(2, 2)))
def test_squared_distances_whatever_the_layout(layout: str) -> None:
    x = normal(6, 300, dtype=torch.float32)
    given, expected = layouts(x)[layout], kernels.host(kernels.squared_distances(x))
    np.testing.assert_allclose(kernels.host(kernels.squared_distances(given)), expected, rtol=1e-6)
    both = kernels.host(kernels.squared_distances(torch.cat([x, x])))
    np.testing.assert_allclose(kernels.host(kernels.squared_distances(x, given)), both, rtol=1e-6)


def test_vectors_that_differ_by_a_millionth_of_their_size() -> None:
    """A Gram matrix of float32 would see nothing but noise here."""
    generator = np.random.default_rng(1)
    base = generator.normal(size=3000)
    base /= np.linalg.norm(base)
    shifts = generator.normal(size=(8, 3000))
    shifts *= 1e-6 / np.linalg.norm(shifts, axis=1, keepdims=True)
    x = torch.from_numpy(base + shifts)
    np.testing.assert_allclose(kernels.host(kernels.squared_distances(x)), distances(x.numpy()), rtol=1e-9)
    narrow = x.float()  # what float32 keeps of them is a fact; its distances must be exact
    np.testing.assert_allclose(
        kernels.host(kernels.squared_distances(narrow)), distances(narrow.double().numpy()), rtol=1e-5
    )


@pytest.mark.parametrize("size", [1e30, 1e38, 3e38, 1e-30, 1e-38, 1e-44], ids=str)
@pytest.mark.parametrize("all_rows", [False, True])
def test_rows_whose_squares_leave_the_range_of_float32(size: float, all_rows: bool) -> None:
    x = normal(6, 1100, dtype=torch.float64).clamp(-1, 1)
    x[0 if not all_rows else slice(None)] *= size
    x = x.float()
    np.testing.assert_allclose(kernels.host(kernels.squared_distances(x)), distances(x.double().numpy()), rtol=1e-5)


def test_denormals_beside_ordinary_rows() -> None:
    x = torch.zeros(4, 9)
    x[1], x[2], x[3, 4] = 1e-45, 1.0, -1e-45
    np.testing.assert_allclose(kernels.host(kernels.squared_distances(x)), distances(x.double().numpy()), rtol=1e-6)


def test_huge_rows_of_float64() -> None:
    x = normal(4, 50)
    x[1] *= 1e150
    np.testing.assert_allclose(kernels.host(kernels.squared_distances(x)), distances(x.numpy()), rtol=1e-12)


@by_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_rows_that_are_not_finite_touch_no_others(dtype: torch.dtype, value: float) -> None:
    x = normal(6, 1500, dtype=dtype)
    expected = kernels.host(kernels.squared_distances(x[[0, 2, 4, 5]]))
    x[1, 700] = value
    x[3] = value
    found = kernels.host(kernels.squared_distances(x))
    finite = [0, 2, 4, 5, 6]
    assert not np.isfinite(found[1, [0, 2, 3, 4, 5, 6]]).any()
    assert not np.isfinite(found[3, finite]).any()
    np.testing.assert_allclose(found[np.ix_(finite, finite)], expected, rtol=1e-12)


def test_infinity_beside_numbers_that_overflow() -> None:
    x = torch.full((3, 40), 1e38)
    x[1, 3] = float("inf")
    x[2] = -1e38
    found = kernels.host(kernels.squared_distances(x))
    assert np.isfinite(found[np.ix_([0, 2, 3], [0, 2, 3])]).all()
    assert found[0, 2] == pytest.approx(40 * (float(np.float32(1e38)) * 2) ** 2, rel=1e-6)
    assert not np.isfinite(found[1, [0, 2, 3]]).any()


@by_dtype
@pytest.mark.parametrize("shape", [(7,), (3, 5000), (2, 3, 129)])
def test_squared_norms(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = normal(int(np.prod(shape[:-1])), shape[-1], dtype=dtype).reshape(shape)
    found = kernels.squared_norms(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, (x.double() ** 2).sum(-1), rtol=1e-12, atol=0)
    wide = torch.full((2, 9), 3e38)
    torch.testing.assert_close(kernels.squared_norms(wide), 9 * wide[:, 0].double() ** 2)


@pytest.mark.parametrize("d", [1, 129, 5000])
@by_dtype
def test_squared_distances_to_a_point(dtype: torch.dtype, d: int) -> None:
    x, point = normal(7, d, dtype=dtype), normal(1, d, seed=1, dtype=dtype)[0]
    expected = ((x.double() - point.double()) ** 2).sum(1).numpy()
    found = kernels.host(kernels.squared_distances_to(x, point))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    both = kernels.host(kernels.compared(x, point))
    np.testing.assert_allclose(both[1], found, rtol=1e-14)
    wide, at = x.double().numpy(), point.double().numpy()
    np.testing.assert_allclose(both[::2], [(wide**2).sum(1), wide @ at], rtol=1e-12, atol=1e-12 * d)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 7, 70_001])
def test_squared_around(dtype: torch.dtype, d: int) -> None:
    x, extra = normal(6, d, 1).to(dtype), normal(2, d, 2).to(dtype)
    weights, scales = np.array([0.5, 0, -1, 0, 0, 0.25, 2, 0]), np.array([1, 0.5, 1, 3, 0, 1e-3])
    every = torch.cat([x, extra]).double().numpy()
    for scaling in (None, scales):
        rows = every[:6] if scaling is None else scaling[:, None] * every[:6]
        expected = [(rows**2).sum(1), ((rows - weights @ every) ** 2).sum(1)]
        np.testing.assert_allclose(
            kernels.host(kernels.squared_around(x, weights, extra, scaling)), expected, rtol=1e-12
        )
    one = kernels.host(kernels.squared_around(x, np.eye(6)[4]))
    assert one[1, 4] == 0
    np.testing.assert_allclose(one[1], kernels.host(kernels.squared_distances_to(x, x[4])), rtol=1e-12)


def test_scaled_rows_are_whole_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SCALE_WIDTH", 1000)
    for dtype in (torch.float32, torch.float64):
        x, extra = normal(5, 2500).to(dtype), normal(1, 2500, 1).to(dtype)
        weights = np.eye(6)[[3, 0, 5, 5]] * np.array([0.5, 1, 1, -2])[:, None]
        every = torch.cat([x, extra]).double()
        assert torch.equal(kernels.weighted_rows(x, weights, extra), (torch.from_numpy(weights) @ every).to(dtype))


@pytest.mark.parametrize("d", [1, 129, 40_000])
@by_dtype
def test_inner_products(dtype: torch.dtype, d: int) -> None:
    vectors = [normal(1, d, seed, dtype)[0] for seed in range(4)]
    wide = np.stack([v.double().numpy() for v in vectors])
    found = kernels.host(kernels.inner_products(vectors))
    np.testing.assert_allclose(found, wide @ wide.T, rtol=1e-11, atol=1e-11 * d)
    assert (found == found.T).all()
    strided = [v.expand(2, -1).T.contiguous().T[1] for v in vectors]
    np.testing.assert_allclose(kernels.host(kernels.inner_products(strided)), found, rtol=1e-12)


# ----------------------------------------------------------------------------------------------- weighted sums


@pytest.mark.parametrize("d", [1, 129, 5000])
@by_dtype
def test_weighted_rows(dtype: torch.dtype, d: int) -> None:
    x, extra = normal(9, d, dtype=dtype), normal(2, d, seed=1, dtype=dtype)
    generator = np.random.default_rng(2)
    wide = torch.cat([x, extra]).double().numpy()
    for weights in (generator.normal(size=9), generator.normal(size=11), np.full(9, 1 / 9), np.zeros(9)):
        found = kernels.weighted_rows(x, weights, extra)
        exact = weights @ wide[: weights.size]
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), torch.from_numpy(exact), rtol=torch.finfo(dtype).eps, atol=1e-12)
    table = generator.normal(size=(3, 11))
    found = kernels.weighted_rows(x, table, extra)
    torch.testing.assert_close(found, torch.stack([kernels.weighted_rows(x, row, extra) for row in table]))


@by_dtype
@pytest.mark.parametrize("used", range(1, 10))
def test_a_row_of_weight_zero_is_never_touched(dtype: torch.dtype, used: int) -> None:
    """0 * NaN is NaN; whatever the number of rows that are used, in groups of four or not."""
    x = normal(12, 131, dtype=dtype)
    chosen = np.random.default_rng(used).permutation(12)[:used]
    spoiled = torch.full_like(x, float("nan"))
    spoiled[1::2] = float("inf")
    spoiled[chosen] = x[chosen]
    weights = np.zeros(12)
    weights[chosen] = np.random.default_rng(used).uniform(0.1, 1, used)
    found = kernels.weighted_rows(spoiled, weights)
    assert found.isfinite().all()
    assert torch.equal(found, kernels.weighted_rows(x, weights))
    assert torch.equal(kernels.weighted_rows(spoiled, weights, spoiled[:1]), found)


@pytest.mark.parametrize(("m", "n", "share"), [(1, 3, 1.0), (3, 7, 0.7), (9, 5, 0.5), (51, 50, 0.9), (20, 30, 0.05)])
@pytest.mark.parametrize("dtype", NATIVE, ids=str)
def test_mixtures_are_sums_in_the_order_of_the_rows(dtype: torch.dtype, m: int, n: int, share: float) -> None:
    """Bit for bit, four at a time or not, and whatever stands in rows of weight zero."""
    random = np.random.default_rng(m)
    x, extra = normal(n, 300, dtype=dtype), normal(2, 300, seed=1, dtype=dtype)
    for row in x[::3]:
        row[random.integers(300)] = random.choice([np.nan, np.inf, 1e30])
    x[1] = torch.nan
    table = np.where(random.random((m, n + 2)) < share, random.normal(size=(m, n + 2)), 0)
    table[m // 2 :, :n:3] = 0
    table[:, 1] = 0
    table[0] = np.eye(n + 2)[1]
    wide = torch.cat([x, extra]).double().numpy()
    expected = np.zeros((m, 300))
    with np.errstate(invalid="ignore"):
        for i, j in zip(*np.nonzero(table), strict=True):
            expected[i] += table[i, j] * wide[j]
    expected = torch.from_numpy(expected).to(dtype).numpy()
    assert m == 1 or np.isfinite(expected[m // 2 :]).all()
    np.testing.assert_array_equal(kernels.weighted_rows(x, table, extra).numpy(), expected)
    narrow = np.ascontiguousarray(table[:, :n])
    found = kernels.weighted_panel(x, narrow, None, start=100, stop=300).to(dtype)
    assert torch.equal(found.nan_to_num(0.5), kernels.weighted_rows(x, narrow)[:, 100:].nan_to_num(0.5))


def test_a_single_row_is_copied_bit_for_bit() -> None:
    x = torch.tensor([[1e-45, 3e38], [1.0, 2.0]])
    found = kernels.weighted_rows(x, np.array([1.0, 0.0]))
    assert torch.equal(found, x[0])
    assert found.data_ptr() != x.data_ptr()
    assert torch.equal(kernels.weighted_rows(x, np.array([0.0, 0.0, 1.0]), x[1:]), x[1])


def test_the_mean_of_huge_numbers_does_not_overflow() -> None:
    assert torch.equal(kernels.weighted_rows(torch.full((4, 3), 3e38), np.full(4, 0.25)), torch.full((3,), 3e38))


@pytest.mark.parametrize("layout", layouts(torch.zeros(2, 2)))
def test_weighted_rows_whatever_the_layout(layout: str) -> None:
    x, weights = normal(6, 300, dtype=torch.float32), np.arange(6.0)
    assert torch.equal(kernels.weighted_rows(layouts(x)[layout], weights), kernels.weighted_rows(x, weights))


@by_dtype
@pytest.mark.parametrize(
    ("kind", "single", "vector"),
    [(kind, single, False) for kind in ("one scale", "one a row") for single in (False, True)]
    + [("one scale", True, True)],  # a vector has no rows
)
def test_blend(dtype: torch.dtype, kind: str, single: bool, vector: bool) -> None:
    shape = (5000,) if vector else (4, 5000)
    x = normal(4, 5000, dtype=dtype)[0 if vector else slice(None)]
    y = normal(4, 5000, seed=1, dtype=dtype)[0 if single or vector else slice(None)]
    scale = torch.tensor([0.5, 2.0, -1.0, 0.0], dtype=torch.float64) if kind == "one a row" else 0.75
    factor = scale.unsqueeze(1) if isinstance(scale, Tensor) else scale
    exact = factor * x.double() - 0.9 * y.double()
    x_kept, y_kept = x.clone(), y.clone()
    found = kernels.blend(scale, x, -0.9, y)
    assert (found.shape, found.dtype) == (shape, dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=4 * eps, atol=8 * eps)
    assert torch.equal(x, x_kept)
    assert torch.equal(y, y_kept)
    for name in ("x", "y", "neither"):
        a, b = x.clone(), y.clone()
        out = {"x": a, "y": b, "neither": torch.empty_like(x)}[name]
        if out.shape == shape:
            assert kernels.blend(scale, a, -0.9, b, out=out) is out
            assert torch.equal(out, found)


# ----------------------------------------------------------------------------------------------------- columns


def statistic(x: np.ndarray, low: int, high: int, window: int) -> np.ndarray:
    """Column by column, in float64: NaN last, then the mean of ranks, then that of the values closest to it."""
    out = np.empty(x.shape[1])
    for j, column in enumerate(x.T.astype(np.float64)):
        ordered = np.sort(column)
        with np.errstate(invalid="ignore"):
            out[j] = ordered[low:high].mean()
            if window:
                away = np.abs(ordered - out[j]).round(12)  # two values around their own mean are equally far
                out[j] = ordered[np.lexsort((ordered, away))[:window]].mean()
    return out


def settings_for(n: int) -> list[tuple[int, int, int]]:
    """Median, lower and upper, trimmed means, single ranks, and windows around them."""
    ranks = {
        ((n - 1) // 2, n // 2 + 1),
        ((n - 1) // 2, (n - 1) // 2 + 1),
        (0, n),
        (0, 1),
        (n - 1, n),
        (n // 4, n - n // 4),
    }
    windows = {0, 1, max(1, n // 3), max(1, n - n // 3), n}
    return [(low, high, window) for low, high in sorted(ranks) for window in sorted(windows)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 16, 17, 25, 51])
@pytest.mark.parametrize("dtype", NATIVE, ids=str)
def test_column_statistic(dtype: torch.dtype, n: int) -> None:
    x = normal(n, 133, seed=n, dtype=dtype)
    for low, high, window in settings_for(n):
        found, bad = kernels.column_statistic(x, low, high, window)
        expected = statistic(x.numpy(), low, high, window)
        assert bad == 0
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=str((low, high, window)))


@pytest.mark.parametrize("n", [101, 128, 200])
@pytest.mark.parametrize("d", [1, 127, 257])
def test_column_statistic_of_many(n: int, d: int) -> None:
    x = normal(n, d, seed=n)
    for low, high, window in [((n - 1) // 2, n // 2 + 1, 0), (n // 4, n - n // 4, 0), (n // 4, n - n // 4, n - n // 4)]:
        found, _ = kernels.column_statistic(x, low, high, window)
        np.testing.assert_allclose(found, statistic(x.numpy(), low, high, window), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("d", WIDTHS)
def test_column_statistic_whatever_d(d: int) -> None:
    x = normal(5, d, dtype=torch.float32)
    for low, high, window in ((2, 3, 0), (1, 4, 0), (2, 3, 3)):
        found, _ = kernels.column_statistic(x, low, high, window)
        np.testing.assert_allclose(found, statistic(x.numpy(), low, high, window), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 11, 27, 65])
@pytest.mark.parametrize("dtype", NATIVE, ids=str)
def test_sorting_in_registers_gives_the_same_bits(dtype: torch.dtype, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first block on that holds a NaN or an infinity it gives way to the plain way."""
    x = normal(n, 1000, seed=n, dtype=dtype) * 10
    x[:, :300] = x[:, :300].round()  # ties, zeros of both signs
    spoiled = x.clone()
    spoiled[0, 500], spoiled[n // 2, 501] = float("nan"), float("-inf")
    mixing = np.random.default_rng(n).random((n, n)) * (np.random.default_rng(n + 1).random((n, n)) < 0.3) + np.eye(n)
    half = (n - 1) // 2
    ranks = [(half, half + 1, 0), (half, n // 2 + 1, n - half), (n // 4, n - n // 4, 1), (0, n, n // 3)]
    tried = list(product(ranks, (None, mixing, np.eye(n)[::-1])))
    if n == 27:  # half of them in each type
        tried = tried[dtype == torch.float64 :: 2]
    elif n == 65:  # which no registers hold, and takes seconds to compile: a window of most rows is in test_columns.py
        tried = [(ranks[0], None), (ranks[2], mixing)]
    for (low, high, window), table in tried:
        for source in (x, spoiled):
            plain, wrong = kernels.column_statistic(source, low, high, window, mixing=table)
            with monkeypatch.context() as patch:
                patch.setattr(kernels.cpu.columns, "WORTH", 0)
                fast, bad = kernels.column_statistic(source, low, high, window, mixing=table)
            assert torch.equal(fast.nan_to_num(7.0), plain.nan_to_num(7.0))
            assert bad == wrong


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 12), st.integers(0, 2**31), st.data())
def test_ties_keep_the_lower_value(n: int, seed: int, draw: st.DataObject) -> None:
    """Small integers: columns full of equal values and of values equally far from the centre."""
    x = np.random.default_rng(seed).integers(-2, 3, size=(n, 40)).astype(np.float64)
    low = draw.draw(st.integers(0, n - 1))
    high = draw.draw(st.integers(low + 1, n))
    window = draw.draw(st.integers(0, n))
    # The centre as exact fractions: whoever rounds 1/3 may break a tie that is not one.
    if (high - low) & (high - low - 1):
        high = low + 1
    expected = statistic(x, low, high, window)
    np.testing.assert_allclose(
        kernels.column_statistic(torch.from_numpy(x), low, high, window)[0], expected, atol=1e-12
    )
    np.testing.assert_allclose(
        kernels.column_statistic(torch.from_numpy(x).float(), low, high, window)[0], expected, atol=1e-6
    )


def test_ranks_are_exact() -> None:
    """A single rank is one of the values, bit for bit: -0.0, denormals and the largest numbers included."""
    x = torch.tensor([[-0.0, 1e-45, -3.4e38], [1.0, -1e-45, 3.4e38], [-1.0, 2e-45, 0.1]])
    found, _ = kernels.column_statistic(x, 1, 2)
    assert found.tolist() == x.sort(0).values[1].tolist()
    assert np.signbit(found.numpy()[0])
    huge, _ = kernels.column_statistic(torch.full((4, 3), 3.4e38), 1, 3)
    assert torch.equal(huge, torch.full((3,), 3.4e38))


def test_windows_of_numbers_whose_differences_overflow() -> None:
    x = torch.tensor([[-3e38], [-2e38], [1e38], [3e38], [3.2e38]])
    for dtype in NATIVE:
        scale = 5e269 if dtype == torch.float64 else 1.0
        found, _ = kernels.column_statistic(x.to(dtype) * scale, 3, 4, 3)
        assert found.item() / scale == pytest.approx((1e38 + 3e38 + 3.2e38) / 3, rel=1e-6)


@by_dtype
@pytest.mark.parametrize("bad", [1, 2, 3])
def test_rows_that_are_not_finite_are_counted_and_sorted_last(dtype: torch.dtype, bad: int) -> None:
    values = [float("nan"), float("inf"), -float("inf")]
    for spoil in values:
        x = normal(9, 300, dtype=dtype)
        expected = x.clone()
        for i in range(bad):
            x[2 * i, i::7] = spoil
            expected[2 * i, i::7] = spoil if spoil == spoil else float("inf")  # NaN stands above all numbers
        found, count = kernels.column_statistic(x, 4, 5)
        assert count == bad
        assert torch.equal(found, expected.sort(0).values[4])
        assert found.isfinite().all()
    # A NaN with its sign bit set sorts above all numbers as well.
    negative = torch.tensor([[-1.0], [float("nan")], [2.0]]).copysign(torch.tensor([[-1.0], [-1.0], [1.0]]))
    assert kernels.column_statistic(negative, 0, 1)[0].item() == -1.0


def test_all_rows_not_finite() -> None:
    assert kernels.column_statistic(torch.full((3, 4), float("nan")), 1, 2)[1] == 3
    assert kernels.column_statistic(torch.full((3, 4), float("inf")), 0, 3, 2)[1] == 3


@pytest.mark.parametrize("window", [0, 3])
@by_dtype
def test_a_mixing_is_applied_before(dtype: torch.dtype, window: int) -> None:
    x = normal(8, 300, dtype=dtype)
    generator = np.random.default_rng(1)
    table = generator.uniform(size=(5, 8)) * (generator.uniform(size=(5, 8)) < 0.5)
    table[0] = np.eye(8)[3]  # one row as it came, one half of one row, one of nothing
    table[1] = np.eye(8)[2] / 2
    table[2] = 0
    mixed = table @ x.double().numpy()
    found, bad = kernels.column_statistic(x, 2, 3, window, mixing=table)
    eps = torch.finfo(dtype).eps
    assert bad == 0
    np.testing.assert_allclose(found.double(), statistic(mixed, 2, 3, window), rtol=4 * eps, atol=4 * eps)


def test_a_mixing_does_not_touch_rows_of_weight_zero() -> None:
    x = normal(5, 200, dtype=torch.float32)
    x[4] = float("nan")
    table = np.array([[0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5, 0]])
    found, bad = kernels.column_statistic(x, 1, 2, 0, mixing=table)
    assert bad == 0
    np.testing.assert_allclose(found, statistic(table[:, :4] @ x[:4].double().numpy(), 1, 2, 0), rtol=1e-6)
    spoiled = table.copy()
    spoiled[2, 4] = 0.1
    assert kernels.column_statistic(x, 1, 2, 0, mixing=spoiled)[1] == 1  # of the mixed rows


@pytest.mark.parametrize("layout", layouts(torch.zeros(2, 2)))
@pytest.mark.parametrize("window", [0, 4])
def test_column_statistic_whatever_the_layout(layout: str, window: int) -> None:
    x = normal(6, 300, dtype=torch.float32)
    expected, _ = kernels.column_statistic(x, 2, 4, window)
    given = layouts(x)[layout]
    kept = given.detach().clone()
    found, _ = kernels.column_statistic(given, 2, 4, window)
    assert torch.equal(found, expected)
    assert torch.equal(given, kept)


def test_half_types_are_upcast_exactly_panel_by_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.runtime, "HALF_WIDTH", 128)
    x = normal(6, 300, dtype=torch.bfloat16)
    x[1, 290] = float("nan")
    wide = x.float()
    found, bad = kernels.column_statistic(x, 2, 4, 3)
    assert (bad, found.dtype) == (1, torch.bfloat16)
    assert torch.equal(found, kernels.column_statistic(wide, 2, 4, 3)[0].bfloat16())
    good = [0, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(
        kernels.host(kernels.squared_distances(x))[np.ix_(good, good)],
        kernels.host(kernels.squared_distances(wide))[np.ix_(good, good)],
        rtol=1e-5,
    )
    weights = np.array([0.2, 0, 0.2, 0.2, 0.2, 0.2])
    assert torch.equal(kernels.weighted_rows(x, weights), kernels.weighted_rows(wide, weights).bfloat16())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 64), st.data())
@example(200, None)
def test_the_network_sorts_the_ranks_that_are_asked_for(n: int, draw: st.DataObject | None) -> None:
    low = 0 if draw is None else draw.draw(st.integers(0, n - 1))
    high = n if draw is None else draw.draw(st.integers(low + 1, n))
    comparators = kernels.network(n, low, high)
    assert all(0 <= a < b < n for a, b in comparators)
    # 0-1 principle: a network that sorts zeros and ones sorts everything. All thresholds, many shuffles.
    generator = np.random.default_rng(n)
    x = (np.arange(n + 1)[:, None] > np.arange(n)).astype(int)
    x = generator.permuted(np.repeat(x, 10, axis=0), axis=1).T
    ordered = np.sort(x, axis=0)
    for a, b in comparators:
        x[a], x[b] = np.minimum(x[a], x[b]), np.maximum(x[a], x[b])
    assert (x[low:high] == ordered[low:high]).all()


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("d", [1, 129, 3000])
@by_dtype
def test_mean_and_std(dtype: torch.dtype, d: int, ddof: int) -> None:
    x = normal(7, d, dtype=dtype) + 100
    mean, std = kernels.mean_and_std(x, ddof)
    wide, eps = x.double().numpy(), torch.finfo(dtype).eps
    assert mean.dtype == std.dtype == dtype
    np.testing.assert_allclose(mean.double(), wide.mean(0), rtol=2 * eps)
    np.testing.assert_allclose(
        std.double(), wide.std(0, ddof=ddof), rtol=2 * eps + 1e-5 * (dtype.itemsize == 2), atol=1e-12
    )


def test_mean_and_std_of_one_row_and_of_what_is_not_finite() -> None:
    mean, std = kernels.mean_and_std(torch.ones(1, 3))
    assert torch.equal(mean, torch.ones(3))
    assert std.isnan().all()
    assert torch.equal(kernels.mean_and_std(torch.ones(1, 3), ddof=0)[1], torch.zeros(3))
    x = torch.ones(3, 200)
    x[1, 5], x[2, 190] = float("nan"), float("inf")
    mean, std = kernels.mean_and_std(x)
    assert (~mean.isfinite()).nonzero().flatten().tolist() == [5, 190]
    assert std.isnan().nonzero().flatten().tolist() == [5, 190]


@pytest.mark.parametrize("layout", layouts(torch.zeros(2, 2)))
def test_mean_and_std_whatever_the_layout(layout: str) -> None:
    x = normal(6, 300, dtype=torch.float32)
    for found, expected in zip(kernels.mean_and_std(layouts(x)[layout]), kernels.mean_and_std(x), strict=True):
        assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_gathered_images_are_prepared_images(normalised: bool, flipped: bool) -> None:
    generator = np.random.default_rng(1)
    raw = torch.from_numpy(generator.integers(0, 256, size=(20, 3, 5, 7), dtype=np.uint8))
    split = data.Split(raw, torch.arange(20) % 4)
    moments = ((0.2, 0.4, 0.6), (0.1, 0.2, 0.3)) if normalised else (None, None)
    dataset = data.Dataset("made up", split, split, 4, *moments)
    index = generator.integers(0, 20, 33)
    flip = generator.integers(0, 2, 33).astype(bool) if flipped else None
    expected = data.prepare(dataset, raw[index], None if flip is None else torch.from_numpy(flip))
    inputs, labels = Examples(dataset, split, "cpu", torch.float32)(index, flip)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, expected, rtol=1e-6, atol=2e-6)
    assert torch.equal(labels, split.labels[index])


# ----------------------------------------------------------------------------------------------------- threads


def passes() -> dict[str, Callable[[], list[np.ndarray]]]:
    """Every pass, over enough numbers that it is shared out."""
    x, extra = normal(9, 20_000, dtype=torch.float32), normal(1, 20_000, seed=1, dtype=torch.float32)
    weights = np.linspace(-1, 1, 9)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 1, 28, 28), dtype=np.uint8))
    index, flip = np.arange(100) % 50, np.arange(100) % 3 == 0
    return {
        "distances": lambda: [kernels.host(kernels.squared_distances(x, extra))],
        "distances of half": lambda: [kernels.host(kernels.squared_distances(x.half()))],
        "distances to": lambda: [kernels.host(kernels.squared_distances_to(x, extra[0]))],
        "compared": lambda: [kernels.host(kernels.compared(x, extra[0]))],
        "norms": lambda: [kernels.squared_norms(x).numpy()],
        "products": lambda: [kernels.host(kernels.inner_products(list(x)))],
        "weighted": lambda: [kernels.weighted_rows(x, weights).numpy()],
        "blend": lambda: [kernels.blend(0.5, x, 2.0, extra[0]).numpy()],
        "columns": lambda: [kernels.column_statistic(x, 2, 7, 5)[0].numpy()],
        "moments": lambda: [m.numpy() for m in kernels.mean_and_std(x)],
        "images": lambda: [
            kernels.gather_images(images, index, flip=flip, scale=np.ones(1), shift=np.zeros(1)).numpy()
        ],
    }


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", passes())
def test_no_bit_depends_on_the_number_of_threads(name: str) -> None:
    run = passes()[name]
    with threads(1):
        expected = run()
    for count in (2, 3, 5):
        with threads(count):
            assert equal(run(), expected)
            with kernels.exclusive_threads():
                assert equal(run(), expected)


def test_several_python_threads_at_once() -> None:
    runs = passes()
    expected = {name: run() for name, run in runs.items()}
    wrong: list[str] = []

    def work(shift: int) -> None:
        torch.set_num_threads(2)
        names = list(runs)
        wrong.extend(n for n in names[shift:] + names[:shift] if not equal(runs[n](), expected[n]))

    workers = [threading.Thread(target=work, args=(3 * k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


def _in_child(pipe: Connection, runs: list[Callable[[], list[np.ndarray]]]) -> None:
    torch.set_num_threads(2)
    pipe.send([run() for run in runs])
    pipe.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of a process with threads: what is tested here
def test_after_a_fork() -> None:
    """The child has none of its parent's helper threads; it must make its own, not wait for theirs."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    # Upcasting half types is torch's, whose own threads do not survive a fork.
    runs = [run for name, run in passes().items() if "half" not in name]
    with threads(2):
        expected = [run() for run in runs]  # the helper threads exist now
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=_in_child, args=(theirs, runs))
    child.start()
    theirs.close()
    try:
        assert mine.poll(60), "the child hangs"
        found = mine.recv()
        assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        child.join(10)
        if child.is_alive():
            child.kill()
            child.join()
    assert child.exitcode == 0


def test_an_error_in_a_shared_task_is_raised() -> None:
    def fail(item: int) -> None:
        if item == 3:
            raise RuntimeError("item 3")

    for count in (1, 2):
        with threads(count), pytest.raises(RuntimeError, match="item 3"):
            kernels.in_threads(fail, 8, 10**9)


def test_share_runs_every_task_once() -> None:
    for count in (1, 2, 4):
        done: list[int] = []
        with threads(count):
            kernels.in_threads(done.append, 100, 10**9)
        assert sorted(done) == list(range(100))


def test_exclusive_threads_are_given_back() -> None:
    with threads(2):
        assert kernels.own_threads() == 1
        with kernels.exclusive_threads():
            assert (torch.get_num_threads(), kernels.threads(), kernels.own_threads()) == (1, 2, 2)
            with kernels.torch_threads():
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 1
            with kernels.exclusive_threads():  # nested: nothing is lost
                assert kernels.own_threads() == 2
            assert kernels.own_threads() == 2
        assert (torch.get_num_threads(), kernels.own_threads()) == (2, 1)
        with pytest.raises(RuntimeError, match="inside"), kernels.exclusive_threads():
            raise RuntimeError("inside")
        assert (torch.get_num_threads(), kernels.own_threads()) == (2, 1)
