"""What is removed as a whole: single weights of a layer, or channels of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lightning_efficient.errors import ConfigurationError, require

LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


class Units(Protocol):
    """What pruning asks of them; names are relative to the network."""

    shapes: dict[str, tuple[int, ...]]
    """Shape of the mask of each."""
    aliases: dict[str, list[str]]
    """Names of layers under which a user may find each."""
    skipped: dict[str, str]
    """Layers that are left alone, and why."""
    weights: tuple[str, ...]
    """Parameters whose saliency is asked for."""

    def scores(self, saliencies: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a score for each entry of each mask."""

    def masks(self, keep: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Return which entries of which parameters stay, for parameters of these shapes."""


class WeightUnits:
    """Each weight of each convolution and linear layer by itself.

    Args:
        network: The network.

    Raises:
        ConfigurationError: it has no such layer.
    """

    def __init__(self, network: nn.Module) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.skipped: dict[str, str] = {}
        seen: set[int] = set()
        for name, layer in network.named_modules():
            weight = layer._parameters.get("weight")
            if not isinstance(layer, LAYERS):
                others = [key for key, each in layer.named_parameters(name, recurse=False) if each.ndim > 1]
                if not isinstance(layer, ParametrizationList):
                    self.skipped |= dict.fromkeys(others, "not the weight of a convolution or linear layer")
            elif weight is None:
                self.skipped[name] = "its weight is computed from other parameters"
            elif not weight.requires_grad:
                self.skipped[name] = "it is frozen"
            elif id(weight) in seen:
                self.skipped[name] = "it shares its weight with a layer before it"
            else:
                seen.add(id(weight))
                self.shapes[name] = tuple(weight.shape)
        _refuse_none(network, self.shapes, self.skipped)
        self.aliases = {name: [name] for name in self.shapes}
        self.weights = tuple(_weight_of(name) for name in self.shapes)

    def scores(self, saliencies: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the saliency of each weight."""
        return {name: saliencies[_weight_of(name)] for name in self.shapes}

    def masks(self, keep: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Return the masks by the names of parameters."""
        return {_weight_of(name): mask for name, mask in keep.items()}


class ChannelUnits:
    """Channels, each of which exists in several layers.

    A global sparsity compares channels of different groups by their saliency over the mean of their group.

    Args:
        network: The network.
        example: An input of it, with the batch in dimension 0.

    Raises:
        ConfigurationError: no channel can be removed.
        MissingExtraError: torch-pruning is not installed.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        require("torch_pruning", "prune")
        from lightning_efficient.nn.pruning.channel_groups import find_channel_groups

        self.groups = find_channel_groups(network, example)
        self.by_name = {group.name: group for group in self.groups.groups}
        self.shapes: dict[str, tuple[int, ...]] = {name: (group.size,) for name, group in self.by_name.items()}
        self.skipped = dict(self.groups.skipped)
        _refuse_none(network, self.shapes, self.skipped)
        self.aliases = {
            name: [name, *(member.layer for member in group.members if member.side == "out" and member.layer != name)]
            for name, group in self.by_name.items()
        }
        layers = {member.layer for group in self.groups.groups for member in group.members}
        names = dict(network.named_parameters(remove_duplicate=False))
        self.weights = tuple(name for name in map(_weight_of, sorted(layers)) if name in names and names[name].ndim > 1)

    def scores(self, saliencies: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the saliency of each channel, in units of the mean of what is left of its group."""
        from lightning_efficient.nn.pruning.members import channel_scores

        found = {}
        for name, group in self.by_name.items():
            scores = channel_scores(group, saliencies)
            left = scores[keep[name].to(scores.device)].mean()
            found[name] = scores / left.clamp(min=torch.finfo(scores.dtype).tiny)
        return found

    def masks(self, keep: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Return the masks by the names of parameters; those of several groups lie over each other."""
        from lightning_efficient.nn.pruning.members import group_masks

        found: dict[str, Tensor] = {}
        for name, mask in keep.items():
            for parameter, each in group_masks(self.by_name[name], mask).items():
                if parameter in shapes:
                    each = each.expand(shapes[parameter])
                    found[parameter] = found[parameter] & each if parameter in found else each.clone()
        return found


def said(skipped: Mapping[str, str], most: int = 4) -> str:
    """Return what is left alone in one line, by reason.

    Example:
        >>> said({"norm": "too small", "head": "it is frozen", "bias": "too small"})
        'norm, bias (too small); head (it is frozen)'
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        reasons.setdefault(reason, []).append(name or "the network itself")
    return "; ".join(f"{_listed(names, most)} ({reason})" for reason, names in reasons.items())


def pack(mask: Tensor) -> Tensor:
    """Return a boolean tensor as bits, uint8 of shape ``(ceil(n / 8),)`` on the CPU.

    Example:
        >>> pack(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    flat = mask.flatten().cpu()
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
    return (padded * torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])).sum(1).to(torch.uint8)


def unpack(bits: Tensor, shape: Iterable[int]) -> Tensor:
    """Return the boolean tensor of a shape that :func:`pack` made bits of.

    Example:
        >>> unpack(pack(torch.tensor([[True, False], [False, True]])), (2, 2))
        tensor([[ True, False],
                [False,  True]])
    """
    size = torch.Size(shape)
    flat = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return flat.flatten()[: size.numel()].bool().view(size)


def _weight_of(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _listed(names: list[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _refuse_none(network: nn.Module, found: Mapping[str, object], skipped: Mapping[str, str]) -> None:
    if not found:
        why = f": {said(skipped)}" if skipped else ""
        raise ConfigurationError(f"{type(network).__name__} has no layer that can be pruned{why}")
