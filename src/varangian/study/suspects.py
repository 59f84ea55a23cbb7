"""Who is named in runs that are kept: a row a run, tables by rule and attack, pictures of workers over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..core.checks import cut
from ..core.suspects import THRESHOLD, WINDOW, Detection, detection
from ..runs.experiment import Experiment
from ..runs.files import folders_in, make_folder, write_whole
from ..runs.folders import RESULT
from ..runs.folders import SETTINGS as SETTINGS_FILE
from ..runs.results import read
from .outcomes import attack_name, rule_name, setting_text, write_csv
from .report import style
from .report.figures.common import slug
from .report.figures.suspects import Rates, curves, over_time, rates
from .report.layout import attack_title, rule_title
from .report.page import filled

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 21))
TOGETHER = 4  # runs in one picture; of more, each rule has one, with a panel an attack
PANELS = 6  # of such a picture
PICTURES = 12  # of workers over steps
GROUPS = 6  # of other settings, of which there are figures
ROWS = 200  # runs on the page; suspects.csv has all
DPI = 200
PAGE, TABLE, CURVES = "suspects.html", "suspects.csv", "thresholds.csv"
AXES = ("rule", "pre", "attack", "seed")  # what figures compare, and means are taken over


@dataclass(frozen=True, eq=False)
class Row:
    """How right a threshold was in one run; see :class:`varangian.core.suspects.Detection`.

    Attributes:
        folder, experiment: of the run.
        steps: how many it did.
        attackers, caught: how many ever attacked, and were named.
        honest, blamed: how many were ever honest, and were named as such.
        precision, recall, false_alarms, delay: as there.
        curve: precision, recall and false alarms at each of ``THRESHOLDS``.
        line: all of that in a line.
    """

    folder: Path
    experiment: Experiment
    steps: int
    attackers: int
    caught: int
    honest: int
    blamed: int
    precision: float
    recall: float
    false_alarms: float
    delay: float
    curve: tuple[tuple[float, float, float], ...]
    line: str

    @classmethod
    def of(cls, folder: Path, experiment: Experiment, found: Detection) -> Row:
        there = found.there
        each = [found.at(threshold) for threshold in THRESHOLDS]
        return cls(
            folder,
            experiment,
            len(found.recent),
            int((found.byzantine & there).any(0).sum()),
            len(found.caught),
            int((~found.byzantine & there).any(0).sum()),
            len(found.blamed),
            found.precision,
            found.recall,
            found.false_alarms,
            found.delay,
            tuple((d.precision, d.recall, d.false_alarms) for d in each),
            str(found),
        )

    @property
    def rule(self) -> str:
        """Mixings before it."""
        return rule_title(rule_name(self.experiment))

    @property
    def attack(self) -> str:
        """How it is called in a heading."""
        return "no attack" if self.experiment.attack is None else attack_title(attack_name(self.experiment))

    def as_dict(self) -> dict[str, Any]:
        """What suspects.csv says of it, in plain numbers and text, as JSON takes them; None for what is not known."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {
            "folder": str(self.folder),
            "name": self.experiment.name,
            "digest": self.experiment.digest,
            "rule": rule_name(self.experiment),
            "attack": attack_name(self.experiment),
            "seed": self.experiment.seed,
        } | {name: _plain(value) for name, value in numbers.items()}


NUMBERS = (
    *("steps", "attackers", "caught", "honest", "blamed"),
    *("precision", "recall", "false_alarms", "delay"),
)


