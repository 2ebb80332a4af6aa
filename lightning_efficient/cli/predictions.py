"""Write down what a model answered."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_predictions(outputs: list[Any], folder: Path, rank: int = 0, world_size: int = 1) -> Path:
    """Write the outputs of ``Trainer.predict``, in the order of the samples that this process saw.

    Steps that return a mapping give ``predictions.csv`` with a row per sample and a column per tensor of shape
    ``(N,)``, such as ``prediction`` and ``confidence``; anything else is saved as it is in ``predictions.pt``.

    Args:
        outputs: One output per batch.
        folder: Where to write; made if it is not there.
        rank: Index of this process; with several, each writes a file of its own.
        world_size: Number of processes.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = "predictions" if world_size == 1 else f"predictions_rank{rank}"
    columns = _columns(outputs)
    if not columns:
        torch.save(outputs, folder / f"{stem}.pt")
        return folder / f"{stem}.pt"
    with (folder / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", *columns])
        writer.writerows([index, *row] for index, row in enumerate(zip(*columns.values(), strict=True)))
    return folder / f"{stem}.csv"


def _columns(outputs: list[Any]) -> dict[str, list[float]]:
    if not all(isinstance(output, Mapping) for output in outputs):
        return {}
    names = [name for name, value in outputs[0].items() if isinstance(value, Tensor) and value.ndim == 1]
    return {name: torch.cat([output[name] for output in outputs]).tolist() for name in names}
