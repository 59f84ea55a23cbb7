"""Run folders: an interrupted run comes to what an uninterrupted one does, whatever was lost on the way."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import varangian as vg
from interruption import interrupt, left_by
from power_cut import Disk, Moment
from varangian.runs.folders import Journal
from varangian.simulation import data

SMALL = vg.Experiment(workers=7, byzantine=1, model="linear", steps=5, batch_size=1, evaluate_every=3, l2=1e-3)
PUBLISHED = ("average", "multi-krum", "median", "trimmed-mean", "phocas", "meamed", "bulyan", "mda", "cge", "aksel")
PLACES = ("worker", "server", "shared")


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.digits()


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bringing files to the disk is most of the time of a tiny run, and changes nothing where no power fails."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# --------------------------------------------------------------------------------------------------------- exact resume


@pytest.mark.slow
@pytest.mark.usefixtures("no_disk")
@pytest.mark.parametrize("rule", [name for name, rule in vg.RULES.items() if not rule.needs_root])
def test_every_rule_attack_and_place_of_momentum(rule: str, digits: data.Dataset, tmp_path: Path) -> None:
    """Each two of them together, and both momenta, both profiles, with an interruption at a random step of five;
    sometimes two."""
    chance, first = random.Random(rule), list(vg.RULES).index(rule)
    for number, attack in enumerate([None, *vg.ATTACKS]):
        place = PLACES[(first + number) % len(PLACES)]
        e = replace(SMALL, rule=rule, attack=attack, momentum_at=place, nesterov=number % 2 == 0)
        if rule in PUBLISHED and chance.random() < 0.5:
            e = replace(e, profile="published")
        whole = vg.run(e, tmp_path / "whole", digits)
        done = len(whole.measures)
        if done:
            stops = sorted(chance.sample(range(1, done + 1), k=min(done, chance.choice((1, 1, 2)))))
            for stop in stops:
                interrupt(e, tmp_path / "cut", stop, digits)
        cut = vg.run(e, tmp_path / "cut", digits)
        assert cut.began == (stops[-1] if done else 0)
        assert left_by(cut.folder) == left_by(whole.folder), (attack, place, e.nesterov, e.profile)
        assert [m.row() for m in cut.measures] == [m.row() for m in whole.measures]
        assert [(x.step, x.accuracy) for x in cut.evaluations] == [(x.step, x.accuracy) for x in whole.evaluations]


TINY = "synthetic(shape=(1, 4, 4), train=60, test=20)"
MODELS = {
    "batch norm and dropout": replace(SMALL, model="cnn(hidden=4)", dataset=TINY),
    "the same, published": replace(SMALL, model="cnn(hidden=4)", dataset=TINY, profile="published", rule="median"),
    "wide resnet": replace(
        SMALL, model="wide-resnet(depth=10, width=1)", dataset=TINY.replace("(1, 4, 4)", "(3, 8, 8)"), batch_size=2
    ),
    "double precision, own parts, mixings": replace(
        SMALL, dtype="float64", partition="dirichlet(alpha=0.3)", pre=("arc", "nnm"), rule="trimmed-mean", attack="rop"
    ),
    "not measured, rates in pieces": replace(
        SMALL,
        measure=False,
        learning_rate=((0, 0.3), (3, 0.01)),
        attack="rop",
        rule="centered-clipping",
        dampening=0.5,
    ),
}


@pytest.mark.usefixtures("no_disk")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("place", PLACES)
def test_dropout_batch_normalisation_and_the_other_settings(name: str, place: str, tmp_path: Path) -> None:
    e = replace(MODELS[name], momentum_at=place, nesterov=True)  # type: ignore[arg-type]
    whole = vg.run(e, tmp_path / "whole")
    for stop in (2, 3):
        interrupt(e, tmp_path / "cut", stop)
    cut = vg.run(e, tmp_path / "cut")
    assert cut.began == 3
    assert left_by(cut.folder) == left_by(whole.folder)


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@settings(deadline=None, max_examples=40)
@given(chosen=st.data())
def test_any_interruptions(chosen: st.DataObject) -> None:
    """Any settings, any number of interruptions anywhere, the newest checkpoint torn or not."""
    digits = data.digits()
    e = chosen.draw(
        st.builds(
            vg.Experiment,
            workers=st.integers(7, 9),
            byzantine=st.just(1),
            model=st.sampled_from(["linear", "fully-connected(hidden=3)"]),
            rule=st.sampled_from(["median", "multi-krum", "bulyan", "centered-clipping", "average"]),
            attack=st.sampled_from([None, "little", "rop", "gaussian", "label-flip", "nan"]),
            momentum=st.sampled_from([0.0, 0.9]),
            nesterov=st.booleans(),
            momentum_at=st.sampled_from(PLACES),
            clip=st.sampled_from([None, 0.1, 2.0]),
            steps=st.integers(1, 12),
            batch_size=st.integers(1, 3),
            evaluate_every=st.integers(0, 4),
            measure=st.booleans(),
            seed=st.integers(0, 9),
        )
    )
    stops = chosen.draw(st.lists(st.integers(1, e.steps), max_size=4).map(sorted))
    every = chosen.draw(st.sampled_from([0.0, float("inf")]))
    with scratch() as out:
        whole = vg.run(e, out / "whole", digits)
        folder = out / "cut" / f"{e.name}-{e.digest}"
        reached = 0
        for stop in stops:
            if reached < stop <= len(whole.measures):
                interrupt(e, out / "cut", stop, digits, every)
                reached = stop
        if reached and chosen.draw(st.booleans()):
            size = (folder / "checkpoint.pt").stat().st_size
            os.truncate(folder / "checkpoint.pt", chosen.draw(st.integers(0, size - 1)))
            with pytest.warns(UserWarning, match=r"checkpoint\.pt cannot be used"):
                cut = vg.run(e, out / "cut", digits)
            assert cut.began < reached
        else:
            cut = vg.run(e, out / "cut", digits)
            assert cut.began == reached
        assert left_by(cut.folder) == left_by(whole.folder)


# ------------------------------------------------------------------------------------------------------ the power fails


def crash(moment: Moment, folder: Path, chance: random.Random) -> None:
    """What the folder may hold after the power failed at that moment."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in moment.after(chance).items():
        (folder / name).write_bytes(content)


