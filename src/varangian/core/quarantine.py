"""Repeat offenders are left out for some time, and come back: a stage before mixings and rule.

A worker is judged by its suspicion (see :mod:`varangian.core.evidence`) over its own last steps, and while it is left
out it is not there: mixings and rule are not shown its vectors, and nothing is measured of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .checks import require, set_real, set_whole
from .evidence import cosines, suspicion
from .stages import Heard, Mixing, Rule, check_rows

MOST_STEPS = 10**9  # of a window or a term
Stage = TypeVar("Stage", Rule, Mixing)


@dataclass(frozen=True, eq=False)
class Watched:
    """What a quarantine remembers between two steps, in main memory. Who was never there has no entry.

    Attributes:
        workers: [W] int64, their numbers, increasing.
        suspicion: [W, window] float64, of each worker's last steps, the latest last; 0 where there were none yet.
        terms: [W, 3] float64: how often it was excluded on end; the step from which on it is back, 0 for who never was
            away; and the mean suspicion that it was excluded for.
    """

    workers: Tensor
    suspicion: Tensor
    terms: Tensor

    def check(self, window: int, most: int | None = None) -> None:
        """Raises ValueError for numbers that cannot be those of a state, of workers below ``most``: anybody may have
        written them."""
        workers, seen, terms = self.workers, self.suspicion, self.terms
        w = workers.numel()
        shaped = workers.shape == (w,) and seen.shape == (w, window) and terms.shape == (w, 3)
        kinds = workers.dtype == torch.int64 and seen.dtype == terms.dtype == torch.float64
        sound = shaped and kinds
        if sound and w:
            numbers, values, (times, back, mean) = workers.numpy(), seen.numpy(), terms.numpy().T
            sound = bool(
                (np.diff(numbers) > 0).all()
                and (most is None or 0 <= numbers[0] <= numbers[-1] < most)
                and ((values >= 0) & (values <= 1)).all()
                and ((times >= 0) & (times <= MOST_STEPS) & (times == np.floor(times))).all()
                and ((back >= 0) & (back < 2**53) & (back == np.floor(back))).all()
                and ((mean >= 0) & (mean <= 1)).all()
            )
        if not sound:
            raise ValueError(f"the memory of a quarantine over {window} steps cannot be what this is.")


@dataclass(frozen=True, eq=False)
class Admitted:
    """Who is shown to the stages of one step, and which stages these are.

    Attributes:
        workers: [n] the numbers of those whose vectors came.
        rows: which of the vectors are shown, increasing; None for all.
        pre, rule: what decides about them.
        most: how many of the n may be excluded at once.
    """

    workers: np.ndarray
    rows: np.ndarray | None
    pre: tuple[Mixing, ...]
    rule: Rule
    most: int

    @property
    def excluded(self) -> np.ndarray:
        """[n] bool, who is left out."""
        away = np.zeros(self.workers.size, bool)
        if self.rows is not None:
            away[:] = True
            away[self.rows] = False
        return away

    def shown(self, order: np.ndarray | None) -> np.ndarray | None:
        """``rows`` in the order in which they stand in a permutation of all; None for all, as they come."""
        if order is None or self.rows is None:
            return self.rows if order is None else order
        return order[np.isin(order, self.rows)]


@dataclass(frozen=True)
class Quarantine:
    """Excludes workers that are suspicious again and again, for ``Algorithm(quarantine=Quarantine())``.

    A worker whose suspicion over its last ``window`` steps comes to ``threshold``, their sum over ``window``, is left
    out of the next ``term`` steps, the most suspicious first, and never more at a time than f, nor more than the stages
    can do without. Then it is back, and nothing is held against it but this: excluded again within ``longest`` steps of
    its return, it stays away twice as long as before, up to ``longest``. Suspicion is that of
    :func:`varangian.explain`, among those that are shown; a vector with NaN or infinity has 1.

    f stays what the rule says, though fewer vectors are left: whoever is excluded, also an honest worker, the rule
    tolerates f of the others. There must be room for it: with n at the least that the stages need nobody can be
    excluded. With ``lower_f`` those that are excluded are taken for Byzantine, and f is lowered by their number, in
    mixings too: that gives a narrower rule, but an honest worker that is excluded then costs protection, since f
    attackers may still be among the others.

    An attacker that is never suspicious is never excluded: small deviations (ALIE) are the rule's to deal with.
    Honest workers with data of their own are suspicious, and what becomes of what only they know is measured in
    docs/howto/quarantine.md.

    Args:
        window: >= 1, over how many of its steps a worker is judged; steps before its first count as 0.
        threshold: in (0, 1], of the mean suspicion over them.
        term: >= 1, how many steps the first exclusion lasts.
        longest: >= term, the most steps that one lasts.
        lower_f: whether those that are excluded count as some of the f.

    Example:
        >>> import torch, varangian as vg
        >>> a = vg.Algorithm(rule=vg.Median(f=1), quarantine=vg.Quarantine(window=2, term=3))
        >>> state, x = a.init(h=5, d=2), torch.ones(5, 2)
        >>> x[4] = 9.0
        >>> for step in range(3):
        ...     print(a.admit(state, n=5).excluded.nonzero()[0])
        ...     update, state = a.aggregate(x, state)
        []
        [4]
        [4]
    """

    window: int = 20
    threshold: float = 0.5
    term: int = 100
    longest: int = 1600
    lower_f: bool = False

    def __post_init__(self) -> None:
        for name in ("window", "term", "longest"):
            set_whole(self, name, least=1)
            require(self, getattr(self, name) <= MOST_STEPS, f"{name} <= {MOST_STEPS:,}", getattr(self, name))
        set_real(self, "threshold", "threshold in (0, 1]", lambda threshold: 0 < threshold <= 1)
        require(self, self.longest >= self.term, f"longest >= term = {self.term}", self.longest)
        require(self, isinstance(self.lower_f, bool), "lower_f True or False", self.lower_f)

    def init(self) -> Watched:
        """Nobody has been seen."""
        return Watched(
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, self.window, dtype=torch.float64),
            torch.zeros(0, 3, dtype=torch.float64),
        )

    def stages(self, pre: Sequence[Mixing], rule: Rule, excluded: int) -> tuple[tuple[Mixing, ...], Rule]:
        """What decides while so many are excluded."""
        if not self.lower_f or not excluded:
            return tuple(pre), rule
        return with_f(pre, rule, lambda f: max(0, f - excluded))

    def most(self, pre: Sequence[Mixing], rule: Rule, n: int) -> int:
        """How many of n vectors may be excluded at once: f, or fewer where the stages need the others."""
        try:
            return _most(self, tuple(pre), rule, n)
        except TypeError:  # a stage of somebody's own that cannot be hashed
            return _most.__wrapped__(self, tuple(pre), rule, n)

    def check(self, pre: Sequence[Mixing], rule: Rule, n: int) -> None:
        """Raises ValueError where it can exclude nobody of n."""
        if self.most(pre, rule, n):
            return
        if rule.f == 0:
            raise ValueError(f"Quarantine excludes at most f workers at a time, got {rule}, which says that f is 0.")
        advice = "more workers or a lower f" + ("" if self.lower_f else ", or lower_f=True, which takes those excluded "
                                                "for some of the f")  # fmt: skip
        raise ValueError(
            f"Quarantine can exclude nobody of n = {n}: with fewer vectors {rule} tolerates no f = {rule.f}"
            f"{' behind its mixings' if pre else ''}; use {advice}."
        )

    def admit(
        self, watched: Watched, pre: Sequence[Mixing], rule: Rule, *, workers: np.ndarray, step: int,
        limit: int | None = None,
    ) -> Admitted:  # fmt: skip
        """Who of these workers is shown in a step. Where more are away than may be (``most``, and no more than
        ``limit``), the least suspicious are shown."""
        most = self.most(pre, rule, workers.size)
        most = most if limit is None else min(most, limit)
        _, (_, back, mean) = self._of(watched, workers)
        away = np.flatnonzero(back > step)
        away = away[np.argsort(-mean[away], kind="stable")][:most]
        if not away.size:
            return Admitted(workers, None, tuple(pre), rule, most)
        rows = np.delete(np.arange(workers.size), away)
        return Admitted(workers, rows, *self.stages(pre, rule, away.size), most)

    def hear(self, watched: Watched, heard: Heard, measured: np.ndarray, *, step: int) -> Watched:
        """What is remembered after a step, given the measures on the host."""
        finite, found = np.isfinite(measured[0]), np.full(heard.workers.size, np.nan)
        shown = slice(None) if heard.rows is None else heard.rows
        found[shown] = suspicion(np.sqrt(measured[1]), finite, np.where(finite, cosines(*measured), np.nan))
        return self.after(watched, heard.workers, found, most=heard.most, step=step)

    def after(self, watched: Watched, workers: np.ndarray, suspicion: np.ndarray, *, most: int, step: int) -> Watched:
        """What is remembered after a step that told [n] of the suspicion of n workers, NaN where it told nothing, of
        whom at most so many may be away."""
        seen, (times, back, mean) = self._of(watched, workers)
        told = ~np.isnan(suspicion)
        seen[told] = np.column_stack([seen[told, 1:], suspicion[told]])
        here, means = back <= step + 1, seen.mean(1)
        offenders = np.flatnonzero(here & (means >= self.threshold))
        offenders = offenders[np.argsort(-means[offenders], kind="stable")][: max(0, most - int((~here).sum()))]
        for worker in offenders:
            repeated = times[worker] and step - back[worker] < self.longest
            times[worker] = times[worker] + 1 if repeated else 1
            length = min(self.term * 2.0 ** min(times[worker] - 1, 64), self.longest)
            back[worker], mean[worker], seen[worker] = step + 1 + length, means[worker], 0.0
        return self._with(watched, workers, seen, np.column_stack([times, back, mean]))

    def _of(self, watched: Watched, workers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([n, window], [3, n]) of these workers, to be written into."""
        known, seen = watched.workers.numpy(), np.zeros((workers.size, self.window))
        terms = np.zeros((workers.size, 3))
        if known.size:
            places = np.searchsorted(known, workers).clip(max=known.size - 1)
            there = known[places] == workers
            seen[there], terms[there] = watched.suspicion.numpy()[places[there]], watched.terms.numpy()[places[there]]
        return seen, np.ascontiguousarray(terms.T)

    def _with(self, watched: Watched, workers: np.ndarray, seen: np.ndarray, terms: np.ndarray) -> Watched:
        known = watched.workers.numpy()
        every = np.union1d(known, workers).astype(np.int64)
        wide, long = np.zeros((every.size, self.window)), np.zeros((every.size, 3))
        for numbers, some, others in (
            (known, watched.suspicion.numpy(), watched.terms.numpy()), (workers, seen, terms)
        ):  # fmt: skip
            places = np.searchsorted(every, numbers)
            wide[places], long[places] = some, others
        return Watched(*map(torch.from_numpy, (every, wide, long)))


@lru_cache(maxsize=100)
def _most(quarantine: Quarantine, pre: tuple[Mixing, ...], rule: Rule, n: int) -> int:
    possible = 0
    for excluded in range(min(rule.f, n - 1) + 1):
        try:
            check_rows(*quarantine.stages(pre, rule, excluded), n - excluded)
        except ValueError:
            break
        possible = excluded
    return possible


QUARANTINES = {"quarantine": Quarantine}


def with_f(pre: Sequence[Mixing], rule: Rule, f: Callable[[int], int]) -> tuple[tuple[Mixing, ...], Rule]:
    """The stages with another f, in each that has one."""
    return tuple(_with_f(mixing, f) for mixing in pre), _with_f(rule, f)


def _with_f(stage: Stage, f: Callable[[int], int]) -> Stage:
    own = next((option for option in fields(stage) if option.name == "f"), None)
    return stage if own is None else replace(stage, **{"f": f(vars(stage)["f"])})


__all__ = ["QUARANTINES", "Quarantine", "Watched"]
