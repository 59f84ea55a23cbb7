"""The kernels for NVIDIA's cards, in Triton.

Nothing here waits: what depends on the values of numbers is decided on the card, and every answer is a tensor there.
Sums that matter are added up in an order that is a function of the sizes alone, without atomics, so that the same card
gives the same bytes. What is compiled for a size is kept on disk by Triton.

What registers could not hold (more rows than ``SORTED_ROWS``, than ``SENT_ROWS``) and types that workers do not have
are left to :mod:`..plain`, and so are statistics of values that have weights, and what only LASA asks for (which values
of a row are the greatest).
"""

from ..plain import kept_mean, kept_of, kept_sums, weighted_statistic
from . import launching
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
from .samples import relations, statistic_weights
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
    "launching",
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
