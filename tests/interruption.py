"""What the tests of interrupted runs share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import varangian as vg
from varangian.simulation.data import Dataset


def left_by(folder: Path | None) -> dict[str, Any]:
    """All that a complete run comes to but its time: tables and parameters by their bytes, buffers, the result."""
    assert folder is not None
    state = torch.load(folder / "state.pt", weights_only=True)
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    return {
        "metrics": (folder / "metrics.csv").read_bytes(),
        "evaluations": (folder / "evaluations.csv").read_bytes(),
        "step": state["step"],
        "parameters": state["parameters"].numpy().tobytes(),
        "buffers": {name: b.numpy().tobytes() for name, b in state["buffers"].items()},
        "result": result,
    }


def stop_at(step: int) -> Callable[[int, Any], None]:
    """Progress that presses Ctrl-C after a step."""

    def progress(done: int, newest: Any) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def interrupt(
    e: vg.Experiment, out: Path, step: int, dataset: Dataset | None = None, checkpoint_every: float = math.inf
) -> Path:
    """Runs up to a step and leaves it there; the folder."""
    with pytest.raises(KeyboardInterrupt):
        vg.run(e, out, dataset, progress=stop_at(step), checkpoint_every=checkpoint_every)
    return out / f"{e.name}-{e.digest}"
