"""A transformer on sequences of tokens, data and module of one's own, while two of nine workers attack.

    varangian run --dataset tokens.py:marked --model tokens.py:Transformer --rule median --attack little \
        --workers 9 --byzantine 2 --learning-rate 0.2 --batch-size 32 --steps 150
    python tokens.py

Tokens are integers [N, T]. Labels are one class a sequence, [N], or one for each token, [N, T], where -100 does not
count: "tokens.py:marked(everywhere=True)" with "tokens.py:Transformer(everywhere=True)".
"""

import torch
from torch import Tensor, nn

import varangian as vg

WORDS, LENGTH = 8, 12


def marked(examples: int = 2000, everywhere: bool = False) -> vg.Dataset:
    """Sequences of 8 words, one of which is marked: the class is that word. With everywhere, all others say it too."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(WORDS, (examples, LENGTH), generator=draw)
    place = torch.randint(LENGTH, (examples, 1), generator=draw)
    word = words.gather(1, place)
    tokens = words.scatter(1, place, word + WORDS)
    labels = word.expand(-1, LENGTH).scatter(1, place, -100) if everywhere else word[:, 0]
    return vg.dataset((tokens, labels), name="marked words")


class Transformer(nn.Module):
    """Words and their places, one layer of attention, and an answer for the sequence or for each token."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 32, everywhere: bool = False) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.word, self.place = nn.Embedding(2 * WORDS, width), nn.Parameter(torch.zeros(*shape, width))
        self.layer = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.answer = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = self.layer(self.word(tokens) + self.place)
        return self.answer(seen if self.everywhere else seen.mean(1))


if __name__ == "__main__":
    for options in ("", "(everywhere=True)"):
        experiment = vg.Experiment(
            model=f"tokens.py:Transformer{options}", dataset=f"tokens.py:marked{options}",
            workers=9, byzantine=2, rule="median", attack="little", learning_rate=0.2, batch_size=32, steps=150,
        )  # fmt: skip
        print(vg.run(experiment))
