"""The strategy for Flower: message by message here, and in Flower's own engines."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from cluster import only_ray

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from varangian.engines.flower import RobustStrategy, byzantine_among, worker_mod
from varangian.study.report.figures.suspects import over_time

APP = Path(__file__).parent / "flower_app"
FLOWER = tuple(int(part) for part in metadata.version("flwr").split(".")[:2])
Content = RecordDict | Error


@pytest.fixture(autouse=True)
def _a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer Flowers make messages only inside a run; what says so came with the class that is one."""
    if importlib.util.find_spec("flwr.supercore.task_identity") is None:
        return
    from flwr.supercore.task_identity import TaskIdentity

    for name, value in (("_run_id", 1), ("_task_id", 1), ("_node_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value, raising=True)


class Nodes(Grid):
    """Knows who is there; delivers nothing."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = list(ids)

    def get_node_ids(self) -> Iterable[int]:
        return self.ids

    def set_run(self, run: Any) -> None: ...
    @property
    def run(self) -> Any: ...
    def create_message(self, *_: Any, **__: Any) -> Any: ...
    def push_messages(self, messages: Iterable[Message]) -> Any: ...
    def pull_messages(self, message_ids: Iterable[str]) -> Any: ...
    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Any: ...


Model = Mapping[str, Tensor]


def model(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"fc.weight": torch.randn(3, 4, generator=g), "fc.bias": torch.randn(3, generator=g)}


def flat(tensors: Model) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in ("fc.weight", "fc.bias")])


def content(tensors: Model, examples: float = 1, metrics: Mapping[str, Any] | None = None) -> RecordDict:
    record = MetricRecord({"num-examples": examples, **(metrics or {})})
    return RecordDict({"arrays": ArrayRecord(OrderedDict(tensors)), "metrics": record})


def away(sent: Model, update: float | Tensor) -> dict[str, Tensor]:
    """The model that comes back after an update: a number, or a vector as of ``flat``."""
    if isinstance(update, Tensor):
        parts = {"fc.weight": update[:12].reshape(3, 4), "fc.bias": update[12:]}
        return {name: sent[name] + parts[name] for name in sent}
    return {name: tensor + update for name, tensor in sent.items()}


def play(
    strategy: RobustStrategy, sent: Model, replies: Mapping[int, Content], number: int = 1, asked: Iterable[int] = ()
) -> tuple[dict[str, Tensor] | None, MetricRecord | None]:
    """One round, in which nodes reply in the order of ``replies``."""
    grid = Nodes({*asked, *replies})
    messages = strategy.configure_train(number, ArrayRecord(OrderedDict(sent)), ConfigRecord(), grid)
    by_node = {m.metadata.dst_node_id: m for m in messages}
    answers = [Message(what, reply_to=by_node[node]) for node, what in replies.items()]
    arrays, metrics = strategy.aggregate_train(number, answers)
    return (None if arrays is None else dict(arrays.to_torch_state_dict())), metrics


def updates(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 15, generator=torch.Generator().manual_seed(seed))


ALGORITHMS = [
    vg.Algorithm(rule=vg.Median(f=2)),
    vg.Algorithm(rule=vg.TrimmedMean(f=2)),
    vg.Algorithm(rule=vg.Phocas(f=2)),
    vg.Algorithm(rule=vg.MeaMed(f=2)),
    vg.Algorithm(rule=vg.Krum(f=2)),
    vg.Algorithm(rule=vg.MultiKrum(f=2)),
    vg.Algorithm(rule=vg.Bulyan(f=2)),
    vg.Algorithm(rule=vg.CenteredClipping(f=2)),
    vg.Algorithm(pre=(vg.NearestNeighborMixing(f=2),), rule=vg.TrimmedMean(f=2)),
]


@pytest.mark.parametrize("momentum", ["none", "worker", "server"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_the_aggregate_is_the_algorithms(algorithm: vg.Algorithm, momentum: str) -> None:
    """Three rounds: on the same vectors, the same model, whoever replies first."""
    stage = (vg.Clip(3.0), vg.Momentum(0.9))
    algorithm = replace(algorithm, **{momentum: stage}) if momentum != "none" else algorithm
    strategy, n = RobustStrategy(algorithm, learning_rate=0.5), 11
    sent, state = model(), algorithm.init(n, 15)
    for number in (1, 2, 3):
        received = [away(sent, update) for update in updates(n, seed=number)]
        order = np.random.default_rng(number).permutation(n).tolist()
        new, _ = play(strategy, sent, {100 + i: content(received[i]) for i in order}, number)
        assert new is not None
        vectors, state = algorithm.send(torch.stack([flat(r) - flat(sent) for r in received]), state)
        update, state = algorithm.aggregate(vectors, state)
        if isinstance(algorithm.rule, vg.Median | vg.TrimmedMean | vg.Phocas | vg.MeaMed):
            assert torch.equal(flat(new), flat(sent) + 0.5 * update)  # bit for bit
        else:
            torch.testing.assert_close(flat(new), flat(sent) + 0.5 * update, rtol=1e-6, atol=1e-6)
        sent = new
    assert [r.kept for r in strategy.rounds] == ["", "", ""]


def test_claims_of_many_examples_count_for_nothing() -> None:
    sent = model()
    honest, liar = content(away(sent, 1.0)), content(away(sent, -1.0), examples=1e12)
    play_once = {1: honest, 2: content(away(sent, 2.0)), 3: liar}
    new, _ = play(RobustStrategy(vg.Median(f=1)), sent, play_once)
    assert new is not None
    torch.testing.assert_close(flat(new) - flat(sent), torch.full((15,), 1.0))
    boss = FedAvg()
    boss.configure_train(1, ArrayRecord(OrderedDict(sent)), ConfigRecord(), Nodes(play_once))
    ruled, _ = boss.aggregate_train(1, [Message(c, reply_to=_message(node)) for node, c in play_once.items()])
    assert ruled is not None
    torch.testing.assert_close(
        flat(ruled.to_torch_state_dict()) - flat(sent), torch.full((15,), -1.0)
    )  # what it is for


def _message(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type="train")


def raw(data: bytes, like: Tensor) -> Array:
    return Array(dtype=str(like.numpy().dtype), shape=tuple(like.shape), stype="numpy.ndarray", data=data)


def saved(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def zipped(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def huge(shape: str) -> bytes:
    """A header that announces far more than there is."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def odd(sent: Model, **arrays: Array) -> RecordDict:
    record = ArrayRecord(OrderedDict(sent))
    for name, array in arrays.items():
        record[name.replace("_", ".")] = array
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})


