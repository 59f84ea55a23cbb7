"""How stages come to be: what is wrong with a class, or with the options given to it, is said before anything runs."""

from __future__ import annotations

import inspect
from abc import ABC
from functools import lru_cache
from typing import Any, TypeVar

from .checks import is_ours, likely, shown, summary_of

T = TypeVar("T", bound="Constructed")


class Misfit(TypeError, ValueError):
    """A class that is not whole, or options that it does not have: Python's kind of mistake, in one line."""


class Constructed(ABC):  # noqa: B024  what is abstract, each family says itself
    """What rules, mixings, attacks and transforms are derived from."""

    def __new__(cls: type[T], *given: Any, **options: Any) -> T:
        _examine(cls)
        names, anything = _options(cls.__init__)
        for name in () if anything else options:
            if name not in names:
                raise Misfit(_no_option(cls, name, names))
        if given and not names and not anything:
            raise Misfit(f"{cls.__name__} has no options, got {shown(given[0])}.")
        return object.__new__(cls)


@lru_cache(maxsize=500)
def _options(init: Any) -> tuple[tuple[str, ...], bool]:
    """The names of the options, and whether anything else is taken too."""
    if init is object.__init__:
        return (), False
    known = list(inspect.signature(init).parameters.values())[1:]
    loose = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in known)
    return tuple(p.name for p in known), loose


def _no_option(cls: type, name: str, names: tuple[str, ...]) -> str:
    if not is_ours(cls) and name in vars(cls).get("__annotations__", {}):
        return f"{cls.__name__} has no option {name!r} yet: write @dataclass(frozen=True) above the class."
    if not names:
        return f"{cls.__name__} has no options, got {name!r}."
    meant = likely(name, names)
    hint = "" if meant is None else f" Did you mean {meant!r}?"
    return f"{cls.__name__} has no option {name!r}.{hint} It has: {', '.join(names)}."


@lru_cache(maxsize=500)  # of sound classes: what raises is asked again
def _examine(cls: type) -> None:
    """Raises Misfit where a method that its family asks for is missing, or takes other arguments."""
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    if is_ours(cls):
        if abstract:
            raise Misfit(
                f"{cls.__name__} is what others are derived from: a class of your own that has {_and(abstract)}."
            )
        return
    if {"choose", "apply"} <= abstract:
        raise Misfit(f"{cls.__name__} cannot be made: derive it from vg.General, vg.Selecting or vg.Coordinatewise.")
    asked = ((name, _asked(cls, name)) for name in dict.fromkeys(n for base in cls.__mro__ for n in vars(base)))
    wanted = {name: method for name, method in asked if method is not None}
    if abstract:
        lacking = [_wanted(cls, name, method) for name, method in wanted.items() if name in abstract]
        raise Misfit(f"{cls.__name__} cannot be made: it lacks {'; and '.join(lacking)}.")
    for name, method in wanted.items():
        own = inspect.getattr_static(cls, name)
        if isinstance(method, property) and inspect.isfunction(own):
            raise Misfit(f"{cls.__name__}.{name} must be a property: write @property above def {name}(self).")
        if inspect.isfunction(method) and inspect.isfunction(own) and not _takes(cls, name, method, own):
            form = f"{name}{inspect.signature(own)}"
            raise Misfit(f"{cls.__name__}.{name} must be {_form(cls, name, method)}, got {form}.")


def _asked(cls: type, name: str) -> Any:
    """The abstract method of ours that a name of the class stands for; None where there is none."""
    for base in cls.__mro__:
        method = vars(base).get(name)
        if is_ours(base) and getattr(method, "__isabstractmethod__", False):
            return method
    return None


def _arguments(cls: type, name: str, method: Any) -> list[str]:
    """What a method is called with, but for self."""
    known = list(inspect.signature(method).parameters.values())[1:]
    more = ["draw"] if name in ("combine", "weights", "apply") and getattr(cls, "draws", False) else []
    if name == "combine" and getattr(cls, "weighs", False):
        more.append("shares")
    if name == "__call__" and getattr(cls, "uses_previous", False):
        more = ["previous"]
    return [p.name for p in known] + more


def _and(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))


def _takes(cls: type, name: str, method: Any, own: Any) -> bool:
    try:
        inspect.signature(own).bind(None, *_arguments(cls, name, method))
    except TypeError:
        return False
    return True


def _form(cls: type, name: str, method: Any) -> str:
    return f"{name}({', '.join(['self', *_arguments(cls, name, method)])})"


def _wanted(cls: type, name: str, method: Any) -> str:
    """What is to be written, and what it answers."""
    what = summary_of(method)
    if isinstance(method, property):
        return f"the property {name} ({what[:1].lower()}{what[1:]})"
    return f"{_form(cls, name, method)} ({what[:1].lower()}{what[1:]})"
