"""How many of those that a round asks may be Byzantine."""

from __future__ import annotations

import math


def byzantine_among(sampled: int, nodes: int, byzantine: int, risk: float = 1e-6) -> int:
    """The least f for rounds that ask some of the nodes, chosen at random: more than f Byzantine ones are among those
    asked with probability at most ``risk``, in each round.

    The number of Byzantine nodes among those asked is hypergeometric: where a tenth of all nodes is Byzantine, far more
    than a tenth of a small round may be.

    Args:
        sampled: how many nodes a round asks.
        nodes: how many there are.
        byzantine: how many of them may be Byzantine.
        risk: per round, in [0, 1).

    Example:
        >>> byzantine_among(sampled=20, nodes=100, byzantine=10)
        8
    """
    if not 0 <= byzantine <= nodes or not 0 <= sampled <= nodes or not 0 <= risk < 1:
        raise ValueError(
            "byzantine_among needs sampled and byzantine from 0 to nodes and a risk in [0, 1), "
            f"got {sampled}, {byzantine}, {nodes} and {risk}."
        )
    ways, total = 0, math.comb(nodes, sampled)
    for f in range(min(sampled, byzantine), 0, -1):
        ways += math.comb(byzantine, f) * math.comb(nodes - byzantine, sampled - f)
        if ways / total > risk:
            return f
    return 0


def quarter(n: int) -> int:
    return max(1, n // 4)
