"""Gradients on a pretended card: each way answers what the loop does on the CPU, with few launches and no wait."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch._dynamo  # which torch imports where a module is made, and which looks at what is pretended
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import test_gradients as on_cpu
import test_modules as modules
import varangian as vg
from pretended import CARD, CardTensor, PretendedCard
from varangian.core import kernels
from varangian.simulation import models
from varangian.simulation.gradients import Batch, WorkerGradients, graphs, workers
from varangian.simulation.losses import CrossEntropy, SquaredError

H, SEED = 4, 5
Case = tuple[Any, Tensor, Tensor]  # a model, inputs [H, b, ...], labels [H, b, ...]


@pytest.fixture
def card() -> Iterator[PretendedCard]:
    workers._told.clear()
    with PretendedCard() as entered:
        yield entered


def of_module(name: str) -> Case:
    inputs = modules.inputs_of(name)
    inputs = torch.cat([inputs, inputs[:1].flip(1)])
    return modules.made(name), inputs, torch.cat([modules.LABELS, modules.LABELS[:1]])


def of_model(name: str) -> Case:
    draw = torch.Generator().manual_seed(2)
    shape, size = ((1, 16, 16), 2) if name in ("cnn-small", "resnet-18") else (on_cpu.SHAPE, 4)
    model = on_cpu.model_of(name) if name in on_cpu.FACTORIES else models.build(name, shape, on_cpu.CLASSES, 1).double()
    inputs = torch.randn(H, size, *shape, generator=draw, dtype=torch.float64)
    return model, inputs, torch.randint(on_cpu.CLASSES, (H, size), generator=draw)


CASES: dict[str, Callable[[], Case]] = {
    **{name: lambda name=name: of_model(name) for name in (*on_cpu.FACTORIES, "cnn-small")},
    **{f"module: {name}": lambda name=name: of_module(name) for name in modules.MODULES},
}
# What a graph would not do again, and why.
READS = {
    "module: batch norm, cumulative": "it reads numbers on the host",
    "module: control flow": "it reads numbers on the host",
    "module: noise": "it draws random numbers on the host",
}


def there(x: Tensor | None) -> Any:
    return None if x is None else x.to(CARD)


def on_card(batch: Batch) -> Batch:
    return Batch(there(batch.inputs), there(batch.labels), there(batch.weights), batch.sizes)


def held(x: Any) -> Tensor:
    return x.held


def on_cpu_alone(model: nn.Module, **options: Any) -> WorkerGradients:
    """The plain loop."""
    kinds = {type(module) for module in model.modules()}
    # Masks are drawn in the order of memory: to be the card's on the CPU, too, images have to lie alike.
    layout = "channels-last" if {nn.Conv2d, nn.Dropout} <= kinds else "contiguous"
    return WorkerGradients(model, method="loop", seed=SEED, layout=layout, **options)


def twin_there(model: nn.Module, method: Any = "auto", **options: Any) -> WorkerGradients:
    """Of a model alike on the card."""
    return WorkerGradients(copy.deepcopy(model).to(CARD), method=method, seed=SEED, **options)


def pair(model: nn.Module, method: Any = "auto", **options: Any) -> tuple[WorkerGradients, WorkerGradients]:
    found = twin_there(model, method, **options)
    return on_cpu_alone(model, **options), found


class Answer(NamedTuple):
    """One call of the plain loop on the CPU, and what came of it."""

    point: Tensor
    batch: Batch
    step: int
    gradients: Tensor
    losses: Tensor
    buffers: dict[str, Tensor]


def answered(plain: WorkerGradients, point: Tensor, batch: Batch, step: int) -> Answer:
    out = torch.full((len(batch.labels), plain.d), float("nan"), dtype=point.dtype)
    losses = plain(point, batch, out, step)
    return Answer(point, batch, step, out, losses, plain.buffers())


def like(found: WorkerGradients, answer: Answer, *, out: Any = None, rtol: float = 1e-9) -> None:
    """The same call on the card: the same gradients, losses and buffers."""
    out = there(torch.full_like(answer.gradients, float("nan"))) if out is None else out
    losses = found(there(answer.point), on_card(answer.batch), out, answer.step)
    torch.testing.assert_close(held(out), answer.gradients, rtol=rtol, atol=1e-11)
    torch.testing.assert_close(held(losses), answer.losses, rtol=rtol, atol=1e-11)
    for (name, b), other in zip(answer.buffers.items(), found.model.buffers(), strict=True):
        torch.testing.assert_close(held(other), b, rtol=rtol, atol=1e-11, msg=name)


def agree(
    plain: WorkerGradients, found: WorkerGradients, point: Tensor, batch: Batch, step: int, *, out: Any = None,
) -> None:  # fmt: skip
    """One call of each."""
    like(found, answered(plain, point, batch, step), out=out)


def moved(x: Tensor, step: int) -> Tensor:
    return x if not x.is_floating_point() else x * (1 + 0.1 * step) + 0.01 * step


# What cannot be held to the CPU there: nested tensors, which the pretended card has none of; numbers of two devices.
OTHERS = ("module: transformer, padding", "module: noise")


# torch without CUDA says that it has no cuDNN for an LSTM, that nested tensors are young, and where vmap is slow.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHERS])
def test_each_way_answers_what_the_loop_does_on_the_cpu(name: str, card: PretendedCard) -> None:
    """Shared points and own ones, another step each time, buffers that go on, and evaluation between."""
    model, inputs, labels = CASES[name]()
    plain = on_cpu_alone(copy.deepcopy(model))
    there_too = {"auto": twin_there(model), "loop": twin_there(model, "loop")}
    start, users = plain.parameters(), torch.cuda.get_rng_state(CARD)
    chunks = ([inputs[0], inputs[1][:2]], [labels[0], labels[1][:2]])
    there_too["auto"].look(on_card(Batch(inputs, labels)))
    if name not in READS and there_too["auto"].method != "graph":  # which it is already, else
        there_too["graph"] = twin_there(model, "graph")
    for step, own in enumerate((False, False, True, False)):
        point = start + 0.01 * step
        if own:
            point = torch.stack([point * (1 + 0.02 * i) for i in range(H)])
        answer = answered(plain, point, Batch(moved(inputs, step), labels), step)
        for found in there_too.values():
            like(found, answer)
        if step == 1:
            values = plain.evaluate(point, *chunks)
            for found in there_too.values():
                given = ([there(x) for x in part] for part in chunks)
                assert found.evaluate(there(point), *given) == pytest.approx(values, rel=1e-9)
    assert all(method in ("auto", found.method) for method, found in there_too.items())
    assert torch.equal(torch.cuda.get_rng_state(CARD), users)


@pytest.mark.parametrize("name", [*READS, "module: noise"])
def test_what_cannot_be_a_graph_is_looped_and_that_is_said_once(
    name: str, card: PretendedCard, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs, labels = CASES[name]()
    for _ in range(2):
        found = pair(copy.deepcopy(model))[1]
        found.look(on_card(Batch(inputs, labels)))
        assert found.method == "loop"
    (line,) = [record.getMessage() for record in caplog.records if "CUDA graph" in record.getMessage()]
    assert READS.get(name, "it draws random numbers on the host") in line
    with pytest.raises(ValueError, match=r"method 'graph' cannot compute .*use 'auto'"):
        pair(copy.deepcopy(model), "graph")[1].look(on_card(Batch(inputs, labels)))


def test_a_graph_needs_a_card() -> None:
    with pytest.raises(ValueError, match="method 'graph' needs a model on a card, and this one is on cpu; use 'auto'"):
        WorkerGradients(nn.Linear(3, 2), method="graph")


# ------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["linear", "fully-connected", "deep"])
def test_a_chain_takes_few_launches_and_no_wait_on_a_host_of_many_cores(
    name: str, own: bool, card: PretendedCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.runtime, "SMALL", 0)
    monkeypatch.setattr(kernels, "own_threads", lambda: 16)
    model, inputs, labels = of_model(name)
    plain, found = pair(model)
    point = plain.parameters()
    point = torch.stack([point * (1 + 0.1 * i) for i in range(H)]) if own else point
    agree(plain, found, point, Batch(inputs, labels), 0)
    given, out = (there(point), on_card(Batch(inputs, labels))), torch.empty(H, plain.d, dtype=point.dtype, device=CARD)
    card.reset()
    found(*given, out, 1)
    assert found.method == "chain"
    assert card.waits.total() == 0
    assert card.launches.total() <= 30, card.launches
    assert not any("scatter" in what or "index_add" in what for what, _ in card.launches)


@pytest.mark.parametrize("name", ["cnn", "wide-resnet", "normalised"])
def test_a_graph_is_one_replay_a_step_and_no_wait(name: str, card: PretendedCard) -> None:
    model, inputs, labels = of_model(name)
    found = pair(model)[1]
    given = there(held(found.parameters())), on_card(Batch(inputs, labels))
    out = torch.empty(H, found.d, dtype=torch.float64, device=CARD)
    found(*given, out, 0)
    for step in (1, 2):
        card.reset()
        found(*given, out, step)
        assert (found.method, card.replays, card.waits.total(), card.late.total()) == ("graph", 1, 0, 0)
        assert card.launches.total() <= 25, card.launches
        assert (card.to_card, card.to_host) == (0, 0)


@pytest.mark.parametrize("name", ["fully-connected", "cnn"])
def test_evaluation_waits_once_metrics_included(name: str, card: PretendedCard) -> None:
    model, inputs, labels = of_model(name)
    plain, found = pair(model)
    point = plain.parameters()
    asked = [vg.simulation.scores.balanced_accuracy, vg.simulation.scores.macro_f1]
    for metrics in ([], asked):
        expected = plain.evaluate(point, list(inputs), list(labels), metrics)
        given = there(point), [there(x) for x in inputs], [there(y) for y in labels], metrics
        found.evaluate(*given)
        card.reset()
        assert found.evaluate(*given) == pytest.approx(expected, rel=1e-9)
        assert card.waits.total() == 1, card.waits


# --------------------------------------------------------------------------------------------------------- layouts


class Convolutions(TorchDispatchMode):
    """Whether channels were last in all that convolutions of the card were given, forth and back."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func._schema.name:
            given = [x for x in args[:3] if isinstance(x, CardTensor) and x.ndim == 4]
            last = (x.is_contiguous(memory_format=torch.channels_last) and x.stride(1) == 1 for x in given)
            self.last += [all(last)] if given else []
        return func(*args, **(kwargs or {}))


