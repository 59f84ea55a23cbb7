"""The models: parameter counts of the paper, what they compute, how they are built."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from varangian.core import specs
from varangian.simulation import models


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("fully-connected", (1, 28, 28), 10, 79_510),
        ("linear", (1, 28, 28), 10, 7_850),
        ("cnn", (3, 32, 32), 10, 1_310_922),
        # The hidden layer is 256 wide: 8,193 x 128 more into it, and 257 x 100 instead of 129 x 10 out of it.
        ("cnn", (3, 32, 32), 100, 1_310_922 + 8_193 * 128 + 257 * 100 - 129 * 10),
        # Two input channels fewer, in 64 filters of 3 x 3.
        ("cnn(pad=2)", (1, 28, 28), 10, 1_310_922 - 2 * 9 * 64),
        ("cnn-small", (1, 28, 28), 10, 431_080),
        ("resnet-18", (3, 32, 32), 10, 11_173_962),
        ("resnet-18", (3, 32, 32), 100, 11_220_132),
        ("resnet-20", (3, 32, 32), 10, 269_722),
        ("wide-resnet", (3, 32, 32), 10, 36_489_290),
        ("wide-resnet", (3, 32, 32), 100, 36_489_290 + 641 * 90),
    ],
)
def test_parameter_counts_of_the_paper(name, shape, classes, parameters):
    with torch.device("meta"):
        assert count(specs.make("model", name, models.MODELS, shape=shape, classes=classes)) == parameters


def test_a_padded_cnn_is_the_cnn_on_a_padded_image() -> None:
    padded, plain = (
        models.build(lambda *a, p=p: models.cnn(*a, pad=p), s, 10, 3) for p, s in ((2, (1, 8, 8)), (0, (1, 12, 12)))
    )
    assert [type(layer) for layer in list(padded.children())[1:]] == [type(layer) for layer in plain.children()]
    x = torch.rand(5, 1, 8, 8)
    padded.eval(), plain.eval()
    assert torch.equal(padded(x), plain(nn.functional.pad(x, (2, 2, 2, 2))))


def test_the_large_stem_of_resnet_18_is_that_of_imagenet() -> None:
    with torch.device("meta"):
        assert count(models.resnet_18((3, 224, 224), 1000, stem="large")) == 11_689_512
        assert models.resnet_18((3, 224, 224), 1000, stem="large")(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_resnets_with_either_norm_have_as_many_parameters(depth: int) -> None:
    """Per block of 2 convolutions with 2 norms: 18 c^2 + 4c, less where the channels double; n = (depth - 2) / 6."""
    n = (depth - 2) // 6
    expected = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for fan_in, c in ((16, 16), (16, 32), (32, 64)):
        expected += 9 * fan_in * c + 9 * c * c + 4 * c + (n - 1) * (18 * c * c + 4 * c)
    for norm in ("batch", "group"):
        model = models.resnet_20((3, 32, 32), 10, norm, depth)
        assert count(model) == expected
        assert bool(dict(model.named_buffers())) == (norm == "batch")


def test_the_shortcut_of_resnet_20_takes_every_other_pixel_and_adds_channels_of_zero() -> None:
    block = models.BasicBlock(2, 4, 2, "group", projects=False)
    for p in block.parameters():
        nn.init.zeros_(p)
    x = torch.rand(1, 2, 6, 6)
    assert torch.equal(block(x), torch.cat([x[:, :, ::2, ::2], torch.zeros(1, 2, 3, 3)], dim=1))


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("cnn-small", (1, 8, 8), {}, "^cnn-small needs images of at least 16 x 16 pixels, got 8 x 8.$"),
        (
            "resnet-20",
            (3, 32, 32),
            {"depth": 21},
            r"^resnet-20: depth must be 6n \+ 2 \(8, 14, 20, 32, ...\), got 21.$",
        ),
        ("resnet-20", (3, 32, 32), {"norm": "layer"}, "^resnet-20: norm must be batch or group, got 'layer'.$"),
        ("resnet-18", (3, 32, 32), {"stem": "7x7"}, "^resnet-18: stem must be small or large, got '7x7'.$"),
        ("resnet-18", (7,), {}, r"^resnet-18 needs images \[C, H, W\], got examples of shape \[7\].$"),
    ],
)
def test_networks_say_what_they_need(name, shape, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        models.MODELS[name](shape, 10, **options)


def small_wide_resnet(shape, classes):
    return models.wide_resnet(shape, classes, depth=10, width=1)


SMALL = [models.linear, models.fully_connected, models.cnn, small_wide_resnet]


@pytest.mark.parametrize("factory", SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 5, 7)])
def test_logits_of_any_shape(factory, shape):
    model = models.build(factory, shape, 7, seed=1)
    assert model(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("factory", SMALL)
def test_vmap_agrees_with_a_loop(factory):
    """In evaluation mode, so that batch norm and dropout are the same function in both."""
    model = models.build(factory, (1, 8, 8), 4, seed=1).eval()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    x, y = torch.randn(3, 5, 1, 8, 8), torch.randint(4, (3, 5))

    def loss(parameters, x, y):
        return nn.functional.cross_entropy(functional_call(model, (parameters, buffers), (x,)), y)

    batched = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for worker in range(3):
        one = torch.autograd.grad(loss(parameters, x[worker], y[worker]), list(parameters.values()))
        for ours, expected in zip(batched.values(), one, strict=True):
            torch.testing.assert_close(ours[worker], expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_done_in_place():
    for factory in SMALL:
        modules = factory((1, 8, 8), 10).modules()
        assert not any(getattr(module, "inplace", False) for module in modules)


def test_fully_connected_is_a_plain_chain():
    model = models.fully_connected((1, 28, 28), 10)
    assert [type(layer) for layer in model.children()] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


def test_cnn_layers_are_in_the_order_of_the_paper():
    letters = {nn.Conv2d: "C", nn.ReLU: "R", nn.BatchNorm2d: "B", nn.MaxPool2d: "M", nn.Dropout: "D", nn.Linear: "L"}
    layers = list(models.cnn((3, 32, 32), 10).children())
    assert "".join(letters.get(type(layer), "") for layer in layers) == "CRBCRBMDCRBCRBMDLRDL"
    assert {layer.p for layer in layers if isinstance(layer, nn.Dropout)} == {0.25}


def test_residual_block_against_its_formula():
    torch.manual_seed(1)
    for block in (models.ResidualBlock(4, 4, 1, 0.3), models.ResidualBlock(4, 6, 2, 0.3)):
        block.eval()
        x = torch.randn(2, 4, 6, 6)
        first, second = (layer for layer in block.residual.children() if isinstance(layer, nn.Conv2d))
        middle = next(layer for layer in block.residual.children() if isinstance(layer, nn.BatchNorm2d))
        activated = next(block.activate.children())(x).clamp(min=0)
        shortcut = x if block.shortcut is None else block.shortcut(activated)
        torch.testing.assert_close(block(x), shortcut + second(middle(first(activated)).clamp(min=0)))


def test_cross_entropy_of_logits_is_the_papers_loss():
    logits, labels = torch.randn(6, 10), torch.randint(10, (6,))
    papers = nn.functional.nll_loss(nn.LogSoftmax(dim=1)(logits), labels)
    torch.testing.assert_close(nn.functional.cross_entropy(logits, labels), papers)


def test_build_depends_on_the_seed_alone_and_leaves_torch_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = models.build("cnn", (1, 8, 8), 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    same, other = models.build("cnn", (1, 8, 8), 10, seed=3), models.build("cnn", (1, 8, 8), 10, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_build_does_not_depend_on_torchs_default_type_and_leaves_it():
    one = models.build("cnn", (1, 8, 8), 10, seed=3)
    torch.set_default_dtype(torch.float64)
    try:
        same = models.build("cnn", (1, 8, 8), 10, seed=3)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


def test_build_is_pytorchs_default_initialisation():
    bound = 784**-0.5
    weight = next(models.build("fully-connected", (1, 28, 28), 10, seed=1).parameters())
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.build("fuly-connected", (1, 8, 8), 10, 1), r"'fully-connected'.* linear.* cnn.* wide-resnet"),
        (lambda: models.cnn((3, 3, 32), 10), "at least 4 x 4 pixels, got 3 x 32"),
        (lambda: models.cnn((3, 32, 32), 10, pad=-1), "^cnn: pad must be at least 0, got -1.$"),
        (lambda: models.wide_resnet((3, 32, 32), 10, depth=27), "depth must be 6k.*got 27"),
        (lambda: models.wide_resnet((3, 32, 32), 10, depth=4), "depth must be 6k.*got 4"),
        (lambda: models.wide_resnet((3, 32, 32), 10, width=0), "width must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
