"""The table and the figure of docs/howto/weights.md: what weights by size cost, and what a cap brings back.

python docs/howto/weights.py    print the table, and draw docs/howto/weights.png
"""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
from matplotlib.lines import Line2D

import varangian as vg
from varangian.study.report import style

N = 20
RULES = {"median, trimmed mean": vg.Median(f=0), "Krum, Multi-Krum": vg.Krum(f=0)}
SPREADS = (0.25, 0.75, 1.5)
CAPS = [None, 4.0, 3.0, 2.0, 1.5, 1.25, 1.0]


def sizes(spread: float, n: int = N) -> np.ndarray:
    """Examples of n workers, whole numbers of a log-normal distribution: evenly spaced quantiles, so that nothing is
    drawn."""
    levels = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    return np.rint(200 * np.exp(spread * np.array(levels)))


def held(spread: float) -> str:
    found = sizes(spread)
    return f"{found[0]:.0f} to {found[-1]:,.0f}"


def rows(spread: float) -> list[tuple[str, float, int, int]]:
    """(cap, the greatest weight, how many of the heaviest may be Byzantine for each of the rules)."""
    found = []
    for cap in CAPS:
        weights = vg.size_weights(sizes(spread), cap=cap)
        median, krum = (rule.weight_breakdown(weights) for rule in RULES.values())
        found.append(("none" if cap is None else f"{cap:g}", float(weights.max()), median.workers, krum.workers))
    return found


def table(spread: float) -> str:
    lines = ["| cap | greatest weight | median, trimmed mean | Krum, Multi-Krum |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {cap} | {most:.2f} | {a} | {b} |" for cap, most, a, b in rows(spread))])


def draw(stem: Path) -> Path:
    """How many of the heaviest may be Byzantine against the cap."""
    caps = np.linspace(1, 6, 301)
    looks = {
        spread: Line2D([], [], color=style.PALETTE[i], linewidth=1.3, linestyle=("-", "--", ":")[i])
        for i, spread in enumerate(SPREADS)
    }
    found = style.sheet(
        1, 2, 2.2,
        title="What weights by size cost, and what a cap brings back",
        detail=f"{N} workers: how many of the heaviest may be Byzantine, by the greatest weight allowed",
        heads=list(RULES),
        names=["workers"],
        legend=[(line, f"{held(spread)} examples") for spread, line in looks.items()],
        left=0.4, below=0.36, gap=0.35, share=True,
    )  # fmt: skip
    [panels] = found.panels
    for panel, rule in zip(panels, RULES.values(), strict=True):
        for spread, line in looks.items():
            number = [rule.weight_breakdown(vg.size_weights(sizes(spread), cap=cap)).workers for cap in caps]
            panel.plot(caps, number, color=line.get_color(), linestyle=line.get_linestyle(), linewidth=1.3,
                       drawstyle="steps-post")  # fmt: skip
        panel.set_xlabel("cap, in equal shares", labelpad=1)
        panel.set_ylim(0, 10)
        panel.grid(axis="both")
    png, pdf = style.save(found.figure, stem)
    pdf.unlink()
    return png


if __name__ == "__main__":
    for spread in SPREADS:
        print(f"{held(spread)} examples\n\n{table(spread)}\n")
    print(draw(Path(__file__).parent / "weights"))
