"""What is under test, asked: who makes it for each f, its answer, and what came of each point."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import FrozenInstanceError, fields, replace
from inspect import isabstract
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.attacks import Attack
from ..core.checks import Refused, cut, is_ours, shown
from ..core.kernels.cpu import columns
from ..core.mixing import Mixing
from ..core.rules import Rule
from .examples import SETTING, there, vectors
from .report import Check, ContractError, Failure, Report

Stage = TypeVar("Stage", Rule, Mixing)
Found = Iterator[tuple[str, Tensor, int]]  # what went wrong, for which vectors, with which f; the smallest first


def name_of(subject: Any) -> str:
    """MultiKrum(f=2), or the name of a class or a function."""
    return getattr(subject, "__name__", None) or str(subject)


FROZEN = "a stage is a value: its options are fields of a dataclass, and nothing is written to it"
BUGS = (TypeError, AttributeError, NameError, NotImplementedError)


def try_once(subject: str, make: Make) -> None:
    """Raises where plain vectors are answered by an error, or by what is no answer: every check would say the same."""
    for dtype in SETTING.get().dtypes:
        for stage, n, f in members(make):
            x = vectors(n, 3, dtype=dtype)
            try:
                answer(stage, x, f, previous_of(stage, x))
            except Raised as error:
                if isinstance(error.cause, Refused):
                    return
                hint = f" ({FROZEN})" if isinstance(error.cause, FrozenInstanceError) else ""
                text = f"raised {type(error.cause).__name__}: {error.cause}{hint}; nothing else was tried"
                rows = isinstance(stage, Mixing) and not isinstance(error.cause, BUGS)  # weights of another shape
                failure = Failure(Check.ROWS if rows else Check.KIND, text, x, f)
                raise ContractError(subject, [failure]) from error.cause
            break


def run_checks(
    subject: str,
    checks: Iterable[Check],
    left_out: Mapping[Check, str],
    examples: Callable[[Check], Found],
    guarantee: str = "",
) -> Report:
    passed, failures, causes = [], [], []
    for check in checks:
        if check in left_out:
            continue
        try:
            failure = next(examples(check), None)
        except Raised as error:
            failure = (f"raised {type(error.cause).__name__}: {error.cause}", error.x, error.f)
            causes.append(error.cause)
        if failure is None:
            passed.append(check)
        else:
            failures.append(Failure(check, *failure))
    if failures:
        raise ContractError(subject, failures) from (causes[0] if causes else None)
    return Report(tuple(passed), dict(left_out), subject, guarantee)


class Raised(Exception):
    """An object under test raised where it must answer."""

    def __init__(self, cause: Exception, x: Tensor, f: int) -> None:
        super().__init__(str(cause))
        self.cause, self.x, self.f = cause, x, f


WANTED = {
    Rule: (
        "a rule, its class (derived from vg.General, vg.Selecting or vg.Coordinatewise), or a function of f that "
        "makes one"
    ),
    Mixing: "a mixing, its class (derived from vg.Mixing), or a function of f that makes one",
    Attack: "an attack, its class (derived from vg.Attack), or a function that makes one",
}


def family(who: str, stage: Any, kind: type[Rule] | type[Mixing]) -> Callable[[int], Any]:
    """f to a rule or mixing; a mixing without f is what it is whatever f."""
    wrong = f"{who} needs {WANTED[kind]}, got {named(stage)}"
    if isinstance(stage, kind):
        known = [field.name for field in fields(stage)]
        return (lambda f: replace(stage, f=f)) if "f" in known else lambda f: stage
    derived = isinstance(stage, type) and issubclass(stage, kind) and not (is_ours(stage) and isabstract(stage))
    if not callable(stage) or (isinstance(stage, type) and not derived):
        raise ValueError(f"{wrong}.")
    takes_f = not isinstance(stage, type) or "f" in [field.name for field in fields(stage)]

    def make(f: int) -> Any:
        try:
            made = stage(f) if takes_f else stage()  # pyright: ignore[reportCallIssue]
        except ValueError:
            raise
        except Exception as error:
            hint = f"; {FROZEN}" if isinstance(error, FrozenInstanceError) else ""
            raise _NoFamily(f"{wrong}, which raises {type(error).__name__}: {cut(str(error))}{hint}") from error
        if not isinstance(made, kind):
            raise _NoFamily(f"{wrong}, which makes {shown(made)} of f = {f}.")
        return made

    return make


def named(value: Any) -> str:
    """For a message: the name of a class or a function, else the value."""
    return getattr(value, "__name__", None) or shown(value)


class _NoFamily(ValueError):
    """What should make a rule of f makes none."""


def any_of(make: Callable[[int], Stage]) -> Stage:
    for f in (1, 2):
        try:
            return make(f)
        except _NoFamily as error:  # its name is nobody's business
            raise ValueError(str(error)) from error.__cause__
        except ValueError:  # perhaps options that ask for another f
            continue
    return make(3)


def members(
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


def previous_of(stage: Rule | Mixing, x: Tensor) -> Tensor | None:
    """A last aggregate, for rules that use it: near the first vectors."""
    if isinstance(stage, Rule) and stage.uses_previous:
        return (0.75 * x[: max(x.shape[0] - stage.f, 1)].double().mean(0)).to(x.dtype)
    return None


def _ask(stage: Rule | Mixing, x: Any, previous: Tensor | None = None) -> Any:
    return stage(x) if previous is None else stage(x, previous=previous)  # type: ignore[call-arg]


def must(stage: Rule | Mixing, given: Any, previous: Tensor | None, x: Tensor, f: int) -> Any:
    """The answer to x, given in whatever kind, where there must be one."""
    try:
        return _ask(stage, given, previous)
    except Exception as error:
        raise Raised(error, x, f) from error


def answer(stage: Rule | Mixing, x: Tensor, f: int, previous: Tensor | None = None) -> Tensor:
    """The answer to a tensor, in main memory: [d] for a rule, [m, d] for a mixing."""
    out = must(stage, there(x), previous, x, f)
    if not isinstance(out, Tensor):
        raise Raised(TypeError(f"{type(out).__name__} came out of a tensor"), x, f)
    return out.cpu()


def difference(a: Tensor, b: Tensor, tolerance: float) -> str | None:
    """In words how two answers differ; None where they do not."""
    if a.shape != b.shape:
        return f"shape {list(a.shape)} instead of {list(b.shape)}"
    a, b = a.double(), b.double()
    gap = (a - b).abs()
    gap[(a == b) | (a.isnan() & b.isnan())] = 0
    if bool((gap <= tolerance).all()):
        return None
    return f"{short(a)} instead of {short(b)}"


def short(v: Tensor) -> str:
    return np.array2string(v.double().cpu().numpy(), precision=6, threshold=8, max_line_width=200).replace("\n", " ")


Make = Callable[[int], Any]


def global_state() -> tuple[bytes, bytes, str]:
    _, key, *rest = np.random.get_state()  # noqa: NPY002  the point is whether somebody moved it
    legacy = np.asarray(key).tobytes() + repr(rest).encode()
    return bytes(torch.get_rng_state().numpy()), legacy, repr(python_random.getstate())


def seeded(seed: int, call: Callable[[], Any]) -> Any:
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


def large_members(make: Make) -> Iterator[tuple[Any, int, int, int, torch.dtype]]:
    """(rule, n, f, d, dtype) beyond the size from which kernels go other ways, where such are asked for."""
    if SETTING.get().large:
        stage, n, f = next(members(make, extra=(2,)))
        for dtype in SETTING.get().dtypes:
            yield stage, n, f, -(-columns.WORTH // n) + 77, dtype
