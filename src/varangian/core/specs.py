"""Named things with options, as text: "median", "multi-krum(m=5)", "little(factor=2.0, sign=1)"."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from .checks import UNSAID, is_ours, shown, unknown

MAX_LENGTH = 1000  # of a spec: what Python's own parser takes from anybody
T = TypeVar("T")


def split(text: str) -> list[str]:
    """The specs in a comma-separated list; commas in parentheses, brackets and quotes belong to a spec.

    Example:
        >>> split('bucketing(s=2),own(names=("a,b", ")"), m=1),nnm')
        ['bucketing(s=2)', 'own(names=("a,b", ")"), m=1)', 'nnm']
    """
    # What is quoted counts for nothing: blanked, character for character.
    plain = re.sub(r"""(["'])(?:\\.|(?!\1).)*\1""", lambda match: "_" * len(match[0]), text, flags=re.DOTALL)
    depth, start, found = 0, 0, []
    for place, character in enumerate(plain):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append(text[start:place])
            start = place + 1
    return [*found, text[start:]]


def parse(kind: str, text: str, table: Mapping[str, Callable[..., Any]]) -> tuple[str, dict[str, Any]]:
    """The name and the options of a spec.

    Raises:
        ValueError: not of this form, or a name that the table does not have.

    Example:
        >>> parse("rule", 'bulyan(base="multi-krum")', {"bulyan": dict})
        ('bulyan', {'base': 'multi-krum'})
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"{kind} {shown(text)}: at most {MAX_LENGTH:,} characters.")
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None:
        raise ValueError(f"{shown(text)} is not of the form name or name(option=value, ...).{_hint(kind, text, table)}")
    name, inside = match.groups()
    if name not in table:
        # A rule that needs a root vector is for other servers than that of a run.
        offered = [other for other, made in table.items() if not getattr(made, "needs_root", False)]
        raise ValueError(unknown(kind, name, offered))
    try:
        if not (text.isascii() and text.isprintable()):  # specs become names of folders and words on a page
            raise ValueError("other characters")
        call = ast.parse(f"f({inside or ''})", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise ValueError("not one pair of parentheses that holds options only")
        options = {k.arg: _value(k.value) for k in call.keywords if k.arg is not None}
        if len(options) < len(call.keywords):
            raise ValueError("an option twice, or **")
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # all of them Python's, of a literal
        form = f"{name}({_form(table[name])})"
        raise ValueError(f"{shown(text)}: options are written {form}, values as in Python.") from None
    return name, options


def _form(factory: Callable[..., Any]) -> str:
    """The options of something, as they would be written."""
    try:
        options = [p for p in inspect.signature(factory).parameters.values() if p.default not in (p.empty, UNSAID)]
    except ValueError:  # of what is built in
        options = []
    return ", ".join(f"{p.name}={p.default!r}" for p in options) or "option=value, ..."


def _hint(kind: str, text: str, table: Mapping[str, Callable[..., Any]]) -> str:
    """What else somebody may have meant by a text that is no spec."""
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) > 1 and all(piece in table for piece in pieces):
        return f" A run has one {kind}; {len(pieces)} are {len(pieces)} runs."
    if re.search(r"[\w/.]+[.:/]\w+", text):
        return f" A {kind} of your own has a name once its class is put into the table, from Python."
    return ""


def _value(node: ast.expr) -> Any:
    """A literal; a bare word is text, dashes included: base=multi-krum."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node).replace(" ", "")
        if not re.fullmatch(r"[A-Za-z][\w-]*", text):
            raise
        return text


def check(kind: str, text: str, table: Mapping[str, Callable[..., Any]], *given: str) -> tuple[str, dict[str, Any]]:
    """As :func:`parse`, and every option is one that the object has, of its type: 2 becomes 2.0 where that is a float.

    ``given`` are not for a text to set, such as the folder of data files: anybody may have written it. What a rule
    tolerates, f, may be said again.

    Raises:
        ValueError: as for :func:`parse`, an unknown option, or one of another type.
    """
    name, options = parse(kind, text, table)
    known = inspect.signature(table[name]).parameters
    free = [other for other in known if other not in given or other == "f"]
    for option, value in options.items():
        if option not in free:
            raise ValueError(f"{name}: " + unknown("option", option, free) if free else f"{name} takes no options.")
        try:
            options[option] = _adapter(table[name], option).validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(f"{name}: {option} {reason(error)}, got {shown(value)}.") from None
    return name, options


@lru_cache(maxsize=1000)
def _adapter(factory: Callable[..., Any], option: str) -> TypeAdapter[Any]:
    """What checks the type of an option, where its factory names one. Its range is for the object itself."""
    try:
        return TypeAdapter(get_type_hints(factory).get(option, Any))
    except (TypeError, NameError):  # an object that is called, or annotations that only a type checker can read
        return TypeAdapter(Any)


def reason(error: ValidationError) -> str:
    """All that pydantic says of one value, as part of a sentence: "must be ... or must be ..."."""
    messages = dict.fromkeys(e["msg"] for e in error.errors())
    text = " or ".join(messages).replace("Input should be ", "must be ").replace("Value error, ", "")
    return text[:1].lower() + text[1:]


def make(kind: str, text: str, table: Mapping[str, Callable[..., T]], **given: Any) -> T:
    """The object that a spec names; ``given`` fills the parameters that the spec leaves open.

    Raises:
        ValueError: as for :func:`parse`, an option that the object does not have, or a value that it refuses. Other
            errors of a factory that is not the package's own are raised as they are.
    """
    name, options = check(kind, text, table, *given)
    factory = table[name]
    known = inspect.signature(factory).parameters
    given = {key: value for key, value in given.items() if key in known}
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in options and p.name not in given]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}: write {name}({', '.join(f'{m}=...' for m in missing)}).")
    try:
        return factory(**(given | options))
    except (TypeError, RuntimeError, OverflowError) as error:  # Python's and torch's own, of a size that is none
        if not is_ours(factory):
            raise
        raise ValueError(f"{kind} {text!r}: {str(error).splitlines()[0].rstrip('.')}.") from None


