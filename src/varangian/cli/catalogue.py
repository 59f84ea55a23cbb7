"""The command list: what there is, read from the source without importing it, which would take seconds."""

from __future__ import annotations

import ast
import inspect
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.checks import unknown

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


@click.command("list")
@click.argument("what", required=False, metavar="[KIND|NAME]")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def list_command(what: str | None, as_json: bool) -> None:
    """What there is: rules, mixings, attacks, datasets, models, partitions, losses, metrics.

    \b
    Example: varangian list rules
             varangian list multi-krum     its definition, options and source
    """
    found = catalogue()
    kinds = [what] if what in found else list(found)
    if what is not None and what not in found:
        named = {kind: entries[what] for kind, entries in found.items() if what in entries}
        if not named:
            names = [*found, *dict.fromkeys(name for entries in found.values() for name in entries)]
            raise click.UsageError(unknown("kind or name", what, names), click.get_current_context())
        if as_json:
            click.echo(json.dumps({k: {"text": e.text, "options": e.options} for k, e in named.items()}))
            return
        for kind, entry in named.items():
            options = f"\n\nOptions: {', '.join(entry.options)}" if entry.options else ""
            click.echo(f"{what}, of the {kind}: {entry.text}{options}\n")
        return
    shown = {k: {name: e.summary for name, e in found[k].items() if e.in_runs} for k in kinds}
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
