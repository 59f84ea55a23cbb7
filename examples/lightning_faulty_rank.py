"""One faulty rank under Lightning: the plain training is lost, the one with one callback more is not.

    pip install lightning
    python examples/lightning_faulty_rank.py

Lightning starts four processes, which train a small network on handwritten digits. From step 20 on rank 3's gradients
are NaN, as a broken card's or a bad batch's would be. `Protect` is the recipe: copy it. docs/howto/trainers.md says
what of the trainer it serves. About half a minute on two cores.
"""

from __future__ import annotations

import logging
import os

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import varangian as vg
from varangian.engines.ddp import Protection, protect
from varangian.simulation.data import digits, prepare

# ---- recipe


class Protect(lightning.Callback):
    """Puts an algorithm in the place of the mean of gradients, and its memory into Lightning's checkpoints."""

    def __init__(self, algorithm: vg.Algorithm) -> None:
        self.algorithm = algorithm
        self.protection: Protection | None = None
        self.held: list[dict[str, Tensor]] | None = None  # each rank's, of the checkpoint that training goes on from
        self.fitting = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self.held, self.fitting = None, stage == "fit"

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict
    ) -> None:
        if not self.fitting:
            return
        if "varangian" not in checkpoint:
            raise ValueError("Protect needs a checkpoint of a protected training, got one without its memory.")
        self.held = checkpoint["varangian"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        precision = trainer.precision_plugin
        self.protection = protect(
            trainer.strategy.model,  # what Lightning wrapped around the module
            self.algorithm,
            scaler=precision.scaler if isinstance(precision, MixedPrecision) else None,
            on_refusal="skip",  # an error would end Lightning's loop
            warn=logging.getLogger("lightning.pytorch").warning,
        )
        if self.held is not None:  # of fewer ranks, it is another's, and refused on all of them
            self.protection.load_state_dict(self.held[trainer.global_rank % len(self.held)])

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict
    ) -> None:
        """All ranks come here, and rank 0 writes the file: it needs every rank's momentum."""
        if self.protection is None:  # nothing has been trained
            return
        states: list[dict[str, Tensor]] = [{} for _ in range(trainer.world_size)]
        for name, tensor in self.protection.state_dict().items():
            mine = tensor.to(pl_module.device)
            all_of_them = [torch.empty_like(mine) for _ in states] if trainer.is_global_zero else None
            dist.gather(mine, all_of_them)
            for state, theirs in zip(states, all_of_them or [], strict=False):
                state[name] = theirs.cpu()
        checkpoint["varangian"] = states


# ---- end of the recipe

FAULTY_RANK, FROM_STEP = 3, 20
ALGORITHM = vg.Algorithm(worker=(vg.Clip(2.0), vg.Momentum(0.9)), rule=vg.TrimmedMean(f=1))


class Digits(lightning.LightningModule):
    """A small network, whose rank 3 breaks."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
        self.momentum = momentum
        for parameter in self.net.parameters():
            parameter.register_hook(self.passed)

    def passed(self, gradient: Tensor) -> Tensor:
        broken = self.global_rank == FAULTY_RANK and self.global_step >= FROM_STEP
        return gradient * float("nan") if broken else gradient

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=self.momentum)


def batches() -> DataLoader:
    data = digits()
    return DataLoader(TensorDataset(prepare(data, data.train.images), data.train.labels), batch_size=16, shuffle=True)


def accuracy(model: Digits) -> float:
    data = digits()
    with torch.no_grad():
        answers = model.net(prepare(data, data.test.images))
    return float((answers.argmax(1) == data.test.labels).float().mean())


def train(model: Digits, callbacks: list[lightning.Callback], steps: int) -> None:
    lightning.seed_everything(1, verbose=False)
    trainer = lightning.Trainer(
        accelerator="cpu",  # on cards "gpu": nothing else is different
        devices=4,
        strategy="ddp",
        max_steps=steps,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, batches())


def main(steps: int = 120) -> None:
    torch.set_num_threads(1)
    plain = Digits(momentum=0.9)
    train(plain, [], steps)
    callback, protected = Protect(ALGORITHM), Digits(momentum=0.0)  # its momentum is in the algorithm
    train(protected, [callback], steps)
    assert callback.protection is not None
    if dist.get_rank() == 0:
        print(callback.protection.report())
        print(f"test accuracy after {steps} steps, rank {FAULTY_RANK} broken from step {FROM_STEP} on:")
        print(f"  plain      {accuracy(plain):.1%}")
        print(f"  protected  {accuracy(protected):.1%}", flush=True)
    dist.barrier()
    os._exit(0)  # threads of gloo may still be letting go of what they held


if __name__ == "__main__":
    main()
