"""benchmarks/mutants.py: small faults put into core. That it makes them, puts them in, and sees which test notices."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import varangian as vg
from varangian.core import geometry

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    place = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules["mutants"] = module  # a dataclass looks its module up
    place.loader.exec_module(module)
    return module


def made(tool: ModuleType, text: str) -> list[tuple[str, str, str]]:
    return [(m.operator, m.before, m.after) for m, _ in tool.made("mixing.py", text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a < b", {("comparison", "a < b", "a <= b")}),
        ("a is b", {("comparison", "a is b", "a is not b")}),
        ("0 < a <= 1", {("comparison", "0 < a <= 1", "0 <= a <= 1"), ("comparison", "0 < a <= 1", "0 < a < 1")}),
        ("a - b", {("arithmetic", "a - b", "a + b")}),
        ("a += b", {("arithmetic", "a += b", "a -= b")}),
        ("a and b", {("logic", "a and b", "a or b")}),
        ("not a", {("sign", "not a", "a")}),
        ("a = 3", {("constant", "3", "4")}),
        ("a = True", {("constant", "True", "False")}),
        ("a = 0.5", {("constant", "0.5", "1.0")}),
        ("a = 'squared'", {("text", "'squared'", "'squaredx'")}),
        ("a if b else c", {("condition", "a if b else c", "a if not b else c")}),
        ("if not a: b()", {("condition", "if not a:", "if a:"), ("omission", "b()", "pass")}),
        ("while a: break", {("condition", "while a:", "while not a:"), ("omission", "break", "pass")}),
        ("[a for a in b if c]", {("filter", "[… for a in b if c]", "[… for a in b]")}),
        ("def f(): return a", {("return", "return a", "return None")}),
        ("raise ValueError('words')", {("omission", "raise ValueError('words')", "pass")}),
        ("a[:b]", {("slice", ":b", ":b + 1")}),
        ("min(a)", {("function", "min(a)", "max(a)")}),
        ("np.any(a, axis=b)", {("function", "np.any(a, axis=b)", "np.all(a, axis=b)")}),
        ("f(a, axis=b)", {("argument", "f(a, axis=b)", "f(a)")}),
    ],
)  # fmt: skip
def test_every_kind_of_fault_is_made(tool: ModuleType, text: str, wanted: set[tuple[str, str, str]]) -> None:
    assert wanted <= set(made(tool, text))


@pytest.mark.parametrize(
    "text", ["'''What it is.'''", "import numpy as np", "a: int", "def f(a: Literal['x']) -> None: ...", "a = f'{b}'"]
)
def test_what_computes_nothing_has_no_faults(tool: ModuleType, text: str) -> None:
    assert [m for m in made(tool, text) if m[0] != "omission"] == []


def test_every_mutant_compiles_and_is_another_program(tool: ModuleType) -> None:
    original = compile(tool.source("mixing.py"), str(tool.CORE / "mixing.py"), "exec", dont_inherit=True)
    mutants = list(tool.made("mixing.py"))
    assert len({m.identity for m, _ in mutants}) == len(mutants) > 100
    assert not [m for m, compiled in mutants if compiled() == original]
    tree = ast.dump(ast.parse(tool.source("mixing.py")))
    again = [m for m, _ in tool.made("mixing.py")]
    assert again == [m for m, _ in mutants]
    assert ast.dump(ast.parse(tool.source("mixing.py"))) == tree


def test_a_sample_is_the_same_again_and_of_every_file_its_share(tool: ModuleType) -> None:
    few, many = tool.sample(200, 0), tool.sample(400, 0)
    assert few == tool.sample(200, 0) != tool.sample(200, 1)
    assert len(few) == pytest.approx(200, abs=10)
    assert {m.identity for m in few} <= {m.identity for m in many}
    total = sum(1 for file in tool.files() for _ in tool.made(file))
    for file in tool.files():
        share = sum(1 for _ in tool.made(file)) / total
        for part in (many, many[:200]):
            assert sum(m.file == file for m in part) == pytest.approx(share * len(part), abs=2)


@pytest.mark.parametrize(
    ("file", "scope", "before", "after", "expression"),
    [
        ("mixing.py", "StaticClipping.needs()", "1", "2", "vg.StaticClipping(2.0).needs"),
        ("mixing.py", "Bucketing.rows()", "-(-n // self.s)", "-n // self.s", "vg.Bucketing(2).rows(5)"),
        ("geometry.py", "power_below()", "1", "2", "geometry.power_below(8.0)"),
        ("geometry.py", "_over_all()", "1", "2", "geometry._over_all(np.eye(2), 3, 0.0)"),
    ],
)  # fmt: skip
def test_a_mutant_lives_in_the_fork_alone(
    tool: ModuleType, file: str, scope: str, before: str, after: str, expression: str
) -> None:
    """Under a decorator, and where Numba had compiled the function and kept it on disk, too."""
    names = {"vg": vg, "np": np, "geometry": geometry}
    honest = repr(eval(expression, names))
    m = [m for m, _ in tool.made(file) if (m.scope, m.before, m.after) == (scope, before, after)][-1]
    exchange = list(tool.exchanged(tool.table(file)[m.identity](), tool.functions()))
    assert [f.__name__ for f, _ in exchange] == [scope.rstrip("()").split(".")[-1]]
    assert m.inside
    assert m.compiled == (scope == "_over_all()")

    def work(write: Callable[[str], None]) -> None:
        for f, code in exchange:
            f.__code__ = code
        if m.compiled:
            tool.compile_anew(file, tool.live_dispatchers())
        write(repr(eval(expression, names)))

    told, status = tool.forked(work, 60)
    assert told not in ("", honest)
    assert "error" not in told
    assert status == 0
    assert repr(eval(expression, names)) == honest


def test_a_constant_is_put_in_by_an_import(tool: ModuleType) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import mutants
m = next(m for m, _ in mutants.made("mixing.py") if (m.scope, m.before) == ("Bucketing", "2"))
assert not m.inside
mutants.import_mutated(mutants.table("mixing.py")[m.identity]())
import varangian
print(varangian.Bucketing().s)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "benchmarks")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3"]


@pytest.mark.slow
def test_nor_does_an_example_of_its_own_file_import_another(tool: ModuleType) -> None:
    """A file whose examples are among the tests is imported by pytest, in a way of its own."""
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import mutants
m = next(m for m, _ in mutants.made("stages.py") if (m.scope, m.after) == ("", "np.ndarray & None"))
mutants.prepare()
print(mutants.fresh(m, ["src/varangian/core/stages.py::varangian.core.stages.Rule.breakdown"], 60)[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "benchmarks")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "killed"


def test_what_takes_for_ever_is_ended_by_time_of_the_processor(tool: ModuleType) -> None:
    def work(write: Callable[[str], None]) -> None:
        write("at some test\n")
        while True:
            pass

    written, status = tool.forked(work, 1)
    assert tool.outcome(written, status, 1) == ("timeout", "some test", 1, 1)


def test_a_verdict_without_a_test_is_an_error_of_the_tool(tool: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="the tool's fault"):
        tool.outcome(*tool.forked(lambda write: None, 5), 5)


def test_which_tests_come_by_a_mutant(tool: ModuleType, tmp_path: Path) -> None:
    """The quickest case of each function first; a compiled function's tests are those of its callers."""
    inside = next(m for m, _ in tool.made("mixing.py") if m.scope == "_clip()")
    compiled = next(m for m, _ in tool.made("rules/search.py") if m.scope == "_coverable()")
    callers = tool.callers("rules/search.py", "_coverable")
    lines = tool.source("rules/search.py").splitlines()
    assert {lines[line - 1].strip().split("(")[0] for line in callers} == {"answer = _coverable"}
    within = {lines[line - 1].strip().split("(")[0] for line in tool.callers("rules/search.py", "_degrees")}
    assert within == {"answer = _coverable", "count = _tightest"}
    found = {
        "a::t[1]": (3.0, {"mixing.py": [inside.line]}),
        "a::t[2]": (1.0, {"mixing.py": [inside.line]}),
        "a::u": (2.0, {"mixing.py": [inside.line], "rules/search.py": [min(callers)]}),
        "a::v": (0.1, {"mixing.py": [1]}),
        "tests/test_search.py::t": (0.1, {}),  # calls it by its name
        "tests/test_rules.py::t": (0.1, {}),
    }
    (tmp_path / "map.json").write_text(json.dumps(found))
    known = tool.Map(tmp_path / "map.json")
    assert known.tests(inside, 100) == (["a::t[2]", "a::u", "a::t[1]"], 3)
    assert known.tests(inside, 3.5) == (["a::t[2]", "a::u"], 3)
    assert known.tests(compiled, 100) == (["tests/test_search.py::t", "a::u"], 2)
