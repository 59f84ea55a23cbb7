"""Models as vectors and back: nothing lost, nothing averaged in silence, and errors that name what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import varangian as vg
from varangian.core.vectors import flatten, unflatten


def models(n: int = 5) -> list[dict[str, torch.Tensor]]:
    made = []
    for seed in range(n):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        for _ in range(seed):
            net(torch.randn(6, 3))
        made.append(net.state_dict())
    return made


def test_there_and_back() -> None:
    states = models()
    x, shape = flatten(states, buffers="keep")
    assert x.shape == (5, 3 * 4 + 4 + 4 + 4 + 4 * 2 + 2)
    for state, row in zip(states, x, strict=True):
        back = unflatten(row, shape)
        assert list(back) == list(state)
        for name, tensor in state.items():
            buffer = name in ("1.running_mean", "1.running_var", "1.num_batches_tracked")
            torch.testing.assert_close(back[name], states[0][name] if buffer else tensor, rtol=0, atol=0)
            assert back[name].dtype == tensor.dtype
    assert [list(b) for b in unflatten(x, shape)] == [list(s) for s in states]


def test_a_rule_over_models_is_the_rule_over_each_tensor_when_it_lives_in_columns() -> None:
    states = models()
    x, shape = flatten(states, buffers="keep")
    result = unflatten(vg.Median(f=2)(x), shape)
    stacked = torch.stack([s["0.weight"] for s in states])
    torch.testing.assert_close(result["0.weight"], stacked.median(0).values)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.load_state_dict(result)


def test_integers_are_refused_unless_somebody_says_what_becomes_of_them() -> None:
    states = models()
    with pytest.raises(ValueError, match=r"\"keep\".*\"aggregate\".*'1\.num_batches_tracked' \(torch\.int64\)"):
        flatten(states)
    x, shape = flatten(states, buffers="aggregate")
    counters = unflatten(vg.Average()(x), shape)["1.num_batches_tracked"]
    assert counters.dtype == torch.int64
    assert counters == 2
    keeps, _ = flatten(states, buffers="keep")
    assert x.shape[1] == keeps.shape[1] + 4 + 4 + 1


class Own(nn.Module):
    """Buffers under names of its own, a parameter with the name of a buffer's last part."""

    def __init__(self) -> None:
        super().__init__()
        self.running = nn.Linear(2, 2)
        self.register_buffer("centre", torch.zeros(2))
        self.norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.SyncBatchNorm(4),
     nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
     nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.BatchNorm1d(4))), nn.BatchNorm3d(4)],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_no_buffer_of_a_normalisation_enters_the_vector(module: nn.Module) -> None:
    """Whatever torch's normalisations keep, floating-point or not: only what is trained decides who is near whom."""
    honest, odd = module.state_dict(), {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for name, _ in module.named_buffers():
        odd[name] = torch.full_like(odd[name], 900)
    x, shape = flatten([honest, odd], buffers="keep")
    assert x.shape[1] == sum(parameter.numel() for parameter in module.parameters())
    assert torch.equal(x[0], x[1])
    module.load_state_dict(unflatten(x[0], shape))
    with pytest.raises(ValueError, match="running_mean"):
        flatten([honest, odd])
    everything, _ = flatten([honest, odd], buffers="aggregate")
    assert everything.shape[1] == sum(tensor.numel() for tensor in honest.values())


def test_statistics_do_not_choose_the_model() -> None:
    norm = nn.BatchNorm1d(4)

    def client(weight: float, variance: float) -> dict[str, torch.Tensor]:
        state = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
        state["weight"] += weight
        state["running_var"] += variance
        return state

    clients = [client(0, 0), client(0.01, 300), client(0.02, 600), client(0.03, 900), client(5, 450)]
    x, shape = flatten(clients, buffers="keep")
    assert float(unflatten(vg.Krum(f=1)(x), shape)["weight"].max()) < 2


def test_buffers_of_other_names_are_named() -> None:
    states = [Own().state_dict() for _ in range(3)]
    known, _ = flatten(states, buffers="keep")
    assert known.shape[1] == 4 + 2 + 2 + 2 + 2  # centre is taken for a parameter, as a state dict does not say
    names = [name for name, _ in Own().named_buffers()]
    x, shape = flatten(states, buffers="keep", buffer_names=names)
    assert x.shape[1] == 4 + 2 + 2 + 2
    assert set(shape.names) == set(states[0])
    assert flatten(states, buffers="keep", buffer_names=("centre",))[0].shape[1] == 14
    assert flatten(states, buffers="keep", buffer_names=())[0].shape[1] == 16
    assert flatten([list(s.values()) for s in states], buffers="keep", buffer_names=["0"])[0].shape[1] == 14


@pytest.mark.parametrize(
    "wrong",
    ["running_mean", ["centre", "center"], [1], [None], 5, None, iter(["running_mean"])],
    ids=lambda names: type(names).__name__,
)
def test_names_of_buffers_that_are_none(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"^flatten needs buffer_names "):
        flatten([Own().state_dict()], buffers="keep", buffer_names=wrong)  # type: ignore[arg-type]


def test_booleans_and_small_integers_round_and_never_wrap() -> None:
    lists = [
        [torch.tensor([True, False]), torch.tensor([200], dtype=torch.uint8), torch.tensor([0.5])] for _ in range(3)
    ]
    x, shape = flatten(lists, buffers="aggregate")
    assert unflatten(torch.tensor([0.4, 0.5, 199.6, 1.0]), shape)[0].tolist() == [False, True]
    assert unflatten(torch.tensor([0.4, 0.5, 199.6, 1.0]), shape)[1].tolist() == [200]
    for bad in (255.6, -1.0, float("nan"), 1e30):
        with pytest.raises(ValueError, match=r"within the range of torch\.uint8 for '1'"):
            unflatten(torch.tensor([0.0, 0.0, bad, 1.0]), shape)
    assert x.shape == (3, 4)


def test_integers_that_the_vectors_cannot_hold_are_refused() -> None:
    many = [[torch.tensor([2**40]), torch.zeros(1)]] * 3
    with pytest.raises(ValueError, match=r"holds exactly.*'0' of model 0; give dtype=torch\.float64\.$"):
        flatten(many, buffers="aggregate")
    x, shape = flatten(many, buffers="aggregate", dtype=torch.float64)
    assert unflatten(x[0], shape)[0].item() == 2**40
    with pytest.raises(ValueError, match="within the range"):
        unflatten(torch.tensor([2.0**63, 0.0]).double(), shape)


def test_mixed_precision_takes_the_widest_and_gives_back_each() -> None:
    lists = [[torch.ones(2, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64)]] * 3
    x, shape = flatten(lists)
    assert x.dtype == torch.float64
    assert [t.dtype for t in unflatten(x[0], shape)] == [torch.bfloat16, torch.float64]


def test_nothing_is_shared() -> None:
    lists = [[torch.ones(2), torch.tensor([1])] for _ in range(2)]
    x, shape = flatten(lists, buffers="keep")
    x[...] = 7
    one, other = unflatten(x[0], shape), unflatten(x[0], shape)
    one[0][...] = 9
    one[1][...] = 9
    assert other[0].tolist() == [7, 7]
    assert other[1].tolist() == [1]
    assert lists[0][0].tolist() == [1, 1]
    assert lists[0][1].tolist() == [1]


def test_order_of_names_does_not_matter() -> None:
    one = {"a": torch.ones(1), "b": torch.zeros(1)}
    x, _ = flatten([one, dict(reversed(one.items()))])
    assert x.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "needs n >= 1 models, got none"),
        ([{}], "at least one tensor"),
        ([[torch.ones(1, dtype=torch.complex64)]], r"real tensors, got torch\.complex64 in '0'"),
        ([{"a": torch.ones(1)}, {"b": torch.ones(1)}], r"model 1 that lacks \['a'\] and has \['b'\]"),
        ([{"a": torch.ones(1)}, {"a": torch.ones(2)}], r"'a' of one shape, \[1\] in model 0, got \[2\] in model 1"),
        ([{"a": torch.ones(1)}, {"a": torch.ones(1).half()}], r"'a' of one type, torch\.float32 .* torch\.float16"),
        ([{"a": torch.ones(1)}, [torch.ones(1)]], "models of one kind, got list at 1"),
        ([{"a": 1.0}], r"needs tensors, got float in 'a' of model 0"),
        ([{0: torch.ones(1)}, {"a": torch.ones(1)}], r"names that are text, got 0 in model 0"),
        ([torch.ones(3)], "state dicts or lists of tensors, got Tensor at 0"),
        ({"a": torch.ones(3)}, "state dicts or lists of tensors, got str at 0"),
        ([nn.Linear(1, 1)], "state dicts or lists of tensors, got Linear at 0"),
    ],
)
def test_what_is_wrong_is_said(given: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flatten(given)


def test_other_refusals() -> None:
    x, shape = flatten([[torch.ones(3)]])
    with pytest.raises(ValueError, match=r"length d = 3, got shape \[2\]"):
        unflatten(x[0, :2], shape)
    with pytest.raises(ValueError, match='"refuse", "keep" or "aggregate", got \'average\''):
        flatten([[torch.ones(3)]], buffers="average")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one floating-point tensor"):
        flatten([[torch.tensor([1])]], buffers="keep")
