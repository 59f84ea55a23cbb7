"""Clip and the two momenta: their formulas, shapes and types, and what they refuse."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import varangian as vg

DTYPES = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-6, torch.float64: 1e-14}
by_dtype = pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=str)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------- Clip


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.sampled_from(["norm", "unit"]))
def test_clip_against_the_oracle(seed: int, max_norm: float, mode: Any) -> None:
    x = np.random.default_rng(seed).normal(size=(5, 9)) * np.logspace(-3, 3, 5)[:, None]
    expected = np.stack([oracles.clip(row, max_norm, mode) for row in x])
    found, memory = vg.Clip(max_norm, mode)(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert memory is None


def test_clip_leaves_short_vectors_bit_for_bit() -> None:
    x = torch.randn(4, 50)
    assert torch.equal(vg.Clip(100.0)(x)[0], x)
    # A vector of norm exactly max_norm passes, in both modes; the zero vector too (0 / 0 nowhere).
    for mode in ("norm", "unit"):
        edge = rows([3.0, 4.0], [0.0, 0.0])
        assert torch.equal(vg.Clip(5.0, mode)(edge)[0], edge)


def test_unit_mode_brings_long_vectors_to_norm_one_and_norm_mode_to_the_bound() -> None:
    x = rows([30.0, 40.0], [0.3, 0.4])
    torch.testing.assert_close(vg.Clip(2.0)(x)[0], rows([1.2, 1.6], [0.3, 0.4]))
    torch.testing.assert_close(vg.Clip(2.0, "unit")(x)[0], rows([0.6, 0.8], [0.3, 0.4]))
    torch.testing.assert_close(
        vg.Clip(0.1, "unit")(x)[0], rows([0.6, 0.8], [0.6, 0.8])
    )  # longer than before: as defined


@by_dtype
@pytest.mark.parametrize("shape", [(8,), (3, 8)])
def test_clip_keeps_dtype_and_shape(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]) -> None:
    x = (torch.arange(1, 1 + int(np.prod(shape))).reshape(shape) / 4).to(dtype)
    found, _ = vg.Clip(1.5)(x)
    assert (found.dtype, found.shape) == (dtype, x.shape)
    norms = found.double().norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 1.5), rtol=tolerance, atol=0)


def test_clip_of_vectors_whose_squares_overflow() -> None:
    x = torch.full((1, 4), 2e38)
    torch.testing.assert_close(vg.Clip(2.0)(x)[0], torch.ones(1, 4))
    half = torch.full((1, 4), 6e4, dtype=torch.float16)
    torch.testing.assert_close(vg.Clip(2.0)(half)[0], torch.ones(1, 4, dtype=torch.float16))


def test_clip_does_not_hide_what_is_not_finite() -> None:
    """A NaN or infinite gradient stays visible to whoever looks for it, and does not touch the other rows."""
    x = rows([float("nan"), 1.0], [float("inf"), 1.0], [-float("inf"), float("inf")], [30.0, 40.0])
    found = vg.Clip(5.0)(x)[0]
    assert (~found.isfinite()).any(1).tolist() == [True, True, True, False]
    torch.testing.assert_close(found[3], torch.tensor([3.0, 4.0], dtype=torch.float64))


def test_clip_never_writes_its_input_unless_told() -> None:
    x = torch.randn(3, 4) * 10
    kept, out = x.clone(), torch.empty(3, 4)
    expected, _ = vg.Clip(1.0)(x)
    found, _ = vg.Clip(1.0)(x, out=out)
    assert found is out
    assert torch.equal(found, expected)
    assert torch.equal(x, kept)
    in_place, _ = vg.Clip(1.0)(x, out=x)
    assert in_place is x
    assert torch.equal(x, expected)


# ---------------------------------------------------------------------------------------------------- Momentum


@pytest.mark.parametrize("dampening", [0.0, 0.25])
@pytest.mark.parametrize("shape", [(7,), (3, 7)])
@by_dtype
def test_momentum_is_its_recursion(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...], dampening: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    memory, m = torch.zeros(shape, dtype=dtype), np.zeros(shape)
    stage = vg.Momentum(0.9, dampening)
    for _ in range(5):
        x = torch.randn(shape, generator=generator).to(dtype)
        out, memory = stage(x, memory)
        m = 0.9 * m + (1 - dampening) * x.double().numpy()
        assert out.dtype == dtype
        assert torch.equal(out, memory)
        np.testing.assert_allclose(out.double().numpy(), m, rtol=5 * tolerance, atol=5 * tolerance)


def test_momentum_of_zero_is_nothing_and_steady_state_is_known() -> None:
    x = torch.randn(2, 5)
    assert torch.equal(vg.Momentum(0.0)(x, torch.randn(2, 5))[0], x)
    for dampening, limit in ((0.0, 10.0), (0.9, 1.0)):
        memory = torch.zeros(3, dtype=torch.float64)
        for _ in range(400):
            _, memory = vg.Momentum(0.9, dampening)(torch.ones(3, dtype=torch.float64), memory)
        torch.testing.assert_close(memory, torch.full_like(memory, limit))


def test_momentum_writes_nothing_without_out() -> None:
    x, memory = torch.randn(2, 5), torch.randn(2, 5)
    kept_x, kept = x.clone(), memory.clone()
    out, new = vg.Momentum(0.9)(x, memory)
    assert torch.equal(x, kept_x)
    assert torch.equal(memory, kept)
    assert {x.data_ptr(), memory.data_ptr()}.isdisjoint({out.data_ptr(), new.data_ptr()})


def test_momentum_remembers_outside_of_an_input_that_will_be_overwritten() -> None:
    x, memory = torch.randn(2, 5), torch.randn(2, 5)
    expected, _ = vg.Momentum(0.9)(x, memory)
    out, new = vg.Momentum(0.9)(x, memory, out=x)
    x.fill_(float("nan"))
    assert torch.equal(out, expected)
    assert torch.equal(new, expected)


@pytest.mark.parametrize("dampening", [0.0, 0.25])
@pytest.mark.parametrize("shape", [(7,), (3, 7)])
def test_shared_momentum_adds_one_vector_to_all(shape: tuple[int, ...], dampening: float) -> None:
    x, previous = torch.randn(shape), torch.randn(7)
    out, memory = vg.SharedMomentum(0.8, dampening)(x, previous=previous)
    assert memory is None
    torch.testing.assert_close(out, (1 - dampening) * x + 0.8 * previous)


@pytest.mark.parametrize("kind", [vg.Momentum, vg.SharedMomentum])
def test_look_ahead_only_with_nesterov(kind: type[vg.Momentum] | type[vg.SharedMomentum]) -> None:
    parameters, m = torch.randn(5), torch.randn(5)
    assert kind(0.9).look_ahead(parameters, m, m, 0.1) is parameters
    kept = parameters.clone()
    ahead = kind(0.9, nesterov=True).look_ahead(parameters, m, m, 0.1)
    torch.testing.assert_close(ahead, parameters - 0.9 * 0.1 * m)
    assert torch.equal(parameters, kept)


# ------------------------------------------------------------------------------------------------ as values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vg.Clip(0.0), "Clip needs max_norm > 0, got 0.0."),
        (lambda: vg.Clip(-1), "Clip needs max_norm > 0, got -1."),
        (lambda: vg.Clip(float("nan")), "Clip needs max_norm > 0, got nan."),
        (lambda: vg.Clip(1.0, "unti"), """Clip needs mode "norm" or "unit", got 'unti'."""),  # type: ignore[arg-type]
        (lambda: vg.Momentum(1.0), "Momentum needs beta in [0, 1), got 1.0."),
        (lambda: vg.Momentum(-0.1), "Momentum needs beta in [0, 1), got -0.1."),
        (lambda: vg.Momentum(float("nan")), "Momentum needs beta in [0, 1), got nan."),
        (lambda: vg.Momentum(0.9, 1.0), "Momentum needs dampening in [0, 1), got 1.0."),
        (lambda: vg.SharedMomentum(1.5), "SharedMomentum needs beta in [0, 1), got 1.5."),
        (lambda: vg.SharedMomentum(0.9, -1.0), "SharedMomentum needs dampening in [0, 1), got -1.0."),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_transforms_are_values() -> None:
    assert vg.Clip(2.0) == vg.Clip(2.0, "norm") != vg.Clip(2.0, "unit")
    assert {vg.Momentum(0.9), vg.Momentum(0.9), vg.Momentum(0.9, nesterov=True)} == {
        vg.Momentum(0.9),
        vg.Momentum(0.9, nesterov=True),
    }
    assert repr(vg.Clip(2.0)) == "Clip(max_norm=2.0, mode='norm')"
    with pytest.raises(AttributeError):
        vg.Clip(2.0).max_norm = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dampening", [0.0, 0.5, 0.9, 0.99])
def test_vectors_as_long_as_may_be_make_no_momentum_overflow(beta: float, dampening: float) -> None:
    """A quarter of the range at most, which the greater of a first step and of all steps together comes to."""
    momentum = vg.Momentum(beta, dampening)
    for dtype in (torch.float32, torch.float64):
        longest, most = momentum.overflow(dtype), torch.finfo(dtype).max
        settled = longest * (1 - dampening) / (1 - beta)
        assert max(longest, settled) == pytest.approx(most / 4)
        memory = torch.zeros(1, dtype=dtype)
        for _ in range(200):
            memory = momentum(torch.full((1,), longest, dtype=dtype), memory)[0]
        assert memory.item() <= most / 4 * (1 + 1e-6)
