"""Callbacks that put values into a run that are no numbers: into data, targets, gradients and validation."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves


class BreakData(Callback):
    """Put a value into the first batch from a step on whose tensors can hold it.

    Args:
        step: Optimiser steps that have to be taken before.
        value: ``nan`` or ``inf``.
        target: Whether the last tensor of floating point of the batch is broken, not the first.
    """

    def __init__(self, step: int, value: float = torch.nan, target: bool = False) -> None:
        self.step = step
        self.value = value
        self.place = -1 if target else 0
        self._done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        floats = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if trainer.global_step >= self.step and floats and not self._done:
            self._done = True
            floats[self.place].view(-1)[0] = self.value


class BreakGradient(Callback):
    """Put a NaN into the gradient of every parameter once, in a step whose loss is finite."""

    def __init__(self, step: int, value: float = torch.nan) -> None:
        self.step = step
        self.value = value
        self._done = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step >= self.step and not self._done:
            self._done = True
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.view(-1)[0] = self.value


class BreakValidation(Callback):
    """Put a NaN into every validation batch of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.current_epoch == self.epoch and not trainer.sanity_checking:
            floats = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            for leaf in floats:
                leaf.view(-1)[0] = torch.nan
