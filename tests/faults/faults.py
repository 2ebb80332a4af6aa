"""Callbacks and data that break a run at a chosen moment, for configs."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import signal
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lightning_efficient.profiling.energy import EnergyReading


class SignalAt(Callback):
    """Send a signal to this process at the first chance from a step on.

    Args:
        step: Optimiser steps that have to be taken before.
        name: The signal.
        place: ``step``: before a step; ``backward``: when the first gradient is there; ``optimizer``: when the weights
            have moved, and nothing else knows; ``batch_end``: after a step, before its checkpoint; ``validation``:
            between two batches of it; ``epoch_end``: before the checkpoint of an epoch; ``dump``: when a checkpoint is
            put together; ``write``: when ``written`` of its bytes are on the disk, and by SIGXFSZ; ``rename``: before
            it takes its place; ``remove``: before the file goes that it stands for from now on.
        written: Bytes.
        times: How often the signal is sent.
    """

    def __init__(self, step: int, name: str = "SIGKILL", place: str = "step", written: int = 0, times: int = 1) -> None:
        self.step = step
        self.number = signal.Signals[name]
        self.place = place
        self.written = written
        self.times = times
        self._trainer: Trainer | None = None

    def _at(self, place: str) -> None:
        trainer = self._trainer
        if place != self.place or trainer is None or trainer.global_step < self.step or trainer.sanity_checking:
            return
        self.place = ""
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        if self.place == "optimizer":
            register_optimizer_step_post_hook(lambda *_: self._at("optimizer"))
        if self.place in ("rename", "remove"):
            sys.addaudithook(self._audit)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._at("step")
        if self.place == "backward":
            # pruning may have put other parameters in their place
            for parameter in filter(lambda parameter: parameter.requires_grad, pl_module.parameters()):
                parameter.register_hook(lambda gradient: self._at("backward"))

    def on_train_batch_end(self, *_: Any) -> None:
        self._at("batch_end")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx:
            self._at("validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at("epoch_end")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._at("dump")
        if self.place == "write" and trainer.global_step >= self.step:
            # the kernel ends a process whose file grows beyond this, at the very byte
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.written, self.written))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).endswith(".ckpt"):
            self._at("rename")
        if event == "os.remove" and str(arguments[0]).endswith(".ckpt"):
            self._at("remove")


class BreakBatch(Callback):
    """Put a NaN into the batch of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            batch[0].view(-1)[0] = torch.nan


class KillWorker(Callback):
    """Kill a process that loads data, as a kernel does that runs out of memory, before a step is taken."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


class SetClock(Callback):
    """Set the clock on the wall a day back, and a day ahead, and so on, each time that somebody looks at it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now, jumps = time.time, itertools.cycle((-86_400.0, 86_400.0))
        time.time = lambda: now() + next(jumps)


class StepCounter:
    """A counter of energy after which each optimiser step of this process takes one joule, and lasts a second."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._open: dict[str, float] = {}

    def available(self) -> str | None:
        register_optimizer_step_post_hook(self._count)
        return None

    def begin(self, key: str) -> None:
        self._open[key] = self._spent

    def end(self, key: str) -> EnergyReading:
        joules = self._spent - self._open.pop(key)
        return EnergyReading(joules, joules, {"cpu:0": joules})

    def _count(self, *_: Any) -> None:
        self._spent += 1
