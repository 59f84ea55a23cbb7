"""What README and docs/howto/runs.md tell to write runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import programs

README = Path(__file__).parents[1] / "README.md"
RUNS = Path(__file__).parents[1] / "docs" / "howto" / "runs.md"
WHOLE = [
    code
    for page in (README, RUNS)
    for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    if "vg.run(" in code
]


def test_there_are_four_whole_programs() -> None:
    assert len(WHOLE) == 4


@pytest.mark.slow
@pytest.mark.parametrize("code", WHOLE, ids=["a-run", "a-rule-of-ones-own", "a-model-of-ones-own", "a-run-again"])
def test_readme_runs(code: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(code, "utf-8")
    done = programs.run("program.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 1
