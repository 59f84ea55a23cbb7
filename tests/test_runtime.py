"""How kernels are compiled and kept, and whose the numbers of threads are."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

import programs
import varangian
from varangian.core import kernels
from varangian.core.kernels import runtime

COMPILES = """
import numpy as np, torch
from varangian.core.kernels.cpu.distances import _wide_square
from varangian.core.geometry import _distances
from varangian.core.rules.search import _degrees
from varangian.core.kernels.cpu.sizes import _select
assert _wide_square(np.ones(3)) == 3
_distances(np.eye(2), np.eye(2)), _degrees(np.eye(2) > 0, np.zeros(2, np.int64), np.zeros(2, np.int64))
assert _select(np.arange(3).astype(np.uint32), 1)[0] == 1
print("worked")
"""


def program(package: Path, code: str = COMPILES, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**variables, "PYTHONPATH": str(package.parent), "HOME": "/dev/null", **environment},
        cwd=package.parent,
    )


def forked(package: Path) -> subprocess.CompletedProcess[str]:
    """The same where folders of a cache can be written."""
    variables = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return programs.run("-c", COMPILES, cwd=package.parent, env={**variables, "PYTHONPATH": str(package.parent)})


def said_once(done: subprocess.CompletedProcess[str], what: str) -> None:
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout == "worked\n"
    lines = [line for line in done.stderr.splitlines() if line.startswith("compiling kernels ")]
    assert len(lines) == 1, lines
    assert what in lines[0]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, without what was compiled."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(varangian.__file__).parent, tmp_path / "varangian", ignore=ignored))


@pytest.mark.slow
def test_where_nothing_can_be_written(package: Path) -> None:
    """Files stand where folders of a cache would be, so that not even root can make them."""
    for folder in [package, *package.rglob("*/")]:
        if folder.is_dir():
            (folder / "__pycache__").touch()
    done = program(package)
    said_once(done, "NUMBA_CACHE_DIR")
    kept = package.parent / "kept"
    assert program(package, NUMBA_CACHE_DIR=str(kept)).returncode == 0
    assert list(kept.rglob("*.nbc"))


@pytest.mark.slow
@pytest.mark.parametrize("spoiled", ["both", "index is a folder"])
def test_caches_that_cannot_be_read(package: Path, spoiled: str) -> None:
    """Cut off or replaced: compiled anew, said once, and kept again where that is possible."""
    assert forked(package).returncode == 0
    files = [*package.rglob("*.nbi"), *package.rglob("*.nbc")]
    assert len(files) >= 8
    for file in files:
        if file.suffix == ".nbi" and spoiled == "index is a folder":
            file.unlink()
            file.mkdir()
        elif spoiled == "both":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said_once(forked(package), "cannot be read")
    if spoiled != "index is a folder":
        done = forked(package)
        assert (done.stdout, "compiling" in done.stderr) == ("worked\n", False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit to the size of files stands for a full disk")
def test_a_full_disk_under_the_cache(package: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    said_once(program(package, limit + COMPILES, PYTHONDONTWRITEBYTECODE="1"), "cannot be written")


def numbers() -> tuple[int, int, int, list[int]]:
    """Of torch, of kernels, of tasks that call torch, and of other libraries' pools."""
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return torch.get_num_threads(), kernels.threads(), kernels.own_threads(), pools


def test_threads_of_several_at_once_are_given_back() -> None:
    """Whoever comes and leaves first; new threads that start meanwhile, too."""
    former = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        before, barrier, gates = numbers(), threading.Barrier(4), [threading.Event() for _ in range(4)]
        found: dict[int, list[tuple[int, int, int, list[int]]]] = {}

        def run(i: int, first: bool) -> None:
            if first:
                found[i] = [numbers()]
            with kernels.exclusive_threads():
                barrier.wait(60)
                gates[i].wait(60)
                found.setdefault(i, []).append(numbers())
            found[i].append(numbers())

        workers = [threading.Thread(target=run, args=(i, i == 0)) for i in range(4)]
        for worker in workers:
            worker.start()
        for i in (2, 0, 3, 1):
            gates[i].set()
            workers[i].join(60)
        for i in range(4):
            inside, after = found[i][-2:]
            assert inside[:3] == (1, 3, 3)
            assert after[:3] == (3, 3, 1)
            assert set(inside[3]) <= {1}
        assert numbers() == before
        with ThreadPoolExecutor(1) as pool:  # a thread that was not there
            assert pool.submit(numbers).result()[:3] == (3, 3, 1)
        torch.set_num_threads(1)
        assert kernels.threads() == 1
    finally:
        torch.set_num_threads(former)


