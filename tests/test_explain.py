"""Explanations: the weights, scores and ranks shown are those that made the aggregate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import oracles
import varangian as vg
from varangian.core.evidence import column_weights, suspicion
from varangian.core.explanation import explain
from varangian.core.rules import RULES

N, F, D = 15, 3, 200


def attacked(dtype: type = np.float64) -> np.ndarray:
    random = np.random.default_rng(0)
    honest = random.normal(size=(N - F, D)) + 1
    return np.concatenate([honest, 8 * honest[:1] + random.normal(size=(F, D))]).astype(dtype)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_explained(name: str) -> None:
    x, rule = attacked(np.float32), RULES[name](f=F)
    previous = x[: N - F].mean(0)
    found = explain(x, rule, previous)
    np.testing.assert_array_equal(found.aggregate, rule(x, previous))
    np.testing.assert_allclose(found.norm, np.linalg.norm(x, axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.distance, np.linalg.norm(x - found.aggregate, axis=1), rtol=1e-5)
    assert found.finite.all()
    lines = str(found).splitlines()
    assert lines[0].startswith(str(rule))
    assert [int(line.split()[0]) for line in lines[-N:]] == list(range(N))
    assert len({len(line) for line in lines[-N - 1 :]}) == 1  # aligned
    torch_found = explain(torch.from_numpy(x), rule, torch.from_numpy(previous))
    assert str(torch_found) == str(found)
    assert isinstance(torch_found.aggregate, torch.Tensor)


@pytest.mark.parametrize("name", [name for name, kind in RULES.items() if not issubclass(kind, vg.General)])
def test_weights_are_told_and_those_of_selecting_rules_make_the_aggregate(name: str) -> None:
    x = attacked()
    rule = RULES[name](f=F)
    found = explain(x, rule, np.zeros(D))
    assert found.weight is not None
    if isinstance(rule, vg.Selecting):
        np.testing.assert_allclose(found.weight @ x, found.aggregate, rtol=1e-9, atol=1e-12)


def test_multi_krum_shows_krums_scores_and_suspects_the_attackers_first() -> None:
    x = attacked()
    found = explain(x, vg.MultiKrum(F))
    assert found.score is not None
    np.testing.assert_allclose(found.score, oracles.krum_scores(x, N - F - 2), rtol=1e-9)
    apart = np.linalg.norm(x - found.aggregate, axis=1)
    cosine = x @ found.aggregate / np.linalg.norm(x, axis=1) / np.linalg.norm(found.aggregate)
    np.testing.assert_allclose(found.distance, apart, rtol=1e-9)
    np.testing.assert_allclose(found.cosine, cosine, atol=1e-12)
    expected = np.maximum(1 - np.median(apart) / apart, 0)
    if np.median(cosine) >= 0:
        expected = np.maximum(expected, -cosine)
    np.testing.assert_allclose(found.suspicion, expected, atol=1e-9)
    assert set(found.suspicion.argsort()[-F:]) == set(range(N - F, N))
    assert found.selected is not None
    assert found.selected.sum() == N - F - 2
    assert not found.selected[N - F :].any()


def test_vectors_that_are_not_finite_come_first_and_show_no_numbers() -> None:
    x = attacked()
    x[4, 7], x[6, 0] = np.nan, np.inf
    found = explain(x, vg.MultiKrum(F))
    assert found.suspicion[4] == found.suspicion[6] == 1
    assert found.rejected[[4, 6]].all()
    assert np.isnan(found.norm[[4, 6]]).all()
    assert str(found).splitlines()[-N + 4].split() == ["4", "-", "-", "-", "-", "-", "NO", "1.00"]


def test_through_mixings_weights_are_those_of_the_vectors_that_came() -> None:
    x = attacked()
    algorithm = vg.Algorithm(pre=(vg.AdaptiveClipping(F), vg.NearestNeighborMixing(F)), rule=vg.MultiKrum(F))
    found = explain(x, algorithm)
    assert found.weight is not None
    np.testing.assert_allclose(found.weight @ x, found.aggregate, rtol=1e-9)
    assert found.score_name == "Krum's score, after mixing"
    assert explain(x, vg.Algorithm(pre=(vg.Bucketing(1),), rule=vg.MultiKrum(F))).score is None
    first = str(found).splitlines()[0]
    assert first.startswith(f"AdaptiveClipping(f=3) > NearestNeighborMixing(f=3) > {vg.MultiKrum(F)}: 15 vectors, ")


@pytest.mark.parametrize("seed", range(30))
def test_weights_in_columns_make_the_aggregate_of_each_column(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, f = int(random.integers(3, 20)), 0
    f = int(random.integers(0, (n - 1) // 2 + 1))
    x = random.normal(size=(n, 50)) if seed % 2 else random.integers(-2, 3, (n, 50)).astype(float)
    rules = [vg.Median(f), vg.Median(f, even="lower"), vg.TrimmedMean(f), vg.MeaMed(f)]
    if seed % 2:  # Phocas' centre is rounded, which decides between integers equally near to it
        rules.append(vg.Phocas(f))
    for rule in rules:
        weights = column_weights(x, *rule.statistic(n))
        np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-12)
        np.testing.assert_allclose((weights * x).sum(0), rule(x), rtol=1e-12, atol=1e-12)
        found = explain(x, rule)
        np.testing.assert_allclose(found.weight, weights.mean(1), rtol=1e-12, atol=1e-15)


def test_equal_values_share_their_weight() -> None:
    weights = column_weights(np.array([[1.0], [1.0], [1.0], [5.0], [0.0]]), *vg.Median(2).statistic(5))
    np.testing.assert_allclose(weights[:, 0], [1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_many_coordinates_are_sampled_and_the_table_says_how_many() -> None:
    x = attacked()
    found = explain(x, vg.Median(F), coordinates=50)
    assert found.coordinates == 50
    assert "weight: mean over 50 coordinates" in str(found)
    exact = explain(x, vg.Median(F))
    assert exact.coordinates == D
    np.testing.assert_allclose(found.weight, exact.weight, atol=0.1)


def test_nothing_is_written_and_errors_are_the_rules_own() -> None:
    x = attacked()
    kept = x.copy()
    explain(x, vg.Bulyan(F))
    np.testing.assert_array_equal(x, kept)
    with pytest.raises(ValueError, match=r"needs n >= 2f \+ 3 = 19 vectors, got 15\.$"):
        explain(x, vg.MultiKrum(8))


@dataclass(frozen=True)
class Farthest(vg.Selecting):
    """The mean of the n - f vectors that are nearest to the farthest other one: nobody's rule but this test's."""

    @property
    def needs(self) -> tuple[str, int]:
        return "f + 1", self.f + 1

    def score(self, geometry: vg.Geometry) -> np.ndarray:
        return np.sqrt(geometry.distances[: geometry.n, : geometry.n]).max(1)

    def weights(self, geometry: vg.Geometry) -> np.ndarray:
        return vg.mean_weights(geometry.smallest(self.score(geometry), geometry.n - self.f), geometry.n)


@dataclass(frozen=True)
class Half(vg.General):
    """Half of the mean, whoever sent it."""

    @property
    def needs(self) -> tuple[str, int]:
        return "f + 1", self.f + 1

    def combine(self, x: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
        return x.nan_to_num().mean(0) / 2


@dataclass(frozen=True)
class Norms(Half):
    """The same, and it says what it thinks of the vectors."""

    score_name: ClassVar[str] = "norm"

    def score(self, geometry: vg.Geometry) -> np.ndarray:
        return np.sqrt(geometry.norms)


def test_a_rule_of_ones_own_is_explained_with_its_score_or_without() -> None:
    x = attacked()
    found = explain(x, Farthest(F))
    assert found.score_name == "score of Farthest"
    assert found.score is not None
    apart = np.linalg.norm(x[:, None] - x[None], axis=2).max(1)
    np.testing.assert_allclose(found.score, apart, rtol=1e-9)
    np.testing.assert_allclose(found.suspicion, suspicion(found.distance, found.finite, found.cosine))
    np.testing.assert_array_equal(found.rejected, found.weight == 0)
    assert "suspicion: the greater of 1 - median distance / distance and -cosine, from 0" in str(found)

    found = explain(x, Half(F))
    assert found.score is found.weight is None
    np.testing.assert_allclose(found.suspicion, suspicion(found.distance, found.finite, found.cosine))
    assert not found.rejected.any()


@pytest.mark.parametrize("pre", [(), (vg.AdaptiveClipping(F),)])
def test_a_general_rule_may_have_a_score_too(pre: tuple[vg.Mixing, ...]) -> None:
    x = attacked()
    seen = pre[0](x) if pre else x
    found = explain(x, vg.Algorithm(pre=pre, rule=Norms(F)))
    assert found.score is not None
    np.testing.assert_allclose(found.score, np.linalg.norm(seen, axis=1), rtol=1e-9)
    assert found.score_name == ("norm, after mixing" if pre else "norm")
    x[3] = np.nan
    found = explain(x, vg.Algorithm(pre=pre, rule=Norms(F)))
    assert found.score is not None
    assert np.flatnonzero(found.rejected).tolist() == [3]
    assert np.isinf(found.score[3])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: np.zeros(n + 1), r"Own.score must answer an array of 15 numbers, got float64 \[16\]"),
        (lambda n: [0.0] * n, "Own.score must answer an array of 15 numbers, got a list"),
        (lambda n: np.full(n, -2.5), "Own.score must answer numbers >= 0, the lower the better, got -2.5"),
        (lambda n: np.full(n, np.nan), "Own.score must answer numbers >= 0, the lower the better, got nan"),
    ],
)
def test_a_score_that_is_none_is_refused_in_a_line(answer: Any, message: str) -> None:
    class Own(Farthest):
        def score(self, geometry: vg.Geometry) -> np.ndarray:
            return answer(geometry.n)

        def weights(self, geometry: vg.Geometry) -> np.ndarray:
            return vg.mean_weights([0], geometry.n)

    with pytest.raises(ValueError, match=message):
        explain(attacked(), Own(F))


def test_what_every_rule_of_the_catalogue_ranks_by_is_told() -> None:
    scored = {name for name in RULES if explain(attacked(), RULES[name](f=F), np.zeros(D)).score is not None}
    assert scored >= {"krum", "multi-krum", "bulyan", "medoid", "cge", "monna"}
    for name, kind in RULES.items():
        assert bool(kind.score_name) == (name in scored), name
