"""The house style of all figures: the widths of a paper's columns, one font, and files that publishers take."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ...runs.files import write_whole

SERVER, WORKER = "#D55E00", "#0072B2"  # Okabe and Ito's colours, told apart by colour-blind readers
PALETTE = (WORKER, SERVER, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7a7a7a")
SOFT, RULE = "#555555", "#dddddd"

NARROW, WIDE = 3.5, 7.2  # inches: one column of a paper, and both
DPI = 300
SIZE, SMALL, TITLE = 8.0, 7.0, 8.5  # points
LINE = 1.25  # from one line of text to the next, in heights of letters
TALL = 1.05  # inches that a low panel grows to at most, for its name
EDGE = 0.06  # inches that stay free on all sides

_LOOKS = (
    *("axes", "boxplot", "figure", "font", "grid", "hatch", "legend", "lines", "markers", "mathtext", "patch", "path"),
    *("pdf", "savefig", "text", "xtick", "ytick"),
)
STYLE: dict[Any, Any] = {  # matplotlib 3.11 has a type of its own for the names
    # All that a user may have set goes first.
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if name.split(".")[0] in _LOOKS},
    "font.family": ["DejaVu Sans"],
    "font.size": SIZE,
    "text.usetex": False,
    "text.parse_math": False,
    "text.hinting": "no_hinting",  # else letters are wider where dots are fewer
    "axes.titlesize": SIZE,
    "axes.labelsize": SIZE,
    "axes.linewidth": 0.6,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: IEEE and others refuse Type 3
    "ps.fonttype": 42,
}


_within: ContextVar[bool] = ContextVar("whether the style is set", default=False)


@contextmanager
def house() -> Iterator[None]:
    """Inside, figures are made and saved in this style, whatever the user's own settings of matplotlib are."""
    if _within.get():  # to set hundreds of settings anew for each text that is measured takes seconds
        yield
        return
    token = _within.set(True)
    try:
        with matplotlib.rc_context(STYLE):
            yield
    finally:
        _within.reset(token)


def save(figure: Figure, stem: Path, note: str = "") -> list[Path]:
    """The files made, a PNG and a PDF: the same bytes for the same figure. The PNG keeps ``note`` as a comment."""
    made = []
    plain = {"CreationDate": None, "Producer": None, "Creator": None}
    for kind, metadata in (("png", {"Software": "", "Comment": note} if note else {"Software": ""}), ("pdf", plain)):
        made.append(stem.with_name(f"{stem.name}.{kind}"))
        drawn = _drawn(figure, kind, metadata, DPI)
        write_whole(made[-1], lambda file, drawn=drawn: file.write(drawn))
    return made


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a picture of so many dots an inch, for a page."""
    return _drawn(figure, "png", {"Software": ""}, dpi)


def _drawn(figure: Figure, kind: str, metadata: dict[str, str] | dict[str, None], dpi: int) -> bytes:
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]  # a dollar sign in a name is one
    file = io.BytesIO()
    with house():
        figure.savefig(file, format=kind, metadata=metadata, dpi=dpi)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ text that fits


@lru_cache(maxsize=2**14)
def width_of(text: str, size: float = SIZE, bold: bool = False) -> float:
    """How wide a line of text is, in inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    with house():
        wide, _, _ = _measure()(text, font, False)
    return 1.02 * wide / DPI


@lru_cache(maxsize=1)
def _measure() -> Callable[[str, FontProperties, bool], tuple[float, float, float]]:
    return FigureCanvasAgg(Figure(figsize=(1, 1), dpi=DPI)).get_renderer().get_text_width_height_descent


def wrapped(text: str, width: float, size: float = SIZE, bold: bool = False, lines: int = 3) -> str:
    """The text in lines that are no wider than so many inches; what needs more lines than allowed ends in dots.

    Example:
        >>> wrapped("no line is wider than an inch", 1.0, size=8, lines=3).splitlines()
        ['no line is wider', 'than an inch']
    """
    found: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if line and width_of(longer, size, bold) > width:
                found.append(line)
                line = word
            else:
                line = longer
        found.append(line)
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1] + " …"]
    return "\n".join(_cut(line, width, size, bold) for line in found)


