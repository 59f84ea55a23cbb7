"""What the grids of unequal data say: tables, a picture of each data set, and a page that is computed from the runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...runs.files import make_folder, write_whole
from ..grid import Grid
from ..heterogeneity import NEAR, PLACES, PUBLISHED, Cell, Logged, Spread, cells, logged
from ..outcomes import Outcome, write_csv
from ..paper import counted
from ..tune import written
from . import style
from .figures.placement import NAMES, placed

READING, CELLS, ATTACKS, LOGS = "reading.md", "cells.csv", "attacks.csv", "logs.csv"
LEARNED = 50.0  # per cent: under less nothing is left that a place could save
AIM = 95  # per cent of the cells in which adaptive placement is to be as good as the better place


def report_heterogeneity(
    placements: Sequence[Grid], logs: Sequence[Grid], outcomes: Sequence[Outcome], out: str | Path
) -> Path | None:
    """The page, reading.md, whose every number is of these runs, or None where no seed of any cell is complete.

    Beside it stand cells.csv (a row a partition and rule), attacks.csv (a row a place and attack of these), logs.csv,
    and figures/placement-DATASET as PNG and PDF.

    Args:
        placements, logs: the grids that were asked for, see :mod:`varangian.study.heterogeneity`.
        outcomes: of their runs, and of others, which are left aside.
        out: the folder to write into; what was there under these names is replaced.
    """
    out = Path(out).expanduser()
    found, others = cells(placements, outcomes), logged(logs, outcomes)
    if not found and not others:
        return None
    folder = make_folder(out, "figures")
    for former in (*folder.glob("placement-*.png"), *folder.glob("placement-*.pdf")):
        former.unlink()  # it would pass for one of these runs
    for name in (CELLS, ATTACKS, LOGS):
        (out / name).unlink(missing_ok=True)
    if found:
        write_csv(out / CELLS, _CELLS, map(_cell_row, found))
        write_csv(out / ATTACKS, _ATTACKS, (row for cell in found for row in _attack_rows(cell)))
    if others:
        write_csv(out / LOGS, _LOGS, map(_log_row, others))
    text = "\n".join(_page(placements, logs, outcomes, found, others))
    for dataset in dict.fromkeys(cell.dataset for cell in found):
        style.save(placed([c for c in found if c.dataset == dataset], dataset), folder / f"placement-{dataset}")
    path = out / READING
    write_whole(path, lambda file: file.write(text.encode()))
    return path


# ------------------------------------------------------------------------------------------------------------- tables

_CELLS = ["dataset", "partition", "rule", "seeds"]
_CELLS += [f"{place}{what}" for place in PLACES for what in ("", "_sd", "_attack", "_without_attack")]
_CELLS += ["gain", "lost"]
_ATTACKS = ["dataset", "partition", "rule", "place", "attack", "seeds", "mean", "sd"]
_LOGS = [
    "dataset",
    "rule",
    "mixing",
    "attack",
    "seeds",
    "without",
    "momentum",
    "dampened",
    "published",
    "ours",
    "at_equal_rate",
]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _listed(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _cell_row(cell: Cell) -> list[str]:
    row = [cell.dataset, cell.partition, cell.rule, _listed(cell.seeds)]
    for place in PLACES:
        worst, calm = cell.worst(place), cell.calm(place)
        row += ["", "", ""] if worst is None else [_number(worst.mean), _number(worst.sd), worst.attack]
        row.append(_number(calm.mean if calm else None))
    return [*row, _number(cell.gain), _number(cell.lost)]


def _attack_rows(cell: Cell) -> Iterator[list[str]]:
    for place, attacks in cell.places.items():
        for s in attacks.values():
            yield [
                *(cell.dataset, cell.partition, cell.rule, place, s.attack),
                *(_listed(cell.seeds), _number(s.mean), _number(s.sd)),
            ]


def _log_row(line: Logged) -> list[str]:
    means = (_number(statistics.fmean(values)) for values in (line.without, line.momentum, line.dampened))
    told = (line.published or "", line.ours, line.at_equal_rate)
    return [line.dataset, line.rule, line.mixing, line.attack, _listed(line.seeds), *means, *told]


# --------------------------------------------------------------------------------------------------------- the reading


def _page(
    placements: Sequence[Grid], logs: Sequence[Grid], outcomes: Sequence[Outcome], found: Sequence[Cell],
    others: Sequence[Logged],
) -> Iterator[str]:  # fmt: skip
    yield "# Where momentum stood, and what was left\n"
    yield "Computed from the runs by `varangian heterogeneity`; nothing here is written by hand."
    yield from _complete(placements, logs, outcomes)
    for dataset in dict.fromkeys(cell.dataset for cell in found):
        mine = [cell for cell in found if cell.dataset == dataset]
        yield f"\n## {dataset}\n"
        yield f"![Accuracy that the worst attack leaves](figures/placement-{dataset}.png)\n"
        yield from _counts(mine)
        yield from _by_partition(mine)
        yield from _by_attack(mine)
        yield from _mixed(mine)
        yield from _adaptive(mine)
        yield from _table(mine)
    if others:
        yield from _logs(others)
    yield ""


def _complete(placements: Sequence[Grid], logs: Sequence[Grid], outcomes: Sequence[Outcome]) -> Iterator[str]:
    there = {o.experiment.digest for o in outcomes if o.source == "varangian"}
    for name, grids in (("Placement", placements), ("Logs", logs)):
        if grids:
            yield f"\n{name}: {_settings(grids[0])}\n"
        for grid in grids:
            runs = grid.experiments()
            done = sum(e.digest in there for e in runs)
            lacks = {e.seed for e in runs if e.digest not in there}
            left = f", those of seeds {', '.join(map(str, sorted(lacks)))} not all" if 0 < done < len(runs) else ""
            yield f"- {runs[0].dataset}: {done:,} of {len(runs):,} runs{left}."


def _settings(grid: Grid) -> str:
    """What its runs were given: beside the seeds, what is the same in all, and lists of what varies."""
    content = grid.to_dict()
    cases = content.pop("case", [])
    given = {name: value for name, value in content.items() if name not in ("dataset", "seeds", "measure")}
    texts = [", ".join(f"{name} = {_value(value)}" for name, value in table.items()) for table in (given, *cases)]
    return f"{'; '.join(texts)}; else the defaults of `varangian run`."


def _value(value: object) -> str:
    return " or ".join(map(written, value)) if isinstance(value, list) else written(value)


def _counts(found: Sequence[Cell]) -> Iterator[str]:
    gains = [cell.gain for cell in found if cell.gain is not None]
    if gains:
        workers, server = sum(g > NEAR for g in gains), sum(g < -NEAR for g in gains)
        yield (
            f"Under its worst attack the workers' place is better by more than a point in {workers} of "
            f"{counted(len(gains), 'cell')}, the server's in {server}; in {len(gains) - workers - server} neither. "
            "A cell is a partition and a rule; its accuracy the mean over the seeds of the greatest of each run, under "
            "the attack where that mean is lowest.\n"
        )


def _by_partition(found: Sequence[Cell]) -> Iterator[str]:
    """Gains, and what is best."""
    yield "| data | mixing | gain of the workers' place: mean, least, greatest | workers, server better | best |"
    yield "|---|---|---|---|---|"
    for partition, mixing, some in _parts(found):
        gains = [cell.gain for cell in some if cell.gain is not None]
        ranked = [(s.mean, cell, place) for cell in some for place in PLACES if (s := cell.worst(place)) is not None]
        if not gains or not ranked:
            continue
        mean, best, place = max(ranked, key=lambda item: item[0])
        yield (
            f"| {partition} | {mixing or 'none'} | {_signed(statistics.fmean(gains))}, {_signed(min(gains))}, "
            f"{_signed(max(gains))} | {sum(g > NEAR for g in gains)}, {sum(g < -NEAR for g in gains)} of {len(gains)} "
            f"| {mean:.1f}: {best.rule}, {_at(place)} |"
        )
    yield ""


def _by_attack(found: Sequence[Cell]) -> Iterator[str]:
    """Gains under each attack, which the worst of all of them hides."""
    attacks = list(dict.fromkeys(attack for cell in found for some in cell.places.values() for attack in some))
    yield "Gain of the workers' place under each attack, mean and least of the rules:\n"
    yield f"| data | mixing | {' | '.join(attacks)} |"
    yield "|---" * (len(attacks) + 2) + "|"
    for partition, mixing, some in _parts(found):
        told = []
        for attack in attacks:
            sides = [[cell.places.get(place, {}).get(attack) for place in ("server", "worker")] for cell in some]
            gains = [worker.mean - server.mean for server, worker in sides if server and worker]
            told.append(f"{_signed(statistics.fmean(gains))}, {_signed(min(gains))}" if gains else "")
        yield f"| {partition} | {mixing or 'none'} | {' | '.join(told)} |"
    yield ""


def _parts(found: Sequence[Cell]) -> Iterator[tuple[str, str, list[Cell]]]:
    for partition in dict.fromkeys(cell.partition for cell in found):
        for mixing in dict.fromkeys(_mixing(cell) for cell in found):
            some = [cell for cell in found if (cell.partition, _mixing(cell)) == (partition, mixing)]
            if some:
                yield partition, mixing, some


def _mixing(cell: Cell) -> str:
    return cell.rule.rpartition(" + ")[0]


def _mixed(found: Sequence[Cell]) -> Iterator[str]:
    """What mixing brings, each side at the better of its two places."""
    plain = {(cell.partition, cell.rule): best for cell in found if (best := _better(cell)) is not None}
    gained: dict[str, list[tuple[str, float]]] = {}
    for cell in found:
        mixing, _, rule = cell.rule.rpartition(" + ")
        before, after = plain.get((cell.partition, rule)), _better(cell)
        if mixing and before is not None and after is not None:
            gained.setdefault(cell.partition, []).append((rule, after - before))
    if not gained:
        return
    yield "What mixing brings, both sides at the better of their fixed places, in points:\n"
    rules = list(dict.fromkeys(rule for some in gained.values() for rule, _ in some))
    yield f"| data | {' | '.join(rules)} |"
    yield "|---" * (len(rules) + 1) + "|"
    for partition, some in gained.items():
        by_rule = dict(some)
        yield f"| {partition} | {' | '.join(_signed(by_rule[r]) if r in by_rule else '' for r in rules)} |"
    yield ""


def _better(cell: Cell) -> float | None:
    fixed = [s.mean for place in ("server", "worker") if (s := cell.worst(place)) is not None]
    return max(fixed, default=None)


def _adaptive(found: Sequence[Cell]) -> Iterator[str]:
    lost = [(cell.lost, cell) for cell in found if cell.lost is not None]
    if not lost:
        yield "Adaptive placement was not run.\n"
        return
    near = sum(points <= NEAR for points, _ in lost)
    share = 100 * near / len(lost)
    yield (
        f"Adaptive placement is within {NEAR:g} point of the better of the two places, or above, in {near} of "
        f"{counted(len(lost), 'cell')} ({share:.0f} %; the aim is {AIM} %: {'met' if share >= AIM else 'not met'}); "
        f"above both by more in {sum(points < -NEAR for points, _ in lost)}. What it lacks most is "
        f"{max(points for points, _ in lost):.1f} points."
    )
    for place in ("worker", "server"):
        lacks = _lacks(found, place)
        yield (
            f"Always {_at(place)} would be so in {sum(points <= NEAR for points in lacks)}, and would lack "
            f"{max(lacks):.1f} points at most."
        )
    learned = [points for points, cell in lost if (_better(cell) or 0.0) >= LEARNED]
    yield (
        f"Of the {counted(len(learned), 'cell')} in which the better place keeps {LEARNED:g} % or more it is so in "
        f"{sum(points <= NEAR for points in learned)}.\n"
    )
    failed = sorted(((points, cell) for points, cell in lost if points > NEAR), key=lambda item: -item[0])
    if failed:
        yield "Where it lacks more, the worst first:\n"
        yield "| data | rule | adaptive | better place | lacks |"
        yield "|---|---|---|---|---|"
        for points, cell in failed:
            place = "worker" if (cell.gain or 0.0) > 0 else "server"
            yield (
                f"| {cell.partition} | {cell.rule} | {_said(cell.worst('adaptive'))} | {_said(cell.worst(place))}, "
                f"{_at(place)} | {points:.1f} |"
            )
        yield ""


def _lacks(found: Sequence[Cell], place: str) -> list[float]:
    """What a fixed place lacks to the better one, in the cells that adaptive placement is judged on."""
    return [
        better - spread.mean
        for cell in found
        if cell.lost is not None
        if (better := _better(cell)) is not None and (spread := cell.worst(place)) is not None
    ]


def _table(found: Sequence[Cell]) -> Iterator[str]:
    yield (
        "Every cell, in %, with the deviation over the seeds and the worst attack; gain: workers − server; lost: the "
        "better of these − adaptive.\n"
    )
    yield "| data | rule | server | workers | adaptive | gain | lost | no attack: server, workers |"
    yield "|---|---|---|---|---|---|---|---|"
    for cell in found:
        calm = ", ".join(f"{s.mean:.1f}" for place in ("server", "worker") if (s := cell.calm(place)) is not None)
        yield (
            f"| {cell.partition} | {cell.rule} | {' | '.join(_said(cell.worst(place)) for place in PLACES)} | "
            f"{_signed(cell.gain)} | {_signed(cell.lost)} | {calm} |"
        )


def _logs(others: Sequence[Logged]) -> Iterator[str]:
    yield "\n## The published logs\n"
    yield (
        "Momentum 0.9 at the workers against none; accuracy after the last step in %, mean and deviation over the "
        "seeds. Published: MNIST split by class, under Little. A direction is said where every seed moves by more than "
        "a point that way. Dampened: momentum 0.9 with dampening 0.9, so that a step is as long as without.\n"
    )
    for dataset in dict.fromkeys(line.dataset for line in others):
        mine = [line for line in others if line.dataset == dataset]
        seeds = dict.fromkeys(seed for line in mine for seed in line.seeds)
        yield f"### {dataset}, seeds {', '.join(map(str, seeds))}\n"
        yield "| rule | mixing | attack | published 0 → 0.9 | ours 0 → 0.9 | dampened | published | ours | dampened |"
        yield "|---" * 9 + "|"
        for line in mine:
            before, after = PUBLISHED[line.rule]
            there = f"{before:.1f} → {after:.1f}" if line.published else ""
            here = f"{_mean(line.without)} → {_mean(line.momentum)} | {_mean(line.dampened)}"
            told = f"{line.published or ''} | {line.ours} | {line.at_equal_rate}"
            yield f"| {line.rule} | {line.mixing} | {line.attack} | {there} | {here} | {told} |"
        known = [line for line in mine if line.published]
        same = [line.rule for line in known if line.ours == line.published]
        yield (
            f"\nThe published direction is seen here in {len(same)} of {counted(len(known), 'rule')}"
            f"{': ' + ', '.join(same) if same else ''}."
        )
        plain = {(line.rule, line.attack): statistics.fmean(line.momentum) for line in known}
        for line in mine:
            if not line.published and (line.rule, line.attack) in plain:
                brought = statistics.fmean(line.momentum) - plain[line.rule, line.attack]
                yield f"\n- {line.mixing} with momentum 0.9 brings {line.rule} {_signed(brought)} points."
        yield ""


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def _said(spread: Spread | None) -> str:
    return "" if spread is None else f"{_mean(spread.seeds)} ({spread.attack})"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value if abs(value) >= 0.05 else 0.0:+.1f}".replace("-", "−")


def _at(place: str) -> str:
    return NAMES[place] if place == "adaptive" else f"at the {NAMES[place]}"
