"""What is advised before any run: it follows from what rules say of themselves and from results that are here."""

from __future__ import annotations

import csv
import importlib
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import programs
import varangian as vg
from made_cards import SETTINGS, attack, card
from varangian.runs.experiment import ConfigurationError
from varangian.study import advice as module
from varangian.study.advice import KINDS, difference
from varangian.study.score import Breakdown, Breaks, Card, Kappa, Trained, usual

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "advice.md").read_text("utf-8")
Program = Callable[..., Any]
SMALL = {"workers": 11, "byzantine": 4}


def test_what_is_allowed_runs_and_what_is_not_is_refused() -> None:
    for n, f in ((11, 4), (11, 2), (7, 0), (23, 5)):
        for choice in vg.advise(n, f).choices:
            refused = False
            try:
                vg.Experiment(workers=n, byzantine=f, rule=choice.rule, pre=choice.pre)
            except ConfigurationError:
                refused = True
            # What only a simulator lacks, or only shows once vectors come, a run refuses otherwise.
            assert refused <= bool(choice.refusal), choice
            if choice.refusal and not refused:
                assert choice.rule in ("average", "smea")
            assert bool(choice.refusal) != choice.allowed


def test_the_greatest_f_is_the_greatest_that_a_run_takes() -> None:
    for choice in vg.advise(13, 2).choices:
        if choice.rule in ("average", "fltrust"):
            continue
        possible = []
        for f in range(7):
            try:
                vg.Experiment(workers=13, byzantine=f, rule=choice.rule, pre=choice.pre)
            except ConfigurationError:
                continue
            possible.append(f)
        assert choice.greatest == max(possible), choice


def test_a_search_that_would_never_end_is_not_advised() -> None:
    [small] = [c for c in vg.advise(15, 3).choices if c.rule == "smea"]
    [large] = [c for c in vg.advise(51, 12).choices if c.rule == "smea"]
    assert small.allowed
    assert "more than 2,000,000 subsets" in large.refusal
    with pytest.raises(ValueError, match="158753389900"):
        vg.SMEA(f=12)(np.random.default_rng(0).standard_normal((51, 3)))


def test_the_price_of_f_is_what_a_rule_that_holds_must_pay() -> None:
    """On the vectors that docs/howto/advice.md argues with, in fractions, and no rule that is proved does better."""
    n, f = 15, 3
    for price in vg.advise(n, f).prices:
        g = price.declared
        assert price.calm == pytest.approx(g / (n - g))
        if g < f:
            assert price.attacked is None
            continue
        honest = [Fraction(0)] * (n - f - g) + [Fraction(1)] * g
        mean = sum(honest) / len(honest)
        spread = sum((x - mean) ** 2 for x in honest) / len(honest)
        assert price.attacked is not None
        assert price.attacked == pytest.approx(float(mean**2 / spread))
        x = np.array([[float(v)] for v in honest] + [[0.0]] * f)
        for rule in (vg.Krum(f=g), vg.Median(f=g), vg.TrimmedMean(f=g), vg.MinimumDiameterAveraging(f=g)):
            if rule.min_n <= n:
                assert np.square(rule(x) - float(mean)) / float(spread) >= price.attacked * (1 - 1e-9)
    assert vg.advise(4, 1).prices[-1].declared == 1
    assert vg.advise(3, 1).prices[-1].attacked == 1.0
    assert all(price.attacked != inf for price in vg.advise(51, 25).prices)


def test_the_figure_of_the_page_draws_the_same_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "howto")
    figure = importlib.import_module("advice")
    advised = {p.declared: p.attacked for p in vg.advise(51, 12).prices}
    drawn = dict(figure.costs(51, 12))
    assert {g: drawn[g] for g in advised if g >= 12} == {g: cost for g, cost in advised.items() if g >= 12}
    made = figure.draw(tmp_path / "advice")
    assert made.stat().st_size > 10_000


def test_the_numbers_of_the_study_are_those_of_its_table() -> None:
    with open(ROOT / "results" / "heterogeneity" / "cells.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    for kind in KINDS:
        for dataset, (low, high) in kind.gains.items():
            gains = [
                float(cell["gain"])
                for cell in cells
                if cell["dataset"] == dataset and cell["partition"] == kind.measured and "nnm" in cell["rule"]
            ]
            assert (low, high) == (min(gains), max(gains))
            if dataset == "fashion-mnist":
                assert kind.place == ("worker" if min(gains) > 0 else "server")
        attacks = {
            cell[f"{place}_attack"] for cell in cells for place in ("server", "worker")
            if cell["partition"] == kind.measured and "nnm" in cell["rule"]
        }  # fmt: skip
        assert attacks <= set(kind.attacks)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.measured)
