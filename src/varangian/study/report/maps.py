"""What the page shows of a grid: maps of its cells, a table, what is not there, and what the script draws."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..outcomes import Outcome
from ..paper import counted
from .cells import BY_CLASS, LOSS, NO_ATTACK, Axis, Cell, Cells, Measure, Spread, Worst, fixed

LEVELS = 10  # of colour
MAX_TILES, MAX_ROWS = 12_000, 2_000  # on a page: of maps, and of the table
MAX_ACROSS, MAX_DOWN = 60, 150  # of a map that is looked at
MAX_POINTS = 120_000  # of all curves together
POINTS = 60  # of a curve, at most
MAX_LISTED = 50  # places and runs in a list
MOST_BY_CLASS = 12  # maps of accuracies on classes
MOST_WORST = 6  # maps of the worst attack, of one setting and measure
FEW_DOTS = 12  # seeds that are shown each


@dataclass(frozen=True)
class Tile:
    """A cell of a map.

    Attributes:
        state: "run", "none" (not run), "out" (nobody wanted it run) or "trouble" (begun or failed, and not there).
        level: of its colour, 0 the worst.
        mark: what one must know of it, in a sign or two.
        tip: the same in words.
        cell: its number among the cells of the script's data, if there is one.
    """

    text: str
    state: str = "run"
    level: int = 0
    mark: str = ""
    tip: str = ""
    cell: int | None = None


@dataclass(frozen=True)
class Map:
    """A table of tiles: rows of the grid down, columns across.

    Attributes:
        title: where it is, in the settings that are neither rows nor columns.
        measure: its key.
        place: of each other axis the number of its value, or "" where the map is of all of them.
    """

    title: str
    measure: str
    down: str
    across: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tile, ...]], ...]
    place: tuple[str, ...] = ()
    last: str = ""  # the title of a last column that is the worst of the others


@dataclass(frozen=True)
class Scale:
    """Colours for the range of the data: level 0 at the worst value, the last at the best."""

    low: float
    high: float
    logarithmic: bool
    rising: bool

    def share(self, value: float) -> float:
        """Where a value lies: 0 the worst, 1 the best."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.logarithmic else (
            self.low, self.high, value)  # fmt: skip
        share = (value - low) / (high - low) if high > low else 1.0
        return min(1.0, max(0.0, share if self.rising else 1 - share))

    def level(self, value: float) -> int:
        return min(LEVELS - 1, int(LEVELS * self.share(value)))


def scale_of(grid: Cells, measure: Measure) -> Scale:
    means = [s.mean for cell in grid.cells.values() if (s := cell.spread(measure)) is not None] or [0.0]
    low, high = min(means), max(means)
    return Scale(low, high, not measure.high and low > 0 and high > 100 * low, measure.high)


# --------------------------------------------------------------------------------------------------------------- maps