def malformed() -> dict[str, tuple[RecordDict, str]]:
    sent = model()
    weight, bias = sent["fc.weight"], sent["fc.bias"]
    nan, lost, more = dict(sent), dict(sent), dict(sent)
    nan["fc.bias"] = torch.tensor([0.0, torch.nan, 0.0])
    del lost["fc.bias"]
    more["an\nevil"] = torch.zeros(1)
    two = content(sent)
    two["again"] = ArrayRecord(OrderedDict(sent))
    return {
        "nan": (content(nan), "'fc.bias' holds NaN or infinity"),
        "inf": (content(away(sent, torch.inf)), "'fc.weight' holds NaN or infinity"),
        "overflow": (content(away(sent, 0.0) | {"fc.bias": torch.full((3,), 3.4e38)}), "an update that overflows"),
        "lacks": (content(lost), "lacks 'fc.bias' and has nothing else"),
        "has": (content(more), "lacks nothing else and has 'evil'"),
        "shape": (content(sent | {"fc.weight": weight.T.clone()}), "'fc.weight' has shape [4, 3] instead of [3, 4]"),
        "flat": (content(sent | {"fc.weight": weight.reshape(-1)}), "'fc.weight' has shape [12] instead of [3, 4]"),
        "dtype": (content(sent | {"fc.bias": bias.double()}), "'fc.bias' is float64 instead of float32"),
        "integers": (content(sent | {"fc.bias": bias.int()}), "'fc.bias' is int32 instead of float32"),
        "complex": (odd(sent, fc_bias=Array(np.zeros(3, np.complex64))), "'fc.bias' is complex64 instead of float32"),
        "text": (odd(sent, fc_bias=Array(np.array(["a", "b", "c"]))), "'fc.bias' cannot be read (TypeError)"),
        "garbage": (odd(sent, fc_bias=raw(b"\x00\xff" * 40, bias)), "'fc.bias' cannot be read (ValueError)"),
        "empty": (odd(sent, fc_bias=raw(b"", bias)), "'fc.bias' cannot be read (EOFError)"),
        "cut": (odd(sent, fc_bias=raw(saved(bias.numpy())[:-4], bias)), "'fc.bias' cannot be read (ValueError)"),
        "pickle": (odd(sent, fc_bias=raw(saved(np.array([object()] * 3), True), bias)), "'fc.bias' cannot be read (Va"),
        "zip": (odd(sent, fc_bias=raw(zipped(bias.numpy()), bias)), "'fc.bias' cannot be read (TypeError)"),
        "announced": (odd(sent, fc_bias=raw(huge("(99999999999999,)"), bias)), "'fc.bias' cannot be read ("),
        "too long": (odd(sent, fc_bias=raw(saved(np.zeros(99_999)), bias)), "'fc.bias' has 800,120 bytes instead of"),
        "serial": (odd(sent, fc_bias=Array("float32", (3,), "other", b"")), "'fc.bias' cannot be read (TypeError)"),
        "two records": (two, "2 array records, not 1"),
        "no record": (RecordDict({"metrics": MetricRecord({"num-examples": 1})}), "0 array records, not 1"),
    }


@pytest.mark.parametrize("fault", malformed())
def test_a_malformed_reply_is_dropped_and_its_node_named(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, reason = malformed()[fault]
    strategy, sent = RobustStrategy(vg.Median(f=1)), model()
    good = {node: content(away(sent, float(node))) for node in (1, 2, 3, 4)}
    if fault == "overflow":
        sent = {name: -tensor.abs() - 1e37 for name, tensor in sent.items()}
        good = {node: content(sent) for node in (1, 2, 3, 4)}
    new, metrics = play(strategy, sent, {7: bad, **good})
    assert new is not None
    assert metrics is not None
    [outcome] = strategy.rounds
    assert outcome.used == (1, 2, 3, 4)
    assert list(outcome.dropped) == [7]
    assert outcome.dropped[7].startswith(reason)
    assert f"dropped 7 ({reason}" in caplog.text
    standing = strategy.report().nodes[0]
    assert (standing.node, standing.dropped, standing.suspicion) == (7, 1, 1.0)


def test_the_other_byte_order_is_no_fault() -> None:
    strategy, sent = RobustStrategy(vg.Median(f=1)), model()
    swapped = {name: Array(tensor.numpy().astype(">f4")) for name, tensor in away(sent, 1.0).items()}
    plain = content(away(sent, 1.0))
    new, _ = play(strategy, sent, {1: RecordDict({"arrays": ArrayRecord(swapped)}), 2: plain, 3: plain})
    assert new is not None
    assert strategy.rounds[0].used == (1, 2, 3)
    torch.testing.assert_close(flat(new), flat(sent) + 1)


@pytest.mark.parametrize("value", [1e38, -1e38, 3e38])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_finite_nonsense_does_not_move_the_model(algorithm: vg.Algorithm, value: float) -> None:
    strategy, sent, n = RobustStrategy(algorithm), model(), 11
    spread = updates(n) * 0.1 + 1
    replies = {i: content(away(sent, spread[i])) for i in range(n)}
    replies |= {i: content({name: torch.full_like(t, value) for name, t in sent.items()}) for i in (3, 8)}
    for number in (1, 2, 3):
        new, _ = play(strategy, sent, replies, number)
        assert new is not None
        assert float((flat(new) - flat(sent) - 1).abs().max()) < 1
    assert {s.node for s in strategy.report().nodes[:2]} == {3, 8}


def test_a_memory_that_overflows_is_dropped_and_forgotten() -> None:
    strategy, sent = RobustStrategy(vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.Median(f=1))), model()
    good = {i: content(away(sent, 1.0)) for i in range(4)}
    bad = content({name: torch.full_like(t, 2e38) for name, t in sent.items()})
    for number in (1, 2, 3):
        play(strategy, sent, {**good, 9: bad}, number)
    assert [dict(r.dropped) for r in strategy.rounds] == [{}, {9: "its update and memory together overflow"}, {}]
    new, _ = play(strategy, sent, {**good, 9: content(away(sent, 1.0))}, 4)
    assert new is not None
    torch.testing.assert_close(flat(new), flat(sent) + 1 + 0.9 + 0.81 + 0.729)


def test_too_few_replies_keep_the_model_and_say_why(caplog: pytest.LogCaptureFixture) -> None:
    strategy, sent = RobustStrategy(vg.MultiKrum(f=2)), model()
    good = {i: content(away(sent, 1.0)) for i in range(6)}
    new, metrics = play(strategy, sent, good, asked=range(8))
    assert (new, metrics) == (None, None)
    [outcome] = strategy.rounds
    assert outcome.kept == "MultiKrum(f=2) needs n >= 7 updates, got 6."
    assert outcome.silent == {6: "no reply in time", 7: "no reply in time"}
    assert "the model is kept: MultiKrum(f=2) needs n >= 7 updates, got 6." in caplog.text
    assert strategy.report().kept == 1
    new, _ = play(strategy, sent, {**good, 6: good[0]}, 2, asked=range(8))
    assert new is not None  # and the next round goes on


