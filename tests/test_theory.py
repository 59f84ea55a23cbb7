"""The measured robustness coefficient: at least what no rule escapes, at most what is proved, reproducible."""

from __future__ import annotations

from math import comb, inf

import numpy as np
import pytest

import oracles
import varangian as vg
from varangian.core.theory import all_sets, empirical_kappa, worst_ratio

PROVED = (vg.Krum, vg.Median, vg.TrimmedMean, vg.GeometricMedian)
ROBUST = (*PROVED, vg.MultiKrum, vg.MeaMed, vg.Phocas, vg.MinimumDiameterAveraging, vg.CAF, vg.SMEA, vg.Medoid)


@pytest.mark.parametrize("kind", ROBUST, ids=lambda k: k.__name__)
@pytest.mark.parametrize(("n", "f"), [(7, 1), (11, 4), (16, 3)])
def test_between_what_none_escapes_and_what_is_proved(kind: type[vg.Rule], n: int, f: int) -> None:
    rule = kind(f=f)
    found = empirical_kappa(rule, n, evaluations=60)
    assert found >= f / (n - 2 * f) * (1 - 1e-9)
    bound = rule.kappa_bound(n)
    assert bound is not None or kind not in PROVED
    assert found <= (inf if bound is None else bound)
    assert found < inf


@pytest.mark.parametrize("kind", PROVED, ids=lambda k: k.__name__)
def test_a_long_search_stays_within_what_is_proved(kind: type[vg.Rule]) -> None:
    found = empirical_kappa(kind(f=2), 9, d=2, seed=3, evaluations=400)
    bound = kind(f=2).kappa_bound(9)
    assert bound is not None
    assert 2 / 5 * (1 - 1e-9) <= found <= bound


def test_the_trimmed_mean_is_as_good_as_any_rule_can_be_on_two_points() -> None:
    assert empirical_kappa(vg.TrimmedMean(f=3), 10, evaluations=10) == pytest.approx(3 / 4)


def test_what_does_not_follow_n_minus_f_equal_vectors_has_no_kappa() -> None:
    assert empirical_kappa(vg.Average(f=1), 5) == inf
    assert empirical_kappa(vg.ComparativeGradientElimination(f=2), 9) == inf
    assert empirical_kappa(vg.Average(f=0), 5, evaluations=20) == pytest.approx(0, abs=1e-20)


def test_the_same_arguments_give_the_same_number_and_more_of_a_search_gives_no_less() -> None:
    one, two = (empirical_kappa(vg.Krum(f=2), 9, seed=5, evaluations=60) for _ in range(2))
    assert one == two
    assert empirical_kappa(vg.Krum(f=2), 9, seed=6, evaluations=60) != one


@pytest.mark.parametrize("seed", range(10))
def test_the_ratio_is_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, f, d = 8, int(random.integers(0, 4)), 3
    x, out = random.normal(size=(n, d)) + 100, random.normal(size=d) + 100
    exact = worst_ratio(x, out, f, all_sets(n, f))
    assert exact == pytest.approx(oracles.kappa_of(out, x, f), rel=1e-9)
    assert worst_ratio(x, out, f) <= exact * (1 + 1e-9)


def test_all_sets() -> None:
    sets = all_sets(6, 2)
    assert sets.shape == (comb(6, 2), 6)
    assert (sets.sum(1) == 4).all()
    assert len(np.unique(sets, axis=0)) == len(sets)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"needs n >= 2f \+ 3 = 7 vectors, got 6\.$"):
        empirical_kappa(vg.Krum(f=2), 6)
    with pytest.raises(ValueError, match="evaluations >= 10"):
        empirical_kappa(vg.Krum(f=2), 9, evaluations=3)
