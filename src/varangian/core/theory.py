"""How robust a rule is, measured: the worst ratio of its error to the honest vectors' spread that a search finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb, inf

import numpy as np
import torch

from . import numerics
from .checks import require
from .randomness import generator
from .rules import Rule
from .stages import Mixing, check_rows, decide

SUBSETS = 5000  # as many sets S are all looked at; among more, those that look worst


def empirical_kappa(
    rule: Rule, n: int, *, d: int = 3, seed: int = 0, evaluations: int = 500, pre: Sequence[Mixing] = ()
) -> float:
    """The greatest ||F(x) - mean_S||^2 / (mean over i in S of ||x_i - mean_S||^2) that a search over x finds.

    S is any set of n - f vectors. (f, kappa)-robustness says that no x exceeds kappa; what is found here is a *lower
    bound* of the least such kappa, never a proof. It is infinite where n - f vectors agree and F does not follow them.

    The search tries the classical configurations first (n - f vectors agree and f differ, by which no rule has less
    than f / (n - 2f)), then random ones (clouds and clusters, with attackers at many distances), then climbs from the
    best: perturbations that make it worse are kept. The same arguments give the same number.

    Args:
        rule: the rule, with its f.
        n: how many vectors, at least ``rule.min_n``.
        d: of how many coordinates; the worst cases of most rules need few.
        seed: what the search draws from.
        evaluations: how often the rule may be asked, >= 10.
        pre: mixings before the rule: the coefficient is then that of both together, which "Fixing by Mixing" is about.

    Example:
        >>> import varangian as vg
        >>> empirical_kappa(vg.TrimmedMean(f=2), n=9) >= 2 / 5
        True
        >>> empirical_kappa(vg.Average(f=1), n=5)
        inf

    Reference: the definition is that of Allouah et al., "Fixing by Mixing", AISTATS 2023.
    """
    check_rows(pre, rule, n)
    f = rule.f if rule.robust else min(rule.f, (n - 1) // 2)
    require(rule, 2 * f < n, f"n > 2f = {2 * f} vectors to have a kappa", n)
    if d < 1 or evaluations < 10:
        raise ValueError(
            f"empirical_kappa needs d >= 1 and evaluations >= 10, got d = {d}, evaluations = {evaluations}."
        )
    random = generator(seed, "kappa")
    everywhere = all_sets(n, f) if comb(n, f) <= SUBSETS else None

    def attempt(x: np.ndarray) -> float:
        return worst_ratio(x, decide(torch.from_numpy(x), pre, rule).aggregate.numpy(), f, everywhere)

    best, least, spent = np.zeros((n, d)), -1.0, 0
    starts = _starts(n, f, d, random)
    for x in starts:
        if spent >= evaluations // 2 or least == inf:
            break
        ratio, spent = attempt(x), spent + 1
        if ratio > least:
            best, least = x, ratio
    step = 0.3
    while spent < evaluations and least < inf:
        scale = np.sqrt(np.square(best - np.median(best, axis=0)).sum(1).mean())
        moved = random.random((n, 1)) < random.choice([1 / n, 0.3, 1.0])
        x = best + step * scale * moved * random.standard_normal((n, d))
        ratio, spent = attempt(x), spent + 1
        if ratio > least:
            best, least, step = x, ratio, min(2 * step, 1.0)
        else:
            step = max(0.93 * step, 1e-4)
    return least


def all_sets(n: int, f: int) -> np.ndarray:
    """[k, n] masks of all sets of n - f out of n."""
    masks = np.ones((comb(n, f), n), bool)
    for row, left_out in zip(masks, combinations(range(n), f), strict=True):
        row[list(left_out)] = False
    return masks


def worst_ratio(x: np.ndarray, out: np.ndarray, f: int, sets: np.ndarray | None = None) -> float:
    """The greatest ||out - mean_S||^2 / spread_S over the given sets S, or over those that look worst."""
    n = x.shape[0]
    away = x - out
    furthest = np.square(away).sum(1).max()
    if sets is None:
        distance, along = np.square(away).sum(1), away @ away.mean(0)
        orders = [np.argsort(v, kind="stable") for v in (distance, -distance, along, -along)]
        orders += [np.argsort(s * away[:, k], kind="stable") for k in range(min(x.shape[1], 4)) for s in (1, -1)]
        sets = np.ones((len(orders) + 1, n), bool)
        sets[-1, n - f :] = False  # the attackers of a random configuration come last
        for row, order in zip(sets, orders, strict=False):
            row[order[:f]] = False
    worst = 0.0
    means = sets @ away / (n - f)
    errors = np.square(means).sum(1)
    spreads = sets @ np.square(away).sum(1) / (n - f) - errors
    for s in np.argsort(-errors / np.maximum(spreads, numerics.NO_SPREAD * furthest + np.finfo(float).tiny))[:20]:
        chosen = away[sets[s]]  # the few worst again, without cancellation
        mean = chosen.mean(0)
        error, spread = float(mean @ mean), float(np.square(chosen - mean).sum(1).mean())
        if error > numerics.NO_SPREAD * furthest:
            worst = max(worst, error / spread if spread > numerics.NO_SPREAD * furthest else inf)
    return worst


def _starts(n: int, f: int, d: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Configurations to start from, without end: the classical ones, then random ones, attackers last."""
    h = n - f
    direction = np.zeros(d)
    direction[0] = 1
    for offset in (0.0, 1.0, -1.0):  # rules that look at norms see a difference
        x = np.zeros((n, d))
        x[h:] = direction
        yield x + offset * direction
        yield -x + offset * direction
    while True:
        honest = random.standard_normal((h, d))
        kind = random.integers(4)
        if kind == 1:  # heavy tails
            honest *= np.abs(random.standard_cauchy((h, 1)))
        elif kind == 2:  # two clusters
            honest = 0.01 * honest + (np.arange(h)[:, None] < random.integers(1, h + 1)) * random.standard_normal(d)
        elif kind == 3:  # one stands apart
            honest[0] *= 10 ** random.uniform(0, 3)
        honest += random.choice([0.0, 1.0, 10.0]) * random.standard_normal(d)
        mean, std = honest.mean(0), honest.std(0)
        factor = random.choice([-1, 1]) * 10 ** random.uniform(-1, 2)
        target = [mean + factor * std, (1 - factor) * mean, honest[0] + 0 * mean, mean + factor * (honest[-1] - mean)]
        byzantine = np.repeat(target[random.integers(4)][None], f, axis=0)
        if random.random() < 0.3:
            byzantine = byzantine + 0.1 * std * random.standard_normal((f, d))
        yield np.concatenate([honest, byzantine])


__all__ = ["empirical_kappa"]
