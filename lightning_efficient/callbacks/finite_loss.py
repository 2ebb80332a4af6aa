"""Stop before a NaN reaches the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_efficient.errors import NonFiniteLossError
from lightning_efficient.typing import Batch


class FiniteLoss(Callback):
    """Stop training at the first loss that is NaN or infinite, before its gradient is taken.

    The error names the step, the epoch and the batch, and says whether the batch itself held such values. The weights
    are still those of the last good step, and so is the last checkpoint. Reading the loss waits for the device once a
    step, which is free on CPU and costs a GPU its head start of one step.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
    """

    def __init__(self) -> None:
        self._batch: Batch = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._batch = batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._batch = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if torch.isfinite(loss).all():
            return
        inputs = [leaf for leaf in tree_leaves(self._batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        broken = any(not torch.isfinite(leaf).all() for leaf in inputs)
        cause = (
            "the batch itself holds NaN or infinite values"
            if broken
            else "the batch is finite, so try a lower learning rate or gradient clipping"
        )
        saved = getattr(trainer.checkpoint_callback, "best_model_path", "") or "none yet"
        raise NonFiniteLossError(
            f"the training loss is {loss.detach().float().mean().item()} at step {trainer.global_step} "
            f"(epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx}); {cause}; last good checkpoint: {saved}"
        )
