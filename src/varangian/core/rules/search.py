"""Exact searches over subsets in n x n: which n - f points have the least diameter, which the least top eigenvalue.

Points come in an order that follows the vectors (:meth:`Geometry.by_centrality`), so the answers follow them too.
"""

from __future__ import annotations

import numpy as np

from .. import numerics
from ..checks import Refused
from ..kernels.runtime import jit

NODES = 5_000_000  # of a search for a diameter, before it gives up
TIE_NODES = 20_000  # spent on choosing between subsets of one and the same diameter
TIES = 64  # equally good subsets kept, for the vectors' values to decide between


@jit
def _degrees(conflict, state, degrees):  # type: ignore[no-untyped-def]
    """How many undecided points each undecided point (state 0) conflicts with; (sum, index of the greatest)."""
    total, top = 0, 0
    for i in range(state.size):
        degrees[i] = -1
        if state[i] == 0:
            degrees[i] = 0
            for j in range(state.size):
                if state[j] == 0 and conflict[i, j]:
                    degrees[i] += 1
            total += degrees[i]
        if degrees[i] > degrees[top]:
            top = i
    return total, top


@jit
def _coverable(conflict, budget, nodes):  # type: ignore[no-untyped-def]
    """Whether removing at most ``budget`` points leaves no two in conflict: 1, 0, or -1 beyond ``nodes`` tries."""
    n = conflict.shape[0]
    states = np.zeros((n + 2, n), np.int8)  # 0 undecided, 1 removed, 2 kept
    budgets = np.zeros(n + 2, np.int64)
    pivots = np.full(n + 2, -1, np.int64)
    degrees = np.zeros(n, np.int64)
    matched = np.zeros(n, np.bool_)
    depth, tries = 0, 0
    budgets[0] = budget
    while depth >= 0:
        state = states[depth]
        if pivots[depth] >= 0:  # removed in vain: now keep it, and remove what it conflicts with
            v = pivots[depth]
            pivots[depth] = -1
            for j in range(n):
                if state[j] == 0 and conflict[v, j]:
                    state[j] = 1
                    budgets[depth] -= 1
            state[v] = 2
        dead = False
        total, top = _degrees(conflict, state, degrees)
        while True:
            most = degrees[top]
            if budgets[depth] < 0 or total > 2 * budgets[depth] * max(most, 0):
                dead = True
                break
            if most <= 0:
                return 1
            goes = -1
            if most > budgets[depth]:  # to keep it would cost more than there is
                goes = top
            else:
                for i in range(n):
                    if degrees[i] == 1:  # of a pair that conflicts with nobody else on one side, the other side goes
                        for j in range(n):
                            if state[j] == 0 and conflict[i, j]:
                                goes = j
                        break
            if goes < 0:
                break
            state[goes] = 1
            budgets[depth] -= 1
            total -= 2 * degrees[goes]
            degrees[goes] = -1
            top = 0
            for j in range(n):
                if state[j] == 0 and conflict[goes, j]:
                    degrees[j] -= 1
                if degrees[j] > degrees[top]:
                    top = j
        if not dead:  # disjoint conflicts cost one point each
            matched[:] = False
            pairs = 0
            for i in range(n):
                if state[i] == 0 and not matched[i]:
                    for j in range(i + 1, n):
                        if state[j] == 0 and not matched[j] and conflict[i, j]:
                            matched[i] = matched[j] = True
                            pairs += 1
                            break
            dead = pairs > budgets[depth]
        if dead:
            depth -= 1
            while depth >= 0 and pivots[depth] < 0:
                depth -= 1
            continue
        tries += 1
        if tries > nodes:
            return -1
        pivots[depth] = top
        states[depth + 1] = state
        states[depth + 1, top] = 1
        budgets[depth + 1] = budgets[depth] - 1
        pivots[depth + 1] = -1
        depth += 1
    return 0


