"""Stop before a NaN reaches the weights or a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_efficient.errors import NonFiniteLossError
from lightning_efficient.typing import Batch


class FiniteLoss(Callback):
    """Stop training at the first loss that is NaN or infinite, before its gradient is taken.

    The error names the step, the epoch and the batch, and says whether the batch itself held such values. That step
    does not touch the weights. Where a step with a finite loss has spoilt them, as a far too high learning rate can, no
    checkpoint of them is written, so the last one is always good (one with ``save_weights_only`` is not looked at).
    Reading the loss waits for the device once a step, which is free on CPU and costs a GPU its head start of one step.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite, or a weight is when a checkpoint is to be written.
    """

    def __init__(self) -> None:
        self._batch: Batch = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Keep the batch, to look into if its loss is not finite."""
        self._batch = batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Let go of the batch."""
        self._batch = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss."""
        value = loss.item()
        if math.isfinite(value):
            return
        inputs = [leaf for leaf in tree_leaves(self._batch) if isinstance(leaf, Tensor)]
        cause = (
            "the batch is finite, so try a lower learning rate or gradient clipping"
            if _all_finite(inputs)
            else "the batch itself holds NaN or infinite values"
        )
        raise NonFiniteLossError(f"the training loss is {value} at {_moment(trainer)}; {cause}; {_last_good(trainer)}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the weights."""
        if not _all_finite(pl_module.parameters()):
            raise NonFiniteLossError(
                f"the weights hold NaN or infinite values at {_moment(trainer)}, so no checkpoint of them is written; "
                f"try a lower learning rate or gradient clipping; {_last_good(trainer)}"
            )


def _all_finite(tensors: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _moment(trainer: Trainer) -> str:
    return f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"


def _last_good(trainer: Trainer) -> str:
    keepers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    named = [path for keeper in keepers for path in (keeper.best_model_path, keeper.last_model_path) if path]
    # a monitored checkpoint is the best one and may be old
    saved = max(
        (path for path in map(Path, named) if path.exists()), key=lambda path: path.stat().st_mtime, default=None
    )
    return f"last good checkpoint: {saved or 'none yet'}"
