"""Channels that can only be removed together, and which entries of which weights they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._precision import at_least_float32

Side = Literal["out", "in"]


class Entries(NamedTuple):
    """The parameter of a layer that channels are entries of: its full name, its shape, and the channels' dimension."""

    parameter: str
    shape: tuple[int, ...]
    dim: int


@dataclass(frozen=True)
class Member:
    """One side of one layer, as far as it belongs to a group of channels.

    Attributes:
        layer: Dotted name of the layer.
        side: ``"out"`` for what the layer writes, which includes normalisation and depthwise convolution; ``"in"`` for
            what it reads.
        indices: For each channel of the group, which channels of that side it is.
        entries: Parameters with a dimension for that side.
    """

    layer: str
    side: Side
    indices: tuple[tuple[int, ...], ...]
    entries: tuple[Entries, ...] = ()

    def removed(self, keep: Tensor) -> set[int]:
        """Return the channels of this side that go, for a boolean ``keep`` of shape ``(size,)``."""
        return {index for kept, own in zip(keep.tolist(), self.indices, strict=True) if not kept for index in own}

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return channels of the group and channels of the layer's side as two vectors, one pair an entry."""
        pairs = [(channel, index) for channel, own in enumerate(self.indices) for index in own]
        both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        return both[:, 0], both[:, 1]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers, each of which exists in all of these layers or in none.

    Attributes:
        name: The first layer that writes them; a number follows where one layer has several groups.
        size: How many channels there are.
        members: The sides of layers that they are.
    """

    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class ChannelGroups:
    """The groups of a network, and what cannot be pruned.

    Attributes:
        groups: In the order of the network's layers; no two have a channel of a layer's side in common.
        skipped: From the name of a layer, of whose output no channel can go, to the reason.
        input_shape: Shape of the input with which the network was traced.
    """

    groups: tuple[ChannelGroup, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    input_shape: tuple[int, ...] = ()


def channel_scores(group: ChannelGroup, scores: Mapping[str, Tensor]) -> Tensor:
    """Sum the saliency of all weights that one channel is made of.

    Args:
        group: Channels.
        scores: Saliency of each weight, of the parameter's shape, by the parameter's name, such as
            ``"conv1.weight"``. Parameters without a score count nothing.

    Returns:
        Saliency of each channel, shape ``(size,)``, in float32 or wider, on the device of the scores.

    Raises:
        ConfigurationError: no parameter of the group has a score.

    Example:
        >>> own = ((0,), (1,))
        >>> writes = Member("a", "out", own, (Entries("a.weight", (2, 2), 0),))
        >>> reads = Member("b", "in", own, (Entries("b.weight", (1, 2), 1),))
        >>> scores = {"a.weight": torch.eye(2), "b.weight": torch.tensor([[2.0, 3.0]])}
        >>> channel_scores(ChannelGroup("a", 2, (writes, reads)), scores)
        tensor([3., 4.])
    """
    total: Tensor | None = None
    for member in group.members:
        channels, indices = member.pairs()
        for name, _, dim in member.entries:
            if (score := scores.get(name)) is None:
                continue
            score = at_least_float32(score.detach()).movedim(dim, 0)
            of_index = score.flatten(1).sum(1) if score.ndim > 1 else score
            part = of_index.new_zeros(group.size)
            part.index_add_(0, channels.to(part.device), of_index[indices.to(part.device)])
            total = part if total is None else total + part.to(total.device)
    if total is None:
        raise ConfigurationError(f"scores has none for the weights of the channels of {group.name!r}.")
    return total


def group_masks(group: ChannelGroup, keep: Tensor) -> dict[str, Tensor]:
    """Return which weights stay where some channels of a group go: what writes, normalises and reads them.

    Args:
        group: Channels.
        keep: Boolean, shape ``(size,)``; False for a channel that goes.

    Returns:
        Boolean masks of the parameters' shapes, by their names, on the device of ``keep``; False where a weight
        belongs to a channel that goes. They may be expanded views: read them, do not write into them.

    Example:
        >>> writes = Member("a", "out", ((0,), (1,)), (Entries("a.weight", (2, 2), 0), Entries("a.bias", (2,), 0)))
        >>> group_masks(ChannelGroup("a", 2, (writes,)), torch.tensor([True, False]))["a.weight"].tolist()
        [[True, True], [False, False]]
    """
    check_keep(group, keep)
    masks: dict[str, Tensor] = {}
    for member in group.members:
        removed = torch.tensor(sorted(member.removed(keep)), dtype=torch.long, device=keep.device)
        for name, shape, dim in member.entries:
            along = torch.ones(shape[dim], dtype=torch.bool, device=keep.device)
            along[removed] = False
            mask = along.reshape([-1 if each == dim else 1 for each in range(len(shape))]).expand(shape)
            masks[name] = masks[name] & mask if name in masks else mask
    return masks


def parameters_per_channel(group: ChannelGroup, network: nn.Module) -> float:
    """Return how many parameters a network loses with one channel of a group, on average.

    Example:
        >>> writes = Member("0", "out", ((0,), (1,)), (Entries("0.weight", (2, 3), 0), Entries("0.bias", (2,), 0)))
        >>> parameters_per_channel(ChannelGroup("0", 2, (writes,)), nn.Sequential(nn.Linear(3, 2)))
        4.0
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    total = 0.0
    for member in group.members:
        count = sum(len(own) for own in member.indices)
        for name, _, dim in member.entries:
            if (parameter := parameters.get(name)) is not None:
                total += count * parameter.numel() / parameter.shape[dim]
    return total / group.size


def check_keep(group: ChannelGroup, keep: Tensor) -> None:
    """Raise unless ``keep`` is a boolean vector with one entry for each channel of a group."""
    if keep.dtype != torch.bool or keep.shape != (group.size,):
        raise ConfigurationError(
            f"keep of {group.name!r} has shape {tuple(keep.shape)} and {keep.dtype}; "
            f"give a boolean vector of {group.size} entries."
        )
