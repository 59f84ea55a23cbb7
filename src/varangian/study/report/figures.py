"""The figures for paper and slides: PNG and PDF, by matplotlib, as wide as one or both columns of a paper."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from math import ceil, floor
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..outcomes import Outcome, condition, least_n, rate_text, rule_name
from ..paper import Measure, Pair, accuracy, mean_gain
from .layout import PLACES, Column, Group, attack_title, column_of, kind_title, middle, noise, rule_title
from .style import (
    NARROW,
    SERVER,
    SMALL,
    SOFT,
    WIDE,
    WORKER,
    Sheet,
    house,
    logarithmic,
    per_cent_up,
    plain_numbers,
    sheet,
    steps_along,
    width_of,
    wrapped,
)

MEASURE = {"max": "maximum accuracy on the test set, %", "final": "final accuracy on the test set, %"}
COLOURS = {"server": SERVER, "worker": WORKER, "shared": "#009E73"}
MARKERS = {"server": "o", "worker": "D"}
STYLES: dict[str, Literal["-", "--"]] = {"server": "-", "worker": "--"}
SHAPES = "osD^vP*X<>ph"  # of rules in a box
ACROSS = 4  # panels side by side
DOWN = 8  # rows of panels in a figure
MAX_CURVES = 60  # panels of curves of one learning rate and kind of momentum: nobody looks at more


def draw(group: Group) -> Iterator[tuple[str, Figure]]:
    """All figures of a group, each with a file name."""
    base = slug(f"{group.title}-{group.study}")
    for rate in group.rates:
        name = f"{base}-lr{slug(rate)}"
        for measure in ("max", "final"):
            if not is_wide(group):
                yield f"boxes-{measure}-{name}", boxes(group, rate, measure)
            if is_wide(group) or not group.pairs:
                for kind, nesterov in _kinds(group):
                    for number, columns in _pages(group.columns, HEAT):
                        yield f"heat-{measure}-{kind}-{name}{number}", heat(group, rate, nesterov, columns, measure)
        if too_many_curves(group):
            continue
        for kind, nesterov in _kinds(group):
            for number, columns in _pages(group.columns, ACROSS):
                for again, rules in _pages(group.rules, DOWN):
                    if any(o.curve for o in group.outcomes):
                        yield f"curves-{kind}-{name}{number}{again}", curves(group, rate, nesterov, columns, rules)
                if (proved := ratio_rules(group)) and any(p.ratio is not None for o in group.attacked for p in o.curve):
                    yield f"ratios-{kind}-{name}{number}", curves(group, rate, nesterov, columns, proved, ratios=True)
    if group.pairs:
        paired = {column_of(p.experiment) for p in group.pairs}
        for number, columns in _pages([c for c in group.columns if c in paired], ACROSS):
            yield f"gains-{base}{number}", gains(group, columns)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80]


def is_wide(group: Group) -> bool:
    """Whether a heat map shows it better than boxes: so many adversaries or rules that boxes would say nothing."""
    return len(group.columns) > 2 * ACROSS or len(group.rules) > len(SHAPES)


def too_many_curves(group: Group) -> bool:
    return len(group.columns) * len(group.rules) > MAX_CURVES


def _kinds(group: Group) -> list[tuple[str, bool]]:
    return [("nesterov" if nesterov else "classical", nesterov) for nesterov in group.kinds]


def _pages(items: Sequence, most: int) -> list[tuple[str, Sequence]]:
    """The items in as few pages as possible, each with what tells its file name apart."""
    number = max(1, ceil(len(items) / most))
    size = ceil(len(items) / number)
    return [("" if number == 1 else f"-{i + 1}", items[i * size : (i + 1) * size]) for i in range(number)]


def _width(columns: int) -> float:
    return NARROW if columns <= 2 else WIDE


def _head(column: Column) -> str:
    return f"{attack_title(column.attack)}\n{column.share}"


def _detail(group: Group, *more: str) -> str:
    return "; ".join([group.line(batch="batch size" not in group.title), *more, _seeds(group), group.origin])


def _seeds(group: Group) -> str:
    number = len({o.experiment.seed for o in group.attacked})
    return f"{number} seed{'s' if number > 1 else ''}"


def _range(values: Sequence[float], step: float = 5.0) -> tuple[float, float]:
    """Of accuracies: round numbers around them all, and within 0 and 100."""
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) + 0.5
    return max(-1.0, step * floor((low - pad) / step)), min(101.0, step * ceil((high + pad) / step))


# ------------------------------------------------------------------------------------------------------------- boxes


@house()
def boxes(group: Group, rate: str, measure: Measure = "max") -> Figure:
    """The poster's figure: a panel an adversary and kind of momentum, a box a place, a point a run."""
    pages = _pages(group.columns, ACROSS)
    across = max(len(columns) for _, columns in pages)
    rows = [(nesterov, columns) for nesterov in group.kinds for _, columns in pages]
    found = sheet(
        len(rows),
        across,
        1.9,
        title=f"{group.title}: {MEASURE[measure]}",
        detail=_detail(group, f"learning rate {rate}"),
        names=[kind_title(nesterov) for nesterov, _ in rows],
        heads=[_head(c) for c in pages[0][1]] if len(pages) == 1 else ["" for _ in range(across)],
        foot="Box: quartiles and median of all rules and seeds; whiskers: the farthest run within 1.5 times the box's "
        "height; a point is a run, its shape the rule. Dotted: the median without attack.",
        legend=[(_marker(SHAPES[i % len(SHAPES)], SOFT), rule_title(rule)) for i, rule in enumerate(group.rules)],
        width=_width(across),
        between=0.1 if len(pages) == 1 else 0.4,
    )
    everything = [100 * accuracy(o, measure) for o in group.attacked if rate_text(o.experiment) == rate]
    for row, (nesterov, columns) in zip(found.panels, rows, strict=True):
        for panel, column in zip(row, columns, strict=False):
            everything += _boxes_panel(panel, group, column, nesterov, rate, measure)
            if len(pages) > 1:
                panel.set_title(wrapped(_head(column), 1.6, SMALL), fontsize=SMALL, pad=2)
        for panel in row[len(columns) :]:
            panel.set_axis_off()
    panel = found.panels[0][0]
    panel.set_ylim(*_range(everything))
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
            panel.plot([x] * len(mine), mine, color=colour, **_points(SHAPES[number % len(SHAPES)], place, 3))
    panel.set_xticks([0, 1], ["server", "workers"])
    reference = middle(group.reference(column, nesterov, rate), measure)
    if reference is None:
        return []
    panel.axhline(reference, linestyle=":", color="black", linewidth=1)
    return [reference]


