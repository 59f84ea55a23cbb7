"""Every rule and mixing against its oracle, against the golden files, and against the laws of its definition."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import golden_conventions as golden
import oracles
import varangian as vg
from varangian.core import kernels, mixing, rules
from varangian.core.geometry import Geometry, Held, _refined
from varangian.core.kernels.cpu.sizes import _order_statistic
from varangian.core.mixing import AdaptiveClipping, Bucketing, NearestNeighborMixing, StaticClipping
from varangian.core.randomness import generator
from varangian.core.rules import (
    CAF,
    LASA,
    RULES,
    SMEA,
    Aksel,
    Average,
    Bulyan,
    CenteredClipping,
    ComparativeGradientElimination,
    DivideAndConquer,
    FLTrust,
    GeometricMedian,
    Krum,
    MeaMed,
    Median,
    Medoid,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    Rule,
    SignGuard,
    TrimmedMean,
)
from varangian.core.stages import decide, weigh

Array = np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# The catalogue: rules beside their oracles
# ---------------------------------------------------------------------------------------------------------------------


def dnc(f: int) -> DivideAndConquer:
    return DivideAndConquer(f, rounds=2, sample=30)


MORE = {"centered-clipping", "dnc", "signguard", "fltrust"}  # whose oracles are told more than f
CATALOGUE: dict[str, tuple[Callable[[int], Rule], Callable[[Array, int], Array]]] = {
    **{name: (RULES[name], getattr(oracles, name.replace("-", "_"))) for name in RULES if name not in MORE},
    "multi-krum-plain": (
        lambda f: MultiKrum(f, neighbours="n-f-1", distance="plain"),
        lambda x, f: oracles.multi_krum(x, f, neighbours="n-f-1", distance="plain"),
    ),
    "bulyan-multi-krum": (
        lambda f: Bulyan(f, base="multi-krum", distance="plain"),
        lambda x, f: oracles.bulyan(x, f, base="multi-krum", distance="plain"),
    ),
    "aksel-n-f": (
        lambda f: Aksel(f, mode="n-f", even="lower"),
        lambda x, f: oracles.aksel(x, f, mode="n-f", even="lower"),
    ),
    "centered-clipping": (
        lambda f: CenteredClipping(f, tau=1.0, iterations=3),
        lambda x, f: oracles.centered_clipping(x, f, tau=1.0, iterations=3),
    ),
    "dnc": (dnc, lambda x, f: oracles.dnc(x, f, [dnc(f).coordinates(x.shape[1], r) for r in range(2)])),
    "signguard": (SignGuard, lambda x, f: oracles.signguard(x, f, SignGuard(f).coordinates(x.shape[1]))),
    "lasa-layers": (
        lambda f: LASA(f, layers=(1,), sparsity=0.5),
        lambda x, f: oracles.lasa(x, f, layers=[slice(0, 1), slice(1, x.shape[1])], sparsity=0.5),
    ),
}
SETTINGS = {"fltrust": FLTrust}
ALL: dict[str, Callable[[int], Rule]] = {name: make for name, (make, _) in CATALOGUE.items()} | SETTINGS
FRAGILE = {"average", "foolsgold"}  # no defence against a single vector
FEDERATED = {"dnc", "signguard", "clipped-clustering", "foolsgold", "flame", "lasa", "lasa-layers", "fltrust"}


def n_for(name: str, f: int, more: int = 0) -> int:
    return max(ALL[name](f).min_n, 2 * f + 1, 3) + more


def vectors(n: int, d: int, f: int, seed: int = 0) -> Iterator[tuple[str, Array]]:
    """[n, d] in float32, the f last ones Byzantine."""
    rng = np.random.default_rng(seed)
    yield "random", rng.normal(size=(n, d))
    yield "clustered", rng.normal(size=(n, d)) * 1e-3 + 5 * rng.normal(size=d)
    for size in (1e2, 1e4, 1e6):
        x = rng.normal(size=(n, d))
        x[n - f :] = size
        yield f"far-{size:g}", x
        x = rng.normal(size=(n, d)) + 3
        x[n - f :] *= -size
        yield f"scaled-{size:g}", x
    x = rng.normal(size=(n, d))
    x[n - f :] = -0.1 * x[: n - f].mean(0)
    yield "empire", x


def error(actual: Any, expected: Array, x: Array, f: int) -> float:
    """Largest difference, relative to the honest vectors (or to what the definition answers, if greater)."""
    scale = max(np.abs(x[: len(x) - f]).max(), np.abs(expected).max())
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / scale)


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize(("f", "d", "more"), [(0, 3, 2), (1, 2, 0), (2, 4, 1), (2, 40, 0), (3, 5, 2)])
def test_rule_follows_its_definition(name: str, f: int, d: int, more: int) -> None:
    make, oracle = CATALOGUE[name]
    n = n_for(name, f, more)
    for kind, x64 in vectors(n, d, f, seed=n):
        x = x64.astype(np.float32)
        try:
            expected = oracle(x.astype(np.float64), f)
        except AssertionError:  # the paper leaves it undefined
            assert np.isfinite(make(f)(x)).all()
            continue
        # The oracle of caf takes its vectors as they are: beside far ones it is right to 1e-4 only.
        assert error(make(f)(x), expected, x, f) < (1e-4 if name == "caf" else 1e-5), kind


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - FEDERATED - {"monna"}))
def test_duplicates_and_lattices(name: str) -> None:
    make, oracle = CATALOGUE[name]
    rng = np.random.default_rng(3)
    for f in (0, 1, 2):
        n = n_for(name, f, 1)
        x = rng.normal(size=(n, 3))
        x[1] = x[2] = x[0]
        assert error(make(f)(x), oracle(x, f), x, f) < 1e-6
        same = np.tile(x[:1], (n, 1))
        np.testing.assert_allclose(make(f)(same), oracle(same, f), rtol=1e-6)


@pytest.mark.parametrize("name", [*sorted(set(ALL) - {"average"})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_hostile_rows_never_spoil_the_answer(name: str, dtype: torch.dtype) -> None:
    f, d = 2, 6
    n = n_for(name, f, 1)
    honest = torch.from_numpy(np.random.default_rng(5).normal(size=(n - f, d))).to(dtype)
    most = float(torch.finfo(dtype).max)
    values = [math.nan, math.inf, -math.inf, most / 4, -most / 4, 1e-40, 0.0]
    for a in values:
        for b in values:
            hostile = torch.zeros(f, d, dtype=dtype)
            hostile[0], hostile[1, ::2] = a, b
            x = torch.cat([honest, hostile])
            before = x.clone()
            out = ALL[name](f)(x, previous=honest[0])
            assert torch.equal(x.nan_to_num(), before.nan_to_num())
            assert out.dtype == dtype
            assert out.shape == (d,)
            assert torch.isfinite(out).all(), (a, b)
            if name not in FRAGILE | {"dnc"}:
                assert out.abs().max() < 10 * honest.abs().max(), (a, b)


FAR = sorted(set(CATALOGUE) - FEDERATED - {"average"})


@pytest.mark.parametrize("name", FAR)
def test_very_far_rows_answer_as_far_rows(name: str) -> None:
    """At 1e30 the oracles drown in rounding: there, the answer is that for the same directions at 1e9, in the limit."""
    make, oracle = CATALOGUE[name]
    for f, d in ((1, 2), (2, 5), (2, 50)):
        n = n_for(name, f, 1)
        rng = np.random.default_rng(d)
        honest = rng.normal(size=(n - f, d)) + 1
        directions = rng.normal(size=(f, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        near = np.concatenate([honest, 1e9 * directions])
        far = np.concatenate([honest, 1e30 * directions]).astype(np.float32)
        if name == "centered-clipping":
            near = near[: n - f]
            near = np.concatenate([near, 1e7 * directions])
        assert error(make(f)(far), oracle(near, f), far, f) < 1e-5


@pytest.mark.parametrize("name", sorted(set(ALL) - {"average", "foolsgold", "fltrust"}))
def test_more_than_f_faulty_rows_are_refused(name: str) -> None:
    f = 1
    x = torch.ones(n_for(name, f, 3), 4)
    x[-2:, 1] = torch.nan
    with pytest.raises(ValueError, match="tolerates 1 vectors with NaN or infinity, got 2"):
        ALL[name](f)(x)


def test_an_error_names_object_rule_and_value() -> None:
    with pytest.raises(ValueError, match=r"^MultiKrum\(f=24.*\) needs n >= 2f \+ 3 = 51 vectors, got 40\.$"):
        MultiKrum(24)(torch.zeros(40, 2))
    for name, make in ALL.items():
        rule = make(3)
        if rule.min_n > 1:
            with pytest.raises(ValueError, match=rf"needs n >= .*{rule.min_n} vectors, got {rule.min_n - 1}"):
                rule(torch.zeros(rule.min_n - 1, 2))
        root = torch.ones(2) if rule.needs_root else None
        assert torch.isfinite(rule(torch.ones(rule.min_n, 2), previous=root)).all(), name
    with pytest.raises(ValueError, match="SMEA needs at most 2,000,000 subsets"):
        SMEA(20)(torch.randn(50, 2))
    with pytest.raises(ValueError, match=r"MoNNA\(f=1\) needs a finite pivot"):
        MoNNA(1)(torch.tensor([[math.nan], [1.0], [2.0]]))
    with pytest.raises(ValueError, match=r"CenteredClipping\(f=1\) needs a finite previous"):
        CenteredClipping(1)(torch.ones(3, 2), previous=torch.full((2,), math.inf))


# ---------------------------------------------------------------------------------------------------------------------
# Golden files
# ---------------------------------------------------------------------------------------------------------------------

CASES = [case for case in golden.cases() if not case[1].startswith("attack:")]


@pytest.mark.parametrize(("case", "name", "x", "f", "expected"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_golden(case: int, name: str, x: Array, f: int, expected: Array) -> None:
    names = {**vars(rules), **vars(mixing), "f": f, "n": len(x)}
    actual = eval(golden.CONSTRUCTORS[name], names)(x)
    assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-5


def test_published_names() -> None:
    names = ("krum", "median", "trmean", "phocas", "meamed", "bulyan", "brute", "aksel", "cge", "average", "mda")
    for name in names:
        assert rules.published(name, f=1).f == 1
    assert rules.published("brute", 2) == rules.published("mda", 2) == MinimumDiameterAveraging(2, ties="position")
    assert rules.published("aksel", 2) == Aksel(2, mode="mid", even="lower")
    with pytest.raises(ValueError, match="unknown rule with published conventions 'smea'"):
        rules.published("smea", 1)


# ---------------------------------------------------------------------------------------------------------------------
# Laws
# ---------------------------------------------------------------------------------------------------------------------

# The pivot is a position; Sybils are told by cosines, which a common offset changes.
SYMMETRIC = sorted(set(ALL) - {"monna"})
TRANSLATING = [*sorted(set(ALL) - FEDERATED - {"cge", "centered-clipping"}), "dnc"]
SCALING = sorted(set(ALL) - {"centered-clipping"})
IDEMPOTENT = sorted(set(ALL) - {"foolsgold", "centered-clipping", "lasa", "lasa-layers"})


@st.composite
def inputs(draw: st.DrawFn, names: list[str]) -> tuple[str, int, Array, np.random.Generator]:
    name, f = draw(st.sampled_from(names)), draw(st.integers(0, 2))
    n, d = n_for(name, f, draw(st.integers(0, 3))), draw(st.integers(3, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return name, f, rng.normal(size=(n, d)), rng


@settings(max_examples=150, deadline=None)
@given(inputs(SYMMETRIC))
def test_the_order_of_vectors_does_not_matter(case: tuple[str, int, Array, np.random.Generator]) -> None:
    name, f, x, rng = case
    x[-1] = x[0]
    root = x.mean(0)
    shuffled = x[rng.permutation(len(x))]
    rule = ALL[name](f)
    np.testing.assert_allclose(rule(shuffled, previous=root), rule(x, previous=root), atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(inputs(TRANSLATING), st.floats(-10, 10))
def test_translation(case: tuple[str, int, Array, np.random.Generator], offset: float) -> None:
    name, f, x, _ = case
    np.testing.assert_allclose(ALL[name](f)(x + offset), ALL[name](f)(x) + offset, atol=1e-8)


@settings(max_examples=100, deadline=None)
@given(inputs(SCALING), st.sampled_from([1e-20, 0.25, 3.0, 1e15]))
def test_scale(case: tuple[str, int, Array, np.random.Generator], factor: float) -> None:
    name, f, x, _ = case
    rule, root = ALL[name](f), x.mean(0)
    expected = factor * rule(x, previous=root)
    np.testing.assert_allclose(rule(factor * x, previous=factor * root), expected, atol=1e-8 * factor)


@pytest.mark.parametrize("name", IDEMPOTENT)
@pytest.mark.parametrize("f", [0, 2])
def test_unanimity(name: str, f: int) -> None:
    x = np.tile(np.random.default_rng(1).normal(size=5), (n_for(name, f, 1), 1)).astype(np.float32)
    np.testing.assert_allclose(ALL[name](f)(x, previous=x[0]), x[0], rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_kinds_and_layouts(name: str) -> None:
    rule = ALL[name](1)
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(n_for(name, 1, 1), 2 * 7))).float()
    strided = x[:, ::2]
    root = strided.mean(0)
    expected = rule(strided.contiguous(), previous=root)
    torch.testing.assert_close(rule(strided, previous=root), expected)
    assert torch.equal(rule(x[:, ::2], previous=root), rule(x[:, ::2], previous=root))
    from_list = rule([row.numpy() for row in strided.contiguous()], previous=root.numpy())
    assert isinstance(from_list, np.ndarray)
    np.testing.assert_array_equal(from_list, expected.numpy())
    single = rule(x[:, :1], previous=root[:1]) if name != "lasa-layers" else expected[:1]
    assert single.shape == (1,)
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        half = strided.to(dtype)
        exact = rule(half.double(), previous=root.to(dtype).double())
        torch.testing.assert_close(rule(half, previous=root.to(dtype)).double(), exact, atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# What is particular to some rules
# ---------------------------------------------------------------------------------------------------------------------


def test_centered_clipping_starts_at_the_last_aggregate() -> None:
    rng = np.random.default_rng(4)
    for spread, offset, tau in ((1.0, 0.0, 1.0), (1.0, 1e4, 10.0), (1e-3, 5.0, 0.01), (1.0, 3.0, 1e6)):
        x = spread * rng.normal(size=(9, 20)) + offset
        x[-3:] = 1e12 * rng.normal(size=(3, 20))
        previous = rng.normal(size=20)
        actual = CenteredClipping(3, tau=tau, iterations=5)(x, previous=previous)
        expected = oracles.centered_clipping(x, 3, tau=tau, iterations=5, previous=previous)
        np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(expected).max())


def test_fltrust_measures_trust_whatever_the_sizes() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(9, 20)) + 0.3
    root = 1e-6 * (x.mean(0) + 0.1 * rng.normal(size=20))
    x[-3:] *= 1e9
    x[0] *= 1e-9
    np.testing.assert_allclose(FLTrust(3)(x, previous=root), oracles.fltrust(x, 3, root), rtol=1e-6)
    assert not FLTrust(1)(-np.ones((3, 2)), previous=np.ones(2)).any()


def test_fltrust_in_an_algorithm_is_refused() -> None:
    """Its root vector would be the last aggregate, which starts at zero and then stays there."""
    said = r"FLTrust\(f=2\) needs a root vector, which an algorithm does not have; call the rule itself"
    with pytest.raises(ValueError, match=said):
        vg.Algorithm(rule=FLTrust(2))
    with pytest.raises(vg.ConfigurationError, match="rule: Algorithm: " + said):
        vg.Experiment(rule="fltrust", workers=11, byzantine=2)
    assert [name for name, rule in RULES.items() if rule.needs_root] == ["fltrust"]


@pytest.mark.parametrize("rule", [ComparativeGradientElimination(2), MoNNA(2, pivot=3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_looks_from_one_point_measures_from_there_only(rule: Rule, dtype: torch.dtype) -> None:
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[6], x[7, 3], x[8] = x[1], torch.nan, x[0]
    decision = decide(x, (), rule)
    assert decision.geometry is not None
    assert np.isnan(decision.geometry.distances[0, 1])
    pairs = Geometry.of(x)
    np.testing.assert_array_equal(decision.geometry.finite, pairs.finite)
    np.testing.assert_array_equal(decision.table, rule.choose(9, pairs))
    with pytest.raises(ValueError, match="tolerates 2 vectors with NaN or infinity, got 3"):
        rule(torch.cat([x, x[7:8], x[7:8]]))


ONE_POINT: dict[str, tuple[tuple[mixing.Mixing, ...], Rule]] = {
    "cge": ((), ComparativeGradientElimination(2)),
    "monna": ((), MoNNA(2, pivot=3)),
    "fltrust": ((), FLTrust(2)),
    "centered-clipping": ((), CenteredClipping(2, tau=2.0, iterations=3)),
    "arc, median": ((AdaptiveClipping(2),), Median(2)),
    "arc, average": ((AdaptiveClipping(2),), Average()),
    "bucketing, median": ((Bucketing(s=2),), Median(1)),
    "arc, clipping, signguard": ((AdaptiveClipping(2), StaticClipping(2.0)), SignGuard(2)),
    "clipping, cge": ((StaticClipping(2.0),), ComparativeGradientElimination(2)),
    "arc, monna": ((AdaptiveClipping(2),), MoNNA(2, pivot=3)),
    "arc, clipping, centered-clipping": (
        (AdaptiveClipping(2), StaticClipping(2.0)),
        CenteredClipping(2, tau=2.0, iterations=3),
    ),
}
"""Stages that look at norms, or at distances to one point."""


@pytest.mark.parametrize("name", ONE_POINT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(1.0, 1.0), (1.0, 1e9), (1e-6, 1e9)])
def test_what_looks_from_one_point_reads_the_vectors_once(
    name: str, dtype: torch.dtype, sizes: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No distances between other vectors are measured, however long some are; and the answer is that of them all."""
    pre, rule = ONE_POINT[name]
    x = torch.randn(9, 60, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.3
    x[7:] *= sizes[1]
    previous = sizes[0] * (x[0] + 0.1 * x[1]) if rule.uses_previous else None
    x, previous = x.to(dtype), None if previous is None else previous.to(dtype)
    extra = None if previous is None else previous.unsqueeze(0)
    everything = Geometry.of(x, extra).measured()
    table, _ = weigh(9, pre, rule, everything)
    expected = rule.apply(x, table, previous)
    monkeypatch.setattr(kernels, "squared_distances", None)
    monkeypatch.setattr(Held, "measured", None)
    actual = decide(x, pre, rule, previous=previous).aggregate
    limit = 1e-9 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit * float(expected.abs().max()))


