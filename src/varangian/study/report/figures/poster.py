"""The poster's figure: accuracies of all rules at both places of momentum."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...outcomes import rate_text, rule_name
from ...paper import Measure, accuracy
from ..layout import PLACES, Column, Group, kind_title, middle, rule_title
from ..style import SMALL, SOFT, house, plain_numbers, sheet, wrapped
from .common import ACROSS, COLOURS, MEASURE, SHAPES, detail, head_of, marker, pages, points, range_of, width_for


@house()
def boxes(group: Group, rate: str, measure: Measure = "max") -> Figure:
    """The poster's figure: a panel an adversary and kind of momentum, a box a place, a point a run."""
    split = pages(group.columns, ACROSS)
    across = max(len(columns) for _, columns in split)
    rows = [(nesterov, columns) for nesterov in group.kinds for _, columns in split]
    found = sheet(
        len(rows),
        across,
        1.9,
        title=f"{group.title}: {MEASURE[measure]}",
        detail=detail(group, f"learning rate {rate}"),
        names=[kind_title(nesterov) for nesterov, _ in rows],
        heads=[head_of(c) for c in split[0][1]] if len(split) == 1 else ["" for _ in range(across)],
        foot="Box: quartiles and median of all rules and seeds; whiskers: the farthest run within 1.5 times the box's "
        "height; a point is a run, its shape the rule. Dotted: the median without attack.",
        legend=[(marker(SHAPES[i % len(SHAPES)], SOFT), rule_title(rule)) for i, rule in enumerate(group.rules)],
        width=width_for(across),
        between=0.1 if len(split) == 1 else 0.4,
    )
    everything = [100 * accuracy(o, measure) for o in group.attacked if rate_text(o.experiment) == rate]
    for row, (nesterov, columns) in zip(found.panels, rows, strict=True):
        for panel, column in zip(row, columns, strict=False):
            everything += _boxes_panel(panel, group, column, nesterov, rate, measure)
            if len(split) > 1:
                panel.set_title(wrapped(head_of(column), 1.6, SMALL), fontsize=SMALL, pad=2)
        for panel in row[len(columns) :]:
            panel.set_axis_off()
    panel = found.panels[0][0]
    panel.set_ylim(*range_of(everything))
    plain_numbers(panel, "y")
    return found.figure


def _boxes_panel(panel: Axes, group: Group, column: Column, nesterov: bool, rate: str, measure: Measure) -> list[float]:
    panel.grid(axis="y")
    panel.set_xlim(-0.6, 1.6)
    panel.set_xticks([0, 1], ["server", "workers"])
    panel.tick_params(axis="x", length=0, labelsize=8)
    for position, place in enumerate(PLACES):
        found = group.cell(column, nesterov, rate, place)
        values = [100 * accuracy(o, measure) for o in found]
        if not values:
            x = (position + 0.6) / 2.2
            panel.text(x, 0.5, "no runs", ha="center", fontsize=SMALL, color=SOFT, transform=panel.transAxes)
            continue
        colour = COLOURS[place]
        box = panel.boxplot([values], positions=[position], widths=0.7, patch_artist=True, showfliers=False)
        box["boxes"][0].set(facecolor=colour + "28", edgecolor=colour, linewidth=0.8)
        box["medians"][0].set(color=colour, linewidth=1.8)
        for line in (*box["whiskers"], *box["caps"]):
            line.set(color=colour, linewidth=0.8)
        rules = group.rules
        for number, rule in enumerate(rules):
            mine = [v for o, v in zip(found, values, strict=True) if rule_name(o.experiment) == rule]
            x = position + 0.56 * ((number + 0.5) / len(rules) - 0.5)
            panel.plot([x] * len(mine), mine, color=colour, **points(SHAPES[number % len(SHAPES)], place, 3))
    panel.set_xticks([0, 1], ["server", "workers"])
    reference = middle(group.reference(column, nesterov, rate), measure)
    if reference is None:
        return []
    panel.axhline(reference, linestyle=":", color="black", linewidth=1)
    return [reference]
