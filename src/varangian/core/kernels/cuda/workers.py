"""What workers do to images and gradients on a card, without writing anything in between."""

# pyright: reportInvalidTypeForm=false
# tl.constexpr is no type: Triton reads it as a word.

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plain
from ..runtime import there
from .distances import lengths
from .launching import bits, emitted, float_of, kernel, launch, rows, tl, triton

BLEND_BLOCK = 1024  # numbers per program where rows are only added to one another
IMAGE_BLOCK = 1024  # and of an image
STRAIGHT = 256  # bytes of a column: what so few workers send is straight code, a thread has a column of all of them
TOGETHER = 128  # so many at most where what they remember is asked for at once too
SMALL = 1 << 20  # columns: up to so many are spread over the card by 64, more go by 128
SENT_ROWS = 128  # so many workers at most are taken in one pass: their columns are in registers together
SENT = 4096  # numbers in registers at a time
HELD = (torch.float32, torch.float64)  # what is added up in its own type, as main memory does


def _beside(x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """y as rows for those of x, one for each or one for all, and how far apart they are."""
    beside = y if y.ndim == 2 else y.unsqueeze(0)
    if beside.ndim != 2 or beside.shape[1] != x.shape[1] or beside.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"rows {list(x.shape)} go with {list(x.shape)} or with one of them, got {list(y.shape)}.")
    beside = rows(beside.to(x.dtype))
    return beside, beside.stride(0) if len(beside) == len(x) else 0


@kernel
def blended(x, stride, keep, scales, factor, y, ystride, d, out, ostride, BLOCK: tl.constexpr, SCALES: tl.constexpr):
    pieces = tl.cdiv(d, BLOCK)
    i, k = tl.program_id(0) // pieces, (tl.program_id(0) % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + i * tl.cast(stride, tl.int64) + k, mask=k < d, other=0)
    b = tl.load(y + i * tl.cast(ystride, tl.int64) + k, mask=k < d, other=0)
    scale = (tl.load(scales + i) if SCALES else float_of(keep)).to(a.dtype)
    tl.store(out + i * tl.cast(ostride, tl.int64) + k, scale * a + float_of(factor).to(a.dtype) * b, mask=k < d)


def blend(scale: float | Tensor, x: Tensor, factor: float, y: Tensor, *, out: Tensor | None = None) -> Tensor:
    if x.ndim == 1 and y.ndim == 1:
        made = blend(scale, x.unsqueeze(0), factor, y, out=None if out is None else out.unsqueeze(0))
        return made[0] if out is None else out
    if x.ndim != 2 or x.dtype not in HELD or y.dtype != x.dtype:
        return plain.blend(scale, x, factor, y, out=out)
    (n, d), a, (b, apart) = x.shape, rows(x), _beside(x, y)
    fits = out is not None and _fits(out)
    made = out if out is not None and fits else torch.empty(n, d, dtype=x.dtype, device=x.device)
    scales = scale.detach().expand(n).contiguous() if isinstance(scale, Tensor) else None
    launch(
        blended, n * triton.cdiv(d, BLEND_BLOCK), a, a.stride(0), bits(0.0 if isinstance(scale, Tensor) else scale),
        a if scales is None else scales, bits(factor), b, apart, d, made, made.stride(0), BLOCK=BLEND_BLOCK,
        SCALES=scales is not None, enable_fp_fusion=False,
    )  # fmt: skip
    return made if out is None or fits else out.copy_(made)


def _fits(out: Tensor) -> bool:
    """Whether kernels can write to it as it lies in memory."""
    return (out.stride(-1) == 1 or out.shape[-1] <= 1) and not out.is_neg()


