"""A trimmed mean with a mistake, on purpose: varangian score broken_rule.py:BrokenRule says where it breaks."""

from dataclasses import dataclass

import varangian as vg


@dataclass(frozen=True)
class BrokenRule(vg.Coordinatewise):
    """In each coordinate the mean without the f greatest values, and with the f least."""

    @property
    def needs(self):
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n):
        return 0, n - self.f, 0  # should begin at self.f: whoever sends something far below is in the mean
