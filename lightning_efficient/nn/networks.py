"""A network from what a user names: a timm model or a module, with weights of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count
from lightning_efficient.nn.backbones import create_backbone
from lightning_efficient.nn.checkpoints import load_weights


def as_network(
    given: str | nn.Module,
    key: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = 3,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    name: str | None = None,
) -> nn.Module:
    """Return a module as it is, or the timm model of that name; then load its weights.

    Args:
        given: A name that ``create_backbone`` knows, or a module.
        key: What the network is called in messages, such as ``teacher``.
        num_classes: Outputs of a model made by name.
        in_chans: Channels of the input of a model made by name; 3 when not given.
        pretrained: Whether a model made by name starts from timm's weights.
        options: Further keyword arguments for a model made by name.
        checkpoint: File with weights; see ``load_weights``.
        name: The option that gave it, where that is another word than ``key``.

    Raises:
        ConfigurationError: an unknown name, options that need a name, weights that do not fit, or a number below 1.
    """
    for option, number in (("num_classes", num_classes), ("in_chans", in_chans)):
        if number is not None:
            check_count(f"model.{option}", number)
    if isinstance(given, str):
        network = create_backbone(given, pretrained, num_classes, in_chans or 3, options, key, name)
    else:
        if pretrained or options:
            raise ConfigurationError(
                f"model.{name or key} is a {type(given).__name__}; {key}_pretrained and {key}_kwargs go with the name "
                "of a timm model"
            )
        network = given
    if checkpoint is not None:
        load_weights(network, checkpoint, option=f"model.{key}_checkpoint")
    return network
