"""What the page says of the paper's question: pairs of runs, alike but for where momentum stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..outcomes import Outcome, attack_name, condition, rate_text, rule_name
from ..paper import FEW, MEASURES, Pair, Verdict, counted, of_the_paper
from .figures import band, ratio_rules
from .layout import Group, attack_title, column_of, rule_title
from .statistics import Summary, summarize

POINTS = 80  # of a curve on the page
_CLASSES = {"holds": "holds", "does not hold": "fails", "not tested": "untested", "too few runs": "untested"}
_STUDIES = {
    "described": "Profile “described”: as the paper's text says",
    "published": "Profile “published”: as the paper's code computed",
    "imported": "Imported: run by the paper's code",
}


@dataclass(frozen=True)
class Card:
    """The headline of one group: what is compared is one study on one data set, never several together."""

    title: str
    cards: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """A line of the paired statistics: some pairs, and what they say for each measure of accuracy."""

    label: str
    whole: str  # the study, where all pairs of a group are in it
    pairs: str
    clusters: str
    cells: tuple[tuple[str, str, str, str, str], ...]


@dataclass(frozen=True)
class Paired:
    """What the templates paired_head.html and paired.html ask for."""

    paper: bool
    titles: str
    seeds: str
    groups: tuple[Card, ...]
    claims: tuple[tuple[str, tuple[Verdict, ...]], ...]
    statistics: tuple[Row, ...]
    curves: bool
    ratios: bool
    within: str
    data: dict[str, Any]
    classes: Mapping[str, str]
    few: int = FEW


def paired(found: Sequence[Group], judged: Mapping[str, Sequence[Verdict]]) -> Paired:
    """The paper's question put to some groups of runs."""
    outcomes = [o for g in found for o in g.outcomes]
    paper = of_the_paper([p for group in found for p in group.pairs])
    seeds = sorted({o.experiment.seed for o in outcomes})
    return Paired(
        paper,
        "; ".join(f"{g.title} ({g.study}): {counted(len(g.outcomes), 'run')}" for g in found),
        ", ".join(map(str, seeds)) if len(seeds) <= 10 else f"{len(seeds)} of them",
        tuple(_card(group, len(found) > 1) for group in found),
        tuple(
            (_STUDIES.get(study, study), tuple(v for v in everything if paper or v.finding is not None))
            for study, everything in judged.items()
        ),
        tuple(_statistics(found)),
        any(o.curve for o in outcomes),
        any(p.ratio is not None for g in found if ratio_rules(g) for o in g.attacked for p in o.curve),
        _within(found),
        _data(found),
        _CLASSES,
    )


def _card(group: Group, named: bool) -> Card:
    title = f"{group.title} ({group.study})" if named else ""
    if not group.pairs:
        return Card(title, ())
    s, final = summarize(group.pairs), summarize(group.pairs, "final")
    return Card(title, (
        (
            f"{s.pairs:,}",
            f"{'pair' if s.pairs == 1 else 'pairs'}: one run at the server, its twin at the workers; {_clusters(s)}",
        ),
        (f"{_signed(s.mean)} points", f"mean gain in maximum accuracy ({_interval(s)})"),
        (f"{_signed(final.mean)} points", f"mean gain in final accuracy ({_interval(final)})"),
        (
            f"{100 * s.raised / s.pairs:.1f} %",
            "of pairs are better with momentum at the workers; "
            f"{s.lowered:,} {'is' if s.lowered == 1 else 'are'} worse",
        ),
        (_p(s), "how often a mean gain so far from zero would come up by chance; " + _clusters(s)),
    ))  # fmt: skip


def _clusters(s: Summary) -> str:
    """How many of what the evidence comes from."""
    return f"{counted(s.configurations, 'configuration')}, {counted(s.seeds, 'seed')}"


def _interval(s: Summary) -> str:
    if s.low is None or s.high is None:
        return "no interval: one seed" if s.seeds == 1 else "no interval: no two gains differ"
    if not s.says:
        return "no interval: too few runs, it would be wider than all gains there could be"
    return f"95 % interval {_signed(s.low)} to {_signed(s.high)}"


