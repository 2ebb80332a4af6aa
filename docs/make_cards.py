"""Write the figures of the method cards from the studies' JSON: ``python docs/make_cards.py``.

A card of ``docs/methods/`` is written by hand, but for what stands between ``<!-- made: NAME -->`` and
``<!-- end -->``: tables of ``benchmarks/results/``, so that no figure is typed. ``tests/docs/test_cards.py`` fails
where a page and the JSON disagree.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "docs" / "methods"
RESULTS = ROOT / "benchmarks" / "results"
ROWS = "reproduce_cpu"
"""The study that pairs each method with its baseline, seed by seed."""
MINUS = "\N{MINUS SIGN}"
MADE = re.compile(r"(<!-- made: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


class Cost(NamedTuple):
    """A line of a card's costs: what it is of, where it is in a study, and how to write it."""

    what: str
    study: str
    path: Sequence[str | int]
    unit: str


class Card(NamedTuple):
    """A method: its page, its name, its rows in the table of results, and what the index says."""

    file: str
    name: str
    method: str | None
    replaces: str
    saves: str
    variants: tuple[str, ...] = ()


FPTT, CELLS, CALLBACKS, COMPRESSION = "fptt_memory", "recurrent_cells", "callback_overhead", "compression_digits"
DIGITS, BLOCKS, PAIRS = "blocks_images_digits", "blocks_latency_efficientnet_b0", "hybrid_images_fashion_6k"
LAYERS = ("batches", "128", "layers")
OVERHEAD = ("method", "ratio")
SPEED = ("latency", "resnet10t")
METHODS = (
    Card("fptt", "FPTT", "fptt", "back-propagation through time", "training memory"),
    Card("chunked-backprop", "ChunkedBackprop", "chunked", "back-propagation through time", "training memory"),
    Card("incremental-rnn", "IncrementalRNN", "irnn", "LSTM", "parameters"),
    Card("time-adaptive-rnn", "TimeAdaptiveRNN", "tarnn", "LSTM", "training memory"),
    Card("global-layer", "Global layer", "global", "further residual blocks of a stage", "MACs, parameters"),
    Card("spatial-interpolation", "SpatialInterpolation", "interpolation", "residual blocks at full size", "MACs"),
    Card("one-sided-prediction", "One-sided prediction", "osp", "softmax response", "wrong answers"),
    Card("selectivenet", "SelectiveNet", "selectivenet", "softmax response", "wrong answers"),
    Card("self-adaptive-training", "Self-adaptive training", "sat", "softmax response", "wrong answers"),
    Card("deep-gamblers", "Deep Gamblers", "gamblers", "softmax response", "wrong answers"),
    Card("thresholds", "Thresholds with a promise", "thresholds", "one that fits the data", "broken promises"),
    Card("disk", "DiSK", "disk", "knowledge distillation", "nothing when it runs: a better student"),
    Card("hybrid", "Hybrid with a gain router", "gain", "a score of the small model", "calls of a large model"),
    Card("cascades", "Cascades", None, "one network for all inputs", "MACs on easy inputs"),
    Card("early-exits", "Early exits", None, "one way through a network", "MACs on easy inputs"),
    Card("experts", "Experts", None, "one small model before a large one", "MACs on easy inputs"),
    Card("online-abstention", "Online abstention", "online", "a threshold chosen beforehand", "calls of a large model"),
    Card("pruning", "Pruning", "pruning", "the whole network", "bytes, with channels also MACs"),
    Card("quantization", "Quantisation", "int8", "float32 weights", "bytes"),
)

