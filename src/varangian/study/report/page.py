"""The page: one HTML file with everything in it. Text comes from runs of anybody, so the templates escape all of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..outcomes import Outcome, attack_name, command, rule_name
from ..paper import Verdict, counted
from . import maps
from .cells import BY_CLASS, FINAL, MAXIMUM, SUCCESS, Cells, Measure, grid_of
from .layout import Group, attack_title, rule_title
from .paired import paired
from .records import SweepRecord

MOST_NOTES = 40  # on runs that are not compared
MOST = 12  # groups in one table of settings


@dataclass(frozen=True)
class Picture:
    """A figure within the page: always there, or only where scripts do not run, which draw it otherwise.

    On narrow screens its parts stand below each other, where it has such.
    """

    title: str
    png: bytes
    always: bool = False
    narrow: tuple[bytes, ...] = ()


def render(
    found: Sequence[Group],
    judged: Mapping[str, Sequence[Verdict]],
    records: Sequence[SweepRecord],
    cells: Mapping[str, tuple[int, int]],
    pictures: Sequence[Picture],
    notes: Sequence[str] = (),
    *,
    grid: Cells | None = None,
    files: str = "",
) -> str:
    """The whole page.

    Args:
        found: groups of attacked runs; where any of them has pairs, the paper's question comes first.
        judged: the paper's claims, by study.
        records: what computed the runs.
        cells: of each panel of the paper's study how many runs are there, of how many.
        pictures: figures within the page, those of curves of the grid last.
        notes: what of the runs is in no comparison.
        grid: all runs by the settings that vary; by default of the groups' runs.
        files: what lies beside the page, in words.
    """
    grid = grid_of([o for g in found for o in g.outcomes]) if grid is None else grid
    asked = paired(found, judged) if any(g.pairs for g in found) else None
    shown = _grid(grid, [p for p in pictures if p.title.startswith(CURVES)])
    heading = f"{maps.counts(grid)}: {counted(_runs(grid), 'run')}" if grid.axes else counted(_runs(grid), "run")
    content = {
        "title": "Where should momentum stand? A report" if asked else f"Report: {heading}",
        "heading": heading,
        "style": _raw("page.css"),
        "paired": asked and {**vars(asked), "data": maps.json_of(asked.data), "script": _raw("paired.js")},
        "grid": shown,
        "incomplete": [
            f"{name}: {done:,} of {counted(total, 'run')}" for name, (done, total) in cells.items() if done < total
        ],
        "notes": [note.rstrip(".") for note in notes[:MOST_NOTES]],
        "more_notes": f"{len(notes) - MOST_NOTES:,}" if len(notes) > MOST_NOTES else "",
        "note_count": f"{len(notes):,}",
        "pictures": [p for p in pictures if not p.title.startswith(CURVES)],
        "settings": _settings(found, records) if asked else _settings_of(grid, records),
        "origin": _origin(_everything(grid), records),
        "files": files,
    }  # fmt: skip
    return _environment().get_template("page.html").render(content)


CURVES = "Curves: "  # how the title of a picture of them begins


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("varangian.study.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return made


def filled(template: str, **values: Any) -> str:
    """A page of its own, with our style."""
    return _environment().get_template(template).render(values, style=_raw("page.css"))


def script(name: str) -> str:
    """A script of ours, for a page of its own."""
    return _raw(name)


def _raw(name: str) -> str:
    """A file of ours, which the templates take as it is."""
    place = resources.files("varangian.study.report").joinpath("templates").joinpath(name)
    return place.read_text(encoding="utf-8")


def _everything(grid: Cells) -> list[Outcome]:
    return [o for cell in grid.cells.values() for o in cell.outcomes] + list(grid.references)


def _runs(grid: Cells) -> int:
    return len(_everything(grid))


# ---------------------------------------------------------------------------------------------------------- the grid


def _grid(grid: Cells, pictures: Sequence[Picture]) -> dict[str, Any]:
    """What grid.html asks for."""
    shown, no_room = maps.maps_of(grid)
    lines, no_line = maps.lines_of(grid)
    curves = maps.curves_of(grid)
    worst = maps.worst_maps(grid)
    scales = [(m, maps.scale_of(grid, m)) for m in grid.measures]
    partial = any(t.mark for m in shown for _, row in m.rows for t in row)
    others = [axis for axis in grid.axes[2:] if len(axis.values) > 1]
    return {
        "maps": shown,
        "worst": worst,
        "classes": maps.class_maps(grid),
        "class_note": BY_CLASS.note,
        "worst_by": " and by ".join(axis.title for axis in others),
        "map_title": " × ".join(axis.title for axis in grid.axes[:2]).capitalize(),
        "across": _across(shown),
        "worst_across": _across(worst),
        "measures": grid.measures,
        "others": others,
        "axes": grid.axes,
        "depend": [name.replace("_", " ") for name in maps.told_apart(grid)],
        "legends": [_legend(m, scale) for m, scale in scales],
        "levels": maps.LEVELS,
        "marks": "2/3: so many of the seeds, or of the attacks; †: a run ended early" if partial else "",
        "seed_words": f", of which there {'is one' if len(grid.seeds) == 1 else f'are {len(grid.seeds):,}'}",
        "worst_words": "The last column is the worst of the attacks." if grid.attack_column else "",
        "range_words": _range_words(grid),
        "lines": lines,
        "remarks": any(line.remarks for line in lines),
        "seeds": len(grid.seeds),
        "references": _references(grid),
        "apart": _apart(grid),
        "absent": maps.absent(grid),
        "notes": [*no_room, *no_line, *curves.left_out],
        "cards": _cards(grid),
        "curves": bool(curves.lines),
        "curve_words": "Loss" if maps.of_losses(grid) else "Accuracy",
        "pictures": pictures,
        "data": maps.json_of(maps.data(grid, curves)),
        "script": _raw("grid.js"),
    }


def _across(shown: Sequence[maps.Map]) -> int:
    """How many maps stand side by side on a wide screen."""
    widest = max((len(m.columns) + bool(m.last) for m in shown), default=1)
    alike = max((sum(m.measure == other.measure for m in shown) for other in shown[:1]), default=1)
    return min(alike, 3 if widest <= 3 else 2 if widest <= 6 else 1)


def _legend(measure: Measure, scale: maps.Scale) -> dict[str, str]:
    worst, best = (scale.low, scale.high) if scale.rising else (scale.high, scale.low)
    logarithmic = ", logarithmic" if scale.logarithmic else ""
    return {
        "key": measure.key,
        "title": f"{measure.title}{logarithmic}",
        "low": measure.text(worst),
        "high": measure.text(best),
    }


def _range_words(grid: Cells) -> str:
    first = grid.measures[0]
    values = [v for cell in grid.cells.values() for _, v in cell.values(first)]
    if not values:
        return ""
    ends = first.text(min(values)), first.text(max(values))
    return f"{first.title.removesuffix(', %')} from {ends[0]} at the left to {ends[1]} at the right"


def _cards(grid: Cells) -> list[tuple[str, str]]:
    """Headlines of a grid; the paper's question has its own."""
    there = sum(bool(cell.outcomes) for cell in grid.cells.values())
    total = there + len(grid.missing())
    found = [(f"{_runs(grid):,}", f"{'run' if _runs(grid) == 1 else 'runs'} that are complete")]
    if total > 1:
        found.append((f"{there:,} of {total:,}", "cells of the grid have a run"))
    full = sum(len(cell.outcomes) == len(grid.seeds) for cell in grid.cells.values())
    seeds = f"{counted(len(grid.seeds), 'seed')} ({_listed(grid.seeds)})"
    lacking = "" if full == there else f"; {there - full:,} cells have fewer"
    found.append((f"{len(grid.seeds):,}", f"{seeds[len(f'{len(grid.seeds):,}') + 1 :]}{lacking}"))
    if (best := maps.best_of_worst(grid)) is not None:
        first = grid.measures[0]
        unit = " %" if first.title.endswith("%") else ""
        places = "attacks" if len(grid.others) == 1 else "cells"
        apart = "; 1 rule that lacks cells is not asked" if best.apart == 1 else ""
        apart = f"; {best.apart} rules that lack cells are not asked" if best.apart > 1 else apart
        text = (
            f"{first.title.removesuffix(', %')} in the worst of {best.over} {places}: {best.rule}, under {best.attack}"
        )
        found.append((f"{first.text(best.value)}{unit}", f"the best {text}{apart}"))
    if SUCCESS in grid.measures and grid.axes:
        spreads = [(s.mean, grid.title(place)) for place, cell in grid.cells.items() if (s := cell.spread(SUCCESS))]
        most, where = max(spreads, key=lambda pair: pair[0])
        found.append((f"{SUCCESS.text(most)} %", f"the greatest attack success: {where}"))
    if not grid.axes:
        spread = next(iter(grid.cells.values())).spread
        known = [(m, s) for m in grid.measures if (s := spread(m)) is not None]
        found += [(f"{m.text(s.mean)}{maps.deviation(s, m)}", f"{m.title}: {m.note}") for m, s in known]
    return found


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{seeds[0]} to {seeds[-1]}"


