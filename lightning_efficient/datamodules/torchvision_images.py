"""The small image sets that torchvision knows, by name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchvision.datasets import EMNIST, MNIST, VisionDataset

from lightning_efficient.datamodules._files import one_line
from lightning_efficient.datamodules._idx_cache import default_cache_dir, unpacked_root
from lightning_efficient.datamodules._labelled_images import LabelledImages
from lightning_efficient.datamodules._torchvision_sets import IMAGE_SETS, ImageSet
from lightning_efficient.datamodules.images import ImageDataModule, Split
from lightning_efficient.errors import ConfigurationError, DataNotFoundError, did_you_mean

_UNREADABLE = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, EOFError, OSError, pickle.PickleError)
"""What torchvision's readers raise on files that are cut short or are something else."""


@dataclass(kw_only=True, eq=False, repr=False)
class TorchvisionImages(ImageDataModule):
    """An image set by its torchvision name, with a validation part cut from the training part.

    Sets of the MNIST family are also read from their original ``.gz`` files, also where ``root`` cannot be written.

    Args:
        name: ``MNIST``, ``FashionMNIST``, ``KMNIST``, ``EMNIST`` (its balanced split), ``CIFAR10``, ``CIFAR100``,
            ``SVHN`` or ``STL10``.
        root: Folder that holds the data set in torchvision's layout.
        download: Fetch the set into ``root`` if it is not there.
        cache_dir: Where ``.gz`` files are unpacked; ``~/.cache/lightning-efficient`` when not given.

    Raises:
        ConfigurationError: an unknown name, or files that are damaged.
        DataNotFoundError: the set is not in ``root``, from ``setup``.

    Example:
        >>> data = TorchvisionImages("FashionMNIST", in_chans=1)
        >>> data.num_classes, data.input_shape, data.class_names[0]
        (10, (1, 32, 32), 'T-shirt/top')
    """

    name: str = field(kw_only=False)
    root: str = "data"
    download: bool = False
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.name not in IMAGE_SETS:
            raise ConfigurationError(
                f"there is no image set '{self.name}'; choose from {', '.join(IMAGE_SETS)}."
                f"{did_you_mean(self.name, IMAGE_SETS)}"
            )
        self._opened: dict[bool, VisionDataset] = {}
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """Number of classes of the set."""
        return self._known.num_classes

    @property
    def class_names(self) -> list[str]:
        """Name of each class; those of CIFAR100 are read from its files."""
        return list(self._known.class_names or self._open(train=False).classes)

    def native_size(self) -> int:
        """The size of the set's own images, with 28 rounded up to 32."""
        return self._known.size

    def default_augment(self) -> Mapping[str, Any]:
        """Random resized crops, and flips where a mirrored image keeps its meaning."""
        return self._known.augment

    def prepare_data(self) -> None:
        """Download or unpack, once per machine; the Trainer calls it on one process."""
        if not self.download:
            self._readable_root()
            return
        try:
            for selection in (self._known.train, self._known.test):
                self._known.constructor(self.root, download=True, **selection)
        except _UNREADABLE as error:
            message = f"{self.name} could not be downloaded into '{self.root}': {one_line(error)}"
            raise ConfigurationError(message) from error

    def read(self, split: Split) -> LabelledImages | None:
        """Read the training or test part; the validation part is cut from the former."""
        if split == "val":
            return None
        pairs: Any = self._open(train=split == "train")
        return LabelledImages.all_of(pairs, pairs.labels if hasattr(pairs, "labels") else pairs.targets)

    @property
    def _known(self) -> ImageSet:
        return IMAGE_SETS[self.name]

    def _readable_root(self) -> Path:
        known, root = self._known, Path(self.root)
        if not issubclass(known.constructor, MNIST) or known.constructor is EMNIST:
            return root
        cache = Path(self.cache_dir) if self.cache_dir else default_cache_dir()
        return unpacked_root(root, self.name, known.constructor.resources, cache)

    def _open(self, train: bool) -> VisionDataset:
        if train not in self._opened:
            self._opened[train] = self._construct(self._known.train if train else self._known.test)
        return self._opened[train]

    def _construct(self, selection: Mapping[str, Any]) -> Any:
        root = self._readable_root()
        if not (root / self._known.path).exists():
            raise DataNotFoundError(
                f"{self.name} is not in '{self.root}': fetch it with --data.download true, "
                "or point --data.root at a folder that holds it"
            )
        try:
            return self._known.constructor(root, **selection)
        except _UNREADABLE as error:
            raise ConfigurationError(
                f"{self.name} in '{root / self._known.path}' is incomplete or damaged ({one_line(error)}); "
                "delete it and fetch it again with --data.download true"
            ) from error