def test_the_partitions_of_the_study_are_of_their_own_kind(kind: Any) -> None:
    for n, f in ((15, 3), (51, 12)):
        assert vg.advise(n, f, partition=kind.measured).data == kind.name


def test_how_far_apart_a_partition_puts_workers() -> None:
    def of(partition: str, **more: Any) -> float:
        return difference(vg.Experiment(rule="average", partition=partition, **more))

    assert of("iid") == 0
    assert of("similarity(gamma=1.0)") < 0.05
    assert 0 < of("dirichlet(alpha=10)") < of("dirichlet(alpha=1)") < of("dirichlet(alpha=0.1)") < of("extreme") < 0.9
    assert of("quantity") < 0.05  # unequal amounts of the same mixture
    assert of("long-tail") < 0.1  # rare classes, as rare everywhere
    assert of("extreme", dataset="synthetic(classes=2)") == pytest.approx(0.5, abs=0.05)
    assert of("extreme", workers=3, byzantine=2) == 0  # one honest worker


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigurationError) as raised:
        vg.advise(10, 5, partition="dirichlet(alpha=-1)", dataset="digit", model="mlp", batch_size=0)
    faults = raised.value.faults
    assert len(faults) == 5
    assert faults[-1] == "byzantine: no rule holds where half or more may lie, at most 4 of 10 workers, got 5."
    with pytest.raises(ConfigurationError, match="say how many of the workers may lie at once, at most 7 of 15"):
        vg.advise(15, None)
    with pytest.raises(ConfigurationError, match=r"partition: .*classes"):
        vg.advise(15, 3, partition="classes(per_worker=20)")
    with pytest.raises(ConfigurationError) as raised:
        vg.advise(15, 3, rules=["krumm", "nnn,median"])
    assert len(raised.value.faults) == 2
    for n, f in ((0, 0), (-1, 0), ("x", 1), (5, "y"), (1, 1), (2, 1), (5, -1), (True, False), (20_000, 1)):
        with pytest.raises(ConfigurationError):
            vg.advise(n, f)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "f"), [(1, 0), (2, 0), (3, 1), (5, 2), (9, 4), (10_000, 2_000), (10_000, 4_999)])
def test_at_the_edges(n: int, f: int) -> None:
    advice = vg.advise(n, f, partition="extreme")
    assert advice.first
    assert all(advice._named(name).allowed for name in advice.first)
    json.loads(advice.to_json())
    assert all(len(line) <= 100 for line in str(advice).splitlines() if "varangian" not in line)


def test_without_liars_the_average() -> None:
    advice = vg.advise(10, 0)
    assert advice.first == ("average",)
    assert len(advice.commands) == 1
    assert "attack" not in advice.commands[0]


def test_rules_of_ones_own(varangian: Program, tmp_path: Path) -> None:
    (tmp_path / "my_rule.py").write_text((ROOT / "examples" / "my_rule.py").read_text("utf-8"), "utf-8")
    end = varangian(
        "advise", *flags(SMALL), "--rule", "nnm, my_rule.py:MyRule(m=3)", "--rule", "my_rule.py:MyRule(m=9)", "--json"
    )
    assert end.status == 0
    said = json.loads(end.out)
    one, other = said["choices"][:2]
    assert (one["name"], one["needs"], one["greatest"]) == ("nnm + my_rule.py:MyRule(m=3)", "2f + m = 11", 4)
    assert other["refusal"] == "needs n >= 2f + m = 17 vectors, got 11; f = 1 would do"
    assert said["first"][-1] == one["name"]
    assert "varangian score 'my_rule.py:MyRule(m=3)' --pre=nnm --out=cards" in said["commands"]
    end = varangian("advise", *flags(SMALL), "--rule", "nothing.py:Nobody")
    assert end.status == 2
    assert "nothing.py" in end.err


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.slow
def test_its_commands_run_as_printed(varangian: Program) -> None:
    end = varangian("advise", *flags(SMALL), "--partition", "extreme", "--batch-size", "2", "--json")
    for command in json.loads(end.out)["commands"]:
        program, name, *words = shlex.split(command)
        assert program == "varangian"
        if name == "sweep":
            few = "seeds=1", 'momentum_at=["server"]', 'attack=["little"]'
            words += [word for setting in ("steps=2", *few) for word in ("--set", setting)]
        words += ["--steps", "2"] if name in ("run", "data") else []
        ended = varangian(name, *words)
        assert ended.status == 0, (command, ended.err)


