"""Attackers that do not all send the same."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from interruption import interrupt
from test_card_runs import BASE, opened
from varangian.core.attacks import ATTACKS, Knowledge, parts
from varangian.core.geometry import Geometry
from varangian.core.specs import make
from varangian.runs.building import build, computing
from varangian.runs.replaying import replay
from varangian.simulation.simulate import Simulation
from varangian.study.outcomes import from_result, read_outcome, read_runs, write_runs


def crowd(h: int = 9, d: int = 400, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(size=(h, d)) * random.uniform(0.5, 2, size=d) + random.normal(size=d))


def settings(**more: Any) -> vg.Experiment:
    return replace(BASE, **more)


# ------------------------------------------------------------------------------------------------------------ scattered


@pytest.mark.parametrize("f", [2, 3, 8])
@pytest.mark.parametrize("size", [0.25, 1.0])
@pytest.mark.parametrize("attack", ["little", "empire(factor=2.0)", "min-max", "mimic"])
def test_scattered_attackers_push_as_one_and_are_as_far_apart_as_honest_ones(attack: str, size: float, f: int) -> None:
    honest = crowd()
    sent = vg.Scattered(attack, size=size)(honest, f)
    alone = make("attack", attack, ATTACKS)(honest, f)
    torch.testing.assert_close(sent.mean(0), alone[0], rtol=0, atol=1e-6)
    apart, usual = sent.std(0).norm(), size * honest.std(0).norm()
    assert float(apart) == pytest.approx(float(usual), rel=0.15)
    between = torch.pdist(sent) / (size * torch.pdist(honest).mean())
    assert 0.7 < float(between.min()) <= float(between.max()) < 1.3


def test_scattered_rows_add_to_those_of_attacks_whose_attackers_differ_already() -> None:
    honest, learnt = crowd(), torch.randn(4, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sent = vg.Scattered("label-flip")(honest, 4, poisoned=learnt)
    moved = sent - learnt
    torch.testing.assert_close(moved.mean(0), torch.zeros(400, dtype=torch.float64), rtol=0, atol=1e-6)
    again = vg.Scattered("zero")(honest, 4)
    torch.testing.assert_close(moved, again)


def test_a_single_attacker_or_a_single_honest_vector_scatters_nothing() -> None:
    honest = crowd()
    assert torch.equal(vg.Scattered("little")(honest, 1), vg.Little()(honest, 1))
    assert vg.Scattered("little")(honest, 0).shape == (0, 400)
    assert torch.equal(vg.Scattered("empire")(honest[:1], 3), vg.Empire()(honest[:1], 3))


def test_foolsgold_drops_attackers_that_are_alike_and_keeps_scattered_ones() -> None:
    """What the noise is for. Momentum of the paper's rule is left to the workers."""
    honest, rule = crowd(d=2000), vg.FoolsGold(f=4)

    def share(attack: vg.Attack) -> float:
        x = torch.cat([honest, attack(honest, 4)])
        return float(rule.weights(Geometry.of(x))[9:].sum())

    assert share(vg.Little()) == share(vg.Empire()) == 0
    assert share(vg.Scattered("empire")) > 0.1
    assert 0 < share(vg.Scattered("little", size=1.0)) < share(vg.Scattered("little", size=2.0))
    assert share(vg.Scattered("little", size=2.0)) == pytest.approx(4 / 13, rel=0.01)  # as any four of 13


def test_a_run_behind_foolsgold_is_lost_to_scattered_attackers_and_not_to_equal_ones() -> None:
    """As the page on threat models says; Multi-Krum stands both."""
    common: dict[str, Any] = {"byzantine": 4, "steps": 60, "evaluate_every": 0, "measure": False}
    found = {
        (rule, attack): vg.run(vg.Experiment(rule=rule, attack=attack, **common)).final_accuracy
        for rule in ("foolsgold", "multi-krum")
        for attack in ("empire", "scattered(attack='empire')")
    }
    assert found.pop(("foolsgold", "scattered(attack='empire')")) < 0.3
    assert min(found.values()) > 0.8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scattered_vectors_keep_the_mean_in_other_types(dtype: torch.dtype) -> None:
    honest = crowd().to(dtype)
    sent = vg.Scattered("little")(honest, 5)
    assert sent.dtype == dtype
    gap = (sent.double().mean(0) - vg.Little()(honest, 5)[0].double()).abs().max()
    assert float(gap) < 16 * torch.finfo(dtype).eps


