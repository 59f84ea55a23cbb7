"""The kernels for cards against those for main memory, on numbers made to break them: to the bit where it is promised.

Without a card Triton's interpreter runs them (``conftest.py`` asks for it); on a machine with one they run on the card.
What the interpreter does not see, compiling does: ``compiling.py``, for an H100, without one. The whole table of the
contract is gone through in ``test_plain.py``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from pretended import PretendedCard
from varangian.core import kernels
from varangian.core.kernels import cpu, definitions, plain

if not (sys.platform == "linux" and platform.machine() == "x86_64"):
    pytest.skip("Triton is there for Linux on x86_64", allow_module_level=True)
pytest.importorskip("triton", "3.5", reason="Triton 3.5 or later is not installed: make setup")
from varangian.core.kernels import cuda
from varangian.core.kernels.cuda import columns, distances, launching, samples, workers

# The interpreter is NumPy, which warns of what a card computes in silence: inf - inf, 1 / 0.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")

D = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = D == "cpu"
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def on(x: Tensor) -> Tensor:
    """Where kernels run. The layout stays."""
    return x if D == "cpu" else x.to(D)


def bits_of(x: Tensor) -> Tensor:
    """All NaN are one."""
    x = x.detach().cpu().contiguous()
    return torch.where(x.isnan(), torch.full_like(x, np.nan), x).view(BITS[x.element_size()])


def same(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(bits_of(found + 0.0).numpy(), bits_of(wanted + 0.0).numpy())  # -0 is 0


def near(found: Tensor, wanted: Tensor, rtol: float, atol: float = 0.0) -> None:
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found.cpu(), wanted, rtol=rtol, atol=atol, equal_nan=True)


def rounded(statistic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What main memory makes of x. Of bfloat16 the interpreter cuts off what there is no room for, and does not round
    (of its smallest numbers, in a way of its own)."""
    if x.dtype != torch.bfloat16 or not INTERPRETED:
        return statistic(x)
    wide = statistic(x.float())
    cut = (wide.view(torch.int32) >> 16 << 16).view(torch.float32)
    return torch.where(wide.isnan(), wide, cut).bfloat16()


