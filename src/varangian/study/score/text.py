"""A card as plain text, of at most 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator

from .card import Accuracy, Card, place

WIDTH = 80
FAR = 1e4  # spreads that are said to be as many as one likes
LABEL = 13  # columns of what stands at the left


def text(card: Card, others: Iterable[Card] = ()) -> str:
    """One page: the verdict, then what it rests on, then what was not tried."""
    return "\n".join(line.rstrip() for line in _lines(card, list(others)))


def rank(card: Card, others: Iterable[Card]) -> str:
    """Where a card stands, and its score, in words; empty of attacks."""
    if card.kind == "attack":
        return ""
    if card.score is None:
        return "no score: not every training was tried"
    where = place(card, others)
    among = f"place {where.place} of {where.of}, " if where is not None and where.of > 1 else ""
    if not among:
        among = "no card of the package was measured alike: "
    return f"{among}score {card.score:.1f}"


def ranking(cards: Iterable[Card]) -> str:
    """Rules by score, those without one last; then attacks by how many rules they break."""
    found = list(cards)
    rules = sorted((c for c in found if c.kind != "attack"), key=lambda c: (-(c.score or -1.0), c.name))
    lines = []
    for card in rules:
        where = place(card, found)
        score = "" if card.score is None else f"{card.score:.1f}"
        at = "-" if where is None else where.place
        lines.append(f"{at:>3} {card.name:34.34}{score:>6}  {card.verdict[0].partition(':')[0]}")
    attacks = [c for c in found if c.kind == "attack"]
    attacks.sort(key=lambda c: (-len({b.rule for b in c.breaks if b.f is not None}), c.name))
    lines += [f"    {card.name:40.40}  {card.verdict[0].partition(':')[0]}" for card in attacks]
    return "\n".join(lines)


def _lines(card: Card, others: list[Card]) -> Iterator[str]:
    yield card.name
    if ranked := rank(card, others):
        yield ranked
    yield ""
    for sentence in card.verdict:
        yield from textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")
    yield ""
    for c in card.conformance:
        if c.failed:
            yield from _entry("contract", f"{c.subject}: {len(c.failed)} points do not hold")
            for f in c.failed:
                yield from _entry("", f"{f.check}: {f.promise}; {f.message}")
        else:
            left_out = f", not claimed: {', '.join(c.left_out)}" if c.left_out else ""
            yield from _entry("contract", f"{c.subject}: {len(c.passed)} points hold{left_out}")
    if card.kind == "attack":
        yield from _broken(card)
    else:
        yield from _of_rule(card)
    yield ""
    for u in card.untried:
        yield from _entry("not tried", f"{u.what}: {u.why}")
    s = card.settings
    trained = f"{s.dataset}, {s.model}, n = {s.n}, f = {s.f}, {s.steps} steps of {s.batch_size} examples a worker"
    yield from _entry("settings", f"{trained}, seeds {', '.join(map(str, s.seeds))}")
    yield from _entry("took", f"{card.cost.seconds:.0f} s on {card.cost.machine}")


def _entry(label: str, said: str) -> Iterator[str]:
    first = f"{label:{LABEL}}"
    yield from textwrap.wrap(
        said, WIDTH, initial_indent=first, subsequent_indent=" " * LABEL, break_on_hyphens=False, drop_whitespace=True
    )


def _of_rule(card: Card) -> Iterator[str]:
    if card.breakdown:
        yield ""
        n = card.breakdown[0].n
        yield f"{'breakdown':{LABEL}}{'expects f':>10}{'moved by':>10}{'no answer':>11}   of {n} vectors"
        for b in card.breakdown:
            moved, refused = (("none" if v is None else str(v)) for v in (b.moved, b.refused))
            broken = not b.holds and 0 < b.f <= card.declared
            yield f"{'':{LABEL}}{b.f:>10}{moved:>10}{refused:>11}{'   BROKEN' if broken else ''}"
    if card.kappa:
        yield ""
        yield f"{'kappa':{LABEL}}{'f':>10}{'found':>10}{'least':>11}{'proved':>10}"
        for k in card.kappa:
            proved = "-" if k.proved is None else f"{k.proved:.3g}"
            yield f"{'':{LABEL}}{k.f:>10}{_number(k.found):>10}{k.least:>11.2g}{proved:>10}"
    if card.worst is not None:
        w = card.worst
        yield ""
        far = "any number of" if w.damage > FAR else f"{w.damage:.2g}"
        away = "as far as they like" if w.damage > FAR else f"{w.distance:.2g} spreads from the honest mean"
        said = f"{w.f} of {w.n} on the line of {w.direction}, {away}, move the answer by {far} spreads"
        yield from _entry("worst vector", said)
    yield from _accuracies(card)
    yield from _prices(card)
    yield from _costs(card)


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.3g}"


SHORT = {"server": "server", "worker": "workers"}


def _accuracies(card: Card) -> Iterator[str]:
    cells = card.cells
    if not cells:
        return
    found = {(a.attack, a.partition, a.momentum_at): a for a in card.accuracies}
    partitions = list(dict.fromkeys(p for p, _ in cells))
    yield ""
    yield f"{'accuracy, %':26}" + "".join(f"{p:^26}" for p in partitions)
    yield f"{'  momentum at':26}" + "".join(f"{SHORT.get(m, m):^13}" for _, m in cells)
    lowest = {cell: card.lowest(*cell) for cell in cells}
    for attack in dict.fromkeys(a.attack for a in card.accuracies):
        row = f"  {attack or 'no attack':24.24}"
        for cell in cells:
            a = found.get((attack, *cell))
            row += f"{_mean(a) + ('<' if a is not None and a == lowest[cell] else ' '):^13}"
        yield row
    yield "  < the lowest; with half of a 95 % interval over the seeds"


def _mean(a: Accuracy | None) -> str:
    if a is None:
        return "-"
    half = "" if a.low is None or a.high is None else f" ±{50 * (a.high - a.low):.0f}"
    return f"{100 * a.mean:.0f}{half}{'!' if a.stopped else ''}"


def _prices(card: Card) -> Iterator[str]:
    if not card.price and not card.noise:
        return
    partitions = list(dict.fromkeys(a.partition for a in card.price))
    yield ""
    yield f"{'price':{LABEL}}{'expects f':>10}" + "".join(f"{p:>21}" for p in partitions) + f"{'error':>14}"
    noise = {n.f: n.error for n in card.noise}
    for f in sorted({a.f for a in card.price} | set(noise)):
        row = f"{'':{LABEL}}{f:>10}"
        for p in partitions:
            a = next((a for a in card.price if (a.f, a.partition) == (f, p)), None)
            row += f"{_mean(a):>21}"
        yield row + (f"{noise[f]:>7.2f} x mean" if f in noise else "")


def _costs(card: Card) -> Iterator[str]:
    if not card.cost.time:
        return
    memory = {(m.n, m.d): m.relative for m in card.cost.memory}
    yield ""
    yield f"{'cost':{LABEL}}{'n':>5}{'d':>12}{'time':>12}{'of mean':>12}{'memory of input':>18}"
    for t in card.cost.time:
        used = f"{100 * memory[t.n, t.d]:.0f} %" if (t.n, t.d) in memory else "-"
        yield f"{'':{LABEL}}{t.n:>5}{t.d:>12,}{1e3 * t.seconds:>9.3f} ms{t.relative:>10.1f} x{used:>18}"


def _broken(card: Card) -> Iterator[str]:
    partitions = list(dict.fromkeys(b.partition for b in card.breaks))
    if not partitions:
        return
    yield ""
    yield f"{'breaks':22}" + "".join(f"{p:^26}" for p in partitions)
    for rule in dict.fromkeys(b.rule for b in card.breaks):
        row = f"  {rule:20.20}"
        for p in partitions:
            b = next((b for b in card.breaks if (b.rule, b.partition) == (rule, p)), None)
            if b is not None:
                from_f = f"from f = {b.f}" if b.f is not None else f"not up to {b.most}"
                row += f"{f'{from_f}: {100 * b.accuracy:.0f} of {100 * b.calm:.0f} %':^26}"
        yield row
