"""Small networks that the tests of the export share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_efficient.nn.hybrid_graphs import EdgeGraph, GlobalGraph
from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.routers import GainRouter

CLASSES, SHAPE = 12, (3, 8, 8)


class Small(nn.Module):
    """A convolution with batch normalisation, and a classifier."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


class Doubled(nn.Module):
    """The smallest network there is."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * inputs


class Branching(nn.Module):
    """What no exporter can write."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.sum() > 0:
            return inputs
        return -inputs


def hybrid(seed: int = 0) -> dict[str, nn.Module]:
    """Return an edge graph with a learned router that looks at features, and a global one at another size."""
    torch.manual_seed(seed)
    router = GainRouter(CLASSES, feature_dim=4)
    # it starts with zeros, by which it would look at nothing
    for parameter in router.parameters():
        nn.init.normal_(parameter, std=0.3)
    return {"edge": EdgeGraph(Small(), router), "global": GlobalGraph(Small(8), InputFit(3, image_size=12))}


def a_batch(size: int = 5, seed: int = 0) -> Tensor:
    """Return images."""
    return torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(seed))
