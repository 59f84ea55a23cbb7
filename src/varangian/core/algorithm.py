"""The paper in one screen: on which side of the aggregation rule F does momentum stand?

    at the server    theta <- theta - lr * M( F( g_1, ..., g_n ) )            the usual formulation
    at the workers   theta <- theta - lr * F( M(g_1), ..., M(g_n) )           the paper's formulation

An algorithm is four stages in two halves, and the adversary stands between the halves:

    worker   [*, d] -> [*, d]   row by row        Clip, Momentum           where the gradient is
    ------- the adversary sees what honest workers send and supplies the other rows, last ----------------
    pre      [n, d] -> [m, d]   rows may mix      NearestNeighborMixing ...
    rule     [n, d] -> [d]      F                 MultiKrum, Median, Bulyan ...
    server   [d]    -> [d]      after F           Momentum

Letters, here and everywhere: n vectors arrive, at most f of them Byzantine, h = n - f honest ones come first, each has
d coordinates, m are selected or result from a mixing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .checks import kind_of, not_dense, shown, whole
from .evidence import distances_and_norms
from .mixing import Mixing
from .placement import Adaptive, Placed, check_placed
from .quarantine import Admitted, Quarantine, Watched
from .randomness import Draw
from .rules import Average, Rule
from .stages import Decision, Heard, as_matrix, check_rows, decide, required_rows
from .transforms import Clip, Momentum, SharedMomentum, Transform, check_like


@dataclass(frozen=True)
class State:
    """All that an algorithm remembers between two steps. Plain tensors: save them, send them, compare them.

    Attributes:
        worker: one entry per worker transform, [h, d] momenta or None.
        server: one entry per server transform, [d] momenta or None.
        previous: [d], the last output of F, zero at first; None for algorithms that never look at it.
        step: how many aggregations came before.
        seed: what rules and mixings that draw depend on, beside the step.
        placement: of momentum that moves; None for algorithms without.
        quarantine: of workers; None for algorithms without one.
    """

    worker: tuple[Tensor | None, ...]
    server: tuple[Tensor | None, ...]
    previous: Tensor | None
    step: int = 0
    seed: int = 0
    placement: Placed | None = None
    quarantine: Watched | None = None


@dataclass(frozen=True)
class Algorithm:
    """Distributed SGD under attack: worker transforms, then mixings and a rule, then server transforms.

    Moving one object across ``rule=`` is the experiment of the paper. With ``placement`` the server moves it in the
    course of training: see :class:`varangian.Adaptive`, which stands between the worker transforms and F, or between F
    and the server's. With ``quarantine`` mixings and rule are not shown who was suspicious again and again: see
    :class:`varangian.Quarantine`.

    Example:
        >>> import torch, varangian as vg
        >>> proposal = vg.Algorithm(worker=(vg.Clip(2.0), vg.Momentum(0.9)), rule=vg.MultiKrum(f=1))
        >>> practice = vg.Algorithm(worker=(vg.Clip(2.0),), rule=vg.MultiKrum(f=1), server=(vg.Momentum(0.9),))
        >>> state = proposal.init(h=5, d=3)
        >>> vectors, state = proposal.send(torch.ones(5, 3), state)
        >>> update, state = proposal.aggregate(vectors, state)
        >>> update
        tensor([1., 1., 1.])

    Reference: El-Mhamdi, Guerraoui, Rouault, "Distributed Momentum for Byzantine-resilient Stochastic Gradient
    Descent", ICLR 2021.
    """

    worker: tuple[Transform, ...] = ()
    pre: tuple[Mixing, ...] = ()
    rule: Rule = Average()
    server: tuple[Transform, ...] = ()
    placement: Adaptive | None = None
    quarantine: Quarantine | None = None

    def __post_init__(self) -> None:
        for place, kind in (("worker", Transform), ("pre", Mixing), ("server", Transform)):
            given = getattr(self, place)
            stages = tuple(given) if isinstance(given, (tuple, list)) else (given,)
            for stage in stages:
                _check_stage(place, stage, kind)
            object.__setattr__(self, place, stages)
        _check_stage("rule", self.rule, Rule)
        if self.rule.needs_root:
            raise ValueError(
                f"Algorithm: {self.rule} needs a root vector, which an algorithm does not have; "
                "call the rule itself: rule(vectors, previous=root)."
            )
        moving = [str(mixing) for mixing in self.pre if not mixing.aligned]
        if self.rule.by_place and moving:
            raise ValueError(
                f"Algorithm: {self.rule} trusts the vector at one place, and behind {moving[0]} none is in its place."
            )
        for stage in self.server:
            if stage.worker_only:
                raise ValueError(f"Algorithm: {stage} acts at the workers, got it in server=; move it to worker=.")

        if self.placement is not None:
            if not isinstance(self.placement, Adaptive):
                raise ValueError(f"Algorithm needs Adaptive or None in placement=, got {shown(self.placement)}.")
            others = [s for s in (*self.worker, *self.server) if isinstance(s, (Momentum, SharedMomentum))]
            if others:
                raise ValueError(f"Algorithm: {self.placement} is the momentum; leave {others[0]} out.")

        if self.quarantine is not None:
            if not isinstance(self.quarantine, Quarantine):
                raise ValueError(f"Algorithm needs Quarantine or None in quarantine=, got {shown(self.quarantine)}.")
            if self.placement is not None:
                raise ValueError(
                    f"Algorithm: {self.placement} follows each worker's momentum, and a quarantine leaves some out; "
                    "use one of them."
                )
            if self.rule.by_place:
                raise ValueError(
                    f"Algorithm: {self.rule} trusts the vector at one place, and behind a quarantine none is in its "
                    "place."
                )

    def __repr__(self) -> str:
        """All of its stages; a quarantine where there is one, so that without the text is what it was before."""
        stages = [f.name for f in fields(self) if f.name != "quarantine" or self.quarantine is not None]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in stages)})"

    @property
    def min_n(self) -> int:
        """The least number of vectors that every stage of ``pre`` and ``rule`` accepts."""
        return required_rows(self.pre, self.rule)

    @property
    def remembers_aggregate(self) -> bool:
        """Whether some stage looks at the last output of F."""
        return self.rule.uses_previous or any(stage.uses_previous for stage in self.worker)

    def init(
        self, h: int, d: int, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", *, seed: int = 0
    ) -> State:
        """Zero momenta: of h workers and of the server.

        ``seed`` decides what rules and mixings that draw will draw, step by step: whoever knows it knows all of it, so
        a server that faces real adversaries keeps it to itself.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"Algorithm needs a floating-point dtype, such as torch.float32, got {shown(dtype)}.")
        try:
            options = {"dtype": dtype, "device": torch.device(device)}
        except (RuntimeError, TypeError):
            raise ValueError(f"Algorithm needs a device, such as cpu, cuda or cuda:1, got {shown(device)}.") from None
        try:
            torch.empty(0, device=options["device"])
        except (RuntimeError, AssertionError, NotImplementedError):  # of torch, in as many lines as it likes
            raise ValueError(f"Algorithm: torch cannot compute on {shown(str(device))} here.") from None
        h, d = whole(self, "h", h), whole(self, "d", d)
        return State(
            worker=tuple(torch.zeros(h, d, **options) if stage.remembers else None for stage in self.worker),
            server=tuple(torch.zeros(d, **options) if stage.remembers else None for stage in self.server),
            previous=torch.zeros(d, **options) if self.remembers_aggregate else None,
            seed=whole(self, "seed", seed),
            placement=None if self.placement is None else self.placement.init(h, d, **options),
            quarantine=None if self.quarantine is None else self.quarantine.init(),
        )

    @overload
    def point(self, parameters: Tensor, state: State, lr: float) -> Tensor: ...
    @overload
    def point(self, parameters: np.ndarray | Sequence[float], state: State, lr: float) -> np.ndarray: ...
    @kernels.eager
    def point(self, parameters: Any, state: State, lr: float) -> Any:
        """Where to take the gradients: [d] parameters, or the look-ahead points of Nesterov's momentum.

        At the server theta - mu lr m, [d]; at the workers theta - mu lr m_i, [h, d], one point a worker.
        """
        _check_state(state)
        if not isinstance(parameters, Tensor) and np.ndim(parameters) == 1:
            rows, restore = _vectors(self, [parameters], state)
            return restore(self.point(rows[0], state, lr))
        _check_vectors("parameters", parameters, 1)
        _check_memories(self.worker, "worker", state.worker)
        _check_memories(self.server, "server", state.server)
        for memory in (*state.worker, *state.server):
            if memory is not None and len(memory):
                check_like("Algorithm", "momenta", memory[0] if memory.ndim == 2 else memory, parameters)
        self._check_previous(state, parameters)
        for stage, memory in zip(self.worker + self.server, state.worker + state.server, strict=True):
            parameters = stage.look_ahead(parameters, memory, state.previous, lr)
        check_placed(self.placement, state.placement, parameters)
        if self.placement is not None and state.placement is not None:
            parameters = self.placement.look_ahead(parameters, state.placement, lr)
        return parameters

    @overload
    def send(
        self, gradients: Tensor | Sequence[Tensor], state: State, out: Tensor | None = None
    ) -> tuple[Tensor, State]: ...
    @overload
    def send(
        self, gradients: np.ndarray | Sequence[np.ndarray] | Sequence[Sequence[float]], state: State
    ) -> tuple[np.ndarray, State]: ...
    @kernels.eager
    def send(self, gradients: Any, state: State, out: Tensor | None = None) -> Any:
        """The worker half, row by row: what each worker sends for the gradient it sampled, [h, d] -> [h, d].

        A worker that would send NaN or infinity does send it, for the server to see, and remembers nothing of that
        step: its momenta stay as they were, so that its next vectors are finite again.

        With ``out`` nothing is allocated but where a gradient is not finite: the vectors are written there,
        ``gradients`` is overwritten by what precedes the last stage, and the new state may live in ``out``, which must
        then stay untouched until the next call. Without it what comes back is the caller's own, of the kind that came:
        a tensor, or an array; lists of numbers are an array.

        Raises:
            ValueError: a state of other workers, other coordinates, or another algorithm.
        """
        _check_state(state)
        if isinstance(gradients, (np.ndarray, list, tuple)):
            matrix, restore = _vectors(self, gradients, state)
            vectors, state = self.send(matrix.clone() if out is not None else matrix, state, out)
            return restore(vectors), state
        _check_vectors("gradients", gradients, 2)
        _check_memories(self.worker, "worker", state.worker, gradients)
        self._check_previous(state, gradients)
        check_placed(self.placement, state.placement, gradients, rows=True)
        if out is not None:
            check_like("Algorithm", "out", out, gradients)
        gradients = gradients.detach() if gradients.requires_grad else gradients  # else it may be out itself
        kept = state.worker if out is None or self._may_spoil(gradients) else None
        if kept is not None and out is not None:
            kept = tuple(None if m is None else m.clone() for m in kept)
        vectors, memories = gradients, []
        for place, (stage, memory) in enumerate(zip(self.worker, state.worker, strict=True), 1):
            inside = memory if stage.remembers else gradients  # what is remembered must outlive the gradients
            target = out if out is None or (place == len(self.worker) and self.placement is None) else inside
            vectors, memory = _applied(stage, vectors, memory, previous=state.previous, out=target)
            memories.append(memory)
        placed = state.placement
        if self.placement is not None and placed is not None:
            vectors, placed = _sent(vectors, self.placement, placed, out)
        elif out is not None and vectors is not out:
            vectors = out.copy_(vectors)
        if kept is not None:
            memories = unspoilt(vectors, memories, kept, self.worker)
        return vectors, replace(state, worker=tuple(memories), placement=placed)

    def _may_spoil(self, gradients: Tensor) -> bool:
        """Whether some worker may come to remember NaN or infinity: False is certain. On a device nobody looks."""
        momenta = [stage for stage in self.worker if stage.remembers]
        if not momenta:
            return False
        if (
            kernels.on_device(gradients)
            or len(momenta) > 1
            or any(type(stage) not in (Clip, Momentum) for stage in self.worker)
        ):
            return True
        assert isinstance(momenta[0], Momentum)
        return not bool((kernels.squared_norms(gradients).sqrt_() < momenta[0].overflow(gradients.dtype)).all())

    @overload
    def aggregate(
        self, vectors: Tensor | Sequence[Tensor], state: State, *, weights: Any = None
    ) -> tuple[Tensor, State]: ...
    @overload
    def aggregate(
        self, vectors: np.ndarray | Sequence[np.ndarray] | Sequence[Sequence[float]], state: State,
        *, weights: Any = None,
    ) -> tuple[np.ndarray, State]: ...  # fmt: skip
    @kernels.eager
    def aggregate(self, vectors: Any, state: State, *, weights: Any = None) -> Any:
        """The server half: mixings, the rule, then the server's transforms, [n, d] -> [d].

        The parameters then become ``parameters - lr * update``. ``vectors`` is only read; the update is the caller's
        own, to be written into at will, and of the kind that came.

        Args:
            vectors: [n, d] what workers sent.
            state: that of this step.
            weights: [n] what each vector counts, >= 0, for rules that weigh; see :meth:`Rule.__call__`.

        Raises:
            Refused: more than f vectors are not finite, or such as weigh too much.
            ValueError: too few vectors for f, weights that a stage does not take or with which f is too many, or a
                state of other coordinates or of another algorithm.
        """
        _check_state(state)
        if isinstance(vectors, (np.ndarray, list, tuple)):
            matrix, restore = _vectors(self, vectors, state)
            update, state = self.finish(self.decide(matrix, state, weights=weights), state)
            return restore(update), state
        return self.finish(self.decide(vectors, state, weights=weights), state)

    @kernels.eager
    def decide(
        self, vectors: Tensor | np.ndarray | Sequence[Any], state: State, *, seen: Tensor | None = None,
        weights: Any = None, rows: np.ndarray | None = None, workers: np.ndarray | None = None,
    ) -> Decision:  # fmt: skip
        """The first part of :meth:`aggregate`: F of the mixed vectors, with its grounds. Nothing is remembered.

        ``seen``: the distances that it begins with, where somebody has them: what ``core.stages.look`` answers.
        ``rows``: which vectors mixings and rule are shown, each at most once, and in which order; by default all, as
        they come, but for those of whom a quarantine excludes. What is decided is about all n.
        ``workers``: [n] whose vectors these are, for a quarantine; by default worker i sends vector i.
        """
        if weights is not None and self.placement is not None:
            raise ValueError(f"Algorithm: {self.placement} takes no weights of workers.")
        _check_state(state)
        x: Any = _vectors(self, vectors, state)[0] if isinstance(vectors, (np.ndarray, list, tuple)) else vectors
        _check_vectors("vectors", x, 2)
        _check_memories(self.server, "server", state.server, x[0] if len(x) else None)
        self._check_previous(state, x)
        check_placed(self.placement, state.placement, x)
        self._check_watched(state)
        how: dict[str, Any] = {"previous": state.previous, "draw": Draw(state.seed, state.step)}
        if self.quarantine is not None:
            if weights is not None:
                raise ValueError("Algorithm: a quarantine counts workers, and takes no weights of them.")
            return self._decide_among(x, self.admit(state, len(x), workers), rows, how)
        decision = decide(x, self.pre, self.rule, seen=seen, weights=weights, rows=rows, **how)
        if self.placement is None or state.placement is None:
            return decision
        return replace(decision, placing=self.placement.see(x, state.placement, state.seed))

    def admit(self, state: State, n: int, workers: np.ndarray | None = None) -> Admitted:
        """Who of n workers is shown to mixings and rule in the step of this state, and which these then are: all of
        them, where there is no quarantine.

        ``workers``: [n] their numbers, >= 0 and each one's own; by default 0 to n - 1.

        Raises:
            ValueError: a quarantine that can exclude nobody of so many.
        """
        numbers = np.arange(n) if workers is None else workers
        self._check_watched(state)
        if self.quarantine is None or state.quarantine is None:
            return Admitted(numbers, None, self.pre, self.rule, 0)
        check_rows(self.pre, self.rule, n)
        self.quarantine.check(self.pre, self.rule, n)
        return self.quarantine.admit(state.quarantine, self.pre, self.rule, workers=numbers, step=state.step)

    def _decide_among(self, x: Tensor, admitted: Admitted, rows: np.ndarray | None, how: dict[str, Any]) -> Decision:
        """What those decide that a quarantine admits, in the order of ``rows``, and what it then hears of them."""
        n, rows, shown = len(x), admitted.shown(rows), x
        if rows is not None:
            first = np.array_equal(rows, np.arange(rows.size))
            shown = x[: rows.size] if first else x.index_select(0, kernels.there(rows, x))
        decision = decide(shown, admitted.pre, admitted.rule, **how)
        measured = distances_and_norms(shown, decision.aggregate)
        decision = decision if rows is None else decision.among(rows, n)
        return replace(decision, heard=Heard(admitted.workers, rows, measured, admitted.most))

    @kernels.eager
    def finish(self, decision: Decision, state: State, in_place: bool = False) -> tuple[Tensor, State]:
        """The second part of :meth:`aggregate`: the server's transforms. The new state is that of the next step.

        With ``in_place`` the new momenta take the place of the old ones, and the update may be such a momentum: it must
        then stay untouched.
        """
        _check_state(state)
        update, memories, placed = decision.aggregate, [], state.placement
        _check_memories(self.server, "server", state.server, update)
        check_placed(self.placement, placed, update)
        if self.placement is not None and placed is not None:
            if decision.placing is None:
                raise ValueError(f"Algorithm: {self.placement} needs a decision of Algorithm.decide.")
            update, placed = self.placement.finish(update, placed, decision.placing, in_place)
            update = update if in_place else update.clone()
        for stage, memory in zip(self.server, state.server, strict=True):
            update, memory = _applied(stage, update, memory, previous=None, out=memory if in_place else None)
            memories.append(memory)
        previous = decision.aggregate.clone() if self.remembers_aggregate else None
        watched = state.quarantine
        if self.quarantine is not None and watched is not None and decision.heard is not None:
            watched = self.hear(decision.heard, state)
        return update, State(state.worker, tuple(memories), previous, state.step + 1, state.seed, placed, watched)

    def hear(self, heard: Heard, state: State, measured: np.ndarray | None = None) -> Watched | None:
        """What a quarantine remembers after the step of this state. ``measured``: that of ``heard``, where somebody has
        fetched it from a device."""
        if self.quarantine is None or state.quarantine is None:
            return None
        known = kernels.host(heard.measured) if measured is None else measured
        return self.quarantine.hear(state.quarantine, heard, known, step=state.step)

    def _check_watched(self, state: State) -> None:
        if (self.quarantine is None) != (state.quarantine is None):
            raise ValueError(f"Algorithm: {OTHER}, and quarantine is {self.quarantine}.")

    def _check_previous(self, state: State, x: Tensor) -> None:
        if self.remembers_aggregate:
            check_like("Algorithm", "state.previous, the last aggregate,", state.previous, x, rows=False)
        elif state.previous is not None:
            raise ValueError(f"Algorithm: {OTHER}, since this one remembers no aggregate.")


