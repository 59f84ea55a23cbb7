"""Tables of runs: every setting through them and back, and no run that is not what its row says."""

from __future__ import annotations

import csv
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

import varangian as vg
from varangian import Experiment, run
from varangian.core.attacks import Attack
from varangian.core.mixing import Mixing
from varangian.runs import experiment as experiment_module
from varangian.study import outcomes as outcomes_module
from varangian.study.outcomes import Outcome, collect, command, gather, rate_text, read_runs, rule_name, write_runs

REPOSITORY = Path(__file__).parents[1]
SMALL = Experiment(steps=2, workers=5, byzantine=1, rule="median", batch_size=2, measure=False, evaluate_every=0)


def through_a_table(experiment: Experiment, folder: Path) -> Experiment:
    write_runs(folder, [Outcome(experiment, 0.5, 0.25)])
    [found] = read_runs(folder / "runs.csv")
    return found.experiment


# Values at the ends of each field: None where it may be, zeros, all digits, every form of a list. A field without an
# entry fails the test below.
VALUES: dict[str, list[Any]] = {
    "dataset": ["digits", "synthetic(shape=(3, 8, 8),classes=10)", " digits "],
    "model": ["fully-connected", "linear"],
    "workers": [15, 1000],
    "byzantine": [0, 1, 3],
    "real_byzantine": [None, 0, 2],
    "rule": ["median", 'bulyan(base="multi-krum", selection="frozen")', "multi-krum(m=5)", "average"],
    "pre": [(), ("nnm",), ("bucketing(s=2)", "nnm"), ("arc", "bucketing(s=2)", "nnm")],
    "attack": [None, "little", "little(factor=0.30000000000000004, sign=1)", "nan"],
    "momentum": [0.0, 0.1 + 0.2, 0.9999999999999999],
    "dampening": [0.0, 1 / 3],
    "nesterov": [False, True],
    "momentum_at": ["worker", "server", "shared"],
    "clip": [None, 2.0, 5e-324, 1.7976931348623157e308],
    "clip_mode": [None, "norm", "unit"],
    "batch_size": [1, 10**6],
    "steps": [0, 10**9],
    "learning_rate": [0.0, 0.1 + 0.2, 1e-7, ((0, 0.1),), ((0, 0.01), (150, 1 / 3)), ((0, 0.0), (10**9, 5e-324))],
    "l2": [0.0, 1e-4, 2 / 3],
    "evaluate_every": [0, 5],
    "seed": [0, 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1],
    "device": ["cpu", "cuda:1", "mps"],
    "partition": ["iid", "dirichlet(alpha=0.1)", "extreme"],
    "profile": ["described", "published"],
    "dtype": ["float32", "float64"],
    "measure": [True, False],
    "metrics": [(), ("macro-f1",), ("top(k=2)", "r2")],
    "validation": [0.0, 0.1, 1 / 3],
    "loss": ["cross-entropy", "mse", "cross-entropy(label_smoothing=0.1)"],
    "precision": ["float32", "tf32"],
    "autotune": [False, True],
    "knowledge": ["omniscient", "own", "spied(k=3)", "last-round"],
    "clients": [None, 15, 10**7],
    "attackers_change": [0, 3],
    "absent": ["kept", "kept-on-disk", "decayed", "dropped"],
    "local_steps": [1, 10**4],
    "weighting": ["equal", "size"],
    "cap": [None, 1.0, 2.5],
    "quarantine": [None, "quarantine", "quarantine(window=3, lower_f=True)"],
    "order": ["shuffled", "honest-first"],
    "data_hash": [None, "0123456789abcdef", "1234567890123456", "00000000000000e1"],
    "code_hash": [None, "fedcba9876543210"],
}
ORDER = [f.name for f in fields(Experiment)]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in ORDER for value in VALUES[name]])
def test_every_value_of_every_setting_comes_back_from_a_table(name: str, value: Any, tmp_path: Path) -> None:
    base = SMALL if name != "real_byzantine" else replace(SMALL, attack="little", byzantine=2)
    base = replace(base, device="cuda") if name in ("precision", "autotune") else base
    base = replace(base, weighting="size") if name == "cap" else base
    changed: dict[str, Any] = {"workers": 15}
    changed[name] = value
    e = replace(base, **changed)
    found = through_a_table(e, tmp_path)
    assert (found, found.digest) == (e, e.digest)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()}))