def sent_source(h: int, *, size: int, one: bool, scaled: bool, remembers: bool, measures: bool) -> str:
    """The kernel for columns of what h workers send, (x + factor y) scale, then momentum; and the moments of both.

    Straight code: a thread reads a column of all workers once, keeps it in registers, and adds up as main memory does,
    one worker after the other. Everything is read before anything is written, which may go where it was read. Numbers
    have ``size`` bytes; y is one row for all of them or one for each.
    """
    together, kind = h * size <= TOGETHER, f"tl.float{8 * size}"
    lines = [
        "def sent(",
        "    x, stride, factor, y, ystride, scales, keep, beta, memory, mstride, out, ostride, moments, d,",
        "    BLOCK: tl.constexpr,",
        "):",
        "    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "    inside = column < d",
        *(f"    {name}_ = float_of({name}).to({kind})" for name in ("factor", "keep", "beta")),
    ]

    def each(pointer: str, stride: str, line: str) -> None:
        """A line for each row, in which AT is its place."""
        lines.append(f"    at, apart = {pointer} + column, tl.cast({stride}, tl.int64)")
        for i in range(h):
            lines.append("    " + line.replace("AT", "at").replace("#", str(i)))
            if i < h - 1:
                lines.append("    at += apart")

    def moments(name: str, first: int) -> None:
        lines.append("    total = tl.zeros([BLOCK], tl.float64)")
        lines.extend(f"    total += {name}{i}.to(tl.float64)" for i in range(h))
        lines.extend([f"    mean = total / {h}.0", "    spread = tl.zeros([BLOCK], tl.float64)"])
        for i in range(h):
            # As it stands the compiler would keep what it made float64 of, in two registers each; a choice it cannot
            # see through makes it convert again.
            value = f"{name}{i}" if size == 8 else f"tl.where(inside, {name}{i}, factor_)"
            lines.extend([f"    away = {value}.to(tl.float64) - mean", "    spread += away * away"])
        lines.extend(
            [
                f"    place = moments + {first} * tl.cast(d, tl.int64) + column",
                f"    tl.store(place, mean.to({kind}), mask=inside)",
                f"    tl.store(place + d, tl.sqrt(spread / {h - 1}.0).to({kind}), mask=inside)",
            ]
        )

    def remember() -> None:
        each("memory", "mstride", "m# = tl.load(AT, mask=inside, other=0)")

    each("x", "stride", "a# = tl.load(AT, mask=inside, other=0)")
    if one:
        lines.append("    b = factor_ * tl.load(y + column, mask=inside, other=0)")
    else:
        each("y", "ystride", "b# = factor_ * tl.load(AT, mask=inside, other=0)")
    if remembers and together:
        remember()
    for i in range(h):
        scale = f" * tl.load(scales + {i}).to({kind})" if scaled else ""
        lines.append(f"    a{i} = (a{i} + {'b' if one else f'b{i}'}){scale}")
    if remembers and measures and not together:
        moments("a", 0)
    if remembers and not together:
        remember()
    if remembers:
        lines += [f"    c{i} = keep_ * a{i} + beta_ * m{i}" for i in range(h)]
    each("out", "ostride", f"tl.store(AT, {'c' if remembers else 'a'}#, mask=inside)")
    if measures and (together or not remembers):
        moments("a", 0)
    if measures and remembers:
        moments("c", 2)
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=64)
def sent(h: int, *, size: int, one: bool, scaled: bool, remembers: bool, measures: bool) -> Any:
    """That kernel: compiled at its first launch, and kept on disk by Triton."""
    source = sent_source(h, size=size, one=one, scaled=scaled, remembers=remembers, measures=measures)
    return emitted(f"sent by {h}: {size} {one} {scaled} {remembers} {measures}", source, "sent")


@kernel
def sent_of_many(
    x, stride, factor, y, ystride, scales, keep, beta, memory, mstride, out, ostride, moments, h, d,
    H: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, REMEMBERS: tl.constexpr, MEASURES: tl.constexpr,
):  # fmt: skip
    """The same in blocks, for more workers than a thread has registers for: sums go across threads."""
    i, column = tl.arange(0, H), tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < h)[:, None] & (column < d)[None, :]
    a = tl.load(x + i[:, None] * tl.cast(stride, tl.int64) + column[None, :], mask=inside, other=0)
    b = tl.load(y + i[:, None] * tl.cast(ystride, tl.int64) + column[None, :], mask=inside, other=0)
    sampled = a + float_of(factor).to(a.dtype) * b
    if SCALED:
        sampled = sampled * tl.load(scales + i, mask=i < h, other=0).to(a.dtype)[:, None]
    answer = sampled
    if REMEMBERS:
        m = tl.load(memory + i[:, None] * tl.cast(mstride, tl.int64) + column[None, :], mask=inside, other=0)
        answer = float_of(keep).to(a.dtype) * sampled + float_of(beta).to(a.dtype) * m
    tl.store(out + i[:, None] * tl.cast(ostride, tl.int64) + column[None, :], answer, mask=inside)
    if MEASURES:
        for which in tl.static_range(2 if REMEMBERS else 1):
            values = (sampled if which == 0 else answer).to(tl.float64)
            mean = tl.sum(tl.where(inside, values, 0.0), 0) / h
            away = tl.where(inside, values - mean[None, :], 0.0)
            spread = tl.sqrt(tl.sum(away * away, 0) / tl.cast(h - 1, tl.float64))
            place = moments + 2 * which * tl.cast(d, tl.int64) + column
            tl.store(place, mean.to(a.dtype), mask=column < d)
            tl.store(place + d, spread.to(a.dtype), mask=column < d)


