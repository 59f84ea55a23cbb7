"""Who a threshold names, how right it is, and what a suspicion means for honest workers."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import varangian as vg
from varangian.core.history import History, Report, Round
from varangian.core.suspects import THRESHOLD, WINDOW


def report_of(suspicion: Any, noun: Any = "rank") -> Report:
    """A report of steps with these suspicions, NaN where a worker took no part."""
    series = np.asarray(suspicion, float)
    history = History("Median(f=1)", noun=noun)
    for number, row in enumerate(series, 1):
        used = np.flatnonzero(~np.isnan(row))
        numbers = tuple((used + 10).tolist())
        rejected = np.zeros(used.size, bool)
        history.record(
            Round(number, tuple(range(10, 10 + row.size)), 1, numbers, suspicion=row[used], rejected=rejected)
        )
    return history.report()


ABOUT = [[0.0, 0.2, 1.0], [0.1, 0.2, 1.0], [0.0, 0.9, 1.0], [0.0, 0.9, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_precision_recall_and_delay_are_of_steps_and_vectors() -> None:
    found = vg.detection(report_of(ABOUT), [12], threshold=0.5, window=2)
    expected = [[False] * 3 for _ in range(6)]
    for step, worker in [(0, 2), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (4, 2)]:
        expected[step][worker] = True
    assert found.recent[2].tolist() == pytest.approx([0.05, 0.55, 1.0])
    assert found.recent[4].tolist() == pytest.approx([0.0, 0.45, 0.5])
    expected[4][1] = False
    assert found.named.tolist() == expected
    assert found.precision == pytest.approx(5 / 7)
    assert found.recall == pytest.approx(5 / 6)
    assert found.false_alarms == pytest.approx(2 / 12)
    assert found.delay == 1
    assert np.isnan(found.delays[:2]).all()
    assert (found.caught, found.blamed, found.workers) == ((12,), (11,), (10, 11, 12))
    assert str(found) == (
        "suspicion >= 0.5 over 2 steps: names 1 of 1 attackers, at half of them with vector 1; recall 83%, "
        "precision 71%, 1 honest rank named in 16.7% of their steps"
    )


def test_a_threshold_lies_within() -> None:
    report = report_of(ABOUT)
    found = vg.detection(report, [12], threshold=0.5, window=2)
    assert found.at(1.0).named.sum() == 3
    assert found.at(1.0).delay == 2
    recalls = [found.at(t).recall for t in np.linspace(0.05, 1, 20)]
    assert recalls == sorted(recalls, reverse=True)
    assert (vg.detection(report).threshold, vg.detection(report).window) == (THRESHOLD, WINDOW)


def test_attackers_that_are_never_named_have_an_infinite_delay() -> None:
    quiet = vg.detection(report_of(np.zeros((30, 4))), [10, 11])
    assert math.isnan(quiet.precision)
    assert (quiet.recall, quiet.delay, quiet.caught) == (0, math.inf, ())
    assert str(quiet) == (
        "suspicion >= 0.5 over 20 steps: names 0 of 2 attackers; recall 0%, precision - (nobody is named), "
        "0 honest ranks named in 0.0% of their steps"
    )
    series = np.zeros((30, 4))
    series[:, 0] = 1
    assert vg.detection(report_of(series), [10, 11]).delay == math.inf  # half of two
    assert vg.detection(report_of(series), [10]).delay == 10


def test_without_attackers_there_are_only_false_alarms() -> None:
    for noun, named in (("node", "0 honest nodes"), ("worker", "0 honest workers")):
        found = vg.detection(report_of(np.zeros((5, 3)), noun))
        assert math.isnan(found.recall)
        assert math.isnan(found.delay)
        assert found.false_alarms == 0
        assert str(found) == f"suspicion >= 0.5 over 20 steps: {named} named in 0.0% of their steps"
    empty = vg.detection(History("Median(f=1)", ["a", "b"]).report(), [0])
    assert math.isnan(empty.recall)
    assert math.isnan(empty.delay)


def test_who_is_away_is_not_named_and_keeps_its_window() -> None:
    series = np.zeros((8, 2))
    series[:, 1] = [1, 1, math.nan, math.nan, 1, 0, math.nan, 0]
    found = vg.detection(report_of(series), [11], threshold=1.0, window=2)
    assert found.named[:, 1].tolist() == [False, True, False, False, True, False, False, False]
    assert found.recall == pytest.approx(2 / 5)
    assert found.delay == 2


def test_attackers_may_change_from_step_to_step() -> None:
    series = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    truth = np.array([[True, False], [True, False], [False, True], [False, True]])
    found = vg.detection(report_of(series), truth, threshold=1.0, window=1)
    assert (found.precision, found.recall, found.false_alarms) == (1, 1, 0)
    assert found.delays.tolist() == [1, 1]
    late = vg.detection(report_of(series), truth, threshold=1.0, window=2)
    assert late.delays.tolist() == [2, 2]


@pytest.mark.parametrize(
    "who", [[11], {11}, (11,), np.array([11]), [False, True, False], np.array([False, True, False])]
)
def test_attackers_are_said_by_number_or_by_place(who: Any) -> None:
    report = report_of(ABOUT)
    assert vg.detection(report, who).byzantine.tolist() == [[False, True, False]] * 6
    assert not vg.detection(report, []).byzantine.any()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"byzantine": [0]}, "detection needs byzantine among the 3 ranks of the report, got [0]."),
        ({"byzantine": "11"}, "detection needs byzantine, numbers of ranks or truth values, got '11'."),
        ({"byzantine": [1.5]}, "detection needs byzantine, numbers of ranks or truth values, got [1.5]."),
        ({"byzantine": 11}, "detection needs byzantine, numbers of ranks or truth values, got 11."),
        ({"byzantine": [[11], [10, 11]]}, "numbers of ranks or truth values, got [[11], [10, 11]]."),
        ({"byzantine": [True]}, "byzantine as truth values of shape [3] or [6, 3], got [1]."),
        ({"threshold": 0}, "detection needs a threshold > 0 and <= 1, got 0."),
        ({"threshold": 1.5}, "detection needs a threshold > 0 and <= 1, got 1.5."),
        ({"threshold": math.nan}, "detection needs a threshold > 0 and <= 1, got nan."),
        ({"threshold": True}, "detection needs a threshold > 0 and <= 1, got True."),
        ({"window": 0}, "detection needs an integer window >= 1, got 0."),
        ({"window": 2.0}, "detection needs an integer window >= 1, got 2.0."),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        vg.detection(report_of(ABOUT), **given)


def test_a_report_is_needed() -> None:
    with pytest.raises(ValueError, match=r"^detection needs a report, as of result\.workers\(\), got a list\.$"):
        vg.detection(ABOUT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold > 0"):
        vg.detection(report_of(ABOUT)).at(2)


# ------------------------------------------------------------------------- what a value means for an honest worker

ALIKE = vg.Experiment(
    model="linear", workers=15, byzantine=3, batch_size=10, steps=80, evaluate_every=80, learning_rate=0.1
)
ATTACKS = (None, "little", "empire", "sign-flip", "gaussian", "mimic", "zero")


@pytest.mark.parametrize(
    "rule", ["krum", "multi-krum", "median", "trimmed-mean", "bulyan", "geometric-median", "medoid"]
)
def test_honest_workers_whose_data_are_alike_are_hardly_ever_suspicious(rule: str) -> None:
    """docs/howto/suspicion.md: over 0.5 in a step under one of a hundred vectors, over 20 steps none."""
    over: list[float] = []
    for attack in ATTACKS:
        report = vg.run(replace(ALIKE, rule=rule, attack=attack)).workers()
        assert report.byzantine is not None
        honest = ~report.byzantine
        over += (report.suspicion > 0.5)[honest].tolist()
        found = vg.detection(report)
        assert found.false_alarms == 0, attack
        assert found.recent[honest].max() < 0.5, attack
    assert sum(over) / len(over) < 0.01


@pytest.mark.parametrize("rule", ["multi-krum", "median", "geometric-median", "nnm"])
@pytest.mark.parametrize("attack", ["gaussian", "sign-flip", "empire"])
def test_attackers_that_are_far_or_turned_round_are_named(rule: str, attack: str) -> None:
    settings: dict[str, Any] = {"rule": "median", "pre": "nnm"} if rule == "nnm" else {"rule": rule}
    found = vg.detection(vg.run(replace(ALIKE, attack=attack, **settings)).workers())
    assert found.caught == (12, 13, 14)
    assert found.blamed == ()
    assert 10 <= found.delay <= 30


def test_who_hides_is_not_named() -> None:
    for attack in ("little", "mimic", "zero"):
        found = vg.detection(vg.run(replace(ALIKE, rule="median", attack=attack)).workers())
        assert found.caught == found.blamed == (), attack


def test_honest_workers_with_data_of_their_own_are_named_too() -> None:
    """A high suspicion accuses nobody."""
    unlike = replace(ALIKE, rule="multi-krum", attack="gaussian", partition="dirichlet(alpha=0.1)", steps=150)
    found = vg.detection(vg.run(unlike).workers())
    assert found.caught == (12, 13, 14)
    assert found.blamed


def test_scores_of_every_rule_are_in_one_measure() -> None:
    """The same vectors and aggregate have the same suspicion, whether a rule scores them or not, and how."""
    x = np.random.default_rng(1).normal(size=(15, 400)) + 0.3
    x[12:] *= 4
    found = [
        vg.explain(x, rule)
        for rule in (vg.MultiKrum(3, m=12), vg.MinimumDiameterAveraging(3), vg.ComparativeGradientElimination(3))
    ]
    for one in found[1:]:
        np.testing.assert_allclose(one.aggregate, found[0].aggregate, rtol=1e-9)
        np.testing.assert_allclose(one.suspicion, found[0].suspicion, rtol=1e-9)
    assert (found[0].suspicion[12:] > 0.5).all()
