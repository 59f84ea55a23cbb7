"""One faulty rank under the Hugging Face Trainer: the plain training is lost, the one with one callback more is not.

    pip install 'transformers[torch]'
    torchrun --standalone --nproc-per-node 4 examples/transformers_faulty_rank.py

Four processes train a tiny vision transformer with random weights on handwritten digits. From step 20 on rank 3's
gradients are NaN, as a broken card's or a bad batch's would be. `Protect` is the recipe: copy it.
docs/howto/trainers.md says what of the Trainer it serves. About a minute on two cores.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import varangian as vg
from varangian.engines.ddp import Protection, protect
from varangian.simulation.data import digits, prepare

# ---- recipe


class Protect(TrainerCallback):
    """Puts an algorithm in the place of the mean of gradients, and its memory into the Trainer's checkpoints:
    trainer.add_callback(Protect(trainer, algorithm)).

    Who resumes from another folder than checkpoint-STEP in the output's says so by resumed_from.
    """

    def __init__(self, trainer: Trainer, algorithm: vg.Algorithm, resumed_from: str | None = None) -> None:
        self.trainer, self.algorithm, self.resumed_from = trainer, algorithm, resumed_from
        self.protection: Protection | None = None
        self.model: Any = None  # the one that is protected

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        model = self.trainer.model_wrapped  # callbacks are handed the one inside
        if model is not self.model:  # a second train() goes on with the first one's
            self.protection = protect(
                model,
                self.algorithm,
                scaler=self.trainer.accelerator.scaler,
                on_refusal="skip",  # an error would end the Trainer's loop
                warn=logging.getLogger("transformers").warning,
            )
            self.model = model
        if state.global_step:
            self.load(Path(self.resumed_from or folder_of(args, state)) / name_of(args))

    def load(self, file: Path) -> None:
        assert self.protection is not None
        try:  # without a file too, since all ranks must call it: then all are told
            held = torch.load(file, map_location="cpu", weights_only=True) if file.exists() else {}
            self.protection.load_state_dict(held)
        except ValueError as error:
            raise ValueError(f"{file}{'' if file.exists() else ', which is not there'}: {error}") from None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        assert self.protection is not None
        folder = folder_of(args, state)
        folder.mkdir(parents=True, exist_ok=True)  # of a rank on another machine
        torch.save(self.protection.state_dict(), folder / name_of(args))


def folder_of(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or "") / f"checkpoint-{state.global_step}"


def name_of(args: TrainingArguments) -> str:
    """A file a rank: each has a momentum of its own."""
    return f"varangian-{args.process_index}.pt"


# ---- end of the recipe

FAULTY_RANK, FROM_STEP = 3, 20
ALGORITHM = vg.Algorithm(worker=(vg.Clip(2.0), vg.Momentum(0.9)), rule=vg.TrimmedMean(f=1))


def transformer() -> ViTForImageClassification:
    torch.manual_seed(1)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
            initializer_range=0.15,  # small models start slowly from the default's 0.02
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def examples(images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def arguments(**changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": "transformers_checkpoints",
        "use_cpu": True,  # on cards without it: nothing else is different
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,  # the Trainer's clipping, on by default, is of the update and not of each rank's vector
        "average_tokens_across_devices": False,  # each rank's loss by its own labels, not by what others say of theirs
        "ddp_find_unused_parameters": False,
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }
    return TrainingArguments(**settings | changes)


def trainer_of(model: ViTForImageClassification, args: TrainingArguments, momentum: float) -> Trainer:
    """A Trainer whose rank 3 breaks."""
    data = digits()
    trainer = Trainer(
        model,
        args,
        train_dataset=examples(prepare(data, data.train.images), data.train.labels),  # type: ignore[arg-type]
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum), None),
    )

    def fault(gradient: Tensor) -> Tensor:
        broken = args.process_index == FAULTY_RANK and trainer.state.global_step >= FROM_STEP
        return gradient * float("nan") if broken else gradient

    for parameter in model.parameters():
        parameter.register_hook(fault)
    return trainer


def accuracy(model: ViTForImageClassification) -> float:
    data = digits()
    with torch.no_grad():
        answers = model.eval()(prepare(data, data.test.images)).logits
    return float((answers.argmax(1) == data.test.labels).float().mean())


def main(steps: int = 120) -> None:
    torch.set_num_threads(1)
    plain, protected = transformer(), transformer()
    trainer_of(plain, arguments(max_steps=steps), momentum=0.9).train()
    trainer = trainer_of(protected, arguments(max_steps=steps), momentum=0.0)  # its momentum is in the algorithm
    callback = Protect(trainer, ALGORITHM)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.protection is not None
    if trainer.is_world_process_zero():
        print(callback.protection.report())
        print(f"test accuracy after {steps} steps, rank {FAULTY_RANK} broken from step {FROM_STEP} on:")
        print(f"  plain      {accuracy(plain):.1%}")
        print(f"  protected  {accuracy(protected):.1%}", flush=True)
    dist.barrier()
    os._exit(0)  # threads of gloo may still be letting go of what they held


if __name__ == "__main__":
    main()
