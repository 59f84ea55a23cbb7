"""A grid as figures: maps of its cells, each seed as a point, and curves of the cells that differ most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .. import maps
from ..cells import BY_CLASS, Axis, Cells, Measure
from ..maps import Map, Scale, Tile
from ..style import (
    NARROW,
    PALETTE,
    RULE,
    SMALL,
    SOFT,
    WIDE,
    house,
    plain_numbers,
    sheet,
    steps_along,
    width_of,
    wrapped,
)

LIGHT, DARK = (0.93, 0.95, 0.98), (0.0, 0.27, 0.45)
MAX_FIGURES = 6  # of one kind; the page has all of it
ROWS = 40  # of a figure
MARKS = " 2/3: so many of the seeds or attacks; †: a run ended early."
TALL = 9.0  # inches that the maps of one figure may need


def draw_grid(grid: Cells, title: str, maps_alone: bool = False) -> Iterator[tuple[str, Figure]]:
    """All figures of a grid, each with a file name, or its maps alone; of a single cell its curve."""
    found, _ = maps.maps_of(grid)
    worst = maps.worst_maps(grid)
    for measure in grid.measures:
        scale = maps.scale_of(grid, measure)
        for kind, some in (("heat", found), ("worst", () if maps_alone else worst)):
            mine = [m for m in some if m.measure == measure.key]
            for number, together in enumerate(_together(mine)[:MAX_FIGURES], start=1):
                more = f"-{number}" if number > 1 else ""
                yield f"{kind}-{measure.key}{more}", heat(together, grid, measure, scale, title, kind == "worst")
        if maps_alone:
            continue
        if len(grid.cells) > 1 and found and _with_points(grid):
            yield f"seeds-{measure.key}", seeds(grid, measure, title)
    for number, together in enumerate(_together([] if maps_alone else maps.class_maps(grid))[:MAX_FIGURES], start=1):
        more = f"-{number}" if number > 1 else ""
        yield f"classes{more}", heat(together, grid, BY_CLASS, maps.class_scale(grid), title, False)
    if not maps_alone and maps.curves_of(grid).lines:
        yield "curves", curves(grid, title)


def _together(some: Sequence[Map]) -> list[list[Map]]:
    """Maps of the same columns that fit below each other in one figure."""
    found: list[list[Map]] = []
    height = TALL
    for one in some:
        needed = 0.17 * len(one.rows) + 0.1
        if height + needed > TALL or one.columns != found[-1][-1].columns:
            found.append([])
            height = 0.0
        found[-1].append(one)
        height += needed
    return found


@house()
def heat(together: Sequence[Map], grid: Cells, measure: Measure, scale: Scale, title: str, worst: bool) -> Figure:
    """Maps below each other: in each cell the mean over the seeds, its colour where it lies in all of the data."""
    first = together[0]
    columns = [*first.columns, *([first.last] if first.last else [])]
    labels = [wrapped(c, 1.6, SMALL, lines=1) for c in columns]
    names = [wrapped(name, 1.5, SMALL, lines=1) for name, _ in first.rows]
    low, high = (measure.text(v) for v in (scale.low, scale.high))
    left = max(width_of(text, SMALL) for text in names) + 0.08
    wide = WIDE if len(columns) > 3 or any(m.title for m in together) else NARROW
    room = (wide - left - 0.5) / (len(columns) + 1)
    level = all(width_of(text, SMALL) < room for text in labels)  # else they are read upwards
    what = "the worst attack, of the means over the seeds" if worst else f"the mean over {_seeds(grid)}"
    found = sheet(
        len(together),
        1,
        0.17 * len(names),
        title=f"{title}: {measure.title}" + (", worst attack" if worst else ""),
        detail=f"{measure.note}; in each cell {what}",
        names=[m.title for m in together],
        foot=f"Colours from {low} to {high}{', logarithmic' if scale.logarithmic else ''}, dark the better. Hatched: "
        "not run, or without a result." + MARKS * _marked(together),
        left=left,
        below=0.2 if level else max(width_of(text, SMALL) for text in labels) + 0.08,
        width=wide,
    )
    gap = 0.25 if first.last else 0.0
    for [panel], one in zip(found.panels, together, strict=True):
        for y, (_, tiles) in enumerate(one.rows):
            for x, tile in enumerate(tiles):
                _draw_tile(panel, x + (gap if first.last and x == len(tiles) - 1 else 0.0), y, tile, len(columns))
        panel.set_xlim(-0.5, len(columns) - 0.5 + gap)
        panel.set_ylim(len(names) - 0.5, -0.5)
        places = [x + (gap if first.last and x == len(columns) - 1 else 0.0) for x in range(len(columns))]
        panel.set_xticks(places, labels, rotation=0 if level else 90)
        panel.set_yticks(range(len(names)), names)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    return found.figure


def _marked(together: Sequence[Map]) -> bool:
    return any(t.mark for m in together for _, tiles in m.rows for t in tiles)


def _seeds(grid: Cells) -> str:
    return "one seed" if len(grid.seeds) == 1 else f"{len(grid.seeds)} seeds"


def _draw_tile(panel: Axes, x: float, y: int, tile: Tile, across: int) -> None:
    corner = (x - 0.5, y - 0.5)
    if tile.state == "out":
        return
    if tile.state != "run":
        ink = SOFT if tile.state == "none" else "#7d3200"
        panel.add_patch(
            Rectangle(corner, 1, 1, facecolor="white", edgecolor=ink, linewidth=0, hatch="////", alpha=0.45)
        )
        return
    share = tile.level / (maps.LEVELS - 1)
    colour = tuple(a + (b - a) * share for a, b in zip(LIGHT, DARK, strict=True))
    panel.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
    size = 6.0 if across <= 20 else 4.5
    room = 7.2 * 0.75 / across  # inches, about
    text = tile.text if width_of(tile.text, size) < room else tile.text.split(".")[0]
    if tile.mark and width_of(f"{text} {tile.mark}", size) < room:
        text = f"{text} {tile.mark}"
    panel.text(
        x, y, text, ha="center", va="center", fontsize=size, color="white" if tile.level > 6 else "black",
        style="italic" if tile.mark else "normal",
    )  # fmt: skip


def _with_points(grid: Cells) -> bool:
    assert grid.rows is not None
    return len(grid.rows.values) <= ROWS and any(len(cell.outcomes) > 1 for cell in grid.cells.values())


@house()
def seeds(grid: Cells, measure: Measure, title: str) -> Figure:
    """Each seed as a point, the mean as a line: a panel a column, a row a row of the map."""
    rows, columns = grid.rows, grid.columns
    assert rows is not None
    across = [None] if columns is None else _most_telling(grid, columns, measure)
    others = grid.others[: len(PALETTE)]
    names = [wrapped(rows.titles[row], 1.4, SMALL, lines=1) for row in rows.values]
    left_out = 0 if columns is None else len(columns.values) - len(across)
    foot = f"{measure.title}. A point is a seed, the upright line the mean."
    if left_out > 0:
        foot += f" {left_out} more {columns.title if columns else ''} values are in cells.csv."
    if len(grid.others) > len(others):
        foot += f" {len(grid.others) - len(others)} more combinations of settings are in cells.csv."
    legend = []
    if len(others) > 1:
        legend = [(_dot(PALETTE[i]), grid.title(rest, 2)) for i, rest in enumerate(others)]
    found = sheet(
        1,
        len(across),
        (0.15 + 0.06 * (len(others) - 1)) * len(names) + 0.15,
        title=f"{title}: {measure.title}, each seed",
        detail=measure.note,
        heads=["" if a is None or columns is None else columns.titles[a] for a in across],
        foot=foot,
        left=max(width_of(text, SMALL) for text in names) + 0.1,
        below=0.25,
        legend=legend,
        width=WIDE,
    )
    for panel, column in zip(found.panels[0], across, strict=True):
        panel.grid(axis="x")
        for y, row in enumerate(rows.values):
            for number, rest in enumerate(others):
                place = (row, *(() if column is None else (column,)), *rest)
                cell = grid.cells.get(place)
                if cell is None:
                    continue
                values = [v for _, v in cell.values(measure)]
                at = y + 0.7 * ((number + 0.5) / len(others) - 0.5)
                panel.plot(values, [at] * len(values), "o", color=PALETTE[number], markersize=2.4, alpha=0.75)
                if values:
                    panel.plot([sum(values) / len(values)], [at], "|", color="black", markersize=5, markeredgewidth=0.8)
        for y in range(1, len(names)):
            panel.axhline(y - 0.5, color=RULE, linewidth=0.4)
    panel = found.panels[0][0]
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.margins(x=0.06)
    plain_numbers(panel, "x", 3)
    return found.figure


def _most_telling(grid: Cells, columns: Axis, measure: Measure, most: int = 5) -> list[str | None]:
    """The columns in which rows differ most, in their order."""

    def width(column: str) -> float:
        means = [s.mean for p, c in grid.cells.items() if p[1] == column and (s := c.spread(measure)) is not None]
        return max(means) - min(means) if means else -1.0

    widest = sorted(columns.values, key=width, reverse=True)[:most]
    return [column for column in columns.values if column in widest]


def _dot(colour: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", linestyle="none", markersize=4)


@house()
def curves(grid: Cells, title: str) -> Figure:
    """The cells that the page shows first: mean over the seeds, and a band from the least to the greatest."""
    known = maps.curves_of(grid)
    chosen, losses = maps.first_chosen(grid, known), maps.of_losses(grid)
    cells = list(grid.cells.items())
    lines = [Line2D([], [], color=PALETTE[i], linewidth=1.2) for i in range(len(chosen))]
    found = sheet(
        1,
        1,
        2.4,
        title=f"{title}: {'loss' if losses else 'accuracy, %'}, over the steps",
        detail="Under the attack in which rules differ most, from the best to the worst; the page shows any other."
        if len(chosen) > 1
        else "",
        foot="Mean over the seeds; bands from the least to the greatest.",
        legend=[(line, grid.title(cells[number][0]) or "all runs") for line, number in zip(lines, chosen, strict=True)],
        left=0.35,
        below=0.36,
        width=WIDE,
    )
    panel = found.panels[0][0]
    last = 1.0
    for line, number in zip(lines, chosen, strict=True):
        steps, means, least, most = zip(*maps.curve(cells[number][1].outcomes, losses), strict=True)
        panel.plot(steps, means, color=line.get_color(), linewidth=1.2)
        panel.fill_between(steps, least, most, color=line.get_color(), alpha=0.15, linewidth=0)
        last = max(last, steps[-1])
    panel.grid(axis="y")
    panel.set_xlabel("step", labelpad=1)
    steps_along(found, last, 5)
    plain_numbers(panel, "y")
    return found.figure
