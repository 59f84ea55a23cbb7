"""The public names: what `vg.<TAB>`, `help(varangian)` and an editor show, and what importing them costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import pydoc
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_origin

import pytest

import varangian as vg

SOURCE = Path(vg.__file__)


def of_the_editor() -> dict[str, str]:
    """The names that a type checker sees, and the modules that it takes them from."""
    [block] = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name
            found[alias.name] = node.module or ""
    return found


def test_editor_and_interpreter_see_the_same_names() -> None:
    homes = dict.fromkeys(("engines", "testing"), "") | vg._HOME_OF
    assert of_the_editor() == homes
    assert sorted(homes) == vg.__all__ == sorted(set(vg.__all__))


@pytest.mark.parametrize("name", vg.__all__)
def test_each_is_ours_and_described(name: str) -> None:
    value = getattr(vg, name)
    if (isinstance(value, type) and get_origin(value) is None) or inspect.isfunction(value):
        assert value.__module__.startswith("varangian.")
        assert (value.__doc__ or "").strip()


def test_no_module_bears_the_name_of_a_function() -> None:
    modules = {module.name for module in pkgutil.iter_modules(vg.__path__)}
    assert not modules & set(vg._HOME_OF)
    for module in modules - {"__main__"}:
        importlib.import_module(f"varangian.{module}")
    assert callable(vg.explain)
    assert callable(vg.replay)


def test_what_tab_and_help_show() -> None:
    assert dir(vg) == sorted([*vg.__all__, "__version__"])
    text = pydoc.plain(pydoc.render_doc(vg))
    for name in ("Experiment", "MultiKrum", "run", "flatten"):
        assert name in text


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'varangian' has no attribute 'medain'"):
        _ = vg.medain  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("code", ["import varangian", "import varangian.cli.catalogue"])
def test_nothing_heavy_is_imported_for_the_name_alone(code: str) -> None:
    heavy = "{'torch', 'numpy', 'numba', 'pydantic', 'matplotlib'}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print({heavy} & set(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "set()"


def test_a_run_imports_no_compiler_of_torch(tmp_path: Path) -> None:
    """Which takes a second, and which a mode that looks at operations would have torch import at the first of them."""
    code = """
import sys
import varangian as vg
vg.run(vg.Experiment(rule="median", workers=3, byzantine=1, batch_size=2, steps=1, evaluate_every=0), sys.argv[1])
print("torch._dynamo" in sys.modules)
"""
    line = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_setting_is_described() -> None:
    text = pydoc.plain(pydoc.render_doc(vg.Experiment))
    for setting in fields(vg.Experiment):
        assert f"{setting.name}: {setting.metadata['help'].split()[0]}" in text
