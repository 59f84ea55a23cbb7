"""What a class claims: how far hostile vectors may move its answer, and what of the contract it does not promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Guarantee:
    """How far at most f hostile vectors may move an answer.

    Attributes:
        text: in words.
        ball: (rule or mixing, honest [h, d], last aggregate [d]) to the centre and radius that the answer stays in.
        box: whether it also stays in the range of the honest values, coordinate by coordinate.
    """

    text: str
    ball: Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, float]] | None = None
    box: bool = False


def spread(honest: np.ndarray) -> float:
    """Root mean square distance of the honest vectors to their mean."""
    return float(np.sqrt(np.square(honest - honest.mean(0)).sum(1).mean()))


def _near(stage: Any, honest: np.ndarray, previous: np.ndarray) -> tuple[np.ndarray, float]:
    n = honest.shape[0] + stage.f
    kappa = getattr(stage, "kappa", None)  # proved for rules; a mixing has none
    radius = 4 * (1 + stage.f / max(n - 2 * stage.f, 1)) * np.sqrt(n) if kappa is None else np.sqrt(kappa(n, stage.f))
    return honest.mean(0), radius * spread(honest)


def _longest(honest: np.ndarray, previous: np.ndarray) -> float:
    return float(np.sqrt(np.square(np.concatenate([honest, previous[None]])).sum(1)).max())


NEAR = Guarantee(
    "within sqrt(kappa) spreads of the honest mean where kappa is proved, otherwise a generous 4 sqrt(n) n' of them,"
    " n' = (n - f) / (n - 2f)",
    _near,
)
WITHIN = Guarantee("within the range of the honest values, coordinate by coordinate, and near", _near, box=True)
NO_LONGER = Guarantee(
    "no longer than the longest honest vector or the last aggregate",
    lambda stage, honest, previous: (np.zeros_like(previous), _longest(honest, previous)),
)
FINITE = Guarantee("finite")

BY_NORMS = "looks at norms or angles, which a translation changes"  # why a stage does not claim TRANSLATION
