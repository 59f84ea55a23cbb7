"""Modules of anybody: right, which is what plain torch gives worker by worker, or refused in one line."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils import checkpoint

import varangian as vg
from varangian.core import kernels, randomness
from varangian.simulation.gradients import Batch, WorkerGradients
from varangian.simulation.losses import CrossEntropy, SquaredError

H, B, CLASSES, WORDS, SEED = 3, 6, 4, 11, 5


class Made(nn.Module):
    """A module of a forward and of layers."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._compute = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._compute(self, x)


def of_vectors(*layers: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), *layers, nn.Linear(width, CLASSES))


def of_images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.Flatten(), nn.Linear(64, CLASSES))


def of_volumes(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 2), *layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, CLASSES))


def of_series(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, CLASSES))


def of_tokens(middle: nn.Module, pick: Callable[[Any], Tensor] = lambda y: y, **options: Any) -> nn.Module:
    return Made(
        lambda self, x: self.answer(pick(self.middle(self.words(x))).mean(1)),
        words=nn.Embedding(WORDS, 8, **options),
        middle=middle,
        answer=nn.Linear(8, CLASSES),
    )


def transformer(dropout: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
    return of_tokens(nn.TransformerEncoder(layer, 2))


def padded_transformer() -> nn.Module:
    """With a mask of padding, for which evaluation in torch uses nested tensors."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return Made(
        lambda self, x: self.answer(self.middle(self.words(x), src_key_padding_mask=x == 0)[:, 0]),
        words=nn.Embedding(WORDS, 8, padding_idx=0),
        middle=nn.TransformerEncoder(layer, 2),
        answer=nn.Linear(8, CLASSES),
    )


def tied_words() -> nn.Module:
    words, answer = nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES, bias=False)
    answer.weight = words.weight
    return Made(lambda self, x: self.answer(self.words(x % CLASSES).mean(1)), words=words, answer=answer)


def half_frozen() -> nn.Module:
    model = of_vectors(nn.BatchNorm1d(8), nn.ReLU())
    model[0].weight.requires_grad_(False)
    return model


def unreached() -> nn.Module:
    return Made(lambda self, x: self.used(x), used=nn.Linear(5, CLASSES), unused=nn.Linear(3, 2))


class Counting(nn.Module):
    """Buffers of its own: what was seen as a mean, and how often, written anew each time."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer, self.in_place = nn.Linear(5, CLASSES), in_place
        self.register_buffer("seen", torch.zeros(5, dtype=torch.float64))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("constant", torch.full((5,), 0.1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if self.in_place:
                self.seen.lerp_(x.mean(0), 0.1)
                self.calls += 1
            else:
                self.seen = self.seen + 0.1 * (x.mean(0) - self.seen)
                self.calls = self.calls + 1
        return self.layer(x - self.seen + self.constant)


def with_hooks() -> nn.Module:
    """A linear chain, were it not for what its hooks do to numbers and gradients."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    model[2].register_full_backward_hook(lambda module, inputs, outputs: tuple(3 * g for g in inputs))
    return model


def by_values() -> nn.Module:
    return Made(
        lambda self, x: self.a(x) if float(x.sum()) > 0 else self.b(x), a=nn.Linear(5, CLASSES), b=nn.Linear(5, CLASSES)
    )


def own_noise() -> nn.Module:
    return Made(lambda self, x: self.a(x + torch.randn_like(x)) * torch.rand(()), a=nn.Linear(5, CLASSES))


def own_dropout() -> nn.Module:
    class Mine(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand_like(x) > self.p) if self.training else x

    return of_vectors(Mine(0.4))


def own_norm() -> nn.Module:
    class Mine(nn.BatchNorm1d):
        pass

    return of_vectors(Mine(8), nn.Tanh())


MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm 1d": (lambda: of_vectors(nn.BatchNorm1d(8), nn.ReLU()), "vectors"),
    "batch norm 1d of series": (lambda: of_series(nn.BatchNorm1d(4), nn.ReLU()), "series"),
    "batch norm 2d": (lambda: of_images(nn.BatchNorm2d(4), nn.ReLU()), "images"),
    "batch norm 3d": (lambda: of_volumes(nn.BatchNorm3d(4)), "volumes"),
    "batch norm, cumulative": (lambda: of_vectors(nn.BatchNorm1d(8, momentum=None)), "vectors"),
    "batch norm, no statistics": (lambda: of_vectors(nn.BatchNorm1d(8, track_running_stats=False)), "vectors"),
    "batch norm of somebody": (own_norm, "vectors"),
    "layer norm": (lambda: of_vectors(nn.LayerNorm(8), nn.GELU()), "vectors"),
    "group norm": (lambda: of_images(nn.GroupNorm(2, 4), nn.SiLU()), "images"),
    "instance norm": (lambda: of_images(nn.InstanceNorm2d(4, affine=True)), "images"),
    "instance norm, statistics": (lambda: of_images(nn.InstanceNorm2d(4, track_running_stats=True)), "images"),
    "local response norm": (lambda: of_images(nn.LocalResponseNorm(2)), "images"),
    "dropout": (lambda: of_vectors(nn.Dropout(0.3), nn.ReLU()), "vectors"),
    "dropout 1d": (lambda: of_series(nn.Dropout1d(0.5)), "series"),
    "dropout 2d": (lambda: of_images(nn.Dropout2d(0.5)), "images"),
    "dropout 3d": (lambda: of_volumes(nn.Dropout3d(0.5)), "volumes"),
    "alpha dropout": (lambda: of_vectors(nn.AlphaDropout(0.3), nn.SELU()), "vectors"),
    "feature alpha dropout": (lambda: of_images(nn.FeatureAlphaDropout(0.3)), "images"),
    "dropout of nothing": (lambda: of_vectors(nn.Dropout(0.0), nn.Tanh()), "vectors"),
    "dropout of somebody": (own_dropout, "vectors"),
    "randomized relu": (lambda: of_vectors(nn.RReLU()), "vectors"),
    "both": (lambda: of_vectors(nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU()), "vectors"),
    "embedding": (lambda: of_tokens(nn.Tanh()), "tokens"),
    "embedding, padding": (lambda: of_tokens(nn.Tanh(), padding_idx=0), "tokens"),
    "embedding bag": (
        lambda: Made(lambda s, x: s.b(s.a(x)), a=nn.EmbeddingBag(WORDS, 8), b=nn.Linear(8, CLASSES)),
        "tokens",
    ),
    "tied words": (tied_words, "tokens"),
    "rnn": (lambda: of_tokens(nn.RNN(8, 8, batch_first=True), lambda y: y[0]), "tokens"),
    "lstm": (lambda: of_tokens(nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True), lambda y: y[0]), "tokens"),
    "lstm, dropout": (lambda: of_tokens(nn.LSTM(8, 8, 2, dropout=0.3, batch_first=True), lambda y: y[0]), "tokens"),
    "gru": (lambda: of_tokens(nn.GRU(8, 8, batch_first=True), lambda y: y[0]), "tokens"),
    "transformer": (lambda: transformer(0.0), "tokens"),
    "transformer, dropout": (lambda: transformer(0.2), "tokens"),
    "transformer, padding": (padded_transformer, "tokens"),
    "frozen": (half_frozen, "vectors"),
    "unreached": (unreached, "vectors"),
    "counters": (lambda: Counting(True), "vectors"),
    "counters, written anew": (lambda: Counting(False), "vectors"),
    "hooks": (with_hooks, "vectors"),
    "control flow": (by_values, "vectors"),
    "noise": (own_noise, "vectors"),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, CLASSES)), nn.Tanh()), "vectors"),
    "spectral norm": (lambda: of_vectors(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Tanh()), "vectors"),
    "orthogonal": (lambda: of_vectors(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Tanh()), "vectors"),
    "bilinear": (lambda: Made(lambda s, x: s.a(x, x), a=nn.Bilinear(5, 5, CLASSES)), "vectors"),
    "checkpointing": (
        lambda: Made(
            lambda s, x: s.b(checkpoint.checkpoint(s.a, x, use_reentrant=False).tanh()),
            a=nn.Linear(5, 8),
            b=nn.Linear(8, CLASSES),
        ),
        "vectors",
    ),
}


def made(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return MODULES[name][0]().double()


def inputs_of(name: str) -> Tensor:
    draw = torch.Generator().manual_seed(4)
    shapes = {"vectors": (5,), "images": (2, 6, 6), "series": (2, 9), "volumes": (1, 4, 4, 4), "tokens": (7,)}
    kind = MODULES[name][1]
    if kind == "tokens":
        tokens = torch.randint(1, WORDS, (H, B, *shapes[kind]), generator=draw)
        tokens[..., 5:] = torch.where(torch.rand(H, B, 2, generator=draw) < 0.5, 0, tokens[..., 5:])
        return tokens
    return 0.3 + torch.randn(H, B, *shapes[kind], generator=draw, dtype=torch.float64)


LABELS = torch.arange(H * B).reshape(H, B) % CLASSES


def plainly(name: str, worker: int, step: int) -> tuple[Tensor, float, dict[str, Tensor]]:
    """What torch gives one worker: the gradient of what is learned, the loss, and the buffers that it leaves."""
    model = made(name).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.integer(SEED, "dropout", step, worker))
        loss = functional.cross_entropy(model(inputs_of(name)[worker]), LABELS[worker])
    loss.backward()
    learned = [p for p in model.parameters() if p.requires_grad]
    row = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in learned])
    return row, float(loss), dict(model.named_buffers())


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("name", MODULES)
def test_each_worker_gets_what_plain_torch_gives_it(
    name: str, inside: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(kernels.runtime, "SMALL", 0)  # on threads, however little there is
    model, step = made(name), 7
    start = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = WorkerGradients(model, seed=SEED)
    out = torch.empty(H, gradients.d, dtype=torch.float64)
    batch = Batch(inputs_of(name), LABELS)
    gradients.look(batch, CLASSES)
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())
    generator = torch.get_rng_state()
    if inside:
        with kernels.exclusive_threads():
            losses = gradients(gradients.parameters(), batch, out, step)
    else:
        losses = gradients(gradients.parameters(), batch, out, step)
    assert torch.equal(torch.get_rng_state(), generator)
    plain = [plainly(name, i, step) for i in range(H)]
    for i in range(H):
        torch.testing.assert_close(out[i], plain[i][0], rtol=1e-9, atol=1e-11)
        assert float(losses[i]) == pytest.approx(plain[i][1], rel=1e-10)
    for key, value in model.named_buffers():
        of_workers = torch.stack([buffers[key] for _, _, buffers in plain])
        expected = of_workers.mean(0) if value.is_floating_point() else of_workers[0]
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    assert not [w for w in recwarn if "performance drop" in str(w.message)]


@pytest.mark.parametrize("name", MODULES)
def test_evaluation_is_that_of_plain_torch(name: str) -> None:
    model = made(name)
    gradients = WorkerGradients(model, seed=SEED)
    inputs, labels = inputs_of(name).flatten(0, 1), LABELS.flatten()
    gradients.look(Batch(inputs_of(name), LABELS), CLASSES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    accuracy, loss = gradients.evaluate(gradients.parameters(), [inputs[:10], inputs[10:]], [labels[:10], labels[10:]])
    if name != "noise":
        with torch.no_grad():
            parts = [copy.deepcopy(model).eval()(x) for x in (inputs[:10], inputs[10:])]
        outputs = torch.cat(parts)
        assert accuracy == (outputs.argmax(1) == labels).double().mean().item()
        assert loss == pytest.approx(functional.cross_entropy(outputs, labels).item(), rel=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *[(name, "vmap") for name in ("layer norm", "embedding", "unreached", "dropout of nothing")],
        *[(name, "loop") for name in ("batch norm 1d", "dropout", "group norm", "counters", "hooks", "control flow")],
        *[(name, "loop") for name in ("lstm", "batch norm of somebody", "dropout of somebody")],
    ],
)
def test_what_cannot_be_batched_is_looped(name: str, method: str) -> None:
    gradients = WorkerGradients(made(name))
    gradients.look(Batch(inputs_of(name), LABELS))
    assert gradients.method == method


def test_the_way_back_to_the_loop_is_said_once_and_by_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if bool(x.sum() > 0) else -self.a(x)

    with caplog.at_level(logging.INFO, "varangian"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            WorkerGradients(Undecided().double()).look(Batch(inputs_of("frozen"), LABELS))
    assert [record.getMessage() for record in caplog.records] == [
        "Undecided: one worker after the other, since it cannot be batched: its control flow depends on values."
    ]


# ------------------------------------------------------------------------------------------------- what is refused


class Calls(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Remembers(nn.Linear):
    last: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) + self.last
        self.last = y.detach().mean()
        return y


def quietly(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Without what torch says of ways that it gives up."""

    def made() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


def grows() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.register_buffer("cache", x.detach().mean(0))
        return self.a(x)

    return Made(forward, a=nn.Linear(5, CLASSES))


def own_generator() -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    return Made(lambda s, x: s.a(x) + torch.rand(1, generator=draw), a=nn.Linear(5, CLASSES))


def hooked_parameter() -> nn.Module:
    model = nn.Linear(5, CLASSES)
    model.weight.register_hook(lambda g: 2 * g)
    return model


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, CLASSES)))
    model(torch.zeros(1, 5))
    return model


