"""What a training step costs: ours and its parts, beside a plain loop over workers, in one run; and every panel's step.

    python benchmarks/simulator.py                   the paper's Fashion-MNIST setting, n = 51, f = 24
    python benchmarks/simulator.py --rule bulyan --byzantine 12
    python benchmarks/simulator.py --panels          one step of every panel at full size, time and peak memory
    python benchmarks/simulator.py --together        gradients of two runs in one call, beside one after the other

Figures move with the machine: compare within one run. Recorded ones are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from varangian.core import kernels
from varangian.core.attacks import Knowledge
from varangian.core.randomness import generator
from varangian.runs.building import build, open_dataset
from varangian.runs.experiment import Experiment
from varangian.runs.running import run
from varangian.simulation.data import Dataset, prepare
from varangian.simulation.gradients import Batch
from varangian.simulation.simulate import Simulation

SETTING = Experiment(
    dataset="fashion-mnist", workers=51, byzantine=24, rule="median", attack="little", batch_size=83, steps=100,
    learning_rate=0.5, momentum=0.9, clip=2.0, l2=1e-4, evaluate_every=5,
)  # fmt: skip
CIFAR = "synthetic(shape=(3,32,32),classes=10,train=2000,test=200)"
CIFAR_100 = "synthetic(shape=(3,32,32),classes=100,train=2000,test=200)"
CNN = replace(
    SETTING, dataset=CIFAR, model="cnn", workers=25, byzantine=11, batch_size=50, momentum=0.99, clip=5.0, l2=1e-2,
    learning_rate=0.01,
)  # fmt: skip
WIDE = replace(CNN, model="wide-resnet", workers=11, byzantine=2, batch_size=20, learning_rate=0.02, l2=5e-4)
PANELS = {
    "mnist-sized": replace(SETTING, dataset="synthetic(shape=(1,28,28),classes=10)"),
    "fashion-mnist": SETTING,
    "cifar-10-sized": CNN,
    "cifar-10-sized, published": replace(CNN, profile="published"),
    "cifar-100-sized": replace(CNN, dataset=CIFAR_100),
    "wide-resnet, f half": replace(WIDE, byzantine=4, nesterov=True),
    "wide-resnet, f quarter": replace(WIDE, nesterov=True),
}


class Stopwatch:
    """Sums the seconds spent in named parts."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - start)


def timed_step(simulation: Simulation, watch: Stopwatch) -> None:
    """What Simulation.step does, stage by stage."""
    s, a = simulation, simulation.algorithm
    rate = s.learning_rate(s.steps_done)
    with watch.part("sample, gather, flip"):
        batch = s.batches(s.steps_done)
    with watch.part("gradients of honest workers"):
        point = a.point(s.parameters, s.state, rate)
        s.gradients(point, batch, s.sampled, s.steps_done)
    with watch.part("l2, clip, momentum, moments"):
        state, _, _, moments = s._send(point)
        honest = s.vectors[: s.h]
    with watch.part("attack and its copies"):
        random = generator(s.seed, "attack", s.steps_done)
        seen = Knowledge(honest, s.real_byzantine, None, state.previous, random, known=moments)
        crafted = s.attack.craft(seen)
        s.vectors[s.h :] = crafted
    with watch.part("aggregation"):
        decision = a.decide(s.vectors, state)
    with watch.part("server, update"):
        update, s.state = a.finish(decision, state)
        s.parameters.add_(update, alpha=-rate)
    s.steps_done += 1


def ours(e: Experiment, dataset: Dataset) -> tuple[float, dict[str, float]]:
    """(ms a step of a whole run, evaluations and measures included; ms of the parts)."""
    run(replace(e, steps=5), dataset=dataset)
    whole = [1e3 * run(e, dataset=dataset).seconds / e.steps for _ in range(3)]
    watch = Stopwatch()
    with kernels.exclusive_threads():
        simulation, evaluator = build(e, dataset)
        for _ in range(30):
            timed_step(simulation, watch)
        for step in range(10):
            with watch.part("one evaluation"):
                evaluator(simulation.gradients, simulation.parameters, step)
    return statistics.median(whole), {k: 1e3 * statistics.median(v) for k, v in watch.seconds.items()}


def together(e: Experiment, dataset: Dataset, rounds: int = 30) -> tuple[float, float]:
    """On one thread, ms for the gradients of two runs, each with its own parameters: in two calls, and in one."""
    torch.set_num_threads(1)
    with kernels.exclusive_threads():
        s, _ = build(e, dataset)
        one, other = s.batches(0), s.batches(1)
        both = Batch(torch.cat([one.inputs, other.inputs]), torch.cat([one.labels, other.labels]))
        points = torch.cat([s.parameters.expand(s.h, -1), (1.01 * s.parameters).expand(s.h, -1)])
        out = torch.empty(2 * s.h, s.gradients.d)
        watch = Stopwatch()
        for _ in range(rounds):
            with watch.part("apart"):
                s.gradients(points[0], one, out[: s.h])
                s.gradients(points[-1], other, out[s.h :])
            with watch.part("together"):
                s.gradients(points, both, out)
    apart, joint = (1e3 * statistics.median(watch.seconds[name]) for name in ("apart", "together"))
    return apart, joint