# -------------------------------------------------------------------------------------------------------------- divided


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.1, 1), (0.5, 3), (0.55, 3), (0.8, 4), (1.0, 5)])
def test_divided_attackers_follow_one_attack_or_the_other(share: float, first: int) -> None:
    honest, attack = crowd(), vg.Divided("little", "empire", share=share)
    assert attack.followers(5) == first
    sent = attack(honest, 5)
    assert torch.equal(sent[:first], vg.Little()(honest, 5)[:first])
    assert torch.equal(sent[first:], vg.Empire()(honest, 5)[first:])


def test_both_attacks_know_how_many_attack() -> None:
    honest = crowd(13)
    sent = vg.Divided("little(factor=None)", "little(factor=None,sign=1)")(honest, 6)
    assert torch.equal(sent[0], vg.Little(None)(honest, 6)[0])
    assert torch.equal(sent[5], vg.Little(None, sign=1)(honest, 6)[0])


def test_each_of_two_attacks_remembers_for_itself() -> None:
    attack = vg.Divided('rop(history="own")', "mimic(warmup=2)")
    apart: list[Any] = [vg.ROP(history="own"), vg.Mimic(warmup=2)]
    memory, memories = None, [None, None]
    for step in range(4):
        honest = crowd(seed=step)
        sent, memory = attack(honest, 2, previous=honest[0], memory=memory)
        for i, one in enumerate(apart):
            alone, memories[i] = one(honest, 2, previous=honest[0], memory=memories[i])
            assert torch.equal(sent[i], alone[0])
    one_remembers = vg.Divided("little", "mimic(warmup=2)")
    sent, memory = one_remembers(crowd(), 2, memory=None)
    assert isinstance(memory, tuple)
    assert memory[0] is None


def test_some_learn_from_wrong_labels_while_others_craft_gradients() -> None:
    """In a run: those that flip labels send what they would if all did, and momentum of their own."""
    e = settings(attack='divided(first="label-flip",second="empire")', byzantine=4, rule="median", momentum=0.9)
    sent = []
    for experiment in (e, settings(attack="label-flip", byzantine=4, rule="median", momentum=0.9)):
        with computing(experiment):
            simulation = build(experiment, opened(experiment))[0]
            simulation.step()
        sent.append(simulation.vectors)
    mixed, flipped = sent
    assert torch.equal(mixed[:9], flipped[:9])
    torch.testing.assert_close(mixed[9:], (-0.1 * mixed[:7].mean(0)).expand(2, -1))


def test_only_its_own_workers_data_are_poisoned() -> None:
    task = vg.Task(classes=10)
    inputs, labels = torch.zeros(5, 2, 1, 4, 4), torch.arange(10).reshape(5, 2)
    attack = vg.Divided("label-flip", "backdoor(target=7,share=1.0,size=1)", share=0.4)
    assert attack.poisons
    assert attack.aims
    changed, wrong = attack.poison(inputs, labels, task)
    assert wrong.tolist() == [[9, 8], [7, 6], [7, 7], [7, 7], [7, 7]]
    assert changed.sum((1, 2, 3, 4)).tolist() == [0, 0, 2, 2, 2]
    assert attack.wanted(torch.tensor([3, 7]), task).tolist() == [7, -100]
    assert float(attack.trigger(inputs[0], task).sum()) == 2
    half = vg.Divided("little", "label-flip")
    assert half.poison(inputs, labels, task)[1].tolist() == [[0, 1], [2, 3], [4, 5], [3, 2], [1, 0]]
    assert vg.Divided("little", "label-flip", share=1.0).poison(inputs, labels, task)[1].equal(labels)
    assert vg.Scattered("label-flip").poison(inputs, labels, task)[1].equal(9 - labels)
    with pytest.raises(ValueError, match="a target from 0 to 4"):
        vg.Divided("little", "backdoor(target=7)").check_task(vg.Task(classes=5))


