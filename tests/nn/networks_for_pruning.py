"""Small networks, what is in them, and channels of zeros."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from lightning_efficient.nn.pruning.members import ChannelGroups

SIZE = 32


def timm_network(name: str, **options: object) -> nn.Module:
    """A new network of which no bias and no statistic is zero, in evaluation mode."""
    network = timm.create_model(name, num_classes=5, **options).eval()
    unsettle(network)
    return network


def unsettle(network: nn.Module) -> None:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            if name.endswith(("bias", "running_mean")):
                value.copy_(torch.randn(value.shape, generator=random) * 0.1)
            elif name.endswith("gamma"):
                value.fill_(0.7)


def images(channels: int = 3, size: int = SIZE) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(2))


def random_keep(groups: ChannelGroups, share: float = 0.5, seed: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    keep = {group.name: torch.rand(group.size, generator=random) < share for group in groups.groups}
    for vector in keep.values():
        vector[0], vector[-1] = True, False
    return keep


def write_zeros(network: nn.Module, groups: ChannelGroups, keep: dict[str, Tensor]) -> None:
    """Zero what writes and normalises the channels that go; what reads them keeps its weights."""
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for group in groups.groups:
            for member in group.members:
                if member.side == "out":
                    gone = sorted(member.removed(keep[group.name]))
                    for name, _, dim in member.entries:
                        parameters[name].index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0.0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
