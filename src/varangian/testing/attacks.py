"""The points of the contract for attacks, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.attacks import Attack, Memory, own, same
from ..core.randomness import generator
from ..core.rules import Median
from .examples import (
    SETTING,
    elsewhere,
    here,
    inputs,
    lattice,
    layouts,
    size_of,
    stacked,
    there,
    type_of_examples,
    vectors,
)
from .report import Check
from .trying import Found, Raised, difference, global_state, seeded, short

STEPS = 3  # of attacks that remember


def attacked(attack: Attack, given: Any, f: int, x: Tensor, *, first: bool = False) -> Any:
    """What an attack sends, given all that it may know; the f in the defence is another than the one that attack.
    Of one that remembers: what it sends in the last of some steps.

    In the first step of a run there is no last aggregate.
    """
    sent, memory = remembering(attack, given, f, x, None, first=first)
    for _ in range(1, STEPS if attack.remembers and not first else 1):
        sent, memory = remembering(attack, given, f, x, own(memory))  # copied, as whoever runs it keeps it
    return sent


def remembering(attack: Attack, given: Any, f: int, x: Tensor, memory: Memory, *, first: bool = False) -> Any:
    """What it sends in a step, and remembers for the next."""
    h, d = x.shape
    defence = Median(f=min(f, (h + f - 1) // 2))
    flipped = -x[torch.arange(f) % h]
    try:
        previous = None if first else x.double().mean(0).to(x.dtype)
        random = generator(h * d, "attack")
        return attack(given, f, defence, previous=previous, random=random, poisoned=flipped, memory=memory)
    except Exception as error:
        raise Raised(error, x, f) from error


def _sent(attack: Attack, x: Tensor, f: int) -> Tensor:
    out = attacked(attack, there(x), f, x)
    if not isinstance(out, Tensor):
        raise Raised(TypeError(f"{type(out).__name__} came out of a tensor"), x, f)
    return out.cpu()


def _crowds() -> Iterator[tuple[int, int, int]]:
    """(h, f, d), with h > f + 2 since some attacks imitate a majority."""
    for h, f in ((4, 1), (5, 2), (9, 4)):
        for d in (1, 2, 20):
            yield h, f, d


def _majorities(attack: Attack) -> Iterator[tuple[int, int, int]]:
    """More attackers than honest vectors, as where few are known; where the attack does not say that it cannot."""
    for h, f, d in ((2, 5, 3), (3, 4, 20)):
        with suppress(ValueError):
            attack.check(h, f, d)
            yield h, f, d


def _attack_input(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        for name, given in inputs(x):
            attacked(attack, given, f, x)
            if not torch.equal(stacked(given), x):
                yield f"the {name} given was written to", x, f
        if attack.remembers:
            memory, kept = None, None
            for step in range(STEPS):
                after = remembering(attack, there(x), f, x, memory)[1]
                if not same(memory, kept):
                    yield f"the memory that it found in step {step} was written to", x, f
                memory, kept = own(after), own(after)


def _attack_ownership(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        for name, given in inputs(x):
            out = attacked(attack, given, f, x)
            out[...] = 9.0
            out[0] = 1.0
            if not torch.equal(stacked(given), x):
                yield f"writing to what is sent changed the {name} given", x, f
            if attack.remembers:
                yield from _owned_memory(attack, name, given, f, x)
            if f > 1 and not bool((torch.as_tensor(out)[1:] == 9.0).all()):
                yield "writing to one of the vectors sent changed another", x, f


def _owned_memory(attack: Attack, name: str, given: Any, f: int, x: Tensor) -> Found:
    """Of whoever runs an attack each memory is copied; what is answered to a bare call is its own too."""
    _, memory = remembering(attack, given, f, x, None)
    out, after = remembering(attack, given, f, x, own(memory))
    kept = own(after)
    out[...] = 7.0
    if not same(after, kept):
        yield f"writing to what is sent of a {name} changed what is remembered", x, f
    remembering(attack, -given if isinstance(given, (Tensor, np.ndarray)) else given, f, x, after)
    if not same(after, kept):
        yield "a later call changed what was remembered", x, f


def _attack_kind(attack: Attack) -> Found:
    for h, f, d in _crowds():
        for dtype in SETTING.get().dtypes:
            x = vectors(h, d, h, dtype)
            expected = _sent(attack, x, f)
            came = torch.as_tensor(attacked(attack, there(x), f, x))
            if came.dtype != dtype or came.device != SETTING.get().device:
                yield f"{came.dtype} on {came.device} came out", x, f
            for name, given in inputs(x):
                out = attacked(attack, given, f, x)
                if not isinstance(out, np.ndarray if name.endswith(("array", "arrays")) else Tensor):
                    yield f"{type(out).__name__} came out of a {name}", x, f
                elif torch.as_tensor(out).dtype != dtype:
                    yield f"{out.dtype} came out of a {name} of {dtype}", x, f
                elif problem := difference(here(out), _expected(attack, expected, out, x, f), elsewhere(expected)):
                    yield f"a {name} gives {problem}, which a tensor gives", x, f


def _expected(attack: Attack, sent: Tensor, out: Any, x: Tensor, f: int) -> Tensor:
    """What should be ``out``, given what is sent where the vectors are: for an array what a tensor in main memory
    gives, since what is drawn on a device are other numbers."""
    if not isinstance(out, np.ndarray) or SETTING.get().device.type == "cpu":
        return sent
    return here(attacked(attack, x.clone(), f, x))


def _attack_repeatable(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        before = global_state()
        first = _sent(attack, x, f)
        if global_state() != before:
            yield "the global random numbers were moved", x, f
        for seed in (1, 2):
            again = seeded(seed, lambda: _sent(attack, x, f))  # noqa: B023  called at once
            if problem := difference(again, first, 0.0):
                yield f"a second call gives {problem}", x, f


def _attack_stateless(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        first = _sent(attack, x, f)
        kept = first.clone()
        _sent(attack, -3 * x, f)
        if problem := difference(first, kept, 0.0):
            yield f"a later call changed what was sent: {problem}", x, f
        first[...] = 99.0
        if problem := difference(_sent(attack, x, f), kept, 0.0):
            yield f"after a call with other vectors it sends {problem}", x, f


def _attack_layout(attack: Attack) -> Found:
    for h, f, d in _crowds():
        x = vectors(h, d, h)
        expected = _sent(attack, x, f)
        for name, given in layouts(x):
            out = attacked(attack, given, f, x)
            slack = max(1e-12 * size_of(expected), elsewhere(expected))
            if problem := difference(here(out), _expected(attack, expected, out, x, f), slack):
                yield f"{name} it sends {problem}", x, f


def _attack_sizes(attack: Attack) -> Found:
    for h, f, d in [*((h, f, d) for h, most, d in _crowds() for f in sorted({0, 1, most})), *_majorities(attack)]:
        x = vectors(h, d, h)
        out = _sent(attack, x, f)
        if list(out.shape) != [f, d]:
            yield f"shape {list(out.shape)} came out instead of {[f, d]}", x, f
        if not attack.uses_previous:
            continue
        try:
            first = torch.as_tensor(attacked(attack, there(x), f, x, first=True))
        except Raised as error:
            raised = f"{type(error.cause).__name__}: {error.cause}"
            yield f"seen.previous is None, as in the first step of a run: raised {raised}", x, f
            continue
        if list(first.shape) != [f, d]:
            yield f"seen.previous is None, as in the first step of a run: shape {list(first.shape)} came out", x, f


def _attack_precision(attack: Attack) -> Found:
    for h, f, d in _crowds():
        if d < 5:  # in few dimensions a search may well prefer one side in one precision, the other in another
            continue
        for dtype in SETTING.get().dtypes:
            if dtype == torch.float64:
                continue
            x = vectors(h, d, h, dtype)
            wide = _sent(attack, x.double(), f)
            out = _sent(attack, x, f)
            if attack.uses_defence:  # what is found may lie elsewhere; it must be of the same size
                size, wanted = float(out.double().norm()), float(wide.norm())
                if not 0.1 * wanted <= size <= 10 * wanted:
                    yield f"vectors of norm {size:.3g} instead of {wanted:.3g} in double precision", x, f
            elif problem := difference(out, wide, 64 * torch.finfo(dtype).eps * max(size_of(x), size_of(wide))):
                yield f"{problem} in double precision", x, f


def _attack_finite(attack: Attack) -> Found:
    for h, f, d in _crowds():
        for x in (
            vectors(h, d, h),
            vectors(h, d, h, torch.float16),
            lattice(h, d, h),
            torch.zeros(h, d, dtype=type_of_examples()),
            vectors(1, d).expand(h, d).clone(),
            1e-30 * vectors(h, d, h, torch.float32),
            1e30 * vectors(h, d, h, torch.float32),
        ):
            if not bool(x.isfinite().all()):
                continue
            out = _sent(attack, x, f)
            if not bool(out.isfinite().all()):
                yield f"{short(out)} is sent", x, f


EXAMPLES_OF_ATTACKS: dict[Check, Callable[[Attack], Found]] = {
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