def thin_resnet_18(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """With an eighth of the channels; one of usual width runs on a card in test_card_runs.py."""
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    for fan_in, fan_out, stride in ((8, 8, 1), (8, 16, 2), (16, 32, 2), (32, 64, 2)):
        layers.append(models.BasicBlock(fan_in, fan_out, stride, "batch", projects=True))
        layers.append(models.BasicBlock(fan_out, fan_out, 1, "batch", projects=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def without_masks(name: str, shape: tuple[int, int, int] = (3, 16, 16)) -> Case:
    factory = thin_resnet_18 if name == "resnet-18" else name
    model = models.build(factory, shape, on_cpu.CLASSES, 1) if name != "wide-resnet" else on_cpu.model_of(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    draw = torch.Generator().manual_seed(2)
    shape = on_cpu.SHAPE if name == "wide-resnet" else shape
    inputs = torch.randn(H, 3, *shape, generator=draw, dtype=torch.float64)
    return model.double(), inputs, torch.randint(on_cpu.CLASSES, (H, 3), generator=draw)


@pytest.mark.parametrize("method", ["loop", "graph"])
def test_all_that_convolutions_and_batch_norms_are_given_is_aligned(method: str, card: PretendedCard) -> None:
    """Pieces of vectors lie anywhere: here parameters, buffers, images and points of odd sizes."""
    torch.manual_seed(4)
    model = nn.Sequential(
        *(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 1), nn.BatchNorm2d(7), nn.ReLU()),
        *(nn.Conv2d(7, 3, 3, padding=1), nn.Flatten(), nn.Linear(75, on_cpu.CLASSES)),
    )  # fmt: skip
    inputs = torch.randn(H, 3, 3, 7, 7, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(H, 3, dtype=torch.int64)
    plain, found = WorkerGradients(model, method="loop"), WorkerGradients(copy.deepcopy(model).to(CARD), method=method)  # pyright: ignore
    assert plain.d % 4, plain.d
    start = plain.parameters()
    for step, point in enumerate((start, torch.stack([start * (1 + 0.02 * i) for i in range(H)]))):
        out, expected = there(torch.empty(H, plain.d)), torch.empty(H, plain.d)
        plain(point, Batch(inputs, labels), expected, step)
        found(there(point), on_card(Batch(inputs, labels)), out, step)
        torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)
    assert (found.layout, found.method) == ("channels-last", method)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "cnn of one channel", "cnn-small", "resnet-18", "resnet-20", "wide-resnet"])
def test_channels_are_last_on_a_card_and_the_numbers_are_those_of_the_cpu(name: str, card: PretendedCard) -> None:
    one = "one channel" in name or name == "cnn-small"
    model, inputs, labels = without_masks(name.split(" ")[0], (1, 16, 16) if one else (3, 16, 16))
    plain = WorkerGradients(model, method="loop")
    looped, replayed = (WorkerGradients(copy.deepcopy(model).to(CARD), method=m) for m in ("loop", "graph"))  # pyright: ignore
    start = plain.parameters()
    for found in (looped, replayed):
        found.look(on_card(Batch(inputs, labels)))
        assert (plain.layout, found.layout) == ("auto", "channels-last")
    for step, own in enumerate((False, True, False)):
        point = start + 0.01 * step
        point = torch.stack([point * (1 + 0.02 * i) for i in range(H)]) if own else point
        answer = answered(plain, point, Batch(inputs, labels), step)
        for found in (looped, replayed):
            with Convolutions() as seen:
                like(found, answer)
            assert all(seen.last)
            assert seen.last or found is replayed  # which nobody sees when it is replayed
    values = plain.evaluate(start, list(inputs), list(labels))
    for found in (looped, replayed):
        with Convolutions() as seen:
            there_too = found.evaluate(there(start), [there(x) for x in inputs], [there(y) for y in labels])
        assert seen.last
        assert all(seen.last)
        assert there_too == pytest.approx(values, rel=1e-9)
    assert plain.layout == "contiguous"


def test_weights_are_turned_round_once_a_step_and_gradients_once_a_worker(card: PretendedCard) -> None:
    model, inputs, labels = without_masks("cnn")
    given, asked = on_card(Batch(inputs, labels)), {}
    for layout in ("contiguous", "channels-last"):
        found = WorkerGradients(copy.deepcopy(model).to(CARD), method="loop", layout=layout)  # pyright: ignore
        point, out = found.parameters(), torch.empty(H, found.d, dtype=torch.float64, device=CARD)
        found(point, given, out, 0)
        card.reset()
        found(point, given, out, 1)
        assert card.waits.total() == 0
        asked[layout] = card.launches.total()
    convolutions, flatten = 4, 1
    assert asked["channels-last"] <= asked["contiguous"] + convolutions + 1 + H * (convolutions + flatten)


class Pictures(nn.Module):
    """A convolution and a line on what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.flat(self.second(self.first(x).relu())))

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Viewed(Pictures):
    def flat(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


class ViewedLater(Pictures):
    def flat(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1) if len(x) == 5 else x.flatten(1)


class ViewedInEvaluation(Pictures):
    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.training else x.view(len(x), -1)


class InMemory(Pictures):
    """Right for one layout alone."""

    def flat(self, x: Tensor) -> Tensor:
        return x.as_strided((len(x), 12), (12, 1))


def pictures(size: int = 6) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randn(H, size, 2, 4, 4, generator=draw, dtype=torch.float64)
    return inputs, torch.randint(4, (H, size), generator=draw)


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("kind", [Pictures, Viewed, ViewedLater, ViewedInEvaluation, InMemory])
def test_a_model_that_needs_its_images_as_they_are_has_them_so_and_that_is_said(
    kind: type[Pictures], method: Any, card: PretendedCard, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(4)
    plain, found = pair(kind().double(), method)
    for step, size in enumerate((6, 5, 6, 5)):
        agree(plain, found, plain.parameters() * (1 + 0.1 * step), Batch(*pictures(size)), step)
    inputs, labels = pictures()
    values = plain.evaluate(plain.parameters(), list(inputs), list(labels))
    given = [there(x) for x in inputs], [there(y) for y in labels]
    assert found.evaluate(there(plain.parameters()), *given) == pytest.approx(values, rel=1e-9)
    agree(plain, found, plain.parameters(), Batch(*pictures()), 9)
    assert found.method == ("graph" if method == "auto" else "loop")
    said = [record.getMessage() for record in caplog.records if "channels last" in record.getMessage()]
    if kind is Pictures:
        assert (found.layout, said) == ("channels-last", [])
    else:
        reason = "its numbers come out otherwise" if kind is InMemory else "view size is not compatible"
        assert found.layout == "contiguous"
        assert len(said) == 1
        assert reason in said[0]
    if kind in (Viewed, InMemory):
        with pytest.raises(ValueError, match=f"layout 'channels-last' cannot serve {kind.__name__}: .*use 'auto'"):
            WorkerGradients(kind().double().to(CARD), layout="channels-last").look(on_card(Batch(inputs, labels)))


class Broken(Pictures):
    """Cannot compute batches of five, whatever their layout."""

    def flat(self, x: Tensor) -> Tensor:
        if len(x) == 5:
            raise RuntimeError("five is too many")
        return x.flatten(1)


def computed(found: WorkerGradients, sizes: tuple[int, ...]) -> None:
    for step, size in enumerate(sizes):
        out = torch.empty(H, found.d, dtype=torch.float64, device=CARD)
        found(found.parameters(), on_card(Batch(*pictures(size))), out, step)


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_an_error_of_the_model_itself_is_raised_as_it_is(method: Any, card: PretendedCard) -> None:
    for sizes in ((5,), (6, 5)):
        found = pair(Broken().double(), method)[1]
        with pytest.raises(RuntimeError, match="five is too many") as raised:
            computed(found, sizes)
        assert raised.traceback[-1].name == "flat"
        assert raised.value.__cause__ is None


# ------------------------------------------------------------------------------------ what comes between two calls


def test_graphs_follow_what_changes_between_calls(card: PretendedCard) -> None:
    """Other batch sizes, other memory for the answer, adopt(), evaluation mode, a frozen parameter moved elsewhere."""
    model, inputs, labels = of_module("both")
    model[-1].bias.requires_grad_(False)
    plain, found = pair(model)
    point, step = plain.parameters(), 0

    def both(batch: Batch, out: Any = None) -> None:
        nonlocal step
        agree(plain, found, point + 0.01 * step, batch, step, out=out)
        step += 1

    same = torch.empty(H, plain.d, dtype=torch.float64, device=CARD)
    for rows in (6, 3, 6, 4, 2, 5, 3):  # more shapes than are kept
        both(Batch(inputs[:, :rows], labels[:, :rows]), same)
        assert len(found._graphs) <= workers.KEPT
    for _ in range(3):
        both(Batch(inputs, labels))  # into new memory each time
    assert len(found._graphs) <= workers.KEPT
    shifted = {name: b + 1 for name, b in plain.buffers().items()}
    plain.adopt(point * 2, shifted)
    found.adopt(there(point * 2), {name: there(b) for name, b in shifted.items()})
    both(Batch(inputs, labels), same)
    for training in (False, True):
        plain.model.train(training)
        found.model.train(training)
        both(Batch(inputs, labels), same)
    for moving in (plain.model, found.model):
        bias = list(moving.parameters())[-1]
        assert not bias.requires_grad
        bias.data = bias.data + 1
    both(Batch(inputs, labels), same)
    assert found.method == "graph"


def test_two_on_one_model_and_rows_of_a_loop_of_ones_own(card: PretendedCard) -> None:
    model, inputs, labels = of_module("both")
    one, other = (WorkerGradients(made, seed=SEED) for made in [copy.deepcopy(model).to(CARD)] * 2)
    plain = WorkerGradients(model, method="loop", seed=SEED)
    for step in range(4):
        agree(plain, (one, other)[step % 2], plain.parameters(), Batch(moved(inputs, step), labels), step)
    kept, one = [], WorkerGradients(one.model, seed=SEED)
    for step in range(3):
        rows, losses = one.rows(there(moved(inputs, step)), there(labels), step)
        expected = plain.rows(moved(inputs, step), labels, step)
        kept.append((rows, losses, *expected))
    assert len(one._graphs) == 1
    for rows, losses, expected_rows, expected_losses in kept:  # an answer stays what it was
        torch.testing.assert_close(held(rows), expected_rows, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(held(losses), expected_losses, rtol=1e-9, atol=1e-11)


class Scaled(nn.Module):
    """One buffer counts in the gradient, and another one of its type is written to thereafter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)
        self.register_buffer("scale", torch.tensor(0.1, dtype=torch.float64))
        self.register_buffer("largest", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) * self.scale
        with torch.no_grad():
            self.largest.copy_(torch.maximum(self.largest, y.max()))
        return y


