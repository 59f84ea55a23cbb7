"""The points of the contract for rules and mixings, one function each."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..core.claims import Guarantee
from ..core.mixing import Mixing
from ..core.randomness import generator
from ..core.rules import Rule
from .examples import (
    HONEST,
    HOSTILE,
    SETTING,
    eighths,
    elsewhere,
    here,
    hostile,
    inputs,
    lattice,
    layouts,
    places_of,
    rounding_of,
    size_of,
    stacked,
    there,
    type_of_examples,
    vectors,
)
from .report import Check
from .trying import (
    Found,
    Make,
    Raised,
    _ask,
    answer,
    difference,
    global_state,
    large_members,
    members,
    must,
    previous_of,
    seeded,
    short,
)


def _check_needs(make: Make, promise: Guarantee) -> Found:
    for f in range(4):
        try:
            stage = make(f)
        except ValueError:
            continue
        least = stage.min_n
        for n in sorted({0, 1, least - 1} - {least} - set(range(least + 1, 2))):
            x = vectors(n, 2)
            given = there(x)
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
        answer(stage, x, f, previous_of(stage, x))


def _check_input(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make, extra=(0, 4)):
        for x in (vectors(n, 4, n), lattice(n, 4, n, torch.float32), vectors(n, 3, n, torch.float16)):
            for name, given in inputs(x):
                previous = previous_of(stage, x)
                kept = None if previous is None else previous.clone()
                must(stage, given, previous, x, f)
                if not torch.equal(stacked(given), x):
                    yield f"the {name} given was written to", x, f
                if previous is not None and kept is not None and not torch.equal(previous, kept):
                    yield "the last aggregate was written to", x, f


def _check_ownership(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make):
        for x in (vectors(n, 3), vectors(n, 1), vectors(1, 3).expand(n, 3).clone(), lattice(n, 2, n)):
            for name, given in inputs(x):
                previous = previous_of(stage, x)
                out = must(stage, given, previous, x, f)
                before = None if previous is None else previous.clone()
                out[...] = 99.0
                if not torch.equal(stacked(given), x):
                    yield f"writing to the answer changed the {name} given", x, f
                if previous is not None and before is not None and not torch.equal(previous, before):
                    yield "writing to the answer changed the last aggregate", x, f


def _check_kind(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make, extra=(0, 3)):
        for dtype in SETTING.get().dtypes:
            x = vectors(n, 5, n, dtype)
            previous = previous_of(stage, x)
            expected = answer(stage, x, f, previous)
            came = torch.as_tensor(must(stage, there(x), previous, x, f))
            if came.dtype != dtype or came.device != SETTING.get().device:
                yield f"{came.dtype} on {came.device} came out", x, f
            for name, given in inputs(x):
                out = must(stage, given, previous, x, f)
                wanted = np.ndarray if name.endswith(("array", "arrays")) else Tensor
                if not isinstance(out, wanted):
                    yield f"{type(out).__name__} came out of a {name}", x, f
                elif torch.as_tensor(out).dtype != dtype:
                    yield f"{out.dtype} came out of a {name} of {dtype}", x, f
                elif problem := difference(here(out), expected, elsewhere(expected)):
                    yield f"a {name} gives {problem}, which a tensor gives", x, f


def _check_repeatable(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make):
        for x in (vectors(n, 4, n), lattice(n, 4, n)):
            previous = previous_of(stage, x)
            before = global_state()
            first = answer(stage, x, f, previous)
            if global_state() != before:
                yield "the global random numbers were moved", x, f
            for seed in (1, 2):
                again = seeded(seed, lambda: answer(stage, x, f, previous))  # noqa: B023  called at once
                if problem := difference(again, first, 0.0):
                    yield f"a second call gives {problem}", x, f


def _check_stateless(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make):
        x, other = vectors(n, 4, n), 10 * vectors(n, 4, n + 1)
        previous = previous_of(stage, x)
        first = answer(stage, x, f, previous)
        kept = first.clone()
        answer(stage, other, f, previous)
        if problem := difference(first, kept, 0.0):
            yield f"a later call changed an earlier answer: {problem}", x, f
        first[...] = 99.0
        if problem := difference(answer(stage, x, f, previous), kept, 0.0):
            yield f"after a call with other vectors the answer is {problem}", x, f
        answer(stage, vectors(n, 7), f, previous_of(stage, vectors(n, 7)))


def _check_layout(make: Make, promise: Guarantee) -> Found:
    small = ((1, torch.float64), (5, torch.float32), (5, torch.float16))
    cases = [
        (stage, n, f, d, type_of_examples(dtype)) for stage, n, f in members(make, extra=(0, 2)) for d, dtype in small
    ]
    for stage, n, f, d, dtype in [*cases, *large_members(make)]:
        x = vectors(n, d, n, dtype)
        previous = previous_of(stage, x)
        expected = answer(stage, x, f, previous)
        tolerance = max(4 * torch.finfo(dtype).eps * size_of(x), elsewhere(x))
        for name, given in layouts(x):
            out = here(must(stage, given, previous, x, f))
            if problem := difference(out, expected, tolerance):
                yield f"{name} it gives {problem}", x, f


def _check_sizes(make: Make, promise: Guarantee) -> Found:
    cases = [
        (stage, n, f, d, type_of_examples(torch.float32))
        for stage, n, f in [*members(make), *members(lambda f: make(1), 3, (40,))]
        for d in ((1, 2, 17, 20_000) if n < 10 else (1, 3))
    ]
    for stage, n, f, d, dtype in [*cases, *large_members(make)]:
        for x in (vectors(n, d, n, dtype), lattice(n, d, n))[: 1 if d > 100 else 2]:
            out = answer(stage, x, f, previous_of(stage, x))
            wanted = [d] if isinstance(stage, Rule) else [stage.rows(n), d]
            if list(out.shape) != wanted:
                yield f"shape {list(out.shape)} came out instead of {wanted}", x, f
            elif not bool(out.isfinite().all()):
                yield f"{short(out)} came out of finite vectors", x, f


def _check_no_f(make: Make, promise: Guarantee) -> Found:
    try:
        stage = make(0)
    except Exception as error:
        yield f"f = 0 raised {type(error).__name__}: {error}", vectors(0, 1), 0
        return
    for n in (stage.min_n, stage.min_n + 1, stage.min_n + 5):
        for d in (1, 4):
            for x in (vectors(n, d, n), lattice(n, d, n)):
                out = answer(stage, x, 0, previous_of(stage, x))
                if not bool(out.isfinite().all()):
                    yield f"{short(out)} came out of finite vectors", x, 0


def _check_precision(make: Make, promise: Guarantee) -> Found:
    # d > 1: on a line the sums of distances to two middle vectors are equal, but for rounding
    types = [dtype for dtype in SETTING.get().dtypes if dtype != torch.float64]
    cases = [(*member, d, dtype) for member in members(make) for d in (2, 6, 300) for dtype in types]
    for stage, n, f, d, dtype in [*cases, *(one for one in large_members(make) if one[-1] in types)]:
        x = vectors(n, d, n + d, dtype)
        previous = previous_of(stage, x)
        wide = answer(stage, x.double(), f, None if previous is None else previous.double())
        tolerance = 16 * torch.finfo(dtype).eps * size_of(x)
        if problem := difference(answer(stage, x, f, previous), wide, tolerance):
            yield f"{problem} in double precision", x, f


def _in_order(y: Tensor) -> Tensor:
    """The rows of a mixing's answer in an order that does not depend on theirs."""
    if y.ndim == 1:
        return y
    along = y.double() @ torch.from_numpy(generator(0, "order").random(y.shape[1]) + 1)
    return y[along.argsort()]


