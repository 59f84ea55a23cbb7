"""What momentum at the workers brings: pair by pair, and at several batch sizes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...outcomes import rate_text, rule_name
from ...paper import Pair, mean_gain
from ..layout import PLACES, Column, Group, attack_title, column_of, middle, noise, rule_title
from ..style import NARROW, SERVER, SMALL, WIDE, WORKER, house, plain_numbers, sheet, width_of, wrapped
from .common import ACROSS, COLOURS, DOWN, MARKERS, detail, head_of, marker, points, seeds_of, width_for


@house()
def gains(group: Group, columns: Sequence[Column] | None = None) -> Figure:
    """What momentum at the workers brings: a column an adversary, a row a rule, a point a pair of runs."""
    columns = group.columns[:ACROSS] if columns is None else columns
    cells: dict[tuple[Column, str, bool, str], list[Pair]] = {}
    for p in group.pairs:
        e = p.experiment
        cells.setdefault((column_of(e), rule_name(e), e.nesterov, rate_text(e)), []).append(p)
    filled = {(nesterov, rate) for _, _, nesterov, rate in cells}
    rows = [(nesterov, rate) for nesterov in group.kinds for rate in group.rates if (nesterov, rate) in filled]
    rules = group.rules
    short = {rule: wrapped(rule_title(rule), 1.5, SMALL, lines=1) for rule in rules}
    found = sheet(
        len(rows),
        len(columns),
        0.16 * len(rules) + 0.12,
        title=f"{group.title}: points of maximum accuracy gained by momentum at the workers",
        detail=detail(group),
        heads=[head_of(c) for c in columns],
        names=[f"{'Nesterov' if nesterov else 'Classical'}, {rate}" for nesterov, rate in rows],
        foot="A point is a pair of runs, alike but for the place of momentum. At the left: kind of momentum, and "
        "learning rate.",
        legend=[
            (marker("D", WORKER, True), "gain of a seed"),
            (marker("o", SERVER), "loss of a seed"),
            (Line2D([], [], color="black", marker="|", linestyle="none", markersize=7), "mean of the seeds"),
        ],
        left=max(width_of(text, SMALL) for text in short.values()) + 0.1,
        below=0.36,
        width=width_for(len(columns)),
    )
    for row, (nesterov, rate) in zip(found.panels, rows, strict=True):
        for panel, column in zip(row, columns, strict=True):
            panel.axvline(0, color="black", linewidth=0.7)
            panel.grid(axis="x")
            for place, rule in enumerate(rules):
                mine = cells.get((column, rule, nesterov, rate), [])
                values = [p.gain() for p in mine]
                for better, shape, colour in ((True, "D", WORKER), (False, "o", SERVER)):
                    shown = [v for v in values if (v >= 0) == better]
                    style = points(shape, "worker" if better else "server", 2.6)
                    panel.plot(shown, [place] * len(shown), color=colour, **style)
                if mine:
                    panel.plot(mean_gain(mine), place, "|", color="black", markersize=7, markeredgewidth=1.2)
            if row is found.panels[-1]:
                panel.set_xlabel("points gained", labelpad=1)
    first = found.panels[0][0]
    first.set_yticks(range(len(rules)), list(short.values()))
    first.set_ylim(len(rules) - 0.4, -0.6)
    first.margins(x=0.08)
    plain_numbers(first, "x", 4)
    return found.figure


@house()
def by_noise(groups: Sequence[Group], only: int | None = None, span: tuple[float, float] | None = None) -> Figure:
    """Runs at several batch sizes: a column a batch size, a row an attack, the rules' accuracies at both places.

    Args:
        groups: a batch size each.
        only: for narrow screens, one of the columns, which stand below each other there: the first comes with what is
            above all of them, the last with what is below.
        span: of the axis of accuracies, where it is not to follow from what is drawn.
    """
    first = groups[0]
    columns = [c for c in first.columns if all(c in g.columns for g in groups)][:DOWN]
    rules = first.rules
    short = {rule: wrapped(rule_title(rule), 1.5, SMALL, lines=1) for rule in rules}
    rate, nesterov = first.rates[0], first.kinds[0]
    heads = []
    drawn = groups if only is None else groups[only : only + 1]
    top, bottom = only in (None, 0), only in (None, len(groups) - 1)
    detail = [
        first.name,
        *first.shares,
        first.line(batch=False),
        f"learning rate {rate}",
        seeds_of(first),
        first.origin,
    ]
    for group in drawn:
        text = f"batch size {group.example.batch_size}"
        ratio = noise(group)
        text += "" if ratio is None else f", noise {ratio:.1f}"
        heads.append(f"{text}\nmean gain {mean_gain(group.pairs):+.1f} points".replace("-", "−"))
    found = sheet(
        len(columns),
        len(drawn),
        0.19 * len(rules) + 0.15,
        title="What momentum at the workers brings grows with the noise of the gradients" if top else "",
        detail="; ".join(detail) if top else "",
        heads=heads,
        names=[
            head_of(c).replace("\n", ", ") if len({c.share for c in columns}) > 1 else attack_title(c.attack)
            for c in columns
        ],
        foot="Maximum accuracy on the test set of each seed, and their means (large). Noise: the variance-norm ratio "
        "of honest gradients at the first step. Dotted: the median without attack."
        if bottom
        else "",
        legend=[
            (marker("o", SERVER), "momentum at the server"),
            (marker("D", WORKER, True), "momentum at the workers"),
        ]
        if bottom
        else [],
        left=max(width_of(text, SMALL) for text in short.values()) + 0.1,
        below=0.36,
        width=WIDE if only is None else NARROW,
    )
    for row, column in zip(found.panels, columns, strict=True):
        for panel, group in zip(row, drawn, strict=True):
            panel.grid(axis="x")
            reference = middle(group.reference(column, nesterov, rate), "max")
            if reference is not None:
                panel.axvline(reference, linestyle=":", color="black", linewidth=1)
            for y, rule in enumerate(rules):
                _dumbbell(panel, group, column, rule, y)
            if row is found.panels[-1] and bottom:
                panel.set_xlabel("maximum accuracy, %", labelpad=1)
    panel = found.panels[0][0]
    panel.set_yticks(range(len(rules)), list(short.values()))
    panel.set_ylim(len(rules) - 0.4, -0.6)
    panel.margins(x=0.05)
    if span is not None:
        panel.set_xlim(*span)
    plain_numbers(panel, "x", 5)
    return found.figure


def _dumbbell(panel: Axes, group: Group, column: Column, rule: str, y: int) -> None:
    """Both places of one rule, a line between their means."""
    means = []
    for place in PLACES:
        values = [
            100 * o.max_accuracy
            for o in group.cell(column, group.kinds[0], group.rates[0], place)
            if rule_name(o.experiment) == rule
        ]
        if values:
            colour = COLOURS[place]
            means.append((statistics.fmean(values), place))
            panel.plot(values, [y] * len(values), marker="|", linestyle="none", color=colour, markersize=4, alpha=0.6)
    panel.plot([m for m, _ in means], [y] * len(means), color="#999999", linewidth=1.2, zorder=1.5)
    for value, place in means:
        panel.plot([value], [y], color=COLOURS[place], **points(MARKERS[place], place, 4.5))
