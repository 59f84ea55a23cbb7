"""
Flower with poisoned nodes
==========================

In federated learning the nodes belong to others. Here eleven nodes train on digits
under Flower, in its own simulation engine. Three learn wrong labels and send five times
what they learned. ``FedAvg`` is lost at once; one line of the server app is changed,
and it is not.
"""

# %%
# The client app
# --------------
# An ordinary one: a node receives the model, trains it on its own images, and sends
# it back. Poisoned nodes do what their owners like.

import logging
import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # nothing leaves this machine
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # spares a hint

import matplotlib.pyplot as plt
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.nn.functional import cross_entropy

import varangian as vg
from varangian.engines.flower import RobustStrategy
from varangian.simulation.data import digits

logging.getLogger("flwr").setLevel(logging.ERROR)

NODES, POISONED, ROUNDS = 11, (0, 1, 2), 5
data = digits()
# In float64: the order in which nodes answer decides the last bits of FedAvg's sums.
images, labels = data.train.images.double() / 16, data.train.labels.long()


def network():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)
    return nn.Sequential(*layers).double()


client = ClientApp()


@client.train()
def train(message, context):
    torch.set_num_threads(1)
    node = context.node_config["partition-id"]
    received = message.content["arrays"].to_torch_state_dict()
    model = network()
    model.load_state_dict(received)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    x, y = images[node::NODES], labels[node::NODES]  # every eleventh image is its own
    y = 9 - y if node in POISONED else y
    for batch in torch.arange(len(y)).split(8):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    sent = model.state_dict()
    if node in POISONED:
        sent = {k: received[k] + 5 * (sent[k] - received[k]) for k in sent}
    content = {
        "arrays": ArrayRecord(sent),
        "metrics": MetricRecord({"num-examples": len(y)}),
    }
    return Message(RecordDict(content), reply_to=message)


@client.query()
def number(message, context):
    """Which node this is: Flower's own numbers of nodes are drawn at random."""
    content = {"who": MetricRecord({"number": context.node_config["partition-id"]})}
    return Message(RecordDict(content), reply_to=message)


# %%
# The server app
# --------------
# ``RobustStrategy`` takes an algorithm, and else what ``FedAvg`` takes. The algorithm
# says how many of the nodes in a round may be anything, here f = 3.

algorithm = vg.Algorithm(rule=vg.TrimmedMean(f=3))
strategies = {
    "FedAvg": FedAvg(fraction_evaluate=0.0),
    "RobustStrategy": RobustStrategy(algorithm, fraction_evaluate=0.0),
}
curves, numbers = {}, {}


def accuracy(server_round, arrays):
    model = network()
    model.load_state_dict(arrays.to_torch_state_dict())
    with torch.no_grad():
        guesses = model(data.test.images.double() / 16).argmax(1)
    return MetricRecord(
        {"accuracy": float((guesses == data.test.labels).float().mean())}
    )


server = ServerApp()


@server.main()
def serve(grid, context):
    for name, strategy in strategies.items():
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network().state_dict()),
            num_rounds=ROUNDS,
            evaluate_fn=accuracy,
        )
        found = result.evaluate_metrics_serverapp
        curves[name] = [100 * found[i]["accuracy"] for i in range(ROUNDS + 1)]
    asked = [
        Message(RecordDict(), dst_node_id=node, message_type="query")
        for node in grid.get_node_ids()
    ]
    for reply in grid.send_and_receive(asked):
        numbers[reply.metadata.src_node_id] = reply.content["who"]["number"]


# %%
# Run it
# ------
# ``run_simulation`` is Flower's: it starts eleven nodes in processes of this machine.

run_simulation(
    server,
    client,
    NODES,
    backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"address": "local", "num_cpus": 1, "log_to_driver": False},
    },
)
for name, curve in curves.items():
    print(f"{name:15}", *(f"{value:5.1f}" for value in curve))

# %%
figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
for (name, curve), colour in zip(curves.items(), ("#d55e00", "#0072b2"), strict=True):
    axes.plot(curve, color=colour, marker="o", label=name)
axes.set(xlabel="round", ylabel="accuracy on test images, %", ylim=(0, 100))
axes.set_title(
    "Three poisoned nodes of eleven:\nFedAvg is lost, the robust strategy learns"
)
axes.legend(loc="center right")
plt.show()

# %%
# Who was it?
# -----------
# ``strategy.report()`` is a table of all nodes under Flower's numbers, the most
# suspicious first. Here it is under the nodes' own. *share* is what a node weighed in
# the aggregate, 1 being an equal share; *suspicion* near 1 means far off, or turned
# round, round after round.

rows = [
    (round(standing.suspicion, 2), numbers[standing.worker], standing.share)
    for standing in strategies["RobustStrategy"].report().nodes
]
print("node   share  suspicion")
for suspicion, node, share in sorted(rows, key=lambda row: (-row[0], row[1])):
    print(f"{node:4} {share:7.2f} {suspicion:10.2f}")

# %%
# In your app
# -----------
# The client app stays as it is. In the server app one import changes:
#
# .. code-block:: python
#
#    from varangian.engines.flower import RobustStrategy as FedAvg
#
# With no algorithm given, a quarter of the nodes asked may be Byzantine, behind
# nearest-neighbour mixing, since nodes' data differ. Replies that are not finite or
# of another shape are dropped and named, claims of a million examples are ignored,
# and a round that too few survive leaves the model as it was. What a sample of nodes
# means for f, momentum of the nodes, buffers, checkpoints: :doc:`/docs/howto/flower`.