def _references(grid: Cells) -> list[tuple[str, str, str, str]]:
    """Runs without attack that stand beside none: name, final and maximum accuracy, n."""
    if not grid.references:
        return []
    own = grid_of(grid.references)
    rows = []
    for place, cell in list(own.cells.items())[: maps.MAX_LISTED]:
        e = cell.outcomes[0].experiment
        name = f"{rule_title(rule_name(e))}, n = {e.workers}" + (f", {own.title(place)}" if place else "")
        texts = []
        for m in (FINAL, MAXIMUM):
            spread = cell.spread(m)
            texts.append("none" if spread is None else f"{m.text(spread.mean)}{maps.deviation(spread, m)}")
        rows.append((name, texts[0], texts[1], str(len(cell.outcomes))))
    return rows


def _apart(grid: Cells) -> list[tuple[str, str, str, str]]:
    """Attacks whose attackers do not all send the same: name, how far these are apart, the least and the greatest of
    the runs, and how many there are."""
    found: dict[str, list[float]] = {}
    for o in _everything(grid):
        if o.attackers_apart is not None:
            found.setdefault(attack_name(o.experiment), []).append(o.attackers_apart)
    shown = list(found.items())[: maps.MAX_LISTED]
    return [
        (attack_title(name), f"{median(values):.3g}", f"{min(values):.3g} to {max(values):.3g}", f"{len(values):,}")
        for name, values in shown
    ]


