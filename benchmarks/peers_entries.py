"""What each library's call for a rule looks like, as its own documentation writes it, and which of ours means the same.

A library that is not installed has no entries. The variants that a library offers (tensors, arrays, a pool of actors)
are entries of their own, so that a table can take the fastest.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import varangian as vg

OURS = "varangian"
LIBRARIES = ("torch", "numpy", OURS, "byzfl", "byzpy", "krum", "flwr")


@dataclass(frozen=True)
class Entry:
    """One call: ``call(prepare(x))`` computes, and ``read`` makes a tensor of what it gives.

    Only ``call`` is timed. ``ours`` computes what this call's documentation says, with our code; None: nothing of ours
    has that definition.
    """

    rule: str
    library: str
    code: str
    call: Callable[[Any], Any]
    ours: Callable[[Tensor], Tensor] | None
    prepare: Callable[[Tensor], Any] = Tensor.clone
    read: Callable[[Any], Tensor] = torch.as_tensor
    note: str = ""  # how the definition differs from that of our rule with its defaults


def as_list(x: Tensor) -> list[Tensor]:
    return list(x.clone())


def _array(x: Tensor) -> np.ndarray:
    return x.numpy().copy()


def _of(algorithm: vg.Algorithm | vg.Rule, x: Tensor) -> Tensor:
    if isinstance(algorithm, vg.Rule):
        return algorithm(x)
    return algorithm.aggregate(x, algorithm.init(*x.shape))[0]


def _mixed(rule: vg.Rule, *mixings: vg.Mixing) -> Callable[[Tensor], Tensor]:
    return partial(_of, vg.Algorithm(pre=mixings, rule=rule))


def _trimmed(f: int) -> vg.Rule:
    return vg.TrimmedMean(f)


def _first(f: int) -> tuple[Callable[[Tensor], Tensor], str]:
    """MDA as others take it: several subsets often share the least diameter."""
    return vg.MinimumDiameterAveraging(f, ties="position"), "of subsets of the same diameter the first"


def _varangian(n: int, f: int, q: int) -> Iterator[Entry]:
    median, trimmed, mda = vg.Median(f), vg.TrimmedMean(f), vg.MinimumDiameterAveraging(f)
    yield Entry("median", OURS, "vg.Median(f)(x)", median, median)
    yield Entry("trimmed mean", OURS, "vg.TrimmedMean(f)(x)", trimmed, trimmed)
    yield Entry("MeaMed", OURS, "vg.MeaMed(f)(x)", vg.MeaMed(f), vg.MeaMed(f))
    yield Entry("Multi-Krum", OURS, "vg.MultiKrum(f)(x)", vg.MultiKrum(f), vg.MultiKrum(f))
    bulyan = vg.Bulyan(q, base="multi-krum")
    yield Entry("Bulyan", OURS, 'vg.Bulyan(q, base="multi-krum")(x)', bulyan, bulyan)
    yield Entry("geometric median", OURS, "vg.GeometricMedian(f)(x)", vg.GeometricMedian(f), vg.GeometricMedian(f))
    clipping = vg.CenteredClipping(f=f, tau=1.0, iterations=3)
    yield Entry("centered clipping", OURS, "vg.CenteredClipping(f, tau=1, iterations=3)(x)", clipping, clipping)
    nnm, arc = vg.NearestNeighborMixing(f), vg.AdaptiveClipping(f)
    for name, mixings in (("NNM, trimmed mean", (nnm,)), ("ARC, NNM, trimmed mean", (arc, nnm))):
        call = _mixed(trimmed, *mixings)
        yield Entry(name, OURS, f"vg.Algorithm(pre={len(mixings)} mixings, rule=vg.TrimmedMean(f))", call, call)
    if n <= 20:
        yield Entry("MDA", OURS, "vg.MinimumDiameterAveraging(f)(x)", mda, mda)


def _byzfl(n: int, f: int, q: int) -> Iterator[Entry]:
    import byzfl

    krum = vg.MultiKrum(f, m=n - f, neighbours="n-f-1")
    wide = "n - f averaged, n - f - 1 neighbours"
    few = "3 Weiszfeld steps from 0, distances of at least 0.1"
    nnm, arc = vg.NearestNeighborMixing(f), vg.AdaptiveClipping(f)
    plain: list[tuple[str, str, Callable[[], Any], Callable[[Tensor], Tensor] | None, str]] = [
        ("median", "byzfl.Median()", byzfl.Median, vg.Median(f), ""),
        ("trimmed mean", "byzfl.TrMean(f)", partial(byzfl.TrMean, f), vg.TrimmedMean(f), ""),
        ("MeaMed", "byzfl.Meamed(f)", partial(byzfl.Meamed, f), vg.MeaMed(f), ""),
        ("Multi-Krum", "byzfl.MultiKrum(f)", partial(byzfl.MultiKrum, f), krum, wide),
        ("geometric median", "byzfl.GeometricMedian()", byzfl.GeometricMedian, vg.GeometricMedian(f), few),
        (
            "centered clipping",
            "byzfl.CenteredClipping(L=3, tau=1.0)",
            partial(byzfl.CenteredClipping, L=3, tau=1.0),
            vg.CenteredClipping(f=f, tau=1.0, iterations=3),
            "",
        ),
    ]
    if n <= 20:
        plain.append(("MDA", "byzfl.MDA(f)", partial(byzfl.MDA, f), *_first(f)))
    for rule, code, make, ours, note in plain:
        # Centered clipping keeps its centre in the object: a new one a call, as at the first step.
        for prepare, what in ((Tensor.clone, "a tensor"), (_array, "an array")):
            yield Entry(rule, "byzfl", f"{code}, {what}", lambda x, make=make: make()(x), ours, prepare, note=note)
    for prepare, what in ((Tensor.clone, "a tensor"), (_array, "an array")):
        yield Entry(
            "NNM, trimmed mean", "byzfl", f"byzfl.TrMean(f)(byzfl.NNM(f)(x)), {what}",
            lambda x: byzfl.TrMean(f)(byzfl.NNM(f)(x)), _mixed(_trimmed(f), nnm), prepare,
        )  # fmt: skip
        yield Entry(
            "ARC, NNM, trimmed mean", "byzfl", f"byzfl.TrMean(f)(byzfl.NNM(f)(byzfl.ARC(f)(x))), {what}",
            lambda x: byzfl.TrMean(f)(byzfl.NNM(f)(byzfl.ARC(f)(x))), _mixed(_trimmed(f), arc, nnm), prepare,
        )  # fmt: skip


def _byzpy(n: int, f: int, q: int) -> Iterator[Entry]:
    from byzpy.aggregators.coordinate_wise import CoordinateWiseMedian, CoordinateWiseTrimmedMean, MeanOfMedians
    from byzpy.aggregators.geometric_wise import GeometricMedian, MinimumDiameterAveraging, MultiKrum
    from byzpy.aggregators.norm_wise import CenteredClipping
    from byzpy.pre_aggregators import ARC, NearestNeighborMixing

    krum = vg.MultiKrum(f, m=n - f - 2, neighbours="n-f-1")
    arc, nnm = vg.AdaptiveClipping(f), vg.NearestNeighborMixing(f)
    lower = "" if n % 2 else "lower of the two middle values"
    even = "mid" if n % 2 else "lower"
    centre = "centre from the mean, not from the last aggregate"
    rows: list[tuple[str, str, Any, Callable[[Tensor], Tensor] | None, str]] = [
        ("median", "CoordinateWiseMedian()", CoordinateWiseMedian(), vg.Median(f, even=even), lower),
        ("trimmed mean", "CoordinateWiseTrimmedMean(f)", CoordinateWiseTrimmedMean(f), vg.TrimmedMean(f), ""),
        ("MeaMed", "MeanOfMedians(f)", MeanOfMedians(f), vg.MeaMed(f, even=even), lower),
        ("Multi-Krum", "MultiKrum(f, q=n-f-2)", MultiKrum(f, n - f - 2), krum, "n - f - 1 neighbours"),
        ("geometric median", "GeometricMedian()", GeometricMedian(), vg.GeometricMedian(f), ""),
        ("centered clipping", "CenteredClipping(c_tau=1, M=3)", CenteredClipping(c_tau=1.0, M=3), None, centre),
    ]
    if n <= 20:
        mda = MinimumDiameterAveraging(f)
        rows.append(("MDA", "MinimumDiameterAveraging(f)", mda, *_first(f)))
    for rule, code, operator, ours, note in rows:
        yield Entry(rule, "byzpy", f"{code}.aggregate(list)", operator.aggregate, ours, as_list, note=note)
        if rule in ("median", "trimmed mean", "Multi-Krum", "geometric median", "MDA"):
            for kind in ("thread", "process"):
                pooled = Pooled(operator, kind)
                yield Entry(rule, "byzpy", f"{code}, OperatorExecutor, 2 x {kind}", pooled, ours, as_list, note=note)
    mix, clip, trim = NearestNeighborMixing(f), ARC(f), CoordinateWiseTrimmedMean(f)
    yield Entry(
        "NNM, trimmed mean", "byzpy", "CoordinateWiseTrimmedMean(f) of NearestNeighborMixing(f)",
        lambda x: trim.aggregate(mix.pre_aggregate(x)), _mixed(_trimmed(f), nnm), as_list,
    )  # fmt: skip
    yield Entry(
        "ARC, NNM, trimmed mean", "byzpy", "CoordinateWiseTrimmedMean(f) of NearestNeighborMixing(f) of ARC(f)",
        lambda x: trim.aggregate(mix.pre_aggregate(clip.pre_aggregate(x))), _mixed(_trimmed(f), arc, nnm), as_list,
    )  # fmt: skip


class Pooled:
    """A ByzPy operator run by a pool of two actors that stays, as ``OperatorExecutor`` offers."""

    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, operator: Any, kind: str) -> None:
        self.operator, self.kind, self.executor = operator, kind, None

    def __call__(self, x: list[Tensor]) -> Any:
        from byzpy import OperatorExecutor
        from byzpy.engine.graph.pool import ActorPoolConfig

        if Pooled.loop is None:
            Pooled.loop = asyncio.new_event_loop()
        if self.executor is None:
            self.executor = OperatorExecutor(self.operator, pool_config=ActorPoolConfig(backend=self.kind, count=2))
        return Pooled.loop.run_until_complete(self.executor.run({"gradients": x}))

    def close(self) -> None:
        if self.executor is not None:
            assert Pooled.loop is not None
            Pooled.loop.run_until_complete(self.executor.__aexit__(None, None, None))
            self.executor = None


def _krum(n: int, f: int, q: int) -> Iterator[Entry]:
    from krum.primitives.aggregators.brute import Brute
    from krum.primitives.aggregators.bulyan import Bulyan
    from krum.primitives.aggregators.geometric_median import GeometricMedian
    from krum.primitives.aggregators.median import Median
    from krum.primitives.aggregators.multikrum import MultiKrum
    from krum.primitives.aggregators.trimmed_mean import TrimmedMean

    trims = "m = n - f at each turn; the one nearest to the mean is taken away; then a trimmed mean"
    rows: list[tuple[str, str, Any, Callable[[Tensor], Tensor] | None, str]] = [
        ("median", "Median.aggregate(x)", Median.aggregate, vg.Median(f), ""),
        ("trimmed mean", "TrimmedMean.aggregate(x, f=f)", partial(TrimmedMean.aggregate, f=f), vg.TrimmedMean(f), ""),
        (
            "Multi-Krum",
            "MultiKrum.aggregate(x, n=n, f=f, m=n-f-2)",
            partial(MultiKrum.aggregate, n=n, f=f, m=n - f - 2),
            vg.MultiKrum(f),
            "by default m = n - 2f - 3",
        ),
        ("Bulyan", "Bulyan.aggregate(x, n=n, f=q)", partial(Bulyan.aggregate, n=n, f=q), None, trims),
        (
            "geometric median",
            "GeometricMedian.aggregate(x, n=n, f=f)",
            partial(GeometricMedian.aggregate, n=n, f=f),
            vg.GeometricMedian(f),
            "",
        ),
    ]
    if n <= 20:
        brute = partial(Brute.aggregate, n=n, f=f)
        rows.append(("MDA", "Brute.aggregate(x, n=n, f=f)", brute, *_first(f)))
    for rule, code, call, ours, note in rows:
        yield Entry(rule, "krum", code, call, ours, note=note)


class Round:
    """A round of a Flower strategy on given vectors: replies as its server gets them, arrays still as bytes."""

    def __init__(self, strategy: Any, n: int) -> None:
        self.strategy, self.nodes = strategy, list(range(1, n + 1))

    def prepare(self, x: Tensor) -> list[Any]:
        from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

        sent = ArrayRecord({"w": torch.zeros(x.shape[1])})
        messages = list(self.strategy.configure_train(1, sent, ConfigRecord(), _grid(self.nodes)))
        messages.sort(key=lambda message: message.metadata.dst_node_id)
        contents = [
            RecordDict({"arrays": ArrayRecord({"w": row.clone()}), "metrics": MetricRecord({"num-examples": 1})})
            for row in x
        ]
        return [Message(what, reply_to=to) for what, to in zip(contents, messages, strict=True)]

    def call(self, replies: list[Any]) -> Any:
        return self.strategy.aggregate_train(1, replies)[0]

    @staticmethod
    def read(record: Any) -> Tensor:
        if record is None:
            raise ValueError("the round gave no model")
        [array] = record.to_numpy_ndarrays()
        return torch.from_numpy(np.array(array))


def _grid(nodes: list[int]) -> Any:
    """Flower's view of who is there; it delivers nothing."""
    from flwr.serverapp import Grid

    class Nodes(Grid):
        def get_node_ids(self) -> Iterable[int]:
            return nodes

        def set_run(self, run: Any) -> None: ...
        @property
        def run(self) -> Any: ...
        def create_message(self, *_: Any) -> Any: ...
        def push_messages(self, messages: Any) -> Any: ...
        def pull_messages(self, message_ids: Any) -> Any: ...
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any: ...

    return Nodes()


