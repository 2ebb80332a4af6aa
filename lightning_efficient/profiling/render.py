"""Footprints as a table for the terminal, in units that people read."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from lightning_efficient.profiling.footprint import Footprint, Latency

_PREFIXES = ("", "k", "M", "G", "T")


def human(number: float, unit: str = "") -> str:
    """Write a number with three significant digits and a decimal prefix.

    Example:
        >>> human(1_593_224), human(6_120_000, "B"), human(512)
        ('1.59 M', '6.12 MB', '512')
    """
    scaled, power = float(number), 0
    # 999.5 would round to 1e+03
    while abs(scaled) >= 999.5 and power < len(_PREFIXES) - 1:
        scaled, power = scaled / 1000, power + 1
    return f"{_three_digits(scaled)} {_PREFIXES[power]}{unit}".rstrip()


def milliseconds(value: float) -> str:
    """Write milliseconds with three significant digits.

    Example:
        >>> milliseconds(0.53211), milliseconds(1234.5)
        ('0.532 ms', '1234 ms')
    """
    return f"{_three_digits(value)} ms"


def footprint_table(footprints: Footprint | Iterable[Footprint], title: str | None = None) -> Table:
    """Return a table with one line per model and batch size; the caption tells how the times were taken.

    Args:
        footprints: One footprint, or several to compare.
        title: Above the table.
    """
    several = [footprints] if isinstance(footprints, Footprint) else list(footprints)
    table = Table(title=title, title_justify="left", caption=_caption(several), caption_justify="left")
    table.add_column("model")
    for column in ("parameters", "MACs", "on disk", "peak memory", "batch", "median", "p95", "samples/s"):
        table.add_column(column, justify="right")
    for footprint in several:
        shared = _shared(footprint)
        for latency in footprint.latencies or (None,):
            table.add_row(*shared, *_timed(latency))
            shared = [""] * len(shared)
    return table


def _shared(footprint: Footprint) -> list[str]:
    return [
        footprint.name,
        human(footprint.parameters),
        human(footprint.macs) + ("*" if footprint.uncounted else ""),
        human(footprint.bytes_on_disk, "B"),
        human(footprint.peak_memory_bytes, "B"),
    ]


def _timed(latency: Latency | None) -> list[str]:
    if latency is None:
        return []
    times = [milliseconds(latency.p50_ms), milliseconds(latency.p95_ms)]
    return [str(latency.batch_size), *times, human(latency.throughput)]


def _caption(footprints: Iterable[Footprint]) -> str | None:
    several = list(footprints)
    conditions = {
        f"{latency.device}, {latency.precision}, {latency.threads} thread{'s' if latency.threads > 1 else ''}"
        for footprint in several
        for latency in footprint.latencies
    }
    gaps = [f"* {each.name}: not counted: {', '.join(each.uncounted)}" for each in several if each.uncounted]
    return "\n".join([*sorted(conditions), *gaps]) or None


def _three_digits(value: float) -> str:
    if abs(value) >= 999.5:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.6f}"
