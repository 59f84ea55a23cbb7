"""The paper's comparison in small: real digits, 6 rules, 2 attacks, momentum at 2 places, 3 seeds."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .experiment import Experiment, Result, open_dataset, run
from .report import report_results

RULES = ("multi-krum", "trimmed-mean", "median", "phocas", "meamed", "bulyan")
ATTACKS = ("little", "empire")
PLACES = ("server", "worker")
SEEDS = (1, 2, 3)
ATTACKED = Experiment(
    workers=15, byzantine=3, batch_size=2, steps=100, learning_rate=0.1, momentum=0.9, clip=2.0, measure=False
)
UNATTACKED = replace(ATTACKED, rule="average", workers=12, byzantine=0)

Found = dict[tuple[str, str, str], list[Result]]  # (attack, rule, place) -> a run per seed


def demo(out: str | Path, output: Console, notices: Console) -> Path:
    """Runs the comparison, prints a table, and writes the report and the poster's figure; returns the report's path."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found, reference = compare(notices)
    results = [*reference, *(result for cell in found.values() for result in cell)]
    output.print(table(found))
    output.print(
        f"Medians of the maximum accuracy over {len(SEEDS)} seeds; {len(results)} runs in "
        f"{time.perf_counter() - start:.0f} s. Without attack: {median(r.max_accuracy for r in reference):.1%}.\n"
        "Little: A Little Is Enough. Empire: Fall of Empires. Gain: points won by moving momentum to the workers.",
        highlight=False,
        soft_wrap=True,
    )
    page = report_results(results, out)
    output.print(f"Report: {page}\nFigures: {out / 'figures'}", highlight=False, soft_wrap=True)
    return page


def compare(notices: Console) -> tuple[Found, list[Result]]:
    """All attacked runs, and the unattacked ones."""
    dataset = open_dataset(ATTACKED)
    grid = [(attack, rule, place) for attack in ATTACKS for rule in RULES for place in PLACES]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notices, transient=True) as bar:
        task = bar.add_task("training on digits", total=len(SEEDS) * (len(grid) + 1))

        def train(experiment: Experiment) -> Result:
            result = run(experiment, dataset=dataset)
            bar.advance(task)
            return result

        reference = [train(replace(UNATTACKED, seed=seed)) for seed in SEEDS]
        found = {
            (attack, rule, place): [
                train(replace(ATTACKED, attack=attack, rule=rule, momentum_at=place, seed=seed)) for seed in SEEDS
            ]
            for attack, rule, place in grid
        }
    return found, reference


def table(found: Found) -> Table:
    """A row a rule: median accuracy with momentum at the server, at the workers, and the gain in points."""
    result = Table(title="Momentum on which side of the rule?\nDigits, 15 workers, 3 Byzantine")
    result.add_column("\nrule", no_wrap=True)
    for attack in ("Little", "Empire"):
        result.add_column(f"{attack}\nserver", justify="right", no_wrap=True)
        result.add_column("\nworkers", justify="right", style="bold", no_wrap=True)
        result.add_column("\ngain", justify="right", no_wrap=True)
    for rule in RULES:
        cells = []
        for attack in ATTACKS:
            server, worker = (median(r.max_accuracy for r in found[attack, rule, place]) for place in PLACES)
            cells += [f"{server:.1%}", f"{worker:.1%}", f"{100 * (worker - server):+.1f}"]
        result.add_row(rule, *cells)
    return result
