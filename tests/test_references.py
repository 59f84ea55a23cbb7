"""Code of one's own, by reference: found from everywhere, part of what a run is, and imported for its owner only."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import programs
import varangian as vg
from varangian.core import references
from varangian.core.references import importing
from varangian.runs.fields import column_of
from varangian.runs.results import settings_of
from varangian.study.outcomes import (
    attack_name,
    collect,
    command,
    condition,
    from_result,
    least_n,
    rule_name,
    write_runs,
)
from varangian.study.report import judge, report
from varangian.study.report.layout import groups
from varangian.study.sweep import sweep

RULE = '''
from dataclasses import dataclass

import varangian as vg


@dataclass(frozen=True)
class MyRule(vg.General):
    """The mean of the m vectors nearest to the median of each coordinate."""

    m: int = 5
    share: float = 1.0

    @property
    def needs(self):
        return "2f + 1", 2 * self.f + 1

    def combine(self, x, previous):
        distances = (x - x.median(dim=0).values).norm(dim=1)
        return x[distances.topk(min(self.m, len(x)), largest=False).indices].mean(dim=0)


tuned = MyRule(f=3, m=2)
ours = vg.Median(f=2, even="lower")


def made(f, m=2):
    return MyRule(f=f, m=m)


class Outer:
    Inner = MyRule


class NoRule:
    pass


class Unfinished(vg.General):
    pass


def plain(x):
    return x.mean(dim=0)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds my_rule.py, and is the current one; what is known of references is forgotten afterwards."""
    monkeypatch.setattr(references, "_known", references._Known())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rule.py").write_text(RULE)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def experiment(**settings: object) -> vg.Experiment:
    return vg.Experiment.from_dict({"rule": "my_rule.py:MyRule", "attack": "little", "steps": 3} | settings)


@pytest.mark.parametrize(
    ("text", "kept", "made"),
    [
        ("my_rule.py:MyRule", "my_rule.py:MyRule", "MyRule(f=3)"),
        ("./my_rule.py:MyRule( share = 0.5, m=7 )", "my_rule.py:MyRule(m=7, share=0.5)", "MyRule(f=3, m=7, share=0.5)"),
        ("my_rule.py:MyRule(m=5, f=3)", "my_rule.py:MyRule", "MyRule(f=3)"),
        ("my_rule.py:MyRule(f=2)", "my_rule.py:MyRule(f=2)", "MyRule(f=2)"),
        ("my_rule:MyRule(m=4)", "my_rule:MyRule(m=4)", "MyRule(f=3, m=4)"),
        ("my_rule.py:Outer.Inner", "my_rule.py:Outer.Inner", "MyRule(f=3)"),
        ("my_rule.py:made(m=2)", "my_rule.py:made", "MyRule(f=3, m=2)"),
        ("my_rule.py:tuned", "my_rule.py:MyRule(m=2)", "MyRule(f=3, m=2)"),
        ("my_rule.py:ours", "median(f=2, even='lower')", "Median(f=2, even='lower')"),
    ],
)
def test_a_rule_by_reference(here: Path, text: str, kept: str, made: str) -> None:
    path = sys.path[:]
    e = experiment(rule=text)
    assert e.rule == kept
    assert sys.path == path
    assert str(e.make_rule()) == made
    again = vg.Experiment.from_json(e.to_json())
    assert (again, again.digest, again.name) == (e, e.digest, e.name)


def test_whoever_has_not_imported_it_sees_the_same_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment(rule="my_rule.py:MyRule(m=4)", attack="worst-case(directions=('my_attack.py:Mine(z = 2)',))")
    monkeypatch.setattr(references, "_known", references._Known())
    with importing(False):
        read = vg.Experiment.from_json(e.to_json())
    assert (read, read.digest, read.name) == (e, e.digest, e.name)
    assert "-my_rule.MyRule_m=4-" in e.name
    with pytest.raises(references.NotImported, match="--trust"):
        read.make_rule()