def test_what_the_command_refuses(varangian: Program, tmp_path: Path) -> None:
    end = varangian("advise", "--workers", "10", "--byzantine", "5", "--partition", "dirichet")
    assert end.status == 2
    assert "2 faults" in end.err
    assert "dirichlet" in end.err
    end = varangian("advise", "--workers", "9")
    assert end.status == 2
    assert "at most 4 of 9" in end.err
    end = varangian("advise", *flags(SMALL), "--grid", "nowhere/try.toml")
    assert end.status == 2
    assert "--grid nowhere/try.toml: there is no folder nowhere." in end.err
    end = varangian("advise", *flags(SMALL), "--cards", ".")
    assert end.status == 2
    assert "there are no score cards in cards" in end.err
    end = varangian("advise", *flags(SMALL), "--rule", "bucketing(s=2),nnm", "--rule", "")
    assert end.status == 2
    assert "bucketing(s=2),nnm ends with a mixing" in end.err
    assert "2 faults" in end.err
    end = varangian("advise", *flags(SMALL), "--grid", str(tmp_path))
    assert end.status == 2
    assert vg.Grid.from_toml(vg.advise(11, 4).grid().to_toml()) == vg.advise(11, 4).grid()


@pytest.mark.slow
def test_nothing_of_it_is_random() -> None:
    once = vg.advise(51, 12, partition="dirichlet(alpha=0.3)").to_json()
    line = "import varangian as vg; print(vg.advise(51, 12, partition='dirichlet(alpha=0.3)').to_json())"
    again = programs.run("-c", line)
    assert again.stdout.strip() == once, again.stderr


def test_what_the_page_prints(tmp_path: Path, varangian: Program) -> None:
    blocks = PAGE.split("```")[1::2]
    [commands] = [b.removeprefix("sh\n") for b in blocks if b.startswith("sh\n")]
    for line in commands.splitlines():
        assert varangian(*shlex.split(line)[1:]).status == 0
    [program] = [b.removeprefix("python\n") for b in blocks if b.startswith("python\n")]
    done = programs.run("-c", program)
    assert done.stdout == blocks[-1].lstrip("\n"), done.stderr


@pytest.fixture
def carded(monkeypatch: pytest.MonkeyPatch) -> list[Card]:
    """Cards of all that usually has one: the worst attack leaves 40 %, but 60 % behind NNM and 70 % with caf."""
    levels = {"caf": 0.9, **{s.name: 0.8 for s in usual() if s.pre == ("nnm",)}}
    cards = [
        card(s.rule, levels.get(s.name, 0.6), pre=s.pre, title=s.name) for s in usual() if s.kind == "rule"
    ]  # fmt: skip
    monkeypatch.setattr(module, "stored", lambda: tuple(cards))
    return cards


def test_cards_say_what_comes_first(carded: list[Card]) -> None:
    advice = vg.advise(11, 2, partition="dirichlet(alpha=0.1)")
    assert advice.first[0] == "caf"
    assert all(name.startswith("nnm + ") for name in advice.first[1:])
    assert "the worst attack leaves 71 % with caf, 61 % with nnm + " in advice.reasons[0]
    [caf] = [c for c in advice.choices if c.name == "caf"]
    assert caf.measured is not None
    assert (round(caf.measured.left), round(caf.measured.calm), caf.measured.share) == (71, 91, 2)
    text = str(advice)
    allowed = text[text.index("Allowed with") : text.index("Not allowed")]
    assert allowed.index("caf") < allowed.index("nnm + krum") < allowed.index("median  ")


