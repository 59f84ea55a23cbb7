"""The floors of the package: who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import varangian

ROOT = Path(varangian.__file__).parent
BELOW = {  # a floor: those that it may stand on
    "core": set(),
    "testing": {"core"},
    "simulation": {"core"},
    "engines": {"core"},
    "runs": {"core", "simulation"},
    "study": {"core", "testing", "simulation", "runs"},  # a score card holds what the conformance suite says
    "cli": {"core", "testing", "simulation", "engines", "runs", "study"},
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it: core.checks, study.report.page ..."""
    place = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = place[: len(place) - node.level + 1]
            module = [*base, *(node.module or "").split(".")] if node.module else list(base)
            for alias in node.names:
                inner = ROOT.joinpath(*module, alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.add(".".join([*module, alias.name] if is_module else module))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "varangian":
            found.add((node.module or "").partition(".")[2])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "varangian"}
    return {module.removesuffix(".__init__") for module in found} - {"", "__version__"}


def floor(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_arrow_points_up(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    assert {floor(module) for module in imported(path)} <= {own} | BELOW[own]


def test_every_floor_is_known() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(BELOW)
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 14, sorted(path.name for path in entries)


def test_there_is_no_circle() -> None:
    """No file imports one that, directly or through others, imports it."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    arrows = {names[path]: {m for m in imported(path) if m in names.values()} for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for below in sorted(arrows[module] - {module}):
                visit(below, (*way, module))
            done.add(module)

    for module in sorted(arrows):
        visit(module, ())


def test_the_core_knows_no_module_of_torch_and_no_file() -> None:
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != "core":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not (module == "torch" and "nn" in names), path
            if "kernels" not in path.parts:  # they keep what is compiled
                assert not {"pathlib", "subprocess"} & {module, *names}, path
                if path.name != "references.py":  # a name may be of a file, which is then imported as any module is
                    assert not (isinstance(node, ast.Name) and node.id == "open"), path
                    assert not {"os", "importlib"} & {module, *names}, path


def printing(tree: ast.AST) -> list[int]:
    """Lines that write to the terminal by themselves: print, echo of click, sys.stdout or sys.stderr written to."""
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = ast.unparse(node.func)
        streams = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}
        writes = called.rpartition(".")[0] in streams and called.rpartition(".")[2] in ("write", "writelines")
        makes = called.rpartition(".")[2] == "Console" and not node.args  # consoles are handed in
        if writes or makes or called in ("print", "builtins.print", "click.echo", "click.secho", "rich.print"):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] != "cli"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_only_the_command_line_prints(path: Path) -> None:
    assert printing(ast.parse(path.read_text("utf-8"))) == []


def test_what_prints_is_seen() -> None:
    for text in ("print(1)", "sys.stderr.write('x')", "click.echo('x')", "Console(stderr=True)"):
        assert printing(ast.parse(text)) == [1]
    for text in ("output.print(1)", "file.write('x')", "logger.info('x')", "sys.stdout.isatty()"):
        assert printing(ast.parse(text)) == []


def test_names_in_docstrings_are_set_as_code() -> None:
    """Two backticks on each side: with one the reference shows the backticks."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                found += [f"{path.name}: {bare}" for bare in re.findall(r"(?<![`:\w])`(?!`)[^`\n]+`(?!`)", text)]
    assert found == []
