"""From a network to files: traced once for any batch size, without the weights that its graph does not use."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule

from lightning_efficient._graph_problems import quiet, reason_of
from lightning_efficient._unwrapped import plain_copy, uncompiled
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference._onnx import operators_of, write_onnx
from lightning_efficient.inference.exported import ExportFormat, sha256_of
from lightning_efficient.nn.checkpoints import hash_weights

SUFFIXES = {"torch": "pt2", "onnx": "onnx"}


@contextmanager
def frozen(part: nn.Module) -> Iterator[nn.Module]:
    """Lend a network in evaluation mode, float32 and on the CPU; the given one is as before afterwards."""
    module = uncompiled(part)
    modes = {each: each.training for each in module.modules()}
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.device.type != "cpu" for tensor in tensors) or set(dtypes_of(module)) - {"float32"}:
        module = plain_copy(module).cpu().float()
    try:
        yield module.eval()
    finally:
        for each, mode in modes.items():
            each.training = mode


def dtypes_of(module: nn.Module) -> list[str]:
    """Return the floating-point dtypes of a module's parameters and buffers, by name."""
    tensors = [*module.parameters(), *module.buffers()]
    return sorted({str(each.dtype).removeprefix("torch.") for each in tensors if each.is_floating_point()})


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of a module's state dict, see ``hash_weights``."""
    digest = hashlib.sha256()
    hash_weights(digest, uncompiled(module).state_dict())
    return digest.hexdigest()


def traced(module: nn.Module, name: str, example: Tensor) -> ExportedProgram:
    """Return a network's graph for batches of any size like the example.

    Args:
        module: In evaluation mode.
        name: Of the part, for the message.
        example: A batch, of which only shape and dtype count.

    Raises:
        ConfigurationError: ``torch.export`` refuses it.
    """
    # zeros, as the file holds the inputs of the trace; two rows, as one would be taken for a constant
    zeros = torch.zeros((2, *example.shape[1:]), dtype=example.dtype)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, (zeros,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
    except Exception as error:  # torch raises a dozen classes here, some of them private
        raise export_problem(name, "torch.export", error) from error
    _drop_unused(program)
    return program


def _drop_unused(program: ExportedProgram) -> None:
    """Take out weights that no operator reads, such as those of a teacher; the exporter keeps them."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in list(program.graph.nodes):
        spec = specs.get(node.name) if node.op == "placeholder" and not node.users else None
        if spec is not None and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            program.graph.erase_node(node)
            program.graph_signature.input_specs.remove(spec)
            program.state_dict.pop(spec.target, None)
    program.graph_module.recompile()


def written(
    program: ExportedProgram, name: str, formats: Sequence[ExportFormat], folder: Path, outputs: list[str]
) -> dict[str, Any]:
    """Write a graph in each format, and return its files with their hashes, and its operators.

    Raises:
        ConfigurationError: an exporter refuses it, or a file cannot be written.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    operators: dict[str, dict[str, int]] = {}
    for each in formats:
        path = folder / f"{name}.{SUFFIXES[each]}"
        try:
            with quiet():
                _write_program(program, path) if each == "torch" else write_onnx(program, path, outputs)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written ({error.strerror})") from error
        except Exception as error:
            raise export_problem(name, "ONNX" if each == "onnx" else "a file", error) from error
        found = [path, *sorted(folder.glob(f"{path.name}.*"))]
        files[each] = [{"name": it.name, "sha256": sha256_of(it), "bytes": it.stat().st_size} for it in found]
        operators[each] = operators_of(path) if each == "onnx" else _torch_operators(program)
    return {"formats": files, "operators": operators}


def _write_program(program: ExportedProgram, path: Path) -> None:
    # by way of memory: on a full disk torch hides what went wrong, and the file that it cannot close ends the process
    whole = io.BytesIO()
    torch.export.save(program, whole)
    path.write_bytes(whole.getbuffer())


def _torch_operators(program: ExportedProgram) -> dict[str, int]:
    graphs = [each.graph for each in program.graph_module.modules() if isinstance(each, GraphModule)]
    targets = [node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)]
    return dict(sorted(Counter(target.name() for target in targets).items()))


def export_problem(part: str, target: str, error: BaseException) -> ConfigurationError:
    """Return the error of a part that an exporter refuses, with the operator or the line of code where it says so.

    Args:
        part: Name of the part.
        target: What it was to become, such as ``ONNX``.
        error: What the exporter raised.

    Example:
        >>> print(export_problem("edge", "ONNX", RuntimeError("No ONNX function found for aten.eigh.default")))
        part 'edge' cannot be exported to ONNX: aten.eigh: No ONNX function found for aten.eigh.default
    """
    return ConfigurationError(f"part {part!r} cannot be exported to {target}: {reason_of(error, name_operator=True)}")
