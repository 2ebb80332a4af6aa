"""What the model costs when it predicts: the footprint, its latencies, and its layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_efficient.reporting.report.charts import bar_chart
from lightning_efficient.reporting.report.markup import Section, entries, facts, folded, paragraph, quantity, table
from lightning_efficient.reporting.run_history import RunHistory, as_number

_MOST_BARS = 15
_FACTS = (
    ("parameters", "parameters", ""),
    ("trainable_parameters", "trainable parameters", ""),
    ("macs", "MACs per sample", ""),
    ("bytes_on_disk", "on disk", "B"),
    ("bytes", "in memory", "B"),
    ("peak_memory_bytes", "peak memory", "B"),
    ("energy_mj", "energy per sample", "mJ"),
)
_LATENCY = ("batch_size", "p50_ms", "p95_ms", "mean_ms", "throughput", "runs", "threads", "device", "precision")


def cost_sections(run: RunHistory) -> Iterator[Section]:
    """Return a section for each footprint; of a W&B run, whose files have no layers, the table of it."""
    for logged in run.tables:
        if logged.stem not in run.reports and {"macs", "p50_ms"} <= set(logged.columns):
            body = table(logged.columns, logged.rows, "latency of a forward pass: median and 95th percentile")
            yield Section(f"footprint-table-{_letters(logged.stem)}", "Footprint", body)
    for name, found in run.reports.items():
        if isinstance(found, dict) and "macs" in found and isinstance(found.get("latencies"), list):
            title = "Footprint" if name == "profile" else f"Footprint: {name}"
            yield Section(f"footprint-{len(name)}-{_letters(name)}", title, _body(found))


def _body(found: dict[str, Any]) -> str:
    pairs = [("model", str(found.get("name", "")))]
    pairs += [("input", "x".join(map(str, shape))) for shape in [entries(found.get("input_shape"))] if shape]
    pairs += [
        (name, quantity(found[key], unit)) for key, name, unit in _FACTS if isinstance(found.get(key), int | float)
    ]
    pairs += [("processor", str(found["processor"]))] if found.get("processor") else []
    body = facts(pairs)
    if uncounted := entries(found.get("uncounted")):
        body += paragraph(f"MACs of these are not counted: {', '.join(map(str, uncounted))}", "bad")
    body += "".join(paragraph(f"left out: {line}", "note") for line in entries(found.get("left_out")))
    timed = [each for each in found["latencies"] if isinstance(each, dict)]
    if timed:
        columns = [column for column in _LATENCY if column in timed[0]]
        rows = [[each.get(column) for column in columns] for each in timed]
        body += table(columns, rows, "latency of a forward pass: median and 95th percentile")
    layers = [each for each in entries(found.get("layers")) if isinstance(each, dict)]
    ranked = sorted(layers, key=lambda each: -as_number(each.get("macs", 0)))
    bars = [(str(each.get("name")), as_number(each.get("macs"))) for each in ranked if each.get("macs")]
    rest = sum(macs for _, macs in bars[_MOST_BARS:])
    shown = bars[:_MOST_BARS] + ([(f"{len(bars) - _MOST_BARS} more", rest)] if rest else [])
    body += bar_chart("layers with most MACs", shown, "MACs") if len(bars) > 1 else ""
    if layers:
        columns = list(layers[0])
        body += folded(f"all {len(layers)} layers", table(columns, [_row(each, columns) for each in layers], most=500))
    return body


def _row(layer: dict[str, Any], columns: list[str]) -> list[Any]:
    return ["x".join(map(str, value)) if isinstance(value := layer.get(key), list) else value for key in columns]


def _letters(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
