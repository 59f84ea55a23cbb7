"""Attacks against their published definitions, and the contract that all of them keep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import catalog
import oracles
import varangian as vg
from varangian.core import randomness
from varangian.core.attacks.simple import original_factor

EXAMPLES: dict[str, vg.Attack] = {
    "little": vg.Little(1.5),
    "little, original factor": vg.Little(None),
    "little, up, biased": vg.Little(0.7, sign=1, ddof=0),
    "empire": vg.Empire(1.1),
    "sign-flip": vg.SignFlip(),
    "gaussian": vg.Gaussian(),
    "zero": vg.Zero(),
    "nan": vg.NaN(),
    "inf": vg.Inf(),
    "inf, mixed": vg.Inf("mixed"),
}
every = pytest.mark.parametrize("attack", EXAMPLES.values(), ids=EXAMPLES.keys())
H, F, D = 9, 4, 131
HONEST = np.random.default_rng(4).normal(loc=0.5, size=(H, D))


def test_every_attack_has_an_example_here() -> None:
    assert {type(a) for a in EXAMPLES.values()} >= {
        vg.Little,
        vg.Empire,
        vg.SignFlip,
        vg.Gaussian,
        vg.Zero,
        vg.NaN,
        vg.Inf,
    }
    assert {"little", "empire", "sign-flip", "gaussian", "zero", "nan", "inf"} <= set(vg.ATTACKS)


# ------------------------------------------------------------------------------------------------- definitions


@pytest.mark.filterwarnings("ignore:.* attacks nobody")
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 12), st.integers(1, 300), st.floats(-3, 3))
def test_those_made_of_moments_against_the_oracles(seed: int, h: int, f: int, d: int, factor: float) -> None:
    honest = np.random.default_rng(seed).normal(size=(h, d)) * 10.0 ** np.random.default_rng(seed).integers(-3, 4)
    pairs = [
        (vg.SignFlip()(honest, f), oracles.sign_flip(honest, f)),
        (vg.Empire(factor)(honest, f), oracles.empire(honest, f, factor)),
        (vg.Zero()(honest, f), oracles.zero(honest, f)),
    ] + [
        (vg.Little(factor, sign, ddof)(honest, f), oracles.little(honest, f, factor, sign, ddof))
        for sign in (-1, 1)
        for ddof in (0, 1)
    ]
    for found, expected in pairs:
        assert found.shape == (f, d)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * np.abs(honest).max())


def test_the_moments_are_those_of_an_offset_that_dwarfs_the_spread() -> None:
    """mean 1e4, spread 1e-2 in float32: E[x^2] - E[x]^2 would give noise."""
    honest = (1e4 + 1e-2 * np.random.default_rng(1).normal(size=(20, 64))).astype(np.float32)
    found, expected = vg.Little(1.5)(honest, 1), oracles.little(honest, 1)
    np.testing.assert_allclose(found, expected, rtol=1.2e-7)


@pytest.mark.parametrize(("n", "f"), [(50, 24), (51, 24), (25, 11), (25, 5), (11, 4)])
def test_littles_original_factor(n: int, f: int) -> None:
    honest = np.random.default_rng(n).normal(size=(n - f, 20))
    assert original_factor(n, f) == pytest.approx(oracles.little_factor(n, f))
    np.testing.assert_allclose(vg.Little(None)(honest, f), oracles.little(honest, f, None), rtol=1e-10)


def test_littles_original_factor_needs_supporters() -> None:
    with pytest.raises(ValueError, match=r"^Little\(factor=None\) needs 0 < s < n - f .* got n = 6, f = 4\.$"):
        vg.Little(None)(np.zeros((2, 3)), 4)


@pytest.mark.filterwarnings("ignore:.* attacks nobody")
def test_little_needs_two_vectors_for_an_unbiased_deviation() -> None:
    with pytest.raises(ValueError, match=r"^Little needs at least 2 honest vectors, got 1\.$"):
        vg.Little()(np.ones((1, 3)), 1)
    np.testing.assert_array_equal(vg.Little(ddof=0)(np.ones((1, 3)), 1), np.ones((1, 3)))


def test_gaussian_is_noise_of_the_given_deviation() -> None:
    found = vg.Gaussian(std=3.0)(torch.zeros(5, 20_000), f=4).numpy()
    assert abs(found.mean()) < 6 * 3 / np.sqrt(found.size)
    assert found.std() == pytest.approx(3.0, rel=0.02)
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 6 / np.sqrt(20_000)  # f independent vectors
    stream = [vg.Gaussian()(HONEST, F, random=randomness.generator(1, "attack", step)) for step in (0, 0, 1)]
    np.testing.assert_array_equal(stream[0], stream[1])
    assert (stream[0] != stream[2]).all()


def test_what_is_not_finite() -> None:
    assert np.isnan(vg.NaN()(HONEST, F)).all()
    assert (vg.Inf()(HONEST, F) == np.inf).all()
    assert (vg.Inf("-")(HONEST, F) == -np.inf).all()
    mixed = vg.Inf("mixed")(HONEST, F)
    assert (mixed[:, ::2] == np.inf).all()
    assert (mixed[:, 1::2] == -np.inf).all()


# ------------------------------------------------------------------------------------- sizes, and what is sent


@pytest.mark.parametrize(
    ("attack", "h", "f", "d", "message"),
    [
        (vg.Little(), 1, 1, 3, "Little needs at least 2 honest vectors, got 1."),
        (vg.Little(None), 2, 4, 3, "Little(factor=None) needs 0 < s < n - f for s = floor(n/2 + 1) - f, "
         "got n = 6, f = 4."),
        (vg.MinMax(), 1, 1, 3, 'MinMax needs at least 2 honest vectors with direction="std", got 1.'),
        (vg.MinSum(), 1, 1, 3, 'MinSum needs at least 2 honest vectors with direction="std", got 1.'),
        (vg.AntiCGE(), 3, 3, 3, "AntiCGE needs more honest vectors than the f = 3 that attack, got 3."),
        (vg.HiddenVulnerability(3), 4, 1, 3, "HiddenVulnerability needs a coordinate below d = 3, got 3."),
        (vg.Fang(), 5, 4, 3, "Fang needs n >= 2f + 3 = 11 vectors, of which f = 4 attack, to try Krum, got 9."),
        (vg.WorstCase(("anti-cge",)), 3, 3, 3, "AntiCGE needs more honest vectors than the f = 3 that attack, got 3."),
        (vg.WorstCase((vg.HiddenVulnerability(7),)), 4, 1, 3,
         "HiddenVulnerability needs a coordinate below d = 3, got 7."),
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_an_attack_cannot_do_with(attack: vg.Attack, h: int, f: int, d: int, message: str) -> None:
    """Told where the attack is made for given sizes, and where it is called."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attack.check(h, f, d)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attack(np.ones((h, d)), f, defence=vg.Average())