def _points(shape: str, place: str, size: float) -> dict:
    """Hollow at the server, full at the workers: told apart without colours too."""
    face = {"markerfacecolor": "white"} if place == "server" else {}
    return {"marker": shape, "markersize": size, "markeredgewidth": 0.7, "linestyle": "none", **face}


def _marker(shape: str, colour: str, full: bool = False, size: float = 4) -> Line2D:
    face = colour if full else "white"
    return Line2D([], [], color=colour, marker=shape, markerfacecolor=face, linestyle="none", markersize=size)


# ------------------------------------------------------------------------------------------------------------ curves


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
        detail=_detail(group, kind_title(nesterov).lower(), f"learning rate {rate}"),
        heads=[_head(c) for c in columns],
        names=[rule_title(rule) for rule in rules],
        foot=foot,
        legend=[*lines, (dots, "what the rule's proof asks for" if ratios else "without attack")],
        left=0.42 if ratios else 0.35,
        below=0.36,
        width=_width(len(columns)),
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


# ------------------------------------------------------------------------------------------------------------- gains


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
        detail=_detail(group),
        heads=[_head(c) for c in columns],
        names=[f"{'Nesterov' if nesterov else 'Classical'}, {rate}" for nesterov, rate in rows],
        foot="A point is a pair of runs, alike but for the place of momentum. At the left: kind of momentum, and "
        "learning rate.",
        legend=[
            (_marker("D", WORKER, True), "gain of a seed"),
            (_marker("o", SERVER), "loss of a seed"),
            (Line2D([], [], color="black", marker="|", linestyle="none", markersize=7), "mean of the seeds"),
        ],
        left=max(width_of(text, SMALL) for text in short.values()) + 0.1,
        below=0.36,
        width=_width(len(columns)),
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
                    style = _points(shape, "worker" if better else "server", 2.6)
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
    detail = [first.name, *first.shares, first.line(batch=False), f"learning rate {rate}", _seeds(first), first.origin]
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
            _head(c).replace("\n", ", ") if len({c.share for c in columns}) > 1 else attack_title(c.attack)
            for c in columns
        ],
        foot="Maximum accuracy on the test set of each seed, and their means (large). Noise: the variance-norm ratio "
        "of honest gradients at the first step. Dotted: the median without attack."
        if bottom
        else "",
        legend=[
            (_marker("o", SERVER), "momentum at the server"),
            (_marker("D", WORKER, True), "momentum at the workers"),
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
        panel.plot([value], [y], color=COLOURS[place], **_points(MARKERS[place], place, 4.5))


# --------------------------------------------------------------------------------------------------------- heat maps

HEAT = 20  # adversaries side by side


@house()
def heat(group: Group, rate: str, nesterov: bool, columns: Sequence[Column], measure: Measure = "max") -> Figure:
    """Rules against adversaries, a map a place of momentum; in the cells the medians of the seeds."""
    rules = group.rules
    places = [p for p in (*PLACES, "shared") if any(o.experiment.momentum_at == p for o in group.attacked)]
    same = len({c.share for c in columns}) == 1
    labels = [wrapped(attack_title(c.attack) if same else c.title, 1.6, SMALL, lines=1) for c in columns]
    short = [wrapped(rule_title(rule), 1.5, SMALL, lines=1) for rule in rules]
    share = f"; {columns[0].share}" if same else ""
    found = sheet(
        len(places),
        1,
        0.17 * len(rules),
        title=f"{group.title}: {MEASURE[measure]}",
        detail=_detail(group, kind_title(nesterov).lower(), f"learning rate {rate}") + share,
        names=[f"momentum {PLACES.get(p, 'shared')}" for p in places],
        foot="In the cells the medians of the seeds; an empty cell has no run.",
        left=max(width_of(text, SMALL) for text in short) + 0.08,
        below=max(width_of(text, SMALL) for text in labels) + 0.08,
        legend=[],
    )
    values = {}
    for place in places:
        for x, column in enumerate(columns):
            by_rule: dict[str, list[float]] = {}
            for o in group.cell(column, nesterov, rate, place):
                by_rule.setdefault(rule_name(o.experiment), []).append(100 * accuracy(o, measure))
            values |= {(place, rules.index(r), x): statistics.median(v) for r, v in by_rule.items()}
    low, high = min(values.values(), default=0.0), max(values.values(), default=100.0)
    for [panel], place in zip(found.panels, places, strict=True):
        for (where, y, x), value in values.items():
            if where == place:
                depth = (value - low) / (high - low) if high > low else 1.0
                panel.add_patch(_cell(x, y, depth))
                colour = "white" if depth > 0.55 else "black"
                panel.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6, color=colour)
        panel.set_xlim(-0.5, len(columns) - 0.5)
        panel.set_ylim(len(rules) - 0.5, -0.5)
        panel.set_xticks(range(len(columns)), labels, rotation=90)
        panel.set_yticks(range(len(rules)), short)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    return found.figure


def _cell(x: int, y: int, depth: float) -> Rectangle:
    light, dark = (0.93, 0.95, 0.98), (0.0, 0.27, 0.45)
    colour = tuple(a + (b - a) * depth for a, b in zip(light, dark, strict=True))
    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5)
