"""The networks of ``blocks_images.py``: one base, what surgery makes of it, and the base with fewer channels."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from time import perf_counter, process_time
from typing import Any

import torch
from harness import paired, ratio
from torch import Tensor, nn

from lightning_efficient.modules.image_classifier import ImageClassifier
from lightning_efficient.profiling import count_macs

BASE = "base"
BATCHES = {1: 10, 64: 1}
"""Batch sizes of the latencies, with how many forward passes make one timed call."""


@dataclass(frozen=True)
class Task:
    """A data set, a base network of the CIFAR family, and how long to train."""

    data: str
    channels: int
    side: int
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    epochs: int
    batch: int
    shift: int
    flips: bool
    samples: int | None = None


@dataclass(frozen=True)
class Variant:
    """How a network is made from the base: by surgery, or with the channels that leave it another one's MACs.

    Attributes:
        surgery: Policies, as ``model.surgery`` takes them.
        narrowed_to: Name of the network whose MACs the narrow base is to have.
        controls: Names of the networks that it is compared with, beside the base.
        group: Which of the pictures' colours it has.
    """

    surgery: tuple[Mapping[str, Any], ...] = ()
    narrowed_to: str | None = None
    controls: tuple[str, ...] = ()
    group: str = BASE


def _condensed(policy: str, *controls: str, group: str = "condensed", **options: Any) -> Variant:
    # layers after the first three stages, and one block in each of the four
    surgery = {"class_path": policy, "init_args": {"preset": "cifar", **options}}
    return Variant((surgery,), controls=(*controls, "narrow as Global"), group=group)


_global = partial(_condensed, "GlobalLayer", "condensed, depthwise", group="Global")


VARIANTS: Mapping[str, Variant] = {
    BASE: Variant(),
    "Global, K=1": _global(steps=1),
    "Global, K=1, constant D": _global(steps=1, diffusion=1.0),
    "Global, K=4": _global(steps=4),
    "Global, K=4, constant D": _global(steps=4, diffusion=1.0),
    "condensed, depthwise": _condensed("DepthwiseLayer", "condensed"),
    "condensed": _condensed("Condense"),
    "narrow as Global": Variant(narrowed_to="Global, K=1", group="narrow"),
    "interpolated": Variant(
        ({"class_path": "SpatialInterpolation"},),
        controls=("interpolated, no cheap branch", "narrow as interpolated"),
        group="interpolated",
    ),
    "interpolated, no cheap branch": Variant(
        ({"class_path": "SpatialInterpolation", "init_args": {"cheap": False}},),
        controls=("narrow as interpolated",),
        group="interpolated",
    ),
    "narrow as interpolated": Variant(narrowed_to="interpolated", group="narrow"),
}
"""Every network of the study; each condensed one keeps the first block of every stage."""


def classifier(task: Task, name: str, widths: Sequence[int], **options: Any) -> ImageClassifier:
    """Build a variant of the base with these channels, untrained, in channels-last order."""
    return ImageClassifier(
        "cifar_resnet10",
        num_classes=10,
        in_chans=task.channels,
        backbone_kwargs={"layers": tuple(task.layers), "channels": tuple(widths)},
        surgery=[dict(policy) for policy in VARIANTS[name].surgery],
        channels_last=True,
        **options,
    )


@cache
def widths_of(task: Task, name: str) -> tuple[int, ...]:
    """Return the channels of each stage: the base's, or even numbers in its proportions for another one's MACs."""
    other = VARIANTS[name].narrowed_to
    if other is None:
        return task.widths
    wanted = macs_of(task, other, widths_of(task, other))
    shrunk = dict.fromkeys(
        tuple(max(2, 2 * round(each * step / 200)) for each in task.widths) for step in range(20, 101)
    )
    widths = list(shrunk)  # upwards, and so are their MACs
    after = bisect_left(widths, wanted, key=lambda each: macs_of(task, BASE, each))
    return min(widths[max(after - 1, 0) : after + 1], key=lambda each: abs(macs_of(task, BASE, each) - wanted))


@cache
def macs_of(task: Task, name: str, widths: tuple[int, ...]) -> int:
    """Count the MACs of one image, which leaves the solver of the Global layers out."""
    return count_macs(classifier(task, name, widths).backbone, _images(task, 1)).macs


def footprint(task: Task, name: str) -> dict[str, Any]:
    """Return the channels, parameters and MACs of a variant.

    ``solver_macs`` are those that no counter sees: six products and six sums per element and step of a Global layer.
    """
    widths = widths_of(task, name)
    network = classifier(task, name, widths).backbone
    solver: list[int] = []
    for module in network.modules():
        if type(module).__name__ == "GlobalLayer":
            module.register_forward_hook(partial(_solver, solver))
    with torch.inference_mode():
        network.eval()(_images(task, 1))
    return {
        "widths": list(widths),
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "macs": macs_of(task, name, widths),
        "solver_macs": sum(solver),
    }


def _solver(found: list[int], layer: Any, inputs: Any, output: Tensor) -> None:
    found.append(6 * layer.steps * output[0].numel())


def latencies(task: Task, names: Sequence[str], device: str, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Time the forward passes of variants in turns, one thread, evaluation mode, as a user would run them.

    Interpolated blocks fold the normalisation of their cheap branch then, and Global layers theirs; the others fold
    nothing. On the CPU processor time counts, so that what others do counts less.

    Returns:
        By name and batch size: ``ms`` (median) and, as ``median``, ``low`` and ``high``, how many times faster than the
        base, round by round.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    every = dict.fromkeys((BASE, *names))
    networks = {name: classifier(task, name, widths_of(task, name)).backbone.eval().to(device) for name in every}
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in every}
    for batch, repeats in BATCHES.items():
        images = _images(task, batch).to(device, memory_format=torch.channels_last)
        calls = {name: partial(_forward, network, images, repeats) for name, network in networks.items()}
        times = paired(calls, rounds, warmup=3, clock=process_time if device == "cpu" else perf_counter)
        for name in every:
            milliseconds = 1000 * statistics.median(times[name]) / repeats
            found[name][str(batch)] = {"ms": milliseconds, **ratio(times, BASE, name)}
    torch.set_num_threads(threads)
    return found


@torch.inference_mode()
def _forward(network: nn.Module, images: Tensor, repeats: int) -> None:
    for _ in range(repeats):
        network(images)
    if images.is_cuda:
        torch.cuda.synchronize()


def _images(task: Task, batch: int) -> Tensor:
    return torch.randn(batch, task.channels, task.side, task.side, generator=torch.Generator().manual_seed(0))
