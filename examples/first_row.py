"""A rule that trusts the first worker, and does not say so: varangian score first_row.py:FirstRow finds it out."""

from dataclasses import dataclass

import varangian as vg


@dataclass(frozen=True)
class FirstRow(vg.Selecting):
    """The mean of the n - f vectors that are nearest to the first."""

    @property
    def needs(self):
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry):
        n = geometry.n
        return vg.mean_weights(geometry.smallest(geometry.distances[0], n - self.f), n)
