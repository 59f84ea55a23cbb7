"""Real ranks for the tests of the engines: processes that talk through gloo on this machine.

Each is forked from one that has imported torch and nothing of ours, which is most of what starting a rank takes.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.queues import Queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

HERE = str(Path(__file__).parent)


class Forked(ForkServerProcess):
    """In the environment that there is as it starts: what it is forked from has that of the first test."""

    def start(self) -> None:
        self.environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class Forks(ForkServerContext):
    """What ``multiprocessing.get_context`` answers, whose processes have imported torch before they begin."""

    Process = Forked

    def __init__(self) -> None:
        super().__init__()
        self.set_forkserver_preload(["warmed"])
        with patch.dict(os.environ, PYTHONPATH=HERE):  # where it looks for that; its processes look where this one does
            forkserver.ensure_running()


@contextmanager
def forking() -> Iterator[None]:
    """Workers of a sweep begin with torch imported."""
    from varangian.study.sweep import local

    given, forks = vars(multiprocessing), Forks()
    with patch.object(local, "multiprocessing", SimpleNamespace(**given | {"get_context": lambda method: forks})):
        yield


def has_fsdp() -> bool:
    """Whether this torch has what the engine for FSDP2 hooks into."""
    try:
        import varangian.engines.fsdp  # noqa: F401
    except ImportError:
        return False
    return True


def _main(rank: int, size: int, folder: str, work: Callable[..., Any], answers: Queue) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        answers.put((rank, work(rank, size, Path(folder)), None))
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise


def start(size: int, folder: Path, work: Callable[..., Any], seconds: float = 600, may_die: bool = False) -> list[Any]:
    """work(rank, size, folder) on each of ``size`` ranks: what each returns, or None for one that died."""
    context = Forks()
    answers: Queue = context.Queue()
    processes = [context.Process(target=_main, args=(r, size, str(folder), work, answers)) for r in range(size)]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    try:
        while len(found) < size:
            if not answers.empty():
                rank, answer, error = answers.get()
                found[rank] = answer
                assert error is None, f"rank {rank}:\n{error}"
            elif dead := [r for r, p in enumerate(processes) if p.exitcode not in (None, 0) and r not in found]:
                assert may_die, f"ranks {dead} died"
                found |= dict.fromkeys(dead)
            else:
                assert time.monotonic() < deadline, f"no answer of {set(range(size)) - set(found)} within {seconds} s"
                time.sleep(0.05)
        for process in processes:
            process.join(30)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    return [found[r] for r in range(size)]
