"""The forms in which a model may be deployed, each made of a copy: layout, precision, compiler, integers, ONNX."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_efficient._graph_problems import without_warnings
from lightning_efficient._unwrapped import plain_copy
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.inputs import arguments, device_of
from lightning_efficient.profiling.saved_size import bytes_on_disk


@dataclass(frozen=True)
class Form:
    """A model that can be called.

    Attributes:
        call: From an example to the output.
        bytes_on_disk: Of the state dict, or of the file in which it is deployed.
        convert: Brings an example into the layout or precision of the form; not timed.
        note: What a reader of its figures must know.
    """

    call: Callable[[Any], Any]
    bytes_on_disk: int
    convert: Callable[[Any], Any] = lambda example: example
    note: str | None = None


Maker = Callable[[nn.Module, Any, int], Form]


def float_form(module: nn.Module, example: Any, threads: int) -> Form:
    """Return the module itself, run operator by operator."""
    return Form(partial(_run, module), bytes_on_disk(module))


def _channels_last(module: nn.Module, example: Any, threads: int) -> Form:
    if not any(tensor.ndim == 4 for tensor in _tensors(example)):
        raise ConfigurationError("no input has the four dimensions (N, C, H, W) of images")
    network: Any = _copied(module).to(memory_format=torch.channels_last)

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return Form(partial(_run, network), bytes_on_disk(network), partial(_each_tensor, laid_out))


def _bf16(module: nn.Module, example: Any, threads: int) -> Form:
    network = _copied(module).bfloat16()

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if tensor.is_floating_point() else tensor

    return Form(partial(_run, network), bytes_on_disk(network), partial(_each_tensor, rounded))


def _compile(module: nn.Module, example: Any, threads: int) -> Form:
    if device_of(module).type == "cpu":
        _require_compiler()
    network: Any = torch.compile(_copied(module))
    return Form(partial(_run, network), bytes_on_disk(module))


def _int8_weights(module: nn.Module, example: Any, threads: int) -> Form:
    _check_cpu(module)
    from lightning_efficient.nn.quantization.weight_only import quantize_weights

    network = quantize_weights(_copied(module), _one_tensor(example)).module
    return Form(partial(_run, network), bytes_on_disk(network), note="not compiled; weights become floats in each call")


def _int8_static(module: nn.Module, example: Any, threads: int) -> Form:
    _check_cpu(module)
    _require_compiler()
    from lightning_efficient.nn.quantization.compiled import compile_quantized
    from lightning_efficient.nn.quantization.static import quantize_static

    network = quantize_static(_copied(module), [_one_tensor(example)]).module
    note = "compiled; calibrated on the example alone, so its difference says nothing of accuracy"
    return Form(compile_quantized(network), bytes_on_disk(network), note=note)


def _onnx(module: nn.Module, example: Any, threads: int) -> Form:
    _check_cpu(module)
    from lightning_efficient.inference._export_graph import traced
    from lightning_efficient.inference._onnx import OnnxGraph, require_writer, write_onnx

    require_writer()
    program = traced(_copied(module), "model", _one_tensor(example))
    outputs = [f"output_{number}" for number in range(len(program.graph_signature.user_outputs))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with without_warnings():
            write_onnx(program, path, outputs)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        return Form(OnnxGraph(path, threads), size)


MAKERS: dict[str, Maker] = {
    "channels_last": _channels_last,
    "bf16": _bf16,
    "compile": _compile,
    "int8_weights": _int8_weights,
    "int8_static": _int8_static,
    "onnx": _onnx,
}


SLOW_TO_IMPORT = {
    "compile": ("torch._inductor.compile_fx",),
    "int8_static": ("torch._inductor.compile_fx", "torchao.quantization.pt2e.quantize_pt2e"),
    "onnx": ("torch.onnx._internal.exporter._core", "onnxscript", "onnxruntime"),
}
"""What a form imports. Nobody may interrupt an import: half a module stays behind."""


def import_what_is_slow(name: str) -> None:
    """Import what the making of a form needs, where it is installed."""
    with without_warnings():
        for module in SLOW_TO_IMPORT.get(name, ()):
            with suppress(ImportError):
                importlib.import_module(module)


def _run(module: nn.Module, example: Any) -> Any:
    args, kwargs = arguments(example)
    return module(*args, **kwargs)


def _copied(module: nn.Module) -> nn.Module:
    return plain_copy(module).eval()


def _one_tensor(example: Any) -> Tensor:
    args, kwargs = arguments(example)
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        raise ConfigurationError("its input is not a single tensor")
    return args[0]


def _check_cpu(module: nn.Module) -> None:
    if device_of(module).type != "cpu":
        raise ConfigurationError(f"it runs on the CPU, and the model is on {device_of(module)}")


def _require_compiler() -> None:
    asked = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([asked] if asked else ["g++", "clang++"])):
        raise ConfigurationError("no C++ compiler (g++, clang++ or CXX)")


def _each_tensor(function: Callable[[Tensor], Tensor], example: Any) -> Any:
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, example)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