def maps_of(grid: Cells) -> tuple[list[Map], list[str]]:
    """A map for each measure and combination of the other settings; and a line on what there is no room for."""
    if not grid.axes:
        return [], []
    rows, columns = grid.rows, grid.columns
    assert rows is not None
    across = 1 if columns is None else len(columns.values)
    if across > MAX_ACROSS or len(rows.values) > MAX_DOWN:
        return [], [
            f"{len(rows.values):,} values of {rows.title}, {across:,} across: that makes no map that anybody reads, "
            "and cells.csv has all of them"
        ]
    room = max(1, MAX_TILES // (len(rows.values) * (across + 1) * len(grid.measures)))
    numbers = {place: number for number, place in enumerate(grid.cells)}
    made = [
        _map(grid, measure, rest, numbers, scale_of(grid, measure))
        for measure in grid.measures
        for rest in grid.others[:room]
    ]
    left = len(grid.others) - room
    return made, [f"maps of {left:,} of {len(grid.others):,} combinations are left out: cells.csv has them"] if (
        left > 0
    ) else []  # fmt: skip


def _map(
    grid: Cells, measure: Measure, rest: tuple[str, ...], numbers: dict[tuple[str, ...], int], scale: Scale
) -> Map:
    rows, columns = grid.rows, grid.columns
    assert rows is not None
    lines = []
    for row in rows.values:
        places = [(row, *rest)] if columns is None else [(row, column, *rest) for column in columns.values]
        tiles = [_tile(grid, place, measure, scale, numbers) for place in places]
        if grid.attack_column:
            tiles.append(_worst_tile(grid, row, rest, measure, scale))
        lines.append((rows.titles[row], tuple(tiles)))
    place = tuple(str(axis.values.index(value)) for axis, value in zip(grid.axes[2:], rest, strict=True))
    heads = (measure.title,) if columns is None else tuple(columns.titles[c] for c in columns.values)
    return Map(
        grid.title(rest, 2), measure.key, rows.title, columns.title if columns else "", heads, tuple(lines), place,
        "worst attack" if grid.attack_column else "",
    )  # fmt: skip


def worst_maps(grid: Cells) -> list[Map]:
    """Rows against each other setting: the worst attack in each cell."""
    made: list[Map] = []
    if not grid.attack_column or grid.rows is None or len(grid.rows.values) > MAX_DOWN:
        return made
    for number, axis in enumerate(grid.axes[2:]):
        if len(axis.values) > MAX_ACROSS:
            continue
        left = sorted({rest[:number] + rest[number + 1 :] for rest in grid.others}, key=_by(grid, number))
        made += [_worst_map(grid, measure, number, axis, o) for measure in grid.measures for o in left[:MOST_WORST]]
    return made


def _by(grid: Cells, number: int) -> Any:
    axes = [a for i, a in enumerate(grid.axes[2:]) if i != number]
    return lambda place: [axis.values.index(v) for axis, v in zip(axes, place, strict=True)]


def _worst_map(grid: Cells, measure: Measure, number: int, axis: Axis, others: tuple[str, ...]) -> Map:
    assert grid.rows is not None
    scale = scale_of(grid, measure)
    lines = []
    for row in grid.rows.values:
        places = [(*others[:number], v, *others[number:]) for v in axis.values]
        lines.append((grid.rows.titles[row], tuple(_worst_tile(grid, row, p, measure, scale) for p in places)))
    axes = [a for i, a in enumerate(grid.axes[2:]) if i != number]
    title = ", ".join(f"{a.title} {a.titles[v]}" for a, v in zip(axes, others, strict=True))
    heads = tuple(axis.titles[v] for v in axis.values)
    return Map(title, measure.key, grid.rows.title, axis.title, heads, tuple(lines))


def _tile(
    grid: Cells, place: tuple[str, ...], measure: Measure, scale: Scale, numbers: dict[tuple[str, ...], int]
) -> Tile:
    cell = grid.cells.get(place)
    if cell is None:
        return Tile("", "out") if grid.left_out(place) else Tile("not run", "none")
    spread = cell.spread(measure)
    if cell.outcomes and not any(map(measure.asks, cell.outcomes)):
        return Tile("none", "out", tip="no attack that aims", cell=numbers[place])
    words = remarks(grid, cell, measure)
    tip = f"{grid.title(place)}: {said(spread, measure)}" + "".join(f"; {w}" for w in words)
    if spread is None:
        return Tile("failed" if cell.trouble or cell.outcomes else "not run", "trouble", tip=tip, cell=numbers[place])
    mark = f"{spread.n}/{len(grid.seeds)}" if spread.n < len(grid.seeds) else ""
    mark += "†" if cell.stopped else ""
    return Tile(measure.text(spread.mean), "run", scale.level(spread.mean), mark, tip if words else "", numbers[place])


def _worst_tile(grid: Cells, row: str, rest: tuple[str, ...], measure: Measure, scale: Scale) -> Tile:
    worst = grid.worst(row, rest, measure)
    if worst is None:
        attacks = grid.columns.values if grid.columns is not None else ()
        out = all(grid.left_out((row, attack, *rest)) for attack in attacks if attack != NO_ATTACK)
        return Tile("", "out") if out else Tile("not run", "none")
    assert grid.columns is not None
    name = grid.columns.titles[worst.attack]
    lacks = f"; {worst.of - worst.over} of {worst.of} attacks were not run" if worst.over < worst.of else ""
    mark = f"{worst.over}/{worst.of}" if lacks else ""
    return Tile(measure.text(worst.mean), "run", scale.level(worst.mean), mark, f"under {name}{lacks}")


def class_maps(grid: Cells) -> list[Map]:
    """Rows of the grid down, classes across: the mean accuracy on each over the seeds; a map for each combination of
    the other settings under which it is known. None where there are more than anybody looks at."""
    known = class_accuracies(grid)
    classes = max(map(len, known.values()), default=0)
    if classes > MAX_ACROSS or len({place[:1] for place in known}) > MAX_DOWN:
        return []
    scale, found = class_scale(grid), dict[tuple[str, ...], list[tuple[str, tuple[Tile, ...]]]]()
    for place, means in known.items():
        tiles = [
            Tile("none", "out", tip="no test example is of it")
            if math.isnan(mean)
            else Tile(BY_CLASS.text(mean), "run", scale.level(mean))
            for mean in means
        ]
        found.setdefault(place[1:], []).append((grid.rows.titles[place[0]] if grid.rows else "all runs", tuple(tiles)))
    down, heads = grid.rows.title if grid.rows else "runs", tuple(map(str, range(classes)))
    return [
        Map(grid.title(rest, 1), "", down, "class", heads, tuple(rows))
        for rest, rows in list(found.items())[:MOST_BY_CLASS]
    ]


def class_accuracies(grid: Cells) -> dict[tuple[str, ...], list[float]]:
    """By place, of cells that know it, the accuracy on each class in per cent: the mean over the seeds."""
    found = {}
    for place, cell in grid.cells.items():
        each = [o.class_accuracy for o in cell.outcomes if o.class_accuracy is not None]
        if each and len(set(map(len, each))) == 1:
            found[place] = [100 * sum(values) / len(each) for values in zip(*each, strict=True)]
    return found


def class_scale(grid: Cells) -> Scale:
    means = [mean for means in class_accuracies(grid).values() for mean in means if not math.isnan(mean)] or [0.0]
    return Scale(min(means), max(means), False, True)


def class_rows(grid: Cells) -> tuple[list[str], list[list[str]]]:
    """classes.csv: a row a cell and class."""
    rows = [
        [*map(_plain, place), str(c), "" if math.isnan(mean) else f"{mean:.6g}"]
        for place, means in class_accuracies(grid).items()
        for c, mean in enumerate(means)
    ]
    return [*(axis.name for axis in grid.axes), "class", "accuracy"], rows


def said(spread: Spread | None, measure: Measure) -> str:
    """Mean, deviation and n."""
    if spread is None:
        return "no value"
    return f"{measure.text(spread.mean)}{deviation(spread, measure)}, n = {spread.n}"


def deviation(spread: Spread, measure: Measure) -> str:
    return "" if spread.sd is None else f" ± {measure.text(spread.sd)}"


def remarks(grid: Cells, cell: Cell, measure: Measure) -> list[str]:
    """What one must know of a cell: seeds that lack, and runs that ended early or never."""
    found = []
    told = {seed for seed, _ in cell.trouble}
    if lacking := [s for s in cell.lacking if s not in told]:
        found.append(f"seed{'s' if len(lacking) > 1 else ''} {', '.join(map(str, lacking[:10]))} not run")
    found += [f"seed {seed}: {reason}" for seed, reason in cell.trouble[:5]]
    valued = {seed for seed, _ in cell.values(measure)}
    if without := [o.experiment.seed for o in cell.outcomes if o.experiment.seed not in valued]:
        found.append(f"seed{'s' if len(without) > 1 else ''} {', '.join(map(str, without[:10]))} without a value")
    found += [f"seed {o.experiment.seed} stopped early: {o.stopped}" for o in cell.stopped[:5]]
    return found


# -------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Line:
    """A row of the table: the cell's settings, of each measure text and number, and its values along a line."""

    place: tuple[str, ...]
    depend: tuple[str, ...]
    values: tuple[tuple[str, float | None], ...]
    n: int
    full: bool
    dots: tuple[float, ...]  # positions of single seeds, 0 to 100
    box: tuple[float, float, float, float, float] | None  # least, quartiles, greatest
    mean: float | None
    remarks: str
    cell: int


def lines_of(grid: Cells) -> tuple[list[Line], list[str]]:
    """The table of all cells, and a line on those that there is no room for."""
    first = grid.measures[0]
    everything = [v for cell in grid.cells.values() for _, v in cell.values(first)] or [0.0]
    low, high = min(everything), max(everything)

    def along(value: float) -> float:
        return round(100 * (value - low) / (high - low), 1) if high > low else 50.0

    made = []
    for number, (place, cell) in enumerate(list(grid.cells.items())[:MAX_ROWS]):
        spreads = [cell.spread(m) for m in grid.measures]
        values = sorted(v for _, v in cell.values(first))
        box = tuple(along(_quantile(values, q)) for q in (0, 0.25, 0.5, 0.75, 1)) if len(values) >= 5 else None
        made.append(
            Line(
                tuple(axis.titles[v] for axis, v in zip(grid.axes, place, strict=True)),
                tuple(grid.depend[name].get(place, "") for name in told_apart(grid)),
                tuple(
                    ("" if s is None else m.text(s.mean) + deviation(s, m), None if s is None else s.mean)
                    for s, m in zip(spreads, grid.measures, strict=True)
                ),
                len(cell.outcomes),
                len(cell.outcomes) == len(grid.seeds),
                tuple(along(v) for v in values) if len(values) <= FEW_DOTS else (),
                box,  # type: ignore[arg-type]
                None if spreads[0] is None else along(spreads[0].mean),
                "; ".join(remarks(grid, cell, first)),
                number,
            )
        )
    left = len(grid.cells) - len(made)
    return made, [
        f"{counted(left, 'cell')} of {len(grid.cells):,} in no table here: cells.csv has them"
    ] if left else []


def told_apart(grid: Cells) -> list[str]:
    """Settings that follow from the axes and are worth a column: numbers of attackers follow from f."""
    return [name for name in grid.depend if name not in ("attackers", "workers", "code_hash", "data_hash", "device")]


def _quantile(ordered: Sequence[float], share: float) -> float:
    at = (len(ordered) - 1) * share
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


# -------------------------------------------------------------------------------------------------- what is not there


@dataclass(frozen=True)
class Absent:
    """A list with a heading, of which the first items are shown."""

    title: str
    items: tuple[str, ...]
    more: int = 0


def absent(grid: Cells) -> list[Absent]:
    """What the maps lack: places that were not run, seeds, runs that failed or ended early."""
    missing = [place for place in grid.missing() if place not in grid.cells]
    lacking = [
        f"{grid.title(place)}: seed{'s' if len(cell.lacking) > 1 else ''} {', '.join(map(str, cell.lacking))}"
        for place, cell in grid.cells.items()
        if cell.outcomes and cell.lacking
    ]
    trouble = [
        f"{grid.title(place)}, seed {seed}: {reason}"
        for place, cell in grid.cells.items()
        for seed, reason in cell.trouble
    ]
    stopped = [
        f"{grid.title(place)}, seed {o.experiment.seed}: {o.stopped}"
        for place, cell in grid.cells.items()
        for o in cell.stopped
    ]
    found = (
        (f"{counted(len(missing), 'cell')} not run", [grid.title(place) for place in missing]),
        (
            f"{counted(len(lacking), 'cell')} with fewer seeds than others; their means are over those that are there",
            lacking,
        ),
        (f"{counted(len(trouble), 'run')} without a result", trouble),
        (f"{counted(len(stopped), 'run')} ended early (†); the accuracy is that of where it ended", stopped),
    )
    return [
        Absent(title, tuple(items[:MAX_LISTED]), max(0, len(items) - MAX_LISTED)) for title, items in found if items
    ]


# ------------------------------------------------------------------------------------------------------ for the script


@dataclass
class Curves:
    """Means and bands of the cells that have them, and what had to be left out."""

    lines: dict[int, list[list[float]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def of_losses(grid: Cells) -> bool:
    """Whether curves are of the loss, since no run has an accuracy."""
    return grid.measures == (LOSS,)


def curve(outcomes: Sequence[Outcome], losses: bool = False) -> list[tuple[int, float, float, float]]:
    """Step, mean, least and greatest accuracy in per cent, or loss, at the steps that all of these runs have."""
    tables: list[dict[int, float]] = []
    for o in outcomes:
        values = ((p.step, p.loss if losses else 100 * p.accuracy) for p in o.curve)
        tables.append({step: v for step, v in values if v is not None and not math.isnan(v)})
    shared = set.intersection(*map(set, tables)) if tables else set[int]()
    return [(s, sum(v) / len(v), min(v), max(v)) for s in sorted(shared) for v in [[t[s] for t in tables]]]


def curves_of(grid: Cells) -> Curves:
    """Of each cell, thinned so that all of them together fit on a page."""
    found = Curves()
    each = max(8, min(POINTS, MAX_POINTS // max(1, len(grid.cells))))
    losses = of_losses(grid)
    for number, cell in enumerate(grid.cells.values()):
        points = curve(cell.outcomes, losses)
        if len(points) < 2:
            continue
        if number * each > MAX_POINTS:
            found.left_out.append("curves of some cells are left out of this page: there are too many")
            break
        every = -(-len(points) // each)
        kept = [p for i, p in enumerate(points) if i % every == 0 or i == len(points) - 1]
        values = ([float(f"{p[k]:.4g}") for p in kept] for k in (1, 2, 3))
        found.lines[number] = [[p[0] for p in kept], *values]
    return found


def data(grid: Cells, curves: Curves) -> dict[str, Any]:
    """For grid.js: titles of cells, seeds and values of each measure, curves."""
    cells = []
    for number, (place, cell) in enumerate(grid.cells.items()):
        values = [[round(v, m.digits + 2) for _, v in cell.values(m)] for m in grid.measures]
        seeds = [s if s < 2**53 else str(s) for s, _ in cell.values(grid.measures[0])]  # the script's numbers end there
        cells.append([grid.title(place), seeds, values, curves.lines.get(number)])
    return {
        "measures": [[m.key, m.title, m.digits] for m in grid.measures],
        "axes": [[a.title, [a.titles[v] for v in a.values]] for a in grid.axes[2:]],
        "unit": "loss" if of_losses(grid) else "accuracy, %",
        "cells": cells,
        "first": first_chosen(grid, curves),
    }


def first_chosen(grid: Cells, curves: Curves, most: int = 5) -> list[int]:
    """Cells whose curves are shown first: under the attack that tells rules apart most, from the best to the worst."""
    measure = grid.measures[0]
    columns: dict[tuple[str, ...], list[tuple[float, int]]] = {}
    for number, (place, cell) in enumerate(grid.cells.items()):
        spread = cell.spread(measure)
        if number in curves.lines and spread is not None:
            columns.setdefault(place[1:], []).append((spread.mean, number))
    if not columns:
        return []
    widest = sorted(max(columns.values(), key=lambda c: max(c)[0] - min(c)[0]), reverse=measure.high)
    if len(widest) <= most:
        return [number for _, number in widest]
    return [widest[round(i * (len(widest) - 1) / (most - 1))][1] for i in range(most)]


# --------------------------------------------------------------------------------------------------------------- files

CELLS = ("n", "mean", "sd", "least", "greatest", "seeds", "seeds_lacking", "remarks")


def cell_rows(grid: Cells) -> tuple[list[str], list[list[str]]]:
    """cells.csv: a row a cell and measure, cells that were not run among them."""
    head = [*(axis.name for axis in grid.axes), *told_apart(grid), "measure", *CELLS]
    rows = []
    for place in [*grid.cells, *(p for p in grid.missing() if p not in grid.cells)]:
        cell = grid.cells.get(place) or Cell(place, (), grid.seeds)
        for measure in grid.measures:
            if cell.outcomes and not any(map(measure.asks, cell.outcomes)):
                continue
            spread = cell.spread(measure)
            numbers = ["0", "", "", "", ""]
            if spread is not None:
                found = (spread.mean, spread.sd, spread.low, spread.high)
                numbers = [str(spread.n), *("" if v is None else f"{v:.6g}" for v in found)]
            rows.append([
                *map(_plain, place), *(_plain(grid.depend[name].get(place, "")) for name in told_apart(grid)),
                measure.key, *numbers, " ".join(str(o.experiment.seed) for o in cell.outcomes),
                " ".join(map(str, cell.lacking)), _plain("; ".join(remarks(grid, cell, measure))),
            ])  # fmt: skip
    return head, rows


def worst_rows(grid: Cells) -> tuple[list[str], list[list[str]]]:
    """worst.csv: of each row and combination of the other settings the worst attack."""
    assert grid.rows is not None
    head = [grid.rows.name, *(a.name for a in grid.axes[2:]), "measure", "worst", "attack", "attacks_run", "attacks"]
    rows = []
    for rest in grid.others:
        for row in grid.rows.values:
            for measure in grid.measures:
                if (worst := grid.worst(row, rest, measure)) is not None:
                    numbers = [f"{worst.mean:.6g}", worst.attack, str(worst.over), str(worst.of)]
                    rows.append([_plain(row), *map(_plain, rest), measure.key, *numbers])
    return head, rows


def _plain(text: str) -> str:
    """No spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


@dataclass(frozen=True)
class Best:
    """The rule whose worst cell is best, that cell's mean and attack, and of how many cells it is the worst.

    ``apart`` is how many rules could not be asked, since cells of theirs lack.
    """

    rule: str
    value: float
    attack: str
    over: int
    apart: int


def best_of_worst(grid: Cells) -> Best | None:
    """Over all attacks and other settings; None where there are no two rules, no attacks, or all lack cells."""
    if not grid.attack_column or grid.rows is None or grid.rows.name != "rule" or len(grid.rows.values) < 2:
        return None
    measure = grid.measures[0]
    found: list[tuple[float, str, Worst, int]] = []
    for row in grid.rows.values:
        worst = [w for rest in grid.others if (w := grid.worst(row, rest, measure)) is not None]
        if len(worst) == len(grid.others) and all(w.over == w.of for w in worst):
            value = measure.worst(w.mean for w in worst)
            found.append((value, row, next(w for w in worst if w.mean == value), sum(w.over for w in worst)))
    if not found:
        return None
    value, row, worst_cell, over = (max if measure.high else min)(found, key=lambda f: f[0])
    assert grid.columns is not None
    attack = grid.columns.titles[worst_cell.attack]
    return Best(grid.rows.titles[row], value, attack, over, len(grid.rows.values) - len(found))


_PLURALS = {
    **{"byzantine": "values of f", "workers": "values of n", "momentum_at": "places of momentum"},
    **{"nesterov": "kinds of momentum", "momentum": "momenta", "batch_size": "batch sizes", "l2": "values of l2"},
    **{"seed": "seeds", "evaluate_every": "intervals", "steps": "numbers of steps", "dtype": "dtypes"},
}


def counts(grid: Cells) -> str:
    """The axes in numbers: "3 rules × 3 attacks × 2 partitions"."""
    parts = []
    for axis in grid.axes:
        number = len(axis.values)
        calm = axis.name == "attack" and NO_ATTACK in axis.values
        if calm:
            number -= 1
        plural = _PLURALS.get(axis.name, axis.title + "s")
        parts.append(f"{number} {plural if number != 1 else axis.title}" + (" and none" if calm else ""))
    return " × ".join(parts)


def json_of(content: Any) -> str:
    """For a script element: without the one sign that could end it."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def settings(grid: Cells) -> list[tuple[str, str]]:
    """What the runs were given: values that all share, and of the others which there are."""
    found = []
    for axis in grid.axes:
        texts = [axis.titles[v] for v in axis.values]
        found.append(
            (axis.title, ", ".join(texts[:12]) + (f" and {len(texts) - 12:,} more" if len(texts) > 12 else ""))
        )
    for name, by_place in grid.depend.items():
        values = list(dict.fromkeys(by_place.values()))
        shown = ", ".join(values[:12]) + (f" and {len(values) - 12:,} more" if len(values) > 12 else "")
        found.append((name.replace("_", " "), f"{shown} (follows from the above)"))
    e = next(o for cell in grid.cells.values() for o in cell.outcomes).experiment
    named = {name for name, _ in found} | set(grid.depend) | {axis.name for axis in grid.axes}
    found += [(title, text) for name, title, text in fixed(e) if name not in named]
    found.append(("seeds", ", ".join(map(str, grid.seeds[:20])) + (" ..." if len(grid.seeds) > 20 else "")))
    return found