@pytest.mark.parametrize("method", ["loop", "graph"])
def test_buffers_that_lie_side_by_side_are_written_apart(method: str, card: PretendedCard) -> None:
    plain, found = pair(Scaled().double(), method)
    scale = plain.buffers()["scale"]
    for step in range(2):
        agree(plain, found, plain.parameters() * (1 + step), Batch(modules.inputs_of("frozen"), modules.LABELS), step)
        assert torch.equal(held(found.buffers()["scale"]), scale)  # rounding a mean moves nothing that nobody moved


@pytest.mark.parametrize(
    "loss", [None, SquaredError(), CrossEntropy(0.1), lambda o, y: functional.mse_loss(o[:, 0], y)]
)
def test_padded_batches_and_losses(loss: Any, card: PretendedCard) -> None:
    """With weights of padded batches and without, in turn."""
    numbers = isinstance(loss, SquaredError) or callable(loss)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 1 if numbers else 4)).double()
    inputs = modules.inputs_of("frozen")
    labels = inputs.sum(-1) if numbers else modules.LABELS
    weights = torch.full((3, 6), 1 / 6, dtype=torch.float64)
    weights[1] = torch.tensor([0.5, 0.5, 0, 0, 0, 0])
    plain, found = pair(model, loss=loss)
    for step, given in enumerate((None, weights, None, weights)):
        sizes = None if given is None else np.array([6, 2, 6])
        agree(plain, found, plain.parameters(), Batch(inputs, labels, given, sizes), step)
    assert found.method == "graph"
    batch, out = (
        on_card(Batch(inputs, labels, weights, np.array([6, 2, 6]))),
        torch.empty(3, found.d, dtype=torch.float64),
    )
    point, out = there(plain.parameters()), there(out)
    card.reset()
    found(point, batch, out, 5)
    assert card.waits.total() == 0


