"""The vectors that are tried: where they are, in what type and layout, honest ones and hostile ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.checks import cut, shown
from ..core.randomness import generator

CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Setting:
    """Where and in what the examples of one suite are.

    Attributes:
        device: where tensors are.
        dtype: of all examples whose check is not about data types; None for the usual ones.
        large: also at sizes from which kernels go other ways.
        trusted: the place of a vector that the rule trusts, so that no hostile one stands there; or None.
    """

    device: torch.device = CPU
    dtype: torch.dtype | None = None
    large: bool = False
    trusted: int | None = None

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return DTYPES if self.dtype is None else (self.dtype,)


SETTING: ContextVar[Setting] = ContextVar("setting", default=Setting())  # noqa: B039  it is frozen


@contextmanager
def in_setting(
    device: str | torch.device, dtype: torch.dtype | None, large: bool, trusted: int | None
) -> Iterator[None]:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {shown(dtype)}.")
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch's own, of a device that is none or is not here
        raise ValueError(f"device {shown(device)} cannot be used here: {cut(str(error))}") from None
    token = SETTING.set(Setting(place, dtype, large, trusted))
    try:
        yield
    finally:
        SETTING.reset(token)


def there(x: Tensor) -> Tensor:
    """Memory of its own, on the device of the suite."""
    return x.clone() if SETTING.get().device.type == "cpu" else x.to(SETTING.get().device)


def here(x: Any) -> Tensor:
    """A tensor in main memory, whatever kind came out."""
    return torch.as_tensor(x).cpu()


def type_of_examples(dtype: torch.dtype | None = None) -> torch.dtype:
    """The data type of an example: that of the suite, else the given one, else double precision."""
    return SETTING.get().dtype or dtype or torch.float64


def vectors(n: int, d: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """[n, d] a cloud around a point that is not the origin."""
    random = generator(seed, "testing")
    return torch.from_numpy(random.standard_normal((n, d)) + random.standard_normal(d)).to(type_of_examples(dtype))


def lattice(n: int, d: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """[n, d] of -1, 0 and 1: ties and duplicates all over."""
    return torch.from_numpy(generator(seed, "testing").integers(-1, 2, (n, d))).to(type_of_examples(dtype))


def eighths(n: int, d: int, seed: int = 0) -> Tensor:
    """[n, d] multiples of 1/8: moved and scaled by powers of two without rounding."""
    return (vectors(n, d, seed) * 8).round() / 8


def hostile(kind: int, rows: int, d: int, dtype: torch.dtype, seed: int, honest: Tensor | None = None) -> Tensor:
    """[rows, d] of values that break careless code: one of ``len(HOSTILE)`` kinds."""
    if not rows:
        return torch.empty(0, d, dtype=dtype)
    random = generator(seed, "hostile")
    limit = torch.finfo(dtype)
    named = HOSTILE[kind]
    if named == "copies of an honest vector" and honest is not None:
        return honest[:1].expand(rows, d).clone()
    if named == "rows of different kinds":
        parts = [
            hostile(i % (len(HOSTILE) - 1), 1, d, dtype, seed + i, honest)
            for i in range(kind + seed, kind + seed + rows)
        ]
        return torch.cat(parts)
    if named == "almost copies":
        base = random.standard_normal(d) * 10.0 ** random.integers(-1, 4)
        rounding = limit.eps * random.integers(-3, 4, (rows, d))
        return torch.from_numpy(base * (1 + rounding)).to(dtype)
    big, tiny = min(1e38, limit.max / 4), float(np.finfo(np.float32).smallest_subnormal)
    pool = {
        "NaN": [np.nan],
        "+infinity": [np.inf],
        "-infinity": [-np.inf],
        "both infinities": [np.inf, -np.inf],
        "one NaN": [0.0],
        "one infinity": [1.0],
        "+1e38": [big],
        "-1e38": [-big],
        "+-1e38": [big, -big],
        "the greatest number": [limit.max, limit.min],
        "+-1e30": [min(1e30, big), -min(1e30, big)],
        "1e6": [min(1e6, big)],
        "denormal": [tiny, -tiny],
        "null": [0.0],
        "huge and tiny": [big, tiny, -big, 0.0, 1.0],
        "anything": [np.nan, np.inf, -np.inf, big, -big, tiny, 0.0, 1.0],
        "copies of an honest vector": [1.0],
        "a little off": [3.0, -3.0],
    }[named]
    values = random.choice(pool, (rows, d))
    if named in ("one NaN", "one infinity"):
        values[:, int(random.integers(d))] = np.nan if named == "one NaN" else -np.inf
    return torch.from_numpy(values).to(dtype)


HOSTILE = (
    "NaN", "+infinity", "-infinity", "both infinities", "one NaN", "one infinity", "+1e38", "-1e38", "+-1e38",
    "the greatest number", "+-1e30", "1e6", "denormal", "null", "huge and tiny", "anything",
    "copies of an honest vector", "almost copies", "a little off", "rows of different kinds",
)  # fmt: skip
"""Kinds of hostile vectors."""


def rounding_of(x: Tensor) -> float:
    """What answers that are equal but for rounding may differ by: 1e-6 of the size, more in half precision."""
    return max(1e-6, 16 * torch.finfo(x.dtype).eps) * size_of(x)


def size_of(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.double().abs().max()) if finite.numel() else 1.0


def inputs(x: Tensor) -> Iterator[tuple[str, Any]]:
    """The same vectors in each kind that is accepted; memory of their own."""
    yield "tensor", there(x)
    yield "list of tensors", list(there(x))
    if x.dtype != torch.bfloat16:
        yield "array", x.numpy().copy()
        yield "list of arrays", list(x.numpy().copy())


def stacked(x: Any) -> Tensor:
    return torch.stack([here(v) for v in x]) if isinstance(x, list) else here(x)


def layouts(x: Tensor) -> Iterator[tuple[str, Any]]:
    n, d = x.shape
    x = there(x)
    yield "by columns", x.t().contiguous().t()
    wide = x.new_full((n, 3 * d), torch.nan)
    wide[:, ::3] = x
    yield "every third column", wide[:, ::3]
    tall = x.new_full((2 * n, d), torch.nan)
    tall[::2] = x
    yield "every other row", tall[::2]
    flat = x.new_full((n * d + 1,), torch.nan)
    flat[1:] = x.flatten()
    yield "from the second number of a block on", flat[1:].view(n, d)
    inner = x.new_full((n, d + 2), torch.nan)
    inner[:, 1:-1] = x
    yield "columns out of the middle", inner[:, 1:-1]
    if x.dtype != torch.bfloat16:
        yield "reversed array", x.cpu().numpy()[::-1].copy()[::-1]
        yield "array by columns", np.asfortranarray(x.cpu().numpy())
        fixed = x.cpu().numpy().copy()
        fixed.setflags(write=False)
        yield "array that cannot be written", fixed


def elsewhere(x: Tensor) -> float:
    """What an answer of another device than the processor may differ by from that of the processor."""
    return 0.0 if SETTING.get().device.type == "cpu" else rounding_of(x)


def places_of(n: int, rows: int, kind: int) -> list[Tensor]:
    """[n] which rows are hostile: the last, the first, a stretch between that moves on from kind to kind, scattered
    ones; a single NaN or huge vector stands in every place."""
    free = torch.tensor([row for row in range(n) if row != SETTING.get().trusted])
    stretches = free.numel() - rows + 1
    everywhere = rows == 1 and HOSTILE[kind] in ("NaN", "+1e38")
    starts = [stretches - 1, 0, *(range(1, stretches - 1) if everywhere else [(kind + 1) % stretches])]
    chosen = [free[start : start + rows] for start in dict.fromkeys(starts)]
    if rows > 1:
        chosen.append(free[torch.from_numpy(generator(n + kind, "places").permutation(free.numel())[:rows])])
    return [torch.isin(torch.arange(n), places) for places in chosen]


HONEST: dict[int, tuple[tuple[int, torch.dtype, float], ...]] = {
    1: ((1, torch.float64, 1.0), (1, torch.float32, 1.0), (5, torch.float32, 1.0), (2, torch.float16, 1.0)),
    2: ((3, torch.float64, 1e-12), (2, torch.float32, 1e-12)),
    3: ((2, torch.float64, 1.0), (4, torch.float32, 1.0), (1, torch.bfloat16, 1.0)),
}
"""d, data type and size of the honest vectors, for each f."""
