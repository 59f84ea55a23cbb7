"""What a card comes to in plain words, by thresholds that stand here."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .card import Accuracy, Card

SOUND = 0.75
"""A rule is sound where, on equal data with momentum at the workers, it keeps under every attack three quarters of the
way from chance to its accuracy without."""
DEAR = 0.05
"""Protection is dear where accuracy without attack is five points below that of a rule that expects none."""
CHANCE = 0.1
NOTHING = 0.15
"""An accuracy below this is as good as chance."""


def verdict(card: Card) -> tuple[str, ...]:
    """Sentences, the gravest first. The first begins with BROKEN, "not robust", SOUND, WEAK or NOT SHOWN, of an attack
    with STRONG, MILD or HARMLESS."""
    return tuple(_of_attack(card) if card.kind == "attack" else _of_rule(card))


def kept(card: Card, attacked: Accuracy) -> float:
    """The share that is left under an attack of the way from chance to the accuracy without any; below 0 is worse than
    chance."""
    calm = card.calm(attacked.partition, attacked.momentum_at)
    way = (calm.mean if calm is not None else 1.0) - CHANCE
    return (attacked.mean - CHANCE) / way if way > NOTHING - CHANCE else 0.0


def _of_rule(card: Card) -> Iterator[str]:
    broken = [b for b in card.breakdown if not b.holds and 0 < b.f <= card.declared]
    told = next((b for b in card.breakdown if b.f == card.settings.f), None)
    failed = [f"{c.subject} fails {', '.join(f.check for f in c.failed)}" for c in card.conformance if c.failed]
    worst, best = card.worst_attack, card.lowest(card.settings.partitions[0], "worker")
    shown = bool(card.breakdown or card.trained)
    if card.declared == 0 and shown:
        yield "not robust: it may be told of no attacker, and claims nothing."
    elif broken:
        least = min(broken, key=lambda b: (b.point or 0, b.f))
        yield (f"BROKEN: told to expect {_many(least.f)} of {least.n}, it is undone by {least.point}: {least.how}.")
    elif failed:
        yield f"BROKEN: it does not keep its contract ({'; '.join(failed)})."
    elif worst is None:
        yield "NOT SHOWN: no training was tried."
    elif best is not None and kept(card, best) < SOUND:
        yield f"WEAK: {_taken(card, best)}."
    else:
        everywhere = kept(card, worst) >= SOUND
        where = "" if everywhere else " on equal data with momentum at the workers"
        yield f"SOUND: no attack that was tried takes more than a quarter of what it learns{where}."
        if not everywhere:
            yield f"elsewhere: {_taken(card, worst)}."
    if failed and (broken or (card.declared == 0 and shown)):
        yield f"contract: {'; '.join(failed)}."
    if (broken or card.declared == 0) and worst is not None and kept(card, worst) < SOUND:
        yield f"training: {_taken(card, worst)}."
    if told is not None and told.holds and card.declared:
        moved = "no number of attackers" if told.moved is None else _many(told.moved)
        refused = "" if told.refused is None else f", and {told.refused} make it refuse to answer"
        found = f"{moved} of {told.n} can move it without bound{refused}"
        yield f"breakdown: told to expect {told.f}, {found}."
    for k in card.kappa:
        if k.f == card.settings.f:
            much = "infinite" if math.isinf(k.found) else f"at least {k.found:.2g}"
            times = "" if math.isinf(k.found) or not k.least else f", {k.found / k.least:.1f} times the least possible"
            yield f"kappa: {much} at f = {k.f} of {k.n}{times}."
    dear = [(none.mean - a.mean, a) for none, a in _prices(card)]
    if dear and card.declared:
        loss, at = max(dear, key=lambda pair: pair[0])
        if loss >= DEAR:
            yield f"price: without attack, expecting {at.f} costs {100 * loss:.0f} points on {at.partition} data."
        else:
            yield "price: without attack, expecting attackers costs less than five points."


def _prices(card: Card) -> Iterator[tuple[Accuracy, Accuracy]]:
    none = {a.partition: a for a in card.price if a.f == 0}
    for a in card.price:
        if a.f > 0 and a.partition in none:
            yield none[a.partition], a


def _many(number: int) -> str:
    return f"{number} attacker{'' if number == 1 else 's'}"


def _taken(card: Card, a: Accuracy) -> str:
    calm = card.calm(a.partition, a.momentum_at)
    if calm is not None and calm.mean < NOTHING:
        return f"it learns nothing, also without attack{f' ({calm.why})' if calm.why else ''}"
    before = f" instead of {100 * calm.mean:.0f} %" if calm is not None else ""
    place = {"server": "momentum at the server", "worker": "momentum at the workers"}.get(a.momentum_at, a.momentum_at)
    return f"{a.attack} leaves {100 * a.mean:.0f} %{before} on {a.partition} data with {place}"


def _of_attack(card: Card) -> Iterator[str]:
    failed = [f.check for c in card.conformance for f in c.failed]
    if failed:
        yield f"BROKEN: it does not keep its contract ({', '.join(failed)})."
    rules = list(dict.fromkeys(b.rule for b in card.breaks))
    hit = list(dict.fromkeys(b.rule for b in card.breaks if b.f is not None))
    if not rules:
        yield "NOT SHOWN: it was tried against no rule."
        return
    least = min((b.f for b in card.breaks if b.f is not None), default=None)
    word = "STRONG" if 2 * len(hit) >= len(rules) else "MILD" if hit else "HARMLESS to accuracy"
    yield (
        f"{word}: it breaks {len(hit)} of {len(rules)} rules"
        + (f", the first with {least} of {card.settings.n} workers: {', '.join(hit)}." if hit else ".")
    )
