"""The paper's comparison in small, at three batch sizes: what momentum at the workers brings grows with the noise.

Real digits, 6 rules, 2 attacks, momentum at 2 places, 3 batch sizes, 3 seeds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..runs.building import open_dataset
from ..runs.environment import environment, processor, versions
from ..runs.experiment import Experiment
from ..runs.running import check_writable, run
from .outcomes import Outcome, from_result, rate_text
from .paper import Pair, mean_gain, pairs, unattacked
from .report import SweepRecord, report

RULES = ("multi-krum", "trimmed-mean", "median", "phocas", "meamed", "bulyan")
ATTACKS = {"little": "A Little Is Enough", "empire": "Fall of Empires"}
PLACES = ("server", "worker")
BATCHES = (2, 16, 83)  # 83 is the paper's, and the default of a run
SEEDS = (1, 2, 3)
ATTACKED = Experiment(
    workers=15, byzantine=3, steps=100, learning_rate=0.1, momentum=0.9, clip=2.0, l2=1e-4, measure=False
)


@dataclass(frozen=True)
class Cell:
    """Means over the seeds, in per cent and points.

    Attributes:
        batch_size, attack, rule: which pairs of runs.
        server, workers: the maximum accuracy with momentum there.
        gain: see :func:`varangian.study.paper.mean_gain`.
        pairs: how many seeds.
    """

    batch_size: int
    attack: str
    rule: str
    server: float
    workers: float
    gain: float
    pairs: int


@dataclass(frozen=True)
class Noise:
    """Of the runs without attack, means: accuracy in per cent, and variance-norm ratio at the first step."""

    batch_size: int
    accuracy: float
    ratio: float


def demo(out: str | Path, output: Console, notices: Console, as_json: bool = False) -> Path:
    """Runs the comparison, prints a table or JSON, and writes report and figures; returns the path of the report."""
    out = Path(out)
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    outcomes = compare(notices)
    seconds = time.perf_counter() - start
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    page = report(
        outcomes, out, record=SweepRecord("varangian demo", began, versions=versions(), processor=processor())
    )
    if as_json:
        text = json.dumps(content(outcomes) | {"seconds": round(seconds, 1), "report": str(page)})
        output.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        return page
    output.print(table(outcomes), highlight=False, markup=False, soft_wrap=True)
    output.print(f"\n{len(outcomes)} runs in {seconds:.0f} s.", highlight=False)
    output.print(f"Report: {page}\nFigures: {out / 'figures'}", highlight=False, markup=False, soft_wrap=True)
    return page


def experiments() -> list[Experiment]:
    """All runs of the demo, those without attack first."""
    sizes = [replace(ATTACKED, batch_size=size, seed=seed) for size in BATCHES for seed in SEEDS]
    attacked = [
        replace(e, attack=attack, rule=rule, momentum_at=place)
        for e in sizes
        for attack in ATTACKS
        for rule in RULES
        for place in PLACES
    ]
    return [replace(unattacked(e, e.workers - e.byzantine), measure=True) for e in sizes] + attacked


def compare(notices: Console) -> list[Outcome]:
    """The outcomes of all runs."""
    dataset = open_dataset(ATTACKED)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notices, transient=True) as bar:
        return [
            from_result(run(experiment, dataset=dataset))
            for experiment in bar.track(experiments(), description="training on digits")
        ]


def cells(outcomes: Sequence[Outcome]) -> list[Cell]:
    """One for each batch size, attack and rule of which there are pairs, in the order of the table."""
    found: dict[tuple[int, str, str], list[Pair]] = {}
    for pair in pairs(outcomes):
        e = pair.experiment
        found.setdefault((e.batch_size, e.attack or "", e.rule), []).append(pair)
    return [
        Cell(
            *(size, attack, rule),
            fmean(100 * p.server.max_accuracy for p in mine),
            fmean(100 * p.worker.max_accuracy for p in mine),
            mean_gain(mine),
            len(mine),
        )
        for size in BATCHES
        for attack in ATTACKS
        for rule in RULES
        if (mine := found.get((size, attack, rule)))
    ]


def noises(outcomes: Sequence[Outcome]) -> list[Noise]:
    """One for each batch size."""
    result = []
    for size in BATCHES:
        calm = [o for o in outcomes if o.experiment.attack is None and o.experiment.batch_size == size]
        if calm:
            ratios = [ratio for o in calm if o.curve and (ratio := o.curve[0].ratio) is not None]
            accuracy = fmean(100 * o.max_accuracy for o in calm)
            result.append(Noise(size, accuracy, fmean(ratios) if ratios else float("nan")))
    return result


def table(outcomes: Sequence[Outcome]) -> str:
    """What the demo prints: plain text of at most 80 columns, whatever the terminal."""
    e, found = ATTACKED, {(c.batch_size, c.attack, c.rule): c for c in cells(outcomes)}
    calm = {n.batch_size: n for n in noises(outcomes)}
    sizes = [size for size in BATCHES if size in calm]
    lines = [
        "Momentum on which side of the rule? Maximum accuracy on the test set, in %",
        f"digits, {e.model}, n = {e.workers} workers, f = {e.byzantine} of them Byzantine",
        f"{e.steps} steps, learning rate {rate_text(e)}, clip {e.clip:g}, momentum {e.momentum:g}, means of "
        f"{len(SEEDS)} seeds",
        "",
        " " * 12 + "".join(f"  {f'batch size {size}':-^20}" for size in sizes),
        f"{'momentum at':12}" + f"  {'server':>6}{'workers':>8}{'gain':>6}" * len(sizes),
    ]
    for attack, title in ATTACKS.items():
        lines.append(title)
        for rule in RULES:
            row = f"{rule:12}"
            for size in sizes:
                c = found[size, attack, rule]
                row += f"  {c.server:6.1f}{c.workers:8.1f}{c.gain:+6.1f}"
            lines.append(row)
    lines += [
        f"{'no attack':12}" + "".join(f"  {calm[size].accuracy:6.1f}{'':14}" for size in sizes),
        f"{'noise':12}" + "".join(f"  {calm[size].ratio:6.1f}{'':14}" for size in sizes),
        "",
        "gain: mean over the seeds of what moving momentum to the workers brings, in",
        "points. noise: variance-norm ratio of the honest gradients at the first step.",
        "The gain is large where gradients are noisy, and nearly none where they are not.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def content(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """What ``--json`` prints: settings, cells, noise and versions; accuracies in per cent, gains in points."""
    names = ("dataset", "model", "workers", "byzantine", "steps", "learning_rate", "momentum", "clip", "l2")
    settings = ATTACKED.to_dict()
    return {
        "settings": {name: settings[name] for name in names} | {"seeds": list(SEEDS)},
        "cells": [vars(cell) for cell in cells(outcomes)],
        "without_attack": [vars(noise) for noise in noises(outcomes)],
        "environment": environment("cpu"),
    }