def complex_one() -> nn.Module:
    model = nn.Linear(5, CLASSES)
    model.register_parameter("turn", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    return model


def forgetful_dropout() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return checkpoint.checkpoint(
            lambda z: functional.dropout(self.a(z), 0.5), x, use_reentrant=False, preserve_rng_state=False
        )

    return Made(forward, a=nn.Linear(5, CLASSES))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "nothing to learn": (lambda: nn.Flatten(), "has no parameters that require gradients"),
    "half": (lambda: nn.Linear(5, CLASSES).half(), "parameters must be float32 or float64, got weight: float16"),
    "bfloat16": (lambda: nn.Linear(5, CLASSES).bfloat16(), "must be float32 or float64, got weight: bfloat16"),
    "complex": (complex_one, r"must be float32 or float64, got turn: complex64 \[2\]"),
    "two types": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.Linear(3, CLASSES).double()),
        "of one type and on one device",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(CLASSES)), "0.weight has no shape before a first batch"),
    "scripted": (quietly(lambda: torch.jit.script(nn.Linear(5, CLASSES))), "is scripted"),
    "compiled": (quietly(lambda: torch.compile(nn.Linear(5, CLASSES))), "is compiled"),
    "data parallel": (lambda: nn.DataParallel(nn.Linear(5, CLASSES)), "hand in the module inside, its .module"),
    "hook on a gradient": (hooked_parameter, "weight has a hook on its gradient"),
    "old weight norm": (old_weight_norm, "cannot be copied: .*torch.nn.utils.parametrizations"),
    "counts by itself": (lambda: Calls(5, CLASSES), r"answers otherwise .*\(calls has changed\): .* must be a buffer"),
    "remembers by itself": (lambda: Remembers(5, CLASSES), "answers otherwise when it is called again"),
    "random": (lambda: Made(lambda s, x: s.a(x) * random.random(), a=nn.Linear(5, CLASSES)), "answers otherwise"),
    "numpy": (
        lambda: Made(lambda s, x: s.a(x) * np.random.default_rng().random(), a=nn.Linear(5, CLASSES)),
        "answers otherwise",
    ),
    "own generator": (own_generator, "what it draws must come from torch's own generators"),
    "a new buffer": (grows, r"forward makes the buffer cache float32 \[5\], which was nothing"),
    "checkpointed dropout": (forgetful_dropout, "draws random numbers in its backward pass"),
    "a tuple": (lambda: Made(lambda s, x: (s.a(x), x), a=nn.Linear(5, CLASSES)), "must answer a tensor, got a tuple"),
    "another type": (
        lambda: Made(lambda s, x: s.a(x).double(), a=nn.Linear(5, CLASSES)),
        "must answer a tensor of float32",
    ),
    "too many classes": (lambda: nn.Linear(5, 7), r"labels int64 \[6\] need outputs \[6, 4\], got float32 \[6, 7\]"),
    "no classes": (
        lambda: Made(lambda s, x: s.a(x).sum(1), a=nn.Linear(5, 4)),
        r"need outputs \[6, 4\], got float32 \[6\]",
    ),
    "not finite": (
        lambda: Made(lambda s, x: s.a(x) / 0, a=nn.Linear(5, 4)),
        "the outputs of Made must be finite at the start",
    ),
    "no gradient": (lambda: Made(lambda s, x: s.a(x).detach(), a=nn.Linear(5, 4)), "depends on none of the parameters"),
    "another shape": (lambda: nn.Linear(9, CLASSES), r"cannot compute a batch of float32 \[6, 5\]: mat1 and mat2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_in_a_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        WorkerGradients(make()).look(Batch(inputs_of("frozen").float(), LABELS), CLASSES)
    assert "\n" not in str(error.value)


def test_sparse_gradients_and_parameters_that_forward_changes_are_refused() -> None:
    batch = Batch(inputs_of("embedding"), LABELS)
    for options, message in (({"sparse": True}, "the gradient of words.weight is sparse; say sparse=False"),
                             ({"max_norm": 0.1}, "changes its parameters in forward, as max_norm")):  # fmt: skip
        model = of_tokens(nn.Tanh(), **options)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            WorkerGradients(model).look(batch, CLASSES)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_mistake_of_somebodys_own_keeps_its_traceback() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)[self.no_such_thing]

    with pytest.raises(AttributeError, match="no_such_thing"):
        WorkerGradients(Mine()).look(Batch(inputs_of("frozen").float(), LABELS))


