"""The table and the figure of docs/howto/federated.md: how often more than f of those in a round attack.

python docs/howto/federated.py    print the table, and draw docs/howto/federated.png
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.lines import Line2D

import varangian as vg
from varangian.study.report import style

CLIENTS = 1000
SHARES = (0.05, 0.1, 0.2)  # of all clients, Byzantine
TOLERATED = {"f = n / 5": 5, "f = n / 4": 4, "f = n / 3": 3}
WORKERS = range(10, 201, 10)
TICKS = {"1 in 1": 1.0, "1 in 10": 1e-1, "1 in 100": 1e-2, "1 in 1,000": 1e-3, "1 in 10⁴": 1e-4, "1 in 10⁵": 1e-5}


def chance(workers: int, share: float, part: int) -> float:
    """How often more than n/part of n attack."""
    return vg.Population(CLIENTS, workers, round(share * CLIENTS)).exceeding(workers // part)


def table() -> str:
    lines = ["| Byzantine | n = 10 | n = 20 | n = 50 | n = 100 | n = 200 |", "|---|---|---|---|---|---|"]
    for share in SHARES:
        found = [chance(n, share, 4) for n in (10, 20, 50, 100, 200)]
        lines.append(f"| {share:.0%} | " + " | ".join(f"{p:.2g}" if p else "< 1e-9" for p in found) + " |")
    return "\n".join(lines)


def draw(stem: Path) -> Path:
    """The chance of a round that the rule does not tolerate against n."""
    looks = {
        share: Line2D([], [], color=style.PALETTE[i], linewidth=1.3, linestyle=("-", "--", ":")[i])
        for i, share in enumerate(SHARES)
    }
    found = style.sheet(
        1, len(TOLERATED), 2.0,
        title="How often more than f of n workers attack",
        detail=f"{CLIENTS:,} clients, n drawn for each round",
        heads=list(TOLERATED),
        names=["rounds"],
        legend=[(line, f"{share:.0%} of the clients Byzantine") for share, line in looks.items()],
        left=0.8, below=0.36, gap=0.2, share=True,
    )  # fmt: skip
    [panels] = found.panels
    for panel, part in zip(panels, TOLERATED.values(), strict=True):
        for share, line in looks.items():
            points = [(n, chance(n, share, part)) for n in WORKERS]
            shown = [(n, p) for n, p in points if p > 0]
            panel.plot(*zip(*shown, strict=True), color=line.get_color(), linestyle=line.get_linestyle(), linewidth=1.3)
        panel.set_yscale("log")
        panel.set_ylim(1e-6, 1)
        panel.set_yticks(list(TICKS.values()), list(TICKS))
        panel.tick_params(axis="y", which="minor", length=0)
        panel.set_xlim(0, 1.05 * WORKERS[-1])
        panel.set_xlabel("n, workers in a round", labelpad=1)
        panel.grid(axis="both")
    png, pdf = style.save(found.figure, stem)
    pdf.unlink()
    return png


if __name__ == "__main__":
    print(table())
    print(draw(Path(__file__).parent / "federated"))
