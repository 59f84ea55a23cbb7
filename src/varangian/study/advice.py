"""Which rules n and f allow, what a wrong f costs, where momentum should stand, and what to try: before any run."""

from __future__ import annotations

import json
import shlex
import textwrap
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import comb, inf
from statistics import fmean
from typing import Any, Literal

import numpy as np

from ..core.mixing import MIXINGS, AdaptiveClipping, Mixing
from ..core.references import importing, is_reference
from ..core.rules import RULES, SMEA, Rule
from ..core.rules.spectral import SUBSETS
from ..core.specs import make, parse, split
from ..core.stages import check_rows, needed, required_rows
from ..runs.experiment import ConfigurationError, Experiment
from ..simulation.data import DATASETS, PARTITIONS
from .grid import Grid
from .heterogeneity import RULES as STUDIED
from .score import usual
from .score.card import Card, stored

Place = Literal["worker", "server"]

EXAMPLES, EACH = 10_000, 50  # dealt to see how far apart a partition puts workers: at least, and for each worker
DEALS = (1, 2, 3)  # seeds
TO_TRY = 3  # rules
UNFOLLOWED = "does not always follow n - f vectors that agree: its card has an infinite kappa"
UNLIKE = 0.1  # shares of attackers that differ by more


@dataclass(frozen=True)
class Kind:
    """Data that differ so much from worker to worker, and what was measured there.

    Attributes:
        upto: the greatest difference (see :func:`difference`) that counts as this kind.
        measured: the partition of the study of unequal data that stands for it.
        mixing: whether nearest-neighbour mixing belongs before the rule.
        place: where momentum stood better behind it, on both data sets or on the one where it mattered.
        gains: for each data set the least and the greatest of what the workers' place brought over the server's, over
            four rules behind NNM, each under its worst attack, in points (results/heterogeneity/cells.csv).
        attacks: which of the attacks were worst there.
        cards: the partitions of score cards that tell of such data.
    """

    name: str
    upto: float
    measured: str
    mixing: bool
    place: Place
    gains: Mapping[str, tuple[float, float]]
    attacks: tuple[str, ...]
    cards: tuple[str, ...]