def rows_of(
    places: Sequence[str | Path], *, threshold: float = THRESHOLD, window: int = WINDOW,
    say: Callable[[str], object] | None = None,
) -> tuple[list[Row], list[str]]:  # fmt: skip
    """A row for each complete run that told of its workers, in a fixed order, each once; and a line on each that is
    left out, and why.

    Args:
        places: folders of runs, of runs of a sweep, or runs themselves.
        threshold, window: as for :func:`varangian.detection`.
        say: is told, in a line each, how far it is.

    Raises:
        ValueError: there is no such run, or the threshold or the window is none.
    """
    found: dict[str, Row] = {}
    left_out: list[str] = []
    folders = list(_folders(places, left_out))
    for number, folder in enumerate(folders):
        if say is not None and number and not number % 100:
            say(f"{number:,} of {len(folders):,} runs read ...")
        if not (folder / RESULT).is_file():
            left_out.append(f"{folder} is not complete.")
            continue
        try:
            result = read(folder)
            report = result.workers()
        except (OSError, ValueError) as error:
            left_out.append(cut(str(error)))
            continue
        row = Row.of(folder, result.experiment, detection(report, threshold=threshold, window=window))
        there = found.setdefault(result.experiment.digest, row)
        if there is not row:
            left_out.append(f"{folder} is a run that {there.folder} holds too.")
    if not found:
        where = ", ".join(map(str, places))
        more = f" ({len(left_out)} left out, the first: {left_out[0].rstrip('.')})" if left_out else ""
        raise ValueError(f"{where}: no complete run that told of its workers{more}.")
    rows = sorted(found.values(), key=_order)
    return rows, left_out


def _folders(places: Sequence[str | Path], left_out: list[str]) -> Iterator[Path]:
    for text in places:
        place = Path(text).expanduser()
        if not place.is_dir():
            raise ValueError(f"{place} is no folder.")
        if _is_run(place):
            yield place
        else:
            for inner in (place, place / "runs"):
                yield from folders_in(inner, place, _is_run, left_out.append)


def _is_run(folder: Path) -> bool:
    return (folder / SETTINGS_FILE).is_file() or (folder / RESULT).is_file()


def _order(row: Row) -> tuple[Any, ...]:
    e = row.experiment
    return e.dataset, e.model, str(e.partition), e.workers, e.byzantine, rule_name(e), attack_name(e), e.seed, e.digest


# --------------------------------------------------------------------------------------------- rules by attacks


