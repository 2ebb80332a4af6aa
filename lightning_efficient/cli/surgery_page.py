"""What surgery on a network costs and saves, laid out for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities import rank_zero_info
from rich import box
from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text
from torch import nn

from lightning_efficient.nn.surgery import Plan, preview, recipe_of
from lightning_efficient.profiling.inputs import device_of
from lightning_efficient.profiling.render import human
from lightning_efficient.profiling.surgery_costs import BlockCost, SurgeryCosts, surgery_costs

_COLUMNS = {"block": 12, "was / is": 28, "MACs": 15, "ms": 13, "speed-up": 8}


def surgery_page(costs: SurgeryCosts) -> Group:
    """Return a line for each changed block and the total, how that was measured, and whether it was worth it."""
    shape = "x".join(map(str, costs.input_shape))
    title = f"  surgery · input {shape} · parameters {human(costs.params_before)} → {human(costs.params_after)}"
    return Group(
        Text(title, style="bold"),
        _table(costs),
        *(Text(f"  {note}", style="dim") for note in _notes(costs)),
        *(Text(f"  {line}", style="yellow") for line in _no_gain(costs)),
    )


def _table(costs: SurgeryCosts) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for column, width in _COLUMNS.items():
        side: JustifyMethod = "left" if column in ("block", "was / is") else "right"
        table.add_column(column, justify=side, min_width=width, max_width=width, overflow="fold")
    last = None
    for row in costs.rows:
        kinds = row.old, row.new
        table.add_row(row.name, "" if kinds == last else "\n→ ".join(kinds), *_figures(row))
        last = kinds
    table.add_section()
    total = costs.total
    table.add_row("network", f"MACs {100 * costs.macs_change:+.0f} %", *_figures(total), style="bold")
    return table


def _figures(row: BlockCost) -> tuple[str, str, str]:
    macs, times = (row.macs_before, row.macs_after), (row.ms_before, row.ms_after)
    ratio = "" if row.speed_up is None else f"{row.speed_up:.2f}x"
    return " → ".join(map(human, macs)), " → ".join(map(_short, times)), ratio


def _short(milliseconds: float) -> str:
    if milliseconds >= 999.5:
        return f"{milliseconds:.0f}"
    return f"{milliseconds:.3g}" if milliseconds >= 0.1 or milliseconds == 0 else f"{milliseconds:.3f}"


def _notes(costs: SurgeryCosts) -> Iterator[str]:
    total, layout = costs.total, "channels last" if costs.channels_last else "channels first"
    yield f"{costs.device}, {costs.precision}, threads: {costs.threads}, batch {costs.batch_size}, {layout}"
    yield "medians; each block on its input in the network, before and after in turns"
    if total.speed_up is not None:
        yield f"network: {total.low:.2f}x to {total.high:.2f}x in 80 % of {total.pairs} pairs"


def _no_gain(costs: SurgeryCosts) -> Iterator[str]:
    if costs.macs_change < 0 and costs.total.speed_up is not None and not costs.gained:
        change, ratio = 100 * costs.macs_change, costs.total.speed_up
        yield f"MACs {change:+.0f} %, latency {ratio:.2f}x at batch {costs.batch_size}: fewer MACs gave no speed here"


def surgery_costs_of(
    model: nn.Module, shape: Sequence[int], batch_sizes: Sequence[int], threads: int | None, min_run_time: float
) -> list[SurgeryCosts]:
    """Return what surgery on a module's backbone costs and saves at each batch size; nothing where there was none."""
    backbone, original = getattr(model, "backbone", None), getattr(model, "network_before_surgery", None)
    if not isinstance(backbone, nn.Module) or original is None:
        return []
    if (recipe := recipe_of(backbone)) is None:
        return []
    before: nn.Module = original().to(device_of(backbone))
    plan = preview(before, recipe["steps"], torch.zeros(1, *shape))
    channels_last = getattr(model, "memory_format", None) is torch.channels_last
    with _uncompiled(backbone):
        return _costs(before, backbone, plan, batch_sizes, threads, min_run_time, channels_last)


def _costs(
    before: nn.Module, backbone: nn.Module, plan: Plan, batch_sizes: Sequence[int], threads: int | None,
    min_run_time: float, channels_last: bool,
) -> list[SurgeryCosts]:  # fmt: skip
    return [
        surgery_costs(
            before,
            backbone,
            plan,
            batch_size=batch_size,
            min_run_time=min_run_time / 5,
            threads=threads,
            channels_last=channels_last,
        )
        for batch_size in batch_sizes
    ]


@contextmanager
def _uncompiled(network: nn.Module) -> Iterator[None]:
    """Run a network as it is written, as the one before surgery and single blocks run."""
    compiled = network.__dict__.get("_compiled_call_impl")
    if compiled is None:
        yield
        return
    rank_zero_info("surgery is timed without torch.compile, block by block")
    network.__dict__["_compiled_call_impl"] = None
    try:
        yield
    finally:
        network.__dict__["_compiled_call_impl"] = compiled
