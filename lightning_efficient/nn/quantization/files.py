"""Quantised networks as files, and how large they are."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from lightning_efficient._files import replacing
from lightning_efficient._graph_archive import check_only_tensors
from lightning_efficient._graph_problems import quiet
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization._problems import graph_problem, require_torchao
from lightning_efficient.nn.quantization.result import Quantized

_ABOUT = "lightning_efficient_quantized.json"
_HISTORY = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "from_node", "custom")
_LONGEST = 200


def save_quantized(quantized: Quantized, file: str | Path) -> Path:
    """Write a quantised network as a ``.pt2`` file of ``torch.export``, for batches of any size.

    The file holds the integers and no floating-point copies of them. It is complete or not there: an interrupted call
    leaves the old file.

    Args:
        quantized: What a function of this package returned.
        file: Path that ends in ``.pt2``; folders are made.

    Raises:
        ConfigurationError: the name has another ending, the file cannot be written, or ``torch.export`` refuses.
    """
    path = Path(file)
    if path.suffix != ".pt2":
        raise ConfigurationError(f"file={str(file)!r} must end in .pt2.")
    program = _program(quantized)
    about = {
        "scheme": quantized.scheme,
        "quantized": list(quantized.quantized),
        "skipped": quantized.skipped,
        "shape": list(quantized.shape),
        "dtype": str(quantized.dtype).removeprefix("torch."),
    }
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={_ABOUT: json.dumps(about)})
    try:
        with replacing(path) as partial:
            partial.write_bytes(buffer.getvalue())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}).") from error
    return path


def load_quantized(file: str | Path) -> nn.Module:
    """Return the network that :func:`save_quantized` wrote, on the CPU and in evaluation mode.

    Files with pickled objects, which could run any code, are refused. A graph is still code: load only files from
    people you trust.

    Raises:
        ConfigurationError: there is no such file, it is damaged, or not ours.
        MissingExtraError: torchao is not installed.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigurationError(f"{path} is no file.")
    content = path.read_bytes()  # what is checked is what is loaded
    _check(path, content)
    require_torchao()  # its operators must be known
    try:
        with quiet():
            module = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # a damaged graph, or one of another torch version, fails in many ways
        raise _unfit(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    module.recompile()
    return _evaluating(module)


def size_on_disk(module: nn.Module, *, compressed: bool = False) -> int:
    """Return the bytes of a module's parameters and buffers as ``torch.save`` writes them.

    Args:
        module: Any; for a quantised one this leaves out the graph, which ``save_quantized`` writes too.
        compressed: Count the bytes after compression, as in a zip archive.

    Example:
        >>> module = nn.Linear(1000, 10)
        >>> 40_000 < size_on_disk(module) < 44_000
        True
    """
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return compressed_size(buffer.getvalue()) if compressed else buffer.tell()


def compressed_size(content: bytes) -> int:
    """Return how many bytes a content has once it is compressed as in a zip archive."""
    return len(zlib.compress(content, 6))


def _program(quantized: Quantized) -> ExportedProgram:
    zeros = torch.zeros((2, *quantized.shape), dtype=quantized.dtype)
    dims = ({0: Dim("batch", min=1)},)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(quantized.module, (zeros,), dynamic_shapes=dims, strict=False)
    except Exception as error:
        raise graph_problem("torch.export", error) from error
    for graph in (each for each in program.graph_module.modules() if isinstance(each, torch.fx.GraphModule)):
        for node in graph.graph.nodes:  # where each operator came from: more bytes than the weights of a small network
            for key in _HISTORY:
                node.meta.pop(key, None)
    return program


def _check(path: Path, content: bytes) -> None:
    """Raise unless a file is one of ours in which nothing but tensors is pickled."""
    try:
        names = check_only_tensors(io.BytesIO(content))
    except Exception as error:  # a damaged archive fails in many ways
        raise _unfit(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
    if not any(name.endswith(f"/extra/{_ABOUT}") for name in names):
        raise _unfit(path, "it was not written by save_quantized")


def _unfit(path: Path, reason: str) -> ConfigurationError:
    reason = " ".join(reason.split())[:_LONGEST]
    return ConfigurationError(f"{path} is no quantised network that torch {torch.__version__} can load: {reason}")


def _evaluating(module: Any) -> nn.Module:
    fresh = torch.fx.GraphModule(module, module.graph)
    for parameter in fresh.parameters():
        parameter.requires_grad_(False)
    return fresh.eval()
