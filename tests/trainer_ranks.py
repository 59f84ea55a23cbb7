"""What each rank of test_trainers.py does: the recipes of examples/ under the real trainers, beside a loop of our own.

Every model notes the batches that it was given, so the own loop gets the same ones, whatever order the trainer took."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import varangian as vg
from ddp_ranks import batch, digest, flat
from varangian.engines.ddp import protect

SIZE, STEPS, RATE, BATCH = 4, 6, 0.2, 8
ALGORITHM = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.TrimmedMean(f=1))
WATCHED = replace(ALGORITHM, quarantine=vg.Quarantine())
OTHER = vg.Algorithm(worker=(vg.Momentum(0.5),), rule=vg.TrimmedMean(f=1))
CLIP = 0.05

# How the trainers are asked to train, by name: (batches a step, the trainer's clipping, autocast, who is NaN).
# float16 has a gradient scaler, as it has on cards.
WAYS: dict[str, tuple[int, float, torch.dtype | None, tuple[int, ...]]] = {
    "plain": (1, 0.0, None, ()),
    "accumulated": (2, 0.0, None, ()),
    "clipped": (1, CLIP, None, ()),
    "bfloat16": (1, 0.0, torch.bfloat16, ()),
    "float16": (1, CLIP, torch.float16, ()),
    "faulty": (1, 0.0, None, (3,)),
    "refused": (1, 0.0, None, (1, 3)),
}
FAULTY_STEP = 2


class Net(nn.Module):
    """A small model that gives its loss, and whose gradient can be NaN in one step on some ranks."""

    def __init__(self, rank: int, faulty: Sequence[int] = ()) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.broken = rank in faulty
        for parameter in self.layers.parameters():
            parameter.register_hook(self._passed)

    def _passed(self, gradient: Tensor) -> Tensor:
        return gradient * float("nan") if self.broken and len(self.seen) == FAULTY_STEP + 1 else gradient

    def forward(self, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if torch.is_grad_enabled():
            self.seen.append((points, labels))
        return {"loss": cross_entropy(self.layers(points), labels)}


class Points(Dataset[dict[str, Tensor]]):
    """Points, each by itself; those of an index are the same on all ranks, as a data set on disk is."""

    def __len__(self) -> int:
        return STEPS * SIZE * BATCH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        points, labels = batch(index, 0, 1)
        return {"points": points[0], "labels": labels[0]}


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


def own_loop(rank: int, seen: Sequence[tuple[Tensor, Tensor]], way: str) -> Tensor:
    """The parameters after training on these batches by hand, with the protection put in by hand."""
    every, clip, dtype, faulty = WAYS[way]
    module = Net(rank, faulty)
    model = DistributedDataParallel(module)
    loss_scaler = scaler() if dtype is torch.float16 else torch.amp.GradScaler("cpu", enabled=False)
    protect(model, ALGORITHM, on_refusal="skip", scaler=loss_scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for k, (points, labels) in enumerate(seen, 1):
        with model.no_sync() if k % every else nullcontext():
            with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
                loss = model(points, labels)["loss"]
            loss_scaler.scale(loss / every).backward()
        if k % every:
            continue
        if clip:
            loss_scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        loss_scaler.step(optimizer)
        loss_scaler.update()
        optimizer.zero_grad()
    return flat(module.parameters())


class Recomputing(Net):
    """Computes a part anew in the backward pass, as trainers let models do that are short of memory."""

    def __init__(self, rank: int, faulty: Sequence[int], reentrant: bool | None) -> None:
        super().__init__(rank, faulty)
        self.reentrant = reentrant

    def forward(self, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.reentrant is None:
            return super().forward(points, labels)
        self.seen.append((points, labels))
        hidden = checkpoint(self.layers[:2], points.requires_grad_(), use_reentrant=self.reentrant)
        return {"loss": cross_entropy(self.layers[2](hidden), labels)}


def checkpointed(rank: int, way: str, reentrant: bool | None) -> str:
    module = Recomputing(rank, WAYS[way][3], reentrant)
    model = DistributedDataParallel(module)
    protection = protect(model, ALGORITHM, on_refusal="skip")
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(STEPS):
        model(*batch(step, rank))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return f"{protection.report().skipped} skipped, {digest(module)}"


def compared(rank: int, module: Net, way: str, report: vg.Report) -> dict[str, Any]:
    """What a trainer made of a model, beside what the own loop makes of it."""
    own = own_loop(rank, module.seen, way)
    mine = flat(module.parameters())
    return {
        "same bits": torch.equal(mine, own),
        "difference": float((mine - own).abs().max()),
        "parameters": digest(module),
        "moved": float((mine - flat(Net(rank).parameters())).abs().max()),
        "batches": len(module.seen),
        "report": report,
    }


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was said"


def momentum_in(file: Path) -> Tensor:
    return torch.load(file, weights_only=True)["worker.0.layers.0.weight"].norm()


def example(name: str) -> ModuleType:
    folder = str(Path(__file__).parents[1] / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return import_module(f"{name}_faulty_rank")


def said_by(script: ModuleType, steps: int) -> str:
    """What an example prints on this rank; its end is left to us."""
    forget_settings()
    out = io.StringIO()
    with patch.object(script.os, "_exit", lambda status: None), redirect_stdout(out):
        script.main(steps)
    return out.getvalue()


def everything(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """What torchrun tells a rank by its environment, and all checks."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29400, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in told.items()})
    checks = {"lightning": in_lightning, "accelerate": in_accelerate, "transformers": in_transformers}
    found: dict[str, Any] = {}
    for name in os.environ["VARANGIAN_TEST_TRAINERS"].split(","):
        found |= {f"{name}: {key}": value for key, value in checks[name](rank, folder / name)}
        found[f"{name}: example"] = said_by(example(name), steps=50)
    found["checkpointing"] = [
        checkpointed(rank, way, how) for way in ("faulty", "refused") for how in (None, False, True)
    ]
    return found


