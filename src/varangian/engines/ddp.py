"""PyTorch's DistributedDataParallel under an Algorithm: every rank is a worker, and all of them are the server.

    model = DistributedDataParallel(module)
    protection = vg.engines.ddp.protect(model, vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.MultiKrum(f=1)))

and the training loop stays as it is, with an optimizer that has no momentum of its own. docs/howto/engines.md says what
this protects from, and what it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

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
    number_in,
    refused_step,
    tensors_of,
    title_of,
    warn_of_none,
)

GradBucket = dist.GradBucket  # pyright: ignore[reportPrivateImportUsage] # public by its documentation
ONCE = ", or was: a DistributedDataParallel can be protected once, so make it anew"
REPLICATED = "replicated=True, where each rank gathers all vectors, works for every rule."


def protect(
    model: DistributedDataParallel,
    algorithm: Algorithm,
    *,
    replicated: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    on_refusal: OnRefusal = "raise",
    window: int = 100,
    warn: Callable[[str], None] | None = None,
    seed: int = 0,
) -> Protection:
    """Puts an algorithm in the place of DistributedDataParallel's mean of gradients, by its communication hook.

    After ``backward()`` every rank's ``.grad`` holds the update U of  parameters <- parameters - lr U:  the workers'
    transforms have been applied to each rank's own gradient, then mixings and rule to what all ranks sent, then the
    server's transforms.

    With ``algorithm.quarantine`` ranks that are suspicious again and again are left out for some steps: they compute
    and send as before, and nobody looks at it. All ranks judge alike, and the report counts it.

    A step in which more than f vectors are not finite is refused: ``backward()`` ends, every ``.grad`` is None, so that
    no optimizer moves anything, the algorithm remembers nothing of it, and the next step goes on as if it had not been.

    Args:
        model: before its first backward pass. Its process group's ranks are the n workers.
        algorithm: what each of them does, the same on all.
        replicated: every rank gathers all vectors and aggregates them itself, and so trusts no other rank's
            arithmetic: W times the memory and W / 2 times the traffic. Otherwise each rank aggregates a piece.
        scaler: the gradient scaler, if the loss is scaled: vectors are taken in true units, and where more than f ranks
            overflow the gradients become NaN, so that it skips the step and lowers its scale. One that is not enabled
            is none.
        on_refusal: what a refused step does: "raise", where ``backward()`` raises on every rank; or "skip", where it
            ends in silence but for the report, which counts it, and a warning.
        window: of how many steps reports and warnings speak.
        warn: called on the group's first rank with a line about a rank that is rejected again and again, or far from
            the others, "rank 3 rejected in 97 of the last 100 steps (host b, step 800)", or about a step that was
            skipped; without it such steps are logged. What it raises is logged too, and stops nobody.
        seed: of what rules and mixings draw, the same on all ranks.

    Raises:
        ValueError: at once, on every rank, for an algorithm that so many ranks cannot run, that protects from nobody,
            that looks ahead (Nesterov), or that needs whole vectors without ``replicated``; a model with sparse
            gradients or SyncBatchNorm; ranks that were given different things. At the end of a backward pass, on every
            rank and with every ``.grad`` None: gradients on top of those of the step before, which are an update
            already (accumulate under ``no_sync()``); parameters without a gradient, but for
            ``find_unused_parameters=True``.
        Refused: a ValueError, at the end of a backward pass: more than f vectors that are not finite.

    Cost: 2 d (W - 1) / W numbers sent by each rank, as a ring all-reduce, and for rules that look at distances
        (W + 1)^2 more; memory O(d). While the backward pass goes on, buckets are exchanged as they become ready, unless
        a transform looks at whole vectors (Clip) or ``replicated`` is on.

    Example:
        >>> import warnings, torch.distributed as dist, varangian as vg
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> model = DistributedDataParallel(torch.nn.Linear(2, 1))
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # one rank alone is protected from nobody
        ...     protection = protect(model, vg.Algorithm(worker=(vg.Clip(1.0),), rule=vg.Median(f=0)))
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> round(float(sum(p.grad.square().sum() for p in model.parameters())), 4)
        1.0
        >>> protection.report().steps
        1
        >>> dist.destroy_process_group()
    """
    return Protection(
        model,
        algorithm,
        replicated=replicated,
        scaler=scaler,
        on_refusal=on_refusal,
        window=window,
        warn=warn,
        seed=seed,
    )


class Protection:
    """What :func:`protect` put into a model: its memory and its report."""

    def __init__(
        self,
        model: DistributedDataParallel,
        algorithm: Algorithm,
        *,
        replicated: bool,
        scaler: torch.amp.GradScaler | None,
        on_refusal: OnRefusal,
        window: int,
        warn: Callable[[str], None] | None,
        seed: int,
    ) -> None:
        distributed = isinstance(model, DistributedDataParallel)
        if not distributed and not dist.is_initialized():
            raise ValueError(f"protect needs a DistributedDataParallel, got {type(model).__name__}.")
        # Who passes something else belongs to the default group, if to any: there the others wait.
        self._ranks = Ranks(model.process_group if distributed else None, device_of(model))
        self._scaler = scaler if isinstance(scaler, torch.amp.GradScaler) and scaler.is_enabled() else None
        named: list[tuple[str, nn.Parameter]] = []

        def told() -> dict[str, str]:
            if not distributed:
                raise ValueError(f"protect needs a DistributedDataParallel, got {type(model).__name__}.")
            check_options("protect", on_refusal=on_refusal, window=window, warn=warn, seed=seed)
            if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
                raise ValueError(f"protect needs a torch.amp.GradScaler, got {type(scaler).__name__}.")
            named.extend(
                (name, parameter)
                for name, parameter in model.module.named_parameters()
                if parameter.requires_grad and name not in model.parameters_to_ignore
            )
            _check_model(model, named)
            check_algorithm("protect", algorithm, self._ranks.size, columnwise=not replicated, advice=REPLICATED)
            scale = None if self._scaler is None else self._scaler.get_scale()
            return {
                "versions and arithmetic": arithmetic(self._ranks.device if replicated else None),
                "algorithm": f"{algorithm!r} {replicated} {seed}",
                "gradient scale and on_refusal": f"{scale} {on_refusal}",
                "parameters": str([(name, list(p.shape), p.dtype) for name, p in named]),
            }

        hosts = self._ranks.agree("protect", told)
        warn_of_none("protect", algorithm.rule)
        title = title_of(algorithm) + (", replicated" if replicated else ", each rank aggregates a piece")
        self._history = History(title, hosts, window=window, warn=warn, first=self._ranks.rank == 0)
        self._watch, whole = Watch(algorithm, self._ranks.size), algorithm
        algorithm = replace(algorithm, quarantine=None)
        self._model, self._algorithm, self._replicated, self._on_refusal = model, algorithm, replicated, on_refusal
        self._names = {parameter: name for name, parameter in named}
        ends = list(accumulate(parameter.numel() for _, parameter in named))
        self._spans = {
            name: Span(name, parameter.numel(), end - parameter.numel())
            for (name, parameter), end in zip(named, ends, strict=True)
        }
        # What looks at whole vectors waits for all of them, and takes them in the order of the parameters.
        stages = algorithm.worker + algorithm.server
        self._waits = replicated or not all(stage.columnwise for stage in stages)
        widest = torch.float32
        for _, parameter in named:
            widest = torch.promote_types(widest, parameter.dtype)
        self._memory = Memory(
            algorithm,
            self._spans,
            {name: widest if self._waits else torch.promote_types(p.dtype, torch.float32) for name, p in named},
            self._ranks,
        )
        self._owner = Owner(whole, seed, self._ranks)
        self._number = 0  # of steps that were not refused: what is drawn depends on it
        self._aggregation: Aggregation
        self._buckets: list[tuple[GradBucket, torch.futures.Future[Tensor]]] = []
        self._step: Step  # the one under way
        self._scale: Tensor | None = None  # of the loss, on the device: nobody waits for it
        self._incomplete: ValueError | None = None  # said of the step under way
        self._error: Exception | None = None  # which the end of the backward pass raises
        self._removed = False
        # Of the step under way: parameters whose gradient began at nothing, and those that got one since.
        self._begun: set[nn.Parameter] = set()
        self._reached: set[nn.Parameter] = set()
        self._stale: dict[nn.Parameter, Tensor] = {}  # whether there was something before: flags on the device
        self._raising, self._checking = Ending(self._raise), Ending(self._check_complete)

        def register() -> dict[str, str]:
            self._aggregation = Aggregation(algorithm, self._ranks, d=ends[-1], gathers=True, seed=seed)
            self._step = self._aggregation.begin(0)
            try:
                model.register_comm_hook(self, _hook)
            except RuntimeError as error:
                raise ValueError(f"protect needs a model without a communication hook of its own: {error}") from None
            return {}

        try:
            self._ranks.agree("protect", register)
        except ValueError:
            self._removed = True
            raise
        model.register_forward_hook(self._forward)
        for parameter in self._names:
            parameter.register_hook(self._arriving(parameter))
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def report(self) -> Report:
        """Per rank, how often it was rejected, its weight and its suspicion over time; the same on all ranks."""
        return self._history.report()

    def remove(self) -> None:
        """From the next step on gradients are averaged, as they are without protection.

        All ranks call it. torch lets nobody take a communication hook out of a model, so this one stays, and there can
        be no other.
        """
        self._removed = True

    def state_dict(self) -> dict[str, Tensor]:
        """What the algorithm remembers, by parameter: this rank's momentum ("worker.0.fc.weight") and the server's, and
        whose it is: "rank", "ranks" (how many), "algorithm" (as text, in bytes), "step" (how many were not refused).

        Workers' memories differ from rank to rank: save one file a rank. Everything is a tensor, so the file loads with
        weights_only=True.
        """
        return self._memory.named() | self._watch.told() | self._owner.named(self._number)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state_dict` gave on this rank. All ranks call it.

        Raises:
            ValueError: on every rank, and nothing is taken up on any: one of them was given the state of another rank,
                of another number of ranks, of another algorithm, of another model, or one with NaN or infinity or of
                other types.
        """
        rest: dict[str, Tensor] = {}

        watched: Watched | None = None

        def told() -> dict[str, str]:
            nonlocal watched
            own, watched = self._watch.taken(self._owner.check(state))
            rest.update(own)
            self._memory.check(rest)
            return {"step": str(number_in(state, "step")), "quarantine": digest_of(watched)}

        self._ranks.agree("load_state_dict", told)
        self._memory.load(rest)
        self._watch.watched = watched
        self._number = number_in(state, "step")

    # ------------------------------------------------------------------------------------------------ a step

    def _forward(self, model: nn.Module, inputs: object, outputs: object) -> None:
        """The backward pass of this forward pass will be a step, unless it is under no_sync()."""
        if self._removed or not torch.is_grad_enabled() or not self._model.require_backward_grad_sync:
            return
        self._reached.clear()
        at_backward(outputs, self._checking.wanted)

    def _arriving(self, parameter: nn.Parameter) -> Callable[[Tensor], None]:
        """A gradient is about to be added to what is there, which at first must be nothing."""

        def arriving(_: Tensor) -> None:
            if parameter not in self._begun and not self._removed:
                self._begun.add(parameter)
                if parameter.grad is not None:
                    self._stale[parameter] = parameter.grad.any()

        return arriving

    def _arrived(self, parameter: Tensor) -> None:
        self._reached.add(parameter)  # type: ignore[arg-type]

    def _doubt(self, step: Step, incomplete: Exception | None) -> None:
        """Gradients that were added to those of the step before, or stand there still, are an error of the step, and
        of more weight than that it is not complete."""
        for parameter in self._names:
            if parameter not in self._begun and parameter.grad is not None:
                self._stale[parameter] = parameter.grad.any()
        if not self._stale:
            step.fail(incomplete)
            return
        parameters, flags = tuple(self._stale), torch.stack(list(self._stale.values()))

        def error() -> ValueError | None:
            found = [self._names[parameters[k]] for k in np.flatnonzero(kernels.host(flags))]
            if not found:
                return None
            return ValueError(
                f"protect needs one synchronised backward pass a step, got a gradient of {min(found)!r} on top of "
                "another step's update; call zero_grad() in between, and accumulate under no_sync()."
            )

        if incomplete is None:
            step.doubt(flags.any(), error)
        else:
            step.fail(error() or incomplete)

    def _missing_error(self) -> ValueError:
        missing = [name for parameter, name in self._names.items() if parameter not in self._reached]
        if not missing:
            return ValueError(
                "protect needs gradients that DistributedDataParallel reduces, got a backward pass that it took no "
                "part in; with static_graph=True a model's outputs must be tensors, or lists and dictionaries of them."
            )
        shown = ", ".join(map(repr, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return ValueError(
            f"protect needs a gradient of every parameter in each step, got none of {shown}; use "
            "DistributedDataParallel(..., find_unused_parameters=True)."
        )

    def take(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """A bucket is ready. Its future completes with the last bucket's; all ranks call this for the same buckets in
        the same order."""
        if self._removed:
            return allreduce_hook(self._model.process_group, bucket)  # type: ignore[arg-type]
        if bucket.index() == 0:
            self._buckets = []  # of a backward pass that was interrupted
            self._step = self._aggregation.begin(self._number, self._watch.admit(self._number))
            one = torch.ones((), device=self._ranks.device)
            self._scale = None if self._scaler is None else self._scaler.scale(one)
        # A future has to be told of devices other than the processor.
        device = self._ranks.device
        devices: list[int | str | torch.device] | None = None if device.type == "cpu" else [device]
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        self._buckets.append((bucket, future))
        if not self._waits:
            names = [self._names[p] for p in bucket.parameters()]  # type: ignore[index]
            self._step.add(self._memory.chunk(names), self._unscaled(bucket.buffer()))
        if bucket.is_last():
            buckets, self._buckets = self._buckets, []
            results = self._complete([b for b, _ in buckets])
            for (_, waiting), result in zip(buckets, results, strict=True):
                waiting.set_result(result)
        return future

    def _complete(self, buckets: Sequence[GradBucket]) -> list[Tensor]:
        """All buckets are here: the update, in their form. DistributedDataParallel copies it into the gradients."""
        step, rule = self._step, self._algorithm.rule
        inside = backward_number() >= 0  # but for a rank that is out of batches, under join()
        if inside:
            self._doubt(step, self._incomplete)
        self._begun.clear()
        self._stale.clear()
        self._incomplete = None
        try:
            if self._replicated:
                updates = [step.replicate(*self._whole(buckets), self._history.name_of)]
            else:
                if self._waits:
                    step.add(*self._whole(buckets))
                updates = step.finish(self._history.name_of)
            step.adopt()
        except Exception as error:  # DistributedDataParallel must come to its end first, or it works no more
            if isinstance(error, Refused):
                self._history.skip(step.finite, rule.f, str(error), step.excluded)
                if self._scaler is not None:
                    return [bucket.buffer().fill_(float("nan")) for bucket in buckets]
            if not inside:
                raise
            self._error = error
            self._raising.wanted()
            return [bucket.buffer().zero_() for bucket in buckets]
        self._history.step([step.evidence], step.f)
        self._watch.hear([step.evidence], self._number)
        self._number += 1
        if not self._waits:
            return [self._scaled(update) for update in updates]
        update, at = self._scaled(updates[0]), 0
        for _, gradient in self._in_order(buckets):
            gradient.copy_(update[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        return [bucket.buffer() for bucket in buckets]

    def _raise(self) -> None:
        """The backward pass is over, and the step came to nothing."""
        error, self._error = self._error, None
        if error is None:
            return
        refused_step(self._model)
        if isinstance(error, Refused) and self._on_refusal == "skip":
            self._history.say(f"step {self._history.steps} is skipped: {error}")
            return
        raise error

    def _check_complete(self) -> None:
        """The backward pass is over: was it a step? Where parameters got no gradient, buckets are missing, for which
        the other ranks may wait: they come, empty, with the error."""
        if self._reached and self._begun:
            self._incomplete = self._missing_error()
            for bucket in self._model.reducer._get_zeros_like_grad_buckets()[len(self._buckets) :]:
                self.take(bucket)

    def _in_order(self, buckets: Sequence[GradBucket]) -> list[tuple[str, Tensor]]:
        """The gradients in the order of the parameters: views of the buckets."""
        found = {
            self._names[parameter]: gradient  # type: ignore[index]
            for bucket in buckets
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
        }
        return sorted(found.items(), key=lambda item: self._spans[item[0]].first)

    def _whole(self, buckets: Sequence[GradBucket]) -> tuple[Chunk, Tensor]:
        """All of it as one chunk, and its gradient [d]."""
        gradients = self._in_order(buckets)
        chunk = self._memory.chunk([name for name, _ in gradients])
        dtype = gradients[0][1].dtype
        for _, gradient in gradients:
            dtype = torch.promote_types(dtype, gradient.dtype)
        return chunk, self._unscaled(torch.cat([gradient.reshape(-1).to(dtype) for _, gradient in gradients]))

    def _unscaled(self, gradient: Tensor) -> Tensor:
        """In true units. A scale on a device is rounded to the type that it meets, where a half type has no room."""
        return gradient if self._scale is None else (_wide(gradient) / self._scale).to(gradient.dtype)

    def _scaled(self, update: Tensor) -> Tensor:
        return update if self._scale is None else (_wide(update) * self._scale).to(update.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.element_size() >= 4 else x.float()


def _hook(state: Protection, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    return state.take(bucket)


# register_comm_hook compares them with the types themselves, and would find text.
_hook.__annotations__ |= {"bucket": GradBucket, "return": torch.futures.Future[torch.Tensor]}


def _check_model(model: DistributedDataParallel, named: Sequence[tuple[str, nn.Parameter]]) -> None:
    if any(hook is _hook for hook, _ in model._comm_hooks):
        raise ValueError(f"protect needs a model that is not protected, got one that is already{ONCE}.")
    if model._comm_hooks:
        raise ValueError("protect needs a model without a communication hook of its own, got register_comm_hook's.")
    if not named:
        raise ValueError("protect needs a model with parameters that require gradients, got none.")
    for name, parameter in named:
        if not parameter.is_floating_point():
            raise ValueError(f"protect needs floating-point parameters, got {parameter.dtype} in {name!r}.")
    for name, part in model.module.named_modules():
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.sparse:
            raise ValueError(f"protect needs dense gradients, got sparse=True in {name!r}.")
        if isinstance(part, nn.SyncBatchNorm):
            raise ValueError(
                f"protect needs ranks that do not see each other's activations, got SyncBatchNorm in {name!r}, through "
                "which one rank's NaN reaches all; use BatchNorm, or a norm that keeps no statistics."
            )


class Memory:
    """What an algorithm remembers, by parameter, in the form of the chunks that are in use.

    DistributedDataParallel makes its buckets anew after the first step, so a bucket's number means nothing.
    """

    def __init__(
        self, algorithm: Algorithm, spans: Mapping[str, Span], dtypes: Mapping[str, torch.dtype], ranks: Ranks
    ) -> None:
        self._algorithm, self._spans, self._dtypes, self._ranks = algorithm, spans, dtypes, ranks
        self._chunks: dict[tuple[str, ...], Chunk] = {}
        self._loose: dict[str, State] = {}  # of parameters that are in no chunk

    def chunk(self, names: Sequence[str]) -> Chunk:
        """The chunk of these parameters, in this order, with their memory wherever it was."""
        key = tuple(names)
        if key not in self._chunks:
            for other in [k for k in self._chunks if not set(k).isdisjoint(key)]:
                self._loose |= _split(self._chunks.pop(other))
            parts = [self._loose.pop(name) if name in self._loose else self._fresh(name) for name in key]
            self._chunks[key] = Chunk([self._spans[name] for name in key], self._ranks.size, _joined(parts))
        return self._chunks[key]

    def _fresh(self, name: str) -> State:
        return self._algorithm.init(1, self._spans[name].size, self._dtypes[name], self._ranks.device)

    def named(self) -> dict[str, Tensor]:
        states = dict(self._loose)
        for chunk in self._chunks.values():
            states |= _split(chunk)
        result: dict[str, Tensor] = {}
        for name in self._spans:
            state = states[name] if name in states else self._fresh(name)
            result |= {f"{place}.{name}": tensor.clone() for place, tensor in tensors_of(state).items()}
        return result

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for a state that :meth:`load` cannot take."""
        check_state(_targets({name: self._fresh(name) for name in self._spans}), state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        fresh = {name: self._fresh(name) for name in self._spans}
        for key, target in _targets(fresh).items():
            target.copy_(state[key])
        self._chunks, self._loose = {}, fresh


def _targets(states: Mapping[str, State]) -> dict[str, Tensor]:
    return {f"{place}.{name}": tensor for name, state in states.items() for place, tensor in tensors_of(state).items()}


def _split(chunk: Chunk) -> dict[str, State]:
    """A chunk's memory, span by span."""
    result, at = {}, 0
    for span in chunk.spans:
        here = slice(at, at + span.size)
        result[span.name] = replace(
            chunk.state,
            worker=tuple(None if m is None else m[:, here] for m in chunk.state.worker),
            server=tuple(None if m is None else m[here] for m in chunk.state.server),
            previous=None if chunk.state.previous is None else chunk.state.previous[here],
        )
        at += span.size
    return result


def _joined(parts: Sequence[State]) -> State:
    """The memory of a chunk whose spans have these."""

    def along(tensors: Sequence[Tensor | None], dim: int) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present, dim) if present else None

    return replace(
        parts[0],
        worker=tuple(along(m, 1) for m in zip(*(part.worker for part in parts), strict=True)),
        server=tuple(along(m, 0) for m in zip(*(part.server for part in parts), strict=True)),
        previous=along([part.previous for part in parts], 0),
    )


__all__ = ["Protection", "Report", "protect"]
