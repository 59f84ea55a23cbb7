"""Momentum that moves: at the workers while that lowers the variance-norm ratio, at the server otherwise.

Workers keep m_i <- mu m_i + (1 - dampening) g_i all the time. What they send is told by one bit that comes with the
parameters, and so is mu:

    at the workers   they send m_i    U <- F( m_1, ..., m_n )
    at the server    they send g_i    U <- mu U + (1 - dampening) F( g_1, ..., g_n )

A change of place goes on from U. The server decides from the n vectors that it receives, without knowing who is honest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from . import kernels, randomness
from .checks import require, set_real
from .transforms import check_like

WIDTH = 4093  # numbers that a sketch keeps of a vector: a prime, so that no layout of weights falls in step with it
TURNED = 0.9  # how far gradients must turn back for momentum to leave the workers
SPAN = 2  # what the server sees is averaged over this many times 1 / (1 - beta) steps


@dataclass(frozen=True, eq=False)
class Placed:
    """What adaptive placement remembers between two steps.

    Attributes:
        momenta: [h, d], what the workers keep: m_i.
        update: [d], the last U.
        sketches: [n, k] in float64, what the server keeps of all momenta; [0, k] before the first step.
        products: [3, n, n] in float64, averages over some time of what the server sees: inner products of gradients;
            those of momenta, over the sum of the squared weights of gradients in them; and those of gradients with the
            weighted mean of past ones.
        numbers: [8] in float64: the place (1 at the workers, 0 at the server) and mu of the next step; for how many
            steps on end the other place has been called for, and how often the place changed; the sum of the weights
            of gradients in momenta and that of their squares; and the last :attr:`persistent` and :attr:`turning`.
    """

    momenta: Tensor
    update: Tensor
    sketches: Tensor
    products: Tensor
    numbers: Tensor

    def of(self, n: int) -> Placed:
        """The same before the first step, with room for what the server sees of n workers."""
        sketches = torch.zeros(n, self.sketches.shape[1], dtype=torch.float64)
        return replace(self, sketches=sketches, products=torch.zeros(3, n, n, dtype=torch.float64))

    def check(self, numbers: Tensor) -> None:
        """Raises ValueError for numbers that cannot be those of a state: anybody may have written them."""
        place, mu, called, switches, *weights, _, turning = numbers.tolist()
        sound = 0 <= called < 2**53 and 0 <= switches < 64 and all(0 <= w < math.inf for w in weights)
        if not (place in (0, 1) and 0 <= mu < 1 and sound and 0 <= turning <= 1):
            raise ValueError(f"numbers of momentum that moves: {numbers.tolist()} cannot be.")

    @property
    def at_workers(self) -> bool:
        """Where momentum stands in the next step."""
        return bool(self.numbers[0])

    @property
    def mu(self) -> float:
        """Of the next step."""
        return float(self.numbers[1])

    @property
    def switches(self) -> int:
        """How often the place has changed."""
        return int(self.numbers[3])

    @property
    def persistent(self) -> float:
        """The share of what tells workers' gradients apart that stays from step to step; NaN before it is seen."""
        return float(self.numbers[6])

    @property
    def turning(self) -> float:
        """How far gradients turn back: 0 for orthogonal ones and where it is not seen, 1 for alternating ones."""
        return float(self.numbers[7])

    @property
    def ratios(self) -> tuple[float, float]:
        """The variance-norm ratios of gradients and of momenta, as the server estimates them: infinite where no signal
        is seen, NaN before the second step."""
        spreads, signals = spread_and_signal(self.products.numpy()[:2])
        return _ratio(spreads[0], signals[0]), _ratio(spreads[1], signals[1])


