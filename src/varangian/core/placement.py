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
SPAN = 2  # what the server sees is averaged over this many times 1 / (1 - beta) steps


@dataclass(frozen=True, eq=False)
class Placed:
    """What adaptive placement remembers between two steps.

    Attributes:
        momenta: [h, d], what the workers keep: m_i.
        update: [d], the last U.
        sketches: [n, k] in float64, what the server keeps of all momenta; [0, k] before the first step.
        products: [3, n, n] in float64, averages of what the server sees over some time: inner products of gradients,
            those of momenta, and those of gradients with what momenta would be had the newest gradients not come.
        numbers: [4] in float64: the place (1 at the workers, 0 at the server) and mu of the next step; how many steps
            the place has been what it is, and how often it changed.
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
        place, mu, since, switches = numbers.tolist()
        if not (place in (0, 1) and 0 <= mu < 1 and 0 <= since < 2**53 and 0 <= switches < 64):
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
    def ratios(self) -> tuple[float, float]:
        """The variance-norm ratios of gradients and of momenta, as the server estimates them: infinite where no signal
        is seen, NaN before the first step."""
        gradients, momenta, _ = self.products.numpy()
        return _ratio(gradients), _ratio(momenta)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the server makes of the vectors of a step, see :class:`Placed`."""

    sketches: Tensor
    products: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class Adaptive:
    """Momentum whose place follows from what the server sees, for ``Algorithm(placement=Adaptive(0.9))``.

    It starts at the workers, and moves when the variance-norm ratio of what is sent at the other place is ``margin``
    times lower. In a steady state that of momenta is (1 - mu) / (1 + mu) times that of gradients where these are
    aligned in time, as large if they are orthogonal, and (1 + mu) / (1 - mu) times as large if they alternate in sign.

    The ratio is estimated as spread / signal. The spread is half the median over i of the median over j != i of
    ||x_i - x_j||^2, the signal the median over i of the median over j != i of <x_i, x_j>, each pair's values averaged
    over about 2 / (1 - beta) steps. As long as f < (n - 1) / 2, whatever f hostile vectors are, each of these medians
    lies between values that pairs of honest workers have; near that bound it may be any of them. The kind that is not
    sent follows from the one that is, m_i = mu m_i + (1 - dampening) g_i. The server keeps no momenta for this, but
    sketches of 4093 numbers a worker, which cost one pass over [n, d] a step; up to d = 4093 they are exact. Their
    signs follow from the seed of the state, which a server that faces real adversaries keeps to itself.

    Whoever plays with the bit gains what the worse of both places gives, and not often: a place stays for at least
    1 / (1 - beta) steps, and twice as long after each change, so that in T steps it changes at most
    log2(1 + T (1 - beta)) times.

    Where gradients turn back, mu is lowered:

        mu = beta / (1 + curvature t),  t = min(1, max(-s, 0) / ||g||^2 (1 + mu) / mu)

    with s the composite curvature <g_t, sum_u mu^(t-u) g_u>, estimated like the signal: positive for gradients that go
    on as before, negative for ones that turn back. t is 0 for aligned and orthogonal gradients, 1 for alternating ones.

    Args:
        beta: the greatest mu, in (0, 1).
        dampening, nesterov: as of :class:`varangian.Momentum`.
        margin: >= 1, how many times lower the ratio of the other place must be; None for sqrt((1 + mu) / (1 - mu)),
            half way, in orders of magnitude, from where momentum changes nothing to the most that it can change.
        curvature: >= 0, how strongly mu follows the curvature; 0 not at all.

    Example:
        >>> import torch, varangian as vg
        >>> a = vg.Algorithm(worker=(vg.Clip(2.0),), rule=vg.Median(f=1), placement=vg.Adaptive(0.9))
        >>> state, signs = a.init(h=5, d=6), torch.tensor([1.0, -1.0])
        >>> noise = torch.eye(6)[1:]  # each worker's own
        >>> for step in range(40):  # gradients that turn back at each step
        ...     vectors, state = a.send(signs[step % 2] * 0.5 + noise, state)
        ...     update, state = a.aggregate(vectors, state)
        >>> state.placement.at_workers, round(state.placement.mu, 2)
        (False, 0.45)
    """

    beta: float
    dampening: float = 0.0
    nesterov: bool = False
    margin: float | None = None
    curvature: float = 1.0

    def __post_init__(self) -> None:
        set_real(self, "beta", "beta in (0, 1)", lambda beta: 0 < beta < 1)
        set_real(self, "dampening", "dampening in [0, 1)", lambda dampening: 0 <= dampening < 1)
        require(self, isinstance(self.nesterov, bool), "nesterov True or False", self.nesterov)
        if self.margin is not None:
            set_real(self, "margin", "margin >= 1", lambda margin: 1 <= margin < math.inf)
        set_real(self, "curvature", "curvature >= 0", lambda curvature: 0 <= curvature < math.inf)

    def least(self, mu: float) -> float:
        """How many times lower the ratio of the other place must be."""
        return math.sqrt((1 + mu) / (1 - mu)) if self.margin is None else self.margin

    @property
    def patience(self) -> int:
        """For how many steps the first place stays at least."""
        return math.ceil(1 / (1 - self.beta) - 1e-9)

    def init(self, h: int, d: int, dtype: torch.dtype, device: torch.device) -> Placed:
        """No momenta yet, at the workers.

        Raises:
            ValueError: it is to be on a device.
        """
        if device.type != "cpu":
            raise ValueError(f"Adaptive decides in main memory, got device {device}; use device cpu, or one place.")
        none = torch.zeros(0, min(d, WIDTH), dtype=torch.float64)
        numbers = torch.tensor([1, self.beta, 0, 0], dtype=torch.float64)
        return Placed(torch.zeros(h, d, dtype=dtype), torch.zeros(d, dtype=dtype), none, none, numbers).of(0)

    def look_ahead(self, parameters: Tensor, placed: Placed, lr: float) -> Tensor:
        """Where gradients are to be taken: theta - mu lr m_i, [h, d], or theta - mu lr U, [d], with Nesterov's."""
        if not self.nesterov:
            return parameters
        return torch.add(parameters, placed.momenta if placed.at_workers else placed.update, alpha=-placed.mu * lr)

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
        with np.errstate(invalid="ignore", over="ignore"):
            gradients = (sent - mu * before) / keep if placed.at_workers else sent
            momenta = sent if placed.at_workers else mu * before + keep * sent
            finite = np.isfinite(np.square(gradients).sum(1) + np.square(momenta).sum(1))
        g, m, past = (np.where(finite[:, None], x, 0) for x in (gradients, momenta, (1 + mu) / keep * before))
        pairs = np.outer(finite, finite)  # others leave no trace of this step
        newest = np.stack([g @ g.T, m @ m.T, g @ past.T])
        old, decay = placed.products.numpy(), 1 - (1 - self.beta) / SPAN
        products = torch.from_numpy(np.where(pairs, decay * old + (1 - decay) * newest, old))
        sketches = torch.from_numpy(np.where(finite[:, None], momenta, before))
        after = replace(placed, sketches=sketches, products=products)
        return Seen(sketches, products, self._decided(after))

    def _decided(self, placed: Placed) -> Tensor:
        """The numbers of the next step."""
        at_workers, mu, since, switches = placed.numbers.tolist()
        of_gradients, of_momenta = placed.ratios
        here, there = (of_momenta, of_gradients) if at_workers else (of_gradients, of_momenta)
        since += 1
        if there * self.least(mu) < here and since >= self.patience * 2**switches:
            at_workers, since, switches = 1 - at_workers, 0, switches + 1
        signal, turning = _usual(placed.products[0].numpy()), _usual(placed.products[2].numpy())
        turned = min(1.0, max(-turning / signal, 0.0)) if signal > 0 else 0.0
        return torch.tensor(
            [at_workers, self.beta / (1 + self.curvature * turned), since, switches], dtype=torch.float64
        )

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


def spread_and_signal(products: np.ndarray) -> tuple[float, float]:
    """The variance and the squared norm of the mean of vectors with these inner products, [n, n], of which less than
    half are hostile."""
    squares = np.diag(products)
    return max(_usual(squares[:, None] + squares[None, :] - 2 * products), 0.0) / 2, _usual(products)


def _ratio(products: np.ndarray) -> float:
    """Infinite where no signal is seen, NaN where nothing is."""
    spread, signal = spread_and_signal(products)
    if signal > 0:
        return spread / signal
    return math.inf if spread > 0 else math.nan


def _usual(table: np.ndarray) -> float:
    """The median over the rows of the medians off the diagonal; 0 of a single row."""
    n = len(table)
    if n < 2:
        return 0.0
    return float(np.median(np.median(table[~np.eye(n, dtype=bool)].reshape(n, n - 1), axis=1)))
