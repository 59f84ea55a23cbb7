"""The figures for paper and slides: PNG and PDF, by matplotlib."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..files import write_whole
from ..outcomes import Outcome, condition, rate_text, rule_name
from ..paper import Measure, accuracy
from .layout import COLOURS, PLACES, Column, Group, attack_title, column_of, kind_title, middle, rule_title

MEASURE = {"max": "maximum top-1 accuracy", "final": "final top-1 accuracy"}
MARKERS = {"server": "o", "worker": "D"}
STYLES = {"server": "-", "worker": "--"}


def draw(group: Group) -> Iterator[tuple[str, Figure]]:
    """All figures of a group, each with a file name."""
    base = _slug(f"{group.title}-{group.study}")
    for rate in group.rates:
        name = f"{base}-lr{_slug(rate)}"
        for measure in ("max", "final"):
            yield f"boxes-{measure}-{name}", boxes(group, rate, measure)
        for nesterov in group.kinds:
            kind = "nesterov" if nesterov else "classical"
            if any(o.curve for o in group.outcomes):
                yield f"curves-{kind}-{name}", curves(group, rate, nesterov)
            if _ratio_rules(group) and any(p.ratio is not None for o in group.attacked for p in o.curve):
                yield f"ratios-{kind}-{name}", curves(group, rate, nesterov, ratios=True)
    if group.pairs:
        yield f"gains-{base}", gains(group)


def save(figure: Figure, stem: Path) -> list[Path]:
    """As PNG and PDF, the same bytes for the same figure."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]  # a dollar sign in a name is one
    plain = {"CreationDate": None, "Producer": None, "Creator": None}
    made = []
    for kind, metadata in (("png", {"Software": ""}), ("pdf", plain)):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind, metadata=metadata)
        made.append(stem.with_name(f"{stem.name}.{kind}"))
        write_whole(made[-1], lambda file, drawn=drawn: file.write(drawn.getbuffer()))
    return made


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80]


