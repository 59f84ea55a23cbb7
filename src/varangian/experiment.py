"""One training run: every knob of it, checked before anything starts, and the folder it leaves."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache, wraps
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import numpy as np
import tomlkit
import torch
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from tomlkit.exceptions import TOMLKitError
from torch import Tensor, nn

from . import folders, kernels
from .algorithm import Algorithm
from .attacks import ATTACKS, Attack, parts
from .checks import Refused, cut, printable, shown, unknown
from .data import DATASETS, IID, PARTITIONS, Dataset, Partition, name_of
from .files import (
    check_depth,
    line_of_text,
    number,
    number_of,
    parse_json,
    read_json,
    read_rows,
    read_text,
    whole,
    whole_of,
)
from .folders import FORMAT, Journal
from .gradients import WorkerGradients
from .identity import LENGTH, code_hash, is_ours
from .interrupts import Interrupts
from .metrics import COLUMNS, Measures, Rows
from .mixing import MIXINGS, Mixing
from .models import MODELS
from .models import build as build_model
from .rules import RULES, Rule, published
from .rules.core import check_rows
from .simulate import Evaluator, Profile, Sampler, Simulation
from .specs import MAX_LENGTH, canonical, check, describe, make, parse, reason, split
from .transforms import Clip, Momentum, SharedMomentum, Transform

HASHES = ("data_hash", "code_hash")  # settings that are found, not chosen
CHECKPOINT_EVERY = 60.0  # seconds
MAX_TOML = 2**17  # characters of a TOML text, which is parsed in Python


class ConfigurationError(ValueError):
    """All that is wrong with a configuration, one line each, in ``faults``."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__(faults[0] if len(faults) == 1 else "\n  - ".join([f"{len(faults)} faults:", *faults]))

    def __reduce__(self) -> tuple[type[ConfigurationError], tuple[list[str]]]:
        return ConfigurationError, (self.faults,)  # to come back from another process as it was


def _schedule(value: Any) -> Any:
    """ "0.02,8000:0.004" -> ((0, 0.02), (8000, 0.004)); a plain number stays one."""
    if isinstance(value, str) and ("," in value or ":" in value):
        pieces = [piece.strip().rpartition(":") for piece in value.split(",")]
        value = tuple((start or 0, rate) for start, _, rate in pieces)
    if isinstance(value, list):
        return tuple(tuple(piece) if isinstance(piece, list) else piece for piece in value)
    return value


def _real(value: Any) -> Any:
    """Truth values are no numbers, though Python counts with them."""
    if isinstance(value, (bool, np.bool_, bytes)) or getattr(value, "dtype", None) == torch.bool:
        raise ValueError("must be a number")
    return value


def _integer(value: Any) -> Any:
    if isinstance(_real(value), (str, Integral)):
        return value
    raise ValueError("must be a valid integer")


def _truth(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_, str)):
        return value
    raise ValueError("must be True or False")


def _nothing(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("none", "") else value


def _without_f(value: Any, f: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_without_f(item, f) for item in value)
    return describe(value, f) if isinstance(value, (Rule, Mixing)) else value


def _spec(value: Any) -> Any:
    return describe(value) if isinstance(value, (Rule, Mixing, Attack)) else value


def _optional_spec(value: Any) -> Any:
    return _nothing(_spec(value))


def _partition(value: Any) -> Any:
    return describe(value) if type(value) in PARTITIONS.values() else value


def _list(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > MAX_PRE * MAX_LENGTH:
            raise ValueError(f"at most {MAX_PRE} mixings of {MAX_LENGTH:,} characters")
        value = [] if _nothing(value) is None else split(value)
    if value is None or isinstance(value, Mixing):
        value = [] if value is None else [value]
    return tuple(_spec(item) for item in value) if isinstance(value, (list, tuple)) else value


# Text is a number too, if it says one: tables and command lines hold nothing else.
REAL, WHOLE = BeforeValidator(_real), BeforeValidator(_integer)
Truth = Annotated[bool, BeforeValidator(_truth)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), REAL]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False), REAL]
Share = Annotated[float, Field(ge=0, lt=1), REAL]
Number = Annotated[int, Field(ge=0, le=10_000), WHOLE]  # of workers: their vectors are held at once
Natural = Annotated[int, Field(ge=0, le=10**9), WHOLE]
Spec = Annotated[str, BeforeValidator(_spec)]
Hash = Annotated[Annotated[str, Field(pattern=rf"^[0-9a-f]{{{LENGTH}}}$")] | None, BeforeValidator(_nothing)]
Schedule = Annotated[tuple[tuple[Natural, Rate], ...], Field(max_length=10_000)]
MAX_PRE = 16
FORMS = {
    "learning_rate": "must be a number >= 0, or pieces from a step on as in 0.02,8000:0.004",
    "data_hash": f"must be {LENGTH} hexadecimal digits",
    "code_hash": f"must be {LENGTH} hexadecimal digits",
}

