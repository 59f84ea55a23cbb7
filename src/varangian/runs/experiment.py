"""Every setting of one run, checked before anything starts."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import tomlkit
import torch
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from tomlkit.exceptions import TOMLKitError

from ..core import references
from ..core.algorithm import Algorithm
from ..core.attacks import ATTACKS, KNOWLEDGE, Attack, ThreatModel, learns_twice, parts
from ..core.checks import cut, is_ours, shown, unknown
from ..core.mixing import MIXINGS, Mixing
from ..core.placement import Adaptive
from ..core.quarantine import QUARANTINES, Quarantine
from ..core.references import NotImported, importing
from ..core.rules import RULES, Rule, published
from ..core.specs import canonical, check, describe, find, function, make, parse, reason, shortest
from ..core.stages import check_rows, check_weighs
from ..core.transforms import Clip, Momentum, SharedMomentum, Transform
from ..simulation.clients import Population
from ..simulation.data import DATASETS, IID, PARTITIONS, Partition, name_of
from ..simulation.identity import LENGTH
from ..simulation.losses import LOSSES, Loss, OwnLoss
from ..simulation.models import MODELS
from ..simulation.scores import METRICS, PER_CLASS, Score, number_of, per_class
from .cards import device_of
from .fields import (
    MAX_METRICS,
    MAX_PRE,
    NAMED,
    REAL,
    WHOLE,
    Hash,
    Named,
    Natural,
    Number,
    Positive,
    Rate,
    Schedule,
    Share,
    Spec,
    Truth,
    as_dataset,
    as_device,
    as_metrics,
    as_optional_spec,
    as_partition,
    as_quarantine,
    as_schedule,
    as_specs,
    as_type,
    column_of,
    or_none,
    without_f,
)
from .files import (
    check_depth,
    parse_json,
)
from .folders import FORMAT

T = TypeVar("T")

# Settings that are specs, one or several: what each is of, and the table of its names.
SPECS: dict[str, tuple[str, Mapping[str, Callable[..., Any]]]] = {
    "dataset": ("dataset", DATASETS),
    "model": ("model", MODELS),
    "rule": ("rule", RULES),
    "pre": ("mixing", MIXINGS),
    "attack": ("attack", ATTACKS),
    "partition": ("partition", PARTITIONS),
    "loss": ("loss", LOSSES),
    "metrics": ("metric", METRICS),
    "knowledge": ("knowledge", KNOWLEDGE),
}


HASHES = ("data_hash", "code_hash")  # settings that are found, not chosen


MAX_TOML = 2**17  # characters of a TOML text, which is parsed in Python


class ConfigurationError(ValueError):
    """All that is wrong with a configuration, one line each, in ``faults``."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__(faults[0] if len(faults) == 1 else "\n  - ".join([f"{len(faults)} faults:", *faults]))

    def __reduce__(self) -> tuple[type[ConfigurationError], tuple[list[str]]]:
        return ConfigurationError, (self.faults,)  # to come back from another process as it was


