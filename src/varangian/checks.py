"""The one form of this library's complaints: object, rule, its value now, what came."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any


def require(owner: object, holds: bool, rule: str, got: object) -> None:
    """Raises ValueError("Clip needs max_norm > 0, got -1.") unless ``holds``."""
    if not holds:
        raise ValueError(f"{type(owner).__name__} needs {rule}, got {got!r}.")


def brief(value: Any) -> str:
    """MultiKrum(f=24, m=5): the class, f, and the fields that differ from their defaults."""
    shown = [
        f"{option.name}={getattr(value, option.name)!r}"
        for option in fields(value)
        if option.name == "f" or option.default is MISSING or getattr(value, option.name) != option.default
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """The message for a mistyped name: what came, the closest match, all that there is."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}."


def summary_of(item: object) -> str:
    """The first sentence of a docstring, without its full stop."""
    text = " ".join((item.__doc__ or "").strip().split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")