# --------------------------------------------------------------------------------------------------- settings, origin


def _settings(found: Sequence[Group], records: Sequence[SweepRecord]) -> dict[str, Any]:
    """A column a group of runs, a row a setting; then what computed them."""
    shown = found[:MOST]
    rows: dict[str, dict[int, str]] = {}
    for number, group in enumerate(shown):
        for name, value in group.settings:
            rows.setdefault(name, {})[number] = value
    lines = []
    for name, values in rows.items():
        cells = [values.get(number, "") for number in range(len(shown))]
        lines.append((name, cells[:1] if len(set(cells)) == 1 else cells))
    more = counted(len(found) - MOST, "more group") + " of runs" if len(found) > MOST else ""
    return {"heads": [g.title for g in shown], "rows": [*lines, *_computed(records)], "more": more}


def _settings_of(grid: Cells, records: Sequence[SweepRecord]) -> dict[str, Any]:
    return {"heads": [""], "rows": [*((n, [t]) for n, t in maps.settings(grid)), *_computed(records)], "more": ""}


def _computed(records: Sequence[SweepRecord]) -> list[tuple[str, list[str]]]:
    found = (
        ("run by", [f"{k} {v}" for r in records for k, v in r.versions.items()]),
        ("processor", [r.processor for r in records if r.processor]),
        ("date", [r.started for r in records if r.started]),
    )
    return [(name, [", ".join(dict.fromkeys(values)) or "not recorded beside these runs"]) for name, values in found]


def _origin(outcomes: Sequence[Outcome], records: Sequence[SweepRecord]) -> dict[str, Any]:
    timed = [r for r in records if r.done]
    text = ""
    if timed:
        total = sum(r.seconds for r in timed)
        last = timed[-1]
        text = (
            f"{counted(sum(r.done for r in timed), 'run')} in {total / 3600:.2f} h of sweeping (at a time "
            f"{last.jobs:,}, each of {counted(last.threads, 'thread')}, on {counted(last.cores, 'core')})."
        )
    stopped = [o for o in outcomes if o.stopped]
    ours = [o.experiment for o in outcomes if o.source == "varangian"]
    example = next((e for e in ours if e.attack), ours[0] if ours else None)
    of = ""
    if example is not None:
        of = rule_title(rule_name(example)) + (f" under {attack_title(example.attack)}" if example.attack else "")
    return {
        "commands": list(dict.fromkeys(r.command for r in records if r.command)),
        "timed": text,
        "stopped_count": counted(len(stopped), "run"),
        "stopped": [(o.experiment.name, o.stopped) for o in stopped[:20]],
        "more_stopped": len(stopped) - 20 if len(stopped) > 20 else 0,
        "redo": "" if example is None else command(example),
        "of": of,
    }
