"""What rules, mixings, attacks and transforms do to a cloud of points in the plane: python docs/reference/pictures.py

All are drawn by what they are pictures of, called with these points; the site draws them anew where a source changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import varangian as vg
from varangian.core.checks import brief
from varangian.core.claims import spread
from varangian.core.randomness import generator

N, F = 11, 2  # vectors, and the hostile ones among them
H = N - F
HONEST, HOSTILE, ANSWER, GREY = "#0072b2", "#d55e00", "#009e73", "#5f5f5f"  # a dark page turns light and dark round
LOOKS: dict[Any, Any] = {
    "svg.hashsalt": "varangian",  # the same bytes for the same picture
    "svg.fonttype": "path",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": GREY,
    "legend.frameon": False,
}
SIDE = 3.4  # inches
NEAR = ((-2.3, 6.4), (-2.6, 5.1))
VIEW = ((-5.4, 6.6), (-4.8, 5.8))
REACH = 2.2  # how far away the hostile points of the pictures of rules are, in spreads of the honest ones
FAR = np.logspace(-1, 3, 57)
CLOUD = 167  # a seed that leaves the middle free and no point alone
# Options that make something visible with so few points, in place of the defaults.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("rule", "centered-clipping"): {"tau": 2.0},
    ("rule", "signguard"): {"share": 1.0},
    ("rule", "lasa"): {"sparsity": 0.0},
    ("mixing", "clipping"): {"c": 3.0},
    ("attack", "gaussian"): {"std": 2.0},
    ("attack", "decoys"): {"reach": 3.0},
    ("attack", "bulyan"): {"coordinate": 1, "factor": 3.5},
    ("attack", "hidden"): {"attack": "sign-flip"},
    ("attack", "backdoor"): {"size": 1, "value": 3.0},
    ("attack", "empire"): {"factor": 1.5},
    ("attack", "worst-case"): {"directions": ("little", "empire")},
    ("knowledge", "spied"): {"k": 3},
    ("transform", "Clip"): {"max_norm": 3.0},
    ("transform", "Momentum"): {"beta": 0.9},
    ("transform", "SharedMomentum"): {"beta": 0.9},
}
AGAINST = ("average", "median", "trimmed-mean", "krum", "multi-krum", "mda", "geometric-median", "cge")


@dataclass(frozen=True)
class Picture:
    """A file, what it shows to those who do not see it, and what stands below it."""

    file: str
    alt: str
    note: str = ""
    plot: Callable[[], Figure] | None = None


# ---------------------------------------------------------------------------------------------------------- points


@cache
def honest() -> np.ndarray:
    """[h, 2]: gradients of workers that agree on where to go, about as well as those of small batches do."""
    cloud = generator(CLOUD, "pictures").standard_normal((H, 2))
    return np.array([3.0, 1.5]) + 1.3 * (cloud - cloud.mean(0))


@cache
def size() -> float:
    return spread(honest())


def hostile(reach: float) -> np.ndarray:
    """[f, 2]: side by side, so many spreads away from the honest mean."""
    turned = np.array([-0.85, -0.53])
    return honest().mean(0) + reach * size() * turned / np.linalg.norm(turned) + np.array([[0.0, 0.1], [0.1, -0.1]])


def made(family: str, name: str, tables: dict[str, Any]) -> Any:
    kind = tables[name]
    options = OPTIONS.get((family, name), {})
    takes = {option.name for option in fields(kind)}
    told = {"f": 0 if name == "average" else F} if family in ("rule", "mixing") and "f" in takes else {}
    return kind(**told, **options)


def answer(rule: vg.Rule, x: np.ndarray, pre: tuple[vg.Mixing, ...] = ()) -> np.ndarray:
    """F(x), with the honest mean as last aggregate or root vector."""
    previous = torch.from_numpy(honest().mean(0)) if rule.uses_previous else None
    if not pre:
        return rule(torch.from_numpy(x), previous).numpy()
    return vg.explain(torch.from_numpy(x), vg.Algorithm(pre=pre, rule=rule), previous).aggregate.numpy()


def shares(rule: vg.Rule, x: np.ndarray) -> np.ndarray:
    """[n] how much of the answer is each vector; where a rule does not tell, how far the answer follows it."""
    previous = torch.from_numpy(honest().mean(0)) if rule.uses_previous else None
    told = vg.explain(torch.from_numpy(x), rule, previous).weight
    if told is not None:
        return np.abs(told)
    found, step = np.zeros(len(x)), 1e-6
    for i in range(len(x)):
        for k in range(2):
            moved = x.copy()
            moved[i, k] += step
            found[i] += (answer(rule, moved) - answer(rule, x))[k] / (2 * step)
    return np.where(np.abs(found) < 1e-3, 0, np.abs(found))


# ----------------------------------------------------------------------------------------------------------- panels


def figure(left: float = 0.0, bottom: float = 0.0) -> tuple[Figure, Axes]:
    made = Figure(figsize=(SIDE, SIDE * 0.9))
    made.patch.set_alpha(0)
    axes = made.add_axes((left, bottom, 0.95 - left, 0.93 - bottom))
    axes.patch.set_alpha(0)
    return made, axes


def plane(axes: Axes, view: tuple[tuple[float, float], tuple[float, float]] = VIEW) -> None:
    axes.set(xlim=view[0], ylim=view[1], xticks=[], yticks=[], aspect="equal", adjustable="box")
    axes.spines[:].set_visible(False)
    axes.plot(0, 0, "+", color=GREY, ms=9, mew=1)
    axes.annotate("0", (0, 0), (5, -12), textcoords="offset points")


def points(axes: Axes, x: np.ndarray, color: str, marker: str, weight: np.ndarray | None = None) -> None:
    """Filled where they have weight, and the larger the more."""
    for point, share in zip(x, np.full(len(x), 1 / N) if weight is None else weight, strict=True):
        side = 7 if weight is None else 5 + 8 * float(np.sqrt(min(share, 1.0)))
        axes.plot(*point, marker, color=color, mfc=color if share > 0 else "none", ms=side, mew=1.2, alpha=0.9)


def center(axes: Axes, point: np.ndarray) -> None:
    axes.plot(*point, "x", color=GREY, ms=10, mew=2.4, zorder=5)


def star(axes: Axes, point: np.ndarray) -> None:
    axes.plot(*point, "*", color=ANSWER, ms=17, mec="white", mew=0.6, zorder=6)


# ------------------------------------------------------------------------------------------------------------ rules


def cloud_of_rule(rule: vg.Rule) -> Figure:
    made, axes = figure()
    x = np.concatenate([honest(), hostile(REACH)])
    weight = shares(rule, x)
    way = np.array([answer(rule, np.concatenate([honest(), hostile(reach)])) for reach in FAR])
    for start, end in pairwise(way):  # a rule that jumps draws no line
        if np.linalg.norm(end - start) < 0.5:
            axes.plot(*zip(start, end, strict=True), color=ANSWER, lw=1.4, alpha=0.6, zorder=4)
        else:
            axes.plot(*start, ".", color=ANSWER, ms=3, alpha=0.6)
            axes.plot(*end, ".", color=ANSWER, ms=3, alpha=0.6)
    points(axes, x[:H], HONEST, "o", weight[:H])
    points(axes, x[H:], HOSTILE, "^", weight[H:])
    center(axes, honest().mean(0))
    star(axes, answer(rule, x))
    plane(axes, NEAR)
    return made


def reach_of(rule: vg.Rule, pre: tuple[vg.Mixing, ...] = ()) -> np.ndarray:
    """How far the answer is from the honest mean, in spreads, for each distance of the hostile points."""
    answers = [answer(rule, np.concatenate([honest(), hostile(reach)]), pre) for reach in FAR]
    return np.linalg.norm(np.array(answers) - honest().mean(0), axis=1) / size()


def curves(named: list[tuple[str, np.ndarray, str, str]], bound: float | None = None) -> Figure:
    made, axes = figure(0.16, 0.15)
    for name, values, color, line in named:
        axes.plot(FAR, np.maximum(values, 0.02), line, color=color, lw=2, label=name)
    if bound:
        axes.axhline(bound, color=GREY, lw=1, ls=":")
        axes.annotate("√κ, proved", (FAR[-1], bound), (0, 3), textcoords="offset points", ha="right")
    axes.set(xscale="log", yscale="log", xlim=(FAR[0], FAR[-1]), ylim=(0.02, 300))
    axes.set_xlabel("hostile points, from the honest mean")
    axes.set_ylabel("answer, from the honest mean")
    axes.set_xticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1000"])
    axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left", labelcolor=GREY)
    return made


def of_rule(name: str) -> Iterator[Picture]:
    rule = made("rule", name, vg.RULES)
    average = reach_of(vg.Average())
    bound = rule.kappa_bound(N)
    note = f"{brief(rule)} of {H} honest points and {F} hostile ones."
    told = reach_of(rule)
    yield Picture(
        f"rule-{name}-cloud.svg",
        f"{name} of eleven points in the plane, two of them hostile: its answer is {told[near(REACH)]:.2g} spreads "
        "from the honest mean.",
        note,
        lambda: cloud_of_rule(rule),
    )
    mine = [] if name == "average" else [(name, told, ANSWER, "-")]
    yield Picture(
        f"rule-{name}-reach.svg",
        f"How far hostile points pull the answer of {name} as they move away: {told.max():.2g} spreads at most, "
        f"{told[-1]:.2g} at the greatest distance; the average {average[-1]:.3g}.",
        note,
        lambda: curves([("average", average, GREY, "--"), *mine], None if bound is None else float(np.sqrt(bound))),
    )


def near(reach: float) -> int:
    return int(np.abs(FAR - reach).argmin())


# ---------------------------------------------------------------------------------------------------------- mixings


@dataclass(frozen=True)
class Shown(vg.General):
    """The mean, by way of what it is shown."""

    f: int = 0

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def combine(self, x: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
        SEEN[:] = [x.clone().numpy()]
        return x.mean(0)


SEEN: list[np.ndarray] = []


def mixed(mixing: vg.Mixing, x: np.ndarray) -> np.ndarray:
    """[m, 2] what a mixing makes of the points."""
    answer(Shown(), x, (mixing,))
    return SEEN[0]


def cloud_of_mixing(mixing: vg.Mixing) -> Figure:
    made, axes = figure()
    x = np.concatenate([honest(), hostile(REACH)])
    out = mixed(mixing, x)
    for i, point in enumerate(out):
        if mixing.aligned:
            moved = np.linalg.norm(point - x[i]) > 1e-6
            if moved:
                axes.annotate("", point, x[i], arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 0.8, "alpha": 0.8})
        axes.plot(
            *point, "o" if i < H or not mixing.aligned else "^", color=ANSWER, ms=6, zorder=5, mec="white", mew=0.5
        )
    points(axes, x[:H], HONEST, "o", np.zeros(H))
    points(axes, x[H:], HOSTILE, "^", np.zeros(F))
    center(axes, honest().mean(0))
    plane(axes, NEAR)
    return made


def of_mixing(name: str) -> Iterator[Picture]:
    mixing = made("mixing", name, vg.MIXINGS)
    x = np.concatenate([honest(), hostile(REACH)])
    out = mixed(mixing, x)
    kept = out[:H] if mixing.aligned else out
    note = f"{brief(mixing)} of {H} honest points and {F} hostile ones."
    yield Picture(
        f"mixing-{name}-cloud.svg",
        f"What {name} makes of eleven points, two of them hostile: of honest ones the spread is {size():.2g} before "
        f"and {spread(kept):.2g} after.",
        note,
        lambda: cloud_of_mixing(mixing),
    )
    rule = vg.Median(f=F)
    alone, behind = reach_of(rule), reach_of(rule, (mixing,))
    yield Picture(
        f"mixing-{name}-reach.svg",
        f"How far hostile points pull the median: alone {alone.max():.2g} spreads at most, behind {name} "
        f"{behind.max():.2g}.",
        note,
        lambda: curves([("median alone", alone, GREY, "--"), (f"behind {name}", behind, ANSWER, "-")]),
    )


# ---------------------------------------------------------------------------------------------------------- attacks


@cache
def learners() -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Gradients [h, 2] of honest workers of a logistic regression with two weights, in which attackers on data may take
    part; and the examples of the f attackers, inputs [f, b, 2] and labels [f, b]."""
    random = generator(1, "learners")
    labels = random.integers(2, size=(N, 16))
    inputs = random.standard_normal((N, 16, 2)) + np.where(labels[..., None] == 1, 1.0, -1.0) * np.array([1.4, 0.8])
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    return gradients(x[:H], y[:H]), x[H:], y[H:]


