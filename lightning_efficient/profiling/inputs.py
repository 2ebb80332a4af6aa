"""Example inputs: a tensor, a tuple of positional or a mapping of keyword arguments, with the batch first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.typing import InputShape


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` with which a module is called; a named tuple is one argument."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if type(example) is tuple else (example,)), {}


def first_tensor(example: Any) -> Tensor:
    """Return the tensor that says what the batch size is.

    Raises:
        ConfigurationError: there is no tensor with a batch dimension, or the batch is empty.
    """
    for leaf in tree_leaves(arguments(example)):
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf):
            return leaf
    message = f"the example input must hold a tensor whose first dimension is the batch, got {type(example).__name__}"
    raise ConfigurationError(message)


def rebatch(example: Any, batch_size: int) -> Any:
    """Repeat the first sample ``batch_size`` times.

    Tensors whose first dimension is not the batch of the first tensor (a scalar, a mask shared by all) are kept.

    Returns:
        Detached copies, so that one kept sample does not hold its whole batch in memory.
    """
    batch = len(first_tensor(example))

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != batch:
            return leaf
        # unlike repeat, cat keeps a channels-last layout
        return torch.cat([leaf[:1].detach()] * batch_size)

    return _map(repeat, example)


def to_device(example: Any, device: torch.device | str) -> Any:
    """Move every tensor; ``"meta"`` keeps shapes and dtypes only."""
    return _map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer, the CPU when there is none."""
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter or buffer, torch's default when there is none."""
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())


def random_example(module: nn.Module, input_shape: InputShape | Sequence[int]) -> Tensor:
    """Draw one normal sample of shape ``(1, *input_shape)`` in the module's dtype, the same one every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, *input_shape, generator=generator).to(device_of(module), dtype_of(module))


def _map(function: Any, example: Any) -> Any:
    # a mapping that torch does not know as a tree (a UserDict, say) becomes a dict
    return tree_map(function, dict(example) if isinstance(example, Mapping) else example)
