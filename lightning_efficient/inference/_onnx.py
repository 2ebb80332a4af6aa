"""ONNX, written by torch's exporter and run by ONNX Runtime; both are imported where they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lightning_efficient.errors import ConfigurationError, require

EXTRA = "onnx"
_LARGEST_IN_ONE = 1_500_000_000
"""Bytes of weights up to which they are part of the file, which cannot exceed 2 GiB."""


def require_writer() -> None:
    """Raise ``MissingExtraError`` unless ONNX can be written and run."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, EXTRA)


def write_onnx(program: ExportedProgram, path: Path, outputs: Sequence[str]) -> None:
    """Translate an exported program; where its weights are large, they go to ``<path>.data`` beside the file.

    Args:
        program: With a dynamic first dimension; its input becomes ``input``.
        path: File.
        outputs: Names of the outputs.
    """
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    torch.onnx.export(
        program,
        (),
        path,
        dynamo=True,
        verbose=False,
        input_names=["input"],
        output_names=list(outputs),
        external_data=weights > _LARGEST_IN_ONE,
    )


def operators_of(path: Path) -> dict[str, int]:
    """Return how often each operator occurs in a file, by name; those of other domains as ``domain::name``."""
    import onnx

    found: Counter[str] = Counter()
    graphs = [onnx.load(path, load_external_data=False).graph]
    while graphs:
        for node in graphs.pop().node:
            found[f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type] += 1
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            graphs += [graph for attribute in node.attribute for graph in attribute.graphs]
    return dict(sorted(found.items()))


class OnnxGraph:
    """A file as a callable from a tensor to a tuple of tensors, by ONNX Runtime on the CPU.

    Args:
        path: File.
        threads: Threads within an operator; by default one per core.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ConfigurationError: it cannot load the file.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        runtime: Any = require("onnxruntime", EXTRA)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a class of its own for each reason
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigurationError(f"ONNX Runtime cannot load {path}: {line}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for a batch, on the device of the batch."""
        array = inputs.detach().cpu().contiguous().numpy()
        found = self._session.run(None, {self._input: array})
        return tuple(torch.from_numpy(output).to(inputs.device) for output in found)
