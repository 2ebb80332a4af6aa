"""A depthwise convolution, its BatchNorm and a shortcut as one convolution, for prediction.

Two passes over a map at full resolution less; what is left costs no more than the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F


def can_fold(convolution: nn.Module, norm: nn.Module, maps: Tensor) -> bool:
    """Say whether :func:`folded_with_shortcut` computes what the modules would, but for rounding.

    The norm must be ``nn.BatchNorm2d`` itself in evaluation mode, the convolution depthwise and its borders zero, and
    neither may have hooks. Under autocast the two would run in different precisions. A graph that torch.fx traces has
    the modules as they are, so that its nodes are those of training.
    """
    return (
        not isinstance(maps, torch.fx.Proxy)
        and type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.running_mean is not None
        and norm.weight is not None
        and type(convolution) is nn.Conv2d
        and convolution.groups == convolution.in_channels == convolution.out_channels
        and convolution.bias is None
        and convolution.padding_mode == "zeros"
        and not any(each._forward_hooks or each._forward_pre_hooks for each in (convolution, norm))
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
    )


def folded_with_shortcut(convolution: Any, norm: Any, maps: Tensor) -> Tensor:
    """Return ``maps + norm(convolution(maps))``, where :func:`can_fold` holds.

    Args:
        convolution: ``nn.Conv2d``, depthwise, of an odd kernel and stride 1.
        norm: ``nn.BatchNorm2d``; uses its running statistics.
        maps: Shape ``(N, C, H, W)``.
    """
    gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
    margin = convolution.kernel_size[0] // 2
    one = F.pad(torch.ones_like(gain)[:, None, None, None], (margin, margin, margin, margin))  # passes its input on
    kernel = convolution.weight * gain[:, None, None, None] + one
    return F.conv2d(maps, kernel, norm.bias - norm.running_mean * gain, padding=margin, groups=convolution.groups)
