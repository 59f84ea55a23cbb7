"""One faulty rank: plain DistributedDataParallel loses the run, the protected one trains on.

    torchrun --standalone --nproc-per-node 4 examples/ddp_faulty_rank.py

Four processes train a small network on handwritten digits. From step 30 on, rank 3 sends either NaN, or gradients in
which one number in a hundred has a flipped bit in its exponent, as broken memory would. Each is trained with plain
DistributedDataParallel and with one line more. Rank 0 prints a table, what the protection says about its ranks, and
draws ddp_faulty_rank.png. It takes about half a minute on two cores.

    torchrun --standalone --nproc-per-node 4 --max-restarts 1 examples/ddp_faulty_rank.py --crash-at 70

trains the protected network alone, with a checkpoint every 20 steps. Rank 1 dies at step 70; torchrun starts all ranks
again, and they go on from step 60.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import varangian as vg
from varangian.core.randomness import generator
from varangian.engines.ddp import Protection, protect
from varangian.simulation.data import digits, prepare

FAULTY_RANK, FROM_STEP = 3, 30
BATCH, RATE, EVERY = 16, 0.05, 20

ALGORITHM = vg.Algorithm(worker=(vg.Clip(2.0), vg.Momentum(0.9)), rule=vg.TrimmedMean(f=1))


def corrupted(gradient: Tensor) -> Tensor:
    """One number in a hundred with the top bit of its exponent flipped: 0.01 becomes 3e36, and nothing complains."""
    bits = gradient.clone().view(torch.int32).view(-1)
    bits[::100] ^= 1 << 30
    return bits.view(torch.float32).view_as(gradient)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda gradient: torch.full_like(gradient, float("nan")),
    "flipped bits": corrupted,
}


def join_ranks() -> None:
    """init_process_group, with names of its own for each start: torch 2.13 would look up the addresses of ranks that
    have died, since torchrun starts them again with the same store. Before torch 2.5 its store is rank 0's own."""
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    theirs = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, is_master=rank == 0 and not theirs
    )
    dist.init_process_group("gloo", store=dist.PrefixStore(f"start-{start}", store), rank=rank, world_size=size)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


class Training:
    """A network under DistributedDataParallel, protected or not, with a rank that may be faulty."""

    def __init__(self, protected: bool, fault: Callable[[Tensor], Tensor] | None) -> None:
        self.rank = dist.get_rank()
        self.data = digits()
        self.model = DistributedDataParallel(network())
        self.protection: Protection | None = None
        if protected:
            self.protection = protect(
                self.model, ALGORITHM, window=50, warn=lambda line: print(f"  {line}", flush=True)
            )
        momentum = 0.0 if protected else 0.9  # the protected run has its momentum at the workers, before the rule
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=momentum)
        self.step = 0
        if fault is not None and self.rank == FAULTY_RANK:
            for parameter in self.model.parameters():
                parameter.register_hook(lambda g: fault(g) if self.step >= FROM_STEP else g)

    def advance(self) -> None:
        """One step on a batch that only this rank draws."""
        train = self.data.train
        index = torch.from_numpy(generator(1, "batches", self.step, self.rank).integers(len(train), size=BATCH))
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(prepare(self.data, train.images[index])), train.labels[index])
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def accuracy(self) -> float:
        test = self.data.test
        with torch.no_grad():
            answers = self.model.module(prepare(self.data, test.images))
        return float((answers.argmax(1) == test.labels).float().mean())

    # A checkpoint is whole when every rank has written its file: momentum at the workers differs from rank to rank.

    def save(self, folder: Path) -> None:
        assert self.protection is not None
        place = folder / f"step-{self.step:06}"
        place.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.module.state_dict(), "protection": self.protection.state_dict(), "step": self.step}
        torch.save(state, place / f"{self.rank}.partial")
        (place / f"{self.rank}.partial").rename(place / f"{self.rank}.pt")

    def resume(self, folder: Path) -> None:
        """Goes on from the last whole checkpoint, if there is one."""
        assert self.protection is not None
        whole = [p for p in folder.glob("step-*") if len(list(p.glob("*.pt"))) == dist.get_world_size()]
        if not whole:
            return
        state = torch.load(max(whole) / f"{self.rank}.pt", weights_only=True)
        self.model.module.load_state_dict(state["model"])
        self.protection.load_state_dict(state["protection"])
        self.step = state["step"]


