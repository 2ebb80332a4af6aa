"""What a model is called in tables."""

from __future__ import annotations

from lightning.pytorch import LightningModule


def model_name(module: LightningModule) -> str:
    """Return the backbone of a module, or the student, if its hyper-parameters name one, otherwise its class."""
    named = (module.hparams.get(key) for key in ("backbone", "student"))
    return next((name for name in named if isinstance(name, str)), type(module).__name__)
