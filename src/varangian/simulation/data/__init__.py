"""Data sets as tensors in memory, the files that some are read from, and who has which of their examples."""

from .catalogue import DATASETS, cifar_10, cifar_100, digits, fashion_mnist, load, mnist, name_of, synthetic
from .dataset import DataError, Dataset, Split, prepare
from .handed import taken
from .partitions import (
    IID,
    PARTITIONS,
    Classes,
    Dirichlet,
    DirichletMixture,
    Extreme,
    LongTail,
    Partition,
    Quantity,
    Shards,
    Similarity,
    partition,
    set_aside,
)

__all__ = [
    "DATASETS",
    "IID",
    "PARTITIONS",
    "Classes",
    "DataError",
    "Dataset",
    "Dirichlet",
    "DirichletMixture",
    "Extreme",
    "LongTail",
    "Partition",
    "Quantity",
    "Shards",
    "Similarity",
    "Split",
    "cifar_10",
    "cifar_100",
    "digits",
    "fashion_mnist",
    "load",
    "mnist",
    "name_of",
    "partition",
    "prepare",
    "set_aside",
    "synthetic",
    "taken",
]
