"""Parts that the configs of the fixtures name; keep them as long as a set of fixtures is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_efficient.profiling import EnergyReading


class Ticking:
    """A meter of which every reading is a joule."""

    def available(self) -> str | None:
        return None

    def begin(self, key: str) -> None:
        pass

    def end(self, key: str) -> EnergyReading:
        return EnergyReading(1.0, 0.5, {"cpu:0": 1.0})


class TinyTeacher(nn.Module):
    """A linear teacher of flattened inputs, always with the same weights."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)
        nn.init.uniform_(self.head.weight, -0.1, 0.1, torch.Generator().manual_seed(0))
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1))
