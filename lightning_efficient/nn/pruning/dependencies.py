"""Which channels of a network's layers depend on each other, as Torch-Pruning traces it."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from lightning_efficient.errors import ConfigurationError, require
from lightning_efficient.nn.pruning.exactness import one_line
from lightning_efficient.nn.pruning.layer_sizes import entries_of, is_depthwise, side_size
from lightning_efficient.nn.pruning.members import ChannelGroup, Member, Side

ENTANGLED = "none of them can go without the others"

_Place = tuple[str, Side]
_Reached = dict[_Place, dict[int, set[int]]]
"""Of each side of a layer, for each of its channels, the channels of the root that it depends on."""

_WRITERS = (nn.modules.conv._ConvNd, nn.Linear)
_PROJECTIONS = ("q", "k", "v", "qk", "kv", "qkv", "query", "key", "value")


@dataclass
class Coupled:
    """Channels that depend on each other, and why they cannot be pruned, if so."""

    groups: list[ChannelGroup]
    writers: list[str]
    reason: str | None


def trace(network: nn.Module, example: Tensor) -> Iterator[Coupled]:
    """Yield all channels that the convolutions and linear layers of a network write, coupled ones together.

    Args:
        network: A private copy, in evaluation mode, on the CPU and without hooks; gets gradients.
        example: A batch for it.

    Raises:
        ConfigurationError: Torch-Pruning cannot follow the network at all.
    """
    pruning = require("torch_pruning", "prune")
    index_type = pruning._helpers._HybridIndex
    calls: Counter[str] = Counter()
    names = {module: name for name, module in network.named_modules()}
    hooks = [
        module.register_forward_hook(lambda layer, inputs, output: calls.update([names[layer]])) for module in names
    ]
    graph = pruning.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                network.requires_grad_(True),
                example,
                forward_fn=lambda model, batch: model(batch),
                # outputs become nodes of their own, so that what writes them is known
                output_transform=lambda output: [
                    leaf * 1 for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad
                ],
                verbose=False,
            )
    except Exception as error:  # whatever a tracer may raise for a network that it was not made for
        message = f"network: Torch-Pruning cannot trace {type(network).__name__}: {one_line(error)}"
        raise ConfigurationError(message) from error
    finally:
        for hook in hooks:
            hook.remove()

    unfit, heads = _unfit_layers(network, calls), _head_projections(network)
    nodes = {name: graph.module2node[module] for module, name in names.items() if module in graph.module2node}
    known = {node: name for name, node in nodes.items()}
    covered: dict[str, set[int]] = defaultdict(set)
    for name, node in nodes.items():
        layer = node.module
        if not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            continue
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        start = [index_type(idx=each, root_idx=each) for each in range(width) if each not in covered[name]]
        if not start or is_depthwise(layer):
            continue
        visits = _visits(graph, node, start, known)
        if isinstance(visits, str):
            covered[name].update(each.idx for each in start)
            yield Coupled([], [name], visits)
            continue
        reached, reason = _translate(graph, visits, known, unfit, heads)
        for (layer_name, side), indices in reached.items():
            if side == "out":
                covered[layer_name].update(indices)
        covered[name].update(each.idx for each in start)
        writers = [each for each, side in reached if side == "out" and isinstance(nodes[each].module, _WRITERS)]
        groups = [] if reason else _split(name, [each.idx for each in start], reached, dict(network.named_modules()))
        yield Coupled(groups, writers or [name], reason)


def _visits(graph: Any, root: Any, start: list[Any], known: Mapping[Any, str]) -> dict[tuple[Any, Any], set[Any]] | str:
    """Return what depends on channels: for each node and pruning function, pairs of its channel and the root's.

    Torch-Pruning's own groups keep only one of several channels of the root that a channel depends on. A reason to give
    up comes instead where indices leave a layer, or all channels depend on all, as behind a convolution over channels.
    """
    seen: dict[tuple[Any, Any], set[Any]] = defaultdict(set)
    stack = [(root, graph.get_pruner_of_module(root.module).prune_out_channels, start)]
    while stack:
        node, handler, pairs = stack.pop()
        fresh = [pair for pair in pairs if pair not in seen[node, handler]]
        if not fresh:
            continue
        here = seen[node, handler]
        here.update(fresh)
        indices = {pair.idx for pair in here}
        if len(here) > 64 and len(here) > 8 * len(indices):
            return ENTANGLED
        if node in known:
            side: Side = "out" if handler == graph.get_pruner_of_module(node.module).prune_out_channels else "in"
            size = side_size(node.module, side)
            if size is not None and not 0 <= min(indices) <= max(indices) < size:
                return f"the tracer cannot follow them to {known[node]!r}"
        for dependency in node.dependencies:
            if dependency.trigger != handler:
                continue
            mapped = fresh
            for mapping in dependency.index_mapping:
                mapped = mapped if mapping is None else mapping(mapped)
            if mapped:
                stack.append((dependency.target, dependency.handler, mapped))
    return seen


def _translate(
    graph: Any,
    visits: Mapping[tuple[Any, Any], set[Any]],
    known: Mapping[Any, str],
    unfit: Mapping[str, str],
    heads: Mapping[str, str],
) -> tuple[_Reached, str | None]:
    """Return which channels of which layers were reached, and why they cannot be pruned, if so."""
    reached: _Reached = {}
    reasons: list[tuple[int, str]] = []
    for (node, handler), pairs in visits.items():
        kind, name = node.type.name, known.get(node)
        if kind == "PARAMETER":
            parameter = graph._param_to_name.get(node.module, "of no layer")
            reasons.append((3, f"they meet the parameter {parameter!r}, which is no layer's weight"))
        if kind == "OUTPUT":
            reasons.append((0, "they are an output of the network"))
        if name is None or not any(True for _ in node.module.parameters()):
            if kind in ("LN", "GN"):
                reasons.append((1, f"{type(node.module).__name__} normalises over them"))
            if name is None or side_size(node.module, "out") is None:
                continue
        side: Side = "out" if handler == graph.get_pruner_of_module(node.module).prune_out_channels else "in"
        reached.setdefault((name, side), {})
        for pair in pairs:
            reached[name, side].setdefault(pair.idx, set()).add(pair.root_idx)
        if name in unfit:
            reasons.append((1, unfit[name]))
        elif side == "out" and name in heads:
            reasons.append((2, f"{heads[name]!r} splits them into heads"))
        elif side_size(node.module, side) is None:
            if not (isinstance(node.module, nn.PReLU) and node.module.num_parameters == 1):
                reasons.append((1, f"{name!r} is a {type(node.module).__name__}, which cannot lose channels"))
            else:
                del reached[name, side]
        elif any(pair.root_idx is None for pair in pairs):
            reasons.append((4, f"the tracer cannot follow them to {name!r}"))
    return reached, min(reasons)[1] if reasons else None


def _unfit_layers(network: nn.Module, calls: Mapping[str, int]) -> dict[str, str]:
    """Return the layers that cannot lose channels whatever depends on them, with reasons."""
    owners: Counter[int] = Counter(id(each) for _, each in network.named_parameters(remove_duplicate=False))
    unfit: dict[str, str] = {}
    for name, module in network.named_modules():
        kind = type(module).__name__
        own = [each for each in module._parameters.values() if each is not None]
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            unfit[name] = f"{kind} {name!r} normalises over them"
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.Embedding):
            unfit[name] = f"{name!r} is a {kind}, which cannot lose channels"
        elif isinstance(module, nn.modules.conv._ConvNd) and side_size(module, "out") is None:
            unfit[name] = f"{name!r} is a grouped convolution"
        elif _computes_weights(module):
            unfit[name] = f"{kind} {name!r} computes its weights"
        elif any(owners[id(each)] > 1 for each in own):
            unfit[name] = f"{name!r} shares its weights"
        elif own and calls.get(name, 0) > 1:
            unfit[name] = f"{name!r} is used more than once"
    return unfit


def _computes_weights(layer: nn.Module) -> bool:
    if parametrize.is_parametrized(layer) or type(layer).__module__ == "timm.layers.std_conv":
        return True
    return isinstance(layer, _WRITERS) and "weight" not in layer._parameters


def _head_projections(network: nn.Module) -> dict[str, str]:
    """Return the layers that write queries, keys or values, with the attention that they are of."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(getattr(module, "num_heads", None), int):
            for child, layer in module.named_modules():
                part = child.partition(".")[0].removesuffix("_proj")
                if part in _PROJECTIONS and isinstance(layer, _WRITERS):
                    found[f"{name}.{child}".lstrip(".")] = name
    return found


def _split(name: str, roots: list[int], reached: _Reached, layers: Mapping[str, nn.Module]) -> list[ChannelGroup]:
    """Return channels as groups: root channels that meet in one become one, those that reach other layers a group."""
    parent = {root: root for root in roots}

    def find(root: int) -> int:
        while parent[root] != root:
            parent[root] = root = parent[parent[root]]
        return root

    for indices in reached.values():
        for together in indices.values():
            first, *others = map(find, together)
            for other in others:
                parent[find(other)] = find(first)
    channels: dict[int, dict[_Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, indices in reached.items():
        for index, together in sorted(indices.items()):
            channels[find(next(iter(together)))][place].append(index)
    kinds: dict[tuple[_Place, ...], list[dict[_Place, list[int]]]] = defaultdict(list)
    for _, places in sorted(channels.items()):
        kinds[tuple(place for place in reached if place in places)].append(places)
    groups = []
    for number, (places_of_kind, found) in enumerate(kinds.items()):
        members = tuple(
            Member(
                layer, side, tuple(tuple(each[layer, side]) for each in found), entries_of(layer, layers[layer], side)
            )
            for layer, side in places_of_kind
        )
        groups.append(ChannelGroup(name if number == 0 else f"{name}/{number}", len(found), members))
    return groups
