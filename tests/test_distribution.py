"""The archives of a release: that they hold what they should, read well elsewhere, and work outside of the clone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomlkit
import yaml
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

import varangian as vg
from varangian import cli

ROOT = Path(__file__).parents[1]
JUNK = (
    ".venv/bin/python", ".venv-dist/x", "runs/a/result.json", "build/site/index.html", "dist/varangian-0.0.whl",
    "src/varangian/core/__pycache__/stages.nbc", ".coverage", ".hypothesis/x", ".ruff_cache/x", "tests/.pytest_cache/x",
)  # fmt: skip


def script() -> Any:
    """docs/project/release.py."""
    place = importlib.util.spec_from_file_location("release_script", ROOT / "docs/project/release.py")
    assert place is not None
    assert place.loader is not None
    module: ModuleType = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module  # where dataclasses look for it
    place.loader.exec_module(module)
    return module


release = script()


def build(kind: str, source: Path, out: Path) -> Path:
    """As a front end calls it, in a process of its own."""
    code = f"import hatchling.build, sys; print(hatchling.build.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("what belongs to the sources is known to git alone")
    return release.tracked(ROOT)


@pytest.fixture(scope="module")
def dist(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of a copy of what is tracked, with what work leaves lying about."""
    pytest.importorskip("hatchling.build", reason="hatchling builds the archives")
    pytest.importorskip("hatch_fancy_pypi_readme", reason="hatch-fancy-pypi-readme writes the long description")
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in JUNK:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("junk")
    for name, content in files.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(content)
    build("sdist", clone, out)
    build("wheel", clone, out)
    return out


def test_the_archives_hold_all_that_is_tracked_and_nothing_else(dist: Path, files: dict[str, bytes]) -> None:
    archives = release.read(dist)
    assert release.faults_of_archives(archives, files) == []
    assert len(archives.wheel) > 150


def test_the_wheel_of_the_source_archive_is_the_same(dist: Path, tmp_path: Path) -> None:
    for name, content in release.read(dist).source.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    [wheel] = dist.glob("*.whl")
    assert build("wheel", tmp_path / "source", tmp_path).read_bytes() == wheel.read_bytes()


def test_metadata(dist: Path) -> None:
    found = release.read(dist).metadata
    assert (found["Name"], found["Version"]) == ("varangian", vg.__version__)
    assert found["Requires-Python"] == ">=3.10"
    assert found["License-Expression"] == "MIT AND CC-BY-4.0"
    assert found["Description-Content-Type"] == "text/markdown"
    needs = [Requirement(text) for text in found.get_all("Requires-Dist", [])]
    assert {"torch", "numba", "click"} <= {need.name for need in needs if need.marker is None}
    assert not {"pytest", "flwr", "ray", "sphinx"} & {need.name for need in needs if need.marker is None}
    assert {"flower", "ray", "tensorboard"} <= set(found.get_all("Provides-Extra", []))


def test_the_long_description_is_readme_without_what_leads_nowhere(dist: Path) -> None:
    text = release.read(dist).description
    readme = (ROOT / "README.md").read_text("utf-8")
    fences = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    assert fences.findall(text) == fences.findall(readme)
    inline = re.compile(r"`[^`\n]+`")
    assert inline.findall(fences.sub("", text)) == inline.findall(fences.sub("", readme))
    assert re.findall(r"\]\((https?://[^)]+)\)", text) == re.findall(r"\]\((https?://[^)]+)\)", readme)
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    links = re.findall(r'(?:href|src|srcset)="([^"]*)"', html)
    assert [link for link in links if not link.startswith(("https://", "http://", "#"))] == []
    assert "](" not in re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", html, flags=re.DOTALL)  # a link half taken apart


def test_what_the_page_tells_to_fill_in_makes_whole_links() -> None:
    page = (ROOT / "docs/project/release.md").read_text("utf-8")
    [block] = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    text = (ROOT / "README.md").read_text("utf-8")
    for change in tomlkit.parse(block)["substitutions"]:  # pyright: ignore[reportGeneralTypeIssues]
        replacement = change["replacement"].replace("PLACE", "https://example.org/v").replace("$HFPR_VERSION", "1.0")
        text = re.sub(change["pattern"], replacement, text)
    assert release.relative_links(text) == []
    assert "](https://example.org/v/raw/v1.0/docs/" in text
    assert "](https://example.org/v/blob/v1.0/docs/" in text


