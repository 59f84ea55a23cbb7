"""The figures for paper and slides, by matplotlib, as wide as one or both columns of a paper."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from ...paper import Measure
from ..layout import Group, column_of
from .common import ACROSS, DOWN, SHAPES, pages, slug
from .grids import draw_grid
from .learning import band, curves, ratio_rules
from .moving import MOST as MOST_MOVED
from .moving import moves, moving
from .pairing import by_noise, gains
from .poster import boxes

MAX_CURVES = 60  # panels of curves of one learning rate and kind of momentum: nobody looks at more
MAX_RATES = 2  # learning rates of which curves are drawn into files; the page has a chooser for all
__all__ = [
    "MOST_MOVED",
    "band",
    "boxes",
    "by_noise",
    "curves",
    "draw",
    "draw_grid",
    "gains",
    "moves",
    "moving",
    "ratio_rules",
    "slug",
]


def draw(group: Group) -> Iterator[tuple[str, Figure]]:
    """All figures of a group in which runs are compared, each with a file name; none of a group without pairs."""
    if not group.pairs:
        return
    base = slug(f"{group.title}-{group.study}")
    measures: tuple[Measure, ...] = ("max", "final")
    for number, rate in enumerate(group.rates):
        name = f"{base}-lr{slug(rate)}"
        if not is_wide(group):
            for measure in measures:
                yield f"boxes-{measure}-{name}", boxes(group, rate, measure)
        if number < MAX_RATES and not too_many_curves(group):
            yield from _curves(group, rate, name)
    paired = {column_of(p.experiment) for p in group.pairs}
    for number, columns in pages([c for c in group.columns if c in paired], ACROSS):
        yield f"gains-{base}{number}", gains(group, columns)


def _curves(group: Group, rate: str, name: str) -> Iterator[tuple[str, Figure]]:
    measured = any(p.ratio is not None for o in group.attacked for p in o.curve)
    for nesterov in group.kinds:
        kind = "nesterov" if nesterov else "classical"
        for number, columns in pages(group.columns, ACROSS):
            for again, rules in pages(group.rules, DOWN):
                if any(o.curve for o in group.outcomes):
                    yield f"curves-{kind}-{name}{number}{again}", curves(group, rate, nesterov, columns, rules)
            if (proved := ratio_rules(group)) and measured:
                yield f"ratios-{kind}-{name}{number}", curves(group, rate, nesterov, columns, proved, ratios=True)


def is_wide(group: Group) -> bool:
    """Whether there are so many adversaries or rules that boxes would say nothing; maps of the grid do."""
    return len(group.columns) > 2 * ACROSS or len(group.rules) > len(SHAPES)


def too_many_curves(group: Group) -> bool:
    return len(group.columns) * len(group.rules) > MAX_CURVES


def not_drawn(group: Group) -> list[str]:
    """A line on what :func:`draw` leaves to the page and its tables."""
    found = []
    if group.pairs and (many := len(group.rates) - MAX_RATES) > 0 and not too_many_curves(group):
        found.append(f"curves at {many} of {len(group.rates)} learning rates are no files; the page has all of them")
    if group.pairs and too_many_curves(group):
        found.append("curves of so many rules and adversaries are no files; the page draws those that are chosen")
    if group.pairs and is_wide(group):
        found.append("boxes of so many rules or adversaries would say nothing: see the maps")
    return [f"{group.title}: {line}" for line in found]
