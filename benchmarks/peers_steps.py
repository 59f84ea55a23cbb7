"""A step of training by the loop that each library documents, on the same data and with the same model.

Fashion-MNIST, 784-100-10 with ReLU, 51 workers of which 24 attack, batches of 83, the median, and an attack that sends
the honest mean and 1.5 deviations. What a library cannot do is left out of its loop and said: `note`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from simulator import SETTING
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from varangian.core import kernels
from varangian.runs.building import build, open_dataset

N, F, BATCH, RATE, FACTOR = SETTING.workers, SETTING.byzantine, SETTING.batch_size, 0.1, 1.5
H = N - F


@dataclass(frozen=True)
class Stepper:
    library: str
    code: str
    step: Callable[[int], None]  # so many steps
    note: str = ""
    close: Callable[[], None] = lambda: None


class Net(nn.Module):
    """784-100-10 that gives logarithms of probabilities, as ByzFL's ``fc_mnist`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(784, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        return functional.log_softmax(self.out(functional.relu(self.hidden(x.flatten(1)))), dim=1)


class Pictures(Dataset[Any]):
    """What torchvision's FashionMNIST gives with a random flip and ToTensor: a picture at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision import transforms

        self.images, self.labels = images.numpy(), labels
        self.transform = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index][0], mode="L")), int(self.labels[index])


def parts(data: Dataset[Any], total: int) -> list[Subset[Any]]:
    order = torch.randperm(total, generator=torch.Generator().manual_seed(1)).tolist()
    return [Subset(data, order[k::N]) for k in range(N)]


def steppers() -> list[Stepper]:
    train = open_dataset(SETTING).train
    ready = TensorDataset(train.images.float() / 255, train.labels)
    pictures = Pictures(train.images, train.labels)
    tensors, drawn = parts(ready, len(train)), parts(pictures, len(train))
    return [
        ours(measure=True),
        ours(measure=False),
        plain(train.images.float() / 255, train.labels),
        byzfl(tensors, "byzfl.Client, ByzantineClient, Server; prepared tensors", ""),
        byzfl(
            drawn, "byzfl.Client, ByzantineClient, Server; torchvision's transforms", "images are mirrored at random"
        ),
        krum(tensors, ready),
        byzpy(tensors),
    ]


def ours(measure: bool) -> Stepper:
    e = replace(SETTING, measure=measure)
    simulation = build(e, open_dataset(e))[0]

    def steps(number: int) -> None:
        with kernels.exclusive_threads():
            for _ in range(number):
                simulation.step()

    told = "mirrors, clips, l2, momentum at the workers" + (", and 24 measures of the step" if measure else "")
    return Stepper("varangian", f"a step of vg.run(Experiment(measure={measure}))", steps, told)


def plain(images: Tensor, labels: Tensor) -> Stepper:
    """A loop over workers, as one writes it in torch alone."""
    model, momenta = Net(), [torch.zeros(79_510) for _ in range(H)]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def steps(number: int) -> None:
        for _ in range(number):
            for m in momenta:
                index = torch.randint(len(labels), (BATCH,))
                model.zero_grad()
                functional.nll_loss(model(images[index]), labels[index]).backward()
                m.mul_(0.9).add_(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
            honest = torch.stack(momenta)
            attack = honest.mean(0) - FACTOR * honest.std(0)
            g = torch.cat([honest, attack.expand(F, -1)]).median(0).values
            for p, part in zip(model.parameters(), g.split([p.numel() for p in model.parameters()]), strict=True):
                p.grad = part.view_as(p).clone()
            optimizer.step()

    return Stepper("torch", "a loop over workers", steps, "momentum at the workers; nothing else")


def byzfl(workers: list[Subset[Any]], code: str, more: str) -> Stepper:
    from byzfl import ByzantineClient, Client, Server

    loaders = [DataLoader(data, batch_size=BATCH, shuffle=True) for data in workers[:H]]
    clients = [
        Client({
            "model_name": "fc_mnist", "device": "cpu", "loss_name": "NLLLoss", "LabelFlipping": False,
            "training_dataloader": loader, "momentum": 0.9, "nb_labels": 10, "store_per_client_metrics": False,
        })
        for loader in loaders
    ]  # fmt: skip
    server = Server({
        "model_name": "fc_mnist", "device": "cpu", "optimizer_name": "SGD", "learning_rate": RATE,
        "weight_decay": 1e-4, "milestones": [], "learning_rate_decay": 1.0, "test_loader": loaders[0],
        "validation_loader": None, "aggregator_info": {"name": "Median", "parameters": {}}, "pre_agg_list": [],
    })  # fmt: skip
    attacker = ByzantineClient({"name": "ALittleIsEnough", "f": F, "parameters": {"tau": FACTOR}})

    def steps(number: int) -> None:
        for _ in range(number):
            state = server.get_dict_parameters()
            for client in clients:
                client.set_model_state(state)
            for client in clients:
                client.compute_gradients()
            honest = [client.get_flat_gradients_with_momentum() for client in clients]
            server.update_model_with_gradients(honest + attacker.apply_attack(honest))

    return Stepper("byzfl", code, steps, "; ".join(filter(None, ("momentum at the workers", more))))


def krum(workers: list[Subset[Any]], test: Dataset[Any]) -> Stepper:
    from krum.primitives.aggregators.median import Median
    from krum.primitives.attacks.alie import ALIEAttack
    from krum.simulations.centralised import CentralisedSimulation

    simulation = CentralisedSimulation(
        model_cls=Net, train_datasets=workers, test_set=test, aggregator=Median, attack=ALIEAttack,
        attack_kwargs={"z": FACTOR}, n=N, f=F, rounds=1, batch_size=BATCH, lr=RATE, lr_schedule="none",
        weight_decay=1e-4, loss_fn=functional.nll_loss, device=torch.device("cpu"),
    )  # fmt: skip
    simulation.setup()

    def steps(number: int) -> None:
        for _ in range(number):
            simulation.step()

    return Stepper("krum", "CentralisedSimulation.step; prepared tensors", steps, "no momentum")


class Honest:
    """A worker as ByzPy's examples write one: its model, its loader, its gradient."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.model, self.loader = Net(), DataLoader(data, batch_size=BATCH, shuffle=True)
        self.optimizer, self.batches = torch.optim.SGD(self.model.parameters(), lr=RATE), iter(self.loader)

    def honest_gradient_for_next_batch(self) -> Tensor:
        try:
            x, y = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            x, y = next(self.batches)
        self.model.zero_grad(set_to_none=True)
        functional.nll_loss(self.model(x), y).backward()
        return torch.cat([p.grad.flatten() for p in self.model.parameters()])  # type: ignore[union-attr]

    def apply_server_gradient(self, g: Any) -> None:
        sizes = [p.numel() for p in self.model.parameters()]
        for p, part in zip(self.model.parameters(), torch.as_tensor(g).split(sizes), strict=True):
            p.grad = part.view_as(p).clone()
        self.optimizer.step()


