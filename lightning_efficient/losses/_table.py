"""A tensor that is part of a module's state and grows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Table(nn.Module):
    """A tensor that is saved in the checkpoint, whatever its size, with the device and type of its last use.

    It is no buffer: a buffer that grows cannot be loaded into a new module, and weight averaging, which pairs the
    buffers of two modules, would stop at the first difference in size.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.values = torch.zeros((0,) * dimensions)

    def reserve(self, *shape: int) -> None:
        """Grow with zeros until no dimension is smaller than asked for."""
        grown = tuple(max(sizes) for sizes in zip(self.values.shape, shape, strict=True))
        if grown != self.values.shape:
            values = self.values.new_zeros(grown)
            values[tuple(slice(size) for size in self.values.shape)] = self.values
            self.values = values

    def like(self, other: Tensor) -> Tensor:
        """Return the values with another tensor's device and type; writing into them writes into the table."""
        self.values = self.values.to(other)
        return self.values

    def get_extra_state(self) -> Tensor:
        """Return what the checkpoint keeps."""
        return self.values

    def set_extra_state(self, state: Tensor) -> None:
        """Take what a checkpoint kept, of any size."""
        self.values = state.detach().clone()
