"""What quantisation returns: the network, and which of its layers compute or are stored in integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

Scheme: TypeAlias = Literal["weight_only", "static", "aware"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
"""How a network can be quantised: its weights alone, after training with calibration, or while it trains."""


@dataclass(frozen=True)
class Quantized:
    """A quantised network.

    Attributes:
        module: From a batch ``(N, *shape)`` to what the network answers, for any ``N`` of 1 or more; on the CPU, in
            evaluation mode.
        scheme: ``weight_only``, ``static`` or ``aware``.
        quantized: Names of the layers with int8 weights, and for the two latter schemes with 8-bit inputs too.
        skipped: Names of the layers with weights that stay in floating point, with the reason.
        shape: Of one sample.
        dtype: Of the samples.
    """

    module: nn.Module
    scheme: Scheme
    quantized: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
