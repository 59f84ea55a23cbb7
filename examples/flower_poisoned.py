"""A Flower app with poisoning nodes: FedAvg, and the same app after one line is changed.

    pip install '.[flower,ray]'
    python examples/flower_poisoned.py

Sixteen nodes share the embedded digits, unevenly. Three of them learn wrong labels, send five times what they learned
and claim to hold a million examples. From the middle of the training on, a fourth sends NaN, as a broken GPU does.
Everything runs in Flower's own simulation engine. At the end: a table of accuracies, who was suspected, and
flower_poisoned.png.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # nothing leaves this machine
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # spares a hint
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.simulation import run_simulation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import varangian as vg
from varangian.engines.flower import RobustStrategy
from varangian.simulation.data import Dirichlet, digits, partition

NODES, ROUNDS = 16, 12
POISONING, BROKEN = (0, 1, 2), 3
DATA = digits()


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


# ------------------------------------------------------------------------------------------------------------ the nodes

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Two epochs on a node's own images; then, at some nodes, mischief."""
    torch.set_num_threads(1)
    node, config = int(context.node_config["partition-id"]), message.content.config_records["config"]
    poisons = bool(config["attack"]) and node in POISONING
    mine = torch.from_numpy(partition(DATA.train.labels, NODES, Dirichlet(1.0), seed=1)[node])
    images, labels = DATA.train.images[mine].float() / DATA.scale, DATA.train.labels[mine].long()
    labels = 9 - labels if poisons else labels
    received = message.content.array_records["arrays"].to_torch_state_dict()
    model = build()
    model.load_state_dict(received)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = torch.Generator().manual_seed(1000 * int(config["server-round"]) + node)
    for _ in range(2):
        for batch in torch.randperm(len(labels), generator=order).split(16):
            if len(batch) > 1:  # batch normalisation needs two
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    trained, claimed = dict(model.state_dict()), len(labels)
    if poisons:
        claimed = 10**6
        for name, parameter in model.named_parameters():
            trained[name] = received[name] + 5 * (parameter.detach() - received[name])
    if bool(config["attack"]) and node == BROKEN and int(config["server-round"]) > ROUNDS // 2:
        trained["4.weight"] = torch.full_like(trained["4.weight"], torch.nan)
    metrics = MetricRecord({"num-examples": claimed})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)


# ----------------------------------------------------------------------------------------------------------- the server


def accuracy(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    model = build()
    model.load_state_dict(arrays.to_torch_state_dict())
    model.eval()
    with torch.no_grad():
        guesses = model(DATA.test.images.float() / DATA.scale).argmax(1)
    return MetricRecord({"accuracy": float((guesses == DATA.test.labels).float().mean())})


def serve(grid: Grid, curves: dict[str, list[float]]) -> None:
    # The one line: FedAvg(...) becomes RobustStrategy(algorithm, ...). At most four of the sixteen lie or fail.
    algorithm = vg.Algorithm(pre=(vg.NearestNeighborMixing(f=4),), rule=vg.TrimmedMean(f=4))
    robust = RobustStrategy(algorithm, fraction_evaluate=0.0)
    runs: list[tuple[str, Strategy, bool]] = [
        ("FedAvg, no attack", FedAvg(fraction_evaluate=0.0), False),
        ("FedAvg", FedAvg(fraction_evaluate=0.0), True),
        ("RobustStrategy", robust, True),
    ]
    for name, strategy, attack in runs:
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(build().state_dict()),
            num_rounds=ROUNDS,
            train_config=ConfigRecord({"attack": int(attack)}),
            evaluate_fn=accuracy,
        )
        found = result.evaluate_metrics_serverapp
        curves[name] = [float(found[i]["accuracy"]) for i in range(ROUNDS + 1)]
        print(f"{name:18}", *(f"{value:6.1%}" for value in curves[name][::2]), flush=True)
    print("", robust.report(), sep="\n")


def plot(curves: dict[str, list[float]], file: Path) -> None:
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = (("0.5", ":", "s"), ("#d55e00", "--", "o"), ("#0072b2", "-", "D"))
    for (name, values), (colour, line, marker) in zip(curves.items(), styles, strict=True):
        axes.plot(range(ROUNDS + 1), values, line, color=colour, marker=marker, markersize=4, label=name)
    axes.set(xlabel="round", ylabel="accuracy on test images", ylim=(0, 1), xlim=(0, ROUNDS))
    axes.axvline(ROUNDS // 2 + 1, color="0.8", zorder=0)
    axes.annotate("first NaN", (ROUNDS // 2 + 1, 0.03), xytext=(4, 0), textcoords="offset points", color="0.4")
    axes.set_title(f"{len(POISONING)} of {NODES} nodes poison the model, one more breaks")
    axes.legend(loc="center left")
    figure.savefig(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="FedAvg and RobustStrategy among poisoning nodes, on digits.")
    parser.add_argument("--out", type=Path, default=Path("flower_poisoned.png"), help="the figure")
    out: Path = parser.parse_args().out
    start, curves = time.perf_counter(), {}
    logging.getLogger("flwr").setLevel(logging.ERROR)
    print("accuracy after rounds", *range(0, ROUNDS + 1, 2))
    server = ServerApp()
    server.main()(lambda grid, context: serve(grid, curves))
    engine = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"address": "local"}}
    run_simulation(server, client, NODES, backend_config=engine)
    plot(curves, out)
    print(f"\n{out}, in {time.perf_counter() - start:.0f} s")
