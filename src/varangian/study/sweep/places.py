"""On which card each worker process of a sweep computes, and how many share one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ...core import randomness
from ...core.checks import cut
from ...runs.building import make_model, open_dataset
from ...runs.cards import Card, device_of, usable, why_no_card
from ...runs.experiment import Experiment
from ...simulation.data import Dataset, prepare
from ...simulation.gradients.workers import STREAMS

LOG = logging.getLogger("varangian.study.sweep")

VISIBLE = "CUDA_VISIBLE_DEVICES"

# How many runs to a card are worth their while. On an H100 two runs of convolutions make 11 % fewer steps than one; of
# small networks, of which the host needs as long to ask for a step as the card to do it, two make 12 % more and four
# 14 %, and what a run does beside its steps is done side by side.
CONVOLUTIONS, OTHERS = 1, 4
SHARE = 0.9  # of the memory that is free on a card, to be filled
PATIENCE = 300.0  # seconds for a process that looks at the cards: a driver that was asleep takes some
CONTEXT = 2**30  # bytes of a process on a card before it has computed anything, and of cuDNN's workspaces
VECTORS = 4  # matrices of n vectors: what is sent, what is sampled, what is mixed, and room for a rule
LOCAL = 2  # more of them where workers take steps of their own
SINGLE = 24  # vectors beside them: parameters, momenta, aggregates, those of the measures in float64


@dataclass(frozen=True)
class Place:
    """The card of a worker process.

    Attributes:
        number: among those that this process sees.
        visible: what the environment of the worker says, for it to see no other.
        name: of its kind.
    """

    number: int
    visible: str
    name: str


@dataclass(frozen=True)
class Need:
    """What a run needs of a card.

    Attributes:
        memory: bytes, an estimate.
        at_a_time: how many such runs to a card are worth their while.
    """

    memory: float
    at_a_time: int


def on_cards(experiments: Iterable[Experiment]) -> list[Experiment]:
    return [e for e in experiments if device_of(e.device).type == "cuda"]


def anywhere(experiment: Experiment) -> Experiment:
    """The same run, on whichever card a worker has: it sees no other, and the run is written down as one on "cuda"."""
    return replace(experiment, device="cuda") if experiment.device.startswith("cuda:") else experiment


def deal(
    experiments: Sequence[Experiment], jobs: int | None, most: int, data_folder: str | Path | None
) -> tuple[Place, ...]:
    """The card of each worker process; () where no run is on one.

    Runs on "cuda" have all cards that CUDA_VISIBLE_DEVICES leaves, those on "cuda:1" that one; with runs of both kinds
    it is all. Processes are dealt to the cards in turn.

    Args:
        jobs: how many processes; None for as many as fit into the cards' memory and are worth their while.
        most: of them then, since each needs a core of the host too.

    Raises:
        ValueError: a device that is asked for is not here.
    """
    found, runs = find(experiments), on_cards(experiments)
    if not runs:
        return ()
    asked = {e.device: device_of(e.device).index for e in runs}
    named = sorted({index for index in asked.values() if index is not None})
    numbers = range(len(found)) if "cuda" in asked else named
    needed = needs(runs, data_folder)
    memory, at_a_time = max(n.memory for n in needed), min(n.at_a_time for n in needed)
    fits = {i: max(1, min(at_a_time, int(SHARE * found[i].free / memory))) for i in numbers}
    order = [i for turn in range(max(fits.values())) for i in numbers if turn < fits[i]]
    # More than fit, if somebody says so.
    order = order[: max(1, most)] if jobs is None else [order[k % len(order)] for k in range(jobs)]
    names = _visible(len(found))
    return tuple(Place(i, names[i], found[i].name) for i in order)


def find(experiments: Iterable[Experiment]) -> list[Card]:
    """The cards that this process sees, if a run is on one; the devices of all runs are here.

    Raises:
        ValueError: one is not.
    """
    devices = {name: device_of(name) for name in sorted({e.device for e in experiments})}
    for name, device in devices.items():
        if device.type not in ("cpu", "cuda"):
            usable(name)
    asked = {name: device for name, device in devices.items() if device.type == "cuda"}
    found = look() if asked else []
    for name, device in asked.items():
        if (device.index or 0) >= len(found):
            raise ValueError(f"device: {name!r} cannot be used here: {_why_not(found)}.")
    return found


def look() -> list[Card]:
    """The cards, as a process of its own sees them: looking takes memory of each, as long as the process lives.

    Raises:
        ValueError: the driver fails.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        return []
    code = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from varangian.runs.cards import cards;"
        "print(json.dumps([[c.name, c.free, c.total] for c in cards()]))"
    )
    command = [sys.executable, "-c", code, json.dumps(sys.path)]
    try:
        end = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"device: 'cuda' cannot be used here: its driver has not answered for {PATIENCE:g} s; try nvidia-smi."
        ) from None
    try:
        return [Card(*values) for values in json.loads(end.stdout.splitlines()[-1])]
    except (IndexError, ValueError, TypeError):
        last = (end.stderr.strip().splitlines() or [f"exit status {end.returncode}"])[-1]
        raise ValueError(f"device: 'cuda' cannot be used here: {cut(last).rstrip('.')}.") from None


