"""What every image data module shares: options, splits, transforms and loaders."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.datamodules._dataset import AugmentedImages, ImageDataset, LabelledImages
from lightning_efficient.datamodules._splits import stratified_split
from lightning_efficient.datamodules._transforms import Preparation, Transform, merged_policy
from lightning_efficient.datamodules.samplers import (
    ShuffledSampler,
    UnpaddedDistributedSampler,
    balanced_batch_size,
)
from lightning_efficient.errors import ConfigurationError

Split = Literal["train", "val", "test"]


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(L.LightningDataModule):
    """Base of the image data modules; samples are ``(float32 image of shape (C, H, W), int label)``.

    A subclass says what its data are (``num_classes``, ``class_names``, ``read``); this class splits, augments,
    normalises and loads them. Training resumes in the middle of an epoch with the very images that an uninterrupted
    run would have seen, and validation and test count every sample exactly once on any number of processes.

    Args:
        batch_size: Training samples per step and process.
        eval_batch_size: Samples per step of validation, test and prediction; ``batch_size`` when not given.
        num_workers: Processes that load data beside the main one.
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

    batch_size: int = 64
    eval_batch_size: int | None = None
    num_workers: int = 0
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
        super().__init__()
        at_least_one = ("batch_size", "eval_batch_size", "image_size", "train_samples")
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}; it must be at least 1")
        if self.num_workers < 0:
            raise ConfigurationError(f"num_workers is {self.num_workers}; it must be 0 or more")
        if self.in_chans not in (1, 3):
            raise ConfigurationError(f"in_chans is {self.in_chans}; images have 1 (grey) or 3 (colour) channels")
        if not 0 < self.val_fraction < 1:
            raise ConfigurationError(f"val_fraction is {self.val_fraction}; it must lie in (0, 1)")
        if not 0 < self.crop_pct <= 1:
            raise ConfigurationError(f"crop_pct is {self.crop_pct}; it must lie in (0, 1]")
        self.datasets: dict[Split, ImageDataset] = {}
        self._parts: dict[Split, LabelledImages] = {}
        self._seed: int | None = None
        self._restored_seed: int | None = None
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

    def train_dataloader(self) -> StatefulDataLoader:
        """Return a shuffled loader whose state is part of the checkpoint."""
        dataset = self._dataset("train")
        replicas, rank = self._replicas()
        self._seed, self._restored_seed = self._choose_seed(replicas), None
        sampler = ShuffledSampler(len(dataset), self.batch_size, replicas, rank, self._seed)
        if self.trainer is not None:
            # Lightning sets the epoch only after workers have begun to fetch, too late for a resumed run.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        with warnings.catch_warnings():
            # torchdata calls a function that torch deprecates, which a user cannot change.
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")
            return StatefulDataLoader(
                dataset,
                batch_size=self.batch_size,
                sampler=sampler,
                # Without a generator of its own, each epoch would draw a number from the global one.
                generator=torch.Generator().manual_seed(self._seed),
                **self._loader_options(),
            )

    def val_dataloader(self) -> DataLoader:
        """Return the validation loader, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        """Return the test loader, in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the test loader: predictions are made for the test images."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the seed of the shuffling; Lightning restores the loader's own state in mid-epoch only."""
        return {"shuffle_seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the seed of an interrupted run."""
        self._restored_seed = state_dict["shuffle_seed"]

    def _choose_seed(self, replicas: int) -> int:
        if self._restored_seed is not None:
            return self._restored_seed
        # Processes must agree on the order, so only a seed that Lightning shares with all of them will do.
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if replicas > 1 else torch.initial_seed()

    def _evaluation_loader(self, split: Split) -> DataLoader:
        dataset = self._dataset(split)
        replicas, rank = self._replicas()
        batch_size = balanced_batch_size(self.eval_batch_size or self.batch_size, len(dataset), replicas)
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=UnpaddedDistributedSampler(len(dataset), replicas, rank) if replicas > 1 else None,
            generator=torch.Generator(),
            **self._loader_options(),
        )

    def _dataset(self, split: Split) -> ImageDataset:
        if split not in self.datasets:
            raise ConfigurationError(f"the {split} images are not loaded; call prepare_data() and setup() first")
        return self.datasets[split]

    def _loader_options(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": self.num_workers,
            "pin_memory": on_gpu,
            "persistent_workers": self.num_workers > 0,
        }

    def _replicas(self) -> tuple[int, int]:
        shared = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (shared["num_replicas"], shared["rank"]) if shared else (1, 0)

    def _data_config(self) -> Mapping[str, Any]:
        module = None if self.trainer is None else self.trainer.lightning_module
        config = getattr(module, "data_config", None)
        return config if isinstance(config, Mapping) else {}

    def _transforms(self) -> tuple[Transform, Transform]:
        options = {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}
        preparation = Preparation.resolve(self.input_shape, options, self._data_config())
        evaluate = preparation.evaluation(self.crop_pct)
        policy = merged_policy(self.augment, self.default_augment())
        return evaluate if policy is None else preparation.training(policy), evaluate

    def _training_parts(self) -> dict[Split, LabelledImages]:
        train = _not_empty("training", self.read("train"))
        val = self.read("val")
        if val is None:
            held_out_size = round(self.val_fraction * len(train))
            if not 0 < held_out_size < len(train):
                raise ConfigurationError(
                    f"val_fraction {self.val_fraction} of {len(train)} training images holds out {held_out_size}; "
                    "change it so that both parts keep at least one image"
                )
            kept, held_out = stratified_split(train.chosen_labels, held_out_size, self.split_seed)
            train, val = train.subset(kept), train.subset(held_out)
        if self.train_samples is not None and self.train_samples < len(train):
            train = train.subset(stratified_split(train.chosen_labels, self.train_samples, self.split_seed)[1])
        return {"train": train, "val": _not_empty("validation", val)}


def _not_empty(name: str, images: LabelledImages | None) -> LabelledImages:
    if images is None or not len(images):
        raise ConfigurationError(f"the {name} part of the data holds no image; point root at a folder that has some")
    return images
