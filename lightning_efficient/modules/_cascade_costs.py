"""What a cascade costs: MACs of each stage, and measured time along its thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from lightning_efficient.functional.routing import QueryScore
from lightning_efficient.nn.early_exits import EarlyExitNetwork
from lightning_efficient.nn.model_cascade import ModelCascade
from lightning_efficient.profiling import count_macs, undisturbed
from lightning_efficient.profiling.in_turns import time_in_turns

CascadeNetwork = EarlyExitNetwork | ModelCascade

ROUNDS = 15


class UpTo(nn.Module):
    """The part of a cascade that an answer of one stage needs."""

    def __init__(self, network: CascadeNetwork, stage: int) -> None:
        super().__init__()
        self.network, self.stage = network, stage

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the stage's class scores."""
        return self.network.up_to(inputs, self.stage)


class LastAlone(nn.Module):
    """The last stage of a cascade without the others."""

    def __init__(self, network: CascadeNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Return its class scores."""
        return self.network.last(inputs)


@dataclass(frozen=True)
class CascadeTimes:
    """Median latencies, milliseconds of a whole call.

    Attributes:
        single: Of one input that each stage answers, and last of the last stage without the others.
        batch: Of a batch of which each stage answers every row, and last of the last stage without the others.
        points: Of a batch at each point of the path.
        batch_size: Of that batch.
    """

    single: tuple[float, ...]
    batch: tuple[float, ...]
    points: tuple[float, ...]
    batch_size: int


def count_stages(network: CascadeNetwork, example: Tensor) -> tuple[float, ...]:
    """Return the MACs of an answer of each stage, those before it included; stage numbers where nothing counts."""
    macs = tuple(float(count_macs(UpTo(network, stage), example[:1]).macs) for stage in range(network.stages))
    return macs if macs[-1] else tuple(float(stage + 1) for stage in range(network.stages))


def count_last(network: CascadeNetwork, example: Tensor) -> float:
    """Return the MACs of the last stage without the others."""
    return float(count_macs(LastAlone(network), example[:1]).macs)


@torch.no_grad()
def time_cascade(
    network: CascadeNetwork, batch: Tensor, points: Sequence[Sequence[float]], score: QueryScore
) -> CascadeTimes:
    """Measure answers of real inputs, in turns.

    Args:
        network: In any mode; it comes back as it was.
        batch: Inputs, ``(N, ...)``.
        points: Thresholds of each point.
        score: How unsure a stage is.
    """
    fixed = [[*[-torch.inf] * stage, *[torch.inf] * (network.stages - 1 - stage)] for stage in range(network.stages)]
    calls: dict[str, Callable[[], object]] = {}
    for kind, inputs in (("single", batch[:1]), ("batch", batch)):
        for stage, limits in enumerate(fixed):
            calls[f"{kind} {stage}"] = partial(network.route, inputs, limits, score)
        calls[f"{kind} {network.stages}"] = partial(network.last, inputs)
    for number, thresholds in enumerate(points):
        calls[f"point {number}"] = partial(network.route, batch, thresholds, score)
    with undisturbed(network):
        network.eval()
        seconds = time_in_turns(calls, rounds=ROUNDS, device=batch.device)
    times = {name: 1000 * median(values) for name, values in seconds.items()}

    def of(kind: str, count: int) -> tuple[float, ...]:
        return tuple(times[f"{kind} {number}"] for number in range(count))

    return CascadeTimes(
        of("single", network.stages + 1), of("batch", network.stages + 1), of("point", len(points)), len(batch)
    )
