"""From settings to what they name: the data, the model, the simulation, and the hashes of what is somebody's own."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import kernels, references
from ..core.attacks import Task, parts
from ..core.checks import kind_of, shown
from ..core.specs import make, parse
from ..simulation.data import DATASETS, Dataset, Split, name_of, set_aside, taken
from ..simulation.gradients import WorkerGradients, check_module, copied
from ..simulation.identity import code_hash, is_ours
from ..simulation.losses import Loss, OwnLoss
from ..simulation.models import MODELS, Shape
from ..simulation.models import build as build_model
from ..simulation.sampling import Evaluator, Profile, Sampler, aim_of
from ..simulation.scores import Score, per_class
from ..simulation.simulate import Simulation
from .cards import device_of, numerics, usable
from .experiment import Experiment
from .fields import name_of_code, name_of_metric

LOOKED_AT = 1000  # steps of which is known before a run whether the rule can tolerate the weights there


@dataclass(frozen=True, eq=False)
class Given:
    """What was handed over in Python and no text can name: the settings say "given:Name", and code_hash says which.

    Attributes:
        model: a module, whose parameters are the start, or a class or function that makes one.
        loss: a function of outputs and labels.
        metrics: functions of all outputs and labels, by what the settings call them.
    """

    model: Any = None
    loss: Any = None
    metrics: Mapping[str, Score] = field(default_factory=dict)


NOTHING = Given()


def handed(
    experiment: Experiment, model: Any = None, loss: Any = None, metrics: Any = None
) -> tuple[Experiment, Given]:
    """The experiment whose settings say what was handed over, and what of that they cannot say."""
    settings: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for setting, value in (("model", model), ("loss", loss)):
        if value is None:
            continue
        text = value if isinstance(value, str) else _text_of(experiment, setting, value)
        if text.startswith(f"{references.GIVEN}:") and not isinstance(value, str):
            given[setting] = value
        settings[setting] = text
    if isinstance(model, nn.Module):
        _check_model(experiment, model)
    if metrics is not None:
        scores = [metrics] if callable(metrics) or isinstance(metrics, str) else list(metrics)
        texts = [_text_of_metric(score) if callable(score) else score for score in scores]
        settings["metrics"] = metrics if isinstance(metrics, str) else tuple(texts)
        nameless = {text: s for text, s in zip(texts, scores, strict=True) if callable(s) and _is_given(text)}
        given |= {"metrics": nameless} if nameless else {}
    return replace(experiment, **settings) if settings else experiment, Given(**given) if given else NOTHING


def _text_of(experiment: Experiment, setting: str, value: Any) -> str:
    """Its name or reference; "given:Name" where no text can name it."""
    if not callable(value) and not isinstance(value, Loss):
        what = "a module, or a class or function that makes one" if setting == "model" else "a function"
        raise ValueError(f"{setting}: must be {what}, got {shown(value)}.")
    said = getattr(experiment, setting)
    if references.known(setting, said.partition("(")[0].strip()) is value:
        return said
    if not isinstance(value, nn.Module):
        with suppress(ValueError):  # it has no name
            return name_of_code(value)
    return _given_name(value, setting)


def _text_of_metric(score: Any) -> str:
    try:
        return name_of_metric(score)
    except ValueError:  # it has no name
        return _given_name(score, "metric")


def _given_name(value: Any, otherwise: str) -> str:
    name = getattr(value, "__name__", type(value).__name__)
    return f"{references.GIVEN}:{re.sub(r'[^A-Za-z0-9_]', '_', name).strip('_') or otherwise}"


def _is_given(text: str) -> bool:
    return text.startswith(f"{references.GIVEN}:")


def identified(
    experiment: Experiment, dataset: Any = None, data_folder: str | Path | None = None, given: Given = NOTHING
) -> tuple[Experiment, Dataset | None]:
    """The experiment with ``data_hash`` and ``code_hash`` filled in, and the data if they had to be looked at.

    Data are somebody's own unless the package opens them under the experiment's name and nobody wrote into them since.
    Those that were handed over, and that the experiment's name does not open, are called "given:NAME".

    Raises:
        ValueError: the experiment has hashes already, and they are of something else.
        DataError: data of one's own cannot be opened.
    """
    e, ours = experiment, name_of(experiment.dataset)
    if dataset is None and e.dataset.startswith(f"{references.GIVEN}:"):
        which = "" if e.data_hash is None else f", with hash {e.data_hash}"
        raise ValueError(f"this experiment is of data of somebody's own{which}: hand its data in as dataset=...")
    if dataset is None and ours is None:
        dataset = open_dataset(e, data_folder)
    if dataset is not None:
        dataset = _taken(dataset)
    found = {"data_hash": None, "code_hash": code_of(e, given)}
    if dataset is not None and not (ours is not None and dataset.intact and dataset.name == ours):
        found["data_hash"] = dataset.fingerprint
        if e.data_hash is None and dataset._origin != e.dataset:
            found["dataset"] = f"{references.GIVEN}:{_identifier(dataset.name)}"
    if e.data_hash not in (None, found["data_hash"]):
        hint = "hand its data in as dataset=..." if dataset is None else "these are others"
        raise ValueError(f"this experiment is of data of somebody's own, with hash {e.data_hash}: {hint}.")
    if e.code_hash not in (None, found["code_hash"]):
        raise ValueError(
            f"the code of this experiment is no longer what it was"
            f"{', or the module has other parameters' if isinstance(given.model, nn.Module) else ''}: its hash was "
            f"{e.code_hash} and is {found['code_hash']}; start over with code_hash=None."
        )
    return replace(e, **found), dataset


def code_of(e: Experiment, given: Given = NOTHING) -> str | None:
    """The hash of the code of somebody's own that a run is made with, as it is now; None where all is the package's."""
    values: list[object] = []
    for setting, kind, text, table in e.specs():
        name, _ = parse(kind, text, table)
        if _is_given(name) and setting in ("model", "loss", "metrics"):
            values.append(_again(e, setting, given, name))
        elif name not in table and setting != "dataset":  # whose content counts, and not who opens it
            values.append(references.find(kind, name))
        elif setting in ("model", "partition"):
            values.append(table[name])
    for stage in (e.make_rule(), *e.make_pre(), e.make_attack()):
        if stage is not None:
            values += parts(stage)
    return code_hash(values)


def _again(e: Experiment, setting: str, given: Given, text: str = "") -> Any:
    value = given.metrics.get(text) if setting == "metrics" else getattr(given, setting)
    if value is None:
        raise ValueError(
            f"{setting}: {text or getattr(e, setting)} was handed over in Python: hand it over again, as "
            f"{setting}=..., or put it into a file and name it my_file.py:Name."
        )
    return value


def open_dataset(experiment: Experiment, folder: str | Path | None = None, download: bool = True) -> Dataset:
    """The data of an experiment.

    Raises:
        DataError: a file that is missing or not what it should be.
    """
    found = _taken(make("dataset", experiment.dataset, DATASETS, folder=folder, download=download))
    object.__setattr__(found, "_origin", experiment.dataset)
    return found


def _taken(value: Any) -> Dataset:
    try:
        return taken(value)
    except ValueError as error:
        raise ValueError(f"dataset: {error}") from None


def _identifier(name: str) -> str:
    """The name as a word that settings, folders and tables can hold."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:60].lstrip("0123456789_") or "data"


