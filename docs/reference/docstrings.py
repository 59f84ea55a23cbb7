"""Docstrings of this house as reStructuredText.

They are plain text: a first line, formulas as one types them, sections such as ``Shape:`` that may begin on the line of
their name. A bar or a star means itself there, so all is escaped that reStructuredText would take for a command, but
for ``literals`` and references; references to what is not public become literals.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise

NAMES = (
    *("Args", "Shape", "Tolerates", "Cost", "Convention", "Example", "Reference", "Raises", "Warns", "Returns"),
    *("Attributes", "Class attributes"),
)
FULL = 100  # columns; what the sources wrap is longer
ENTRIES = {"Args", "Attributes", "Class attributes", "Raises", "Warns"}  # a list of names and what they are

_name = "|".join(NAMES)
HEADER = re.compile(rf"^((?:{_name})(?:, (?:{_name}))*):(?:[ ]+(.*))?$")
KEPT = re.compile(r"``.+?``|:[a-z]+:`[^`]+`|\bdocs/[\w/-]+\.md\b", re.DOTALL)
ROLE = re.compile(r":([a-z]+):`([^`]+)`")
ENTRY = re.compile(r"^([\w*]+(?:, [\w*]+)*): (.*)$", re.DOTALL)

Resolve = Callable[[str], str | None]
"""What a reference in a docstring means: the full name of something that the reference shows, or None."""


def rest(text: str, resolve: Resolve) -> list[str]:
    """The lines of a docstring, without its indentation, as reStructuredText."""
    lines: list[str] = []
    for name, body in sections(text):
        if name:
            lines += _field(name, body, resolve)
        else:
            for block in _blocks(body):
                lines += _free(block, resolve)
    return lines


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """The text before the first section, under the name "", and then each section with its lines."""
    name, body = "", list[str]()
    for line in text.expandtabs().rstrip().splitlines():
        found = HEADER.match(line)
        ended = name and body and not body[-1] and line[:1] not in ("", " ")  # a paragraph behind a section
        if found or ended:
            yield name, body
            name, body = (found[1], [found[2]] if found[2] else []) if found else ("", [line])
        else:
            body.append(line)
    yield name, body


def _field(name: str, body: list[str], resolve: Resolve) -> list[str]:
    # The first line may stand behind the name; those that follow it are indented, or not.
    text = textwrap.dedent("\n".join(body)) if body[:1] == [""] or body[0][:1] == " " else _joined(body)
    lines = [f":{name}:"]
    for block in _blocks(text.splitlines()):
        entries = _entries(block) if name.split(", ")[0] in ENTRIES else []
        if entries:
            for what, said in entries:
                target = resolve(what) if name in ("Raises", "Warns") else None
                named = f":py:obj:`{what} <{target}>`" if target else f"**{escape(what).replace(', ', '**, **')}**"
                lines.append(f"    * {named}: {escaped(said, resolve)}")
            lines.append("")
        else:
            lines += textwrap.indent("\n".join(_free(block, resolve, formulas=False)), "    ").splitlines()
    return ["", *lines, ""] if name == NAMES[0] else [*lines, ""]


def _joined(body: list[str]) -> str:
    return "\n".join([body[0], *(line.strip() for line in body[1:])])


def _entries(block: list[str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in block:
        entry = ENTRY.match(line)
        if entry:
            found.append((entry[1], entry[2]))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            return []
    return found


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """What blank lines separate; an example is one block, blank lines and all."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def _free(block: list[str], resolve: Resolve, *, formulas: bool = True) -> list[str]:
    if block[0].lstrip().startswith(">>>"):
        return [*textwrap.dedent("\n".join(block)).splitlines(), ""]
    if all(line.startswith("    ") for line in block):
        return [".. code-block:: text", "", *block, ""]
    if block[0].startswith("- "):
        return [*_items(block, resolve), ""]
    lines = [
        re.sub(r"^(\d+)\.", r"\1\\.", escaped(line, resolve))
        for line in (_unwrapped(block) if formulas else [" ".join(line.strip() for line in block)])
    ]
    return [*(f"| {line}" for line in lines), ""] if len(lines) > 1 else [*lines, ""]


def _unwrapped(block: list[str]) -> list[str]:
    """A paragraph as one line; or as several, where a line ends although the next word would have had room: formulas
    that stand below each other."""
    lines = [block[0].strip()]
    for before, line in pairwise(block):
        word = line.split()[0]
        if "=" in before + line and "``" not in before + line and len(before) + len(word) < FULL:
            lines.append(line.strip())
        else:
            lines[-1] += f" {line.strip()}"
    return lines


def _items(block: list[str], resolve: Resolve) -> Iterator[str]:
    for item in re.split(r"^- ", "\n".join(block), flags=re.MULTILINE)[1:]:
        yield f"* {escaped(' '.join(item.split()), resolve)}"


def escaped(text: str, resolve: Resolve) -> str:
    """A paragraph with nothing in it that reStructuredText would take for a command, but literals and references."""
    parts, end = [], 0
    for kept in KEPT.finditer(text):
        parts += [escape(text[end : kept.start()]), _kept(kept[0], resolve)]
        end = kept.end()
    return "".join([*parts, escape(text[end:])])


def _kept(text: str, resolve: Resolve) -> str:
    if text.startswith("docs/"):
        return f":doc:`/{text.removesuffix('.md')}`"
    role = ROLE.fullmatch(text)
    if role is None:
        return text
    target = resolve(role[2])
    short = role[2].lstrip(".~")
    return f":py:obj:`{short} <{target}>`" if target else f"``{short}``"


def escape(text: str) -> str:
    return re.sub(r"([\\*`|_])", r"\\\1", text)
