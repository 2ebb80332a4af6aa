"""``make demo``: what the project is for, in about a minute, on data that needs no download."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_efficient.cli.config_files import find
from lightning_efficient.cli.output import complain
from lightning_efficient.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_efficient.cli.efficient_cli import EfficientCLI
    from lightning_efficient.profiling import Footprint

CONFIG = "quickstart"


def run_demo(arguments: Sequence[str] = ()) -> int:
    """Train, test and profile the quickstart, print one table and the run folder; options override the config."""
    from lightning_efficient.cli.quiet import quiet

    quiet()
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    from lightning_efficient._trainer import callbacks_of
    from lightning_efficient.cli.efficient_cli import EfficientCLI

    # a model this small gains little from a second thread, and loses much of it where the cores are shared
    torch.set_num_threads(1)
    sys.argv[1:] = ["--config", str(find(CONFIG)), *arguments]
    try:
        cli = EfficientCLI(run=False)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        # by its path: of the word, Lightning says that there is a second ModelCheckpoint
        best = next((each.best_model_path for each in callbacks_of(cli.trainer, ModelCheckpoint)), "") or "best"
        cli.trainer.test(datamodule=cli.datamodule, ckpt_path=best, verbose=False, weights_only=True)
    except ConfigurationError as error:
        complain(error)
        return 2
    _report(cli)
    return 0


def _report(cli: EfficientCLI) -> None:
    from rich.console import Console

    from lightning_efficient._trainer import callbacks_of
    from lightning_efficient.callbacks import LatencyProfiler
    from lightning_efficient.reporting import run_dir

    profilers = callbacks_of(cli.trainer, LatencyProfiler)
    footprint = next(profiler.footprint for profiler in profilers if profiler.footprint)
    console = Console()
    console.print(summary_table(cli, footprint))
    folder = run_dir(cli.trainer)
    console.print(f" {folder}", style="bold", highlight=False)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        console.print(f"   {path.relative_to(folder)}", highlight=False)


def summary_table(cli: EfficientCLI, footprint: Footprint) -> Table:
    """Return the one table of a run: how good the model is, when it should abstain, and what it costs."""
    import torch
    from rich import box
    from rich.table import Table

    from lightning_efficient.profiling.render import human, milliseconds

    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    latency = footprint.latencies[0]
    coverage = metrics["selective/test_coverage_at_risk_0.01"]
    threshold = metrics.get("selective/test_threshold_at_risk_0.01")
    title = f"{CONFIG} · {type(cli.datamodule).__name__} · {cli.model.hparams['backbone']}"
    machine = f"{latency.device}, threads: {latency.threads}, batch: {latency.batch_size}"
    caption = f"seed {cli.config['seed_everything']} · torch {torch.__version__} · {machine}"
    table = Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    times = " / ".join(milliseconds(value).removesuffix(" ms") for value in (latency.p50_ms, latency.p95_ms))
    cells = {
        "accuracy": f"{100 * metrics['test/accuracy']:.1f} %",
        "AURC": f"{metrics['selective/test_aurc']:.4f}",
        "coverage at\n1 % risk": f"{100 * coverage:.1f} %",
        "answer if\nconfidence ≥": f"{threshold:.3f}" if threshold else "never",
        "params": human(footprint.parameters),
        "MACs": human(footprint.macs),
        "latency, ms\np50 / p95": times,
    }
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    return table


if __name__ == "__main__":
    sys.exit(run_demo(sys.argv[1:]))
