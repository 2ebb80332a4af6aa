"""A pruned network in a module: taken from its file, kept in checkpoints by the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.pruning.pruned_file import is_pruned_file, load_pruned
from lightning_efficient.nn.pruning.shrink import resize_layers
from lightning_efficient.nn.pruning.width_notes import take_notes, write_notes

_KEPT = "pruned"


def take_pruned(network: nn.Module, file: str | None) -> bool:
    """Make a network that of a file of ``GradualPruning``; tell whether the file is one.

    Raises:
        ConfigurationError: it is of another network; names ``model.backbone_checkpoint``.
    """
    if file is None or not is_pruned_file(file):
        return False
    try:
        load_pruned(file, network)
    except ConfigurationError as error:
        raise ConfigurationError(f"model.backbone_checkpoint: {str(error).removeprefix('file: ')}") from error
    return True


def keep_notes(checkpoint: dict[str, Any], network: nn.Module) -> None:
    """Mark a checkpoint as that of a pruned network, with what the network notes of its widths."""
    checkpoint[_KEPT] = take_notes(network)


def has_other_widths(checkpoint: Mapping[str, Any], network: nn.Module, name: str) -> bool:
    """Tell whether a checkpoint is of a pruned network whose weights have other shapes than those of this one."""
    if not isinstance(checkpoint.get(_KEPT), Mapping):
        return False
    theirs = _weights(checkpoint, name)
    ours = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    return any(key in theirs and theirs[key].shape != value.shape for key, value in ours.items())


def follow_checkpoint(checkpoint: Mapping[str, Any], network: nn.Module, name: str, pruned: bool) -> bool:
    """Make a network as small as that of a checkpoint; tell whether the checkpoint is of a pruned one.

    Args:
        checkpoint: Of the module.
        network: Part of the module, resized in place; larger than that of the checkpoint, or as large.
        name: Of that part.
        pruned: Whether it is a pruned network already.

    Raises:
        ConfigurationError: it is pruned and that of the checkpoint is not, or a layer cannot have the size there.
    """
    notes = checkpoint.get(_KEPT)
    if not isinstance(notes, Mapping):
        if pruned:
            raise ConfigurationError(
                "model.backbone_checkpoint is of a pruned network and the checkpoint of a whole one; leave the former "
                "out"
            )
        return False
    try:
        resize_layers(network, _weights(checkpoint, name))
    except ConfigurationError as error:
        reason = str(error).removeprefix("state: ")
        raise ConfigurationError(f"model.{name} is not what the checkpoint's was pruned from: {reason}") from error
    write_notes(network, notes)
    return True


def _weights(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    start = f"{name}."
    found = checkpoint["state_dict"].items()
    return {key.removeprefix(start): value for key, value in found if key.startswith(start)}
