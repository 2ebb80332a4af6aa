"""The picture of the energy of a run: joules of each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def energy_figure(epochs: Sequence[int], train: Sequence[float], validation: Sequence[float]) -> Figure:
    """Draw the joules of training and of validation in each epoch, one on the other.

    Args:
        epochs: Numbers of the epochs.
        train: Joules of training in each.
        validation: Joules of validation in each.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.bar(epochs, train, color="C0", label="training")
    ax.bar(epochs, validation, bottom=train, color="C1", label="validation")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel("energy, J")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
