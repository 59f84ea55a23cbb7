"""The study as data: how many runs, which are paired, and verdicts that follow from results alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

import varangian as vg
from varangian import Experiment, Median
from varangian.runs.building import code_of
from varangian.study import paper
from varangian.study.outcomes import Outcome, command, condition, rule_name
from varangian.study.paper import OF_THE_PAPER, PANELS, account, grids, missing, pairs, panel_of, unattacked, verdicts

FIRST_ROW = f"{Path(__file__).parents[1] / 'examples' / 'first_row.py'}:FirstRow"


def grid(panels=OF_THE_PAPER, seeds=paper.SEEDS, profile="described", quick=False) -> list[Experiment]:
    return [e for found in grids(panels, seeds, profile, quick) for e in found.experiments()]


def outcomes(panels=("fashion-mnist",), seeds=(1, 2), server=0.4, worker=0.75, reference=0.85) -> list[Outcome]:
    """A study in which every server run, worker run and reference has one accuracy each."""
    accuracy = {None: reference, "server": server, "worker": worker}
    found = []
    for e in grid(panels, seeds):
        value = accuracy[e.momentum_at if e.attack else None]
        found.append(Outcome(e, value, value - 0.01, steps=e.steps, seconds=10.0, machine="one"))
    return found


def word(found, claim: str) -> str:
    return next(v.word for v in found if v.claim.id == claim)


def test_counts_of_the_study() -> None:
    main = [name for name, panel in PANELS.items() if panel.main]
    assert len(main) == 4
    counts = {name: len(grid([name], [1])) for name in OF_THE_PAPER}
    assert counts == dict.fromkeys(main, 184) | {"wide-resnet": 22}
    assert len(grid(main)) == 736 * 5 == 3680
    assert len(grid(["wide-resnet"])) == 22 * 5
    everything = grid(seeds=[1])
    assert len({e.digest for e in everything}) == len(set(everything)) == 736 + 22
    assert len(pairs(outcomes(main, paper.SEEDS))) == 1760


@pytest.mark.slow
def test_the_panel_of_our_own_is_the_papers_network_on_other_data_and_no_part_of_its_study() -> None:
    ours, theirs = PANELS["cnn-fashion-mnist"], PANELS["cifar-10"]
    assert set(PANELS) - set(OF_THE_PAPER) == {ours.name}
    for profile in ("described", "published"):
        same = [replace(e, dataset="cifar-10", model="cnn") for e in ours.experiments(profile=profile)]
        assert same == theirs.experiments(profile=profile)
    assert len(grids()) == len(OF_THE_PAPER)
    assert not any(panel_of(e) is ours for found in grids(seeds=[1]) for e in found.experiments())
    found = outcomes([ours.name], [1])
    assert not paper.of_the_paper(pairs(found))
    assert missing(found, [1]) == {"cnn-fashion-mnist, described": (184, 184)}
    beside = verdicts(pairs([*found, *outcomes(["fashion-mnist"], [1])]))
    assert next(v for v in beside if v.claim.id == "C3").pairs == 88  # those of the paper's panel alone
    assert [v.finding for v in beside if v.claim.text.startswith("Convolutional")] == [None] * 3


@pytest.mark.parametrize("profile", ["described", "published"])
@pytest.mark.parametrize("name", PANELS)
def test_cells_of_a_panel(name: str, profile: paper.Profile) -> None:
    panel = PANELS[name]
    found = grid([name], [7], profile)
    assert {e.seed for e in found} == {7}
    assert {e.profile for e in found} == {profile}
    assert all(panel_of(e) is panel for e in found)
    cells = Counter((e.learning_rate, e.nesterov, e.workers, e.byzantine) for e in found)
    rules = len(panel.rules)
    assert set(cells.values()) == {1, rules * 4, (rules + 1) * 4}
    n = panel.base.workers
    assert {(e.workers, e.byzantine) for e in found if e.attack is None} == {
        (n - panel.half, 0),
        (n - panel.quarter, 0),
    }
    for e in found:
        assert e.workers - e.attackers >= e.make_rule().min_n - e.byzantine
        assert (rule_name(e) == "bulyan") <= (e.byzantine == panel.quarter)


def test_settings_of_the_paper() -> None:
    small, cifar, wide = (PANELS[name].base for name in ("mnist", "cifar-100", "wide-resnet"))
    assert (small.workers, small.batch_size, small.steps, small.evaluate_every, small.clip, small.l2) == (
        51,
        83,
        300,
        5,
        2,
        1e-4,
    )
    assert (cifar.workers, cifar.batch_size, cifar.steps, cifar.momentum, cifar.clip, cifar.l2) == (
        25,
        50,
        3000,
        0.99,
        5,
        1e-2,
    )
    assert (wide.workers, wide.batch_size, wide.steps, wide.l2) == (11, 20, 20000, 5e-4)
    first = next(e for e in grid(["cifar-10"], [1], "published") if isinstance(e.learning_rate, tuple))
    assert [first.rate(0), first.rate(1499)] == [0.01, 0.01]
    assert first.rate(1500) == pytest.approx(0.01 / (1500 / 167 + 1))
    assert condition(replace(small, dataset="digits", rule="multi-krum", byzantine=24)) == pytest.approx(
        3.2e-5, rel=0.01
    )


def test_quick_has_every_cell_once() -> None:
    found = grid(["fashion-mnist"], quick=True)
    attacked = [e for e in found if e.attack]
    assert len(found) == 92
    assert {e.steps for e in found} == {300}  # fewer would not be the paper's
    assert {rule_name(e) for e in attacked} == {*paper.RULES, "bulyan"}
    assert {(e.attack, e.momentum_at, e.nesterov, e.byzantine) for e in attacked} == {
        (a, p, k, f) for a in paper.ATTACKS for p in paper.PLACES for k in (False, True) for f in (12, 24)
    }
    assert set(found) <= set(grid(["fashion-mnist"]))


def test_pairs_differ_in_the_place_alone_and_have_their_reference() -> None:
    for pair in pairs(outcomes()):
        assert replace(pair.server.experiment, momentum_at="worker") == pair.worker.experiment
        assert pair.reference is not None
        e = pair.reference.experiment
        assert (e.rule, e.attack, e.workers, e.seed) == ("average", None, pair.experiment.honest, pair.experiment.seed)
        assert (e.learning_rate, e.nesterov) == (pair.experiment.learning_rate, pair.experiment.nesterov)
    found = outcomes(seeds=[1])
    assert len(pairs(found[:2])) == 0  # a server run without its twin
    assert {p.reference for p in pairs([o for o in found if o.experiment.attack])} == {None}


def test_imported_and_own_runs_are_never_paired() -> None:
    found = [replace(o, source="imported") if o.experiment.momentum_at == "worker" else o for o in outcomes(seeds=[1])]
    assert pairs(found) == []


def test_claims_hold_where_the_numbers_say_so() -> None:
    found = verdicts(pairs(outcomes()))
    assert [word(found, c) for c in ("C1", "C2", "C3", "C7")] == ["holds"] * 4
    assert word(found, "C4a") == "does not hold"  # 100 % costly, the paper has 25.80 %
    assert [word(found, c) for c in ("C4b", "C5a", "C5b", "C5c", "C6a", "C6b")] == ["not tested"] * 6
    assert next(v for v in found if v.claim.id == "C1").pairs == 176


def test_claims_fail_where_the_numbers_say_so() -> None:
    worse = verdicts(pairs(outcomes(worker=0.39)))
    assert [word(worse, c) for c in ("C1", "C2", "C3")] == ["does not hold"] * 3
    slight = verdicts(pairs(outcomes(worker=0.5)))
    assert [word(slight, c) for c in ("C1", "C2", "C3")] == ["holds", "does not hold", "holds"]
    one = outcomes()
    lost = next(
        i for i, o in enumerate(one) if o.experiment.momentum_at == "worker" and o.experiment.attack == "little"
    )
    one[lost] = replace(one[lost], max_accuracy=0.39)
    assert [word(verdicts(pairs(one)), c) for c in ("C1", "C2", "C3")] == ["does not hold", "holds", "does not hold"]
    slow = [replace(o, seconds=12.0) if o.experiment.momentum_at == "worker" else o for o in outcomes()]
    assert word(verdicts(pairs(slow)), "C7") == "does not hold"


def test_claims_on_convolutional_panels() -> None:
    def study(half: tuple[float, float], quarter: tuple[float, float]) -> list[Outcome]:
        found = []
        for o in outcomes(["cifar-10"], [1], reference=0.9):
            e = o.experiment
            if e.attack:
                server, worker = half if e.byzantine == 11 else quarter
                o = replace(o, max_accuracy=worker if e.momentum_at == "worker" else server)
            found.append(o)
        return found

    good = verdicts(pairs(study((0.5, 0.65), (0.3, 0.7))))
    assert {c: word(good, c) for c in ("C5a", "C5b", "C5c", "C6a", "C6b")} == {
        **{"C5a": "holds", "C5b": "does not hold", "C5c": "does not hold"},  # 100 % for 79.75, 0 % for 49.25
        **{"C6a": "does not hold", "C6b": "holds"},
    }
    assert word(verdicts(pairs(study((0.8, 0.9), (0.3, 0.7)))), "C5a") == "does not hold"


def test_exactly_twenty_points_are_twenty_points() -> None:
    pair = pairs(outcomes(reference=0.8, server=0.6, worker=0.8))[0]
    assert (pair.loss(), pair.gain()) == (20.0, 20.0)


def test_no_pairs_no_verdict() -> None:
    assert {v.word for v in verdicts([])} == {"not tested"}


def test_few_pairs_no_verdict() -> None:
    found = outcomes(seeds=[1])
    for number, said in ((1, "too few runs"), (paper.FEW - 1, "too few runs"), (paper.FEW, "holds")):
        assert [word(verdicts(pairs(found)[:number]), c) for c in ("C1", "C2", "C3")] == [said] * 3


def test_other_runs_are_asked_the_general_claims_only() -> None:
    e = Experiment(workers=11, byzantine=2, rule="median", attack="little", momentum_at="server", steps=3)
    one = Outcome(e, 0.5, 0.5, steps=3, seconds=1.0, machine="one")
    found = verdicts(pairs([one, replace(one, experiment=replace(e, momentum_at="worker"), max_accuracy=0.6)]))
    assert {v.claim.id for v in found if v.finding} == {"C3"}  # and no timing: a demo says nothing about cost
    assert panel_of(e) is None


@pytest.mark.parametrize("profile", ["described", "published"])
@pytest.mark.parametrize("name", PANELS)
def test_only_what_is_in_the_grid_is_the_papers(name: str, profile: paper.Profile) -> None:
    """A run that differs from one of the panel's in any setting but seed, device, place and measures is not of it."""
    other = {
        **{"dataset": "digits", "model": "linear", "workers": 60, "byzantine": 3, "real_byzantine": 1},
        **{"rule": "cge", "pre": ("nnm",), "attack": "mimic", "momentum": 0.5, "dampening": 0.5, "clip": None},
        **{"clip_mode": "unit" if profile == "described" else "norm", "batch_size": 7, "steps": 30},
        **{"learning_rate": 7.0, "l2": 0.0, "evaluate_every": 7, "partition": "extreme", "dtype": "float64"},
        **{"validation": 0.1, "loss": "mse", "metrics": ("top",), "knowledge": "spied(k=3)"},
        **{"momentum_at": "shared", "data_hash": "0" * 16, "code_hash": "0" * 16},
        **{"clients": 90, "attackers_change": 3, "local_steps": 2, "weighting": "size", "cap": 2.0},
        **{"quarantine": "quarantine"},
    }
    free = {"seed": 77, "device": "cuda", "measure": False, "precision": "tf32", "autotune": True, "absent": "dropped"}
    free |= {"order": "honest-first"}
    resolved = {"nesterov", "profile"}  # each value of these is in the grid, at other learning rates perhaps
    assert other.keys() | free.keys() | resolved == {f.name for f in fields(Experiment)}
    e = next(e for e in grid([name], [1], profile) if e.attack and e.rule == "median")
    assert panel_of(e) is PANELS[name]
    for setting, value in free.items():
        device = "cuda" if setting in ("precision", "autotune") else e.device
        assert panel_of(replace(e, **({"device": device} | {setting: value}))) is PANELS[name]
    assert panel_of(replace(e, real_byzantine=e.byzantine)) is PANELS[name]  # the same run, in other words
    if profile == "published":
        for refused in ("partition", "clients", "attackers_change", "local_steps", "weighting", "cap", "quarantine"):
            del other[refused]  # by that profile
    for setting, value in other.items():
        changed = {setting: value} | ({"clip_mode": None} if setting == "clip" else {})
        changed |= {"weighting": "size"} if setting == "cap" else {}
        changed |= {"nesterov": False} if setting == "local_steps" else {}
        assert panel_of(replace(e, **changed)) is None, setting
    assert panel_of(replace(e, attack="little(factor=9.0)")) is None
    assert panel_of(replace(e, rule='median(even="upper")')) is None