def test_a_dropped_reply_was_one_of_the_f() -> None:
    """One faulty node must not stop a federation that has no node to spare: what is known to be bad is not unknown."""
    strategy, sent = RobustStrategy(vg.MultiKrum(f=2)), model()
    nan = content(away(sent, torch.nan))
    good = {i: content(away(sent, 1.0)) for i in range(6)}
    assert play(strategy, sent, {**good, 6: nan})[0] is not None
    assert (strategy.rounds[-1].f, len(strategy.rounds[-1].used)) == (1, 6)
    good |= {6: good[0], 7: good[0]}  # one to spare: f stays
    assert play(strategy, sent, {**good, 8: nan}, 2)[0] is not None
    assert (strategy.rounds[-1].f, len(strategy.rounds[-1].used)) == (2, 8)
    assert play(strategy, sent, {**good, 8: nan, 9: nan, 10: nan}, 3)[0] is None
    assert strategy.rounds[-1].kept == "3 replies had to be dropped, more than f = 2."


def test_a_kept_round_leaves_no_trace_in_the_momentum() -> None:
    algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.Median(f=1), server=(vg.Momentum(0.5),))
    sent, good = model(), {i: content(away(model(), 1.0)) for i in range(3)}
    one, other = RobustStrategy(algorithm), RobustStrategy(algorithm)
    play(one, sent, good)
    play(one, sent, {0: good[0]}, 2, asked=good)
    a, _ = play(one, sent, good, 3)
    play(other, sent, good)
    b, _ = play(other, sent, good, 2)
    assert a is not None
    assert b is not None
    assert torch.equal(flat(a), flat(b))


def test_momentum_belongs_to_a_node_and_waits_for_it() -> None:
    """Another subset of nodes each round: n is that round's, each memory its node's."""
    algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.TrimmedMean(f=1))
    strategy = RobustStrategy(algorithm)
    sent, memories = model(), torch.zeros(8, 15)
    for number, nodes in enumerate([(0, 1, 2, 3, 4), (2, 3, 4, 5), (0, 5, 6, 7, 1, 2), (0, 1, 2, 3)], 1):
        received = {i: away(sent, updates(8, number)[i]) for i in nodes}
        new, _ = play(strategy, sent, {i: content(r) for i, r in received.items()}, number)
        for i in nodes:
            memories[i] = 0.9 * memories[i] + (flat(received[i]) - flat(sent))
        expected = vg.TrimmedMean(f=1)(memories[sorted(nodes)])
        assert new is not None
        torch.testing.assert_close(flat(new), flat(sent) + expected, rtol=1e-6, atol=1e-6)
        sent = new


def test_a_new_run_starts_anew() -> None:
    algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.Median(f=1))
    strategy, sent, good = RobustStrategy(algorithm), model(), {i: content(away(model(), 1.0)) for i in range(3)}
    first, _ = play(strategy, sent, good)
    play(strategy, sent, good, 2)
    again, _ = play(strategy, sent, good)
    assert first is not None
    assert again is not None
    assert torch.equal(flat(first), flat(again))
    assert len(strategy.rounds) == 1


def test_errors_strangers_and_second_replies(caplog: pytest.LogCaptureFixture) -> None:
    strategy, sent = RobustStrategy(vg.Median(f=1)), model()
    messages = list(strategy.configure_train(1, ArrayRecord(OrderedDict(sent)), ConfigRecord(), Nodes([1, 2, 3, 4, 5])))
    by_node = {m.metadata.dst_node_id: m for m in messages}
    answers = [Message(content(away(sent, 1.0)), reply_to=by_node[i]) for i in (1, 2, 3, 4, 4)]
    answers.append(Message(Error(code=2, reason="Traceback\nboom"), reply_to=by_node[5]))
    answers.append(Message(content(away(sent, 9.0)), reply_to=_message(77)))
    arrays, _ = strategy.aggregate_train(1, answers)
    assert arrays is not None
    [outcome] = strategy.rounds
    assert outcome.used == (1, 2, 3)
    assert outcome.dropped == {4: "more than one reply"}
    assert outcome.silent == {5: "error: 'boom'"}
    assert "node 77, which was not asked" in caplog.text
    assert "Traceback" not in strategy.rounds[0].silent[5]


BUFFERED = {
    "fc.weight": torch.zeros(3, 4),
    "fc.bias": torch.zeros(3),
    "bn.running_mean": torch.zeros(2),
    "bn.running_var": torch.ones(2),
    "bn.num_batches_tracked": torch.tensor(5),
    "mask": torch.tensor([True, False]),
}


def buffered(update: float, mean: float, count: int, mask: bool = True) -> dict[str, Tensor]:
    return away({name: BUFFERED[name] for name in ("fc.weight", "fc.bias")}, update) | {
        "bn.running_mean": torch.full((2,), mean),
        "bn.running_var": torch.full((2,), 2.0),
        "bn.num_batches_tracked": torch.tensor(count),
        "mask": torch.tensor([mask, mask]),
    }


@pytest.mark.parametrize("policy", ["median", "keep"])
def test_buffers_are_no_part_of_the_vectors(policy: Any) -> None:
    """Huge honest differences in counters must not decide who is selected."""
    strategy = RobustStrategy(vg.Krum(f=1), buffers=policy)
    replies = {
        1: buffered(1.0, 1e6, 10**9),
        2: buffered(1.1, 3.0, 12),
        3: buffered(0.9, 4.0, 13, mask=False),
        4: buffered(1.2, 5.0, 14),
        5: buffered(50.0, 6.0, 15),
    }
    new, _ = play(strategy, BUFFERED, {i: content(r) for i, r in replies.items()})
    assert new is not None
    assert float(new["fc.bias"][0]) == 1.0  # node 1, whose buffers are far from all others
    if policy == "keep":
        for name in list(BUFFERED)[2:]:
            assert torch.equal(new[name], BUFFERED[name])
    else:
        assert new["bn.running_mean"].tolist() == [5.0, 5.0]
        assert (int(new["bn.num_batches_tracked"]), new["bn.num_batches_tracked"].dtype) == (14, torch.int64)
        assert (new["mask"].tolist(), new["mask"].dtype) == ([True, True], torch.bool)
    assert list(new) == list(BUFFERED)


