"""The paper's models and a few more, as plain ``torch.nn`` modules.

Every model answers *logits* [B, classes]; the loss is cross entropy on them. The paper writes a log-softmax layer and
the negative log-likelihood, which is the same number with the same gradients.

Nothing is done in place, so that ``torch.func.functional_call`` and ``vmap`` can run many workers through one model.
Parameters have PyTorch's default initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core import randomness
from ..core.checks import unknown

Shape = tuple[int, ...]  # of one example


def linear(shape: Shape, classes: int) -> nn.Module:
    """Softmax regression: logits = W x + b.

    Example:
        >>> sum(p.numel() for p in linear((1, 28, 28), 10).parameters())
        7850
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(_features(shape), classes))


def fully_connected(shape: Shape, classes: int, hidden: int = 100) -> nn.Module:
    """The paper's network for MNIST and Fashion-MNIST: logits = W' relu(W x + b) + b', 784-100-10, d = 79,510.

    Example:
        >>> sum(p.numel() for p in fully_connected((1, 28, 28), 10).parameters())
        79510
    """
    _check_hidden("fully_connected", hidden)
    return nn.Sequential(nn.Flatten(), nn.Linear(_features(shape), hidden), nn.ReLU(), nn.Linear(hidden, classes))


def cnn(shape: Shape, classes: int, hidden: int | None = None, pad: int = 0) -> nn.Module:
    """The paper's network for CIFAR: d = 1,310,922 on CIFAR-10.

    Two groups of (3x3 convolution, ReLU, batch norm) twice, 2x2 max pooling and dropout 0.25, with 64 then 128
    channels; a hidden layer with ReLU and dropout 0.25; the output layer.

    Args:
        shape: (C, H, W) with H and W at least 4, since both groups halve the image.
        classes: the number of outputs.
        hidden: width of the hidden layer; None is the paper's choice, 128, and 256 from 100 classes on.
        pad: rows and columns of zeros put around the image on each side: 2 makes 32 x 32 pixels of 28 x 28. Zero is
            black where images are not normalised, as those of Fashion-MNIST, and the mean where they are.

    Raises:
        ValueError: an image too small to be halved twice, or a padding that is negative.

    Example:
        >>> sum(p.numel() for p in cnn((3, 32, 32), 10).parameters())
        1310922
        >>> sum(p.numel() for p in cnn((1, 28, 28), 10, pad=2).parameters())
        1309770
    """
    channels, height, width = _image("cnn", shape)
    if pad < 0:
        raise ValueError(f"cnn: pad must be at least 0, got {pad}.")
    height, width = height + 2 * pad, width + 2 * pad
    if min(height, width) < 4:
        raise ValueError(f"cnn needs images of at least 4 x 4 pixels, got {height} x {width}.")
    hidden = (256 if classes >= 100 else 128) if hidden is None else hidden
    _check_hidden("cnn", hidden)

    def group(fan_in: int, fan_out: int) -> list[nn.Module]:
        return [
            *(nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(fan_out)),
            *(nn.Conv2d(fan_out, fan_out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(fan_out)),
            *(nn.MaxPool2d(2), nn.Dropout(0.25)),
        ]

    return nn.Sequential(
        *([nn.ZeroPad2d(pad)] if pad else []),
        *group(channels, 64),
        *group(64, 128),
        *(nn.Flatten(), nn.Linear(128 * (height // 4) * (width // 4), hidden), nn.ReLU(), nn.Dropout(0.25)),
        nn.Linear(hidden, classes),
    )


def cnn_small(shape: Shape, classes: int) -> nn.Module:
    """The field's network for images of 28 x 28: d = 431,080 on MNIST and Fashion-MNIST.

    Twice a 5x5 convolution without padding, ReLU and 2x2 max pooling, with 20 then 50 channels; a hidden layer of 500
    with ReLU; the output layer.

    Raises:
        ValueError: an image too small for both convolutions.

    Example:
        >>> sum(p.numel() for p in cnn_small((1, 28, 28), 10).parameters())
        431080

    Reference: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition",
    1998; the widths are those of papers on robust learning.
    """
    channels, height, width = _image("cnn-small", shape)
    if min(height, width) < 16:
        raise ValueError(f"cnn-small needs images of at least 16 x 16 pixels, got {height} x {width}.")
    rows, columns = ((((side - 4) // 2) - 4) // 2 for side in (height, width))
    return nn.Sequential(
        *(nn.Conv2d(channels, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(50 * rows * columns, 500), nn.ReLU()),
        nn.Linear(500, classes),
    )


Norm = Literal["batch", "group"]


def resnet_18(shape: Shape, classes: int, norm: Norm = "batch", stem: Literal["small", "large"] = "small") -> nn.Module:
    """ResNet-18: d = 11,173,962 on CIFAR-10; 11,689,512 for 1000 classes with the large stem.

    A stem; four groups of two residual blocks with 64, 128, 256 and 512 channels, all but the first at half the
    resolution of the one before, with 1x1 convolutions as shortcuts there; mean over the image, and a linear layer.

    Args:
        shape: (C, H, W).
        classes: the number of outputs.
        norm: "batch", or "group": one group for two channels and at most 32, with no statistics that are averaged over
            workers.
        stem: "small" is a 3x3 convolution, as papers on CIFAR have it; "large" that of ImageNet, a 7x7 convolution and
            3x3 max pooling, both with stride 2.

    Raises:
        ValueError: examples that are no images, or an option that is none of these.

    Example:
        >>> sum(p.numel() for p in resnet_18((3, 32, 32), 10).parameters())
        11173962

    Reference: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    channels, _, _ = _image("resnet-18", shape)
    _check_choice("resnet-18", "norm", norm, ("batch", "group"))
    _check_choice("resnet-18", "stem", stem, ("small", "large"))
    if stem == "small":
        layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), _norm(norm, 64), nn.ReLU()]
    else:
        layers = [nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False), _norm(norm, 64), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    fan_in = 64
    for fan_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for block in range(2):
            layers.append(BasicBlock(fan_in, fan_out, stride if block == 0 else 1, norm, projects=True))
            fan_in = fan_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def resnet_20(shape: Shape, classes: int, norm: Norm = "batch", depth: int = 20) -> nn.Module:
    """The ResNet of CIFAR, with 6n + 2 layers: d = 269,722 on CIFAR-10.

    A 3x3 convolution to 16 channels; three groups of n residual blocks with 16, 32 and 64 channels, the second and
    third at half the resolution of the one before; mean over the image, and a linear layer. Shortcuts have no
    parameters (option A of the paper): where the resolution halves they take every other pixel, and new channels are 0.

    Args:
        shape: (C, H, W).
        classes: the number of outputs.
        norm: "batch", or "group": one group for two channels, with no statistics that are averaged over workers.
        depth: 6n + 2: 8, 14, 20, 32, 44, 56, 110.

    Raises:
        ValueError: a depth that is not 6n + 2, examples that are no images, or another norm.

    Example:
        >>> [sum(p.numel() for p in resnet_20((3, 32, 32), 10, norm).parameters()) for norm in ("batch", "group")]
        [269722, 269722]

    Reference: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    channels, _, _ = _image("resnet-20", shape)
    _check_choice("resnet-20", "norm", norm, ("batch", "group"))
    blocks, remainder = divmod(depth - 2, 6)
    if blocks < 1 or remainder:
        raise ValueError(f"resnet-20: depth must be 6n + 2 (8, 14, 20, 32, ...), got {depth}.")
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), _norm(norm, 16), nn.ReLU()]
    fan_in = 16
    for fan_out, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(blocks):
            layers.append(BasicBlock(fan_in, fan_out, stride if block == 0 else 1, norm, projects=False))
            fan_in = fan_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


class BasicBlock(nn.Module):
    """Residual block of a ResNet: relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))).

    Where the number of channels or the resolution changes, the shortcut is a 1x1 convolution with normalisation
    (``projects``), or every ``stride``-th pixel with new channels of 0; else it is x.

    Shape: [B, fan_in, H, W] -> [B, fan_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: Norm, projects: bool):
        super().__init__()
        self.residual = nn.Sequential(
            *(nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False), _norm(norm, fan_out), nn.ReLU()),
            *(nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False), _norm(norm, fan_out)),
        )
        self.stride, self.more = stride, fan_out - fan_in
        self.shortcut = None
        if projects and (stride > 1 or fan_in != fan_out):
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), _norm(norm, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            same = self.shortcut(x)
        else:
            same = functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return torch.relu(same + self.residual(x))


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(min(32, channels // 2), channels)


def _check_choice(model: str, option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{model}: {option} must be {' or '.join(known)}, got {value!r}.")


def wide_resnet(shape: Shape, classes: int, depth: int = 28, width: int = 10, dropout: float = 0.3) -> nn.Module:
    """Wide-ResNet-depth-width, whose convolutions have biases as in the paper's study: d = 36,489,290 on CIFAR-10.

    A 3x3 convolution to 16 channels; three groups of (depth - 4) / 6 residual blocks with 16, 32 and 64 times ``width``
    channels, the second and third at half the resolution of the one before; batch norm, ReLU, mean over the image, and
    a linear layer.

    Args:
        depth: 6k + 4: 10, 16, 22, 28, 40 ...
        width: multiplies the channels; wide_resnet(shape, classes, depth=10, width=1) is small enough for tests.
        dropout: between the two convolutions of a block.

    Raises:
        ValueError: a depth that is not 6k + 4.

    Reference: S. Zagoruyko, N. Komodakis, "Wide Residual Networks", BMVC 2016.

    Example:
        >>> sum(p.numel() for p in wide_resnet((3, 32, 32), 10, depth=10, width=1).parameters())
        78186
    """
    blocks, remainder = divmod(depth - 4, 6)
    if blocks < 1 or remainder:
        raise ValueError(f"wide_resnet: depth must be 6k + 4 (10, 16, 22, 28, ...), got {depth}.")
    if width < 1:
        raise ValueError(f"wide_resnet: width must be at least 1, got {width}.")
    channels, _, _ = _image("wide_resnet", shape)
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1)]
    fan_in = 16
    for fan_out, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        for block in range(blocks):
            layers.append(ResidualBlock(fan_in, fan_out, stride if block == 0 else 1, dropout))
            fan_in = fan_out
    layers += [nn.BatchNorm2d(fan_in), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes)]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Pre-activation block of a Wide-ResNet: x + conv(relu(bn(dropout(conv(relu(bn(x)))))).

    Where the number of channels or the resolution changes, x is replaced by a 1x1 convolution of the activated input.

    Shape: [B, fan_in, H, W] -> [B, fan_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, dropout: float):
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(fan_in), nn.ReLU())
        self.residual = nn.Sequential(
            *(nn.Conv2d(fan_in, fan_out, 3, stride, padding=1), nn.Dropout(dropout), nn.BatchNorm2d(fan_out)),
            *(nn.ReLU(), nn.Conv2d(fan_out, fan_out, 3, padding=1)),
        )
        same = fan_in == fan_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(fan_in, fan_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        return self.residual(activated) + (x if self.shortcut is None else self.shortcut(activated))


Factory = Callable[..., nn.Module]  # of what it takes of shape and classes

MODELS: dict[str, Factory] = {
    "linear": linear,
    "fully-connected": fully_connected,
    "cnn": cnn,
    "cnn-small": cnn_small,
    "resnet-18": resnet_18,
    "resnet-20": resnet_20,
    "wide-resnet": wide_resnet,
}


def build(model: str | Factory, shape: Shape, classes: int, seed: int) -> nn.Module:
    """A model whose initial parameters depend on the seed alone; torch's generators and default type do not count.

    Args:
        model: a key of MODELS, or a function (shape, classes) -> module that answers logits.
        shape: of one example, (C, H, W) of an image.
        classes: the number of outputs.
        seed: of the initial parameters, the same on every device: they are drawn on the CPU.

    Raises:
        ValueError: unknown name; the message suggests a close one.

    Example:
        >>> one, two = (build("linear", (1, 8, 8), 10, seed=1) for _ in range(2))
        >>> torch.equal(one[1].weight, two[1].weight)
        True
    """
    if isinstance(model, str) and model not in MODELS:
        raise ValueError(unknown("model", model, MODELS))
    factory = MODELS[model] if isinstance(model, str) else model
    with torch.device("cpu"), _float32_by_default(), randomness.Drawn(randomness.integer(seed, "model")):
        return factory(shape, classes)


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Inside, torch's default type is float32, as it nearly always is: numbers of another type are drawn otherwise."""
    if torch.get_default_dtype() == torch.float32:
        yield
        return
    with randomness.GLOBALS:
        former = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(former)


def _check_hidden(model: str, hidden: int) -> None:
    if hidden < 1:
        raise ValueError(f"{model}: hidden must be at least 1, got {hidden}.")


def _image(model: str, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"{model} needs images [C, H, W], got examples of shape {list(shape)}.")
    channels, height, width = shape
    return channels, height, width


def _features(shape: Shape) -> int:
    return math.prod(shape)
