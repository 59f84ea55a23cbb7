"""What share of small faults, put into core one at a time, the tests notice: a deterministic sample, resumable.

    python benchmarks/mutants.py map                        which test comes by which line (once, minutes)
    python benchmarks/mutants.py run [--sample 600]         a mutant after another; goes on where it was stopped
    python benchmarks/mutants.py again [--budget 100]       survivors again, with more tests each
    python benchmarks/mutants.py again --fresh              and in a process that never had them without the fault
    python benchmarks/mutants.py show 12                    the change that number 12 is
    python benchmarks/mutants.py score                      what the record says

A mutant is the source of a file with one change (`changes` lists them). One that lies in a function is put into a
forked copy of a process that has everything imported and all tests collected, by exchanging code objects: nothing is
written and the first test starts at once. One outside functions (constants, attributes of classes, defaults) is
imported afresh in a fork of a process that has only the libraries. Tests that come by the changed line run until one
fails, those that name a changed class and then the quickest of each test function first, for --budget seconds of the
processor by the map's record. What a mutant may take is time of the processor as well, so that a busy machine changes
no verdict. `map` leaves out tests that fail by themselves, and a test that kills must pass without the mutant.

The record is mutants.csv beside this script; survivors that no test can kill are explained in mutants-explained.csv.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gc
import importlib.machinery
import json
import math
import os
import random
import resource
import select
import signal
import time
import traceback
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "src" / "varangian" / "core"
RECORD = Path(__file__).with_name("mutants.csv")
EXPLAINED = Path(__file__).with_name("mutants-explained.csv")
TARGETS = ("rules", "attacks", "mixing.py", "transforms.py", "geometry.py", "stages.py")
TESTS = [
    "rules", "oracles", "columns", "order", "numerics", "weights", "ranges", "transforms", "attacks",
    "colluding", "attack_search", "knowledge", "memory", "draws", "algorithm", "theory", "explain", "scores",
    "conventions", "checks", "specs", "vectors", "testing", "identity", "construction", "evidence", "accounts",
    "suspects", "own_classes", "backdoors", "geometry", "search", "options", "central", "card", "simulate",
    "references", "values",
]  # fmt: skip
ALIVE = ("survived", "uncovered")
PORTION = 100  # mutants at a time
GRACE = 30  # seconds of the processor beyond four times what the tests took without a mutant

Lines = dict[str, tuple[float, dict[str, list[int]]]]  # of each test: seconds, and the lines that it comes by
Outcome = tuple[str, str, int, float]  # status, the test that killed, tests run, seconds of the processor


# ---------------------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class Mutant:
    """A change of a file. `nth` counts equal changes within a scope, so that an identity outlives moved lines."""

    file: str
    scope: str
    line: int
    column: int
    operator: str
    before: str
    after: str
    nth: int = 0

    @property
    def identity(self) -> str:
        return "|".join((self.file, self.scope, self.operator, self.before, self.after, str(self.nth)))

    @property
    def inside(self) -> bool:
        """Whether it changes the code of a function, and nothing that an import computes."""
        return self.scope.endswith("()")

    @property
    def name(self) -> str:
        """The function or class of the module that it lies in."""
        return self.scope.split(".")[0].removesuffix("()")

    @property
    def compiled(self) -> bool:
        """Whether Numba compiles what it changes."""
        return self.name in jitted(self.file)


COMPARED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitXor: ast.BitOr,
}  # fmt: skip
PAIRS = "min max|any all|floor ceil|zeros ones|minimum maximum|argmin argmax|amin amax|sum mean|nanmin nanmax"
CALLED = {a: b for pair in PAIRS.split("|") for a, b in (pair.split(), pair.split()[::-1])}


def _negated(node: ast.expr) -> ast.expr:
    return (
        node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) else ast.UnaryOp(ast.Not(), node)
    )


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(operator, what stands in its place): every small fault that a node may have."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            ops = [*node.ops[:i], COMPARED[type(op)](), *node.ops[i + 1 :]]
            yield "comparison", ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in COMPUTED:
        op = COMPUTED[type(node.op)]()
        if isinstance(node, ast.BinOp):
            yield "arithmetic", ast.BinOp(node.left, op, node.right)
        else:
            yield "arithmetic", ast.AugAssign(node.target, op, node.value)
    elif isinstance(node, ast.BoolOp):
        yield "logic", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp):
        yield "sign", node.operand
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield "constant", ast.Constant(not value)
        elif isinstance(value, int):
            yield "constant", ast.Constant(value + 1)
        elif isinstance(value, float):
            yield "constant", ast.Constant(2 * value if value else 1.0)
        elif isinstance(value, str):
            yield "text", ast.Constant(value + "x")
    elif isinstance(node, ast.IfExp):
        yield "condition", ast.IfExp(_negated(node.test), node.body, node.orelse)
    elif isinstance(node, ast.If):
        yield "condition", ast.If(_negated(node.test), node.body, node.orelse)
    elif isinstance(node, ast.While):
        yield "condition", ast.While(_negated(node.test), node.body, node.orelse)
    elif isinstance(node, ast.comprehension):
        for i in range(len(node.ifs)):
            yield "filter", replace_fields(node, ifs=node.ifs[:i] + node.ifs[i + 1 :])
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "return", ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.Raise, ast.Break, ast.Continue)) or (
        isinstance(node, ast.Expr) and not _text(node.value)
    ):
        yield "omission", ast.Pass()
    elif isinstance(node, ast.Slice):
        for edge in ("lower", "upper"):
            bound = getattr(node, edge)
            if bound is not None and not isinstance(bound, ast.Constant):
                yield "slice", replace_fields(node, **{edge: ast.BinOp(bound, ast.Add(), ast.Constant(1))})
    elif isinstance(node, ast.Call):
        name = (
            node.func.id
            if isinstance(node.func, ast.Name)
            else node.func.attr
            if isinstance(node.func, ast.Attribute)
            else ""
        )
        if name in CALLED:
            new = ast.Name(CALLED[name], ast.Load()) if isinstance(node.func, ast.Name) else None
            func = new or replace_fields(node.func, attr=CALLED[name])
            yield "function", ast.Call(func, node.args, node.keywords)
        for i, keyword in enumerate(node.keywords):
            if keyword.arg is not None:
                yield "argument", ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _text(node: ast.AST) -> bool:
    return (isinstance(node, ast.Constant) and isinstance(node.value, str)) or isinstance(node, ast.JoinedStr)


def replace_fields(node: Any, **fields: Any) -> Any:
    return type(node)(**{name: fields.get(name, value) for name, value in ast.iter_fields(node)})


def sites(tree: ast.Module) -> Iterator[tuple[str, ast.AST, str, Any]]:
    """(scope, node, field, place in a list or None) of each node that may change.

    Annotations, docstrings, imports, and the words of errors are nothing that computes.
    """

    def walk(node: ast.AST, scope: str) -> Iterator[tuple[str, ast.AST, str, Any]]:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params", "type_comment"):
                continue
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or isinstance(child, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
                    continue
                if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and _text(child)):
                    continue
                if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                    continue
                inner = scope
                if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                    inner = f"{scope}.{child.name}".lstrip(".")
                if not isinstance(child, ast.arguments):
                    yield scope, node, name, place
                if isinstance(child, ast.FunctionDef) and not scope.endswith("()"):
                    yield from function(child, scope, inner)
                else:
                    yield from walk(child, inner)

    def function(node: ast.FunctionDef, scope: str, inner: str) -> Iterator[tuple[str, ast.AST, str, Any]]:
        for part in (node.args, *node.decorator_list):  # computed where the function is defined
            yield from walk(part, scope)
        yield from walk(ast.Module(body=node.body, type_ignores=[]), inner + "()")

    yield from walk(tree, "")


def child_of(parent: ast.AST, field: str, place: int | None) -> ast.AST:
    value = getattr(parent, field)
    return value if place is None else value[place]


@cache
def source(file: str) -> str:
    return (CORE / file).read_text()


@cache
def jitted(file: str) -> set[str]:
    functions = [node for node in ast.parse(source(file)).body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if any("jit" in ast.unparse(decorator) for decorator in f.decorator_list)}


def files() -> list[str]:
    found = [p for t in TARGETS for p in ([CORE / t] if t.endswith(".py") else sorted((CORE / t).glob("*.py")))]
    return [p.relative_to(CORE).as_posix() for p in found if p.name != "__init__.py"]


def made(file: str, text: str | None = None) -> Iterator[tuple[Mutant, Callable[[], types.CodeType]]]:
    """All mutants of a file, with what compiles them."""
    text = source(file) if text is None else text
    tree = ast.parse(text)
    seen: Counter[str] = Counter()
    for scope, parent, field, place in list(sites(tree)):
        node: Any = child_of(parent, field, place)
        for operator, new in changes(node):
            at: Any = node if hasattr(node, "lineno") else node.target  # a comprehension has no place of its own
            before, after = _short(node), _short(new)
            m = Mutant(file, scope, at.lineno, at.col_offset, operator, before, after)
            m = replace(m, nth=seen[m.identity])
            seen[replace(m, nth=0).identity] += 1
            yield m, _compiler(tree, parent, field, place, new, file)


def _compiler(
    tree: ast.Module, parent: ast.AST, field: str, place: int | None, new: Any, file: str
) -> Callable[[], types.CodeType]:
    def compiled() -> types.CodeType:
        old: Any = child_of(parent, field, place)
        mutated = ast.copy_location(new, old if hasattr(old, "lineno") else old.target)
        ast.fix_missing_locations(mutated)
        _put(parent, field, place, mutated)
        try:
            return compile(tree, str(CORE / file), "exec", dont_inherit=True)
        finally:
            _put(parent, field, place, old)

    return compiled


def _put(parent: ast.AST, field: str, place: int | None, node: ast.AST) -> None:
    if place is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[place] = node


def _short(node: ast.AST) -> str:
    """The first line of a node's source, which is all of it unless it is a block."""
    if isinstance(node, ast.comprehension):
        return ast.unparse(ast.ListComp(ast.Name("…"), [node]))
    return ast.unparse(ast.fix_missing_locations(node)).split("\n")[0]


