"""The command score: the score card of a rule, a mixing or an attack; and of all that there are."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..core.checks import shown
from ..core.specs import split
from ..runs.interrupts import termination_interrupts
from ..runs.running import check_writable

if TYPE_CHECKING:  # the cards are imported when the command is called
    from ..study.score import Card

output = Console()
notices = Console(stderr=True)


class _Time(click.ParamType):
    """90, 90s, 5m: seconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"([0-9]{1,6})\s*([sm]?)", str(value))
        if match is None or not int(match[1]):
            self.fail(f"{shown(value)} is not a time such as 90s or 5m.", param, ctx)
        return float(match[1]) * (60 if match[2] == "m" else 1)


@click.command("score")
@click.argument("name", required=False)
@click.option("--pre", metavar="MIXINGS", help="mixings before a rule, comma-separated")
@click.option("--behind", metavar="RULE", help="the rule behind a mixing  [median]")
@click.option(
    "--kind", type=click.Choice(["rule", "mixing", "attack"]), help="which, where a name is of several, as bulyan is"
)
@click.option("--quick", is_flag=True, help="five attacks and one seed: a first look, not ranked")
@click.option("--json", "as_json", is_flag=True, help="print the card as JSON")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="also keep the card in this folder")
@click.option(
    "--all", "everything", is_flag=True, help="all built-in rules, usual compositions and attacks, into --out"
)
@click.option("--jobs", type=click.IntRange(1, 1000), help="processes of --all  [one a core]")
@click.option("--budget", type=_Time(), help="no training is begun after so long  [4m; of --all 20m]")
@click.pass_context
def score_command(
    context: click.Context,
    name: str | None,
    pre: str | None,
    behind: str | None,
    kind: str | None,
    quick: bool,
    as_json: bool,
    out: Path | None,
    everything: bool,
    jobs: int | None,
    budget: float | None,
) -> None:
    """Is it any good? One page on a rule, a mixing or an attack: ours by name, or yours.

    \b
    Example: varangian score my_rule.py:MyRule
             varangian score krum --pre nnm
             varangian score bulyan --kind attack --json
             varangian score --all --out results/scorecard
    NAME is path/to/file.py:Name or package.module:Name, with options in parentheses, or a name of varangian list.
    What it measures: the contract, how many attackers undo it, kappa, accuracy under every attack on digits, what
    protection costs, time and memory, and its place among what is built in. docs/howto/score.md says how to read it.
    """
    if everything:
        _refuse({"NAME": name, "--pre": pre, "--behind": behind, "--kind": kind}, "--all scores everything")
        if out is None:
            raise click.UsageError("--all needs --out DIR, where the cards are kept.", context)
        context.exit(_all(out.expanduser(), jobs, quick, 1200.0 if budget is None else budget, as_json))
    if name is None:
        raise click.UsageError("needs a NAME, such as krum or my_rule.py:MyRule; or --all.", context)
    _refuse({"--jobs": jobs}, "--jobs is of --all")
    _one(name, pre, behind, kind, quick, budget, out, as_json)


def _refuse(said: dict[str, object], why: str) -> None:
    if given := [option for option, value in said.items() if value is not None]:
        raise click.UsageError(f"{why}: leave {', '.join(given)} out.")


def _one(
    name: str, pre: str | None, behind: str | None, kind: str | None, quick: bool, budget: float | None,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from ..study import score as cards
    from ..study.score.folder import read_cards, write_card
    from ..study.score.text import text

    if out is not None:
        check_writable(out := out.expanduser())
    mixings = split(pre) if pre else []
    subject = cards.subject_of(name, pre=mixings, behind=behind, kind=kind)  # type: ignore[arg-type]
    try:
        with termination_interrupts(), _bar(subject.name) as progress:
            card = cards.score(subject, quick=quick, budget=budget or cards.BUDGET, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("a card is whole or not there: nothing is kept.") from None
    if as_json:
        output.print(card.to_json(), end="", markup=False, highlight=False, soft_wrap=True, emoji=False)
    else:
        output.print(text(card, cards.stored()), markup=False, highlight=False, soft_wrap=True, emoji=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = write_card(card, out)
        page = _pages(card, path.parent, read_cards(out), out)
        notices.print(f"Card: {path}\nPage: {page}", markup=False, highlight=False, soft_wrap=True)


def _pages(card: Card, folder: Path, cards: Sequence[Card], out: Path) -> Path:
    """The page of a card, and where the folder holds others, the page of all."""
    from ..study.score import stored
    from ..study.score.pages import page_of, write_index, write_page

    if len(cards) == 1:
        return write_page(card, folder, cards=stored(), command=_said())
    write_index(cards, out, among=stored())
    return folder / page_of(card)


def _said() -> str:
    return shlex.join(["varangian", *sys.argv[1:]])


@contextmanager
def _bar(name: str) -> Iterator[Callable[[str, int, int], object]]:
    columns = (
        TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.percentage:>3.0f} %, left"),
        TimeRemainingColumn(), TextColumn("so far"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=notices, transient=True) as bar:
        task = bar.add_task(name, total=None)

        def progress(what: str, done: int, total: int) -> None:
            said = f"{name}: {what}" if what else name
            bar.update(task, description=said, completed=done, total=total)

        yield progress


def _all(out: Path, jobs: int | None, quick: bool, budget: float, as_json: bool) -> int:
    from ..study import score as cards
    from ..study.score.folder import score_all
    from ..study.score.pages import write_index
    from ..study.score.text import ranking

    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    subjects = cards.usual()
    failed: list[str] = []
    jobs = jobs or os.cpu_count() or 1
    began, before = time.monotonic(), list[str]()

    def told(subject: cards.Subject, card: cards.Card | str, done: int, total: int) -> None:
        name = f"attack {subject.name}" if subject.kind == "attack" else subject.name
        said = card if isinstance(card, str) else f"{card.cost.seconds:.0f} s, {card.verdict[0]}"
        if isinstance(card, str):
            failed.append(name)
        before.append(name)
        left = (time.monotonic() - began) / len(before) * (total - done) / 60
        notices.print(
            f"{done}/{total}, about {left:.0f} min left; {name}: {said}", markup=False, highlight=False, soft_wrap=True
        )

    try:
        with termination_interrupts():
            found = score_all(subjects, out, jobs=jobs, quick=quick, budget=budget, told=told)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what is done is in {out}; the same command goes on.") from None
    if found:
        page = write_index(found, out, command=_said())
        notices.print(f"Page: {page}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        output.print(cards.text_of(found), end="", markup=False, highlight=False, soft_wrap=True, emoji=False)
    else:
        output.print(ranking(found), markup=False, highlight=False, soft_wrap=True, emoji=False)
    return 1 if failed else 0
