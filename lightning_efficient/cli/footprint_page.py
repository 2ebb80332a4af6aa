"""The footprint of one model, laid out for a terminal of 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lightning_efficient.profiling import Footprint, Latency
from lightning_efficient.profiling.render import human, milliseconds


def footprint_page(footprint: Footprint) -> Group:
    """Return what the model is, how fast it is at each batch size, and how that was measured."""
    title = f"  {footprint.name} · input {'x'.join(map(str, footprint.input_shape))}"
    first = footprint.latencies[0]
    notes = [f"{first.device}, {first.precision}, threads: {first.threads}, timed calls: {first.runs}"]
    if footprint.uncounted:
        notes.append(f"* not counted: {', '.join(footprint.uncounted)}")
    return Group(
        Text(title, style="bold"),
        _size(footprint),
        _speed(footprint.latencies),
        *(Text(f"  {note}", style="dim") for note in notes),
    )


def _size(footprint: Footprint) -> Table:
    cells = {
        "parameters": human(footprint.parameters),
        "MACs": human(footprint.macs) + ("*" if footprint.uncounted else ""),
        "FLOPs": human(footprint.flops),
        "on disk": human(footprint.bytes_on_disk, "B"),
        "peak memory": human(footprint.peak_memory_bytes, "B"),
    }
    table = _table(*cells)
    table.add_row(*cells.values())
    return table


def _speed(latencies: tuple[Latency, ...]) -> Table:
    table = _table("batch", "median", "p95", "samples/s")
    for latency in latencies:
        times = milliseconds(latency.p50_ms), milliseconds(latency.p95_ms)
        table.add_row(str(latency.batch_size), *times, human(latency.throughput))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    return table
