"""What a run has spent, epoch by epoch: sums that are the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COUNTED = ("train_joules", "val_joules", "train_seconds", "val_seconds", "steps", "samples")
"""What each epoch holds; ``samples`` of training."""
COLUMNS = ("epoch", *COUNTED, "joules_per_step", "joules_per_sample", "average_watts")

Counts = dict[str, float]


def nothing() -> Counts:
    """Return an epoch that has spent nothing yet."""
    return dict.fromkeys(COUNTED, 0)


def ratios(counts: Mapping[str, float]) -> dict[str, float]:
    """Return training joules per step and per sample, and the average power; what would divide by 0 is left out.

    Example:
        >>> ratios({**nothing(), "train_joules": 6.0, "train_seconds": 2.0, "steps": 3})
        {'joules_per_step': 2.0, 'average_watts': 3.0}
    """
    joules = counts["train_joules"] + counts["val_joules"]
    pairs = {
        "joules_per_step": (counts["train_joules"], counts["steps"]),
        "joules_per_sample": (counts["train_joules"], counts["samples"]),
        "average_watts": (joules, counts["train_seconds"] + counts["val_seconds"]),
    }
    return {name: above / below for name, (above, below) in pairs.items() if below > 0}


class EnergyTotals:
    """Joules, seconds, steps and samples of each epoch, and joules of each device.

    Attributes:
        epochs: Counts by number of the epoch.
        devices: Joules by device.
        gaps: Reasons why a part of the run was not measured.
    """

    def __init__(self) -> None:
        self.epochs: dict[int, Counts] = {}
        self.devices: dict[str, float] = {}
        self.gaps: list[str] = []

    def add(self, epoch: int, counts: Mapping[str, float], devices: Mapping[str, float]) -> None:
        """Add what was spent in an epoch."""
        row = self.epochs.setdefault(epoch, nothing())
        for name, value in counts.items():
            row[name] += value
        for name, value in devices.items():
            self.devices[name] = self.devices.get(name, 0.0) + value

    def sums(self) -> Counts:
        """Return the counts of the whole run."""
        return {name: sum(row[name] for row in self.epochs.values()) for name in COUNTED}

    @property
    def joules(self) -> float:
        """Energy of training and validation."""
        return sum(row["train_joules"] + row["val_joules"] for row in self.epochs.values())

    def rows(self) -> list[list[Any]]:
        """Return the table: a row per epoch with the values of ``COLUMNS``."""
        rows = ({"epoch": epoch, **row, **ratios(row)} for epoch, row in sorted(self.epochs.items()))
        return [[row.get(name, "") for name in COLUMNS] for row in rows]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        epochs = {epoch: dict(row) for epoch, row in self.epochs.items()}
        return {"epochs": epochs, "devices": dict(self.devices), "gaps": list(self.gaps)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epochs = {int(epoch): {**nothing(), **row} for epoch, row in state["epochs"].items()}
        self.devices, self.gaps = dict(state["devices"]), list(state["gaps"])
