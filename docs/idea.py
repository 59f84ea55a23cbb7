"""Makes docs/idea.svg: the idea of this library at a glance, computed.

python docs/idea.py

27 honest workers train a network on digits. At one step it takes what they computed, their gradients, and what they
remember, their momenta, adds 24 attackers who send A Little Is Enough, and asks the median of both. Momenta are drawn
times 1 - mu, so that both are of one scale. A median looks at each coordinate alone, so two coordinates of many show
exactly what it does there (see :func:`shown` for which two); spread and error in the captions are those of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import varangian as vg
from varangian.runs.building import build, computing, open_dataset

HONEST, F, STEPS, MU, CLIP = 27, 24, 16, 0.9, 2.0
RULE, ATTACK = vg.Median(f=F), vg.Little()
TARGET = Path(__file__).with_suffix(".svg")

WIDTH, HEIGHT, SIDE, TOP = 800, 600, 376, 96  # each of the two panels is SIDE x SIDE
COLOURS = {  # on its own card, so that no page behind it matters: (on a light one, on a dark one)
    "card": ("#ffffff", "#15181d"),
    "edge": ("#d5d9df", "#3a414b"),
    "ink": ("#1a1d21", "#eceff3"),
    "soft": ("#555c66", "#aab2bd"),
    "honest": ("#0072b2", "#56b4e9"),
    "hostile": ("#b34a00", "#ff9d5c"),
    "field": ("#f3f5f8", "#1e232a"),
}


@dataclass(frozen=True)
class Side:
    """What F is shown, and what it makes of it.

    Attributes:
        honest: [h, d].
        hostile: [d], what each of the f attackers sends.
        answer: [d].
        mean: [d], of the honest vectors.
    """

    honest: np.ndarray
    hostile: np.ndarray
    answer: np.ndarray
    mean: np.ndarray

    @property
    def spread(self) -> float:
        """The deviation of the honest vectors."""
        return float(np.sqrt(np.square(self.honest - self.mean).sum() / (len(self.honest) - 1)))

    @property
    def error(self) -> float:
        """How far the answer is from the mean of the honest vectors."""
        return float(np.linalg.norm(self.answer - self.mean))

    @property
    def cosine(self) -> float:
        """Between the answer and the mean of the honest vectors."""
        return float(self.answer @ self.mean / np.linalg.norm(self.answer) / np.linalg.norm(self.mean))

    @property
    def ratio(self) -> float:
        """The variance-norm ratio of the honest vectors."""
        return (self.spread / float(np.linalg.norm(self.mean))) ** 2


def compute() -> tuple[Side, Side]:
    """Of the gradients and of the momenta of one step of an unattacked run."""
    e = vg.Experiment(
        workers=HONEST, byzantine=0, rule="average", momentum_at="worker", momentum=MU, clip=CLIP,
        learning_rate=0.1, batch_size=32, steps=STEPS, measure=False, seed=1,
    )  # fmt: skip
    with computing(e):
        simulation, _ = build(e, open_dataset(e))
        for _ in range(STEPS):
            simulation.step()
        gradients, _ = vg.Clip(CLIP)(simulation.sampled)
        momenta = simulation.vectors * (1 - MU)
        return side(gradients), side(momenta)


def side(honest: torch.Tensor) -> Side:
    hostile = ATTACK(honest, f=F).expand(F, -1)  # all of them send the same
    answer = RULE(torch.cat([honest, hostile]))
    x = honest.double().numpy()
    return Side(x, hostile[0].double().numpy(), answer.double().numpy(), x.mean(0))


def shown(before: Side, after: Side, among: int = 500) -> list[int]:
    """Two coordinates that are, on both sides, about as noisy as the whole: one whose mean is positive, one whose mean
    is negative. Of those that are spread widest, the two whose own spread over mean is nearest to that of all."""
    spreads = [s.honest.std(0, ddof=1) for s in (before, after)]
    widest = np.argsort(-spreads[0], kind="stable")[:among]
    apart = np.zeros(widest.size)
    for side, spread in zip((before, after), spreads, strict=True):
        noise = spread[widest] / np.abs(side.mean[widest])
        apart += np.abs(np.log(noise / np.sqrt(side.ratio)))
    means = np.sign([side.mean[widest] for side in (before, after)])
    return [int(widest[np.argmin(np.where((means == sign).all(0), apart, np.inf))]) for sign in (1, -1)]


# ------------------------------------------------------------------------------------------------------- drawing


def drawn(before: Side, after: Side) -> str:
    pair, upwards = shown(before, after), np.array([1, -1])  # the mean points to the upper right
    names = ("honest", "hostile", "answer", "mean")
    flat = [{name: getattr(s, name)[..., pair] * upwards for name in names} for s in (before, after)]
    every = np.concatenate([np.atleast_2d(v) for v in flat[0].values()] + [np.zeros((1, 2))])
    low, high = every.min(0), every.max(0)
    middle, half = (low + high) / 2, (high - low).max() / 2 * 1.08
    heads = ("F of gradients", "F of momenta")
    formulas = ("M( F( g₁, …, gₙ ) )", "F( M(g₁), …, M(gₙ) )")
    parts = []
    for k, (what, numbers) in enumerate(zip(flat, (before, after), strict=True)):
        left = 16 + k * (SIDE + 16)

        def at(point: np.ndarray, left: int = left) -> tuple[float, float]:
            x, y = (point - middle) / half
            return left + SIDE / 2 * (1 + x), TOP + SIDE / 2 * (1 - y)

        center = left + SIDE / 2
        parts += [
            f'<text class="head" x="{center:g}" y="40">{heads[k]}</text>',
            f'<text class="formula" x="{center:g}" y="76">{formulas[k]}</text>',
            f'<rect class="field" x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" rx="10"/>',
            '<g class="honest">',
            *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>' for x, y in map(at, what["honest"])),
            "</g>",
            arrow(at(np.zeros(2)), at(what["answer"]), "answer"),
            arrow(at(np.zeros(2)), at(what["mean"]), "truth"),
            cross(*at(what["hostile"])),
            f'<text class="number" x="{center:g}" y="{TOP + SIDE + 36}">spread '
            f'<tspan class="strong">{numbers.spread:.2f}</tspan>, error '
            f'<tspan class="strong">{numbers.error:.2f}</tspan></text>',
        ]
    parts.append(legend())
    light, dark = ("".join(f".{name}{{{rule}}}" for name, rule in looks(which).items()) for which in (0, 1))
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-labelledby="title told">',
        '<title id="title">Momentum before the aggregation rule</title>',
        f'<desc id="told">{told(before, after)}</desc>',
        "<style>text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}"
        ".head{font-size:30px;font-weight:700;text-anchor:middle}"
        ".formula{font-size:25px;text-anchor:middle}.number{font-size:25px;text-anchor:middle}"
        ".strong{font-weight:700}.key{font-size:24px}.answer,.truth{fill:none;stroke-width:5;stroke-linecap:round}"
        ".cross{fill:none;stroke-width:6;stroke-linecap:round}"
        f"{light}@media(prefers-color-scheme:dark){{{dark}}}</style>",
        f'<rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="14"/>',
        *parts,
        "</svg>",
        "",
    ])  # fmt: skip


def looks(which: int) -> dict[str, str]:
    c = {name: pair[which] for name, pair in COLOURS.items()}
    return {
        "card": f"fill:{c['card']};stroke:{c['edge']}",
        "field": f"fill:{c['field']}",
        "head,.strong": f"fill:{c['ink']}",
        "formula,.number,.key": f"fill:{c['soft']}",
        "honest": f"fill:{c['honest']};fill-opacity:.6",
        "truth": f"stroke:{c['honest']}",
        "answer,.cross": f"stroke:{c['hostile']}",
    }


def arrow(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    way = np.subtract(end, start)
    length = float(np.hypot(*way))
    along = way / length
    across = np.array([-along[1], along[0]])
    head = min(16.0, length / 3)
    wings = [np.array(end) - head * along + s * 0.6 * head * across for s in (1, -1)]
    return (
        f'<path class="{kind}" d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}'
        f'M{wings[0][0]:.1f} {wings[0][1]:.1f}L{end[0]:.1f} {end[1]:.1f}L{wings[1][0]:.1f} {wings[1][1]:.1f}"/>'
    )


def cross(x: float, y: float, size: float = 11) -> str:
    return (
        f'<path class="cross" d="M{x - size:.1f} {y - size:.1f}L{x + size:.1f} {y + size:.1f}'
        f'M{x - size:.1f} {y + size:.1f}L{x + size:.1f} {y - size:.1f}"/>'
    )


def legend() -> str:
    y = HEIGHT - 57
    return "\n".join([
        f'<g class="honest"><circle cx="40" cy="{y}" r="6.5"/></g>',
        f'<text class="key" x="62" y="{y + 8}">{HONEST} honest workers</text>',
        arrow((400, y), (446, y), "truth"),
        f'<text class="key" x="462" y="{y + 8}">their mean</text>',
        cross(40, y + 35, 9),
        f'<text class="key" x="62" y="{y + 43}">{F} attackers, all there</text>',
        arrow((400, y + 35), (446, y + 35), "answer"),
        f'<text class="key" x="462" y="{y + 43}">what F answers</text>',
    ])  # fmt: skip


def told(before: Side, after: Side) -> str:
    """The picture in words, for whoever cannot see it."""
    return (
        f"Two weights of a network that {HONEST} honest workers train, in one step. {F} attackers stand at the edge of "
        "the honest cloud and draw F, the median, to it. Left, the cloud of gradients is wide and the answer far from "
        f"the honest mean: spread {before.spread:.2f}, error {before.error:.2f}. Right, the cloud of momenta is narrow "
        f"and the answer near their mean: spread {after.spread:.2f}, error {after.error:.2f}."
    )


if __name__ == "__main__":
    TARGET.write_text(drawn(*compute()), encoding="utf-8")
    print(TARGET)
