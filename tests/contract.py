"""The contract of kernels as a table: calls of each function on numbers made to break it, for any implementation.

    for case in cases(11, 300, torch.float32):
        case.check(case.run(kernels.plain), case.run(kernels.cpu))

Tensors are those of main memory; ``run`` takes a function that puts them elsewhere. Answers agree to the bit where a
case says so: the sign of zero and what a NaN holds do not count. Else they agree to one rounding of their type, and to
what a sum in float64 in another order may differ by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from varangian.core import kernels

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WIDE = 2e-15  # relative: of a few operations in float64
Put = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """One call: of which function, with which tensors, and how far answers may differ."""

    name: str
    function: str
    tensors: tuple[Tensor, ...]
    call: Callable[..., Any]  # (the module or another that has the function, *tensors): a tensor or several
    bits: bool = False
    rtol: float = 0.0  # beside the rounding of the answer's type
    odd: bool = False  # of what is not finite nothing is promised but that
    slack: tuple[Any, ...] = (0.0,)  # for each answer, what may be added to the tolerance: a number, or one each

    def run(self, module: Any, put: Put = lambda x: x) -> tuple[Tensor, ...]:
        """On copies, since some are written to."""
        found = self.call(module, *(put(t.clone(memory_format=torch.preserve_format)) for t in self.tensors))
        return tuple(found) if isinstance(found, tuple) else (found,)

    def check(self, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
        assert len(found) == len(expected)
        for one, other, slack in zip(found, expected, [*self.slack, *[0.0] * len(found)], strict=False):
            assert one.dtype == other.dtype, self.name
            assert one.shape == other.shape, self.name
            a, b = one.detach().double(), other.detach().double()
            if self.bits or not one.dtype.is_floating_point:
                near = torch.equal(a.nan_to_num(0.125), b.nan_to_num(0.125)) and torch.equal(a.isnan(), b.isnan())
                assert near, (self.name, a, b)
                continue
            rounding = 1.01 * torch.finfo(one.dtype).eps if one.dtype != torch.float64 else WIDE
            tiny = torch.finfo(one.dtype).smallest_normal * torch.finfo(one.dtype).eps
            within = (self.rtol + rounding) * b.abs() + torch.as_tensor(slack, dtype=torch.float64) + tiny
            lost = ~(a.isfinite() | b.isfinite()) if self.odd else a.isnan() & b.isnan()
            near = (a == b) | lost | ((a - b).abs() <= within) & b.isfinite()
            assert near.all(), (self.name, a[~near], b[~near])


def hostile(n: int, d: int, dtype: torch.dtype, seed: int = 0, finite: bool = False) -> Tensor:
    """Rows with a common part: ties, equal and null rows, signed zeros, huge and tiny columns and a huge row; and rows
    that hold a NaN or an infinity."""
    random = np.random.default_rng([seed, n, d])
    x = random.normal(size=(n, d)) + random.normal(size=d)
    limit, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    x[:, d // 8 : d // 4] = x[:, d // 8 : d // 4].round()
    if n > 4:
        x[3] = x[1]
        x[2] = 0.0
        x[4, : d // 2] *= 1e4
    if d > 20:
        x[:, 3] = 1.0
        x[: n // 2, 5], x[n // 2 :, 5] = -0.0, 0.0
        x[:, 7] = random.uniform(-0.9, 0.9, n) * limit / 2
        x[:, 9] = random.normal(size=n) * least
    if n > 5 and not finite:
        x[5, -1] = np.nan
        x[0, d // 3] = -np.inf
    if n > 7 and not finite:
        x[6, d // 3 :: 5], x[7, d // 2] = np.inf, -np.inf
        x[7, 0] = -np.nan  # which some sorts take for less than -inf
    return torch.from_numpy(x).to(dtype)


def tables(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """[m, n] as mixings and final weights are: means of some, weights of any sign, scales, a choice, and nothing."""
    random = np.random.default_rng([seed, n])
    some = np.zeros((n, n))
    for row in some:
        row[random.permutation(n)[: max(1, (2 * n) // 3)]] = 1 / max(1, (2 * n) // 3)
    signed = random.normal(size=(max(1, n - 1), n)) / n * (random.random((max(1, n - 1), n)) < 0.7)
    scales = np.diag(random.random(n))
    scales[n // 2] = 0
    return {
        "means": some,
        "all of them": random.random((2, n)) + 0.1,
        "signed": signed,
        "scales": scales,
        "a choice": np.eye(n)[random.permutation(n)],
        "nothing": np.zeros((2, n)),
    }


def reach(table: np.ndarray, x: Tensor) -> Tensor:
    """[m, d] sums of the sizes of what mixtures are made of: what cancels leaves so much of them."""
    sizes = x.detach().double().abs().nan_to_num(0.0, 0.0, 0.0)
    return torch.from_numpy(np.abs(table)) @ sizes


def statistics(n: int) -> list[tuple[int, int, int]]:
    """(low, high, window): medians, a trimmed mean, a mean, and the values around them."""
    f = n // 4
    found = {((n - 1) // 2, n // 2 + 1, 0), (n // 2, n // 2 + 1, 0), (f, n - f, 0), (0, n, 0), (0, 1, 0)}
    found |= {(f, n - f, n - f), ((n - 1) // 2, n // 2 + 1, n - f), ((n - 1) // 2, n // 2 + 1, max(1, n // 3))}
    return sorted(found)


def cases(n: int, d: int, dtype: torch.dtype, lay: Put = lambda x: x) -> Iterator[Case]:
    """Calls of every function on [n, d], laid out in memory as ``lay`` does it."""
    yield from _columns(n, d, dtype, lay)
    yield from _sums(n, d, dtype, lay)
    yield from _distances(n, d, dtype, lay)
    yield from _some_columns(n, d, dtype, lay)
    if dtype in (torch.float32, torch.float64):
        yield from _workers(n, d, dtype, lay)
    if n > 1:
        yield from _sizes(n, d, dtype, lay)


def _columns(n: int, d: int, dtype: torch.dtype, lay: Put) -> Iterator[Case]:
    x = lay(hostile(n, d, dtype))
    size = x.detach().double().abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
    for low, high, window in statistics(n):
        yield Case(
            f"column_statistic {low, high, window}", "column_statistic", (x,),
            lambda k, x, s=(low, high, window): k.column_statistic(x, *s),
            bits=high - low == 1 and not window, slack=(n * WIDE * size,),
        )  # fmt: skip
    for name, table in tables(n).items():
        sums = reach(table, x)
        # What is rounded to float32 before it is sorted is so in one way or the other.
        lost = torch.finfo(torch.float32).eps if dtype != torch.float64 else n * WIDE
        for low, high, window in statistics(len(table))[:: 3 if n > 20 else 1]:
            if window and name in ("means", "signed"):
                continue  # see test_ties_of_mixtures_are_ties: in another order others may be closest
            yield Case(
                f"column_statistic of {name} {low, high, window}", "column_statistic", (x,),
                lambda k, x, s=(low, high, window), table=table: k.column_statistic(x, *s, mixing=table),
                slack=(lost * sums.amax(0),),
            )  # fmt: skip
    yield from _weighted_columns(n, d, dtype, lay)
    for ddof in (0, 1):
        yield Case(
            f"mean_and_std {ddof}", "mean_and_std", (x,), lambda k, x, ddof=ddof: k.mean_and_std(x, ddof),
            rtol=n * WIDE, slack=(n * WIDE * size, n * WIDE * size),
        )  # fmt: skip


def amounts(n: int) -> list[tuple[float, float, float]]:
    """(low, high, window) of weights that are n together: a value, means of what lies between, and what is near."""
    cut = n / 4
    found = [(n / 2, n / 2, 0.0), (cut, cut, 0.0), (cut, n - cut, 0.0), (0.3 * n, 0.301 * n, 0.0), (0.0, float(n), 0.0)]
    return [*found, (cut, n - cut, n - cut), (n / 2, n / 2, n - cut), (n / 2, n / 2, 0.2 * n), (n / 2, n / 2, float(n))]


def _weighted_columns(n: int, d: int, dtype: torch.dtype, lay: Put) -> Iterator[Case]:
    random = np.random.default_rng([n, 3])
    x, sound = lay(hostile(n, d, dtype)), lay(hostile(n, d, dtype, finite=True))
    for name, weights in {
        "any": random.random(n) + 0.1,
        "whole": random.integers(1, 4, n),
        "equal": np.ones(n),
    }.items():
        shares = weights * (n / weights.sum())
        for low, high, window in amounts(n):
            of = sound if window else x
            size = of.detach().double().abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
            for even in ("mid", "lower", "upper") if low == high and not window else ("mid",):
                yield Case(
                    f"weighted_statistic of {name} {low, high, window, even}", "weighted_statistic", (of,),
                    lambda k, x, s=(low, high, window), w=shares, e=even: k.weighted_statistic(x, w, *s, even=e),
                    bits=even != "mid", slack=(n * WIDE * size,),
                )  # fmt: skip


def _sums(n: int, d: int, dtype: torch.dtype, lay: Put) -> Iterator[Case]:
    x, extra = lay(hostile(n, d, dtype)), lay(hostile(2, d, dtype, seed=1))
    both, half = torch.cat([x.detach(), extra.detach()]), dtype in (torch.float16, torch.bfloat16)
    for name, table in tables(n).items():
        wider = np.concatenate([table, np.zeros((len(table), 1)), np.full((len(table), 1), 0.5)], axis=1)
        sums, more = reach(table, x), reach(wider, both)
        yield Case(
            f"weighted_rows of {name}", "weighted_rows", (x,), lambda k, x, t=table: k.weighted_rows(x, t),
            odd=half, slack=(n * WIDE * sums,),
        )  # fmt: skip
        yield Case(
            f"weighted_rows, one of {name}", "weighted_rows", (x,), lambda k, x, t=table: k.weighted_rows(x, t[0]),
            odd=True, slack=(n * WIDE * sums[0],),  # in main memory a sum may make a NaN of an infinity
        )  # fmt: skip
        yield Case(
            f"weighted_rows of {name} and extra rows", "weighted_rows", (x, extra),
            lambda k, x, extra, t=wider: k.weighted_rows(x, t, extra), odd=half, slack=(n * WIDE * more,),
        )  # fmt: skip
        start, stop = d // 3, max(d // 3 + 1, d - 2)
        yield Case(
            f"weighted_panel of {name} and extra rows", "weighted_panel", (x, extra),
            lambda k, x, extra, t=wider, s=(start, stop): k.weighted_panel(x, t, extra, start=s[0], stop=s[1]),
            slack=(n * WIDE * more[:, start:stop],),
        )  # fmt: skip
    last = np.zeros(n + 2)
    last[-1] = 1
    yield Case(
        "weighted_rows, an extra row", "weighted_rows", (x, extra),
        lambda k, x, extra: k.weighted_rows(x, last, extra), bits=True,
    )  # fmt: skip
    yield Case("zeros_like_row", "zeros_like_row", (x,), lambda k, x: k.zeros_like_row(x), bits=True)


def _distances(n: int, d: int, dtype: torch.dtype, lay: Put) -> Iterator[Case]:
    x, extra = lay(hostile(n, d, dtype)), lay(hostile(2, d, dtype, seed=1))
    measured = d * WIDE if dtype == torch.float64 else 1e-6
    yield Case("squared_distances", "squared_distances", (x,), lambda k, x: k.squared_distances(x), rtol=measured)
    yield Case(
        "squared_distances and extra rows", "squared_distances", (x, extra),
        lambda k, x, extra: k.squared_distances(x, extra), rtol=measured,
    )  # fmt: skip
    yield Case("squared_norms", "squared_norms", (x,), lambda k, x: k.squared_norms(x), rtol=d * WIDE)
    yield Case("squared_norms of one", "squared_norms", (x,), lambda k, x: k.squared_norms(x[0]), rtol=d * WIDE)
    yield Case("norms", "norms", (x,), lambda k, x: k.norms(x), rtol=d * WIDE)
    yield Case("norms of a cube", "norms", (x,), lambda k, x: k.norms(x.unsqueeze(1)), rtol=d * WIDE)
    yield Case(
        "squared_distances_to", "squared_distances_to", (x, extra),
        lambda k, x, extra: k.squared_distances_to(x, extra[1]), rtol=d * WIDE,
    )  # fmt: skip
    usual = lay(torch.from_numpy(np.random.default_rng([n, d, 1]).normal(size=(n, d))).to(dtype))
    lengths = torch.outer(torch.ones(3), usual.detach().double().norm(dim=1)) * extra[1].detach().double().norm()
    yield Case(
        "compared", "compared", (usual, extra), lambda k, x, extra: k.compared(x, extra[1]),
        rtol=d * WIDE, slack=(d * WIDE * lengths,),
    )  # fmt: skip
    yield Case(
        "compared odd ones", "compared", (x, extra), lambda k, x, extra: k.compared(x, extra[1])[:2], rtol=d * WIDE
    )
    finite = lay(hostile(n, d, dtype, finite=True))
    sizes = finite.detach().double().square().sum(1).sqrt()
    yield Case(
        "inner_products", "inner_products", (finite, extra),
        lambda k, x, extra: k.inner_products([x[0], extra[0], x[-1]]),
        slack=(
            d * WIDE * torch.outer(*[torch.stack([sizes[0], extra[0].detach().double().norm(), sizes[-1]])] * 2),
        ),
    )  # fmt: skip
    yield Case(
        "inner_products of odd ones", "inner_products", (x, extra),
        lambda k, x, extra: (~k.inner_products([x[min(5, n - 1)], extra[0]]).isfinite()), bits=True,
    )  # fmt: skip
    # Of ordinary numbers: what a mixture of huge ones is off by is more than how far others are from it.
    random = np.random.default_rng([n, d])
    usual = lay(torch.from_numpy(random.normal(size=(n, d)) + 3).to(dtype))
    for name, table in tables(n).items():
        for others in (False, True):
            wider = np.concatenate([table, np.zeros((len(table), 1)), np.full((len(table), 1), 0.5)], axis=1)
            yield Case(
                f"mixed_distances of {name}, {others}", "mixed_distances", (usual, extra[:, :d]),
                lambda k, x, extra, t=wider, o=others: k.mixed_distances(x, t, extra, others=o),
                rtol=1e-11, slack=(d * n * n * 1e-27,),
            )  # fmt: skip
        yield Case(
            f"squared_around {name}", "squared_around", (usual,),
            lambda k, x, t=table: k.squared_around(x, t[0], None, np.linspace(-1, 2, n)),
            rtol=1e-11, slack=(d * n * n * 1e-27,),
        )  # fmt: skip
    yield Case(
        "squared_around an extra row", "squared_around", (x, extra),
        lambda k, x, extra: k.squared_around(x, np.eye(n + 2)[-1], extra), rtol=d * WIDE,
    )  # fmt: skip


def _some_columns(n: int, d: int, dtype: torch.dtype, lay: Put) -> Iterator[Case]:
    x, sound = lay(hostile(n, d, dtype)), lay(hostile(n, d, dtype, finite=True))
    usual = lay(torch.from_numpy(np.random.default_rng([n, d]).normal(size=(n, d)) + 3).to(dtype))
    tied = lay(usual.detach().round())
    wide, measured = max(1, d // 5), d * WIDE if dtype == torch.float64 else 1e-6
    for name, some in {
        "all columns": {},
        "one column": {"starts": np.array([d - 1]), "width": 1},
        "blocks": {"starts": np.array([0, 2 * wide]) if d > 4 else np.array([0]), "width": wide},
    }.items():
        sizes = torch.cat([sound, sound[-1:]]).detach().double().square().sum(1)
        slack = measured * (sizes * sizes[-1]).sqrt()
        slack = torch.stack([torch.zeros_like(slack), slack, *[torch.zeros_like(slack)] * 2])
        yield Case(
            f"relations over {name}", "relations", (sound,), lambda k, x, s=some: k.relations(x, x[-1], **s),
            rtol=measured, slack=(slack,),
        )  # fmt: skip
        yield Case(
            f"who is finite over {name}", "relations", (x,),
            lambda k, x, s=some: k.relations(x, x[0], **s)[3], bits=True,
        )  # fmt: skip
        for low, high, window in statistics(n):
            of = usual if window else x  # else others may be closest, by rounding
            yield Case(
                f"statistic_weights {low, high, window} over {name}", "statistic_weights", (of,),
                lambda k, x, s=(low, high, window), c=some: k.statistic_weights(x, *s, **c), rtol=d * WIDE,
            )  # fmt: skip
            yield Case(
                f"statistic_weights {low, high, window} of ties over {name}", "statistic_weights", (tied,),
                lambda k, x, s=(low, high, window), c=some: k.statistic_weights(x, *s, **c), rtol=d * WIDE,
            )  # fmt: skip
        for kind, table in tables(n).items():
            if kind in ("scales", "a choice", "nothing"):  # others are equal but for rounding
                low, high, window = statistics(len(table))[0]
                yield Case(
                    f"statistic_weights of {kind} over {name}", "statistic_weights", (usual,),
                    lambda k, x, s=(low, high, window), c=some, t=table: k.statistic_weights(x, *s, mixing=t, **c),
                    rtol=d * WIDE,
                )  # fmt: skip
    low, high, window = statistics(n)[-1]
    yield Case(
        "relations over blocks that are told on the device", "relations", (sound, torch.tensor([0, d - wide])),
        lambda k, x, starts: k.relations(x, x[0], starts=_index(k, starts), width=wide),
        rtol=measured, slack=(slack.amax(),),
    )  # fmt: skip
    yield Case(
        "statistic_weights over blocks that are told on the device", "statistic_weights",
        (tied, torch.tensor([0, d - wide])),
        lambda k, x, starts: k.statistic_weights(x, low, high, window, starts=_index(k, starts), width=wide),
        rtol=d * WIDE,
    )  # fmt: skip


def _workers(n: int, d: int, dtype: torch.dtype, lay: Put) -> Iterator[Case]:
    x, y = hostile(n, d, dtype), hostile(n, d, dtype, seed=1)
    if dtype == torch.float64:
        x[:, 7:10] = y[:, 7:10] = 1.0  # the moments of what is sent are those of ordinary numbers
    x, y = lay(x), lay(y)
    scales = torch.linspace(-1, 2, n, dtype=torch.float64)
    for name, place in (("rows", slice(None)), ("a row", 0)):
        yield Case(
            f"blend with {name}", "blend", (x, y), lambda k, x, y, p=place: k.blend(0.9, x, 0.3, y[p]), bits=True
        )
        yield Case(
            f"blend with {name}, each its scale", "blend", (x, y, scales),
            lambda k, x, y, s, p=place: k.blend(s, x, 0.3, y[p]), bits=True,
        )  # fmt: skip
    yield Case("blend to itself", "blend", (x, y), lambda k, x, y: k.blend(1.0, x, 0.3, y, out=_rows(x)), bits=True)
    yield Case("blend to the other", "blend", (x, y), lambda k, x, y: k.blend(0.7, x, 0.3, y, out=_rows(y)), bits=True)
    size = 4 * (x.detach().double().abs() + y.detach().double().abs()).nan_to_num(0.0, 0.0, 0.0).amax(0)
    for scaled in (False, True):
        for memory in (False, True):
            for moments in (False, True):
                yield Case(
                    f"send_rows, {scaled}, {memory}, {moments}", "send_rows", (x, y, x.detach().flip(0)),
                    lambda k, x, y, m, a=(scaled, memory, moments): _sent(k, x, y, m, *a),
                    bits=not moments, rtol=n * WIDE, slack=(0.0, *[n * WIDE * size] * 4),
                )  # fmt: skip
    yield Case(
        "send_rows, clipped in place", "send_rows", (x,),
        lambda k, x: _clipped(k, _rows(x)), rtol=d * WIDE,
    )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """As memories and what is sent lie."""
    return x.detach().contiguous()


def _sent(k: Any, x: Tensor, y: Tensor, memory: Tensor, scaled: bool, remembers: bool, moments: bool) -> Any:
    def scale(lengths: Tensor) -> Tensor:  # the same for lengths that differ by rounding
        return torch.where(lengths > 3.0, 0.3, 1.1)

    held, out = _rows(memory), torch.empty_like(_rows(x))
    first, second = k.send_rows(
        x, 1e-4, y[0], scale=scale if scaled else None, keep=0.1, beta=0.9, memory=held if remembers else None,
        out=held if remembers else out, moments=moments,
    )  # fmt: skip
    return (held if remembers else out, *(first or ()), *(second or ()))


def _clipped(k: Any, x: Tensor) -> Tensor:
    k.send_rows(
        x, 0.0, torch.zeros_like(x[0]), scale=lambda lengths: 1 / lengths.clamp(min=1.0), keep=1.0, beta=0.0,
        memory=None, out=x, moments=False,
    )  # fmt: skip
    return x


def _sizes(n: int, d: int, dtype: torch.dtype, lay: Put) -> Iterator[Case]:
    x = lay(hostile(n, d, dtype, finite=True))
    rows, ends = np.flatnonzero(np.arange(n) % 3 != 1), sorted({0, d // 7, d // 2, d})
    size = x.detach().double().abs().amax(0)
    weights = np.random.default_rng(n).random((len(ends) - 1, rows.size)) / n
    weights[:, 0] = 0
    for dropped in sorted({0, d // 3, d - 1}):
        yield Case(
            f"kept_of, {dropped}", "kept_of", (x,),
            lambda k, x, r=rows, dropped=dropped: tuple(k.kept_of(x, r, dropped)[1:]), bits=True,
        )  # fmt: skip
        yield Case(
            f"kept_sums, {dropped}", "kept_sums", (x,),
            lambda k, x, r=rows, dropped=dropped: k.kept_sums(x, k.kept_of(x, r, dropped), ends), rtol=d * WIDE,
        )  # fmt: skip
        yield Case(
            f"kept_mean, {dropped}", "kept_mean", (x,),
            lambda k, x, r=rows, dropped=dropped: k.kept_mean(x, k.kept_of(x, r, dropped), weights, ends),
            slack=(n * WIDE * size,),
        )  # fmt: skip


def pictures() -> Iterator[Case]:
    """Images of both kinds, picked twice and in any order, mirrored or not."""
    random = np.random.default_rng(0)
    whole = torch.from_numpy(random.integers(0, 256, (20, 3, 5, 4)).astype(np.uint8))
    index, flip = torch.tensor([3, 3, 19, 0, 7, 1]), torch.tensor([True, False, True, True, False, False])
    scale, shift = np.array([1 / 255, 0.0171, 3.3]), np.array([-0.5, 0.25, 1e-3])
    for images in (whole, whole.float() / 255):
        for mirrored in (False, True):
            yield Case(
                f"gather_images, {images.dtype}, {mirrored}", "gather_images", (images, index, flip),
                lambda k, images, index, flip, mirrored=mirrored: k.gather_images(
                    images, _index(k, index), flip=_index(k, flip) if mirrored else None, scale=scale, shift=shift
                ),
                bits=True,
            )  # fmt: skip


def _index(k: Any, index: Tensor) -> Any:
    """In main memory an array."""
    return index.numpy() if k is kernels.cpu else index


FUNCTIONS = sorted(kernels.cpu.__all__)