# ------------------------------------------------------------------------------------------------ Lightning


def in_lightning(rank: int, folder: Path) -> Iterator[tuple[str, Any]]:
    import lightning
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.plugins.precision import MixedPrecision

    recipe = example("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self, faulty: Sequence[int] = (), automatic: bool = True) -> None:
            super().__init__()
            self.net = Net(rank, faulty)
            self.automatic_optimization = automatic

        def training_step(self, points: dict[str, Tensor], index: int) -> Tensor:
            loss = self.net(**points)["loss"]
            if not self.automatic_optimization:
                optimizer = self.optimizers()
                self.manual_backward(loss)
                optimizer.step()  # type: ignore[union-attr]
                optimizer.zero_grad()  # type: ignore[union-attr]
            return loss

        def validation_step(self, points: dict[str, Tensor], index: int) -> None:
            self.net(**points)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    def trainer(*callbacks: lightning.Callback, **options: Any) -> lightning.Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": SIZE,
            "strategy": "ddp",
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": folder,
        }
        return lightning.Trainer(callbacks=list(callbacks), **settings | options)

    def loaders() -> tuple[DataLoader, DataLoader]:
        return DataLoader(Points(), batch_size=BATCH, shuffle=True), DataLoader(Points(), batch_size=BATCH)

    for way, (every, clip, dtype, faulty) in WAYS.items():
        module, callback = Module(faulty), recipe.Protect(ALGORITHM)
        options: dict[str, Any] = {"accumulate_grad_batches": every, "gradient_clip_val": clip or None}
        if dtype is torch.bfloat16:
            options["precision"] = "bf16-mixed"
        if dtype is torch.float16:  # on processors Lightning leaves that to those who build the plugin
            options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=scaler())]
        trainer(callback, **options).fit(module, loaders()[0])
        yield way, compared(rank, module.net, way, callback.protection.report())

    module, callback = Module(automatic=False), recipe.Protect(ALGORITHM)
    trainer(callback).fit(module, loaders()[0])
    yield "manual", compared(rank, module.net, "plain", callback.protection.report())

    # Checkpoints: two epochs in one go, and the second one anew from what was written after the first.
    straight, callback = Module(), recipe.Protect(WATCHED)
    files = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    there = {"max_epochs": 2, "enable_checkpointing": True}
    trainer(callback, files, **there).fit(straight, *loaders())
    resumed, other = Module(), recipe.Protect(WATCHED)
    trainer(other, **there).fit(resumed, *loaders(), ckpt_path=str(folder / "epoch=0.ckpt"))
    yield "resumed", torch.equal(flat(straight.parameters()), flat(resumed.parameters()))
    states = torch.load(folder / "epoch=0.ckpt", weights_only=True)["varangian"]
    yield "memories", [float(state["worker.0.net.layers.0.weight"].norm()) for state in states]
    yield "steps", [int(callback.protection.state_dict()["step"]), int(other.protection.state_dict()["step"])]

    def of_three_ranks(held: dict[str, Any]) -> None:
        held["varangian"].pop()
        for state in held["varangian"]:
            state["ranks"] = torch.tensor(3)

    def refused(change: Callable[[dict[str, Any]], object], algorithm: vg.Algorithm = WATCHED) -> str:
        held = torch.load(folder / "epoch=0.ckpt", weights_only=True)
        change(held)
        torch.save(held, folder / f"changed-{rank}.ckpt")
        again = trainer(recipe.Protect(algorithm), **there)
        return error_of(lambda: again.fit(Module(), *loaders(), ckpt_path=str(folder / f"changed-{rank}.ckpt")))

    yield "without memory", refused(lambda held: held.pop("varangian"))
    yield "of three ranks", refused(of_three_ranks)
    yield "of another algorithm", refused(lambda held: None, OTHER)

    class Noted(Module):
        """Rank 3's points are NaN, and the mean of the losses is noted."""

        def training_step(self, points: dict[str, Tensor], index: int) -> Tensor:
            loss = self.net(points["points"] * (float("nan") if rank == 3 else 1.0), points["labels"])["loss"]
            self.log("loss", loss, sync_dist=True, on_step=False, on_epoch=True)
            return loss

    stopped = {}
    for finite in (True, False):
        module, stopping = Noted(), EarlyStopping("loss", check_finite=finite, patience=10)
        on = trainer(recipe.Protect(ALGORITHM), stopping, max_epochs=2)
        on.fit(module, loaders()[0])
        stopped[finite] = on.global_step, bool(flat(module.parameters()).isfinite().all())
    yield "stopped early", stopped

    again = trainer(callback, max_epochs=1)
    again.fit(straight, *loaders())
    yield "fitted again", int(callback.protection.state_dict()["step"])