def gradients(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Where each worker wants to go, downhill from weights of zero, in units that fill the picture."""
    return 5 * ((y.double() - 0.5)[..., None] * x).mean(1).numpy()


def sent_by(attack: vg.Attack) -> tuple[np.ndarray, np.ndarray]:
    """Honest vectors, and what the f attackers send."""
    x, poisoned = honest(), None
    if attack.poisons:
        x, inputs, labels = learners()
        poisoned = torch.from_numpy(gradients(*attack.poison(inputs, labels, vg.Task(classes=2))))
    return x, attack(
        torch.from_numpy(x), F, vg.Median(f=F), previous=torch.from_numpy(x.mean(0)), poisoned=poisoned
    ).numpy()


def cloud_of_attack(attack: vg.Attack) -> Figure:
    made, axes = figure()
    x, sent = sent_by(attack)
    view = VIEW if x is honest() else ((-6.5, 8.5), (-7.0, 6.2))
    points(axes, x, HONEST, "o")
    center(axes, x.mean(0))
    if np.isfinite(sent).all():
        for point in sent:
            if np.linalg.norm(point - x.mean(0)) > 0.3:
                axes.annotate(
                    "", point, x.mean(0), arrowprops={"arrowstyle": "-", "color": HOSTILE, "lw": 0.8, "alpha": 0.5}
                )
        apart = np.zeros_like(sent)
        if np.ptp(sent, axis=0).max() < 1e-9:  # that there are two can be seen
            apart = np.array([[0.09, 0.0], [-0.09, 0.0]])
        points(axes, sent + apart, HOSTILE, "^")
    else:
        first = sent[0]
        text = "NaN" if np.isnan(first).all() else f"({first[0]:+.0f}, {first[1]:+.0f})".replace("inf", "∞")
        axes.text(0.04, 0.05, f"{F} send {text}:\nno point of the plane", color=HOSTILE, transform=axes.transAxes)
    plane(axes, view)
    return made


def damages(attack: vg.Attack) -> dict[str, float]:
    """Rule -> how far from the honest mean its answer is, in spreads."""
    found = {}
    x, sent = sent_by(attack)
    for name in AGAINST:
        rule = vg.RULES[name](f=0 if name == "average" else F)
        own = attack(torch.from_numpy(x), F, rule).numpy() if attack.uses_defence else sent
        moved = rule(torch.from_numpy(np.concatenate([x, own]))).numpy() - x.mean(0)
        found[name] = float(np.linalg.norm(moved) / spread(x))
    return found


def bars_of_attack(attack: vg.Attack) -> Figure:
    made, axes = figure(0.37, 0.15)
    values = damages(attack)
    calm = calm_damages(attack.poisons)
    for row, (_, value) in enumerate(reversed(values.items())):
        before = calm[list(reversed(values))[row]]
        axes.plot(max(before, 0.02), row, "o", color=GREY, mfc="none", ms=6)
        if np.isfinite(value):
            axes.plot(max(value, 0.02), row, "o", color=HOSTILE, ms=7)
        else:
            axes.text(5, row, "none", color=HOSTILE, va="center", ha="right")
    axes.set(xscale="log", xlim=(0.015, 6), ylim=(-0.6, len(values) - 0.4))
    axes.set_yticks(range(len(values)), list(reversed(values)))
    axes.set_xticks([0.1, 1], ["0.1", "1"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("answer, from the honest mean")
    axes.grid(axis="y", color=GREY, lw=0.4, alpha=0.4)
    return made


@cache
def calm_damages(learnt: bool) -> dict[str, float]:
    """The same where nobody attacks: the f are honest too, and the mean is that of all."""
    if learnt:
        x, inputs, labels = learners()
        x = np.concatenate([x, gradients(inputs, labels)])
    else:
        more = generator(5, "pictures").standard_normal((F, 2)) * 1.1
        x = np.concatenate([honest(), honest().mean(0) + more])
    first = x[:H]
    return {
        name: float(
            np.linalg.norm(vg.RULES[name](f=0 if name == "average" else F)(torch.from_numpy(x)).numpy() - first.mean(0))
            / spread(first)
        )
        for name in AGAINST
    }


def of_attack(name: str) -> Iterator[Picture]:
    attack = made("attack", name, vg.ATTACKS)
    values = damages(attack)
    worst = max(values, key=lambda rule: values[rule] if np.isfinite(values[rule]) else np.inf)
    far = f"{values[worst]:.2g} spreads away" if np.isfinite(values[worst]) else "not finite"
    note = f"{brief(attack)}, {F} attackers beside {H} honest workers" + (
        ", gradients of a logistic regression with two weights." if attack.poisons else "."
    )
    yield Picture(
        f"attack-{name}-cloud.svg",
        f"What two attackers send beside nine honest points under {name}.",
        note + (" It looks at the median." if attack.uses_defence else ""),
        lambda: cloud_of_attack(attack),
    )
    yield Picture(
        f"attack-{name}-reach.svg",
        f"How far {name} moves the answers of eight rules: most that of {worst}, {far}.",
        note + (" It looks at the median." if attack.uses_defence else ""),
        lambda: bars_of_attack(attack),
    )


# ------------------------------------------------------------------------------------------- what the adversary knows


def of_knowledge(name: str) -> Iterator[Picture]:
    model = made("knowledge", name, vg.KNOWLEDGE)
    x = torch.from_numpy(honest())
    random = generator(9, "pictures")
    own = torch.from_numpy(honest().mean(0) + 1.1 * random.standard_normal((F, 2)))
    last = torch.from_numpy(honest() + 1.1 * random.standard_normal((H, 2)))
    seen = model.vectors(x, own, last, seed=3)
    attack = vg.Little(factor=1.5)

    def plot() -> Figure:
        figure_, axes = figure()
        known = {tuple(point) for point in seen.numpy()}
        points(axes, x.numpy(), HONEST, "o", np.array([float(tuple(p) in known) / 5 for p in x.numpy()]))
        for point in seen.numpy():
            if tuple(point) not in {tuple(p) for p in x.numpy()}:
                axes.plot(*point, "s", color=HONEST, ms=5, alpha=0.9)
        axes.plot(*attack(x, 1).numpy()[0], "^", color=GREY, mfc="none", ms=8, mew=1.2)
        points(axes, attack(seen, 1).numpy(), HOSTILE, "^")
        center(axes, x.numpy().mean(0))
        plane(axes, NEAR)
        return figure_

    yield Picture(
        f"knowledge-{name}-cloud.svg",
        f"What an adversary with the knowledge {name} sees of nine honest points, and where `little` then sends to.",
        f"{brief(model)}, attack little.",
        plot,
    )


# ------------------------------------------------------------------------------------------------------- transforms


def of_transform(name: str) -> Iterator[Picture]:
    transform = made("transform", name, {"Clip": vg.Clip, "Momentum": vg.Momentum, "SharedMomentum": vg.SharedMomentum})
    before, after = through(transform)
    for what, x in (("before", before), ("after", after)):
        ratio = spread(x) / float(np.linalg.norm(x.mean(0)))
        yield Picture(
            f"transform-{name}-{what}.svg",
            f"Nine honest vectors {what} {name}: spread / norm of their mean is {ratio:.2f}.",
            f"{brief(transform)}: gradients of a step, and what is sent"
            + ("." if name == "Clip" else ", times 1 - beta, after 60 steps."),
            lambda x=x, what=what, ratio=ratio: cloud_of_transform(transform, x, what, ratio),
        )


def through(transform: Any) -> tuple[np.ndarray, np.ndarray]:
    """[h, 2] the gradients of the last of 60 steps, and what workers then send."""
    random = generator(3, "pictures")
    x = torch.from_numpy(honest())
    if isinstance(transform, vg.Clip):
        return x.numpy(), transform(x)[0].numpy()
    memory, previous = torch.zeros_like(x), torch.zeros(2, dtype=x.dtype)
    sent = x
    for _ in range(60):
        x = torch.from_numpy(honest().mean(0) + 1.4 * random.standard_normal((H, 2)))
        if transform.uses_previous:
            sent, _ = transform(x, None, previous)
            previous = sent.mean(0)
        else:
            sent, memory = transform(x, memory)
    return x.numpy(), (1 - transform.beta) * sent.numpy()


def cloud_of_transform(transform: Any, x: np.ndarray, what: str, ratio: float) -> Figure:
    made, axes = figure()
    if isinstance(transform, vg.Clip):
        turn = np.linspace(0, 2 * np.pi, 200)
        axes.plot(transform.max_norm * np.cos(turn), transform.max_norm * np.sin(turn), color=GREY, lw=1, ls=":")
    points(axes, x, HONEST if what == "before" else ANSWER, "o")
    center(axes, x.mean(0))
    plane(axes, ((-1.4, 6.6), (-2.6, 4.6)))
    axes.set_title(f"{what}: spread / norm {ratio:.2f}", fontsize=10)
    return made


# -------------------------------------------------------------------------------------------------------------- all

FAMILIES: dict[str, tuple[Callable[[str], Iterator[Picture]], list[str]]] = {
    "rule": (of_rule, list(vg.RULES)),
    "mixing": (of_mixing, list(vg.MIXINGS)),
    "attack": (of_attack, list(vg.ATTACKS)),
    "transform": (of_transform, ["Momentum", "SharedMomentum", "Clip"]),
    "knowledge": (of_knowledge, list(vg.KNOWLEDGE)),
}


@cache
def of(family: str, name: str) -> tuple[Picture, ...]:
    return tuple(FAMILIES[family][0](name))


def sources() -> float:
    """When what pictures show was last changed."""
    package = Path(vg.__file__).parent / "core"
    return max(path.stat().st_mtime for path in (*package.rglob("*.py"), Path(__file__)))


def draw(folder: Path) -> list[Path]:
    """Draws those that are missing or older than the sources; all files, in the order of the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    changed, files = sources(), []
    for family, (_, names) in FAMILIES.items():
        for picture in (one for name in names for one in of(family, name)):
            path = folder / picture.file
            files.append(path)
            if not path.exists() or path.stat().st_mtime < changed:
                assert picture.plot is not None
                with matplotlib.rc_context(LOOKS):
                    picture.plot().savefig(path, format="svg", transparent=True, metadata={"Date": None})
    return files


if __name__ == "__main__":
    print(f"{len(draw(Path(__file__).with_name('pictures')))} pictures in {Path(__file__).with_name('pictures')}")
