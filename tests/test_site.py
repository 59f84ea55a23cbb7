"""The site that `make docs` built, every page in a browser: narrow and wide, light and dark, searched from a folder.

`make check` builds it before the tests run; a folder without it skips these, and says so.
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "site"

place = importlib.util.spec_from_file_location("links", ROOT / "docs" / "links.py")
assert place is not None
assert place.loader is not None
links = importlib.util.module_from_spec(place)
place.loader.exec_module(links)

# Goes through the pages in one frame, and says of each how wide it became and which texts are hard to read.
PROBE = (ROOT / "tests" / "site_probe.html").read_text("utf-8")


@pytest.fixture(scope="module")
def pages() -> list[str]:
    if not SITE.is_dir():
        pytest.skip("no site: make docs")
    found = sorted(str(p.relative_to(SITE)) for p in SITE.rglob("*.html"))
    ours = [
        p for p in found if not p.startswith(("_static", "_modules", "probe-", "results/scorecard/cards", "_downloads"))
    ]
    return [p for p in ours if not p.endswith("scorecard/index.html") and "examples/cards" not in p]


@pytest.fixture(scope="module")
def seen(pages: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here")
    probe = SITE / f"probe-{os.getpid()}.html"
    probe.write_text(PROBE.replace("PAGES", json.dumps(pages), 1), "utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    quiet += [
        "--disable-component-update",
        "--disable-sync",
        "--allow-file-access-from-files",
        "--window-size=1400,1000",
    ]
    profile = tmp_path_factory.mktemp("profile")
    try:
        done = subprocess.run(
            [
                program,
                *quiet,
                f"--user-data-dir={profile}",
                "--virtual-time-budget=600000",
                "--dump-dom",
                probe.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        probe.unlink()
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_every_link_leads_somewhere(pages: list[str]) -> None:
    found, within, _ = links.faults(SITE)
    assert found == []
    assert within > 1000


def test_links_of_pages_lead_somewhere_in_a_clone_too() -> None:
    made = ROOT / "docs" / "gallery"  # is there only where the site was made
    folders = [ROOT / place for place in ("docs", "results", "benchmarks")]
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]
    assert len(pages) > 30
    for page in pages:
        text = re.sub(r"^ {0,3}```.*?^ {0,3}```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s]+)", text):
            target = (page.parent / link.split("#")[0]).resolve()
            assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
            assert not target.is_relative_to(made), f"{page.relative_to(ROOT)}: {link}"


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="here">A</h1><a href="b.html">1</a><a href="#here">2</a><a href="#there">3</a>'
        '<a href="../out.html">4</a>'
        '<script src="https://example.org/x.js"></script><a href="https://example.org">5</a>',
        "utf-8",
    )
    found, within, elsewhere = links.faults(tmp_path)
    assert found == [
        "a.html: b.html is not there",
        "a.html: #there: no such heading",
        "a.html: ../out.html is not there",
        "a.html: loads https://example.org/x.js from elsewhere",
    ]
    assert (within, elsewhere) == (4, 2)
    assert links.faults(tmp_path / "nothing")[0] == [f"{tmp_path / 'nothing'}: no page"]


@pytest.mark.slow
@pytest.mark.browser
def test_no_page_is_wider_than_its_window(seen: dict[str, Any]) -> None:
    assert [(one["page"], one["wide"]) for one in seen["said"] if one["wide"][0] > 1280 or one["wide"][1] > 400] == []


@pytest.mark.browser
def test_every_text_can_be_read_light_and_dark(seen: dict[str, Any]) -> None:
    """Contrast of 4.5, or 3 of large letters, as the guidelines for accessible pages ask."""
    assert min(min(one["texts"]) for one in seen["said"]) >= 10
    assert [(one["page"], one["faint"]) for one in seen["said"] if one["faint"]] == []


@pytest.mark.browser
def test_formulas_are_set_and_pictures_described(seen: dict[str, Any]) -> None:
    assert [(one["page"], one["formulas"], one["set"]) for one in seen["said"] if one["formulas"] != one["set"]] == []
    assert sum(one["formulas"] for one in seen["said"]) >= 2
    assert [one["page"] for one in seen["said"] if one["unnamed"]] == []
    assert [one["page"] for one in seen["said"] if not one["named"]] == []


@pytest.mark.browser
def test_search_works_from_a_folder(seen: dict[str, Any]) -> None:
    assert any("howto/quarantine.html" in hit for hit in seen["hits"]), seen["hits"]


@pytest.mark.browser
def test_the_keyboard_reaches_the_text_first(seen: dict[str, Any]) -> None:
    assert "skip" in seen["first"]
