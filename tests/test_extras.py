"""Without its extras the library works, and what needs one says how to get it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import programs

WITHOUT = "import sys; sys.modules.update(dict.fromkeys(['flwr', 'ray', 'tensorboard']))\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return programs.run("-c", WITHOUT + code, env=environment, timeout=120)


def test_the_library_needs_no_extra() -> None:
    done = python("import varangian as vg, torch; print(vg.Median(f=1)(torch.eye(3)).tolist())")
    assert (done.stdout, done.stderr) == ("[0.0, 0.0, 0.0]\n", "")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import varangian.engines.flower",
            "ImportError: varangian.engines.flower needs Flower (flwr >= 1.22): pip install 'varangian[flower]'.",
        ),
        (
            "from varangian.study.sweep import sweep; sweep([], 'never', ray='auto')",
            "ValueError: --ray needs Ray: pip install 'varangian[ray]'.",
        ),
        (
            "import varangian as vg; vg.run(vg.Experiment(steps=1), 'never', tensorboard=True)",
            "ValueError: tensorboard: the package of that name is missing: pip install 'varangian[tensorboard]'.",
        ),
    ],
)
def test_what_needs_an_extra_says_so(code: str, message: str, tmp_path: object) -> None:
    done = python(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == message
    assert "During handling" not in done.stderr
