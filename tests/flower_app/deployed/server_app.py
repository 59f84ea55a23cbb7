"""Two rounds; what came of them is left in a folder."""

from __future__ import annotations

import json
import os
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
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"w": Array(np.zeros(10, np.float32))}),
        num_rounds=2,
        timeout=25,
        train_config=ConfigRecord({"folder": str(folder)}),
    )
    rounds = [{"used": len(r.used), "silent": len(r.silent), "kept": r.kept} for r in strategy.rounds]
    (folder / "partial").write_text(json.dumps({"w": result.arrays["w"].numpy().tolist(), "rounds": rounds}))
    os.replace(folder / "partial", folder / "found.json")
