"""Residual networks for images of 32×32 pixels, from eight thousand weights to 21 million, as models of timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

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
default_cfgs: dict[str, dict[str, Any]] = {
    name: {
        "url": "",
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (129.3 / 255, 124.1 / 255, 112.4 / 255),
        "std": (68.2 / 255, 65.4 / 255, 70.4 / 255),
        "first_conv": "conv1",
        "classifier": "fc",
    }
    for name in CIFAR_RESNETS
}


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
    import timm
    from timm.models import register_model

    for name in CIFAR_RESNETS:
        if not timm.is_model(name):
            register_model(globals()[name])


def _entry_point(name: str) -> Callable[..., nn.Module]:
    layers, widths = _FAMILY[name]

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        from timm.models import build_model_with_cfg

        return build_model_with_cfg(_build, name, pretrained, **{"layers": layers, "channels": widths, **options})

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Build {name}: {sum(layers)} basic blocks of widths {widths}."
    return create


def _build(*, channels: tuple[int, ...], in_chans: int = 3, **options: Any) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    block: Any = BasicBlock
    # the deep stem is replaced below; only its width matters, which the plain one cannot choose
    network: Any = ResNet(
        block, channels=channels, in_chans=in_chans, stem_type="deep", stem_width=channels[0] // 2, **options
    )
    old = network.conv1[0].weight
    network.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, device=old.device, dtype=old.dtype)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    for info, reduction in zip(network.feature_info, (1, 1, 2, 4, 8), strict=True):
        info["reduction"] = reduction
    return network


globals().update({name: _entry_point(name) for name in CIFAR_RESNETS})
