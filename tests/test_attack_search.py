"""Attacks that optimise, copy or search, against their definitions; the search for the worst against a dense one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import oracles
import varangian as vg
from varangian.core.attacks import ATTACKS, ComposedDefence, Knowledge, WorstCase
from varangian.core.attacks.search import LINES, parts
from varangian.core.attacks.trials import Trials, next_place
from varangian.core.explanation import explain
from varangian.core.randomness import generator
from varangian.core.specs import describe, make
from varangian.runs.fields import NAMED

SEEDS = range(25)


def honest_vectors(seed: int, dtype: type = np.float64, most: int = 24) -> tuple[np.ndarray, int]:
    """[h, d] and some f < h with h + f >= 2 f + 3; sizes and scales vary."""
    random = np.random.default_rng(seed)
    h, d = int(random.integers(4, most)), int(random.integers(1, 200))
    honest = random.normal(size=(h, d)) * 10.0 ** random.integers(-3, 4) + random.normal(size=d)
    return honest.astype(dtype), int(random.integers(1, h - 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", SEEDS)
def test_definitions(seed: int, dtype: type) -> None:
    honest, f = honest_vectors(seed, dtype)
    d = honest.shape[1]
    previous = np.random.default_rng(seed + 1000).normal(size=d).astype(dtype)
    pairs = (
        [(vg.MinMax(p)(honest, f), oracles.min_max(honest, f, p)) for p in ("std", "sign", "unit")]
        + [
            (vg.MinSum(p, bound)(honest, f), oracles.min_sum(honest, f, p, bound=bound))
            for p in ("std", "sign", "unit")
            for bound in ("max", "min")
        ]
        + [
            (vg.Mimic()(honest, f), oracles.mimic(honest, f)),
            (vg.AntiCGE()(honest, f), oracles.anti_cge(honest, f)),
            (vg.HiddenVulnerability(d // 2, -3.0)(honest, f), oracles.hidden_vulnerability(honest, f, d // 2, -3.0)),
            (vg.Fang()(honest, f), oracles.fang_krum(honest, f)),
            (vg.Fang(distance="squared")(honest, f), oracles.fang_krum(honest, f, distance="squared")),
        ]
    )
    if d > 1:  # in one dimension nothing is orthogonal
        pairs += [
            (vg.ROP(2.0)(honest, f), oracles.rop(honest, f, 2.0)),
            (
                vg.ROP(2.0, 0.3, 0.7, 200.0)(honest, f, previous=previous),
                oracles.rop(honest, f, 2.0, previous, previous, 0.3, 0.7, 200.0),
            ),
        ]
    tolerance = 1e-9 if dtype == np.float64 else 2e-5
    size = float(np.abs(honest).max())
    for found, expected in pairs:
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(size, np.abs(expected).max()))


@pytest.mark.parametrize("seed", SEEDS)
def test_min_max_and_min_sum_touch_their_bounds(seed: int) -> None:
    honest, f = honest_vectors(seed)
    for p in ("std", "sign", "unit"):
        m = vg.MinMax(p)(honest, f)[0]
        reach = np.linalg.norm(honest - m, axis=1).max()
        assert reach == pytest.approx(np.sqrt(oracles.squared_distances(honest).max()), rel=1e-9)
        m = vg.MinSum(p)(honest, f)[0]
        total = np.square(honest - m).sum()
        assert total == pytest.approx(oracles.squared_distances(honest).sum(1).max(), rel=1e-9)


def test_mimic_copies_an_honest_worker_to_the_bit_and_never_a_broken_one() -> None:
    honest, f = honest_vectors(3, np.float32)
    assert (vg.Mimic()(honest, f)[0] == honest).all(1).any()
    order = np.random.default_rng(0).permutation(len(honest))
    np.testing.assert_array_equal(vg.Mimic()(honest[order], f), vg.Mimic()(honest, f))
    honest[0] = np.nan
    assert np.isfinite(vg.Mimic()(honest, f)).all()


def test_cge_keeps_what_was_made_against_it() -> None:
    honest, f = honest_vectors(5)
    x = np.concatenate([honest, vg.AntiCGE()(honest, f)])
    kept = explain(x, vg.ComparativeGradientElimination(f))
    assert (kept.weight[len(honest) :] > 0).all()
    with pytest.raises(ValueError, match=r"^AntiCGE needs more honest vectors than the f = 3 that attack, got 3\.$"):
        vg.AntiCGE()(np.ones((3, 2)), 3)


def test_krum_selects_what_fang_made_and_would_not_at_twice_the_length() -> None:
    honest, f = 0.05 * np.random.default_rng(0).normal(size=(9, 30)) + 0.01, 6
    sent = vg.Fang()(honest, f)
    np.testing.assert_array_equal(vg.Krum(f)(np.concatenate([honest, sent])), sent[0])
    assert not (vg.Krum(f)(np.concatenate([honest, 2 * sent])) == 2 * sent[0]).all()
    message = r"^Fang needs n >= 2f \+ 3 = 11 vectors, of which f = 4 attack, to try Krum, got 9"
    with pytest.raises(ValueError, match=message):
        vg.Fang()(np.ones((5, 2)), 4)


def test_fang_against_the_trimmed_mean() -> None:
    honest, f = honest_vectors(9)
    attack = vg.Fang("trimmed-mean")
    sent = attack(honest, f, random=generator(4, "attack", 2))
    share = generator(4, "attack", 2).random(sent.shape, dtype=np.float32)
    np.testing.assert_allclose(sent, oracles.fang_trimmed_mean(honest, f, share.astype(float)), rtol=1e-12)
    beyond = np.where(honest.mean(0) > 0, sent <= honest.min(0), sent >= honest.max(0))
    assert beyond.all()


def test_label_flip_hands_over_what_its_workers_learnt_and_says_what_it_lacks() -> None:
    honest, flipped = torch.randn(6, 3), torch.randn(2, 3)
    sent = vg.LabelFlip()(honest, 2, poisoned=flipped)
    assert torch.equal(sent, flipped)
    assert sent.data_ptr() != flipped.data_ptr()
    with pytest.raises(
        ValueError, match=r"^LabelFlip needs poisoned, the vectors \[2, 3\] of f workers.*got 'nothing'\.$"
    ):
        vg.LabelFlip()(honest, 2)
    with pytest.raises(ValueError, match=r"got \[1, 3\]\.$"):
        vg.LabelFlip()(honest, 2, poisoned=flipped[:1])


def test_rop_sends_nothing_wild_where_nothing_is_orthogonal() -> None:
    assert np.isfinite(vg.ROP()(np.ones((5, 1)), 2)).all()
    assert np.isfinite(vg.ROP()(np.zeros((5, 3)), 2)).all()


@pytest.mark.parametrize("name", sorted({name for name in ATTACKS if not make("attack", name, ATTACKS).poisons}))
def test_honest_vectors_that_are_not_finite_or_all_equal_stop_no_attack(name: str) -> None:
    attack = ATTACKS[name]()
    for value in (0.0, 1.0, float("nan"), float("inf"), 3e38):
        honest = np.full((9, 4), value, np.float32)
        if np.isfinite(value):
            attack(honest, 2, vg.Median(2))
        else:
            attack(honest, 2, lambda x: x[0])


# ------------------------------------------------------------------------------------------------------ the worst

DEFENCES = [
    ((), vg.Average()),
    ((), vg.Krum(3)),
    ((), vg.MultiKrum(3)),
    ((), vg.MinimumDiameterAveraging(3)),
    ((), vg.GeometricMedian(3)),
    ((), vg.ComparativeGradientElimination(3)),
    ((), vg.CenteredClipping(3, tau=5.0, iterations=2)),
    ((vg.NearestNeighborMixing(3),), vg.MultiKrum(3)),
    ((vg.AdaptiveClipping(3), vg.NearestNeighborMixing(3)), vg.MultiKrum(3)),
    ((vg.Bucketing(2),), vg.Average()),
    ((vg.StaticClipping(2.0),), vg.FLTrust(3)),
]


def knowledge(pre: tuple[vg.Mixing, ...], rule: vg.Rule, dtype: torch.dtype = torch.float64) -> Knowledge:
    torch_random = torch.Generator().manual_seed(3)
    honest = (torch.randn(10, 40, generator=torch_random, dtype=torch.float64) + 0.3).to(dtype)
    previous = honest.mean(0) * 0.9
    return Knowledge(honest, 3, ComposedDefence(pre, rule, previous), previous, generator(0, "attack"))


@pytest.mark.parametrize(("pre", "rule"), DEFENCES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_trials_on_distances_agree_with_the_defence(
    pre: tuple[vg.Mixing, ...], rule: vg.Rule, dtype: torch.dtype
) -> None:
    seen = knowledge(pre, rule, dtype)
    units = [LINES[name].craft(seen) - seen.mean for name in ("little", "empire", "mimic")]
    trials = Trials(seen, units)
    assert trials.geometry is not None
    assert seen.defence is not None
    for line in range(3):
        for scale in (-7.0, -1.0, 0.31, 1.7, 60.0):
            x = torch.cat([seen.honest, trials.vector(line, scale).expand(3, -1)])
            expected = float((seen.defence(x).double() - seen.mean.double()).norm())
            tolerance = 1e-6 if dtype == torch.float64 else 2e-3
            assert trials.damages([(line, scale)])[0] == pytest.approx(expected, rel=tolerance, abs=1e-5)


@pytest.mark.parametrize(
    ("pre", "rule"),
    [*DEFENCES[1:], ((), vg.Median(3)), ((), vg.TrimmedMean(3)), ((vg.NearestNeighborMixing(3),), vg.Median(3))],
    ids=str,
)
def test_the_search_comes_close_to_a_dense_one(pre: tuple[vg.Mixing, ...], rule: vg.Rule) -> None:
    seen = knowledge(pre, rule)
    names = ("little", "empire", "min-max")
    found = WorstCase(names).find(seen)
    assert seen.defence is not None
    x = torch.cat([seen.honest, found.vector.expand(3, -1)])
    assert found.damage == pytest.approx(float((seen.defence(x) - seen.mean).norm()), rel=1e-5)
    trials = Trials(seen, [LINES[name].craft(seen) - seen.mean for name in names])
    grid = [s * 10**e for e in np.linspace(-1.5, 1.5, 61) for s in (-1, 1)]
    dense = max(trials.damages([(line, scale) for line in range(3) for scale in grid]))
    assert found.damage >= 0.8 * dense
    again = WorstCase(names).find(seen)
    assert (again.factor, again.damage) == (found.factor, found.damage)


def test_what_is_found_is_in_units_of_the_attack_that_names_the_line() -> None:
    honest, f = honest_vectors(11)
    found = vg.WorstCase(("little",)).search(honest, f, vg.Median(f))
    np.testing.assert_allclose(found.vector, vg.Little(found.factor)(honest, f)[0], rtol=1e-8, atol=1e-12)
    found = vg.WorstCase(("empire",)).search(honest, f, vg.Median(f))
    np.testing.assert_allclose(found.vector, vg.Empire(found.factor)(honest, f)[0], rtol=1e-8, atol=1e-12)
    own = vg.WorstCase((vg.SignFlip(),)).search(honest, f, vg.Median(f))
    assert own.direction == "sign-flip"


@pytest.mark.parametrize("evaluations", [2, 3, 6, 7, 24])
def test_the_budget_is_kept_and_the_defence_sees_no_more(evaluations: int) -> None:
    honest, f = honest_vectors(12)
    calls = []

    def defence(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return x.median(0).values

    vg.WorstCase(evaluations=evaluations).search(honest, f, defence)
    assert calls == [(len(honest) + f, honest.shape[1])] * evaluations


def test_no_defence_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^WorstCase needs a defence to try: defence=rule.*, got None\.$"):
        vg.WorstCase()(np.ones((5, 2)), 2)
    with pytest.raises(ValueError, match=r"Did you mean 'little'"):
        vg.WorstCase(("litle",))


def test_an_algorithm_is_a_defence_and_is_not_advanced() -> None:
    algorithm = vg.Algorithm(
        pre=(vg.NearestNeighborMixing(2),), rule=vg.CenteredClipping(2), server=(vg.Momentum(0.9),)
    )
    honest = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    sent = vg.WorstCase()(honest, 2, defence=algorithm, previous=torch.zeros(5))
    assert torch.equal(sent, vg.WorstCase()(honest, 2, defence=algorithm, previous=torch.zeros(5)))
    assert sent.shape == (2, 5)


def test_where_to_try_next() -> None:
    assert next_place({0: 1.0}) == 1
    assert next_place({0: 1.0, 1: 0.5}) == -1
    assert next_place({-1: 0.1, 0: 1.0, 1: 0.5}) == 0.5
    assert next_place({-1: 0.1, 0: 1.0, 0.5: 0.5}) == -0.5


@pytest.mark.parametrize("name", ATTACKS)
def test_specs_come_back(name: str) -> None:
    attack = make("attack", name, ATTACKS)
    assert make("attack", describe(attack, NAMED), ATTACKS) == attack
    assert describe(attack, NAMED) == name
    assert make("attack", 'worst-case(directions=("little", "mimic"), evaluations=9)', ATTACKS) == vg.WorstCase(
        ("little", "mimic"), 9
    )


@dataclass(frozen=True)
class Through(vg.Attack):
    """Sends what another attack does."""

    other: vg.Attack
    others: tuple[vg.Attack, ...] = ()

    def craft(self, seen: Knowledge) -> torch.Tensor:
        return self.other.craft(seen)


def test_the_classes_that_an_attack_is_made_of() -> None:
    made = Through(vg.WorstCase(("little", "mimic")), (vg.Zero(), Through(vg.Empire())))
    kinds = [Through, vg.WorstCase, vg.Little, vg.Mimic, vg.Zero, Through, vg.Empire]
    assert list(parts(made)) == kinds


def test_one_attacker_searches_along_an_attack_that_sends_several_vectors() -> None:
    """The first of them is the point on the line; of one attacker there is no other."""
    seen = replace(knowledge((), vg.Median(f=1)), f=1)
    found = WorstCase(("divided",), evaluations=4).find(seen)
    line = vg.Divided().craft(seen)[0] - seen.mean
    torch.testing.assert_close((found.vector - seen.mean) / line, torch.full_like(line, found.factor))


def test_where_no_line_is_one_nothing_is_found() -> None:
    honest = torch.zeros(10, 40, dtype=torch.float64)
    found = WorstCase(("zero",)).find(replace(knowledge((), vg.Median(f=3)), honest=honest))
    assert (found.direction, found.factor, found.damage) == ("none", 0.0, 0.0)
    assert found.vector.eq(0).all()
