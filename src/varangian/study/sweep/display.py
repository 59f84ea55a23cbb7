"""How far a sweep has come, in a terminal."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ...core.checks import printable
from ...runs.experiment import Experiment
from .plan import Estimate, Plan

LOG = logging.getLogger("varangian.study.sweep")


class Display:
    """On a terminal, bars; elsewhere, a line now and then."""

    def __init__(self, plan: Plan, notices: Console | None, silent_end: bool = False) -> None:
        self.plan, self.console, self.silent_end = plan, notices, silent_end
        self.bars: Progress | None = None
        self.tasks: dict[int, TaskID] = {}
        self.total = plan.skipped + len(plan.todo)
        self.spoken = 0.0

    def __enter__(self) -> Display:
        if self.console is not None and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bars = Progress(*columns, console=self.console, transient=True)
            self.bars.start()
            self.overall = self.bars.add_task("runs", total=self.total, completed=self.plan.skipped, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars is not None:
            self.bars.stop()
        if self.silent_end:
            return
        failed = f", {len(self.plan.failed)} failed" if self.plan.failed else ""
        self.say(
            f"{self.plan.done} runs in {duration(self.plan.elapsed)}{failed}; {self._complete} of {self.total} "
            "complete."
        )

    @property
    def _complete(self) -> int:
        return self.plan.skipped + self.plan.done

    def say(self, text: str) -> None:
        LOG.info("%s", text)
        if self.console is not None:
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def announce(self, estimate: Estimate) -> None:
        if not self.plan.todo:
            return
        parts = [f"{self.total} runs: {self.plan.skipped} complete, {len(self.plan.todo)} to do"]
        parts += [f"{self.plan.elsewhere} of other shards"] if self.plan.elsewhere else []
        processes = f"{self.plan.jobs} process{'es' if self.plan.jobs > 1 else ''} of {self.plan.threads} thread(s)"
        processes += self._on_cards()
        when = "unknown time"
        if estimate.seconds is not None:
            when = f"about {duration(estimate.seconds)}, until {_end(estimate.seconds)}"
        self.say(f"{', '.join(parts)}; {when} with {processes} (estimated from {estimate.basis}).")

    def _on_cards(self) -> str:
        cards = self.plan.cards
        if not cards:
            return ""
        names = " and ".join(dict.fromkeys(name for _, name, _ in cards))
        return f" on {', '.join(f'cuda:{number} ({jobs})' for number, _, jobs in cards)}, {names}"

    def started(self, worker: int, experiment: Experiment) -> None:
        if self.bars is not None:
            name = experiment.name if len(experiment.name) <= 64 else "…" + experiment.name[-63:]
            if len(self.plan.cards) > 1:
                name = f"cuda:{self.plan.places[worker].number} {name}"
            self.tasks[worker] = self.bars.add_task(f"  {name}", total=experiment.steps, note="")

    def step(self, worker: int, experiment: Experiment, step: int, newest: float | None) -> None:
        if self.bars is not None and worker in self.tasks:
            note = "" if newest is None else f"accuracy {newest:.1%}"
            self.bars.update(self.tasks[worker], completed=step, note=note)

    def ended(self, worker: int) -> None:
        if self.bars is not None and worker in self.tasks:
            self.bars.remove_task(self.tasks.pop(worker))

    def refresh(self, running: int, estimate: Estimate) -> None:
        left = "" if estimate.seconds is None else f", ends in {duration(estimate.seconds)}, {_end(estimate.seconds)}"
        note = f"{running} running, {len(self.plan.todo)} to come{left}"
        if self.bars is not None:
            self.bars.update(self.overall, completed=self._complete, note=note)
        elif running and self.plan.elapsed - self.spoken > 30:
            self.spoken = self.plan.elapsed
            self.say(f"{self._complete} of {self.total} complete, {note}")


def _end(seconds: float) -> str:
    """When that is over: day of the week and time, or the date where it is far."""
    try:
        end = datetime.now().astimezone() + timedelta(seconds=seconds)
    except OverflowError:
        return "the year 10,000 and longer"
    return end.strftime("%a %H:%M" if seconds < 6 * 86_400 else "%Y-%m-%d")


def duration(seconds: float) -> str:
    """Read aloud.

    Example:
        >>> duration(42), duration(642), duration(7300)
        ('42 s', '11 min', '2 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