def test_clippings_alone_measure_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "squared_distances", None)
    x = np.random.default_rng(0).normal(size=(9, 50)).astype(np.float32)
    x[4:] *= np.float32(1e20)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(AdaptiveClipping(4)(x), oracles.arc(wide, 4), rtol=1e-6)
    np.testing.assert_allclose(StaticClipping(2.0)(x), oracles.static_clipping(wide, 2.0), rtol=1e-6)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("d", [3, 9000])
def test_centered_clipping_is_exact_wherever_it_starts(seed: int, d: int) -> None:
    """From far away, from among the vectors, and from close to vectors that lie nearly on a line."""
    random = generator(seed, "centered clipping")
    n, tau = 8, float(10.0 ** random.integers(-3, 2))
    x = near_a_line(random, n, d, float(10.0 ** random.integers(-6, 1))).astype(np.float32)
    previous = x.astype(np.float64).mean(0) + 10.0 ** random.integers(-6, 3) * random.standard_normal(d) / d**0.5
    previous = previous.astype(np.float32)
    for stages in ((), (NearestNeighborMixing(2),)):
        algorithm = vg.Algorithm(pre=stages, rule=CenteredClipping(2, tau=tau, iterations=4))
        state = replace(algorithm.init(n, d), previous=torch.from_numpy(previous))
        actual = algorithm.decide(torch.from_numpy(x), state).aggregate.double().numpy()
        wide = x.astype(np.float64)
        for stage in stages:
            wide = oracles.nnm(wide, stage.f)
        expected = oracles.centered_clipping(wide, 2, tau=tau, iterations=4, previous=previous)
        usual = np.median(oracles.squared_distances(wide)) ** 0.5
        assert np.linalg.norm(actual - expected) < 1e-6 * usual + 1e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("d", [1, 9000])
