"""workers.bin: what every step told of every worker, in the folder of a run and in Python."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import varangian as vg
from pretended import PretendedCard
from varangian.core.accounts import Account
from varangian.core.history import Report
from varangian.runs import folders
from varangian.runs.results import layout_of
from varangian.runs.workers import Layout, Recorder, read_records, recorded

BASE = vg.Experiment(model="linear", rule="multi-krum", attack="empire", steps=12, workers=11, byzantine=2)
SERIES = ("weight", "score", "distance", "cosine", "suspicion", "rejected", "byzantine")


def same(one: Report, other: Report) -> None:
    for name in SERIES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert str(one) == str(other)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> vg.Result:
    return vg.run(BASE, tmp_path_factory.mktemp("kept"))


def copied(kept: vg.Result, place: Path) -> Path:
    assert kept.folder is not None
    return Path(shutil.copytree(kept.folder, place / kept.folder.name))


def test_the_folder_tells_what_the_run_told(kept: vg.Result) -> None:
    assert kept.folder is not None
    report = kept.workers()
    same(report, vg.read(kept.folder).workers())
    same(report, vg.run(BASE).workers())
    assert report.noun == "worker"
    assert report.steps == report.recent == 12
    assert report.weight.shape == (12, 11)
    assert report.byzantine is not None
    assert report.byzantine.sum(0).tolist() == [0] * 9 + [12] * 2
    size = os.path.getsize(kept.folder / "workers.bin")
    assert size == layout_of(BASE).size(12) == len(layout_of(BASE).header) + 12 * (4 + 11 * 12)


RULES: dict[str, dict[str, Any]] = {
    "krum": {"rule": "krum"},
    "multi-krum": {"rule": "multi-krum"},
    "median": {"rule": "median"},
    "trimmed-mean": {"rule": "trimmed-mean"},
    "bulyan": {"rule": "bulyan"},
    "average": {"rule": "average"},
    "geometric median": {"rule": "geometric-median"},
    "mixed": {"pre": ["nnm"], "rule": "krum"},
    "mixed columns": {"pre": ["nnm"], "rule": "median"},
    "nan": {"attack": "nan"},
    "nobody attacks": {"attack": None, "byzantine": 0},
    "local steps": {"local_steps": 2},
    "by size": {"rule": "median", "weighting": "size", "partition": "dirichlet(alpha=0.5)"},
    "clients": {"rule": "median", "clients": 30, "byzantine": 4, "real_byzantine": 3},
}


@pytest.mark.parametrize("name", RULES)
def test_a_replay_explains_the_numbers_that_were_recorded(name: str, tmp_path: Path) -> None:
    e = replace(BASE, steps=4, **RULES[name])
    result = vg.run(e, tmp_path)
    assert result.folder is not None
    again, report = vg.replay(result.folder, 3), result.workers()
    found = again.explanation
    assert found is not None
    places = np.arange(e.workers)
    if again.round is not None:
        places = np.searchsorted([s.worker for s in report.workers], again.round.clients)
        assert np.isnan(report.distance[3]).sum() == report.distance.shape[1] - e.workers
    np.testing.assert_allclose(report.distance[3, places], found.distance, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(report.cosine[3, places], found.cosine, atol=1e-3)  # half a precision
    np.testing.assert_allclose(report.suspicion[3, places], found.suspicion, atol=2e-3)
    if found.score is not None:
        score = np.where(found.finite, found.score, np.nan)
        np.testing.assert_allclose(report.score[3, places], score, rtol=1e-6)
    if found.weight is not None:
        sampled = (0.6 if e.weighting == "size" else 0.1) if found.coordinates else 1e-3
        np.testing.assert_allclose(report.weight[3, places], found.weight, rtol=sampled, atol=sampled / 10)
    assert report.byzantine is not None
    assert report.byzantine[3, places].tolist() == [i >= again.honest for i in range(e.workers)]


def test_columns_of_short_vectors_are_a_sample_of_no_bias(tmp_path: Path) -> None:
    """d = 7,510: values of 512 columns are ranked in each step; over steps they add up to the whole."""
    e = replace(BASE, model="fully-connected", rule="median", steps=40, attack="little", momentum=0.0)
    report = vg.run(e, tmp_path).workers()
    honest = report.weight[:, :9].mean()
    assert report.weight.sum(1) == pytest.approx(np.ones(40), abs=2e-3)
    assert honest == pytest.approx((1 - report.weight[:, 9:].sum(1).mean()) / 9, abs=1e-3)


@pytest.mark.parametrize("at", [1, 5, 11])
def test_an_interrupted_run_comes_to_the_same_bytes(at: int, kept: vg.Result, tmp_path: Path) -> None:
    def stop(step: int, newest: object) -> None:
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(BASE, tmp_path, progress=stop, checkpoint_every=0)
    (folder,) = tmp_path.iterdir()
    with open(folder / "workers.bin", "ab") as file:  # what a crash may leave behind the last checkpoint
        file.write(b"\0" * 1000)
    result = vg.resume(folder)
    assert kept.folder is not None
    assert (folder / "workers.bin").read_bytes() == (kept.folder / "workers.bin").read_bytes()
    same(result.workers(), kept.workers())


def test_a_changed_record_is_noticed_and_the_checkpoint_before_is_used(kept: vg.Result, tmp_path: Path) -> None:
    def stop(step: int, newest: object) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(BASE, tmp_path, progress=stop, checkpoint_every=0)
    (folder,) = tmp_path.iterdir()
    content = bytearray((folder / "workers.bin").read_bytes())
    content[-1] ^= 1
    (folder / "workers.bin").write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint.pt cannot be used: workers.bin no longer holds"):
        vg.resume(folder)
    assert kept.folder is not None
    assert (folder / "workers.bin").read_bytes() == (kept.folder / "workers.bin").read_bytes()


def test_what_an_older_version_began_is_completed_without(tmp_path: Path) -> None:
    def stop(step: int, newest: object) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(BASE, tmp_path, progress=stop, checkpoint_every=0)
    (folder,) = tmp_path.iterdir()
    (folder / "workers.bin").unlink()
    for name in (folders.CHECKPOINT, folders.FORMER):
        content = torch.load(folder / name, weights_only=True)
        del content["workers"], content["checksum"]
        torch.save(content | {"checksum": folders._checksum(content)}, folder / name)
    result = vg.resume(folder)
    assert result.stopped is None
    assert not (folder / "workers.bin").exists()
    with pytest.raises(ValueError, match=r"holds no workers\.bin: it was begun by a version that recorded none"):
        result.workers()


def test_without_measures_nothing_is_recorded(tmp_path: Path) -> None:
    e = replace(BASE, measure=False, steps=3)
    kept = vg.run(e, tmp_path)
    assert kept.folder is not None
    assert not (kept.folder / "workers.bin").exists()
    with pytest.raises(ValueError, match=r"holds no workers\.bin: it measured nothing; run it again"):
        kept.workers()
    with pytest.raises(ValueError, match="measure=False"):
        vg.run(e).workers()


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_a_run_that_ends_early_has_a_record_for_each_row(tmp_path: Path) -> None:
    refused = replace(BASE, attack="nan", real_byzantine=3)
    diverged = replace(BASE, rule="average", attack="empire(factor=-1e30)", learning_rate=1e30, clip=None)
    for name, e in {"refused": refused, "diverged": diverged}.items():
        result = vg.run(e, tmp_path / name)
        assert result.stopped is not None
        report = result.workers()
        assert report.steps == len(result.measures) < 12
        str(report)


@pytest.mark.parametrize("rule", ["average", "median", "krum", "geometric-median"])
def test_one_worker_or_few(rule: str) -> None:
    n = 3 if rule == "krum" else 1
    report = vg.run(replace(BASE, rule=rule, attack=None, byzantine=0, workers=n, steps=2)).workers()
    assert report.weight.shape == (2, n)
    assert report.weight.sum(1) == pytest.approx(np.ones(2))


# ------------------------------------------------------------------------------------------------ a stranger's file


def rewritten(change: Callable[[bytearray], object]) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return do


def field(name: str, value: float, step: int = 3, worker: int = 5) -> Callable[[bytearray], object]:
    def change(content: bytearray) -> None:
        layout = layout_of(BASE)
        records = np.frombuffer(content, layout.dtype, offset=len(layout.header))
        records["worker"][name][step, worker] = value

    return change


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda path: os.truncate(path, 700), r"workers\.bin has 700 bytes, and 12 steps of 11 workers have "),
    "longer": (rewritten(lambda content: content.extend(b"\0" * 136)), "12 steps of 11 workers have"),
    "nothing": (lambda path: path.write_bytes(b""), "has 0 bytes"),
    "another line": (rewritten(lambda c: c.__setitem__(slice(0, 5), b"X" * 5)), "does not begin with the line"),
    "a weight": (rewritten(field("weight", np.inf)), r"workers\.bin: step 3: the weight of worker 5 is inf"),
    "a score": (rewritten(field("score", -1.0)), "step 3: the score of worker 5 is -1"),
    "a distance": (rewritten(field("distance", -2.0)), "step 3: the distance of worker 5 is -2"),
    "a cosine": (rewritten(field("cosine", 3.0)), "step 3: the cosine of worker 5 is 3"),
    "none": (lambda path: path.unlink(), "begun by a version that recorded none"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_record_is_refused_in_a_line(name: str, kept: vg.Result, tmp_path: Path) -> None:
    folder = copied(kept, tmp_path)
    damage, message = DAMAGES[name]
    damage(folder / "workers.bin")
    result = vg.read(folder)  # everything else can be read
    with pytest.raises(ValueError, match=message) as caught:
        result.workers()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
def test_links_and_pipes_are_not_followed(kept: vg.Result, tmp_path: Path) -> None:
    folder = copied(kept, tmp_path)
    result, path = vg.read(folder), folder / "workers.bin"
    other = path.rename(tmp_path / "elsewhere")
    path.symlink_to(other)
    with pytest.raises(ValueError, match="is a link, and not followed"):
        result.workers()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a plain file"):
        result.workers()


def test_no_more_is_read_than_there_may_be(tmp_path: Path) -> None:
    path = tmp_path / "workers.bin"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="more than 4,294,967,296 bytes"):
        read_records(path, Layout(10**6), 10**6)


def test_what_goes_in_comes_out() -> None:
    layout, n = Layout(5, weighted=True), 5
    weight, score = np.array([0.5, 0.25, 0.0, np.nan, 0.25]), np.array([1.0, 1e60, 0.0, np.nan, np.nan])
    distance, cosine = np.array([2.0, 1e60, 0.0, np.nan, np.nan]), np.array([1.0, -1.0, 0.5, np.nan, np.nan])
    finite, shown = np.array([True, True, True, True, False]), np.array([True, True, True, False, True])
    told = Account(weight, score, distance, cosine, finite, shown, 2048)
    counts = np.arange(n) / 2
    records = bytearray()
    recorder = Recorder(layout, records.extend)
    recorder.add(told, counts)
    recorder.flush()
    recorder.add(told, counts)
    recorder.flush()
    recorder.flush()  # of nothing nothing
    found = recorded(bytes(records), layout)
    most = float(np.finfo(np.float32).max)
    for values, expected in (
        (found.weight, weight),
        (found.score, np.minimum(score, most)),
        (found.distance, np.minimum(distance, most)),
        (found.cosine, cosine),
        (found.counts, counts),
        (found.finite, finite),
        (found.excluded, ~shown),
    ):
        np.testing.assert_array_equal(values, np.tile(expected, (2, 1)))
    assert found.columns.tolist() == [2048, 2048]
    assert Layout(51).size(3000) < 2e6  # three thousand steps of 51 workers


def test_whom_a_quarantine_excludes_is_told_apart(tmp_path: Path) -> None:
    e = replace(BASE, steps=40, quarantine="quarantine(window=5)")
    report = vg.run(e, tmp_path).workers()
    excluded = {s.worker: s.excluded for s in report.workers}
    assert excluded[9] > 20
    assert excluded[10] > 20
    assert sum(excluded[i] for i in range(9)) == 0
    away = np.isnan(report.suspicion[:, 9])
    assert away.sum() == excluded[9]
    assert np.isnan(report.weight[away, 9]).all()
    assert not report.rejected[away, 9].any()


# ---------------------------------------------------------------------------------------------------- on a device

ON_CARD = {
    "krum": {"rule": "krum"},
    "median": {"rule": "median", "attack": "little"},
    "long vectors": {"rule": "median", "model": "fully-connected", "attack": "little"},
    "mixed": {"pre": ["nnm"], "rule": "trimmed-mean"},
    "bulyan": {"rule": "bulyan"},
    "nan": {"rule": "median", "attack": "nan"},
    "nobody": {"rule": "average", "attack": None, "byzantine": 0},
    "clients": {"rule": "median", "clients": 30, "byzantine": 4, "real_byzantine": 3},
    "quarantined": {"rule": "median", "quarantine": "quarantine(window=3)"},
}


@pytest.mark.parametrize("name", ON_CARD)
def test_a_card_tells_what_the_cpu_tells(name: str) -> None:
    e = replace(BASE, steps=8, **ON_CARD[name])
    there = vg.run(e).workers()
    with PretendedCard():
        found = vg.run(replace(e, device="cuda:0")).workers()
    for series in ("distance", "cosine", "weight"):
        one, other = getattr(found, series), getattr(there, series)
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=5e-3 * np.nanmax(np.abs(other)))
    assert (found.byzantine == there.byzantine).all()
    assert [s.excluded for s in found.workers] == [s.excluded for s in there.workers]


def test_a_refusal_that_a_card_finds_late_leaves_a_record_for_each_row() -> None:
    e = replace(BASE, rule="median", attack="nan", real_byzantine=3)
    with PretendedCard():
        result = vg.run(replace(e, device="cuda:0"))
    assert result.stopped == vg.run(e).stopped is not None
    assert result.workers().steps == len(result.measures)


def test_the_page_tells_what_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "explanation" / "reliability.md").read_text("utf-8")
    (program,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "workers()" in text]
    exec(program, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "multi-krum: 11 workers, 30 steps, 0 skipped"
    assert {printed[2].split()[0], printed[3].split()[0]} == {"9", "10"}
