"""Images read pixel by pixel or row by row, optionally in a permuted order or with noise after them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_efficient.datamodules._image_arrays import (
    DIGITS,
    FORMATS,
    ImageArrays,
    class_names,
    read_digits,
    read_torchvision,
)
from lightning_efficient.datamodules._keyed_draws import STREAMS, add_normal
from lightning_efficient.datamodules._resumable import Split
from lightning_efficient.datamodules._torchvision_sets import IMAGE_SETS
from lightning_efficient.datamodules.sequences import LabelledSequences, SequenceDataModule
from lightning_efficient.datamodules.torchvision_images import TorchvisionImages
from lightning_efficient.errors import ConfigurationError, did_you_mean

STATISTICS: Mapping[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("MNIST", "pixels"): ((0.1307,), (0.3081,)),
    ("MNIST", "rows"): ((0.1307,), (0.3081,)),
    ("CIFAR10", "pixels"): ((0.5,), (0.5,)),
    ("CIFAR10", "rows"): ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation, of values in [0, 1], that sequence benchmarks use; other sets use their own."""


@dataclass(kw_only=True, eq=False, repr=False)
class SequentialImages(SequenceDataModule):
    """Images as sequences: one pixel or one row per time step, from the top left to the bottom right.

    Pixels are normalised: MNIST by 0.1307 and 0.3081, CIFAR10 by 0.5 and 0.5 when read by pixels and by its mean and
    standard deviation per channel when read by rows, other sets by those of their own training part, per channel.
    Images are never augmented. The split is that of ``Digits`` and ``TorchvisionImages``: with equal ``val_fraction``
    and ``split_seed``, the same images train, validate and test.

    Args:
        name: ``Digits``, which needs no files, or a set that ``TorchvisionImages`` knows, such as ``MNIST``.
        root: Folder that holds the set in torchvision's layout; unused by ``Digits``.
        download: Fetch the set into ``root`` if it is not there.
        cache_dir: Where ``.gz`` files are unpacked; ``~/.cache/lightning-efficient`` when not given.
        steps: ``pixels``, such as 784 steps of 1 (MNIST) or 1,024 steps of 3 (CIFAR10), or ``rows``, such as 28 steps
            of 28 or 32 steps of 96.
        permute: Whether to read the steps in a random order, the same for all images of all parts.
        permutation_seed: Seed of that order.
        pad_to: Time steps of a sequence; those after the image are noise from N(0, 1), which belongs to the image and
            is the same in every epoch.
        noise_seed: Seed of the noise.
        val_fraction: Part of the training images held out for validation, stratified by class; ``Digits`` has a
            validation part of its own.

    Raises:
        DataNotFoundError: the set is not in ``root``, from ``setup``.
        ConfigurationError: an option has a value that cannot work, or files are damaged.

    Example:
        >>> data = SequentialImages("Digits", pad_to=100)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.inputs.shape, batch.target.shape
        (torch.Size([64, 100, 1]), torch.Size([64]))

    Reference:
        Le, Jaitly, Hinton. A Simple Way to Initialize Recurrent Networks of Rectified Linear Units. arXiv:1504.00941,
        2015, for pixels and permuted pixels.
    """

    contents: ClassVar[str] = "images"

    name: str = field(default=DIGITS, kw_only=False)
    root: str = "data"
    download: bool = False
    cache_dir: str | None = None
    steps: Literal["pixels", "rows"] = "pixels"
    permute: bool = False
    permutation_seed: int = 0
    pad_to: int | None = None
    noise_seed: int = 0
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in FORMATS:
            raise ConfigurationError(
                f"there is no image set '{self.name}'; choose from {', '.join(FORMATS)}."
                f"{did_you_mean(self.name, FORMATS)}"
            )
        if self.steps not in ("pixels", "rows"):
            raise ConfigurationError(f"steps is '{self.steps}'; choose 'pixels' or 'rows'")
        if not 0 < self.val_fraction < 1:
            raise ConfigurationError(f"val_fraction is {self.val_fraction}; it must lie in (0, 1)")
        self._check_at_least(0, "permutation_seed")
        if self.pad_to is not None and self.pad_to < self.image_steps:
            raise ConfigurationError(
                f"pad_to is {self.pad_to}, but an image of {self.name} has {self.image_steps} {self.steps}; "
                "give at least as many steps"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes of the set."""
        return 10 if self.name == DIGITS else IMAGE_SETS[self.name].num_classes

    @property
    def class_names(self) -> list[str]:
        """Name of each class; those of CIFAR100 are read from its files."""
        return list(class_names(self.name)) or self._source().class_names

    @property
    def image_steps(self) -> int:
        """Time steps of the image itself, before any noise."""
        side = FORMATS[self.name].side
        return side * side if self.steps == "pixels" else side

    @property
    def input_shape(self) -> tuple[int, int]:
        """Time steps, noise included, and pixel values per step."""
        layout = FORMATS[self.name]
        features = layout.channels * (1 if self.steps == "pixels" else layout.side)
        return self.pad_to or self.image_steps, features

    def prepare_data(self) -> None:
        """Download or unpack, once per machine; the Trainer calls it on one process."""
        if self.name != DIGITS:
            self._source().prepare_data()

    def read(self) -> dict[Split, LabelledSequences]:
        """Read the images, and say how they become sequences."""
        parts = read_digits() if self.name == DIGITS else read_torchvision(self._source())
        mean, std = self._statistics(parts["train"])
        order = None
        if self.permute:
            order = torch.from_numpy(np.random.default_rng(self.permutation_seed).permutation(self.image_steps))
        sequences: dict[Split, LabelledSequences] = {}
        for split, images in parts.items():
            prepare = PixelsToSteps(mean, std, self.input_shape, self.image_steps, order, self.noise_seed, split)
            sequences[split] = LabelledSequences(
                torch.from_numpy(images.pixels), torch.from_numpy(images.labels), prepare
            )
        return sequences

    def _source(self) -> TorchvisionImages:
        return TorchvisionImages(
            self.name,
            root=self.root,
            download=self.download,
            cache_dir=self.cache_dir,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
        )

    def _statistics(self, train: ImageArrays) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation per channel, in units of a stored pixel."""
        white = FORMATS[self.name].white
        known = STATISTICS.get((self.name, self.steps))
        if known:
            mean, std = (torch.tensor(each) * white for each in known)
            return mean, std
        # Counting values gives exact figures without a copy of the images in floating point.
        counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(train.pixels, -1, 0)])
        share, values = counts / counts.sum(1, keepdims=True), np.arange(counts.shape[1])
        mean = share @ values
        variance = share @ values**2 - mean**2
        return torch.tensor(mean, dtype=torch.float32), torch.tensor(np.sqrt(variance), dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class PixelsToSteps:
    """Stored images ``(N, H, W, C)`` to normalised sequences ``(N, T, F)``, float32.

    Attributes:
        mean: Per channel, in units of a stored pixel.
        std: Per channel, in units of a stored pixel.
        shape: ``(T, F)``.
        image_steps: How many of the steps are the image.
        order: Which step comes when, if not in order.
        seed: Of the noise after the image.
        split: Which part the images are from.
    """

    mean: Tensor
    std: Tensor
    shape: tuple[int, int]
    image_steps: int
    order: Tensor | None
    seed: int
    split: Split

    def __call__(self, samples: Tensor, index: Tensor) -> Tensor:
        """Return inputs of shape ``(N, T, F)``."""
        steps, features = self.shape
        image = ((samples - self.mean) / self.std).reshape(len(samples), self.image_steps, features)
        if self.order is not None:
            image = image[:, self.order]
        if steps == self.image_steps:
            return image
        sequence = image.new_zeros(len(samples), steps, features)
        sequence[:, : self.image_steps] = image
        add_normal(sequence[:, self.image_steps :], 1.0, self.seed, STREAMS[self.split], index.tolist())
        return sequence
