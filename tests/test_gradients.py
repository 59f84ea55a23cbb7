"""Worker gradients: batched == loop == torch's autograd, for every model, and the randomness of training mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oracles
from varangian.core import kernels, randomness
from varangian.simulation import models
from varangian.simulation.gradients import Batch, WorkerGradients

H, B, CLASSES, SHAPE = 3, 4, 5, (2, 8, 8)


def tiny_wide_resnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return models.wide_resnet(shape, classes, depth=10, width=1)


def normalised(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Batch normalisation without dropout, and of vectors."""
    features = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes))


def scaled(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A parameter without dimensions, tanh, no bias: nothing that the chain of linear layers knows."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5))
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.scale * self.body(x))

    return Scaled()


def deep(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A chain of three layers, one of them without bias."""
    features = int(np.prod(shape))
    return nn.Sequential(
        nn.Linear(features, 7), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, classes)
    )


def flat_deep(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *deep(shape, classes))  # type: ignore[misc]


def tiny_resnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return models.resnet_20(shape, classes, depth=8)


# The models of MODELS, at their own size where that is small, but for two that have nothing that others have not.
FACTORIES: dict[str, models.Factory] = {
    name: factory for name, factory in models.MODELS.items() if name not in ("cnn-small", "resnet-18")
} | {
    "wide-resnet": tiny_wide_resnet,
    "resnet-20": tiny_resnet,
    "normalised": normalised,
    "scaled": scaled,
    "deep": flat_deep,
}
by_model = pytest.mark.parametrize("name", FACTORIES)


def model_of(name: str, seed: int = 1) -> nn.Module:
    model = models.build(FACTORIES[name], SHAPE, CLASSES, seed).double()
    # Running statistics and affine parts away from 0 and 1, so that using the wrong ones shows.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                    assert tensor is not None
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model


def batch_of(seed: int = 2, h: int = H, weighted: bool = False, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(h, B, *SHAPE, generator=generator, dtype=dtype)
    labels = torch.randint(CLASSES, (h, B), generator=generator)
    if not weighted:
        return Batch(inputs, labels)
    weights = torch.full((h, B), 1 / B, dtype=dtype)
    weights[0] = torch.tensor([0.5, 0.5, 0.0, 0.0])  # a short batch, padded
    return Batch(inputs, labels, weights)


def rows(batch: Batch, which: list[int]) -> Batch:
    return Batch(batch.inputs[which], batch.labels[which], None if batch.weights is None else batch.weights[which])


def computed(gradients: WorkerGradients, point: Tensor, batch: Batch, step: int = 0) -> tuple[Tensor, Tensor]:
    out = torch.full((len(batch.labels), gradients.d), float("nan"), dtype=point.dtype)
    losses = gradients(point, batch, out, step)
    return out, losses


def by_autograd(name: str, point: Tensor, batch: Batch, i: int, training: bool) -> tuple[Tensor, Tensor, nn.Module]:
    """Gradient and loss of worker i by plain torch, and the model that it leaves."""
    model = model_of(name).train(training)
    nn.utils.vector_to_parameters(point.clone(), model.parameters())
    each = functional.cross_entropy(model(batch.inputs[i]), batch.labels[i], reduction="none")
    loss = each.mean() if batch.weights is None else (each * batch.weights[i]).sum()
    loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]), loss.detach(), model


@contextmanager
def threads(count: int) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


CONTEXTS: dict[str, Callable[[], Any]] = {"outside": nullcontext, "inside": kernels.exclusive_threads}
by_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())


def methods_of(name: str, training: bool) -> list[str]:
    """The methods that this model allows."""
    found = []
    for method in ("chain", "vmap", "loop"):
        try:
            WorkerGradients(model_of(name), training, method).look(batch_of())  # type: ignore[arg-type]
            found.append(method)
        except ValueError:
            pass
    return found


# ------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize(
    ("name", "evaluation", "training"),
    [
        ("linear", {"chain", "vmap", "loop"}, {"chain", "vmap", "loop"}),
        ("fully-connected", {"chain", "vmap", "loop"}, {"chain", "vmap", "loop"}),
        ("deep", {"chain", "vmap", "loop"}, {"chain", "vmap", "loop"}),
        ("scaled", {"vmap", "loop"}, {"vmap", "loop"}),
        ("cnn", {"vmap", "loop"}, {"loop"}),
        ("wide-resnet", {"vmap", "loop"}, {"loop"}),
        ("resnet-20", {"vmap", "loop"}, {"loop"}),
        ("normalised", {"vmap", "loop"}, {"loop"}),
    ],
)
def test_which_methods_there_are(name: str, evaluation: set[str], training: set[str]) -> None:
    assert set(methods_of(name, False)) == evaluation
    assert set(methods_of(name, True)) == training


@by_context
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("points", ["one", "each"])
@by_model
def test_every_method_is_autograd(name: str, points: str, weighted: bool, context: Callable[[], Any]) -> None:
    """In evaluation mode, where nothing is random: one point for all, or one each as Nesterov wants."""
    batch = batch_of(weighted=weighted)
    d = WorkerGradients(model_of(name), training=False).d
    shape = (d,) if points == "one" else (H, d)
    start = nn.utils.parameters_to_vector(model_of(name).parameters()).detach()
    point = start + 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = [by_autograd(name, point.expand(H, d)[i], batch, i, training=False) for i in range(H)]
    for method in methods_of(name, False):
        gradients = WorkerGradients(model_of(name), False, method)  # type: ignore[arg-type]
        kept = point.clone()
        with context():
            found, losses = computed(gradients, point, batch)
        for i in range(H):
            torch.testing.assert_close(found[i], expected[i][0], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(losses[i], expected[i][1], rtol=1e-9, atol=1e-12)
        assert torch.equal(point, kept)
        assert torch.equal(gradients.parameters(), start)  # the model itself is not moved
        for key, value in gradients.buffers().items():
            assert torch.equal(value, dict(model_of(name).named_buffers())[key])


@by_context
@by_model
def test_training_mode_is_autograd_with_the_same_dropout(name: str, context: Callable[[], Any]) -> None:
    """Each worker's dropout is torch's, seeded by (seed, step, worker)."""
    batch, step = batch_of(), 7
    gradients = WorkerGradients(model_of(name), training=True, seed=11)
    point = gradients.parameters()
    before = torch.get_rng_state()
    with context():
        found, losses = computed(gradients, point, batch, step)
    assert torch.equal(torch.get_rng_state(), before)  # the user's generator is left alone
    for i in range(H):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.integer(11, "dropout", step, i))
            gradient, loss, _ = by_autograd(name, point, batch, i, training=True)
        torch.testing.assert_close(found[i], gradient, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(losses[i], loss, rtol=1e-8, atol=1e-11)


def test_linear_softmax_against_its_closed_form() -> None:
    """No torch at all on the other side."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(H, B, 12)), generator.integers(0, 5, size=(H, B))
    gradients = WorkerGradients(nn.Sequential(nn.Linear(12, 5)).double())
    point = torch.from_numpy(generator.normal(size=65))
    found, _ = computed(gradients, point, Batch(torch.from_numpy(x), torch.from_numpy(y)))
    for i in range(H):
        np.testing.assert_allclose(
            found[i], oracles.softmax_gradient(point.numpy(), x[i], y[i]), rtol=1e-10, atol=1e-12
        )


@by_model
def test_float32_is_float64_rounded(name: str) -> None:
    gradients = WorkerGradients(model_of(name).float(), training=False)
    wide = WorkerGradients(model_of(name), training=False)
    narrow_batch = batch_of(dtype=torch.float32)
    batch = Batch(narrow_batch.inputs.double(), narrow_batch.labels)
    point = gradients.parameters()
    found, _ = computed(gradients, point, narrow_batch)
    expected, _ = computed(wide, point.double(), batch)
    assert found.dtype == torch.float32
    assert (found.double() - expected).norm() < 1e-4 * expected.norm()


@by_model
@pytest.mark.parametrize("training", [False, True])
def test_the_number_of_threads_changes_nothing(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.runtime, "SMALL", 0)  # share out however little there is
    full = batch_of()
    batch = Batch(full.inputs[:, :2], full.labels[:, :2])

    def numbers(count: int, context: Callable[[], Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        gradients = WorkerGradients(model_of(name), training, seed=4)
        with threads(count), context():
            found, losses = computed(gradients, gradients.parameters(), batch)
        return found, losses, gradients.buffers()

    one = numbers(1, nullcontext)
    for context in CONTEXTS.values():
        for value, other in zip(numbers(2, context), one, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------ dropout, normalisation


@by_model
def test_a_worker_does_not_see_the_others(name: str) -> None:
    """Worker 0 and 1 get what they get without worker 2, dropout included."""
    batch = batch_of()
    all_of_them = computed(WorkerGradients(model_of(name), seed=3), model_parameters(name), batch, step=5)
    two = computed(WorkerGradients(model_of(name), seed=3), model_parameters(name), rows(batch, [0, 1]), step=5)
    for value, other in zip(two, all_of_them, strict=True):
        torch.testing.assert_close(value, other[:2], rtol=1e-12, atol=1e-13)


def model_parameters(name: str) -> Tensor:
    return WorkerGradients(model_of(name)).parameters()


def test_dropout_is_a_function_of_seed_step_and_worker() -> None:
    batch = batch_of()
    same = Batch(batch.inputs[:1].expand(H, -1, -1, -1, -1), batch.labels[:1].expand(H, -1))
    first = computed(WorkerGradients(model_of("cnn"), seed=3), model_parameters("cnn"), same, step=5)[1]
    torch.manual_seed(99)  # irrelevant
    again = computed(WorkerGradients(model_of("cnn"), seed=3), model_parameters("cnn"), same, step=5)[1]
    assert torch.equal(first, again)
    assert first.unique().numel() == H  # the same batch, another mask for every worker
    for seed, step in ((4, 5), (3, 6)):
        other = computed(WorkerGradients(model_of("cnn"), seed=seed), model_parameters("cnn"), same, step=step)[1]
        assert not (first == other).any()
    off = computed(WorkerGradients(model_of("cnn"), training=False), model_parameters("cnn"), same, step=5)[1]
    torch.testing.assert_close(off, off[:1].expand(H))


@by_context
@pytest.mark.parametrize("name", ["normalised", "cnn", "wide-resnet", "resnet-20"])
def test_running_statistics_become_the_mean_over_the_workers(name: str, context: Callable[[], Any]) -> None:
    batch = batch_of()
    gradients = WorkerGradients(model_of(name), seed=3)
    point = gradients.parameters()
    left = []
    for i in range(H):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.integer(3, "dropout", 0, i))
            left.append(dict(by_autograd(name, point, batch, i, training=True)[2].named_buffers()))
    with context():
        computed(gradients, point, batch)
    for key, value in gradients.buffers().items():
        of_workers = torch.stack([buffers[key].double() for buffers in left])
        torch.testing.assert_close(value.double(), of_workers.mean(0), rtol=1e-9, atol=1e-12)
        if key.endswith("running_mean"):
            assert (of_workers.std(0) > 0).any()  # or the mean would prove nothing


def test_running_statistics_do_not_depend_on_the_order_of_workers() -> None:
    batch = batch_of()
    one, two = WorkerGradients(model_of("normalised")), WorkerGradients(model_of("normalised"))
    for _ in range(2):
        computed(one, one.parameters(), batch)
        computed(two, two.parameters(), rows(batch, [2, 0, 1]))
    for key, value in one.buffers().items():
        torch.testing.assert_close(two.buffers()[key], value, rtol=1e-12, atol=1e-13)


def test_a_failed_call_leaves_no_statistics_behind() -> None:
    gradients = WorkerGradients(model_of("normalised"))
    before = gradients.buffers()
    bad = batch_of()
    bad.labels[2] = CLASSES  # workers 0 and 1 succeed, worker 2 fails
    with pytest.raises((IndexError, RuntimeError)):
        computed(gradients, gradients.parameters(), bad)
    assert all(torch.equal(value, before[key]) for key, value in gradients.buffers().items())
    fresh = WorkerGradients(model_of("normalised"))
    for g in (gradients, fresh):
        computed(g, g.parameters(), rows(batch_of(), [0]))
    for key, value in fresh.buffers().items():
        assert torch.equal(gradients.buffers()[key], value), key


# ---------------------------------------------------------------------------------------- flat parameters


@by_model
def test_parameters_and_adopt_are_inverse(name: str) -> None:
    gradients = WorkerGradients(model_of(name))
    flat = gradients.parameters()
    assert flat.shape == (gradients.d,)
    assert torch.equal(flat, nn.utils.parameters_to_vector(gradients.model.parameters()).detach())
    flat.mul_(2)  # a copy
    assert not torch.equal(gradients.parameters(), flat)
    model = gradients.adopt(flat)
    assert model is gradients.model
    assert torch.equal(gradients.parameters(), flat)
    shifted = {key: value + 1 for key, value in gradients.buffers().items()}
    gradients.adopt(flat, shifted)
    assert all(torch.equal(value, shifted[key]) for key, value in gradients.buffers().items())


@by_context
@by_model
def test_evaluate_against_plain_torch(name: str, context: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation mode, at other parameters than the model's own, over chunks of unequal size, on two threads."""
    monkeypatch.setattr(kernels.runtime, "SMALL", 0)
    gradients = WorkerGradients(model_of(name), training=True)
    parameters = gradients.parameters() + 0.05
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(11, *SHAPE, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (11,), generator=generator)
    buffers, own = gradients.buffers(), gradients.parameters()
    with threads(2), context():
        accuracy, loss = gradients.evaluate(parameters, list(inputs.split(4)), list(labels.split(4)))
    plain = model_of(name).eval()
    nn.utils.vector_to_parameters(parameters, plain.parameters())
    logits = plain(inputs)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-9)
    assert gradients.model.training
    assert torch.equal(gradients.parameters(), own)
    assert all(torch.equal(value, buffers[key]) for key, value in gradients.buffers().items())


def test_points_of_a_batch_do_not_count_padding() -> None:
    assert batch_of().points(H) == H * B
    assert batch_of(weighted=True).points(H) == H * B - 2


@pytest.mark.parametrize(
    ("name", "training", "method", "message"),
    [
        ("cnn", False, "chain", "^method 'chain' needs linear layers with ReLU between them; use 'auto'.$"),
        ("cnn", True, "vmap", "^method 'vmap' cannot compute Sequential: its buffers change in forward; use 'auto'.$"),
        ("normalised", True, "vmap", "^method 'vmap' cannot compute Sequential: its buffers change in forward; "),
    ],
)
def test_a_method_that_cannot_do_it(name: str, training: bool, method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerGradients(model_of(name), training, method).look(batch_of())


def test_auto_chooses() -> None:
    chosen = {}
    for name in FACTORIES:
        gradients = WorkerGradients(model_of(name))
        gradients.look(batch_of())
        chosen[name] = gradients.method
    assert chosen == {
        "linear": "chain",
        "fully-connected": "chain",
        "deep": "chain",
        "scaled": "vmap",
        "cnn": "loop",
        "wide-resnet": "loop",
        "resnet-20": "loop",
        "normalised": "loop",
    }


def hidden() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


class Tied(nn.Module):
    """One matrix in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = hidden()
        self.layers[2].weight = self.layers[0].weight  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def tied() -> nn.Module:
    model = hidden()
    model[2].weight = model[0].weight  # type: ignore[assignment]
    return model


def one_layer_twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 3))


def frozen(*places: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = hidden()
        for place in places:
            model.get_parameter(place).requires_grad_(False)
        return model

    return make


@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
@pytest.mark.parametrize(
    "make",
    [Tied, tied, one_layer_twice, frozen("0.weight"), frozen("0.weight", "0.bias"), frozen("2.bias", "4.weight")],
)
def test_tied_and_frozen_parameters(make: Callable[[], nn.Module], method: Any) -> None:
    """Tied ones count once and get the sum of their gradients; frozen ones are no parameters to learn."""
    model = make().double()
    learned = [p for p in model.parameters() if p.requires_grad]
    kept = [p.clone() for p in model.parameters()]
    generator = torch.Generator().manual_seed(3)
    batch = Batch(
        torch.randn(3, 4, 6, dtype=torch.float64, generator=generator), torch.randint(3, (3, 4), generator=generator)
    )
    gradients = WorkerGradients(model, method=method)
    assert gradients.d == sum(p.numel() for p in learned)
    out = torch.empty(3, gradients.d, dtype=torch.float64)
    gradients(gradients.parameters(), batch, out)
    for i in range(3):
        loss = functional.cross_entropy(model(batch.inputs[i]), batch.labels[i])
        expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, learned)])
        torch.testing.assert_close(out[i], expected)
    moved = gradients.adopt(gradients.parameters() + 1)
    for p, former in zip(moved.parameters(), kept, strict=True):
        assert torch.equal(p, former + 1 if p.requires_grad else former)
    accuracy, loss = gradients.evaluate(gradients.parameters(), [batch.inputs[0]], [batch.labels[0]])
    expected = functional.cross_entropy(model(batch.inputs[0]), batch.labels[0]).item()
    assert loss == pytest.approx(expected, rel=1e-12)
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("make", [tied, one_layer_twice, frozen("0.weight")])
def test_chains_of_layers_that_are_tied_or_frozen_are_none(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="method 'chain' needs"):
        WorkerGradients(make(), method="chain")


def test_a_model_that_cannot_learn() -> None:
    with pytest.raises(
        ValueError, match=r"^Flatten has no parameters that require gradients: nothing can be learned\.$"
    ):
        WorkerGradients(nn.Flatten())


class Noisy(nn.Module):
    """Draws by itself, where no layer says so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(functional.dropout(x, 0.5, self.training))


@pytest.mark.parametrize("make", [Noisy, lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))])
def test_random_numbers_of_a_model_are_of_the_seed_and_move_nothing(make: Callable[[], nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make()
    batch = Batch(torch.ones(3, 4, 6), torch.zeros(3, 4, dtype=torch.int64))
    before, found = torch.get_rng_state(), []
    for seed in (5, 5, 6):
        gradients = WorkerGradients(model, seed=seed)
        out = torch.empty(3, gradients.d)
        gradients(gradients.parameters(), batch, out, 2)
        found.append(out)
        assert gradients.method == "loop"
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][0], found[0][1])  # each worker draws its own
    assert torch.equal(before, torch.get_rng_state())


def test_the_loop_is_the_only_method_for_random_numbers() -> None:
    batch = Batch(torch.ones(1, 4, 6), torch.zeros(1, 4, dtype=torch.int64))
    gradients = WorkerGradients(Noisy(), method="vmap")
    with pytest.raises(
        ValueError, match=r"^method 'vmap' cannot compute Noisy: it draws random numbers; use 'auto'\.$"
    ):
        gradients(gradients.parameters(), batch, torch.empty(1, gradients.d))
