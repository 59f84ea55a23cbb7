"""One faulty rank under Accelerate: the plain training is lost, the one with one line more is not.

    pip install accelerate
    torchrun --standalone --nproc-per-node 4 examples/accelerate_faulty_rank.py

Four processes train a small network on handwritten digits. From step 20 on rank 3's gradients are NaN, as a broken
card's or a bad batch's would be. `protected` is the recipe: copy it. docs/howto/trainers.md says what of Accelerate it
serves. About half a minute on two cores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import varangian as vg
from varangian.engines.ddp import Protection, protect
from varangian.simulation.data import digits, prepare

# ---- recipe


def protected(accelerator: Accelerator, model: Any, algorithm: vg.Algorithm, name: str = "varangian") -> Protection:
    """Puts an algorithm in the place of the mean of gradients, and its memory into what save_state writes.

    model is what accelerator.prepare gave; where several are protected, each has a name.
    """
    protection = protect(
        model,
        algorithm,
        scaler=accelerator.scaler,
        on_refusal="skip",  # with "raise" a loop of one's own catches vg.Refused, and goes on as it likes
        warn=logging.getLogger("accelerate").warning,
    )

    def file_in(folder: str) -> Path:  # a file a rank: each has a momentum of its own
        return Path(folder) / f"{name}-{accelerator.process_index}.pt"

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        torch.save(protection.state_dict(), file_in(folder))

    def load(models: list[nn.Module], folder: str) -> None:
        file = file_in(folder)
        try:  # without a file too, since all ranks must call it: then all are told
            held = torch.load(file, map_location="cpu", weights_only=True) if file.exists() else {}
            protection.load_state_dict(held)
        except ValueError as error:
            raise ValueError(f"{file}{'' if file.exists() else ', which is not there'}: {error}") from None

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    return protection


# ---- end of the recipe

FAULTY_RANK, FROM_STEP = 3, 20
ALGORITHM = vg.Algorithm(worker=(vg.Clip(2.0), vg.Momentum(0.9)), rule=vg.TrimmedMean(f=1))


def network(fault: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    for parameter in model.parameters():
        parameter.register_hook(fault)
    return model


def accuracy(model: nn.Module) -> float:
    data = digits()
    with torch.no_grad():
        answers = model(prepare(data, data.test.images))
    return float((answers.argmax(1) == data.test.labels).float().mean())


def train(accelerator: Accelerator, algorithm: vg.Algorithm | None, steps: int) -> tuple[float, Protection | None]:
    """The accuracy at the end, and what protects it."""
    step = 0

    def fault(gradient: Tensor) -> Tensor:
        broken = accelerator.process_index == FAULTY_RANK and step >= FROM_STEP
        return gradient * float("nan") if broken else gradient

    data, module = digits(), network(fault)
    pairs = TensorDataset(prepare(data, data.train.images), data.train.labels)
    momentum = 0.9 if algorithm is None else 0.0  # the protected training has it in the algorithm
    model, optimizer, loader = accelerator.prepare(
        module,
        torch.optim.SGD(module.parameters(), lr=0.05, momentum=momentum),
        DataLoader(pairs, batch_size=16, shuffle=True),
    )
    protection = None if algorithm is None else protected(accelerator, model, algorithm)
    while step < steps:
        for images, labels in loader:
            loss = cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == steps:
                break
    return accuracy(module), protection


def main(steps: int = 120) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)  # on cards Accelerator(): nothing else is different
    plain, _ = train(accelerator, None, steps)
    safe, protection = train(accelerator, ALGORITHM, steps)
    assert protection is not None
    accelerator.print(protection.report())
    accelerator.print(f"test accuracy after {steps} steps, rank {FAULTY_RANK} broken from step {FROM_STEP} on:")
    accelerator.print(f"  plain      {plain:.1%}")
    accelerator.print(f"  protected  {safe:.1%}", flush=True)
    accelerator.wait_for_everyone()
    os._exit(0)  # threads of gloo may still be letting go of what they held


if __name__ == "__main__":
    main()
