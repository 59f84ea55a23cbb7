"""Who holds which data, and how far apart that puts the gradients: a page, pictures and tables."""

from __future__ import annotations

from math import isfinite, isnan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...runs.experiment import Experiment
from ...runs.files import make_folder, write_whole
from ...runs.holdings import Heterogeneity
from ..outcomes import write_csv
from . import style
from .figures.holdings import gradients, held
from .page import filled

PAGE, HOLDINGS, GRADIENTS = "data.html", "holdings.csv", "gradients.csv"
ROWS, COLUMNS = 200, 200  # of the map on the page; holdings.csv has all
DPI = 200


def report_holdings(found: Heterogeneity, out: str | Path, command: str = "") -> Path:
    """The page, one file that needs no network; beside it holdings.csv, gradients.csv where gradients were measured,
    and figures/holdings and figures/gradients as PNG and PDF. What was there under these names is replaced.

    Args:
        found: as :func:`varangian.heterogeneity` answers it.
        out: the folder to write into.
        command: what made it, to stand on the page.
    """
    out = Path(out).expanduser()
    folder = make_folder(out, "figures")
    figures: dict[str, Figure] = {"holdings": held(found)}  # by their names
    measured = [p for p in found.points if isfinite(p.spread) and isfinite(p.squared_norm)]
    if len(measured) > 1:
        figures["gradients"] = gradients(found)
    for name, figure in figures.items():
        style.save(figure, folder / name)
    header = [found.who, "honest", "examples", *(f"{found.what} {name}" for name in found.columns)]
    write_csv(
        out / HOLDINGS,
        header,
        (
            [str(worker), "no" if found.attacks[worker] else "yes", str(size), *map(str, row.tolist())]
            for worker, (size, row) in enumerate(zip(found.sizes, found.counts, strict=True))
        ),
    )
    rows = _points(found)
    if rows:
        write_csv(out / GRADIENTS, list(rows[0]), (list(row.values()) for row in rows))
    # What an earlier call left there would pass for this one's.
    stale = [] if rows else [out / GRADIENTS]
    stale += [] if "gradients" in figures else [folder / f"gradients.{kind}" for kind in ("png", "pdf")]
    for former in stale:
        former.unlink(missing_ok=True)
    page = filled(
        "data.html",
        found=found,
        title=f"Who holds what: {found.experiment.partition}",
        line=describe(found),
        cards=_cards(found),
        rows=_rows(found),
        columns=found.columns[:COLUMNS],
        cut=max(0, len(found.sizes) - ROWS),
        cut_columns=max(0, len(found.columns) - COLUMNS),
        points=rows,
        told=gradients_told(found),
        picture=style.png(figures["gradients"], DPI) if "gradients" in figures else None,
        command=command,
    )
    path = out / PAGE
    write_whole(path, lambda file: file.write(page.encode()))
    return path


def describe(found: Heterogeneity) -> str:
    """Which data, and how many examples somebody holds."""
    e = found.experiment
    left = found.total - found.held
    rest = f", {left:,} of {found.total:,} training examples with nobody" if left else ""
    people = e.population()
    who = f"workers of {e.workers}"
    if people is not None:
        who = f"clients of {people.clients:,}, {e.workers} in a round"
        who += f", {people.byzantine:,} of them Byzantine in turn" if people.changes and people.byzantine else ""
    return f"{e.dataset}, {found.honest:,} honest {who}, seed {e.seed}{rest}"


def gradients_told(found: Heterogeneity) -> list[str]:
    """What was measured of the gradients, in sentences; none where nothing was."""
    fit, e = found.fit, found.experiment
    if not found.points:
        return []
    on = "all the data" if found.sampled is None else f"at most {found.sampled:,} examples drawn from the data"
    told = [
        f"Gradients of each honest {found.who}'s own loss, on {on} that it holds, {e.model}, without l2 and clipping."
    ]
    if fit is None:
        return [*told, "None of them is finite: there is no G and no B."]
    if fit.points == 1:
        p = next(p for p in found.points if isfinite(p.spread))
        told.append(
            f"At step {p.step}: spread (1/h) sum ||g_i - mean||^2 = {p.spread:.4g}, ||mean||^2 = {p.squared_norm:.4g}; "
            f"their ratio is {p.ratio:.3g}. One point does not tell G from B: G = {fit.G:.4g} if B = 0, or "
            f"B = {sqrt(p.ratio):.4g} if G = 0."
        )
        return told
    told.append(
        f"G = {fit.G:.4g} and B = {fit.B:.4g}, by least squares of spread = G^2 + B^2 ||mean||^2 over {fit.points} "
        f"steps: a line through the points and no bound. With this B, spread <= G^2 + B^2 ||mean||^2 holds at all of "
        f"them from G = {fit.G_above:.4g} on."
    )
    told.append(
        f"With such a B no rule can guarantee anything from a share 1/(2 + B^2) = {fit.breakdown:.3g} of Byzantine "
        f"workers on (Allouah et al. 2023); here they are {_share(e)}."
    )
    if found.stopped:
        told.append(f"The run ended early: {found.stopped}")
    return told


def _share(e: Experiment) -> str:
    people = e.population()
    return f"{e.attackers} of {e.workers}" if people is None else f"{people.byzantine:,} of {people.clients:,} clients"


def _cards(found: Heterogeneity) -> list[tuple[str, str]]:
    sizes, held = found.sizes[~found.attacks], (found.counts[~found.attacks] > 0).sum(1)
    cards = [
        (_range(sizes), f"examples a {found.who}"),
        (_range(held), f"of {len(found.columns)} {found.what.replace('class', 'classes', 1)} a {found.who}")
        if len(found.columns) > 1
        else (f"{found.held:,}", "examples held"),
    ]
    if found.fit is not None and found.fit.points > 1:
        cards += [(f"{found.fit.G:.3g}", "G, of the honest gradients"), (f"{found.fit.B:.3g}", "B")]
    elif found.fit is not None:
        cards.append((f"{found.points[0].ratio:.3g}", "spread of the honest gradients / ‖mean‖², at the start"))
    return cards


def _range(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _rows(found: Heterogeneity) -> list[dict[str, Any]]:
    """Of the map: amounts and their shades, by the square root, so that little is told from nothing."""
    top, most = max(int(found.counts.max()), 1), max(int(found.sizes.max()), 1)
    return [
        {
            "name": f"{worker}, Byzantine" if found.attacks[worker] else f"{worker}",
            "size": f"{size:,}",
            "bar": round(100 * size / most, 1),
            "tiles": [(f"{v:,}" if v else "", min(9, int(10 * sqrt(v / top)))) for v in counts[:COLUMNS].tolist()],
        }
        for worker, (size, counts) in enumerate(zip(found.sizes[:ROWS].tolist(), found.counts[:ROWS], strict=True))
    ]


def _points(found: Heterogeneity) -> list[dict[str, str]]:
    by_step = {evaluation.step: evaluation for evaluation in found.evaluations}
    rows = []
    for p in found.points:
        row = {"step": str(p.step), "squared_norm": f"{p.squared_norm:.9g}", "spread": f"{p.spread:.9g}"}
        row["ratio"] = f"{p.ratio:.9g}"
        if found.evaluations:
            e = by_step[p.step]
            row |= {"accuracy": "" if isnan(e.accuracy) else f"{e.accuracy:.9g}", "loss": f"{e.loss:.9g}"}
        rows.append(row)
    return rows
