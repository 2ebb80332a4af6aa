"""Maps of coefficients that a layer computes from its own input: what a GlobalLayer lets its features flow by."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_number, check_positive, is_integer
from lightning_efficient.functional._precision import at_least_float32

CoefficientKind: TypeAlias = Literal["depthwise", "identity", "conv", "pointwise", "basic_block", "bottleneck"]
"""What looks at the features: a convolution per channel, nothing, a full or a 1x1 convolution, or a residual block."""

COEFFICIENT_KINDS: tuple[str, ...] = get_args(CoefficientKind)


class Coefficient(nn.Module):
    """A convolution and its normalisation, before any activation.

    Args:
        channels: Of input and output.
        kind: What the convolution is.
        kernel_size: Odd; of the kinds "depthwise" and "conv".
        eps: Of the normalisation.
        act: Activation inside the residual blocks; takes no arguments.
        bias: Whether the convolution has one; residual blocks have none.
    """

    def __init__(
        self, channels: int, kind: str, kernel_size: int, eps: float, act: type[nn.Module], *, bias: bool
    ) -> None:
        super().__init__()
        self.conv = new_map(channels, kind, kernel_size, act, bias=bias)
        self.norm = nn.BatchNorm2d(channels, eps)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised responses, shaped as ``inputs``."""
        normalised: Tensor = self.norm(self.conv(inputs))
        return normalised


def new_map(channels: int, kind: str, kernel_size: int, act: type[nn.Module], *, bias: bool = False) -> nn.Module:
    """Return a module of a kind in :data:`COEFFICIENT_KINDS` that keeps channels and resolution.

    Weights are normal with variance 2 over ``kernel_size ** 2 * channels``, groups ignored as in the released code: a
    depthwise convolution starts small.

    Raises:
        ConfigurationError: "bottleneck" with channels that 4 does not divide.
    """
    padding = kernel_size // 2
    if kind == "identity":
        return nn.Identity()
    if kind in ("basic_block", "bottleneck"):
        made = _residual_block(channels, kind, act)
    elif kind == "pointwise":
        made = nn.Conv2d(channels, channels, 1, bias=bias)
    else:
        groups = channels if kind == "depthwise" else 1
        made = nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=groups, bias=bias)
    for each in made.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.normal_(each.weight, 0.0, math.sqrt(2 / (math.prod(each.kernel_size) * each.out_channels)))
    return made


def _residual_block(channels: int, kind: str, act: type[nn.Module]) -> nn.Module:
    from timm.models.resnet import BasicBlock, Bottleneck

    if kind == "basic_block":
        return BasicBlock(channels, channels, act_layer=act)
    if channels % Bottleneck.expansion:
        raise ConfigurationError(f"channels={channels} must be a multiple of {Bottleneck.expansion} for 'bottleneck'.")
    # all three convolutions get the full width: timm's block has no other way to an expansion of 1
    return Bottleneck(channels, channels // Bottleneck.expansion, base_width=64 * Bottleneck.expansion, act_layer=act)


def flow(first: nn.Module, second: nn.Module, inputs: Tensor, act: nn.Module, *, tied: bool) -> tuple[Tensor, Tensor]:
    """Return the coefficients along rows and columns.

    Args:
        first: :class:`Coefficient` of the rows.
        second: Of the columns; the gate of the first where they are tied.
        inputs: ``(N, C, H, W)``.
        act: Activation of both.
        tied: Whether one map, the product of both, serves both directions.
    """
    if tied:
        both = act(first(inputs) * act(second(inputs)))
        return both, both
    return act(first(inputs)), act(second(inputs))


def bounded(values: Tensor, bound: float) -> Tensor:
    """Return values pressed smoothly between ``-bound`` and ``bound``, in float32 or wider."""
    return bound * torch.tanh(at_least_float32(values) / bound)


def coefficient_eps(given: float | str, channels: int) -> float:
    """Return the epsilon of the coefficients' normalisation.

    Raises:
        ConfigurationError: neither a positive number nor "channels".
    """
    if isinstance(given, str):
        check_choice("coeff_eps", given, ["channels"])
        return float(channels)
    check_number("coeff_eps", given)
    check_positive("coeff_eps", given)
    return float(given)


def activation_type(given: type[nn.Module] | str) -> type[nn.Module]:
    """Return an activation's type, from itself or from timm's name of it.

    Raises:
        ConfigurationError: an unknown name, or neither a name nor a type.
    """
    if not isinstance(given, str):
        if isinstance(given, nn.Module) or not callable(given):
            raise ConfigurationError(f"act={given!r} must be a type of activation, or timm's name of one.")
        return given
    from timm.layers import get_act_layer
    from timm.layers.create_act import _ACT_LAYER_DEFAULT

    check_choice("act", given, _ACT_LAYER_DEFAULT)
    found: type[nn.Module] = get_act_layer(given)
    return found


def check_kernel_size(given: int) -> None:
    """Raise unless the size of a kernel is a positive odd integer."""
    if not is_integer(given) or given < 1 or given % 2 == 0:
        raise ConfigurationError(f"kernel_size={given!r} must be a positive odd integer.")
