"""What timm models for images of 32×32 pixels have in common: configuration, stem, entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

EntryPoint = Callable[..., nn.Module]


def configuration(pool_size: int, first_conv: str = "conv1", classifier: str = "fc") -> dict[str, Any]:
    """Return timm's default configuration of a network for CIFAR-100 without pretrained weights."""
    return {
        "url": "",
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (pool_size, pool_size),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (129.3 / 255, 124.1 / 255, 112.4 / 255),
        "std": (68.2 / 255, 65.4 / 255, 70.4 / 255),
        "first_conv": first_conv,
        "classifier": classifier,
    }


def entry_point(name: str, text: str, create: EntryPoint) -> EntryPoint:
    """Name a function as timm's registry wants it."""
    create.__name__ = create.__qualname__ = name
    create.__doc__ = text
    return create


def register(names: Iterable[str], home: Mapping[str, Any]) -> None:
    """Make the entry points of a file known to ``timm.create_model``; those that are known already stay."""
    import timm
    from timm.models import register_model

    for name in names:
        if not timm.is_model(name):
            register_model(home[name])


def small_resnet(kind: Callable[..., Any], block: Any, channels: tuple[int, ...], in_chans: int, options: Any) -> Any:
    """Return a residual network of timm whose stem is one 3×3 convolution at full resolution.

    Args:
        kind: timm's ``ResNet``, or a subclass.
        block: Type of its blocks.
        channels: Of each stage; the stem is as wide as the first.
        in_chans: Channels of the images.
        options: Further arguments of ``kind``.
    """
    # the deep stem is replaced below; only its width matters, which the plain one cannot choose
    network = kind(
        block, channels=channels, in_chans=in_chans, stem_type="deep", stem_width=channels[0] // 2, **options
    )
    old = network.conv1[0].weight
    network.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, device=old.device, dtype=old.dtype)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    reductions = (1, *(2**stage for stage in range(len(channels))))
    for info, reduction in zip(network.feature_info, reductions, strict=True):
        info["reduction"] = reduction
    return network
