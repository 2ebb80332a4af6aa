"""Callbacks and data that break a run at a chosen moment, for configs."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SignalAt(Callback):
    """Send a signal to this process before a step is taken."""

    def __init__(self, step: int, name: str = "SIGKILL") -> None:
        self.step = step
        self.number = signal.Signals[name]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class BreakBatch(Callback):
    """Put a NaN into the batch of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            batch[0].view(-1)[0] = torch.nan
