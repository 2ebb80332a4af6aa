"""Draw who asks whom in a deployed hybrid, and what routing a batch takes: ``python docs/draw_deployment.py``.

Needs nothing but the project and takes seconds. The times are those of ``benchmarks/results/routed_latency.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from make_pictures import small

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

IMAGES = Path(__file__).parent / "images"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "routed_latency.json"
BLUE, ORANGE, GREY = "#3f51b5", "#e64a19", "0.35"


def main() -> None:
    for name, draw in {"deployment": deployment, "routed_latency": routed_latency}.items():
        figure = draw()
        path = IMAGES / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)
        small(path, path)


def deployment() -> Any:
    """Draw the way of an input: answered at the edge, by the server, or at the edge in the server's place."""
    figure = plt.figure(figsize=(9.2, 3.7))
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set(xlim=(0, 92), ylim=(1, 38))
    sheet.axis("off")
    for left, width, title, colour in ((1, 68, "edge", BLUE), (73, 18, "server", ORANGE)):
        frame = FancyBboxPatch((left, 3), width, 31, boxstyle="round,pad=0,rounding_size=1.5", fc="none", ec=colour)
        sheet.add_patch(frame)
        sheet.text(left + 1.5, 35, title, color=colour, fontsize=10)
    boxes = (
        (12, 26, "base", BLUE),
        (26, 26, "router", BLUE),
        (41, 26, "score >\nthreshold?", BLUE),
        (57, 26, "EdgeClient\ndeadline, retry,\nbreaker", BLUE),
        (82, 26, "global model\n(waiting requests\nin one batch)", ORANGE),
        (36, 7, "source: base", BLUE),
        (48.5, 7, "source: fallback", BLUE),
        (61.5, 7, "source: global", BLUE),
    )
    for across, up, words, colour in boxes:
        look = {"boxstyle": "round,pad=0.45", "fc": "#dfe7f5" if colour == BLUE else "#fbe4dc", "ec": colour}
        sheet.text(across, up, words, ha="center", va="center", fontsize=8, bbox=look)
    sheet.text(3, 26, "batch", va="center", fontsize=8)
    arrows = (
        ((6.6, 26), (9.8, 26)),
        ((14.2, 26), (23.5, 26)),
        ((28.5, 26), (37.4, 26)),
        ((44.6, 26), (51.6, 26)),
        ((40, 22.9), (37, 9.2)),
        ((62.4, 27.5), (76.3, 27.5)),
        ((76.3, 24.5), (62.4, 24.5)),
        ((55, 22.2), (50, 9.2)),
        ((58.5, 22.2), (61, 9.2)),
    )
    for start, end in arrows:
        sheet.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0})
    labels = (
        (18.8, 26.6, "logits,\nfeatures", "center", "bottom"),
        (33, 26.6, "query\nscore", "center", "bottom"),
        (48, 26.6, "yes", "center", "bottom"),
        (38, 16, "no", "right", "center"),
        (71, 28, "rows", "center", "bottom"),
        (71, 24, "logits", "center", "top"),
        (51.8, 16, "no answer\nin time", "right", "center"),
        (60.6, 16, "logits", "left", "center"),
        (4, 14, "The threshold is outside the graphs:\nit may change without another export.", "left", "center"),
        (4, 7, "DriftMonitor sees every batch, and\nsends some kept inputs along.", "left", "center"),
    )
    for across, up, words, side, height in labels:
        sheet.text(across, up, words, ha=side, va=height, fontsize=7.5, color=GREY)
    return figure


def routed_latency() -> Any:
    """Draw milliseconds of a batch against coverage, beside the sum of what its two networks take."""
    pairs = json.loads(RESULTS.read_text(encoding="utf-8"))["pairs"]
    figure, axes = plt.subplots(1, len(pairs), figsize=(9.2, 3.6), squeeze=False)
    for axis, pair in zip(axes[0], pairs, strict=True):
        times, kept = pair["milliseconds"], sorted(pair["kept"], key=float)
        coverage = [pair["kept"][name] for name in kept]
        edge, other = times["edge"], times["global"]
        axis.plot([0, 1], [edge + other, edge], color=GREY, linestyle="--", label="edge + (1 - c) global")
        axis.axhline(other, color=ORANGE, linewidth=1, label="global model alone")
        axis.axhline(edge, color=BLUE, linewidth=1, label="base and router alone")
        axis.plot(coverage, [times[f"routed {name}"] for name in kept], "o", color="black", label="RoutedPredictor")
        axis.set(xlabel="coverage c: share answered at the edge", ylim=(0, None), xlim=(-0.03, 1.03))
        axis.set_title(pair["pair"], fontsize=9)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"ms for a batch of {pairs[0]['batch']}, one thread")
    figure.tight_layout()
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=4, fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main()