def test_faulty_buffers() -> None:
    good = {i: content(buffered(1.0, 2.0, 7)) for i in range(3)}
    nan, far = content(buffered(1.0, torch.nan, 7)), content(buffered(1.0, 2.0, 2**60))
    strategy = RobustStrategy(vg.Median(f=1))
    play(strategy, BUFFERED, {**good, 3: nan})
    play(strategy, BUFFERED, {**good, 3: far}, 2)
    assert [dict(r.dropped) for r in strategy.rounds] == [
        {3: "'bn.running_mean' holds NaN or infinity"},
        {3: "'bn.num_batches_tracked' holds integers beyond 2^53"},
    ]
    keeping = RobustStrategy(vg.Median(f=1), buffers="keep")
    play(keeping, BUFFERED, {**good, 3: nan})
    assert keeping.rounds[0].used == (0, 1, 2, 3)  # they are not looked at
    inside = RobustStrategy(vg.Median(f=1), buffer_names=())
    new, _ = play(inside, BUFFERED, good)
    assert new is not None
    assert new["bn.running_mean"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"x": torch.tensor([1, 2])}, r"needs floating-point arrays that are trained, got \['x'\]"),
        ({"x": torch.tensor([1.0, torch.nan])}, "needs a finite model, got NaN or infinity in 'x'"),
        ({"x": torch.ones(2), "seed": torch.tensor(2**60)}, "no median of 'seed', which holds integers beyond 2"),
    ],
)
def test_models_that_cannot_be_aggregated(sent: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(RobustStrategy(vg.Median(f=1)), sent, {i: content(sent) for i in range(3)})


def test_half_precision_is_aggregated_in_single() -> None:
    sent = {"x": torch.full((1000,), 1000.0, dtype=torch.float16)}
    replies = {i: content({"x": sent["x"] + i}) for i in range(4)}
    new, _ = play(RobustStrategy(vg.Median(f=1)), sent, replies)
    assert new is not None
    assert new["x"].dtype == torch.float16
    assert set(new["x"].tolist()) == {1001.5}
    new, _ = play(RobustStrategy(vg.Median(f=1), learning_rate=1e5), sent, replies)
    assert new is None  # it would not be finite any more


def test_metrics_are_medians_whatever_is_claimed() -> None:
    strategy, sent = RobustStrategy(vg.Median(f=1)), model()
    metrics: dict[int, dict[str, Any]] = {
        1: {"loss": 1.0, "hist": [1.0, 2.0], "steps": 3},
        2: {"loss": 2.0, "hist": [2.0, 3.0], "steps": 4},
        3: {"loss": 1e300, "hist": [1e9], "steps": 5, "invented": 1.0},
        4: {"loss": 4.0, "hist": [4.0, 5.0]},
        5: {"loss": float("nan"), "hist": [5.0, 6.0], "invented": 7.0},
    }
    replies = {i: content(away(sent, 1.0), 10.0**i, m) for i, m in metrics.items()}
    _, found = play(strategy, sent, replies)
    assert found == {"loss": 3.0, "hist": [3.0, 4.0], "steps": 4.0}
    own = RobustStrategy(vg.Median(f=1), train_metrics_aggr_fn=lambda c, key: MetricRecord({key: len(c)}))
    assert play(own, sent, replies)[1] == {"num-examples": 5}


def test_evaluation_needs_enough_for_a_median(caplog: pytest.LogCaptureFixture) -> None:
    strategy = RobustStrategy(vg.Median(f=1))
    grid, arrays = Nodes([1, 2, 3, 4]), ArrayRecord(OrderedDict(model()))

    def evaluate(replies: Mapping[int, Content]) -> MetricRecord | None:
        by_node = {m.metadata.dst_node_id: m for m in strategy.configure_evaluate(1, arrays, ConfigRecord(), grid)}
        return strategy.aggregate_evaluate(1, [Message(what, reply_to=by_node[i]) for i, what in replies.items()])

    good = {i: RecordDict({"metrics": MetricRecord({"num-examples": 10**i, "accuracy": i / 10})}) for i in (1, 2, 3)}
    assert evaluate(good) == {"accuracy": 0.2}
    assert "nothing from 4 (no reply in time)" in caplog.text
    assert evaluate({1: good[1], 2: good[2], 3: Error(code=2, reason="x"), 4: Error(code=2)}) is None
    assert "needs n >= 3 nodes, got 2" in caplog.text


def test_the_order_of_suspicion() -> None:
    strategy, sent = RobustStrategy(vg.MultiKrum(f=2)), model()
    for number in range(1, 6):
        replies: dict[int, Content] = {i: content(away(sent, 1 + 0.1 * updates(9, number)[i])) for i in range(7)}
        replies |= {7: content(away(sent, -20.0)), 8: content(away(sent, torch.nan) if number > 2 else sent)}
        replies[9] = Error(code=2, reason="crashed") if number < 3 else replies[0]
        play(strategy, sent, replies, number)
    report = strategy.report()
    assert [s.node for s in report.nodes[:2]] == [7, 8]
    by_node = {s.node: s for s in report.nodes}
    assert (by_node[7].used, by_node[7].weightless, by_node[7].share) == (5, 5, 0.0)
    assert (by_node[8].used, by_node[8].dropped) == (2, 3)
    assert (by_node[9].used, by_node[9].silent, by_node[9].reason) == (3, 2, "error: 'crashed'")
    assert (by_node[7].rejected, by_node[8].rejected - by_node[8].weightless) == (5, 3)
    assert (report.rounds, report.kept, report.weight.shape) == (5, 0, (5, 10))
    lines = str(report).splitlines()
    assert lines[0] == "MultiKrum(f=2): 10 nodes, 5 rounds, 0 skipped"
    assert lines[1].split() == ["node", "used", "rejected", "dropped", "silent", "share", "suspicion", "last", "reason"]
    assert lines[2].split()[:5] == ["7", "5", "5", "-", "-"]
    assert len(lines) == 2 + 10
    kept = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (kept["nodes"][9]["node"], kept["nodes"][9]["silent"]) == (9, 2)
    assert kept["weight"][0][9] is None


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_the_report_is_what_explain_says_of_the_same_updates(algorithm: vg.Algorithm) -> None:
    strategy, n = RobustStrategy(algorithm, seed=3), 11
    sent, vectors = model(), updates(n, seed=5)
    vectors[4] *= 30
    play(strategy, sent, {i: content(away(sent, vectors[i])) for i in reversed(range(n))})
    came = torch.stack([flat(away(sent, v)) - flat(sent) for v in vectors])
    state = algorithm.init(0, 15)
    said, report = vg.explain(came, algorithm, state.previous, seed=3), strategy.report()
    np.testing.assert_array_equal(report.suspicion[0], said.suspicion)
    np.testing.assert_array_equal(report.distance[0], said.distance)
    np.testing.assert_array_equal(report.cosine[0], said.cosine)
    np.testing.assert_array_equal(report.score[0], np.full(n, np.nan) if said.score is None else said.score)
    np.testing.assert_array_equal(report.rejected[0], said.rejected)
    if said.weight is not None:
        np.testing.assert_array_equal(report.weight[0], said.weight)
    assert report.nodes[0].node == int(said.suspicion.argmax()) == 4


def test_two_poisoning_nodes_are_detected_and_drawn_as_workers_of_a_simulation_are() -> None:
    """The functions that read simulated workers and ranks read nodes, of whom some are not asked in each round."""
    strategy, sent = RobustStrategy(vg.Algorithm(rule=vg.TrimmedMean(f=2))), model()
    for number in range(1, 31):
        vectors = 0.3 * updates(11, seed=number) + 1
        vectors[2:4] *= -5
        answers = {i: content(away(sent, vectors[i])) for i in range(11) if i in (2, 3) or (i + number) % 4}
        play(strategy, sent, answers, number)
    report = strategy.report()
    found = vg.detection(report, byzantine=[2, 3], window=5)
    assert (found.precision, found.recall > 0.8, found.noun) == (1.0, True, "node")
    assert np.isnan(report.distance).any()
    assert len(over_time([("poisoning", report)]).axes) >= 1


def test_the_f_of_a_round_is_of_those_asked() -> None:
    strategy = RobustStrategy(vg.Median(f=0), f=lambda n: n // 3, fraction_train=0.5)
    sent = model()
    grid = Nodes(range(30))
    messages = list(strategy.configure_train(1, ArrayRecord(OrderedDict(sent)), ConfigRecord(), grid))
    assert len(messages) == 15
    arrays, _ = strategy.aggregate_train(1, [Message(content(away(sent, 1.0)), reply_to=m) for m in messages])
    assert arrays is not None
    assert strategy.rounds[0].f == 5


def test_the_default_is_a_drop_in_for_fedavg() -> None:
    """With no argument but FedAvg's own, in its place."""
    strategy, sent = RobustStrategy(fraction_train=1.0, min_available_nodes=4, weighted_by_key="num-examples"), model()
    assert [strategy.tolerated(n) for n in (3, 4, 8, 20)] == [1, 1, 2, 5]
    replies = {i: content(away(sent, 1 + 0.01 * updates(4)[i])) for i in range(3)} | {3: content(away(sent, 1e30))}
    new, _ = play(strategy, sent, replies)
    assert new is not None
    assert float((flat(new) - flat(sent) - 1).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": vg.MultiKrum(f=4), "min_train_nodes": 2}, r"min_train_nodes >= 11 for MultiKrum\(f=4\) .*, got 2"),
        ({"rule": vg.Median(f=1), "min_evaluate_nodes": 2}, "min_evaluate_nodes >= 3"),
        ({"rule": vg.Median(f=0), "f": -1}, "integer f >= 0, got -1"),
        ({"rule": vg.Median(f=0), "f": lambda n: n / 4}, "integer f >= 0, got 0.25"),
        ({"rule": vg.Median(f=0), "f": lambda n: n}, "that some number of nodes can survive, got 10000 of 10,000"),
        ({"rule": vg.Median(f=0), "buffers": "mean"}, 'buffers "median" or "keep", got \'mean\''),
        ({"rule": vg.Median(f=0), "learning_rate": 0.0}, "learning_rate > 0"),
        (
            {"rule": vg.Algorithm(worker=(vg.Momentum(0.9, nesterov=True),), rule=vg.Median(1))},
            "needs classical momentum",
        ),
        ({"rule": vg.FLTrust(f=1)}, "needs a root vector"),
        ({"rule": vg.Median}, r"an Algorithm or a rule, such as Median\(f=1\), got the class Median"),
        ({"rule": "median"}, "an Algorithm or a rule, .* got 'median'"),
        ({"rule": vg.Average()}, r"protects from somebody, got Average\(f=0\)"),
        ({"rule": vg.Algorithm(worker=(vg.Momentum(0.9),))}, "protects from somebody"),
        ({"rule": vg.Median(f=1), "f": True}, "integer f >= 0, got True"),
        ({"rule": vg.Median(f=1), "buffer_names": "running_mean"}, "as a list of names, got 'running_mean'"),
        ({"rule": vg.Median(f=1), "buffer_names": (b"running_mean",)}, "as a list of names"),
        ({"rule": vg.Median(f=1), "buffer_names": None}, "as a list of names, got None"),
        ({"rule": vg.Median(f=1), "buffer_names": 5}, "as a list of names, got 5"),
        ({"rule": vg.Median(f=1), "learning_rate": "0.1"}, "learning_rate > 0, got '0.1'"),
        ({"rule": vg.Median(f=1), "learning_rate": True}, "learning_rate > 0, got True"),
        ({"rule": vg.Median(f=1), "forget_after": 0}, "forget_after >= 1 or None, got 0"),
        ({"rule": vg.Median(f=1), "seed": -1}, "a?n integer seed"),
        ({"rule": vg.FoolsGold(f=3), "min_train_nodes": 4}, "min_train_nodes >= 7"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    rule = settings.pop("rule")
    with pytest.raises(ValueError, match=message):
        RobustStrategy(rule, **settings)


def test_f_zero_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="f = 0 protects from nobody"):
        RobustStrategy(vg.Median(f=0))
    with pytest.warns(UserWarning, match="f = 0 protects from nobody"):
        RobustStrategy(vg.Median(f=1), f=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_among_bad_replies_it_is_the_algorithm_on_the_good_ones(algorithm: vg.Algorithm) -> None:
    """A round without those that were dropped; where more than f were, none: nothing is remembered of it."""
    algorithm = replace(algorithm, worker=(vg.Momentum(0.9),), server=(vg.Momentum(0.5),))
    strategy, n, sent = RobustStrategy(algorithm), 12, model()
    state = algorithm.init(n, 15)
    for number, bad in enumerate([(), (3,), (0, 5, 11), (7,), (), tuple(range(n)), ()], 1):
        received = [away(sent, update) for update in updates(n, seed=number)]
        nan = content(away(sent, torch.nan))
        new, _ = play(strategy, sent, {i: nan if i in bad else content(received[i]) for i in range(n)}, number)
        if len(bad) > algorithm.rule.f:
            assert new is None
            continue
        good = [i for i in range(n) if i not in bad]
        gradients = torch.stack([flat(received[i]) - flat(sent) for i in good])
        own = replace(state, worker=tuple(None if m is None else m[good] for m in state.worker))
        vectors, own = algorithm.send(gradients, own)
        update, own = algorithm.aggregate(vectors, own)
        memory = state.worker[0]
        assert memory is not None
        assert own.worker[0] is not None
        memory[good] = own.worker[0]
        state = replace(own, worker=(memory,))
        assert new is not None
        torch.testing.assert_close(flat(new), flat(sent) + update, rtol=1e-6, atol=1e-6)
        sent = new
    assert [bool(r.kept) for r in strategy.rounds] == [False, False, True, False, False, True, False]


def test_a_bug_of_the_users_own_is_no_reason_to_keep_the_model() -> None:
    def broken(contents: list[RecordDict], key: str) -> MetricRecord:
        raise ValueError("my own bug")

    strategy = RobustStrategy(vg.Median(f=1), train_metrics_aggr_fn=broken)
    with pytest.raises(ValueError, match="my own bug"):
        play(strategy, model(), {i: content(away(model(), 1.0)) for i in range(3)})


class TestMemory:
    algorithm = vg.Algorithm(
        worker=(vg.Clip(9.0), vg.Momentum(0.9)), rule=vg.CenteredClipping(f=1), server=(vg.Momentum(0.5),)
    )

    def round(self, strategy: RobustStrategy, sent: Model, number: int, nodes: Iterable[int]) -> dict[str, Tensor]:
        seed = sum(map(int, flat(sent).mul(1e6).long().tolist())) % 1000
        new, _ = play(strategy, sent, {i: content(away(sent, updates(8, seed)[i])) for i in nodes}, number)
        assert new is not None
        return new

    def test_a_restart_goes_on_as_if_it_had_not_been(self, tmp_path: Path) -> None:
        rounds = [(0, 1, 2, 3), (2, 3, 4), (1, 2, 5), (0, 4, 5, 6), (0, 1, 2, 3)]
        once, sent = RobustStrategy(self.algorithm, seed=3), model()
        for number, nodes in enumerate(rounds, 1):
            if number == 3:
                torch.save(once.state_dict(), tmp_path / "state.pt")
                middle = sent
            sent = self.round(once, sent, number, nodes)
        again = RobustStrategy(self.algorithm)
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for number, nodes in enumerate(rounds[2:], 1):
            middle = self.round(again, middle, number, nodes)
        assert torch.equal(flat(middle), flat(sent))
        states = once.state_dict(), again.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])

    def test_what_was_saved_is_not_changed_by_what_comes(self) -> None:
        strategy = RobustStrategy(self.algorithm)
        sent = self.round(strategy, model(), 1, range(4))
        state = strategy.state_dict()
        kept = {k: v.clone() for k, v in state.items()}
        strategy.load_state_dict(state)
        self.round(strategy, sent, 1, range(4))
        assert all(torch.equal(state[k], kept[k]) for k in kept)

    def test_before_the_first_round(self) -> None:
        strategy = RobustStrategy(self.algorithm)
        strategy.load_state_dict(RobustStrategy(self.algorithm).state_dict())
        self.round(strategy, model(), 1, range(4))

    def test_a_run_after_the_one_that_was_loaded_starts_anew(self) -> None:
        strategy, sent = RobustStrategy(self.algorithm, seed=0), model()
        first = self.round(strategy, sent, 1, range(4))
        strategy.load_state_dict(strategy.state_dict())
        assert not torch.equal(flat(self.round(strategy, sent, 1, range(4))), flat(first))
        assert torch.equal(flat(self.round(strategy, sent, 1, range(4))), flat(first))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"algorithm": torch.tensor([65], dtype=torch.uint8)}, "got one of A"),
            ({"seed": None}, "a state of RobustStrategy, got one without seed"),
            ({"worker.1.2": None}, "lacks"),
            ({"worker.0.2": torch.zeros(15)}, "has"),
            ({"worker.1.2": torch.full((15,), torch.nan)}, "finite vectors, got something else in 'worker.1.2'"),
            ({"server.0": torch.zeros(3)}, "of shape"),
            ({"used.2": None}, "has"),
            ({"used.2": torch.tensor(1.7)}, "'used.2' as one number of int64, got float32"),
            ({"used.x": torch.tensor(1)}, "numbers of nodes, got x"),
            ({"step": torch.tensor(-5)}, "'step' >= 0, got -5"),
            ({"turn": torch.tensor([1, 1])}, "'turn' as one number of int64, got int64"),
            ({"algorithm": torch.tensor([65.0])}, "'algorithm' as a text in bytes"),
            ({"server.0": torch.zeros(15, dtype=torch.int64)}, "finite vectors, got something else in 'server.0'"),
            ({"worker.1.2": torch.zeros(15, dtype=torch.float64)}, "'worker.1.2' of torch.float32, got torch.float64"),
            ({"worker.1.2": [0.0]}, "needs tensors, got list in 'worker.1.2'"),
        ],
    )
    def test_states_of_something_else(self, change: dict[str, Tensor | None], message: str) -> None:
        strategy = RobustStrategy(self.algorithm)
        self.round(strategy, model(), 1, range(4))
        before = strategy.state_dict()
        state = {k: v for k, v in (before | change).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            strategy.load_state_dict(state)
        assert all(torch.equal(before[k], v) for k, v in strategy.state_dict().items())

    def test_what_is_no_state(self) -> None:
        with pytest.raises(ValueError, match="what state_dict gave, a dictionary of tensors, got nothing"):
            RobustStrategy(self.algorithm).load_state_dict(None)  # type: ignore[arg-type]

    def test_another_model(self) -> None:
        strategy = RobustStrategy(self.algorithm)
        self.round(strategy, model(), 1, range(4))
        strategy.load_state_dict(strategy.state_dict())
        sent = {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(3)}
        with pytest.raises(ValueError, match="remembers 15 trained numbers, got a model of 7"):
            strategy.configure_train(1, ArrayRecord(OrderedDict(sent)), ConfigRecord(), Nodes(range(4)))

    def test_nodes_that_are_gone_for_long_are_forgotten(self) -> None:
        algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.Median(f=1))
        strategy, sent = RobustStrategy(algorithm, forget_after=2), model()

        def known() -> set[int]:
            return {int(key.split(".")[-1]) for key in strategy.state_dict() if key.startswith("worker")}

        wanted = [{0, 1, 2, 3}, {0, 1, 2, 3, 4}, {2, 3, 4}, {2, 3, 4}]
        for number, nodes in enumerate([(0, 1, 2, 3), (2, 3, 4), (2, 3, 4), (2, 3, 4)], 1):
            sent = self.round(strategy, sent, number, nodes)
            assert known() == wanted[number - 1]
        forever = RobustStrategy(algorithm, forget_after=None)
        for number in range(1, 6):
            play(forever, model(), {i: content(model()) for i in ((0, 1, 2) if number == 1 else (3, 4, 5))}, number)
        assert len([key for key in forever.state_dict() if key.startswith("worker")]) == 6


