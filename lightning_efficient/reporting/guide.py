"""The picture of a guide: how much help it gave, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def guide_figure(
    histograms: Sequence[Sequence[float]],
    means: Sequence[float],
    costs: Sequence[float],
    budgets: Sequence[float],
    first_epoch: int = 0,
) -> Figure:
    """Draw the histogram of the help over the epochs, above the cost of the help and its budget.

    Args:
        histograms: Samples in each of equal bins over [0, 1], one row per epoch.
        means: Mean help in each epoch.
        costs: Mean cost of the help in each epoch, nats.
        budgets: Its budget in each epoch, nats.
        first_epoch: Number of the first epoch.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shares = np.asarray(histograms, dtype=float)
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1)
    epochs = np.arange(len(shares)) + first_epoch
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    image = upper.imshow(
        np.sqrt(shares.T),  # else the many easy samples hide the others
        origin="lower",
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=1,
        extent=(epochs[0] - 0.5, epochs[-1] + 0.5, 0, 1),
        interpolation="nearest",
    )
    upper.plot(epochs, means, color="tab:orange", marker="." if len(epochs) == 1 else None, label="mean")
    upper.set_ylabel("help g(x)")
    upper.legend(loc="upper right")
    bar = figure.colorbar(image, ax=upper, ticks=[0, 0.1**0.5, 0.25**0.5, 0.5**0.5, 1])
    bar.ax.set_yticklabels(["0", "10 %", "25 %", "50 %", "100 %"])
    bar.set_label("share of the samples")
    lower.plot(epochs, costs, color="tab:blue", marker="." if len(epochs) == 1 else None, label="cost of the help")
    lower.plot(epochs, budgets, color="black", linestyle="--", label="budget")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("epoch")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.set_ylabel("nats")
    lower.legend(loc="lower right")
    return figure
