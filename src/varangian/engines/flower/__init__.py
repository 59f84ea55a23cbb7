"""The same algorithm under Flower: a strategy for the server, a mod for the clients.

A node trains on its own data and sends a model back. What is aggregated is its *update*, received minus sent, and

    model <- model + learning_rate * server( F( pre( worker(update_1), ..., worker(update_n) ) ) )

so an update stands where the paper has a gradient, with the sign turned. The worker half runs at the server, which
keeps a memory per node, or in the nodes, by :func:`worker_mod`.

Letters as in ``algorithm.py``, of one round: n updates are aggregated, at most f of them are Byzantine.
"""

from __future__ import annotations

try:
    import flwr.app
    import flwr.serverapp.strategy  # noqa: F401
except ImportError:
    raise ImportError(
        "varangian.engines.flower needs Flower (flwr >= 1.22): pip install 'varangian[flower]'."
    ) from None

from ...core.history import Report, Round, Standing
from .sampling import byzantine_among
from .strategy import RobustStrategy
from .worker import worker_mod

__all__ = ["Report", "RobustStrategy", "Round", "Standing", "byzantine_among", "worker_mod"]