def plain(e: Experiment, dataset: Dataset, steps: int = 10) -> float:
    """Median ms a step of the straightforward program: a loop over workers, torch's own operations, same measures."""
    simulation, _ = build(e, dataset)
    model, h, f = simulation.gradients.model, e.honest, e.attackers
    images, labels = dataset.train.images, dataset.train.labels
    momenta = [torch.zeros(simulation.gradients.d) for _ in range(h)]
    test = dataset.test
    chunks = [
        (prepare(dataset, test.images[k : k + 1000]), test.labels[k : k + 1000]) for k in range(0, len(test), 1000)
    ]
    initial = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        if step % e.evaluate_every == 0:
            model.eval()
            with torch.no_grad():
                sum(float((model(x).argmax(1) == y).sum()) for x, y in chunks)
            model.train()
        sampled, sent = [], []
        for i in range(h):
            index = torch.randint(len(labels), (e.batch_size,))
            x = prepare(dataset, images[index], torch.rand(e.batch_size) < 0.5 if dataset.flip else None)
            model.zero_grad()
            functional.cross_entropy(model(x), labels[index]).backward()
            flat = nn.utils.parameters_to_vector(model.parameters()).detach()
            g = torch.cat([p.grad.reshape(-1) for p in model.parameters()]) + e.l2 * flat
            if e.clip is not None and (norm := g.norm()) > e.clip:
                g *= e.clip / norm
            sampled.append(g)
            momenta[i] = e.momentum * momenta[i] + g
            sent.append(momenta[i])
        honest = torch.stack(sent)
        attack = honest.mean(0) - 1.5 * honest.std(0)
        vectors = torch.cat([honest, attack.expand(f, -1)])
        aggregate = vectors.median(0).values
        stacked = torch.stack(sampled)
        averages = [stacked.mean(0), honest.mean(0), attack, aggregate]
        for v, rows in zip(averages, (stacked, honest, None, None), strict=True):
            float(v.norm()), float(v.abs().max())
            if rows is not None:
                float(((rows - v).square().sum() / (h - 1)).sqrt())
        for i, v in enumerate(averages):
            for w in averages[:i]:
                float(functional.cosine_similarity(v, w, dim=0))
        float((flat - initial).norm())
        nn.utils.vector_to_parameters(flat - e.rate(step) * aggregate, model.parameters())
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.mean(seconds[len(seconds) // 2 // 5 * 5 :])


def one_step(name: str, queue: multiprocessing.Queue) -> None:
    e = replace(PANELS[name], steps=2, evaluate_every=0)
    dataset = open_dataset(e)
    with kernels.exclusive_threads():
        simulation, _ = build(e, dataset)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            row = simulation.step()
            seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((simulation.gradients.d, seconds, peak / 2**20, row.loss, simulation.gradients.method))


def panels() -> None:
    """One step of every panel, each in a process of its own, the second of two (the first compiles)."""
    context = multiprocessing.get_context("spawn")
    print(f"{'panel':28} {'d':>11} {'n':>3} {'f':>3} {'seconds':>8} {'peak GiB':>9}  gradients by")
    for name, e in PANELS.items():
        queue = context.Queue()
        process = context.Process(target=one_step, args=(name, queue))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name}: the process ended with status {process.exitcode}.")
        d, seconds, peak, loss, method = queue.get()
        print(
            f"{name:28} {d:11,} {e.workers:3} {e.byzantine:3} {seconds[-1]:8.3f} {peak:9.2f}  {method}, loss {loss:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", action="store_true", help="one step of every panel at full size")
    parser.add_argument("--together", action="store_true", help="gradients of two runs in one call or in two")
    parser.add_argument("--rule", default=SETTING.rule)
    parser.add_argument("--byzantine", type=int, default=SETTING.byzantine)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.panels:
        panels()
        return
    e = replace(SETTING, rule=options.rule, byzantine=options.byzantine)
    dataset = open_dataset(e)
    if options.together:
        apart, joint = together(e, dataset)
        print(f"gradients of two runs of {e.honest} workers, one thread: {apart:.2f} ms apart, {joint:.2f} ms together")
        return
    whole, parts = ours(e, dataset)
    slow = plain(e, dataset)
    if options.json:
        print(json.dumps({"ms_a_step": whole, "parts": parts, "plain_loop": slow}))
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"n = {e.workers}, f = {e.byzantine}, {e.rule}, {e.attack}: ms a step")
    for name, ms in parts.items():
        print(f"  {name:34} {ms:8.2f}")
    print(f"  {'whole run / steps':34} {whole:8.2f}   with measures, and an evaluation every {e.evaluate_every} steps")
    print(f"  {'plain loop over workers':34} {slow:8.2f}   {slow / whole:.1f} times")


if __name__ == "__main__":
    main()
