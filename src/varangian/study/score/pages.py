"""Score cards as pages: one of each card, one of all, the same table as text, and figures for paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ...runs.files import make_folder, write_whole
from ..report import style
from ..report.figures.scores import by_attack, by_score
from ..report.page import filled, script
from .card import NONE, STORED, Accuracy, Breakdown, Card, Settings, place
from .folder import CARDS, file_of

INDEX, README, TABLE, FIGURES = "index.html", "README.md", "table.md", "figures"
COLUMNS = 60  # numbers of attackers in a table
OURS = "<!-- made by varangian score, which replaces it -->"
TONES = {"SOUND": "holds", "WEAK": "fails", "BROKEN": "fails", "not robust": "fails"}
RANK_BY = (
    "the accuracy under the attack that is worst for the rule, in %, the mean over equal and unequal data and over "
    "momentum at the server and at the workers"
)


@dataclass(frozen=True)
class Tile:
    """A cell of a table: its text, what stands small below it and behind it, its shade, and what it is sorted by."""

    text: str
    css: str = ""
    tip: str = ""
    range: str = ""
    order: str = ""
    mark: bool = False


NOTHING = Tile("-", "gone", "not measured")
NEVER = "~"  # sorts behind all numbers


def page_of(card: Card) -> str:
    """The name of the page of a card, beside its JSON."""
    return file_of(card).removesuffix(".json") + ".html"


def write_page(card: Card, folder: Path, *, cards: Iterable[Card] = (), command: str = "", index: str = "") -> Path:
    """The page of one card in a folder, one file that needs no network; its path.

    Args:
        card: of a rule, a mixing or an attack.
        folder: where it goes; what was there under its name is replaced.
        cards: those among which it stands.
        command: what made it, to stand on the page.
        index: where the page of all cards is, from there.
    """
    page = filled("score.html", **_page(card, [*cards]), command=command, index=index)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / page_of(card)
    write_whole(path, lambda file: file.write(page.encode()))
    return path


def write_index(cards: Iterable[Card], folder: Path, *, among: Iterable[Card] = (), command: str = "") -> Path:
    """``index.html`` with all cards, in ``cards/`` the page of each, ``README.md`` with the table, and ``figures/``;
    its path. Where somebody else's ``README.md`` is there, it stays, and the table is ``table.md``.

    Args:
        cards: what stands there.
        folder: where it goes; what was there under these names is replaced.
        among: others that count where a place is said.
        command: what made it, to stand on the page.

    Raises:
        ValueError: there is no card.
    """
    every = ordered(cards)
    if not every:
        raise ValueError("there are no score cards to make a page of.")
    others = [*every, *(card for card in among if card.name not in {c.name for c in every})]
    inner, pictures = make_folder(folder, CARDS), make_folder(folder, FIGURES)
    for card in every:
        write_page(card, inner, cards=others, index=f"../{INDEX}")
    rules = [card for card in every if card.kind != "attack"]
    if any(card.accuracies for card in rules):
        style.save(by_score(rules), pictures / "scores")
        style.save(by_attack(rules, strongest(rules)), pictures / "attacks")
    text = readme(every, others, command)
    beside = README if _is_ours(folder / README) else TABLE
    write_whole(folder / beside, lambda file: file.write(text.encode()))
    page = filled("scores.html", **_index(every, others), beside=beside, command=command, script=script("scores.js"))
    write_whole(folder / INDEX, lambda file: file.write(page.encode()))
    return folder / INDEX


def _is_ours(path: Path) -> bool:
    """Whether a file is not there, or was made here."""
    if path.is_symlink() or not path.exists():
        return not path.is_symlink()
    with open(path, "rb") as file:
        return file.readline(200).decode(errors="replace").strip() == OURS


def readme(cards: Sequence[Card], others: Sequence[Card] | None = None, command: str = "") -> str:
    """The table with what it is a table of, as Markdown."""
    rules = [card for card in cards if card.kind != "attack"]
    machines = dict.fromkeys(card.cost.machine for card in cards if card.cost.machine)
    seconds = sum(card.cost.seconds for card in cards)
    heads = _heads(cards[0].settings) if rules else []
    heads += _ATTACK_HEADS if len(rules) < len(cards) else []
    pictures = any(card.accuracies for card in rules)
    lines = [
        OURS,
        f"# Score cards: {_counted(cards)}",
        "",
        f"All of them, sortable, and a page of each: [{INDEX}]({INDEX}); as JSON: [{STORED}]({STORED}).",
        _setting(cards[0].settings),
        *(["", f"    {command}"] if command else []),
        *(["", f"![What the worst attack leaves each rule]({FIGURES}/scores.png)"] if pictures else []),
        "",
        table(cards, others).rstrip("\n"),
        "",
        *(f"- **{head.text}**: {head.tip}" for head in heads),
        *(["", f"![Every rule under every attack]({FIGURES}/attacks.png)"] if pictures else []),
        "",
        f"Made in {seconds / 60:.0f} minutes of a core, on {'; '.join(machines) or 'a machine that is not known'}.",
    ]
    return "\n".join(lines) + "\n"


def _counted(cards: Sequence[Card]) -> str:
    attacks = sum(card.kind == "attack" for card in cards)
    return " and ".join(
        f"{number} {what}{'' if number == 1 else 's'}"
        for number, what in ((len(cards) - attacks, "rule"), (attacks, "attack"))
        if number
    )


def ordered(cards: Iterable[Card]) -> list[Card]:
    """Rules by score, those without one last; then attacks by how many rules they break."""

    def key(card: Card) -> tuple[bool, float, str]:
        if card.kind == "attack":
            return True, -len(_hit(card)), card.name
        return False, -(-1.0 if card.score is None else card.score), card.name

    return sorted(cards, key=key)


def strongest(cards: Sequence[Card]) -> list[str]:
    """The attacks that the cards of rules were trained under, from the one on that leaves least to all of them."""
    found: dict[str, list[float]] = {}
    for card in cards:
        for a in card.accuracies:
            if a.attack is not None:
                found.setdefault(a.attack, []).append(a.mean)
    return sorted(found, key=lambda attack: (fmean(found[attack]), attack))


def table(cards: Iterable[Card], others: Sequence[Card] | None = None) -> str:
    """All cards as a Markdown table, rules and then attacks; their places are those among ``others``."""
    every = ordered(cards)
    among = every if others is None else others
    rules = [card for card in every if card.kind != "attack"]
    attacks = [card for card in every if card.kind == "attack"]
    lines = []
    if rules:
        heads = ["place", "rule", "verdict", *(head.text for head in _heads(rules[0].settings))]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for card in rules:
            cells = [tile.text for tile in _measures(card)]
            lines.append(_row([_place(card, among), f"`{card.name}`", _word(card)[0], *cells]))
    if attacks:
        heads = ["attack", "verdict", *(head.text for head in _ATTACK_HEADS)]
        lines += ["", _row(heads), _row(["---"] * len(heads))]
        for card in attacks:
            lines.append(_row([f"`{card.name}`", _word(card)[0], *(tile.text for tile in _effects(card))]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


# ---------------------------------------------------------------------------------------------------------- all of them


@dataclass(frozen=True)
class _Head:
    text: str
    tip: str


def _heads(settings: Settings) -> list[_Head]:
    """The columns of the table of rules; :func:`_measures` answers their values."""
    n, f = settings.n, settings.f
    least = f / (n - 2 * f) if n > 2 * f else math.inf
    return [
        _Head("score", RANK_BY),
        *(
            _Head(f"{_short(p)}, {_at(place)}", f"accuracy in % under the worst attack: {p}, momentum at {_at(place)}")
            for p, place in _cells(settings)
        ),
        _Head("no attack", "accuracy in % where nobody attacks, the mean over the same four settings"),
        _Head(
            "undone by", f"the least number of attackers of {n} found to move it without bound or to stop it, told {f}"
        ),
        _Head("κ ≥", f"robustness coefficient that was found with f = {f} of {n}; the least possible is {least:.2f}"),
        _Head(
            "price",
            f"points lost without attack when told {f} instead of 0, at worst over how data are dealt",
        ),
        _Head("noise", f"its mean squared error on noise, relative to the mean's, told {f}"),
        _Head("time", "of one aggregation, in plain means of the same vectors; the largest that was timed"),
    ]


def _measures(card: Card) -> list[Tile]:
    s = card.settings
    calm = [a.mean for a in card.accuracies if a.attack is None]
    told = next((b for b in card.breakdown if b.f == s.f), None)
    kappa = next((k for k in card.kappa if k.f == s.f), None)
    noise = next((e for e in card.noise if e.f == s.f), None)
    price = _price(card)
    time = max(card.cost.time, key=lambda t: (t.n * t.d, t.d), default=None)
    return [
        NOTHING if card.score is None else _shade(card.score / 100, decimals=1),
        *(_tile(card.lowest(*cell), named=True) for cell in _cells(s)),
        _shade(fmean(calm)) if calm else NOTHING,
        NOTHING if told is None else _point(told),
        NOTHING
        if kappa is None
        else _number(kappa.found, "" if kappa.proved is None else f"proved ≤ {kappa.proved:.3g}"),
        NOTHING if price is None else _number(100 * price, "points", ".1f"),
        NOTHING if noise is None else _number(noise.error),
        NOTHING if time is None else _number(time.relative, f"n = {time.n}, d = {time.d:,}"),
    ]


_ATTACK_HEADS = [
    _Head("breaks", "rules that it breaks with some f, of those that were tried"),
    _Head("from f", "the least f with which it breaks one"),
    _Head("strongest against", "the rule of which it leaves least"),
]


def _effects(card: Card) -> list[Tile]:
    rules, hit = dict.fromkeys(b.rule for b in card.breaks), _hit(card)
    least = min((b.f for b in card.breaks if b.f is not None), default=None)
    worst = min(card.breaks, key=lambda b: b.accuracy - b.calm, default=None)
    share = len(hit) / len(rules) if rules else 0.0
    return [
        Tile(f"{len(hit)} of {len(rules)}", f"d{min(9, int(10 * share))}", ", ".join(hit), order=f"{share}"),
        NOTHING if least is None else Tile(f"{least}", order=f"{least}"),
        NOTHING
        if worst is None
        else Tile(
            f"{worst.rule}: {100 * worst.accuracy:.0f} instead of {100 * worst.calm:.0f} %", order=f"{worst.accuracy}"
        ),
    ]


def _hit(card: Card) -> list[str]:
    return list(dict.fromkeys(b.rule for b in card.breaks if b.f is not None))


def _index(cards: Sequence[Card], others: Sequence[Card]) -> dict[str, Any]:
    """What scores.html asks for."""
    rules = [card for card in cards if card.kind != "attack"]
    attacks = [card for card in cards if card.kind == "attack"]
    columns = strongest(rules)
    settings = cards[0].settings
    return {
        "counted": _counted(cards),
        "setting": _setting(settings),
        "rank_by": RANK_BY,
        "heads": _heads(settings),
        "rules": [
            _named(card)
            | {"place": _place(card, others) or "-", "order": _place(card, others), "cells": _measures(card)}
            for card in rules
        ],
        "over": _over(settings),
        "matrix_columns": [_short(attack) for attack in columns],
        "matrix": [(c.name, f"{CARDS}/{page_of(c)}", _across(c, columns)) for c in rules if c.accuracies],
        "attack_heads": _ATTACK_HEADS,
        "attacks": [_named(card) | {"cells": _effects(card)} for card in attacks],
    }


def _named(card: Card) -> dict[str, Any]:
    word, sentence, tone = _word(card)
    return {"name": card.name, "href": f"{CARDS}/{page_of(card)}", "word": word, "sentence": sentence, "tone": tone}


def _across(card: Card, attacks: Sequence[str]) -> list[Tile]:
    found: dict[str | None, list[Accuracy]] = {}
    for a in card.accuracies:
        found.setdefault(a.attack, []).append(a)
    return [_shade(fmean(a.mean for a in found[attack])) if attack in found else NOTHING for attack in attacks]


def _place(card: Card, cards: Sequence[Card]) -> str:
    where = place(card, cards)
    return "" if where is None else f"{where.place}"


# ----------------------------------------------------------------------------------------------------------------- one


def _page(card: Card, cards: Sequence[Card]) -> dict[str, Any]:
    """What score.html asks for."""
    s = card.settings
    word, sentence, tone = _word(card)
    rows, daggers = _attacks(card)
    columns = sorted({a.f for a in card.price})
    noise = next((e for e in reversed(card.noise) if e.f == s.f), None)
    tested = card.breakdown
    return {
        "card": card,
        "what": _what(card),
        "word": word,
        "sentence": sentence,
        "tone": tone,
        "more": card.verdict[1:],
        "tiles": _tiles(card, cards),
        "rank_by": RANK_BY,
        "among": _among(card, cards),
        "seeds": "one seed" if len(s.seeds) == 1 else f"{len(s.seeds)} seeds",
        "intervals": any(a.low is not None for a in card.accuracies),
        "setting": _setting(s),
        "cells": [f"{_short(p)}, {_at(place)}" for p, place in card.cells],
        "attacks": rows,
        "daggers": daggers,
        "undone": [_undone(b) for b in tested],
        "undone_n": tested[0].n if tested else 0,
        "undone_columns": range(1, min(tested[0].n, COLUMNS + 1)) if tested else (),
        "kappas": [
            (
                f"{k.n}", f"{k.f}", _written(k.found), f"{k.least:.3g}",
                "-" if not k.least else _written(k.found / k.least), "-" if k.proved is None else f"{k.proved:.3g}",
            )
            for k in card.kappa
        ],
        "worst": _worst(card),
        "price_columns": columns,
        "prices": _prices(card, columns),
        "noise": "" if noise is None else f"{_written(noise.error)} times, told {noise.f} of {noise.n},",
        "n": s.n,
        "break_columns": list(dict.fromkeys(b.partition for b in card.breaks)),
        "breaks": _breaks(card),
        "times": _times(card),
        "machine": card.cost.machine and f"On {card.cost.machine}, one thread.",
        "contract": card.conformance,
        "beside": f"Beside this page: {file_of(card)}.",
    }  # fmt: skip


def _what(card: Card) -> str:
    whose = "" if card.ours else ", code of somebody's own"
    if card.kind == "attack":
        return f"Score card of an attack{whose}."
    mixing = " behind mixing" if card.pre else ""
    kind = (
        f"the mixing {', '.join(card.pre)}, with {card.rule} behind it" if card.kind == "mixing" else f"a rule{mixing}"
    )
    most = (
        f"told of at most {card.declared} attackers of {card.settings.n}"
        if card.declared
        else "may be told of no attacker"
    )
    return f"Score card of {kind}{whose}; {most}."


def _word(card: Card) -> tuple[str, str, str]:
    """Of the verdict's first sentence: the word that it begins with, the rest, and its colour."""
    first = card.verdict[0] if card.verdict else "NOT JUDGED: the card has no verdict."
    word, colon, rest = first.partition(": ")
    if not colon or len(word) > 20:
        word, rest = "JUDGED", first
    return word, rest, TONES.get(word, "untested")


