"""Figures, tables and numbers of the explanations, computed with the library.

python docs/explanation/figures.py    draws docs/explanation/figures/*.png and writes the tables into the pages

A table of numbers stands in its page between two marks and is written there; a number within a sentence is part of a
phrase in ``PHRASES``, and ``tests/test_explanations.py`` looks for the phrase.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, median

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

import varangian as vg
from varangian.core import numerics
from varangian.core.geometry import squared_between
from varangian.core.kernels.cpu.columns import REGISTER_ROWS
from varangian.core.kernels.cpu.distances import DISTANCE_WIDTH
from varangian.core.kernels.definitions import network
from varangian.runs.building import build, computing, open_dataset
from varangian.study.outcomes import read_runs
from varangian.study.paper import account
from varangian.study.report import style
from varangian.study.report.statistics import summarize

HERE = Path(__file__).parent
FIGURES = HERE / "figures"
ABOVE, BELOW = style.WORKER, style.SERVER
WIDTH, DPI = 3.8, 260  # inches and dots: letters of 8 points are 10 pixels high where the page is 400 wide


def sheet(columns: int = 1, height: float = 2.6, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of some panels side by side, in the house style."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, columns, sharey=share, squeeze=False)
    return figure, list(panels[0])


def by_tens(panel: Axes, both: bool = False) -> None:
    """Logarithmic axes whose ticks are words: 0.01, 1, 100, 10⁶."""
    for axis in (panel.yaxis, *([panel.xaxis] if both else [])):
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(numticks=8))
        axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        axis.set_minor_locator(NullLocator())
    panel.grid(visible=True)


def power(value: float) -> str:
    exponent = round(np.log10(value))
    return (
        f"{value:g}"
        if -3 <= exponent <= 3
        else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    )


# ------------------------------------------------------------------------------------- the paper in ten minutes

MUS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
KINDS: dict[str, Callable[[float], float]] = {
    "the same at every step": lambda mu: (1 - mu) / (1 + mu),
    "at right angles": lambda mu: 1.0,
    "turning back at every step": lambda mu: (1 + mu) / (1 - mu),
}


@cache
def averaged(kind: int, h: int = 200, d: int = 400, steps: int = 500) -> dict[float, float]:
    """By how much each momentum multiplies the variance-norm ratio, measured on h workers: true gradients of length 1
    of one kind, noise of deviation 1, and :class:`varangian.Momentum`, after so many steps."""
    draw = torch.Generator().manual_seed(kind)
    memories = {mu: torch.zeros(h, d) for mu in MUS}
    gradients = memories[0.0]
    for step in range(steps):
        truth = torch.zeros(d)
        truth[step % d if kind == 1 else 0] = -1.0 if kind == 2 and step % 2 else 1.0
        gradients = truth + torch.randn(h, d, generator=draw) / d**0.5
        memories = {mu: vg.Momentum(mu)(gradients, memory)[0] for mu, memory in memories.items()}
    return {mu: ratio(memory) / ratio(gradients) for mu, memory in memories.items()}


def ratio(x: torch.Tensor) -> float:
    """(deviation / norm of the mean)^2. The mean of h noisy vectors is longer than the mean without noise by a part of
    the variance, which is taken off again."""
    mean = x.double().mean(0)
    variance = float((x - mean).square().sum() / (len(x) - 1))
    return variance / (float(mean.square().sum()) - variance / len(x))


@cache
def along() -> tuple[list[float], list[float]]:
    """Of 27 honest workers on digits, 100 steps without attack: the ratio of gradients and that of momenta."""
    e = vg.Experiment(
        workers=27, byzantine=0, rule="average", momentum_at="worker", momentum=0.9, clip=2.0, learning_rate=0.1,
        batch_size=32, steps=100, measure=False, seed=1,
    )  # fmt: skip
    found: tuple[list[float], list[float]] = ([], [])
    with computing(e):
        simulation, _ = build(e, open_dataset(e))
        for _ in range(e.steps):
            simulation.step()
            found[0].append(plain_ratio(vg.Clip(2.0)(simulation.sampled)[0]))
            found[1].append(plain_ratio(simulation.vectors))
    return found


def plain_ratio(x: torch.Tensor) -> float:
    """(deviation / norm of the mean)^2, as a run measures it."""
    mean = x.double().mean(0)
    return float((x - mean).square().sum() / (len(x) - 1) / mean.square().sum())


def falls() -> float:
    """By how much momentum divides the ratio, in the median over the steps."""
    gradients, momenta = along()
    return median(g / m for g, m in zip(gradients, momenta, strict=True))


@cache
def gains() -> dict[int, float]:
    """Mean gain, in points, of momentum at the workers by batch size, over the rules and attacks of the demo."""
    found: dict[tuple[int, str], list[float]] = {}
    with (HERE.parent / "demo.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["attack"]:
                place = int(row["batch_size"]), row["momentum_at"]
                found.setdefault(place, []).append(100 * float(row["max_accuracy"]))
    return {size: fmean(found[size, "worker"]) - fmean(found[size, "server"]) for size in sorted({s for s, _ in found})}


def draw_ratio() -> Figure:
    figure, [panel] = sheet()
    fine = np.linspace(0, 0.995, 300)
    for kind, (name, law) in enumerate(KINDS.items()):
        colour = (ABOVE, "#555555", BELOW)[kind]
        panel.plot(fine, [law(mu) for mu in fine], color=colour, linewidth=1.2)
        panel.plot(MUS, list(averaged(kind).values()), "o", color=colour, markersize=4, label=name)
    by_tens(panel)
    panel.set_xlabel("momentum μ")
    panel.set_title("What momentum multiplies the variance-norm ratio by", loc="left")
    panel.legend(title="true gradients are", alignment="left", loc="upper left")
    return figure


def draw_steps() -> Figure:
    figure, [panel] = sheet()
    for values, colour, name in zip(along(), (BELOW, ABOVE), ("gradients", "momenta"), strict=True):
        panel.plot(range(1, 101), values, color=colour, linewidth=1.2, label=name)
    by_tens(panel)
    panel.set_xlabel("step")
    panel.set_title("Variance-norm ratio of what 27 honest workers send", loc="left")
    panel.legend(loc="upper left")
    return figure


# -------------------------------------------------------------------------------------------- geometry in n x n


@cache
def mixed() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """15 vectors of 10,000 coordinates, the last 4 those of Little: the squared distances between them, those that
    nearest-neighbour mixing derives, those of the mixtures themselves, and the weights."""
    draw = torch.Generator().manual_seed(1)
    honest = 0.02 + torch.randn(11, 10_000, generator=draw) / 100
    x = torch.cat([honest, vg.Little()(honest, f=4).expand(4, -1)])
    geometry = vg.Geometry.of(x)
    weights = vg.NearestNeighborMixing(f=4).weights(geometry)
    made = (torch.from_numpy(weights) @ x.double()).to(torch.float64)
    return geometry.distances, geometry.mix(weights).distances, vg.Geometry.of(made).distances, weights


def derived_error() -> float:
    """The greatest relative difference between a distance that was derived and the distance of the mixtures."""
    _, derived, made, _ = mixed()
    apart = ~np.eye(len(made), dtype=bool) & (made > 1e-20 * made.max())
    return float((np.abs(derived - made)[apart] / made[apart]).max())


def draw_geometry() -> Figure:
    before, after, _, weights = mixed()
    figure, panels = sheet(3, 1.75, share=True)
    for panel, values, name in zip(panels, (before, weights, after), ("D", "W", "D of the mixtures"), strict=True):
        panel.imshow(values, cmap="cividis")
        panel.set_title(name, loc="left")
        panel.set_xticks([0, 10, 14], ["1", "11", "15"])
        panel.set_yticks([0, 10, 14], ["1", "11", "15"])
        panel.spines[:].set_visible(False)
    return figure


# --------------------------------------------------------------------------------------------- sorting networks


def sizes(n: int) -> tuple[int, int, int]:
    """Comparators that sort n values, that find the median, and that find what a trimmed mean of f = n // 4 adds up."""
    f = n // 4
    return len(network(n, 0, n)), len(network(n, (n - 1) // 2, n // 2 + 1)), len(network(n, f, n - f))


def sorts(n: int, low: int, high: int) -> int:
    """How many inputs of zeros and ones the network was tried on: all. It is right on every one, or this raises."""
    values = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
    right = np.sort(values, 1)[:, low:high]
    for a, b in network(n, low, high):
        values[:, [a, b]] = np.sort(values[:, [a, b]], 1)
    assert (values[:, low:high] == right).all()
    return len(values)


def draw_network(n: int = 9) -> Figure:
    """The comparators from left to right, those that no two wires dispute in one column."""
    low = n // 2
    kept = list(network(n, low, low + 1))
    figure, [panel] = sheet(1, 2.3)
    column, taken = 0, set()
    waiting = list(kept)
    for a, b in network(n, 0, n):
        wires = set(range(a, b + 1))
        if wires & taken:
            column, taken = column + 1, set()
        taken |= wires
        used = (a, b) in waiting
        if used:
            waiting.remove((a, b))
        colour = ABOVE if used else "#b8bec6"
        panel.plot([column, column], [a, b], "o-", color=colour, markersize=3.5, linewidth=1.2, zorder=3)
    assert not waiting
    for wire in range(n):
        panel.plot([-0.8, column + 0.8], [wire, wire], color="#8a919b", linewidth=0.6)
    panel.annotate("median", (column + 0.9, low), va="center", color=ABOVE, annotation_clip=False)
    panel.invert_yaxis()
    panel.set_yticks(range(n), [f"{i + 1}" for i in range(n)])
    panel.set_xticks([])
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    panel.set_title("Nine values in, the middle one out on the fifth wire", loc="left")
    return figure


# ------------------------------------------------------------------------------------------ what resilience means

REACHES = np.geomspace(0.1, 1e4, 41)
N, F = 15, 4
TRIED: dict[str, vg.Rule] = {
    "average": vg.Average(f=F),
    "median": vg.Median(f=F),
    "trimmed mean": vg.TrimmedMean(f=F),
    "Krum": vg.Krum(f=F),
    "geometric median": vg.GeometricMedian(f=F),
}


@cache
def reached(name: str) -> list[float]:
    """How far the answer is from the honest mean, in deviations of the honest vectors, where 4 of 15 stand together at
    a distance from that mean: on the line from it away from one honest vector."""
    draw = torch.Generator().manual_seed(2)
    honest = torch.randn(N - F, 20, generator=draw, dtype=torch.float64)
    mean = honest.mean(0)
    spread = float((honest - mean).square().sum() / (N - F - 1)) ** 0.5
    away = mean - honest[0]
    away = away / away.norm() * spread
    found = []
    for reach in REACHES:
        x = torch.cat([honest, (mean + reach * away).expand(F, -1)])
        found.append(float((TRIED[name](x) - mean).norm()) / spread)
    return found


def draw_reach() -> Figure:
    figure, [panel] = sheet(1, 3.0)
    for i, name in enumerate(TRIED):
        colour = "#7a7a7a" if i == 0 else style.PALETTE[i - 1]
        looks = ("--", "-", (0, (4, 1)), "-.", ":")[i]
        panel.plot(REACHES, reached(name), color=colour, linestyle=looks, linewidth=1.4, label=name)
    by_tens(panel, both=True)
    panel.set_ylim(1e-2, 30)
    panel.set_xlabel("how far from the honest mean 4 of 15 stand, in the same")
    panel.set_title("How far they move the answer, in honest deviations", loc="left")
    panel.legend(loc="lower right", ncols=2)
    return figure


@cache
def kappas(n: int = 11, f: int = 2) -> list[tuple[str, float, float | None]]:
    """(rule, the greatest ratio found, the bound that is proved) of some rules."""
    rules = (vg.TrimmedMean, vg.Median, vg.GeometricMedian, vg.Krum, vg.MultiKrum)
    titles = ("trimmed mean", "median", "geometric median", "Krum", "Multi-Krum")
    found = []
    for title, kind in zip(titles, rules, strict=True):
        rule = kind(f=f)
        found.append((title, vg.empirical_kappa(rule, n, evaluations=200), rule.kappa_bound(n)))
    return found


def kappa_table() -> str:
    lines = ["| rule, n = 11, f = 2 | found | proved |", "|---|---|---|"]
    lines += [f"| {t} | {k:.2f} | {'none' if bound is None else f'{bound:.2f}'} |" for t, k, bound in kappas()]
    return "\n".join([*lines, f"| no rule has less than | {2 / 7:.2f} | |"])


def krum_asks() -> float:
    """What the variance-norm ratio must be below for Krum to be proved resilient on the paper's panel."""
    bound = vg.Krum(f=24).variance_bound(51, 79_510)
    assert bound is not None
    return bound**2


# ------------------------------------------------------------------------------------------------------ numerics

OFFSETS = np.geomspace(1, 1e6, 25)


def product(a: np.ndarray, b: np.ndarray) -> np.float32:
    """The inner product as a matrix product finds it, in float32: 16 sums side by side. Written out, since libraries
    take another order on each processor."""
    lanes = np.cumsum((a * b).reshape(-1, 16), axis=0, dtype=np.float32)[-1]
    return np.cumsum(lanes, dtype=np.float32)[-1]


@cache
def off(offset: float, pairs: int = 25) -> tuple[float, float]:
    """The relative error of the squared distance of two float32 vectors of 10,000 coordinates that are so far from the
    origin, in their distance to one another: from inner products, the median over some pairs, and as this library
    measures it, the greatest."""
    draw, plain, ours = torch.Generator().manual_seed(3), [], []
    away = torch.full((10_000,), offset / 100)
    for _ in range(pairs):
        x = torch.randn(2, 10_000, generator=draw)
        x = x / (x[0].double() - x[1].double()).norm().float() + away
        true = float((x[0].double() - x[1].double()).square().sum())
        a, b = x.numpy()
        plain.append(abs(float(product(a, a) + product(b, b) - 2 * product(a, b)) - true) / true)
        ours.append(abs(float(squared_between(x, None)[0, 1]) - true) / true)
    return median(plain), max(ours)


@cache
def added(count: int = 36_489_290) -> tuple[float, float]:
    """The relative error of the squared length of a vector as long as Wide-ResNet's: squares added to one float32
    number one after the other, and as this library adds them."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(1, count, generator=draw)
    squares = x[0].square().numpy()
    true = float(squares.sum(dtype=np.float64))
    running = float(np.cumsum(squares, dtype=np.float32)[-1])
    return abs(running - true) / true, abs(float(squared_between(x, None)[0, 1]) - true) / true


@cache
def orders(tries: int = 200) -> tuple[int, int]:
    """How many different answers the mean of 51 vectors has when they are shown in so many orders: added up in float32
    one after the other, and here."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(51, 1000, generator=draw)
    plain, ours = set(), set()
    for _ in range(tries):
        y = x[torch.randperm(51, generator=draw)]
        plain.add((np.cumsum(y.numpy(), axis=0, dtype=np.float32)[-1] / np.float32(51)).tobytes())
        ours.add(vg.Average(f=0)(y).numpy().tobytes())
    return len(plain), len(ours)


def draw_cancelling() -> Figure:
    figure, [panel] = sheet()
    least = 1e-9
    for k, (colour, name) in enumerate(
        [(BELOW, "‖x‖² + ‖y‖² − 2⟨x, y⟩ in float32"), (ABOVE, "here: of the differences")]
    ):
        panel.plot(OFFSETS, [max(off(o)[k], least) for o in OFFSETS], color=colour, linewidth=1.4, label=name)
    by_tens(panel, both=True)
    panel.set_xlabel("how far from the origin the two are, in their distance")
    panel.set_title("Relative error of a squared distance", loc="left")
    panel.legend(loc="upper left")
    return figure


# ------------------------------------------------------------------------------------------------- what is made


def network_table() -> str:
    lines = ["| n | sorted | median | trimmed mean, f = ⌊n/4⌋ |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {n} | {a} | {b} | {c} |" for n in (5, 11, 25, 51) for a, b, c in [sizes(n)])])


