"""What callbacks ask of a Trainer, among it public attributes that type checkers cannot see."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer

CallbackT = TypeVar("CallbackT", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[CallbackT]) -> list[CallbackT]:
    """Return the callbacks of one class, in the order in which they are called."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def is_rehearsal(trainer: Trainer) -> bool:
    """Tell whether this is a ``fast_dev_run``, which leaves no files behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """Return the value of each process, in the order of their ranks; it must be picklable.

    A process that fails saves alone, and waiting for the others there would never end: it returns its own only.
    """
    if trainer.world_size == 1 or trainer.interrupted:
        return [value]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered
