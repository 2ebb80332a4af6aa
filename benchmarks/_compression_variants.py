"""The variants of ``compression.py``: one timm network, and what compression makes of it."""

from __future__ import annotations

import io
import statistics
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from harness import paired, ratio
from images import OnDevice
from torch import Tensor, nn

from lightning_efficient.modules.image_classifier import ImageClassifier
from lightning_efficient.nn.quantization import compile_quantized
from lightning_efficient.profiling import count_macs

FLOAT = "float32"
LONGER = "float32, as long"
INTERPOLATED = "SpatialInterpolation"
CHANNELS, RESHAPED, WEIGHTS = "channels pruned", "that shape from scratch", "weights pruned"
WEIGHT_ONLY, STATIC, AWARE = "int8 weights", "int8 static", "int8 aware"
CHANNELS_STATIC = "channels pruned, int8 static"
HALF = "bfloat16"
VARIANTS = (
    FLOAT, LONGER, HALF, WEIGHT_ONLY, STATIC, AWARE, CHANNELS, RESHAPED, CHANNELS_STATIC, WEIGHTS, INTERPOLATED
)  # fmt: skip
CONTROLS = {RESHAPED: (LONGER,), CHANNELS: (LONGER, RESHAPED)}
"""What a variant is compared with beside ``LONGER``."""
FAKE = (STATIC, AWARE, CHANNELS_STATIC)
"""Integers only once compiled: run eagerly, these graphs go through floats and are slow."""
TIMED = (FLOAT, HALF, WEIGHT_ONLY, STATIC, CHANNELS, CHANNELS_STATIC, WEIGHTS, INTERPOLATED)
"""Those that differ in shape or arithmetic; the others are as fast as one of these."""
AS_FAST_AS = {LONGER: FLOAT, AWARE: STATIC, RESHAPED: CHANNELS}
BATCHES = {1: 10, 64: 1}
"""Batch sizes of the latencies, with how many forward passes make one timed call."""


@dataclass(frozen=True)
class Task:
    """A data set, the side of its images as the networks see them, and how long to train."""

    data: str
    channels: int
    side: int
    epochs: int
    more_epochs: int
    batch: int
    shift: int
    flips: bool
    samples: int | None = None


class Images(OnDevice):
    """Images of a task, scaled to its side."""

    def __init__(self, task: Task, seed: int, device: str) -> None:
        super().__init__(task, seed, device)
        self.parts = {part: (scaled(images, task.side), labels) for part, (images, labels) in self.parts.items()}


def scaled(images: Tensor, side: int) -> Tensor:
    """Scale images to a side, where they have another."""
    if images.shape[-1] == side:
        return images
    return nn.functional.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def classifier(backbone: str, task: Task, surgery: list[Any] | None = None, **options: Any) -> ImageClassifier:
    """Return the module around a timm network, of which the data are normalised already."""
    module = ImageClassifier(backbone, num_classes=10, in_chans=task.channels, surgery=surgery, **options)
    module.data_config = {}
    return module


def size_of(network: nn.Module) -> dict[str, int]:
    """Return the bytes of a state dict as ``torch.save`` writes it, and those left after compression."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return {"bytes": file.tell(), "compressed_bytes": len(zlib.compress(file.getvalue(), 6))}


def size_of_file(file: Path) -> dict[str, int]:
    """Return the bytes of a file, and those left after compression."""
    content = file.read_bytes()
    return {"bytes": len(content), "compressed_bytes": len(zlib.compress(content, 6))}


def macs_of(network: nn.Module, task: Task) -> int:
    """Count the MACs of one image."""
    return count_macs(network, images(task, 1)).macs


@torch.inference_mode()
def accuracy(network: Callable[[Tensor], Tensor], data: OnDevice, part: str = "test", dtype: Any = None) -> float:
    """Return the share of right answers on a part."""
    loader = data.test_dataloader() if part == "test" else data.val_dataloader()
    right = total = 0
    for batch, labels in loader:
        right += int((network(batch.to(dtype or batch.dtype)).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def latencies(networks: Mapping[str, nn.Module], task: Task, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Time the forward passes of variants in turns, one thread, evaluation mode, channels first.

    Args:
        networks: By variant; ``FLOAT`` among them.
        task: Tells the images.
        rounds: Timed calls of each.
        compiled: Whether to compile each network with inductor first, its weights frozen, which is where int8 runs as
            int8.

    Returns:
        By name and batch size ``ms`` (median) and, as ``median``, ``low`` and ``high``, how many times faster than
        ``FLOAT`` run in the same way, round by round. By processor time, so that what others do counts less.
    """
    chosen = {name: network for name, network in networks.items() if compiled or name not in FAKE}
    found: dict[str, Any] = {name: {} for name in chosen}
    for batch, repeats in BATCHES.items():
        calls = {}
        for name, network in chosen.items():
            inputs = images(task, batch).to(torch.bfloat16 if name == HALF else torch.float32)
            calls[name] = partial(_forward, _compiled(network, inputs) if compiled else network, inputs, repeats)
        times = paired(calls, rounds, warmup=3, clock=process_time)
        for name in chosen:
            milliseconds = 1000 * statistics.median(times[name]) / repeats
            found[name][str(batch)] = {"ms": milliseconds, **ratio(times, FLOAT, name)}
    return found


def _compiled(network: nn.Module, inputs: Tensor) -> Callable[[Tensor], Any]:
    """Compile a network for a batch size, as a graph of its own: torch keeps eight codes of a class and no more."""
    return compile_quantized(torch.export.export(network, (inputs,)).module())


@torch.inference_mode()
def _forward(network: Callable[[Tensor], Tensor], inputs: Tensor, repeats: int) -> None:
    for _ in range(repeats):
        network(inputs)


def images(task: Task, batch: int) -> Tensor:
    """Return random images of a task's shape, the same each time."""
    return torch.randn(batch, task.channels, task.side, task.side, generator=torch.Generator().manual_seed(0))