@pytest.mark.parametrize("name", ["krum", "multi-krum", "bulyan", "medoid"])
def test_ties_of_decimals_are_ties(name: str, d: int) -> None:
    """Distances of .4, 2.6, 3, 5.1, 6.3 are no numbers of float32, yet equal scores are equal: in float32 as in
    float64, whichever way the vectors are turned."""
    random = generator(d, "decimals")
    make = {
        "krum": lambda: Krum(0, distance="plain"),
        "multi-krum": lambda: MultiKrum(1, m=2, distance="plain"),
        "bulyan": lambda: Bulyan(1, distance="plain"),
        "medoid": lambda: Medoid(1),
    }[name]
    for _ in range(30):
        values = np.array([0.4, 2.6, 3.0, 5.1, 6.3]) if name == "krum" else random.integers(-40, 41, 7) / 10
        x = np.zeros((values.size, d), np.float32)
        x[:, d // 2] = values
        answer = make()(x)
        np.testing.assert_array_equal(answer, make()(x.astype(np.float64)).astype(np.float32))
        np.testing.assert_array_equal(answer, make()(x[random.permutation(len(x))]))
    if name == "krum":
        assert answer[d // 2] == np.float32(2.6)


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("rule", [Bulyan(3), Krum(3), MultiKrum(3), Medoid(3), Bulyan(3, selection="frozen")], ids=str)
def test_equal_scores_of_long_vectors_are_ties(rule: Rule, scale: float | None) -> None:
    """Vectors of one norm beside a null one have equal scores; sums in float32 are not to choose between them."""
    for seed in range(4):
        random = generator(seed, "equal scores")
        x = random.standard_normal((15, 20_001))
        x *= (2.5 if scale else 1) / np.linalg.norm(x, axis=1, keepdims=True)
        x[3], x[7], x[8] = 0, 1e30 / 20_001**0.5, x[9]
        x = x.astype(np.float32)
        algorithm = vg.Algorithm(pre=() if scale is None else (StaticClipping(scale),), rule=rule)
        answers = [
            algorithm.decide(torch.from_numpy(v), algorithm.init(*v.shape)).aggregate.double().numpy()
            for v in (x, x.astype(np.float64), x[random.permutation(15)])
        ]
        for other in answers[1:]:
            np.testing.assert_allclose(other, answers[0], rtol=0, atol=1e-6 * np.abs(answers[0]).max() + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["mda", "krum", "multi-krum", "medoid", "smea", "caf", "geometric-median", "bulyan"])
def test_the_order_of_grids_behind_mixings_does_not_matter(name: str, dtype: torch.dtype) -> None:
    """Mixtures of whole numbers are often equal, but for rounding, which follows the order of the vectors."""
    pres = ((NearestNeighborMixing(2),), (AdaptiveClipping(2), NearestNeighborMixing(2)), (AdaptiveClipping(2),))
    for seed, pre in itertools.product(range(50), pres):
        random = generator(seed, "grids")
        n, d = 7 + seed % 3, 1 + seed % 4
        x = torch.from_numpy(random.integers(-2, 3, (n, d))).to(dtype)
        algorithm = vg.Algorithm(pre=pre, rule=ALL[name](1))
        state = algorithm.init(n, d, dtype)
        one = algorithm.decide(x, state).aggregate
        other = algorithm.decide(x[random.permutation(n).tolist()], state).aggregate
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_medoids_tie_beside_a_vector_however_far() -> None:
    """Of an even number of values on a line the two inner ones have equal sums, whatever the outermost is."""
    for seed in range(30):
        random = generator(seed, "tie beside")
        x = random.standard_normal((6, 1))
        x[5] = 10.0 ** random.integers(2, 29)
        inner = np.sort(x, axis=0)[2]
        assert Medoid(2)(x) == Medoid(2)(x[random.permutation(6)]) == inner


def test_ranks_of_rows_end_whatever_they_hold() -> None:
    rows = np.array([[np.nan, 1.0], [np.nan, 1.0], [np.nan, 0.0]])
    for slack in (None, np.zeros_like(rows)):
        assert _refined(np.zeros(3, int), rows, slack).size == 3


def test_many_copies_tie_without_being_read_often() -> None:
    """Byzantine workers send copies: equal vectors must not be compared at length to be ranked."""
    x = torch.randn(40, 300_000, generator=torch.Generator().manual_seed(0))
    x[-19:] = 0.1 * x[0]
    x[-5:, -1] += 1e-3
    for rule in (Aksel(19), ComparativeGradientElimination(19), MoNNA(19)):
        rule(x)
        start = time.process_time()
        rule(x)
        assert time.process_time() - start < 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([np.float32, np.float64]))
def test_order_statistics_by_counting(d: int, seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.abs(rng.choice([0.0, 1e-40, 0.1, 0.5, 3.0, 1e30], d) * rng.choice([1.0, rng.random()], d)).astype(dtype)
    k = int(rng.integers(d))
    value = np.sort(sizes)[k]
    expected = (value, (sizes < value).sum(), (sizes == value).sum())
    assert _order_statistic(torch.from_numpy(sizes), k) == expected


def test_lasa_drops_the_last_of_equal_values() -> None:
    x = np.tile([2.0, 1.0, 1.0, -1.0, 1.0, 0.0], (5, 1))
    np.testing.assert_array_equal(LASA(1, sparsity=0.5)(x), [2, 1, 1, 0, 0, 0])


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 12), st.integers(1, 4), st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
def test_geometric_median_is_optimal(n: int, d: int, seed: int, size: float) -> None:
    rng, f = np.random.default_rng(seed), (n - 1) // 2
    x = rng.normal(size=(n, d))
    x[n - f :] *= size
    assert error(GeometricMedian(f)(x.astype(np.float32)), oracles.geometric_median(x), x, f) < 1e-5


def left_over(x: Array, y: Array) -> float:
    """How far y is from the geometric median, about, in usual distances: Newton's step; 0 at a vertex that is it."""
    at = np.linalg.qr(np.concatenate([x - x[0], [y - x[0]]]).T)[1].T  # in as many dimensions as there are vectors
    away = at[:-1] - at[-1]
    lengths = np.linalg.norm(away, axis=1)
    size = np.median(lengths)
    here = lengths <= 1e-6 * size
    units = away[~here] / lengths[~here, None]
    slope = units.sum(0)
    if here.any():
        return max(float(np.linalg.norm(slope)) - here.sum() - 1e-5, 0.0)
    curvature = (1 / lengths).sum() * np.eye(at.shape[1]) - (units.T / lengths) @ units
    return float(np.linalg.norm(np.linalg.lstsq(curvature, slope, rcond=1e-12)[0]) / size)


def near_a_line(random: np.random.Generator, n: int, d: int, spread: float) -> Array:
    """Normal along a direction, and ``spread`` as much across it, all other directions together."""
    direction = random.standard_normal(d)
    return (
        random.standard_normal((n, 1)) * direction / np.linalg.norm(direction)
        + spread * random.standard_normal((n, d)) / max(d - 1, 1) ** 0.5
    )


@pytest.mark.parametrize("d", [2, 1000])
@pytest.mark.parametrize("n", [4, 5, 6, 8, 12, 20])
@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-2, 1e-3, 1e-4])
def test_geometric_median_of_crowds_near_a_line(n: int, d: int, spread: float) -> None:
    """Near a line the sum of distances is flat between the inner vectors: optimality decides, in every order."""
    for seed in range(6):
        random = generator(seed, "near a line")
        wide = near_a_line(random, n, d, spread)
        for dtype, exact in ((np.float64, 1e-7), (np.float32, 2e-5)):
            x = wide.astype(dtype)
            answer = GeometricMedian(1)(x)
            # An answer in float32 is not where it was found, by 1e-7, which is much where the crowd is flatter.
            if dtype == np.float64 or spread >= 1e-2:
                assert left_over(x.astype(np.float64), answer.astype(np.float64)) < exact
            for other in (GeometricMedian(1)(x[random.permutation(n)]), -GeometricMedian(1)(-x)):
                np.testing.assert_allclose(other, answer, atol=exact * np.abs(x).max())


