"""Whether an exported graph answers as its network does."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError


def drawn(example: Tensor, size: int) -> Tensor:
    """Return a batch like the example: its rows with noise of their deviation, or with their values mixed."""
    generator = torch.Generator().manual_seed(size)
    if not example.is_floating_point():
        values = example.flatten()
        places = torch.randint(values.numel(), (size, *example.shape[1:]), generator=generator)
        return values[places]
    deviation = example.std() if example.numel() > 1 else example.new_tensor(0.0)
    noise = torch.randn((size, *example.shape[1:]), generator=generator)
    rows = example[torch.arange(size) % len(example)]
    return rows + noise * (deviation if 0 < deviation < math.inf else 1.0)


def answers(module: nn.Module, name: str, batch: Tensor) -> tuple[Tensor, ...]:
    """Return what a network answers to a batch, each output with one row per input.

    Raises:
        ConfigurationError: it does not run, or returns something else.
    """
    try:
        with torch.inference_mode():
            output = module(batch)
    except Exception as error:  # whatever a network may raise
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        shape = tuple(batch.shape)
        raise ConfigurationError(f"part {name!r} does not run on an input of shape {shape} ({line})") from error
    outputs = tuple(output) if isinstance(output, tuple | list) else (output,)
    for each in outputs:
        if not isinstance(each, Tensor) or not each.ndim or len(each) != len(batch):
            shape_or_type = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
            raise ConfigurationError(
                f"part {name!r} returns {shape_or_type} for {len(batch)} inputs; each output must be a tensor (N, ...)"
            )
        if each.is_floating_point() and not each.isfinite().any():
            raise ConfigurationError(f"part {name!r} returns no finite value, so there is nothing to compare")
    return outputs


def difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest difference over all outputs; infinity for other shapes, dtypes or finite places."""
    if [(each.shape, each.dtype) for each in found] != [(each.shape, each.dtype) for each in expected]:
        return math.inf
    largest = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        a, b = ours.double(), theirs.double()
        finite = b.isfinite()
        alike = (a == b) | (a.isnan() & b.isnan())
        apart = torch.where(alike, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
        scale = max(1.0, float(b[finite].abs().max()) if finite.any() else 1.0)
        largest = max(largest, float(apart.max()) / scale)
    return largest
