"""Stateless randomness: a number is a function of (seed, purpose, step, worker), and of nothing else."""

from __future__ import annotations

import hashlib
import random
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varangian.core import randomness


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(1, 2**31),
)
def test_a_row_of_indices_does_not_depend_on_how_many_there_are(
    seed: int, step: int, rows: int, more: int, columns: int, size: int
) -> None:
    few = randomness.indices(seed, "batches", step, rows=rows, columns=columns, size=size)
    many = randomness.indices(seed, "batches", step, rows=rows + more, columns=columns, size=size)
    assert (few == many[:rows]).all()
    assert few.shape == (rows, columns)
    assert few.dtype == np.int64
    assert few.min() >= 0
    assert few.max() < size


def test_a_row_of_indices_does_not_depend_on_the_sizes_of_others() -> None:
    sizes = np.array([[5], [70], [1]])
    found = randomness.indices(1, "batches", 3, rows=3, columns=40, size=sizes)
    assert (found < sizes).all()
    assert (found[1] == randomness.indices(1, "batches", 3, rows=3, columns=40, size=70)[1]).all()


def test_nothing_else_counts() -> None:
    """Neither what was drawn before, nor anybody's global generators, which are left alone."""
    first = randomness.generator(1, "batches", 2, 3).random(5)
    states = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()  # noqa: NPY002
    randomness.generator(1, "batches", 2, 4).random(1000)
    assert (first == randomness.generator(1, "batches", 2, 3).random(5)).all()
    assert (states[0] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.equal(states[1], torch.get_rng_state())
    assert states[2] == random.getstate()


def test_streams_of_another_seed_purpose_step_or_worker_have_nothing_in_common() -> None:
    keys = [
        (s, p, t, w) for s in (0, 1, 2**63 - 1) for p in ("batches", "flips") for t in (0, 1, 300) for w in (0, 1, 50)
    ]
    drawn = {key: set(randomness.generator(*key).integers(2**63, size=64).tolist()) for key in keys}
    assert all(drawn[a].isdisjoint(drawn[b]) for a, b in combinations(keys, 2))


def test_streams_of_neighbouring_workers_and_steps_do_not_overlap() -> None:
    """A counter that ran into its neighbour's would repeat numbers, shifted."""
    long = {w: randomness.generator(1, "x", 0, w).integers(2**63, size=20_000) for w in (0, 1)}
    later = randomness.generator(1, "x", 1, 0).integers(2**63, size=20_000)
    assert np.unique(np.concatenate([*long.values(), later])).size == 60_000


def test_batches_differ_between_workers_and_steps() -> None:
    one = randomness.indices(1, "batches", 0, rows=3, columns=50, size=10**6)
    assert len({tuple(row) for row in one}) == 3
    for seed, purpose, step in ((2, "batches", 0), (1, "flips", 0), (1, "batches", 1)):
        assert (one != randomness.indices(seed, purpose, step, rows=3, columns=50, size=10**6)).mean() > 0.99


@pytest.mark.parametrize("size", [2, 3, 10, 97])
def test_indices_are_uniform(size: int) -> None:
    """Chi-square over 100,000 draws; the bound is six standard deviations above its mean, and the draw is fixed."""
    counts = np.bincount(
        randomness.indices(7, "batches", 5, rows=100, columns=1000, size=size).reshape(-1), minlength=size
    )
    expected = 100_000 / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < size - 1 + 6 * np.sqrt(2 * (size - 1))


def test_indices_of_neighbouring_rows_are_independent() -> None:
    drawn = randomness.indices(7, "batches", 5, rows=2, columns=20_000, size=2**31) / 2**31
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.04  # six standard deviations


def test_integer_fits_torch_and_is_stateless() -> None:
    numbers = {randomness.integer(s, "dropout", t, w) for s in range(3) for t in range(3) for w in range(3)}
    assert len(numbers) == 27
    assert all(0 <= n < 2**63 for n in numbers)
    torch.Generator().manual_seed(max(numbers))
    assert randomness.integer(1, "dropout", 2, 3) == randomness.integer(1, "dropout", 2, 3)


def test_the_numbers_are_those_of_the_first_release() -> None:
    """A change of numbers is a change of everybody's results: it belongs in the CHANGELOG."""
    assert randomness.generator(1, "batches", step=3).integers(10, size=4).tolist() == [7, 9, 0, 8]
    assert randomness.indices(1, "batches", 2, rows=2, columns=3, size=1000).tolist() == GOLDEN_INDICES
    assert randomness.integer(1, "model") == GOLDEN_INTEGER


GOLDEN_INDICES = [[488, 509, 135], [248, 473, 700]]
GOLDEN_INTEGER = 7885510040596268705


SEEDS = [0, 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 2, 2**63 - 1]
PURPOSES = ["batches", "flips", "shuffle", "attack", "model", "dropout", "rule", "mixing", "bucketing", "test-flips",
            "partition dirichlet", "partition similarity", "synthetic train", "synthetic prototypes",
            "partition dirichlet-mixture", "partition shards", "partition classes", "partition long-tail",
            "partition quantity"]  # fmt: skip


@pytest.mark.parametrize("purpose", PURPOSES)
def test_different_seeds_different_numbers(purpose: str) -> None:
    """Up to 2^63, where a float64 no longer tells them apart."""
    for draw in (
        lambda seed: randomness.generator(seed, purpose).bytes(16),
        lambda seed: randomness.indices(seed, purpose, 1, rows=2, columns=3, size=2**31).tobytes(),
        lambda seed: randomness.integer(seed, purpose),
    ):
        assert len({draw(seed) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS[:5])
@pytest.mark.parametrize("purpose", ["batches", "attack", "model", "dropout", "flips", "shuffle"])
def test_keys_are_those_of_the_first_release(seed: int, purpose: str) -> None:
    """It handed NumPy a list, of which NumPy made floating-point numbers where the second is 2^63 or more."""
    second = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    rounded = int(float(second)) if second >= 2**63 else second
    philox = np.random.Philox(key=np.array([seed, rounded], np.uint64), counter=[0, 0, 5, 4])
    assert randomness.generator(seed, purpose, 4, 5).bytes(32) == np.random.Generator(philox).bytes(32)


DRAWS = {
    "linear": lambda: torch.nn.Linear(5, 4).weight,
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(9), 0.5),
    "dropout2d": lambda: torch.nn.functional.dropout2d(torch.ones(2, 3, 2, 2), 0.5),
    "alpha": lambda: torch.nn.functional.alpha_dropout(torch.ones(9), 0.5, training=True),
    "rand": lambda: torch.rand(4),
    "randn": lambda: torch.randn(4, 3),
    "rand_like": lambda: torch.rand_like(torch.ones(4)),
    "randint": lambda: torch.randint(3, 9, (7,)),
    "randperm": lambda: torch.randperm(9),
    "normal": lambda: torch.normal(0.0, 1.0, (5,)),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 4),
    "orthogonal": lambda: torch.nn.init.orthogonal_(torch.empty(4, 4)),
    "truncated": lambda: torch.nn.init.trunc_normal_(torch.empty(5)),
    "rrelu": lambda: torch.nn.functional.rrelu(-torch.ones(5), training=True),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_torch_draws_inside_is_of_the_seed_alone(name: str) -> None:
    """The numbers of manual_seed, twice the same, and torch's own generator stands where it stood."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = DRAWS[name](), DRAWS[name]()
    before = torch.get_rng_state()
    for _ in range(2):
        with randomness.Drawn(11) as drawn:
            assert not drawn.drew
            for value in expected:
                assert torch.equal(DRAWS[name](), value)
            assert drawn.drew
            torch.rand(2, generator=torch.Generator().manual_seed(3))  # somebody's own generator stays theirs
    assert torch.equal(before, torch.get_rng_state())
