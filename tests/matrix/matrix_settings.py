"""The rows and columns of the matrix. A new callback joins by one line in ``SETTINGS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks import (
    FPTT,
    ChunkedBackprop,
    ExactResume,
    FiniteLoss,
    LatencyProfiler,
    SelectiveCoverage,
)
from lightning_efficient.datamodules import Digits, SequentialImages
from lightning_efficient.modules import ImageClassifier, SequenceClassifier

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """How the matrix makes a callback.

    ``foreign`` are options that a module of somebody else needs, as YAML has them; ``second`` those of a second
    instance in the same Trainer. A callback that ``observes`` leaves training exactly as it was; one for ``sequences``
    needs a recurrent module. Under the conditions that it ``refuses`` it says so before anything is trained.
    """

    cls: type[Callback]
    options: Options = field(default_factory=dict)
    foreign: Options = field(default_factory=dict)
    second: Options = field(default_factory=dict)
    observes: bool = True
    sequences: bool = False
    refuses: tuple[str, ...] = ()

    def make(self, **more: Any) -> Callback:
        return self.cls(**{**self.options, **more})

    def fit(self, folder: Path, *callbacks: Callback, **options: Any) -> dict[str, Tensor]:
        return fit(folder, *callbacks, sequences=self.sequences, **options)


FROM_FORWARD = "lightning_efficient.callbacks.from_forward"

SETTINGS = {
    "SelectiveCoverage": Setting(SelectiveCoverage, foreign={"predictions": FROM_FORWARD}, second={"name": "second"}),
    "LatencyProfiler": Setting(LatencyProfiler, {"min_run_time_s": 0.01}),
    "FiniteLoss": Setting(FiniteLoss),
    "ExactResume": Setting(ExactResume),
    "ChunkedBackprop": Setting(
        ChunkedBackprop,
        {"parts": 3},
        {"part_weights": "linear"},
        {"name": "second"},
        observes=False,
        sequences=True,
        refuses=("accumulate",),
    ),
    "FPTT": Setting(
        FPTT,
        {"parts": 3, "parameters": "^(network|rnn)"},
        {"alpha": 0.5},
        {"parameters": "^head", "name": "head"},
        observes=False,
        sequences=True,
        refuses=("accumulate",),
    ),
}

CONDITIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "bf16": lambda: {"precision": "bf16-mixed"},
    # Trainer(precision="16-mixed") turns into bf16 on a CPU; the plugin does not
    "fp16_scaler": lambda: {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]},
    "ema": lambda: {"callbacks": [EMAWeightAveraging(decay=0.9)]},
    "accumulate": lambda: {"accumulate_grad_batches": 2},
    "clip_norm": lambda: {"gradient_clip_val": 0.1},
    "clip_value": lambda: {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
}


class Foreign(L.LightningModule):
    """A module that knows nothing of this package: automatic optimisation, steps that return a loss or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class ForeignRecurrent(Foreign):
    """The same with a state, as Lightning 1.x asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head, self.net = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 3), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int, hiddens: Any = None) -> dict[str, Any]:
        output, hiddens = self.rnn(batch[0].unsqueeze(-1), hiddens)
        return {"loss": nn.functional.cross_entropy(self.head(output[:, -1]), batch[1]), "hiddens": hiddens}


def classifier(**options: Any) -> ImageClassifier:
    """A real timm model of 100,000 weights, with BatchNorm, dropout and Adam."""
    return ImageClassifier(
        "test_efficientnet",
        num_classes=10,
        in_chans=1,
        backbone_kwargs={"drop_rate": 0.2},
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        **options,
    )


def digits(**options: Any) -> Digits:
    """Three augmented batches to an epoch."""
    return Digits(image_size=16, in_chans=1, **{"batch_size": 16, "train_samples": 48, **options})


def recurrent_classifier(**options: Any) -> SequenceClassifier:
    """A GRU with dropout and Adam; torch has no LSTM in half precision on a CPU."""
    adam = partial(torch.optim.Adam, lr=1e-2)
    return SequenceClassifier(8, 10, rnn="gru", hidden_size=16, dropout=0.2, optimizer=adam, **options)


def rows_of_digits(**options: Any) -> SequentialImages:
    """Three batches of eight rows of eight pixels to an epoch."""
    return SequentialImages("Digits", steps="rows", **{"batch_size": 16, "train_samples": 48, **options})


def loader(samples: int = 48, **options: Any) -> DataLoader:
    """Samples that are noise, so that a classifier errs on most."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(samples, 4, generator=generator), torch.randint(3, (samples,), generator=generator)
    )
    return DataLoader(data, batch_size=16, **options)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> L.Trainer:
    options["callbacks"] = [*callbacks, *options.get("callbacks", [])]
    saves = any(isinstance(callback, Checkpoint) for callback in options["callbacks"])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 2, "limit_val_batches": 2, "accelerator": "cpu", "enable_checkpointing": saves}
    return L.Trainer(default_root_dir=folder, **{**quiet, **defaults, **options})


def fit(
    folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, sequences: bool = False, **options: Any
) -> dict[str, Tensor]:
    """Train a classifier on the digits, as images or as sequences, and return its weights and buffers."""
    L.seed_everything(0 if ckpt_path is None else 99, verbose=False)
    module, data = (recurrent_classifier(), rows_of_digits()) if sequences else (classifier(), digits())
    trainer(folder, *callbacks, **options).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return weights(module)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that differ in any bit."""
    return [name for name in left.keys() | right.keys() if not torch.equal(left[name], right[name])]