@dataclass(frozen=True, eq=False)
class Evaluators:
    """Those of a run: on the test set and, where some of the training data is set aside, on that."""

    test: Evaluator
    validation: Evaluator | None
    metrics: tuple[Score, ...] = ()
    aimed: tuple[Evaluator, ...] = ()  # of each split, where the attack aims

    def __call__(self, gradients: WorkerGradients, parameters: Tensor, step: int) -> tuple[float, ...]:
        """The numbers of :func:`varangian.runs.results.columns_of` after the step."""
        splits = (self.test,) if self.validation is None else (self.test, self.validation)
        found: list[float] = []
        for split, evaluator in enumerate(splits):
            accuracy, loss, *measured = evaluator(gradients, parameters, step, self.metrics)
            success = [aimed(gradients, parameters, step)[0] for aimed in self.aimed[split : split + 1]]
            found += [accuracy, loss, *success, *measured]
        return tuple(found)

    def by_class(self, gradients: WorkerGradients, parameters: Tensor, step: int) -> tuple[float, ...]:
        """The accuracy on each class of the test set."""
        return self.test(gradients, parameters, step, (per_class,))[2:]


@contextmanager
def computing(experiment: Experiment) -> Iterator[None]:
    """What a run computes in: threads of its own, tensors that learn, and cards as its settings say."""
    e = experiment
    with kernels.exclusive_threads(), torch.inference_mode(False), numerics(e.device, e.precision, e.autotune):
        yield


