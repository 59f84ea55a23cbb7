"""Workers that are tasks on a Ray cluster."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch

from ...core.references import Luggage, packed, said_of, unpack
from ...runs.building import open_dataset
from ...runs.experiment import Experiment
from ...runs.folders import FolderInUse
from ...runs.running import run
from ...simulation.data import Dataset
from .local import HEARTBEAT
from .manager import Event, Workers
from .places import anywhere, needs, on_cards
from .plan import RETRIES, Plan


def ray_workers(address: str, plan: Plan, jobs: int | None) -> Workers:
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ValueError("--ray needs Ray: pip install 'varangian[ray]'.") from None
    return _RayWorkers(ray, address, plan, jobs)


class _RayWorkers:
    """Tasks of a Ray cluster; Ray itself chooses the machine, and runs a task again whose process died."""

    calibrates = False

    def __init__(self, ray: Any, address: str, plan: Plan, jobs: int | None) -> None:
        self.ray, self.address, self.plan, self.jobs = ray, address, plan, jobs
        self.running: dict[Any, tuple[int, Experiment]] = {}

    def __enter__(self) -> _RayWorkers:
        self.ours = not self.ray.is_initialized()
        if self.ours:
            options: dict[str, Any] = {"num_cpus": self.plan.jobs} if self.address == "local" else {}
            try:
                self.ray.init(address=self.address, log_to_driver=False, include_dashboard=None, **options)
            except (ConnectionError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"--ray needs a Ray cluster that answers at {self.address!r}: {reason}") from None
        resources = self.ray.cluster_resources()
        slots = max(1, int(resources.get("CPU", 1)) // self.plan.threads)
        self.plan.jobs = slots if self.jobs is None else min(self.jobs, slots)
        gpus, share = int(resources.get("GPU", 0)), 0.0
        runs = on_cards(self.plan.todo)
        if runs:
            if not gpus:
                if self.ours:
                    self.ray.shutdown()
                raise ValueError("--ray needs a cluster with GPUs for runs on cuda, and this one has none.")
            if self.jobs is None:
                at_a_time = min(need.at_a_time for need in needs(runs, self.plan.data_folder))
                self.plan.jobs = min(slots, at_a_time * gpus)
            share = 1 / max(1, -(-self.plan.jobs // gpus))  # as many runs to each GPU
        self.luggage = packed()
        self.task = self.ray.remote(num_cpus=self.plan.threads, num_gpus=share, max_retries=RETRIES)(_ray_run)
        return self

    def __exit__(self, *error: object) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        if self.ours:
            self.ray.shutdown()

    def idle(self) -> list[int]:
        taken = {worker for worker, _ in self.running.values()}
        return [worker for worker in range(self.plan.jobs) if worker not in taken]

    def give(self, worker: int, task: str, experiment: Experiment) -> None:
        out = str((self.plan.out / "runs").resolve())
        text = anywhere(experiment).to_json()
        reference = self.task.remote(
            text, out, self.plan.threads, self.plan.data_folder, self.luggage, self.plan.events, self.plan.tensorboard,
        )  # fmt: skip
        self.running[reference] = worker, experiment

    def events(self) -> list[Event]:
        if not self.running:
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=HEARTBEAT)
        found = []
        for reference in ready:
            worker, experiment = self.running.pop(reference)
            try:
                found.append(Event(worker, "done", experiment, self.ray.get(reference)))
            except self.ray.exceptions.RayTaskError as error:
                cause = error.cause or error
                if isinstance(cause, FolderInUse):
                    found.append(Event(worker, "elsewhere", experiment, str(cause)))
                    continue
                found.append(Event(worker, "failed", experiment, said_of(cause)))
            except self.ray.exceptions.RayError as error:
                found.append(Event(worker, "died", experiment, type(error).__name__))
        return found


_OPENED: dict[str, Dataset] = {}  # of this process, when Ray runs tasks in it


def _ray_run(
    text: str, out: str, threads: int, data_folder: str | None, luggage: Luggage, events: bool, tensorboard: bool
) -> float:
    torch.set_num_threads(threads)
    unpack(luggage)
    experiment = Experiment.from_json(text)
    if experiment.dataset not in _OPENED:
        _OPENED.clear()
        _OPENED[experiment.dataset] = open_dataset(experiment, data_folder)
    return run(experiment, out, dataset=_OPENED[experiment.dataset], events=events, tensorboard=tensorboard).seconds
