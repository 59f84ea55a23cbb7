"""In which order mixings and rules are shown the vectors of a step: nothing of this package's own depends on it, and
nobody's rule lives on its attackers standing last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core.attacks import ComposedDefence
from varangian.core.attacks.trials import Trials
from varangian.core.evidence import weights_of_table
from varangian.core.geometry import Geometry
from varangian.core.randomness import Draw, generator
from varangian.core.stages import decide
from varangian.runs.building import build, open_dataset
from varangian.runs.results import settings_of
from varangian.simulation.simulate import Simulation
from varangian.testing import Check

N, F, D = 11, 2, 300
FIRST_ROW = f"{Path(__file__).parents[1] / 'examples' / 'first_row.py'}:FirstRow"
SMALL = vg.Experiment(workers=N, byzantine=F, steps=6, batch_size=8, evaluate_every=0, momentum=0.0)

PRE: dict[str, tuple[vg.Mixing, ...]] = {
    "alone": (),
    "nnm": (vg.NearestNeighborMixing(F),),
    "arc": (vg.AdaptiveClipping(F),),
    "bucketing": (vg.Bucketing(2),),
    "clipping": (vg.StaticClipping(5.0),),
}
# What is chosen does not depend on the order, and what is chosen is added up in one that depends on it.
ADDED = "average multi-krum mda cge aksel geometric-median centered-clipping smea caf dnc signguard clipped-clustering "
ADDED += "fltrust foolsgold flame lasa"


def vectors(kind: str, dtype: torch.dtype) -> Tensor:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(3)) + 0.5
    if kind == "attackers alike":
        x[-F:] = -3 * x[:-F].mean(0)
    if kind == "NaN":
        x[-1, 3] = torch.nan
    if kind == "ties":
        x = (2 * x).round()
    return x.to(dtype)


def compositions() -> Iterator[tuple[str, str]]:
    for name, kind in vg.RULES.items():
        for pre, mixings in PRE.items():
            behind = N if pre != "bucketing" else mixings[0].rows(N)
            if Check.PERMUTATION.name not in kind.exempt and kind(f=F).min_n <= behind:
                yield name, pre


@pytest.mark.parametrize(("name", "pre"), list(compositions()))
@pytest.mark.parametrize("kind", ["plain", "attackers alike", "NaN", "ties"])
def test_the_order_moves_nothing_of_ours(name: str, pre: str, kind: str) -> None:
    """The same bytes in float32, in which runs compute; in float64 where nothing is added up, and else to rounding."""
    rule = vg.RULES[name](f=F)
    if kind == "NaN" and not rule.robust:
        return
    for dtype in (torch.float32, torch.float64):
        x = vectors(kind, dtype)
        previous = x[: N - F].mean(0) if rule.uses_previous else None
        how: dict[str, Any] = {"previous": previous, "draw": Draw(1, 2)}
        expected = decide(x, PRE[pre], rule, **how)
        for seed in range(4):
            rows = generator(seed, "order").permutation(N)
            found = decide(x, PRE[pre], rule, rows=rows, **how)
            if dtype == torch.float32 or name not in ADDED.split():
                assert torch.equal(found.aggregate, expected.aggregate)
            apart, size = (y.abs().max() for y in (found.aggregate - expected.aggregate, expected.aggregate))
            assert apart <= 16 * torch.finfo(torch.float64).eps * size
            if expected.table is not None and kind == "plain":  # of equal vectors either may be chosen
                one, other = (weights_of_table(decision.table, N) for decision in (found, expected))
                np.testing.assert_allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("pre", [(), ("nnm",), ("bucketing",)], ids=str)
@pytest.mark.parametrize("rule", ["median", "multi-krum", "geometric-median", "average", "caf"])
@pytest.mark.parametrize("attack", ["little", "mimic", None], ids=str)
def test_a_run_of_ours_is_the_same_whatever_the_order(rule: str, pre: tuple[str, ...], attack: str | None) -> None:
    """So nothing is moved; here it is."""
    e = replace(SMALL, rule=rule, pre=pre, attack=attack, momentum=0.9, workers=15)
    dataset = open_dataset(e)
    (plain, _), (moved, _) = build(e, dataset), build(e, dataset)
    assert not plain.shuffles
    moved.shuffles = True
    for step in range(e.steps):
        assert not np.array_equal(moved.order_at(step), np.arange(15))
        one, other = plain.step(), moved.step()
        if attack == "little":  # of equal vectors, as attackers and whom they mimic send, either may be chosen
            assert one.byzantine_share == pytest.approx(other.byzantine_share, abs=1e-9)
    assert torch.equal(plain.parameters, moved.parameters)


# ------------------------------------------------------------------------------------------------------ one's own rules


@dataclass(frozen=True)
class AtPlace(vg.General):
    """The vector at one place."""

    place: int = 0

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return x[self.place].clone()


@dataclass(frozen=True)
class Declared(AtPlace):
    by_place = True


@dataclass(frozen=True)
class Middle(vg.Median):
    """A median of one's own."""