@pytest.mark.parametrize("d", [1, 3, 10_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_geometric_median_on_a_line_is_the_middle(d: int, dtype: torch.dtype) -> None:
    random = generator(d, "a line")
    for n in (1, 2, 3, 4, 7, 8):
        for copies in (1, 2):
            places = np.sort(random.integers(-9, 10, n).astype(float)).repeat(copies)
            direction = random.integers(1, 4, d).astype(float)
            x = torch.from_numpy(places[:, None] * direction).to(dtype)[random.permutation(n * copies).tolist()]
            assert torch.equal(GeometricMedian(0)(x).double(), torch.from_numpy(np.median(places) * direction))
            assert torch.equal(GeometricMedian(0)(-x), -GeometricMedian(0)(x))


def test_geometric_median_near_a_line_of_long_vectors() -> None:
    """Beyond one panel distances come in float32, too coarse for a flat crowd: they are measured again."""
    for seed, n in itertools.product(range(3), (4, 8)):
        x = near_a_line(generator(seed, "long"), n, 10_000, 0.05).astype(np.float32)
        assert left_over(x.astype(np.float64), GeometricMedian(1)(x).astype(np.float64)) < 2e-5


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_geometric_median_of_four_is_where_the_diagonals_meet(order: tuple[int, ...]) -> None:
    x = np.array([[0.0, 1.0], [1.0, 1.0], [8.0, 0.0], [9.0, 0.0]])[list(order)]
    for sign in ([1, 1], [-1, 1], [1, -1]):
        np.testing.assert_allclose(GeometricMedian(1)(x * sign), np.multiply(sign, [4.5, 0.5]), rtol=1e-12)


@pytest.mark.parametrize("spread", [1e-2, 1e-5, 1e-7, 1e-8])
def test_geometric_median_turns_with_the_vectors_however_near_a_line(spread: float) -> None:
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    for seed, n in itertools.product(range(15), (4, 8)):
        x = generator(seed, "turned").standard_normal((n, 2)) * [1, spread]
        np.testing.assert_allclose(GeometricMedian(1)(x @ turn) @ turn.T, GeometricMedian(1)(x), rtol=0, atol=1e-6)


def test_geometric_median_between_two_pairs_that_face_each_other() -> None:
    """Far vectors in opposite directions pull as one in none: what is between the two others is optimal, all of it."""
    x = np.array([[1.0, 0.0], [-3.0, 0.0], [0.0, 1e30], [0.0, -1e30]])
    np.testing.assert_allclose(GeometricMedian(1)(x), [-1.0, 0.0], atol=1e-9)


@pytest.mark.parametrize("seed", range(36))
def test_geometric_median_is_optimal_beside_near_copies(seed: int) -> None:
    """Attackers inside the cloud that agree, but for as little as rounding, neither catch nor mislead the search."""
    random = generator(seed, "near copies")
    d = int(random.integers(2, 40))
    x = random.standard_normal((10, d))
    point = x.mean(0) + (0.1 if seed % 2 else 1) * random.standard_normal() * x.std(0)
    copies = point * (1 + 10.0 ** -(5 + seed % 12) * random.standard_normal((3, d)))
    x = np.concatenate([x, copies])

    def objective(y: Array) -> float:
        return float(np.linalg.norm(x - y, axis=1).sum())

    # Of a smooth sum, sqrt(||x_i - y||^2 + e^2), so that no point is a pole; e falls from one round to the next.
    y = x.mean(0)
    for smooth in (1e-2, 1e-4, 1e-6, 1e-8):
        for _ in range(1000):
            weights = 1 / np.sqrt(np.square(x - y).sum(1) + smooth**2)
            y, last = weights @ x / weights.sum(), y
            if np.abs(y - last).max() < 1e-13:
                break
    best = min(objective(y), *(objective(row) for row in x))
    answer = np.asarray(GeometricMedian(3)(x))
    assert objective(answer) <= best * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_caf_behind_nnm_sees_equal_mixtures_as_equal(dtype: torch.dtype) -> None:
    """A matrix product may make them 1e-17 apart, in some of many draws: no scale to measure attackers by."""
    random = generator(0, "equal mixtures")
    attack = torch.tensor([[1.0, -1.0, 1.0]] * 2, dtype=torch.float64) * min(torch.finfo(dtype).max, 1e30)
    for _ in range(150):
        honest = torch.from_numpy(random.standard_normal((10, 3))).to(dtype)
        x = torch.cat([honest, attack.to(dtype)])
        out = decide(x, (NearestNeighborMixing(2),), CAF(2), previous=None).aggregate
        assert (out.double() - honest.double().mean(0)).abs().max() < 0.1


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(1, 2), st.integers(0, 10_000))
def test_least_diameter_and_its_ties(n: int, d: int, seed: int) -> None:
    """On a lattice nearly everything ties: the diameter first, then the sum of squares, then the mean."""
    rng, f = np.random.default_rng(seed), (n - 1) // 2
    x = rng.integers(0, 4, size=(n, d)).astype(np.float64)
    np.testing.assert_allclose(MinimumDiameterAveraging(f)(x), oracles.mda(x, f), atol=1e-12)


BY_POSITION: dict[str, tuple[Callable[[int], Rule], Callable[[Array, int], Array]]] = {
    "krum": (lambda f: Krum(f, ties="position"), lambda x, f: oracles.krum(x, f, ties="position")),
    "multi-krum": (
        lambda f: MultiKrum(f, ties="position"),
        lambda x, f: oracles.multi_krum(x, f, ties="position"),
    ),
    "bulyan": (lambda f: Bulyan(f, ties="position"), lambda x, f: oracles.bulyan(x, f, ties="position")),
    "bulyan-frozen": (
        lambda f: Bulyan(f, selection="frozen", ties="position"),
        lambda x, f: oracles.bulyan(x, f, selection="frozen", ties="position"),
    ),
    "mda": (
        lambda f: MinimumDiameterAveraging(f, ties="position"),
        lambda x, f: oracles.mda(x, f, ties="position"),
    ),
}


@pytest.mark.parametrize("name", BY_POSITION)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2), st.integers(1, 2), st.integers(0, 10_000))
def test_ties_by_position_go_to_what_stands_first(name: str, f: int, more: int, d: int, seed: int) -> None:
    """On a lattice squared distances are integers, so that scores tie exactly here as they do elsewhere."""
    make, oracle = BY_POSITION[name]
    x = np.random.default_rng(seed).integers(0, 4, size=(max(make(f).min_n, 3) + more, d)).astype(np.float64)
    np.testing.assert_allclose(make(f)(x), oracle(x, f), atol=1e-12)
    far = x.copy()
    far[-f - 1 : -1] = np.nan
    assert np.isfinite(make(f)(far)).all()