def sample(size: int, seed: int) -> list[Mutant]:
    """`size` mutants of all, of each file as many as its share of them, in an order that any prefix of is a sample."""
    every = {file: [m for m, _ in made(file)] for file in files()}
    total = sum(map(len, every.values()))
    chosen: list[tuple[float, Mutant]] = []
    for file, mutants in every.items():
        rng = random.Random(f"{seed} {file}")
        k = min(len(mutants), round(size * len(mutants) / total))
        picked = rng.sample(mutants, len(mutants))[:k]
        chosen += [((i + rng.random()) / max(k, 1), m) for i, m in enumerate(picked)]
    return [m for _, m in sorted(chosen, key=lambda pair: pair[0])]


@cache
def table(file: str) -> dict[str, Callable[[], types.CodeType]]:
    return {m.identity: compiled for m, compiled in made(file)}


# ------------------------------------------------------------------------------------------------------ tests


class Runner:
    """Collects tests as pytest does, and hands those collected to `work` instead of running them."""

    def __init__(self, work: Callable[[dict[str, Any]], None]) -> None:
        self.work, self.failed = work, False

    def pytest_sessionstart(self) -> None:
        import hypothesis  # by now: pytest insists on being the one that imports a plugin

        hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
        hypothesis.settings.load_profile("mutants")

    def pytest_runtestloop(self, session: Any) -> bool:
        self.work({item.nodeid: item for item in session.items})
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or report.failed

    def run(self, item: Any, following: Any) -> bool:
        """Whether a test passes."""
        self.failed = False
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        except BaseException:  # an exit, an interrupt, or what makes pytest itself stumble
            return False
        return not self.failed