def test_buffers_need_a_majority_too() -> None:
    """A rule that does with fewer vectors than a median of buffers: the model would be kept at every round."""
    sent = {"x": torch.zeros(4), "bn.running_mean": torch.zeros(2)}
    strategy = RobustStrategy(vg.FoolsGold(f=2))
    assert strategy.min_train_nodes == 5
    new, _ = play(
        strategy, sent, {i: content({"x": torch.randn(4), "bn.running_mean": torch.ones(2)}) for i in range(5)}
    )
    assert new is not None
    assert new["bn.running_mean"].tolist() == [1, 1]
    assert RobustStrategy(vg.FoolsGold(f=2), buffers="keep", fraction_evaluate=0).min_train_nodes < 5


def test_aggregation_comes_after_configuration() -> None:
    with pytest.raises(ValueError, match="needs configure_train before aggregate_train"):
        RobustStrategy(vg.Median(f=1)).aggregate_train(1, [])


def test_byzantine_among_a_sample() -> None:
    assert byzantine_among(10, 10, 3) == 3  # all are asked
    assert byzantine_among(10, 100, 0) == 0
    rng, f = np.random.default_rng(0), byzantine_among(10, 100, 20, risk=0.01)
    drawn = rng.hypergeometric(20, 80, 10, size=100_000)
    assert (drawn > f).mean() <= 0.01 < (drawn > f - 1).mean()
    with pytest.raises(ValueError, match="from 0 to nodes"):
        byzantine_among(11, 10, 0)


