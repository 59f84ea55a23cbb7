"""How long a report of a large grid takes: a folder of made-up runs, every rule under every attack, is reported.

python benchmarks/report.py [--seeds 2] [--steps 40] [--runs FOLDER]

The runs are files only, written as a run writes them; nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch

import varangian as vg
from varangian.runs.environment import environment
from varangian.simulation.metrics import Measures
from varangian.study.report import report

NOT_OF_A_RUN = ("fltrust", "smea")  # they need a root or take too many subsets


def experiments(seeds: int, steps: int) -> list[vg.Experiment]:
    """Each rule that a run can have and one with a mixing before it, without attack and under each."""
    rules = [((), name) for name in vg.RULES if name not in NOT_OF_A_RUN]
    rules += [(("nnm",), name) for name in ("krum", "median")]
    attacks = [None, *vg.ATTACKS]
    return [
        vg.Experiment(
            workers=15, byzantine=3, rule=rule, pre=pre, attack=attack, seed=seed, steps=steps, evaluate_every=10
        )
        for pre, rule in rules
        for attack in attacks
        for seed in range(1, seeds + 1)
    ]


def write(folder: Path, e: vg.Experiment, draw: random.Random, session: dict[str, object]) -> None:
    """A complete run, its numbers drawn."""
    run = folder / f"{e.name}-{e.digest}"
    run.mkdir(parents=True)
    best = draw.uniform(0.1, 0.95)
    evaluations = [vg.Evaluation(s, best * s / e.steps, 2.3 - s / e.steps) for s in range(0, e.steps + 1, 10)]
    measures = [Measures(s, 83 * 12 * s, 0.1, 2.0, *(draw.random() for _ in range(21)), 0.5) for s in range(e.steps)]
    result = vg.Result(e, evaluations, measures, 1.0)
    (run / "experiment.json").write_text(e.to_json())
    (run / "result.json").write_text(json.dumps(result.summary()))
    rows = ["step,accuracy,loss", *(f"{v.step},{v.accuracy!r},{v.loss!r}" for v in evaluations)]
    (run / "evaluations.csv").write_text("\n".join(rows) + "\n")
    rows = [",".join(vars(measures[0])), *(",".join(m.row()) for m in measures)]
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    (run / "environment.json").write_text(json.dumps({"sessions": [session]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--runs", type=Path, help="where the runs are to stay; made where it is not there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary) / "runs"
        if not folder.exists():
            draw = random.Random(1)
            session = environment("cpu") | {"started": "2026-11-26T10:00:00+00:00"}
            for e in experiments(options.seeds, options.steps):
                write(folder, e, draw, session)
        number = sum(1 for _ in folder.glob("*/result.json"))
        start, processor = time.perf_counter(), time.process_time()
        page = report(folder, Path(temporary) / "report", say=print)
        took, used = time.perf_counter() - start, time.process_time() - processor
        size = page.stat().st_size / 2**20
        files = sum(1 for _ in (page.parent / "figures").iterdir())
        print(
            f"{number} runs reported in {took:.1f} s ({used:.1f} s of processor): page {size:.1f} MiB, {files} figures"
        )


if __name__ == "__main__":
    main()
