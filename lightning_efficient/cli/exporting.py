"""What ``lightning-efficient export`` does: graphs of a trained model, checked against it, and their description."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from lightning_efficient.cli.products import ENDINGS
from lightning_efficient.datamodules._transforms import Preparation
from lightning_efficient.datamodules.images import ImageDataModule
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference._export_graph import weights_hash
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.inference.export import ExportReport, export_graphs
from lightning_efficient.inference.exported import FORMATS, ExportFormat
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import CalibratedRouting
from lightning_efficient.nn.checkpoints import load_module
from lightning_efficient.reporting import model_name

if TYPE_CHECKING:
    from rich.console import Group

_ROWS = 8
_FULL_PRECISION = (None, "32-true", "32")


def export_model(
    model: LightningModule,
    shape: Sequence[int],
    *,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | None = None,
    out: str | None = None,
    formats: Sequence[ExportFormat] = FORMATS,
    routing_file: str | None = None,
    overwrite: bool = False,
    tolerance: float = 1e-4,
    batch_sizes: Sequence[int] = (1, 3, 64),
) -> ExportReport:
    """Export a model, after it has taken the weights of a checkpoint.

    A model with methods ``edge_graph`` and ``global_graph`` becomes the parts ``edge`` and ``global``, with the
    threshold that was calibrated for the checkpoint; any other becomes ``model``, by its ``forward``.

    Args:
        model: The module; loaded in place.
        shape: Of one sample.
        datamodule: Tells how images were normalised.
        ckpt_path: Checkpoint; without one the weights are those that the model has.
        out: Folder; by default ``<name>.export`` beside the checkpoint.
        formats: Any of ``torch`` and ``onnx``.
        routing_file: What ``calibrate`` wrote; by default the file beside the checkpoint, if there is one.
        overwrite: Whether the folder may hold files that are no export.
        tolerance: Largest difference allowed; see ``export_graphs``.
        batch_sizes: Sizes of the batches that are compared.

    Raises:
        ConfigurationError: no folder, a checkpoint or routing file that does not fit, or a model that cannot be
            exported.
        MissingExtraError: what writes ONNX is not installed.
    """
    if out is None and ckpt_path is None:
        raise ConfigurationError("missing --out; give the folder for the export, or a --ckpt_path to put it beside")
    folder = Path(out) if out is not None else Path(str(ckpt_path)).with_suffix(ENDINGS["export"])
    # before a checkpoint can change what it is compared with
    hybrid = callable(getattr(model, "edge_graph", None)) and callable(getattr(model, "global_graph", None))
    routing = _routing(model, ckpt_path, routing_file, hybrid)
    notes = []
    if ckpt_path is None:
        notes.append(f"no --ckpt_path: the weights are those with which {model_name(model)} starts")
    else:
        load_module(model, ckpt_path)
    if hybrid and routing is None:
        notes.append("no threshold was calibrated for these weights; whoever loads the export has to give one")
    if routing is not None and routing.precision not in _FULL_PRECISION:
        notes.append(
            f"the threshold was calibrated with precision {routing.precision} and the graphs are float32: query scores "
            "differ a little"
        )
    made: Any = model
    parts: dict[str, nn.Module] = {"model": model}
    if hybrid:
        parts = {"edge": made.edge_graph(), "global": made.global_graph()}
    metadata = {
        "routing": None if routing is None else routing.calibrated,
        "normalization": _normalization(model, datamodule, shape),
        "precision": None if routing is None else {"calibrated": routing.precision},
        "weights": _hashes(model, ckpt_path),
        "extra": {"model": model_name(model), "module": type(model).__name__},
    }
    report = export_graphs(
        parts,
        _example(model, shape),
        folder,
        formats=formats,
        metadata=metadata,
        overwrite=overwrite,
        tolerance=tolerance,
        batch_sizes=batch_sizes,
    )
    return replace(report, notes=(*notes, *report.notes))


def export_page(report: ExportReport) -> Group:
    """Return what was written, how far it is from the model, and the threshold with its promise, for 80 columns."""
    from rich import box
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from lightning_efficient.profiling.render import human

    table = Table(box=box.SIMPLE_HEAD)
    sizes = list(report.files[0].differences)
    for name in ("part", "format", "file"):
        table.add_column(name)
    table.add_column("size", justify="right")
    for size in sizes:
        table.add_column(f"diff n={size}", justify="right")
    for file in report.files:
        cells = [f"{file.differences[size]:.1e}" for size in sizes]
        table.add_row(file.part, file.format, file.file, human(file.bytes, "B"), *cells)
    given = report.metadata["input"]
    title = f"  {report.folder.name} · input {'x'.join(map(str, given['shape']))} {given['dtype']}"
    lines = [f"largest difference from the model, relative above 1; {report.tolerance:g} is allowed"]
    if report.metadata["routing"] is not None:
        routing = CalibratedRouting.from_dict(report.metadata["routing"])
        shown = ", ".join(f"{each:.6g}" if math.isfinite(each) else _WORDS[each > 0] for each in routing.thresholds)
        lines += [f"ask if query score > {shown}", routing.promise]
    return Group(
        Text(title, style="bold"),
        table,
        *(Padding(line, (0, 0, 0, 2)) for line in lines),
        *(Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in report.notes),
    )


_WORDS = {True: "inf (never)", False: "-inf (always)"}


def _routing(model: Any, ckpt_path: str | None, given: str | None, hybrid: bool) -> RoutingFile | None:
    if given is not None and (ckpt_path is None or not hybrid):
        raise ConfigurationError(
            f"--routing_file {given} needs the --ckpt_path that it belongs to"
            if hybrid
            else f"--routing_file {given} is of a hybrid, and {type(model).__name__} has no edge_graph"
        )
    if ckpt_path is None or not hybrid:
        return None
    path = Path(given) if given is not None else RoutingFile.find(ckpt_path)
    if given is None and not path.is_file():
        return None
    file = RoutingFile.read(path)
    file.check_weights(ckpt_path, path)
    file.check_router(model, path)
    return file


def _hashes(model: Any, ckpt_path: str | None) -> dict[str, str]:
    parts = {"base": "base", "router": "router", "global": "global_model"}
    networks = {name: getattr(model, attribute, None) for name, attribute in parts.items()}
    found = {name: weights_hash(each) for name, each in networks.items() if isinstance(each, nn.Module)}
    return found if ckpt_path is None else {"checkpoint": hash_checkpoint(ckpt_path), **found}


def _example(model: LightningModule, shape: Sequence[int]) -> Tensor:
    own = model.example_input_array
    if isinstance(own, Tensor) and tuple(own.shape[1:]) == tuple(shape):
        return own
    generator = torch.Generator().manual_seed(0)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if tables and len(shape) == 1:  # numbers of tokens
        return torch.randint(tables[0].num_embeddings, (_ROWS, *shape), generator=generator)
    return torch.randn(_ROWS, *shape, generator=generator)


def _normalization(
    model: LightningModule, datamodule: LightningDataModule | None, shape: Sequence[int]
) -> dict[str, Any] | None:
    """Return how images are prepared: as the data module does, or else as the weights expect it."""
    config = getattr(model, "data_config", None)
    config = config if isinstance(config, Mapping) else {}
    if isinstance(datamodule, ImageDataModule):
        options = {name: getattr(datamodule, name) for name in ("mean", "std", "interpolation")}
        used = Preparation.resolve((shape[0], shape[1], shape[2]), options, config)
        known: dict[str, Any] = {"mean": used.mean, "std": used.std, "interpolation": used.interpolation}
        known["crop_pct"] = datamodule.crop_pct
    elif config.get("mean") is not None and datamodule is None:
        known = {name: config.get(name) for name in ("mean", "std", "interpolation", "crop_pct")}
    else:
        return None
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    return {**lists, "image_size": list(shape[1:])}
