"""Suspicion, rejection and weights: one definition for explanations and engines."""

from __future__ import annotations

import numpy as np
import pytest

from varangian.core.evidence import rejected, suspicion, weights_of_table


def test_suspicion_is_what_is_beyond_the_median() -> None:
    measure = np.array([1.0, 3.0, 2.0, 4.0, 20.0, np.inf])
    finite = np.ones(6, bool)
    np.testing.assert_allclose(suspicion(measure, finite), [0, 0, 0, 1 - 3.5 / 4, 1 - 3.5 / 20, 1])
    np.testing.assert_allclose(suspicion(7 * measure, finite), suspicion(measure, finite))  # whatever the unit


def test_who_is_not_finite_has_one_and_does_not_count() -> None:
    finite = np.array([True, True, True, False, False])
    for of_those in (np.nan, np.inf, 0.0, -1.0):
        measure = np.array([1.0, 1.0, 4.0, of_those, of_those])
        np.testing.assert_allclose(suspicion(measure, finite), [0, 0, 0.75, 1, 1])
    assert suspicion(np.full(2, np.nan), np.zeros(2, bool)).tolist() == [1, 1]


def test_of_whom_nothing_is_known_nothing_is_said() -> None:
    found = suspicion(np.array([1.0, np.nan, 2.0]), np.ones(3, bool))
    np.testing.assert_allclose(found, [0, np.nan, 1 - 1.5 / 2])
    assert np.isnan(suspicion(np.full(3, np.nan), np.ones(3, bool))).all()


def test_where_the_usual_is_nothing_at_all_whoever_is_not_there_has_one() -> None:
    assert suspicion(np.array([0.0, 0.0, 0.0, 1e-9]), np.ones(4, bool)).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_suspicion_is_a_number_from_zero_to_one_and_follows_the_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 30))
    measure, finite = random.lognormal(0, 3, n), random.random(n) < 0.8
    found = suspicion(measure, finite)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[~finite] == 1).all()
    assert (np.diff(found[finite][np.argsort(measure[finite])]) >= 0).all()
    assert (found[finite] == 0).sum() >= finite.sum() / 2


def test_rejected_is_no_weight_or_no_number() -> None:
    finite = np.array([True, True, True, False])
    assert rejected(np.array([0.5, 0.0, -0.5, 0.5]), finite).tolist() == [False, True, False, True]
    assert rejected(np.full(4, np.nan), finite).tolist() == [False, False, False, True]
    assert rejected(None, finite).tolist() == [False, False, False, True]


def test_the_weights_of_a_decision() -> None:
    np.testing.assert_allclose(weights_of_table(np.array([0.5, 0.0, 0.25, 9.0]), 3), [2 / 3, 0, 1 / 3])
    np.testing.assert_allclose(weights_of_table(np.array([[1.0, 0.0], [0.5, -0.5]]), 2), [0.75, 0.25])
    assert np.isnan(weights_of_table(None, 3)).all()
    assert weights_of_table(np.zeros(3), 3).tolist() == [0, 0, 0]
