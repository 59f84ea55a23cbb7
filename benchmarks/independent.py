"""The study's runs a second time, written down plainly: do the accuracies agree?

    python benchmarks/independent.py STUDY/runs.csv
    python benchmarks/independent.py STUDY/runs.csv --rules median,multi-krum --attacks little --seeds 1-3

Nothing of varangian is imported: torch.nn, autograd one worker after the other, rules as sorts and loops, torch's own
random numbers. So the two agree on what is computed and on nothing else; a run of the same seed draws other batches
and another initial model. Compared are medians over the seeds, of maximum accuracy and of what moving momentum to the
workers gains. Fashion-MNIST files are read from the folder given by --data (Debian: package dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path("/usr/share/datasets/fashion-mnist")
N, BATCH, STEPS, EVERY, MU, CLIP, L2 = 51, 83, 300, 5, 0.9, 2.0, 1e-4


def read(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(images.copy()).float() / 255, torch.from_numpy(labels.copy()).long()


def closest(x: Tensor, center: Tensor, count: int) -> Tensor:
    order = (x - center).abs().argsort(0)[:count]
    return x.gather(0, order).mean(0)


def krum_scores(x: Tensor, f: int) -> Tensor:
    n = len(x)
    squared = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    squared.fill_diagonal_(float("inf"))
    return squared.sort(1).values[:, : max(n - f - 2, 1)].sum(1)


def aggregate(rule: str, x: Tensor, f: int) -> Tensor:
    n = len(x)
    if rule == "average":
        return x.mean(0)
    if rule == "multi-krum":
        return x[krum_scores(x, f).argsort()[: n - f - 2]].mean(0)
    if rule == "bulyan":
        left, chosen = list(range(n)), []
        while len(chosen) < n - 2 * f:
            best = int(krum_scores(x[left], f).argmin())
            chosen.append(left.pop(best))
        kept = x[chosen]
        return closest(kept, kept.sort(0).values[len(chosen) // 2], n - 4 * f)
    ordered = x.sort(0).values
    median = ordered[n // 2]  # n is odd
    trimmed = ordered[f : n - f].mean(0)
    return {
        "median": lambda: median,
        "trimmed-mean": lambda: trimmed,
        "phocas": lambda: closest(x, trimmed, n - f),
        "meamed": lambda: closest(x, median, n - f),
    }[rule]()


def train(
    data: tuple[Tensor, Tensor, Tensor, Tensor], rule: str, attack: str, f: int, place: str, rate: float,
    nesterov: bool, seed: int,
) -> float:  # fmt: skip
    """The maximum accuracy of one run; without an attack the n - f honest workers are averaged."""
    torch.manual_seed(1000 + seed)
    images, labels, test_images, test_labels = data
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10), nn.LogSoftmax(1))
    parameters, h = list(model.parameters()), N - f
    theta = nn.utils.parameters_to_vector(parameters).detach()
    worker_momenta, server_momentum = [torch.zeros_like(theta) for _ in range(h)], torch.zeros_like(theta)

    def gradient(at: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(at, parameters)
        index = torch.randint(len(images), (BATCH,))
        batch = images[index]
        mirrored = torch.rand(BATCH) < 0.5
        batch[mirrored] = batch[mirrored].flip(-1)
        loss = nn.functional.nll_loss(model(batch), labels[index])
        found = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]) + L2 * at
        return found * min(1.0, CLIP / float(found.norm()))

    best = 0.0
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                nn.utils.vector_to_parameters(theta, parameters)
                best = max(best, float((model(test_images).argmax(1) == test_labels).float().mean()))
        if step == STEPS:
            return best
        sent = []
        for i in range(h):
            ahead = worker_momenta[i] if place == "worker" else server_momentum
            g = gradient(theta - MU * rate * ahead if nesterov else theta)
            if place == "worker":
                worker_momenta[i] = MU * worker_momenta[i] + g
                g = worker_momenta[i]
            sent.append(g)
        x = torch.stack(sent)
        if attack != "none":
            mean = x.mean(0)
            lie = mean - 1.5 * x.std(0) if attack == "little" else mean - 1.1 * mean
            x = torch.cat([x, lie.expand(f, -1)])
        found = aggregate(rule, x, f)
        if place == "server":
            server_momentum = found = MU * server_momentum + found
        theta = theta - rate * found
    raise AssertionError("unreachable")


def numbers(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="runs.csv of `varangian reproduce`")
    parser.add_argument("--rules", default="multi-krum,median,trimmed-mean,phocas,meamed")
    parser.add_argument("--attacks", default="little,empire")
    parser.add_argument("--f", type=int, default=24, help="12 or 24")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--nesterov", action="store_true")
    parser.add_argument("--seeds", type=numbers, default="1-5")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    seeds = options.seeds if isinstance(options.seeds, list) else numbers(options.seeds)
    theirs: dict[tuple[str, ...], float] = {}
    with open(options.runs, newline="") as file:
        for row in csv.DictReader(file):
            if (row["dataset"], row["learning_rate"]) == ("fashion-mnist", f"{options.rate:g}"):
                key = (row["rule"], row["attack"], row["byzantine"], row["momentum_at"], row["nesterov"], row["seed"])
                theirs[key] = float(row["max_accuracy"])
    data = (*read(options.data, "train"), *read(options.data, "t10k"))
    print(
        f"f = {options.f}, rate {options.rate:g}, nesterov {options.nesterov}, seeds {seeds}; maximum accuracy, medians"
    )
    print(f"{'':28} {'plain':>8} {'varangian':>10} {'apart':>6}   spread over seeds: plain, varangian")
    for rule, attack in itertools.product(options.rules.split(","), options.attacks.split(",")):
        medians = []
        for place in ("server", "worker"):
            keys = [(rule, attack, str(options.f), place, str(options.nesterov), str(seed)) for seed in seeds]
            found = [theirs[key] for key in keys if key in theirs]
            if len(found) < len(seeds):
                print(f"{rule} {attack} {place}: {len(found)} of {len(seeds)} seeds are in {options.runs}")
                continue
            start = time.perf_counter()
            plain = [
                train(data, rule, attack, options.f, place, options.rate, options.nesterov, seed) for seed in seeds
            ]
            ours, others = statistics.median(plain), statistics.median(found)
            medians.append((ours, others))
            print(
                f"{rule:13} {attack:7} {place:6} {100 * ours:8.1f} {100 * others:10.1f} {100 * (ours - others):+6.1f}"
                f"   {100 * (max(plain) - min(plain)):.1f}, {100 * (max(found) - min(found)):.1f}   "
                f"({(time.perf_counter() - start) / len(seeds):.0f} s a plain run)",
                flush=True,
            )
        if len(medians) == 2:
            (a, b), (c, d) = medians
            print(
                f"{rule:13} {attack:7} gain   {100 * (c - a):8.1f} {100 * (d - b):10.1f} {100 * (c - a - d + b):+6.1f}"
            )


if __name__ == "__main__":
    main()