def through(mod: Any, sent: Model, received: Model, context: Context) -> dict[str, Tensor]:
    """What leaves a node whose app answers a model with another."""
    asked = Message(RecordDict({"arrays": ArrayRecord(OrderedDict(sent))}), dst_node_id=3, message_type="train")
    reply = mod(asked, context, lambda message, _: Message(content(received), reply_to=message))
    return dict(reply.content["arrays"].to_torch_state_dict())


def fresh_context() -> Context:
    return Context(run_id=1, node_id=3, node_config={}, state=RecordDict(), run_config={})


def test_the_mod_does_in_the_node_what_the_strategy_would() -> None:
    stages = (vg.Clip(2.0), vg.Momentum(0.9))
    algorithm = vg.Algorithm(worker=stages, rule=vg.MultiKrum(f=1))
    at_server, at_nodes = RobustStrategy(algorithm), RobustStrategy(replace(algorithm, worker=()))
    contexts = [fresh_context() for _ in range(6)]
    sent = model()
    for number in (1, 2, 3):
        received = [away(sent, update) for update in updates(6, number)]
        a, _ = play(at_server, sent, {i: content(r) for i, r in enumerate(received)}, number)
        left = [through(worker_mod(*stages), sent, r, c) for r, c in zip(received, contexts, strict=True)]
        b, _ = play(at_nodes, sent, {i: content(r) for i, r in enumerate(left)}, number)
        assert a is not None
        assert b is not None
        torch.testing.assert_close(flat(a), flat(b), rtol=1e-5, atol=1e-5)
        sent = a


