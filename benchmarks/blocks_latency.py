"""Do fewer MACs save time? Whole networks after surgery against themselves before it, on one core of a CPU.

Variants of every network: designs of ``SpatialInterpolation`` on the blocks with a shortcut, the fastest of them also
without the mobile networks' stage 0, whose large maps of few channels cost more to resample than to compute; and the
network condensed around ``GlobalLayer`` by its preset, with ``DepthwiseLayer`` in its place as the control. All run in
one process in turns, in evaluation mode without gradients, at batch 1 and 32, with the channels first and last in
memory. A speed-up is the median over the rounds of the time of the base over that of the variant, with the range of
80 % of the rounds.

Times are those of the process on the processor, with one thread, so that others who use the machine count as little as
they can; on an idle machine that is the time on the clock. glibc's allocator keeps its memory (see ``harness``), as a
server with jemalloc would; without, layers that write large tensors take longer. Weights are random.

Writes ``results/blocks_latency_<network>.json`` and ``docs/images/blocks_latency.png``.

Run: ``python benchmarks/blocks_latency.py [--networks N ...] [--batches B ...] [--layouts L ...] [--variants V ...]
[--rounds 21] [--quick] [--draw]``; ``--quick`` is a try of a minute; ``--draw`` draws and prints what was saved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from harness import RESULTS, paired, ratio, save, steady_allocator, table
from torch import Tensor, nn

from lightning_efficient.nn.surgery import POLICIES, carry_out
from lightning_efficient.profiling import count_macs

NETWORKS = ("mobilenetv3_large_100", "efficientnet_b0")
BATCHES = (1, 32)
FIRST, LAST = "channels_first", "channels_last"
LAYOUTS = {FIRST: torch.contiguous_format, LAST: torch.channels_last}
IMAGE = (3, 224, 224)
PASSES = 16
"""Images that a timed call runs at least, in several forward passes where the batch is smaller."""

BASE, GLOBAL, DEPTHWISE = "base", "condensed, Global", "condensed, depthwise"
FAST = {"sampling": "strided", "upsampling": "nearest"}


Steps = list[dict[str, Any]]
Policy = Callable[[nn.Module], Steps]


def interpolated(**options: Any) -> Policy:
    return partial(POLICIES["SpatialInterpolation"], **options)


def after_stage_0(model: nn.Module) -> Steps:
    steps = interpolated(design="chain", **FAST)(model)
    return [step for step in steps if not step.get("name", "").startswith("blocks.0.")]


VARIANTS: dict[str, Policy] = {
    BASE: lambda model: [],
    "add": interpolated(),
    "add, strided, nearest": interpolated(**FAST),
    "detail": interpolated(design="detail"),
    "strided": interpolated(design="strided"),
    "grid": interpolated(design="grid"),
    "no cheap branch": interpolated(cheap=False),
    "chain": interpolated(design="chain"),
    "chain, strided, nearest": interpolated(design="chain", **FAST),
    "the same after stage 0": after_stage_0,
    GLOBAL: POLICIES["GlobalLayer"],
    DEPTHWISE: POLICIES["DepthwiseLayer"],
}
"""The steps that are carried out on a network; variants are named after what differs from the default."""

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "blocks_latency.png"


def build(network: str, variants: Iterable[str]) -> dict[str, nn.Module]:
    """Return the network once for every variant, in evaluation mode."""
    import timm

    made = {}
    for name in variants:
        torch.manual_seed(0)
        model = timm.create_model(network)
        steps = VARIANTS[name](model)
        made[name] = (carry_out(model, steps).model if steps else model).eval()
    return made


def sizes(models: Mapping[str, nn.Module], image: Sequence[int] = IMAGE) -> dict[str, dict[str, float]]:
    """Return MACs per image, parameters, and the share of the base's MACs that is saved."""
    example = torch.zeros(1, *image)
    macs = {name: count_macs(model, example).macs for name, model in models.items()}
    return {
        name: {
            "macs": macs[name],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "macs_saved": 1 - macs[name] / macs[BASE],
        }
        for name, model in models.items()
    }


