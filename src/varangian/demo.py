"""The paper's comparison in small: real digits, 6 rules, 2 attacks, momentum at 2 places, 3 seeds."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .experiment import Experiment, open_dataset, run

RULES = ("multi-krum", "trimmed-mean", "median", "phocas", "meamed", "bulyan")
ATTACKS = {"little": "A Little Is Enough", "empire": "Fall of Empires"}
PLACES = {"server": "at the server (usual)", "worker": "at the workers (the paper)"}
COLOURS = {"server": "#D55E00", "worker": "#0072B2"}  # Okabe and Ito's, told apart by colour-blind readers
SEEDS = (1, 2, 3)
ATTACKED = Experiment(
    workers=15, byzantine=3, batch_size=2, steps=100, learning_rate=0.1, momentum=0.9, clip=2.0, measure=False
)
UNATTACKED = replace(ATTACKED, rule="average", workers=12, byzantine=0)

Accuracies = dict[tuple[str, str, str], list[float]]  # (attack, rule, place) -> one maximum accuracy per seed


def demo(out: str | Path, output: Console, notices: Console) -> Path:
    """Runs the comparison, prints a table and draws the poster's box plot; returns the figure's path."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found, reference = compare(notices)
    figure = out / "demo.png"
    draw(found, reference, figure)
    output.print(table(found, reference))
    runs = len(SEEDS) * (len(found) + 1)
    output.print(
        f"Medians of the maximum accuracy over {len(SEEDS)} seeds; {runs} runs in {time.perf_counter() - start:.0f} s. "
        f"Without attack: {median(reference):.1%}.\n"
        "Little: A Little Is Enough. Empire: Fall of Empires. Gain: points won by moving momentum to the workers.\n"
        f"Figure: {figure}",
        highlight=False,
        soft_wrap=True,
    )
    return figure


def compare(notices: Console) -> tuple[Accuracies, list[float]]:
    """The maximum accuracies of all attacked runs, and of the unattacked ones."""
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

        def accuracy(experiment: Experiment) -> float:
            result = run(experiment, dataset=dataset)
            bar.advance(task)
            return result.max_accuracy

        reference = [accuracy(replace(UNATTACKED, seed=seed)) for seed in SEEDS]
        found = {
            (attack, rule, place): [
                accuracy(replace(ATTACKED, attack=attack, rule=rule, momentum_at=place, seed=seed)) for seed in SEEDS
            ]
            for attack, rule, place in grid
        }
    return found, reference


def table(found: Accuracies, reference: list[float]) -> Table:
    """A row a rule: median accuracy with momentum at the server, at the workers, and the gain in points."""
    result = Table(title="Momentum on which side of the rule? Digits, 15 workers, 3 of them Byzantine")
    result.add_column("\nrule", no_wrap=True)
    for attack in ("Little", "Empire"):
        result.add_column(f"{attack}\nserver", justify="right", no_wrap=True)
        result.add_column("\nworkers", justify="right", style="bold", no_wrap=True)
        result.add_column("\ngain", justify="right", no_wrap=True)
    for rule in RULES:
        cells = []
        for attack in ATTACKS:
            server, worker = (median(found[attack, rule, place]) for place in PLACES)
            cells += [f"{server:.1%}", f"{worker:.1%}", f"{100 * (worker - server):+.1f}"]
        result.add_row(rule, *cells)
    return result


def draw(found: Accuracies, reference: list[float], path: Path) -> None:
    """The poster's figure in small: a panel an attack, a box a place of momentum, a point a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(ATTACKS), sharey=True)
    for panel, (attack, title) in zip(panels, ATTACKS.items(), strict=True):
        for position, place in enumerate(PLACES):
            points = [
                100 * a for (an, _, where), values in found.items() if (an, where) == (attack, place) for a in values
            ]
            box = panel.boxplot([points], positions=[position], widths=0.5, patch_artist=True, showfliers=False)
            box["boxes"][0].set(facecolor=COLOURS[place] + "33", edgecolor=COLOURS[place])
            box["medians"][0].set(color=COLOURS[place], linewidth=2)
            spread = [position + 0.32 * ((i % 6) / 5 - 0.5) for i in range(len(points))]
            panel.plot(spread, points, "o", color=COLOURS[place], markersize=3.5, alpha=0.75)
        panel.axhline(100 * median(reference), linestyle=":", color="black", linewidth=1.2)
        panel.set_title(title)
        panel.set_xticks(range(len(PLACES)), ["at the server\n(usual)", "at the workers\n(the paper)"])
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("maximum top-1 accuracy, %")
    panels[0].annotate(
        "without attack", (-0.45, 100 * median(reference)), textcoords="offset points", xytext=(0, 4), fontsize=8
    )
    low = min(a for values in found.values() for a in values)
    panels[0].set_ylim(max(0, 100 * low - 8), 100)
    figure.suptitle("Where should momentum stand? 6 rules x 3 seeds a box, 3 of 15 workers Byzantine, digits")
    figure.savefig(path)
