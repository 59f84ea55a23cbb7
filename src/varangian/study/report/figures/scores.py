"""Score cards in figures: what the worst attack leaves each rule, and every rule under every attack."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import PALETTE, RULE, SMALL, SOFT, WIDE, house
from .common import points

if TYPE_CHECKING:  # which itself needs the statistics of reports
    from ...score.card import Card

MOST = 120  # rules in a figure
NAME = 34  # letters of a name
HUES = (PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[3])  # of partitions


def by_score(cards: Sequence[Card]) -> Figure:
    """A row a rule: the accuracy under its worst attack for each partition and place of momentum, and their mean."""
    shown = [card for card in cards if card.accuracies][:MOST]
    cells = list(dict.fromkeys(cell for card in shown for cell in card.cells))
    hues = dict(zip(dict.fromkeys(p for p, _ in cells), HUES, strict=False))
    with house():
        figure = Figure(figsize=(WIDE, 0.9 + 0.165 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for y, card in enumerate(shown):
            calm = [a.mean for a in card.accuracies if a.attack is None]
            if calm:
                axes.plot(100 * fmean(calm), y, marker="|", color=SOFT, markersize=6, linestyle="none")
            for cell in cells:
                a = card.lowest(*cell)
                if a is not None:
                    shape = points("o" if cell[0] == cells[0][0] else "D", cell[1], 3.4)
                    axes.plot(100 * a.mean, y, color=hues.get(cell[0], SOFT), **shape)
            if card.score is not None:
                axes.plot(card.score, y, marker="|", color="black", markersize=8, markeredgewidth=2, linestyle="none")
        axes.set_yticks(range(len(shown)), [_cut(card.name) for card in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(axis="both", color=RULE)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy under the worst attack, %")
        handles = [
            Line2D([], [], color=hues.get(p, SOFT), label=f"{p}, momentum at the {'workers' if m == 'worker' else m}",
                   **points("o" if p == cells[0][0] else "D", m, 4))
            for p, m in cells
        ]  # fmt: skip
        handles += [
            Line2D([], [], color="black", marker="|", markersize=8, markeredgewidth=2, linestyle="none", label="score"),
            Line2D([], [], color=SOFT, marker="|", markersize=6, linestyle="none", label="no attack"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def by_attack(cards: Sequence[Card], attacks: Sequence[str]) -> Figure:
    """A map: the accuracy of each rule under each attack, the mean over partitions and places of momentum."""
    shown = [card for card in cards if card.accuracies][:MOST]
    values = np.full((len(shown), len(attacks)), np.nan)
    for y, card in enumerate(shown):
        found: dict[str | None, list[float]] = {}
        for a in card.accuracies:
            found.setdefault(a.attack, []).append(100 * a.mean)
        for x, attack in enumerate(attacks):
            if attack in found:
                values[y, x] = fmean(found[attack])
    with house():
        figure = Figure(figsize=(WIDE, 1.4 + 0.165 * len(shown)), layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("#eeeeee")
        drawn = axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    x, y, f"{value:.0f}", ha="center", va="center", fontsize=SMALL - 1.5,
                    color="white" if value > 60 else "black",
                )  # fmt: skip
        axes.set_xticks(range(len(attacks)), [_cut(name.partition("(")[0]) for name in attacks], rotation=90)
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(shown)), [_cut(card.name) for card in shown])
        axes.tick_params(length=0)
        for side in ("top", "right", "bottom", "left"):
            axes.spines[side].set_visible(False)
        figure.colorbar(drawn, ax=axes, label="accuracy, %", shrink=0.5, pad=0.01)
    return figure


def _cut(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"
