"""What settings may be given as, and what they become: text, numbers, objects and classes to the values of fields."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import is_dataclass
from numbers import Integral
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field

from ..core import references
from ..core.attacks import ATTACKS, KNOWLEDGE, Attack, ThreatModel
from ..core.mixing import MIXINGS, Mixing
from ..core.quarantine import QUARANTINES, Quarantine
from ..core.rules import RULES, Rule
from ..core.specs import MAX_LENGTH, describe, split
from ..simulation.data import PARTITIONS
from ..simulation.identity import LENGTH
from ..simulation.losses import LOSSES
from ..simulation.models import MODELS
from ..simulation.scores import METRICS

# Whose values may be given themselves, and are kept as text.
NAMED = (RULES, MIXINGS, ATTACKS, PARTITIONS, KNOWLEDGE, QUARANTINES)
MAX_PRE = 16
MAX_METRICS = 16


def as_schedule(value: Any) -> Any:
    """ "0.02,8000:0.004" -> ((0, 0.02), (8000, 0.004)); a plain number stays one."""
    if isinstance(value, str) and ("," in value or ":" in value):
        pieces = [piece.strip().rpartition(":") for piece in value.split(",")]
        value = tuple((start or 0, rate) for start, _, rate in pieces)
    if isinstance(value, list):
        return tuple(tuple(piece) if isinstance(piece, list) else piece for piece in value)
    return value


def as_real(value: Any) -> Any:
    """Truth values are no numbers, though Python counts with them."""
    if isinstance(value, (bool, np.bool_, bytes)) or getattr(value, "dtype", None) == torch.bool:
        raise ValueError("must be a number")
    return value


def as_integer(value: Any) -> Any:
    if isinstance(as_real(value), (str, Integral)):
        return value
    raise ValueError("must be a valid integer")


def as_truth(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_, str)):
        return value
    raise ValueError("must be True or False")


def or_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("none", "") else value


def without_f(value: Any, f: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(without_f(item, f) for item in value)
    return describe(value, NAMED, f) if isinstance(value, (Rule, Mixing)) else value


def as_quarantine(value: Any) -> Any:
    return describe(value, NAMED) if isinstance(value, Quarantine) else or_none(value)


def as_spec(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, (Rule, Mixing, Attack, ThreatModel)):
        names = {id(known): name for table in NAMED for name, known in table.items()}
        return names.get(id(value)) or references.reference_of(value)
    if inspect.isroutine(value):
        raise ValueError(
            "must be a name or an object whose class derives from General, Selecting or Coordinatewise (rules), "
            "Mixing, Attack or ThreatModel, and no function"
        )
    return describe(value, NAMED) if isinstance(value, (Rule, Mixing, Attack, ThreatModel)) else value


def as_optional_spec(value: Any) -> Any:
    return or_none(as_spec(value))


def as_partition(value: Any) -> Any:
    if isinstance(value, type) or inspect.isroutine(value):
        names = {id(known): name for name, known in PARTITIONS.items()}
        return names.get(id(value)) or references.reference_of(value)
    return describe(value, NAMED) if is_dataclass(value) and not isinstance(value, type) else value


def name_of_code(value: Any) -> Any:
    """A model's or a loss's class or function as its name or its reference; text, and what is none of these, as it is.

    Raises:
        ValueError: no text can name it.
    """
    if is_dataclass(value) and type(value) in LOSSES.values():
        return describe(value, (LOSSES,))
    if isinstance(value, str) or not callable(value):
        return value
    for name, known in (*MODELS.items(), *LOSSES.items()):
        if known is value:
            return name
    with suppress(references.Fault):
        if inspect.isclass(value) or inspect.isfunction(value):
            return references.reference_of(value)
    raise ValueError("must have a name in a file; hand what has none over to run(), as model= or loss=")


def as_specs(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > MAX_PRE * MAX_LENGTH:
            raise ValueError(f"at most {MAX_PRE} mixings of {MAX_LENGTH:,} characters")
        value = [] if or_none(value) is None else split(value)
    if value is None or isinstance(value, Mixing) or callable(value):
        value = [] if value is None else [value]
    return tuple(as_spec(item) for item in value) if isinstance(value, (list, tuple)) else value


def as_metrics(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > MAX_METRICS * MAX_LENGTH:
            raise ValueError(f"at most {MAX_METRICS} metrics of {MAX_LENGTH:,} characters")
        value = [] if or_none(value) is None else split(value)
    if value is None or callable(value):
        value = [] if value is None else [value]
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(name_of_metric(item) if callable(item) else item for item in value)


def name_of_metric(score: Callable[..., Any]) -> str:
    """A metric as its name or its reference.

    Raises:
        ValueError: no text can name it.
    """
    for name, known in METRICS.items():
        if known is score:
            return name
    with suppress(references.Fault):
        return references.reference_of(score)
    raise ValueError("must have a name in a file; hand what has none over to run(), as metrics=")


def as_dataset(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be a name; hand data over to run(), as dataset=")
    return value


def as_device(value: Any) -> Any:
    return str(value) if isinstance(value, torch.device) else value


def as_type(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def column_of(metric: str) -> str:
    """What a metric is called in tables: its name, without the file or module that it is in.

    Example:
        >>> column_of("scores/mine.py:recall(k=2)"), column_of("macro-f1")
        ('recall_k=2', 'macro-f1')
    """
    name, opened, options = metric.partition("(")
    return re.sub(r"[^\w.=+-]+", "_", name.rpartition(":")[2] + opened + options, flags=re.ASCII).strip("_")


# Text is a number too, if it says one: tables and command lines hold nothing else.
REAL, WHOLE = BeforeValidator(as_real), BeforeValidator(as_integer)


Truth = Annotated[bool, BeforeValidator(as_truth)]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), REAL]


Rate = Annotated[float, Field(ge=0, allow_inf_nan=False), REAL]


Share = Annotated[float, Field(ge=0, lt=1), REAL]


Number = Annotated[int, Field(ge=0, le=10_000), WHOLE]  # of workers: their vectors are held at once


Natural = Annotated[int, Field(ge=0, le=10**9), WHOLE]


Spec = Annotated[str, BeforeValidator(as_spec)]


Named = Annotated[str, BeforeValidator(name_of_code)]


Hash = Annotated[Annotated[str, Field(pattern=rf"^[0-9a-f]{{{LENGTH}}}$")] | None, BeforeValidator(or_none)]


Schedule = Annotated[tuple[tuple[Natural, Rate], ...], Field(max_length=10_000)]
