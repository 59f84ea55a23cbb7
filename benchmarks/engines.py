"""What protection costs in DistributedDataParallel: bytes at the collective calls, and the time of a step.

    python benchmarks/engines.py                     4 ranks over gloo on this machine, d = 1,300,650
    python benchmarks/engines.py --ranks 3 --rounds 20

Bytes are counted where the collectives are called and compared with a ring all-reduce of the same gradients,
2 d (W - 1) / W numbers a rank. Times are of whole steps: forward, backward, exchange, optimizer. Rounds of a few steps
alternate between plain DistributedDataParallel and each entry, so that a drift of the machine hits all alike; printed
are the median times of a step and the median of the round-by-round ratios to plain. With fewer processors than ranks
the ranks wait for each other's arithmetic too, and for whatever else runs; the processor time of rank 0 does not.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import varangian as vg
from varangian.engines import sharded
from varangian.engines.ddp import protect

Momentum = vg.Momentum(0.9)
ENTRIES: dict[str, tuple[vg.Algorithm, bool] | None] = {
    "plain": None,
    "median": (vg.Algorithm(rule=vg.Median(1)), False),
    "momentum, median": (vg.Algorithm(worker=(Momentum,), rule=vg.Median(1)), False),
    "momentum, phocas": (vg.Algorithm(worker=(Momentum,), rule=vg.Phocas(1)), False),
    "momentum, multi-krum": (vg.Algorithm(worker=(Momentum,), rule=vg.MultiKrum(0)), False),
    "clip, momentum, multi-krum": (vg.Algorithm(worker=(vg.Clip(1.0), Momentum), rule=vg.MultiKrum(0)), False),
    "momentum, nnm, trimmed-mean": (
        vg.Algorithm(worker=(Momentum,), pre=(vg.NearestNeighborMixing(1),), rule=vg.TrimmedMean(1)), False,
    ),
    "momentum, bulyan": (vg.Algorithm(worker=(Momentum,), rule=vg.Bulyan(0)), False),
    "momentum, geometric-median": (vg.Algorithm(worker=(Momentum,), rule=vg.GeometricMedian(1)), False),
    "momentum, median, replicated": (vg.Algorithm(worker=(Momentum,), rule=vg.Median(1)), True),
}  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 480), nn.ReLU(), nn.Linear(480, 10)
    )  # fmt: skip


@contextmanager
def counted() -> Iterator[list[float]]:
    """[bytes] that this rank hands to others, at the collective calls."""
    size, sent = dist.get_world_size(), [0.0]
    exchange, add, gather = dist.all_to_all_single, dist.all_reduce, sharded.all_gather_single

    def weighed(share: float, call: Any) -> Any:
        def wrapped(*tensors: Tensor, **options: Any) -> Any:
            sent[0] += share * tensors[-1].numel() * tensors[-1].element_size()
            return call(*tensors, **options)

        return wrapped

    dist.all_to_all_single = weighed((size - 1) / size, exchange)
    dist.all_reduce = weighed(2 * (size - 1) / size, add)
    sharded.all_gather_single = weighed(size - 1, gather)
    try:
        yield sent
    finally:
        dist.all_to_all_single, dist.all_reduce, sharded.all_gather_single = exchange, add, gather


def rank_main(rank: int, size: int, rounds: int, steps: int, batch: int, bucket: float, folder: str) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(rank)
    x, y = torch.randn(batch, 784, generator=generator), torch.randint(10, (batch,), generator=generator)
    models: dict[str, tuple[DistributedDataParallel, torch.optim.Optimizer]] = {}
    for name, entry in ENTRIES.items():
        model = DistributedDataParallel(network(), bucket_cap_mb=bucket)
        if entry is not None:
            protect(model, entry[0], replicated=entry[1])
        models[name] = model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.0 if entry else 0.9)

    def step(name: str) -> None:
        model, optimizer = models[name]
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    d = sum(p.numel() for p in models["plain"][0].parameters())
    ring = 4 * 2 * d * (size - 1) / size
    traffic = {}
    for name in models:
        for _ in range(2):  # compiles, and rebuilds the buckets
            step(name)
        with counted() as sent:
            step(name)
        traffic[name] = sent[0] / ring
    times: dict[str, list[float]] = {name: [] for name in models}
    busy: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name in models:
            step(name)
            dist.barrier()
            start, start_busy = time.perf_counter(), time.process_time()
            for _ in range(steps):
                step(name)
            dist.barrier()
            times[name].append(1e3 * (time.perf_counter() - start) / steps)
            busy[name].append(1e3 * (time.process_time() - start_busy) / steps)
    if rank == 0:
        print(
            f"{platform.machine()}, {os.cpu_count()} processors, {size} ranks of {torch.get_num_threads()} thread(s), "
            f"torch {torch.__version__}, gloo on loopback; d = {d:,}, batch {batch} a rank, buckets of {bucket} MB"
        )
        print(f"{'':32} {'ms a step':>10} {'/ plain':>8} {'busy ms':>8} {'/ plain':>8} {'bytes / ring':>13}")
        for name in models:
            cells = []
            for values in (times, busy):
                ratio = statistics.median(a / b for a, b in zip(values[name], values["plain"], strict=True))
                cells.append(f"{statistics.median(values[name]):8.1f} {ratio:8.2f}")
            print(f"{name:32}   {' '.join(cells)}" + ("" if name == "plain" else f" {traffic[name]:13.4f}"))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="in a round")
    parser.add_argument("--batch", type=int, default=32, help="of each rank")
    parser.add_argument("--bucket", type=float, default=1.0, help="MB a bucket")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            rank_main,
            (options.ranks, options.rounds, options.steps, options.batch, options.bucket, folder),
            options.ranks,
        )


if __name__ == "__main__":
    main()
