"""Samplers that resume exactly and count every sample once, on one process or on many."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from lightning_efficient.errors import ConfigurationError


class UnpaddedDistributedSampler(DistributedSampler):
    """Deal samples out to processes without repeating any, so that a metric over all processes is exact.

    torch's own sampler repeats samples until every process holds equally many, which biases validation and test
    metrics. Lightning leaves a loader alone whose sampler is a ``DistributedSampler``, so this one stays in place.

    Args:
        size: Number of samples in the data set.
        num_replicas: Number of processes.
        rank: Index of this process in ``[0, num_replicas)``.

    Raises:
        ConfigurationError: there are fewer samples than processes.

    Example:
        >>> [list(UnpaddedDistributedSampler(5, 2, rank)) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(self, size: int, num_replicas: int = 1, rank: int = 0) -> None:
        if size < num_replicas:
            raise ConfigurationError(
                f"{size} samples cannot be shared by {num_replicas} processes; use fewer devices or more samples"
            )
        super().__init__(cast(Dataset, range(size)), num_replicas, rank, shuffle=False)
        self.num_samples = len(range(rank, size, num_replicas))
        self.total_size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


class ShuffledSampler(DistributedSampler):
    """Draw samples in a new order every epoch; the order follows from ``(seed, epoch)`` alone and resumes exactly.

    It yields *keys*, ``stream * size + index``, where ``stream`` is a number that belongs to the epoch. A data set
    recovers the index with ``key % size`` and may seed its random augmentation with the key: then the same sample is
    augmented in the same way whatever the number of workers or processes, and after any resume.

    Incomplete batches at the end of an epoch are left out (BatchNorm cannot train on a single sample), unless there
    is not one complete batch per process; then samples are repeated so that all processes draw equally many.

    Args:
        size: Number of samples in the data set.
        batch_size: Samples per step and process.
        num_replicas: Number of processes.
        rank: Index of this process in ``[0, num_replicas)``.
        seed: The same on all processes.

    Example:
        >>> sampler = ShuffledSampler(6, batch_size=2, seed=1)
        >>> sorted(key % 6 for key in sampler)
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, size: int, batch_size: int, num_replicas: int = 1, rank: int = 0, seed: int = 0) -> None:
        super().__init__(cast(Dataset, range(size)), num_replicas, rank, shuffle=True, seed=seed)
        self.size = size
        batches = size // (num_replicas * batch_size)
        self.num_samples = batches * batch_size if batches else -(-size // num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        return _Draws(self)

    def keys(self) -> list[int]:
        """Return the keys that this process draws in the current epoch, in order."""
        stream = random.Random(f"{self.seed}-{self.epoch}").getrandbits(32)
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(stream))
        mine = order.repeat(-(-self.total_size // self.size))[self.rank : self.total_size : self.num_replicas]
        return (mine + stream * self.size).tolist()


class _Draws(Iterator[int]):
    """One pass over a ``ShuffledSampler``, with the state that ``StatefulDataLoader`` saves and restores."""

    def __init__(self, sampler: ShuffledSampler) -> None:
        self.sampler = sampler
        self.epoch = sampler.epoch
        self.position = 0
        self.keys: list[int] | None = None

    def __next__(self) -> int:
        # Lightning creates the iterator before it calls `set_epoch`, so the order is settled at the first draw.
        if self.keys is None:
            if self.epoch != self.sampler.epoch:
                self.epoch, self.position = self.sampler.epoch, 0
            self.keys = self.sampler.keys()
        if self.position == len(self.keys):
            self.sampler.set_epoch(max(self.sampler.epoch, self.epoch + 1))
            raise StopIteration
        self.position += 1
        return self.keys[self.position - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.sampler.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        finished = state["position"] >= len(self.sampler)
        self.sampler.seed = state["seed"]
        self.sampler.set_epoch(state["epoch"] + finished)
        self.epoch = self.sampler.epoch
        self.position = 0 if finished else state["position"]
        self.keys = None


def balanced_batch_size(batch_size: int, size: int, num_replicas: int) -> int:
    """Return the batch size closest to ``batch_size`` with which all processes see equally many batches.

    ``UnpaddedDistributedSampler`` gives some processes one sample more than others. If that sample were a batch of
    its own, a collective call in that step, such as ``self.log(..., sync_dist=True)``, would wait for the others.

    Example:
        >>> balanced_batch_size(64, size=129, num_replicas=2)
        63
        >>> balanced_batch_size(64, size=130, num_replicas=2)
        64
    """
    fewest, uneven = divmod(size, num_replicas)
    if not uneven or fewest % batch_size:
        return batch_size
    smaller = (candidate for candidate in range(batch_size - 1, 0, -1) if fewest % candidate)
    return next(smaller, fewest + 1)
