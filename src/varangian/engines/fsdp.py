"""PyTorch's FSDP2 (fully_shard) under an Algorithm, unit by unit.

    fully_shard(layer) ...; fully_shard(model)
    protection = vg.engines.fsdp.protect(model, vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.MultiKrum(f=1)))

Each unit's reduce-scatter becomes an exchange of pieces and the rule. A unit is reduced before the gradients of others
are known: what looks at whole vectors (selecting rules, mixings, clipping) looks at a unit's part of them.
docs/engines.md says more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..algorithm import Algorithm, State
from .history import History, Report
from .sharded import (
    Aggregation,
    Chunk,
    Ranks,
    Span,
    TooManyFaulty,
    check_algorithm,
    check_state,
    tensors_of,
    title_of,
    versions,
)

try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    FSDPModule.set_custom_reduce_scatter  # noqa: B018
except (ImportError, AttributeError):
    raise ImportError(
        "varangian.engines.fsdp needs FSDPModule.set_custom_reduce_scatter, which torch "
        f"{torch.__version__} does not have; install a newer torch."
    ) from None


def protect(
    model: nn.Module, algorithm: Algorithm, *, window: int = 100, warn: Callable[[str], None] | None = None
) -> Protection:
    """Puts an algorithm in the place of the mean in every unit's reduce-scatter.

    Args:
        model: after ``fully_shard`` on a mesh of one dimension, before its first backward pass. The ranks of the mesh
            are the n workers.
        algorithm: what each of them does, the same on all. It sees each unit as a vector of its own.
        window, warn: as for :func:`varangian.engines.ddp.protect`.

    Raises:
        ValueError: at once, on every rank, for an algorithm that so many ranks cannot run, that looks ahead, or that
            needs what no rank has: whole vectors, the last aggregate at the workers, the update's norm at the server.
            During backward: more than f vectors of a unit that are not finite.

    Cost: d (W - 1) / W numbers sent by each rank, as the reduce-scatter that it stands for, and for rules that look at
        distances (W + 1)^2 a unit. Worker momentum takes d numbers on each rank, which are not sharded.
    """
    return Protection(model, algorithm, window, warn)


class Protection:
    """What :func:`protect` put into a model: its memory and its report."""

    def __init__(self, model: nn.Module, algorithm: Algorithm, window: int, warn: Callable[[str], None] | None) -> None:
        units = {name or "(root)": module for name, module in model.named_modules() if isinstance(module, FSDPModule)}
        sharded = [(name, p) for name, p in model.named_parameters() if isinstance(p, DTensor) and p.requires_grad]
        if not isinstance(model, FSDPModule) or not sharded:
            raise ValueError(f"protect needs a model after fully_shard, got {type(model).__name__}.")
        mesh = sharded[0][1].device_mesh
        if mesh.ndim != 1 or any(p.device_mesh != mesh for _, p in sharded):
            raise ValueError(f"protect needs all units on one mesh of one dimension, got {mesh}.")
        self._ranks = Ranks(mesh.get_group(), sharded[0][1].to_local().device)
        check_algorithm(
            "protect",
            algorithm,
            self._ranks.size,
            True,
            "no rank ever has whole ones here; DistributedDataParallel with replicated=True works for every rule.",
        )
        for stage in algorithm.worker:
            if stage.uses_previous:
                raise ValueError(
                    f"protect needs workers that do without the last aggregate, which is sharded, got {stage}."
                )
        for stage in algorithm.server:
            if not stage.columnwise:
                raise ValueError(f"protect needs server transforms that work on pieces of the update, got {stage}.")
        hosts = self._ranks.agree(
            "protect",
            {
                "versions and kind of processor": versions(),
                "algorithm": repr(algorithm),
                "parameters": str([(name, list(p.shape), p.dtype) for name, p in sharded]),
            },
        )
        title = f"{title_of(algorithm)}, unit by unit"
        self._history = History(title, hosts, window, warn if self._ranks.rank == 0 else None)
        self._algorithm = algorithm
        self._seen: set[str] = set()  # units of the step under way
        self._units = {name: _Unit(name, self) for name in units}
        for name, module in units.items():
            module.set_custom_reduce_scatter(self._units[name])  # pyright: ignore[reportArgumentType]
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def report(self) -> Report:
        """Per rank, how often it was rejected, its weight and its suspicion over time; the same on all ranks.

        A step's weights are the mean over units by size. A rank is not finite where one of its units is not.
        """
        self._close()
        return self._history.report()

    def state_dict(self) -> dict[str, Tensor]:
        """What the algorithm remembers, by unit, as this rank holds it: save one file a rank. Empty before the first
        step."""
        return {
            f"{place}.{name}": tensor.clone() for name, unit in self._units.items() for place, tensor in unit.tensors()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state_dict` gave, on as many ranks.

        Raises:
            ValueError: a unit that the model does not have. Sizes are checked when the first gradients come.
        """
        places = {f"{place}.{name}": (name, place) for name in self._units for place in _places(self._algorithm)}
        unknown = sorted(state.keys() - places.keys())
        if unknown:
            raise ValueError(f"load_state_dict needs the units of this model, got {', '.join(unknown[:3])}.")
        for unit in self._units.values():
            unit.chunk, unit.saved = None, {}
        for key, tensor in state.items():
            name, place = places[key]
            self._units[name].saved[place] = tensor.clone()

    def _close(self) -> None:
        if self._seen:
            self._history.close()
            self._seen.clear()

    def reduce(self, unit: _Unit, gradient: Tensor) -> Tensor:
        """[W L] of this rank to [L] of the update."""
        if unit.name in self._seen:
            self._close()
        if unit.aggregation is None or unit.chunk is None or unit.chunk.length != gradient.numel():
            unit.begin(self._algorithm, self._ranks, gradient)
        assert unit.aggregation is not None
        assert unit.chunk is not None
        self._seen.add(unit.name)
        unit.aggregation.begin(unit.chunk, gradient)
        unit.aggregation.settle(unit.chunk)
        try:
            return unit.aggregation.finish([unit.chunk], self._history)[0]
        except TooManyFaulty:
            self._seen.clear()
            raise


