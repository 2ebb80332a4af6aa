"""Residual networks of three stages, a wide one among them, and a DenseNet for 32×32 pixels, as models of timm."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_efficient.nn._cifar_models import EntryPoint, configuration, entry_point, register, small_resnet

# blocks per stage and widths; the stem is as wide as the first stage
_RESNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "cifar_resnet32": ((5, 5, 5), (16, 32, 64)),
    "cifar_resnet56": ((9, 9, 9), (16, 32, 64)),
    "cifar_wrn40_4": ((6, 6, 6), (64, 128, 256)),
}
# growth rate and layers per dense block
_DENSENETS: dict[str, tuple[int, tuple[int, ...]]] = {"cifar_densenet100": (12, (16, 16, 16))}

CIFAR_NETWORKS: tuple[str, ...] = (*_RESNETS, *_DENSENETS)
"""Names that ``timm.create_model`` knows after :func:`register_cifar_networks`."""

# timm reads this name of the module in which an entry point lives
default_cfgs: dict[str, dict[str, Any]] = {
    **{name: configuration(8) for name in _RESNETS},
    **{name: configuration(8, "features.conv0", "classifier") for name in _DENSENETS},
}


def register_cifar_networks() -> None:
    """Make the networks known to ``timm.create_model``; calling it again changes nothing.

    ``cifar_resnet32`` and ``cifar_resnet56`` have three stages of 5 or 9 basic blocks of widths 16, 32 and 64.
    ``cifar_wrn40_4`` has three stages of 6 basic blocks of widths 64, 128 and 256 after a stem of width 64: the form
    whose cost the Global layer's code counts. Its activations follow the convolutions, unlike those of the first
    paper on wide networks. ``cifar_densenet100`` is DenseNet-BC with 16 layers in each of three dense blocks, growth 12
    and compression 0.5, without normalisation after the stem. There are no pretrained weights.

    Example:
        >>> import timm
        >>> register_cifar_networks()
        >>> network = timm.create_model("cifar_densenet100", num_classes=10)
        >>> sum(parameter.numel() for parameter in network.parameters())
        769162

    Reference:
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.
        Zagoruyko, Komodakis. Wide Residual Networks. BMVC 2016.
        Huang, Liu, van der Maaten, Weinberger. Densely Connected Convolutional Networks. CVPR 2017.
    """
    register(CIFAR_NETWORKS, globals())


def _resnet(name: str) -> EntryPoint:
    layers, widths = _RESNETS[name]

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _build(_build_resnet, name, pretrained, {"layers": layers, "channels": widths, **options})

    return entry_point(name, f"Build {name}: {sum(layers)} basic blocks of widths {widths}.", create)


def _densenet(name: str) -> EntryPoint:
    growth, layers = _DENSENETS[name]

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _build(_build_densenet, name, pretrained, {"growth_rate": growth, "block_config": layers, **options})

    return entry_point(name, f"Build {name}: dense blocks of {layers} layers with growth {growth}.", create)


def _build(builder: Callable[..., nn.Module], name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    from timm.models import build_model_with_cfg

    # four maps: timm asks for five unless told otherwise
    maps: dict[str, Any] = {"out_indices": (0, 1, 2, 3), "flatten_sequential": name in _DENSENETS}
    return build_model_with_cfg(builder, name, pretrained, feature_cfg=maps, **options)


def _build_resnet(*, channels: tuple[int, ...], in_chans: int = 3, **options: Any) -> nn.Module:
    from timm.models.resnet import BasicBlock

    network: Any = small_resnet(_three_stages(), options.pop("block", BasicBlock), channels, in_chans, options)
    network.layer4 = nn.Sequential()
    return network


def _build_densenet(*, in_chans: int = 3, **options: Any) -> nn.Module:
    from timm.models.densenet import DenseNet

    network: Any = DenseNet(in_chans=in_chans, **options)
    old = network.features.conv0
    network.features.conv0 = nn.Conv2d(
        in_chans, old.out_channels, 3, padding=1, bias=False, device=old.weight.device, dtype=old.weight.dtype
    )
    nn.init.kaiming_normal_(network.features.conv0.weight)
    network.features.norm0 = nn.Identity()  # kept as names of children: timm's taps and groups count on them
    network.features.pool0 = nn.Identity()
    for info in network.feature_info[1:]:
        info["reduction"] //= 4
    network.feature_info[0]["reduction"] = 1
    return network


@functools.cache
def _three_stages() -> type[nn.Module]:
    # a class made on demand: its base is timm's, which is not imported with this file
    from timm.models._features import feature_take_indices
    from timm.models.resnet import ResNet

    class ThreeStageResNet(ResNet):
        """timm's ResNet with an empty fourth stage: four maps in place of five."""

        def forward_intermediates(
            self, x: Tensor, indices: int | list[int] | None = None, **options: Any
        ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
            """Return the maps that ``indices`` choose among the stem's and those of the three stages."""
            taken, _ = feature_take_indices(4, indices)
            return super().forward_intermediates(x, taken, **options)

        def prune_intermediate_layers(self, indices: int | list[int] = 1, *args: Any, **options: Any) -> list[int]:
            """Remove what lies behind the last map that ``indices`` choose; return the chosen ones."""
            taken, last = feature_take_indices(4, indices)
            super().prune_intermediate_layers([4 if last == 3 else last], *args, **options)
            return taken

    ThreeStageResNet.__qualname__ = "ThreeStageResNet"
    return ThreeStageResNet


def __getattr__(name: str) -> Any:
    if name == "ThreeStageResNet":  # where pickle looks for it
        return _three_stages()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


globals().update({name: _resnet(name) for name in _RESNETS})
globals().update({name: _densenet(name) for name in _DENSENETS})
