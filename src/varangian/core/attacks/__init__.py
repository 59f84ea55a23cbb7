"""What the adversary sends: from the vectors of the honest workers to f vectors of its own."""

from __future__ import annotations

from .base import Attack, ComposedDefence, Defence, Knowledge
from .knowledge import KNOWLEDGE, LastRound, Omniscient, OwnData, Spied, ThreatModel, learns_twice
from .memory import Memory, check_memory, own, same
from .search import ATTACKS, Found, WorstCase, parts
from .simple import Empire, Gaussian, Inf, LabelFlip, Little, Mimic, NaN, SignFlip, Zero
from .spread import MinMax, MinSum
from .targeted import ROP, AntiCGE, Fang, HiddenVulnerability

__all__ = [
    "ATTACKS", "KNOWLEDGE", "ROP", "AntiCGE", "Attack", "ComposedDefence", "Defence", "Empire", "Fang", "Found",
    "Gaussian", "HiddenVulnerability", "Inf", "Knowledge", "LabelFlip", "LastRound", "Little", "Memory", "Mimic",
    "MinMax", "MinSum", "NaN", "Omniscient", "OwnData", "SignFlip", "Spied", "ThreatModel", "WorstCase", "Zero",
    "check_memory", "learns_twice", "own", "parts", "same",
]  # fmt: skip
