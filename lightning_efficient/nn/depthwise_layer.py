"""A depthwise convolution with normalisation and activation: the control that stands in a Global layer's place."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import Tensor, nn

from lightning_efficient.functional._checks import check_count, check_flag
from lightning_efficient.nn._coefficients import activation_type, check_kernel_size
from lightning_efficient.nn._placed_layer import (
    checked_map,
    feature_info_of,
    placed_at,
    same_shape_or,
    surroundings,
)
from lightning_efficient.nn.timm_blocks import init_convolution_

torch.fx.wrap("checked_map")
torch.fx.wrap("same_shape_or")


class DepthwiseLayer(nn.Module):
    """Filter each channel by itself, normalise, activate.

    It has the place, the initialiser and the shortcuts of a :class:`~lightning_efficient.nn.global_layer.GlobalLayer`,
    and none of its equation: what a network gains over this one is what the equation gives.

    Args:
        channels: Of the features that ``init`` makes, and of the output.
        init: Makes features of the input; the identity where it is None.
        kernel_size: Odd.
        act: Activation: a type, or timm's name of it.
        residual: Whether the input is added to the output, after the activation; the features where shapes differ.
        bias: Whether the convolution has one.
        drop_path: Fraction of samples that skip the layer while training; needs ``residual`` or ``layer_scale``.
        layer_scale: Initial value of one learned factor per channel of what is added to the features. With 0 the layer
            starts as ``init`` alone. Not together with ``residual``.

    Shape:
        ``(N, C, H, W)``, any float dtype, to the shape of the features.

    Raises:
        ConfigurationError: an option cannot work; also from a call whose features have other channels.

    Example:
        >>> import torch
        >>> DepthwiseLayer(16, kernel_size=5)(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])

    Reference:
        Howard et al. MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications. arXiv 2017.
    """

    def __init__(
        self,
        channels: int,
        init: nn.Module | None = None,
        kernel_size: int = 3,
        act: type[nn.Module] | str = nn.ReLU,
        residual: bool = False,
        *,
        bias: bool = False,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_kernel_size(kernel_size)
        check_flag("residual", residual)
        check_flag("bias", bias)
        self.channels, self.residual = channels, residual
        self.init = nn.Identity() if init is None else init
        convolution = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)
        self.conv = init_convolution_(convolution)
        self.norm = nn.BatchNorm2d(channels)
        self.act = activation_type(act)()
        self.layer_scale, self.drop_path = surroundings(channels, residual, layer_scale, drop_path)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return filtered features, shaped as those of ``init``."""
        features = checked_map(self.init(inputs), self.channels, "DepthwiseLayer")
        outputs: Tensor = self.act(self.norm(self.conv(features)))
        if self.layer_scale is not None:
            return features + self.drop_path(self.layer_scale(outputs))
        return self.drop_path(outputs) + same_shape_or(inputs, features) if self.residual else outputs

    def feature_info(self, location: str) -> dict[str, Any]:
        """Tell timm where the features of this layer are, as its own blocks do."""
        return feature_info_of(self.init, self.channels, location)


def depthwise_layer_at(name: str, block: nn.Module, *, wrap: bool, **options: Any) -> DepthwiseLayer:
    """Make the depthwise layer that stands at or behind a block of a network.

    Args:
        name: Of the block, for errors.
        block: Of the network.
        wrap: Whether the block becomes the layer's initialiser; else the layer takes the block's output.
        **options: Of :class:`DepthwiseLayer`, and ``channels``, ``expansion``, ``init_kind``, ``kernel_size="block"``
            and ``act=None``, see :func:`~lightning_efficient.nn._placed_layer.placed_at`.

    Raises:
        ConfigurationError: the block's channels cannot be read off, or options exclude each other.
    """
    return placed_at(DepthwiseLayer, name, block, wrap=wrap, **options)
