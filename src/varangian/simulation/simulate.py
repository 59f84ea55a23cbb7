"""n workers and a parameter server in one process, a step at a time.

All randomness is a function of (seed, purpose, step, worker), so that the state of a run is the step, the parameters,
the algorithm's momenta, the model's buffers and the meter's two vectors, and nothing else. Where not everybody is in
every round, that includes what those remember who are absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core import kernels, randomness
from ..core.accounts import Account, Observed, observe, sampled_columns
from ..core.algorithm import Algorithm, State, unspoilt
from ..core.attacks import (
    Attack,
    ComposedDefence,
    Memory,
    Omniscient,
    Task,
    ThreatModel,
    check_memory,
    own,
)
from ..core.checks import Refused
from ..core.quarantine import Admitted, Watched
from ..core.shares import size_weights
from ..core.stages import Decision, Heard, Pending, deferred_refusals, look, refuse_faulty, trusts_a_place
from ..core.transforms import Clip, Momentum
from .adversary import Adversary
from .captured import Repeated
from .clients import Absent, Bank, Population, Round
from .gradients import Batch, WorkerGradients
from .identity import is_ours
from .metrics import PLACEMENT, QUARANTINE, ROUND, WEIGHT, Measures, Meter, Readings
from .sampling import Profile, Sampler

Order = Literal["shuffled", "honest-first"]
Moments = tuple[Tensor, Tensor]  # mean and standard deviation, [d] each
SMALL = ("chain", "vmap")  # how gradients are computed of models whose steps a card does faster than they are asked for


@dataclass(frozen=True, eq=False, kw_only=True)
class Snapshot:
    """The state of a run between two steps: all that the steps to come depend on.

    Attributes:
        step: how many are done.
        points: training points consumed so far.
        parameters: [d].
        worker, server, aggregate: the algorithm's :class:`varangian.State`, ``aggregate`` being its ``previous``. Of
            momentum that moves the momenta follow in ``worker``, and all else in ``server``.
        attacked: [d], the last aggregate where the attack looks at it.
        memory: what the attack remembers.
        last: [h, d], what honest workers sent in the last step, where the adversary knows that.
        clients: what those remember of whom only some are in a round (see :meth:`.clients.Bank.state`).
        watched: what a quarantine remembers: the three tensors of :class:`varangian.Watched`.
        sampled, decayed: [d] each, the meter's memory; None where nothing is measured, or nothing was yet.
        buffers: of the model, by name.
    """

    step: int
    points: int
    parameters: Tensor
    worker: tuple[Tensor | None, ...]
    server: tuple[Tensor | None, ...]
    aggregate: Tensor | None
    attacked: Tensor | None
    sampled: Tensor | None
    decayed: Tensor | None
    buffers: dict[str, Tensor]
    memory: Memory = None
    last: Tensor | None = None
    clients: tuple[Tensor, ...] | None = None
    watched: tuple[Tensor, ...] | None = None


class Simulation:
    """n workers, the last of them Byzantine, and a server that runs an algorithm.

    Args:
        gradients: the model.
        batches: what the h honest workers sample at a step; with a population it is called with the numbers of the
            clients too.
        algorithm: both halves.
        workers: n.
        real_byzantine: how many of them attack; 0 without an attack.
        task: what is to be learned, for attacks on data; ``batches`` then samples for all n workers.
        attack: what these send.
        knowledge: what they know of what honest workers send; everything by default.
        learning_rate: a function of the step.
        momentum: mu of the composite curvature, for the measures only.
        l2: factor c; adds the gradient of c/2 ||theta||^2 ("described") or of c^2 ||theta|| ("published").
        profile: which l2.
        seed: of what attack, rule and mixings draw.
        measure: whether to fill the measures that cost time. The training does not depend on it.
        population: of whom ``workers`` take part in a step; ``real_byzantine`` is then 0 here, and h another number in
            each. Everybody learns, those who attack in other rounds too.
        absent: what becomes of the momenta of clients that are not in a round.
        local_steps: E, how many steps of its own a worker takes from the parameters on, with the same learning rate,
            before it sends the sum of its E gradients; ``batches`` is asked E times a step, and ``batches(E t + e)`` is
            of local step e in step t. Clipping and l2 are of each gradient, momentum and the rest of the sum.
        sizes: by how many examples those count that learn: [h], or of each client [N]. Attackers say that they hold as
            many as the greatest of the honest workers in the step. Without, all count the same.
        cap: the most that a worker may count, in equal shares.
        order: in which order mixings and rule are shown the vectors: see :meth:`order_at`.

    The matrix of all n vectors and that of the sampled gradients are allocated once. Momenta at the workers live in the
    former, except those of workers of a data attack: what is crafted is written there, and they keep their own.

    On a device nothing waits for a step: :meth:`advance` begins one, and answers the rows of those before. What makes a
    row, and whether the server has refused or the parameters diverged, comes over in one vector, which is read when the
    gradients of the next step have been begun and before anything is changed for them. A step that proves to have been
    refused is taken back, so that what stands here in the end is what stands here on the CPU.
    """

    def __init__(
        self,
        gradients: WorkerGradients,
        batches: Callable[[int], Batch],
        algorithm: Algorithm,
        workers: int,
        *,
        real_byzantine: int = 0,
        attack: Attack | None = None,
        knowledge: ThreatModel = Omniscient(),  # noqa: B008  a frozen value
        learning_rate: Callable[[int], float] = lambda step: 0.1,
        momentum: float = 0.0,
        l2: float = 0.0,
        profile: Profile = "described",
        seed: int = 0,
        measure: bool = True,
        task: Task = Task(),  # noqa: B008  a frozen value
        population: Population | None = None,
        absent: Absent = "kept",
        local_steps: int = 1,
        sizes: np.ndarray | None = None,
        cap: float | None = None,
        order: Order = "shuffled",
    ) -> None:
        self.population, self.local_steps, self.local_clip = population, local_steps, None
        self.sizes, self.cap = sizes, cap
        if population is not None:
            _check_population(population, workers, real_byzantine, algorithm)
            if population.byzantine and attack is None:
                raise ValueError(f"Simulation: {population.byzantine} clients attack, and no attack is given.")
            if attack is not None and attack.steady:
                raise ValueError(f"Simulation: {attack} goes by the same workers in every step; here they are others.")
        if local_steps > 1:
            algorithm, self.local_clip = _local_half(algorithm)
        self.gradients, self.batches, self.algorithm = gradients, batches, algorithm
        self.workers, self.real_byzantine, self.h = workers, real_byzantine, workers - real_byzantine
        self.learning_rate, self.l2, self.profile, self.seed = learning_rate, l2, profile, seed
        self.adversary = Adversary(
            attack, knowledge, workers=workers, d=gradients.d, task=task,
            attackers=real_byzantine if population is None else None,
        )  # fmt: skip
        if population is not None and attack is not None:
            self.adversary.check_rounds(population)
        # Workers that compute gradients: the honest ones, and those of attackers that learn.
        self.active = workers if self.adversary.learns else self.h
        self.parameters = gradients.parameters()
        options = {"dtype": self.parameters.dtype, "device": self.parameters.device}
        self.state = algorithm.init(self.active, gradients.d, **options, seed=seed)
        if self.state.placement is not None:
            self.state = replace(self.state, placement=self.state.placement.of(workers))
        self.meter = Meter(self.parameters, momentum) if measure else None
        self.steps_done = 0
        self.points = 0
        # What the server refused: an attack that tries the defence may be refused too, which ends no run.
        self.refused: Refused | None = None
        self.native = self.parameters.device.type == "cpu"
        self.vectors = torch.zeros(workers, gradients.d, **options)
        # What workers send: rows of that matrix, unless what is crafted is to stand in some of these rows.
        self.apart = self.active > self.h if population is None else self.adversary.learns
        self.sent = torch.zeros(workers, gradients.d, **options) if self.apart else self.vectors[: self.h]
        if algorithm.worker and algorithm.worker[-1].remembers:
            # What the last stage sends is what it remembers: it lives where that is sent from, from the start.
            self.state = replace(self.state, worker=(*self.state.worker[:-1], self.sent))
        # Clipped gradients are still what was sampled; whatever else a stage makes of them is not.
        self.separate = algorithm.placement is not None or any(type(stage) is not Clip for stage in algorithm.worker)
        self.sampled = torch.empty_like(self.sent) if self.separate else self.sent
        # The stages that experiments have, at most one clipping and then at most one momentum, go in one go.
        self.clip = next((stage for stage in algorithm.worker if type(stage) is Clip), None)
        self.momentum = next((stage for stage in algorithm.worker if type(stage) is Momentum), None)
        in_one_go = algorithm.worker == tuple(stage for stage in (self.clip, self.momentum) if stage is not None)
        self.in_one_go = in_one_go and algorithm.placement is None and (not self.apart or not self.native)
        # On a device momenta of the step before are kept until it is known that all vectors sent were finite.
        self._spare: Tensor | None = None
        if self.in_one_go and self.momentum is not None and not self.native:
            self._spare = torch.zeros_like(self.sent if self.apart else self.vectors)
        # Of a small model on a card what is asked for in the same way each time is asked for in one go: without attacks
        # that look back, for whom memory lies elsewhere each time.
        plain = (
            self.adversary.steady
            and population is None
            and local_steps == 1
            and sizes is None
            and self.in_one_go
            and not algorithm.remembers_aggregate
            and algorithm.quarantine is None
            and all(is_ours(s) for s in algorithm.server)
        )
        self.repeated = Repeated(self.parameters.device) if plain and self.parameters.is_cuda else None
        self.ours = is_ours(algorithm.rule) and all(is_ours(stage) for stage in algorithm.pre)
        self.shuffles = order == "shuffled" and not self.ours and not trusts_a_place(algorithm.rule)
        # Whoever is in a round takes these rows: what it remembers, sends and samples there.
        self._rows = self.sampled if self.separate else None, self.state.worker
        self.bank: Bank | None = None
        if population is not None:
            momenta = [m for m in self.state.worker if m is not None]
            decay = max((s.beta for s in algorithm.worker if isinstance(s, Momentum)), default=0.0)
            self.bank = Bank(
                gradients.d, workers, absent, decay=decay, stages=len(momenta), dtype=self.parameters.dtype
            )
        self.weights = self.weights_at(0) if population is None else None  # of the vectors of the step
        self._round: Round | None = None
        self._local = torch.empty_like(self.sampled) if local_steps > 1 else None  # gradients of local steps,
        self._points = torch.empty_like(self.sampled) if local_steps > 1 else None  # and where they are taken
        self._drawn: list[Tensor] = []  # where a card finds what is sampled
        self._answers: list[Tensor] = []  # and what was decided
        self._begun: _Begun | None = None
        self.admitted: Admitted  # whom the server looked at in the last step
        self._known: list[Measures] = []  # rows that nobody has been told yet
        self._told: list[Account] = []  # and what their steps told of each vector
        self.accounts: list[Account] = []  # the same of the rows that were answered last, where they are measured
        self._starts: np.ndarray | Tensor | None = None  # which columns this step looks at
        self._former: list[Tensor] = []  # where a device keeps what a step writes over and may have to take back
        self._finite: bool | None = None  # whether the parameters are, as far as a device has said it

    def weights_at(self, step: int) -> np.ndarray | None:
        """[n] what each vector counts at a step, n together; None where all count the same."""
        if self.sizes is None:
            return None
        people = self.population
        honest = self.sizes[: self.h] if people is None else self.sizes[people.round(self.seed, step).honest]
        claimed = np.full(self.workers - len(honest), honest.max())
        return size_weights(np.concatenate([honest, claimed]), self.cap)

    def order_at(self, step: int) -> np.ndarray | None:
        """[n] in which order mixings and rule are shown the vectors of a step, by their index; None as they stand, the
        honest ones first.

        Another permutation in each step, so that no rule lives on where attackers stand: a function of (seed, step).
        Where all stages are this package's own they do not depend on the order, and nothing is moved; a rule that
        trusts a place is shown each vector in its place.
        """
        return randomness.generator(self.seed, "order", step).permutation(self.workers) if self.shuffles else None

    def check_weights(self, steps: int) -> None:
        """Raises ValueError if in one of so many steps the f heaviest vectors weigh more than the rule can tolerate."""
        if self.sizes is None:
            return
        for step in range(steps if self.population is not None else min(1, steps)):
            fault = self._too_heavy(self.weights_at(step))
            if fault is not None:
                when = "" if self.population is None else f"in step {step} "
                raise ValueError(f"weighting: {when}{fault}")

    def _too_heavy(self, weights: np.ndarray | None) -> str | None:
        """Why the rule cannot tolerate such weights; None where it can."""
        try:
            if weights is not None:
                self.algorithm.rule.weight_breakdown(weights)
        except ValueError as error:
            return str(error)
        return None

    def step(self) -> Measures:
        """One step of every worker and of the server; the measures are those of before the update. Waits for it.

        Raises:
            Refused: by the server, if the error is ``refused`` too; else by whoever tried its rule out, which is a
                mistake there.
        """
        self.settle()
        rows, told = self.advance(), self.accounts
        rows += self.settle()
        self.accounts = [*told, *self.accounts][-1:]
        return rows[-1]

    def advance(self) -> list[Measures]:
        """Begins the next step, and answers the rows that are known by now and were not answered yet: on the CPU that
        of this step; on a device that of the step before. Where that proves to have diverged, none is begun after it.

        Raises:
            Refused: as for :meth:`step`, on a device for the step before too: ``steps_done`` says which one.
        """
        if self.population is not None:
            return self._advance_round()
        step, failure, begun = self.steps_done, None, None
        try:
            begun = self._begin(step)
        except Exception as error:  # of a model, say, whose parameters diverged in the step before
            if self._begun is None:
                raise
            failure = error
        if self._begun is not None:
            restored = self._look()
            if self.diverged:
                return self._answer()
            if failure is not None:
                raise failure
            if restored:
                begun = self._begin(step)
        assert begun is not None
        self.gradients.adopt_buffers()
        self._finish(*begun)
        return self._answer()

    def _advance_round(self) -> list[Measures]:
        """The same where others take part in each step; waits for it on a device too."""
        assert self.population is not None
        assert self.bank is not None
        step = self.steps_done
        self._seat(self.population.round(self.seed, step), step)
        begun = self._begin(step)
        self.gradients.adopt_buffers()
        try:
            self._finish(*begun)
            if self._begun is not None:
                self._look()
        finally:
            if self.steps_done > step or self.refused is not None:
                momenta = [m for m in self.state.worker if m is not None]
                following = (
                    None
                    if self.refused is not None
                    else np.sort(self._learning(self.population.round(self.seed, step + 1)))
                )
                self.bank.keep(self._learners, step, momenta, following)
        return self._answer()

    @property
    def _learners(self) -> np.ndarray:
        """The clients that compute gradients in this round, in the order of their rows."""
        assert self._round is not None
        return self._learning(self._round)

    def _learning(self, round: Round) -> np.ndarray:
        return round.clients if self.adversary.learns else round.honest

    def _seat(self, round: Round, step: int) -> None:
        """Those who take part take their rows, with what they remember."""
        assert self.bank is not None
        self._round, self.h = round, len(round.honest)
        self.weights = self.weights_at(step)
        self.real_byzantine = self.workers - self.h if self.adversary.attack is not None else 0
        self.active = self.workers if self.adversary.learns else self.h
        sampled, memories = self._rows
        last = len(memories) - 1
        if not self.apart:
            self.sent = self.vectors[: self.active]
        self.sampled = self.sent if sampled is None else sampled[: self.active]
        worker = [None if m is None else self.sent if k == last else m[: self.active] for k, m in enumerate(memories)]
        self.bank.take(self._learners, step, [m for m in worker if m is not None])
        self.state = replace(self.state, worker=tuple(worker))

    def settle(self) -> list[Measures]:
        """Waits for the step that was begun last, and answers the rows that were not answered yet.

        Raises:
            Refused: as for :meth:`advance`; rows of steps before it are then answered by the next call.
        """
        if self._begun is not None:
            self._look()
        return self._answer()

    def _answer(self) -> list[Measures]:
        known, self._known = self._known, []
        self.accounts, self._told = self._told, []
        return known

    def _begin(self, step: int) -> tuple[float, int, Tensor, Tensor]:
        """(learning rate, how many training points, point, losses) of a step whose gradients are begun; changes nothing
        that lasts."""
        lr = self.learning_rate(step)
        again = self._begin_again(step, lr)
        if again is not None:
            return again
        point = self.algorithm.point(self.parameters, self.state, lr)
        if self._local is not None:
            return lr, *self._begin_locally(step, lr, point)
        batch = self._batch(step)
        return lr, batch.points(self.h), point, self.gradients.begin(point, batch, self.sampled, step)

    def _begin_locally(self, step: int, lr: float, point: Tensor) -> tuple[int, Tensor, Tensor]:
        """The sum of the gradients of each worker's local steps; the losses are those of the first.

        theta_0 = theta;  theta_e+1 = theta_e - lr clip(g_e + l2);  sampled: sum of the clipped ones
        """
        assert self._local is not None
        assert self._points is not None
        found, total, clip = self._local[: self.active], self.sampled, self.local_clip
        here, points, losses = point, 0, None
        for e in range(self.local_steps):
            draw = step * self.local_steps + e
            batch = self._batch(draw)
            new = self.gradients.begin(here, batch, found, draw)
            losses, points = new if losses is None else losses, points + batch.points(self.h)
            factor, direction = self._regularizer(here)
            kernels.send_rows(
                found, factor, direction,
                scale=None if clip is None else clip.scales,
                keep=1.0, beta=1.0 if e else 0.0, memory=total if e else None, out=total, moments=False,
            )  # fmt: skip
            here = kernels.moved(point, total, -lr, out=self._points[: self.active])
        assert losses is not None
        return points, point, losses

    def _batch(self, draw: int) -> Batch:
        """What the workers that learn sample; those of a data attack from labels of their own."""
        batches: Callable[..., Batch] = self.batches
        batch = batches(draw) if self._round is None else batches(draw, self._learners)
        if self.adversary.poisons and self.active > self.h:
            return self.adversary.poison(batch, self.h, self.seed, draw)
        return batch

    def _begin_again(self, step: int, lr: float) -> tuple[float, int, Tensor, Tensor] | None:
        """The same where it can be asked for in one go."""
        batches = self.batches
        if self.repeated is None or self.gradients.method not in SMALL or not isinstance(batches, Sampler):
            return None
        index, flip, weights = batches.drawn(step)
        if weights is not None:
            return None
        given = [x for x in (index, flip) if x is not None]
        if not self._drawn:
            self._drawn = [x.clone() for x in given]
        for place, x in zip(self._drawn, given, strict=True):
            place.copy_(x)
        drawn = self._drawn

        def gradients() -> tuple[Batch, Tensor, Tensor]:
            batch = batches.batch(drawn[0], None if flip is None else drawn[1], None)
            point = self.algorithm.point(self.parameters, self.state, lr)
            return batch, point, self.gradients.begin(point, batch, self.sampled, step)

        places = [self.parameters, self.sampled, *self.state.worker, *self.state.server]
        batch, point, losses = self.repeated("the gradients", gradients, numbers=(lr,), places=places)
        return lr, batch.points(self.h), point, losses

    def _finish(self, lr: float, points: int, point: Tensor, losses: Tensor) -> None:
        """All of a step but its gradients."""
        if self._spare is not None:
            self._exchange()
        step, again = self.steps_done, self.repeated
        self._starts = self._sampled(step)
        if again is not None and self.gradients.method not in SMALL:
            again = None
        before = None if self.momentum is None else self.state.worker[-1]
        memories = [*self.state.worker, *self.state.server, None if self.meter is None else self.meter.previous]
        places, rest = [self.parameters, self.vectors, self.sent, point, losses, *memories], "all that follows"
        if again is not None and self.ours and rest not in again.faults:
            done = again(rest, lambda: self._all(lr, point, losses), numbers=(lr,), places=places)
        elif again is not None:
            sent = again("what is sent", lambda: self._sent(point, looks=True), places=places)
            decision, pending = self._decided(sent)
            observed = self._observed(decision)
            answers = [decision.aggregate, *(p.faulty for p in pending), *observed.tensors]
            if [x.shape for x in self._answers] != [x.shape for x in answers]:
                self._answers = [x.clone() for x in answers]
            aggregate, *rest = (place.copy_(x) for place, x in zip(self._answers, answers, strict=True))
            decision = replace(decision, aggregate=aggregate)
            pending = [replace(p, faulty=x) for p, x in zip(pending, rest, strict=False)]
            observed = replace(observed, tensors=rest[len(pending) :])
            made = [*sent.norms, *(sent.sampled or ()), *(sent.honest or ()), sent.crafted, *self._answers]
            done = again(
                "the update",
                lambda: self._updated(lr, losses, sent, decision, pending, observed),
                numbers=(lr,),
                places=[*places, *made],
            )
            done = replace(done, decision=decision, observed=observed)
        else:
            done = self._all(lr, point, losses)
        h, f = self.h, self.real_byzantine
        take_back = self._undo(replace(done.sent.state, step=self.state.step)) if done.pending else None
        share = done.decision.weight_of(slice(h, self.workers)) if f and done.readings is not None else None
        base = Measures(step, self.points, lr, nan, byzantine_share=share, **_placed(done), **self._counted(done))
        self.state = replace(done.state, step=self.state.step + 1)
        self.adversary.learned(done.decision.aggregate, self.vectors[:h], done.sent.memory)
        self.points += points
        self.steps_done += 1
        if self.native:
            numbers = kernels.host(*done.tensors)
            self._known.append(_row(base, done.readings, numbers if len(done.tensors) > 1 else [numbers]))
            if self.meter is not None:
                self._told.append(done.observed.told([kernels.host(x) for x in done.observed.tensors]))
            return
        assert done.packed is not None
        norms, read = done.sent.norms, done.packed.later()
        spoilt = None if before is None or not norms else (self.sent, before)
        heard = None if done.decision.heard is None else (done.decision.heard, done.sent.state)
        self._begun = _Begun(
            read,
            base,
            done.readings,
            done.observed,
            len(done.tensors),
            len(norms),
            done.pending,
            take_back,
            spoilt,
            heard,
        )

    def _all(self, lr: float, point: Tensor, losses: Tensor) -> _Done:
        sent = self._sent(point)
        decision, pending = self._decided(sent)
        return self._updated(lr, losses, sent, decision, pending, self._observed(decision))

    def _sampled(self, step: int) -> np.ndarray | Tensor | None:
        """Which columns a step looks at, to tell of vectors; on a device in the same place each time."""
        found = None if self.meter is None else sampled_columns(*self.vectors.shape, seed=self.seed, step=step)
        if found is None or self.native:
            return found
        starts = kernels.there(found, self.vectors)
        return self._starts.copy_(starts) if isinstance(self._starts, Tensor) else starts

    def _observed(self, decision: Decision) -> Observed:
        """What the step tells of each vector, where it is measured."""
        if self.meter is None:
            return Observed([])
        there, rows = self.admitted, self.admitted.shown(self.order_at(self.steps_done))
        return observe(
            self.vectors, decision, there.pre, there.rule, starts=self._starts, weights=self.weights, rows=rows
        )

    def _sent(self, point: Tensor, looks: bool = False) -> _Sent:
        """What workers send and the attack crafts, in the matrix of all vectors; where that is asked for, the distances
        between them that the server begins with."""
        step, h, f = self.steps_done, self.h, self.real_byzantine
        state, norms, sampled_moments, honest_moments = self._send(point)
        if self.apart:
            self.vectors.copy_(self.sent)
        draw = randomness.Draw(self.seed, step).fork()
        self.admitted = there = self.algorithm.admit(state, self.workers, self._people)
        order = self.order_at(step)
        # Those of all vectors that are admitted, of which it may know fewer.
        rows = there.shown(order) if self.adversary.knowledge is None else order
        defence = ComposedDefence(there.pre, there.rule, state.previous, draw, self.weights, rows)
        seen = self.adversary.knows(
            self.vectors, h, defence, draw, lazily=self.repeated is not None, moments=honest_moments
        )
        crafted, memory = self.adversary.craft(seen, self.vectors, apart=self.apart, seed=self.seed)
        if crafted is not None:
            byzantine, rows = self.vectors[h:], crafted.expand(f, -1)
            if self.native:
                parts = kernels.threads()
                kernels.in_threads(lambda i: byzantine[i::parts].copy_(rows[i::parts]), parts, byzantine.numel())
            else:
                byzantine.copy_(rows)
        if self.meter is not None:
            if sampled_moments is None:
                sampled_moments = kernels.mean_and_std(self.sampled[:h]) if self.separate else seen.moments
            honest_moments = seen.moments
        squared = look(self.vectors, there.pre, there.rule) if looks and rows is None else None
        return _Sent(state, norms, sampled_moments, honest_moments, crafted, squared, memory)

    def _decided(self, sent: _Sent) -> tuple[Decision, list[Pending]]:
        """What the server makes of the vectors, and what it may prove to have refused."""
        state = sent.state
        held = [self.vectors] if state.previous is None else [self.vectors, state.previous]
        versions = [x._version for x in held]
        try:
            fault = self._too_heavy(self.weights)
            if fault is not None:
                raise Refused(fault)
            with deferred_refusals() as pending:
                decision = self.algorithm.decide(
                    self.vectors,
                    state,
                    seen=sent.squared,
                    weights=self.weights,
                    workers=self._people,
                    rows=self.order_at(self.steps_done),
                )
        except Refused as error:
            self.refused = error
            if self._spare is not None:  # what workers remember is of this step, as where it is written in place
                self.state = replace(self.state, worker=state.worker)
            raise
        if [x._version for x in held] != versions:  # what workers remember lives there
            rule = self.algorithm.rule
            raise ValueError(f"{rule} wrote into the vectors that it was shown; it must clone what it changes.")
        return decision, pending

    def _updated(
        self, lr: float, losses: Tensor, sent: _Sent, decision: Decision, pending: list[Pending], observed: Observed
    ) -> _Done:
        """The server's transforms, what is measured, and the new parameters."""
        h = self.h
        if pending:
            self._keep()
        # What a quarantine hears is fetched from a device with all else.
        decided = decision if self.native else replace(decision, heard=None)
        update, state = self.algorithm.finish(decided, sent.state, in_place=True)
        tensors, readings = [losses[:h].mean()], None
        if self.meter is not None:
            assert sent.sampled is not None
            assert sent.honest is not None
            readings = self.meter.read(
                parameters=self.parameters, sampled=sent.sampled, honest=sent.honest, attack=sent.crafted,
                aggregate=decision.aggregate, h=h,
            )  # fmt: skip
            tensors += readings.tensors.values()
        kernels.moved(self.parameters, update, -lr, out=self.parameters)
        packed = None
        if not self.native:
            squared = kernels.squared_norms(self.parameters)
            heard = [] if decision.heard is None else [decision.heard.measured]
            faulty = [p.faulty for p in pending]
            packed = kernels.Packed(squared, *tensors, *observed.tensors, *sent.norms, *faulty, *heard)
        return _Done(sent, decision, pending, state, tensors, readings, packed, observed)

    def _overwritten(self) -> list[Tensor]:
        """What the second part of a step writes over."""
        meter = self.meter
        measured = [] if meter is None else [meter.decayed, *([] if meter.previous is None else [meter.previous])]
        return [self.parameters, *(m for m in self.state.server if m is not None), *measured]

    def _keep(self) -> None:
        """Keeps what a step writes over that may have to be taken back."""
        written = self._overwritten()
        if len(self._former) != len(written):
            self._former = [torch.empty_like(x) for x in written]
        torch._foreach_copy_(self._former, written)  # pyright: ignore[reportPrivateImportUsage]

    def _undo(self, state: State) -> Callable[[], None]:
        """What undoes the rest of a step, in which the server proves to have refused; but for what workers remember,
        which is of that step on the CPU too."""
        meter, former = self.meter, self._former
        step, points, forget = self.steps_done, self.points, self.adversary.restorer()
        every = self._overwritten()
        written, first = every[: len(former)], len(every) > len(former)  # before the first step nothing was sampled

        def undo() -> None:
            torch._foreach_copy_(written, former)  # pyright: ignore[reportPrivateImportUsage]
            self.state, self.steps_done, self.points = state, step, points
            forget()
            if meter is not None and first:
                meter.previous = None

        return undo

    def _look(self) -> bool:
        """Reads what the step that was begun last came to. Answers whether some worker's momentum had to be restored,
        from which gradients may have been begun."""
        begun, self._begun = self._begun, None
        assert begun is not None
        squared, *numbers = begun.read()
        rows, told = numbers[: begun.tensors], len(begun.observed.tensors)
        numbers = numbers[begun.tensors :]
        try:
            faulty = numbers[told + begun.norms :][: len(begun.pending)]
            for p, count in zip(begun.pending, faulty, strict=True):
                refuse_faulty(p.stage, p.f, int(count))
        except Refused as error:
            assert begun.take_back is not None
            begun.take_back()
            self.refused = error
            raise
        self._known.append(_row(begun.base, begun.readings, rows))
        if self.meter is not None:
            self._told.append(begun.observed.told(numbers[:told]))
        self._finite = bool(np.isfinite(squared))
        if begun.heard is not None:
            watched = self.algorithm.hear(*begun.heard, measured=numbers[-1])
            self.state = replace(self.state, quarantine=watched)
        if begun.spoilt is None or self.momentum is None:
            return False
        bound = self.momentum.overflow(self.parameters.dtype)
        if all((norm < bound).all() for norm in numbers[told : told + begun.norms]):
            return False
        sent, before = begun.spoilt
        memory = unspoilt(sent, [sent], [before])[0]
        self.state = replace(self.state, worker=(*self.state.worker[:-1], memory))
        return memory is not sent

    def snapshot(self) -> Snapshot:
        """The state, to go on from elsewhere. Its tensors are the living ones: the next step changes them.

        What :meth:`advance` began must be settled.
        """
        assert self._begun is None
        meter, state, moving = self.meter, self.state, self._moving()
        return Snapshot(
            step=self.steps_done,
            points=self.points,
            parameters=self.parameters,
            worker=(*self._remembered, *moving[:1]),
            server=(*state.server, *moving[1:]),
            aggregate=state.previous,
            attacked=self.adversary.previous,
            sampled=None if meter is None else meter.previous,
            decayed=None if meter is None else meter.decayed,
            buffers=self.gradients.buffers(),
            memory=self.adversary.memory,
            last=self.adversary.last,
            clients=None if self.bank is None else self.bank.state(),
            watched=None if state.quarantine is None else tuple(vars(state.quarantine).values()),
        )

    def _watched(self, saved: tuple[Tensor, ...] | None) -> Watched | None:
        """What a quarantine remembers, of a snapshot; ValueError where it is none of this one's."""
        quarantine = self.algorithm.quarantine
        if (quarantine is None) != (saved is None):
            raise ValueError(f"watched: what {quarantine} remembers is needed, got {'some' if saved else 'none'}.")
        if quarantine is None or saved is None:
            return None
        watched = Watched(*(x.cpu().clone() for x in saved))
        watched.check(quarantine.window, self.workers if self.population is None else self.population.clients)
        return watched

    @property
    def _people(self) -> np.ndarray | None:
        """[n] the numbers of those whose vectors these are, where others take part in each step."""
        return None if self._round is None else self._round.clients

    @property
    def _remembered(self) -> tuple[Tensor | None, ...]:
        """What workers remember, for which clients have another place."""
        return self.state.worker if self.bank is None else ()

    def _moving(self) -> tuple[Tensor, ...]:
        """What momentum that moves remembers."""
        placed = self.state.placement
        return (
            () if placed is None else (placed.momenta, placed.update, placed.sketches, placed.products, placed.numbers)
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot of the same experiment; the snapshot is copied.

        Raises:
            ValueError: it is of something else; nothing has changed then.
        """
        begun = snapshot.step > 0
        adversary = self.adversary
        attacked = self.parameters if begun and adversary.uses_previous else None
        sampled = self.parameters if begun and self.meter is not None else None
        pairs: list[tuple[str, Tensor | None, Tensor | None]] = [
            ("parameters", self.parameters, snapshot.parameters),
            ("aggregate", self.state.previous, snapshot.aggregate),
            ("decayed", None if self.meter is None else self.meter.decayed, snapshot.decayed),
        ]
        former = self.h
        if begun and adversary.looks_back and self.population is not None:
            former = len(self.population.round(self.seed, snapshot.step - 1).honest)
        last = self.vectors[:former] if begun and adversary.looks_back else None
        made = [
            ("attacked", attacked, snapshot.attacked),
            ("sampled", sampled, snapshot.sampled),
            ("last", last, snapshot.last),
        ]
        moving = self._moving()
        for name, mine, theirs in (("worker", (*self._remembered, *moving[:1]), snapshot.worker),
                                   ("server", (*self.state.server, *moving[1:]), snapshot.server)):  # fmt: skip
            if len(mine) != len(theirs):
                raise ValueError(f"{name}: {len(mine)} momenta are needed, got {len(theirs)}.")
            pairs += [(name, a, b) for a, b in zip(mine, theirs, strict=True)]
        buffers = self.gradients.buffers()
        if buffers.keys() != snapshot.buffers.keys():
            raise ValueError(f"buffers: {sorted(buffers)} are needed, got {sorted(snapshot.buffers)}.")
        pairs += [(name, buffer, snapshot.buffers[name]) for name, buffer in buffers.items()]
        for name, mine, theirs in pairs + made:
            if _kind(mine) != _kind(theirs):
                raise ValueError(f"{name}: {_kind(mine)} is needed, got {_kind(theirs)}.")
        if snapshot.memory is not None and not (begun and adversary.remembers):
            raise ValueError("memory: nothing is needed, got what an attack remembers.")
        device = self.parameters.device
        check_memory(adversary.attack, snapshot.memory, None)
        memory = own(snapshot.memory, device)
        if self.state.placement is not None:
            self.state.placement.check(snapshot.server[-1])  # type: ignore[arg-type]
        if (self.bank is None) != (snapshot.clients is None):
            wanted, came = ("nothing is", "some") if self.bank is None else ("those of each are", "none")
            raise ValueError(f"clients: {wanted} needed, got momenta of {came}.")
        watched = self._watched(snapshot.watched)
        if self.bank is not None and snapshot.clients is not None and self.population is not None:
            self.bank.restore(snapshot.clients, self.population.clients, snapshot.step)
        for _, mine, theirs in pairs:
            if mine is not None and theirs is not None:
                mine.copy_(theirs)  # in place: momenta may live in the matrix of all vectors
        adversary.memory = memory
        adversary.last, adversary.older = None if snapshot.last is None else snapshot.last.clone().to(device), None
        adversary.previous = None if snapshot.attacked is None else snapshot.attacked.clone().to(device)
        if self.meter is not None:
            self.meter.previous = None if snapshot.sampled is None else snapshot.sampled.clone().to(device)
        self.gradients.adopt(self.parameters, buffers)
        self.state = replace(self.state, step=snapshot.step, quarantine=watched)
        self.steps_done, self.points = snapshot.step, snapshot.points
        self._begun, self._known, self._told, self._finite = None, [], [], None

    def _send(self, point: Tensor) -> tuple[State, list[Tensor], Moments | None, Moments | None]:
        """l2 and the worker half, into ``sent``: the new state; on a device the norms that say whether some worker may
        have sent what is not finite; and where they came along with it the moments of what honest workers sampled and
        of what they send.

        The stages that experiments have in one go; others, those that somebody derived from them, and other kinds of
        tensors, one by one. Both give the same bits.
        """
        stages, state = self.algorithm.worker, self.state
        factor, direction = self._regularizer(point) if self._local is None else (0.0, point)
        if not self.in_one_go:
            if factor:
                kernels.blend(1.0, self.sampled, factor, direction, out=self.sampled)
            return self.algorithm.send(self.sampled, state, out=self.sent)[1], [], None, None
        clip, momentum = self.clip, self.momentum
        memory = None if momentum is None else state.worker[-1]
        kept: list[Tensor | None] = []
        norms: list[Tensor] = []

        def scales(norm: Tensor) -> Tensor:
            if memory is not None and momentum is not None:
                if not self.native:
                    norms.append(norm)
                elif not (norm < momentum.overflow(memory.dtype)).all():
                    kept.append(memory.clone())  # some worker may send NaN, and is not to remember it
            return torch.ones_like(norm) if clip is None else clip.scales(norm)

        out, found = self.sent, []
        for rows in (slice(0, self.h), slice(self.h, self.active)):
            if rows.start < rows.stop:
                sampled, sent = kernels.send_rows(
                    self.sampled[rows], factor, direction if direction.ndim == 1 else direction[rows],
                    scale=None if stages == () else scales,
                    keep=1.0 if momentum is None else 1 - momentum.dampening,
                    beta=0.0 if momentum is None else momentum.beta,
                    memory=None if memory is None else memory[rows], out=out[rows],
                    moments=not rows.start and (self.meter is not None or self.adversary.attack is not None),
                )  # fmt: skip
                found.append((sampled, sent))
        remembered = unspoilt(out, [out], kept)[0] if kept else out
        memories = tuple(remembered if stage is momentum else None for stage in stages)
        return replace(state, worker=memories), norms, *found[0]

    def _counted(self, done: _Done) -> dict[str, float]:
        """The measures of rounds in which not everybody is, of workers that count differently, and of a quarantine."""
        found: dict[str, float] = {}
        if self.bank is not None:
            found |= zip(ROUND, (float(self.workers - self.h), float(len(self.bank.rows))), strict=True)
        if self.weights is not None:
            found |= zip(WEIGHT, (float(self.weights[self.h :].sum() / self.weights.sum()),), strict=True)
        heard = done.decision.heard
        if heard is not None:
            rows = np.arange(self.workers) if heard.rows is None else heard.rows
            away = self.workers - rows.size, self.workers - self.h - int((rows >= self.h).sum())
            found |= zip(QUARANTINE, map(float, away), strict=True)
        return found

    def _exchange(self) -> None:
        """What is sent now is written where the vectors of the step before the last one stood."""
        assert self._spare is not None
        if not self.apart:
            self.vectors, self._spare = self._spare, self.vectors
            self.sent = self.vectors[: self.h]
        else:
            self.sent, self._spare = self._spare, self.sent

    def _regularizer(self, point: Tensor) -> tuple[float, Tensor]:
        """(factor, [d] or [h, d]) whose product is the gradient of the l2 term."""
        if self.profile == "described" or not self.l2:
            return self.l2, point
        norm = kernels.squared_norms(point).sqrt_().unsqueeze(-1).to(point.dtype)
        factor = self.l2**2 if self.l2 < 1e154 else inf  # Python raises where a power is too large
        return factor, point / norm.clamp_min(torch.finfo(point.dtype).tiny)

    @property
    def diverged(self) -> bool:
        """Whether the parameters hold a NaN or an infinity: on a device those of the last step that is known."""
        if self._finite is None:
            return not bool(np.isfinite(kernels.host(kernels.squared_norms(self.parameters))))
        return not self._finite


@dataclass(frozen=True, eq=False)
class _Sent:
    """The first half of a step, behind the gradients.

    Attributes:
        state: of the algorithm, with what workers remember now.
        norms: on a device those that say whether some worker may have sent what is not finite.
        sampled, honest: moments of what honest workers sampled and sent, where they are measured.
        crafted: what the attack sends, [d] or [f, d].
        squared: distances that the server looks at, where somebody has measured them.
        memory: what it remembers now.
    """

    state: State
    norms: list[Tensor]
    sampled: Moments | None
    honest: Moments | None
    crafted: Tensor | None
    squared: Tensor | None
    memory: Memory


@dataclass(frozen=True, eq=False)
class _Done:
    """A step whose work is asked for.

    Attributes:
        sent: its first half.
        decision, pending: what the server made of it, and may prove to have refused.
        state: of the algorithm, behind it.
        tensors: the mean loss and what was measured.
        readings: of the latter.
        packed: on a device, the squared norm of the parameters, ``tensors``, what was observed, the norms, and the
            counts of faulty vectors.
        observed: of each vector.
    """

    sent: _Sent
    decision: Decision
    pending: list[Pending]
    state: State
    tensors: list[Tensor]
    readings: Readings | None
    packed: kernels.Packed | None
    observed: Observed


@dataclass(frozen=True, eq=False)
class _Begun:
    """A step that a device was asked for, and of which nobody knows yet what it came to.

    Attributes:
        read: waits for the squared norm of the parameters, what makes a row, what was observed of vectors, norms of
            what workers send, and how many vectors were faulty for each pending refusal.
        base, readings: of the row.
        observed: of each vector.
        tensors, norms: how many of the former there are.
        pending: what is refused if it proves to be.
        take_back: undoes the step.
        spoilt: (what workers sent, their momenta before), where some may have to forget what they sent.
        heard: what a quarantine will hear, and the state of the step.
    """

    read: Callable[[], tuple[np.ndarray, ...]]
    base: Measures
    readings: Readings | None
    observed: Observed
    tensors: int
    norms: int
    pending: list[Pending]
    take_back: Callable[[], None] | None
    spoilt: tuple[Tensor, Tensor] | None
    heard: tuple[Heard, State] | None = None


def _check_population(population: Population, workers: int, real_byzantine: int, algorithm: Algorithm) -> None:
    if population.workers != workers or real_byzantine:
        raise ValueError(
            f"Simulation: {population} says who is in a round and who attacks; workers must be {population.workers} "
            f"and real_byzantine 0, got {workers} and {real_byzantine}."
        )
    if algorithm.placement is not None:
        raise ValueError(
            "Simulation: momentum that moves needs every worker in every step; with a population say worker or server."
        )


def _local_half(algorithm: Algorithm) -> tuple[Algorithm, Clip | None]:
    """The algorithm of sums of gradients, and the clipping of each of them."""
    if any(isinstance(s, Momentum) and s.nesterov for s in (*algorithm.worker, *algorithm.server)):
        raise ValueError(
            "Simulation: Nesterov's momentum looks one step ahead; with local_steps > 1 say nesterov=False."
        )
    first = algorithm.worker[0] if algorithm.worker else None
    return (replace(algorithm, worker=algorithm.worker[1:]), first) if type(first) is Clip else (algorithm, None)


def _row(base: Measures, readings: Readings | None, numbers: Sequence[np.ndarray]) -> Measures:
    """The row, of the mean loss and of what was measured, on the host."""
    loss = float(numbers[0])
    return replace(base, loss=loss) if readings is None else readings.row(base, numbers[1:], loss)


def _placed(done: _Done) -> dict[str, float]:
    """The measures of momentum that moves."""
    here, after = done.sent.state.placement, done.state.placement
    if here is None or after is None:
        return {}
    seen = (float(here.at_workers), here.mu, after.persistent, after.turning, *after.ratios)
    return dict(zip(PLACEMENT, seen, strict=True))


def _kind(x: Tensor | None) -> str:
    return "nothing" if x is None else f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