@dataclass(frozen=True, eq=False)
class Seen:
    """What the server makes of the vectors of a step, see :class:`Placed`."""

    sketches: Tensor
    products: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class Adaptive:
    """Momentum whose place follows from what the server sees, for ``Algorithm(placement=Adaptive(0.9))``.

    It stands at the workers unless that has stopped to lower the variance-norm ratio of what is sent. In a steady state

        ratio of momenta / ratio of gradients = (q + (1 - q) persistent) / kept,    q = (1 - mu) / (1 + mu)

    where ``persistent`` is the share of what tells the gradients of workers apart that is the same at each step, as
    where their data differ: momentum averages only the rest. ``kept`` is what is left of the squared norm of the mean
    gradient in that of a mean over the time of momentum: 1 where gradients are aligned in time, q if they are
    orthogonal, q^2 if they alternate in sign. The server takes momentum over from the workers

        where nearly all persists: persistent > ``persistent``, so that there is nothing to average, and whom the rule
        rejects it rejects for as long as momentum lasts; or
        where gradients alternate: turning > 0.9, with turning = log(kept / q) / log(q), within 0 and 1,

    and gives it back where persistent < 1/2 and turning < 1/4. It does not look at the ratios themselves: an attack
    that holds training makes gradients turn back at both places, and moves them though the workers' place does better.

    A spread is half the median over i of the median over j != i of ||x_i - x_j||^2, a signal the median over i of the
    median over j != i of <x_i, x_j>, each pair's values averaged over about 2 / (1 - beta) steps, and ``persistent``
    the same of <g_i - g_j, p_i - p_j> as a share of that of ||g_i - g_j||^2, with p the mean of the past gradients of a
    worker as momentum weighs them. As long as f < (n - 1) / 2, whatever f hostile vectors are, each of these medians
    lies between values that pairs of honest workers have; near that bound it may be any of them. Gradients follow from
    momenta and momenta from gradients, m_i = mu m_i + (1 - dampening) g_i, whichever are sent. The server keeps no
    momenta for this, but sketches of 4093 numbers a worker, which cost one pass over [n, d] a step; up to d = 4093 they
    are exact. Their signs follow from the seed of the state, which a server that faces real adversaries keeps to
    itself.

    Whoever plays with the bit gains what the worse of both places gives, and not often: a place is left when the other
    has been called for in each of 1 / (2 (1 - beta)) steps, and twice as many after each change, so that in T steps it
    changes at most log2(1 + 2 T (1 - beta)) times.

    Where gradients turn back, mu is lowered: mu = beta / (1 + curvature turning).

    Args:
        beta: the greatest mu, in (0, 1).
        dampening, nesterov: as of :class:`varangian.Momentum`.
        persistent: in [1/2, 1], see above; with 1 data that differ move nothing.
        curvature: >= 0, how strongly mu follows turning; 0 not at all.

    Example:
        >>> import torch, varangian as vg
        >>> a = vg.Algorithm(worker=(vg.Clip(2.0),), rule=vg.Median(f=1), placement=vg.Adaptive(0.9))
        >>> state, signs = a.init(h=5, d=6), torch.tensor([1.0, -1.0])
        >>> own = 0.2 * torch.eye(6)[1:]  # data of each worker
        >>> for step in range(10):
        ...     vectors, state = a.send(torch.eye(6)[0] + own, state)
        ...     update, state = a.aggregate(vectors, state)
        >>> state.placement.at_workers, round(state.placement.persistent, 2)
        (False, 1.0)
    """

    beta: float
    dampening: float = 0.0
    nesterov: bool = False
    persistent: float = 0.94
    curvature: float = 1.0

    def __post_init__(self) -> None:
        set_real(self, "beta", "beta in (0, 1)", lambda beta: 0 < beta < 1)
        set_real(self, "dampening", "dampening in [0, 1)", lambda dampening: 0 <= dampening < 1)
        require(self, isinstance(self.nesterov, bool), "nesterov True or False", self.nesterov)
        set_real(self, "persistent", "persistent in [1/2, 1]", lambda persistent: 0.5 <= persistent <= 1)
        set_real(self, "curvature", "curvature >= 0", lambda curvature: 0 <= curvature < math.inf)

    @property
    def patience(self) -> int:
        """For how many steps on end the other place must be called for, the first time."""
        return math.ceil(0.5 / (1 - self.beta) - 1e-9)

    def init(self, h: int, d: int, dtype: torch.dtype, device: torch.device) -> Placed:
        """No momenta yet, at the workers.

        Raises:
            ValueError: it is to be on a device.
        """
        if device.type != "cpu":
            raise ValueError(f"Adaptive decides in main memory, got device {device}; use device cpu, or one place.")
        none = torch.zeros(0, min(d, WIDTH), dtype=torch.float64)
        numbers = torch.tensor([1, self.beta, 0, 0, 0, 0, math.nan, 0], dtype=torch.float64)
        return Placed(torch.zeros(h, d, dtype=dtype), torch.zeros(d, dtype=dtype), none, none, numbers).of(0)

    def look_ahead(self, parameters: Tensor, placed: Placed, lr: float) -> Tensor:
        """Where gradients are to be taken: theta - mu lr m_i, [h, d], or theta - mu lr U, [d], with Nesterov's."""
        if not self.nesterov:
            return parameters
        return kernels.moved(parameters, placed.momenta if placed.at_workers else placed.update, -placed.mu * lr)

    def see(self, vectors: Tensor, placed: Placed, seed: int) -> Seen:
        """What the server learns from the n vectors of a step; one pass over them. Nothing is changed.

        Raises:
            ValueError: not as many vectors as before.
        """
        sent = sketch(vectors, seed)
        if not len(placed.sketches):
            placed = placed.of(len(sent))
        before = placed.sketches.numpy()
        if before.shape != sent.shape:
            raise ValueError(
                f"Adaptive follows each worker's momentum: it needs {len(before)} vectors, got {len(sent)}."
            )
        keep, mu = 1 - self.dampening, placed.mu
        past, squares = placed.numbers[4:6].tolist()
        weights = mu * past + keep, mu**2 * squares + keep**2
        with np.errstate(invalid="ignore", over="ignore"):
            own, common, old = sent @ sent.T, sent @ before.T, before @ before.T
            both = common + common.T
            if placed.at_workers:
                momenta, sketches = own, sent
                gradients, common = (own - mu * both + mu**2 * old) / keep**2, (common - mu * old) / keep
            else:
                gradients, sketches = own, mu * before + keep * sent
                momenta = mu**2 * old + mu * keep * both + keep**2 * own
            finite = np.isfinite(np.diag(gradients) + np.diag(momenta))
        if not finite.all():  # such a worker leaves no trace of this step
            sketches = np.where(finite[:, None], sketches, before)
        products = placed.products.numpy()
        if past:  # the first step has no past to compare it with
            decay = 1 - (1 - self.beta) / SPAN
            averaged = decay * products + (1 - decay) * np.stack([gradients, momenta / weights[1], common / past])
            products = averaged if finite.all() else np.where(np.outer(finite, finite), averaged, products)
        after = replace(placed, sketches=torch.from_numpy(sketches), products=torch.from_numpy(products))
        return Seen(after.sketches, after.products, self._decided(after, weights))

    def _decided(self, placed: Placed, weights: tuple[float, float]) -> Tensor:
        """The numbers of the next step."""
        at_workers, mu, called, switches, *_ = placed.numbers.tolist()
        products = placed.products.numpy()
        persistent, turning = persistence(products), 0.0
        _, (gradients, momenta, _) = spread_and_signal(products)
        most = math.log((1 - mu) / (1 + mu))  # what alternating gradients make of the logarithm; 0 of a mu too small
        if gradients > 0 and momenta > 0 and most:
            turning = min(max(math.log(momenta / gradients) / most, 0.0), 1.0)
        if at_workers:
            calls = persistent > self.persistent or turning > TURNED
        else:
            calls = persistent < 1 / 2 and turning < 1 / 4
        called = called + 1 if calls else 0
        if called >= self.patience * 2**switches:
            at_workers, called, switches = 1 - at_workers, 0, switches + 1
        mu = self.beta / (1 + self.curvature * turning)
        return torch.tensor([at_workers, mu, called, switches, *weights, persistent, turning], dtype=torch.float64)

    def finish(self, aggregate: Tensor, placed: Placed, seen: Seen, in_place: bool) -> tuple[Tensor, Placed]:
        """U, which must stay untouched, and what is remembered."""
        out = placed.update if in_place else torch.empty_like(placed.update)
        if placed.at_workers:
            update = out.copy_(aggregate)
        else:
            update = kernels.blend(1 - self.dampening, aggregate, placed.mu, placed.update, out=out)
        return update, Placed(placed.momenta, update, seen.sketches, seen.products, seen.numbers)