def _tiles(card: Card, cards: Sequence[Card]) -> list[tuple[str, str]]:
    s = card.settings
    if card.kind == "attack":
        hit, rules = _hit(card), {b.rule for b in card.breaks}
        least = min((b.f for b in card.breaks if b.f is not None), default=None)
        found = [(f"{len(hit)} of {len(rules)}", "rules are broken by it, with some f")]
        return found if least is None else [*found, (f"f = {least}", f"of {s.n}: the least with which it breaks one")]
    found = []
    where = place(card, cards)
    if card.score is not None:
        among = f"; place {where.place} of {where.of}" if where is not None and where.of > 1 else ""
        found.append((f"{card.score:.1f}", f"score, in % accuracy{among}"))
    told = next((b for b in card.breakdown if b.f == s.f), None)
    if told is not None:
        found.append((f"{_point(told).text} of {told.n}", f"attackers undo it, told to expect {told.f}"))
    kappa = next((k for k in card.kappa if k.f == s.f), None)
    if kappa is not None:
        found.append(
            (f"≥ {_written(kappa.found)}", f"κ with f = {kappa.f} of {kappa.n}; least possible {kappa.least:.2f}")
        )
    if card.worst is not None:
        found.append((_written(card.worst.damage), "spreads off the honest mean at the worst vector found, in a step"))
    price = _price(card)
    if price is not None:
        found.append((f"{100 * price:.1f}", f"points lost without attack, told to expect {s.f} instead of nobody"))
    time = max(card.cost.time, key=lambda t: (t.n * t.d, t.d), default=None)
    if time is not None:
        found.append((f"{_written(time.relative)} ×", f"the time of a plain mean; n = {time.n}, d = {time.d:,}"))
    return found


