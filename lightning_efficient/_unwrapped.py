"""A network without what ``torch.compile`` and a Trainer put around it."""

from __future__ import annotations

import copy

from torch import nn


def uncompiled(network: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or the module itself."""
    return getattr(network, "_orig_mod", network)


def plain_copy(network: nn.Module) -> nn.Module:
    """Return a copy without compilation; the Trainer of a LightningModule is no part of it."""
    original = uncompiled(network)
    trainers = [vars(each).get("_trainer") for each in original.modules()]
    return copy.deepcopy(original, {id(trainer): None for trainer in trainers if trainer is not None})
