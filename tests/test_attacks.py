"""Attacks against their published definitions, and the contract that all of them keep."""

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
from varangian import randomness
from varangian.attacks import original_factor

EXAMPLES: dict[str, vg.Attack] = {
    "little": vg.Little(1.5),
    "little, original factor": vg.Little(None),
    "little, up, biased": vg.Little(0.7, sign=1, ddof=0),
    "empire": vg.Empire(1.1),
    "sign-flip": vg.SignFlip(),
    "gaussian": vg.Gaussian(),
    "zero": vg.Zero(),
    "nan": vg.NaN(),
    "inf": vg.Inf(),
    "inf, mixed": vg.Inf("mixed"),
}
every = pytest.mark.parametrize("attack", EXAMPLES.values(), ids=EXAMPLES.keys())
H, F, D = 9, 4, 131
HONEST = np.random.default_rng(4).normal(loc=0.5, size=(H, D))


def test_every_attack_has_an_example_here() -> None:
    assert {type(a) for a in EXAMPLES.values()} >= {
        vg.Little,
        vg.Empire,
        vg.SignFlip,
        vg.Gaussian,
        vg.Zero,
        vg.NaN,
        vg.Inf,
    }
    assert {"little", "empire", "sign-flip", "gaussian", "zero", "nan", "inf"} <= set(vg.ATTACKS)


# ------------------------------------------------------------------------------------------------- definitions


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 12), st.integers(1, 300), st.floats(-3, 3))
def test_those_made_of_moments_against_the_oracles(seed: int, h: int, f: int, d: int, factor: float) -> None:
    honest = np.random.default_rng(seed).normal(size=(h, d)) * 10.0 ** np.random.default_rng(seed).integers(-3, 4)
    pairs = [
        (vg.SignFlip()(honest, f), oracles.sign_flip(honest, f)),
        (vg.Empire(factor)(honest, f), oracles.empire(honest, f, factor)),
        (vg.Zero()(honest, f), oracles.zero(honest, f)),
    ] + [
        (vg.Little(factor, sign, ddof)(honest, f), oracles.little(honest, f, factor, sign, ddof))
        for sign in (-1, 1)
        for ddof in (0, 1)
    ]
    for found, expected in pairs:
        assert found.shape == (f, d)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * np.abs(honest).max())


def test_the_moments_are_those_of_an_offset_that_dwarfs_the_spread() -> None:
    """mean 1e4, spread 1e-2 in float32: E[x^2] - E[x]^2 would give noise."""
    honest = (1e4 + 1e-2 * np.random.default_rng(1).normal(size=(20, 64))).astype(np.float32)
    found, expected = vg.Little(1.5)(honest, 1), oracles.little(honest, 1)
    np.testing.assert_allclose(found, expected, rtol=1.2e-7)


@pytest.mark.parametrize(("n", "f"), [(50, 24), (51, 24), (25, 11), (25, 5), (11, 4)])
def test_littles_original_factor(n: int, f: int) -> None:
    honest = np.random.default_rng(n).normal(size=(n - f, 20))
    assert original_factor(n, f) == pytest.approx(oracles.little_factor(n, f))
    np.testing.assert_allclose(vg.Little(None)(honest, f), oracles.little(honest, f, None), rtol=1e-10)


def test_littles_original_factor_needs_supporters() -> None:
    with pytest.raises(ValueError, match=r"^Little\(factor=None\) needs 0 < s < n - f .* got n = 6, f = 4\.$"):
        vg.Little(None)(np.zeros((2, 3)), 4)


def test_little_needs_two_vectors_for_an_unbiased_deviation() -> None:
    with pytest.raises(ValueError, match=r"^Little needs at least 2 honest vectors, got 1\.$"):
        vg.Little()(np.ones((1, 3)), 1)
    np.testing.assert_array_equal(vg.Little(ddof=0)(np.ones((1, 3)), 1), np.ones((1, 3)))


def test_gaussian_is_noise_of_the_given_deviation() -> None:
    found = vg.Gaussian(std=3.0)(torch.zeros(5, 20_000), f=4).numpy()
    assert abs(found.mean()) < 6 * 3 / np.sqrt(found.size)
    assert found.std() == pytest.approx(3.0, rel=0.02)
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 6 / np.sqrt(20_000)  # f independent vectors
    stream = [vg.Gaussian()(HONEST, F, random=randomness.generator(1, "attack", step)) for step in (0, 0, 1)]
    np.testing.assert_array_equal(stream[0], stream[1])
    assert (stream[0] != stream[2]).all()


def test_what_is_not_finite() -> None:
    assert np.isnan(vg.NaN()(HONEST, F)).all()
    assert (vg.Inf()(HONEST, F) == np.inf).all()
    assert (vg.Inf("-")(HONEST, F) == -np.inf).all()
    mixed = vg.Inf("mixed")(HONEST, F)
    assert (mixed[:, ::2] == np.inf).all()
    assert (mixed[:, 1::2] == -np.inf).all()


# ---------------------------------------------------------------------------------------------------- contract


