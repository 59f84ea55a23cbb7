"""What a quarantine gives and what it costs: the runs, the tables and the figure of docs/howto/quarantine.md.

python docs/howto/quarantine.py            results/quarantine/runs.csv, as far as it is not there and what follows
python docs/howto/quarantine.py --out DIR  the same elsewhere
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.lines import Line2D

import varangian as vg
from varangian.core.references import importing
from varangian.study.report import style

ROOT = Path(__file__).parents[2]
RARE = 9  # the class that one worker holds alone
PARTITIONS = {
    "rare class": f"{ROOT / 'examples' / 'rare_class.py'}:RareClass",
    "dirichlet(0.1)": "dirichlet(alpha=0.1)",
    "iid": "iid",
}
RULES = {
    "average": {"rule": "average"},
    "median": {"rule": "median"},
    "Multi-Krum": {"rule": "multi-krum"},
    "NNM, trimmed mean": {"rule": "trimmed-mean", "pre": "nnm"},
}
ATTACKS = {
    "none": None,
    "sign flip": "sign-flip",
    "little": "little",
}
POLICIES = {"none": None, "f stays": "quarantine", "f lowered": "quarantine(lower_f=True)"}
SEEDS = (1,)
COLUMNS = (
    "partition", "rule", "attack", "quarantine", "seed", "accuracy", "rare", "honest", "attackers", "delay",
)  # fmt: skip


def cells(seeds: Sequence[int]) -> Iterator[tuple[str, str, str, str, int]]:
    for seed in seeds:
        for partition in PARTITIONS:
            for rule in RULES:
                for attack in ATTACKS:
                    for policy in POLICIES:
                        yield partition, rule, attack, policy, seed


def experiment(partition: str, rule: str, attack: str, policy: str, seed: int) -> vg.Experiment:
    with importing(True):
        return vg.Experiment(
            workers=15, byzantine=3, steps=200, evaluate_every=0, measure=False, metrics="per-class",
            seed=seed,
            partition=PARTITIONS[partition], attack=ATTACKS[attack], quarantine=POLICIES[policy], **RULES[rule],
        )  # fmt: skip


def row(cell: tuple[str, str, str, str, int]) -> dict[str, str]:
    """One run: accuracies at the end in %, and of all worker-steps of honest workers and of attackers which part was
    away; after how many steps all attackers were away for the first time."""
    e = experiment(*cell)
    found = vg.run(e)
    last = found.evaluations[-1]
    away = np.array([(m.excluded or 0.0, m.excluded_byzantine or 0.0) for m in found.measures]).reshape(-1, 2)
    hostile = away[:, 1].sum()
    whole = np.flatnonzero(away[:, 1] == e.attackers) if e.attackers else []
    values = {
        "accuracy": f"{100 * last.accuracy:.2f}",
        "rare": f"{100 * last.metrics[f'class_{RARE}']:.2f}",
        "honest": f"{100 * (away[:, 0].sum() - hostile) / (e.steps * e.honest):.2f}",
        "attackers": f"{100 * hostile / (e.steps * e.attackers):.2f}" if e.attackers else "",
        "delay": str(whole[0]) if len(whole) else "",
    }
    return dict(zip(COLUMNS[:5], map(str, cell), strict=True)) | values


def runs(path: Path, seeds: Sequence[int]) -> list[dict[str, str]]:
    """All rows, those made first that are not in the table yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    there: list[dict[str, str]] = []
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            there = list(csv.DictReader(file))
    known = {tuple(r[name] for name in COLUMNS[:5]) for r in there}
    with open(path, "a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not there:
            table.writeheader()
        for cell in cells(seeds):
            if tuple(map(str, cell)) not in known:
                there.append(row(cell))
                table.writerow(there[-1])
                file.flush()
    return there


def whole_seeds(rows: Sequence[dict[str, str]]) -> list[str]:
    """The seeds of which all runs are there."""
    many = len(list(cells([0])))
    seeds = sorted({r["seed"] for r in rows}, key=int)
    return [seed for seed in seeds if sum(r["seed"] == seed for r in rows) == many]


def means(rows: Sequence[dict[str, str]], name: str, **where: str) -> float:
    """Of a column over the rows that are of this kind; NaN without any."""
    found = [float(r[name]) for r in rows if r[name] and all(r[k] == v for k, v in where.items())]
    return mean(found) if found else float("nan")


def _cell(value: float, digits: int = 1) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def table(rows: Sequence[dict[str, str]], partition: str) -> str:
    """Accuracy without quarantine, with it, and with f lowered; and which part of honest workers' steps and of
    attackers' was away, with f as it stays."""
    extra = ["class 9 without", "class 9 with"] if partition == "rare class" else []
    head = ["rule", "attack", "without", "with", "f lowered", "honest away", "attackers away", *extra]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for rule in RULES:
        for attack in ATTACKS:
            here = {"partition": partition, "rule": rule, "attack": attack}
            found = [means(rows, "accuracy", quarantine=policy, **here) for policy in POLICIES]
            found += [means(rows, name, quarantine="f stays", **here) for name in ("honest", "attackers")]
            if extra:
                found += [means(rows, "rare", quarantine=policy, **here) for policy in ("none", "f stays")]
            lines.append("| " + " | ".join([rule, attack, *map(_cell, found)]) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, str]], stem: Path) -> Path:
    """Accuracy without and with quarantine, and which part of the steps of honest workers it takes away."""
    seeds = whole_seeds(rows)
    looks = {
        "no quarantine": {"marker": "o", "markerfacecolor": "white"},
        "quarantine, f stays": {"marker": "o"},
        "f lowered": {"marker": "_", "markersize": 7},
    }
    plain = {"color": style.SOFT, "linestyle": "", "markersize": 4}
    legend = [(Line2D([], [], **(plain | look)), name) for name, look in looks.items()]
    legend += [(Line2D([], [], color=style.PALETTE[k], linewidth=2), rule) for k, rule in enumerate(RULES)]
    found = style.sheet(
        2, len(PARTITIONS), 1.5,
        title="What a quarantine gives under attack, and what honest workers with data of their own pay",
        detail="digits, 15 workers, f = 3 of them attack, 200 steps, momentum at the workers; means over seeds "
        + ", ".join(seeds),
        heads=list(PARTITIONS), names=["accuracy, %", "honest away, %"], legend=legend,
        left=0.35, below=0.45, share=False, between=0.0, gap=0.3,
    )  # fmt: skip
    for row, name in enumerate(("accuracy", "honest")):
        for panel, partition in zip(found.panels[row], PARTITIONS, strict=True):
            for k, rule in enumerate(RULES):
                for a, attack in enumerate(ATTACKS):
                    here = {"partition": partition, "rule": rule, "attack": attack}
                    x = a + (k - (len(RULES) - 1) / 2) * 0.19
                    for policy, look in zip(POLICIES, looks.values(), strict=True):
                        if row and policy == "none":
                            continue
                        value = means(rows, name, quarantine=policy, **here)
                        style_of = {"color": style.PALETTE[k], "markersize": 4, "markeredgewidth": 0.9} | look
                        panel.plot([x], [value], linestyle="", clip_on=False, zorder=3, **style_of)
            panel.set_xticks(range(len(ATTACKS)), list(ATTACKS), rotation=30)
            panel.set_xlim(-0.5, len(ATTACKS) - 0.5)
            panel.set_ylim(0, 100 if row == 0 else 30)
            panel.grid(axis="y")
    png, pdf = style.save(found.figure, stem)
    pdf.unlink()
    return png


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "quarantine")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args()
    made = runs(given.out / "runs.csv", given.seeds)
    kept = [r for r in made if r["seed"] in whole_seeds(made)]
    for partition in PARTITIONS:
        print(f"{partition}\n\n{table(kept, partition)}\n")
    print(draw(kept, given.out / "quarantine"))
