"""How Sphinx makes the site: `make docs`, offline, every warning an error.

Its source is the whole clone, so that the pages' relative links hold on disk, on a code host and in the site alike;
`include_patterns` says which pages it takes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

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
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/README.md",
    "results/README.md",
    "results/**/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = ["docs/site/**"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4  # links to headings, as code hosts make them

nitpicky = True
suppress_warnings = ["myst.header"]  # a page may begin below the first level

html_theme = "furo"
html_title = f"Varangian {version}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["site"]
html_css_files = ["varangian.css"]
