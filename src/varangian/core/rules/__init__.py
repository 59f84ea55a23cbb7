"""Aggregation rules, and the names they go by."""

from __future__ import annotations

from ..checks import unknown
from ..stages import Coordinatewise, General, Nearest, Rule, Selecting
from .bulyan import Bulyan
from .central import Aksel, CenteredClipping, GeometricMedian, Medoid, MoNNA
from .coordinatewise import MeaMed, Median, Phocas, TrimmedMean
from .federated import FLAME, LASA, ClippedClustering, FLTrust, FoolsGold, SignGuard
from .selecting import Average, ComparativeGradientElimination, Krum, MinimumDiameterAveraging, MultiKrum
from .spectral import CAF, SMEA, DivideAndConquer

RULES: dict[str, type[Rule]] = {
    "average": Average,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "phocas": Phocas,
    "meamed": MeaMed,
    "bulyan": Bulyan,
    "mda": MinimumDiameterAveraging,
    "cge": ComparativeGradientElimination,
    "aksel": Aksel,
    "geometric-median": GeometricMedian,
    "medoid": Medoid,
    "centered-clipping": CenteredClipping,
    "monna": MoNNA,
    "smea": SMEA,
    "caf": CAF,
    "dnc": DivideAndConquer,
    "signguard": SignGuard,
    "clipped-clustering": ClippedClustering,
    "fltrust": FLTrust,
    "foolsgold": FoolsGold,
    "flame": FLAME,
    "lasa": LASA,
}


def published(name: str, f: int) -> Rule:
    """The rule with the conventions of the published code of the distributed-momentum paper.

    Both its own names and ours will do: its "krum" averaged n - f - 2 vectors and is our "multi-krum", its "trmean" is
    "trimmed-mean", its "brute" is "mda". For its Krum of a single vector: MultiKrum(f, m=1, neighbours="n-f-1",
    distance="plain", ties="position").

    Raises:
        ValueError: a name that the published code did not have.

    Example:
        >>> published("median", f=2)
        Median(f=2, even='lower')
    """
    theirs = published_names()
    ours = {name: name for name in theirs.values()} | theirs
    if name not in ours:
        raise ValueError(unknown("rule with published conventions", name, ours))
    kind = RULES[ours[name]]
    return kind(f, **(kind.published or {}))


def published_names() -> dict[str, str]:
    """Names of the published code -> ours, of every rule that it had."""
    had = {name: kind for name, kind in RULES.items() if kind.published is not None}
    return {kind.published_name or name: name for name, kind in had.items()}


__all__ = [
    "CAF", "FLAME", "LASA", "RULES", "SMEA", "Aksel", "Average", "Bulyan", "CenteredClipping", "ClippedClustering",
    "ComparativeGradientElimination", "Coordinatewise", "DivideAndConquer", "FLTrust", "FoolsGold", "General",
    "GeometricMedian", "Krum", "MeaMed", "Median", "Medoid", "MinimumDiameterAveraging", "MoNNA", "MultiKrum",
    "Nearest", "Phocas", "Rule", "Selecting", "SignGuard", "TrimmedMean", "published",
]  # fmt: skip
