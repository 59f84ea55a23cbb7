"""Named things with options, as text: "median", "multi-krum(m=5)", "little(factor=2.0, sign=1)"."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from .checks import unknown

T = TypeVar("T")


def parse(kind: str, text: str, table: Mapping[str, Callable[..., Any]]) -> tuple[str, dict[str, Any]]:
    """The name and the options of a spec.

    Raises:
        ValueError: not of this form, or a name that the table does not have.

    Example:
        >>> parse("rule", 'bulyan(base="multi-krum")', {"bulyan": dict})
        ('bulyan', {'base': 'multi-krum'})
    """
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None:
        raise ValueError(f"{kind} {text!r} is not of the form name or name(option=value, ...).")
    name, inside = match.groups()
    if name not in table:
        raise ValueError(unknown(kind, name, table))
    try:
        call = ast.parse(f"f({inside or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        options = {str(k.arg): _value(k.value) for k in call.keywords}
    except (SyntaxError, AssertionError, ValueError):
        raise ValueError(
            f"{kind} {text!r}: options are written name(option=value, ...), values as in Python."
        ) from None
    return name, options


def _value(node: ast.expr) -> Any:
    """A literal; a bare word is text, dashes included: base=multi-krum."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node).replace(" ", "")
        if not re.fullmatch(r"[A-Za-z][\w-]*", text):
            raise
        return text


def make(kind: str, text: str, table: Mapping[str, Callable[..., T]], **given: Any) -> T:
    """The object that a spec names; ``given`` fills the parameters that the spec leaves open.

    Raises:
        ValueError: as for :func:`parse`, an option that the object does not have, or a value that it refuses.
    """
    name, options = parse(kind, text, table)
    factory = table[name]
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            raise ValueError(f"{name}: " + unknown("option", option, known))
    given = {key: value for key, value in given.items() if key in known}
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in options and p.name not in given]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}: write {name}({', '.join(f'{m}=...' for m in missing)}).")
    try:
        return factory(**(given | options))
    except TypeError as error:
        raise ValueError(f"{kind} {text!r}: {error}.") from None


def describe(value: Any) -> str:
    """The spec of a rule, a mixing or an attack: its name and the options that differ from the defaults, f aside.

    Raises:
        ValueError: its class is in none of the dictionaries.
    """
    from .attacks import ATTACKS
    from .mixing import MIXINGS
    from .rules import RULES

    names = {kind: name for table in (RULES, MIXINGS, ATTACKS) for name, kind in table.items()}
    if type(value) not in names:
        raise ValueError(f"{value} has no name: put its class into RULES, MIXINGS or ATTACKS first.")
    options = [
        f"{f.name}={getattr(value, f.name)!r}"
        for f in fields(value)
        if f.name != "f" and (f.default is MISSING or getattr(value, f.name) != f.default)
    ]
    return names[type(value)] + (f"({', '.join(options)})" if options else "")
