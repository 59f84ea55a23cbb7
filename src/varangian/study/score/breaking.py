"""How many attackers move an answer without bound, or bring none: searched for, from every place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...core.checks import Refused
from ...core.randomness import generator
from .card import Breakdown
from .subject import Subject

FAR = 1e6
"""How far attackers go, in deviations of the honest vectors along one coordinate."""
UNBOUNDED = 1e3
"""An answer that lies further than this from the honest mean, where attackers stand :data:`FAR` away, follows them: it
would go ten times as far were they ten times as far away."""
HUGE = 1e200  # whose square is beyond all numbers
D = 4


def breakdown(subject: Subject, n: int, f: int) -> Breakdown:
    """The least numbers of attackers, of n vectors, that move the answer without bound and that bring none.

    Honest vectors are drawn from a normal distribution. Attackers are tried at every place where there is one of them,
    else last, first, in the middle, evenly spread and at two places drawn; they send one far point, two opposite ones,
    each its own, points that go ever further, one far coordinate, NaN, infinity, and numbers whose squares overflow.
    """
    moved, refused, how = None, None, []
    trusted = subject.stages(f)[1].center if subject.stages(f)[1].by_place else None
    for b in range(1, n):
        for x, mean, what, finite in configurations(n, b, trusted):
            if (moved is not None) if finite else (refused is not None and refused < b):
                continue  # which is known
            try:
                answer = subject.answer(torch.from_numpy(x), f, torch.from_numpy(mean)).numpy()
            except Exception as error:
                if refused is None:
                    refused = b
                    kind = "" if isinstance(error, Refused) else f" ({type(error).__name__})"
                    how.append(f"no answer{kind} to {b} of {n}: {what}")
                continue
            if moved is None and not np.linalg.norm(answer - mean) <= UNBOUNDED:
                moved = b
                how.append(f"moved without bound by {b} of {n}: {what}")
        if moved is not None:
            break
    return Breakdown(n, f, moved, refused, "; ".join(how))


def configurations(n: int, b: int, trusted: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, str, bool]]:
    """(vectors [n, d], honest mean [d], what attackers do, whether that is finite): always the same ones.

    No attacker stands at a place that the rule trusts by its definition.
    """
    random = generator(n, "breakdown", b)
    honest = random.standard_normal((n - b, D)) + 3.0
    mean = honest.mean(0)
    direction = np.ones(D) / np.sqrt(D)
    own = random.standard_normal((b, D))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    signs = np.where(np.arange(b) % 2 == 0, 1.0, -1.0)[:, None]
    far = np.ones((b, 1)) * FAR
    sent = [
        ("all send one far point", mean + far * direction),
        ("all send one far point on the other side", mean - far * direction),
        ("each sends a far point of its own", mean + far * own),
        ("each sends a point further away than the last", mean + far * 2.0 ** np.arange(b)[:, None] * direction),
        ("one coordinate is far away", mean + far * np.eye(D)[0]),
        ("numbers whose squares overflow", np.ones((b, 1)) * HUGE * direction),
        ("NaN", np.full((b, D), np.nan)),
        ("infinity", np.full((b, D), np.inf)),
        ("one NaN in an honest vector", _one_nan(honest[:1].repeat(b, 0))),
    ]
    if b > 1:
        sent.insert(2, ("half send a far point, half its opposite", mean + far * signs * direction))
    placed = [(where, at) for where, at in _places(n, b, random) if trusted is None or trusted not in at]
    for what, vectors in sent:
        for where, places in placed:
            rest = np.setdiff1d(np.arange(n), places)
            x = np.empty((n, D))
            x[rest], x[places] = honest, vectors
            yield x, mean, f"{what}, {where}", bool(np.isfinite(vectors).all())


def _one_nan(x: np.ndarray) -> np.ndarray:
    x[:, 0] = np.nan
    return x


def _places(n: int, b: int, random: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    if b == 1:
        for i in (n - 1, *range(n - 1)):
            yield f"from place {i + 1} of {n}", np.array([i])
        return
    yield "from the last places", np.arange(n - b, n)
    yield "from the first places", np.arange(b)
    yield "from the middle", np.arange(b) + (n - b) // 2
    yield "from places evenly spread", np.unique(np.arange(b) * n // b)
    for _ in range(2):
        places = np.sort(random.permutation(n)[:b])
        yield f"from places {', '.join(str(i + 1) for i in places)}", places