OTHER = "the state is one of another algorithm"


def _check_stage(place: str, stage: object, kind: type) -> None:
    """Raises ValueError for what is no stage of this kind, and says what would do."""
    if isinstance(stage, kind):
        if isinstance(stage, (Rule, Mixing)) and type(stage).__call__ is not kind.__call__:
            own = "combine, weights or statistic" if isinstance(stage, Rule) else "weights"
            name = type(stage).__name__
            raise ValueError(f"Algorithm: {name} has a __call__ of its own, which no algorithm calls; override {own}.")
        return
    places = {Transform: "worker= or server=", Mixing: "pre=", Rule: "rule="}
    came, advice = shown(stage), ""
    if isinstance(stage, type):
        came, advice = f"the class {stage.__name__}", f"; make one: {stage.__name__}(...)"
    elif isinstance(stage, (Transform, Mixing, Rule)):
        advice = f"; that goes into {next(there for family, there in places.items() if isinstance(stage, family))}"
    what = {Transform: "transforms", Mixing: "mixings", Rule: "a rule"}[kind]
    raise ValueError(f"Algorithm needs {what} in {place}=, got {came}{advice}.")


def _vectors(
    algorithm: Algorithm, x: np.ndarray | Sequence[Any], state: State
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """[n, d] of arrays and lists, and the way back to the kind that came. Numbers alone have no type: they get that of
    what is remembered."""
    matrix, restore = as_matrix(algorithm, x)
    memory = next((m for m in (*state.worker, *state.server, state.previous) if m is not None), None)
    if memory is not None and not isinstance(x, np.ndarray) and isinstance(x[0], (list, tuple)):
        return matrix.to(memory.dtype), lambda y: y.numpy()
    return matrix, restore


def _check_vectors(name: str, x: Tensor, ndim: int) -> None:
    held = isinstance(x, Tensor) and not not_dense(x) and x.ndim == ndim and x.is_floating_point()
    if not held or (name == "vectors" and x.shape[1] < 1):
        wanted = "[h, d]" if name == "gradients" else "[n, d]" if name == "vectors" else "[d]"
        raise ValueError(f"Algorithm needs {name} as a floating-point tensor {wanted}, got {kind_of(x)}.")


def _check_state(state: State) -> None:
    if not isinstance(state, State):
        raise ValueError(f"Algorithm needs a state, which Algorithm.init makes, got {kind_of(state)}.")


def _check_memories(
    stages: tuple[Transform, ...], place: str, memories: tuple[Tensor | None, ...], x: Tensor | None = None
) -> None:
    """Raises ValueError unless there is a memory of x's kind for each stage that remembers, and none else."""
    if len(stages) != len(memories):
        raise ValueError(f"Algorithm: {OTHER}, with {len(memories)} {place} memories for {len(stages)} {place} stages.")
    for stage, memory in zip(stages, memories, strict=True):
        if stage.remembers != (memory is not None):
            raise ValueError(f"Algorithm: {OTHER}, with {kind_of(memory)} as the memory of {stage}.")
        if memory is not None and x is not None:
            _check_size(stage, memory, x)
            check_like("Algorithm", f"the memory of {stage}, which Algorithm.init makes,", memory, x)


def _check_size(stage: Transform, memory: object, x: Tensor) -> None:
    """Raises ValueError where the state was made for another number of workers or parameters than come."""
    if not isinstance(memory, Tensor) or memory.is_nested or memory.ndim != x.ndim or memory.shape == x.shape:
        return
    came, there = (
        f"{len(y):,} vector{'s' * (len(y) != 1)} of length {y.shape[1]:,}" if y.ndim == 2 else f"length {len(y):,}"
        for y in (x, memory)
    )
    made = f"init({x.shape[0]}, {x.shape[1]})" if x.ndim == 2 else f"init(h, {len(x)})"
    raise ValueError(
        f"Algorithm needs a state made for what comes: got {came}, and the memory of {stage} is for {there}; "
        f"{made} makes one (h counts the honest workers, who have gradients, and not the liars)."
    )


def _applied(
    stage: Transform, x: Tensor, memory: Tensor | None, *, previous: Tensor | None, out: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What a stage makes of x.

    Ours take ``out``: without it nothing is overwritten, and what comes back shares no memory. With it nothing is
    allocated: the result goes there, or into the memory where ``out`` is ``x`` itself and there is one, since what is
    remembered must outlive the input; the new memory may be the result. Those of somebody's own know nothing of this,
    and are held to their contract.
    """
    if type(stage) in (Clip, Momentum, SharedMomentum):
        return stage(x, memory, previous, out)  # pyright: ignore[reportCallIssue]
    came = stage(x, memory, previous) if stage.uses_previous else stage(x, memory)  # pyright: ignore[reportCallIssue]
    if not (isinstance(came, tuple) and len(came) == 2):
        raise ValueError(f"{type(stage).__name__} must return (vectors, memory), got {kind_of(came)}.")
    moved, kept = came
    check_like(stage, "to return vectors", moved, x)
    if not stage.remembers and kept is not None:
        raise ValueError(f"{type(stage).__name__} must return None for a memory (remembers is False).")
    if stage.remembers:
        check_like(stage, "to return its memory", kept, x)
        assert kept is not None
        if any(_shared(kept, other) for other in (x, moved, out)):
            kept = kept.clone()
    return (moved.clone() if _shared(moved, x) or _shared(moved, memory) else moved), kept


def _sent(vectors: Tensor, placement: Adaptive, placed: Placed, out: Tensor | None) -> tuple[Tensor, Placed]:
    """What workers send where momentum moves, and what they remember. With ``out`` both are written in place."""
    moved = kernels.blend(1 - placement.dampening, vectors, placed.mu, placed.momenta, out=out)
    kept = unspoilt(moved, [moved], [placed.momenta])[0]
    assert kept is not None
    momenta = kept.clone() if out is None else placed.momenta.copy_(kept)
    if not placed.at_workers:
        moved = vectors.clone() if out is None else out.copy_(vectors)
    return moved, replace(placed, momenta=momenta)


def _shared(a: Tensor, b: Tensor | None) -> bool:
    """Whether two tensors lie in one block of memory."""
    return b is not None and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def unspoilt(
    vectors: Tensor,
    memories: Sequence[Tensor | None],
    before: Sequence[Tensor | None],
    stages: Sequence[Transform] = (),
) -> list[Tensor | None]:
    """The memories of workers, those from before for whoever sends a vector that is not finite.

    Behind several momenta those from before may be so large that they overflow by themselves, step after step: such a
    worker begins anew, at zero.
    """
    if all(memory is None for memory in memories):
        return list(memories)
    finite = finite_rows(vectors)
    if not kernels.on_device(vectors) and finite.all():  # on a device nobody waits to know
        return list(memories)
    rows = finite.unsqueeze(1)
    momenta = [stage for stage in stages if isinstance(stage, Momentum)]
    if len(momenta) > 1:
        bound = torch.finfo(vectors.dtype).max / (2 * math.prod(1 / (1 - stage.beta) for stage in momenta))
        sizes = [old.abs().amax(1, keepdim=True) for old in before if old is not None]
        sound = torch.stack(sizes).amax(0) <= bound
        before = [None if old is None else torch.where(sound, old, 0) for old in before]
    return [
        None if memory is None or old is None else torch.where(rows, memory, old)
        for memory, old in zip(memories, before, strict=True)
    ]


def finite_rows(x: Tensor) -> Tensor:
    """[n] whether a row holds neither NaN nor infinity, where the rows are.

    A finite sum has finite terms, and sums are fast. Where finite terms overflow together, the row is looked at; on a
    device they are added up in double precision, where those of other types do not.
    """
    if kernels.on_device(x):
        return x.isfinite().all(1) if x.dtype == torch.float64 else x.sum(1, dtype=torch.float64).isfinite()
    finite = x.sum(1, dtype=torch.promote_types(x.dtype, torch.float32)).isfinite()
    for row in (~finite).nonzero()[:, 0].tolist():
        finite[row] = x[row].isfinite().all()
    return finite
