"""A small and a large network on corrupted digits, in three scenarios, for the studies of routing between models.

scikit-learn's 1,797 digits are enlarged to 16x16 and split by the seed into parts that share no image: 700 to train
both networks, 400 for the router, 100 to choose thresholds and 597 to test. Every copy of an image is corrupted anew:
moved by up to a pixel each way, covered by a square of 4x4, and put under noise. Scenarios:

- ``plain``: no more than that; what the small network gets wrong the large one mostly gets right;
- ``mixed``: a fifth of all inputs are hopeless, most of the digit lost in noise: asking the large network about them
  is a waste;
- ``specialist``: the large network saw hardly any image of four classes, on which the small one is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 16
NUM_CLASSES = 10
SHIFT, HOLE = 1, 4
NOISE, HOPELESS_NOISE = 0.35, 1.2
MEAN, STD = 0.3, 0.35
"""Roughly those of the enlarged digits; inputs are normalised by them before the noise."""
PARTS = {"train": 700, "router": 400, "calibration": 100, "test": 597}
COPIES = {"train": 16, "router": 12, "calibration": 12, "test": 6}
"""How often each image of a part is corrupted; the inputs of an epoch are those of the one before."""
EPOCHS = {"base": 5, "global": 10}


@dataclass(frozen=True)
class Scenario:
    """What makes inputs or the large network special.

    Attributes:
        hopeless: Share of inputs that nobody can read well.
        weak: Classes of which the large network sees few images.
        kept: Share of the training images of those classes that it sees.
    """

    hopeless: float = 0.0
    weak: tuple[int, ...] = ()
    kept: float = 0.03


SCENARIOS = {
    "plain": Scenario(),
    "mixed": Scenario(hopeless=0.2),
    "specialist": Scenario(weak=(2, 4, 6, 8)),
}


class Outputs(NamedTuple):
    """What both networks say of the same inputs: ``(N, C)``, ``(N, D)``, ``(N, C)``, and the labels ``(N,)``."""

    base_logits: Tensor
    base_features: Tensor
    global_logits: Tensor
    labels: Tensor

    @property
    def base_correct(self) -> Tensor:
        return self.base_logits.argmax(1) == self.labels

    @property
    def global_correct(self) -> Tensor:
        return self.global_logits.argmax(1) == self.labels


class Pair(NamedTuple):
    """Two trained networks, and what each learned from: inputs ``(N, 1, 16, 16)`` and labels ``(N,)``."""

    base: DigitNetwork
    global_model: DigitNetwork
    base_data: tuple[Tensor, Tensor]
    global_data: tuple[Tensor, Tensor]


class DigitNetwork(nn.Module):
    """Convolutions ``(channels, stride)`` with batch normalisation and ReLU, 2x2 cells of averages, a linear layer."""

    def __init__(self, layers: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        before = 1
        self.body = nn.Sequential()
        for channels, stride in layers:
            self.body.extend(
                [nn.Conv2d(before, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            )
            before = channels
        self.body.extend([nn.AdaptiveAvgPool2d(2), nn.Flatten()])
        self.feature_dim = 4 * before
        self.head = nn.Linear(self.feature_dim, NUM_CLASSES)

    def outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, 10)`` and the features ``(N, D)`` that they come from."""
        features = self.body(inputs)
        return self.head(features), features

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs(inputs)[0]


def base_network() -> DigitNetwork:
    """Return the small network: 23,680 multiplications per image."""
    return DigitNetwork(((8, 2), (16, 2)))


def global_network() -> DigitNetwork:
    """Return the large network: 1,070,336 multiplications per image."""
    return DigitNetwork(((16, 1), (32, 2), (32, 1), (32, 2)))


