"""One step of a run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import varangian as vg
from interruption import interrupt
from varangian.runs.building import build
from varangian.simulation import data

E = vg.Experiment(
    workers=11, byzantine=2, rule="multi-krum", attack="little", steps=12, batch_size=2, evaluate_every=5, nesterov=True
)


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.digits()


def seen(e: vg.Experiment, dataset: data.Dataset, step: int) -> torch.Tensor:
    """What the server received at a step, from a simulation that was never interrupted."""
    simulation, _ = build(e, dataset)
    while simulation.steps_done <= step:
        simulation.step()
    return simulation.vectors


@pytest.mark.parametrize("place", ["worker", "server", "shared"])
@pytest.mark.parametrize("rule", ["multi-krum", "median", "centered-clipping"])
def test_the_vectors_of_a_step(place: str, rule: str, digits: data.Dataset, tmp_path: Path) -> None:
    e = replace(E, rule=rule, momentum_at=place)
    result = vg.run(e, tmp_path, digits)
    for step in (0, 7, 11):
        assert result.folder is not None
        found = vg.replay(result.folder, step, digits)
        assert torch.equal(found.vectors, seen(e, digits, step))
        assert found.agrees
        assert found.measures is not None
        assert found.measures.row() == result.measures[step].row()
        assert found.explanation is not None
        norm = found.measures.aggregate_norm
        assert float(torch.as_tensor(found.explanation.aggregate).norm()) == pytest.approx(norm, rel=1e-5)
    assert "vectors 0 to 8 are honest, 9 to 10 are of little; its measures are those of the folder" in str(found)


def test_from_the_nearest_checkpoint(digits: data.Dataset, tmp_path: Path) -> None:
    """Of a run that is not complete; steps that it has not come to yet can be looked at as well."""
    folder = interrupt(E, tmp_path, 6, digits, checkpoint_every=0)  # checkpoints of steps 5 and 6
    done: list[int] = []

    def progress(step: int, newest: Any) -> None:
        done.append(step)

    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    for step, expected in ((6, [7]), (8, [7, 8, 9]), (5, [6]), (4, [1, 2, 3, 4, 5])):
        done.clear()
        found = vg.replay(folder, step, digits, progress=progress)
        assert done == expected
        assert torch.equal(found.vectors, seen(E, digits, step))
        assert found.agrees is (None if step > 5 else True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept  # it only reads
    (folder / "checkpoint.pt").write_bytes(b"torn")
    done.clear()
    vg.replay(folder, 6, digits, progress=progress)
    assert done == [6, 7]


def test_a_step_that_the_rule_refused(digits: data.Dataset, tmp_path: Path) -> None:
    e = replace(E, rule="median", attack="nan", real_byzantine=3)
    folder = vg.run(e, tmp_path, digits).folder
    assert folder is not None
    found = vg.replay(folder, 0, digits)
    assert found.explanation is None
    assert found.refused is not None
    assert "tolerates 2 vectors with NaN or infinity, got 3" in str(found)
    assert torch.isnan(found.vectors[8:]).all()
    with pytest.raises(ValueError, match="the run ended at step 0: "):
        vg.replay(folder, 1, digits)


def test_what_there_is_nothing_of(digits: data.Dataset, tmp_path: Path) -> None:
    folder = vg.run(replace(E, rule="average", attack="nan"), tmp_path, digits).folder
    assert folder is not None
    assert vg.replay(folder, 0, digits).explanation is not None
    with pytest.raises(ValueError, match="the run ended before step 1: its parameters diverged"):
        vg.replay(folder, 1, digits)
    with pytest.raises(ValueError, match=r"step must lie between 0 and 11, got 12\."):
        vg.replay(folder, 12, digits)
    with pytest.raises(ValueError, match=r"holds no run: experiment\.json is missing"):
        vg.replay(tmp_path, 0, digits)


def test_a_record_that_was_changed_is_noticed(digits: data.Dataset, tmp_path: Path) -> None:
    folder = vg.run(E, tmp_path, digits).folder
    assert folder is not None
    lines = (folder / "metrics.csv").read_text().splitlines()
    cells = lines[4].split(",")
    cells[3] = f"{np.nextafter(float(cells[3]), 9) + 1e-7:.9g}"
    lines[4] = ",".join(cells)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert vg.replay(folder, 3, digits).agrees is False
    assert "ARE NOT" in str(vg.replay(folder, 3, digits))
    assert vg.replay(folder, 4, digits).agrees is True