@dataclass(frozen=True, eq=False)
class Group:
    """Runs whose other settings are the same; ``title`` is what tells them from others, "" where there are none."""

    title: str
    rows: tuple[Row, ...]

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys(row.rule for row in self.rows))

    @property
    def attacks(self) -> list[str]:
        return list(dict.fromkeys(row.attack for row in self.rows))

    @property
    def seeds(self) -> int:
        return len({row.experiment.seed for row in self.rows})

    def of(self, rule: str, attack: str) -> list[Row]:
        """The runs of a cell, one a seed."""
        return [row for row in self.rows if (row.rule, row.attack) == (rule, attack)]

    def means(self, name: str) -> dict[tuple[str, str], float]:
        """By rule and attack, over the runs in which it is known; of delays the median, infinite for never."""
        found = {}
        for rule in self.rules:
            for attack in self.attacks:
                values = [v for row in self.of(rule, attack) if not math.isnan(v := float(getattr(row, name)))]
                if values:
                    middle = sorted(values)[len(values) // 2]
                    found[rule, attack] = middle if name == "delay" else fmean(values)
        return found


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """The runs by those settings, other than rule, attack and seed, that vary."""
    names = [field.name for field in fields(Experiment) if field.name not in AXES]
    vary = [name for name in names if len({getattr(row.experiment, name) for row in rows}) > 1]
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = ", ".join(f"{name.replace('_', ' ')} {setting_text(row.experiment, name) or 'none'}" for name in vary)
        found.setdefault(title, []).append(row)
    return [Group(title, tuple(members)) for title, members in found.items()]


def figures_of(
    rows: Sequence[Row], groups: Sequence[Group], threshold: float, window: int
) -> Iterator[tuple[str, str, Figure]]:
    """Name, title and figure of each: workers over steps, then rules by attacks and curves over thresholds."""
    yield from _over_time(rows, groups)
    for number, group in enumerate(groups[:GROUPS]):
        if len(group.rules) * len(group.attacks) < 2:
            continue
        more = f"-{number + 1}-{slug(group.title)[:40]}" if len(groups) > 1 else ""
        seeds = f"{group.seeds} seed{'' if group.seeds == 1 else 's'}"
        detail = f"{_detail(group.rows[0].experiment)}, {seeds}"
        yield f"rates{more}", f"How right, and how soon {group.title}".strip(), rates(
            _maps(group, window), group.rules, group.attacks,
            title=f"Named: suspicion of at least {threshold:g} over {window} steps", detail=detail,
            foot="Precision: of all namings, those of attackers. Recall: of all attackers' vectors, those whose sender "
            "is named. Delay: at which of its vectors an attacker is first named, the median. False alarms: of honest "
            "workers' vectors, those whose sender is named. -: nobody is named, or nobody attacks.",
        )  # fmt: skip
        yield f"thresholds{more}", f"Other thresholds {group.title}".strip(), curves(
            THRESHOLDS,
            {(r, a): [row.curve for row in group.of(r, a)] for r in group.rules for a in group.attacks},
            group.rules, group.attacks, detail=f"over {window} steps; {detail}",
        )  # fmt: skip


def _over_time(rows: Sequence[Row], groups: Sequence[Group]) -> Iterator[tuple[str, str, Figure]]:
    for name, title, members in _pictured(rows, groups):
        reports = [(label, read(row.folder).workers()) for label, row in members]
        first = members[0][1].experiment
        detail = f"{_detail(first)}, seed {first.seed}"
        for what in ("suspicion", "weight"):
            if what == "suspicion" or any(not np.isnan(report.weight).all() for _, report in reports):
                yield f"{what}{name}", f"{title}: {what}", over_time(reports, what, detail)


def pictures(folder: Path) -> Iterator[tuple[str, str, Figure]]:
    """Of at most ``TOGETHER`` runs: name, title and figure of their workers over steps; none where nothing was recorded
    of them."""
    try:
        rows, _ = rows_of([folder])
    except ValueError:
        return
    yield from _over_time(rows, groups_of(rows))


def _maps(group: Group, window: int) -> list[Rates]:
    def per_cent(value: float) -> str:
        return f"{100 * value:.1f}" if 0 < value < 0.1 else f"{100 * value:.0f}"

    def steps(value: float) -> str:
        return "never" if math.isinf(value) else f"{value:.0f}"

    known = [
        Rates("precision, %", group.means("precision"), per_cent, 1.0),
        Rates("recall, %", group.means("recall"), per_cent, 1.0),
        Rates("delay, steps", group.means("delay"), steps, 3.0 * window, less=True),
        Rates("false alarms, %", group.means("false_alarms"), per_cent, 0.1, less=True),
    ]
    return [one for one in known if one.values]


def _pictured(rows: Sequence[Row], groups: Sequence[Group]) -> Iterator[tuple[str, str, list[tuple[str, Row]]]]:
    """What stands in which picture of workers over steps: file name, title, and runs with a label each."""
    if len(rows) <= TOGETHER:
        yield "", "Workers over steps", [(row.rule, row) for row in rows]
        return
    made = 0
    for number, group in enumerate(groups):
        more = f"-{number + 1}" if len(groups) > 1 else ""
        for rule in group.rules:
            if made == PICTURES:
                return
            made += 1
            of = f"{rule}, {group.title}" if group.title else rule
            members = [(attack, found[0]) for attack in group.attacks if (found := group.of(rule, attack))]
            yield f"{more}-{slug(rule)}", of, members[:PANELS]


def _detail(e: Experiment) -> str:
    attack = "" if e.attack is None else f"{e.real_byzantine if e.real_byzantine is not None else e.byzantine} attack"
    parts = (
        f"{e.dataset}, {e.model}",
        str(e.partition),
        f"n = {e.workers}, f = {e.byzantine}",
        attack,
    )
    return ", ".join(part for part in parts if part)


# ------------------------------------------------------------------------------------------------------ files


def write(
    rows: Sequence[Row], out: str | Path, *, threshold: float, window: int, left_out: Sequence[str] = (),
    command: str = "",
) -> Path:  # fmt: skip
    """The page, one file that needs no network; beside it suspects.csv (a row a run), thresholds.csv (a row a run and
    threshold) and figures/ as PNG and PDF.

    Args:
        rows: see :func:`rows_of`.
        out: the folder to write into.
        threshold, window: what they were made with.
        left_out: lines on runs that are not among them.
        command: what made it, to stand on the page.
    """
    out = Path(out).expanduser()
    folder = make_folder(out, "figures")
    groups = groups_of(rows)
    write_csv(out / TABLE, *_table(rows, threshold, window))
    write_csv(
        out / CURVES,
        ["digest", "threshold", "window", "precision", "recall", "false_alarms"],
        (
            [row.experiment.digest, repr(at), str(window), *map(_cell, values)]
            for row in rows
            for at, values in zip(THRESHOLDS, row.curve, strict=True)
        ),
    )
    pictures = []
    for name, title, figure in figures_of(rows, groups, threshold, window):
        style.save(figure, folder / name)
        pictures.append((title, style.png(figure, DPI)))
    page = filled(
        "suspects.html",
        title="Who is suspected",
        line=f"Named: who comes to a suspicion of {threshold:g} over the last {window} of its vectors",
        cards=_cards(rows),
        pictures=pictures,
        heads=HEADS,
        tables=table_of(rows),
        runs=[(row.rule, row.attack, str(row.experiment.seed), row.line) for row in rows[:ROWS]],
        more=max(0, len(rows) - ROWS),
        notes=[note.rstrip(".") for note in left_out[:40]],
        command=command,
    )
    path = out / PAGE
    write_whole(path, lambda file: file.write(page.encode()))
    return path


def _table(rows: Sequence[Row], threshold: float, window: int) -> tuple[list[str], Iterator[list[str]]]:
    names = [field.name for field in fields(Experiment) if field.name not in (*AXES, "name")]
    vary = [name for name in names if len({getattr(row.experiment, name) for row in rows}) > 1]
    header = ["name", "digest", "rule", "attack", "seed", *vary, "threshold", "window", *NUMBERS]
    return header, (
        [
            *(row.experiment.name, row.experiment.digest, rule_name(row.experiment), attack_name(row.experiment)),
            *(str(row.experiment.seed), *(setting_text(row.experiment, name) for name in vary)),
            *(repr(threshold), str(window), *(_cell(getattr(row, name)) for name in NUMBERS)),
        ]
        for row in rows
    )


HEADS = ("rule", "attack", "precision", "recall", "delay", "false alarms", "caught", "blamed")


def table_of(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Of each group of other settings its title, and a row of ``HEADS`` for each rule and attack."""
    return [(group.title, _cells(group)) for group in groups_of(rows)]


def _cells(group: Group) -> list[tuple[str, ...]]:
    """Rule, attack, precision, recall, delay, false alarms, attackers caught and honest workers blamed, a cell each."""
    means = {name: group.means(name) for name in ("precision", "recall", "delay", "false_alarms")}
    found = []
    for rule in group.rules:
        for attack in group.attacks:
            members = group.of(rule, attack)
            if members:
                texts = [shown(name, values.get((rule, attack), math.nan)) for name, values in means.items()]
                caught = f"{sum(r.caught for r in members)} of {sum(r.attackers for r in members)}"
                blamed = f"{sum(r.blamed for r in members)} of {sum(r.honest for r in members)}"
                found.append((rule, attack, *texts, caught, blamed))
    return found


def shown(name: str, value: float) -> str:
    """A mean as tables write it: "-" where nothing is known, "never" for an infinite delay."""
    if math.isnan(value):
        return "-"
    if name == "delay":
        return "never" if math.isinf(value) else f"{value:.0f}"
    return f"{100 * value:.1f} %"


def _cards(rows: Sequence[Row]) -> list[tuple[str, str]]:
    attacked = [row for row in rows if row.attackers]
    found = [(f"{len(rows):,}", f"run{'' if len(rows) == 1 else 's'}, {len(attacked):,} of them attacked")]
    if attacked:
        caught, all_ = sum(r.caught for r in attacked), sum(r.attackers for r in attacked)
        found.append((f"{caught:,} of {all_:,}", "attackers are named at some time"))
    blamed, honest = sum(r.blamed for r in rows), sum(r.honest for r in rows)
    found.append((f"{blamed:,} of {honest:,}", "honest workers are named at some time"))
    alarms = [r.false_alarms for r in rows if not math.isnan(r.false_alarms)]
    if alarms:
        found.append((f"{100 * fmean(alarms):.2f} %", "of honest workers' vectors come from one that is named"))
    return found


def _cell(value: float) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else repr(value)


def _plain(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


__all__ = ["HEADS", "Row", "rows_of", "table_of", "write"]
