"""What tests start from, wherever they are started: signals mean what they usually mean. And the program itself.

A shell starts what it puts in the background with interrupts ignored, nohup with hang-ups ignored, and children inherit
that; tests send such signals to programs and look at what becomes of them.

Triton decides when it is imported whether its interpreter runs kernels, which is what it is to do without a card.

What the tests of a file share is made once, since they stay together in one process. Files that take long begin.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import ranks
from varangian import cli
from varangian.core import references
from varangian.simulation.data import readers

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """By files where nothing else is asked for: by tests, each process would make what the tests of a file share."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # by numbers of tests, of which the slowest files have few
    return LoadFileScheduling(config, log)  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="module")
def nothing_known() -> Iterator[None]:
    """Each file begins as a process does, which has imported nobody's ``mine.py`` yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(references._known, "places", {})
        yield


class Ended:
    """How the program ended: status, and what it wrote."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def varangian(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Ended]]:
    """Runs the program in this process, in an empty folder and without the network; gives the threads back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VARANGIAN_DATA", raising=False)
    monkeypatch.setattr(readers, "_URLS", dict.fromkeys(readers._URLS, "http://127.0.0.1:9/"))
    threads = torch.get_num_threads()

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["varangian", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        written = capsys.readouterr()
        assert isinstance(end.value.code, int)
        assert "Traceback" not in written.out + written.err
        return Ended(end.value.code, written.out, written.err)

    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def forked() -> Iterator[None]:
    """Workers of a sweep begin with torch imported. Tests of what workers are, some in test_sweep.py, do without."""
    with ranks.forking():
        yield
