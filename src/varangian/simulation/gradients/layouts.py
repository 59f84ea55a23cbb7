"""Channels last: images [..., C, H, W] with the C numbers of a pixel side by side, as convolutions of a card compute.

What lies otherwise cuDNN turns round before each convolution and back behind it. Operators answer the same whatever the
layout, but for the order in which masks are drawn, and for code that asks how numbers lie: ``view`` does.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ALIGNED = 16  # bytes

Layout = Literal["auto", "contiguous", "channels-last"]


def channels_last(x: Tensor) -> Tensor:
    """The same [..., C, H, W] with channels last: x's own memory where the numbers lie so already."""
    *most, c, h, w = x.shape
    if c == 1 or h * w == 1:  # with strides that say so, which are what an operator goes by
        return x.reshape(*most, h, w, c).movedim(-1, -3)
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def aligned(x: Tensor) -> Tensor:
    """x itself where it lies as cards read it, sixteen bytes at a time, as all memory of its own does; else a copy. Of
    pieces of something larger cuDNN's kernels for channels last take that for granted: others break the card for the
    whole process."""
    return x if x.data_ptr() % ALIGNED == 0 else x.clone()


def empty_channels_last(like: Tensor) -> Tensor:
    """Memory for such numbers."""
    *most, c, h, w = like.shape
    return like.new_empty(*most, h, w, c).movedim(-1, -3)


def write_row(row: Tensor, gradients: list[Tensor | None], targets: list[Tensor]) -> None:
    """Gradients of any layout into a row [d], of which the targets are views: those that lie as they do in one go, and
    each of the others in one pass, with None for zeros."""
    if all(gradient is not None and gradient.is_contiguous() for gradient in gradients):
        torch.cat([gradient.reshape(-1) for gradient in gradients if gradient is not None], out=row)
        return
    pairs = [(target, gradient) for target, gradient in zip(targets, gradients, strict=True) if gradient is not None]
    # A view of either in the order of memory: of equal strides, where a dimension of 1 may have any.
    alike = [(t.reshape(-1), g.reshape(-1)) for t, g in pairs if g.is_contiguous()]
    if alike:
        torch._foreach_copy_([t for t, _ in alike], [g for _, g in alike])  # pyright: ignore
    for target, gradient in pairs:
        if not gradient.is_contiguous():
            target.copy_(gradient)
    for target, gradient in zip(targets, gradients, strict=True):
        if gradient is None:
            target.zero_()
