"""Accuracy and variance-norm ratio over the steps, at both places of momentum."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...outcomes import Outcome, condition, least_n, rule_name
from ..layout import PLACES, Column, Group, kind_title, rule_title
from ..style import SERVER, SMALL, SOFT, WORKER, Sheet, house, logarithmic, per_cent_up, sheet, steps_along
from .common import ACROSS, COLOURS, DOWN, STYLES, detail, head_of, width_for


def ratio_rules(group: Group) -> list[str]:
    """The rules for which something is proved."""
    proved = {rule_name(o.experiment) for o in group.attacked if condition(o.experiment) is not None}
    return [name for name in group.rules if name in proved]


@house()
def curves(
    group: Group,
    rate: str,
    nesterov: bool,
    columns: Sequence[Column] | None = None,
    rules: Sequence[str] | None = None,
    ratios: bool = False,
) -> Figure:
    """A row a rule, a column an adversary: accuracy or variance-norm ratio over the steps; bands over the seeds."""
    columns = group.columns[:ACROSS] if columns is None else columns
    rules = (ratio_rules(group) if ratios else group.rules)[:DOWN] if rules is None else rules
    lines = [(Line2D([], [], color=COLOURS[p], linestyle=STYLES[p]), f"momentum {text}") for p, text in PLACES.items()]
    dots = Line2D([], [], color="black", linestyle=":")
    title = "variance-norm ratio of what honest workers send" if ratios else "accuracy on the test set, %"
    foot = (
        "Median of the seeds. Dotted: below it the rule is proved resilient."
        if ratios
        else "Median of the seeds; bands from the least to the greatest."
    )
    found = sheet(
        len(rules),
        len(columns),
        1.05,
        title=f"{group.title}: {title}",
        detail=detail(group, kind_title(nesterov).lower(), f"learning rate {rate}"),
        heads=[head_of(c) for c in columns],
        names=[rule_title(rule) for rule in rules],
        foot=foot,
        legend=[*lines, (dots, "what the rule's proof asks for" if ratios else "without attack")],
        left=0.42 if ratios else 0.35,
        below=0.36,
        width=width_for(len(columns)),
    )
    last, seen = 1.0, []
    for row, rule in zip(found.panels, rules, strict=True):
        for panel, column in zip(row, columns, strict=True):
            shown: list[float] = []
            drawn: list[float] = []
            for place in PLACES:
                mine = [o for o in group.cell(column, nesterov, rate, place) if rule_name(o.experiment) == rule]
                drawn += _band(panel, mine, COLOURS[place], STYLES[place], ratios)
                limit = condition(mine[0].experiment) if mine and ratios else None
                if limit is not None:
                    panel.axhline(limit, color="black", linestyle=":", linewidth=1)
                    shown.append(limit)
                last = max([last, *(p.step for o in mine for p in o.curve)])
            if not drawn:
                _say(panel, group, rule, column, "no ratio measured" if shown else "no runs")
            elif not ratios:
                _band(panel, group.reference(column, nesterov, rate), "black", ":", ratios)
            seen += [*shown, *drawn]
            panel.grid(axis="y")
            if row is found.panels[-1]:
                panel.set_xlabel("step", labelpad=1)
    _axes_of_curves(found, last, seen, ratios)
    return found.figure


def _say(panel: Axes, group: Group, rule: str, column: Column, otherwise: str) -> None:
    """Why there is nothing here."""
    needed = [n for o in group.attacked if rule_name(o.experiment) == rule and (n := least_n(o.experiment)) is not None]
    text = f"needs n ≥ {min(needed)}" if needed and column.workers < min(needed) else otherwise
    panel.text(
        0.5,
        0.5,
        text,
        transform=panel.transAxes,
        ha="center",
        va="center",
        fontsize=SMALL,
        color=SOFT,
        backgroundcolor="white",
    )


def _axes_of_curves(found: Sheet, last: float, seen: Sequence[float], ratios: bool) -> None:
    steps_along(found, last)
    if not ratios:
        per_cent_up(found)
        return
    positive = [v for v in seen if v > 0] or [1.0]
    first = found.panels[0][0]
    logarithmic(first, "y", 5)
    first.set_ylim(0.6 * min(positive), 1.6 * max(positive))


def _band(panel: Axes, found: Sequence[Outcome], colour: str, style: str, ratios: bool) -> list[float]:
    """Draws the median and the band, and answers the values."""
    steps, middles, lows, highs = band(found, ratios)
    if not steps:
        return []
    lone = "" if len(steps) > 1 else {SERVER: "o", WORKER: "D"}.get(colour, ".")  # a single point makes no line
    panel.plot(
        steps, middles, linestyle=style, color=colour, linewidth=1.1, marker=lone, markersize=4, clip_on=not lone
    )
    if colour != "black":
        panel.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
    return [*middles, *lows, *highs]


def band(found: Sequence[Outcome], ratios: bool = False) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, and the median, least and greatest value of the seeds at each: accuracies in per cent, or ratios."""
    at: dict[int, list[float]] = {}
    for o in found:
        for p in o.curve:
            value = p.ratio if ratios else 100 * p.accuracy
            if value is not None:
                at.setdefault(p.step, []).append(value)
    steps = sorted(at)
    return (
        steps,
        [statistics.median(at[s]) for s in steps],
        [min(at[s]) for s in steps],
        [max(at[s]) for s in steps],
    )
