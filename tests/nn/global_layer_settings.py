"""Layers with statistics of their own, their state, and features, for the tests of GlobalLayer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.nn.global_layer import GlobalLayer


def drawn(layer: nn.Module, seed: int = 0) -> Any:
    """Give every normalisation weights and statistics of its own, so that no part of a layer is idle."""
    generator = torch.Generator().manual_seed(seed)
    for each in layer.modules():
        if isinstance(each, nn.BatchNorm2d):
            for value, low in (
                (each.weight, 0.5),
                (each.bias, 0.1),
                (each.running_mean, -0.5),
                (each.running_var, 0.5),
            ):
                with torch.no_grad():
                    value.copy_(torch.rand(value.shape, generator=generator) + low)
    return layer


def state_of(layer: GlobalLayer, inputs: Tensor) -> Tensor:
    """Return the features at the end, before normalisation."""
    seen: list[Tensor] = []
    handle = layer.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    layer(inputs)
    handle.remove()
    return seen[0].detach()


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
