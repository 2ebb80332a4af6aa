"""Labelled images, and their augmentation with randomness that belongs to the sample alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lightning_efficient.rng import rng_untouched


@dataclass(frozen=True)
class LabelledImages:
    """A choice of samples from a set of ``(PIL image, label)`` pairs.

    Attributes:
        pairs: Anything with ``pairs[i] -> (image, label)``, such as a torchvision data set.
        labels: Class of every pair, shape ``(N,)``, int64: known without decoding an image.
        positions: Which pairs belong to the choice, int64.
    """

    pairs: Any
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]

    @classmethod
    def all_of(cls, pairs: Any, labels: Sequence[int] | NDArray[np.int64]) -> LabelledImages:
        """Choose every pair."""
        return cls(pairs, np.asarray(labels, dtype=np.int64), np.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def chosen_labels(self) -> NDArray[np.int64]:
        """Class of each chosen sample, shape ``(len(self),)``."""
        return self.labels[self.positions]

    def subset(self, chosen: NDArray[np.int64]) -> LabelledImages:
        """Choose further: ``chosen`` counts within this choice."""
        return LabelledImages(self.pairs, self.labels, self.positions[chosen])

    def identity(self, most: int = 32) -> Iterator[bytes]:
        """Yield what tells these samples from others wherever they are kept, without reading them all.

        Labels, positions, the names of files below their root where there are files, and at most ``most`` images
        (2 or more), evenly spaced, the first and the last among them.
        """
        yield self.chosen_labels.tobytes()
        yield self.positions.tobytes()
        files = getattr(self.pairs, "samples", None)
        if files is not None:
            root = str(self.pairs.root)
            yield "\n".join(str(files[position][0]).removeprefix(root) for position in self.positions).encode()
        for place in np.unique(np.linspace(0, len(self) - 1, most).astype(np.int64)):
            image = self.pairs[int(self.positions[place])][0]
            yield f"{image.mode} {image.size}".encode()
            yield image.tobytes()


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images as tensors, for a data loader.

    Args:
        images: The samples.
        transform: PIL image to float32 tensor of shape ``(C, H, W)``.
        mode: PIL mode that images are converted to first, ``"RGB"`` or ``"L"``.
    """

    def __init__(self, images: LabelledImages, transform: Callable[[Image.Image], Tensor], mode: str) -> None:
        self.images = images
        self.transform = transform
        self.mode = mode

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        position = int(self.images.positions[index])
        image = self.images.pairs[position][0]
        if image.mode != self.mode:
            image = image.convert(self.mode)
        return self.transform(image), int(self.images.labels[position])


class AugmentedImages(ImageDataset):
    """Images under a random transform, addressed by the keys of ``ShuffledSampler`` or by plain indices.

    The key seeds the transform, and the global random states are left as they were: loading data never disturbs
    dropout, and a resumed run sees the same augmented images.
    """

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[int]) -> list[tuple[Tensor, int]]:
        """Return several samples; torch's loader calls this, so the random states are saved once per batch."""
        with rng_untouched(cuda=False):  # transforms run on the CPU
            return [self._seeded(key) for key in keys]

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[index] for index in range(len(self)))

    def _seeded(self, key: int) -> tuple[Tensor, int]:
        random.seed(key)
        np.random.seed(random.getrandbits(32))
        torch.default_generator.manual_seed(random.getrandbits(63))
        return super().__getitem__(key % len(self))
