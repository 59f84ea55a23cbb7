"""How near is equal, and how far too far: all numerical tolerances of the algorithm, and the error budget behind them.

Rules decide on squared distances. What is decided must not hang on rounding: not on the order of the vectors, not on
how many threads added up, not on a vector of 1e30 among ordinary ones. So each stage knows how much rounding it adds,
and measures again, in float64, where that could matter. From the least to the greatest, all relative:

| stage | what rounding leaves | constant |
|---|---|---|
| a number in float64, in float32 | 1e-16, 6e-8 | |
| a mixture of vectors, added up in another order | a few times 1e-16 | ``AGREED`` 4e-15 |
| a rest in Cholesky's factor, a cosine | up to 1e-15 | ``REST`` 1e-15, ``STRAIGHT`` 1e-14 |
| a squared distance of float64 vectors | up to 1e-15 | ``MEASURED`` 1e-14 |
| weights 1 / n summed, a score, a cosine behind a mixing | up to 1e-13 | ``NOTHING``, ``TIE``, ``ANGLE`` 1e-12 |
| an eigenvalue by bisection, a sum of unit vectors | up to 1e-12 | ``SPECTRUM``, ``OPTIMAL`` 1e-10 |
| where a walk has arrived | up to 1e-10 | ``SETTLED``, ``WITHIN`` 1e-9 |
| a squared distance of float32 vectors | up to 3.4e-7 | ``ROUNDING`` 4e-7 |
| a sum of unit vectors, from those | up to 1e-6 | ``UNSURE`` 1e-6 |
| a squared distance derived from those, for a mixture | any: beyond it is measured again | ``BLUR`` 5e-6, 1e-5, 1e-4 |
| a place found from those | the root of that, and more near a point | ``NARROW``, ``CLOSE``, ``FLAT`` |

Each constant is larger than the rounding in its line, so that equal things are found equal, and smaller than what the
next stages tell apart, so that different things stay different. Scores that float32 may have put in the wrong order
(``ROUNDING``) are made sure of before ties (``TIE``) are looked for. ``tests/test_numerics.py`` has a property of each
that fails where the constant is a hundred times larger, or smaller, or either.

They are read where they are used, as ``numerics.TIE``; compiled functions are handed them, since their cache on disk
does not see this file. Bounds on effort (``SEARCHES``, ``NODES``) are no tolerances and stand where they are spent; an
adversary's margins stand with the attacks.
"""

from __future__ import annotations

# ------------------------------------------------------------------------------------ the range of numbers, in float64

VANISHING = 1e-280  # of sums of squares: below, some of the squares may have vanished
ORDINARY = 1e100  # usual norms within this and its inverse are measured as they are, others in a unit of their own
MOST = 1e140  # in that unit a vector is taken for no longer, so that squares add up to a number
FAINT = 1e-24  # of squared norms in float32, a coordinate: below, squares of differences may have vanished
LOST = 1e-30  # of squared distances between such, a coordinate: below, they are summed again in float64

# -------------------------------------------------------------------------------------------------- equal, in float64

AGREED = 4e-15  # relative to their norm: mixtures so close may be the same one, added up in another order
STRAIGHT = 1e-14  # cosines so near to 1 or -1 are that
REST = 1e-15  # of the greatest square: a rest so small is rounding, and spans no axis
NOTHING = 1e-12  # a weight so small is rounding of 1 / n summed, and no share of the origin
TIE = 1e-12  # relative: scores so close are equal, and the tie is broken by the vectors' values
ANGLE = 1e-12  # cosines so near to 0, to 1 or to one another are that
SPECTRUM = 1e-10  # relative: eigenvalues so close are equal
WITHIN = 1e-9  # relative: a point that is further than the bandwidth of a clustering by so little is within it
NO_SPREAD = 1e-20  # of the greatest squared distance: less spread is none, less error is rounding

# -------------------------------------------------------------------------------- squared distances, and derived ones

MEASURED = 1e-14  # relative: how far off a squared distance may be whose squares were added in float64
ROUNDING = 4e-7  # the same, of float32 squares added in float32 lanes
BLUR = 5e-6  # of a usual squared distance: where a derived one may be further off, it is measured again
BLUR_SCALED = 1e-5  # of itself, for one that is far beyond usual: how far off it may be, between scaled vectors
BLUR_MIXED = 1e-4  # the same, between mixtures
CANCELLED = 1e3  # terms so many times a distance to one point have cancelled: it is measured again

# ---------------------------------------------------------------------------------------- places, and walks among them

FAR = 8.0  # radii of the nearest majority: of points beyond, only the direction is placed exactly, then the distance
NARROW = 1e-2  # of its square: of a crowd so near to a line, what lies across is measured itself
LINE = 2.0  # roundings of the vectors' type: points so near to a line are on it
SETTLED = 1e-9  # of a usual distance: a walk whose remaining way is shorter has arrived
STILL = 1e-12  # the same, of shares of signs
OPTIMAL = 1e-10  # relative: what float64 distances leave uncertain of sums of unit vectors
UNSURE = 1e-6  # the same, of float32 distances
CLOSE = 0.03  # so near to a point, in usual distances, float32 distances would show in the answer: measured again
FLAT = 0.05  # so flat, of the greatest curvature there can be, they would too
