"""A hybrid on two CPU processes and on one: ``python hybrid_two_processes.py FOLDER`` writes ``FOLDER/results.pt``.

A script of its own, since a process that has taken gradients cannot be forked safely.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hybrid_settings import BATCH, CLASSES, FEATURES, STAGES, bits, data, hybrid, trainer
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.nn.routers import build_router

TWO = {"devices": 2, "strategy": "ddp_fork"}
EVERY_STAGE = [*STAGES, {"base": 1}, {"joint": 1}]


class Report(Callback):
    """Carry weights, thresholds and the metrics of the last validation out of each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        said = {
            "state": bits(module),
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "scores": len(torch.cat(module._scores)),
            "seen": module.training_samples,
        }
        torch.save(said, self.folder / f"{trainer.global_rank}.pt")


def fit(folder: Path, processes: int, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> list[Any]:
    """Train on the same samples a step and return what each process has in the end."""
    seed_everything(0 if ckpt_path is None else 99, verbose=False)
    widths = [nn.Linear(FEATURES, CLASSES), nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))]
    given = {"base": widths[0], "global_model": widths[1], "stages": EVERY_STAGE, **options}
    module = hybrid(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), **given)
    run = trainer(
        *callbacks,
        Report(folder),
        max_epochs=module.plan.epochs,
        enable_checkpointing=bool(callbacks),
        default_root_dir=folder,
        **(TWO if processes == 2 else {}),
    )
    samples = data(batch_size=BATCH // processes, val_samples=41)
    run.fit(module, datamodule=samples, ckpt_path=ckpt_path, weights_only=False)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def resumed(folder: Path) -> list[Any]:
    """Train whole, then again from the middle of the router's stage; the state of both processes is kept."""
    save = ModelCheckpoint(folder / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(folder, 2, save, ExactResume())
    torch.save(whole, folder / "whole.pt")
    return whole + fit(folder, 2, ExactResume(), ckpt_path=folder / "steps" / "step=10.ckpt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    plain = {"stages": STAGES, "router_data": "all", "router": build_router("msp", CLASSES)}
    results = {
        **{f"score on {processes}": fit(folder, processes, **plain) for processes in (2, 1)},
        "held_out": fit(folder, 2),
        "out_of_fold": fit(folder, 2, router_data="out_of_fold", folds=2, outputs_folder=str(folder / "outputs")),
        "resumed": resumed(folder),
        "score alone": fit(folder, 2, stages=[{"router": 1}], router_data="all", router="msp"),
    }
    torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
