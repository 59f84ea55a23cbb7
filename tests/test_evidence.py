"""Suspicion, rejection and weights: one definition for explanations and engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from varangian.core.evidence import (
    cosines,
    distances_and_norms,
    recent_suspicion,
    rejected,
    suspicion,
    weights_of_table,
)


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


def test_whoever_points_away_from_the_aggregate_is_suspicious_however_near() -> None:
    distance, finite = np.array([1.0, 1.0, 0.9, 3.0, 1.0]), np.array([True] * 5)
    cosine = np.array([0.3, 0.2, -0.6, -0.1, np.nan])
    np.testing.assert_allclose(suspicion(distance, finite, cosine), [0, 0, 0.6, 2 / 3, 0])
    np.testing.assert_allclose(suspicion(distance, finite, np.full(5, np.nan)), suspicion(distance, finite))
    finite[2] = False
    np.testing.assert_allclose(suspicion(distance, finite, cosine), [0, 0, 1, 2 / 3, 0])
    unknown = np.array([1.0, np.nan, 1.0])
    np.testing.assert_allclose(suspicion(unknown, np.ones(3, bool), np.array([0.5, -1.0, 0.5])), [0, np.nan, 0])


def test_where_most_point_away_it_is_the_aggregate_that_is_turned() -> None:
    """Krum picked an attacker's vector, say: nobody honest is accused for that."""
    distance, finite = np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.ones(5, bool)
    assert suspicion(distance, finite, np.array([-0.9, -0.8, -0.7, 1.0, 1.0])).tolist() == [0, 0, 0, 0, 0]
    assert suspicion(distance, finite, np.array([-0.9, 0.8, 0.7, 1.0, 1.0])).tolist() == [0.9, 0, 0, 0, 0]


def test_cosines_follow_from_squares() -> None:
    x = torch.randn(6, 500, generator=torch.Generator().manual_seed(1))
    x[1] *= 1e-6
    x[2] *= 1e6
    x[3], x[4] = 0.0, torch.nan
    point = x[0] + 0.5 * x[5]
    norm, distance, own, product = distances_and_norms(x, point).numpy()
    wide, to = x.double(), point.double()
    np.testing.assert_allclose(distance, (wide - to).square().sum(1), rtol=1e-12)
    np.testing.assert_allclose(norm, wide.square().sum(1), rtol=1e-12)
    np.testing.assert_allclose(own, to.square().sum().item(), rtol=1e-12)
    expected = (wide @ to / wide.norm(dim=1) / to.norm()).numpy()
    np.testing.assert_allclose(cosines(norm, distance, own), expected, atol=1e-9)
    np.testing.assert_allclose(cosines(norm, distance, own, product), expected, atol=1e-12)
    assert np.isnan(cosines(norm, distance, own)[3:5]).all()
    assert np.isnan(cosines(np.ones(2), np.ones(2), 0.0)).all()
    assert np.isnan(cosines(np.array([np.inf]), np.array([np.inf]), 1.0)).all()


def test_recent_suspicion_is_of_the_steps_that_a_worker_took_part_in() -> None:
    random = np.random.default_rng(5)
    series = random.random((40, 6))
    series[random.random(series.shape) < 0.3] = np.nan
    series[:, 5] = np.nan
    series[:, 4] = random.random(40)
    for window in (1, 3, 100):
        expected = np.full(series.shape, np.nan)
        for t, i in np.ndindex(*series.shape):
            own = [s for s in series[: t + 1, i] if not np.isnan(s)]
            if own:
                expected[t, i] = sum(own[-window:]) / window
        np.testing.assert_allclose(recent_suspicion(series, window), expected, atol=1e-12)
        np.testing.assert_allclose(recent_suspicion(series[:, 4:5], window), expected[:, 4:5], atol=1e-12)
    assert recent_suspicion(np.zeros((0, 3)), 5).shape == (0, 3)


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


def test_many_steps_at_once_are_the_same_bytes() -> None:
    random = np.random.default_rng(2)
    distance, cosine = random.lognormal(size=(50, 9)), random.uniform(-1, 1, (50, 9))
    finite = random.random((50, 9)) < 0.9
    distance[random.random(distance.shape) < 0.1] = cosine[random.random(cosine.shape) < 0.1] = np.nan
    distance[3], finite[4], distance[5, 0] = np.nan, False, np.inf
    for told in (cosine, None):
        each = np.array(
            [suspicion(*row) for row in zip(distance, finite, told if told is not None else [None] * 50, strict=True)]
        )
        np.testing.assert_array_equal(suspicion(distance, finite, told), each)
