"""The command data: who holds what in a run, and G and B of the honest gradients."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from rich.table import Table
from rich.text import Text

from ..runs.holdings import Heterogeneity, When, heterogeneity
from ..runs.interrupts import termination_interrupts
from ..runs.running import check_writable
from ..study.report.holdings import describe, gradients_told, report_holdings
from .runs import experiment_of, knobs, output, progress_of, set_threads

ROWS = 60  # workers in the terminal
ACROSS = 12  # columns there: of more, what a worker has most of
MOST = 3


@click.command("data")
@knobs
@click.option(
    "--gradients",
    type=click.Choice(["no", "start", "run"]),
    default="start",
    show_default=True,
    help="where those of the honest workers are measured: nowhere, at the start, or along the run, which is trained",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="measure gradients on at most so many examples of each worker  [all]",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON or TOML file of settings; options override it.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("holdings"),
    show_default=True,
    help="folder of the page, its pictures and tables",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="folder of data files  [$VARANGIAN_DATA or the user's data folder]"
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [all cores]")
@click.option("--json", "as_json", is_flag=True, help="print what was found as JSON")
@click.option("--quiet", is_flag=True, help="no progress bar")
def data_command(
    gradients: str, examples: int | None, config: Path | None, out: Path, data: Path | None, threads: int | None,
    as_json: bool, quiet: bool, **settings: Any,
) -> None:  # fmt: skip
    """Who holds which data in a run, and how far apart that puts the gradients of honest workers: G and B.

    \b
    Example: varangian data --partition "dirichlet(alpha=0.1)"
             varangian data --partition extreme --gradients run --steps 100 --evaluate-every 10
    Settings are those of varangian run. (1/h) sum ||g_i - mean||^2 <= G^2 + B^2 ||mean||^2, where g_i is the gradient
    of the loss of worker i on all its data. Names of partitions: varangian list partitions.
    """
    experiment = experiment_of(config, settings)
    check_writable(out)
    set_threads(threads)
    training = gradients == "run"
    with termination_interrupts(), progress_of(experiment, quiet) if training else nullcontext() as step:
        try:
            found = heterogeneity(
                experiment, gradients=cast(When, gradients), examples=examples, data_folder=data, progress=step
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written.") from None
    page = report_holdings(found, out, shlex.join(["varangian", *sys.argv[1:]]))
    if as_json:
        click.echo(json.dumps(_values(found) | {"page": str(page)}))
        return
    output.print(Text(describe(found)), soft_wrap=True)
    output.print(_table(found))
    for line in gradients_told(found):
        output.print(Text(line))
    output.print(f"page in {page}", soft_wrap=True, highlight=False, markup=False)


def _table(found: Heterogeneity) -> Table:
    """A row a worker: amounts of each class where there are few, else those that it has most of."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", row_styles=["", "dim"])
    table.add_column(found.who, justify="right")
    table.add_column("examples", justify="right")
    few = len(found.columns) <= ACROSS
    if few:
        for name in found.columns:
            table.add_column(name, justify="right")
    else:
        table.add_column("of how many", justify="right")
        table.add_column(f"most of {found.what}")
    for worker, (size, counts) in enumerate(zip(found.sizes[:ROWS].tolist(), found.counts[:ROWS], strict=True)):
        name = f"{worker} (Byzantine)" if found.attacks[worker] else f"{worker}"
        if few:
            amounts = [f"{v:,}" if v else "·" for v in counts.tolist()]
        else:
            first = [i for i in np.argsort(-counts, kind="stable")[:MOST].tolist() if counts[i]]
            amounts = [str(int((counts > 0).sum())), ", ".join(f"{found.columns[i]}: {counts[i]:,}" for i in first)]
        table.add_row(name, f"{size:,}", *amounts)
    if len(found.sizes) > ROWS:
        table.add_row("…", f"and {len(found.sizes) - ROWS:,} more {found.who}s")
    return table


def _values(found: Heterogeneity) -> dict[str, Any]:
    """For a program: NaN and infinity, which JSON has not, as null."""
    numbers = [{key: v if np.isfinite(v) else None for key, v in asdict(p).items()} for p in found.points]
    fit = found.fit
    return {
        "experiment": found.experiment.to_dict(),
        "honest": found.honest,
        "byzantine": np.flatnonzero(found.attacks).tolist(),
        "held": found.held,
        "total": found.total,
        "columns": list(found.columns),
        "what": found.what,
        "examples": found.sizes.tolist(),
        "counts": found.counts.tolist(),
        "points": numbers,
        "sampled": found.sampled,
        "G": None if fit is None else fit.G,
        "B": None if fit is None else fit.B,
        "G_above": None if fit is None else fit.G_above,
        "stopped": found.stopped,
    }