def _cut(line: str, width: float, size: float, bold: bool) -> str:
    if width_of(line, size, bold) <= width:
        return line
    line = line.removesuffix(" …")
    while line and width_of(line + "…", size, bold) > width:
        line = line[:-1]
    return line.rstrip() + "…"


def height_of(text: str, size: float = SIZE) -> float:
    """How high these lines are together, in inches."""
    return (text.count("\n") + 1) * LINE * size / 72 if text else 0.0


# ----------------------------------------------------------------------------------------------------------- sheets


@dataclass(frozen=True)
class Sheet:
    """A figure and its panels, a list a row."""

    figure: Figure
    panels: list[list[Axes]]


def sheet(
    rows: int,
    columns: int,
    height: float,
    *,
    title: str,
    detail: str = "",
    foot: str = "",
    heads: Sequence[str] = (),
    names: Sequence[str] = (),
    left: float = 0.35,
    below: float = 0.2,
    legend: Sequence[tuple[Artist, str]] = (),
    width: float = WIDE,
    gap: float = 0.1,
    between: float = 0.1,
    share: bool = True,
) -> Sheet:
    """A figure whose texts all have their room.

    Args:
        height: of a panel, in inches; more where the words of its name need it.
        title, detail: the heading, and what it was made of; both wrapped.
        foot: the caption under everything.
        heads: a title for each column of panels.
        names: a name for each row of panels, read upwards at its left.
        left: inches for the tick labels of the first column; names come before them.
        below: inches under a row of panels for its tick labels and axis label; under the last row alone if ``share``.
        legend: handles and their labels, in as many rows as they need.
        gap, between: inches between columns and between rows.
        share: whether all panels have the same axes.
    """
    inner = width - 2 * EDGE
    title = wrapped(title, inner, TITLE, bold=True)
    detail = wrapped(detail, inner, SMALL, lines=4)
    foot = wrapped(foot, inner, SMALL, lines=6)
    height = max(height, min(TALL, max((width_of(word) for name in names for word in name.split()), default=0.0)))
    named = [wrapped(name, height + between, SIZE, lines=3) for name in names]
    margin = left + max((height_of(name) for name in named), default=0.0) + EDGE
    wide = (width - margin - 2 * EDGE - gap * (columns - 1)) / columns
    topped = [wrapped(head, wide, SIZE, lines=3) for head in heads]
    head = max((height_of(t) for t in topped), default=0.0) + 0.05
    top = EDGE + height_of(title, TITLE) + height_of(detail, SMALL) + 0.06 + head
    listed = _legend_rows(legend, inner)
    keys = len(listed) * 0.17 + (0.04 if listed else 0.0)
    under = height_of(foot, SMALL) + keys + EDGE + 0.03
    step = height + between + (0.0 if share else below)
    total = top + rows * step - (between if share else below + between) + below + under
    with house():
        figure = Figure(figsize=(width, total))
        FigureCanvasAgg(figure)
        panels: list[list[Axes]] = []
        first: Axes | None = None
        for row in range(rows):
            panels.append([])
            for column in range(columns):
                x, y = margin + EDGE + column * (wide + gap), total - top - row * step - height
                where = (x / width, y / total, wide / width, height / total)
                panel = figure.add_axes(where, sharex=first if share else None, sharey=first if share else None)
                first = first or panel
                panels[-1].append(panel)
                if column and share:
                    panel.tick_params(labelleft=False)
                if row < rows - 1 and share:
                    panel.tick_params(labelbottom=False)
        figure.text(EDGE / width, 1 - EDGE / total, title, size=TITLE, weight="bold", va="top", linespacing=LINE)
        down = EDGE + height_of(title, TITLE)
        figure.text(EDGE / width, 1 - down / total, detail, size=SMALL, color=SOFT, va="top", linespacing=LINE)
        for column, text in enumerate(topped):
            middle = margin + EDGE + column * (wide + gap) + wide / 2
            figure.text(middle / width, 1 - (top - 0.04) / total, text, ha="center", va="bottom", linespacing=LINE)
        for row, text in enumerate(named):
            middle = total - top - row * step - height / 2
            figure.text(
                EDGE / width, middle / total, text, rotation=90, ha="left", va="center", ma="center", linespacing=LINE
            )
        figure.text(EDGE / width, EDGE / total, foot, size=SMALL, color=SOFT, va="bottom", linespacing=LINE)
        high = EDGE + height_of(foot, SMALL) + keys
        for number, line in enumerate(listed):
            figure.legend(
                [handle for handle, _ in line],
                [label for _, label in line],
                loc="upper left",
                bbox_to_anchor=(EDGE / width, (high - 0.17 * number) / total),
                ncols=len(line),
                borderpad=0,
                borderaxespad=0,
                handlelength=1.6,
                handletextpad=0.4,
                columnspacing=1.2,
            )
    return Sheet(figure, panels)


