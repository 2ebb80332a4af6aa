"""Write networks as graphs for other runtimes, load them again, and compare what they answer with the networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient._version import __version__
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_count, check_flag, check_positive
from lightning_efficient.inference._export_folder import install, partial_folder, refuse_taken, write_json
from lightning_efficient.inference._export_graph import dtypes_of, export_problem, frozen, traced, weights_hash, written
from lightning_efficient.inference._export_parity import answers, difference, drawn
from lightning_efficient.inference._onnx import require_writer
from lightning_efficient.inference.exported import (
    FORMAT,
    FORMATS,
    METADATA,
    QUERY_SCORE,
    SCHEMA,
    ExportFormat,
    hash_entry,
    load_export,
)
from lightning_efficient.inference.routing_thresholds import CalibratedRouting

GIVEN = ("routing", "normalization", "precision", "weights", "extra")
"""What a caller may add to ``metadata.json``."""

PLAIN_OPERATORS = frozenset(
    {
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Concat",
        "Conv",
        "Div",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
    }
    | {"HardSigmoid", "HardSwish", "Identity", "MatMul", "MaxPool", "Mul", "Pad", "ReduceMean", "Relu", "Reshape"}
    | {"Sigmoid", "Softmax", "Sub", "Tanh", "Transpose", "Unsqueeze"}
)
"""ONNX operators of which plain convolutional networks are made."""


@dataclass(frozen=True)
class ExportedFile:
    """One part in one format.

    Attributes:
        part: Name of the part.
        format: ``torch`` or ``onnx``.
        file: Name of the file.
        bytes: Its size, with that of weights beside it.
        differences: For each batch size the largest difference from the network, relative to the largest output where
            that exceeds 1.
        operators: How often each operator occurs.
    """

    part: str
    format: ExportFormat
    file: str
    bytes: int
    differences: dict[int, float]
    operators: dict[str, int]

    @property
    def uncommon(self) -> tuple[str, ...]:
        """ONNX operators beyond those of plain convolutional networks: what a compiler for a device must support."""
        return () if self.format == "torch" else tuple(name for name in self.operators if name not in PLAIN_OPERATORS)


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export_graphs` has written and compared.

    Attributes:
        folder: Where it is.
        files: One entry for each part and format.
        tolerance: Largest difference that was allowed.
        notes: What the reader should know, sentences.
        metadata: The content of ``metadata.json``.
    """

    folder: Path
    files: tuple[ExportedFile, ...]
    tolerance: float
    notes: tuple[str, ...]
    metadata: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that strict JSON can hold."""
        files = [{**asdict(file), "uncommon": list(file.uncommon)} for file in self.files]
        entries = {"tolerance": self.tolerance, "notes": list(self.notes), "metadata": self.metadata}
        return {"folder": str(self.folder), "files": files, **entries}


def export_graphs(
    parts: Mapping[str, nn.Module],
    example: Tensor,
    folder: str | Path,
    *,
    formats: Sequence[ExportFormat] = FORMATS,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    tolerance: float = 1e-4,
    batch_sizes: Sequence[int] = (1, 3, 64),
) -> ExportReport:
    """Export networks as graphs for any batch size, and check in the same call that they answer as the networks do.

    Each part becomes ``<part>.pt2`` by ``torch.export`` and ``<part>.onnx``; ``metadata.json`` says what they are, with
    the hash of each file. All are loaded again and compared with the network in evaluation mode on batches drawn from
    the example. Where one differs nothing is left behind. Weights that the graph does not use are not exported.
    Everything is float32 on the CPU. The networks stay as they are.

    A threshold does not become part of a graph: it is in ``metadata.json``, with a hash, and another can be
    given where the export is used.

    Args:
        parts: A module for each part, from a batch to a tensor, or to a tuple of tensors, each with one row per input.
            Two outputs of which the second is ``(N,)`` are ``logits`` and ``query_score``.
        example: A batch, shape ``(N, ...)``, floating point or integers; any ``N`` of 1 or more.
        folder: Where they go; made, with the folders above it.
        formats: Any of ``torch`` and ``onnx``.
        metadata: What is to be kept beside the graphs: ``routing`` (a ``CalibratedRouting``), ``normalization``,
            ``precision``, ``weights`` (hashes by name), and ``extra`` for any other values that JSON can hold.
        overwrite: Whether the folder may already hold files that are no export; they stay unless they have the name of
            one of ours. An earlier export is replaced without asking.
        tolerance: Largest difference allowed, relative to the largest output where that exceeds 1.
        batch_sizes: Sizes of the batches that are compared.

    Raises:
        ConfigurationError: a part that cannot be exported or answers differently, a folder that is taken or cannot be
            written, or an option that cannot be.
        MissingExtraError: ``onnx``, ``onnxscript`` or ``onnxruntime`` is not installed, where that format is asked for.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp()) / "export"
        >>> report = export_graphs({"model": nn.Linear(4, 3)}, torch.zeros(2, 4), folder, formats=("torch",))
        >>> [(file.file, max(file.differences.values())) for file in report.files]
        [('model.pt2', 0.0)]
    """
    _check_options(parts, example, formats, overwrite, tolerance, batch_sizes)
    given = _given(metadata)
    folder = Path(folder).resolve()
    refuse_taken(folder, overwrite)
    if "onnx" in formats:
        require_writer()
    example = example.detach().cpu()
    example = example.float() if example.is_floating_point() else example
    batches = {size: drawn(example, size) for size in batch_sizes}
    expected: dict[str, dict[int, tuple[Tensor, ...]]] = {}
    entries: dict[str, dict[str, Any]] = {}
    dtypes = sorted({dtype for module in parts.values() for dtype in dtypes_of(module)})
    with partial_folder(folder) as partial:
        for name, part in parts.items():
            with frozen(part) as module:
                expected[name] = {size: answers(module, name, batch) for size, batch in batches.items()}
                first = expected[name][batch_sizes[0]]
                entries[name] = {"outputs": _output_names(first), "classes": _classes(first), "weights_sha256": ""}
                program = traced(module, name, example)
            entries[name]["weights_sha256"] = weights_hash(part)
            entries[name] |= written(program, name, formats, partial, entries[name]["outputs"])
        content = {
            "format": FORMAT,
            "schema": SCHEMA,
            "version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": {"shape": list(example.shape[1:]), "dtype": str(example.dtype).removeprefix("torch.")},
            "parts": entries,
            **given,
            "routing_sha256": None if given["routing"] is None else hash_entry(given["routing"]),
            "precision": {**(given["precision"] or {}), "weights": dtypes, "exported": "float32"},
        }
        write_json(partial / METADATA, content)
        files = [file for each in formats for file in _compared(partial, each, batches, expected, tolerance)]
        install(partial, folder)
    order = list(parts)
    files.sort(key=lambda file: order.index(file.part))
    return ExportReport(folder, tuple(files), tolerance, _notes(dtypes, files), content)


def _check_options(
    parts: Mapping[str, nn.Module],
    example: Tensor,
    formats: Sequence[str],
    overwrite: object,
    tolerance: float,
    batch_sizes: Sequence[int],
) -> None:
    if not parts or not formats or not batch_sizes:
        raise ConfigurationError(
            f"parts={list(parts)}, formats={list(formats)}, batch_sizes={list(batch_sizes)}: each needs one at least"
        )
    for name, part in parts.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(f"parts has the name {name!r}; give words such as 'edge', as they name files")
        if not isinstance(part, nn.Module):
            raise ConfigurationError(f"parts[{name!r}] is a {type(part).__name__}; it must be an nn.Module")
    for each in formats:
        check_choice("formats", each, FORMATS)
    check_flag("overwrite", overwrite)
    check_positive("tolerance", tolerance)
    for size in batch_sizes:
        check_count("batch_sizes", size)
    integers = example.dtype in (torch.int64, torch.int32, torch.uint8, torch.bool)
    if example.ndim < 1 or not len(example) or not (example.is_floating_point() or integers):
        raise ConfigurationError(
            f"example has shape {tuple(example.shape)} and dtype {example.dtype}; it must be a batch (N, ...) with "
            "N >= 1, of floating point, int64, int32, uint8 or bool"
        )


def _given(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    metadata = dict(metadata or {})
    for name in metadata:
        check_choice("metadata", name, GIVEN)
    routing = metadata.get("routing")
    metadata["routing"] = routing.to_dict() if isinstance(routing, CalibratedRouting) else routing
    if metadata["routing"] is not None:
        CalibratedRouting.from_dict(metadata["routing"])
    values = {name: metadata.get(name) for name in GIVEN}
    for name, value in values.items():
        if value is not None and not isinstance(value, Mapping):
            raise ConfigurationError(f"metadata[{name!r}] is a {type(value).__name__}; it must be a mapping")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"metadata[{name!r}]: {error}; give what strict JSON can hold") from error
    return values


def _output_names(outputs: tuple[Tensor, ...]) -> list[str]:
    if len(outputs) == 2 and outputs[1].ndim == 1:
        return ["logits", QUERY_SCORE]
    return ["logits", *(f"output_{place}" for place in range(1, len(outputs)))]


def _classes(outputs: tuple[Tensor, ...]) -> int | None:
    return outputs[0].shape[1] if outputs[0].ndim == 2 else None


def _compared(
    folder: Path,
    form: ExportFormat,
    batches: Mapping[int, Tensor],
    expected: Mapping[str, Mapping[int, tuple[Tensor, ...]]],
    tolerance: float,
) -> list[ExportedFile]:
    loaded = load_export(folder, form)
    files = []
    for name, part in loaded.parts.items():
        differences = {}
        for size, batch in batches.items():
            try:
                found = part(batch)
            except Exception as error:
                raise export_problem(name, f"{form} (it fails on a batch of {size})", error) from error
            differences[size] = difference(found if isinstance(found, tuple) else (found,), expected[name][size])
            if not differences[size] <= tolerance:
                raise ConfigurationError(
                    f"part {name!r} answers differently as {form}: by {differences[size]:.3g} on a batch of {size}, "
                    f"and tolerance={tolerance:g}; nothing was exported"
                )
        entry = loaded.metadata["parts"][name]
        stored = entry["formats"][form]
        size_on_disk = sum(file["bytes"] for file in stored)
        files.append(ExportedFile(name, form, stored[0]["name"], size_on_disk, differences, entry["operators"][form]))
    return files


def _notes(dtypes: Sequence[str], files: Sequence[ExportedFile]) -> tuple[str, ...]:
    notes = []
    if other := [dtype for dtype in dtypes if dtype != "float32"]:
        notes.append(f"weights of {', '.join(other)} were exported as float32")
    notes += [
        f"{file.file} uses {', '.join(file.uncommon)}, beyond the operators of plain convolutional networks; see "
        "whether your device's compiler has them"
        for file in files
        if file.uncommon
    ]
    return tuple(notes)
