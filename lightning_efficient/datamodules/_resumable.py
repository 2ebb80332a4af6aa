"""What every data module shares: loaders that resume exactly and count every evaluated sample once."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.datamodules.samplers import (
    ShuffledSampler,
    UnpaddedDistributedSampler,
    balanced_batch_size,
)
from lightning_efficient.errors import ConfigurationError

Split = Literal["train", "val", "test"]


@dataclass(kw_only=True, eq=False, repr=False)
class ResumableDataModule(L.LightningDataModule):
    """Base of the data modules: a subclass fills ``datasets`` in ``setup``, this class loads them.

    Training resumes in the middle of an epoch with the very samples that an uninterrupted run would have seen, and
    validation and test count every sample exactly once on any number of processes.

    Args:
        batch_size: Training samples per step and process.
        eval_batch_size: Samples per step of validation, test and prediction; ``batch_size`` when not given.
        num_workers: Processes that load data beside the main one.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    contents: ClassVar[str] = "samples"
    """What messages call the samples."""

    batch_size: int = 64
    eval_batch_size: int | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._check_at_least(1, "batch_size", "eval_batch_size")
        if self.num_workers < 0:
            raise ConfigurationError(f"num_workers is {self.num_workers}; it must be 0 or more")
        self.datasets: dict[Split, Any] = {}
        self._seed: int | None = None
        self._restored_seed: int | None = None

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
        return self._stateful_loader(dataset, self.batch_size, sampler, self._seed)

    def val_dataloader(self) -> DataLoader:
        """Return the validation loader, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        """Return the test loader, in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the test loader: predictions are made for the test samples."""
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

    def _stateful_loader(
        self, dataset: Any, batch_size: int | None, sampler: Sampler[int], seed: int
    ) -> StatefulDataLoader:
        with warnings.catch_warnings():
            # torchdata calls a function that torch deprecates, which a user cannot change.
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")
            return StatefulDataLoader(
                dataset,
                batch_size=batch_size,
                sampler=sampler,
                # Without a generator of its own, each epoch would draw a number from the global one.
                generator=torch.Generator().manual_seed(seed),
                **self._loader_options(),
            )

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

    def _dataset(self, split: Split) -> Any:
        if split not in self.datasets:
            raise ConfigurationError(
                f"the {split} {self.contents} are not loaded; call prepare_data() and setup() first"
            )
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

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name} is {value}; it must be at least {least}")