def test_the_mod_leaves_buffers_and_other_messages_alone() -> None:
    left = through(worker_mod(vg.Momentum(0.5)), BUFFERED, buffered(1.0, 3.0, 9), fresh_context())
    assert (left["bn.running_mean"].tolist(), int(left["bn.num_batches_tracked"])) == ([3.0, 3.0], 9)
    asked = Message(RecordDict({"arrays": ArrayRecord(OrderedDict(model()))}), dst_node_id=3, message_type="evaluate")
    reply = Message(RecordDict(), reply_to=asked)
    assert worker_mod(vg.Momentum(0.5))(asked, fresh_context(), lambda *_: reply) is reply


def test_stages_and_replies_that_a_mod_cannot_use() -> None:
    with pytest.raises(ValueError, match="stages of the node alone"):
        worker_mod(vg.SharedMomentum(0.9))
    with pytest.raises(ValueError, match="classical momentum"):
        worker_mod(vg.Momentum(0.9, nesterov=True))
    for names in (None, 5, "running_mean"):
        with pytest.raises(ValueError, match=f"worker_mod needs buffer_names as a list of names, got .?{names}"):
            worker_mod(vg.Momentum(0.9), buffer_names=names)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"matches the model received: 'fc.bias' has shape \[1\]"):
        through(worker_mod(vg.Momentum(0.9)), model(), model() | {"fc.bias": torch.zeros(1)}, fresh_context())


# ------------------------------------------------------------------------------------------------- in Flower's engines

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def environment(**more: str) -> dict[str, str]:
    return os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | more