def _check_permutation(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make, least=0, extra=(0, 1)):
        for d in (1, 3):
            few = min(f, n - 1)
            with_duplicates = vectors(n, d, n)[torch.arange(n) // 2]
            attacked = torch.cat([vectors(n - few, d, n), vectors(1, d, 7).expand(few, d)])
            mirrored = torch.cat([vectors(n // 2, d, n), -vectors(n // 2, d, n), torch.zeros(n % 2, d).double()])
            for x in (vectors(n, d, n), lattice(n, d, n), with_duplicates, attacked, mirrored):
                previous = previous_of(stage, x)
                expected = _in_order(answer(stage, x, f, previous))
                for seed in range(2):
                    moved = x[torch.from_numpy(generator(seed, "order").permutation(n))]
                    out = _in_order(answer(stage, moved, f, previous))
                    if problem := difference(out, expected, rounding_of(x)):
                        yield f"{problem} once the vectors are in another order", x, f


def _check_translation(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make, least=0):
        for d in (1, 2, 5):
            offset = torch.arange(d).double() * 8 - 64
            # No ties: a trimmed mean is rounded, so which of two values is nearer to it may change with their place.
            # In double precision whatever the suite's: moved and rounded, half types are other vectors.
            x = vectors(n, d, n).double()
            previous = previous_of(stage, x)
            expected = _in_order(answer(stage, x, f, previous)) + offset
            out = answer(stage, x + offset, f, None if previous is None else previous + offset)
            if problem := difference(_in_order(out), expected, 1e-6 * size_of(x + offset)):
                yield f"{problem} once all vectors move by {short(offset)}", x, f


def _check_scale(make: Make, promise: Guarantee) -> Found:
    single, double = torch.float32, torch.float64
    for stage, n, f in members(make, least=0, extra=(0, 6)):
        for d in (1, 4):
            for x in (eighths(n, d, n), lattice(n, d, n)):
                previous = previous_of(stage, x)
                expected = _in_order(answer(stage, x, f, previous))
                for factor, wanted in ((2.0, double), (2.0**40, single), (2.0**-20, double), (2.0**-30, single)):
                    dtype = type_of_examples(wanted)
                    if dtype == torch.float16 and factor != 2:  # out of its range
                        continue
                    scaled = (x * factor).to(dtype)
                    before = None if previous is None else (previous * factor).to(dtype)
                    out = _in_order(answer(stage, scaled, f, before)).double() / factor
                    if problem := difference(out, expected, rounding_of(x)):
                        yield f"{problem} once all vectors are scaled by {factor:g} (and the answer back)", x, f


def _check_unanimity(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make, least=0, extra=(0, 5)):
        for d in (1, 3):
            tiny = float(np.finfo(np.float32).smallest_subnormal)
            cases = [(factor, torch.float64) for factor in (1.0, 0.0, 1e30)]
            cases += [(factor, torch.float32) for factor in (1e-3, 1e30, 1e-30, 3 * tiny)]
            for factor, wanted in cases:
                dtype = type_of_examples(wanted)
                v = (vectors(1, d, 5) * (1e4 if dtype == torch.float16 and factor > 1 else factor)).to(dtype)
                x = v.expand(n, d).clone()
                previous = v[0].clone() if isinstance(stage, Rule) and stage.uses_previous else None
                for row in answer(stage, x, f, previous).reshape(-1, d):
                    if problem := difference(row, v[0], rounding_of(v)):
                        yield problem, x, f


def _check_robust(make: Make, promise: Guarantee) -> Found:
    small = [
        (stage, n, f, kind, d, type_of_examples(dtype), size)
        for stage, n, f in members(make, extra=(0, 5))
        for kind in range(len(HOSTILE))
        for d, dtype, size in (HONEST[f] if f < 3 else (HONEST[3][(kind + n) % 3],))
    ]
    few = [HOSTILE.index(name) for name in ("NaN", "+1e38", "a little off")]
    large = [(stage, n, f, kind, d, dtype, 1.0) for stage, n, f, d, dtype in large_members(make) for kind in few]
    for stage, n, f, kind, d, dtype, size in [*small, *large]:
        rows = min(f, n - 1)
        honest = (vectors(n - rows, d, n + kind) * size).to(dtype)
        bad = hostile(kind, rows, d, dtype, n + d, honest)
        previous = previous_of(stage, honest)
        for taken in places_of(n, rows, kind):
            x = torch.empty(n, d, dtype=dtype)
            x[taken], x[~taken] = bad, honest
            out = answer(stage, x, f, previous)
            if problem := broken_promise(stage, honest, out, previous, promise, x, ~taken):
                yield f"{HOSTILE[kind]}, rows {taken.nonzero().flatten().tolist()}: {problem}", x, f


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
        return f"{short(out)} came out"
    good, wide = honest.double().numpy(), out.double().numpy()
    rounding = 8 * torch.finfo(out.dtype).eps * max(size_of(honest), 0.0 if previous is None else size_of(previous))
    rounding += float(np.finfo(np.float32).smallest_subnormal) if out.dtype != torch.float16 else 1e-7
    if promise.box and not ((good.min(0) - rounding <= wide) & (wide <= good.max(0) + rounding)).all():
        return f"{short(out)} is out of the range of the honest values"
    if promise.ball is not None:
        last = np.zeros(good.shape[1]) if previous is None else previous.double().numpy()
        centre, radius = promise.ball(stage, good, last)
        with np.errstate(over="ignore"):
            gap = float(np.sqrt(np.square(wide - centre).sum(-1)).max())
        if gap > radius * (1 + 1e-5) + rounding * np.sqrt(good.shape[1]):
            return f"{short(out)} is {gap:.6g} from {short(torch.from_numpy(centre))}, not {promise.text}: {radius:.6g}"
    return None


def _check_refusal(make: Make, promise: Guarantee) -> Found:
    values = ((torch.nan, torch.float64), (torch.inf, torch.float32), (-torch.inf, torch.float16))
    for stage, n, f in members(make, least=0):
        for faulty in sorted({min(f + 1, n), n}):
            for number, (value, dtype) in enumerate(values):
                for where in (slice(None), 1):
                    x = vectors(n, 3, n, dtype)
                    rows = torch.arange(n).roll(-number * (n // 2))[
                        n - faulty :
                    ]  # the last, from the middle, the first
                    x[rows if where == 1 else rows.unsqueeze(1), where] = value
                    try:
                        out = _ask(stage, there(x), previous_of(stage, vectors(n, 3, n, dtype)))
                    except ValueError:
                        continue
                    except Exception as error:
                        yield f"raised {type(error).__name__} ({error}) instead of ValueError", x, f
                    else:
                        came = "vector is" if faulty == 1 else "vectors are"
                        yield (
                            f"{faulty} {came} not finite and the answer is {short(out)}; count them and call "
                            "vg.refuse_faulty(self, self.f, count)",
                            x,
                            f,
                        )


def _weighted(stage: Rule, x: Tensor, weights: np.ndarray, f: int, previous: Tensor | None) -> Tensor:
    try:
        out = stage(there(x), previous=previous, weights=weights)
    except Exception as error:
        raise Raised(error, x, f) from error
    return here(out)


def _check_weights(make: Make, promise: Guarantee) -> Found:
    for stage, n, f in members(make, least=0, extra=(0, 5)):
        for x in (vectors(n, 4, n), lattice(n, 3, n, torch.float32)):
            previous = previous_of(stage, x)
            expected = answer(stage, x, f, previous)
            for weight in (1.0, 0.3):
                if problem := difference(_weighted(stage, x, np.full(n, weight), f, previous), expected, 0.0):
                    yield f"{problem} where all weigh {weight:g}", x, f
    for stage, n, f in members(make, least=0, extra=(7, 12)):
        random = generator(n, "weights")
        for number, x in enumerate((vectors(n, 4, n), vectors(n, 3, n, torch.float16), lattice(n, 3, n))):
            weights = 1 + 0.5 * random.random(n) if number < 2 else random.choice([1.0, 1.5], n)
            previous = previous_of(stage, x)
            expected = _weighted(stage, x, weights, f, previous)
            if expected.shape != x[0].shape or expected.dtype != x.dtype:
                yield f"{expected.dtype} {list(expected.shape)} came out with weights", x, f
                continue
            if problem := difference(_weighted(stage, x, 0.3 * weights, f, previous), expected, rounding_of(x)):
                yield f"{problem} where all weigh 0.3 times as much", x, f
            order = random.permutation(n)
            moved = _weighted(stage, x[torch.from_numpy(order)], weights[order], f, previous)
            if problem := difference(moved, expected, rounding_of(x)):
                yield f"{problem} once the vectors, and their weights, are in another order", x, f
            spoilt = torch.cat([x[:1], torch.full_like(x[:1], torch.nan), x[1:]])
            found = _weighted(stage, spoilt, np.insert(weights, 1, 0.0), f, previous)
            if problem := difference(found, expected, rounding_of(x)):
                yield f"{problem} beside a vector that weighs nothing", spoilt, f
        if "ROBUST" not in stage.exempt:
            yield from _hostile_weight(stage, n, f, promise)


def _hostile_weight(stage: Rule, n: int, f: int, promise: Guarantee) -> Found:
    """The lightest, as many as weigh no more together than the f heaviest: more than f."""
    weights = np.linspace(1.0, 1.6, n)
    heavy = weights[n - f :].sum()
    taken = torch.from_numpy(weights.cumsum() <= heavy)
    rows = int(taken.sum())
    honest = vectors(n - rows, 4, n)
    previous = previous_of(stage, honest)
    for kind in range(len(HOSTILE)) if rows else ():
        x = torch.empty(n, 4, dtype=honest.dtype)
        x[taken], x[~taken] = hostile(kind, rows, 4, honest.dtype, n, honest), honest
        out = _weighted(stage, x, weights, f, previous)
        if problem := broken_promise(stage, honest, out, previous, promise, x, ~taken):
            yield f"{HOSTILE[kind]}, weight {weights[:rows].sum():.4g} of {weights.sum():.4g}: {problem}", x, f


LONG = 20_001  # coordinates where it is tried what is looked at: beyond usual samples of them
STEPS = 100  # so many steps are for ever


def _check_sight(make: Make, promise: Guarantee) -> Found:
    stage, n, f = next(members(make, extra=(4,)))
    if isinstance(stage, Mixing):
        x = vectors(max(n, stage.rows_for(3)), 3)
        answers = [stage(there(x), step=step).cpu() for step in range(8)]
        if stage.draws and all(torch.equal(answer, answers[0]) for answer in answers):
            yield "it draws, and the same in 8 steps", x, f
        return
    taken = places_of(n, 1, 0)[0]
    if _moved_in_sight(stage, n, f, taken):
        return  # nothing need be hidden from it: ROBUST has said so
    honest = vectors(n - 1, LONG, n)
    previous = previous_of(stage, honest)
    x = torch.empty(n, LONG, dtype=honest.dtype)
    x[~taken], x[taken] = honest, honest.double().mean(0).to(honest.dtype)
    usual, place = x[taken][0].clone(), int(taken.nonzero())
    tried = generator(0, "sight").permutation(LONG)[:100].tolist()
    for k in tried:
        x[place, k] = 1e4
        for step in range(STEPS):
            try:
                out = stage(there(x), previous=previous, step=step)
            except Exception as error:
                raise Raised(error, x, f) from error
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
    gap = answer(stage, x, f, previous_of(stage, honest)).double() - honest.double().mean(0)
    return not bool((gap.abs() < 1e2).all())


def _check_rows(make: Make, promise: Guarantee) -> Found:
    for mixing, n, f in members(make, least=0):
        x = vectors(n, 2, n)
        rows = mixing.rows(n)
        if answer(mixing, x, f).shape[0] != rows:
            yield f"rows({n}) is {rows} and {answer(mixing, x, f).shape[0]} came out", x, f
        least = mixing.rows_for(rows)
        if mixing.rows(least) != rows or (least > 1 and mixing.rows(least - 1) == rows):
            yield f"rows_for({rows}) = {least} is not the least n that gives {rows}", x, f


STAGE_CHECKS: dict[Check, Callable[[Make, Guarantee], Found]] = {
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
    Check.WEIGHTS: _check_weights,
    Check.ROWS: _check_rows,
}