@jit
def _tightest(squared, conflict, f, nodes, best, found, tie):  # type: ignore[no-untyped-def]
    """Among the (n-f)-subsets without conflict, those whose squared distances add up to least, into ``found``.

    Returns how many there are. The bound: removing a set lowers the sum by its points' sums, less the pairs inside it.
    """
    n = squared.shape[0]
    states = np.zeros((2 * n + 2, n), np.int8)
    budgets = np.zeros(2 * n + 2, np.int64)
    pivots = np.full(2 * n + 2, -1, np.int64)
    degrees = np.zeros(n, np.int64)
    sums, gains, row = np.zeros(n), np.zeros(n), np.zeros(n)
    depth, tries, count = 0, 0, 0
    budgets[0] = f
    while depth >= 0:
        state = states[depth]
        dead = False
        if pivots[depth] >= 0:  # back here: now keep the pivot
            v = pivots[depth]
            pivots[depth] = -1
            for j in range(n):
                if conflict[v, j] and state[j] != 1:
                    dead = dead or state[j] == 2
                    state[j] = 1
                    budgets[depth] -= 1
            state[v] = 2
        total = 0.0
        for i in range(n):
            sums[i] = 0.0
            if state[i] != 1:
                for j in range(n):
                    if state[j] != 1:
                        sums[i] += squared[i, j]
                total += 0.5 * sums[i]
        left = budgets[depth]
        dead = dead or left < 0
        if not dead and left > 0:
            free = 0
            for i in range(n):
                if state[i] == 0:
                    size = 0
                    for j in range(n):
                        if state[j] == 0 and j != i:
                            row[size] = squared[i, j]
                            size += 1
                    inside = 0.0
                    if size >= left - 1:
                        chosen = np.sort(row[:size])
                        for k in range(left - 1):
                            inside += chosen[k]
                    gains[free] = sums[i] - 0.5 * inside
                    free += 1
            if free < left:
                dead = True
            else:
                chosen = np.sort(gains[:free])
                bound = total
                for k in range(left):
                    bound -= chosen[free - 1 - k]
                dead = bound - tie * total > best * (1 + tie)  # the difference of large sums, where far points are left
        top = 0
        if not dead:
            edges, top = _degrees(conflict, state, degrees)
            if edges > 2 * left * max(degrees[top], 0):
                dead = True
            elif left == 0:
                if total <= best * (1 + tie):
                    if total < best * (1 - tie):
                        count = 0
                    best = min(best, total)
                    if count < found.shape[0]:
                        for i in range(n):
                            found[count, i] = state[i] != 1
                        count += 1
                dead = True
            elif degrees[top] == 0:  # nothing forces a choice: the most distant point first
                top = -1
                for i in range(n):
                    if state[i] == 0 and (top < 0 or sums[i] > sums[top]):
                        top = i
        tries += 1
        if tries > nodes and count > 0:
            return count
        if dead:
            depth -= 1
            while depth >= 0 and pivots[depth] < 0:
                depth -= 1
            continue
        pivots[depth] = top
        states[depth + 1] = state
        states[depth + 1, top] = 1
        budgets[depth + 1] = left - 1
        pivots[depth + 1] = -1
        depth += 1
    return count


def _threshold(squared: np.ndarray, size: int) -> float:
    """The least diameter, squared, of ``size`` of the points.

    It is exact: whether n - f points can be kept within a diameter is whether f points cover all pairs beyond it, which
    takes few branches since far points must go.

    Raises:
        ValueError: the search takes more than :data:`NODES` steps.
    """
    n = squared.shape[0]
    values = np.unique(np.append(squared[np.triu_indices(n, 1)], 0.0))
    low, high = 0, values.size - 1
    while low < high:
        middle = (low + high) // 2
        answer = _coverable(squared > values[middle], n - size, NODES)
        if answer < 0:
            raise _too_long(size, n)
        low, high = (low, middle) if answer else (middle + 1, high)
    return values[low]


def _too_long(size: int, n: int) -> Refused:
    return Refused(f"the least diameter of {size} among {n} vectors takes more than {NODES:,} steps to find.")


def first_of_least_diameter(squared: np.ndarray, size: int) -> np.ndarray:
    """[size] the points of the subset of least diameter that comes first in the lexicographic order of indices.

    Point after point is kept wherever those behind it can still complete the subset.

    Raises:
        ValueError: a search takes more than :data:`NODES` steps.
    """
    n = squared.shape[0]
    conflict = squared > (_threshold(squared, size) if size < n else np.inf)
    kept: list[int] = []
    free = np.arange(n)  # in conflict with nothing kept
    while len(kept) < size:
        point, free = int(free[0]), free[1:]
        behind = free[~conflict[point, free]]
        spare = behind.size - (size - len(kept) - 1)
        answer = spare >= 0
        if spare >= 0 and behind.size:
            answer = _coverable(conflict[np.ix_(behind, behind)], spare, NODES)
        if answer < 0:
            raise _too_long(size, n)
        if answer:
            kept.append(point)
            free = behind
    return np.array(kept)