def _figure(
    rows: int, columns: int, width: float, height: float, foot: float, log: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """Panels of so many inches each; ``foot`` inches below them."""
    across, down = max(5.0, width * columns + 0.9), height * rows + 0.95 + foot
    figure = Figure(figsize=(across, down), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    # By hand: matplotlib's own layout takes longer than all the drawing.
    figure.subplots_adjust(0.8 / across, foot / down, 1 - 0.12 / across, 1 - 0.95 / down, 0.08, 0.14)
    for panel in axes.flat:
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if log:
            panel.set_yscale("log")
            panel.minorticks_off()
    return figure, [list(row) for row in axes]


def boxes(group: Group, rate: str, measure: Measure = "max") -> Figure:
    """The poster's figure: a panel an adversary and kind of momentum, a box a place, a point a run."""
    figure, axes = _figure(len(group.kinds), len(group.columns), 2.35, 2.9, 0.35)
    for row, nesterov in zip(axes, group.kinds, strict=True):
        for panel, column in zip(row, group.columns, strict=True):
            _boxes_panel(panel, group, column, nesterov, rate, measure)
            if row is axes[0]:
                panel.set_title(f"{column.share}\n{attack_title(column.attack)}", fontsize=10)
        row[0].set_ylabel(f"{kind_title(nesterov)}\n{MEASURE[measure]}, %", fontsize=9)
    number = len({o.experiment.seed for o in group.attacked})
    figure.suptitle(
        f"{group.title} ({group.study})\nlearning rate {rate}, {len(group.rules)} rules, {number} "
        f"seed{'s' if number > 1 else ''}",
        fontsize=10,
    )
    return figure


def _boxes_panel(panel: Axes, group: Group, column: Column, nesterov: bool, rate: str, measure: Measure) -> None:
    for position, place in enumerate(PLACES):
        found = group.cell(column, nesterov, rate, place)
        values = [100 * accuracy(o, measure) for o in found]
        if not values:
            panel.text(position, 50, "no runs", ha="center", fontsize=8, color="#555555")
            continue
        colour = COLOURS[place]
        box = panel.boxplot([values], positions=[position], widths=0.55, patch_artist=True, showfliers=False)
        box["boxes"][0].set(facecolor=colour + "30", edgecolor=colour)
        box["medians"][0].set(color=colour, linewidth=2)
        for line in (*box["whiskers"], *box["caps"]):
            line.set(color=colour)
        rules = group.rules
        spread = [position + 0.4 * ((rules.index(rule_name(o.experiment)) + 0.5) / len(rules) - 0.5) for o in found]
        panel.plot(spread, values, MARKERS[place], color=colour, markersize=3, alpha=0.7, linestyle="none")
    reference = middle(group.reference(column, nesterov, rate), measure)
    if reference is not None:
        panel.axhline(reference, linestyle=":", color="black", linewidth=1.3)
    panel.set_xticks([0, 1], ["server", "workers"], fontsize=9)
    panel.set_xlim(-0.6, 1.6)
    panel.set_ylim(0, 100)


def _ratio_rules(group: Group) -> list[str]:
    """The rules for which something is proved."""
    proved = {rule_name(o.experiment) for o in group.attacked if condition(o.experiment) is not None}
    return [name for name in group.rules if name in proved]


def curves(group: Group, rate: str, nesterov: bool, ratios: bool = False) -> Figure:
    """A row a rule, a column an adversary: accuracy or variance-norm ratio over the steps; bands over the seeds."""
    rules = _ratio_rules(group) if ratios else group.rules
    figure, axes = _figure(len(rules), len(group.columns), 2.35, 1.75, 0.8, log=ratios)
    for row, rule in zip(axes, rules, strict=True):
        for panel, column in zip(row, group.columns, strict=True):
            shown = False
            for place in PLACES:
                found = [o for o in group.cell(column, nesterov, rate, place) if rule_name(o.experiment) == rule]
                shown |= _band(panel, found, COLOURS[place], STYLES[place], PLACES[place], ratios)
                limit = condition(found[0].experiment) if found and ratios else None
                if limit is not None:
                    panel.axhline(limit, color="black", linestyle=":", linewidth=1.3)
            if not ratios:
                reference = group.reference(column, nesterov, rate) if shown else []
                _band(panel, reference, "#555555", ":", "without attack", ratios)
                panel.set_ylim(0, 100)
            if not shown:
                why = "needs n ≥ 4f + 3" if rule == "bulyan" else "no runs"
                panel.text(0.5, 0.5, why, transform=panel.transAxes, ha="center", fontsize=8, color="#555555")
            if row is axes[0]:
                panel.set_title(f"{column.share}\n{attack_title(column.attack)}", fontsize=9)
            if row is axes[-1]:
                panel.set_xlabel("step", fontsize=9, labelpad=1)
            panel.tick_params(labelsize=8)
        row[0].set_ylabel(rule_title(rule) + ("" if ratios else ", %"), fontsize=9)
    handles = {
        label: line for row in axes for p in row for line, label in zip(*p.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3, fontsize=9, frameon=False)
    what = "variance-norm ratio; dotted: what the rule's proof asks it to stay below" if ratios else "top-1 accuracy"
    figure.suptitle(f"{group.title}, {kind_title(nesterov).lower()}, learning rate {rate}\n{what}", fontsize=10)
    return figure


def _band(panel: Axes, found: Sequence[Outcome], colour: str, style: str, label: str, ratios: bool) -> bool:
    steps, middles, lows, highs = band(found, ratios)
    if not steps:
        return False
    panel.plot(steps, middles, linestyle=style, color=colour, linewidth=1.4, label=label)
    panel.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
    return True


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


def gains(group: Group) -> Figure:
    """Pair by pair: what momentum at the workers brings, a line a configuration, a point a seed, in order."""
    lines: dict[tuple[Column, str, bool, str], list[float]] = {}
    for pair in group.pairs:
        e = pair.experiment
        lines.setdefault((column_of(e), rule_name(e), e.nesterov, rate_text(e)), []).append(pair.gain())
    ordered = sorted(lines.items(), key=lambda item: statistics.fmean(item[1]))
    figure = Figure(figsize=(8, 1.4 + 0.17 * len(ordered)), dpi=110)
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    height = 1.4 + 0.17 * len(ordered)
    figure.subplots_adjust(0.42, 0.6 / height, 0.98, 1 - 0.4 / height)
    for place, (_, values) in enumerate(ordered):
        better = statistics.fmean(values) >= 0
        colour, marker = (COLOURS["worker"], "D") if better else (COLOURS["server"], "o")
        panel.plot([min(values), max(values)], [place, place], color=colour, linewidth=1, alpha=0.6)
        panel.plot(values, [place] * len(values), marker, color=colour, markersize=3, linestyle="none")
    panel.axvline(0, color="black", linewidth=1)
    labels = [
        f"{rule_title(rule)}, {column.title}, {'Nesterov' if nesterov else 'classical'}, {rate}"
        for (column, rule, nesterov, rate), _ in ordered
    ]
    panel.set_yticks(range(len(ordered)), labels, fontsize=6.5)
    panel.set_ylim(-1, len(ordered))
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("points of maximum accuracy gained by momentum at the workers")
    panel.set_title(f"{group.title} ({group.study})", fontsize=11)
    return figure
