"""Graphs of networks for quantisation: traced for any batch size, searched for layers, switched between modes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Graph, GraphModule, Node

from lightning_efficient._graph_problems import quiet
from lightning_efficient._unwrapped import plain_copy
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization._norms import LAYER, reveal_norms, separate_norms
from lightning_efficient.nn.quantization._problems import graph_problem

_aten = torch.ops.aten
_LAYERS: dict[Any, str] = {
    _aten.linear.default: "linear",
    _aten.conv1d.default: "conv1d",
    _aten.conv2d.default: "conv2d",
    _aten.conv2d.padding: "conv2d with padding given as text",
    _aten.conv1d.padding: "conv1d",
    _aten.conv3d.default: "conv3d",
    _aten.conv_transpose1d.default: "conv_transpose1d",
    _aten.conv_transpose2d.input: "conv_transpose2d",
    _aten.conv_transpose3d.input: "conv_transpose3d",
}
_SMALLEST_STEP = 1e-12
_SOURCES = {
    _aten.linear.default: nn.Linear,
    _aten.conv2d.default: nn.Conv2d,
    _aten.conv2d.padding: nn.Conv2d,
}
_OTHERS = re.compile(r"aten\.(lstm|gru|rnn_tanh|rnn_relu|embedding|matmul|mm|bmm|addmm|einsum|bilinear)\b")


def copied(network: nn.Module, device: str | torch.device) -> nn.Module:
    """Return a copy without compilation and Trainer, in float32 on a device."""
    return plain_copy(network).to(device).float()


def check_example(example: object, option: str = "example") -> Tensor:
    """Return a batch ``(N, ...)`` or raise."""
    if not isinstance(example, Tensor) or example.ndim < 1 or not len(example):
        given = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ConfigurationError(f"{option} is {given}; it must be a tensor (N, ...) with N >= 1.")
    return example


def traced(network: nn.Module, example: Tensor) -> GraphModule:
    """Return a network's graph in its present mode, for batches of any size like the example.

    Raises:
        ConfigurationError: ``torch.export`` refuses it.
    """
    # two rows, as one would be taken for a constant
    zeros = torch.zeros((2, *example.shape[1:]), dtype=example.dtype, device=example.device)
    try:
        with quiet():
            program = torch.export.export(network, (zeros,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
            module = program.module()
    except Exception as error:  # torch raises a dozen classes here, some of them private
        raise graph_problem("torch.export", error) from error
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
        elif node.target in _SOURCES:
            # torchao goes by the class of the layer, and would miss subclasses such as timm's
            node.meta["source_fn_stack"] = [(node.name, _SOURCES[node.target])]
    module.recompile()
    return module


def layers_of(prepared: GraphModule) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of the layers that will compute in integers, and of the others with the reason.

    Args:
        prepared: A graph with observers.

    Raises:
        ConfigurationError: it has no layer that can be quantised.
    """
    quantized: dict[str, None] = {}
    skipped: dict[str, str] = {}
    for node in prepared.graph.nodes:
        if node.op == "call_function" and (other := _OTHERS.match(str(node.target))):
            weights = (each for each in node.all_input_nodes if each.op == "get_attr")
            skipped |= {_owner(each): f"{other[1]} has no 8-bit kernel here" for each in weights}
        if node.op != "call_function" or node.target not in _LAYERS:
            continue
        name = _layer_name(node.args[1])
        if _is_observer(prepared, node.args[0]) and _is_observer(prepared, node.args[1]):
            quantized[name] = None
        else:
            skipped[name] = f"{_LAYERS[node.target]} has no 8-bit kernel here"
    for name in skipped:
        quantized.pop(name, None)
    if not quantized:
        found = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ConfigurationError(f"the network has no layer that can be quantised ({found or 'no Conv2d, no Linear'}).")
    return tuple(quantized), skipped


def _layer_name(weight: Any) -> str:
    while isinstance(weight, Node) and weight.op != "get_attr" and weight.args:
        weight = weight.args[0]
    return _owner(weight)


def _owner(weight: Any) -> str:
    name = str(weight.meta.get(LAYER, weight.target) if isinstance(weight, Node) else weight)
    return name.rpartition(".")[0] or name


def _is_observer(module: GraphModule, node: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_module" and "activation_post_process" in str(node.target)


def without_unused(module: GraphModule) -> GraphModule:
    """Return a graph module with the tensors that its graph reads, and no others: conversion leaves float weights."""
    module.graph.eliminate_dead_code()
    smaller = GraphModule(module, module.graph)
    for parameter in smaller.parameters():
        parameter.requires_grad_(False)
    for node in smaller.graph.nodes:  # the whole history of the tracing is of no use, and large
        node.meta.pop("nn_module_stack", None)
        node.meta.pop("stack_trace", None)
    return smaller.eval()


def random_operators(graph: Graph) -> Iterator[Node]:
    """Yield the operators that draw random numbers, but for dropout, which follows the mode, and rates of zero."""
    for node in graph.nodes:
        if (
            not isinstance(node.target, torch._ops.OpOverload)
            or torch.Tag.nondeterministic_seeded not in node.target.tags
        ):
            continue
        if node.target in (_aten.dropout.default, _aten.dropout_.default):
            continue
        names = [argument.name for argument in node.target._schema.arguments]
        defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}
        given = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
        rate = next((given[name] for name in ("dropout_p", "dropout") if name in given), None)
        if rate != 0:
            yield node


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference of two outputs, relative to the largest number where that exceeds 1."""
    ours, theirs = (_tensors(each) for each in (found, expected))
    if len(ours) != len(theirs):
        return float("inf")
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape:
            return float("inf")
        largest = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        worst = max(worst, float((one - other).abs().max()) / largest if other.numel() else 0.0)
    return worst


def _tensors(outputs: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor)]


def converted(prepared: GraphModule) -> GraphModule:
    """Return a calibrated graph in integers, without the float weights that torchao leaves in it."""
    try:
        with quiet():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

            module = convert_pt2e(prepared)
            reveal_norms(module)
            return without_unused(module)
    except Exception as error:
        raise graph_problem("torchao", error) from error


def quantizer(*, aware: bool, reduce_range: bool) -> Any:
    """Return torchao's quantizer for x86 CPUs: per channel for weights, per tensor for activations.

    Weights differ from torchao's default. Integers are -127 to 127. Scales may be below 2^-12, which is too coarse for
    weights below 0.03. In training the range is that of the present weights, not of a moving average, and the scale is
    computed as at conversion: the fused module's differs from it by 0.4 %.
    """
    with quiet():
        from torchao.quantization.pt2e import (
            FakeQuantize,
            MovingAveragePerChannelMinMaxObserver,
            PerChannelMinMaxObserver,
        )
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        config = get_default_x86_inductor_quantization_config(is_qat=aware, reduce_range=reduce_range)
        options = {"observer": MovingAveragePerChannelMinMaxObserver, "averaging_constant": 1.0} if aware else {}
        observer = (FakeQuantize if aware else PerChannelMinMaxObserver).with_args(eps=_SMALLEST_STEP, **options)
        weight = replace(config.weight, quant_min=-127, observer_or_fake_quant_ctr=observer)

        class Quantizer(X86InductorQuantizer):
            def annotate(self, model: GraphModule) -> GraphModule:
                model = super().annotate(model)
                if aware:
                    separate_norms(model)
                return model

        return Quantizer().set_global(replace(config, weight=weight))