class _Unit:
    """A unit's reduce-scatter, in the form that fully_shard calls it."""

    def __init__(self, name: str, protection: Protection) -> None:
        self.name, self._protection = name, protection
        self.aggregation: Aggregation | None = None
        self.chunk: Chunk | None = None
        self.saved: dict[str, Tensor] = {}

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp,
        async_op: bool = False,
    ) -> None:
        output_tensor.copy_(self._protection.reduce(self, input_tensor))

    def begin(self, algorithm: Algorithm, ranks: Ranks, gradient: Tensor) -> None:
        """Zero memory for gradients of this size, or what was loaded."""
        if self.chunk is not None and _places(algorithm):
            raise ValueError(
                f"protect needs the same parameters of unit {self.name} at each step, for their momentum, got "
                f"{gradient.numel()} numbers after {self.chunk.length}: some had no gradient."
            )
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        own = algorithm.init(1, gradient.numel() // ranks.size, dtype, gradient.device)
        worker = algorithm.init(1, gradient.numel(), dtype, gradient.device).worker
        self.chunk = Chunk([Span(self.name, gradient.numel(), 0)], ranks.size, State(worker, own.server, own.previous))
        self.aggregation = Aggregation(algorithm, ranks, gradient.numel(), gathers=False)
        if self.saved:
            targets = dict(self.tensors())
            check_state(targets, self.saved)
            for place, target in targets.items():
                target.copy_(self.saved[place])
            self.saved = {}

    def tensors(self) -> list[tuple[str, Tensor]]:
        if self.chunk is None:
            return list(self.saved.items())
        return list(tensors_of(self.chunk.state).items())


def _places(algorithm: Algorithm) -> list[str]:
    return list(tensors_of(algorithm.init(1, 1)))


__all__ = ["Protection", "Report", "protect"]
