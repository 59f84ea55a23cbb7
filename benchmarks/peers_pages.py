"""What benchmarks/peers.py measured, as tables between marks in two pages and as a figure; needs no other library."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from varangian.study.report import style

ROOT = Path(__file__).parents[1]
README, PAGE = ROOT / "benchmarks" / "README.md", ROOT / "docs" / "explanation" / "peers.md"
FRONT = ROOT / "README.md"
FIGURE = PAGE.with_suffix(".png")
NAMES = {
    "varangian": "Varangian", "byzfl": "ByzFL", "byzpy": "ByzPy", "krum": "krum", "flwr": "Flower",
    "varangian in flwr": "Varangian in Flower", "numpy": "NumPy", "torch": "torch",
}  # fmt: skip
SHAPES = {
    "time-15": "(15, 10,000)",
    "time-51": "(51, 79,510)",
    "time-25": "(25, 1,310,922)",
    "time-11": "(11, 36,489,290)",
}
Rows = list[dict[str, Any]]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)


def number(value: float) -> str:
    """Two digits or three, with commas: 0.61, 4.1, 35.2, 1,291."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"


def fastest(rows: Rows, what: str = "least") -> dict[tuple[str, str], dict[str, Any]]:
    """The least of each rule and library's variants."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["rule"], row["library"]
        if what in row and (key not in found or row[what] < found[key][what]):
            found[key] = row
    return found


def across(rows: Rows, what: str = "least") -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Rules and libraries in the order of their rows, and the fastest of each."""
    best = fastest(rows, what)
    rules = list(dict.fromkeys(row["rule"] for row in rows if row["rule"] != "mean"))
    return [r for r in rules if (r, "varangian") in best], [n for n in NAMES if any(k[1] == n for k in best)], best


def times(rows: Rows) -> str:
    """ms: a rule a line; a library's figure, and in how many times ours."""
    rules, libraries, best = across(rows)
    lines = []
    for rule in rules:
        line, ours = [rule], best[rule, "varangian"]["least"]
        for library in libraries:
            row = best.get((rule, library))
            ratio = "" if row is None or library == "varangian" else f" ({number(row['least'] / ours)})"
            line.append("" if row is None else f"{number(row['least'])}{ratio}")
        lines.append(line)
    return table(["", *(NAMES[name] for name in libraries)], lines)


def megabytes(rows: Rows) -> str:
    """A rule a line; of each library the variant that needs least."""
    rules, libraries, best = across(rows, "mb")
    lines = [[rule, *(f"{best[rule, n]['mb']:.1f}" if (rule, n) in best else "" for n in libraries)] for rule in rules]
    return table(["", *(NAMES[name] for name in libraries)], lines)


def provenance(found: dict[str, Any]) -> str:
    """When and where; and what else was going on, if anything was."""
    number = found["threads"]
    machine = f"{found['date']}, {found['processor']}, {number} {'thread' if number == 1 else 'threads'}"
    if found["load"] <= number + 1:
        return f"{machine}."
    if found.get("clock") == "processor":
        return f"{machine}; time of the processor and not of the wall, as the machine was at work on other things too."
    busy = f"the machine was at work on other things too (load {found['load']:g})"
    return f"{machine}; {busy}: long calls were interrupted, short ones not, so that ratios are too large."


def versions(found: dict[str, Any]) -> str:
    """Of all that was compared; once where all sections were measured with the same."""
    used: dict[str, list[str]] = {}
    for section, kept in found.items():
        named = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
        used.setdefault(f"Python {kept['python']}, {named}", []).append(section)
    if len(used) == 1:
        return f"{next(iter(used))}."
    return "\n".join(f"- {', '.join(sections)}: {named}." for named, sections in used.items())


def steps(rows: Rows) -> str:
    base = next(row["least"] for row in rows if row["library"] == "varangian" and "True" in row["code"])
    return table(
        ["", "loop", "ms a step", "times ours", "what else it does"],
        (
            [NAMES[row["library"]], f"`{row['code']}`", number(row["least"]), number(row["least"] / base), row["note"]]
            if "least" in row
            else [NAMES[row["library"]], f"`{row['code']}`", row["raises"], "", row["note"]]
            for row in rows
        ),
    )


