"""The nodes, each known by its number."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    node, config = int(context.node_config["number"]), message.content.config_records["config"]
    w = message.content.array_records["arrays"]["w"].numpy()
    if config["number"] == 2 and node == 3:
        (Path(str(config["folder"])) / "stuck").touch()  # whoever sees this kills the whole node
        time.sleep(600)
    if config["number"] == 2 and node == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    sent = np.full_like(w, 1e38) if node == 2 else w + np.float32(node)
    metrics = MetricRecord({"num-examples": 10**node})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(sent)}), "metrics": metrics}), reply_to=message)
