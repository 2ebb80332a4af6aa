"""What every image data module shares: options, splits and transforms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_efficient.datamodules._labelled_images import AugmentedImages, ImageDataset, LabelledImages
from lightning_efficient.datamodules._resumable import Split
from lightning_efficient.datamodules._sample_keys import KeyedDataModule, sha256_of
from lightning_efficient.datamodules._splits import cut_by_class, stratified_split
from lightning_efficient.datamodules._transforms import Preparation, Transform, merged_policy
from lightning_efficient.errors import ConfigurationError


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(KeyedDataModule):
    """Base of the image data modules; samples are ``(float32 image of shape (C, H, W), int label)``.

    A subclass says what its data are (``num_classes``, ``class_names``, ``read``); this class splits, augments and
    normalises them. Training resumes in the middle of an epoch with the very images that an uninterrupted run would
    have seen, and validation and test count every sample exactly once on any number of processes.

    Args:
        image_size: Height and width of the images in pixels; when not given, what suits the data set.
        in_chans: 3 for colour or 1 for grey images; images of the other kind are converted.
        val_fraction: Part of the training images held out for validation, stratified by class; unused by data that
            bring a validation part.
        split_seed: Seed of that choice. Global seeds do not change it.
        train_samples: Train on that many images only, stratified by class, for quick studies.
        augment: Training augmentation: the data set's own (true), none (false), or changes to its own in the words
            of ``timm.data.create_transform``, such as ``{auto_augment: rand-m9-n2, re_prob: 0.25}``.
        crop_pct: Part of the resized image that evaluation keeps, as in timm.
        mean: Normalisation per channel; when not given, the model's ``data_config``, else ImageNet's.
        std: Normalisation per channel; when not given, the model's ``data_config``, else ImageNet's.
        interpolation: Such as ``bicubic``; when not given, the model's ``data_config``, else ``bilinear``.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    contents: ClassVar[str] = "images"

    image_size: int | None = None
    in_chans: int = 3
    val_fraction: float = 0.1
    split_seed: int = 0
    train_samples: int | None = None
    augment: bool | dict[str, Any] = True
    crop_pct: float = 1.0
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "image_size", "train_samples")
        if self.in_chans not in (1, 3):
            raise ConfigurationError(f"in_chans is {self.in_chans}; images have 1 (grey) or 3 (colour) channels")
        if not 0 < self.val_fraction < 1:
            raise ConfigurationError(f"val_fraction is {self.val_fraction}; it must lie in (0, 1)")
        if not 0 < self.crop_pct <= 1:
            raise ConfigurationError(f"crop_pct is {self.crop_pct}; it must lie in (0, 1]")
        self._parts: dict[Split, LabelledImages] = {}
        self._transforms()

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes; known before the data are read, so that a model can be built from it."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of each class, in the order of the labels."""

    @abstractmethod
    def read(self, split: Split) -> LabelledImages | None:
        """Read one part of the data; ``None`` for a validation part that is to be cut from the training part.

        Raises:
            DataNotFoundError: the files are not there.
        """

    def native_size(self) -> int | None:
        """Height and width that suit the data set, or ``None`` to follow the model's ``data_config``."""
        return None

    def default_augment(self) -> Mapping[str, Any]:
        """Training augmentation of the data set in timm's words; timm's own defaults unless a subclass knows better."""
        return {}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one sample."""
        configured = self._data_config().get("input_size", (3, 224, 224))[-1]
        size = self.image_size or self.native_size() or configured
        return self.in_chans, size, size

    @property
    def augments_training(self) -> bool:
        """Whether training images are changed at random; without, they are prepared as in evaluation."""
        return self._policy() is not None

    def train_fingerprint(self) -> str:
        """Return the SHA-256 of all that decides which training image a key stands for, after ``setup("fit")``.

        Of the images themselves it sees labels, file names and up to 32 images, so it costs no pass over the data. It
        depends on no path, seed or process. The seed of the shuffling has no part in it: a key holds all the
        randomness of its augmentation.

        Raises:
            ConfigurationError: the training images are not loaded.
        """
        train: ImageDataset = self._train_samples()
        policy = self._policy()
        words: list[Any] = [type(self).__name__, train.mode, self._preparation(), repr(train.transform)]
        # What timm prints of its transforms leaves out some numbers.
        words += [self.crop_pct] if policy is None else [sorted(policy.items()), *_augmenting_versions()]
        return sha256_of([*(str(word).encode() for word in words), *train.images.identity()])

    def plain_samples(self, keys: Tensor) -> Tensor:
        """Return training images as evaluation prepares them, whatever augmentation makes of them in training.

        Args:
            keys: Of the samples, int64 ``(N,)``; see ``sample_keys``.

        Returns:
            Shape ``(N, C, H, W)``, float32.

        Raises:
            ConfigurationError: the training images are not loaded.
        """
        train: ImageDataset = self._train_samples()
        plain = ImageDataset(train.images, self._transforms()[1], train.mode)
        return torch.stack([plain[key % len(plain)][0] for key in keys.tolist()])

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs and build its transforms; called by the Trainer on every process.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or ``None`` for everything.
        """
        if stage in (None, "fit", "validate") and "train" not in self._parts:
            self._parts |= self._training_parts()
        if stage in (None, "test", "predict") and "test" not in self._parts:
            self._parts["test"] = _not_empty("test", self.read("test"))
        augment, evaluate = self._transforms()
        mode = "L" if self.in_chans == 1 else "RGB"
        for split, images in self._parts.items():
            kind, transform = (AugmentedImages, augment) if split == "train" else (ImageDataset, evaluate)
            self.datasets[split] = kind(images, transform, mode)

    def _data_config(self) -> Mapping[str, Any]:
        module = None if self.trainer is None else self.trainer.lightning_module
        config = getattr(module, "data_config", None)
        return config if isinstance(config, Mapping) else {}

    def _preparation(self) -> Preparation:
        options = {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}
        return Preparation.resolve(self.input_shape, options, self._data_config())

    def _policy(self) -> dict[str, Any] | None:
        return merged_policy(self.augment, self.default_augment())

    def _transforms(self) -> tuple[Transform, Transform]:
        preparation, policy = self._preparation(), self._policy()
        evaluate = preparation.evaluation(self.crop_pct)
        return evaluate if policy is None else preparation.training(policy), evaluate

    def _training_parts(self) -> dict[Split, LabelledImages]:
        train = _not_empty("training", self.read("train"))
        val = self.read("val")
        if val is None:
            kept, held_out = cut_by_class(train.chosen_labels, self.val_fraction, self.split_seed, self.contents)
            train, val = train.subset(kept), train.subset(held_out)
        if self.train_samples is not None and self.train_samples < len(train):
            train = train.subset(stratified_split(train.chosen_labels, self.train_samples, self.split_seed)[1])
        return {"train": train, "val": _not_empty("validation", val)}


def _augmenting_versions() -> list[str]:
    """Return the versions of what turns the same random numbers into other images as it changes."""
    return [f"{name} {version(name)}" for name in ("timm", "torchvision", "pillow", "torch")]


def _not_empty(name: str, images: LabelledImages | None) -> LabelledImages:
    if images is None or not len(images):
        raise ConfigurationError(f"the {name} part of the data holds no image; point root at a folder that has some")
    return images
