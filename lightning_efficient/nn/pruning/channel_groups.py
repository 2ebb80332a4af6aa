"""Find the channels of a network that can be removed exactly."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.nn.pruning.dependencies import ENTANGLED, trace
from lightning_efficient.nn.pruning.exactness import Judge, check_runs
from lightning_efficient.nn.pruning.members import ChannelGroup, ChannelGroups


def find_channel_groups(network: nn.Module, example: Tensor, *, keep: Sequence[str] = ()) -> ChannelGroups:
    """Find which channels of a network can be removed, and which of them only together.

    Only groups whose removal changes nothing are offered: where all weights that write and normalise a channel are
    zero, the network without the channel computes the same. What would not be exact is skipped and named: channels
    that layer or group normalisation spans, the heads of attention, grouped convolutions, outputs of the network,
    weights that are shared or computed. Torch-Pruning traces what depends on what; then the promise is put to the test
    on a copy with random weights, and groups that break it are skipped too, so that a network that the tracer
    misunderstands has fewer groups, never wrong ones.

    Args:
        network: Not modified, on any device; traced on a copy on the CPU.
        example: A batch for it, shape ``(N, ...)``; only its shape counts where it is floating-point.
        keep: Names of layers, or of modules with layers, whose outputs keep all their channels.

    Returns:
        Groups of two channels or more, and the layers that keep theirs with the reason.

    Raises:
        ConfigurationError: ``keep`` names no module, the network does not run on the example, or it cannot be traced.
        MissingExtraError: Torch-Pruning is not installed.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> found = find_channel_groups(network, torch.zeros(1, 3, 8, 8))
        >>> [(group.name, group.size, [member.layer for member in group.members]) for group in found.groups]
        [('0', 8, ['0', '1', '3'])]
        >>> found.skipped
        {'3': 'they are an output of the network'}

    Reference:
        G. Fang, X. Ma, M. Song, M. B. Mi, X. Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023.
    """
    names = [name for name, _ in network.named_modules()]
    for name in keep:
        if name not in names:
            raise ConfigurationError(
                f"keep: {type(network).__name__} has no module {name!r}.{did_you_mean(name, names)}"
            )
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        subject = _plain_copy(network)
        batch = example.detach()[:2].cpu()
        batch = batch.float() if batch.is_floating_point() else batch
        check_runs(subject, batch)
        judge = Judge(subject, batch)
        offered: dict[str, ChannelGroup] = {}
        writers: dict[str, list[str]] = {}
        skipped: dict[str, str] = {}
        for coupled in trace(subject, batch):
            protected = next((name for name in keep for each in coupled.writers if _within(each, name)), None)
            reason = f"{protected!r} is to keep all its channels" if protected is not None else coupled.reason
            if reason is None and all(group.size < 2 for group in coupled.groups):
                reason = ENTANGLED
            if reason is not None:
                skipped.update(dict.fromkeys(coupled.writers, reason))
                continue
            for group in coupled.groups:
                if group.size > 1:
                    offered[group.name] = group
                    writers[group.name] = coupled.writers
        exact, refused = judge.exact(list(offered.values()))
    for name, reason in refused.items():
        skipped.update(dict.fromkeys(writers[name], reason))
    free = {member.layer for group in exact for member in group.members if member.side == "out"}
    order = {name: place for place, name in enumerate(names)}
    return ChannelGroups(
        tuple(sorted(exact, key=lambda group: order[group.members[0].layer])),
        {name: skipped[name] for name in sorted(skipped, key=order.__getitem__) if name not in free},
        tuple(example.shape),
    )


def _plain_copy(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in float32 and evaluation mode, without hooks."""
    subject = copy.deepcopy(network).cpu().float().eval()
    for module in subject.modules():
        for table in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            table.clear()
        module._backward_pre_hooks.clear()
    return subject


def _within(name: str, module: str) -> bool:
    return module == "" or name == module or name.startswith(f"{module}.")
