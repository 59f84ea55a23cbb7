"""The same algorithm in real training systems. Each engine is a module of its own, imported when it is first named."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import ddp as ddp
    from . import fsdp as fsdp

ENGINES = ("ddp", "flower", "fsdp")


def __getattr__(name: str) -> ModuleType:
    if name in ENGINES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; engines: {', '.join(ENGINES)}")


def __dir__() -> list[str]:
    return [*ENGINES]
