"""The command doctor."""

from __future__ import annotations

import json
import sys

import click

from ..core.checks import printable
from ..runs.doctor import doctor


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def doctor_command(as_json: bool) -> None:
    """What a bug report should hold: versions, machine, caches, data, extras, and a self-test of some seconds.

    It names no user and no machine, and downloads nothing. The exit status is 1 where something is broken.

    \b
    Example: varangian doctor > report.txt
    """
    found = doctor()
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        click.echo("\n".join(map(printable, str(found).splitlines())))
    sys.exit(0 if found.sound else 1)
