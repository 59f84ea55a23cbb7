"""All that stands in the tables of the library, one of each and a few variants, for laws that hold for all of them.

A new rule, mixing, attack or transform is here by itself as soon as it is in RULES, MIXINGS or ATTACKS.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

import varangian as vg
from varangian.core.transforms import Transform

F = 2
H, N = 11, 13  # honest vectors, and all: enough for each of them


def _with_f(kind: type) -> object:
    return kind(f=F) if "f" in [option.name for option in fields(kind)] else kind()


RULES: dict[str, vg.Rule] = {
    **{name: _with_f(kind) for name, kind in vg.RULES.items()},  # type: ignore[dict-item]
    "median, lower": vg.Median(F, even="lower"),
    "multi-krum, plain": vg.MultiKrum(F, distance="plain"),
    "bulyan, multi-krum": vg.Bulyan(F, base="multi-krum"),
    "aksel, n-f": vg.Aksel(F, mode="n-f"),
    "centered-clipping, repeated": vg.CenteredClipping(F, iterations=3),
    "lasa, layers": vg.LASA(F, layers=(3,)),
}
MIXINGS: dict[str, vg.Mixing] = {name: _with_f(kind) for name, kind in vg.MIXINGS.items()}  # type: ignore[misc]
ATTACKS: dict[str, vg.Attack] = {
    **{name: kind() for name, kind in vg.ATTACKS.items()},
    "little, up": vg.Little(0.5, sign=1, ddof=0),
    "inf, mixed": vg.Inf("mixed"),
    "min-max, sign": vg.MinMax("sign"),
    "min-max, unit": vg.MinMax("unit"),
    "min-sum, sign": vg.MinSum("sign"),
    "min-sum, min": vg.MinSum("unit", bound="min"),
    "fang, squared": vg.Fang(distance="squared"),
    "fang, trimmed mean": vg.Fang("trimmed-mean"),
    "worst-case, other lines": vg.WorstCase(("mimic", "sign-flip"), 8),
}
TRANSFORMS: dict[str, Transform] = {
    "clip": vg.Clip(1.0),
    "clip, unit": vg.Clip(0.5, mode="unit"),
    "momentum": vg.Momentum(0.9),
    "momentum, dampened": vg.Momentum(0.9, dampening=0.5),
    "shared momentum": vg.SharedMomentum(0.9),
}

# Lengths among the options, and attacks whose noise or step is one: what follows when all vectors are scaled.
LENGTHS = {
    vg.CenteredClipping: "tau", vg.StaticClipping: "c", vg.Clip: "max_norm", vg.HiddenVulnerability: "factor",
    vg.ROP: "z", vg.Fang: "threshold", vg.Gaussian: "std",
}  # fmt: skip


def vectors(n: int, d: int = 40, seed: int = 0) -> Tensor:
    """[n, d] in double precision, of size 1, about a point that is not the origin."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + centre


def ask(stage: vg.Rule | vg.Mixing, x: Tensor, previous: Tensor | None = None) -> Tensor:
    """The answer of a rule, given a last aggregate or a root where it uses one, or of a mixing."""
    if isinstance(stage, vg.Rule) and stage.uses_previous:
        return stage(x, previous=previous)
    return stage(x)