def test_ties_are_named() -> None:
    x = np.array([[5.0], [4.0], [1.0], [0.0], [9.0]])
    assert MinimumDiameterAveraging(2)(x) == pytest.approx(5 / 3)
    assert MinimumDiameterAveraging(2, ties="position")(x) == pytest.approx(10 / 3)
    for kind in (Krum, MultiKrum, Bulyan, MinimumDiameterAveraging):
        with pytest.raises(ValueError, match='needs ties "value" or "position", got'):
            kind(1, ties="first")  # type: ignore[arg-type]
    for rule in ("krum", "bulyan", "mda"):
        assert "ties='position'" in str(rules.published(rule, 1))


def test_mda_and_smea_are_exact_where_enumeration_ends() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 10_000)).astype(np.float32)
    geometry = Geometry.of(torch.from_numpy(x))
    chosen = MinimumDiameterAveraging(10).weights(geometry)
    assert (chosen > 0).sum() == 20
    first = MinimumDiameterAveraging(10, ties="position").weights(geometry) > 0
    kept = np.flatnonzero(chosen), np.flatnonzero(first)
    diameters = [geometry.distances[np.ix_(s, s)].max() for s in kept]
    assert diameters[0] == diameters[1]
    assert kept[1].tolist() <= kept[0].tolist()
    small = rng.normal(size=(13, 4))
    np.testing.assert_allclose(SMEA(5)(small), oracles.smea(small, 5), atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Mixings, and rules behind them
# ---------------------------------------------------------------------------------------------------------------------


def buckets(x: Array, s: int) -> Array:
    """Bucketing as documented: by norm, then shuffled by the seed."""
    order = oracles.ranked((x * x).sum(1), x)[generator(0, "bucketing").permutation(len(x))]
    return oracles.bucketing(x, s, order.tolist())


MIXED: dict[str, tuple[Callable[[int], mixing.Mixing], Callable[[Array, int], Array]]] = {
    "nnm": (NearestNeighborMixing, oracles.nnm),
    "arc": (AdaptiveClipping, oracles.arc),
    "clipping": (lambda f: StaticClipping(1.5), lambda x, f: oracles.static_clipping(x, 1.5)),
    "bucketing": (lambda f: Bucketing(s=2), lambda x, f: buckets(x, 2)),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize(("n", "f", "d"), [(5, 2, 1), (6, 0, 3), (9, 3, 4), (11, 4, 60)])
def test_mixing_follows_its_definition(name: str, n: int, f: int, d: int) -> None:
    make, oracle = MIXED[name]
    for kind, x64 in vectors(n, d, f, seed=d):
        x = x64.astype(np.float32)
        actual, expected = make(f)(x), oracle(x.astype(np.float64), f)
        assert actual.shape == expected.shape
        scale = np.abs(expected).max(axis=1, keepdims=True)
        # Of the near vectors, those nearest to a far one differ by less than float32 distances tell.
        assert (np.abs(actual - expected) / scale).max() < (1e-4 if "scaled" in kind else 3e-6), kind


def test_mixings_keep_to_rows_what_is_not_finite() -> None:
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    x[-1, 2], x[-2] = torch.nan, torch.inf
    for make, _ in MIXED.values():
        out = make(2)(x)
        assert int((~torch.isfinite(out)).any(1).sum()) <= 2
    for stage in (NearestNeighborMixing(1), AdaptiveClipping(1)):
        with pytest.raises(ValueError, match="tolerates 1 vectors with NaN or infinity, got 2"):
            stage(x)
    with pytest.raises(ValueError, match=r"AdaptiveClipping\(f=3\) needs n >= 2f \+ 1 = 7 vectors, got 5\."):
        AdaptiveClipping(3)(torch.zeros(5, 2))


COMPOSITIONS = {
    "arc+nnm": ((AdaptiveClipping, NearestNeighborMixing), lambda x, f: oracles.nnm(oracles.arc(x, f), f)),
    "nnm+nnm": ((NearestNeighborMixing,) * 2, lambda x, f: oracles.nnm(oracles.nnm(x, f), f)),
    "clipping+nnm": (
        (lambda f: StaticClipping(1.5), NearestNeighborMixing),
        lambda x, f: oracles.nnm(oracles.static_clipping(x, 1.5), f),
    ),
    "nnm+arc": ((NearestNeighborMixing, AdaptiveClipping), lambda x, f: oracles.arc(oracles.nnm(x, f), f)),
    "bucketing": ((lambda f: Bucketing(s=2),), lambda x, f: buckets(x, 2)),
}
# Behind clipping, norms are equal; behind NNM, points coincide and distances repeat, as (x_i - x_j) / (n - f) does.
BEHIND = ["multi-krum", "median", "bulyan", "mda", "geometric-median", "medoid", "caf", "aksel", "cge"]


@pytest.mark.parametrize("name", COMPOSITIONS)
@pytest.mark.parametrize("rule", BEHIND)
def test_compositions_are_stage_by_stage(name: str, rule: str) -> None:
    stages, oracle = COMPOSITIONS[name]
    make, last = CATALOGUE[rule]
    f = 2
    if (rule == "cge" and name == "nnm+arc") or (rule in ("mda", "bulyan") and "nnm" in name):
        pytest.skip("exact ties, which the oracle breaks by rounding")
    for kind, x64 in vectors(24, 30, f, seed=1):
        x = x64.astype(np.float32)
        algorithm = vg.Algorithm(pre=tuple(stage(f) for stage in stages), rule=make(f))
        actual, _ = algorithm.aggregate(torch.from_numpy(x), algorithm.init(len(x), x.shape[1]))
        expected = last(oracle(x.astype(np.float64), f), f)
        assert error(actual.numpy(), expected, x, f) < 1e-5, kind


def test_hostile_rows_that_cancel_in_a_bucket_do_not_hide() -> None:
    """Two rows of 1e30 whose mean is less harmless than the distances say: their bucket must not look near."""
    rng = np.random.default_rng(0)
    for size in (1e6, 1e12, 1e30):
        x = rng.normal(size=(14, 20)).astype(np.float32)
        x[-2] = size
        x[-1] = -np.nextafter(np.float32(size), np.float32(0))
        algorithm = vg.Algorithm(pre=(Bucketing(s=2),), rule=MultiKrum(2))
        actual, _ = algorithm.aggregate(torch.from_numpy(x), algorithm.init(14, 20))
        expected = oracles.multi_krum(buckets(x.astype(np.float64), 2), 2)
        assert error(actual.numpy(), expected, x, 2) < 1e-5


def test_clipped_far_rows_are_measured_anew() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 50)).astype(np.float32)
    x[-3:] *= np.float32(1e20)
    geometry = Geometry.of(torch.from_numpy(x))
    mixed = geometry.mix(AdaptiveClipping(3).weights(geometry))
    expected = oracles.squared_distances(oracles.arc(x.astype(np.float64), 3))
    np.testing.assert_allclose(mixed.distances, expected, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_positions_are_isometric(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 40))
    x[: n // 3] *= 10.0 ** rng.integers(-3, 9, size=(n // 3, 1))
    geometry = Geometry.of(torch.from_numpy(x), torch.zeros(1, 40, dtype=torch.float64))
    positions = geometry.positions()
    expected = oracles.squared_distances(np.concatenate([x, np.zeros((1, 40))]))
    actual = oracles.squared_distances(positions)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Theory
# ---------------------------------------------------------------------------------------------------------------------


def test_breakdown_is_the_greatest_f_accepted() -> None:
    for name, make in RULES.items():
        rule = make(f=0)
        for n in (5, 25, 51):
            f = rule.breakdown(n)
            if name == "average":
                assert f == 0
                continue
            assert make(f).min_n <= n
            assert f == n - 1 or make(f + 1).min_n > n
    assert (MultiKrum(f=0).breakdown(51), Bulyan(f=0).breakdown(51), Median(f=0).breakdown(51)) == (24, 12, 25)
    with pytest.raises(ValueError, match="MultiKrum needs n >= 3 vectors even with f = 0, got 2"):
        MultiKrum(f=0).breakdown(2)


def test_bounds_are_the_published_ones() -> None:
    for n, f in ((51, 12), (25, 5), (11, 2), (11, 0)):
        for name, rule in (("krum", Krum(f)), ("median", Median(f)), ("geometric-median", GeometricMedian(f))):
            assert rule.kappa_bound(n) == pytest.approx(oracles.kappa_bound(name, n, f))
        assert TrimmedMean(f).kappa_bound(n) == pytest.approx(oracles.kappa_bound("trimmed-mean", n, f))
        for name, rule in (
            ("krum", Krum(f)),
            ("multi-krum", MultiKrum(f)),
            ("bulyan", Bulyan(f)),
            ("median", Median(f)),
            ("mda", MinimumDiameterAveraging(f)),
        ):
            assert rule.variance_bound(n, 10) == pytest.approx(oracles.variance_bound(name, n, f))
    # The paper's figures.
    bounds = [MultiKrum(24).variance_bound(51, 1), MultiKrum(5).variance_bound(25, 1)]
    assert [bound**2 for bound in bounds if bound] == pytest.approx([3.2e-5, 7.9e-3], rel=0.02)
    assert MeaMed(1).kappa_bound(9) is None
    assert CAF(1).variance_bound(9, 1) is None
    with pytest.raises(ValueError, match="needs n >= 2f"):
        Krum(5).kappa_bound(9)


@pytest.mark.parametrize("name", ["krum", "median", "trimmed-mean", "geometric-median"])
def test_no_input_found_breaks_a_proved_bound(name: str) -> None:
    rng = np.random.default_rng(0)
    for trial in range(60):
        n = int(rng.integers(4, 8))
        f = max(ALL[name](0).breakdown(n) - int(rng.integers(0, 2)), 0)
        x = rng.normal(size=(n, int(rng.integers(1, 4))))
        x[n - f :] *= 10.0 ** rng.integers(-1, 3)
        rule = ALL[name](f)
        bound = rule.kappa_bound(n)
        assert bound is not None
        if f:
            assert oracles.kappa_of(rule(x), x, f) <= bound * (1 + 1e-9), trial


@pytest.mark.parametrize("written", ["vectors", "previous"])
def test_a_rule_that_writes_into_what_it_is_shown_ends_the_run(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writing(vg.General):
        uses_previous = True

        @property
        def needs(self) -> tuple[str, int]:
            return "1", 1

        def combine(self, x: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
            (x if written == "vectors" else previous).mul_(2)  # type: ignore[union-attr]
            return x.mean(0)

    monkeypatch.setitem(vg.RULES, "writing", Writing)
    for momentum in (0.0, 0.9):
        with pytest.raises(ValueError, match=r"^Writing\(f=1\) wrote into the vectors that it was shown"):
            vg.run(vg.Experiment(rule="writing", workers=3, byzantine=1, steps=2, momentum=momentum))


def test_what_a_rule_of_parameters_answers_is_cut_from_their_graph() -> None:
    scale = torch.nn.Parameter(torch.ones(()))

    class Learned(vg.General):
        @property
        def needs(self) -> tuple[str, int]:
            return "1", 1

        def combine(self, x: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
            return x.mean(0) * scale

    assert not Learned(f=1)(torch.randn(5, 3)).requires_grad
