"""On a pretended card: rules, mixings, attacks and transforms answer as on the CPU, and wait no more often than they
may.

One table, BUDGETS, says how often. What reaches the host is n x n, never d; so many launches at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from pretended import OnTwoDevices, PretendedCard
from varangian import testing
from varangian.core import geometry, kernels, randomness
from varangian.core.attacks import ATTACKS, spread
from varangian.core.checks import Refused
from varangian.core.evidence import column_weights, weights_in_columns
from varangian.core.geometry import ANEW_WIDTH
from varangian.core.mixing import MIXINGS
from varangian.core.rules import RULES
from varangian.core.stages import decide, deferred_refusals, refuse_faulty

N, F = 15, 3
WIDE = ANEW_WIDTH + 809  # distances are added up in float32 there
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-9, torch.bfloat16: 1.6e-2}  # beside the greatest value
COLUMNS = ("average", "median", "trimmed-mean", "phocas", "meamed")

# Waits inside deferred_refusals, on vectors of which no two are equally near.
BUDGETS = (
    {name: 0 if name in COLUMNS else 1 for name in RULES}
    | dict.fromkeys(MIXINGS, 1)
    | {
        "little": 0, "empire": 0, "sign-flip": 0, "gaussian": 0, "zero": 0, "nan": 0, "inf": 0, "label-flip": 0,
        "bulyan attack": 0, "rop": 0, "mimic": 1, "min-max": 1, "min-sum": 1, "anti-cge": 1,
        "backdoor": 0, "hidden": 0, "scattered": 0, "divided": 0, "decoys": 0,
        "fang": 2,  # the size of what is tried, then the distances to it
        "worst-case": 1 + 1 + 1 + 12,  # lines, one of which is min-max; the coarse half; each trial that refines
    }
)  # fmt: skip
LAUNCHES = {"worst-case": 900}  # others: 160


def vectors(d: int, dtype: torch.dtype = torch.float32, hostile: bool = False, n: int = N) -> Tensor:
    """Vectors about a common one; hostile ones hold a null vector, one that is far, and one that is no number."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(d)) + torch.randn(d, generator=torch.Generator())
    if hostile:
        x[1], x[4], x[n - 1, d // 2] = 0, 1e15 * x[4], float("nan")
    return x.to(dtype)


def assert_like(found: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    tolerance = ROUNDING[expected.dtype] if tolerance is None else tolerance
    wide, wanted = found.cpu().double(), expected.double()
    assert torch.equal(wide.isfinite(), wanted.isfinite())
    size = float(wanted[wanted.isfinite()].abs().max()) if wanted.isfinite().any() else 0.0
    torch.testing.assert_close(wide, wanted, rtol=0, atol=tolerance * size, equal_nan=True)


def on_card(run: Callable[..., Tensor], *given: Tensor) -> tuple[Tensor, PretendedCard]:
    """What comes out on the card, and what the card counted."""
    with PretendedCard() as card:
        there = [x.to("cuda:0") for x in given]
        card.reset()
        with deferred_refusals():
            found = run(*there)
        waits, launches = card.waits.copy(), card.launches.copy()
        assert found.device.type == "cuda"
        found = found.cpu()
        card.waits, card.launches = waits, launches
        card.to_host -= found.numel() * found.element_size()
        return found, card


def within(card: PretendedCard, name: str, more: int = 0) -> None:
    assert card.waits.total() <= BUDGETS[name] + more, (name, card.waits)
    assert card.to_host <= 8 * 8 * (N + 3) ** 2, (name, card.to_host)
    assert card.launches.total() <= LAUNCHES.get(name, 160), (name, card.launches.total())


def rule_named(name: str, f: int = F) -> vg.Rule:
    return RULES[name](f=0 if name == "average" else f)


def run_rule(rule: vg.Rule) -> Callable[..., Tensor]:
    return lambda x, previous: rule(x, previous if rule.uses_previous else None)


# ------------------------------------------------------------------------------------------------ the card itself


def test_the_pretended_card_counts_what_a_card_would_wait_for() -> None:
    with PretendedCard() as card:
        x = torch.randn(5, 7, device="cuda:0")
        assert (x.device.type, x.is_cuda, (x + x).device.index) == ("cuda", True, 0)
        card.reset()
        assert float(x.sum().cpu()) == pytest.approx(float(x.held.sum()))
        assert card.launches.total() == 1
        assert card.waits.total() == 1
        with pytest.raises(OnTwoDevices):
            x + torch.ones(5, 7)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        card.reset()
        torch.ones(3).pin_memory().to("cuda:0", non_blocking=True)
        assert (card.waits.total(), card.to_card) == (0, 12)
        torch.ones(3).to("cuda:0")
        assert card.waits.total() == 1


# --------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("d", [300, WIDE])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_the_cpus_and_waits_as_often_as_it_may(name: str, d: int, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and d == WIDE:
        pytest.skip("as narrow ones")
    x, rule = vectors(d, dtype), rule_named(name)
    found, card = on_card(run_rule(rule), x, x[2].clone())
    within(card, name)
    assert_like(found, run_rule(rule)(x, x[2].clone()))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("d", [1, 300])
@pytest.mark.parametrize("name", RULES)
def test_hostile_rows_and_single_coordinates(name: str, d: int, dtype: torch.dtype) -> None:
    x, rule = vectors(d, dtype, hostile=True), rule_named(name)
    found, card = on_card(run_rule(rule), x, x[2].clone())
    within(card, name, more=3)  # equal scores, and distances that far vectors have blurred
    assert_like(found, run_rule(rule)(x, x[2].clone()), 1e-5 if dtype == torch.float32 else None)


def test_a_rule_waits_once_for_its_refusal_where_it_is_not_deferred() -> None:
    x = vectors(300)
    with PretendedCard() as card:
        there = x.to("cuda:0")
        for rule in (vg.Median(f=F), vg.MultiKrum(f=F), RULES["aksel"](f=F), RULES["dnc"](f=F), RULES["lasa"](f=F)):
            card.reset()
            rule(there)
            assert card.waits.total() == 1, (rule, card.waits)


SECOND_LOOKS: dict[str, tuple[Callable[[Tensor], Tensor], vg.Rule, int]] = {
    "ties": (lambda x: x[[0, 0, 1, 2, 3, 4, 5]].roll(1, 0).index_copy(0, torch.tensor([3]), -x[1:2]), vg.Krum(f=1), 4),
    "mutual neighbours": (lambda x: x, RULES["bulyan"](f=1), 4),
    "on a line": (lambda x: x[:1] * torch.arange(1.0, 10).unsqueeze(1), RULES["geometric-median"](f=2), 4),
    "equal prefix": (lambda x: torch.cat([x[:1, :4000].expand(9, -1), x.new_ones(9, 1).cumsum(0)], 1), vg.Krum(f=2), 3),
    "rounds": (lambda x: x, RULES["centered-clipping"](f=1, iterations=3), 3),
    "directions": (lambda x: x * torch.logspace(-9, 9, N).unsqueeze(1), RULES["foolsgold"](f=1), 2),
}


@pytest.mark.parametrize("d", [5000, WIDE])
@pytest.mark.parametrize("name", SECOND_LOOKS)
def test_who_looks_again_does_so_once(name: str, d: int) -> None:
    make, rule, waits = SECOND_LOOKS[name]
    x = make(vectors(d))
    found, card = on_card(run_rule(rule), x, x[2].clone())
    assert card.waits.total() <= waits, card.waits
    assert card.to_host <= 8 * 8 * (N + 3) ** 2
    assert_like(found, run_rule(rule)(x, x[2].clone()), 1e-5)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_lexicographic_order_in_one_look_is_that_of_the_cpu(seed: int, mixed: bool) -> None:
    numbers = np.random.default_rng(seed)
    x = torch.from_numpy(numbers.integers(0, 2, (9, 3)).astype(np.float32)).repeat_interleave(600, 1)
    table = np.eye(9)[numbers.permutation(9)] / 3 if mixed else None
    apart = np.ones((9, 9), bool)
    expected = vg.Geometry.of(x).vectors.places(np.arange(9), table, apart)
    with PretendedCard() as card:
        held = vg.Geometry.of(x.to("cuda:0")).vectors
        card.reset()
        found = held.places(np.arange(9), table, apart)
        assert card.waits.total() == 2  # equal vectors among them: the rest of the columns tells nothing more
    np.testing.assert_array_equal(np.argsort(found, kind="stable"), np.argsort(expected, kind="stable"))


@pytest.mark.parametrize(("d", "dtype"), [(ANEW_WIDTH, torch.float64), (WIDE, torch.float32)])
def test_few_coordinates_are_measured_in_double_precision_at_once(
    d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nothing need be measured again: the geometry may say that it is exact."""
    seen: list[torch.dtype] = []
    measure = kernels.squared_distances

    def noted(x: Tensor, extra: Tensor | None = None) -> Tensor:
        seen.append(x.dtype)
        return measure(x, extra)

    monkeypatch.setattr(kernels, "squared_distances", noted)
    with PretendedCard():
        geometry = vg.Geometry.of(vectors(d).to("cuda:0"))
    assert seen == [dtype]
    assert geometry.exact == (dtype == torch.float64)


@pytest.mark.parametrize("mixed", [False, True])
def test_few_columns_at_a_time_decide_alike(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device compares and adds up in panels, as if it had memory for some fifty columns."""
    numbers = np.random.default_rng(5)
    x = torch.from_numpy(numbers.integers(0, 2, (9, 4)).astype(np.float32)).repeat_interleave(450, 1)
    table = np.eye(9)[numbers.permutation(9)] / 3 if mixed else None
    shifted = {name: run_attack(name, ATTACKS[name]()) for name in ("min-max", "min-sum")}
    with PretendedCard():
        held = vg.Geometry.of(x.to("cuda:0")).vectors
        places = held.places(np.arange(9), table, np.ones((9, 9), bool))
    far = {name: on_card(run, vectors(300, torch.float64))[0].cpu() for name, run in shifted.items()}
    monkeypatch.setattr(geometry, "PAIRS", 81 * 53)
    monkeypatch.setattr(spread, "AWAY_WIDTH_THERE", 53)
    with PretendedCard():
        held = vg.Geometry.of(x.to("cuda:0")).vectors
        np.testing.assert_array_equal(held.places(np.arange(9), table, np.ones((9, 9), bool)), places)
    for name, run in shifted.items():
        assert_like(on_card(run, vectors(300, torch.float64))[0], far[name])


def test_doubles_out_of_range() -> None:
    for scale, waits in ((1e170, 3), (1e-170, 3), (1.0, 1)):
        x = vectors(50, torch.float64) * scale
        x[0] = 0
        found, card = on_card(vg.MultiKrum(f=F), x)
        assert card.waits.total() <= waits, card.waits
        assert_like(found, vg.MultiKrum(f=F)(x))


# ------------------------------------------------------------------------------------------------------- mixings


def mixing_named(name: str) -> vg.Mixing:
    return {"bucketing": MIXINGS["bucketing"](s=2), "clipping": MIXINGS["clipping"](c=10.0)}.get(name) or MIXINGS[name](
        f=F  # pyright: ignore[reportCallIssue]
    )


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("d", [1, 300, WIDE])
@pytest.mark.parametrize("name", MIXINGS)
def test_every_mixing_alone(name: str, d: int, hostile: bool) -> None:
    x, mixing = vectors(d, hostile=hostile), mixing_named(name)
    found, card = on_card(mixing, x)
    within(card, name, more=2 * hostile)
    assert_like(found[: 4 if hostile else N], mixing(x)[: 4 if hostile else N])


@pytest.mark.parametrize("d", [300, WIDE])
@pytest.mark.parametrize("rule", ["median", "phocas", "multi-krum", "bulyan", "centered-clipping", "cge", "dnc"])
@pytest.mark.parametrize("name", MIXINGS)
def test_a_mixing_before_a_rule_waits_once(name: str, rule: str, d: int) -> None:
    f = 1 if rule == "bulyan" else 2
    stages, last, x = (mixing_named(name),), rule_named(rule, f), vectors(d)

    def run(x: Tensor, previous: Tensor) -> Tensor:
        return decide(x, stages, last, previous=previous).aggregate

    found, card = on_card(run, x, x[2].clone())
    # Bulyan(f=1) comes to pairs of vectors, whose scores are equal, as are clipped norms and equal mixtures; DnC asks
    # for itself, behind what the mixing asks.
    equal = {"bulyan": 3, "dnc": 3}.get(rule, 2 if rule == "cge" and name in ("arc", "clipping") else 0)
    within(card, name, more=equal)
    assert_like(found, run(x, x[2].clone()), 1e-5)


# ------------------------------------------------------------------------------------------------------- attacks


def run_attack(name: str, attack: vg.Attack, defence: vg.Rule | None = None) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        return attack(
            x[: N - F], F, defence, previous=x[2] if attack.uses_previous else None,
            poisoned=x[N - F :] if attack.poisons else None,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("d", [2, WIDE])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack(name: str, d: int, dtype: torch.dtype) -> None:
    if dtype != torch.float32 and d == WIDE:
        pytest.skip("as narrow ones")
    x, defence = vectors(d, dtype), vg.Median(f=F) if name == "worst-case" else None
    run = run_attack(name, ATTACKS[name](), defence)
    found, card = on_card(run, x)
    # In double precision they look at lengths first, in which unit to compute.
    units = {"min-max": 1, "min-sum": 1, "fang": 1, "worst-case": 2}.get(name, 0) if dtype == torch.float64 else 0
    within(card, "bulyan attack" if name == "bulyan" else name, more=units)
    if name not in ("gaussian", "scattered"):
        assert_like(found, run(x), 1e-4 if name in ("min-max", "min-sum", "worst-case") else None)


def test_the_worst_case_of_a_rule_on_distances_is_found_in_n_x_n() -> None:
    x = vectors(300)
    run = run_attack("worst-case", ATTACKS["worst-case"](), vg.MultiKrum(f=F))
    found, card = on_card(run, x)
    assert card.waits.total() <= 4, card.waits
    assert_like(found, run(x), 1e-4)


def test_an_adversary_that_is_refused_hears_of_it_at_once() -> None:
    honest = vectors(30)[: N - F]
    honest[: F + 1] = float("nan")
    attack = vg.WorstCase(directions=("bulyan",))
    outcomes = []
    for device in ("cpu", "cuda:0"):
        with PretendedCard(), deferred_refusals() as pending:
            try:
                outcomes.append(str(attack(honest.to(device), F, vg.Median(f=F)).cpu().isnan().all()))
            except Refused as error:
                outcomes.append(str(error))
            assert pending == []
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("attack", [ATTACKS["gaussian"](std=2.0), ATTACKS["fang"](target="trimmed-mean")], ids=str)
def test_what_is_drawn_on_a_card_is_a_function_of_the_step(attack: vg.Attack) -> None:
    x = vectors(4000)[: N - F]
    with PretendedCard():
        there, before = x.to("cuda:0"), torch.get_rng_state()
        first, again, other = (
            attack(there, F, random=randomness.generator(1, "attack", step)).cpu() for step in (3, 3, 4)
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    ours = attack(x, F, random=randomness.generator(1, "attack", 3))
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(first.mean(), ours.mean(), rtol=0, atol=0.1)
    torch.testing.assert_close(first.std(), ours.std(), rtol=0.05, atol=0)


# ---------------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("dtype", [torch.float16, *ROUNDING], ids=str)
@pytest.mark.parametrize("stage", [vg.Clip(3.0), vg.Clip(1e9), vg.Clip(2.0, mode="unit"), vg.Momentum(0.9, 0.1)])
def test_transforms_are_the_cpus_and_never_wait(stage: Any, dtype: torch.dtype) -> None:
    x = vectors(70, torch.float32)
    x[3] = 0
    x[5, 7] = float("nan")
    x, memory = x.to(dtype), vectors(71, torch.float32)[:, :70].to(dtype) if stage.remembers else None
    expected, kept = stage(x, memory)
    half = dtype in (torch.float16, torch.bfloat16) and stage.remembers
    slack = 4 * torch.finfo(dtype).eps if half else 1e-15 if dtype == torch.float64 else 0
    for inside in (False, True):
        with PretendedCard() as card:
            there = x.to("cuda:0")
            held = None if memory is None else memory.to("cuda:0")
            card.reset()
            found, remembered = stage(there, held, None, there if inside and memory is None else None)
            assert card.waits.total() == 0, card.waits
            # Clip in the same bits but for the norms' last one; momenta of half types are rounded more than once.
            torch.testing.assert_close(found.cpu(), expected, rtol=slack, atol=slack, equal_nan=True)
            if kept is not None:
                torch.testing.assert_close(remembered.cpu(), kept, rtol=slack, atol=slack, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_scale_that_the_type_does_not_hold(dtype: torch.dtype) -> None:
    x = torch.full((2, 50), torch.finfo(dtype).max / 4, dtype=dtype)
    x[1] = 0.5
    expected = vg.Clip(torch.finfo(dtype).tiny * 100)(x)[0]
    with PretendedCard():
        found = vg.Clip(torch.finfo(dtype).tiny * 100)(x.to("cuda:0"))[0].cpu()
    torch.testing.assert_close(found, expected, rtol=0.03, atol=float(torch.finfo(dtype).smallest_normal))


ALGORITHMS = [
    vg.Algorithm(worker=(vg.Clip(3.0), vg.Momentum(0.9)), rule=vg.Median(f=F)),
    vg.Algorithm(worker=(vg.Momentum(0.9), vg.Momentum(0.5)), rule=vg.MultiKrum(f=F), server=(vg.Momentum(0.5),)),
    vg.Algorithm(worker=(vg.SharedMomentum(0.9, nesterov=True),), rule=vg.Median(f=F)),
    vg.Algorithm(worker=(vg.Momentum(0.9, nesterov=True),), pre=(MIXINGS["nnm"](f=F),), rule=vg.TrimmedMean(f=F)),
]


@pytest.mark.parametrize("given", [False, True], ids=["new", "out"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_an_algorithm_waits_for_distances_alone(algorithm: vg.Algorithm, given: bool) -> None:
    d = 40
    states = [algorithm.init(N, d)]
    parameters = vectors(d)[3]
    with PretendedCard() as card:
        states.append(algorithm.init(N, d, device="cuda:0"))
        for step in range(4):
            gradients = vectors(d) * (step + 1)
            if step == 1:
                gradients[2, 5] = float("inf")  # what is remembered stays what it was
            updates = []
            for place, (state, device) in enumerate(zip(states, ("cpu", "cuda:0"), strict=True)):
                x, at = gradients.clone().to(device), parameters.to(device)
                out = torch.empty_like(x) if given else None
                card.reset()
                with deferred_refusals() as pending:
                    point = algorithm.point(at, state, 0.1)
                    sent, state = algorithm.send(x, state, out)
                    update, states[place] = algorithm.finish(algorithm.decide(sent, state), state)
                assert card.waits.total() <= (place and (1 if algorithm.pre or algorithm.rule.needs_geometry else 0))
                assert len(pending) == (place and not algorithm.rule.needs_geometry)
                updates.append((update.cpu(), point.cpu(), [m.cpu() for m in states[place].worker if m is not None]))
            torch.testing.assert_close(updates[1], updates[0], rtol=1e-5, atol=1e-5)
        assert all(torch.isfinite(m).all() for m in updates[1][2])


# ---------------------------------------------------------------------------------------------------- refusals


def refused_later(stage: Any, *given: Tensor) -> None:
    """Runs a stage and then looks at what it deferred, as a simulation does."""
    with deferred_refusals() as pending:
        stage(*given)
    for one in pending:
        refuse_faulty(one.stage, one.f, int(one.faulty.cpu()))


@pytest.mark.parametrize("name", [*(r for r in RULES if r != "average"), "nnm", "arc"])
def test_refusals_are_those_of_the_cpu_at_once_or_later(name: str) -> None:
    stage: Any = rule_named(name) if name in RULES else mixing_named(name)
    bad, good = vectors(40), vectors(40)
    bad[: F + 1, 3] = float("inf")
    arguments = [good[2]] if name in RULES and stage.uses_previous else []
    with pytest.raises(Refused) as expected:
        stage(bad, *arguments)
    with PretendedCard():
        there, root = bad.to("cuda:0"), [v.to("cuda:0") for v in arguments]
        with pytest.raises(Refused) as found:
            stage(there, *root)
        assert str(found.value) == str(expected.value)
        with pytest.raises(Refused) as later:
            refused_later(stage, there, *root)
        assert str(later.value) == str(expected.value)
        with pytest.raises(Refused):  # at once again
            stage(there, *root)
        after = stage(good.to("cuda:0"), *root)  # nothing is left of it
        assert_like(after, stage(good, *arguments))


@pytest.mark.parametrize("name", ["centered-clipping", "fltrust"])
def test_a_last_aggregate_that_is_not_finite(name: str) -> None:
    x, rule = vectors(40), rule_named(name)
    for spoilt in (float("nan"), float("inf")):
        previous = x[2].clone()
        previous[7] = spoilt
        with PretendedCard(), pytest.raises(Refused, match="needs a finite previous"):
            rule(x.to("cuda:0"), previous.to("cuda:0"))


@pytest.mark.parametrize("name", ["centered-clipping", "fltrust"])
def test_a_last_aggregate_from_the_host_comes_to_the_card(name: str) -> None:
    x, rule = vectors(40), rule_named(name)
    expected = rule(x, x[2])
    for previous in (x[2], x[2].double()):
        with PretendedCard():
            assert_like(rule(x.to("cuda:0"), previous), expected)


# ------------------------------------------------------------------------------------------- somebody's own, and more


@dataclass(frozen=True)
class Outmost(vg.Selecting):
    """The mean without the f vectors that are furthest from the others."""

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: vg.Geometry) -> np.ndarray:
        sums = np.sort(geometry.distances, axis=1)[:, : geometry.n - self.f].sum(1)
        return vg.mean_weights(geometry.smallest(sums, geometry.n - self.f), geometry.n)


@dataclass(frozen=True)
class Quartiles(vg.Coordinatewise):
    """The mean of the middle half."""

    @property
    def needs(self) -> tuple[str, int]:
        return "4f + 1", 4 * self.f + 1

    def statistic(self, n: int) -> tuple[int, int, int]:
        return n // 4, n - n // 4, 0


@dataclass(frozen=True)
class Middle(vg.General):
    """Looks at values, and waits as often as it likes."""

    uses_previous = True

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        vg.refuse_faulty(self, self.f, int((~x.isfinite().all(1)).sum()))
        ranked = x.double().sort(0).values
        return (ranked[self.f] / 2 + ranked[-1 - self.f] / 2).to(x.dtype)


@dataclass(frozen=True)
class Gathered(vg.Mixing):
    """Each vector becomes the mean of itself and the one nearest to it."""

    f: int = 0
    aligned = True

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def weights(self, geometry: vg.Geometry) -> np.ndarray:
        vg.refuse_faulty(self, self.f, geometry.faulty)
        table = np.eye(geometry.n)
        for i in np.flatnonzero(geometry.finite):
            others = np.delete(np.arange(geometry.n), i)
            table[i] = vg.mean_weights(
                [i, *geometry.smallest(geometry.distances[i, others], 1, among=others)], geometry.n
            )
        return table


@dataclass(frozen=True)
class Against(vg.Attack):
    """Against what honest vectors agree on."""

    factor: float = 2.0

    def craft(self, seen: Any) -> Tensor:
        mean, deviation = seen.moments
        return mean - self.factor * deviation * mean.sign() * float(mean.norm() > 0)


@dataclass(frozen=True)
class Averaged(vg.Transform):
    """The mean of all vectors so far, the older ones decaying."""

    decay: float = 0.9
    remembers: ClassVar[bool] = True

    def __call__(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert memory is not None
        moved = self.decay * memory + (1 - self.decay) * x
        return moved, moved


def test_classes_of_ones_own_run_on_a_card() -> None:
    x = vectors(300)
    for rule in (Outmost(f=F), Quartiles(f=F), Middle(f=F)):
        for pre in ((), (Gathered(f=F),)):
            algorithm = vg.Algorithm(worker=(Averaged(0.5),), pre=pre, rule=rule)

            def run(x: Tensor, algorithm: vg.Algorithm = algorithm) -> Tensor:
                sent, state = algorithm.send(x, algorithm.init(N, x.shape[1], device=x.device))
                return algorithm.aggregate(sent, state)[0]

            assert_like(on_card(run, x)[0], run(x))
    assert_like(on_card(run_attack("", Against()), x)[0], run_attack("", Against())(x))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [vg.Median, RULES["signguard"], Quartiles, Middle])
def test_the_contract_of_rules_holds_on_a_card(stage: Any) -> None:
    with PretendedCard():
        testing.check_rule(stage, device="cuda:0", dtype=torch.float32)


@pytest.mark.slow
def test_the_contract_of_mixings_and_attacks_holds_on_a_card() -> None:
    with PretendedCard():
        testing.check_mixing(MIXINGS["clipping"], device="cuda:0")
        for attack in (ATTACKS["gaussian"], ATTACKS["fang"](target="trimmed-mean"), ATTACKS["anti-cge"], Against):
            testing.check_attack(attack, device="cuda:0")


@pytest.mark.parametrize("rule", ["median", "phocas", "bulyan", "multi-krum", "cge", "geometric-median"])
def test_explanations_wait_for_the_decision_and_for_themselves(rule: str) -> None:
    x = vectors(300)
    x[4, 7] = float("nan")
    algorithm = vg.Algorithm(pre=(MIXINGS["nnm"](f=2),), rule=rule_named(rule, 2))
    expected = vg.explain(x, algorithm)
    with PretendedCard() as card:
        there = x.to("cuda:0")
        card.reset()
        with deferred_refusals():
            found = vg.explain(there, algorithm)
        assert card.waits.total() <= 2 + 2 * (rule in ("bulyan", "multi-krum")), card.waits
        assert card.to_host <= 8 * 8 * (N + 3) ** 2
    for field in ("weight", "score", "distance", "norm", "suspicion"):
        mine, theirs = getattr(found, field), getattr(expected, field)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-6)
    assert replace(found, aggregate=None).selected is None or (found.selected == expected.selected).all()


@pytest.mark.parametrize("seed", range(30))
def test_weights_in_columns_on_a_card(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    m, d = int(numbers.integers(1, 12)), int(numbers.integers(1, 9))
    values = numbers.integers(-2, 3, (m, d)).astype(float)
    values[numbers.random((m, d)) < 0.1] = numbers.choice([np.nan, np.inf, -np.inf])
    low = int(numbers.integers(0, m))
    statistic = (low, int(numbers.integers(low + 1, m + 1)), int(numbers.integers(0, m + 1)))
    with np.errstate(invalid="ignore"):
        expected = column_weights(values, *statistic).mean(1)
    with PretendedCard() as card:
        x = torch.from_numpy(values).to("cuda:0")
        card.reset()
        np.testing.assert_allclose(weights_in_columns(x, None, statistic, np.arange(d)), expected, atol=1e-12)
        assert card.waits.total() == 1