# What settings are called elsewhere, and here.
ELSEWHERE = {
    "lr": "learning_rate",
    "eta": "learning_rate",
    "rate": "learning_rate",
    "n": "workers",
    "clients": "workers",
    "f": "byzantine",
    "attackers": "real_byzantine",
    "mu": "momentum",
    "aggregator": "rule",
    "gar": "rule",
    "preaggregation": "pre",
    "iterations": "steps",
    "weight_decay": "l2",
    "data": "dataset",
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Every knob of one run. Frozen; compared and hashed by value; all faults are reported at once, at construction.

    Batch size, clipping, l2 and momentum are by default those of the paper's fully connected network.

    Rules, mixings, attacks, partitions, models and synthetic data are named as in RULES, MIXINGS, ..., with options in
    parentheses where the defaults do not do: ``"multi-krum(m=5)"``, ``"little(factor=2.0)"``,
    ``"dirichlet(alpha=0.1)"``. The instances themselves are accepted too.

    Raises:
        ConfigurationError: with one line per fault.

    Example:
        >>> e = Experiment(rule="median", attack="little", workers=11, byzantine=4)
        >>> e.name
        'digits-fully-connected-median-little-n11-f4-worker0.9-lr0.1-seed1'
        >>> Experiment.from_json(e.to_json()) == e
        True
    """

    dataset: str = field(
        default="digits", metadata={"help": "what to learn; synthetic(shape=(3,32,32),classes=10) is made up"}
    )
    model: str = field(default="fully-connected", metadata={"help": "what learns it"})
    workers: Annotated[int, Field(ge=1, le=10_000), WHOLE] = field(
        default=15, metadata={"help": "n, honest and Byzantine"}
    )
    byzantine: Number = field(default=3, metadata={"help": "f, how many Byzantine workers the rule tolerates"})
    real_byzantine: Annotated[Number | None, BeforeValidator(_nothing)] = field(
        default=None, metadata={"help": "how many attack; as many as tolerated by default, none without an attack"}
    )
    rule: Spec = field(default="multi-krum", metadata={"help": "the aggregation rule F"})
    pre: Annotated[tuple[str, ...], BeforeValidator(_list), Field(max_length=MAX_PRE)] = field(
        default=(), metadata={"help": "mixings before the rule, comma-separated"}
    )
    attack: Annotated[str | None, BeforeValidator(_optional_spec)] = field(
        default=None, metadata={"help": "what attackers send"}
    )
    momentum: Share = field(default=0.9, metadata={"help": "mu; 0 for none"})
    dampening: Share = field(default=0.0, metadata={"help": "of the momentum"})
    nesterov: Truth = field(default=False, metadata={"help": "take gradients at the look-ahead point"})
    momentum_at: Literal["worker", "server", "shared"] = field(
        default="worker", metadata={"help": "on which side of F momentum stands"}
    )
    clip: Annotated[Positive | None, BeforeValidator(_nothing)] = field(
        default=2.0, metadata={"help": "greatest norm of a sampled gradient; none for no limit"}
    )
    clip_mode: Annotated[Literal["norm", "unit"] | None, BeforeValidator(_nothing)] = field(
        default=None, metadata={"help": "how to clip; by default norm when described, unit when published"}
    )
    batch_size: Annotated[int, Field(ge=1, le=10**6), WHOLE] = field(
        default=83, metadata={"help": "training points per worker and step"}
    )
    steps: Natural = field(default=300, metadata={"help": "updates of the parameters"})
    learning_rate: Annotated[Rate | Schedule, BeforeValidator(_schedule)] = field(
        default=0.1, metadata={"help": "a number, or pieces from a step on: 0.02,8000:0.004"}
    )
    l2: Rate = field(default=1e-4, metadata={"help": "factor c of c/2 ||theta||^2"})
    evaluate_every: Natural = field(
        default=5, metadata={"help": "steps between evaluations on the test set; 0 for the last only"}
    )
    seed: Annotated[int, Field(ge=0, lt=2**63), WHOLE] = field(default=1, metadata={"help": "of everything random"})
    device: str = field(default="cpu", metadata={"help": "of tensors: cpu, cuda, cuda:1 ..."})
    partition: Annotated[str, BeforeValidator(_partition)] = field(
        default="iid", metadata={"help": "how data is dealt to honest workers"}
    )
    profile: Literal["described", "published"] = field(
        default="described", metadata={"help": "as the paper says, or as its code computed"}
    )
    dtype: Literal["float32", "float64"] = field(default="float32", metadata={"help": "of vectors"})
    measure: Truth = field(
        default=True, metadata={"help": "measure norms, cosines, ... at each step; changes no result"}
    )
    data_hash: Hash = field(default=None, metadata={"help": "of data of one's own; filled in by run"})
    code_hash: Hash = field(
        default=None, metadata={"help": "of the code of rules, models, ... of one's own; filled in by run"}
    )

    if TYPE_CHECKING:  # what settings may be given as; they are kept as said above

        def __init__(
            self, *, dataset: str = ..., model: str = ..., workers: int = ..., byzantine: int = ...,
            real_byzantine: int | None = ..., rule: str | Rule = ...,
            pre: str | Mixing | Sequence[str | Mixing] | None = ..., attack: str | Attack | None = ...,
            momentum: float = ..., dampening: float = ..., nesterov: bool = ...,
            momentum_at: Literal["worker", "server", "shared"] = ..., clip: float | None = ...,
            clip_mode: Literal["norm", "unit"] | None = ..., batch_size: int = ..., steps: int = ...,
            learning_rate: float | str | Sequence[tuple[int, float]] = ..., l2: float = ..., evaluate_every: int = ...,
            seed: int = ..., device: str = ..., partition: str | Partition = ...,
            profile: Literal["described", "published"] = ..., dtype: Literal["float32", "float64"] = ...,
            measure: bool = ..., data_hash: str | None = ..., code_hash: str | None = ...,
        ) -> None: ...  # fmt: skip

    def __post_init__(self) -> None:
        # Rules and mixings that tolerate what ``byzantine`` says need not repeat it.
        for name in ("rule", "pre"):
            object.__setattr__(self, name, _without_f(getattr(self, name), self.byzantine))
        sound, faults = set(), []
        for name, adapter in _adapters().items():
            try:
                object.__setattr__(self, name, adapter.validate_python(getattr(self, name)))
                sound.add(name)
            except ValidationError as error:
                faults.append(f"{name}: {FORMS.get(name) or reason(error)}, got {shown(getattr(self, name))}.")
        faults += self._inconsistencies(sound)
        if faults:
            raise ConfigurationError(faults)

    def _inconsistencies(self, sound: set[str]) -> Iterator[str]:
        """What is wrong beyond the type and range of single fields; looks at sound fields only."""
        made: dict[str, Any] = {}
        makers: dict[str, Callable[[], Any]] = {
            "dataset": lambda: name_of(self.dataset),
            "model": lambda: check("model", self.model, MODELS, "shape", "classes"),
            "rule": lambda: (
                Algorithm(rule=self.make_rule()).rule if "byzantine" in sound else parse("rule", self.rule, RULES)
            ),
            "pre": self.make_pre if "byzantine" in sound else lambda: [parse("mixing", p, MIXINGS) for p in self.pre],
            "attack": self.make_attack,
            "partition": lambda: make("partition", self.partition, PARTITIONS),
            "device": lambda: _device(self.device),
        }
        for name, maker in makers.items():
            if name in sound:
                try:
                    made[name] = maker()
                except ValueError as error:
                    yield f"{name}: {error}"
        if {"workers", "byzantine", "rule", "pre"} <= sound and {"rule", "pre"} <= made.keys():
            try:
                Algorithm(pre=made["pre"], rule=made["rule"])
            except ValueError as error:
                yield f"pre: {error}"
            try:
                check_rows(made["pre"], made["rule"], self.workers)
            except ValueError as error:
                yield f"workers: {error}"
        if {"workers", "real_byzantine"} <= sound and (self.real_byzantine or 0) >= self.workers:
            yield (
                f"real_byzantine: at least one of the {self.workers} workers must be honest, "
                f"got {self.real_byzantine} that attack."
            )
        elif (
            {"workers", "byzantine", "real_byzantine", "attack"} <= sound
            and self.real_byzantine is None
            and self.attackers >= self.workers
        ):
            yield (
                f"byzantine: at least one of the {self.workers} workers must be honest, got {self.byzantine} that "
                "attack (as many as are tolerated, unless real_byzantine says otherwise)."
            )
        elif {"workers", "byzantine", "real_byzantine"} <= sound and made.get("attack") and self.attackers:
            try:
                made["attack"].check(self.honest, self.attackers)
            except ValueError as error:
                yield f"attack: {error}"
        one_stream = "profile" in sound and self.profile == "published"
        if one_stream and "partition" in made and type(made["partition"]) is not IID:
            yield (
                f"partition: in the published profile all workers draw from one stream of the data, got "
                f"{self.partition!r}; use iid, or the described profile."
            )
        if {"real_byzantine", "attack"} <= sound and self.real_byzantine and self.attack is None:
            yield f"attack: {self.real_byzantine} workers are to attack (real_byzantine) and no attack is named."
        if "learning_rate" in sound and isinstance(self.learning_rate, tuple):
            starts = [start for start, _ in self.learning_rate]
            if not starts or starts[0] != 0 or starts != sorted(set(starts)):
                yield (
                    "learning_rate: pieces must start at step 0 and go up, as in 0.02,8000:0.004, "
                    f"got steps {shown(starts)}."
                )

    @property
    def attackers(self) -> int:
        """How many workers really attack."""
        if self.attack is None:
            return 0
        return self.byzantine if self.real_byzantine is None else self.real_byzantine

    @property
    def honest(self) -> int:
        """h, how many workers are honest."""
        return self.workers - self.attackers

    def rate(self, step: int) -> float:
        """The learning rate at a step."""
        if not isinstance(self.learning_rate, tuple):
            return self.learning_rate
        return [rate for start, rate in self.learning_rate if start <= step][-1]

    def make_rule(self) -> Rule:
        """The rule, with f = byzantine and, in the published profile, the published conventions."""
        name, options = parse("rule", self.rule, RULES)
        _check_class("rule", name, RULES, Rule)
        if self.profile == "published" and not options:
            return published(name, self.byzantine)
        return make("rule", self.rule, RULES, f=self.byzantine)

    def make_pre(self) -> tuple[Mixing, ...]:
        for spec in self.pre:
            _check_class("mixing", parse("mixing", spec, MIXINGS)[0], MIXINGS, Mixing)
        return tuple(make("mixing", spec, MIXINGS, f=self.byzantine) for spec in self.pre)

    def make_attack(self) -> Attack | None:
        if self.attack is None:
            return None
        _check_class("attack", parse("attack", self.attack, ATTACKS)[0], ATTACKS, Attack)
        return make("attack", self.attack, ATTACKS)

    def make_algorithm(self) -> Algorithm:
        """The four stages that these settings mean."""
        worker: list[Transform] = []
        if self.clip is not None:
            worker.append(Clip(self.clip, self.clip_mode or ("unit" if self.profile == "published" else "norm")))
        server: tuple[Transform, ...] = ()
        if self.momentum:
            options = (self.momentum, self.dampening, self.nesterov)
            if self.momentum_at == "server":
                server = (Momentum(*options),)
            else:
                worker.append(Momentum(*options) if self.momentum_at == "worker" else SharedMomentum(*options))
        return Algorithm(tuple(worker), self.make_pre(), self.make_rule(), server)

    @cached_property
    def name(self) -> str:
        """A readable name; not unique, see ``digest``."""
        rate, said = self._rate, self._canonical
        parts = [said["dataset"], *([f"data{self.data_hash[:8]}"] if self.data_hash else []), said["model"]]
        parts += [canonical("mixing", spec, MIXINGS, self.byzantine) for spec in self.pre]
        parts += [canonical("rule", self.rule, RULES, self.byzantine)]
        parts += ["no-attack" if self.attack is None else canonical("attack", self.attack, ATTACKS)]
        parts += [f"n{self.workers}", f"f{self.byzantine}"]
        if self.attack is not None and self.attackers != self.byzantine:
            parts.append(f"real{self.attackers}")
        place = f"{self.momentum_at}{self.momentum:g}" if self.momentum else "no-momentum"
        parts.append(place + ("-nesterov" if self.momentum and self.nesterov else ""))
        parts += [f"lr{rate[0][1]:g}..." if isinstance(rate, tuple) else f"lr{rate:g}"]
        if said["partition"] != "iid":
            parts.append(said["partition"])
        if self.profile != "described":
            parts.append(self.profile)
        return "-".join(re.sub(r"[^\w.=+-]+", "_", part).strip("_") for part in [*parts, f"seed{self.seed}"])[:180]

    @property
    def _rate(self) -> float | tuple[tuple[int, float], ...]:
        """The learning rate, as a number where it is one all along."""
        rate = self.learning_rate
        return rate[0][1] if isinstance(rate, tuple) and len({value for _, value in rate}) == 1 else rate

    @property
    def _canonical(self) -> dict[str, str]:
        return {
            "dataset": canonical("dataset", self.dataset, DATASETS),
            "model": canonical("model", self.model, MODELS),
            "partition": canonical("partition", self.partition, PARTITIONS),
        }

    @cached_property
    def digest(self) -> str:
        """Ten hexadecimal digits of the fully resolved configuration: equal runs have equal digests, others do not."""
        a = self.make_algorithm()
        resolved = (
            asdict(self)
            | self._canonical
            | {
                "learning_rate": self._rate,
                "stages": [repr(a.worker), [describe(mixing) for mixing in a.pre], describe(a.rule), repr(a.server)],
                "attack": None if self.attack is None else describe(self.make_attack()),
                "attackers": self.attackers,
                "format": FORMAT,
            }
        )
        for resolved_above in (
            "rule",
            "pre",
            "momentum_at",
            "nesterov",
            "dampening",
            "clip",
            "clip_mode",
            "real_byzantine",
            *(name for name in HASHES if resolved[name] is None),
        ):
            del resolved[resolved_above]
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:10]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, lists for tuples; None where nothing is set."""
        return json.loads(json.dumps(asdict(self)))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_toml(self) -> str:
        """As TOML, which has no null: a setting that is None is left out where that is its default, else "none"."""
        defaults = {f.name: f.default for f in fields(self)}
        values = {key: "none" if value is None else value for key, value in self.to_dict().items()}
        return tomlkit.dumps({k: v for k, v in values.items() if v != "none" or defaults[k] is not None})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Experiment:
        """From plain values; unknown settings are faults like any other."""
        known = [f.name for f in fields(cls)]
        strange = [key for key in values if key not in known]
        faults = [unknown("setting", key, _chosen(), ELSEWHERE) for key in strange[:20]]
        if len(strange) > 20:
            faults.append(f"and {len(strange) - 20:,} more unknown settings.")
        try:
            experiment = cls(**{key: value for key, value in values.items() if key in known})
        except ConfigurationError as error:
            raise ConfigurationError(faults + error.faults) from None
        if faults:
            raise ConfigurationError(faults)
        return experiment

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        return cls.from_dict(cls.values_from_text(text))

    @classmethod
    def from_toml(cls, text: str) -> Experiment:
        return cls.from_dict(cls.values_from_text(text, toml=True))

    @staticmethod
    def values_from_text(text: str, toml: bool = False) -> dict[str, Any]:
        """The settings that a JSON or TOML text holds, not looked at yet."""
        try:
            values = _parse_toml(text) if toml else parse_json(text)
        except ValueError as error:
            raise ConfigurationError([f"not {'TOML' if toml else 'JSON'}: {cut(str(error))}"]) from None
        if not isinstance(values, dict):
            raise ConfigurationError([f"an experiment is a JSON object, got {type(values).__name__}."])
        return values


def _chosen() -> list[str]:
    """The settings that somebody chooses."""
    return [f.name for f in fields(Experiment) if f.name not in HASHES]


def _described() -> str:
    """The settings as a part of the docstring: each is described once, beside its default."""
    lines = [f"        {f.name}: {f.metadata['help']}; {f.default!r} by default.\n" for f in fields(Experiment)]
    return f"    Args:\n{''.join(lines)}\n    Raises:"


def _named(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor, which says what was meant by a setting that there is not."""

    @wraps(init)
    def checked(self: Experiment, *given: Any, **settings: Any) -> None:
        known = [f.name for f in fields(Experiment)]
        for name in settings:
            if name not in known:
                raise TypeError(f"Experiment: {unknown('setting', name, _chosen(), ELSEWHERE)}")
        if given:
            raise TypeError("Experiment takes its settings by name: Experiment(rule=..., workers=..., ...).")
        init(self, **settings)

    return checked


Experiment.__init__ = _named(Experiment.__init__)
Experiment.__doc__ = (Experiment.__doc__ or "").replace("    Raises:", _described(), 1)


@lru_cache(maxsize=1)
def _adapters() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(Experiment, include_extras=True)
    return {f.name: TypeAdapter(hints[f.name]) for f in fields(Experiment)}


def _check_class(kind: str, name: str, table: Mapping[str, Any], base: type) -> None:
    """Somebody may have put anything into the tables: a function of vectors, say."""
    if not (isinstance(table[name], type) and issubclass(table[name], base)):
        bases = "General, Selecting or Coordinatewise" if base is Rule else base.__name__
        raise ValueError(f"{name} is no {kind}, which is a class derived from {bases}, got {shown(table[name])}.")


def _parse_toml(text: str) -> dict[str, Any]:
    if len(text) > MAX_TOML:
        raise ValueError(f"more than {MAX_TOML:,} characters.")
    try:
        return check_depth(tomlkit.parse(text).unwrap())
    except RecursionError:
        raise ValueError("nested too deeply.") from None
    except TOMLKitError as error:  # some of which are no ValueError
        raise ValueError(str(error)) from None


def _device(name: str) -> torch.device:
    """The device of that name, which this machine need not have: runs of others are read here too."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    # Names of devices that nobody computes on, such as meta, are known to torch too; it takes indices modulo 256.
    if device is None or device.type not in ("cpu", "cuda", "mps", "xpu") or str(device) != name:
        raise ValueError(f"{shown(name)} is no device, such as cpu, cuda or cuda:1.")
    return device


def _usable(name: str) -> torch.device:
    """The device of that name, if this machine can compute on it.

    Raises:
        ValueError: it cannot.
    """
    device = _device(name)
    if device.type == "mps":
        raise ValueError("device: 'mps' cannot be used: it has no float64, in which distances are computed; use cpu.")
    try:
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device: {shown(name)} cannot be used here: {cut(str(error))}") from None
    return device


# ------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Accuracy (in [0, 1]) and loss on the test set before the update of that step."""

    step: int
    accuracy: float
    loss: float


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gave.

    Attributes:
        experiment: what was run.
        evaluations: at step 0, every ``evaluate_every`` steps, and at the end.
        measures: one row a step.
        seconds: how long it took, reading the data not included.
        stopped: why it ended early (the parameters diverged, the rule refused its input), or None.
        folder: where it is kept, or None.
        began: the step of the checkpoint that this call went on from; 0 where it started at the start. Measures of
            before have the 9 digits of metrics.csv.
        from_disk: whether nothing was trained, since the folder held the complete run.
    """

    experiment: Experiment
    evaluations: list[Evaluation] = field(repr=False)
    measures: Sequence[Measures] = field(repr=False)
    seconds: float
    stopped: str | None = None
    folder: Path | None = None
    began: int = 0
    from_disk: bool = False
    _trained: nn.Module | None = field(default=None, repr=False)

    @property
    def max_accuracy(self) -> float:
        """The greatest accuracy of all evaluations: what the paper reports."""
        return max(e.accuracy for e in self.evaluations)

    @property
    def final_accuracy(self) -> float:
        """The accuracy after the last step."""
        return self.evaluations[-1].accuracy

    def model(self) -> nn.Module:
        """A copy of the trained model, in evaluation mode, on the device where it was trained or, from a folder, on the
        CPU.

        Raises:
            ValueError: this result is of a folder that does not hold it any more.

        Example:
            >>> result = run(Experiment(model="linear", steps=2))
            >>> result.model()(torch.zeros(5, 1, 8, 8)).shape
            torch.Size([5, 10])
        """
        if self._trained is not None:
            return copy.deepcopy(self._trained).eval()
        assert self.folder is not None
        return load_model(self.folder)

    def __str__(self) -> str:
        ending = f", stopped: {self.stopped}" if self.stopped else ""
        ending += f"; read from {self.folder}, nothing was trained" if self.from_disk else ""
        return (
            f"{self.experiment.name}: maximum accuracy {self.max_accuracy:.2%}, final {self.final_accuracy:.2%}, "
            f"{len(self.measures)} steps in {self.seconds:.1f} s{ending}"
        )

    def summary(self) -> dict[str, Any]:
        """What result.json holds."""
        return {
            "format": FORMAT,
            "name": self.experiment.name,
            "digest": self.experiment.digest,
            "max_accuracy": self.max_accuracy,
            "final_accuracy": self.final_accuracy,
            "final_loss": self.evaluations[-1].loss if math.isfinite(self.evaluations[-1].loss) else None,
            "steps": len(self.measures),
            "stopped": self.stopped,
            "seconds": round(self.seconds, 3),
        }


def load_model(folder: str | Path, data_folder: str | Path | None = None) -> nn.Module:
    """The trained model of a complete run, in evaluation mode, on the CPU.

    Args:
        folder: of the run.
        data_folder: where data files are, for runs of a version that did not note the shape of images.

    Raises:
        ValueError: the folder holds no complete run, or the model is not what it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as out:
        ...     kept = run(Experiment(model="linear", steps=2), out)
        ...     model = load_model(kept.folder)
        >>> torch.equal(model[1].weight, kept.model()[1].weight), model.training
        (True, False)
    """
    folder = Path(folder).expanduser()
    e = read(folder).experiment
    state = folders.read_state(folder / folders.STATE)
    shape, classes = state.shape, state.classes
    if shape is None or classes is None:
        dataset = open_dataset(e, data_folder)
        shape, classes = dataset.shape, dataset.classes
    model = _model(replace(e, device="cpu"), shape, classes)
    gradients = WorkerGradients(model)
    found = {name: _kind(buffer) for name, buffer in gradients.buffers().items()}
    if _kind(gradients.parameters()) != _kind(state.parameters) or found != {
        name: _kind(buffer) for name, buffer in state.buffers.items()
    }:
        raise ValueError(f"{folder}: {e.model} is not what it was: {folders.STATE} does not fit.")
    return gradients.adopt(state.parameters, state.buffers).eval()


def identified(
    experiment: Experiment, dataset: Dataset | None = None, data_folder: str | Path | None = None
) -> tuple[Experiment, Dataset | None]:
    """The experiment with ``data_hash`` and ``code_hash`` filled in, and the data if they had to be looked at.

    Data are somebody's own unless the package opens them under the experiment's name and nobody wrote into them since.

    Raises:
        ValueError: the experiment has hashes already, and they are of something else.
        DataError: data of one's own cannot be opened.
    """
    e, ours = experiment, name_of(experiment.dataset)
    if dataset is None and ours is None:
        dataset = open_dataset(e, data_folder)
    if dataset is not None and not isinstance(dataset, Dataset):
        raise ValueError(f"dataset: must be a varangian.data.Dataset, got a {type(dataset).__name__}.")
    own = dataset is not None and not (ours is not None and dataset.intact and dataset.name == ours)
    found = {"data_hash": dataset.fingerprint if own and dataset is not None else None, "code_hash": code_of(e)}
    if e.data_hash not in (None, found["data_hash"]):
        hint = "hand its data in as dataset=..." if dataset is None else "these are others"
        raise ValueError(f"this experiment is of data of somebody's own, with hash {e.data_hash}: {hint}.")
    if e.code_hash not in (None, found["code_hash"]):
        raise ValueError(
            f"the code of this experiment is no longer what it was: its hash was {e.code_hash} and is "
            f"{found['code_hash']}; start over with code_hash=None."
        )
    return replace(e, **found), dataset


def code_of(e: Experiment) -> str | None:
    """The hash of the code of somebody's own that a run is made with, as it is now; None where all is the package's."""
    values: list[object] = [MODELS[parse("model", e.model, MODELS)[0]]]
    values.append(PARTITIONS[parse("partition", e.partition, PARTITIONS)[0]])
    for stage in (e.make_rule(), *e.make_pre(), e.make_attack()):
        if stage is not None:
            values += parts(stage)
    return code_hash(values)


def open_dataset(experiment: Experiment, folder: str | Path | None = None, download: bool = True) -> Dataset:
    """The data of an experiment.

    Raises:
        DataError: a file that is missing or not what it should be.
    """
    return make("dataset", experiment.dataset, DATASETS, folder=folder, download=download)


def build(experiment: Experiment, dataset: Dataset) -> tuple[Simulation, Evaluator]:
    """The simulation of an experiment at step 0, and its evaluator."""
    e, dtype = experiment, getattr(torch, experiment.dtype)
    _usable(e.device)
    model = _model(e, dataset.shape, dataset.classes)
    gradients = WorkerGradients(model, training=e.profile == "described", seed=e.seed)
    deal = make("partition", e.partition, PARTITIONS) if e.partition != "iid" else "iid"
    attack = e.make_attack()
    learners = e.workers if attack is not None and attack.uses_flipped else e.honest
    sampler = Sampler(dataset, learners, e.batch_size, e.seed, deal, e.profile, e.device, dtype)
    simulation = Simulation(
        gradients,
        sampler,
        e.make_algorithm(),
        e.workers,
        e.attackers,
        attack,
        e.rate,
        e.momentum,
        e.l2,
        e.profile,
        e.seed,
        e.measure,
        dataset.classes,
    )
    mirrors = e.profile == "published" and dataset.flip  # only then does an evaluator depend on the seed
    return simulation, _evaluator(dataset, dataset.seal, e.seed if mirrors else 0, e.profile, e.device, dtype)


def _model(e: Experiment, shape: tuple[int, int, int], classes: int) -> nn.Module:
    def factory(shape: tuple[int, int, int], classes: int) -> nn.Module:
        model = make("model", e.model, MODELS, shape=shape, classes=classes)
        if not isinstance(model, nn.Module):
            raise ValueError(f"model: {e.model} must make a torch.nn.Module, got a {type(model).__name__}.")
        # Somebody's function may answer the same module each time, and training must not change it.
        return model if is_ours(MODELS[parse("model", e.model, MODELS)[0]]) else copy.deepcopy(model)

    return build_model(factory, shape, classes, e.seed).to(e.device, getattr(torch, e.dtype))


@lru_cache(maxsize=1)
def _evaluator(
    dataset: Dataset, seal: tuple[object, ...], seed: int, profile: Profile, device: str, dtype: torch.dtype
) -> Evaluator:
    """Shared by the runs of a process on the same data, as long as nobody writes into them: test images are prepared
    once."""
    return Evaluator(dataset, seed, profile, device, dtype)


Progress = Callable[[int, Evaluation | None], None]


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    dataset: Dataset | None = None,
    data_folder: str | Path | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> Result:
    """One training run. The same call again goes on with one that was interrupted, and reads one that is complete.

    A run that is kept writes checkpoints while it goes, and one when it is interrupted: Ctrl-C, SIGTERM and SIGHUP wait
    for the end of the step, a second Ctrl-C does not. So does a KeyboardInterrupt or SystemExit that ``progress``
    raises, which is the way to end a run in another thread than the main one. What an interrupted run comes to
    is what an uninterrupted one does, to the last byte (docs/reliability.md says under which conditions).

    Args:
        experiment: what to run.
        out: the folder in which to keep it, as ``<out>/<name>-<digest>/``; None keeps nothing.
        dataset: the data, if at hand; else it is opened. Data that are not those of the experiment's name make another
            run of it, whose experiment has their hash.
        data_folder: where its files are.
        progress: called after each step, and once more at the end, with the steps done and the newest evaluation: so
            it hears of all evaluations that this call makes.
        fresh: start over, whatever is there.
        checkpoint_every: seconds between two checkpoints; more where they would cost over 1 % of the time. 0 is after
            every step, infinity only when interrupted.

    Raises:
        DataError: a data file is missing or corrupt.
        FolderInUse: another process is at this run.
        OSError: the folder cannot be written; a checkpoint is kept, and without one nothing is left behind.
        ValueError: the folder holds another run, or one of a newer version; or the device cannot be used.

    What code of one's own raises is raised here as it is, and the next call goes on from the last checkpoint.

    Example:
        >>> result = run(Experiment(rule="median", attack="empire", steps=20, workers=11, byzantine=2))
        >>> len(result.measures), result.stopped
        (20, None)
    """
    _check_interval(checkpoint_every)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"run takes an Experiment, got a {type(experiment).__name__}.")
    experiment, dataset = identified(experiment, dataset, data_folder)
    _warn_of_nobody(experiment)
    if out is not None:
        folder = Path(out).expanduser() / f"{experiment.name}-{experiment.digest}"
        if folder.is_symlink():
            raise ValueError(f"{folder} is a symbolic link, and not written through.")
        return _run_in(folder, experiment, dataset, data_folder, progress, fresh, checkpoint_every)
    dataset = open_dataset(experiment, data_folder) if dataset is None else dataset
    with kernels.exclusive_threads(), torch.inference_mode(False), _memory():
        return _train(experiment, *build(experiment, dataset), None, Interrupts(), progress)


def _warn_of_nobody(e: Experiment) -> None:
    if e.attack is not None and e.attackers == 0 and e.real_byzantine is None:
        warnings.warn(
            f"attack {e.attack} is named and nobody attacks: byzantine is 0, and so is real_byzantine by default. The "
            "run is named by the attack all the same.",
            stacklevel=3,
        )


def resume(
    folder: str | Path,
    dataset: Dataset | None = None,
    data_folder: str | Path | None = None,
    progress: Progress | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> Result:
    """Goes on with the run in a folder, whatever the folder is called now; one that is complete is read.

    Args: as for :func:`run`.

    Raises:
        ValueError: the folder holds no run, or its settings were changed, or the data or code of somebody's own that it
            was made with.
        DataError, FolderInUse, OSError: as for :func:`run`.
    """
    _check_interval(checkpoint_every)
    folder = Path(folder).expanduser()
    experiment = settings_of(folder)
    if dataset is not None or not (folder / folders.RESULT).exists():
        dataset = same_data(folder, experiment, dataset, data_folder)
    return _run_in(folder, experiment, dataset, data_folder, progress, False, checkpoint_every)


def same_data(
    folder: Path, experiment: Experiment, dataset: Dataset | None, data_folder: str | Path | None
) -> Dataset | None:
    """The data, if they had to be looked at, for the run in a folder.

    Raises:
        ValueError: they, or code of somebody's own, are not what the run was made with.
    """
    try:
        found, dataset = identified(experiment, dataset, data_folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if found != experiment:
        lines = "; ".join(differences(experiment, found))
        raise ValueError(f"{folder} was made with other data or other code of somebody's own: {lines}.")
    return dataset


def settings_of(folder: str | Path) -> Experiment:
    """The experiment that a run folder is of, complete or not.

    Raises:
        ValueError: there is none that can be read.
    """
    folder = Path(folder).expanduser()
    folders.check_folder(folder)
    try:
        return Experiment.from_json(read_text(folder / folders.SETTINGS, folders.MAX_JSON))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} holds no run: {folders.SETTINGS} is missing.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read as a run: {folders.SETTINGS}: {error}") from None


def differences(there: Experiment, asked: Experiment) -> list[str]:
    """In which settings two experiments differ, a line each."""
    one, other = there.to_dict(), asked.to_dict()
    return [f"{name}: {one[name]!r} there, {other[name]!r} asked for" for name in one if one[name] != other[name]]


def _check_interval(seconds: float) -> None:
    if not seconds >= 0:
        raise ValueError(f"checkpoint_every: must be a number of seconds >= 0, got {seconds}.")


def _check_same(folder: Path, there: Experiment, asked: Experiment) -> None:
    if there.digest != asked.digest:
        lines = "\n  - ".join(differences(there, asked))
        raise ValueError(
            f"{folder} holds a run of other settings; start over there (--fresh) or choose another folder:\n  - {lines}"
        )


def _run_in(
    folder: Path, experiment: Experiment, dataset: Dataset | None, data_folder: str | Path | None,
    progress: Progress | None, fresh: bool, checkpoint_every: float,
) -> Result:  # fmt: skip
    folders.check_folder(folder)
    if not fresh:
        found = _complete_run(folder, experiment)
        if found is not None:
            return found
    check_writable(folder)
    with folders.held(folder):
        found = None if fresh else _complete_run(folder, experiment)  # another process may just have completed it
        if found is not None:
            return found
        if fresh:
            folders.clear(folder)
        dataset = open_dataset(experiment, data_folder) if dataset is None else dataset
        with kernels.exclusive_threads(), torch.inference_mode(False), _memory():
            simulation, evaluator = build(experiment, dataset)
            try:
                journal = Journal(
                    folder, experiment.to_json(), experiment.digest, COLUMNS, simulation, experiment.device,
                    checkpoint_every,
                )  # fmt: skip
            except folders.OtherSettings as other:
                _check_same(folder, Experiment.from_json(other.settings), experiment)
                raise
            with journal, Interrupts() as interrupts:
                result = replace(
                    _train(experiment, simulation, evaluator, journal, interrupts, progress), folder=folder
                )
                journal.complete(result.summary(), dataset.shape, dataset.classes)
                return result


@contextmanager
def _memory() -> Iterator[None]:
    """What torch says where memory is short, as the MemoryError that everybody else raises."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "allocate memory" not in text:
            raise
        asked = re.search(r"tried to allocate ([\d.]+ ?\w*)", text, re.IGNORECASE)
        raise MemoryError(f"unable to allocate {asked[1]}." if asked else text.splitlines()[0]) from None


def _complete_run(folder: Path, experiment: Experiment) -> Result | None:
    """The run in a folder if it is complete; an incomplete one of other settings is refused as well."""
    complete = (folder / folders.RESULT).exists()
    if complete or (folder / folders.SETTINGS).exists():
        try:
            there = settings_of(folder)
        except ValueError:
            if complete:
                raise
            return None  # torn before the first checkpoint: it is written anew
        _check_same(folder, there, experiment)
    return read(folder) if complete else None


def _train(
    e: Experiment, simulation: Simulation, evaluator: Evaluator, journal: Journal | None, interrupts: Interrupts,
    progress: Progress | None,
) -> Result:  # fmt: skip
    evaluations: list[Evaluation] = []
    measures = Rows()
    stopped, start, began = None, time.perf_counter(), simulation.steps_done
    if journal is not None:
        evaluations = [Evaluation(*row) for row in journal.evaluations]
        stopped, start = journal.stopped, start - journal.seconds
        if began:
            measures = _read_measures(journal.folder / folders.METRICS)

    def evaluate() -> None:
        step = simulation.steps_done
        newest = Evaluation(step, *evaluator(simulation.gradients, simulation.parameters, step))
        evaluations.append(newest)
        if journal is not None:
            journal.evaluate([str(step), f"{newest.accuracy:.9g}", f"{newest.loss:.9g}"])

    def save() -> None:
        if journal is not None and journal.saved < simulation.steps_done:
            rows = [(evaluation.step, evaluation.accuracy, evaluation.loss) for evaluation in evaluations]
            journal.save(rows, stopped, time.perf_counter() - start)

    def tell() -> None:
        if progress is not None:
            try:
                progress(simulation.steps_done, evaluations[-1])
            except (KeyboardInterrupt, SystemExit):
                save()
                raise

    while stopped is None and simulation.steps_done < e.steps:
        if interrupts.pending is not None:
            save()
            interrupts.deliver()
        step = simulation.steps_done
        if step == 0 or (e.evaluate_every and step % e.evaluate_every == 0):
            evaluate()
        try:
            row = simulation.step()
        except Refused as error:  # anything else is an error, of the user's code or ours, and no result
            if error is not simulation.refused:
                raise
            stopped = cut(printable(f"step {step}: {error}"))
            break
        measures.append(row)
        if journal is not None:
            journal.measure(row.row())
        if simulation.diverged:
            stopped = f"step {step}: the parameters are no longer finite."
        tell()
        if journal is not None and journal.due:
            save()
    if not evaluations or evaluations[-1].step < simulation.steps_done:  # else the step that failed was evaluated
        evaluate()
    seconds = time.perf_counter() - start
    tell()
    trained = simulation.gradients.adopt(simulation.parameters)
    return Result(e, evaluations, measures, seconds, stopped, began=began, _trained=trained)


def check_writable(folder: Path) -> None:
    """Fails before the data is read and the training starts, and leaves nothing behind."""
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{folder}: {parent} is not a folder.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise PermissionError(f"{folder} cannot be written: {error.strerror}; choose another --out.") from None


def read(folder: str | Path) -> Result:
    """The complete run in a folder.

    Raises:
        ValueError: the folder holds no complete run, or one that cannot be read.
    """
    folder = Path(folder).expanduser()
    try:
        summary = read_json(folder / folders.RESULT, folders.MAX_JSON)
        experiment = Experiment.from_json(read_text(folder / folders.SETTINGS, folders.MAX_JSON))
        folders.check_format(folder / folders.RESULT, summary)
        check_summary(summary, experiment)
        seconds = number(summary["seconds"], "seconds", 0)
        needed = ("step", "accuracy", "loss")
        evaluations = [_evaluation(row) for row in read_rows(folder / folders.EVALUATIONS, needed)]
        measures = _read_measures(folder / folders.METRICS)
        if not evaluations or len(measures) != summary["steps"]:
            raise ValueError("rows are missing from its tables.")
        return Result(experiment, evaluations, measures, seconds, summary["stopped"], folder, from_disk=True)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no complete run: {Path(error.filename).name} is missing.") from None
    except KeyError as error:
        raise ValueError(f"{folder} cannot be read as a run: {error} is missing.") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read as a run: {cut(str(error))}") from None


def check_summary(summary: dict[str, Any], experiment: Experiment) -> None:
    """Refuses a result.json that is of another experiment or a later version, or does not hold what it should.

    Raises:
        ValueError: the first fault.
        KeyError: something is missing.
    """
    if whole(summary["format"], "format", 1) == FORMAT and summary["digest"] != experiment.digest:
        raise ValueError(
            f"result.json is of another experiment: its digest is {shown(summary['digest'])}, that of "
            f"experiment.json is {experiment.digest}."
        )
    for name in ("max_accuracy", "final_accuracy"):
        number(summary[name], name, 0, 1)
    if summary["final_loss"] is not None:
        number(summary["final_loss"], "final_loss")
    whole(summary["steps"], "steps")
    if summary["stopped"] is not None:
        line_of_text(summary["stopped"], "stopped")


def _evaluation(row: dict[str, str]) -> Evaluation:
    accuracy = number_of(row["accuracy"], "accuracy", 0, 1)
    return Evaluation(whole_of(row["step"], "step"), accuracy, _any_number(row["loss"], "loss"))


def _read_measures(path: Path) -> Rows:
    return Rows(_measures(row) for row in read_rows(path, COLUMNS))


def _measures(row: dict[str, str]) -> Measures:
    values: dict[str, Any] = {name: _any_number(row[name], name) for name in COLUMNS if row[name]}
    return Measures(**(values | {name: whole_of(row[name], name) for name in ("step", "points")}))


def _kind(x: Tensor) -> tuple[torch.dtype, torch.Size]:
    return x.dtype, x.shape


def _any_number(text: str, what: str) -> float:
    """What diverges may be a NaN or an infinity."""
    return float(text) if text in ("nan", "inf", "-inf") else number_of(text, what)
