"""The tables of results/README.md: the paper's claims and gains, under both profiles side by side.

    python results/profiles.py

writes the tables into the page, between their marks, and draws profiles.png, the gain of each configuration under one
profile over that under the other. tests/test_results.py holds the page to the runs.

Intervals are those of reports: a configuration and a seed are both random (varangian/study/report/statistics.py). Of a
share, the value of a pair is 1 or 0.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from varangian.study.outcomes import Outcome, read_runs
from varangian.study.paper import CLAIMS, COSTLY, Pair, account, verdicts
from varangian.study.report import style
from varangian.study.report.statistics import estimate, summarize

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
TABLES = {"described": HERE / "fashion-mnist/runs.csv", "published": HERE / "fashion-mnist-published/runs.csv"}
ASKED = {
    "C1": "where an attack costs at least 20 points, momentum at the workers always raises the accuracy",
    "C2": "and brings back at least 20 points in over 60 % of these cases",
    "C3": "it lowers the accuracy in 0.23 % of pairs, all of them Krum under Empire",
    "C4a": "attacks cost at least 20 points in 25.8 % of fully connected runs",
    "C7": "no additional computation",
}
PAPER = {"C1": "100 %", "C2": "over 60 %", "C3": "0.23 % (4 of 1,760)", "C4a": "25.8 %", "C7": "none"}
RULES = {
    "multi-krum": "Multi-Krum", "median": "median", "trimmed-mean": "trimmed mean",
    "phocas": "Phocas", "meamed": "MeaMed", "bulyan": "Bulyan",
}  # fmt: skip


CLAIM = {claim.id: claim for claim in CLAIMS}
costly = CLAIM["C1"].of
# Of each claim that is a share: which of the pairs that it speaks of count.
SHARES: dict[str, Callable[[Pair], bool]] = {
    "C1": lambda pair: pair.gain() > 0,
    "C2": lambda pair: pair.gain() >= COSTLY,
    "C3": lambda pair: pair.gain() < 0,
    "C4a": costly,
}


def configuration(pair: Pair) -> str:
    return replace(pair.experiment, seed=0).digest


def between(low: float | None, high: float | None, least: float = -100.0) -> str:
    if low is None or high is None:
        return ""
    return f"{max(low, least):.1f} to {min(high, 100.0):.1f}".replace("-", "−")


def share(pairs: Sequence[Pair], counts: Callable[[Pair], bool]) -> tuple[str, str]:
    """How many, and the interval."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for pair in pairs:
        values[configuration(pair)][pair.experiment.seed] = 100.0 * counts(pair)
    found = estimate(list(values.values()))
    number = sum(counts(pair) for pair in pairs)
    return f"{found.mean:.1f} % ({number} of {len(pairs)})", between(found.low, found.high, 0.0)


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def accuracies(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """At the server and at the workers, in %."""
    return [100 * p.server.max_accuracy for p in pairs], [100 * p.worker.max_accuracy for p in pairs]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def claims(pairs: dict[str, list[Pair]]) -> str:
    judged = {name: {v.claim.id: v for v in verdicts(found)} for name, found in pairs.items()}
    rows = []
    for claim, text in ASKED.items():
        row = [f"**{claim}** {text}", PAPER[claim]]
        for name, found in pairs.items():
            verdict = judged[name][claim]
            if claim in SHARES:
                number, interval = share([p for p in found if CLAIM[claim].of(p)], SHARES[claim])
                said = number + (f", {interval}" if interval else "")
            else:
                assert verdict.finding is not None
                said = verdict.finding.ours.split(" ×")[0] + " times the time of a run"
            row.append(f"{said}: *{verdict.word}*")
        rows.append(row)
    return table(("claim", "the paper", *pairs), rows)


def gains(pairs: dict[str, list[Pair]]) -> str:
    rows = []
    for f in (24, 12):
        for rate in (0.5, 0.02):
            for attack in ("little", "empire"):
                row = [f"{f} of 51, {rate:g}, {attack.capitalize()}"]
                for found in pairs.values():
                    some = [
                        p
                        for p in found
                        for e in (p.experiment,)
                        if (e.byzantine, e.learning_rate, e.attack) == (f, rate, attack)
                    ]
                    means = [fmean(values) for values in accuracies(some)]
                    s = summarize(some)
                    row += ["{:.1f} → {:.1f}".format(*means), f"{signed(s.mean)} ({between(s.low, s.high)})"]
                rows.append(row)
    row = ["all"]
    for found in pairs.values():
        s = summarize(found)
        row += ["", f"{signed(s.mean)} ({between(s.low, s.high)})"]
    head = ["Byzantine, learning rate, attack"]
    for name in pairs:
        head += [f"{name}: server → workers", "gain"]
    return table(head, [*rows, row])


def rules(pairs: dict[str, list[Pair]]) -> str:
    """By rule: gain, pairs lower."""
    rows = []
    for rule, title in RULES.items():
        row = [title]
        for found in pairs.values():
            for attack in ("little", "empire"):
                some = [p for p in found if (p.experiment.rule, p.experiment.attack) == (rule, attack)]
                lower = sum(p.gain() < 0 for p in some)
                row.append(signed(summarize(some).mean) + (f" ({lower} of {len(some)} lower)" if lower else ""))
        rows.append(row)
    return table(["rule", *(f"{name}, {attack}" for name in pairs for attack in ("Little", "Empire"))], rows)


def exceptions(pairs: dict[str, list[Pair]]) -> str:
    """Each configuration that has a pair which is lower, or costly and not raised."""
    rows = []
    for name, found in pairs.items():
        by: dict[str, list[Pair]] = defaultdict(list)
        for pair in found:
            by[configuration(pair)].append(pair)
        for some in by.values():
            lower = [p for p in some if p.gain() < 0]
            kept = [p for p in some if costly(p) and p.gain() <= 0]
            if not lower and not kept:
                continue
            e = some[0].experiment
            places = [f"{min(values):.1f} to {max(values):.1f}" for values in accuracies(some)]
            kind = "Nesterov" if e.nesterov else "classical"
            rows.append([
                name, f"{RULES[e.rule]}, {(e.attack or '').capitalize()}",
                f"{e.byzantine} of 51, {e.learning_rate:g}, {kind}", f"{len(lower)} of {len(some)}",
                signed(min(p.gain() for p in some)), str(len(kept)) if kept else "", " → ".join(places),
            ])  # fmt: skip
    head = ("profile", "rule, attack", "Byzantine, rate, momentum", "lower", "least gain", "costly, not raised",
            "server → workers")  # fmt: skip
    return table(head, rows)


def references(outcomes: dict[str, list[Outcome]]) -> str:
    rows = []
    for workers in (27, 39):
        for rate in (0.5, 0.02):
            row = [f"{workers} workers, {rate:g}"]
            for found in outcomes.values():
                some = [
                    o.max_accuracy
                    for o in found
                    if o.experiment.attack is None
                    and (o.experiment.workers, o.experiment.learning_rate) == (workers, rate)
                ]
                row.append(f"{100 * sum(some) / len(some):.1f}")
            rows.append(row)
    return table(("without attack", *outcomes), rows)


# What the published profile does otherwise, as settings of the described one: titles, and clip_mode and rule.
KRUM = "neighbours=n-f-1,distance=plain,ties=position"
BULYAN = "base=multi-krum,selection=frozen,distance=plain,even=lower,ties=position"
ONE_AT_A_TIME = {
    "gradients clipped to norm 1, not 2": ("unit", "{rule}"),
    "Krum with one neighbour more": ("norm", "multi-krum(neighbours=n-f-1)"),
    "plain distances, not squared": ("norm", "{rule}(distance=plain)"),
    "Bulyan of Multi-Krum, its scores not renewed": ("norm", "bulyan(base=multi-krum,selection=frozen)"),
    "all that the rule does otherwise": ("norm", "{all}"),
    "the rule and the clipping": ("unit", "{all}"),
}
PLACES_THERE = (("multi-krum", 12, 0.5), ("multi-krum", 24, 0.02), ("bulyan", 12, 0.5))
SEEDS_THERE = (1, 2, 3)


def between_profiles(pairs: dict[str, list[Pair]], others: list[Pair]) -> str:
    """What becomes of three configurations where the profiles differ most, one difference at a time."""

    def cell(found: Sequence[Pair], rule: str, f: int, rate: float, clip: str | None) -> str:
        some = [
            p
            for p in found
            for e in (p.experiment,)
            if (e.rule.replace(" ", ""), e.byzantine, e.learning_rate, e.attack) == (rule, f, rate, "empire")
            and (clip is None or (e.clip_mode or "norm") == clip)
            and not e.nesterov
            and e.seed in SEEDS_THERE
        ]
        if not some:
            return ""
        assert len(some) == len(SEEDS_THERE), (rule, f, rate, clip, len(some))
        server, worker = (fmean(values) for values in accuracies(some))
        return f"{server:.1f} → {worker:.1f} ({signed(worker - server)})"

    rows = [["described", *(cell(pairs["described"], *place, None) for place in PLACES_THERE)]]
    for title, (clip, text) in ONE_AT_A_TIME.items():
        row = [title]
        for rule, f, rate in PLACES_THERE:
            everything = f"{rule}({KRUM if rule == 'multi-krum' else BULYAN})"
            spelt = text.format(rule=rule, all=everything)
            row.append(cell(others, spelt, f, rate, clip) if spelt.startswith(rule) else "")
        rows.append(row)
    rows.append(["published", *(cell(pairs["published"], *place, None) for place in PLACES_THERE)])
    titles = [f"{RULES[rule]}, {f} of 51, rate {rate:g}" for rule, f, rate in PLACES_THERE]
    return table(["Empire, classical momentum", *titles], rows)


MARKERS = {"multi-krum": "s", "median": "o", "trimmed-mean": "^", "phocas": "D", "meamed": "v", "bulyan": "P"}


def figure(pairs: dict[str, list[Pair]]) -> bytes:
    """The mean gain of each configuration: described along, published up."""
    gains: dict[tuple[object, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, found in pairs.items():
        for p in found:
            e = p.experiment
            key = (e.rule, e.attack, e.byzantine, e.learning_rate, e.nesterov)
            gains[key][name].append(p.gain())
    with style.house():
        drawn = Figure(figsize=(4.6, 4.3), layout="constrained")
        panel = drawn.subplots()
        for (rule, attack, *_), by in gains.items():
            colour = style.WORKER if attack == "little" else style.SERVER
            panel.plot(fmean(by["described"]), fmean(by["published"]), MARKERS[str(rule)], color=colour, markersize=4.5)
        ends = (-5, 50)
        panel.plot(ends, ends, color=style.SOFT, linewidth=0.6, zorder=0)
        for line in (panel.axhline, panel.axvline):
            line(0, color=style.SOFT, linewidth=0.6, zorder=0)
        panel.set(
            xlim=ends, ylim=ends, xlabel="gain, profile described (points)", ylabel="gain, profile published (points)"
        )
        panel.set_title("What momentum at the workers brings, by profile", loc="left", fontweight="bold")
        handles = [
            Line2D([], [], color="#444444", marker=m, linestyle="none", markersize=4.5) for m in MARKERS.values()
        ]
        names = list(RULES.values())
        for colour, name in ((style.WORKER, "under Little"), (style.SERVER, "under Empire")):
            handles.append(Line2D([], [], color=colour, marker="o", linestyle="none", markersize=4.5))
            names.append(name)
        panel.legend(handles, names, loc="lower right", bbox_to_anchor=(1, 0.12), fontsize=7, frameon=False)
        buffer = io.BytesIO()
        drawn.savefig(buffer, dpi=200, metadata={"Software": ""})
    return buffer.getvalue()


def tables() -> dict[str, str]:
    outcomes = {name: read_runs(path) for name, path in TABLES.items()}
    pairs = {name: account(found).pairs for name, found in outcomes.items()}
    others = account(read_runs(HERE / "between-profiles/runs.csv")).pairs
    return {
        "claims": claims(pairs),
        "gains": gains(pairs),
        "references": references(outcomes),
        "rules": rules(pairs),
        "exceptions": exceptions(pairs),
        "between": between_profiles(pairs, others),
    }


def filled(page: str, made: dict[str, str]) -> str:
    """The page with the tables between their marks."""
    for name, text in made.items():
        pattern = re.compile(rf"(<!-- {name}: made by profiles.py -->\n)(.*?)(<!-- until here -->)", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise SystemExit(f"{PAGE.name} must hold the marks of {name} once.")
        page = pattern.sub(lambda found, text=text: found[1] + text + "\n" + found[3], page)
    return page


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text("utf-8"), tables()), "utf-8")
    pairs = {name: account(read_runs(path)).pairs for name, path in TABLES.items()}
    (HERE / "profiles.png").write_bytes(figure(pairs))


if __name__ == "__main__":
    main()
