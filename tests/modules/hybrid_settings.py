"""What the tests of HybridClassifier share: two small networks, samples with keys, a quiet Trainer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_efficient.datamodules import GaussianModes
from lightning_efficient.modules.hybrid_classifier import HybridClassifier

FEATURES, CLASSES, BATCH, TRAIN = 6, 4, 16, 64
STAGES: list[dict[str, int]] = [{"base": 1}, {"global": 1}, {"router": 1}]
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def network(width: int = 4, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, CLASSES)
    )


def hybrid(**options: Any) -> HybridClassifier:
    torch.manual_seed(0)
    dropout = options.pop("dropout", 0.0)
    models = {"base": network(dropout=dropout), "global_model": network(16, dropout)}
    defaults = {"in_chans": None, "stages": STAGES, "optimizer": sgd, "latency_batch_size": 0, "outputs_folder": None}
    return HybridClassifier(**{**models, **defaults, **options})


def data(cls: Any = GaussianModes, **options: Any) -> Any:
    sizes = {"train_samples": TRAIN, "val_samples": 40, "test_samples": 40, "batch_size": BATCH}
    return cls(**{"classes": CLASSES, "modes": 2, "dimensions": FEATURES, "noise": 0.5, **sizes, **options})


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    return Trainer(**{**quiet, **defaults, "callbacks": list(callbacks), **options})


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].nan_to_num(7.0), other[name].nan_to_num(7.0)) for name in one
    )


class Watch(Callback):
    """Keep weights and momentum at the start and after each epoch, the outputs of steps, and learning rates."""

    def __init__(self) -> None:
        self.states: list[dict[str, dict[str, Tensor]]] = []
        self.momenta: list[dict[str, list[Tensor]]] = []
        self.keys: list[list[Tensor]] = []
        self.outputs: list[list[dict[str, Tensor]]] = []
        self.rates: list[dict[str, float]] = []
        self.evaluated: list[dict[str, Tensor]] = []

    def _look(self, trainer: Trainer, module: HybridClassifier) -> None:
        parts = {"base": module.base, "global": module.global_model, "router": module.router}
        self.states.append({name: bits(part) for name, part in parts.items()})
        state = trainer.optimizers[0].state
        kept = {
            name: [state[each]["momentum_buffer"].clone() for each in part.parameters() if state.get(each)]
            for name, part in parts.items()
        }
        self.momenta.append(kept)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._look(trainer, module)

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.keys.append([])
        self.outputs.append([])

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.keys[-1] += batch[2:]
        self.outputs[-1].append(outputs)
        self.rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._look(trainer, module)

    def on_validation_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.evaluated.append(outputs)

    on_test_batch_end = on_validation_batch_end

    def changed(self, epoch: int) -> set[str]:
        """Return which parts an epoch changed."""
        before, after = self.states[epoch], self.states[epoch + 1]
        return {name for name in before if not same(before[name], after[name])}

    def moved(self, epoch: int) -> set[str]:
        """Return the parts whose momentum an epoch changed."""
        before, after = self.momenta[epoch], self.momenta[epoch + 1]
        return {
            name
            for name in before
            if len(before[name]) != len(after[name]) or not all(map(torch.equal, before[name], after[name]))
        }

    def all(self, name: str) -> Tensor:
        return torch.cat([each[name] for each in self.evaluated])


class Rows(nn.Module):
    """A network that keeps a copy of each batch it sees, by mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append((self.training, inputs.detach().clone()))
        return self.network(inputs)
