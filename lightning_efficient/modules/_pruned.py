"""A pruned network in a module: taken from its file, kept in checkpoints by the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

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
        raise ConfigurationError(f"model.backbone_checkpoint: {error}") from error
    return True


def keep_notes(checkpoint: dict[str, Any], network: nn.Module) -> None:
    """Mark a checkpoint as that of a pruned network, with what the network notes of its widths."""
    checkpoint[_KEPT] = take_notes(network)


def follow_checkpoint(checkpoint: Mapping[str, Any], network: nn.Module, name: str, pruned: bool) -> bool:
    """Make a network as small as that of a checkpoint; tell whether the checkpoint is of a pruned one.

    Args:
        checkpoint: Of the module.
        network: Part of the module, resized in place.
        name: Of that part.
        pruned: Whether it is a pruned network already.

    Raises:
        ConfigurationError: it is pruned and that of the checkpoint is not, or a layer cannot have the size that is there.
    """
    notes = checkpoint.get(_KEPT)
    if not isinstance(notes, Mapping):
        if pruned:
            raise ConfigurationError(
                "model.backbone_checkpoint is a pruned network, and the checkpoint has a whole one; leave it out"
            )
        return False
    start = f"{name}."
    state = {key.removeprefix(start): value for key, value in checkpoint["state_dict"].items() if key.startswith(start)}
    resize_layers(network, state)
    write_notes(network, notes)
    return True
