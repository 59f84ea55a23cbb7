"""The server's side: a strategy that aggregates with an Algorithm."""

from __future__ import annotations

import logging
import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from ...core.algorithm import Algorithm, State
from ...core.checks import Refused, shown
from ...core.explanation import explain
from ...core.history import History, Report, Round
from ...core.mixing import NearestNeighborMixing
from ...core.quarantine import Admitted, Watched, with_f
from ...core.rules import Rule, TrimmedMean
from ...core.stages import Decision
from ...core.vectors import BUFFER_NAMES
from ..sharded import (
    check_protects,
    check_state,
    check_tensors,
    number_in,
    refuse_placement,
    tensors_of,
    text_in,
    title_of,
    watched_from,
    watched_in,
)
from .arrays import BUFFERS, Buffers, MalformedError, Model, brief_of, buffer_names_of, is_finite
from .metrics import median_metrics
from .sampling import quarter
from .worker import refuse_look_ahead

COORDINATES = 4096  # on which a coordinate-wise rule's weights are counted for the report
MOST = 10_000  # nodes: as many are tried in search of the least number that can do

logger = logging.getLogger("flwr.varangian")  # below Flower's own, so that its handlers and levels apply

Metrics = Callable[[list[RecordDict], str], MetricRecord]


class RobustStrategy(Strategy):
    """A Flower strategy that aggregates with an :class:`~varangian.Algorithm`; a drop-in for Flower's ``FedAvg``.

    Updates count alike, whatever numbers of examples nodes claim. A reply that does not hold the model's arrays, in
    their shapes and types and with finite numbers, is dropped and its node named. Where fewer replies remain than the
    algorithm needs, the model is kept as it is and the log says why.

    With ``Algorithm(quarantine=...)`` nodes are left out that were suspicious again and again, over the rounds that
    they were in: they are asked and answer, but nobody looks at it. A reply that had to be dropped counts as the most
    suspicious. Terms count rounds that moved the model. At most as many are left out in a round as there are replies
    beyond the least that the algorithm needs with f.

    Args:
        algorithm: the algorithm, or just a rule. By default nearest-neighbour mixing and a trimmed mean.
        f: how many of a round's replies may be Byzantine: a number, or a function of how many nodes were asked. By
            default what the rule says, or with the default algorithm a quarter of the nodes asked, but at least one.
            f counts every reply that is not an honest update, those of broken nodes too, so each reply that is dropped
            is one of them: the rule is told f where the rest suffices for it, and as much less as need be, down to f
            minus those dropped. A silent node takes nothing off f: it may be honest.
        learning_rate: how far the model moves along the aggregate.
        buffers: what becomes of arrays that are not trained, which are never part of an update: "median" takes the
            median of each number over the replies (rounded, for integers); "keep" leaves the server's as they are and
            does not look at those received.
        buffer_names: which arrays these are, by the last part of their names; arrays of integers and booleans always.
        fraction_train, fraction_evaluate, min_available_nodes, arrayrecord_key, configrecord_key: as for FedAvg.
        min_train_nodes, min_evaluate_nodes: as for FedAvg, but by default the least that the algorithm, or the median
            of metrics, can do with.
        weighted_by_key: the metric that aggregated metrics leave out. Nothing is weighted by it.
        train_metrics_aggr_fn, evaluate_metrics_aggr_fn: as for FedAvg; by default the median over nodes, of each metric
            that at least 2f + 1 of them report.
        forget_after: a node whose updates were not used in so many rounds is forgotten, and starts with zero momentum
            when it comes back; None for never.
        seed: of what rules and mixings draw. By default one that nobody knows, since whoever knows it knows where such
            rules do not look.

    Raises:
        ValueError: a setting that cannot work, said in one line; a rule that protects from nobody. f = 0 is warned of.

    Cost: as the algorithm's, on the server; with worker stages that remember, a model's size per node that was used in
        the last ``forget_after`` rounds.

    Example:
        >>> import varangian as vg
        >>> strategy = RobustStrategy(vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.MultiKrum(f=2)))
        >>> strategy.min_train_nodes
        7
    """

    def __init__(
        self,
        algorithm: Algorithm | Rule | None = None,
        f: int | Callable[[int], int] | None = None,
        *,
        learning_rate: float = 1.0,
        buffers: Buffers = "median",
        buffer_names: Sequence[str] = BUFFER_NAMES,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int | None = None,
        min_evaluate_nodes: int | None = None,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: Metrics | None = None,
        evaluate_metrics_aggr_fn: Metrics | None = None,
        forget_after: int | None = 100,
        seed: int | None = None,
    ) -> None:
        if algorithm is None:
            algorithm = Algorithm(pre=(NearestNeighborMixing(f=1),), rule=TrimmedMean(f=1))
            f = quarter if f is None else f
        elif isinstance(algorithm, Rule):
            algorithm = Algorithm(rule=algorithm)
        elif not isinstance(algorithm, Algorithm):
            got = f"the class {algorithm.__name__}" if isinstance(algorithm, type) else shown(algorithm)
            raise ValueError(f"RobustStrategy needs an Algorithm or a rule, such as Median(f=1), got {got}.")
        check_protects("RobustStrategy", algorithm.rule)
        refuse_placement("RobustStrategy", algorithm)
        for stage in algorithm.worker + algorithm.server:
            refuse_look_ahead("RobustStrategy", stage)
        number = isinstance(learning_rate, Real) and not isinstance(learning_rate, bool)
        if not (number and math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(f"RobustStrategy needs learning_rate > 0, got {shown(learning_rate)}.")
        if forget_after is not None and not (_whole(forget_after) and forget_after >= 1):
            raise ValueError(f"RobustStrategy needs an integer forget_after >= 1 or None, got {shown(forget_after)}.")
        if seed is not None and not (_whole(seed) and 0 <= seed < 2**63):
            raise ValueError(f"RobustStrategy needs an integer seed from 0 to 2^63 - 1 or None, got {shown(seed)}.")
        if buffers not in BUFFERS:
            raise ValueError(f'RobustStrategy needs buffers "median" or "keep", got {buffers!r}.')
        self.algorithm, self.learning_rate = algorithm, learning_rate
        self.buffers: Buffers = buffers
        self.buffer_names, self.weighted_by_key = buffer_names_of("RobustStrategy", buffer_names), weighted_by_key
        self._f = algorithm.rule.f if f is None else f
        self.min_train_nodes = self._least("min_train_nodes", min_train_nodes, self._needed)
        self.min_evaluate_nodes = 0
        if fraction_evaluate > 0:
            self.min_evaluate_nodes = self._least("min_evaluate_nodes", min_evaluate_nodes, lambda f: 2 * f + 1)
        self._metrics = {"train": train_metrics_aggr_fn, "evaluate": evaluate_metrics_aggr_fn}
        self._sampling = FedAvg(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=self.min_train_nodes,
            min_evaluate_nodes=self.min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
        )
        if algorithm.quarantine is not None and not callable(self._f) and self._f == 0:
            raise ValueError("RobustStrategy: a quarantine excludes at most f nodes at a time, and f is 0.")
        if not callable(self._f) and self._f == 0:
            warnings.warn(
                "RobustStrategy: f = 0 protects from nobody; f is how many replies of a round may be faulty.",
                stacklevel=2,
            )
        self.forget_after = forget_after
        self._history = History(title_of(algorithm), noun="node")
        self._sent: Model | None = None
        self._messages: dict[str, list[Message]] = {"train": [], "evaluate": []}
        self._state: State | None = None
        self._memories: dict[int, tuple[Tensor | None, ...]] = {}
        self._seed = secrets.randbits(63) if seed is None else int(seed)
        self._turn = 0  # rounds of training, those before a restart included
        self._used: dict[int, int] = {}  # the last of them that a node with a memory was used in
        self._loaded = False
        self._resumed: tuple[int, Watched | None] = 0, None  # the step and the quarantine of what was loaded

    def tolerated(self, n: int) -> int:
        """How many Byzantine replies a round that asks n nodes is to survive."""
        f = self._f(n) if callable(self._f) else self._f
        if not _whole(f) or f < 0:
            raise ValueError(f"RobustStrategy needs an integer f >= 0, got {f!r} for {n} nodes.")
        return int(f)

    def report(self) -> Report:
        """What became of each node so far."""
        return self._history.report()

    @property
    def rounds(self) -> list[Round]:
        """What became of each round so far."""
        return list(self._history.rounds)

    def state_dict(self) -> dict[str, Tensor]:
        """What the strategy remembers between two rounds: nodes' momenta ("worker.0.17" is node 17's), the server's,
        the last aggregate, what a quarantine remembers, and which algorithm it is of. The report is not in it.

        Everything is a tensor: save it with torch.save after a round (in ``evaluate_fn``, say), beside the model.
        """
        text = torch.frombuffer(bytearray(repr(self.algorithm).encode()), dtype=torch.uint8)
        step = 0 if self._state is None else self._state.step
        numbers = {"turn": self._turn, "step": step, "seed": self._seed}
        state = {name: torch.tensor(number) for name, number in numbers.items()} | {"algorithm": text}
        if self._state is not None:
            state |= {k: m.clone() for k, m in tensors_of(replace(self._state, worker=())).items()}
            state |= watched_in(self._state.quarantine)
        for node, memories in self._memories.items():
            state[f"used.{node}"] = torch.tensor(self._used[node])
            state |= {f"worker.{k}.{node}": m.clone() for k, m in enumerate(memories) if m is not None}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state_dict` gave. The next :meth:`start` then goes on from there, from the model that it
        is given; without it, it begins anew.

        Raises:
            ValueError: a state of another algorithm, one that lacks something or has more, or with NaN or infinity.
        """
        numbers = ("turn", "step", "seed")
        check_tensors(state)
        lacks = [name for name in (*numbers, "algorithm") if name not in state]
        if lacks:
            raise ValueError(f"load_state_dict needs a state of RobustStrategy, got one without {', '.join(lacks)}.")
        text = text_in(state, "algorithm")
        if text != repr(self.algorithm):
            raise ValueError(f"load_state_dict needs a state of {self.algorithm!r}, got one of {text}.")
        turn, step, seed = (number_in(state, name) for name in numbers)
        rest, watched = watched_from(state, self.algorithm)
        rest = {name: tensor for name, tensor in rest.items() if name not in (*numbers, "algorithm")}
        used = {name.removeprefix("used."): rest.pop(name) for name in list(rest) if name.startswith("used.")}
        for name, tensor in rest.items():
            if not tensor.is_floating_point() or tensor.ndim != 1 or not tensor.isfinite().all():
                raise ValueError(f"load_state_dict needs finite vectors, got something else in {name!r}.")
        nodes = {int(node): number_in(state, f"used.{node}") for node in used if node.isdecimal()}
        if len(nodes) < len(used):
            raise ValueError(f"load_state_dict needs numbers of nodes, got {', '.join(used.keys() - map(str, nodes))}.")
        fresh, blank = None, ()
        if rest:
            some = next(iter(rest.values()))
            fresh = self.algorithm.init(0, some.numel(), some.dtype, seed=seed)
            blank = tuple(torch.zeros_like(some) if stage.remembers else None for stage in self.algorithm.worker)
            targets = dict(tensors_of(replace(fresh, worker=())))
            targets |= {f"worker.{k}.{node}": m for node in used for k, m in enumerate(blank) if m is not None}
            check_state(targets, rest)
            for name, memory in tensors_of(replace(fresh, worker=())).items():
                memory.copy_(rest[name])
            fresh = replace(fresh, step=step, quarantine=watched)
        self._resumed = step, watched
        self._state, self._seed, self._turn, self._loaded = fresh, seed, turn, True
        self._used = nodes
        self._memories = {
            int(node): tuple(None if m is None else rest[f"worker.{k}.{node}"].clone() for k, m in enumerate(blank))
            for node in used
        }

    def summary(self) -> None:
        """Logs what is going to aggregate."""
        a = self.algorithm
        stages = [*a.worker, *a.pre, a.rule, *a.server]
        f = "a function of the nodes asked" if callable(self._f) else self._f
        logger.info("\t├──> Algorithm: %s", " > ".join(map(str, stages)))
        logger.info("\t├──> f: %s; buffers: %s", f, self.buffers)
        self._sampling.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a round of training. The first round forgets what an earlier run left, but for what was
        loaded."""
        if server_round == 1:
            self._history = History(title_of(self.algorithm), noun="node")
            if not self._loaded:
                self._state, self._memories, self._used, self._turn = None, {}, {}, 0
                self._resumed = 0, None
        self._loaded = False
        self._sent = Model(arrays, self.buffers, self.buffer_names)
        d = self._sent.vector.numel()
        for memory in ([] if self._state is None else [*self._state.server, self._state.previous]) + [
            m for memories in self._memories.values() for m in memories
        ]:
            if memory is not None and memory.numel() != d:
                raise ValueError(f"RobustStrategy remembers {memory.numel():,} trained numbers, got a model of {d:,}.")
        self._messages["train"] = list(self._sampling.configure_train(server_round, arrays, config, grid))
        return self._messages["train"]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a round of evaluation."""
        self._messages["evaluate"] = list(self._sampling.configure_evaluate(server_round, arrays, config, grid))
        return self._messages["evaluate"]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model and the metrics; None for a model that stays as it is."""
        model = self._sent
        if model is None:
            raise ValueError("RobustStrategy needs configure_train before aggregate_train: updates start from there.")
        contents, dropped, silent = self._sort("train", replies)
        asked = tuple(sorted(message.metadata.dst_node_id for message in self._messages["train"]))
        if not asked:
            return None, None
        updates: dict[int, Tensor] = {}
        buffers: dict[int, dict[str, Tensor]] = {}
        for node, content in contents.items():
            try:
                updates[node], buffers[node] = model.read(content)
            except MalformedError as error:
                dropped[node] = str(error)
        f = self.tolerated(len(asked))
        nodes, vectors, state = self._send(model, updates, dropped)
        del updates
        admitted = self._admitted(f, [*nodes, *dropped], state)
        away = set(np.flatnonzero(admitted.excluded).tolist())
        rows = [k for k in range(len(nodes)) if k not in away]
        gone = tuple(sorted([*nodes, *dropped][k] for k in away))
        dropped = {node: why for node, why in dropped.items() if node not in gone}
        shown = tuple(nodes[k] for k in rows)
        outcome = Round(server_round, asked, f, shown, dropped, silent, excluded=gone)
        arrays = metrics = None
        try:
            f = self._given(f - self._lowered(len(gone)), len(shown), len(dropped))
            algorithm = _tolerating(self.algorithm, f)
            seen = vectors if len(rows) == len(nodes) else vectors[rows]
            found = explain(seen, algorithm, state.previous, coordinates=COORDINATES, step=state.step, seed=state.seed)
            watched = self._heard(admitted, dict(zip(shown, found.suspicion, strict=True)), dropped, state)
            update, state = algorithm.finish(Decision(found.aggregate, None, None), state)
            arrays = model.moved(self.learning_rate * update, [buffers[node] for node in shown], f)
        except Refused as error:
            outcome = replace(outcome, kept=str(error))
        else:
            outcome = replace(
                outcome, f=f, weight=found.weight, suspicion=found.suspicion, rejected=found.rejected,
                score=found.score, distance=found.distance, cosine=found.cosine,
            )  # fmt: skip
            self._state = replace(state, quarantine=watched)
            for i, node in enumerate(nodes):
                self._memories[node] = tuple(None if m is None else m[i].clone() for m in state.worker)
                self._used[node] = self._turn + 1
            metrics = self._combine("train", [contents[node] for node in shown], f)
        self._turn += 1
        if self.forget_after is not None:
            for node in [n for n, turn in self._used.items() if turn <= self._turn - self.forget_after]:
                self._forget(node)
        self._history.record(outcome)
        logger.log(logging.WARNING if outcome.kept or dropped or silent else logging.INFO, "%s", outcome)
        return arrays, metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The metrics of a round of evaluation; None where too few nodes reply for a median to mean something."""
        contents, dropped, silent = self._sort("evaluate", replies)
        if not self._messages["evaluate"]:
            return None
        for node, why in (dropped | silent).items():
            logger.warning("evaluation of round %s: nothing from %s (%s)", server_round, node, why)
        return self._combine("evaluate", list(contents.values()), self.tolerated(len(self._messages["evaluate"])))

    def _forget(self, node: int) -> None:
        self._memories.pop(node, None)
        self._used.pop(node, None)

    def _needed(self, f: int) -> int:
        """How many updates a round needs: for the algorithm, and for the medians of buffers."""
        return max(_tolerating(self.algorithm, f).min_n, 2 * f + 1 if self.buffers == "median" else 1)

    def _least(self, name: str, given: int | None, needed: Callable[[int], int]) -> int:
        """The least number of nodes that can do, or ``given`` if it is one."""
        least = next((n for n in range(1, MOST + 1) if needed(self.tolerated(n)) <= n), None)
        if least is None:
            f = self.tolerated(MOST)
            raise ValueError(f"RobustStrategy needs an f that some number of nodes can survive, got {f} of {MOST:,}.")
        if given is not None and given < least:
            f = self.tolerated(least)
            raise ValueError(
                f"RobustStrategy needs {name} >= {least} for {self.algorithm.rule} with f = {f}, got {given}."
            )
        return least if given is None else given

    def _sort(
        self, kind: str, replies: Iterable[Message]
    ) -> tuple[dict[int, RecordDict], dict[int, str], dict[int, str]]:
        """What each node sent, ordered by node so that nobody gains by being first; who is dropped; who is silent."""
        metadata = [message.metadata for message in self._messages[kind]]
        asked = {m.dst_node_id for m in metadata}
        by_message = {m.message_id: m.dst_node_id for m in metadata if m.message_id}
        contents: dict[int, RecordDict] = {}
        dropped: dict[int, str] = {}
        silent: dict[int, str] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if node not in asked:  # the SuperLink's word on a node that does not answer comes from the SuperLink
                node = by_message.get(reply.metadata.reply_to_message_id, node)
            if node not in asked:
                logger.warning("a reply from node %s, which was not asked, is ignored", node)
            elif node in contents or node in dropped or node in silent:
                dropped[node] = "more than one reply"
            elif reply.has_error():
                silent[node] = f"error: {brief_of(reply.error.reason or 'no reason given')}"
            else:
                contents[node] = reply.content
        for node in dropped:
            contents.pop(node, None)
            silent.pop(node, None)
        for node in sorted(asked - contents.keys() - dropped.keys() - silent.keys()):
            silent[node] = "no reply in time"
        return dict(sorted(contents.items())), dropped, silent

    def _send(
        self, model: Model, updates: dict[int, Tensor], dropped: dict[int, str]
    ) -> tuple[tuple[int, ...], Tensor, State]:
        """The worker half, with each node's own memory; drops a node whose memory would overflow, and forgets it."""
        d, dtype = model.vector.numel(), model.vector.dtype
        if self._state is None:
            step, watched = self._resumed
            fresh = self.algorithm.init(0, d, dtype, seed=self._seed)
            self._state = replace(fresh, step=step, quarantine=watched or fresh.quarantine)
        blank = tuple(torch.zeros(d, dtype=dtype) if stage.remembers else None for stage in self.algorithm.worker)
        memories = [self._memories.get(node, blank) for node in updates]
        worker = tuple(
            None if zero is None else _stack([m for memory in memories if (m := memory[k]) is not None], d, dtype)
            for k, zero in enumerate(blank)
        )
        vectors = _stack(list(updates.values()), d, dtype)
        vectors, state = self.algorithm.send(vectors, replace(self._state, worker=worker))
        nodes = tuple(updates)
        finite = torch.tensor([is_finite(vector) for vector in vectors], dtype=torch.bool)
        if not finite.all():
            for node, good in zip(nodes, finite.tolist(), strict=True):
                if not good:
                    dropped[node] = "its update and memory together overflow"
                    self._forget(node)
            nodes = tuple(node for node in nodes if node not in dropped)
            state = replace(state, worker=tuple(None if m is None else m[finite] for m in state.worker))
            vectors = vectors[finite]
        return nodes, vectors, state

    def _admitted(self, f: int, nodes: Sequence[int], state: State) -> Admitted:
        """Whom of those who answered, in whatever way, a quarantine excludes."""
        numbers = _numbers(nodes)
        quarantine, watched = self.algorithm.quarantine, state.quarantine
        if quarantine is None or watched is None:
            return Admitted(numbers, None, (), self.algorithm.rule, 0)
        n, most = numbers.size, 0
        while most < min(f, n - 1) and self._needed(f - self._lowered(most + 1)) <= n - most - 1:
            most += 1
        tolerating = _tolerating(self.algorithm, f)
        return quarantine.admit(
            watched, tolerating.pre, tolerating.rule, workers=numbers, step=state.step, limit=most
        )  # fmt: skip

    def _lowered(self, excluded: int) -> int:
        """How much lower f is while so many nodes are excluded."""
        quarantine = self.algorithm.quarantine
        return excluded if quarantine is not None and quarantine.lower_f else 0

    def _heard(
        self, admitted: Admitted, suspicion: Mapping[int, float], dropped: Mapping[int, str], state: State
    ) -> Watched | None:
        """What a quarantine remembers after the round; a reply that was dropped is as suspicious as can be."""
        quarantine, watched = self.algorithm.quarantine, state.quarantine
        if quarantine is None or watched is None:
            return None
        told = dict(suspicion) | dict.fromkeys(dropped, 1.0)
        by_number = dict(zip(_numbers(list(told)).tolist(), told.values(), strict=True))
        values = np.array([by_number.get(number, np.nan) for number in admitted.workers.tolist()])
        return quarantine.after(watched, admitted.workers, values, most=admitted.most, step=state.step)

    def _given(self, f: int, n: int, dropped: int) -> int:
        """The f that the rule is told, for n updates after some were dropped."""
        if dropped > f:
            raise Refused(f"{dropped} replies had to be dropped, more than f = {f}.")
        for least in range(f, f - dropped - 1, -1):
            if self._needed(least) <= n:
                return least
        rule = _tolerating(self.algorithm, f - dropped).rule
        raise Refused(f"{rule} needs n >= {self._needed(f - dropped)} updates, got {n}.")

    def _combine(self, kind: str, contents: list[RecordDict], f: int) -> MetricRecord | None:
        function = self._metrics[kind]
        if function is not None:
            return function(contents, self.weighted_by_key) if contents else None
        if len(contents) < 2 * f + 1:
            logger.warning("no metrics: a median with f = %s needs n >= %s nodes, got %s", f, 2 * f + 1, len(contents))
            return None
        return median_metrics(contents, f, self.weighted_by_key)


def _tolerating(algorithm: Algorithm, f: int) -> Algorithm:
    """The same algorithm with another f, in each stage that has one."""
    pre, rule = with_f(algorithm.pre, algorithm.rule, lambda _: f)
    return replace(algorithm, pre=pre, rule=rule)


def _numbers(nodes: Sequence[int]) -> np.ndarray:
    """Nodes as int64; their numbers take 64 bits without a sign."""
    return np.array(nodes, np.uint64).view(np.int64)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _stack(rows: list[Tensor], d: int, dtype: torch.dtype) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0, d, dtype=dtype)
