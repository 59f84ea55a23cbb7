"""The page: one HTML file with everything in it. Text comes from runs of anybody, so all of it is escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

from ..outcomes import Outcome, attack_name, command, condition, rate_text, rule_name
from ..paper import FEW, MEASURES, Pair, Verdict, counted, of_the_paper
from .figures import band, ratio_rules
from .layout import Group, attack_title, column_of, rule_title
from .statistics import Summary, summarize

POINTS = 80  # of a curve on the page
MOST_NOTES = 40  # on runs that are not compared


@dataclass(frozen=True)
class SweepRecord:
    """What made some of the runs."""

    command: str
    started: str = ""
    seconds: float = 0.0
    jobs: int = 0
    threads: int = 0
    cores: int = 0
    done: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    processor: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure within the page: always there, or only where scripts do not run, which draw it otherwise.

    On narrow screens its parts stand below each other, where it has such.
    """

    title: str
    png: bytes
    always: bool = False
    narrow: tuple[bytes, ...] = ()


def render(
    found: Sequence[Group],
    judged: Mapping[str, Sequence[Verdict]],
    records: Sequence[SweepRecord],
    cells: Mapping[str, tuple[int, int]],
    pictures: Sequence[Picture],
    notes: Sequence[str] = (),
) -> str:
    """The whole page; ``notes`` say what of the runs is in no comparison."""
    pairs = [p for group in found for p in group.pairs]
    paper = of_the_paper(pairs)
    body = [
        _heading(found, paper),
        *(_cards(group, len(found) > 1) for group in found),
        _missing(cells, notes),
        *(_shown(picture) for picture in pictures if picture.always),
        _settings(found, records),
        _filters(),
        _LEGEND,
        "<h2>Accuracy under attack</h2>",
        "<p class=soft>Accuracy on the test set, in per cent, as the paper's poster draws it. A box holds all rules "
        "and seeds: quartiles and median; whiskers reach to the farthest run within 1.5 times its height. A point is a "
        "run, its shape the rule. Dotted: the median of the runs without attack.</p>",
        '<div id="boxes"></div>',
        *(f"<noscript>{_shown(picture)}</noscript>" for picture in pictures if not picture.always),
        _claims(judged, paper),
        "<h2>Who gains and who loses, pair by pair</h2>" if any(g.pairs for g in found) else "",
        '<p class="soft" id="pair-note"></p>',
        '<div class="pairs"><div id="scatter"></div><div id="table"></div></div>',
        _statistics(found),
        _CURVES if any(o.curve for g in found for o in g.outcomes) else "",
        _ratios(found),
        _origin(found, records),
    ]
    script = resources.files("varangian.study.report").joinpath("page.js").read_text(encoding="utf-8")
    style = resources.files("varangian.study.report").joinpath("page.css").read_text(encoding="utf-8")
    content = json.dumps(_data(found), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Nothing may be fetched: the page is complete, and stays so wherever it is sent.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Where should momentum stand? A report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + '\n<script type="application/json" '
        + f'id="data">{content}</script>\n<script>\n{script}</script>\n</body>\n</html>\n'
    )


_CURVES = (
    "<section><h2>Learning curves</h2><p class=soft>Accuracy on the test set over the steps: median of the seeds, "
    'bands from the least to the greatest; dotted: without attack.</p><div id="curves"></div></section>'
)

_LEGEND = (
    '<div class="legend">'
    '<span><svg class="mark" viewBox="0 0 24 12"><path d="M0 6h24" stroke="var(--server)" stroke-width="2"/>'
    '<circle cx="12" cy="6" r="3" fill="var(--page)" stroke="var(--server)" stroke-width="1.5"/></svg>'
    "momentum at the server: the usual formulation</span>"
    '<span><svg class="mark" viewBox="0 0 24 12"><path d="M0 6h24" stroke="var(--worker)" stroke-width="2" '
    'stroke-dasharray="5 3"/>'
    '<path d="M12 2l4 4-4 4-4-4z" fill="var(--worker)"/></svg>momentum at the workers: the paper\'s</span>'
    '<span><svg class="mark" viewBox="0 0 24 12"><path d="M0 6h24" stroke="var(--ink)" stroke-width="1.5" '
    'stroke-dasharray="2 3"/>'
    "</svg>without attack</span></div>"
)


