"""Named things with options, as text: "median", "multi-krum(m=5)", "my_rule.py:MyRule(m=2)".

A name is one of a table, one that an installed package offers, or a reference to code of somebody's own.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from . import references
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
    """The name and the options of a spec; nothing is imported for it.

    Raises:
        ValueError: not of this form, or a name that is neither in the table, nor offered by a package, nor a reference.

    Example:
        >>> parse("rule", 'bulyan(base="multi-krum")', {"bulyan": dict})
        ('bulyan', {'base': 'multi-krum'})
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"{kind} {shown(text)}: at most {MAX_LENGTH:,} characters.")
    parted = _parted(text)
    if parted is None:
        raise ValueError(f"{shown(text)} is not of the form name or name(option=value, ...).{_hint(kind, text, table)}")
    name, inside = parted
    if name not in table and not references.is_reference(name) and name not in references.offered(kind):
        # A rule that needs a root vector is for other servers than that of a run.
        offered = [other for other, made in table.items() if not getattr(made, "needs_root", False)]
        raise ValueError(unknown(kind, name, dict.fromkeys([*offered, *references.offered(kind)])))
    if not (text.isascii() and text.isprintable()):  # specs become names of folders and words on a page
        raise ValueError(f"{kind} {shown(text)}: names and options are written in ASCII, without line breaks.")
    try:
        if not inside:
            return name, {}
        call = ast.parse(f"f({inside})", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise ValueError("not one pair of parentheses that holds options only")
        options = {k.arg: _value(k.value) for k in call.keywords if k.arg is not None}
        if len(options) < len(call.keywords):
            raise ValueError("an option twice, or **")
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # all of them Python's, of a literal
        form = f"{name}({_form(table.get(name))})"
        raise ValueError(f"{shown(text)}: options are written {form}, values as in Python.") from None
    return name, options


@lru_cache(maxsize=1000)
def _parted(text: str) -> tuple[str, str | None] | None:
    """The name, and what is in parentheses: asked for often, where there are many experiments."""
    match = re.fullmatch(rf"\s*([\w-]+|{references.FORM})\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    return None if match is None else (match[1], match[2])


def find(kind: str, name: str, table: Mapping[str, Callable[..., T]]) -> Callable[..., T]:
    """What makes the things of a name: a class or a function. An object that is named itself is made of no options.

    Raises:
        NotImported: it is in no table and may not be imported here.
        Fault: there is no such thing.
    """
    if name in table:
        return table[name]
    found = references.find(kind, name)
    return found if isinstance(found, partial) or inspect.isclass(found) or inspect.isroutine(found) else lambda: found


def _form(factory: Callable[..., Any] | None) -> str:
    """The options of something, as they would be written."""
    if factory is None:
        return "option=value, ..."
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
        return f" A {kind} of your own is path/to/file.py:Name, or package.module:Name."
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
    tolerates, f, may be said again. Of a reference that may not be imported here the form alone is checked.

    Raises:
        ValueError: as for :func:`parse`, an unknown option, or one of another type.
    """
    name, options = parse(kind, text, table)
    try:
        factory = find(kind, name, table)
    except references.NotImported:
        return name, options
    known = parameters(factory)
    free = [other for other in known if other not in given or other == "f"]
    for option, value in options.items():
        if option not in free:
            raise ValueError(f"{name}: " + unknown("option", option, free) if free else f"{name} takes no options.")
        try:
            options[option] = _adapter(factory, option).validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(f"{name}: {option} {reason(error)}, got {shown(value)}.") from None
    return name, options


def parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Those that a factory takes, by name: asked for often, where there are many experiments."""
    try:
        return _parameters(factory)
    except TypeError:  # of an object without a hash that is called
        return inspect.signature(factory).parameters


@lru_cache(maxsize=1000)
def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(factory).parameters


@lru_cache(maxsize=1000)
def _adapter(factory: Callable[..., Any], option: str) -> TypeAdapter[Any]:
    """What checks the type of an option, where its factory names one. Its range is for the object itself."""
    try:
        return TypeAdapter(get_type_hints(factory).get(option, Any))
    except (TypeError, NameError):  # an object that is called, or annotations that only a type checker can read
        return TypeAdapter(Any)


def reason(error: ValidationError) -> str:
    """All that pydantic says of one value, as part of a sentence: "must be ... or must be ..."."""
    messages = dict.fromkeys(e["msg"].partition(", unable to parse string")[0] for e in error.errors())
    text = " or ".join(messages).replace("Input should be ", "must be ").replace("Value error, ", "")
    return text[:1].lower() + text[1:]


def make(kind: str, text: str, table: Mapping[str, Callable[..., T]], **given: Any) -> T:
    """The object that a spec names; ``given`` fills the parameters that the spec leaves open.

    Raises:
        ValueError: as for :func:`parse`, an option that the object does not have, or a value that it refuses. Other
            errors of a factory that is not the package's own are raised as they are.
    """
    factory = find(kind, parse(kind, text, table)[0], table)
    name, options = check(kind, text, table, *given)
    known = parameters(factory)
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


def function(kind: str, text: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function that a spec names, with its options filled in.

    Raises:
        ValueError: as for :func:`parse`, an option that it does not have, or something that cannot be called.
    """
    name, options = check(kind, text, table)
    found = table[name] if name in table else references.find(kind, name)
    if not callable(found):
        raise ValueError(f"{name} is no {kind}, which is a function, got {shown(found)}.")
    return partial(found, **options) if options else found


def canonical(kind: str, text: str, table: Mapping[str, Callable[..., Any]], f: int | None = None) -> str:
    """The same spec in its shortest form: options in order, without those that have their default (or the given f).

    Example:
        >>> canonical("x", " x( b = 2,a=1.50 )", {"x": lambda a=1.0, b=2: None})
        'x(a=1.5)'

    What is in no table is text once it was brought into this form: it must not depend on what is imported.
    """
    return text.strip() if parse(kind, text, table)[0] not in table else shortest(kind, text, table, f)


def shortest(kind: str, text: str, table: Mapping[str, Callable[..., Any]], f: int | None = None) -> str:
    """As :func:`canonical`, also of code of somebody's own, which is imported for it; its objects are described.

    Raises:
        NotImported: it may not be imported here.
    """
    name, options = check(kind, text, table)
    factory = find(kind, name, table)
    known = parameters(factory)
    if name not in table:
        made = references.find(kind, name)
        if kind in _DESCRIBED and is_dataclass(made) and not isinstance(made, type):
            return describe(made, [table], f)
        name = references.tidy(name) if references.is_reference(name) else name
    defaults = {option: parameter.default for option, parameter in known.items()} | ({} if f is None else {"f": f})
    said = {option: options[option] for option in known if option in options and options[option] != defaults[option]}
    return name + (f"({', '.join(f'{option}={_literal(value)}' for option, value in said.items())})" if said else "")


def _literal(value: Any) -> str:
    """A value as it would be written, sets in an order that is the same in every process."""
    if isinstance(value, (set, frozenset)) and value:
        return "{" + ", ".join(sorted(map(_literal, value))) + "}"
    if type(value) is dict:
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if type(value) is list:
        return "[" + ", ".join(map(_literal, value)) + "]"
    if type(value) is tuple:
        return "(" + ", ".join(map(_literal, value)) + (",)" if len(value) == 1 else ")")
    return repr(value)


_DESCRIBED = ("rule", "mixing", "attack", "partition", "knowledge")  # whose values are frozen dataclasses


def describe(value: Any, tables: Iterable[Mapping[str, Any]], f: int | None = None) -> str:
    """The spec of a value: the name of its class and the options that differ from the defaults.

    A class that none of the tables names is named by its reference. What a rule or a mixing tolerates is among the
    options, unless it is the given f.

    Raises:
        ValueError: no text can name its class, or its options are not the fields of a dataclass.
    """
    names = {kind: name for table in tables for name, kind in table.items()}
    if not is_dataclass(value) or isinstance(value, type):
        raise ValueError(
            f"{shown(value)} cannot be described: its class is no dataclass, whose fields are its options."
        )
    if type(value) not in names:
        names[type(value)] = references.reference_of(type(value))
    values = {option.name: (getattr(value, option.name), option.default) for option in fields(value)}
    if "f" in values:
        values["f"] = (values["f"][0], MISSING if f is None else f)
    options = [
        f"{name}={_literal(now)}" for name, (now, default) in values.items() if default is MISSING or now != default
    ]
    return names[type(value)] + (f"({', '.join(options)})" if options else "")
