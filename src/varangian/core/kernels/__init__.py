"""Passes over [n, d] at the speed of memory: the only code that knows how numbers lie in it.

Loops over n x n numbers (``core/geometry.py``, ``core/rules/search.py``, ``core/rules/central.py``) are compiled by the
same ``runtime.jit``, with the same options, but stand beside the rule that they are a part of: they are its definition,
and Numba's cache on disk looks at the file of a function only, so that one compiled function calls no other file's.

Every function takes torch tensors and chooses by device and dtype: Numba kernels for float32 and float64 in main
memory, the same kernels on exactly upcast panels of columns for the half types, plain torch operations elsewhere.

Three ideas carry the CPU kernels:
  - distances are summed from differences, never from a Gram matrix: nothing cancels, no centre is needed, and one
    subtraction more per product still beats a matrix product, since each tile of 4 x 4 rows stays in registers;
  - a column of n values is sorted by a network of min and max, on integers that sort like the floats (no NaN semantics
    stand in the way), a register's width of columns at a time: the network is emitted for this n and these ranks, depth
    first, so that values stay in registers. Where that is not worth compiling, the network walks over blocks that fit
    in cache;
  - sums run in float64 and are rounded once.

Threads are torch's: ``torch.set_num_threads`` governs both. Kernels hold no lock and share no pool with Numba, so they
may be called from any number of threads. What is summed over columns is summed in an order that does not depend on
them.
"""

from .columns import column_statistic, mean_and_std, network, weighted_panel, weighted_rows, zeros_like_row
from .distances import inner_products, norms, squared_around, squared_distances, squared_distances_to, squared_norms
from .runtime import (
    cache_folders,
    contiguous,
    eager,
    exclusive_threads,
    in_threads,
    is_native,
    own_threads,
    threads,
    torch_threads,
)
from .sizes import kept_mean, kept_sums, order_statistic, stretch_of
from .workers import blend, gather_images, send_rows

__all__ = [
    "blend",
    "cache_folders",
    "column_statistic",
    "contiguous",
    "eager",
    "exclusive_threads",
    "gather_images",
    "in_threads",
    "inner_products",
    "is_native",
    "kept_mean",
    "kept_sums",
    "mean_and_std",
    "network",
    "norms",
    "order_statistic",
    "own_threads",
    "send_rows",
    "squared_around",
    "squared_distances",
    "squared_distances_to",
    "squared_norms",
    "stretch_of",
    "threads",
    "torch_threads",
    "weighted_panel",
    "weighted_rows",
    "zeros_like_row",
]
