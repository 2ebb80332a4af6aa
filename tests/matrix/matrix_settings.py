"""The rows and columns of the matrix. A new callback joins by one line in ``SETTINGS``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

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
    Constraint,
    DiSK,
    EnergyMeter,
    ExactResume,
    FiniteLoss,
    GradualPruning,
    GuideSchedule,
    LatencyProfiler,
    QuantizationAware,
    SelectiveCoverage,
)
from lightning_efficient.datamodules import Digits, SequentialImages
from lightning_efficient.functional import Alternation
from lightning_efficient.modules import Distiller, ImageClassifier, SequenceClassifier
from lightning_efficient.profiling import EnergyReading

Options = Mapping[str, Any]
Kind = Literal["classifier", "recurrent", "distiller"]


@dataclass(frozen=True)
class Setting:
    """How the matrix makes a callback.

    ``foreign`` are options that a module of somebody else needs, as YAML has them; ``second`` those of a second
    instance in the same Trainer, ``None`` where that is refused. A callback that ``observes`` leaves training exactly
    as it was; one for ``sequences`` needs a recurrent module, one that ``distils`` a Distiller. Under the conditions
    that it ``refuses`` it says so before anything is trained. One that takes long is tried under ``only`` some.
    Those that observe are tried one by one under few, and all together under every condition.
    """

    cls: type[Callback]
    options: Options = field(default_factory=dict)
    foreign: Options = field(default_factory=dict)
    second: Options | None = field(default_factory=dict)
    observes: bool = True
    sequences: bool = False
    distils: bool = False
    refuses: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None

    def make(self, **more: Any) -> Callback:
        return self.cls(**{name: _built(value) for name, value in {**self.options, **more}.items()})

    @property
    def tried(self) -> tuple[str, ...]:
        """Under which conditions it is tried by itself."""
        return self.only or (("plain", "ema", "accumulate") if self.observes else tuple(CONDITIONS))

    @property
    def kind(self) -> Kind:
        """Which module it is tried on."""
        return "recurrent" if self.sequences else "distiller" if self.distils else "classifier"

    def fit(self, folder: Path, *callbacks: Callback, **options: Any) -> dict[str, Tensor]:
        return fit(folder, *callbacks, kind=self.kind, **options)


def _built(value: Any) -> Any:
    """Make the object that a config describes."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    module, _, name = value["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**value.get("init_args", {}))


FROM_FORWARD = "lightning_efficient.callbacks.from_forward"


def tiny_teacher(inputs: int, classes: int) -> dict[str, Any]:
    return {"class_path": "matrix_settings.TinyTeacher", "init_args": {"inputs": inputs, "classes": classes}}


class Ticking:
    """A meter of which every reading is a joule."""

    def available(self) -> str | None:
        return None

    def begin(self, key: str) -> None:
        pass

    def end(self, key: str) -> EnergyReading:
        return EnergyReading(1.0, 0.5, {"cpu:0": 1.0})


TURNS = {
    "class_path": "lightning_efficient.functional.phases.Alternation",
    "init_args": {"student": 1, "guide": 1, "warmup": 1, "unit": "step"},
}
DUAL = {"class_path": "lightning_efficient.functional.primal_dual.PrimalDual", "init_args": {"rate": 0.5}}

SETTINGS = {
    "SelectiveCoverage": Setting(SelectiveCoverage, foreign={"predictions": FROM_FORWARD}, second={"name": "second"}),
    "LatencyProfiler": Setting(LatencyProfiler, {"min_run_time_s": 0.01}),
    "EnergyMeter": Setting(
        EnergyMeter,
        {"every_n_steps": 1, "counter": {"class_path": "matrix_settings.Ticking"}},
        second={"name": "second"},
    ),
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
    "GuideSchedule": Setting(
        GuideSchedule,
        {"multiplier": DUAL, "budget": 0.2},
        second={"name": "second", "multiplier": None, "budget": None},
        observes=False,
        distils=True,
        only=("plain", "fp16_scaler", "ema"),  # DiSK, which is more of the same, under all
    ),
    "DiSK": Setting(
        DiSK,
        {"teacher": tiny_teacher(256, 10), "loss_kwargs": {"top_k": 3}, "multiplier": DUAL, "phases": TURNS},
        {"teacher": tiny_teacher(4, 3), "predictions": "matrix_settings.with_graph"},
        second=None,
        observes=False,
    ),
    "GradualPruning": Setting(
        GradualPruning,
        {
            "sparsity": 0.6,
            "rounds": 3,
            "end": 1.0,
            "saliency": "first_order",
            "regrowth": 0.2,
            "network": "backbone.blocks",
            "measure": False,
        },
        {"network": None, "schedule": "iterative"},
        {"network": "backbone.classifier", "name": "second"},
        observes=False,
    ),
    "QuantizationAware": Setting(
        QuantizationAware,
        {"measure": False},
        {"input_shape": [4]},
        second=None,
        observes=False,
        only=("plain", "fp16_scaler", "ema", "accumulate"),
    ),
    "Constraint": Setting(
        Constraint,
        {"monitor": "train/loss", "at_most": 0.5},
        {"monitor": "train_loss"},
        {"name": "second"},
        observes=False,
        only=("plain", "fp16_scaler", "ema", "accumulate"),
    ),
}  # fmt: skip
if find_spec("torchao") is None:  # the extra needs a newer torch than the package
    del SETTINGS["QuantizationAware"]

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
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

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


class TinyTeacher(nn.Module):
    """A linear teacher of flattened inputs, always with the same weights."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)
        draw = torch.Generator().manual_seed(0)
        self.head.weight.data.copy_(torch.randn(classes, inputs, generator=draw) / inputs**0.5)
        self.head.bias.data.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1))


def with_graph(module: nn.Module, batch: Any, outputs: Any) -> tuple[Tensor, Tensor]:
    """Run a module once more, for logits that the loss can be taken of."""
    return module(batch[0]), batch[1]


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


def distiller(**options: Any) -> Distiller:
    """The classifier's network, which learns from a linear teacher in turns with its guide."""
    return Distiller(
        "test_efficientnet",
        TinyTeacher(256, 10),
        in_chans=1,
        num_classes=10,
        objective_kwargs={"top_k": 3},
        phases=Alternation(1, 1, 1, "step"),
        student_kwargs={"drop_rate": 0.2},
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        **options,
    )


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


def module_and_data(kind: Kind) -> tuple[L.LightningModule, L.LightningDataModule]:
    """Return what a callback is tried on: the digits, as images or as sequences."""
    if kind == "recurrent":
        return recurrent_classifier(), rows_of_digits()
    return distiller() if kind == "distiller" else classifier(), digits()


def fit(
    folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, kind: Kind = "classifier", **options: Any
) -> dict[str, Tensor]:
    """Train a module on the digits, and return its weights and buffers."""
    L.seed_everything(0 if ckpt_path is None else 99, verbose=False)
    module, data = module_and_data(kind)
    trainer(folder, *callbacks, **options).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return weights(module)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that differ in any bit."""
    return [name for name in left.keys() | right.keys() if not torch.equal(left[name], right[name])]
