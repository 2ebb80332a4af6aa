"""Handwritten digits that scikit-learn ships: real data without a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lightning_efficient.datamodules._labelled_images import LabelledImages
from lightning_efficient.datamodules._splits import stratified_split
from lightning_efficient.datamodules.images import ImageDataModule, Split

HELD_OUT = 300
"""Images in the validation part, and again in the test part."""

SPLIT_SEED = 0


@dataclass(kw_only=True, eq=False, repr=False)
class Digits(ImageDataModule):
    """1,797 real handwritten digits of 8x8 pixels, enlarged: 1,197 to train, 300 to validate, 300 to test.

    The split is always the same, so figures of different runs can be compared; ``val_fraction`` and ``split_seed``
    have no effect. Images are moved and stretched a little in training, and never flipped.

    Example:
        >>> data = Digits(image_size=16, in_chans=1)
        >>> data.setup("fit")
        >>> image, label = data.datasets["val"][0]
        >>> data.num_classes, tuple(image.shape), len(data.datasets["train"])
        (10, (1, 16, 16), 1197)

    Reference:
        Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998.
    """

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    @property
    def class_names(self) -> list[str]:
        """``"0"`` to ``"9"``."""
        return [str(digit) for digit in range(10)]

    def native_size(self) -> int:
        """Four times the 8 pixels of the originals, so that common backbones fit."""
        return 32

    def default_augment(self) -> Mapping[str, Any]:
        """Small shifts and stretches."""
        return {"scale": (0.7, 1.0), "ratio": (0.9, 1.1), "hflip": 0.0, "color_jitter": 0.0}

    def read(self, split: Split) -> LabelledImages:
        """Read one part; nothing to fetch."""
        images = _enlarged_digits(self.input_shape[-1])
        rest, test = stratified_split(images.labels, HELD_OUT, SPLIT_SEED)
        train, val = stratified_split(images.labels[rest], HELD_OUT, SPLIT_SEED)
        return images.subset({"train": rest[train], "val": rest[val], "test": test}[split])


def _enlarged_digits(size: int) -> LabelledImages:
    # it loads pandas, which a command line that reads no digits should not wait for
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The originals count 0 to 16 dark dots per pixel.
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in pixels]
    return LabelledImages.all_of(list(zip(images, digits.target.tolist(), strict=True)), digits.target)
