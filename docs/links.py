"""Looks at every link and picture of the built site: python docs/links.py build/site

Whatever a page points to within the site must be there, headings included, and nothing that a browser loads by itself
may come from elsewhere: the site is read from a folder, without a network. Links to other sites are counted only, since
nothing here may reach them.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}


class Page(HTMLParser):
    """The anchors of a page, what it points to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            if name in ("href", "src"):
                self.links.append(value)
            if (tag, name) in LOADED:
                self.loaded.append(value)


def faults(site: Path) -> tuple[list[str], int, int]:
    """What is wrong, and how many links within the site and to elsewhere were seen."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found, within, elsewhere = [], 0, 0
    for path, page in pages.items():
        here = path.relative_to(site)
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                elsewhere += 1
                if link in page.loaded and parts.scheme != "data":
                    found.append(f"{here}: loads {link} from elsewhere")
                continue
            within += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            if not target.is_relative_to(site.resolve()) or not target.is_file():
                found.append(f"{here}: {link} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{here}: {link}: no such heading")
    if not pages:
        found.append(f"{site}: no page")
    return found, within, elsewhere


def main() -> int:
    found, within, elsewhere = faults(Path(sys.argv[1]).resolve())
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    print(f"{within} links within the site, {elsewhere} to elsewhere, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