def check_placed(placement: Adaptive | None, placed: Placed | None, x: Tensor, rows: bool = False) -> None:
    """Raises ValueError unless what is remembered is of this placement and of vectors like x, [d] or with ``rows``
    [h, d]."""
    if placement is None and placed is None:
        return
    if placement is None or not isinstance(placed, Placed):
        raise ValueError(f"Algorithm: the state is one of another algorithm, and placement is {placement}.")
    check_like("Adaptive", "momenta, which Algorithm.init makes,", placed.momenta, x) if rows else None
    check_like("Adaptive", "its last update, which Algorithm.init makes,", placed.update, x, rows=False)


def sketch(x: Tensor, seed: int) -> np.ndarray:
    """[n, k] in float64 of [n, d]: the vectors themselves up to d = WIDTH, else sums of every WIDTH-th coordinate under
    random signs. It is linear, and inner products are right on average, within a part sqrt(2 / k) of the norms."""
    wide = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    d = x.shape[1]
    if d <= WIDTH:
        return wide.to(torch.float64, copy=True).numpy()
    signs = _signs(seed, d).to(wide.dtype)
    folded = wide[:, :WIDTH] * signs[:WIDTH]
    for start in range(WIDTH, d, WIDTH):
        stop = min(start + WIDTH, d)
        folded[:, : stop - start].addcmul_(wide[:, start:stop], signs[start:stop])
    return folded.double().numpy()


