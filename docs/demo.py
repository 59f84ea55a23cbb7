"""The table and the figure of docs/demo.md, from the recorded runs of the demo.

python docs/demo.py             run the demo, record its runs in docs/demo.csv, and make both anew
python docs/demo.py --recorded  make both anew from docs/demo.csv
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from varangian.runs.experiment import Experiment
from varangian.study import demo
from varangian.study.outcomes import Outcome, Point, write_csv
from varangian.study.paper import unattacked
from varangian.study.report import figures, style
from varangian.study.report.layout import by_batch_size, groups

HERE = Path(__file__).parent
TABLE, PAGE = HERE / "demo.csv", HERE / "demo.md"
COLUMNS = ["batch_size", "attack", "rule", "momentum_at", "seed", "max_accuracy", "final_accuracy", "first_accuracy",
           "first_ratio"]  # fmt: skip
BEGIN, END = "<!-- made by docs/demo.py -->\n", "<!-- until here -->\n"


def record(outcomes: Sequence[Outcome], path: Path = TABLE) -> None:
    """A row a run."""
    rows = []
    for o in outcomes:
        e, first = o.experiment, o.curve[0]
        values = (
            o.max_accuracy,
            o.final_accuracy,
            first.accuracy,
            "" if first.ratio is None else round(first.ratio, 4),
        )
        rows.append([str(v) for v in (e.batch_size, e.attack or "", e.rule, e.momentum_at, e.seed, *values)])
    write_csv(path, COLUMNS, rows)


def recorded(path: Path = TABLE) -> list[Outcome]:
    """The runs that were recorded, as far as the table and the figure need them."""
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            first = Point(0, float(row["first_accuracy"]), float(row["first_ratio"]) if row["first_ratio"] else None)
            accuracies = float(row["max_accuracy"]), float(row["final_accuracy"])
            found.append(Outcome(experiment(row), *accuracies, curve=(first,)))
    return found


def experiment(row: dict[str, str]) -> Experiment:
    """The settings of a row: the demo's own, but for what the row says."""
    e = replace(demo.ATTACKED, batch_size=int(row["batch_size"]), seed=int(row["seed"]))
    if not row["attack"]:
        return replace(unattacked(e, e.workers - e.byzantine), measure=True)
    return replace(e, attack=row["attack"], rule=row["rule"], momentum_at=row["momentum_at"])


def written(outcomes: Sequence[Outcome]) -> str:
    """The page with the table of these runs."""
    text = PAGE.read_text(encoding="utf-8")
    block = f"{BEGIN}```\n{demo.table(outcomes)}\n```\n{END}"
    found, number = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, text, flags=re.DOTALL)
    assert number == 1, f"{PAGE} has no place for the table, or several"
    return found


def draw(outcomes: Sequence[Outcome], stem: Path) -> Path:
    """The figure that the demo writes; it says what table it was made from."""
    [same] = by_batch_size(groups(outcomes))
    png, pdf = style.save(figures.by_noise(same), stem, digest())
    pdf.unlink()
    return png


def digest(path: Path = TABLE) -> str:
    return f"sha256 of demo.csv: {hashlib.sha256(path.read_bytes()).hexdigest()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", action="store_true", help="run nothing")
    if not parser.parse_args().recorded:
        record(demo.compare(Console(stderr=True)))
    outcomes = recorded()
    PAGE.write_text(written(outcomes), encoding="utf-8")
    print(f"{PAGE}\n{draw(outcomes, HERE / 'demo')}")


if __name__ == "__main__":
    main()