def _flower(n: int, f: int, q: int) -> Iterator[Entry]:
    from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, MultiKrum
    from flwr.supercore.task_identity import TaskIdentity

    from varangian.engines.flower import RobustStrategy

    logging.getLogger("flwr").setLevel(logging.ERROR)
    for name in ("_run_id", "_task_id", "_node_id"):  # Flower makes messages only inside a run
        setattr(TaskIdentity, name, 1)
    asked: dict[str, Any] = {"fraction_evaluate": 0.0, "min_train_nodes": n, "min_available_nodes": n}
    trimming = (f + 0.5) / n  # a share, of which int(share n) go at each end
    rows = (
        ("median", "FedMedian()", FedMedian(**asked), vg.Median(f), ""),
        ("trimmed mean", "FedTrimmedAvg(beta=f/n)", FedTrimmedAvg(**asked, beta=trimming), vg.TrimmedMean(f), ""),
        (
            "Multi-Krum",
            "MultiKrum(f, n-f-2)",
            MultiKrum(**asked, num_malicious_nodes=f, num_nodes_to_select=n - f - 2),
            vg.MultiKrum(f),
            "",
        ),
        (
            "Bulyan",
            "Bulyan(q)",
            Bulyan(**asked, num_malicious_nodes=q),
            None,
            "the n - 2q best of one Multi-Krum, not n - 2q rounds of it",
        ),
    )
    for rule, code, strategy, ours, note in rows:
        found = Round(strategy, n)
        yield Entry(rule, "flwr", f"{code}.aggregate_train", found.call, ours, found.prepare, Round.read, note)
    for name, rule in (("median", vg.Median(f)), ("trimmed mean", vg.TrimmedMean(f)), ("Multi-Krum", vg.MultiKrum(f))):
        found = Round(RobustStrategy(rule, fraction_evaluate=0.0, min_train_nodes=n, min_available_nodes=n), n)
        yield Entry(
            name, f"{OURS} in flwr", f"RobustStrategy(vg.{type(rule).__name__}(f)).aggregate_train",
            found.call, rule, found.prepare, Round.read,
        )  # fmt: skip


