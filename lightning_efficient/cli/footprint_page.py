"""The footprint of one model, laid out for a terminal of 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import wrap

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.profiling import Footprint, Latency
from lightning_efficient.profiling.render import human, milliseconds
from lightning_efficient.profiling.training_memory import TrainingMemory
from lightning_efficient.profiling.variant_costs import FLOAT, VariantComparison, VariantCost, VariantTime
from lightning_efficient.reporting.footprint import footprint_figure, shortened

PICTURES = (".png", ".pdf", ".svg")
_LONGEST_NAME = 30
_WIDTH = 80
_BAR = 14


def footprint_page(footprint: Footprint, layers: int = 0) -> Group:
    """Return what the model is, how fast it is in each setting, and how that was measured.

    Args:
        footprint: What was measured.
        layers: How many of the layers with most MACs are shown.
    """
    title = f"  {footprint.name} · input {'x'.join(map(str, footprint.input_shape))}"
    parts: list[RenderableType] = [Text(title, style="bold"), _size(footprint)]
    if layers > 0 and footprint.layers:
        parts.append(_layers(footprint, layers))
    if footprint.latencies:
        parts.append(_speed(footprint.latencies))
    if footprint.variants:
        parts.append(_variants(footprint.variants))
    lines = [line for note in _notes(footprint) for line in wrap(note, _WIDTH - 2)]
    return Group(*parts, *(Text(f"  {line}", style="dim") for line in lines))


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


def _layers(footprint: Footprint, most: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer")
    for column in ("output", "MACs", "share"):
        table.add_column(column, justify="right")
    table.add_column("")
    total, first = max(footprint.macs, 1), sorted(footprint.layers, key=lambda layer: -layer.macs)[:most]
    largest = max((layer.macs for layer in first), default=0) or 1
    for layer in first:
        shape, bar = "x".join(map(str, layer.output_shape)), "█" * round(_BAR * layer.macs / largest)
        table.add_row(
            shortened(layer.title, _LONGEST_NAME), shape, human(layer.macs), f"{100 * layer.macs / total:.1f} %", bar
        )
    if rest := footprint.macs - sum(layer.macs for layer in first):
        others = sum(1 for layer in footprint.layers if layer.macs) - len(first)
        table.add_row(f"{others} more", "", human(rest), f"{100 * rest / total:.1f} %", "")
    return table


def _speed(latencies: Sequence[Latency]) -> Table:
    sweep = len({latency.threads for latency in latencies}) > 1
    table = _table(*(["threads"] if sweep else []), "batch", "median", "p95", "samples/s")
    for latency in latencies:
        times = milliseconds(latency.p50_ms), milliseconds(latency.p95_ms)
        threads = [str(latency.threads)] if sweep else []
        table.add_row(*threads, str(latency.batch_size), *times, human(latency.throughput))
    return table


def _variants(comparison: VariantComparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("variant", no_wrap=True)
    for column in ("batch", "median", "time / float (80 %)", "on disk", "differs"):
        table.add_column(column, justify="right")
    for row in comparison.rows:
        if row.reason is None:
            first = [row.name, human(row.bytes_on_disk or 0, "B"), _share(row)]
            for timing in row.timings or (None,):
                table.add_row(first[0], *_timing(row, timing), *first[1:])
                first = ["", "", ""]
    return table


def _share(row: VariantCost) -> str:
    if row.name == FLOAT or row.difference is None:
        return ""
    return f"{100 * row.difference:.2f} %" if row.difference >= 1e-4 else "<0.01 %"


def _timing(row: VariantCost, timing: VariantTime | None) -> tuple[str, str, str]:
    if timing is None:
        return "", "", ""
    ratio = "" if row.name == FLOAT else f"{timing.ratio:.2f}x ({timing.low:.2f}-{timing.high:.2f})"
    return str(timing.batch_size), milliseconds(timing.p50_ms), ratio


def _notes(footprint: Footprint) -> Iterator[str]:
    if footprint.latencies:
        first, runs = footprint.latencies[0], [latency.runs for latency in footprint.latencies]
        counts = tuple(dict.fromkeys(latency.threads for latency in footprint.latencies))
        yield f"{first.device}, {first.precision}, threads: {', '.join(map(str, counts))}, timed calls: {min(runs)}"
        if footprint.variants and counts != (footprint.variants.threads,):
            yield f"variants timed with threads: {footprint.variants.threads}"
    if footprint.read_bytes is not None and footprint.written_bytes is not None:
        read, written = human(footprint.read_bytes, "B"), human(footprint.written_bytes, "B")
        yield f"memory traffic of a sample: {read} read, {written} written, operator by operator"
        if footprint.arithmetic_intensity is not None:
            yield f"arithmetic intensity: {footprint.arithmetic_intensity:.3g} FLOPs per byte"
    if footprint.training:
        yield from _training(footprint.training)
    if footprint.energy_mj is not None:
        yield f"energy of a sample: {footprint.energy_mj:.3g} mJ"
    for row in footprint.variants.rows if footprint.variants else ():
        if row.reason or row.note:
            yield f"{row.name}: {row.reason or row.note}"
    if footprint.uncounted:
        yield f"* not counted: {', '.join(footprint.uncounted)}"
    yield from (f"left out: {each}" for each in footprint.left_out)


def _training(memory: TrainingMemory) -> Iterator[str]:
    yield (
        f"training, batch {memory.batch_size}: peak {human(memory.peak_bytes, 'B')} ({memory.method}), "
        f"with Adam's state {human(memory.with_adam_bytes, 'B')}"
    )
    yield (
        f"of that kept for the backward pass {human(memory.saved_bytes, 'B')}, "
        f"gradients {human(memory.gradient_bytes, 'B')}"
    )


def check_picture(figure: str | None) -> None:
    """Raise ``ConfigurationError`` for a file whose ending names no kind of picture."""
    if figure is not None and Path(figure).suffix not in PICTURES:
        message = f"figure must end in one of {list(PICTURES)}, got {figure!r}."
        raise ConfigurationError(message + did_you_mean(Path(figure).suffix, PICTURES))


def save_picture(footprint: Footprint, figure: str) -> None:
    """Draw the footprint into a file.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        footprint_figure(footprint).savefig(figure, dpi=150)
    except OSError as error:
        raise ConfigurationError(f"figure: {figure} cannot be written ({error.strerror})") from error


def progress_line() -> tuple[Callable[[str], None], Callable[[], None]]:
    """Return what writes one line of progress to a terminal, over the last one, and what wipes it; mute elsewhere."""
    stream = sys.stderr
    if not stream.isatty():
        return (lambda text: None), (lambda: None)

    def tell(text: str) -> None:
        stream.write(f"\r\x1b[K{text[:78]}")
        stream.flush()

    return tell, lambda: tell("")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    return table
