"""Checkpoints that are written whole or not at all, wherever the folder for temporary files is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_efficient._files import write_tensors


class WholeCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place and then move it there.

    Lightning writes it to the folder for temporary files, from where it is copied if that is on another disk, as on
    most clusters: a process that is killed meanwhile leaves half a ``last.ckpt``, and the one before it is gone.
    Addresses such as ``s3://`` are left to Lightning.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     WholeCheckpointIO().save_checkpoint({"epoch": 3}, Path(folder, "last.ckpt"))
        ...     WholeCheckpointIO().load_checkpoint(Path(folder, "last.ckpt"), weights_only=True)
        {'epoch': 3}
    """

    last_written: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Args:
            checkpoint: What ``torch.save`` takes.
            path: The file, whose folder is made.
            storage_options: Not used; Lightning refuses them.

        Raises:
            OSError: it cannot be written; what was there is still there.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_tensors(checkpoint, Path(path))
        self.last_written = Path(path)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a Trainer write its checkpoints whole, unless it was given another way or its strategy has its own."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()
