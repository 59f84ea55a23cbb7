"""A Flower app whose nodes do known things, by partition: honest ones take a step of least squares in double precision.

python faulty.py OUT.json     runs it in Flower's simulation engine and writes what the server saw
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

import varangian as vg
from varangian.engines.flower import RobustStrategy, worker_mod

D, ROUNDS = 20, 4
ALGORITHM = vg.Algorithm(worker=(vg.Momentum(0.6),), rule=vg.MultiKrum(f=4))
FAULTS = {8: "crash", 9: "late", 10: "shape", 11: "nan", 12: "inf", 13: "1e38", 14: "lie"}
HONEST, NODES = 8, 15


def target(partition: int) -> torch.Tensor:
    """What a node's own data would have."""
    common = torch.linspace(-1, 1, D, dtype=torch.float64)
    own = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(partition))
    return common + 0.01 * own


def train(message: Message, context: Context) -> Message:
    partition = int(context.node_config["partition-id"])
    config = message.content.config_records["config"]
    key, record = next(iter(message.content.array_records.items()))
    weights = record.to_torch_state_dict()["w"]
    update = 0.3 * (target(partition) - weights)
    fault, examples = FAULTS.get(partition), 10
    if fault == "crash":
        raise RuntimeError("this node is broken")
    if fault == "late" and config["at"] == "server" and config["server-round"] == 2:
        time.sleep(1.5 * float(config["timeout"]))
    if fault == "lie":
        update, examples = -5 * update, 10**15
    sent = weights + update
    if fault == "shape":
        sent = sent[:-1].clone()
    elif fault in ("nan", "inf", "1e38"):
        sent = torch.full_like(sent, float(fault))
    metrics = MetricRecord({"num-examples": examples, "loss": 1e30 if fault else float(partition)})
    return Message(RecordDict({key: ArrayRecord({"w": sent}), "metrics": metrics}), reply_to=message)


def momentum_where_asked(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """The node's own momentum in the runs that are to have it there."""
    if message.content.config_records["config"]["at"] == "node":
        return worker_mod(*ALGORITHM.worker)(message, context, call_next)
    return call_next(message, context)


client = ClientApp(mods=[momentum_where_asked])
client.train()(train)


def serve(out: Path, grid: Grid) -> None:
    """Two runs one after the other: momentum at the server, then in the nodes."""
    zeros = ArrayRecord({"w": torch.zeros(D, dtype=torch.float64)})
    warm, took = RobustStrategy(ALGORITHM, fraction_evaluate=0.0), 0.0
    for _ in range(2):  # the engine takes its time for the first round
        start = time.perf_counter()
        warm.start(
            grid=grid, initial_arrays=zeros, num_rounds=1, timeout=120, train_config=ConfigRecord({"at": "warm"})
        )
        took = time.perf_counter() - start
    timeout = max(20.0, 10 * took)  # seconds: also on a busy machine, only who sleeps is late
    found = {}
    for at, algorithm in (("server", ALGORITHM), ("node", replace(ALGORITHM, worker=()))):
        strategy = RobustStrategy(algorithm, fraction_evaluate=0.0)
        result = strategy.start(
            grid=grid,
            initial_arrays=zeros,
            num_rounds=ROUNDS,
            timeout=timeout,
            train_config=ConfigRecord({"at": at, "timeout": timeout}),
        )
        found[at] = {
            "w": result.arrays.to_torch_state_dict()["w"].tolist(),
            "used": [len(r.used) for r in strategy.rounds],
            "f": [r.f for r in strategy.rounds],
            "kept": [r.kept for r in strategy.rounds],
            "dropped": [sorted(r.dropped.values()) for r in strategy.rounds],
            "silent": [sorted(r.silent.values()) for r in strategy.rounds],
            "loss": [result.train_metrics_clientapp[i]["loss"] for i in range(1, ROUNDS + 1)],
            "report": str(strategy.report()),
        }
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    server = ServerApp()
    server.main()(lambda grid, _: serve(Path(sys.argv[1]), grid))
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"address": "local", "num_cpus": 2}}
    run_simulation(server, client, NODES, backend_config=resources)