def collect(work: Callable[[dict[str, Any], Runner], None], paths: list[str]) -> None:
    import pytest

    runner: Runner = Runner(lambda items: work(items, runner))
    options = ["-o", "addopts=", "--import-mode=importlib", "--assert=plain", "--doctest-modules", "-p", "no:terminal"]
    pytest.main(
        [*options, "-p", "no:cacheprovider", "-p", "no:randomly", "--continue-on-collection-errors", *paths],
        plugins=[runner],
    )


def paths() -> list[str]:
    return [f"tests/test_{name}.py" for name in TESTS] + [f"src/varangian/core/{t}" for t in TARGETS]


def prepare() -> None:
    """Libraries, which no mutant changes, are imported before the first fork."""
    os.chdir(ROOT)
    import numba  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import torch

    torch.set_num_threads(1)


def processor() -> float:
    """Seconds of the processor that this process has had, and what it has started and waited for."""
    return sum(os.times()[:4])


def forked(work: Callable[[Callable[[str], None]], None], limit: float) -> tuple[str, int]:
    """(what the child wrote, its wait status): `work` in a copy of this process, killed after `limit` seconds of the
    processor, or ten times that by the clock, which is what one that waits for ever takes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            os.setpgid(0, 0)
            silence = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(silence, stream)
            spent = math.ceil(time.process_time() + limit)
            resource.setrlimit(resource.RLIMIT_CPU, (spent, spent + 5))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work(lambda text: (os.write(writing, text.encode()), None)[1])
        except BaseException:  # of the tool: what a mutant does to a test is caught where the test runs
            os.write(writing, f"\nerror\n{traceback.format_exc()}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    written, end = b"", time.monotonic() + 10 * limit
    while time.monotonic() < end and select.select([reading], [], [], max(0, end - time.monotonic()))[0]:
        piece = os.read(reading, 1 << 20)
        if not piece:
            break
        written += piece
        if b"\nkilled " in written or b"\nsurvived " in written or written.startswith((b"killed ", b"survived ")):
            break  # a process that a test left behind may hold the pipe open
    os.close(reading)
    with suppress(ProcessLookupError):
        if time.monotonic() >= end:
            os.killpg(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    with suppress(ProcessLookupError, PermissionError):  # what the tests had started
        os.killpg(child, signal.SIGKILL)
    return written.decode(errors="replace"), status


# --------------------------------------------------------------------------------------------------- the map


def draw_map(place: Path, seconds: float) -> None:
    """Runs tests once and writes, of each: seconds of the processor, and the lines of each target that it comes by.

    One case of each test function, then a second of each, and so on, until the seconds of the processor are spent; one
    that has taken its share, a hundredth, is not tried on. What was not come to is not used; another call adds to it.
    """
    import coverage

    prepare()
    wanted = [str(CORE / file) for file in files()]

    def work(items: dict[str, Any], runner: Runner) -> None:
        earlier: Lines = json.loads(place.read_text()) if place.exists() else {}
        seconds_of: dict[str, float] = {}
        cases: dict[str, list[Any]] = defaultdict(list)
        for name, item in items.items():
            cases[name.split("[")[0]].append(item)
        for name, some in cases.items():
            random.Random(name).shuffle(some)
        rounds = sorted((i, name) for name, some in cases.items() for i in range(len(some)))
        spent: dict[str, float] = defaultdict(float)
        for test, (taken, _) in earlier.items():
            spent[test.split("[")[0]] += taken
        print(len(items), "tests of", len(cases), "functions", flush=True)
        measure = coverage.Coverage(data_file=None, include=wanted, config_file=False, messages=False)
        measure.start()

        def keep() -> None:
            found: Lines = {t: (s, {}) for t, s in seconds_of.items()}
            for file in files():
                for line, tests in measure.get_data().contexts_by_lineno(str(CORE / file)).items():
                    for test in set(tests) & found.keys():
                        found[test][1].setdefault(file, []).append(line)
            place.write_text(json.dumps(earlier | found))

        for i, name in rounds:
            item = cases[name][i]
            start = processor()
            if start > seconds or spent[name] > seconds / 100 or item.nodeid in earlier:
                continue
            measure.switch_context(item.nodeid)
            passed = runner.run(item, None)
            taken = processor() - start
            spent[name] += taken
            if passed:
                seconds_of[item.nodeid] = round(taken, 4)
            else:
                print("left out, fails by itself:", item.nodeid, flush=True)
            if len(seconds_of) % 100 == 0:
                print(f"{len(seconds_of)} tests, {processor():.0f} s", flush=True)
            if len(seconds_of) % 500 == 0:
                keep()
        measure.stop()
        keep()

    collect(work, paths())


class Map:
    """Which tests come by which line."""

    def __init__(self, place: Path) -> None:
        found: Lines = json.loads(place.read_text())
        self.seconds = {test: seconds for test, (seconds, _) in found.items()}
        self.by: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for test, (_, lines) in found.items():
            for file, at in lines.items():
                for line in at:
                    self.by[file][line].append(test)

    def tests(self, m: Mutant, budget: float) -> tuple[list[str], int]:
        """(tests to run in order, how many come by): the quickest of each test function, then the second, and so on."""
        by = self.by[m.file]

        def within(first: int, last: int) -> set[str]:
            return {t for line in range(first, last + 1) for t in by.get(line, ())}

        if m.compiled:
            found = {t for line in callers(m.file, m.name) for t in by.get(line, ())}
            found |= {t for t in self.seconds if names(t.split("::")[0], m.name)}
        elif m.inside:
            found = within(m.line, m.line) or within(*_statement(m))
        else:  # nobody sees who reads an attribute: those that come by its class, then all
            found = set(self.seconds)
        near = within(*_class(m)) if not m.inside else found
        functions: dict[str, list[str]] = defaultdict(list)
        for test in sorted(found, key=lambda t: (self.seconds[t], t)):
            functions[test.split("[")[0]].append(test)
        named = {t for t in found if not m.inside and m.name.lower() in t.lower().replace("-", "")}
        order = sorted(
            (t not in named, t not in near, i, self.seconds[t], t)
            for tests in functions.values()
            for i, t in enumerate(tests)
        )
        chosen: list[str] = []
        for *_, seconds, test in order:
            if (budget := budget - seconds) < 0 and chosen:
                break
            chosen.append(test)
        return chosen, len(found)


@cache
def names(file: str, name: str) -> bool:
    """Whether a file of tests calls a function of core by its name."""
    place = ROOT / file
    return place.is_file() and f".{name}(" in place.read_text()


def callers(file: str, name: str) -> set[int]:
    """Lines of functions that are not compiled, which is where lines are seen, that lead to a compiled one."""
    lines: set[int] = set()
    for node in ast.parse(source(file)).body:
        named = [n.lineno for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name]
        inner = getattr(node, "name", None)
        lines |= callers(file, str(inner)) if named and inner in jitted(file) and inner != name else set(named)
    return lines


def _statement(m: Mutant) -> tuple[int, int]:
    """First and last line of the smallest statement around a mutant."""
    around = [
        n
        for n in ast.walk(ast.parse(source(m.file)))
        if isinstance(n, ast.stmt) and n.lineno <= m.line <= (n.end_lineno or n.lineno)
    ]
    smallest = min(around, key=lambda n: (n.end_lineno or n.lineno) - n.lineno)
    return smallest.lineno, smallest.end_lineno or smallest.lineno


def _class(m: Mutant) -> tuple[int, int]:
    """First and last line of the class, or of the module, that a mutant outside functions lies in."""
    tree = ast.parse(source(m.file))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.lineno <= m.line <= (node.end_lineno or 0):
            return node.lineno, node.end_lineno or node.lineno
    return 1, len(source(m.file).splitlines())


# --------------------------------------------------------------------------------------------------- running


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def functions() -> list[types.FunctionType]:
    """All functions of the targets that live in this process, methods and those under decorators included."""
    wanted = {str(CORE / file) for file in files()}
    return [f for f in gc.get_objects() if type(f) is types.FunctionType and f.__code__.co_filename in wanted]


def compile_anew(file: str, dispatchers: list[Any]) -> None:
    """Makes Numba forget what it has compiled of a file, here and on disk."""
    from numba.core.caching import NullCache

    for dispatcher in dispatchers:
        if dispatcher.py_func.__code__.co_filename == str(CORE / file):
            dispatcher._cache = NullCache()
            dispatcher._make_finalizer()()
            dispatcher._reset_overloads()


def live_dispatchers() -> list[Any]:
    from numba.core.dispatcher import Dispatcher

    return [d for d in gc.get_objects() if issubclass(type(d), Dispatcher)]  # a proxy may answer for another


def exchanged(
    compiled: types.CodeType, live: list[types.FunctionType]
) -> Iterator[tuple[types.FunctionType, types.CodeType]]:
    """The functions of a file whose code in the mutated file is another, each with that code."""
    new: dict[tuple[str, int], list[types.CodeType]] = defaultdict(list)
    for code in codes(compiled):
        new[code.co_name, code.co_firstlineno].append(code)
    for f in live:
        found = new[f.__code__.co_name, f.__code__.co_firstlineno]
        if f.__code__.co_filename == compiled.co_filename and len(found) == 1 and f.__code__ != found[0]:
            yield f, found[0]


def import_mutated(compiled: types.CodeType) -> None:
    """From now on an import of the file gives the mutant."""
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> types.CodeType | None:
        return compiled if self.path == compiled.co_filename else original(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def tried(items: dict[str, Any], runner: Runner, chosen: list[str], write: Callable[[str], None]) -> None:
    """Runs tests until one fails; writes how many, and which failed."""
    order = [items[t] for t in chosen if t in items]
    start = processor()
    for i, (item, following) in enumerate(zip_longest(order, order[1:])):
        write(f"at {item.nodeid}\n")
        if not runner.run(item, following):
            write(f"killed {i + 1} {processor() - start:.2f} {item.nodeid}\n")
            return
    word, test = ("killed", "collection") if len(order) < len(chosen) else ("survived", "")  # one is no longer there
    write(f"{word} {len(order)} {processor() - start:.2f} {test}\n")


def outcome(written: str, status: int, limit: float) -> Outcome:
    lines = written.splitlines()
    if lines and lines[-1].startswith(("killed", "survived")):
        word, count, seconds, test = lines[-1].split(" ", 3)
        return word, test, int(count), float(seconds)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return "timeout", lines[-1][3:] if lines else "collection", len(lines), limit
    if not lines or "error" in lines:
        raise RuntimeError(f"the tool's fault, status {status}: {written or 'no test was tried'}")
    return "killed", lines[-1][3:], len(lines), 0.0  # the process went down


class Warm:
    """A process with everything imported and collected, from which mutants are forked."""

    def __init__(self, items: dict[str, Any], runner: Runner) -> None:
        self.items, self.runner, self.live, self.sound = items, runner, functions(), dict[str, bool]()
        self.dispatchers = live_dispatchers()
        gc.collect()
        gc.freeze()

    def without(self, chosen: list[str]) -> Outcome:
        return outcome(*forked(lambda write: tried(self.items, self.runner, chosen, write), 600), 600)

    def attempt(self, m: Mutant, chosen: list[str], limit: float) -> Outcome | None:
        """What became of it; None where it is to be imported afresh. A test that fails without the mutant too is no
        witness: the rest is then tried again."""
        compiled = table(m.file)[m.identity]()
        exchange = list(exchanged(compiled, self.live))
        if not exchange or any(f.__code__.co_freevars != code.co_freevars for f, code in exchange):
            return None  # made when called, not told apart from another of its line, or of another closure

        def work(write: Callable[[str], None]) -> None:
            for f, code in exchange:
                f.__code__ = code
            if m.compiled:
                compile_anew(m.file, self.dispatchers)
            tried(self.items, self.runner, chosen, write)

        found = outcome(*forked(work, limit), limit)
        if found[0] == "killed" and found[1] in self.items:
            if found[1] not in self.sound:
                self.sound[found[1]] = self.without([found[1]])[0] == "survived"
            if not self.sound[found[1]]:
                print("no witness, fails by itself:", found[1], flush=True)
                return self.attempt(m, [t for t in chosen if t != found[1]], limit)
        return found


def fresh(m: Mutant, chosen: list[str], limit: float) -> Outcome:
    compiled = table(m.file)[m.identity]()

    def work(write: Callable[[str], None]) -> None:
        import_mutated(compiled)
        reached: list[bool] = []

        def loop(items: dict[str, Any], runner: Runner) -> None:
            reached.append(True)
            if jitted(m.file):
                compile_anew(m.file, live_dispatchers())
            tried(items, runner, chosen, write)

        collect(loop, sorted({t.split("::")[0] for t in chosen}))
        if not reached:
            write("killed 0 0.00 collection\n")

    return outcome(*forked(work, limit), limit)


FIELDS = [
    "number", "file", "scope", "line", "column", "operator", "before", "after", "nth", "status", "test", "run",
    "of", "seconds",
]  # fmt: skip


def recorded(place: Path) -> dict[str, dict[str, str]]:
    if not place.exists():
        return {}
    with place.open(newline="") as stream:
        return {row_mutant(row).identity: row for row in csv.DictReader(stream)}


def row_mutant(row: dict[str, str]) -> Mutant:
    line, column, nth = (int(row[name]) for name in ("line", "column", "nth"))
    return Mutant(row["file"], row["scope"], line, column, row["operator"], row["before"], row["after"], nth)


def row_of(number: int, m: Mutant, found: Outcome, of: int) -> dict[str, str]:
    status, test, count, seconds = found
    tried = {"status": status, "test": test, "run": count, "of": of, "seconds": f"{seconds:.2f}"}
    return {name: str(value) for name, value in {"number": number, **asdict(m), **tried}.items()}


def write(place: Path, rows: list[dict[str, str]]) -> None:
    part = place.with_suffix(".part")
    with part.open("w", newline="") as stream:
        table = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    part.replace(place)


def run(todo: list[tuple[int, Mutant]], place: Path, known: Map, budget: float, afresh: bool) -> None:
    """Runs mutants and keeps the record; each of them imported afresh where that is asked for."""
    prepare()
    done = recorded(place)

    def limit(chosen: list[str]) -> float:
        return GRACE + 4 * sum(known.seconds[t] for t in chosen)

    def note(number: int, m: Mutant, o: Outcome, of: int) -> None:
        done.update(recorded(place))  # another call may have gone on meanwhile
        done[m.identity] = row_of(number, m, o, of)
        write(place, sorted(done.values(), key=lambda row: int(row["number"])))
        print(
            f"{number:4} {o[0]:9} {o[2]:4}/{of:<4} {o[3]:6.1f} s  {m.file}:{m.line} {m.before!r} -> {m.after!r}",
            flush=True,
        )

    def each(number: int, m: Mutant, attempt: Callable[[list[str], float], Outcome | None]) -> None:
        chosen, of = known.tests(m, budget)
        found = attempt(chosen, limit(chosen)) if chosen else ("uncovered", "", 0, 0.0)
        if found is not None:
            note(number, m, found, of)

    def loop(some: list[tuple[int, Mutant]], items: dict[str, Any], runner: Runner) -> None:
        process = Warm(items, runner)
        for number, m in some:
            each(number, m, lambda chosen, seconds, m=m: process.attempt(m, chosen, seconds))
        os._exit(0)

    for first in range(0, len(todo), PORTION):  # those of each kind by turns, so that what is done is a sample too
        portion = todo[first : first + PORTION]
        warm = [(i, m) for i, m in portion if m.inside and not afresh]
        tried_warm: set[str] = set()
        if warm:
            child = os.fork()
            if not child:
                collect(partial(loop, warm), paths())
                os._exit(1)
            if os.waitpid(child, 0)[1]:
                raise RuntimeError("the process that mutants are forked from failed, as it says above")
            found = recorded(place)
            tried_warm = {m.identity for _, m in warm if found.get(m.identity) != done.get(m.identity)}
            done.update(found)
        for number, m in portion:  # this process has nothing of ours in it
            if m.identity not in tried_warm:
                each(number, m, lambda chosen, seconds, m=m: fresh(m, chosen, seconds + 60))


# ----------------------------------------------------------------------------------------------------- words


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, p = 1.96, hits / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def explained() -> dict[str, str]:
    if not EXPLAINED.exists():
        return {}
    with EXPLAINED.open(newline="") as stream:
        return {row["identity"]: row["why"] for row in csv.DictReader(stream)}


def score(place: Path) -> str:
    rows, reasons = list(recorded(place).items()), explained()
    lines = [f"{'file':<24}{'mutants':>8}{'killed':>8}{'explained':>10}{'share':>7}"]

    def line(name: str, some: list[tuple[str, dict[str, str]]]) -> str:
        dead = sum(row["status"] not in ALIVE for _, row in some)
        excused = sum(row["status"] in ALIVE and i in reasons for i, row in some)
        return f"{name:<24}{len(some):>8}{dead:>8}{excused:>10}{dead / len(some):>7.1%}"

    parts = {file: [(i, row) for i, row in rows if row["file"] == file] for file in files()}
    lines += [line(file, some) for file, some in parts.items() if some]
    lines.append(line("all", rows))
    dead = sum(row["status"] not in ALIVE for _, row in rows)
    real = len(rows) - sum(row["status"] in ALIVE and i in reasons for i, row in rows)
    total = sum(1 for file in files() for _ in made(file))
    for words, of in (("of all", len(rows)), ("without those that no test can kill", real)):
        low, high = wilson(dead, of)
        lines.append(f"{words}: {dead} of {of} die, {dead / of:.1%} ({low:.1%} to {high:.1%}), a sample of {total}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("map", "run", "again", "show", "score", "survivors"))
    parser.add_argument("number", nargs="*", type=int, help="of mutants: only these")
    parser.add_argument("--sample", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=20, help="seconds of tests a mutant")
    parser.add_argument("--fresh", action="store_true", help="import each mutant afresh, whatever it changes")
    parser.add_argument("--seconds", type=float, default=600, help="seconds of the processor that the map may take")
    parser.add_argument("--map", type=Path, default=ROOT / "build" / "mutants-map.json")
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    if options.what == "map":
        options.map.parent.mkdir(parents=True, exist_ok=True)
        return draw_map(options.map, options.seconds)
    if options.what == "score":
        return print(score(options.record))
    numbered = list(enumerate(sample(options.sample, options.seed)))
    done = recorded(options.record)
    now = {m.identity: m for file in files() for m, _ in made(file)}  # lines may have moved
    alive = [(int(r["number"]), now[i]) for i, r in done.items() if r["status"] in ALIVE and i in now]
    chosen = numbered if options.what in ("run", "show") else alive
    if options.number:
        chosen = [(i, m) for i, m in chosen if i in options.number]
    if options.what in ("show", "survivors"):
        for i, m in chosen:
            print(f"{i:4} {m.file}:{m.line} {m.scope} {m.operator}: {m.before!r} -> {m.after!r}")
        return None
    known = Map(options.map)
    if options.what == "run" and not options.number:
        chosen = [(i, m) for i, m in chosen if m.identity not in done]
        # What is recorded of another sample, or of code that is gone, is none of this one.
        write(options.record, [done[m.identity] | {"number": str(i)} for i, m in numbered if m.identity in done])
    return run(chosen, options.record, known, options.budget, options.fresh)


if __name__ == "__main__":
    main()
