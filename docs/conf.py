"""How Sphinx makes the site: `make docs`, offline, every warning an error.

Its source is the whole clone, so that the pages' relative links hold on disk, on a code host and in the site alike;
`include_patterns` says which pages it takes.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs/reference")]

project = "Varangian"
author = "The Varangian authors"
project_copyright = author  # no year: the same sources make the same pages
[version] = re.findall(r'^__version__ = "(.+)"', (ROOT / "src/varangian/__init__.py").read_text("utf-8"), re.MULTILINE)
release = version

extensions = [
    "myst_parser",  # pages in Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas without a network
    "sphinx_copybutton",
    "pages",  # docs/reference/pages.py: the reference, from the classes
    "sphinx_gallery.gen_gallery",  # tutorials are scripts that it runs
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/README.md",
    "results/README.md",
    "results/**/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
]
exclude_patterns = ["docs/site/**", "docs/tutorials/**", "docs/gallery/**/*.ipynb"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4  # links to headings, as code hosts make them

autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
smartquotes = False  # options keep their dashes, and what may be copied its quotes

# A script is run where its page is not there yet or was made of another text, so a second build runs none. All are run
# anew with ARGS='-D sphinx_gallery_conf.run_stale_examples=True'. One that raises fails the build.
sphinx_gallery_conf = {
    "examples_dirs": "docs/tutorials",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": r"\d\d_",
    "ignore_pattern": r"^(?!\d\d_)",  # what has no number is started by one that has
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "inspect_global_variables": False,
    "capture_repr": (),  # what a page shows is printed or drawn
    "image_srcset": ["2x"],
    "remove_config_comments": True,
    "min_reported_time": math.inf,  # the same scripts make the same pages
    "write_computation_times": False,
    "show_signature": False,
}
for chatty in ("varangian.core.kernels", "fontTools"):  # else pages say what was compiled, and which letters a PDF has
    logging.getLogger(chatty).setLevel(logging.ERROR)

nitpicky = True
suppress_warnings = ["myst.header"]  # a page may begin below the first level

html_theme = "furo"
html_title = f"Varangian {version}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["site"]
html_css_files = ["varangian.css"]


def leave_pages_in_place(app: Any, doctree: nodes.document) -> None:
    """Links to finished pages, such as score cards, go there, and not to a copy without its neighbours.

    So do links to tutorials: what is a script in a clone, or their folder, is a page here.
    """
    links = (*doctree.findall(addnodes.download_reference), *doctree.findall(addnodes.pending_xref))
    for link in links:
        target = re.sub(r"tutorials/(\d\d_\w+)\.py$", r"gallery/\1.html", link["reftarget"])
        target = re.sub(r"tutorials/$", "gallery/index.html", target)
        if target.endswith(".html"):
            link.replace_self(nodes.reference("", "", *link.children, refuri=target, internal=True))


def copy_pages(app: Any, error: Exception | None) -> None:
    if error is None:
        for page in (ROOT / "results").rglob("*.html"):
            target = Path(app.outdir) / page.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, target)
        start = Path(app.outdir) / "index.html"
        start.write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">'
            f'<a href="{root_doc}.html">{project}</a>\n',
            "utf-8",
        )


def setup(app: Any) -> None:
    app.connect("doctree-read", leave_pages_in_place, priority=100)  # before Sphinx collects the downloads
    app.connect("build-finished", copy_pages)
