"""Real images that stay in memory, batch after batch, for the studies of this folder."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor

from lightning_efficient.datamodules import TorchvisionImages
from lightning_efficient.datamodules._image_arrays import read_digits, read_torchvision
from lightning_efficient.datamodules._splits import stratified_split

DATA_VARIABLE = "LIGHTNING_EFFICIENT_DATA"


def settle(seed: int) -> None:
    """Make a process that trains quiet, and its run a function of the seed; one thread."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)


def quiet_trainer(epochs: int, device: str, **options: Any) -> Trainer:
    """Return a Trainer that prints, logs and saves nothing."""
    return Trainer(
        max_epochs=epochs,
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,
        **options,
    )


class ImageTask(Protocol):
    """Which images, and how they are drawn; must be hashable."""

    @property
    def data(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def shift(self) -> int: ...
    @property
    def flips(self) -> bool: ...
    @property
    def samples(self) -> int | None: ...


class OnDevice(LightningDataModule):
    """Images that stay on the device; the order and the shifts of an epoch follow from ``(seed, epoch)``."""

    def __init__(self, task: ImageTask, seed: int, device: str, indices: bool = False) -> None:
        super().__init__()
        self.task, self.seed, self.device, self.indices = task, seed, device, indices
        self.num_classes, self.in_chans = 10, task.channels
        self.parts = loaded(task, device)

    def train_dataloader(self) -> Batches:
        return Batches(*self.parts["train"], self.task, self.seed, self.indices)

    def val_dataloader(self) -> InOrder:
        return InOrder(*self.parts["val"])

    def test_dataloader(self) -> InOrder:
        return InOrder(*self.parts["test"])


class InOrder:
    """Batches of 1,000 images as they come; a list would be taken for several loaders."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.batches = list(zip(images.split(1000), labels.split(1000), strict=True))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class Batches:
    """Shuffled batches of shifted and flipped images, with their indices if asked; the last incomplete one left out."""

    def __init__(self, images: Tensor, labels: Tensor, task: ImageTask, seed: int, indices: bool) -> None:
        self.images, self.labels, self.task, self.seed, self.indices = images, labels, task, seed, indices
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels) // self.task.batch

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        draw = torch.Generator(self.images.device).manual_seed(1000 * self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.labels), generator=draw, device=self.images.device)
        for chosen in order.split(self.task.batch)[: len(self)]:
            images = augmented(self.images[chosen], self.task.shift, self.task.flips, draw)
            yield (images, self.labels[chosen], chosen) if self.indices else (images, self.labels[chosen])


def augmented(images: Tensor, shift: int, flips: bool, draw: torch.Generator) -> Tensor:
    """Move each image by up to ``shift`` pixels each way, and mirror half of them."""
    count, _, height, width = images.shape
    device = images.device
    padded = torch.nn.functional.pad(images, (shift, shift, shift, shift))
    down, right = torch.randint(2 * shift + 1, (2, count, 1), generator=draw, device=device)
    rows, columns = torch.arange(height, device=device) + down, torch.arange(width, device=device) + right
    if flips:
        mirrored = torch.rand(count, 1, generator=draw, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    every = torch.arange(count, device=device)[:, None, None]
    # the channels come last where the indices around them are not adjacent
    return padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@cache
def loaded(task: ImageTask, device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Read a task's images, normalise them by the training part, and put them on the device."""
    if task.data == "Digits":
        arrays = read_digits()
    else:
        source = TorchvisionImages(task.data, root=root_of(task.data))
        source.prepare_data()
        arrays = read_torchvision(source)
        if task.samples is not None:
            chosen = stratified_split(arrays["train"].labels, task.samples, 0)[1]
            arrays["train"] = arrays["train"].subset(chosen)
    pixels = {part: torch.from_numpy(each.pixels).permute(0, 3, 1, 2).float() for part, each in arrays.items()}
    mean = pixels["train"].mean((0, 2, 3), keepdim=True)
    std = pixels["train"].std((0, 2, 3), keepdim=True)
    edge = 2 if pixels["train"].shape[-1] == 28 else 0
    return {
        part: (
            torch.nn.functional.pad((images - mean) / std, (edge,) * 4).to(device),
            torch.from_numpy(arrays[part].labels).to(device),
        )
        for part, images in pixels.items()
    }


def root_of(name: str) -> str:
    folder = Path(os.environ.get(DATA_VARIABLE, "data"))
    return str(folder / name if (folder / name / "cifar-10-batches-py").exists() else folder)
