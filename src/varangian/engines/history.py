"""Who was rejected, how often, and how suspicious each rank is: kept over the last steps, the same on all ranks."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..core.checks import whole

logger = logging.getLogger("varangian")

NEGLIGIBLE = 0.1  # of an equal share: whose weight is less was rejected
FAR = 3.0  # usual distances from the aggregate: who is further was rejected, by a rule that gives no weights
OFTEN = 0.9  # of the steps: whoever is rejected so often is named, if the rule does not reject everybody as often
SUSPICIOUS = 0.5  # twice the usual distance: whoever is further so often is named too, though it may have some weight


@dataclass(frozen=True)
class RankReport:
    """What became of one rank's vectors.

    Attributes:
        rank: its number in the process group.
        host: the machine that it runs on.
        rejected: in how many of all steps it was not finite, or had next to no weight: under a tenth of an equal share.
        nonfinite: in how many of all steps it sent NaN or infinity.
        recently_rejected: as rejected, of the last steps.
        recently_nonfinite: as nonfinite, of the last steps.
        weight: its mean share of the aggregate over the last steps; NaN for rules that give no weights.
        suspicion: the mean over the last steps of 1 - usual distance / distance from the aggregate, 0 within the usual
            (median) distance, and 1 for vectors that are not finite.
    """

    rank: int
    host: str
    rejected: int
    nonfinite: int
    recently_rejected: int
    recently_nonfinite: int
    weight: float
    suspicion: float


@dataclass(frozen=True, eq=False)
class Report:
    """What became of all ranks' vectors. ``str()`` of it is a table.

    Attributes:
        algorithm: what decided, as text.
        steps: steps so far, skipped ones included.
        skipped: steps without an update, since more than f ranks were not finite.
        recent: how many steps the last ones are.
        ranks: one entry a rank.
        weight: [recent, W] over time, the latest last.
        suspicion: [recent, W] over time.
        rejected: [recent, W] over time.
    """

    algorithm: str
    steps: int
    skipped: int
    recent: int
    ranks: tuple[RankReport, ...]
    weight: np.ndarray
    suspicion: np.ndarray
    rejected: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """The same in plain numbers, lists and text, as JSON and tables take them."""
        series = {name: getattr(self, name).tolist() for name in ("weight", "suspicion", "rejected")}
        return asdict(replace(self, weight=np.empty(0), suspicion=np.empty(0), rejected=np.empty(0))) | series

    def __str__(self) -> str:
        lines = [f"{self.algorithm}: {len(self.ranks)} ranks, {self.steps} steps, {self.skipped} skipped"]
        lines.append(f"rank  rejected  not finite  last {self.recent}: rejected  weight  suspicion  host")
        gap = len(f"last {self.recent}: rejected")
        for r in self.ranks:
            weight = f"{r.weight:6.3f}" if np.isfinite(r.weight) else "     -"
            lines.append(
                f"{r.rank:4}  {r.rejected:8}  {r.nonfinite:10}  {r.recently_rejected:{gap}}  {weight}  "
                f"{r.suspicion:9.3f}  {r.host}"
            )
        return "\n".join(lines)


class History:
    """Collects steps; each is one :meth:`add` or several (of parts of the vectors), then :meth:`close`.

    Args:
        title: what decides.
        hosts: the machine of each rank.
        window: how many steps "recently" is, >= 1.
        warn: called with a line about a rank that was rejected, or twice the usual distance away, in nearly all of the
            last ``window`` steps, once a window; None for no warning.
        first: whether this is the rank that speaks.
    """

    def __init__(
        self,
        title: str,
        hosts: tuple[str, ...],
        window: int,
        warn: Callable[[str], None] | None,
        first: bool = True,
    ) -> None:
        self.title, self.hosts, self.window = title, hosts, whole(self, "window", window, 1)
        self.warn, self.first = warn if first else None, first
        n = len(hosts)
        self.steps = self.skipped = 0
        self.rejected, self.nonfinite = np.zeros(n, int), np.zeros(n, int)
        self.last: deque[tuple[np.ndarray, ...]] = deque(maxlen=window)
        self._warned = np.full(n, -window)
        self.clear()

    def clear(self) -> None:
        """Forgets what was added since the last step was closed."""
        n = len(self.hosts)
        self._weight, self._squared, self._finite, self._size = np.zeros(n), np.zeros(n), np.ones(n, bool), 0

    def name_of(self, rank: int) -> str:
        return f"rank {rank} ({self.hosts[rank]})"

    def add(self, weight: np.ndarray, squared: np.ndarray, finite: np.ndarray, size: int) -> None:
        """Some coordinates of a step: [W] shares, squared distances from the aggregate, and who is finite."""
        self._weight = self._weight + size * weight
        self._squared = self._squared + squared
        self._finite = self._finite & finite
        self._size += size

    def say(self, line: str) -> None:
        """Calls ``warn``, or logs the line. What ``warn`` raises is logged: one rank alone must not stop."""
        if self.warn is None:
            if self.first:
                logger.warning("%s", line)
            return
        try:
            self.warn(line)
        except Exception:
            logger.exception("warn failed on the line: %s", line)

    def skip(self, finite: np.ndarray) -> None:
        """A step that came to nothing."""
        self.skipped += 1
        n = len(self.hosts)
        self.clear()
        self.add(np.zeros(n) if finite.all() else finite / max(finite.sum(), 1), np.zeros(n), finite, 1)
        self.close()

    def close(self) -> None:
        """The step is over: counts, and warnings."""
        n, finite = len(self.hosts), self._finite
        weight = self._weight / max(self._size, 1)
        distance = np.sqrt(np.where(finite, self._squared, np.inf))
        usual = float(np.median(distance[finite])) if finite.any() else 0.0
        suspicion = np.where(distance > usual, 1 - np.divide(usual, distance, out=np.zeros(n), where=distance > 0), 0.0)
        beyond = weight < NEGLIGIBLE / n if np.isfinite(weight).all() else distance > FAR * usual
        rejected = ~finite | beyond
        self.steps += 1
        self.rejected += rejected
        self.nonfinite += ~finite
        self.last.append((weight, suspicion, rejected, finite, suspicion > SUSPICIOUS))
        self.clear()
        if self.warn is not None and len(self.last) == self.window:
            self._warn()

    def _warn(self) -> None:
        counts, far = (np.sum([step[k] for step in self.last], axis=0) for k in (2, 4))
        nonfinite = np.sum([~step[3] for step in self.last], axis=0)
        usual = counts.mean() / self.window  # Krum rejects all but one at each step
        often = max(OFTEN, 1 - (1 - usual) / 4) * self.window
        due = self._warned + self.window <= self.steps
        for rank in np.flatnonzero(due & ((counts >= often) | (far >= OFTEN * self.window))):
            self._warned[rank] = self.steps
            what = f"rejected in {counts[rank]}" if counts[rank] >= often else f"far from the others in {far[rank]}"
            kind = f", with NaN or infinity in {nonfinite[rank]}" if nonfinite[rank] else ""
            self.say(
                f"rank {rank} {what} of the last {self.window} steps{kind} (host {self.hosts[rank]}, step {self.steps})"
            )

    def report(self) -> Report:
        n = len(self.hosts)
        weight, suspicion, rejected, finite = (
            np.array([step[k] for step in self.last]).reshape(-1, n) for k in range(4)
        )
        rejected, finite = rejected.astype(bool), finite.astype(bool)
        recent = len(self.last)
        ranks = tuple(
            RankReport(
                rank=r,
                host=self.hosts[r],
                rejected=int(self.rejected[r]),
                nonfinite=int(self.nonfinite[r]),
                recently_rejected=int(rejected[:, r].sum()),
                recently_nonfinite=int((~finite[:, r]).sum()),
                weight=float(weight[:, r].mean()) if recent else 0.0,
                suspicion=float(suspicion[:, r].mean()) if recent else 0.0,
            )
            for r in range(n)
        )
        return Report(self.title, self.steps, self.skipped, recent, ranks, weight, suspicion, rejected)


__all__ = ["RankReport", "Report"]
