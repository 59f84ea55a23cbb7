"""A ResNet-20 with batch normalisation and a loss of one's own, on made-up images, while one of five workers attacks.

    varangian run --model resnet.py:ResNet --loss "resnet.py:focal(gamma=2.0)" \
        --dataset "synthetic(shape=(3,16,16),classes=4)" --rule median --attack empire \
        --workers 5 --byzantine 1 --batch-size 16 --steps 10 --evaluate-every 0
    python resnet.py

Each worker normalises its own batch; the running statistics of the model are the mean of those of the workers.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

import varangian as vg


class Block(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), where x takes every other pixel and more channels of 0 if it must."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.stride, self.more = fan_out // fan_in, fan_out - fan_in
        self.first, self.norm = nn.Conv2d(fan_in, fan_out, 3, self.stride, padding=1), nn.BatchNorm2d(fan_out)
        self.second, self.last = nn.Conv2d(fan_out, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        same = functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return torch.relu(same + self.last(self.second(torch.relu(self.norm(self.first(x))))))


class ResNet(nn.Module):
    """Twenty layers: what it takes of ``shape`` (of one image) and ``classes`` it is given."""

    def __init__(self, shape: tuple[int, ...], classes: int, blocks: int = 3) -> None:
        super().__init__()
        widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        self.stem = nn.Sequential(nn.Conv2d(shape[0], 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(widths)))
        self.answer = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(self.blocks(self.stem(images)).mean((2, 3)))


def focal(outputs: Tensor, labels: Tensor, gamma: float = 1.0) -> Tensor:
    """The mean of -(1 - p)^gamma log p, where p is what the model gives the label."""
    log_p = functional.log_softmax(outputs, dim=1).gather(1, labels[:, None])[:, 0]
    return -((1 - log_p.exp()) ** gamma * log_p).mean()


if __name__ == "__main__":
    torch.manual_seed(1)
    net = ResNet((3, 16, 16), 4, blocks=1)  # a module itself: its parameters are the start
    experiment = vg.Experiment(
        dataset="synthetic(shape=(3,16,16),classes=4)", rule="median", attack="empire", workers=5, byzantine=1,
        batch_size=16, steps=20,
    )  # fmt: skip
    result = vg.run(experiment, model=net, loss=focal)
    print(result)
    print(result.model()(torch.zeros(2, 3, 16, 16)).shape)
