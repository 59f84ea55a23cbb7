"""What computes the numbers: versions, threads, processor, commit. A run folder records it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

from .. import __version__


def versions() -> dict[str, str]:
    """Of what computes the numbers.

    Example:
        >>> sorted(versions())
        ['numba', 'numpy', 'platform', 'python', 'torch', 'varangian']
    """
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("numba", "numpy", "torch")}
    found["varangian"] = __version__  # of the code that runs, whatever was installed before or lies elsewhere
    return found | {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}


def environment(device: str) -> dict[str, str | int | None]:
    """What the numbers of a run may depend on beside its settings, flat: versions, threads, processor, device; of a
    card also :func:`varangian.runs.cards.facts`, as they are at this moment.

    Example:
        >>> environment("cpu")["device"]
        'cpu'
    """
    from ..core import kernels  # only here: doctor asks for the rest also where these cannot be imported
    from . import cards

    found = {**versions(), "threads": kernels.threads(), "processor": processor(), "device": device, "commit": commit()}
    return found | (cards.facts(device) if device.startswith("cuda") else {})


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's name, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Of the checkout that this package runs from, "-dirty" where files differ from it; None where it is installed."""
    root = Path(__file__).parents[3]
    if Path(__file__).parents[2].name != "src" or not (root / ".git").exists():
        return None  # a repository further up would be somebody else's
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        end = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return end.stdout.strip() or None