def _heading(found: Sequence[Group], paper: bool) -> str:
    outcomes = [o for g in found for o in g.outcomes]
    titles = "; ".join(f"{escape(g.title)} ({escape(g.study)}): {counted(len(g.outcomes), 'run')}" for g in found)
    seeds = sorted({o.experiment.seed for o in outcomes})
    shown = ", ".join(map(str, seeds)) if len(seeds) <= 10 else f"{len(seeds)} of them"
    note = (
        ""
        if paper
        else "<p><b>These runs are not the paper's:</b> they put its question to a smaller task, and say nothing about "
        "its numbers.</p>"
    )
    return (
        "<h1>Where should momentum stand: at the server, or at the workers?</h1>"
        "<p>Byzantine workers attack distributed SGD; a robust rule F aggregates what all workers send. Usually "
        "momentum is "
        "applied to what F answers. The paper (El-Mhamdi, Guerraoui, Rouault, ICLR 2021) lets each worker apply it "
        "before "
        f'F.</p><p class="soft">{titles}. Seeds: {shown}.</p>{note}'
        "<p class=soft>The <b>maximum</b> accuracy is the best of all evaluations of a run, as the paper reports it; "
        "since evaluations are on the test set, it selects on the test set. The <b>final</b> accuracy, after the last "
        "step, stands beside it and does not.</p>"
    )


def _cards(group: Group, named: bool) -> str:
    """The headline of one group: what is compared is one study on one data set, never several together."""
    title = f"<h3>{escape(group.title)} ({escape(group.study)})</h3>" if named else ""
    if not group.pairs:
        return f"{title}<p>No run has its twin yet: the same run with momentum at the other place.</p>"
    s, final = summarize(group.pairs), summarize(group.pairs, "final")
    cells = [
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
    ]
    return (
        f'{title}<div class="cards">'
        + "".join(f'<div class="card"><b>{b}</b><span>{t}</span></div>' for b, t in cells)
        + "</div>"
    )


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
    return "no p" if s.p is None else "p &lt; 0.001" if s.p < 0.001 else f"p = {s.p:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _missing(cells: Mapping[str, tuple[int, int]], notes: Sequence[str]) -> str:
    lacking = [
        f"{escape(name)}: {done:,} of {counted(total, 'run')}" for name, (done, total) in cells.items() if done < total
    ]
    said = f'<p class="soft">Incomplete: {"; ".join(lacking)}.</p>' if lacking else ""
    if not notes:
        return said
    items = [f"<li>{escape(note.rstrip('.'))}.</li>" for note in notes[:MOST_NOTES]]
    if len(notes) > MOST_NOTES:
        items.append(f"<li>And {len(notes) - MOST_NOTES:,} more.</li>")
    return f'{said}<p class="soft">Not compared here:</p><ul class="small soft">{"".join(items)}</ul>'


def _filters() -> str:
    chosen = [("group", "runs", " class=first"), ("rate", "learning rate", ""), ("kind", "momentum", ""),
              ("rule", "rule", ""), ("attack", "attack", ""), ("share", "f", "")]  # fmt: skip
    labels = [f'<label{extra}>{text}<select name="{name}"></select></label>' for name, text, extra in chosen]
    labels.append(
        '<label>accuracy<select name="measure"><option value="max">maximum</option>'
        '<option value="final">final</option></select></label>'
    )
    return f'<div class="filters">{"".join(labels)}<button type="button">reset</button></div>'


def _shown(picture: Picture) -> str:
    images = [
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for png in (picture.png, *picture.narrow)
    ]
    if not picture.narrow:
        return f'<p class="picture wide">{images[0]}</p>'
    return f'<p class="picture broad">{images[0]}</p><p class="picture narrow">{"".join(images[1:])}</p>'


MOST = 12  # groups in one table of settings


