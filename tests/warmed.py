"""What processes that tests fork have imported before they are: torch, Numba and the rest that is not ours.

Numba reads its own declarations at the first kernel that a process loads, half of what a short program takes: it has.
"""

import gc
import importlib
from contextlib import suppress

for name in (
    "torch", "torch.func", "torch.distributed", "torch.distributed.fsdp", "torch.utils.serialization", "torch._dynamo",
    "numba", "click", "rich.console", "rich.progress", "rich.table", "pydantic.type_adapter", "pydantic.json_schema",
    "tomlkit", "filelock", "threadpoolctl", "platformdirs", "jinja2", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf",
):  # fmt: skip
    with suppress(ModuleNotFoundError):  # of a torch that has it not yet
        importlib.import_module(name)
target = importlib.import_module("numba.core.registry").cpu_target
target.typing_context.refresh()
target.target_context.refresh()
gc.freeze()
