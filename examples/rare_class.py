"""A partition of one's own: one honest worker holds all of a class, and nothing else.

    varangian run --partition examples/rare_class.py:RareClass --attack sign-flip --quarantine quarantine

Nobody else can teach that class: what becomes of it shows whether the server still listens to that worker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RareClass:
    """The first worker gets the examples of one class, the others those of all other classes, dealt like cards.

    Args:
        label: the class.
    """

    label: int = 9

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        if not (0 <= self.label < classes and workers > 1):
            raise ValueError(f"RareClass needs a label below {classes} and two workers, got {self.label}, {workers}.")
        order = np.random.default_rng(seed).permutation(len(labels))
        rare = labels[order] == self.label
        others = order[~rare]
        return [np.sort(order[rare]), *(np.sort(others[k :: workers - 1]) for k in range(workers - 1))]
