"""What the adversary sends, knowing everything: the vectors of the honest workers, the defence, the last aggregate.

mean and std are those of the vectors that honest workers send (momentum included), per coordinate.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import cos, inf, isfinite, radians, sin, sqrt
from statistics import NormalDist
from typing import Any, ClassVar, Literal, overload

import numpy as np
import torch
from torch import Tensor

from . import kernels, randomness
from .algorithm import Algorithm
from .checks import brief, require, set_real, set_whole, shown, whole
from .geometry import Geometry, mean_weights, power_below, sum_of_smallest
from .mixing import Mixing
from .randomness import BARE, Draw
from .references import NotImported, known
from .rules import Krum, Rule, Selecting
from .stages import as_matrix, check_rows, decide

Defence = Callable[[Any], Any]
PANEL = 8192  # columns at a time where float64 copies are made


TRIED = BARE.fork()


@dataclass(frozen=True, eq=False)
class ComposedDefence:
    """What the server does to n vectors, as an adversary may try it out: mixings, a rule, and the last aggregate.

    A value, so that trying it out advances nothing. Any callable [n, d] -> [d] may be a defence; this one shows its
    parts, which lets :class:`WorstCase` work on distances.

    Attributes:
        pre: mixings.
        rule: the rule behind them.
        previous: [d], the last aggregate, for rules that use it; or None.
        draw: what its rules and mixings draw: numbers like the server's, but others. An adversary knows how the server
            draws, not what.
    """

    pre: tuple[Mixing, ...]
    rule: Rule
    previous: Tensor | None = None
    draw: Draw = TRIED

    @kernels.eager
    def __call__(self, x: Tensor) -> Tensor:
        return decide(x, self.pre, self.rule, self.previous, self.draw).aggregate


def as_defence(defence: Any, previous: Tensor | None = None) -> Defence | None:
    """A defence an attack can try: algorithms and rules with their parts in sight, other callables as they are."""
    if isinstance(defence, Algorithm):
        return ComposedDefence(defence.pre, defence.rule, previous)
    if isinstance(defence, Rule):
        return ComposedDefence((), defence, previous)
    return defence


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the adversary knows when it crafts its f vectors.

    Attributes:
        honest: [h, d] what honest workers send; only read.
        f: how many vectors the adversary controls.
        defence: the composed defence, [n, d] -> [d], its state forked; or None.
        previous: [d], the last aggregate; or None.
        random: the random numbers of this step.
        flipped: [f, d] what the f workers would send if they followed the protocol on data whose labels c are turned
            into C - 1 - c; or None. Only for attacks that say so (``uses_flipped``).
        known: the moments of the honest vectors, where somebody has computed them already.
    """

    honest: Tensor
    f: int
    defence: Defence | None
    previous: Tensor | None
    random: np.random.Generator
    flipped: Tensor | None = None
    known: tuple[Tensor, Tensor] | None = None

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased standard deviation of the honest vectors, [d] and [d]; computed once, for all who ask."""
        return kernels.mean_and_std(self.honest) if self.known is None else self.known

    @property
    def mean(self) -> Tensor:
        return self.moments[0]

    @cached_property
    def unit(self) -> float:
        """1, or in double precision the power of two in which what honest vectors measure has squares in its range."""
        if self.honest.dtype != torch.float64:
            return 1.0
        # No coordinate is further from its mean than h - 1 standard deviations.
        size = float(torch.maximum(self.mean.abs(), self.moments[1].nan_to_num(0, inf)).max())
        return 1.0 if not 0 < size < inf or 1e-60 < size < 1e60 else power_below(size)

    def copied(self) -> Knowledge:
        """The same, with tensors of its own: whatever is written there, nobody else sees."""
        defence = self.defence
        if isinstance(defence, ComposedDefence):
            defence = replace(defence, previous=None if defence.previous is None else defence.previous.clone())
        return replace(
            self,
            honest=self.honest.clone(),
            defence=defence,
            previous=None if self.previous is None else self.previous.clone(),
            flipped=None if self.flipped is None else self.flipped.clone(),
            known=None if self.known is None else (self.known[0].clone(), self.known[1].clone()),
        )

    def same_vectors(self, other: Knowledge) -> bool:
        """Whether the vectors of workers are the same to the bit, NaN included."""
        pairs = [(self.honest, other.honest), (self.flipped, other.flipped)]
        return all(
            torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
            for mine, theirs in pairs
            if mine is not None and theirs is not None
        )

    def in_unit(self) -> Knowledge:
        """The same, with all vectors divided by ``unit``; without the defence, which knows lengths."""
        if self.unit == 1:
            return self
        return replace(
            self,
            honest=self.honest / self.unit,
            defence=None,
            previous=None if self.previous is None else self.previous / self.unit,
            flipped=None if self.flipped is None else self.flipped / self.unit,
            known=None,
        )


@dataclass(frozen=True)
class Attack(ABC):
    """An attack: the honest vectors to f Byzantine ones. An immutable value; subclasses write :meth:`craft`, and
    :meth:`check` where they cannot do with any h, f and d.

    Attacks remember nothing: what their papers carry from step to step is taken from what an omniscient adversary sees
    anyway (the last aggregate, the momenta inside honest vectors), under "Convention" in each docstring.
    """

    title: ClassVar[str] = ""  # what figures call it; its name if empty
    uses_previous: ClassVar[bool] = False  # whoever runs it must keep the last aggregate
    uses_defence: ClassVar[bool] = False
    uses_flipped: ClassVar[bool] = False  # whoever runs it must have the f workers learn from flipped labels

    @overload
    def __call__(
        self, honest: Tensor | Sequence[Tensor], f: int, defence: Defence | Algorithm | None = None,
        previous: Any = None, random: np.random.Generator | None = None, flipped: Any = None,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def __call__(
        self, honest: np.ndarray | Sequence[np.ndarray], f: int, defence: Defence | Algorithm | None = None,
        previous: Any = None, random: np.random.Generator | None = None, flipped: Any = None,
    ) -> np.ndarray: ...  # fmt: skip
    @kernels.eager
    def __call__(
        self,
        honest: Any,
        f: int,
        defence: Defence | Algorithm | None = None,
        previous: Any = None,
        random: np.random.Generator | None = None,
        flipped: Any = None,
    ) -> Any:
        """[h, d] -> [f, d], of the same kind, dtype and device; a new array, and the honest vectors are only read.

        Args:
            honest: the vectors of the h honest workers.
            f: how many vectors to craft, >= 0.
            defence: what the server does, for attacks that try it: a rule, an algorithm, or any [n, d] -> [d].
            previous: [d], the last aggregate, for attacks that use it.
            random: the source of random numbers; a fixed one by default, so that the call is reproducible.
            flipped: [f, d], what the f workers would send had they learnt from flipped labels, for LabelFlip.
        """
        matrix, restore = as_matrix(self, honest)
        f = whole(self, "f", f)
        if f == 0:
            return restore(matrix.new_empty(0, matrix.shape[1]))
        if previous is not None:
            previous = torch.as_tensor(previous, dtype=matrix.dtype, device=matrix.device).detach()
        if flipped is not None:
            flipped = as_matrix(self, flipped)[0].to(matrix)
        random = randomness.generator(0, "attack") if random is None else random
        crafted = self.send(Knowledge(matrix, f, as_defence(defence, previous), previous, random, flipped))
        self.warn_if_idle(matrix.shape[0], f)
        return restore(crafted.expand(f, -1).clone() if crafted.ndim == 1 else crafted)

    @abstractmethod
    def craft(self, seen: Knowledge) -> Tensor:
        """A new [d] that all f workers send, or a new [f, d]; f >= 1."""

    def check(self, h: int, f: int, d: int | None = None) -> None:
        """Raises ValueError where the attack is not defined for h honest vectors and f >= 1 of its own, of d
        coordinates where these are known already. A run asks before it starts."""
        require(self, h >= 1, "at least 1 honest vector", h)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        """Why nobody is attacked with these options, for h honest vectors, f >= 1 of its own and labels of so many
        classes, where these are known; None where somebody is."""
        return None

    def warn_if_idle(self, h: int, f: int, classes: int | None = None) -> None:
        """Says once why nobody is attacked; for whoever runs the attack, before the first step."""
        reason = self.idle(h, f, classes)
        if reason is not None:
            warnings.warn(f"{brief(self)} attacks nobody with n = {h + f}, f = {f}: {reason}.", stacklevel=3)

    def send(self, seen: Knowledge) -> Tensor:
        """:meth:`craft` as whoever runs an attack calls it: asked what is possible, what is sent looked at.

        Half precision is crafted in single precision and rounded once, since deviations and squares soon leave its
        range; what is too large for it is sent as its greatest number.

        Raises:
            ValueError: sizes that the attack cannot do with, or an attack that does not send what it must.
        """
        (h, d), f, dtype = seen.honest.shape, seen.f, seen.honest.dtype
        require(self, h >= 1, "at least 1 honest vector", h)
        self.check(h, f, d)
        half = dtype in (torch.float16, torch.bfloat16)
        crafted = self.craft(_widened(seen) if half else seen)
        wanted = f"{type(self).__name__} must send [d] = [{d}] or [f, d] = [{f}, {d}] of {dtype}"
        if not isinstance(crafted, Tensor):
            raise ValueError(f"{wanted}, got {type(crafted).__name__}.")
        if list(crafted.shape) not in ([d], [f, d]):
            raise ValueError(f"{wanted}, got shape {list(crafted.shape)}.")
        if half and crafted.dtype == torch.float32:
            limit = torch.finfo(dtype).max
            crafted = torch.where(crafted.isfinite(), crafted.clamp(-limit, limit), crafted).to(dtype)
        if crafted.dtype != dtype or crafted.device != seen.honest.device:
            raise ValueError(f"{wanted} on {seen.honest.device}, got {crafted.dtype} on {crafted.device}.")
        return crafted


def _widened(seen: Knowledge) -> Knowledge:
    """The same in single precision."""
    defence, dtype = seen.defence, seen.honest.dtype

    def asked(x: Any) -> Any:
        assert defence is not None
        return defence(x.to(dtype)).float()

    return replace(
        seen,
        honest=seen.honest.float(),
        defence=defence if defence is None or isinstance(defence, ComposedDefence) else asked,
        previous=None if seen.previous is None else seen.previous.float(),
        flipped=None if seen.flipped is None else seen.flipped.float(),
        known=None,
    )


MEAN = "the honest mean itself is sent"
ALONE = "one honest vector has no spread, and is sent again"


@dataclass(frozen=True)
class Little(Attack):
    """A Little Is Enough: a shift within the spread of honest vectors, too small to stand out, always the same way.

    mean + sign * factor * std

    Args:
        factor: how many standard deviations; None is the original choice Phi^-1((n - f - s) / (n - f)),
            s = floor(n / 2 + 1) - f, the largest shift that still finds enough honest supporters beyond it.
        sign: -1 or 1.
        ddof: 1 for the unbiased standard deviation, 0 for the biased one.

    Shape: [h, d] -> f equal rows [f, d]; h >= 2 with ddof 1.
    Cost: one pass.
    Convention: the paper of distributed momentum uses factor 1.5, sign -1, ddof 1.

    Warns:
        UserWarning: nobody is attacked: factor 0, or None where so few attack that the original one is not positive.

    Example:
        >>> import torch
        >>> Little(factor=1.0)(torch.tensor([[0.0], [2.0]]), f=1)
        tensor([[-0.4142]])

    Reference: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning",
    NeurIPS 2019.
    """

    title: ClassVar[str] = "Little"

    factor: float | None = 1.5
    sign: int = -1
    ddof: int = 1

    def __post_init__(self) -> None:
        set_real(self, "factor", "a finite factor", isfinite, optional=True)
        set_whole(self, "sign", least=-1)
        require(self, self.sign in (-1, 1), "sign -1 or 1", self.sign)
        set_whole(self, "ddof")
        require(self, self.ddof in (0, 1), "ddof 0 or 1", self.ddof)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        require(self, h > self.ddof, f"at least {self.ddof + 1} honest vectors", h)
        if self.factor is None:
            original_factor(h + f, f)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        if h == 1:
            return ALONE
        if self.factor is not None:
            return None if self.factor else MEAN
        factor = original_factor(h + f, f)
        if factor > 0:
            return None
        return f"its factor is {factor:.3g}, so that the honest mean is sent, or a vector on its other side"

    def craft(self, seen: Knowledge) -> Tensor:
        h = seen.honest.shape[0]
        mean, std = seen.moments if h > 1 else (seen.mean, torch.zeros_like(seen.mean))
        factor = original_factor(h + seen.f, seen.f) if self.factor is None else self.factor
        return torch.add(mean, std, alpha=self.sign * factor * (1.0 if self.ddof else ((h - 1) / h) ** 0.5))


def original_factor(n: int, f: int) -> float:
    """The factor of A Little Is Enough for n workers, f of them Byzantine (Baruch et al., 2019, algorithm 3).

    Example:
        >>> round(original_factor(50, 24), 2)
        1.43
    """
    supporters = n // 2 + 1 - f
    share = (n - f - supporters) / (n - f)
    if not 0 < share < 1:
        raise ValueError(f"Little(factor=None) needs 0 < s < n - f for s = floor(n/2 + 1) - f, got n = {n}, f = {f}.")
    return NormalDist().inv_cdf(share)


@dataclass(frozen=True)
class Empire(Attack):
    """Fall of Empires: the mean of honest vectors, turned around and scaled, to make inner products negative.

    mean + factor * (-mean) = (1 - factor) mean

    Args:
        factor: 1.1 in the paper of distributed momentum, so that -0.1 mean is sent.

    Shape: [h, d] -> f equal rows [f, d].
    Cost: one pass.
    Convention: elsewhere -epsilon * mean, epsilon = factor - 1 ("inner product manipulation").

    Example:
        >>> import torch
        >>> Empire(factor=1.5)(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), f=1)
        tensor([[-1., -2.]])

    Reference: Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation",
    UAI 2019.
    """

    title: ClassVar[str] = "Empire"

    factor: float = 1.1

    def __post_init__(self) -> None:
        set_real(self, "factor", "a finite factor", isfinite)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return None if self.factor else MEAN  # below 0 the mean is sent, but made longer, which some rules follow

    def craft(self, seen: Knowledge) -> Tensor:
        return torch.add(seen.mean, seen.mean, alpha=-self.factor)


@dataclass(frozen=True)
class SignFlip(Attack):
    """The opposite of the mean of honest vectors: -mean.

    Example:
        >>> import torch
        >>> SignFlip()(torch.tensor([[1.0], [3.0]]), f=1)
        tensor([[-2.]])
    """

    def craft(self, seen: Knowledge) -> Tensor:
        return -seen.mean


@dataclass(frozen=True)
class Gaussian(Attack):
    """Noise: f independent vectors of N(0, std^2) coordinates.

    Args:
        std: standard deviation, > 0; 200 where the attack was introduced.

    Example:
        >>> import torch
        >>> Gaussian()(torch.zeros(3, 2), f=4).shape
        torch.Size([4, 2])

    Reference: Blanchard et al., NeurIPS 2017.
    """

    std: float = 200.0

    def __post_init__(self) -> None:
        set_real(self, "std", "a finite std > 0", lambda std: 0 < std < inf)

    def craft(self, seen: Knowledge) -> Tensor:
        noise = seen.random.standard_normal((seen.f, seen.honest.shape[1]), dtype=np.float32)
        return torch.from_numpy(noise).to(seen.honest) * self.std


@dataclass(frozen=True)
class Zero(Attack):
    """Nothing: zero vectors, as from a worker that stopped computing.

    Example:
        >>> import torch
        >>> Zero()(torch.ones(3, 2), f=1)
        tensor([[0., 0.]])
    """

    def craft(self, seen: Knowledge) -> Tensor:
        return seen.honest.new_zeros(seen.honest.shape[1])


@dataclass(frozen=True)
class NaN(Attack):
    """Not a number in every coordinate: one such vector destroys an average for ever.

    Example:
        >>> import torch
        >>> NaN()(torch.ones(3, 2), f=1)
        tensor([[nan, nan]])
    """

    def craft(self, seen: Knowledge) -> Tensor:
        return seen.honest.new_full((seen.honest.shape[1],), float("nan"))


@dataclass(frozen=True)
class Inf(Attack):
    """Infinity in every coordinate.

    Args:
        sign: "+", "-", or "mixed", which alternates from coordinate to coordinate.

    Example:
        >>> import torch
        >>> Inf(sign="mixed")(torch.ones(3, 2), f=1)
        tensor([[inf, -inf]])
    """

    sign: Literal["+", "-", "mixed"] = "+"

    def __post_init__(self) -> None:
        require(self, self.sign in ("+", "-", "mixed"), 'sign "+", "-" or "mixed"', self.sign)

    def craft(self, seen: Knowledge) -> Tensor:
        vector = seen.honest.new_full((seen.honest.shape[1],), float("-inf" if self.sign == "-" else "inf"))
        if self.sign == "mixed":
            vector[1::2] = float("-inf")
        return vector


@dataclass(frozen=True)
class Mimic(Attack):
    """All f copy one honest worker, the one furthest along the direction in which honest vectors differ most.

    Nothing that is sent looks wrong; one worker's data is only counted f times more than it should be.

    z = the top principal direction of the centred honest vectors;  x_i of greatest |<z, x_i>|

    Shape: [h, d] -> f equal rows [f, d].
    Cost: one pass for h x h distances; the eigenvectors are found between them.
    Convention: the paper learns z and i over a warm-up of many steps and then keeps i; this is the form of one step, on
        honest vectors that carry the past in their momenta. Ties go to the lexicographically smaller vector; honest
        vectors that are not finite are never copied.

    Example:
        >>> import torch
        >>> Mimic()(torch.tensor([[0.0, 1.0], [1.0, 1.0], [5.0, 1.0]]), f=1)
        tensor([[5., 1.]])

    Reference: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022.
    """

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return ALONE if h == 1 else None

    def craft(self, seen: Knowledge) -> Tensor:
        geometry = Geometry.of(seen.honest)
        good = np.flatnonzero(geometry.finite)
        if not good.size:
            return seen.honest[0].clone()
        squared, norms = geometry.distances[np.ix_(good, good)], geometry.norms[good]
        inner = 0.5 * (norms[:, None] + norms[None, :] - squared)
        # About the first honest vector rather than about their mean: nothing cancels, and one more centring follows.
        about = 0.5 * (squared[:, :1] + squared[:1] - squared)
        centred = about - about.mean(0) - about.mean(1)[:, None] + about.mean()
        axis = np.linalg.eigh(centred)[1][:, -1]
        along = (axis - axis.mean()) @ inner
        scores = np.full(geometry.n, inf)
        scores[good] = -np.abs(along)
        return seen.honest[int(geometry.smallest(scores, 1)[0])].clone()


Direction = Literal["std", "sign", "unit"]
DIRECTIONS_OF_SHIFT = ("std", "sign", "unit")


def perturbation(seen: Knowledge, direction: Direction) -> Tensor:
    """[d] the p of Shejwalkar and Houmansadr: std, sign(mean) or mean / ||mean|| (null where the mean is)."""
    if direction == "std":
        return seen.moments[1]
    if direction == "sign":
        return seen.mean.sign()
    norm = float(kernels.norms(seen.mean))
    return seen.mean / norm if norm else seen.mean


def check_direction(attack: MinMax | MinSum, h: int) -> None:
    require(attack, h > 1 or attack.direction != "std", 'at least 2 honest vectors with direction="std"', h)


def along(honest: Tensor, start: Tensor, p: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """(||start - x_i||^2, <start - x_i, p>, ||p||^2), in float64: all that the distances from start - t p depend on."""
    a, b, c = np.zeros(len(honest)), np.zeros(len(honest)), 0.0
    for s in range(0, honest.shape[1], PANEL):
        away = (start[s : s + PANEL].double() - honest[:, s : s + PANEL].double()).cpu()
        part = p[s : s + PANEL].double().cpu()
        a += away.square().sum(1).numpy()
        b += (away @ part).numpy()
        c += float(part @ part)
    return a, b, c


@dataclass(frozen=True)
class MinMax(Attack):
    """The mean, shifted as far as no honest vector is further from it than two honest vectors are from each other.

    mean - gamma p, for the greatest gamma with max over i of ||m - x_i|| <= max over i, j of ||x_i - x_j||

    Args:
        direction: p is the standard deviation ("std"), the sign of the mean ("sign"), or its direction ("unit").

    Shape: [h, d] -> f equal rows [f, d]; h >= 2 with direction "std".
    Cost: one pass for the moments, one for h x h distances, one along p.
    Convention: gamma in closed form, where the paper bisects to a tolerance: each honest vector bounds it by a root of
        a quadratic. The standard deviation is the unbiased one.

    Example:
        >>> import torch
        >>> MinMax()(torch.tensor([[0.0], [2.0], [4.0]]), f=1).round(decimals=4).abs()
        tensor([[0.]])

    Reference: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
    Federated Learning", NDSS 2021.
    """

    direction: Direction = "std"

    def __post_init__(self) -> None:
        require(self, self.direction in DIRECTIONS_OF_SHIFT, 'direction "std", "sign" or "unit"', self.direction)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        check_direction(self, h)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return ALONE if h == 1 else None

    def craft(self, seen: Knowledge) -> Tensor:
        unit, seen = seen.unit, seen.in_unit()
        p = perturbation(seen, self.direction)
        a, b, c = along(seen.honest, seen.mean, p)
        if not c > 0:
            return seen.mean * unit
        bound = kernels.squared_distances(seen.honest)[:-1, :-1].max()
        # ||m - x_i||^2 = a_i - 2 b_i gamma + c gamma^2; the mean itself is within the bound, but for rounding.
        gamma = ((b + np.sqrt(np.maximum(b * b - c * (a - bound), 0))) / c).min()
        return torch.add(seen.mean, p, alpha=-float(gamma)) * unit


@dataclass(frozen=True)
class MinSum(Attack):
    """The mean, shifted as far as it is no further from all honest vectors together than one of them is.

    mean - gamma p, for the greatest gamma with
    sum over i of ||m - x_i||^2 <= max over i of the sum over j of ||x_i - x_j||^2

    Args:
        direction: as for :class:`MinMax`.
        bound: "max" as the paper writes it; "min", the least of these sums, as the code published with it computes
            (fairly certain).

    Shape, Cost: as for :class:`MinMax`.
    Convention: gamma in closed form, where the paper bisects: the left side is the sum of ||mean - x_i||^2 plus
        h gamma^2 ||p||^2.

    Example:
        >>> import torch
        >>> MinSum()(torch.tensor([[0.0], [2.0], [4.0]]), f=1).round(decimals=4).abs()
        tensor([[0.]])

    Reference: Shejwalkar, Houmansadr, NDSS 2021.
    """

    direction: Direction = "std"
    bound: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        require(self, self.direction in DIRECTIONS_OF_SHIFT, 'direction "std", "sign" or "unit"', self.direction)
        require(self, self.bound in ("max", "min"), 'bound "max" or "min"', self.bound)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        check_direction(self, h)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return ALONE if h == 1 else None

    def craft(self, seen: Knowledge) -> Tensor:
        unit, seen = seen.unit, seen.in_unit()
        p = perturbation(seen, self.direction)
        a, _, c = along(seen.honest, seen.mean, p)
        if not c > 0:
            return seen.mean * unit
        sums = kernels.squared_distances(seen.honest)[:-1, :-1].sum(1)
        bound = sums.max() if self.bound == "max" else sums.min()
        gamma = np.sqrt(np.maximum(bound - a.sum(), 0) / (a.size * c))
        return torch.add(seen.mean, p, alpha=-float(gamma)) * unit


@dataclass(frozen=True)
class AntiCGE(Attack):
    """Against the elimination of the longest vectors (CGE): opposite to what it keeps, and just short enough to stay.

    -(sum of the h - f shortest honest vectors), its norm just under that of the next honest one

    Shape: [h, d] -> f equal rows [f, d]; h > f.
    Cost: one pass for norms, one over the rows summed.
    Convention: "just under" is by 1e-6 of the norm, or by the rounding of the data type where that is coarser. Ties go
        to the lexicographically smaller vector.

    Example:
        >>> import torch
        >>> AntiCGE()(torch.tensor([[1.0], [2.0], [4.0]]), f=1)
        tensor([[-4.0000]])
    """

    def check(self, h: int, f: int, d: int | None = None) -> None:
        require(self, h > f, f"more honest vectors than the f = {f} that attack", h)

    def craft(self, seen: Knowledge) -> Tensor:
        h, f = seen.honest.shape[0], seen.f
        geometry = Geometry.of(seen.honest)
        order = geometry.smallest(geometry.norms, h)
        margin = max(1e-6, torch.finfo(seen.honest.dtype).eps)
        radius = (1 - margin) * float(np.sqrt(geometry.norms[order[h - f]])) * geometry.unit
        direction = kernels.weighted_rows(seen.honest, mean_weights(order[: h - f], h))
        norm = float(kernels.norms(direction))
        return direction * (-radius / norm if norm > 0 else 1.0)


@dataclass(frozen=True)
class HiddenVulnerability(Attack):
    """The mean of honest vectors but for one coordinate: in high dimension that is hardly further away.

    mean + factor e_k

    Args:
        coordinate: k, >= 0.
        factor: how much is added; what a rule still takes grows like the honest vectors' distance to each other, that
            is like the square root of d.

    Shape: [h, d] -> f equal rows [f, d]; d > coordinate.
    Cost: one pass.
    Convention: the paper looks for the greatest factor that the rule accepts: ``WorstCase(directions=("bulyan",))``
        does.

    Example:
        >>> import torch
        >>> HiddenVulnerability(coordinate=1, factor=5.0)(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), f=1)
        tensor([[2., 7.]])

    Reference: El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML
    2018.
    """

    coordinate: int = 0
    factor: float = 1.0

    def __post_init__(self) -> None:
        set_whole(self, "coordinate")
        set_real(self, "factor", "a finite factor", isfinite)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        require(self, d is None or self.coordinate < d, f"a coordinate below d = {d}", self.coordinate)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return None if self.factor else MEAN

    def craft(self, seen: Knowledge) -> Tensor:
        vector = seen.mean.clone()
        vector[self.coordinate] += self.factor
        return vector


@dataclass(frozen=True)
class ROP(Attack):
    """Relocated orthogonal perturbation, against centred clipping with momentum at the workers.

    Clipping about the last aggregate sees lengths only, so the attack starts there and moves across the direction in
    which honest vectors agree.

    u = decay u_prev + (1 - decay) mean;  p = ones minus their projection on u, normalised;
    pi G_prev + (1 - pi) mean + z (cos(angle) u / ||u|| + sin(angle) p)

    Args:
        z: how far to move.
        pi: where to start: 1 at the last aggregate G_prev, 0 at the mean of honest vectors.
        decay: the lambda of u.
        angle: in degrees, from u towards p; at 270, the opposite of p.

    Shape: [h, d] -> f equal rows [f, d], with ``previous`` [d]: the last aggregate, the origin when there is none.
    Cost: one pass for the mean.
    Convention: stateless. The last aggregate stands for u_prev, the running mean of what honest workers sent, which it
        is up to what the rule does. Not certain: the origin and the sense of the angle.

    Example:
        >>> import torch
        >>> ROP(z=1.0)(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), f=1, previous=torch.tensor([2.0, 0.0]))
        tensor([[ 2., -1.]])

    Reference: Ozfatura, Ozfatura, Kupcu, Gunduz, "Byzantines Can Also Learn From History: Fall of Centered Clipping in
    Federated Learning", IEEE Transactions on Information Forensics and Security 2024.
    """

    z: float = 1.0
    pi: float = 1.0
    decay: float = 0.9
    angle: float = 270.0

    uses_previous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_real(self, "z", "a finite z", isfinite)
        set_real(self, "pi", "pi in [0, 1]", lambda pi: 0 <= pi <= 1)
        set_real(self, "decay", "decay in [0, 1)", lambda decay: 0 <= decay < 1)
        set_real(self, "angle", "a finite angle", isfinite)

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return MEAN if self.z == 0 and self.pi == 0 else None

    def craft(self, seen: Knowledge) -> Tensor:
        mean = seen.mean.double()
        last = torch.zeros_like(mean) if seen.previous is None else seen.previous.double()
        u = torch.add(self.decay * last, mean, alpha=1 - self.decay)
        length = kernels.norms(u)
        u = torch.where(length > 0, u / length, u)
        p = 1 - u * u.sum()
        size = torch.linalg.vector_norm(p)
        # Where u points along the ones nothing is left but rounding.
        p = torch.where(size > 1e-12 * sqrt(p.numel()), p / size, torch.zeros_like(p))
        turned = cos(radians(self.angle)) * u + sin(radians(self.angle)) * p
        return (self.pi * last + (1 - self.pi) * mean + self.z * turned).to(seen.honest.dtype)


@dataclass(frozen=True)
class Fang(Attack):
    """Directed deviation: against the sign of the honest mean, as far as one given rule lets it.

    target="krum": -lambda sign(mean), for the first lambda, halved from the bound of the paper's Theorem 1, at which
    Krum(f) selects the attack (or that falls under ``threshold``). The bound is, over the n - f - 2 nearest honest
    vectors, min over i of sum ||x_i - x_j|| / ((n - 2f - 1) sqrt(d)) + max over i of ||x_i|| / sqrt(d).
    target="trimmed-mean": just beyond the honest values: where the mean is positive between min / b and min (b min and
    min if min < 0), where it is not between max and b max (max / b if max < 0), each value drawn uniformly.

    Args:
        target: the rule attacked.
        threshold: of lambda, > 0; target "krum" only.
        b: how far beyond, > 1; target "trimmed-mean" only.
        distance: in the bound: "plain", the sum of distances, as the paper's equation 3 and its account of Krum have
            it; "squared", sqrt(sum ||x_i - x_j||^2 / ((n - 2f - 1) d)), which goes with the scores of Krum itself;
            target "krum" only.

    Shape: [h, d] -> [f, d]; equal rows against Krum, f independent ones against the trimmed mean.
    Cost: against Krum one pass for distances, each trial in n x n; against the trimmed mean one pass.
    Convention: for gradients, so the model that the paper starts from is the null vector. The adversary tries Krum(f)
        with the f that it controls, whatever defends, so n >= 2f + 3; copies are equal (the paper's epsilon is 0).
        lambda depends on the bound through halvings only.

    Example:
        >>> import torch
        >>> Fang(b=2.0, target="trimmed-mean")(torch.tensor([[1.0], [3.0]]), f=1) <= 1.0
        tensor([[True]])

    Reference: Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
    Security 2020.
    """

    target: Literal["krum", "trimmed-mean"] = "krum"
    threshold: float = 1e-5
    b: float = 2.0
    distance: Literal["plain", "squared"] = "plain"

    def __post_init__(self) -> None:
        require(self, self.target in ("krum", "trimmed-mean"), 'target "krum" or "trimmed-mean"', self.target)
        set_real(self, "threshold", "a finite threshold > 0", lambda threshold: 0 < threshold < inf)
        set_real(self, "b", "a finite b > 1", lambda b: 1 < b < inf)
        require(self, self.distance in ("plain", "squared"), 'distance "plain" or "squared"', self.distance)

    def check(self, h: int, f: int, d: int | None = None) -> None:
        least = f"n >= 2f + 3 = {2 * f + 3} vectors, of which f = {f} attack, to try Krum"
        require(self, self.target != "krum" or h + f >= 2 * f + 3, least, h + f)

    def craft(self, seen: Knowledge) -> Tensor:
        return self._past_extremes(seen) if self.target == "trimmed-mean" else self._selected_by_krum(seen)

    def _selected_by_krum(self, seen: Knowledge) -> Tensor:
        (h, d), f = seen.honest.shape, seen.f
        n, unit, seen = h + f, seen.unit, seen.in_unit()
        signs = seen.mean.sign()
        squared = kernels.squared_distances(seen.honest)
        between = squared[:h, :h] + np.diag(np.full(h, inf))
        if self.distance == "plain":
            near = sum_of_smallest(np.sqrt(between), n - f - 2).min() / ((n - 2 * f - 1) * sqrt(d))
        else:
            near = sqrt(sum_of_smallest(between, n - f - 2).min() / ((n - 2 * f - 1) * d))
        size = near + sqrt(squared[:h, -1].max() / d)
        if not (isfinite(size) and signs.any()):  # honest vectors that are not finite, or no direction to deviate from
            return -signs
        geometry = Geometry.of(torch.cat([seen.honest, (-size * signs).unsqueeze(0)]))
        rows, scale = np.append(np.arange(h), np.full(f, h)), 1.0
        while True:
            trial = geometry.mix(np.eye(h + 1)[rows] * np.append(np.ones(h), np.full(f, scale))[:, None])
            if Krum(f).weights(trial)[h:].any() or scale * size * unit < self.threshold:
                return signs * (-scale * size * unit)
            scale /= 2

    def _past_extremes(self, seen: Knowledge) -> Tensor:
        least, greatest = seen.honest.amin(0), seen.honest.amax(0)
        positive = seen.mean > 0
        extreme = torch.where(positive, least, greatest)
        end = torch.where((extreme > 0) == positive, extreme / self.b, extreme * self.b)
        share = torch.from_numpy(seen.random.random((seen.f, extreme.numel()), dtype=np.float32)).to(extreme)
        return extreme + share * (end - extreme)


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Workers that follow the protocol on mislabelled data: every label c is turned into C - 1 - c.

    Shape: -> [f, d], a row of its own per worker.
    Cost: the gradients of f more workers.
    Convention: a data attack, so whoever runs it supplies ``flipped``: what the f workers send, with the worker half
        (clipping, momentum) applied as at an honest one. The simulator does; vectors alone do not tell.

    Example:
        >>> import torch
        >>> LabelFlip()(torch.zeros(3, 2), f=1, flipped=torch.ones(1, 2))
        tensor([[1., 1.]])

    Reference: Biggio, Nelson, Laskov, "Support Vector Machines Under Adversarial Label Noise", ACML 2011; in this
    setting: Fang et al., USENIX Security 2020.
    """

    uses_flipped: ClassVar[bool] = True

    def idle(self, h: int, f: int, classes: int | None = None) -> str | None:
        return "with one class no label can be another" if classes == 1 else None

    def craft(self, seen: Knowledge) -> Tensor:
        shape = [seen.f, seen.honest.shape[1]]
        came = "nothing" if seen.flipped is None else list(seen.flipped.shape)
        wanted = f"flipped, the vectors {shape} of f workers that learn from labels C - 1 - c (a simulation has them)"
        require(self, seen.flipped is not None and came == shape, wanted, came)
        assert seen.flipped is not None
        return seen.flipped.clone()


@dataclass(frozen=True, eq=False)
class Found:
    """What a search for the worst attack found.

    Attributes:
        direction: whose line it is on.
        factor: where on it: 0 is the honest mean, 1 what that attack sends.
        damage: ||F(pre(honest and f copies)) - mean||.
        vector: [d], what to send.
    """

    direction: str
    factor: float
    damage: float
    vector: Tensor


LINES: dict[str, Attack] = {
    "little": Little(factor=1.0),
    "empire": Empire(factor=1.0),
    "min-max": MinMax(direction="sign"),
    "mimic": Mimic(),
    "bulyan": HiddenVulnerability(),
}
"""Lines through the honest mean to search, each through what an attack sends; so factor z of "little" is Little(z),
of "empire" Empire(z), and one of "min-max" is min-max with p = sign(mean)."""

STEP = 3.0  # between the first factors tried on a line


def line(direction: Any) -> Attack:
    """The attack through whose vectors a line goes: one of ``LINES``, an attack, or an attack as text.

    Raises:
        ValueError: neither.
    """
    from .specs import make, parse

    if isinstance(direction, Attack):
        return direction
    if not isinstance(direction, str):
        raise ValueError(f"a direction is a name or an attack, got {shown(direction)}.")
    if direction in LINES:
        return LINES[direction]
    parse("direction", direction, LINES | ATTACKS)
    attack = make("direction", direction, ATTACKS)
    if not isinstance(attack, Attack):
        raise ValueError(f"a direction is a name or an attack, got {shown(attack)}.")
    return attack


def _spelt(attack: Attack) -> str | Attack:
    """The text for which :func:`line` gives an equal attack; the attack itself where none does."""
    from .specs import describe

    try:
        text = describe(attack, (ATTACKS,))
    except ValueError:  # a class without a name
        return attack
    options = fields(attack)
    if text in LINES and LINES[text] != attack:  # the options of a line of that name are others
        text = f"{text}({options[0].name}={getattr(attack, options[0].name)!r})"
    return text


@dataclass(frozen=True)
class WorstCase(Attack):
    """The worst factor there is, for one defence: lines are searched for what moves the aggregate most.

    m = mean + factor p, maximising ||F(pre(honest and f copies of m)) - mean||

    Half of the budget goes to coarse factors of both signs on all lines, starting where a vector is about as far from
    the mean as honest ones are; the rest refines the best line, halving the wider gap beside the best factor.

    Args:
        directions: lines through the honest mean, by name (see ``LINES``: "little", "empire", "min-max", "mimic",
            "bulyan"), or any attack, as text with its options or as an object: the line through what it sends.
        evaluations: how many vectors to try, >= 2.

    Shape: [h, d] -> f equal rows [f, d].
    Cost: for a selecting rule (behind any mixings) one pass for distances, then each trial in n x n; for other rules
        a run of the defence each.
    Convention: needs a defence: a rule, an algorithm, or any callable. A defence is a value, so trying it advances
        nothing. The search is deterministic. Its answer is a lower bound of the damage that is possible.

    Example:
        >>> import torch, varangian as vg
        >>> honest = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
        >>> found = WorstCase(directions=("little",)).search(honest, f=1, defence=vg.Median(f=1))
        >>> found.direction, round(found.damage, 2)
        ('little', 0.5)

    Reference: in the spirit of Shejwalkar, Houmansadr, NDSS 2021, whose attacks know the rule.
    """

    directions: tuple[str | Attack, ...] = ("little", "empire", "min-max")
    evaluations: int = 24

    uses_defence: ClassVar[bool] = True
    uses_previous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        listed = isinstance(self.directions, (tuple, list)) and len(self.directions) > 0
        require(self, listed, "a tuple of names of directions, or of attacks", self.directions)
        object.__setattr__(self, "directions", tuple(self._as_text(direction) for direction in self.directions))
        set_whole(self, "evaluations", least=2)

    def _as_text(self, direction: Any) -> str | Attack:
        """A direction as text wherever text can say it, so that an experiment can."""
        if isinstance(direction, Attack):
            return _spelt(direction)
        if not (isinstance(direction, str) and direction in LINES):
            try:
                line(direction)
            except NotImported:
                raise
            except ValueError as error:
                raise ValueError(f"WorstCase: {error}") from None
        return direction

    def check(self, h: int, f: int, d: int | None = None) -> None:
        for direction in self.directions:
            line(direction).check(h, f, d)

    @kernels.eager
    def search(self, honest: Any, f: int, defence: Any, previous: Any = None) -> Found:
        """The worst vector found for f >= 1 copies of it, where it lies, and the damage that it does."""
        matrix, _ = as_matrix(self, honest)
        f = whole(self, "f", f, least=1)
        if previous is not None:
            previous = torch.as_tensor(previous, dtype=matrix.dtype, device=matrix.device)
        random = randomness.generator(0, "attack")
        return self.find(Knowledge(matrix, f, as_defence(defence, previous), previous, random))

    def craft(self, seen: Knowledge) -> Tensor:
        return self.find(seen).vector

    def find(self, seen: Knowledge) -> Found:
        """:meth:`search`, from what the adversary knows."""
        require(self, seen.defence is not None, "a defence to try: defence=rule, an algorithm or a callable", None)
        lines = list(self._lines(seen))
        if not lines:  # honest vectors that all agree, or that are not finite, show no direction
            return Found("none", 0.0, 0.0, seen.mean.clone())
        trials = Trials(seen, [unit for _, _, unit in lines])
        sides = [(line, sign) for line in range(len(lines)) for sign in (1, -1)]
        tried: dict[tuple[int, int], dict[int | float, float]] = {side: {} for side in sides}

        def attempt(side: tuple[int, int], place: float) -> None:
            tried[side][place] = trials.damage(side[0], side[1] * STEP**place)

        coarse = [(side, place) for place in (0, 1, -1, 2) for side in sides]
        coarse = coarse[: max(self.evaluations // 2, min(len(sides), self.evaluations))]
        for side, place in coarse:
            attempt(side, place)
        for _ in range(self.evaluations - len(coarse)):
            side = max(sides, key=lambda one: max(tried[one].values(), default=-inf))
            attempt(side, next_place(tried[side]))
        side = max(sides, key=lambda one: max(tried[one].values(), default=-inf))
        place, damage = max(tried[side].items(), key=lambda item: item[1])
        name, length, _ = lines[side[0]]
        scale = side[1] * STEP**place
        return Found(name, scale * length, damage, trials.vector(side[0], scale))

    def _lines(self, seen: Knowledge) -> Any:
        """(name, factor of the unit point, unit point - mean [d]) of each line that is one."""
        within = seen.in_unit()
        a, _, _ = along(within.honest, within.mean, torch.zeros_like(seen.mean))
        spread = float(np.sqrt(a.mean())) * seen.unit
        for direction in self.directions:
            sent = line(direction).send(seen)
            p = (sent[0] if sent.ndim == 2 else sent) - seen.mean
            length = float(kernels.norms(p))
            if length > 0 and isfinite(length):
                # Where honest vectors agree nothing tells how far to go: the attack's own length.
                factor = spread / length if spread > 0 else 1.0
                yield str(direction), factor, p * factor


def next_place(tried: dict[int | float, float]) -> float:
    """Where to try next, given the damage at the places tried: the middle of the wider gap beside the best, or a step
    beyond an end."""
    best = max(tried, key=lambda place: tried[place])
    below = max((place for place in tried if place < best), default=None)
    above = min((place for place in tried if place > best), default=None)
    if above is None:
        return best + 1
    if below is None:
        return best - 1
    return (best + above) / 2 if above - best >= best - below else (best + below) / 2


def _by_weights(rule: Rule) -> bool:
    """Whether its weights say it all; one that somebody derived may do more with the vectors."""
    return type(rule).apply is Selecting.apply


class Trials:
    """The damage of vectors mean + scale * p for some lines p; on distances alone where the defence allows it.

    Args:
        seen: what the adversary knows.
        units: [d] each, the p of each line.
    """

    def __init__(self, seen: Knowledge, units: list[Tensor]) -> None:
        assert seen.defence is not None
        self.seen, self.units, self.defence = seen, units, seen.defence
        self.h, self.f = seen.honest.shape[0], seen.f
        self.geometry: Geometry | None = None
        d = seen.honest.shape[1]
        if isinstance(self.defence, ComposedDefence) and _by_weights(self.defence.rule):
            check_rows(self.defence.pre, self.defence.rule, self.h + self.f)
            points = torch.stack([seen.mean + unit for unit in units])
            extra = None
            if self.defence.rule.uses_previous:
                extra = points.new_zeros(1, d) if self.defence.previous is None else self.defence.previous.unsqueeze(0)
            self.geometry = Geometry.of(torch.cat([seen.honest, points]), extra)
        else:
            self.vectors = torch.cat([seen.honest, seen.honest.new_empty(self.f, d)])

    def vector(self, line: int, scale: float) -> Tensor:
        """[d] the point of a line at a scale."""
        return torch.add(self.seen.mean, self.units[line], alpha=scale)

    def damage(self, line: int, scale: float) -> float:
        """How far F moves from the honest mean; infinitely where it is not finite any more."""
        if self.geometry is not None:
            moved = sqrt(self._by_distances(self.geometry, line, scale)) * self.geometry.unit
        else:
            self.vectors[self.h :] = self.vector(line, scale)
            answer = self.defence(self.vectors)
            squared = float(kernels.squared_distances_to(answer.unsqueeze(0), self.seen.mean)[0])
            in_range = kernels.VANISHING < squared < inf
            moved = sqrt(squared) if in_range else float(kernels.norms(answer - self.seen.mean))
        return moved if isfinite(moved) else inf

    def _by_distances(self, base: Geometry, line: int, scale: float) -> float:
        assert isinstance(self.defence, ComposedDefence)
        weights = np.zeros((self.h + self.f, base.n))
        weights[: self.h, : self.h] = np.eye(self.h)
        weights[self.h :, : self.h] = (1 - scale) / self.h
        weights[self.h :, self.h + line] = scale
        geometry = base.mix(weights)
        for mixing in self.defence.pre:
            geometry = mixing.mix(geometry, self.defence.draw)
        selection = self.defence.rule.choose(geometry.n, geometry)
        assert selection is not None
        moved = geometry.through(selection)
        moved[: self.h] -= 1 / self.h
        # ||sum of c_i x_i||^2 = -1/2 sum of c_i c_j ||x_i - x_j||^2 once the c add up to 0, with the origin's share.
        moved = np.append(moved, -moved.sum())
        return max(float(-0.5 * moved @ base.squared @ moved), 0.0)


ATTACKS: dict[str, type[Attack]] = {
    "little": Little,
    "empire": Empire,
    "sign-flip": SignFlip,
    "gaussian": Gaussian,
    "zero": Zero,
    "nan": NaN,
    "inf": Inf,
    "mimic": Mimic,
    "min-max": MinMax,
    "min-sum": MinSum,
    "label-flip": LabelFlip,
    "anti-cge": AntiCGE,
    "bulyan": HiddenVulnerability,
    "rop": ROP,
    "fang": Fang,
    "worst-case": WorstCase,
}
"""Attacks by name."""


def parts(stage: Rule | Mixing | Attack) -> Iterator[type]:
    """The classes of a rule, a mixing or an attack, of what stands in its options, and of the attacks named there."""
    yield type(stage)
    for option in fields(stage):
        value = getattr(stage, option.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (Rule, Mixing, Attack)):
                yield from parts(item)
            elif isinstance(item, str):
                name = item.partition("(")[0].strip()
                named = ATTACKS.get(name) or known("attack", name)
                if isinstance(named, type):
                    yield named


__all__ = [
    "ATTACKS", "ROP", "AntiCGE", "Attack", "ComposedDefence", "Defence", "Empire", "Fang", "Found", "Gaussian",
    "HiddenVulnerability", "Inf", "Knowledge", "LabelFlip", "Little", "Mimic", "MinMax", "MinSum", "NaN", "SignFlip",
    "WorstCase", "Zero",
]  # fmt: skip
