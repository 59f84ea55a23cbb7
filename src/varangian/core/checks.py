"""The one form of this library's complaints: object, rule, its value now, what came."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from math import inf
from numbers import Integral, Real
from typing import Any


class Refused(ValueError):
    """The server refuses what it received: the vectors of this step, not a setting, are why there is no aggregate.

    Raised where more than f vectors are not finite, and where anything else about the vectors leaves a rule without an
    answer. Of all errors in a step, this one alone is an outcome of the experiment; any other is a mistake.
    """


def require(owner: object, holds: bool, rule: str, got: object) -> None:
    """Raises ValueError("Clip needs max_norm > 0, got -1.") unless ``holds``."""
    if not holds:
        raise ValueError(f"{type(owner).__name__} needs {rule}, got {shown(got)}.")


class _Unsaid:
    """Stands where a number must be given: no rule chooses for its user how many attackers there are."""

    def __repr__(self) -> str:
        return "required"


UNSAID: Any = _Unsaid()


MOST_SEED = 2**63 - 1  # what NumPy, torch and a signed 64-bit field of a table hold


def whole(owner: object, name: str, value: Any, *, least: int = 0, optional: bool = False) -> int:
    """The value as an int; ValueError("LASA needs an integer f >= 0, got 1.0.") for truth values, floats and text."""
    holds = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
    require(owner, holds, f"an integer {name} >= {least}{' (or None)' if optional else ''}", value)
    if name == "seed":
        require(owner, value <= MOST_SEED, "a seed < 2^63", value)
    return int(value)


def set_whole(owner: object, name: str, least: int = 0, optional: bool = False) -> None:
    """Makes an option of a frozen dataclass an int of Python's own, or raises ValueError."""
    value = getattr(owner, name)
    if value is UNSAID:
        kind = type(owner).__name__
        raise ValueError(f"{kind} needs {name}, how many vectors may be Byzantine: {kind}({name}=...); 0 must be said.")
    if not (optional and value is None):
        object.__setattr__(owner, name, whole(owner, name, value, least=least, optional=optional))


def set_real(owner: object, name: str, rule: str, holds: Callable[[Any], bool], *, optional: bool = False) -> None:
    """Makes an option of a frozen dataclass a number of Python's own that keeps the rule, or raises ValueError."""
    value: Any = getattr(owner, name)
    if optional and value is None:
        return
    number = isinstance(value, Real) and not isinstance(value, bool)
    held = number and not sys.float_info.max < abs(getattr(owner, name)) < inf  # as a float: not every integer is
    require(owner, held and holds(value), f"{rule}{' (or None)' if optional else ''}", value)
    if type(value) not in (int, float):
        object.__setattr__(owner, name, int(value) if isinstance(value, Integral) else float(value))


def kind_of(value: object) -> str:
    """For a message: "float32 [5, 3]" of a tensor, else what kind of object it is."""
    if getattr(value, "is_nested", False) is True:
        return "a nested tensor"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return "nothing" if value is None else f"a {type(value).__name__}"
    device = str(getattr(value, "device", "cpu"))
    text = f"{str(dtype).removeprefix('torch.')} {list(shape)}"
    layout = str(getattr(value, "layout", "torch.strided")).removeprefix("torch.").removeprefix("_")
    text = text if layout == "strided" else f"{text} {layout}"
    return text if device == "cpu" else f"{text} on {device}"


def not_dense(x: Any) -> str:
    """For a message: what a tensor is that is not numbers at regular places in memory; "" where it is."""
    if x.is_nested:
        return "a nested one"
    if x.is_meta:
        return "one without numbers (meta)"
    layout = str(x.layout)
    return "" if layout == "torch.strided" else layout


def brief(value: Any) -> str:
    """MultiKrum(f=24, m=5): the class, f, and the fields that differ from their defaults."""
    shown = [
        f"{option.name}={getattr(value, option.name)!r}"
        for option in fields(value)
        if option.name == "f" or option.default is MISSING or getattr(value, option.name) != option.default
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def likely(name: str, names: Iterable[str], others: Mapping[str, str] | None = None) -> str | None:
    """Which of the names was meant, if one is near; ``others`` are what they are called elsewhere.

    Example:
        >>> likely("Multi_Krum", ["krum", "multi-krum"]), likely("lr", ["steps"], {"lr": "learning_rate"})
        ('multi-krum', 'learning_rate')
    """

    def plain(text: str) -> str:
        return text[:100].lower().replace("_", "-")

    meant = {plain(other): target for other, target in (others or {}).items()} | {plain(n): n for n in names}
    close = difflib.get_close_matches(plain(name), meant, n=1)
    return meant[close[0]] if close else None


def unknown(kind: str, name: str, names: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """The message for a mistyped name: what came, the closest match, all that there is."""
    names = list(names)
    meant = likely(name, names, others)
    hint = "" if meant is None else f" Did you mean {meant!r}?"
    return f"unknown {kind} {shown(name)}.{hint} Known: {', '.join(names)}."


def summary_of(item: object) -> str:
    """The first sentence of a docstring, without its full stop."""
    text = " ".join((item.__doc__ or "").strip().split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")


def shown(value: object) -> str:
    """The value for a message: its repr on one line, of which long ones are cut.

    Example:
        >>> shown("x" * 1000)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... (1,002 characters)"
    """
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # of Python's limit to the digits of an integer
        return f"a number of {type(value).__name__} with thousands of digits"
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= 200 else f"{text[:60]}... ({len(text):,} characters)"


def cut(text: str) -> str:
    """The first line of a message, and no more of it than anybody reads."""
    line = (text.splitlines() or [""])[0]
    return line if len(line) <= 400 else f"{line[:300]}..."


def printable(text: str) -> str:
    """For a terminal: whatever is no letter, sign or line end is written as an escape, so that it commands nothing.

    Example:
        >>> printable("a\\x1b[2J\\ud800")
        'a\\\\x1b[2J\\\\ud800'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def is_ours(value: object) -> bool:
    """Whether a class or function is the package's own."""
    root = (getattr(value, "__module__", None) or "").split(".")[0]
    return root == "varangian" and not isinstance(value, functools.partial)
