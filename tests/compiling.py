"""Compiles the kernels for an H100, on any machine, with the arguments of real calls: for ``test_triton.py``.

    python tests/compiling.py GROUP ...    a line of JSON for each kernel: name, registers, stack, shared memory, PTX

Triton sees a card that compiles and never runs. So it makes of arguments what it would make of them: constants of
integers that are 1, wide loads where addresses allow them. Answers are whatever memory held: no kernel waits for them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from varangian.core.kernels import cuda
from varangian.core.kernels.cuda import columns, launching

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SIZES = [(11, 4096), (1, 1), (17, 301)]  # ordinary; degenerate; where rows start anywhere
NARROW, WIDE, HALF = torch.float32, torch.float64, torch.bfloat16


class H100:
    """What Triton asks of a card before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


seen: set[tuple[str, str]] = set()
group = ""  # the one that is compiled


def compile_only(kernel: Any, grid: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    made = kernel.warmup(*arguments, grid=(grid,), **options)
    if (group, made.hash) in seen:
        return
    seen.add((group, made.hash))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    name = "statistic" if kernel.__name__ == "kernel" else kernel.__name__
    line = {
        "group": group,
        "name": name,
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": made.metadata.shared,
    }
    print(json.dumps(line | {"options": str(options), "ptx": made.asm["ptx"]}), flush=True)


def compile_columns() -> None:
    for n, d in SIZES:
        for dtype in (NARROW, WIDE, HALF):
            x = torch.zeros(n, d, dtype=dtype)
            cuda.mean_and_std(x)
            alone = n <= 11  # of a single mixture the code is the same wherever rows start
            for m in (1, n) if alone else (n,):
                cuda.weighted_rows(x, np.full((m, n), 0.1))
                cuda.weighted_rows(x, np.full((m, n + 1), 1 / (n + 1)), x[:1])
                cuda.weighted_panel(x, np.full((m, n), 0.1), None, start=0, stop=d)
            if not alone:
                continue
            cuda.weighted_rows(x, np.full(n, 1 / 3))
            cuda.weighted_rows(x, np.full(n + 1, 1 / 3), x[:1])


def compile_distances() -> None:
    for n, d in SIZES:
        for dtype in (NARROW, WIDE, HALF):
            x = torch.zeros(n, d, dtype=dtype)
            table = np.full((n, n), 1 / n)
            if dtype != HALF or n != 11:  # half types differ in how they are loaded alone
                cuda.squared_distances(x)
            if dtype != HALF or n == 11:
                cuda.squared_distances(x, x[:1])
            cuda.mixed_distances(x, table, None, others=False)
            cuda.norms(x)
            cuda.squared_distances_to(x, x[0])
            cuda.compared(x, x[0])
            cuda.squared_around(x, table[0], None, np.ones(n))
            cuda.squared_around(x, table[0])
        cuda.inner_products([x[0]] * 7)
        cuda.inner_products([x[0]] * 8)
        cuda.inner_products([x[0].double()])


def compile_samples() -> None:
    for n, d in [*SIZES, (51, 79_510), (columns.SORTED_ROWS, 4096)]:
        blocks: dict[str, Any] = {"starts": torch.tensor([0]), "width": min(16, d)}
        for dtype in (NARROW, WIDE, HALF) if n in (11, 51) else (NARROW,):
            x = torch.zeros(n, d, dtype=dtype)
            for some in ({}, blocks):
                cuda.relations(x, x[0], **some)
                for window in (0, n - n // 4) if dtype == NARROW else (n - n // 4,):
                    for table in (None, np.full((n, n), 1 / n)):
                        cuda.statistic_weights(x, n // 2, n // 2 + 1, window, mixing=table, **some)


def compile_workers() -> None:
    for n, d in [*SIZES, (64, 4096), (128, 4096)]:
        for dtype in (NARROW, WIDE):
            x = torch.zeros(n, d, dtype=dtype)
            settings: dict[str, Any] = {"keep": 0.1, "beta": 0.9}
            cuda.send_rows(x, 0.1, x[0], scale=torch.abs, **settings, memory=x.clone(), out=x.clone(), moments=True)
            if n <= 17:
                cuda.blend(0.5, x, 0.5, x[0])
                cuda.blend(torch.ones(n), x, 0.5, x)
                cuda.send_rows(x, 0.1, x, scale=None, **settings, memory=None, out=x, moments=True)
                cuda.send_rows(x, 0.1, x, scale=torch.abs, **settings, memory=x[0], out=x.clone(), moments=False)
    for shape in ((9, 3, 8, 8), (9, 1, 1, 1)):
        for dtype in (torch.uint8, torch.float32):
            for flip in (None, torch.tensor([True, False])):
                one = np.ones(shape[1])
                index = torch.tensor([1, 2])
                cuda.gather_images(torch.zeros(shape, dtype=dtype), index, flip=flip, scale=one, shift=one)


def compile_sorting(cases: list[tuple[int, int, int, int, torch.dtype, bool]]) -> None:
    for n, low, high, window, dtype, mixed in cases:
        x, table = torch.zeros(n, 4096, dtype=dtype), np.full((n, n), 1 / n)
        cuda.column_statistic(x, low, high, window, mixing=table if mixed else None)


def compile_ordinary_sorting() -> None:
    cuda.column_statistic(torch.zeros(1, 1), 0, 1)
    kinds = [(dtype, mixed) for dtype in (NARROW, WIDE) for mixed in (False, True)]
    compile_sorting([(11, *ranks, *kind) for ranks in ((5, 6, 0), (2, 9, 9), (5, 6, 3)) for kind in kinds])
    compile_sorting([(11, 5, 6, 0, HALF, False), (25, 12, 13, 0, NARROW, False), (25, 5, 20, 20, NARROW, False)])


def compile_long_sorting() -> None:
    compile_sorting([(51, 25, 26, 0, NARROW, False), (columns.SORTED_ROWS, 31, 33, 0, NARROW, False)])


GROUPS = {
    "columns": compile_columns,
    "distances": compile_distances,
    "samples": compile_samples,
    "workers": compile_workers,
    "ordinary sorting": compile_ordinary_sorting,
    "long sorting": compile_long_sorting,
}

if __name__ == "__main__":
    driver.set_active(H100())
    launching.run = compile_only
    for group in sys.argv[1:]:
        GROUPS[group]()