def gain_table() -> str:
    lines = ["| images a worker takes at a step | gain, in points |", "|---|---|"]
    return "\n".join([*lines, *(f"| {size} | {gain:+.1f} |" for size, gain in gains().items())])


def drawn_near() -> float:
    """What nearest-neighbour mixing leaves of the squared distance between attackers and honest vectors."""
    before, after, _, _ = mixed()
    return float(after[-1, 0] / np.median(before[-1, :11]))


@cache
def study() -> list[str]:
    """The gain on the paper's panel, by profile."""
    results = HERE.parents[1] / "results"
    found = [
        summarize(account(read_runs(results / folder / "runs.csv")).pairs)
        for folder in ("fashion-mnist", "fashion-mnist-published")
    ]
    described, published = found
    return [
        f"{described.pairs} pairs, it is {described.mean:.1f} points in the mean "
        f"(95 % interval {described.low:.1f} to {described.high:.1f})",
        f"and {published.mean:.1f} ({published.low:.1f} to {published.high:.1f}) as the authors' code computed it",
    ]


PHRASES: dict[str, Callable[[], list[str]]] = {
    "paper": lambda: [
        "multiplies the ratio by {:.2f}, {:.1f} and {:.1f}.".format(*(averaged(kind)[0.9] for kind in range(3))),
        f"divides the ratio by {falls():.1f} in the median over 100 steps",
        f"which is {fraction((1 - 0.9) / (1 + 0.9))} of the ratio at $\\mu = 0.9$, and "
        f"{fraction((1 - 0.99) / (1 + 0.99))} at $\\mu = 0.99$",
        *study(),
    ],
    "geometry": lambda: [
        f"51 vectors of 79,510 coordinates: {52**2:,} numbers in place of {51 * 79_510:,}",
        f"the derived distances are right to {derived_error():.0e}".replace("e-0", "e-"),
        f"which is {drawn_near():.2f} of what it was",
    ],
    "sorting-networks": lambda: [
        f"a network on 11 wires is proved right by {sorts(11, 5, 6):,} inputs",
        f"beyond {REGISTER_ROWS} rows",
    ],
    "resilience": lambda: [
        f"Where the 4 stand 10,000 deviations away from the mean of 11 honest vectors, the average is off by "
        f"{reached('average')[-1]:,.0f} deviations, the trimmed mean by {reached('trimmed mean')[-1]:.2f}, the "
        f"median by {reached('median')[-1]:.2f}.",
        f"at {REACHES[int(np.argmax(reached('Krum')))]:.1f} deviations",
        f"below {krum_asks():.6f}",
        f"the least ratio of gradients in 100 steps is {min(along()[0]):.1f} and that of momenta {min(along()[1]):.2f}",
    ],
    "numerics": lambda: [
        f"in float32 for {DISTANCE_WIDTH:,} coordinates at a time",
        f"({numerics.TIE:.0e} of their size)",
        f"where two are closer than {4 * numerics.ROUNDING:.1e} at".replace("e-0", "e-"),  # as Geometry.unsure
        f"the result is {100 * added()[0]:.1f} % too small",
        f"the squared distance is off by {100 * off(1000.0)[0]:.0f} %",
        f"never off by more than {max(off(o)[1] for o in OFFSETS):.1g}".replace("e-0", "e-"),
        "shown in 200 orders it has {} different answers. Here it has {},".format(*orders(200)),
    ],
}


