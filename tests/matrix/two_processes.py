"""Two CPU processes against one, the whole matrix in one start: ``python two_processes.py FOLDER``.

Writes ``FOLDER/results.pt``. A script of its own, since a process that has taken gradients cannot be forked safely.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from matrix_settings import (
    SETTINGS,
    Foreign,
    Kind,
    TinyTeacher,
    classifier,
    loader,
    module_and_data,
    rows_of_digits,
    trainer,
    weights,
)
from torch import Tensor, nn

from lightning_efficient.callbacks import (
    FPTT,
    ChunkedBackprop,
    ExactResume,
    GuideSchedule,
    SelectiveCoverage,
    from_forward,
)
from lightning_efficient.datamodules import Digits, GaussianModes
from lightning_efficient.functional import Alternation, PrimalDual
from lightning_efficient.modules import Distiller, SelectiveClassifier, SequenceClassifier
from lightning_efficient.nn import FeaturesGuide

TWO = {"devices": 2, "strategy": "ddp_fork"}
SAMPLES = 101
"""Neither 2 processes nor batches of 16 divide it."""


class Report(Callback):
    """Carry the weights of a fit, or the metrics of a validation, out of each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer, weights(module))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer, dict(trainer.callback_metrics))

    def _save(self, trainer: L.Trainer, values: dict[str, Tensor]) -> None:
        torch.save(values, self.folder / f"{trainer.global_rank}.pt")

    def read(self, processes: int) -> list[dict[str, Tensor]]:
        return [torch.load(self.folder / f"{rank}.pt") for rank in range(processes)]


class UnevenDigits(Digits):
    """Digits with 101 images to validate."""

    def read(self, split: Any) -> Any:
        images = super().read(split)
        return images.subset(np.arange(SAMPLES)) if split == "val" else images


def fit_two(
    folder: Path, *callbacks: Callback, epochs: int = 1, ckpt_path: Path | None = None, kind: Kind = "classifier"
) -> list[dict[str, Tensor]]:
    """Train on two processes and return the weights of each."""
    L.seed_everything(0 if ckpt_path is None else 99, verbose=False)
    report = Report(folder)
    run = trainer(folder, *callbacks, report, max_epochs=epochs, **TWO)
    module, data = module_and_data(kind)
    run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return report.read(2)