def send_rows(
    x: Tensor, factor: float, y: Tensor, *, scale: Callable[[Tensor], Tensor] | None, keep: float, beta: float,
    memory: Tensor | None, out: Tensor, moments: bool,
) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:  # fmt: skip
    h, d = x.shape
    if h > SENT_ROWS or x.dtype not in HELD:
        return plain.send_rows(
            x, factor, y, scale=scale, keep=keep, beta=beta, memory=memory, out=out, moments=moments
        )  # fmt: skip
    a, (b, apart) = rows(x), _beside(x, y)
    held, between = (a, a.stride(0)) if memory is None else _beside(x, memory)
    scales = None if scale is None else scale(lengths(a, (factor, b))).to(x.dtype)
    found = torch.empty(2 if memory is None else 4, d, dtype=x.dtype, device=x.device) if moments else None
    fits = _fits(out)
    made = out if fits else torch.empty(h, d, dtype=x.dtype, device=x.device)
    places = (
        a, a.stride(0), bits(factor), b, apart, a if scales is None else scales, bits(keep), bits(beta), held, between,
        made, made.stride(0), a if found is None else found,
    )  # fmt: skip
    size = x.element_size()
    if h * size <= STRAIGHT:
        warps = 2 if d <= SMALL else 4
        straight = sent(
            h, size=size, one=apart == 0, scaled=scales is not None, remembers=memory is not None, measures=moments
        )  # fmt: skip
        launch(
            straight, triton.cdiv(d, 32 * warps), *places, d, BLOCK=32 * warps, num_warps=warps, enable_fp_fusion=False
        )  # fmt: skip
    else:
        at_once = triton.next_power_of_2(h)
        block = max(32, min(256, SENT // at_once))
        launch(
            sent_of_many, triton.cdiv(d, block), *places, h, d, H=at_once, BLOCK=block, SCALED=scales is not None,
            REMEMBERS=memory is not None, MEASURES=moments, num_warps=8 if at_once * block >= SENT else 4,
            enable_fp_fusion=False,
        )  # fmt: skip
    if not fits:
        out.copy_(made)
    if found is None:
        return None, None
    mean, std, *later = found
    return (mean, std), (later[0], later[1]) if later else (mean, std)


@kernel
def gathered(images, index, flip, scale, shift, channels, height, width, out, BLOCK: tl.constexpr, FLIPS: tl.constexpr):
    """A piece of one image: picked, mirrored where flip says so, channel c mapped to scale_c p + shift_c."""
    plane = height * width
    size = channels * plane
    pieces = tl.cdiv(size, BLOCK)
    b, k = tl.program_id(0) // pieces, (tl.program_id(0) % pieces) * BLOCK + tl.arange(0, BLOCK)
    inside, taken = k < size, k
    if FLIPS:
        across = k % width
        taken = tl.where(tl.load(flip + b) != 0, k - across + (width - 1 - across), k)
    pixel = tl.load(images + tl.load(index + b).to(tl.int64) * size + taken, mask=inside, other=0).to(tl.float32)
    channel = k // plane
    value = pixel * tl.load(scale + channel, mask=inside, other=0) + tl.load(shift + channel, mask=inside, other=0)
    tl.store(out + b.to(tl.int64) * size + k, value, mask=inside)


def gather_images(
    images: Tensor, index: Tensor, *, flip: Tensor | None, scale: np.ndarray, shift: np.ndarray
) -> Tensor:
    kept = images.detach().resolve_neg()
    if kept.dtype not in (torch.uint8, torch.float32):
        return plain.gather_images(images, index, flip=flip, scale=scale, shift=shift)
    if not kept.is_contiguous():
        kept = kept.index_select(0, index)
        index = torch.arange(len(index), device=kept.device)
    (c, h, w), mapped = kept.shape[1:], there(np.stack([scale, shift]).astype(np.float32), kept)
    flags = index if flip is None else (flip.view(torch.uint8) if flip.dtype == torch.bool else flip).contiguous()
    out = torch.empty(len(index), c, h, w, dtype=torch.float32, device=kept.device)
    launch(
        gathered, len(index) * triton.cdiv(c * h * w, IMAGE_BLOCK), kept, index.contiguous(), flags, mapped[0],
        mapped[1], c, h, w, out, BLOCK=IMAGE_BLOCK, FLIPS=flip is not None, enable_fp_fusion=False,
    )  # fmt: skip
    return out