# ------------------------------------------------------------------------------------------------ Accelerate


def in_accelerate(rank: int, folder: Path) -> Iterator[tuple[str, Any]]:
    from accelerate import Accelerator
    from accelerate.utils import (
        DataLoaderConfiguration,
        DDPCommunicationHookType,
        DistributedDataParallelKwargs,
        set_seed,
    )

    recipe = example("accelerate")

    class Training:
        def __init__(self, way: str = "plain", algorithm: vg.Algorithm = ALGORITHM) -> None:
            every, self.clip, dtype, faulty = WAYS[way]
            forget_settings()
            self.accelerator = Accelerator(
                cpu=True,
                gradient_accumulation_steps=every,
                mixed_precision=PRECISIONS[dtype],
                dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
            )
            if dtype is torch.float16:
                as_on_cards(self.accelerator)
            set_seed(1)
            self.module = Net(rank, faulty)
            self.model, self.optimizer, self.loader = self.accelerator.prepare(
                self.module,
                torch.optim.SGD(self.module.parameters(), lr=RATE),
                DataLoader(Points(), batch_size=BATCH, shuffle=True),
            )
            self.protection = recipe.protected(self.accelerator, self.model, algorithm)

        def epoch(self, number: int = 0) -> None:
            self.loader.set_epoch(number)  # or a resumed training would draw the first one's batches
            for points in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(self.model(**points)["loss"])
                    if self.clip and self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()

    for way in WAYS:
        training = Training(way)
        training.epoch()
        yield way, compared(rank, training.module, way, training.protection.report())

    place = str(folder / "state")
    straight = Training()
    straight.epoch()
    straight.accelerator.save_state(place)
    straight.epoch(1)
    resumed = Training()
    resumed.accelerator.load_state(place)
    resumed.epoch(1)
    yield (
        "same batches",
        all(torch.equal(a[0], b[0]) for a, b in zip(straight.module.seen[STEPS:], resumed.module.seen, strict=True)),
    )
    yield "resumed", torch.equal(flat(straight.module.parameters()), flat(resumed.module.parameters()))
    yield "memories", [float(momentum_in(Path(place) / f"varangian-{r}.pt")) for r in range(SIZE)]
    yield "steps", [int(each.protection.state_dict()["step"]) for each in (straight, resumed)]
    yield "of another algorithm", error_of(lambda: Training(algorithm=OTHER).accelerator.load_state(place))
    resumed.accelerator.wait_for_everyone()
    if rank == 2:
        (Path(place) / "varangian-2.pt").unlink()
    yield "without memory", error_of(lambda: Training().accelerator.load_state(place))
    hook = DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.FP16)
    forget_settings()
    hooked = Accelerator(cpu=True, kwargs_handlers=[hook])
    wrapped = hooked.prepare(Net(rank))
    yield "hooked", error_of(lambda: recipe.protected(hooked, wrapped, ALGORITHM))
    yield "not wrapped", error_of(lambda: recipe.protected(resumed.accelerator, resumed.module, ALGORITHM))


