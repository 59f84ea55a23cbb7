"""PyTorch's FSDP2 (fully_shard) under an Algorithm, unit by unit.

    fully_shard(layer) ...; fully_shard(model)
    protection = vg.engines.fsdp.protect(model, vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.MultiKrum(f=1)))

Each unit's reduce-scatter becomes an exchange of pieces and the rule. A unit is reduced before the gradients of others
are known: what looks at whole vectors (selecting rules, mixings, clipping) looks at a unit's part of them.
docs/howto/engines.md says more.
"""

from __future__ import annotations

import hashlib
import math
import struct
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..core import kernels
from ..core.algorithm import Algorithm, State
from ..core.history import History, Report
from ..core.quarantine import Watched
from .sharded import (
    Aggregation,
    Chunk,
    Ending,
    OnRefusal,
    Owner,
    Ranks,
    Refused,
    Span,
    Step,
    Watch,
    arithmetic,
    at_backward,
    backward_number,
    check_algorithm,
    check_options,
    check_state,
    device_of,
    digest_of,
    fetched,
    looks_at_distances,
    number_in,
    refused_step,
    tensors_of,
    text_in,
    title_of,
    warn_of_none,
)

try:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
    from torch.distributed.tensor import DTensor, Shard

    FSDPModule.set_custom_reduce_scatter  # noqa: B018
except (ImportError, AttributeError):
    raise ImportError(
        "varangian.engines.fsdp needs FSDPModule.set_custom_reduce_scatter, which torch "
        f"{torch.__version__} does not have; install a newer torch."
    ) from None

try:
    from torch.distributed import reduce_scatter_single  # torch >= 2.13, which warns about the old name
except ImportError:
    from torch.distributed import reduce_scatter_tensor as reduce_scatter_single

ENTRY = struct.Struct("<?iq8s")  # what a rank says of what it is about to do: see Protection._compare
END = -1  # in the place of a unit: the backward pass is over
USED = "used"  # in a state: which parameters of a unit a memory is of, where it is not all
FORWARD = -1  # in the place of a size: the unit's forward pass
PROTECTED: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # units, whose reduce-scatter is one of ours
WHOLE = "no rank ever has whole ones here; DistributedDataParallel with replicated=True works for every rule."


def protect(
    model: nn.Module,
    algorithm: Algorithm,
    *,
    on_refusal: OnRefusal = "raise",
    window: int = 100,
    warn: Callable[[str], None] | None = None,
    seed: int = 0,
) -> Protection:
    """Puts an algorithm in the place of the mean in every unit's reduce-scatter.

    With ``algorithm.quarantine`` ranks that are suspicious again and again, by the mean over units by size, are left
    out of all units for some steps.

    A step in which more than f vectors of a unit are not finite is refused: ``backward()`` ends, every ``.grad`` is
    None, of all units, so that no optimizer moves anything, the algorithm remembers nothing of it, and the next step
    goes on as if it had not been.

    Args:
        model: after ``fully_shard`` on a mesh of one dimension, before its first backward pass. The ranks of the mesh
            are the n workers, at least two.
        algorithm: what each of them does, the same on all. It sees each unit as a vector of its own.
        on_refusal, window, warn, seed: as for :func:`varangian.engines.ddp.protect`.

    Raises:
        ValueError: at once, on every rank, for an algorithm that so many ranks cannot run, that protects from nobody,
            that looks ahead, or that needs what no rank has: whole vectors, the last aggregate at the workers, the
            update's norm at the server. At the end of a backward pass, on every rank and with every ``.grad`` None:
            ranks that used different parameters, by unit and rank; gradients on top of those of the step before, which
            are an update already (accumulate under ``set_requires_gradient_sync(False)``); a unit that was reduced
            twice.
        Refused: a ValueError, at the end of a backward pass: more than f vectors of a unit that are not finite.

    Cost: d (W - 1) / W numbers sent by each rank, as the reduce-scatter that it stands for, 21 W bytes a unit, by which
        ranks find out whether they speak of the same, and for rules that look at distances (W + 1)^2 numbers a unit.
        Worker momentum takes d numbers on each rank, which are not sharded.
    """
    return Protection(model, algorithm, on_refusal=on_refusal, window=window, warn=warn, seed=seed)