def _settings(found: Sequence[Group], records: Sequence[SweepRecord]) -> str:
    """A column a group of runs, a row a setting; then what computed them."""
    rows: dict[str, dict[int, str]] = {}
    for number, group in enumerate(found[:MOST]):
        for name, value in group.settings:
            rows.setdefault(name, {})[number] = value
    lines = []
    for name, values in rows.items():
        cells = [values.get(number, "") for number in range(len(found[:MOST]))]
        if len(set(cells)) == 1:
            lines.append(f"<tr><th>{escape(name)}</th><td colspan={len(cells)}>{escape(cells[0])}</td></tr>")
        else:
            lines.append(f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>")
    for name, values in (
        ("run by", [f"{k} {v}" for r in records for k, v in r.versions.items()]),
        ("processor", [r.processor for r in records if r.processor]),
        ("date", [r.started for r in records if r.started]),
    ):
        text = ", ".join(dict.fromkeys(values)) or "not recorded beside these runs"
        lines.append(f"<tr><th>{name}</th><td colspan={len(found[:MOST])}>{escape(text)}</td></tr>")
    more = (
        f"<p class=soft>and {len(found) - MOST} more group{'s' if len(found) > MOST + 1 else ''} of runs.</p>"
        if len(found) > MOST
        else ""
    )
    heads = "".join(f"<th>{escape(g.title)}</th>" for g in found[:MOST])
    head = f"<thead><tr><th></th>{heads}</tr></thead>" if len(found) > 1 else ""
    return (
        f"<h2>Settings</h2><div class=wide><table class=settings>{head}<tbody>{''.join(lines)}</tbody></table></div>"
        f"{more}"
    )


_CLASSES = {"holds": "holds", "does not hold": "fails", "not tested": "untested", "too few runs": "untested"}


def _claims(judged: Mapping[str, Sequence[Verdict]], paper: bool) -> str:
    parts = ["<h2>The paper's claims</h2>"]
    if not paper:
        parts.append("<p class=soft>Asked of these runs, which are not the paper's.</p>")
    for study, everything in judged.items():
        found = [v for v in everything if paper or v.finding is not None]
        rows = "".join(
            f"<tr><td>{v.claim.id}</td><td>{escape(v.claim.text)}</td>"
            f'<td data-name="ours">{escape(v.finding.ours) if v.finding else "none"}</td>'
            f'<td data-name="theirs">{escape(v.claim.theirs)}</td>'
            f'<td data-name="holds if">{escape(v.claim.criterion)}</td>'
            f'<td class=n data-name="pairs, ours of theirs">{v.pairs:,} of {v.claim.total:,}</td>'
            f'<td><span class="verdict {_CLASSES[v.word]}">{v.word}</span></td></tr>'
            for v in found
        )
        parts.append(
            f"<h3>{_STUDIES.get(study, escape(study))}</h3>"
            "<div class=wide><table class=stack><thead><tr><th></th><th>claim</th><th>our number</th><th>the "
            "paper's</th>"
            f"<th>holds if</th><th class=n>pairs</th><th>verdict</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
    parts.append(
        '<p class="soft small">Verdicts are computed from the runs. A pair is one configuration and seed with '
        "momentum at "
        "the server and at the workers; where fewer pairs are at hand than the paper had, the verdict is about "
        f"those, and of fewer than {FEW} there is none.</p>"
    )
    return "".join(parts)


_STUDIES = {
    "described": "Profile “described”: as the paper's text says",
    "published": "Profile “published”: as the paper's code computed",
    "imported": "Imported: run by the paper's code",
}


def _statistics(found: Sequence[Group]) -> str:
    lines: list[tuple[str, list[Pair]]] = []
    for group in found:
        if not group.pairs:
            continue
        lines.append((f"<b>{escape(group.title)}</b> ({escape(group.study)}), all", group.pairs))
        lines += [
            (escape(column.title), [p for p in group.pairs if column_of(p.experiment) == column])
            for column in group.columns
        ]
        lines += [
            (escape(rule_title(rule)), [p for p in group.pairs if rule_name(p.experiment) == rule])
            for rule in group.rules
        ]
    rows = []
    for label, pairs in lines:
        if pairs:
            summaries = [(summarize(pairs, m), "maximum" if m == "max" else "final") for m in MEASURES]
            cells = "".join(_summary_cells(s, name) for s, name in summaries)
            clusters = f"<td class=n data-name=from>{_clusters(summaries[0][0])}</td>"
            rows.append(f"<tr><td>{label}</td><td class=n data-name=pairs>{len(pairs):,}</td>{clusters}{cells}</tr>")
    if not rows:
        return ""
    head = "<th class=n>mean gain (95 % interval)</th><th class=n>better / worse (p)</th>"
    return (
        "<h2>Paired statistics</h2><p class=soft>Gains in points of accuracy. Configurations share their seeds, and "
        "seeds their configurations: intervals and p take the gain as a mean, an effect of the configuration, one of "
        "the seed, and a rest, all random (parametric bootstrap, two-sided). So they are about other configurations "
        "and seeds like these, and about the one configuration where there is one. Rows are not corrected for how "
        "many there are.</p>"
        "<div class=wide><table class=stack><thead><tr><th></th><th></th><th></th>"
        "<th class=n colspan=2>maximum accuracy</th>"
        f"<th class=n colspan=2>final accuracy</th></tr><tr><th></th><th class=n>pairs</th>"
        f"<th class=n>from</th>{head}{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _summary_cells(s: Summary, name: str) -> str:
    interval = _interval(s).removeprefix("95 % interval ")  # the head of the table says it
    return (
        f'<td class=n data-name="{name}, mean gain"><b>{_signed(s.mean)}</b> ({interval})</td>'
        f'<td class=n data-name="{name}, better / worse">{s.raised} / {s.lowered} ({_p(s)})</td>'
    )


def _ratios(found: Sequence[Group]) -> str:
    """Nothing where no run of a rule with a condition was measured."""
    if not any(p.ratio is not None for g in found if ratio_rules(g) for o in g.attacked for p in o.curve):
        return _within(found)
    return (
        "<section><h2>Variance-norm ratio and what the proofs ask</h2>"
        "<p class=soft>(Deviation / norm of the average)² of what honest workers send, median of the seeds, "
        "logarithmic. A rule is proved resilient only while it stays below the dotted line; nothing is proved for the "
        "other rules.</p>"
        f'{_within(found)}<div id="ratios"></div></section>'
    )


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
                    rows.append(f"{escape(rule_title(rule))}, {title}: {100 * sum(shares) / len(shares):.1f} %")
    asked = "Share of steps at which the variance-norm ratio is below what the rule's proof asks for"
    return f"<p>{asked}: {'; '.join(rows)}.</p>" if rows else ""


def _origin(found: Sequence[Group], records: Sequence[SweepRecord]) -> str:
    outcomes = [o for g in found for o in g.outcomes]
    parts = ["<h2>Where these numbers come from</h2>"]
    parts += [f"<pre>{escape(text)}</pre>" for text in dict.fromkeys(r.command for r in records if r.command)]
    timed = [r for r in records if r.done]
    if timed:
        total = sum(r.seconds for r in timed)
        last = timed[-1]
        parts.append(
            f"<p>{counted(sum(r.done for r in timed), 'run')} in {total / 3600:.2f} h of sweeping (at a time "
            f"{last.jobs:,}, each of {counted(last.threads, 'thread')}, on {counted(last.cores, 'core')}).</p>"
        )
    stopped = [o for o in outcomes if o.stopped]
    if stopped:
        items = "".join(f"<li>{escape(o.experiment.name)}: {escape(o.stopped or '')}</li>" for o in stopped[:20])
        more = f"<li>and {len(stopped) - 20} more</li>" if len(stopped) > 20 else ""
        parts.append(f"<p>{counted(len(stopped), 'run')} ended early:</p><ul class=small>{items}{more}</ul>")
    attacked = [o for o in outcomes if o.experiment.attack and o.source == "varangian"]
    if attacked:
        e = attacked[0].experiment
        parts.append(
            "<p>Any one run can be redone, bit for bit on the same versions and number of threads; for instance "
            f"{escape(rule_title(rule_name(e)))} under "
            f"{escape(attack_title(e.attack or ''))}:</p><pre>{escape(command(e))}</pre>"
        )
    return "".join(parts)


# ------------------------------------------------------------------------------------------------------- for the script


def _data(found: Sequence[Group]) -> dict[str, Any]:
    """What page.js draws; see there."""
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
