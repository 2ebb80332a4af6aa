"""timm's factory with errors that help, and with the small residual networks for 32x32 images.

timm is imported where it is used: it loads all its models and wandb, and ``fit --help`` needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.nn.cifar_networks import register_cifar_networks
from lightning_efficient.nn.cifar_resnet import register_cifar_resnets


def create_backbone(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    options: Mapping[str, Any] | None = None,
    key: str = "backbone",
    named: str | None = None,
) -> nn.Module:
    """Create a timm model, or one of our ``cifar_resnet``, by name.

    Args:
        name: A name that ``timm.list_models`` knows, with or without a pretrained tag.
        pretrained: Whether to load timm's weights.
        num_classes: Outputs of the classifier; ``None`` keeps the model's own.
        in_chans: Channels of the input.
        options: Further keyword arguments of ``timm.create_model``.
        key: What the model is called in messages, as in ``model.<key>_kwargs``.
        named: The option that gave its name, where that is another word.

    Raises:
        ConfigurationError: the name is unknown, an option does not fit the model, or the weights are out of reach.
    """
    import timm

    if not is_timm_model(name):
        raise ConfigurationError(
            f"model.{named or key}: unknown timm model {name!r}.{did_you_mean(name, timm.list_models())}"
        )
    arguments = dict(options or {}) if num_classes is None else {**(options or {}), "num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigurationError(f"model.{key}_kwargs: {name} cannot be built with {arguments}: {error}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        flag = "pretrained" if key == "backbone" else f"{key}_pretrained"
        raise ConfigurationError(f"model.{flag}: the weights of {name} could not be loaded: {reason}") from error


def is_timm_model(name: str) -> bool:
    """Tell whether ``create_backbone`` knows a name."""
    import timm

    register_cifar_resnets()
    register_cifar_networks()
    return timm.is_model(name)


def data_config(backbone: nn.Module, in_chans: int) -> dict[str, Any]:
    """Return how a timm model wants its input, with one mean and deviation per channel of ``in_chans``."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(backbone)
    config["input_size"] = (in_chans, *config["input_size"][1:])
    for statistic in ("mean", "std"):
        values = config[statistic]
        if len(values) != in_chans:
            config[statistic] = (sum(values) / len(values),) * in_chans
    return config