def test_missing_counts_cells_and_not_runs() -> None:
    found = outcomes(seeds=[1])
    again = [replace(o, experiment=replace(o.experiment, measure=False)) for o in found]
    elsewhere = [replace(o, experiment=replace(o.experiment, rule="caf")) for o in found if o.experiment.attack]
    assert missing([*found, *again, *elsewhere]) == {"fashion-mnist, described": (184, 920)}


CHANGES: dict[str, tuple[object, object]] = {
    **{"dataset": ("digits", "mnist"), "model": ("linear", "fully-connected"), "workers": (15, 16)},
    **{"byzantine": (3, 2), "real_byzantine": (2, 1), "rule": ("median", "median(even='upper')")},
    **{"pre": ((), ("nnm",)), "attack": ("little", "little(factor=2.0)"), "momentum": (0.9, 0.99)},
    **{"dampening": (0.0, 0.5), "nesterov": (False, True), "clip": (2.0, None), "clip_mode": ("norm", "unit")},
    **{"batch_size": (2, 3), "steps": (3, 4), "learning_rate": (0.1, ((0, 0.1), (2, 0.2))), "l2": (0.0, 1e-4)},
    **{"evaluate_every": (1, 0), "seed": (1, 2), "partition": ("iid", "extreme"), "dtype": ("float32", "float64")},
    **{
        "profile": ("described", "published"),
        "validation": (0.0, 0.1),
        "loss": ("cross-entropy", "cross-entropy(label_smoothing=0.1)"),
        "metrics": ((), ("top",)),
        "precision": ("float32", "tf32"),
        "autotune": (False, True),
        "knowledge": ("omniscient", "own"),
        "clients": (None, 40),
        "attackers_change": (0, 2),
        "absent": ("kept", "dropped"),
        "local_steps": (1, 2),
        "weighting": ("equal", "size"),
        "cap": (None, 2.0),
        "quarantine": (None, "quarantine"),
        "order": ("shuffled", "honest-first"),
        "data_hash": (None, "0" * 16),
        "code_hash": ("0" * 16, "1" * 16),
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_pair_overwrites_another(name: str) -> None:
    """Two pairs and their references that differ in one setting, whichever it is, are two pairs."""
    assert CHANGES.keys() | {"momentum_at", "device", "measure"} == {f.name for f in fields(Experiment)}
    device = "cuda" if name in ("precision", "autotune") else "cpu"
    base = replace(
        Experiment(attack="little", real_byzantine=2, rule="median"), clip_mode="norm", steps=3, device=device
    )
    base = replace(base, clients=40) if name == "absent" else base
    base = replace(base, weighting="size") if name == "cap" else base
    base = replace(base, rule=FIRST_ROW) if name == "order" else base
    made = []
    for number, value in enumerate(CHANGES[name]):
        e = replace(base, **{name: value})
        runs = (replace(e, momentum_at="server"), replace(e, momentum_at="worker"), unattacked(e, e.honest))
        made += [Outcome(run, 0.5 + number / 10, 0.5) for run in runs]
    for order in (made, made[::-1]):
        found = account(order)
        assert {p.server.max_accuracy for p in found.pairs} == {0.5, 0.6}
        assert all(p.server.max_accuracy == p.worker.max_accuracy for p in found.pairs)
        # Two runs whose honest workers are the same share their reference.
        shared = name in ("byzantine", "rule", "pre", "attack", "knowledge", "quarantine", "order")
        assert all(p.reference and (shared or p.reference.max_accuracy == p.server.max_accuracy) for p in found.pairs)


def test_devices_are_not_mixed_and_measuring_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    e = Experiment(attack="little", rule="median", momentum_at="server")
    there = Outcome(replace(e, device="cuda"), 0.5, 0.5), Outcome(replace(e, momentum_at="worker"), 0.5, 0.5)
    assert pairs(there) == []
    measured = Outcome(e, 0.5, 0.5), Outcome(replace(e, momentum_at="worker", measure=False), 0.5, 0.5)
    assert len(pairs(measured)) == 1


def test_every_run_is_somewhere() -> None:
    e = Experiment(attack="little", rule="median", momentum_at="server", nesterov=True)
    runs = {
        "pair": [e, replace(e, momentum_at="worker"), unattacked(e, e.honest)],
        "alone": [replace(e, seed=2), replace(e, seed=3, momentum_at="worker")],
        "elsewhere": [replace(e, momentum_at="shared"), replace(e, momentum=0.0)],
        "unused": [
            replace(e, attack=None, rule="krum"),
            replace(unattacked(e, e.honest), momentum_at="worker"),  # Nesterov's points are others there
            replace(unattacked(e, e.honest), dtype="float64"),
        ],
        "again": [replace(e, measure=False)],
    }
    found = account(Outcome(run, 0.5, 0.5) for same in runs.values() for run in same)
    assert [len(found.pairs), *(len(getattr(found, kind)) for kind in list(runs)[1:])] == [1, 2, 2, 3, 1]
    assert found.pairs[0].reference is not None
    assert [line.split()[0] for line in found.notes()] == ["2", "2", "3", "1"]
    lone = account([Outcome(run, 0.5, 0.5) for run in runs["pair"][:2]])
    assert "without a reference" in lone.notes()[0]


def test_references_of_runs_with_code_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference shares the model with its run, and neither rule nor attack: so their hashes of code may differ."""

    @dataclass(frozen=True)
    class Mine(Median):
        pass

    def model(shape, classes):
        raise NotImplementedError

    monkeypatch.setitem(vg.RULES, "mine", Mine)
    monkeypatch.setitem(vg.MODELS, "own", model)
    base = Experiment(attack="little", rule="median", momentum_at="server")
    for changed in ({"rule": "mine"}, {"model": "own"}, {"rule": "mine", "model": "own"}):
        e = replace(base, **changed)
        runs = [e, replace(e, momentum_at="worker"), unattacked(e, e.honest)]
        made = [Outcome(replace(run, code_hash=code_of(run)), 0.5, 0.5) for run in runs]
        assert made[0].experiment.code_hash is not None
        assert pairs(made)[0].reference is made[2]
    stale = replace(made[2], experiment=replace(made[2].experiment, code_hash="0" * 16))
    assert pairs([*made[:2], stale])[0].reference is None  # that model was another


def test_a_reference_at_the_workers_will_do_where_it_is_the_same() -> None:
    e = Experiment(attack="little", rule="median", momentum_at="server")
    runs = [e, replace(e, momentum_at="worker"), replace(unattacked(e, e.honest), momentum_at="worker")]
    [pair] = pairs([Outcome(run, 0.5, 0.5) for run in runs])
    assert pair.reference is not None


def test_shares_are_shares_of_what_the_claim_speaks_of() -> None:
    """Of ten pairs of C5, eight cost 20 points; of these six come back by 20 points and seven by 10."""
    made = []
    cell = iter(e for e in grid(["cifar-10"], [1]) if e.attack and e.byzantine == 11 and e.momentum_at == "server")
    for number in range(10):
        e = next(cell)
        costly = number < 8
        server, gain = (0.3, 0.25 if number < 6 else 0.15 if number < 7 else 0.0) if costly else (0.85, 0.0)
        runs = (e, replace(e, momentum_at="worker"), unattacked(e, e.honest))
        values = (server, server + gain, 0.9)
        made += [Outcome(run, value, value) for run, value in zip(runs, values, strict=True)]
    found = {v.claim.id: v for v in verdicts(pairs({o.key: o for o in made}.values()))}
    ours = {name: (v.pairs, v.finding and v.finding.ours) for name, v in found.items()}
    assert ours["C1"] == (8, "87.50 % (7 of 8)")
    assert ours["C2"] == (8, "75.00 % (6 of 8)")
    assert ours["C3"] == (10, "0.00 % (0 of 10)")
    assert ours["C5a"] == (10, "80.00 % (8 of 10)")
    assert ours["C5b"] == (8, "87.50 % (7 of 8)")
    assert ours["C5c"] == (8, "75.00 % (6 of 8)")
    assert ours["C6b"] == (0, None)
    assert sum(v.claim.total for v in found.values() if v.claim.id in ("C5a", "C5b", "C5c")) == 1200


def test_time_is_compared_on_one_machine_only() -> None:
    found = outcomes(seeds=[1])

    def finding(**changed: object):
        at_workers = [replace(o, **changed) if o.experiment.momentum_at == "worker" else o for o in found]
        return next(v for v in verdicts(pairs(at_workers)) if v.claim.id == "C7")

    assert finding(seconds=12.0).word == "does not hold"
    assert finding(seconds=10.5).word == "holds"
    for changed in ({"machine": "two"}, {"machine": None}, {"seconds": None}, {"seconds": 0.0}, {"steps": 7}):
        assert (finding(**changed).word, finding(**changed).pairs) == ("not tested", 0)


def test_the_printed_command_is_the_run() -> None:
    from varangian.cli.runs import run_command

    for e in grid(["fashion-mnist", "cifar-10"], [3], "published")[::37]:
        arguments = command(e).split()[2:]
        context = run_command.make_context("run", [a.strip("'") for a in arguments])
        options = {k: v for k, v in context.params.items() if k in e.to_dict() and v is not None}
        assert Experiment.from_dict(options) == e