def _among(card: Card, cards: Sequence[Card]) -> Mapping[str, Any] | None:
    """The scores of those that were measured alike, on a line of 1,000; None without any."""
    where = place(card, cards)
    if where is None or card.score is None or where.of < 2:
        return None
    others = [
        (f"{10 * c.score:.0f}", f"{c.name}: {c.score:.1f}")
        for c in cards
        if c.settings == card.settings and c.name != card.name and c.score is not None
    ]
    label = f"{card.name[:40]}: {card.score:.1f}, place {where.place} of {where.of}"
    return {
        "mine": f"{10 * card.score:.0f}",
        "others": others,
        "ticks": range(0, 101, 20),
        "label": label,
    }


def _attacks(card: Card) -> tuple[list[dict[str, Any]], str]:
    """A row an attack, no attack first and then from the worst on; and what stopped trainings, in words."""
    rows: dict[str | None, dict[tuple[str, str], Accuracy]] = {}
    for a in card.accuracies:
        rows.setdefault(a.attack, {})[a.partition, a.momentum_at] = a
    means = {attack: fmean(a.mean for a in row.values()) for attack, row in rows.items()}
    found = [
        {
            "name": attack or "no attack",
            "calm": attack is None,
            "tiles": [_tile(rows[attack].get(cell)) for cell in card.cells],
            "mean": _shade(means[attack]),
        }
        for attack in sorted(rows, key=lambda name: (name is not None, means[name], name or ""))
    ]
    why: dict[str, list[str]] = {}
    for a in card.accuracies:
        if a.stopped:
            names = why.setdefault(a.why or "for no reason given", [])
            if (a.attack or NONE) not in names:
                names.append(a.attack or NONE)
    return found, "; ".join(f"{', '.join(names)}: {text.rstrip('.')}" for text, names in why.items())


