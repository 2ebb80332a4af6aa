"""Residual networks for images of 32×32 pixels, from eight thousand weights to 21 million, as models of timm."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_efficient.nn._cifar_models import EntryPoint, configuration, entry_point, register, small_resnet

_WIDTHS = {
    "xxxs": (4, 8, 8, 16),
    "xxs": (8, 8, 16, 16),
    "xs": (8, 16, 16, 32),
    "s": (8, 16, 32, 64),
    "m": (16, 32, 64, 128),
    "l": (32, 64, 128, 256),
}
_FULL = (64, 128, 256, 512)

_FAMILY: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    **{f"cifar_resnet10_{size}": ((1, 1, 1, 1), widths) for size, widths in _WIDTHS.items()},
    "cifar_resnet10": ((1, 1, 1, 1), _FULL),
    "cifar_resnet18": ((2, 2, 2, 2), _FULL),
    "cifar_resnet34": ((3, 4, 6, 3), _FULL),
}

CIFAR_RESNETS: tuple[str, ...] = tuple(_FAMILY)
"""Names that ``timm.create_model`` knows after :func:`register_cifar_resnets`."""

# timm reads this name of the module in which an entry point lives
default_cfgs: dict[str, dict[str, Any]] = {name: configuration(4) for name in CIFAR_RESNETS}


def register_cifar_resnets() -> None:
    """Make the family known to ``timm.create_model``; calling it again changes nothing.

    Blocks, widths and depths are those of the released DiSK experiments: a 3×3 convolution at full resolution in place
    of timm's stem, then four stages of basic blocks. Names are ``cifar_resnet10_xxxs`` to ``_l`` with growing widths,
    and ``cifar_resnet10``, ``18`` and ``34`` with the widths of ResNet-18. There are no pretrained weights.

    Example:
        >>> import timm
        >>> register_cifar_resnets()
        >>> network = timm.create_model("cifar_resnet10_s", num_classes=100)
        >>> sum(parameter.numel() for parameter in network.parameters())
        83852

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """
    register(CIFAR_RESNETS, globals())


def _entry_point(name: str) -> EntryPoint:
    layers, widths = _FAMILY[name]

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        from timm.models import build_model_with_cfg

        return build_model_with_cfg(_build, name, pretrained, **{"layers": layers, "channels": widths, **options})

    return entry_point(name, f"Build {name}: {sum(layers)} basic blocks of widths {widths}.", create)


def _build(*, channels: tuple[int, ...], in_chans: int = 3, **options: Any) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    network: nn.Module = small_resnet(ResNet, BasicBlock, channels, in_chans, options)
    return network


globals().update({name: _entry_point(name) for name in CIFAR_RESNETS})
