"""The contract of rules, mixings and attacks, point by point, for ours and for yours.

    from varangian.testing import check_rule
    check_rule(MyRule)          # a class or a function of f, or check_rule(MyRule(f=2, option=3)) for other settings

Each point of the contract is a :class:`Check`. All are tried; one :class:`ContractError` lists those that failed, each
with the smallest example found. What a rule does not claim is left out by name, in sight: ``without=(Check.SCALE,)``,
or in :data:`EXEMPT` for the rules of this library, with the reason. Plain loops over fixed examples: seconds per rule,
the same every time, no package beyond those that the library needs.
"""

from __future__ import annotations

import random as python_random
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core import rules
from ..core.attacks import Attack, Gaussian, Inf, NaN
from ..core.checks import cut, shown
from ..core.kernels import columns
from ..core.mixing import AdaptiveClipping, Bucketing, Mixing, NearestNeighborMixing, StaticClipping
from ..core.randomness import generator
from ..core.rules import Median, Rule

Stage = TypeVar("Stage", Rule, Mixing)
CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Check(Enum):
    """One point of the contract. The value says what is promised."""

    NEEDS = "min_n vectors are enough, with fewer a ValueError says what is needed and what came"
    INPUT = "the input is never written"
    OWNERSHIP = "the output is memory of its own, never a view"
    KIND = "tensor in, tensor out; array in, array out; lists of either too; dtype, device and values kept"
    REPEATABLE = "same input, same output; the global random numbers are neither used nor moved"
    STATELESS = "what was asked before does not matter"
    LAYOUT = "how the input lies in memory does not matter"
    SIZES = "any d from 1 and any number of vectors gives the right shape, finite where the input is"
    NO_F = "f = 0 is allowed"
    PRECISION = "half, single and double precision agree within rounding"
    PERMUTATION = "the order of the vectors does not matter, ties included"
    TRANSLATION = "moving all vectors moves the answer"
    SCALE = "scaling all vectors by a positive number scales the answer"
    UNANIMITY = "vectors that agree are the answer"
    ROBUST = "at most f vectors of any value leave the answer finite and within what the definition allows"
    REFUSAL = "more than f vectors with NaN or infinity: a ValueError"
    SIGHT = "what is drawn at random is drawn anew at each step: no coordinate is out of sight for ever"
    ROWS = "rows(n) vectors come out of n, and rows_for(m) is the least n that gives m"
    FINITE = "finite vectors are answered by finite ones"


RULE_CHECKS = tuple(c for c in Check if c not in (Check.ROWS, Check.FINITE))
MIXING_CHECKS = tuple(c for c in Check if c is not Check.FINITE)
ATTACK_CHECKS = (
    Check.INPUT, Check.OWNERSHIP, Check.KIND, Check.REPEATABLE, Check.STATELESS, Check.LAYOUT, Check.SIZES,
    Check.PRECISION, Check.FINITE,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Failure:
    """A point that does not hold, with the smallest example found.

    Attributes:
        check: the point.
        message: what happened.
        x: the vectors for which it happened.
        f: how many may be, or are, Byzantine.
    """

    check: Check
    message: str
    x: Tensor
    f: int

    def __str__(self) -> str:
        n, d = self.x.shape
        text = f"{self.check.name} ({self.check.value}): n = {n}, f = {self.f}, d = {d}, {self.x.dtype}: {self.message}"
        if 0 < n * d <= 60:
            rows = np.array2string(self.x.double().cpu().numpy(), precision=9, max_line_width=110)
            text += f"\n    x = {rows}".replace("\n", "\n    ")
        return text


class ContractError(AssertionError):
    """The checks that failed: ``.failures``, one for each; where one raised, its exception is the cause of this."""

    def __init__(self, subject: object, failures: list[Failure]) -> None:
        self.failures = failures
        points = "".join(f"\n  {failure}" for failure in failures)
        super().__init__(f"{subject} breaks the contract in {len(failures)} point(s):{points}")


@dataclass(frozen=True)
class Report:
    """What was checked; as text a table, a line or two for each point.

    Attributes:
        passed: points that hold.
        left_out: points that were not tried, and why.
        subject: what was checked, as text.
    """

    passed: tuple[Check, ...]
    left_out: Mapping[Check, str]
    subject: str = ""

    def __str__(self) -> str:
        head = f"{self.subject}: {len(self.passed)} points of the contract hold, {len(self.left_out)} not tried"
        lines = [(check.name, check.value) for check in self.passed]
        lines += [(check.name, f"not tried: {why}") for check, why in self.left_out.items()]
        width = max((len(name) for name, _ in lines), default=0) + 4
        return "\n".join(
            [cut(head)]
            + [
                textwrap.fill(
                    text, 120, initial_indent=f"  {name}".ljust(width), subsequent_indent=" " * width,
                    break_on_hyphens=False,
                )
                for name, text in lines
            ]
        )  # fmt: skip


@dataclass(frozen=True)
class _Setting:
    """Where and in what the examples of one suite are.

    Attributes:
        device: where tensors are.
        dtype: of all examples whose check is not about data types; None for the usual ones.
        large: also at sizes from which kernels go other ways.
        trusted: the place of a vector that the rule trusts, so that no hostile one stands there; or None.
    """

    device: torch.device = CPU
    dtype: torch.dtype | None = None
    large: bool = False
    trusted: int | None = None

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return DTYPES if self.dtype is None else (self.dtype,)


_SETTING: ContextVar[_Setting] = ContextVar("setting", default=_Setting())  # noqa: B039  it is frozen


@contextmanager
def _set(device: str | torch.device, dtype: torch.dtype | None, large: bool, trusted: int | None) -> Iterator[None]:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {shown(dtype)}.")
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch's own, of a device that is none or is not here
        raise ValueError(f"device {shown(device)} cannot be used here: {cut(str(error))}") from None
    token = _SETTING.set(_Setting(place, dtype, large, trusted))
    try:
        yield
    finally:
        _SETTING.reset(token)


def _there(x: Tensor) -> Tensor:
    """Memory of its own, on the device of the suite."""
    return x.clone() if _SETTING.get().device.type == "cpu" else x.to(_SETTING.get().device)


def _here(x: Any) -> Tensor:
    """A tensor in main memory, whatever kind came out."""
    return torch.as_tensor(x).cpu()


# ---------------------------------------------------------------------------------------- what is and is not claimed


@dataclass(frozen=True)
class Guarantee:
    """How far at most f hostile vectors may move an answer.

    Attributes:
        text: in words.
        ball: (rule or mixing, honest [h, d], last aggregate [d]) to the centre and radius that the answer stays in.
        box: whether it also stays in the range of the honest values, coordinate by coordinate.
    """

    text: str
    ball: Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, float]] | None = None
    box: bool = False


def spread(honest: np.ndarray) -> float:
    """Root mean square distance of the honest vectors to their mean."""
    return float(np.sqrt(np.square(honest - honest.mean(0)).sum(1).mean()))


def _near(stage: Any, honest: np.ndarray, previous: np.ndarray) -> tuple[np.ndarray, float]:
    n = honest.shape[0] + stage.f
    ratio = 1 + stage.f / max(n - 2 * stage.f, 1)
    proved = stage.kappa_bound(n) if isinstance(stage, Rule) else None
    return honest.mean(0), (4 * ratio * np.sqrt(n) if proved is None else np.sqrt(proved)) * spread(honest)


def _longest(honest: np.ndarray, previous: np.ndarray) -> float:
    return float(np.sqrt(np.square(np.concatenate([honest, previous[None]])).sum(1)).max())


NEAR = Guarantee(
    "within sqrt(kappa) spreads of the honest mean where kappa is proved, otherwise a generous 4 sqrt(n) n' of them,"
    " n' = (n - f) / (n - 2f)",
    _near,
)
WITHIN = Guarantee("within the range of the honest values, coordinate by coordinate, and near", _near, box=True)
NO_LONGER = Guarantee(
    "no longer than the longest honest vector or the last aggregate",
    lambda stage, honest, previous: (np.zeros_like(previous), _longest(honest, previous)),
)
FINITE = Guarantee("finite")

GUARANTEES: dict[type[Rule] | type[Mixing], Guarantee] = {
    rules.Median: WITHIN,
    rules.TrimmedMean: WITHIN,
    rules.ComparativeGradientElimination: NO_LONGER,
    rules.FLTrust: NO_LONGER,
    rules.ClippedClustering: NO_LONGER,
    rules.FLAME: NO_LONGER,
    rules.SignGuard: NO_LONGER,
    rules.LASA: NO_LONGER,
    rules.FoolsGold: FINITE,
    rules.DivideAndConquer: FINITE,
    rules.CenteredClipping: Guarantee(
        "within tau a step of the last aggregate",
        lambda rule, honest, previous: (previous, rule.tau * rule.iterations),
    ),
    NearestNeighborMixing: NEAR,
    AdaptiveClipping: NO_LONGER,
    StaticClipping: FINITE,
    Bucketing: FINITE,
}
"""What hostile vectors cannot do, for rules and mixings of which less or more than :data:`NEAR` is known."""

_NORMS = "looks at norms or angles, which a translation changes"
EXEMPT: dict[type[Rule] | type[Mixing] | type[Attack], dict[Check, str]] = {
    rules.Average: {
        Check.ROBUST: "tolerates nothing",
        Check.REFUSAL: "NaN in, NaN out: there is no defence to fail closed",
        Check.SIGHT: "looks at nobody",
    },
    rules.ComparativeGradientElimination: {Check.TRANSLATION: _NORMS},
    rules.CenteredClipping: {Check.SCALE: "tau is a length"},
    rules.MoNNA: {Check.PERMUTATION: "trusts the vector at the pivot's place"},
    rules.FLTrust: {Check.TRANSLATION: _NORMS},
    rules.FoolsGold: {
        Check.TRANSLATION: _NORMS,
        Check.UNANIMITY: "vectors that are alike are Sybils to it: the answer is null",
        Check.SIGHT: "does not mind how long a single vector is",
    },
    rules.ClippedClustering: {Check.TRANSLATION: _NORMS},
    rules.FLAME: {Check.TRANSLATION: _NORMS},
    rules.SignGuard: {Check.TRANSLATION: _NORMS},
    rules.LASA: {Check.TRANSLATION: _NORMS, Check.UNANIMITY: "sparsifies what it averages"},
    Bucketing: {
        Check.TRANSLATION: "shuffles by norms",
        Check.REFUSAL: "declares no f",
    },
    AdaptiveClipping: {Check.TRANSLATION: _NORMS},
    StaticClipping: {
        Check.TRANSLATION: _NORMS,
        Check.SCALE: "c is a length",
        Check.UNANIMITY: "shortens long vectors even where they agree",
        Check.REFUSAL: "declares no f",
    },
    NaN: {Check.FINITE: "not finite on purpose"},
    Inf: {Check.FINITE: "not finite on purpose"},
    Gaussian: {Check.FINITE: "its noise exceeds the range of half precision where std is large"},
}
"""What the rules, mixings and attacks of this library do not claim, each with the reason."""


# ---------------------------------------------------------------------------------------------------- the examples


def _type(dtype: torch.dtype | None = None) -> torch.dtype:
    """The data type of an example: that of the suite, else the given one, else double precision."""
    return _SETTING.get().dtype or dtype or torch.float64


