"""Training batches that say which samples they hold, so that what a network says of a sample can be kept."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from lightning_efficient.datamodules._resumable import ResumableDataModule, Split


class KeyedSamples(Dataset[tuple[Any, ...]]):
    """Samples with their keys as the last element.

    Args:
        samples: A data set with ``__getitems__``, which lists samples or makes whole batches of tensors.
        repeating: Whether a sample is the same in each epoch; its key is then its index.
    """

    def __init__(self, samples: Any, repeating: bool) -> None:
        self.samples = samples
        self.repeating = repeating

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: Sequence[int]) -> Any:
        """Return several samples, by the keys of ``ShuffledSampler`` or by plain indices; torch's loader calls this."""
        drawn = self.samples.__getitems__(keys)
        own = [key % len(self) for key in keys] if self.repeating else list(keys)
        if isinstance(drawn, list):
            return [(*sample, key) for sample, key in zip(drawn, own, strict=True)]
        return (*drawn, torch.tensor(own))


@dataclass(kw_only=True, eq=False, repr=False)
class KeyedDataModule(ResumableDataModule):
    """Base of the data modules whose training samples can be told apart, from one epoch to another and between runs."""

    sample_keys = False
    """Whether training batches end with keys, int64, shape ``(N,)``; set it before loaders are built.

    A key names the very input: for samples that are augmented it is that of ``ShuffledSampler``,
    ``stream * train_size + index``, and for others the index, which is the same in each epoch.
    """

    @property
    @abstractmethod
    def augments_training(self) -> bool:
        """Whether each epoch changes the training samples anew."""

    @property
    def train_size(self) -> int:
        """Number of training samples.

        Raises:
            ConfigurationError: they are not loaded.
        """
        return len(self._train_samples())

    @abstractmethod
    def train_fingerprint(self) -> str:
        """Return the SHA-256 of all that decides which training input a key stands for, after ``setup("fit")``.

        Raises:
            ConfigurationError: the training samples are not loaded.
        """

    def _train_samples(self) -> Any:
        return super()._dataset("train")

    def _dataset(self, split: Split) -> Any:
        if split == "train" and self.sample_keys:
            return KeyedSamples(self._train_samples(), repeating=not self.augments_training)
        return super()._dataset(split)


def sha256_of(parts: Iterable[bytes]) -> str:
    """Return the hexadecimal SHA-256 of a list of byte strings, in which the places of the cuts count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
