"""Numbers at the ends of their range: what is scaled is answered by what is scaled, as far as the type has numbers.

The law is asked with powers of two, by which nothing is rounded: an answer that differs went another way, since squares
overflowed (beyond 1e154 in double precision, 256 in half) or vanished.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import catalog
import varangian as vg
from catalog import ATTACKS, LENGTHS, MIXINGS, RULES, TRANSFORMS, F, H, N, ask, vectors
from varangian.core import kernels
from varangian.core.geometry import power_below
from varangian.simulation.metrics import Measures, Meter

# Exponents of the scales: squares of double precision leave its range beyond +-512, of single beyond +-64.
SCALES = {
    torch.float64: (-1000, -700, -530, -300, 300, 500, 530, 700, 1000),
    torch.float32: (-120, -70, -30, 30, 70, 110),
    torch.bfloat16: (-120, -70, 70, 110),
    torch.float16: (-9, 8, 11),
}
CASES = [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales]
in_range = pytest.mark.parametrize(("dtype", "scale"), CASES, ids=lambda value: str(value).removeprefix("torch."))


def at_scale(stage: Any, factor: float) -> Any:
    """The same rule, mixing, attack or transform for vectors that are longer by a factor."""
    length = LENGTHS.get(type(stage))
    return stage if length is None else replace(stage, **{length: getattr(stage, length) * factor})


def scaled(x: Tensor, scale: int, dtype: torch.dtype) -> Tensor:
    return (x * 2.0**scale).to(dtype)


def close(found: Tensor, expected: Tensor, scale: int, dtype: torch.dtype) -> None:
    tolerance = 1e-9 if dtype == torch.float64 else 32 * torch.finfo(dtype).eps
    # Half precision has few numbers below 1: what vanishes there vanishes by rounding.
    least = torch.finfo(dtype).smallest_normal * 2.0**-scale if dtype == torch.float16 else 0.0
    size = float(expected[expected.isfinite()].abs().max()) if bool(expected.isfinite().any()) else 1.0
    torch.testing.assert_close(
        found.double() * 2.0**-scale, expected, rtol=0, atol=tolerance * size + least, equal_nan=True
    )


@in_range
@pytest.mark.parametrize("name", [*RULES, *MIXINGS])
def test_rules_and_mixings(name: str, dtype: torch.dtype, scale: int) -> None:
    stage = (RULES | MIXINGS)[name]
    x = vectors(N, seed=3).to(dtype).double()
    previous = x[:3].mean(0).to(dtype).double()
    expected = ask(stage, x, previous)
    found = ask(at_scale(stage, 2.0**scale), scaled(x, scale, dtype), scaled(previous, scale, dtype))
    assert found.dtype == dtype
    close(found, expected, scale, dtype)


@pytest.mark.parametrize("scale", [-1000, -530, 0, 530, 1000])
@pytest.mark.parametrize("far", [1e300, 1e155, 1e-300, 0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [name for name in RULES if name not in ("average", "foolsgold", "fltrust")])
def test_rules_under_vectors_from_the_other_end(name: str, far: float, scale: int) -> None:
    """f vectors of any length change neither what is finite nor what is near."""
    rule = at_scale(RULES[name], 2.0**scale)
    x = vectors(N, seed=4)
    x[1] = 0.0
    x[4:6] = far * 2.0**-scale if 0 < abs(far) < float("inf") and abs(np.log2(far) - scale) < 1020 else far
    x = (x * 2.0**scale).nan_to_num(float("nan"), float("inf"), float("-inf"))
    found = ask(rule, x) * 2.0**-scale
    assert bool(found.isfinite().all())
    if not isinstance(rule, vg.DivideAndConquer):
        assert float(found.norm()) < 1e3


@pytest.mark.parametrize("large", [1e160, 1e300])
def test_more_than_f_finite_vectors_are_never_called_infinite(large: float) -> None:
    """n = 9, f = 2: four of them too long for squares, and finite."""
    x = vectors(9, seed=5)
    x[:4] *= large
    for name, rule in RULES.items():
        if name not in ("average", "dnc", "monna", "cge", "fltrust", "foolsgold") and rule.min_n <= 9:
            assert bool(ask(rule, x).isfinite().all()), name


SCALABLE = {name: attack for name, attack in ATTACKS.items() if name not in ("nan", "inf", "inf, mixed", "zero")}


def sent(attack: vg.Attack, honest: Tensor, scale: int, dtype: torch.dtype) -> Tensor:
    x = scaled(honest, scale, dtype)
    attack = at_scale(attack, 2.0**scale)
    previous = scaled(honest[:4].mean(0).to(dtype).double(), scale, dtype)
    return attack(x, F, defence=vg.MultiKrum(f=F), previous=previous, poisoned=-x[:F])


@in_range
@pytest.mark.parametrize("name", SCALABLE)
def test_attacks(name: str, dtype: torch.dtype, scale: int) -> None:
    attack = SCALABLE[name]
    if isinstance(attack, vg.Gaussian):
        attack = vg.Gaussian(2.0)
    if dtype != torch.float64 and isinstance(attack, (vg.WorstCase, vg.Fang)):
        pytest.skip("where a search ends hangs on rounding")
    honest = vectors(H, seed=6).to(dtype).double()
    expected = sent(attack, honest, 0, torch.float64)
    found = sent(attack, honest, scale, dtype)
    limit = torch.finfo(dtype).max * 2.0**-scale if scale > 0 else float("inf")
    close(found, expected.clamp(-limit, limit), scale, dtype)


def test_half_precision_that_is_full() -> None:
    """6e4 in float16: deviations, and factors of them, are beyond its range; they are sent as its greatest number."""
    honest = torch.tensor([[6e4, 1.0], [-6e4, 2.0], [6e4, 3.0], [-6e4, 4.0], [6e4, 5.0]], dtype=torch.float16)
    for name, attack in SCALABLE.items():
        found = attack(honest, 1, defence=vg.Median(f=1), previous=honest[0], poisoned=-honest[:1])
        assert found.dtype == torch.float16
        assert bool(found.isfinite().all()), name
    found = vg.Little(1.5)(honest, 1).double()[0]
    expected = honest.double().mean(0) - 1.5 * honest.double().std(0)
    assert float(found[0]) == -65504
    assert float(found[1]) == pytest.approx(float(expected[1]), rel=1e-3)


@in_range
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str, dtype: torch.dtype, scale: int) -> None:
    stage = TRANSFORMS[name]
    x = vectors(5, seed=7).to(dtype).double()
    memory = (x.flip(0) / 2).to(dtype).double()
    previous = x[1].clone()

    def applied(factor: int, kind: torch.dtype, inside: bool) -> Tensor:
        given, kept = scaled(x, factor, kind), scaled(memory, factor, kind) if stage.remembers else None
        return at_scale(stage, 2.0**factor)(given, kept, scaled(previous, factor, kind), given if inside else None)[0]

    expected = applied(0, torch.float64, False)
    shown = 0 if name == "clip, unit" else scale  # whatever the length, norm 1 is norm 1
    for inside in (False, True):
        close(applied(scale, dtype, inside), expected, shown, dtype)


@pytest.mark.parametrize(
    ("value", "d", "dtype"),
    [(3e4, 1 << 20, torch.float16), (6e4, 10, torch.float16), (3e38, 1000, torch.float32), (1e300, 7, torch.float64),
     (1e307, 50, torch.float64), (3e38, 100, torch.bfloat16)],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["norm", "unit"])
def test_clipping_to_norm_1_leaves_norm_1_whatever_the_length(
    value: float, d: int, dtype: torch.dtype, mode: Any
) -> None:
    x = torch.full((2, d), value, dtype=dtype)
    for out in (None, x.clone()):
        y = vg.Clip(1.0, mode)(x if out is None else out, out=out)[0].double()
        torch.testing.assert_close(y.norm(dim=1), torch.ones(2).double(), rtol=0, atol=0.02)
    assert float(kernels.norms(vg.StaticClipping(1.0)(x))[0]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("value", [1e-200, 1e-160, 5e-324 * 1000, 1e160, 1e300])
def test_norms(value: float) -> None:
    x = vectors(4, 9) * value
    x[2] = 0
    wide = x.numpy().astype(np.longdouble)
    expected = np.sqrt(np.square(wide / value).sum(1)).astype(float)
    found = (kernels.norms(x) / value).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12 if value > 1e-300 else 1e-3)
    assert kernels.norms(torch.tensor([1.0, float("nan")]).double()).isnan()
    assert kernels.norms(torch.tensor([1.0, float("inf")]).double()) == float("inf")
    assert kernels.norms(x[0]).shape == ()


@pytest.mark.parametrize("value", [1e-300, 1e-200, 1e-160, 1.0, 1e160, 1e300])
def test_moments(value: float) -> None:
    x = vectors(6, 300)
    x[:, 7] = 0.5
    x[:, 8] = 0.0
    mean, std = kernels.mean_and_std(x * value)
    np.testing.assert_allclose(mean / value, x.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(std / value, x.std(0), rtol=1e-12, atol=1e-15)


def test_moments_of_what_is_not_finite_are_not() -> None:
    x = vectors(6, 5)
    x[0, 1], x[0, 2] = float("nan"), float("inf")
    mean, std = kernels.mean_and_std(x)
    assert mean.isnan().tolist() == [False, True, False, False, False]
    assert mean.isinf().tolist() == [False, False, True, False, False]
    assert std.isnan().tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("value", [1e-300, 1e-200, 1.0, 1e200, 1e300])
def test_the_meter(value: float) -> None:
    """Norms are scaled, cosines and ratios stay."""
    x = vectors(6, 30)

    def measured(by: float) -> list[Measures]:
        meter, rows = Meter(torch.zeros(30).double(), 0.9), []
        for step in range(2):
            moments = kernels.mean_and_std(x * by)
            rows.append(
                meter.measure(Measures(step, 0, 0.1, 1.0), x[0] * by, moments, moments, x[3] * by, x[1] * by, None, 6)
            )
        return rows

    for one, other in zip(measured(1.0), measured(value), strict=True):
        for name in (
            "distance",
            "sampled_norm",
            "sampled_deviation",
            "honest_max",
            "attack_norm",
            "aggregate_norm",
        ):
            assert getattr(other, name) / value == pytest.approx(getattr(one, name), rel=1e-9), name
        for name in ("cosine_sampled_attack", "cosine_honest_aggregate", "cosine_previous", "ratio"):
            if getattr(one, name) is not None:  # at the first step there is no last one
                assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9), name


def test_an_algorithm_as_a_whole() -> None:
    """Clip, momentum, mixing, rule, server: a step of vectors of 1e-200 or 1e250 is that of vectors of size 1."""
    for scale in (-660, 830):
        answers = []
        for factor in (0, scale):
            algorithm = vg.Algorithm(
                worker=(vg.Clip(8.0 * 2.0**factor), vg.Momentum(0.9)),
                pre=(vg.AdaptiveClipping(f=F), vg.NearestNeighborMixing(f=F)),
                rule=vg.MultiKrum(f=F),
            )
            state = algorithm.init(N, 40, torch.float64)
            for seed in range(3):
                vectors_sent, state = algorithm.send(vectors(N, seed=seed) * 2.0**factor, state)
                update, state = algorithm.aggregate(vectors_sent, state)
            answers.append(update * 2.0**-factor)
        torch.testing.assert_close(answers[1], answers[0], rtol=1e-9, atol=1e-12)


def test_the_catalog_has_all_that_the_tables_have() -> None:
    for table, here in ((vg.RULES, RULES), (vg.MIXINGS, MIXINGS), (vg.ATTACKS, ATTACKS)):
        assert set(table.values()) == {type(one) for one in here.values()}
    assert all(rule.min_n <= catalog.N for rule in RULES.values())


@pytest.mark.parametrize("scale", [-900, -530, 0, 530, 900])
def test_what_workers_do_in_one_pass_is_what_they_do_one_by_one(scale: int) -> None:
    """The simulator's pass over clipping and momentum, at both ends too."""
    x, y, memory = (vectors(n, seed=n) * 2.0**scale for n in (6, 1, 6))
    x[2] = 0
    clip, momentum = vg.Clip(4.0 * 2.0**scale), vg.Momentum(0.9)
    expected = momentum(clip(x + 0.5 * y)[0], memory)[0]
    out = torch.empty_like(x)
    kernels.send_rows(x, 0.5, y, scale=clip.scales, keep=1.0, beta=0.9, memory=memory, out=out, moments=False)
    torch.testing.assert_close(out * 2.0**-scale, expected * 2.0**-scale, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [sys.float_info.max, sys.float_info.min, 5e-324])
