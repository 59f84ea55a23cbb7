"""The command list: what there is, read from the source without importing it, which would take seconds.

Of what installed packages offer their own records tell; only what is asked for by name is imported.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core import references
from ..core.checks import UNSAID, unknown

# kind: (where its table of names is written, where what it names is)
KINDS = {
    "rules": ("RULES", "core/rules/*.py"),
    "mixings": ("MIXINGS", "core/mixing.py"),
    "attacks": ("ATTACKS", "core/attacks/*.py"),
    "datasets": ("DATASETS", "simulation/data/*.py"),
    "models": ("MODELS", "simulation/models.py"),
    "partitions": ("PARTITIONS", "simulation/data/*.py"),
    "losses": ("LOSSES", "simulation/losses.py"),
    "metrics": ("METRICS", "simulation/scores.py"),
    "knowledge": ("KNOWLEDGE", "core/attacks/*.py"),
}


@dataclass(frozen=True)
class Entry:
    """Something with a name: its whole description, its options, and whether a run can use it."""

    text: str
    options: tuple[str, ...]
    in_runs: bool = True

    @property
    def summary(self) -> str:
        """The first sentence."""
        return " ".join(self.text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


@lru_cache(maxsize=1)
def catalogue() -> dict[str, dict[str, Entry]]:
    """kind -> name -> what the source says of it, in the order of the tables."""
    root = Path(__file__).parents[1]
    found: dict[str, dict[str, Entry]] = {}
    for kind, (table, pattern) in KINDS.items():
        bodies = [ast.parse(path.read_text("utf-8")).body for path in sorted(root.glob(pattern))]
        nodes = [node for body in bodies for node in body]
        defined = {node.name: node for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        [names] = [
            node.value
            for node in nodes
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table
        ]
        assert isinstance(names, ast.Dict)
        found[kind] = {
            str(key.value): _entry(defined[value.id])
            for key, value in zip(names.keys, names.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(value, ast.Name)
        }
    return found


def _entry(node: ast.ClassDef | ast.FunctionDef) -> Entry:
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        given = node.args.args[len(node.args.args) - len(node.args.defaults) :]  # those with a default are the last
        pairs = zip(given, node.args.defaults, strict=True)
        return Entry(text, tuple(f"{argument.arg}={ast.unparse(default)}" for argument, default in pairs))
    options, in_runs = [], True
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" not in ast.unparse(item.annotation):
                default = "" if item.value is None else ast.unparse(item.value)
                options.append(item.target.id + (f"={default}" if default not in ("", "UNSAID") else ""))
            elif item.target.id == "needs_root":
                in_runs = False
    return Entry(text, tuple(options), in_runs)


def offered(kind: str, ours: Container[str]) -> Iterator[tuple[str, str]]:
    """What installed packages offer: each name, and what is said of it."""
    for name, points in references.offered(kind.removesuffix("s")).items():
        whence = " and ".join(f"{references.package_of(point)} ({point.value})" for point in points)
        if name in ours:
            yield f"{name} ", f"not used, since the name is taken: offered by {whence}"
        else:
            clash = "" if len(points) == 1 else "CANNOT BE USED until all but one package are removed: "
            yield name, f"{clash}offered by {whence}"


def imported(kind: str, name: str) -> Entry:
    """Something of somebody's own, which is imported."""
    with references.importing(True):
        found = references.find(kind, name)
    try:
        given = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # an object, or what is built in
        given = []
    options = tuple(p.name + ("" if p.default in (p.empty, UNSAID) else f"={p.default!r}") for p in given)
    return Entry(inspect.getdoc(found) or "", options)


@click.command("list")
@click.argument("what", required=False, metavar="[KIND|NAME]")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def list_command(what: str | None, as_json: bool) -> None:
    """What there is: rules, mixings, attacks, datasets, models, partitions, losses, metrics, and what attackers know.

    \b
    Example: varangian list rules
             varangian list multi-krum           its definition, options and source
             varangian list my_rule.py:MyRule    those of a class of your own
    """
    found = catalogue()
    kinds = [what] if what in found else list(found)
    if what is not None and what not in found:
        named = {kind: entries[what] for kind, entries in found.items() if what in entries}
        if not named and references.is_reference(what):
            named = {"references": imported("reference", what)}
        elif not named:
            named = {k: imported(k[:-1], what) for k in found if what in references.offered(k[:-1])}
        if not named:
            names = [*found, *dict.fromkeys(name for k in found for name in (*found[k], *references.offered(k[:-1])))]
            raise click.UsageError(unknown("kind or name", what, names), click.get_current_context())
        if as_json:
            click.echo(json.dumps({k: {"text": e.text, "options": e.options} for k, e in named.items()}))
            return
        for kind, entry in named.items():
            options = f"\n\nOptions: {', '.join(entry.options)}" if entry.options else ""
            click.echo(f"{what}, of the {kind}: {entry.text}{options}\n")
        return
    shown = {k: {name: e.summary for name, e in found[k].items() if e.in_runs} for k in kinds}
    for kind in kinds:
        shown[kind] |= dict(offered(kind, found[kind]))
    if as_json:
        click.echo(json.dumps(shown))
        return
    for kind, entries in shown.items():
        table = Table(
            title=kind, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 2)
        )
        table.add_column(no_wrap=True, style="cyan")
        table.add_column()
        for name, text in entries.items():
            table.add_row(name, text)
        Console().print(table, Text())
