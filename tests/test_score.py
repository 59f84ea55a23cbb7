"""Score cards: what they measure, what tells good rules from bad ones, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import varangian as vg
from varangian.study.score import Card, breaking, card, folder, timing, training, usual
from varangian.study.score.subject import BEHIND, Subject, subject_of
from varangian.study.score.verdict import verdict

Program = Callable[..., Any]
FIRST_ROW = '''
from dataclasses import dataclass
import varangian as vg

@dataclass(frozen=True)
class FirstRow(vg.General):
    """The first vector."""

    @property
    def needs(self):
        return "2f + 1", 2 * self.f + 1

    def combine(self, x, previous):
        return x[0].clone()
'''


@pytest.fixture
def first_row(tmp_path: Path) -> str:
    (tmp_path / "first.py").write_text(FIRST_ROW)
    return f"{tmp_path / 'first.py'}:FirstRow"


def sample() -> Card:
    """A card with every part, made up."""
    accuracies = [
        card.Accuracy(attack, p, m, 2, (0.8, 0.7, 0.75) if attack is None else (0.5, 0.4, 0.6))
        for p in training.settings().partitions
        for m in training.settings().places
        for attack in (None, *training.settings().attacks)
    ]
    made = Card(
        kind="rule", rule="krum", pre=("nnm",), title="Krum", ours=True, declared=4, settings=training.settings(),
        conformance=(card.Conformance("krum", ("NEEDS",), (card.Failed("KIND", "kept", "not"),), {"ROBUST": "why"}),),
        breakdown=(card.Breakdown(11, 2, 3, None, "far"),), kappa=(card.Kappa(11, 2, float("inf"), 2 / 7, None),),
        worst=card.Worst(11, 2, "little", 0.5, 1.5), trained=card.Trained.of(accuracies),
        untroubled=card.Trained.of([card.Accuracy(None, "iid", "worker", 0, (0.9,), 1, "diverged")]),
        noise=(card.Noise(11, 2, 1.5),), untried=(card.Untried("this", "that"),),
        cost=card.Cost("machine", 12.3, (card.Time(11, 1000, 1e-5, 3.0),), (card.Memory(11, 1000, 5, 0.1),)),
    )  # fmt: skip
    return replace(made, verdict=verdict(made)).rounded()


def test_a_card_comes_back_from_its_json() -> None:
    made = sample()
    assert Card.from_json(made.to_json()) == made
    assert made.to_json() == Card.from_json(made.to_json()).to_json()
    assert made.kappa[0].found == float("inf")
    assert card.cards_of(card.text_of([made, made])) == (made, made)


def test_the_score_is_what_its_sentence_says() -> None:
    made = sample()
    assert made.score == pytest.approx(50)
    assert made.worst_attack is not None
    assert made.loss(made.worst_attack) == pytest.approx(0.25)
    less = replace(made, trained=made.trained[:3])
    assert less.score is None  # a setting is missing
    assert card.place(less, [made]) is None
    better = replace(made, rule="median", trained=tuple(_better(t) for t in made.trained))
    assert card.place(made, [better, made]) == card.Place(2, 2)
    other = replace(better, settings=replace(better.settings, steps=7))
    assert card.place(made, [other]) == card.Place(1, 1)  # not measured alike


def _better(trained: card.Trained) -> card.Trained:
    return replace(trained, accuracies=dict.fromkeys(trained.accuracies, (0.9, 0.9, 0.9)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: [],
        lambda c: {**c, "format": 2},
        lambda c: {**c, "kind": "thing"},
        lambda c: {**c, "breakdown": [{"n": 1}]},
        lambda c: {name: value for name, value in c.items() if name != "rule"},
    ],
)
def test_what_is_no_card_is_refused_in_one_line(spoil: object) -> None:
    content = spoil(sample().to_dict())  # type: ignore[operator]
    with pytest.raises(ValueError, match="score card") as error:
        Card.from_json(json.dumps(content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["krum", "median", "bulyan", "geometric-median", "trimmed-mean"])
def test_rules_withstand_what_they_declare_and_no_more_than_half(name: str) -> None:
    for f in (0, 1, 2):
        found = breaking.breakdown(Subject("rule", name), 11, f)
        assert found.holds
        assert found.refused == f + 1  # more vectors with NaN than f are refused
        assert found.moved is not None
        assert f < found.moved <= 6


def test_the_average_is_moved_by_one() -> None:
    found = breaking.breakdown(Subject("rule", "average"), 11, 2)
    assert (found.moved, found.holds) == (1, False)


def test_a_rule_that_trusts_the_first_row_is_found_out(first_row: str) -> None:
    found = breaking.breakdown(subject_of(first_row), 11, 2)
    assert (found.moved, found.holds) == (1, False)
    assert "from place 1 of 11" in found.how


def test_a_rule_that_trusts_a_place_by_its_definition_is_not_attacked_from_there() -> None:
    assert breaking.breakdown(Subject("rule", "monna"), 11, 2).holds
    assert vg.MoNNA(2).by_place


def test_subjects_are_told_apart() -> None:
    assert subject_of("bulyan").kind == "rule"
    assert subject_of("bulyan", kind="attack").attack == "bulyan"
    assert subject_of("nnm").name == f"nnm + {BEHIND}"
    assert subject_of("bucketing(s=2)", behind="krum").name == "bucketing + krum"
    assert subject_of("krum", pre=["nnm", "clipping"]).name == "nnm + clipping + krum"
    for text, said, wrong in [
        ("medain", {}, "Did you mean"),
        ("krum(f=2)", {}, "leave f=2 out"),
        ("little", {"pre": ["nnm"]}, "stand before a rule"),
        ("krum", {"behind": "median"}, "is for a mixing"),
        ("krum(m=3)", {}, "m"),
        ("krum", {"kind": "attack"}, "krum"),
    ]:
        with pytest.raises(ValueError, match=wrong.replace("(", r"\(")) as error:
            subject_of(text, **said)
        assert "\n" not in str(error.value)


def test_the_package_has_the_cards_of_all_rules_and_usual_compositions() -> None:
    assert all(c.verdict == verdict(c) for c in card.stored())
    alike = {c.name for c in card.stored() if c.kind != "attack" and c.settings == training.settings()}
    assert {subject.name for subject in usual() if subject.kind == "rule"} == alike
    assert len({(c.kind, c.name) for c in card.stored()}) == len(card.stored())


def test_classes_and_objects_are_what_their_texts_are() -> None:
    assert subject_of(vg.MultiKrum(3, m=2)) == subject_of("multi-krum(m=2)")
    assert subject_of(vg.Krum, pre=vg.NearestNeighborMixing(1)) == subject_of("krum", pre=["nnm"])
    assert subject_of(vg.Little(2.0)).attack == "little(factor=2.0)"
    with pytest.raises(ValueError, match="a text, a class or an object, got 3"):
        subject_of(3)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> card.Settings:
    """Trainings of two steps, under two attacks; small vectors to take the time of."""
    whole = training.settings()
    found = replace(whole, steps=2, seeds=(1, 2), attacks=("nan", "label-flip"), partitions=("iid",))
    monkeypatch.setattr(training, "settings", lambda quick=False: found)
    monkeypatch.setattr(timing, "SIZES", ((11, 1000), (15, 2000)))
    return found


@pytest.mark.slow
def test_a_card_is_the_same_each_time_but_for_its_cost(short: card.Settings) -> None:
    cards = [vg.score(vg.TrimmedMean, pre="nnm") for _ in range(2)]
    assert replace(cards[0], cost=card.Cost()) == replace(cards[1], cost=card.Cost())
    made = cards[0]
    assert {(a.attack, a.partition, a.momentum_at) for a in made.accuracies} == {
        (attack, "iid", place) for attack in (None, "nan", "label-flip") for place in ("server", "worker")
    }
    assert all(len(a.seeds) == 2 for a in made.accuracies)
    assert made.score is not None
    assert [b.f for b in made.breakdown] == list(range(made.declared + 1)) == [0, 1, 2, 3, 4, 5]
    assert all(b.holds for b in made.breakdown)
    assert [c.subject for c in made.conformance] == ["nnm", "trimmed-mean"]
    assert all(k.found >= 0.99 * k.least for k in made.kappa)
    assert made.noise[0].error == pytest.approx(1)
    assert made.noise[5].error > 1.1
    assert made.cost.time


def test_what_raises_is_told_and_the_rest_is_measured(short: card.Settings, tmp_path: Path) -> None:
    text = FIRST_ROW.replace("return x[0].clone()", "return x[0].clone() if x.shape[1] < 99 else x.nothing")
    (tmp_path / "raises.py").write_text(text)
    made = vg.score(f"{tmp_path / 'raises.py'}:FirstRow")
    assert made.verdict[0].startswith("BROKEN")
    assert all(a.mean == 0.1 and a.stopped == 2 for a in made.accuracies)
    assert made.accuracies[0].why.startswith("raised AttributeError at ")
    assert any("it learns nothing, also without attack (raised AttributeError" in line for line in made.verdict)
    assert made.breakdown
    assert not made.cost.time
    assert any("time and memory" in untried.what and "nothing" in untried.why for untried in made.untried)


def test_a_slow_rule_is_not_waited_for(short: card.Settings, tmp_path: Path) -> None:
    text = FIRST_ROW.replace("return x[0]", "__import__('time').sleep(0.06); return x[0]")
    (tmp_path / "slow.py").write_text(text)
    made = vg.score(f"{tmp_path / 'slow.py'}:FirstRow", budget=1.0)
    assert not made.breakdown
    assert made.score is None
    why = {what: untried.why for untried in made.untried for what in untried.what.split(", ")}
    assert "one aggregation takes 0.06" in why["kappa"]
    assert "within 1 s" in why["trainings under label-flip"]


def test_what_an_attack_breaks(short: card.Settings) -> None:
    made = vg.score("little", cards=())
    assert made.kind == "attack"
    assert {b.rule for b in made.breaks} == {victim.name for victim in training.victims()}
    assert made.score is None
    assert Card.from_json(made.to_json()) == made


def test_an_attack_that_raises_breaks_nothing(short: card.Settings, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(
        "import varangian as vg\n\nclass Fails(vg.Attack):\n    def craft(self, seen):\n        return seen.nothing\n"
    )
    made = vg.score(f"{tmp_path / 'fails.py'}:Fails", cards=())
    assert not made.breaks
    assert made.verdict[0].startswith("BROKEN: it does not keep its contract")
    assert any("against krum" in untried.what and "nothing" in untried.why for untried in made.untried)


def test_the_command_prints_a_page_or_json_and_keeps_the_card(short: card.Settings, varangian: Program) -> None:
    Path("first.py").write_text(FIRST_ROW)
    end = varangian("score", "first.py:FirstRow", "--out", "kept")
    assert end.status == 0
    assert end.out.splitlines()[0] == "first.py:FirstRow"
    assert "BROKEN: told to expect 1 attacker of 11, it is undone by 1" in end.out
    assert "from place 1 of 11" in " ".join(end.out.split())
    assert max(map(len, end.out.splitlines())) <= 80
    [path] = Path("kept", "cards").glob("*.json")
    assert f"Card: {path}\n" in end.err
    assert Card.from_json(path.read_text()).rule == "first.py:FirstRow"
    assert len(card.cards_of(Path("kept", "cards.json").read_text())) == 1
    end = varangian("score", "first.py:FirstRow", "--json")
    assert end.status == 0
    assert Card.from_json(end.out).rule == "first.py:FirstRow"


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ((), "needs a NAME"),
        (("medain",), "Did you mean 'median'?"),
        (("nothing.py:Here",), "nothing.py"),
        (("krum(f=1)",), "leave f=1 out"),
        (("krum", "--pre", "nmm"), "nnm"),
        (("krum", "--behind", "median"), "is for a mixing"),
        (("krum", "--jobs", "2"), "--jobs is of --all"),
        (("krum", "--budget", "soon"), "is not a time"),
        (("krum", "--budget", "0s"), "is not a time"),
        (("--all",), "--all needs --out DIR"),
        (("krum", "--all", "--out", "x"), "leave NAME out"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(said: tuple[str, ...], wrong: str, varangian: Program) -> None:
    end = varangian("score", *said)
    assert end.status == 2
    assert end.out == ""
    assert wrong in end.err
    assert end.err.count("\n") == 1
    assert not Path("x").exists()


def test_a_plain_function_is_no_rule(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def mean(x):\n    return x.mean(0)\n")
    with pytest.raises(ValueError, match="is no rule, no mixing and no attack, which derive"):
        subject_of(f"{tmp_path / 'plain.py'}:mean")


def test_all_of_them_go_on_where_they_were(short: card.Settings, tmp_path: Path) -> None:
    made = replace(sample(), pre=(), settings=short)
    folder.write_card(made, tmp_path)
    told: list[str] = []

    def tell(subject: Subject, *rest: object) -> None:
        told.append(subject.name)

    about = Subject("rule", "krum")
    assert folder.score_all([about], tmp_path, jobs=1, budget=10.0, told=tell) == [made]
    assert not told  # it was there
    (tmp_path / "cards" / "krum.json").write_text("{}")
    with pytest.raises(ValueError, match=r"krum.json: this is no score card"):
        folder.score_all([about], tmp_path, jobs=1, budget=10.0, told=tell)


NEEDING = """
@dataclass(frozen=True)
class Needing(vg.Coordinatewise):
    least: int = 0

    def __post_init__(self):
        if self.f < self.least:
            raise ValueError(f"Needing needs f >= {self.least}, got {self.f}.")

    @property
    def needs(self):
        return "6f + 1", 6 * self.f + 1

    def statistic(self, n):
        return self.f, n - self.f, 0