# ------------------------------------------------------------------------------------------------------- losses


def test_the_loss_of_sequences_is_a_mean_over_the_places_that_count() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.answer = nn.Embedding(WORDS, 8), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.answer(torch.tanh(self.words(x)))

    torch.manual_seed(1)
    model = Tagger().double()
    tokens = inputs_of("embedding")
    labels = torch.where(tokens == 0, -100, tokens % CLASSES)
    labels[1, 2] = -100  # a sequence of which nothing counts
    gradients = WorkerGradients(model)
    out = torch.empty(H, gradients.d, dtype=torch.float64)
    losses = gradients(gradients.parameters(), Batch(tokens, labels), out)
    assert gradients.method == "vmap"
    for i in range(H):
        model.zero_grad()
        loss = functional.cross_entropy(model(tokens[i]).flatten(0, 1), labels[i].flatten())
        loss.backward()
        torch.testing.assert_close(out[i], torch.cat([p.grad.reshape(-1) for p in model.parameters()]))  # type: ignore[union-attr]
        torch.testing.assert_close(losses[i], loss.detach())
    accuracy, loss = gradients.evaluate(gradients.parameters(), list(tokens), list(labels))
    every, truth = model(tokens.flatten(0, 1)), labels.flatten(0, 1)
    assert loss == pytest.approx(functional.cross_entropy(every.flatten(0, 1), truth.flatten()).item(), rel=1e-10)
    right = (every.argmax(-1) == truth)[truth != -100]
    assert accuracy == pytest.approx(right.double().mean().item(), rel=1e-12)
    turned = Made(lambda s, x: s.a(x).transpose(1, 2), a=model)
    with pytest.raises(ValueError, match=r"need outputs \[6, 7, 4\], got float64 \[6, 4, 7\]; transpose\(1, 2\)"):
        WorkerGradients(turned).look(Batch(tokens, labels), CLASSES)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_squared_errors_of_numbers(own: bool, weighted: bool) -> None:
    """The own function answers the mean of a batch, and padding comes to none of it."""
    model, inputs = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double(), inputs_of("frozen")
    labels, weights = inputs.sum(-1), None
    if weighted:
        weights = torch.full((H, B), 1 / B, dtype=torch.float64)
        weights[0] = torch.tensor([0.5, 0.5, 0, 0, 0, 0])
    loss = (lambda outputs, truth: functional.mse_loss(outputs[:, 0], truth)) if own else SquaredError()
    gradients = WorkerGradients(model, loss=loss)
    out = torch.empty(H, gradients.d, dtype=torch.float64)
    losses = gradients(gradients.parameters(), Batch(inputs, labels, weights), out)
    for i in range(H):
        kept = 2 if weighted and i == 0 else B
        model.zero_grad()
        expected = functional.mse_loss(model(inputs[i, :kept])[:, 0], labels[i, :kept])
        expected.backward()
        torch.testing.assert_close(out[i], torch.cat([p.grad.reshape(-1) for p in model.parameters()]))  # type: ignore[union-attr]
        torch.testing.assert_close(losses[i], expected.detach())
    accuracy, found = gradients.evaluate(gradients.parameters(), [inputs[0], inputs[1, :3]], [labels[0], labels[1, :3]])
    every, truth = torch.cat([inputs[0], inputs[1, :3]]), torch.cat([labels[0], labels[1, :3]])
    assert np.isnan(accuracy)
    assert found == pytest.approx(functional.mse_loss(model(every)[:, 0], truth).item(), rel=1e-10)