@pytest.mark.parametrize("name", vg.ATTACKS)
def test_no_attack_without_anybody_honest(name: str) -> None:
    with pytest.raises(ValueError, match=r"(at least [12] honest vectors?|more honest vectors than|n >= 2f \+ 3).*\.$"):
        vg.ATTACKS[name]()(torch.zeros(0, 3), 1, defence=vg.Average(), poisoned=torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("attack", "byzantine", "message"),
    [
        ("anti-cge", 6, "attack: AntiCGE needs more honest vectors than the f = 6 that attack, got 5."),
        ("fang", 5, "attack: Fang needs n >= 2f + 3 = 13 vectors, of which f = 5 attack, to try Krum, got 11."),
        ("little", 10, "attack: Little needs at least 2 honest vectors, got 1."),
        ("min-max", 10, 'attack: MinMax needs at least 2 honest vectors with direction="std", got 1.'),
        ("little(factor=None)", 6, "attack: Little(factor=None) needs 0 < s < n - f"),
        ('worst-case(directions=("anti-cge",))', 6, "attack: AntiCGE needs more honest vectors"),
    ],
)
def test_an_experiment_is_told_before_it_starts(attack: str, byzantine: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        vg.Experiment(workers=11, byzantine=1, real_byzantine=byzantine, rule="average", attack=attack)


def test_a_simulation_is_told_what_depends_on_the_model() -> None:
    experiment = vg.Experiment(
        workers=5, byzantine=1, rule="median", attack="bulyan(coordinate=10000000)", model="linear", steps=1
    )
    with pytest.raises(ValueError, match=r"^HiddenVulnerability needs a coordinate below d = 650, got 10000000\.$"):
        vg.run(experiment)


@dataclass(frozen=True)
class Sends(vg.Attack):
    what: Any = None

    def craft(self, seen: vg.Knowledge) -> torch.Tensor:
        return self.what(seen)


@pytest.mark.parametrize(
    ("what", "got"),
    [
        (lambda seen: None, "got NoneType."),
        (lambda seen: seen.mean.numpy(), "got ndarray."),
        (lambda seen: seen.mean[:-1], "got shape [2]."),
        (lambda seen: seen.honest, "got shape [5, 3]."),
        (lambda seen: seen.mean.unsqueeze(0), "got shape [1, 3]."),
        (lambda seen: seen.mean.double(), "got torch.float64 on cpu."),
    ],
)
def test_what_an_attack_of_ones_own_sends_is_looked_at(what: Any, got: str) -> None:
    message = r"^Sends must send \[d\] = \[3\] or \[f, d\] = \[2, 3\] of torch.float32.*" + re.escape(got) + "$"
    with pytest.raises(ValueError, match=message):
        Sends(what)(torch.ones(5, 3), 2)


def test_littles_original_factor_that_attacks_nobody_is_said() -> None:
    for n, f, factor in ((20, 2, "0"), (10, 1, "-0.14")):
        honest = np.random.default_rng(n).normal(size=(n - f, 7))
        message = rf"^Little\(factor=None\) attacks nobody with n = {n}, f = {f}: its factor is {factor}, "
        with pytest.warns(UserWarning, match=message) as heard:
            sent = vg.Little(None)(honest, f)
        assert len(heard) == 1
        np.testing.assert_allclose(sent, oracles.little(honest, f, None), rtol=1e-10)


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        ("little(factor=None)", "digits"),
        ("little(factor=0.0)", "digits"),
        ("empire(factor=0.0)", "digits"),
        ("bulyan(factor=0.0)", "digits"),
        ("rop(z=0.0, pi=0.0)", "digits"),
        ("label-flip", "synthetic(classes=1, train=40, test=10)"),
    ],
)
def test_a_run_says_once_that_nobody_is_attacked(spec: str, data: str) -> None:
    e = vg.Experiment(attack=spec, dataset=data, model="linear", workers=20, byzantine=2, rule="median", steps=3)
    with pytest.warns(UserWarning, match=r"attacks nobody with n = 20, f = 2: .*\.$") as heard:
        vg.run(e)
    assert len(heard) == 1