def test_a_rule_that_attacks_break_with_such_a_share_comes_later(carded: list[Card]) -> None:
    breaks = (Breaks("caf", "dirichlet(alpha=0.1)", 3, 5, 0.2, 0.9),)
    carded.append(replace(attack("mimic"), breaks=breaks))
    for n, f, broken in ((11, 2, False), (11, 3, True), (51, 9, False), (51, 14, True), (51, 20, True)):
        advice = vg.advise(n, f, partition="dirichlet(alpha=0.1)")
        [caf] = [c for c in advice.choices if c.name == "caf"]
        assert caf.measured is not None
        assert caf.measured.broken == (("mimic",) if broken else ())
        assert advice.choices[0].measured is None or advice.choices[0].measured.broken is None  # which was not tried
        assert (advice.first[0] == "caf") is not broken
    alike = vg.advise(11, 3)
    assert alike.first[0] == "caf"  # it was broken on other data
    assert "you ask about 39 %" in str(vg.advise(51, 20))
    assert "you ask about" not in str(vg.advise(11, 2))


def test_a_broken_rule_is_never_first(carded: list[Card]) -> None:
    broken = card("caf", 0.95, breakdown=(Breakdown(11, 2, 1, None, "one at place 1 of 11"),))
    advice = vg.advise(11, 2, cards=[broken])
    assert "caf" not in advice.first
    [caf] = [c for c in advice.choices if c.name == "caf"]
    assert any("BROKEN: told to expect 2 attackers of 11" in caveat for caveat in caf.caveats)


def test_a_rule_that_does_not_follow_the_honest_is_never_first(carded: list[Card]) -> None:
    advice = vg.advise(11, 2, cards=[card("caf", 0.95, kappa=(Kappa(11, 2, inf, 2 / 7, None),))])
    assert "caf" not in advice.first
    assert "an infinite kappa" in str(advice)


def test_the_measured_price_and_what_too_few_do(carded: list[Card]) -> None:
    priced = card(
        "caf", 0.9, untroubled=tuple(
            Trained("iid", "worker", f, {"none": (0.9 - f / 100,)}) for f in range(6)
        ), breakdown=tuple(Breakdown(11, f, None if f else 1, None, "somehow") for f in range(6)),
    )  # fmt: skip
    advice = vg.advise(22, 4, cards=[priced])  # 2 of the card's 11
    assert advice.first[0] == "caf"
    assert {p.declared: p.lost for p in advice.prices} == {
        0: 0.0, 2: pytest.approx(1), 4: pytest.approx(2), 7: pytest.approx(4), 8: pytest.approx(4), 10: pytest.approx(5)
    }  # fmt: skip
    assert "Told of too few, caf is undone: told of 0 of 11, 1 undoes it." in advice.reasons


def test_cards_that_were_made_otherwise_are_not_compared(carded: list[Card]) -> None:
    quick = card("caf", 0.99, settings=replace(SETTINGS, seeds=(1,)))
    advice = vg.advise(11, 2, cards=[quick])
    assert "caf" not in advice.first
    [caf] = [c for c in advice.choices if c.name == "caf"]
    assert "its card was made otherwise than those of the package" in caf.caveats


def test_a_few_cards_say_too_little(carded: list[Card]) -> None:
    del carded[5:]
    advice = vg.advise(11, 2)
    assert advice.first == ("trimmed-mean", "geometric-median", "median")


def test_cards_of_ones_own_from_a_folder(carded: list[Card], varangian: Program, tmp_path: Path) -> None:
    from varangian.study.score.folder import write_card

    (tmp_path / "my_rule.py").write_text((ROOT / "examples" / "my_rule.py").read_text("utf-8"), "utf-8")
    write_card(card("my_rule.py:MyRule", 0.95, ours=False), tmp_path / "mine")
    end = varangian("advise", *flags(SMALL), "--rule", "my_rule.py:MyRule", "--cards", "mine", "--json")
    said = json.loads(end.out)
    assert said["first"][0] == "my_rule.py:MyRule"
    assert not any("varangian score" in command for command in said["commands"])
    (tmp_path / "mine" / "cards" / "other.json").write_text("{}", "utf-8")
    end = varangian("advise", *flags(SMALL), "--cards", "mine")
    assert end.status == 2
    assert "other.json: this is no score card" in end.err


def test_rules_themselves_and_a_rule_that_says_its_own_f() -> None:
    advice = vg.advise(11, 4, rules=[vg.Median, vg.MultiKrum(f=2), "nnm,median"])
    assert [c.name for c in advice.choices[:3]] == ["median", "multi-krum(f=2)", "nnm + median"]
    assert advice.choices[1].caveats == ("told of 2, whatever f is",)