def test_losses_and_labels_that_do_not_fit() -> None:
    model, inputs = nn.Linear(5, CLASSES), inputs_of("frozen").float()
    for loss, labels, message in (
        (CrossEntropy(), torch.rand(H, B), "cross-entropy needs labels that are whole numbers"),
        (SquaredError(), LABELS, "mse needs labels that are real numbers"),
        (SquaredError(), torch.rand(H, B), r"need outputs \[6\] or \[6, 1\], got float32 \[6, 4\]"),
        (
            lambda outputs, labels: outputs,
            LABELS,
            r"^loss: it must answer one number of float32, got float32 \[6, 4\]\.$",
        ),
        (lambda outputs, labels: 3.0, LABELS, "must answer one number of float32, got a float"),
        (lambda outputs, labels: outputs.mean() / 0, LABELS, "the loss must be finite at the start"),
    ):
        with pytest.raises(ValueError, match=message):
            WorkerGradients(model, loss=loss).look(Batch(inputs, labels), CLASSES)


def test_a_loss_takes_outputs_and_labels() -> None:
    with pytest.raises(ValueError, match=r"^<lambda> must take outputs and labels: missing a required argument"):
        WorkerGradients(nn.Linear(5, CLASSES), loss=lambda a, b, c: a.mean())
    with pytest.raises(ValueError, match=r"^OwnLoss needs a function of outputs and labels, got 3\.$"):
        WorkerGradients(nn.Linear(5, CLASSES), loss=3)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- in runs and folders

