"""Image files in one folder per class."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torchvision.datasets import ImageFolder

from lightning_efficient.datamodules._files import one_line
from lightning_efficient.datamodules._labelled_images import LabelledImages
from lightning_efficient.datamodules.images import ImageDataModule, Split
from lightning_efficient.errors import ConfigurationError, DataNotFoundError


@dataclass(kw_only=True, eq=False, repr=False)
class ImageFolderImages(ImageDataModule):
    """Images in ``root/train/<class>``, ``root/val/<class>`` and ``root/test/<class>``.

    Without ``root/val`` the validation part is cut from the training part; without ``root/test`` the validation
    part is tested. Classes are numbered in alphabetical order. The training augmentation is timm's for ImageNet.

    Args:
        root: Folder that holds ``train``.

    Raises:
        DataNotFoundError: ``root/train`` holds no class folder.
        ConfigurationError: a class folder holds no image, or the parts have different classes.
    """

    root: str = field(kw_only=False)

    @property
    def num_classes(self) -> int:
        """Number of class folders in ``root/train``."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Names of the class folders in ``root/train``, in alphabetical order."""
        return self._classes_of("train")

    def read(self, split: Split) -> LabelledImages | None:
        """List the files of one part; images are decoded when they are drawn."""
        if split != "train" and not self._folder(split).is_dir():
            return self._training_parts()["val"] if split == "test" else None
        self._check_classes(split)
        try:
            pairs = ImageFolder(self._folder(split))
        except FileNotFoundError as error:
            raise ConfigurationError(one_line(error)) from error
        return LabelledImages.all_of(pairs, pairs.targets)

    def _folder(self, split: Split) -> Path:
        return Path(self.root) / split

    def _classes_of(self, split: Split) -> list[str]:
        folder = self._folder(split)
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        if not names:
            raise DataNotFoundError(
                f"'{folder}' holds no class folder: point --data.root at a folder that holds {split}/<class>/<images>"
            )
        return names

    def _check_classes(self, split: Split) -> None:
        expected, found = self.class_names, self._classes_of(split)
        if found != expected:
            different = sorted(set(expected) ^ set(found))
            raise ConfigurationError(
                f"'{self._folder('train')}' and '{self._folder(split)}' hold different classes "
                f"({', '.join(different)} in one only); give every class a folder in both"
            )