def least_diameter(squared: np.ndarray, size: int) -> np.ndarray:
    """[k, n] masks of the subsets of ``size`` points with the least diameter and, of these, the least sum of squares.

    The least diameter is exact. Among very many subsets of that diameter the search for the least sum stops after
    :data:`TIE_NODES` steps (fewer where n is large).

    Raises:
        ValueError: the search takes more than :data:`NODES` steps.
    """
    n = squared.shape[0]
    if n == size:
        return np.ones((1, n), bool)
    conflict = squared > _threshold(squared, size) * (1 + numerics.TIE)
    found = np.zeros((TIES, n), bool)
    nodes = TIE_NODES * 2500 // (2500 + n * n)
    count = _tightest(squared, conflict, n - size, nodes, np.inf, found, numerics.TIE)
    return found[:count]


@jit
def _below(inner, chosen, size, bound, work):  # type: ignore[no-untyped-def]
    """Whether the scatter matrix of the chosen points has all eigenvalues under ``bound``, by Cholesky."""
    mean = np.zeros(size)
    middle = 0.0
    for a in range(size):
        for b in range(size):
            mean[a] += inner[chosen[a], chosen[b]]
        mean[a] /= size
        middle += mean[a] / size
    for a in range(size):
        for b in range(a + 1):
            value = mean[a] + mean[b] - middle - inner[chosen[a], chosen[b]]
            if a == b:
                value += bound
            for k in range(b):
                value -= work[a, k] * work[b, k]
            if a == b:
                if not value > 0:
                    return False
                work[a, a] = np.sqrt(value)
            else:
                work[a, b] = value / work[b, b]
    return True


@jit
def _top(inner, chosen, size, work):  # type: ignore[no-untyped-def]
    """The top eigenvalue of the scatter matrix of the chosen points, by bisection under its trace."""
    low, high = 0.0, 0.0
    for a in range(size):
        high += inner[chosen[a], chosen[a]]
        for b in range(size):
            high -= inner[chosen[a], chosen[b]] / size
    high = max(high, 0.0) * (1 + 1e-9)
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _below(inner, chosen, size, middle, work):
            high = middle
        else:
            low = middle
    return high


@jit
def _flattest(inner, size, found, tie):  # type: ignore[no-untyped-def]
    """Subsets of ``size`` points whose scatter has the least top eigenvalue, into ``found``; returns how many.

    A subset's top eigenvalue only grows with its points, so a prefix that is over the best one is not continued.
    """
    n = inner.shape[0]
    chosen = np.arange(size)
    work = np.zeros((n, n))
    trace = 0.0
    for i in range(n):
        trace += inner[i, i]
    best, count = 2 * trace * n + 1e-200, 0
    position = 0  # chosen[:position + 1] is the prefix to test
    while position >= 0:
        if chosen[position] > n - size + position:
            position -= 1
            if position >= 0:
                chosen[position] += 1
            continue
        if not _below(inner, chosen, position + 1, best * (1 + tie), work):
            chosen[position] += 1
        elif position + 1 < size:
            chosen[position + 1] = chosen[position] + 1
            position += 1
        else:
            value = _top(inner, chosen, size, work)
            if value < best * (1 - tie):
                count = 0
            best = min(best, value)
            if count < found.shape[0]:
                found[count] = False
                for a in range(size):
                    found[count, chosen[a]] = True
                count += 1
            chosen[position] += 1
    return count


def least_top_eigenvalue(inner: np.ndarray, size: int) -> np.ndarray:
    """[k, n] masks of the subsets of ``size`` points whose covariance has the least top eigenvalue.

    ``inner``: [n, n] inner products about any point.
    """
    found = np.zeros((TIES, inner.shape[0]), bool)
    return found[: _flattest(inner, size, found, numerics.SPECTRUM)]
