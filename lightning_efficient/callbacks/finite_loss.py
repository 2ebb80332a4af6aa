"""Stop before a NaN reaches the weights or a checkpoint."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_efficient._trainer import gather_objects
from lightning_efficient.callbacks._moment import all_finite, cause_of_bad_loss, last_good_checkpoint, moment
from lightning_efficient.errors import NonFiniteLossError
from lightning_efficient.typing import Batch


class FiniteLoss(Callback):
    """Stop training at the first loss that is NaN or infinite, before its gradient is taken.

    The error names the step, the epoch and the batch, and says whether the batch itself held such values. That step
    does not touch the weights. Where a step with a finite loss has spoilt them, as a far too high learning rate or a
    gradient that is NaN can, the next loss tells, and no checkpoint of them is written, so the last one is always good
    (one with ``save_weights_only`` is not looked at).
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
        raise NonFiniteLossError(
            f"the training loss is {value} at {moment(trainer)}; {cause_of_bad_loss(self._batch, pl_module)}; "
            f"{last_good_checkpoint(trainer)}"
        )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the weights."""
        # of sharded parameters each rank sees its own part, and one that raised alone would leave the others waiting
        parts = (each.to_local() if hasattr(each, "to_local") else each for each in pl_module.parameters())
        if not all(gather_objects(trainer, all_finite(parts))):
            raise NonFiniteLossError(
                f"the weights hold NaN or infinite values at {moment(trainer)}, so no checkpoint of them is written; "
                f"try a lower learning rate or gradient clipping; {last_good_checkpoint(trainer)}"
            )