@lru_cache(maxsize=4)
def _signs(seed: int, d: int) -> Tensor:
    drawn = randomness.generator(seed, "placement").integers(2, size=d, dtype=np.int8)
    return torch.from_numpy(2 * drawn - 1)


def spread_and_signal(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The variances and the squared norms of the means of k kinds of vectors with these inner products, [k, n, n], of
    which less than half are hostile: [k] each."""
    spreads, signals = _usual(np.stack([_apart(products), products]))
    return np.maximum(spreads, 0) / 2, signals


def persistence(products: np.ndarray) -> float:
    """The share of what tells gradients apart that their past has in common with them; NaN where nothing does.

    Args:
        products: [3, n, n], see :class:`Placed`.
    """
    apart, common = _usual(_apart(products[[0, 2]]))
    return float(common / apart) if apart > 0 else math.nan


def _apart(products: np.ndarray) -> np.ndarray:
    """<x_i - x_j, y_i - y_j> of the inner products <x_i, y_j>, [k, n, n]."""
    own = np.diagonal(products, axis1=-2, axis2=-1)
    return own[..., :, None] + own[..., None, :] - products - np.swapaxes(products, -1, -2)


def _ratio(spread: float, signal: float) -> float:
    """Infinite where no signal is seen, NaN where nothing is."""
    if signal > 0:
        return float(spread / signal)
    return math.inf if spread > 0 else math.nan


def _usual(tables: np.ndarray) -> np.ndarray:
    """[...] of [..., n, n]: the medians over the rows of the medians off the diagonal; 0 of a single row."""
    n = tables.shape[-1]
    if n < 2:
        return np.zeros(tables.shape[:-2])
    others = tables[..., ~np.eye(n, dtype=bool)].reshape(*tables.shape[:-1], n - 1)
    return _median(_median(others))


def _median(x: np.ndarray) -> np.ndarray:
    """Over the last axis, ten times as fast as NumPy's on a few numbers."""
    ordered, n = np.sort(x, axis=-1), x.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2