def agreement(found: dict[str, Any]) -> str:
    """Of each rule and library the largest difference, over shapes and variants, from our answer of its definition."""
    differences: dict[tuple[str, str], float] = {}
    notes: dict[tuple[str, str], str] = {}
    for section in SHAPES:
        for row in found.get(section, {"rows": []})["rows"]:
            key = row["rule"], row["library"]
            if key[1] in ("varangian", "varangian in flwr") or key[0] == "mean":
                continue
            notes[key] = row["note"] or notes.get(key, "")
            if "differs" in row:
                differences[key] = max(row["differs"], differences.get(key, 0.0))
    return table(
        ["rule", "library", "largest difference", "its definition, where it is not that of our default"],
        ([k[0], NAMES[k[1]], f"{differences[k]:.0e}" if k in differences else "not compared", notes[k]]
         for k in sorted(notes, key=lambda k: (k[0].lower(), list(NAMES).index(k[1])))),
    )  # fmt: skip


NORMS = ("centered clipping", "ARC, NNM, trimmed mean")  # look at norms, so that where zero is matters
CASES = ("NaN", "one NaN", "inf", "1e38", "same", "offset", "equal")


def best_variant(rows: Rows) -> dict[tuple[str, str], dict[str, Any]]:
    """Of each rule and library the variant that is right in most cases."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key, right = (row["rule"], row["library"]), list(row["cases"].values()).count("right")
        if key not in found or right > list(found[key]["cases"].values()).count("right"):
            found[key] = row
    return found


def summary(rows: Rows) -> str:
    """Of each library, in how many of its rules each case comes out right."""
    best = best_variant(rows)
    lines = []
    for library in NAMES:
        mine = [row for (_, name), row in best.items() if name == library]
        if mine:
            counts = [f"{sum(row['cases'][case] == 'right' for row in mine)}" for case in CASES]
            lines.append(
                [NAMES[library], str(len(mine)), *counts, str(sum(row.get("overwrites", False) for row in mine))]
            )
    return table(["", "rules", *CASES, "overwrite what they are given"], lines)


def failures(rows: Rows) -> str:
    """A line for each rule and library that is not right in all cases."""
    lines = []
    for (rule, library), row in best_variant(rows).items():
        if any(said != "right" for said in row["cases"].values()):
            lines.append(
                [NAMES[library], rule, *("" if row["cases"][c] == "right" else row["cases"][c] for c in CASES)]
            )
    lines.sort(key=lambda line: list(NAMES.values()).index(line[0]))
    return table(["", "rule", *CASES], lines)


def kinds(rows: Rows) -> str:
    """Of each library: the worst answer to a large common part, float64, gradients."""
    lines = []
    for library in NAMES:
        mine = [row for row in rows if row["library"] == library and row["rule"] not in NORMS]
        shifted = {row["rule"]: row["shifted"] for row in mine if isinstance(row.get("shifted"), float)}
        typed = [row for row in mine if "keeps float64" in row]
        if not shifted:
            continue
        worst = max(shifted, key=lambda rule: shifted[rule])
        share = [
            f"{sum(row[name] for row in typed)} of {len(typed)}" if typed else ""
            for name in ("keeps float64", "differentiable")
        ]
        lines.append([NAMES[library], f"{shifted[worst]:.1g} ({worst})", *share])
    return table(["", "worst change of an answer", "calls that keep float64", "calls that torch differentiates"], lines)


def draw(found: dict[str, Any]) -> None:
    """Times of each rule and library in times ours, at both of the study's shapes."""
    sections = [name for name in ("time-51", "time-25") if name in found]
    libraries = [name for name in NAMES if name not in ("varangian", "varangian in flwr")]
    looks = {
        name: Line2D([], [], color=style.PALETTE[i % 8], marker="osD^vP"[i % 6], markersize=4, linestyle="")
        for i, name in enumerate(libraries)
    }
    rules = across(found[sections[0]]["rows"])[0]
    sheet = style.sheet(
        1, len(sections), 2.9,
        title="Other libraries' time for a rule, in times Varangian's",
        detail="each library's fastest variant; same vectors, same threads, one process; the line is ours",
        heads=[f"{SHAPES[name]} vectors" for name in sections],
        names=[""],
        legend=[(line, NAMES[name]) for name, line in looks.items()],
        left=1.5, below=0.36, gap=0.2,
    )  # fmt: skip
    [panels] = sheet.panels
    for panel, section in zip(panels, sections, strict=True):
        best = fastest(found[section]["rows"])
        for place, rule in enumerate(rules):
            ours = best[rule, "varangian"]["least"]
            for name, line in looks.items():
                if (row := best.get((rule, name))) is not None:
                    panel.plot([row["least"] / ours], [-place], color=line.get_color(), marker=line.get_marker(),
                               markersize=4, linestyle="", clip_on=False)  # fmt: skip
        panel.axvline(1, color=style.SOFT, linewidth=0.8)
        panel.set_xscale("log")
        panel.set_ylim(-len(rules) + 0.5, 0.5)
        panel.set_yticks([-k for k in range(len(rules))], rules)
        panel.tick_params(labelleft=panel is panels[0])
        style.logarithmic(panel, "x", 4)
        panel.grid(axis="both")
        panel.set_xlabel("times ours", labelpad=1)
    FIGURE.write_bytes(style.png(sheet.figure, 200))


