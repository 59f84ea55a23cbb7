"""How far runs and sweeps have come, read from their folders while others write there. Nothing is written or locked."""

from __future__ import annotations

from .seen import RunSeen, SweepSeen, View, Watcher

__all__ = ["RunSeen", "SweepSeen", "View", "Watcher"]