class Protection:
    """What :func:`protect` put into a model: its memory and its report."""

    def __init__(
        self,
        model: nn.Module,
        algorithm: Algorithm,
        *,
        on_refusal: OnRefusal,
        window: int,
        warn: Callable[[str], None] | None,
        seed: int,
    ) -> None:
        named = list(model.named_modules()) if isinstance(model, nn.Module) else []
        units = {name or "(root)": module for name, module in named if isinstance(module, FSDPModule)}
        self._parameters = {
            name: p
            for name, p in (model.named_parameters() if named else ())
            if isinstance(p, DTensor) and p.requires_grad
        }
        meshes = [p.device_mesh for p in self._parameters.values()]
        fits = bool(meshes) and meshes[0].ndim == 1
        if not fits and not dist.is_initialized():
            raise ValueError(f"protect needs a model after fully_shard, got {type(model).__name__}.")
        # Who passes something else belongs to the default group, if to any: there the others wait.
        device = _device(meshes[0], device_of(model)) if fits else device_of(model)
        self._ranks = Ranks(meshes[0].get_group() if fits else None, device)

        def told() -> dict[str, str]:
            if not isinstance(model, FSDPModule) or not meshes:
                raise ValueError(f"protect needs a model after fully_shard, got {type(model).__name__}.")
            if not fits or any(mesh != meshes[0] for mesh in meshes):
                odd = next((mesh for mesh in meshes if mesh.ndim != 1 or mesh != meshes[0]), meshes[0])
                raise ValueError(f"protect needs all units on one mesh of one dimension, got {_line(odd)}.")
            if any(module in PROTECTED for _, module in named):
                raise ValueError(
                    "protect needs a model that is not protected, got one that is already; call remove() of the "
                    "protection that it has, or keep to that."
                )
            if self._ranks.size < 2:
                raise ValueError("protect needs at least two ranks, got one, for which fully_shard reduces nothing.")
            check_options("protect", on_refusal=on_refusal, window=window, warn=warn, seed=seed)
            check_algorithm("protect", algorithm, self._ranks.size, columnwise=True, advice=WHOLE)
            for stage in algorithm.worker:
                if stage.uses_previous:
                    raise ValueError(
                        f"protect needs workers that do without the last aggregate, which is sharded, got {stage}."
                    )
            for stage in algorithm.server:
                if not stage.columnwise:
                    raise ValueError(f"protect needs server transforms that work on pieces of the update, got {stage}.")
            if looks_at_distances(algorithm) and device_of(model) != self._ranks.device:
                raise ValueError(
                    f"protect needs gradients that stay on {self._ranks.device} for rules and mixings that look at "
                    "distances, got CPUOffloadPolicy; coordinate-wise rules work with it."
                )
            return {
                "versions and arithmetic": arithmetic(),
                "algorithm": f"{algorithm!r} {seed}",
                "on_refusal": on_refusal,
                "parameters": str([(name, list(p.shape), p.dtype) for name, p in self._parameters.items()]),
                "units": str(list(units)),
            }

        hosts = self._ranks.agree("protect", told)
        warn_of_none("protect", algorithm.rule)
        title = f"{title_of(algorithm)}, unit by unit"
        self._history = History(title, hosts, window=window, warn=warn, first=self._ranks.rank == 0)
        self._owner, self._watch = Owner(algorithm, seed, self._ranks), Watch(algorithm, self._ranks.size)
        algorithm = replace(algorithm, quarantine=None)
        self._model, self._algorithm, self._on_refusal = model, algorithm, on_refusal
        self._number, self._seed = 0, seed  # of steps that were not refused: what is drawn depends on it
        self._steps: dict[str, Step | None] = {}  # by unit, of the step under way, once it came to be reduced
        self._failed: Exception | None = None  # why the step under way comes to nothing, on every rank
        self._own: Exception | None = None  # of this rank, where the others have yet to hear of it
        self._told: list[Tensor] = []  # what ranks said they were about to do, and the host has not looked at
        self._settling: Step  # which unit's it was that came to nothing
        self._used: set[str] = set()  # parameters that got a gradient since the last step
        self._hooked: dict[str, Tensor] = {}
        self._ending = Ending(self._end)
        self._waits_for_end = False
        self._called = False  # a unit's forward pass that all ranks have to take part in
        self.removed = False
        self._units: dict[str, _Unit] = {}
        self._modules = [module for name, module in named if (name or "(root)") in units]
        PROTECTED.update(self._modules)
        for k, (name, module) in enumerate(units.items()):
            self._units[name] = _Unit(name, k, self, module._get_fsdp_state()._mp_policy)
            module.set_custom_reduce_scatter(self._units[name])  # pyright: ignore[reportArgumentType]
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        for name, module in named:
            if isinstance(module, FSDPModule):
                unit = self._units[name or "(root)"]
                module.register_forward_pre_hook(self._calling(unit), prepend=True)  # type: ignore[attr-defined]
                module.register_forward_pre_hook(self._watching(name))  # type: ignore[attr-defined] # a Module too
        for name, parameter in self._parameters.items():
            owners = [unit for unit in units if name.startswith(f"{unit}.")]
            self._units[max(owners, key=len, default="(root)")].parameters[name] = parameter
        model.register_forward_hook(self._forward)

    def report(self) -> Report:
        """Per rank, how often it was rejected, its weight and its suspicion over time; the same on all ranks.

        A step's weights are the mean over units by size. A rank is not finite where one of its units is not.
        """
        return self._history.report()

    def remove(self) -> None:
        """From the next step on gradients are averaged, as they are without protection. All ranks call it."""
        if not self.removed:
            PROTECTED.difference_update(self._modules)
        self.removed = True

    def state_dict(self) -> dict[str, Tensor]:
        """What the algorithm remembers, by unit, as this rank holds it, and whose it is: "rank", "ranks" (how many),
        "algorithm" (as text, in bytes), "step" (how many were not refused). Save one file a rank. Before the first step
        there is no unit in it; later, of a unit that no step used it says so."""
        found = {name: dict(unit.tensors()) for name, unit in self._units.items()}
        for name, unit in self._units.items():
            if self._number and not found[name] and self._remembers(unit):
                found[name][USED] = torch.empty(0, dtype=torch.uint8)
        memory = {f"{place}.{name}": tensor.clone() for name, kept in found.items() for place, tensor in kept.items()}
        return memory | self._watch.told() | self._owner.named(self._number)

    def _remembers(self, unit: _Unit) -> bool:
        return bool(unit.parameters and _places(self._algorithm))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state_dict` gave on this rank. All ranks call it.

        Raises:
            ValueError: on every rank, and nothing is taken up on any: one of them was given the state of another rank,
                of another number of ranks, of another algorithm, of other units, sizes or types, one that lacks units,
                or one with NaN or infinity; or ranks were given memories of different parameters.
        """
        kinds = [*_places(self._algorithm), USED]
        places = {f"{place}.{name}": (name, place) for name in self._units for place in kinds}
        rest: dict[str, Tensor] = {}

        watched: Watched | None = None

        def told() -> dict[str, str]:
            nonlocal watched
            own, watched = self._watch.taken(self._owner.check(state))
            rest.update(own)
            unknown = sorted(rest.keys() - places.keys())
            if unknown:
                raise ValueError(f"load_state_dict needs the units of this model, got {', '.join(unknown[:3])}.")
            step, used = number_in(state, "step"), {}
            for name, unit in self._units.items():
                kept = {place: rest[key] for key, (owner, place) in places.items() if owner == name and key in rest}
                if kept or ((step or rest) and self._remembers(unit)):
                    unit.check(self._algorithm, self._ranks, kept)
                used[name] = _names(kept) if USED in kept else sorted(kept)
            return {"step": str(step), "parameters in the state": str(used), "quarantine": digest_of(watched)}

        self._ranks.agree("load_state_dict", told)
        self._watch.watched = watched
        for unit in self._units.values():
            unit.forget()
        for key, tensor in rest.items():
            name, place = places[key]
            if tensor.numel() or place != USED:
                self._units[name].saved[place] = tensor.clone()
        self._number = number_in(state, "step")

    # ------------------------------------------------------------------------------------------------ a step

    def _calling(self, unit: _Unit) -> Callable[[nn.Module, object], None]:
        """Before a unit's parameters are gathered: ranks that call different units would mix them, or hang. On other
        devices each rank would have to wait for its own here, so there they may."""

        def calling(module: nn.Module, _: object) -> None:
            sharded = any(isinstance(p, DTensor) for p in module.parameters(recurse=False))
            if sharded and not self._ranks.waits and not self.removed and backward_number() < 0:
                self._called = True
                self._say(None, unit.number, FORWARD, bytes(8))

        return calling

    def _watching(self, prefix: str) -> Callable[[nn.Module, object], None]:
        """Before a unit's forward pass, when its parameters are whole: their gradients will be heard of."""

        def watching(module: nn.Module, _: object) -> None:
            for name, parameter in module.named_parameters(prefix):
                whole = not isinstance(parameter, DTensor) and parameter.requires_grad
                if whole and self._hooked.get(name) is not parameter:
                    self._hooked[name] = parameter
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._used.add(name))

        return watching

    def _forward(self, model: nn.Module, inputs: object, outputs: object) -> None:
        """The end of this forward pass's backward pass will be heard of."""
        if self._called:
            self._called = False
            self._say(None, END, FORWARD, bytes(8))
        if torch.is_grad_enabled():
            at_backward(outputs, self._begin)

    def _begin(self) -> None:
        """A backward pass begins; of one that was interrupted nothing stays."""
        self._steps.clear()
        self._told.clear()
        self._failed = self._own = None
        self._waits_for_end = True
        self._ending.wanted()

    def reduce(self, unit: _Unit, gradient: Tensor, output: Tensor) -> None:
        """[W L] of this rank to [L] of the update; zeros in a step that comes to nothing, which its end says.

        Where the host would have to wait for a device, all is looked at when the backward pass is over, and what
        distances decide is put into the gradients there.
        """
        if not self._waits_for_end:
            self._begin()
        update = None
        try:
            if self._failed is None:
                self._steps[unit.name] = step = self._meet(unit, gradient)
                if not self._ranks.waits:
                    self._settle([step])
                if not (self._ranks.waits and step.measures):
                    update = next(iter(step.updates), None)
        except Exception as error:  # fully_shard must come to its end first, or it works no more
            self._failed = error
        if update is None:
            output.zero_()
        else:
            output.copy_(update)

    def _meet(self, unit: _Unit, gradient: Tensor) -> Step:
        """Raises on every rank unless all have come to reduce the same parameters of the same unit: here, or where the
        host would have to wait for that, at the end."""
        first, again = not self._steps, unit.name in self._steps
        self._steps[unit.name] = None
        whole = gradient.numel() == unit.length(self._ranks.size)
        used = () if whole else tuple(sorted(self._used & unit.parameters.keys()))
        stale = self._stale() if first else None
        error: Exception | None = None
        try:
            if stale is not None and not self._ranks.waits and (found := stale[1]()):
                raise found
            if again:
                raise ValueError(
                    f"protect needs each unit to be reduced once in a backward pass, got {unit.name!r} twice; what is "
                    "called several times belongs into a unit that is called once."
                )
            unit.prepare(self._algorithm, self._ranks, gradient, used, seed=self._seed)
        except Exception as own:
            error = own
        names = "" if whole else str(sorted(self._used))
        told = hashlib.sha256(f"{names} {gradient.dtype}".encode()).digest()[:8]
        self._say(error, unit.number, gradient.numel(), told)
        aggregation, chunk = unit.aggregation, unit.chunk
        if error is not None:  # the others go on, and will hear of it
            aggregation, chunk = unit.blank(self._algorithm, self._ranks, gradient, seed=self._seed)
            gradient = torch.zeros_like(gradient)
        assert aggregation is not None
        assert chunk is not None
        step = aggregation.begin(self._number, self._watch.admit(self._number))
        if stale is not None:
            step.doubt(*stale)
        step.add(chunk, gradient)
        step.close()
        if self._ranks.waits and step.measures:
            unit.make_way()
        return step

    def _say(self, error: Exception | None, number: int, size: int, told: bytes) -> None:
        """Each rank says what it is about to do; see :meth:`_compare`."""
        self._own = self._own or error
        rows = self._ranks.tell(ENTRY.pack(error is not None, number, size, told))
        self._told.append(rows.double().view(-1))
        if not self._ranks.waits:
            self._look([])

    def _look(self, steps: Sequence[Step]) -> list[np.ndarray]:
        """The numbers of the steps, on the host, once all that ranks said has been compared: in one copy."""
        said, self._told = self._told, []
        known = fetched([*said, *(step.numbers for step in steps)])
        for rows in known[: len(said)]:
            self._compare([row.tobytes() for row in rows.astype(np.uint8).reshape(self._ranks.size, -1)])
        return known[len(said) :]

    def _compare(self, said: Sequence[bytes]) -> None:
        """Raises on every rank where one has an error or does something else."""
        rows = [ENTRY.unpack(row) for row in said]
        if any(row[0] for row in rows):
            self._ranks.share(self._own)
        names = {unit.number: f"unit {unit.name!r}" for unit in self._units.values()}

        def doing(number: int, size: int) -> str:
            if number == END:
                return f"the end of the {'forward' if size == FORWARD else 'backward'} pass"
            return names[number] if size == FORWARD else f"gradients of {names[number]}"

        first = rows[0][1:]
        for rank, (_, *row) in enumerate(rows):
            if tuple(row) != first:
                here, there = doing(row[0], row[1]), doing(first[0], first[1])
                got = f"{here} where rank 0 has {there}" if here != there else f"others than rank 0 in {here}"
                raise ValueError(
                    f"protect needs the same parameters in use on all ranks, got on rank {rank} {got}; let each rank "
                    "use all parameters, or call set_reduce_scatter_unused_params(True)."
                )

    def _settle(self, steps: Sequence[Step]) -> None:
        """The steps of units are over, and hold on all ranks: they have updates."""
        self._settling, known = steps[0], self._look(steps)
        if steps[0].measures:
            for self._settling, numbers in zip(steps, known, strict=True):
                self._settling.decide(numbers, self._history.name_of)
            known = fetched([step.numbers for step in steps])
        for self._settling, numbers in zip(steps, known, strict=True):
            self._settling.conclude(numbers, self._history.name_of)

    def _stale(self) -> tuple[Tensor, Callable[[], ValueError | None]] | None:
        """Whether gradients were there before the first unit's came: a flag on the device, and what to say of it."""
        gradients = {name: parameter.grad for name, parameter in self._parameters.items()}
        here = {name: gradient.to_local() for name, gradient in gradients.items() if isinstance(gradient, DTensor)}
        if not here:
            return None
        flags = torch.stack([gradient.any().to(self._ranks.device) for gradient in here.values()])

        def error() -> ValueError | None:
            names = [name for name, flag in zip(here, kernels.host(flags), strict=True) if flag]
            if not names:
                return None
            return ValueError(
                f"protect needs one synchronised backward pass a step, got a gradient of {names[0]!r} on top of "
                "another step's update; call zero_grad() in between, and accumulate under "
                "set_requires_gradient_sync(False)."
            )

        return flags.any(), error

    def _end(self) -> None:
        """The backward pass is over: its step is taken up, or comes to nothing."""
        steps, self._steps = self._steps, {}
        error, self._failed = self._failed, None
        rule = self._algorithm.rule
        self._waits_for_end = False
        if not steps:
            return
        self._used.clear()
        done = {self._units[name]: step for name, step in steps.items() if step is not None}
        if error is None:
            try:
                self._say(None, END, 0, bytes(8))
                if self._ranks.waits:
                    self._settle(list(done.values()))
                    for unit, step in done.items():
                        if step.measures:
                            unit.put(step.updates[0])
            except Exception as own:
                error = own
        self._own = None
        if error is None:
            for unit, step in done.items():
                step.adopt()
                unit.adopted()
            told = [step.evidence for step in done.values()]
            self._history.step(told, next(iter(done.values())).f)
            self._watch.hear(told, self._number)
            self._number += 1
            return
        refused_step(self._model, tuple(self._parameters.values()))
        if isinstance(error, Refused):
            self._history.skip(self._settling.finite, rule.f, str(error), self._settling.excluded)
            if self._on_refusal == "skip":
                self._history.say(f"step {self._history.steps} is skipped: {error}")
                return
        raise error


class _Unit:
    """A unit's reduce-scatter, in the form that fully_shard calls it."""

    def __init__(self, name: str, number: int, protection: Protection, policy: MixedPrecisionPolicy) -> None:
        self.name, self.number, self._protection, self._policy = name, number, protection, policy
        self.parameters: dict[str, DTensor] = {}
        self.aggregation: Aggregation | None = None
        self.chunk: Chunk | None = None
        self.saved: dict[str, Tensor] = {}  # what was loaded, until a step is made of it
        self._used: tuple[str, ...] = ()  # whose gradients the chunk holds; () for all
        self._adopted = False  # whether the chunk is of a step that was not refused

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
        if self._protection.removed:
            reduce_scatter_single(output_tensor, input_tensor, group=group)
            output_tensor.div_(dist.get_world_size(group))
        else:
            self._protection.reduce(self, input_tensor, output_tensor)

    def forget(self) -> None:
        self.chunk, self.saved, self._adopted = None, {}, False

    def adopted(self) -> None:
        self.saved, self._adopted = {}, True

    def length(self, size: int, used: Sequence[str] = ()) -> int:
        """How many numbers come where these parameters, or all, have gradients: fully_shard fills up the first
        dimension."""
        total = 0
        for parameter in [self.parameters[name] for name in used] or self.parameters.values():
            rows = parameter.shape[0]
            sharded = next(p.dim for p in parameter.placements if isinstance(p, Shard))
            total += parameter.numel() if sharded else math.ceil(rows / size) * size * (parameter.numel() // rows)
        return total

    def prepare(
        self, algorithm: Algorithm, ranks: Ranks, gradient: Tensor, used: tuple[str, ...], *, seed: int
    ) -> None:
        """Zero memory for gradients of these parameters, or what was loaded.

        Raises:
            ValueError: other parameters than before, where there is a memory of them.
        """
        length, saved = gradient.numel(), _names(self.saved) if self.saved else used
        same = self.chunk is not None and (self.chunk.length, self._used) == (length, used)
        if same and self._adopted:
            return
        if (self._adopted and not same and _places(algorithm)) or saved != used:
            before = self._used if self._adopted else saved
            raise ValueError(
                f"protect needs gradients of the same parameters of unit {self.name!r} in each step, for their "
                f"momentum, got {_some(used)} after {_some(before)}."
            )
        state = self._fresh(algorithm, ranks, length, torch.promote_types(gradient.dtype, torch.float32))
        for place, target in tensors_of(state).items() if self.saved else ():
            target.copy_(self.saved[place])
        self.chunk, self._used = Chunk([Span(self.name, length, 0)], ranks.size, state), used
        self.aggregation = Aggregation(algorithm, ranks, d=length, gathers=False, seed=seed)

    def blank(self, algorithm: Algorithm, ranks: Ranks, gradient: Tensor, *, seed: int) -> tuple[Aggregation, Chunk]:
        """In the place of what :meth:`prepare` could not: the step comes to nothing, but the others go on with it."""
        length = gradient.numel()
        state = self._fresh(algorithm, ranks, length, torch.promote_types(gradient.dtype, torch.float32))
        aggregation = Aggregation(algorithm, ranks, d=length, gathers=False, seed=seed)
        return aggregation, Chunk([Span(self.name, length, 0)], ranks.size, state)

    def _reduced(self) -> list[DTensor]:
        """The parameters whose gradients the chunk holds."""
        return [p for name, p in self.parameters.items() if not self._used or name in self._used]

    def make_way(self) -> None:
        """Gradients of zeros, or of a step that was none, go: fully_shard would add to them, one by one."""
        for parameter in self._reduced():
            parameter.grad = None

    def put(self, update: Tensor) -> None:
        """The update [L] into the gradients, which fully_shard has made views of one [L]."""
        for parameter in self._reduced():
            gradient = parameter.grad
            assert isinstance(gradient, DTensor)
            here = gradient.to_local()
            if here.untyped_storage().nbytes() != update.numel() * here.element_size():
                raise RuntimeError(f"protect needs gradients as fully_shard of torch 2.13 lays them in {self.name!r}.")
            first = here.storage_offset()
            here.copy_(update[first : first + here.numel()].view_as(here))

    def check(self, algorithm: Algorithm, ranks: Ranks, saved: Mapping[str, Tensor]) -> None:
        """Raises ValueError for a memory that no gradient of this unit can have, and where it lacks."""
        used = _names(saved)
        if saved.keys() == {USED} and not saved[USED].numel():
            return  # no step used this unit
        unknown = sorted(set(used) - self.parameters.keys())
        if unknown:
            raise ValueError(
                f"load_state_dict needs the parameters of this model, got {', '.join(map(repr, unknown[:3]))}."
            )
        fresh = self._fresh(algorithm, ranks, self.length(ranks.size, used), self._dtype())
        targets = {f"{place}.{self.name}": tensor for place, tensor in tensors_of(fresh).items()}
        check_state(targets, {f"{place}.{self.name}": tensor for place, tensor in saved.items() if place != USED})

    def _dtype(self) -> torch.dtype:
        """Of this unit's memory: of its gradients as they are reduced, in float32 at least."""
        if self.chunk is not None:
            return next((m.dtype for m in tensors_of(self.chunk.state).values()), torch.float32)
        policy, dtype = self._policy, torch.float32
        reduced = policy.reduce_dtype or policy.param_dtype
        for parameter in self.parameters.values():
            dtype = torch.promote_types(dtype, reduced or parameter.dtype)
        return dtype

    def _fresh(self, algorithm: Algorithm, ranks: Ranks, length: int, dtype: torch.dtype) -> State:
        own = algorithm.init(1, length // ranks.size, dtype, ranks.device)
        return replace(own, worker=algorithm.init(1, length, dtype, ranks.device).worker)

    def tensors(self) -> list[tuple[str, Tensor]]:
        if self.chunk is None or not self._adopted:
            return list(self.saved.items())
        found = tensors_of(self.chunk.state)
        if self._used and found:
            found[USED] = torch.frombuffer(bytearray("\n".join(self._used).encode()), dtype=torch.uint8)
        return list(found.items())


def _device(mesh: DeviceMesh, device: torch.device) -> torch.device:
    """Where gradients are reduced: where the parameters are, unless they are kept in main memory."""
    if device.type == mesh.device_type:
        return device
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def _names(saved: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Whose memory was saved; () for that of all parameters of the unit."""
    return tuple(text_in(saved, USED).split("\n")) if USED in saved else ()


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "all"


def _places(algorithm: Algorithm) -> list[str]:
    return list(tensors_of(algorithm.init(1, 1)))


def _line(mesh: object) -> str:
    return " ".join(str(mesh).split())


__all__ = ["Protection", "Report", "protect"]