def blocks(found: dict[str, Any]) -> dict[str, str]:
    """Each generated part of the pages by the name of its marks."""
    made = {"versions": versions(found)} if found else {}
    made |= {name: f"{provenance(found[name])}\n\n{times(found[name]['rows'])}" for name in SHAPES if name in found}
    if "memory" in found:
        made["memory"] = f"{provenance(found['memory'])}\n\n{megabytes(found['memory']['rows'])}"
    if "step" in found:
        made["step"] = f"{provenance(found['step'])}\n\n{steps(found['step']['rows'])}"
    if "hostile" in found:
        rows = found["hostile"]["rows"]
        made |= {"hostile": f"{provenance(found['hostile'])}\n\n{summary(rows)}", "failures": failures(rows)}
        made["kinds"] = kinds(rows)
    if any(name in found for name in SHAPES):
        made["agreement"] = agreement(found)
        made["range"] = ranges(found)
    if "time-51" in found and "step" in found:
        made["short"] = short(found)
    return made


SHORT = ("median", "Multi-Krum", "geometric median", "NNM, trimmed mean")


def short(found: dict[str, Any]) -> str:
    """A few rules and a training step: ms of ours, and how many times as long others take."""
    libraries = ("byzfl", "byzpy", "krum", "flwr", "torch")
    best = fastest(found["time-51"]["rows"])
    loops: dict[str, float] = {}
    for row in found["step"]["rows"]:
        if "least" in row:
            loops[row["library"]] = min(row["least"], loops.get(row["library"], float("inf")))
    columns = {rule: {name: best[rule, name]["least"] for name in NAMES if (rule, name) in best} for rule in SHORT}
    columns["a training step"] = loops
    rows = [
        [title, f"{number(each['varangian'])} ms"]
        + [f"{number(each[name] / each['varangian'])} ×" if name in each else "" for name in libraries]
        for title, each in columns.items()
    ]
    return table(["(51, 79,510), f = 24", NAMES["varangian"], *(NAMES[name] for name in libraries)], rows)


def ranges(found: dict[str, Any]) -> str:
    """One line a library: between which multiples of our time its rules lie, at all shapes that were timed."""
    lines = []
    for library in NAMES:
        ratios: list[tuple[float, str]] = []
        for section in SHAPES:
            best = fastest(found[section]["rows"]) if section in found else {}
            ratios += [
                (row["least"] / best[rule, "varangian"]["least"], f"{rule}, {SHAPES[section]}")
                for (rule, name), row in best.items()
                if name == library != "varangian" and (rule, "varangian") in best
            ]
        if ratios:
            low, high = min(ratios), max(ratios)
            middle = statistics.median(r for r, _ in ratios)
            lines.append([
                NAMES[library], f"{number(low[0])} ({low[1]})", number(middle), f"{number(high[0])} ({high[1]})",
                f"{sum(r < 1 for r, _ in ratios)} of {len(ratios)}",
            ])  # fmt: skip
    return table(["", "least", "median", "most", "faster than ours"], lines)


def filled(text: str, made: dict[str, str]) -> str:
    """The text with what stands between <!-- peers: NAME --> and <!-- end --> made anew."""

    def part(match: re.Match[str]) -> str:
        name = match[1]
        inside = made.get(name, f"Not measured yet: `make peers ARGS='--section {name}' PYTHON=python3.12`.")
        return f"<!-- peers: {name} -->\n\n{inside}\n\n<!-- end -->"

    return re.sub(r"<!-- peers: (\S+) -->.*?<!-- end -->", part, text, flags=re.DOTALL)


def write(found: dict[str, Any]) -> None:
    made = blocks(found)
    for page in (README, PAGE, FRONT):
        text = page.read_text("utf-8")
        if (new := filled(text, made)) != text:
            page.write_text(new, "utf-8")
            print(f"Tables: {page.relative_to(ROOT)}")
    if "time-51" in found:
        draw(found)
        print(f"Figure: {FIGURE.relative_to(ROOT)}")
