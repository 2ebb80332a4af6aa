"""What the tests of SelectiveClassifier share: a small network, and samples with an index."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from module_settings import bits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.modules.selective_classifier import SelectiveClassifier

FEATURES, CLASSES, BATCH = 6, 4, 16
OBJECTIVES = ("ce", "osp", "selectivenet", "gamblers", "sat")
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def network(classes: int = CLASSES, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, classes)
    )


def classifier(objective: str = "ce", **options: Any) -> SelectiveClassifier:
    torch.manual_seed(0)
    dropout = options.pop("dropout", 0.0)
    defaults = {"in_chans": None, "optimizer": sgd, "warmup_epochs": 0}
    return SelectiveClassifier(**{"backbone": network(dropout=dropout), "objective": objective, **defaults, **options})


def samples(batches: int = 4) -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(batches * BATCH, FEATURES, generator=draw)
    labels = (inputs[:, :CLASSES] + 0.5 * torch.randn(len(inputs), CLASSES, generator=draw)).argmax(1)
    return TensorDataset(inputs, labels, torch.arange(len(inputs)))


def loader(batches: int = 4, cls: Any = DataLoader, **options: Any) -> Any:
    return cls(samples(batches), batch_size=BATCH, **options)


class Watch(Callback):
    """Keep the outputs of the steps, and the state after each epoch."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Tensor]] = []
        self.evaluated: list[dict[str, Tensor]] = []
        self.states: list[dict[str, Tensor]] = []
        self.warm: list[bool] = []

    def on_train_start(self, trainer: Trainer, module: SelectiveClassifier) -> None:
        self.states.append(bits(module))

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.outputs.append(outputs)
        self.warm.append(module.warming_up)

    def on_train_epoch_end(self, trainer: Trainer, module: SelectiveClassifier) -> None:
        self.states.append(bits(module))

    def on_validation_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.evaluated.append(outputs)