@every
@pytest.mark.parametrize("f", [0, 1, F])
def test_shape_whatever_f(attack: vg.Attack, f: int) -> None:
    assert attack(HONEST, f).shape == (f, D)
    assert attack(torch.from_numpy(HONEST), f).shape == (f, D)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kind_and_dtype_are_kept(attack: vg.Attack, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(HONEST).to(dtype)
    found = attack(tensor, F)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == dtype
    wide = attack(tensor.double(), F)
    scale = torch.finfo(dtype).eps * 8
    torch.testing.assert_close(found.double(), wide, rtol=scale, atol=scale, equal_nan=True)
    as_list = attack(list(tensor), F)
    torch.testing.assert_close(as_list, found, rtol=0, atol=0, equal_nan=True)
    if dtype != torch.bfloat16:
        array = attack(tensor.numpy(), F)
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, found.numpy())
        np.testing.assert_array_equal(attack(list(tensor.numpy()), F), found.numpy())


@every
def test_the_honest_vectors_are_only_read_and_never_handed_out(attack: vg.Attack) -> None:
    for honest in (HONEST.copy(), np.asfortranarray(HONEST), HONEST[::-1], HONEST.astype(np.float32)):
        kept = honest.copy()
        found = attack(honest, F)
        np.testing.assert_array_equal(honest, kept)
        assert not np.shares_memory(found, honest)
        found[:] = 9.0  # f rows of their own: writing one changes no other, nor the next answer
        found[0] = 1.0
        assert (found[1:] == 9.0).all()
        np.testing.assert_array_equal(honest, kept)


@every
def test_layout_does_not_matter_and_calls_repeat(attack: vg.Attack) -> None:
    expected = attack(HONEST, F)
    np.testing.assert_array_equal(attack(HONEST, F), expected)
    np.testing.assert_array_equal(attack(np.asfortranarray(HONEST), F), expected)
    np.testing.assert_array_equal(attack(torch.from_numpy(HONEST.T.copy()).T, F).numpy(), expected)


def test_arrays_that_cannot_be_written_are_welcome() -> None:
    """np.load(mmap_mode="r") and np.broadcast_to give such arrays; no warning, since nothing writes them."""
    read_only = HONEST.copy()
    read_only.setflags(write=False)
    np.testing.assert_array_equal(vg.Little()(read_only, F), vg.Little()(HONEST, F))


@every
def test_no_gradient_flows_through(attack: vg.Attack) -> None:
    assert not attack(torch.from_numpy(HONEST).requires_grad_(), F).requires_grad


@every
def test_an_attack_takes_what_the_adversary_knows(attack: vg.Attack) -> None:
    """Defence, last aggregate and randomness are offered to all, whether they use them or not."""
    found = attack(HONEST, F, defence=vg.Median(F), previous=np.zeros(D), random=randomness.generator(0, "attack"))
    np.testing.assert_array_equal(found, attack(HONEST, F))


@every
@pytest.mark.parametrize(
    ("honest", "f", "message"),
    [
        (np.zeros((2, 3)), -1, "needs an integer f >= 0, got -1."),
        (np.zeros((2, 3)), 1.5, "needs an integer f >= 0, got 1.5."),
        (np.zeros(3), 1, "needs [n, d] with d >= 1, got shape [3]."),
        (np.zeros((2, 3), int), 1, "needs floating-point vectors (float16, float32, float64), got int64."),
        ("vectors", 1, "needs a tensor, an array or a list of vectors, got str."),
        ([np.zeros(3), np.zeros(4)], 1, "needs vectors of one shape [d], got shapes [(3,), (4,)]."),
        ([], 1, "needs n >= 1 vectors, got an empty list."),
    ],
)
def test_wrong_use(attack: vg.Attack, honest: Any, f: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{type(attack).__name__} {re.escape(message)}$"):
        attack(honest, f)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vg.Little(float("nan")), "Little needs a finite factor (or None), got nan."),
        (lambda: vg.Little(sign=0), "Little needs sign -1 or 1, got 0."),
        (lambda: vg.Little(ddof=2), "Little needs ddof 0 or 1, got 2."),
        (lambda: vg.Empire(float("inf")), "Empire needs a finite factor, got inf."),
        (lambda: vg.Gaussian(0.0), "Gaussian needs a finite std > 0, got 0.0."),
        (lambda: vg.Gaussian(float("nan")), "Gaussian needs a finite std > 0, got nan."),
        (lambda: vg.Inf("±"), """Inf needs sign "+", "-" or "mixed", got '±'."""),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_the_moments_are_computed_once_for_all_who_ask() -> None:
    seen = vg.Knowledge(torch.from_numpy(HONEST), F, None, None, randomness.generator(0, "attack"))
    assert seen.moments[0] is seen.mean
    np.testing.assert_allclose(seen.mean.numpy(), HONEST.mean(0), rtol=1e-12)
    np.testing.assert_allclose(seen.moments[1].numpy(), HONEST.std(0, ddof=1), rtol=1e-12)
