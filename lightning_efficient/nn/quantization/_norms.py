"""Batch normalisation around rounded weights: in training folded for the rounding and undone after it, later folded.

torchao does the same by matching patterns that it first traces, a hundred of them: a minute for any network. Its
division by a zero weight of a normalisation gives NaN, its switch to evaluation resets ``eps`` and ``momentum``, and it
folds into a weight that several layers share, or stops at one that is computed.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv1d.padding, _aten.conv2d.padding)
_ANNOTATION = "quantization_annotation"
_SMALLEST = 1e-6
LAYER = "lightning_efficient_weight"
"""Under which a folded weight's node keeps the name of the weight."""


def scaled_weight(weight: Tensor, gamma: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """Return a convolution's weight ``(C, ...)`` as it is once the normalisation is folded in."""
    return weight * _column(_safe(_factor(gamma, variance, eps)), weight.ndim)


def scaled_norm(
    x: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Undo the scale of :func:`scaled_weight` in the output ``(N, C, ...)``, add the bias, and normalise."""
    x = x / _row(_safe(_factor(gamma, variance, eps)), x.ndim)
    x = x if bias is None else x + _row(bias, x.ndim)
    return F.batch_norm(x, mean, variance, gamma, beta, training, momentum, eps)


def plain_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Tensor:
    """Normalise: the operator under a name that torchao does not look for."""
    return F.batch_norm(x, mean, variance, gamma, beta, training, momentum, eps)


def separate_norms(module: GraphModule) -> None:
    """Scale the weights of convolutions that are to be rounded and feed one normalisation; in place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not _aten.batch_norm.default:
            continue
        node.target = plain_norm
        conv, gamma, beta, mean, variance, training, momentum, eps, _ = node.args
        if not _is_folded(conv, node, variance):
            continue
        weight, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
        with graph.inserting_before(conv):
            scaled = graph.call_function(scaled_weight, (weight, gamma, variance, eps))
        scaled.meta = {key: value for key, value in weight.meta.items() if key != _ANNOTATION}
        conv.args = (conv.args[0], scaled, None, *conv.args[3:])
        specs = conv.meta[_ANNOTATION].input_qspec_map
        specs[scaled] = specs.pop(weight)
        node.target = scaled_norm
        node.args = (conv, bias, gamma, beta, mean, variance, training, momentum, eps)
    _in_order(graph)
    module.recompile()


def to_evaluation(graph: Graph) -> None:
    """Switch batch normalisation and dropout to evaluation, in place."""
    places = {scaled_norm: 6, plain_norm: 5, _aten.dropout.default: 2, _aten.dropout_.default: 2}
    for node in list(graph.nodes):
        # without running statistics those of the batch serve in evaluation too
        if node.target in places and not (node.target is plain_norm and node.args[3] is None):
            node.update_arg(places[node.target], False)
        elif node.target is _aten.add_.Tensor and str(node.args[0]).endswith("num_batches_tracked"):
            graph.erase_node(node)


def fold_norms(module: GraphModule) -> None:
    """Fold normalisations into the convolutions before them, in place.

    Args:
        module: A graph in evaluation mode: one that was traced, or that of :func:`separate_norms` with observers. Other
            normalisations are hidden from torchao, see :func:`reveal_norms`.
    """
    graph = module.graph
    for number, node in enumerate(list(graph.nodes)):
        if node.target is _aten.batch_norm.default:
            node.target = plain_norm
            conv, variance = node.args[0], node.args[4]
            if _feeds_only(conv, node) and conv.args[1].op == "get_attr" and isinstance(variance, Node):
                bias = conv.args[2] if len(conv.args) > 2 else None
                entries = _folded(module, number, conv, (conv.args[1], bias, *node.args[1:5]), node.args[7])
                conv.args = (conv.args[0], entries[0], entries[1], *conv.args[3:])
                node.replace_all_uses_with(conv)
                graph.erase_node(node)
        elif node.target is scaled_norm:
            conv = node.args[0]
            rounding: Any = conv.args[1]
            scaled = rounding.args[0]
            entries = _folded(module, number, rounding, (scaled.args[0], *node.args[1:6]), node.args[8])
            rounding.args = (entries[0],)
            conv.args = (conv.args[0], rounding, entries[1], *conv.args[3:])
            node.replace_all_uses_with(conv)
            graph.erase_node(node)
            graph.erase_node(scaled)
    _in_order(graph)
    module.recompile()


def reveal_norms(module: GraphModule) -> None:
    """Give the normalisations that remain their operator back, in place; ``torch.export`` can then write them."""
    for node in module.graph.nodes:
        if node.target is plain_norm:
            node.target = _aten.batch_norm.default
    module.recompile()


def _folded(module: GraphModule, number: int, place: Node, nodes: tuple[Any, ...], eps: Any) -> tuple[Node, Node]:
    """Add a folded weight and bias to a graph, before ``place``, from those of the convolution and the norm."""
    weight, bias, gamma, beta, mean, variance = (_tensor(module, each) for each in nodes)
    factor = _factor(gamma, variance, eps)
    shift = ((0 if bias is None else bias) - mean) * factor + (0 if beta is None else beta)
    entries = []
    for kind, tensor in {"weight": weight * _column(factor, weight.ndim), "bias": shift}.items():
        module.register_buffer(f"_folded_{kind}_{number}", tensor.detach())
        with module.graph.inserting_before(place):
            entry = module.graph.get_attr(f"_folded_{kind}_{number}")
        entry.meta = {"val": nodes[0].meta.get("val"), LAYER: str(nodes[0].target)}
        entries.append(entry)
    return entries[0], entries[1]


def _feeds_only(conv: Any, norm: Node) -> bool:
    return isinstance(conv, Node) and conv.target in _CONVOLUTIONS and list(conv.users) == [norm]


def _is_folded(conv: Any, norm: Node, variance: Any) -> bool:
    if not _feeds_only(conv, norm):
        return False
    annotation = conv.meta.get(_ANNOTATION)
    weight: Any = conv.args[1]
    rounded = annotation is not None and weight in annotation.input_qspec_map
    return rounded and weight.op == "get_attr" and isinstance(variance, Node)


def _in_order(graph: Graph) -> None:
    """Move the tensors to the front, as a rewritten operator may read one that is read later on."""
    tensors = [node for node in graph.nodes if node.op == "get_attr"]
    first = next(node for node in graph.nodes if node.op != "get_attr")
    for node in tensors:
        first.prepend(node)


def _factor(gamma: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    root = (variance + eps).sqrt()
    return 1 / root if gamma is None else gamma / root


def _safe(factor: Tensor) -> Tensor:
    """Keep a factor away from zero: which it is does not matter where it is undone, but for rounding."""
    return factor.masked_fill(factor.abs() < _SMALLEST, _SMALLEST)


def _column(values: Tensor, dims: int) -> Tensor:
    return values.reshape(-1, *[1] * (dims - 1))


def _row(values: Tensor, dims: int) -> Tensor:
    return values.reshape(1, -1, *[1] * (dims - 2))


def _tensor(module: GraphModule, node: Any) -> Any:
    return None if node is None else attrgetter(node.target)(module)
