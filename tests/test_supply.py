"""What Varangian stands on: bounded with reasons, declared, pinned within the bounds, and its licences listed."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
OPTIONAL = {"flwr", "ray"}  # imported where they are asked for, and only there
OF_NUMBA = {"llvmlite"}  # its other half, whose version numba itself fixes


def declared() -> dict[str, tuple[Requirement, str]]:
    """Each requirement of pyproject.toml, extras included, with the reason beside it."""
    text = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0].partition("dependencies = [")[2]
    found = re.findall(r'"([\w.\[\]-]+(?:[<>=!~][^"]*)?)"[,\]]*\s*#\s*(.*)', text)
    return {canonicalize_name(Requirement(r).name): (Requirement(r), reason) for r, reason in found}


def test_each_has_a_lower_bound_and_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0].partition("dependencies = [")[2]
    assert len(declared()) == len(re.findall(r'^\s*(?:\w+ = \[)?"', text, re.MULTILINE)) >= 20
    for requirement, reason in declared().values():
        assert {s.operator for s in requirement.specifier} == {">="}, requirement
        assert len(reason) >= 8, requirement


def test_what_is_imported_is_declared() -> None:
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.split(".")[0])
    theirs = {canonicalize_name(name) for name in imported - sys.stdlib_module_names - {"varangian"}}
    assert theirs - OPTIONAL - OF_NUMBA <= declared().keys()
    assert {"torch", "numpy", "requests"} <= theirs


@pytest.mark.parametrize("line", (ROOT / "constraints.txt").read_text().splitlines())
def test_pins_are_within_the_bounds(line: str) -> None:
    line = line.split("#")[0].strip()
    if not line:
        return
    pin = Requirement(line)
    [specifier] = pin.specifier
    assert specifier.operator == "=="
    if canonicalize_name(pin.name) in declared():
        requirement, _ = declared()[canonicalize_name(pin.name)]
        assert requirement.specifier.contains(Version(specifier.version)), line


def test_every_dependency_has_its_licence_listed() -> None:
    page = (ROOT / "docs" / "project" / "licences.md").read_text("utf-8")
    listed = re.findall(r"^\| ([\w.-]+) \| \S+ \| (.+?) \|", page, re.MULTILINE)
    licences = dict(listed)
    assert declared().keys() - licences.keys() <= OPTIONAL
    assert "not stated" not in licences.values()
    # Nothing that would bind who uses Varangian: MPL covers its own files only, and of docutils, which only makes the
    # site, an editor's mode alone is under the GPL.
    assert not [
        name
        for name, licence in listed
        if name != "docutils" and re.search(r"(?<!L)GPL|AGPL|SSPL|Commons Clause", licence)
    ]
