"""What tests that start Ray share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def only_ray() -> Iterator[None]:
    """No other test with a cluster meanwhile: the address "auto" finds whatever runs on this machine."""
    fcntl = pytest.importorskip("fcntl")
    with open(Path(tempfile.gettempdir()) / "varangian-tests-ray.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
