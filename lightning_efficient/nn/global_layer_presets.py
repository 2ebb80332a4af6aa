"""Settings of Global layers per stage of a network, as in the released commands."""

from __future__ import annotations

from typing import Any

_CIFAR: dict[str, Any] = {"steps": 1, "dt": 0.2, "diffusion": "learned", "coeff_eps": "channels", "kernel_size": 3}
_IMAGENET: dict[str, Any] = {
    "steps": 1,
    "dt": 0.2,
    "diffusion": 1.0,
    "coeff_eps": 1e-5,
    "kernel_size": "block",
    "tied": True,
}
_UNTIED: dict[str, Any] = {**_IMAGENET, "tied": False}

GLOBAL_LAYER_PRESETS: dict[str, dict[int, dict[str, Any]]] = {
    "cifar": {stage: dict(_CIFAR) for stage in range(1, 5)},
    "imagenet_b0": {
        1: {**_IMAGENET, "dt": 0.1, "diffusion": 2.0},
        2: {**_IMAGENET, "dt": 0.1, "diffusion": 2.0, "spacing": [2, 2]},
        3: dict(_IMAGENET),
        4: dict(_IMAGENET),
        5: dict(_IMAGENET),
    },
    "imagenet_mbv2": {stage: dict(_UNTIED) for stage in range(1, 6)},
    "imagenet_mbv3": {
        1: dict(_UNTIED),
        2: dict(_IMAGENET),
        3: {**_IMAGENET, "expansion": 6.0},
        4: dict(_IMAGENET),
        5: dict(_IMAGENET),
    },
}
"""Options of :func:`~lightning_efficient.nn.global_layer.global_layer_at`, by preset and stage, counted from 1.

``"cifar"`` is one setting for all stages of a small residual network. The others are those of EfficientNet-B0,
MobileNetV2 and MobileNetV3-Large for stages 1 to 5 of timm's ``blocks``, whose layers wrap a block of the network; the
kernel of the velocity is as large as that block's. Values are plain, so that a recipe can be written as JSON.

Reference:
    Kag, Saligrama. Condensing CNNs with Partial Differential Equations. CVPR 2022.
"""