def build(experiment: Experiment, dataset: Dataset, given: Given = NOTHING) -> tuple[Simulation, Evaluators]:
    """The simulation of an experiment at step 0, and its evaluators."""
    e, dtype = experiment, getattr(torch, experiment.dtype)
    device = usable(e.device)
    if dataset.train.inputs.dtype == torch.int64 and not _is_own(e):
        raise ValueError(
            f"model: {e.model} computes with numbers, and the inputs of {dataset.name} are tokens (integers): use a "
            "model that begins with an embedding, or hand over floats."
        )
    model = make_model(e, dataset.shape, dataset.classes, given, device)
    gradients = WorkerGradients(
        model, training=e.profile == "described", seed=e.seed, loss=make_loss(e, given),
        captured=e.population() is None or e.attackers == 0,
    )  # fmt: skip
    attack, task = e.make_attack(), task_of(dataset)
    if attack is not None:
        attack.check_task(task)
    sampler, aside = sampler_of(e, dataset)
    validation = None
    if aside is not None:
        validation = Evaluator(replace(dataset, test=aside), e.seed, profile=e.profile, device=device, dtype=dtype)
    first = None if e.population() is None else np.arange(1)
    gradients.look(sampler(0, first), dataset.classes)
    simulation = Simulation(
        gradients,
        sampler,
        e.make_algorithm(),
        e.workers,
        real_byzantine=e.attackers if e.population() is None else 0,
        attack=attack,
        knowledge=e.make_knowledge(),
        learning_rate=e.rate,
        momentum=e.momentum,
        l2=e.l2,
        profile=e.profile,
        seed=e.seed,
        measure=e.measure,
        task=task,
        population=e.population(),
        absent=e.absent,
        local_steps=e.local_steps,
        sizes=None if e.weighting == "equal" else sampler.sizes,
        cap=e.cap,
        order=e.order,
    )
    simulation.check_weights(min(e.steps, LOOKED_AT))
    mirrors = e.profile == "published" and dataset.flip  # only then does an evaluator depend on the seed
    test = _evaluator(dataset, (dataset.seal, e.data_hash), e.seed if mirrors else 0, e.profile, device, dtype)
    aimed: list[Evaluator] = []
    if attack is not None and attack.aims:
        for split in (dataset.test, aside):
            if split is not None:
                aim = aim_of(attack, split.labels, task)
                data = replace(dataset, test=split)
                aimed.append(Evaluator(data, e.seed, profile=e.profile, device=device, dtype=dtype, aim=aim))
    return simulation, Evaluators(test, validation, e.make_metrics(given.metrics), tuple(aimed))


def task_of(dataset: Dataset) -> Task:
    """What an attack on data may know of them."""
    return Task(dataset.classes, dataset.task, dataset.shape, dataset.mean, dataset.std)


def sampler_of(e: Experiment, dataset: Dataset) -> tuple[Sampler, Split | None]:
    """What samples for the workers that learn, each from its part; and what is set aside for the validation, if any."""
    deal = e.make_partition() if e.partition != "iid" else "iid"
    attack = e.make_attack()
    learn = attack is not None and (attack.poisons or (e.make_knowledge().learns and e.attackers > 0))
    people = e.population()
    learners = people.clients if people is not None else e.workers if learn else e.honest
    learned, aside = dataset, None
    if e.validation:
        kept, aside = set_aside(dataset.train, e.validation, e.seed)
        if len(aside) < dataset.classes:
            warnings.warn(
                f"validation: {e.validation:g} of {len(dataset.train):,} examples is {len(aside)}, fewer than there "
                f"are classes ({dataset.classes}): accuracy on them says next to nothing.",
                stacklevel=3,
            )
        learned = replace(dataset, train=kept)
    device, dtype = usable(e.device), getattr(torch, e.dtype)
    how = {"deal": deal, "profile": e.profile, "device": device, "dtype": dtype}
    return Sampler(learned, learners, e.batch_size, e.seed, **how), aside


