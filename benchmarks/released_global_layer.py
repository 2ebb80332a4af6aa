"""The Global layer as its authors released it, written anew from its formulas, for comparison only.

Nothing that stays the same is taken out of the loop: every step computes the divergence of the velocity, the factors of
the neighbours and the denominators again, and shifts whole maps with ``torch.roll``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReleasedGlobalLayer(nn.Module):
    """Depthwise 3x3 convolution, batch norm and ReLU for each coefficient, the steps, batch norm and ReLU.

    Args:
        channels: Of input and output.
        steps: How many.
        diffusion: None to learn it, or a number for both directions.
        dt: Length of a step.
    """

    def __init__(self, channels: int, steps: int = 1, diffusion: float | None = None, dt: float = 0.2) -> None:
        super().__init__()
        self.steps, self.diffusion, self.dt = steps, diffusion, dt
        names = ("u", "v") if diffusion is not None else ("u", "v", "dx", "dy")
        self.convolutions = nn.ModuleDict(
            {name: nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False) for name in names}
        )
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(channels, eps=channels) for name in names})
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, f: Tensor) -> Tensor:
        maps = {name: torch.relu(self.norms[name](conv(f))) for name, conv in self.convolutions.items()}
        u, v = maps["u"], maps["v"]
        dx = maps.get("dx", self.diffusion)
        dy = maps.get("dy", self.diffusion)
        before, state = f, f
        for _ in range(self.steps):
            before, state = state, self.step(state, before, u, v, dx, dy, f)
        return torch.relu(self.norm(state))

    def step(
        self, state: Tensor, before: Tensor, u: Tensor, v: Tensor, dx: Tensor | float, dy: Tensor | float, f: Tensor
    ) -> Tensor:
        dt = self.dt
        ax, ay, bx, by = u * dt, v * dt, dx * dt, dy * dt
        du = (torch.roll(u, 1, 2) - torch.roll(u, -1, 2)) / 2
        dv = (torch.roll(v, 1, 3) - torch.roll(v, -1, 3)) / 2
        north, south = torch.roll(state, 1, 2), torch.roll(state, -1, 2)
        west, east = torch.roll(state, 1, 3), torch.roll(state, -1, 3)
        total = (1 - 2 * bx - 2 * by) * before
        total = total - 2 * dt * (du + dv) * state
        total = total + (2 * bx - ax) * north + (2 * bx + ax) * south
        total = total + (2 * by - ay) * west + (2 * by + ay) * east
        return (total + 2 * dt * f) / (1 + 2 * bx + 2 * by)
