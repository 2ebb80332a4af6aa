"""Gathering of list states over ranks whose tensors may differ in dtype, or that hold no data at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

_DTYPES = (torch.uint8, torch.float32, torch.float64)


def gather_promoted(result: Tensor, group: Any | None = None) -> list[Tensor]:
    """Gather a tensor from all ranks in the widest dtype that any of them holds.

    A rank without data takes part with an empty float32 tensor, whatever the others hold, and a collective over
    different dtypes reads bytes as the wrong numbers. So the ranks agree on a dtype before they send.

    Args:
        result: The tensor of this rank; the number of dimensions is the same on all ranks.
        group: Process group, default all processes.

    Returns:
        One tensor per rank.
    """
    if result.dtype not in _DTYPES:
        return gather_all_tensors(result, group)
    own = _DTYPES.index(result.dtype) if result.numel() else 0
    ranks = gather_all_tensors(torch.tensor(own, device=result.device), group)
    return gather_all_tensors(result.to(_DTYPES[int(torch.stack(ranks).max())]), group)
