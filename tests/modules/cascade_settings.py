"""What the tests of classifiers with several stages share: a small network and samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES, BATCH = 6, 4, 16
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def network(classes: int = CLASSES, width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def samples(batches: int = 4) -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(batches * BATCH, FEATURES, generator=draw)
    labels = (inputs[:, :CLASSES] + 0.5 * torch.randn(len(inputs), CLASSES, generator=draw)).argmax(1)
    return TensorDataset(inputs, labels)


def loader(batches: int = 4, cls: Any = DataLoader, **options: Any) -> Any:
    return cls(samples(batches), batch_size=BATCH, **options)


class Watch(Callback):
    """Keep the outputs of validation and test steps."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Tensor]] = []

    def on_validation_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.outputs.append(outputs)

    def on_test_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.outputs.append(outputs)

    def all(self, name: str) -> Tensor:
        return torch.cat([each[name] for each in self.outputs])