def as_simulated(at: str) -> Tensor:
    """The weights that the app must end with, by the algorithm on the vectors that its nodes send."""
    from flower_app import faulty

    w = torch.zeros(faulty.D, dtype=torch.float64)
    memories = torch.zeros(faulty.NODES, faulty.D, dtype=torch.float64)
    for number in range(1, faulty.ROUNDS + 1):
        late = at == "server" and number == 2
        nodes = [*range(faulty.HONEST), *([] if late else [9]), 13, 14]
        step = torch.stack([0.3 * (faulty.target(i) - w) for i in nodes])
        step[-2], step[-1] = 1e38 - w, -5 * step[-1]
        algorithm = replace(faulty.ALGORITHM, rule=vg.MultiKrum(f=(len(nodes) - 3) // 2))
        state = replace(algorithm.init(len(nodes), faulty.D, torch.float64), worker=(memories[nodes],))
        vectors, state = algorithm.send(step, state)
        update, state = algorithm.aggregate(vectors, state)
        [memory] = state.worker
        assert memory is not None
        memories[nodes] = memory
        w = w + update
    return w


@pytest.mark.slow
def test_in_the_simulation_engine_among_faulty_nodes(tmp_path: Path) -> None:
    """Nodes that crash, are late, send wrong shapes, NaN, infinity, 1e38, or lie, in Flower's own engine on Ray."""
    pytest.importorskip("ray")
    out = tmp_path / "found.json"
    command = [sys.executable, str(APP / "faulty.py"), str(out)]
    with only_ray():
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    for at in ("server", "node"):
        expected = as_simulated(at)
        torch.testing.assert_close(torch.tensor(found[at]["w"], dtype=torch.float64), expected, rtol=1e-9, atol=1e-9)
        assert found[at]["kept"] == [""] * 4
        assert all(0 <= loss <= 7 for loss in found[at]["loss"])
    server = found["server"]
    assert (server["used"], server["f"]) == ([11, 10, 11, 11], [4, 3, 4, 4])
    wrong = ["'w' has shape [19] instead of [20]", "'w' holds NaN or infinity", "'w' holds NaN or infinity"]
    assert server["dropped"] == [wrong] * 4
    assert [len(s) for s in server["silent"]] == [1, 2, 1, 1]
    assert "this node is broken" in server["silent"][0][0]
    assert server["silent"][1][1] == "no reply in time"
    assert "this node is broken" in server["report"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started(program: str, *arguments: str, log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of Flower's, with all that it starts, until the block ends."""
    command = [str(Path(sys.executable).parent / program), *arguments]
    with log.open("wb") as words:
        process = subprocess.Popen(
            command, env=environment(**more), stdout=words, stderr=words, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def wait_for(condition: Callable[[], bool], seconds: float, logs: Path) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            words = [f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in sorted(logs.glob("*.log"))]
            raise AssertionError("waited in vain\n" + "\n".join(words))
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.skipif(FLOWER < (1, 41), reason="the programs' options were others")
def test_under_a_superlink_a_node_is_killed_and_an_app_crashes(tmp_path: Path) -> None:
    """Flower's own programs on loopback: a SuperLink and five SuperNodes, each app in a process of its own."""
    link = f"127.0.0.1:{free_port()}"
    more = {"FLWR_HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{link}"\ninsecure = true\n'
    )
    host, _, port = link.partition(":")
    options = ["--insecure", "--disable-runtime-dependency-installation", "--host", host, "--port", port]
    with started("flower-superlink", *options, log=tmp_path / "link.log", **more):
        wait_for(lambda: "Uvicorn running" in (tmp_path / "link.log").read_text(), 60, tmp_path)
        nodes: list[subprocess.Popen[bytes]] = []
        with ExitStack() as stack:
            for i in range(5):
                options = [
                    "--insecure",
                    "--superlink",
                    link,
                    "--port",
                    str(free_port()),
                    "--node-config",
                    f"number={i}",
                ]
                log = tmp_path / f"node{i}.log"
                nodes.append(stack.enter_context(started("flower-supernode", *options, log=log, **more)))
            asked = ["run", str(APP / "deployed"), "here", "--run-config", f'folder="{tmp_path}"']
            with started("flwr", *asked, log=tmp_path / "run.log", **more) as run:
                assert run.wait(timeout=60) == 0, (tmp_path / "run.log").read_text()
            wait_for((tmp_path / "stuck").exists, 120, tmp_path)
            end_group(nodes[3])
            wait_for((tmp_path / "found.json").exists, 200, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["w"] == [3.0 + 1.0] * 10  # the medians of 0, 1, 3, 4, 1e38 and of 0, 1, 1e38
    assert found["rounds"] == [{"used": 5, "silent": 0, "kept": ""}, {"used": 3, "silent": 2, "kept": ""}]


QUARANTINE = vg.Quarantine(window=2, threshold=0.7, term=3)


def poisoned_round(number: int, hostile: Iterable[int], nodes: int = 9) -> dict[int, RecordDict]:
    sent, moved = model(), 3 + updates(nodes, seed=number)
    return {n: content(away(sent, 50.0 if n in hostile else moved[n - 1])) for n in range(1, nodes + 1)}


@pytest.mark.parametrize("lower_f", [False, True])
def test_nodes_that_poison_are_left_out_and_come_back(lower_f: bool) -> None:
    algorithm = vg.Algorithm(rule=vg.Median(f=2), quarantine=replace(QUARANTINE, lower_f=lower_f))
    strategy, alone = RobustStrategy(algorithm), RobustStrategy(vg.Median(f=2))  # which is the same for any f
    for number in range(1, 9):
        replies = poisoned_round(number, {3, 7})
        arrays, _ = play(strategy, model(), replies, number)
        last = strategy.rounds[-1]
        gone = (3, 7) if number in (3, 4, 5, 8) else ()
        assert last.excluded == gone
        assert last.used == tuple(n for n in range(1, 10) if n not in gone)
        assert last.f == (0 if lower_f and gone else 2)
        if gone:
            rest = {node: reply for node, reply in replies.items() if node not in gone}
            wanted, _ = play(alone, model(), rest, number)
            assert arrays is not None
            assert wanted is not None
            assert all(torch.equal(arrays[name], wanted[name]) for name in wanted)
            assert "in quarantine 3, 7" in str(last)
    report = strategy.report()
    assert {s.node: s.excluded for s in report.nodes} == {n: 4 if n in (3, 7) else 0 for n in range(1, 10)}
    assert "excluded" in str(report)


def test_windows_of_nodes_that_are_not_asked_stand_still_and_replies_that_are_none_count() -> None:
    strategy = RobustStrategy(vg.Algorithm(rule=vg.Median(f=1), quarantine=QUARANTINE))
    huge = 2**64 - 5  # node ids take 64 bits
    gone = []
    for number in range(1, 9):
        replies = poisoned_round(number, (), 6)
        if number % 2:  # it comes to every second round
            replies[huge] = content({"fc.weight": torch.full((3, 4), torch.nan), "fc.bias": torch.zeros(3)})
        play(strategy, model(), replies, number)
        gone.append(strategy.rounds[-1].excluded)
        assert (huge in strategy.rounds[-1].dropped) == (bool(number % 2) and not gone[-1])
    assert gone == [(), (), (), (), (huge,), (), (), ()]  # rounds 1 and 3; away in 4 to 6


@pytest.mark.parametrize("worker", [(), (vg.Momentum(0.9),)], ids=["bare", "momentum"])
def test_a_strategy_goes_on_with_its_quarantine(worker: tuple[vg.Momentum, ...]) -> None:
    algorithm = vg.Algorithm(worker=worker, rule=vg.MultiKrum(f=2), quarantine=QUARANTINE)
    whole, first, second = (RobustStrategy(algorithm, seed=1) for _ in range(3))
    for number in range(1, 13):
        wanted, _ = play(whole, model(), poisoned_round(number, {1, 2}), number)
        if number <= 4:
            play(first, model(), poisoned_round(number, {1, 2}), number)
            continue
        if number == 5:
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            second.load_state_dict(torch.load(file, weights_only=True))
        came, _ = play(second, model(), poisoned_round(number, {1, 2}), number - 4)
        assert wanted is not None
        assert came is not None
        assert all(torch.equal(came[name], wanted[name]) for name in wanted)
        assert second.rounds[-1].excluded == whole.rounds[-1].excluded


def test_a_quarantine_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="excludes at most f nodes at a time, and f is 0"):
        RobustStrategy(vg.Algorithm(rule=vg.Median(f=0), quarantine=QUARANTINE))
    strategy = RobustStrategy(vg.Algorithm(rule=vg.Median(f=2), quarantine=QUARANTINE))
    play(strategy, model(), poisoned_round(1, ()))
    state = strategy.state_dict()
    for wrong, said in (
        ({"quarantine.terms": state["quarantine.terms"] - 1}, "cannot be what this is"),
        ({"quarantine.workers": state["quarantine.workers"].flip(0)}, "cannot be what this is"),
    ):
        with pytest.raises(ValueError, match=said):
            strategy.load_state_dict(state | wrong)
    del state["quarantine.terms"]
    with pytest.raises(ValueError, match=r"got a state without quarantine\.terms"):
        strategy.load_state_dict(state)


def test_in_a_round_with_no_reply_to_spare_nobody_is_left_out() -> None:
    strategy = RobustStrategy(vg.Algorithm(rule=vg.Krum(f=2), quarantine=QUARANTINE))  # needs 7
    for number in range(1, 6):
        play(strategy, model(), poisoned_round(number, {1, 2}, 8 if number > 3 else 7), number)
    assert [r.excluded for r in strategy.rounds] == [(), (), (), (), (1,)]
