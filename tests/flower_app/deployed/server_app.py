"""Two rounds; what came of them is left in a folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

import varangian as vg
from varangian.engines.flower import RobustStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(str(context.run_config["folder"]))
    strategy = RobustStrategy(vg.Median(f=1), fraction_evaluate=0.0, min_available_nodes=5)
    arrays, rounds, timeout = ArrayRecord({"w": Array(np.zeros(10, np.float32))}), [], 120.0
    for number in (1, 2):
        start = time.perf_counter()
        config = ConfigRecord({"folder": str(folder), "number": number})
        arrays = strategy.start(
            grid=grid, initial_arrays=arrays, num_rounds=1, timeout=timeout, train_config=config
        ).arrays
        timeout = 15 + 2 * (time.perf_counter() - start)  # all of which the second round waits
        rounds += [{"used": len(r.used), "silent": len(r.silent), "kept": r.kept} for r in strategy.rounds]
    (folder / "partial").write_text(json.dumps({"w": arrays["w"].numpy().tolist(), "rounds": rounds}))
    os.replace(folder / "partial", folder / "found.json")