def _is_own(e: Experiment) -> bool:
    """Whether the model is somebody's own."""
    name, _ = parse("model", e.model, MODELS)
    return name not in MODELS or not is_ours(MODELS[name])


def make_loss(e: Experiment, given: Given = NOTHING) -> Loss:
    if not e.loss.startswith(f"{references.GIVEN}:"):
        return e.make_loss()
    found = _again(e, "loss", given)
    return found if isinstance(found, Loss) else OwnLoss(found)


def make_model(
    e: Experiment, shape: Shape, classes: int, given: Given = NOTHING, device: str | torch.device | None = None
) -> nn.Module:
    """The model at the start, on the experiment's device or that one: a copy where it is not the package's own.

    Raises:
        ValueError: what was handed over or named makes no module, or one that cannot be trained as the experiment says.
    """

    def factory(shape: Shape, classes: int) -> nn.Module:
        if e.model.startswith(f"{references.GIVEN}:"):
            model = _again(e, "model", given)
            model = model if isinstance(model, nn.Module) else _called(model, shape, classes)
        else:
            model = make("model", e.model, MODELS, shape=shape, classes=classes)
        if not isinstance(model, nn.Module):
            raise ValueError(f"model: {e.model} must make a torch.nn.Module, got {kind_of(model)}.")
        if _is_own(e):  # somebody's function may answer the same module each time, and training must not change it
            model = copied(model)
        _check_model(e, model)
        return model

    model = build_model(factory, shape, classes, e.seed).to(device or e.device)
    return model.double() if e.dtype == "float64" else model.float()


def _called(factory: Callable[..., Any], shape: Shape, classes: int) -> Any:
    """With what it takes of shape and classes."""
    given: dict[str, Any] = {"shape": shape, "classes": classes}
    known = inspect.signature(factory).parameters
    missing = [name for name, p in known.items() if p.default is p.empty and name not in given and p.kind not in (2, 4)]
    if missing:
        name = getattr(factory, "__name__", type(factory).__name__)
        raise ValueError(
            f"model: {name} needs {', '.join(missing)}: hand over a module, or functools.partial({name}, "
            f"{missing[0]}=...)."
        )
    return factory(**{name: value for name, value in given.items() if name in known})


def _check_model(e: Experiment, model: nn.Module) -> None:
    check_module(model)
    name = type(model).__name__
    for key, p in model.named_parameters():
        if p.is_floating_point() and str(p.dtype) not in ("torch.float32", f"torch.{e.dtype}"):
            kind = str(p.dtype).removeprefix("torch.")
            raise ValueError(
                f"model: {name} has parameters of {kind} ({key}), and dtype is {e.dtype}; make them equal."
            )
    asked = device_of(e.device)
    places = {str(t.device) for t in (*model.parameters(), *model.buffers()) if not _is_at(t.device, asked)} - {"cpu"}
    if places:
        raise ValueError(f"model: {name} is on {', '.join(sorted(places))}, and device is {e.device}; make them equal.")


def _is_at(place: torch.device, asked: torch.device) -> bool:
    """Whether it is that device; "cuda" may be any one."""
    return place.type == asked.type and asked.index in (None, place.index)


@lru_cache(maxsize=1)
def _evaluator(
    dataset: Dataset, seal: tuple[object, ...], seed: int, profile: Profile, device: torch.device, dtype: torch.dtype
) -> Evaluator:
    """Shared by the runs of a process on the same data, as long as nobody writes into them: test images are prepared
    once."""
    return Evaluator(dataset, seed, profile=profile, device=device, dtype=dtype)
