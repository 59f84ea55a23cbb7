"""The convention of each golden output: as an oracle (GOLDEN), as arguments of the package's classes (CONSTRUCTORS).

The golden files are outputs of other people's code: "published:" is the code of the ICLR 2021 study, "byzfl:" the
library ByzFL, "attack:" the study's attacks. Only their numbers are here. Read them with ``cases()`` and
``trajectories()``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import oracles

FOLDER = Path(__file__).parent / "golden"

GOLDEN: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "published:multi-krum": oracles.PUBLISHED_RULES["krum"],
    "published:multi-krum-m1": lambda x, f: oracles.krum(x, f, neighbours="n-f-1", distance="plain", ties="position"),
    "published:median": oracles.PUBLISHED_RULES["median"],
    "published:trmean": oracles.PUBLISHED_RULES["trmean"],
    "published:phocas": oracles.PUBLISHED_RULES["phocas"],
    "published:meamed": oracles.PUBLISHED_RULES["meamed"],
    "published:aksel-mid": lambda x, f: oracles.aksel(x, f, mode="mid", even="lower"),
    "published:aksel-n-f": lambda x, f: oracles.aksel(x, f, mode="n-f", even="lower"),
    "published:cge": oracles.cge,
    "published:mda": lambda x, f: oracles.mda(x, f, ties="position"),
    "published:bulyan": oracles.PUBLISHED_RULES["bulyan"],
    "byzfl:Median": lambda x, f: oracles.median(x, f, even="mid"),
    "byzfl:TrMean": oracles.trimmed_mean,
    "byzfl:Meamed": lambda x, f: oracles.meamed(x, f, even="mid"),
    "byzfl:MultiKrum": lambda x, f: oracles.multi_krum(x, f, m=len(x) - f, neighbours="n-f-1"),
    "byzfl:Krum": lambda x, f: oracles.krum(x, f, neighbours="n-f-1"),
    "byzfl:MoNNA-idx0": lambda x, f: oracles.monna(x, f, pivot=0),
    "byzfl:MDA": lambda x, f: oracles.mda(x, f, ties="position"),
    "byzfl:NNM": oracles.nnm,
    "byzfl:ARC": oracles.arc,
    "byzfl:Clipping2": lambda x, f: oracles.static_clipping(x, 2.0),
    # The n-f first rows are the honest ones, whatever the others hold.
    "attack:little1.5": lambda x, f: oracles.little(x[: len(x) - f], 1, factor=1.5)[0],
    "attack:empire1.1": lambda x, f: oracles.empire(x[: len(x) - f], 1, factor=1.1)[0],
}
"""Golden name -> the oracle that reproduces it: [n, d], f -> [d] (mixings: [n, d])."""

CONSTRUCTORS: dict[str, str] = {
    "published:multi-krum": 'MultiKrum(f, neighbours="n-f-1", distance="plain", ties="position")',
    "published:multi-krum-m1": 'MultiKrum(f, m=1, neighbours="n-f-1", distance="plain", ties="position")',
    "published:median": 'Median(f, even="lower")',
    "published:trmean": "TrimmedMean(f)",
    "published:phocas": "Phocas(f)",
    "published:meamed": 'MeaMed(f, even="lower")',
    # For these two the golden files do not tell the lower median from the middle one; the study's code takes the lower.
    "published:aksel-mid": 'Aksel(f, mode="mid", even="lower")',
    "published:aksel-n-f": 'Aksel(f, mode="n-f", even="lower")',
    "published:cge": "ComparativeGradientElimination(f)",
    "published:mda": 'MinimumDiameterAveraging(f, ties="position")',
    "published:bulyan": (
        'Bulyan(f, base="multi-krum", selection="frozen", distance="plain", even="lower", ties="position")'
    ),
    "byzfl:Median": 'Median(f, even="mid")',
    "byzfl:TrMean": "TrimmedMean(f)",
    "byzfl:Meamed": 'MeaMed(f, even="mid")',
    "byzfl:MultiKrum": 'MultiKrum(f, m=n - f, neighbours="n-f-1", ties="position")',
    "byzfl:Krum": 'Krum(f, neighbours="n-f-1", ties="position")',
    "byzfl:MoNNA-idx0": "MoNNA(f, pivot=0)",
    "byzfl:MDA": 'MinimumDiameterAveraging(f, ties="position")',
    "byzfl:NNM": "NearestNeighborMixing(f)",
    "byzfl:ARC": "AdaptiveClipping(f)",
    "byzfl:Clipping2": "StaticClipping(2.0)",
    "attack:little1.5": "Little(factor=1.5, sign=-1, ddof=1)",
    "attack:empire1.1": "Empire(factor=1.1)",
}
"""Golden name -> the package's constructor call that means the same (n, f: the case's numbers)."""

TIED: frozenset[tuple[int, str]] = frozenset({(6, "published:mda"), (6, "byzfl:MDA"), (8, "published:multi-krum-m1")})
"""Outputs that only ties="position" gives: they hang on an exact tie, which the other code broke by position (first
row, first subset of indices).

Case 6: two subsets of 7 share their diameter (and the diameter's pair), exactly. Case 8 (d = 1): two adjacent values
have the same sum of plain distances to 5 others. A rule that breaks ties by value answers another, equally right
vector there.
"""


def cases() -> Iterator[tuple[int, str, np.ndarray, int, np.ndarray]]:
    """(case, golden name, x [n, d] float32, f, expected output) for every golden output of the rules."""
    described = json.loads((FOLDER / "rules.json").read_text())
    with np.load(FOLDER / "rules.npz", allow_pickle=False) as arrays:
        for case in described:
            for name in case["outputs"]:
                yield case["case"], name, arrays[f"x{case['case']}"], case["f"], arrays[f"{case['case']}/{name}"]


def trajectories() -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """(case, expected [31, 65]) for every golden trajectory."""
    described = json.loads((FOLDER / "trajectories.json").read_text())
    with np.load(FOLDER / "trajectories.npz", allow_pickle=False) as arrays:
        for case in described:
            yield case, arrays[case["name"]]


def batches() -> dict[str, np.ndarray]:
    """The batches of the golden trajectories: x [440, 6, 12], y [440, 6]."""
    with np.load(FOLDER / "batches.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("x", "y")}