def canonical(kind: str, text: str, table: Mapping[str, Callable[..., Any]], f: int | None = None) -> str:
    """The same spec in its shortest form: options in order, without those that have their default (or the given f).

    Example:
        >>> canonical("x", " x( b = 2,a=1.50 )", {"x": lambda a=1.0, b=2: None})
        'x(a=1.5)'
    """
    name, options = check(kind, text, table)
    known = inspect.signature(table[name]).parameters
    defaults = {option: parameter.default for option, parameter in known.items()} | ({} if f is None else {"f": f})
    said = {option: options[option] for option in known if option in options and options[option] != defaults[option]}
    return name + (f"({', '.join(f'{option}={value!r}' for option, value in said.items())})" if said else "")


def describe(value: Any, tables: Iterable[Mapping[str, Any]], f: int | None = None) -> str:
    """The spec of a value whose class one of the tables names: its name and the options that differ from the defaults.

    What a rule or a mixing tolerates is among them, unless it is the given f.

    Raises:
        ValueError: its class is in none of the tables.
    """
    names = {kind: name for table in tables for name, kind in table.items()}
    if type(value) not in names:
        raise ValueError(f"{value} has no name: put its class into RULES, MIXINGS, ATTACKS or PARTITIONS first.")
    values = {option.name: (getattr(value, option.name), option.default) for option in fields(value)}
    if "f" in values:
        values["f"] = (values["f"][0], MISSING if f is None else f)
    options = [f"{name}={now!r}" for name, (now, default) in values.items() if default is MISSING or now != default]
    return names[type(value)] + (f"({', '.join(options)})" if options else "")
