"""Structured pruning: which channels belong together, and the smaller network without some of them."""

from lightning_efficient.nn.pruning.channel_groups import find_channel_groups
from lightning_efficient.nn.pruning.members import (
    ChannelGroup,
    ChannelGroups,
    Entries,
    Member,
    channel_scores,
    group_masks,
    parameters_per_channel,
)
from lightning_efficient.nn.pruning.pruned_file import is_pruned_file, load_pruned, read_report, save_pruned
from lightning_efficient.nn.pruning.shrink import remove_channels, resize_layers

__all__ = [
    "ChannelGroup",
    "ChannelGroups",
    "Entries",
    "Member",
    "channel_scores",
    "find_channel_groups",
    "group_masks",
    "is_pruned_file",
    "load_pruned",
    "parameters_per_channel",
    "read_report",
    "remove_channels",
    "resize_layers",
    "save_pruned",
]