def _undone(b: Breakdown) -> dict[str, Any]:
    tiles = []
    for count in range(1, min(b.n, COLUMNS + 1)):
        moved = b.moved is not None and count >= b.moved
        refused = b.refused is not None and count >= b.refused
        if not (moved or refused):
            tiles.append(("holds", "✓" if count <= b.f else ""))
        elif count <= b.f:
            tiles.append(("fails", "✗"))
        else:
            tiles.append(("gone", "∞" if moved else "-"))
    return {"f": b.f, "tiles": tiles, "how": b.how}


def _point(b: Breakdown) -> Tile:
    if b.point is None:
        return Tile("none", "", f"no number of attackers under {b.n} was found to undo it", order=f"{b.n}")
    return Tile(f"{b.point}", "" if b.holds else "fails", b.how, order=f"{b.point}")


def _worst(card: Card) -> str:
    w = card.worst
    if w is None:
        return ""
    return (
        f"The worst vector found for one step: {w.f} of {w.n} send it, on the line of {w.direction}, "
        f"{_written(w.distance)} spreads from the honest mean, and move the answer by {_written(w.damage)} spreads."
    )


def _price(card: Card) -> float | None:
    """The accuracy that is lost without attack where f are expected instead of nobody: the most over how data were
    dealt."""
    none = {a.partition: a.mean for a in card.price if a.f == 0}
    lost = [none[a.partition] - a.mean for a in card.price if a.f == card.settings.f and a.partition in none]
    return max(lost, default=None)


