"""What a model is called in tables."""

from __future__ import annotations

from lightning.pytorch import LightningModule


def model_name(module: LightningModule) -> str:
    """Return the backbone of a module if its hyper-parameters name one, otherwise its class."""
    return str(module.hparams.get("backbone") or type(module).__name__)