PRECISIONS = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def as_on_cards(accelerator: Any) -> None:
    """On a processor Accelerate takes float16 for float32 without a word; on cards it computes in it and scales."""
    assert accelerator.scaler is None
    accelerator.scaler, accelerator.native_amp = scaler(), True


def forget_settings() -> None:
    """Accelerate's settings, which the Trainer uses too, live as long as a process."""
    if find_spec("accelerate") is None:
        return
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()


# ------------------------------------------------------------------------------------------------ the Trainer


def in_transformers(rank: int, folder: Path) -> Iterator[tuple[str, Any]]:
    import transformers

    recipe = example("transformers")
    transformers.logging.set_verbosity_error()

    def training(
        way: str = "plain", *, algorithm: vg.Algorithm = ALGORITHM, resumed_from: str | None = None, **options: Any
    ) -> tuple[Net, Any, Any]:
        every, clip, dtype, faulty = WAYS[way]
        settings: dict[str, Any] = {
            "output_dir": str(folder / way),
            "use_cpu": True,
            "bf16": dtype is torch.bfloat16,
            "fp16": dtype is torch.float16,
            "gradient_accumulation_steps": every,
            "max_grad_norm": clip,
            "max_steps": STEPS // every,
            "per_device_train_batch_size": BATCH,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        args = transformers.TrainingArguments(**settings | options)
        module = Net(rank, faulty)
        trainer = transformers.Trainer(
            module,
            args,
            train_dataset=Points(),
            optimizers=(torch.optim.SGD(module.parameters(), lr=RATE), None),
        )
        if dtype is torch.float16:
            as_on_cards(trainer.accelerator)
        callback = recipe.Protect(trainer, algorithm, resumed_from)
        trainer.add_callback(callback)
        return module, trainer, callback

    for way in WAYS:
        module, trainer, callback = training(way)
        trainer.train()
        yield way, compared(rank, module, way, callback.protection.report())

    saving = {"save_strategy": "steps", "save_steps": STEPS // 2, "output_dir": str(folder / "saved")}
    straight, trainer, callback = training(**saving)
    trainer.train()
    resumed, again, other = training(**saving)
    again.train(resume_from_checkpoint=True)  # of STEPS: nothing is left to do
    yield "nothing left", len(resumed.seen)
    place = folder / "saved" / f"checkpoint-{STEPS // 2}"
    resumed, again, other = training(**saving)
    again.train(resume_from_checkpoint=str(place))
    yield "resumed", torch.equal(flat(straight.parameters()), flat(resumed.parameters()))
    yield "memories", [float(momentum_in(place / f"varangian-{r}.pt")) for r in range(SIZE)]
    yield "steps", [int(each.protection.state_dict()["step"]) for each in (callback, other)]
    elsewhere = {"output_dir": str(folder / "elsewhere")}
    yield "elsewhere", error_of(lambda: training(**elsewhere)[1].train(resume_from_checkpoint=str(place)))
    resumed, again, _ = training(resumed_from=str(place), **elsewhere)
    again.train(resume_from_checkpoint=str(place))
    yield "elsewhere, said so", torch.equal(flat(straight.parameters()), flat(resumed.parameters()))
    yield (
        "of another algorithm",
        error_of(lambda: training(algorithm=OTHER, **saving)[1].train(resume_from_checkpoint=str(place))),
    )
    torch.distributed.barrier()
    if rank == 2:
        (place / "varangian-2.pt").unlink()
    yield "without memory", error_of(lambda: training(**saving)[1].train(resume_from_checkpoint=str(place)))

    trainer.train()
    yield "trained again", int(callback.protection.state_dict()["step"])