def _prices(card: Card, columns: Sequence[int]) -> list[tuple[str, list[Tile]]]:
    found = {(a.partition, a.f): a for a in card.price}
    return [(p, [_tile(found.get((p, f))) for f in columns]) for p in dict.fromkeys(a.partition for a in card.price)]


def _breaks(card: Card) -> list[tuple[str, list[Tile]]]:
    columns = list(dict.fromkeys(b.partition for b in card.breaks))
    found = {(b.rule, b.partition): b for b in card.breaks}
    rows = []
    for rule in dict.fromkeys(b.rule for b in card.breaks):
        tiles = []
        for partition in columns:
            b = found.get((rule, partition))
            if b is None:
                tiles.append(replace(NOTHING, order=NEVER))
                continue
            range_ = f"{100 * b.accuracy:.0f} of {100 * b.calm:.0f}"
            if b.f is None:
                tiles.append(
                    Tile("not", "holds", f"with up to {b.most}, the most that it may be told", range_, order=NEVER)
                )
            else:
                tiles.append(Tile(f"f = {b.f}", "fails", f"of at most {b.most}", range_, order=f"{b.f:05d}"))
        rows.append((rule, tiles))
    return sorted(rows, key=lambda row: (min(t.order for t in row[1]), row[0]))


def _times(card: Card) -> list[tuple[str, ...]]:
    memory = {(m.n, m.d): m for m in card.cost.memory}
    rows = []
    for t in card.cost.time:
        m = memory.get((t.n, t.d))
        beside = ("-", "-") if m is None else (_bytes(m.bytes), f"{m.relative:.2g}")
        rows.append((f"{t.n}", f"{t.d:,}", _seconds(t.seconds), _written(t.relative), *beside))
    return rows