def without_dropout(folder: Path, callback: Callback, processes: int) -> list[dict[str, Tensor]]:
    """Train on the same samples a step: two processes with batches of eight, or one with batches of sixteen."""
    L.seed_everything(0, verbose=False)
    report = Report(folder)
    options = TWO if processes == 2 else {}
    run = trainer(folder, callback, report, gradient_clip_val=0.5, **options)
    module = SequenceClassifier(8, 10, hidden_size=16, optimizer=partial(torch.optim.SGD, lr=0.2))
    run.fit(module, datamodule=rows_of_digits(batch_size=16 // processes))
    return report.read(processes)


def distilled(folder: Path, processes: int) -> list[dict[str, Tensor]]:
    """Distil with a guide on the same samples a step; the number of errors, a sum per process, is left out of it."""
    L.seed_everything(0, verbose=False)
    report = Report(folder)
    dual = GuideSchedule(multiplier=PrimalDual(rate=0.5), budget=0.2)
    run = trainer(folder, dual, report, gradient_clip_val=0.5, **(TWO if processes == 2 else {}))
    module = Distiller(
        nn.Linear(6, 5),
        TinyTeacher(6, 5),
        in_chans=None,
        objective_kwargs={"top_k": 3, "budget_norm": "batch"},
        guide=FeaturesGuide(6, hidden=(4,), batch_norm=False),  # made here, before processes begin with the seed anew
        phases=Alternation(1, 1, 1, "step"),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    )
    sizes = {"classes": 5, "dimensions": 6, "train_samples": 96, "val_samples": 32, "test_samples": 32}
    run.fit(module, datamodule=GaussianModes(**sizes, batch_size=16 // processes))
    return report.read(processes)


def abstaining(folder: Path, objective: str, processes: int) -> list[dict[str, Tensor]]:
    """Train a classifier that may abstain on the same samples a step, after a warm-up of one epoch."""
    L.seed_everything(0, verbose=False)
    report = Report(folder)
    run = trainer(folder, report, max_epochs=3, **(TWO if processes == 2 else {}))
    module = SelectiveClassifier(
        nn.Linear(6, 5),
        in_chans=None,
        objective=objective,
        warmup_epochs=1,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    )
    sizes = {"classes": 5, "dimensions": 6, "train_samples": 96, "val_samples": 32, "test_samples": 32}
    run.fit(module, datamodule=GaussianModes(**sizes, batch_size=16 // processes))
    return report.read(processes)


def carried_over_a_resume(folder: Path) -> list[dict[str, Tensor]]:
    """Train with a state that crosses batches, whole and resumed in mid-epoch; each process has its own state."""
    save = ModelCheckpoint(folder / "carried", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    callbacks = (ChunkedBackprop(2, carry=True), ExactResume())
    whole = fit_two(folder, *callbacks, save, epochs=2, kind="recurrent")
    callbacks = (ChunkedBackprop(2, carry=True), ExactResume())
    path = sorted((folder / "carried").glob("*.ckpt"))[0]
    return whole + fit_two(folder, *callbacks, epochs=2, ckpt_path=path, kind="recurrent")


def validate(
    folder: Path, module: L.LightningModule, data: Any, *callbacks: Callback, processes: int
) -> list[dict[str, Tensor]]:
    """Validate and return the metrics that each process sees."""
    report = Report(folder)
    run = trainer(folder, *callbacks, report, limit_val_batches=1.0, **(TWO if processes == 2 else {}))
    run.validate(module, data, verbose=False)
    return report.read(processes)


def metrics_of_ours(folder: Path, processes: int) -> list[dict[str, Tensor]]:
    """Validate the classifier on one of our data modules."""
    L.seed_everything(0, verbose=False)
    data = UnevenDigits(image_size=16, in_chans=1, batch_size=16)
    return validate(folder, classifier(), data, SelectiveCoverage(), processes=processes)


def metrics_of_its_own_confidence(folder: Path, processes: int) -> list[dict[str, Tensor]]:
    """Validate a classifier with a confidence of its own."""
    L.seed_everything(0, verbose=False)
    data = UnevenDigits(image_size=16, in_chans=1, batch_size=16)
    module = SelectiveClassifier("test_efficientnet", 10, 1, "gamblers")
    return validate(folder, module, data, SelectiveCoverage(), processes=processes)


def metrics_of_a_foreign_loader(folder: Path, processes: int) -> list[dict[str, Tensor]]:
    """Validate a foreign module on a plain loader, into which Lightning puts a sampler that repeats samples."""
    L.seed_everything(0, verbose=False)
    exact = SelectiveCoverage(risks=(0.6,), coverages=(0.5, 1.0), predictions=from_forward)
    binned = SelectiveCoverage(coverages=(0.5, 1.0), bins=500, predictions=from_forward, name="binned")
    return validate(folder, Foreign(), loader(SAMPLES), exact, binned, processes=processes)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    everything = [setting.make() for setting in SETTINGS.values() if setting.observes]
    in_parts = [ChunkedBackprop(4), FPTT(4, alpha=0.5)]
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    results = {
        "without": fit_two(folder, epochs=2),
        **{
            name: fit_two(folder, setting.make(), kind=setting.kind)
            for name, setting in SETTINGS.items()
            if not setting.observes
        },
        **{
            f"{type(one).__name__} on {processes}": without_dropout(folder, one, processes)
            for one in in_parts
            for processes in (1, 2)
        },
        **{f"Distiller on {processes}": distilled(folder, processes) for processes in (1, 2)},
        **{
            f"{objective} on {processes}": abstaining(folder, objective, processes)
            for objective in ("gamblers", "sat")
            for processes in (1, 2)
        },
        "osp": abstaining(folder, "osp", 2),
        "carried": carried_over_a_resume(folder),
        "everything": fit_two(folder, *everything, save, epochs=2),
        "resumed": fit_two(folder, *everything, epochs=2, ckpt_path=folder / "epoch=0.ckpt"),
        "ours": metrics_of_ours(folder, 1) + metrics_of_ours(folder, 2),
        "own": metrics_of_its_own_confidence(folder, 1) + metrics_of_its_own_confidence(folder, 2),
        "foreign": metrics_of_a_foreign_loader(folder, 1) + metrics_of_a_foreign_loader(folder, 2),
    }
    torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
