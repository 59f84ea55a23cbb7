"""Models as vectors and back: nothing lost, nothing averaged in silence, and errors that name what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import varangian as vg
from varangian.vectors import flatten, unflatten


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
    assert x.shape == (5, 3 * 4 + 4 + 4 + 4 + 4 + 4 + 4 * 2 + 2)
    for state, row in zip(states, x, strict=True):
        back = unflatten(row, shape)
        assert list(back) == list(state)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)
            else:
                assert back[name] == states[0][name]
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
    assert x.shape[1] == keeps.shape[1] + 1


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
