"""One step of a run again: all n vectors, and why the server answered what it did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.algorithm import Algorithm
from ..core.checks import Refused, cut, printable
from ..core.explanation import Explanation, explain
from ..core.references import importing
from ..simulation.clients import Round
from ..simulation.metrics import Measures
from . import folders
from .building import build, computing, handed, open_dataset
from .environment import environment
from .experiment import Experiment, moved
from .results import settings_of
from .running import Progress, check_place, same_data


@dataclass(frozen=True, eq=False)
class Replay:
    """A step rebuilt. ``str()`` of it is a table.

    Attributes:
        experiment: whose step it is.
        step: which.
        vectors: [n, d], what the server received: honest rows first, Byzantine ones last.
        explanation: what it made of them; None where it refused them.
        refused: why it refused them, or None.
        measures: the row of metrics.csv, computed again; None where there is none.
        agrees: whether that row is the one in the folder, to the last digit; None where the folder has none.
        apart: the greatest difference of a measure that both rows have, as a part of its size; None where they agree or
            there is nothing to compare.
        elsewhere: in what this machine differs from those where the run came to the step, as far as the folder says it.
    """

    experiment: Experiment
    step: int
    vectors: Tensor
    explanation: Explanation | None
    refused: str | None
    measures: Measures | None
    agrees: bool | None
    apart: float | None = None
    elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        e = self.experiment
        h, round = self.honest, self.round
        who = f"all {e.workers} vectors are honest"
        if h < e.workers:
            who = f"vectors 0 to {h - 1} are honest, {h} to {e.workers - 1} are of {e.attack}{self._differ()}"
        if round is not None:
            who += f"; they are, in this order, of {'workers' if e.clients is None else 'clients'} "
            who += ", ".join(map(str, round.clients.tolist()))
        record = "the folder holds no row of this step to compare with"
        if self.agrees is not None:
            record = (
                "its measures are those of the folder" if self.agrees else "its measures ARE NOT those of the folder"
            )
            if self.apart is not None and self.elsewhere:
                record += (
                    f": they are apart by up to {self.apart:.1g} of their size, and the folder was made elsewhere "
                    f"({'; '.join(self.elsewhere)})"
                )
        what = str(self.explanation) if self.refused is None else f"refused: {self.refused}"
        return f"step {self.step}: {who}; {record}\n{what}"

    @property
    def round(self) -> Round | None:
        """Who took part, in the order of the vectors, where that is not the same in every step; else None."""
        people = self.experiment.population()
        return None if people is None else people.round(self.experiment.seed, self.step)

    @property
    def honest(self) -> int:
        """How many of the vectors, the first, are honest."""
        round = self.round
        return self.experiment.honest if round is None else len(round.honest)

    def _differ(self) -> str:
        """How far attackers are apart that do not all send the same, beside honest workers."""
        row = self.measures
        if row is None or not row.attack_deviation or row.honest_deviation is None:
            return ""
        return f", a deviation of {row.attack_deviation:.3g} from each other (honest ones: {row.honest_deviation:.3g})"


def replay(
    folder: str | Path,
    step: int,
    dataset: Any = None,
    *,
    model: Any = None,
    loss: Any = None,
    metrics: Any = None,
    data_folder: str | Path | None = None,
    progress: Progress | None = None,
    trust: bool = False,
    device: str | torch.device | None = None,
) -> Replay:
    """Rebuilds all n vectors of one step of a kept run and explains the decision.

    Goes on from the nearest usable checkpoint at or before the step, else from the start; writes nothing.

    Args:
        folder: of the run, complete or not.
        step: from 0.
        dataset: the data, if at hand; else it is opened.
        model, loss, metrics: what was handed over to :func:`run`, and no text can name.
        data_folder: where its files are.
        progress: called after each step that is done again.
        trust: whether code of somebody's own that the folder names may be imported.
        device: where to compute, if not where the settings say.

    Raises:
        ValueError: the folder holds no run, the run never came to that step, or it was made with other data or other
            code of somebody's own, or with such that may not be imported; or its device is not here and no other is
            named.
        DataError: a data file is missing or corrupt.

    Example:
        >>> import tempfile
        >>> from varangian import Experiment, run
        >>> with tempfile.TemporaryDirectory() as out:
        ...     kept = run(Experiment(rule="median", attack="nan", steps=3, workers=11, byzantine=2), out)
        ...     again = replay(kept.folder, step=2)
        >>> again.agrees, [int(i) for i in again.explanation.suspicion.argsort(kind="stable")[-2:]]
        (True, [9, 10])
    """
    folder = Path(folder).expanduser()
    e = settings_of(folder, trust)
    if not 0 <= step < e.steps:
        raise ValueError(f"{folder}: step must lie between 0 and {e.steps - 1}, got {step}.")
    place = None if device is None else str(device)
    check_place(folder, e, place)
    with importing(trust):
        asked, given = handed(e, model, loss, metrics)
    dataset = same_data(folder, e, dataset, data_folder, asked, given)
    dataset = open_dataset(e, data_folder) if dataset is None else dataset
    here = e if place is None else moved(e, place)
    with computing(here):
        simulation, _ = build(here, dataset, given)
        folders.nearest(folder, e.digest, step, simulation)
        previous = refused = row = None
        while simulation.steps_done <= step and refused is None:
            if simulation.diverged:
                raise ValueError(
                    f"{folder}: the run ended before step {simulation.steps_done}: its parameters diverged."
                )
            previous = simulation.state.previous
            try:
                row = simulation.step()
            except Refused as error:
                if error is not simulation.refused:
                    raise
                refused, row = str(error), None
            if progress is not None:
                progress(simulation.steps_done, None)
        if refused is not None and simulation.steps_done < step:
            raise ValueError(f"{folder}: the run ended at step {simulation.steps_done}: {refused}")
        vectors = simulation.vectors.clone()
        explanation = None
        if refused is None:
            admitted = simulation.admitted
            explanation = explain(
                vectors,
                Algorithm(pre=admitted.pre, rule=admitted.rule),
                previous,
                rows=admitted.shown(simulation.order_at(step)),
                step=step,
                seed=simulation.state.seed,
                weights=simulation.weights,
            )
        elsewhere = _elsewhere(folder, step, environment(here.device))
    recorded = _recorded(folder / folders.METRICS, step)
    agrees = None if recorded is None or row is None else recorded == row.row()
    apart = None if recorded is None or row is None or agrees else _apart(recorded, row.row())
    return Replay(e, step, vectors, explanation, refused, row, agrees, apart, elsewhere)


def _apart(recorded: list[str], computed: list[str]) -> float:
    """The greatest difference of two numbers of two rows, as a part of the greater; infinity where one is none."""
    worst = 0.0 if len(recorded) == len(computed) else math.inf
    for one, other in zip(recorded, computed, strict=False):
        if one != other:
            try:
                a, b = float(one), float(other)
            except ValueError:
                return math.inf
            size = max(abs(a), abs(b))
            worst = max(worst, abs(a - b) / size if math.isfinite(a) and math.isfinite(b) and size else math.inf)
    return worst


def _elsewhere(folder: Path, step: int, now: Mapping[str, object]) -> tuple[str, ...]:
    """In what this machine differs from those where the run came to the step."""
    found: dict[str, None] = {}
    for session in folders.sessions_of(folder):
        began = session.get("from_step")
        if isinstance(began, int) and began <= step:
            found |= dict.fromkeys(cut(printable(line)) for line in folders.changes(session, now))
    return tuple(found)


def _recorded(path: Path, step: int) -> list[str] | None:
    """The row of a step in metrics.csv."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == step + 1:
                    return line.rstrip("\n").split(",") if line.endswith("\n") else None
    except (OSError, UnicodeDecodeError):
        pass
    return None
