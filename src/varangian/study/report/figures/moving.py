"""Where momentum stood and how large mu was, in runs in which the server moves it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...moves import mean_moves
from ..cells import Cell, Cells
from ..style import NARROW, PALETTE, SERVER, SMALL, WIDE, WORKER, house, sheet, steps_along, wrapped

MOST = 24  # cells in the figure
ACROSS = 3
MU, PERSISTENT, TURNING = "#000000", PALETTE[2], PALETTE[3]
AREA = 0.28  # how much of its colour the place has
DETAIL = (
    "persistent: the share of what tells workers' gradients apart that stays from step to step; turning: how far "
    "gradients turn back"
)


def moving(grid: Cells) -> list[tuple[str, Cell]]:
    """The cells in whose runs momentum moves, with titles that leave out what all of them share."""
    places = [place for place, cell in grid.cells.items() if any(o.moves for o in cell.outcomes)]
    telling = [i for i in range(len(grid.axes)) if len({place[i] for place in places}) > 1]
    named = [(", ".join(grid.axes[i].titles[place[i]] for i in telling), grid.cells[place]) for place in places]
    return [(name or "all runs", cell) for name, cell in named]


@house()
def moves(found: Sequence[tuple[str, Cell]], title: str, only: int | None = None) -> Figure:
    """A panel a cell, or one of them alone: the share of the seeds with momentum at the workers, and means over the
    seeds of mu and of what the server decides by."""
    shown = found[:MOST]
    across = 1 if only is not None else min(ACROSS, len(shown))
    some = shown if only is None else shown[only : only + 1]
    rows = [some[i : i + across] for i in range(0, len(some), across)]
    left = f" {len(found) - MOST} more cells are not drawn." if len(found) > MOST and not only else ""
    seeds = max(len(cell.outcomes) for _, cell in some)
    legend = [
        (Patch(facecolor=WORKER, alpha=AREA, linewidth=0), "at the workers"),
        (Patch(facecolor=SERVER, alpha=AREA, linewidth=0), "at the server"),
        (Line2D([], [], color=MU, linewidth=1.3), "mu"),
        (Line2D([], [], color=PERSISTENT, linestyle="--", linewidth=1.1), "persistent"),
        (Line2D([], [], color=TURNING, linestyle=":", linewidth=1.3), "turning"),
    ]
    drawn = sheet(
        len(rows),
        across,
        0.85,
        title=f"{title}: where momentum stood" if only is None else some[0][0],
        detail=f"{DETAIL}\n " if only is None else DETAIL if not only else "",
        foot=f"Means over {seeds} seeds, and the share of them at each place.{left}"
        if seeds > 1 and not only
        else left,
        left=0.35,
        below=0.36,
        legend=legend if only in (None, 0) else (),
        width=NARROW if across == 1 else WIDE,
        between=0.32,
        gap=0.14,
    )
    last = 1.0
    for panels, cells in zip(drawn.panels, rows, strict=True):
        for panel in panels[len(cells) :]:
            panel.set_visible(False)
        for panel, (name, cell) in zip(panels, cells, strict=False):
            last = max(last, _draw(panel, cell))
            wide = panel.get_position().width * drawn.figure.get_size_inches()[0]
            if only is None:
                panel.set_title(wrapped(name, wide, SMALL, lines=1), fontsize=SMALL, loc="left", pad=2)
    first = drawn.panels[0][0]
    first.set_ylim(0, 1.04)
    first.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    steps_along(drawn, last)
    for panel in drawn.panels[-1]:
        panel.set_xlabel("step", labelpad=1)
    return drawn.figure


def _draw(panel: Axes, cell: Cell) -> int:
    """Answers the last step."""
    means = mean_moves(o.moves for o in cell.outcomes)
    steps, workers = [m.step for m in means], [m.place for m in means]
    seen = [(m.step, m.persistent) for m in means if m.persistent is not None]
    panel.fill_between(steps, 0, workers, step="post", color=WORKER, alpha=AREA, linewidth=0)
    panel.fill_between(steps, workers, 1.0, step="post", color=SERVER, alpha=AREA, linewidth=0)
    panel.plot([s for s, _ in seen], [v for _, v in seen], color=PERSISTENT, linestyle="--", linewidth=1.1)
    panel.plot(steps, [m.turning for m in means], color=TURNING, linestyle=":", linewidth=1.3)
    panel.plot(steps, [m.mu for m in means], color=MU, linewidth=1.3)
    return max(steps, default=1)
