"""The command advise: what to use against f of n workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ..runs.files import write_whole
from ..study.advice import advise
from ..study.score.folder import CARDS, read_cards


@click.command("advise")
@click.option("--workers", help="n, honest and Byzantine  [15]", metavar="N", default="15")
@click.option("--byzantine", help="f, how many of them may lie at once", metavar="F")
@click.option("--partition", default="iid", show_default=True, help="how data is dealt to honest workers")
@click.option("--dataset", default="digits", show_default=True, help="what to learn")
@click.option("--model", default="fully-connected", show_default=True, help="what learns it")
@click.option("--batch-size", default="83", show_default=True, help="training points per worker and step")
@click.option(
    "--rule", "rules", multiple=True, metavar="RULE",
    help="a rule of your own to look at too, mixings before it; may be given several times: nnm,my_rule.py:MyRule",
)  # fmt: skip
@click.option(
    "--cards",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="score cards beside those of the package, as of your rules: what varangian score --out DIR left",
)
@click.option(
    "--grid", type=click.Path(dir_okay=False, path_type=Path),
    help="write a grid that compares those to try first, for varangian sweep",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def advise_command(
    workers: str, byzantine: str | None, partition: str, dataset: str, model: str, batch_size: str,
    rules: tuple[str, ...], cards: Path | None, grid: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Which rules n and f allow, what a wrong f costs, where momentum should stand, and what to try. Trains nothing.

    \b
    Example: varangian advise --workers 51 --byzantine 12
             varangian advise --workers 51 --byzantine 12 --partition "dirichlet(alpha=0.1)" --grid try.toml
    """
    if grid is not None and not grid.absolute().parent.is_dir():
        raise ValueError(f"--grid {grid}: there is no folder {grid.parent}.")
    mine = [] if cards is None else read_cards(cards)
    if cards is not None and not mine:
        raise ValueError(f"--cards {cards}: there are no score cards in {cards / CARDS}; see varangian score --out.")
    found = advise(
        workers,
        byzantine,
        partition=partition,
        dataset=dataset,
        model=model,
        batch_size=batch_size,
        rules=rules,
        cards=mine,
    )
    if grid is not None:
        text = found.grid().to_toml()
        write_whole(grid, lambda file: file.write(text.encode()))
    click.echo(found.to_json() if as_json else found.text(min(shutil.get_terminal_size().columns, 100)))
    if grid is not None:
        click.echo(f"grid in {grid}; now: varangian sweep {grid}", err=True)
