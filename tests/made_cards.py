"""Score cards that are made up, for tests of what is made of cards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from varangian.study.score.card import (
    Accuracy,
    Breakdown,
    Breaks,
    Card,
    Conformance,
    Cost,
    Kappa,
    Memory,
    Noise,
    Settings,
    Time,
    Trained,
    Worst,
)
from varangian.study.score.verdict import verdict

SETTINGS = Settings(
    dataset="digits", model="fully-connected", n=11, f=2, steps=60, batch_size=4, learning_rate=0.1, momentum=0.9,
    clip=2.0, partitions=("iid", "dirichlet(alpha=0.1)"), places=("server", "worker"), seeds=(1, 2, 3),
    attacks=("little", "worst-case(evaluations=8)"),
)  # fmt: skip


def card(rule: str = "median", level: float = 0.8, **more: Any) -> Card:
    trained = [
        Accuracy(attack, p, m, 2, (level - loss, level - loss, level - loss + 0.03))
        for p in SETTINGS.partitions
        for m in SETTINGS.places
        for attack, loss in ((None, 0.0), ("little", 0.1), ("worst-case(evaluations=8)", 0.2))
    ]
    values: dict[str, Any] = {
        "kind": "rule", "rule": rule, "pre": (), "title": rule, "ours": True, "declared": 5, "settings": SETTINGS,
        "conformance": (Conformance(rule, ("NEEDS",), (), {}, "near"),),
        "breakdown": tuple(Breakdown(11, f, f + 1, None, f"all at place {f}") for f in range(6)),
        "kappa": (Kappa(11, 2, 0.5, 2 / 7, 1.5),),
        "worst": Worst(11, 2, "mimic", 0.4, 1.5),
        "trained": Trained.of(trained),
        "untroubled": Trained.of(Accuracy(None, "iid", "worker", f, (0.8 - f / 100,) * 3) for f in range(3)),
        "noise": (Noise(11, 0, 1.0), Noise(11, 2, 1.3)),
        "cost": Cost("a machine", 50.0, (Time(11, 1000, 2e-4, 3.5),), (Memory(11, 1000, 4096, 0.1),)),
    }  # fmt: skip
    made = Card(**(values | more))
    return replace(made, verdict=verdict(made))


def attack(name: str = "little", broken: int | None = 2) -> Card:
    breaks = (Breaks("median", "iid", broken, 5, 0.3, 0.8), Breaks("krum", "iid", None, 4, 0.7, 0.8))
    made = Card(kind="attack", rule="", pre=(), attack=name, ours=True, settings=SETTINGS, breaks=breaks)
    return replace(made, verdict=verdict(made))
