"""How vectors lie in memory, on how many threads and which way they are sorted change no bit of any answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core import kernels
from varangian.core.transforms import Clip, Momentum, SharedMomentum

N, D, F = 11, 300, 2  # whole blocks of columns, and the rest of one
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
Call = Callable[[Any], Any]


def layouts(x: Tensor) -> Iterator[tuple[str, Any]]:
    """The same numbers, otherwise in memory."""
    n, d = x.shape
    yield "by columns", x.T.contiguous().T
    padded = torch.full((2 * n + 1, 2 * d + 3), torch.nan, dtype=x.dtype)
    padded[1::2, 2:-1:2] = x
    yield "rows and columns of a larger one", padded[1::2, 2:-1:2]
    sliced = torch.full((n + 2, d + 5), torch.nan, dtype=x.dtype)
    sliced[1:-1, 3:-2] = x
    yield "a slice", sliced[1:-1, 3:-2]
    cube = torch.full((d, 2, n), torch.nan, dtype=x.dtype)
    cube[:, 1] = x.T
    yield "by columns of a larger one", cube[:, 1].T
    yield "requires grad", x.clone().requires_grad_()
    if x.dtype in (torch.float32, torch.float64):
        kind = torch.complex64 if x.dtype == torch.float32 else torch.complex128
        yield "with its sign in the tensor", torch.zeros_like(x, dtype=kind).sub(1j * x).conj().imag


def arrays(x: Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that torch cannot share, or not as they are."""
    y = x.numpy()
    yield "Fortran's", np.asfortranarray(y)
    yield "backwards", y[::-1, ::-1].copy()[::-1, ::-1]
    yield "backwards by columns", np.asfortranarray(y[:, ::-1])[:, ::-1]
    fixed = y.copy()
    fixed.flags.writeable = False
    yield "read only", fixed
    buffer = np.zeros(y.nbytes + 1, np.uint8)
    shifted = buffer[1:].view(y.dtype).reshape(y.shape)
    shifted[:] = y
    yield "not aligned", shifted


def same(a: Any, b: Any) -> bool:
    """Bit for bit, but for the sign of zero and what a NaN holds."""
    one, other = torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double()
    return bool(torch.equal(one.nan_to_num(0.125), other.nan_to_num(0.125)))


def stages() -> dict[str, Call]:
    """Every rule, mixing, attack and transform, and mixings before rules that sort columns."""
    root = torch.linspace(-1, 2, D)
    calls: dict[str, Call] = {}
    for name, rule in vg.RULES.items():
        made = rule(f=F, rounds=1, sample=40) if name == "dnc" else rule(f=F)
        calls[f"rule {name}"] = lambda x, made=made: made(x, previous=root if made.needs_root else None)
    calls["rule bulyan of multi-krum"] = vg.Bulyan(f=F, base="multi-krum")
    for name, mixing in vg.MIXINGS.items():
        made = mixing(f=F) if "f" in mixing.__dataclass_fields__ else mixing()
        calls[f"mixing {name}"] = made
    for rule in (vg.Median(f=F), vg.MeaMed(f=F), vg.Krum(f=F), vg.GeometricMedian(f=F)):
        algorithm = vg.Algorithm(pre=(vg.AdaptiveClipping(f=F), vg.NearestNeighborMixing(f=F)), rule=rule)
        calls[f"arc, nnm, {rule}"] = lambda x, a=algorithm: a.aggregate(x, a.init(N, D, dtype=x.dtype))[0]
    for name, attack in vg.ATTACKS.items():
        made = attack()
        flipped = torch.linspace(-3, 1, F * D).reshape(F, D) if made.poisons else None
        defence = vg.Median(f=F) if made.uses_defence else None
        calls[f"attack {name}"] = lambda x, made=made, flipped=flipped, defence=defence: made(
            x, F, defence=defence, poisoned=flipped
        )
    memory = torch.linspace(-1, 1, N * D).reshape(N, D)
    for stage in (Clip(5.0), Momentum(0.9), Momentum(0.9, dampening=0.5), SharedMomentum(0.9)):
        calls[f"transform {stage}"] = lambda x, stage=stage: stage(
            x, memory.to(x.dtype) if stage.remembers else None, memory[0].to(x.dtype)
        )[0]
    return calls


def vectors(dtype: torch.dtype) -> Tensor:
    """Some columns of small whole numbers, full of ties; two vectors are one."""
    x = np.random.default_rng(5).normal(size=(N, D))
    x[:, :100] = x[:, :100].round()
    x[4] = x[7]
    return torch.from_numpy(x).to(dtype)


@pytest.mark.parametrize("name", stages())
def test_layouts_threads_and_ways_of_sorting_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, former, usual = stages()[name], torch.get_num_threads(), kernels.cpu.columns.WORTH
    by_arrays = not name.startswith(("transform", "arc"))
    try:
        for dtype in DTYPES:
            x = vectors(dtype)
            torch.set_num_threads(1)
            expected = call(x)
            for count, small, worth in ((1, 1 << 15, usual), (1, 1 << 15, 0), (2, 1 << 8, 0)):
                torch.set_num_threads(count)
                monkeypatch.setattr(kernels.cpu.columns, "WORTH", worth)
                monkeypatch.setattr(kernels.runtime, "SMALL", small)
                assert same(call(x), expected), (dtype, worth, count)
                for layout, given in layouts(x):
                    kept = given.detach().clone()
                    assert same(call(given), expected), (layout, dtype, worth, count)
                    assert torch.equal(given, kept)
                if by_arrays and dtype != torch.bfloat16:
                    for layout, given in arrays(x):
                        assert same(call(given), expected), (layout, dtype, worth, count)
    finally:
        torch.set_num_threads(former)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_whose_numbers_are_one(dtype: torch.dtype) -> None:
    """Strides of zero: all vectors the same, or all coordinates."""
    row, column = vectors(dtype)[:1].expand(N, D), vectors(dtype)[:, 120:121].expand(N, D)
    for name, call in stages().items():
        for given in (row, column):
            assert same(call(given), call(given.clone(memory_format=torch.contiguous_format))), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_by_columns_beyond_the_switch(dtype: torch.dtype) -> None:
    """As they come, with nothing patched: over a million numbers."""
    x = torch.randn(33, 40_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = x.T.contiguous().T
    for rule in (vg.Median(f=5), vg.MeaMed(f=5), vg.Aksel(f=5)):
        found = rule(y)
        assert torch.equal(found, rule(x)), rule
        assert torch.equal(found[:2000], rule(x[:, :2000].float()).to(dtype)) or isinstance(rule, vg.Aksel), rule