def _p(s: Summary) -> str:
    return "no p" if s.p is None else "p < 0.001" if s.p < 0.001 else f"p = {s.p:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _statistics(found: Sequence[Group]) -> list[Row]:
    lines: list[tuple[str, str, list[Pair]]] = []
    for group in found:
        lines.append((group.title, group.study, group.pairs))
        lines += [
            (column.title, "", [p for p in group.pairs if column_of(p.experiment) == column])
            for column in group.columns
        ]
        lines += [
            (rule_title(rule), "", [p for p in group.pairs if rule_name(p.experiment) == rule]) for rule in group.rules
        ]
    rows = []
    for label, whole, pairs in lines:
        if pairs:
            summaries = [(summarize(pairs, m), "maximum" if m == "max" else "final") for m in MEASURES]
            cells = tuple(
                (name, _signed(s.mean), _interval(s).removeprefix("95 % interval "), f"{s.raised} / {s.lowered}", _p(s))
                for s, name in summaries
            )  # the head of the table says what the interval is
            rows.append(Row(label, whole, f"{len(pairs):,}", _clusters(summaries[0][0]), cells))
    return rows


def _within(found: Sequence[Group]) -> str:
    rows = []
    for group in found:
        for rule in group.rules:
            for place, title in (("server", "server"), ("worker", "workers")):
                shares = [
                    o.ratio_within
                    for o in group.attacked
                    if rule_name(o.experiment) == rule
                    and o.experiment.momentum_at == place
                    and o.ratio_within is not None
                ]
                if shares:
                    rows.append(f"{rule_title(rule)}, {title}: {100 * sum(shares) / len(shares):.1f} %")
    asked = "Share of steps at which the variance-norm ratio is below what the rule's proof asks for"
    return f"{asked}: {'; '.join(rows)}." if rows else ""


def _data(found: Sequence[Group]) -> dict[str, Any]:
    """What paired.js draws; see there."""
    runs, curves, conditions = [], [], {}
    for number, group in enumerate(found):
        bundles: dict[tuple[Any, ...], list[Outcome]] = {}
        for o in group.outcomes:
            e = o.experiment
            key = (
                *(number, rule_name(e), attack_name(e) if e.attack else "", e.workers, e.byzantine, e.attackers),
                *(e.nesterov, rate_text(e), e.momentum_at),
            )
            seed = e.seed if e.seed < 2**53 else str(e.seed)  # the script's numbers end there
            runs.append([*key, seed, round(100 * o.max_accuracy, 4), round(100 * o.final_accuracy, 4)])
            bundles.setdefault(key, []).append(o)
            if e.attack and (limit := condition(e)) is not None:
                conditions[f"{rule_name(e)}/{e.workers}/{e.byzantine}"] = float(f"{limit:.4g}")
        for key, members in bundles.items():
            steps, middles, lows, highs = band(members)
            if not steps:
                continue
            ratio = dict(zip(*band(members, ratios=True)[:2], strict=True))
            every = -(-len(steps) // POINTS)
            kept = [i for i in range(len(steps)) if i % every == 0 or i == len(steps) - 1]
            values = [[round(v[i], 2) for i in kept] for v in (middles, lows, highs)]
            ratios = [float(f"{ratio[steps[i]]:.3g}") if steps[i] in ratio else None for i in kept]
            curves.append([*key, [steps[i] for i in kept], *values, ratios])
    described = [
        {
            "title": g.title,
            "study": g.study,
            "rates": g.rates,
            "kinds": g.kinds,
            "rules": g.rules,
            "columns": [[c.workers, c.byzantine, c.attackers, c.attack] for c in g.columns],
        }
        for g in found
    ]
    return {
        "groups": described,
        "runs": runs,
        "curves": curves,
        "conditions": conditions,
        "rules": {rule: rule_title(rule) for g in found for rule in g.rules},
        "attacks": {c.attack: attack_title(c.attack) for g in found for c in g.columns},
    }
