"""Memory and checkpoints of a long run: 20,000 steps on digits, kept in a folder, resident memory on the way.

python benchmarks/long_run.py [--steps 20000] [--checkpoint-every 5]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import varangian as vg
from varangian.runs import folders
from varangian.runs.environment import environment

MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)


def resident() -> float:
    """Resident memory of this process, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--checkpoint-every", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    e = vg.Experiment(
        workers=11, byzantine=2, rule="median", attack="little", batch_size=2, evaluate_every=100, steps=options.steps
    )
    marks = {max(1, int(share * e.steps)): None for share in MARKS}
    saves: list[float] = []
    save = folders.Journal.save

    def timed(journal: folders.Journal, *arguments: Any) -> None:
        start = time.perf_counter()
        save(journal, *arguments)
        saves.append(time.perf_counter() - start)

    folders.Journal.save = timed  # type: ignore[method-assign]

    def progress(done: int, newest: object) -> None:
        if done in marks:
            print(f"step {done:6d}: {resident():7.1f} MiB resident", flush=True)

    print(environment("cpu"))
    with tempfile.TemporaryDirectory() as out:
        result = vg.run(e, out, progress=progress, checkpoint_every=options.checkpoint_every)
    print(result)
    share = sum(saves) / result.seconds
    print(f"{len(saves)} checkpoints, {1e3 * sum(saves) / max(1, len(saves)):.1f} ms each, {share:.2%} of the time")


if __name__ == "__main__":
    main()
