"""Where momentum stands against how data are dealt: a map for each rule, in colours of the accuracy that is left."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...heterogeneity import PLACES, Cell
from ..layout import rule_title
from ..style import SMALL, SOFT, house, sheet, width_of
from .grids import DARK, LIGHT

NAMES = {"server": "server", "worker": "workers", "adaptive": "adaptive"}
ACROSS = 3.9  # inches: what is still read where a page is as narrow as a telephone
TILE = 6.5  # points


@house()
def placed(cells: Sequence[Cell], dataset: str) -> Figure:
    """A map a rule, without mixing and behind one: places of momentum down, partitions across, and in each tile the
    accuracy under the worst attack; the best place of each column in bold."""
    mixings = list(dict.fromkeys(_parted(cell.rule)[0] for cell in cells))
    rules = list(dict.fromkeys(_parted(cell.rule)[1] for cell in cells))
    partitions = list(dict.fromkeys(cell.partition for cell in cells))
    places = [place for place in PLACES if any(place in cell.places for cell in cells)]
    there = {(*_parted(cell.rule), cell.partition): cell for cell in cells}
    left = [spread.mean for cell in cells for place in places if (spread := cell.worst(place)) is not None]
    low, high = min(left), max(left)
    names, heads = [NAMES[place] for place in places], [_dealt(partition) for partition in partitions]
    seeds = sorted({len(cell.seeds) for cell in cells})
    attacks = list(dict.fromkeys(a for cell in cells for found in cell.places.values() for a in found if a != "none"))
    found = sheet(
        len(rules),
        len(mixings),
        0.17 * len(places),
        title=f"{dataset}: accuracy that the worst attack leaves, %",
        detail="Momentum at the server, at the workers, or where adaptive placement moves it, against how data are "
        f"dealt. The worst of {', '.join(attacks)}.",
        heads=[f"behind {mixing.upper()}" if mixing else "without mixing" for mixing in mixings],
        names=[rule_title(rule) for rule in rules],
        foot=f"Means of {' to '.join(map(str, seeds))} seed{'s' if seeds[-1] > 1 else ''}; colours from {low:.0f} to "
        f"{high:.0f}, dark the better; bold the best place, unless another is within a point.",
        left=max(width_of(name, SMALL) for name in names) + 0.08,
        below=max(width_of(head, SMALL) for head in heads) + 0.08,
        width=ACROSS,
    )
    for row, rule in zip(found.panels, rules, strict=True):
        for panel, mixing in zip(row, mixings, strict=True):
            for x, partition in enumerate(partitions):
                cell = there.get((mixing, rule, partition))
                _column(panel, x, [None if cell is None else _value(cell, place) for place in places], (low, high))
            panel.set_xlim(-0.5, len(partitions) - 0.5)
            panel.set_ylim(len(places) - 0.5, -0.5)
            panel.set_xticks(range(len(partitions)), heads, rotation=90)
            panel.set_yticks(range(len(places)), names)
            panel.tick_params(length=0)
            panel.spines[:].set_visible(False)
    return found.figure


def _parted(rule: str) -> tuple[str, str]:
    """The mixings before a rule, and the rule."""
    mixing, _, alone = rule.rpartition(" + ")
    return mixing, alone


def _dealt(partition: str) -> str:
    """As an axis has room for."""
    name, _, options = partition.rstrip(")").partition("(")
    return f"{name} {options.rpartition('=')[2]}".strip()


def _value(cell: Cell, place: str) -> float | None:
    spread = cell.worst(place)
    return None if spread is None else spread.mean


def _column(panel: Axes, x: int, values: Sequence[float | None], scale: tuple[float, float]) -> None:
    low, high = scale
    known = sorted((v for v in values if v is not None), reverse=True)
    best = known[0] if len(known) > 1 and known[0] - known[1] > 1 else None
    for y, value in enumerate(values):
        corner = (x - 0.5, y - 0.5)
        if value is None:
            panel.add_patch(
                Rectangle(corner, 1, 1, facecolor="white", edgecolor=SOFT, linewidth=0, hatch="////", alpha=0.45)
            )
            continue
        share = (value - low) / (high - low) if high > low else 1.0
        colour = tuple(a + (b - a) * share for a, b in zip(LIGHT, DARK, strict=True))
        panel.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
        panel.text(
            x, y, f"{value:.0f}", ha="center", va="center", fontsize=TILE, color="white" if share > 0.5 else "black",
            weight="bold" if value == best else "normal",
        )  # fmt: skip