class Hostile:
    def __init__(self) -> None:
        from byzpy.attacks.little import LittleAttack

        self.attack = LittleAttack(f=F, N=N)

    def byzantine_gradient_for_next_batch(self, honest: Any) -> Tensor:
        return self.attack.apply(honest_grads=list(honest))


def byzpy(workers: list[Subset[Any]]) -> Stepper:
    from byzpy.aggregators.geometric_wise import MultiKrum
    from byzpy.engine.actor.backends.thread import ThreadActorBackend
    from byzpy.engine.node.actors import ByzantineNodeActor, HonestNodeActor
    from byzpy.engine.parameter_server.ps import ParameterServer

    loop = asyncio.new_event_loop()

    async def made() -> Any:
        honest = [
            await HonestNodeActor.spawn(Honest, backend=ThreadActorBackend(), args=(data,)) for data in workers[:H]
        ]
        hostile = [await ByzantineNodeActor.spawn(Hostile, backend="thread") for _ in range(F)]
        return ParameterServer(honest, hostile, MultiKrum(F, N - F - 2))

    server = loop.run_until_complete(made())

    async def rounds(number: int) -> None:
        for _ in range(number):
            await server.round()

    def close() -> None:
        loop.run_until_complete(server.shutdown())
        loop.close()

    return Stepper(
        "byzpy", "ParameterServer.round, actors in threads; prepared tensors",
        lambda n: loop.run_until_complete(rounds(n)),
        "Multi-Krum: its server hands rules what its median cannot take; no momentum; each Byzantine node computes "
        "the attack, with a factor of its own", close,
    )  # fmt: skip