def _upcast(pipe: Connection, half: torch.Tensor) -> None:
    torch.set_num_threads(2)
    pipe.send(kernels.column_statistic(half, 1, 4, 3)[0].view(torch.int16).numpy())
    pipe.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_half_types_in_a_forked_child() -> None:
    """Torch's own threads do not survive a fork, so upcasting must not wait for them."""
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        half = torch.randn(5, 300_000, generator=torch.Generator().manual_seed(0)).bfloat16().T.contiguous().T
        torch.ones(1 << 22).exp_()  # torch's threads exist now
        expected = kernels.column_statistic(half, 1, 4, 3)[0].view(torch.int16).numpy()
        context = multiprocessing.get_context("fork")
        mine, theirs = context.Pipe()
        child = context.Process(target=_upcast, args=(theirs, half))
        child.start()
        theirs.close()
        try:
            assert mine.poll(60), "the child hangs"
            np.testing.assert_array_equal(mine.recv(), expected)
        finally:
            child.join(10)
            if child.is_alive():
                child.kill()
                child.join()
    finally:
        torch.set_num_threads(former)


def images(raw: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same images, otherwise in memory or of another type."""
    n, c, h, w = raw.shape
    padded = torch.zeros(n, c, h + 2, 2 * w, dtype=raw.dtype)
    padded[:, :, 1:-1, ::2] = raw
    return {
        "height, width, channels": raw.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "channels last": raw.to(memory_format=torch.channels_last),
        "columns first": raw.transpose(2, 3).contiguous().transpose(2, 3),
        "a part": padded[:, :, 1:-1, ::2],
        "one for all": raw[:1].expand(n, -1, -1, -1),
        "float16": raw.half(),
        "bfloat16": raw.bfloat16(),
        "float32": raw.float(),
        "float64": raw.double(),
        "int64": raw.long(),
        "int16, columns first": raw.short().transpose(2, 3).contiguous().transpose(2, 3),
    }


@pytest.mark.parametrize("name", images(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)))
def test_images_of_any_layout_and_type(name: str) -> None:
    random = np.random.default_rng(0)
    raw = torch.from_numpy(random.integers(0, 256, size=(9, 3, 5, 7), dtype=np.uint8))
    given = images(raw)[name]
    plain = raw[:1].repeat(9, 1, 1, 1) if name == "one for all" else raw
    plain = plain.bfloat16().float() if name == "bfloat16" else plain
    scale, shift = np.array([0.5, 1.0, 2.0]), np.array([0.0, 1.0, -1.0])
    for index in (random.integers(0, 9, 20), np.zeros(0, np.int64)):
        flip = random.integers(0, 2, index.size).astype(bool)
        for flags in (None, flip):
            found = kernels.gather_images(given, index, flip=flags, scale=scale, shift=shift)
            assert torch.equal(found, kernels.gather_images(plain, index, flip=flags, scale=scale, shift=shift))
            assert found.shape == (index.size, 3, 5, 7)


def test_states_of_another_shape_are_refused() -> None:
    """Neither the last row for those that are missing, nor memory of somebody else."""
    x = torch.ones(8, 300)
    for y in (torch.ones(5, 300), torch.ones(8, 3), torch.ones(3), torch.ones(9, 300), torch.ones(2, 4, 300)):
        with pytest.raises(ValueError, match="or with one of them"):
            kernels.blend(0.5, x, 2.0, y)
        with pytest.raises(ValueError, match="or with one of them"):
            kernels.send_rows(
                x, 0.1, x[0], scale=None, keep=0.1, beta=0.9, memory=y, out=torch.empty_like(x), moments=False
            )
        with pytest.raises(ValueError, match="or with one of them"):
            kernels.send_rows(
                x, 0.1, y, scale=None, keep=0.1, beta=0.9, memory=None, out=torch.empty_like(x), moments=False
            )


def test_panels_are_small_enough_for_one_thread_of_torch() -> None:
    """Torch shares out what has more numbers than this, among threads that a forked child does not have."""
    assert runtime.HALF_WIDTH <= runtime.SMALL <= 1 << 15
