"""The precision in which everything here is computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return half-precision and integer values in float32, wider ones as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
