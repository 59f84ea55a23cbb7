"""What the adversary sends: from the vectors of the honest workers to f vectors of its own."""

from __future__ import annotations

from .base import Attack, ComposedDefence, Defence, Knowledge
from .colluding import Decoys, Divided, Scattered
from .knowledge import KNOWLEDGE, LastRound, Omniscient, OwnData, Spied, ThreatModel, learns_twice
from .memory import Memory, check_memory, own, same
from .poison import Backdoor, DataAttack, Hidden, LabelFlip
from .search import ATTACKS, Found, WorstCase, parts
from .simple import Empire, Gaussian, Inf, Little, Mimic, NaN, SignFlip, Zero
from .spread import MinMax, MinSum
from .targeted import ROP, AntiCGE, Fang, HiddenVulnerability
from .task import UNCOUNTED, Task, as_wanted, poisoned

__all__ = [
    "ATTACKS", "KNOWLEDGE", "ROP", "UNCOUNTED", "AntiCGE", "Attack", "Backdoor", "ComposedDefence", "DataAttack",
    "Decoys", "Defence", "Divided", "Empire", "Fang", "Found", "Gaussian", "Hidden", "HiddenVulnerability", "Inf",
    "Knowledge", "LabelFlip", "LastRound", "Little", "Memory", "Mimic", "MinMax", "MinSum", "NaN", "Omniscient",
    "OwnData", "Scattered", "SignFlip", "Spied", "Task", "ThreatModel", "WorstCase", "Zero", "as_wanted",
    "check_memory", "learns_twice", "own", "parts", "poisoned", "same",
]  # fmt: skip