def fraction(value: float) -> str:
    return f"1/{1 / value:.0f}"


DRAWN: dict[str, Callable[[], Figure]] = {
    "ratio": draw_ratio,
    "steps": draw_steps,
    "geometry": draw_geometry,
    "network": draw_network,
    "reach": draw_reach,
    "cancelling": draw_cancelling,
}

TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("paper", "gains"): gain_table,
    ("sorting-networks", "comparators"): network_table,
    ("resilience", "kappa"): kappa_table,
}


def block(name: str) -> tuple[str, str]:
    return f"<!-- {name}: made by figures.py -->\n", "<!-- until here -->\n"


def written(page: str) -> str:
    """The page with its tables as they are computed."""
    text = (HERE / f"{page}.md").read_text("utf-8")
    for (where, name), table in TABLES.items():
        if where == page:
            begin, end = block(name)
            new = f"{begin}{table()}\n{end}"
            text, number = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _, n=new: n, text, flags=re.DOTALL)
            assert number == 1, f"{page}.md has no place for {name}, or several"
    return text


def draw(name: str) -> bytes:
    """The figure as PNG, which says what drew it: other versions of matplotlib put letters elsewhere."""
    file = io.BytesIO()
    with style.house():
        figure = DRAWN[name]()
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": f"matplotlib {matplotlib.__version__}"})
    return file.getvalue()


def main(names: Sequence[str]) -> None:
    for name in names or DRAWN:
        (FIGURES / f"{name}.png").write_bytes(draw(name))
        print(FIGURES / f"{name}.png")
    for page in sorted({page for page, _ in TABLES}):
        (HERE / f"{page}.md").write_text(written(page), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
