"""The worker half of an algorithm in the nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MessageType

from ...core.checks import shown
from ...core.transforms import Momentum, SharedMomentum, Transform
from ...core.vectors import BUFFER_NAMES, unflatten
from .arrays import MalformedError, Model, buffer_names_of

MEMORY = "varangian.worker"  # where a node keeps its memory, in its context

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


def worker_mod(*stages: Transform, buffer_names: Sequence[str] = BUFFER_NAMES) -> Mod:
    """A mod for a ClientApp that runs the worker half in the node: what the node sends is its stages' output.

    The node keeps its own memory, in its context, and the strategy's algorithm then has no worker stages. What is sent
    is the model received plus the stages' output, so that the strategy finds that output by subtraction: it loses what
    the sum rounds off.

    Args:
        stages: as in ``Algorithm(worker=...)``.
        buffer_names: as for :class:`RobustStrategy`; the same there.

    Raises:
        ValueError: stages that cannot run in a node; inside a node, a reply that does not match the model received.

    Example:
        >>> import varangian as vg
        >>> from flwr.clientapp import ClientApp
        >>> app = ClientApp(mods=[worker_mod(vg.Clip(1.0), vg.Momentum(0.9))])
    """
    buffer_names = buffer_names_of("worker_mod", buffer_names)
    for stage in stages:
        if not isinstance(stage, Transform):
            raise ValueError(f"worker_mod needs transforms, such as Momentum(0.9), got {shown(stage)}.")
        refuse_look_ahead("worker_mod", stage)
        if stage.uses_previous:
            raise ValueError(f"worker_mod needs stages of the node alone, got {stage}, which uses the last aggregate.")

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        trains = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        if not trains or len(message.content.array_records) != 1:
            return call_next(message, context)
        model = Model(next(iter(message.content.array_records.values())), "keep", buffer_names)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        try:
            vector, _ = model.read(reply.content)
        except MalformedError as error:
            raise ValueError(f"worker_mod needs a reply that matches the model received: {error}.") from None
        [(key, record)] = reply.content.array_records.items()
        memory = context.state.array_records.get(MEMORY, ArrayRecord())
        for k, stage in enumerate(stages):
            kept = None
            if stage.remembers:
                kept = torch.from_numpy(memory[str(k)].numpy()) if str(k) in memory else torch.zeros_like(vector)
            vector, kept = stage(vector, kept)
            if kept is not None:
                memory[str(k)] = Array(kept.numpy())
        context.state[MEMORY] = memory
        sent = unflatten(model.vector + vector, model.shape)
        reply.content[key] = ArrayRecord(
            {name: Array(sent[name].numpy()) if name in sent else array for name, array in record.items()}
        )
        return reply

    return mod


def refuse_look_ahead(owner: str, stage: Transform) -> None:
    if isinstance(stage, (Momentum, SharedMomentum)) and stage.nesterov:
        raise ValueError(
            f"{owner} needs classical momentum, got {stage}: all nodes are sent one model, none ahead of it."
        )
