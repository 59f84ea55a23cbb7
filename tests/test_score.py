"""Score cards: what they measure, what tells good rules from bad ones, and their JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import varangian as vg
from varangian.study.score import Card, breaking, card, training
from varangian.study.score.subject import BEHIND, Subject, subject_of
from varangian.study.score.verdict import verdict

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


def test_the_cards_of_the_package_can_be_read() -> None:
    assert card.stored()
    assert len({(c.kind, c.name) for c in card.stored()}) == len(card.stored())
