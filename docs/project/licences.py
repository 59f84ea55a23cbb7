"""Writes docs/project/licences.md: every package that Varangian installs, its licence, and what needs it.

    python docs/project/licences.py >docs/project/licences.md

Read from the metadata of what is installed here, extras included as far as they are installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "varangian"


def needs(distribution: metadata.Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str], str]]:
    """(name, its extras, the extra of ours that asks for it) of each requirement that holds here."""
    for text in distribution.requires or ():
        requirement = Requirement(text)
        for extra in ("", *sorted(extras)):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                yield canonicalize_name(requirement.name), frozenset(requirement.extras), extra
                break


def licence(distribution: metadata.Distribution) -> str:
    """The licence expression, or else what the metadata says in words."""
    found = distribution.metadata
    if expression := found.get("License-Expression"):
        return expression
    classifiers = [c.split(" :: ")[-1] for c in found.get_all("Classifier", []) if c.startswith("License ::")]
    stated = (found.get("License") or "").strip().splitlines()
    words = [c for c in classifiers if c != "OSI Approved"] or stated[:1] or ["not stated"]
    return ", ".join(re.sub(r"\s+", " ", word)[:60] for word in words)


def main() -> None:
    root = metadata.distribution(ROOT)
    ours = frozenset(root.metadata.get_all("Provides-Extra", []))
    found: dict[str, tuple[metadata.Distribution, set[str], set[str]]] = {}
    todo = [(name, wanted, extra or "itself", "varangian") for name, wanted, extra in needs(root, ours)]
    seen: set[tuple[str, frozenset[str], str]] = set()
    absent = set()
    while todo:
        name, wanted, use, by = todo.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            absent.add(name)
            continue
        _, uses, parents = found.setdefault(name, (distribution, set(), set()))
        uses.add(use)
        parents.add(by)
        if (name, wanted, use) not in seen:
            seen.add((name, wanted, use))
            todo += [(child, extras, use, name) for child, extras, _ in needs(distribution, wanted)]
    print("# Licences of what is installed with Varangian\n")
    print(
        "Varangian itself is under the MIT licence; digits.npz in it is under CC BY 4.0 "
        "(see `varangian.simulation.data.digits`)."
    )
    print("Made by `make licences` from the metadata of the installed packages; not legal advice.\n")
    print("| package | version | licence | for | needed by |\n|---|---|---|---|---|")
    for name, (distribution, uses, parents) in sorted(found.items()):
        use = "itself" if "itself" in uses else ", ".join(sorted(uses))
        print(f"| {name} | {distribution.version} | {licence(distribution)} | {use} | {', '.join(sorted(parents))} |")
    if absent:
        print(f"\nNot installed where this was made: {', '.join(sorted(absent))}.")


if __name__ == "__main__":
    main()
