"""What the generated tasks share: samples that follow from the seed, drawn when they are needed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_efficient.datamodules._keyed_draws import STREAMS, uniform
from lightning_efficient.datamodules._resumable import ResumableDataModule, Split
from lightning_efficient.datamodules.sequences import as_it_is

Generate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``draws from U[0, 1) of shape (N, draws per sample) -> (inputs, target)``."""


@dataclass(frozen=True, eq=False)
class GeneratedSequences(Dataset[tuple[Tensor, Tensor]]):
    """A part of a generated task; nothing is stored.

    Attributes:
        generate: Makes samples of random numbers, row by row.
        draws: Random numbers per sample.
        size: Number of samples.
        seed: Of the task.
        stream: Number of the part; parts share no random numbers.
        fresh: Whether each key of ``ShuffledSampler`` is a sample of its own, so that every epoch has new ones;
            otherwise the keys of a sample in all epochs give the same one.
    """

    generate: Generate
    draws: int
    size: int
    seed: int
    stream: int
    fresh: bool = False

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        """Return one sample without a batch dimension."""
        inputs, target = self.__getitems__([key])
        return inputs[0], target[0]

    def __getitems__(self, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a batch; torch's loader calls this."""
        own = keys if self.fresh else [key % self.size for key in keys]
        return self.generate(uniform(self.seed, self.stream, own, self.draws))


@dataclass(kw_only=True, eq=False, repr=False)
class GeneratedDataModule(ResumableDataModule):
    """Base of the generated tasks; batches are ``(inputs, target)``.

    With ``fresh``, sample i of epoch e follows from ``(seed, e, i)`` alone: not from the global seed, nor from the
    number of workers or processes, and a resumed run goes on with the samples of the uninterrupted one. Validation
    and test sets follow from ``seed`` and are the same in every epoch; no two sets share random numbers.

    Args:
        batch_size: Training samples per step and process.
        train_samples: Training samples per epoch.
        val_samples: Validation samples.
        test_samples: Test samples.
        fresh: Whether every epoch trains on new samples; otherwise on the same ones.
        seed: Of all samples and of their order.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    batch_size: int = 128
    train_samples: int = 12_800
    val_samples: int = 1_000
    test_samples: int = 5_000
    fresh: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "train_samples", "val_samples", "test_samples")
        self._check_at_least(0, "seed")

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int]:
        """Time steps and features per step, ``(T, F)``, of one sample."""

    @abstractmethod
    def recipe(self) -> tuple[int, Generate]:
        """Return how many random numbers a sample takes, and the function that makes a batch of them.

        Each sample follows from its own row of numbers alone. The function can be pickled, for workers.
        """

    @property
    def input_size(self) -> int:
        """Features per time step."""
        return self.input_shape[1]

    def setup(self, stage: str | None = None) -> None:
        """Say how the parts are generated; called by the Trainer on every process."""
        sizes: dict[Split, int] = {"train": self.train_samples, "val": self.val_samples, "test": self.test_samples}
        draws, generate = self.recipe()
        for split, size in sizes.items():
            fresh = self.fresh and split == "train"
            self.datasets[split] = GeneratedSequences(generate, draws, size, self.seed, STREAMS[split], fresh)

    def _choose_seed(self, replicas: int) -> int:
        return self.seed

    def _loader_options(self) -> dict[str, Any]:
        return super()._loader_options() | {"collate_fn": as_it_is}
