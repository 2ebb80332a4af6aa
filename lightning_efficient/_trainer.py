"""Public attributes of a Trainer that it sets at run time, where type checkers cannot see them."""

from __future__ import annotations

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

CallbackT = TypeVar("CallbackT", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[CallbackT]) -> list[CallbackT]:
    """Return the callbacks of one class, in the order in which they are called."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def is_rehearsal(trainer: Trainer) -> bool:
    """Tell whether this is a ``fast_dev_run``, which leaves no files behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