def vectors(n: int, d: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """[n, d] a cloud around a point that is not the origin."""
    random = generator(seed, "testing")
    return torch.from_numpy(random.standard_normal((n, d)) + random.standard_normal(d)).to(_type(dtype))


def lattice(n: int, d: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """[n, d] of -1, 0 and 1: ties and duplicates all over."""
    return torch.from_numpy(generator(seed, "testing").integers(-1, 2, (n, d))).to(_type(dtype))


def eighths(n: int, d: int, seed: int = 0) -> Tensor:
    """[n, d] multiples of 1/8: moved and scaled by powers of two without rounding."""
    return (vectors(n, d, seed) * 8).round() / 8


def hostile(kind: int, rows: int, d: int, dtype: torch.dtype, seed: int, honest: Tensor | None = None) -> Tensor:
    """[rows, d] of values that break careless code: one of ``len(HOSTILE)`` kinds."""
    if not rows:
        return torch.empty(0, d, dtype=dtype)
    random = generator(seed, "hostile")
    limit = torch.finfo(dtype)
    named = HOSTILE[kind]
    if named == "copies of an honest vector" and honest is not None:
        return honest[:1].expand(rows, d).clone()
    if named == "rows of different kinds":
        parts = [
            hostile(i % (len(HOSTILE) - 1), 1, d, dtype, seed + i, honest)
            for i in range(kind + seed, kind + seed + rows)
        ]
        return torch.cat(parts)
    if named == "almost copies":
        base = random.standard_normal(d) * 10.0 ** random.integers(-1, 4)
        rounding = limit.eps * random.integers(-3, 4, (rows, d))
        return torch.from_numpy(base * (1 + rounding)).to(dtype)
    big, tiny = min(1e38, limit.max / 4), float(np.finfo(np.float32).smallest_subnormal)
    pool = {
        "NaN": [np.nan],
        "+infinity": [np.inf],
        "-infinity": [-np.inf],
        "both infinities": [np.inf, -np.inf],
        "one NaN": [0.0],
        "one infinity": [1.0],
        "+1e38": [big],
        "-1e38": [-big],
        "+-1e38": [big, -big],
        "the greatest number": [limit.max, limit.min],
        "+-1e30": [min(1e30, big), -min(1e30, big)],
        "1e6": [min(1e6, big)],
        "denormal": [tiny, -tiny],
        "null": [0.0],
        "huge and tiny": [big, tiny, -big, 0.0, 1.0],
        "anything": [np.nan, np.inf, -np.inf, big, -big, tiny, 0.0, 1.0],
        "copies of an honest vector": [1.0],
        "a little off": [3.0, -3.0],
    }[named]
    values = random.choice(pool, (rows, d))
    if named in ("one NaN", "one infinity"):
        values[:, int(random.integers(d))] = np.nan if named == "one NaN" else -np.inf
    return torch.from_numpy(values).to(dtype)


HOSTILE = (
    "NaN", "+infinity", "-infinity", "both infinities", "one NaN", "one infinity", "+1e38", "-1e38", "+-1e38",
    "the greatest number", "+-1e30", "1e6", "denormal", "null", "huge and tiny", "anything",
    "copies of an honest vector", "almost copies", "a little off", "rows of different kinds",
)  # fmt: skip
"""Kinds of hostile vectors."""

Found = Iterator[tuple[str, Tensor, int]]  # what went wrong, for which vectors, with which f; the smallest first


# ----------------------------------------------------------------------------------------------- rules and mixings


def check_rule(
    rule: Rule | Callable[[int], Rule],
    without: Collection[Check] = (),
    guarantee: Guarantee | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    large: bool = False,
    trusted: int | None = None,
) -> Report:
    """Checks that a rule keeps the contract.

    Args:
        rule: a rule, whose other settings are kept while f varies; or its class, or any function of f.
        without: points that the rule does not claim.
        guarantee: what hostile vectors cannot do; by default :data:`NEAR`, for rules of this library what
            :data:`GUARANTEES` says.
        device: where the vectors are.
        dtype: of all vectors; by default double precision, and all four where a point is about data types.
        large: also vectors so long that this library's kernels go another way, in every layout and data type: seconds
            more.
        trusted: the place of a vector that the rule trusts by definition: no hostile vector is put there.

    Raises:
        ContractError: with all points that do not hold.
        ValueError: something that is no rule and makes none, a device that is not here.

    Example:
        >>> import varangian as vg
        >>> len(check_rule(vg.Median).passed)
        17
        >>> print(str(check_rule(vg.Median)).splitlines()[0])
        Median: 17 points of the contract hold, 0 not tried
    """
    make = _family("check_rule", rule, Rule)
    one = _any_of(make)
    if trusted is None and isinstance(one, rules.MoNNA):
        trusted = one.pivot
    with _set(device, dtype, large, trusted):
        return _check_stage(_name_of(rule), make, type(one), RULE_CHECKS, without, guarantee)


def check_mixing(
    mixing: Mixing | Callable[[int], Mixing],
    without: Collection[Check] = (),
    guarantee: Guarantee | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    large: bool = False,
) -> Report:
    """Checks that a mixing keeps the contract; arguments as for :func:`check_rule`.

    Where vector i becomes vector i, the guarantee is about those that were honest.

    Example:
        >>> import varangian as vg
        >>> sorted(check.name for check in check_mixing(vg.AdaptiveClipping).left_out)
        ['TRANSLATION']
    """
    make = _family("check_mixing", mixing, Mixing)
    with _set(device, dtype, large, None):
        return _check_stage(_name_of(mixing), make, type(_any_of(make)), MIXING_CHECKS, without, guarantee)


def _check_stage(
    subject: str,
    make: Make,
    kind: type[Rule] | type[Mixing],
    checks: tuple[Check, ...],
    without: Collection[Check],
    guarantee: Guarantee | None,
) -> Report:
    exempt = dict.fromkeys(without, "left out by the caller") | EXEMPT.get(kind, {})
    promise = GUARANTEES.get(kind, NEAR) if guarantee is None else guarantee
    _try_once(subject, make)
    return _run(subject, checks, exempt, lambda check: _STAGE_CHECKS[check](make, promise))


def _name_of(subject: Any) -> str:
    """MultiKrum(f=2), or the name of a class or a function."""
    return getattr(subject, "__name__", None) or str(subject)


_BUGS = (TypeError, AttributeError, NameError, NotImplementedError)


def _try_once(subject: str, make: Make) -> None:
    """Raises where plain vectors are answered by a mistake of Python's kind: every check would say the same again."""
    for stage, n, f in _members(make):
        x = vectors(n, 3)
        try:
            _answer(stage, x, f, _previous(stage, x))
        except _Raised as error:
            if not isinstance(error.cause, _BUGS):
                return
            text = f"raised {type(error.cause).__name__}: {error.cause}; nothing else was tried"
            raise ContractError(subject, [Failure(Check.NEEDS, text, x, f)]) from error.cause
        return


def _run(
    subject: str, checks: Iterable[Check], exempt: Mapping[Check, str], examples: Callable[[Check], Found]
) -> Report:
    passed, failures, causes = [], [], []
    for check in checks:
        if check in exempt:
            continue
        try:
            failure = next(examples(check), None)
        except _Raised as error:
            failure = (f"raised {type(error.cause).__name__}: {error.cause}", error.x, error.f)
            causes.append(error.cause)
        if failure is None:
            passed.append(check)
        else:
            failures.append(Failure(check, *failure))
    if failures:
        raise ContractError(subject, failures) from (causes[0] if causes else None)
    return Report(tuple(passed), dict(exempt), subject)


class _Raised(Exception):
    """An object under test raised where it must answer."""

    def __init__(self, cause: Exception, x: Tensor, f: int) -> None:
        super().__init__(str(cause))
        self.cause, self.x, self.f = cause, x, f


_WANTED = {
    Rule: (
        "a rule, its class (derived from vg.General, vg.Selecting or vg.Coordinatewise), or a function of f that "
        "makes one"
    ),
    Mixing: "a mixing, its class (derived from vg.Mixing), or a function of f that makes one",
    Attack: "an attack, its class (derived from vg.Attack), or a function that makes one",
}


def _family(who: str, stage: Any, kind: type[Rule] | type[Mixing]) -> Callable[[int], Any]:
    """f to a rule or mixing; a mixing without f is what it is whatever f."""
    wrong = f"{who} needs {_WANTED[kind]}, got {_named(stage)}"
    if isinstance(stage, kind):
        known = [field.name for field in fields(stage)]
        return (lambda f: replace(stage, f=f)) if "f" in known else lambda f: stage
    if not callable(stage) or (isinstance(stage, type) and not (issubclass(stage, kind) and is_dataclass(stage))):
        raise ValueError(f"{wrong}.")
    takes_f = not isinstance(stage, type) or "f" in [field.name for field in fields(stage)]

    def make(f: int) -> Any:
        try:
            made = stage(f) if takes_f else stage()  # pyright: ignore[reportCallIssue]
        except ValueError:
            raise
        except Exception as error:
            raise _NoFamily(f"{wrong}, which raises {type(error).__name__}: {cut(str(error))}") from error
        if not isinstance(made, kind):
            raise _NoFamily(f"{wrong}, which makes {shown(made)} of f = {f}.")
        return made

    return make


def _named(value: Any) -> str:
    """For a message: the name of a class or a function, else the value."""
    return getattr(value, "__name__", None) or shown(value)


class _NoFamily(ValueError):
    """What should make a rule of f makes none."""


def _any_of(make: Callable[[int], Stage]) -> Stage:
    for f in (1, 2):
        try:
            return make(f)
        except _NoFamily as error:  # its name is nobody's business
            raise ValueError(str(error)) from error.__cause__
        except ValueError:  # perhaps options that ask for another f
            continue
    return make(3)


def _members(
    make: Callable[[int], Stage], least: int = 1, extra: tuple[int, ...] = (0, 5)
) -> Iterator[tuple[Stage, int, int]]:
    """(rule, n, f), small ones first."""
    for f in range(least, 4):
        try:
            stage = make(f)
        except ValueError:  # whether f = 0 is allowed is a check of its own
            continue
        for more in extra:
            yield stage, stage.min_n + more if isinstance(stage, Rule) else max(stage.min_n, 3) + more, f


def _previous(stage: Rule | Mixing, x: Tensor) -> Tensor | None:
    """A last aggregate, for rules that use it: near the first vectors."""
    if isinstance(stage, Rule) and stage.uses_previous:
        return (0.75 * x[: max(x.shape[0] - stage.f, 1)].double().mean(0)).to(x.dtype)
    return None


def _ask(stage: Rule | Mixing, x: Any, previous: Tensor | None = None) -> Any:
    return stage(x) if previous is None else stage(x, previous=previous)  # type: ignore[call-arg]


def _must(stage: Rule | Mixing, given: Any, previous: Tensor | None, x: Tensor, f: int) -> Any:
    """The answer to x, given in whatever kind, where there must be one."""
    try:
        return _ask(stage, given, previous)
    except Exception as error:
        raise _Raised(error, x, f) from error


def _answer(stage: Rule | Mixing, x: Tensor, f: int, previous: Tensor | None = None) -> Tensor:
    """The answer to a tensor, in main memory: [d] for a rule, [m, d] for a mixing."""
    out = _must(stage, _there(x), previous, x, f)
    if not isinstance(out, Tensor):
        raise _Raised(TypeError(f"{type(out).__name__} came out of a tensor"), x, f)
    return out.cpu()


def _differ(a: Tensor, b: Tensor, tolerance: float) -> str | None:
    """In words how two answers differ; None where they do not."""
    if a.shape != b.shape:
        return f"shape {list(a.shape)} instead of {list(b.shape)}"
    a, b = a.double(), b.double()
    gap = (a - b).abs()
    gap[(a == b) | (a.isnan() & b.isnan())] = 0
    if bool((gap <= tolerance).all()):
        return None
    return f"{_short(a)} instead of {_short(b)}"


def _short(v: Tensor) -> str:
    return np.array2string(v.double().cpu().numpy(), precision=6, threshold=8, max_line_width=200).replace("\n", " ")


def _rounding(x: Tensor) -> float:
    """What answers that are equal but for rounding may differ by: 1e-6 of the size, more in half precision."""
    return max(1e-6, 16 * torch.finfo(x.dtype).eps) * _size(x)


def _size(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.double().abs().max()) if finite.numel() else 1.0


Make = Callable[[int], Any]


def _check_needs(make: Make, promise: Guarantee) -> Found:
    for f in range(4):
        try:
            stage = make(f)
        except ValueError:
            continue
        least = stage.min_n
        for n in sorted({0, 1, least - 1} - {least} - set(range(least + 1, 2))):
            x = vectors(n, 2)
            given = _there(x)
            form = rf"{re.escape(str(stage))} needs n >= (.+ = )?{least} vectors, got {n}\."
            try:
                stage(given)
            except ValueError as error:
                if n and not re.fullmatch(form, str(error)):
                    wanted = f"{stage} needs n >= [formula = ]{least} vectors, got {n}."
                    yield f"the message should be {wanted!r}, not {str(error)!r}", x, f
            except Exception as error:
                yield f"raised {type(error).__name__} ({error}) instead of ValueError", x, f
            else:
                yield f"answered although min_n = {least}", x, f
        x = vectors(least, 2)
        _answer(stage, x, f, _previous(stage, x))


def _inputs(x: Tensor) -> Iterator[tuple[str, Any]]:
    """The same vectors in each kind that is accepted; memory of their own."""
    yield "tensor", _there(x)
    yield "list of tensors", list(_there(x))
    if x.dtype != torch.bfloat16:
        yield "array", x.numpy().copy()
        yield "list of arrays", list(x.numpy().copy())


def _stacked(x: Any) -> Tensor:
    return torch.stack([_here(v) for v in x]) if isinstance(x, list) else _here(x)


def _check_input(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in _members(make, extra=(0, 4)):
        for x in (vectors(n, 4, n), lattice(n, 4, n, torch.float32), vectors(n, 3, n, torch.float16)):
            for name, given in _inputs(x):
                previous = _previous(stage, x)
                kept = None if previous is None else previous.clone()
                _must(stage, given, previous, x, f)
                if not torch.equal(_stacked(given), x):
                    yield f"the {name} given was written to", x, f
                if previous is not None and kept is not None and not torch.equal(previous, kept):
                    yield "the last aggregate was written to", x, f


def _check_ownership(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in _members(make):
        for x in (vectors(n, 3), vectors(n, 1), vectors(1, 3).expand(n, 3).clone(), lattice(n, 2, n)):
            for name, given in _inputs(x):
                previous = _previous(stage, x)
                out = _must(stage, given, previous, x, f)
                before = None if previous is None else previous.clone()
                out[...] = 99.0
                if not torch.equal(_stacked(given), x):
                    yield f"writing to the answer changed the {name} given", x, f
                if previous is not None and before is not None and not torch.equal(previous, before):
                    yield "writing to the answer changed the last aggregate", x, f


def _check_kind(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in _members(make, extra=(0, 3)):
        for dtype in _SETTING.get().dtypes:
            x = vectors(n, 5, n, dtype)
            previous = _previous(stage, x)
            expected = _answer(stage, x, f, previous)
            came = torch.as_tensor(_must(stage, _there(x), previous, x, f))
            if came.dtype != dtype or came.device != _SETTING.get().device:
                yield f"{came.dtype} on {came.device} came out", x, f
            for name, given in _inputs(x):
                out = _must(stage, given, previous, x, f)
                wanted = np.ndarray if name.endswith(("array", "arrays")) else Tensor
                if not isinstance(out, wanted):
                    yield f"{type(out).__name__} came out of a {name}", x, f
                elif torch.as_tensor(out).dtype != dtype:
                    yield f"{out.dtype} came out of a {name} of {dtype}", x, f
                elif problem := _differ(_here(out), expected, _elsewhere(expected)):
                    yield f"a {name} gives {problem}, which a tensor gives", x, f


def _global_state() -> tuple[bytes, bytes, str]:
    _, key, *rest = np.random.get_state()  # noqa: NPY002  the point is whether somebody moved it
    legacy = np.asarray(key).tobytes() + repr(rest).encode()
    return bytes(torch.get_rng_state().numpy()), legacy, repr(python_random.getstate())


def _seeded(seed: int, call: Callable[[], Any]) -> Any:
    """The answer with the global random numbers set, which are put back."""
    kept = torch.get_rng_state(), np.random.get_state(), python_random.getstate()  # noqa: NPY002
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        python_random.seed(seed)
        return call()
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        python_random.setstate(kept[2])


def _check_repeatable(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in _members(make):
        for x in (vectors(n, 4, n), lattice(n, 4, n)):
            previous = _previous(stage, x)
            before = _global_state()
            first = _answer(stage, x, f, previous)
            if _global_state() != before:
                yield "the global random numbers were moved", x, f
            for seed in (1, 2):
                again = _seeded(seed, lambda: _answer(stage, x, f, previous))  # noqa: B023  called at once
                if problem := _differ(again, first, 0.0):
                    yield f"a second call gives {problem}", x, f


def _check_stateless(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in _members(make):
        x, other = vectors(n, 4, n), 10 * vectors(n, 4, n + 1)
        previous = _previous(stage, x)
        first = _answer(stage, x, f, previous)
        kept = first.clone()
        _answer(stage, other, f, previous)
        if problem := _differ(first, kept, 0.0):
            yield f"a later call changed an earlier answer: {problem}", x, f
        first[...] = 99.0
        if problem := _differ(_answer(stage, x, f, previous), kept, 0.0):
            yield f"after a call with other vectors the answer is {problem}", x, f
        _answer(stage, vectors(n, 7), f, _previous(stage, vectors(n, 7)))


def _layouts(x: Tensor) -> Iterator[tuple[str, Any]]:
    n, d = x.shape
    x = _there(x)
    yield "by columns", x.t().contiguous().t()
    wide = x.new_full((n, 3 * d), torch.nan)
    wide[:, ::3] = x
    yield "every third column", wide[:, ::3]
    tall = x.new_full((2 * n, d), torch.nan)
    tall[::2] = x
    yield "every other row", tall[::2]
    flat = x.new_full((n * d + 1,), torch.nan)
    flat[1:] = x.flatten()
    yield "from the second number of a block on", flat[1:].view(n, d)
    inner = x.new_full((n, d + 2), torch.nan)
    inner[:, 1:-1] = x
    yield "columns out of the middle", inner[:, 1:-1]
    if x.dtype != torch.bfloat16:
        yield "reversed array", x.cpu().numpy()[::-1].copy()[::-1]
        yield "array by columns", np.asfortranarray(x.cpu().numpy())
        fixed = x.cpu().numpy().copy()
        fixed.setflags(write=False)
        yield "array that cannot be written", fixed


def _large(make: Make) -> Iterator[tuple[Any, int, int, int, torch.dtype]]:
    """(rule, n, f, d, dtype) beyond the size from which kernels go other ways, where such are asked for."""
    if _SETTING.get().large:
        stage, n, f = next(_members(make, extra=(2,)))
        for dtype in _SETTING.get().dtypes:
            yield stage, n, f, -(-columns.WORTH // n) + 77, dtype


def _check_layout(make: Make, promise: Guarantee) -> Found:
    small = ((1, torch.float64), (5, torch.float32), (5, torch.float16))
    cases = [(stage, n, f, d, _type(dtype)) for stage, n, f in _members(make, extra=(0, 2)) for d, dtype in small]
    for stage, n, f, d, dtype in [*cases, *_large(make)]:
        x = vectors(n, d, n, dtype)
        previous = _previous(stage, x)
        expected = _answer(stage, x, f, previous)
        tolerance = max(4 * torch.finfo(dtype).eps * _size(x), _elsewhere(x))
        for name, given in _layouts(x):
            out = _here(_must(stage, given, previous, x, f))
            if problem := _differ(out, expected, tolerance):
                yield f"{name} it gives {problem}", x, f


def _elsewhere(x: Tensor) -> float:
    """What an answer of another device than the processor may differ by from that of the processor."""
    return 0.0 if _SETTING.get().device.type == "cpu" else _rounding(x)


def _check_sizes(make: Make, promise: Guarantee) -> Found:
    cases = [
        (stage, n, f, d, _type(torch.float32))
        for stage, n, f in [*_members(make), *_members(lambda f: make(1), 3, (40,))]
        for d in ((1, 2, 17, 20_000) if n < 10 else (1, 3))
    ]
    for stage, n, f, d, dtype in [*cases, *_large(make)]:
        for x in (vectors(n, d, n, dtype), lattice(n, d, n))[: 1 if d > 100 else 2]:
            out = _answer(stage, x, f, _previous(stage, x))
            wanted = [d] if isinstance(stage, Rule) else [stage.rows(n), d]
            if list(out.shape) != wanted:
                yield f"shape {list(out.shape)} came out instead of {wanted}", x, f
            elif not bool(out.isfinite().all()):
                yield f"{_short(out)} came out of finite vectors", x, f


def _check_no_f(make: Make, promise: Guarantee) -> Found:
    try:
        stage = make(0)
    except Exception as error:
        yield f"f = 0 raised {type(error).__name__}: {error}", vectors(0, 1), 0
        return
    for n in (stage.min_n, stage.min_n + 1, stage.min_n + 5):
        for d in (1, 4):
            for x in (vectors(n, d, n), lattice(n, d, n)):
                out = _answer(stage, x, 0, _previous(stage, x))
                if not bool(out.isfinite().all()):
                    yield f"{_short(out)} came out of finite vectors", x, 0


def _check_precision(make: Make, promise: Guarantee) -> Found:
    # d > 1: on a line the sums of distances to two middle vectors are equal, but for rounding
    types = [dtype for dtype in _SETTING.get().dtypes if dtype != torch.float64]
    cases = [(*member, d, dtype) for member in _members(make) for d in (2, 6, 300) for dtype in types]
    for stage, n, f, d, dtype in [*cases, *(one for one in _large(make) if one[-1] in types)]:
        x = vectors(n, d, n + d, dtype)
        previous = _previous(stage, x)
        wide = _answer(stage, x.double(), f, None if previous is None else previous.double())
        tolerance = 16 * torch.finfo(dtype).eps * _size(x)
        if problem := _differ(_answer(stage, x, f, previous), wide, tolerance):
            yield f"{problem} in double precision", x, f


def _in_order(y: Tensor) -> Tensor:
    """The rows of a mixing's answer in an order that does not depend on theirs."""
    if y.ndim == 1:
        return y
    along = y.double() @ torch.from_numpy(generator(0, "order").random(y.shape[1]) + 1)
    return y[along.argsort()]


def _check_permutation(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in _members(make, least=0, extra=(0, 1)):
        for d in (1, 3):
            few = min(f, n - 1)
            with_duplicates = vectors(n, d, n)[torch.arange(n) // 2]
            attacked = torch.cat([vectors(n - few, d, n), vectors(1, d, 7).expand(few, d)])
            mirrored = torch.cat([vectors(n // 2, d, n), -vectors(n // 2, d, n), torch.zeros(n % 2, d).double()])
            for x in (vectors(n, d, n), lattice(n, d, n), with_duplicates, attacked, mirrored):
                previous = _previous(stage, x)
                expected = _in_order(_answer(stage, x, f, previous))
                for seed in range(2):
                    moved = x[torch.from_numpy(generator(seed, "order").permutation(n))]
                    out = _in_order(_answer(stage, moved, f, previous))
                    if problem := _differ(out, expected, _rounding(x)):
                        yield f"{problem} once the vectors are in another order", x, f


def _check_translation(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in _members(make, least=0):
        for d in (1, 2, 5):
            offset = torch.arange(d).double() * 8 - 64
            # No ties: a trimmed mean is rounded, so which of two values is nearer to it may change with their place.
            # In double precision whatever the suite's: moved and rounded, half types are other vectors.
            x = vectors(n, d, n).double()
            previous = _previous(stage, x)
            expected = _in_order(_answer(stage, x, f, previous)) + offset
            out = _answer(stage, x + offset, f, None if previous is None else previous + offset)
            if problem := _differ(_in_order(out), expected, 1e-6 * _size(x + offset)):
                yield f"{problem} once all vectors move by {_short(offset)}", x, f


def _check_scale(make: Make, promise: Guarantee) -> Found:
    single, double = torch.float32, torch.float64
    for stage, n, f in _members(make, least=0, extra=(0, 6)):
        for d in (1, 4):
            for x in (eighths(n, d, n), lattice(n, d, n)):
                previous = _previous(stage, x)
                expected = _in_order(_answer(stage, x, f, previous))
                for factor, wanted in ((2.0, double), (2.0**40, single), (2.0**-20, double), (2.0**-30, single)):
                    dtype = _type(wanted)
                    if dtype == torch.float16 and factor != 2:  # out of its range
                        continue
                    scaled = (x * factor).to(dtype)
                    before = None if previous is None else (previous * factor).to(dtype)
                    out = _in_order(_answer(stage, scaled, f, before)).double() / factor
                    if problem := _differ(out, expected, _rounding(x)):
                        yield f"{problem} once all vectors are scaled by {factor:g} (and the answer back)", x, f


def _check_unanimity(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in _members(make, least=0, extra=(0, 5)):
        for d in (1, 3):
            tiny = float(np.finfo(np.float32).smallest_subnormal)
            cases = [(factor, torch.float64) for factor in (1.0, 0.0, 1e30)]
            cases += [(factor, torch.float32) for factor in (1e-3, 1e30, 1e-30, 3 * tiny)]
            for factor, wanted in cases:
                dtype = _type(wanted)
                v = (vectors(1, d, 5) * (1e4 if dtype == torch.float16 and factor > 1 else factor)).to(dtype)
                x = v.expand(n, d).clone()
                previous = v[0].clone() if isinstance(stage, Rule) and stage.uses_previous else None
                for row in _answer(stage, x, f, previous).reshape(-1, d):
                    if problem := _differ(row, v[0], _rounding(v)):
                        yield problem, x, f


def _check_robust(make: Make, promise: Guarantee) -> Found:
    small = [
        (stage, n, f, kind, d, _type(dtype), size)
        for stage, n, f in _members(make, extra=(0, 5))
        for kind in range(len(HOSTILE))
        for d, dtype, size in (_SETTINGS[f] if f < 3 else (_SETTINGS[3][(kind + n) % 3],))
    ]
    few = [HOSTILE.index(name) for name in ("NaN", "+1e38", "a little off")]
    large = [(stage, n, f, kind, d, dtype, 1.0) for stage, n, f, d, dtype in _large(make) for kind in few]
    for stage, n, f, kind, d, dtype, size in [*small, *large]:
        rows = min(f, n - 1)
        honest = (vectors(n - rows, d, n + kind) * size).to(dtype)
        bad = hostile(kind, rows, d, dtype, n + d, honest)
        previous = _previous(stage, honest)
        for taken in _places(n, rows, kind):
            x = torch.empty(n, d, dtype=dtype)
            x[taken], x[~taken] = bad, honest
            out = _answer(stage, x, f, previous)
            if problem := broken_promise(stage, honest, out, previous, promise, x, ~taken):
                yield f"{HOSTILE[kind]}, rows {taken.nonzero().flatten().tolist()}: {problem}", x, f


def _places(n: int, rows: int, kind: int) -> list[Tensor]:
    """[n] which rows are hostile: the last, the first, a stretch between that moves on from kind to kind, scattered
    ones; a single NaN or huge vector stands in every place."""
    free = torch.tensor([row for row in range(n) if row != _SETTING.get().trusted])
    stretches = free.numel() - rows + 1
    everywhere = rows == 1 and HOSTILE[kind] in ("NaN", "+1e38")
    starts = [stretches - 1, 0, *(range(1, stretches - 1) if everywhere else [(kind + 1) % stretches])]
    chosen = [free[start : start + rows] for start in dict.fromkeys(starts)]
    if rows > 1:
        chosen.append(free[torch.from_numpy(generator(n + kind, "places").permutation(free.numel())[:rows])])
    return [torch.isin(torch.arange(n), places) for places in chosen]


_SETTINGS: dict[int, tuple[tuple[int, torch.dtype, float], ...]] = {
    1: ((1, torch.float64, 1.0), (1, torch.float32, 1.0), (5, torch.float32, 1.0), (2, torch.float16, 1.0)),
    2: ((3, torch.float64, 1e-12), (2, torch.float32, 1e-12)),
    3: ((2, torch.float64, 1.0), (4, torch.float32, 1.0), (1, torch.bfloat16, 1.0)),
}
"""d, data type and size of the honest vectors, for each f."""


def broken_promise(
    stage: Rule | Mixing,
    honest: Tensor,
    out: Tensor,
    previous: Tensor | None,
    promise: Guarantee,
    x: Tensor,
    places: Tensor | None = None,
) -> str | None:
    """In words how an answer to hostile vectors breaks a guarantee; None where it does not.

    ``places`` [n] says which of the vectors x are the honest ones; by default the first.
    """
    if isinstance(stage, Mixing):
        spoilt = int((~out.isfinite().all(1)).sum())
        faulty = int((~x.isfinite().all(1)).sum())
        if spoilt > faulty:
            return f"{faulty} vectors that are not finite spoilt {spoilt}"
        if out.shape[0] != x.shape[0]:
            return None
        out = out[: honest.shape[0]] if places is None else out[places]
    if not bool(out.isfinite().all()):
        return f"{_short(out)} came out"
    good, wide = honest.double().numpy(), out.double().numpy()
    rounding = 8 * torch.finfo(out.dtype).eps * max(_size(honest), 0.0 if previous is None else _size(previous))
    rounding += float(np.finfo(np.float32).smallest_subnormal) if out.dtype != torch.float16 else 1e-7
    if promise.box and not ((good.min(0) - rounding <= wide) & (wide <= good.max(0) + rounding)).all():
        return f"{_short(out)} is out of the range of the honest values"
    if promise.ball is not None:
        last = np.zeros(good.shape[1]) if previous is None else previous.double().numpy()
        centre, radius = promise.ball(stage, good, last)
        with np.errstate(over="ignore"):
            gap = float(np.sqrt(np.square(wide - centre).sum(-1)).max())
        if gap > radius * (1 + 1e-5) + rounding * np.sqrt(good.shape[1]):
            return (
                f"{_short(out)} is {gap:.6g} from {_short(torch.from_numpy(centre))}, not {promise.text}: {radius:.6g}"
            )
    return None


def _check_refusal(make: Make, promise: Guarantee) -> Found:
    values = ((torch.nan, torch.float64), (torch.inf, torch.float32), (-torch.inf, torch.float16))
    for stage, n, f in _members(make, least=0):
        for faulty in sorted({min(f + 1, n), n}):
            for number, (value, dtype) in enumerate(values):
                for where in (slice(None), 1):
                    x = vectors(n, 3, n, dtype)
                    rows = torch.arange(n).roll(-number * (n // 2))[
                        n - faulty :
                    ]  # the last, from the middle, the first
                    x[rows if where == 1 else rows.unsqueeze(1), where] = value
                    try:
                        out = _ask(stage, _there(x), _previous(stage, vectors(n, 3, n, dtype)))
                    except ValueError:
                        continue
                    except Exception as error:
                        yield f"raised {type(error).__name__} ({error}) instead of ValueError", x, f
                    else:
                        yield (
                            f"{faulty} vectors are not finite and the answer is {_short(out)}; count them and call "
                            "vg.refuse_faulty(self, self.f, count)",
                            x,
                            f,
                        )


LONG = 20_001  # coordinates where it is tried what is looked at: beyond usual samples of them
STEPS = 100  # so many steps are for ever


def _check_sight(make: Make, promise: Guarantee) -> Found:
    stage, n, f = next(_members(make, extra=(4,)))
    if isinstance(stage, Mixing):
        x = vectors(max(n, stage.rows_for(3)), 3)
        answers = [stage(_there(x), step=step).cpu() for step in range(8)]
        if stage.draws and all(torch.equal(answer, answers[0]) for answer in answers):
            yield "it draws, and the same in 8 steps", x, f
        return
    taken = _places(n, 1, 0)[0]
    if _moved_in_sight(stage, n, f, taken):
        return  # nothing need be hidden from it: ROBUST has said so
    honest = vectors(n - 1, LONG, n)
    previous = _previous(stage, honest)
    x = torch.empty(n, LONG, dtype=honest.dtype)
    x[~taken], x[taken] = honest, honest.double().mean(0).to(honest.dtype)
    usual, place = x[taken][0].clone(), int(taken.nonzero())
    tried = generator(0, "sight").permutation(LONG)[:100].tolist()
    for k in tried:
        x[place, k] = 1e4
        for step in range(STEPS):
            try:
                out = stage(_there(x), previous=previous, step=step)
            except Exception as error:
                raise _Raised(error, x, f) from error
            if abs(float(out[k]) - float(usual[k])) < 1e2:
                break
        else:
            yield (
                f"1e4 in coordinate {k} of one vector, which elsewhere is the mean of the others, passes {STEPS} steps",
                x,
                f,
            )
        x[place, k] = usual[k]


def _moved_in_sight(stage: Rule, n: int, f: int, taken: Tensor) -> bool:
    """Whether the same size moves the answer where there are few coordinates, and one vector has it in all of them."""
    honest = vectors(n - 1, 3, n)
    x = torch.full((n, 3), 1e4, dtype=honest.dtype)
    x[~taken] = honest
    gap = _answer(stage, x, f, _previous(stage, honest)).double() - honest.double().mean(0)
    return not bool((gap.abs() < 1e2).all())


def _check_rows(make: Make, promise: Guarantee) -> Found:
    for mixing, n, f in _members(make, least=0):
        x = vectors(n, 2, n)
        rows = mixing.rows(n)
        if _answer(mixing, x, f).shape[0] != rows:
            yield f"rows({n}) is {rows} and {_answer(mixing, x, f).shape[0]} came out", x, f
        least = mixing.rows_for(rows)
        if mixing.rows(least) != rows or (least > 1 and mixing.rows(least - 1) == rows):
            yield f"rows_for({rows}) = {least} is not the least n that gives {rows}", x, f


_STAGE_CHECKS: dict[Check, Callable[[Make, Guarantee], Found]] = {
    Check.NEEDS: _check_needs,
    Check.INPUT: _check_input,
    Check.OWNERSHIP: _check_ownership,
    Check.KIND: _check_kind,
    Check.REPEATABLE: _check_repeatable,
    Check.STATELESS: _check_stateless,
    Check.LAYOUT: _check_layout,
    Check.SIZES: _check_sizes,
    Check.NO_F: _check_no_f,
    Check.PRECISION: _check_precision,
    Check.PERMUTATION: _check_permutation,
    Check.TRANSLATION: _check_translation,
    Check.SCALE: _check_scale,
    Check.UNANIMITY: _check_unanimity,
    Check.ROBUST: _check_robust,
    Check.REFUSAL: _check_refusal,
    Check.SIGHT: _check_sight,
    Check.ROWS: _check_rows,
}


# --------------------------------------------------------------------------------------------------------- attacks


def check_attack(
    attack: Attack | Callable[[], Attack],
    without: Collection[Check] = (),
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Report:
    """Checks that an attack keeps the contract: honest vectors [h, d] and any f to new vectors [f, d].

    Attacks that need a defence, a last aggregate or vectors learnt from flipped labels are given them.

    Example:
        >>> import varangian as vg
        >>> check_attack(vg.NaN).left_out
        {<Check.FINITE: 'finite vectors are answered by finite ones'>: 'not finite on purpose'}
    """
    subject = attack
    if not isinstance(attack, Attack):
        wrong = f"check_attack needs {_WANTED[Attack]}, got {_named(attack)}"
        if not callable(attack) or (isinstance(attack, type) and not issubclass(attack, Attack)):
            raise ValueError(f"{wrong}.")
        try:
            subject = attack()
        except Exception as error:
            raise ValueError(f"{wrong}, which raises {type(error).__name__}: {cut(str(error))}") from error
        if not isinstance(subject, Attack):
            raise ValueError(f"{wrong}, which makes {shown(subject)}.")
    assert isinstance(subject, Attack)
    exempt = dict.fromkeys(without, "left out by the caller") | EXEMPT.get(type(subject), {})
    with _set(device, dtype, False, None):
        x = vectors(5, 3)
        try:
            _attacked(subject, _there(x), 1, x)
        except _Raised as error:
            if isinstance(error.cause, _BUGS):
                text = f"raised {type(error.cause).__name__}: {error.cause}; nothing else was tried"
                raise ContractError(_name_of(attack), [Failure(Check.SIZES, text, x, 1)]) from error.cause
        return _run(_name_of(attack), ATTACK_CHECKS, exempt, lambda check: _ATTACK_CHECKS[check](subject))


def _attacked(attack: Attack, given: Any, f: int, x: Tensor) -> Any:
    """What an attack sends, given all that it may know; the f in the defence is another than the one that attack."""
    h, d = x.shape
    defence = Median(f=min(f, (h + f - 1) // 2))
    flipped = -x[torch.arange(f) % h]
    try:
        return attack(given, f, defence, x.double().mean(0).to(x.dtype), generator(h * d, "attack"), flipped)
    except Exception as error:
        raise _Raised(error, x, f) from error


def _sent(attack: Attack, x: Tensor, f: int) -> Tensor:
    out = _attacked(attack, _there(x), f, x)
    if not isinstance(out, Tensor):
        raise _Raised(TypeError(f"{type(out).__name__} came out of a tensor"), x, f)
    return out.cpu()


def _crowds() -> Iterator[tuple[int, int, int]]:
    """(h, f, d), with h > f + 2 since some attacks imitate a majority."""
    for h, f in ((4, 1), (5, 2), (9, 4)):
        for d in (1, 2, 20):
            yield h, f, d


def _attack_input(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        for name, given in _inputs(x):
            _attacked(attack, given, f, x)
            if not torch.equal(_stacked(given), x):
                yield f"the {name} given was written to", x, f


def _attack_ownership(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        for name, given in _inputs(x):
            out = _attacked(attack, given, f, x)
            out[...] = 9.0
            out[0] = 1.0
            if not torch.equal(_stacked(given), x):
                yield f"writing to what is sent changed the {name} given", x, f
            if f > 1 and not bool((torch.as_tensor(out)[1:] == 9.0).all()):
                yield "writing to one of the vectors sent changed another", x, f


def _attack_kind(attack: Attack) -> Found:
    for h, f, d in _crowds():
        for dtype in _SETTING.get().dtypes:
            x = vectors(h, d, h, dtype)
            expected = _sent(attack, x, f)
            came = torch.as_tensor(_attacked(attack, _there(x), f, x))
            if came.dtype != dtype or came.device != _SETTING.get().device:
                yield f"{came.dtype} on {came.device} came out", x, f
            for name, given in _inputs(x):
                out = _attacked(attack, given, f, x)
                if not isinstance(out, np.ndarray if name.endswith(("array", "arrays")) else Tensor):
                    yield f"{type(out).__name__} came out of a {name}", x, f
                elif torch.as_tensor(out).dtype != dtype:
                    yield f"{out.dtype} came out of a {name} of {dtype}", x, f
                elif problem := _differ(_here(out), expected, _elsewhere(expected)):
                    yield f"a {name} gives {problem}, which a tensor gives", x, f


def _attack_repeatable(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        before = _global_state()
        first = _sent(attack, x, f)
        if _global_state() != before:
            yield "the global random numbers were moved", x, f
        for seed in (1, 2):
            again = _seeded(seed, lambda: _sent(attack, x, f))  # noqa: B023  called at once
            if problem := _differ(again, first, 0.0):
                yield f"a second call gives {problem}", x, f


def _attack_stateless(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        first = _sent(attack, x, f)
        kept = first.clone()
        _sent(attack, -3 * x, f)
        if problem := _differ(first, kept, 0.0):
            yield f"a later call changed what was sent: {problem}", x, f
        first[...] = 99.0
        if problem := _differ(_sent(attack, x, f), kept, 0.0):
            yield f"after a call with other vectors it sends {problem}", x, f


def _attack_layout(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        expected = _sent(attack, x, f)
        for name, given in _layouts(x):
            out = _here(_attacked(attack, given, f, x))
            if problem := _differ(out, expected, max(1e-12 * _size(expected), _elsewhere(expected))):
                yield f"{name} it sends {problem}", x, f


def _attack_sizes(attack: Attack) -> Found:
    for h, f, d in [(h, f, d) for h, most, d in _crowds() for f in sorted({0, 1, most})]:
        x = vectors(h, d, h)
        out = _sent(attack, x, f)
        if list(out.shape) != [f, d]:
            yield f"shape {list(out.shape)} came out instead of {[f, d]}", x, f


def _attack_precision(attack: Attack) -> Found:
    for h, f, d in _crowds():
        if d < 5:  # in few dimensions a search may well prefer one side in one precision, the other in another
            continue
        for dtype in _SETTING.get().dtypes:
            if dtype == torch.float64:
                continue
            x = vectors(h, d, h, dtype)
            wide = _sent(attack, x.double(), f)
            out = _sent(attack, x, f)
            if attack.uses_defence:  # what is found may lie elsewhere; it must be of the same size
                size, wanted = float(out.double().norm()), float(wide.norm())
                if not 0.1 * wanted <= size <= 10 * wanted:
                    yield f"vectors of norm {size:.3g} instead of {wanted:.3g} in double precision", x, f
            elif problem := _differ(out, wide, 64 * torch.finfo(dtype).eps * max(_size(x), _size(wide))):
                yield f"{problem} in double precision", x, f


def _attack_finite(attack: Attack) -> Found:
    for h, f, d in _crowds():
        for x in (
            vectors(h, d, h),
            vectors(h, d, h, torch.float16),
            lattice(h, d, h),
            torch.zeros(h, d, dtype=_type()),
            vectors(1, d).expand(h, d).clone(),
            1e-30 * vectors(h, d, h, torch.float32),
            1e30 * vectors(h, d, h, torch.float32),
        ):
            if not bool(x.isfinite().all()):
                continue
            out = _sent(attack, x, f)
            if not bool(out.isfinite().all()):
                yield f"{_short(out)} is sent", x, f


_ATTACK_CHECKS: dict[Check, Callable[[Attack], Found]] = {
    Check.INPUT: _attack_input,
    Check.OWNERSHIP: _attack_ownership,
    Check.KIND: _attack_kind,
    Check.REPEATABLE: _attack_repeatable,
    Check.STATELESS: _attack_stateless,
    Check.LAYOUT: _attack_layout,
    Check.SIZES: _attack_sizes,
    Check.PRECISION: _attack_precision,
    Check.FINITE: _attack_finite,
}

__all__ = [
    "EXEMPT", "FINITE", "GUARANTEES", "NEAR", "NO_LONGER", "WITHIN", "Check", "ContractError", "Failure", "Guarantee",
    "Report", "check_attack", "check_mixing", "check_rule",
]  # fmt: skip
