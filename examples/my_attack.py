"""An attack of one's own: what honest workers agree on least, reversed. Used as --attack my_attack.py:MyAttack."""

from dataclasses import dataclass

import varangian as vg


@dataclass(frozen=True)
class MyAttack(vg.Attack):
    factor: float = 2.0  # --attack "my_attack.py:MyAttack(factor=4.0)"

    def craft(self, seen):  # the vector that all f attackers send
        mean, deviation = seen.moments  # of the honest vectors, [d] each
        return mean - self.factor * deviation * mean.sign()
