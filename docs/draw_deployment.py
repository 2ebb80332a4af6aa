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
    figure = plt.figure(figsize=(9.2, 3.9))
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set(xlim=(0, 92), ylim=(0, 39))
    sheet.axis("off")
    for left, width, title, colour in ((1, 62, "edge", BLUE), (71, 20, "server", ORANGE)):
        frame = FancyBboxPatch((left, 2), width, 33, boxstyle="round,pad=0,rounding_size=1.5", fc="none", ec=colour)
        sheet.add_patch(frame)
        sheet.text(left + 1.5, 36, title, color=colour, fontsize=10)
    boxes = {
        "base": (12, 26, "base", BLUE),
        "router": (26, 26, "router", BLUE),
        "test": (42, 26, "score >\nthreshold?", BLUE),
        "client": (56, 26, "EdgeClient\ndeadline, retry,\nbreaker", BLUE),
        "global": (81, 26, "global model\n(waiting requests\nin one batch)", ORANGE),
        "kept": (42, 8, "source: base", BLUE),
        "fallback": (56, 15.2, "source: fallback", BLUE),
        "asked": (56, 8, "source: global", BLUE),
    }
    for across, up, words, colour in boxes.values():
        look = {"boxstyle": "round,pad=0.45", "fc": "#dfe7f5" if colour == BLUE else "#fbe4dc", "ec": colour}
        sheet.text(across, up, words, ha="center", va="center", fontsize=8, bbox=look)
    sheet.text(3, 26, "batch", va="center", fontsize=8)
    arrows = (
        ((6.6, 26), (9.4, 26), ""),
        ((14.6, 26), (22.8, 26), "logits,\nfeatures"),
        ((29.2, 26), (37.2, 26), "query\nscore"),
        ((46.8, 26), (50.2, 26), "yes"),
        ((42, 23), (42, 10), "no"),
        ((61.8, 27.5), (74.2, 27.5), "rows"),
        ((74.2, 24.5), (61.8, 24.5), "logits"),
        ((56, 22), (56, 17), ""),
    )
    for start, end, words in arrows:
        sheet.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY})
        middle, level = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        if words and start[0] == end[0]:
            sheet.text(middle + 0.8, level, words, fontsize=7, color=GREY)
        elif words:
            below = words == "logits"
            sheet.text(
                middle,
                level + (-0.5 if below else 0.5),
                words,
                ha="center",
                va="top" if below else "bottom",
                fontsize=7,
                color=GREY,
            )
    bent = {"arrowstyle": "->", "color": GREY, "connectionstyle": "angle,angleA=0,angleB=90,rad=3"}
    sheet.annotate("", (62.3, 8), (68, 24.2), arrowprops=bent)
    sheet.text(56.6, 19.2, "no answer in time", fontsize=7, color=GREY)
    sheet.text(
        12,
        15,
        "Threshold outside the graphs:\nretuned without another export.",
        ha="left",
        va="center",
        fontsize=7.5,
        color=GREY,
    )
    sheet.text(
        12,
        8,
        "DriftMonitor sees every batch, and\nsends some kept inputs along.",
        ha="left",
        va="center",
        fontsize=7.5,
        color=GREY,
    )
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
    axes[0][-1].legend(fontsize=7.5)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