# --------------------------------------------------------------------------------------------------------------- decoys


class LeastSquares(vg.Selecting):
    """The vector with the least sum of squared distances to all others: what Krum was made instead of."""

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: Geometry) -> np.ndarray:
        sums = geometry.distances.sum(1)
        return vg.mean_weights(geometry.smallest(sums, 1), geometry.n)


@pytest.mark.parametrize("reach", [10.0, 100.0, 1e4])
def test_decoys_have_the_one_in_the_middle_chosen_but_by_krum(reach: float) -> None:
    honest = crowd(8)
    sent = vg.Decoys(reach=reach)(honest, 3)
    assert torch.equal(sent[0], sent[1])
    x = torch.cat([honest, sent])
    torch.testing.assert_close(sent[2], x.mean(0), rtol=1e-9, atol=1e-9)  # the barycentre, itself included
    away = float((sent[0] - honest.mean(0)).norm() / honest.std(0).norm())
    assert away == pytest.approx(reach)
    assert LeastSquares(f=3)(x).equal(sent[2])
    for rule in (vg.Krum(f=3), vg.Medoid(f=3)):
        assert any(rule(x).equal(one) for one in honest)


def test_a_single_attacker_is_a_decoy() -> None:
    honest = crowd(8)
    assert torch.equal(vg.Decoys()(honest, 1)[0], vg.Decoys()(honest, 2)[0])
    assert vg.Decoys()(honest, 0).shape == (0, 400)


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("scattered", vg.Scattered()),
        ('scattered(attack="empire(factor=2.0)",size=0.5)', vg.Scattered(vg.Empire(2.0), 0.5)),
        ("divided(first=label-flip)", vg.Divided(vg.LabelFlip())),
        ("divided(first=\"scattered(attack='min-max')\")", vg.Divided(vg.Scattered(vg.MinMax()))),
        ("decoys(reach=5.0)", vg.Decoys(5.0)),
    ],
)
def test_they_are_settings_as_all_attacks_are(text: str, value: vg.Attack) -> None:
    e, other = settings(attack=text), settings(attack=value)
    assert e.make_attack() == value == other.make_attack()
    assert vg.Experiment.from_toml(e.to_toml()) == e
    assert vg.Experiment.from_json(other.to_json()) == other


@dataclass(frozen=True)
class Loud(vg.Attack):
    """The mean, made longer."""

    times: float = 3.0

    def craft(self, seen: Knowledge) -> Tensor:
        return seen.mean * self.times