COSTS: dict[str, tuple[Cost, ...]] = {
    "fptt": (
        Cost("peak of a training step, 1,000 steps, LSTM of 128", FPTT, ("peak_bytes", "FPTT", "1000"), "MB"),
        Cost("the same by back-propagation through time", FPTT, ("peak_bytes", "BPTT", "1000"), "MB"),
        Cost("processor time over BPTT, batch 16", FPTT, ("times", 0, "FPTT over BPTT"), "times"),
        Cost("processor time over ChunkedBackprop, batch 16", FPTT, ("times", 0, "FPTT over ChunkedBackprop"), "times"),
    ),
    "chunked-backprop": (
        Cost("peak of a training step, 1,000 steps", FPTT, ("peak_bytes", "ChunkedBackprop", "1000"), "MB"),
        Cost("the same by back-propagation through time", FPTT, ("peak_bytes", "BPTT", "1000"), "MB"),
        Cost("processor time over BPTT, batch 16", FPTT, ("times", 0, "ChunkedBackprop over BPTT"), "times"),
    ),
    "incremental-rnn": (
        Cost(
            "time of a step over an LSTM's, K = 1, batch 128",
            CELLS,
            (*LAYERS, "iRNN K=1", "over_lstm"),
            "times",
        ),
        Cost("the same, K = 3", CELLS, (*LAYERS, "iRNN K=3", "over_lstm"), "times"),
        Cost("kept for the backward pass, K = 1", CELLS, (*LAYERS, "iRNN K=1", "saved_bytes"), "MB"),
        Cost("parameters, 128 units, K = 1", CELLS, ("parameters", "iRNN K=1"), "count"),
        Cost("parameters of the LSTM", CELLS, ("parameters", "LSTM"), "count"),
    ),
    "time-adaptive-rnn": (
        Cost(
            "time of a step over an LSTM's, K = 1, batch 128",
            CELLS,
            (*LAYERS, "TARNN K=1", "over_lstm"),
            "times",
        ),
        Cost("kept for the backward pass, K = 1", CELLS, (*LAYERS, "TARNN K=1", "saved_bytes"), "MB"),
        Cost("the same by the LSTM", CELLS, (*LAYERS, "LSTM", "saved_bytes"), "MB"),
        Cost("parameters, 128 units", CELLS, ("parameters", "TARNN K=1"), "count"),
    ),
    "global-layer": tuple(
        Cost(f"{what}, {name}", DIGITS, ("networks", key, unit), "count")
        for name, key in (("the whole network", "base"), ("with the layer", "Global, K=1"))
        for what, unit in (("MACs", "macs"), ("parameters", "params"))
    )
    + tuple(
        Cost(
            f"speed over the whole network, digits, batch {size}",
            DIGITS,
            ("latency", "Global, K=1", size),
            "times",
        )
        for size in ("1", "64")
    ),
    "spatial-interpolation": tuple(
        Cost(f"MACs of `{name}`, {text}", f"blocks_latency_{name}", ("sizes", key, "macs"), "count")
        for name in ("mobilenetv3_large_100", "efficientnet_b0")
        for text, key in (("unchanged", "base"), ("interpolated", "add"))
    )
    + tuple(
        Cost(
            f"its speed, batch {size}, channels {layout}",
            BLOCKS,
            ("cells", cell, "variants", "add", "speed_up"),
            "times",
        )
        for cell, size, layout in ((0, 1, "first"), (3, 32, "last"))
    ),
    "disk": (
        Cost("a step of student and guide over one of KD, CPU", "disk_step", ("over_kd", "DiSK joint"), "times"),
        Cost("with the teacher's outputs stored", "disk_step", ("over_kd", "DiSK joint, stored"), "times"),
        Cost("peak of a step", "disk_step", ("peak_bytes", "DiSK joint"), "MB"),
        Cost("peak of a step of KD", "disk_step", ("peak_bytes", "KD"), "MB"),
    ),
    "hybrid": (
        Cost("MACs of base, FashionMNIST", PAIRS, ("networks", "base", "macs"), "count"),
        Cost("MACs of the router", PAIRS, ("networks", "router", "macs"), "count"),
        Cost("MACs of the global model", PAIRS, ("networks", "global_model", "macs"), "count"),
        Cost(
            "speed over the global model alone, 70 % kept, batch 64",
            PAIRS,
            ("latency", "cpu", "64", "routed, 0.7"),
            "inverse",
        ),
    ),
    "pruning": tuple(
        Cost(
            f"a training step over a bare one, {name}",
            CALLBACKS,
            (*OVERHEAD, f"GradualPruning, {name}"),
            "times",
        )
        for name in ("weights", "channels")
    )
    + tuple(
        Cost(
            f"speed of `resnet10t`, {name}, batch 64, eager",
            COMPRESSION,
            (*SPEED, "eager", name, "64"),
            "times",
        )
        for name in ("channels pruned", "weights pruned")
    ),
    "quantization": (
        Cost(
            "a training step of `QuantizationAware` over a bare one",
            CALLBACKS,
            (*OVERHEAD, "QuantizationAware"),
            "times",
        ),
        *(
            Cost(f"file of `resnet10t`, {name}", COMPRESSION, ("runs", "resnet10t", "0", name, "bytes"), "MB")
            for name in ("float32", "int8 weights", "int8 static", "int8 aware")
        ),
        Cost(
            "speed of int8 weights, batch 64, compiled",
            COMPRESSION,
            (*SPEED, "compiled", "int8 weights", "64"),
            "times",
        ),
    ),
}
"""By card; a card without an entry says in words what the method costs."""


