"""The contract of rules, mixings and attacks, point by point, for ours and for yours.

    from varangian.testing import check_rule
    check_rule(MyRule)          # a class or a function of f, or check_rule(MyRule(f=2, option=3)) for other settings

Each point of the contract is a :class:`Check`. All are tried; one :class:`ContractError` lists those that failed, each
with the smallest example found. What a class does not claim it says itself, in sight, with the reason:
``exempt = {"SCALE": "tau is a length"}``; and what hostile vectors cannot do to it: ``guarantee = WITHIN``. Plain loops
over fixed examples: seconds per rule, the same every time, no package beyond those that the library needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields

import torch

from ..core.attacks import Attack
from ..core.checks import cut, shown, unknown
from ..core.claims import FINITE, NEAR, NO_LONGER, WITHIN, Guarantee
from ..core.construction import Misfit
from ..core.mixing import Mixing
from ..core.rules import Rule
from ..core.stages import takes_weights
from .attacks import EXAMPLES_OF_ATTACKS, attacked
from .examples import in_setting, there, vectors
from .report import ATTACK_CHECKS, MIXING_CHECKS, RULE_CHECKS, Check, ContractError, Failure, Report
from .stages import STAGE_CHECKS
from .trying import BUGS, WANTED, Make, Raised, any_of, family, name_of, named, run_checks, try_once


def check_rule(
    rule: Rule | Callable[[int], Rule],
    without: Collection[Check | str] = (),
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
        without: points to leave out, beside those that the class does not claim (``exempt``).
        guarantee: what hostile vectors cannot do; by default what the class says (``guarantee``), which is
            :data:`NEAR` unless it says otherwise.
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
        18
        >>> print(str(check_rule(vg.Median)).splitlines()[0])
        Median: 18 points of the contract hold, 0 not tried
    """
    make = family("check_rule", rule, Rule)
    one = any_of(make)
    if trusted is None and one.by_place:
        trusted = one.center
    with in_setting(device, dtype, large, trusted):
        checks = (*RULE_CHECKS, Check.WEIGHTS) if takes_weights(type(one)) else RULE_CHECKS
        return _check_stage(name_of(rule), make, one, checks, without, guarantee)


def check_mixing(
    mixing: Mixing | Callable[[int], Mixing],
    without: Collection[Check | str] = (),
    guarantee: Guarantee | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    large: bool = False,
) -> Report:
    """Checks that a mixing keeps the contract; arguments as for :func:`check_rule`.

    Where vector i becomes vector i, the guarantee is about those that were honest. A mixing without an f cannot say how
    many vectors that are not finite are too many, and promises no more than to be finite unless it says so.

    Example:
        >>> import varangian as vg
        >>> sorted(check.name for check in check_mixing(vg.AdaptiveClipping).left_out)
        ['TRANSLATION']
    """
    make = family("check_mixing", mixing, Mixing)
    with in_setting(device, dtype, large, None):
        return _check_stage(name_of(mixing), make, any_of(make), MIXING_CHECKS, without, guarantee)


def _check_stage(
    subject: str,
    make: Make,
    one: Rule | Mixing,
    checks: tuple[Check, ...],
    without: Collection[Check | str],
    guarantee: Guarantee | None,
) -> Report:
    left_out, claimed = _left_out(one, without), one.guarantee
    if all(field.name != "f" for field in fields(one)):
        left_out = {Check.REFUSAL: "declares no f"} | left_out
        claimed = FINITE if claimed is NEAR else claimed
    promise = claimed if guarantee is None else guarantee
    try_once(subject, make)
    return run_checks(subject, checks, left_out, lambda check: STAGE_CHECKS[check](make, promise), promise.text)


def _left_out(stage: Rule | Mixing | Attack, without: Collection[Check | str]) -> dict[Check, str]:
    """The points that are not tried, and why."""
    name = type(stage).__name__
    if not isinstance(stage.exempt, Mapping):
        raise ValueError(f'{name}.exempt must be such as {{"SCALE": "tau is a length"}}, got {shown(stage.exempt)}.')
    given = {check.name if isinstance(check, Check) else check: "left out by the caller" for check in without}
    named = given | dict(stage.exempt)
    for point in named:
        if point not in Check.__members__:
            raise ValueError(f"{name}: {unknown('point of the contract', point, Check.__members__)}")
    return {Check[point]: why for point, why in named.items()}


def check_attack(
    attack: Attack | Callable[[], Attack],
    without: Collection[Check | str] = (),
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Report:
    """Checks that an attack keeps the contract: honest vectors [h, d] and any f to new vectors [f, d].

    Attacks that need a defence, a last aggregate or vectors learnt from poisoned data are given them.

    Example:
        >>> import varangian as vg
        >>> check_attack(vg.NaN).left_out
        {<Check.FINITE: 'finite vectors are answered by finite ones'>: 'not finite on purpose'}
    """
    subject = attack
    if not isinstance(attack, Attack):
        wrong = f"check_attack needs {WANTED[Attack]}, got {named(attack)}"
        if not callable(attack) or (isinstance(attack, type) and not issubclass(attack, Attack)):
            raise ValueError(f"{wrong}.")
        try:
            subject = attack()
        except Misfit:
            raise
        except Exception as error:
            raise ValueError(f"{wrong}, which raises {type(error).__name__}: {cut(str(error))}") from error
        if not isinstance(subject, Attack):
            raise ValueError(f"{wrong}, which makes {shown(subject)}.")
    assert isinstance(subject, Attack)
    left_out = _left_out(subject, without)
    with in_setting(device, dtype, False, None):
        x = vectors(5, 3)
        try:
            attacked(subject, there(x), 1, x)
        except Raised as error:
            if isinstance(error.cause, BUGS):
                text = f"raised {type(error.cause).__name__}: {error.cause}; nothing else was tried"
                raise ContractError(name_of(attack), [Failure(Check.SIZES, text, x, 1)]) from error.cause
        return run_checks(name_of(attack), ATTACK_CHECKS, left_out, lambda check: EXAMPLES_OF_ATTACKS[check](subject))


__all__ = [
    "FINITE", "NEAR", "NO_LONGER", "WITHIN", "Check", "ContractError", "Failure", "Guarantee", "Report",
    "check_attack", "check_mixing", "check_rule",
]  # fmt: skip
