"""The conformance suite: all of ours pass it, and each check catches an object that breaks just that promise."""

from __future__ import annotations

import random as python_random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core.attacks import ATTACKS, Attack, Knowledge
from varangian.core.geometry import Geometry, mean_weights
from varangian.core.mixing import MIXINGS, Mixing
from varangian.core.randomness import BARE, Draw
from varangian.core.rules import RULES
from varangian.core.rules.selecting import krum_scores
from varangian.testing import FINITE, NEAR, WITHIN, Check, ContractError, check_attack, check_mixing, check_rule
from varangian.testing.report import ATTACK_CHECKS, MIXING_CHECKS, RULE_CHECKS


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_the_contract(name: str) -> None:
    report = check_rule(RULES[name])
    weighing = {Check.WEIGHTS} if RULES[name].weighs else set()
    assert set(report.passed) | set(report.left_out) == set(RULE_CHECKS) | weighing


@pytest.mark.parametrize(
    "rule",
    [
        vg.MultiKrum(f=1, m=2, neighbours="n-f-1", distance="plain"),
        vg.Median(f=1, even="lower"),
        vg.Bulyan(f=1, even="lower"),
        vg.CenteredClipping(f=1, tau=0.5, iterations=5),
    ],
    ids=str,
)
def test_so_do_their_variants(rule: vg.Rule) -> None:
    check_rule(rule)


@pytest.mark.parametrize("mixing", [*MIXINGS.values(), vg.Bucketing(3), vg.StaticClipping(0.1)], ids=str)
def test_every_mixing_keeps_the_contract(mixing: Any) -> None:
    report = check_mixing(mixing)
    assert set(report.passed) | set(report.left_out) == set(MIXING_CHECKS)


@pytest.mark.parametrize("attack", [*ATTACKS.values(), vg.Inf("mixed"), vg.Fang("trimmed-mean")], ids=str)
def test_every_attack_keeps_the_contract(attack: Any) -> None:
    report = check_attack(attack)
    assert set(report.passed) | set(report.left_out) == set(ATTACK_CHECKS)


def test_exemptions_are_known_and_have_reasons() -> None:
    kinds = [*RULES.values(), *MIXINGS.values(), *ATTACKS.values()]
    assert all(name in Check.__members__ and reason for kind in kinds for name, reason in kind.exempt.items())
    assert {kind for kind in kinds if "ROBUST" in kind.exempt} == {vg.Average}


@dataclass(frozen=True)
class Shifted(vg.Coordinatewise):
    """The median, which makes less of itself than it could."""

    guarantee = vg.testing.Guarantee("within 0.1 of the origin", lambda stage, honest, previous: (0 * previous, 0.1))
    exempt: ClassVar[dict[str, str]] = {"SCALE": "of one unit", "ROBUST": "not yet"}

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def statistic(self, n: int) -> tuple[int, int, int]:
        return (n - 1) // 2, n // 2 + 1, 0


def test_what_a_class_does_not_claim_it_says_itself() -> None:
    left_out = check_rule(Shifted).left_out
    assert left_out == {Check.SCALE: "of one unit", Check.ROBUST: "not yet"}
    both = check_rule(Shifted, without=[Check.NO_F, "SIGHT"]).left_out
    assert both[Check.NO_F] == both[Check.SIGHT] == "left out by the caller"
    assert "SCALE" in str(check_rule(Shifted))
    assert "of one unit" in str(check_rule(Shifted))


def test_what_a_class_guarantees_it_says_itself() -> None:
    @dataclass(frozen=True)
    class Claims(Shifted):
        exempt: ClassVar[dict[str, str]] = {}

    found = caught(check_rule, Claims)
    assert set(found) == {Check.ROBUST}
    assert "not within 0.1 of the origin: 0.1" in found[Check.ROBUST]
    assert "allows: within the range of the honest values" in " ".join(str(check_rule(vg.Median)).split())


@pytest.mark.parametrize(
    ("exempt", "message"),
    [
        ({"SCALES": "?"}, "Wrong: unknown point of the contract 'SCALES'. Did you mean 'SCALE'? Known: NEEDS, "),
        (("SCALE",), r"""Wrong.exempt must be such as {"SCALE": "tau is a length"}, got ('SCALE',)."""),
    ],
)
def test_wrong_exemptions(exempt: Any, message: str) -> None:
    wrong = dataclass(frozen=True)(type("Wrong", (Shifted,), {"exempt": exempt}))
    with pytest.raises(ValueError, match=re.escape(message)):
        check_rule(wrong)


