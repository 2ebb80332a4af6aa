"""The picture of a pruned network: what is kept of each layer, and the sparsity over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = 60


def pruning_figure(
    layers: Sequence[Sequence[Any]], history: Sequence[Mapping[str, float]], last_step: int, what: str = "weights"
) -> Figure:
    """Draw the share of each layer that is kept as bars, above the sparsity over the steps.

    Args:
        layers: Rows of name, size, number kept and share kept.
        history: Steps and sparsities of the rounds.
        last_step: At which training ended.
        what: What is counted.
    """
    from matplotlib.figure import Figure

    names = [str(row[0]) or "network" for row in layers]
    shares = [float(row[3]) for row in layers]
    height = 2.4 + 0.17 * min(len(names), 2 * LABELS)
    figure = Figure(figsize=(7.2, 2.6 + height), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(height, 2.2))
    places = range(len(names))
    upper.barh(places, [1.0] * len(names), color="0.92", height=0.9)
    upper.barh(places, shares, color="tab:blue", height=0.9)
    every = -(-len(names) // (2 * LABELS))
    upper.set_yticks(places[::every], names[::every], fontsize=6 if len(names) > 12 else 8)
    upper.invert_yaxis()
    upper.margins(y=0.01)
    upper.set_xlim(0, 1)
    upper.set_xlabel(f"share of the {what} that is kept")
    steps = [0.0, *(entry["step"] for entry in history)]
    sparsities = [0.0, *(entry["sparsity"] for entry in history)]
    lower.step([*steps, last_step], [*sparsities, sparsities[-1]], where="post", color="tab:orange")
    lower.plot(steps[1:], sparsities[1:], ".", color="tab:orange")
    lower.set_xlim(left=0)
    lower.set_ylim(0, 1)
    lower.set_xlabel("optimiser step")
    lower.set_ylabel("sparsity")
    return figure