@cache
def study(name: str) -> Mapping[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows_of(method: str) -> list[Mapping[str, Any]]:
    return [row for row in study(ROWS)["rows"] if row["method"] == method]


def written(value: Any, unit: str) -> str:
    """Write a number of a study: bytes as MB, a ratio with the middle of its rounds."""
    if unit == "MB":
        return f"{value / 1e6:,.1f} MB"
    if unit == "count":
        return f"{value / 1e6:,.1f} M" if value >= 1e6 else f"{value:,}"
    median, low, high = (value[key] for key in ("median", "low", "high"))
    if unit == "inverse":
        median, low, high = 1 / median, 1 / high, 1 / low
    return f"{median:.2f} ({low:.2f} to {high:.2f}) times"


def found(cost: Cost) -> str:
    value: Any = study(cost.study)
    for key in cost.path:
        value = value[key]
    return written(value, cost.unit)


def costs(card: str) -> str:
    lines = "".join(f"| {cost.what} | {found(cost)} | `{cost.study}` |\n" for cost in COSTS[card])
    return f"| | measured | study |\n| --- | ---: | --- |\n{lines}"


def figures(method: str) -> str:
    text = "| | over | task | what | method | baseline | seeds | study |\n"
    text += "| --- | --- | --- | --- | ---: | ---: | ---: | --- |\n"
    for row in rows_of(method):
        measure = f"{row['measure']}{' ↓' if row['better'] == 'lower' else ''}"
        values = (spread(row["pairs"][side]) for side in ("method", "baseline"))
        cells = (row["variant"], row["baseline"], row["task"], measure, *values, _seeds(row), f"`{row['study']}`")
        text += f"| {' | '.join(cells)} |\n"
    return text


def _seeds(row: Mapping[str, Any]) -> str:
    count, over = len(row["pairs"]["method"]), row["pairs"]["over"]
    return str(count) if over == "seeds" else "1 run" if count == 1 else f"{count} {over}"


def spread(values: Sequence[float]) -> str:
    decimals = 0 if fmean(values) >= 1000 else 3 if max(values) < 1 else 2
    mean = f"{fmean(values):,.{decimals}f}".replace("-", MINUS)
    return f"{mean} ± {stdev(values):,.{decimals}f}" if len(values) > 1 else mean


def published(method: str) -> str:
    """List what was published for the method, each figure once, and whether ours reaches its gain."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from _reproduce_published import SOURCES

    lines: dict[str, list[bool]] = {}
    for row in rows_of(method):
        if (figure := row["published"]) is None:
            continue
        unit = "" if "squared error" in row["measure"] else " points"
        levels = "" if figure["method"] is None else f"{figure['method']:g} over {figure['baseline']:g}, "
        gain = f"{figure['gain']:+g}".replace("-", MINUS)
        text = f"- {figure['data']}: {levels}a difference of {gain}{unit}. Source: {SOURCES[figure['source']]}."
        lines.setdefault(text, []).append(row["reached"])
    if not lines:
        return "None that could be verified for a comparison like ours.\n"
    return "".join(f"{text} Ours reaches that in {sum(got)} of {len(got)} rows.\n" for text, got in lines.items())


def verdict(method: str | None) -> tuple[str, str]:
    """Return whether it helps here, by a rule, and the counts that say so."""
    if method is None:
        return "not measured", "no study over seeds"
    rows = rows_of(method)
    signs = [_clear(row) for row in rows]
    better, worse = signs.count(1), signs.count(-1)
    word = "yes" if better and not worse else "no" if worse and not better else "depends" if better else "level"
    over = ", ".join(dict.fromkeys(row["baseline"] for row in rows))
    return word, f"clearly better in {better}, clearly worse in {worse} of {len(rows)} rows over: {over}"


def _clear(row: Mapping[str, Any]) -> int:
    """Return 1 or -1 where the mean difference is beyond the spread of the differences, else 0."""
    if not abs(row["gain"]) > row["spread"]:
        return 0
    return 1 if (row["gain"] > 0) == (row["better"] == "higher") else -1


def index() -> str:
    lines = []
    for card in METHODS:
        word, counts = verdict(card.method)
        lines.append(f"| [{card.name}]({card.file}.md) | {card.replaces} | {card.saves} | **{word}**: {counts} |\n")
    return f"| method | in place of | saves | does it help here? |\n| --- | --- | --- | --- |\n{''.join(lines)}"


def made(name: str) -> str:
    """Return what belongs between the comments of a name, such as ``figures fptt``."""
    kind, _, of = name.partition(" ")
    makers = {"figures": figures, "costs": costs, "published": published}
    return index() if kind == "index" else makers[kind](of)


def filled(text: str) -> str:
    """Return a page with all that is made filled in."""
    return MADE.sub(lambda part: f"{part[1]}{made(part[2])}{part[3]}", text)


def main() -> None:
    for page in sorted(CARDS.glob("*.md")):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
