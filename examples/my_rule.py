"""A rule of one's own: in each coordinate the mean of the m middle values. Used as --rule my_rule.py:MyRule."""

from dataclasses import dataclass

import varangian as vg


@dataclass(frozen=True)
class MyRule(vg.Coordinatewise):
    m: int = 1  # --rule "my_rule.py:MyRule(m=3)"; f comes from --byzantine

    @property
    def needs(self):
        return "2f + m", 2 * self.f + self.m  # in words, and as a number

    def statistic(self, n):
        low = (n - self.m) // 2
        return low, low + self.m, 0  # the mean of these ranks of the sorted column
