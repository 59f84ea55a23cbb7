"""Code of somebody's own, by name: "my_rule.py:MyRule", "package.module:Name", or what an installed package offers.

Nothing is imported but inside ``importing(True)``, which is where somebody hands over settings of their own. Everywhere
else a name means what was imported before in this process, or stays text: whoever reads a folder of anybody runs none
of the code that it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

from .checks import likely, shown

GROUPS = {
    "rule": "varangian.rules",
    "mixing": "varangian.mixings",
    "attack": "varangian.attacks",
    "model": "varangian.models",
    "dataset": "varangian.datasets",
    "partition": "varangian.partitions",
    "direction": "varangian.attacks",
}
"""Of entry points, by what a name is of."""

MAX_SOURCE = 2**24  # bytes of a file with code
GIVEN = "given"  # given:Name is an object that was handed over in Python, and that no text can name
NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
FORM = rf"""(?:(?:[A-Za-z]:)?[^:()\[\]{{}},;=|*?<>"'`]+\.py|{NAME}):{NAME}"""
PREFIX = re.compile(r"^file_[0-9a-f]{8}\.")  # of the name under which a file is a module: two files may be called alike

_may: ContextVar[bool | None] = ContextVar("whether names may be imported", default=None)
_lock = threading.RLock()


class Fault(ValueError):
    """A name by which nothing can be found, and why."""


class NotImported(Fault):
    """What a name stands for was not imported in this process, and may not be now."""


class Read(str):
    """Text from a folder of anybody's, whose code was not imported: settings that are made of it import it neither."""

    __slots__ = ()


@dataclass
class _Known:
    """What was imported in this process."""

    found: dict[str, object] = field(default_factory=dict)  # by absolute reference
    places: dict[str, str] = field(default_factory=dict)  # file as it was written: where that is
    modules: dict[str, ModuleType] = field(default_factory=dict)  # by file
    sources: dict[str, bytes] = field(default_factory=dict)  # what a file held when it was read
    sent: set[str] = field(default_factory=set)  # files whose text came from another process
    siblings: dict[str, str] = field(default_factory=dict)  # module that a file imported from beside it: that folder
    folders: list[str] = field(default_factory=list)  # of another process, from which modules are imported


_known = _Known()


@contextmanager
def importing(may: bool) -> Iterator[None]:
    """Inside, names that are not known yet are imported, or stay text; within ``importing(False)`` they always do."""
    token = _may.set(False if _may.get() is False else may)
    try:
        yield
    finally:
        _may.reset(token)


def may_import() -> bool:
    """Whether names that are not known yet are imported here."""
    return bool(_may.get())


def is_reference(name: str) -> bool:
    """Whether a name has the form of a reference.

    Example:
        >>> [is_reference(name) for name in ("rules/mine.py:Mine", "package.module:Outer.Inner", "multi-krum")]
        [True, True, False]
    """
    return re.fullmatch(FORM, name) is not None


def tidy(name: str) -> str:
    """The same reference, its path written in the one way.

    Example:
        >>> tidy("./rules//mine.py:Mine")
        'rules/mine.py:Mine'
    """
    place, _, attribute = name.rpartition(":")
    return f"{os.path.normpath(place).replace(os.sep, '/')}:{attribute}" if place.endswith(".py") else name


def label(spec: str) -> str:
    """A spec with its reference in short, for names of folders and headings.

    Example:
        >>> label("rules/mine.py:Mine(m=2)"), label("package.module:Mine"), label("krum")
        ('mine.Mine(m=2)', 'package.module.Mine', 'krum')
    """
    name, opened, options = spec.partition("(")
    if not is_reference(name):
        return spec
    place, _, attribute = name.rpartition(":")
    return f"{os.path.basename(place)[:-3] if place.endswith('.py') else place}.{attribute}{opened}{options}"


@lru_cache(maxsize=len(GROUPS))
def offered(kind: str) -> Mapping[str, list[importlib.metadata.EntryPoint]]:
    """The names that installed packages offer; found in what they say of themselves, and nothing is imported."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    if kind in GROUPS:
        for point in importlib.metadata.entry_points(group=GROUPS[kind]):
            if point not in (others := found.setdefault(point.name, [])):
                others.append(point)
    return found


def find(kind: str, name: str) -> Any:
    """What a name stands for that is in no table.

    Raises:
        NotImported: it is not known, and may not be imported here.
        Fault: there is no such thing. What code raises while it is imported is raised as it is.
    """
    reference = is_reference(name)
    key = _key(name) if reference else f"{GROUPS[kind]}:{name}"
    if key in _known.found:
        return _known.found[key]
    if name.partition(":")[0] == GIVEN:
        raise NotImported(f"{kind} {shown(name)} was handed over in Python, and is to be handed over again.")
    if not _may.get():
        raise NotImported(
            f"{kind} {shown(name)} would be imported from {_whence(kind, name)}; code that a folder names is imported "
            "only where you say so: --trust, or trust=True."
        )
    with _lock:
        value = _import(kind, name) if reference else _load_offered(kind, name)
    _known.found[key] = value
    return value


def known(kind: str, name: str) -> Any:
    """What a name stands for if that was imported before; None otherwise."""
    try:
        with importing(False):
            return find(kind, name) if is_reference(name) or name in offered(kind) else None
    except Fault:
        return None


def _key(name: str) -> str:
    place, _, attribute = name.rpartition(":")
    return f"{_place(place)}:{attribute}" if place.endswith(".py") else name


def _place(written: str) -> str:
    """Where a file is: from the current folder, or where it was found before."""
    before = _known.places.get(written)
    if before in _known.sent:
        return str(before)
    here = os.path.abspath(os.path.expanduser(written))
    return here if before is None or os.path.exists(here) else before


def _whence(kind: str, name: str) -> str:
    if not is_reference(name):
        return " and ".join(f"{package_of(point)} ({point.value})" for point in offered(kind)[name])
    place = name.rpartition(":")[0]
    return _place(place) if place.endswith(".py") else f"the module {place}"


def package_of(point: importlib.metadata.EntryPoint) -> str:
    """The package that offers something, with its version."""
    return "a package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _load_offered(kind: str, name: str) -> Any:
    points = offered(kind)[name]
    if len(points) > 1:
        raise Fault(f"{kind} {shown(name)} is offered by several packages: {_whence(kind, name)}; remove all but one.")
    try:
        return points[0].load()
    except (ImportError, AttributeError) as error:
        raise Fault(f"{kind} {shown(name)} of {_whence(kind, name)} cannot be imported: {error}.") from error


def _import(kind: str, name: str) -> Any:
    place, _, attribute = name.rpartition(":")
    what = f"{kind} {shown(name)}"
    if place.endswith(".py"):
        file = _place(place)
        module = _module_of_file(what, file)
        _known.places[place] = file
    else:
        module = _module_of_name(what, place)
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            names = [n for n in vars(value) if not n.startswith("_")] if isinstance(value, (ModuleType, type)) else []
            near = likely(part, names)
            hint = f" Did you mean {near!r}?" if near else ""
            raise Fault(f"{what}: {place} has no {attribute}.{hint}") from None
    return value


def _module_of_name(what: str, name: str) -> ModuleType:
    before = sys.path[:]
    sys.path += [os.getcwd(), *_known.folders]
    try:
        with _told(what):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # of something that it imports
        raise Fault(f"{what}: there is no module {error.name} here, nor among what is installed.") from None
    finally:
        _without(before)


def _module_of_file(what: str, file: str) -> ModuleType:
    if file in _known.modules:
        return _known.modules[file]
    source = _known.sources.get(file)
    if source is None:
        source = _read(what, file)
    module = None if file in _known.sent else _already(file) or _in_package(what, file)
    module = module or _executed(what, file, source)
    _known.modules[file], _known.sources[file] = module, source
    return module


def _read(what: str, file: str) -> bytes:
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for
            raise Fault(f"{what}: {file} is no file.")
        if os.path.exists(file) and os.path.getsize(file) > MAX_SOURCE:
            raise Fault(f"{what}: {file} is no program: it has over {MAX_SOURCE:,} bytes.")
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        folder = os.path.dirname(file)
        beside = [n for n in os.listdir(folder) if n.endswith(".py")] if os.path.isdir(folder) else []
        near = likely(os.path.basename(file), beside)
        hint = f" Did you mean {near!r}?" if near and not os.path.lexists(file) else ""
        reason = f"there is no file {file}" if isinstance(error, FileNotFoundError) else f"{file}: {error.strerror}"
        raise Fault(f"{what}: {reason}.{hint}") from None


def _already(file: str) -> ModuleType | None:
    """The module that this file is in this process: the program itself, or what it has imported."""
    for module in list(sys.modules.values()):
        there = getattr(module, "__file__", None)
        if isinstance(there, str) and os.path.basename(there) == os.path.basename(file) and os.path.exists(there):
            with contextlib.suppress(OSError):
                if os.path.samefile(there, file):
                    return module
    return None


def _in_package(what: str, file: str) -> ModuleType | None:
    """A file of a package, as a module of that: it may import its neighbours by from . import."""
    root, names = os.path.dirname(file), [os.path.basename(file)[:-3]]
    while os.path.exists(os.path.join(root, "__init__.py")) and os.path.basename(root).isidentifier():
        root, names = os.path.dirname(root), [os.path.basename(root), *names]
    if len(names) == 1 or names[0] in sys.modules:
        return None
    with _importable(root), _told(what):
        return importlib.import_module(".".join(names))


def _executed(what: str, file: str, source: bytes) -> ModuleType:
    folder, stem = os.path.dirname(file), os.path.basename(file)[:-3]
    module = ModuleType(f"file_{hashlib.sha256(file.encode()).hexdigest()[:8]}.{stem}")
    module.__file__ = file
    # What it imports from beside it may be a file that was loaded by its path, and must be the same module then.
    beside = {os.path.basename(f)[:-3]: m for f, m in _known.modules.items() if os.path.dirname(f) == folder}
    lent = {n: m for n, m in (beside | {stem: module}).items() if n not in sys.modules}
    for other, home in _known.siblings.items():  # of the same name, beside another file
        if home != folder and any(os.path.exists(os.path.join(folder, other + end)) for end in (".py", "/")):
            sys.modules.pop(other, None)
    before = set(sys.modules)
    sys.modules.update({**lent, module.__name__: module})
    try:
        with _importable(folder), _told(what):
            exec(compile(source, file, "exec", dont_inherit=True), vars(module))
    except ModuleNotFoundError as error:
        del sys.modules[module.__name__]
        if file in _known.sent and not os.path.isdir(folder):
            raise Fault(f"{what} needs {error.name}, and only the file itself comes to other machines.") from None
        raise
    except BaseException:
        del sys.modules[module.__name__]
        raise
    finally:
        for name in lent:
            sys.modules.pop(name, None)
    for name in set(sys.modules) - before:
        there = getattr(sys.modules[name], "__file__", None)
        if isinstance(there, str) and os.path.dirname(there) == folder and name != module.__name__:
            _known.siblings[name] = folder
    return module


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Inside, what lies in the folder can be imported."""
    before = sys.path[:]
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        _without(before)


def _without(before: list[str]) -> None:
    """Takes back what was put before and behind sys.path; what the code itself has put there is its own affair."""
    for folder in [*_known.folders, os.getcwd(), *sys.path[:1]]:
        if sys.path.count(folder) > before.count(folder):
            sys.path.remove(folder)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What is wrong with the text of a program, in a line; what it raises itself is raised as it is."""
    try:
        yield
    except SyntaxError as error:
        place = f"{error.filename}, line {error.lineno}" if error.filename else "its file"
        raise Fault(f"{what}: {place}: {error.msg}.") from None
    except SystemExit:
        raise Fault(
            f"{what}: its file is a program that ends as it is imported; what is to be run, and not imported, stands "
            'under if __name__ == "__main__".'
        ) from None


# ------------------------------------------------------------------------------------------- what describes itself


def reference_of(value: Any) -> str:
    """The reference of a class or function, from which another process finds it.

    Raises:
        Fault: no text can name it: it was made in a function, a notebook or a command line.
    """
    name, path = getattr(value, "__module__", None) or "", getattr(value, "__qualname__", "")
    module = sys.modules.get(name)
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    file = getattr(module, "__file__", None)
    if module is None or found is not value or (name in ("__main__", "__mp_main__") and not file):
        raise Fault(
            f"{path or value} has no name, and nobody else could find it where it was made: put it into a file of its "
            "own (and name it my_file.py:Name), or into RULES, MIXINGS, ATTACKS or PARTITIONS first."
        )
    if name == "__main__" and module.__spec__ is not None:  # python -m package.module
        name = module.__spec__.name
    elif file is not None and file.endswith(".py") and ("." not in name or PREFIX.match(name)) and not _installed(file):
        file = os.path.abspath(file)
        written = next((w for w, place in _known.places.items() if place == file), None)
        if written is None or _place(written) != file:
            here = os.getcwd() + os.sep
            written = (file[len(here) :] if file.startswith(here) else file).replace(os.sep, "/")
        _known.places[written] = file
        _known.modules.setdefault(file, module)
        if file not in _known.sources:
            _known.sources[file] = _read(path, file)
        _known.found[f"{file}:{path}"] = value
        return f"{written}:{path}"
    _known.found[f"{name}:{path}"] = value
    return f"{name}:{path}"


def _installed(file: str) -> bool:
    return file.startswith(tuple(sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")))


def place_of(error: BaseException) -> str | None:
    """Where in somebody's own code an error was raised, "my_rule.py, line 12": not here, nor in what is installed."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    others = [os.path.realpath(sysconfig.get_path(kind)) for kind in kinds]
    others.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = os.path.realpath(frame.filename)
        if os.path.isfile(path) and not any(path.startswith(folder + os.sep) for folder in others):
            return f"{os.path.basename(path)}, line {frame.lineno}"
    return None


def said_of(error: BaseException) -> str:
    """An error in one line: its kind, the place in somebody's own code if it is from there, and what it says."""
    place = place_of(error)
    return f"{type(error).__name__}{f' at {place}' if place else ''}: {(str(error).splitlines() or [''])[0]}"


def origin(kind: str, name: str) -> dict[str, str]:
    """Where the code of a name that was imported came from: the file and its SHA-256, the package and its version."""
    if not is_reference(name):
        return {"name": name, "package": _whence(kind, name)}
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        source = _known.sources.get(_place(place), b"")
        return {"name": name, "file": place, "sha256": hashlib.sha256(source).hexdigest()}
    said = {"name": name, "module": place}
    root = place.partition(".")[0]
    packages = importlib.metadata.packages_distributions().get(root, []) if root in sys.modules else []
    if packages:
        said["package"] = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in dict.fromkeys(packages))
    file = getattr(sys.modules.get(place), "__file__", None)
    if file is not None and os.path.exists(file):
        with open(file, "rb") as opened:
            said |= {"sha256": hashlib.sha256(opened.read()).hexdigest()}
    return said


# --------------------------------------------------------------------------------------------- to other processes


@dataclass(frozen=True)
class Luggage:
    """What another process needs to find what this one has found: text of files, and where they are."""

    places: Mapping[str, str]
    sources: Mapping[str, bytes]
    folder: str


def packed() -> Luggage:
    """For worker processes, also on machines that have none of the files."""
    places = dict(_known.places)
    return Luggage(places, {file: _known.sources[file] for file in set(places.values())}, os.getcwd())


def unpack(luggage: Luggage) -> None:
    """Makes this process find what the one that packed it has found; imports nothing yet."""
    for file, source in luggage.sources.items():
        if _known.sources.get(file) != source:  # of an earlier sweep, when Ray keeps its processes
            _known.modules.pop(file, None)
            for key in [key for key in _known.found if key.startswith(f"{file}:")]:
                del _known.found[key]
        _known.sources[file] = source
        _known.sent.add(file)
    _known.places.update(luggage.places)
    if luggage.folder not in _known.folders:
        _known.folders.append(luggage.folder)