def compare(steps: int, figure: Path) -> None:
    """Five trainings, a table and a figure."""
    first = dist.get_rank() == 0
    runs: list[tuple[str, bool, str | None]] = [("plain, no fault", False, None)]
    for fault in FAULTS:
        runs += [(f"plain, {fault}", False, fault), (f"protected, {fault}", True, fault)]
    curves: dict[str, list[tuple[int, float]]] = {}
    for title, protected, fault in runs:
        if first:
            print(f"{title} ...", flush=True)
        start = time.perf_counter()
        training = Training(protected, None if fault is None else FAULTS[fault])
        curves[title] = []
        while training.step < steps:
            training.advance()
            if training.step % 5 == 0:
                curves[title].append((training.step, training.accuracy()))
        if first and training.protection is not None:
            report = training.protection.report()
            print(report, flush=True)
            print(f"  {vg.detection(report, byzantine=[FAULTY_RANK])}", flush=True)
        if first:
            print(f"  test accuracy {curves[title][-1][1]:.1%}, {time.perf_counter() - start:.0f} s", flush=True)
    if first:
        width = max(map(len, curves))
        print(f"\n{'training':{width}}  accuracy after {steps} steps")
        for title, curve in curves.items():
            print(f"{title:{width}}  {curve[-1][1]:.1%}")
        draw(curves, figure)
        print(f"Figure: {figure}")


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(FAULTS), sharey=True)
    shown = {"plain, no fault": ("0.5", "--"), "plain": ("tab:red", "-"), "protected": ("tab:blue", "-")}
    for panel, fault in zip(panels, FAULTS, strict=True):
        for label, (colour, style) in shown.items():
            curve = curves[label if label in curves else f"{label}, {fault}"]
            steps, values = zip(*curve, strict=True)
            panel.plot(steps, [100 * v for v in values], style, color=colour, label=label)
        panel.axvline(FROM_STEP, color="0.7", linewidth=1)
        panel.annotate("from here", (FROM_STEP, 3), (4, 0), textcoords="offset points", color="0.4")
        panel.set_title(f"rank {FAULTY_RANK} sends {fault}")
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    panels[0].set_ylim(0, 100)
    panels[0].legend()
    figure.suptitle(f"Digits, {dist.get_world_size()} ranks, {ALGORITHM.rule} after worker momentum")
    figure.savefig(path)


def survive(steps: int, crash_at: int, folder: Path) -> None:
    """The protected training, with checkpoints; rank 1 dies at a step, once."""
    training = Training(True, FAULTS["NaN"])
    training.resume(folder)
    first, again = training.rank == 0, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if first:
        print(f"{'started again' if again else 'started'} at step {training.step}", flush=True)
    while training.step < steps:
        if training.rank == 1 and training.step == crash_at and not again:
            print(f"rank 1 dies at step {training.step}", flush=True)
            os._exit(1)
        training.advance()
        if training.step % EVERY == 0:
            training.save(folder)
    accuracy = training.accuracy()
    if first:
        print(f"done at step {training.step}: test accuracy {accuracy:.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of each training")
    parser.add_argument("--figure", type=Path, default=Path("ddp_faulty_rank.png"), help="where the figure goes")
    parser.add_argument("--crash-at", type=int, help="the protected training alone; rank 1 dies at this step")
    parser.add_argument("--checkpoints", type=Path, default=Path("ddp_checkpoints"), help="their folder")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it by torchrun: torchrun --standalone --nproc-per-node 4 examples/ddp_faulty_rank.py")
    if int(os.environ["WORLD_SIZE"]) < max(ALGORITHM.min_n, FAULTY_RANK + 1):
        parser.error(f"{ALGORITHM.rule} needs {ALGORITHM.min_n} ranks, got {os.environ['WORLD_SIZE']}.")
    torch.set_num_threads(1)
    join_ranks()
    try:
        if options.crash_at is None:
            compare(options.steps, options.figure)
        else:
            survive(options.steps, options.crash_at, options.checkpoints)
    finally:
        dist.destroy_process_group()
    # Threads of gloo may still be letting go of what they held; the end of Python would cut them off, and abort.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