KINDS = (
    Kind(
        "alike", 0.17, "iid", False, "worker",
        {"digits": (2.27, 3.80), "fashion-mnist": (1.58, 8.42)}, ("little", "sign-flip", "empire", "mimic"),
        ("iid",),
    ),
    Kind(
        "mildly unlike", 0.51, "dirichlet(alpha=1)", True, "worker",
        {"digits": (0.73, 1.93), "fashion-mnist": (1.06, 4.28)}, ("little", "sign-flip", "empire", "mimic"),
        ("iid", "dirichlet(alpha=0.1)"),
    ),
    Kind(
        "very unlike", 0.78, "dirichlet(alpha=0.1)", True, "server",
        {"digits": (-2.00, 2.33), "fashion-mnist": (-12.75, -0.60)}, ("sign-flip", "mimic", "empire", "little"),
        ("dirichlet(alpha=0.1)",),
    ),
    Kind(
        "of classes of each worker's own", 1.0, "extreme", True, "server",
        {"digits": (-2.87, -1.67), "fashion-mnist": (-12.18, -5.59)}, ("sign-flip", "mimic", "empire", "little"),
        ("dirichlet(alpha=0.1)",),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What score cards say of a choice, for such data and momentum where it is advised.

    Attributes:
        left: the accuracy in per cent under the attack that is worst for it, as its card was trained.
        calm: that without attack.
        elsewhere: what is left with momentum at the other place.
        share: the number of attackers, among as many workers as cards have, that is nearest to the share asked for.
        broken: attacks that, by their own cards, break it with no more than ``share`` attackers; None where it was not
            tried, as behind mixings.
        prices: of each f that its card was told, the points lost without attack against being told of nobody.
        undone: of each f that its card was told, how many attackers were found to undo it; None where none was.
        alike: whether its card was made as those of the package, so that they may be compared.
    """

    left: float
    calm: float
    elsewhere: float
    share: int
    broken: tuple[str, ...] | None
    prices: Mapping[int, float]
    undone: Mapping[int, int | None]
    alike: bool


@dataclass(frozen=True)
class Choice:
    """A rule, alone or behind mixings, and whether n and f allow it.

    Attributes:
        needs: how many vectors the rule needs, in words and as a number: "2f + 3 = 27".
        greatest: the greatest f that it may declare among the n; None where there is none.
        refusal: why it cannot be used; "" where it can.
        kappa: the robustness coefficient that is proved for it with n and f; None where none is.
        caveats: what to know before it is used.
        measured: what its score card says; None without one.
    """

    pre: tuple[str, ...]
    rule: str
    needs: str
    greatest: int | None
    refusal: str
    kappa: float | None
    caveats: tuple[str, ...]
    measured: Measured | None = None

    @property
    def name(self) -> str:
        """As reports have it: "nnm + median"."""
        return " + ".join((*self.pre, self.rule))

    @property
    def allowed(self) -> bool:
        return not self.refusal


@dataclass(frozen=True)
class Price:
    """What declaring f' costs where f may lie.

    Attributes:
        declared: f'.
        rules: how many of the built-in rules n and f' allow.
        calm: the least that it costs where nobody lies: f' / (n - f').
        attacked: the least where f do: f' / (n - f - f'); None where f' < f, and nothing is promised.
        lost: points that the first choice lost without attack on its card, told of about such a share.
    """

    declared: int
    rules: int
    calm: float
    attacked: float | None
    lost: float | None


@dataclass(frozen=True)
class Advice:
    """What n, f and the data say before anything is run; printed, it is a page of text.

    Attributes:
        difference: the share of the examples that would have to move for all workers to have the same mixture of
            classes: 0 alike, 1 - 1/C where each of C classes is with workers of its own.
        data: which kind of data that is.
        choices: all rules, and the usual ones behind mixings.
        first: those to try first, by name, the best first.
        place: where momentum should stand.
        prices: what it costs to declare another f.
        reasons: of ``first`` and ``place``, a sentence each.
        notes: what this cannot know, and how to find out.
        commands: to try, in order.
    """

    workers: int
    byzantine: int
    dataset: str
    model: str
    partition: str
    batch_size: int
    difference: float
    data: str
    choices: tuple[Choice, ...]
    first: tuple[str, ...]
    place: Place
    prices: tuple[Price, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> str:
        """Everything, with whether each choice is allowed; numbers that are infinite, which JSON has not, as null."""
        values = asdict(self)
        for choice, made in zip(values["choices"], self.choices, strict=True):
            choice |= {"name": made.name, "allowed": made.allowed}
        return json.dumps(_finite(values), indent=2)

    def grid(self) -> Grid:
        """Those to try first, momentum at either place, without and under the attacks that were worst for such data."""
        kind = next(kind for kind in KINDS if kind.name == self.data)
        cases = [{"pre": [list(c.pre)] if c.pre else "none", "rule": c.rule} for c in map(self._named, self.first)]
        settings = self._settings() | {
            "momentum_at": ["server", "worker"],
            "attack": ["none", *kind.attacks] if self.byzantine else "none",
        }
        return Grid(settings, "1-3", cases=cases)

    def text(self, width: int = 100) -> str:
        """The page, in lines of at most so many characters where words allow."""
        return "\n".join(_page(self, max(width, 40)))

    def _named(self, name: str) -> Choice:
        return next(choice for choice in self.choices if choice.name == name)

    def _settings(self) -> dict[str, Any]:
        """Of a run: what was said and is not the default."""
        mine = {name: getattr(self, name) for name in ("workers", "byzantine", *_SAID)}
        defaults = Experiment()
        return {k: v for k, v in mine.items() if k in ("workers", "byzantine") or v != getattr(defaults, k)}


_SAID = ("dataset", "model", "partition", "batch_size")


def advise(
    workers: int | str,
    byzantine: int | str | None,
    *,
    partition: Any = "iid",
    dataset: str = "digits",
    model: Any = "fully-connected",
    batch_size: int | str = 83,
    rules: Sequence[str | Rule | type[Rule]] = (),
    cards: Iterable[Card] = (),
) -> Advice:
    """What to use against f of n workers: allowed rules, the price of a wrong f, the place of momentum, and commands.

    Nothing is trained and nothing downloaded: rules say what they need, and experience is that of stored runs.

    Args:
        workers: n, honest and Byzantine.
        byzantine: f, how many may lie at once.
        partition: how data is dealt, as in :class:`Experiment`: "dirichlet(alpha=0.1)".
        dataset, model, batch_size: as in :class:`Experiment`.
        rules: rules of one's own to look at too, mixings before them: "my_rule.py:MyRule", "nnm,my_rule.py:MyRule".
        cards: score cards beside those of the package, as of these rules; of two cards of one name these count.

    Example:
        >>> found = advise(11, 4, partition="dirichlet(alpha=0.1)")
        >>> found.data, found.place
        ('very unlike', 'server')
        >>> [choice.refusal for choice in found.choices if choice.name == "bulyan"]
        ['needs n >= 4f + 3 = 19 vectors, got 11; f = 2 would do']

    Raises:
        ConfigurationError: with one line per fault.
    """
    e = _checked(workers, byzantine, dataset=dataset, model=model, partition=partition, batch_size=batch_size)
    faults: list[str] = []
    own = [made for text in rules if (made := _own(text, e, faults)) is not None]
    if faults:
        raise ConfigurationError(faults)
    n, f = e.workers, e.byzantine
    away = difference(e)
    kind = next(kind for kind in KINDS if away <= kind.upto)
    known = {card.name: card for card in (*stored(), *cards)}
    names = dict.fromkeys([*own, *((about.pre, about.rule) for about in usual() if about.kind == "rule")])
    choices = tuple(_with_card(_choice(pre, rule, n, f), known, kind, n, f) for pre, rule in names)
    first = _first(choices, kind, f)
    mine = tuple(choice.name for choice in choices[: len(own)] if choice.allowed and choice.name not in first)
    found = Advice(
        n, f, e.dataset, e.model, e.partition, e.batch_size, away, kind.name, choices, (*first, *mine), kind.place,
        _prices(n, f, _find(choices, first)), _reasons(choices, first, kind, f, known), _notes(e, kind, known), (),
    )  # fmt: skip
    return replace(found, commands=_commands(found))


def _checked(workers: Any, byzantine: Any, **settings: Any) -> Experiment:
    """These as settings, all that is wrong with them at once."""
    faults, unsaid = [], byzantine is None
    try:
        # The average takes any number of vectors: what the others need is the question.
        e = Experiment(workers=workers, byzantine=0 if unsaid else byzantine, rule="average", **settings)
    except ConfigurationError as error:
        faults += error.faults
    numbers = [_number(value) for value in (workers, byzantine)]
    n, f = (-1 if number is None else number for number in numbers)
    most = max((n - 1) // 2, 0)
    if unsaid:
        range_ = f", at most {most} of {n}" if n > 0 else ""
        faults.append(f"byzantine: say how many of the workers may lie at once{range_}; 0 where none may.")
    elif n > 0 and 2 * f >= n:
        faults.append(f"byzantine: no rule holds where half or more may lie, at most {most} of {n} workers, got {f}.")
    if faults:
        raise ConfigurationError(faults)
    return e  # pyright: ignore[reportPossiblyUnboundVariable]


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _own(given: Any, e: Experiment, faults: list[str]) -> tuple[tuple[str, ...], str] | None:
    """Mixings and a rule, of a text such as "nnm,median" or a rule itself, tried as settings of a run with f = 0."""
    *pre, rule = [piece.strip() for piece in split(given)] if isinstance(given, str) else [given]
    if isinstance(rule, str) and rule.partition("(")[0] in MIXINGS:
        faults.append(f"rules: {given} ends with a mixing; a rule stands behind it, as in {given},median.")
        return None
    try:
        tried = Experiment(workers=e.workers, byzantine=0, rule=rule, pre=tuple(pre))
    except ConfigurationError as error:
        faults += [f"rules: {fault.partition(': ')[2]}" for fault in error.faults]
        return None
    return tried.pre, tried.rule


def difference(experiment: Experiment) -> float:
    """How far apart a partition puts honest workers: the share of all examples that lie with a worker beyond its part
    of their class, when examples of equally frequent classes are dealt.

    Where classes are unlike in number, as in long-tail, only what differs between workers counts.

    (1 / 2N) sum_i sum_k |N_ik - N_i N_k / N|, N_ik examples of class k at worker i; the mean over three deals

    Example:
        >>> difference(Experiment()), round(difference(Experiment(partition="extreme")), 2)
        (0.0, 0.83)
    """
    deal, h = experiment.make_partition(), experiment.workers - experiment.byzantine
    classes = _classes(experiment.dataset)
    labels = np.arange(max(EXAMPLES, EACH * h)) % classes
    own = parse("partition", experiment.partition, PARTITIONS)[0] not in PARTITIONS
    found = []
    for seed in DEALS:
        try:
            parts = deal(labels, classes, h, seed)
        except ValueError as error:  # it cannot deal to so many, or so many classes
            if own:
                raise
            raise ConfigurationError([f"partition: {error}"]) from None
        counts = np.stack([np.bincount(labels[np.asarray(part)], minlength=classes) for part in parts])
        total = counts.sum()
        fair = counts.sum(1, keepdims=True) * counts.sum(0) / total
        found.append(np.abs(counts - fair).sum() / (2 * total))
    return round(float(np.mean(found)), 3)


def _classes(dataset: str) -> int:
    """How many classes a data set has, where its name tells; 10, as most have, where it does not."""
    name, options = parse("dataset", dataset, DATASETS)
    return int(options.get("classes", 100 if name == "cifar-100" else 10))


def _made(pre: Sequence[str], rule: str, f: int) -> tuple[list[Mixing], Rule]:
    with importing(True):
        return [make("mixing", text, MIXINGS, f=f) for text in pre], make("rule", rule, RULES, f=f)


def _choice(pre: tuple[str, ...], rule: str, n: int, f: int) -> Choice:
    try:
        mixings, made = _made(pre, rule, f)
    except ValueError as error:  # a rule of somebody's own that cannot have this f
        return Choice(pre, rule, "", None, str(error).rstrip("."), None, ())
    formula, least = needed(made)
    greatest = _greatest(pre, rule, n) if made.robust else 0
    return Choice(
        pre, rule, formula if formula == str(least) else f"{formula} = {least}", greatest,
        _refusal(mixings, made, n, greatest), _kappa(mixings, made, n), _caveats(made, f),
    )  # fmt: skip


def _with_card(choice: Choice, cards: Mapping[str, Card], kind: Kind, n: int, f: int) -> Choice:
    card = cards.get(choice.name)
    if card is None or not f:
        return choice
    if card.verdict and card.verdict[0].startswith("BROKEN"):
        choice = replace(choice, caveats=(*choice.caveats, f"its card says {card.verdict[0].rstrip('.')}"))
    if any(k.found == inf for k in card.kappa):
        choice = replace(choice, caveats=(*choice.caveats, UNFOLLOWED))
    places = (kind.place, "server" if kind.place == "worker" else "worker")
    worst = [[card.lowest(p, place) for p in kind.cards] for place in places]
    calm = [card.calm(p, kind.place) for p in kind.cards]
    left, elsewhere, without = ([100 * a.mean for a in each if a is not None] for each in (*worst, calm))
    if not len(left) == len(elsewhere) == len(without) == len(kind.cards):
        return choice
    asked = card.settings
    share = max(1, min((asked.n - 1) // 2, round(f * asked.n / n)))
    tried = [
        (attack.name, b)
        for attack in cards.values()
        if attack.kind == "attack" and attack.settings.n == asked.n
        for b in attack.breaks
        if b.rule == card.name and b.partition in kind.cards
    ]
    broken = tuple(dict.fromkeys(name for name, b in tried if b.f is not None and b.f <= share)) if tried else None
    told = {(a.partition, a.f): 100 * a.mean for a in card.price}
    lost = {
        g: fmean(told[p, 0] - told[p, g] for p in kind.cards)
        for g in sorted({g for _, g in told})
        if all((p, 0) in told and (p, g) in told for p in kind.cards)
    }
    undone = {b.f: b.point for b in card.breakdown}
    alike = any(asked == other.settings for other in stored())
    if not alike:
        choice = replace(choice, caveats=(*choice.caveats, "its card was made otherwise than those of the package"))
    return replace(
        choice,
        measured=Measured(fmean(left), fmean(without), fmean(elsewhere), share, broken, lost, undone, alike),
    )


def _greatest(pre: tuple[str, ...], rule: str, n: int) -> int | None:
    """The greatest f < n / 2 that all stages allow: what they need grows with f."""

    def needs(f: int) -> float:
        try:
            return required_rows(*_made(pre, rule, f))
        except ValueError:
            return inf

    possible = bisect_right(range((n + 1) // 2), n, key=needs) - 1
    return None if possible < 0 else possible


def _refusal(pre: Sequence[Mixing], rule: Rule, n: int, greatest: int | None = None) -> str:
    f = rule.f
    if f and not rule.robust:
        return "tolerates nothing: one that lies moves it anywhere"
    try:
        check_rows(pre, rule, n)
    except ValueError as error:
        said = str(error).rstrip(".").partition(" needs ")[2]
        would = f"; f = {greatest} would do" if greatest else "; no f > 0 would do"
        stage = "" if not pre else f"{str(error).partition('(')[0]} "
        return f"{stage}needs {said}{would}"
    if isinstance(rule, SMEA) and comb(n, f) > SUBSETS:
        return f"would have to look at more than {SUBSETS:,} subsets of n - f vectors"
    if rule.needs_root:
        return "needs a vector that the server computed from data of its own, which a simulated run has not"
    return ""


def _kappa(pre: Sequence[Mixing], rule: Rule, n: int) -> float | None:
    """What is proved for rules alone, and behind ARC, which adds at most 2f / (n - 2f)."""
    if n < rule.min_n or 2 * rule.f >= n or any(not isinstance(mixing, AdaptiveClipping) for mixing in pre):
        return None
    bound = rule.kappa_bound(n)
    return None if bound is None else bound + len(pre) * 2 * rule.f / (n - 2 * rule.f)


def _caveats(rule: Rule, f: int) -> tuple[str, ...]:
    found = []
    if rule.robust and rule.f != f:
        found.append(f"told of {rule.f}, whatever f is")
    if rule.by_place:
        found.append("trusts the vector at one place: who stands there must be honest")
    if not rule.guarantee.box and rule.guarantee.ball is None and rule.robust:
        found.append("promises a finite answer under attack, and no bound")
    return tuple(found)


def _prices(n: int, f: int, first: Choice | None) -> tuple[Price, ...]:
    most = (n - 1) // 2
    asked = sorted({0, f // 2, f, min(2 * f, most), (f + most) // 2, most})
    return tuple(_price(n, f, declared, None if first is None else first.measured) for declared in asked)


def _price(n: int, f: int, declared: int, measured: Measured | None) -> Price:
    allowed = sum(not _refusal(*_made((), rule, declared), n) for rule in RULES)
    attacked = None if declared < f else declared / (n - f - declared) if n > f + declared else inf
    lost = None
    if measured is not None and f:
        nearest = round(declared * measured.share / f)  # of as many as cards have
        lost = measured.prices.get(nearest)
    return Price(declared, allowed, declared / (n - declared), attacked, lost)


def _first(choices: Sequence[Choice], kind: Kind, f: int) -> tuple[str, ...]:
    """At most three: those to whom, by their cards, the worst attack leaves most; those last that some attack is known
    to break with such a share of attackers.

    Without cards, of the rules of the study of unequal data, behind NNM where data differ, those of least proved
    coefficient."""
    if not f:
        return ("average",)
    allowed = [c for c in choices if c.allowed]
    known = [(c, c.measured) for c in allowed if c.measured is not None and c.measured.alike and not _is_broken(c)]
    if 2 * len(known) >= len(allowed):  # the best of a few says little
        return tuple(c.name for c, m in sorted(known, key=lambda pair: _standing(pair[1]))[:TO_TRY])
    alone = {c.rule: inf if c.kappa is None else c.kappa for c in choices if not c.pre}
    wanted = ("nnm",) if kind.mixing else ()
    fitting = [c for c in allowed if c.pre == wanted and c.rule in STUDIED]
    return tuple(c.name for c in sorted(fitting, key=lambda c: (alone[c.rule], c.rule))[:TO_TRY])


def _standing(measured: Measured) -> tuple[bool, float]:
    return bool(measured.broken), -measured.left


def _is_broken(choice: Choice) -> bool:
    return any("BROKEN" in caveat or caveat == UNFOLLOWED for caveat in choice.caveats)


def _find(choices: Sequence[Choice], names: Sequence[str]) -> Choice | None:
    """The choice of the first name."""
    return next((c for c in choices if names and c.name == names[0]), None)


def _reasons(
    choices: Sequence[Choice], first: Sequence[str], kind: Kind, f: int, cards: Mapping[str, Card]
) -> tuple[str, ...]:
    if not f:
        return ("Nobody lies, so the average is the best there is, and no rule is needed.",)
    found = []
    best = _find(choices, first)
    measured = None if best is None else best.measured
    if best is not None and measured is not None:
        found += _by_cards(choices, first, kind, cards[best.name])
    if kind.mixing:
        found.append(
            "NNM before a usual rule: where data differ, rules alone shut honest workers out. The worst attack left 17 "
            "to 28 % with three of four rules on dirichlet(alpha=0.1), and 78 to 81 % with all behind NNM (digits)."
        )
    elif best is not None and measured is None:
        found.append("No mixing: with data alike NNM adds little.")
    gains = " and ".join(
        f"{low:+.1f} to {high:+.1f} points on {dataset}" for dataset, (low, high) in kind.gains.items()
    )
    found.append(
        f"Momentum at the {_at(kind.place)}: with data {kind.name} ({kind.measured}) the workers' place brought "
        f"{gains} over the server's, over four rules behind NNM, each under its worst attack (15 workers, 3 attacking)."
    )
    return tuple(found)


def _by_cards(choices: Sequence[Choice], first: Sequence[str], kind: Kind, card: Card) -> list[str]:
    """What the cards of those to try first say."""
    s = card.settings
    known = [(c.name, c.measured) for name in first if (c := _find(choices, [name])) and c.measured is not None]
    each = ", ".join(f"{m.left:.0f} % with {name}" for name, m in known)
    name, best = known[0]
    found = [
        f"By the score cards ({s.dataset}, {s.f} of {s.n} workers attack, {' and '.join(kind.cards)}, momentum at the "
        f"{_at(kind.place)}) the worst attack leaves {each}. {name} comes to {best.calm:.0f} % without attack, and its "
        f"worst attack leaves {best.elsewhere:.0f} % with momentum at the other place."
    ]
    if best.broken is None:
        if best.share > s.f:
            found.append(f"What breaks {name} with {best.share} of {s.n} attacking was not tried.")
    elif best.broken:
        found.append(f"With {best.share} of {s.n} attacking {name} is broken by {', '.join(best.broken)}.")
    least = next(((g, b) for g, b in sorted(best.undone.items()) if g < best.share), None)
    if least is not None:
        told, undone = least
        held = undone is None or undone > best.share
        found.append(
            f"Told of too few, {name} "
            + (
                f"holds out all the same: told of {told} of {s.n}, {best.share} were not found to undo it."
                if held
                else f"is undone: told of {told} of {s.n}, {undone} undo{'es' if undone == 1 else ''} it."
            )
        )
    return found


def _at(place: Place) -> str:
    return "workers" if place == "worker" else place


def _notes(e: Experiment, kind: Kind, cards: Mapping[str, Card]) -> tuple[str, ...]:
    found = []
    asked = next((card.settings for card in cards.values() if card.kind != "attack"), None)
    if asked is not None and abs(asked.f / asked.n - e.byzantine / e.workers) > UNLIKE:
        found.append(
            f"Cards were trained with {100 * asked.f / asked.n:.0f} % of the workers attacking, and you ask about "
            f"{100 * e.byzantine / e.workers:.0f} %: the order may be another."
        )
    if e.dataset != "digits" or e.model != "fully-connected":
        found.append(
            f"Measured on digits and Fashion-MNIST with a small fully connected network, not on {e.dataset} with "
            f"{e.model}: try the first few."
        )
    if kind.mixing:
        found.append(
            "No rule holds where f >= n / (2 + B^2), however good (Allouah et al., NeurIPS 2023): B is how far honest "
            "gradients lie apart, and varangian data measures it."
        )
        found.append(
            "Whoever cannot know how data lie: --momentum-at adaptive lacked up to 2.9 points to the better place on "
            "digits and up to 12.2 on Fashion-MNIST, where the wrong place lacked up to 11.7 and 23.2."
        )
    if e.byzantine:
        found.append(
            "What momentum at the workers brings grows with the noise of gradients: some 20 points at 2 images a step "
            f"and worker, one or two at 83 (digits); here {e.batch_size}."
        )
    return tuple(found)


def _commands(advice: Advice) -> tuple[str, ...]:
    said = [f"--{name.replace('_', '-')}={value}" for name, value in advice._settings().items()]
    if not advice.first:
        return ()
    best = advice._named(advice.first[0])
    how = [f"--pre={','.join(best.pre)}"] if best.pre else []
    run = ["varangian", "run", *said, *how, f"--rule={best.rule}", f"--momentum-at={advice.place}"]
    kind = next(kind for kind in KINDS if kind.name == advice.data)
    found = [["varangian", "data", *said]] if kind.mixing else []
    for c in (c for c in advice.choices if c.allowed and c.measured is None and is_reference(c.rule.partition("(")[0])):
        before = [f"--pre={','.join(c.pre)}"] if c.pre else []
        found.append(["varangian", "score", c.rule, *before, "--out=cards"])
    found.append([*run, f"--attack={kind.attacks[0]}"] if advice.byzantine else run)
    if advice.byzantine:
        found += [
            ["varangian", "advise", *said, "--grid=try.toml"],
            ["varangian", "sweep", "try.toml"],
            ["varangian", "report", "try"],
        ]
    return tuple(shlex.join(words) for words in found)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ------------------------------------------------------------------------------------------------------------- the text


def _order(choice: Choice) -> tuple[bool, tuple[bool, float]]:
    """Those with a card first, the best of them before the others."""
    return choice.measured is None, (False, 0.0) if choice.measured is None else _standing(choice.measured)


def _page(advice: Advice, width: int) -> list[str]:
    n, f = advice.workers, advice.byzantine

    def wrapped(text: str, first: str = "", rest: str = "  ") -> list[str]:
        return textwrap.wrap(
            text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        )

    lines = wrapped(
        f"{n} workers of whom {f} may lie; {advice.dataset}, {advice.model}, {advice.partition}.",
        rest="",
    )
    moved = f": {100 * advice.difference:.0f} % of the examples would have to move for all to have the same mixture"
    lines += wrapped(f"Data are {advice.data}{moved if advice.difference else ''}.", rest="")
    lines += ["", "Try first"]
    for place, name in enumerate(advice.first, 1):
        lines += wrapped(name, f"  {place}. ", "     ")
    if not advice.first:
        lines += wrapped(f"nothing: no rule with a proof is allowed with f = {f} of {n}; see below.", "  ")
    for reason in advice.reasons:
        lines += wrapped(reason, "  - ", "    ")
    lines += ["", f"Allowed with n = {n}, f = {f}"]
    allowed = sorted((c for c in advice.choices if c.allowed), key=_order)
    size = max((len(c.name) for c in allowed), default=4)
    lines.append(f"  {'rule':{size}}  {'needs n >=':>11}  {'f <=':>4}  {'kappa':>6}  {'leaves':>6}  broken by")
    for c in allowed:
        kappa = "" if c.kappa is None else f"{c.kappa:.2f}"
        m = c.measured
        said = f"{'':>6}" if m is None else f"{m.left:>4.0f} %  {'-' if m.broken is None else len(m.broken):>9}"
        lines.append(f"  {c.name:{size}}  {c.needs:>11}  {c.greatest:4}  {kappa:>6}  {said}".rstrip())
        lines += [line for caveat in c.caveats for line in wrapped(caveat, "      ", "      ")]
    lines += wrapped(
        "kappa: what is proved at most. By the score cards, for such data: the accuracy that the worst attack leaves, "
        "and how many attacks break it with such a share of attackers; - where that was not tried.",
        "  ",
    )
    lines += ["", "Not allowed"]
    for c in (c for c in advice.choices if not c.allowed):
        lines += wrapped(f"{c.name}: {c.refusal}", "  ", "      ")
    lines += ["", f"What another f' costs, where f = {f} may lie"]
    prime, attacked = "f'", f"{f} lie"
    lines.append(f"  {prime:>4}  {'rules':>5}  {'nobody lies':>11}  {attacked:>10}  {'measured':>8}")
    for p in advice.prices:
        held = "no promise" if p.attacked is None else "unbounded" if p.attacked == inf else f"{p.attacked:.3f}"
        lost = "" if p.lost is None else f"{p.lost:.1f}"
        mark = "  <- f" if p.declared == f else ""
        lines.append(f"  {p.declared:>4}  {p.rules:>5}  {p.calm:>11.3f}  {held:>10}  {lost:>8}{mark}".rstrip())
    lines += wrapped(
        "rules: how many of the built-in ones n and f' allow. Then the least squared error that a rule which holds "
        "against f' must make in the worst case, in variances of honest vectors: f'/(n - f') and f'/(n - f - f'). With "
        "f' < f nothing is promised. Measured: the points that the first choice lost without attack, told of about "
        "such a share.",
        "  ",
    )
    if advice.notes:
        lines += ["", "To know"]
        for note in advice.notes:
            lines += wrapped(note, "  - ", "    ")
    if advice.commands:
        lines += ["", "Commands to try", *(f"  {command}" for command in advice.commands)]
    return lines