@pytest.fixture(autouse=True)
def _attack(here: Path) -> None:
    (here / "my_attack.py").write_text(
        "from dataclasses import dataclass\nimport varangian as vg\n\n\n@dataclass(frozen=True)\n"
        "class Mine(vg.Attack):\n    z: float = 1.0\n\n    def craft(self, seen):\n        return -self.z * seen.mean\n"
    )


def test_a_run_goes_on_and_is_read(here: Path) -> None:
    result = vg.run(experiment(attack="my_attack.py:Mine(z=2)"), "runs")
    assert result.folder is not None
    [name] = os.listdir("runs")
    assert name.startswith("digits-fully-connected-my_rule.MyRule-my_attack.Mine_z=2.0-n15-f3")
    [session] = json.loads((result.folder / "environment.json").read_text())["sessions"]
    assert [(c["name"], c["file"]) for c in session["code"]] == [
        ("my_rule.py:MyRule", "my_rule.py"), ("my_attack.py:Mine", "my_attack.py"),
    ]  # fmt: skip
    assert result.experiment.code_hash is not None
    assert vg.run(experiment(attack="my_attack.py:Mine(z=2)"), "runs").from_disk
    again = python("-m", "varangian", "replay", result.folder, "--step", 1, "--trust")
    assert "its measures are those of the folder" in again.stdout, again.stderr
    (here / "my_rule.py").write_text(RULE.replace("distances.topk", "(2 * distances).topk"))
    program = "import varangian as vg; import sys; e = vg.Experiment.from_json(open(sys.argv[1]).read()); vg.run(e)"
    end = python("-c", program, result.folder / "experiment.json")
    assert "the code of this experiment is no longer what it was" in end.stderr


def python(*words: object) -> subprocess.CompletedProcess[str]:
    return programs.run(*words)


