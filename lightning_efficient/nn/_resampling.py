"""Taking a map to a coarser grid and back, for maps of any height and width."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Sampling: TypeAlias = Literal["average", "strided"]
Upsampling: TypeAlias = Literal["bilinear", "nearest"]

SAMPLINGS: tuple[str, ...] = get_args(Sampling)
UPSAMPLINGS: tuple[str, ...] = get_args(Upsampling)


def sample(maps: Tensor, factor: int, sampling: str) -> Tensor:
    """Return a map of ``ceil(H / factor)`` by ``ceil(W / factor)`` positions.

    Args:
        maps: Shape ``(N, C, H, W)``, floating point.
        factor: Positions of the input per position of the output, in each direction.
        sampling: ``"average"``: the mean over each window, of those positions that exist at the border; ``"strided"``:
            the first position of each window.
    """
    if sampling == "average":
        return F.avg_pool2d(maps, factor, ceil_mode=True, count_include_pad=False)
    return maps[:, :, ::factor, ::factor]


def upsample_like(coarse: Tensor, like: Tensor, upsampling: str) -> Tensor:
    """Return a coarse map at the height and width of another one; pixels are areas (``align_corners=False``).

    Args:
        coarse: Shape ``(N, C, h, w)``.
        like: Shape ``(*, *, H, W)``.
        upsampling: ``"bilinear"`` or ``"nearest"``.
    """
    if upsampling == "bilinear":
        return F.interpolate(coarse, size=like.shape[-2:], mode="bilinear", align_corners=False)
    return F.interpolate(coarse, size=like.shape[-2:], mode="nearest")


def upsample_nodes_like(coarse: Tensor, like: Tensor, factor: int) -> Tensor:
    """Return a map that has the coarse values at positions ``(factor * i, factor * j)`` and lies linearly between them.

    Behind the last node of a row or column its value is repeated.

    Args:
        coarse: Shape ``(N, C, ceil(H / factor), ceil(W / factor))``.
        like: Shape ``(*, *, H, W)``.
        factor: Distance of two nodes.
    """
    padded = F.pad(coarse, (0, 1, 0, 1), mode="replicate")
    size = [coarse.shape[-2] * factor + 1, coarse.shape[-1] * factor + 1]
    between = F.interpolate(padded, size=size, mode="bilinear", align_corners=True)
    return between[:, :, : like.shape[-2], : like.shape[-1]]


def without_nodes(maps: Tensor, factor: int) -> Tensor:
    """Return maps of shape ``(N, C, H, W)`` with zeros at the positions ``(factor * i, factor * j)``."""
    # counted with cumsum, because torch.arange of a size cannot be traced symbolically
    ones = maps.new_ones(maps.shape[-2:], dtype=torch.int32)
    at_node = ((ones.cumsum(0) - 1) % factor == 0) & ((ones.cumsum(1) - 1) % factor == 0)
    return maps.masked_fill(at_node, 0.0)
