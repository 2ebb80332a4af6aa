"""A network without some of its channels: smaller weights, fewer operations, the same class."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.nn.pruning.layer_sizes import cut, fit, side_size
from lightning_efficient.nn.pruning.members import ChannelGroup, ChannelGroups, Side, check_keep
from lightning_efficient.nn.pruning.width_notes import first_layers, follow_widths, widths
from lightning_efficient.nn.views import find_classifiers


def remove_channels(network: nn.Module, groups: ChannelGroups, keep: Mapping[str, Tensor]) -> nn.Module:
    """Copy a network without some of its channels.

    Where all weights of a channel are zero, what its layers write and what normalises it, the copy computes what the
    network computes. It is an ordinary module of the same class with ordinary parameters: to train, to save, to export.
    What timm notes of widths, such as ``num_features`` and ``feature_info``, follows.

    Args:
        network: Not modified.
        groups: What :func:`find_channel_groups` found in it.
        keep: Boolean vectors, shape ``(size,)``, by names of groups; other groups keep all channels.

    Returns:
        The smaller copy: dtypes, devices, memory formats, ``requires_grad`` and training mode are those of the network.

    Raises:
        ConfigurationError: no such group, a vector of another shape or dtype, or a layer would be left without
            channels.

    Example:
        >>> import torch
        >>> from lightning_efficient.nn.pruning.channel_groups import find_channel_groups
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> groups = find_channel_groups(network, torch.zeros(1, 2))
        >>> remove_channels(network, groups, {"0": torch.tensor([True, False, True, True])})
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=3, bias=True)
        )
    """
    known = {group.name: group for group in groups.groups}
    for name in keep:
        if name not in known:
            raise ConfigurationError(
                f"keep: {name!r} is no group of channels of the network.{did_you_mean(name, known)}"
            )
    smaller = copy.deepcopy(network)
    if cut_channels(smaller, [(known[name], vector) for name, vector in keep.items()]):
        follow_widths(smaller, widths(network, groups.input_shape), groups.input_shape)
    return smaller


def cut_channels(network: nn.Module, keep: Iterable[tuple[ChannelGroup, Tensor]]) -> bool:
    """Remove channels in place, and leave notes of widths as they are; tell whether there was something to remove."""
    removed: dict[tuple[str, Side], set[int]] = defaultdict(set)
    for group, vector in keep:
        check_keep(group, vector)
        for member in group.members:
            removed[member.layer, member.side] |= member.removed(vector)
    layers = dict(network.named_modules())
    kept = {}
    for (name, side), gone in removed.items():
        size = side_size(layers[name], side)
        if size is None or size <= max(gone, default=0):
            raise ConfigurationError(f"groups: {name!r} does not have the channels that it had when they were found.")
        if not (left := [index for index in range(size) if index not in gone]):
            raise ConfigurationError(f"keep: {name!r} would be left without channels; keep at least one of {size}.")
        if gone:
            kept[name, side] = left
    for (name, side), left in kept.items():
        cut(layers[name], side, left)
    return bool(kept)


def resize_layers(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make the layers of a freshly created network, in place, as small as those in the state dict of a pruned one.

    Values are to be loaded afterwards. Needs no tracing: convolutions, linear layers, normalisation over a batch and
    PReLU take the shapes of the state dict, and all else must have its shapes already.

    Args:
        network: Created like the one that was pruned.
        state: State dict of that one after pruning.

    Raises:
        ConfigurationError: a weight is missing, or a layer cannot have the shape; the network is unchanged.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> resize_layers(network, nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)).state_dict())
        >>> network[0].out_features, network[2].in_features
        (5, 5)
    """
    layers = dict(network.named_modules(remove_duplicate=False))
    own = network.state_dict(keep_vars=True)
    shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, value in own.items():
        if not isinstance(value, Tensor):
            continue
        if not isinstance(there := state.get(name), Tensor):
            raise ConfigurationError(f"state has no {name!r}, which {type(network).__name__} needs.")
        layer, _, last = name.rpartition(".")
        if layer in layers:
            shapes[layer][last] = tuple(there.shape)
    if all(tuple(own[name].shape) == tuple(state[name].shape) for name in own if isinstance(own[name], Tensor)):
        return
    before = widths(network)
    # of other networks the last linear layer need not be what writes the output
    outputs = find_classifiers(network) if callable(getattr(network, "get_classifier", None)) else {}
    inputs = [name for name in first_layers(network) if f"{name}.weight" in own]
    replaced: dict[str, nn.Module] = {}
    try:
        for name, wanted in shapes.items():
            replaced[name] = _memory(layers[name])
            if name in outputs and wanted.get("weight", (0,))[0] != len(own[f"{name}.weight".lstrip(".")]):
                _refuse(name, layers[name], wanted)
            if name in inputs and wanted.get("weight", (0, 0))[1] != own[f"{name}.weight"].shape[1]:
                _refuse(name, layers[name], wanted)
            if not fit(layers[name], wanted):
                _refuse(name, layers[name], wanted)
    except ConfigurationError:
        for name, memory in replaced.items():
            layers[name].__dict__.update(memory.__dict__)
        raise
    follow_widths(network, before)


def _memory(layer: nn.Module) -> nn.Module:
    """Return a shallow copy of a layer, with its own tables of parameters and buffers."""
    memory = copy.copy(layer)
    memory._parameters, memory._buffers = dict(layer._parameters), dict(layer._buffers)
    return memory


def _refuse(name: str, layer: nn.Module, wanted: Mapping[str, tuple[int, ...]]) -> None:
    own = {key: tuple(value.shape) for key, value in layer.state_dict().items() if isinstance(value, Tensor)}
    last = next(key for key, shape in wanted.items() if own.get(key) != shape)
    weight = f"{name}.{last}".lstrip(".")
    raise ConfigurationError(
        f"state: {weight!r} has shape {wanted[last]} there and {own[last]} in the network, and its "
        f"{type(layer).__name__} cannot be made smaller like that."
    )
