"""What is looked at before a release. Needs Python alone; `docs/project/release.md` says when to call what.

python docs/project/release.py archives [dist]        they hold all that they should, and nothing else
python docs/project/release.py installed [dist]       the wheel works in a fresh environment, outside of the clone
python docs/project/release.py imports [--python P]   what importing costs beside torch
python docs/project/release.py publishable [dist]     what must be filled in before this is published
"""

from __future__ import annotations

import argparse
import email
import email.message
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPEN = "TO BE FILLED IN"  # stands in the pages where somebody has to write what nobody knows yet


def version() -> str:
    """The one place that says it."""
    text = (ROOT / "src/varangian/__init__.py").read_text("utf-8")
    [found] = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found


# -------------------------------------------------------------------------------------------------- archives


def tracked(root: Path) -> dict[str, bytes]:
    """Of each file that git knows in this checkout, its content as it lies there."""
    if not (root / ".git").exists():
        raise ValueError(f"{root}: no checkout of git, which alone knows what belongs to the sources")
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, check=True).stdout.decode()
    return {name: (root / name).read_bytes() for name in listed.split("\0") if (root / name).is_file()}


@dataclass(frozen=True)
class Archives:
    """A wheel and a source archive of one version, read."""

    wheel: dict[str, bytes]
    source: dict[str, bytes]  # names without the folder that all lie in

    @property
    def metadata(self) -> email.message.Message:
        [text] = [content for name, content in self.wheel.items() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(text)

    @property
    def description(self) -> str:
        payload = self.metadata.get_payload(decode=True)
        assert isinstance(payload, bytes)
        return payload.decode("utf-8")


def read(folder: Path) -> Archives:
    """The archives of this version in a folder; ValueError where there is another number of them than one each."""
    name = f"varangian-{version()}"
    found = sorted(path.name for path in folder.glob("*") if path.suffix in (".whl", ".gz"))
    if found != [f"{name}-py3-none-any.whl", f"{name}.tar.gz"]:
        raise ValueError(
            f"{folder}: one wheel and one source archive of {name} are wanted, got {found or 'nothing'}: make dist"
        )
    with zipfile.ZipFile(folder / found[0]) as wheel:
        files = {info.filename: wheel.read(info) for info in wheel.infolist() if not info.is_dir()}
    with tarfile.open(folder / found[1]) as source:
        members = [member for member in source if not member.isdir()]
        strange = [member.name for member in members if not (member.isfile() and member.name.startswith(f"{name}/"))]
        if strange:
            raise ValueError(f"{found[1]}: only plain files below {name}/ are wanted, got {strange}")
        return Archives(files, {m.name.removeprefix(f"{name}/"): source.extractfile(m).read() for m in members})  # type: ignore[union-attr]


def faults_of_archives(archives: Archives, files: dict[str, bytes]) -> list[str]:
    """What archives made of these files lack, hold too much, hold changed, or say wrongly."""
    info = f"varangian-{version()}.dist-info/"
    package = {name.removeprefix("src/"): data for name, data in files.items() if name.startswith("src/varangian/")}
    licences = {f"{info}licenses/{name}": files[name] for name in ("LICENSE", "NOTICE")}
    made = {f"{info}{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    faults = _differences("wheel", archives.wheel, package | licences, made)
    faults += _differences("source archive", archives.source, files, {"PKG-INFO"})
    links = relative_links(archives.description)
    if links:
        faults.append(f"long description: links that lead nowhere outside of the clone: {', '.join(links)}")
    if archives.metadata["Version"] != version():
        faults.append(f"metadata: version {archives.metadata['Version']}, the package says {version()}")
    for page in ("CITATION.cff",):
        if f"\nversion: {version()}\n" not in files[page].decode("utf-8"):
            faults.append(f"{page}: names another version than {version()}")
    return faults


def _differences(where: str, got: dict[str, bytes], wanted: dict[str, bytes], made: set[str]) -> list[str]:
    faults = [f"{where}: {name} is missing" for name in sorted((wanted.keys() | made) - got.keys())]
    faults += [f"{where}: {name} does not belong there" for name in sorted(got.keys() - wanted.keys() - made)]
    faults += [f"{where}: {name} differs" for name in sorted(wanted.keys() & got.keys()) if got[name] != wanted[name]]
    return faults


def relative_links(text: str) -> list[str]:
    """Where Markdown and the HTML in it point to, code aside, if not to a whole address or within the page."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(
        r"\]\(([^)\s]+)[^)]*\)|\b(?:src|href|srcset)=\"([^\"]*)\"|^\[[^\]]+\]:\s*(\S+)", prose, re.MULTILINE
    )
    return [link for links in found for link in links if link and not re.match(r"https?://|mailto:|#", link)]


# ------------------------------------------------------------------------------------------------- installed


@dataclass(frozen=True)
class Try:
    """Something that a newcomer does, and how its output shows that it worked."""

    words: tuple[str, ...]  # after python
    shows: Callable[[str], bool]
    status: int = 0


def _sound(text: str) -> bool:
    found = json.loads(text)
    return found["sound"] and found["facts"]["versions"]["varangian"].startswith(f"{version()}, installed")


RUN = ("-m", "varangian", "run", "--rule", "median", "--attack", "little", "--steps", "20", "--out", "runs")
SHORT = (
    Try(("-m", "varangian", "--version"), lambda text: text.strip().endswith(version())),
    Try(("-m", "varangian", "list"), lambda text: "multi-krum" in text and "fashion-mnist" in text),
    Try(RUN, lambda text: "accuracy" in text),
    Try(RUN, lambda text: "nothing was trained" in text),
)
WHOLE = (
    *SHORT,
    Try(("-m", "varangian", "doctor", "--json"), _sound),
    Try(("-m", "varangian", "report", "runs", "--out", "report"), lambda text: "report.html" in text),
    Try(("-m", "varangian", "demo"), lambda text: "multi-krum" in text),
    Try(("-c", "import varangian.engines.ddp, varangian.engines.fsdp; print('there')"), lambda text: "there" in text),
)


def attempt(python: Path, tries: Iterable[Try], folder: Path, environment: dict[str, str]) -> list[str]:
    """What did not work, of what is tried one after another in a folder."""
    faults = []
    for one in tries:
        done = subprocess.run(
            [python, *one.words], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        if done.returncode != one.status or not one.shows(done.stdout):
            said = (done.stderr or done.stdout).strip()[-2000:]
            faults.append(f"{' '.join(one.words)}: status {done.returncode}, {said}")
    return faults


def outside() -> dict[str, str]:
    """The environment of whoever has no clone."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"PYTHONNOUSERSITE": "1", "PYTHONIOENCODING": "utf-8"}


def installed(folder: Path, place: Path | None, constraints: bool) -> list[str]:
    """What does not work in an environment of this Python that has the wheel and what it asks for, and nothing else."""
    found = sorted(folder.resolve().glob(f"varangian-{version()}-*.whl"))
    if len(found) != 1:
        raise ValueError(f"{folder}: one wheel of varangian {version()} is wanted, got {len(found)}: make dist")
    wheel = found[0]
    with tempfile.TemporaryDirectory() as there:
        home = Path(place or Path(there) / "environment").absolute()
        python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        if not python.exists():
            venv.create(home, with_pip=False)
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        pins = ["--constraint", str(ROOT / "constraints.txt")] if constraints else []
        subprocess.run([*pip, "install", "--quiet", *pins, str(wheel)], check=True, cwd=there, env=outside())
        subprocess.run(
            [*pip, "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)],
            check=True,
            cwd=there,
            env=outside(),
        )
        empty = Path(there) / "empty"
        empty.mkdir()
        faults = attempt(python, WHOLE, empty, outside())
        code = "import varangian, sys; print(varangian.__file__); print(sys.prefix)"
        said = subprocess.run(
            [python, "-c", code], cwd=empty, env=outside(), capture_output=True, text=True, check=True
        )
        file, prefix = said.stdout.splitlines()
        if not file.startswith(prefix):
            faults.append(f"the package is {file}, which is not in {prefix}")
        checked = subprocess.run([*pip, "check"], cwd=empty, env=outside(), capture_output=True, text=True)
        if checked.returncode:
            faults.append(f"pip check: {checked.stdout.strip()}")
        return faults


# --------------------------------------------------------------------------------------------------- imports

IMPORTS = {
    "torch": "import torch",
    "torch, then varangian": "import torch, varangian",
    "torch, then a rule": "import torch, varangian; varangian.Algorithm; varangian.MultiKrum",
    "torch, then numba": "import torch, numba",
    "torch, then runs": "import torch, varangian; varangian.Experiment; varangian.run",
}


def imports(python: str, rounds: int) -> dict[str, float]:
    """Least processor seconds of a process that imports, in rounds that take turns: a busy machine adds little."""
    best = dict.fromkeys(IMPORTS, float("inf"))
    for _ in range(rounds):
        for name, code in IMPORTS.items():
            child = subprocess.Popen([python, "-c", code])
            _, status, usage = os.wait4(child.pid, 0)
            if status:
                raise ValueError(f"{python} -c {code!r} failed")
            best[name] = min(best[name], usage.ru_utime + usage.ru_stime)
    return best


# ----------------------------------------------------------------------------------------------- publishable


def missing(archives: Archives, files: dict[str, bytes]) -> list[str]:
    """What only whoever publishes can know, and has not written yet."""
    urls = dict(url.split(", ", 1) for url in archives.metadata.get_all("Project-URL", []))
    names = ("Repository", "Issues", "Documentation", "Changelog")
    found = [
        f"pyproject.toml: [project.urls] has no {name}"
        for name in names
        if not urls.get(name, "").startswith("https://")
    ]
    if not re.search(r"!\[[^\]]*\]\(https://|<img[^>]+src=\"https://", archives.description):
        found.append("pyproject.toml: the long description shows no picture; see its substitutions")
    if not re.search(r"\]\(https://[^)]+/docs/", archives.description):
        found.append(
            "pyproject.toml: the long description links to no page of the documentation; see its substitutions"
        )
    for name, content in sorted(files.items()):
        if not name.startswith(("docs/project/release", "tests/")) and OPEN.encode() in content:
            found.append(f"{name}: {OPEN}")
    citation = files["CITATION.cff"].decode("utf-8")
    fields = ("repository-code", "date-released")
    found += [
        f"CITATION.cff: no {field}" for field in fields if not re.search(rf"^{field}: \S", citation, re.MULTILINE)
    ]
    promised = json.loads(files["tests/golden/promised.json"])["version"]
    if promised != version():
        found.append(f"tests/golden/promised.json: of {promised}; docs/project/promised.py writes it")
    changes = files["CHANGELOG.md"].decode("utf-8")
    if not re.search(rf"^## \[{re.escape(version())}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        found.append(f"CHANGELOG.md: no section '## [{version()}] - DATE'")
    unreleased = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changes, re.DOTALL | re.MULTILINE)
    if unreleased and unreleased[1].strip():
        found.append("CHANGELOG.md: [Unreleased] is not empty")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["archives", "installed", "imports", "publishable"])
    parser.add_argument("dist", nargs="?", type=Path, default=ROOT / "dist", help="where the archives lie")
    parser.add_argument("--environment", type=Path, help="install there, and leave it, instead of in a temporary one")
    parser.add_argument("--constraints", action="store_true", help="install the versions of constraints.txt")
    parser.add_argument("--python", default=sys.executable, help="whose imports are measured")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    try:
        if asked.what == "imports":
            found = imports(asked.python, asked.rounds)
            for name, seconds in found.items():
                print(f"{name:<24}{seconds:6.2f} s{seconds - found['torch']:+7.2f} s")
            return
        if asked.what == "installed":
            faults = installed(asked.dist, asked.environment, asked.constraints)
        else:
            look = faults_of_archives if asked.what == "archives" else missing
            faults = look(read(asked.dist), tracked(ROOT))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"{asked.what}: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(faults) or f"{asked.what}: all is well with {version()} on Python {sys.version.split()[0]}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
