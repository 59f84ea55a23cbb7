"""Writes what `deprecation.md` promises to keep: names with their arguments, text, settings, commands.

    python docs/project/promised.py >tests/golden/promised.json

At a release; until the next one `tests/test_promises.py` fails where something of it is gone.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from enum import Enum
from importlib import import_module

import click

import varangian as vg
from varangian import cli

ENGINES = ("varangian.engines.ddp", "varangian.engines.fsdp", "varangian.engines.flower")
TABLES = ("RULES", "MIXINGS", "ATTACKS", "DATASETS", "MODELS", "PARTITIONS", "LOSSES", "METRICS")


def arguments(value: object) -> list[str]:
    """Of a function, or of a class where it is made, as in its signature: what follows "*" by name alone."""
    if inspect.isfunction(value):
        parameters = list(inspect.signature(value).parameters.values())
    elif isinstance(value, type) and inspect.isfunction(value.__init__) and not issubclass(value, Enum):
        parameters = list(inspect.signature(value.__init__).parameters.values())[1:]
    else:
        return []
    parameters = [parameter for parameter in parameters if not parameter.name.startswith("_")]
    named = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return [p.name for p in parameters if p.name not in named] + ["*"] * bool(named) + named


def promised(engines: tuple[str, ...] = ENGINES) -> dict[str, dict[str, list[str]]]:
    """By kind, of each thing what belongs to it: arguments, options, fields."""
    names = {f"varangian.{name}": arguments(getattr(vg, name)) for name in vg.__all__}
    for module in ("varangian.testing", *engines):
        there = import_module(module)
        names |= {f"{module}.{name}": arguments(getattr(there, name)) for name in there.__all__}
    text = {
        f"{table} {name}": arguments(value) for table in TABLES for name, value in sorted(getattr(vg, table).items())
    }
    commands = {}
    for command, (module, name, _) in cli.COMMANDS.items():
        found = getattr(import_module(module, cli.__name__), name)
        assert isinstance(found, click.Command)
        commands[command] = sorted(
            option for parameter in found.params for option in parameter.opts if option[0] == "-"
        )
    return {
        "names": names,
        "text": text,
        "settings": {"Experiment": [field.name for field in fields(vg.Experiment)]},
        "commands": commands,
    }


def main() -> None:
    print(json.dumps({"version": vg.__version__, "promised": promised()}, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