NULL = [vg.Little(0.0), vg.Empire(0.0), vg.HiddenVulnerability(factor=0.0), vg.ROP(z=0.0, pi=0.0), vg.ROP(z=0.0)]


@pytest.mark.filterwarnings("ignore:.* attacks nobody")
@pytest.mark.parametrize("attack", [*catalog.ATTACKS.values(), *EXAMPLES.values(), *NULL], ids=str)
@pytest.mark.parametrize("h", [1, 2, 9])
def test_an_attack_is_said_to_be_idle_where_nobody_is_attacked_by_what_it_sends(attack: vg.Attack, h: int) -> None:
    f, random = 2, np.random.default_rng(h)
    honest, poisoned = random.normal(loc=1.0, size=(h, 12)), random.normal(loc=1.0, size=(f, 12))
    try:
        attack.check(h, f, 12)
    except ValueError:
        pytest.skip("too few honest vectors for it")
    sent = attack(honest, f, vg.Median(0), previous=honest[0] + 1, poisoned=poisoned if attack.poisons else None)
    nobody = all(np.allclose(row, honest.mean(0)) for row in sent)
    assert nobody == (attack.idle(h, f) is not None)


@pytest.mark.parametrize("attack", [vg.Little(ddof=0), vg.MinMax("sign"), vg.MinSum("unit"), vg.Mimic()], ids=str)
def test_one_honest_vector_is_attacked_by_none_that_need_spread(attack: vg.Attack) -> None:
    with pytest.warns(UserWarning, match="attacks nobody with n = 3, f = 2: one honest vector"):
        sent = attack(np.ones((1, 4)), 2)
    np.testing.assert_array_equal(sent, np.ones((2, 4)))