# ---------------------------------------------------------------------------------------------------------- in words


def _cells(settings: Settings) -> list[tuple[str, str]]:
    return [(p, m) for p in settings.partitions for m in settings.places]


def _short(spec: str) -> str:
    """Without options."""
    return spec.partition("(")[0]


def _at(place: str) -> str:
    return "workers" if place == "worker" else place


def _over(settings: Settings) -> str:
    places = " and ".join(map(_at, settings.places))
    return f"{' and '.join(settings.partitions)} data, momentum at {places}, and the seeds"


def _setting(s: Settings) -> str:
    seeds = "one seed" if len(s.seeds) == 1 else f"{len(s.seeds)} seeds"
    return (
        f"Trainings: {s.dataset}, {s.model}, {s.n} workers of whom {s.f} attack, {s.steps} steps of {s.batch_size} "
        f"examples a worker, learning rate {s.learning_rate:g}, momentum {s.momentum:g}, {seeds}."
    )


def _shade(value: float, tip: str = "", decimals: int = 0) -> Tile:
    """An accuracy in [0, 1], in ten steps of a hue."""
    return Tile(f"{100 * value:.{decimals}f}", f"d{max(0, min(9, int(10 * value)))}", tip, order=f"{value:.4f}")


def _tile(a: Accuracy | None, named: bool = False) -> Tile:
    if a is None:
        return NOTHING
    each = "seeds: " + ", ".join(f"{100 * v:.1f}" for v in a.seeds)
    tip = f"{a.attack or 'no attack'}; {each}" + (f"; {a.stopped} ended early: {a.why}" if a.stopped else "")
    range_ = "" if a.low is None or a.high is None else f"{100 * max(a.low, 0):.0f} to {100 * min(a.high, 1):.0f}"
    shade = _shade(a.mean)
    below = _short(a.attack or "") if named else range_
    return Tile(shade.text, shade.css, tip, below, shade.order, bool(a.stopped))


def _number(value: float, tip: str = "", form: str = "") -> Tile:
    return Tile(format(value, form) if form else _written(value), "", tip, order=f"{min(value, 1e300):.6g}")


def _written(value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def _bytes(value: int) -> str:
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"
