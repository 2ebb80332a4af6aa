"""Images as arrays of bytes with their labels, and what is known of them before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_efficient.datamodules._resumable import Split
from lightning_efficient.datamodules._splits import cut_by_class, stratified_split
from lightning_efficient.datamodules._torchvision_sets import IMAGE_SETS
from lightning_efficient.datamodules.digits import HELD_OUT, SPLIT_SEED
from lightning_efficient.datamodules.torchvision_images import TorchvisionImages


@dataclass(frozen=True)
class Format:
    """Size of a set's own images, and the largest value of a pixel."""

    side: int
    channels: int
    white: float = 255.0


DIGITS = "Digits"

FORMATS: Mapping[str, Format] = {
    DIGITS: Format(8, 1, 16.0),
    "MNIST": Format(28, 1),
    "FashionMNIST": Format(28, 1),
    "KMNIST": Format(28, 1),
    "EMNIST": Format(28, 1),
    "CIFAR10": Format(32, 3),
    "CIFAR100": Format(32, 3),
    "SVHN": Format(32, 3),
    "STL10": Format(96, 3),
}
"""Every set that can be read: the embedded digits, and those that torchvision knows."""


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """One part of a set: ``pixels`` of shape ``(N, H, W, C)``, uint8, and ``labels`` of shape ``(N,)``, int64."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def subset(self, chosen: NDArray[np.int64]) -> ImageArrays:
        """Keep the images at these positions."""
        return ImageArrays(self.pixels[chosen], self.labels[chosen])


def read_digits() -> dict[Split, ImageArrays]:
    """Read scikit-learn's digits, 0 to 16 per pixel, in the same split as ``Digits``."""
    # it loads pandas, which a command line that reads no digits should not wait for
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = ImageArrays(digits.images[..., None].astype(np.uint8), digits.target.astype(np.int64))
    rest, test = stratified_split(images.labels, HELD_OUT, SPLIT_SEED)
    train, val = stratified_split(images.labels[rest], HELD_OUT, SPLIT_SEED)
    return {"train": images.subset(rest[train]), "val": images.subset(rest[val]), "test": images.subset(test)}


def read_torchvision(source: TorchvisionImages) -> dict[Split, ImageArrays]:
    """Read a set by its name, in the same split as the data module of images."""
    whole, test = (_arrays(source.read(split), source.name) for split in ("train", "test"))
    kept, held_out = cut_by_class(whole.labels, source.val_fraction, source.split_seed, source.contents)
    return {"train": whole.subset(kept), "val": whole.subset(held_out), "test": test}


def class_names(name: str) -> tuple[str, ...]:
    """Return the names of the classes as far as they are known without reading; CIFAR100 keeps them in its files."""
    return tuple("0123456789") if name == DIGITS else IMAGE_SETS[name].class_names


def _arrays(images: Any, name: str) -> ImageArrays:
    pixels = np.asarray(images.pairs.data)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    elif pixels.shape[1] == FORMATS[name].channels:  # SVHN and STL10 keep channels first
        pixels = pixels.transpose(0, 2, 3, 1)
    return ImageArrays(pixels, images.labels)