@pytest.mark.parametrize(
    ("direction", "text"),
    [
        (vg.Little(2.0), "little(factor=2.0)"),
        (vg.Little(1.5), "little(factor=1.5)"),
        (vg.Little(1.0), "little(factor=1.0)"),
        (vg.MinMax(), "min-max(direction='std')"),
        (vg.Empire(), "empire(factor=1.1)"),
        (vg.Mimic(), "mimic"),
        (vg.HiddenVulnerability(2), "bulyan(coordinate=2)"),
        (vg.SignFlip(), "sign-flip"),
        ("rop(z=3.0)", "rop(z=3.0)"),
        ("min-max", "min-max"),
    ],
    ids=str,
)
def test_every_direction_of_the_worst_case_can_be_written_down(direction: Any, text: str) -> None:
    attack = vg.WorstCase((direction,), 4)
    assert attack.directions == (text,)
    experiment = vg.Experiment(attack=attack, workers=7, byzantine=2, rule="median", steps=1)
    assert experiment.make_attack() == attack
    again = vg.WorstCase((text,), 4)
    assert again == attack
    defence, honest = vg.Median(f=2), torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    if isinstance(direction, vg.Attack):  # the line is the one through what that attack sends
        found = attack.search(honest, 2, defence)
        p = direction(honest, 2, defence, previous=torch.zeros(4).double())[0] - honest.mean(0)
        q = found.vector - honest.mean(0)
        torch.testing.assert_close(q * p.norm() * (q @ p).sign(), p * q.norm(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        (("litle",), "WorstCase: unknown direction 'litle'. Did you mean 'little'?"),
        (("little(factr=1)",), "WorstCase: little: unknown option 'factr'"),
        ((3,), "WorstCase: a direction is a name or an attack, got 3."),
        ((vg.Little,), "WorstCase: a direction is a name or an attack, got <class"),
        ("little", "WorstCase needs a tuple of names of directions, or of attacks, got 'little'."),
        ((), "WorstCase needs a tuple of names of directions, or of attacks, got ()."),
    ],
    ids=str,
)
def test_directions_that_are_none(directions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        vg.WorstCase(directions)


# ---------------------------------------------------------------------------------------------------- contract


@every
@pytest.mark.parametrize("f", [0, 1, F])
@pytest.mark.filterwarnings(r"ignore:Little\(factor=None\) attacks nobody")
def test_shape_whatever_f(attack: vg.Attack, f: int) -> None:
    assert attack(HONEST, f).shape == (f, D)
    assert attack(torch.from_numpy(HONEST), f).shape == (f, D)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kind_and_dtype_are_kept(attack: vg.Attack, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(HONEST).to(dtype)
    found = attack(tensor, F)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == dtype
    wide = attack(tensor.double(), F)
    scale = torch.finfo(dtype).eps * 8
    torch.testing.assert_close(found.double(), wide, rtol=scale, atol=scale, equal_nan=True)
    as_list = attack(list(tensor), F)
    torch.testing.assert_close(as_list, found, rtol=0, atol=0, equal_nan=True)
    if dtype != torch.bfloat16:
        array = attack(tensor.numpy(), F)
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, found.numpy())
        np.testing.assert_array_equal(attack(list(tensor.numpy()), F), found.numpy())


@every
def test_the_honest_vectors_are_only_read_and_never_handed_out(attack: vg.Attack) -> None:
    for honest in (HONEST.copy(), np.asfortranarray(HONEST), HONEST[::-1], HONEST.astype(np.float32)):
        kept = honest.copy()
        found = attack(honest, F)
        np.testing.assert_array_equal(honest, kept)
        assert not np.shares_memory(found, honest)
        found[:] = 9.0  # f rows of their own: writing one changes no other, nor the next answer
        found[0] = 1.0
        assert (found[1:] == 9.0).all()
        np.testing.assert_array_equal(honest, kept)


@every
def test_layout_does_not_matter_and_calls_repeat(attack: vg.Attack) -> None:
    expected = attack(HONEST, F)
    np.testing.assert_array_equal(attack(HONEST, F), expected)
    np.testing.assert_array_equal(attack(np.asfortranarray(HONEST), F), expected)
    np.testing.assert_array_equal(attack(torch.from_numpy(HONEST.T.copy()).T, F).numpy(), expected)


def test_arrays_that_cannot_be_written_are_welcome() -> None:
    """np.load(mmap_mode="r") and np.broadcast_to give such arrays; no warning, since nothing writes them."""
    read_only = HONEST.copy()
    read_only.setflags(write=False)
    np.testing.assert_array_equal(vg.Little()(read_only, F), vg.Little()(HONEST, F))


@every
def test_no_gradient_flows_through(attack: vg.Attack) -> None:
    assert not attack(torch.from_numpy(HONEST).requires_grad_(), F).requires_grad


@every
def test_an_attack_takes_what_the_adversary_knows(attack: vg.Attack) -> None:
    """Defence, last aggregate and randomness are offered to all, whether they use them or not."""
    found = attack(HONEST, F, defence=vg.Median(F), previous=np.zeros(D), random=randomness.generator(0, "attack"))
    np.testing.assert_array_equal(found, attack(HONEST, F))


@every
@pytest.mark.parametrize(
    ("honest", "f", "message"),
    [
        (np.zeros((2, 3)), -1, "needs an integer f >= 0, got -1."),
        (np.zeros((2, 3)), 1.5, "needs an integer f >= 0, got 1.5."),
        (np.zeros(3), 1, "needs [n, d] with d >= 1, got shape [3]."),
        (np.zeros((2, 3), int), 1, "needs floating-point vectors (float16, float32, float64), got int64."),
        ("vectors", 1, "needs a tensor, an array or a list of vectors, got str."),
        ([np.zeros(3), np.zeros(4)], 1, "needs vectors of one shape [d], got shapes [(3,), (4,)]."),
        ([], 1, "needs n >= 1 vectors, got an empty list."),
    ],
)
def test_wrong_use(attack: vg.Attack, honest: Any, f: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{type(attack).__name__} {re.escape(message)}$"):
        attack(honest, f)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vg.Little(float("nan")), "Little needs a finite factor (or None), got nan."),
        (lambda: vg.Little(sign=0), "Little needs sign -1 or 1, got 0."),
        (lambda: vg.Little(ddof=2), "Little needs ddof 0 or 1, got 2."),
        (lambda: vg.Empire(float("inf")), "Empire needs a finite factor, got inf."),
        (lambda: vg.Gaussian(0.0), "Gaussian needs a finite std > 0, got 0.0."),
        (lambda: vg.Gaussian(float("nan")), "Gaussian needs a finite std > 0, got nan."),
        (lambda: vg.Inf("±"), """Inf needs sign "+", "-" or "mixed", got '±'."""),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_the_moments_are_computed_once_for_all_who_ask() -> None:
    seen = vg.Knowledge(torch.from_numpy(HONEST), F, None, None, randomness.generator(0, "attack"))
    assert seen.moments[0] is seen.mean
    np.testing.assert_allclose(seen.mean.numpy(), HONEST.mean(0), rtol=1e-12)
    np.testing.assert_allclose(seen.moments[1].numpy(), HONEST.std(0, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-120, 1.0, 1e120])
def test_what_an_adversary_knows_in_another_unit(scale: float) -> None:
    """Lengths are divided by it; a defence, which knows lengths, is left out, and moments are taken anew."""
    random = np.random.default_rng(2)
    honest, previous, poisoned = (torch.from_numpy(random.normal(size=s)) * scale for s in ((5, 3), (3,), (2, 3)))
    known = (honest.mean(0), honest.std(0))
    seen = vg.Knowledge(honest, 2, vg.Median(2), previous, random, poisoned, known=known, workers=9)
    unit, within = seen.unit, seen.in_unit()
    assert (unit == 1) == (scale == 1)
    assert np.frexp(unit)[0] == 0.5
    torch.testing.assert_close(within.honest * unit, honest)
    assert within.previous is not None
    assert within.poisoned is not None
    torch.testing.assert_close(within.previous * unit, previous)
    torch.testing.assert_close(within.poisoned * unit, poisoned)
    torch.testing.assert_close(within.mean * unit, known[0])
    torch.testing.assert_close(within.moments[1] * unit, known[1])
    assert (within.defence is None) == (scale != 1)
    assert (within.f, within.h, within.random) == (2, 7, random)
    assert 0.1 < float(within.moments[1].max()) < 10
    bare = vg.Knowledge(honest, 2, None, None, random).in_unit()
    assert bare.previous is None
    assert bare.poisoned is None