_EVALUATED = ("step", "accuracy", "loss")  # columns that there are anyway
SUCCESS = "attack_success"  # and the one of runs under an attack that aims


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

    dataset: Annotated[str, BeforeValidator(as_dataset)] = field(
        default="digits", metadata={"help": "what to learn; synthetic(shape=(3,32,32),classes=10) is made up"}
    )
    model: Named = field(default="fully-connected", metadata={"help": "what learns it"})
    workers: Annotated[int, Field(ge=1, le=10_000), WHOLE] = field(
        default=15, metadata={"help": "n, honest and Byzantine"}
    )
    byzantine: Number = field(default=3, metadata={"help": "f, how many Byzantine workers the rule tolerates"})
    real_byzantine: Annotated[Number | None, BeforeValidator(or_none)] = field(
        default=None, metadata={"help": "how many attack; as many as tolerated by default, none without an attack"}
    )
    rule: Spec = field(default="multi-krum", metadata={"help": "the aggregation rule F"})
    pre: Annotated[tuple[str, ...], BeforeValidator(as_specs), Field(max_length=MAX_PRE)] = field(
        default=(), metadata={"help": "mixings before the rule, comma-separated"}
    )
    attack: Annotated[str | None, BeforeValidator(as_optional_spec)] = field(
        default=None, metadata={"help": "what attackers send"}
    )
    momentum: Share = field(default=0.9, metadata={"help": "mu; 0 for none"})
    dampening: Share = field(default=0.0, metadata={"help": "of the momentum"})
    nesterov: Truth = field(default=False, metadata={"help": "take gradients at the look-ahead point"})
    momentum_at: Literal["worker", "server", "shared", "adaptive"] = field(
        default="worker", metadata={"help": "on which side of F momentum stands; adaptive: the server moves it"}
    )
    clip: Annotated[Positive | None, BeforeValidator(or_none)] = field(
        default=2.0, metadata={"help": "greatest norm of a sampled gradient; none for no limit"}
    )
    clip_mode: Annotated[Literal["norm", "unit"] | None, BeforeValidator(or_none)] = field(
        default=None, metadata={"help": "how to clip; by default norm when described, unit when published"}
    )
    batch_size: Annotated[int, Field(ge=1, le=10**6), WHOLE] = field(
        default=83, metadata={"help": "training points per worker and step"}
    )
    steps: Natural = field(default=300, metadata={"help": "updates of the parameters"})
    learning_rate: Annotated[Rate | Schedule, BeforeValidator(as_schedule)] = field(
        default=0.1, metadata={"help": "a number, or pieces from a step on: 0.02,8000:0.004"}
    )
    l2: Rate = field(default=1e-4, metadata={"help": "factor c of c/2 ||theta||^2"})
    evaluate_every: Natural = field(
        default=5, metadata={"help": "steps between evaluations on the test set; 0 for the last only"}
    )
    seed: Annotated[int, Field(ge=0, lt=2**63), WHOLE] = field(default=1, metadata={"help": "of everything random"})
    device: Annotated[str, BeforeValidator(as_device)] = field(
        default="cpu", metadata={"help": "of tensors: cpu, cuda, cuda:1 ..."}
    )
    partition: Annotated[str, BeforeValidator(as_partition)] = field(
        default="iid", metadata={"help": "how data is dealt to honest workers"}
    )
    profile: Literal["described", "published"] = field(
        default="described", metadata={"help": "as the paper says, or as its code computed"}
    )
    dtype: Annotated[Literal["float32", "float64"], BeforeValidator(as_type)] = field(
        default="float32", metadata={"help": "of vectors"}
    )
    measure: Truth = field(
        default=True, metadata={"help": "measure norms, cosines, ... at each step; changes no result"}
    )
    validation: Annotated[float, Field(ge=0, lt=1), REAL] = field(
        default=0.0,
        metadata={
            "help": "share of the training data kept from workers and evaluated: to choose settings on",
            "later": True,
        },
    )
    loss: Named = field(
        default="cross-entropy",
        metadata={"help": "what is learned: cross-entropy of classes, mse or bce of real numbers", "later": True},
    )
    metrics: Annotated[tuple[str, ...], BeforeValidator(as_metrics), Field(max_length=MAX_METRICS)] = field(
        default=(),
        metadata={
            "help": "what else evaluations measure: macro-f1, worst-class, ... or functions of all outputs and labels",
            "later": True,
        },
    )
    precision: Literal["float32", "tf32"] = field(
        default="float32",
        metadata={
            "help": "of products and convolutions on a card: tf32 has 10 binary digits of float32's 23, and is faster",
            "later": True,
        },
    )
    autotune: Truth = field(
        default=False,
        metadata={
            "help": "cuDNN tries its algorithms on a card and takes the fastest, not always the same one",
            "later": True,
        },
    )
    knowledge: Spec = field(
        default="omniscient",
        metadata={
            "help": "what attackers know of honest vectors: omniscient, own, spied(k=3), last-round",
            "later": True,
        },
    )
    clients: Annotated[Annotated[int, Field(ge=1, le=10**7), WHOLE] | None, BeforeValidator(or_none)] = field(
        default=None,
        metadata={"help": "N, of whom the n workers of a step are drawn; none: all workers are in each", "later": True},
    )
    attackers_change: Natural = field(
        default=0,
        metadata={"help": "steps after which other workers or clients attack; 0 for always the same", "later": True},
    )
    absent: Literal["kept", "kept-on-disk", "decayed", "dropped"] = field(
        default="kept",
        metadata={"help": "what becomes of the momentum of a client that is not in a step", "later": True},
    )
    local_steps: Annotated[int, Field(ge=1, le=10_000), WHOLE] = field(
        default=1,
        metadata={
            "help": "steps that a worker takes by itself before it sends the sum of its gradients",
            "later": True,
        },
    )
    weighting: Literal["equal", "size"] = field(
        default="equal",
        metadata={
            "help": "what a worker counts: as much as any other, or by how many examples it holds",
            "later": True,
        },
    )
    cap: Annotated[Annotated[float, Field(ge=1, allow_inf_nan=False), REAL] | None, BeforeValidator(or_none)] = field(
        default=None,
        metadata={"help": "the most that a worker may count, in equal shares; none for no limit", "later": True},
    )
    quarantine: Annotated[str | None, BeforeValidator(as_quarantine)] = field(
        default=None,
        metadata={
            "help": "excludes workers for some time that are suspicious again and again: quarantine(window=20)",
            "later": True,
        },
    )
    order: Literal["shuffled", "honest-first"] = field(
        default="shuffled",
        metadata={
            "help": "in which order rules and mixings of your own are shown the vectors: another in each step, or "
            "those of attackers last",
            "later": True,
        },
    )
    data_hash: Hash = field(default=None, metadata={"help": "of data of one's own; filled in by run"})
    code_hash: Hash = field(
        default=None, metadata={"help": "of the code of rules, models, ... of one's own; filled in by run"}
    )

    if TYPE_CHECKING:  # what settings may be given as; they are kept as said above

        def __init__(
            self, *, dataset: str = ..., model: str | Callable[..., Any] = ...,
            workers: int = ..., byzantine: int = ..., real_byzantine: int | None = ...,
            rule: str | Rule | type[Rule] = ...,
            pre: str | Mixing | type[Mixing] | Sequence[str | Mixing | type[Mixing]] | None = ...,
            attack: str | Attack | type[Attack] | None = ...,
            momentum: float = ..., dampening: float = ..., nesterov: bool = ...,
            momentum_at: Literal["worker", "server", "shared", "adaptive"] = ..., clip: float | None = ...,
            clip_mode: Literal["norm", "unit"] | None = ..., batch_size: int = ..., steps: int = ...,
            learning_rate: float | str | Sequence[tuple[int, float]] = ..., l2: float = ..., evaluate_every: int = ...,
            seed: int = ..., device: str | torch.device = ..., partition: str | Partition | type[Partition] = ...,
            profile: Literal["described", "published"] = ...,
            dtype: Literal["float32", "float64"] | torch.dtype = ...,
            measure: bool = ..., validation: float = ...,
            loss: str | Callable[..., Any] = ...,
            metrics: str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None = ...,
            precision: Literal["float32", "tf32"] = ..., autotune: bool = ...,
            knowledge: str | ThreatModel | type[ThreatModel] = ...,
            clients: int | None = ..., attackers_change: int = ...,
            absent: Literal["kept", "kept-on-disk", "decayed", "dropped"] = ..., local_steps: int = ...,
            weighting: Literal["equal", "size"] = ..., cap: float | None = ...,
            quarantine: str | Quarantine | None = ...,
            order: Literal["shuffled", "honest-first"] = ...,
            data_hash: str | None = ..., code_hash: str | None = ...,
        ) -> None: ...  # fmt: skip

    def __post_init__(self) -> None:
        foreign = {name for name in SPECS if _is_read(getattr(self, name))}
        # Rules and mixings that tolerate what ``byzantine`` says need not repeat it.
        for name in ("rule", "pre"):
            object.__setattr__(self, name, without_f(getattr(self, name), self.byzantine))
        sound, faults = set(), []
        for name, adapter in _adapters().items():
            try:
                object.__setattr__(self, name, adapter.validate_python(getattr(self, name)))
                sound.add(name)
            except ValidationError as error:
                rule = (FORMS.get(name) or reason(error)).rstrip(".")
                faults.append(f"{name}: {rule}, got {shown(getattr(self, name))}.")
        with importing(True):  # unless this is read from somebody's folder, or made of what is
            self._import(sound - foreign)
            faults += self._inconsistencies(sound, foreign)
            if faults:
                raise ConfigurationError(faults)
            if references.may_import():
                self._shorten(SPECS.keys() - foreign)
        self._shorten_to("loss", canonical("loss", self.loss, LOSSES))
        if self.clients == self.workers:  # everybody is in each step
            self._shorten_to("clients", None)
        self._shorten_to("knowledge", canonical("knowledge", self.knowledge, KNOWLEDGE))
        if self.quarantine is not None:
            self._shorten_to("quarantine", canonical("quarantine", self.quarantine, QUARANTINES))

    def import_code(self, *settings: str) -> Experiment:
        """Imports the code of somebody's own that these settings, or all, name; the experiment itself.

        Raises:
            ConfigurationError: it is not what it should be.
        """
        wanted = set(settings or SPECS) | {"byzantine"}
        with importing(True):
            self._import(wanted)
            faults = list(self._inconsistencies(wanted, set()))
        if faults:
            raise ConfigurationError(faults)
        return self

    def specs(self, settings: Container[str] = SPECS) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
        """Those of the settings that are specs: (setting, kind, text, table of names), mixings one by one."""
        for setting, (kind, table) in SPECS.items():
            value = getattr(self, setting)
            if setting in settings and value is not None:
                for text in value if isinstance(value, tuple) else (value,):
                    yield setting, kind, text, table

    def _import(self, settings: Container[str]) -> None:
        """What the code of somebody's own raises as it is imported is raised here, and is no fault of a setting."""
        for _, kind, text, table in self.specs(settings):
            try:
                name, _ = parse(kind, text, table)
            except ValueError:  # which will be said
                continue
            if name not in table:
                with suppress(references.Fault):
                    references.find(kind, name)

    def origins(self) -> list[dict[str, str]]:
        """Where code of somebody's own came from, as far as it was imported: see :func:`references.origin`."""
        named = [(kind, parse(kind, text, table)[0], table) for _, kind, text, table in self.specs()]
        own = dict.fromkeys((kind, name) for kind, name, table in named if name not in table)
        return [references.origin(kind, name) for kind, name in own if references.known(kind, name) is not None]

    def _shorten(self, settings: Set[str]) -> None:
        """Settings that name code of somebody's own are kept in their shortest form, which is then known without it."""
        texts: dict[str, list[str]] = {}
        for setting, kind, text, table in self.specs(settings - {"attack"}):
            texts.setdefault(setting, []).append(self._short(kind, text, table))
        for setting, each in texts.items():
            self._shorten_to(setting, tuple(each) if isinstance(getattr(self, setting), tuple) else each[0])
        if "attack" in settings and self.attack is not None:
            short = self._short("attack", self.attack, ATTACKS)
            if "(" in short and parse("attack", short, ATTACKS)[0] in ATTACKS and (made := self.make_attack()):
                own = not all(is_ours(kind) for kind in parts(made))  # attacks that its options name
                short = describe(made, NAMED) if own else short
            self._shorten_to("attack", short)

    def _short(self, kind: str, text: str, table: Mapping[str, Any]) -> str:
        if parse(kind, text, table)[0] in table:
            return text
        with suppress(NotImported):
            return shortest(kind, text, table, self.byzantine if kind in ("rule", "mixing") else None)
        return text

    def _shorten_to(self, setting: str, value: Any) -> None:
        if value != getattr(self, setting):
            object.__setattr__(self, setting, value)

    def _mark(self, setting: str) -> None:
        """What was not imported may not be either where another experiment is made of this one."""
        value = getattr(self, setting)
        marked = tuple(map(references.Read, value)) if isinstance(value, tuple) else references.Read(value)
        object.__setattr__(self, setting, marked)

    def _inconsistencies(self, sound: set[str], foreign: Container[str]) -> Iterator[str]:
        """What is wrong beyond the type and range of single fields; looks at sound fields only, and imports nothing for
        the foreign ones."""
        made: dict[str, Any] = {}
        makers: dict[str, Callable[[], Any]] = {
            "dataset": lambda: name_of(self.dataset),
            "model": lambda: check("model", self.model, MODELS, "shape", "classes"),
            "rule": lambda: (
                Algorithm(rule=self.make_rule()).rule if "byzantine" in sound else parse("rule", self.rule, RULES)
            ),
            "pre": self.make_pre if "byzantine" in sound else lambda: [parse("mixing", p, MIXINGS) for p in self.pre],
            "attack": self.make_attack,
            "knowledge": self.make_knowledge,
            "partition": self.make_partition,
            "loss": self.make_loss,
            "metrics": self.make_metrics,
            "device": lambda: device_of(self.device),
            "quarantine": self.make_quarantine,
        }
        for name, maker in makers.items():
            if name in sound and (name != "metrics" or "attack" in sound):  # one more column under some attacks
                try:
                    with importing(name not in foreign):
                        made[name] = maker()
                        _check_known(self.specs((name,)))
                except NotImported:  # nobody looks into it here
                    made.pop(name, None)
                    self._mark(name)
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
            yield from self._unknowing(made["attack"], made.get("knowledge"))
        one_stream = "profile" in sound and self.profile == "published"
        if one_stream and "partition" in made and type(made["partition"]) is not IID:
            yield (
                f"partition: in the published profile all workers draw from one stream of the data, got "
                f"{self.partition!r}; use iid, or the described profile."
            )
        if {"real_byzantine", "attack"} <= sound and self.real_byzantine and self.attack is None:
            yield f"attack: {self.real_byzantine} workers are to attack (real_byzantine) and no attack is named."
        card = "device" in made and made["device"].type == "cuda"
        if "momentum_at" in sound and self.momentum_at == "adaptive" and card:
            yield (
                f"momentum_at: adaptive decides in main memory (device cpu), and device is {self.device}; "
                "use worker or server."
            )
        yield from self._of_rounds(sound, made)
        yield from self._of_weights(sound, made)
        yield from self._of_quarantine(sound, made)
        if "precision" in sound and self.precision == "tf32":
            if "device" in made and not card:
                yield f"precision: tf32 is of cards (device cuda), and device is {self.device}; use float32."
            if "dtype" in sound and self.dtype != "float32":
                yield f"precision: tf32 is of numbers of float32, and dtype is {self.dtype}; use precision float32."
        if "autotune" in sound and self.autotune and "device" in made and not card:
            yield f"autotune: it is of cards (device cuda), and device is {self.device}; leave it out."
        if "learning_rate" in sound and isinstance(self.learning_rate, tuple):
            starts = [start for start, _ in self.learning_rate]
            if not starts or starts[0] != 0 or starts != sorted(set(starts)):
                yield (
                    "learning_rate: pieces must start at step 0 and go up, as in 0.02,8000:0.004, "
                    f"got steps {shown(starts)}."
                )

    def _of_rounds(self, sound: set[str], made: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with who is in a round and what they do there."""
        several = "local_steps" in sound and self.local_steps > 1
        rounds = {"clients", "attackers_change"} <= sound and (self.clients or self.attackers_change)
        if {"clients", "workers"} <= sound and self.clients is not None and self.clients < self.workers:
            yield f"clients: {self.workers} workers are drawn of them for each step, got {self.clients}."
        elif rounds and {"workers", "byzantine", "real_byzantine", "attack"} <= sound and self.attackers < self.workers:
            try:
                self.population()
            except ValueError as error:
                yield f"clients: {error}"
        if rounds and made.get("attack") and made["attack"].steady:
            yield (
                f"attack: {self.attack} goes by the same workers in every step, and with "
                f"{'clients' if self.clients else 'attackers_change'} they are others; use one that does not."
            )
        if "profile" in sound and self.profile == "published":
            for name, said in (("clients", rounds), ("local_steps", several)):
                if said:
                    yield f"{name}: in the published profile all workers send a gradient in every step; use described."
        if several and "nesterov" in sound and self.nesterov and self.momentum:
            yield "nesterov: it looks one step ahead, where local_steps go on; use one of them."
        if rounds and "momentum_at" in sound and self.momentum_at == "adaptive" and self.momentum:
            yield (
                "momentum_at: adaptive compares the momenta of all workers in every step, and with "
                f"{'clients' if self.clients else 'attackers_change'} they are others; use worker or server."
            )

    def _of_weights(self, sound: set[str], made: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with what workers count."""
        if not {"weighting", "cap"} <= sound:
            return
        if self.weighting == "equal":
            if self.cap is not None:
                yield f"cap: it limits weights by size, and weighting is equal; say weighting size, got {self.cap:g}."
            return
        if {"rule", "pre"} <= made.keys():
            try:
                check_weighs(made["pre"], made["rule"])
            except ValueError as error:
                yield f"weighting: {error}"
        if "profile" in sound and self.profile == "published":
            yield "weighting: in the published profile all workers count the same; use described."
        if "momentum_at" in sound and self.momentum_at == "adaptive" and self.momentum:
            yield "weighting: momentum_at adaptive compares workers that count the same; use worker or server."

    def _of_quarantine(self, sound: set[str], made: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with who may be left out."""
        quarantine = made.get("quarantine")
        if quarantine is None:
            return
        if "momentum_at" in sound and self.momentum_at == "adaptive" and self.momentum:
            yield "quarantine: momentum_at adaptive compares all workers in every step; use worker or server."
        if "weighting" in sound and self.weighting != "equal":
            yield "quarantine: it counts workers, and with weighting size they count differently; use one of them."
        if "profile" in sound and self.profile == "published":
            yield "quarantine: in the published profile all workers are shown in every step; use described."
        if {"workers", "byzantine"} <= sound and {"rule", "pre"} <= made.keys():
            try:
                Algorithm(rule=made["rule"], quarantine=quarantine)
                check_rows(made["pre"], made["rule"], self.workers)
            except ValueError as error:
                if "quarantine" in str(error):
                    yield f"quarantine: {error}"
                return  # it has been said of the workers
            try:
                quarantine.check(made["pre"], made["rule"], self.workers)
            except ValueError as error:
                yield f"quarantine: {error}"

    def population(self) -> Population | None:
        """Who may be in a step, where that is not always everybody or others attack after a while: of N clients the
        same share attacks as of n workers. None where n workers are in every step, the last of them Byzantine."""
        if self.clients is None and not self.attackers_change:
            return None
        clients = self.workers if self.clients is None else self.clients
        return Population(clients, self.workers, self.attackers * clients // self.workers, self.attackers_change)

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
        if self.profile == "published" and not options and name in RULES:
            _check_class("rule", name, RULES[name], Rule)
            return published(name, self.byzantine)
        return _make("rule", self.rule, RULES, Rule, f=self.byzantine)

    def make_pre(self) -> tuple[Mixing, ...]:
        """The mixings before the rule, with f = byzantine where they have one."""
        return tuple(self._mixing(spec) for spec in self.pre)

    def _mixing(self, spec: str) -> Mixing:
        return _make("mixing", spec, MIXINGS, Mixing, f=self.byzantine)

    def make_attack(self) -> Attack | None:
        """The attack; None without one."""
        return None if self.attack is None else _make("attack", self.attack, ATTACKS, Attack)

    def _unknowing(self, attack: Attack, knowledge: ThreatModel | None) -> Iterator[str]:
        """Why the attack cannot be made of what the attackers know."""
        known = self.honest
        try:
            if knowledge is not None:
                knowledge.check(self.honest, self.attackers)
                known = knowledge.known(self.honest, self.attackers)
                if knowledge.learns and attack.poisons:
                    yield f"knowledge: {learns_twice(knowledge, attack)}"
        except ValueError as error:
            yield f"knowledge: {error}"
        try:
            attack.check_knowing(known, self.honest, self.attackers)
        except ValueError as error:
            less = "" if known == self.honest else f" (all that is known with knowledge {self.knowledge})"
            yield f"attack: {str(error).removesuffix('.')}{less}."

    def make_quarantine(self) -> Quarantine | None:
        """What leaves workers out; None where nothing does."""
        if self.quarantine is None:
            return None
        name, _ = parse("quarantine", self.quarantine, QUARANTINES)
        if name not in QUARANTINES:
            raise ValueError(f"{self.quarantine} is none; write quarantine(window=20, threshold=0.5, term=100).")
        return make("quarantine", self.quarantine, QUARANTINES)

    def make_knowledge(self) -> ThreatModel:
        """What the attackers know of honest vectors."""
        return _make("knowledge", self.knowledge, KNOWLEDGE, ThreatModel)

    def make_partition(self) -> Partition:
        """How data are dealt to honest workers."""
        name, _ = parse("partition", self.partition, PARTITIONS)
        made = make("partition", self.partition, PARTITIONS)
        if name not in PARTITIONS and not callable(made):
            raise ValueError(f"{name} is no partition, which is called with labels, got {shown(made)}.")
        return made

    def make_loss(self) -> Loss:
        """The loss; of a function of somebody's own as of the package's."""
        name, _ = parse("loss", self.loss, LOSSES)
        if name in LOSSES or inspect.isclass(references.find("loss", name)):
            made: Any = make("loss", self.loss, LOSSES)
        else:
            made = function("loss", self.loss, LOSSES)
        return made if isinstance(made, Loss) else OwnLoss(made)

    def make_metrics(self, given: Mapping[str, Score] | None = None) -> tuple[Score, ...]:
        """The functions of all outputs and labels that are evaluated beside accuracy and loss; ``given``: those that
        were handed over, by what the settings call them."""
        names = [*_EVALUATED, *([SUCCESS] if self.aims else [])]
        columns, several = [*names, *(f"validation_{name}" for name in names)], self.per_class
        for spec in self.metrics:
            column = column_of(spec)
            of_a_class = several and re.fullmatch(r"(validation_)?class_\d+", column, flags=re.ASCII)
            if column in columns or not column or of_a_class:
                raise ValueError(f"{shown(spec)} would be the column {column!r} of evaluations.csv, which there is.")
            columns += [column, f"validation_{column}"]
        handed = given or {}
        found = {spec: handed[spec] if spec in handed else function("metric", spec, METRICS) for spec in self.metrics}
        return tuple(s if s is per_class else number_of(spec, s) for spec, s in found.items())

    @property
    def per_class(self) -> bool:
        """Whether evaluations have the accuracy on each class."""
        return PER_CLASS in map(column_of, self.metrics)

    @property
    def aims(self) -> bool:
        """Whether evaluations say how often the attack succeeds; False too where there is no such attack, or it is code
        of somebody's own that may not be imported here."""
        with importing(False), suppress(NotImported, ValueError):  # whoever may import it has
            return (attack := self.make_attack()) is not None and attack.aims
        return False

    def make_algorithm(self) -> Algorithm:
        """The four stages that these settings mean."""
        worker, server = self._transforms()
        return Algorithm(
            worker, self.make_pre(), self.make_rule(), server, self._placement(), self.make_quarantine()
        )  # fmt: skip

    def _placement(self) -> Adaptive | None:
        if self.momentum_at != "adaptive" or not self.momentum:
            return None
        return Adaptive(self.momentum, self.dampening, self.nesterov)

    def _transforms(self) -> tuple[tuple[Transform, ...], tuple[Transform, ...]]:
        worker: list[Transform] = []
        if self.clip is not None:
            worker.append(Clip(self.clip, self.clip_mode or ("unit" if self.profile == "published" else "norm")))
        server: tuple[Transform, ...] = ()
        if self.momentum and self.momentum_at != "adaptive":
            options = (self.momentum, self.dampening, self.nesterov)
            if self.momentum_at == "server":
                server = (Momentum(*options),)
            else:
                worker.append(Momentum(*options) if self.momentum_at == "worker" else SharedMomentum(*options))
        return tuple(worker), server

    @cached_property
    def name(self) -> str:
        """A readable name; not unique, see ``digest``."""
        rate, said = self._rate, self._canonical
        parts = [said["dataset"], *([f"data{self.data_hash[:8]}"] if self.data_hash else []), said["model"]]
        parts += [canonical("mixing", spec, MIXINGS, self.byzantine) for spec in self.pre]
        parts += [canonical("rule", self.rule, RULES, self.byzantine)]
        parts += ["no-attack" if self.attack is None else canonical("attack", self.attack, ATTACKS)]
        parts = [references.label(part) for part in parts]
        parts += [f"n{self.workers}", f"f{self.byzantine}"]
        if self.attack is not None and self.attackers != self.byzantine:
            parts.append(f"real{self.attackers}")
        place = f"{self.momentum_at}{self.momentum:g}" if self.momentum else "no-momentum"
        parts.append(place + ("-nesterov" if self.momentum and self.nesterov else ""))
        parts += [f"lr{rate[0][1]:g}..." if isinstance(rate, tuple) else f"lr{rate:g}"]
        if said["partition"] != "iid":
            parts.append(references.label(said["partition"]))
        if self.profile != "described":
            parts.append(self.profile)
        if self.knowledge != "omniscient" and self.attack is not None:
            parts.append(references.label(self.knowledge))
        if self.loss != "cross-entropy":
            parts.append(references.label(self.loss))
        if self.clients is not None:
            parts += [f"of{self.clients}", *([self.absent] if self.absent != "kept" else [])]
        parts += [f"change{self.attackers_change}"] if self.attackers_change else []
        parts += [f"local{self.local_steps}"] if self.local_steps > 1 else []
        parts += [self.weighting + ("" if self.cap is None else f"{self.cap:g}")] if self.weighting != "equal" else []
        parts += [references.label(self.quarantine)] if self.quarantine is not None else []
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
        worker, server = self._transforms()
        resolved = (
            {f.name: getattr(self, f.name) for f in fields(self)}
            | self._canonical
            | {
                "device": device_of(self.device).type,  # which one of several alike, is no matter
                "learning_rate": self._rate,
                "stages": [
                    repr(worker),
                    [self._resolved("mixing", text) for text in self.pre],
                    self._resolved("rule", self.rule),
                    repr(server),
                    *([] if self._placement() is None else [repr(self._placement())]),
                ],
                "attack": None if self.attack is None else self._resolved("attack", self.attack),
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
            *(("absent",) if self.population() is None and self.absent != "kept" else ()),
            # Runs of before there was an order had the honest ones first.
            *(() if self.order_matters and self.order != "honest-first" else ("order",)),
            *(_unsaid(self) - {"order"}),
        ):
            del resolved[resolved_above]
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def order_matters(self) -> bool:
        """Whether some mixing or the rule is somebody's own, which an order of vectors may matter to."""
        named = ((parse(kind, text, table)[0], table) for _, kind, text, table in self.specs(("rule", "pre")))
        return any(name not in table or not is_ours(table[name]) for name, table in named)

    def _resolved(self, kind: str, text: str) -> str:
        """All that a spec means; the text itself where that is code of somebody's own, which nobody needs to have."""
        table: Mapping[str, Any] = {"rule": RULES, "mixing": MIXINGS, "attack": ATTACKS}[kind]
        if parse(kind, text, table)[0] not in table:
            return text
        makers = {"rule": self.make_rule, "attack": self.make_attack, "mixing": lambda: self._mixing(text)}
        with suppress(NotImported):
            return describe(makers[kind](), NAMED)
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, lists for tuples; None where nothing is set. Later settings only where they say something."""
        unsaid = _unsaid(self)
        return json.loads(json.dumps({key: value for key, value in asdict(self).items() if key not in unsaid}))

    def to_json(self) -> str:
        """As JSON, of all settings but later ones that have their defaults."""
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
        """From settings as JSON; those that are not there have their defaults."""
        return cls.from_dict(cls.values_from_text(text))

    @classmethod
    def from_folder(cls, text: str) -> Experiment:
        """From what stands in the folder of a run. In those of before there was an order the honest ones come first."""
        values = cls.values_from_text(text)
        experiment = cls.from_dict(values)
        if "order" in values or not experiment.order_matters:
            return experiment
        return cls.from_dict(values | {"order": "honest-first"})

    @classmethod
    def from_toml(cls, text: str) -> Experiment:
        """From settings as TOML; those that are not there have their defaults."""
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


# Settings that came after the first folders were written: where they have their default, an experiment is written and
# named as it was before there were any.
LATER = tuple(f.name for f in fields(Experiment) if f.metadata.get("later"))


def _unsaid(experiment: Experiment) -> set[str]:
    """The later settings that have their default; the order is said wherever it matters."""
    unsaid = {f.name for f in fields(Experiment) if f.name in LATER and getattr(experiment, f.name) == f.default}
    return unsaid - {"order"} if experiment.order_matters else unsaid


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


def _is_read(value: object) -> bool:
    return any(isinstance(text, references.Read) for text in (value if isinstance(value, (tuple, list)) else (value,)))


def _check_known(specs: Iterable[tuple[str, str, str, Mapping[str, Any]]]) -> None:
    """
    Raises:
        NotImported: one of them names what is neither in a table, nor was imported.
    """
    for _, kind, text, table in specs:
        name, _ = parse(kind, text, table)
        if name not in table:
            references.find(kind, name)


def _make(kind: str, text: str, table: Mapping[str, Callable[..., Any]], base: type[T], **given: Any) -> T:
    """What a spec names, which is one of its kind: anybody may have put anything into a table or named anything."""
    name, _ = parse(kind, text, table)
    maker = find(kind, name, table)
    if name in table or isinstance(maker, type):
        _check_class(kind, name, maker, base)
    elif references.known(kind, name) is maker:  # a function, which makes one of its options
        needed = inspect.signature(maker).parameters.values()
        if any(p.default is p.empty and p.name not in ("f", *parse(kind, text, table)[1]) for p in needed):
            raise ValueError(_no_class(kind, name, maker, base))
    made = make(kind, text, table, **given)
    if not isinstance(made, base):
        raise ValueError(_no_class(kind, name, made, base))
    return made


def _check_class(kind: str, name: str, maker: object, base: type) -> None:
    if not (isinstance(maker, type) and issubclass(maker, base)):
        raise ValueError(_no_class(kind, name, maker, base))


def _no_class(kind: str, name: str, found: object, base: type) -> str:
    bases = "General, Selecting or Coordinatewise" if base is Rule else base.__name__
    came = f"the class {found.__qualname__}" if isinstance(found, type) else shown(found)
    return f"{name} is no {kind}, which is a class derived from {bases}, got {came}."


def _parse_toml(text: str) -> dict[str, Any]:
    if len(text) > MAX_TOML:
        raise ValueError(f"more than {MAX_TOML:,} characters.")
    try:
        return check_depth(tomlkit.parse(text).unwrap())
    except RecursionError:
        raise ValueError("nested too deeply.") from None
    except TOMLKitError as error:  # some of which are no ValueError
        if ("\\x00" in str(error) and "\0" not in text) or "end of file" in str(error):
            raise ValueError(
                "it ends within a value: a quote or a bracket is not closed, or a value is missing."
            ) from None
        raise ValueError(str(error)) from None


def moved(experiment: Experiment, device: str) -> Experiment:
    """The experiment on another device, without what is said of cards where that is none.

    Example:
        >>> moved(Experiment(device="cuda:1", precision="tf32"), "cpu") == Experiment()
        True
    """
    cards = {} if device_of(device).type == "cuda" else {"precision": "float32", "autotune": False}
    return replace(experiment, device=device, **cards)


def differences(there: Experiment, asked: Experiment) -> list[str]:
    """In which settings two experiments differ, a line each."""
    one, other = (json.loads(json.dumps(asdict(e))) for e in (there, asked))
    return [f"{name}: {one[name]!r} there, {other[name]!r} asked for" for name in one if one[name] != other[name]]