"""


def test_rules_that_need_many_vectors_or_refuse_some_f_are_scored_as_far_as_they_go(
    short: card.Settings, tmp_path: Path
) -> None:
    (tmp_path / "needing.py").write_text(FIRST_ROW + NEEDING)
    made = vg.score(f"{tmp_path / 'needing.py'}:Needing")
    assert made.declared == 1  # of 11
    assert made.settings.f == 1
    assert made.settings != training.settings()  # so that it is ranked among none
    assert made.score is not None
    assert any(u.what == "trainings with 2 attackers" for u in made.untried)
    made = vg.score(f"{tmp_path / 'needing.py'}:Needing(least=1)")
    assert [b.f for b in made.breakdown] == [1]
    assert [a.f for a in made.price] == [1]
    made = vg.score(f"{tmp_path / 'needing.py'}:Needing(least=2)")
    assert not made.breakdown
    assert not made.accuracies
    assert made.verdict[0].startswith("BROKEN: it does not keep its contract (")  # f = 0, which nobody refuses
    assert any("it needs more than 11 vectors" in u.why for u in made.untried)


def test_an_attack_that_needs_many_honest_vectors_is_tried_with_as_many_attackers_as_it_allows(
    short: card.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "victims", lambda: [Subject("rule", "median")])
    made = vg.score("fang", cards=())  # which needs 2f + 3 vectors
    assert [(b.rule, b.most) for b in made.breaks] == [("median", 4)]