def _legend_rows(legend: Sequence[tuple[Artist, str]], width: float) -> list[list[tuple[Artist, str]]]:
    rows: list[list[tuple[Artist, str]]] = []
    used = width
    for handle, label in legend:
        label = _cut(label, width - 0.4, SMALL, False)
        needed = width_of(label, SMALL) + (1.6 + 0.4 + 1.2) * SMALL / 72
        if used + needed > width:
            rows.append([])
            used = 0.0
        rows[-1].append((handle, label))
        used += needed
    return rows


# ------------------------------------------------------------------------------------------------------------- axes

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float, _: object = None) -> str:
    """The label of a tick on a logarithmic axis, without TeX.

    Example:
        >>> [power(v) for v in (0.001, 0.1, 1, 100, 1e6)]
        ['10⁻³', '0.1', '1', '100', '10⁶']
    """
    if 0.05 < value < 500:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return ("" if mantissa == "1" else f"{mantissa}·") + "10" + str(int(exponent)).translate(_RAISED)


def logarithmic(panel: Axes, axis: str, ticks: int = 4) -> None:
    """Makes an axis logarithmic, with a few ticks at powers of ten."""
    getattr(panel, f"set_{axis}scale")("log")
    which = panel.xaxis if axis == "x" else panel.yaxis
    which.set_major_locator(LogLocator(10, numticks=ticks))
    which.set_major_formatter(FuncFormatter(power))
    which.set_minor_locator(NullLocator())


def steps_along(found: Sheet, last: float, ticks: int = 3) -> None:
    """The x axes from 0 to the last step; outer labels stay within their panel, so that neighbours do not touch."""
    first = found.panels[0][0]
    first.set_xlim(0, last)
    places = MaxNLocator(ticks, integer=True).tick_values(0, last)
    first.set_xticks([t for t in places if 0 <= t <= last])
    first.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for panel in found.panels[-1]:
        labels = panel.get_xticklabels()
        if len(labels) > 1:
            labels[0].set_horizontalalignment("left")
            labels[-1].set_horizontalalignment("right")


def per_cent_up(found: Sheet) -> None:
    """The y axes from 0 to 100, with outer labels within their panel."""
    first = found.panels[0][0]
    first.set_ylim(0, 100)
    first.set_yticks([0, 25, 50, 75, 100])
    for row in found.panels:
        labels = row[0].get_yticklabels()
        labels[0].set_verticalalignment("bottom")
        labels[-1].set_verticalalignment("top")


def plain_numbers(panel: Axes, axis: str, ticks: int = 5) -> None:
    """A linear axis with at most so many ticks at round numbers, a minus as a minus."""
    which = panel.xaxis if axis == "x" else panel.yaxis
    which.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
