"""When something happened in a run, and what there is to go back to: the ends of error messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_leaves


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether no tensor holds NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def moment(trainer: Trainer) -> str:
    """Name the step, the epoch and the batch that are under way."""
    return f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"


def cause_of_bad_loss(batch: Any, module: LightningModule) -> str:
    """Say whether the batch or the step before is to blame for a loss that is not finite."""
    inputs = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    if all_finite(inputs):
        parts = (each.to_local() if hasattr(each, "to_local") else each for each in module.parameters())
        if not all_finite(parts):
            return (
                "the weights hold NaN or infinite values, which the gradient of an earlier step has put there; try a "
                "lower learning rate or gradient clipping, or --trainer.detect_anomaly true to find the operation"
            )
        return "the batch is finite, so try a lower learning rate or gradient clipping"
    return "the batch itself holds NaN or infinite values"


def returned(outputs: Any) -> str:
    """Say what a step returned, where it is not what was needed."""
    return f"the keys {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else type(outputs).__name__


def last_good_checkpoint(trainer: Trainer) -> str:
    """Name the checkpoint that was written last."""
    keepers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    named = [path for keeper in keepers for path in (keeper.best_model_path, keeper.last_model_path) if path]
    # a callback names its next checkpoint before it is written
    if last := getattr(trainer.strategy.checkpoint_io, "last_written", None):
        named.append(str(last))
    # a monitored checkpoint is the best one and may be old
    saved = max(
        (path for path in map(Path, named) if path.exists()), key=lambda path: path.stat().st_mtime, default=None
    )
    return f"last good checkpoint: {saved or 'none yet'}"
