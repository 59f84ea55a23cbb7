"""The points of the contract, and what is told of them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from torch import Tensor

from ..core.checks import cut

WIDTH = 120  # of a table, at most: terminals may be narrower


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
    WEIGHTS = (
        "weights of workers: equal ones are none, neither their unit nor the order matters, who weighs nothing is not "
        "there, and hostile vectors that weigh no more than the f heaviest do no more than f"
    )
    ROWS = "rows(n) vectors come out of n, and rows_for(m) is the least n that gives m"
    FINITE = "finite vectors are answered by finite ones"


RULE_CHECKS = tuple(c for c in Check if c not in (Check.ROWS, Check.FINITE, Check.WEIGHTS))
"""Of rules; of those that take weights WEIGHTS too."""


MIXING_CHECKS = tuple(c for c in Check if c not in (Check.FINITE, Check.WEIGHTS))


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
        text = f"{self.check.name}: {self.check.value}"
        text += f"\n      n = {n}, f = {self.f}, d = {d}, {self.x.dtype}: {self.message}"
        if 0 < n * d <= 60:
            rows = np.array2string(self.x.double().cpu().numpy(), precision=9, max_line_width=110, prefix=" " * 10)
            text += f"\n      x = {rows}"
        return text


class ContractError(AssertionError):
    """The checks that failed: ``.failures``, one for each; where one raised, its exception is the cause of this."""

    def __init__(self, subject: object, failures: list[Failure]) -> None:
        self.failures = failures
        points = "".join(f"\n  {failure}" for failure in failures)
        count = f"{len(failures)} points" if len(failures) != 1 else "1 point"
        super().__init__(f"{subject} breaks the contract in {count}:{points}")


@dataclass(frozen=True)
class Report:
    """What was checked; as text a table, a line or two for each point.

    Attributes:
        passed: points that hold.
        left_out: points that were not tried, and why.
        subject: what was checked, as text.
        guarantee: what hostile vectors cannot do, in words.
    """

    passed: tuple[Check, ...]
    left_out: Mapping[Check, str]
    subject: str = ""
    guarantee: str = ""

    def __str__(self) -> str:
        head = f"{self.subject}: {len(self.passed)} points of the contract hold, {len(self.left_out)} not tried"
        lines = [(check.name, self._promise(check)) for check in self.passed]
        lines += [(check.name, f"not tried: {why}") for check, why in self.left_out.items()]
        indent = max((len(name) for name, _ in lines), default=0) + 4
        width = min(max(shutil.get_terminal_size((WIDTH, 24)).columns, 60), WIDTH)
        return "\n".join(
            [cut(head)]
            + [
                textwrap.fill(
                    text, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent,
                    break_on_hyphens=False,
                )
                for name, text in lines
            ]
        )  # fmt: skip

    def _promise(self, check: Check) -> str:
        return f"{check.value}: {self.guarantee}" if check is Check.ROBUST and self.guarantee else check.value