def test_relative_links_are_seen() -> None:
    text = '[a](docs/a.md) [b](https://b.org) ![c](d.png "t")\n<img src="e.svg">\n`[f](g)`\n'
    text += "```\n[h](i)\n```\n[j]: k.md\n[l](#m)"
    assert release.relative_links(text) == ["docs/a.md", "d.png", "e.svg", "k.md"]


def test_faults_of_archives_are_seen(dist: Path, files: dict[str, bytes]) -> None:
    archives = release.read(dist)
    name = "varangian/core/stages.py"
    spoiled = release.Archives(
        {n: c for n, c in archives.wheel.items() if n != name} | {"tests/test_rules.py": b""},
        archives.source | {"README.md": b"", "runs/a/result.json": b""},
    )
    assert release.faults_of_archives(spoiled, files) == [
        f"wheel: {name} is missing",
        "wheel: tests/test_rules.py does not belong there",
        "source archive: runs/a/result.json does not belong there",
        "source archive: README.md differs",
    ]
    with pytest.raises(ValueError, match="one wheel and one source archive of varangian-"):
        release.read(dist.parent)


@pytest.mark.slow
def test_the_wheel_works_outside_of_the_clone(dist: Path, tmp_path: Path) -> None:
    """Unpacked beside this environment's packages; `make installed` does it in a fresh environment."""
    [wheel] = dist.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    for path in (ROOT / "src").rglob("*"):  # with kernels that the clone compiled: they hold for sources of that time
        place = tmp_path / "site" / path.relative_to(ROOT / "src")
        if path.suffix == ".py":
            shutil.copystat(path, place)
        elif path.suffix in (".nbi", ".nbc"):
            place.parent.mkdir(exist_ok=True)
            shutil.copy(path, place)
    (tmp_path / "empty").mkdir()
    variables = release.outside() | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    assert release.attempt(Path(sys.executable), release.SHORT, tmp_path / "empty", variables) == []
    code = "import varangian; print(varangian.__file__)"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "site")


@pytest.mark.parametrize("what", ["archives", "installed", "publishable"])
def test_where_there_are_no_archives(what: str, tmp_path: Path) -> None:
    script = ROOT / "docs/project/release.py"
    done = subprocess.run([sys.executable, script, what, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"{what}: .* is wanted, got (nothing|0): make dist\n|{what}: .* are wanted.*\n", done.stderr)


def test_what_does_not_work_is_told(tmp_path: Path) -> None:
    tries = [
        release.Try(("-c", "print(1)"), lambda text: text == "1\n"),
        release.Try(("-c", "print(2)"), lambda text: text == "1\n"),
        release.Try(("-c", "raise SystemExit('no')"), lambda text: True),
    ]
    found = release.attempt(Path(sys.executable), tries, tmp_path, dict(os.environ))
    assert found == ["-c print(2): status 0, 2", "-c raise SystemExit('no'): status 1, no"]


# A process of its own: whatever the tests before compiled is not counted.
COMPILED = """
import numba.core.event as event
with event.install_recorder("numba:compile") as heard:
    import varangian as vg
    for name in vg.__all__:
        getattr(vg, name)
    import varangian.engines.ddp, varangian.testing
    from varangian import cli
    from importlib import import_module
    for module, _, _ in cli.COMMANDS.values():
        import_module(module, cli.__name__)
print(len(heard.buffer))
import numpy as np
with event.install_recorder("numba:compile") as heard:
    vg.Average()(np.eye(5))
print(len(heard.buffer) > 0)
"""


@pytest.mark.slow
def test_importing_compiles_nothing(tmp_path: Path) -> None:
    variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "True"]  # the second: that compiling is heard at all


def test_every_place_names_one_version() -> None:
    assert f"\nversion: {vg.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert not re.search(r'^version = "', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert release.version() == vg.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", vg.__version__)