def test_a_loss_over_places_of_sequences(card: PretendedCard) -> None:
    tokens = torch.randint(8, (3, 6, 7), generator=torch.Generator().manual_seed(1))
    labels = torch.where(tokens == 0, -100, tokens % 4)
    model = nn.Sequential(nn.Embedding(8, 5), nn.Dropout(0.2), nn.Linear(5, 4)).double()
    plain, found = pair(model)
    for step in range(3):
        agree(plain, found, plain.parameters() * (1 + step), Batch(tokens, labels), step)
    assert found.method == "graph"
    values = plain.evaluate(plain.parameters(), list(tokens), list(labels))
    given = [there(x) for x in tokens], [there(y) for y in labels]
    assert found.evaluate(there(plain.parameters()), *given) == pytest.approx(values, rel=1e-9)


# ------------------------------------------------------------------------------------------- the pretended graphs


def captured(card: PretendedCard, work: Callable[[], object]) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        work()
    return graph


def test_a_pretended_graph_does_what_one_does(card: PretendedCard) -> None:
    x, y, factor = torch.ones(3, device=CARD), torch.zeros(3, device=CARD), 2.0
    graph = captured(card, lambda x=x: y.copy_(x * factor))
    assert held(y).tolist() == [0, 0, 0]  # nothing was computed
    x.fill_(5)
    factor = 3.0  # too late: the host's number is baked in
    graph.replay()
    assert held(y).tolist() == [10, 10, 10]
    del x
    with pytest.raises(RuntimeError, match="illegal memory access"):
        graph.replay()


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda x: float(x.sum()), "not permitted when stream is capturing"),
        (lambda x: x.cpu(), "not permitted when stream is capturing"),
        (lambda x: torch.cuda.synchronize(), "not permitted when stream is capturing"),
        (lambda x: torch.rand(3, device=CARD, generator=torch.Generator(CARD)), "not in capture mode"),
        (lambda x: torch.Generator(CARD).manual_seed(1), "not permitted when stream is capturing"),
        (lambda x: astray(x), "no part of the capture"),
        (lambda x: unjoined(x), "unjoined work"),
        (lambda x: racing(x), "a race"),
    ],
)
def test_a_pretended_capture_refuses_what_one_refuses(
    work: Callable[[Tensor], object], message: str, card: PretendedCard
) -> None:
    x = torch.ones(3, device=CARD)
    with pytest.raises(RuntimeError, match=message):
        first_error_of(lambda: captured(card, lambda: work(x)))


