"""A Trainer that evaluates for a verb of ours, and leaves nothing behind."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback

from lightning_efficient._trainer import remove_callbacks
from lightning_efficient.callbacks import LatencyProfiler, SelectiveCoverage

_WRITERS: tuple[type[Callback], ...] = (Checkpoint, SaveConfigCallback, SelectiveCoverage, LatencyProfiler)


def listen_only(trainer: Trainer, listener: Callback, *, progress: bool) -> None:
    """Put a callback in the place of a Trainer's loggers and of what writes into a run folder.

    Args:
        trainer: The Trainer; changed in place.
        listener: The callback.
        progress: Whether the progress bar stays.
    """
    remove_callbacks(trainer, _WRITERS if progress else (*_WRITERS, ProgressBar))
    trainer.callbacks.append(listener)  # type: ignore[attr-defined]
    trainer.loggers = []