def test_attacks_of_ones_own_stand_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = crowd()
    assert torch.equal(vg.Divided(Loud(2.0), "zero")(honest, 2)[0], 2 * honest.mean(0))
    monkeypatch.setitem(ATTACKS, "loud", Loud)
    assert vg.Divided(Loud(2.0)).first == "loud(times=2.0)"
    assert vg.Divided("loud").others[0] == Loud()
    nested = vg.WorstCase(directions=("divided(first='scattered(attack=\"loud\")')",))
    assert Loud in set(parts(nested))
    assert Loud in set(parts(vg.Divided(Loud())))
    kept = settings(attack='divided(first="loud",second="zero")', steps=2)
    with computing(kept):
        assert build(kept, opened(kept))[0].adversary.own


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (lambda: vg.Scattered("litle"), "Scattered: attack: unknown attack 'litle'. Did you mean 'little'?"),
        (lambda: vg.Scattered(3), "Scattered needs attack as the name of an attack, with its options, or as an attack, got 3."),  # type: ignore[arg-type]  # noqa: E501
        (lambda: vg.Scattered("little(factor=x)"), "Scattered: attack: little: factor"),
        (lambda: vg.Scattered(size=0), "Scattered needs a finite size > 0, got 0"),
        (lambda: vg.Scattered(size=float("inf")), "Scattered needs a finite size > 0, got inf."),
        (lambda: vg.Divided(second=vg.Median(f=1)), "Divided needs second as the name of an attack"),  # type: ignore[arg-type]
        (lambda: vg.Divided(share=1.5), "Divided needs a share in [0, 1], got 1.5."),
        (lambda: vg.Decoys(reach=0), "Decoys needs a finite reach > 0, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_at_once(make_it: Any, said: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        make_it()


def test_what_those_within_cannot_do_with_is_said_before_the_run() -> None:
    with pytest.raises(vg.ConfigurationError, match="at least 2 honest vectors, got 1"):
        settings(attack="scattered", knowledge="spied(k=1)")
    with pytest.raises(vg.ConfigurationError, match="both ask what"):
        settings(attack='divided(first="label-flip")', knowledge="own")
    with pytest.warns(UserWarning, match="attacks nobody"):
        vg.Scattered("little(factor=0.0)")(crowd(), 2)
    with pytest.warns(UserWarning, match="attacks nobody"):
        vg.Divided("little(factor=0.0)", "empire", share=1.0)(crowd(), 2)
    vg.Divided("little(factor=0.0)", "empire")(crowd(), 2)  # the others attack


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("place", ["worker", "adaptive"])
@pytest.mark.parametrize("knowledge", ["omniscient", "own", "last-round"])
@pytest.mark.parametrize(
    "attack",
    ['scattered(attack="mimic(warmup=3)")', 'divided(first="rop(history=\'own\')",second="gaussian(std=0.1)")'],
)
def test_runs_go_on_and_are_replayed_exactly(attack: str, knowledge: str, place: Any, tmp_path: Path) -> None:
    e = settings(attack=attack, knowledge=knowledge, momentum_at=place, steps=6)
    whole = vg.run(e, tmp_path / "whole", opened(e))
    assert whole.folder is not None
    folder = interrupt(e, tmp_path / "parts", 3, opened(e))
    assert vg.resume(folder, opened(e)).began == 3
    for file in ("metrics.csv", "evaluations.csv", "state.pt"):
        assert (folder / file).read_bytes() == (whole.folder / file).read_bytes()
    assert replay(whole.folder, 3, opened(e)).agrees


# ------------------------------------------------------------------------------------------------------------- measures


def test_measures_are_of_the_mean_of_attackers_that_differ_and_of_how_far_they_are_apart() -> None:
    for attack in ("scattered", "divided", "decoys", "gaussian", "little"):
        e = settings(attack=attack, rule="multi-krum", byzantine=3)
        with computing(e):
            simulation = build(e, opened(e))[0]
        for _ in range(3):
            row = simulation.step()
            sent, honest = simulation.vectors[8:].double(), simulation.vectors[:8].double()
            mean, usual = sent.mean(0), honest.mean(0)
            assert row.attack_norm == pytest.approx(float(mean.norm()), rel=1e-5)
            assert row.attack_max == pytest.approx(float(mean.abs().max()), rel=1e-5)
            apart = float((sent - mean).square().sum().div(2).sqrt())
            assert row.attack_deviation == pytest.approx(apart, rel=1e-4, abs=1e-6)
            assert (row.attack_deviation == 0) == (attack == "little")
            assert row.honest_deviation == pytest.approx(float((honest - usual).square().sum().div(7).sqrt()), rel=1e-4)
            cosine = float(mean @ usual / mean.norm() / usual.norm())
            assert row.cosine_honest_attack == pytest.approx(cosine, abs=1e-5)


@dataclass(frozen=True)
class Hides(vg.Attack):
    """One sends the mean, the others what nobody takes."""

    def craft(self, seen: Knowledge) -> Tensor:
        return seen.mean + 1e3 * torch.arange(seen.f, dtype=seen.honest.dtype).unsqueeze(1)


def test_the_share_of_a_selection_that_is_byzantine_counts_each_attacker() -> None:
    """One in the middle of all is taken, its decoys are not."""

    e = settings(rule="multi-krum", byzantine=3)
    with computing(e):
        plain = build(e, opened(e))[0]
        simulation = Simulation(
            plain.gradients, plain.batches, plain.algorithm, 11, real_byzantine=3, attack=Hides(), seed=1
        )
    row = simulation.step()
    assert row.byzantine_share == pytest.approx(1 / 6)  # m = n - f - 2
    krum = vg.Algorithm(plain.algorithm.worker, rule=vg.Krum(f=3), server=plain.algorithm.server)
    with computing(e):
        simulation = Simulation(plain.gradients, plain.batches, krum, 11, real_byzantine=3, attack=Hides(), seed=1)
    assert simulation.step().byzantine_share == 1


def kept(tmp_path: Path, attack: str | None, seed: int = 1) -> vg.Result:
    e = settings(attack=attack, steps=4, seed=seed)
    return vg.run(e, tmp_path, opened(e))


def test_outcomes_say_how_far_attackers_are_apart(tmp_path: Path) -> None:
    results = [kept(tmp_path, attack) for attack in ("scattered", "little", None)]
    made, of = {}, {}
    for result in results:
        assert result.folder is not None
        attack = result.experiment.attack
        made[attack], of[attack] = from_result(result), read_outcome(result.folder)
        assert (of[attack].attackers_apart is None) == (made[attack].attackers_apart is None)
    steps = [m.attack_deviation / m.honest_deviation for m in results[0].measures]  # type: ignore[operator]
    assert made["scattered"].attackers_apart == np.median(steps)
    assert of["scattered"].attackers_apart == pytest.approx(np.median(steps), rel=1e-6)
    assert 0.7 < np.median(steps) < 1.3
    assert of["little"].attackers_apart is of[None].attackers_apart is None
    write_runs(tmp_path, of.values())
    header, *rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert header.endswith(",stopped,attackers_apart")
    assert [row.endswith(",") for row in rows] == [True, True, False]  # none, little, scattered
    read = {o.experiment.attack: o for o in read_runs(tmp_path / "runs.csv")}
    assert {a: o.attackers_apart for a, o in read.items()} == {a: o.attackers_apart for a, o in of.items()}
    text = (tmp_path / "runs.csv").read_text()
    (tmp_path / "runs.csv").write_text(text.replace(f",{of['scattered'].attackers_apart!r}", ",-1.0"))
    with pytest.raises(ValueError, match=r"line 4: attackers_apart must be a number of at least 0, got -1\.0"):
        read_runs(tmp_path / "runs.csv")
    write_runs(tmp_path, [of["little"], of[None]])
    assert (tmp_path / "runs.csv").read_text().splitlines()[0].endswith(",stopped")


def test_attackers_of_vectors_that_are_no_numbers_are_not_apart(tmp_path: Path) -> None:
    result = kept(tmp_path, 'divided(first="inf",second="little")')
    assert result.folder is not None
    assert read_outcome(result.folder).attackers_apart is None
    assert from_result(result).attackers_apart is None


def test_the_report_and_a_replay_say_it(tmp_path: Path) -> None:
    results = [kept(tmp_path / "runs", a, seed) for a in ("scattered", "gaussian", "little") for seed in (1, 2)]
    page = vg.report(tmp_path / "runs", tmp_path / "out").read_text("utf-8")
    found = re.search(r"<h2>Attackers that do not all send the same</h2>.*?</table>", page, re.DOTALL)
    assert found is not None
    assert re.findall(r"<tr><td>(\w+)</td>", found[0]) == ["gaussian", "scattered"]
    assert re.findall(r"data-name=runs>(\d+)<", found[0]) == ["2", "2"]
    only = [from_result(result) for result in results[-2:]]
    assert "Attackers that do not all" not in vg.report(only, tmp_path / "only").read_text("utf-8")
    said, plain = (str(replay(r.folder, 2, opened(r.experiment))) for r in (results[0], results[-1]))  # type: ignore[arg-type]
    assert re.search(r"8 to 10 are of scattered, a deviation of [\d.]+ from each other \(honest ones: [\d.]+\);", said)
    assert "8 to 10 are of little; " in plain


@pytest.mark.parametrize(
    ("asks", "name"), [("uses_defence", "worst-case"), ("uses_previous", "rop"), ("poisons", "label-flip")]
)
def test_what_one_of_two_attacks_asks_for_both_ask_for(asks: str, name: str) -> None:
    assert getattr(vg.Divided(name, "zero"), asks)
    assert getattr(vg.Divided("zero", name), asks)
    assert not getattr(vg.Divided("zero", "nan"), asks)