def filled(archives: Any, files: dict[str, bytes]) -> tuple[Any, dict[str, bytes]]:
    """As they will be when somebody who knows has written what is missing."""
    [name] = [name for name in archives.wheel if name.endswith("/METADATA")]
    place = "https://example.org/varangian"
    urls = "".join(f"Project-URL: {n}, {place}\n" for n in ("Repository", "Issues", "Documentation", "Changelog"))
    text = f"{urls}\n![idea]({place}/raw/docs/idea.png) [pages]({place}/blob/docs/index.md)\n"
    done = {n: c.replace(release.OPEN.encode(), b"") for n, c in files.items()}
    done["CITATION.cff"] += f"repository-code: {place}\ndate-released: 2026-11-28\n".encode()
    done["CHANGELOG.md"] = (
        f"# Changelog\n\n## [Unreleased]\n\n## [{vg.__version__}] - 2026-11-28\n\n### Added\n".encode()
    )
    promised = json.loads(done["tests/golden/promised.json"]) | {"version": vg.__version__}
    done["tests/golden/promised.json"] = json.dumps(promised).encode()
    return release.Archives({name: text.encode()}, archives.source), done


def test_publishing_says_all_that_is_missing_and_stops_there(dist: Path, files: dict[str, bytes]) -> None:
    archives, done = filled(release.read(dist), files)
    assert release.missing(archives, done) == []
    assert release.missing(archives, done | {"SECURITY.md": b"to " + release.OPEN.encode()}) == [
        f"SECURITY.md: {release.OPEN}"
    ]
    missing = release.missing(release.Archives({next(iter(archives.wheel)): b"\n\n"}, {}), done | {
        "CITATION.cff": b"", "CHANGELOG.md": b"## [Unreleased]\n\n### Added\n"
    })  # fmt: skip
    assert [line.split(":")[0] for line in missing] == ["pyproject.toml"] * 6 + ["CITATION.cff"] * 2 + [
        "CHANGELOG.md"
    ] * 2


# ---------------------------------------------------------------------------------------- what contributors are shown

NEEDS = (ROOT / "pyproject.toml").read_text("utf-8").partition("\ndependencies = [\n")[2].partition("\n]\n")[0]
PINS = [
    pin for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if (pin := line.split("#")[0].strip())
]
AT = {"python_version": "3.11", "python_full_version": "3.11.7"}  # what the bill of materials was made with
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms(path: Path) -> None:
    """In the form that code hosts read, and each asks for what doctor prints."""
    form = yaml.safe_load(path.read_text("utf-8"))
    assert form.keys() <= {"name", "description", "labels", "title", "body"}
    assert form["name"]
    assert form["description"]
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert all(part["type"] in ("textarea", "input", "dropdown", "checkboxes") for part in asked)
    assert all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)
    [doctor] = [part for part in asked if part["id"] == "doctor"]
    assert "varangian doctor" in doctor["attributes"]["label"]
    for command in re.findall(r"`?varangian ([a-z]+)`", path.read_text("utf-8")):
        assert command in cli.COMMANDS
    for page in re.findall(r"\b((?:docs/)?[\w/]+\.md)\b", path.read_text("utf-8")):
        assert (ROOT / page).is_file(), page


def test_there_are_forms() -> None:
    assert [path.stem for path in FORMS] == ["bug", "numbers", "wish"]
    bug = yaml.safe_load(FORMS[0].read_text("utf-8"))
    [doctor] = [part for part in bug["body"] if part.get("id") == "doctor"]
    assert doctor["validations"]["required"] is True


def test_the_bill_of_materials_is_of_what_is_pinned() -> None:
    """Made by `make sbom`: what a plain installation brings, with its licence, at the versions of constraints.txt."""
    bill = json.loads((ROOT / "docs/project/sbom.cdx.json").read_text("utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    parts = {part["name"].lower().replace("_", "-"): part for part in bill["components"]}
    own = parts.pop("varangian")
    assert own["version"] == vg.__version__
    direct = {Requirement(text).name for text in re.findall(r'^    "([^"]+)",', NEEDS, re.MULTILINE)}
    assert direct <= parts.keys()
    pins = {r.name.lower(): r for line in PINS if (r := Requirement(line)).marker is None or r.marker.evaluate(AT)}
    for name, part in parts.items():
        assert pins[name].specifier.contains(part["version"]), name
        assert part["licenses"], name
    made = {one["ref"]: set(one.get("dependsOn", [])) for one in bill["dependencies"]}
    assert {parts[name]["bom-ref"] for name in direct} == made[own["bom-ref"]]
