"""The page of ``lightning-efficient quantize``, for 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_efficient.callbacks._quantization_costs import FLOAT, Timed, slower
from lightning_efficient.profiling.render import human, milliseconds

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from lightning_efficient.cli.quantizing import Evaluated, QuantizeReport

_LISTED = 4
"""How many layers that stay in float are named with their reason."""


def quantize_page(report: QuantizeReport) -> Group:
    """Return the forms of a network side by side: quality and size, then time, then what a reader should know."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    shape = "x".join(map(str, report.input_shape))
    samples = f"{report.split} split, {report.samples} samples"
    title = f"  {report.checkpoint.name} · {report.network} · input {shape} · {samples}"
    lines = [f"static: ranges from {report.calibrated_on}"] if report.calibrated_on else []
    lines += [f"{line}" for line in slower(report.latency)]
    for form in report.forms:
        if form.skipped:
            lines.append(f"{form.name}: {_left_in_float(form)}")
    return Group(
        Text(title, style="bold"),
        _quality(report),
        _times(report),
        *(Padding(Text(line), (0, 0, 0, 2)) for line in lines),
        *(Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in report.notes),
    )


def _quality(report: QuantizeReport) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("network")
    names = _shown_metrics(report.forms[0].metrics)
    for column in (*(name.rpartition("/")[2] for name in names), "agrees", "file", "zipped", "int8 layers"):
        table.add_column(column, justify="right")
    for form in report.forms:
        metrics = [f"{form.metrics[name]:.4f}" if name in form.metrics else "—" for name in names]
        agrees = "—" if form.agreement is None else f"{100 * form.agreement:.1f} %"
        layers = f"{len(form.quantized)} of {len(form.quantized) + len(form.skipped)}" if form.name != FLOAT else "—"
        sizes = human(form.size.bytes, "B"), human(form.size.compressed, "B")
        table.add_row(form.name, *metrics, agrees, *sizes, layers)
    return table


def _times(report: QuantizeReport) -> Table:
    from rich import box
    from rich.table import Table

    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    caption = f"  speed over float, eager or compiled alike, in turns; {threads}; spread in the JSON"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("network")
    found = {(row.name, row.batch_size, row.compiled): row for row in report.latency}
    columns = sorted({key[1:] for key in found})
    for size, compiled in columns:
        table.add_column(f"n={size} {'compiled' if compiled else 'eager'}", justify="right")
    for form in report.forms:
        table.add_row(form.name, *(_cell(found.get((form.name, *column))) for column in columns))
    return table


def _cell(row: Timed | None) -> str:
    if row is None:
        return "—"
    return milliseconds(row.ms) if row.name == FLOAT else f"{row.speed_up:.2f}x"


def _left_in_float(form: Evaluated) -> str:
    by_reason: dict[str, list[str]] = {}
    for layer, reason in form.skipped.items():
        by_reason.setdefault(reason, []).append(layer)
    parts = []
    for reason, layers in by_reason.items():
        shown = ", ".join(layers[:_LISTED])
        more = f" and {len(layers) - _LISTED} more" if len(layers) > _LISTED else ""
        parts.append(f"{shown}{more} ({reason})")
    return f"in float stay {'; '.join(parts)}"


def _shown_metrics(metrics: dict[str, float]) -> list[str]:
    """Return the names of accuracy and loss, or of the first two that there are."""
    found = [next((name for name in metrics if word in name.rpartition("/")[2]), None) for word in ("acc", "loss")]
    return [name for name in found if name is not None] or list(metrics)[:2]
