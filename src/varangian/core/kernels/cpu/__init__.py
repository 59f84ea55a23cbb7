"""The kernels for tensors in main memory: Numba's for float32 and float64, and for the half types on panels of columns
that are upcast exactly.

Three ideas carry them:
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

from .columns import column_statistic, mean_and_std, weighted_panel, weighted_rows, zeros_like_row
from .distances import (
    compared,
    inner_products,
    mixed_distances,
    norms,
    squared_around,
    squared_distances,
    squared_distances_to,
    squared_norms,
)
from .ranks import weighted_statistic
from .samples import relations, statistic_weights
from .sizes import kept_mean, kept_of, kept_sums
from .workers import blend, gather_images, send_rows

__all__ = [
    "blend",
    "column_statistic",
    "compared",
    "gather_images",
    "inner_products",
    "kept_mean",
    "kept_of",
    "kept_sums",
    "mean_and_std",
    "mixed_distances",
    "norms",
    "relations",
    "send_rows",
    "squared_around",
    "squared_distances",
    "squared_distances_to",
    "squared_norms",
    "statistic_weights",
    "weighted_panel",
    "weighted_rows",
    "weighted_statistic",
    "zeros_like_row",
]