def digits(seed: int, parts: Mapping[str, int] = PARTS) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images ``(n, 1, 16, 16)`` in ``[0, 1]`` and labels of each part; no image is in two of them.

    Args:
        seed: Decides which image goes where.
        parts: How many images each part has.
    """
    from sklearn.datasets import load_digits

    sizes = list(parts.values())
    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] / 16
    images = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False).clamp(0, 1)
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[: sum(sizes)]
    places = order.split(sizes)
    return {name: (images[each], labels[each]) for name, each in zip(parts, places, strict=True)}


def corrupted(images: Tensor, scenario: Scenario, draw: torch.Generator) -> Tensor:
    """Move, cover and blur images as the scenario wants it, each in its own way; return normalised inputs."""
    count = len(images)
    padded = F.pad(images, (SHIFT,) * 4)
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=draw)
    places = torch.arange(SIZE)
    every = torch.arange(count)[:, None, None]
    moved = padded[every, 0, (places + down)[:, :, None], (places + right)[:, None, :]]
    top, left = torch.randint(SIZE - HOLE + 1, (2, count, 1), generator=draw)
    rows, columns = ((places >= start) & (places < start + HOLE) for start in (top, left))
    moved = moved.masked_fill(rows[:, :, None] & columns[:, None, :], 0.0)
    hopeless = torch.rand(count, generator=draw) < scenario.hopeless
    noise = torch.where(hopeless, HOPELESS_NOISE, NOISE)[:, None, None]
    noisy = (moved - MEAN) / STD + torch.randn(moved.shape, generator=draw) * noise / STD
    return noisy[:, None]


def inputs_of(
    part: tuple[Tensor, Tensor], scenario: Scenario, copies: int, seed: int, weak: bool = False
) -> tuple[Tensor, Tensor]:
    """Corrupt every image of a part ``copies`` times.

    Args:
        part: Images and labels.
        scenario: Which corruptions.
        copies: How many inputs each image gives.
        seed: Of the corruptions.
        weak: Whether most images of the scenario's weak classes are left out.

    Returns:
        Inputs ``(N, 1, 16, 16)`` and labels ``(N,)``.
    """
    draw = torch.Generator().manual_seed(seed)
    images, labels = part
    if weak and scenario.weak:
        few = torch.isin(labels, torch.tensor(scenario.weak))
        kept = ~few | (torch.rand(len(labels), generator=draw) < scenario.kept)
        images, labels = images[kept], labels[kept]
    images, labels = images.repeat(copies, 1, 1, 1), labels.repeat(copies)
    return corrupted(images, scenario, draw), labels


def fit(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    rate: float = 4e-3,
    weight: Tensor | None = None,
    batch: int = 128,
) -> nn.Module:
    """Train with AdamW and one cycle of the learning rate; return the network in evaluation mode.

    Args:
        network: What is trained, in place.
        inputs: Shape ``(N, ...)``.
        labels: Shape ``(N,)``.
        epochs: Passes over all inputs.
        seed: Of the order.
        rate: Largest learning rate.
        weight: Of each input in the loss, shape ``(N,)``; all 1 by default.
        batch: Inputs per step; the last incomplete one of an epoch is left out.
    """
    draw = torch.Generator().manual_seed(seed)
    steps = epochs * max(len(labels) // batch, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=draw)
        for chosen in order.split(batch)[: max(len(labels) // batch, 1)]:
            losses = F.cross_entropy(network(inputs[chosen]), labels[chosen], reduction="none")
            loss = (losses if weight is None else losses * weight[chosen]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def outputs_of(base: DigitNetwork, global_model: nn.Module, inputs: Tensor, labels: Tensor) -> Outputs:
    """Ask both networks about all inputs."""
    found = [(*base.outputs(each), global_model(each)) for each in inputs.split(1000)]
    logits, features, global_logits = (torch.cat(each) for each in zip(*found, strict=True))
    return Outputs(logits, features, global_logits, labels)


def trained_pair(
    scenario: Scenario,
    images: tuple[Tensor, Tensor],
    seed: int,
    *,
    copies: int = COPIES["train"],
    epochs: Mapping[str, int] = EPOCHS,
) -> Pair:
    """Train both networks of a scenario on the same images; the seed decides weights, corruptions and order.

    Args:
        scenario: Which corruptions, and what the large network misses.
        images: The part to train on: images and labels.
        seed: Of everything.
        copies: How many inputs each image gives.
        epochs: Passes over the inputs, of ``base`` and of ``global``.
    """
    torch.manual_seed(seed)
    base, global_model = base_network(), global_network()
    base_data = inputs_of(images, scenario, copies, stream(seed, "train"))
    global_data = inputs_of(images, scenario, copies, stream(seed, "train"), weak=True)
    fit(base, *base_data, epochs=epochs["base"], seed=seed)
    fit(global_model, *global_data, epochs=epochs["global"], seed=seed)
    return Pair(base, global_model, base_data, global_data)


def stream(seed: int, part: str) -> int:
    """Return the seed of the corruptions of a part, another one for each seed and part."""
    return 10 * seed + list(PARTS).index(part) + 1000
