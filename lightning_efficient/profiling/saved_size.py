"""Size of a module as ``torch.save`` would write it, without a file and without a copy."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn


class _ByteCounter(io.BytesIO):
    """A file that forgets what is written to it, and knows how much that was."""

    size = 0

    def write(self, content: Any) -> int:
        written = memoryview(content).nbytes
        self.size += written
        return written


def bytes_on_disk(module: nn.Module) -> int:
    """Return the size of ``torch.save(module.state_dict())``.

    Example:
        >>> bytes_on_disk(nn.Linear(1000, 10, bias=False)) > 40_000
        True
    """
    counter = _ByteCounter()
    torch.save(module.state_dict(), counter)
    return counter.size
