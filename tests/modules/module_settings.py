"""What the tests of several modules share: a quiet Trainer, steps over parts, and states compared bit by bit."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_efficient.functional.parts import SplitBatch


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    return Trainer(**{**quiet, **defaults, "callbacks": list(callbacks), **options})


def steps(module: Any, data: Any, parts: int) -> list[dict[str, Any]]:
    """Call ``training_step`` on each part, as the callbacks do."""
    split, hiddens, outputs = SplitBatch.of(data, parts), None, []
    for part, piece in zip(split.parts, split, strict=True):
        output = module.training_step(piece, 0, hiddens, part)
        hiddens = output["hiddens"]
        outputs.append(output)
    return outputs


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