def run_watched(
    e: vg.Experiment, out: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> tuple[vg.Result, list[Moment]]:
    """A run with a checkpoint at each step, on a disk that forgets."""
    disk, save = Disk(out / f"{e.name}-{e.digest}"), Journal.save

    def spy(journal: Journal, *arguments: Any) -> None:
        save(journal, *arguments)
        disk.promised = journal.saved

    with monkeypatch.context() as patch, disk.watched():
        patch.setattr(Journal, "save", spy)
        result = vg.run(e, out, digits, checkpoint_every=0)
    return result, disk.moments


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot be used:UserWarning")
def test_the_power_fails_at_any_moment(tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left, the run comes to the same, and it never goes back behind a checkpoint that was safe."""
    e = replace(SMALL, rule="median", attack="little", measure=False)
    whole = left_by(vg.run(e, tmp_path / "whole", digits).folder)
    _, moments = run_watched(e, tmp_path / "watched", digits, monkeypatch)
    assert len(moments) > 60
    assert {moment.promised for moment in moments} == {0, 1, 2, 3, 4, 5}
    chance = random.Random(1)
    out, began = tmp_path / "crashed", set()
    folder = out / f"{e.name}-{e.digest}"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        for moment in moments * 3:
            crash(moment, folder, chance)
            complete = (folder / "result.json").exists()
            again = vg.run(e, out, digits)
            assert left_by(folder) == whole
            assert complete or again.began >= moment.promised
            began.add("complete" if complete else again.began)
    assert began == {0, 1, 2, 3, 4, 5, "complete"}


@pytest.mark.filterwarnings("ignore:.*cannot be used:UserWarning")
def test_the_power_fails_again_and_again(tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    e = replace(SMALL, rule="median", attack="rop", momentum_at="shared")
    whole = left_by(vg.run(e, tmp_path / "whole", digits).folder)
    out = tmp_path / "crashed"
    folder = out / f"{e.name}-{e.digest}"
    for seed in range(12):
        chance = random.Random(seed)
        shutil.rmtree(out, ignore_errors=True)
        promised = 0
        for _ in range(5):
            result, moments = run_watched(e, out, digits, monkeypatch)
            assert left_by(folder) == whole
            assert result.folder is not None
            if len(moments) < 3:
                break  # it was complete
            assert result.began >= promised
            moment = moments[chance.randrange(len(moments))]
            promised = max(promised, moment.promised)
            crash(moment, folder, chance)
            if (folder / "result.json").exists():
                break


def test_the_disk_that_forgets_forgets(tmp_path: Path) -> None:
    """The tests above could not fail on a disk that keeps everything."""
    folder = tmp_path / "folder"
    folder.mkdir()
    disk = Disk(folder)
    with disk.watched():
        (folder / "b.partial").write_bytes(b"x" * 2000)  # not brought to the disk before it is renamed
        os.replace(folder / "b.partial", folder / "b")
    states = {tuple(sorted(m.after(random.Random(i)).items())) for i in range(300) for m in disk.moments}
    contents = [dict(state).get("b") for state in states]
    assert None in contents
    assert b"" in contents
    assert b"x" * 2000 in contents
    assert any(c and 0 < len(c) < 2000 for c in contents)
    assert any(c and b"\0" in c for c in contents)