def _why_not(found: Sequence[Card]) -> str:
    if not found:
        return why_no_card() or "it has gone"
    return f"of this number of GPUs, {len(found)}, the last is cuda:{len(found) - 1}"


def _visible(count: int) -> list[str]:
    """How the environment calls each card that this process sees."""
    said = os.environ.get(VISIBLE)
    names = [str(i) for i in range(count)] if said is None else [name.strip() for name in said.split(",")]
    return names[:count]


@contextmanager
def seeing(place: Place | None) -> Iterator[None]:
    """Processes that are started inside see one card."""
    if place is None:
        yield
        return
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = place.visible
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


# ------------------------------------------------------------------------------------------------- what a run needs


def needs(experiments: Iterable[Experiment], data_folder: str | Path | None) -> list[Need]:
    """Of each kind of run, in no order; at least one."""
    models: dict[tuple[str, str, str], Model | None] = {}
    opened: dict[str, Dataset] = {}
    found: dict[Need, None] = {}
    for e in experiments:
        kind = e.dataset, e.model, e.dtype
        if kind not in models:
            try:
                if e.dataset not in opened:
                    opened.clear()
                    opened[e.dataset] = open_dataset(e, data_folder)
                models[kind] = model_of(e, opened[e.dataset])
            except Exception as error:  # of code of somebody's own: the run itself will say so
                LOG.info("what %s needs of a card is not known: %s", e.name, error)
                models[kind] = None
        model = models[kind]
        found[Need(CONTEXT, CONVOLUTIONS) if model is None else need_of(e, model)] = None
    return list(found)


@dataclass(frozen=True)
class Model:
    """What a model and its data take, in bytes.

    Attributes:
        parameters: all of them.
        example: what is kept of one for the gradient.
        data: both splits.
        convolutional: whether it has convolutions.
    """

    parameters: int
    example: float
    data: int
    convolutional: bool


def model_of(experiment: Experiment, dataset: Dataset) -> Model:
    made = make_model(experiment, dataset.shape, dataset.classes, device="cpu").train()
    return Model(
        sum(p.numel() * p.element_size() for p in made.parameters()),
        kept_of_an_example(made, dataset),
        sum(x.numel() * x.element_size() for x in (dataset.train.inputs, dataset.test.inputs)),
        any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in made.modules()),
    )


def need_of(e: Experiment, model: Model) -> Need:
    """From the size of the model, what it keeps of an example, n, and the batch."""
    learners = e.honest if e.population() is None else e.workers  # nearly all of a round may be honest
    at_once = e.batch_size * (min(STREAMS, learners) if model.convolutional else learners)
    kept = 2 * at_once * model.example  # and as much again for what flows back
    vectors = VECTORS + (LOCAL if e.local_steps > 1 else 0)
    memory = CONTEXT + model.data + (vectors * e.workers + SINGLE) * model.parameters + kept
    return Need(memory, CONVOLUTIONS if model.convolutional else OTHERS)


def kept_of_an_example(model: nn.Module, dataset: Dataset) -> float:
    """Bytes that torch keeps of one for the gradient."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        place = x.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = x.untyped_storage().nbytes()
        return x

    inputs = prepare(dataset, dataset.train.inputs[:2])
    if inputs.is_floating_point():
        inputs = inputs.to(next(model.parameters()).dtype)
    with torch.enable_grad(), randomness.Drawn(0), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model(inputs)
    return sum(kept.values()) / len(inputs)
