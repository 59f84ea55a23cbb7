"""The tutorials run as plain scripts in an empty folder, leave nothing there, and come to what their text says.

That a script that raises fails the site is checked where the site is built.
"""

from __future__ import annotations

import codeop
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

import programs
import varangian as vg

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "tutorials"
ORDINARY = subprocess.run
SCRIPTS = sorted(path.name for path in FOLDER.glob("[0-9]*.py"))


class Told:
    """What a script came to: its variables, what it printed, and the figures that it showed."""

    def __init__(self, variables: dict[str, Any], printed: str, figures: list[str]) -> None:
        self.variables, self.printed, self.figures = variables, printed, figures

    def __getitem__(self, name: str) -> Any:
        return self.variables[name]


def command_line(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """What a script has a terminal do: commands of this package are forked, as in other tests."""
    if command[1:3] != ["-m", "varangian"] or not options.get("check"):
        return ORDINARY(command, **options)
    done = programs.run(*command[1:], cwd=options["cwd"], env=options["env"], workers=True)
    done.check_returncode()
    return done


def started(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """The script, run as `python name` would in that folder."""
    matplotlib.use("Agg")
    shown: list[str] = []

    def show() -> None:
        for number in plt.get_fignums():
            figure = plt.figure(number)
            titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
            shown.append(" ".join(filter(None, titles)))
        plt.close("all")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(plt, "show", show)
    monkeypatch.setattr(subprocess, "run", command_line)
    monkeypatch.setattr("sys.argv", [name])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before, rules = sorted(folder.iterdir()), dict(vg.RULES)
    try:
        variables = runpy.run_path(str(FOLDER / name), run_name="__main__")
    finally:
        for added in set(vg.RULES) - set(rules):
            del vg.RULES[added]
    printed = capsys.readouterr().out
    assert sorted(folder.iterdir()) == before
    for told in (str(ROOT), str(folder), str(Path.home()), platform.node()):
        assert not re.search(rf"(?<![\w/]){re.escape(told)}(?!\w)", printed), f"{name} prints {told}"
    assert shown, f"{name} shows no figure"
    assert all(shown), "each figure has a title, which the site reads out to those who do not see it"
    return Told(variables, printed, shown)


@pytest.fixture
def told(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Told:
    number = request.node.name.split("_")[1]
    [name] = [script for script in SCRIPTS if script.startswith(number)]
    if number == "05":
        shutil.copy(FOLDER / "ranks.py", tmp_path)
    return started(name, tmp_path, monkeypatch, capsys)


def test_there_are_eight() -> None:
    assert [name[:2] for name in SCRIPTS] == [f"{k:02}" for k in range(1, 9)]
    for name in SCRIPTS:
        assert f"def test_{name[:2]}_" in Path(__file__).read_text("utf-8"), f"{name} has no test"


def pieces(script: str) -> list[str]:
    return re.split(r"^# %%.*\n", (FOLDER / script).read_text("utf-8"), flags=re.MULTILINE)


def test_the_first_can_be_pasted_into_a_session() -> None:
    for piece in pieces(SCRIPTS[0]):
        held: list[str] = []
        for line in (*piece.splitlines(), ""):
            held.append(line)
            if codeop.compile_command("\n".join(held), "<stdin>", "single") is not None:
                held = []
        assert not held, "it waits for more"


@pytest.mark.slow
def test_01_first_robust_run(told: Told) -> None:
    final = {name: result.final_accuracy for name, result in told["runs"].items()}
    assert final["mean, noise"] < 0.2 < 0.8 < final["median, noise"] < final["mean, nobody lies"] + 0.02
    little = {place: [result.final_accuracy for result in found] for place, found in told["little"].items()}
    assert max(little["server"]) < 0.65 < 0.8 < min(little["worker"])
    assert (told["weights"] - told["truth"]).abs().max() < 0.1
    seen = told["train"]("multi-krum", "little", momentum_at="worker").workers().workers
    assert {f"{worker.suspicion:.2f}" for worker in seen[-3:]} == {"0.20"}
    assert f"{max(worker.suspicion for worker in seen[:-3]):.2f}" == "0.17"
    assert [worker.share > 1 for worker in seen[-3:]] == [True, False, False]
    [loop] = [piece for piece in pieces(SCRIPTS[0]) if "algorithm.init" in piece]
    mean = dict(told.variables)
    exec(loop.replace("vg.Median(f)", "vg.Average()"), mean)
    assert mean["weights"].abs().min() > 1e8
    assert len(told.figures) == 2


@pytest.mark.slow
def test_02_own_rule(told: Told) -> None:
    assert told.printed.index("Near breaks the contract in 3 points") < told.printed.index("NearMedian breaks")
    assert len(told["report"].passed) == 17
    assert not told["report"].left_out
    ours, mean = told["table"][-1], told["table"][0]
    assert ours.min() > 70 > 20 > mean[0]


@pytest.mark.slow
def test_03_own_model_and_data(told: Told) -> None:
    chosen = {name: result.chosen.accuracy for name, result in told["trained"].items()}
    assert chosen["mean, attacked"] < 0.6 < 0.9 < min(chosen["median, attacked"], chosen["mean, no attack"])
    assert told["again"].from_disk
    assert not told["first"].from_disk


@pytest.mark.slow
def test_04_grid_and_report(told: Told) -> None:
    worst = {(row["rule"], row["momentum_at"]): float(row["worst"]) for row in told["rows"]}
    assert len(worst) == 6
    assert all(worst[rule, "worker"] > worst[rule, "server"] for rule in ("median", "multi-krum"))
    assert max(worst["average", place] for place in ("server", "worker")) < 20
    assert "heat-final.png" not in told.printed
    assert "report.html" in told.printed


@pytest.mark.slow
def test_05_ddp_bad_rank(told: Told) -> None:
    assert told["accuracy"]["plain"][-1] < 0.3 < 0.8 < told["accuracy"]["protected"][-1]
    first = told.printed.splitlines()[2].split()
    assert first[0] == "3", "rank 3 heads the table"
    assert float(first[4]) > 0.5


@pytest.mark.slow
def test_06_flower(tmp_path: Path) -> None:  # in a process of its own, since Ray's live on in the one that started them
    pytest.importorskip("flwr")
    pytest.importorskip("ray")
    end = subprocess.run(
        [sys.executable, str(FOLDER / SCRIPTS[5])],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert end.returncode == 0, end.stderr
    assert not list(tmp_path.iterdir())
    lines = [line.split() for line in end.stdout.splitlines()]
    last = {words[0]: float(words[-1]) for words in lines if words and words[0] in ("FedAvg", "RobustStrategy")}
    assert last["FedAvg"] < 30 < 75 < last["RobustStrategy"]
    first = lines.index(["node", "share", "suspicion"]) + 1
    assert {words[0] for words in lines[first : first + 3]} == {"0", "1", "2"}, "the poisoned nodes head the table"


@pytest.mark.slow
def test_07_heterogeneous_data(told: Told) -> None:
    cases = told["cases"]
    assert min(cases["equal data, median"]) > 85
    assert cases["unequal, median"][0] < 60, "the median fails with nobody attacking"
    assert min(cases["unequal, NNM + median"]) > 75
    assert told["held"]["dirichlet(alpha=0.1)"].points[0].ratio > 1


@pytest.mark.slow
def test_08_score_card(told: Told) -> None:
    card, right = told["card"], told["right"]
    assert card.verdict[0].startswith("BROKEN")
    assert not right.verdict[0].startswith("BROKEN")
    assert [b.point for b in card.breakdown] == [1] * 6
    assert [b.point for b in right.breakdown] == [*range(1, 7)]
    assert all(k.found == float("inf") for k in card.kappa)
