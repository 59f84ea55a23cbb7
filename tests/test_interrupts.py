"""Signals: a run that one of them ends can go on, to the last byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import programs
import varangian as vg
from interruption import left_by
from varangian.runs import folders
from varangian.runs.interrupts import Interrupts, termination_interrupts
from varangian.simulation import data

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals")

E = vg.Experiment(
    workers=11, byzantine=2, rule="median", attack="little", batch_size=2, steps=1500, evaluate_every=50, nesterov=True
)
OPTIONS = "run --workers 11 --byzantine 2 --rule median --attack little --batch-size 2 --steps 1500 --evaluate-every 50"


def start(out: Path, *options: str, anew: bool = False) -> programs.Started | subprocess.Popen[str]:
    """The program itself, on the run above: from a new interpreter, or forked."""
    words = [
        "-m",
        "varangian",
        *OPTIONS.split(),
        "--nesterov",
        "--quiet",
        "--out",
        str(out),
        "--threads",
        "1",
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    if not anew:
        return programs.start(*words, *options, env=environment)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *words, *options], env=environment, stderr=pipe, stdout=pipe, text=True)


def rows(out: Path) -> int:
    """How many rows of metrics.csv can be seen."""
    found = list(out.glob("*/metrics.csv"))
    return found[0].read_bytes().count(b"\n") if found else 0


def wait_for(out: Path, least: int, process: programs.Started | subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 180
    while rows(out) < least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> vg.Result:
    return vg.run(E, tmp_path_factory.mktemp("whole"), data.digits())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_program_that_a_signal_ends(name: str, whole: vg.Result, tmp_path: Path) -> None:
    """For real: another process, ended in the middle of its run, twice, and gone on with."""
    number = getattr(signal, name)
    every = ["--checkpoint-every", "0" if name == "SIGKILL" else "1000"]
    seen = 0
    for least in (100, 300):
        process = start(tmp_path, *every, anew=name == "SIGINT" and not seen)
        wait_for(tmp_path, seen + least, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=180)
        assert out == ""
        assert process.returncode == (-9 if name == "SIGKILL" else 130)
        if name != "SIGKILL":
            said = "what runs and sweeps have done is kept, and the same command goes on from there."
            assert err.strip() == f"varangian: interrupted; {said}"
        assert not list(tmp_path.glob("*/result.json"))
        seen = rows(tmp_path)
    result = vg.run(E, tmp_path, data.digits())
    assert result.began >= 300
    assert left_by(result.folder) == left_by(whole.folder)
    assert result.seconds > 0


def test_signals_wait_for_the_end_of_a_step(tmp_path: Path) -> None:
    """In this process: the handler of before gets the signal once the checkpoint is written."""
    e, digits = replace(E, steps=40), data.digits()
    found: list[int] = []

    def handler(number: int, frame: object) -> None:
        found.append(number)
        assert (tmp_path / f"{e.name}-{e.digest}" / folders.CHECKPOINT).exists()
        if len(found) > 1:
            raise SystemExit(3)

    def progress(done: int, newest: object) -> None:
        if done in (5, 9):
            signal.raise_signal(signal.SIGTERM)
            assert len(found) == (0 if done == 5 else 1)

    former = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit):
            vg.run(e, tmp_path, digits, progress=progress)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, former)
    assert found == [signal.SIGTERM] * 2
    result = vg.run(e, tmp_path, digits)
    assert result.began == 9
    assert left_by(result.folder) == left_by(vg.run(e, tmp_path / "whole", digits).folder)


def raise_kept(*numbers: int) -> int | None:
    """Raises signals inside Interrupts; which was kept."""
    with Interrupts() as interrupts:
        for number in numbers:
            signal.raise_signal(number)
        kept, interrupts.pending = interrupts.pending, None
        return kept


def test_one_ctrl_c_waits_and_a_second_does_not() -> None:
    assert raise_kept(signal.SIGINT) == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        raise_kept(signal.SIGINT, signal.SIGINT)


def test_schedulers_may_send_sigterm_twice() -> None:
    """To the process and to its parent, which passes it on: no reason to leave the checkpoint half written."""
    assert raise_kept(signal.SIGTERM, signal.SIGTERM, signal.SIGTERM) == signal.SIGTERM


def test_termination_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), termination_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ignored_signals_stay_ignored() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert interrupts.pending is None
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_run_in_another_thread_is_ended_by_its_progress(tmp_path: Path) -> None:
    """Python gives signals to the main thread alone."""
    e, digits, caught = replace(E, steps=40), data.digits(), []
    stop = threading.Event()

    def progress(done: int, newest: object) -> None:
        if done == 7:
            stop.set()
        if stop.is_set():
            raise SystemExit

    def work() -> None:
        try:
            vg.run(e, tmp_path, digits, progress=progress)
        except SystemExit as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert vg.run(e, tmp_path, digits).began == 7
