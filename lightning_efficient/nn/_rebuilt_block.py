"""An inverted residual block of timm with another expansion."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_positive
from lightning_efficient.nn.timm_blocks import facts_of, init_convolution_


def with_expansion(block: nn.Module, expansion: float, name: str = "block") -> nn.Module:
    """Return an InvertedResidual with another ratio of expansion and fresh weights.

    The number of channels inside is rounded as timm does; kernel, stride, padding, activation and normalisation stay,
    and so do the channels inside squeeze and excitation.

    Args:
        block: ``InvertedResidual`` of timm with a depthwise convolution; left as it is.
        expansion: Channels inside per channel of the input.
        name: Of the block, for errors.

    Raises:
        ConfigurationError: another kind of block.
    """
    from timm.layers import make_divisible

    check_positive("expansion", expansion)
    facts = facts_of(block)
    if facts is None or facts.kind != "InvertedResidual":
        raise ConfigurationError(
            f"expansion={expansion!r} takes an InvertedResidual; {name} is {type(block).__name__}."
        )
    made: Any = copy.deepcopy(block)
    width: int = make_divisible(facts.in_channels * expansion)
    for child, (inputs, outputs, groups) in {
        "conv_pw": (None, width, None),
        "conv_dw": (width, width, width),
        "conv_pwl": (width, None, None),
        "se.conv_reduce": (width, None, None),
        "se.conv_expand": (None, width, None),
    }.items():
        convolution = _descend(made, child)
        if isinstance(convolution, nn.Conv2d):
            _resize(convolution, inputs, outputs, groups)
    for each in (made.bn1, made.bn2):
        _resize_norm(each, width)
    for each in made.modules():
        if isinstance(each, nn.Conv2d):
            init_convolution_(each)
        elif each is not made and hasattr(each, "reset_parameters"):
            each.reset_parameters()
    return made


def _descend(module: nn.Module, path: str) -> nn.Module | None:
    for part in path.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return module


def _resize(convolution: nn.Conv2d, inputs: int | None, outputs: int | None, groups: int | None) -> None:
    convolution.in_channels = inputs or convolution.in_channels
    convolution.out_channels = outputs or convolution.out_channels
    convolution.groups = groups or convolution.groups
    shape = (convolution.out_channels, convolution.in_channels // convolution.groups, *convolution.kernel_size)
    convolution.weight = nn.Parameter(convolution.weight.new_empty(shape))
    if convolution.bias is not None:
        convolution.bias = nn.Parameter(convolution.bias.new_empty(convolution.out_channels))


def _resize_norm(norm: Any, width: int) -> None:
    if isinstance(norm, nn.GroupNorm):
        norm.num_channels, norm.num_groups = width, math.gcd(norm.num_groups, width)
    else:
        norm.num_features = width
    for name, value in [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]:
        if value.dim() == 1:
            fresh = torch.full_like(value[:1], float(name in ("weight", "running_var"))).repeat(width)
            setattr(norm, name, nn.Parameter(fresh) if isinstance(value, nn.Parameter) else fresh)