def test_the_greatest_and_the_least_numbers_that_there_are(value: float) -> None:
    """Units are powers of two within the range; a rounded logarithm of the greatest number is beyond it."""
    unit = power_below(value)
    assert unit <= value <= 2 * unit  # 2 * 2^1023 is infinite
    assert unit == 2.0 ** np.round(np.log2(unit))
    most = value if value < 1 else value / 4  # a norm beyond the range is infinite
    x = torch.full((N, 5), most, dtype=torch.float64)
    x[0] = 0.5
    for name, rule in RULES.items():
        assert bool(ask(rule, x, x[1]).isfinite().all()) or name == "average", name
    for attack in ATTACKS.values():
        assert attack(x, F, defence=vg.Median(f=F), previous=x[1], poisoned=x[:F]).shape == (F, 5)


def beyond() -> list[tuple[str, Any]]:
    """Attacks on vectors with an option that is beyond single precision, as many as take one."""
    found = []
    for name, kind in vg.ATTACKS.items():
        for field in fields(kind):
            for number in (1e39, -1e39, 1e300):
                with suppress(ValueError):  # no number, or none of that size, is its option
                    found.append((f"{name}-{field.name}-{number:g}", kind(**{field.name: number})))
    return [(name, attack) for name, attack in found if not attack.poisons]


