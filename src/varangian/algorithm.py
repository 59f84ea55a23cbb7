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

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checks import whole
from .mixing import Mixing
from .randomness import Draw
from .rules import Average, Rule
from .rules.core import Decision, decide, required_rows
from .transforms import Transform


@dataclass(frozen=True)
class State:
    """All that an algorithm remembers between two steps. Plain tensors: save them, send them, compare them.

    Attributes:
        worker: one entry per worker transform, [h, d] momenta or None.
        server: one entry per server transform, [d] momenta or None.
        previous: [d], the last output of F, zero at first; None for algorithms that never look at it.
        step: how many aggregations came before.
        seed: what rules and mixings that draw depend on, beside the step.
    """

    worker: tuple[Tensor | None, ...]
    server: tuple[Tensor | None, ...]
    previous: Tensor | None
    step: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Algorithm:
    """Distributed SGD under attack: worker transforms, then mixings and a rule, then server transforms.

    Moving one object across ``rule=`` is the experiment of the paper.

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

    def __post_init__(self) -> None:
        if self.rule.needs_root:
            raise ValueError(
                f"Algorithm: {self.rule} needs a root vector, which an algorithm does not have; "
                "call the rule itself: rule(vectors, previous=root)."
            )
        for stage in self.server:
            if stage.worker_only:
                raise ValueError(f"Algorithm: {stage} acts at the workers, got it in server=; move it to worker=.")

    @property
    def min_n(self) -> int:
        """The least number of vectors that every stage of ``pre`` and ``rule`` accepts."""
        return required_rows(self.pre, self.rule)

    @property
    def remembers_aggregate(self) -> bool:
        """Whether some stage looks at the last output of F."""
        return self.rule.uses_previous or any(stage.uses_previous for stage in self.worker)

    def init(
        self, h: int, d: int, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
    ) -> State:
        """Zero momenta: of h workers and of the server.

        ``seed`` decides what rules and mixings that draw will draw, step by step: whoever knows it knows all of it, so
        a server that faces real adversaries keeps it to itself.
        """
        options = {"dtype": dtype, "device": device}
        return State(
            worker=tuple(torch.zeros(h, d, **options) if stage.remembers else None for stage in self.worker),
            server=tuple(torch.zeros(d, **options) if stage.remembers else None for stage in self.server),
            previous=torch.zeros(d, **options) if self.remembers_aggregate else None,
            seed=whole(self, "seed", seed),
        )

    def point(self, parameters: Tensor, state: State, lr: float) -> Tensor:
        """Where to take the gradients: [d] parameters, or the look-ahead points of Nesterov's momentum.

        At the server theta - mu lr m, [d]; at the workers theta - mu lr m_i, [h, d], one point a worker.
        """
        for stage, memory in zip(self.worker + self.server, state.worker + state.server, strict=True):
            parameters = stage.look_ahead(parameters, memory, state.previous, lr)
        return parameters

    def send(self, gradients: Tensor, state: State, out: Tensor | None = None) -> tuple[Tensor, State]:
        """The worker half, row by row: what each worker sends for the gradient it sampled, [h, d] -> [h, d].

        With ``out`` nothing is allocated: the vectors are written there, ``gradients`` is overwritten by what precedes
        the last stage, and the new state may live in ``out``, which must then stay untouched until the next call.
        """
        vectors, memories = gradients, []
        for place, (stage, memory) in enumerate(zip(self.worker, state.worker, strict=True), 1):
            inside = memory if stage.remembers else gradients  # what is remembered must outlive the gradients
            target = out if out is None or place == len(self.worker) else inside
            vectors, memory = stage(vectors, memory, state.previous, target)
            memories.append(memory)
        if out is not None and vectors is not out:
            vectors = out.copy_(vectors)
        return vectors, replace(state, worker=tuple(memories))

    def aggregate(self, vectors: Tensor, state: State) -> tuple[Tensor, State]:
        """The server half: mixings, the rule, then the server's transforms, [n, d] -> [d].

        The parameters then become ``parameters - lr * update``. ``vectors`` is only read.

        Raises:
            ValueError: too few vectors for f, or more than f of them not finite.
        """
        return self.finish(self.decide(vectors, state), state)

    def decide(self, vectors: Tensor, state: State) -> Decision:
        """The first part of :meth:`aggregate`: F of the mixed vectors, with its grounds. Nothing is remembered."""
        return decide(vectors, self.pre, self.rule, state.previous, Draw(state.seed, state.step))

    def finish(self, decision: Decision, state: State) -> tuple[Tensor, State]:
        """The second part of :meth:`aggregate`: the server's transforms. The new state is that of the next step."""
        update, memories = decision.aggregate, []
        for stage, memory in zip(self.server, state.server, strict=True):
            update, memory = stage(update, memory)
            memories.append(memory)
        previous = decision.aggregate.clone() if self.remembers_aggregate else None
        return update, State(state.worker, tuple(memories), previous, state.step + 1, state.seed)
