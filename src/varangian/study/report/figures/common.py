"""What all figures of groups share: marks, file names, headings, and what a page holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil, floor
from typing import Literal

from matplotlib.lines import Line2D

from ..layout import Column, Group, attack_title
from ..style import NARROW, SERVER, WIDE, WORKER

MEASURE = {"max": "maximum accuracy on the test set, %", "final": "final accuracy on the test set, %"}
COLOURS = {"server": SERVER, "worker": WORKER, "shared": "#009E73"}
MARKERS = {"server": "o", "worker": "D"}
STYLES: dict[str, Literal["-", "--"]] = {"server": "-", "worker": "--"}
SHAPES = "osD^vP*X<>ph"  # of rules in a box
ACROSS = 4  # panels side by side
DOWN = 8  # rows of panels in a figure


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80]


def pages(items: Sequence, most: int) -> list[tuple[str, Sequence]]:
    """The items in as few pages as possible, each with what tells its file name apart."""
    number = max(1, ceil(len(items) / most))
    size = ceil(len(items) / number)
    return [("" if number == 1 else f"-{i + 1}", items[i * size : (i + 1) * size]) for i in range(number)]


def width_for(columns: int) -> float:
    return NARROW if columns <= 2 else WIDE


def head_of(column: Column) -> str:
    return f"{attack_title(column.attack)}\n{column.share}"


def detail(group: Group, *more: str) -> str:
    return "; ".join([group.line(batch="batch size" not in group.title), *more, seeds_of(group), group.origin])


def seeds_of(group: Group) -> str:
    number = len({o.experiment.seed for o in group.attacked})
    return f"{number} seed{'s' if number > 1 else ''}"


def range_of(values: Sequence[float], step: float = 5.0) -> tuple[float, float]:
    """Of accuracies: round numbers around them all, and within 0 and 100."""
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) + 0.5
    return max(-1.0, step * floor((low - pad) / step)), min(101.0, step * ceil((high + pad) / step))


def points(shape: str, place: str, size: float) -> dict:
    """Hollow at the server, full at the workers: told apart without colours too."""
    face = {"markerfacecolor": "white"} if place == "server" else {}
    return {"marker": shape, "markersize": size, "markeredgewidth": 0.7, "linestyle": "none", **face}


def marker(shape: str, colour: str, full: bool = False, size: float = 4) -> Line2D:
    face = colour if full else "white"
    return Line2D([], [], color=colour, marker=shape, markerfacecolor=face, linestyle="none", markersize=size)