BEYOND = beyond()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("attack", [a for _, a in BEYOND], ids=[name for name, _ in BEYOND])
def test_an_attack_with_a_number_beyond_single_precision(attack: vg.Attack, dtype: torch.dtype) -> None:
    """What it sends is the formula's, infinite where that is too large."""
    honest = torch.randn(9, 20, generator=torch.Generator().manual_seed(1)).to(dtype)
    honest[:, 0], honest[:, 1] = 1.0, 0.0  # a deviation of zero, and a mean
    sent = attack(honest, 2)
    assert sent.dtype == dtype
    if isinstance(attack, vg.Little | vg.Empire):
        assert not sent.isnan().any()
        if dtype.itemsize > 2:
            torch.testing.assert_close(sent, attack(honest.double(), 2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("scale", [0.0, -1.5, 65504.0, 65536.0, 3.38e38, 3.4e38, -3.5e38, 1e300])
def test_moving_by_a_scale_on_both_sides_of_what_a_type_holds(scale: float, given: bool, dtype: torch.dtype) -> None:
    x, y = torch.tensor([1.0, -2.0, 0.5], dtype=dtype), torch.tensor([0.0, 2.0**-100, -2.0], dtype=dtype)
    out = torch.empty_like(x) if given else None
    found = kernels.moved(x, y, scale, out=out)
    assert out is None or found is out
    torch.testing.assert_close(found, (x.double() + scale * y.double()).to(dtype))


@pytest.mark.parametrize("settings", [
    {"learning_rate": 1e308}, {"learning_rate": 1e39}, {"l2": 1e300}, {"l2": 1e300, "profile": "published"},
])  # fmt: skip
@pytest.mark.parametrize("place", [("worker", False), ("worker", True), ("server", True), ("shared", False)])
@pytest.mark.parametrize("rule", ["average", "median"])
def test_a_run_with_a_number_beyond_single_precision_ends(settings: dict, place: tuple, rule: str) -> None:
    momentum_at, nesterov = place
    e = vg.Experiment(dataset="digits", workers=5, byzantine=0, rule=rule, steps=2, momentum_at=momentum_at)
    assert vg.run(replace(e, nesterov=nesterov, **settings)).stopped is not None
