"""A network without data: sizes of maps and operations of blocks, found without computing anything."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_efficient.errors import ConfigurationError

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""Where a module keeps the hooks of its users."""


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters and buffers are on the meta device; no data is copied, and no hooks.

    Tensors that the model shares stay shared in the copy.

    Example:
        >>> copy = meta_copy(nn.Conv2d(3, 8, 3))
        >>> copy.weight.device.type, tuple(copy.weight.shape)
        ('meta', (8, 3, 3, 3))
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                bare = torch.empty_like(parameter, device="meta")
                memo[id(parameter)] = nn.Parameter(bare, requires_grad=parameter.requires_grad)
        for buffer in module._buffers.values():
            if buffer is not None:
                memo[id(buffer)] = torch.empty_like(buffer, device="meta", requires_grad=False)
        for hooks in HOOKS:  # a hook may hold anything, and would run on tensors without data
            if module.__dict__.get(hooks):
                memo[id(module.__dict__[hooks])] = OrderedDict()
    return deepcopy(model, memo)


def example_shape(model: nn.Module, example: Tensor | Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the shape of one input: as given, or as the configuration of a timm model says.

    Raises:
        ConfigurationError: nothing is given and the model does not know either.

    Example:
        >>> example_shape(nn.Conv2d(3, 8, 3), (1, 3, 32, 32))
        (1, 3, 32, 32)
    """
    if example is not None:
        return tuple(int(size) for size in (example.shape if isinstance(example, Tensor) else example))
    for name in ("pretrained_cfg", "default_cfg"):
        configuration: Any = getattr(model, name, None)
        sizes = configuration.get("input_size") if hasattr(configuration, "get") else None
        if sizes:
            convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
            channels = convolutions[0].in_channels if convolutions else sizes[0]
            return (1, channels, *sizes[1:])
    raise ConfigurationError(
        f"example=None: {type(model).__name__} does not say how large its input is; give a shape like (1, 3, 224, 224)"
    )


def output_sizes(model: nn.Module, example_shape: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Return height and width of the map that each submodule returns, by dotted name.

    Args:
        model: Any network on images; it is not touched.
        example_shape: Shape ``(N, C, H, W)`` of its input.

    Example:
        >>> output_sizes(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)), (1, 3, 9, 9))
        {'0': (4, 4), '': (4, 4)}
    """
    copy, sizes = meta_copy(model).eval(), {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                sizes[name] = (int(output.shape[-2]), int(output.shape[-1]))

        return hook

    for name, module in copy.named_modules():
        module.register_forward_hook(note(name))
    run(copy, example_shape)
    return sizes


def block_macs(model: nn.Module, example_shape: Sequence[int]) -> dict[str, int]:
    """Return the multiply-accumulate operations of one sample in each submodule, by dotted name; all of them at ``""``.

    Args:
        model: Any network; it is not touched.
        example_shape: Shape of its input, with the batch first.

    Example:
        >>> block_macs(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (5, 4))
        {'': 48, '0': 32, '1': 16}
    """
    copy = meta_copy(model).eval()
    with FlopCounterMode(display=False) as counter:
        run(copy, example_shape)
    root, counts = type(copy).__name__, counter.get_flop_counts()
    return dict(_by_name(counts, root, example_shape[0]))


def run(model: nn.Module, example_shape: Sequence[int]) -> None:
    """Run the forward of a network on the meta device."""
    weights = (each for each in model.parameters() if each.is_floating_point())
    dtype = next((each.dtype for each in weights), torch.get_default_dtype())
    with torch.no_grad():
        model(torch.empty(*example_shape, device="meta", dtype=dtype))


def _by_name(counts: dict[str, Any], root: str, batch: int) -> Iterator[tuple[str, int]]:
    yield "", round(sum(counts.get("Global", {}).values()) / (2 * batch))
    for name, operations in counts.items():
        if name.startswith(f"{root}."):
            yield name.removeprefix(f"{root}."), round(sum(operations.values()) / (2 * batch))