def test_settings_come_back_together_and_from_the_printed_command(chosen: dict[str, Any], tmp_path: Path) -> None:
    from varangian.cli.runs import run_command

    try:
        e = Experiment.from_dict(chosen | {"workers": 15})
    except vg.ConfigurationError:
        return  # a rule that cannot stand with these workers, and the like
    found = through_a_table(e, tmp_path)
    assert (found, found.digest) == (e, e.digest)
    context = run_command.make_context("run", shlex.split(command(e))[2:])
    options = {k: v for k, v in context.params.items() if k in chosen and v is not None}
    assert Experiment.from_dict(options) == replace(e, data_hash=None, code_hash=None)


@given(st.floats(0, 1e300, allow_nan=False), st.lists(st.floats(0, 1e300), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_rates_as_text(rate: float, pieces: list[float]) -> None:
    for value in (rate, tuple((10 * i, piece) for i, piece in enumerate(pieces))):
        e = replace(SMALL, learning_rate=value)
        assert replace(SMALL, learning_rate=rate_text(e)).learning_rate == value  # type: ignore[arg-type]


AWKWARD = ("a,b", 'he said "so"', "(", ")", "),(", "'", "\\", "=1+1", "none", "", " ")


@pytest.fixture
def own_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixing and an attack of a user's, with text, lists and None among their options."""

    @dataclass(frozen=True)
    class Own(Mixing):
        label: str = "plain"
        sizes: tuple[int, ...] = ()

        @property
        def needs(self) -> tuple[str, int]:
            return "1", 1

        def rows(self, n: int) -> int:
            return n

        def rows_for(self, m: int) -> int:
            return m

        def weights(self, geometry: Any) -> Any:
            raise NotImplementedError

    @dataclass(frozen=True)
    class Loud(Attack):
        label: str | None = None

        def craft(self, seen: Any) -> Any:
            raise NotImplementedError

    monkeypatch.setitem(vg.MIXINGS, "own", Own)
    monkeypatch.setitem(vg.ATTACKS, "loud", Loud)


@pytest.mark.parametrize("text", AWKWARD)
def test_text_of_own_options_comes_back(text: str, own_classes: None, tmp_path: Path) -> None:
    mixing = vg.MIXINGS["own"](label=text, sizes=(1, 2))  # type: ignore[call-arg]
    e = replace(SMALL, pre=(mixing, "nnm"), attack=vg.ATTACKS["loud"](label=text))  # type: ignore[arg-type]
    assert len(e.pre) == 2
    found = through_a_table(e, tmp_path)
    assert (found, found.digest) == (e, e.digest)


def test_results_and_machines_come_back_too(tmp_path: Path) -> None:
    reason = 'step 1: a, "quoted" reason; and more'
    outcomes = [
        Outcome(SMALL, 0.1 + 0.2, 1 / 3, None, 2, reason, None, None, 1.25, (), "imported", "x, 1"),
        Outcome(replace(SMALL, seed=2), 0.0, 0.0, 2 / 3, 0, None, 5e-324, 0.0, 0.0),
    ]  # fmt: skip
    write_runs(tmp_path, outcomes)
    found = {o.experiment: o for o in read_runs(tmp_path / "runs.csv")}
    for o in outcomes:
        there = found[o.experiment]
        assert all(getattr(there, f.name) == getattr(o, f.name) for f in fields(Outcome))


# ------------------------------------------------------------------------------------------------- edited by hand


def edit(path: Path, change: Callable[[dict[str, str]], object], line: int = 2) -> None:
    """Changes the row in a line of a table."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    change(rows[line - 2])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    "changed",
    [{"clip": ""}, {"clip": "3.0"}, {"rule": "krum"}, {"attack": ""}, {"seed": "7"}, {"l2": "0"}, {"pre": "nnm"},
     {"learning_rate": "0.1000000001"}, {"digest": "0123456789"}, {"digest": ""}, {"dtype": "float64"},
     {"clip_mode": "unit"}, {"measure": "True"}, {"partition": "extreme"}],
)  # fmt: skip
def test_a_row_that_was_changed_is_refused_by_its_line(changed: dict[str, str], tmp_path: Path) -> None:
    write_runs(tmp_path, [Outcome(replace(SMALL, attack="little", seed=s), 0.5, 0.25) for s in (1, 2, 3)])
    edit(tmp_path / "runs.csv", lambda row: row.update(changed), line=3)
    with pytest.raises(ValueError, match=r"runs.csv, line 3: "):
        read_runs(tmp_path / "runs.csv")


def test_an_empty_cell_is_none_and_never_a_default(tmp_path: Path) -> None:
    write_runs(tmp_path, [Outcome(SMALL, 0.5, 0.25)])
    for name in ORDER:
        if getattr(SMALL, name) not in (None, ()):
            write_runs(tmp_path, [Outcome(SMALL, 0.5, 0.25)])
            edit(tmp_path / "runs.csv", lambda row, name=name: row.update({name: ""}))
            with pytest.raises(ValueError, match=r"runs.csv, line 2: "):
                read_runs(tmp_path / "runs.csv")


def test_a_spreadsheet_may_have_saved_it(tmp_path: Path) -> None:
    write_runs(tmp_path, [Outcome(replace(SMALL, pre=("nnm",), learning_rate=((0, 0.1), (1, 0.2))), 0.5, 0.25)])
    path = tmp_path / "runs.csv"
    before = read_runs(path)[0].experiment
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_runs(path)[0].experiment == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1, 60.0])
def test_an_accuracy_is_a_share(value: float) -> None:
    for accuracies in ((value, 0.5), (0.5, value)):
        with pytest.raises(ValueError, match="accuracy must be"):
            Outcome(SMALL, *accuracies)


def test_a_later_setting_is_a_column_where_it_says_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_module, "LATER", ("measure",))
    monkeypatch.setattr(outcomes_module, "LATER", ("measure",))
    one, other = Experiment(), Experiment(measure=False)
    write_runs(tmp_path, [Outcome(one, 0.5, 0.25)])
    assert ",measure," not in (tmp_path / "runs.csv").read_text()
    assert read_runs(tmp_path / "runs.csv")[0].experiment == one
    write_runs(tmp_path, [Outcome(one, 0.5, 0.25), Outcome(other, 0.5, 0.25)])
    assert ",measure," in (tmp_path / "runs.csv").read_text()
    assert {o.experiment for o in read_runs(tmp_path / "runs.csv")} == {one, other}


def test_rows_of_a_newer_version_and_of_an_older_one(tmp_path: Path) -> None:
    write_runs(tmp_path, [Outcome(SMALL, 0.5, 0.25)])
    edit(tmp_path / "runs.csv", lambda row: row.update(format="99"))
    with pytest.raises(ValueError, match="newer version"):
        read_runs(tmp_path / "runs.csv")


def test_spellings_of_one_run_are_one_row(tmp_path: Path) -> None:
    base = replace(SMALL, momentum=0.0)
    outcomes = [Outcome(replace(base, momentum_at=place), 0.5, 0.25) for place in ("worker", "server")]
    with pytest.warns(UserWarning, match="more than once"):
        write_runs(tmp_path, outcomes)
    assert len(read_runs(tmp_path / "runs.csv")) == 1


def test_the_table_in_the_repository() -> None:
    found = gather(REPOSITORY / "results" / "fashion-mnist" / "runs.csv")
    assert len(found) == 920
    assert all(o.seconds for o in found)


# ------------------------------------------------------------------------------------------------- what is left out


def test_what_a_folder_holds_beside_runs_is_named(tmp_path: Path) -> None:
    first = run(SMALL, out=tmp_path / "runs").folder
    second = run(replace(SMALL, seed=2), out=tmp_path / "runs").folder
    third = run(replace(SMALL, seed=3), out=tmp_path / "runs").folder
    assert first
    assert second
    assert third
    write_runs(tmp_path, gather(tmp_path))
    shutil.copytree(first, tmp_path / "runs" / "z-copy")
    (second / "result.json").unlink()
    (third / "result.json").write_text("{")
    outcomes, left_out = collect(tmp_path)
    assert [o.experiment.seed for o in outcomes] == [1]
    text = "\n".join(left_out)
    assert "z-copy is a run that another folder holds too." in text
    assert f"{second} is not complete" in text
    assert f"{third} cannot be read as a run" in text
    assert "2 of its 3 rows are of runs whose folders were not read" in text
    assert len(left_out) == 4
    with pytest.warns(UserWarning, match="left out"):
        gather(tmp_path)


def test_a_run_that_changed_machines_has_none(tmp_path: Path) -> None:
    folder = run(SMALL, out=tmp_path).folder
    assert folder
    [o] = gather(tmp_path)
    assert o.machine
    assert "torch" in o.machine
    text = (folder / "environment.json").read_text()
    for content in (text.replace('"threads": 1', '"threads": "=1"'), "[]", "{", '{"sessions": 3}', '{"sessions": [3]}'):
        (folder / "environment.json").write_text(content)
        gather(tmp_path)  # whatever it says, the run can be read
    (folder / "environment.json").unlink()
    assert [o.machine for o in gather(tmp_path)] == [None]


def test_rules_are_named_with_their_options() -> None:
    assert rule_name(replace(SMALL, rule="multi-krum(m=2)", pre=("nnm",))) == "nnm + multi-krum(m=2)"
