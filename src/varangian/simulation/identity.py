"""Code of somebody else, by its content: what a run was made with is noticed when it has changed since.

What is hashed is what Python executes, so that a class defined anew in a notebook is another one, and one that was only
moved or commented on is the same. Another version of Python compiles to something else and counts as another code.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.checks import is_ours
from ..core.references import PREFIX

LENGTH = 16  # hexadecimal digits of a hash
_PLACES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis))
# Of a class: what Python or dataclasses put there, and what no instance does.
_NOISE = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__"),
    *("_abc_impl", "__annotate_func__", "__annotations_cache__", "__abstractmethods__"),
    *("__firstlineno__", "__static_attributes__"),
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__", "__orig_bases__"),
    *("__eq__", "__repr__", "__hash__", "__setattr__", "__delattr__", "__replace__"),
}  # fmt: skip
# Of a module: what is looked at by itself, and what its training changes.
_OF_MODULES = {"_parameters", "_buffers", "_modules", "training"}


def code_hash(values: Iterable[object]) -> str | None:
    """A hash of the code of those classes and functions that are not the package's own; None where all are.

    It covers their methods, their own base classes, the functions and classes of somebody's own that they refer to, and
    the numbers, texts, arrays and modules among those references. Lists and dictionaries, which change as a program
    goes on, are not looked into, and libraries that are installed count by name.

    Example:
        >>> import varangian as vg
        >>> code_hash([vg.Median, vg.MODELS["cnn"]]) is None
        True
        >>> mine = {}
        >>> exec("def model(shape, classes): ...", mine)
        >>> len(code_hash([mine["model"]]))
        16
    """
    strange = [value for value in values if isinstance(value, nn.Module) or not is_ours(value)]
    if not strange:
        return None
    found = _Content()
    for value in strange:
        found.add(value, asked=True)
    return found.hash.hexdigest()[:LENGTH]


class _Content:
    """The hash of values, each looked at once."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[int, object] = {}  # kept alive, so that no identity comes twice

    def _note(self, *parts: object) -> None:
        self.hash.update("\0".join(str(part) for part in (*parts, "")).encode("utf-8", "backslashreplace"))

    def add(self, value: Any, asked: bool = False) -> None:
        if isinstance(value, _PLAIN):
            self._note(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self._note("again")
            return
        self._seen[id(value)] = value
        if isinstance(value, (tuple, frozenset)):
            self._note(type(value).__name__, len(value))
            for item in sorted(value, key=repr) if isinstance(value, frozenset) else value:
                self.add(item)
        elif isinstance(value, (Tensor, np.ndarray)):
            array = _array(value)
            self._note("array", array.dtype, array.shape)
            if not array.dtype.hasobject:
                self.hash.update(np.ascontiguousarray(array).data)
        elif isinstance(value, functools.partial):
            self._note("partial")
            for item in (value.func, value.args, tuple(sorted(value.keywords.items()))):
                self.add(item)
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(value.__func__)
        elif isinstance(value, property):
            self.add((value.fget, value.fset))
        elif isinstance(value, functools.cached_property):
            self.add(value.func)
        elif isinstance(value, FunctionType) and (asked or is_somebodys(value.__module__)):
            self._function(value)
        elif isinstance(value, type) and (asked or is_somebodys(value.__module__)):
            self._class(value)
        else:
            self._note(
                _place(getattr(value, "__module__", "")), getattr(value, "__qualname__", type(value).__qualname__)
            )
            if isinstance(value, nn.Module):
                self._module(value)
            elif asked:  # an object that is called
                self.add(type(value), asked=True)
                self.add(tuple(sorted(getattr(value, "__dict__", {}).items())))

    def _module(self, module: nn.Module) -> None:
        """Its layers and what each keeps, its parameters and buffers, which of them are one, and which are frozen."""
        for name, layer in module.named_modules(remove_duplicate=False):
            self._note(name)
            self.add(type(layer))
            for key, value in sorted(vars(layer).items()):
                if key not in _OF_MODULES and value is not None:
                    self._note(key)
                    self.add(_frozen(value))
        for name, p in module.named_parameters(remove_duplicate=False):
            self._note(name, p.requires_grad)
            self.add(p)
        for name, b in module.named_buffers(remove_duplicate=False):
            self._note(name)
            self.add(b)

    def _function(self, function: FunctionType) -> None:
        names, stored = self._code(function.__code__)
        self.add(function.__defaults__)
        self.add(tuple(sorted((function.__kwdefaults__ or {}).items())))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self._note("empty")
        self._references(names - stored, function.__globals__, names)

    def _references(
        self, wanted: set[str], space: dict[str, Any] | MappingProxyType[str, Any], names: set[str]
    ) -> None:
        for name in sorted(wanted & space.keys()):
            value = space[name]
            if isinstance(value, ModuleType):
                if id(value) not in self._seen and is_somebodys(value.__name__):
                    self._seen[id(value)] = value
                    self._references(names, vars(value), names)
                continue
            self._note(name)
            self.add(value)

    def _code(self, code: CodeType) -> tuple[set[str], set[str]]:
        """Adds what is executed; the names that it refers to, and those of them that it assigns globally."""
        self.hash.update(code.co_code)
        self._note(code.co_names, code.co_varnames, code.co_freevars, code.co_flags)
        names, stored = set(code.co_names), set(_assigned(code))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                more, also = self._code(constant)
                names |= more
                stored |= also
            else:
                self.add(constant)
        return names, stored

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            if base is kind or is_somebodys(base.__module__):
                for name, value in sorted(vars(base).items()):
                    if name not in _NOISE:
                        self._note(name)
                        self.add(value)
            else:
                self._note(_place(base.__module__), base.__qualname__)


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(value, Tensor):
        return value
    held = value.detach().cpu()
    return (held.view(torch.int16) if held.dtype == torch.bfloat16 else held).numpy()


def _frozen(value: Any) -> Any:
    """Lists and dictionaries as tuples, which are looked into."""
    if isinstance(value, dict):
        return tuple((str(key), _frozen(item)) for key, item in value.items())
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _assigned(code: CodeType) -> Iterator[str]:
    """Global names that it assigns: counters and the like, which change without anybody's changing the code."""
    import dis

    return (str(step.argval) for step in dis.get_instructions(code) if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"))


def _root(module: str | None) -> str:
    return (module or "").split(".")[0]


def _place(module: str | None) -> str:
    """A library by the name of its module; where in this package something lies is the package's own affair."""
    return "varangian" if _root(module) == "varangian" else PREFIX.sub("", module or "")


def is_somebodys(module: str | None) -> bool:
    """Whether a module is neither the package's, nor Python's, nor that of an installed library."""
    root = _root(module)
    if root in ("varangian", "builtins") or (root in sys.stdlib_module_names and root != "__main__"):
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is None or not file.startswith(_PLACES)