SMALL = vg.Experiment(steps=4, workers=5, byzantine=1, rule="median", attack="little", batch_size=8, evaluate_every=2)


class Digits(nn.Module):
    """Batch normalisation, dropout, tied and frozen parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.first, self.norm, self.again = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)
        self.again.weight, self.answer = self.first.weight, nn.Linear(64, classes)
        self.answer.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(self.first(x.flatten(1))))
        return self.answer(functional.dropout(self.again(z), 0.1, self.training))


def digits(seed: int = 1) -> Digits:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Digits()


def test_a_module_is_the_start_and_stays_what_it_was(tmp_path: Path) -> None:
    net = digits()
    before = copy.deepcopy(net.state_dict())
    result = vg.run(SMALL, tmp_path, model=net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert (result.experiment.model, len(result.experiment.code_hash or "")) == ("given:Digits", 16)
    at_start = vg.run(vg.Experiment(**(SMALL.to_dict() | {"steps": 0, "seed": 9})), model=net).model()
    assert all(torch.equal(value, before[key]) for key, value in at_start.state_dict().items())  # whatever the seed
    trained = result.model().state_dict()
    assert torch.equal(trained["answer.bias"], before["answer.bias"])
    assert torch.equal(trained["again.weight"], trained["first.weight"])
    assert not torch.equal(trained["norm.running_mean"], before["norm.running_mean"])
    for other in (vg.load_model(result.folder, model=net), vg.run(SMALL, tmp_path, model=net).model()):  # type: ignore[arg-type]
        assert all(torch.equal(value, trained[key]) for key, value in other.state_dict().items())
        assert not other.training
    assert vg.replay(result.folder, 3, model=net).agrees  # type: ignore[arg-type]
    assert vg.resume(result.folder, model=net).from_disk  # type: ignore[arg-type]


def test_an_interrupted_run_of_a_module_goes_on_with_it(tmp_path: Path) -> None:
    def stop(done: int, newest: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    whole = vg.run(SMALL, tmp_path / "whole", model=digits())
    with pytest.raises(KeyboardInterrupt):
        vg.run(SMALL, tmp_path / "half", model=digits(), progress=stop)
    [folder] = (tmp_path / "half").iterdir()
    for wrong, message in ((None, "hand it over again, as model="), (digits(2), "or the module has other parameters"),
                           ("linear", "model: 'given:Digits' there, 'linear' asked for")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            vg.resume(folder, model=wrong)
    assert vg.resume(folder, model=digits()).began == 2
    assert whole.folder is not None
    for name in ("metrics.csv", "evaluations.csv"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_folder_is_not_read_as_that_of_another_module(tmp_path: Path) -> None:
    one, other = (vg.run(SMALL, tmp_path, model=digits(seed)) for seed in (1, 2))
    assert one.folder != other.folder
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.1))
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
    narrow.load_state_dict(wide.state_dict())
    hashes = [vg.run(SMALL, model=model).experiment.code_hash for model in (wide, narrow, wide)]
    assert hashes[0] == hashes[2] != hashes[1]  # what is no parameter counts too
    with pytest.raises(ValueError, match="its frozen parameters or its code are others"):
        vg.load_model(one.folder, model=digits(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is of the model given:Digits, and given:Sequential was handed over"):
        vg.load_model(one.folder, model=wide)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "model", "message"),
    [
        ({}, 3, "^model: must be a module, or a class or function that makes one, got 3.$"),
        ({}, digits().double(), "^model: Digits has parameters of float64 .*, and dtype is float32; make them equal.$"),
        ({}, nn.Linear(64, 10, device="meta"), "^model: Linear is on meta, and device is cpu; make them equal.$"),
        ({}, lambda hidden: digits(), r"^model: <lambda> needs hidden: hand over a module, or functools.partial\("),
        ({}, lambda: 7, r"must make a torch\.nn\.Module, got a int"),
        ({}, "nosuch", "unknown model 'nosuch'"),
    ],
)
def test_what_is_handed_over_and_is_no_model(settings: dict[str, Any], model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vg.run(vg.Experiment(**(SMALL.to_dict() | settings)), model=model)


def test_a_class_with_a_name_is_a_reference_and_a_float32_module_trains_in_float64(tmp_path: Path) -> None:
    result = vg.run(SMALL, tmp_path, model=Digits)
    assert "test_modules" in result.experiment.model
    assert vg.Experiment(model=Digits).model == result.experiment.model
    wide = vg.run(vg.Experiment(**(SMALL.to_dict() | {"dtype": "float64"})), model=digits())
    assert next(wide.model().parameters()).dtype == torch.float64


def test_sweeps_say_that_they_cannot_be_handed_a_module(tmp_path: Path) -> None:
    e = vg.Experiment(**(SMALL.to_dict() | {"model": "given:Digits"}))
    with pytest.raises(ValueError, match=r"put it into a file and name it my_file.py:Name"):
        vg.run(e, tmp_path)


def test_a_loss_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    plain = vg.run(SMALL, tmp_path)
    smooth = vg.run(vg.Experiment(**(SMALL.to_dict() | {"loss": "cross-entropy(label_smoothing=0.2)"})), tmp_path)
    own = vg.run(SMALL, tmp_path, loss=lambda o, y: functional.cross_entropy(o, y, label_smoothing=0.2))
    assert "loss" not in plain.experiment.to_dict()
    assert len({plain.folder, smooth.folder, own.folder}) == 3
    assert [e.accuracy for e in own.evaluations] == [e.accuracy for e in smooth.evaluations]
    assert [e.loss for e in own.evaluations] == pytest.approx([e.loss for e in smooth.evaluations], rel=1e-5)
    assert own.experiment.loss == "given:lambda"
    with pytest.raises(ValueError, match="hand it over again, as loss="):
        vg.replay(own.folder, 1)  # type: ignore[arg-type]
    same = vg.Experiment(**(SMALL.to_dict() | {"loss": "cross-entropy( label_smoothing = 0.0 )"}))
    assert (same.digest, same.loss) == (SMALL.digest, "cross-entropy")


def test_label_flips_leave_alone_what_does_not_count() -> None:
    inputs = torch.randint(8, (40, 6))
    labels = torch.where(inputs == 0, -100, inputs % 4)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
    flip = vg.Experiment(**(SMALL.to_dict() | {"attack": "label-flip"}))
    assert vg.run(flip, dataset=(inputs, labels), model=model).stopped is None
    with pytest.raises(ValueError, match="turns classes round, and labels that are real numbers are none"):
        vg.run(flip, dataset=(torch.rand(40, 6), torch.rand(40, 2)), model=nn.Linear(6, 2), loss="mse")


# -------------------------------------------------------------------------------------------- a loop of one's own


def test_a_loop_of_ones_own_is_plain_sgd_where_nobody_attacks() -> None:
    """The average of workers with batches of several sizes, into Adam: what torch does with the mean loss."""
    draw = torch.Generator().manual_seed(1)
    inputs = [torch.randn(size, 5, generator=draw, dtype=torch.float64) for size in (3, 6, 6)]
    labels = [torch.randint(CLASSES, (len(x),), generator=draw) for x in inputs]
    one = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    other = copy.deepcopy(one)
    workers, algorithm = vg.WorkerGradients(one), vg.Algorithm(rule=vg.Average())
    state = algorithm.init(3, workers.d, dtype=torch.float64)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (one, other)]
    for step in range(3):
        gradients, losses = workers.rows(inputs, labels, step)
        sent, state = algorithm.send(gradients, state)
        update, state = algorithm.aggregate(sent, state)
        workers.set_grad(update)
        other.zero_grad()
        each = [functional.cross_entropy(other(x), y) for x, y in zip(inputs, labels, strict=True)]
        torch.stack(each).mean().backward()
        torch.testing.assert_close(losses, torch.stack(each).detach())
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_rows_of_equal_batches_are_those_of_the_simulator_and_mistakes_are_said() -> None:
    model, inputs = of_vectors(nn.BatchNorm1d(8), nn.Dropout(0.5)).double(), inputs_of("frozen")
    twin = copy.deepcopy(model)
    gradients, losses = vg.WorkerGradients(model, seed=2).rows(list(inputs), list(LABELS), step=3)
    simulated = WorkerGradients(twin, seed=2)
    out = torch.empty_like(gradients)
    assert torch.equal(simulated(simulated.parameters(), Batch(inputs, LABELS), out, 3), losses)
    assert torch.equal(out, gradients)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    workers = vg.WorkerGradients(model)
    with pytest.raises(ValueError, match="rows needs inputs and labels of each worker, got 3 and 2"):
        workers.rows(inputs, LABELS[:2], 0)
    with pytest.raises(ValueError, match=r"set_grad needs an update of shape \[\d+\], got float64 \[2\]"):
        workers.set_grad(torch.zeros(2, dtype=torch.float64))
    update = torch.ones(workers.d, dtype=torch.float64)
    workers.set_grad(update)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    assert torch.equal(update, torch.ones_like(update))  # what is done to .grad reaches no momentum of the server


@pytest.mark.parametrize(
    "first", [nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)], ids=lambda layer: type(layer).__name__
)
def test_a_module_that_writes_into_its_inputs_spoils_nobodys(first: nn.Module) -> None:
    torch.manual_seed(0)
    data, other = vg.dataset((torch.randn(60, 5), torch.arange(60) % CLASSES)), nn.Linear(5, CLASSES)
    settings = vg.Experiment(rule="median", workers=3, byzantine=1, steps=3, batch_size=4)

    def evaluated(model: nn.Module) -> list[tuple[float, ...]]:
        return [found.values for found in vg.run(settings, dataset=data, model=model).evaluations]

    alone = evaluated(other)
    writing, plain = nn.Sequential(first, other), nn.Sequential(copy.deepcopy(first), other)
    plain[0].inplace = False
    assert evaluated(writing) == evaluated(plain)
    assert evaluated(other) == alone


def test_a_loss_and_metrics_that_write_where_they_measure_spoil_nothing() -> None:
    def spoils(outputs: Tensor, labels: Tensor) -> Tensor:
        loss = functional.cross_entropy(outputs, labels)
        if not torch.is_grad_enabled():
            outputs.zero_()
            labels.zero_()
        return loss

    torch.manual_seed(0)
    model = nn.Linear(5, CLASSES)
    x, y = [torch.randn(B, 5)], [torch.arange(B) % CLASSES]
    workers, plain = WorkerGradients(model, loss=spoils), WorkerGradients(model)
    metric = [lambda outputs, labels: spoils(outputs, labels), functional.cross_entropy]
    for _ in range(2):
        found = workers.evaluate(workers.parameters(), x, y, metric)
        expected = plain.evaluate(plain.parameters(), x, y, [functional.cross_entropy])
        assert np.allclose(found, [*expected, expected[-1]])
    assert torch.equal(y[0], torch.arange(B) % CLASSES)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_what_is_drawn_in_a_branch_that_comes_later_is_of_the_seed_too(training: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        outputs = self.layer(x)
        late = bool(x[0, 0] > 0) if training else not self.training
        return outputs + torch.randn_like(outputs) if late else outputs

    torch.manual_seed(0)
    model = Made(forward, layer=nn.Linear(5, CLASSES))
    x, y = torch.randn(H, B, 5), torch.arange(H * B).reshape(H, B) % CLASSES
    x[0, 0, 0], x[1, 0, 0] = -1, 1  # the look sees the first worker's batch
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        workers = WorkerGradients(copy.deepcopy(model), seed=SEED)
        out = torch.empty(H, workers.d)
        losses = workers(workers.parameters(), Batch(x, y), out, 7)
        found.append((out, losses, torch.tensor(workers.evaluate(workers.parameters(), [x[0]], [y[0]]))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    if training:
        with randomness.Drawn(randomness.integer(SEED, "dropout", 7, 1)):
            assert torch.equal(found[0][1][1], functional.cross_entropy(model(x[1]), y[1]))


def test_labels_that_are_classes_in_another_form_are_said_to_be() -> None:
    loss, outputs = CrossEntropy(), torch.zeros(3, 3)
    assert "integers" in str(loss.fault(outputs, torch.tensor([0.0, 2.0, 1.0]), 3))
    assert str(loss.fault(outputs, torch.tensor([0.5, 2.0, 1.0]), 3)).endswith("say loss=mse")
    for one_hot in (torch.eye(3), torch.eye(3, dtype=torch.int64)):
        assert str(loss.fault(outputs, one_hot, 3)).endswith("one-hot: hand over labels.argmax(1)")


def test_metrics_that_no_text_can_name_are_handed_over_and_part_of_what_a_run_is(tmp_path: Path) -> None:
    def wins(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.argmax(1) == labels).double().mean()

    settings = vg.Experiment(rule="median", workers=3, byzantine=1, steps=2, validation=0.1)
    result = vg.run(settings, tmp_path, metrics=[wins, "macro-f1"])
    last, folder = result.evaluations[-1], result.folder
    assert result.experiment.metrics == ("given:wins", "macro-f1")
    assert result.experiment.code_hash is not None
    assert last.metrics["wins"] == last.accuracy
    assert last.metrics["validation_wins"] == last.validation_accuracy
    assert folder is not None
    assert vg.run(settings, tmp_path, metrics=[wins, "macro-f1"]).from_disk
    assert vg.read(folder).evaluations[-1].metrics == pytest.approx(last.metrics)
    assert vg.replay(folder, 1, metrics=[wins, "macro-f1"]).agrees
    with pytest.raises(ValueError, match=r"given:wins was handed over in Python: hand it over again, as metrics="):
        vg.replay(folder, 1)
    with pytest.raises(ValueError, match=r"is of something else: .*given:wins.*given:lambda"):
        vg.replay(folder, 1, metrics=[lambda outputs, labels: 0.0, "macro-f1"])

    def stop(step: int, newest: Any) -> None:
        raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        vg.run(settings, again, metrics=[wins, "macro-f1"], progress=stop)
    (left,) = again.iterdir()
    resumed = vg.resume(left, metrics=[wins, "macro-f1"])
    assert resumed.evaluations[-1].values == pytest.approx(last.values)
    assert vg.run(settings, metrics=lambda outputs, labels: 1).evaluations[-1].metrics["lambda"] == 1


def test_the_model_of_a_complete_run_with_a_frozen_part_and_a_loss_that_were_handed_over(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].bias.requires_grad_(False)
    settings, loss = vg.Experiment(rule="median", workers=3, byzantine=1, steps=2), functional.nll_loss
    own = lambda outputs, labels: loss(outputs.log_softmax(1), labels)  # noqa: E731
    first = vg.run(settings, tmp_path, model=model, loss=own).model()
    second = vg.run(settings, tmp_path, model=model, loss=own)
    assert second.from_disk
    assert torch.equal(second.model().get_parameter("1.weight"), first.get_parameter("1.weight"))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_and_its_replay_do_not_hang_on_the_mode_that_their_caller_is_in(mode: Any, tmp_path: Path) -> None:
    settings = vg.Experiment(rule="median", workers=3, byzantine=1, steps=2)
    with mode():
        folder = vg.run(settings, tmp_path).folder
        assert folder is not None
        assert vg.replay(folder, 1).agrees
