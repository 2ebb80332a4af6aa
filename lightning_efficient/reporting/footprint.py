"""The picture of a footprint: where the operations are, and how long a forward pass takes in each setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_efficient.profiling.render import human, milliseconds
from lightning_efficient.profiling.variant_costs import FLOAT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_efficient.profiling.footprint import Footprint

_LONGEST_NAME = 26
_FEWEST = 8
"""Bars for which there is room at least, so that few are not thick."""
_COLOUR, _PALE = "#4c72b0", "#c4cfe3"


def footprint_figure(footprint: Footprint, layers: int = 15) -> Figure:
    """Draw MACs by layer beside latencies, and beside the other forms of the model where they were compared.

    Args:
        footprint: What was measured.
        layers: How many of the layers with most MACs get a bar; the others share one.
    """
    from matplotlib.figure import Figure

    compared = bool(footprint.variants and any(row.timings for row in footprint.variants.rows))
    several = bool(footprint.latencies) + compared
    width = 6.4 + 4.4 * several
    figure = Figure(figsize=(width, 5.0), layout="constrained")
    axes = figure.subplots(1, 1 + several, width_ratios=[1.3, *[1.0] * several], squeeze=False)[0]
    _draw_layers(axes[0], footprint, layers)
    if footprint.latencies:
        _draw_latencies(axes[1], footprint)
    if compared:
        _draw_variants(axes[-1], footprint)
    shape = "x".join(map(str, footprint.input_shape))
    figure.suptitle(f"{footprint.name} · {human(footprint.parameters)} parameters · input {shape}", fontsize=11)
    return figure


def shortened(name: str, most: int) -> str:
    """Cut the beginning of a long dotted name, at a dot where there is one in what stays.

    Example:
        >>> shortened("features.denseblock4.denselayer24.conv2", 24)
        '…denselayer24.conv2'
    """
    if len(name) <= most:
        return name
    kept = name[-(most - 1) :]
    return "…" + (kept if name[-most] == "." else kept.partition(".")[2] or kept)


def _draw_layers(axes: Axes, footprint: Footprint, most: int) -> None:
    ranked = sorted((layer for layer in footprint.layers if layer.macs), key=lambda layer: -layer.macs)
    bars = [(shortened(layer.title, _LONGEST_NAME), layer.macs) for layer in ranked[:most]]
    colours = [_COLOUR] * len(bars)
    if ranked[most:]:
        bars.append((f"{len(ranked) - most} more", sum(layer.macs for layer in ranked[most:])))
        colours.append(_PALE)
    total = footprint.macs or 1
    _bars(axes, bars, colours, [f"{100 * macs / total:.0f} %" for _, macs in bars], "M MACs per sample", 1e6)
    star = " (some layers are not counted)" if footprint.uncounted else ""
    axes.set_title(f"{human(footprint.macs)} MACs{star}", fontsize=10)


def _draw_latencies(axes: Axes, footprint: Footprint) -> None:
    sweep = len({latency.threads for latency in footprint.latencies}) > 1
    bars = [
        (f"batch {each.batch_size}" + (f", threads {each.threads}" if sweep else ""), each.p50_ms / each.batch_size)
        for each in footprint.latencies
    ]
    labels = [milliseconds(value) for _, value in bars]
    _bars(axes, bars, [_COLOUR] * len(bars), labels, "ms per sample (median)", 1)
    first = footprint.latencies[0]
    threads = "" if sweep else f", threads {first.threads}"
    axes.set_title(f"latency, {first.device}, {first.precision}{threads}", fontsize=10)


def _draw_variants(axes: Axes, footprint: Footprint) -> None:
    assert footprint.variants is not None
    timed = [(row.name, each) for row in footprint.variants.rows for each in row.timings]
    sizes = {each.batch_size for _, each in timed}
    bars = [(name + (f", batch {each.batch_size}" if len(sizes) > 1 else ""), each.ratio) for name, each in timed]
    values = [value for _, value in bars]
    below = [max(0.0, each.ratio - each.low) for _, each in timed]
    above = [max(0.0, each.high - each.ratio) for _, each in timed]
    colours = [_PALE if name == FLOAT else _COLOUR for name, _ in timed]
    _bars(axes, bars, colours, [""] * len(bars), "time, as a multiple of eager float", 1)
    axes.errorbar(values, range(len(bars)), xerr=(below, above), fmt="none", ecolor="0.35", elinewidth=1)
    ends = [value + more for value, more in zip(values, above, strict=True)]
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        axes.annotate(
            f"{value:.2f}x", (end, place), (3, 0), textcoords="offset points", fontsize=8, verticalalignment="center"
        )
    axes.set_xlim(0, 1.2 * max(ends))
    axes.axvline(1.0, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_title("other forms, in turns (lines: 80 % of rounds)", fontsize=10)


def _bars(
    axes: Axes,
    bars: Sequence[tuple[str, float]],
    colours: Sequence[str],
    labels: Sequence[str],
    unit: str,
    scale: float,
) -> None:
    values = [value / scale for _, value in bars]
    drawn = axes.barh(range(len(bars)), values, color=colours)
    axes.bar_label(drawn, labels=labels, padding=3, fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.set_ylim(max(len(bars), _FEWEST) - 0.4, -0.6)
    axes.set_xlabel(unit)
    axes.set_xlim(0, 1.18 * max(values, default=0.0) or 1.0)
    axes.spines[["top", "right"]].set_visible(False)
