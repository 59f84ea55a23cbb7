"""Adding a rule touches four places: its class, a line in RULES, its oracle, and the CHANGELOG.

Done once, in a copy of the package and of the tests: all else must find the rule by itself.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import programs

ROOT = Path(__file__).parents[1]

# 1. The class, in the file of its family.
CLASS = '''

@dataclass(frozen=True)
class Midmost(Selecting):
    """The mean of the n - f vectors around each of which the least ball holds n - f vectors.

    F = mean of x_i over the n - f least radii;  radius_i = the (n - f)-th least ||x_i - x_j||, x_i itself counted

    Args:
        f: Byzantine vectors tolerated.
    """

    title: ClassVar[str] = "The midmost"
    score_name: ClassVar[str] = "radius of the ball that holds n - f vectors"

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def score(self, geometry: Geometry) -> np.ndarray:
        return np.sqrt(np.sort(geometry.distances, axis=1)[:, geometry.n - self.f - 1])

    def weights(self, geometry: Geometry) -> np.ndarray:
        count = geometry.n - self.f
        geometry, scores = sure_scores(geometry, self.score, [count])
        return mean_weights(geometry.smallest(scores, count), geometry.n)
'''
# 2. Its line in RULES.
TABLE = (
    ('    "lasa": LASA,\n', '    "lasa": LASA,\n    "midmost": Midmost,\n'),
    ("MinimumDiameterAveraging, MultiKrum\n", "Midmost, MinimumDiameterAveraging, MultiKrum\n"),
)
# 3. Its definition once more, for the tests.
ORACLE = '''

def midmost(x: ArrayLike, f: int) -> Array:
    """The mean of the n - f vectors of least radius: the distance to the (n - f)-th nearest, itself counted."""
    x = matrix(x)
    n = len(x)
    radii = np.sort(np.sqrt(squared_distances(x)), axis=1)[:, n - f - 1]
    return x[ranked(radii, x)[: n - f]].mean(0)
'''
# 4. A line in the CHANGELOG, which nothing reads.

SEEN = """
import json, torch, varangian as vg
from varangian.study.report.layout import rule_title
x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
rule = vg.RULES["midmost"](f=1)
found = vg.explain(x, rule)
made = vg.run(vg.Experiment(rule="midmost", attack="little", workers=5, byzantine=1, steps=2))
print(json.dumps([rule_title("midmost"), found.score_name, found.suspicion.tolist(), str(vg.testing.check_rule(rule)),
                  made.experiment.rule]))
"""


def edit(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text("utf-8")
    for old, new in pairs:
        assert text.count(old) == 1, (path, old)
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its tests, and a rule more."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", root / "src")  # with the compiled kernels beside their sources
    shutil.copytree(ROOT / "tests", root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    rules = root / "src/varangian/core/rules"
    for path, text in ((rules / "selecting.py", CLASS), (root / "tests/oracles.py", ORACLE)):
        path.write_text(path.read_text("utf-8") + text, "utf-8")
    edit(rules / "__init__.py", *TABLE)
    return root


def run(copy: Path, *arguments: str) -> str:
    done = programs.run(*arguments, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy / "src")})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_tests_of_the_catalogue_take_it(copy: Path) -> None:
    files = (
        "rules",
        "explain",
        "oracles",
        "states",
        "draws",
        "surroundings",
        "layouts",
        "ranges",
        "testing",
        "sharded",
    )
    chosen = [f"tests/test_{name}.py" for name in files]
    printed = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-k", "midmost", *chosen)
    passed = int(printed.rpartition(" passed")[0].split()[-1])
    assert passed > 25, printed


def test_lists_explanations_reports_and_runs_take_it(copy: Path) -> None:
    listed = json.loads(run(copy, "-m", "varangian", "list", "rules", "--json"))["rules"]
    assert listed["midmost"].startswith("The mean of the n - f vectors around each of which")
    title, score, suspicion, report, rule = json.loads(run(copy, "-c", SEEN).splitlines()[-1])
    assert (title, score, rule) == ("The midmost", "radius of the ball that holds n - f vectors", "midmost")
    assert suspicion == pytest.approx([0, 0, 0, 1 - 1 / 8])  # 1, 0, 1, 8 away from 1
    assert "0 not tried" in report.splitlines()[0]
