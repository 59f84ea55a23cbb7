"""Who holds how much of what, and the gradients of the honest workers along a run."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ....runs.holdings import Heterogeneity
from ..style import NARROW, PALETTE, SERVER, SMALL, WIDE, WORKER, house, logarithmic, plain_numbers, sheet, width_of
from .grids import DARK, LIGHT

ROW, TALLEST = 0.15, 8.0  # inches: of a worker, and of all of them
NAMED = 45  # workers or classes: of more only some are named
WRITTEN = 16  # columns: with more, amounts do not fit


@house()
def held(found: Heterogeneity) -> Figure:
    """A row a worker, a column a class, dark where there is much; beside it how many examples each has."""
    counts, (workers, columns) = found.counts, found.counts.shape
    height = max(0.6, min(TALLEST, ROW * workers))
    written = columns <= WRITTEN and ROW * workers <= TALLEST
    names = list(found.columns)
    upright = max(width_of(name, SMALL) for name in names) > 4.6 / columns
    drawn = sheet(
        1,
        1,
        height,
        title=f"Who holds what: {found.experiment.partition}",
        detail=f"{found.experiment.dataset}, {found.honest:,} honest {found.who}s, seed {found.experiment.seed}",
        foot=f"Amounts of each {found.what}, at most {counts.max():,}"
        + ("." if not found.attacks.any() else f"; {_whose(found)} of Byzantine {found.who}s."),
        left=0.45,
        below=0.34 + (max(width_of(name, SMALL) for name in names) if upright else 0.0),
        width=WIDE,
    )
    panel = drawn.panels[0][0]
    x, y, wide, high = panel.get_position().bounds
    panel.set_position((x, y, 0.76 * wide, high))
    shade = LinearSegmentedColormap.from_list("amounts", [LIGHT, DARK]).with_extremes(bad="white")
    top = max(int(counts.max()), 1)
    # By the square root: little is told from nothing.
    panel.imshow(
        np.ma.masked_equal(np.sqrt(counts / top), 0), aspect="auto", cmap=shade, vmin=0, vmax=1, interpolation="nearest"
    )
    if written:
        for worker, label in zip(*np.nonzero(counts), strict=True):
            value = int(counts[worker, label])
            colour = "white" if np.sqrt(value / top) > 0.55 else "black"
            panel.text(label, worker, f"{value:,}", ha="center", va="center", color=colour, fontsize=5.5)
    every = -(-columns // NAMED)
    panel.set_xticks(range(0, columns, every), names[::every], rotation=90 if upright else 0)
    down = -(-workers // NAMED)
    panel.set_yticks(range(0, workers, down), [str(i) for i in range(0, workers, down)])
    panel.tick_params(length=0)
    panel.set_xlabel(found.what, labelpad=2)
    panel.set_ylabel(found.who, labelpad=2)
    side = drawn.figure.add_axes((x + 0.79 * wide, y, 0.2 * wide, high))
    colours = [SERVER if attacks else WORKER for attacks in found.attacks]
    side.barh(range(workers), found.sizes, color=colours, height=0.8)
    side.set_ylim(workers - 0.5, -0.5)
    side.set_yticks([])
    plain_numbers(side, "x", 2)
    side.set_xlabel("examples", labelpad=2)
    return drawn.figure


def _whose(found: Heterogeneity) -> str:
    """Which rows Byzantine workers have; the bars beside the rows say it of clients."""
    return "the last rows are" if found.who == "worker" else "rows with bars of the other colour are"


@house()
def gradients(found: Heterogeneity) -> Figure:
    """Above, both sides of the inequality over the steps; below, one over the other with the line of the fit."""
    points = [p for p in found.points if np.isfinite(p.spread) and np.isfinite(p.squared_norm)]
    fit = found.fit
    assert fit is not None
    lines = [(Line2D([], [], color=SERVER, marker="o", markersize=3), "spread, (1/h) Σ ‖gᵢ − mean‖²")]
    lines += [(Line2D([], [], color=WORKER, marker="D", markersize=3), "‖mean‖²")]
    lines += [(Line2D([], [], color=PALETTE[6], linestyle="--"), f"G² + B² ‖mean‖²: G = {fit.G:.3g}, B = {fit.B:.3g}")]
    drawn = sheet(
        2,
        1,
        1.7,
        title=f"Honest gradients along a run: {found.experiment.partition}",
        detail=f"{found.experiment.dataset}, {found.experiment.model}, {found.honest:,} honest {found.who}s",
        foot="Least squares over the steps measured.",
        legend=lines,
        left=0.5,
        below=0.36,
        width=NARROW,
        between=0.12,
        share=False,
    )
    over, against = drawn.panels[0][0], drawn.panels[1][0]
    steps = [p.step for p in points]
    over.plot(steps, [p.spread for p in points], color=SERVER, marker="o", markersize=3, linewidth=1.1)
    over.plot(steps, [p.squared_norm for p in points], color=WORKER, marker="D", markersize=3, linewidth=1.1)
    if all(min(p.spread, p.squared_norm) > 0 for p in points):
        logarithmic(over, "y", 5)
    else:
        plain_numbers(over, "y", 4)
    over.set_xlabel("step", labelpad=1)
    plain_numbers(over, "x", 4)
    against.plot(
        [p.squared_norm for p in points], [p.spread for p in points], "o", color=SERVER, markersize=3.5, clip_on=False
    )
    right = 1.05 * max(p.squared_norm for p in points)
    against.plot([0, right], [fit.G**2, fit.G**2 + fit.B**2 * right], "--", color=PALETTE[6], linewidth=1)
    against.set_xlim(0, right or 1)
    against.set_ylim(0, None)
    against.set_xlabel("‖mean‖²", labelpad=1)
    against.set_ylabel("spread", labelpad=2)
    for panel in (over, against):
        panel.grid(axis="y")
    for axis in ("x", "y"):
        plain_numbers(against, axis, 4)
    return drawn.figure
