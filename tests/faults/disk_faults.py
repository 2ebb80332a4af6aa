"""A disk that is full: from a moment on no file may grow beyond a size, at the very byte, whoever writes it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


def limit_files(most: int) -> None:
    """Let the system refuse to make a file larger than this many bytes; Python turns the signal into an error."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


@contextmanager
def room_for(most: int) -> Iterator[None]:
    """Limit files to ``most`` bytes for a while."""
    before, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(most)
    try:
        yield
    finally:
        limit_files(before)


class FullDisk(Callback):
    """Limit files before a step is taken; whoever started the run takes the limit away."""

    def __init__(self, step: int, most: int) -> None:
        self.step = step
        self.most = most

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            limit_files(self.most)