@pytest.mark.usefixtures("forked")
def test_in_the_processes_of_a_sweep(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [experiment(attack=attack, seed=seed) for attack in ("my_attack.py:Mine", "little") for seed in (1, 2)]
    monkeypatch.chdir("/")  # they know what was found, not where this process is now
    result = sweep(grid, here / "study", jobs=2)
    assert (result.done, result.failed) == (4, ())
    assert len(collect(here / "study")[0]) == 4


# ---------------------------------------------------------------------------------------------------- whose code it is

EVIL = "from pathlib import Path\nPath({sentinel!r}).write_text('imported')\n" + RULE.replace("MyRule", "X")
SETTINGS = ("rule", "pre", "attack", "model", "dataset", "partition", "loss", "metrics")
NAMES = {
    "a file": "evil.py:X",
    "a file with options": "evil.py:X(m=2)",
    "a module": "evil_module:X",
    "an entry point": "evil-offer",
}


def stranger(place: Path, setting: str, name: str) -> Path:
    """A complete run in a folder, whose settings name code."""
    kept = vg.run(vg.Experiment(model="linear", attack="empire", steps=2, workers=11, byzantine=2), place)
    assert kept.folder is not None
    values = json.loads((kept.folder / "experiment.json").read_text())
    if setting == "nested":
        values["attack"] = f"worst-case(directions=({name!r},))"
    else:
        values[setting] = [name] if setting in ("pre", "metrics") else name
    (kept.folder / "experiment.json").write_text(json.dumps(values))
    if setting == "metrics":
        rows = (kept.folder / "evaluations.csv").read_text().splitlines()
        more = [column_of(name), *["0.5"] * (len(rows) - 1)]
        (kept.folder / "evaluations.csv").write_text("".join(f"{a},{b}\n" for a, b in zip(rows, more, strict=True)))
    with importing(False):
        digest = vg.Experiment.from_folder(json.dumps(values)).digest
    summary = json.loads((kept.folder / "result.json").read_text()) | {"digest": digest}
    (kept.folder / "result.json").write_text(json.dumps(summary))
    return kept.folder


@pytest.fixture
def sentinel(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What code writes that is imported, wherever it is: in the current folder, in an importable one, in a package."""
    sentinel = here / "sentinel"
    text = EVIL.format(sentinel=str(sentinel))
    site = here / "site"
    (site / "evil-1.0.dist-info").mkdir(parents=True)
    (site / "evil-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    groups = "\n".join(f"[{group}]\nevil-offer = evil_module:X" for group in dict.fromkeys(references.GROUPS.values()))
    (site / "evil-1.0.dist-info" / "entry_points.txt").write_text(groups)
    (site / "evil_module.py").write_text(text)
    (here / "evil.py").write_text(text)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    references.offered.cache_clear()
    yield sentinel
    references.offered.cache_clear()


def assert_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"would be imported from .*--trust, or trust=True") as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", [*SETTINGS, "nested"])
def test_nothing_that_a_folder_names_is_imported(here: Path, sentinel: Path, setting: str, name: str) -> None:
    if setting in ("loss", "metrics") and name == "an entry point":
        pytest.skip("packages offer none")
    folder = stranger(here / "runs", setting, NAMES[name])
    shutil.copy(here / "evil.py", folder)
    shutil.copy(here / "evil.py", folder.parent)
    result = vg.read(folder)
    e = result.experiment
    for text in (rule_name(e), attack_name(e), command(e), e.name, e.digest, str(result), condition(e), least_n(e)):
        str(text)
    write_runs(here, [from_result(result)])
    if (setting, name) in (("rule", "a file"), ("nested", "a module")):  # which takes seconds
        report([from_result(result)], here / "page", say=str)
    judge(groups([from_result(result)]))
    for other in (replace(e, seed=2, measure=False), replace(e, clip=None)):  # made of what was read
        assert str((other.name, other.digest))
    assert [o.experiment for o in collect(here / "runs.csv")[0]] == [e]
    assert settings_of(folder) == e
    assert vg.resume(folder).experiment == e
    refused: list[Callable[[], object]] = [lambda: vg.replay(folder, 1), lambda: vg.run(e)]
    if setting == "model":
        refused += [result.model, lambda: vg.load_model(folder)]
    else:
        vg.load_model(folder)
    for call in refused:
        assert_refused(call)
    (folder / "result.json").unlink()
    assert_refused(lambda: vg.resume(folder))
    assert not sentinel.exists()
    assert not [module for module in sys.modules if "evil" in module]
    with contextlib.suppress(ValueError, TypeError):  # a rule is none of the other things
        vg.resume(folder, trust=True)
    assert sentinel.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a file", "an entry point"])
def test_nor_by_the_commands(here: Path, sentinel: Path, name: str) -> None:
    folder = stranger(here / "runs", "rule", NAMES[name])
    config = {"rule": NAMES[name], "dataset": "evil.py:X", "attack": "evil.py:X", "nb-steps": 2}
    (here / "theirs").mkdir()
    (here / "theirs" / "config.json").write_text(json.dumps(config))
    for file in ("eval", "study"):
        (here / "theirs" / file).write_text("")
    assert python("-m", "varangian", "report", "runs").returncode == 0
    assert python("-m", "varangian", "import", "theirs").returncode == 2
    assert python("-m", "varangian", "list").returncode == 0
    (folder / "result.json").unlink()
    for words in (["replay", folder, "--step", 1], ["run", "--resume", folder]):
        end = python("-m", "varangian", *words)
        assert (end.returncode, "--trust" in end.stderr, "\n" in end.stderr.strip()) == (2, True, False), end.stderr
        assert not sentinel.exists()
        assert "made with other data or other code" in python("-m", "varangian", *words, "--trust").stderr
        assert sentinel.exists()
        sentinel.unlink()


def test_what_this_process_imported_is_known(here: Path) -> None:
    folder = vg.run(experiment(), "runs").folder
    assert folder is not None
    (folder / "result.json").unlink()
    assert vg.resume(folder).experiment.rule == "my_rule.py:MyRule"
    assert vg.replay(folder, 1).agrees


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rul.py:MyRule", r"rule 'my_rul.py:MyRule': there is no file .*/my_rul.py\. Did you mean 'my_rule.py'\?"),
        ("my_rule.py:MyRul", r"rule 'my_rule.py:MyRul': my_rule.py has no MyRul\. Did you mean 'MyRule'\?"),
        ("my_rule.py:Outer.Inne", r"my_rule.py has no Outer.Inne\. Did you mean 'Inner'\?"),
        ("no_such.module:MyRule", r"rule 'no_such.module:MyRule': there is no module no_such here, nor among what is"),
        (
            "my_rule.py:NoRule",
            "my_rule.py:NoRule is no rule, which is a class derived from General, Selecting or Coordinatewise, "
            "got the class NoRule.",
        ),
        ("my_rule.py:plain", "my_rule.py:plain is no rule, which is a class derived from"),
        ("my_rule.py:vg", "my_rule.py:vg is no rule, which is a class derived from"),
        ("my_attack.py:Mine", "my_attack.py:Mine is no rule"),
        ("my_rule.py:Unfinished", "Unfinished cannot be made: it lacks combine"),
        ("my_rule.py:MyRule(n=3)", "my_rule.py:MyRule: unknown option 'n'. Known: f, m, share"),
        ("my_rule.py:MyRule(m=x)", "my_rule.py:MyRule: m must be a valid integer, got 'x'"),
        ("my_rule.py:MyRule(3)", "options are written my_rule.py:MyRule(option=value, ...), values as in Python"),
        ("rulé.py:MyRule", "rule 'rulé.py:MyRule': names and options are written in ASCII, without line breaks"),
        ("pipe.py:MyRule", r"rule 'pipe.py:MyRule': .*/pipe.py is no file\.$"),  # and it is not waited for
        ("loop.py:MyRule", r"rule 'loop.py:MyRule': .*/loop.py: Too many levels of symbolic links\.$"),
        ("huge.py:MyRule", r"rule 'huge.py:MyRule': .*/huge.py is no program: it has over 16,777,216 bytes\.$"),
        ("torn.py:MyRule", r"rule 'torn.py:MyRule': .*/torn.py, line 2: "),
        ("ends.py:MyRule", "its file is a program that ends as it is imported"),
        ("needs_f.py:NeedsF", "needs_f.py:NeedsF needs size: write needs_f.py:NeedsF"),
    ],
)
def test_what_cannot_be_found(here: Path, name: str, message: str) -> None:
    (here / "torn.py").write_text("import os\ndef f(:\n")
    (here / "ends.py").write_text("raise SystemExit(3)\n")
    os.mkfifo(here / "pipe.py")
    (here / "loop.py").symlink_to("loop.py")
    with (here / "huge.py").open("wb") as file:
        file.truncate(2**24 + 1)
    (here / "needs_f.py").write_text(
        f"from dataclasses import dataclass, field\nimport varangian as vg\n{RULE.split('tuned')[0]}\n"
        "@dataclass(frozen=True, kw_only=True)\nclass NeedsF(MyRule):\n    size: int\n"
    )
    for _ in range(2):  # the second time as the first
        with pytest.raises(vg.ConfigurationError, match=re.escape(message) if "(" in message else message) as error:
            experiment(rule=name)
        assert len(error.value.faults) == 1
    end = python("-m", "varangian", "run", "--rule", name, "--steps", 1)
    assert (end.returncode, end.stderr.count("\n")) == (2, 1), end.stderr


def test_an_error_of_ones_own_keeps_its_place(here: Path) -> None:
    (here / "broken.py").write_text("import varangian as vg\n\nx = int('one')\n")
    with pytest.raises(ValueError, match=r"^invalid literal") as error:
        experiment(rule="broken.py:MyRule")
    assert error.traceback[-1].lineno + 1 == 3
    end = python("-m", "varangian", "run", "--rule", "broken.py:MyRule")
    assert (end.returncode, end.stderr.count("\n")) == (1, 1)
    assert end.stderr.startswith("varangian: ValueError at broken.py, line 3: invalid literal for int() with base 10: ")


# -------------------------------------------------------------------------------------------------- files and modules


def test_siblings_are_those_of_the_file(here: Path) -> None:
    for folder, size in (("one", 1), ("two", 2)):
        (here / folder).mkdir()
        (here / folder / "helper.py").write_text(f"SIZE = {size}\n")
        (here / folder / "mine.py").write_text(
            RULE.replace("m: int = 5", "m: int = SIZE") + "\nfrom helper import SIZE"
        )
        text = (
            (here / folder / "mine.py")
            .read_text()
            .replace("import varangian", "from helper import SIZE\nimport varangian")
        )
        (here / folder / "mine.py").write_text(text)
    assert [experiment(rule=f"{f}/mine.py:MyRule").make_rule().m for f in ("one", "two", "one")] == [
        1,
        2,
        1,
    ]


def test_a_module_is_one_however_it_is_reached(here: Path) -> None:
    (here / "attacks.py").write_text((here / "my_attack.py").read_text() + "\nfrom my_rule import MyRule\n")
    references.find  # noqa: B018
    with importing(True):
        attacks = references.find("rule", "attacks.py:MyRule")
        assert references.find("rule", "my_rule.py:MyRule") is attacks
    (here / "package").mkdir()
    (here / "package" / "__init__.py").write_text("")
    (here / "package" / "inner.py").write_text("from .other import VALUE\nclass X:\n    pass\n")
    (here / "package" / "other.py").write_text("VALUE = 1\n")
    with importing(True):
        assert references.find("rule", "package/inner.py:X") is references.find("rule", "package.inner:X")


def test_values_describe_themselves(here: Path) -> None:
    with importing(True):
        rule, attack = references.find("rule", "my_rule.py:MyRule"), references.find("attack", "my_attack.py:Mine")
    e = vg.Experiment(rule=rule(f=3, m=7), pre=vg.NearestNeighborMixing(3), attack=attack(z=2.0), steps=3)
    assert (e.rule, e.attack) == ("my_rule.py:MyRule(m=7)", "my_attack.py:Mine(z=2.0)")
    assert e == experiment(rule="my_rule.py:MyRule(m=7)", pre="nnm", attack="my_attack.py:Mine(z=2)")
    (here / "script.py").write_text(
        RULE + "\nif __name__ == '__main__':\n    e = vg.Experiment(rule=MyRule(f=3, m=7), steps=2)\n"
        "    print(e.rule)\n    assert type(e.make_rule()) is MyRule\n    vg.run(e)\n"
    )
    assert python("script.py").stdout == "script.py:MyRule(m=7)\n"
    end = python("-c", f"{RULE}\nvg.Experiment(rule=MyRule(f=3))")
    assert "MyRule has no name, and nobody else could find it where it was made: put it into a file" in end.stderr


# ------------------------------------------------------------------------------------------------ packages that offer


def test_what_packages_offer(here: Path, sentinel: Path) -> None:
    listed = json.loads(python("-m", "varangian", "list", "rules", "--json").stdout)["rules"]
    assert listed["evil-offer"] == "offered by evil 1.0 (evil_module:X)"
    assert not sentinel.exists()
    e = experiment(rule="evil-offer(m=2)")
    assert (str(e.make_rule()), "-evil-offer_m=2-" in e.name) == ("X(f=3, m=2)", True)
    assert e.origins() == [{"name": "evil-offer", "package": "evil 1.0 (evil_module:X)"}]
    with pytest.raises(ValueError, match=r"unknown rule 'evil-ofer'. Did you mean 'evil-offer'"):
        experiment(rule="evil-ofer")


def test_a_name_is_offered_once_and_shadows_nothing(here: Path, sentinel: Path) -> None:
    other = here / "site" / "other-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[varangian.rules]\nevil-offer = other:Y\nmedian = evil_module:X\n")
    references.offered.cache_clear()
    with pytest.raises(
        ValueError, match=r"is offered by several packages: .*evil 1.0 .*other 2.0|other 2.0 .*evil 1.0"
    ):
        experiment(rule="evil-offer")
    assert type(experiment(rule="median").make_rule()) is vg.Median
    with pytest.raises(ValueError, match="unknown rule 'medain'") as raised:
        experiment(rule="medain")
    names = str(raised.value).partition(" Known: ")[2].rstrip(".").split(", ")
    assert len(names) == len(set(names))
    listed = python("-m", "varangian", "list", "rules").stdout
    assert "not used, since the name is taken: offered by other 2.0" in " ".join(listed.split())
    assert not sentinel.exists()