def first_error_of(call: Callable[[], object]) -> None:
    """Raises what went wrong, and not what the end of the capture says of it."""
    try:
        call()
    except RuntimeError as error:
        raise error if error.__context__ is None else error.__context__ from None


def astray(x: Tensor) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        x.add_(1)


def unjoined(x: Tensor) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x.add_(1)


def racing(x: Tensor) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x.add_(1)
    x.add_(1)


def test_a_capture_that_fails_leaves_the_stream_and_the_loop_goes_on(
    card: PretendedCard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody saw before the capture."""
    monkeypatch.setattr(graphs, "_WAITING", set())
    model, inputs, labels = of_module("control flow")
    plain, found = pair(model)
    here = torch.cuda.current_stream()
    for step in range(2):
        agree(plain, found, plain.parameters(), Batch(inputs, labels), step)
    assert found.method == "loop"
    assert torch.cuda.current_stream() is here
    assert "cannot be a CUDA graph: " in caplog.text


@pytest.mark.parametrize(("free", "streams"), [(2**40, 5), (0, 1), (3.5, 3)])
def test_as_many_workers_go_side_by_side_as_half_of_the_memory_holds(
    free: float, streams: int, card: PretendedCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Dropout(0.5), nn.Linear(128, 4)).to(CARD)
    found = WorkerGradients(model, method="graph")
    inputs, labels = torch.randn(7, 3, 1, 8, 8), torch.zeros(7, 3, dtype=torch.int64)
    found.look(on_card(Batch(inputs, labels)))
    forward = 4 * 3 * (3 * 128 + 4)  # the layer, a mask, what it leaves, the outputs, and no view
    assert 0.8 * forward < 3 * found._forward < 2 * forward
    each = 2 * 3 * found._forward + 2 * 4 * found.d
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(2 * each * free) if free < 9 else free, 2**41))
    assert found._side_by_side(on_card(Batch(inputs, labels)), there(torch.empty(7, found.d))) == streams
