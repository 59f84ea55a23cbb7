"""The figure of docs/howto/advice.md: what declaring f' costs at least, where f of n lie.

python docs/howto/advice.py    draw docs/howto/advice.png
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.lines import Line2D

from varangian.study.report import style

NUMBERS = (15, 51)
LYING = (0, 0.12, 0.24, 0.35)  # shares of the workers


def costs(n: int, f: int) -> list[tuple[int, float]]:
    """(f', the least squared error in variances of the honest vectors), from f on: below it nothing is promised."""
    return [(declared, declared / (n - f - declared)) for declared in range(f, (n - 1) // 2 + 1)]


def draw(stem: Path) -> Path:
    looks = {
        share: Line2D([], [], color=style.PALETTE[i], linewidth=1.3, linestyle=("-", "--", ":", "-.")[i])
        for i, share in enumerate(LYING)
    }
    found = style.sheet(
        1, 2, 2.2,
        title="What a wrong f costs",
        detail="The least squared error of any rule that holds against f', in variances of the honest vectors. A line "
        "begins where f' is as many as lie: told of fewer, a rule promises nothing",
        heads=[f"{n} workers" for n in NUMBERS],
        legend=[
            (line, f"{' or '.join(f'{round(share * n)}' for n in NUMBERS)} lie" if share else "nobody lies")
            for share, line in looks.items()
        ],
        left=0.4, below=0.36, gap=0.45, share=False,
    )  # fmt: skip
    [panels] = found.panels
    for panel, n in zip(panels, NUMBERS, strict=True):
        for share, line in looks.items():
            declared, error = zip(*costs(n, round(share * n)), strict=True)
            panel.plot(declared, error, color=line.get_color(), linestyle=line.get_linestyle(), linewidth=1.3)
            panel.plot(declared[0], error[0], marker="o", markersize=3.5, color=line.get_color(), clip_on=False)
        panel.set_xlabel("f' that the rule is told", labelpad=1)
        panel.set_xlim(0, n // 2 + 0.3)
        panel.set_ylim(0, 3.6)
        panel.grid(axis="both")
    png, pdf = style.save(found.figure, stem)
    pdf.unlink()
    return png


if __name__ == "__main__":
    print(draw(Path(__file__).parent / "advice"))
