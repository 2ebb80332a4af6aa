"""A teacher for those who have none yet: trained once with cross-entropy, then kept on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_efficient._files import write_tensors
from lightning_efficient._trainer import is_rehearsal
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.checkpoints import hash_weights, load_weights
from lightning_efficient.rng import rng_untouched

LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05


class _Training(pl.LightningModule):
    """Cross-entropy, AdamW, and a cosine over the run that ends at zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.network(batch[0]).float(), batch[1])
        self.log("teacher/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def trained_teacher(network: nn.Module, trainer: pl.Trainer, epochs: int, folder: str) -> nn.Module:
    """Train a network on the data of a Trainer, or load it if that was done before.

    The file in ``folder`` is named after the network, its first weights (and so the seed), the data and the epochs.

    Args:
        network: Untrained; changed in place.
        trainer: Of the run that needs a teacher; its data module and its kind of device are used.
        epochs: How long to train.
        folder: Where trained teachers are kept.

    Raises:
        ConfigurationError: several processes, or no data module.
    """
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise ConfigurationError("model.teacher_epochs trains the teacher on a data module; pass datamodule= to fit")
    path = Path(folder) / f"{_name(network, data, epochs)}.pt"
    if path.exists():
        rank_zero_info(f"Distiller: the teacher is {path}")
        load_weights(network, str(path), option="model.teacher_epochs")
        return network
    if trainer.world_size > 1:
        raise ConfigurationError(
            "model.teacher_epochs trains the teacher in one process; run once with devices=1, or give "
            "model.teacher_checkpoint"
        )
    rank_zero_info(f"Distiller: training the teacher for {epochs} epochs first")
    with rng_untouched():
        own = pl.Trainer(
            max_epochs=epochs,
            accelerator=trainer.strategy.root_device.type,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=trainer.progress_bar_callback is not None,
            limit_train_batches=trainer.limit_train_batches,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        own.fit(_Training(network), train_dataloaders=data.train_dataloader())
    if own.interrupted:
        raise KeyboardInterrupt
    network.cpu()
    if not is_rehearsal(trainer):
        _save(network, path)
    return network


def _name(network: nn.Module, data: pl.LightningDataModule, epochs: int) -> str:
    digest = hashlib.sha256(f"{type(data).__name__} {epochs} {LEARNING_RATE} {WEIGHT_DECAY}".encode())
    fingerprint = getattr(data, "train_fingerprint", None)
    if fingerprint is not None:
        digest.update(fingerprint().encode())
    hash_weights(digest, network.state_dict())
    return f"{type(network).__name__.lower()}-{digest.hexdigest()[:16]}"


def _save(network: nn.Module, path: Path) -> None:
    write_tensors(network.state_dict(), path)
