"""Workers over steps: who was suspicious, or had weight, and when; and how right a threshold is, rule by attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ....core.history import Report
from ..style import (
    NARROW,
    PALETTE,
    SERVER,
    SMALL,
    SOFT,
    WIDE,
    WORKER,
    house,
    per_cent_up,
    plain_numbers,
    sheet,
    width_of,
)
from .grids import DARK, LIGHT

What = Literal["suspicion", "weight"]

ROW, LOWEST, TALLEST = 0.075, 0.7, 4.2  # inches: of a worker, and of all of them
LABEL = 0.13  # inches from one worker's number to the next
ACROSS = 1000  # steps side by side; of more the means of as many neighbours
ACROSS_CURVES = 5  # attacks
DASHES = ("-", "--", ":")
AWAY = "#e3ddcf"  # took no part
FROM, TO = (0.98, 0.96, 0.93), (0.42, 0.13, 0.0)
MOST = 2.0  # equal shares, from which on all is dark
TEXTS = {
    "suspicion": ("Suspicion", "suspicion", "Suspicion from 0, light, to 1, dark"),
    "weight": ("Weight in the aggregate", "share", "Weight from none, light, to twice an equal share or more, dark"),
}


@house()
def over_time(reports: Sequence[tuple[str, Report]], what: What = "suspicion", detail: str = "") -> Figure:
    """A panel for each report, one above the other: a row a worker, a column a step, dark where there is much.

    Beside the rows stands who attacks, where that is known, and the mean over the steps.
    """
    title, short, said = TEXTS[what]
    most = max(len(report.workers) for _, report in reports)
    known = any(report.byzantine is not None for _, report in reports)
    series = [_series(report, what) for _, report in reports]
    whole = max(rows.shape[0] for rows in series)
    foot = f"{said}; at the right the mean over the steps."
    foot += f" Each point is the mean of {-(-whole // ACROSS)} steps." if whole > ACROSS else ""
    foot += " Grey: took no part, or not told." if any(np.isnan(rows).any() for rows in series) else ""
    found = sheet(
        len(reports),
        1,
        min(TALLEST, max(LOWEST, ROW * most)),
        title=f"{title} of {most} {reports[0][1].noun}s over {whole:,} steps",
        detail=detail,
        names=[name for name, _ in reports],
        foot=foot,
        legend=[(Patch(color=SERVER), "Byzantine"), (Patch(color=WORKER), "honest")] if known else (),
        left=0.45,
        below=0.34,
        between=0.14,
        width=WIDE,
        share=False,
    )
    for [panel], (_, report), rows in zip(found.panels, reports, series, strict=True):
        bars = _rows(found.figure, panel, report, rows, 1.0 if what == "suspicion" else MOST)
        bars.set_xlabel(f"mean {short}", labelpad=1)
        panel.set_ylabel(report.noun, labelpad=2)
        panel.set_xlabel("step" if report.noun != "node" else "round", labelpad=1)
    return found.figure


def _series(report: Report, what: What) -> np.ndarray:
    """[steps, W] suspicions, or weights in equal shares of those that took part."""
    if what == "suspicion":
        return report.suspicion
    there = ~np.isnan(report.suspicion) | ~np.isnan(report.weight)
    return np.abs(report.weight) * there.sum(1, keepdims=True)


def _rows(figure: Figure, panel: Axes, report: Report, rows: np.ndarray, most: float) -> Axes:
    """Fills a panel; the axes of the means beside it."""
    steps, workers = rows.shape
    x, y, wide, high = panel.get_position().bounds
    strip, side = 0.012 * wide, 0.13 * wide
    panel.set_position((x + 1.4 * strip, y, wide - side - 4.4 * strip, high))
    shade = [FROM, TO] if most == 1 else [LIGHT, DARK]
    colours = LinearSegmentedColormap.from_list("much", shade).with_extremes(bad=AWAY)
    panel.imshow(
        np.ma.masked_invalid(_thinned(rows).T), aspect="auto", cmap=colours, vmin=0, vmax=most,
        interpolation="nearest", extent=(0, max(steps, 1), workers - 0.5, -0.5),
    )  # fmt: skip
    numbers = [standing.worker for standing in report.workers]
    every = max(1, math.ceil(workers * LABEL / (high * figure.get_figheight())))
    panel.set_yticks(range(0, workers, every), [str(numbers[k]) for k in range(0, workers, every)])
    panel.tick_params(axis="y", length=0, pad=8)
    plain_numbers(panel, "x", 6)
    bars = figure.add_axes((x + wide - side, y, side, high))
    truth = report.byzantine
    attacks: np.ndarray = np.zeros(workers, bool) if truth is None else np.any(truth, axis=0)
    if truth is not None:
        marks = figure.add_axes((x, y, strip, high))
        marks.imshow(attacks[:, None], aspect="auto", cmap=ListedColormap([WORKER, SERVER]), vmin=0, vmax=1)
        marks.set_axis_off()
    means = np.array([np.nanmean(column) if not np.isnan(column).all() else 0.0 for column in rows.T])
    plain = SOFT if truth is None else WORKER
    bars.barh(range(workers), means, color=[SERVER if bad else plain for bad in attacks], height=0.8)
    bars.set_ylim(workers - 0.5, -0.5)
    bars.set_xlim(0, max(most / 2, 1.05 * float(means.max(initial=0))) if most > 1 else 1)
    bars.set_yticks([])
    plain_numbers(bars, "x", 3)
    return bars


def _thinned(rows: np.ndarray) -> np.ndarray:
    """At most ACROSS rows: means of as many neighbours as that takes, of what is known."""
    size = -(-len(rows) // ACROSS)
    if size <= 1:
        return rows
    parts = np.array_split(rows, -(-len(rows) // size))
    with np.errstate(invalid="ignore"):
        return np.array([np.where(np.isnan(p), 0, p).sum(0) / (~np.isnan(p)).sum(0) for p in parts])


@dataclass(frozen=True)
class Rates:
    """Numbers by rule and attack.

    Attributes:
        name: what they are.
        values: by rule and attack.
        text: how one is written.
        top: the one that is at the end of the colours.
        less: whether the least is the best, which is dark.
    """

    name: str
    values: Mapping[tuple[str, str], float]
    text: Callable[[float], str]
    top: float
    less: bool = False


@house()
def rates(
    maps: Sequence[Rates], rows: Sequence[str], columns: Sequence[str], *, title: str, detail: str, foot: str
) -> Figure:
    """Maps below each other of numbers by rule and attack, dark where it is good."""
    left = max(width_of(text, SMALL) for text in rows) + 0.1
    room = (WIDE - left - 0.6) / len(columns)
    level = all(width_of(text, SMALL) < room for text in columns)
    found = sheet(
        len(maps), 1, 0.2 * len(rows), title=title, detail=detail, foot=foot, names=[one.name for one in maps],
        left=left, below=0.22 if level else max(width_of(text, SMALL) for text in columns) + 0.08, width=WIDE,
    )  # fmt: skip
    colours = LinearSegmentedColormap.from_list("better", [LIGHT, DARK]).with_extremes(bad="white")
    for [panel], one in zip(found.panels, maps, strict=True):
        numbers = np.array([[one.values.get((row, column), math.nan) for column in columns] for row in rows])
        depth = np.clip(np.where(np.isinf(numbers), one.top, numbers) / one.top, 0, 1)
        depth = 1 - depth if one.less else depth
        panel.imshow(np.ma.masked_invalid(depth), aspect="auto", cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        for (i, k), value in np.ndenumerate(numbers):
            dark = not math.isnan(depth[i, k]) and depth[i, k] > 0.55
            written = "-" if math.isnan(value) else one.text(value)
            panel.text(k, i, written, ha="center", va="center", color="white" if dark else "black", fontsize=SMALL)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_xticks(range(len(columns)), columns, rotation=0 if level else 90)
        panel.tick_params(length=0)
    return found.figure


@house()
def curves(
    thresholds: Sequence[float],
    found: Mapping[tuple[str, str], Sequence[Sequence[tuple[float, float, float]]]],
    rules: Sequence[str], attacks: Sequence[str], *, detail: str,
) -> Figure:  # fmt: skip
    """Precision, recall and false alarms over thresholds: a column an attack, a line a rule, the mean over runs.

    Args:
        thresholds: [T].
        found: by rule and attack, of each run (precision, recall, false alarms) at each threshold.
        detail: what the figure was made of.
    """
    shown = attacks[:ACROSS_CURVES]
    many = [
        Line2D([], [], color=PALETTE[k % len(PALETTE)], linestyle=DASHES[k // len(PALETTE) % 3])
        for k in range(len(rules))
    ]
    more = f" Of {len(attacks)} attacks the first {len(shown)}." if len(shown) < len(attacks) else ""
    drawn = sheet(
        3, len(shown), 0.95, title="Precision, recall and false alarms over thresholds", detail=detail,
        foot="The mean over the runs in which it is known: nobody is right about whom a threshold never names." + more,
        heads=shown, names=["precision, %", "recall, %", "false alarms, %"], left=0.3, below=0.34,
        legend=list(zip(many, rules, strict=True)), width=WIDE if len(shown) > 2 else 1.4 * NARROW,
    )  # fmt: skip
    for row in range(3):
        for column, attack in enumerate(shown):
            panel = drawn.panels[row][column]
            for line, rule in zip(many, rules, strict=True):
                runs = np.array(found.get((rule, attack), []), float)
                if runs.size:
                    values = runs[:, :, row]
                    known = ~np.isnan(values)
                    mean = np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), math.nan)
                    panel.plot(
                        thresholds, 100 * mean, color=line.get_color(), linestyle=line.get_linestyle(), linewidth=1.1
                    )
            panel.grid(axis="y")
            if row == 2:
                panel.set_xlabel("threshold", labelpad=1)
    first = drawn.panels[0][0]
    first.set_xlim(0, 1)
    first.set_xticks([0, 0.25, 0.5, 0.75], ["0", "", "0.5", ""])
    per_cent_up(drawn)
    return drawn.figure