def hostile(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rows with a common part; ties, equal and null rows, signed zeros, huge and tiny numbers, and at the end some rows
    of NaN and infinities."""
    generator = torch.Generator().manual_seed(1000 * seed + n)
    x = (torch.randn(n, d, generator=generator) + torch.randn(d, generator=generator)).to(dtype)
    x[:, 3] = 1.0
    x[: n // 2, 5] = -0.0
    x[n // 2 :, 5] = 0.0
    x[:, 7] = torch.arange(n) % 3
    greatest = torch.finfo(dtype).max
    if n >= 3:
        x[:, 9], x[1, 9], x[2, 9] = 0.0, greatest, -greatest / 2
        x[:, 10] *= torch.finfo(dtype).tiny * (1 if dtype != torch.bfloat16 else 2**20)  # see rounded()
    if n >= 5:
        x[n // 2] = x[0]
        x[-1], x[-2], x[0, 13] = float("nan"), float("inf"), -float("nan")
        x[-2, 1::2] = float("-inf")
        x[1, 14] = float("inf")
    if n >= 11:
        x[3], x[4] = 0.0, x[0]
    return x


@contextmanager
def launches() -> Iterator[list[tuple[str, int, dict[str, Any]]]]:
    """What is launched meanwhile."""
    seen: list[tuple[str, int, dict[str, Any]]] = []
    run = launching.run

    def note(kernel: Any, grid: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append((kernel.__name__, grid, options))
        run(kernel, grid, arguments, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "run", note)
        yield seen


# ------------------------------------------------------------------------------------------------------------- ranks


def settings(n: int) -> list[tuple[int, int, int]]:
    """Median, both middles, the mean of all, trimmed mean, Phocas, MeaMed, and windows of a few."""
    f = (n - 1) // 2
    found = [(n // 2, n // 2 + 1, 0), (0, n, 0)] + [(n // 2 - 1, n // 2 + 1, 0)] * (n > 1)
    if n >= 5:
        found += [(f, n - f, 0), (1, n - 1, n - 1), (n // 2, n // 2 + 1, n - f), (n // 2, n // 2 + 1, 2)]
        found += [(1, n - 2, max(1, n // 3)), (f, n - f, 1)]
    return found


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 11, 25, columns.SORTED_ROWS])
def test_statistics_are_those_of_main_memory(n: int, dtype: torch.dtype) -> None:
    if n > 11 and dtype != torch.float32:
        pytest.skip("the same code, slow to interpret")
    x = hostile(n, 140, dtype)
    for case in settings(n) if n <= 11 else settings(n)[::3]:
        with launches() as seen:
            found, faulty = cuda.column_statistic(on(x), *case)
        assert len(seen) == 1
        same(found, rounded(lambda x, case=case: cpu.column_statistic(x, *case)[0], x))
        assert faulty.ndim == 0
        assert faulty.dtype == torch.int64
        assert int(faulty) == int(cpu.column_statistic(x, *case)[1]) == int((~x.isfinite().all(1)).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [16, 17, 31, 32, 33, 50, 51, 63, 64])
def test_half_types_of_many_rows_with_nan_of_both_signs(n: int, dtype: torch.dtype) -> None:
    """The median, and the values around the trimmed mean."""
    f, x = n // 4, hostile(n, 140, dtype)
    x[-f:-2] = torch.tensor(float("nan")).copysign(torch.tensor(-1.0))
    for case in ((n // 2, n // 2 + 1, 0), (f, n - f, n - f)):
        found, faulty = cuda.column_statistic(on(x), *case)
        same(found, rounded(lambda x, case=case: cpu.column_statistic(x, *case)[0], x))
        assert int(faulty) == int((~x.isfinite()).any(1).sum())


def test_more_rows_than_registers_hold_are_sorted_by_torch() -> None:
    x = hostile(columns.SORTED_ROWS + 1, 40)
    with launches() as seen:
        found, faulty = cuda.column_statistic(on(x), 20, 45, 45)
    assert not seen
    wanted, bad = cpu.column_statistic(x, 20, 45, 45)
    near(found, wanted, 1e-6)
    assert int(faulty) == int(bad)


KINDS = ("few", "all", "any", "chosen")


def tables(m: int, n: int, spoiled: np.ndarray) -> dict[str, np.ndarray]:
    """Mixings [m, n] without weight on spoiled rows: of few, of all, of any weights, and of rows as they are."""
    random = np.random.default_rng(n)
    good = np.flatnonzero(~spoiled)
    few, several, any_, chosen = np.zeros((m, n)), np.zeros((m, n)), np.zeros((m, n)), np.zeros((m, n))
    for i in range(m):
        few[i, random.choice(good, max(1, good.size // 3), replace=False)] = 1 / max(1, good.size // 3)
        several[i, good] = 1 / good.size
        any_[i, good] = random.standard_normal(good.size)
        chosen[i, random.choice(good)] = 1
    return dict(zip(KINDS, (few, several, any_, chosen), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("panel", [columns.PANEL, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_behind_a_mixing(kind: str, dtype: torch.dtype, panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind in each type half of the settings; in all types together all of them."""
    monkeypatch.setattr(columns, "PANEL", panel)
    first = (KINDS.index(kind) + (dtype == torch.float64)) % 2
    for n, m in ((5, 3), (11, 11)) if panel > 1 else ((11, 11),):
        x = hostile(n, 140 if panel > 1 else 300, dtype)
        x[:, 9] = 1.0  # sums of the greatest numbers overflow here or there
        spoiled = ~x.isfinite().all(1).numpy()
        table = tables(m, n, spoiled)[kind]
        for case in settings(m)[first:6:2] if panel > 1 else settings(m)[3 + first : 4 + first]:
            found, faulty = cuda.column_statistic(on(x), *case, mixing=table)
            wanted, bad = cpu.column_statistic(x, *case, mixing=table)
            same(found, wanted)
            assert int(faulty) == int(bad) == 0
    table[0, spoiled] = 1e-3  # type: ignore[index]
    assert int(cuda.column_statistic(on(x), *case, mixing=table)[1]) == 1


def test_ties_are_exact() -> None:
    """On small integers, against rational arithmetic: of two values equally close to the mean the lower is taken."""
    random = np.random.default_rng(0)
    for n, low, high, window in ((11, 2, 9, 9), (11, 5, 6, 7), (15, 3, 12, 12), (9, 1, 8, 3), (12, 5, 7, 4)):
        values = np.sort(random.integers(-6, 7, (n, 130)), axis=0)
        wanted = []
        for column in values.T.tolist():
            center, start = Fraction(sum(column[low:high]), high - low), 0
            for s in range(n - window):
                start += Fraction(column[s] + column[s + window], 2) < center
            wanted.append(np.float32(sum(column[start : start + window]) / window))
        x = torch.from_numpy(random.permuted(values, axis=0))
        for dtype in (torch.float32, torch.float64):
            found, _ = cuda.column_statistic(on(x.to(dtype)), low, high, window)
            assert found.float().tolist() == [float(w) for w in wanted]
        whole, _ = cuda.column_statistic(on(x.float()), low, high, window, mixing=np.full((n, n), 1 / 3))
        same(whole, (x.double().sum(0) / 3).float())


# ------------------------------------------------------------------------------------------------- moments, mixtures


@pytest.mark.parametrize("dtype", FLOATS)
def test_moments_are_those_of_main_memory(dtype: torch.dtype) -> None:
    for n in (1, 2, 4, 5, 9, 27):
        x = hostile(n, 300, dtype)
        if dtype == torch.float64:
            x[: n - 2, 20:40] *= 1e-200
            x[: n - 2, 40:60] *= 1e200
            x[: n - 2, 60:80] *= 1e307
        for ddof in (0, 1) if n > 1 else (1,):
            for which in (0, 1):
                found = cuda.mean_and_std(on(x), ddof)[which]
                same(found, rounded(lambda x, w=which, ddof=ddof: cpu.mean_and_std(x, ddof)[w], x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("e", [0, 1, 2])
def test_weighted_rows_have_the_bits_of_main_memory(e: int, dtype: torch.dtype) -> None:
    """In one program and in two; of kinds of tables all, and one or two rows more with half of them."""
    for n, d in ((1, 120), (5, 120), (11, 140)):
        x, extra = hostile(n, d, dtype), hostile(e, d, dtype, seed=1) if e else None
        x[:, 9] = 1.0
        points = x if extra is None else torch.cat([x, extra])
        spoiled = ~points.isfinite().all(1).numpy()
        for m in (1, 16) if n == 5 else (17,):
            for name, table in [*tables(m, n + e, spoiled).items()][max(0, e - 1) :: 2 if e else 1]:
                sent = None if extra is None else on(extra)
                found = cuda.weighted_rows(on(x), table, sent)
                same(found, cpu.weighted_rows(x, table, extra))
                assert found.isfinite().all(), name
                same(cuda.weighted_rows(on(x), table[0], sent), cpu.weighted_rows(x, table[0], extra))
                found = cuda.weighted_panel(on(x), table, sent, start=7, stop=109)
                same(found, cpu.weighted_panel(x, table, extra, start=7, stop=109))
        same(cuda.weighted_rows(on(x), np.zeros(n + e), sent), torch.zeros(d, dtype=dtype))
        same(cuda.weighted_rows(on(x), np.zeros((2, n + e)), sent), torch.zeros(2, d, dtype=dtype))
        for last in range(n + e) if e else ():
            same(cuda.weighted_rows(on(x), np.eye(n + e)[last], sent), points[last])
            same(cuda.weighted_rows(on(x), 3 * np.eye(n + e)[last], sent), 3 * points[last])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weighted_rows_of_half_types(dtype: torch.dtype) -> None:
    x = hostile(11, 300, dtype)
    x[:, 9] = 1.0
    for table in tables(3, 11, ~x.isfinite().all(1).numpy()).values():
        same(cuda.weighted_rows(on(x), table[0]), rounded(lambda x, w=table[0]: cpu.weighted_rows(x, w), x))
        near(cuda.weighted_rows(on(x), table), cpu.weighted_rows(x, table), torch.finfo(dtype).eps)
        same(
            cuda.weighted_panel(on(x), table, None, start=0, stop=300),
            cpu.weighted_panel(x.float(), table, None, start=0, stop=300),
        )


def test_the_mean_of_one_four_and_seven_is_four() -> None:
    x = torch.tensor([[1.0], [4.0], [7.0]])
    assert cuda.weighted_rows(on(x), np.full(3, 1 / 3)).tolist() == [4.0]
    assert cuda.weighted_rows(on(x), np.full((2, 3), 1 / 3)).tolist() == [[4.0], [4.0]]
    same(cuda.zeros_like_row(on(x.half())), torch.zeros(1).half())


# ---------------------------------------------------------------------------------------------------------- distances


def exact_distances(x: Tensor, extra: Tensor | None = None) -> Tensor:
    points = torch.cat([x, *([] if extra is None else [extra]), x.new_zeros(1, x.shape[1])]).double()
    return (points[:, None] - points[None]).square().sum(-1)


# Points that are alone and in groups, odd and even numbers of these; columns on both sides of what is loaded, and of
# a span.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "e", "d"),
    [
        (1, 0, 1),
        (3, 1, 15),
        (11, 0, 2048),
        (10, 1, 2049),
        (12, 0, 127),
        (11, 1, 129),
        (14, 0, 2049),
        (29, 3, 16),
        (50, 1, 3),
    ],
)
def test_distances_are_right_to_a_millionth(n: int, e: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d, generator=generator) + 30 * torch.randn(d, generator=generator)
    extra = torch.randn(e, d, generator=generator) if e else None
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14), (torch.float16, 1e-6)):
        a, b = x.to(dtype), None if extra is None else extra.to(dtype)
        found = cuda.squared_distances(on(a), None if b is None else on(b))
        near(found, exact_distances(a, b), tolerance)
        assert found.equal(found.T)
        assert not found.diagonal().any()
        if n > 16:
            break


