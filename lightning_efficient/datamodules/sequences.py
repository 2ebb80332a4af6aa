"""What the data modules of labelled sequences share: whole parts in memory, and batches by index."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_efficient.datamodules._resumable import ResumableDataModule, Split
from lightning_efficient.datamodules._splits import stratified_split
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.typing import SequenceBatch

Prepare = Callable[[Tensor, Tensor], Tensor]
"""``(stored samples, their index) -> float32 inputs (N, T, F)``; a function of its arguments alone."""


def as_it_is(batch: Any) -> Any:
    """Return the batch: a data set with ``__getitems__`` makes whole batches, and nothing is left to collate."""
    return batch


@dataclass(frozen=True, eq=False)
class LabelledSequences(Dataset[SequenceBatch]):
    """A part of a labelled set, held as one tensor.

    Attributes:
        samples: Stored samples, shape ``(N, ...)``, of any dtype.
        target: One label per sequence, shape ``(N,)``, int64.
        prepare: Makes inputs of a batch of samples, so that the set can be stored small.
    """

    samples: Tensor
    target: Tensor
    prepare: Prepare

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, key: int) -> SequenceBatch:
        """Return one sample without a batch dimension."""
        return SequenceBatch(*(each[0] for each in self.__getitems__([key])))

    def __getitems__(self, keys: Sequence[int]) -> SequenceBatch:
        """Return a batch, by plain indices or by the keys of ``ShuffledSampler``; torch's loader calls this."""
        index = torch.tensor([key % len(self) for key in keys])
        return SequenceBatch(self.prepare(self.samples[index], index), self.target[index], index)

    def subset(self, chosen: NDArray[np.int64]) -> LabelledSequences:
        """Keep the samples at these positions, and count them anew."""
        positions = torch.from_numpy(chosen)
        return replace(self, samples=self.samples[positions], target=self.target[positions])


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceDataModule(ResumableDataModule):
    """Base of the data modules of labelled sequences; batches are ``SequenceBatch(inputs, target, index)``.

    Inputs have shape ``(N, T, F)``, float32, and targets shape ``(N,)``, int64. A subclass says what its data are
    (``num_classes``, ``class_names``, ``input_shape``, ``read``). ``index`` counts within the part of the data.

    Args:
        train_samples: Train on that many sequences only, stratified by class, for quick studies. What is measured on
            the training part, such as its mean, is measured before.
        split_seed: Seed of the choices of validation and training samples. Global seeds do not change them.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    contents: ClassVar[str] = "sequences"

    train_samples: int | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "train_samples")
        self._check_at_least(0, "split_seed")

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes; known before the data are read, so that a model can be built from it."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of each class, in the order of the labels."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int]:
        """Time steps and features per step, ``(T, F)``, of one sample."""

    @abstractmethod
    def read(self) -> dict[Split, LabelledSequences]:
        """Read all parts.

        Raises:
            DataNotFoundError: the files are not there.
        """

    @property
    def input_size(self) -> int:
        """Features per time step."""
        return self.input_shape[1]

    def setup(self, stage: str | None = None) -> None:
        """Read all parts into memory; called by the Trainer on every process, and done once."""
        if self.datasets:
            return
        parts = self.read()
        train = parts["train"]
        if self.train_samples is not None and self.train_samples < len(train):
            chosen = stratified_split(train.target.numpy(), self.train_samples, self.split_seed)[1]
            parts["train"] = train.subset(chosen)
        for split, sequences in parts.items():
            if not len(sequences):
                raise ConfigurationError(f"the {split} part of the data holds no sequence; point root at one that has")
        self.datasets = dict(parts)

    def _loader_options(self) -> dict[str, Any]:
        return super()._loader_options() | {"collate_fn": as_it_is}
