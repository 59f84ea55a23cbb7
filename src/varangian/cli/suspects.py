"""The command suspects: whom suspicion names in runs that are kept, how right that is, and pictures of it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
from rich.table import Table

from ..core.suspects import THRESHOLD, WINDOW
from ..runs.results import read
from ..runs.running import check_writable
from ..study.suspects import HEADS, rows_of, table_of, write
from .runs import notices, output

LEFT_OUT = 10  # lines on runs that are left out
WORKERS = 60  # lines of one run's table


@click.command("suspects")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--threshold", type=float, default=THRESHOLD, show_default=True, metavar="NUMBER", help="suspicion that names, to 1"
)
@click.option(
    "--window",
    type=int,
    default=WINDOW,
    show_default=True,
    metavar="STEPS",
    help="over how many of a worker's last steps",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="folder of a page, pictures and tables  [none]"
)
@click.option("--json", "as_json", is_flag=True, help="print a row a run as JSON")
def suspects_command(folders: tuple[Path, ...], threshold: float, window: int, out: Path | None, as_json: bool) -> None:
    """Whom suspicion names in runs that are kept, and, since a simulation knows who attacks, how rightly.

    \b
    Example: varangian suspects runs/digits-fully-connected-... --out suspects
    FOLDERS are runs, or hold runs, as sweeps do. Of one run there is a table of its workers, of several a line for each
    rule and attack. --out writes suspects.html, suspects.csv, and pictures of workers over steps.
    """
    if out is not None:
        check_writable(out)
    say = None if as_json or not notices.is_terminal else lambda text: notices.print(text, highlight=False)
    rows, left_out = rows_of(folders, threshold=threshold, window=window, say=say)
    for line in left_out[:LEFT_OUT]:
        notices.print(f"left out: {line}", highlight=False, markup=False, soft_wrap=True)
    if len(left_out) > LEFT_OUT:
        notices.print(f"and {len(left_out) - LEFT_OUT:,} more are left out.", highlight=False)
    page = None
    if out is not None:
        command = shlex.join(["varangian", *sys.argv[1:]])
        page = write(rows, out, threshold=threshold, window=window, left_out=left_out, command=command)
    if as_json:
        click.echo(json.dumps([row.as_dict() for row in rows]))
        return
    if len(rows) == 1:
        lines = str(read(rows[0].folder).workers()).splitlines()
        click.echo("\n".join(lines[: WORKERS + 2]))
        if len(lines) > WORKERS + 2:
            click.echo(f"and {len(lines) - WORKERS - 2:,} more.")
        click.echo(rows[0].line)
    else:
        for title, cells in table_of(rows):
            table = Table(title=title or None, title_justify="left", box=None, padding=(0, 2, 0, 0))
            for number, head in enumerate(HEADS):
                table.add_column(head, justify="left" if number < 2 else "right", no_wrap=number < 2)
            for row in cells:
                table.add_row(*row)
            output.print(table)
    if page is not None:
        output.print(
            f"Page: {page}\nPictures: {page.parent / 'figures'}", highlight=False, soft_wrap=True, markup=False
        )
