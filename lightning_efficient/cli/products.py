"""Exports, quantised copies and thresholds as artifacts, for a W&B logger; without one nothing happens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, WandbLogger

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.reporting.artifacts import Artifact, log_with_checkpoint
from lightning_efficient.reporting.run_records import read_run

if TYPE_CHECKING:
    from lightning_efficient.inference.export import ExportReport

KINDS = {"export": "graph", "quantize": "graph", "calibrate": "threshold"}
"""What a verb makes of a checkpoint, as W&B groups artifacts."""

ENDINGS = {"export": ".export", "quantize": ".quantized"}
"""How the folder beside the checkpoint ends, into which a verb writes where no other is given."""


def log_product(
    verb: str,
    loggers: Iterable[Logger],
    options: Mapping[str, Any],
    since: float,
    report: ExportReport | None = None,
) -> None:
    """Keep what a verb has written.

    Args:
        verb: One of ``KINDS``.
        loggers: Of the command.
        options: Of the verb, with the checkpoint resolved.
        since: Seconds since 1970; what is older was not written by this command.
        report: Of an export, for how far each graph is from the model.
    """
    wandb_loggers = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    checkpoint = options.get("ckpt_path")
    if not wandb_loggers or checkpoint is None:
        return
    for path in _places(verb, Path(checkpoint), options.get("out")):
        if path.exists() and path.stat().st_mtime >= since - 1:  # a file system's clock may be a little behind
            metadata = {**_description(path), "bytes": _sizes(path), "checkpoint": Path(checkpoint).name}
            if report is not None:
                metadata["differences"] = {each.file: each.differences for each in report.files}
            if metrics := _metrics(Path(checkpoint).resolve().parent.parent):
                metadata["metrics"] = metrics
            log_with_checkpoint(wandb_loggers, checkpoint, Artifact(verb, KINDS[verb], [path], metadata))


def _places(verb: str, checkpoint: Path, out: str | None) -> list[Path]:
    if out is not None:
        return [Path(out)]
    if verb == "calibrate":
        return [kind.beside(checkpoint) for kind in (ThresholdFile, RoutingFile)]
    return [checkpoint.with_suffix(ENDINGS[verb])]


def _description(path: Path) -> dict[str, Any]:
    """Return what the verb wrote about it: what the graphs are of, or the threshold and its promise."""
    files = [path] if path.is_file() else [path / "metadata.json", path / "quantization.json"]
    for file in files:
        if file.is_file():
            return {"description": json.loads(file.read_text(encoding="utf-8"))}
    return {}


def _sizes(path: Path) -> dict[str, int]:
    if path.is_file():
        return {path.name: path.stat().st_size}
    return {each.relative_to(path).as_posix(): each.stat().st_size for each in path.rglob("*") if each.is_file()}


def _metrics(folder: Path) -> dict[str, float]:
    """Return what the run of the checkpoint reached, if its folder tells."""
    try:
        return dict(read_run(folder).metrics)
    except ConfigurationError:
        return {}
