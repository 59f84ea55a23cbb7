"""Faults of machines and mistakes of people: a clear message, no corrupt state, no lost result."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

import programs
import varangian as vg
from interruption import interrupt, left_by, stop_at
from varangian.runs import folders
from varangian.runs.results import settings_of
from varangian.simulation import data
from varangian.simulation.data import readers
from varangian.study.sweep import sweep

E = vg.Experiment(
    workers=7, byzantine=1, model="linear", rule="median", attack="little", steps=8, batch_size=1, evaluate_every=3
)


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.digits()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: data.Dataset) -> dict[str, Any]:
    """What an undisturbed run comes to."""
    return left_by(vg.run(E, tmp_path_factory.mktemp("whole"), digits).folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes small disks of its own; skips where this is not allowed."""
    mounted: list[Path] = []

    def make(*options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        if sys.platform != "linux" or shutil.which("mount") is None:
            pytest.skip("no tmpfs")
        if subprocess.run(command, capture_output=True, timeout=30).returncode:
            pytest.skip("not allowed to mount")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=30)


# ----------------------------------------------------------------------------------------------------------- full disks


def fill(folder: Path) -> None:
    with open(folder / "filler", "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(folder).free == 0


@pytest.mark.parametrize("every", [0.0, float("inf")])
def test_a_full_disk_keeps_the_checkpoint(
    mount: Callable[..., Path], digits: data.Dataset, whole: dict[str, Any], every: float
) -> None:
    disk = mount("size=512k")
    folder = interrupt(E, disk / "runs", 2, digits)

    def progress(done: int, newest: Any) -> None:
        if done == 5:
            fill(disk)

    with pytest.raises(
        OSError, match=r"No space left on device, while writing to .* The checkpoint of step (\d)"
    ) as error:
        vg.run(E, disk / "runs", digits, progress=progress, checkpoint_every=every)
    assert error.value.errno == errno.ENOSPC
    saved = int(re.findall(r"checkpoint of step (\d) is kept", str(error.value))[0])
    assert saved == (2 if every else 4)
    assert not list(folder.glob("*.partial"))
    (disk / "filler").unlink()
    result = vg.run(E, disk / "runs", digits)
    assert result.began == saved
    assert left_by(result.folder) == whole


def test_a_full_disk_without_a_checkpoint_leaves_nothing(mount: Callable[..., Path], digits: data.Dataset) -> None:
    disk = mount("size=512k")

    def progress(done: int, newest: Any) -> None:
        if done == 5:
            fill(disk)

    with pytest.raises(OSError, match="No space left on device, while writing to"):
        vg.run(E, disk / "runs", digits, progress=progress)
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_disk_that_fills_during_a_sweep(mount: Callable[..., Path], tmp_path: Path) -> None:
    """What is complete is kept, and the same sweep goes on when there is room again."""
    disk = mount("size=600k")
    grid = [replace(E, seed=seed) for seed in range(3)]
    sweep(grid[:1], disk, jobs=1)
    kept = (disk / "runs.csv").read_bytes()
    fill(disk)
    with pytest.raises(OSError, match="No space left"):  # its own record cannot be written
        sweep(grid, disk, jobs=1)
    assert (disk / "runs.csv").read_bytes() == kept
    (disk / "filler").unlink()
    result = sweep(grid, disk, jobs=1)
    assert (len(result.outcomes), result.failed) == (3, ())
    sweep(grid, tmp_path / "whole", jobs=1)
    assert (disk / "runs.csv").read_bytes() == (tmp_path / "whole" / "runs.csv").read_bytes()
    assert not list(disk.rglob("*.partial"))


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from varangian.cli import main
main()
"""
OPTIONS = [
    *("run", "--workers", "7", "--byzantine", "1", "--model", "linear", "--rule", "median", "--attack", "little"),
    *("--steps", "8", "--batch-size", "1", "--evaluate-every", "3", "--quiet", "--threads", "1"),
]


def program(*arguments: str, script: str | None = None) -> programs.Started | subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    start = ["-m", "varangian"] if script is None else ["-c", script]
    return programs.start(*start, *arguments, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
@pytest.mark.skipif("COVERAGE_PROCESS_CONFIG" in os.environ, reason="what counts lines writes files too")
def test_a_quota(tmp_path: Path, digits: data.Dataset, whole: dict[str, Any]) -> None:
    """A limit on the size of files stands for it: the program says what happened in one line, and loses nothing."""
    folder = interrupt(E, tmp_path, 3, digits)
    before = contents(folder)
    limit = str((folder / "metrics.csv").stat().st_size + 300)
    out, err = (ended := program(limit, *OPTIONS, "--out", str(tmp_path), script=LIMITED)).communicate(timeout=180)
    assert (ended.returncode, out) == (2, "")
    assert err.startswith("varangian: ")
    assert err.endswith("The checkpoint of step 3 is kept: the same command goes on from there.\n")
    assert err.count("\n") == 1
    assert contents(folder)["checkpoint.pt"] == before["checkpoint.pt"]
    result = vg.run(E, tmp_path, digits)
    assert result.began == 3
    assert left_by(result.folder) == whole


# ---------------------------------------------------------------------------------------------------- read-only folders


def test_a_read_only_disk(mount: Callable[..., Path], digits: data.Dataset, whole: dict[str, Any]) -> None:
    disk = mount("size=2m")
    other = replace(E, seed=2)
    vg.run(E, disk, digits)
    folder = interrupt(other, disk, 2, digits)
    before = contents(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=30)
    assert left_by(vg.run(E, disk, digits).folder) == whole  # complete: it is answered
    assert vg.replay(folder, 3, digits).step == 3  # reads only
    for e in (other, replace(E, seed=3)):
        with pytest.raises(PermissionError, match="cannot be written: Read-only file system; choose another --out"):
            vg.run(e, disk, digits)
    assert contents(folder) == before
    assert len(list(disk.iterdir())) == 2


# ----------------------------------------------------------------------------------------------- data that goes missing


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """Files of MNIST's form and sizes, of nothing but noise."""
    folder, random = tmp_path / "data", np.random.default_rng(1)
    folder.mkdir()
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_data_that_goes_missing(mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a run nothing happens, for data is read once; a run that goes on without it says so."""
    monkeypatch.setattr(readers, "_URLS", dict.fromkeys(readers._URLS, "http://127.0.0.1:9/"))
    e = replace(E, dataset="mnist")
    expected = left_by(vg.run(e, tmp_path / "whole", data_folder=mnist_folder).folder)
    images = mnist_folder / "train-images-idx3-ubyte"
    good = images.read_bytes()

    def truncate_and_delete(done: int, newest: Any) -> None:
        if done == 2:
            os.truncate(images, 1000)
            (mnist_folder / "train-labels-idx1-ubyte").rename(tmp_path / "labels")
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(e, tmp_path / "cut", data_folder=mnist_folder, progress=truncate_and_delete)
    with pytest.raises(vg.DataError, match="mnist: "):
        vg.run(e, tmp_path / "cut", data_folder=mnist_folder)
    images.write_bytes(good)
    (tmp_path / "labels").rename(mnist_folder / "train-labels-idx1-ubyte")
    result = vg.run(e, tmp_path / "cut", data_folder=mnist_folder)
    assert result.began == 4
    assert left_by(result.folder) == expected


# ------------------------------------------------------------------------------------------------------ short of memory

SHORT = """
import resource, sys
from dataclasses import replace
from varangian import Experiment
from varangian.study.sweep import sweep
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
    e = Experiment(workers=7, byzantine=1, model="linear", rule="median", attack="little", steps=8, batch_size=1,
                   evaluate_every=3)
    large = replace(e, model="fully-connected(hidden=500000)", workers=100)  # 15 GB of vectors
    found = sweep([large, e, replace(e, seed=2)], sys.argv[1], jobs=1)
    print(found.done, [reason for _, reason in found.failed])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no such limits")
def test_one_run_of_a_sweep_is_short_of_memory(tmp_path: Path, whole: dict[str, Any]) -> None:
    (tmp_path / "short.py").write_text(SHORT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    ended = programs.run(tmp_path / "short.py", tmp_path / "out", env=environment)
    assert ended.stdout.startswith("2 ['MemoryError: ")
    [good] = (tmp_path / "out" / "runs").glob(f"*{E.digest}")
    assert left_by(good) == whole
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2


def test_a_lack_of_memory_keeps_the_checkpoint(
    tmp_path: Path, digits: data.Dataset, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a step, where the state is not whole."""
    folder = interrupt(E, tmp_path, 3, digits)
    kept = (folder / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        message = "[enforce fail at x.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"

        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError(message)

        patch.setattr(vg.Algorithm, "finish", fail)
        with pytest.raises(MemoryError, match=r"^unable to allocate 8 bytes\.$"):
            vg.run(E, tmp_path, digits)
    assert (folder / "checkpoint.pt").read_bytes() == kept
    assert left_by(vg.run(E, tmp_path, digits).folder) == whole


# ---------------------------------------------------------------------------------------- two processes on the same run


def test_one_process_a_folder(tmp_path: Path, digits: data.Dataset, whole: dict[str, Any]) -> None:
    folder = interrupt(E, tmp_path, 3, digits)
    before = contents(folder)
    with (
        FileLock(folder / ".lock"),
        pytest.raises(vg.FolderInUse, match=f"^{re.escape(str(folder))} is in use by another"),
    ):
        vg.run(E, tmp_path, digits)
    assert contents(folder) == before
    result = vg.run(E, tmp_path, digits)
    assert left_by(result.folder) == whole
    assert not (folder / ".lock").exists()


@pytest.mark.slow
def test_two_programs_on_the_same_folder(tmp_path: Path) -> None:
    """One works, the other says so and ends; after kill -9 of the first, the second may start at once."""
    arguments = [*OPTIONS, "--out", str(tmp_path), "--steps", "100000", "--checkpoint-every", "0.2"]
    first = program(*arguments)
    limit = time.monotonic() + 180
    while not list(tmp_path.glob("*/checkpoint.pt")):
        assert time.monotonic() < limit
        assert first.poll() is None
        time.sleep(0.02)
    out, err = (second := program(*arguments)).communicate(timeout=180)
    assert (second.returncode, out) == (2, "")
    assert re.fullmatch(r"varangian: \S+ is in use by another process: wait until that has ended, or end it\.\n", err)
    assert first.poll() is None
    first.kill()
    first.communicate(timeout=180)
    third = program(*arguments)
    limit = time.monotonic() + 180
    [environment] = tmp_path.glob("*/environment.json")
    while len(json.loads(environment.read_text())["sessions"]) < 2:
        assert time.monotonic() < limit
        assert third.poll() is None, third.communicate()
        time.sleep(0.02)
    third.send_signal(signal.SIGTERM)
    third.communicate(timeout=180)
    assert json.loads(environment.read_text())["sessions"][1]["from_step"] > 0


def test_a_sweep_leaves_a_run_to_whoever_has_it(tmp_path: Path) -> None:
    other = replace(E, seed=2)
    folder = tmp_path / "runs" / f"{E.name}-{E.digest}"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        result = sweep([E, other], tmp_path, jobs=1)
    assert (result.done, result.failed, result.left) == (1, (), 1)
    assert sweep([E, other], tmp_path, jobs=1).left == 0


# --------------------------------------------------------------------------------------------------------------- clocks


def test_clocks_that_jump(
    tmp_path: Path, digits: data.Dataset, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock goes back a day at every look, and it is an hour of nothing but checkpoints."""
    now = [time.time()]

    def back() -> float:
        now[0] -= 86_400
        return now[0]

    monkeypatch.setattr(time, "time", back)
    interrupt(E, tmp_path, 3, digits)
    result = vg.run(E, tmp_path, digits)
    assert left_by(result.folder) == whole
    assert 0 < result.seconds < 3600


def test_time_adds_up(tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(done: int, newest: Any) -> None:
        now[0] += 10
        if done in (3, 5) and now[0] % 1000 < 60:
            raise KeyboardInterrupt

    for rest in (1000, 2000):
        with pytest.raises(KeyboardInterrupt):
            vg.run(E, tmp_path, digits, progress=slow)
        now[0] = rest
    assert vg.run(E, tmp_path, digits, progress=lambda done, newest: now.__setitem__(0, now[0] + 10)).seconds == 80


# -------------------------------------------------------------------------------------------- what is not ours to touch


@pytest.mark.parametrize("name", ["environment.json", "result.json", "checkpoint.pt"])
def test_a_folder_of_a_newer_version(name: str, tmp_path: Path, digits: data.Dataset) -> None:
    if name == "checkpoint.pt":
        folder = interrupt(E, tmp_path, 3, digits)
        content = torch.load(folder / name, weights_only=True) | {"format": 2}
        torch.save(content, folder / name)
    else:
        found = vg.run(E, tmp_path, digits).folder
        assert found is not None
        folder = found
        values = json.loads((folder / name).read_text()) | {"format": 2}
        (folder / name).write_text(json.dumps(values))
    before = contents(folder)
    message = rf"{re.escape(str(folder / name))} was written by a newer version of Varangian \(format 2, this one reads"
    for again in (lambda: vg.run(E, tmp_path, digits), lambda: vg.resume(folder, digits)):
        with pytest.raises(ValueError, match=message):
            again()
    if name == "result.json":
        with pytest.raises(ValueError, match=message):
            vg.read(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("complete", [True, False])
def test_settings_that_were_changed_are_listed(complete: bool, tmp_path: Path, digits: data.Dataset) -> None:
    if complete:
        found = vg.run(E, tmp_path, digits).folder
        assert found is not None
        folder = found
    else:
        folder = interrupt(E, tmp_path, 3, digits)
    (folder / "experiment.json").write_text(replace(E, rule="krum", steps=9).to_json())
    before = contents(folder)
    with pytest.raises(ValueError, match="holds a run of other settings") as error:
        vg.run(E, tmp_path, digits)
    assert str(error.value).splitlines()[1:] == [
        "  - rule: 'krum' there, 'median' asked for",
        "  - steps: 9 there, 8 asked for",
    ]
    if not complete:  # its settings say one thing and its checkpoint another
        with pytest.raises(ValueError, match="holds a run of other settings") as error:
            vg.resume(folder, digits)
        assert "  - steps: 8 there, 9 asked for" in str(error.value)
    assert contents(folder) == before
    assert vg.run(E, tmp_path, digits, fresh=True).began == 0
    assert settings_of(folder) == E


def test_a_folder_may_be_renamed(tmp_path: Path, digits: data.Dataset, whole: dict[str, Any]) -> None:
    interrupt(E, tmp_path, 3, digits).rename(tmp_path / "mine")
    result = vg.resume(tmp_path / "mine", digits)
    assert (result.began, result.folder) == (3, tmp_path / "mine")
    assert left_by(result.folder) == whole
    assert vg.resume(tmp_path / "mine", digits, progress=stop_at(1)).measures  # complete: read
    with pytest.raises(ValueError, match=r"holds no run: experiment\.json is missing"):
        vg.resume(tmp_path, digits)


def test_fresh_starts_over(tmp_path: Path, digits: data.Dataset, whole: dict[str, Any]) -> None:
    folder = interrupt(E, tmp_path, 3, digits)
    assert vg.run(E, tmp_path, digits, fresh=True).began == 0
    with pytest.raises(KeyboardInterrupt):
        vg.run(E, tmp_path, digits, progress=stop_at(2), fresh=True)
    assert not (folder / "result.json").exists()
    assert left_by(vg.run(E, tmp_path, digits).folder) == whole


@pytest.mark.parametrize("name", folders.FILES)
def test_links_are_not_followed(name: str, tmp_path: Path, digits: data.Dataset) -> None:
    """A folder from a stranger must not make us write, or read, elsewhere."""
    folder = interrupt(E, tmp_path / "runs", 3, digits)
    (tmp_path / "mine").write_text("precious")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "mine")
    for again in (lambda: vg.run(E, tmp_path / "runs", digits), lambda: vg.resume(folder, digits)):
        with pytest.raises(ValueError, match=rf"{name} is a symbolic link; a run folder holds plain files only\."):
            again()
    assert (tmp_path / "mine").read_text() == "precious"


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    """One bit of the parameters: torch itself does not notice."""
    content = bytearray(path.read_bytes())
    parameters = torch.load(path, weights_only=True)["state"]["parameters"].numpy().tobytes()
    place = bytes(content).index(parameters)
    content[place + 1] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["state"]["parameters"].numpy().tobytes() != parameters


def huge(path: Path) -> None:
    """A file of a few hundred bytes that says that it holds a terabyte."""
    content = torch.load(path, weights_only=True)
    content["state"]["parameters"] = torch.zeros(1).expand(2**38)
    torch.save(content, path)


def pickled(path: Path) -> None:
    torch.save({"state": print}, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [torn, flipped, huge, pickled, empty])
def test_a_damaged_checkpoint(
    damage: Callable[[Path], None], tmp_path: Path, digits: data.Dataset, whole: dict[str, Any]
) -> None:
    """The one before is gone on from; without any, the run starts over. Either way it says so."""
    folder = interrupt(E, tmp_path, 4, digits, checkpoint_every=0)
    damage(folder / "checkpoint.pt")
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt cannot be used: .*; going on from the checkpoint before it, of step 3"
    ):
        interrupt(E, tmp_path, 5, digits)
    damage(folder / "checkpoint.pt")
    damage(folder / "checkpoint-former.pt")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt cannot .*checkpoint-former\.pt cannot .*; starting over\."):
        result = vg.run(E, tmp_path, digits)
    assert result.began == 0
    assert left_by(result.folder) == whole


@pytest.mark.parametrize("name", ["metrics.csv", "evaluations.csv"])
def test_a_table_that_was_changed(name: str, tmp_path: Path, digits: data.Dataset, whole: dict[str, Any]) -> None:
    folder = interrupt(E, tmp_path, 4, digits, checkpoint_every=0)
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    (folder / name).write_bytes(b"".join([*lines[:-1], lines[-1].replace(b"3", b"4", 1)]))
    with pytest.warns(UserWarning, match=rf"{re.escape(name)} no longer holds what it refers to; (going on|starting)"):
        result = vg.run(E, tmp_path, digits)
    assert left_by(result.folder) == whole


@pytest.mark.parametrize("name", ["experiment.json", "environment.json"])
def test_a_lost_description_is_written_anew(
    name: str, tmp_path: Path, digits: data.Dataset, whole: dict[str, Any]
) -> None:
    folder = interrupt(E, tmp_path, 4, digits)
    torn(folder / name)
    result = vg.run(E, tmp_path, digits)
    assert result.began == 4
    assert left_by(result.folder) == whole
    assert vg.read(folder).experiment == E
    assert len(json.loads((folder / "environment.json").read_text())["sessions"]) == (
        2 if name == "experiment.json" else 1
    )


def test_another_environment_is_said(tmp_path: Path, digits: data.Dataset, whole: dict[str, Any]) -> None:
    folder = interrupt(E, tmp_path, 4, digits)
    record = json.loads((folder / "environment.json").read_text())
    [session] = record["sessions"]
    assert {
        "torch",
        "numpy",
        "numba",
        "python",
        "varangian",
        "threads",
        "device",
        "processor",
        "commit",
    } <= session.keys()
    record["sessions"][0] = session | {"torch": "1.0"}
    (folder / "environment.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"step 4 in another environment, .*: torch 1\.0 then, "):
        result = vg.run(E, tmp_path, digits)
    assert left_by(result.folder) == whole
    assert [s["from_step"] for s in json.loads((folder / "environment.json").read_text())["sessions"]] == [0, 4]


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_impossible_intervals(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every: must be a number of seconds >= 0"):
        vg.run(E, tmp_path, checkpoint_every=seconds)
    assert not list(tmp_path.iterdir())


def test_checkpoints_take_little_time(tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one costs a second, the next comes a hundred seconds later, whatever is asked for."""
    now, saved = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    save = folders.Journal.save

    def slow(journal: folders.Journal, *arguments: Any) -> None:
        write = folders.write_partial

        def partial(path: Path, content: Any, suffix: str) -> Path:
            now[0] += 1
            return write(path, content, suffix)

        with monkeypatch.context() as patch:
            patch.setattr(folders, "write_partial", partial)
            save(journal, *arguments)
        saved.append(now[0])

    monkeypatch.setattr(folders.Journal, "save", slow)

    def progress(done: int, newest: Any) -> None:
        now[0] += 5

    vg.run(replace(E, steps=100), tmp_path, digits, progress=progress, checkpoint_every=20)
    assert saved == [21, 122, 223, 324, 425]
