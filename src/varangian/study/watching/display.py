"""A view in a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..sweep.display import duration
from .seen import RunSeen, View

BLOCKS = "▁▂▃▄▅▆▇█"
COLOURS = {"running": "green", "quiet": "yellow", "complete": "", "stopped": "red", "unreadable": "red"}
REASONS = 3  # runs that cannot be read of which it is told why, below the table
LONG = {"running": "running", "quiet": "quiet", "complete": "complete", "stopped": "stopped", "unreadable": "unread"}


def lines_of(view: View) -> list[str]:
    """What is to be said of all of it, in plain lines: the first of how far it has come."""
    counts = view.counts
    if not counts and not view.sweeps:
        return [f"no run in {view.folder} yet"]
    done = counts.get("complete", 0) + counts.get("stopped", 0)
    parts = [f"{done:,} of {view.expected:,} complete"]
    parts += [f"{counts[name]:,} {name}" for name in ("running", "quiet", "stopped", "unreadable") if name in counts]
    active = [sweep for sweep in view.sweeps if sweep.state == "running"]
    failed = sum(sweep.failed for sweep in active or view.sweeps[-1:])
    parts += [f"{failed:,} failed"] if failed else []
    parts += [f"ends in {duration(view.left)}"] if view.left else []
    said = [", ".join(parts)]
    said += [f"failed: {line}" for sweep in active or view.sweeps[-1:] for line in sweep.failures[-3:]]
    return said + list(view.notes)


def reasons_of(view: View) -> list[str]:
    """Why runs cannot be read, a line each, of the first of them."""
    unread = [run for run in view.runs if run.state == "unreadable"]
    more = [f"and {len(unread) - REASONS:,} more that cannot be read"] if len(unread) > REASONS else []
    return [f"{run.name}: {run.why}" for run in unread[:REASONS]] + more


def waited_for(view: View) -> list[str]:
    """What whoever follows a folder waits for, where nothing is under way there, in a line."""
    if view.over or "running" in view.counts or any(sweep.state == "running" for sweep in view.sweeps):
        return []
    quiet = view.counts.get("quiet", 0)
    what = f"{quiet:,} quiet {'run' if quiet == 1 else 'runs'} to go on" if quiet else "a run to begin there"
    return [f"waiting for {what}; Ctrl-C ends"]


def shown(view: View, width: int, rows: int) -> Group:
    """A table of at most so many runs below the lines of all; of a single run all that is known."""
    lines = [Text(line, style="bold" if i == 0 else "red", overflow="fold") for i, line in enumerate(lines_of(view))]
    if len(view.runs) == 1 and view.folder == view.runs[0].folder:
        return Group(*_single(view.runs[0], width))
    if not view.runs:
        return Group(*lines)
    told = view.runs[: max(1, rows)]
    lead, names = _apart([run.name for run in view.runs])
    names = names[: len(told)]
    wide = width >= 90
    columns: list[tuple[str, Literal["left", "right"], list[Text]]] = [
        ("state", "left", [Text(LONG[run.state], style=COLOURS[run.state]) for run in told]),
        ("step", "right", [Text(_step(run)) for run in told]),
        ("accuracy", "right", [Text(_accuracy(run)) for run in told]),
        *([("", "left", [Text(sparkline(run.curve, 12)) for run in told])] if wide else []),
        ("time", "right", [Text(_time(run)) for run in told]),
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    rest = width
    for heading, justify, cells in columns:
        broad = max(len(heading), *map(len, cells))
        rest -= broad + 2
        table.add_column(heading, justify=justify, min_width=broad, no_wrap=True)
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    names = [_cropped(name, max(8, rest - 2)) for name in names]
    for row in zip(*(cells for *_, cells in columns), map(Text, names), strict=True):
        table.add_row(*row)
    more = len(view.runs) - len(told)
    others = [Text(f"and {more:,} more", style="dim")] if more else []
    said = [Text(f"all {lead}-...", style="dim", overflow="ellipsis", no_wrap=True)] if lead else []
    reasons = [Text(line, style="red", overflow="fold") for line in reasons_of(view)]
    return Group(*lines, *said, table, *others, *reasons)


def _single(run: RunSeen, width: int) -> list[Text | Table]:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    share = run.step / run.steps if run.steps else 0.0
    bar = round(20 * share)
    table.add_row("state", Text(LONG[run.state], style=COLOURS[run.state] or "green"))
    table.add_row("steps", f"{'█' * bar}{'░' * (20 - bar)} {run.step:,} of {run.steps:,}")
    if run.accuracy is not None:
        table.add_row("accuracy", f"{run.accuracy:.2%} now, {run.best or 0:.2%} at best")
        table.add_row("", sparkline(run.curve, max(10, min(60, width - 12))))
    if run.loss is not None:
        table.add_row("loss", f"{run.loss:.4g} on the test set")
    if run.rate is not None:
        table.add_row("speed", f"{run.rate:.3g} steps/s")
    time = _time(run)
    if time:
        table.add_row("time", time)
    if run.why is not None:
        table.add_row("why", Text(run.why, style="red"))
    return [Text(run.name, style="bold", overflow="fold"), table]


def _step(run: RunSeen) -> str:
    return f"{run.step:,}/{run.steps:,}" if run.steps else ""


def _accuracy(run: RunSeen) -> str:
    if run.accuracy is not None:
        return f"{run.accuracy:.1%}"
    return "" if run.loss is None else f"loss {run.loss:.3g}"


def _time(run: RunSeen) -> str:
    """How long it still takes, took, or is silent."""
    if run.state in ("complete", "stopped"):
        return "" if run.seconds is None else duration(run.seconds)
    if run.state == "running":
        return "" if run.left is None else f"{duration(run.left)} left"
    return "" if run.age is None else f"{duration(run.age)} ago"


def sparkline(shares: Sequence[float], width: int) -> str:
    """Shares from 0 to 1 as blocks, of many so many that are as far apart, the first and the last among them.

    Example:
        >>> sparkline([0.1, 0.4, 0.8], 8), sparkline([0.0] * 50 + [1.0] * 50, 4)
        ('▁▄▇', '▁▁██')
    """
    number = min(len(shares), width)
    places = [i * (len(shares) - 1) // max(1, number - 1) for i in range(number)]
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, int(shares[i] * len(BLOCKS))))] for i in places)


def _cropped(name: str, width: int) -> str:
    """The beginning and the end, where names differ: what is learned and how, and the seed."""
    if len(name) <= width:
        return name
    end = min(width // 2, 12)
    return f"{name[: width - end - 1]}…{name[-end:]}"


def _apart(names: Sequence[str]) -> tuple[str, list[str]]:
    """What all names begin with, up to a hyphen; and each without that, and without numbers that are those of all:
    n11, lr0.1 ... and the digest."""
    if len(names) < 2:
        return "", list(names)
    parts = [re.sub(r"-[0-9a-f]{10}$", "", name).split("-") for name in names]
    alike = {part for part in parts[0] if re.fullmatch(r"[a-z]+[0-9.]+", part)}.intersection(*parts)
    first, last = min(parts), max(parts)
    lead = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), 0)
    short = ["-".join(part for part in found[lead:] if part not in alike) for found in parts]
    if len(set(short)) < len(names) or not all(short):
        return "", list(names)
    return "-".join(first[:lead]), short
