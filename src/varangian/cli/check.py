"""The command check: the conformance suite, for a rule, a mixing or an attack of anybody's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from ..core.attacks import ATTACKS, Attack
from ..core.checks import shown
from ..core.mixing import MIXINGS, Mixing
from ..core.references import importing
from ..core.rules import RULES, Rule
from ..core.specs import find, make, parse
from ..testing import Check, ContractError, check_attack, check_mixing, check_rule

# kind: (what its things derive from, the table of their names, what checks them)
KINDS: dict[str, tuple[type, Mapping[str, Callable[..., Any]], Callable[..., Any]]] = {
    "rule": (Rule, RULES, check_rule),
    "mixing": (Mixing, MIXINGS, check_mixing),
    "attack": (Attack, ATTACKS, check_attack),
}


@click.command("check")
@click.argument("name")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice([check.name for check in Check], case_sensitive=False),
    metavar="POINT",
    help="a point of the contract that is not claimed; may be given several times",
)
@click.pass_context
def check_command(context: click.Context, name: str, without: tuple[str, ...]) -> None:
    """Whether a rule, a mixing or an attack keeps its contract: a table of its points.

    \b
    Example: varangian check my_rule.py:MyRule
             varangian check "my_rule.py:MyRule(m=3)" --without permutation
    NAME is path/to/file.py:Name or package.module:Name, with options in parentheses, or a name of varangian list.
    Exit status 1 where a point does not hold.
    """
    points, failed = [Check[point.upper()] for point in without], False
    with importing(True):
        subjects = _subjects(name)
    for check, subject in subjects:
        try:
            click.echo(str(check(subject, points)))
        except ContractError as error:
            click.echo(str(error))
            failed = True
    context.exit(1 if failed else 0)


def _subjects(text: str) -> list[tuple[Callable[..., Any], Any]]:
    """What is checked, and what checks it: a name may be of a rule and of an attack."""
    found: list[tuple[Callable[..., Any], Any]] = []
    faults: list[str] = []
    for kind, (base, table, check) in KINDS.items():
        try:
            name, options = parse(kind, text, table)
        except ValueError as error:
            faults.append(str(error))
            continue
        maker: Any = find(kind, name, table)
        if not options and isinstance(maker, type) and issubclass(maker, base):
            found.append((check, maker))
        elif not isinstance(maker, type) or issubclass(maker, base):
            made = _family(kind, text, table)
            if isinstance(made(1) if kind != "attack" else made(), base):
                found.append((check, made))
    if not found and len(faults) < len(KINDS):
        raise ValueError(f"{shown(text)} is no rule, no mixing and no attack, which derive from a class of each.")
    if not found:
        raise ValueError(faults[0].replace("unknown rule", "unknown rule, mixing or attack"))
    return found


def _family(kind: str, text: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Of f, for rules and mixings; with the text for its name."""

    def made(*f: int) -> Any:
        return make(kind, text, table, **dict(zip(("f",), f, strict=False)))

    made.__name__ = text
    return made
