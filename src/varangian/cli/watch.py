"""varangian watch: follows runs and sweeps in the terminal."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..study.watching import Watcher
from ..study.watching.display import lines_of, reasons_of, shown, waited_for
from ..study.watching.seen import to_json

console = Console()
ELSEWHERE = 10.0  # seconds between two lines where there is no terminal
ROWS = 20  # runs that are told where there is no terminal that says how many fit


@click.command("watch")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--once", is_flag=True, help="say how it is now, and end")
@click.option("--json", "as_json", is_flag=True, help="as JSON, a line each time; with --once one object")
@click.option("--rows", type=click.IntRange(1), help="runs to show at most  [as many as fit; elsewhere 20]")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 86_400),
    metavar="SECONDS",
    help="time between two looks  [1; without a terminal 10]",
)
@click.pass_context
def watch_command(
    context: click.Context, folder: Path, once: bool, as_json: bool, rows: int | None, interval: float | None
) -> None:
    """Follow the runs in a folder, of a sweep or single ones, in the terminal.

    \b
    Example: varangian watch runs
             varangian watch study --once
    Only reads, so that it may be started and ended at any time, also by others and on other machines that see the
    folder. Ends when all is complete or cannot be read, or with Ctrl-C. A run is quiet when it is not complete and no
    process of this machine is at it: it was interrupted, and the command that began it goes on with it, or it is
    computed elsewhere.
    """
    watcher = Watcher(folder)
    if once:
        view = watcher.look()
        if as_json:
            click.echo(to_json(view))
        else:
            console.print(shown(view, console.width, rows or ROWS), soft_wrap=False)
        return
    try:
        if as_json or not console.is_terminal:
            _tell(watcher, as_json, interval or ELSEWHERE)
        else:
            _show(watcher, rows, interval or 1.0)
    except KeyboardInterrupt:
        context.exit(0)


def _show(watcher: Watcher, rows: int | None, interval: float) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            view = watcher.look()
            told, waits = reasons_of(view), [Text(line, style="dim", overflow="fold") for line in waited_for(view)]
            seen = shown(view, console.width, rows or max(1, console.height - 6 - len(told) - len(waits)))
            live.update(Group(seen, *waits), refresh=True)
            if view.over:
                return
            time.sleep(interval)


def _tell(watcher: Watcher, as_json: bool, interval: float) -> None:
    """A line where something has changed."""
    said = ""
    while True:
        view = watcher.look()
        text = to_json(view) if as_json else "\n".join(lines_of(view))
        if text != said:
            click.echo("\n".join([said := text, *([] if as_json else reasons_of(view) + waited_for(view))]))
        if view.over:
            return
        time.sleep(interval)
