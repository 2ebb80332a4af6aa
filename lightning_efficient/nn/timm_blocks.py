"""What the residual blocks of timm's convolutional networks are made of.

Each of these blocks runs its children one after the other and then adds a shortcut. That order is written down here
once, so that a layer can run a block's children in another way under the same parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# children in the order in which the block calls them; those that are absent or None are skipped
_CHAINS: dict[str, tuple[str, ...]] = {
    "InvertedResidual": ("conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl", "bn3"),
    "DepthwiseSeparableConv": ("conv_dw", "bn1", "aa", "se", "conv_pw", "bn2"),
    "EdgeResidual": ("conv_exp", "bn1", "aa", "se", "conv_pwl", "bn2"),
    "UniversalInvertedResidual": ("dw_start", "pw_exp", "dw_mid", "se", "pw_proj", "dw_end", "layer_scale"),
    "ConvBnAct": ("conv", "bn1", "aa"),
    "BasicBlock": ("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2", "se"),
    "Bottleneck": ("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3", "bn3", "se"),
}
_ACTIVATION_AFTER_SUM = {"BasicBlock": "act2", "Bottleneck": "act3"}
_HOMES = {"BasicBlock": "timm.models.resnet", "Bottleneck": "timm.models.resnet"}
_MOBILE = "timm.models._efficientnet_blocks"

BLOCK_TYPES: tuple[str, ...] = tuple(_CHAINS)
"""Names of the types of blocks that :func:`facts_of` knows."""


@dataclass(frozen=True)
class BlockFacts:
    """What one residual block is.

    Attributes:
        kind: Name of its type.
        chain: Names of its children between input and sum, in the order of their calls.
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        stride: Of the whole block.
        has_skip: Whether its input is added to its output as it is.
        spatial: Names of the children, of ``chain``, whose convolutions look at neighbours.
        kernel_size: Of the largest such convolution; 1 where there is none.
        activation: Name of the child that acts after the sum; None where the sum is the output.
        norm: A normalisation layer of the block, as the pattern of new ones.
    """

    kind: str
    chain: tuple[str, ...]
    in_channels: int
    out_channels: int
    stride: int
    has_skip: bool
    spatial: tuple[str, ...]
    kernel_size: int
    activation: str | None
    norm: nn.Module | None


def facts_of(block: nn.Module) -> BlockFacts | None:
    """Return what a block is; None for any other type, subclasses of the known ones included.

    Blocks that move space to depth first, as some EfficientNets' do, and blocks with routed or mixed convolutions are
    unknown.
    """
    kind = type(block).__name__
    if kind not in _CHAINS or type(block).__module__ != _HOMES.get(kind, _MOBILE):
        return None
    if getattr(block, "conv_s2d", None) is not None:
        return None
    present = tuple(name for name in _CHAINS[kind] if getattr(block, name, None) is not None)
    convolutions = [(name, each) for name in present for each in convolutions_of(getattr(block, name), name)]
    if not convolutions or len(dict(convolutions)) < len(convolutions):  # several of MixedConv2d run side by side
        return None
    spatial = tuple(dict.fromkeys(name for name, each in convolutions if max(each.kernel_size) > 1))
    first, last = convolutions[0][1], convolutions[-1][1]
    stride = math.prod(each.stride[0] for _, each in convolutions) * _pooling(block)
    if hasattr(block, "has_skip"):
        skips = bool(block.has_skip)
    else:
        skips = block.downsample is None and stride == 1 and first.in_channels == last.out_channels
    return BlockFacts(
        kind=kind,
        chain=present,
        in_channels=first.in_channels,
        out_channels=last.out_channels,
        stride=stride,
        has_skip=skips,
        spatial=spatial,
        kernel_size=max(max(each.kernel_size) for _, each in convolutions),
        activation=_ACTIVATION_AFTER_SUM.get(kind),
        norm=next((each for each in reversed(list(block.modules())) if _is_norm(each)), None),
    )


def convolutions_of(child: nn.Module, name: str = "") -> Iterator[nn.Conv2d]:
    """Yield the convolutions of a child of a block that act on maps, those of squeeze and excitation left out."""
    if name != "se":
        yield from (each for each in child.modules() if isinstance(each, nn.Conv2d))


def activation_of(block: nn.Module) -> type[nn.Module]:
    """Return the type of the first activation inside a block; ReLU where it has none."""
    for each in block.modules():
        found = getattr(each, "act", each)  # timm's norms hold theirs
        if isinstance(found, nn.Module) and _is_activation(found):
            return type(found)
    return nn.ReLU


def new_norm(pattern: nn.Module | None, channels: int) -> nn.Module:
    """Return a normalisation layer without activation, of the kind, epsilon and momentum of another one."""
    eps: float = getattr(pattern, "eps", 1e-5)
    if isinstance(pattern, nn.SyncBatchNorm):
        return nn.SyncBatchNorm(channels, eps, pattern.momentum, process_group=pattern.process_group)
    if isinstance(pattern, nn.GroupNorm):
        return nn.GroupNorm(math.gcd(pattern.num_groups, channels), channels, eps)
    if "Frozen" in type(pattern).__name__:
        from timm.layers import FrozenBatchNormAct2d

        return FrozenBatchNormAct2d(channels, eps, apply_act=False)
    momentum: Any = getattr(pattern, "momentum", 0.1)
    return nn.BatchNorm2d(channels, eps, momentum)


def init_convolution_(convolution: nn.Conv2d) -> nn.Conv2d:
    """Draw weights as timm does for its mobile networks: normal, variance 2 over the fan-out of a group; bias 0."""
    fan_out = math.prod(convolution.kernel_size) * convolution.out_channels // convolution.groups
    nn.init.normal_(convolution.weight, 0.0, math.sqrt(2 / fan_out))
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def run_chain(block: Any, chain: tuple[str, ...], inputs: Tensor) -> Tensor:
    """Run children of a block, by name, one after the other."""
    for name in chain:
        inputs = getattr(block, name)(inputs)
    return inputs


def _pooling(block: nn.Module) -> int:
    # an anti-aliasing layer takes the stride over from the convolution
    stride = getattr(getattr(block, "aa", None), "stride", 1)
    return int(stride[0] if isinstance(stride, tuple) else stride)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm) or "BatchNorm" in type(module).__name__


def _is_activation(module: nn.Module) -> bool:
    name = type(module).__name__
    return (
        not list(module.children())
        and not isinstance(module, nn.Identity)
        and (
            type(module).__module__.endswith(
                ("modules.activation", "timm.layers.activations", "timm.layers.activations_me")
            )
            and name not in ("Sigmoid", "Softmax")
        )
    )
