"""Ranges of a fake-quantised network, kept apart from its weights: its state dict stays that of the float network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError

_LIMITS = ("min_val", "max_val")


def keep_ranges_apart(network: nn.Module) -> None:
    """Leave the ranges out of the network's state dict, and ask for none when one is loaded."""
    network.register_state_dict_post_hook(_without_ranges)
    network.register_load_state_dict_pre_hook(_with_own_ranges)


def give_shapes(network: nn.Module, example: Tensor) -> None:
    """Run a network once and forget what it observed, so that each range has the shape that it will keep.

    Copies of the network, such as those of weight averaging, take values but no shapes.
    """
    training = network.training
    network.eval()
    for module in _fake_quantizers(network).values():
        module.enable_observer(True)
    with torch.no_grad():
        network(example)
        for low, high in _limits(network).values():
            low.fill_(float("inf"))
            high.fill_(float("-inf"))
    network.train(training)


def begin_to_learn(network: nn.Module) -> None:
    """Let ranges that know nothing yet take the first values that they see as they are, and not their average."""
    for limits in _limits(network).values():
        if limits[0].ndim and not _are_known(*limits):
            for limit in limits:
                limit.resize_(0)


def ranges_are_known(network: nn.Module) -> bool:
    """Tell whether every range has seen a value."""
    return all(_are_known(*limits) for limits in _limits(network).values())


def read_ranges(network: nn.Module) -> dict[str, list[Tensor]]:
    """Return copies of the lower and upper ends, on the CPU, by the names of their modules."""
    return {
        name: [limit.detach().to("cpu", copy=True) for limit in limits] for name, limits in _limits(network).items()
    }


def write_ranges(network: nn.Module, ranges: Mapping[str, list[Tensor]], name: str) -> None:
    """Put back what ``read_ranges`` returned, and compute scales and zero points from it.

    Scales and zero points are not kept: an average of integers, as weight averaging takes it, is none of its ranges.

    Raises:
        ConfigurationError: they are those of another network; begins with ``name``.
    """
    own = _limits(network)
    shapes, theirs = ({key: tuple(low.shape) for key, (low, _) in each.items()} for each in (own, ranges))
    if shapes != theirs:
        raise ConfigurationError(
            f"{name}: the checkpoint has {len(ranges)} ranges of another network than this one, which has {len(own)}"
        )
    with torch.no_grad():
        for key, limits in own.items():
            for mine, kept in zip(limits, ranges[key], strict=True):
                mine.copy_(kept)
        for module in _fake_quantizers(network).values():
            ends = _ends(module)
            if ends is None or not _are_known(*ends):
                continue
            scale, zero_point = module.activation_post_process.calculate_qparams()
            module.scale.resize_(scale.shape).copy_(scale)
            module.zero_point.resize_(zero_point.shape).copy_(zero_point)


def _fake_quantizers(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if hasattr(module, "fake_quant_enabled")}


def _ends(module: Any) -> tuple[Any, Any] | None:
    observer: Any = getattr(module, "activation_post_process", None)
    return (observer.min_val, observer.max_val) if all(hasattr(observer, limit) for limit in _LIMITS) else None


def _limits(network: nn.Module) -> dict[str, tuple[Any, Any]]:
    found = ((name, _ends(module)) for name, module in _fake_quantizers(network).items())
    return {name: ends for name, ends in found if ends is not None}


def _are_known(low: Tensor, high: Tensor) -> bool:
    return low.numel() > 0 and bool((low <= high).all())


def _places(network: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """Return the fake quantisers by the prefixes of their keys, each under all of its names."""
    return {
        f"{prefix}{name}.": module
        for name, module in network.named_modules(remove_duplicate=False)
        if hasattr(module, "fake_quant_enabled")
    }


def _without_ranges(network: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    places = tuple(_places(network, prefix))
    for key in [key for key in state_dict if key.startswith(places)]:
        del state_dict[key]


def _with_own_ranges(network: nn.Module, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
    for place, module in _places(network, prefix).items():
        for key, value in module.state_dict(prefix=place).items():
            state_dict.setdefault(key, value)