def test_roundings_that_all_go_one_way_stay_within_a_millionth() -> None:
    values = torch.linspace(1.0, 2.0, 24)[1:]
    x = values.unsqueeze(1).expand(-1, 2048)
    near(cuda.squared_distances(on(x)), exact_distances(x), 1e-6)


@pytest.mark.slow
def test_parts_of_several_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 9000, generator=torch.Generator().manual_seed(0))
    x[1] *= 1e30
    whole = cuda.squared_distances(on(x))
    near(whole, exact_distances(x), 1e-6)
    for limit in (1, 40):  # parts at a time: those of one span, of two
        monkeypatch.setattr(distances, "SUMMED", limit)
        near(cuda.squared_distances(on(x)), exact_distances(x), 1e-6)
    monkeypatch.setattr(distances, "AGAIN", 1)  # warp, which takes one span after the other
    near(cuda.squared_distances(on(x)), exact_distances(x), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_of_what_overflows_vanishes_or_is_none(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(18, 100, generator=generator, dtype=dtype)
    plain = cuda.squared_distances(on(x)).cpu()
    x[1] *= 1e30
    x[2] *= 3e38 / x[2].abs().max()
    x[3:6] *= 1e-25
    x[6] = x[5]
    x[7] = 0.0
    x[8, 3], x[9, 4], x[10, 4], x[11, 7] = float("nan"), float("inf"), float("inf"), float("-inf")
    found, wanted = cuda.squared_distances(on(x)).cpu(), cpu.squared_distances(x)
    assert found.isfinite().equal(wanted.isfinite())
    assert found.isnan().equal(wanted.isnan())
    good = x.isfinite().all(1)
    near(found[:-1, :-1][good][:, good], exact_distances(x[good])[:-1, :-1], 1e-6)
    near(found[-1, :-1][good], x[good].double().square().sum(1), 1e-6)
    ordinary = torch.tensor([0, 12, 13, 14, 15, 16, 17])
    assert found[ordinary][:, ordinary].equal(plain[ordinary][:, ordinary])  # others change nothing


def test_only_pairs_that_need_it_are_measured_again() -> None:
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(5))
    x[3] *= 1e30
    found = cuda.squared_distances(on(x)).cpu()
    exact = exact_distances(x)
    near(found[3, :3], exact[3, :3], 1e-13)
    assert not torch.allclose(found[:3, :3], exact[:3, :3], rtol=1e-13, atol=0)


@pytest.mark.parametrize("panel", [columns.PANEL, 1])
def test_distances_between_mixtures(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "PANEL", panel)
    for dtype, m in (
        ((torch.float32, 17), (torch.float64, 3), (torch.bfloat16, 3)) if panel > 1 else ((torch.float32, 3),)
    ):
        x = hostile(11, 300, dtype)
        x[:, 9] = 1.0
        extra = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
        table = tables(m, 11, ~x.isfinite().all(1).numpy())["any"]
        wider = np.concatenate([table, np.full((m, 2), 0.1)], 1)
        found = cuda.mixed_distances(on(x), table, None, others=False)
        near(found, cpu.mixed_distances(x, table, None, others=False), 1e-13)
        for others in (False, True):
            found = cuda.mixed_distances(on(x), wider, on(extra), others=others)
            near(found, cpu.mixed_distances(x, wider, extra, others=others), 1e-13)


@pytest.mark.parametrize("d", [1, 300, distances.STREAM - 1, distances.STREAM + 1])
def test_norms(d: int) -> None:
    for dtype in FLOATS:
        x = torch.randn(6, d, generator=torch.Generator().manual_seed(d)).to(dtype)
        x[1], x[2, 0], x[3, 0] = 0.0, float("nan"), float("inf")
        near(cuda.squared_norms(on(x)), cpu.squared_norms(x), 1e-13)
        near(cuda.norms(on(x)), cpu.norms(x), 1e-13)
        near(cuda.norms(on(x[0])), cpu.norms(x[0]), 1e-13)
        near(cuda.squared_norms(on(x.reshape(2, 3, d))), cpu.squared_norms(x.reshape(2, 3, d)), 1e-13)
    wide = torch.randn(5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    for factor in (1e-300, 1e-160, 1e160, 1e300):
        x = wide * torch.tensor([[factor], [1.0], [-factor], [0.0], [factor]], dtype=torch.float64)
        near(cuda.norms(on(x)), cpu.norms(x), 1e-13)


@pytest.mark.parametrize(
    ("k", "d", "dtype"),
    [
        (1, 1, torch.float32),
        (7, 33, torch.float32),
        (7, 33, torch.float64),
        (distances.PRODUCTS, 33, torch.float16),
        (distances.PRODUCTS + 1, 33, torch.float32),
        (3, 129, torch.float32),
    ],
)
def test_inner_products(k: int, d: int, dtype: torch.dtype) -> None:
    x = torch.randn(k, d, generator=torch.Generator().manual_seed(k)).to(dtype)
    with launches() as seen:
        found = cuda.inner_products([on(v) for v in x])
    assert [name for name, _, _ in seen] == ["products", "total"] * (k <= distances.PRODUCTS)
    near(found, x.double() @ x.double().T, 1e-12, 1e-11)
    assert k > distances.PRODUCTS or found.equal(found.T)
    others = [x[0].double(), x[-1].float(), x[:, d // 2].repeat(d)[:d]]
    found = cuda.inner_products([on(v) for v in others])
    near(found, cpu.inner_products([v.double() for v in others]), 1e-12, 1e-11)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 300), (4, distances.BESIDE + 1)])
def test_distances_to_one_point(n: int, d: int) -> None:
    for dtype in FLOATS if d == 300 else (torch.float32,):
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(n)).to(dtype)
        point = x[n // 2] * 2
        x[0, 0] = 0.0 if n == 1 else float("inf")
        near(cuda.squared_distances_to(on(x), on(point)), cpu.squared_distances_to(x, point), 1e-13)
        near(cuda.compared(on(x), on(point)), cpu.compared(x, point), 1e-12, 1e-11)
        if dtype in (torch.float16, torch.bfloat16):
            continue
        extra, weights = x[-1:] + 1, np.linspace(0, 1, n + 1)
        for scales in (None, np.linspace(0.5, 3, n)):
            found = cuda.squared_around(on(x), weights, on(extra), scales)
            near(found, cpu.squared_around(x, weights, extra, scales), 1e-12)
        found = cuda.squared_around(on(x), weights[1:], None, scales)
        near(found, cpu.squared_around(x, weights[1:], None, scales), 1e-12)


# -------------------------------------------------------------------------------------------- what a few columns tell


def blocks(d: int, width: int) -> list[dict[str, Any]]:
    """All columns, and blocks of them, told by an array and by a tensor where kernels run."""
    starts = np.array([0, d // 3, d - width])
    return [{}, {"starts": starts, "width": width}, {"starts": on(torch.from_numpy(starts)), "width": width}]


def read(some: dict[str, Any]) -> dict[str, Any]:
    """The same for main memory."""
    return {name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in some.items()}


# Columns on both sides of what one program looks at, and rows on both sides of what is compared.
@pytest.mark.parametrize(
    ("n", "d"),
    [(1, 1), (5, 300), (11, samples.RELATED), (3, samples.RELATED + 1), (2, 3 * samples.RELATED + 7), (65, 40)],
)
def test_relations_are_right(n: int, d: int) -> None:
    for dtype in FLOATS if d == 300 else FLOATS[:2]:
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(d)).to(dtype)
        for other in (dtype, torch.float64):  # what a mixture is of may be wider than the rows
            point = x[n // 2].to(other) * 2
            for some in blocks(d, min(d, 17)):
                with launches() as seen:
                    found = cuda.relations(on(x), on(point), **some)
                many = not some and d > samples.RELATED
                assert [name for name, _, _ in seen] == ["related"] + ["total"] * many
                near(found, plain.relations(x, point, **read(some)), 1e-12, 1e-11)
                assert found.equal(cuda.relations(on(x), on(point), **some))


@pytest.mark.parametrize("dtype", FLOATS)
def test_relations_of_what_is_no_number(dtype: torch.dtype) -> None:
    """Huge numbers have squares in float64 (its own overflow), and whoever holds a NaN or an infinity is told so."""
    x = hostile(11, 300, dtype)
    for point in (x[0], x[1], x[-1]):
        for some in blocks(300, 40):
            found, wanted = cuda.relations(on(x), on(point), **some).cpu(), plain.relations(x, point, **read(some))
            near(found[[0, 2]], wanted[[0, 2]], 1e-12)
            same(found[3], wanted[3])
            assert found[1].isnan().equal(wanted[1].isnan())


def test_relations_of_no_columns_are_nothing() -> None:
    for x, some in ((torch.zeros(3, 0), {}), (torch.ones(3, 5), {"starts": np.zeros(0, np.int64), "width": 4})):
        assert cuda.relations(on(x), on(x[0]), **some).tolist() == [[0.0] * 4] * 4
        assert cuda.statistic_weights(on(x), 0, 2, **some).tolist() == [0.0] * 3


def tied(n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Small whole numbers, whose sums are exact in any order; rows of NaN and infinities; and rows that are equal."""
    x = torch.randint(-3, 4, (n, d), generator=torch.Generator().manual_seed(n + d)).to(dtype)
    x[:, 3] = 1.0
    x[: n // 2, 5] = -0.0
    if n >= 5:
        x[n // 2] = x[0]
        x[-1], x[-2], x[0, 13] = float("nan"), float("inf"), -float("nan")
        x[-2, 1::2] = float("-inf")
        x[1, 14] = float("inf")
    return x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 11, 16, 17, columns.SORTED_ROWS, columns.SORTED_ROWS + 1])
def test_weights_in_a_statistic_are_the_oracles(n: int, dtype: torch.dtype) -> None:
    """To the bit of a sum of as many quotients: who is chosen, and who shares a weight with whom, is the same."""
    if n > 11 and dtype != torch.float32:
        pytest.skip("the same code, slow to interpret")
    d = 70 if n <= 11 else 20
    x = tied(n, d, dtype)
    for case in settings(n) if n <= 11 else settings(n)[::3]:
        for some in blocks(d, 7):
            with launches() as seen:
                found = cuda.statistic_weights(on(x), *case, **some)
            assert [name for name, _, _ in seen] == ["weighed", "total"] * (n <= columns.SORTED_ROWS)
            near(found, plain.statistic_weights(x, *case, **read(some)), 1e-13, 1e-15)
            near(found, cpu.statistic_weights(x, *case, **read(some)), 1e-13, 1e-15)
            assert found.equal(cuda.statistic_weights(on(x), *case, **some))
            assert found.sum().item() == pytest.approx(1)


def test_weights_of_rows_that_are_equal_are_equal() -> None:
    for value in (0.3, float("nan"), float("-inf")):
        x = torch.full((7, 30), value)
        for case in settings(7):
            near(cuda.statistic_weights(on(x), *case), torch.full((7,), 1 / 7, dtype=torch.float64), 1e-15)


@pytest.mark.parametrize("parts", [1, 3])
def test_weights_of_several_steps_of_a_program(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(20, 41, generator=torch.Generator().manual_seed(0))
    whole = cuda.statistic_weights(on(x), 5, 15, 15)
    monkeypatch.setattr(samples, "PARTS", parts)
    with launches() as seen:
        near(cuda.statistic_weights(on(x), 5, 15, 15).cpu(), whole.cpu(), 1e-14)
    assert seen[0][1] == parts
    monkeypatch.setattr(samples, "RELATED", 8)
    near(cuda.relations(on(x), on(x[2])), plain.relations(x, x[2]), 1e-13, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_mixtures_are_the_oracles(kind: str) -> None:
    """As many mixtures as rows, fewer and more; what has no weight is not looked at, and of others NaN is infinite."""
    for n, m, dtype in (
        (5, 3, torch.float16),
        (11, 11, torch.float32),
        (6, 17, torch.float64),
        (columns.SORTED_ROWS + 1, 3, torch.float32),
        (3, columns.SORTED_ROWS + 1, torch.float32),
    ):
        x = tied(n, 30, dtype)
        table = tables(m, n, ~x.isfinite().all(1).numpy() if n >= 5 else np.zeros(n, bool))[kind]
        if kind in ("few", "all"):
            table = np.sign(table)  # mixtures that are equal are so in any order of their sums
        elif kind == "any":
            x = x + torch.randn(n, 30, generator=torch.Generator().manual_seed(n)).to(dtype)
        for spoils in (False, True):
            table[m - 1, -2:] = -2.0 * spoils  # NaN and infinities
            for some in blocks(30, 7)[spoils:2]:
                for case in settings(m)[:: 2 if m < 20 else 3]:
                    with launches() as seen:
                        found = cuda.statistic_weights(on(x), *case, mixing=table, **some)
                    assert [name for name, _, _ in seen] == ["weighed", "total"] * (max(n, m) <= columns.SORTED_ROWS)
                    near(found, plain.statistic_weights(x, *case, mixing=table, **read(some)), 1e-13, 1e-15)
                    assert found.equal(cuda.statistic_weights(on(x), *case, mixing=table, **some))


def test_weights_do_not_depend_on_where_rows_stand() -> None:
    """Neither do those of what is closest, whose centre is a sum: of values in order."""
    x = hostile(23, 60, torch.float64)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    for case in settings(23):
        found, moved = cuda.statistic_weights(on(x), *case), cuda.statistic_weights(on(x[order]), *case)
        assert moved.cpu().equal(found.cpu()[order])


# ---------------------------------------------------------------------------------------------------- the worker half


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blends_have_the_bits_of_main_memory(dtype: torch.dtype) -> None:
    for n, d in ((1, 1), (5, 1), (4, 300), (3, workers.BLEND_BLOCK + 1)):
        x, y = (
            hostile(n, max(d, 20), dtype)[:, :d],
            torch.randn(n, d, generator=torch.Generator().manual_seed(2)).to(dtype),
        )
        for scale in (0.1, torch.linspace(0.1, 0.7, n, dtype=torch.float64)):
            for beside in (y, y[0]):
                wanted = cpu.blend(scale, x, 1 / 3, beside)
                sent = scale if isinstance(scale, float) else on(scale)
                same(cuda.blend(sent, on(x), 1 / 3, on(beside)), wanted)
                into = on(x.clone())
                assert cuda.blend(sent, into, 1 / 3, on(beside), out=into) is into
                same(into, wanted)
                across = on(torch.zeros(d, n, dtype=dtype)).T
                assert cuda.blend(sent, on(x), 1 / 3, on(beside), out=across) is across
                same(across, wanted)
        into = on(y.clone())
        same(cuda.blend(0.9, on(x), -0.1, into, out=into), cpu.blend(0.9, x, -0.1, y))
        row = on(y[0].clone())
        same(cuda.blend(0.9, on(x[0]), -0.1, row, out=row), cpu.blend(0.9, x[:1], -0.1, y[:1])[0])
        same(row, cpu.blend(0.9, x[:1], -0.1, y[:1])[0])
        level = on(torch.tensor(0.3, dtype=torch.float64))
        same(cuda.blend(level, on(x), 1.0, on(y)), cpu.blend(0.3, x, 1.0, y))
    with pytest.raises(ValueError, match=r"rows \[3, 1025\] go with \[3, 1025\] or with one of them, got \[2, 1025\]"):
        cuda.blend(1.0, on(x), 1.0, on(y[:2]))


def clip(norms: Tensor) -> Tensor:
    return (2.0 / norms).clamp(max=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("remembers", ["nothing", "rows", "one row", "in place"])
def test_what_workers_send_has_the_bits_of_main_memory(remembers: str, clipped: bool, dtype: torch.dtype) -> None:
    for h, d in ((1, 1), (2, 300), (5, 33), (14, 65), (27, 66), (33, 70)):
        generator = torch.Generator().manual_seed(h)
        x, y, memory = (torch.randn(s, generator=generator).to(dtype) for s in ((h, d), (h, d), (h, d)))
        x[0] *= 1e-3
        x[:, 0] = torch.linspace(-0.0, 1e10, h)
        for beside in (y, y[0]):
            answers = []
            for module, move in ((cpu, Tensor.clone), (cuda, lambda x: on(x.clone()))):
                rows, held = move(x), move(memory[0] if remembers == "one row" else memory)
                out = rows if remembers == "nothing" else held if remembers == "in place" else torch.empty_like(rows)
                sampled, sent = module.send_rows(
                    rows, 1 / 3, move(beside), scale=clip if clipped else None, keep=0.1, beta=0.9,
                    memory=None if remembers == "nothing" else held, out=out, moments=True,
                )  # fmt: skip
                answers.append((out, *sampled, *sent))
            for found, wanted in zip(answers[1], answers[0], strict=True):
                if dtype == torch.float32 or not clipped:  # norms, and so scales, differ in the last bit of float64
                    near(
                        found,
                        wanted,
                        1e-15 if dtype == torch.float64 else 0.0,
                        1e-15 if dtype == torch.float64 else 0.0,
                    )
                else:
                    near(found, wanted, 1e-14, 1e-14)
            if not clipped:
                same(answers[1][0], answers[0][0])
                if h * x.element_size() <= workers.STRAIGHT:  # added up in the same order
                    for found, wanted in zip(answers[1], answers[0], strict=True):
                        same(found, wanted)


def test_workers_that_send_elsewhere_or_are_many() -> None:
    generator = torch.Generator().manual_seed(9)
    for h in (workers.SENT_ROWS, workers.SENT_ROWS + 1):
        x, y, memory = (torch.randn(s, generator=generator) for s in ((h, 40), (40,), (h, 40)))
        wanted, into = torch.empty_like(x), on(torch.zeros(40, h)).T
        settings: dict[str, Any] = {"scale": clip, "keep": 1.0, "beta": 0.99}
        first = cpu.send_rows(x, 1e-4, y, **settings, memory=memory, out=wanted, moments=True)
        with launches() as seen:
            second = cuda.send_rows(on(x), 1e-4, on(y), **settings, memory=on(memory), out=into, moments=True)
        assert {name for name, _, _ in seen} == (
            {"squares", "total", "sent_of_many"} if h == workers.SENT_ROWS else set()
        )
        near(into, wanted, 1e-6, 1e-7)
        for found, exact in zip([*second[0], *second[1]], [*first[0], *first[1]], strict=True):  # type: ignore[misc]
            near(found, exact, 1e-6, 1e-7)
        assert cuda.send_rows(
            on(x), 0.0, on(y), scale=None, keep=1.0, beta=0.0, memory=None, out=into, moments=False
        ) == (
            None,
            None,
        )
        near(into, x, 0.0)


def test_clipping_of_what_leaves_the_range_of_float64() -> None:
    x = torch.tensor([[3e200, 4e200], [3e-200, 4e-200], [3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    seen: list[Tensor] = []
    cuda.send_rows(
        on(x), 0.0, on(x[3]), scale=lambda norms: seen.append(norms) or torch.ones_like(norms), keep=1.0, beta=0.0,
        memory=None, out=on(x.clone()), moments=False,
    )  # fmt: skip
    near(seen[0], torch.tensor([5e200, 5e-200, 5.0, 0.0], dtype=torch.float64), 1e-15)


@pytest.mark.parametrize("shape", [(9, 3, 5, 6), (4, 1, 1, 1), (5, 1, 33, 35)])
def test_images_have_the_bits_of_main_memory(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    whole = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8))
    for images in (
        whole,
        torch.from_numpy(random.standard_normal(shape).astype(np.float32)),
        whole.flip(0).permute(0, 1, 3, 2),
    ):
        index = random.integers(0, shape[0], 13)
        scale, shift = random.standard_normal(shape[1]), random.standard_normal(shape[1])
        for flip in (None, random.random(13) < 0.5):
            wanted = cpu.gather_images(images, index, flip=flip, scale=scale, shift=shift)
            for kind in (torch.bool, torch.uint8):
                flags = None if flip is None else on(torch.from_numpy(flip).to(kind))
                found = cuda.gather_images(
                    on(images), on(torch.from_numpy(index)), flip=flags, scale=scale, shift=shift
                )
                same(found, wanted)


# ------------------------------------------------------------------------------------------- layouts, devices, launches


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers, otherwise in memory."""
    n, d = x.shape
    rows, beside, around = x.new_zeros(2 * n, d), x.new_zeros(n, d + 3), x.new_zeros(n, 2 * d)
    rows[::2], beside[:, 3:], around[:, ::2] = x, x, x
    negative = torch.complex(torch.zeros_like(x), -x).conj().imag
    found = {"strided": rows[::2], "offset": beside[:, 3:], "spread": around[:, ::2], "across": x.T.contiguous().T}
    found["negative"] = negative
    assert negative.is_neg()
    for other in found.values():
        assert other.equal(x)
    return found


@pytest.mark.slow
def test_any_layout_will_do() -> None:
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    y, table = x.flip(0).contiguous(), np.linspace(0, 1, 12).reshape(2, 6)
    calls: list[Callable[[Tensor, Tensor], Any]] = [
        lambda x, y: cuda.column_statistic(x, 1, 5, 4),
        lambda x, y: cuda.column_statistic(x, 0, 1, 0, mixing=table),
        lambda x, y: cuda.mean_and_std(x),
        lambda x, y: cuda.weighted_rows(x, np.concatenate([table, table], 1), y),
        lambda x, y: cuda.weighted_panel(x, table, None, start=3, stop=17),
        lambda x, y: cuda.squared_distances(x, y),
        lambda x, y: cuda.mixed_distances(x, np.concatenate([table, table], 1), y, others=True),
        lambda x, y: (cuda.squared_norms(x), cuda.norms(x)),
        lambda x, y: cuda.inner_products([*x, *y][:7]),
        lambda x, y: (cuda.squared_distances_to(x, y[1]), cuda.compared(x, y[1])),
        lambda x, y: cuda.squared_around(x, np.concatenate([table, table], 1)[0], y, np.ones(6)),
        lambda x, y: cuda.relations(x, y[1]),
        lambda x, y: cuda.relations(x, y[1], starts=np.array([0, 13]), width=5),
        lambda x, y: cuda.statistic_weights(x, 1, 5, 4, starts=np.array([0, 13]), width=5),
        lambda x, y: cuda.statistic_weights(x, 0, 1, mixing=table),
        lambda x, y: cuda.blend(0.5, x, 0.3, y),
        lambda x, y: [
            m
            for pair in cuda.send_rows(
                x, 0.3, y, scale=clip, keep=1.0, beta=0.5, memory=y, out=torch.empty(6, 20, device=D), moments=True
            )
            for m in pair or ()
        ],
    ]
    for call in calls:
        wanted = call(on(x), on(y))
        for one, other in zip(layouts(x).values(), layouts(y).values(), strict=True):
            found = call(on(one), on(other))
            for a, b in zip(found, wanted, strict=True):
                assert a.equal(b)
        call(on(x).requires_grad_(), on(y))
    alike = x[:1].expand(6, -1)
    assert cuda.column_statistic(on(alike), 2, 3)[0].equal(on(x[0]))


def test_launches_are_guarded_by_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    class There(Tensor):
        device = property(lambda self: torch.device("cuda", 1))  # type: ignore[assignment]

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **options: happened.append(("launch", grid, arguments[0], options))

    @contextmanager
    def guard(device: torch.device) -> Iterator[None]:
        happened.append(("device", device))
        yield
        happened.append(("left",))

    happened: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "device", guard)
    launching.launch(Kernel(), 3, 7, torch.zeros(1).as_subclass(There), num_warps=4)
    assert happened == [("device", torch.device("cuda", 1)), ("launch", (3,), 7, {"num_warps": 4}), ("left",)]
    launching.launch(Kernel(), 0, torch.zeros(1).as_subclass(There))  # of nothing: a card refuses it
    assert len(happened) == 3


def test_numbers_arrive_in_double_precision() -> None:
    for value in (0.0, -0.0, 1.0, 0.1, -1e-300, 1e300, float("inf")):
        assert np.array([launching.bits(value)]).view(np.float64)[0] == value
    x = torch.full((1, 1), 1.0, dtype=torch.float64)
    for value in (0.1, 1e-9, 5e-324, 1 / 3):
        assert cuda.blend(value, on(x), 0.0, on(x)).item() == value


def test_networks_are_those_of_main_memory() -> None:
    source = columns.statistic_source(7, 3, 4, 0, size=32, mixed=False)
    assert source.count("tl.minimum") == len(definitions.network(7, 3, 4))
    assert columns.statistic(7, 3, 4, 0, size=32, mixed=False) is columns.statistic(7, 3, 4, 0, size=32, mixed=False)


def no_waits(call: Callable[[Tensor], Any], x: Tensor, launches: int) -> None:
    """On a pretended card a call waits for nothing, and starts so much: Triton's kernels, torch's, copies of tables."""
    with PretendedCard(triton=True) as card:
        there = x.to("cuda:0")
        card.reset()
        call(there)
        assert not card.waits
        assert card.to_host == 0
        assert card.launches.total() == launches, card.launches
        assert card.to_card < 2000


@pytest.mark.skipif(not INTERPRETED, reason="a real card needs no pretended one")
def test_nothing_waits_and_little_is_launched() -> None:
    x, table = hostile(11, 130), np.full((11, 11), 1 / 11)
    no_waits(lambda x: kernels.column_statistic(x, 5, 6), x, 3)  # what counts faulty rows filled, and summed
    no_waits(lambda x: kernels.column_statistic(x, 2, 9, 9, mixing=table), x, 5)
    no_waits(kernels.mean_and_std, x, 1)
    no_waits(lambda x: kernels.weighted_rows(x, table[0]), x, 2)
    no_waits(lambda x: kernels.weighted_rows(x, table), x, 2)
    no_waits(lambda x: kernels.weighted_panel(x, table, None, start=0, stop=50), x, 2)
    no_waits(lambda x: kernels.squared_distances(x, x[:1]), x, 4)
    no_waits(lambda x: kernels.squared_distances(x), x.double(), 2)
    no_waits(lambda x: kernels.mixed_distances(x, table, None, others=False), x, 4)
    no_waits(kernels.squared_norms, x, 2)
    no_waits(kernels.norms, x, 2)
    no_waits(lambda x: kernels.inner_products(list(x[:7])), x, 2)
    no_waits(lambda x: kernels.squared_distances_to(x, x[0]), x, 2)
    no_waits(lambda x: kernels.compared(x, x[0]), x, 3)
    no_waits(lambda x: kernels.squared_around(x, table[0], None, np.ones(11)), x, 6)
    no_waits(lambda x: kernels.relations(x, x[0]), x, 1)
    no_waits(lambda x: kernels.relations(x, x[0], starts=np.array([3, 90]), width=16), x, 2)
    no_waits(lambda x: kernels.statistic_weights(x, 2, 9), x, 2)
    no_waits(lambda x: kernels.statistic_weights(x, 5, 6, 9, starts=np.array([3, 90]), width=16), x, 3)
    no_waits(lambda x: kernels.statistic_weights(x, 2, 9, mixing=table), x, 3)
    no_waits(lambda x: kernels.blend(0.1, x, 0.9, x[0]), x, 1)
    no_waits(lambda x: kernels.norms(x), x.double(), 17)
    sent: dict[str, Any] = {"keep": 0.1, "beta": 0.9, "moments": True}
    no_waits(lambda x: kernels.send_rows(x, 0.1, x[0], scale=None, memory=x[1], out=x, **sent), x, 1)
    no_waits(lambda x: kernels.send_rows(x, 0.1, x[0], scale=clip, memory=None, out=x, **sent), x, 7)


def test_a_card_without_triton_runs_torchs_operations_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")

    def chosen() -> Any:
        kernels.for_card.cache_clear()
        kernels._without.cache_clear()
        caplog.clear()
        found = kernels.for_card(device)
        assert kernels.for_card(torch.device("cuda", 1)) is found
        return found

    try:
        assert chosen() is cuda
        assert not caplog.messages
        for name, value, why in (
            ("triton.__version__", "3.4.0", "Triton is 3.4.0, older than 3.5"),
            (
                "torch.cuda.get_device_capability",
                lambda device: (7, 5),
                "an old card is not of NVIDIA's Ampere generation",
            ),
            ("torch.version.hip", "6.0", "an old card is not of NVIDIA's Ampere generation"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(name, value)
                assert chosen() is plain
            assert len(caplog.messages) == 1
            assert f"several times slower: {why}" in caplog.text
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "triton", None)
            assert chosen() is plain
        assert "several times slower: Triton is not installed." in caplog.text
    finally:
        kernels.for_card.cache_clear()
        kernels._without.cache_clear()


# ------------------------------------------------------------------------------------------------ compiled for an H100


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[dict[str, Any]]]:
    """By groups. Triton keeps what it compiles where it does always, by a hash of sources, options and versions."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).with_name("compiling.py")), *NAMES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = {group: [] for group in NAMES}
    for kernel in map(json.loads, done.stdout.splitlines()):
        found[kernel["group"]].append(kernel)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("group", ["columns", "distances", "samples", "workers", "ordinary sorting", "long sorting"])
def test_kernels_compile_for_an_h100_without_spilling(group: str, compiled: dict[str, list[dict[str, Any]]]) -> None:
    """With ordinary arguments, and with those of one row of one column, which Triton makes constants of."""
    made = compiled[group]
    assert {kernel["name"] for kernel in made} == NAMES[group]
    for kernel in made:
        assert kernel["stack"] == 0, kernel
        assert not MEASURED or kernel["registers"] <= REGISTERS.get(kernel["name"], 128), kernel
        assert kernel["shared"] <= 16384, kernel
        assert "ftz" not in kernel["ptx"], kernel["name"]  # tiny numbers are numbers
        assert "approx" not in kernel["ptx"], kernel["name"]
        assert kernel["name"] in FUSED or not any(word in kernel["ptx"] for word in ("fma.rn.f32", "fma.rn.f64")), (
            kernel["name"]
        )


# Of 65,536 registers of a multiprocessor: 128 a thread leave room for 512 threads at once. How many a kernel takes is
# decided by the compiler: Triton 3.8 gives `sent` of 64 workers 254, where 3.7, which these are of, gives 158.
REGISTERS = {"pairs": 168, "fold": 144, "around": 160, "sent": 168, "sent_of_many": 160}
MEASURED = version("triton").startswith("3.7.")
FUSED = {"pairs", "products", "around"}  # sums in an order of their own anyway
NAMES = {
    "columns": {"mixtures", "mixed", "column_moments"},
    "distances": {"mixtures", "mixed", "pairs", "fold", "squares", "products", "around", "total"},
    "samples": {"related", "weighed", "total"},
    "workers": {"blended", "squares", "total", "sent", "sent_of_many", "gathered"},
    "ordinary sorting": {"statistic", "mixtures"},
    "long sorting": {"statistic"},
}


RUNS: tuple[dict[str, Any], ...] = (
    {"rule": "median", "momentum_at": "server"},
    {"rule": "phocas", "pre": ("nnm",), "clip": 2.0, "l2": 1e-4},
    {"rule": "bulyan", "attack": "empire"},
)


@pytest.mark.slow
@pytest.mark.skipif(not INTERPRETED, reason="a real card needs no pretended one")
@pytest.mark.parametrize("settings", RUNS, ids=str)
def test_runs_whose_graphs_hold_these_kernels_come_to_what_they_come_to_on_the_cpu(settings: dict[str, Any]) -> None:
    """Steps are captured from the third on: what a kernel did once must be done again in each of them."""
    usual = {"model": "linear", "workers": 11, "byzantine": 2, "attack": "little", "batch_size": 4, "steps": 4}
    e = vg.Experiment(**{**usual, **settings})
    expected = vg.run(e)
    with PretendedCard(triton=True) as card:
        found = vg.run(replace(e, device="cuda:0"))
    assert {"weighed", "related"} <= {name for name, _ in card.launches}
    assert (found.stopped, len(found.measures)) == (None, 4)
    for ours, theirs in zip(found.measures, expected.measures, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert found.max_accuracy == expected.max_accuracy