def _numpy(n: int, f: int, q: int) -> Iterator[Entry]:
    def trimmed(x: np.ndarray) -> np.ndarray:
        return np.partition(x, (f, n - f - 1), axis=0)[f : n - f].mean(axis=0)

    yield Entry("median", "numpy", "np.median(x, axis=0)", partial(np.median, axis=0), vg.Median(f), _array)
    yield Entry("trimmed mean", "numpy", "np.partition, mean", trimmed, vg.TrimmedMean(f), _array)


def _torch(n: int, f: int, q: int) -> Iterator[Entry]:
    note, even = ("", "mid") if n % 2 else ("lower of the two middle values", "lower")
    yield Entry("mean", "torch", "x.mean(0)", lambda x: x.mean(0), lambda x: x.double().mean(0).float())
    ours = vg.Median(f, even=even)
    yield Entry("median", "torch", "x.median(0).values", lambda x: x.median(0).values, ours, note=note)
    yield Entry(
        "trimmed mean", "torch", "x.sort(0).values[f:n-f].mean(0)",
        lambda x: x.sort(0).values[f : n - f].mean(0), vg.TrimmedMean(f),
    )  # fmt: skip


_MADE: dict[str, tuple[str, Callable[[int, int, int], Iterator[Entry]]]] = {
    "torch": ("torch", _torch),
    "numpy": ("numpy", _numpy),
    OURS: ("varangian", _varangian),
    "byzfl": ("byzfl", _byzfl),
    "byzpy": ("byzpy", _byzpy),
    "krum": ("krum", _krum),
    "flwr": ("flwr", _flower),
}


def missing() -> list[str]:
    """The libraries of the comparison that are not installed here."""
    return [name for name, (module, _) in _MADE.items() if importlib.util.find_spec(module) is None]


def entries(n: int, f: int, q: int, libraries: Iterable[str] = LIBRARIES) -> list[Entry]:
    """All entries of these libraries, where installed, at n vectors: for f Byzantine ones, and Bulyan for q."""
    absent = missing()
    return [entry for name in libraries if name not in absent for entry in _MADE[name][1](n, f, q)]
