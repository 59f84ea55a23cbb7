"""Four ranks train a network on digits; rank 3 goes bad at step 20.

    torchrun --standalone --nproc-per-node 4 ranks.py curves.json

Once as it is, once protected. Rank 0 prints the protection's report and writes curves.
"""

import json
import logging
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import varangian as vg
from varangian.simulation.data import digits

STEPS, BAD_RANK, FROM_STEP = 80, 3, 20


def train(protected):
    """Accuracy on the test images, step by step, and the report of a protected run."""
    rank, data = dist.get_rank(), digits()
    images, labels = data.train.images / 16, data.train.labels
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    model = DistributedDataParallel(net)
    protection, momentum = None, 0.9
    if protected:  # this is all
        algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.TrimmedMean(f=1))
        protection = vg.engines.ddp.protect(model, algorithm, warn=logging.warning)
        momentum = 0.0  # it is at the workers now
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)

    batches = torch.Generator().manual_seed(rank)
    curve = []
    for step in range(STEPS):
        drawn = torch.randint(len(labels), (16,), generator=batches)
        loss = cross_entropy(model(images[drawn]), labels[drawn].long())
        if rank == BAD_RANK and step >= FROM_STEP:
            loss = -5 * loss  # it climbs where the others descend
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            guesses = net(data.test.images / 16).argmax(1)
        curve.append(float((guesses == data.test.labels).float().mean()))
    return curve, protection and protection.report()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    plain, _ = train(protected=False)
    robust, report = train(protected=True)
    if dist.get_rank() == 0:
        print(report)
        curves = {"plain": plain, "protected": robust}
        Path(sys.argv[1]).write_text(json.dumps(curves), encoding="utf-8")
    dist.destroy_process_group()
    # Threads of gloo may still hold something that the end of Python would cut off.
    sys.stdout.flush()
    os._exit(0)
