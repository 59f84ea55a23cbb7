"""Workers that count differently: weights by size, rules that weigh against their definitions and laws, and what
hostile weight can do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import programs
import varangian as vg
from contract import FLOATS
from pretended import CardTensor, PretendedCard
from varangian.core import kernels
from varangian.core.evidence import scores
from varangian.core.shares import heaviest, portions
from varangian.core.stages import decide, deferred_refusals, refuse_faulty
from varangian.testing import Check, check_rule

Array = np.ndarray

RULES: dict[str, tuple[Callable[[int], vg.Rule], Callable[..., Array]]] = {
    "average": (vg.Average, oracles.weighted_average),
    "median": (vg.Median, oracles.weighted_median),
    "median, lower": (
        lambda f: vg.Median(f, even="lower"), lambda x, w, f: oracles.weighted_median(x, w, f, even="lower"),
    ),
    "median, upper": (
        lambda f: vg.Median(f, even="upper"), lambda x, w, f: oracles.weighted_median(x, w, f, even="upper"),
    ),
    "trimmed-mean": (vg.TrimmedMean, oracles.weighted_trimmed_mean),
    "phocas": (vg.Phocas, oracles.weighted_phocas),
    "meamed": (vg.MeaMed, oracles.weighted_meamed),
    "meamed, lower": (
        lambda f: vg.MeaMed(f, even="lower"), lambda x, w, f: oracles.weighted_meamed(x, w, f, even="lower"),
    ),
    "krum": (vg.Krum, oracles.weighted_krum),
    "krum, plain": (
        lambda f: vg.Krum(f, neighbours="n-f-1", distance="plain"),
        lambda x, w, f: oracles.weighted_krum(x, w, f, neighbours="n-f-1", distance="plain"),
    ),
    "multi-krum": (vg.MultiKrum, oracles.weighted_multi_krum),
    "multi-krum, m": (lambda f: vg.MultiKrum(f, m=2), lambda x, w, f: oracles.weighted_multi_krum(x, w, f, m=2)),
    "medoid": (vg.Medoid, oracles.weighted_medoid),
    "geometric-median": (vg.GeometricMedian, oracles.weighted_geometric_median),
    "centered-clipping": (
        lambda f: vg.CenteredClipping(f, tau=1.5, iterations=3),
        lambda x, w, f: oracles.weighted_centered_clipping(x, w, f, tau=1.5, iterations=3),
    ),
}  # fmt: skip
BY_RANKS = ["median", "median, lower", "median, upper", "trimmed-mean", "phocas", "meamed"]
ROBUST = [name for name in RULES if name != "average"]
every_rule = pytest.mark.parametrize("name", RULES)


def weights_of(kind: str, n: int, random: np.random.Generator) -> Array:
    if kind == "whole":
        return random.integers(1, 4, n).astype(float)
    if kind == "sizes":
        return vg.size_weights(random.lognormal(0, 1, n), cap=1.5)
    return random.random(n) + 0.5


def vectors_of(kind: str, n: int, d: int, random: np.random.Generator) -> Array:
    return random.integers(-2, 3, (n, d)).astype(float) if kind == "grid" else random.normal(size=(n, d))


def fitting(make: Callable[[int], vg.Rule], w: Array) -> vg.Rule:
    """The rule with the greatest f that these weights allow."""
    return make(make(0).weight_breakdown(w).workers)


# ------------------------------------------------------------------------------------------------- weights by size


def test_weights_are_in_proportion_to_sizes_and_count_n_together() -> None:
    sizes = [100, 100, 200, 400]
    np.testing.assert_allclose(vg.size_weights(sizes), [0.5, 0.5, 1, 2], rtol=1e-15)
    np.testing.assert_array_equal(vg.size_weights(torch.tensor(sizes)), vg.size_weights(np.array(sizes)))
    np.testing.assert_allclose(vg.size_weights([0, 3, 1]), [0, 2.25, 0.75], rtol=1e-15)
    assert vg.size_weights([1e308, 1e308, 5e307]).sum() == pytest.approx(3)
    assert vg.size_weights([5e-324, 5e-324]).tolist() == [1, 1]
    assert vg.size_weights([0.1] * 3).tolist() == [1, 1, 1]


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=30), st.floats(1, 20))
@settings(max_examples=200, deadline=None)
def test_the_cap_is_kept_and_its_excess_dealt_out(sizes: list[int], cap: float) -> None:
    found = vg.size_weights(sizes, cap=cap)
    assert found.dtype == np.float64
    assert found.max() <= cap
    assert found.sum() == pytest.approx(len(sizes), rel=1e-12)
    np.testing.assert_allclose(found, oracles.capped(sizes, cap), rtol=1e-9)
    below = found < cap
    if below.any():  # those keep their proportions, and nobody of less is capped
        ratio = found[below] / np.array(sizes)[below]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
        assert np.array(sizes)[below].max() <= min(np.array(sizes)[~below], default=np.inf)


def test_a_cap_of_one_makes_all_equal_and_a_large_one_changes_nothing() -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    assert (vg.size_weights(sizes, cap=1) == 1).all()
    np.testing.assert_array_equal(vg.size_weights(sizes, cap=8), vg.size_weights(sizes))
    np.testing.assert_array_equal(vg.size_weights(sizes, cap=np.inf), vg.size_weights(sizes))
    assert vg.size_weights([1, 0, 0], cap=3).tolist() == [3, 0, 0]
    np.testing.assert_allclose(vg.size_weights([5, 3, 0], cap=1.5), [1.5, 1.5, 0])


@pytest.mark.parametrize(
    ("sizes", "cap", "words"),
    [
        ([1, -2], None, "size_weights needs sizes that are finite and >= 0, got -2 at place 1."),
        ([1, np.nan], None, "size_weights needs sizes that are finite and >= 0, got nan at place 1."),
        ([0, 0], None, "size_weights needs sizes that are not all 0."),
        ([], None, "size_weights needs sizes [n], as numbers, got float64 [0]."),
        ("many", None, "size_weights needs sizes [n], as numbers, got 'many'."),
        ([[1, 2]], None, "size_weights needs sizes [n], as numbers, got int64 [1, 2]."),
        ([True, False], None, "size_weights needs sizes [n], as numbers, got bool [2]."),
        (np.ma.masked_array([1, 2], [0, 1]), None, "size_weights needs sizes as an array without a mask, got "
         "a masked one."),
        ([1, 2], 0.5, "size_weights needs cap >= 1 (or None), in equal shares, got 0.5."),
        ([1, 2], np.nan, "size_weights needs cap >= 1 (or None), in equal shares, got nan."),
        ([1, 2], "2", "size_weights needs cap >= 1 (or None), in equal shares, got '2'."),
        ([1, 0, 0], 1.5, "size_weights cannot keep cap = 1.5: only 1 of 3 sizes are > 0, so that the greatest weight "
         "is 3 at least; leave the others out, or raise the cap to that."),
    ],
)  # fmt: skip
def test_what_is_no_size_and_no_cap_is_said(sizes: Any, cap: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        vg.size_weights(sizes, cap)
    assert str(error.value) == words


# --------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize("kind", ["whole", "sizes", "any"])
@pytest.mark.parametrize(("n", "d"), [(3, 2), (7, 5), (12, 40), (20, 3), (67, 4)])
@every_rule
def test_a_rule_follows_its_definition(name: str, n: int, d: int, kind: str) -> None:
    make, oracle = RULES[name]
    near = 1e-8 if name == "geometric-median" else 1e-9  # a walk, that ends there
    random = np.random.default_rng([n, d, len(kind)])
    for x in (vectors_of("normal", n, d, random), vectors_of("normal", n, d, random) * 1e-3 + 5):
        w = weights_of(kind, n, random)
        rule = fitting(make, w)
        np.testing.assert_allclose(rule(x, weights=w), oracle(x, w, rule.f), rtol=near, atol=near)
        if not rule.f > 0:
            continue
        x[np.argmax(w)] = 1e6
        np.testing.assert_allclose(rule(x, weights=w), oracle(x, w, rule.f), rtol=near, atol=near)


@every_rule
def test_ties_and_duplicates(name: str) -> None:
    """On a grid, with weights that are whole: amounts of weight and distances are equal all over."""
    make, oracle = RULES[name]
    random = np.random.default_rng(5)
    for n in (4, 6, 9, 14):
        for _ in range(8):
            x, w = vectors_of("grid", n, 4, random), weights_of("whole", n, random)
            rule = fitting(make, w)
            np.testing.assert_allclose(rule(x, weights=w), oracle(x, w, rule.f), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@every_rule
def test_all_types(name: str, dtype: torch.dtype) -> None:
    make, oracle = RULES[name]
    random = np.random.default_rng(8)
    for n, d in ((9, 50), (70, 5)):
        w = weights_of("sizes", n, random)
        x = torch.from_numpy(vectors_of("normal", n, d, random)).to(dtype)
        rule = fitting(make, w)
        found = rule(x, weights=w)
        assert found.dtype == dtype
        expected = oracle(x.double().numpy(), w, rule.f)
        np.testing.assert_allclose(found.double().numpy(), expected, atol=4 * torch.finfo(dtype).eps * 3)


@every_rule
def test_threads_and_layouts_change_nothing(name: str) -> None:
    random, threads = np.random.default_rng(3), torch.get_num_threads()
    x = torch.from_numpy(vectors_of("normal", 11, 7000, random)).float()
    w = weights_of("sizes", 11, random)
    rule = fitting(RULES[name][0], w)
    try:
        torch.set_num_threads(1)
        alone = rule(x, weights=w)
        torch.set_num_threads(3)
        assert torch.equal(rule(x, weights=w), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(rule(x.T.contiguous().T, weights=w), alone)
    assert torch.equal(rule(list(x), weights=torch.from_numpy(w)), alone)
    assert torch.equal(torch.from_numpy(rule(x.numpy(), weights=w.tolist())), alone)


@pytest.mark.parametrize("name", RULES)
def test_devices_agree_and_do_not_wait_more_than_without_weights(name: str) -> None:
    """On a pretended card, where refusals are deferred as in a step."""
    random = np.random.default_rng(4)
    x = torch.from_numpy(vectors_of("normal", 11, 60, random))
    w = weights_of("sizes", 11, random)
    rule = fitting(RULES[name][0], w)
    x[np.argsort(w)[11 - rule.f :]] = torch.nan
    with PretendedCard() as card, deferred_refusals() as pending:
        decide(CardTensor(x.nan_to_num(0.5)), (), rule)
        usual = card.waits.total()
        found = decide(CardTensor(x), (), rule, weights=w).aggregate
        assert card.waits.total() - usual == usual
    assert isinstance(found, CardTensor)
    np.testing.assert_allclose(found.held, rule(x, weights=w), atol=1e-12)
    for one in pending:
        refuse_faulty(one.stage, one.f, int(one.faulty.held))  # type: ignore[attr-defined]
    if name in BY_RANKS:
        x[np.argmin(w)] = torch.inf
        with PretendedCard(), deferred_refusals() as pending:
            decide(CardTensor(x), (), rule, weights=w)
        with pytest.raises(vg.Refused):
            refuse_faulty(pending[0].stage, pending[0].f, int(pending[0].faulty.held))  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weight", [1, 0.3, 7])
@every_rule
def test_equal_weights_have_the_bytes_of_none(name: str, weight: float, dtype: torch.dtype) -> None:
    rule = RULES[name][0](2)
    for n, d in ((8, 33), (11, 2), (66, 5)):
        x = torch.from_numpy(np.random.default_rng(n).normal(size=(n, d))).to(dtype)
        assert torch.equal(rule(x, weights=np.full(n, weight)), rule(x))
        assert torch.equal(rule(x, weights=[weight] * n), rule(x))


@given(st.integers(0, 10_000), st.sampled_from(list(RULES)), st.sampled_from(["normal", "grid"]))
@settings(max_examples=150, deadline=None)
def test_the_order_of_vectors_and_the_unit_of_weights_do_not_matter(seed: int, name: str, kind: str) -> None:
    near = 1e-8 if name == "geometric-median" else 1e-9
    random = np.random.default_rng(seed)
    n = int(random.integers(4, 12))
    x = vectors_of(kind, n, 3, random)
    w = weights_of(("whole", "sizes", "any")[seed % 3], n, random)
    rule = fitting(RULES[name][0], w)
    found, order = rule(x, weights=w), random.permutation(n)
    np.testing.assert_allclose(rule(x[order], weights=w[order]), found, rtol=near, atol=near)
    np.testing.assert_allclose(rule(x, weights=w * 37.3), found, rtol=near, atol=near)
    np.testing.assert_allclose(rule(x, weights=w * 1e-300), found, rtol=near, atol=near)
    np.testing.assert_allclose(rule(4 * x + 8, weights=w) if name != "centered-clipping" else 4 * found + 8,
                               4 * found + 8, rtol=4 * near, atol=4 * near)  # fmt: skip


@pytest.mark.parametrize("name", ["average", "median", "median, lower", "median, upper", "trimmed-mean"])
def test_whole_weights_are_vectors_that_come_as_often(name: str) -> None:
    """And with W_f the f heaviest come as often, all of them."""
    random = np.random.default_rng(6)
    for n in (3, 6, 10, 15):
        for kind in ("normal", "grid"):
            x, w = vectors_of(kind, n, 5, random), random.integers(1, 5, n)
            rule = fitting(RULES[name][0], w.astype(float))
            repeated = replace(rule, f=int(heaviest(w, rule.f)))
            np.testing.assert_allclose(rule(x, weights=w), repeated(np.repeat(x, w, axis=0)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["phocas", "meamed"])
def test_so_it_is_of_what_is_closest(name: str) -> None:
    random = np.random.default_rng(7)
    for n in (4, 7, 12):
        x, w = vectors_of("normal", n, 5, random), random.integers(1, 5, n)
        rule = fitting(RULES[name][0], w.astype(float))
        repeated = replace(rule, f=int(heaviest(w, rule.f)))
        np.testing.assert_allclose(rule(x, weights=w), repeated(np.repeat(x, w, axis=0)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("neighbours", ["n-f-2", "n-f-1"])
def test_scores_with_whole_weights_are_those_of_vectors_that_come_as_often(neighbours: str) -> None:
    """The 1 in n - W_f - 1 is an equal share: N / n of N vectors, of which each counts itself as one."""
    random = np.random.default_rng(2)
    for n in (5, 8):
        w = np.append(random.integers(1, 4, n - 1), 0)
        w[-1] = -(w.sum()) % n or n  # so that N / n is whole
        x, share = random.normal(size=(n, 3)), w.sum() // n
        f = vg.Krum(0).weight_breakdown(w).workers
        count = w.sum() - int(heaviest(w, f)) - (share if neighbours == "n-f-2" else 0) - 1
        expected = oracles.krum_scores(np.repeat(x, w, axis=0), count)[np.cumsum(w) - 1]
        rule = vg.Krum(f, neighbours=neighbours)  # type: ignore[arg-type]
        geometry = decide(torch.from_numpy(x), (), rule, weights=w).geometry
        assert geometry is not None
        found = rule.score(geometry)
        np.testing.assert_allclose(found, expected / share, rtol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, 3.0])
@every_rule
def test_what_weighs_nothing_is_not_there(name: str, value: float) -> None:
    random = np.random.default_rng(11)
    for rows in ([0], [3, 8], [1, 2, 9]):
        x, w = vectors_of("normal", 10, 6, random), weights_of("sizes", 10, random)
        there = np.setdiff1d(np.arange(10), rows)
        rule = fitting(RULES[name][0], w[there])
        expected = rule(x[there], weights=w[there])
        x[rows], w[rows] = value, 0
        np.testing.assert_array_equal(rule(x, weights=w), expected)
        w[there] = 2.5
        np.testing.assert_array_equal(rule(x, weights=w), rule(x[there]))


def test_a_decision_is_about_all_vectors_those_that_weigh_nothing_too() -> None:
    x, w = torch.randn(8, 5, dtype=torch.float64), np.array([1, 0, 2, 1, 1, 0, 1, 1.5])
    x[5] = torch.nan
    for rule in (vg.MultiKrum(1), vg.Krum(1), vg.Average(), vg.CenteredClipping(1)):
        algorithm = vg.Algorithm(pre=(vg.StaticClipping(50.0),) if rule.f else (), rule=rule)
        decision = algorithm.decide(x, algorithm.init(0, 5, torch.float64), weights=w)
        assert decision.table is not None
        table = decision.table
        assert not table[[1, 5]].any()
        assert decision.weight_of(slice(5, 6)) == 0
        extra = torch.zeros(table.size - 8, 5, dtype=torch.float64)
        again = kernels.weighted_rows(x, table, extra if len(extra) else None)
        torch.testing.assert_close(again, decision.aggregate)
    geometry = decide(x, (), vg.MultiKrum(1), weights=w).geometry
    assert geometry is not None
    told = scores((), vg.MultiKrum(1), geometry)
    assert told is not None
    assert np.isinf(told[[1, 5]]).all()
    assert np.isfinite(np.delete(told, [1, 5])).all()


# -------------------------------------------------------------------------------------------- hostile weight


def hostile(name: str, n: int, w: Array, random: np.random.Generator) -> tuple[vg.Rule, Array]:
    """A rule with as great an f as there may be, and who is hostile: many light ones, of weight up to W_f."""
    rule = fitting(RULES[name][0], w)
    limit, taken = heaviest(w, rule.f), np.zeros(n, bool)
    for i in np.argsort(w) if random.random() < 0.5 else random.permutation(n):
        if w[i] + w[taken].sum() <= limit:
            taken[i] = True
    return rule, taken


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e30, 2.0])
@pytest.mark.parametrize("name", ROBUST)
def test_hostile_weight_leaves_the_answer_among_the_honest(name: str, value: float) -> None:
    """Few heavy vectors or many light ones, more than f of them; any value."""
    random = np.random.default_rng(1)
    number = 0
    for _ in range(40):
        n = int(random.integers(5, 14))
        w, x = weights_of("sizes", n, random), vectors_of("normal", n, 4, random)
        rule, bad = hostile(name, n, w, random)
        number += int(bad.sum() > rule.f)
        honest = x[~bad]
        x[bad] = value
        out = rule(x, weights=w)
        assert np.isfinite(out).all()
        if name in ("median", "median, lower", "median, upper", "trimmed-mean"):
            assert (honest.min(0) - 1e-12 <= out).all()
            assert (out <= honest.max(0) + 1e-12).all()
        else:
            assert np.linalg.norm(out) < 20 * np.linalg.norm(honest, axis=1).max()
    assert number > 5  # there were such


@pytest.mark.parametrize("name", ROBUST)
def test_more_weight_than_that_is_refused_where_it_is_not_finite(name: str) -> None:
    w = np.array([3, 1, 1, 1, 1, 1, 0.5, 0.5, 1, 1])
    x = np.random.default_rng(0).normal(size=(10, 4))
    rule = RULES[name][0](1)
    x[[3, 6, 7]] = np.nan  # 2 of 11
    assert np.isfinite(rule(x, weights=w)).all()
    with pytest.raises(vg.Refused, match="tolerates 1 vectors"):
        rule(x)
    x[[4, 5]] = np.inf
    words = "that weigh 2.727 of 10, as the f = 1 heaviest do, got 5 that weigh 3.636"
    with pytest.raises(vg.Refused, match=words):
        rule(x, weights=w)
    x[[3, 4, 5, 6, 7]] = 0
    x[0] = np.nan  # as heavy as that
    assert np.isfinite(rule(x, weights=w)).all()


def test_half_of_the_weight_breaks_the_median() -> None:
    """The breakdown is sharp: less than half cannot move it out of the honest values, and half can."""
    x, w = np.array([[0.0], [1.0], [2.0], [1e9], [1e9]]), np.array([1, 1, 1, 1.4, 1.5])
    assert vg.Median(1)(x, weights=w)[0] == 2
    w[3] = 1.6
    assert vg.Median(1)(x, weights=w)[0] == 1e9


# ------------------------------------------------------------------------------------------- breakdown in weight


@pytest.mark.parametrize("n", [5, 8, 11, 20])
@every_rule
def test_breakdown_of_equal_weights_is_that_of_the_number(name: str, n: int) -> None:
    rule = RULES[name][0](0)
    found = rule.weight_breakdown([2.5] * n)
    assert found.workers == rule.breakdown(n)
    assert found.share == pytest.approx(found.workers / n)
    assert found.declared == 0


def test_what_weights_cost_and_what_the_cap_brings_back() -> None:
    sizes = np.random.default_rng(0).lognormal(0, 1.2, 20)
    lost = [vg.Median(0).weight_breakdown(vg.size_weights(sizes, cap)).workers for cap in (None, 3, 2, 1.5, 1)]
    assert lost == sorted(lost)
    assert lost[0] < 5
    assert lost[-1] == vg.Median(0).breakdown(20) == 9
    found = vg.TrimmedMean(2).weight_breakdown([4, 1, 1, 1, 1, 1, 1, 1, 1])
    assert found == vg.WeightBreakdown(declared=5 / 12, share=5 / 12, workers=2, limit=0.5)
    krum = vg.Krum(0).weight_breakdown(
        [4, 1, 1, 1, 1, 1, 1, 1, 1]
    )  # 2 W_f + 2 < n: 3.5 of 9, and the heaviest weighs 3
    assert (krum.workers, krum.limit) == (1, pytest.approx(3.5 / 9))
    assert vg.MultiKrum(0, m=7).weight_breakdown([1.0] * 9).workers == vg.MultiKrum(0, m=7).breakdown(9) == 2
    assert vg.Median(0).weight_breakdown([10, 1, 1]).workers == 0
    assert vg.Median(1).weight_breakdown([0, 1, 1, 1, 0]).workers == 1


@pytest.mark.parametrize(
    ("rule", "w", "words"),
    [
        (vg.Median(2), [4, 3, 1, 1, 1], "Median(f=2) tolerates less than 2.5 of a weight of 5, and the f = 2 heaviest "
         "of these 5 vectors weigh 3.5; f = 1 would do, or weights with a lower cap."),
        (vg.TrimmedMean(1), [9, 1, 1, 1], "TrimmedMean(f=1) tolerates less than 2 of a weight of 4, and the f = 1 "
         "heaviest of these 4 vectors weigh 3; none of these may be Byzantine, or weights with a lower cap."),
        (vg.Krum(1), [2, 1, 1, 1, 1], "Krum(f=1) tolerates less than 1.5 of a weight of 5, and the f = 1 heaviest of "
         "these 5 vectors weigh 1.667; none of these may be Byzantine, or weights with a lower cap."),
        (vg.Median(2), [1, 1, 1, 1, 0], "Median(f=2) needs n >= 2f + 1 = 5 vectors that weigh more than 0, got 4."),
        (vg.Median(1), [1, 1], "Median needs weights [5], one a vector, as numbers, got int64 [2]."),
        (vg.Median(1), [1, 1, 1, 1, -1], "Median needs weights that are finite and >= 0, got -1 at place 4."),
        (vg.Median(1), [1, 1, 1, 1, np.inf], "Median needs weights that are finite and >= 0, got inf at place 4."),
        (vg.Median(1), [0] * 5, "Median needs weights that are not all 0."),
        (vg.Median(1), "heavy", "Median needs weights [5], one a vector, as numbers, got 'heavy'."),
    ],
)  # fmt: skip
def test_f_too_great_and_what_is_no_weight_are_said(rule: vg.Rule, w: Any, words: str) -> None:
    x = np.zeros((len(w) if words.startswith(str(rule)) else 5, 3))
    algorithm = vg.Algorithm(rule=rule)
    for call in (
        lambda: rule(x, weights=w),
        lambda: algorithm.aggregate(x, algorithm.init(0, 3), weights=w),
        lambda: algorithm.decide(x, algorithm.init(0, 3), weights=w),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            call()
        assert str(error.value) == words
    if words.startswith(str(rule)):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            rule.weight_breakdown(w)
        assert str(error.value) == words


def test_who_takes_no_weights_says_so() -> None:
    x, w = torch.randn(9, 4), [1.0] * 9
    weighing = {type(make(1)) for make, _ in RULES.values()}
    for kind in vg.RULES.values():
        assert kind.weighs == (kind in weighing)
        if not kind.weighs:
            with pytest.raises(
                ValueError, match=rf"{kind.__name__}\(.* takes no weights of workers; those that do: Average"
            ):
                decide(x, (), kind(f=1), previous=x[0], weights=w)
            with pytest.raises(ValueError, match="takes no weights of workers"):
                kind(f=1).weight_breakdown(w)
    for mixing in (vg.NearestNeighborMixing(1), vg.Bucketing(2), vg.AdaptiveClipping(1)):
        algorithm = vg.Algorithm(pre=(mixing,), rule=vg.Median(1))
        with pytest.raises(ValueError, match="takes no weights of workers; those that do: StaticClipping"):
            algorithm.aggregate(x, algorithm.init(0, 4), weights=w)
    moving = vg.Algorithm(rule=vg.Median(1), placement=vg.Adaptive(0.9))
    with pytest.raises(ValueError, match=r"Adaptive.* takes no weights of workers"):
        moving.decide(x, moving.init(9, 4), weights=w)


def test_clipping_stands_before_weights() -> None:
    x, w = torch.randn(9, 4, dtype=torch.float64) * 3, vg.size_weights(np.arange(1, 10), cap=1.5)
    clip = vg.StaticClipping(1.0)
    for make, _ in RULES.values():
        rule = fitting(make, w)
        algorithm = vg.Algorithm(pre=(clip,), rule=rule)
        found, _ = algorithm.aggregate(x, algorithm.init(0, 4, torch.float64), weights=w)
        torch.testing.assert_close(found, rule(clip(x), weights=w), rtol=1e-9, atol=1e-9)


def test_the_server_goes_on_with_what_weights_gave() -> None:
    """Momentum behind F, and the second step."""
    algorithm = vg.Algorithm(rule=vg.TrimmedMean(1), server=(vg.Momentum(0.9),))
    x, w = torch.randn(7, 3, dtype=torch.float64), np.arange(7) + 3.0
    state = algorithm.init(0, 3, torch.float64)
    first, state = algorithm.aggregate(x, state, weights=w)
    second, _ = algorithm.aggregate(x, state, weights=w)
    torch.testing.assert_close(second, 1.9 * first)


def test_portions_lie_end_to_end() -> None:
    w = np.array([0.5, 1.0, 1.5])
    assert portions(w, 0.25, 2.0).tolist() == [0.25, 1.0, 0.5]
    assert portions(w, 0.5, 1.5 + 1e-14).tolist() == [0.0, 1.0, 0.0]


# -------------------------------------------------------------------------------------------- what is told of it


@pytest.mark.parametrize("kind", ["grid", "normal"])
@every_rule
def test_an_explanation_says_how_much_of_the_answer_each_vector_is(name: str, kind: str) -> None:
    random = np.random.default_rng(9)
    for n in (5, 9, 12):
        x, w = vectors_of(kind, n, 1, random), weights_of("sizes", n, random)
        rule = fitting(RULES[name][0], w)
        x, w = np.vstack([x, [[np.nan]]]), np.append(w, 0)
        told = vg.explain(x, rule, weights=w)
        np.testing.assert_array_equal(told.aggregate, rule(x, weights=w))
        assert told.weight is not None
        assert told.weight[n] == 0
        np.testing.assert_allclose(told.weight[:n] @ x[:n], told.aggregate, rtol=1e-9, atol=1e-9)
        if name != "centered-clipping":  # which may lean on the last aggregate
            assert told.weight.sum() == pytest.approx(1)


def test_light_vectors_are_not_taken_for_rejected() -> None:
    x, w = np.random.default_rng(0).normal(size=(9, 300)), np.array([0.05, 1, 1, 1, 1, 1, 1, 1, 1])
    told = vg.explain(x, vg.TrimmedMean(1), weights=w)
    assert told.weight is not None
    assert told.weight[0] < 0.1 / 9
    assert not told.rejected.any()
    x[0] = 9
    assert vg.explain(x, vg.TrimmedMean(1), weights=w).rejected.tolist() == [True] + [False] * 8


PAGE = Path(__file__).parents[1] / "docs" / "howto" / "weights.md"


def test_the_page_runs_and_prints_what_it_shows(tmp_path: Path) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    code, printed = [t for kind, t in blocks if kind == "python"], [t for kind, t in blocks if not kind]
    (tmp_path / "page.py").write_text("\n".join(code), "utf-8")
    done = programs.run("page.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(printed)


def test_its_table_is_what_rules_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PAGE.parent))
    made = import_module("weights")
    assert made.held(made.SPREADS[-1]) == "11 to 3,783"
    assert made.table(made.SPREADS[-1]) in PAGE.read_text("utf-8")


def test_an_adversary_may_try_a_defence_with_the_weights_that_it_has() -> None:
    """The worst factor against a rule that weighs is another than against one that does not."""
    honest = torch.randn(7, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = np.array([1.5, 1, 1, 1, 1, 1, 0.5, 1.6, 1.4])
    for rule in (vg.Median(2), vg.MultiKrum(1), vg.Average()):
        defence = vg.ComposedDefence((), rule, weights=w)
        found = vg.WorstCase(directions=("little",), evaluations=12).search(honest, 2, defence=defence)
        sent = torch.cat([honest, found.vector.expand(2, -1)])
        torch.testing.assert_close(defence(sent), rule(sent, weights=w))
        assert found.damage == pytest.approx(float((rule(sent, weights=w) - honest.mean(0)).norm()))


def test_equal_scores_of_long_vectors_are_told_apart_in_double_precision() -> None:
    """Two crowds alike but for where they stand: float32 distances alone would choose by rounding."""
    random = np.random.default_rng(0)
    half = random.normal(size=(4, 30_000)).astype(np.float32)
    x, w = torch.from_numpy(np.concatenate([half + 1, -half - 1])), np.tile([1.0, 1.2, 0.9, 1.1], 2)
    for rule in (vg.Krum(1), vg.MultiKrum(1, m=3), vg.MultiKrum(1)):
        expected = rule(x, weights=w)
        for seed in range(4):
            order = np.random.default_rng(seed).permutation(8)
            torch.testing.assert_close(rule(x[order], weights=w[order]), expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- a user's own rules


class Quartiles(vg.Coordinatewise):
    """The mean of the middle half."""

    weighs = True

    @property
    def needs(self) -> tuple[str, int]:
        return "4f + 1", 4 * self.f + 1

    def statistic(self, n: int) -> tuple[int, int, int]:
        return n // 4, n - n // 4, 0

    def weighted(self, shares: Array) -> tuple[float, float, float, str]:
        n = len(shares)
        return n / 4, n - n / 4, 0.0, "mid"


class Pulled(vg.General):
    """The weighted mean of what is within twice the median distance of the weighted median."""

    weighs = True

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: torch.Tensor, previous: Any, shares: Array | None = None) -> torch.Tensor:
        finite = x.isfinite().all(1)
        if shares is None:
            vg.refuse_faulty(self, self.f, int((~finite).sum()))
        else:
            vg.refuse_overweight(self, shares, ~finite)
        w = torch.ones(len(x)).double() if shares is None else torch.from_numpy(shares)
        middle = vg.Median(self.f)(x.double(), weights=w)
        far = (x.double() - middle).norm(dim=1).nan_to_num(torch.inf)
        reach = 2 * vg.Median(self.f)(far.clamp(max=1e300).unsqueeze(1), weights=w)[0]
        near = far <= reach
        return (w[near] / w[near].sum() @ x[near].double()).to(x.dtype)


class Lightest(vg.Selecting):
    """The mean by weight of all but those of greatest score, of weight W_f."""

    weighs = True

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: vg.Geometry) -> Array:
        n, shares = geometry.n, np.ones(geometry.n) if geometry.shares is None else geometry.shares
        kept = n - heaviest(shares, self.f)
        near = np.argsort(geometry.distances, axis=1, kind="stable")
        parts = portions(shares[near], 0, kept)
        scores = (parts * np.where(parts > 0, np.take_along_axis(geometry.distances, near, 1), 0)).sum(1)
        order = geometry.smallest(scores, n)
        found = np.zeros(n)
        found[order] = portions(shares[order], 0, kept) / kept
        return found


@pytest.mark.parametrize("kind", [Quartiles, Pulled, Lightest])
def test_own_rules_that_weigh_are_held_to_it(kind: type[vg.Rule]) -> None:
    report = check_rule(kind)
    assert Check.WEIGHTS in report.passed
    x, w = np.random.default_rng(1).normal(size=(12, 3)), weights_of("sizes", 12, np.random.default_rng(2))
    algorithm = vg.Algorithm(pre=(vg.StaticClipping(9.0),), rule=kind(f=1))
    np.testing.assert_allclose(algorithm.aggregate(x, algorithm.init(0, 3, torch.float64), weights=w)[0],
                               kind(f=1)(x, weights=w), rtol=1e-12)  # fmt: skip


class ByNumber(Lightest):
    """Takes the last f away, however light they are."""

    weighs = True

    def weights(self, geometry: vg.Geometry) -> Array:
        shares = np.ones(geometry.n) if geometry.shares is None else geometry.shares
        found = np.zeros(geometry.n)
        order = geometry.smallest(np.sort(geometry.distances, 1)[:, : geometry.n - self.f].sum(1), geometry.n - self.f)
        found[order] = shares[order] / shares[order].sum()
        return found


class ByPlace(vg.Average):
    """Thinks that the first is the heaviest."""

    weighs = True

    def choose(self, n: int, geometry: Any, shares: Array | None = None) -> Array:
        return np.full(n, 1 / n) if shares is None else np.sort(shares)[::-1] / n


@pytest.mark.parametrize("kind", [ByNumber, ByPlace])
def test_what_weighs_otherwise_is_found_out(kind: type[vg.Rule]) -> None:
    with pytest.raises(vg.testing.ContractError) as error:
        check_rule(kind, without=[check for check in Check if check is not Check.WEIGHTS])
    assert [failure.check for failure in error.value.failures] == [Check.WEIGHTS]


def test_a_derived_rule_that_answers_otherwise_must_say_that_it_weighs() -> None:
    class Upper(vg.Median):
        def statistic(self, n: int) -> tuple[int, int, int]:
            return n // 2, n // 2 + 1, 0

    x, w = np.random.default_rng(1).normal(size=(9, 3)), np.arange(9) + 5.0
    assert np.isfinite(Upper(1)(x)).all()
    with pytest.raises(ValueError, match=r"\(Upper itself must say weighs = True, and heed them\)"):
        Upper(1)(x, weights=w)
    assert Check.WEIGHTS not in check_rule(Upper).passed

    class Named(vg.Median):
        """Answers as the median does."""

        title = "my median"

    np.testing.assert_array_equal(Named(1)(x, weights=w), vg.Median(1)(x, weights=w))

    class Silent(vg.Coordinatewise):
        weighs = True

        @property
        def needs(self) -> tuple[str, int]:
            return "2f + 1", 2 * self.f + 1

        def statistic(self, n: int) -> tuple[int, int, int]:
            return n // 2, n // 2 + 1, 0

    with pytest.raises(ValueError, match=r"Silent says weighs = True, and must write weighted\(self, shares\)"):
        Silent(1)(x, weights=w)

    class Wrong(Silent):
        def weighted(self, shares: Array) -> Any:
            return 3, 1, 0, "mid"

    class Unsaid(Silent):
        weighs = True
        weighted = Wrong.weighted

    with pytest.raises(ValueError, match=r"Unsaid.weighted must answer amounts 0 <= low <= high <= n"):
        Unsaid(1)(x, weights=w)

    class Deaf(vg.General):
        weighs = True

        @property
        def needs(self) -> tuple[str, int]:
            return "1", 1

        def combine(self, x: torch.Tensor, previous: Any) -> torch.Tensor:
            return x.mean(0)

    with pytest.raises(ValueError, match=r"Deaf.combine must be combine\(self, x, previous, shares\)"):
        Deaf(1)
