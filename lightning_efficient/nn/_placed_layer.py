"""What layers have in common that stand in the place of a network's blocks: initialiser, shortcut, checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_choice, check_count, check_flag, check_fraction, check_number
from lightning_efficient.nn._coefficients import activation_type, new_map
from lightning_efficient.nn.timm_blocks import activation_of, facts_of, init_convolution_

INIT_KINDS = ("dense", "basic_block")


Layer = TypeVar("Layer", bound=nn.Module)


def placed_at(
    layer: Callable[..., Layer],
    name: str,
    block: nn.Module,
    *,
    wrap: bool,
    channels: int | None = None,
    expansion: float | None = None,
    init_kind: Literal["dense", "basic_block"] | None = None,
    kernel_size: int | Literal["block"] = 3,
    act: type[nn.Module] | str | None = None,
    **options: Any,
) -> Layer:
    """Make the layer that stands at or behind a block of a network.

    Args:
        layer: Takes ``(channels, init, kernel_size=, act=, **options)``.
        name: Of the block, for errors.
        block: Of the network.
        wrap: Whether the block becomes the layer's initialiser; else the layer takes the block's output.
        channels: Of the block's output; None reads them off the block.
        expansion: Rebuild the block, an InvertedResidual, with this ratio of expansion and fresh weights first.
        init_kind: Initialiser of a layer that does not wrap: "dense" is DenseNet's (two convolutions, each behind
            BatchNorm and activation), "basic_block" a residual block, None the identity.
        kernel_size: "block" is that of the block.
        act: None is the block's.
        **options: Of the layer.

    Raises:
        ConfigurationError: the block's channels cannot be read off, or options exclude each other.
    """
    check_flag("wrap", wrap)
    if channels is not None:
        check_count("channels", channels)
        if wrap:
            check_width(name, block, channels)
    if expansion is not None:
        check_number("expansion", expansion)
        from lightning_efficient.nn._rebuilt_block import with_expansion

        block = with_expansion(block, expansion, name)
    act = activation_of(block) if act is None else act
    width = _channels(name, block) if channels is None else channels
    if isinstance(kernel_size, str):
        check_choice("kernel_size", kernel_size, ["block"])
        kernel_size = _kernel_size(name, block)
    init = block if wrap else None
    if init_kind is not None:
        check_choice("init_kind", init_kind, INIT_KINDS)
        if wrap:
            raise ConfigurationError(f"init_kind={init_kind!r} needs wrap=False: {name} is the initialiser otherwise.")
        dense = init_kind == "dense"
        init = dense_initialiser(width, act) if dense else new_map(width, init_kind, 3, activation_type(act))
    return layer(width, init, kernel_size=kernel_size, act=act, **options)


def dense_initialiser(channels: int, act: type[nn.Module] | str) -> nn.Sequential:
    """Return DenseNet's pair of convolutions: 1x1 to twice the channels, 3x3 back, each behind BatchNorm and act."""
    kind = activation_type(act)
    narrow = nn.Conv2d(channels, 2 * channels, 1, bias=False)
    wide = nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        kind(),
        init_convolution_(narrow),
        nn.BatchNorm2d(2 * channels),
        kind(),
        init_convolution_(wide),
    )


def surroundings(
    channels: int, residual: bool, layer_scale: float | None, drop_path: float
) -> tuple[nn.Module | None, nn.Module]:
    """Return the factors of a layer's output, if any, and what drops it for some samples.

    Raises:
        ConfigurationError: options exclude each other.
    """
    from timm.layers import DropPath, LayerScale2d

    check_number("drop_path", drop_path)
    check_fraction("drop_path", drop_path, zero=True)
    if layer_scale is not None:
        check_number("layer_scale", layer_scale)
    if layer_scale is not None and residual:
        raise ConfigurationError(f"layer_scale={layer_scale!r} has its own shortcut; give residual=False with it.")
    if drop_path and layer_scale is None and not residual:
        raise ConfigurationError(f"drop_path={drop_path!r} needs a shortcut: residual=True or layer_scale.")
    scale = None if layer_scale is None else LayerScale2d(channels, float(layer_scale))
    return scale, DropPath(drop_path) if drop_path else nn.Identity()


def checked_map(features: Tensor, channels: int, layer: str) -> Tensor:
    """Return features as they are, if they have the channels of a layer.

    Raises:
        ConfigurationError: they have not.
    """
    if features.dim() != 4 or features.shape[1] != channels:
        raise ConfigurationError(
            f"{layer}: channels={channels} takes features of shape (N, {channels}, H, W), not {tuple(features.shape)}."
        )
    return features


def same_shape_or(inputs: Tensor, features: Tensor) -> Tensor:
    """Return the inputs where they are shaped as the features, else the features."""
    return inputs if inputs.shape == features.shape else features


def feature_info_of(init: Any, channels: int, location: str) -> dict[str, Any]:
    """Return what timm's blocks say of themselves: the output, or what enters the initialiser's last convolution."""
    if location == "expansion" and callable(getattr(init, "feature_info", None)):
        info: dict[str, Any] = init.feature_info(location)
        return {**info, "module": f"init.{info['module']}"}
    return {"module": "", "num_chs": channels}


def check_width(name: str, block: nn.Module, channels: object) -> None:
    """Raise unless a layer of ``channels`` fits the output of a block; blocks of unknown types are not looked at."""
    facts = facts_of(block)
    if facts is not None and facts.out_channels != channels:
        raise ConfigurationError(
            f"channels={channels!r} does not fit {name}, {facts.kind} of {facts.out_channels} channels; leave it out."
        )


def _channels(name: str, block: nn.Module) -> int:
    facts = facts_of(block)
    if facts is not None:
        return facts.out_channels
    own: Any = getattr(block, "channels", None)
    if isinstance(own, int):
        return own
    convolutions = [each for each in block.modules() if isinstance(each, nn.Conv2d)]
    if not convolutions:
        raise ConfigurationError(f"{name}: the channels of {type(block).__name__} are unknown; give channels.")
    return convolutions[-1].out_channels


def _kernel_size(name: str, block: nn.Module) -> int:
    facts = facts_of(block)
    if facts is None:
        raise ConfigurationError(
            f"kernel_size='block': the kernel of {name}, a {type(block).__name__}, is unknown; give an odd integer."
        )
    return facts.kernel_size