@dataclass(frozen=True)
class NearFirst(vg.Selecting):
    """The mean of the n - f vectors that are nearest to the first."""

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        n = geometry.n
        return vg.mean_weights(geometry.smallest(geometry.distances[0], n - self.f), n)


def simulation(rule: vg.Rule, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Simulation:
    monkeypatch.setitem(vg.RULES, "mine", lambda f: replace(rule, f=f))
    e = replace(SMALL, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vg.Experiment, "make_rule", lambda self: rule)
        return build(e, open_dataset(e))[0]


def accuracy(rule: str, order: str, **settings: Any) -> float:
    e = replace(SMALL, attack="empire(factor=20.0)", rule=rule, order=order, steps=60, learning_rate=0.3, **settings)
    return vg.run(e).final_accuracy


@pytest.mark.parametrize("place", [0, N // 2, N - 1])
def test_a_rule_that_trusts_a_place_is_found_out(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vg.RULES, "at-place", AtPlace)
    rule = f"at-place(place={place})"
    assert accuracy("median", "shuffled") > 0.6
    assert accuracy(rule, "shuffled") < 0.2
    assert (accuracy(rule, "honest-first") > 0.6) == (place < N - F)


def test_the_example_that_trusts_the_first_is_found_out() -> None:
    assert accuracy(FIRST_ROW, "shuffled") < 0.5 < 0.8 < accuracy(FIRST_ROW, "honest-first")


def test_every_step_has_an_order_of_its_own_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (simulation(AtPlace(F), monkeypatch) for _ in range(2))
    orders = [one.order_at(step) for step in range(50)]
    assert all(sorted(rows) == list(range(N)) for rows in orders)  # type: ignore[arg-type]
    assert len({tuple(rows) for rows in orders}) == 50  # type: ignore[arg-type]
    assert np.array_equal(other.order_at(7), orders[7])  # type: ignore[arg-type]
    assert not np.array_equal(simulation(AtPlace(F), monkeypatch, seed=2).order_at(7), orders[7])  # type: ignore[arg-type]
    first = np.bincount([rows[0] for rows in orders], minlength=N)  # type: ignore[index]
    assert (first > 0).all()


@pytest.mark.parametrize("rule", [Declared(F), vg.MoNNA(F, pivot=1), type("Pivoted", (vg.MoNNA,), {})(F), vg.Krum(F)])
def test_what_says_that_it_trusts_a_place_keeps_the_order(rule: vg.Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulation(rule, monkeypatch).order_at(3) is None


def test_in_the_order_of_the_paper_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulation(AtPlace(F), monkeypatch, order="honest-first").order_at(3) is None


def test_a_median_of_ones_own_computes_what_ours_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in ({}, {"attack": "little"}, {"momentum": 0.9, "attack": "nan"}, {"clients": 30, "attack": "empire"}):
        mine, ours = (simulation(rule, monkeypatch, **settings) for rule in (Middle(F), vg.Median(F)))
        assert mine.order_at(0) is not None
        for _ in range(4):
            assert mine.step().row() == ours.step().row()
        assert torch.equal(mine.parameters, ours.parameters)


@dataclass(frozen=True)
class Counted(vg.General):
    """The mean of vectors by what they count, and what they counted."""

    seen: list[np.ndarray] = field(default_factory=list)
    weighs = True

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None, shares: np.ndarray | None = None) -> Tensor:
        assert shares is not None
        self.seen.append(shares)
        return torch.from_numpy(shares / len(x)).to(x.dtype) @ x


def test_weights_go_with_their_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Counted(F)
    mine = simulation(rule, monkeypatch, partition="quantity(alpha=2.0)", weighting="size", cap=1.2, byzantine=F)
    mine.step()
    rows = mine.order_at(0)
    assert rows is not None
    assert mine.weights is not None
    assert len(set(mine.weights)) > 2
    np.testing.assert_allclose(rule.seen[0], mine.weights[rows])
    sent = torch.from_numpy(mine.weights / N).float() @ mine.vectors
    torch.testing.assert_close(mine.algorithm.decide(mine.vectors, mine.state, weights=mine.weights).aggregate, sent)


@dataclass(frozen=True)
class Writes(AtPlace):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return x.mul_(2)[0].clone()


@pytest.mark.parametrize("order", ["shuffled", "honest-first"])
def test_a_rule_that_writes_into_what_it_is_shown_ends_the_run(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"Writes.* wrote into the vectors that it was shown"):
        simulation(Writes(F), monkeypatch, order=order).step()


# ---------------------------------------------------------------------------------------------------------- adversaries


@dataclass(frozen=True)
class Watching(vg.Attack):
    """Keeps what it was told of the order, and tries to change it."""

    told: list[np.ndarray] = field(default_factory=list)

    def craft(self, seen: vg.Knowledge) -> Tensor:
        assert isinstance(seen.defence, ComposedDefence)
        assert seen.defence.rows is not None
        self.told.append(seen.defence.rows.copy())
        seen.defence.rows[:] = np.arange(N)[::-1]
        return -seen.mean


def test_adversaries_are_told_the_order_and_cannot_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Watching()
    monkeypatch.setattr(vg.Experiment, "make_attack", lambda self: attack if self.attack else None)
    mine = simulation(AtPlace(F), monkeypatch, attack="empire")
    for step in range(3):
        mine.step()
        rows = mine.order_at(step)
        assert rows is not None
        assert np.array_equal(attack.told[step], rows)
        assert torch.equal(mine.state.previous if mine.state.previous is not None else mine.vectors[rows[0]],
                           mine.vectors[rows[0]])  # fmt: skip


def test_what_is_tried_on_distances_is_tried_in_that_order() -> None:
    x = vectors("plain", torch.float64)
    for seed in range(5):
        rows = generator(seed, "order").permutation(N)
        defence = ComposedDefence((vg.NearestNeighborMixing(F),), NearFirst(F), rows=rows)
        seen = vg.Knowledge(x[: N - F], F, defence, None, generator(0, "attack"))
        quick = Trials(seen, [x[0] - seen.mean])
        assert quick.geometry is not None
        slow = Trials(replace(seen, defence=defence.__call__), [x[0] - seen.mean])
        assert slow.geometry is None
        places = [(0, scale) for scale in (-3.0, 0.5, 4.0, 30.0)]
        np.testing.assert_allclose(quick.damages(places), slow.damages(places), rtol=1e-9)


def test_fewer_vectors_than_there_are_keep_that_order() -> None:
    x = vectors("plain", torch.float32)
    rows = generator(1, "order").permutation(N)
    tried = ComposedDefence((), AtPlace(F), rows=rows)(x[: N - F])
    assert torch.equal(tried, x[rows[rows < N - F][0]])


# --------------------------------------------------------------------------------------------------------- in a folder


def own(**settings: Any) -> vg.Experiment:
    return replace(SMALL, rule=FIRST_ROW, attack="empire(factor=5.0)", momentum=0.9, **settings)


def test_a_run_is_resumed_and_replayed_in_its_order(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(step: int, _: Any) -> None:
        if step == 3:
            raise Enough

    whole = vg.run(own(), tmp_path / "whole")
    with pytest.raises(Enough):
        vg.run(own(), tmp_path / "parts", progress=stop, checkpoint_every=2)
    again = vg.run(own(), tmp_path / "parts", checkpoint_every=2)
    assert (again.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    for step in (0, 4):
        found = vg.replay(whole.folder, step, trust=True)
        assert found.agrees
        assert found.explanation is not None
        assert found.measures is not None
        assert found.explanation.weight is not None
        share = found.explanation.weight[N - F :].sum()
        assert share == pytest.approx(found.measures.byzantine_share, abs=1e-6)


def test_the_order_is_recorded_where_it_matters() -> None:
    assert "order" not in SMALL.to_dict()
    assert own().to_dict()["order"] == "shuffled"
    first = own(order="honest-first")
    assert first.to_dict()["order"] == "honest-first"
    assert first.digest != own().digest
    for e in (own(), first, replace(SMALL, order="honest-first")):
        assert vg.Experiment.from_json(e.to_json()) == vg.Experiment.from_toml(e.to_toml()) == e


def test_folders_of_before_there_was_an_order_have_the_honest_ones_first(tmp_path: Path) -> None:
    result = vg.run(own(order="honest-first"), tmp_path)
    settings = result.folder / "experiment.json"
    values = json.loads(settings.read_text("utf-8"))
    del values["order"]
    settings.write_text(json.dumps(values), "utf-8")
    e = settings_of(result.folder, trust=True)
    assert replace(e, code_hash=None) == own(order="honest-first")
    assert e.digest in result.folder.name
    assert vg.read(result.folder).experiment.order == "honest-first"
    assert vg.replay(result.folder, 3, trust=True).agrees
    again = vg.run(own(order="honest-first"), tmp_path)  # it is complete
    assert again.folder == result.folder


def test_settings_that_are_no_order() -> None:
    with pytest.raises(vg.ConfigurationError, match=r"order: .*'shuffled' or 'honest-first'"):
        vg.Experiment(order="random")  # type: ignore[arg-type]


@pytest.mark.parametrize("pre", [(), ("nnm",), ("bucketing",)], ids=str)
def test_what_is_kept_of_workers_is_of_them(pre: tuple[str, ...], tmp_path: Path) -> None:
    """Scores are those of the vectors in the order in which the rule saw them."""
    result = vg.run(own(pre=pre), tmp_path)
    report = result.workers()
    for step in range(SMALL.steps):
        found = vg.replay(result.folder, step, trust=True).explanation
        assert found is not None
        assert found.weight is not None
        np.testing.assert_allclose(report.weight[step], found.weight, atol=1e-3)
        if found.score is not None:
            np.testing.assert_allclose(report.score[step], found.score, rtol=1e-4)


@dataclass(frozen=True)
class Scored(NearFirst):
    def score(self, geometry: Geometry) -> np.ndarray:
        return np.sqrt(geometry.distances[0])


def test_scores_are_of_the_order_that_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = simulation(Scored(F), monkeypatch)
    mine.step()
    rows = mine.order_at(0)
    assert rows is not None
    expected = (mine.vectors - mine.vectors[rows[0]]).norm(dim=1)
    np.testing.assert_allclose(mine.accounts[0].score, expected, rtol=1e-4, atol=1e-5)
    told = vg.explain(mine.vectors, Scored(F), rows=rows)
    assert told.score is not None
    np.testing.assert_allclose(told.score, expected, rtol=1e-4, atol=1e-5)