# ------------------------------------------------------------------------------------- rules that break a promise


@dataclass(frozen=True)
class Sound(vg.General):
    """The median, plainly; those below each break one thing."""

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        faulty = int((~x.isfinite().all(1)).sum())
        if faulty > self.f:
            raise ValueError(f"{self} tolerates {self.f}, got {faulty}.")
        return self.median(x)

    def median(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        ordered = x.nan_to_num(torch.inf, torch.inf, -torch.inf).sort(0).values
        return ((0.5 * ordered[(n - 1) // 2].double()) + 0.5 * ordered[n // 2].double()).to(x.dtype)


def test_the_sound_one_is_sound() -> None:
    report = check_rule(Sound, guarantee=WITHIN)
    assert report.passed == RULE_CHECKS
    assert not report.left_out


@dataclass(frozen=True)
class SilentOnTooFew(Sound):
    def __call__(self, x: Any, previous: Any = None) -> Any:
        try:
            return super().__call__(x, previous)
        except ValueError as error:
            if "got 0" in str(error) or "tolerates" in str(error):
                raise
            return x[0] * 1.0


@dataclass(frozen=True)
class WrongWords(Sound):
    def __call__(self, x: Any, previous: Any = None) -> Any:
        if len(x) < self.min_n:
            raise ValueError("not enough vectors")
        return super().__call__(x, previous)


@dataclass(frozen=True)
class WrongException(Sound):
    def __call__(self, x: Any, previous: Any = None) -> Any:
        if len(x) < self.min_n:
            raise IndexError(f"{self} needs n >= 2f + 1 = {self.min_n} vectors, got {len(x)}.")
        return super().__call__(x, previous)


@dataclass(frozen=True)
class WritesInput(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        answer = super().combine(x, previous)
        x[x.shape[0] // 2] = 0
        return answer


@dataclass(frozen=True)
class ReturnsView(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        answer = super().combine(x, previous)
        same = (x == answer).all(1).nonzero()
        return x[int(same[0])] if len(same) else answer


@dataclass(frozen=True)
class AlwaysSingle(Sound):
    def __call__(self, x: Any, previous: Any = None) -> Any:
        answer = super().__call__(x, previous)
        return answer.float() if isinstance(answer, Tensor) else answer


@dataclass(frozen=True)
class AlwaysTensor(Sound):
    def __call__(self, x: Any, previous: Any = None) -> Any:
        return torch.as_tensor(super().__call__(x, previous))


@dataclass(frozen=True)
class TorchRandom(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return super().combine(x, previous) + 1e-9 * torch.rand(x.shape[1]).to(x)


@dataclass(frozen=True)
class NumpyRandom(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        np.random.rand()  # noqa: NPY002
        return super().combine(x, previous)


@dataclass(frozen=True)
class PythonRandom(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        python_random.random()
        return super().combine(x, previous)


@dataclass(frozen=True)
class Remembers(Sound):
    memory: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        answer = super().combine(x, previous)
        if self.memory and self.memory[-1].shape == answer.shape and self.memory[-1].dtype == answer.dtype:
            answer = 0.5 * answer + 0.5 * self.memory[-1]
        self.memory.append(answer.clone())
        return answer


@dataclass(frozen=True)
class ReusesOutput(Sound):
    buffers: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        answer = super().combine(x, previous)
        buffer = self.buffers.setdefault((x.shape[1], x.dtype), torch.empty_like(answer))
        return buffer.copy_(answer)


@dataclass(frozen=True)
class ReadsMemoryInOrder(Sound):
    """Takes the vectors past the door, behind which they lie row after row."""

    def __call__(self, x: Any, previous: Any = None, step: int = 0) -> Any:
        ordered = torch.as_strided(x, x.shape, (x.shape[1], 1)) if isinstance(x, Tensor) else x
        return Sound.__call__(self, ordered, previous, step)


@dataclass(frozen=True)
class RefusesStrides(Sound):
    def __call__(self, x: Any, previous: Any = None, step: int = 0) -> Any:
        return Sound.__call__(self, x.view(-1).view(x.shape) if isinstance(x, Tensor) else x, previous, step)


@dataclass(frozen=True)
class OneCoordinateTooFew(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return super().combine(x, previous)[: 10_000 if x.shape[1] > 10_000 else None]


@dataclass(frozen=True)
class NeedsTwoCoordinates(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        assert x.shape[1] > 1
        return super().combine(x, previous)


@dataclass(frozen=True)
class RefusesNoF(Sound):
    def __post_init__(self) -> None:
        if self.f < 1:
            raise ValueError("RefusesNoF needs f >= 1, got 0.")


@dataclass(frozen=True)
class DividesByF(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return super().combine(x, previous) * (self.f / self.f)


@dataclass(frozen=True)
class AccumulatesInHalf(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        answer = super().combine(x, previous)
        if x.dtype == torch.float32:
            return answer.bfloat16().to(x.dtype)
        return answer


@dataclass(frozen=True)
class TiesByPlace(vg.Selecting):
    """Krum with argmin: of equal scores the first."""

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 3", 2 * self.f + 3

    def weights(self, geometry: Geometry) -> np.ndarray:
        return mean_weights([int(np.argmin(krum_scores(geometry, self.f)))], geometry.n)


@dataclass(frozen=True)
class FirstWins(Sound):
    def median(self, x: Tensor) -> Tensor:
        return x[0].clone() if bool(x.isfinite().all()) else super().median(x)


@dataclass(frozen=True)
class Shrinks(Sound):
    """Towards the origin: scale-equivariant, not translation-equivariant, nor unanimous."""

    def median(self, x: Tensor) -> Tensor:
        return 0.9 * super().median(x)


@dataclass(frozen=True)
class ShortestOfTwo(Sound):
    """The median, or the middle of its norm: translation matters, agreement does not."""

    def median(self, x: Tensor) -> Tensor:
        answer = super().median(x)
        least = x.nan_to_num(torch.inf, torch.inf, -torch.inf).abs().amin(0)
        return torch.where(answer.abs() > 2 * least, answer.sign() * (0.9 * answer.abs() + 0.1 * least), answer)


@dataclass(frozen=True)
class AbsoluteTolerance(Sound):
    def median(self, x: Tensor) -> Tensor:
        answer = super().median(x)
        return torch.where(answer.abs() < 1e-3, torch.zeros_like(answer), answer)


@dataclass(frozen=True)
class LeaksNaN(Sound):
    def median(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        ordered = x.sort(0).values
        return ordered[n // 2] * 0.5 + ordered[(n - 1) // 2] * 0.5 + 0 * x.sum(0)


@dataclass(frozen=True)
class MeanOfFinite(Sound):
    def median(self, x: Tensor) -> Tensor:
        return x[x.isfinite().all(1)].double().mean(0).to(x.dtype)


@dataclass(frozen=True)
class OverflowsInSingle(Sound):
    """Sums of squares in the vectors' own type."""

    def median(self, x: Tensor) -> Tensor:
        far = (x.nan_to_num() * x.nan_to_num()).sum(1)
        return super().median(x) + 0 * far.amax()


@dataclass(frozen=True)
class NeverRefuses(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return self.median(x).nan_to_num(0, 0, 0)


@dataclass(frozen=True)
class RefusesWithAnAssertion(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        assert int((~x.isfinite().all(1)).sum()) <= self.f
        return self.median(x)


@dataclass(frozen=True)
class WritesPrevious(Sound):
    uses_previous: ClassVar[bool] = True

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        answer = super().combine(x, previous)
        if previous is not None:
            previous.copy_(answer)
        return answer


@dataclass(frozen=True)
class Samples(Sound):
    """Drops the f furthest from the median on a sample of coordinates, drawn anew at each step."""

    draws: ClassVar[bool] = True

    def combine(self, x: Tensor, previous: Tensor | None, draw: Draw = BARE) -> Tensor:  # type: ignore[override]
        middle, columns = super().combine(x, previous), torch.arange(x.shape[1])
        if x.shape[1] > 5_000:
            columns = torch.from_numpy(self.sample(draw).choice(x.shape[1], 5_000, replace=False))
        far = (x.double() - middle.double()).nan_to_num(torch.inf, torch.inf, torch.inf)[:, columns].square().sum(1)
        return x.double()[far.sort(stable=True).indices[: x.shape[0] - self.f]].mean(0).to(x.dtype)

    def sample(self, draw: Draw) -> np.random.Generator:
        return draw.generator("sample")


@dataclass(frozen=True)
class SamplesTheSame(Samples):
    def sample(self, draw: Draw) -> np.random.Generator:
        return np.random.default_rng(0)


@dataclass(frozen=True)
class WithSetting(Sound):
    factor: float = 1.0

    def median(self, x: Tensor) -> Tensor:
        return 1e3 ** (self.factor - 1) * super().median(x)


BROKEN: list[tuple[type[vg.Rule], Check]] = [
    (SilentOnTooFew, Check.NEEDS),
    (WrongWords, Check.NEEDS),
    (WrongException, Check.NEEDS),
    (WritesInput, Check.INPUT),
    (WritesPrevious, Check.INPUT),
    (ReturnsView, Check.OWNERSHIP),
    (AlwaysSingle, Check.KIND),
    (AlwaysTensor, Check.KIND),
    (TorchRandom, Check.REPEATABLE),
    (NumpyRandom, Check.REPEATABLE),
    (PythonRandom, Check.REPEATABLE),
    (Remembers, Check.STATELESS),
    (ReusesOutput, Check.STATELESS),
    (ReadsMemoryInOrder, Check.LAYOUT),
    (RefusesStrides, Check.LAYOUT),
    (OneCoordinateTooFew, Check.SIZES),
    (NeedsTwoCoordinates, Check.SIZES),
    (RefusesNoF, Check.NO_F),
    (DividesByF, Check.NO_F),
    (AccumulatesInHalf, Check.PRECISION),
    (TiesByPlace, Check.PERMUTATION),
    (FirstWins, Check.PERMUTATION),
    (Shrinks, Check.TRANSLATION),
    (ShortestOfTwo, Check.TRANSLATION),
    (AbsoluteTolerance, Check.SCALE),
    (Shrinks, Check.UNANIMITY),
    (AbsoluteTolerance, Check.UNANIMITY),
    (LeaksNaN, Check.ROBUST),
    (MeanOfFinite, Check.ROBUST),
    (OverflowsInSingle, Check.ROBUST),
    (NeverRefuses, Check.REFUSAL),
    (RefusesWithAnAssertion, Check.REFUSAL),
    (SamplesTheSame, Check.SIGHT),
]


def caught(check: Callable[..., object], subject: object, **options: Any) -> dict[Check, str]:
    with pytest.raises(ContractError) as error:
        check(subject, **options)
    assert all(failure.check.value in str(error.value) for failure in error.value.failures)
    return {failure.check: str(failure) for failure in error.value.failures}


@dataclass(frozen=True)
class TakesRowsAsTheyCome(Sound):
    """Wrong wherever vectors did not lie row after row; behind the door they always do."""

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return super().combine(torch.as_strided(x, x.shape, (x.shape[1], 1)), previous)


@dataclass(frozen=True)
class SendsTheFirstRowInMemory(vg.Attack):
    """The same of an attack."""

    def craft(self, seen: Knowledge) -> Tensor:
        d = seen.honest.shape[1]
        return torch.as_strided(seen.honest, (d,), (1,)).clone()


def test_vectors_lie_row_after_row_where_own_code_sees_them() -> None:
    check_rule(TakesRowsAsTheyCome, guarantee=WITHIN)
    x = torch.randn(9, 50)
    for y in (x.t().contiguous().t(), torch.stack([x, x], 2)[:, :, 0]):
        assert torch.equal(SendsTheFirstRowInMemory()(y, f=1)[0], x[0])
        assert torch.equal(TakesRowsAsTheyCome(f=1)(y), TakesRowsAsTheyCome(f=1)(x))


@pytest.mark.parametrize(("rule", "check"), BROKEN, ids=lambda v: v.__name__ if isinstance(v, type) else v.name)
def test_broken_rules_are_caught(rule: type[vg.Rule], check: Check) -> None:
    others = set(RULE_CHECKS) - {check}
    assert check in caught(check_rule, rule, without=others)


@pytest.mark.parametrize("rule", [WritesInput, FirstWins, DividesByF], ids=lambda v: v.__name__)
def test_a_broken_rule_passes_without_the_checks_that_caught_it(rule: type[vg.Rule]) -> None:
    found = caught(check_rule, rule)
    assert set(check_rule(rule, without=set(found)).left_out) == set(found)


@dataclass(frozen=True)
class PlainMean(vg.General):
    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return x.double().mean(0).to(x.dtype)


def test_what_resists_nothing_is_not_said_to_hide_anything() -> None:
    found = caught(check_rule, PlainMean)
    assert set(found) == {Check.ROBUST, Check.REFUSAL}
    assert "call vg.refuse_faulty(self, self.f, count)" in found[Check.REFUSAL]


def test_who_makes_no_rule_hears_what_a_rule_is_derived_from() -> None:
    derived = r"its class \(derived from vg.General, vg.Selecting or vg.Coordinatewise\)"
    for wrong in (int, lambda f: None, lambda x: x.mean(0)):
        with pytest.raises(ValueError, match=derived) as error:
            check_rule(wrong)  # type: ignore[arg-type]
        assert type(error.value) is ValueError


def test_a_sample_drawn_anew_at_each_step_sees_everything() -> None:
    check_rule(Samples, without=set(RULE_CHECKS) - {Check.SIGHT})
    assert check_rule(vg.DivideAndConquer(f=1, rounds=1, sample=2_000), without=set(RULE_CHECKS) - {Check.SIGHT}).passed
    assert check_rule(vg.SignGuard(f=1), without=set(RULE_CHECKS) - {Check.SIGHT}).passed


def test_each_check_of_rules_catches_something() -> None:
    assert {check for _, check in BROKEN} == set(RULE_CHECKS)


def test_the_smallest_example_is_told() -> None:
    failure = caught(check_rule, MeanOfFinite, without=set(RULE_CHECKS) - {Check.ROBUST})[Check.ROBUST]
    assert "n = 3, f = 1, d = 1" in failure
    assert "x = [[" in failure


def test_a_rule_with_settings_keeps_them_while_f_varies() -> None:
    most = {*RULE_CHECKS, Check.WEIGHTS} - {Check.SCALE, Check.NEEDS}
    report = check_rule(lambda f: vg.MultiKrum(f, m=1), without=most)
    assert report.passed == (Check.NEEDS, Check.SCALE)
    assert report.left_out[Check.ROBUST] == "left out by the caller"
    assert Check.ROBUST in caught(check_rule, WithSetting(f=1, factor=2.0), without=set(RULE_CHECKS) - {Check.ROBUST})
    check_rule(WithSetting(f=1, factor=1.0), without=set(RULE_CHECKS) - {Check.ROBUST})


def test_a_guarantee_can_be_weaker_or_stronger() -> None:
    without = set(RULE_CHECKS) - {Check.ROBUST}
    assert Check.ROBUST in caught(check_rule, vg.Phocas, guarantee=WITHIN, without=without)
    check_rule(vg.Phocas, guarantee=NEAR, without=without)
    assert Check.ROBUST in caught(check_rule, MeanOfFinite, guarantee=NEAR, without=without)


# ---------------------------------------------------------------------------------- where hostile vectors stand


@dataclass(frozen=True)
class OneOfThem(Sound):
    """The vector at one place, as a share of all."""

    place: float = 0.0

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return x[round(self.place * (x.shape[0] - 1))].clone()


@dataclass(frozen=True)
class NaNSortsLast(Sound):
    """Drops the f longest: among NaN, which argsort puts last, wherever they stand."""

    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        kept = x.double().norm(dim=1).argsort()[: x.shape[0] - self.f]
        return (x.double()[kept] - x.double()[-1].nan_to_num(0, 0, 0) + x.double()[0]).mean(0).to(x.dtype)


@dataclass(frozen=True)
class AllButTheLast(Sound):
    def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
        return x[: x.shape[0] - self.f].mean(0)


@pytest.mark.parametrize(
    "rule", [*(OneOfThem(1, place) for place in (0.0, 0.25, 0.5, 1.0)), NaNSortsLast(1), AllButTheLast(1)], ids=str
)
def test_hostile_vectors_stand_everywhere(rule: vg.Rule) -> None:
    """Whoever reads one place, or only looks at the last ones, is found by what is hostile, whatever its order does."""
    assert Check.ROBUST in caught(check_rule, rule, without=set(RULE_CHECKS) - {Check.ROBUST})


@pytest.mark.parametrize("place", [0, 2])
def test_a_rule_may_trust_a_place(place: int) -> None:
    without = set(RULE_CHECKS) - {Check.ROBUST}
    check_rule(vg.MoNNA(f=1, pivot=place), without=without)  # knows its own
    trusting = OneOfThem(1, 0.0)
    check_rule(trusting, without=without, trusted=0)
    assert Check.ROBUST in caught(check_rule, trusting, without=without, trusted=1)


def test_a_vector_that_is_not_finite_is_counted_wherever_it_stands() -> None:
    @dataclass(frozen=True)
    class LooksAtTheLast(Sound):
        def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
            if int((~x[-self.f - 1 :].isfinite().all(1)).sum()) > self.f:
                raise ValueError("too many")
            return self.median(x).nan_to_num(0, 0, 0)

    assert Check.REFUSAL in caught(check_rule, LooksAtTheLast, without=set(RULE_CHECKS) - {Check.REFUSAL})


# ------------------------------------------------------------------------------- device, data type, size, and words


@dataclass(frozen=True)
class WrongWhereLong(Sound):
    """What was wrong once: half types laid out by columns, from 2^20 numbers on."""

    def __call__(self, x: Any, previous: Any = None, step: int = 0) -> Any:
        answer = Sound.__call__(self, x, previous, step)
        if isinstance(x, Tensor) and x.dtype == torch.float16 and x.stride(0) == 1 and x.numel() >= 1 << 20:
            return answer + 1
        return answer


def test_long_vectors_are_tried_where_asked() -> None:
    check_rule(WrongWhereLong, guarantee=WITHIN)
    found = caught(check_rule, WrongWhereLong, guarantee=WITHIN, large=True)
    assert set(found) == {Check.LAYOUT}
    assert "torch.float16" in found[Check.LAYOUT]
    assert "by columns" in found[Check.LAYOUT]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", [Sound, vg.MultiKrum, vg.TrimmedMean], ids=lambda kind: kind.__name__)
def test_one_data_type(rule: type[vg.Rule], dtype: torch.dtype) -> None:
    check_rule(rule, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_one_data_type_of_mixings_and_attacks(dtype: torch.dtype) -> None:
    check_mixing(vg.NearestNeighborMixing, dtype=dtype)
    check_attack(vg.Empire, dtype=dtype)


def test_a_fault_of_one_data_type_is_found_by_it_alone() -> None:
    @dataclass(frozen=True)
    class WrongInHalf(Sound):
        def median(self, x: Tensor) -> Tensor:
            return super().median(x) * (2 if x.dtype == torch.bfloat16 else 1)

    check_rule(WrongInHalf, dtype=torch.float32)
    assert Check.UNANIMITY in caught(check_rule, WrongInHalf, dtype=torch.bfloat16)


@pytest.mark.parametrize("check", [check_rule, check_mixing, check_attack], ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "wrong",
    [lambda x: x.mean(0), lambda f: f, "median", str, None, 3, torch.mean, vg.Rule, vg.Experiment],
    ids=["mean", "identity", "name", "str", "None", "3", "torch.mean", "Rule", "Experiment"],
)
def test_what_is_no_rule_is_refused_in_one_line(check: Callable[..., object], wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"^{check.__name__} needs an? ") as error:
        check(wrong)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nowhere"}, "device 'nowhere' cannot be used here"),
        ({"device": "cuda:97"}, "device 'cuda:97' cannot be used here"),
        ({"dtype": torch.int64}, "dtype must be one of"),
    ],
    ids=str,
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    for check, subject in ((check_rule, vg.Median), (check_mixing, vg.NearestNeighborMixing), (check_attack, vg.Zero)):
        with pytest.raises(ValueError, match=message) as error:
            check(subject, **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError, IndexError, AssertionError, KeyError])
def test_whatever_plain_vectors_are_answered_by_is_told_once(error: type[Exception]) -> None:
    @dataclass(frozen=True)
    class Breaks(vg.General):
        @property
        def needs(self) -> tuple[str, int]:
            return "2f + 1", 2 * self.f + 1

        def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
            raise error("of its own")

    with pytest.raises(ContractError, match=r"of its own.*; nothing else was tried") as raised:
        check_rule(Breaks)
    assert len(raised.value.failures) == 1
    assert isinstance(raised.value.__cause__, error)


def test_a_mistake_of_pythons_kind_is_told_once() -> None:
    @dataclass(frozen=True)
    class Forgot(vg.General):
        @property
        def needs(self) -> tuple[str, int]:
            return "2f + 1", 2 * self.f + 1

        def middle(self) -> Tensor:
            return torch.zeros(3)

        def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
            return self.middle(x)  # type: ignore[call-arg]

    with pytest.raises(ContractError) as error:
        check_rule(Forgot)
    assert len(error.value.failures) == 1
    assert "takes 1 positional argument but 2 were given; nothing else was tried" in str(error.value)
    assert isinstance(error.value.__cause__, TypeError)  # with the line of the user's own code

    @dataclass(frozen=True)
    class Misspelt(Attack):
        def craft(self, seen: Knowledge) -> Tensor:
            return seen.means  # type: ignore[attr-defined]

    with pytest.raises(ContractError, match="has no attribute 'means'; nothing else was tried") as error:
        check_attack(Misspelt)
    assert len(error.value.failures) == 1


@pytest.mark.parametrize(
    "report",
    [lambda: check_rule(vg.LASA), lambda: check_rule(vg.MultiKrum(f=1, m=2)), lambda: check_mixing(vg.AdaptiveClipping),
     lambda: check_attack(vg.Gaussian)],
)  # fmt: skip
def test_a_report_is_a_table(report: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = report()
    for columns, width in (("80", 80), ("120", 120), ("300", 120), ("20", 60)):
        monkeypatch.setenv("COLUMNS", columns)
        lines = str(made).splitlines()
        head = f"{made.subject}: {len(made.passed)} points of the contract hold, {len(made.left_out)} not tried"
        assert lines[0] == head
        assert max(len(line) for line in lines[1:]) <= width
        assert len(lines) >= 1 + len(made.passed) + len(made.left_out)
        for check in (*made.passed, *made.left_out):
            assert sum(line.split()[:1] == [check.name] for line in lines) == 1
        for why in made.left_out.values():
            assert why in " ".join(" ".join(lines).split())


# ------------------------------------------------------------------------------------------------------- mixings


@dataclass(frozen=True)
class BadMixing(Mixing):
    f: int = 0
    fault: str = "none"
    memory: list[float] = field(default_factory=list, compare=False, repr=False)

    @property
    def needs(self) -> tuple[str, int]:
        return "2f + 1", 2 * self.f + 1

    def rows(self, n: int) -> int:
        return n + (self.fault == "rows")

    def rows_for(self, m: int) -> int:
        return m

    def weights(self, geometry: Geometry) -> np.ndarray:
        n = geometry.n
        if self.fault != "refusal":
            vg.NearestNeighborMixing(self.f).weights(geometry)
        if self.fault == "place":
            return np.eye(n) * 0.5 + np.eye(n)[[0] * n] * 0.5
        if self.fault == "leak":
            return np.full((n, n), 1 / n)
        if self.fault == "half":
            return np.eye(n) * 0.5
        if self.fault == "memory":
            self.memory.append(1.0)
            return np.eye(n) / len(self.memory)
        return np.eye(n)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("rows", Check.ROWS),
        ("place", Check.PERMUTATION),
        ("leak", Check.ROBUST),
        ("half", Check.UNANIMITY),
        ("half", Check.TRANSLATION),
        ("memory", Check.STATELESS),
        ("memory", Check.REPEATABLE),
        ("refusal", Check.REFUSAL),
    ],
)
def test_broken_mixings_are_caught(fault: str, check: Check) -> None:
    options = {"guarantee": FINITE} if fault != "leak" else {}
    without = set(MIXING_CHECKS) - {check}
    assert check in caught(check_mixing, BadMixing(fault=fault), without=without, **options)


@dataclass(frozen=True)
class ShufflesTheSame(vg.Bucketing):
    def weights(self, geometry: Geometry, draw: Draw = BARE) -> np.ndarray:
        return super().weights(geometry, BARE)


def test_a_mixing_that_draws_the_same_at_each_step_is_caught() -> None:
    without = set(MIXING_CHECKS) - {Check.SIGHT}
    assert Check.SIGHT in caught(check_mixing, ShufflesTheSame, without=without)
    check_mixing(vg.Bucketing, without=without)
    check_mixing(vg.Bucketing(s=5), without=without)


def test_a_mixing_that_does_nothing_is_sound() -> None:
    assert check_mixing(BadMixing).passed == MIXING_CHECKS


# ------------------------------------------------------------------------------------------------------- attacks


@dataclass(frozen=True)
class BadAttack(Attack):
    fault: str = "none"
    memory: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    def craft(self, seen: Knowledge) -> Tensor:
        mean, honest = seen.mean.clone(), seen.honest
        if self.fault == "input":
            honest[0] = 0
        elif self.fault == "view":
            return honest[: seen.f]
        elif self.fault == "single":
            return mean.float()
        elif self.fault == "global":
            return mean + torch.rand(()).to(mean)
        elif self.fault == "moves":
            torch.rand(())
        elif self.fault == "state":
            self.memory.append(mean)
            return self.memory[-2].mean() + mean if len(self.memory) > 1 else mean
        elif self.fault == "buffer":
            if not self.memory or self.memory[-1].shape != (seen.f, mean.numel()):
                self.memory.append(mean.expand(seen.f, -1).clone())
            return self.memory[-1].copy_(mean.expand(seen.f, -1))
        elif self.fault == "one row":
            return mean.unsqueeze(0)
        elif self.fault == "coarse" and mean.dtype == torch.float32:
            return mean.bfloat16().to(mean.dtype)
        elif self.fault == "divides":
            return mean / seen.moments[1]
        return mean


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("input", Check.INPUT),
        ("view", Check.OWNERSHIP),
        ("single", Check.KIND),
        ("global", Check.REPEATABLE),
        ("moves", Check.REPEATABLE),
        ("state", Check.STATELESS),
        ("buffer", Check.STATELESS),
        ("one row", Check.SIZES),
        ("coarse", Check.PRECISION),
        ("divides", Check.FINITE),
    ],
)
def test_broken_attacks_are_caught(fault: str, check: Check) -> None:
    assert check in caught(check_attack, BadAttack(fault))


@dataclass(frozen=True)
class Follows(Attack):
    uses_previous = True

    def craft(self, seen: Knowledge) -> Tensor:
        return seen.mean - seen.previous  # pyright: ignore[reportOperatorIssue]


def test_an_attack_that_forgets_the_first_step_is_told() -> None:
    """It would fail at step 0 of every run."""
    with pytest.raises(ContractError) as raised:
        check_attack(Follows)
    assert [failure.check for failure in raised.value.failures] == [Check.SIZES]
    assert "seen.previous is None, as in the first step of a run: raised TypeError" in str(raised.value)


def test_an_attack_that_sends_the_mean_is_sound() -> None:
    assert check_attack(BadAttack).passed == ATTACK_CHECKS


# --------------------------------------------------------------------------- attackers that do not all send the same


@dataclass(frozen=True)
class Each(vg.Attack):
    """A row for each attacker, as it should be."""

    fault: str = ""

    def craft(self, seen: Knowledge) -> Tensor:
        f, h, d = seen.f, seen.honest.shape[0], seen.honest.shape[1]
        turn = torch.arange(f, device=seen.honest.device) % h
        if self.fault == "two":
            return seen.honest[:2].clone()
        if self.fault == "one for each honest":
            return seen.honest.clone()
        if self.fault == "flat":
            return seen.honest[turn].reshape(-1)
        if self.fault == "copies of a row":
            return seen.mean.clone().expand(f, -1)
        if self.fault == "a view":
            return seen.honest[:f]
        if self.fault == "the first f":
            return torch.stack([seen.honest[j] for j in range(f)])
        if self.fault == "single precision":
            return torch.randn(f, d, generator=torch.Generator().manual_seed(1))
        if self.fault == "global numbers":
            return seen.mean + torch.randn(f, d, dtype=seen.mean.dtype)
        if self.fault == "deviation of one":
            sent = seen.honest[turn]
            return sent + sent.std(0)
        return seen.honest[turn]


def test_attacks_that_send_a_row_each_keep_the_contract() -> None:
    assert len(check_attack(Each).passed) == len(ATTACK_CHECKS)
    check_attack(Each("copies of a row"))
    for attack in (vg.Scattered("empire"), vg.Divided("label-flip", "min-max"), vg.Divided("mimic(warmup=2)")):
        check_attack(attack)


@pytest.mark.parametrize(
    ("fault", "point", "said"),
    [
        ("two", Check.SIZES, "must send [d] = [1] or [f, d] = [1, 1] of torch.float64, got shape [2, 1]"),
        ("one for each honest", Check.SIZES, "got shape [4, 1]"),
        ("flat", Check.SIZES, "[f, d] = [2, 1] of torch.float64, got shape [2]"),
        ("a view", Check.OWNERSHIP, "writing to what is sent changed the tensor given"),
        ("the first f", Check.SIZES, "raised IndexError"),
        ("single precision", Check.KIND, "torch.float32 on cpu"),
        ("global numbers", Check.REPEATABLE, "the global random numbers were moved"),
        ("deviation of one", Check.FINITE, "nan"),
    ],
)
@pytest.mark.filterwarnings("ignore:std")
def test_faults_of_attacks_that_send_a_row_each_are_found(fault: str, point: Check, said: str) -> None:
    with pytest.raises(ContractError) as raised:
        check_attack(Each(fault))
    [found] = [failure.message for failure in raised.value.failures if failure.check is point]
    assert said in found
