"""What surrounds a call changes nothing: inference mode, gradients, torch.compile; and what is no vector is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from catalog import ATTACKS, MIXINGS, RULES, TRANSFORMS, F, N, ask, vectors

Call = Callable[[Tensor], Tensor]


def called(stage: Any) -> Call:
    """One call of a rule, a mixing, an attack or a transform, given all that it may use."""
    if isinstance(stage, (vg.Rule, vg.Mixing)):
        return lambda x: ask(stage, x, x[0].clone())
    if isinstance(stage, vg.Attack):
        return lambda x: stage(x, F, defence=vg.MultiKrum(f=F), previous=x[0].clone(), poisoned=x[:F].clone())
    return lambda x: stage(x, x.flip(0).clone() if stage.remembers else None, x[0].clone(), None)[0]


def whole(x: Tensor) -> Tensor:
    """A step of an algorithm of all four stages."""
    algorithm = vg.Algorithm(
        worker=(vg.Clip(1.0), vg.Momentum(0.9)),
        pre=(vg.NearestNeighborMixing(f=F),),
        rule=vg.GeometricMedian(f=F),
        server=(vg.Momentum(0.9),),
    )
    sent, state = algorithm.send(x, algorithm.init(x.shape[0], x.shape[1], x.dtype))
    return algorithm.aggregate(sent, state)[0]


CALLS: dict[str, Call] = {
    **{f"rule {name}": called(rule) for name, rule in RULES.items()},
    **{f"mixing {name}": called(mixing) for name, mixing in MIXINGS.items()},
    **{f"attack {name}": called(attack) for name, attack in ATTACKS.items()},
    **{f"transform {name}": called(transform) for name, transform in TRANSFORMS.items()},
    "algorithm": whole,
}
every = pytest.mark.parametrize("name", CALLS)


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@every
def test_inference_mode(name: str) -> None:
    call, x = CALLS[name], vectors(N)
    expected = call(x)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            same(call(x), expected)
            same(call(x.clone()), expected)  # made inside: a tensor of inference


@every
def test_what_requires_grad(name: str) -> None:
    call, x = CALLS[name], vectors(N)
    expected = call(x)
    for given in (x.clone().requires_grad_(), torch.nn.Parameter(x.clone())):
        answer = call(given)
        assert not answer.requires_grad
        same(answer, expected)


@pytest.mark.slow
@every
@pytest.mark.filterwarnings("ignore")  # torch's own, of what it does not compile
def test_torch_compile(name: str) -> None:
    """Around a call, whatever it calls, and before and after it: as eager."""
    call, x = CALLS[name], vectors(N)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: 2 * call(x * 1.0), backend="eager")
    for given in (x, vectors(N, seed=1)):
        same(compiled(given), 2 * call(given))


def masked(x: np.ndarray) -> Any:
    return np.ma.masked_array(x, mask=x > 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (masked, "needs an array without a mask"),
        (lambda x: np.ma.masked_array(x), "needs an array without a mask"),
        (lambda x: list(masked(x)), "needs vectors that are all tensors or all arrays"),
        (lambda x: x.astype(complex), "needs floating-point vectors (float16, float32, float64), got complex128."),
        (lambda x: x.astype(object), "needs floating-point vectors (float16, float32, float64), got object."),
        (lambda x: x.astype(int), "needs floating-point vectors (float16, float32, float64), got int64."),
        (lambda x: x > 0, "needs floating-point vectors (float16, float32, float64), got bool."),
        (lambda x: torch.from_numpy(x).to(torch.complex64), "float64), got torch.complex64."),
        (lambda x: torch.from_numpy(x) > 0, "float64), got torch.bool."),
        (lambda x: torch.from_numpy(x).to(torch.float8_e4m3fn), "float64), got torch.float8_e4m3fn."),
        (lambda x: torch.from_numpy(x).to_sparse(), "needs a dense tensor, got torch.sparse_coo."),
        (lambda x: torch.empty(N, 3, device="meta"), "needs a dense tensor, got one without numbers (meta)."),
        (lambda x: [*x.tolist()[:-1], [1.0]], "needs vectors of one length, got 1, 40."),
        (lambda x: [[str(v) for v in row] for row in x.tolist()], "needs vectors of numbers, got "),
        (lambda x: [torch.from_numpy(x[0]), x[1]], "needs vectors that are all tensors or all arrays"),
    ],
)
@pytest.mark.parametrize(
    "stage", [*RULES.values(), *MIXINGS.values(), vg.Little(), vg.WorstCase()], ids=lambda stage: type(stage).__name__
)
def test_what_is_no_vector_is_refused_in_one_line(stage: Any, given: Callable[[np.ndarray], Any], message: str) -> None:
    x = given(vectors(N).numpy())
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        stage(x, F, vg.Median(f=F)) if isinstance(stage, vg.Attack) else stage(x)
    assert "\n" not in str(error.value)


def test_the_global_type_and_generator_are_neither_used_nor_moved() -> None:
    x = vectors(N).float()
    expected = {name: call(x) for name, call in CALLS.items()}
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        for name, call in CALLS.items():
            same(call(x), expected[name])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_of_a_stage_is_the_stage() -> None:
    for table in (RULES, MIXINGS, ATTACKS, TRANSFORMS):
        for stage in table.values():
            assert replace(stage) == stage