def forward(model: nn.Module, images: Tensor) -> Callable[[], None]:
    passes = max(1, PASSES // len(images))

    def run() -> None:
        with torch.no_grad():
            for _ in range(passes):
                model(images)

    return run


def timings(models: Mapping[str, nn.Module], batch: int, layout: str, rounds: int) -> dict[str, Any]:
    """Return seconds per forward pass of every variant, and its speed-up over the base."""
    images = torch.randn(batch, *IMAGE).contiguous(memory_format=LAYOUTS[layout])
    runs = {name: forward(model.to(memory_format=LAYOUTS[layout]), images) for name, model in models.items()}
    times = paired(runs, rounds, warmup=2, clock=process_time)
    passes = max(1, PASSES // batch)
    return {
        name: {
            "milliseconds": 1000 * statistics.median(times[name]) / passes,
            "speed_up": ratio(times, of=BASE, over=name),
        }
        for name in models
    }


def study(
    network: str, batches: Sequence[int], layouts: Sequence[str], variants: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Measure one network; ``cells`` has a list of a batch size, a layout and the variants' times."""
    models = build(network, dict.fromkeys([BASE, *variants]))
    cells = [
        {"batch": batch, "layout": layout, "variants": timings(models, batch, layout, rounds)}
        for batch in batches
        for layout in layouts
    ]
    return {"network": network, "image": list(IMAGE), "rounds": rounds, "sizes": sizes(models), "cells": cells}


def report(record: Mapping[str, Any]) -> None:
    cells = record["cells"]
    columns = ["", "M MACs", "saved", "M weights", *(f"{heading(cell)}" for cell in cells)]
    rows = []
    for name, size in record["sizes"].items():
        macs, weights = f"{size['macs'] / 1e6:.1f}", f"{size['parameters'] / 1e6:.2f}"
        rows.append([name, macs, f"{100 * size['macs_saved']:.1f} %", weights, *(told(cell, name) for cell in cells)])
    table(f"{record['network']}: speed-up, one thread; base in ms", columns, rows)


def heading(cell: Mapping[str, Any]) -> str:
    return f"{cell['batch']}, {cell['layout'].removeprefix('channels_')}"


def told(cell: Mapping[str, Any], name: str) -> str:
    found = cell["variants"][name]
    if name == BASE:
        return f"{found['milliseconds']:.1f} ms"
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**found["speed_up"])


def draw(records: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Draw each variant's speed-up against the MACs that it saves; dashed: as fast as its MACs are few."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    sys.path.append(str(PICTURE.parents[1]))
    from make_pictures import small

    colours = colormaps["tab20"]  # more variants than the default has colours
    figure = Figure(figsize=(1.2 + 4.6 * len(records), 4.2), layout="constrained")
    for axes, record in zip(figure.subplots(1, len(records), squeeze=False)[0], records, strict=True):
        names = [name for name in record["sizes"] if name != BASE]
        saved = {name: 100 * record["sizes"][name]["macs_saved"] for name in names}
        for place, cell in enumerate(record["cells"]):
            shift = 0.25 * (place - (len(record["cells"]) - 1) / 2)
            for number, name in enumerate(names):
                found = cell["variants"][name]["speed_up"]
                spread = [[found["median"] - found["low"]], [found["high"] - found["median"]]]
                axes.errorbar(
                    saved[name] + shift, found["median"], yerr=spread, fmt="osv^D"[place % 5], ms=4, lw=0.8,
                    color=colours(number), mfc="white" if cell["layout"] == FIRST else None,
                    label=name if place == 0 else None,
                )  # fmt: skip
        line = [share / 2 for share in range(101)]
        axes.plot(line, [100 / (100 - share) for share in line], "--", color="black", lw=0.8)
        axes.axhline(1, color="black", lw=0.8)
        marks = ", ".join(f"{sign} {heading(cell)}" for sign, cell in zip("○□▽△◇", record["cells"], strict=False))
        axes.set(xlabel=f"MACs saved, %\n{marks}", title=record["network"], ylim=(0.6, 1.9), xlim=(0, 50))
    figure.axes[0].set_ylabel("speed-up")
    figure.axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    small(target, target)


def saved_records(networks: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads((RESULTS / f"blocks_latency_{network}.json").read_text()) for network in networks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="names of timm models")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="batch 1, three rounds; nothing is saved")
    parser.add_argument("--draw", action="store_true", help="draw and print the results that are there, run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.draw:
        records = saved_records(arguments.networks)
        for record in records:
            report(record)
        draw(records, PICTURE)
        return
    batches, rounds = ((1,), 3) if arguments.quick else (arguments.batches, arguments.rounds)
    for network in arguments.networks:
        record = study(network, batches, arguments.layouts, arguments.variants, rounds)
        report(record)
        if not arguments.quick:
            save(f"blocks_latency_{network}", record, script="blocks_latency")
    if not arguments.quick:
        draw(saved_records(arguments.networks), PICTURE)


if __name__ == "__main__":
    steady_allocator()
    main()
